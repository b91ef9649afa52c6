//! The program's own virtual memory (XLA allocates all of JAX's this way): a device handle that VRAM has no room for is
//! made on the host, with the same size. Counted for as long as a handle or a mapping holds it.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{c_ulonglong, c_void};
use std::sync::{Mutex, MutexGuard, PoisonError};

use greenboost_abi::*;
use greenboost_wire::ledger::Tier;

use super::memory::counting;
use crate::hooks::real;
use crate::process::{self, Job};
use crate::tier::alloc;
use crate::tier::device::{self, Device};
use crate::tier::map;
use crate::tier::range::{self, Shortage};

/// Physical memory that the program made.
struct Held {
    index: usize,
    tier: Tier,
    bytes: u64,
    /// What the program asked for.
    prop: CUmemAllocationProp,
    /// References by handle: one at creation, one more at each retain.
    handles: u64,
    mappings: u64,
}

// SAFETY: the only pointer in it is the program's `win32HandleMetaData`, which is never followed.
unsafe impl Send for Held {}

#[derive(Default)]
struct Known {
    /// By a number of ours: the driver reuses handle numbers while an older object is still mapped.
    held: HashMap<u64, Held>,
    by_handle: HashMap<CUmemGenericAllocationHandle, u64>,
    /// Mappings by address: bytes, object.
    mapped: BTreeMap<CUdeviceptr, (usize, u64)>,
    next: u64,
}

static KNOWN: Mutex<Option<Known>> = Mutex::new(None);

fn known() -> MutexGuard<'static, Option<Known>> {
    KNOWN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What to give back: device index, tier, bytes.
type Charge = (usize, Tier, u64);

impl Known {
    /// Changes an object's references; returns what to give back when nothing holds it any more.
    fn change(&mut self, object: u64, change: impl FnOnce(&mut Held)) -> Option<Charge> {
        let held = self.held.get_mut(&object)?;
        change(held);
        if held.handles == 0 {
            self.by_handle.retain(|_, o| *o != object);
        }
        if held.handles > 0 || held.mappings > 0 {
            return None;
        }
        self.held
            .remove(&object)
            .map(|h| (h.index, h.tier, h.bytes))
    }

    /// The object mapped at this address.
    fn at(&self, address: CUdeviceptr) -> Option<&Held> {
        let (base, (size, object)) = self.mapped.range(..=address).next_back()?;
        (address - base < *size as u64).then(|| self.held.get(object))?
    }
}

fn give_back(what: Option<Charge>) {
    if let (Some(job), Some((index, tier, bytes))) = (process::job(), what) {
        job.place.release(tier, index, bytes);
    }
}

/// The device of spilled memory that the program mapped itself; `None` for any other address.
pub fn spilled_from(address: CUdeviceptr) -> Option<CUdevice> {
    let known = known();
    let held = known.as_ref()?.at(address)?;
    (held.tier == Tier::Host).then_some(held.prop.location.id)
}

/// Whether any of these bytes are in memory that was made on the host instead.
pub fn on_host(address: CUdeviceptr, bytes: u64) -> bool {
    let known = known();
    let Some(known) = known.as_ref() else {
        return false;
    };
    let end = address.saturating_add(bytes);
    let before = known.mapped.range(..=address).next_back();
    before
        .into_iter()
        .chain(known.mapped.range(address..end))
        .filter(|(base, (size, _))| address < **base + *size as u64)
        .any(|(_, (_, object))| known.held.get(object).is_some_and(|h| h.tier == Tier::Host))
}

