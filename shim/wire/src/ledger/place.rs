//! A process's own place in the ledger.

use std::sync::atomic::Ordering::SeqCst;

use super::seat::{Held, Seat};
use super::{Ledger, Pace, Part, REAPING, Tier};
use crate::alive;
use crate::sync::{Mutex, process_id};

/// This process's place in the ledger.
pub struct Place {
    pub(super) ledger: &'static Ledger,
    pub(super) seat: usize,
    /// Threads of one process take turns, so that they never refuse each other; it guards no driver call and dies with
    /// the process.
    pub(super) turn: Mutex<()>,
}

impl Place {
    /// Sits down. Seats of dead processes are cleared first when none is free; `None` when all are taken by the living.
    pub fn take(ledger: &'static Ledger) -> Option<Place> {
        let pid = process_id();
        let start = alive::start_time(pid)?;
        for attempt in 0..2 {
            for (index, seat) in ledger.seats.iter().enumerate() {
                // While we fill the seat it reads as being reaped by us: nobody else touches it.
                if seat
                    .owner
                    .compare_exchange(0, REAPING | u64::from(pid), SeqCst, SeqCst)
                    .is_ok()
                {
                    ledger.seats_used.fetch_max(index as u64 + 1, SeqCst);
                    seat.clear();
                    seat.begin(ledger);
                    seat.start.store(start, SeqCst);
                    seat.image.store(alive::image(pid), SeqCst);
                    seat.owner.store(pid.into(), SeqCst);
                    return Some(Place {
                        ledger,
                        seat: index,
                        turn: Mutex::new(()),
                    });
                }
            }
            if attempt == 0 {
                ledger.reap();
            }
        }
        None
    }

    /// The ledger it is in.
    pub fn ledger(&self) -> &'static Ledger {
        self.ledger
    }

    pub(super) fn seat(&self) -> &'static Seat {
        &self.ledger.seats[self.seat]
    }

    pub(crate) fn held(&self, tier: Tier, device: usize) -> &Held {
        &self.seat().held[device][tier as usize]
    }

    /// Bytes that this process holds.
    pub fn own(&self, tier: Tier, device: usize) -> u64 {
        self.held(tier, device).bytes.load(SeqCst)
    }

    /// Counts bytes that are held whether or not the limit allows them (memory that the shim does not place).
    pub fn charge(&self, tier: Tier, device: usize, bytes: u64) {
        self.held(tier, device).bytes.fetch_add(bytes, SeqCst);
        self.raise_peaks(tier, device, u64::MAX);
    }

    /// Gives bytes back. More than are held is a fault of the caller and leaves zero.
    pub fn release(&self, tier: Tier, device: usize, bytes: u64) {
        let was = self
            .held(tier, device)
            .bytes
            .fetch_update(SeqCst, SeqCst, |b| Some(b.saturating_sub(bytes)));
        debug_assert!(
            was.is_ok_and(|w| w >= bytes),
            "released {bytes} bytes of {was:?} in {tier:?}"
        );
    }

    /// Says that so many bytes more are held by name. Their tier's bytes are charged besides, by the caller.
    pub fn name(&self, part: Part, device: usize, bytes: u64) {
        self.seat().parts[device][part as usize].fetch_add(bytes, SeqCst);
        let most = self.ledger.part(part, device);
        self.ledger.devices[device].part_peaks[part as usize].fetch_max(most, SeqCst);
    }

    /// Undoes [`Place::name`].
    pub fn unname(&self, part: Part, device: usize, bytes: u64) {
        let _ = self.seat().parts[device][part as usize]
            .fetch_update(SeqCst, SeqCst, |b| Some(b.saturating_sub(bytes)));
    }

    /// Counts an allocation that the program has got, by its bytes in each tier.
    pub fn count(&self, device: usize, bytes: [u64; 2]) {
        let (seat, d) = (&self.seat().live[device], &self.ledger.devices[device]);
        d.allocations.fetch_add(1, SeqCst);
        seat.allocations.fetch_add(1, SeqCst);
        for (tier, bytes) in bytes.into_iter().enumerate().filter(|(_, b)| *b > 0) {
            d.allocated[tier].fetch_add(bytes, SeqCst);
            seat.parts[tier].fetch_add(1, SeqCst);
            seat.bytes[tier].fetch_add(bytes, SeqCst);
        }
    }

    /// Counts that it is freed.
    pub fn uncount(&self, device: usize, bytes: [u64; 2]) {
        let (seat, d) = (&self.seat().live[device], &self.ledger.devices[device]);
        d.frees.fetch_add(1, SeqCst);
        seat.allocations.fetch_sub(1, SeqCst);
        for (tier, bytes) in bytes.into_iter().enumerate().filter(|(_, b)| *b > 0) {
            d.freed[tier].fetch_add(bytes, SeqCst);
            seat.parts[tier].fetch_sub(1, SeqCst);
            seat.bytes[tier].fetch_sub(bytes, SeqCst);
        }
    }

    /// Counts that bytes of a live allocation have moved: so many in each tier before and after.
    pub fn shift(&self, device: usize, before: [u64; 2], after: [u64; 2]) {
        let (seat, d) = (&self.seat().live[device], &self.ledger.devices[device]);
        for (tier, (before, after)) in before.into_iter().zip(after).enumerate() {
            let (more, less) = (after.saturating_sub(before), before.saturating_sub(after));
            d.allocated[tier].fetch_add(more, SeqCst);
            d.freed[tier].fetch_add(less, SeqCst);
            seat.bytes[tier].fetch_add(more, SeqCst);
            seat.bytes[tier].fetch_sub(less, SeqCst);
            match (before, after) {
                (0, 1..) => seat.parts[tier].fetch_add(1, SeqCst),
                (1.., 0) => seat.parts[tier].fetch_sub(1, SeqCst),
                _ => 0,
            };
        }
    }

    /// Says how much of what this process holds is kept for reuse.
    pub fn set_spare(&self, tier: Tier, device: usize, bytes: u64) {
        self.held(tier, device).spare.store(bytes, SeqCst);
    }

    /// Says how this process uses a device now.
    pub fn set_pace(&self, device: usize, pace: Pace) {
        let words = &self.seat().pace[device];
        let values = [pace.heat[0], pace.heat[1], pace.step_nanos];
        for (word, value) in words.iter().zip(values) {
            word.store(value, SeqCst);
        }
    }

    /// Others come and go while the sums are made, so a sum can be too high; but never were more held than `most`.
    pub(super) fn raise_peaks(&self, tier: Tier, device: usize, most: u64) {
        let d = &self.ledger.devices[device];
        let own = self.ledger.used(tier, device).min(most);
        match tier {
            Tier::Vram => d.vram_peak.fetch_max(own, SeqCst),
            Tier::Host => {
                let all = self.ledger.used_host().min(most);
                self.ledger.host_peak.fetch_max(all, SeqCst);
                d.host_peak.fetch_max(own, SeqCst)
            }
        };
    }
}

impl Drop for Place {
    /// Stands up: what the process held is forgotten.
    fn drop(&mut self) {
        let seat = &self.seat();
        seat.clear();
        seat.owner.store(0, SeqCst);
    }
}
