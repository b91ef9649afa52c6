//! Random programs under tiny budgets, byte for byte against a flat memory.
//!
//! A failure prints the smallest run found that still fails. `GREENBOOST_SEEDS=FROM..TO` runs other seeds than the usual.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};

use crate::harness::{MIB, Run, run};
use crate::inject::reason;

/// What a seed stands for.
#[derive(Clone, Copy, Debug)]
struct Case {
    seed: u64,
    threads: u64,
    streams: u64,
    operations: u64,
    /// MiB that each thread holds at most.
    mib: u64,
    vram: u64,
    ram: u64,
}

impl Case {
    fn of(seed: u64) -> Case {
        let mut n = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ (seed << 17) ^ 0x5DEE_CE66;
        let mut below = |m: u64| {
            n ^= n << 13;
            n ^= n >> 7;
            n ^= n << 17;
            n % m
        };
        let threads = [1, 1, 2, 2, 3, 4, 8][below(7) as usize];
        let need = 60 + below(60);
        Case {
            seed,
            threads,
            streams: 2 + below(3) + if below(10) == 0 { 10 / threads } else { 0 },
            operations: (60 + below(240)) / threads,
            mib: need / threads,
            vram: [2, 8, 16, 16, 24, 32, 64][below(7) as usize],
            // Mostly enough, sometimes not: then some allocations are refused.
            ram: if below(4) == 0 { 8 + below(40) } else { 512 },
        }
    }

    fn run(self) -> Run {
        let numbers = [
            self.seed,
            self.threads,
            self.streams,
            self.operations,
            self.mib,
        ];
        let args: Vec<String> = numbers.iter().map(u64::to_string).collect();
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        run("random", &args).vram(self.vram).ram(self.ram)
    }

    /// Bytes that were spilled, or what went wrong.
    fn outcome(self) -> Result<u64, String> {
        catch_unwind(AssertUnwindSafe(|| self.run().shimmed().spilled)).map_err(reason)
    }

    /// A smaller case that fails as well. Threads race, so each is tried a few times.
    fn shrink(self) -> (Case, String) {
        let fails = |c: Case| (0..3).find_map(|_| c.outcome().err());
        let mut best = (self, String::new());
        for threads in [1, 2, 4] {
            let c = Case { threads, ..best.0 };
            if threads < best.0.threads
                && let Some(why) = fails(c)
            {
                best = (c, why);
                break;
            }
        }
        let (mut low, mut high) = (0, best.0.operations);
        while low + 1 < high {
            let operations = (low + high) / 2;
            let c = Case {
                operations,
                ..best.0
            };
            match fails(c) {
                Some(why) => {
                    best = (c, why);
                    high = operations;
                }
                None => low = operations,
            }
        }
        best
    }
}

fn seeds() -> std::ops::Range<u64> {
    match std::env::var("GREENBOOST_SEEDS") {
        Ok(text) => {
            let (from, to) = text.split_once("..").expect("GREENBOOST_SEEDS=FROM..TO");
            from.parse().expect("a number")..to.parse().expect("a number")
        }
        Err(_) => 1..201,
    }
}

/// PITFALLS 19: whatever the shim does with memory, no byte changes.
#[test]
fn p19_random_programs() {
    let seeds = seeds();
    let next = AtomicU64::new(seeds.start);
    let failed = AtomicBool::new(false);
    let spilled = AtomicU64::new(0);
    let width = std::thread::available_parallelism().map_or(2, |n| n.get());
    std::thread::scope(|s| {
        for _ in 0..width {
            s.spawn(|| {
                while !failed.load(SeqCst) {
                    let seed = next.fetch_add(1, SeqCst);
                    if seed >= seeds.end {
                        break;
                    }
                    let case = Case::of(seed);
                    let why = match case.outcome() {
                        Ok(bytes) => {
                            spilled.fetch_add(bytes, SeqCst);
                            continue;
                        }
                        Err(why) => why,
                    };
                    if failed.swap(true, SeqCst) {
                        break;
                    }
                    let (small, small_why) = case.shrink();
                    panic!("{case:?}\n{why}\nsmallest that fails: {small:?}\n{small_why}");
                }
            });
        }
    });
    let (spilled, runs) = (spilled.into_inner(), seeds.end - seeds.start);
    assert!(
        spilled > runs * 8 * MIB,
        "only {spilled} bytes spilled in {runs} runs"
    );
}

/// The programs themselves are right: they pass without the shim.
#[test]
fn random_programs_without_the_shim() {
    for seed in 1..16 {
        Case::of(seed).run().card(4096).plain();
    }
}
