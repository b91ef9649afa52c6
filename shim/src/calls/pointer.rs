//! What a pointer is: spilled memory answers as device memory does (the driver says HOST for it: measured).

use std::ffi::{c_int, c_uint, c_ulonglong, c_void};

use greenboost_abi::*;

use super::{ipc, vmm};
use crate::hooks::real;
use crate::tier::map::{self, Place};
use crate::tier::pools;
use crate::{driver, process};

/// What an address is to the program.
enum Owner {
    /// Inside an allocation of the shim's.
    Shim(Place),
    /// Behind one, where the driver sees memory and the program has none.
    Nobody,
    /// Memory that the program made and mapped itself, on this device for all it knows, and that is on the host.
    Program(CUdevice),
    /// Anything else: the driver answers.
    Driver,
}

fn owner(address: CUdeviceptr) -> Owner {
    if process::job().is_none() {
        return Owner::Driver;
    }
    match map::find(address) {
        Some(place) => Owner::Shim(place),
        None if map::in_padding(address) => Owner::Nobody,
        None => vmm::spilled_from(address).map_or(Owner::Driver, Owner::Program),
    }
}

/// An address that the driver knows nothing of.
const NOWHERE: CUdeviceptr = 0x10;

/// Replaces `CUresult cuMemGetAddressRange_v2(CUdeviceptr *pbase, size_t *psize, CUdeviceptr dptr)`.
///
/// # Safety
/// As for the function it replaces.
pub unsafe fn address_range(
    base: *mut CUdeviceptr,
    size: *mut usize,
    address: CUdeviceptr,
) -> CUresult {
    // SAFETY: the program's own call and pointers; either may be null.
    unsafe {
        // Without a context the driver refuses this one, whatever the address (measured).
        let known = driver::current_context().is_ok_and(|c| !c.is_null());
        match owner(address) {
            Owner::Shim(_) if !known => real::cuMemGetAddressRange_v2(base, size, address),
            Owner::Driver | Owner::Program(_) => real::cuMemGetAddressRange_v2(base, size, address),
            Owner::Nobody => real::cuMemGetAddressRange_v2(base, size, NOWHERE),
            Owner::Shim(place) => {
                if !base.is_null() {
                    *base = place.base;
                }
                if !size.is_null() {
                    *size = place.size as usize;
                }
                CUDA_SUCCESS
            }
        }
    }
}

/// Writes an attribute of an owned address, as the driver has it for `cuMemAlloc` memory (compared on driver 580).
///
/// # Safety
/// `out` has room for the attribute.
unsafe fn answer(
    out: *mut c_void,
    attribute: CUpointer_attribute,
    address: CUdeviceptr,
    place: Place,
) -> CUresult {
    // SAFETY: the type of each attribute is the one of its documentation; the caller's promise.
    unsafe {
        match attribute {
            // Memory of a pool belongs to no context: the allocation has none, so this holds for it too.
            CU_POINTER_ATTRIBUTE_CONTEXT => {
                out.cast::<CUcontext>().write(place.context.0 as CUcontext)
            }
            CU_POINTER_ATTRIBUTE_MEMPOOL_HANDLE => {
                let pool = pools::served_for(place.base).map_or(0, |pool| pool.0);
                out.cast::<CUmemoryPool>().write(pool as CUmemoryPool);
            }
            CU_POINTER_ATTRIBUTE_MEMORY_TYPE => out.cast::<c_uint>().write(CU_MEMORYTYPE_DEVICE),
            CU_POINTER_ATTRIBUTE_DEVICE_POINTER => out.cast::<CUdeviceptr>().write(address),
            // Device memory has no host address.
            CU_POINTER_ATTRIBUTE_HOST_POINTER => return CUDA_ERROR_INVALID_VALUE,
            CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL => out.cast::<CUdevice>().write(place.device),
            CU_POINTER_ATTRIBUTE_RANGE_START_ADDR => out.cast::<CUdeviceptr>().write(place.base),
            CU_POINTER_ATTRIBUTE_RANGE_SIZE => out.cast::<usize>().write(place.size as usize),
            CU_POINTER_ATTRIBUTE_MAPPING_BASE_ADDR => {
                let base = place.mapped.map_or(place.base, |(first, _)| first);
                out.cast::<CUdeviceptr>().write(base);
            }
            CU_POINTER_ATTRIBUTE_MAPPING_SIZE => {
                let size = place
                    .mapped
                    .map_or(place.size, |(first, last)| last - first + 1);
                out.cast::<usize>().write(size as usize);
            }
            // One number for the whole allocation, whatever chunks it has.
            CU_POINTER_ATTRIBUTE_MEMORY_BLOCK_ID => {
                return real::cuPointerGetAttribute(out, attribute, place.base);
            }
            // Whoever wants to know when a buffer is another one keeps something by its address.
            CU_POINTER_ATTRIBUTE_BUFFER_ID => {
                map::tie(address, |ties| ties.fixed = true);
                return real::cuPointerGetAttribute(out, attribute, place.base);
            }
            // Another device is to reach the memory: as on plain memory, synchronous operations wait from here on
            // (measured).
            CU_POINTER_ATTRIBUTE_P2P_TOKENS => {
                // Before the call, as in `range_handle`.
                map::keep(address);
                let result = real::cuPointerGetAttribute(out, attribute, address);
                if result == CUDA_SUCCESS {
                    map::tie(address, |ties| ties.synchronous = true);
                }
                return result;
            }
            CU_POINTER_ATTRIBUTE_SYNC_MEMOPS => {
                out.cast::<c_uint>().write(place.ties.synchronous.into())
            }
            CU_POINTER_ATTRIBUTE_IS_LEGACY_CUDA_IPC_CAPABLE => {
                out.cast::<c_uint>().write(ipc::can_share(place).into())
            }
            // Chunks are made for export, but not for the program's own.
            CU_POINTER_ATTRIBUTE_ALLOWED_HANDLE_TYPES => out.cast::<u64>().write(0),
            // Flags of the memory itself: what is true of this chunk.
            _ => return real::cuPointerGetAttribute(out, attribute, address),
        }
    }
    CUDA_SUCCESS
}

