//! Stream-ordered allocation. Memory is there from the call on; a free takes effect in stream order.
use core::ffi::c_int;

use greenboost_abi::{
    CU_MEM_ALLOCATION_TYPE_PINNED, CU_MEM_LOCATION_TYPE_DEVICE, CU_MEM_LOCATION_TYPE_HOST_NUMA,
    CUDA_ERROR_INVALID_VALUE, CUDA_ERROR_NOT_SUPPORTED, CUDA_ERROR_OUT_OF_MEMORY, CUmemAccessDesc,
    CUmemLocation, CUmemPoolProps,
};

use crate::abi::{In, Out, Res};
use crate::config::config;
use crate::device;
use crate::gate::Flavour;
use crate::misuse::misuse;
use crate::phys::{self, Place};
use crate::va::READ_WRITE;
use crate::work::{Site, Work};
use crate::world::{Kind, World, serial, world};

/// The first driver that makes pools on host NUMA nodes, as CCCL documents its own pools.
const HOST_POOLS_SINCE: u32 = 12060;

pub(crate) struct Pool {
    /// Where its memory is. Memory on the host is the CPU's from the start, and a device's once it is given access.
    pub place: Place,
    default: bool,
    /// Whether its memory may leave the process, and whether it came from another one: then nothing is allocated from it.
    pub exportable: bool,
    pub imported: bool,
    /// Most bytes that it may reserve; 0: as many as there are.
    pub most: u64,
    /// Bytes that stay reserved when allocations are freed.
    threshold: u64,
    reuse: [c_int; 3],
    reserved_high: u64,
    used_high: u64,
    /// Other devices that may use its memory.
    access: Vec<(usize, u8)>,
}

impl World {
    pub(crate) fn add_pool(&mut self, place: Place, default: bool) -> usize {
        let handle = self.fresh(Kind::Pool) as usize;
        let pool = Pool {
            place,
            default,
            most: 0,
            exportable: false,
            imported: false,
            threshold: 0,
            reuse: [1; 3],
            reserved_high: 0,
            used_high: 0,
            access: Vec::new(),
        };
        self.pools.insert(handle, pool);
        handle
    }

    pub(crate) fn reserved(&self, pool: usize) -> u64 {
        self.blocks
            .values()
            .filter(|b| b.pool == pool)
            .map(|b| b.size)
            .sum()
    }

    /// What is freed is used no more from the call on, also while the free is queued (measured).
    fn used(&self, pool: usize) -> u64 {
        self.allocs
            .values()
            .filter(|a| a.pool == pool && !a.doomed)
            .map(|a| a.size)
            .sum()
    }

    /// Whether an address is in memory that a pool has on the host.
    pub(crate) fn on_host_by_pool(&self, va: u64) -> bool {
        self.space
            .mapping_of(va)
            .is_some_and(|(_, m)| m.handle == 0 && m.phys.place == Place::Host)
    }

    /// Gives empty blocks back until no more than `keep` bytes stay reserved.
    fn trim_pool(&mut self, pool: usize, keep: u64) {
        let idle: Vec<u64> = self
            .blocks
            .iter()
            .filter(|(start, b)| b.pool == pool && self.vacant(**start))
            .map(|(s, _)| *s)
            .collect();
        for block in idle {
            if self.reserved(pool) <= keep {
                break;
            }
            self.drop_block(block);
        }
    }
}

/// Idle pool memory yields to those who need it.
pub(crate) fn trim_device(w: &mut World, device: usize) {
    let pools: Vec<usize> = w
        .pools
        .iter()
        .filter(|(_, p)| p.place == Place::Device(device))
        .map(|(h, _)| *h)
        .collect();
    pools.into_iter().for_each(|pool| w.trim_pool(pool, 0));
}

pub(crate) fn give_back(w: &mut World, va: u64) {
    let Some(alloc) = w.allocs.get(&va) else {
        return;
    };
    let pool = alloc.pool;
    w.free_alloc(va);
    let keep = w.pools.get(&pool).map_or(0, |p| p.threshold);
    w.trim_pool(pool, keep);
}

/// The turn of a `cuMemFreeAsync` in its stream.
pub(crate) fn free_now(site: &Site, va: u64, id: u64) {
    let mut w = world();
    // It may be in use again by what comes behind the free.
    let Some(alloc) = w.allocs.get(&va).filter(|a| a.id == id) else {
        return;
    };
    let end = va + alloc.size;
    if let Some((name, at)) = w.flight.touching_but(site.ticket, va, end) {
        misuse!("free async of {va:#x}..{end:#x} with work in flight ({name} at {at:#x})");
    }
    give_back(&mut w, va);
}

