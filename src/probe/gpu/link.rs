//! The link: copies, and kernels that use host memory in place.

use std::ffi::CStr;
use std::path::Path;

use super::driver::{Gpu, Stream};
use super::memory::{Registered, Vram};
use super::nvml::Nvml;
use super::{Bench, RUNS, RUNS_QUICK};
use crate::probe::area::Area;
use crate::probe::figure::{Figure, Section, Unit};
use crate::probe::out::Out;
use crate::probe::pcie::{self, Link};
use crate::selftest_program::driver::Result;

const MIB: u64 = 1 << 20;
/// Threads of a block.
const THREADS: u32 = 512;
/// How often the matrix-product pattern reads.
const REREAD: u64 = 8;

/// How many steps [`measure`] takes.
pub const STEPS: usize = 6;

/// The memory that is moved to and fro.
pub struct Site<'g, 'a> {
    pub gpu: &'g Gpu,
    pub host: &'a Registered<'g, 'a>,
    /// Bytes of it.
    pub host_len: u64,
    pub vram: &'a Vram<'g>,
    /// A word in VRAM that nothing writes.
    pub out: u64,
}

/// Seconds of repeated runs, after one that does not count.
pub fn repeat(runs: usize, mut run: impl FnMut() -> Result<f64>) -> Result<Vec<f64>> {
    run()?;
    (0..runs).map(|_| run()).collect()
}

/// A figure of seconds, or of why there are none.
pub fn rate(
    id: &str,
    label: &str,
    bytes: u64,
    seconds: Result<Vec<f64>>,
    limit: Option<f64>,
) -> Figure {
    match seconds {
        Ok(seconds) => Figure::rate(id, label, bytes, &seconds, limit),
        Err(error) => Figure::failed(id, label, Unit::Rate, error),
    }
}

/// What is known about the link before anything crosses it.
pub fn describe(gpu: &Gpu, nvml: Option<&Nvml>, section: &mut Section) {
    let sys = format!("/sys/bus/pci/devices/{}", gpu.bus_id);
    let sys = Path::new(&sys);
    section.fact("address", gpu.bus_id.clone());
    let read = |name: &str| std::fs::read_to_string(sys.join(name)).ok();
    let node = read("numa_node")
        .and_then(|n| n.trim().parse::<i32>().ok())
        .filter(|n| *n >= 0);
    if let Some(node) = node {
        let distances =
            std::fs::read_to_string(format!("/sys/devices/system/node/node{node}/distance"));
        let distances = distances.unwrap_or_default();
        section.fact(
            "NUMA node",
            format!("{node}, distances {}", distances.trim()),
        );
        let here = nodes_of_ours();
        if !here.is_empty() && !here.contains(&node) {
            section.warn(format!(
                "this process runs on NUMA nodes {here:?}, the GPU is on {node}: bind the program there (numactl --cpunodebind={node})"
            ));
        }
    }
    if let Some(kind) = read("iommu_group/type").filter(|kind| kind.trim().starts_with("DMA")) {
        section.fact("IOMMU", format!("translates ({})", kind.trim()));
        section.warn("an IOMMU translates the GPU's accesses: large footprints may be slower (iommu=pt avoids it)");
    }
    let best = nvml
        .and_then(Nvml::best_link)
        .or_else(|| pcie::best_of_sysfs(sys));
    if let Some(best) = best {
        section.fact("link at most", best.to_string());
    }
}

/// Nodes of the processors that we may run on.
fn nodes_of_ours() -> Vec<i32> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mine = status
        .lines()
        .find_map(|line| line.strip_prefix("Cpus_allowed_list:"))
        .map(list)
        .unwrap_or_default();
    let Ok(nodes) = std::fs::read_dir("/sys/devices/system/node") else {
        return Vec::new();
    };
    nodes
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let node = entry
                .file_name()
                .to_str()?
                .strip_prefix("node")?
                .parse()
                .ok()?;
            let theirs = list(&std::fs::read_to_string(entry.path().join("cpulist")).ok()?);
            theirs.iter().any(|cpu| mine.contains(cpu)).then_some(node)
        })
        .collect()
}

