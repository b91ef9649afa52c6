//! What to move: hot chunks up, the coldest down, as long as it is earned back soon.

use greenboost_wire::ledger::Tier;

use super::clock::Clock;
use super::extent::{Allocation, Chunk};
use super::{Move, Policy, Room};

/// Steps within which a move has to be earned back.
pub(super) const STEPS: f64 = 4.0;
/// Steps that a program must have run before what it used over a long time counts.
const LONG: u64 = 32;
/// Steps within which what is used more over a long time has to be earned back, at most.
const LONGEST: f64 = 128.0;
/// A chunk has to be so many times as hot as the ones that go down for it.
pub(super) const HOTTER: f64 = 1.35;
/// How much of the heat of bytes counts that were named in one step only.
const ONCE: f64 = 0.5;
/// What moves that lead away from first come, first served put at stake, in costs of the move: the move, the way back,
/// and what is lost until that is known to be right.
pub(super) const STAKE: f64 = 3.0;
/// Moves that earn so many times their cost within [`STEPS`] are evident, 1 by that number,
const EVIDENT: f64 = 0.25;
/// and may risk so many seconds more.
const SURE: f64 = 0.12;
/// Seconds lost beyond what may be until everything goes back, however hot what took its place.
const DEEP: f64 = 0.05;
/// Candidates that are not worth their move, one after the other, until no more are tried.
const TRIES: usize = 16;

/// A chunk that may be moved.
#[derive(Clone, Copy, Debug)]
pub(super) struct Candidate {
    allocation: usize,
    chunk: usize,
    pub(super) bytes: u64,
    /// Seconds that a move takes, as much for each byte as with all of its allocation: the small chunks at the end of one
    /// are not left behind.
    cost: f64,
    /// Bytes of its allocation.
    pub(super) whole: u64,
    /// More of it would be on Host than in VRAM if nothing had been moved.
    origin: Tier,
    /// The part by which a move leads away from there; negative if it leads back.
    away: f64,
    /// Uses of each byte per step.
    pub(super) heat: f64,
    /// The same, less what was seen in one step only.
    sure: f64,
    /// Uses of each byte per step over a long time.
    life: f64,
    /// The heat, also where `heat` is that of a long time.
    now: f64,
}

/// Moves that are made together or not at all.
struct Swap {
    moves: Vec<(Candidate, Tier)>,
    cost: f64,
    /// Uses of bytes per step that cross the link no more.
    gain: f64,
    /// Seconds that lead away from where first come, first served would have them.
    away: f64,
}

impl Swap {
    fn add(&mut self, candidate: Candidate, to: Tier) {
        let cost = candidate.cost;
        self.cost += cost;
        self.away += cost * candidate.away;
        self.gain += match to {
            Tier::Vram => candidate.sure * candidate.bytes as f64,
            Tier::Host => -candidate.heat * candidate.bytes as f64,
        };
        self.moves.push((candidate, to));
    }
}

impl Policy {
    /// What to move now, at most what takes `time_box` seconds; best first, and so that all up to any point can be done
    /// without the rest. With less VRAM than is used, what has to leave comes first.
    pub fn plan(&mut self, room: Room, now: f64, time_box: f64) -> Vec<Move> {
        self.account.at(now);
        if now < self.retry || (!self.stale && self.planned == Some(room)) {
            return Vec::new();
        }
        // What was to go and did not is the program's again.
        let chunks = self.allocations.iter_mut().flat_map(|a| &mut a.chunks);
        chunks.for_each(|c| c.shed = false);
        let (host, mut vram) = self.candidates();
        if self.clock.young() {
            // What the first step has not come to yet will be used at least once.
            vram.iter_mut().for_each(|c| c.heat += 1.0);
        }
        let mut moves = Vec::new();
        let mut left = time_box - self.costs.drain;
        let mut room = room;
        let planned = room;

        let mut down = 0;
        while room.vram < 0
            && let Some(c) = vram.get(down)
            && c.bytes <= room.host
            && (moves.is_empty() || self.costs.moving(c.bytes) <= left)
        {
            self.allocations[c.allocation].chunks[c.chunk].shed = true;
            moves.push(self.to(c, Tier::Host));
            left -= self.costs.moving(c.bytes);
            room.vram += c.bytes as i64;
            room.host -= c.bytes;
            down += 1;
        }
        vram.drain(..down);

        let keep = i64::try_from(room.keep).unwrap_or(i64::MAX);
        room.vram = room
            .vram
            .saturating_sub(keep)
            .max(room.vram.min(self.account.owed()));
        let more = room.vram < 0
            || if self.account.credit() < -SURE {
                self.retreat(host, vram, room, left, &mut moves)
            } else {
                self.swaps(&host, &vram, room, left, STEPS, &mut moves)
                    || (moves.is_empty() && self.lifelong(host, vram, room, left, &mut moves))
            };
        (self.stale, self.planned) = (more, Some(planned));
        self.planned_at = self.clock.traffic().max(self.clock.last());
        self.pending = !moves.is_empty();
        moves
    }

