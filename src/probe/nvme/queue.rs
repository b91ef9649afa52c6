//! Reads and writes of one file, many at once: by io_uring, or by threads where the kernel or a sandbox refuses it.
//!
//! No operation starts outside of the file's size: that is checked here, in one place.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use io_uring::{IoUring, opcode, types};

use crate::probe::area::Area;

/// What is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    Read,
    Write,
}

/// How it is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Method {
    /// io_uring.
    Uring,
    /// A pool of threads that call pread and pwrite.
    Threads,
}

impl Method {
    /// For tables.
    pub fn name(self) -> &'static str {
        match self {
            Method::Uring => "io_uring",
            Method::Threads => "threads with pread and pwrite",
        }
    }
}

/// A file of which only the first `size` bytes are ours to touch, and buffers for it.
pub struct Queue {
    // Before the buffers: what runs must have ended before they go.
    engine: Engine,
    buffers: Area,
    slot_size: usize,
    file: Arc<File>,
    size: u64,
    /// Length of what runs in each slot; 0: nothing.
    running: Vec<usize>,
    in_flight: usize,
}

enum Engine {
    Uring(Box<IoUring>, VecDeque<(usize, i32)>),
    Threads(Pool),
}

impl Queue {
    /// Buffers of that size for so many operations at once. Tells why it is not io_uring when it is not.
    ///
    /// # Errors
    /// When memory or threads are out.
    pub fn new(
        file: Arc<File>,
        size: u64,
        slots: usize,
        slot_size: usize,
        wish: Option<Method>,
    ) -> io::Result<(Queue, Method, Option<String>)> {
        // Huge pages: a request is then one piece of physical memory. With small ones some disks were seen at half the
        // rate, and what spills has huge ones as well.
        let buffers = Area::new(slots * slot_size, true)?;
        buffers.populate(1)?;
        let (engine, method, refusal) = match wish {
            Some(Method::Threads) => (None, Method::Threads, None),
            _ => match uring(&file, slots) {
                Ok(ring) => (Some(ring), Method::Uring, None),
                Err(e) if wish.is_none() => (None, Method::Threads, Some(e.to_string())),
                Err(e) => return Err(e),
            },
        };
        let engine = match engine {
            Some(ring) => Engine::Uring(Box::new(ring), VecDeque::new()),
            None => Engine::Threads(Pool::new(&file, slots)?),
        };
        let queue = Queue {
            engine,
            buffers,
            slot_size,
            file,
            size,
            running: vec![0; slots],
            in_flight: 0,
        };
        Ok((queue, method, refusal))
    }

    /// The file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// How many operations can run at once.
    pub fn slots(&self) -> usize {
        self.running.len()
    }

    /// How many run.
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// From now on only so much of the file is ours.
    pub fn shrink(&mut self, size: u64) {
        self.size = self.size.min(size);
    }

    /// All buffers, to be pinned.
    pub fn memory(&self) -> &Area {
        &self.buffers
    }

    /// Where a slot's buffer starts.
    pub fn address(&self, slot: usize) -> *mut u8 {
        self.buffers.start().wrapping_add(slot * self.slot_size)
    }

    /// The buffer of a slot in which nothing runs.
    pub fn buffer(&mut self, slot: usize, len: usize) -> &mut [u8] {
        assert_eq!(self.running[slot], 0, "slot {slot} is in use");
        let start = slot * self.slot_size;
        &mut self.buffers.bytes_mut()[start..start + len.min(self.slot_size)]
    }

