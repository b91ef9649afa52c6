//! Calls that return earlier on device memory than on host-backed ranges.
//!
//! Synchronous copies between device ranges and `cuMemsetD*` return at once on VRAM, and wait for themselves and all
//! before them on host memory (measured for every form below on driver 580). A program may build on the former: launch,
//! copy, then release the kernel from the host. So for host-backed ranges the shim issues the asynchronous form on the
//! same stream, which is what the call amounts to on VRAM and never waits. Copies from and to the program's own host
//! memory wait on VRAM too: they are the driver's.
//!
//! Copies are also where it shows that one device uses another one's memory.
//!
//! `SYNC_MEMOPS`, which the driver has only for its own memory, turns this round for an allocation: every synchronous
//! operation on it is over when it returns.

use std::ffi::{c_uchar, c_uint, c_ushort, c_void};

use greenboost_abi::*;

use super::{context, vmm};
use crate::driver::{self, raw};
use crate::hooks::real;
use crate::process;
use crate::tier::staging::admit;
use crate::tier::{access, device, drain, gate, map};

/// An operand: first address and bytes.
pub type Operand = (CUdeviceptr, u64);

/// Whether the asynchronous form is to be used: an operand is host-backed, and all are device memory to the program.
/// While a stream captures, the driver's own answer to the synchronous form stands.
fn deferred(operands: &[Operand]) -> bool {
    process::job().is_some()
        && !drain::capturing()
        && !synchronous(operands)
        && operands.iter().any(|(address, bytes)| {
            map::on_host(*address, *bytes) || vmm::on_host(*address, *bytes)
        })
        && operands.iter().all(|(address, _)| is_device(*address))
}

/// Whether the program has set `SYNC_MEMOPS` for any of the operands.
fn synchronous(operands: &[Operand]) -> bool {
    operands
        .iter()
        .any(|(address, bytes)| map::synchronous(*address, *bytes))
}

/// After a synchronous call on this stream: waits for what the call left in it, where the program has asked for that.
///
/// # Safety
/// The call was the program's, and `wait` synchronises the stream that it ran on.
unsafe fn finished(
    code: CUresult,
    operands: &[Operand],
    wait: unsafe fn(CUstream) -> CUresult,
) -> CUresult {
    if code != CUDA_SUCCESS || !synchronous(operands) || drain::capturing() {
        return code;
    }
    // SAFETY: the caller's promise; a null stream is the one that synchronous calls run on.
    unsafe { wait(std::ptr::null_mut()) }
}

/// Notices when one device is told to use another one's memory. Copies find `cuMemAlloc` memory on every device, whether
/// peer access is enabled or not; ranges are open to those that were let in.
fn watch(operands: &[Operand]) {
    let Ok(here) = driver::current_device() else {
        return;
    };
    let places = operands
        .iter()
        .filter_map(|(address, _)| map::find(*address));
    for place in places.filter(|p| p.device != here) {
        drain::crosses();
        if let Some(owner) = device::known(place.device)
            && !owner.users().contains(&here)
            && driver::can_access(here, owner.ordinal)
        {
            context::let_in(owner, here);
        }
    }
}

/// Host memory that is the source of a copy, named by its address as device memory is, is an upload.
fn from_host(operands: &[Operand]) {
    if let [_, (from, bytes)] = *operands
        && admit::active()
        && from != 0
        && !is_device(from)
    {
        admit::upload(from as *const c_void, bytes as usize);
    }
}

fn is_device(address: CUdeviceptr) -> bool {
    map::find(address).is_some()
        || vmm::spilled_from(address).is_some()
        || driver::memory_type(address) == Ok(CU_MEMORYTYPE_DEVICE)
}

/// Extent of a 2D operation, bytes.
pub fn extent(pitch: usize, width: usize, height: usize) -> u64 {
    (pitch as u64)
        .saturating_mul(height.saturating_sub(1) as u64)
        .saturating_add(width as u64)
}

