//! The steward: hears what is allocated and what operations name, keeps the placement policy of each device, and has
//! chunks moved when that pays.
//!
//! A thread of its own reads the notes. What to move is decided, and done, where a step of the program may be over and the
//! device is likely drained: by the program's thread that has just synchronised, for a bounded time; or, when none does, by
//! the steward. The program waits for neither: nothing but moves themselves, which are bounded, holds a call up.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::*};
use std::sync::{Mutex, MutexGuard, Once, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use greenboost_abi::CUdevice;
use greenboost_wire::ledger::{Pace, Placement, Tier};

use super::access::{self, Kind};
use super::device::{self, Device};
use super::moving::{self, Moved, Obstacle};
use super::policy::{Costs, Move, Op, Policy, Room};
use super::spare::Chunk;
use super::staging::arm::Wish;
use super::{drain, gate, map, pools, staging};
use crate::process::{self, Job};
use crate::telemetry;

mod demands;
mod force;
mod record;

use record::Recorder;

/// Between two looks at the notes while operations are noted.
const LOOK: Duration = Duration::from_millis(4);
/// So many looks that find nothing make it rest.
const IDLE: u32 = 5;
/// Between two looks while it rests, unless a note wakes it.
const REST: Duration = Duration::from_millis(200);
/// How long a thread of the program that has just synchronised lets the rest of the device drain.
const SYNCED: Duration = Duration::from_millis(1);
/// How long the steward lets it drain when no thread synchronises.
const UNASKED: Duration = Duration::from_millis(3);
/// How long no thread has synchronised, until the steward tries by itself: at first, and at most when it finds the device
/// busy again and again.
const WAIT_FOR_SYNC: [Duration; 2] = [Duration::from_secs(2), Duration::from_secs(32)];
/// Between two times that the pace of the program is told.
const TELL: Duration = Duration::from_millis(100);
/// Between two plans.
const PLANS: Duration = Duration::from_millis(10);
/// The longest that moves hold the program up at once.
const BOX: Duration = Duration::from_millis(500);
/// How long an allocation lets the device drain to make room for itself.
const FOR_NEWCOMER: Duration = Duration::from_millis(2);

/// Something that the policy has to know.
pub enum News {
    /// An allocation has come.
    Made(CUdevice, u64, u64, Vec<(u64, Tier)>, bool),
    /// It is gone.
    Gone(CUdevice, u64),
    /// It may not move from now on.
    Fixed(CUdevice, u64),
}

static NEWS: Mutex<Vec<News>> = Mutex::new(Vec::new());

/// Leaves news for whoever looks next.
pub fn tell(news: News) {
    NEWS.lock()
        .unwrap_or_else(PoisonError::into_inner)
        .push(news);
}

/// The chunks of an allocation, as the policy sees them.
pub fn chunks(chunks: &[Chunk]) -> Vec<(u64, Tier)> {
    chunks.iter().map(|c| (c.size, c.tier)).collect()
}

/// What the steward knows.
struct Knowledge {
    policies: Vec<(CUdevice, Policy)>,
    /// How long no thread has to have synchronised.
    wait: Duration,
    /// When the pace was told last, nanoseconds.
    told: u64,
    recorder: Option<Recorder>,
}

static KNOWLEDGE: Mutex<Knowledge> = Mutex::new(Knowledge {
    policies: Vec::new(),
    wait: WAIT_FOR_SYNC[0],
    told: 0,
    recorder: None,
});

/// When a thread of the program synchronised and a plan was made last, nanoseconds.
static SEEN: AtomicU64 = AtomicU64::new(0);
/// All was sent down on demand, and the program has not used the device since.
static PARKED: AtomicBool = AtomicBool::new(false);
/// The process ends: nothing moves any more.
static ENDING: AtomicBool = AtomicBool::new(false);

fn now() -> f64 {
    telemetry::monotonic() as f64 * 1e-9
}

fn automatic(job: &Job) -> bool {
    job.place.ledger().settings().placement == Placement::Auto
}

impl Knowledge {
    fn policy(&mut self, device: CUdevice) -> &mut Policy {
        let at = match self.policies.iter().position(|(d, _)| *d == device) {
            Some(at) => at,
            None => {
                self.policies.push((device, Policy::new(Costs::H100)));
                self.policies.len() - 1
            }
        };
        &mut self.policies[at].1
    }

    /// Takes in what was told.
    fn hear(&mut self) {
        let news = std::mem::take(&mut *NEWS.lock().unwrap_or_else(PoisonError::into_inner));
        for news in news {
            if let Some(recorder) = &mut self.recorder {
                recorder.news(&news);
            }
            match news {
                News::Made(device, base, bytes, chunks, movable) => {
                    self.policy(device).allocated(base, bytes, &chunks, movable);
                }
                News::Gone(device, base) => self.policy(device).freed(base),
                News::Fixed(device, base) => self.policy(device).fixed(base),
            }
        }
    }

    /// Takes in what operations have named. Returns whether any has.
    fn look(&mut self, job: &Job) -> bool {
        let (now, mut any) = (now(), false);
        let mut recorder = self.recorder.take();
        access::read(|thread, said| {
            any = true;
            if let Some(recorder) = &mut recorder {
                recorder.said(thread, &said);
            }
            let when = match said.when {
                0 => now,
                t => t as f64 * 1e-9,
            };
            match said.kind {
                Kind::Copy => {
                    for pair in said.words.chunks_exact(2) {
                        let op = Op::Copy { bytes: pair[1] };
                        self.of(pair[0]).named(op, &pair[..1], when);
                    }
                }
                kind => {
                    let op = if kind == Kind::Graph {
                        Op::Graph
                    } else {
                        Op::Launch
                    };
                    self.of(said.words[0]).named(op, said.words, when);
                }
            }
        });
        if let Some(recorder) = &mut recorder {
            recorder.looked();
        }
        self.recorder = recorder;
        if any && PARKED.swap(false, SeqCst) {
            job.place.woken();
        }
        any
    }

    /// The policy of the device that an address is on.
    fn of(&mut self, address: u64) -> &mut Policy {
        match self.policies.len() {
            1 => &mut self.policies[0].1,
            _ => {
                let device = map::find(address).map_or(0, |place| place.device);
                self.policy(device)
            }
        }
    }

    /// Tells the job what operations have named, and now and then at what pace.
    fn tell(&mut self, job: &Job) {
        let now = telemetry::monotonic();
        let is_time = now.saturating_sub(self.told) >= TELL.as_nanos() as u64;
        if is_time {
            self.told = now;
        }
        for (ordinal, policy) in &mut self.policies {
            let Some(device) = device::known(*ordinal) else {
                continue;
            };
            let counters = &device.entry(job).traffic.named_bytes;
            for (counter, bytes) in counters.iter().zip(policy.take_named()) {
                if bytes > 0 {
                    counter.fetch_add(bytes, Relaxed);
                }
            }
            if is_time {
                let step = policy.step_time(now as f64 * 1e-9);
                let pace = Pace {
                    heat: [Tier::Vram, Tier::Host].map(|tier| policy.heat(tier) as u64),
                    step_nanos: step.map_or(0, |seconds| (seconds * 1e9) as u64),
                };
                job.place.set_pace(device.index, pace);
            }
        }
    }

    /// Moves what is worth it, where a step of the program may be over: it has waited for the device.
    fn improve(&mut self, job: &Job, patience: Duration) -> Result<(), Obstacle> {
        if PARKED.load(SeqCst) || !automatic(job) {
            return Ok(());
        }
        let mut plan = None;
        for (ordinal, policy) in &mut self.policies {
            let Some(device) = device::known(*ordinal) else {
                continue;
            };
            policy.waited(now());
            let moves = policy.plan(room(job, device), now(), BOX.as_secs_f64());
            if !moves.is_empty() {
                plan = Some((device, moves));
                break;
            }
        }
        let Some((device, moves)) = plan else {
            return Ok(());
        };
        let moved = self.carry_out(job, device, &moves, patience);
        if moved.is_err() {
            self.policy(device.ordinal).failed(now());
        }
        moved.map(|_| ())
    }

    /// Makes so many bytes of a device's VRAM budget free, as far as what is coldest can leave.
    fn vacate(&mut self, job: &Job, device: &'static Device, bytes: u64) {
        let free = room(job, device).vram;
        let short = i64::try_from(bytes).unwrap_or(i64::MAX) - free;
        if short > 0 {
            let moves = self.policy(device.ordinal).shrink(short as u64);
            let _ = self.carry_out(job, device, &moves, SYNCED);
        }
    }

    /// Carries out moves, if the device drains in time.
    fn carry_out(
        &mut self,
        job: &Job,
        device: &Device,
        moves: &[Move],
        patience: Duration,
    ) -> Result<Moved, Obstacle> {
        if process::live().is_none() || ENDING.load(SeqCst) {
            return Err(Obstacle::Frozen);
        }
        let begin = Instant::now();
        let still = moving::still(device, patience);
        let waited = begin.elapsed();
        let moved = still.map(|still| {
            let shut = Instant::now();
            let moved = moving::make(job, device, moves, shut + BOX, &still);
            drop(still);
            count(job, device, &moved, shut.elapsed());
            moved
        });
        if let Some(recorder) = &mut self.recorder {
            let done = moved.as_ref().map_or(&[][..], |m| &m.done);
            recorder.attempt(moved.is_ok(), waited.as_nanos() as u64, done);
        }
        let policy = self.policy(device.ordinal);
        match &moved {
            Ok(moved) => {
                for m in &moved.done {
                    policy.moved(m.base, m.chunk, m.to);
                }
                if !moved.refused.is_empty() {
                    policy.failed(now());
                }
            }
            Err(_) => abandoned(job, device),
        }
        moved
    }
}

/// What the budgets of a device have free for moves.
fn room(job: &Job, device: &Device) -> Room {
    let ledger = job.place.ledger();
    let used = ledger.used(Tier::Vram, device.index) as i64;
    let spare = device.spare.bytes(Tier::Vram) as i64;
    let limit = ledger.device(device.index).vram_limit();
    let ram = ledger.settings().ram_limit;
    Room {
        vram: limit as i64 - used + spare,
        keep: super::placement::small_reserve(limit),
        host: ram.saturating_sub(ledger.used_host()) + device.spare.bytes(Tier::Host),
    }
}

fn count(job: &Job, device: &Device, moved: &Moved, took: Duration) {
    let traffic = &device.entry(job).traffic;
    for (m, bytes) in moved.done.iter().zip(&moved.bytes) {
        let (sum, number) = match m.to {
            Tier::Vram => (&traffic.promoted_bytes, &traffic.promotions),
            Tier::Host => (&traffic.demoted_bytes, &traffic.demotions),
        };
        sum.fetch_add(*bytes, Relaxed);
        number.fetch_add(1, Relaxed);
    }
    traffic
        .move_nanos
        .fetch_add(took.as_nanos() as u64, Relaxed);
}

fn abandoned(job: &Job, device: &Device) {
    device
        .entry(job)
        .traffic
        .moves_abandoned
        .fetch_add(1, Relaxed);
}

fn knowledge() -> MutexGuard<'static, Knowledge> {
    KNOWLEDGE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn try_knowledge() -> Option<MutexGuard<'static, Knowledge>> {
    match KNOWLEDGE.try_lock() {
        Ok(guard) => Some(guard),
        Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
        Err(TryLockError::WouldBlock) => None,
    }
}

