//! What one process holds.

use std::sync::atomic::Ordering::SeqCst;

use super::{Ledger, control};
use crate::sync::{AtomicU64, DEVICES};

/// What is live of one process, one device or all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Live {
    /// Allocations.
    pub allocations: u64,
    /// Those with bytes in a tier, by [`Tier`]: one that lies in both counts in both.
    pub parts: [u64; 2],
    /// Bytes in a tier.
    pub bytes: [u64; 2],
}

/// Bit of [`Seat::owner`] that says: the low half is the pid of a process that is clearing this seat of a dead owner.
pub(crate) const REAPING: u64 = 1 << 63;

/// What one process holds.
#[repr(C)]
pub(crate) struct Seat {
    /// 0: free; a pid; or [`REAPING`] and the pid of who clears it.
    pub(crate) owner: AtomicU64,
    pub(super) start: AtomicU64,
    /// Which program sat down (`alive::image`); 0 where that cannot be told.
    pub(crate) image: AtomicU64,
    pub(crate) held: [[Held; 2]; DEVICES],
    pub(super) parts: [[AtomicU64; PARTS]; DEVICES],
    /// Live allocations. What a dead process leaves here is not read, and cleared by who sits down next.
    pub(super) live: [Count; DEVICES],
    pub(super) answer: control::Words,
    /// [`Pace`](super::Pace), as the two tiers and the step.
    pub(super) pace: [[AtomicU64; 3]; DEVICES],
}

/// [`Live`], in the ledger.
#[repr(C)]
pub(crate) struct Count {
    pub(super) allocations: AtomicU64,
    pub(super) parts: [AtomicU64; 2],
    pub(super) bytes: [AtomicU64; 2],
}

/// Bytes of one tier on one device.
#[repr(C)]
pub(crate) struct Held {
    pub(crate) bytes: AtomicU64,
    pub(crate) pending: AtomicU64,
    /// The part of `bytes` that no allocation uses: freed backing, kept for reuse.
    pub(super) spare: AtomicU64,
}

/// Which budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tier {
    /// The device's own memory: limited per device.
    Vram = 0,
    /// Pinned host RAM: limited over all devices together.
    Host = 1,
}

/// Memory that the driver holds for the program, by name. It is said, not limited: what counts against a budget is in
/// that tier's bytes besides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Part {
    /// Arrays and mipmapped arrays: part of the VRAM bytes.
    Arrays = 0,
    /// Variables of modules and stacks of kernels: part of the VRAM bytes.
    Code = 1,
    /// Host memory that the program had the driver allocate: part of the host bytes.
    Pinned = 2,
    /// The program's own memory, registered: part of the host bytes. Unlike all other host memory the cgroup sees it.
    Registered = 3,
    /// Managed memory: the driver decides where it is.
    Managed = 4,
    /// Memory of other interfaces, imported: it is there whether or not it is imported.
    External = 5,
}

/// How many there are.
pub(super) const PARTS: usize = 6;

impl Part {
    /// The budget that it counts against.
    pub fn tier(self) -> Option<Tier> {
        match self {
            Part::Arrays | Part::Code => Some(Tier::Vram),
            Part::Pinned | Part::Registered => Some(Tier::Host),
            Part::Managed | Part::External => None,
        }
    }
}

impl Seat {
    /// Nothing is live in a process that has just sat down.
    pub(super) fn begin(&self, ledger: &Ledger) {
        self.answer.begin(ledger);
        for word in self.pace.iter().flatten() {
            word.store(0, SeqCst);
        }
        for count in &self.live {
            count.allocations.store(0, SeqCst);
            for number in count.parts.iter().chain(&count.bytes) {
                number.store(0, SeqCst);
            }
        }
    }

    pub(super) fn clear(&self) {
        for held in self.held.iter().flatten() {
            held.bytes.store(0, SeqCst);
            held.pending.store(0, SeqCst);
            held.spare.store(0, SeqCst);
        }
        for part in self.parts.iter().flatten() {
            part.store(0, SeqCst);
        }
    }
}
