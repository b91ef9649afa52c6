//! Reservations: written down first, compared with the limit afterwards.

use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use super::{Place, Tier};
use crate::sync::{process_id, sleep, spin_loop, yield_now};

/// How often a reservation tries again that only others' unfinished ones stand in the way of. The first tries take
/// microseconds, the rest 50 of them each: enough for a process that the scheduler has put aside.
const TRIES: u32 = 200;

/// The budget has no room for a reservation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Bytes that the whole job holds in that tier.
    pub held: u64,
    /// The limit they were compared with.
    pub limit: u64,
}

impl Place {
    /// Reserves bytes in a tier, exactly: the sum over all processes never exceeds the limit.
    ///
    /// # Errors
    /// [`Refused`] when the living hold too much; nothing is reserved then.
    pub fn reserve(&self, tier: Tier, device: usize, bytes: u64) -> Result<(), Refused> {
        let _turn = self.turn.lock().unwrap_or_else(|e| e.into_inner());
        let held = self.held(tier, device);
        // Whether there was nobody dead, and no seat half cleared, when last looked.
        let mut settled = false;
        let mut tries = 0;
        loop {
            held.pending.fetch_add(bytes, SeqCst);
            // Read after that: whoever lowers the limit and sums up what is claimed then sees one of the two.
            let limit = self.ledger.limit(tier, device);
            if self.ledger.sum(tier, device, true) <= limit {
                held.bytes.fetch_add(bytes, SeqCst);
                held.pending.fetch_sub(bytes, SeqCst);
                self.raise_peaks(tier, device, limit);
                return Ok(());
            }
            held.pending.fetch_sub(bytes, SeqCst);
            let others = self.ledger.sum(tier, device, false);
            let full = others.saturating_add(bytes) > limit;
            if full && settled || tries == TRIES {
                return Err(Refused {
                    held: others,
                    limit,
                });
            }
            // Full, it may be, of the dead, whom another process may be clearing away just now. Not full: only others'
            // reservations in progress stand in the way. They end in microseconds, or their owner was killed in one.
            settled = (full || tries % 32 == 31) && self.ledger.reap() == 0;
            settled = settled && full && !self.ledger.clearing();
            if !settled {
                pause(tries);
            }
            tries += 1;
        }
    }
}

/// Waits before another try: longer and longer, and not as long as other processes do.
fn pause(tries: u32) {
    match tries {
        0..8 => {
            for _ in 0..(1 << tries) * (1 + process_id() % 7) {
                spin_loop();
            }
        }
        8..16 => yield_now(),
        _ => sleep(Duration::from_micros(50)),
    }
}