/// The program has synchronised on this thread: the device is likely drained, and what was noted can be acted on.
#[inline]
pub fn waited() {
    if access::wanted() || force::always() {
        serve();
    }
}

#[cold]
fn serve() {
    let begin = telemetry::monotonic();
    if !force::always() && begin.saturating_sub(SEEN.load(Relaxed)) < PLANS.as_nanos() as u64 {
        return;
    }
    let Some(job) = process::live() else { return };
    // Another thread is at it, or the steward looks: the next synchronise comes soon.
    let Some(mut knowledge) = try_knowledge() else {
        return;
    };
    knowledge.hear();
    knowledge.look(job);
    if let Some(recorder) = &mut knowledge.recorder {
        recorder.waited();
    }
    if force::always() {
        force::some(job, &mut knowledge);
    } else {
        let _ = knowledge.improve(job, SYNCED);
    }
    staging::arm::waited(|device, wish| match wish {
        Wish::Room(bytes) => knowledge.vacate(job, device, bytes),
        Wish::Moves(moves) => drop(knowledge.carry_out(job, device, &moves, SYNCED)),
    });
    SEEN.store(telemetry::monotonic(), Relaxed);
}

/// Makes room in VRAM for an allocation of so many bytes, of which `room` have found place, if it deserves that and the
/// device is idle. Returns whether anything has moved.
pub fn make_way(job: &Job, device: &Device, bytes: u64, room: u64) -> bool {
    if !automatic(job) || drain::capturing() {
        return false;
    }
    let Some(mut knowledge) = try_knowledge() else {
        return false;
    };
    knowledge.hear();
    knowledge.look(job);
    let moves = knowledge.policy(device.ordinal).newcomer(bytes, room);
    if moves.is_empty() {
        return false;
    }
    let moved = knowledge.carry_out(job, device, &moves, FOR_NEWCOMER);
    if moved.is_err() {
        knowledge.policy(device.ordinal).failed(now());
    }
    moved.is_ok_and(|moved| !moved.done.is_empty())
}

