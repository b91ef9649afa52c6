//! Handles of physical memory: made, counted, shared between processes.
use core::ffi::{c_int, c_void};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;

use greenboost_abi::{
    CU_MEM_ALLOCATION_TYPE_PINNED, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR,
    CU_MEM_LOCATION_TYPE_DEVICE, CU_MEM_LOCATION_TYPE_HOST, CU_MEM_LOCATION_TYPE_HOST_NUMA,
    CU_MEM_LOCATION_TYPE_HOST_NUMA_CURRENT, CUDA_ERROR_INVALID_DEVICE, CUDA_ERROR_INVALID_VALUE,
    CUDA_ERROR_NOT_PERMITTED, CUDA_ERROR_NOT_SUPPORTED, CUDA_ERROR_UNKNOWN, CUmemAllocFlags,
    CUmemAllocationProp, CUmemGenericAllocationHandle, CUmemLocation,
};

use crate::abi::{In, Out, Res};
use crate::config::config;
use crate::device;
use crate::misuse::misuse;
use crate::phys::{GRANULE, Phys, Place};
use crate::world::{Kind, World, world};

/// `CU_MEM_HANDLE_TYPE_FABRIC`
const FABRIC: c_int = 8;

/// What `cuMemCreate` gave out. Mappings hold the object too: it outlives its handle while mapped.
pub(crate) struct Handle {
    pub phys: Arc<Phys>,
    pub refs: u32,
    /// How many mappings there are of it.
    pub maps: u32,
    pub prop: Prop,
}

/// `CUmemAllocationProp` without its pointer.
#[derive(Clone, Copy)]
pub(crate) struct Prop {
    pub types: c_int,
    pub location: CUmemLocation,
    pub rdma: u8,
    pub usage: u16,
}

fn place(location: CUmemLocation) -> Res<Place> {
    match location.type_ {
        CU_MEM_LOCATION_TYPE_DEVICE => device::check(location.id).map(Place::Device),
        CU_MEM_LOCATION_TYPE_HOST
        | CU_MEM_LOCATION_TYPE_HOST_NUMA
        | CU_MEM_LOCATION_TYPE_HOST_NUMA_CURRENT => {
            if config().driver < 12020 {
                Err(CUDA_ERROR_INVALID_VALUE)
            } else if !config().host_numa {
                Err(CUDA_ERROR_NOT_SUPPORTED)
            } else if location.type_ == CU_MEM_LOCATION_TYPE_HOST_NUMA && location.id != 0 {
                // One node is simulated.
                Err(CUDA_ERROR_INVALID_DEVICE)
            } else {
                Ok(Place::Host)
            }
        }
        _ => Err(CUDA_ERROR_INVALID_VALUE),
    }
}

fn granular(prop: &CUmemAllocationProp) -> Res<Place> {
    if !(0..=CU_MEM_ALLOCATION_TYPE_PINNED).contains(&prop.type_) {
        return Err(CUDA_ERROR_INVALID_VALUE);
    }
    place(prop.location)
}

fn create(size: u64, prop: &CUmemAllocationProp, flags: u64) -> Res<u64> {
    let place = granular(prop)?;
    let exported = prop.requestedHandleTypes != 0;
    // Types beyond descriptors are for machines with a fabric; host memory is not for network adapters, and its current
    // node is a wish that is refused (all measured).
    if prop.requestedHandleTypes & FABRIC != 0 {
        return Err(CUDA_ERROR_NOT_PERMITTED);
    }
    let rdma = place == Place::Host && prop.allocFlags.gpuDirectRDMACapable != 0;
    if rdma
        || prop.type_ != CU_MEM_ALLOCATION_TYPE_PINNED
        || prop.location.type_ == CU_MEM_LOCATION_TYPE_HOST_NUMA_CURRENT
        || prop.requestedHandleTypes & !CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR != 0
    {
        return Err(CUDA_ERROR_INVALID_VALUE);
    }
    if exported && place == Place::Host && !config().host_export {
        return Err(CUDA_ERROR_NOT_SUPPORTED);
    }
    if size == 0 || !size.is_multiple_of(GRANULE) || flags != 0 {
        return Err(CUDA_ERROR_INVALID_VALUE);
    }
    let types = prop.requestedHandleTypes;
    let phys = Phys::new(
        place,
        size,
        types & CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR != 0,
    )?;
    let prop = Prop {
        types,
        location: prop.location,
        rdma: prop.allocFlags.gpuDirectRDMACapable,
        usage: prop.allocFlags.usage,
    };
    let mut w = world();
    let handle = w.fresh(Kind::Memory);
    w.handles.insert(
        handle,
        Handle {
            phys,
            refs: 1,
            maps: 0,
            prop,
        },
    );
    Ok(handle)
}

