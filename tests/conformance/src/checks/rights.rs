//! Who may use a range, in what sizes it comes, and synchronous operations on it.

use greenboost_abi::*;

use crate::bench::{Bench, GRANULE, MIB, access, host_vmm, must, prop};
use crate::told::Told;

fn place(host: bool) -> &'static str {
    if host { "host" } else { "VRAM" }
}

fn places(b: &Bench) -> Vec<bool> {
    match host_vmm(&b.cu) {
        true => vec![false, true],
        false => vec![false],
    }
}

pub(super) fn granularity(told: &Told) {
    let b = Bench::open();
    let ask = |prop: &CUmemAllocationProp, option| {
        let mut bytes = 0;
        match b
            .cu
            .cuMemGetAllocationGranularity(Some(&mut bytes), Some(prop), option)
        {
            0 => Ok(bytes),
            code => Err(code),
        }
    };
    for host in places(&b) {
        for types in [0, 1] {
            for rdma in [0, 1] {
                let mut prop = prop(host, b.node);
                prop.requestedHandleTypes = types;
                prop.allocFlags.gpuDirectRDMACapable = rdma;
                let what = format!("{}, types {types}, rdma {rdma}", place(host));
                told.is(format!("{what}: minimum"), ask(&prop, 0), Ok(GRANULE));
                told.is(format!("{what}: recommended"), ask(&prop, 1), Ok(GRANULE));
                let mut handle = 0;
                let code = b.cu.cuMemCreate(Some(&mut handle), GRANULE, Some(&prop), 0);
                // Host memory is not for network adapters.
                let wanted = i32::from((host, rdma) == (true, 1));
                told.is(format!("{what}: cuMemCreate"), code, wanted);
                if code == 0 {
                    must(b.cu.cuMemRelease(handle), "cuMemRelease");
                }
            }
        }
    }
    let mut wrong = prop(false, 0);
    told.is("an option that is none", ask(&wrong, 7), Err(1));
    wrong.type_ = 0;
    let mut handle = 0;
    told.is(
        "an allocation type that is none",
        (
            ask(&wrong, 0),
            b.cu.cuMemCreate(Some(&mut handle), GRANULE, Some(&wrong), 0),
        ),
        (Ok(GRANULE), 1),
    );
    let mut other = prop(false, 0);
    other.allocFlags.compressionType = 1;
    told.note(format!("compressible: {:?}", ask(&other, 0)));
    for types in [8, 9] {
        let mut fabric = prop(false, 0);
        fabric.requestedHandleTypes = types;
        let mut handle = 0;
        let code =
            b.cu.cuMemCreate(Some(&mut handle), GRANULE, Some(&fabric), 0);
        told.note(format!(
            "VRAM, types {types} (fabric): cuMemCreate returned {code}"
        ));
        if code == 0 {
            must(b.cu.cuMemRelease(handle), "cuMemRelease");
        }
        if host_vmm(&b.cu) {
            let mut fabric = prop(true, b.node);
            fabric.requestedHandleTypes = types;
            let code =
                b.cu.cuMemCreate(Some(&mut handle), GRANULE, Some(&fabric), 0);
            told.note(format!(
                "host, types {types} (fabric): cuMemCreate returned {code}"
            ));
            if code == 0 {
                must(b.cu.cuMemRelease(handle), "cuMemRelease");
            }
        }
    }
    for (kind, name, wanted) in [(2, "HOST", 0), (4, "HOST_NUMA_CURRENT", 1)] {
        let mut near = prop(false, 0);
        near.location = CUmemLocation { type_: kind, id: 0 };
        let mut handle = 0;
        let code = b.cu.cuMemCreate(Some(&mut handle), GRANULE, Some(&near), 0);
        told.is(
            format!("{name}: granularity, cuMemCreate"),
            (ask(&near, 0), code),
            (Ok(GRANULE), wanted),
        );
        if code == 0 {
            must(b.cu.cuMemRelease(handle), "cuMemRelease");
        }
    }
}

