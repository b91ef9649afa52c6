//! The GPU: its link, its memory, and what the driver needs to pin host memory. Driver API only.

mod driver;
mod link;
mod memory;
mod nvml;
mod rounds;
mod site;
mod through;
mod vram;
mod watch;

use std::time::Instant;

use self::driver::Gpu;
use self::memory::{Location, Piece, Registered, Vram};
use self::nvml::Nvml;
use self::rounds::Rounds;
use self::site::Site;
use self::watch::Watch;
use super::area::Area;
use super::bus;
use super::figure::{Section, Tier};
use super::nvme::Bench as Disk;
use super::out::Out;
use crate::machine::Machine;
use crate::selftest_program::driver::Result;

/// How often a figure is measured.
const RUNS: usize = 7;
const RUNS_QUICK: usize = 3;
/// Rounds of the figures that decide, each of the three times that they are measured.
const ROUNDS: usize = 5;
const ROUNDS_QUICK: usize = 2;
/// How long one run should take, in seconds.
const RUN: f64 = 0.02;
/// Footprints that take longer than this to read are left out.
const LONGEST_READ: f64 = 0.4;

/// A device that is ready to be measured.
pub struct Bench {
    gpu: Gpu,
    nvml: Option<Nvml>,
    quick: bool,
}

impl Bench {
    /// Opens a device.
    ///
    /// # Errors
    /// What the driver refused.
    pub fn open(ordinal: u32, quick: bool) -> Result<Bench> {
        let gpu = Gpu::open(ordinal as i32)?;
        let nvml = Nvml::open(&gpu.bus_id);
        Ok(Bench { gpu, nvml, quick })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.gpu.name
    }

    /// Its PCI address.
    pub fn bus_id(&self) -> &str {
        &self.gpu.bus_id
    }

    /// Free and total bytes of VRAM.
    pub fn free(&self) -> Option<(u64, u64)> {
        self.gpu.memory().ok()
    }

    /// How many steps [`Bench::measure`] takes.
    pub fn steps(&self) -> usize {
        link::STEPS + vram::STEPS + 4
    }

    /// Link and VRAM.
    ///
    /// # Errors
    /// When the driver refuses what all of it needs.
    pub fn measure(&self, out: &mut Out) -> anyhow::Result<[Section; 2]> {
        let gpu = &self.gpu;
        let mut link_section = Section::new(Tier::Link, &gpu.name);
        let mut vram_section = Section::new(Tier::Vram, &gpu.name);
        out.step("link: getting memory");
        let sys = std::path::Path::new("/sys");
        link_section.fact("address", gpu.bus_id.clone());
        bus::describe(sys, &gpu.bus_id, &bus::our_cpus(), &mut link_section);
        let (free, _) = gpu.memory()?;
        vram_section.fact("free", crate::size::human(free));
        let whole = |bytes: f64| (bytes as u64) >> 21 << 21;
        let vram_len = whole((free / 4).min(2 << 30) as f64);
        let vram = Vram::new(gpu, vram_len)?;
        let word = Vram::new(gpu, 256)?;
        let guess = site::guess(gpu, &vram)?;

        let most: u64 = if self.quick { 2 << 30 } else { 16 << 30 };
        let room = most.min(Machine::look().available / 4) as f64;
        let host_len = whole(room.min(guess * LONGEST_READ)).max(64 << 20);
        let area = site::host_memory(gpu, host_len)?;
        let host = Registered::new(gpu, &area)?;
        let site = Site {
            gpu,
            host: &host,
            host_len,
            vram: &vram,
            out: word.address,
        };
        let block = whole(guess * RUN)
            .clamp(16 << 20, 1 << 30)
            .min(host_len / 2)
            .min(vram_len);
        link_section.fact(
            "measured with",
            format!("{} at a time", crate::size::human(block)),
        );
        let mut watch = Watch::new(self.nvml.as_ref(), &gpu.bus_id);
        let mut rounds = Rounds::new(&site, block)?;
        let count = if self.quick { ROUNDS_QUICK } else { ROUNDS };
        let mut some_rounds = |watch: &mut Watch, out: &mut Out| {
            out.step("link: copies, and kernels in host memory");
            rounds.go(count);
            watch.under_load(&site, block)
        };
        some_rounds(&mut watch, out)?;
        link::measure(self, &site, block, &mut watch, &mut link_section, out)?;
        some_rounds(&mut watch, out)?;
        vram::measure(self, &site, &mut vram_section, out);
        some_rounds(&mut watch, out)?;
        // First in the table, and all of it under the fastest link that was seen.
        let others = std::mem::take(&mut link_section.figures);
        rounds.end(watch.limit(), &mut link_section, out);
        link_section.figures.extend(others);
        watch.end(&mut link_section);
        out.section(&link_section);
        out.section(&vram_section);
        Ok([link_section, vram_section])
    }

