//! Virtual memory management: reservations, handles, mappings, access rights.
use greenboost_abi::{
    CU_MEM_LOCATION_TYPE_DEVICE, CU_MEM_LOCATION_TYPE_HOST, CU_MEM_LOCATION_TYPE_HOST_NUMA,
    CU_MEM_LOCATION_TYPE_HOST_NUMA_CURRENT, CUDA_ERROR_INVALID_VALUE, CUDA_ERROR_NOT_SUPPORTED,
    CUmemAccessDesc, CUmemGenericAllocationHandle, CUmemLocation,
};

use crate::abi::{In, Out, Res};
use crate::config::config;
use crate::device;
use crate::misuse::misuse;
use crate::phys::{GRANULE, Place};
use crate::va::{Owner, READ, READ_WRITE};
use crate::world::{World, world};

impl World {
    /// Records when work that is queued or running names part of the range.
    pub(crate) fn in_flight_misuse(&self, what: &str, start: u64, end: u64) {
        if let Some((name, va)) = self.flight.touching(start, end) {
            misuse!("{what} of {start:#x}..{end:#x} with work in flight ({name} at {va:#x})");
        }
    }
}

fn map(va: u64, size: u64, offset: u64, handle: u64, flags: u64) -> Res {
    let mut w = world();
    let Some(entry) = w.handles.get(&handle).filter(|entry| entry.refs > 0) else {
        misuse!("map of handle {handle:#x}, which is not held");
        return Err(CUDA_ERROR_INVALID_VALUE);
    };
    let phys = entry.phys.clone();
    if size == 0 || flags != 0 || !va.is_multiple_of(GRANULE) || size > phys.size {
        return Err(CUDA_ERROR_INVALID_VALUE);
    }
    if offset != 0 || size < phys.size {
        // Measured: an object is mapped whole or not at all.
        return Err(CUDA_ERROR_NOT_SUPPORTED);
    }
    let end = va + size;
    match w.space.reservation_of(va) {
        Some((start, r)) if r.owner == Owner::Program && end <= start + r.size => {}
        _ => {
            misuse!("map at {va:#x}, outside any reservation");
            return Err(CUDA_ERROR_INVALID_VALUE);
        }
    }
    if w.space.occupied(va, end) {
        misuse!("map at {va:#x} over a mapping");
        return Err(CUDA_ERROR_INVALID_VALUE);
    }
    w.space.map(va, phys, handle);
    if let Some(entry) = w.handles.get_mut(&handle) {
        entry.maps += 1;
    }
    Ok(())
}

fn unmap(va: u64, size: u64) -> Res {
    let mut w = world();
    let end = va
        .checked_add(size)
        .filter(|_| size > 0)
        .ok_or(CUDA_ERROR_INVALID_VALUE)?;
    if w.space
        .reservation_of(va)
        .is_none_or(|(_, r)| r.owner != Owner::Program)
    {
        misuse!("unmap of {va:#x}, outside any reservation");
        return Err(CUDA_ERROR_INVALID_VALUE);
    }
    let starts = w.space.whole(va, end).map_err(|why| {
        misuse!("unmap of {va:#x}..{end:#x}, which {why}");
        CUDA_ERROR_INVALID_VALUE
    })?;
    if starts.is_empty() {
        // The real driver takes it without a word (measured).
        misuse!("unmap of {va:#x}..{end:#x}, where nothing is mapped");
    }
    w.in_flight_misuse("unmap", va, end);
    for start in starts {
        w.synchronous.remove(&start);
        if let Some(m) = w.space.unmap(start) {
            if let Some(entry) = w.handles.get_mut(&m.handle) {
                entry.maps -= 1;
            }
            w.forget_handle(m.handle);
        }
    }
    Ok(())
}

