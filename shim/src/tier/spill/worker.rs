//! The thread that moves the bytes, and the one that has the file grow.
//!
//! Operations are cut into requests. Those of reads go first, because launches wait for them; every fourth is a write's
//! all the same, because a read may wait for the room that a write makes. Grains are hashed while the disk works on other
//! requests (or on their own, when they are written): always what can begin begins first.

use std::collections::{BTreeMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use greenboost_wire::nvme::Why;
use twox_hash::XxHash3_128;

use super::area::Region;
use super::file::SpillFile;
use super::queue::{Direction, Disk, Piece, Queue};
use super::slots::Content;
use super::store::{Config, Facts, Failure, Operation, Shared};
use super::{table, trial};
use crate::tier::chunk::GRAIN;

/// While requests are on their way and the queue has room, new operations are looked for so often; more rarely the longer
/// nothing happens. (What could wake a thread that waits for a ring is a descriptor, and those the program may close.)
const GLANCE: Duration = Duration::from_micros(300);
const GLANCES: u32 = 16;
/// While the queue is full there is nothing to look for; the ring tells what ends.
const LONG: Duration = Duration::from_millis(100);
/// One request in so many is a write's while there are reads.
const WRITES_TURN: usize = 4;

/// The body of the thread: makes the file, tells how it turned out, and serves until the end.
///
/// # Safety
/// The regions stay mapped.
pub(super) unsafe fn run(
    config: Config,
    regions: Vec<Region>,
    shared: Arc<Shared>,
    wrap: impl FnOnce(Box<dyn Disk>) -> Box<dyn Disk>,
    tell: &SyncSender<Result<Facts, Why>>,
) {
    let body = || -> Result<(), Why> {
        let is_apart = table::own();
        let made = SpillFile::create(&config.dir, config.limit);
        let mut file = made.map_err(|refusal| refusal.why)?;
        // SAFETY: the caller's promise.
        let found = unsafe { trial::find(&mut file, config.depth, &regions, config.method) }?;
        let facts = Facts {
            method: found.method,
            refusal: found.refusal,
            is_firm: file.is_firm(),
            is_apart,
            registered: found.registered,
        };
        shared.state().slots.grow(file.size());
        let theirs = shared.clone();
        let thread = std::thread::Builder::new()
            .name("greenboost-grow".into())
            .stack_size(128 << 10);
        // Should it fail, nobody gets more room; what is there can still be read.
        let body = move || {
            drop(catch_unwind(AssertUnwindSafe(|| {
                grow(&theirs, file, config.step)
            })))
        };
        let grower = thread
            .spawn(body)
            .map_err(|e| Why::Failed(e.raw_os_error().unwrap_or(libc::EAGAIN)))?;
        if tell.send(Ok(facts)).is_ok() {
            Worker {
                queue: Queue::new(wrap(found.disk), config.depth),
                request: config.request,
                shared: &shared,
                jobs: BTreeMap::new(),
                reads: VecDeque::new(),
                writes: VecDeque::new(),
                to_sum: VecDeque::new(),
                last: 0,
                turn: 0,
                broken: None,
            }
            .serve();
        }
        shared.end();
        let _ = grower.join();
        Ok(())
    };
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => {}
        Ok(Err(why)) => drop(tell.send(Err(why))),
        // What is on its way has not ended: its memory stays taken, and whoever waits does so until the deadline.
        Err(_) => return shared.end(),
    }
    shared.end();
    shared.over.tell(());
}

/// The body of the other thread: has the file grow for those who wait for room, one after the other.
fn grow(shared: &Shared, mut file: SpillFile, step: u64) {
    loop {
        let (reservation, least) = {
            let mut state = shared.state();
            loop {
                if state.is_ending {
                    return;
                }
                if let Some(next) = state.reservations.pop_front() {
                    let least = next.bytes.saturating_sub(state.slots.spare());
                    break (next, least);
                }
                let waited = shared.wake_grower.wait(state);
                state = waited.unwrap_or_else(PoisonError::into_inner);
            }
        };
        let grown = match least {
            0 => Ok(file.size()),
            least => file.grow(least, step),
        };
        let mut state = shared.state();
        if let Ok(size) = grown {
            state.slots.grow(size);
        }
        let slot = state.slots.reserve(reservation.bytes);
        let answer = match (slot, grown) {
            (Some(slot), _) => Ok(slot),
            (None, Err(shortage)) => Err(shortage),
            (None, Ok(_)) => {
                // Somebody was faster.
                state.reservations.push_front(reservation);
                continue;
            }
        };
        if let Some(Ok(unwanted)) = reservation.end.tell(answer) {
            state.slots.release(unwanted);
        }
    }
}

