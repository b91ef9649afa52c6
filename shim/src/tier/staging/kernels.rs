//! The shim's own kernels (`assets/shim.cu`) in a context of the program's: a conservative scan for addresses, and a hash.
//!
//! They are loaded when they are first asked for in a context ([`get`]), with all that they need: their code, 1 MiB of
//! VRAM for what a scan is told and what comes of it, and a grain of registered host memory that all of it passes through
//! on its way. Both are reserved from the job's budgets; the VRAM is listed with the program's code. A context that ends
//! takes it all along ([`context_gone`]); what somebody still holds of it then fails, and reads memory that is there.
//!
//! All work goes to a stream of the caller's, and nothing here waits: results are there when the stream has come so far,
//! which they show themselves. No launch passes the hooks or the gate: that it meets no moving chunk is the caller's care.
//! A stream that captures, and a host callback, are no places for any of this.

pub mod hash;
#[cfg(test)]
mod hash_tests;
pub mod input;

use std::collections::HashMap;
use std::ffi::CStr;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::*};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use greenboost_abi::*;
use greenboost_wire::ledger::{Part, Tier};

use self::input::{Area, Input};
use crate::driver::{self, Result, kernel};
use crate::process::{self, Job};
use crate::tier::chunk::GRAIN;
use crate::tier::counted::{self, Counted};
use crate::tier::device::Device;
use crate::tier::drain;
use crate::tier::map::Handle;
use crate::tier::pinned::Pinned;

/// Compiled by the driver for the device at hand.
const PTX: &CStr = match CStr::from_bytes_with_nul(
    concat!(include_str!("../../../../assets/shim.ptx"), "\0").as_bytes(),
) {
    Ok(text) => text,
    Err(_) => panic!("the PTX has a NUL"),
};

/// Threads in a block: what the kernels are compiled for.
const THREADS: u32 = 256;
/// Blocks that a multiprocessor holds at a time, by the registers that the kernels use.
const BLOCKS: u32 = 4;

/// The parts of the device's and of the host's memory, at the same offsets: what a scan is told, its flags, and hashes.
const FLAGS_AT: u64 = 704 << 10;
const HASHES_AT: u64 = FLAGS_AT + 4 * MOST_RANGES as u64;
const BYTES: u64 = 1 << 20;
/// Ranges that one scan can look for.
pub const MOST_RANGES: usize = 32 << 10;
/// Hashes that can be on their way at a time.
pub const MOST_HASHES: usize = 8 << 10;
const _: () = assert!(HASHES_AT + 16 * MOST_HASHES as u64 <= BYTES && BYTES <= GRAIN);

/// What stands in the host's memory for a result that is not there yet. A flag is 0 or 1; a hash that has this for a half
/// (one in 2^63) never seems to come.
const NO_FLAG: u32 = u32::MAX;
const NO_HASH: u64 = u64::MAX;

/// The kernels of one context.
pub struct Kernels {
    context: Handle,
    module: Handle,
    scan: Handle,
    hash: Handle,
    /// Multiprocessors of the device.
    processors: u32,
    /// The device's memory.
    block: CUdeviceptr,
    host: Host,
    /// The context has ended.
    gone: AtomicBool,
    state: Mutex<State>,
}

/// What is on its way.
struct State {
    /// A scan's flags may still be written to the host.
    scanning: bool,
    /// Hashes that nobody uses now.
    free: Vec<u32>,
}

/// The kernels of each context.
static LOADED: Mutex<Option<HashMap<Handle, Arc<Kernels>>>> = Mutex::new(None);

fn loaded() -> MutexGuard<'static, Option<HashMap<Handle, Arc<Kernels>>>> {
    LOADED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The kernels of a context that the program has made on this device: one of its own or a primary one, not a green one's.