    /// Chunks to send down until `bytes` have left VRAM, or all have that can: the coldest first.
    pub fn shrink(&mut self, bytes: u64) -> Vec<Move> {
        let (_, vram) = self.candidates();
        let mut left = bytes;
        let mut moves = Vec::new();
        for c in vram {
            if left == 0 {
                break;
            }
            left = left.saturating_sub(c.bytes);
            self.allocations[c.allocation].chunks[c.chunk].shed = true;
            moves.push(self.to(&c, Tier::Host));
        }
        moves
    }

    /// Pairs that are worth their cost; true if there are more than the box holds.
    fn swaps(
        &self,
        host: &[Candidate],
        vram: &[Candidate],
        mut room: Room,
        mut left: f64,
        steps: f64,
        moves: &mut Vec<Move>,
    ) -> bool {
        let per_byte = self.costs.apart();
        let mut credit = self.account.credit();
        let (mut next, mut victim, mut tried) = (0, 0, 0);
        while next < host.len() && tried < TRIES {
            let mut swap = Swap {
                moves: Vec::new(),
                cost: 0.0,
                gain: 0.0,
                away: 0.0,
            };
            let first = host[next];
            let mut free = room.vram;
            let (mut victims, mut down) = (victim, 0);
            while free < first.bytes as i64
                && let Some(v) = vram.get(victims)
                && v.heat * HOTTER < first.sure
                && v.now <= first.now + 0.1
            {
                swap.add(*v, Tier::Host);
                free = free.saturating_add(v.bytes as i64);
                down += v.bytes;
                victims += 1;
            }
            if free < first.bytes as i64 || down > room.host {
                // A smaller one may find place.
                (next, tried) = (next + 1, tried + 1);
                continue;
            }
            let mut up = 0;
            let mut taken = next;
            while let Some(c) = host.get(taken)
                && c.bytes as i64 <= free
                && (taken == next || !swap.moves.is_empty())
                && c.sure * c.bytes as f64 * per_byte * steps > c.cost
            {
                swap.add(*c, Tier::Vram);
                free -= c.bytes as i64;
                up += c.bytes;
                taken += 1;
            }
            let worth = swap.gain * per_byte * steps;
            if taken == next || worth <= swap.cost {
                (next, tried) = (next + 1, tried + 1);
                continue;
            }
            // What is earned back at once risks less.
            let risk = (swap.cost / worth).min(1.0);
            let stake = swap.cost + (STAKE - 1.0) * swap.away.max(0.0) * risk;
            let more = if risk < EVIDENT { SURE } else { 0.0 };
            if stake > credit + more {
                (next, tried) = (next + 1, tried + 1);
                continue;
            }
            if swap.cost > left {
                return true;
            }
            (credit, left) = (credit - stake, left - swap.cost);
            (next, victim, tried) = (taken, victims, 0);
            room.vram = free;
            room.host = (room.host - down).saturating_add(up);
            moves.extend(swap.moves.iter().map(|(c, to)| self.to(c, *to)));
        }
        false
    }

    /// What is used more over a long time than what is in VRAM, but too rarely to be hot: part of a phase that comes
    /// again and again, or one of many things that chance picks from. It is earned back in as long as it took to know.
    fn lifelong(
        &self,
        mut host: Vec<Candidate>,
        mut vram: Vec<Candidate>,
        room: Room,
        left: f64,
        moves: &mut Vec<Move>,
    ) -> bool {
        let known = self.step();
        if known < LONG {
            return false;
        }
        for c in host.iter_mut().chain(&mut vram) {
            (c.heat, c.sure) = (c.life, c.life);
        }
        host.sort_by(|a, b| b.sure.total_cmp(&a.sure));
        vram.sort_by(|a, b| a.heat.total_cmp(&b.heat));
        let steps = (known as f64 / 2.0).min(LONGEST);
        let more = self.swaps(&host, &vram, room, left, steps, moves);
        if self.striped && moves.is_empty() {
            *moves = self.stripe(room, left, steps);
        }
        more
    }

