//! The engine of one device: what is tracked there, and where each chunk is. One lock, never held across a call of the
//! driver; whoever has to wait for a chunk waits on it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::*};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use greenboost_abi::CUdevice;
use greenboost_wire::ledger::{Staging, Tier};

use super::choose::Chooser;
use super::escape::{Escapes, Status};
use super::flight::Flights;
use super::slots::{self, Slot, Slots};
use super::units::{Place, Record, Tracked, Unit, Units};
use crate::driver;
use crate::process::Job;
use crate::tier::device::{self, Device};
use crate::tier::map::Handle;
use crate::tier::spare::Chunk;

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Operations are watched; nothing is staged.
    Watching,
    /// Chunks are staged.
    Armed,
    /// It is over in this process.
    Off,
}

/// What the engine knows.
pub struct State {
    /// How far it is.
    pub phase: Phase,
    /// Allocations and chunks.
    pub units: Units,
    /// What has been proven of them.
    pub escapes: Escapes,
    /// Who chooses.
    pub chooser: Chooser,
    /// Slots.
    pub slots: Slots,
    /// Operations under way.
    pub flights: Flights,
    /// The context that all of it is in: that of the first allocation.
    pub context: Handle,
    /// No transit begins while this is not 0.
    pub paused: u32,
    /// Chunks in transit.
    pub transits: u32,
    /// Of them, those on their way home.
    pub leaving: u32,
    /// Threads that move chunks.
    pub threads: u32,
    /// A thread asks which operations have ended.
    pub reaping: bool,
    /// No launch waits before then: one has waited in vain.
    pub in_vain: Option<Instant>,
    /// What times of operations are counted from.
    pub clock: Option<Handle>,
    /// The streams of the shim: into slots, and home.
    pub streams: Option<[Handle; 2]>,
}

/// The engine of one device.
pub struct Engine {
    /// The device.
    pub device: &'static Device,
    /// The job.
    pub job: &'static Job,
    state: Mutex<State>,
    changed: Condvar,
    /// When a transit ended last, nanoseconds of the monotonic clock.
    pub last_transit: AtomicU64,
}

const MOST: usize = 64;
static ENGINES: [OnceLock<Engine>; MOST] = [const { OnceLock::new() }; MOST];

/// Whether operations have to be looked at: something that may be staged is on Host.
static ACTIVE: AtomicBool = AtomicBool::new(false);
/// The process ends.
static ENDING: AtomicBool = AtomicBool::new(false);

/// Whether operations have to be looked at.
#[inline(always)]
pub fn active() -> bool {
    ACTIVE.load(Relaxed)
}

/// The process ends: nothing begins any more.
pub fn ending() -> bool {
    ENDING.load(SeqCst)
}

/// The engine of a device, if there is one.
pub fn of(device: CUdevice) -> Option<&'static Engine> {
    ENGINES.get(usize::try_from(device).ok()?)?.get()
}

/// The engine of a device.
fn at(job: &'static Job, device: &'static Device) -> Option<&'static Engine> {
    let place = ENGINES.get(usize::try_from(device.ordinal).ok()?)?;
    Some(place.get_or_init(|| Engine {
        device,
        job,
        state: Mutex::new(State {
            phase: Phase::Watching,
            units: Units::default(),
            escapes: Escapes::default(),
            chooser: Chooser::new(super::arm::always()),
            slots: Slots::default(),
            flights: Flights::default(),
            context: Handle(0),
            paused: 0,
            transits: 0,
            leaving: 0,
            threads: 0,
            reaping: false,
            in_vain: None,
            clock: None,
            streams: None,
        }),
        changed: Condvar::new(),
        last_transit: AtomicU64::new(0),
    }))
}

/// All engines.
pub fn all() -> impl Iterator<Item = &'static Engine> {
    ENGINES.iter().filter_map(OnceLock::get)
}

