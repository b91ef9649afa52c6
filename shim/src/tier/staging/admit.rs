//! What operations wait for. Every operation that names a tracked chunk comes by here on its way to the driver, inside
//! the gate: launches, whose end is seen by an event of their own; and all others, which hold what they name until the
//! device is found drained.

use std::ffi::c_void;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use greenboost_abi::*;
use greenboost_wire::ledger::Tier;

pub use super::engine::active;
use super::engine::{self, Engine, Paused, Phase, State};
use super::escape::{Function, Status};
use super::flight::{Flight, Lane};
use super::proof;
use super::units::{Place, Unit};
use crate::driver::{self, queue};
use crate::telemetry;
use crate::tier::map::Handle;
use crate::tier::{args, drain, gate};

/// How long a launch waits for chunks that are to be staged for it, before it reads them where they are.
const PATIENCE: Duration = Duration::from_millis(250);

/// How long no launch waits after one has waited in vain.
const IN_VAIN: Duration = Duration::from_secs(5);

/// A launch that names tracked chunks, on its way: they stay where they are.
pub struct Admission {
    engine: &'static Engine,
    units: Vec<Unit>,
    number: u64,
    in_vram: bool,
    begin: Option<Handle>,
    lane: Lane,
    /// The first launch of this function that names an unescaped allocation.
    watch: Option<(u64, Paused)>,
}

/// A launch of a kernel is about to be made. To be followed by [`launched`].
///
/// # Safety
/// What the program launches with, on a stream of its own; a null one is the thread's own if `own`.
#[inline(always)]
pub unsafe fn launch(
    function: CUfunction,
    params: *mut *mut c_void,
    extra: *mut *mut c_void,
    stream: impl FnOnce() -> CUstream,
    own: bool,
) -> Option<Admission> {
    if !engine::active() || function.is_null() {
        return None;
    }
    // SAFETY: the caller's promise.
    unsafe {
        let Some(words) = named(function, params, extra) else {
            blind();
            return None;
        };
        if words.is_empty() {
            return None;
        }
        admit(function as u64, &words, stream(), own)
    }
}

/// The words of a launch's arguments that name tracked memory. `None`: the driver does not tell what arguments there are.
///
/// # Safety
/// As for [`launch`].
unsafe fn named(
    function: CUfunction,
    params: *mut *mut c_void,
    extra: *mut *mut c_void,
) -> Option<Vec<u64>> {
    let mut words = Vec::new();
    // SAFETY: the caller's promise.
    unsafe {
        args::layout(function)?.each(params, extra, |_, word| {
            if super::tracked(word) {
                words.push(word);
            }
        });
    }
    Some(words)
}

/// A launch may name anything: nothing that is tracked now is ever staged again, and nothing of it is in transit.
#[cold]
fn blind() {
    for engine in engine::all() {
        let _paused = engine.pause();
        let mut state = engine.lock();
        let all: Vec<u64> = state.units.all().map(|(_, r)| r.base).collect();
        all.into_iter().for_each(|base| state.expose(base));
    }
}

/// What an operation names that does not say what it names.
pub const ANYTHING: (u64, u64) = (0, u64::MAX);

/// The stream by its own name: a null one is the thread's own, or the one of all.
fn lane(stream: CUstream, own: bool) -> Lane {
    match (stream as usize, own) {
        (0, true) | (CU_STREAM_PER_THREAD, _) => (CU_STREAM_PER_THREAD as u64, thread()),
        (0 | CU_STREAM_LEGACY, _) => (CU_STREAM_LEGACY as u64, 0),
        (other, _) => (other as u64, 0),
    }
}

/// A number for this thread.
fn thread() -> u64 {
    gate::slot().map_or(0, |slot| std::ptr::from_ref(slot) as u64)
}

/// Whether a launch on this stream is captured instead of run; `None`: the driver does not say.
fn captured(lane: Lane) -> Option<bool> {
    match drain::capturing() {
        true => driver::stream_captures(Handle(lane.0 as usize)).ok(),
        false => Some(false),
    }
}