/// Where an operand is not named by a device address.
const NOWHERE: Operand = (0, 0);

/// The operands of a 2D copy.
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
    [to, from].map(|side| side.unwrap_or(NOWHERE)).into()
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
    [to, from].map(|side| side.unwrap_or(NOWHERE)).into()
}

/// Whether an operand of this memory type is named by its device address.
fn addressed(kind: c_uint) -> bool {
    matches!(kind, CU_MEMORYTYPE_DEVICE | CU_MEMORYTYPE_UNIFIED)
}

macro_rules! ordered {
    ($($ours:ident: $sync:ident or $from:ident::$deferred:ident ($($arg:ident: $ty:ty),*) on $operands:expr;)*) => {$(
        #[doc = concat!("Replaces `", stringify!($sync), "`.")]
        ///
        /// # Safety
        /// As for the function it replaces.
        pub unsafe fn $ours($($arg: $ty),*) -> CUresult {
            // SAFETY: the program's own call; the asynchronous form takes the same operands, and a null stream is the
            // one that the synchronous form runs on.
            unsafe {
                let _pass = gate::pass();
                let operands = &$operands;
                access::copied(operands);
                from_host(operands);
                if drain::may_cross() {
                    watch(operands);
                }
                if deferred(operands) {
                    let code = $from::$deferred($($arg,)* std::ptr::null_mut());
                    // What the asynchronous form does not take, the synchronous one may (unaligned pitches), or refuse.
                    if !matches!(code, driver::MISSING | CUDA_ERROR_INVALID_VALUE) {
                        return code;
                    }
                }
                finished(real::$sync($($arg),*), operands, waits(stringify!($sync)))
            }
        }
    )*};
}

/// What waits for the stream that a synchronous call of this name runs on.
fn waits(name: &str) -> unsafe fn(CUstream) -> CUresult {
    match name.ends_with("_ptds") {
        true => raw::cuStreamSynchronize_ptsz,
        false => raw::cuStreamSynchronize,
    }
}

macro_rules! uploads {
    ($($ours:ident = $real:ident;)*) => {$(
        #[doc = concat!("Replaces `", stringify!($real), "`, which may leave its last bytes on their way.")]
        ///
        /// # Safety
        /// As for the function it replaces.
        pub unsafe fn $ours(to: CUdeviceptr, from: *const c_void, bytes: usize) -> CUresult {
            // SAFETY: the program's own call.
            unsafe {
                let _pass = gate::pass();
                access::copied(&[(to, bytes as u64)]);
                admit::upload(from, bytes);
                let code = real::$real(to, from, bytes);
                finished(code, &[(to, bytes as u64)], waits(stringify!($real)))
            }
        }
    )*};
}

uploads! {
    upload = cuMemcpyHtoD_v2;
    upload_ptds = cuMemcpyHtoD_v2_ptds;
}

macro_rules! crossing {
    ($($ours:ident = $real:ident($($arg:ident: $ty:ty),*) on $operands:expr;)*) => {$(
        #[doc = concat!("Replaces `", stringify!($real), "`: noticed when it reaches from one device to another.")]
        ///
        /// # Safety
        /// As for the function it replaces.
        pub unsafe fn $ours($($arg: $ty,)* stream: CUstream) -> CUresult {
            // Before the call: a free must not overtake it.
            // SAFETY: the program's own call and descriptors.
            unsafe {
                let _pass = gate::pass();
                if drain::may_cross() || access::wanted() {
                    let operands = &$operands;
                    access::copied(operands);
                    from_host(operands);
                    if drain::may_cross() {
                        watch(operands);
                    }
                }
                real::$real($($arg,)* stream)
            }
        }
    )*};
}

