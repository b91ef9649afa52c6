//! Calls that return earlier on device memory than on host-backed ranges.
//!
//! Synchronous copies between device ranges and `cuMemsetD*` return at once on VRAM, and wait for themselves and all
//! before them on host memory (measured for every form below on driver 580). A program may build on the former: launch,
//! copy, then release the kernel from the host. So for host-backed ranges the shim issues the asynchronous form on the
//! same stream, which is what the call amounts to on VRAM and never waits. Copies from and to the program's own host
//! memory wait on VRAM too: they are the driver's.

use std::ffi::{c_uchar, c_uint, c_ushort};

use greenboost_abi::*;

use super::vmm;
use crate::driver::{self, raw};
use crate::hooks::real;
use crate::process;
use crate::tier::{drain, map};

/// An operand: first address and bytes.
type Operand = (CUdeviceptr, u64);

/// Whether the asynchronous form is to be used: an operand is host-backed, and all are device memory to the program.
/// While a stream captures, the driver's own answer to the synchronous form stands.
fn deferred(operands: &[Operand]) -> bool {
    process::job().is_some()
        && !drain::capturing()
        && operands.iter().any(|(address, bytes)| {
            map::on_host(*address, *bytes) || vmm::on_host(*address, *bytes)
        })
        && operands.iter().all(|(address, _)| is_device(*address))
}

fn is_device(address: CUdeviceptr) -> bool {
    map::find(address).is_some()
        || vmm::spilled_from(address).is_some()
        || driver::memory_type(address) == Ok(CU_MEMORYTYPE_DEVICE)
}

/// Extent of a 2D operation, bytes.
fn extent(pitch: usize, width: usize, height: usize) -> u64 {
    (pitch as u64)
        .saturating_mul(height.saturating_sub(1) as u64)
        .saturating_add(width as u64)
}

/// The operands of a 2D copy, if both are addresses of device memory.
///
/// # Safety
/// The descriptor is the program's, or null.
unsafe fn rows(copy: *const CUDA_MEMCPY2D) -> Vec<Operand> {
    // SAFETY: the caller's promise.
    let Some(c) = (unsafe { copy.as_ref() }) else {
        return Vec::new();
    };
    let side = |kind, base: CUdeviceptr, pitch: usize, x: usize, y: usize| {
        let start = base
            .wrapping_add((y as u64).wrapping_mul(pitch as u64))
            .wrapping_add(x as u64);
        addressed(kind).then(|| (start, extent(pitch, c.WidthInBytes, c.Height)))
    };
    let to = side(
        c.dstMemoryType,
        c.dstDevice,
        c.dstPitch,
        c.dstXInBytes,
        c.dstY,
    );
    let from = side(
        c.srcMemoryType,
        c.srcDevice,
        c.srcPitch,
        c.srcXInBytes,
        c.srcY,
    );
    to.zip(from)
        .map_or_else(Vec::new, |(to, from)| vec![to, from])
}

/// As [`rows`], for 3D copies.
///
/// # Safety
/// The descriptor is the program's, or null.
unsafe fn slices(copy: *const CUDA_MEMCPY3D) -> Vec<Operand> {
    // SAFETY: the caller's promise.
    let Some(c) = (unsafe { copy.as_ref() }) else {
        return Vec::new();
    };
    let side = |kind, base: CUdeviceptr, pitch: usize, height: usize, [x, y, z]: [usize; 3]| {
        let rows = (z as u64)
            .wrapping_mul(height as u64)
            .wrapping_add(y as u64);
        let start = base
            .wrapping_add(rows.wrapping_mul(pitch as u64))
            .wrapping_add(x as u64);
        let slice = (pitch as u64).saturating_mul(height as u64);
        let bytes = slice
            .saturating_mul(c.Depth.saturating_sub(1) as u64)
            .saturating_add(extent(pitch, c.WidthInBytes, c.Height));
        addressed(kind).then_some((start, bytes))
    };
    let at = [c.dstXInBytes, c.dstY, c.dstZ];
    let to = side(c.dstMemoryType, c.dstDevice, c.dstPitch, c.dstHeight, at);
    let at = [c.srcXInBytes, c.srcY, c.srcZ];
    let from = side(c.srcMemoryType, c.srcDevice, c.srcPitch, c.srcHeight, at);
    to.zip(from)
        .map_or_else(Vec::new, |(to, from)| vec![to, from])
}

/// Whether an operand of this memory type is named by its device address.
fn addressed(kind: c_uint) -> bool {
    matches!(kind, CU_MEMORYTYPE_DEVICE | CU_MEMORYTYPE_UNIFIED)
}

macro_rules! ordered {
    ($($ours:ident: $sync:ident or $deferred:ident ($($arg:ident: $ty:ty),*) on $operands:expr;)*) => {$(
        #[doc = concat!("Replaces `", stringify!($sync), "`.")]
        ///
        /// # Safety
        /// As for the function it replaces.
        pub unsafe fn $ours($($arg: $ty),*) -> CUresult {
            // SAFETY: the program's own call; the asynchronous form takes the same operands, and a null stream is the
            // one that the synchronous form runs on.
            unsafe {
                if deferred(&$operands) {
                    let code = raw::$deferred($($arg,)* std::ptr::null_mut());
                    // What the asynchronous form does not take, the synchronous one may (unaligned pitches), or refuse.
                    if !matches!(code, driver::MISSING | CUDA_ERROR_INVALID_VALUE) {
                        return code;
                    }
                }
                real::$sync($($arg),*)
            }
        }
    )*};
}