fn release(handle: u64) -> Res {
    let mut w = world();
    let Some(entry) = w.handles.get_mut(&handle).filter(|entry| entry.refs > 0) else {
        misuse!("release of handle {handle:#x}, which is not held");
        return Err(CUDA_ERROR_INVALID_VALUE);
    };
    entry.refs -= 1;
    w.forget_handle(handle);
    Ok(())
}

impl World {
    /// Drops the handle's entry once it is neither held nor mapped; a mapping keeps its value retainable.
    pub(crate) fn forget_handle(&mut self, handle: u64) {
        if self
            .handles
            .get(&handle)
            .is_some_and(|entry| entry.refs == 0 && entry.maps == 0)
        {
            self.handles.remove(&handle);
        }
    }
}

fn export(to: Out<c_int>, handle: u64, kind: c_int, flags: u64) -> Res {
    let w = world();
    let entry = w
        .handles
        .get(&handle)
        .filter(|e| e.refs > 0)
        .ok_or(CUDA_ERROR_INVALID_VALUE)?;
    if kind != CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR || flags != 0 {
        return Err(CUDA_ERROR_INVALID_VALUE);
    }
    let fd = entry.phys.fd.as_ref().ok_or(CUDA_ERROR_INVALID_VALUE)?;
    // SAFETY: plain call on a descriptor that the object owns.
    let copy = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 0) };
    if copy < 0 {
        return Err(CUDA_ERROR_INVALID_VALUE);
    }
    to.set(copy)
}

fn import(handle: Out<u64>, fd: usize, kind: c_int) -> Res {
    if kind != CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR {
        return Err(CUDA_ERROR_INVALID_VALUE);
    }
    // The descriptor itself travels in the pointer argument, so number 0 is a null pointer (measured).
    let fd = fd as c_int;
    if fd == 0 {
        return Err(CUDA_ERROR_INVALID_VALUE);
    }
    let name = std::fs::read_link(format!("/proc/self/fd/{fd}")).map_err(|_| CUDA_ERROR_UNKNOWN)?;
    let name = name.to_string_lossy().into_owned();
    let tag = name
        .strip_prefix("/memfd:fakecuda-")
        .and_then(|rest| rest.split(' ').next());
    let place = match tag.ok_or(CUDA_ERROR_UNKNOWN)? {
        "h" => Place::Host,
        tag => {
            let ordinal = tag
                .strip_prefix('d')
                .and_then(|d| d.parse().ok())
                .ok_or(CUDA_ERROR_INVALID_VALUE)?;
            Place::Device(device::check(ordinal)?)
        }
    };
    // SAFETY: plain calls on a descriptor that was just seen to be one of ours; the copy has no other owner.
    let (own, size) = unsafe {
        let own = libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 0);
        (own, libc::lseek(fd, 0, libc::SEEK_END))
    };
    if own < 0 || size <= 0 {
        return Err(CUDA_ERROR_INVALID_VALUE);
    }
    // SAFETY: as above.
    let own = unsafe { OwnedFd::from_raw_fd(own) };
    let phys = Phys::imported(place, size as u64, own)?;
    let location = match place {
        Place::Device(d) => CUmemLocation {
            type_: CU_MEM_LOCATION_TYPE_DEVICE,
            id: d as c_int,
        },
        Place::Host => CUmemLocation {
            type_: CU_MEM_LOCATION_TYPE_HOST_NUMA,
            id: 0,
        },
    };
    // What the maker asked for does not travel (measured); it can be exported again.
    let prop = Prop {
        types: 0,
        location,
        rdma: 0,
        usage: 0,
    };
    let mut w = world();
    let value = w.fresh(Kind::Memory);
    w.handles.insert(
        value,
        Handle {
            phys,
            refs: 1,
            maps: 0,
            prop,
        },
    );
    handle.set(value)
}

