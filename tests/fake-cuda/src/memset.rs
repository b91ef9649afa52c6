//! The memset calls, and what they do when their turn comes.
use core::ffi::{c_uchar, c_uint, c_ushort};
use std::sync::Arc;

use greenboost_abi::{CUDA_ERROR_INVALID_VALUE, CUDA_MEMSET_NODE_PARAMS};

use crate::abi::Res;
use crate::gate::Flavour;
use crate::misuse::misuse;
use crate::queue::{Dep, drain};
use crate::race::How;
use crate::stream::failed;
use crate::va::{Fault, Who};
use crate::work::{Site, Work};
use crate::world::{World, world};

/// Rows of equal elements of 1, 2 or 4 bytes.
#[derive(Clone, Copy)]
pub(crate) struct Fill {
    va: u64,
    pitch: u64,
    element: u64,
    value: u32,
    width: u64,
    height: u64,
}

impl Fill {
    /// Whether it is one row.
    pub(crate) fn flat(&self) -> bool {
        self.height == 1
    }

    /// As `cuGraphMemsetNodeGetParams` tells it.
    pub(crate) fn told(&self) -> CUDA_MEMSET_NODE_PARAMS {
        CUDA_MEMSET_NODE_PARAMS {
            dst: self.va,
            pitch: self.pitch as usize,
            value: self.value,
            elementSize: self.element as u32,
            width: self.width as usize,
            height: self.height as usize,
        }
    }

    fn row(&self) -> u64 {
        self.width * self.element
    }

    pub(crate) fn run(&self, site: &Site) -> Result<(), Fault> {
        for y in 0..self.height {
            let segments =
                site.reach(self.va + y * self.pitch, self.row(), How::Write, Who::Copy)?;
            for segment in &segments {
                let (at, n) = (segment.ptr, (segment.len / self.element) as usize);
                // SAFETY: the segment is this long and writable; pages and elements divide each other,
                // so no element straddles two segments, and the address was checked for alignment.
                unsafe {
                    match self.element {
                        1 => at.write_bytes(self.value as u8, n),
                        2 => spread(at.cast::<u16>(), n, self.value as u16),
                        _ => spread(at.cast::<u32>(), n, self.value),
                    }
                }
            }
        }
        Ok(())
    }
}

/// # Safety
/// `n` elements at `at` must be writable.
unsafe fn spread<T: Copy>(at: *mut T, n: usize, value: T) {
    for i in 0..n {
        // SAFETY: promised by the caller.
        unsafe { at.add(i).write(value) };
    }
}

/// How far it reaches, if it is one that the driver takes.
fn reach(w: &World, fill: &Fill) -> Res<u64> {
    if !fill.va.is_multiple_of(fill.element) || !fill.pitch.is_multiple_of(fill.element) {
        return Err(CUDA_ERROR_INVALID_VALUE);
    }
    let row = fill
        .width
        .checked_mul(fill.element)
        .ok_or(CUDA_ERROR_INVALID_VALUE)?;
    if fill.height > 1 && fill.pitch < row {
        return Err(CUDA_ERROR_INVALID_VALUE);
    }
    let len = fill
        .pitch
        .checked_mul(fill.height - 1)
        .and_then(|n| n.checked_add(row));
    let len = len
        .filter(|len| fill.va.checked_add(*len).is_some())
        .ok_or(CUDA_ERROR_INVALID_VALUE)?;
    if !w.is_device_address(fill.va) && w.host_range(fill.va).is_none() {
        misuse!(
            "memset names {:#x} as device memory, which it never was",
            fill.va
        );
        return Err(CUDA_ERROR_INVALID_VALUE);
    }
    Ok(len)
}

/// A memset that a graph makes, and how far it reaches.
pub(crate) fn node(w: &World, p: &CUDA_MEMSET_NODE_PARAMS) -> Res<(Fill, u64)> {
    let fill = Fill {
        va: p.dst,
        pitch: p.pitch as u64,
        element: u64::from(p.elementSize),
        value: p.value,
        width: p.width as u64,
        height: p.height as u64,
    };
    if !matches!(fill.element, 1 | 2 | 4) || fill.width == 0 || fill.height == 0 {
        return Err(CUDA_ERROR_INVALID_VALUE);
    }
    let len = reach(w, &fill)?;
    Ok((fill, len))
}

/// Synchronous calls return at once on VRAM, and wait where host memory is behind the range (measured).
fn fill(fill: Fill, stream: Option<usize>, flavour: Flavour, name: &'static str) -> Res {
    let mut w = world();
    let sid = w.stream(stream.unwrap_or(0), flavour)?;
    if fill.width == 0 || fill.height == 0 {
        return Ok(());
    }
    let len = reach(&w, &fill)?;
    let wait = stream.is_none() && (w.host_backed(fill.va, len) || w.waits_synchronously(fill.va));
    let ctx = w.streams[&sid].ctx;
    let ranges = vec![(fill.va, fill.va + len)];
    let seq = w.submit(sid, name, Work::Fill(Arc::new(fill)), ranges, Vec::new())?;
    if let Some(seq) = seq.filter(|_| wait) {
        let w = drain(w, Dep { stream: sid, seq });
        return failed(&w, ctx);
    }
    Ok(())
}

