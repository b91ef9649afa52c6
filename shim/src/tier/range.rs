//! A range: reserved virtual memory, backed throughout by chunks. The address never changes while the range lives.

use greenboost_abi::{CUDA_SUCCESS, CUdevice, CUresult};
use greenboost_wire::ledger::{Part, Tier};
use greenboost_wire::ram::Ram;

use super::chunk;
use super::device::{self, Device};
use super::spare::{self, Chunk};
use super::{later, pools, staging};
use crate::driver::{self, Location};
use crate::process::{self, Job};
use crate::tier::{budget, graphs};

/// Why a part of a range could not be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shortage {
    /// The job's budget of that tier.
    Budget,
    /// The driver: another program has the memory, or it is too fragmented.
    Driver,
    /// The machine's RAM.
    Ram(budget::Refusal),
}

/// Chunks on their way into a range; what is not built into one goes back when this is dropped.
pub struct Parts<'a> {
    job: &'a Job,
    device: &'a Device,
    chunks: Vec<Chunk>,
}

impl<'a> Parts<'a> {
    /// No chunks yet.
    pub fn new(job: &'a Job, device: &'a Device) -> Parts<'a> {
        Parts {
            job,
            device,
            chunks: Vec::new(),
        }
    }

    /// Bytes so far, of one tier.
    pub fn bytes(&self, tier: Tier) -> u64 {
        self.chunks
            .iter()
            .filter(|c| c.tier == tier)
            .map(|c| c.size)
            .sum()
    }

    /// Adds `size` bytes of VRAM; on a shortage keeps what it got and says why that is less.
    pub fn add_vram(&mut self, size: u64) -> Result<(), Shortage> {
        for class in chunk::split(size) {
            self.add(Tier::Vram, class, || {
                self.device
                    .vram
                    .ok_or(Shortage::Driver)
                    .and_then(|l| make(self.device, class, l))
            })?;
        }
        Ok(())
    }

    /// Adds `size` bytes of host memory in bounded pieces, asking the machine before each; smaller pieces when a large
    /// one is not to be had.
    pub fn add_host(&mut self, size: u64) -> Result<(), Shortage> {
        let mut wanted = chunk::split(size);
        wanted.reverse();
        while let Some(class) = wanted.pop() {
            let (job, device) = (self.job, self.device);
            let Err(why) = self.add(Tier::Host, class, || host_piece(job, device, class)) else {
                continue;
            };
            let parts = chunk::smaller(class);
            if parts.is_empty() || why == Shortage::Budget {
                return Err(why);
            }
            wanted.extend(parts.into_iter().rev());
        }
        Ok(())
    }

    /// Adds one chunk: a spare one, or a new one within the budget. The reservation comes first and is undone when the
    /// memory is not to be had.
    fn add(
        &mut self,
        tier: Tier,
        class: u64,
        make: impl Fn() -> Result<u64, Shortage>,
    ) -> Result<(), Shortage> {
        if let Some(chunk) = self.device.spare.take(tier, class) {
            self.chunks.push(chunk);
            return Ok(());
        }
        // Spares of other classes hold budget and memory: without them it may fit.
        let mut trimmed = false;
        loop {
            let result = match self.job.place.reserve(tier, self.device.index, class) {
                Err(_) => Err(Shortage::Budget),
                Ok(()) => {
                    make().inspect_err(|_| self.job.place.release(tier, self.device.index, class))
                }
            };
            match result {
                Ok(handle) => {
                    self.chunks.push(Chunk {
                        size: class,
                        tier,
                        handle,
                    });
                    return Ok(());
                }
                Err(why) if trimmed => return Err(why),
                Err(why) => {
                    if !make_room(self.job, self.device, tier) {
                        return Err(why);
                    }
                    trimmed = true;
                }
            }
        }
    }

    /// Maps the chunks one after the other into a new range that the device and its peers may use.
    ///
    /// # Errors
    /// The driver's; everything is undone then.
    pub fn build(mut self) -> driver::Result<Range> {
        let span = self.chunks.iter().map(|c| c.size).sum();
        let mut range = Range {
            base: driver::reserve(span as usize)?,
            span,
            chunks: Vec::new(),
        };
        let result = self.map_into(&mut range);
        if let Err(code) = result {
            // SAFETY: the program has never seen this range.
            unsafe { range.take_down(self.job, self.device) };
            return Err(code);
        }
        Ok(range)
    }

    fn map_into(&mut self, range: &mut Range) -> driver::Result<()> {
        let mut at = range.base;
        while let Some(chunk) = self.chunks.first().copied() {
            // SAFETY: the range was reserved for these chunks; `at` lies behind what is mapped.
            unsafe { driver::map(at, chunk.size as usize, chunk.handle)? };
            range.chunks.push(self.chunks.remove(0));
            at += chunk.size;
        }
        // SAFETY: the range is mapped throughout.
        unsafe { driver::set_access(range.base, range.span as usize, self.device.users()) }
    }
}

