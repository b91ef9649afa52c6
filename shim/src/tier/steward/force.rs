//! Moves at every opportunity, for tests: with `GREENBOOST_MOVES=always` a few chunks picked at random change their tier
//! whenever the program synchronises. Nothing that a program computes may depend on it.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use greenboost_wire::ledger::Tier;

use super::Knowledge;
use crate::process::Job;
use crate::tier::policy::Move;
use crate::tier::{device, map};

/// Chunks that are picked each time.
const SOME: usize = 4;
/// How long the device may take to drain.
const PATIENCE: Duration = Duration::from_millis(20);

/// Whether that is asked for.
pub fn always() -> bool {
    static ALWAYS: OnceLock<bool> = OnceLock::new();
    *ALWAYS.get_or_init(|| std::env::var_os("GREENBOOST_MOVES").is_some_and(|v| v == "always"))
}

/// A number below `end`: the same sequence in every process, and no better than needed.
fn any(end: usize) -> usize {
    static STATE: AtomicU64 = AtomicU64::new(0x9e37_79b9_7f4a_7c15);
    let mut x = STATE.load(Relaxed);
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    STATE.store(x, Relaxed);
    (x >> 11) as usize % end.max(1)
}

/// Moves some.
pub fn some(job: &Job, knowledge: &mut Knowledge) {
    for device in device::all().filter(|d| d.has_ranges() && d.can_spill(job)) {
        let mut all = Vec::new();
        map::each_range(device.ordinal, |base, _, chunks, movable| {
            let of = |(chunk, c): (usize, &crate::tier::spare::Chunk)| {
                let to = match c.tier {
                    Tier::Vram => Tier::Host,
                    Tier::Host => Tier::Vram,
                };
                Move { base, chunk, to }
            };
            all.extend(chunks.iter().enumerate().filter(|_| movable).map(of));
        });
        let mut picked: Vec<Move> = Vec::new();
        for _ in 0..SOME.min(all.len()) {
            picked.push(all.swap_remove(any(all.len())));
        }
        // Those that make room come first.
        picked.sort_by_key(|m| m.to == Tier::Vram);
        if !picked.is_empty() {
            let _ = knowledge.carry_out(job, device, &picked, PATIENCE);
        }
    }
}
