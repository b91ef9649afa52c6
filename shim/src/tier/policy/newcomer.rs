//! What a new allocation deserves before anything is known of it: guessed from its size, and from others of that size.

use greenboost_wire::ledger::Tier;

use super::clock::Clock;
use super::extent::{Allocation, Extent};
use super::plan::{HOTTER, STAKE, STEPS};
use super::{Move, Policy};

impl Policy {
    /// What should go down for a new allocation of `bytes`, of which `room` find place in VRAM already. None if it does
    /// not deserve it.
    pub fn newcomer(&mut self, bytes: u64, room: u64) -> Vec<Move> {
        let Some(mut need) = bytes.checked_sub(room).filter(|n| *n > 0) else {
            return Vec::new();
        };
        let expected = self.expected(bytes);
        let mut credit = self.account.credit();
        let mut moves = Vec::new();
        if expected == 0.0 || self.account.time() < self.retry {
            return moves;
        }
        let (_, vram) = self.candidates();
        for c in vram {
            if need == 0 || expected <= HOTTER * c.heat {
                break;
            }
            // Of what nobody knows anything, the larger is the colder.
            if c.heat == 0.0 && c.whole <= bytes {
                continue;
            }
            let cost = self.costs.moving(c.bytes);
            let used = c.bytes.min(need);
            let gain = expected * used as f64 - c.heat * c.bytes as f64;
            if gain * self.costs.apart() * STEPS < cost {
                break;
            }
            credit -= STAKE * cost;
            if credit < 0.0 {
                break;
            }
            need -= used;
            moves.push(self.to(&c, Tier::Host));
        }
        self.pending = !moves.is_empty();
        moves
    }

    /// Uses per step of each byte of a new allocation, guessed: as much as others of its size; of a new size, small and
    /// late is hot (a KV cache, scratch), huge is cold (weights).
    fn expected(&self, bytes: u64) -> f64 {
        let class = class(bytes);
        let (mut heat, mut count, mut live) = (0.0, 0, 0);
        for a in &self.allocations {
            let size = a.extents.last().map_or(0, |e| e.end - a.base);
            live += size;
            let touched = a.extents.iter().any(Extent::touched);
            if touched && self::class(size) == class {
                let used: f64 = a
                    .extents
                    .iter()
                    .map(|e| f64::from(e.value(&self.clock)) * e.length() as f64)
                    .sum();
                heat += used / size.max(1) as f64;
                count += 1;
            }
        }
        match self.classes.0[class] {
            _ if count > 0 => heat / f64::from(count),
            Some(heat) => f64::from(heat),
            None if bytes <= live / 2 => 1.0,
            None => 0.0,
        }
    }
}

/// Sizes that are alike: a quarter of an octave.
fn class(bytes: u64) -> usize {
    let bytes = bytes.max(4);
    let octave = bytes.ilog2();
    (octave * 4) as usize + (bytes >> (octave - 2) & 3) as usize
}

/// How hot allocations of each size were that are gone.
#[derive(Debug)]
pub struct Classes([Option<f32>; 256]);

impl Default for Classes {
    fn default() -> Classes {
        Classes([None; 256])
    }
}

impl Classes {
    /// An allocation is gone.
    pub fn remember(&mut self, gone: &Allocation, clock: &Clock) {
        let size = gone.extents.last().map_or(0, |e| e.end - gone.base);
        let used: f32 = gone
            .extents
            .iter()
            .map(|e| e.value(clock) * (e.length() as f32 / size.max(1) as f32))
            .sum();
        let known = &mut self.0[class(size)];
        *known = Some(known.map_or(used, |old| (old + used) / 2.0));
    }
}