fn alloc(size: u64, pool: Option<usize>, stream: usize, flavour: Flavour) -> Res<u64> {
    let mut w = world();
    let sid = w.stream(stream, flavour)?;
    if w.streams[&sid].capture.is_some() {
        return w.capture_alloc(sid, size, pool);
    }
    w.refuse_unsafe("cuMemAllocAsync")?;
    let (ctx, device) = (w.streams[&sid].ctx, w.streams[&sid].device);
    let pool = pool.unwrap_or(w.devices[device].pool);
    let entry = w.pools.get(&pool).filter(|p| !p.imported);
    let device = match entry.ok_or(CUDA_ERROR_INVALID_VALUE)?.place {
        Place::Device(owner) => owner,
        Place::Host => device,
    };
    if size == 0 {
        return Err(CUDA_ERROR_INVALID_VALUE);
    }
    let again = w
        .allocs
        .iter_mut()
        .find(|(_, a)| a.pool == pool && a.doomed && a.freed_on == sid && a.size == size);
    if let Some((va, alloc)) = again {
        (alloc.doomed, alloc.id) = (false, serial());
        return Ok(*va);
    }
    let va = match w.alloc(ctx, device, size, pool) {
        Err(CUDA_ERROR_OUT_OF_MEMORY) if phys::free(device) < size => {
            trim_device(&mut w, device);
            w.alloc(ctx, device, size, pool)?
        }
        other => other?,
    };
    let (reserved, used, block) = (w.reserved(pool), w.used(pool), w.allocs[&va].block);
    if let Some(p) = w.pools.get_mut(&pool) {
        p.reserved_high = p.reserved_high.max(reserved);
        p.used_high = p.used_high.max(used);
        let access = p.access.clone();
        if let Some(m) = w.space.mappings.get_mut(&block) {
            access
                .into_iter()
                .for_each(|(d, rights)| m.rights[d] = rights);
        }
    }
    Ok(va)
}

fn free(va: u64, stream: usize, flavour: Flavour) -> Res {
    let mut w = world();
    let sid = w.stream(stream, flavour)?;
    if va == 0 {
        return Ok(());
    }
    if w.streams[&sid].capture.is_some() {
        return w.capture_free(sid, va);
    }
    w.refuse_unsafe("cuMemFreeAsync")?;
    if !w.kept_by_program(va) {
        misuse!("free async of {va:#x}, which its graph frees");
        return Err(CUDA_ERROR_INVALID_VALUE);
    }
    let id = match w.allocs.get_mut(&va) {
        Some(alloc) if !alloc.doomed => {
            (alloc.doomed, alloc.freed_on) = (true, sid);
            alloc.id
        }
        Some(_) => {
            misuse!("free async of {va:#x} for the second time");
            return Err(CUDA_ERROR_INVALID_VALUE);
        }
        _ => {
            misuse!("free async of {va:#x}, which is no allocation");
            return Err(CUDA_ERROR_INVALID_VALUE);
        }
    };
    w.submit(
        sid,
        "free async",
        Work::Free(va, id),
        Vec::new(),
        Vec::new(),
    )
    .map(drop)
}

fn create(props: CUmemPoolProps) -> Res<usize> {
    if props.allocType != CU_MEM_ALLOCATION_TYPE_PINNED || props.handleTypes & !1 != 0 {
        return Err(CUDA_ERROR_INVALID_VALUE);
    }
    let place = match props.location.type_ {
        CU_MEM_LOCATION_TYPE_DEVICE => Place::Device(device::check(props.location.id)?),
        CU_MEM_LOCATION_TYPE_HOST_NUMA
            if !config().host_numa || config().driver < HOST_POOLS_SINCE =>
        {
            return Err(CUDA_ERROR_NOT_SUPPORTED);
        }
        CU_MEM_LOCATION_TYPE_HOST_NUMA if props.location.id == 0 => Place::Host,
        _ => return Err(CUDA_ERROR_INVALID_VALUE),
    };
    let mut w = world();
    let pool = w.add_pool(place, false);
    if let Some(entry) = w.pools.get_mut(&pool) {
        entry.exportable = props.handleTypes != 0;
        entry.most = props.maxSize as u64;
    }
    Ok(pool)
}

