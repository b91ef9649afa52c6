//! How pool memory ends, and how it leaves the process.

use greenboost_abi::*;

use super::pool::{Of, kinds, made, now, props, take};
use crate::behind::Call;
use crate::bench::{Bench, MIB, must};
use crate::told::Told;

pub(super) fn frees(told: &Told) {
    let b = Bench::open();
    for of in kinds(&b) {
        let (pool, s, t) = (made(&b, of), b.stream(1), b.stream(1));
        let p = take(&b, pool, 4 * MIB, s);
        let free = |p| b.cu.cuMemFreeAsync(p, s);
        told.is(format!("{of:?}: an interior address"), free(p + 512), 1);
        told.is(
            format!("{of:?}: on another stream"),
            b.cu.cuMemFreeAsync(p, t),
            0,
        );
        b.done();
        told.is(format!("{of:?}: again, once it is done"), free(p), 1);
        let p = take(&b, pool, 4 * MIB, s);
        b.spin(s, 100);
        must(free(p), "cuMemFreeAsync");
        told.is(format!("{of:?}: again, while it is queued"), free(p), 1);
        b.done();
        let p = take(&b, pool, 4 * MIB, s);
        b.done();
        told.is(format!("{of:?}: by cuMemFree"), b.cu.cuMemFree_v2(p), 0);
        told.note(format!("{of:?}: used after that: {:?}", now(&b, pool)));
        told.is(
            format!("{of:?}: by cuMemFree, again"),
            b.cu.cuMemFree_v2(p),
            1,
        );
        let p = take(&b, pool, 4 * MIB, s);
        let event = b.event();
        b.spin(s, 200);
        must(b.cu.cuEventRecord(event, s), "cuEventRecord");
        must(b.cu.cuMemFree_v2(p), "cuMemFree");
        told.is(
            format!("{of:?}: cuMemFree of pool memory waits"),
            b.cu.cuEventQuery(event) == 0,
            false,
        );
        b.done();
        must(b.cu.cuMemPoolTrimTo(pool, 0), "cuMemPoolTrimTo");
        // The driver's count of used bytes does not notice cuMemFree.
        told.is(format!("{of:?}: nothing is left"), now(&b, pool).0, 0);
        must(b.cu.cuMemPoolDestroy(pool), "cuMemPoolDestroy");
    }
}

pub(super) fn destroyed(told: &Told) {
    let b = Bench::open();
    for of in kinds(&b) {
        let (pool, s) = (made(&b, of), b.stream(1));
        let p = take(&b, pool, 4 * MIB, s);
        b.done();
        b.fill(p, 4 * MIB, 5);
        told.is(
            format!("{of:?}: destroyed with memory"),
            b.cu.cuMemPoolDestroy(pool),
            0,
        );
        told.is(format!("{of:?}: the memory"), b.wrong(p, 4 * MIB, 5), 0);
        let mut room = [0; 32];
        let code =
            b.cu.cuPointerGetAttribute(Some(&mut room), CU_POINTER_ATTRIBUTE_MEMPOOL_HANDLE, p);
        told.note(format!(
            "{of:?}: its pool is {}",
            match u64::from_le_bytes(room[..8].try_into().expect("eight bytes")) {
                _ if code != 0 => format!("an error, {code}"),
                0 => "none".into(),
                n if n == pool as u64 => "the one destroyed".into(),
                _ => "another".into(),
            }
        ));
        told.is(format!("{of:?}: its free"), b.cu.cuMemFreeAsync(p, s), 0);
        b.done();
        let mut kind = [0; 32];
        told.is(
            format!("{of:?}: then it is gone"),
            b.cu.cuPointerGetAttribute(Some(&mut kind), CU_POINTER_ATTRIBUTE_MEMORY_TYPE, p),
            1,
        );
    }
}

