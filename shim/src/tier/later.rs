//! Frees in stream order, and the use of what they give back.
//!
//! `cuMemFreeAsync` of memory that the shim backs does not wait: an event behind it on its stream says when the program
//! is done with the memory. Until then, and after it, the memory serves new stream-ordered allocations as a pool of the
//! driver's does: at once those on the same stream, those on any other once the event has passed. Both follow from what
//! the program promises with its free: nothing that comes after it in its stream, or is ordered behind that, uses the
//! memory.
//!
//! Nothing is unmapped on that promise alone. For that the device is drained, as for every free: by a `cuMemFree`, which
//! waits anyway, or by a helper with a deadline when a budget has no room or too much has gathered.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use greenboost_wire::ledger::Tier;

use super::chunk::GRAIN;
use super::device::{self, Device};
use super::drain;
use super::free;
use super::map::{Allocation, Backing, Handle};
use super::small;
use super::stream::{Lane, Stream};
use crate::driver;
use crate::process::Job;

/// How long an allocation waits for the device to drain before it goes without what lies here: to a slower tier, or, when
/// it is host memory that is short, nowhere.
const PATIENCE: [Duration; 2] = [Duration::from_millis(20), Duration::from_millis(500)];
/// Between two drains for VRAM.
const PAUSE: Duration = Duration::from_millis(500);
/// Allocations that may gather, whatever their size.
const MOST: usize = 1024;

/// Freed by the program in stream order, not yet by us.
struct Waiting {
    allocation: Allocation,
    proof: Proof,
    lane: Option<Lane>,
}

/// What is known of the work before a free.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Proof {
    /// An event behind it, made in this context.
    Event(Handle, Handle),
    /// It is done.
    Passed,
    /// Only a drained device proves it.
    None,
}

static WAITING: Mutex<Vec<Waiting>> = Mutex::new(Vec::new());

fn waiting() -> MutexGuard<'static, Vec<Waiting>> {
    WAITING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes an allocation that the program has just freed on a stream.
///
/// # Errors
/// The allocation, and why the driver put no event behind the free: its context is broken.
pub fn put(
    job: &Job,
    allocation: Allocation,
    stream: &Stream,
) -> Result<(), Box<(Allocation, driver::Error)>> {
    let event = drain::in_context(stream.context, || driver::event_behind(stream.handle))
        .and_then(|made| made);
    let event = match event {
        Ok(event) => event,
        Err(code) => return Err(Box::new((allocation, code))),
    };
    let ordinal = allocation.device;
    waiting().push(Waiting {
        allocation,
        proof: Proof::Event(event, stream.context),
        lane: stream.lane,
    });
    if let Some(device) = device::known(ordinal)
        && too_much(job, device)
    {
        release(job, device, None, Duration::from_millis(1));
    }
    Ok(())
}

/// Takes an allocation whose program says that it is done with it.
pub fn put_done(allocation: Allocation) {
    waiting().push(Waiting {
        allocation,
        proof: Proof::Passed,
        lane: None,
    });
}

/// Bytes, and whether an allocation of `bytes` can use this memory without wasting a quarter of it.
fn fits(allocation: &Allocation, bytes: u64) -> Option<u64> {
    let span = match &allocation.backing {
        Backing::Range(range) => range.span,
        Backing::Pinned(pinned) => pinned.span,
        // A piece goes back to its slab by its size.
        Backing::Piece => {
            let same = |bytes| small::rounded(allocation.size) == small::rounded(bytes);
            return (bytes < GRAIN && same(bytes)).then_some(allocation.size);
        }
    };
    let need = bytes.checked_next_multiple_of(GRAIN)?;
    (bytes >= GRAIN && (need..=need.saturating_add(need / 4)).contains(&span)).then_some(span)
}

/// Memory for a new stream-ordered allocation on this device, the tightest there is; its size is the new one.
pub fn take(device: &Device, stream: &Stream, bytes: u64) -> Option<Allocation> {
    let (mut taken, event) = {
        let mut list = waiting();
        if list.is_empty() {
            return None;
        }
        refresh(&mut list, device);
        let usable = |w: &Waiting| {
            let same = w.lane.is_some() && w.lane == stream.lane && w.proof != Proof::None;
            // What others know of is nobody else's afterwards.
            let own = w.allocation.device == device.ordinal && !w.allocation.ties.fixed;
            own && (w.proof == Proof::Passed || same)
        };
        let (_, at) = list
            .iter()
            .enumerate()
            .filter(|(_, w)| usable(w))
            .filter_map(|(i, w)| Some((fits(&w.allocation, bytes)?, i)))
            .min()?;
        let taken = list.swap_remove(at);
        (taken.allocation, taken.proof)
    };
    forget(event);
    taken.size = bytes;
    Some(taken)
}

/// Finds out which events have passed. Queries never wait, so the lock may be held.
fn refresh(list: &mut [Waiting], device: &Device) {
    let _relaxed = drain::capturing().then(driver::Relaxed::enter);
    for w in list
        .iter_mut()
        .filter(|w| w.allocation.device == device.ordinal)
    {
        if let Proof::Event(event, _) = w.proof
            && driver::event_passed(event)
        {
            forget(w.proof);
            w.proof = Proof::Passed;
        }
    }
}