fn properties(handle: u64) -> Res<CUmemAllocationProp> {
    let w = world();
    let entry = w
        .handles
        .get(&handle)
        .filter(|e| e.refs > 0)
        .ok_or(CUDA_ERROR_INVALID_VALUE)?;
    let flags = CUmemAllocFlags {
        gpuDirectRDMACapable: entry.prop.rdma,
        usage: entry.prop.usage,
        ..CUmemAllocFlags::default()
    };
    Ok(CUmemAllocationProp {
        type_: CU_MEM_ALLOCATION_TYPE_PINNED,
        requestedHandleTypes: entry.prop.types,
        location: entry.prop.location,
        win32HandleMetaData: std::ptr::null_mut(),
        allocFlags: flags,
    })
}

fn retain(va: u64) -> Res<u64> {
    let mut w = world();
    let handle = w
        .space
        .mapping_of(va)
        .map(|(_, m)| m.handle)
        .filter(|h| *h != 0)
        .ok_or(CUDA_ERROR_INVALID_VALUE)?;
    w.handles
        .get_mut(&handle)
        .ok_or(CUDA_ERROR_INVALID_VALUE)?
        .refs += 1;
    Ok(handle)
}

api! {
    Sound cuMemCreate { 10020 cuMemCreate Legacy } (handle: Out<CUmemGenericAllocationHandle>, size: usize, prop: In<CUmemAllocationProp>, flags: u64) |_f| {
        handle.check()?;
        handle.set(create(size as u64, &prop.get()?, flags)?)
    }
    Sound cuMemRelease { 10020 cuMemRelease Legacy } (handle: CUmemGenericAllocationHandle) |_f| { release(handle) }
    Sound cuMemExportToShareableHandle { 10020 cuMemExportToShareableHandle Legacy } (to: Out<c_int>, handle: CUmemGenericAllocationHandle, kind: c_int, flags: u64) |_f| {
        export(to, handle, kind, flags)
    }
    Sound cuMemImportFromShareableHandle { 10020 cuMemImportFromShareableHandle Legacy } (handle: Out<u64>, from: usize, kind: c_int) |_f| {
        import(handle, from, kind)
    }
    Sound cuMemGetAllocationGranularity { 10020 cuMemGetAllocationGranularity Legacy } (bytes: Out<usize>, prop: In<CUmemAllocationProp>, option: c_int) |_f| {
        granular(&prop.get()?)?;
        if !(0..=1).contains(&option) {
            return Err(CUDA_ERROR_INVALID_VALUE);
        }
        bytes.set(GRANULE as usize)
    }
    Sound cuMemGetAllocationPropertiesFromHandle { 10020 cuMemGetAllocationPropertiesFromHandle Legacy } (prop: Out<CUmemAllocationProp>, handle: CUmemGenericAllocationHandle) |_f| {
        prop.set(properties(handle)?)
    }
    Sound cuMemRetainAllocationHandle { 11000 cuMemRetainAllocationHandle Legacy } (handle: Out<u64>, at: *mut c_void) |_f| {
        handle.check()?;
        handle.set(retain(at as u64)?)
    }
}