/// The first call loads them, which may take milliseconds; the driver may wait for the context then.
///
/// # Errors
/// `CUDA_ERROR_NOT_READY` while a capture is open: ask again later. `CUDA_ERROR_OUT_OF_MEMORY` when a budget, the machine
/// or the driver has no room. The driver's: 800 inside a host callback; a context's own error when it is broken.
pub fn get(job: &Job, device: &'static Device, context: Handle) -> Result<Arc<Kernels>> {
    if let Some(kernels) = loaded().as_ref().and_then(|l| l.get(&context)) {
        return Ok(kernels.clone());
    }
    if drain::capturing() {
        return Err(CUDA_ERROR_NOT_READY);
    }
    let kernels = drain::in_known_context(context, || {
        let _relaxed = driver::Relaxed::enter();
        Kernels::load(job, device, context)
    })??;
    let mut loaded = loaded();
    let all = loaded.get_or_insert_default();
    if let Some(first) = all.get(&context).cloned() {
        drop(loaded);
        // Another thread was faster.
        // SAFETY: nobody has seen this one.
        let _ = drain::in_known_context(context, || unsafe { kernels.unload() });
        return Ok(first);
    }
    let kernels = Arc::new(kernels);
    all.insert(context, kernels.clone());
    Ok(kernels)
}

/// A context is gone, or was emptied by a reset. What is charged for its kernels goes with all else that it held
/// ([`counted::context_gone`]).
pub fn context_gone(context: Handle) {
    let kernels = loaded().as_mut().and_then(|l| l.remove(&context));
    if let Some(kernels) = kernels {
        kernels.gone.store(true, SeqCst);
    }
}

/// The kernels of a context that are loaded already.
pub fn known(context: Handle) -> Option<Arc<Kernels>> {
    loaded().as_ref()?.get(&context).cloned()
}

impl Kernels {
    /// In the current context, which is this one.
    fn load(job: &Job, device: &'static Device, context: Handle) -> Result<Kernels> {
        let processors =
            driver::attribute(CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, device.ordinal)?;
        let before = free(job, device);
        let module = kernel::load(PTX)?;
        // SAFETY: the module just loaded.
        let functions = [c"greenboost_scan", c"greenboost_hash"]
            .map(|name| unsafe { kernel::function(module, name) });
        let after = free(job, device);
        let rest = || -> Result<_> {
            let [scan, hash] = functions;
            let (scan, hash) = (scan?, hash?);
            let host = Host::new(job, device)?;
            Ok((scan, hash, host, block(job, device, context)?))
        };
        let (scan, hash, host, block) = rest().inspect_err(|_| {
            // SAFETY: nobody has used it.
            let _ = unsafe { kernel::unload(module) };
        })?;
        // Others may allocate just then: more than the kernels could take is not theirs, nor what the budget has no room for.
        let code = before.zip(after).map_or(0, |(b, a)| b.saturating_sub(a));
        let bytes = code.min(2 * GRAIN);
        let fits = job.place.reserve(Tier::Vram, device.index, bytes).is_ok();
        if fits && bytes > 0 {
            let entry = Counted {
                part: Part::Code,
                index: device.index,
                bytes,
                context,
            };
            counted::add(job, module.0 as u64, entry);
        }
        Ok(Kernels {
            context,
            module,
            scan,
            hash,
            processors: processors.max(1) as u32,
            block,
            host,
            gone: AtomicBool::new(false),
            state: Mutex::new(State {
                scanning: false,
                free: (0..MOST_HASHES as u32).rev().collect(),
            }),
        })
    }

