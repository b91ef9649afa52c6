//! How much memory there is: `cuMemGetInfo`, `cuDeviceTotalMem` and NVML tell one story, that of the budgets.

use std::ffi::c_uint;

use greenboost_abi::*;
use greenboost_wire::ledger::{Ledger, Report, Tier, VramLimit};

use crate::hooks::real;
use crate::tier::device::{self, Host};
use crate::tier::{graphs, later, pools, spare};
use crate::{driver, process};

/// What the program is told, bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Story {
    free: u64,
    total: u64,
}

/// What is known of a device when the program asks.
#[derive(Clone, Copy, Debug)]
struct Facts {
    /// The card's own bytes.
    physical: u64,
    /// What the driver says is free on it.
    free: u64,
    vram_limit: u64,
    vram_used: u64,
    /// Bytes that the shim keeps for reuse; they are free to the program.
    spare: [u64; 2],
    /// The host budget, if allocations may spill: limit and use.
    host: Option<(u64, u64)>,
    /// No limit was asked for.
    unlimited: bool,
}

/// The rule, pure: totals are the budgets; without a VRAM limit of the user's the card's own size counts.
fn tell(report: Report, f: Facts) -> Story {
    let by_limit = f
        .vram_limit
        .saturating_sub(f.vram_used.saturating_sub(f.spare[0]));
    let vram = Story {
        free: by_limit.min(f.free.saturating_add(f.spare[0])),
        total: if f.unlimited {
            f.physical
        } else {
            f.vram_limit
        },
    };
    match (report, f.host) {
        (Report::Extended, Some((limit, used))) => Story {
            free: vram.free + limit.saturating_sub(used.saturating_sub(f.spare[1])),
            total: vram.total + limit,
        },
        _ => vram,
    }
}

/// The story of the device with this ledger index.
fn story(ledger: &Ledger, index: usize, free: u64) -> Story {
    let settings = ledger.settings();
    let entry = ledger.device(index);
    let mine = device::all().find(|d| d.index == index);
    // Before the first allocation it is not known whether spilling works here; it is assumed.
    let spills = settings.spill && mine.is_none_or(|d| d.host != Host::Nowhere);
    let facts = Facts {
        physical: entry.total(),
        free,
        vram_limit: entry.vram_limit(),
        vram_used: ledger.used(Tier::Vram, index),
        spare: [
            mine.map_or(0, |d| {
                d.spare.bytes(Tier::Vram) + d.spare.lent() + later::bytes(d, Tier::Vram)
            }),
            spare::host()
                + device::all()
                    .map(|d| later::bytes(d, Tier::Host))
                    .sum::<u64>(),
        ],
        host: spills.then(|| (settings.ram_limit, ledger.used_host())),
        unlimited: settings.vram_limit == VramLimit::Free,
    };
    tell(settings.report, facts)
}

/// Replaces `CUresult cuMemGetInfo_v2(size_t *free, size_t *total)`.
///
/// # Safety
/// As for the function it replaces.
pub unsafe fn mem_info(free: *mut usize, total: *mut usize) -> CUresult {
    // SAFETY: the program's own call.
    let result = unsafe { real::cuMemGetInfo_v2(free, total) };
    if result != CUDA_SUCCESS {
        return result;
    }
    let told = process::job().and_then(|job| {
        let device = device::get(job, driver::current_device().ok()?).ok()??;
        pools::sync(job, device);
        graphs::count(job, device);
        let (physical_free, _) = driver::mem_info().ok()?;
        Some(story(job.place.ledger(), device.index, physical_free))
    });
    if let Some(told) = told {
        // SAFETY: the driver has just written through those that are not null.
        unsafe {
            if !free.is_null() {
                *free = told.free as usize;
            }
            if !total.is_null() {
                *total = told.total as usize;
            }
        }
    }
    result
}

/// Replaces `CUresult cuDeviceTotalMem_v2(size_t *bytes, CUdevice dev)`. Needs no context.
///
/// # Safety
/// As for the function it replaces.
pub unsafe fn total_mem(out: *mut usize, device: CUdevice) -> CUresult {
    // SAFETY: the program's own call; after a success `out` was good.
    unsafe {
        let result = real::cuDeviceTotalMem_v2(out, device);
        if result == CUDA_SUCCESS
            && let Some(ledger) = process::job().and_then(|_| process::ledger())
            && let Ok(uuid) = driver::device_uuid(device)
            && let Some(index) = device::index(ledger, uuid, *out as u64)
        {
            *out = story(ledger, index, 0).total as usize;
        }
        result
    }
}

/// The story of an NVML device. CUDA may not be initialised, and never be: `nvidia-smi` is such a program.
///
/// # Safety
/// The handle is the program's, from NVML.
unsafe fn nvml_story(device: nvmlDevice_t, total: u64, free: u64) -> Option<Story> {
    let ledger = process::ledger()?;
    // SAFETY: the caller's promise.
    let uuid = unsafe {
        // A GPU that is divided is no device to CUDA; its instances are, and have UUIDs of their own.
        if driver::nvml_is_divided(device) {
            return None;
        }
        driver::nvml_uuid(device)
    }?;
    // NVML's total counts memory that CUDA does not see; CUDA's own comes first where the process has it.
    let index = nvml_known(ledger, uuid).or_else(|| device::index(ledger, uuid, total))?;
    Some(story(ledger, index, free))
}

/// Ledger index of the device with this UUID, if a process of the job uses it or asked for it.
fn nvml_known(ledger: &Ledger, uuid: [u8; 16]) -> Option<usize> {
    ledger
        .devices()
        .find(|(_, d)| d.uuid() == uuid)
        .map(|(index, _)| index)
}

