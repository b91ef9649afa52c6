//! Stream-ordered allocations: the driver's, counted as VRAM.

use greenboost_abi::*;
use greenboost_wire::ledger::Tier;

use super::memory::counting;
use crate::hooks::real;
use crate::process;
use crate::tier::free as tier_free;
use crate::tier::map::{self, Counted};

/// Charges an allocation that the driver made on the current device.
///
/// # Safety
/// After a success `out` points to the address.
unsafe fn count(result: CUresult, out: *mut CUdeviceptr, bytes: usize) -> CUresult {
    if result == CUDA_SUCCESS
        && let Some((job, device, context)) = counting()
    {
        let bytes = (bytes as u64).next_multiple_of(512);
        job.place.charge(Tier::Vram, device.index, bytes);
        device
            .entry(job)
            .allocations
            .fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        // SAFETY: the driver has just written it.
        map::count(
            map::Kind::Memory,
            unsafe { *out },
            Counted {
                index: device.index,
                bytes,
                context,
            },
        );
    }
    result
}

macro_rules! allocs {
    ($($ours:ident = $real:ident($($arg:ident: $ty:ty),*);)*) => {$(
        #[doc = concat!("Replaces `", stringify!($real), "`.")]
        ///
        /// # Safety
        /// As for the function it replaces.
        pub unsafe fn $ours(out: *mut CUdeviceptr, bytes: usize, $($arg: $ty),*) -> CUresult {
            // SAFETY: the program's own call.
            unsafe { count(real::$real(out, bytes, $($arg),*), out, bytes) }
        }
    )*};
}

allocs! {
    alloc = cuMemAllocAsync(stream: CUstream);
    alloc_ptsz = cuMemAllocAsync_ptsz(stream: CUstream);
    alloc_from = cuMemAllocFromPoolAsync(pool: CUmemoryPool, stream: CUstream);
    alloc_from_ptsz = cuMemAllocFromPoolAsync_ptsz(pool: CUmemoryPool, stream: CUstream);
}

fn free_with(address: CUdeviceptr, free: impl FnOnce() -> CUresult) -> CUresult {
    let Some(job) = process::job() else {
        return free();
    };
    // Memory from `cuMemAlloc` may be freed in stream order too. Waiting for everything is more than is asked for.
    if let Some(result) = tier_free::free(job, address) {
        return result;
    }
    let counted = map::uncount(map::Kind::Memory, address);
    let result = free();
    match (counted, result) {
        (Some(counted), CUDA_SUCCESS) => tier_free::uncharge(job, counted),
        (Some(counted), _) => map::count(map::Kind::Memory, address, counted),
        (None, _) => {}
    }
    result
}

/// Replaces `CUresult cuMemFreeAsync(CUdeviceptr dptr, CUstream hStream)`.
///
/// # Safety
/// As for the function it replaces.
pub unsafe fn free(address: CUdeviceptr, stream: CUstream) -> CUresult {
    // SAFETY: the program's own call.
    free_with(address, || unsafe { real::cuMemFreeAsync(address, stream) })
}

/// Replaces `cuMemFreeAsync_ptsz`.
///
/// # Safety
/// As for the function it replaces.
pub unsafe fn free_ptsz(address: CUdeviceptr, stream: CUstream) -> CUresult {
    // SAFETY: the program's own call.
    free_with(address, || unsafe {
        real::cuMemFreeAsync_ptsz(address, stream)
    })
}
