//! Which way of reading and writing works: each is tried for real, for some promise what they do not keep.

use std::io;
use std::time::{Duration, Instant};

use greenboost_wire::nvme::Why;

use super::area::Region;
use super::file::{Shortage, SpillFile};
use super::queue::{Direction, Disk, Piece, Pool, Queue, Ring, UNIT};
use crate::tier::chunk::GRAIN;

/// How the file is read and written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// By io_uring.
    Uring,
    /// By a pool of threads.
    Threads,
    /// By a pool of threads and through the page cache: there is no O_DIRECT.
    Buffered,
}

impl Method {
    /// For the summary.
    pub fn name(self) -> &'static str {
        match self {
            Method::Uring => "io_uring",
            Method::Threads => "threads with pread and pwrite",
            Method::Buffered => "threads with pread and pwrite, through the page cache",
        }
    }
}

/// What was found to work.
pub struct Found {
    /// What does the requests.
    pub disk: Box<dyn Disk>,
    /// How.
    pub method: Method,
    /// Why it is not io_uring, when it is not.
    pub refusal: Option<String>,
    /// Bytes of the regions that are registered with the kernel.
    pub registered: u64,
}

/// Makes the file ready: its first grain is set aside, and the best way that works on it is found. `wish`: only this one.
///
/// # Errors
/// When none works.
///
/// # Safety
/// The regions stay mapped.
pub unsafe fn find(
    file: &mut SpillFile,
    depth: usize,
    regions: &[Region],
    wish: Option<Method>,
) -> Result<Found, Why> {
    file.grow(GRAIN, GRAIN).map_err(|shortage| match shortage {
        Shortage::Disk(room) => Why::Full(room),
        Shortage::FileSize(limit) => Why::FileSize(limit),
        Shortage::Limit(_) => Why::Failed(libc::ENOSPC),
        Shortage::Failed(errno) => Why::Failed(errno),
    })?;
    let why = |e: &io::Error| Why::Failed(e.raw_os_error().unwrap_or(libc::EIO));
    let mut refusal = None;
    if file.is_direct() && wish.is_none_or(|wish| wish == Method::Uring) {
        let handle = file.handle().map_err(|e| why(&e))?;
        // SAFETY: the caller's promise.
        let ring = unsafe { Ring::new(handle, depth, regions) }.and_then(|ring| {
            let registered = ring.registered();
            Ok((trial(Box::new(ring))?, registered))
        });
        match ring {
            Ok(_) if wish.is_none() && file.is_cached(UNIT) => file.give_up_direct(),
            Ok((disk, registered)) => {
                return Ok(Found {
                    disk,
                    method: Method::Uring,
                    refusal: None,
                    registered,
                });
            }
            Err(e) if wish.is_some() => return Err(why(&e)),
            Err(e) => refusal = Some(e.to_string()),
        }
    }
    if !file.is_direct() && wish.is_none() {
        refusal = Some("the file system has no O_DIRECT, or does not keep to it".into());
    }
    let mut failed = Why::Failed(libc::EOPNOTSUPP);
    for (method, is_direct) in [(Method::Threads, true), (Method::Buffered, false)] {
        if wish.is_some_and(|wish| wish != method) || is_direct && !file.is_direct() {
            continue;
        }
        if !is_direct {
            file.give_up_direct();
        }
        let handle = file.handle().map_err(|e| why(&e))?;
        let pool = Pool::new(handle, is_direct, depth).and_then(|pool| trial(Box::new(pool)));
        match pool {
            Ok(_) if is_direct && wish.is_none() && file.is_cached(UNIT) => {}
            Ok(disk) => {
                return Ok(Found {
                    disk,
                    method,
                    refusal,
                    registered: 0,
                });
            }
            Err(e) => failed = why(&e),
        }
    }
    Err(failed)
}

/// Writes to the file's first grain, and reads that back.
fn trial(disk: Box<dyn Disk>) -> io::Result<Box<dyn Disk>> {
    const PATTERN: u8 = 0xa5;
    let len = 2 * UNIT;
    // Never given back: should a request not end, it may still be written to.
    // SAFETY: a fresh private mapping, which nothing else knows; pages are aligned, but units are larger.
    let memory = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            len + UNIT,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        )
    };
    if memory == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    let start = (memory as usize).next_multiple_of(UNIT);
    // SAFETY: inside the mapping, which no request uses yet.
    unsafe { std::ptr::write_bytes(start as *mut u8, PATTERN, UNIT) };
    let mut queue = Queue::new(disk, 1);
    for (direction, address) in [(Direction::Write, start), (Direction::Read, start + UNIT)] {
        let piece = Piece {
            direction,
            at: 0,
            address,
            len: UNIT,
        };
        // SAFETY: inside the mapping, which nobody else has.
        unsafe { queue.start(0, piece) };
        let mut came = None;
        let begun = Instant::now();
        while came.is_none() {
            queue.collect(Duration::from_millis(100), |_, result| came = Some(result))?;
            // Whoever opens the store waits no longer; neither need this thread.
            if begun.elapsed() > Duration::from_secs(600) {
                return Err(io::Error::from_raw_os_error(libc::ETIMEDOUT));
            }
        }
        came.unwrap_or(Ok(()))
            .map_err(io::Error::from_raw_os_error)?;
    }
    // SAFETY: read by the request that has ended; nobody writes there.
    let back = unsafe { std::slice::from_raw_parts((start + UNIT) as *const u8, UNIT) };
    let is_right = back.iter().all(|b| *b == PATTERN);
    // SAFETY: both requests have ended.
    unsafe { libc::munmap(memory, len + UNIT) };
    match is_right {
        true => Ok(queue.into_disk()),
        false => Err(io::Error::other("what was written was not read")),
    }
}
