//! Searching memory for words that name allocations: all of it before anything is staged, and behind each function that
//! is given an unescaped allocation for the first time.
//!
//! What such a function can have written is what it was given, what has escaped, and what everybody reaches; so Host memory
//! that it was not given is not read again, which would take as long as the link takes.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::engine::Engine;
use super::escape::Status;
use super::kernels::input::Area;
use super::kernels::{self, Hash, Kernels};
use greenboost_abi::CUDA_ERROR_INVALID_VALUE;

use crate::driver::{self, queue};
use crate::tier::map::Handle;
use crate::tier::moving;
use crate::tier::{counted, device, drain, graphs, map, pools};
use greenboost_wire::ledger::{Part, Tier};

/// How long the device may take to drain behind a watched launch: as long as what is queued before it.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long a search may take until it is given up: many times what it takes.
const LONGEST: Duration = Duration::from_secs(10);
/// Multiprocessors that a hash may use while the program's kernels run.
const FEW: u32 = 16;

/// Memory that the program has mapped itself, by address: bytes.
static OTHERS: Mutex<BTreeMap<u64, u64>> = Mutex::new(BTreeMap::new());

/// The program has mapped memory here itself, or has unmapped what begins in these bytes.
pub fn mapped(address: u64, bytes: u64, on: bool) {
    let mut others = OTHERS.lock().unwrap_or_else(PoisonError::into_inner);
    match on {
        true => drop(others.insert(address, bytes)),
        false => others.retain(|at, _| !(address..address + bytes).contains(at)),
    }
}

/// Loads the engine's kernels. Where nothing may be allocated they are there already: see [`known`].
pub fn load(engine: &Engine) -> bool {
    let context = engine.lock().context;
    kernels::get(engine.job, engine.device, context).is_ok()
}

fn known(engine: &Engine) -> Option<Arc<Kernels>> {
    let context = engine.lock().context;
    kernels::known(context)
}

/// Hashes a chunk in stream order. `None`: it cannot be known whether it changes.
///
/// # Safety
/// As for [`Kernels::hash`].
pub unsafe fn digest(engine: &Engine, stream: Handle, address: u64, bytes: u64) -> Option<Hash> {
    // SAFETY: the caller's promise.
    unsafe { known(engine)?.hash(stream, address, bytes, FEW) }.ok()
}

/// All memory that the device's kernels reach and that a word can be in; of Host chunks those that `host` says. `None`: there is some
/// that cannot be searched.
fn areas(engine: &Engine, host: impl Fn(u64) -> bool) -> Option<Vec<Area>> {
    let mut areas = Vec::new();
    let mut add = |address, bytes| areas.push(Area { address, bytes });
    let device = engine.device;
    map::each(|a| match &a.backing {
        map::Backing::Pinned(pinned) => add(pinned.base, pinned.span),
        // What another device has is out of reach.
        _ if a.device != device.ordinal => {}
        map::Backing::Range(range) => {
            let mut address = range.base;
            for (index, chunk) in range.chunks().iter().enumerate() {
                let near = chunk.tier == Tier::Vram
                    || host(a.base)
                    || super::away(a.device, a.base, index);
                if near {
                    add(address, chunk.size);
                }
                address += chunk.size;
            }
        }
        map::Backing::Piece => add(a.base, a.size),
    });
    // Memory of another device that this one reaches can only be searched over there.
    let mut unseen = graphs::any() || device::all().any(drain::shared);
    // What is charged is rounded up: how much it is the driver knows.
    let (mut whole, mut registered) = (Vec::new(), Vec::new());
    map::each_counted(|address, index| {
        if index == device.index {
            whole.push(address);
        }
    });
    pools::each_own(|address, index| {
        if index == device.index {
            whole.push(address);
        }
    });
    counted::each(|part, handle, _| match part {
        Part::Pinned => whole.push(handle),
        Part::Registered => registered.push(handle),
        Part::Managed | Part::External => unseen = true,
        // Texels are no addresses for any kernel that computes with them; code and constants are not written.
        Part::Arrays | Part::Code => {}
    });
    for address in registered {
        match driver::device_address(address) {
            Ok(address) => whole.push(address),
            Err(_) => unseen = true,
        }
    }
    for address in whole {
        match driver::extent(address) {
            Ok((base, bytes)) => add(base, bytes as u64),
            // Freed meanwhile, by a thread that the device was drained for.
            Err(CUDA_ERROR_INVALID_VALUE) => {}
            Err(_) => unseen = true,
        }
    }
    for (address, bytes) in OTHERS.lock().unwrap_or_else(PoisonError::into_inner).iter() {
        if driver::readable(*address, device.ordinal) {
            add(*address, *bytes);
        }
    }
    (!unseen).then_some(areas)
}