/// `0-3,8` as numbers.
fn list(text: &str) -> Vec<u32> {
    text.trim()
        .split(',')
        .filter_map(|part| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            Some(first.trim().parse::<u32>().ok()?..=last.trim().parse().ok()?)
        })
        .flatten()
        .collect()
}

/// The link under load: a copy is kept going while NVML is asked.
///
/// # Errors
/// The driver's.
pub fn under_load(
    site: &Site,
    nvml: Option<&Nvml>,
    bytes: u64,
    section: &mut Section,
) -> Result<Option<Link>> {
    let stream = site.gpu.stream()?;
    for _ in 0..4 {
        stream.upload(site.vram.address, site.host.start(), bytes as usize)?;
    }
    let now = nvml.and_then(Nvml::link);
    let slow = nvml.map(Nvml::throttled).unwrap_or_default();
    stream.synchronize()?;
    let sys = format!("/sys/bus/pci/devices/{}", site.gpu.bus_id);
    let link = now.or_else(|| pcie::of_sysfs(Path::new(&sys)));
    if let Some(link) = link {
        section.fact(
            "link under load",
            format!("{link}, {:.1} GB/s", link.rate() / 1e9),
        );
        let best = nvml
            .and_then(Nvml::best_link)
            .or_else(|| pcie::best_of_sysfs(Path::new(&sys)));
        if let Some(best) = best.filter(|best| link.rate() < 0.99 * best.rate()) {
            section.warn(format!(
                "the link runs as {link}, the card could do {best}: look at slot, riser and firmware settings"
            ));
        }
    }
    if !slow.is_empty() {
        section.warn(format!("the GPU is throttled: {}", slow.join(", ")));
    }
    Ok(link)
}

/// A first idea of the rate, by which the sizes of everything else are chosen.
///
/// # Errors
/// The driver's.
pub fn guess(gpu: &Gpu, vram: &Vram) -> anyhow::Result<f64> {
    let bytes = vram.len.min(16 * MIB);
    let area = host_memory(gpu, bytes)?;
    let host = Registered::new(gpu, &area)?;
    let stream = gpu.stream()?;
    let seconds = repeat(2, || {
        stream.time(|s| s.upload(vram.address, host.start(), bytes as usize))
    })?;
    Ok(bytes as f64 / seconds.iter().copied().fold(f64::INFINITY, f64::min))
}

