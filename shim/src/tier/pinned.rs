//! Host memory for drivers and machines that cannot map host memory into a range: anonymous huge pages, registered with
//! CUDA. An allocation lies there whole; nothing of it is ever in VRAM.
//!
//! Touching the pages first, by four threads, makes this 5 times faster to obtain than `cuMemHostAlloc` (measured: 20 GB/s
//! by four threads, 8 by one, and registering huge pages runs at 50). Never a file mapping: kernels refuse to pin writable
//! file pages.

use std::ffi::c_void;
use std::sync::{Mutex, PoisonError};

use greenboost_abi::*;
use greenboost_wire::ledger::Tier;
use greenboost_wire::ram::Ram;

use super::chunk::GRAIN;
use super::device::Device;
use super::drain;
use super::range::{self, Shortage};
use crate::driver;
use crate::process::Job;
use crate::tier::budget;

/// The machine is asked again after so many bytes.
const PIECE: u64 = 1 << 30;
/// More threads are slower (measured: 8 reach 12 GB/s).
const THREADS: u64 = 4;

/// Registered anonymous memory. Unlike a range its address is good on the CPU too.
#[derive(Debug)]
pub struct Pinned {
    /// First address; a multiple of 2 MiB.
    pub base: u64,
    /// Bytes; a multiple of 2 MiB.
    pub span: u64,
}

impl Pinned {
    /// Gets and registers `span` bytes within the host budget. Needs a current context.
    pub fn new(job: &Job, device: &Device, span: u64) -> Result<Pinned, Shortage> {
        bury_orphans(job);
        range::reserve(job, device, Tier::Host, span)?;
        let made = map(span).ok_or(Shortage::Driver).and_then(|base| {
            let pinned = Pinned { base, span };
            pinned
                .touch(job)
                .and_then(|()| pinned.register())
                .map(|()| Pinned { base, span })
                .inspect_err(|_| pinned.unmap())
        });
        if made.is_err() {
            job.place.release(Tier::Host, device.index, span);
        }
        made
    }

    /// Makes the pages exist, asking the machine before each piece.
    fn touch(&self, job: &Job) -> Result<(), Shortage> {
        let mut at = 0;
        while at < self.span {
            let piece = PIECE.min(self.span - at);
            // What is touched already is missing from MemAvailable, and charged to the cgroup until it is pinned.
            let pinned = job.place.ledger().used_host().saturating_sub(self.span);
            budget::check(Ram::now(), piece, pinned).map_err(Shortage::Ram)?;
            let start = self.base + at;
            let slice = (piece / THREADS).next_multiple_of(GRAIN);
            let good = std::thread::scope(|scope| {
                let slices: Vec<_> = (0..piece)
                    .step_by(slice as usize)
                    .map(|from| (start + from, slice.min(piece - from)))
                    .collect();
                let (last, others) = slices.split_last()?;
                let others: Vec<_> = others
                    .iter()
                    .map(|&(from, bytes)| scope.spawn(move || populate(from, bytes)))
                    .collect();
                let own = populate(last.0, last.1);
                let rest = others.into_iter().all(|t| t.join().unwrap_or(false));
                Some(own && rest)
            });
            if good != Some(true) {
                return Err(Shortage::Driver);
            }
            at += piece;
        }
        Ok(())
    }

    fn register(&self) -> Result<(), Shortage> {
        // Pinning puts nothing on a stream; a capture that is open elsewhere need not mind it (measured).
        let _relaxed = drain::capturing().then(driver::Relaxed::enter);
        // SAFETY: our own mapping, which lives until it is unregistered.
        unsafe { driver::host_register(self.base, self.span as usize) }
            .map_err(|_| Shortage::Driver)
    }

    fn unmap(&self) {
        // SAFETY: our own mapping, that nobody has or that is used no more.
        unsafe { libc::munmap(self.base as *mut c_void, self.span as usize) };
    }

