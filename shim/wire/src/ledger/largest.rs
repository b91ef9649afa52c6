//! The allocations that have the most bytes outside VRAM.

use std::sync::atomic::Ordering::SeqCst;

use super::Device;
use crate::sync::AtomicU64;

/// Allocations of a device with the most bytes outside VRAM that are remembered.
pub const LARGEST: usize = 8;

/// One of them. Written by whoever makes the turn odd; a process that dies in between leaves an entry that is never read
/// again, which is all that is lost.
#[repr(C)]
pub(crate) struct Entry {
    turn: AtomicU64,
    pid: AtomicU64,
    address: AtomicU64,
    bytes: AtomicU64,
    host_bytes: AtomicU64,
    made: AtomicU64,
    freed: AtomicU64,
}

/// An allocation that was placed outside VRAM, in part or as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spilled {
    /// The process.
    pub pid: u32,
    /// Where the program has it, or had it.
    pub address: u64,
    /// Its size.
    pub bytes: u64,
    /// How much of that is outside VRAM.
    pub host_bytes: u64,
    /// `CLOCK_MONOTONIC` when it was made, nanoseconds.
    pub made: u64,
    /// The same when it was freed, if it was.
    pub freed: Option<u64>,
}

impl Device {
    /// The allocations with the most bytes outside VRAM, the largest first. Best effort: one that is being replaced is
    /// missing.
    pub fn largest(&self) -> Vec<Spilled> {
        let mut all: Vec<Spilled> = self.largest.iter().filter_map(Entry::read).collect();
        all.sort_by_key(|s| std::cmp::Reverse((s.host_bytes, s.bytes)));
        all
    }

    /// Remembers an allocation if it is larger than one that is remembered, by its bytes outside VRAM.
    pub fn remember(&self, spilled: Spilled) {
        let smallest = |e: &&Entry| e.host_bytes.load(SeqCst);
        let even = |e: &&Entry| e.turn.load(SeqCst).is_multiple_of(2);
        let Some(entry) = self.largest.iter().filter(even).min_by_key(smallest) else {
            return;
        };
        if entry.host_bytes.load(SeqCst) < spilled.host_bytes {
            entry.change(|e| {
                e.pid.store(spilled.pid.into(), SeqCst);
                e.address.store(spilled.address, SeqCst);
                e.bytes.store(spilled.bytes, SeqCst);
                e.host_bytes.store(spilled.host_bytes, SeqCst);
                e.made.store(spilled.made, SeqCst);
                e.freed.store(spilled.freed.unwrap_or(0), SeqCst);
            });
        }
    }

    /// More or less of an allocation is on Host now. One that is not remembered is if it is large enough.
    pub fn amend(&self, spilled: Spilled) {
        let is_it = |e: &&Entry| {
            e.address.load(SeqCst) == spilled.address
                && e.pid.load(SeqCst) == u64::from(spilled.pid)
                && e.freed.load(SeqCst) == 0
        };
        match self.largest.iter().find(is_it) {
            Some(entry) => entry.change(|e| e.host_bytes.store(spilled.host_bytes, SeqCst)),
            None => self.remember(spilled),
        }
    }

    /// As a process leaves it that dies while it writes.
    #[cfg(test)]
    pub(crate) fn break_an_entry(&self) {
        self.largest[0].turn.fetch_add(1, SeqCst);
    }

    /// Notes when an allocation was freed, if it is remembered.
    pub fn forget(&self, pid: u32, address: u64, now: u64) {
        let is_it = |e: &&Entry| {
            e.address.load(SeqCst) == address
                && e.pid.load(SeqCst) == u64::from(pid)
                && e.freed.load(SeqCst) == 0
        };
        if let Some(entry) = self.largest.iter().find(is_it) {
            entry.change(|e| e.freed.store(now, SeqCst));
        }
    }
}

impl Entry {
    /// Changes it, unless another process is at it.
    fn change(&self, change: impl FnOnce(&Entry)) {
        let turn = self.turn.load(SeqCst);
        let mine = turn.is_multiple_of(2)
            && self
                .turn
                .compare_exchange(turn, turn + 1, SeqCst, SeqCst)
                .is_ok();
        if mine {
            change(self);
            self.turn.store(turn + 2, SeqCst);
        }
    }

    fn read(&self) -> Option<Spilled> {
        let turn = self.turn.load(SeqCst);
        let freed = self.freed.load(SeqCst);
        let spilled = Spilled {
            pid: self.pid.load(SeqCst) as u32,
            address: self.address.load(SeqCst),
            bytes: self.bytes.load(SeqCst),
            host_bytes: self.host_bytes.load(SeqCst),
            made: self.made.load(SeqCst),
            freed: (freed > 0).then_some(freed),
        };
        let is_whole = turn.is_multiple_of(2) && turn == self.turn.load(SeqCst);
        (is_whole && spilled.host_bytes > 0).then_some(spilled)
    }
}