    /// Starts one.
    ///
    /// # Errors
    /// When it would lie outside of the file, or the kernel takes nothing more.
    pub fn start(
        &mut self,
        slot: usize,
        direction: Direction,
        at: u64,
        len: usize,
    ) -> io::Result<()> {
        let is_inside = at
            .checked_add(len as u64)
            .is_some_and(|end| end <= self.size);
        if self.running[slot] != 0 || len == 0 || len > self.slot_size {
            return Err(io::Error::other(format!(
                "slot {slot}, of {} bytes, does not take {len} bytes now",
                self.slot_size
            )));
        }
        if !is_inside {
            return Err(io::Error::other(format!(
                "an operation of {len} bytes at {at} would leave the {} bytes of the file",
                self.size
            )));
        }
        let address = self.address(slot);
        match &mut self.engine {
            Engine::Uring(ring, _) => {
                let fd = types::Fd(self.file.as_raw_fd());
                let length = len as u32;
                let entry = match direction {
                    Direction::Read => opcode::Read::new(fd, address, length).offset(at).build(),
                    Direction::Write => opcode::Write::new(fd, address, length).offset(at).build(),
                };
                let entry = entry.user_data(slot as u64);
                // SAFETY: the buffer is the slot's, `running` gives it to nobody else until the operation has ended,
                // and it is not unmapped before (see `drop`).
                unsafe { ring.submission().push(&entry) }
                    .map_err(|_| io::Error::other("the ring is full"))?;
                if let Err(e) = ring.submit() {
                    // It may have been taken all the same, so the slot stays in use.
                    if !matches!(
                        e.raw_os_error(),
                        Some(libc::EBUSY | libc::EAGAIN | libc::EINTR)
                    ) {
                        return Err(e);
                    }
                }
            }
            Engine::Threads(pool) => pool.start(Job {
                slot,
                direction,
                at,
                len,
                address: address as usize,
            })?,
        }
        self.running[slot] = len;
        self.in_flight += 1;
        Ok(())
    }

    /// Waits for one of those that run, and tells its slot.
    ///
    /// # Errors
    /// The operation's own, or that it came short.
    pub fn wait(&mut self) -> io::Result<usize> {
        if self.in_flight == 0 {
            return Err(io::Error::other("nothing runs"));
        }
        let (slot, result) = self.engine.wait()?;
        let wanted = std::mem::take(&mut self.running[slot]);
        self.in_flight -= 1;
        let done = usize::try_from(result).map_err(|_| io::Error::from_raw_os_error(-result))?;
        if done != wanted {
            return Err(io::Error::other(format!(
                "{done} of {wanted} bytes came through"
            )));
        }
        Ok(slot)
    }

    /// Waits for everything, whatever came of it.
    pub fn drain(&mut self) {
        while self.in_flight > 0 {
            let before = self.in_flight;
            if self.wait().is_err() && self.in_flight == before {
                return;
            }
        }
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        self.drain();
        if self.in_flight > 0 {
            // The kernel may still write there: better lost than reused.
            if let Ok(empty) = Area::new(0, false) {
                std::mem::forget(std::mem::replace(&mut self.buffers, empty));
            } else {
                std::process::abort();
            }
        }
    }
}

impl Engine {
    fn wait(&mut self) -> io::Result<(usize, i32)> {
        match self {
            Engine::Uring(ring, ended) => loop {
                if let Some(next) = ended.pop_front() {
                    return Ok(next);
                }
                ended.extend(
                    ring.completion()
                        .map(|entry| (entry.user_data() as usize, entry.result())),
                );
                if ended.is_empty()
                    && let Err(e) = ring.submit_and_wait(1)
                    && e.raw_os_error() != Some(libc::EINTR)
                {
                    return Err(e);
                }
            },
            Engine::Threads(pool) => pool.ended.recv().map_err(io::Error::other),
        }
    }
}

/// A ring that was seen to read this file.
fn uring(file: &File, slots: usize) -> io::Result<IoUring> {
    let mut ring = IoUring::new(slots.next_power_of_two() as u32)?;
    let mut area = Area::new(4096, false)?;
    let address = area.bytes_mut().as_mut_ptr();
    let entry = opcode::Read::new(types::Fd(file.as_raw_fd()), address, 4096).build();
    // SAFETY: the buffer lives until the one operation has ended, or the ring was closed, which waits for it.
    unsafe { ring.submission().push(&entry) }.map_err(|_| io::Error::other("the ring is full"))?;
    if let Err(e) = ring.submit_and_wait(1) {
        std::mem::forget(area);
        return Err(e);
    }
    let result = ring.completion().next().map(|entry| entry.result());
    match result {
        Some(0..) => Ok(ring),
        Some(error) => Err(io::Error::from_raw_os_error(-error)),
        None => {
            std::mem::forget(area);
            Err(io::Error::other("the ring does not answer"))
        }
    }
}

/// One operation for a thread.
struct Job {
    slot: usize,
    direction: Direction,
    at: u64,
    len: usize,
    /// Of the slot's buffer.
    address: usize,
}

