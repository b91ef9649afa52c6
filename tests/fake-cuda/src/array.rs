//! Arrays: only the VRAM that they take. Nothing can be copied to or from them here.
use core::ffi::{c_int, c_uint};

use greenboost_abi::{
    CUDA_ARRAY_DESCRIPTOR, CUDA_ARRAY3D_DEFERRED_MAPPING, CUDA_ARRAY3D_DESCRIPTOR,
    CUDA_ARRAY3D_LAYERED, CUDA_ARRAY3D_SPARSE, CUDA_ERROR_INVALID_HANDLE, CUDA_ERROR_INVALID_VALUE,
    CUDA_ERROR_OUT_OF_MEMORY,
};

use crate::abi::{In, Out, Res};
use crate::misuse::misuse;
use crate::phys::{Place, charge, discharge};
use crate::world::{Kind, world};

pub(crate) struct Array {
    shape: CUDA_ARRAY3D_DESCRIPTOR,
    place: Place,
    bytes: u64,
    mipmapped: bool,
}

/// Arrays are laid out in tiles of 8 rows of 64 bytes (measured).
const TILE: [u64; 2] = [64, 8];

fn element(format: c_int, channels: c_uint) -> Res<u64> {
    let one = match format {
        0x01 | 0x08 => 1,
        0x02 | 0x09 | 0x10 => 2,
        0x03 | 0x0a | 0x20 => 4,
        _ => return Err(CUDA_ERROR_INVALID_VALUE),
    };
    if !matches!(channels, 1 | 2 | 4) {
        return Err(CUDA_ERROR_INVALID_VALUE);
    }
    Ok(one * u64::from(channels))
}

/// Whether the array is backed later, by mapping.
fn unbacked(shape: &CUDA_ARRAY3D_DESCRIPTOR) -> bool {
    shape.Flags & (CUDA_ARRAY3D_SPARSE | CUDA_ARRAY3D_DEFERRED_MAPPING) != 0
}

fn create(shape: CUDA_ARRAY3D_DESCRIPTOR, levels: c_uint, mipmapped: bool) -> Res<usize> {
    let mut w = world();
    let device = w.device_here()?;
    w.refuse_unsafe("cuArrayCreate")?;
    if shape.Width == 0 || levels == 0 {
        return Err(CUDA_ERROR_INVALID_VALUE);
    }
    let element = element(shape.Format, shape.NumChannels)?;
    let mut bytes = 0u64;
    for level in 0..levels.min(32) {
        let at = |n: usize| ((n as u64) >> level).max(1);
        let row = at(shape.Width)
            .checked_mul(element)
            .and_then(|n| n.checked_next_multiple_of(TILE[0]));
        let rows = at(shape.Height).next_multiple_of(TILE[1]);
        let size = row
            .and_then(|n| n.checked_mul(rows))
            // Layers are not halved.
            .and_then(|n| match shape.Flags & CUDA_ARRAY3D_LAYERED {
                0 => n.checked_mul(at(shape.Depth)),
                _ => n.checked_mul((shape.Depth as u64).max(1)),
            });
        bytes = size
            .and_then(|n| bytes.checked_add(n))
            .ok_or(CUDA_ERROR_OUT_OF_MEMORY)?;
    }
    if unbacked(&shape) {
        bytes = 0;
    }
    let place = Place::Device(device);
    charge(place, bytes)?;
    let handle = w.fresh(Kind::Array) as usize;
    w.arrays.insert(
        handle,
        Array {
            shape,
            place,
            bytes,
            mipmapped,
        },
    );
    Ok(handle)
}

fn destroy(handle: usize, mipmapped: bool) -> Res {
    let mut w = world();
    match w.arrays.get(&handle) {
        Some(array) if array.mipmapped == mipmapped => discharge(array.place, array.bytes),
        _ => {
            misuse!("destroy of array {handle:#x}, which does not exist");
            return Err(CUDA_ERROR_INVALID_HANDLE);
        }
    }
    w.arrays.remove(&handle);
    Ok(())
}

fn shape(handle: usize) -> Res<CUDA_ARRAY3D_DESCRIPTOR> {
    let w = world();
    w.arrays
        .get(&handle)
        .filter(|a| !a.mipmapped)
        .map(|a| a.shape)
        .ok_or(CUDA_ERROR_INVALID_HANDLE)
}

api! {
    Context cuArrayCreate { 3020 cuArrayCreate_v2 Legacy } (array: Out<usize>, shape: In<CUDA_ARRAY_DESCRIPTOR>) |_f| {
        array.check()?;
        let flat = shape.get()?;
        let shape = CUDA_ARRAY3D_DESCRIPTOR {
            Width: flat.Width,
            Height: flat.Height,
            Depth: 0,
            Format: flat.Format,
            NumChannels: flat.NumChannels,
            Flags: 0,
        };
        array.set(create(shape, 1, false)?)
    }
    Context cuArray3DCreate { 3020 cuArray3DCreate_v2 Legacy } (array: Out<usize>, shape: In<CUDA_ARRAY3D_DESCRIPTOR>) |_f| {
        array.check()?;
        array.set(create(shape.get()?, 1, false)?)
    }
    Context cuArrayGetDescriptor { 3020 cuArrayGetDescriptor_v2 Legacy } (out: Out<CUDA_ARRAY_DESCRIPTOR>, array: usize) |_f| {
        let s = shape(array)?;
        out.set(CUDA_ARRAY_DESCRIPTOR { Width: s.Width, Height: s.Height, Format: s.Format, NumChannels: s.NumChannels })
    }
    Context cuArray3DGetDescriptor { 3020 cuArray3DGetDescriptor_v2 Legacy } (out: Out<CUDA_ARRAY3D_DESCRIPTOR>, array: usize) |_f| {
        out.set(shape(array)?)
    }
    Context cuArrayDestroy { 2000 cuArrayDestroy Legacy } (array: usize) |_f| { destroy(array, false) }
    Context cuMipmappedArrayCreate { 5000 cuMipmappedArrayCreate Legacy } (array: Out<usize>, shape: In<CUDA_ARRAY3D_DESCRIPTOR>, levels: c_uint) |_f| {
        array.check()?;
        array.set(create(shape.get()?, levels, true)?)
    }
    Context cuMipmappedArrayDestroy { 5000 cuMipmappedArrayDestroy Legacy } (array: usize) |_f| { destroy(array, true) }
}
