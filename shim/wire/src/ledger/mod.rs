//! The ledger: the job's limits, and who holds how much of them.
//!
//! One file of plain atomics, mapped by the launcher and by every process of the job. There is no lock in it, because a
//! process can die at any instruction. Invariants:
//!
//! - what a process holds is written in its own seat and nowhere else, so a dead process can be forgotten as a whole;
//! - a reservation is written down first ([`Held::pending`]) and compared with the limit afterwards, so two processes can
//!   refuse each other for a moment, but never pass together;
//! - totals, counts and peaks that outlive a process are only ever added to.

mod control;
mod device;
mod largest;
mod mapped;
mod place;
mod reap;
mod reserve;
mod seat;
mod settings;
mod sums;
mod traffic;

use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use crate::sync::{AtomicU32, AtomicU64, sleep};
pub use crate::sync::{DEVICES, SEATS};

pub use control::{Answer, OBSTACLES, Obstacle};
pub use device::{Device, DeviceFacts};
pub use largest::{LARGEST, Spilled};
pub use mapped::Mapped;
pub use place::Place;
pub use reserve::Refused;
use seat::PARTS;
pub use seat::{Live, Part, Tier};
pub(crate) use seat::{REAPING, Seat};
pub use settings::{Placement, Report, Settings, Staging, VramLimit};
pub use traffic::{Pace, Traffic};

/// First word of a ledger file: `gbledgr` and the layout's version.
pub const MAGIC: u64 = u64::from_le_bytes(*b"gbledgr\x04");

/// The mapped file.
#[repr(C)]
pub struct Ledger {
    magic: AtomicU64,
    size: AtomicU64,
    vram_wish: AtomicU64,
    ram_limit: AtomicU64,
    spill: AtomicU32,
    report: AtomicU32,
    placement: AtomicU32,
    staging: AtomicU32,
    /// How often something was asked of the running job: a futex.
    changes: AtomicU32,
    park_requests: AtomicU64,
    /// Highest sum of host bytes over all devices.
    pub host_peak: AtomicU64,
    /// Processes that initialised CUDA.
    pub cuda_processes: AtomicU64,
    /// Control records that were not sent, because nobody read or there was no room.
    pub records_lost: AtomicU64,
    /// Seats below this index have been used; the others need not be read.
    pub(crate) seats_used: AtomicU64,
    devices: [Device; DEVICES],
    pub(crate) seats: [Seat; SEATS],
}

impl Ledger {
    /// Index of the device with this UUID; a new one gets the total and the limit that `facts` returns.
    ///
    /// `None` when the table is full or its claimer died half-way (the device is then unlimited to nobody: callers treat
    /// it as out of budget).
    pub fn device_index(
        &self,
        uuid: [u8; 16],
        facts: impl FnOnce() -> DeviceFacts,
    ) -> Option<usize> {
        let mut facts = Some(facts);
        for (index, d) in self.devices.iter().enumerate() {
            if d.state.load(SeqCst) == device::EMPTY
                && d.state
                    .compare_exchange(device::EMPTY, device::CLAIMED, SeqCst, SeqCst)
                    .is_ok()
            {
                let f = facts.take().map(|f| f())?;
                d.begin(uuid, f);
                return Some(index);
            }
            // Another process is filling this entry; that takes microseconds unless it was killed just then.
            for _ in 0..10_000 {
                if d.state.load(SeqCst) == device::READY {
                    break;
                }
                sleep(Duration::from_micros(20));
            }
            if d.state.load(SeqCst) == device::READY && d.uuid() == uuid {
                return Some(index);
            }
        }
        None
    }

    /// The devices seen so far, by index.
    pub fn devices(&self) -> impl Iterator<Item = (usize, &Device)> {
        self.devices
            .iter()
            .enumerate()
            .filter(|(_, d)| d.state.load(SeqCst) == device::READY)
    }

    /// A device by the index that [`Ledger::device_index`] gave.
    pub fn device(&self, index: usize) -> &Device {
        &self.devices[index]
    }
}
