//! NVML, seen beside CUDA.

use greenboost_abi::*;

use crate::bench::Bench;
use crate::told::Told;

pub(super) fn memory(told: &Told) {
    let b = Bench::open();
    if b.cu.symbol("nvmlInit_v2").is_none() {
        return told.skip("no NVML here");
    }
    let (mut one, mut two) = (
        nvmlMemory_t::default(),
        nvmlMemory_v2_t {
            version: nvmlMemory_v2,
            ..Default::default()
        },
    );
    let mut device = 0;
    told.is(
        "a handle before nvmlInit",
        b.cu.nvmlDeviceGetHandleByIndex_v2(0, Some(&mut device)),
        NVML_ERROR_UNINITIALIZED,
    );
    told.is("nvmlInit", b.cu.nvmlInit_v2(), NVML_SUCCESS);
    told.is(
        "a handle",
        b.cu.nvmlDeviceGetHandleByIndex_v2(0, Some(&mut device)),
        NVML_SUCCESS,
    );
    told.is(
        "memory",
        b.cu.nvmlDeviceGetMemoryInfo(device, Some(&mut one)),
        NVML_SUCCESS,
    );
    told.is(
        "memory, v2",
        b.cu.nvmlDeviceGetMemoryInfo_v2(device, Some(&mut two)),
        NVML_SUCCESS,
    );
    let (mut free, mut total) = (0, 0);
    told.is(
        "cuMemGetInfo",
        b.cu.cuMemGetInfo_v2(Some(&mut free), Some(&mut total)),
        0,
    );
    told.is(
        "v1: used and free make the total",
        one.used + one.free,
        one.total,
    );
    told.is(
        "v2: used, free and reserved make the total",
        two.used + two.free + two.reserved,
        two.total,
    );
    told.is("both totals", two.total, one.total);
    told.is(
        "CUDA has no more than NVML",
        total as u64 <= one.total,
        true,
    );
    told.is("v2 has no version by mistake", two.version, nvmlMemory_v2);
    let gap = one.total - total as u64;
    told.note(format!(
        "NVML's total is {gap} bytes above CUDA's; v2 reserves {}; not measured before",
        two.reserved
    ));
}
