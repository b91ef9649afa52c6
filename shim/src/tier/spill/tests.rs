//! The whole of it, on the disk that the tests lie on.

mod faults;
mod faulty;
mod processes;
mod speed;
mod whole;

use std::time::{Duration, Instant};

use super::area::{Buffer, Region};
use super::store::{Config, Store};

/// A directory on the disk that the tests lie on; temporary files may be in RAM.
pub fn scratch() -> tempfile::TempDir {
    let tests = std::env::current_exe().unwrap();
    tempfile::tempdir_in(tests.parent().unwrap()).unwrap()
}

/// Long enough for any disk.
fn soon() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

/// Huge pages that a fork does not inherit, as the shim's own I/O buffers are. Never given back: operations of a test
/// that fails may still run.
struct Memory {
    start: usize,
    len: usize,
}

impl Memory {
    fn new(len: usize) -> Memory {
        const HUGE: usize = 2 << 20;
        // SAFETY: a fresh private mapping, which nothing else knows.
        unsafe {
            let mapped = libc::mmap(
                std::ptr::null_mut(),
                len + HUGE,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            );
            assert_ne!(mapped, libc::MAP_FAILED);
            let start = (mapped as usize).next_multiple_of(HUGE);
            libc::madvise(start as *mut _, len, libc::MADV_HUGEPAGE);
            libc::madvise(start as *mut _, len, libc::MADV_DONTFORK);
            std::ptr::write_bytes(start as *mut u8, 0, len);
            Memory { start, len }
        }
    }

    fn region(&self) -> Region {
        Region {
            address: self.start,
            len: self.len,
        }
    }

    fn buffer(&self, at: usize, len: u64) -> Buffer {
        assert!(at + len as usize <= self.len);
        Buffer {
            address: self.start + at,
            len: len as usize,
        }
    }
}

const PAGE: usize = 4096;

/// What only this seed gives, but for the number of the page at its start.
fn page(seed: u64) -> [u8; PAGE] {
    let mut page = [0; PAGE];
    for (i, bytes) in page.chunks_mut(8).enumerate() {
        let word = (seed << 20 | i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        bytes.copy_from_slice(&word.to_ne_bytes());
    }
    page
}

/// Fills a buffer that no operation uses.
fn fill(buffer: Buffer, seed: u64) {
    let mut page = page(seed);
    // SAFETY: of a Memory, and no operation uses it.
    let bytes = unsafe { std::slice::from_raw_parts_mut(buffer.address as *mut u8, buffer.len) };
    for (i, to) in bytes.chunks_mut(PAGE).enumerate() {
        page[..8].copy_from_slice(&i.to_ne_bytes());
        to.copy_from_slice(&page);
    }
}

/// Whether a buffer holds just that.
fn holds(buffer: Buffer, seed: u64) -> bool {
    let mut page = page(seed);
    // SAFETY: of a Memory, and no operation writes to it.
    let bytes = unsafe { std::slice::from_raw_parts(buffer.address as *const u8, buffer.len) };
    bytes.chunks(PAGE).enumerate().all(|(i, found)| {
        page[..8].copy_from_slice(&i.to_ne_bytes());
        found == page
    })
}

/// A store of little use to anybody else: small steps.
fn config(dir: &tempfile::TempDir) -> Config {
    Config {
        step: 64 << 20,
        ..Config::new(dir.path().into(), Some(256 << 20))
    }
}

fn open(config: Config, memory: &Memory) -> Store {
    // SAFETY: never unmapped.
    unsafe { Store::open(config, vec![memory.region()], Duration::from_secs(60)) }.unwrap()
}

/// Writes a chunk and reads it back elsewhere: whether every byte is right.
fn there_and_back(store: &Store, memory: &Memory, class: u64, seed: u64) -> bool {
    let from = memory.buffer(0, class);
    let to = memory.buffer(memory.len / 2, class);
    fill(from, seed);
    fill(to, seed + 1);
    let slot = store.reserve(class, soon()).unwrap();
    // SAFETY: never unmapped, and left alone until it has ended.
    let end = unsafe { store.write(slot, from) }.unwrap().wait(soon());
    assert_eq!(end, Some(Ok(())));
    // SAFETY: as above.
    let end = unsafe { store.read(slot, to) }.unwrap().wait(soon());
    assert_eq!(end, Some(Ok(())));
    assert!(store.release(slot));
    holds(to, seed) && holds(from, seed)
}
