//! What the user demands of a running job: other limits, or that it makes way altogether (`greenboost limit`, `park`).

use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use greenboost_wire::ledger::{Ledger, OBSTACLES, Obstacle, Tier};

use super::{ENDING, PARKED, automatic, knowledge};
use crate::process::Job;
use crate::tier::device::{self, Device};
use crate::tier::policy::Move;
use crate::tier::{access, map, moving, range};

/// How long the device may take to drain: first, and at most. The program's calls wait meanwhile.
const PATIENCE: [Duration; 2] = [Duration::from_millis(5), Duration::from_millis(400)];
/// Between two tries.
const PAUSE: Duration = Duration::from_millis(20);
/// Until a demand is given up.
const AT_MOST: Duration = Duration::from_secs(20);
/// Bytes sent down at once: other processes may be at it too.
const PIECE: u64 = 512 << 20;

/// What was demanded so far.
pub struct Demands {
    ledger: &'static Ledger,
    changes: u32,
    parks: u64,
}

impl Demands {
    /// Who has just joined has met all demands.
    pub fn new(job: &Job) -> Demands {
        let ledger = job.place.ledger();
        Demands {
            ledger,
            changes: ledger.changes(),
            parks: ledger.park_requests(),
        }
    }

    /// Sleeps until something is demanded, at most so long.
    pub fn wait(&self, most: Duration) {
        self.ledger.wait_for_change(self.changes, most);
    }

    /// Meets what was demanded since the last time.
    pub fn meet(&mut self, job: &Job) {
        let changes = self.ledger.changes();
        if changes == self.changes {
            return;
        }
        let parks = self.ledger.park_requests();
        let park = parks != self.parks;
        (self.changes, self.parks) = (changes, parks);
        let mut obstacles = [[0; OBSTACLES]; 2];
        for device in device::all() {
            let (left, why) = lower(job, device, park);
            obstacles[Tier::Vram as usize][why as usize] += left;
        }
        if park {
            // What was noted before does not wake it.
            let _knowledge = knowledge();
            access::note(true);
            access::read(|_, _| {});
            PARKED.store(true, SeqCst);
            job.place.parked(parks, obstacles);
        }
        job.place.answer(changes, obstacles);
    }
}

/// Bytes of this process that have to leave the VRAM of a device.
fn excess(job: &Job, device: &Device, park: bool) -> u64 {
    let own = job.place.own(Tier::Vram, device.index);
    let used = job.place.ledger().used(Tier::Vram, device.index);
    match park {
        true => own,
        false => used.saturating_sub(device.entry(job).vram_limit()).min(own),
    }
}

/// Sends down what has to leave. Returns what could not be sent in time, and why.
fn lower(job: &Job, device: &Device, park: bool) -> (u64, Obstacle) {
    let deadline = Instant::now() + AT_MOST;
    let mut patience = PATIENCE[0];
    let mut why = Obstacle::Pinned;
    if excess(job, device, park) > 0 {
        range::make_room(job, device, Tier::Vram);
    }
    loop {
        let excess = excess(job, device, park);
        if excess == 0 || Instant::now() >= deadline || ENDING.load(SeqCst) {
            return (excess, why);
        }
        if !automatic(job) {
            return (excess, Obstacle::FirstFit);
        }
        if !device.can_spill(job) || !device.has_ranges() {
            return (excess, Obstacle::Unable);
        }
        let (moves, carried) = {
            let mut knowledge = knowledge();
            knowledge.hear();
            let moves = knowledge.policy(device.ordinal).shrink(excess.min(PIECE));
            if moves.is_empty() {
                return (excess, Obstacle::Pinned);
            }
            let carried = knowledge.carry_out(job, device, &moves, patience);
            (moves, carried)
        };
        match carried {
            Ok(moved) => {
                // What the chunks have left is not kept for reuse: others are to have it.
                range::make_room(job, device, Tier::Vram);
                let there = |m: &Move| map::movable(m.base, m.chunk).is_some();
                if moved.done.is_empty() && moves.iter().any(there) {
                    return (excess, Obstacle::NoRoom);
                }
                patience = PATIENCE[0];
            }
            Err(moving::Obstacle::Frozen) => return (excess, Obstacle::Frozen),
            Err(obstacle) => {
                why = match obstacle {
                    moving::Obstacle::Capturing => Obstacle::Capture,
                    _ => Obstacle::Busy,
                };
                patience = (patience * 3).min(PATIENCE[1]);
                std::thread::sleep(PAUSE);
            }
        }
    }
}
