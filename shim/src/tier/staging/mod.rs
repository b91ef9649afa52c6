//! Staging: spilled chunks are copied into VRAM slots ahead of the launches that name them, and given back behind them.
//!
//! A chunk is at home on Host, mapped to the GPU for zero-copy; or in a slot, mapped in its place; or in transit and mapped
//! nowhere. In transit it is only while that is proven to harm nobody: its allocation is unescaped ([`escape`],
//! [`proof`]), and no operation under way names it ([`flight`]). A launch that names a chunk in transit waits until it
//! is over, which only the driver can delay; one that names a chunk on its way into a slot waits for that, but not for
//! long. What is mapped is always complete, so nothing is ever put on the program's streams but events.
//!
//! To the planner a chunk is a *unit*. It *streams* when its home is Host and staging it gains more than it costs; a *pass*
//! is one period of the order of use: a token, a step of training, a picture. Copies take `bytes / dma` of the link's time,
//! one after the other, under the compute of what runs before; a pass cannot take less than its compute, nor than the
//! copies that it needs.
//!
//! - [`units`]: what is tracked, by address; [`slots`]: where it can go; [`choose`]: who chooses;
//! - `planner`, pure: what to stage, what to give up for it, what to wait for, how many slots pay; from `order` (which
//!   chunk is used next, learned), `measure` (how long uses take, and whether staging gains) and `layout` (which chunks
//!   stay in VRAM, so that each stretch of compute has its share of the link's time to hide);
//! - [`engine`]: the state of it all; [`admit`]: what operations wait for; [`transit`]: the threads that move chunks;
//! - [`arm`]: when it begins; [`kernels`]: the shim's own work on the GPU, a search for addresses and a hash.

pub mod admit;
pub mod arm;
pub mod choose;
pub mod engine;
pub mod escape;
pub mod flight;
pub mod kernels;
mod layout;
mod measure;
mod operations;
mod order;
mod planner;
pub mod proof;
pub mod slots;
mod track;
pub mod transit;
pub mod units;

use std::sync::atomic::{AtomicU8, Ordering::Relaxed};

use super::chunk::GRAIN;

pub use planner::{Planner, Rates, Unit};

pub use engine::{
    away, born, changed, code_ends, context_gone, end, fix, homed, leave, make_room, still,
    suspect, take_back, unseen,
};

/// For each grain of the address space how many tracked allocations are there, or a little beside: see
/// [`units::Units::named`]. Most of it is never touched, and so costs address space only. A launch that names none of it
/// pays for a look.
static TRACKED: [AtomicU8; GRAINS] = [const { AtomicU8::new(0) }; GRAINS];
/// 2^47 bytes: user space of x86-64; addresses above are nobody's.
const GRAINS: usize = (1 << 47) / GRAIN as usize;

/// Whether this address names a tracked allocation.
#[inline]
fn tracked(address: u64) -> bool {
    TRACKED
        .get((address / GRAIN) as usize)
        .is_some_and(|count| count.load(Relaxed) != 0)
}

fn track(base: u64, span: u64, on: bool) {
    let first = base.saturating_sub(escape::PAD) / GRAIN;
    let last = (base + span + escape::PAD - 1) / GRAIN;
    for grain in first..=last {
        let Some(count) = TRACKED.get(grain as usize) else {
            return;
        };
        match on {
            true => count.fetch_add(1, Relaxed),
            false => count.fetch_sub(1, Relaxed),
        };
    }
}

/// No chunk of any device is in transit while it lives.
pub struct AllPaused {
    _each: Vec<engine::Paused>,
}

/// Waits until no chunk is in transit anywhere, and keeps it so.
pub fn pause() -> AllPaused {
    AllPaused {
        _each: engine::all().map(engine::Engine::pause).collect(),
    }
}

/// The same, if it is so in time.
pub fn try_pause(patience: std::time::Duration) -> Option<AllPaused> {
    let each: Option<Vec<_>> = engine::all().map(|e| e.try_pause(patience)).collect();
    Some(AllPaused { _each: each? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_leaves_its_neighbour_tracked() {
        // Far from what other tests use.
        const A: u64 = 0x1234_0000_0000;
        let span = 10 * GRAIN;
        track(A, span, true);
        track(A + span, span, true);
        for address in [A - escape::PAD, A, A + span, A + 2 * span + escape::PAD - 1] {
            assert!(tracked(address), "{address:x}");
        }
        assert!(!tracked(A - escape::PAD - 1) && !tracked(A + 2 * span + escape::PAD));
        track(A, span, false);
        assert!(tracked(A + span) && tracked(A + span - escape::PAD));
        assert!(!tracked(A));
        track(A + span, span, false);
        assert!(!tracked(A + span));
        assert!(!tracked(u64::MAX));
    }
}