crossing! {
    later = cuMemcpyAsync
        (to: CUdeviceptr, from: CUdeviceptr, bytes: usize) on [(to, bytes as u64), (from, bytes as u64)];
    later_ptsz = cuMemcpyAsync_ptsz
        (to: CUdeviceptr, from: CUdeviceptr, bytes: usize) on [(to, bytes as u64), (from, bytes as u64)];
    later_device = cuMemcpyDtoDAsync_v2
        (to: CUdeviceptr, from: CUdeviceptr, bytes: usize) on [(to, bytes as u64), (from, bytes as u64)];
    later_device_ptsz = cuMemcpyDtoDAsync_v2_ptsz
        (to: CUdeviceptr, from: CUdeviceptr, bytes: usize) on [(to, bytes as u64), (from, bytes as u64)];
    later_peer = cuMemcpyPeerAsync
        (to: CUdeviceptr, to_context: CUcontext, from: CUdeviceptr, from_context: CUcontext, bytes: usize)
        on [(to, bytes as u64), (from, bytes as u64)];
    later_peer_ptsz = cuMemcpyPeerAsync_ptsz
        (to: CUdeviceptr, to_context: CUcontext, from: CUdeviceptr, from_context: CUcontext, bytes: usize)
        on [(to, bytes as u64), (from, bytes as u64)];
    later2d = cuMemcpy2DAsync_v2(copy: *const CUDA_MEMCPY2D) on rows(copy);
    later2d_ptsz = cuMemcpy2DAsync_v2_ptsz(copy: *const CUDA_MEMCPY2D) on rows(copy);
    later3d = cuMemcpy3DAsync_v2(copy: *const CUDA_MEMCPY3D) on slices(copy);
    later3d_ptsz = cuMemcpy3DAsync_v2_ptsz(copy: *const CUDA_MEMCPY3D) on slices(copy);
    later3d_peer = cuMemcpy3DPeerAsync(copy: *const CUDA_MEMCPY3D) on slices(copy);
    later3d_peer_ptsz = cuMemcpy3DPeerAsync_ptsz(copy: *const CUDA_MEMCPY3D) on slices(copy);
}

