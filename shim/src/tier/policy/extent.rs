//! What an address names: the bytes up to the next address of the same allocation that any launch has named, or to its
//! end. llama.cpp puts all weights into one allocation, PyTorch small tensors into segments.
//!
//! Addresses that are named for a moment only (where the next token goes in a KV cache) would cut what lies behind them
//! off from the address that names all of it at each step; so a start that is not named again while the one before it
//! is, is forgotten. Copies and memsets come in pieces: they do not start an extent.

use greenboost_wire::ledger::Tier;

use super::clock::{Clock, NEWEST, halved};

/// Above all addresses: sums of bytes cannot overflow.
const HIGHEST: u64 = 1 << 62;
/// Starts known per allocation; what is named beyond belongs to the start before it.
const STARTS: usize = 4096;
/// Steps that a start is not named, and the one before it is, until it is forgotten: one named in a single step so far,
/// and one named in several (an expert of a mixture may be rare).
const MISSED: (u32, u32) = (4, 64);
/// Steps that are a long time.
const LIFE: f32 = 128.0;
/// Times the usual gap after which an extent is new again: it was another phase.
const ANOTHER: f32 = 8.0;

/// An allocation.
#[derive(Debug)]
pub struct Allocation {
    /// Changes with its extents.
    pub id: u64,
    pub base: u64,
    pub movable: bool,
    pub extents: Vec<Extent>,
    pub chunks: Vec<Chunk>,
}

/// A chunk.
#[derive(Clone, Copy, Debug)]
pub struct Chunk {
    pub start: u64,
    pub bytes: u64,
    pub tier: Tier,
    /// Bytes of it that would be on Host if nothing had been moved.
    pub origin: u64,
    /// It is to go because the budget shrank: it is Host's from then on.
    pub shed: bool,
}

impl Chunk {
    pub fn end(&self) -> u64 {
        self.start + self.bytes
    }

    /// Bytes on Host, more than there would be, if it were in that tier.
    pub fn off(&self, tier: Tier) -> i64 {
        let host = if tier == Tier::Host { self.bytes } else { 0 };
        host as i64 - self.origin as i64
    }
}

/// Bytes that are named together.
#[derive(Clone, Copy, Debug)]
pub struct Extent {
    pub start: u64,
    pub end: u64,
    /// Bytes of it on Host.
    pub on_host: u64,
    /// Bytes of it on Host, less those that would be there if nothing had been moved.
    pub off: i64,
    /// Uses per step that names it, before `step`.
    mean: f32,
    /// Steps from one that names it to the next.
    pub gap: f32,
    /// Uses that count for ever less, over [`LIFE`] steps.
    life: f32,
    /// The step it was first known in.
    born: u32,
    /// Uses per step when `step` began.
    heat: f32,
    /// Uses in `step`.
    uses: f32,
    /// The step that named it last; 0 is none.
    pub step: u32,
    /// The launch that named it last.
    pub op: u32,
    /// Launches that named it in `step`.
    pub launched: u32,
    /// The step before `step` named it too.
    pub again: bool,
    /// This step has come back to it.
    pub twice: bool,
    /// Its bytes were counted for an address inside, or as the end of what was before it, and its start was not named since.
    pub counted: bool,
    /// What the step had named when it was named last.
    pub mark: u64,
    /// A launch has ever named it.
    used: bool,
    /// Steps that named it in this phase of the program.
    seen: u8,
    /// Steps that named the extent before it since.
    missed: u8,
}

/// What is left after so many steps of what counts over a long time: a part of e in [`LIFE`] of them.
fn faded(steps: u32) -> f32 {
    halved(steps as f32 / LIFE * std::f32::consts::LOG2_E)
}

impl Extent {
    fn new(start: u64, end: u64) -> Extent {
        Extent {
            start,
            end,
            on_host: 0,
            off: 0,
            mean: 0.0,
            gap: 1.0,
            life: 0.0,
            born: 0,
            heat: 0.0,
            uses: 0.0,
            step: 0,
            op: 0,
            launched: 0,
            again: false,
            twice: false,
            counted: false,
            mark: 0,
            used: false,
            seen: 0,
            missed: 0,
        }
    }

