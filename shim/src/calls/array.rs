//! Arrays: opaque layouts in VRAM, the driver's to make and never placed elsewhere (PITFALLS 29). They are reserved in the
//! VRAM budget first, and out of memory beyond it.
//!
//! The driver says what an array takes only of those that are backed later. Measured, it is tiles of 8 rows of 64 bytes,
//! however many slices, layers and levels there are, from blocks that arrays share.

use std::ffi::{c_int, c_uint};

use greenboost_abi::*;
use greenboost_wire::ledger::{Part, Tier};

use super::memory::current;
use crate::hooks::real;
use crate::process;
use crate::tier::counted::{self, Counted};
use crate::tier::{alloc, range};

/// Bits of a texel by `CUarray_format` and channels.
fn texel_bits(format: c_int, channels: c_uint) -> u64 {
    let each = |bits: u64| bits * u64::from(channels.max(1));
    match format {
        0x01 | 0x08 => each(8),
        0x02 | 0x09 | 0x10 => each(16),
        0x03 | 0x0a | 0x20 => each(32),
        // Whole formats, whatever the channels: packed 10-10-10-2; normalised integers of 1, 2 and 4 channels.
        0x50 => 32,
        0xc0 | 0xc6 => 8,
        0xc1 | 0xc7 | 0xc3 | 0xc9 => 16,
        0xc2 | 0xc8 | 0xc4 | 0xca => 32,
        0xc5 | 0xcb => 64,
        // Block-compressed: 16 texels in 8 bytes (BC1, BC4) or 16 bytes.
        0x91 | 0x92 | 0x97 | 0x98 => 4,
        0x93..=0x96 | 0x99..=0x9e => 8,
        // A plane of brightness and a quarter or half of colours, of 8 or 16 bits.
        0xb0 => 12,
        0x9f | 0xa1 => 24,
        0xa2 => 16,
        0xa3 | 0xa4 => 32,
        _ => each(8),
    }
}

/// Bytes of a row, and rows.
const TILE: [u128; 2] = [64, 8];

/// Bytes of an array with so many levels; nothing while its backing is the program's to map, which is counted as such.
fn bytes(d: &CUDA_ARRAY3D_DESCRIPTOR, levels: c_uint) -> u64 {
    if d.Flags & (CUDA_ARRAY3D_SPARSE | CUDA_ARRAY3D_DEFERRED_MAPPING) != 0 {
        return 0;
    }
    // Each level halves every extent that is left, but not the number of layers or faces.
    let layered = d.Flags & (CUDA_ARRAY3D_LAYERED | CUDA_ARRAY3D_CUBEMAP) != 0;
    let bits = u128::from(texel_bits(d.Format, d.NumChannels));
    let total = (0..levels.clamp(1, 32)).fold(0u128, |sum, level| {
        let at = |n: usize| u128::from((n as u64).checked_shr(level).unwrap_or(0).max(1));
        let depth = if layered {
            (d.Depth as u128).max(1)
        } else {
            at(d.Depth)
        };
        let row = at(d.Width)
            .saturating_mul(bits)
            .div_ceil(8)
            .div_ceil(TILE[0]);
        let rows = at(d.Height).next_multiple_of(TILE[1]);
        let size = row
            .saturating_mul(TILE[0])
            .saturating_mul(rows)
            .saturating_mul(depth);
        sum.saturating_add(size)
    });
    u64::try_from(total).unwrap_or(u64::MAX)
}

/// Makes an array within the budget. `None` for a shape: the driver refuses it.
fn make(
    shape: Option<CUDA_ARRAY3D_DESCRIPTOR>,
    levels: c_uint,
    create: impl Fn() -> CUresult,
    handle: impl FnOnce() -> u64,
) -> CUresult {
    let job = process::live().filter(|_| shape.is_some());
    let (job, device, context) = match current(job) {
        Ok(Some(here)) => here,
        Ok(None) => return create(),
        Err(code) => return code,
    };
    let bytes = shape.map_or(0, |shape| bytes(&shape, levels));
    if let Err(why) = range::reserve(job, device, Tier::Vram, bytes) {
        return alloc::out_of_memory(job, device, bytes, why);
    }
    let mut result = create();
    if result == CUDA_ERROR_OUT_OF_MEMORY && range::make_room(job, device, Tier::Vram) {
        result = create();
    }
    if result == CUDA_SUCCESS {
        let counted = Counted {
            part: Part::Arrays,
            index: device.index,
            bytes,
            context,
        };
        counted::add(job, handle(), counted);
    } else {
        job.place.release(Tier::Vram, device.index, bytes);
    }
    result
}

