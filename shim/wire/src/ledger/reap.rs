//! Forgetting the dead.

use std::sync::atomic::Ordering::SeqCst;

use super::{Ledger, REAPING, Seat};
use crate::alive;
use crate::sync::process_id;

impl Ledger {
    /// Forgets what dead processes held. Returns how many were found dead.
    ///
    /// Any process of the job may call it at any time. A reaper that dies half-way is itself reaped.
    pub fn reap(&self) -> usize {
        self.reap_with(alive::start_time)
    }

    /// The same, but what the process `last` held when it ended stays: its parent, who is about to hear of its end, has to
    /// tell of that.
    pub fn reap_but(&self, last: u32) -> usize {
        let sat = |seat: &&Seat| seat.owner.load(SeqCst) == u64::from(last);
        let began = |seat: &Seat| seat.start.load(SeqCst);
        let ended = || self.used_seats().iter().find(sat).map(began);
        self.reap_with(|pid| alive::start_time(pid).or_else(|| (pid == last).then(ended).flatten()))
    }

    pub(crate) fn reap_with(&self, start_time: impl Fn(u32) -> Option<u64>) -> usize {
        let me = process_id();
        let mut found = 0;
        for seat in self.used_seats() {
            let owner = seat.owner.load(SeqCst);
            if owner == 0 {
                continue;
            }
            let reaping = owner & REAPING != 0;
            let now = start_time((owner & u64::from(u32::MAX)) as u32);
            // A dead reaper's seat is taken over; a live owner has the start time that it wrote when it sat down.
            let dead = if reaping {
                now.is_none()
            } else {
                now.is_none_or(|t| t != seat.start.load(SeqCst))
                    || replaced(owner as u32, seat.image.load(SeqCst))
            };
            let mine = REAPING | u64::from(me);
            if !dead
                || seat
                    .owner
                    .compare_exchange(owner, mine, SeqCst, SeqCst)
                    .is_err()
            {
                continue;
            }
            seat.clear();
            seat.owner.store(0, SeqCst);
            found += 1;
        }
        found
    }

    /// Whether a seat is being cleared, or taken.
    pub(super) fn clearing(&self) -> bool {
        self.used_seats()
            .iter()
            .any(|seat| seat.owner.load(SeqCst) & REAPING != 0)
    }
}

/// Whether a living process runs another program than the one that sat down: `exec` ends all that the old one held.
fn replaced(pid: u32, image: u64) -> bool {
    let now = if image == 0 { 0 } else { alive::image(pid) };
    now != 0 && now != image
}