/// What a list of processes says of one: for those of the job the bytes that make up the story's "used", at most the
/// total; for others, and where NVML has no figure, what it says.
fn used_by(ledger: &Ledger, index: usize, pid: u32, said: u64) -> u64 {
    let host = ledger.settings().report == Report::Extended && ledger.settings().spill;
    let held = |tier| ledger.held_by(pid, tier, index);
    match held(Tier::Vram) {
        Some(vram) if said != NVML_VALUE_NOT_AVAILABLE => {
            let host = if host {
                held(Tier::Host).unwrap_or(0)
            } else {
                0
            };
            vram.saturating_add(host).min(story(ledger, index, 0).total)
        }
        _ => said,
    }
}

macro_rules! nvml_processes {
    ($($ours:ident = $real:ident($info:ty);)*) => {$(
        #[doc = concat!("Replaces `", stringify!($real), "`.")]
        ///
        /// # Safety
        /// As for the function it replaces.
        pub unsafe fn $ours(device: nvmlDevice_t, count: *mut c_uint, infos: *mut $info) -> nvmlReturn_t {
            // SAFETY: the program's own call; after a success `infos`, if it is not null, holds `count` entries.
            unsafe {
                let result = real::$real(device, count, infos);
                if result != NVML_SUCCESS || infos.is_null() || count.is_null() {
                    return result;
                }
                let known = process::ledger()
                    .and_then(|ledger| Some((ledger, nvml_known(ledger, driver::nvml_uuid(device)?)?)));
                if let Some((ledger, index)) = known {
                    for info in std::slice::from_raw_parts_mut(infos, *count as usize) {
                        info.usedGpuMemory = used_by(ledger, index, info.pid, info.usedGpuMemory);
                    }
                }
                result
            }
        }
    )*};
}

nvml_processes! {
    nvml_processes_v1 = nvmlDeviceGetComputeRunningProcesses(nvmlProcessInfo_v1_t);
    nvml_processes_v2 = nvmlDeviceGetComputeRunningProcesses_v2(nvmlProcessInfo_v2_t);
    nvml_processes_v3 = nvmlDeviceGetComputeRunningProcesses_v3(nvmlProcessInfo_v2_t);
}

/// Replaces `nvmlReturn_t nvmlDeviceGetMemoryInfo(nvmlDevice_t device, nvmlMemory_t *memory)`.
///
/// # Safety
/// As for the function it replaces.
pub unsafe fn nvml_v1(device: nvmlDevice_t, memory: *mut nvmlMemory_t) -> nvmlReturn_t {
    // SAFETY: the program's own call; after a success `memory` was good.
    unsafe {
        let result = real::nvmlDeviceGetMemoryInfo(device, memory);
        if result == NVML_SUCCESS
            && let Some(told) = nvml_story(device, (*memory).total, (*memory).free)
        {
            (*memory).total = told.total;
            (*memory).free = told.free;
            (*memory).used = told.total.saturating_sub(told.free);
        }
        result
    }
}

/// Replaces `nvmlReturn_t nvmlDeviceGetMemoryInfo_v2(nvmlDevice_t device, nvmlMemory_v2_t *memory)`. The limits are on
/// what programs may have, so nothing of them is reserved for the system.
///
/// # Safety
/// As for the function it replaces.
pub unsafe fn nvml_v2(device: nvmlDevice_t, memory: *mut nvmlMemory_v2_t) -> nvmlReturn_t {
    // SAFETY: the program's own call; after a success `memory` was good.
    unsafe {
        let result = real::nvmlDeviceGetMemoryInfo_v2(device, memory);
        if result == NVML_SUCCESS
            && let Some(told) = nvml_story(device, (*memory).total, (*memory).free)
        {
            (*memory).total = told.total;
            (*memory).reserved = 0;
            (*memory).free = told.free;
            (*memory).used = told.total.saturating_sub(told.free);
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FACTS: Facts = Facts {
        physical: 80,
        free: 70,
        vram_limit: 20,
        vram_used: 5,
        spare: [0, 0],
        host: Some((100, 30)),
        unlimited: false,
    };

    #[test]
    fn the_two_reports() {
        assert_eq!(
            tell(Report::Physical, FACTS),
            Story {
                free: 15,
                total: 20
            }
        );
        assert_eq!(
            tell(Report::Extended, FACTS),
            Story {
                free: 85,
                total: 120
            }
        );
        assert_eq!(
            tell(
                Report::Extended,
                Facts {
                    host: None,
                    ..FACTS
                }
            ),
            Story {
                free: 15,
                total: 20
            }
        );
    }

    #[test]
    fn never_more_free_than_the_card_has() {
        let facts = Facts { free: 3, ..FACTS };
        assert_eq!(tell(Report::Physical, facts).free, 3);
        let facts = Facts {
            free: 3,
            spare: [4, 6],
            ..FACTS
        };
        assert_eq!(tell(Report::Physical, facts).free, 7);
        assert_eq!(tell(Report::Extended, facts).free, 7 + 76);
    }

    #[test]
    fn used_beyond_the_limit_is_nothing_free() {
        let facts = Facts {
            vram_used: 25,
            host: Some((100, 130)),
            ..FACTS
        };
        assert_eq!(
            tell(Report::Extended, facts),
            Story {
                free: 0,
                total: 120
            }
        );
    }

    #[test]
    fn without_a_limit_the_card_is_the_total() {
        let facts = Facts {
            unlimited: true,
            vram_limit: 60,
            ..FACTS
        };
        assert_eq!(
            tell(Report::Physical, facts),
            Story {
                free: 55,
                total: 80
            }
        );
    }
}
