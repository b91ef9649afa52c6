//! One device in the ledger.

use std::sync::atomic::Ordering::SeqCst;

use super::largest::{Entry, LARGEST};
use super::{PARTS, Part, Tier, Traffic};
use crate::sync::{AtomicU8, AtomicU32, AtomicU64};

pub(super) const EMPTY: u32 = 0;
pub(super) const CLAIMED: u32 = 1;
pub(super) const READY: u32 = 2;

/// One device, known by its UUID: ordinals differ between processes.
#[repr(C)]
pub struct Device {
    pub(super) state: AtomicU32,
    _pad: AtomicU32,
    uuid: [AtomicU8; 16],
    total: AtomicU64,
    /// As it was found; what holds is `wished`, if anything is.
    vram_limit: AtomicU64,
    /// What the user wishes since, and 1; 0 when nothing.
    wished: AtomicU64,
    refined: AtomicU32,
    _pad2: AtomicU32,
    /// Highest sum of VRAM bytes.
    pub vram_peak: AtomicU64,
    /// Highest sum of host bytes of this device's allocations.
    pub host_peak: AtomicU64,
    /// Allocations made.
    pub allocations: AtomicU64,
    /// Allocations freed, in whatever way but by the end of their process.
    pub frees: AtomicU64,
    /// Bytes of [`Device::allocations`] by tier, and of [`Device::frees`].
    pub(super) allocated: [AtomicU64; 2],
    pub(super) freed: [AtomicU64; 2],
    /// Allocations that were partly or wholly placed outside VRAM.
    pub spills: AtomicU64,
    /// Bytes that those had outside VRAM when they were made.
    pub spilled_bytes: AtomicU64,
    /// `CUDA_ERROR_OUT_OF_MEMORY` given to the program by the shim.
    pub ooms: AtomicU64,
    /// The largest request that got it, bytes.
    pub oom_largest: AtomicU64,
    /// Highest sum of each [`Part`].
    pub(super) part_peaks: [AtomicU64; PARTS],
    pub(super) largest: [Entry; LARGEST],
    /// What was moved, named and waited for.
    pub traffic: Traffic,
}

/// What is known of a device when it enters the ledger, bytes.
#[derive(Clone, Copy, Debug)]
pub struct DeviceFacts {
    /// Physical memory.
    pub total: u64,
    /// The limit that results for this device.
    pub vram_limit: u64,
}

impl Device {
    /// The device's UUID.
    pub fn uuid(&self) -> [u8; 16] {
        std::array::from_fn(|i| self.uuid[i].load(SeqCst))
    }
    /// Physical bytes.
    pub fn total(&self) -> u64 {
        self.total.load(SeqCst)
    }
    /// The VRAM limit that holds now, bytes.
    pub fn vram_limit(&self) -> u64 {
        match self.wished.load(SeqCst) {
            0 => self.vram_limit.load(SeqCst),
            more => more - 1,
        }
    }
    /// The most that was ever held by this name, bytes.
    pub fn part_peak(&self, part: Part) -> u64 {
        self.part_peaks[part as usize].load(SeqCst)
    }
    /// Bytes of the allocations made and freed in a tier, ever.
    pub fn turnover(&self, tier: Tier) -> (u64, u64) {
        let of = |both: &[AtomicU64; 2]| both[tier as usize].load(SeqCst);
        (of(&self.allocated), of(&self.freed))
    }

    /// Lowers the limit that is not wished once, when the job first learns what is free on the device.
    pub fn refine(&self, limit: u64) {
        if self.refined.compare_exchange(0, 1, SeqCst, SeqCst).is_ok() {
            self.vram_limit.fetch_min(limit, SeqCst);
        }
    }

    /// Puts a limit above the one that was found, or takes it away again.
    pub(super) fn wish(&self, limit: Option<u64>) {
        self.wished.store(limit.map_or(0, |l| l + 1), SeqCst);
    }

    /// Writes a new entry.
    pub(super) fn begin(&self, uuid: [u8; 16], facts: DeviceFacts) {
        for (slot, byte) in self.uuid.iter().zip(uuid) {
            slot.store(byte, SeqCst);
        }
        self.total.store(facts.total, SeqCst);
        self.vram_limit.store(facts.vram_limit, SeqCst);
        self.state.store(READY, SeqCst);
    }
}