/// # Safety
/// As for [`launch`].
#[cold]
unsafe fn admit(function: u64, words: &[u64], stream: CUstream, own: bool) -> Option<Admission> {
    let engine = engine::tracking(words[0])?;
    let lane = lane(stream, own);
    let captured = captured(lane);
    if engine.lock().phase == Phase::Off || captured == Some(true) {
        return None;
    }
    let context = driver::current_context().unwrap_or(std::ptr::null_mut());
    let mut state = engine.lock();
    let mut units = Vec::new();
    words.iter().for_each(|w| state.units.named(*w, &mut units));
    if units.is_empty() {
        return None;
    }
    let now = telemetry::monotonic() as f64 * 1e-9;
    let number = state.chooser.named(lane.0 ^ lane.1, &units, now);
    if state.phase != Phase::Armed {
        return None;
    }
    if state.context.0 != context as usize || captured.is_none() {
        hold(engine, state, &units);
        return None;
    }
    let (mut state, in_time) = settle(engine, state, &units);
    let watch = match state.escapes.function(function) {
        Function::Harmless => false,
        Function::Maker => {
            let of = units.iter().filter_map(|u| Some(state.units.get(*u)?.base));
            let bases: Vec<u64> = of.collect();
            bases.into_iter().for_each(|b| state.expose(b));
            false
        }
        Function::New => {
            let bases = units.iter().filter_map(|u| Some(state.units.get(*u)?.base));
            let mut unescaped = bases.filter(|b| state.escapes.status(*b) == Status::Unescaped);
            unescaped.next().is_some()
        }
    };
    let in_vram = units.iter().all(|u| {
        state
            .units
            .get(*u)
            .is_none_or(|r| !matches!(r.place, Place::Host))
    });
    state.chooser.launched(number);
    // What was waited for in vain says nothing of how long such operations take.
    let begin = in_time.then(|| state.flights.event());
    drop(state);
    // While a function is watched nothing is in transit: what it touches unseen is where it should be.
    let watch = watch.then(|| (function, engine.pause()));
    let begin = begin.and_then(|known| known.or_else(|| queue::event().ok()));
    if let Some(event) = begin {
        // SAFETY: an event of the context that is current, in which the program launches on this stream.
        let _ = unsafe { queue::record(event, Handle(lane.0 as usize), false) };
    }
    Some(Admission {
        engine,
        units,
        number,
        in_vram,
        begin,
        lane,
        watch,
    })
}

type Guard = std::sync::MutexGuard<'static, State>;

/// Waits until all these chunks are where they can be used, and counts the use of each. One that is on its way, or wanted
/// in a slot, is waited for; none that is found in place leaves it meanwhile. Returns whether all that were wanted came
/// in time.
fn settle(engine: &'static Engine, mut state: Guard, units: &[Unit]) -> (Guard, bool) {
    let begin = Instant::now();
    let mut held = vec![false; units.len()];
    // What cannot all be held at once is not waited for, nor anything while waiting was in vain.
    let outside = |state: &State, u: &Unit| {
        let record = state.units.get(*u).filter(|r| r.home.tier == Tier::Host);
        record.map_or(0, |r| r.home.size)
    };
    let bytes: u64 = units.iter().map(|u| outside(&state, u)).sum();
    let may_wait = bytes <= state.slots.limit && state.in_vain.is_none_or(|end| begin >= end);
    loop {
        let mut wait = false;
        let patient = may_wait && begin.elapsed() < PATIENCE;
        for (unit, held) in units.iter().zip(&mut held) {
            if *held {
                continue;
            }
            let Some(place) = state.units.get(*unit).map(|r| r.place) else {
                *held = true;
                continue;
            };
            let wanted = place == Place::Host
                && patient
                && state.paused == 0
                && engine::may_move(&state.units, &state.escapes, *unit)
                && state.chooser.worth_waiting(*unit);
            if place.in_transit() || wanted {
                wait = true;
                continue;
            }
            *held = true;
            if let Some(record) = state.units.get_mut(*unit) {
                record.uses += 1;
            }
        }
        if !wait {
            let waited = begin.elapsed();
            if may_wait && !patient {
                state.in_vain = Some(begin + waited + IN_VAIN);
            }
            let traffic = &engine.device.entry(engine.job).traffic;
            traffic
                .staging_nanos
                .fetch_add(waited.as_nanos() as u64, Relaxed);
            return (state, patient || !may_wait);
        }
        engine.notify();
        state = engine.wait(state, Duration::from_millis(5));
    }
}

