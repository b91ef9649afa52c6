//! NVML: the same devices, seen from outside.
use core::ffi::{c_char, c_int, c_uint, c_ulonglong};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU32, Ordering};

use greenboost_abi::{
    NVML_ERROR_ARGUMENT_VERSION_MISMATCH, NVML_ERROR_INVALID_ARGUMENT, NVML_ERROR_UNINITIALIZED,
    nvmlMemory_t, nvmlMemory_v2, nvmlMemory_v2_t, nvmlProcessInfo_v1_t, nvmlProcessInfo_v2_t,
    nvmlReturn_t,
};

use crate::abi::{Out, Text, put_text};
use crate::config::config;
use crate::gate::trace;
use crate::{device, phys, shared};

const NOT_FOUND: nvmlReturn_t = 6;
const INSUFFICIENT_SIZE: nvmlReturn_t = 7;
const UNKNOWN: nvmlReturn_t = 999;

/// Devices are handed out as this plus their number.
const HANDLE: usize = 0x6e76_6d00;
/// With `FAKE_CUDA_MIG` the devices that CUDA sees are instances; the GPU around each has this plus its number.
const WHOLE: usize = 0x6e76_6e00;
/// So many instances like the one that is seen make up the GPU.
const INSTANCES: u64 = 7;

static USERS: AtomicU32 = AtomicU32::new(0);

type Answer<T = ()> = Result<T, nvmlReturn_t>;

fn enter(name: &'static str, open: bool, call: impl FnOnce() -> Answer) -> nvmlReturn_t {
    let run = || {
        for rule in &config().failures {
            match rule.strike(name, name) {
                None | Some(0) => {}
                Some(code) => return Err(code),
            }
        }
        if open && USERS.load(Ordering::Relaxed) == 0 {
            return Err(NVML_ERROR_UNINITIALIZED);
        }
        call()
    };
    let result = match catch_unwind(AssertUnwindSafe(run)) {
        Ok(Ok(())) => 0,
        Ok(Err(code)) => code,
        Err(_) => UNKNOWN,
    };
    trace(name, result);
    result
}

/// `name open (arguments) { body }`: `open` functions need `nvmlInit` first.
macro_rules! nvml {
    ($($name:ident $open:literal ($($arg:ident : $ty:ty),*) $body:block)*) => {
        $(#[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name($($arg: $ty),*) -> nvmlReturn_t {
            enter(stringify!($name), $open, move || -> Answer { $body })
        })*
    };
}

fn init() -> Answer {
    phys::open_shared();
    USERS.fetch_add(1, Ordering::Relaxed);
    Ok(())
}

fn arg<T>(result: Result<T, i32>) -> Answer<T> {
    result.map_err(|_| NVML_ERROR_INVALID_ARGUMENT)
}

fn check(handle: usize) -> Answer<usize> {
    handle
        .checked_sub(HANDLE)
        .filter(|d| *d < config().devices)
        .ok_or(NVML_ERROR_INVALID_ARGUMENT)
}

/// The number of the GPU with this handle, which is no instance.
fn whole(handle: usize) -> Answer<usize> {
    let base = if config().mig { WHOLE } else { HANDLE };
    handle
        .checked_sub(base)
        .filter(|d| *d < config().devices)
        .ok_or(NVML_ERROR_INVALID_ARGUMENT)
}

fn by_index(index: c_uint, out: Out<usize>) -> Answer {
    if index as usize >= config().devices {
        return Err(NVML_ERROR_INVALID_ARGUMENT);
    }
    let base = if config().mig { WHOLE } else { HANDLE };
    arg(out.set(base + index as usize))
}

/// The UUID of a handle: an instance has its own, which is the one that CUDA says.
fn uuid(handle: usize) -> Answer<String> {
    let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
    let (kind, id) = match (check(handle), config().mig) {
        (Ok(device), true) => ("MIG", device::uuid(device)),
        (Ok(device), false) => ("GPU", device::uuid(device)),
        (Err(_), _) => ("GPU", device::whole_uuid(whole(handle)?)),
    };
    let parts = [&id[..4], &id[4..6], &id[6..8], &id[8..10], &id[10..]].map(hex);
    Ok(format!("{kind}-{}", parts.join("-")))
}

fn text(to: Out<c_char>, room: c_uint, text: &str) -> Answer {
    if to.is_null() {
        return Err(NVML_ERROR_INVALID_ARGUMENT);
    }
    if (room as usize) <= text.len() {
        return Err(INSUFFICIENT_SIZE);
    }
    arg(put_text(to, room as usize, text))
}

