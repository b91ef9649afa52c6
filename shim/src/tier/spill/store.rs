//! What the rest of the shim calls.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use greenboost_wire::nvme::{Refusal, Why};

use super::area::{Buffer, Region};
use super::file::Shortage;
use super::promise::Promise;
use super::queue::{Direction, UNIT};
use super::slots::{Content, Slot, Slots};
use super::trial::Method;
use super::worker;
use crate::tier::drain;

/// How the store is made.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where the file goes.
    pub dir: PathBuf,
    /// Bytes that it may hold.
    pub limit: u64,
    /// Requests at once.
    pub depth: usize,
    /// Bytes of a request: from 64 KiB to 2 MiB, a power of two.
    pub request: usize,
    /// Bytes by which the file grows.
    pub step: u64,
    /// Only this method, instead of the best that works.
    pub method: Option<Method>,
}

impl Config {
    /// With what is usually best: 32 requests of 1 MiB, 1 GiB at a time.
    pub fn new(dir: PathBuf, limit: Option<u64>) -> Config {
        Config {
            dir,
            limit: limit.unwrap_or(u64::MAX),
            depth: 32,
            request: 1 << 20,
            step: 1 << 30,
            method: None,
        }
    }
}

/// How the file turned out; does not change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// How it is read and written.
    pub method: Method,
    /// Why that is not io_uring, when it is not.
    pub refusal: Option<String>,
    /// Whether the file system sets room aside.
    pub is_firm: bool,
    /// Whether the program's own descriptors are out of reach.
    pub is_apart: bool,
    /// Bytes of the regions that are registered with the kernel.
    pub registered: u64,
}

/// What has gone through the file so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Bytes whose write has ended well.
    pub written: u64,
    /// Bytes whose read has ended well.
    pub read: u64,
    /// Operations that failed.
    pub failed: u64,
    /// How long callers waited for operations, all of them together.
    pub waited: Duration,
    /// Bytes that the file has.
    pub grown: u64,
    /// Bytes of it that are free.
    pub spare: u64,
    /// Bytes of it on which the disk failed.
    pub retired: u64,
}

/// Why a call began nothing. A sentence when displayed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// The file cannot grow.
    Short(Shortage),
    /// It did not grow in time.
    Late,
    /// The slot was given back.
    Stale,
    /// The slot was written to before.
    Full,
    /// There is nothing in the slot yet.
    Empty,
    /// That is no class, no memory of the slot's size, or not at a multiple of [`UNIT`].
    Shape,
    /// An operation on its way uses some of this memory.
    Taken,
    /// The store is closed, or its thread has failed.
    Closed,
    /// This is the child of a fork; the file is the parent's.
    Forked,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Refused::Short(shortage) => return shortage.fmt(f),
            Refused::Late => "the disk did not answer in time",
            Refused::Stale => "a slot of the spill file was used after it was given back",
            Refused::Full => "a slot of the spill file was to be written twice",
            Refused::Empty => "a slot of the spill file was to be read before it was written",
            Refused::Shape => "memory does not fit the slot of the spill file",
            Refused::Taken => "memory is still in use by an operation on the spill file",
            Refused::Closed => "the spill file is closed",
            Refused::Forked => "the spill file belongs to the parent process",
        })
    }
}

/// How an operation failed. A sentence when displayed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The disk's error, an `errno`. After a write the slot is given back; after a read it is as it was.
    Disk(Direction, i32),
    /// What was read, at this place of the file, is not what was written. The program cannot go on.
    Checksum(u64),
    /// The store was closed before it began.
    Closed,
    /// This is the child of a fork.
    Forked,
}

impl Failure {
    /// Whether there was no room.
    pub fn is_full(&self) -> bool {
        matches!(
            self,
            Failure::Disk(_, libc::ENOSPC | libc::EDQUOT | libc::EFBIG)
        )
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Failure::Disk(direction, errno) => {
                let what = match direction {
                    Direction::Read => "read",
                    Direction::Write => "written to",
                };
                let error = io::Error::from_raw_os_error(*errno);
                write!(f, "the spill file could not be {what} ({error})")
            }
            Failure::Checksum(place) => write!(
                f,
                "the disk gave back wrong data at {place} of the spill file: its checksum is not that of what was written"
            ),
            Failure::Closed => write!(f, "the spill file was closed"),
            Failure::Forked => write!(f, "the spill file belongs to the parent process"),
        }
    }
}

/// An operation on its way.
#[derive(Debug)]
pub(super) struct Operation {
    pub direction: Direction,
    pub slot: Slot,
    pub buffer: Buffer,
    /// Where in the file each grain lies.
    pub places: Vec<u64>,
    /// Of a read: the checksum of each grain.
    pub sums: Vec<u128>,
    pub end: Promise<Result<(), Failure>>,
}

/// Somebody who waits for room.
#[derive(Debug)]
pub(super) struct Reservation {
    pub bytes: u64,
    pub end: Promise<Result<Slot, Shortage>>,
}