ordered! {
    copy: cuMemcpyDtoD_v2 or real::cuMemcpyDtoDAsync_v2
        (to: CUdeviceptr, from: CUdeviceptr, bytes: usize) on [(to, bytes as u64), (from, bytes as u64)];
    copy_ptds: cuMemcpyDtoD_v2_ptds or real::cuMemcpyDtoDAsync_v2_ptsz
        (to: CUdeviceptr, from: CUdeviceptr, bytes: usize) on [(to, bytes as u64), (from, bytes as u64)];
    set8: cuMemsetD8_v2 or raw::cuMemsetD8Async
        (to: CUdeviceptr, value: c_uchar, count: usize) on [(to, count as u64)];
    set8_ptds: cuMemsetD8_v2_ptds or raw::cuMemsetD8Async_ptsz
        (to: CUdeviceptr, value: c_uchar, count: usize) on [(to, count as u64)];
    set16: cuMemsetD16_v2 or raw::cuMemsetD16Async
        (to: CUdeviceptr, value: c_ushort, count: usize) on [(to, (count as u64).saturating_mul(2))];
    set16_ptds: cuMemsetD16_v2_ptds or raw::cuMemsetD16Async_ptsz
        (to: CUdeviceptr, value: c_ushort, count: usize) on [(to, (count as u64).saturating_mul(2))];
    set32: cuMemsetD32_v2 or raw::cuMemsetD32Async
        (to: CUdeviceptr, value: c_uint, count: usize) on [(to, (count as u64).saturating_mul(4))];
    set32_ptds: cuMemsetD32_v2_ptds or raw::cuMemsetD32Async_ptsz
        (to: CUdeviceptr, value: c_uint, count: usize) on [(to, (count as u64).saturating_mul(4))];
    rows8: cuMemsetD2D8_v2 or raw::cuMemsetD2D8Async
        (to: CUdeviceptr, pitch: usize, value: c_uchar, width: usize, height: usize)
        on [(to, extent(pitch, width, height))];
    rows8_ptds: cuMemsetD2D8_v2_ptds or raw::cuMemsetD2D8Async_ptsz
        (to: CUdeviceptr, pitch: usize, value: c_uchar, width: usize, height: usize)
        on [(to, extent(pitch, width, height))];
    rows16: cuMemsetD2D16_v2 or raw::cuMemsetD2D16Async
        (to: CUdeviceptr, pitch: usize, value: c_ushort, width: usize, height: usize)
        on [(to, extent(pitch, width.saturating_mul(2), height))];
    rows16_ptds: cuMemsetD2D16_v2_ptds or raw::cuMemsetD2D16Async_ptsz
        (to: CUdeviceptr, pitch: usize, value: c_ushort, width: usize, height: usize)
        on [(to, extent(pitch, width.saturating_mul(2), height))];
    rows32: cuMemsetD2D32_v2 or raw::cuMemsetD2D32Async
        (to: CUdeviceptr, pitch: usize, value: c_uint, width: usize, height: usize)
        on [(to, extent(pitch, width.saturating_mul(4), height))];
    rows32_ptds: cuMemsetD2D32_v2_ptds or raw::cuMemsetD2D32Async_ptsz
        (to: CUdeviceptr, pitch: usize, value: c_uint, width: usize, height: usize)
        on [(to, extent(pitch, width.saturating_mul(4), height))];
    unified: cuMemcpy or real::cuMemcpyAsync
        (to: CUdeviceptr, from: CUdeviceptr, bytes: usize) on [(to, bytes as u64), (from, bytes as u64)];
    peer: cuMemcpyPeer or real::cuMemcpyPeerAsync
        (to: CUdeviceptr, to_context: CUcontext, from: CUdeviceptr, from_context: CUcontext, bytes: usize)
        on [(to, bytes as u64), (from, bytes as u64)];
    copy2d: cuMemcpy2D_v2 or real::cuMemcpy2DAsync_v2 (copy: *const CUDA_MEMCPY2D) on rows(copy);
    copy2d_unaligned: cuMemcpy2DUnaligned_v2 or real::cuMemcpy2DAsync_v2
        (copy: *const CUDA_MEMCPY2D) on rows(copy);
    copy3d: cuMemcpy3D_v2 or real::cuMemcpy3DAsync_v2 (copy: *const CUDA_MEMCPY3D) on slices(copy);
    copy3d_peer: cuMemcpy3DPeer or real::cuMemcpy3DPeerAsync (copy: *const CUDA_MEMCPY3D) on slices(copy);
    unified_ptds: cuMemcpy_ptds or real::cuMemcpyAsync_ptsz
        (to: CUdeviceptr, from: CUdeviceptr, bytes: usize) on [(to, bytes as u64), (from, bytes as u64)];
    peer_ptds: cuMemcpyPeer_ptds or real::cuMemcpyPeerAsync_ptsz
        (to: CUdeviceptr, to_context: CUcontext, from: CUdeviceptr, from_context: CUcontext, bytes: usize)
        on [(to, bytes as u64), (from, bytes as u64)];
    copy2d_ptds: cuMemcpy2D_v2_ptds or real::cuMemcpy2DAsync_v2_ptsz (copy: *const CUDA_MEMCPY2D) on rows(copy);
    copy2d_unaligned_ptds: cuMemcpy2DUnaligned_v2_ptds or real::cuMemcpy2DAsync_v2_ptsz
        (copy: *const CUDA_MEMCPY2D) on rows(copy);
    copy3d_ptds: cuMemcpy3D_v2_ptds or real::cuMemcpy3DAsync_v2_ptsz (copy: *const CUDA_MEMCPY3D) on slices(copy);
    copy3d_peer_ptds: cuMemcpy3DPeer_ptds or real::cuMemcpy3DPeerAsync_ptsz (copy: *const CUDA_MEMCPY3D) on slices(copy);
}
