//! The rest of what the link does: copies by size, places anywhere, growing footprints, reading again, and company.

use std::ffi::CStr;

use super::driver::Stream;
use super::site::{MIB, Site, THREADS, rate, repeat};
use super::watch::Watch;
use super::{Bench, LONGEST_READ, RUNS, RUNS_QUICK};
use crate::probe::figure::{Figure, Section, Unit};
use crate::probe::out::Out;
use crate::selftest_program::driver::Result;

/// How often the matrix-product pattern reads.
const REREAD: u64 = 8;

/// How many steps [`measure`] takes.
pub const STEPS: usize = 5;

/// Measures. `block` bytes at a time, which are there on both sides.
///
/// # Errors
/// When the driver refuses what all else needs; single figures that fail say so themselves.
pub fn measure(
    bench: &Bench,
    site: &Site,
    block: u64,
    watch: &mut Watch,
    section: &mut Section,
    out: &mut Out,
) -> Result<()> {
    let limit = watch.limit();
    let runs = if bench.quick { RUNS_QUICK } else { RUNS };
    out.step("link: copies by size");
    sweep(bench, site, block, limit, section, out)?;
    out.step("link: anywhere in host memory");
    let kernels = Kernels { site, limit, runs };
    for figure in kernels.random(block, "") {
        out.figure(section, figure);
    }
    out.step("link: growing footprints");
    if !bench.quick {
        let few = Kernels {
            runs: RUNS_QUICK,
            ..kernels
        };
        footprints(&few, block, section, out);
    }
    out.step("link: reading again");
    out.figure(section, kernels.reread());
    out.step("link: while a kernel runs");
    let seconds = repeat(runs, || beside(site, watch, block));
    let figure = rate(
        "dma.h2d.busy",
        "copy to the GPU while it computes",
        block,
        seconds,
        limit,
    );
    out.figure(section, figure);
    Ok(())
}

/// Copies in pieces of 64 KiB to 1 GiB, as far as memory and time reach.
fn sweep(
    bench: &Bench,
    site: &Site,
    block: u64,
    limit: Option<f64>,
    section: &mut Section,
    out: &mut Out,
) -> Result<()> {
    const KIB: u64 = 1 << 10;
    let stream = site.gpu.stream()?;
    let all = [64, 256, 2 << 10, 16 << 10, 128 << 10, 1 << 20].map(|kib| kib * KIB);
    // `block` takes `RUN` seconds.
    let longest = (block as f64 * LONGEST_READ / super::RUN) as u64;
    let most = site.host_len.min(site.vram.len).min(longest);
    for piece in if bench.quick { &all[2..3] } else { &all[..] } {
        let piece = *piece;
        // Small pieces need not cover all of it, and large ones may be more.
        let bytes = block.min(piece * 512).max(piece) / piece * piece;
        if bytes > most {
            continue;
        }
        let name = match piece / MIB {
            0 => format!("{} KiB", piece / KIB),
            mib => format!("{mib} MiB"),
        };
        let runs = if bench.quick || bytes > block {
            RUNS_QUICK
        } else {
            RUNS
        };
        let (vram, host) = (site.vram.address, site.host.start());
        for (way, to) in [("h2d", "to"), ("d2h", "from")] {
            let seconds = repeat(runs, || {
                stream.time(|s| {
                    (0..bytes).step_by(piece as usize).try_for_each(|at| {
                        let (vram, host) = (vram + at, host.wrapping_add(at as usize));
                        match way {
                            "h2d" => s.upload(vram, host, piece as usize),
                            _ => s.download(host, vram, piece as usize),
                        }
                    })
                })
            });
            let id = format!("dma.{way}.{}k", piece / KIB);
            let label = format!("copy {to} the GPU in pieces of {name}");
            out.figure(section, rate(&id, &label, bytes, seconds, limit));
        }
    }
    Ok(())
}

