//! Sizes, distances and pitches.

use greenboost_abi::*;

use crate::bench::{Bench, GRANULE, MIB, host_vmm, must};
use crate::told::Told;

fn range(b: &Bench, p: u64) -> Result<(u64, usize), i32> {
    let (mut start, mut size) = (0, 0);
    match b
        .cu
        .cuMemGetAddressRange_v2(Some(&mut start), Some(&mut size), p)
    {
        0 => Ok((start, size)),
        code => Err(code),
    }
}

pub(super) fn ranges(told: &Told) {
    let b = Bench::open();
    let sizes = [
        1,
        255,
        256,
        257,
        511,
        512,
        513,
        4096,
        MIB - 1,
        MIB,
        MIB + 1,
        GRANULE - 1,
        GRANULE,
        GRANULE + 1,
        3 * MIB,
        20 * MIB,
        64 * MIB + 1,
    ];
    for size in sizes {
        let p = b.alloc(size);
        let n = size as u64;
        told.is(
            format!("{size}: at its last byte"),
            range(&b, p + n - 1),
            Ok((p, size)),
        );
        told.is(
            format!("{size}: at its size"),
            range(&b, p + n),
            Err(CUDA_ERROR_NOT_FOUND),
        );
        let after = range(&b, p + n + GRANULE as u64);
        told.is(
            format!("{size}: beyond its block"),
            after,
            Err(CUDA_ERROR_NOT_FOUND),
        );
        told.is(format!("{size}: alignment"), p % GRANULE as u64, 0);
        must(b.cu.cuMemFree_v2(p), "cuMemFree");
    }
    told.is("null", range(&b, 0), Err(CUDA_ERROR_NOT_FOUND));
    told.is("0x1234", range(&b, 0x1234), Err(CUDA_ERROR_NOT_FOUND));
    let p = b.alloc(4096);
    let (mut start, mut size) = (0, 0);
    told.is(
        "no size wanted",
        (
            b.cu.cuMemGetAddressRange_v2(Some(&mut start), None, p + 5),
            start,
        ),
        (0, p),
    );
    told.is(
        "no start wanted",
        (
            b.cu.cuMemGetAddressRange_v2(None, Some(&mut size), p + 5),
            size,
        ),
        (0, 4096),
    );
    if host_vmm(&b.cu) {
        let v = b.range("V2 H20");
        let size = |at: usize| range(&b, v.p + at as u64).map(|r| r.1);
        told.is(
            "in the second handle of a mapped range: size",
            size(3 * MIB),
            Ok(20 * MIB),
        );
    }
    let pinned = b.pinned(5000);
    told.is(
        "pinned host memory",
        range(&b, pinned + 8),
        Ok((pinned, 5000)),
    );
    must(b.cu.cuMemFreeHost(pinned), "cuMemFreeHost");
    told.is(
        "after cuMemFreeHost",
        range(&b, pinned + 8),
        Err(CUDA_ERROR_NOT_FOUND),
    );
}

pub(super) fn neighbours(told: &Told) {
    let b = Bench::open();
    let small: Vec<u64> = (0..16).map(|_| b.alloc(1)).collect();
    for pair in small.windows(2) {
        told.is(
            "distance of allocations of one byte",
            pair[1].wrapping_sub(pair[0]),
            512,
        );
    }
    for p in small {
        must(b.cu.cuMemFree_v2(p), "cuMemFree");
    }
    let free = || {
        let mut free = 0;
        must(b.cu.cuMemGetInfo_v2(Some(&mut free), None), "cuMemGetInfo");
        free
    };
    for size in [
        1,
        512,
        MIB,
        GRANULE - 1,
        GRANULE,
        GRANULE + 1,
        3 * MIB,
        20 * MIB,
    ] {
        let before = free();
        let p = b.alloc(size);
        told.is(
            format!("{size}: free memory fell by"),
            before - free(),
            size.next_multiple_of(GRANULE),
        );
        must(b.cu.cuMemFree_v2(p), "cuMemFree");
        told.is(format!("{size}: and came back"), free(), before);
    }
}

pub(super) fn pitch(told: &Told) {
    let b = Bench::open();
    let (mut p, mut pitch) = (0, 0);
    for element in [4, 8, 16] {
        let widths = (1..=2048)
            .step_by(7)
            .chain([65535, 65536, 65537, MIB, MIB + 1]);
        for width in widths {
            let rows = 1 + width % 3;
            let code =
                b.cu.cuMemAllocPitch_v2(Some(&mut p), Some(&mut pitch), width, rows, element);
            let want = width.next_multiple_of(512);
            told.is(
                format!("element {element}, width {width}"),
                (code, pitch),
                (0, want),
            );
            told.is(
                format!("element {element}, width {width}: range"),
                range(&b, p),
                Ok((p, want * rows)),
            );
            must(b.cu.cuMemFree_v2(p), "cuMemFree");
        }
    }
    let mut refused = |width, rows, element| {
        let code =
            b.cu.cuMemAllocPitch_v2(Some(&mut p), Some(&mut pitch), width, rows, element);
        told.is(format!("{width} x {rows} of {element}"), code, 1);
    };
    for element in [0, 1, 2, 3, 32] {
        refused(100, 2, element);
    }
    for (width, rows) in [
        (0, 2),
        (100, 0),
        (0, 0),
        (usize::MAX, 2),
        (1 << 40, 1 << 30),
    ] {
        refused(width, rows, 4);
    }
    told.is(
        "null address",
        b.cu.cuMemAllocPitch_v2(None, Some(&mut pitch), 100, 2, 4),
        1,
    );
    told.is(
        "null pitch",
        b.cu.cuMemAllocPitch_v2(Some(&mut p), None, 100, 2, 4),
        1,
    );
}