pub(super) fn rights(told: &Told) {
    let b = Bench::open();
    let cu = &b.cu;
    let at = |type_, id| CUmemLocation { type_, id };
    let device = at(CU_MEM_LOCATION_TYPE_DEVICE, 0);
    let cpu = at(CU_MEM_LOCATION_TYPE_HOST, 0);
    let get = |location: CUmemLocation, p: u64| {
        let mut flags = 9;
        match cu.cuMemGetAccess(Some(&mut flags), Some(&location), p) {
            0 => Ok(flags),
            code => Err(code),
        }
    };
    let set = |location: CUmemLocation, flags, p: u64, size: usize| {
        let access = CUmemAccessDesc { location, flags };
        cu.cuMemSetAccess(p, size, Some(&access), 1)
    };
    for host in places(&b) {
        let name = place(host);
        let r = b.closed(if host { "H2 H2" } else { "V2 V2" });
        told.is(
            format!("{name}: before any access"),
            get(device, r.p),
            Ok(0),
        );
        told.is(
            format!("{name}: set on the second"),
            set(device, 3, r.p + GRANULE as u64, GRANULE),
            0,
        );
        told.is(
            format!("{name}: access of both"),
            (get(device, r.p), get(device, r.p + 3 * MIB as u64)),
            (Ok(0), Ok(3)),
        );
        told.is(
            format!("{name}: set on all"),
            set(device, 1, r.p, r.size),
            0,
        );
        told.is(format!("{name}: read only"), get(device, r.p), Ok(1));
        told.is(
            format!("{name}: taken away"),
            set(device, 0, r.p, r.size),
            0,
        );
        told.is(format!("{name}: then"), get(device, r.p), Ok(0));
        told.is(
            format!("{name}: given again"),
            set(device, 3, r.p, r.size),
            0,
        );
        let numa = at(CU_MEM_LOCATION_TYPE_HOST_NUMA, b.node);
        told.is(
            format!("{name}: the host's access, and its node's"),
            (get(cpu, r.p), get(numa, r.p)),
            (Ok(3), Ok(0)),
        );
        // VRAM is not for the CPU.
        let (wanted, then) = match host {
            true => (0, 3),
            false => (CUDA_ERROR_NOT_SUPPORTED, 0),
        };
        told.is(
            format!("{name}: set for its node, for the host"),
            (set(numa, 3, r.p, r.size), set(cpu, 3, r.p, r.size)),
            (wanted, wanted),
        );
        told.is(
            format!("{name}: then"),
            (get(cpu, r.p), get(numa, r.p)),
            (Ok(3), Ok(then)),
        );
        told.is(
            format!("{name}: a device that is none"),
            set(at(CU_MEM_LOCATION_TYPE_DEVICE, 77), 3, r.p, r.size),
            CUDA_ERROR_INVALID_VALUE,
        );
        told.is(
            format!("{name}: flags that are none"),
            set(device, 2, r.p, r.size),
            1,
        );
        told.is(format!("{name}: afterwards"), get(device, r.p), Ok(3));
    }
    told.is("of nothing", get(device, 0x1234), Err(1));
    told.is("of an allocation", get(device, b.alloc(4 * MIB)), Ok(0));
    let p = b.reserve(GRANULE);
    told.is("where nothing is mapped", get(device, p), Err(1));
    told.is(
        "set where nothing is mapped",
        cu.cuMemSetAccess(p, GRANULE, Some(&access(3)), 1),
        1,
    );
}

pub(super) fn sync_memops(told: &Told) {
    let b = Bench::open();
    let cu = &b.cu;
    let set =
        |p: u64, on: u32| cu.cuPointerSetAttribute(Some(&on), CU_POINTER_ATTRIBUTE_SYNC_MEMOPS, p);
    let get = |p: u64| {
        let mut room = [0u8; 32];
        let code = cu.cuPointerGetAttribute(Some(&mut room), CU_POINTER_ATTRIBUTE_SYNC_MEMOPS, p);
        if code == 0 { Ok(room[0]) } else { Err(code) }
    };
    let on = 1;
    told.is(
        "an attribute that cannot be set",
        cu.cuPointerSetAttribute(Some(&on), CU_POINTER_ATTRIBUTE_BUFFER_ID, b.alloc(MIB)),
        1,
    );
    told.is("of nothing", set(0x1234, 1), 1);
    let (p, q) = (b.alloc(4 * MIB), b.alloc(4 * MIB));
    told.is("at first", get(p), Ok(0));
    let fill = |p: u64| move || cu.cuMemsetD8_v2(p, 1, MIB);
    let copy = |to: u64, from: u64| move || cu.cuMemcpyDtoD_v2(to, from, MIB);
    told.is(
        "before it is set, a memset waits",
        b.waits(0, false, &fill(p)),
        false,
    );
    told.is("set, at an address inside", set(p + 4096, 1), 0);
    told.is("then", get(p), Ok(1));
    told.is("a memset waits", b.waits(0, true, &fill(p)), true);
    told.is("a copy to it waits", b.waits(0, true, &copy(p, q)), true);
    told.is("a copy from it waits", b.waits(0, true, &copy(q, p)), true);
    told.is(
        "a copy beside it waits",
        b.waits(0, false, &copy(q, q + 2 * MIB as u64)),
        false,
    );
    told.is("cleared", set(p, 0), 0);
    told.is("then", get(p), Ok(0));
    told.is(
        "a memset waits once it is cleared",
        b.waits(0, false, &fill(p)),
        false,
    );
    for layout in ["V4", "H4"] {
        if layout == "H4" && !host_vmm(cu) {
            continue;
        }
        let r = b.range(layout);
        told.is(format!("{layout}: at first"), get(r.p), Ok(0));
        told.is(
            format!("{layout}: set"),
            set(r.p, 1),
            CUDA_ERROR_NOT_SUPPORTED,
        );
        told.is(format!("{layout}: then"), get(r.p), Ok(0));
        let mut tokens = [0u8; 32];
        let code =
            cu.cuPointerGetAttribute(Some(&mut tokens), CU_POINTER_ATTRIBUTE_P2P_TOKENS, r.p);
        told.is(
            format!("{layout}: tokens"),
            code,
            if layout == "V4" { 0 } else { 1 },
        );
        if code == 0 {
            told.is(format!("{layout}: asked for tokens"), get(r.p), Ok(1));
            // The attribute is set, and has no effect.
            told.is(
                format!("{layout}: a memset then waits"),
                b.waits(0, false, &fill(r.p)),
                false,
            );
        }
    }
    let fresh = b.alloc(4 * MIB);
    let mut tokens = [0u8; 32];
    let code = cu.cuPointerGetAttribute(Some(&mut tokens), CU_POINTER_ATTRIBUTE_P2P_TOKENS, fresh);
    told.is("tokens of an allocation", code, 0);
    told.is("asked for tokens", get(fresh), Ok(1));
    told.is("a memset then waits", b.waits(0, true, &fill(fresh)), true);
}