/// The engine that tracks an address.
pub fn tracking(address: u64) -> Option<&'static Engine> {
    all().find(|e| e.lock().units.bases_of(address).next().is_some())
}

/// No transit begins on a device, and none is under way, while it lives.
pub struct Paused(&'static Engine);

impl Drop for Paused {
    fn drop(&mut self) {
        self.0.lock().paused -= 1;
        self.0.changed.notify_all();
    }
}

impl Engine {
    /// The state. Short.
    pub fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until something has changed, at most so long.
    pub fn wait<'a>(&self, state: MutexGuard<'a, State>, most: Duration) -> MutexGuard<'a, State> {
        let waited = self.changed.wait_timeout(state, most);
        waited.unwrap_or_else(PoisonError::into_inner).0
    }

    /// Wakes all who wait for a change.
    pub fn notify(&self) {
        self.changed.notify_all();
    }

    /// Stops transits: waits until those under way are over, which nothing that the program does can hold up.
    pub fn pause(&'static self) -> Paused {
        let mut state = self.lock();
        state.paused += 1;
        while state.transits > 0 || state.reaping {
            state = self.wait(state, Duration::from_millis(100));
        }
        Paused(self)
    }

    /// The same, if they are over in time.
    pub fn try_pause(&'static self, patience: Duration) -> Option<Paused> {
        let deadline = Instant::now() + patience;
        let mut state = self.lock();
        state.paused += 1;
        let paused = Paused(self);
        while state.transits > 0 || state.reaping {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                drop(state);
                return None;
            }
            state = self.wait(state, left);
        }
        Some(paused)
    }
}

impl Engine {
    /// Gives up all slots that hold nothing, and what is reserved for them.
    fn give_up(&self) {
        let (free, unused) = {
            let mut state = self.lock();
            let free = state.slots.clear();
            (free, state.slots.shrink())
        };
        for slot in free {
            // SAFETY: a free slot is mapped nowhere else, and nothing is in transit to it.
            unsafe { slots::destroy(slot) };
        }
        self.unreserve(unused);
    }

    /// Gives back what was reserved for slots.
    pub fn unreserve(&self, bytes: u64) {
        self.device.spare.lend(self.lock().slots.limit);
        self.job.place.release(Tier::Vram, self.device.index, bytes);
    }
}

impl State {
    /// An allocation has escaped: it is staged no more.
    pub fn expose(&mut self, base: u64) {
        self.escapes.escaped(base);
        if let Some(tracked) = self.units.tracked(base) {
            for unit in &tracked.units {
                self.chooser.forbid(*unit);
            }
        }
    }
}

/// Whether a chunk may change where it is: nothing under way names it, and nothing else can touch it.
pub fn may_move(units: &Units, escapes: &Escapes, unit: Unit) -> bool {
    units.get(unit).is_some_and(|record| {
        record.is_idle()
            && escapes.status(record.base) == Status::Unescaped
            && units.tracked(record.base).is_some_and(|t| !t.fixed)
    })
}

/// An allocation has come. One that may not move, or of another context, is not tracked.
pub fn born(
    job: &'static Job,
    device: CUdevice,
    base: u64,
    span: u64,
    context: Handle,
    chunks: &[Chunk],
) {
    let wanted = job.place.ledger().settings().staging == Staging::Auto || super::arm::always();
    let able = |d: &&Device| wanted && d.has_ranges() && d.can_spill(job);
    let Some(device) = device::known(device).filter(able) else {
        return;
    };
    let Some(engine) = at(job, device) else {
        return;
    };
    let mut guard = engine.lock();
    let state = &mut *guard;
    if state.context.0 == 0 {
        state.context = context;
    }
    let known = state.units.tracked(base).is_some();
    if known || state.phase == Phase::Off || state.context != context {
        return;
    }
    let units = chunks
        .iter()
        .map(|c| state.chooser.add(c.size, c.tier))
        .collect();
    let tracked = Tracked {
        base,
        span,
        units,
        fixed: false,
    };
    state.units.add(tracked, chunks);
    let watching = state.phase == Phase::Armed;
    state.escapes.born(base, span, watching);
    super::track(base, span, true);
    if chunks.iter().any(|c| c.tier == Tier::Host) {
        ACTIVE.store(true, SeqCst);
    }
}

