//! Random programs under tiny budgets, byte for byte against a flat memory.
//!
//! As many seeds as 70 seconds allow: thousands of programs on an idle machine, a few in each process.
//! `GREENBOOST_SEEDS=FROM..TO` runs those seeds, however long it takes. A failure prints the smallest run found that still
//! fails.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

use crate::harness::{MIB, Run, run};
use crate::inject::reason;

/// Programs that one process runs, one after another: what it has been through is new to each of them.
const PROGRAMS: u64 = 6;

/// What a seed stands for.
#[derive(Clone, Copy, Debug)]
struct Case {
    seed: u64,
    /// Which of its programs to run.
    from: u64,
    to: u64,
    threads: u64,
    streams: u64,
    operations: u64,
    /// MiB that each thread holds at most.
    mib: u64,
    vram: u64,
    ram: u64,
    /// Some allocations are stream-ordered.
    pool: bool,
    /// Some are on a second device.
    peer: bool,
    /// Graphs allocate too.
    graph_memory: bool,
    /// Chunks change their tier whenever the program synchronises.
    moves: bool,
    /// Chunks come and go in slots all the time.
    staged: bool,
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
        // Most cases are small, so that there can be many.
        let large = below(8) == 0;
        let need = if large { 40 + below(50) } else { 9 + below(15) };
        Case {
            seed,
            from: 0,
            to: PROGRAMS,
            threads,
            streams: match below(10) {
                0 => 16 / threads,
                1 => 12 / threads,
                _ => 2 + below(3),
            },
            operations: (40 + below(if large { 240 } else { 120 })) / threads,
            mib: (need / threads).max(4),
            vram: match large {
                true => [2, 8, 16, 16, 24, 32, 64][below(7) as usize],
                false => [2, 2, 4, 6, 8, 8, 16][below(7) as usize],
            },
            // Mostly enough, sometimes not: then some allocations are refused.
            ram: if below(4) == 0 { 8 + below(40) } else { 512 },
            pool: below(3) == 0,
            peer: below(4) == 0,
            graph_memory: below(3) == 0,
            moves: below(2) == 0,
            staged: below(2) == 0,
        }
        .with_room(below(2) == 0)
    }

    /// A pool takes 32 MiB at once: some cases have room for that.
    fn with_room(mut self, room: bool) -> Case {
        if self.pool && room {
            self.vram += 32;
        }
        self
    }

    fn run(self) -> Run {
        let numbers = [
            self.seed,
            self.from,
            self.to,
            self.threads,
            self.streams,
            self.operations,
            self.mib,
        ];
        let args: Vec<String> = numbers.iter().map(u64::to_string).collect();
        let mut args: Vec<&str> = args.iter().map(String::as_str).collect();
        args.extend(self.pool.then_some("pool"));
        args.extend(self.peer.then_some("peer"));
        args.extend(self.graph_memory.then_some("graph-memory"));
        let devices = if self.peer { "2" } else { "1" };
        // A pool that has no room to grow may do so for a moment, before that is undone.
        let granule = if self.seed.is_multiple_of(2) { 32 } else { 2 };
        let slack = if self.pool {
            self.threads * (self.mib + granule)
        } else {
            0
        };
        // A grain for each stream that launches graphs, the null and the thread's own included.
        let graphs = if self.graph_memory {
            2 * self.threads * (self.streams + 1)
        } else {
            0
        };
        run("random", &args)
            .env("FAKE_CUDA_DEVICES", devices)
            .env("GREENBOOST_MOVES", if self.moves { "always" } else { "" })
            .env(
                "GREENBOOST_TRANSITS",
                if self.staged { "always" } else { "" },
            )
            .env("FAKE_CUDA_POOL_GRANULE", format!("{granule}m"))
            // Page faults of the models would take a third of the time.
            .env("MALLOC_MMAP_THRESHOLD_", (32 * MIB).to_string())
            .env("MALLOC_TRIM_THRESHOLD_", (1024 * MIB).to_string())
            .vram(self.vram)
            .ram(self.ram + self.pinned())
            .slack(slack + graphs)
    }

    /// MiB that the program pins itself, which the RAM limit holds too: 2 for each stream of each thread, and a source.
    fn pinned(self) -> u64 {
        2 * self.threads * (self.streams + 1) + 8
    }

    /// Bytes that were spilled and that moved, or what went wrong.
    fn outcome(self) -> Result<[u64; 2], String> {
        let run = || {
            let outcome = self.run().shimmed();
            [outcome.spilled, outcome.moved]
        };
        catch_unwind(AssertUnwindSafe(run)).map_err(reason)
    }

    /// A smaller case that fails as well. Threads race, so each is tried a few times.
    fn shrink(self) -> (Case, String) {
        let fails = |c: Case| (0..3).find_map(|_| c.outcome().err());
        let mut best = (self, String::new());
        // The first program that fails: alone, or after those before it.
        for program in self.from..self.to {
            let to = program + 1;
            let alone = Case {
                from: program,
                to,
                ..self
            };
            let found = [alone, Case { to, ..self }]
                .into_iter()
                .find_map(|c| Some((c, fails(c)?)));
            if let Some(found) = found {
                best = found;
                break;
            }
        }
        let extras = |c: Case| (c.peer, c.pool, c.graph_memory, c.moves, c.staged);
        let simpler: [fn(Case) -> Case; 5] = [
            |c| Case { staged: false, ..c },
            |c| Case { moves: false, ..c },
            |c| Case { peer: false, ..c },
            |c| Case { pool: false, ..c },
            |c| Case {
                graph_memory: false,
                ..c
            },
        ];
        for simpler in simpler {
            let c = simpler(best.0);
            if extras(c) != extras(best.0)
                && let Some(why) = fails(c)
            {
                best = (c, why);
            }
        }
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

/// The seeds to run, and how long.
fn seeds() -> (std::ops::Range<u64>, Duration) {
    match std::env::var("GREENBOOST_SEEDS") {
        Ok(text) => {
            let (from, to) = text.split_once("..").expect("GREENBOOST_SEEDS=FROM..TO");
            let number = |n: &str| n.parse().expect("a number");
            (number(from)..number(to), Duration::MAX)
        }
        Err(_) => (1..4001, Duration::from_secs(70)),
    }
}

/// PITFALLS 19: whatever the shim does with memory, no byte changes.
#[test]
fn p19_random_programs() {
    let (seeds, patience) = seeds();
    let start = Instant::now();
    let runs = AtomicU64::new(0);
    let next = AtomicU64::new(seeds.start);
    let failed = AtomicBool::new(false);
    let (spilled, moved) = (AtomicU64::new(0), AtomicU64::new(0));
    let width = std::thread::available_parallelism().map_or(2, |n| n.get());
    std::thread::scope(|s| {
        for _ in 0..width {
            s.spawn(|| {
                while !failed.load(SeqCst) && start.elapsed() < patience {
                    let seed = next.fetch_add(1, SeqCst);
                    if seed >= seeds.end {
                        break;
                    }
                    let case = Case::of(seed);
                    let why = match case.outcome() {
                        Ok([bytes, moves]) => {
                            spilled.fetch_add(bytes, SeqCst);
                            moved.fetch_add(moves, SeqCst);
                            runs.fetch_add(case.to - case.from, SeqCst);
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
    let (spilled, runs) = (spilled.into_inner(), runs.into_inner());
    let moved = moved.into_inner();
    println!(
        "{runs} random programs, {} MiB spilled, {} MiB moved, {:?}",
        spilled / MIB,
        moved / MIB,
        start.elapsed()
    );
    assert!(
        spilled > runs * MIB,
        "only {spilled} bytes spilled in {runs} runs"
    );
    assert!(
        moved > runs * MIB,
        "only {moved} bytes moved in {runs} runs"
    );
}

/// The programs themselves are right: they pass without the shim.
#[test]
fn random_programs_without_the_shim() {
    for seed in 1..60 {
        Case::of(seed).run().card(4096).plain();
    }
}
