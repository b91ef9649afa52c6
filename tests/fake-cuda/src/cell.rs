//! Stream memory operations: a word that a stream writes, or waits for.
use core::ffi::c_uint;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use greenboost_abi::{
    CU_STREAM_MEM_OP_WAIT_VALUE_32, CU_STREAM_MEM_OP_WAIT_VALUE_64,
    CU_STREAM_MEM_OP_WRITE_VALUE_32, CU_STREAM_MEM_OP_WRITE_VALUE_64, CUDA_ERROR_INVALID_VALUE,
    CUresult, CUstreamBatchMemOpParams,
};

use crate::abi::{In, Res};
use crate::gate::Flavour;
use crate::race::How;
use crate::va::{Fault, Who};
use crate::work::{Site, Work};
use crate::world::world;

#[derive(Clone, Copy)]
pub(crate) struct Cell {
    va: u64,
    value: u64,
    wide: bool,
    /// How a wait compares: at least, equal, and, nor.
    test: c_uint,
}

impl Cell {
    /// As `cuGraphBatchMemOpNodeGetParams` tells it.
    pub(crate) fn told(&self, waits: bool) -> CUstreamBatchMemOpParams {
        let kind = match (waits, self.wide) {
            (true, false) => CU_STREAM_MEM_OP_WAIT_VALUE_32,
            (false, false) => CU_STREAM_MEM_OP_WRITE_VALUE_32,
            (true, true) => CU_STREAM_MEM_OP_WAIT_VALUE_64,
            (false, true) => CU_STREAM_MEM_OP_WRITE_VALUE_64,
        };
        [
            u64::from(kind),
            self.va,
            self.value,
            u64::from(self.test),
            0,
            0,
        ]
    }

    fn size(&self) -> u64 {
        if self.wide { 8 } else { 4 }
    }

    fn at(&self, site: &Site, how: How) -> Result<*mut u8, Fault> {
        let segments = site.reach(self.va, self.size(), how, Who::Copy)?;
        Ok(segments[0].ptr)
    }

    pub(crate) fn store(&self, site: &Site) -> Result<(), Fault> {
        let at = self.at(site, How::Atomic)?;
        // SAFETY: an aligned word inside one segment, which the world keeps while this operation runs.
        unsafe {
            if self.wide {
                AtomicU64::from_ptr(at.cast()).store(self.value, Ordering::Release);
            } else {
                AtomicU32::from_ptr(at.cast()).store(self.value as u32, Ordering::Release);
            }
        }
        Ok(())
    }

