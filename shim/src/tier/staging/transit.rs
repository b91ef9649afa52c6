//! The threads that move chunks between their homes and slots.
//!
//! Each takes one chunk from its beginning to its end: unmap, copy over the shim's own mappings, map. Both ways of it hold
//! to one rule: until the new place is complete the old one has all bytes, and one of the two is mapped in the end, or the
//! program is stopped. A freezing function waits for what is in transit, so that must wait for nothing but the driver.

use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::time::Duration;

use greenboost_abi::CUDA_ERROR_ILLEGAL_ADDRESS;
use greenboost_wire::ledger::Tier;

use super::engine::{self, Engine, Phase, State};
use super::flight::Lane;
use super::proof;
use super::slots::{self, Slot, Way};
use super::units::{Digest, Place, Record, Unit};
use crate::driver::{self, queue};
use crate::freeze::{self, Motion};
use crate::process;
use crate::telemetry;
use crate::tier::drain;
use crate::tier::map::Handle;
use crate::tier::spare::Chunk;

/// Chunks in transit at a time, and threads.
const THREADS: u32 = 4;
/// Of them, on their way home.
const LEAVING: u32 = 2;
/// Between two looks while something is wanted that cannot be done yet.
const SOON: Duration = Duration::from_micros(50);
/// The same, while nothing is.
const LATER: Duration = Duration::from_millis(2);

/// What a thread does next.
enum Task {
    Stage(Unit, Record, Way),
    Evict(Unit, Record, Slot, Option<Digest>),
    Rest(Duration),
    End,
}

/// Starts the threads of an engine.
pub fn start(engine: &'static Engine) {
    let more = {
        let mut state = engine.lock();
        THREADS - std::mem::replace(&mut state.threads, THREADS)
    };
    for _ in 0..more {
        let body = move || {
            if std::panic::catch_unwind(|| work(engine)).is_err() {
                fallen(engine);
            }
        };
        let started = drain::without_signals(|| {
            std::thread::Builder::new()
                .name("greenboost".into())
                .stack_size(256 << 10)
                .spawn(body)
        });
        if started.is_err() {
            engine.lock().threads -= 1;
        }
    }
}

/// A thread has failed. What it had in transit is mapped nowhere, and nobody can tell how far it was.
#[cold]
fn fallen(engine: &Engine) {
    if engine.lock().transits > 0 {
        process::stop("staging failed, and memory may not be where the program has it");
    }
    process::wound("staging failed");
}

fn work(engine: &'static Engine) {
    let _relaxed = driver::Relaxed::enter();
    let mut worker = Worker::new(engine);
    loop {
        worker.reap();
        match pick(engine) {
            Task::Stage(unit, record, way) => worker.stage(unit, record, way),
            Task::Evict(unit, record, slot, digest) => worker.evict(unit, record, slot, digest),
            Task::Rest(most) => drop(engine.wait(engine.lock(), most)),
            Task::End => return,
        }
    }
}

/// Decides what is next, and marks it.
fn pick(engine: &Engine) -> Task {
    let mut guard = engine.lock();
    let state = &mut *guard;
    if state.phase != Phase::Armed || engine::ending() {
        state.threads -= 1;
        return Task::End;
    }
    if state.paused > 0 || state.transits >= THREADS {
        return Task::Rest(LATER);
    }
    if freeze::frozen() || drain::capturing() || process::live().is_none() {
        return Task::Rest(10 * LATER);
    }
    let State {
        units,
        escapes,
        chooser,
        slots,
        leaving,
        ..
    } = state;
    let may = |u: Unit, there: fn(&Record) -> bool| {
        units.get(u).is_some_and(there) && engine::may_move(units, escapes, u)
    };
    let next = chooser.next(slots.limit, |u| may(u, |r| r.place == Place::Host));
    let task = next.and_then(|unit| {
        let record = *units.get(unit)?;
        let way = slots.take(record.home.size);
        if way != Way::Full {
            return Some(Task::Stage(unit, record, way));
        }
        // Its turn comes again.
        let victim = match *leaving < LEAVING {
            true => chooser.victim(unit, |u| may(u, |r| matches!(r.place, Place::Staged(..)))),
            false => None,
        };
        chooser.evicted(unit);
        let victim = victim?;
        let record = *units.get(victim)?;
        match record.place {
            Place::Staged(slot, digest) => Some(Task::Evict(victim, record, slot, digest)),
            _ => None,
        }
    });
    let (unit, place) = match &task {
        Some(Task::Stage(unit, ..)) => (*unit, Place::Coming),
        Some(Task::Evict(unit, ..)) => {
            state.leaving += 1;
            (*unit, Place::Leaving)
        }
        _ => return Task::Rest(if next.is_some() { SOON } else { LATER }),
    };
    state.transits += 1;
    if let Some(record) = state.units.get_mut(unit) {
        record.place = place;
    }
    task.unwrap_or(Task::Rest(LATER))
}