pub(super) fn reset(told: &Told) {
    let mut b = Bench::open();
    let mut memory = Vec::new();
    for of in kinds(&b) {
        let pool = made(&b, of);
        let p = take(&b, pool, 4 * MIB, 0);
        b.fill(p, 4 * MIB, 6);
        memory.push((of, pool, p));
    }
    b.done();
    must(
        b.cu.cuDevicePrimaryCtxReset_v2(0),
        "cuDevicePrimaryCtxReset",
    );
    b.enter();
    for (of, pool, p) in memory {
        let mut kind = [0; 32];
        let known =
            b.cu.cuPointerGetAttribute(Some(&mut kind), CU_POINTER_ATTRIBUTE_MEMORY_TYPE, p);
        told.is(format!("{of:?}: known"), known, 0);
        if known == 0 {
            told.is(format!("{of:?}: the words"), b.wrong(p, 4 * MIB, 6), 0);
            told.is(format!("{of:?}: freed"), b.cu.cuMemFreeAsync(p, 0), 0);
            b.done();
        }
        let mut value = 0;
        let used =
            b.cu.cuMemPoolGetAttribute(pool, CU_MEMPOOL_ATTR_USED_MEM_CURRENT, Some(&mut value));
        told.is(format!("{of:?}: used in the pool"), (used, value), (0, 0));
    }
}

pub(super) fn export(told: &Told) {
    let b = Bench::open();
    let (cu, fd_type) = (&b.cu, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR);
    let (mut fd, mut data) = (-1, [0; 64]);
    let plain = made(&b, Of::Device);
    told.is(
        "a pool that is not exportable",
        cu.cuMemPoolExportToShareableHandle(Some(&mut fd), plain, fd_type, 0),
        1,
    );
    let p = take(&b, plain, MIB, 0);
    told.is(
        "a pointer of such a pool",
        cu.cuMemPoolExportPointer(Some(&mut data), p),
        1,
    );
    let mut pool = 0;
    told.is(
        "cuMemPoolCreate",
        cu.cuMemPoolCreate(Some(&mut pool), Some(&props(Of::Device, 0, fd_type))),
        0,
    );
    told.is(
        "cuMemPoolExportToShareableHandle",
        (
            cu.cuMemPoolExportToShareableHandle(Some(&mut fd), pool, fd_type, 0),
            fd >= 0,
        ),
        (0, true),
    );
    let p = take(&b, pool, MIB, 0);
    b.done();
    told.is(
        "cuMemPoolExportPointer",
        cu.cuMemPoolExportPointer(Some(&mut data), p),
        0,
    );
    told.is(
        "of another kind of memory",
        cu.cuMemPoolExportPointer(Some(&mut data), b.alloc(4096)),
        1,
    );
    let mut other = 0;
    let code = cu.cuMemPoolImportFromShareableHandle(Some(&mut other), fd as usize, fd_type, 0);
    told.note(format!("imported into the same process: {code}"));
    if code == 0 {
        let mut q = 0;
        let code = cu.cuMemPoolImportPointer(Some(&mut q), other, Some(&data));
        told.note(format!("and a pointer: {code}"));
        told.note(format!(
            "an allocation from it: {}",
            cu.cuMemAllocFromPoolAsync(Some(&mut q), MIB, other, 0)
        ));
    }
    must(cu.cuMemFreeAsync(p, 0), "cuMemFreeAsync");
    b.done();
}

pub(super) fn plain(told: &Told) {
    let b = Bench::open();
    let s = b.stream(1);
    for size in [4096, 64 * MIB] {
        let all: Vec<u64> = (0..6).map(|_| b.alloc(size)).collect();
        let next = std::cell::RefCell::new(all);
        let free = || {
            let p = next.borrow_mut().pop().expect("enough for every try");
            b.cu.cuMemFreeAsync(p, s)
        };
        let calls: [(String, Call); 1] = [(format!("{size} bytes"), &free)];
        b.none_waits(told, s, "non-blocking", &calls);
        for p in next.take() {
            must(b.cu.cuMemFree_v2(p), "cuMemFree");
        }
    }
    let p = b.alloc(4 * MIB);
    must(b.cu.cuMemFreeAsync(p, s), "cuMemFreeAsync");
    b.done();
    let mut kind = [0; 32];
    told.is(
        "then it is gone",
        b.cu.cuPointerGetAttribute(Some(&mut kind), CU_POINTER_ATTRIBUTE_MEMORY_TYPE, p),
        1,
    );
    told.is("and not freed again", b.cu.cuMemFree_v2(p), 1);
}