    pub(crate) fn wait(&self, site: &Site) -> Result<(), Fault> {
        loop {
            let segments = site.reach(self.va, self.size(), How::Atomic, Who::Copy)?;
            // SAFETY: an aligned word inside the segment.
            let now = unsafe {
                if self.wide {
                    AtomicU64::from_ptr(segments[0].ptr.cast()).load(Ordering::Acquire)
                } else {
                    u64::from(AtomicU32::from_ptr(segments[0].ptr.cast()).load(Ordering::Acquire))
                }
            };
            if self.holds(now) {
                return Ok(());
            }
            world().races.release(site.ticket);
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    fn holds(&self, now: u64) -> bool {
        match self.test {
            0 if self.wide => now.wrapping_sub(self.value) as i64 >= 0,
            0 => (now as u32).wrapping_sub(self.value as u32) as i32 >= 0,
            1 => now == self.value,
            2 => now & self.value != 0,
            _ => {
                let nor = !(now | self.value);
                if self.wide { nor != 0 } else { nor as u32 != 0 }
            }
        }
    }
}

/// Remote writes may be asked to be flushed first; nothing is remote here.
const FLUSH: c_uint = 1 << 30;

fn submit(stream: usize, flavour: Flavour, cell: Cell, wait: bool) -> Res {
    if !cell.va.is_multiple_of(cell.size()) || (wait && cell.test > 3) {
        return Err(CUDA_ERROR_INVALID_VALUE);
    }
    let mut w = world();
    let sid = w.stream(stream, flavour)?;
    if !w.is_device_address(cell.va) && w.host_range(cell.va).is_none() {
        return Err(CUDA_ERROR_INVALID_VALUE);
    }
    let (name, work) = if wait {
        ("stream wait", Work::Await(cell))
    } else {
        ("stream write", Work::Store(cell))
    };
    w.submit(
        sid,
        name,
        work,
        vec![(cell.va, cell.va + cell.size())],
        Vec::new(),
    )
    .map(drop)
}

fn write(stream: usize, f: Flavour, va: u64, value: u64, wide: bool) -> Res {
    submit(
        stream,
        f,
        Cell {
            va,
            value,
            wide,
            test: 0,
        },
        false,
    )
}

fn wait(stream: usize, f: Flavour, va: u64, value: u64, wide: bool, flags: c_uint) -> Res {
    submit(
        stream,
        f,
        Cell {
            va,
            value,
            wide,
            test: flags & !FLUSH,
        },
        true,
    )
}

/// `CUstreamBatchMemOpParams`: six words.
fn batch(stream: usize, f: Flavour, count: c_uint, ops: In<[u64; 6]>) -> Res {
    for op in ops.many(count as usize)? {
        let (kind, va, value, flags) = (op[0] as u32, op[1], op[2], op[3] as u32);
        match kind {
            1 => wait(stream, f, va, value & 0xffff_ffff, false, flags)?,
            2 => write(stream, f, va, value & 0xffff_ffff, false)?,
            4 => wait(stream, f, va, value, true, flags)?,
            5 => write(stream, f, va, value, true)?,
            3 | 6 => {}
            _ => return Err::<(), CUresult>(CUDA_ERROR_INVALID_VALUE),
        }
    }
    Ok(())
}

api! {
    Context cuStreamWriteValue32 {
        8000 cuStreamWriteValue32 Legacy,
        8000 cuStreamWriteValue32_ptsz PerThread,
        11070 cuStreamWriteValue32_v2 Legacy,
        11070 cuStreamWriteValue32_v2_ptsz PerThread,
    } (stream: usize, va: u64, value: u32, flags: c_uint) |f| {
        let _ = flags;
        write(stream, f, va, u64::from(value), false)
    }
    Context cuStreamWriteValue64 {
        9000 cuStreamWriteValue64 Legacy,
        9000 cuStreamWriteValue64_ptsz PerThread,
        11070 cuStreamWriteValue64_v2 Legacy,
        11070 cuStreamWriteValue64_v2_ptsz PerThread,
    } (stream: usize, va: u64, value: u64, flags: c_uint) |f| {
        let _ = flags;
        write(stream, f, va, value, true)
    }
    Context cuStreamWaitValue32 {
        8000 cuStreamWaitValue32 Legacy,
        8000 cuStreamWaitValue32_ptsz PerThread,
        11070 cuStreamWaitValue32_v2 Legacy,
        11070 cuStreamWaitValue32_v2_ptsz PerThread,
    } (stream: usize, va: u64, value: u32, flags: c_uint) |f| { wait(stream, f, va, u64::from(value), false, flags) }
    Context cuStreamWaitValue64 {
        9000 cuStreamWaitValue64 Legacy,
        9000 cuStreamWaitValue64_ptsz PerThread,
        11070 cuStreamWaitValue64_v2 Legacy,
        11070 cuStreamWaitValue64_v2_ptsz PerThread,
    } (stream: usize, va: u64, value: u64, flags: c_uint) |f| { wait(stream, f, va, value, true, flags) }
    Context cuStreamBatchMemOp {
        8000 cuStreamBatchMemOp Legacy,
        8000 cuStreamBatchMemOp_ptsz PerThread,
        11070 cuStreamBatchMemOp_v2 Legacy,
        11070 cuStreamBatchMemOp_v2_ptsz PerThread,
    } (stream: usize, count: c_uint, ops: In<[u64; 6]>, flags: c_uint) |f| {
        let _ = flags;
        batch(stream, f, count, ops)
    }
}
