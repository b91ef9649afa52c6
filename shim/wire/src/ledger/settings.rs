//! What the launcher decided, and what has been wished since.

use std::sync::atomic::Ordering::SeqCst;

use super::Ledger;

/// What the launcher decided. The limits can change while the job runs; the rest is written once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// How much VRAM the job may hold on each device.
    pub vram_limit: VramLimit,
    /// Host bytes that the job may pin, over all devices.
    pub ram_limit: u64,
    /// Whether allocations may spill to host RAM.
    pub spill: bool,
    /// What memory queries report.
    pub report: Report,
    /// Who gets VRAM.
    pub placement: Placement,
    /// Whether spilled memory is copied into VRAM ahead of its use.
    pub staging: Staging,
}

/// The VRAM limit before a device is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VramLimit {
    /// What is free when the first process of the job sees the device, less a small reserve.
    Free,
    /// Bytes, clamped to the card.
    Bytes(u64),
    /// Hundredths of a per cent of the device's total.
    Share(u64),
}

/// What `cuMemGetInfo`, `cuDeviceTotalMem` and NVML say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Report {
    /// The budgets of all tiers together.
    Extended,
    /// The VRAM limit alone.
    Physical,
}

/// Who gets VRAM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Placement {
    /// What is used most, whenever it was allocated: chunks move.
    #[default]
    Auto,
    /// What comes first; nothing ever moves.
    FirstFit,
}

/// Whether spilled memory is copied into VRAM ahead of its use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Staging {
    /// Never: kernels read it over the link.
    #[default]
    Off,
    /// Where it pays.
    Auto,
}

/// The highest two bits of a wish in the ledger say which kind it is, so that it is one word.
const KIND: u32 = 62;
const VALUE: u64 = (1 << KIND) - 1;

impl VramLimit {
    /// The limit of a device with `total` bytes; `None` when it depends on what is free.
    pub fn of(self, total: u64) -> Option<u64> {
        match self {
            VramLimit::Free => None,
            VramLimit::Bytes(bytes) => Some(bytes.min(total)),
            VramLimit::Share(share) => {
                Some((u128::from(total) * u128::from(share.min(10_000)) / 10_000) as u64)
            }
        }
    }

    pub(super) fn word(self) -> u64 {
        match self {
            VramLimit::Free => 0,
            VramLimit::Bytes(n) => 1 << KIND | n.min(VALUE),
            VramLimit::Share(n) => 2 << KIND | n.min(VALUE),
        }
    }

    fn of_word(word: u64) -> VramLimit {
        match word >> KIND {
            1 => VramLimit::Bytes(word & VALUE),
            2 => VramLimit::Share(word & VALUE),
            _ => VramLimit::Free,
        }
    }
}

impl Ledger {
    /// The launcher's settings, with the limits that hold now.
    pub fn settings(&self) -> Settings {
        Settings {
            vram_limit: VramLimit::of_word(self.vram_wish.load(SeqCst)),
            ram_limit: self.ram_limit.load(SeqCst),
            spill: self.spill.load(SeqCst) != 0,
            report: match self.report.load(SeqCst) {
                1 => Report::Physical,
                _ => Report::Extended,
            },
            placement: match self.placement.load(SeqCst) {
                1 => Placement::FirstFit,
                _ => Placement::Auto,
            },
            staging: match self.staging.load(SeqCst) {
                1 => Staging::Auto,
                _ => Staging::Off,
            },
        }
    }

    /// Writes them into a new ledger.
    pub(super) fn begin(&self, settings: Settings) {
        self.vram_wish.store(settings.vram_limit.word(), SeqCst);
        self.ram_limit.store(settings.ram_limit, SeqCst);
        self.spill.store(settings.spill.into(), SeqCst);
        let physical = settings.report == Report::Physical;
        self.report.store(physical.into(), SeqCst);
        let first_fit = settings.placement == Placement::FirstFit;
        self.placement.store(first_fit.into(), SeqCst);
        let staged = settings.staging == Staging::Auto;
        self.staging.store(staged.into(), SeqCst);
    }
}
