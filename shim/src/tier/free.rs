//! Freeing: never before all work that could touch the range is done, and never while a capture is open.

use std::sync::{Mutex, PoisonError};

use greenboost_abi::*;
use greenboost_wire::ledger::Tier;

use super::counted;
use super::device::{self, Device};
use super::drain::{self, Drained};
use super::map::{self, Allocation, Backing, Counted, Handle};
use super::{gate, later, pools, staging};
use crate::process::{self, Job};
use crate::share;

/// Freed by the program, not yet by us.
static QUEUE: Mutex<Vec<Allocation>> = Mutex::new(Vec::new());

fn queue(allocation: Allocation) {
    QUEUE
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .push(allocation);
}

/// Frees the allocation at this address; `None` when it is none of ours.
///
/// Like `cuMemFree` it waits for the device; with a capture open it is queued instead.
pub fn free(job: &Job, address: u64) -> Option<CUresult> {
    let Some(allocation) = map::remove(address) else {
        // Another process's: it is closed, not freed (measured).
        return map::opened_for(address).map(|_| CUDA_ERROR_INVALID_VALUE);
    };
    let Some(device) = device::known(allocation.device) else {
        return Some(CUDA_ERROR_INVALID_VALUE);
    };
    if pools::served_for(address).is_some() {
        // Of a pool's memory the driver takes it that all use is over, and does not wait (documented; measured).
        pools::unserve(address);
        later::put_done(allocation);
        return Some(CUDA_SUCCESS);
    }
    // What was freed in stream order before goes under the same drain.
    let earlier = later::batch(device);
    let drained = drain::drain(device, allocation.context);
    if let Drained::Failed(code) = drained {
        earlier.put_back();
        map::insert(allocation);
        return Some(code);
    }
    pools::unserve(address);
    if drained == Drained::Idle {
        // SAFETY: the device is drained, and the program has freed the allocations.
        unsafe {
            earlier.give_back(job, device);
            give_back(job, device, allocation);
        }
    } else {
        earlier.put_back();
        queue(allocation);
    }
    Some(CUDA_SUCCESS)
}

/// Closes an allocation of another process that is open at this address; `None` when there is none.
///
/// Waits for the device, as the driver does at every close (measured), and takes the range down at the last; with a
/// capture open that is queued instead.
pub fn close(job: &Job, address: u64) -> Option<CUresult> {
    let place = map::find(address).filter(|p| p.base == address && p.ties.opened.is_some())?;
    let device = device::known(map::opened_for(address)?)?;
    let drained = drain::drain(device, place.context);
    if let Drained::Failed(code) = drained {
        return Some(code);
    }
    // Of two threads that close it for the last time, one gets it.
    match (map::close_once(address)?, drained) {
        (None, _) => {}
        // SAFETY: drained, and the program has closed it.
        (Some(allocation), Drained::Idle) => unsafe { give_back(job, device, allocation) },
        (Some(allocation), _) => queue(allocation),
    }
    Some(CUDA_SUCCESS)
}

/// Frees what is queued, if nothing captures.
pub fn settle() {
    let Some(job) = process::job() else { return };
    if drain::capturing() {
        return;
    }
    let waiting = std::mem::take(&mut *QUEUE.lock().unwrap_or_else(PoisonError::into_inner));
    for allocation in waiting {
        let Some(device) = device::known(allocation.device) else {
            continue;
        };
        match drain::drain(device, allocation.context) {
            // SAFETY: as in `free`.
            Drained::Idle => unsafe { give_back(job, device, allocation) },
            Drained::Capturing | Drained::Failed(_) => queue(allocation),
        }
    }
}

/// Releases all that was allocated in a context that is gone.
///
/// # Safety
/// The driver has destroyed the context, and with it all of its work; its memory is the program's no more.
pub unsafe fn context_gone(job: &Job, context: Handle) {
    let mut allocations = map::remove_context(context);
    {
        let mut queue = QUEUE.lock().unwrap_or_else(PoisonError::into_inner);
        allocations.extend(queue.extract_if(.., |a| a.context == context));
    }
    for allocation in allocations {
        let Some(device) = device::known(allocation.device) else {
            continue;
        };
        // Other contexts of the process may use the same addresses; what they have in flight is waited for.
        match drain::drain(device, Handle(0)) {
            // SAFETY: drained, and the memory's owner is gone.
            Drained::Idle => unsafe { give_back(job, device, allocation) },
            Drained::Capturing | Drained::Failed(_) => queue(allocation),
        }
    }
    counted::context_gone(job, context);
    for counted in map::uncount_context(context) {
        uncharge(job, counted);
    }
}

/// Gives a charge back.
pub fn uncharge(job: &Job, counted: Counted) {
    job.place.release(Tier::Vram, counted.index, counted.bytes);
}

/// Gives an allocation's memory back.
///
/// # Safety
/// No work that could touch the allocation is in flight, and the program uses it no more.
pub(super) unsafe fn give_back(job: &Job, device: &Device, allocation: Allocation) {
    let ties = allocation.ties;
    if let Some(token) = ties.left_as {
        // A launcher that does not answer has not kept it either, or will not for long.
        let _ = share::withdraw(token);
    }
    let left = staging::leave(allocation.device, allocation.base);
    // A search of memory is over before it is unmapped.
    let pass = gate::pass();
    // SAFETY: the caller's promise.
    unsafe {
        match allocation.backing {
            Backing::Range(range) if ties.opened.is_some() => range.close(),
            Backing::Range(range) if ties.fixed => range.discard(job, device),
            Backing::Range(range) => range.take_down(job, device),
            Backing::Pinned(pinned) => pinned.take_down(job, device),
            Backing::Piece => device
                .slabs
                .give(job, device, allocation.base, allocation.size),
        }
    }
    drop(pass);
    staging::take_back(left);
}