/// Replaces `CUresult cuMemCreate(CUmemGenericAllocationHandle *handle, size_t size, const CUmemAllocationProp *prop,
/// unsigned long long flags)`. Charged to the device in `prop`, not to the current one (PITFALLS 15).
///
/// # Safety
/// As for the function it replaces.
pub unsafe fn create(
    out: *mut CUmemGenericAllocationHandle,
    size: usize,
    prop: *const CUmemAllocationProp,
    flags: c_ulonglong,
) -> CUresult {
    // SAFETY: the program's own pointers; null ones are the driver's to refuse.
    unsafe {
        let pass = || real::cuMemCreate(out, size, prop, flags);
        if out.is_null() || prop.is_null() {
            return pass();
        }
        let prop = *prop;
        let on_device = prop.location.type_ == CU_MEM_LOCATION_TYPE_DEVICE;
        let Some((job, device)) = charged_to(prop.location.id).filter(|_| on_device && size > 0)
        else {
            return pass();
        };
        let bytes = size as u64;
        let (tier, host) = match in_vram(job, device, bytes, pass) {
            Ok(CUDA_SUCCESS) => (Tier::Vram, 0),
            Ok(code) => return code,
            Err(why) if !device.can_spill(job) => {
                return alloc::out_of_memory(job, device, bytes, why);
            }
            Err(_) => {
                let make = |node| on_node(out, size, prop, node, flags);
                match range::host_memory(job, device, bytes, make) {
                    Ok(()) => (Tier::Host, bytes),
                    Err(why) => return alloc::out_of_memory(job, device, bytes, why),
                }
            }
        };
        remember(*out, device, tier, bytes, prop);
        alloc::count(job, device, bytes, host);
        CUDA_SUCCESS
    }
}

/// The device that memory at this location is charged to.
fn charged_to(ordinal: CUdevice) -> Option<(&'static Job, &'static Device)> {
    let job = process::live()?;
    let device = device::known(ordinal).or_else(|| {
        let (_, device, _) = counting()?;
        (device.ordinal == ordinal).then_some(device)
    })?;
    Some((job, device))
}

/// Makes the handle in VRAM, if the budget has room. The inner result is the driver's; out of memory is a shortage.
fn in_vram(
    job: &Job,
    device: &Device,
    bytes: u64,
    make: impl Fn() -> CUresult,
) -> Result<CUresult, Shortage> {
    range::reserve(job, device, Tier::Vram, bytes)?;
    let code = make();
    if code != CUDA_SUCCESS {
        job.place.release(Tier::Vram, device.index, bytes);
    }
    match code {
        CUDA_ERROR_OUT_OF_MEMORY => Err(Shortage::Driver),
        code => Ok(code),
    }
}

/// Makes the handle on a host node: as the program wants it, less what only device memory can be.
///
/// # Safety
/// `out` is the program's, not null.
unsafe fn on_node(
    out: *mut CUmemGenericAllocationHandle,
    size: usize,
    mut prop: CUmemAllocationProp,
    node: i32,
    flags: c_ulonglong,
) -> CUresult {
    prop.location = CUmemLocation {
        type_: CU_MEM_LOCATION_TYPE_HOST_NUMA,
        id: node,
    };
    prop.allocFlags = CUmemAllocFlags::default();
    let asked = prop.requestedHandleTypes;
    let mut code = CUDA_ERROR_NOT_SUPPORTED;
    // Host memory may not be exportable in every way that was asked for.
    for types in [
        asked,
        asked & CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR,
        CU_MEM_HANDLE_TYPE_NONE,
    ] {
        prop.requestedHandleTypes = types;
        // SAFETY: the caller's promise.
        code = unsafe { real::cuMemCreate(out, size, &prop, flags) };
        if matches!(code, CUDA_SUCCESS | CUDA_ERROR_OUT_OF_MEMORY) {
            break;
        }
    }
    code
}

fn remember(
    handle: CUmemGenericAllocationHandle,
    device: &Device,
    tier: Tier,
    bytes: u64,
    prop: CUmemAllocationProp,
) {
    let mut known = known();
    let known = known.get_or_insert_default();
    known.next += 1;
    let object = known.next;
    known.by_handle.insert(handle, object);
    let held = Held {
        index: device.index,
        tier,
        bytes,
        prop,
        handles: 1,
        mappings: 0,
    };
    known.held.insert(object, held);
}

