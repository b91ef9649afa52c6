//! Striping: a kernel that reads VRAM and the link at once takes as long as the slower of the two, so of data that is
//! equally hot each part should have the same share on Host, rather than some all and most nothing.

use greenboost_wire::ledger::Tier;

use super::{Costs, Move, Policy, Room};

/// Swaps in one plan.
const MOST: usize = 64;

/// How much uses may differ to be the same, times: chance, and where in a step they fall.
const ALIKE: f64 = 1.2;

/// A chunk, and the extent that it is most of.
#[derive(Clone, Copy, Debug)]
struct Piece {
    allocation: usize,
    chunk: usize,
    bytes: u64,
    /// Which of the extents.
    whole: usize,
}

/// An extent: bytes, bytes on Host, uses per step over a long time; 0 if the program is elsewhere now.
#[derive(Clone, Copy, Debug)]
struct Whole {
    bytes: f64,
    host: f64,
    uses: f64,
}

impl Whole {
    /// Seconds that a use takes longer with so many bytes more on Host.
    fn longer(&self, more: f64, costs: &Costs) -> f64 {
        let took = |host: f64| ((self.bytes - host) / costs.vram).max(host / costs.link);
        took(self.host + more) - took(self.host)
    }
}

impl Policy {
    /// Swaps that even out what kernels read over the link, as far as that is earned back in `steps`.
    pub(super) fn stripe(&self, room: Room, mut left: f64, steps: f64) -> Vec<Move> {
        let mut wholes = Vec::new();
        let (mut host, mut vram) = (Vec::new(), Vec::new());
        for (at, allocation) in self.allocations.iter().enumerate() {
            let first = wholes.len();
            wholes.extend(allocation.extents.iter().map(|e| Whole {
                bytes: e.length() as f64,
                host: e.on_host as f64,
                uses: match e.step + 1 >= self.clock.step() {
                    true => f64::from(e.lifelong(&self.clock).0),
                    false => 0.0,
                },
            }));
            for (index, chunk) in allocation.chunks.iter().enumerate() {
                let middle = chunk.start + chunk.bytes / 2;
                let Some(whole) = allocation.find(middle).filter(|_| allocation.movable) else {
                    continue;
                };
                let piece = Piece {
                    allocation: at,
                    chunk: index,
                    bytes: chunk.bytes,
                    whole: first + whole,
                };
                match chunk.tier {
                    Tier::Host => host.push(piece),
                    Tier::Vram => vram.push(piece),
                }
            }
        }
        let (mut moves, mut free) = (Vec::new(), room.host);
        let mut credit = self.account.credit();
        while moves.len() < 2 * MOST {
            let saved = |p: &Piece| -wholes[p.whole].longer(-(p.bytes as f64), &self.costs);
            let Some(up) =
                (0..host.len()).max_by(|a, b| saved(&host[*a]).total_cmp(&saved(&host[*b])))
            else {
                break;
            };
            let c = host[up];
            let lost = |p: &Piece| wholes[p.whole].longer(p.bytes as f64, &self.costs);
            let uses = wholes[c.whole].uses;
            let alike = |p: &Piece| {
                let other = wholes[p.whole].uses;
                p.bytes == c.bytes
                    && p.whole != c.whole
                    && other < ALIKE * uses
                    && uses < ALIKE * other
            };
            let Some(down) = (0..vram.len())
                .filter(|d| alike(&vram[*d]))
                .min_by(|a, b| lost(&vram[*a]).total_cmp(&lost(&vram[*b])))
            else {
                break;
            };
            let d = vram[down];
            let cost = 2.0 * self.costs.moving(c.bytes);
            let gain = uses * (saved(&c) - lost(&d));
            if gain * steps < cost || cost > left || 2.0 * cost > credit || d.bytes > free {
                break;
            }
            (left, credit) = (left - cost, credit - 2.0 * cost);
            free = (free - d.bytes).saturating_add(c.bytes);
            wholes[c.whole].host -= c.bytes as f64;
            wholes[d.whole].host += d.bytes as f64;
            for (piece, to) in [(d, Tier::Host), (c, Tier::Vram)] {
                moves.push(Move {
                    base: self.allocations[piece.allocation].base,
                    chunk: piece.chunk,
                    to,
                });
            }
            host.swap_remove(up);
            vram.swap_remove(down);
        }
        moves
    }
}
