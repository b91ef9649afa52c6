//! Slots: VRAM that chunks are staged into, of the chunk classes, each mapped for the shim alone as long as it lives.

use greenboost_wire::ledger::Tier;

use greenboost_abi::CUDA_ERROR_NOT_SUPPORTED;

use crate::driver;
use crate::tier::device::Device;
use crate::tier::spare::Chunk;

/// One slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Its memory, all of it.
    pub chunk: Chunk,
    /// Where the shim has it.
    pub alias: u64,
}

/// Those that hold nothing, and how much there may be.
#[derive(Debug, Default)]
pub struct Slots {
    /// Bytes that all slots may take: reserved in the ledger.
    pub limit: u64,
    /// Bytes that they take, those that are being made included.
    pub taken: u64,
    free: Vec<Slot>,
}

/// What to do for a chunk that wants a slot.
#[derive(Debug, PartialEq, Eq)]
pub enum Way {
    /// Use this one.
    Use(Slot),
    /// Make one; so many bytes are set aside for it. Those that are in the way go first.
    Make(Vec<Slot>),
    /// Another chunk has to leave.
    Full,
}

impl Slots {
    /// A slot for so many bytes.
    pub fn take(&mut self, bytes: u64) -> Way {
        if let Some(at) = self.free.iter().rposition(|s| s.chunk.size == bytes) {
            return Way::Use(self.free.swap_remove(at));
        }
        let free: u64 = self.free.iter().map(|s| s.chunk.size).sum();
        if self.taken - free + bytes > self.limit {
            return Way::Full;
        }
        let mut away = Vec::new();
        while self.taken + bytes > self.limit
            && let Some(slot) = self.free.pop()
        {
            self.taken -= slot.chunk.size;
            away.push(slot);
        }
        self.taken += bytes;
        Way::Make(away)
    }

    /// A slot holds nothing any more.
    pub fn give(&mut self, slot: Slot) {
        self.free.push(slot);
    }

    /// A slot that was to be made was not, or is gone.
    pub fn lost(&mut self, bytes: u64) {
        self.taken -= bytes;
    }

    /// There may be no more than there are: returns the bytes that the limit is lower by.
    pub fn shrink(&mut self) -> u64 {
        let less = self.limit - self.taken;
        self.limit = self.taken;
        less
    }

    /// Takes all that hold nothing.
    pub fn clear(&mut self) -> Vec<Slot> {
        let all = std::mem::take(&mut self.free);
        self.taken -= all.iter().map(|s| s.chunk.size).sum::<u64>();
        all
    }
}

/// Makes a slot, within what is reserved for slots.
///
/// # Errors
/// The driver's.
pub fn make(device: &Device, bytes: u64) -> driver::Result<Slot> {
    let location = device.vram.ok_or(CUDA_ERROR_NOT_SUPPORTED)?;
    let chunk = Chunk {
        size: bytes,
        tier: Tier::Vram,
        handle: device.make(bytes as usize, location)?,
    };
    alias(device, chunk)
        .map(|alias| Slot { chunk, alias })
        .inspect_err(|_| {
            // SAFETY: a handle of our own that is mapped nowhere.
            let _ = unsafe { driver::release(chunk.handle) };
        })
}

/// Maps a chunk for the shim alone, at an address of its own, besides wherever else it is mapped.
///
/// # Errors
/// The driver's; nothing has changed then.
pub fn alias(device: &Device, chunk: Chunk) -> driver::Result<u64> {
    let bytes = chunk.size as usize;
    let at = driver::reserve(bytes)?;
    // SAFETY: a range of our own that nobody knows, and a handle that is held.
    let mapped = unsafe { driver::map(at, bytes, chunk.handle) };
    let open = mapped.and_then(|()| {
        // SAFETY: it is mapped throughout.
        unsafe { driver::set_access(at, bytes, [device.ordinal]) }.inspect_err(|_| {
            // SAFETY: nobody has used it.
            let _ = unsafe { driver::unmap(at, bytes) };
        })
    });
    open.map(|()| at).inspect_err(|_| {
        // SAFETY: nothing is mapped in it.
        let _ = unsafe { driver::unreserve(at, bytes) };
    })
}

/// Unmaps what [`alias`] has mapped.
///
/// # Safety
/// No work of the shim's is in flight that uses it.
pub unsafe fn unalias(at: u64, bytes: u64) {
    // SAFETY: the caller's promise; a refusal costs addresses.
    unsafe {
        if driver::unmap(at, bytes as usize).is_ok() {
            let _ = driver::unreserve(at, bytes as usize);
        }
    }
}

/// Gives a slot's memory back to the driver. What is reserved for it stays reserved.
///
/// # Safety
/// It is mapped nowhere but at its alias, and no work of the shim's is in flight that uses it.
pub unsafe fn destroy(slot: Slot) {
    // SAFETY: the caller's promise.
    unsafe {
        unalias(slot.alias, slot.chunk.size);
        let _ = driver::release(slot.chunk.handle);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn slot(size: u64, handle: u64) -> Slot {
        let tier = Tier::Vram;
        Slot {
            chunk: Chunk { size, tier, handle },
            alias: handle << 32,
        }
    }

    #[test]
    fn never_more_than_the_limit() {
        let mut slots = Slots {
            limit: 100 * MIB,
            ..Slots::default()
        };
        assert_eq!(slots.take(64 * MIB), Way::Make(vec![]));
        assert_eq!(slots.take(64 * MIB), Way::Full);
        assert_eq!(slots.take(20 * MIB), Way::Make(vec![]));
        slots.give(slot(64 * MIB, 1));
        // The same class first.
        assert_eq!(slots.take(64 * MIB), Way::Use(slot(64 * MIB, 1)));
        slots.give(slot(64 * MIB, 1));
        // Another class takes its place.
        assert_eq!(slots.take(20 * MIB), Way::Make(vec![slot(64 * MIB, 1)]));
        assert_eq!(slots.taken, 40 * MIB);
        slots.lost(20 * MIB);
        assert_eq!(slots.taken, 20 * MIB);
        slots.give(slot(20 * MIB, 2));
        assert_eq!(slots.clear().len(), 1);
        assert_eq!(slots.taken, 0);
    }
}