/// A copy, while all multiprocessors read VRAM and compute.
fn beside(site: &Site, watch: &mut Watch, block: u64) -> Result<f64> {
    let (worker, copier) = (site.gpu.stream()?, site.gpu.stream()?);
    let kernel = site.gpu.kernel(c"gb_probe_busy")?;
    let half = block / 2;
    let begun = site.gpu.event()?;
    begun.record(&worker)?;
    // Long enough for the slowest link that `block` was chosen for.
    let nanoseconds = 120_000_000;
    let arguments = [site.vram.address + half, half / 16, nanoseconds, site.out];
    kernel.launch(&worker, 2 * site.gpu.multiprocessors, 256, &arguments)?;
    copier.after(&begun)?;
    let seconds = copier.time(|s| {
        s.upload(site.vram.address, site.host.start(), half as usize)?;
        // Twice, so that it is `block` bytes in all.
        s.upload(site.vram.address, site.host.start(), half as usize)
    });
    watch.look();
    worker.synchronize()?;
    seconds
}

fn footprints(kernels: &Kernels, block: u64, section: &mut Section, out: &mut Out) {
    let mut size = 2 * block;
    while size <= kernels.site.host_len {
        let name = crate::size::human(size);
        let id = format!("zero.read16.{}m", size / MIB);
        let label = format!("kernel reads 16 B over {name}");
        out.figure(
            section,
            kernels.read(&id, &label, c"gb_probe_read16", size, 16),
        );
        for figure in kernels.random(size, &name) {
            out.figure(section, figure);
        }
        size *= 2;
    }
}

#[derive(Clone, Copy)]
struct Kernels<'s, 'g, 'a> {
    site: &'s Site<'g, 'a>,
    limit: Option<f64>,
    runs: usize,
}

impl Kernels<'_, '_, '_> {
    fn blocks(&self) -> u32 {
        self.site.gpu.multiprocessors * 8
    }

    fn run(&self, name: &CStr, arguments: &[u64]) -> Result<Vec<f64>> {
        let kernel = self.site.gpu.kernel(name)?;
        let stream = self.site.gpu.stream()?;
        repeat(self.runs, || {
            stream.time(|s: &Stream| kernel.launch(s, self.blocks(), THREADS, arguments))
        })
    }

    fn read(&self, id: &str, label: &str, kernel: &CStr, bytes: u64, unit: u64) -> Figure {
        let arguments = [self.site.host.address, bytes / unit, self.site.out];
        let seconds = self.run(kernel, &arguments);
        rate(id, label, bytes, seconds, self.limit)
    }

    /// Over so many bytes; a sample of them.
    fn random(&self, footprint: u64, over: &str) -> [Figure; 2] {
        let suffix = if over.is_empty() {
            String::new()
        } else {
            format!(".{}m", footprint / MIB)
        };
        let over = if over.is_empty() {
            String::new()
        } else {
            format!(" over {over}")
        };
        let start = self.site.host.address;
        let out = self.site.out;
        let count = (footprint / 1024).min(1 << 20);
        let arguments = [start, footprint / 16, count, 1, out];
        let single = rate(
            &format!("zero.random16{suffix}"),
            &format!("kernel reads 16 B anywhere{over}"),
            count * 16,
            self.run(c"gb_probe_random16", &arguments),
            self.limit,
        );
        let places = footprint / (2 * MIB);
        let count = places.min(512);
        let arguments = [start, places, count, 1, out];
        let pieces = rate(
            &format!("zero.random2m{suffix}"),
            &format!("kernel reads 2 MiB anywhere{over}"),
            count * 2 * MIB,
            self.run(c"gb_probe_random_piece", &arguments),
            self.limit,
        );
        [single, pieces]
    }

    /// What it costs to read a little memory several times over, as matrix products do.
    fn reread(&self) -> Figure {
        let (id, label) = (
            "zero.reread",
            "kernel reads 16 MiB 8 times over: time of once, times",
        );
        let bytes = (16 * MIB).min(self.site.host_len);
        let time = |times: u64| {
            let arguments = [self.site.host.address, bytes / 16, times, self.site.out];
            self.run(c"gb_probe_reread16", &arguments)
        };
        let factors = time(1).and_then(|once| {
            let once = Figure::new("", "", Unit::Factor, &once, None).value;
            Ok(time(REREAD)?
                .into_iter()
                .map(|t| t / once)
                .collect::<Vec<_>>())
        });
        match factors {
            Ok(factors) => Figure::new(id, label, Unit::Factor, &factors, None),
            Err(error) => Figure::failed(id, label, Unit::Factor, error),
        }
    }
}