fn memory(handle: usize) -> Answer<nvmlMemory_t> {
    let (device, others) = match check(handle) {
        Ok(device) => (device, 0),
        Err(_) => (whole(handle)?, (INSTANCES - 1) * config().vram),
    };
    let (total, free) = (config().vram + others, phys::free(device) + others);
    Ok(nvmlMemory_t {
        total,
        free,
        used: total - free,
    })
}

fn pci(text: Text, out: Out<usize>) -> Answer {
    let device = device::by_bus_id(arg(text.get())?).ok_or(NOT_FOUND)?;
    arg(out.set(HANDLE + device))
}

/// Processes that hold memory of the device, this one included once it uses it: pid and bytes.
fn running(device: usize) -> Vec<(u32, u64)> {
    let own = (std::process::id(), phys::used(device));
    let mut all = shared::holders(device);
    all.extend((own.1 > 0).then_some(own));
    all
}

/// Lists them, as `put` writes the entry at an index. Without room for all none is listed.
fn processes(
    handle: usize,
    count: Out<c_uint>,
    null: bool,
    put: impl Fn(usize, u32, u64) -> Result<(), i32>,
) -> Answer {
    let device = check(handle)?;
    let room = arg(count.get())?;
    let all = running(device);
    arg(count.set(all.len() as c_uint))?;
    if all.len() > room as usize {
        return Err(INSUFFICIENT_SIZE);
    }
    if null && !all.is_empty() {
        return Err(NVML_ERROR_INVALID_ARGUMENT);
    }
    all.iter()
        .enumerate()
        .try_for_each(|(i, (pid, used))| arg(put(i, *pid, *used)))
}

/// As [`processes`], for the entries of the second version.
fn processes_v2(handle: usize, count: Out<c_uint>, infos: Out<nvmlProcessInfo_v2_t>) -> Answer {
    let instance = if config().mig { 1 } else { c_uint::MAX };
    processes(handle, count, infos.is_null(), |i, pid, used| {
        infos.set_at(
            i,
            nvmlProcessInfo_v2_t {
                pid,
                usedGpuMemory: used,
                gpuInstanceId: instance,
                computeInstanceId: instance,
            },
        )
    })
}

fn cuda_version(out: Out<c_int>) -> Answer {
    arg(out.set(config().driver as c_int))
}

