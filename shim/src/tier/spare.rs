//! Freed backing, kept for the next allocation of the same class: making host memory costs 170 ms a GiB (measured).
//!
//! What lies here stays reserved in the ledger, is reported to the program as free, and is given up first when a budget
//! or the card has no room.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use greenboost_abi::CUmemGenericAllocationHandle;
use greenboost_wire::ledger::{Place, Tier};

use super::device::{self, Device};
use crate::driver;
use crate::process::Job;

/// A chunk's physical memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// Bytes; one of the classes.
    pub size: u64,
    /// Where it is.
    pub tier: Tier,
    /// The driver's handle, whole.
    pub handle: CUmemGenericAllocationHandle,
}

/// The spare chunks of one device, within bounds.
pub struct Spare {
    most: [u64; 2],
    chunks: Mutex<Vec<Chunk>>,
    /// Bytes of VRAM that serve as slots: given up before an allocation is refused.
    lent: AtomicU64,
    /// Who is told how much is kept: the ledger, and the device's index in it.
    told: Option<(&'static Place, usize)>,
}

impl Spare {
    /// Keeps at most so many bytes of each tier.
    pub fn new(most_vram: u64, most_host: u64, told: Option<(&'static Place, usize)>) -> Spare {
        Spare {
            most: [most_vram, most_host],
            chunks: Mutex::default(),
            lent: AtomicU64::new(0),
            told,
        }
    }

    fn change<T>(&self, change: impl FnOnce(&mut Vec<Chunk>) -> T) -> T {
        let mut chunks = self.chunks.lock().unwrap_or_else(|e| e.into_inner());
        let result = change(&mut chunks);
        if let Some((place, index)) = self.told {
            for tier in [Tier::Vram, Tier::Host] {
                let lent = match tier {
                    Tier::Vram => self.lent.load(SeqCst),
                    Tier::Host => 0,
                };
                place.set_spare(tier, index, sum(&chunks, tier) + lent);
            }
        }
        result
    }

    /// So many bytes of VRAM serve as slots now.
    pub fn lend(&self, bytes: u64) {
        self.lent.store(bytes, SeqCst);
        self.change(|_| ());
    }

    /// Bytes of VRAM that serve as slots.
    pub fn lent(&self) -> u64 {
        self.lent.load(SeqCst)
    }

    /// Bytes kept of a tier.
    pub fn bytes(&self, tier: Tier) -> u64 {
        sum(&self.chunks.lock().unwrap_or_else(|e| e.into_inner()), tier)
    }

    /// A kept chunk of this class, the most recent first.
    pub fn take(&self, tier: Tier, size: u64) -> Option<Chunk> {
        self.change(|chunks| {
            let at = chunks
                .iter()
                .rposition(|c| c.tier == tier && c.size == size)?;
            Some(chunks.remove(at))
        })
    }

    /// Keeps the chunk, or hands it back when there is no room.
    fn keep(&self, chunk: Chunk) -> Option<Chunk> {
        self.change(|chunks| {
            if sum(chunks, chunk.tier) + chunk.size > self.most[chunk.tier as usize] {
                return Some(chunk);
            }
            chunks.push(chunk);
            None
        })
    }

    fn drain(&self, tier: Tier) -> Vec<Chunk> {
        self.change(|chunks| chunks.extract_if(.., |c| c.tier == tier).collect())
    }
}

fn sum(chunks: &[Chunk], tier: Tier) -> u64 {
    chunks
        .iter()
        .filter(|c| c.tier == tier)
        .map(|c| c.size)
        .sum()
}

/// Host memory kept for reuse by all devices, which share its budget, bytes.
pub fn host() -> u64 {
    device::all().map(|d| d.spare.bytes(Tier::Host)).sum()
}

/// Takes back a chunk that is mapped nowhere: keeps it, or releases it and its reservation.
pub fn give(job: &Job, device: &Device, chunk: Chunk) {
    if let Some(chunk) = device.spare.keep(chunk) {
        release(job, device, chunk);
    }
}

/// Releases all spare chunks of a tier. Returns whether there were any.
pub fn trim(job: &Job, device: &Device, tier: Tier) -> bool {
    let chunks = device.spare.drain(tier);
    let any = !chunks.is_empty();
    for chunk in chunks {
        release(job, device, chunk);
    }
    any
}

/// Releases a chunk that is mapped nowhere, and its reservation.
pub fn release(job: &Job, device: &Device, chunk: Chunk) {
    // SAFETY: the chunk is mapped nowhere and left the spares, so nobody else has its handle.
    if unsafe { driver::release(chunk.handle) }.is_ok() {
        job.place.release(chunk.tier, device.index, chunk.size);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(size: u64, tier: Tier, handle: u64) -> Chunk {
        Chunk { size, tier, handle }
    }

    #[test]
    fn keeps_within_bounds_and_by_class() {
        let spare = Spare::new(10, 4, None);
        assert_eq!(spare.keep(chunk(8, Tier::Vram, 1)), None);
        assert_eq!(spare.keep(chunk(2, Tier::Vram, 2)), None);
        assert_eq!(
            spare.keep(chunk(2, Tier::Vram, 3)),
            Some(chunk(2, Tier::Vram, 3))
        );
        assert_eq!(spare.keep(chunk(4, Tier::Host, 4)), None);
        assert_eq!(spare.bytes(Tier::Vram), 10);
        assert_eq!(spare.take(Tier::Host, 2), None);
        assert_eq!(spare.take(Tier::Vram, 2), Some(chunk(2, Tier::Vram, 2)));
        assert_eq!(spare.drain(Tier::Vram), [chunk(8, Tier::Vram, 1)]);
        assert_eq!(spare.bytes(Tier::Host), 4);
    }
}
