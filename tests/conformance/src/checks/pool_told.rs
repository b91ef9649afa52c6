//! What the driver says of pools and of the memory in them.

use greenboost_abi::*;

use super::pool::{Of, kinds, made, take};
use crate::api::MISSING;
use crate::bench::{Bench, MIB, must};
use crate::told::Told;

fn attribute(b: &Bench, attribute: i32, p: u64) -> (i32, u64) {
    let mut room = [0; 32];
    let code = b.cu.cuPointerGetAttribute(Some(&mut room), attribute, p);
    (
        code,
        u64::from_le_bytes(room[..8].try_into().expect("eight bytes")),
    )
}

/// Attributes that are the same for pool memory wherever it is: number, code and value.
pub(super) fn attributes(told: &Told) {
    let b = Bench::open();
    for of in kinds(&b) {
        let (pool, s) = (made(&b, of), b.stream(1));
        let size = 5 * MIB + 8;
        let (p, small) = (take(&b, pool, size, s), take(&b, pool, 1000, s));
        b.done();
        let device = of == Of::Device;
        for (name, p, size) in [("large", p, size), ("small", small, 1000)] {
            let inside = p + 264;
            let is = |what: &str, number, want| {
                told.is(
                    format!("{of:?}, {name}: {what}"),
                    attribute(&b, number, inside),
                    want,
                );
            };
            let kind = if device {
                CU_MEMORYTYPE_DEVICE
            } else {
                CU_MEMORYTYPE_HOST
            };
            is("CONTEXT", CU_POINTER_ATTRIBUTE_CONTEXT, (0, 0));
            is(
                "MEMORY_TYPE",
                CU_POINTER_ATTRIBUTE_MEMORY_TYPE,
                (0, kind.into()),
            );
            is(
                "DEVICE_POINTER",
                CU_POINTER_ATTRIBUTE_DEVICE_POINTER,
                (0, inside),
            );
            is("IS_MANAGED", CU_POINTER_ATTRIBUTE_IS_MANAGED, (0, 0));
            is(
                "DEVICE_ORDINAL",
                CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL,
                (0, 0),
            );
            is(
                "IS_LEGACY_IPC",
                CU_POINTER_ATTRIBUTE_IS_LEGACY_CUDA_IPC_CAPABLE,
                (0, 0),
            );
            // Of a pool on the host it is an offset (seen on hardware).
            if device {
                is("RANGE_START", CU_POINTER_ATTRIBUTE_RANGE_START_ADDR, (0, p));
            }
            is(
                "RANGE_SIZE",
                CU_POINTER_ATTRIBUTE_RANGE_SIZE,
                (0, size as u64),
            );
            is("MAPPED", CU_POINTER_ATTRIBUTE_MAPPED, (0, 1));
            is("ACCESS_FLAGS", CU_POINTER_ATTRIBUTE_ACCESS_FLAGS, (0, 3));
            is(
                "MEMPOOL",
                CU_POINTER_ATTRIBUTE_MEMPOOL_HANDLE,
                (0, pool as u64),
            );
            let rest = [4, 5, 6, 7, 14, 15, 18, 19, 20, 21].map(|n| (n, attribute(&b, n, inside)));
            told.note(format!("{of:?}, {name} at {p:#x}: {rest:x?}"));
            let (mut base, mut bytes) = (0, 0);
            told.is(
                format!("{of:?}, {name}: cuMemGetAddressRange"),
                (
                    b.cu.cuMemGetAddressRange_v2(Some(&mut base), Some(&mut bytes), inside),
                    base,
                    bytes,
                ),
                (0, p, size),
            );
            told.is(
                format!("{of:?}, {name}: one past the end"),
                attribute(&b, CU_POINTER_ATTRIBUTE_MEMORY_TYPE, p + size as u64).0,
                1,
            );
            told.is(
                format!("{of:?}, {name}: cuIpcGetMemHandle"),
                b.cu.cuIpcGetMemHandle(Some(&mut crate::api::IpcHandle([0; 8])), p),
                1,
            );
        }
        must(b.cu.cuMemFreeAsync(p, s), "cuMemFreeAsync");
        must(b.cu.cuMemFreeAsync(small, s), "cuMemFreeAsync");
        b.done();
        told.is(
            format!("{of:?}: MEMORY_TYPE of what is freed"),
            attribute(&b, CU_POINTER_ATTRIBUTE_MEMORY_TYPE, p).0,
            1,
        );
        must(b.cu.cuMemPoolDestroy(pool), "cuMemPoolDestroy");
    }
}

pub(super) fn choice(told: &Told) {
    let b = Bench::open();
    let (cu, mut given, mut current) = (&b.cu, 0, 0);
    told.is(
        "default",
        cu.cuDeviceGetDefaultMemPool(Some(&mut given), 0),
        0,
    );
    told.is("current", cu.cuDeviceGetMemPool(Some(&mut current), 0), 0);
    told.is("the default is current", current, given);
    told.is(
        "the default is not destroyed",
        cu.cuMemPoolDestroy(given),
        1,
    );
    let of = |p: u64| attribute(&b, CU_POINTER_ATTRIBUTE_MEMPOOL_HANDLE, p);
    let plain = || {
        let mut p = 0;
        must(cu.cuMemAllocAsync(Some(&mut p), MIB, 0), "cuMemAllocAsync");
        let pool = of(p);
        must(cu.cuMemFreeAsync(p, 0), "cuMemFreeAsync");
        pool
    };
    told.is("cuMemAllocAsync comes from it", plain(), (0, given as u64));
    let own = made(&b, Of::Device);
    told.is("cuDeviceSetMemPool", cu.cuDeviceSetMemPool(0, own), 0);
    told.is(
        "cuMemAllocAsync comes from the new one",
        plain(),
        (0, own as u64),
    );
    let here = CUmemLocation {
        type_: CU_MEM_LOCATION_TYPE_DEVICE,
        id: 0,
    };
    let pinned = CU_MEM_ALLOCATION_TYPE_PINNED;
    let mut pool = 0;
    match cu.cuMemGetMemPool(Some(&mut pool), Some(&here), pinned) {
        MISSING | CUDA_ERROR_NOT_SUPPORTED => told.note("no pools by location here"),
        code => {
            told.is("cuMemGetMemPool", (code, pool), (0, own));
            told.is(
                "cuMemGetDefaultMemPool",
                (
                    cu.cuMemGetDefaultMemPool(Some(&mut pool), Some(&here), pinned),
                    pool,
                ),
                (0, given),
            );
            told.is(
                "cuMemSetMemPool",
                (cu.cuMemSetMemPool(Some(&here), pinned, given), plain()),
                (0, (0, given as u64)),
            );
            must(cu.cuDeviceSetMemPool(0, own), "cuDeviceSetMemPool");
            let far = CUmemLocation {
                type_: CU_MEM_LOCATION_TYPE_HOST_NUMA,
                id: b.node,
            };
            let code = cu.cuMemGetDefaultMemPool(Some(&mut pool), Some(&far), pinned);
            told.note(format!("the default pool of the host node: {code}"));
        }
    }
    told.is("destroying the current one", cu.cuMemPoolDestroy(own), 0);
    told.is(
        "makes the default current again",
        (cu.cuDeviceGetMemPool(Some(&mut current), 0), current),
        (0, given),
    );
    b.done();
    told.is(
        "a host pool is not a device's",
        {
            if kinds(&b).contains(&Of::Host) {
                cu.cuDeviceSetMemPool(0, made(&b, Of::Host))
            } else {
                1
            }
        },
        1,
    );
}
