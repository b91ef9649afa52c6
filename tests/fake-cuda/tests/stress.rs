//! Many threads at once: nothing deadlocks, nothing is lost, and nothing that is in order is reported.
#![allow(missing_docs, clippy::macro_metavars_in_unsafe)]
mod common;
use common::*;
use std::time::{Duration, Instant};

/// A small generator; every thread has its own.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(1);
        mix(self.0) % sides
    }
}

/// One range of a few chunks that keeps its address while its backing wanders.
struct Range {
    va: u64,
    chunks: Vec<u64>,
    seed: u64,
}

impl Range {
    fn words(&self) -> u64 {
        self.chunks.len() as u64 * GRANULE / 8
    }

    /// Copies a chunk to new memory through an alias, and maps that in its place.
    fn wander(&mut self, at: usize, stream: usize, host: bool) {
        let place = self.va + at as u64 * GRANULE;
        let (alias, new) = (reserve(GRANULE), create(GRANULE, host));
        map(alias, GRANULE, new);
        ok!(cuMemcpyDtoDAsync_v2(alias, place, GRANULE as usize, stream));
        ok!(cuStreamSynchronize(stream));
        unmap(place, GRANULE);
        unmap(alias, GRANULE);
        ok!(cuMemAddressFree(alias, GRANULE as usize));
        ok!(cuMemRelease(std::mem::replace(&mut self.chunks[at], new)));
        map(place, GRANULE, new);
    }
}

fn work(ctx: usize, seed: u64, until: Instant) {
    ok!(cuCtxSetCurrent(ctx));
    let mut dice = Dice(seed << 32);
    let stream = stream((seed % 2) as u32);
    let mut ranges: Vec<Range> = Vec::new();
    let (wrong, done) = (alloc(8), event());
    ok!(cuMemsetD8Async(wrong, 0u8, 8usize, stream));
    while Instant::now() < until {
        match dice.roll(8) {
            0 if ranges.len() < 4 => {
                let n = 1 + dice.roll(3);
                let va = reserve(n * GRANULE);
                let chunks: Vec<u64> = (0..n).map(|_| create(GRANULE, dice.roll(2) == 0)).collect();
                for (i, chunk) in chunks.iter().enumerate() {
                    map(va + i as u64 * GRANULE, GRANULE, *chunk);
                }
                let range = Range {
                    va,
                    chunks,
                    seed: dice.roll(1 << 40),
                };
                assert_eq!(
                    launch("gb_fill", stream, &[va, range.words(), range.seed]),
                    0
                );
                ranges.push(range);
            }
            1 | 2 if !ranges.is_empty() => {
                let i = dice.roll(ranges.len() as u64) as usize;
                let at = dice.roll(ranges[i].chunks.len() as u64) as usize;
                ranges[i].wander(at, stream, dice.roll(2) == 0);
            }
            3 | 4 if !ranges.is_empty() => {
                let range = &ranges[dice.roll(ranges.len() as u64) as usize];
                let args = [range.va, range.words(), range.seed, wrong];
                assert_eq!(launch("gb_check", stream, &args), 0);
            }
            5 => {
                let small = alloc(1 + dice.roll(4 * MIB));
                ok!(cuMemsetD8Async(small, 1u8, 1usize, stream));
                ok!(cuMemFree_v2(small));
            }
            6 if ranges.len() > 2 => {
                let range = ranges.swap_remove(0);
                ok!(cuEventRecord(done, stream));
                ok!(cuEventSynchronize(done));
                let size = range.chunks.len() as u64 * GRANULE;
                unmap(range.va, size);
                ok!(cuMemAddressFree(range.va, size as usize));
                range
                    .chunks
                    .iter()
                    .for_each(|chunk| ok!(cuMemRelease(*chunk)));
            }
            _ => {
                let mut ordered = 0u64;
                ok!(cuMemAllocAsync(&mut ordered, 100_000usize, stream));
                assert_eq!(launch("gb_fill", stream, &[ordered, 1000, 1]), 0);
                ok!(cuMemFreeAsync(ordered, stream));
            }
        }
    }
    ok!(cuStreamSynchronize(stream));
    assert_eq!(read(wrong), 0);
    ok!(cuStreamDestroy_v2(stream));
}

#[test]
fn threads_keep_out_of_each_others_way() {
    clean("threads_keep_out_of_each_others_way", &[], || {
        let ctx = start_with_module();
        let until = Instant::now() + Duration::from_secs(2);
        let threads: Vec<_> = (1..=4)
            .map(|seed| std::thread::spawn(move || work(ctx, seed, until)))
            .collect();
        threads
            .into_iter()
            .for_each(|thread| thread.join().unwrap());
    });
}
