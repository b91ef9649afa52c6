//! Codes.

use greenboost_abi::*;

use crate::api::IpcHandle;
use crate::bench::{Bench, GRANULE, MIB, prop};
use crate::host::Host;
use crate::told::Told;

pub(super) fn frees(told: &Told) {
    let b = Bench::open();
    told.is("cuMemFree(0)", b.cu.cuMemFree_v2(0), 0);
    for size in [4096, 64 * MIB] {
        let p = b.alloc(size);
        let (mut start, mut n) = (0, 0);
        told.is(format!("{size}: interior"), b.cu.cuMemFree_v2(p + 256), 1);
        told.is(format!("{size}: unaligned"), b.cu.cuMemFree_v2(p + 1), 1);
        told.is(
            format!("{size}: one past the end"),
            b.cu.cuMemFree_v2(p + size as u64),
            1,
        );
        told.is(format!("{size}: the address"), b.cu.cuMemFree_v2(p), 0);
        told.is(format!("{size}: again"), b.cu.cuMemFree_v2(p), 1);
        let range =
            b.cu.cuMemGetAddressRange_v2(Some(&mut start), Some(&mut n), p);
        told.is(
            format!("{size}: address range afterwards"),
            range,
            CUDA_ERROR_NOT_FOUND,
        );
        let kind =
            b.cu.cuPointerGetAttribute(Some(&mut [0; 32]), CU_POINTER_ATTRIBUTE_MEMORY_TYPE, p);
        told.is(format!("{size}: attribute afterwards"), kind, 1);
    }
    told.is("host memory", b.cu.cuMemFree_v2(Host::new(64).address), 1);
    told.is("a mapped range", b.cu.cuMemFree_v2(b.range("V2").p), 1);
}

pub(super) fn async_frees(told: &Told) {
    let b = Bench::open();
    told.is("a mapped range", b.cu.cuMemFreeAsync(b.range("V2").p, 0), 1);
    told.is(
        "cuMemAlloc memory",
        b.cu.cuMemFreeAsync(b.alloc(4096), 0),
        0,
    );
    let large = b.alloc(64 * MIB);
    told.is(
        "an interior address",
        b.cu.cuMemFreeAsync(large + 256, 0),
        1,
    );
    told.is("64 MiB", b.cu.cuMemFreeAsync(large, 0), 0);
    b.done();
    let mut p = 0;
    told.is(
        "cuMemAllocAsync",
        b.cu.cuMemAllocAsync(Some(&mut p), 4 * MIB, 0),
        0,
    );
    told.is("and its cuMemFreeAsync", b.cu.cuMemFreeAsync(p, 0), 0);
    b.done();
}

pub(super) fn nulls(told: &Told) {
    let b = Bench::open();
    let (p, mut n, mut room) = (b.alloc(4096), 0, [0; 32]);
    let kind = CU_POINTER_ATTRIBUTE_MEMORY_TYPE;
    let (to, nowhere): (*mut [u8; 32], *mut [u8; 32]) = (&mut room, std::ptr::null_mut());
    told.is(
        "cuMemGetInfo, total",
        b.cu.cuMemGetInfo_v2(Some(&mut n), None),
        0,
    );
    told.is(
        "cuMemGetInfo, free",
        b.cu.cuMemGetInfo_v2(None, Some(&mut n)),
        0,
    );
    told.is("cuMemGetInfo, both", b.cu.cuMemGetInfo_v2(None, None), 0);
    told.is(
        "cuMemGetAddressRange",
        b.cu.cuMemGetAddressRange_v2(None, None, p),
        0,
    );
    told.is("cuMemAlloc(4096)", b.cu.cuMemAlloc_v2(None, 4096), 1);
    told.is("cuMemAlloc(0)", b.cu.cuMemAlloc_v2(None, 0), 1);
    told.is("cuDeviceTotalMem", b.cu.cuDeviceTotalMem_v2(None, 0), 1);
    told.is(
        "cuPointerGetAttribute",
        b.cu.cuPointerGetAttribute(None, kind, p),
        1,
    );
    told.is(
        "cuPointerGetAttributes of none",
        b.cu.cuPointerGetAttributes(0, Some(&kind), Some(&to), p),
        1,
    );
    told.is(
        "cuPointerGetAttributes, list",
        b.cu.cuPointerGetAttributes(1, None, Some(&to), p),
        1,
    );
    told.is(
        "cuPointerGetAttributes, results",
        b.cu.cuPointerGetAttributes(1, Some(&kind), None, p),
        1,
    );
    told.is(
        "cuPointerGetAttributes, a result",
        b.cu.cuPointerGetAttributes(1, Some(&kind), Some(&nowhere), p),
        1,
    );
    told.is("cuMemCreate", b.cu.cuMemCreate(None, GRANULE, None, 0), 1);
}

