//! The program's own virtual memory: passed through, and counted for as long as a handle or a mapping holds it.

use std::collections::HashMap;
use std::ffi::{c_ulonglong, c_void};
use std::sync::{Mutex, MutexGuard, PoisonError};

use greenboost_abi::*;
use greenboost_wire::ledger::Tier;

use super::memory::counting;
use crate::hooks::real;
use crate::process;
use crate::tier::device;
use crate::tier::map;

/// Physical memory that the program made.
struct Held {
    index: usize,
    bytes: u64,
    /// References by handle: one at creation, one more at each retain.
    handles: u64,
    mappings: u64,
}

#[derive(Default)]
struct Known {
    /// By a number of ours: the driver reuses handle numbers while an older object is still mapped.
    held: HashMap<u64, Held>,
    by_handle: HashMap<CUmemGenericAllocationHandle, u64>,
    /// Mappings by address: bytes, object.
    mapped: HashMap<CUdeviceptr, (usize, u64)>,
    next: u64,
}

static KNOWN: Mutex<Option<Known>> = Mutex::new(None);

fn known() -> MutexGuard<'static, Option<Known>> {
    KNOWN.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Known {
    /// Changes an object's references; returns what to give back when nothing holds it any more.
    fn change(&mut self, object: u64, change: impl FnOnce(&mut Held)) -> Option<(usize, u64)> {
        let held = self.held.get_mut(&object)?;
        change(held);
        if held.handles == 0 {
            self.by_handle.retain(|_, o| *o != object);
        }
        if held.handles > 0 || held.mappings > 0 {
            return None;
        }
        self.held.remove(&object).map(|h| (h.index, h.bytes))
    }
}

fn give_back(what: Option<(usize, u64)>) {
    if let (Some(job), Some((index, bytes))) = (process::job(), what) {
        job.place.release(Tier::Vram, index, bytes);
    }
}

/// Replaces `CUresult cuMemCreate(CUmemGenericAllocationHandle *handle, size_t size, const CUmemAllocationProp *prop,
/// unsigned long long flags)`. Charged to the device in `prop`, not to the current one (PITFALLS 15).
///
/// # Safety
/// As for the function it replaces.
pub unsafe fn create(
    out: *mut CUmemGenericAllocationHandle,
    size: usize,
    prop: *const CUmemAllocationProp,
    flags: c_ulonglong,
) -> CUresult {
    // SAFETY: the program's own call; after a success both pointers were good.
    unsafe {
        let result = real::cuMemCreate(out, size, prop, flags);
        if result == CUDA_SUCCESS && (*prop).location.type_ == CU_MEM_LOCATION_TYPE_DEVICE {
            let ordinal = (*prop).location.id;
            let on_it = device::known(ordinal).or_else(|| {
                let (_, device, _) = counting()?;
                (device.ordinal == ordinal).then_some(device)
            });
            if let (Some(job), Some(device)) = (process::job(), on_it) {
                job.place.charge(Tier::Vram, device.index, size as u64);
                let mut known = known();
                let known = known.get_or_insert_default();
                known.next += 1;
                let object = known.next;
                known.by_handle.insert(*out, object);
                known.held.insert(
                    object,
                    Held {
                        index: device.index,
                        bytes: size as u64,
                        handles: 1,
                        mappings: 0,
                    },
                );
            }
        }
        result
    }
}

/// Replaces `CUresult cuMemRelease(CUmemGenericAllocationHandle handle)`.
///
/// # Safety
/// As for the function it replaces.
pub unsafe fn release(handle: CUmemGenericAllocationHandle) -> CUresult {
    // The number is free for reuse as soon as the driver has it back, so our entry changes under the lock first.
    let object = known()
        .as_ref()
        .and_then(|k| k.by_handle.get(&handle).copied());
    let left = object.and_then(|o| {
        known()
            .as_mut()?
            .change(o, |h| h.handles = h.handles.saturating_sub(1))
    });
    // SAFETY: the program's own call.
    let result = unsafe { real::cuMemRelease(handle) };
    give_back(left);
    result
}

/// Replaces `CUresult cuMemMap(CUdeviceptr ptr, size_t size, size_t offset, CUmemGenericAllocationHandle handle, unsigned
/// long long flags)`.
///
/// # Safety
/// As for the function it replaces.
pub unsafe fn map(
    address: CUdeviceptr,
    size: usize,
    offset: usize,
    handle: CUmemGenericAllocationHandle,
    flags: c_ulonglong,
) -> CUresult {
    // SAFETY: the program's own call.
    let result = unsafe { real::cuMemMap(address, size, offset, handle, flags) };
    if result == CUDA_SUCCESS
        && let Some(known) = known().as_mut()
        && let Some(object) = known.by_handle.get(&handle).copied()
    {
        known.mapped.insert(address, (size, object));
        known.change(object, |h| h.mappings += 1);
    }
    result
}

/// Replaces `CUresult cuMemUnmap(CUdeviceptr ptr, size_t size)`.
///
/// # Safety
/// As for the function it replaces.
pub unsafe fn unmap(address: CUdeviceptr, size: usize) -> CUresult {
    // `cuMemAlloc` memory is not the program's to unmap: the driver says so too.
    if process::job().is_some() && map::touches(address, size as u64) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    // SAFETY: the program's own call.
    let result = unsafe { real::cuMemUnmap(address, size) };
    if result == CUDA_SUCCESS {
        let mut gone = Vec::new();
        if let Some(known) = known().as_mut() {
            let end = address.saturating_add(size as u64);
            let objects: Vec<u64> = known
                .mapped
                .extract_if(|at, _| (address..end).contains(at))
                .map(|(_, (_, o))| o)
                .collect();
            for object in objects {
                gone.push(known.change(object, |h| h.mappings = h.mappings.saturating_sub(1)));
            }
        }
        gone.into_iter().for_each(give_back);
    }
    result
}

/// Replaces `CUresult cuMemRetainAllocationHandle(CUmemGenericAllocationHandle *handle, void *addr)`.
///
/// # Safety
/// As for the function it replaces.
pub unsafe fn retain(out: *mut CUmemGenericAllocationHandle, address: *mut c_void) -> CUresult {
    // Libraries ask this to tell `cuMemCreate` memory from `cuMemAlloc` memory, which this is to the program.
    if process::job().is_some() && map::find(address as u64).is_some() {
        return CUDA_ERROR_INVALID_VALUE;
    }
    // SAFETY: the program's own call; after a success `out` holds the handle.
    unsafe {
        let result = real::cuMemRetainAllocationHandle(out, address);
        if result == CUDA_SUCCESS
            && let Some(known) = known().as_mut()
        {
            let object = known
                .mapped
                .iter()
                .find(|(at, (size, _))| (address as u64).wrapping_sub(**at) < *size as u64)
                .map(|(_, (_, object))| *object);
            if let Some(object) = object {
                known.by_handle.insert(*out, object);
                known.change(object, |h| h.handles += 1);
            }
        }
        result
    }
}