    /// What pinning costs by each method, as figures of host RAM.
    pub fn pinning(&self, section: &mut Section, out: &mut Out) {
        out.step("host RAM: pinning");
        let gpu = &self.gpu;
        let most: u64 = if self.quick { 256 << 20 } else { 1 << 30 };
        let bytes = most.min(Machine::look().available / 8) >> 21 << 21;
        let length = bytes as usize;
        let runs = if self.quick { 2 } else { 3 };
        let timed = |run: &dyn Fn() -> anyhow::Result<f64>| -> anyhow::Result<Vec<f64>> {
            (0..runs).map(|_| run()).collect()
        };
        let seconds_of = |begin: Instant| begin.elapsed().as_secs_f64();
        let register = |huge: bool, with_pages: bool| {
            move || -> anyhow::Result<f64> {
                let area = Area::new(length, huge)?;
                let begin = Instant::now();
                area.populate(4)?;
                let begin = if with_pages { begin } else { Instant::now() };
                let registered = Registered::new(gpu, &area)?;
                let seconds = seconds_of(begin);
                drop(registered);
                Ok(seconds)
            }
        };
        let host_alloc = || -> anyhow::Result<f64> {
            let begin = Instant::now();
            memory::host_alloc(gpu, length)?;
            Ok(seconds_of(begin))
        };
        let create = || -> anyhow::Result<f64> {
            let begin = Instant::now();
            let pieces: Result<Vec<Piece>> = (0..length / (64 << 20))
                .map(|_| Piece::new(gpu, Location::Host, 64 << 20))
                .collect();
            let seconds = seconds_of(begin);
            pieces?;
            Ok(seconds)
        };
        let whole = bytes / (64 << 20) * (64 << 20);
        for (id, label, bytes, samples) in [
            (
                "pin.host_alloc",
                "pin: cuMemHostAlloc and free",
                bytes,
                timed(&host_alloc),
            ),
            (
                "pin.create",
                "pin: cuMemCreate on the host, 64 MiB",
                whole,
                timed(&create),
            ),
            (
                "pin.register",
                "pin: get huge pages, 4 threads, and register",
                bytes,
                timed(&register(true, true)),
            ),
            (
                "pin.register.huge",
                "pin: register huge pages that are there",
                bytes,
                timed(&register(true, false)),
            ),
            (
                "pin.register.small",
                "pin: register 4 KiB pages that are there",
                bytes,
                timed(&register(false, false)),
            ),
        ] {
            let figure = match samples {
                Ok(samples) => super::figure::Figure::rate(id, label, bytes, &samples, None),
                Err(error) => {
                    super::figure::Figure::failed(id, label, super::figure::Unit::Rate, error)
                }
            };
            out.figure(section, figure);
        }
    }

    /// From a disk's file to VRAM and back, through pinned buffers.
    pub fn through(&self, disk: &mut Disk, section: &mut Section, out: &mut Out) {
        out.step("disk to VRAM and back");
        through::measure(&self.gpu, self.quick, disk, section, out);
    }
}
