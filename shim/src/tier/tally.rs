//! What is live, for whoever watches: counted where the program's allocations are kept, so that what was made less what
//! was freed is what there is.

use greenboost_wire::ledger::Spilled;

use crate::{process, telemetry};

/// Counts an allocation with so many bytes in VRAM and on Host as made, or as freed.
pub fn number(device: usize, bytes: [u64; 2], live: bool) {
    let Some(job) = process::job() else { return };
    match live {
        true => job.place.count(device, bytes),
        false => job.place.uncount(device, bytes),
    }
}

/// The same; one with bytes on Host is remembered as a candidate for the largest of those.
pub fn allocation(device: usize, address: u64, size: u64, bytes: [u64; 2], live: bool) {
    number(device, bytes, live);
    let Some(job) = process::job().filter(|_| bytes[1] > 0) else {
        return;
    };
    let (entry, pid) = (job.place.ledger().device(device), std::process::id());
    let now = telemetry::monotonic();
    match live {
        true => entry.remember(Spilled {
            pid,
            address,
            bytes: size,
            host_bytes: bytes[1],
            made: now,
            freed: None,
        }),
        false => entry.forget(pid, address, now),
    }
}

/// A live allocation has so many bytes in VRAM and on Host now, and had others before.
pub fn moved(device: usize, address: u64, size: u64, before: [u64; 2], after: [u64; 2]) {
    let Some(job) = process::job() else { return };
    job.place.shift(device, before, after);
    job.place.ledger().device(device).amend(Spilled {
        pid: std::process::id(),
        address,
        bytes: size,
        host_bytes: after[1],
        made: telemetry::monotonic(),
        freed: None,
    });
}