    /// Gives the memory back.
    ///
    /// # Safety
    /// No work that could touch it is in flight, and the program uses it no more.
    pub unsafe fn take_down(self, job: &Job, device: &Device) {
        // SAFETY: the caller's promise.
        let mut result = unsafe { driver::host_unregister(self.base) };
        let stale = [CUDA_ERROR_INVALID_CONTEXT, CUDA_ERROR_CONTEXT_IS_DESTROYED];
        if result.is_err_and(|code| stale.contains(&code)) {
            // Unlike freeing, this needs a context, any.
            // SAFETY: as above.
            let elsewhere = drain::in_any_context(|| unsafe { driver::host_unregister(self.base) });
            let Some(elsewhere) = elsewhere else {
                ORPHANS
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push((self, device.index));
                return;
            };
            result = elsewhere.and_then(|result| result);
        }
        match result {
            // A context that is gone may have taken its registrations with it.
            Ok(()) | Err(CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED) => {
                self.unmap();
                job.place.release(Tier::Host, device.index, self.span);
            }
            // The driver may still map the pages: they are left where they are.
            Err(code) => crate::process::wound(&format!("cuMemHostUnregister returned {code}")),
        }
    }
}

/// Freed when no context was left to unregister them in, with the ledger index of their device. They wait for the next
/// one: memory that the driver may still know must not become anybody else's.
static ORPHANS: Mutex<Vec<(Pinned, usize)>> = Mutex::new(Vec::new());

fn bury_orphans(job: &Job) {
    let orphans = std::mem::take(&mut *ORPHANS.lock().unwrap_or_else(PoisonError::into_inner));
    for (pinned, index) in orphans {
        // SAFETY: drained when it was freed.
        let _ = unsafe { driver::host_unregister(pinned.base) };
        pinned.unmap();
        job.place.release(Tier::Host, index, pinned.span);
    }
}

/// Whether memory can be registered here and has one address for CPU and GPU.
pub fn works() -> bool {
    let Some(base) = map(GRAIN) else { return false };
    let pinned = Pinned { base, span: GRAIN };
    let mut good = populate(base, GRAIN) && pinned.register().is_ok();
    if good {
        good = driver::device_address(base) == Ok(base);
        // SAFETY: nobody has seen this memory.
        good &= unsafe { driver::host_unregister(base) }.is_ok();
    }
    pinned.unmap();
    good
}

/// Anonymous memory, aligned to huge pages and wishing for them.
fn map(span: u64) -> Option<u64> {
    let (span, grain) = (span as usize, GRAIN as usize);
    // SAFETY: a new mapping, of which the unaligned ends are given back.
    unsafe {
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        let whole = span.checked_add(grain)?;
        let at = libc::mmap(std::ptr::null_mut(), whole, access, flags, -1, 0);
        if at == libc::MAP_FAILED {
            return None;
        }
        let base = (at as usize).next_multiple_of(grain);
        let head = base - at as usize;
        if head > 0 {
            libc::munmap(at, head);
        }
        if grain > head {
            libc::munmap((base + span) as *mut c_void, grain - head);
        }
        // Refused where huge pages are switched off: then they are small.
        libc::madvise(base as *mut c_void, span, libc::MADV_HUGEPAGE);
        // The child of a fork must not copy what the GPU writes to.
        libc::madvise(base as *mut c_void, span, libc::MADV_DONTFORK);
        Some(base as u64)
    }
}

/// Makes pages exist. `false` when there is no memory for them.
fn populate(from: u64, bytes: u64) -> bool {
    const MADV_POPULATE_WRITE: libc::c_int = 23;
    // SAFETY: part of our own mapping, which nobody else uses yet.
    unsafe {
        if libc::madvise(from as *mut c_void, bytes as usize, MADV_POPULATE_WRITE) == 0 {
            return true;
        }
        // Kernels before 5.14 do not know it: touch each page.
        if *libc::__errno_location() != libc::EINVAL {
            return false;
        }
        for page in (from..from + bytes).step_by(4096) {
            (page as *mut u8).write_volatile(0);
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_aligned_and_there() {
        let span = 3 * GRAIN;
        let base = map(span).unwrap();
        assert_eq!(base % GRAIN, 0);
        assert!(populate(base, span));
        // SAFETY: the mapping just made.
        unsafe {
            *((base + span - 1) as *mut u8) = 7;
            assert_eq!(*(base as *const u8), 0);
        }
        Pinned { base, span }.unmap();
        // SAFETY: asks about a page that is mapped no more.
        let gone = unsafe { libc::madvise(base as *mut c_void, span as usize, libc::MADV_NORMAL) };
        assert_ne!(gone, 0);
    }

    #[test]
    fn more_than_the_address_space_is_refused() {
        assert_eq!(map(1 << 60), None);
        assert_eq!(map(u64::MAX), None);
    }
}
