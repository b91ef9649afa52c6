//! What the driver holds for the program and the shim only counts, by the handle or address that the program ends it with.
//!
//! Each entry is a [`Part`] of the ledger; its bytes are charged to that part's budget, if it has one, before it is added
//! here. An entry is taken out before the driver is called to end it (the driver may hand the same number to another
//! thread at once) and put back when the driver refuses. What a context holds ends with the context.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use greenboost_abi::{CUDA_SUCCESS, CUresult};
use greenboost_wire::ledger::Part;

use super::map::Handle;
use super::staging;
use crate::process::{self, Job};

/// Something that the driver holds for the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counted {
    /// What it is.
    pub part: Part,
    /// Ledger index of the device.
    pub index: usize,
    /// Bytes charged.
    pub bytes: u64,
    /// The context that it ends with.
    pub context: Handle,
}

type Entries = HashMap<(Part, u64), Counted>;

static ENTRIES: Mutex<Option<Entries>> = Mutex::new(None);

fn entries() -> MutexGuard<'static, Option<Entries>> {
    ENTRIES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Adds what is charged already. A handle that is still known ended in a way that the shim does not see.
pub fn add(job: &Job, handle: u64, counted: Counted) {
    job.place.name(counted.part, counted.index, counted.bytes);
    if matches!(counted.part, Part::Managed | Part::External) {
        staging::unseen();
    }
    let old = entries()
        .get_or_insert_default()
        .insert((counted.part, handle), counted);
    if let Some(old) = old {
        give_back(job, old);
    }
}

/// Ends what this handle stands for, if it is counted: `end` is the driver's call.
pub fn end(part: Part, handle: u64, end: impl FnOnce() -> CUresult) -> CUresult {
    let Some(job) = process::job() else {
        return end();
    };
    let counted = entries().as_mut().and_then(|e| e.remove(&(part, handle)));
    let result = end();
    match (counted, result) {
        (Some(counted), CUDA_SUCCESS) => give_back(job, counted),
        (Some(counted), _) => {
            entries()
                .get_or_insert_default()
                .insert((part, handle), counted);
        }
        (None, _) => {}
    }
    result
}

/// Changes the bytes of an entry, or makes it, by what was found to be more or less; never below nothing.
pub fn change(job: &Job, handle: u64, counted: Counted, by: i64) {
    let key = (counted.part, handle);
    let was = {
        let mut entries = entries();
        let entry = entries
            .get_or_insert_default()
            .entry(key)
            .or_insert(Counted {
                bytes: 0,
                ..counted
            });
        let was = *entry;
        entry.bytes = was.bytes.saturating_add_signed(by);
        was
    };
    let now = was.bytes.saturating_add_signed(by);
    let tier = counted.part.tier();
    if let Some(more) = now.checked_sub(was.bytes) {
        if let Some(tier) = tier {
            job.place.charge(tier, was.index, more);
        }
        job.place.name(was.part, was.index, more);
    } else {
        give_back(
            job,
            Counted {
                bytes: was.bytes - now,
                ..was
            },
        );
    }
}

/// Bytes of an entry; `None` when there is none.
pub fn bytes(part: Part, handle: u64) -> Option<u64> {
    entries().as_ref()?.get(&(part, handle)).map(|c| c.bytes)
}

/// Gives `each` every entry: what it is, its handle, its bytes.
pub fn each(mut each: impl FnMut(Part, u64, u64)) {
    let entries = entries();
    for ((part, handle), counted) in entries.iter().flatten() {
        each(*part, *handle, counted.bytes);
    }
}

/// A context is gone, and with it what it held.
pub fn context_gone(job: &Job, context: Handle) {
    let gone: Vec<Counted> = entries().as_mut().map_or_else(Vec::new, |e| {
        e.extract_if(|_, c| c.context == context)
            .map(|(_, c)| c)
            .collect()
    });
    for counted in gone {
        give_back(job, counted);
    }
}

fn give_back(job: &Job, counted: Counted) {
    job.place.unname(counted.part, counted.index, counted.bytes);
    if let Some(tier) = counted.part.tier() {
        job.place.release(tier, counted.index, counted.bytes);
    }
}
