//! Before there is anything: no cuInit, no context.

use greenboost_abi::*;

use crate::api::Driver;
use crate::bench::{self, GRANULE, access, must, prop};
use crate::host::Host;
use crate::told::Told;

/// The same calls, with the answers expected: `[cuMemAlloc(4096), (0), AllocPitch, cuMemFree(0), (0x1234), GetInfo,
/// GetAddressRange, attribute, attributes, TotalMem, CtxSynchronize, cuMemCreate]`.
fn common(cu: &Driver, told: &Told, want: [i32; 12]) {
    let (mut p, mut n, mut m, mut handle) = (0, 0, 0, 0);
    let (plain, mut room) = (Host::new(64).address, [0; 32]);
    let to: *mut [u8; 32] = &mut room;
    let kind = CU_POINTER_ATTRIBUTE_MEMORY_TYPE;
    let got = [
        ("cuMemAlloc(4096)", cu.cuMemAlloc_v2(Some(&mut p), 4096)),
        ("cuMemAlloc(0)", cu.cuMemAlloc_v2(Some(&mut p), 0)),
        (
            "cuMemAllocPitch",
            cu.cuMemAllocPitch_v2(Some(&mut p), Some(&mut n), 100, 2, 4),
        ),
        ("cuMemFree(0)", cu.cuMemFree_v2(0)),
        ("cuMemFree(0x1234)", cu.cuMemFree_v2(0x1234)),
        (
            "cuMemGetInfo",
            cu.cuMemGetInfo_v2(Some(&mut n), Some(&mut m)),
        ),
        (
            "cuMemGetAddressRange",
            cu.cuMemGetAddressRange_v2(Some(&mut p), Some(&mut n), 0x1234),
        ),
        (
            "cuPointerGetAttribute",
            cu.cuPointerGetAttribute(Some(&mut [0; 32]), kind, plain),
        ),
        (
            "cuPointerGetAttributes",
            cu.cuPointerGetAttributes(1, Some(&kind), Some(&to), plain),
        ),
        ("cuDeviceTotalMem", cu.cuDeviceTotalMem_v2(Some(&mut n), 0)),
        ("cuCtxSynchronize", cu.cuCtxSynchronize()),
        (
            "cuMemCreate",
            cu.cuMemCreate(Some(&mut handle), GRANULE, Some(&prop(false, 0)), 0),
        ),
    ];
    for ((name, got), want) in got.into_iter().zip(want) {
        told.is(name, got, want);
    }
}

pub(super) fn before_init(told: &Told) {
    let cu = bench::load();
    common(&cu, told, [CUDA_ERROR_NOT_INITIALIZED; 12]);
    told.is(
        "cuDeviceGetCount",
        cu.cuDeviceGetCount(Some(&mut 0)),
        CUDA_ERROR_NOT_INITIALIZED,
    );
    // The runtime asks for everything before it initialises the driver.
    let mut address = 0;
    let code = cu.cuGetProcAddress(c"cuInit".as_ptr(), Some(&mut address), 11030, 0);
    told.is("cuGetProcAddress(cuInit)", code, 0);
    told.is("the address of cuInit", Some(address), cu.symbol("cuInit"));
    let mut version = 0;
    told.is(
        "cuDriverGetVersion",
        cu.cuDriverGetVersion(Some(&mut version)),
        0,
    );
}

pub(super) fn without_context(told: &Told) {
    let cu = bench::load();
    must(cu.cuInit(0), "cuInit");
    common(&cu, told, [201, 201, 201, 0, 1, 201, 201, 1, 0, 0, 201, 0]);
    let (mut context, mut device) = (1, 0);
    told.is("cuCtxGetCurrent", cu.cuCtxGetCurrent(Some(&mut context)), 0);
    told.is("the current context", context, 0);
    told.is(
        "cuCtxGetDevice",
        cu.cuCtxGetDevice(Some(&mut device)),
        CUDA_ERROR_INVALID_CONTEXT,
    );
}

fn steps(cu: &Driver, told: &Told, when: &str, host: bool) {
    let (mut p, mut handle) = (0, 0);
    let what = if host { "host memory" } else { "VRAM" };
    let prop = prop(host, bench::node(cu));
    let steps = [
        (
            "reserve",
            cu.cuMemAddressReserve(Some(&mut p), GRANULE, 0, 0, 0),
        ),
        (
            "create",
            cu.cuMemCreate(Some(&mut handle), GRANULE, Some(&prop), 0),
        ),
        ("map", cu.cuMemMap(p, GRANULE, 0, handle, 0)),
        ("access", cu.cuMemSetAccess(p, GRANULE, Some(&access(3)), 1)),
        ("unmap", cu.cuMemUnmap(p, GRANULE)),
        ("release", cu.cuMemRelease(handle)),
        ("unreserve", cu.cuMemAddressFree(p, GRANULE)),
    ];
    for (step, code) in steps {
        told.is(format!("{when}, {what}: {step}"), code, 0);
    }
}

pub(super) fn mapping_without_context(told: &Told) {
    let cu = bench::load();
    must(cu.cuInit(0), "cuInit");
    let places: &[bool] = if bench::host_vmm(&cu) {
        &[false, true]
    } else {
        &[false]
    };
    for host in places {
        steps(&cu, told, "no context", *host);
    }
    let mut context = 0;
    must(
        cu.cuDevicePrimaryCtxRetain(Some(&mut context), 0),
        "cuDevicePrimaryCtxRetain",
    );
    for host in places {
        steps(&cu, told, "none current", *host);
    }
}