/// An operation on its way.
struct Job {
    operation: Arc<Operation>,
    /// Of a write: the checksums of the grains.
    sums: Vec<u128>,
    /// Grains that are still to be hashed.
    unsummed: usize,
    /// Requests that were begun.
    begun: usize,
    /// Requests of each grain that have not ended.
    left: Vec<u32>,
    in_flight: usize,
    failure: Option<Failure>,
    /// Where the disk failed.
    bad: Vec<u64>,
}

struct Worker<'a> {
    queue: Queue,
    request: usize,
    shared: &'a Shared,
    jobs: BTreeMap<u32, Job>,
    /// Those of which not all was begun.
    reads: VecDeque<u32>,
    writes: VecDeque<u32>,
    /// Grains to be hashed: of which operation, and which of its grains.
    to_sum: VecDeque<(u32, usize)>,
    last: u32,
    turn: usize,
    /// The queue's own error: nothing more begins.
    broken: Option<i32>,
}

impl Worker<'_> {
    fn serve(mut self) {
        let (mut glances, mut seen) = (1, self.last);
        while self.take() {
            while self.queue.has_room()
                && let Some(id) = self.next()
            {
                self.begin(id);
            }
            let is_idle = self.reads.is_empty() && self.writes.is_empty();
            let has_summed = self.sum_one();
            let patience = match self.queue.has_room() && is_idle {
                _ if has_summed => Duration::ZERO,
                true => GLANCE * glances,
                false => LONG,
            };
            let mut ended = Vec::new();
            let collected = self
                .queue
                .collect(patience, |token, result| ended.push((token, result)));
            glances = match ended.is_empty() && self.last == seen {
                true => (glances * 2).min(GLANCES),
                false => 1,
            };
            seen = self.last;
            for (token, result) in ended {
                self.ended(token, result);
            }
            if let Err(e) = collected {
                self.breaks(e.raw_os_error().unwrap_or(libc::EIO));
            }
        }
    }

    /// Takes over what came in; waits for that when there is nothing else to do. False: this is the end.
    fn take(&mut self) -> bool {
        let mut state = self.shared.state();
        while state.incoming.is_empty() && self.jobs.is_empty() && !state.is_ending {
            let waited = self.shared.wake.wait(state);
            state = waited.unwrap_or_else(PoisonError::into_inner);
        }
        let is_ending = state.is_ending;
        let per_grain = (GRAIN as usize / self.request) as u32;
        while let Some(operation) = state.incoming.pop_front() {
            self.last = self.last.wrapping_add(1);
            match operation.direction {
                Direction::Read => self.reads.push_back(self.last),
                Direction::Write => self.writes.push_back(self.last),
            }
            let job = Job {
                left: vec![per_grain; operation.places.len()],
                sums: vec![0; operation.places.len()],
                unsummed: operation.places.len(),
                operation,
                begun: 0,
                in_flight: 0,
                failure: None,
                bad: Vec::new(),
            };
            self.jobs.insert(self.last, job);
        }
        drop(state);
        if is_ending {
            self.give_up(|_| Failure::Closed);
        }
        self.settle();
        !(is_ending && self.jobs.is_empty())
    }

    /// The next operation of which a request is to begin.
    fn next(&mut self) -> Option<u32> {
        self.turn += 1;
        let is_writes_turn = self.turn.is_multiple_of(WRITES_TURN);
        let (first, second) = match is_writes_turn {
            true => (&self.writes, &self.reads),
            false => (&self.reads, &self.writes),
        };
        first.front().or(second.front()).copied()
    }

    /// Begins the next request of an operation.
    fn begin(&mut self, id: u32) {
        let Some(job) = self.jobs.get_mut(&id) else {
            return;
        };
        let (direction, buffer) = (job.operation.direction, job.operation.buffer);
        let number = job.begun;
        let offset = number * self.request;
        let (grain, within) = (offset / GRAIN as usize, offset % GRAIN as usize);
        if direction == Direction::Write && within == 0 {
            self.to_sum.push_back((id, grain));
        }
        let piece = Piece {
            direction,
            at: job.operation.places[grain] + within as u64,
            address: buffer.address + offset,
            len: self.request,
        };
        job.begun += 1;
        job.in_flight += 1;
        let is_all = job.begun * self.request >= buffer.len;
        // SAFETY: memory of the operation, which ends when its last request has; until then it is left alone.
        unsafe { self.queue.start(u64::from(id) << 32 | number as u64, piece) };
        if is_all {
            self.line(direction).retain(|other| *other != id);
        }
    }

    fn line(&mut self, direction: Direction) -> &mut VecDeque<u32> {
        match direction {
            Direction::Read => &mut self.reads,
            Direction::Write => &mut self.writes,
        }
    }

    /// A request has ended.
    fn ended(&mut self, token: u64, result: Result<(), i32>) {
        let (id, number) = ((token >> 32) as u32, token as u32 as usize);
        let Some(job) = self.jobs.get_mut(&id) else {
            return;
        };
        let direction = job.operation.direction;
        let grain = number * self.request / GRAIN as usize;
        job.in_flight -= 1;
        job.left[grain] -= 1;
        if let Err(errno) = result {
            job.failure.get_or_insert(Failure::Disk(direction, errno));
            if errno == libc::EIO {
                job.bad.push(job.operation.places[grain]);
            }
        }
        if direction == Direction::Read && job.left[grain] == 0 {
            self.to_sum.push_back((id, grain));
        }
        self.look_at(id);
    }

    /// Hashes a grain, if there is one to be hashed.
    fn sum_one(&mut self) -> bool {
        let Some((id, grain)) = self.to_sum.pop_front() else {
            return false;
        };
        // Of one that has failed nobody wants it.
        if let Some(job) = self.jobs.get_mut(&id).filter(|job| job.failure.is_none()) {
            let Operation {
                direction,
                buffer,
                ref places,
                ref sums,
                ..
            } = *job.operation;
            // SAFETY: memory of the operation, which stays until it has ended; what is read there has come, and what is
            // written from there is only read.
            let sum = unsafe { sum(buffer.address + grain * GRAIN as usize) };
            job.unsummed -= 1;
            match direction {
                Direction::Write => job.sums[grain] = sum,
                Direction::Read if sums.get(grain) == Some(&sum) => {}
                Direction::Read => job.failure = Some(Failure::Checksum(places[grain])),
            }
            self.look_at(id);
        }
        true
    }

    /// Whether an operation has ended, or failed.
    fn look_at(&mut self, id: u32) {
        let Some(job) = self.jobs.get(&id) else {
            return;
        };
        let has_failed = job.failure.is_some();
        let is_whole = job.begun * self.request >= job.operation.buffer.len && job.unsummed == 0;
        if job.in_flight == 0 && (is_whole || has_failed) {
            self.finish(id);
        } else if has_failed {
            // No more of it begins.
            let direction = job.operation.direction;
            self.line(direction).retain(|other| *other != id);
        }
    }

    /// An operation has ended.
    fn finish(&mut self, id: u32) {
        let Some(job) = self.jobs.remove(&id) else {
            return;
        };
        let Operation {
            direction,
            slot,
            buffer,
            ref end,
            ..
        } = *job.operation;
        self.line(direction).retain(|other| *other != id);
        let is_written = direction == Direction::Write && job.failure.is_none();
        let is_void = direction == Direction::Write && job.failure.is_some();
        let counter = match (job.failure, direction) {
            (Some(_), _) => &self.shared.failed,
            (None, Direction::Read) => &self.shared.read,
            (None, Direction::Write) => &self.shared.written,
        };
        let by = job.failure.map_or(buffer.len as u64, |_| 1);
        counter.fetch_add(by, Relaxed);
        let mut state = self.shared.state();
        if is_written {
            state.slots.set(slot, Content::Sums(job.sums));
        }
        if is_void {
            for place in job.bad {
                state.slots.retire(place);
            }
        }
        state.slots.leave(slot, is_void);
        if let Some(at) = state.taken.iter().position(|other| *other == buffer) {
            state.taken.swap_remove(at);
        }
        drop(state);
        end.tell(job.failure.map_or(Ok(()), Err));
    }

    /// Nothing more of any operation begins.
    fn give_up(&mut self, failure: impl Fn(Direction) -> Failure) {
        let waiting: Vec<u32> = self.reads.drain(..).chain(self.writes.drain(..)).collect();
        for id in waiting {
            if let Some(job) = self.jobs.get_mut(&id) {
                let failure = failure(job.operation.direction);
                job.failure.get_or_insert(failure);
            }
        }
    }

    /// Ends operations that failed before anything of them had begun.
    fn settle(&mut self) {
        let over: Vec<u32> = self
            .jobs
            .iter()
            .filter(|(_, job)| job.failure.is_some() && job.in_flight == 0)
            .map(|(id, _)| *id)
            .collect();
        for id in over {
            self.finish(id);
        }
    }

    /// The queue itself fails. What is on its way may still end; nobody knows.
    fn breaks(&mut self, errno: i32) {
        if self.broken.replace(errno).is_none() {
            self.shared.end();
        }
        self.give_up(|direction| Failure::Disk(direction, errno));
        std::thread::sleep(LONG);
    }
}

/// Of the grain at this address.
///
/// # Safety
/// It is there, and nobody writes to it.
unsafe fn sum(address: usize) -> u128 {
    // SAFETY: the caller's promise.
    XxHash3_128::oneshot(unsafe {
        std::slice::from_raw_parts(address as *const u8, GRAIN as usize)
    })
}
