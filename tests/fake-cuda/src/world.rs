//! All state, behind one lock that is never held while work runs.
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use greenboost_abi::{
    CUDA_ERROR_CONTEXT_IS_DESTROYED, CUDA_ERROR_INVALID_CONTEXT, CUDA_ERROR_NO_DEVICE,
    CUDA_ERROR_NOT_INITIALIZED,
};

use crate::abi::Res;
use crate::array::Array;
use crate::capture::{Capture, Node};
use crate::config::config;
use crate::context::Context;
use crate::device::Device;
use crate::event::Event;
use crate::external::External;
use crate::graph::Exec;
use crate::graph_memory::GraphMemory;
use crate::handle::Handle;
use crate::host::HostRange;
use crate::ipc::Opened;
use crate::library::{Kernel, Library};
use crate::memory::{Alloc, Block};
use crate::module::{Function, Module};
use crate::phys::Place;
use crate::pool::Pool;
use crate::queue::{Flight, Stream};
use crate::race::Races;
use crate::va::Space;
use crate::{device, local};

pub(crate) struct World {
    pub devices: Vec<Device>,
    pub contexts: BTreeMap<usize, Context>,
    /// Contexts that were destroyed: a stale handle is told apart from nonsense.
    pub buried: BTreeSet<usize>,
    /// Descriptions of a device's resources.
    pub descriptions: BTreeSet<usize>,
    pub peers: BTreeSet<(usize, usize)>,
    pub streams: BTreeMap<u64, Stream>,
    pub events: BTreeMap<usize, Event>,
    pub modules: BTreeMap<usize, Module>,
    pub functions: BTreeMap<usize, Function>,
    pub libraries: BTreeMap<usize, Library>,
    pub kernels: BTreeMap<usize, Kernel>,
    pub space: Space,
    pub handles: BTreeMap<u64, Handle>,
    pub blocks: BTreeMap<u64, Block>,
    pub allocs: BTreeMap<u64, Alloc>,
    /// Those of them that are another process's.
    pub opened: BTreeMap<u64, Opened>,
    /// Allocations and mappings with `SYNC_MEMOPS`.
    pub synchronous: BTreeSet<u64>,
    pub host: BTreeMap<u64, HostRange>,
    /// Registrations that ended with their context.
    pub lapsed: BTreeSet<u64>,
    pub flight: Flight,
    pub races: Races,
    pub pools: BTreeMap<usize, Pool>,
    pub arrays: BTreeMap<usize, Array>,
    pub externals: BTreeMap<usize, External>,
    pub captures: BTreeMap<u64, Capture>,
    pub graphs: BTreeMap<usize, Vec<Node>>,
    /// Which graph a clone was made of.
    pub clones: BTreeMap<usize, usize>,
    /// The graphs in child nodes, for who asked for them.
    pub children: BTreeMap<(usize, usize), usize>,
    pub execs: BTreeMap<usize, Exec>,
    pub graph_memory: GraphMemory,
    next: u64,
}

/// What a handle names; part of its value, so that a handle of one kind is never taken for another.
#[derive(Clone, Copy)]
pub(crate) enum Kind {
    Context = 0x11,
    Stream = 0x12,
    Event = 0x13,
    Module = 0x14,
    Function = 0x15,
    Library = 0x16,
    Kernel = 0x17,
    Memory = 0x18,
    Graph = 0x19,
    GraphExec = 0x1a,
    Pool = 0x1b,
    Array = 0x1c,
    Other = 0x1f,
}

pub(crate) type Guard = MutexGuard<'static, World>;