fn destroy(pool: usize) -> Res {
    let mut w = world();
    let entry = w
        .pools
        .get(&pool)
        .filter(|p| !p.default)
        .ok_or(CUDA_ERROR_INVALID_VALUE)?;
    if let Place::Device(device) = entry.place
        && w.devices[device].pool == pool
    {
        w.devices[device].pool = w.devices[device].default_pool;
    }
    w.trim_pool(pool, 0);
    w.pools.remove(&pool);
    Ok(())
}

fn set_attribute(pool: usize, attribute: c_int, value: usize) -> Res {
    let mut w = world();
    let (reserved, used) = (w.reserved(pool), w.used(pool));
    let entry = w.pools.get_mut(&pool).ok_or(CUDA_ERROR_INVALID_VALUE)?;
    if value == 0 {
        return Err(CUDA_ERROR_INVALID_VALUE);
    }
    // SAFETY: the ABI says what the attribute's value points to: an int up to 3, a 64-bit number beyond.
    unsafe {
        match attribute {
            1..=3 => entry.reuse[attribute as usize - 1] = (value as *const c_int).read_unaligned(),
            4 => entry.threshold = (value as *const u64).read_unaligned(),
            6 if (value as *const u64).read_unaligned() == 0 => entry.reserved_high = reserved,
            8 if (value as *const u64).read_unaligned() == 0 => entry.used_high = used,
            _ => return Err(CUDA_ERROR_INVALID_VALUE),
        }
    }
    Ok(())
}

fn get_attribute(pool: usize, attribute: c_int, value: usize) -> Res {
    let mut w = world();
    w.refuse_unsafe("cuMemPoolGetAttribute")?;
    let entry = w.pools.get(&pool).ok_or(CUDA_ERROR_INVALID_VALUE)?;
    if value == 0 {
        return Err(CUDA_ERROR_INVALID_VALUE);
    }
    let wide = match attribute {
        1..=3 => {
            // SAFETY: the ABI says that this attribute's value is an int.
            unsafe { (value as *mut c_int).write_unaligned(entry.reuse[attribute as usize - 1]) };
            return Ok(());
        }
        4 => entry.threshold,
        5 => w.reserved(pool),
        6 => entry.reserved_high.max(w.reserved(pool)),
        7 => w.used(pool),
        8 => entry.used_high.max(w.used(pool)),
        _ => return Err(CUDA_ERROR_INVALID_VALUE),
    };
    // SAFETY: the ABI says that these attributes' values are 64 bits wide.
    unsafe { (value as *mut u64).write_unaligned(wide) };
    Ok(())
}

fn set_access(pool: usize, descs: Vec<CUmemAccessDesc>) -> Res {
    let mut w = world();
    w.pools.get(&pool).ok_or(CUDA_ERROR_INVALID_VALUE)?;
    for desc in descs {
        if desc.location.type_ != CU_MEM_LOCATION_TYPE_DEVICE {
            return Err(CUDA_ERROR_NOT_SUPPORTED);
        }
        if !matches!(desc.flags, 0 | 1 | 3) {
            return Err(CUDA_ERROR_INVALID_VALUE);
        }
        let (device, rights) = (device::check(desc.location.id)?, desc.flags as u8);
        let blocks: Vec<u64> = w
            .blocks
            .iter()
            .filter(|(_, b)| b.pool == pool)
            .map(|(s, _)| *s)
            .collect();
        if let Some(entry) = w.pools.get_mut(&pool) {
            entry.access.retain(|(d, _)| *d != device);
            entry.access.push((device, rights));
        }
        for block in blocks {
            if let Some(m) = w.space.mappings.get_mut(&block) {
                m.rights[device] = rights;
            }
        }
    }
    Ok(())
}

fn get_access(pool: usize, location: CUmemLocation) -> Res<c_int> {
    let w = world();
    let entry = w.pools.get(&pool).ok_or(CUDA_ERROR_INVALID_VALUE)?;
    let device = device::check(location.id)?;
    let own = if entry.place == Place::Device(device) {
        READ_WRITE
    } else {
        0
    };
    Ok(c_int::from(
        entry
            .access
            .iter()
            .find(|(d, _)| *d == device)
            .map_or(own, |(_, rights)| *rights),
    ))
}

fn set_current(device: usize, pool: usize) -> Res {
    let mut w = world();
    if w.pools
        .get(&pool)
        .is_none_or(|p| p.place != Place::Device(device))
    {
        return Err(CUDA_ERROR_INVALID_VALUE);
    }
    w.devices[device].pool = pool;
    Ok(())
}

