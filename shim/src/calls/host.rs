//! Host memory that the program pins: the driver's to make, charged to the RAM budget (PITFALLS 24, 25).
//!
//! It cannot be swapped, whoever pinned it. So it is reserved first, and refused with `CUDA_ERROR_OUT_OF_MEMORY` when the
//! budget or the machine has no room. Without spilling there is no budget, and only the machine is asked.

use std::ffi::{c_uint, c_void};

use greenboost_abi::*;
use greenboost_wire::ledger::{Part, Tier};

use super::memory::current;
use crate::hooks::real;
use crate::process::{self, Job};
use crate::tier::counted::{self, Counted};
use crate::tier::device::Device;
use crate::tier::range::{self, Shortage};
use crate::tier::{alloc, gate, resident};

/// What the driver pins by. Memory that shares a page with other registered memory is charged for itself.
const PAGE: u64 = 4096;

/// Pins memory by a call of the program's. `missing` says how many of its bytes the machine has yet to find.
fn pin(
    part: Part,
    bytes: u64,
    missing: impl Fn() -> u64,
    call: impl Fn() -> CUresult,
    address: impl FnOnce() -> u64,
) -> CUresult {
    // What the driver would refuse, it refuses itself, with its own error.
    let job = process::live().filter(|_| bytes > 0);
    let (job, device, context) = match current(job) {
        Ok(Some(here)) => here,
        Ok(None) => return call(),
        Err(code) => return code,
    };
    if let Err(why) = reserve(job, device, bytes, missing()) {
        return alloc::out_of_memory(job, device, bytes, why);
    }
    let mut result = call();
    // What is kept for reuse may be what the driver lacks.
    if result == CUDA_ERROR_OUT_OF_MEMORY && range::make_room(job, device, Tier::Host) {
        result = call();
    }
    if result == CUDA_SUCCESS {
        let counted = Counted {
            part,
            index: device.index,
            bytes,
            context,
        };
        counted::add(job, address(), counted);
    } else {
        job.place.release(Tier::Host, device.index, bytes);
    }
    result
}

/// Reserves `bytes`, of which the machine has yet to find `missing`.
fn reserve(job: &Job, device: &Device, bytes: u64, missing: u64) -> Result<(), Shortage> {
    if job.place.ledger().settings().spill {
        range::reserve(job, device, Tier::Host, bytes)?;
    } else {
        job.place.charge(Tier::Host, device.index, bytes);
    }
    if missing == 0 {
        return Ok(());
    }
    range::ask_machine(job, missing, bytes).inspect_err(|_| {
        job.place.release(Tier::Host, device.index, bytes);
    })
}

fn pages(bytes: usize) -> u64 {
    (bytes as u64)
        .checked_next_multiple_of(PAGE)
        .unwrap_or(u64::MAX)
}

/// Replaces `CUresult cuMemHostAlloc(void **pp, size_t bytesize, unsigned int Flags)`.
///
/// # Safety
/// As for the function it replaces.
pub unsafe fn alloc(out: *mut *mut c_void, bytes: usize, flags: c_uint) -> CUresult {
    let size = if out.is_null() { 0 } else { pages(bytes) };
    // SAFETY: the program's own call; after a success `out` holds the address.
    unsafe {
        let call = || real::cuMemHostAlloc(out, bytes, flags);
        pin(Part::Pinned, size, || size, call, || *out as u64)
    }
}

/// Replaces `CUresult cuMemAllocHost_v2(void **pp, size_t bytesize)`.
///
/// # Safety
/// As for the function it replaces.
pub unsafe fn alloc_v2(out: *mut *mut c_void, bytes: usize) -> CUresult {
    let size = if out.is_null() { 0 } else { pages(bytes) };
    // SAFETY: as in `alloc`.
    unsafe {
        let call = || real::cuMemAllocHost_v2(out, bytes);
        pin(Part::Pinned, size, || size, call, || *out as u64)
    }
}

/// Replaces `CUresult cuMemFreeHost(void *p)`.
///
/// # Safety
/// As for the function it replaces.
pub unsafe fn free(address: *mut c_void) -> CUresult {
    // SAFETY: the program's own call.
    counted::end(Part::Pinned, address as u64, || unsafe {
        let _pass = gate::pass();
        real::cuMemFreeHost(address)
    })
}

/// The pages that registering touches: first address and bytes. Nothing for what the driver refuses.
fn touched(address: *mut c_void, bytes: usize) -> (u64, u64) {
    let start = address as u64 / PAGE * PAGE;
    let end = (address as u64)
        .checked_add(bytes as u64)
        .and_then(|end| end.checked_next_multiple_of(PAGE));
    match end {
        Some(end) if bytes > 0 && !address.is_null() => (start, end - start),
        _ => (start, 0),
    }
}

macro_rules! registers {
    ($($ours:ident = $real:ident;)*) => {$(
        #[doc = concat!("Replaces `CUresult ", stringify!($real), "(void *p, size_t bytesize, unsigned int Flags)`.")]
        /// The memory is the program's already: what of it is in RAM the machine need not find again.
        ///
        /// # Safety
        /// As for the function it replaces.
        pub unsafe fn $ours(address: *mut c_void, bytes: usize, flags: c_uint) -> CUresult {
            // Memory of other devices is no RAM.
            let bytes_of_ram = if flags & CU_MEMHOSTREGISTER_IOMEMORY == 0 { bytes } else { 0 };
            let (start, size) = touched(address, bytes_of_ram);
            // SAFETY: the program's own call.
            let call = || unsafe { real::$real(address, bytes, flags) };
            let missing = || resident::missing(start, size);
            pin(Part::Registered, size, missing, call, || address as u64)
        }
    )*};
}

registers! {
    register = cuMemHostRegister;
    register_v2 = cuMemHostRegister_v2;
}

/// Replaces `CUresult cuMemHostUnregister(void *p)`.
///
/// # Safety
/// As for the function it replaces.
pub unsafe fn unregister(address: *mut c_void) -> CUresult {
    // SAFETY: the program's own call.
    counted::end(Part::Registered, address as u64, || unsafe {
        let _pass = gate::pass();
        real::cuMemHostUnregister(address)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_pages() {
        let at = |n: u64| n as *mut c_void;
        assert_eq!(touched(at(4096), 4096), (4096, 4096));
        assert_eq!(touched(at(4101), 100), (4096, 4096));
        assert_eq!(touched(at(8190), 4), (4096, 8192));
        assert_eq!(touched(at(8192), 0), (8192, 0));
        assert_eq!(touched(at(8192), usize::MAX).1, 0);
        assert_eq!(touched(at(0), 4096).1, 0);
        assert_eq!(pages(1), 4096);
        assert_eq!(pages(usize::MAX), u64::MAX);
    }
}