static WORLD: Mutex<World> = Mutex::new(World {
    devices: Vec::new(),
    contexts: BTreeMap::new(),
    buried: BTreeSet::new(),
    descriptions: BTreeSet::new(),
    peers: BTreeSet::new(),
    streams: BTreeMap::new(),
    events: BTreeMap::new(),
    modules: BTreeMap::new(),
    functions: BTreeMap::new(),
    libraries: BTreeMap::new(),
    kernels: BTreeMap::new(),
    space: Space::new(),
    handles: BTreeMap::new(),
    blocks: BTreeMap::new(),
    allocs: BTreeMap::new(),
    opened: BTreeMap::new(),
    synchronous: BTreeSet::new(),
    host: BTreeMap::new(),
    lapsed: BTreeSet::new(),
    flight: Flight::new(),
    races: Races::new(),
    pools: BTreeMap::new(),
    arrays: BTreeMap::new(),
    externals: BTreeMap::new(),
    captures: BTreeMap::new(),
    graphs: BTreeMap::new(),
    clones: BTreeMap::new(),
    children: BTreeMap::new(),
    execs: BTreeMap::new(),
    graph_memory: GraphMemory::new(),
    next: 1,
});

/// Signalled whenever an operation has finished.
static DONE: Condvar = Condvar::new();

static INITIALISED: AtomicBool = AtomicBool::new(false);
static FORKED: AtomicBool = AtomicBool::new(false);
static LAST_ID: AtomicU32 = AtomicU32::new(0);

pub(crate) fn world() -> Guard {
    WORLD.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Gives the lock up until something has finished.
pub(crate) fn wait(w: Guard) -> Guard {
    DONE.wait(w).unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn announce() {
    DONE.notify_all();
}

pub(crate) fn initialised() -> bool {
    INITIALISED.load(Ordering::Acquire)
}

/// Whether this process is the child of one that had CUDA live: then nothing works, as on the real driver.
pub(crate) fn forked() -> bool {
    FORKED.load(Ordering::Relaxed)
}

/// A small number that no earlier object had (buffer and stream ids).
pub(crate) fn serial() -> u64 {
    u64::from(LAST_ID.fetch_add(1, Ordering::Relaxed)) + 1
}

extern "C" fn in_child() {
    FORKED.store(true, Ordering::Relaxed);
}

extern "C" fn at_exit() {
    if !forked() {
        crate::memory::report_leaks();
    }
}

pub(crate) fn init(flags: u32) -> Res {
    if flags != 0 {
        return Err(greenboost_abi::CUDA_ERROR_INVALID_VALUE);
    }
    if forked() {
        return Err(CUDA_ERROR_NOT_INITIALIZED);
    }
    if config().devices == 0 {
        return Err(CUDA_ERROR_NO_DEVICE);
    }
    let mut w = world();
    if initialised() {
        return Ok(());
    }
    w.devices = (0..config().devices).map(|_| Device::new()).collect();
    for ordinal in 0..w.devices.len() {
        w.devices[ordinal].primary = w.fresh(Kind::Context) as usize;
        let pool = w.add_pool(Place::Device(ordinal), true);
        w.devices[ordinal].default_pool = pool;
        w.devices[ordinal].pool = pool;
    }
    device::announce();
    // SAFETY: the handlers live as long as the process (the object is never unloaded).
    unsafe {
        libc::pthread_atfork(None, None, Some(in_child));
        if config().leaks {
            libc::atexit(at_exit);
        }
    }
    INITIALISED.store(true, Ordering::Release);
    Ok(())
}

impl World {
    pub(crate) fn fresh(&mut self, kind: Kind) -> u64 {
        self.next += 1;
        ((kind as u64) << 40) | (self.next << 6)
    }

    /// Whether the context lives and has not failed.
    pub(crate) fn sound(&self, ctx: usize) -> Res {
        match self.contexts.get(&ctx) {
            Some(context) if context.error == 0 => Ok(()),
            Some(context) => Err(context.error),
            None if self.buried.contains(&ctx) => Err(CUDA_ERROR_CONTEXT_IS_DESTROYED),
            None => Err(CUDA_ERROR_INVALID_CONTEXT),
        }
    }

    /// The calling thread's context, which lives and has not failed.
    pub(crate) fn here(&self) -> Res<usize> {
        let ctx = local::current();
        if ctx == 0 {
            return Err(CUDA_ERROR_INVALID_CONTEXT);
        }
        self.sound(ctx).map(|()| ctx)
    }

    /// The device of the calling thread's context.
    pub(crate) fn device_here(&self) -> Res<usize> {
        let ctx = self.here()?;
        Ok(self.contexts[&ctx].device)
    }
}