ordered! {
    copy: cuMemcpyDtoD_v2 or cuMemcpyDtoDAsync_v2
        (to: CUdeviceptr, from: CUdeviceptr, bytes: usize) on [(to, bytes as u64), (from, bytes as u64)];
    copy_ptds: cuMemcpyDtoD_v2_ptds or cuMemcpyDtoDAsync_v2_ptsz
        (to: CUdeviceptr, from: CUdeviceptr, bytes: usize) on [(to, bytes as u64), (from, bytes as u64)];
    set8: cuMemsetD8_v2 or cuMemsetD8Async
        (to: CUdeviceptr, value: c_uchar, count: usize) on [(to, count as u64)];
    set8_ptds: cuMemsetD8_v2_ptds or cuMemsetD8Async_ptsz
        (to: CUdeviceptr, value: c_uchar, count: usize) on [(to, count as u64)];
    set16: cuMemsetD16_v2 or cuMemsetD16Async
        (to: CUdeviceptr, value: c_ushort, count: usize) on [(to, (count as u64).saturating_mul(2))];
    set16_ptds: cuMemsetD16_v2_ptds or cuMemsetD16Async_ptsz
        (to: CUdeviceptr, value: c_ushort, count: usize) on [(to, (count as u64).saturating_mul(2))];
    set32: cuMemsetD32_v2 or cuMemsetD32Async
        (to: CUdeviceptr, value: c_uint, count: usize) on [(to, (count as u64).saturating_mul(4))];
    set32_ptds: cuMemsetD32_v2_ptds or cuMemsetD32Async_ptsz
        (to: CUdeviceptr, value: c_uint, count: usize) on [(to, (count as u64).saturating_mul(4))];
    rows8: cuMemsetD2D8_v2 or cuMemsetD2D8Async
        (to: CUdeviceptr, pitch: usize, value: c_uchar, width: usize, height: usize)
        on [(to, extent(pitch, width, height))];
    rows8_ptds: cuMemsetD2D8_v2_ptds or cuMemsetD2D8Async_ptsz
        (to: CUdeviceptr, pitch: usize, value: c_uchar, width: usize, height: usize)
        on [(to, extent(pitch, width, height))];
    rows16: cuMemsetD2D16_v2 or cuMemsetD2D16Async
        (to: CUdeviceptr, pitch: usize, value: c_ushort, width: usize, height: usize)
        on [(to, extent(pitch, width.saturating_mul(2), height))];
    rows16_ptds: cuMemsetD2D16_v2_ptds or cuMemsetD2D16Async_ptsz
        (to: CUdeviceptr, pitch: usize, value: c_ushort, width: usize, height: usize)
        on [(to, extent(pitch, width.saturating_mul(2), height))];
    rows32: cuMemsetD2D32_v2 or cuMemsetD2D32Async
        (to: CUdeviceptr, pitch: usize, value: c_uint, width: usize, height: usize)
        on [(to, extent(pitch, width.saturating_mul(4), height))];
    rows32_ptds: cuMemsetD2D32_v2_ptds or cuMemsetD2D32Async_ptsz
        (to: CUdeviceptr, pitch: usize, value: c_uint, width: usize, height: usize)
        on [(to, extent(pitch, width.saturating_mul(4), height))];
    unified: cuMemcpy or cuMemcpyAsync
        (to: CUdeviceptr, from: CUdeviceptr, bytes: usize) on [(to, bytes as u64), (from, bytes as u64)];
    peer: cuMemcpyPeer or cuMemcpyPeerAsync
        (to: CUdeviceptr, to_context: CUcontext, from: CUdeviceptr, from_context: CUcontext, bytes: usize)
        on [(to, bytes as u64), (from, bytes as u64)];
    copy2d: cuMemcpy2D_v2 or cuMemcpy2DAsync_v2 (copy: *const CUDA_MEMCPY2D) on rows(copy);
    copy2d_unaligned: cuMemcpy2DUnaligned_v2 or cuMemcpy2DAsync_v2
        (copy: *const CUDA_MEMCPY2D) on rows(copy);
    copy3d: cuMemcpy3D_v2 or cuMemcpy3DAsync_v2 (copy: *const CUDA_MEMCPY3D) on slices(copy);
    copy3d_peer: cuMemcpy3DPeer or cuMemcpy3DPeerAsync (copy: *const CUDA_MEMCPY3D) on slices(copy);
    unified_ptds: cuMemcpy_ptds or cuMemcpyAsync_ptsz
        (to: CUdeviceptr, from: CUdeviceptr, bytes: usize) on [(to, bytes as u64), (from, bytes as u64)];
    peer_ptds: cuMemcpyPeer_ptds or cuMemcpyPeerAsync_ptsz
        (to: CUdeviceptr, to_context: CUcontext, from: CUdeviceptr, from_context: CUcontext, bytes: usize)
        on [(to, bytes as u64), (from, bytes as u64)];
    copy2d_ptds: cuMemcpy2D_v2_ptds or cuMemcpy2DAsync_v2_ptsz (copy: *const CUDA_MEMCPY2D) on rows(copy);
    copy2d_unaligned_ptds: cuMemcpy2DUnaligned_v2_ptds or cuMemcpy2DAsync_v2_ptsz
        (copy: *const CUDA_MEMCPY2D) on rows(copy);
    copy3d_ptds: cuMemcpy3D_v2_ptds or cuMemcpy3DAsync_v2_ptsz (copy: *const CUDA_MEMCPY3D) on slices(copy);
    copy3d_peer_ptds: cuMemcpy3DPeer_ptds or cuMemcpy3DPeerAsync_ptsz (copy: *const CUDA_MEMCPY3D) on slices(copy);
}