/// Corrects what the driver says of host memory that the program takes for a device's.
///
/// # Safety
/// `out` has room for the attribute.
unsafe fn as_device(out: *mut c_void, attribute: CUpointer_attribute, device: CUdevice) {
    // SAFETY: the types of the attributes; the caller's promise.
    unsafe {
        match attribute {
            CU_POINTER_ATTRIBUTE_MEMORY_TYPE => out.cast::<c_uint>().write(CU_MEMORYTYPE_DEVICE),
            CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL => out.cast::<CUdevice>().write(device),
            _ => {}
        }
    }
}

/// Replaces `CUresult cuPointerGetAttribute(void *data, CUpointer_attribute attribute, CUdeviceptr ptr)`.
///
/// # Safety
/// As for the function it replaces.
pub unsafe fn attribute(
    out: *mut c_void,
    attribute: CUpointer_attribute,
    address: CUdeviceptr,
) -> CUresult {
    // SAFETY: the program's own call and its room for the answer.
    unsafe {
        match owner(address) {
            Owner::Shim(place) if !out.is_null() => answer(out, attribute, address, place),
            Owner::Nobody => real::cuPointerGetAttribute(out, attribute, NOWHERE),
            Owner::Program(device) if !out.is_null() => {
                let result = real::cuPointerGetAttribute(out, attribute, address);
                if result == CUDA_SUCCESS {
                    as_device(out, attribute, device);
                }
                result
            }
            _ => real::cuPointerGetAttribute(out, attribute, address),
        }
    }
}

/// Replaces `CUresult cuPointerSetAttribute(const void *value, CUpointer_attribute attribute, CUdeviceptr ptr)`:
/// `SYNC_MEMOPS`, which the driver refuses for mapped memory (measured: 801), is kept here, see [`super::order`].
///
/// # Safety
/// As for the function it replaces.
pub unsafe fn set_attribute(
    value: *const c_void,
    attribute: CUpointer_attribute,
    address: CUdeviceptr,
) -> CUresult {
    // SAFETY: the program's own call; the value is an unsigned int, says the documentation of the attribute.
    unsafe {
        let ours = attribute == CU_POINTER_ATTRIBUTE_SYNC_MEMOPS
            && !value.is_null()
            && driver::current_context().is_ok_and(|c| !c.is_null())
            && matches!(owner(address), Owner::Shim(_));
        if !ours {
            return real::cuPointerSetAttribute(value, attribute, address);
        }
        let on = value.cast::<c_uint>().read_unaligned() != 0;
        map::tie(address, |ties| {
            ties.synchronous = on;
            ties.fixed |= on;
        });
        CUDA_SUCCESS
    }
}

/// Replaces `CUresult cuMemGetHandleForAddressRange(void *handle, CUdeviceptr dptr, size_t size,
/// CUmemRangeHandleType handleType, unsigned long long flags)`: what another device may reach by it stays where it is.
///
/// # Safety
/// As for the function it replaces.
pub unsafe fn range_handle(
    out: *mut c_void,
    address: CUdeviceptr,
    size: usize,
    kind: c_int,
    flags: c_ulonglong,
) -> CUresult {
    // Before the call: there is no moment at which it could be moved and is known elsewhere.
    if process::job().is_some() {
        map::tie(address, |ties| ties.fixed = true);
        vmm::fix(address);
    }
    // SAFETY: the program's own call.
    unsafe { real::cuMemGetHandleForAddressRange(out, address, size, kind, flags) }
}

/// Replaces `CUresult cuPointerGetAttributes(unsigned int numAttributes, CUpointer_attribute *attributes, void **data,
/// CUdeviceptr ptr)`. It succeeds as a whole; what does not apply is zero.
///
/// # Safety
/// As for the function it replaces.
pub unsafe fn attributes(
    count: c_uint,
    attributes: *mut CUpointer_attribute,
    out: *mut *mut c_void,
    address: CUdeviceptr,
) -> CUresult {
    let owner = owner(address);
    let asked = if matches!(owner, Owner::Nobody) {
        NOWHERE
    } else {
        address
    };
    // SAFETY: the program's own call; after a success the arrays hold `count` entries.
    unsafe {
        let result = real::cuPointerGetAttributes(count, attributes, out, asked);
        if result != CUDA_SUCCESS {
            return result;
        }
        for i in 0..count as usize {
            let (attribute, out) = (*attributes.add(i), *out.add(i));
            match owner {
                Owner::Shim(_) if attribute == CU_POINTER_ATTRIBUTE_HOST_POINTER => {
                    out.cast::<*mut c_void>().write(std::ptr::null_mut());
                }
                // What the driver refused or left as it was stays so.
                Owner::Shim(place) => {
                    let _ = answer(out, attribute, address, place);
                }
                Owner::Program(device) => as_device(out, attribute, device),
                // For what it does not know, the driver says that it is a host address.
                Owner::Nobody if attribute == CU_POINTER_ATTRIBUTE_HOST_POINTER => {
                    out.cast::<CUdeviceptr>().write(address);
                }
                _ => {}
            }
        }
        result
    }
}
