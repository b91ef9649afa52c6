//! `cuMemAlloc` and its kin.

use std::ffi::c_uint;

use greenboost_abi::*;
use greenboost_wire::ledger::Part;

use super::context::owner_of_memory;
use crate::driver;
use crate::hooks::real;
use crate::process::{self, Job};
use crate::tier::device::{self, Device};
use crate::tier::map::{self, Handle};
use crate::tier::pools::Done;
use crate::tier::{alloc as place, counted, drain, free as tier_free, gate, pools};

/// The device that the calling thread allocates on, and its context. `None`: the call is the driver's to answer (no
/// context, CUDA not initialised, shim wounded).
///
/// # Errors
/// The driver's, of a query that should not fail: letting the call pass would lose count of it.
pub fn current(
    job: Option<&'static Job>,
) -> driver::Result<Option<(&'static Job, &'static Device, Handle)>> {
    let Some(job) = job else { return Ok(None) };
    let known = driver::current_context().and_then(|c| Ok((c, driver::current_device()?)));
    let (context, ordinal) = match known {
        Ok(known) => known,
        // What these say, the call itself would say.
        Err(
            CUDA_ERROR_NOT_INITIALIZED
            | CUDA_ERROR_DEINITIALIZED
            | CUDA_ERROR_INVALID_CONTEXT
            | CUDA_ERROR_CONTEXT_IS_DESTROYED,
        ) => return Ok(None),
        Err(code) => return Err(code),
    };
    let device = device::get(job, ordinal)?;
    drain::context_met(context, ordinal);
    let owner = owner_of_memory(context.into());
    Ok(device.map(|device| (job, device, owner)))
}

/// As [`current`], for what the driver has done already and is only counted.
pub fn counting() -> Option<(&'static Job, &'static Device, Handle)> {
    current(process::live()).ok().flatten()
}

/// Replaces `CUresult cuMemAlloc_v2(CUdeviceptr *dptr, size_t bytesize)`.
///
/// # Safety
/// As for the function it replaces.
pub unsafe fn alloc(out: *mut CUdeviceptr, bytes: usize) -> CUresult {
    // What the driver would refuse, it refuses itself, with its own error.
    let job = process::live().filter(|_| !out.is_null() && bytes > 0);
    let (job, device, context) = match current(job) {
        Ok(Some(here)) => here,
        // SAFETY: the program's own call.
        Ok(None) => return unsafe { real::cuMemAlloc_v2(out, bytes) },
        Err(code) => return code,
    };
    match place::allocate(job, device, context, bytes as u64) {
        Ok(address) => {
            // SAFETY: the program's pointer for the result, not null.
            unsafe { *out = address };
            CUDA_SUCCESS
        }
        Err(code) => code,
    }
}

/// Rows are padded to a multiple of this (measured; the texture pitch alignment of all devices is a divisor of it).
const PITCH: usize = 512;

/// Replaces `CUresult cuMemAllocPitch_v2(CUdeviceptr *dptr, size_t *pPitch, size_t WidthInBytes, size_t Height, unsigned
/// int ElementSizeBytes)`.
///
/// # Safety
/// As for the function it replaces.
pub unsafe fn alloc_pitch(
    out: *mut CUdeviceptr,
    pitch: *mut usize,
    width: usize,
    height: usize,
    element: c_uint,
) -> CUresult {
    let padded = width.checked_next_multiple_of(PITCH);
    let bytes = padded
        .and_then(|p| p.checked_mul(height))
        .filter(|b| *b > 0);
    let valid = !out.is_null() && !pitch.is_null() && matches!(element, 4 | 8 | 16);
    let job = process::live().filter(|_| valid);
    let ((job, device, context), bytes, padded) = match (current(job), bytes, padded) {
        (Ok(Some(here)), Some(bytes), Some(padded)) => (here, bytes, padded),
        (Err(code), ..) => return code,
        // SAFETY: the program's own call.
        _ => return unsafe { real::cuMemAllocPitch_v2(out, pitch, width, height, element) },
    };
    match place::allocate(job, device, context, bytes as u64) {
        Ok(address) => {
            // SAFETY: the program's pointers for the results, not null.
            unsafe {
                *out = address;
                *pitch = padded;
            }
            CUDA_SUCCESS
        }
        Err(code) => code,
    }
}

/// Replaces `CUresult cuMemFree_v2(CUdeviceptr dptr)`.
///
/// # Safety
/// As for the function it replaces.
pub unsafe fn free(address: CUdeviceptr) -> CUresult {
    let Some(job) = process::job() else {
        // SAFETY: the program's own call.
        return unsafe { real::cuMemFree_v2(address) };
    };
    tier_free::settle();
    if let Some(result) = tier_free::free(job, address) {
        return result;
    }
    // Uncounted before the driver can hand the same address to another thread.
    let counted = map::uncount(map::Kind::Memory, address);
    let free = || {
        let _pass = gate::pass();
        // SAFETY: the program's own call.
        unsafe { real::cuMemFree_v2(address) }
    };
    let managed = || counted::end(Part::Managed, address, free);
    let result = pools::freed(job, address, Done::Yes, managed);
    match (counted, result) {
        (Some(counted), CUDA_SUCCESS) => tier_free::uncharge(job, counted),
        (Some(counted), _) => map::count(map::Kind::Memory, address, counted),
        (None, _) => {}
    }
    result
}

/// Replaces `CUresult cuMemAllocManaged(CUdeviceptr *dptr, size_t bytesize, unsigned int flags)`.
///
/// # Safety
/// As for the function it replaces.
pub unsafe fn alloc_managed(out: *mut CUdeviceptr, bytes: usize, flags: c_uint) -> CUresult {
    // SAFETY: the program's own call.
    let result = unsafe { real::cuMemAllocManaged(out, bytes, flags) };
    if result == CUDA_SUCCESS
        && let Some((job, device, context)) = counting()
    {
        let counted = counted::Counted {
            part: Part::Managed,
            index: device.index,
            bytes: bytes as u64,
            context,
        };
        // SAFETY: the driver has just written it.
        counted::add(job, unsafe { *out }, counted);
    }
    result
}
