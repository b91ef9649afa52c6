//! What measuring a link needs: memory on both sides, and runs that are timed.

use super::driver::Gpu;
use super::memory::{Registered, Vram};
use crate::probe::area::Area;
use crate::probe::figure::{Figure, Unit};
use crate::selftest_program::driver::Result;

pub const MIB: u64 = 1 << 20;
/// Threads of a block.
pub const THREADS: u32 = 512;

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