/// The launch was made, or refused. Returns whether memory is to be searched behind it: see [`watch`].
///
/// # Safety
/// The admission of this launch, which the program has just made.
pub unsafe fn launched(admission: Admission, result: CUresult) -> Option<Watch> {
    let Admission {
        engine,
        units,
        number,
        in_vram,
        begin,
        lane,
        watch,
    } = admission;
    let mut state = engine.lock();
    if result != CUDA_SUCCESS {
        release(&mut state, &units);
        state.flights.give(begin);
        drop(state);
        engine.notify();
        return None;
    }
    let event = state.flights.event();
    drop(state);
    let event = event.map_or_else(queue::event, Ok);
    let recorded = event.and_then(|event| {
        // SAFETY: an event of the context that is current, and the stream that the program has just launched on.
        unsafe { queue::record(event, Handle(lane.0 as usize), false) }
            .map(|()| event)
            .inspect_err(|_| driver::event_destroy(event))
    });
    let bases = |state: &State| {
        let of = units.iter().filter_map(|u| Some(state.units.get(*u)?.base));
        let mut all: Vec<u64> = of.collect();
        all.dedup();
        all
    };
    let mut state = engine.lock();
    let watch = watch.map(|(function, paused)| Watch {
        engine,
        function,
        bases: bases(&state),
        _paused: paused,
    });
    match recorded {
        Ok(event) => state.flights.push(
            lane,
            Flight {
                event,
                begin,
                units,
                number,
                in_vram,
            },
        ),
        Err(_) => {
            // When it ends is only known when the device is drained.
            for unit in &units {
                if let Some(record) = state.units.get_mut(*unit) {
                    record.foreign = true;
                }
            }
            release(&mut state, &units);
            state.flights.give(begin);
        }
    }
    watch
}

fn release(state: &mut State, units: &[Unit]) {
    for unit in units {
        if let Some(record) = state.units.get_mut(*unit) {
            record.uses = record.uses.saturating_sub(1);
        }
    }
}

/// A function that was given an unescaped allocation for the first time: nothing is in transit until memory has been
/// searched for what it left.
pub struct Watch {
    engine: &'static Engine,
    function: u64,
    bases: Vec<u64>,
    _paused: Paused,
}

/// Searches memory behind a watched launch. The calling thread is outside the gate.
#[cold]
pub fn watch(watch: Watch) {
    proof::behind(watch.engine, watch.function, &watch.bases);
}

/// A kernel is about to be launched whose end is not seen: what it names has escaped, and is held.
///
/// # Safety
/// What the program launches with.
pub unsafe fn held(function: CUfunction, params: *mut *mut c_void) {
    if !engine::active() || function.is_null() {
        return;
    }
    // SAFETY: the caller's promise.
    let Some(words) = (unsafe { named(function, params, std::ptr::null_mut()) }) else {
        return blind();
    };
    for word in words {
        for engine in engine::all() {
            let mut state = engine.lock();
            let bases: Vec<u64> = state.units.bases_of(word).collect();
            bases.into_iter().for_each(|base| state.expose(base));
        }
        other(word, 0);
    }
}

/// A graph is about to be launched that names these addresses. What it names is held until the device is found drained;
/// the first launch of it that names an unescaped allocation is watched: see [`watch`], for after it was launched.
#[inline]
pub fn graph(exec: u64, all: impl Iterator<Item = u64>) -> Option<Watch> {
    if !engine::active() {
        return None;
    }
    let words: Vec<u64> = all.filter(|a| super::tracked(*a)).collect();
    graph_of(exec, &words)
}

#[cold]
fn graph_of(exec: u64, words: &[u64]) -> Option<Watch> {
    let engine = engine::tracking(*words.first()?)?;
    words.iter().for_each(|word| other(*word, 0));
    let mut state = engine.lock();
    if state.phase != Phase::Armed {
        return None;
    }
    let mut bases: Vec<u64> = words
        .iter()
        .flat_map(|w| state.units.bases_of(*w))
        .collect();
    bases.sort_unstable();
    bases.dedup();
    bases.retain(|b| state.escapes.status(*b) == Status::Unescaped);
    match state.escapes.function(exec) {
        Function::New if !bases.is_empty() => {}
        Function::Maker => {
            bases.iter().for_each(|b| state.expose(*b));
            return None;
        }
        _ => return None,
    }
    drop(state);
    Some(Watch {
        engine,
        function: exec,
        bases,
        _paused: engine.pause(),
    })
}