    pub fn length(&self) -> u64 {
        self.end - self.start
    }

    /// Uses per step, as of the last step that is over.
    pub fn value(&self, clock: &Clock) -> f32 {
        match self.fresh(clock) {
            true => self.blend(clock) / self.gap * clock.left(self),
            false => self.heat,
        }
    }

    /// Uses per step over a long time, and the steps that it is known for.
    pub fn lifelong(&self, clock: &Clock) -> (f32, u32) {
        let age = clock.step() - self.born;
        let left = |steps: u32| faded(steps);
        let uses = (self.life + self.uses) * left(clock.step() - self.step);
        (uses / (LIFE * (1.0 - left(age + 1))), age)
    }

    /// Uses in the step that is going on.
    pub fn now(&self, clock: &Clock) -> f32 {
        if self.fresh(clock) { 0.0 } else { self.uses }
    }

    /// Anything is known of it.
    pub fn touched(&self) -> bool {
        self.step > 0
    }

    /// Uses per step that names it, `step` with the others.
    fn blend(&self, clock: &Clock) -> f32 {
        self.mean + (self.uses / f32::from(clock.turns(self)) - self.mean) * self.weight()
    }

    /// The first steps of a phase count as much as each other, then the newest for ever the same.
    fn weight(&self) -> f32 {
        (1.0 / f32::from(self.seen.max(1))).max(NEWEST)
    }

    /// It was named in more than one step that is over, so it may be named again.
    pub fn known(&self, clock: &Clock) -> bool {
        let before = self.seen.saturating_sub(u8::from(!self.fresh(clock)));
        before.saturating_add(clock.turns(self)) > 2
    }

    /// This step has not named it yet.
    pub fn fresh(&self, clock: &Clock) -> bool {
        self.step != clock.step()
    }

    /// The launch before this one named it too.
    pub fn in_a_row(&self, op: u32, clock: &Clock) -> bool {
        !self.fresh(clock) && op.wrapping_sub(self.op) <= 1
    }

    fn enter(&mut self, clock: &Clock) {
        if !self.fresh(clock) {
            return;
        }
        self.heat = self.value(clock);
        let age = clock.step() - self.step;
        if self.step == 0 || age as f32 > ANOTHER * self.gap {
            (self.seen, self.gap) = (0, 1.0);
        } else {
            self.mean = self.blend(clock);
            self.seen = self.seen.saturating_add(clock.turns(self) - 1);
            self.gap += (age as f32 - self.gap) * self.weight();
        }
        if self.step == 0 {
            self.born = clock.step();
        } else {
            self.life = (self.life + self.uses) * faded(age);
        }
        self.again = clock.in_last(self);
        self.seen = self.seen.saturating_add(1);
        (self.step, self.uses, self.launched) = (clock.step(), 0.0, 0);
        (self.twice, self.missed) = (false, 0);
    }

    /// A launch names it; false if the same one did already.
    pub fn use_once(&mut self, op: u32, clock: &mut Clock) -> bool {
        if self.op == op && self.launched > 0 && !self.fresh(clock) {
            return false;
        }
        self.enter(clock);
        if !std::mem::replace(&mut self.used, true) {
            // What copies and memsets did before was loading.
            (self.heat, self.mean, self.uses, self.seen) = (0.0, 0.0, 0.0, 1);
            (self.life, self.born) = (0.0, self.step);
        }
        self.uses += 1.0;
        self.launched = self.launched.saturating_add(1);
        clock.name(self, op);
        self.op = op;
        true
    }

    /// A copy covers a part of it.
    pub fn use_part(&mut self, part: f32, clock: &mut Clock) {
        self.enter(clock);
        self.uses += part;
    }
}