/// Threads, as many as operations at once.
struct Pool {
    jobs: Option<Sender<Job>>,
    ended: Receiver<(usize, i32)>,
    threads: Vec<JoinHandle<()>>,
}

impl Pool {
    fn new(file: &Arc<File>, threads: usize) -> io::Result<Pool> {
        let (jobs, queue) = channel::<Job>();
        let (sender, ended) = channel();
        let queue = Arc::new(Mutex::new(queue));
        let mut pool = Pool {
            jobs: Some(jobs),
            ended,
            threads: Vec::new(),
        };
        for _ in 0..threads {
            let (file, queue, sender) = (file.clone(), queue.clone(), sender.clone());
            let body = move || {
                loop {
                    let next = match queue.lock() {
                        Ok(queue) => queue.recv(),
                        Err(_) => return,
                    };
                    let Ok(job) = next else { return };
                    if sender.send((job.slot, job.run(&file))).is_err() {
                        return;
                    }
                }
            };
            pool.threads.push(std::thread::Builder::new().spawn(body)?);
        }
        Ok(pool)
    }

    fn start(&self, job: Job) -> io::Result<()> {
        match &self.jobs {
            Some(jobs) => jobs.send(job).map_err(|_| io::Error::other("no threads")),
            None => Err(io::Error::other("no threads")),
        }
    }
}

impl Job {
    /// As the kernel would answer: bytes, or an error as a negative number.
    fn run(&self, file: &File) -> i32 {
        // SAFETY: the slot's buffer, which nobody else uses until this operation has been waited for.
        let buffer = unsafe { std::slice::from_raw_parts_mut(self.address as *mut u8, self.len) };
        let result = match self.direction {
            Direction::Read => file.read_at(buffer, self.at),
            Direction::Write => file.write_at(buffer, self.at),
        };
        match result {
            Ok(bytes) => bytes as i32,
            Err(e) => -e.raw_os_error().unwrap_or(libc::EIO),
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.jobs = None;
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(method: Method, size: u64) -> Queue {
        let file = Arc::new(tempfile::tempfile().unwrap());
        let (queue, used, refusal) = Queue::new(file, size, 4, 8192, Some(method)).unwrap();
        assert_eq!((used, refusal), (method, None));
        queue
    }

    #[test]
    fn what_is_written_is_read() {
        for method in [Method::Uring, Method::Threads] {
            let mut queue = queue(method, 64 << 10);
            for at in 0..8u8 {
                let slot = usize::from(at % 4);
                queue.buffer(slot, 8192).fill(at + 1);
                queue
                    .start(slot, Direction::Write, u64::from(at) * 8192, 8192)
                    .unwrap();
                if at % 4 == 3 {
                    for _ in 0..4 {
                        queue.wait().unwrap();
                    }
                }
            }
            for at in [5u8, 0, 7] {
                queue
                    .start(2, Direction::Read, u64::from(at) * 8192, 8192)
                    .unwrap();
                assert_eq!(queue.wait().unwrap(), 2);
                assert!(queue.buffer(2, 8192).iter().all(|b| *b == at + 1));
            }
        }
    }

    #[test]
    fn never_outside_of_the_file() {
        for method in [Method::Uring, Method::Threads] {
            let mut queue = queue(method, 16 << 10);
            for (at, len) in [
                (16 << 10, 1),
                ((8 << 10) + 1, 8192),
                (u64::MAX, 8192),
                (0, 8193),
                (0, 0),
            ] {
                assert!(
                    queue.start(0, Direction::Write, at, len).is_err(),
                    "{at} {len}"
                );
            }
            queue.shrink(8192);
            assert!(queue.start(0, Direction::Write, 8192, 8192).is_err());
            assert_eq!(queue.file().metadata().unwrap().len(), 0);
            assert!(queue.wait().is_err(), "nothing runs");
        }
    }

    #[test]
    fn short_reads_are_errors() {
        for method in [Method::Uring, Method::Threads] {
            let mut queue = queue(method, 16 << 10);
            queue.start(0, Direction::Write, 0, 4096).unwrap();
            queue.wait().unwrap();
            queue.start(1, Direction::Read, 0, 8192).unwrap();
            assert!(queue.wait().is_err());
            assert_eq!(queue.in_flight(), 0);
        }
    }
}