/// Searches memory for words that name what has not escaped. `None`: it could not be done. Else what has escaped by it.
///
/// # Safety
/// The device is drained and stays so, and nothing is in transit.
pub unsafe fn search(engine: &Engine, host: impl Fn(u64) -> bool) -> Option<Vec<u64>> {
    let context = engine.lock().context;
    let areas = drain::in_known_context(context, || areas(engine, host)).ok()??;
    let (ranges, of) = engine.lock().escapes.wanted();
    let kernels = known(engine)?;
    let mut found = Vec::with_capacity(ranges.len());
    for table in ranges.chunks(kernels::MOST_RANGES) {
        // SAFETY: the caller's promise.
        found.extend(unsafe { look(engine, &kernels, &areas, table)? });
    }
    let mut state = engine.lock();
    let escaped = state.escapes.searched(&of, &found);
    escaped.iter().for_each(|base| state.expose(*base));
    Some(escaped)
}

/// # Safety
/// As for [`search`].
unsafe fn look(
    engine: &Engine,
    kernels: &Arc<Kernels>,
    areas: &[Area],
    table: &[Range<u64>],
) -> Option<Vec<bool>> {
    /// Areas of one scan: its input has to fit.
    const AREAS: usize = 4096;
    let mut found = vec![false; table.len()];
    let stream = engine.stream()?;
    for areas in areas.chunks(AREAS) {
        // SAFETY: the caller's promise.
        let scan = unsafe { kernels.scan(stream, areas, table, u32::MAX) }.ok()?;
        let end = Instant::now() + LONGEST;
        let flags = loop {
            match scan.flags() {
                Some(flags) => break flags,
                None if Instant::now() > end => return None,
                None => std::thread::sleep(Duration::from_micros(50)),
            }
        };
        found.iter_mut().zip(flags).for_each(|(f, now)| *f |= now);
    }
    Some(found)
}

/// Searches memory behind the first launch of a function that was given these allocations. The calling thread is outside
/// the gate, and transits are paused.
pub fn behind(engine: &'static Engine, function: u64, bases: &[u64]) {
    let searched = match moving::still(engine.device, PATIENCE) {
        // SAFETY: the stillness is held.
        Ok(_still) => unsafe {
            let escaped: Vec<u64> = {
                let state = engine.lock();
                let all = state.units.all().map(|(_, r)| r.base);
                all.filter(|b| state.escapes.status(*b) == Status::Escaped)
                    .collect()
            };
            search(engine, |base| {
                bases.contains(&base) || escaped.contains(&base)
            })
        },
        Err(_) => None,
    };
    let mut state = engine.lock();
    match searched {
        Some(escaped) => state.escapes.watched(function, !escaped.is_empty()),
        // It is watched again when it is launched again; until all memory has been searched nothing of this moves.
        None => bases.iter().for_each(|base| state.escapes.doubt(*base)),
    }
}

/// An event that times are counted from.
pub fn clock(engine: &Engine) -> Option<Handle> {
    if let Some(clock) = engine.lock().clock {
        return Some(clock);
    }
    let (stream, context) = (engine.stream()?, engine.lock().context);
    let make = || {
        let event = queue::event()?;
        // SAFETY: an event and a stream of this context.
        unsafe { queue::record(event, stream, false) }.map(|()| event)
    };
    drain::in_known_context(context, make).ok()?.ok()
}

impl Engine {
    /// A stream of the shim's in the engine's context.
    pub fn stream(&self) -> Option<Handle> {
        let (context, known) = {
            let state = self.lock();
            (state.context, state.streams)
        };
        if let Some(streams) = known {
            return Some(streams[0]);
        }
        let make = || Ok::<_, driver::Error>([queue::stream()?, queue::stream()?]);
        let made = drain::in_known_context(context, make).ok()?.ok()?;
        Some(self.lock().streams.get_or_insert(made)[0])
    }
}