impl Drop for Parts<'_> {
    fn drop(&mut self) {
        for chunk in self.chunks.drain(..) {
            spare::give(self.job, self.device, chunk);
        }
    }
}

/// Gives up what is kept for reuse in a tier. Returns whether there was anything.
pub fn make_room(job: &Job, device: &Device, tier: Tier) -> bool {
    // What was freed in stream order goes to the slabs and spares, and on from there.
    let mut any = later::make_room(job, device, tier);
    any |= match tier {
        // Devices share the host budget: what others keep is in the way as well.
        Tier::Host => device::all().fold(false, |any, other| {
            if other.ordinal != device.ordinal {
                later::make_room(job, other, tier);
            }
            other.slabs.trim(job, other);
            (other.ordinal != device.ordinal && spare::trim(job, other, tier)) || any
        }),
        Tier::Vram => graphs::trim(job, device) | staging::make_room(device.ordinal),
    };
    any |= spare::trim(job, device, tier);
    any | pools::make_room(job, device, tier)
}

/// Reserves bytes of a tier; what is kept for reuse is given up first if need be.
pub fn reserve(job: &Job, device: &Device, tier: Tier, bytes: u64) -> Result<(), Shortage> {
    let fits = || job.place.reserve(tier, device.index, bytes).is_ok();
    if fits() || (make_room(job, device, tier) && fits()) {
        return Ok(());
    }
    Err(Shortage::Budget)
}

fn make(device: &Device, size: u64, location: Location) -> Result<u64, Shortage> {
    device
        .make(size as usize, location)
        .map_err(|_| Shortage::Driver)
}

/// Asks whether the machine can find `missing` bytes for a piece of host memory of `reserved` bytes, which is in the
/// ledger already.
pub fn ask_machine(job: &Job, missing: u64, reserved: u64) -> Result<(), Shortage> {
    let ledger = job.place.ledger();
    // The program's own memory is in the cgroup's usage as it is.
    let seen: u64 = ledger
        .devices()
        .map(|(index, _)| ledger.part(Part::Registered, index))
        .sum();
    let pinned = ledger.used_host().saturating_sub(reserved + seen);
    budget::check(Ram::now(), missing, pinned).map_err(Shortage::Ram)
}

/// One piece of host memory, from the nearest node that has it. It is reserved in the ledger already.
pub fn host_piece(job: &Job, device: &Device, size: u64) -> Result<u64, Shortage> {
    ask_machine(job, size, size)?;
    device
        .nodes()
        .iter()
        .find_map(|node| make(device, size, Location::HostNuma(*node)).ok())
        .ok_or(Shortage::Driver)
}

/// Host memory in one piece of the program's own size, made by `make` on the nearest node that has it.
pub fn host_memory(
    job: &Job,
    device: &Device,
    size: u64,
    make: impl Fn(i32) -> CUresult,
) -> Result<(), Shortage> {
    reserve(job, device, Tier::Host, size)?;
    let result = ask_machine(job, size, size).and_then(|()| {
        let made = device
            .nodes()
            .iter()
            .any(|node| make(*node) == CUDA_SUCCESS);
        made.then_some(()).ok_or(Shortage::Driver)
    });
    if result.is_err() {
        job.place.release(Tier::Host, device.index, size);
    }
    result
}

/// Virtual memory with its backing.
#[derive(Debug)]
pub struct Range {
    /// First address; a multiple of 2 MiB.
    pub base: u64,
    /// Bytes reserved and mapped; a multiple of 2 MiB.
    pub span: u64,
    chunks: Vec<Chunk>,
}

impl Range {
    /// Bytes in a tier.
    pub fn bytes(&self, tier: Tier) -> u64 {
        self.chunks
            .iter()
            .filter(|c| c.tier == tier)
            .map(|c| c.size)
            .sum()
    }