/// What an allocation leaves behind when it goes.
#[derive(Default)]
pub struct Left {
    engine: Option<&'static Engine>,
    slots: Vec<Slot>,
}

/// An allocation goes: it is tracked no more, and nothing of the shim's uses its homes. Its chunks are mapped still, some
/// of them in slots, which are kept until that is over: see [`take_back`].
///
/// No work of the program's that could touch it is in flight.
pub fn leave(device: CUdevice, base: u64) -> Left {
    let Some(engine) = of(device) else {
        return Left::default();
    };
    let mut state = engine.lock();
    let Some(tracked) = state.units.tracked_mut(base) else {
        return Left::default();
    };
    tracked.fixed = true;
    let units = tracked.units.clone();
    let in_transit = |state: &State| {
        let there = units.iter().filter_map(|u| state.units.get(*u));
        there.into_iter().any(|r| r.place.in_transit())
    };
    while in_transit(&state) {
        state = engine.wait(state, Duration::from_millis(100));
    }
    let records = match state.units.remove(base) {
        Some((tracked, records)) => {
            super::track(base, tracked.span, false);
            for unit in tracked.units {
                state.flights.forget(unit);
                state.chooser.gone(unit);
            }
            records
        }
        None => Vec::new(),
    };
    state.escapes.gone(base);
    drop(state);
    let mut left = Left {
        engine: Some(engine),
        slots: Vec::new(),
    };
    for record in records {
        if record.alias != 0 {
            // SAFETY: nothing of the shim's is in transit there.
            unsafe { slots::unalias(record.alias, record.home.size) };
        }
        if let Place::Staged(slot, _) = record.place {
            left.slots.push(slot);
        }
    }
    left
}

/// The allocation is unmapped: its slots hold nothing any more.
pub fn take_back(left: Left) {
    let Some(engine) = left.engine.filter(|_| !left.slots.is_empty()) else {
        return;
    };
    let mut state = engine.lock();
    for slot in left.slots {
        state.slots.give(slot);
    }
    let off = state.phase == Phase::Off;
    drop(state);
    if off {
        engine.give_up();
    }
    engine.notify();
}

/// Whether a chunk is somewhere else than at home. Meant for whoever holds still.
pub fn away(device: CUdevice, base: u64, index: usize) -> bool {
    let Some(engine) = of(device) else {
        return false;
    };
    let state = engine.lock();
    let record = state.units.chunk(base, index);
    let record = record.and_then(|u| state.units.get(u));
    record.is_some_and(|r| !matches!(r.place, Place::Resident | Place::Host))
}

/// A chunk has another home now, where it is. Meant for whoever holds still, before the old home is used again.
pub fn homed(device: CUdevice, base: u64, index: usize, home: Chunk) {
    let Some(engine) = of(device) else { return };
    let mut state = engine.lock();
    let Some(unit) = state.units.chunk(base, index) else {
        return;
    };
    state.chooser.homed(unit, home.tier);
    let Some(record) = state.units.get_mut(unit) else {
        return;
    };
    let (alias, bytes) = (std::mem::take(&mut record.alias), record.home.size);
    record.home = home;
    record.place = super::units::home(&home);
    if home.tier == Tier::Host {
        ACTIVE.store(true, SeqCst);
    }
    drop(state);
    if alias != 0 {
        // SAFETY: whoever holds still has seen all transits end.
        unsafe { slots::unalias(alias, bytes) };
    }
}

