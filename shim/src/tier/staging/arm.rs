//! When staging begins, and what is put in order where the program waits.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering::*};
use std::time::Duration;

use greenboost_wire::ledger::Tier;

use super::engine::{self, Engine, Phase};
use super::escape::Status;
use super::units::{Place, Record};
use super::{proof, transit};
use crate::telemetry::monotonic;
use crate::tier::chunk::GRAIN;
use crate::tier::device::Device;
use crate::tier::moving;
use crate::tier::policy::Move;
use crate::{driver, process};

/// How long the device may take to drain where the program has just waited.
const PATIENCE: Duration = Duration::from_millis(3);
/// After an attempt that failed, until the next: at first, and at most.
const BACKOFF: [u64; 2] = [100_000_000, 10_000_000_000];

/// Whether chance chooses, for tests: `GREENBOOST_TRANSITS=always`.
pub fn always() -> bool {
    static ALWAYS: OnceLock<bool> = OnceLock::new();
    *ALWAYS.get_or_init(|| std::env::var_os("GREENBOOST_TRANSITS").is_some_and(|v| v == "always"))
}

/// What staging wants of who moves chunks.
pub enum Wish {
    /// So many bytes free in the VRAM budget, as far as that can be.
    Room(u64),
    /// These moves, in this order.
    Moves(Vec<Move>),
}

/// The program has waited for the device. `grant` does what is wished on a device, as far as it can.
pub fn waited(mut grant: impl FnMut(&'static Device, Wish)) {
    if !engine::active() || process::live().is_none() {
        return;
    }
    for engine in engine::all() {
        let phase = engine.lock().phase;
        match phase {
            Phase::Watching => begin(engine, &mut grant),
            Phase::Armed => {
                tidy(engine);
                spread(engine, &mut grant);
            }
            Phase::Off => {}
        }
    }
}

/// Gives up all slots of a device, if it drains in time: an allocation would be refused otherwise. Staging begins again
/// later. Returns whether anything was given up.
pub fn surrender(device: &Device) -> bool {
    let Some(engine) = engine::of(device.ordinal) else {
        return false;
    };
    if engine.lock().slots.limit == 0 {
        return false;
    }
    if let Ok(_still) = moving::still(device, PATIENCE) {
        let bases: Vec<u64> = {
            let state = engine.lock();
            let staged = |r: &&Record| matches!(r.place, Place::Staged(..));
            let all = state.units.all().map(|(_, r)| r);
            all.filter(staged).map(|r| r.base).collect()
        };
        for base in bases {
            // SAFETY: the stillness is held.
            unsafe { transit::send_home(engine, base) };
        }
        let mut state = engine.lock();
        if state.phase == Phase::Armed {
            state.phase = Phase::Watching;
        }
        drop(state);
        failed();
    }
    engine::make_room(device.ordinal)
}

/// Brings home all of an allocation that is fixed, if the device drains in time. Returns whether it is there.
pub fn at_home(device: &Device, base: u64) -> bool {
    const LONG: Duration = Duration::from_secs(2);
    if engine::fix(device.ordinal, base) {
        return true;
    }
    let Some(engine) = engine::of(device.ordinal) else {
        return true;
    };
    // SAFETY: the stillness is held.
    moving::still(device, LONG).is_ok_and(|_still| unsafe { transit::send_home(engine, base) })
}

/// When the next attempt may be, and how long after it the one after that; nanoseconds.
static NEXT: AtomicU64 = AtomicU64::new(0);
static PAUSE: AtomicU64 = AtomicU64::new(BACKOFF[0]);

fn attempt() -> bool {
    monotonic() >= NEXT.load(Relaxed)
}

fn failed() {
    let pause = PAUSE.load(Relaxed);
    NEXT.store(monotonic() + pause, Relaxed);
    PAUSE.store((2 * pause).min(BACKOFF[1]), Relaxed);
}

/// Takes room for slots, searches memory, and starts.
fn begin(engine: &'static Engine, grant: &mut impl FnMut(&'static Device, Wish)) {
    // Before 12.4 the driver does not tell what a launch names.
    if driver::version() < 12040 {
        return;
    }
    let wanted = engine.lock().chooser.slots();
    if wanted == 0 || !attempt() {
        return;
    }
    if !proof::load(engine) {
        return failed();
    }
    grant(engine.device, Wish::Room(wanted));
    let Some(reserved) = reserve(engine, wanted) else {
        return failed();
    };
    let searched = match moving::still(engine.device, PATIENCE) {
        // SAFETY: the stillness is held.
        Ok(still) => unsafe {
            let searched = proof::search(engine, |_| true);
            if searched.is_some() {
                let clock = proof::clock(engine);
                let mut state = engine.lock();
                state.clock = clock;
                state.slots.limit += reserved;
                let lent = state.slots.limit;
                state.phase = Phase::Armed;
                drop(state);
                engine.device.spare.lend(lent);
            }
            drop(still);
            searched
        },
        Err(_) => None,
    };
    match searched {
        Some(_) => transit::start(engine),
        None => {
            engine.unreserve(reserved);
            failed();
        }
    }
}

