//! What to stage, what to give up for it, what to wait for, and how many slots pay.
//!
//! What is staged is what is used next. Of a loop over more than the slots hold, most of what is in a slot stays there for
//! the next pass, and only the rest is copied: for a unit that is used sooner, a unit used later is given up only when the
//! use is near, `ahead` bytes of what streams. That many are needed to keep the link busy; more of them are copied more
//! often. Where the compute takes longer than all copies, that costs nothing, and `ahead` is all there is.

use greenboost_wire::ledger::Tier;

use super::layout::{Pass, Place};
use super::measure::{Between, Mean, Measured};
use super::operations::Operations;
use super::track::{Sum, Track};

/// Number of a unit, dense, given by the planner, used again after [`Planner::gone`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Ord, PartialOrd, Debug)]
pub struct Unit(pub u32);

/// What the link does, bytes per second.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Rates {
    /// Copies Host to VRAM, as they are sustained: with the mapping that they wait for.
    pub dma: f64,
    /// Kernels that read Host at best.
    pub zero_copy: f64,
}

/// Streams whose order is learned; another one takes the place of who was silent longest.
const STREAMS: usize = 8;
/// Part of the time that may be spent on trying whether what is known is still true, and what may be saved up, seconds.
const TRIALS: f64 = 0.004;
const SAVED: f64 = 1.0;
/// Seconds of copies that are worth being ahead, at least; and that slots hold for what is copied, mapped and given back.
const AHEAD: f64 = 0.010;
const IN_FLIGHT: f64 = 0.040;
/// Largest operations that slots hold.
const LARGEST: u64 = 3;
/// Of what has its home in VRAM, slots take at most one part of so many.
const PART: u64 = 4;
/// Where a unit is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// Where its home is.
    Home,
    /// On its way into a slot.
    Coming,
    /// In a slot.
    Staged,
    /// On its way out of a slot.
    Leaving,
}

/// A unit.
#[derive(Clone, Debug)]
struct Info {
    bytes: u64,
    home: Tier,
    state: State,
    live: bool,
    forbidden: bool,
    /// Left on Host, or staged, this once, to see.
    trial: bool,
    measured: Measured,
}

impl Info {
    /// Whether it streams.
    fn streams(&self) -> bool {
        self.home == Tier::Host && !self.forbidden && self.measured.gains() != self.trial
    }
}

/// A unit that an operation needs in a slot; its launch has not seen it there yet.
#[derive(Clone, Copy, Debug)]
struct Wanted {
    number: u64,
    track: usize,
    unit: Unit,
}

/// What is staged, and what is not; one device.
#[derive(Debug)]
pub struct Planner {
    rates: Rates,
    units: Vec<Info>,
    free: Vec<Unit>,
    tracks: Vec<Track>,
    operations: Operations,
    /// What is in a slot or on its way there, and what is on its way out.
    slots: Vec<Unit>,
    /// What operations that are about to be launched name: what they wait for, and what must stay in its slot for them.
    wanted: Vec<Wanted>,
    /// Seconds per byte used in VRAM.
    pace: Mean,
    between: Between,
    /// Bytes that have their home in VRAM.
    resident: u64,
    now: f64,
    /// Seconds that may be spent on trials.
    credit: f64,
}

impl Planner {
    /// A planner that knows of no unit.
    pub fn new(rates: Rates) -> Planner {
        Planner {
            rates,
            units: Vec::new(),
            free: Vec::new(),
            tracks: Vec::new(),
            operations: Operations::new(),
            slots: Vec::new(),
            wanted: Vec::new(),
            pace: Mean::default(),
            between: Between::default(),
            resident: 0,
            now: 0.0,
            credit: 0.0,
        }
    }

    /// A new unit. With its home on Host it may be staged; with its home in VRAM only its place in the order and the time
    /// between uses matter, for the layout.
    pub fn add(&mut self, bytes: u64, home: Tier) -> Unit {
        let info = Info {
            bytes,
            home,
            state: State::Home,
            live: true,
            forbidden: false,
            trial: false,
            measured: Measured::new(self.now),
        };
        if home == Tier::Vram {
            self.resident += bytes;
        }
        match self.free.pop() {
            Some(unit) => {
                *self.info_mut(unit) = info;
                unit
            }
            None => {
                self.units.push(info);
                Unit(self.units.len() as u32 - 1)
            }
        }
    }

