//! VRAM, and what it costs to change where a chunk lies.

use std::time::Instant;

use super::driver::Gpu;
use super::memory::{Location, Piece, Range};
use super::site::{Site, rate, repeat};
use super::{Bench, RUNS, RUNS_QUICK};
use crate::probe::figure::{Figure, Section, Unit};
use crate::probe::out::Out;
use crate::selftest_program::driver::Result;

const MIB: usize = 1 << 20;

/// How many steps [`measure`] takes.
pub const STEPS: usize = 3;

/// Bytes per second that the memory's clock and width allow (0 when the driver does not tell them).
pub fn theory(gpu: &Gpu) -> Option<f64> {
    // CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE in kHz, ..._GLOBAL_MEMORY_BUS_WIDTH in bits; two transfers a clock.
    let (clock, width) = (gpu.attribute(36), gpu.attribute(37));
    let rate = f64::from(clock) * 1e3 * 2.0 * f64::from(width) / 8.0;
    (rate > 0.0).then_some(rate)
}

/// Measures.
pub fn measure(bench: &Bench, site: &Site, section: &mut Section, out: &mut Out) {
    let gpu = site.gpu;
    let runs = if bench.quick { RUNS_QUICK } else { RUNS };
    let limit = theory(gpu);
    out.step("VRAM: reading and copying");
    let bytes = site.vram.len / 32 * 32;
    let half = bytes / 2;
    let read = || -> Result<Vec<f64>> {
        let kernel = gpu.kernel(c"gb_probe_read16")?;
        let stream = gpu.stream()?;
        let arguments = [site.vram.address, bytes / 16, site.out];
        repeat(runs, || {
            stream.time(|s| kernel.launch(s, gpu.multiprocessors * 8, 512, &arguments))
        })
    };
    out.figure(
        section,
        rate(
            "vram.read",
            "kernel reads 16 B, coalesced",
            bytes,
            read(),
            limit,
        ),
    );
    let copy = || -> Result<Vec<f64>> {
        let stream = gpu.stream()?;
        let (to, from) = (site.vram.address, site.vram.address + half);
        repeat(runs, || stream.time(|s| s.copy(to, from, half as usize)))
    };
    let label = "copy within VRAM, read and written";
    out.figure(section, rate("vram.copy", label, 2 * half, copy(), limit));

    out.step("VRAM: mapping");
    let free = gpu.memory().map_or(0, |(free, _)| free);
    for (location, name, most) in [
        (Location::Device, "device", free / 8),
        (Location::Host, "host", site.host_len / 4),
    ] {
        for chunk in [2 * MIB, 16 * MIB, 64 * MIB] {
            if bench.quick && chunk == 16 * MIB {
                continue;
            }
            let wanted = if bench.quick { 64 * MIB } else { 256 * MIB };
            let count = (wanted.min(most as usize) / chunk).max(1);
            // A second run finds caches and tables warm, as in a program that goes on.
            let costs: Result<Vec<Costs>> =
                (0..3).map(|_| costs(gpu, location, chunk, count)).collect();
            let what = ["create", "map", "set access", "unmap"];
            for (index, step) in what.into_iter().enumerate() {
                let id = format!("cost.{name}.{}m.{}", chunk / MIB, step.replace(' ', "_"));
                let label = format!("{} MiB chunks, {name}: {step}", chunk / MIB);
                let figure = match &costs {
                    Ok(costs) => {
                        let samples: Vec<f64> = costs.iter().map(|c| c[index]).collect();
                        Figure::new(&id, &label, Unit::Cost, &samples, None)
                    }
                    Err(error) => Figure::failed(&id, &label, Unit::Cost, error),
                };
                out.figure(section, figure);
            }
        }
    }

    out.step("VRAM: demoting and promoting");
    let size = if free / 8 >= 256 * MIB as u64 && site.host_len / 4 >= 256 * MIB as u64 {
        64 * MIB
    } else {
        2 * MIB
    };
    let moves: Result<Vec<(f64, f64)>> = Stage::new(gpu, size, 4).and_then(|mut stage| {
        stage.round()?;
        (0..runs).map(|_| stage.round()).collect()
    });
    let bytes = 4 * size as u64;
    let name = size / MIB;
    let of = |pick: fn(&(f64, f64)) -> f64| match &moves {
        Ok(moves) => Ok(moves.iter().map(pick).collect::<Vec<f64>>()),
        Err(error) => Err(error.to_string()),
    };
    for (id, label, samples) in [
        ("demote", "demote", of(|m| m.0)),
        ("promote", "promote", of(|m| m.1)),
    ] {
        let label = format!("{label} {name} MiB chunks, end to end");
        let figure = match samples {
            Ok(samples) => Figure::rate(id, &label, bytes, &samples, None),
            Err(error) => Figure::failed(id, &label, Unit::Rate, error),
        };
        out.figure(section, figure);
    }
}

