//! Two devices: who may reach whose memory, and what a free waits for.

use std::ffi::CString;

use greenboost_abi::*;

use crate::bench::{Bench, GRANULE, MIB, must, prop};
use crate::told::Told;

const ALREADY_ENABLED: i32 = 704;
const NOT_ENABLED: i32 = 705;
const UNSUPPORTED: i32 = 217;

pub(super) fn one_device(told: &Told) {
    let b = Bench::open();
    let cu = &b.cu;
    let mut can = 9;
    let code = cu.cuDeviceCanAccessPeer(Some(&mut can), 0, 0);
    told.is("a device and itself", (code, can), (0, 0));
    told.is(
        "a device that is none",
        cu.cuDeviceCanAccessPeer(Some(&mut can), 0, 77),
        101,
    );
    told.is(
        "enable for the own context",
        cu.cuCtxEnablePeerAccess(b.context, 0),
        UNSUPPORTED,
    );
    let mut other = 0;
    must(cu.cuCtxCreate_v2(Some(&mut other), 0, 0), "cuCtxCreate");
    must(cu.cuCtxSetCurrent(b.context), "cuCtxSetCurrent");
    told.is(
        "enable and disable for another context of the device",
        (
            cu.cuCtxEnablePeerAccess(other, 0),
            cu.cuCtxDisablePeerAccess(other),
        ),
        (UNSUPPORTED, NOT_ENABLED),
    );
    told.is(
        "enable for no context",
        cu.cuCtxEnablePeerAccess(0, 0) != 0,
        true,
    );
    told.is("flags", cu.cuCtxEnablePeerAccess(other, 1), 1);
}