    /// The unit is no more, wherever it was; its number may be given again.
    pub fn gone(&mut self, unit: Unit) {
        self.out(unit);
        self.wanted.retain(|w| w.unit != unit);
        let info = self.info_mut(unit);
        if !std::mem::replace(&mut info.live, false) {
            return;
        }
        let (bytes, home) = (info.bytes, info.home);
        if home == Tier::Vram {
            self.resident -= bytes;
        }
        self.tracks.iter_mut().for_each(|t| t.gone(unit));
        self.free.push(unit);
    }

    /// The layout was changed: the unit has this home now, and is in no slot.
    pub fn homed(&mut self, unit: Unit, home: Tier) {
        self.out(unit);
        self.wanted.retain(|w| w.unit != unit);
        let info = self.info_mut(unit);
        let (old, bytes) = (std::mem::replace(&mut info.home, home), info.bytes);
        match (old, home) {
            (Tier::Vram, Tier::Host) => self.resident -= bytes,
            (Tier::Host, Tier::Vram) => self.resident += bytes,
            _ => {}
        }
        self.look_again();
    }

    /// The unit is never staged from now on, nor part of a layout. If it is in a slot it may be given up any time.
    pub fn forbid(&mut self, unit: Unit) {
        self.info_mut(unit).forbidden = true;
        self.wanted.retain(|w| w.unit != unit);
    }

    /// An operation that names these units is about to be launched. Returns its number.
    ///
    /// Those that it should wait for come first from [`Planner::next`], and those that are in a slot by now are no victims,
    /// until [`Planner::launched`] or the stream's next operation.
    pub fn named(&mut self, stream: u64, units: &[Unit], now: f64) -> u64 {
        let number = self.operations.next();
        self.credit = (self.credit + (now - self.now).max(0.0) * TRIALS).min(SAVED);
        self.now = now;
        let at = self.track(stream, number);
        if !self.wanted.is_empty() {
            let oldest = self.operations.oldest();
            self.wanted.retain(|w| w.track != at && w.number >= oldest);
        }
        self.operations.begin(at);
        let track = &mut self.tracks[at];
        let again = track.again(units);
        let (mut streaming, mut seconds) = (0, 0.0);
        for (index, &unit) in units.iter().enumerate() {
            let info = &mut self.units[unit.0 as usize];
            let expected = if again {
                track.order.was_expected(unit.0)
            } else {
                track.order.used(unit.0, index == 0, now)
            };
            seconds += work(info, self.pace);
            let mut needs = info.state != State::Home;
            if info.streams() {
                streaming += info.bytes;
                let copy = info.bytes as f64 / self.rates.dma;
                needs |= expected || track.order.steady(unit.0) && info.measured.gains_much(copy);
                // What is in a slot must stay there until the launch has it.
                if needs {
                    self.wanted.push(Wanted {
                        number,
                        track: at,
                        unit,
                    });
                }
            }
            // What is waited for will be in VRAM.
            let on_host = info.home == Tier::Host && !needs;
            let waits = needs && info.streams() && info.state != State::Staged;
            self.operations.names(unit, on_host, waits);
            info.trial = false;
        }
        track.add(units.len(), again, seconds, streaming);
        number
    }

    /// The launch of operation `number` needs no more of the planner: it holds what is in place, and reads the rest on Host.
    pub fn launched(&mut self, number: u64) {
        self.wanted.retain(|w| w.number != number);
    }

    /// The track of a stream.
    fn track(&mut self, stream: u64, number: u64) -> usize {
        let found = self.tracks.iter().position(|t| t.stream == stream);
        let at = found.unwrap_or_else(|| {
            let new = Track::new(stream, number);
            if self.tracks.len() < STREAMS {
                self.tracks.push(new);
                return self.tracks.len() - 1;
            }
            let silent = (0..STREAMS).min_by_key(|t| self.tracks[*t].number);
            let at = silent.unwrap_or(0);
            self.wanted.retain(|w| w.track != at);
            self.tracks[at] = new;
            at
        });
        self.tracks[at].number = number;
        at
    }