nvml! {
    nvmlInit false () { init() }
    nvmlInit_v2 false () { init() }
    nvmlInitWithFlags false (flags: c_uint) {
        let _ = flags;
        init()
    }
    nvmlShutdown true () {
        USERS.fetch_sub(1, Ordering::Relaxed);
        Ok(())
    }
    nvmlDeviceGetCount true (count: Out<c_uint>) { arg(count.set(config().devices as c_uint)) }
    nvmlDeviceGetCount_v2 true (count: Out<c_uint>) { arg(count.set(config().devices as c_uint)) }
    nvmlDeviceGetHandleByIndex true (index: c_uint, out: Out<usize>) { by_index(index, out) }
    nvmlDeviceGetHandleByIndex_v2 true (index: c_uint, out: Out<usize>) { by_index(index, out) }
    nvmlDeviceGetHandleByUUID true (id: Text, out: Out<usize>) {
        let id = arg(id.get())?;
        let handles = (0..config().devices).flat_map(|d| [HANDLE + d, WHOLE + d]);
        let handle = handles.into_iter().find(|h| uuid(*h).is_ok_and(|u| u == id)).ok_or(NOT_FOUND)?;
        arg(out.set(handle))
    }
    nvmlDeviceGetHandleByPciBusId true (id: Text, out: Out<usize>) { pci(id, out) }
    nvmlDeviceGetHandleByPciBusId_v2 true (id: Text, out: Out<usize>) { pci(id, out) }
    nvmlDeviceGetIndex true (handle: usize, index: Out<c_uint>) { arg(index.set(check(handle).or_else(|_| whole(handle))? as c_uint)) }
    nvmlDeviceGetMinorNumber true (handle: usize, minor: Out<c_uint>) { arg(minor.set(whole(handle)? as c_uint)) }
    nvmlDeviceGetUUID true (handle: usize, to: Out<c_char>, room: c_uint) { text(to, room, &uuid(handle)?) }
    nvmlDeviceGetName true (handle: usize, to: Out<c_char>, room: c_uint) {
        check(handle).or_else(|_| whole(handle))?;
        text(to, room, device::NAME)
    }
    nvmlDeviceGetMemoryInfo true (handle: usize, out: Out<nvmlMemory_t>) {
        let now = memory(handle)?;
        arg(out.set(now))
    }
    nvmlDeviceGetMemoryInfo_v2 true (handle: usize, out: Out<nvmlMemory_v2_t>) {
        let now = memory(handle)?;
        if arg(out.get())?.version != nvmlMemory_v2 {
            return Err(NVML_ERROR_ARGUMENT_VERSION_MISMATCH);
        }
        let nvmlMemory_t { total, free, used } = now;
        arg(out.set(nvmlMemory_v2_t { version: nvmlMemory_v2, total, reserved: 0, free, used }))
    }
    nvmlDeviceGetComputeRunningProcesses true (handle: usize, count: Out<c_uint>, infos: Out<nvmlProcessInfo_v1_t>) {
        processes(handle, count, infos.is_null(), |i, pid, used| {
            infos.set_at(i, nvmlProcessInfo_v1_t { pid, usedGpuMemory: used })
        })
    }
    nvmlDeviceGetComputeRunningProcesses_v2 true (handle: usize, count: Out<c_uint>, infos: Out<nvmlProcessInfo_v2_t>) {
        processes_v2(handle, count, infos)
    }
    nvmlDeviceGetComputeRunningProcesses_v3 true (handle: usize, count: Out<c_uint>, infos: Out<nvmlProcessInfo_v2_t>) {
        processes_v2(handle, count, infos)
    }
    nvmlDeviceGetMigMode true (handle: usize, current: Out<c_uint>, pending: Out<c_uint>) {
        whole(handle)?;
        let mode = c_uint::from(config().mig);
        arg(current.set(mode))?;
        arg(pending.set(mode))
    }
    nvmlDeviceIsMigDeviceHandle true (handle: usize, yes: Out<c_uint>) {
        arg(yes.set(c_uint::from(check(handle).is_ok() && config().mig)))
    }
    nvmlDeviceGetMaxMigDeviceCount true (handle: usize, count: Out<c_uint>) {
        whole(handle)?;
        arg(count.set(if config().mig { 7 } else { 0 }))
    }
    nvmlDeviceGetMigDeviceHandleByIndex true (handle: usize, index: c_uint, out: Out<usize>) {
        let device = whole(handle)?;
        if !config().mig || index != 0 {
            return Err(NOT_FOUND);
        }
        arg(out.set(HANDLE + device))
    }
    nvmlDeviceGetDeviceHandleFromMigDeviceHandle true (handle: usize, out: Out<usize>) {
        let device = check(handle)?;
        if !config().mig {
            return Err(NVML_ERROR_INVALID_ARGUMENT);
        }
        arg(out.set(WHOLE + device))
    }
    nvmlDeviceGetCurrPcieLinkGeneration true (handle: usize, out: Out<c_uint>) {
        check(handle)?;
        arg(out.set(config().pcie.generation))
    }
    nvmlDeviceGetCurrPcieLinkWidth true (handle: usize, out: Out<c_uint>) {
        check(handle)?;
        arg(out.set(config().pcie.width))
    }
    nvmlDeviceGetMaxPcieLinkGeneration true (handle: usize, out: Out<c_uint>) {
        check(handle)?;
        arg(out.set(config().pcie.max_generation))
    }
    nvmlDeviceGetMaxPcieLinkWidth true (handle: usize, out: Out<c_uint>) {
        check(handle)?;
        arg(out.set(config().pcie.max_width))
    }
    nvmlDeviceGetCurrentClocksThrottleReasons true (handle: usize, out: Out<c_ulonglong>) {
        check(handle)?;
        arg(out.set(config().throttle))
    }
    nvmlDeviceGetPcieThroughput true (handle: usize, counter: c_uint, out: Out<c_uint>) {
        check(handle)?;
        let sent_and_received = config().traffic;
        // The driver counts for 20 ms before it answers (API documentation; measured: 20.7 ms).
        std::thread::sleep(std::time::Duration::from_millis(20));
        match counter {
            0 => arg(out.set(sent_and_received.0)),
            1 => arg(out.set(sent_and_received.1)),
            _ => Err(NVML_ERROR_INVALID_ARGUMENT),
        }
    }
    nvmlSystemGetDriverVersion true (to: Out<c_char>, room: c_uint) {
        let major = config().driver / 1000;
        text(to, room, match major { 13.. => "580.00.00", 12 => "535.00.00", _ => "470.00.00" })
    }
    nvmlSystemGetCudaDriverVersion false (out: Out<c_int>) { cuda_version(out) }
    nvmlSystemGetCudaDriverVersion_v2 false (out: Out<c_int>) { cuda_version(out) }
}

/// The one function that answers with text.
#[unsafe(no_mangle)]
pub extern "C" fn nvmlErrorString(code: nvmlReturn_t) -> *const c_char {
    let text: &core::ffi::CStr = match code {
        0 => c"Success",
        1 => c"Uninitialized",
        2 => c"Invalid Argument",
        6 => c"Not Found",
        7 => c"Insufficient Size",
        25 => c"Argument version mismatch",
        _ => c"Unknown Error",
    };
    text.as_ptr()
}
