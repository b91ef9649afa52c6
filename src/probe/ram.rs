//! Host memory and processor: what CPU layers could read and compute, and what can be pinned how fast.

use std::hint::black_box;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};

use super::area::Area;
use super::figure::{Figure, Section, Tier, Unit};
use super::modules;
use super::out::Out;
use crate::machine::Machine;
use crate::size::human;

/// How many steps [`measure`] takes.
pub const STEPS: usize = 3;

/// Measures what needs no GPU. The pinning rates of the driver's own methods are added by `gpu`.
pub fn measure(quick: bool, out: &mut Out) -> Section {
    let machine = Machine::look();
    let mut section = Section::new(Tier::Ram, "host");
    section.fact(
        "memory",
        format!(
            "{}, {} available",
            human(machine.total),
            human(machine.available)
        ),
    );
    let cores = cores();
    section.fact("cores", cores.to_string());
    let nodes = nodes();
    if nodes > 1 {
        section.fact("NUMA nodes", nodes.to_string());
    }
    limits(&machine, &mut section);

    let most: u64 = if quick { 512 << 20 } else { 2 << 30 };
    let size = most.min(machine.available / 8) as usize;
    out.step("host RAM: getting pages");
    for (id, label, huge, threads) in [
        ("populate.huge", "get huge pages, 4 threads", true, 4),
        ("populate.small", "get 4 KiB pages, 4 threads", false, 4),
        ("populate.huge.one", "get huge pages, 1 thread", true, 1),
    ] {
        if quick && id != "populate.huge" {
            continue;
        }
        let samples: std::io::Result<Vec<f64>> = (0..if quick { 2 } else { 3 })
            .map(|_| {
                let area = Area::new(size / 2, huge)?;
                let begin = Instant::now();
                area.populate(threads)?;
                Ok(begin.elapsed().as_secs_f64())
            })
            .collect();
        let figure = match samples {
            Ok(samples) => Figure::rate(id, label, size as u64 / 2, &samples, None),
            Err(error) => Figure::failed(id, label, Unit::Rate, error),
        };
        out.figure(&mut section, figure);
    }

    out.step("host RAM: reading");
    let time = Duration::from_millis(if quick { 120 } else { 400 });
    let prepared = Area::new(size, true).and_then(|area| {
        area.populate(cores.min(4))?;
        Ok(area)
    });
    match prepared {
        Ok(area) => {
            let mut figures = [
                ("read.all", "read, all cores", cores),
                ("read.one", "read, one core", 1),
            ]
            .map(|(id, label, threads)| {
                let rates = read(area.words(), threads, time, 5);
                Figure::new(id, label, Unit::Rate, &rates, None)
            });
            let maximum = modules::maximum();
            section.fact("memory at most", bound(maximum, &mut figures));
            for figure in figures {
                out.figure(&mut section, figure);
            }
        }
        Err(error) => {
            let figure = Figure::failed("read.all", "read, all cores", Unit::Rate, error);
            out.figure(&mut section, figure);
        }
    }
    out.step("processor: computing");
    let rates: Vec<f64> = (0..3).map(|_| compute(cores, time / 2)).collect();
    let label = "multiply and add, 32 bits, all cores";
    out.figure(
        &mut section,
        Figure::new("flops", label, Unit::Compute, &rates, None),
    );
    section
}

/// Holds the figures against what the firmware says, and that against them: names of slots can mislead.
fn bound(maximum: Result<modules::Maximum, String>, figures: &mut [Figure]) -> String {
    match maximum {
        Ok(maximum) if figures.iter().any(|f| f.value > maximum.rate) => {
            format!(
                "unknown (the firmware says {}, less than was measured)",
                maximum.text
            )
        }
        Ok(maximum) => {
            for figure in figures {
                figure.limit = Some(maximum.rate);
            }
            maximum.text
        }
        Err(why) => format!("unknown ({why})"),
    }
}

/// What bounds pinned memory here.
fn limits(machine: &Machine, section: &mut Section) {
    let plan = crate::plan::Plan::new(&crate::cli::RunArgs::default(), machine);
    let mut text = human(plan.settings.ram_limit);
    if let Some(limit) = machine.cgroup_limit {
        text += &format!(" (the cgroup's limit is {})", human(limit));
    }
    section.fact("a run may pin", text);
    section.warnings.extend(little(plan.settings.ram_limit));
    if let Ok((soft, _)) = getrlimit(Resource::RLIMIT_MEMLOCK) {
        let text = if soft == RLIM_INFINITY {
            "none".into()
        } else {
            // What the driver pins is not counted there.
            format!(
                "{} (the driver's own pinning is not bound by it)",
                human(soft)
            )
        };
        section.fact("memlock limit", text);
    }
}

/// A limit that is too small to be of use.
fn little(limit: u64) -> Option<String> {
    (limit < 4 << 30).then(|| {
        "little memory can be pinned: end what uses it, or raise the container's or cgroup's limit".into()
    })
}