    /// Whether any byte between two offsets is in host memory.
    pub fn on_host(&self, from: u64, to: u64) -> bool {
        let mut at = 0;
        self.chunks.iter().any(|chunk| {
            let start = at;
            at += chunk.size;
            chunk.tier == Tier::Host && start < to && from < at
        })
    }

    /// What it is made of, in order.
    pub fn chunks(&self) -> &[Chunk] {
        &self.chunks
    }

    /// Where a chunk begins, and what it is.
    pub fn chunk(&self, index: usize) -> Option<(u64, Chunk)> {
        let chunk = *self.chunks.get(index)?;
        let before: u64 = self.chunks[..index].iter().map(|c| c.size).sum();
        Some((self.base + before, chunk))
    }

    /// Another backing of the same size has been mapped in place of a chunk's: returns the old one, which is the
    /// caller's now.
    pub fn exchange(&mut self, index: usize, new: Chunk) -> Chunk {
        std::mem::replace(&mut self.chunks[index], new)
    }

    /// A range of whole pieces that another process made, open to these devices; they count where they were made.
    ///
    /// # Errors
    /// The driver's; everything is undone then, and the handles are released.
    pub fn of_others(chunks: Vec<Chunk>, users: &[CUdevice]) -> driver::Result<Range> {
        let span = chunks.iter().map(|c| c.size).sum();
        let mut range = Range {
            base: 0,
            span,
            chunks: Vec::new(),
        };
        let mut rest = chunks.into_iter();
        let result = driver::reserve(span as usize).and_then(|base| {
            range.base = base;
            let mut at = base;
            for chunk in rest.by_ref() {
                // SAFETY: the range was reserved for these chunks; `at` lies behind what is mapped.
                if let Err(code) = unsafe { driver::map(at, chunk.size as usize, chunk.handle) } {
                    // SAFETY: a handle of our own that is mapped nowhere.
                    let _ = unsafe { driver::release(chunk.handle) };
                    return Err(code);
                }
                range.chunks.push(chunk);
                at += chunk.size;
            }
            // SAFETY: the range is mapped throughout.
            unsafe { driver::set_access(base, span as usize, users.iter().copied()) }
        });
        let Err(code) = result else { return Ok(range) };
        for chunk in rest {
            // SAFETY: as above.
            let _ = unsafe { driver::release(chunk.handle) };
        }
        if range.base != 0 {
            // SAFETY: the program has never seen this range.
            unsafe { range.close() };
        }
        Err(code)
    }

    /// Takes down a range of others' pieces.
    ///
    /// # Safety
    /// As for [`Range::take_down`].
    pub unsafe fn close(self) {
        // SAFETY: the caller's promise; the handles are our own.
        unsafe {
            self.dismantle(|chunk| {
                let _ = driver::release(chunk.handle);
            })
        }
    }

    /// As [`Range::take_down`], for memory that others may still reach: nothing of it is kept for reuse.
    ///
    /// # Safety
    /// As for [`Range::take_down`].
    pub unsafe fn discard(self, job: &Job, device: &Device) {
        // SAFETY: the caller's promise.
        unsafe { self.dismantle(|chunk| spare::release(job, device, chunk)) }
    }

    /// Unmaps everything and gives the backing and the addresses back.
    ///
    /// A driver that refuses to unmap leaves memory behind that is never used again, and wounds the shim.
    ///
    /// # Safety
    /// No work that could touch the range is in flight, and the program uses its addresses no more.
    pub unsafe fn take_down(self, job: &Job, device: &Device) {
        // SAFETY: the caller's promise.
        unsafe { self.dismantle(|chunk| spare::give(job, device, chunk)) }
    }

    /// # Safety
    /// As for [`Range::take_down`].
    unsafe fn dismantle(self, give: impl Fn(Chunk)) {
        let mut at = self.base;
        let mut clean = true;
        for chunk in self.chunks {
            // SAFETY: the caller's promise; each chunk was mapped whole at this place.
            match unsafe { driver::unmap(at, chunk.size as usize) } {
                Ok(()) => give(chunk),
                Err(code) => {
                    clean = false;
                    process::wound(&format!("cuMemUnmap returned {code}"));
                }
            }
            at += chunk.size;
        }
        if clean {
            // SAFETY: nothing is mapped in it any more. A refusal costs addresses, of which there are plenty.
            let _ = unsafe { driver::unreserve(self.base, self.span as usize) };
        }
    }
}