/// An allocation stays as it is from now on: others reach it. Returns whether all of it is at home; what is in a slot
/// stays there.
pub fn fix(device: CUdevice, base: u64) -> bool {
    let Some(engine) = of(device) else {
        return true;
    };
    let mut state = engine.lock();
    let Some(tracked) = state.units.tracked_mut(base) else {
        return true;
    };
    tracked.fixed = true;
    let units = tracked.units.clone();
    let home = |r: &Record| matches!(r.place, Place::Resident | Place::Host);
    units.iter().all(|u| state.units.get(*u).is_none_or(home))
}

/// The device is drained and stays so: all operations have ended.
pub fn still(device: CUdevice) {
    let Some(engine) = of(device) else { return };
    let mut guard = engine.lock();
    let state = &mut *guard;
    let mut events = Vec::new();
    for flight in state.flights.all() {
        for unit in &flight.units {
            if let Some(record) = state.units.get_mut(*unit) {
                record.uses = record.uses.saturating_sub(1);
            }
        }
        events.push(flight.event);
        events.extend(flight.begin);
    }
    state.flights.give(events);
    for (_, record) in state.units.all_mut() {
        record.foreign = false;
    }
    drop(guard);
    engine.notify();
}

/// Gives up the slots that hold nothing. Returns whether there was anything.
pub fn make_room(device: CUdevice) -> bool {
    let Some(engine) = of(device) else {
        return false;
    };
    let before = engine.lock().slots.limit;
    before > 0 && {
        engine.give_up();
        engine.lock().slots.limit < before
    }
}

/// A context of the program's is gone, and with it all that the shim had in it. Transits are paused.
pub fn context_gone(context: Handle) {
    for engine in all() {
        if engine.lock().context != context {
            continue;
        }
        let mut state = engine.lock();
        state.phase = Phase::Off;
        // The driver has destroyed them with the context.
        state.flights = Flights::default();
        (state.streams, state.clock) = (None, None);
        drop(state);
        engine.give_up();
    }
    super::kernels::context_gone(context);
}

/// The process ends: nothing begins any more; waits, for a bounded time, until nothing is in transit.
pub fn end() {
    ENDING.store(true, SeqCst);
    for engine in all() {
        if let Some(paused) = engine.try_pause(Duration::from_secs(1)) {
            std::mem::forget(paused);
        }
        engine.notify();
    }
}

/// Code is unloaded: the handles of its functions may come back for others.
pub fn code_ends() {
    all().for_each(|e| e.lock().escapes.forget_functions());
}

/// What a function or graph does may be something else from now on.
pub fn changed(function: u64) {
    if active() {
        all().for_each(|e| e.lock().escapes.forget(function));
    }
}

/// There is memory now that kernels reach and that cannot be searched: nothing is proven until it is gone.
pub fn unseen() {
    if active() {
        all().for_each(|e| e.lock().escapes.doubt_all());
    }
}

/// Whether an illegal access may be the shim's doing: something is or was in transit a short time ago. What to say then.
pub fn suspect() -> Option<String> {
    const SHORT: u64 = 5_000_000_000;
    let engine = all().find(|e| {
        let recent = driver_clock().saturating_sub(e.last_transit.load(SeqCst)) < SHORT;
        e.lock().transits > 0 || recent && e.last_transit.load(SeqCst) != 0
    })?;
    let state = engine.lock();
    let under_way = state.flights.len();
    Some(format!(
        "an illegal address was used while memory was staged ({under_way} operations under way, {} chunks in transit): \
         either by the program's own fault, or it reaches memory in a way that cannot be seen. `--staging off` tells which",
        state.transits
    ))
}

fn driver_clock() -> u64 {
    crate::telemetry::monotonic()
}

/// An address that the shim knows of as its own alone, with nothing in flight there.
pub fn alias_of(device: &Device, record: &Record) -> driver::Result<u64> {
    match record.alias {
        0 => slots::alias(device, record.home),
        alias => Ok(alias),
    }
}