/// What callers and threads share.
#[derive(Debug)]
pub(super) struct Shared {
    /// Of the process that the file belongs to.
    pid: libc::pid_t,
    state: Mutex<State>,
    /// For the worker.
    pub wake: Condvar,
    /// For the thread that has the file grow.
    pub wake_grower: Condvar,
    pub written: AtomicU64,
    pub read: AtomicU64,
    pub failed: AtomicU64,
    waited: AtomicU64,
    /// When the last operation has ended after [`State::is_ending`].
    pub over: Promise<()>,
}

#[derive(Debug, Default)]
pub(super) struct State {
    pub slots: Slots,
    pub incoming: VecDeque<Arc<Operation>>,
    pub reservations: VecDeque<Arc<Reservation>>,
    /// Memory of the operations on their way.
    pub taken: Vec<Buffer>,
    /// Nothing new begins.
    pub is_ending: bool,
}

impl Shared {
    fn new() -> Shared {
        Shared {
            // SAFETY: a plain call.
            pid: unsafe { libc::getpid() },
            state: Mutex::default(),
            wake: Condvar::new(),
            wake_grower: Condvar::new(),
            written: AtomicU64::new(0),
            read: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            waited: AtomicU64::new(0),
            over: Promise::default(),
        }
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asked before any lock is taken: in the child of a fork it may be one that nobody gives back.
    fn is_forked(&self) -> bool {
        // SAFETY: a plain call.
        self.pid != unsafe { libc::getpid() }
    }

    /// Nothing new begins, and the threads end when all is done.
    pub fn end(&self) {
        self.state().is_ending = true;
        self.wake.notify_all();
        self.wake_grower.notify_all();
    }
}

/// An operation on its way. Dropping it changes nothing for the operation.
#[derive(Debug)]
pub struct Ticket {
    operation: Arc<Operation>,
    shared: Arc<Shared>,
}

impl Ticket {
    /// What came of it; `None`: it is still on its way.
    pub fn poll(&self) -> Option<Result<(), Failure>> {
        match self.shared.is_forked() {
            true => Some(Err(Failure::Forked)),
            false => self.operation.end.look(),
        }
    }

    /// What comes of it until then; `None`: it goes on.
    pub fn wait(&self, deadline: Instant) -> Option<Result<(), Failure>> {
        if let Some(end) = self.poll() {
            return Some(end);
        }
        let begun = Instant::now();
        let end = self.operation.end.wait(deadline);
        let waited = begun.elapsed().as_nanos() as u64;
        self.shared.waited.fetch_add(waited, Relaxed);
        end
    }
}

/// A spill file. Dropping it closes it, without waiting for what is on its way.
#[derive(Debug)]
pub struct Store {
    shared: Arc<Shared>,
    facts: Facts,
}

impl Store {
    /// Makes the file and starts the thread, within `patience`. `regions`: memory that operations will mostly use; as
    /// much of it as the kernel allows is registered once and for all.
    ///
    /// # Errors
    /// Why the directory will not do.
    ///
    /// # Safety
    /// The regions stay mapped for as long as the store is not over (see [`Store::close`]).
    pub unsafe fn open(
        config: Config,
        regions: Vec<Region>,
        patience: Duration,
    ) -> Result<Store, Refusal> {
        // SAFETY: the caller's promise.
        unsafe { Store::over(config, regions, patience, |disk| disk) }
    }

    /// As [`Store::open`], with something between the disk and whoever uses it.
    ///
    /// # Errors
    /// As there.
    ///
    /// # Safety
    /// As there.
    pub(super) unsafe fn over(
        config: Config,
        regions: Vec<Region>,
        patience: Duration,
        wrap: impl FnOnce(Box<dyn super::queue::Disk>) -> Box<dyn super::queue::Disk> + Send + 'static,
    ) -> Result<Store, Refusal> {
        let refuse = |why| Refusal {
            dir: config.dir.clone(),
            why,
        };
        let is_possible = config.request.is_power_of_two()
            && (UNIT..=2 << 20).contains(&config.request)
            && (1..=1024).contains(&config.depth);
        if !is_possible {
            return Err(refuse(Why::Failed(libc::EINVAL)));
        }
        let shared = Arc::new(Shared::new());
        let (tell, told) = sync_channel(1);
        let (theirs, settings) = (shared.clone(), config.clone());
        let spawned = drain::without_signals(|| {
            let thread = std::thread::Builder::new().name("greenboost-spill".into());
            // SAFETY: the caller's promise.
            thread.spawn(move || unsafe { worker::run(settings, regions, theirs, wrap, &tell) })
        });
        if let Err(e) = spawned {
            return Err(refuse(Why::Failed(
                e.raw_os_error().unwrap_or(libc::EAGAIN),
            )));
        }
        match told.recv_timeout(patience) {
            Ok(Ok(facts)) => Ok(Store { shared, facts }),
            Ok(Err(why)) => Err(refuse(why)),
            Err(_) => {
                shared.end();
                Err(refuse(Why::Silent))
            }
        }
    }