    /// Operation `number` was seen to begin and end on the GPU at these times (seconds, by GPU events); not every operation
    /// need be reported. `in_vram`: all that it named was in VRAM.
    pub fn ran(&mut self, number: u64, begin: f64, end: f64, in_vram: bool) {
        let Some(operation) = self.operations.get(number) else {
            return;
        };
        let seconds = (end - begin).max(0.0);
        let before = self.tracks[operation.track].ended.replace((number, end));
        let (mut all, mut outside, mut usual) = (0, 0, 0.0);
        for (unit, on_host) in self.operations.units(operation) {
            let info = &self.units[unit.0 as usize];
            all += info.bytes;
            if on_host {
                outside += info.bytes;
            }
            usual += work(info, self.pace);
        }
        if all == 0 {
            return;
        }
        if in_vram {
            self.pace.add(seconds / all as f64);
            if let Some(before) = before
                && before.0 + 1 == number
                && !operation.waited
            {
                self.between.add((begin - before.1).max(0.0), seconds);
            }
        }
        for (unit, on_host) in self.operations.units(operation) {
            let info = &mut self.units[unit.0 as usize];
            if in_vram {
                let part = info.bytes as f64 / all as f64;
                info.measured.in_vram(seconds * part);
            } else if on_host {
                let part = info.bytes as f64 / outside as f64;
                let copy = info.bytes as f64 / self.rates.dma;
                let gained = info.measured.gains();
                info.measured
                    .on_host((seconds - usual) * part, copy, self.now);
                if info.measured.gains() && !gained {
                    self.tracks.iter_mut().for_each(Track::look_again);
                }
            }
        }
    }

    /// The unit is complete in a slot; or it stays there, although [`Planner::victim`] gave it.
    pub fn staged(&mut self, unit: Unit) {
        let info = self.info_mut(unit);
        if info.home != Tier::Host || !info.live {
            return;
        }
        info.state = State::Staged;
        if !self.slots.contains(&unit) {
            self.slots.push(unit);
        }
    }

    /// The unit is on Host only, again or still. A launch that waits for it may still: who cannot stage it forbids it, or
    /// launches.
    pub fn evicted(&mut self, unit: Unit) {
        self.out(unit);
        self.look_again();
    }

    fn out(&mut self, unit: Unit) {
        self.info_mut(unit).state = State::Home;
        if let Some(at) = self.slots.iter().position(|s| *s == unit) {
            self.slots.swap_remove(at);
        }
    }

    fn look_again(&mut self) {
        self.tracks.iter_mut().for_each(Track::look_again);
    }

    fn info_mut(&mut self, unit: Unit) -> &mut Info {
        &mut self.units[unit.0 as usize]
    }

    /// The next unit to bring into a slot, if `slot_bytes` can hold it now or once [`Planner::victim`] has given one up for
    /// it. It is on its way from then on, until [`Planner::staged`] or [`Planner::evicted`].
    pub fn next(&mut self, slot_bytes: u64) -> Option<Unit> {
        self.next_of(slot_bytes, |_| true)
    }

    /// The same, of those that `may` be staged now: one that may not hides none of those after it.
    pub fn next_of(&mut self, slot_bytes: u64, mut may: impl FnMut(Unit) -> bool) -> Option<Unit> {
        if slot_bytes == 0 {
            return None;
        }
        let units = &self.units;
        let wanted = self.wanted.iter().map(|w| w.unit).find(|u| {
            let info = &units[u.0 as usize];
            info.state == State::Home && info.bytes <= slot_bytes && may(*u)
        });
        let unit = match wanted {
            Some(unit) => unit,
            None => self.foretold(slot_bytes, may)?,
        };
        self.info_mut(unit).state = State::Coming;
        self.slots.push(unit);
        Some(unit)
    }