/// Destroys an event; the driver does that when it has passed.
fn forget(proof: Proof) {
    if let Proof::Event(event, _) = proof {
        driver::event_destroy(event);
    }
}

/// More than is kept of spare chunks, or very many.
fn too_much(job: &Job, device: &Device) -> bool {
    let vram = device.entry(job).vram_limit();
    let ram = job.place.ledger().settings().ram_limit;
    waiting().len() > MOST
        || bytes(device, Tier::Vram) > (vram / 16).min(512 << 20)
        || bytes(device, Tier::Host) > (ram / 8).min(2 << 30)
}

/// Bytes of a tier that lie here: free to the program, as spare chunks are.
pub fn bytes(device: &Device, tier: Tier) -> u64 {
    waiting()
        .iter()
        .filter(|w| w.allocation.device == device.ordinal)
        .map(|w| w.allocation.bytes(tier))
        .sum()
}

/// Takes down what the program is done with, or all of it that holds bytes of one tier, if the device drains in time.
/// Returns whether there was anything.
pub fn release(job: &Job, device: &Device, tier: Option<Tier>, patience: Duration) -> bool {
    if drain::capturing() {
        return false;
    }
    let ripe = {
        let mut list = waiting();
        if list.is_empty() {
            return false;
        }
        refresh(&mut list, device);
        let wanted = |w: &mut Waiting| {
            w.allocation.device == device.ordinal
                && !matches!(w.proof, Proof::Event(..))
                && tier.is_none_or(|t| w.allocation.bytes(t) > 0)
        };
        list.extract_if(.., wanted).collect::<Vec<_>>()
    };
    if ripe.is_empty() {
        return false;
    }
    if !drain::within(device.ordinal, patience) {
        waiting().extend(ripe);
        return false;
    }
    for w in ripe {
        // SAFETY: the device was drained after the program's free, which is behind all of its uses.
        unsafe { free::give_back(job, device, w.allocation) };
    }
    true
}

/// The program trims a pool: it wants memory back, and does not want to wait.
pub fn trim(job: &Job, device: &Device) {
    release(job, device, None, Duration::from_millis(1));
}

/// Gives up what lies here for an allocation that a tier has no room for. Returns whether there was anything. For VRAM,
/// which host memory can stand in for, the device is not drained at every turn.
pub fn make_room(job: &Job, device: &Device, tier: Tier) -> bool {
    static LAST: Mutex<Option<Instant>> = Mutex::new(None);
    if tier == Tier::Vram && bytes(device, tier) > 0 {
        let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
        if last.is_some_and(|at| at.elapsed() < PAUSE) {
            return false;
        }
        *last = Some(Instant::now());
    }
    release(job, device, Some(tier), PATIENCE[tier as usize])
}

/// What was freed on a device so far, for a caller who is about to drain it.
pub struct Batch(Vec<Waiting>);

/// Takes all that was freed on a device.
pub fn batch(device: &Device) -> Batch {
    let mut list = waiting();
    Batch(
        list.extract_if(.., |w| w.allocation.device == device.ordinal)
            .collect(),
    )
}

impl Batch {
    /// The device could not be drained.
    pub fn put_back(self) {
        // While it was out nobody saw its streams end: they prove nothing any more.
        let all = self.0.into_iter().map(|w| Waiting { lane: None, ..w });
        waiting().extend(all);
    }

    /// Takes everything down.
    ///
    /// # Safety
    /// The device was drained since the batch was taken.
    pub unsafe fn give_back(self, job: &Job, device: &Device) {
        for w in self.0 {
            forget(w.proof);
            // SAFETY: all that was queued when the program freed it is done.
            unsafe { free::give_back(job, device, w.allocation) };
        }
    }
}

/// A stream is about to end: another may get its name.
pub fn stream_ends(lane: Lane) {
    for w in waiting().iter_mut().filter(|w| w.lane == Some(lane)) {
        w.lane = None;
    }
}

/// A context is about to end, and its events with it.
pub fn context_ends(context: Handle) {
    for w in waiting().iter_mut() {
        let mine = matches!(w.proof, Proof::Event(_, c) if c == context);
        // Registered memory may be unregistered with the context that it was registered in.
        let pinned = matches!(w.allocation.backing, Backing::Pinned(_));
        if pinned && !mine {
            forget(w.proof);
        }
        if mine || pinned {
            (w.proof, w.lane) = (Proof::None, None);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(size: u64) -> Allocation {
        Allocation {
            base: 0x1000,
            size,
            device: 0,
            context: Handle(0),
            ties: Default::default(),
            backing: Backing::Piece,
        }
    }

    #[test]
    fn pieces_fit_by_what_they_take_of_a_slab() {
        assert_eq!(fits(&piece(600), 1000), Some(600));
        assert_eq!(fits(&piece(600), 512), None);
        assert_eq!(fits(&piece(600), 1025), None);
        assert_eq!(fits(&piece(GRAIN), GRAIN), None);
        assert_eq!(fits(&piece(600), u64::MAX), None);
    }
}
