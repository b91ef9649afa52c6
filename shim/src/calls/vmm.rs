//! The program's own virtual memory (XLA allocates all of JAX's this way): a device handle that VRAM has no room for is
//! made on the host, with the same size. Counted for as long as a handle or a mapping holds it.
//!
//! What another process made is counted there: an imported handle is only known here. What is exported stays where it is.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{c_int, c_ulonglong, c_void};
use std::mem::MaybeUninit;
use std::sync::{Mutex, MutexGuard, Once, PoisonError};

use greenboost_abi::*;
use greenboost_wire::ledger::Tier;

use super::memory::counting;
use crate::hooks::real;
use crate::process::{self, Job};
use crate::tier::alloc;
use crate::tier::chunk::GRAIN;
use crate::tier::device::{self, Device};
use crate::tier::map;
use crate::tier::range::{self, Shortage};
use crate::tier::staging::proof;
use crate::tier::{gate, tally};

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
    /// Another process or device may reach it: it is never moved.
    fixed: bool,
}

impl Held {
    /// On the host although a device was asked for.
    fn is_spilled(&self) -> bool {
        self.tier == Tier::Host && self.prop.location.type_ == CU_MEM_LOCATION_TYPE_DEVICE
    }
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

    /// The number of the object mapped at this address.
    fn number_at(&self, address: CUdeviceptr) -> Option<u64> {
        let (base, (size, object)) = self.mapped.range(..=address).next_back()?;
        (address - base < *size as u64).then_some(*object)
    }

    /// The object mapped at this address.
    fn at(&self, address: CUdeviceptr) -> Option<&Held> {
        self.held.get(&self.number_at(address)?)
    }

    fn number_of(&self, handle: CUmemGenericAllocationHandle) -> Option<u64> {
        self.by_handle.get(&handle).copied()
    }
}

fn give_back(what: Option<Charge>) {
    if let (Some(job), Some((index, tier, bytes))) = (process::job(), what) {
        job.place.release(tier, index, bytes);
        tally::number(index, by_tier(tier, bytes), false);
    }
}

fn by_tier(tier: Tier, bytes: u64) -> [u64; 2] {
    match tier {
        Tier::Vram => [bytes, 0],
        Tier::Host => [0, bytes],
    }
}

/// The device of spilled memory that the program mapped itself; `None` for any other address.
pub fn spilled_from(address: CUdeviceptr) -> Option<CUdevice> {
    let known = known();
    let held = known.as_ref()?.at(address)?;
    held.is_spilled().then_some(held.prop.location.id)
}

/// Whether the program has mapped memory here itself.
pub fn is_mapped(address: CUdeviceptr) -> bool {
    known()
        .as_ref()
        .is_some_and(|k| k.number_at(address).is_some())
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
        .any(|(_, (_, object))| known.held.get(object).is_some_and(Held::is_spilled))
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
        let bytes = size as u64;
        // Pinned memory; what the driver itself moves about is its own.
        if prop.type_ != CU_MEM_ALLOCATION_TYPE_PINNED || size == 0 {
            return pass();
        }
        match prop.location.type_ {
            CU_MEM_LOCATION_TYPE_DEVICE => {}
            CU_MEM_LOCATION_TYPE_HOST
            | CU_MEM_LOCATION_TYPE_HOST_NUMA
            | CU_MEM_LOCATION_TYPE_HOST_NUMA_CURRENT => return own_host(out, bytes, prop, pass),
            _ => return pass(),
        }
        let Some((job, device)) = charged_to(prop.location.id) else {
            return pass();
        };
        let (tier, host) = match in_vram(job, device, bytes, pass) {
            Ok(CUDA_SUCCESS) => (Tier::Vram, 0),
            Ok(code) => return code,
            // What only a device can be (backing of sparse arrays, of compressed copies) is made there or not at all.
            Err(why) if !device.can_spill(job) || prop.allocFlags.usage != 0 => {
                return alloc::out_of_memory(job, device, bytes, why);
            }
            Err(_) => {
                let make = |node| on_node(out, size, prop, node, flags);
                match range::host_memory(job, device, bytes, make) {
                    Ok(()) => (Tier::Host, bytes),
                    Err(why) => {
                        return refused(&prop, flags)
                            .unwrap_or_else(|| alloc::out_of_memory(job, device, bytes, why));
                    }
                }
            }
        };
        remember(*out, device, tier, bytes, prop);
        tally::number(device.index, by_tier(tier, bytes), true);
        alloc::count(job, device, bytes, host);
        CUDA_SUCCESS
    }
}