pub(super) fn refusals(told: &Told) {
    let b = Bench::open();
    let (mut p, mut handle, mut n) = (0, 0, 0);
    told.is("cuMemAlloc(0)", b.cu.cuMemAlloc_v2(Some(&mut p), 0), 1);
    told.is(
        "cuMemAlloc(1 PiB)",
        b.cu.cuMemAlloc_v2(Some(&mut p), 1 << 50),
        CUDA_ERROR_OUT_OF_MEMORY,
    );
    told.is(
        "cuMemAddressReserve(2 MiB + 1)",
        b.cu.cuMemAddressReserve(Some(&mut p), GRANULE + 1, 0, 0, 0),
        1,
    );
    told.is(
        "cuMemAddressReserve, 1 GiB aligned",
        b.cu.cuMemAddressReserve(Some(&mut p), GRANULE, 1 << 30, 0, 0),
        0,
    );
    told.is("its alignment", p % (1 << 30), 0);
    told.is(
        "cuMemAddressReserve(100 GiB)",
        b.cu.cuMemAddressReserve(Some(&mut p), 100 << 30, GRANULE, 0, 0),
        0,
    );
    let places: &[bool] = if crate::bench::host_vmm(&b.cu) {
        &[false, true]
    } else {
        &[false]
    };
    for host in places {
        let (prop, place) = (prop(*host, b.node), if *host { "host" } else { "VRAM" });
        for option in [
            CU_MEM_ALLOC_GRANULARITY_MINIMUM,
            CU_MEM_ALLOC_GRANULARITY_RECOMMENDED,
        ] {
            let code =
                b.cu.cuMemGetAllocationGranularity(Some(&mut n), Some(&prop), option);
            told.is(
                format!("granularity {option}, {place}"),
                (code, n),
                (0, GRANULE),
            );
        }
        told.is(
            format!("cuMemCreate(4096), {place}"),
            b.cu.cuMemCreate(Some(&mut handle), 4096, Some(&prop), 0),
            1,
        );
        let (whole, spare) = (b.create(2 * GRANULE, *host), b.reserve(4 * GRANULE));
        let part = b.cu.cuMemMap(spare, GRANULE, 0, whole, 0);
        told.is(
            format!("map of a part, {place}"),
            part,
            CUDA_ERROR_NOT_SUPPORTED,
        );
        let offset = b.cu.cuMemMap(spare, GRANULE, GRANULE, whole, 0);
        told.is(
            format!("map from an offset, {place}"),
            offset,
            CUDA_ERROR_NOT_SUPPORTED,
        );
        told.is(
            format!("map of the whole, {place}"),
            b.cu.cuMemMap(spare, 2 * GRANULE, 0, whole, 0),
            0,
        );
    }
    let mut ipc = IpcHandle([0; 8]);
    told.is(
        "cuIpcGetMemHandle of a mapped range",
        b.cu.cuIpcGetMemHandle(Some(&mut ipc), b.range("V2").p),
        1,
    );
    told.is(
        "cuMemRetainAllocationHandle of cuMemAlloc memory",
        b.cu.cuMemRetainAllocationHandle(Some(&mut handle), b.alloc(GRANULE)),
        1,
    );
}