/// Replaces `CUresult cuArrayCreate_v2(CUarray *pHandle, const CUDA_ARRAY_DESCRIPTOR *pAllocateArray)`.
///
/// # Safety
/// As for the function it replaces.
pub unsafe fn create(out: *mut CUarray, descriptor: *const CUDA_ARRAY_DESCRIPTOR) -> CUresult {
    // SAFETY: the program's own call and pointers, of which null ones are not followed.
    unsafe {
        let shape =
            descriptor
                .as_ref()
                .filter(|_| !out.is_null())
                .map(|d| CUDA_ARRAY3D_DESCRIPTOR {
                    Width: d.Width,
                    Height: d.Height,
                    Format: d.Format,
                    NumChannels: d.NumChannels,
                    ..Default::default()
                });
        let create = || real::cuArrayCreate_v2(out, descriptor);
        make(shape, 1, create, || *out as u64)
    }
}

/// Replaces `CUresult cuArray3DCreate_v2(CUarray *pHandle, const CUDA_ARRAY3D_DESCRIPTOR *pAllocateArray)`.
///
/// # Safety
/// As for the function it replaces.
pub unsafe fn create_3d(out: *mut CUarray, descriptor: *const CUDA_ARRAY3D_DESCRIPTOR) -> CUresult {
    // SAFETY: as in `create`.
    unsafe {
        let shape = descriptor.as_ref().filter(|_| !out.is_null()).copied();
        let create = || real::cuArray3DCreate_v2(out, descriptor);
        make(shape, 1, create, || *out as u64)
    }
}

/// Replaces `CUresult cuArrayDestroy(CUarray hArray)`.
///
/// # Safety
/// As for the function it replaces.
pub unsafe fn destroy(array: CUarray) -> CUresult {
    // SAFETY: the program's own call.
    counted::end(Part::Arrays, array as u64, || unsafe {
        real::cuArrayDestroy(array)
    })
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
        let shape = descriptor.as_ref().filter(|_| !out.is_null()).copied();
        let create = || real::cuMipmappedArrayCreate(out, descriptor, levels);
        make(shape, levels, create, || *out as u64)
    }
}

/// Replaces `CUresult cuMipmappedArrayDestroy(CUmipmappedArray hMipmappedArray)`.
///
/// # Safety
/// As for the function it replaces.
pub unsafe fn destroy_mipmapped(array: CUmipmappedArray) -> CUresult {
    // SAFETY: the program's own call.
    counted::end(Part::Arrays, array as u64, || unsafe {
        real::cuMipmappedArrayDestroy(array)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(extent: [usize; 3], format: c_int, channels: c_uint, flags: c_uint) -> u64 {
        sized(extent, format, channels, flags, 1)
    }

    fn sized(
        [w, h, d]: [usize; 3],
        format: c_int,
        channels: c_uint,
        flags: c_uint,
        levels: c_uint,
    ) -> u64 {
        let d = CUDA_ARRAY3D_DESCRIPTOR {
            Width: w,
            Height: h,
            Depth: d,
            Format: format,
            NumChannels: channels,
            Flags: flags,
        };
        bytes(&d, levels)
    }

    #[test]
    fn sizes() {
        assert_eq!(shape([10, 20, 0], 0x20, 4, 0), 192 * 24);
        assert_eq!(shape([10, 0, 0], 0x01, 1, 0), 512);
        // As an H100 has it: 21 blocks of 2 MiB, less than one of them left over.
        assert_eq!(shape([130, 130, 1000], 0x10, 1, 0), 43_520_000);
        assert_eq!(shape([usize::MAX, 2, 2], 0x20, 4, 0), u64::MAX);
        assert_eq!(shape([128, 64, 0], 0x91, 1, 0), 128 * 64 / 2);
        assert_eq!(shape([128, 64, 0], 0xb0, 3, 0), 128 * 64 * 3 / 2);
        assert_eq!(shape([64, 64, 0], 0x20, 1, CUDA_ARRAY3D_SPARSE), 0);
        assert_eq!(sized([64, 8, 4], 0x01, 1, 0, 3), 512 * (4 + 2 + 1));
        let layered = CUDA_ARRAY3D_LAYERED;
        assert_eq!(sized([64, 8, 4], 0x01, 1, layered, 3), 512 * 12);
        assert_eq!(sized([4, 4, 0], 0x01, 1, 0, u32::MAX), 512 * 32);
    }
}