/// Measures. `block` bytes at a time, which are there on both sides.
///
/// # Errors
/// When the driver refuses what all else needs; single figures that fail say so themselves.
pub fn measure(
    bench: &Bench,
    site: &Site,
    block: u64,
    link: Option<Link>,
    section: &mut Section,
    out: &mut Out,
) -> Result<()> {
    let limit = link.map(Link::rate);
    let runs = if bench.quick { RUNS_QUICK } else { RUNS };
    out.step("link: copies");
    copies(site, block, limit, runs, bench.quick, section, out)?;
    out.step("link: kernels in host memory");
    let kernels = Kernels { site, limit, runs };
    for (id, label, kernel, unit) in [
        (
            "zero.read16",
            "kernel reads 16 B, coalesced",
            c"gb_probe_read16",
            16,
        ),
        (
            "zero.read4",
            "kernel reads 4 B, coalesced",
            c"gb_probe_read4",
            4,
        ),
        (
            "zero.quantised",
            "kernel reads quantised blocks",
            c"gb_probe_quantised",
            18,
        ),
    ] {
        let figure = kernels.read(id, label, kernel, block / unit * unit, unit);
        out.figure(section, figure);
    }
    out.figure(section, kernels.write(block));
    out.step("link: anywhere in host memory");
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
    let seconds = repeat(runs, || beside(site, block));
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

fn copies(
    site: &Site,
    block: u64,
    limit: Option<f64>,
    runs: usize,
    quick: bool,
    section: &mut Section,
    out: &mut Out,
) -> Result<()> {
    let (vram, host) = (site.vram.address, site.host.start());
    let stream = site.gpu.stream()?;
    let length = block as usize;
    let up = repeat(runs, || stream.time(|s| s.upload(vram, host, length)));
    out.figure(
        section,
        rate("dma.h2d", "copy to the GPU", block, up, limit),
    );
    let down = repeat(runs, || stream.time(|s| s.download(host, vram, length)));
    out.figure(
        section,
        rate("dma.d2h", "copy from the GPU", block, down, limit),
    );
    let both = repeat(runs, || both_ways(site, block));
    let twice = limit.map(|l| 2.0 * l);
    out.figure(
        section,
        rate("dma.both", "both at once, in total", block, both, twice),
    );
    let pieces: &[u64] = if quick {
        &[2]
    } else {
        &[0, 1, 2, 16, 128, 1024]
    };
    for mib in pieces {
        let (piece, name) = match mib {
            0 => (64 << 10, "64 KiB".to_string()),
            1 => (256 << 10, "256 KiB".to_string()),
            _ => (mib * MIB, format!("{mib} MiB")),
        };
        // Small pieces need not cover all of it.
        let bytes = block.min(piece * 512) / piece * piece;
        if bytes == 0 {
            continue;
        }
        let id = format!("dma.h2d.{}k", piece >> 10);
        let label = format!("copy to the GPU in pieces of {name}");
        let seconds = repeat(runs, || {
            stream.time(|s| {
                (0..bytes).step_by(piece as usize).try_for_each(|at| {
                    s.upload(vram + at, host.wrapping_add(at as usize), piece as usize)
                })
            })
        });
        out.figure(section, rate(&id, &label, bytes, seconds, limit));
    }
    Ok(())
}

/// Half of the block in each direction, at once.
fn both_ways(site: &Site, block: u64) -> Result<f64> {
    let half = (block / 2) as usize;
    let (up, down) = (site.gpu.stream()?, site.gpu.stream()?);
    let (start, ended) = (site.gpu.event()?, site.gpu.event()?);
    up.time(|up| {
        start.record(up)?;
        down.after(&start)?;
        down.download(
            site.host.start().wrapping_add(half),
            site.vram.address + half as u64,
            half,
        )?;
        ended.record(&down)?;
        up.upload(site.vram.address, site.host.start(), half)?;
        up.after(&ended)
    })
}

/// A copy, while all multiprocessors read VRAM and compute.
fn beside(site: &Site, block: u64) -> Result<f64> {
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

    fn write(&self, bytes: u64) -> Figure {
        let arguments = [self.site.host.address, bytes / 16, 7];
        let seconds = self.run(c"gb_probe_write16", &arguments);
        rate(
            "zero.write16",
            "kernel writes 16 B, coalesced",
            bytes,
            seconds,
            self.limit,
        )
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

/// Host memory for all of that: as much as is wanted, in huge pages near the GPU.
///
/// # Errors
/// When memory is out.
pub fn host_memory(gpu: &Gpu, bytes: u64) -> std::io::Result<Area> {
    let area = Area::new(bytes as usize, true)?;
    let node = gpu.attribute(greenboost_abi::CU_DEVICE_ATTRIBUTE_HOST_NUMA_ID);
    if let Ok(node) = u32::try_from(node) {
        area.prefer_node(node);
    }
    area.populate(4)?;
    Ok(area)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_processors() {
        assert_eq!(list("0-2,5\n"), [0, 1, 2, 5]);
        assert_eq!(list(""), [] as [u32; 0]);
        assert_eq!(list("x"), [] as [u32; 0]);
    }
}
