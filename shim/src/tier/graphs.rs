//! Memory that the driver holds for CUDA graphs: counted as it says, never placed.
//!
//! Allocation nodes get their physical memory at a graph's launch or upload, from a pool per device that nobody can bound;
//! it stays there, used or not, until it is trimmed (measured). A launch is the driver's to run: what it took is charged
//! afterwards, even past the limit, and then weighs on what is allocated later. Under pressure the pool is trimmed: the
//! driver keeps what a graph in flight or an allocation that the program still holds uses (documented, and measured).

use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Mutex, PoisonError};

use greenboost_wire::ledger::Tier;

use super::device::{self, Device};
use super::spare;
use super::staging;
use crate::driver;
use crate::process::Job;

/// Bytes of all allocation nodes that this process has made, those that are gone as well. Until there is one there is
/// nothing to count.
static NODES: AtomicU64 = AtomicU64::new(0);

/// An allocation node of so many bytes was made.
pub fn node_made(bytes: u64) {
    let _ = NODES.fetch_update(SeqCst, SeqCst, |sum| Some(sum.saturating_add(bytes.max(1))));
    staging::unseen();
}

/// Whether graphs may hold memory.
pub fn any() -> bool {
    NODES.load(SeqCst) > 0
}

/// What is charged for graphs on one device, bytes.
#[derive(Default)]
pub struct Graphs(Mutex<u64>);

impl Graphs {
    fn charged(&self) -> std::sync::MutexGuard<'_, u64> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Charges what the driver holds for graphs on a device now, no more and no less. It neither waits nor concerns a capture
/// (measured; 12 ns).
pub fn count(job: &Job, device: &Device) {
    if !any() {
        return;
    }
    // Asked under the lock: of two threads the later one has the later answer.
    let mut charged = device.graphs.charged();
    let Ok(held) = driver::graph_memory(device.ordinal) else {
        return;
    };
    if held > *charged {
        job.place.charge(Tier::Vram, device.index, held - *charged);
    } else {
        job.place.release(Tier::Vram, device.index, *charged - held);
    }
    *charged = held;
}

/// After a call that may have changed what graphs hold, on whatever device. What is kept for reuse makes room for it.
pub fn count_all(job: &Job) {
    for device in device::all() {
        count(job, device);
        let limit = device.entry(job).vram_limit();
        if any() && job.place.ledger().used(Tier::Vram, device.index) > limit {
            spare::trim(job, device, Tier::Vram);
        }
    }
}

/// Ahead of a call that may map memory for a graph's nodes: when the card is short of what all nodes could need, what is
/// kept for reuse is given up. A launch that runs out of memory must not happen: what it got before it failed is lost to
/// the process for good (measured).
pub fn make_way(job: &Job) {
    let nodes = NODES.load(SeqCst);
    for device in device::all().filter(|_| nodes > 0) {
        // The driver takes whole pieces of 32 MiB (measured: 1000 bytes reserve as much).
        let need = nodes.saturating_add(32 << 20);
        let need = need.saturating_sub(*device.graphs.charged());
        if device.spare.bytes(Tier::Vram) > 0
            && need > 0
            && driver::mem_info().is_ok_and(|(free, _)| free < need)
        {
            spare::trim(job, device, Tier::Vram);
        }
    }
}

/// Gives back what no graph uses now. Returns whether there was anything.
pub fn trim(job: &Job, device: &Device) -> bool {
    if !any() {
        return false;
    }
    count(job, device);
    let before = *device.graphs.charged();
    if before == 0 || driver::trim_graph_memory(device.ordinal).is_err() {
        return false;
    }
    count(job, device);
    *device.graphs.charged() < before
}