/// Something is outside VRAM: operations are noted from now on.
pub fn spilled(job: &Job) {
    if automatic(job) {
        access::note(true);
    }
}

/// Starts the steward, once. Before this nothing moves.
pub fn start(job: &'static Job) {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        gate::prepare();
        let body = move || {
            let _ = std::panic::catch_unwind(|| work(job))
                .inspect_err(|_| process::wound("the steward failed"));
        };
        let _ = drain::without_signals(|| {
            std::thread::Builder::new()
                .name("greenboost".into())
                .stack_size(256 << 10)
                .spawn(body)
        });
    });
}

/// The process ends: waits, for a bounded time, until nothing moves, and takes in what was noted last.
pub fn end(job: &Job) {
    ENDING.store(true, SeqCst);
    staging::end();
    let deadline = Instant::now() + Duration::from_secs(1);
    loop {
        if let Some(mut knowledge) = try_knowledge() {
            if process::live().is_some() {
                knowledge.hear();
                knowledge.look(job);
                knowledge.tell(job);
            }
            return;
        }
        if Instant::now() >= deadline {
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn work(job: &'static Job) {
    let mut demands = demands::Demands::new(job);
    if let Some(recorder) = Recorder::begin(job) {
        knowledge().recorder = Some(recorder);
        access::note(true);
    }
    let mut idle = 0;
    while !ENDING.load(SeqCst) {
        let rests = idle >= IDLE || !access::noting();
        access::rest(rests);
        let is_idle = rests && !access::unread();
        demands.wait(if is_idle { REST } else { LOOK });
        access::rest(false);
        if process::live().is_none() || ENDING.load(SeqCst) {
            return;
        }
        demands.meet(job);
        idle = if turn(job) { 0 } else { idle + 1 };
    }
}

/// One look at what is new. Returns whether operations have named anything.
fn turn(job: &Job) -> bool {
    let mut knowledge = knowledge();
    knowledge.hear();
    let any = knowledge.look(job);
    if automatic(job) {
        access::note(access::recording() || any_on_host(job));
    }
    let quiet = telemetry::monotonic().saturating_sub(SEEN.load(Relaxed));
    if u128::from(quiet) > knowledge.wait.as_nanos() {
        // Nobody synchronises, or not in a way that is seen.
        knowledge.wait = match knowledge.improve(job, UNASKED) {
            Ok(()) => WAIT_FOR_SYNC[0],
            Err(_) => (knowledge.wait * 2).min(WAIT_FOR_SYNC[1]),
        };
        SEEN.store(telemetry::monotonic(), Relaxed);
    }
    knowledge.tell(job);
    if let Some(device) = device::all().next() {
        let waited = &device.entry(job).traffic.waited_nanos;
        waited.fetch_add(gate::take_waited(), Relaxed);
    }
    any
}

fn any_on_host(job: &Job) -> bool {
    let ledger = job.place.ledger();
    device::all().any(|d| ledger.live(d.index).bytes[1] > 0) || pools::any()
}