/// Create, map, set access, unmap: seconds per GiB.
type Costs = [f64; 4];

fn costs(gpu: &Gpu, location: Location, chunk: usize, count: usize) -> Result<Costs> {
    let mut range = Range::new(gpu, chunk * count)?;
    let gib = (chunk * count) as f64 / (1u64 << 30) as f64;
    let mut last = Instant::now();
    let mut lap = || {
        let seconds = last.elapsed().as_secs_f64() / gib;
        last = Instant::now();
        seconds
    };
    let pieces: Vec<Piece> = (0..count)
        .map(|_| Piece::new(gpu, location, chunk))
        .collect::<Result<_>>()?;
    let create = lap();
    pieces.iter().try_for_each(|piece| range.map(piece))?;
    let map = lap();
    range.open()?;
    let access = lap();
    range.unmap()?;
    let unmap = lap();
    Ok([create, map, access, unmap])
}

/// A range whose chunks go down to the host and come back, as residency will do it: copied over private aliases, then
/// remapped.
struct Stage<'g> {
    gpu: &'g Gpu,
    // Before the pieces: unmapped first.
    range: Range<'g>,
    device_alias: Range<'g>,
    host_alias: Range<'g>,
    device: Vec<Piece<'g>>,
    host: Vec<Piece<'g>>,
    bytes: usize,
}

impl<'g> Stage<'g> {
    fn new(gpu: &'g Gpu, chunk: usize, count: usize) -> Result<Stage<'g>> {
        let pieces = |location| -> Result<Vec<Piece<'g>>> {
            (0..count)
                .map(|_| Piece::new(gpu, location, chunk))
                .collect()
        };
        let bytes = chunk * count;
        let mut stage = Stage {
            gpu,
            range: Range::new(gpu, bytes)?,
            device_alias: Range::new(gpu, bytes)?,
            host_alias: Range::new(gpu, bytes)?,
            device: pieces(Location::Device)?,
            host: pieces(Location::Host)?,
            bytes,
        };
        for piece in &stage.device {
            stage.range.map(piece)?;
            stage.device_alias.map(piece)?;
        }
        stage
            .host
            .iter()
            .try_for_each(|piece| stage.host_alias.map(piece))?;
        stage.range.open()?;
        stage.device_alias.open()?;
        stage.host_alias.open()?;
        Ok(stage)
    }

    /// Seconds down and seconds up.
    fn round(&mut self) -> Result<(f64, f64)> {
        let stream = self.gpu.stream()?;
        let begin = Instant::now();
        stream.copy(self.host_alias.address, self.range.address, self.bytes)?;
        stream.synchronize()?;
        self.range.unmap()?;
        self.host
            .iter()
            .try_for_each(|piece| self.range.map(piece))?;
        self.range.open()?;
        let down = begin.elapsed().as_secs_f64();
        let begin = Instant::now();
        stream.copy(self.device_alias.address, self.range.address, self.bytes)?;
        stream.synchronize()?;
        self.range.unmap()?;
        self.device
            .iter()
            .try_for_each(|piece| self.range.map(piece))?;
        self.range.open()?;
        Ok((down, begin.elapsed().as_secs_f64()))
    }
}