fn flat(
    va: u64,
    element: u64,
    value: u32,
    n: usize,
    stream: Option<usize>,
    f: Flavour,
    name: &'static str,
) -> Res {
    fill(
        Fill {
            va,
            pitch: 0,
            element,
            value,
            width: n as u64,
            height: 1,
        },
        stream,
        f,
        name,
    )
}

/// Address, pitch, width in elements, height.
type Rows = (u64, usize, usize, usize);

fn rows(
    at: Rows,
    element: u64,
    value: u32,
    stream: Option<usize>,
    f: Flavour,
    name: &'static str,
) -> Res {
    let (va, pitch, width, height) = at;
    fill(
        Fill {
            va,
            pitch: pitch as u64,
            element,
            value,
            width: width as u64,
            height: height as u64,
        },
        stream,
        f,
        name,
    )
}

api! {
    Context cuMemsetD8 {
        3020 cuMemsetD8_v2 Legacy,
        7000 cuMemsetD8_v2_ptds PerThread,
    } (va: u64, value: c_uchar, n: usize) |f| { flat(va, 1, u32::from(value), n, None, f, "cuMemsetD8") }
    Context cuMemsetD16 {
        3020 cuMemsetD16_v2 Legacy,
        7000 cuMemsetD16_v2_ptds PerThread,
    } (va: u64, value: c_ushort, n: usize) |f| { flat(va, 2, u32::from(value), n, None, f, "cuMemsetD16") }
    Context cuMemsetD32 {
        3020 cuMemsetD32_v2 Legacy,
        7000 cuMemsetD32_v2_ptds PerThread,
    } (va: u64, value: c_uint, n: usize) |f| { flat(va, 4, value, n, None, f, "cuMemsetD32") }
    Context cuMemsetD8Async {
        3020 cuMemsetD8Async Legacy,
        7000 cuMemsetD8Async_ptsz PerThread,
    } (va: u64, value: c_uchar, n: usize, stream: usize) |f| { flat(va, 1, u32::from(value), n, Some(stream), f, "cuMemsetD8Async") }
    Context cuMemsetD16Async {
        3020 cuMemsetD16Async Legacy,
        7000 cuMemsetD16Async_ptsz PerThread,
    } (va: u64, value: c_ushort, n: usize, stream: usize) |f| { flat(va, 2, u32::from(value), n, Some(stream), f, "cuMemsetD16Async") }
    Context cuMemsetD32Async {
        3020 cuMemsetD32Async Legacy,
        7000 cuMemsetD32Async_ptsz PerThread,
    } (va: u64, value: c_uint, n: usize, stream: usize) |f| { flat(va, 4, value, n, Some(stream), f, "cuMemsetD32Async") }
    Context cuMemsetD2D8 {
        3020 cuMemsetD2D8_v2 Legacy,
        7000 cuMemsetD2D8_v2_ptds PerThread,
    } (va: u64, pitch: usize, value: c_uchar, width: usize, height: usize) |f| {
        rows((va, pitch, width, height), 1, u32::from(value), None, f, "cuMemsetD2D8")
    }
    Context cuMemsetD2D16 {
        3020 cuMemsetD2D16_v2 Legacy,
        7000 cuMemsetD2D16_v2_ptds PerThread,
    } (va: u64, pitch: usize, value: c_ushort, width: usize, height: usize) |f| {
        rows((va, pitch, width, height), 2, u32::from(value), None, f, "cuMemsetD2D16")
    }
    Context cuMemsetD2D32 {
        3020 cuMemsetD2D32_v2 Legacy,
        7000 cuMemsetD2D32_v2_ptds PerThread,
    } (va: u64, pitch: usize, value: c_uint, width: usize, height: usize) |f| {
        rows((va, pitch, width, height), 4, value, None, f, "cuMemsetD2D32")
    }
    Context cuMemsetD2D8Async {
        3020 cuMemsetD2D8Async Legacy,
        7000 cuMemsetD2D8Async_ptsz PerThread,
    } (va: u64, pitch: usize, value: c_uchar, width: usize, height: usize, stream: usize) |f| {
        rows((va, pitch, width, height), 1, u32::from(value), Some(stream), f, "cuMemsetD2D8Async")
    }
    Context cuMemsetD2D16Async {
        3020 cuMemsetD2D16Async Legacy,
        7000 cuMemsetD2D16Async_ptsz PerThread,
    } (va: u64, pitch: usize, value: c_ushort, width: usize, height: usize, stream: usize) |f| {
        rows((va, pitch, width, height), 2, u32::from(value), Some(stream), f, "cuMemsetD2D16Async")
    }
    Context cuMemsetD2D32Async {
        3020 cuMemsetD2D32Async Legacy,
        7000 cuMemsetD2D32Async_ptsz PerThread,
    } (va: u64, pitch: usize, value: c_uint, width: usize, height: usize, stream: usize) |f| {
        rows((va, pitch, width, height), 4, value, Some(stream), f, "cuMemsetD2D32Async")
    }
}
