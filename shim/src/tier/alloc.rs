//! Allocating: VRAM first, the tail on Host, out of memory when both are full.

use std::sync::atomic::{AtomicU32, Ordering::*};

use greenboost_abi::*;
use greenboost_wire::ledger::{Refused, Tier};
use greenboost_wire::record::Kind;

use super::chunk::GRAIN;
use super::device::Device;
use super::map::{self, Allocation, Backing, Counted, Handle};
use super::pinned::Pinned;
use super::range::{Parts, Range, Shortage, make_room};
use super::{free, graphs, placement, pools, small, spare, staging, steward};
use crate::process::{self, Job};
use crate::{driver, telemetry};

/// Allocates `bytes` on a device for a context; the address is the program's to keep.
///
/// # Errors
/// `CUDA_ERROR_OUT_OF_MEMORY` when no tier has room; the driver's own error otherwise.
pub fn allocate(job: &Job, device: &Device, context: Handle, bytes: u64) -> driver::Result<u64> {
    free::settle();
    let made = if bytes >= GRAIN && device.has_ranges() {
        range(job, device, bytes).map(|range| {
            let host = range.bytes(Tier::Host);
            (range.base, host, Backing::Range(range))
        })
    } else {
        match plain(job, device, context, bytes)? {
            Ok(address) => {
                count(job, device, bytes, 0);
                return Ok(address);
            }
            Err(short) if !device.can_spill(job) => Err(short),
            Err(_) => spilled(job, device, bytes),
        }
    };
    match made {
        Ok((base, host, backing)) => {
            let range = match &backing {
                Backing::Range(range) => Some((range.base, range.span)),
                Backing::Pinned(_) | Backing::Piece => None,
            };
            map::insert(Allocation {
                base,
                size: bytes,
                device: device.ordinal,
                context,
                backing,
                ties: map::Ties::default(),
            });
            // Whoever is let in from here on finds it in the map.
            let open = |(base, span)| {
                // A plan may know it already.
                let _still = map::hold_still();
                // SAFETY: the program does not know the range yet and no chunk moves, so it is mapped throughout.
                unsafe { device.open_to_users(base, span) }.is_ok()
            };
            if !range.is_none_or(open) {
                process::wound("a range could not be opened to a peer device");
            }
            count(job, device, bytes, host);
            Ok(base)
        }
        Err(why) => Err(out_of_memory(job, device, bytes, why)),
    }
}

/// Memory for a stream-ordered allocation that its pool has no room for: its address, its bytes outside VRAM, what holds
/// them. It is there at once.
pub fn in_order(job: &Job, device: &Device, bytes: u64) -> Result<(u64, u64, Backing), Shortage> {
    if bytes < GRAIN || !device.has_ranges() {
        return spilled(job, device, bytes);
    }
    let range = range(job, device, bytes)?;
    Ok((range.base, range.bytes(Tier::Host), Backing::Range(range)))
}

/// A whole allocation in host memory: its address, its bytes there, what holds them.
fn spilled(job: &Job, device: &Device, bytes: u64) -> Result<(u64, u64, Backing), Shortage> {
    if bytes < GRAIN {
        let address = device.slabs.alloc(job, device, bytes)?;
        return Ok((address, small::rounded(bytes), Backing::Piece));
    }
    let span = bytes
        .checked_next_multiple_of(GRAIN)
        .ok_or(Shortage::Budget)?;
    let pinned = Pinned::new(job, device, span)?;
    Ok((pinned.base, span, Backing::Pinned(pinned)))
}

/// Counts an allocation of which `host` bytes are outside VRAM (that it is live is counted where it is kept); the first of
/// those is told to the launcher.
pub fn count(job: &Job, device: &Device, bytes: u64, host: u64) {
    if host > 0 {
        steward::spilled(job);
        let entry = device.entry(job);
        entry.spilled_bytes.fetch_add(host, SeqCst);
        if entry.spills.fetch_add(1, SeqCst) == 0 {
            telemetry::say(Kind::FirstSpill, Some(device.index), [host, bytes, 0], "");
        }
    }
}