/// Replaces `CUresult cuMemGetAllocationPropertiesFromHandle(CUmemAllocationProp *prop, CUmemGenericAllocationHandle
/// handle)`: spilled memory has the properties that were asked for.
///
/// # Safety
/// As for the function it replaces.
pub unsafe fn properties(
    out: *mut CUmemAllocationProp,
    handle: CUmemGenericAllocationHandle,
) -> CUresult {
    let known = known().as_ref().and_then(|k| {
        k.held
            .get(k.by_handle.get(&handle)?)
            .map(|h| (h.tier, h.prop))
    });
    // SAFETY: the program's own call and pointer.
    unsafe {
        match known {
            Some((Tier::Host, prop)) if !out.is_null() => {
                *out = prop;
                CUDA_SUCCESS
            }
            _ => real::cuMemGetAllocationPropertiesFromHandle(out, handle),
        }
    }
}

/// Replaces `CUresult cuMemRelease(CUmemGenericAllocationHandle handle)`.
///
/// # Safety
/// As for the function it replaces.
pub unsafe fn release(handle: CUmemGenericAllocationHandle) -> CUresult {
    // The number is free for reuse as soon as the driver has it back, so our entry changes under the lock first.
    let object = known()
        .as_ref()
        .and_then(|k| k.by_handle.get(&handle).copied());
    let left = object.and_then(|o| {
        known()
            .as_mut()?
            .change(o, |h| h.handles = h.handles.saturating_sub(1))
    });
    // SAFETY: the program's own call.
    let result = unsafe { real::cuMemRelease(handle) };
    give_back(left);
    result
}

/// Replaces `CUresult cuMemMap(CUdeviceptr ptr, size_t size, size_t offset, CUmemGenericAllocationHandle handle, unsigned
/// long long flags)`.
///
/// # Safety
/// As for the function it replaces.
pub unsafe fn map(
    address: CUdeviceptr,
    size: usize,
    offset: usize,
    handle: CUmemGenericAllocationHandle,
    flags: c_ulonglong,
) -> CUresult {
    // SAFETY: the program's own call.
    let result = unsafe { real::cuMemMap(address, size, offset, handle, flags) };
    if result == CUDA_SUCCESS
        && let Some(known) = known().as_mut()
        && let Some(object) = known.by_handle.get(&handle).copied()
    {
        known.mapped.insert(address, (size, object));
        known.change(object, |h| h.mappings += 1);
    }
    result
}

/// Replaces `CUresult cuMemUnmap(CUdeviceptr ptr, size_t size)`.
///
/// # Safety
/// As for the function it replaces.
pub unsafe fn unmap(address: CUdeviceptr, size: usize) -> CUresult {
    // `cuMemAlloc` memory is not the program's to unmap: the driver says so too.
    if process::job().is_some() && map::touches(address, size as u64) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    // SAFETY: the program's own call.
    let result = unsafe { real::cuMemUnmap(address, size) };
    if result == CUDA_SUCCESS {
        let mut gone = Vec::new();
        if let Some(known) = known().as_mut() {
            let end = address.saturating_add(size as u64);
            let objects: Vec<u64> = known
                .mapped
                .extract_if(address..end, |_, _| true)
                .map(|(_, (_, o))| o)
                .collect();
            for object in objects {
                gone.push(known.change(object, |h| h.mappings = h.mappings.saturating_sub(1)));
            }
        }
        gone.into_iter().for_each(give_back);
    }
    result
}

/// Replaces `CUresult cuMemRetainAllocationHandle(CUmemGenericAllocationHandle *handle, void *addr)`.
///
/// # Safety
/// As for the function it replaces.
pub unsafe fn retain(out: *mut CUmemGenericAllocationHandle, address: *mut c_void) -> CUresult {
    // Libraries ask this to tell `cuMemCreate` memory from `cuMemAlloc` memory, which this is to the program.
    if process::job().is_some() && map::find(address as u64).is_some() {
        return CUDA_ERROR_INVALID_VALUE;
    }
    // SAFETY: the program's own call; after a success `out` holds the handle.
    unsafe {
        let result = real::cuMemRetainAllocationHandle(out, address);
        if result == CUDA_SUCCESS
            && let Some(known) = known().as_mut()
        {
            let object = known
                .mapped
                .iter()
                .find(|(at, (size, _))| (address as u64).wrapping_sub(**at) < *size as u64)
                .map(|(_, (_, object))| *object);
            if let Some(object) = object {
                known.by_handle.insert(*out, object);
                known.change(object, |h| h.handles += 1);
            }
        }
        result
    }
}