/// Processors that this process may use.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// Nodes with memory.
fn nodes() -> usize {
    let text = std::fs::read_to_string("/sys/devices/system/node/has_memory").unwrap_or_default();
    text.trim()
        .split(',')
        .filter_map(|part| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            Some(last.parse::<usize>().ok()? + 1 - first.parse::<usize>().ok()?)
        })
        .sum()
}

/// Bytes per second of so many threads that each read a part of their own, over and over.
fn read(words: &[u64], threads: usize, time: Duration, runs: usize) -> Vec<f64> {
    let part = words.len() / threads / 64 * 64;
    if part == 0 {
        return Vec::new();
    }
    (0..runs)
        .map(|_| {
            // A thread that ends later than the others is part of the time, and so is what it read.
            together(threads, time / runs as u32, |thread, is_over| {
                let mine = &words[thread * part..][..part];
                let mut bytes = 0u64;
                'all: loop {
                    for piece in mine.chunks(128 << 10) {
                        black_box(sum(piece));
                        bytes += piece.len() as u64 * 8;
                        if is_over() {
                            break 'all;
                        }
                    }
                }
                bytes as f64
            })
        })
        .collect()
}

/// Reads all of it; eight sums, so that no addition waits for another.
fn sum(words: &[u64]) -> u64 {
    let mut sums = [0u64; 16];
    for piece in words.chunks_exact(16) {
        for (sum, word) in sums.iter_mut().zip(piece) {
            *sum ^= word;
        }
    }
    sums.iter().fold(0, |a, b| a ^ b)
}

/// Operations per second of so many threads that multiply and add numbers of 32 bits.
fn compute(threads: usize, time: Duration) -> f64 {
    together(threads, time, |thread, is_over| {
        let mut operations = 0.0;
        while !is_over() {
            operations += some_math(thread as f32);
        }
        operations
    })
}

/// Starts so many threads at one moment; gives what all did per second.
fn together(
    threads: usize,
    time: Duration,
    work: impl Fn(usize, &dyn Fn() -> bool) -> f64 + Sync,
) -> f64 {
    let barrier = Barrier::new(threads);
    let (barrier, work) = (&barrier, &work);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|thread| {
                scope.spawn(move || {
                    barrier.wait();
                    let begin = Instant::now();
                    let done = work(thread, &|| begin.elapsed() >= time);
                    done / begin.elapsed().as_secs_f64()
                })
            })
            .collect();
        workers
            .into_iter()
            .map(|worker| worker.join().unwrap_or(0.0))
            .sum()
    })
}

/// A short stretch of multiplications and additions; gives how many.
fn some_math(seed: f32) -> f64 {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
        // SAFETY: the processor has both.
        return unsafe { fused(seed) };
    }
    chain(seed, |a, b, c| a * b + c)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn fused(seed: f32) -> f64 {
    chain(seed, f32::mul_add)
}

#[inline(always)]
fn chain(seed: f32, step: impl Fn(f32, f32, f32) -> f32) -> f64 {
    const LANES: usize = 96;
    const STEPS: usize = 2_000;
    let mut values = [seed; LANES];
    let (factor, addend) = (black_box(0.999_9f32), black_box(0.5f32));
    for _ in 0..STEPS {
        for value in &mut values {
            *value = step(*value, factor, addend);
        }
    }
    black_box(values);
    (2 * LANES * STEPS) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn little_to_pin() {
        let machine = |gib: u64| Machine {
            total: gib << 30,
            available: gib << 30,
            cgroup_limit: None,
        };
        let warned = |gib| {
            let mut section = Section::new(Tier::Ram, "");
            limits(&machine(gib), &mut section);
            section
                .warnings
                .iter()
                .any(|w| w.contains("little memory can be pinned"))
        };
        assert!(
            warned(5) && !warned(6),
            "three quarters of it are what a run may pin"
        );
    }

    #[test]
    fn what_the_firmware_says_is_doubted() {
        let figures = || [Figure::new("read.all", "", Unit::Rate, &[60e9], None)];
        let of = |rate| modules::Maximum {
            rate,
            text: "2 channels".into(),
        };
        let mut some = figures();
        assert_eq!(bound(Ok(of(80e9)), &mut some), "2 channels");
        assert_eq!(some[0].share(), Some(75.0));
        let mut some = figures();
        let said = bound(Ok(of(50e9)), &mut some);
        assert!(said.contains("less than was measured"), "{said}");
        assert_eq!(some, figures());
        assert_eq!(bound(Err("x".into()), &mut some), "unknown (x)");
    }

    #[test]
    fn reading_takes_time_and_all_threads_count() {
        let area = Area::new(8 << 20, true).unwrap();
        area.populate(2).unwrap();
        let rates = read(area.words(), 2, Duration::from_millis(20), 2);
        assert_eq!(rates.len(), 2);
        // No machine reads a terabyte per second with two threads; how little a busy one reads is its own affair.
        assert!(rates.iter().all(|r| (1e6..1e12).contains(r)), "{rates:?}");
        assert_eq!(sum(&[1; 64]), 0);
        assert_ne!(sum(&[0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0]), 0);
        let rate = compute(1, Duration::from_millis(10));
        assert!((1e5..1e13).contains(&rate), "{rate}");
    }
}
