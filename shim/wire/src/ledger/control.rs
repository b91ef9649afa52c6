//! What is asked of a job while it runs, and what its processes say to that.
//!
//! A limit changes for new reservations at once. What is held above it goes down when the processes get to it, and each
//! says in its seat which change it has acted on and what it could not move. Nobody waits for anybody: who asks decides
//! how long it looks.

use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use super::seat::Seat;
use super::{Ledger, Place, REAPING, VramLimit, device};
use crate::sync::{AtomicU32, AtomicU64, sleep, wait_on, wake};

/// Why bytes stay where they are, although they should go down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Obstacle {
    /// The job runs with `--placement first-fit`: nothing moves.
    FirstFit = 0,
    /// The process uses a driver function or a device that cannot be followed: nothing of it moves.
    Frozen = 1,
    /// Memory that left the process's sight (exported, shared, registered with a device), or that the driver placed.
    Pinned = 2,
    /// A stream capture is open.
    Capture = 3,
    /// The device did not drain in time.
    Busy = 4,
    /// The next tier has no room.
    NoRoom = 5,
    /// The driver or the machine maps no host memory into ranges.
    Unable = 6,
}

/// How many there are.
pub const OBSTACLES: usize = 7;

impl Obstacle {
    /// All of them, by number.
    pub const ALL: [Obstacle; OBSTACLES] = [
        Obstacle::FirstFit,
        Obstacle::Frozen,
        Obstacle::Pinned,
        Obstacle::Capture,
        Obstacle::Busy,
        Obstacle::NoRoom,
        Obstacle::Unable,
    ];
}

/// What a process said last to what was asked of the job.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// The process.
    pub pid: u32,
    /// It has acted on the change with this number, and on all before it: done it, or given up what it could not do.
    pub changes: u32,
    /// It has parked for the request with this number.
    pub parked: u64,
    /// Nothing has woken it since.
    pub is_asleep: bool,
    /// Bytes that it could not move, by tier and [`Obstacle`].
    pub obstacles: [[u64; OBSTACLES]; 2],
}

/// [`Answer`], in the ledger.
#[repr(C)]
pub(crate) struct Words {
    changes: AtomicU32,
    is_asleep: AtomicU32,
    parked: AtomicU64,
    obstacles: [[AtomicU64; OBSTACLES]; 2],
}

impl Words {
    /// Who has just sat down holds nothing that could be asked for.
    pub(super) fn begin(&self, ledger: &Ledger) {
        for word in self.obstacles.iter().flatten() {
            word.store(0, SeqCst);
        }
        self.is_asleep.store(0, SeqCst);
        self.parked.store(ledger.park_requests.load(SeqCst), SeqCst);
        self.changes.store(ledger.changes.load(SeqCst), SeqCst);
    }

    fn obstruct(&self, obstacles: [[u64; OBSTACLES]; 2]) {
        let words = self.obstacles.iter().flatten();
        for (word, bytes) in words.zip(obstacles.iter().flatten()) {
            word.store(*bytes, SeqCst);
        }
    }

    fn read(&self, pid: u32) -> Answer {
        Answer {
            pid,
            changes: self.changes.load(SeqCst),
            parked: self.parked.load(SeqCst),
            is_asleep: self.is_asleep.load(SeqCst) != 0,
            obstacles: std::array::from_fn(|tier| {
                std::array::from_fn(|o| self.obstacles[tier][o].load(SeqCst))
            }),
        }
    }
}

impl Ledger {
    /// Sets the VRAM limit of every device, those that the job meets later among them. [`VramLimit::Free`] takes back
    /// what was wished before. Returns the number of the change.
    pub fn set_vram_limit(&self, wish: VramLimit) -> u32 {
        self.vram_wish.store(wish.word(), SeqCst);
        for device in &self.devices {
            // One that is being entered just now may have the old wish.
            for _ in 0..1_000 {
                if device.state.load(SeqCst) != device::CLAIMED {
                    break;
                }
                sleep(Duration::from_micros(20));
            }
            if device.state.load(SeqCst) == device::READY {
                device.wish(wish.of(device.total()));
            }
        }
        self.announce()
    }

    /// Sets the limit of host bytes over all devices. Returns the number of the change.
    pub fn set_ram_limit(&self, bytes: u64) -> u32 {
        self.ram_limit.store(bytes, SeqCst);
        self.announce()
    }

    /// Asks every process to send all it can down, until it uses the device again. Returns the number of the request;
    /// it is a change besides.
    pub fn request_park(&self) -> u64 {
        let request = self.park_requests.fetch_add(1, SeqCst) + 1;
        self.announce();
        request
    }

    /// How often that was asked.
    pub fn park_requests(&self) -> u64 {
        self.park_requests.load(SeqCst)
    }

    /// The number of the last change: of limits, or a request to park.
    pub fn changes(&self) -> u32 {
        self.changes.load(SeqCst)
    }

    /// Waits until the number of the last change is another one, but not longer; may return earlier.
    pub fn wait_for_change(&self, seen: u32, longest: Duration) {
        wait_on(&self.changes, seen, longest);
    }

    /// Ends all such waits, though nothing has changed.
    pub fn wake(&self) {
        wake(&self.changes);
    }

    /// What each living process said last.
    pub fn answers(&self) -> Vec<Answer> {
        self.answers_of(|_| true)
    }

    /// What those said that hold memory; the others have nothing to move.
    pub fn holders(&self) -> Vec<Answer> {
        let holds = |seat: &Seat| {
            let held = seat.held.iter().flatten();
            held.map(|h| h.bytes.load(SeqCst)).sum::<u64>() > 0
        };
        self.answers_of(holds)
    }

    fn answers_of(&self, which: impl Fn(&Seat) -> bool) -> Vec<Answer> {
        let mut all = Vec::new();
        for seat in self.used_seats() {
            let owner = seat.owner.load(SeqCst);
            if owner != 0 && owner & REAPING == 0 && which(seat) {
                all.push(seat.answer.read(owner as u32));
            }
        }
        all
    }

    fn announce(&self) -> u32 {
        let change = self.changes.fetch_add(1, SeqCst).wrapping_add(1);
        wake(&self.changes);
        change
    }
}

impl Place {
    /// Says that this process has acted on a change, and what of it could not move. Until then somebody may wait for it.
    pub fn answer(&self, change: u32, obstacles: [[u64; OBSTACLES]; 2]) {
        let answer = &self.seat().answer;
        answer.obstruct(obstacles);
        answer.changes.store(change, SeqCst);
    }

    /// Says that this process has parked for a request, and what of it could not move.
    pub fn parked(&self, request: u64, obstacles: [[u64; OBSTACLES]; 2]) {
        let answer = &self.seat().answer;
        answer.obstruct(obstacles);
        answer.is_asleep.store(1, SeqCst);
        answer.parked.store(request, SeqCst);
    }

    /// Says that this process uses the device again.
    pub fn woken(&self) {
        self.seat().answer.is_asleep.store(0, SeqCst);
    }
}