/// A range of its own: as much VRAM as fits, the rest on Host.
fn range(job: &Job, device: &Device, bytes: u64) -> Result<Range, Shortage> {
    let span = bytes
        .checked_next_multiple_of(GRAIN)
        .ok_or(Shortage::Budget)?;
    let ledger = job.place.ledger();
    graphs::count(job, device);
    let mut share = vram_share(job, device, span);
    if share < span && (graphs::trim(job, device) | (ledger.reap() > 0)) {
        share = vram_share(job, device, span);
    }
    if share < span && pools::make_room(job, device, Tier::Vram) {
        share = vram_share(job, device, span);
    }
    if share < span && device.can_spill(job) && steward::make_way(job, device, span, share) {
        share = vram_share(job, device, span);
    }
    if share < span {
        if !device.can_spill(job) {
            return Err(Shortage::Budget);
        }
        // Making host memory takes long: what cannot end well is refused before it begins.
        let room = || {
            let used = ledger.used_host().saturating_sub(spare::host());
            ledger.settings().ram_limit.saturating_sub(used)
        };
        let short = || span - share > room();
        if short() && (!make_room(job, device, Tier::Host) || short()) {
            if !staging::arm::surrender(device) {
                return Err(Shortage::Budget);
            }
            share = vram_share(job, device, span);
            if span - share > room() {
                return Err(Shortage::Budget);
            }
        }
    }
    let mut parts = Parts::new(job, device);
    // Short of VRAM after all (another thread, another program): the rest is the tail.
    let vram = parts.add_vram(share);
    let got = parts.bytes(Tier::Vram);
    if got < span {
        if !device.can_spill(job) {
            return Err(vram.err().unwrap_or(Shortage::Budget));
        }
        parts.add_host(span - got)?;
    }
    parts.build().map_err(|_| Shortage::Driver)
}

/// Bytes of a new range that VRAM has room for now; what is kept for reuse counts as room.
fn vram_share(job: &Job, device: &Device, span: u64) -> u64 {
    let ledger = job.place.ledger();
    let limit = ledger.device(device.index).vram_limit();
    let used = ledger
        .used(Tier::Vram, device.index)
        .saturating_sub(device.spare.bytes(Tier::Vram));
    placement::vram_share(
        span,
        limit.saturating_sub(used),
        placement::small_reserve(limit),
    )
}

/// The driver's own allocation, charged to VRAM. The inner error says that VRAM has no room.
fn plain(
    job: &Job,
    device: &Device,
    context: Handle,
    bytes: u64,
) -> driver::Result<Result<u64, Shortage>> {
    let charge = bytes
        .checked_next_multiple_of(small::ALIGN)
        .unwrap_or(u64::MAX);
    let reserve = || -> Result<(), Refused> { job.place.reserve(Tier::Vram, device.index, charge) };
    for attempt in 0..2 {
        let short = match reserve() {
            Err(_) => Shortage::Budget,
            Ok(()) => match driver::mem_alloc(bytes as usize) {
                Ok(address) => {
                    let counted = Counted {
                        index: device.index,
                        bytes: charge,
                        context,
                    };
                    map::count(map::Kind::Memory, address, counted);
                    return Ok(Ok(address));
                }
                Err(code) => {
                    job.place.release(Tier::Vram, device.index, charge);
                    if code != CUDA_ERROR_OUT_OF_MEMORY {
                        return Err(code);
                    }
                    Shortage::Driver
                }
            },
        };
        if attempt == 1 || !make_room(job, device, Tier::Vram) {
            return Ok(Err(short));
        }
    }
    unreachable!("the second attempt returns")
}

/// Counts it and tells the launcher (a program that asks in a loop is not repeated for ever); what the program gets.
pub fn out_of_memory(job: &Job, device: &Device, bytes: u64, why: Shortage) -> CUresult {
    static SAID: AtomicU32 = AtomicU32::new(0);
    let entry = device.entry(job);
    entry.ooms.fetch_add(1, SeqCst);
    entry.oom_largest.fetch_max(bytes, SeqCst);
    if SAID.fetch_add(1, Relaxed) >= 1000 {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    let reason = match why {
        Shortage::Budget if device.can_spill(job) => "the VRAM and RAM limits",
        Shortage::Budget => "the VRAM limit",
        Shortage::Driver => "the driver has no more memory",
        Shortage::Ram(refusal) => refusal.reason(),
    };
    let host = job.place.ledger().used_host();
    telemetry::say(
        Kind::OutOfMemory,
        Some(device.index),
        [bytes, host, 0],
        reason,
    );
    CUDA_ERROR_OUT_OF_MEMORY
}
