//! What moves have earned. The measure is first come, first served: what it would have on Host where we have VRAM is
//! earned at each use, what we have on Host and it in VRAM is lost, and moves are paid for. Moves that lead away from it
//! need credit; moves that lead back have been paid for in advance. So whatever the program does, all that can be lost
//! is a fraction of a second ([`GRANT`], what evident moves may risk besides, and what is lost until it is noticed) and
//! [`SHARE`] of the time.

use greenboost_wire::ledger::Tier;

use super::Costs;
use super::extent::{Allocation, Chunk};

/// Seconds that may be risked before anything is earned.
const GRANT: f64 = 0.08;
/// The part of all time that may be risked besides.
const SHARE: f64 = 0.01;
/// Seconds that can be saved up: what was earned long ago is no reason to move now.
const MOST: f64 = 2.0;

/// What was earned, and what is at stake.
#[derive(Debug)]
pub struct Account {
    costs: Costs,
    balance: f64,
    /// Earned beyond [`MOST`].
    beyond: f64,
    began: Option<f64>,
    now: f64,
    /// Bytes on Host that would be in VRAM.
    down: u64,
    /// Bytes in VRAM that would be on Host.
    up: u64,
    /// Seconds that leading all of them back would take.
    back: f64,
}

impl Account {
    pub fn new(costs: Costs) -> Account {
        Account {
            costs,
            balance: 0.0,
            beyond: 0.0,
            began: None,
            now: 0.0,
            down: 0,
            up: 0,
            back: 0.0,
        }
    }

    /// It is `now`, seconds.
    pub fn at(&mut self, now: f64) {
        let began = *self.began.get_or_insert(now);
        self.now = self.now.max(now).max(began);
    }

    /// Seconds that may be risked; negative when too much has been lost.
    pub fn credit(&self) -> f64 {
        let elapsed = self.began.map_or(0.0, |began| self.now - began);
        self.balance + GRANT + SHARE * elapsed - self.back
    }

    /// Bytes of VRAM that moves have left free: more went down than up.
    pub fn owed(&self) -> i64 {
        self.down.saturating_sub(self.up) as i64
    }

    /// The last time it was told.
    pub fn time(&self) -> f64 {
        self.now
    }

    /// Seconds earned in all.
    pub fn total(&self) -> f64 {
        self.balance + self.beyond
    }

    /// An extent was used, of which `off` bytes more are on Host than would be.
    pub fn used(&mut self, off: i64, times: f64) {
        if off == 0 {
            return;
        }
        self.balance -= off as f64 * times * self.costs.apart();
        if self.balance > MOST {
            self.beyond += self.balance - MOST;
            self.balance = MOST;
        }
    }

    /// So many seconds went into a move or an attempt at one.
    pub fn paid(&mut self, seconds: f64) {
        self.balance -= seconds;
    }

    /// A new allocation: where would its chunks be if nothing had been moved? What was demoted would be where it went;
    /// what was promoted would leave it room. Its tail goes to Host first.
    pub fn born(&mut self, allocation: &mut Allocation) {
        for index in (0..allocation.chunks.len()).rev() {
            let chunk = &mut allocation.chunks[index];
            let room = self.down.abs_diff(self.up).min(chunk.bytes);
            match chunk.tier {
                Tier::Vram if self.down > self.up => chunk.origin = room,
                Tier::Host if self.up > self.down => chunk.origin = chunk.bytes - room,
                _ => continue,
            }
            self.count(chunk, true);
            allocation.tally_chunk(index);
        }
    }

    /// An allocation is gone.
    pub fn died(&mut self, allocation: &Allocation) {
        allocation.chunks.iter().for_each(|c| self.count(c, false));
    }

    /// A chunk was moved.
    pub fn moved(&mut self, allocation: &mut Allocation, index: usize, to: Tier) {
        let Some(chunk) = allocation.chunks.get_mut(index).filter(|c| c.tier != to) else {
            return;
        };
        self.count(chunk, false);
        chunk.tier = to;
        if std::mem::take(&mut chunk.shed) && to == Tier::Host {
            chunk.origin = chunk.bytes;
        } else {
            self.balance -= self.costs.moving(chunk.bytes);
        }
        self.count(chunk, true);
        allocation.tally_chunk(index);
    }

    fn count(&mut self, chunk: &Chunk, there: bool) {
        let off = chunk.off(chunk.tier);
        let side = if off > 0 {
            &mut self.down
        } else {
            &mut self.up
        };
        let cost = self.costs.moving(chunk.bytes) * off.unsigned_abs() as f64 / chunk.bytes as f64;
        if there {
            *side += off.unsigned_abs();
            self.back += cost;
        } else {
            *side -= off.unsigned_abs();
            self.back -= cost;
        }
        if self.down == 0 && self.up == 0 {
            self.back = 0.0;
        }
    }
}