/// Sends all of an allocation home that is in slots: returns whether all of it is there.
///
/// # Safety
/// The device is drained and stays so, and all transits are paused.
pub unsafe fn send_home(engine: &'static Engine, base: u64) -> bool {
    let mut worker = Worker::new(engine);
    let units = match engine.lock().units.tracked(base) {
        Some(tracked) => tracked.units.clone(),
        None => return true,
    };
    for unit in &units {
        let mut state = engine.lock();
        let Some(record) = state.units.get_mut(*unit) else {
            continue;
        };
        let Place::Staged(slot, digest) = record.place else {
            continue;
        };
        record.place = Place::Leaving;
        let record = *record;
        state.transits += 1;
        state.leaving += 1;
        drop(state);
        worker.evict(*unit, record, slot, digest);
    }
    let state = engine.lock();
    let home = |r: &Record| matches!(r.place, Place::Resident | Place::Host);
    units.iter().all(|u| state.units.get(*u).is_none_or(home))
}

struct Worker {
    engine: &'static Engine,
    /// The thread's own event, made when it is first needed.
    event: Option<Handle>,
    fronts: Vec<(Lane, Handle)>,
}

impl Drop for Worker {
    fn drop(&mut self) {
        let mut state = self.engine.lock();
        // In a context that is gone it is gone too.
        if state.phase != Phase::Off {
            state.flights.give(self.event);
        }
    }
}

/// Where a transit has led to.
enum End {
    At(Place),
    /// There, and there for good: something is wrong with the way.
    Stuck(Place),
}

impl Worker {
    fn new(engine: &'static Engine) -> Worker {
        Worker {
            engine,
            event: None,
            fronts: Vec::new(),
        }
    }

    /// Asks which operations have ended.
    fn reap(&mut self) {
        {
            let mut state = self.engine.lock();
            // Who pauses has seen to it that nobody is here: the events are used again behind a drain.
            let others = state.reaping || state.paused > 0;
            if others || state.flights.is_empty() || state.phase != Phase::Armed {
                return;
            }
            state.reaping = true;
            state.flights.fronts(&mut self.fronts);
        }
        let mut ended = Vec::new();
        loop {
            // A device that is broken ends nothing any more; what is drained is seen elsewhere.
            self.fronts
                .retain(|(_, event)| matches!(queue::passed(*event), Ok(true)));
            if self.fronts.is_empty() {
                break;
            }
            let mut guard = self.engine.lock();
            let state = &mut *guard;
            for (lane, event) in std::mem::take(&mut self.fronts) {
                let Some(flight) = state.flights.passed(lane, event) else {
                    continue;
                };
                for unit in &flight.units {
                    if let Some(record) = state.units.get_mut(*unit) {
                        record.uses = record.uses.saturating_sub(1);
                    }
                }
                ended.push(flight);
            }
            state.flights.fronts(&mut self.fronts);
        }
        let clock = self.engine.lock().clock;
        let times: Vec<Option<(f64, f64)>> = ended
            .iter()
            .map(|flight| {
                let begin = flight.begin?;
                let since = queue::seconds(clock?, begin).ok()?;
                let took = queue::seconds(begin, flight.event).ok()?;
                Some((since, since + took))
            })
            .collect();
        let mut state = self.engine.lock();
        for (flight, time) in ended.into_iter().zip(times) {
            if let Some((begin, end)) = time {
                state.chooser.ran(flight.number, begin, end, flight.in_vram);
            }
            state.flights.give([flight.event]);
            state.flights.give(flight.begin);
        }
        state.reaping = false;
        drop(state);
        self.engine.notify();
    }