    /// How the file turned out.
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// What has gone through it.
    pub fn counts(&self) -> Counts {
        if self.shared.is_forked() {
            return Counts::default();
        }
        let state = self.shared.state();
        Counts {
            written: self.shared.written.load(Relaxed),
            read: self.shared.read.load(Relaxed),
            failed: self.shared.failed.load(Relaxed),
            waited: Duration::from_nanos(self.shared.waited.load(Relaxed)),
            grown: state.slots.grown(),
            spare: state.slots.spare(),
            retired: state.slots.retired(),
        }
    }

    /// Takes a slot for a chunk of that size, a class of [`crate::tier::chunk::CLASSES`], and has the file grow for it
    /// until the deadline.
    ///
    /// # Errors
    /// When there is no room, or none in time.
    pub fn reserve(&self, bytes: u64, deadline: Instant) -> Result<Slot, Refused> {
        if self.shared.is_forked() {
            return Err(Refused::Forked);
        }
        if !crate::tier::chunk::CLASSES.contains(&bytes) {
            return Err(Refused::Shape);
        }
        let reservation = {
            let mut state = self.shared.state();
            if state.is_ending {
                return Err(Refused::Closed);
            }
            if let Some(slot) = state.slots.reserve(bytes) {
                return Ok(slot);
            }
            let reservation = Arc::new(Reservation {
                bytes,
                end: Promise::default(),
            });
            state.reservations.push_back(reservation.clone());
            reservation
        };
        self.shared.wake_grower.notify_all();
        match reservation.end.wait_or_leave(deadline) {
            Some(Ok(slot)) => Ok(slot),
            Some(Err(shortage)) => Err(Refused::Short(shortage)),
            None => Err(Refused::Late),
        }
    }

    /// Gives a slot back: at once, or when the operations on it have ended. False: it was given back before.
    pub fn release(&self, slot: Slot) -> bool {
        !self.shared.is_forked() && self.shared.state().slots.release(slot)
    }

    /// Begins to write a chunk into a slot to which nothing was written yet.
    ///
    /// # Errors
    /// When that cannot begin.
    ///
    /// # Safety
    /// The memory stays, and nobody changes it, until the operation has ended.
    pub unsafe fn write(&self, slot: Slot, buffer: Buffer) -> Result<Ticket, Refused> {
        self.begin(Direction::Write, slot, buffer)
    }

    /// Begins to read a chunk that was written before.
    ///
    /// # Errors
    /// When that cannot begin.
    ///
    /// # Safety
    /// The memory stays, and nobody else uses it, until the operation has ended.
    pub unsafe fn read(&self, slot: Slot, buffer: Buffer) -> Result<Ticket, Refused> {
        self.begin(Direction::Read, slot, buffer)
    }

    fn begin(&self, direction: Direction, slot: Slot, buffer: Buffer) -> Result<Ticket, Refused> {
        if self.shared.is_forked() {
            return Err(Refused::Forked);
        }
        let mut state = self.shared.state();
        let State { slots, taken, .. } = &mut *state;
        let size = slots.size(slot).ok_or(Refused::Stale)?;
        let places = slots.places(slot).ok_or(Refused::Stale)?;
        let sums = match (direction, slots.content(slot)) {
            (Direction::Write, Some(Content::Nothing)) => Vec::new(),
            (Direction::Read, Some(Content::Sums(sums))) => sums.clone(),
            (Direction::Write, _) => return Err(Refused::Full),
            (Direction::Read, _) => return Err(Refused::Empty),
        };
        let is_aligned = buffer.address.is_multiple_of(UNIT) && buffer.address != 0;
        if buffer.len as u64 != size
            || !is_aligned
            || buffer.address.checked_add(buffer.len).is_none()
        {
            return Err(Refused::Shape);
        }
        if taken.iter().any(|other| other.overlaps(&buffer)) {
            return Err(Refused::Taken);
        }
        if state.is_ending {
            return Err(Refused::Closed);
        }
        if direction == Direction::Write {
            state.slots.set(slot, Content::Coming);
        }
        state.slots.enter(slot);
        state.taken.push(buffer);
        let operation = Arc::new(Operation {
            direction,
            slot,
            buffer,
            places,
            sums,
            end: Promise::default(),
        });
        state.incoming.push_back(operation.clone());
        drop(state);
        self.shared.wake.notify_all();
        Ok(Ticket {
            operation,
            shared: self.shared.clone(),
        })
    }

    /// Whether an operation on its way uses some of this memory.
    pub fn uses(&self, buffer: &Buffer) -> bool {
        !self.shared.is_forked() && self.shared.state().taken.iter().any(|b| b.overlaps(buffer))
    }

    /// Begins nothing new and waits until all operations have ended and the file is gone. False: some are still on their
    /// way, and so is the file.
    pub fn close(&self, deadline: Instant) -> bool {
        if self.shared.is_forked() {
            return true;
        }
        self.shared.end();
        self.shared.over.wait(deadline).is_some()
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        if !self.shared.is_forked() {
            self.shared.end();
        }
    }
}
