//! Stream-ordered allocations, and the pools that they come from.
//!
//! What fits the VRAM budget comes from the pool that the program chose. Beyond it the shim serves the allocation from
//! memory of its own, in the order of the stream ([`later`]), on the pool's behalf: the pool's figures include it, and a
//! pointer's pool is the one that was asked for. Not from a host pool of the driver's: `cuMemcpyDtoD` refuses such memory
//! (1: measured), and drivers before 12.6 have none. A pool whose memory may leave the process is never served for.

use std::ffi::{c_int, c_ulonglong, c_void};
use std::sync::Arc;

use greenboost_abi::*;
use greenboost_wire::ledger::Tier;

use super::{context, graph};
use crate::driver;
use crate::hooks::real;
use crate::process::{self, Job};
use crate::tier::device::{self, Device, Host};
use crate::tier::map::{self, Allocation, Counted, Handle};
use crate::tier::pools::{self, Done, Kind, Pool};
use crate::tier::stream::{self, Stream};
use crate::tier::{alloc, drain, free as tier_free, gate, later};

/// The device that a pool's memory is charged to.
fn charged_to(job: &'static Job, pool: &Pool, stream: &Stream) -> Option<&'static Device> {
    let ordinal = match pool.kind {
        Kind::Device(ordinal) => ordinal,
        Kind::Host => stream.device,
        Kind::Other => return None,
    };
    device::known(ordinal).or_else(|| {
        if stream.device != ordinal {
            return None;
        }
        drain::in_context(stream.context, || device::get(job, ordinal))
            .ok()?
            .ok()?
    })
}

/// A stream-ordered allocation from `pool`, or from the current one of the stream's device; `make` is the program's call.
///
/// # Safety
/// `out` is the program's; after a success of `make` it holds the address.
unsafe fn allocate(
    out: *mut CUdeviceptr,
    bytes: usize,
    pool: Option<CUmemoryPool>,
    (stream, per_thread): (CUstream, bool),
    make: impl Fn() -> CUresult,
) -> CUresult {
    // What the driver would refuse, it refuses itself, with its own error.
    let Some(job) = process::live().filter(|_| !out.is_null() && bytes > 0) else {
        return make();
    };
    let stream = match stream::look(stream, per_thread) {
        Ok(Some(stream)) => stream,
        // A node of its graph: the driver's affair untouched. Its memory is the graph's, of which pools know nothing.
        Ok(None) => return graph::node_made(make(), bytes),
        Err(_) => return make(),
    };
    let pool = match pool {
        Some(pool) => Ok(Handle(pool as usize)),
        None => driver::current_pool(stream.device),
    };
    let Some(pool) = pool.ok().and_then(|p| pools::find(p, stream.device)) else {
        return make();
    };
    let Some(device) = charged_to(job, &pool, &stream) else {
        return make();
    };
    let size = bytes as u64;
    // SAFETY: an allocation that the driver has just made, and nobody knows.
    let undo = || unsafe {
        real::cuMemFreeAsync(*out, stream.handle.0 as CUstream);
    };
    let short = match pools::allocate(job, device, &pool, (size, stream.lane), make, undo) {
        Ok(CUDA_SUCCESS) => {
            // SAFETY: the driver has just written it.
            pools::lives(unsafe { *out }, &pool, size);
            alloc::count(job, device, size, 0);
            return CUDA_SUCCESS;
        }
        Ok(code) => return code,
        Err(short) => short,
    };
    // Registered memory ends with its context, a pool's does not: there only what outlives others may serve.
    let lasts = device.host != Host::Pinned || context::primary_of(stream.context).is_some();
    if !device.can_spill(job) || !lasts || !pool.may_be_served(size) {
        return alloc::out_of_memory(job, device, size, short);
    }
    match serve(job, device, &pool, &stream, size) {
        Ok(address) => {
            // SAFETY: the program's pointer for the result, not null.
            unsafe { *out = address };
            CUDA_SUCCESS
        }
        Err(short) => alloc::out_of_memory(job, device, size, short),
    }
}

/// Memory of the shim's own: what an earlier free on this stream, or a completed one on any, gave back, or new.
fn serve(
    job: &Job,
    device: &Device,
    pool: &Arc<Pool>,
    stream: &Stream,
    size: u64,
) -> Result<u64, crate::tier::range::Shortage> {
    let allocation = match later::take(device, stream, size) {
        Some(allocation) => allocation,
        None => {
            let (base, _, backing) = alloc::in_order(job, device, size)?;
            Allocation {
                base,
                size,
                device: device.ordinal,
                // A pool's memory belongs to no context.
                context: Handle(0),
                backing,
                ties: Default::default(),
            }
        }
    };
    let allocation = Allocation {
        context: Handle(0),
        ties: Default::default(),
        ..allocation
    };
    let (base, host) = (allocation.base, allocation.bytes(Tier::Host));
    let span = host + allocation.bytes(Tier::Vram);
    map::insert(allocation);
    pools::serve(base, pool, size, span);
    for user in pool.access() {
        if pools::open_range(base, user).is_err() {
            process::wound("pool memory could not be opened to a peer device");
        }
    }
    alloc::count(job, device, size, host);
    Ok(base)
}

macro_rules! allocs {
    ($($ours:ident = $real:ident($($pool:ident)?), $per_thread:literal;)*) => {$(
        #[doc = concat!("Replaces `", stringify!($real), "`.")]
        ///
        /// # Safety
        /// As for the function it replaces.
        pub unsafe fn $ours(
            out: *mut CUdeviceptr,
            bytes: usize,
            $($pool: CUmemoryPool,)?
            stream: CUstream,
        ) -> CUresult {
            let chosen: &[CUmemoryPool] = &[$($pool)?];
            // SAFETY: the program's own call.
            unsafe {
                allocate(out, bytes, chosen.first().copied(), (stream, $per_thread), || {
                    real::$real(out, bytes, $($pool,)? stream)
                })
            }
        }
    )*};
}

allocs! {
    alloc = cuMemAllocAsync(), false;
    alloc_ptsz = cuMemAllocAsync_ptsz(), true;
    alloc_from = cuMemAllocFromPoolAsync(pool), false;
    alloc_from_ptsz = cuMemAllocFromPoolAsync_ptsz(pool), true;
}

/// `cuMemFreeAsync` of memory that the shim backs, whichever call allocated it.
fn free_own(job: &Job, address: CUdeviceptr, stream: &Stream) -> CUresult {
    let Some(allocation) = map::remove(address) else {
        // Another thread was faster.
        return CUDA_ERROR_INVALID_VALUE;
    };
    match later::put(job, allocation, stream) {
        Ok(()) => {
            pools::unserve(address);
            CUDA_SUCCESS
        }
        Err(refused) => {
            let (allocation, code) = *refused;
            map::insert(allocation);
            code
        }
    }
}

fn free_with(
    address: CUdeviceptr,
    (stream, per_thread): (CUstream, bool),
    free: impl FnOnce() -> CUresult,
) -> CUresult {
    let Some(job) = process::job() else {
        return free();
    };
    let own = map::find(address).is_some_and(|place| place.base == address);
    let stream = match stream::look(stream, per_thread) {
        Ok(Some(stream)) => stream,
        // A graph frees what a graph allocated, nothing else (1, and the capture goes on: measured).
        Ok(None) if own => return CUDA_ERROR_INVALID_VALUE,
        Ok(None) => return free(),
        Err(code) if own => return code,
        Err(_) => return free(),
    };
    if own {
        return free_own(job, address, &stream);
    }
    let counted = map::uncount(map::Kind::Memory, address);
    let result = pools::freed(
        job,
        address,
        stream.lane.map_or(Done::Unknown, Done::On),
        free,
    );
    give_back(job, address, counted, result);
    result
}

fn give_back(job: &Job, address: CUdeviceptr, counted: Option<Counted>, result: CUresult) {
    match (counted, result) {
        (Some(counted), CUDA_SUCCESS) => tier_free::uncharge(job, counted),
        (Some(counted), _) => map::count(map::Kind::Memory, address, counted),
        (None, _) => {}
    }
}

/// Replaces `CUresult cuMemFreeAsync(CUdeviceptr dptr, CUstream hStream)`.
///
/// # Safety
/// As for the function it replaces.
pub unsafe fn free(address: CUdeviceptr, stream: CUstream) -> CUresult {
    // SAFETY: the program's own call.
    free_with(address, (stream, false), || unsafe {
        let _pass = gate::pass();
        real::cuMemFreeAsync(address, stream)
    })
}

/// Replaces `cuMemFreeAsync_ptsz`.
///
/// # Safety
/// As for the function it replaces.
pub unsafe fn free_ptsz(address: CUdeviceptr, stream: CUstream) -> CUresult {
    // SAFETY: the program's own call.
    free_with(address, (stream, true), || unsafe {
        let _pass = gate::pass();
        real::cuMemFreeAsync_ptsz(address, stream)
    })
}

/// Whose memory a pool of this type and location holds.
fn kind(type_: c_int, location: CUmemLocation) -> Kind {
    match (type_, location.type_) {
        (CU_MEM_ALLOCATION_TYPE_PINNED, CU_MEM_LOCATION_TYPE_DEVICE) => Kind::Device(location.id),
        (
            CU_MEM_ALLOCATION_TYPE_PINNED,
            CU_MEM_LOCATION_TYPE_HOST | CU_MEM_LOCATION_TYPE_HOST_NUMA,
        ) => Kind::Host,
        _ => Kind::Other,
    }
}

/// Replaces `CUresult cuMemPoolCreate(CUmemoryPool *pool, const CUmemPoolProps *poolProps)`.
///
/// # Safety
/// As for the function it replaces.
pub unsafe fn create(out: *mut CUmemoryPool, props: *const CUmemPoolProps) -> CUresult {
    // SAFETY: the program's own call; after a success both pointers were good.
    unsafe {
        let result = real::cuMemPoolCreate(out, props);
        if result == CUDA_SUCCESS && process::job().is_some() {
            let p = &*props;
            let exportable = p.handleTypes != CU_MEM_HANDLE_TYPE_NONE;
            let kind = kind(p.allocType, p.location);
            pools::made(Handle(*out as usize), kind, exportable, p.maxSize as u64);
        }
        result
    }
}

/// Replaces `CUresult cuMemPoolImportFromShareableHandle(CUmemoryPool *pool_out, void *handle,
/// CUmemAllocationHandleType handleType, unsigned long long flags)`: the memory is charged to the process that made it.
///
/// # Safety
/// As for the function it replaces.
pub unsafe fn import(
    out: *mut CUmemoryPool,
    handle: *mut c_void,
    kind: c_int,
    flags: c_ulonglong,
) -> CUresult {
    // SAFETY: the program's own call; after a success `out` was good.
    unsafe {
        let result = real::cuMemPoolImportFromShareableHandle(out, handle, kind, flags);
        if result == CUDA_SUCCESS && process::job().is_some() {
            pools::made(Handle(*out as usize), Kind::Other, true, 0);
        }
        result
    }
}

/// Replaces `CUresult cuMemPoolDestroy(CUmemoryPool pool)`.
///
/// # Safety
/// As for the function it replaces.
pub unsafe fn destroy(pool: CUmemoryPool) -> CUresult {
    let _pass = gate::pass();
    // SAFETY: the program's own call.
    let destroy = || unsafe { real::cuMemPoolDestroy(pool) };
    match process::job() {
        Some(job) => pools::destroyed(job, Handle(pool as usize), destroy),
        None => destroy(),
    }
}

/// Replaces `CUresult cuMemPoolTrimTo(CUmemoryPool pool, size_t minBytesToKeep)`.
///
/// # Safety
/// As for the function it replaces.
pub unsafe fn trim(pool: CUmemoryPool, keep: usize) -> CUresult {
    let result = {
        let _pass = gate::pass();
        // SAFETY: the program's own call.
        unsafe { real::cuMemPoolTrimTo(pool, keep) }
    };
    if result == CUDA_SUCCESS
        && let Some(job) = process::job()
        && let Some(pool) = pools::known(Handle(pool as usize))
    {
        pool.sync(job);
        if let Kind::Device(ordinal) = pool.kind
            && let Some(device) = device::known(ordinal)
        {
            later::trim(job, device);
        }
    }
    result
}

/// Replaces `CUresult cuMemPoolGetAttribute(CUmemoryPool pool, CUmemPool_attribute attr, void *value)`: what the shim
/// serves on the pool's behalf is in its figures.
///
/// # Safety
/// As for the function it replaces.
pub unsafe fn get_attribute(
    pool: CUmemoryPool,
    attribute: CUmemPool_attribute,
    value: *mut c_void,
) -> CUresult {
    // SAFETY: the program's own call; after a success the value was written, 64 bits wide for these attributes.
    unsafe {
        let result = real::cuMemPoolGetAttribute(pool, attribute, value);
        if result == CUDA_SUCCESS
            && (CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT..=CU_MEMPOOL_ATTR_USED_MEM_HIGH)
                .contains(&attribute)
            && let Some(pool) = pools::known(Handle(pool as usize))
        {
            let value = value.cast::<u64>();
            value.write_unaligned(pool.told(attribute, value.read_unaligned()));
        }
        result
    }
}

/// Replaces `CUresult cuMemPoolSetAttribute(CUmemoryPool pool, CUmemPool_attribute attr, void *value)`.
///
/// # Safety
/// As for the function it replaces.
pub unsafe fn set_attribute(
    pool: CUmemoryPool,
    attribute: CUmemPool_attribute,
    value: *mut c_void,
) -> CUresult {
    // SAFETY: the program's own call.
    let result = unsafe { real::cuMemPoolSetAttribute(pool, attribute, value) };
    if result == CUDA_SUCCESS
        && let Some(pool) = pools::known(Handle(pool as usize))
    {
        pool.reset_high(attribute);
    }
    result
}

/// Replaces `CUresult cuMemPoolSetAccess(CUmemoryPool pool, const CUmemAccessDesc *map, size_t count)`: what the shim
/// serves for the pool is opened to the same devices. Access that is taken away again is left: nobody can rely on a fault.
///
/// # Safety
/// As for the function it replaces.
pub unsafe fn set_access(
    pool: CUmemoryPool,
    access: *const CUmemAccessDesc,
    count: usize,
) -> CUresult {
    // SAFETY: the program's own call; after a success there are `count` descriptors.
    unsafe {
        let result = real::cuMemPoolSetAccess(pool, access, count);
        if result != CUDA_SUCCESS || count == 0 {
            return result;
        }
        let Some(pool) = pools::known(Handle(pool as usize))
            .or_else(|| pools::find(Handle(pool as usize), driver::current_device().ok()?))
        else {
            return result;
        };
        for desc in std::slice::from_raw_parts(access, count) {
            if desc.location.type_ == CU_MEM_LOCATION_TYPE_DEVICE
                && desc.flags != CU_MEM_ACCESS_FLAGS_PROT_NONE
                && let Err(code) = pools::open(&pool, desc.location.id)
            {
                return code;
            }
        }
        result
    }
}

macro_rules! by_location {
    ($($ours:ident = $real:ident;)*) => {$(
        #[doc = concat!("Replaces `", stringify!($real), "`: the pool is known from then on.")]
        ///
        /// # Safety
        /// As for the function it replaces.
        pub unsafe fn $ours(out: *mut CUmemoryPool, location: *mut CUmemLocation, type_: c_int) -> CUresult {
            // SAFETY: the program's own call; after a success both pointers were good.
            unsafe {
                let result = real::$real(out, location, type_);
                if result == CUDA_SUCCESS && process::job().is_some() {
                    let handle = Handle(*out as usize);
                    if pools::known(handle).is_none() {
                        pools::made(handle, kind(type_, *location), false, 0);
                    }
                }
                result
            }
        }
    )*};
}

by_location! {
    default_at = cuMemGetDefaultMemPool;
    current_at = cuMemGetMemPool;
}