fn set_access(va: u64, size: u64, descs: In<CUmemAccessDesc>, count: usize) -> Res {
    let end = va
        .checked_add(size)
        .filter(|_| size > 0 && count > 0)
        .ok_or(CUDA_ERROR_INVALID_VALUE)?;
    let descs = descs.many(count)?;
    let mut w = world();
    let starts = w.space.whole(va, end).and_then(|starts| match starts[..] {
        [] => Err("has nothing mapped"),
        _ => Ok(starts),
    });
    let starts = starts.map_err(|why| {
        misuse!("access set on {va:#x}..{end:#x}, which {why}");
        CUDA_ERROR_INVALID_VALUE
    })?;
    if starts
        .iter()
        .any(|start| w.space.mappings[start].handle == 0)
    {
        return Err(CUDA_ERROR_INVALID_VALUE);
    }
    for desc in &descs {
        let rights = match desc.flags {
            0 => 0,
            1 => READ,
            3 => READ_WRITE,
            _ => return Err(CUDA_ERROR_INVALID_VALUE),
        };
        match desc.location.type_ {
            CU_MEM_LOCATION_TYPE_DEVICE => {
                let device =
                    device::check(desc.location.id).map_err(|_| CUDA_ERROR_INVALID_VALUE)?;
                let revoked = starts
                    .iter()
                    .any(|s| w.space.mappings[s].rights[device] & !rights != 0);
                if revoked {
                    w.in_flight_misuse("access revoked", va, end);
                }
                let far = |s: &u64| {
                    let place = w.space.mappings[s].phys.place;
                    matches!(place, Place::Device(owner) if owner != device)
                };
                if !config().peers && starts.iter().any(far) {
                    return Err(CUDA_ERROR_INVALID_VALUE);
                }
                for start in &starts {
                    if let Some(m) = w.space.mappings.get_mut(start) {
                        m.rights[device] = rights;
                    }
                }
            }
            CU_MEM_LOCATION_TYPE_HOST
            | CU_MEM_LOCATION_TYPE_HOST_NUMA
            | CU_MEM_LOCATION_TYPE_HOST_NUMA_CURRENT => {
                // The CPU does not reach VRAM over this link.
                if starts
                    .iter()
                    .any(|s| w.space.mappings[s].phys.place != Place::Host)
                {
                    return Err(CUDA_ERROR_NOT_SUPPORTED);
                }
                for start in &starts {
                    w.space.set_host(*start, rights)?;
                }
            }
            _ => return Err(CUDA_ERROR_INVALID_VALUE),
        }
    }
    Ok(())
}

fn address_free(va: u64, size: u64) -> Res {
    let mut w = world();
    match w.space.reservations.get(&va) {
        Some(r) if r.owner == Owner::Program && r.size == size => {}
        _ => {
            misuse!("address free of {va:#x}, {size} bytes: no such reservation");
            return Err(CUDA_ERROR_INVALID_VALUE);
        }
    }
    if w.space.occupied(va, va + size) {
        misuse!("address free of {va:#x}, which is still mapped");
        return Err(CUDA_ERROR_INVALID_VALUE);
    }
    w.in_flight_misuse("address free", va, va + size);
    w.space.unreserve(va);
    Ok(())
}

fn get_access(va: u64, location: CUmemLocation) -> Res<u64> {
    let w = world();
    let (_, m) = w.space.mapping_of(va).ok_or(CUDA_ERROR_INVALID_VALUE)?;
    match location.type_ {
        // Of memory that the driver maps itself nothing is said (measured).
        CU_MEM_LOCATION_TYPE_DEVICE if m.handle == 0 => Ok(0),
        CU_MEM_LOCATION_TYPE_DEVICE => Ok(u64::from(m.rights[device::check(location.id)?])),
        // It says so of VRAM too, and whatever was set (measured).
        CU_MEM_LOCATION_TYPE_HOST => Ok(3),
        CU_MEM_LOCATION_TYPE_HOST_NUMA => Ok(u64::from(m.host)),
        _ => Err(CUDA_ERROR_INVALID_VALUE),
    }
}

fn reserve(size: u64, align: u64, hint: u64, flags: u64) -> Res<u64> {
    if size == 0
        || !size.is_multiple_of(4096)
        || !(align == 0 || align.is_power_of_two())
        || flags != 0
    {
        return Err(CUDA_ERROR_INVALID_VALUE);
    }
    world().space.reserve(size, align, hint, Owner::Program)
}

api! {
    Sound cuMemAddressReserve { 10020 cuMemAddressReserve Legacy } (va: Out<u64>, size: usize, align: usize, hint: u64, flags: u64) |_f| {
        va.check()?;
        va.set(reserve(size as u64, align as u64, hint, flags)?)
    }
    Sound cuMemAddressFree { 10020 cuMemAddressFree Legacy } (va: u64, size: usize) |_f| { address_free(va, size as u64) }
    Sound cuMemMap { 10020 cuMemMap Legacy } (va: u64, size: usize, offset: usize, handle: CUmemGenericAllocationHandle, flags: u64) |_f| {
        map(va, size as u64, offset as u64, handle, flags)
    }
    Sound cuMemUnmap { 10020 cuMemUnmap Legacy } (va: u64, size: usize) |_f| { unmap(va, size as u64) }
    Sound cuMemSetAccess { 10020 cuMemSetAccess Legacy } (va: u64, size: usize, descs: In<CUmemAccessDesc>, count: usize) |_f| {
        set_access(va, size as u64, descs, count)
    }
    Sound cuMemGetAccess { 10020 cuMemGetAccess Legacy } (flags: Out<u64>, location: In<CUmemLocation>, va: u64) |_f| {
        flags.set(get_access(va, location.get()?)?)
    }
}