    /// The nearest unit that is not in a slot, if it is worth one now.
    fn foretold(&mut self, slot_bytes: u64, mut may: impl FnMut(Unit) -> bool) -> Option<Unit> {
        let (when, unit) = loop {
            let (units, now, credit, rates) = (&self.units, self.now, self.credit, self.rates);
            let outside = |u: Unit| {
                let info = &units[u.0 as usize];
                info.live && info.state == State::Home && wants(info, now, credit, rates)
            };
            let found = self
                .tracks
                .iter_mut()
                .filter_map(|t| t.first(outside, &mut may))
                .min_by(|a, b| a.0.total_cmp(&b.0))?;
            if !self.try_out(found.1) {
                break found;
            }
        };
        let bytes = self.units[unit.0 as usize].bytes;
        if bytes > slot_bytes {
            return None;
        }
        let (mut full, mut before, mut last) = (0, 0, f64::NEG_INFINITY);
        for index in 0..self.slots.len() {
            let other = self.slots[index];
            let info = &self.units[other.0 as usize];
            let (bytes, state) = (info.bytes, info.state);
            if state == State::Leaving {
                continue;
            }
            full += bytes;
            let then = self.when(other);
            if then < when {
                before += bytes;
            }
            if state == State::Staged && then > last && !self.wanted(other) {
                last = then;
            }
        }
        let room = full + bytes <= slot_bytes;
        (room || before + bytes <= self.ahead(slot_bytes) && last > when).then_some(unit)
    }

    /// Whether an operation that is about to be launched needs the unit.
    fn wanted(&self, unit: Unit) -> bool {
        self.wanted.iter().any(|w| w.unit == unit)
    }

    /// Whether the unit, which would be staged, is rather left on Host this once, to see whether staging gains still. If
    /// it would be left on Host it is staged this once.
    fn try_out(&mut self, unit: Unit) -> bool {
        let (now, credit, rates) = (self.now, self.credit, self.rates);
        let info = self.info_mut(unit);
        let Some(cost) = trial(info, now, credit, rates) else {
            return false;
        };
        info.trial = true;
        info.measured.tried(now);
        let left = info.measured.gains();
        self.credit -= cost;
        left
    }

    /// When a unit is used next, seconds; infinite if that is not foretold.
    fn when(&mut self, unit: Unit) -> f64 {
        if !self.units[unit.0 as usize].streams() {
            return f64::INFINITY;
        }
        let mut when = f64::INFINITY;
        for track in &mut self.tracks {
            if let Some(at) = track.order.next(unit.0) {
                when = when.min(track.order.when(at));
            }
        }
        when
    }

    /// Bytes that are worth being staged ahead, at the cost of what stays.
    fn ahead(&self, slot_bytes: u64) -> u64 {
        let Sum {
            work,
            bytes,
            largest,
            ..
        } = self.whole();
        let least = ((self.rates.dma * AHEAD) as u64)
            .max(2 * largest)
            .min(slot_bytes);
        let copies = bytes as f64 / self.rates.dma;
        // Half the compute to hide under: what stays is worth more. As much as there is to copy: what is ahead is.
        let part = if copies > 0.0 {
            (2.0 * work / copies - 1.0).clamp(0.0, 1.0)
        } else {
            1.0
        };
        least + ((slot_bytes - least) as f64 * part) as u64
    }

    /// What the passes of all streams consist of.
    fn whole(&self) -> Sum {
        let learned = self.tracks.iter().filter(|t| t.order.learned());
        learned.fold(Sum::default(), |sum, t| Sum {
            uses: sum.uses + t.whole.uses,
            work: sum.work + t.whole.work * self.between.factor(),
            bytes: sum.bytes + t.whole.bytes,
            largest: sum.largest.max(t.whole.largest),
        })
    }

    /// The unit in a slot to give up, of those that `may` be: the one used furthest ahead, or never again. For `wanted`, only
    /// one used later than that. It is on its way out from then on, until [`Planner::evicted`].
    pub fn victim(
        &mut self,
        wanted: Option<Unit>,
        mut may: impl FnMut(Unit) -> bool,
    ) -> Option<Unit> {
        let least = match wanted {
            Some(unit) if self.wanted(unit) => f64::NEG_INFINITY,
            Some(unit) => self.when(unit),
            None => f64::NEG_INFINITY,
        };
        let mut best: Option<(f64, Unit)> = None;
        for index in 0..self.slots.len() {
            let unit = self.slots[index];
            if self.units[unit.0 as usize].state != State::Staged || wanted == Some(unit) {
                continue;
            }
            let when = self.when(unit);
            if when > best.map_or(least, |b| b.0) && !self.wanted(unit) && may(unit) {
                best = Some((when, unit));
            }
        }
        let unit = best?.1;
        self.info_mut(unit).state = State::Leaving;
        Some(unit)
    }