/// The device of a location. The pools of host locations and of managed memory are not simulated.
fn at(location: In<CUmemLocation>, kind: c_int) -> Res<usize> {
    let location = location.get()?;
    match (location.type_, kind) {
        (CU_MEM_LOCATION_TYPE_DEVICE, CU_MEM_ALLOCATION_TYPE_PINNED) => device::check(location.id),
        _ => Err(CUDA_ERROR_NOT_SUPPORTED),
    }
}

api! {
    Context cuMemAllocAsync {
        11020 cuMemAllocAsync Legacy,
        11020 cuMemAllocAsync_ptsz PerThread,
    } (va: Out<u64>, size: usize, stream: usize) |f| {
        va.check()?;
        va.set(alloc(size as u64, None, stream, f)?)
    }
    Context cuMemAllocFromPoolAsync {
        11020 cuMemAllocFromPoolAsync Legacy,
        11020 cuMemAllocFromPoolAsync_ptsz PerThread,
    } (va: Out<u64>, size: usize, pool: usize, stream: usize) |f| {
        va.check()?;
        va.set(alloc(size as u64, Some(pool), stream, f)?)
    }
    Context cuMemFreeAsync {
        11020 cuMemFreeAsync Legacy,
        11020 cuMemFreeAsync_ptsz PerThread,
    } (va: u64, stream: usize) |f| { free(va, stream, f) }
    Init cuMemPoolCreate { 11020 cuMemPoolCreate Legacy } (pool: Out<usize>, props: In<CUmemPoolProps>) |_f| {
        pool.check()?;
        world().refuse_unsafe("cuMemPoolCreate")?;
        pool.set(create(props.get()?)?)
    }
    Init cuMemPoolDestroy { 11020 cuMemPoolDestroy Legacy } (pool: usize) |_f| { destroy(pool) }
    Init cuMemPoolTrimTo { 11020 cuMemPoolTrimTo Legacy } (pool: usize, keep: usize) |_f| {
        let mut w = world();
        w.refuse_unsafe("cuMemPoolTrimTo")?;
        w.pools.get(&pool).ok_or(CUDA_ERROR_INVALID_VALUE)?;
        w.trim_pool(pool, keep as u64);
        Ok(())
    }
    Init cuMemPoolSetAttribute { 11020 cuMemPoolSetAttribute Legacy } (pool: usize, attribute: c_int, value: usize) |_f| {
        set_attribute(pool, attribute, value)
    }
    Init cuMemPoolGetAttribute { 11020 cuMemPoolGetAttribute Legacy } (pool: usize, attribute: c_int, value: usize) |_f| {
        get_attribute(pool, attribute, value)
    }
    Init cuMemPoolSetAccess { 11020 cuMemPoolSetAccess Legacy } (pool: usize, descs: In<CUmemAccessDesc>, count: usize) |_f| {
        world().refuse_unsafe("cuMemPoolSetAccess")?;
        set_access(pool, descs.many(count)?)
    }
    Init cuMemPoolGetAccess { 11020 cuMemPoolGetAccess Legacy } (flags: Out<c_int>, pool: usize, location: In<CUmemLocation>) |_f| {
        flags.set(get_access(pool, location.get()?)?)
    }
    Init cuDeviceGetDefaultMemPool { 11020 cuDeviceGetDefaultMemPool Legacy } (pool: Out<usize>, device: c_int) |_f| {
        let device = device::check(device)?;
        pool.set(world().devices[device].default_pool)
    }
    Init cuDeviceGetMemPool { 11020 cuDeviceGetMemPool Legacy } (pool: Out<usize>, device: c_int) |_f| {
        let device = device::check(device)?;
        pool.set(world().devices[device].pool)
    }
    Init cuDeviceSetMemPool { 11020 cuDeviceSetMemPool Legacy } (device: c_int, pool: usize) |_f| {
        let device = device::check(device)?;
        set_current(device, pool)
    }
    Init cuMemGetDefaultMemPool { 13000 cuMemGetDefaultMemPool Legacy } (pool: Out<usize>, location: In<CUmemLocation>, kind: c_int) |_f| {
        pool.set(world().devices[at(location, kind)?].default_pool)
    }
    Init cuMemGetMemPool { 13000 cuMemGetMemPool Legacy } (pool: Out<usize>, location: In<CUmemLocation>, kind: c_int) |_f| {
        pool.set(world().devices[at(location, kind)?].pool)
    }
    Init cuMemSetMemPool { 13000 cuMemSetMemPool Legacy } (location: In<CUmemLocation>, kind: c_int, pool: usize) |_f| {
        set_current(at(location, kind)?, pool)
    }
}