/// An operation other than a kernel names these bytes, each by address and length.
#[inline]
pub fn operands(all: &[(u64, u64)]) {
    if engine::active() {
        for (address, bytes) in all {
            other(*address, *bytes);
        }
    }
}

/// `bytes` of 0: the whole allocation.
#[cold]
fn other(address: u64, bytes: u64) {
    let last = address.saturating_add(bytes.saturating_sub(1));
    let anything = (address, bytes) == ANYTHING;
    if !anything && !super::tracked(address) && !super::tracked(last) {
        return;
    }
    for engine in engine::all() {
        let state = engine.lock();
        if state.phase != Phase::Armed {
            continue;
        }
        let mut units = Vec::new();
        match bytes {
            _ if anything => units.extend(state.units.all().map(|(unit, _)| unit)),
            0 => state.units.named(address, &mut units),
            _ => state.units.inside(address, bytes, &mut units),
        }
        hold(engine, state, &units);
    }
}

/// Waits until these chunks are in no transit, and keeps them where they are until the device is found drained.
fn hold(engine: &'static Engine, mut state: Guard, units: &[Unit]) {
    loop {
        let mut wait = false;
        for unit in units {
            match state.units.get_mut(*unit) {
                Some(record) if record.place.in_transit() => wait = true,
                Some(record) => record.foreign = true,
                None => {}
            }
        }
        if !wait {
            return;
        }
        state = engine.wait(state, Duration::from_millis(5));
    }
}

/// Host memory is about to be copied to the device: words in it that name an unescaped allocation make it escape.
#[inline]
pub fn upload(from: *const c_void, bytes: usize) {
    if engine::active() {
        for engine in engine::all() {
            search(engine, from as u64, bytes as u64);
        }
    }
}

#[cold]
fn search(engine: &'static Engine, from: u64, bytes: u64) {
    /// Bytes that are looked at in one go.
    const PIECE: usize = 64 << 10;
    let (low, high) = {
        let state = engine.lock();
        if state.phase != Phase::Armed {
            return;
        }
        state.escapes.bounds()
    };
    // Words lie there as they will on the device, whose allocations are aligned, if the source is; if not, every word is
    // looked at that could become one.
    let step = if from.is_multiple_of(8) { 8 } else { 1 };
    let mut piece = vec![0u8; PIECE + 8];
    let mut found = Vec::new();
    let mut at = 0;
    while at < bytes {
        let wanted = (bytes - at).min(piece.len() as u64) as usize;
        let read = match peek(from + at, &mut piece[..wanted]) {
            Ok(read) => read,
            // The driver will refuse it as well.
            Err(libc::EFAULT) => break,
            // A sandbox: nobody knows what is uploaded.
            Err(_) => return blind(),
        };
        let mut inside = 0;
        while inside + 8 <= read && inside < PIECE {
            let word = u64::from_ne_bytes(piece[inside..inside + 8].try_into().unwrap_or_default());
            if (low..high).contains(&(word & ((1 << 48) - 1))) {
                found.push(word);
            }
            inside += step;
        }
        at += PIECE as u64;
    }
    if found.is_empty() {
        return;
    }
    let mut state = engine.lock();
    let mut bases = Vec::new();
    for word in found {
        state.escapes.names(word, |base| bases.push(base));
    }
    let mut units = Vec::new();
    for base in bases {
        state.expose(base);
        state.units.named(base, &mut units);
    }
    // Before anything reads the words, nothing of it is in transit.
    while units
        .iter()
        .any(|u| state.units.get(*u).is_some_and(|r| r.place.in_transit()))
    {
        state = engine.wait(state, Duration::from_millis(5));
    }
}

/// Reads memory of the process that may not be there; how many bytes, or the system's error.
fn peek(from: u64, to: &mut [u8]) -> Result<usize, i32> {
    let here = libc::iovec {
        iov_base: to.as_mut_ptr().cast(),
        iov_len: to.len(),
    };
    let there = libc::iovec {
        iov_base: from as *mut c_void,
        iov_len: to.len(),
    };
    // SAFETY: writes to the buffer only; the kernel looks whether the source can be read.
    let read = unsafe { libc::process_vm_readv(libc::getpid(), &here, 1, &there, 1, 0) };
    match usize::try_from(read) {
        Ok(read) if read > 0 => Ok(read),
        Ok(_) => Err(libc::EFAULT),
        Err(_) => Err(std::io::Error::last_os_error().raw_os_error().unwrap_or(0)),
    }
}
