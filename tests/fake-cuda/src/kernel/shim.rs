//! The shim's own kernels (`assets/shim.cu`). What they are told lies in memory, and is read as strictly as the rest.
use std::sync::atomic::{AtomicU32, Ordering};

use super::{Touch, atomic_add, bytes, each, reach, words};
use crate::misuse::misuse;
use crate::race::How;
use crate::va::{Fault, Segment};
use crate::work::{MISALIGNED, Site};
use crate::world::world;

#[path = "../../../../shim/src/tier/staging/kernels/hash.rs"]
mod hash;

const TILE: u64 = 32 << 10;

/// `greenboost_scan(areas, n, table, count, flags)`
pub(super) fn scan_touches(a: &[u64]) -> Vec<Touch> {
    vec![
        bytes(a[0], a[1].saturating_add(1), 24, How::Read),
        bytes(a[2], a[3], 16, How::Read),
        Touch {
            va: a[4],
            len: a[3].saturating_mul(4),
            how: How::Write,
        },
    ]
}

fn all(segments: &[Segment]) -> Vec<u64> {
    let mut all = Vec::new();
    // SAFETY: `each` gives words inside segments that live during the call.
    each(segments, |_, p| all.push(unsafe { p.read() }));
    all
}

/// Sets one of the 32-bit flags.
fn raise(segments: &[Segment], index: usize) {
    let mut at = 4 * index as u64;
    for segment in segments {
        if at < segment.len {
            // SAFETY: inside the segment, and aligned as its start and every border are.
            let flag = unsafe { AtomicU32::from_ptr(segment.ptr.add(at as usize).cast()) };
            return flag.store(1, Ordering::Relaxed);
        }
        at -= segment.len;
    }
}

pub(super) fn scan(site: &Site, a: &[u64], m: &[Vec<Segment>]) -> Result<(), Fault> {
    let (areas, table) = (all(&m[0]), all(&m[1]));
    let ranges: Vec<(u64, u64)> = table.chunks_exact(2).map(|r| (r[0], r[1])).collect();
    if !ranges.is_sorted_by(|a, b| a.0 <= b.0 && a.1 <= b.1) {
        misuse!("greenboost_scan: the ranges are not in order");
    }
    // The words of each area: those that are aligned and lie in it whole.
    let mut tiles = 0;
    let mut reached = Vec::new();
    for area in areas.chunks_exact(3) {
        if area[2] != tiles {
            misuse!("greenboost_scan: {} tiles, not {tiles}", area[2]);
        }
        let begin = area[0].next_multiple_of(8);
        let end = area[0].saturating_add(area[1]) & !7;
        if reached.len() as u64 == a[1] || begin >= end {
            continue;
        }
        let body = (end & !15).saturating_sub(begin.next_multiple_of(16));
        tiles += body.div_ceil(TILE).max(1);
        reached.push((begin, end));
    }
    // Without ranges, or areas, the kernel reads no further.
    let (Some(lowest), Some(highest)) = (ranges.first(), ranges.last()) else {
        return Ok(());
    };
    // From here on the operation is known to touch the areas.
    world()
        .flight
        .also(site.ticket, "greenboost_scan", &reached);
    for (begin, end) in reached {
        let area = reach(site, &words(begin, (end - begin) / 8, How::Read))?;
        each(&area, |_, p| {
            // SAFETY: as in `all`.
            let word = unsafe { p.read() } & 0xffff_ffff_ffff;
            if (lowest.0..highest.1).contains(&word) {
                let last = ranges.partition_point(|r| r.0 <= word);
                let holding = (0..last).rev().take_while(|i| word < ranges[*i].1);
                holding.for_each(|i| raise(&m[2], i));
            }
        });
    }
    Ok(())
}

/// `greenboost_hash(p, n, out)`
pub(super) fn hash_touches(a: &[u64]) -> Vec<Touch> {
    let sum = |i: u64| words(a[2].saturating_add(8 * i), 1, How::Atomic);
    vec![bytes(a[0], a[1], 16, How::Read), sum(0), sum(1)]
}

pub(super) fn hash(_: &Site, a: &[u64], m: &[Vec<Segment>]) -> Result<(), Fault> {
    if !a[0].is_multiple_of(16) {
        return Err(Fault {
            va: a[0],
            write: false,
            why: MISALIGNED,
        });
    }
    let mut sums = [0; 2];
    // SAFETY: `each` gives words inside segments that live during the call.
    each(&m[0], |i, p| hash::add(&mut sums, i, unsafe { p.read() }));
    atomic_add(&m[1], sums[0]);
    atomic_add(&m[2], sums[1]);
    Ok(())
}