pub(super) fn two_devices(told: &Told) {
    let b = Bench::open();
    let cu = &b.cu;
    let (mut count, mut can) = (0, 0);
    must(cu.cuDeviceGetCount(Some(&mut count)), "cuDeviceGetCount");
    if count < 2 || cu.cuDeviceCanAccessPeer(Some(&mut can), 1, 0) != 0 || can == 0 {
        return told.skip("no two devices that reach each other");
    }
    let mut value = 9;
    told.is(
        "P2P access attribute",
        (cu.cuDeviceGetP2PAttribute(Some(&mut value), 2, 1, 0), value),
        (0, 1),
    );
    told.is(
        "P2P attribute of one device",
        cu.cuDeviceGetP2PAttribute(Some(&mut value), 2, 0, 0),
        101,
    );
    // Device 1 in a context of its own, with the kernels in it.
    let mut second = 0;
    must(
        cu.cuDevicePrimaryCtxRetain(Some(&mut second), 1),
        "cuDevicePrimaryCtxRetain",
    );
    let here = |context: usize| must(cu.cuCtxSetCurrent(context), "cuCtxSetCurrent");
    here(second);
    let (mut module, mut function) = (0, 0);
    let ptx = CString::new(include_str!("../../../../assets/selftest.ptx")).expect("no NUL");
    must(
        cu.cuModuleLoadData(Some(&mut module), ptx.as_ptr()),
        "cuModuleLoadData",
    );
    let name = CString::new("gb_spin").expect("no NUL");
    must(
        cu.cuModuleGetFunction(Some(&mut function), module, name.as_ptr()),
        "cuModuleGetFunction",
    );
    let stream = b.stream(1);
    let event = b.event();
    let to = b.alloc(4 * MIB);
    let spin = |ms: u64| {
        let ns = ms * 1_000_000;
        let arguments = [std::ptr::from_ref(&ns)];
        let code = cu.cuLaunchKernel(
            function,
            1,
            1,
            1,
            1,
            1,
            1,
            0,
            stream,
            arguments.as_ptr(),
            std::ptr::null(),
        );
        must(code, "gb_spin");
    };
    spin(1);
    must(cu.cuCtxSynchronize(), "cuCtxSynchronize");

    // Whether a call made in device 0's context returns only after what runs on device 1.
    let waits = |with_copy: bool, from: u64, act: &dyn Fn() -> i32| {
        here(second);
        spin(300);
        if with_copy {
            let code = cu.cuMemcpyPeerAsync(to, second, from, b.context, 4 * MIB, stream);
            must(code, "cuMemcpyPeerAsync");
        }
        must(cu.cuEventRecord(event, stream), "cuEventRecord");
        here(b.context);
        must(act(), "the call behind the kernel");
        here(second);
        let passed = cu.cuEventQuery(event) == 0;
        must(cu.cuCtxSynchronize(), "cuCtxSynchronize");
        here(b.context);
        passed
    };
    here(b.context);
    let p = b.alloc(4 * MIB);
    let copied = waits(true, p, &|| cu.cuMemFree_v2(p));
    told.is(
        "a free waits for another device's copy from the memory",
        copied,
        true,
    );
    let p = b.alloc(4 * MIB);
    let beside = waits(false, p, &|| cu.cuMemFree_v2(p));
    told.note(format!(
        "a free waits for another device's kernel without peer access: {beside}"
    ));

    here(second);
    told.is("enable", cu.cuCtxEnablePeerAccess(b.context, 0), 0);
    told.is(
        "enable twice",
        cu.cuCtxEnablePeerAccess(b.context, 0),
        ALREADY_ENABLED,
    );
    here(b.context);
    let p = b.alloc(4 * MIB);
    let beside = waits(false, p, &|| cu.cuMemFree_v2(p));
    told.note(format!(
        "a free waits for another device's kernel with peer access: {beside}"
    ));
    // A range is open to those it was opened to, whatever is enabled.
    let r = b.range("V2");
    let desc = CUmemAccessDesc {
        location: CUmemLocation {
            type_: CU_MEM_LOCATION_TYPE_DEVICE,
            id: 1,
        },
        flags: 3,
    };
    told.is(
        "a range opened to device 1",
        cu.cuMemSetAccess(r.p, GRANULE, Some(&desc), 1),
        0,
    );
    let mut flags = 0;
    let code = cu.cuMemGetAccess(Some(&mut flags), Some(&desc.location), r.p);
    told.is("its access", (code, flags), (0, 3));
    here(second);
    spin(300);
    must(cu.cuEventRecord(event, stream), "cuEventRecord");
    told.is("disable", cu.cuCtxDisablePeerAccess(b.context), 0);
    told.note(format!(
        "disabling waits for the device's work: {}",
        cu.cuEventQuery(event) == 0
    ));
    told.is(
        "disable twice",
        cu.cuCtxDisablePeerAccess(b.context),
        NOT_ENABLED,
    );
    told.is(
        "memset of the range from device 1",
        cu.cuMemsetD8_v2(r.p, 1, GRANULE),
        0,
    );
    told.is("which is done", cu.cuCtxSynchronize(), 0);
    here(b.context);
    // Copies reach memory of another device without any enabling: allocations, and ranges that are not open to it.
    let (from, to) = (b.alloc(4 * MIB), b.range("V4").p);
    b.fill(from, 4 * MIB, 5);
    b.fill(to, 4 * MIB, 6);
    b.done();
    here(second);
    let far = b.alloc(4 * MIB);
    let size = 4 * MIB;
    for (name, p) in [("an allocation", from), ("a range not open to it", to)] {
        for form in 0..4 {
            // A failure is for good: each is waited for before the next.
            let (form, code) = match form {
                0 => (
                    "cuMemcpyPeerAsync",
                    cu.cuMemcpyPeerAsync(far, second, p, b.context, size, stream),
                ),
                1 => (
                    "cuMemcpyDtoDAsync",
                    cu.cuMemcpyDtoDAsync_v2(far, p, size, stream),
                ),
                2 => ("cuMemcpyAsync", cu.cuMemcpyAsync(far, p, size, stream)),
                _ => ("cuMemcpyDtoD", cu.cuMemcpyDtoD_v2(far, p, size)),
            };
            told.note(format!(
                "{name}, {form}: {code}, then {}",
                cu.cuStreamSynchronize(stream)
            ));
        }
    }
    here(b.context);
    // Memory of the other device, mapped here.
    let mut far = prop(false, 0);
    far.location.id = 1;
    let mut handle = 0;
    told.is(
        "memory of device 1 made here",
        cu.cuMemCreate(Some(&mut handle), GRANULE, Some(&far), 0),
        0,
    );
    let q = b.reserve(GRANULE);
    b.map(q, GRANULE, handle);
    told.is("memset of it", cu.cuMemsetD8_v2(q, 1, GRANULE), 0);
    b.done();
}