    /// Whether a launch that names this unit, which is on Host now, should wait until it is staged rather than read it there:
    /// it is on its way, or will come first from [`Planner::next`].
    pub fn worth_waiting(&self, unit: Unit) -> bool {
        let info = &self.units[unit.0 as usize];
        match info.state {
            State::Coming => info.streams(),
            State::Home | State::Leaving => self.wanted(unit),
            State::Staged => false,
        }
    }

    /// Bytes of slots that pay now; none while nothing gains.
    pub fn slots(&self) -> u64 {
        let Sum { bytes, largest, .. } = self.whole();
        if bytes == 0 {
            return 0;
        }
        let flight = (self.rates.dma * IN_FLIGHT) as u64;
        let all = self.resident
            + self
                .slots
                .iter()
                .map(|u| self.units[u.0 as usize].bytes)
                .sum::<u64>();
        flight.max(LARGEST * largest).min(bytes).min(all / PART)
    }

    /// Pairs of units, the first to leave VRAM for the second of the same size, that spread what streams evenly along the
    /// order, by the compute between uses; at most so many, and none when it is good enough. Goes over a whole pass, some
    /// times over: a millisecond or two for each thousand uses, so only now and then.
    pub fn layout(&mut self, most: usize) -> Vec<(Unit, Unit)> {
        let busiest = (0..self.tracks.len()).max_by_key(|t| self.tracks[*t].whole.bytes);
        let Some(track) = busiest.filter(|t| self.tracks[*t].whole.bytes > 0) else {
            return Vec::new();
        };
        let order = &self.tracks[track].order;
        let ahead = order.ahead();
        if order.period() != ahead.end - ahead.start || ahead.is_empty() {
            return Vec::new();
        }
        let mut places: Vec<Place> = self.units.iter().map(place).collect();
        let mut uses = Vec::with_capacity(order.period() as usize);
        for at in ahead.filter(|at| order.expected(*at)) {
            let unit = order.unit(at) as usize;
            places[unit].uses += 1;
            let seconds = work(&self.units[unit], self.pace);
            uses.push((unit, seconds * self.between.factor()));
        }
        let pass = Pass {
            uses: &uses,
            slots: self.ahead(self.slots()),
            dma: self.rates.dma,
        };
        let pairs = pass.swaps(&places, most);
        pairs
            .into_iter()
            .map(|(l, c)| (Unit(l as u32), Unit(c as u32)))
            .collect()
    }
}

/// Seconds of a use in VRAM.
fn work(info: &Info, pace: Mean) -> f64 {
    let likely = || info.bytes as f64 * pace.get().unwrap_or(0.0);
    info.measured.vram().unwrap_or_else(likely)
}

/// What trying a unit out would cost, if it is time and may be spent.
fn trial(info: &Info, now: f64, credit: f64, rates: Rates) -> Option<f64> {
    let bytes = info.bytes as f64;
    let cost = info
        .measured
        .trial(bytes / rates.dma, bytes / rates.zero_copy, now)?;
    (!info.trial && cost <= credit).then_some(cost)
}

/// Whether a unit that is on Host should be staged, if only to see.
fn wants(info: &Info, now: f64, credit: f64, rates: Rates) -> bool {
    let host = info.home == Tier::Host && !info.forbidden;
    host && (info.streams() || trial(info, now, credit, rates).is_some() && !info.measured.gains())
}

/// How the layout sees a unit.
fn place(info: &Info) -> Place {
    Place {
        bytes: info.bytes,
        host: info.home == Tier::Host,
        movable: info.live && !info.forbidden,
        streams: info.measured.gains(),
        uses: 0,
    }
}