    /// The stream of a direction and the thread's event, in the engine's context, which is current.
    fn tools(&mut self, direction: usize) -> driver::Result<(Handle, Handle)> {
        let event = match self.event {
            Some(event) => event,
            None => *self.event.insert(queue::event()?),
        };
        let known = self.engine.lock().streams;
        let streams = match known {
            Some(streams) => streams,
            None => {
                let made = [queue::stream()?, queue::stream()?];
                *self.engine.lock().streams.get_or_insert(made)
            }
        };
        Ok((streams[direction], event))
    }

    /// Ends a transit.
    fn end(&self, unit: Unit, end: End, leaving: bool, alias: u64, free: Option<Slot>) {
        let mut guard = self.engine.lock();
        let state = &mut *guard;
        state.transits -= 1;
        state.leaving -= u32::from(leaving);
        let (place, stuck) = match end {
            End::At(place) => (place, false),
            End::Stuck(place) => (place, true),
        };
        match place {
            Place::Staged(..) => state.chooser.staged(unit),
            _ => state.chooser.evicted(unit),
        }
        let base = state.units.get_mut(unit).map(|record| {
            record.place = place;
            record.alias = alias;
            record.base
        });
        if stuck {
            state.chooser.forbid(unit);
        }
        if stuck && let Some(tracked) = base.and_then(|b| state.units.tracked_mut(b)) {
            tracked.fixed = true;
        }
        if let Some(slot) = free {
            state.slots.give(slot);
        }
        drop(guard);
        self.engine
            .last_transit
            .store(telemetry::monotonic(), SeqCst);
        self.engine.notify();
    }

    /// Brings a chunk into a slot.
    fn stage(&mut self, unit: Unit, record: Record, way: Way) {
        let engine = self.engine;
        let bytes = record.home.size;
        let slot = match way {
            Way::Use(slot) => Some(slot),
            Way::Make(away) => {
                for slot in away {
                    // SAFETY: a free slot is mapped nowhere else, and nothing uses it.
                    unsafe { slots::destroy(slot) };
                }
                slots::make(engine.device, bytes).ok()
            }
            Way::Full => None,
        };
        let Some(slot) = slot else {
            let mut state = engine.lock();
            state.slots.lost(bytes);
            // The card holds no more than there are.
            let less = state.slots.shrink();
            drop(state);
            engine.unreserve(less);
            return self.end(unit, End::At(Place::Host), false, record.alias, None);
        };
        let alias = engine::alias_of(engine.device, &record).unwrap_or(0);
        let motion = Motion::begin().filter(|_| alias != 0);
        if motion.is_none() {
            return self.end(unit, End::At(Place::Host), false, alias, Some(slot));
        }
        let context = engine.lock().context;
        let made = drain::in_known_context(context, || self.bring(&record, alias, slot));
        match made.unwrap_or(Err(Fault::Nothing)) {
            Ok(digest) => {
                let traffic = &engine.device.entry(engine.job).traffic;
                traffic.stagings.fetch_add(1, Relaxed);
                traffic.staged_bytes.fetch_add(bytes, Relaxed);
                let place = Place::Staged(slot, digest);
                self.end(unit, End::At(place), false, alias, None);
            }
            Err(Fault::Nothing) => self.end(unit, End::At(Place::Host), false, alias, Some(slot)),
            // The copy may go on: the slot is not used again.
            Err(Fault::Copy) => self.end(unit, End::Stuck(Place::Host), false, alias, None),
        }
        drop(motion);
    }

    /// Unmaps a chunk, copies it into a slot and maps that in its place. The old place has all bytes until then, and is
    /// mapped again if anything fails.
    fn bring(&mut self, record: &Record, alias: u64, slot: Slot) -> Result<Option<Digest>, Fault> {
        let (stream, event) = self.tools(0).map_err(|_| Fault::Nothing)?;
        let bytes = record.home.size as usize;
        // SAFETY: in transit: no operation under way names the chunk, none can begin, and nothing else reaches it. The
        // aliases are the shim's own, and live on.
        unsafe {
            driver::unmap(record.address, bytes).map_err(|_| Fault::Nothing)?;
            let copied = queue::copy_on(stream, slot.alias, alias, bytes)
                .map_err(|_| Fault::Nothing)
                .and_then(|()| {
                    let digest = proof::digest(self.engine, stream, slot.alias, record.home.size);
                    let waited =
                        queue::record(event, stream, false).and_then(|()| queue::wait(event));
                    waited.map_err(|_| Fault::Copy).map(|()| digest)
                });
            let copied = copied.map(|digest| digest.and_then(|d| d.value()));
            let settled = copied.and_then(|digest| {
                self.settle(record.address, slot.chunk)
                    .map_err(|_| Fault::Nothing)
                    .map(|()| digest)
            });
            settled.inspect_err(|_| self.must_settle(record.address, record.home))
        }
    }

