//! Copies of rectangles and boxes.
use greenboost_abi::{
    CU_MEMORYTYPE_DEVICE, CU_MEMORYTYPE_HOST, CU_MEMORYTYPE_UNIFIED, CUDA_ERROR_INVALID_VALUE,
    CUDA_ERROR_NOT_SUPPORTED, CUDA_MEMCPY2D,
};

use crate::abi::{In, Memcpy3D, Res};
use crate::copy::{End, Layout, Mode, Shape, copy, peer};
use crate::gate::Flavour;

/// One side of a 2D or 3D copy, as the descriptors give it.
struct Area {
    kind: u32,
    host: u64,
    device: u64,
    context: usize,
    x: usize,
    y: usize,
    z: usize,
    pitch: usize,
    rows: usize,
}

impl Area {
    fn layout(&self, width: usize, height: usize, peers: bool) -> Res<Layout> {
        let pitch = if self.pitch == 0 { width } else { self.pitch } as u64;
        let rows = if self.rows == 0 { height } else { self.rows } as u64;
        if pitch < self.x as u64 + width as u64 {
            return Err(CUDA_ERROR_INVALID_VALUE);
        }
        let slice = pitch * rows;
        let offset = self.x as u64 + self.y as u64 * pitch + self.z as u64 * slice;
        let end = match self.kind {
            CU_MEMORYTYPE_HOST => End::Any(self.host + offset),
            CU_MEMORYTYPE_DEVICE if peers => peer(self.device + offset, self.context)?,
            CU_MEMORYTYPE_DEVICE => End::Device(self.device + offset),
            CU_MEMORYTYPE_UNIFIED => End::Any(self.device + offset),
            _ => return Err(CUDA_ERROR_NOT_SUPPORTED),
        };
        Ok(Layout { end, pitch, slice })
    }
}

fn copy_2d(p: In<CUDA_MEMCPY2D>, mode: Mode, flavour: Flavour, name: &'static str) -> Res {
    let p = p.get()?;
    let dst = Area {
        kind: p.dstMemoryType,
        host: p.dstHost as u64,
        device: p.dstDevice,
        context: 0,
        x: p.dstXInBytes,
        y: p.dstY,
        z: 0,
        pitch: p.dstPitch,
        rows: 0,
    };
    let src = Area {
        kind: p.srcMemoryType,
        host: p.srcHost as u64,
        device: p.srcDevice,
        context: 0,
        x: p.srcXInBytes,
        y: p.srcY,
        z: 0,
        pitch: p.srcPitch,
        rows: 0,
    };
    let (dst, src) = (
        dst.layout(p.WidthInBytes, 0, false)?,
        src.layout(p.WidthInBytes, 0, false)?,
    );
    let shape = Shape {
        width: p.WidthInBytes as u64,
        height: p.Height as u64,
        depth: 1,
    };
    copy(dst, src, shape, mode, flavour, name)
}

/// Destination, source and size of a box.
pub(crate) fn sides(p: Memcpy3D, peers: bool) -> Res<(Layout, Layout, Shape)> {
    if p.srcLOD != 0 || p.dstLOD != 0 {
        return Err(CUDA_ERROR_INVALID_VALUE);
    }
    let dst = Area {
        kind: p.dstMemoryType,
        host: p.dstHost as u64,
        device: p.dstDevice,
        context: p.dstContext as usize,
        x: p.dstXInBytes,
        y: p.dstY,
        z: p.dstZ,
        pitch: p.dstPitch,
        rows: p.dstHeight,
    };
    let src = Area {
        kind: p.srcMemoryType,
        host: p.srcHost as u64,
        device: p.srcDevice,
        context: p.srcContext as usize,
        x: p.srcXInBytes,
        y: p.srcY,
        z: p.srcZ,
        pitch: p.srcPitch,
        rows: p.srcHeight,
    };
    let (dst, src) = (
        dst.layout(p.WidthInBytes, p.Height, peers)?,
        src.layout(p.WidthInBytes, p.Height, peers)?,
    );
    let shape = Shape {
        width: p.WidthInBytes as u64,
        height: p.Height as u64,
        depth: p.Depth as u64,
    };
    Ok((dst, src, shape))
}

fn copy_3d(p: In<Memcpy3D>, peers: bool, mode: Mode, flavour: Flavour, name: &'static str) -> Res {
    let (dst, src, shape) = sides(p.get()?, peers)?;
    copy(dst, src, shape, mode, flavour, name)
}

api! {
    Context cuMemcpy2D {
        3020 cuMemcpy2D_v2 Legacy,
        7000 cuMemcpy2D_v2_ptds PerThread,
    } (p: In<CUDA_MEMCPY2D>) |f| { copy_2d(p, Mode::Sync, f, "cuMemcpy2D") }
    Context cuMemcpy2DUnaligned {
        3020 cuMemcpy2DUnaligned_v2 Legacy,
        7000 cuMemcpy2DUnaligned_v2_ptds PerThread,
    } (p: In<CUDA_MEMCPY2D>) |f| { copy_2d(p, Mode::Sync, f, "cuMemcpy2DUnaligned") }
    Context cuMemcpy2DAsync {
        3020 cuMemcpy2DAsync_v2 Legacy,
        7000 cuMemcpy2DAsync_v2_ptsz PerThread,
    } (p: In<CUDA_MEMCPY2D>, stream: usize) |f| { copy_2d(p, Mode::Async(stream), f, "cuMemcpy2DAsync") }
    Context cuMemcpy3D {
        3020 cuMemcpy3D_v2 Legacy,
        7000 cuMemcpy3D_v2_ptds PerThread,
    } (p: In<Memcpy3D>) |f| { copy_3d(p, false, Mode::Sync, f, "cuMemcpy3D") }
    Context cuMemcpy3DAsync {
        3020 cuMemcpy3DAsync_v2 Legacy,
        7000 cuMemcpy3DAsync_v2_ptsz PerThread,
    } (p: In<Memcpy3D>, stream: usize) |f| { copy_3d(p, false, Mode::Async(stream), f, "cuMemcpy3DAsync") }
    Context cuMemcpy3DPeer {
        4000 cuMemcpy3DPeer Legacy,
        7000 cuMemcpy3DPeer_ptds PerThread,
    } (p: In<Memcpy3D>) |f| { copy_3d(p, true, Mode::Sync, f, "cuMemcpy3DPeer") }
    Context cuMemcpy3DPeerAsync {
        4000 cuMemcpy3DPeerAsync Legacy,
        7000 cuMemcpy3DPeerAsync_ptsz PerThread,
    } (p: In<Memcpy3D>, stream: usize) |f| { copy_3d(p, true, Mode::Async(stream), f, "cuMemcpy3DPeerAsync") }
}
