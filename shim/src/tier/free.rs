//! Freeing: never before all work that could touch the range is done, and never while a capture is open.

use std::sync::{Mutex, PoisonError};

use greenboost_abi::*;
use greenboost_wire::ledger::Tier;

use super::counted;
use super::device::{self, Device};
use super::drain::{self, Drained};
use super::map::{self, Allocation, Backing, Counted, Handle};
use crate::process::{self, Job};

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
    let allocation = map::remove(address)?;
    let Some(device) = device::known(allocation.device) else {
        return Some(CUDA_ERROR_INVALID_VALUE);
    };
    match drain::drain(device, allocation.context) {
        Drained::Idle => {
            // SAFETY: the device is drained, and the program has freed the allocation.
            unsafe { give_back(job, device, allocation) };
            Some(CUDA_SUCCESS)
        }
        Drained::Capturing => {
            queue(allocation);
            Some(CUDA_SUCCESS)
        }
        Drained::Failed(code) => {
            map::insert(allocation);
            Some(code)
        }
    }
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

/// # Safety
/// No work that could touch the allocation is in flight, and the program uses it no more.
unsafe fn give_back(job: &Job, device: &Device, allocation: Allocation) {
    // SAFETY: the caller's promise.
    unsafe {
        match allocation.backing {
            Backing::Range(range) => range.take_down(job, device),
            Backing::Pinned(pinned) => pinned.take_down(job, device),
            Backing::Piece => device
                .slabs
                .give(job, device, allocation.base, allocation.size),
        }
    }
}