impl Allocation {
    /// None if there is nothing of it, or if its end is beyond all addresses.
    pub fn new(
        id: u64,
        base: u64,
        bytes: u64,
        chunks: &[(u64, Tier)],
        movable: bool,
    ) -> Option<Allocation> {
        let mut end = base;
        let mut held = Vec::with_capacity(chunks.len());
        for &(bytes, tier) in chunks.iter().filter(|c| c.0 > 0) {
            held.push(Chunk {
                start: end,
                bytes,
                tier,
                origin: if tier == Tier::Host { bytes } else { 0 },
                shed: false,
            });
            end = end.checked_add(bytes)?;
        }
        let used = base.checked_add(bytes)?.min(end);
        if used == base || held.len() != chunks.len() || end > HIGHEST {
            return None;
        }
        let mut new = Allocation {
            id,
            base,
            movable,
            extents: vec![Extent::new(base, used)],
            chunks: held,
        };
        new.tally(0);
        Some(new)
    }

    /// Where its last chunk ends.
    pub fn end(&self) -> u64 {
        self.chunks.last().map_or(self.base, Chunk::end)
    }

    /// The extent that holds `address`.
    pub fn find(&self, address: u64) -> Option<usize> {
        let index = self
            .extents
            .partition_point(|e| e.start <= address)
            .checked_sub(1)?;
        (address < self.extents[index].end).then_some(index)
    }

    /// Chunks that lie in `start..end`, also in part.
    pub fn chunks_in(&self, start: u64, end: u64) -> std::ops::Range<usize> {
        let first = self.chunks.partition_point(|c| c.end() <= start);
        let count = self.chunks[first..].partition_point(|c| c.start < end);
        first..first + count
    }

    /// Counts what of an extent is where.
    fn tally(&mut self, index: usize) {
        let Extent { start, end, .. } = self.extents[index];
        let (mut host, mut origin) = (0, 0.0);
        for chunk in &self.chunks[self.chunks_in(start, end)] {
            let bytes = end.min(chunk.end()) - start.max(chunk.start);
            host += if chunk.tier == Tier::Host { bytes } else { 0 };
            origin += bytes as f64 / chunk.bytes as f64 * chunk.origin as f64;
        }
        let extent = &mut self.extents[index];
        extent.on_host = host;
        extent.off = host as i64 - origin as i64;
    }

    /// A chunk is, or would be, elsewhere.
    pub fn tally_chunk(&mut self, chunk: usize) {
        let Chunk { start, bytes, .. } = self.chunks[chunk];
        let first = self.extents.partition_point(|e| e.end <= start);
        for index in first..self.extents.len() {
            if self.extents[index].start >= start + bytes {
                break;
            }
            self.tally(index);
        }
    }

    /// An extent starts at `address`, which lies in the one at `index`; false if one does already, or there are too many.
    pub fn split(&mut self, index: usize, address: u64, clock: &mut Clock) -> bool {
        let old = self.extents[index];
        if old.start == address || self.extents.len() >= STARTS {
            return false;
        }
        let heat = match old.fresh(clock) {
            true => old.blend(clock),
            false => old.heat * old.gap,
        };
        clock.take(&old, old.end - address);
        let new = Extent {
            start: address,
            mean: heat,
            uses: heat,
            // What this step named of it so far was not it.
            step: match old.step == clock.step() {
                true if old.again => old.step - 1,
                true => old.step - 2,
                false => old.step,
            },
            seen: 0,
            missed: 0,
            launched: old.launched,
            counted: true,
            ..old
        };
        self.extents[index].end = address;
        self.extents.insert(index + 1, new);
        self.tally(index);
        self.tally(index + 1);
        true
    }

    /// The extent at `index` is named for the first time in this step: has the one behind it not been for so long that
    /// it belongs to this one?
    pub fn outlived(&mut self, index: usize, clock: &Clock) -> bool {
        let Some(next) = self.extents.get_mut(index + 1) else {
            return false;
        };
        if !next.fresh(clock) {
            return false;
        }
        next.missed = next.missed.saturating_add(1);
        let age = clock.step() - next.step;
        next.missed > 1 && age > if next.seen > 1 { MISSED.1 } else { MISSED.0 }
    }

    /// The extent behind `index` belongs to it.
    pub fn merge(&mut self, index: usize) {
        let gone = self.extents.remove(index + 1);
        self.extents[index].end = gone.end;
        self.tally(index);
        if let Some(next) = self.extents.get_mut(index + 1) {
            next.missed = next.missed.max(gone.missed - 1);
        }
    }
}
