//! Small allocations when VRAM is full: pieces of host-backed slabs of one grain.

use std::collections::BTreeMap;
use std::sync::Mutex;

use super::chunk::GRAIN;
use super::device::{Device, Host};
use super::pinned::Pinned;
use super::range::{Parts, Range, Shortage};
use super::spare::Chunk;
use crate::process::Job;

/// Alignment of a piece: `cuMemAlloc` gives at least 256 (CUDA C++ Programming Guide, device memory accesses), in
/// practice 512 (measured).
pub const ALIGN: u64 = 512;

/// The slabs of one device.
#[derive(Default)]
pub struct Slabs(Mutex<Vec<Slab>>);

struct Slab {
    memory: Memory,
    base: u64,
    free: FreeList,
    /// Another process may have it open.
    shared: bool,
}

/// What holds a slab's bytes.
enum Memory {
    Range(Range),
    Pinned(Pinned),
}

impl Memory {
    fn new(job: &Job, device: &Device) -> Result<(Memory, u64), Shortage> {
        if device.host == Host::Pinned {
            let pinned = Pinned::new(job, device, GRAIN)?;
            let base = pinned.base;
            return Ok((Memory::Pinned(pinned), base));
        }
        let mut parts = Parts::new(job, device);
        parts.add_host(GRAIN)?;
        let range = parts.build().map_err(|_| Shortage::Driver)?;
        let base = range.base;
        Ok((Memory::Range(range), base))
    }

    /// # Safety
    /// As for [`Range::take_down`].
    unsafe fn take_down(self, job: &Job, device: &Device, shared: bool) {
        // SAFETY: the caller's promise.
        unsafe {
            match self {
                Memory::Range(range) if shared => range.discard(job, device),
                Memory::Range(range) => range.take_down(job, device),
                Memory::Pinned(pinned) => pinned.take_down(job, device),
            }
        }
    }
}

/// Free pieces by offset: disjoint, never adjacent.
struct FreeList(BTreeMap<u64, u64>);

impl FreeList {
    fn new(size: u64) -> FreeList {
        FreeList(BTreeMap::from([(0, size)]))
    }

    /// Takes the first piece that is large enough.
    fn take(&mut self, size: u64) -> Option<u64> {
        let (at, length) = self
            .0
            .iter()
            .find(|(_, length)| **length >= size)
            .map(|(a, l)| (*a, *l))?;
        self.0.remove(&at);
        if length > size {
            self.0.insert(at + size, length - size);
        }
        Some(at)
    }

    fn give(&mut self, mut at: u64, mut size: u64) {
        if let Some((before, length)) = self.0.range(..at).next_back().map(|(a, l)| (*a, *l))
            && before + length == at
        {
            self.0.remove(&before);
            at = before;
            size += length;
        }
        if let Some(length) = self.0.remove(&(at + size)) {
            size += length;
        }
        self.0.insert(at, size);
    }

    fn is_whole(&self, size: u64) -> bool {
        self.0.get(&0) == Some(&size)
    }
}

/// Bytes that a request of this size takes.
pub fn rounded(bytes: u64) -> u64 {
    bytes.next_multiple_of(ALIGN)
}

impl Slabs {
    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Slab>> {
        self.0.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// An address with room for `bytes` (less than a grain) in host memory.
    pub fn alloc(&self, job: &Job, device: &Device, bytes: u64) -> Result<u64, Shortage> {
        let size = rounded(bytes);
        let fits = |slabs: &mut Vec<Slab>| {
            slabs
                .iter_mut()
                .find_map(|slab| Some(slab.base + slab.free.take(size)?))
        };
        if let Some(address) = fits(&mut self.lock()) {
            return Ok(address);
        }
        // The driver is called without the lock; two threads may add a slab each, which is no loss.
        let (memory, base) = Memory::new(job, device)?;
        let mut free = FreeList::new(GRAIN);
        let address = base + free.take(size).unwrap_or(0);
        self.lock().push(Slab {
            memory,
            base,
            free,
            shared: false,
        });
        Ok(address)
    }

    /// The slab that a piece is in, for other processes to open: its address and its one chunk. `None` where it is
    /// registered memory. From here on it is never kept for reuse; as with the driver's own small allocations, its other
    /// pieces are within reach of whoever opens one.
    pub fn share(&self, address: u64) -> Option<(u64, Chunk)> {
        let mut slabs = self.lock();
        let slab = slabs
            .iter_mut()
            .find(|s| (s.base..s.base + GRAIN).contains(&address))?;
        let Memory::Range(range) = &slab.memory else {
            return None;
        };
        let chunk = *range.chunks().first()?;
        slab.shared = true;
        Some((slab.base, chunk))
    }

    /// Takes a piece back; an empty slab goes, except the last one.
    ///
    /// # Safety
    /// As for [`Range::take_down`]: no work that could touch the piece is in flight.
    pub unsafe fn give(&self, job: &Job, device: &Device, address: u64, bytes: u64) {
        let mut slabs = self.lock();
        let Some(at) = slabs
            .iter()
            .position(|s| (s.base..s.base + GRAIN).contains(&address))
        else {
            return;
        };
        let slab = &mut slabs[at];
        slab.free.give(address - slab.base, rounded(bytes));
        if slab.free.is_whole(GRAIN) && slabs.len() > 1 {
            let slab = slabs.swap_remove(at);
            drop(slabs);
            // SAFETY: every piece of it was given back under the same promise.
            unsafe { slab.memory.take_down(job, device, slab.shared) };
        }
    }

    /// Gives an empty slab's memory back even if it is the last one.
    pub fn trim(&self, job: &Job, device: &Device) {
        let mut slabs = self.lock();
        let (empty, rest) = slabs.drain(..).partition(|s: &Slab| s.free.is_whole(GRAIN));
        *slabs = rest;
        drop(slabs);
        let empty: Vec<Slab> = empty;
        for slab in empty {
            // SAFETY: all of its pieces were given back, each when nothing could touch it any more.
            unsafe { slab.memory.take_down(job, device, slab.shared) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_disjoint_and_come_together_again() {
        // A small generator is enough: the order is all that matters.
        let mut random = 12345u64;
        let mut next = |n: u64| {
            random = random
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            (random >> 33) % n
        };
        let mut list = FreeList::new(GRAIN);
        let mut held: Vec<(u64, u64)> = Vec::new();
        for _ in 0..20_000 {
            if next(2) == 0 || held.is_empty() {
                let size = rounded(1 + next(64 << 10));
                if let Some(at) = list.take(size) {
                    assert!(at % ALIGN == 0 && at + size <= GRAIN);
                    assert!(held.iter().all(|(a, s)| at + size <= *a || a + s <= at));
                    held.push((at, size));
                }
            } else {
                let (at, size) = held.swap_remove(next(held.len() as u64) as usize);
                list.give(at, size);
            }
            let free: u64 = list.0.values().sum();
            let used: u64 = held.iter().map(|(_, s)| s).sum();
            assert_eq!(free + used, GRAIN);
        }
        for (at, size) in held.drain(..) {
            list.give(at, size);
        }
        assert!(list.is_whole(GRAIN));
    }
}
