//! The copy calls: who waits for whom, then one operation in a stream.
use core::ffi::c_void;
use std::sync::Arc;

use greenboost_abi::{CUDA_ERROR_INVALID_VALUE, CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, CUresult};

use crate::abi::{In, Out, Res};
use crate::gate::Flavour;
use crate::misuse::misuse;
use crate::queue::{Dep, drain};
use crate::stream::failed;
use crate::transfer::{Copy, Plane, Side};
use crate::work::Work;
use crate::world::{World, world};

/// Pageable memory up to this size is read at the call; beyond it the call waits.
const STAGED: u64 = 64 << 10;

/// What the caller said an address is.
#[derive(Clone, Copy)]
pub(crate) enum End {
    Device(u64),
    Any(u64),
    /// A device address for which another device's rights count.
    Peer(u64, usize),
}

#[derive(Clone, Copy)]
pub(crate) struct Layout {
    pub end: End,
    pub pitch: u64,
    pub slice: u64,
}

impl Layout {
    fn flat(end: End) -> Layout {
        Layout {
            end,
            pitch: 0,
            slice: 0,
        }
    }
}

pub(crate) struct Shape {
    pub width: u64,
    pub height: u64,
    pub depth: u64,
}

/// When the call returns: at once, or as the synchronous call of the real driver does.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Async(usize),
    Sync,
}

fn side(w: &World, end: End) -> Res<Side> {
    match end {
        End::Device(va) | End::Peer(va, _) if !w.is_device_address(va) => {
            if w.host_range(va).is_none() {
                misuse!("copy names {va:#x} as device memory, which it never was");
                return Err(CUDA_ERROR_INVALID_VALUE);
            }
            Ok(Side::Host(va))
        }
        // Memory of a pool on the host is none of a device's to the calls that ask for one's (measured).
        End::Device(va) | End::Peer(va, _) if w.on_host_by_pool(va) => {
            Err(CUDA_ERROR_INVALID_VALUE)
        }
        End::Device(va) => Ok(Side::Device { va, device: None }),
        End::Peer(va, device) => Ok(Side::Device {
            va,
            device: Some(device),
        }),
        End::Any(va) if w.is_device_address(va) => Ok(Side::Device { va, device: None }),
        End::Any(0) => Err(CUDA_ERROR_INVALID_VALUE),
        End::Any(va) => Ok(Side::Host(va)),
    }
}

/// Host memory that the driver cannot reach by itself.
fn pageable(w: &World, plane: &Plane) -> bool {
    matches!(plane.side, Side::Host(va) if w.host_range(va).is_none())
}

/// Whether the bytes lie in the memory of a device, all of them.
fn in_vram(w: &World, plane: &Plane, len: u64) -> bool {
    matches!(plane.side, Side::Device { va, .. } if !w.host_backed(va, len))
}

type Reach = (Plane, u64);

/// Both sides of a copy, and how far they reach.
fn planes(
    w: &World,
    (dst, src): (Layout, Layout),
    (width, height, depth): (u64, u64, u64),
) -> Res<(Reach, Reach)> {
    let reach = |l: &Layout| {
        let rows = l.pitch.checked_mul(height - 1)?;
        l.slice
            .checked_mul(depth - 1)?
            .checked_add(rows)?
            .checked_add(width)
    };
    let (Some(dst_len), Some(src_len)) = (reach(&dst), reach(&src)) else {
        return Err(CUDA_ERROR_INVALID_VALUE);
    };
    let plane = |w: &World, l: Layout| {
        Ok::<_, CUresult>(Plane {
            side: side(w, l.end)?,
            pitch: l.pitch,
            slice: l.slice,
        })
    };
    Ok(((plane(w, dst)?, dst_len), (plane(w, src)?, src_len)))
}

/// A copy that a graph makes, of at least one byte.
pub(crate) fn node(w: &World, dst: Layout, src: Layout, shape: Shape) -> Res<Copy> {
    let Shape {
        width,
        height,
        depth,
    } = shape;
    if width == 0 || height == 0 || depth == 0 {
        return Err(CUDA_ERROR_INVALID_VALUE);
    }
    let ((dst, _), (src, _)) = planes(w, (dst, src), (width, height, depth))?;
    Ok(Copy::new(w, dst, src, (width, height, depth)))
}