    /// Sends a chunk home.
    fn evict(&mut self, unit: Unit, record: Record, slot: Slot, digest: Option<Digest>) {
        let stays = Place::Staged(slot, digest);
        let Some(motion) = Motion::begin() else {
            return self.end(unit, End::At(stays), true, record.alias, None);
        };
        let context = self.engine.lock().context;
        let gone = drain::in_known_context(context, || self.send(&record, slot, digest));
        match gone.unwrap_or(Err(Fault::Nothing)) {
            Ok(()) => self.end(unit, End::At(Place::Host), true, record.alias, Some(slot)),
            Err(Fault::Nothing) => self.end(unit, End::At(stays), true, record.alias, None),
            Err(Fault::Copy) => {
                let stays = Place::Staged(slot, None);
                self.end(unit, End::Stuck(stays), true, record.alias, None);
            }
        }
        drop(motion);
    }

    /// Unmaps a chunk, copies it home unless it is as it came, and maps its home in its place. The slot has all bytes
    /// until then, and is mapped again if anything fails.
    fn send(&mut self, record: &Record, slot: Slot, came: Option<Digest>) -> Result<(), Fault> {
        let (stream, event) = self.tools(1).map_err(|_| Fault::Nothing)?;
        let bytes = record.home.size as usize;
        // SAFETY: as in `bring`.
        unsafe {
            driver::unmap(record.address, bytes).map_err(|_| Fault::Nothing)?;
            let wait = || queue::record(event, stream, false).and_then(|()| queue::wait(event));
            let is = came.and_then(|_| {
                let pending = proof::digest(self.engine, stream, slot.alias, record.home.size);
                wait().ok().and(pending)?.value()
            });
            let clean = came.is_some() && came == is;
            let home = match clean {
                true => Ok(()),
                false => {
                    let traffic = &self.engine.device.entry(self.engine.job).traffic;
                    traffic.returned_bytes.fetch_add(record.home.size, Relaxed);
                    queue::copy_on(stream, record.alias, slot.alias, bytes)
                        .and_then(|()| wait())
                        .map_err(|_| Fault::Copy)
                }
            };
            let settled = home.and_then(|()| {
                self.settle(record.address, record.home)
                    .map_err(|_| Fault::Copy)
            });
            settled.inspect_err(|_| self.must_settle(record.address, slot.chunk))
        }
    }

    /// Maps a chunk where nothing is mapped, for all who use the device's ranges; or leaves nothing mapped.
    ///
    /// # Safety
    /// The chunk is in transit.
    unsafe fn settle(&self, address: u64, chunk: Chunk) -> driver::Result<()> {
        let bytes = chunk.size as usize;
        // SAFETY: the caller's promise.
        unsafe {
            driver::map(address, bytes, chunk.handle)?;
            driver::set_access(address, bytes, self.engine.device.users()).inspect_err(|_| {
                let _ = driver::unmap(address, bytes);
            })
        }
    }

    /// The same, where there is no other way.
    ///
    /// # Safety
    /// The chunk is in transit.
    unsafe fn must_settle(&self, address: u64, chunk: Chunk) {
        // SAFETY: the caller's promise.
        if let Err(code) = unsafe { self.settle(address, chunk) } {
            if code == CUDA_ERROR_ILLEGAL_ADDRESS
                && let Some(what) = engine::suspect()
            {
                process::stop(&what);
            }
            let tier = match chunk.tier {
                Tier::Vram => "VRAM",
                Tier::Host => "host memory",
            };
            process::stop(&format!(
                "{tier} could not be mapped back where the program has it (error {code})"
            ));
        }
    }
}

/// Why a transit did not come to its end. The chunk is mapped where it was.
#[derive(Clone, Copy, Debug)]
enum Fault {
    /// Nothing has happened.
    Nothing,
    /// A copy failed, and may go on.
    Copy,
}