    /// More was lost than may be: what would be in VRAM goes back there, for what would not. That costs nothing that has
    /// not been set aside.
    fn retreat(
        &self,
        host: Vec<Candidate>,
        vram: Vec<Candidate>,
        mut room: Room,
        mut left: f64,
        moves: &mut Vec<Move>,
    ) -> bool {
        let all = self.account.credit() < -SURE - DEEP;
        let mut guests = vram.iter().filter(|c| c.origin == Tier::Host);
        for c in host.iter().filter(|c| c.origin == Tier::Vram) {
            let (mut free, mut host, mut cost) = (room.vram, room.host, self.costs.moving(c.bytes));
            let mut group = Vec::new();
            let mut hotter = false;
            while free < c.bytes as i64
                && let Some(g) = guests.next()
            {
                hotter |= g.heat > HOTTER * c.heat;
                free = free.saturating_add(g.bytes as i64);
                cost += self.costs.moving(g.bytes);
                let Some(less) = host.checked_sub(g.bytes) else {
                    return false;
                };
                host = less;
                group.push(self.to(g, Tier::Host));
            }
            if free < c.bytes as i64 || (hotter && !all) {
                return false;
            }
            if cost > left {
                return true;
            }
            left -= cost;
            moves.extend(group);
            moves.push(self.to(c, Tier::Vram));
            (room.vram, room.host) = (free - c.bytes as i64, host.saturating_add(c.bytes));
        }
        false
    }

    pub(super) fn to(&self, candidate: &Candidate, to: Tier) -> Move {
        Move {
            base: self.allocations[candidate.allocation].base,
            chunk: candidate.chunk,
            to,
        }
    }

    /// What may be moved: on Host, the hottest first, and in VRAM, the coldest first.
    pub(super) fn candidates(&self) -> (Vec<Candidate>, Vec<Candidate>) {
        let (mut host, mut vram) = (Vec::new(), Vec::new());
        for (at, allocation) in self.allocations.iter().enumerate() {
            if !allocation.movable {
                continue;
            }
            let heats = heats(allocation, &self.clock);
            let moving = |c: &Chunk| self.costs.moving(c.bytes);
            let rate = allocation.chunks.iter().map(moving).sum::<f64>()
                / (allocation.end() - allocation.base) as f64;
            for (index, (chunk, (heat, sure, life))) in
                allocation.chunks.iter().zip(heats).enumerate()
            {
                let away = |to: Tier| chunk.off(to).unsigned_abs() as f64 / chunk.bytes as f64;
                let candidate = Candidate {
                    allocation: at,
                    chunk: index,
                    bytes: chunk.bytes,
                    cost: chunk.bytes as f64 * rate,
                    whole: allocation.end() - allocation.base,
                    origin: match chunk.origin * 2 < chunk.bytes {
                        true => Tier::Vram,
                        false => Tier::Host,
                    },
                    away: match chunk.tier {
                        Tier::Vram => away(Tier::Host) - away(Tier::Vram),
                        Tier::Host => away(Tier::Vram) - away(Tier::Host),
                    },
                    heat,
                    sure,
                    life,
                    now: heat,
                };
                match chunk.tier {
                    Tier::Host if sure > 0.0 || life > 0.0 => host.push(candidate),
                    Tier::Host => {}
                    Tier::Vram => vram.push(candidate),
                }
            }
        }
        host.sort_by(|a, b| b.sure.total_cmp(&a.sure));
        vram.sort_by(|a, b| a.heat.total_cmp(&b.heat).then(b.whole.cmp(&a.whole)));
        (host, vram)
    }
}

/// Heat of each chunk: all of it, and what is sure.
fn heats(allocation: &Allocation, clock: &Clock) -> Vec<(f64, f64, f64)> {
    let mut heats = vec![(0.0, 0.0, 0.0); allocation.chunks.len()];
    for extent in &allocation.extents {
        let value = f64::from(extent.value(clock));
        let now = f64::from(extent.now(clock));
        // The step that is going on counts as far as it has come.
        let sure = match extent.known(clock) {
            true => value,
            false => ONCE * value,
        };
        let sure = sure.max(ONCE * now).max(now - 1.0);
        let value = value.max(now);
        for index in allocation.chunks_in(extent.start, extent.end) {
            let chunk = &allocation.chunks[index];
            let bytes = extent.end.min(chunk.end()) - extent.start.max(chunk.start);
            let part = bytes as f64 / chunk.bytes as f64;
            heats[index].0 += value * part;
            heats[index].1 += sure * part;
            heats[index].2 += f64::from(extent.lifelong(clock).0) * part;
        }
    }
    heats
}