/// Whether `SYNC_MEMOPS` is set for the memory.
fn synchronous(w: &World, plane: &Plane) -> bool {
    matches!(plane.side, Side::Device { va, .. } if w.waits_synchronously(va))
}

pub(crate) fn copy(
    dst: Layout,
    src: Layout,
    shape: Shape,
    mode: Mode,
    flavour: Flavour,
    name: &'static str,
) -> Res {
    let mut w = world();
    let stream = match mode {
        Mode::Async(stream) => stream,
        Mode::Sync => 0,
    };
    let sid = w.stream(stream, flavour)?;
    let Shape {
        width,
        height,
        depth,
    } = shape;
    if width == 0 || height == 0 || depth == 0 {
        return Ok(());
    }
    let ((dst, dst_len), (mut src, src_len)) = planes(&w, (dst, src), (width, height, depth))?;
    let capturing = w.streams[&sid].capture.is_some();
    if capturing && name.contains("Peer") {
        w.invalidate_stream(sid, "copy between contexts during capture");
        return Err(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
    }
    let wait = match mode {
        Mode::Sync => {
            let waits = |plane: &Plane, len| !in_vram(&w, plane, len) || synchronous(&w, plane);
            waits(&dst, dst_len) || waits(&src, src_len)
        }
        Mode::Async(_) if capturing => false,
        Mode::Async(_) => {
            let (from, to) = (pageable(&w, &src), pageable(&w, &dst));
            if from
                && src_len <= STAGED
                && let Side::Host(va) = src.side
            {
                // SAFETY: the caller vouches for the source, which is read before the call returns.
                let bytes =
                    unsafe { std::slice::from_raw_parts(va as *const u8, src_len as usize) };
                src.side = Side::Held(bytes.to_vec());
            }
            to || (from && src_len > STAGED)
        }
    };
    let copy = Copy::new(&w, dst, src, (width, height, depth));
    let (ranges, ctx) = (copy.ranges(), w.streams[&sid].ctx);
    let seq = w.submit(sid, name, Work::Copy(Arc::new(copy)), ranges, Vec::new())?;
    if let Some(seq) = seq.filter(|_| wait) {
        let w = drain(w, Dep { stream: sid, seq });
        return failed(&w, ctx);
    }
    Ok(())
}

fn linear(dst: End, src: End, len: usize, mode: Mode, flavour: Flavour, name: &'static str) -> Res {
    let shape = Shape {
        width: len as u64,
        height: 1,
        depth: 1,
    };
    copy(
        Layout::flat(dst),
        Layout::flat(src),
        shape,
        mode,
        flavour,
        name,
    )
}

pub(crate) fn peer(va: u64, ctx: usize) -> Res<End> {
    let w = world();
    w.sound(ctx)?;
    Ok(End::Peer(va, w.contexts[&ctx].device))
}

/// `CUmemcpyAttributes`: hints only, so just skipped.
fn batch(
    dsts: In<u64>,
    srcs: In<u64>,
    sizes: In<usize>,
    count: usize,
    stream: usize,
    flavour: Flavour,
) -> Res {
    if count == 0 || matches!(stream, 0 | 1) {
        return Err(CUDA_ERROR_INVALID_VALUE);
    }
    let (dsts, srcs, sizes) = (dsts.many(count)?, srcs.many(count)?, sizes.many(count)?);
    for ((dst, src), size) in dsts.into_iter().zip(srcs).zip(sizes) {
        linear(
            End::Any(dst),
            End::Any(src),
            size,
            Mode::Async(stream),
            flavour,
            "cuMemcpyBatchAsync",
        )?;
    }
    Ok(())
}

api! {
    Context cuMemcpy {
        4000 cuMemcpy Legacy,
        7000 cuMemcpy_ptds PerThread,
    } (dst: u64, src: u64, len: usize) |f| { linear(End::Any(dst), End::Any(src), len, Mode::Sync, f, "cuMemcpy") }
    Context cuMemcpyAsync {
        4000 cuMemcpyAsync Legacy,
        7000 cuMemcpyAsync_ptsz PerThread,
    } (dst: u64, src: u64, len: usize, stream: usize) |f| {
        linear(End::Any(dst), End::Any(src), len, Mode::Async(stream), f, "cuMemcpyAsync")
    }
    Context cuMemcpyHtoD {
        3020 cuMemcpyHtoD_v2 Legacy,
        7000 cuMemcpyHtoD_v2_ptds PerThread,
    } (dst: u64, src: *const c_void, len: usize) |f| {
        linear(End::Device(dst), End::Any(src as u64), len, Mode::Sync, f, "cuMemcpyHtoD")
    }
    Context cuMemcpyDtoH {
        3020 cuMemcpyDtoH_v2 Legacy,
        7000 cuMemcpyDtoH_v2_ptds PerThread,
    } (dst: *mut c_void, src: u64, len: usize) |f| {
        linear(End::Any(dst as u64), End::Device(src), len, Mode::Sync, f, "cuMemcpyDtoH")
    }
    Context cuMemcpyDtoD {
        3020 cuMemcpyDtoD_v2 Legacy,
        7000 cuMemcpyDtoD_v2_ptds PerThread,
    } (dst: u64, src: u64, len: usize) |f| {
        linear(End::Device(dst), End::Device(src), len, Mode::Sync, f, "cuMemcpyDtoD")
    }
    Context cuMemcpyHtoDAsync {
        3020 cuMemcpyHtoDAsync_v2 Legacy,
        7000 cuMemcpyHtoDAsync_v2_ptsz PerThread,
    } (dst: u64, src: *const c_void, len: usize, stream: usize) |f| {
        linear(End::Device(dst), End::Any(src as u64), len, Mode::Async(stream), f, "cuMemcpyHtoDAsync")
    }
    Context cuMemcpyDtoHAsync {
        3020 cuMemcpyDtoHAsync_v2 Legacy,
        7000 cuMemcpyDtoHAsync_v2_ptsz PerThread,
    } (dst: *mut c_void, src: u64, len: usize, stream: usize) |f| {
        linear(End::Any(dst as u64), End::Device(src), len, Mode::Async(stream), f, "cuMemcpyDtoHAsync")
    }
    Context cuMemcpyDtoDAsync {
        3020 cuMemcpyDtoDAsync_v2 Legacy,
        7000 cuMemcpyDtoDAsync_v2_ptsz PerThread,
    } (dst: u64, src: u64, len: usize, stream: usize) |f| {
        linear(End::Device(dst), End::Device(src), len, Mode::Async(stream), f, "cuMemcpyDtoDAsync")
    }
    Context cuMemcpyPeer {
        4000 cuMemcpyPeer Legacy,
        7000 cuMemcpyPeer_ptds PerThread,
    } (dst: u64, dst_ctx: usize, src: u64, src_ctx: usize, len: usize) |f| {
        linear(peer(dst, dst_ctx)?, peer(src, src_ctx)?, len, Mode::Sync, f, "cuMemcpyPeer")
    }
    Context cuMemcpyPeerAsync {
        4000 cuMemcpyPeerAsync Legacy,
        7000 cuMemcpyPeerAsync_ptsz PerThread,
    } (dst: u64, dst_ctx: usize, src: u64, src_ctx: usize, len: usize, stream: usize) |f| {
        linear(peer(dst, dst_ctx)?, peer(src, src_ctx)?, len, Mode::Async(stream), f, "cuMemcpyPeerAsync")
    }
    Context cuMemcpyBatchAsync {
        12080 cuMemcpyBatchAsync Legacy,
        12080 cuMemcpyBatchAsync_ptsz PerThread,
    } (dsts: In<u64>, srcs: In<u64>, sizes: In<usize>, count: usize, attrs: usize, idxs: usize, n: usize, fail: Out<usize>, stream: usize) |f| {
        let _ = (attrs, idxs, n);
        fail.maybe(usize::MAX);
        batch(dsts, srcs, sizes, count, stream, f)
    }
    Context cuMemcpyBatchAsync {
        13000 cuMemcpyBatchAsync_v2 Legacy,
        13000 cuMemcpyBatchAsync_v2_ptsz PerThread,
    } (dsts: In<u64>, srcs: In<u64>, sizes: In<usize>, count: usize, attrs: usize, idxs: usize, n: usize, stream: usize) |f| {
        let _ = (attrs, idxs, n);
        batch(dsts, srcs, sizes, count, stream, f)
    }
    // In no real driver: a copy that no table of intercepted functions can know.
    Context cuFutureCopyAsync { 99000 cuFutureCopyAsync Legacy } (dst: u64, src: u64, len: usize, stream: usize) |f| {
        linear(End::Any(dst), End::Any(src), len, Mode::Async(stream), f, "cuFutureCopyAsync")
    }
}