/// Reserves so many bytes for slots, or as many as there is room for: at least a quarter.
fn reserve(engine: &Engine, wanted: u64) -> Option<u64> {
    (0..8).find_map(|eighths| {
        let bytes = (wanted * (8 - eighths) / 8).next_multiple_of(GRAIN);
        let place = &engine.job.place;
        let fits = eighths <= 6
            && place
                .reserve(Tier::Vram, engine.device.index, bytes)
                .is_ok();
        fits.then_some(bytes)
    })
}

/// Chunks that change their homes at a time: what holds the program up no longer than moves may.
const SWAPS: usize = 8;
/// Between two looks at the layout, nanoseconds.
const SPREAD: u64 = 500_000_000;

/// Spreads what streams along the order of use.
fn spread(engine: &'static Engine, grant: &mut impl FnMut(&'static Device, Wish)) {
    static LAST: AtomicU64 = AtomicU64::new(0);
    let now = monotonic();
    if now.saturating_sub(LAST.load(Relaxed)) < SPREAD {
        return;
    }
    LAST.store(now, Relaxed);
    let moves: Vec<Move> = {
        let mut state = engine.lock();
        let pairs = state.chooser.layout(SWAPS);
        let to = |unit, to| {
            let record = state.units.get(unit)?;
            let tracked = state.units.tracked(record.base)?;
            let chunk = tracked.units.iter().position(|u| *u == unit)?;
            let home = matches!(record.place, Place::Resident | Place::Host);
            home.then_some(Move {
                base: record.base,
                chunk,
                to,
            })
        };
        // Both or neither, and what makes room first.
        let both = |(leaves, comes)| Some([to(leaves, Tier::Host)?, to(comes, Tier::Vram)?]);
        pairs.into_iter().filter_map(both).flatten().collect()
    };
    if !moves.is_empty() {
        grant(engine.device, Wish::Moves(moves));
    }
}

/// Where operations hold chunks until the device is drained, or what has escaped is in a slot, the device is looked at.
fn tidy(engine: &'static Engine) {
    let (held, unproven, strays) = {
        let state = engine.lock();
        let strays: Vec<u64> = state
            .units
            .all()
            .filter(|(_, r)| matches!(r.place, Place::Staged(..)))
            .map(|(_, r)| r.base)
            .filter(|base| state.escapes.status(*base) == Status::Escaped)
            .collect();
        let held = state.units.all().any(|(_, r)| r.foreign);
        (held, state.escapes.is_unproven(), strays)
    };
    if !(held || unproven || !strays.is_empty()) || !attempt() {
        return;
    }
    let Ok(still) = moving::still(engine.device, PATIENCE) else {
        return failed();
    };
    PAUSE.store(BACKOFF[0], Relaxed);
    // SAFETY: the stillness is held.
    unsafe {
        for base in strays {
            transit::send_home(engine, base);
        }
        if unproven && proof::search(engine, |_| true).is_none() {
            failed();
        }
    }
    drop(still);
}