/// What the driver says of such memory on the device itself, if it makes none at all: a handle type that needs more than
/// there is here. Programs ask for the best first and go on to the next (PyTorch: fabric handles, 800 without one).
fn refused(prop: &CUmemAllocationProp, flags: c_ulonglong) -> Option<CUresult> {
    if prop.requestedHandleTypes == CU_MEM_HANDLE_TYPE_NONE {
        return None;
    }
    let mut handle = 0;
    // SAFETY: writes one handle, which nobody else knows and which is given back at once.
    unsafe {
        match real::cuMemCreate(&mut handle, GRAIN as usize, prop, flags) {
            CUDA_SUCCESS => {
                real::cuMemRelease(handle);
                None
            }
            CUDA_ERROR_OUT_OF_MEMORY => None,
            code => Some(code),
        }
    }
}

/// Host memory that the program asks for as such: pinned, so it is charged to the RAM budget (PITFALLS 25).
///
/// # Safety
/// After a success of `make`, `out` points to the handle.
unsafe fn own_host(
    out: *mut CUmemGenericAllocationHandle,
    bytes: u64,
    prop: CUmemAllocationProp,
    make: impl Fn() -> CUresult,
) -> CUresult {
    // It belongs to no device: charged to the current one, else to one that is in use.
    let here = counting().map(|(job, device, _)| (job, device));
    let Some((job, device)) = here.or_else(|| Some((process::live()?, device::all().next()?)))
    else {
        return make();
    };
    if let Err(why) = host_room(job, device, bytes) {
        return alloc::out_of_memory(job, device, bytes, why);
    }
    let code = make();
    if code == CUDA_SUCCESS {
        // SAFETY: the caller's promise.
        remember(unsafe { *out }, device, Tier::Host, bytes, prop);
    } else {
        job.place.release(Tier::Host, device.index, bytes);
    }
    code
}

/// Reserves host memory, if the budget and the machine have room. Without spilling there is no budget.
fn host_room(job: &Job, device: &Device, bytes: u64) -> Result<(), Shortage> {
    if job.place.ledger().settings().spill {
        range::reserve(job, device, Tier::Host, bytes)?;
    } else {
        job.place.charge(Tier::Host, device.index, bytes);
    }
    range::ask_machine(job, bytes, bytes)
        .inspect_err(|_| job.place.release(Tier::Host, device.index, bytes))
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

/// Makes the handle on a host node: as the program wants it, less what only device memory can be (RDMA, compression: both
/// are wishes). One that cannot be exported there as was asked is not made: that is better known now than later.
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
    // SAFETY: the caller's promise.
    let code = unsafe { real::cuMemCreate(out, size, &prop, flags) };
    if code == CUDA_SUCCESS && prop.requestedHandleTypes != CU_MEM_HANDLE_TYPE_NONE {
        tell_importers();
    }
    code
}

/// Its presence in the job's directory says: memory that a process of the job exports may be on the host although it was
/// asked for on a device.
const MADE_ON_HOST: &str = "made-on-host";

