//! Arrays: opaque layouts in VRAM, the driver's, counted (PITFALLS 29).

use std::ffi::{c_int, c_uint};

use greenboost_abi::*;
use greenboost_wire::ledger::Tier;

use super::memory::counting;
use crate::hooks::real;
use crate::process;
use crate::tier::free as tier_free;
use crate::tier::map::{self, Counted};

/// Bytes of an element's channel by `CUarray_format`; block-compressed and planar formats count as one.
fn channel_bytes(format: c_int) -> u64 {
    match format {
        0x02 | 0x09 | 0x10 => 2, // 16-bit integers and half
        0x03 | 0x0a | 0x20 => 4, // 32-bit integers and float
        _ => 1,
    }
}

fn bytes(extent: [usize; 3], format: c_int, channels: c_uint) -> u64 {
    extent.iter().map(|n| (*n).max(1) as u64).fold(
        channel_bytes(format) * u64::from(channels.max(1)),
        u64::saturating_mul,
    )
}

fn count(handle: usize, bytes: u64) {
    if let Some((job, device, context)) = counting() {
        job.place.charge(Tier::Vram, device.index, bytes);
        map::count(
            map::Kind::Array,
            handle as u64,
            Counted {
                index: device.index,
                bytes,
                context,
            },
        );
    }
}

fn uncount(handle: usize, destroy: impl FnOnce() -> CUresult) -> CUresult {
    let Some(job) = process::job() else {
        return destroy();
    };
    let counted = map::uncount(map::Kind::Array, handle as u64);
    let result = destroy();
    match (counted, result) {
        (Some(counted), CUDA_SUCCESS) => tier_free::uncharge(job, counted),
        (Some(counted), _) => map::count(map::Kind::Array, handle as u64, counted),
        (None, _) => {}
    }
    result
}

/// Replaces `CUresult cuArrayCreate_v2(CUarray *pHandle, const CUDA_ARRAY_DESCRIPTOR *pAllocateArray)`.
///
/// # Safety
/// As for the function it replaces.
pub unsafe fn create(out: *mut CUarray, descriptor: *const CUDA_ARRAY_DESCRIPTOR) -> CUresult {
    // SAFETY: the program's own call; after a success both pointers were good.
    unsafe {
        let result = real::cuArrayCreate_v2(out, descriptor);
        if result == CUDA_SUCCESS {
            let d = &*descriptor;
            count(
                *out as usize,
                bytes([d.Width, d.Height, 1], d.Format, d.NumChannels),
            );
        }
        result
    }
}

/// Replaces `CUresult cuArray3DCreate_v2(CUarray *pHandle, const CUDA_ARRAY3D_DESCRIPTOR *pAllocateArray)`.
///
/// # Safety
/// As for the function it replaces.
pub unsafe fn create_3d(out: *mut CUarray, descriptor: *const CUDA_ARRAY3D_DESCRIPTOR) -> CUresult {
    // SAFETY: as in `create`.
    unsafe {
        let result = real::cuArray3DCreate_v2(out, descriptor);
        if result == CUDA_SUCCESS {
            let d = &*descriptor;
            count(
                *out as usize,
                bytes([d.Width, d.Height, d.Depth], d.Format, d.NumChannels),
            );
        }
        result
    }
}

/// Replaces `CUresult cuArrayDestroy(CUarray hArray)`.
///
/// # Safety
/// As for the function it replaces.
pub unsafe fn destroy(array: CUarray) -> CUresult {
    // SAFETY: the program's own call.
    uncount(array as usize, || unsafe { real::cuArrayDestroy(array) })
}

/// Replaces `CUresult cuMipmappedArrayCreate(CUmipmappedArray *pHandle, const CUDA_ARRAY3D_DESCRIPTOR
/// *pMipmappedArrayDesc, unsigned int numMipmapLevels)`.
///
/// # Safety
/// As for the function it replaces.
pub unsafe fn create_mipmapped(
    out: *mut CUmipmappedArray,
    descriptor: *const CUDA_ARRAY3D_DESCRIPTOR,
    levels: c_uint,
) -> CUresult {
    // SAFETY: as in `create`.
    unsafe {
        let result = real::cuMipmappedArrayCreate(out, descriptor, levels);
        if result == CUDA_SUCCESS {
            let d = &*descriptor;
            // Each level halves every extent that is left.
            let level = |n: usize, l: c_uint| {
                if n == 0 {
                    0
                } else {
                    n.checked_shr(l).unwrap_or(0).max(1)
                }
            };
            let total = (0..levels.clamp(1, 32))
                .map(|l| {
                    bytes(
                        [level(d.Width, l), level(d.Height, l), level(d.Depth, l)],
                        d.Format,
                        d.NumChannels,
                    )
                })
                .sum();
            count(*out as usize, total);
        }
        result
    }
}

/// Replaces `CUresult cuMipmappedArrayDestroy(CUmipmappedArray hMipmappedArray)`.
///
/// # Safety
/// As for the function it replaces.
pub unsafe fn destroy_mipmapped(array: CUmipmappedArray) -> CUresult {
    // SAFETY: the program's own call.
    uncount(array as usize, || unsafe {
        real::cuMipmappedArrayDestroy(array)
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn sizes() {
        assert_eq!(super::bytes([10, 20, 0], 0x20, 4), 10 * 20 * 16);
        assert_eq!(super::bytes([10, 0, 0], 0x01, 1), 10);
        assert_eq!(super::bytes([usize::MAX, 2, 2], 0x20, 4), u64::MAX);
    }
}