    /// In its context.
    ///
    /// # Safety
    /// None of it is in use, or will be.
    unsafe fn unload(self) {
        // SAFETY: the caller's promise. What the driver refuses stays charged, and ends with the context.
        unsafe {
            let block = self.block;
            counted::end(Part::Code, block, || code(kernel::mem_free(block)));
            let module = self.module;
            counted::end(Part::Code, module.0 as u64, || code(kernel::unload(module)));
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `f` with the context current, out of every capture's way.
    fn inside<T>(&self, f: impl FnOnce() -> Result<T>) -> Result<T> {
        if self.gone.load(SeqCst) {
            return Err(CUDA_ERROR_CONTEXT_IS_DESTROYED);
        }
        drain::in_known_context(self.context, || {
            let _relaxed = driver::Relaxed::enter();
            f()
        })?
    }

    /// Blocks of a launch: no more than are good for something, and than so many multiprocessors hold.
    fn blocks(&self, useful: u64, processors: u32) -> u32 {
        let most = self.processors.min(processors).max(1) * BLOCKS;
        useful.clamp(1, most.into()) as u32
    }

    /// Looks for words in `areas` that, with the upper 16 bits cleared, lie in ranges of the `table`: in stream order, at
    /// the speed of the memory, on at most `processors` multiprocessors' worth of thread blocks (`u32::MAX`: all). Areas
    /// may overlap, and be in VRAM or in mapped host memory; words that no multiple of 8 begins are not seen. The table is
    /// sorted, by starts and by ends.
    ///
    /// # Errors
    /// `CUDA_ERROR_INVALID_VALUE`: a table out of order, or more than fits (32 Ki ranges; of areas and ranges together,
    /// 24 and 16 bytes each, 704 KiB). `CUDA_ERROR_NOT_READY`: another scan is on its way in this context. The driver's.
    ///
    /// # Safety
    /// A stream of the context that does not capture. The areas are not this module's own; they stay mapped, and readable for the device, until the stream
    /// has passed the scan, and nothing writes what a scan should see.
    pub unsafe fn scan(
        self: &Arc<Kernels>,
        stream: Handle,
        areas: &[Area],
        table: &[Range<u64>],
        processors: u32,
    ) -> Result<Scan> {
        let input = Input::new(areas, table).ok_or(CUDA_ERROR_INVALID_VALUE)?;
        let told = 8 * input.words.len() as u64;
        if told > FLAGS_AT || table.len() > MOST_RANGES {
            return Err(CUDA_ERROR_INVALID_VALUE);
        }
        if std::mem::replace(&mut self.state().scanning, true) {
            return Err(CUDA_ERROR_NOT_READY);
        }
        let scan = Scan {
            kernels: self.clone(),
            ranges: table.len(),
        };
        for (i, word) in (0..).zip(&input.words) {
            self.host.word(8 * i).store(*word, Relaxed);
        }
        (0..table.len()).for_each(|i| self.host.flag(i).store(NO_FLAG, Release));
        let (block, flags) = (self.block, self.block + FLAGS_AT);
        let flags_bytes = 4 * table.len();
        let arguments = [
            block,
            input.areas,
            block + input.table,
            table.len() as u64,
            flags,
        ];
        let blocks = self.blocks(input.tiles, processors);
        // Without a range there is nothing to wait for, so nothing may be on its way.
        if table.is_empty() {
            return Ok(scan);
        }
        let mut begun = false;
        // SAFETY: the caller's promise; the block and the host's memory are this scan's alone until its flags are there,
        // and large enough. If a later call fails the first is on its way: the flags never come, and there is no other scan.
        let queued = self.inside(|| unsafe {
            kernel::upload(block, self.host.at(0), told as usize, stream)?;
            begun = true;
            kernel::clear(flags, flags_bytes, stream)?;
            kernel::launch(self.scan, stream, blocks, THREADS, &arguments)?;
            kernel::download(self.host.at(FLAGS_AT), flags, flags_bytes, stream)
        });
        if !begun {
            (0..table.len()).for_each(|i| self.host.flag(i).store(0, Release));
        }
        queued.map(|()| scan)
    }

    /// Hashes memory in stream order, at its speed, on at most `processors` multiprocessors' worth of thread blocks.
    ///
    /// # Errors
    /// `CUDA_ERROR_INVALID_VALUE`: address or bytes are no multiple of 16, or there are no bytes. `CUDA_ERROR_NOT_READY`:
    /// 8192 hashes are on their way or held. The driver's.
    ///
    /// # Safety
    /// A stream of the context that does not capture. The memory stays mapped, and readable for the device, until the
    /// stream has passed the hash, and nothing writes to it.
    pub unsafe fn hash(
        self: &Arc<Kernels>,
        stream: Handle,
        address: CUdeviceptr,
        bytes: u64,
        processors: u32,
    ) -> Result<Hash> {
        if bytes == 0 || !(address | bytes).is_multiple_of(16) {
            return Err(CUDA_ERROR_INVALID_VALUE);
        }
        let slot = self.state().free.pop().ok_or(CUDA_ERROR_NOT_READY)?;
        let hash = Hash {
            kernels: self.clone(),
            slot,
        };
        let at = HASHES_AT + 16 * u64::from(slot);
        for half in hash.halves() {
            half.store(NO_HASH, Release);
        }
        let sums = self.block + at;
        let arguments = [address, bytes / 16, sums];
        let blocks = self.blocks((bytes / 64).div_ceil(THREADS.into()), processors);
        let mut begun = false;
        // SAFETY: the caller's promise; the sums are this hash's alone until they are with the host. If a later call fails
        // they never come.
        let queued = self.inside(|| unsafe {
            kernel::clear(sums, 16, stream)?;
            begun = true;
            kernel::launch(self.hash, stream, blocks, THREADS, &arguments)?;
            kernel::download(self.host.at(at), sums, 16, stream)
        });
        if !begun {
            hash.halves().iter().for_each(|half| half.store(0, Release));
        }
        queued.map(|()| hash)
    }
}

/// Bytes free on the current device, with all that the job holds there: what changes is nobody's that is counted.
fn free(job: &Job, device: &Device) -> Option<u64> {
    let (free, _) = driver::mem_info().ok()?;
    Some(free + job.place.ledger().used(Tier::Vram, device.index))
}

/// The device's memory, charged.
fn block(job: &Job, device: &Device, context: Handle) -> Result<CUdeviceptr> {
    job.place
        .reserve(Tier::Vram, device.index, BYTES)
        .map_err(|_| CUDA_ERROR_OUT_OF_MEMORY)?;
    let block = driver::mem_alloc(BYTES as usize)
        .inspect_err(|_| job.place.release(Tier::Vram, device.index, BYTES))?;
    let counted = Counted {
        part: Part::Code,
        index: device.index,
        bytes: BYTES,
        context,
    };
    counted::add(job, block, counted);
    Ok(block)
}

fn code(result: Result<()>) -> CUresult {
    result.err().unwrap_or(CUDA_SUCCESS)
}

/// The host's memory. It outlives the context, as its holders may.
struct Host {
    /// `None` only while it is dropped.
    memory: Option<Pinned>,
    base: u64,
    device: &'static Device,
}

impl Host {
    fn new(job: &Job, device: &'static Device) -> Result<Host> {
        let memory = Pinned::new(job, device, GRAIN).map_err(|_| CUDA_ERROR_OUT_OF_MEMORY)?;
        Ok(Host {
            base: memory.base,
            memory: Some(memory),
            device,
        })
    }

    /// The byte at this offset, which is below [`GRAIN`].
    fn at(&self, offset: u64) -> *mut u8 {
        (self.base + offset) as *mut u8
    }

    fn word(&self, offset: u64) -> &AtomicU64 {
        assert!(offset.is_multiple_of(8) && offset + 8 <= GRAIN);
        // SAFETY: aligned, and inside memory that lives as long as this; the device writes it too, hence atomic.
        unsafe { AtomicU64::from_ptr(self.at(offset).cast()) }
    }

    fn flag(&self, index: usize) -> &AtomicU32 {
        assert!(index < MOST_RANGES);
        // SAFETY: as in `word`.
        unsafe { AtomicU32::from_ptr(self.at(FLAGS_AT + 4 * index as u64).cast()) }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if let (Some(memory), Some(job)) = (self.memory.take(), process::job()) {
            // SAFETY: nobody holds it, so the context is gone and its work has ended, or it was never used.
            unsafe { memory.take_down(job, self.device) };
        }
    }
}

/// A scan that is on its way. Only one is in a context at a time: the next one may begin when this one's flags are there,
/// and it is dropped.
pub struct Scan {
    kernels: Arc<Kernels>,
    ranges: usize,
}

impl Scan {
    /// For each range of the table, whether a word lies in it. `None`: the stream has not come so far yet, or never will.
    pub fn flags(&self) -> Option<Vec<bool>> {
        let told = |i| match self.kernels.host.flag(i).load(Acquire) {
            NO_FLAG => None,
            flag => Some(flag != 0),
        };
        (0..self.ranges).map(told).collect()
    }
}

impl Drop for Scan {
    fn drop(&mut self) {
        // One that may still be on its way keeps the memory.
        if self.flags().is_some() {
            self.kernels.state().scanning = false;
        }
    }
}

/// A hash that is on its way.
pub struct Hash {
    kernels: Arc<Kernels>,
    slot: u32,
}

impl Hash {
    fn halves(&self) -> [&AtomicU64; 2] {
        let at = HASHES_AT + 16 * u64::from(self.slot);
        [at, at + 8].map(|at| self.kernels.host.word(at))
    }

    /// The hash, as [`hash::hash`] has it. `None`: the stream has not come so far yet, or never will.
    pub fn value(&self) -> Option<[u64; 2]> {
        let value = self.halves().map(|half| half.load(Acquire));
        (!value.contains(&NO_HASH)).then_some(value)
    }
}

impl Drop for Hash {
    fn drop(&mut self) {
        // One that may still be on its way keeps its place.
        if self.value().is_some() {
            self.kernels.state().free.push(self.slot);
        }
    }
}