/// Leaves word for the processes that will import it. Without it, they are told what the driver says.
fn tell_importers() {
    static TOLD: Once = Once::new();
    TOLD.call_once(|| {
        let path = process::directory().map(|d| d.join(MADE_ON_HOST));
        let _ = path.map(std::fs::File::create);
    });
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
        fixed: false,
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
            .filter(|h| h.is_spilled())
            .map(|h| h.prop)
    });
    // SAFETY: the program's own call and pointer.
    unsafe {
        match known {
            Some(prop) if !out.is_null() => {
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
    // By our own number: the driver may give the handle's to another thread at once.
    let object = known().as_ref().and_then(|k| k.number_of(handle));
    // SAFETY: the program's own call.
    let result = unsafe { real::cuMemRelease(handle) };
    if result == CUDA_SUCCESS
        && let Some(object) = object
    {
        let left = known()
            .as_mut()
            .and_then(|k| k.change(object, |h| h.handles = h.handles.saturating_sub(1)));
        give_back(left);
    }
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
    // Held before the call: another thread may release the handle as soon as it is mapped.
    let object = known().as_mut().and_then(|k| {
        let object = k.number_of(handle)?;
        k.change(object, |h| h.mappings += 1);
        Some(object)
    });
    // SAFETY: the program's own call.
    let result = unsafe { real::cuMemMap(address, size, offset, handle, flags) };
    if result == CUDA_SUCCESS {
        proof::mapped(address, size as u64, true);
    }
    let Some(object) = object else { return result };
    let mut left = None;
    if let Some(known) = known().as_mut() {
        if result == CUDA_SUCCESS {
            known.mapped.insert(address, (size, object));
        } else {
            left = known.change(object, |h| h.mappings = h.mappings.saturating_sub(1));
        }
    }
    give_back(left);
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
    let result = {
        // A search of memory is over, or does not see it any more.
        let _pass = gate::pass();
        proof::mapped(address, size as u64, false);
        // SAFETY: the program's own call.
        unsafe { real::cuMemUnmap(address, size) }
    };
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
            && let Some(object) = known.number_at(address as u64)
        {
            known.by_handle.insert(*out, object);
            known.change(object, |h| h.handles += 1);
        }
        result
    }
}

/// What is mapped at this address stays where it is.
pub fn fix(address: CUdeviceptr) {
    if let Some(known) = known().as_mut()
        && let Some(object) = known.number_at(address)
        && let Some(held) = known.held.get_mut(&object)
    {
        held.fixed = true;
    }
}

fn fix_handle(handle: CUmemGenericAllocationHandle) {
    if let Some(known) = known().as_mut()
        && let Some(object) = known.number_of(handle)
        && let Some(held) = known.held.get_mut(&object)
    {
        held.fixed = true;
    }
}

/// Whether nothing may move the memory mapped at this address.
pub fn is_fixed(address: CUdeviceptr) -> bool {
    known()
        .as_ref()
        .and_then(|k| k.at(address))
        .is_some_and(|h| h.fixed)
}

/// Replaces `CUresult cuMemExportToShareableHandle(void *shareableHandle, CUmemGenericAllocationHandle handle,
/// CUmemAllocationHandleType handleType, unsigned long long flags)`.
///
/// # Safety
/// As for the function it replaces.
pub unsafe fn export(
    out: *mut c_void,
    handle: CUmemGenericAllocationHandle,
    kind: c_int,
    flags: c_ulonglong,
) -> CUresult {
    // Before the call: there is no moment at which it could be moved and is known elsewhere.
    fix_handle(handle);
    // SAFETY: the program's own call.
    unsafe { real::cuMemExportToShareableHandle(out, handle, kind, flags) }
}

/// Replaces `CUresult cuMemImportFromShareableHandle(CUmemGenericAllocationHandle *handle, void *osHandle,
/// CUmemAllocationHandleType shHandleType)`: charged where it was made. What a process of the job may have got on the host
/// instead of on a device is a device's here too.
///
/// # Safety
/// As for the function it replaces.
pub unsafe fn import(
    out: *mut CUmemGenericAllocationHandle,
    from: *mut c_void,
    kind: c_int,
) -> CUresult {
    // SAFETY: the program's own call; after a success `out` holds the handle.
    unsafe {
        let result = real::cuMemImportFromShareableHandle(out, from, kind);
        if result != CUDA_SUCCESS {
            return result;
        }
        let mut prop = MaybeUninit::<CUmemAllocationProp>::zeroed();
        let asked = real::cuMemGetAllocationPropertiesFromHandle(prop.as_mut_ptr(), *out);
        let mut prop = prop.assume_init();
        let made_on_host = || process::directory().is_some_and(|d| d.join(MADE_ON_HOST).exists());
        if asked == CUDA_SUCCESS
            && prop.location.type_ == CU_MEM_LOCATION_TYPE_HOST_NUMA
            && made_on_host()
            && let Some((_, device, _)) = counting()
        {
            prop.location = CUmemLocation {
                type_: CU_MEM_LOCATION_TYPE_DEVICE,
                id: device.ordinal,
            };
            remember(*out, device, Tier::Host, 0, prop);
            fix_handle(*out);
        }
        result
    }
}

/// Replaces `CUresult cuMemSetAccess(CUdeviceptr ptr, size_t size, const CUmemAccessDesc *desc, size_t count)`: `cuMemAlloc`
/// memory is not the program's to open or close, and device memory is not for the CPU, wherever it is: the driver says so
/// too (measured: 1 and 801).
///
/// # Safety
/// As for the function it replaces.
pub unsafe fn set_access(
    address: CUdeviceptr,
    size: usize,
    access: *const CUmemAccessDesc,
    count: usize,
) -> CUresult {
    if process::job().is_some() {
        if map::touches(address, size as u64) {
            return CUDA_ERROR_INVALID_VALUE;
        }
        // SAFETY: the program's array of so many, if there is one.
        let all = (!access.is_null()).then(|| unsafe { std::slice::from_raw_parts(access, count) });
        let for_the_host = |a: &CUmemAccessDesc| {
            !matches!(a.location.type_, 0 | CU_MEM_LOCATION_TYPE_DEVICE) && a.flags != 0
        };
        if all.is_some_and(|all| all.iter().any(for_the_host)) && on_host(address, size as u64) {
            return CUDA_ERROR_NOT_SUPPORTED;
        }
    }
    // SAFETY: the program's own call.
    unsafe { real::cuMemSetAccess(address, size, access, count) }
}
