//! One call over several handles.

use crate::bench::{Bench, GRANULE, MIB, access, host_vmm, must};
use crate::told::Told;

pub(super) fn vram(told: &Told) {
    span(told, "V2 V20 V32 V64");
}

pub(super) fn host(told: &Told) {
    span(told, "H2 H20 H32 H64");
}

pub(super) fn mixed(told: &Told) {
    span(told, "V2 H20 V32 H64");
}

fn span(told: &Told, layout: &str) {
    let b = Bench::open();
    if layout.contains('H') && !host_vmm(&b.cu) {
        return told.skip("no host memory in virtual ranges here");
    }
    let cu = &b.cu;
    let set = |what: &str, p: u64, size: usize| {
        told.is(what, cu.cuMemsetD8_v2(p, 1, size), 0);
        told.is(format!("{what}, done"), cu.cuCtxSynchronize(), 0);
    };
    let r = b.closed(layout);
    let at = |mib: usize| r.p + (mib * MIB) as u64;
    told.is(
        "access over all",
        cu.cuMemSetAccess(r.p, r.size, Some(&access(3)), 1),
        0,
    );
    set("memset over all", r.p, r.size);
    told.is("unmap over all", cu.cuMemUnmap(r.p, r.size), 0);
    b.remap(&r);
    told.is(
        "unmap over the second and third",
        cu.cuMemUnmap(at(2), 52 * MIB),
        0,
    );
    told.is(
        "unmap over all, with that hole",
        cu.cuMemUnmap(r.p, r.size),
        0,
    );
    b.remap(&r);
    told.is(
        "unmap that ends inside a handle",
        cu.cuMemUnmap(r.p, 12 * MIB),
        1,
    );
    told.is(
        "unmap of a part of a handle",
        cu.cuMemUnmap(at(54), 32 * MIB),
        1,
    );
    told.is("unmap of 1 MiB", cu.cuMemUnmap(r.p, MIB), 1);
    told.is(
        "access from inside a handle",
        cu.cuMemSetAccess(at(4), 4 * MIB, Some(&access(1)), 1),
        1,
    );
    told.is(
        "access to all again",
        cu.cuMemSetAccess(r.p, r.size, Some(&access(3)), 1),
        0,
    );
    set("memset after what was refused", r.p, r.size);
    must(cu.cuMemUnmap(at(22), 32 * MIB), "cuMemUnmap");
    told.is(
        "access over a hole",
        cu.cuMemSetAccess(r.p, r.size, Some(&access(3)), 1),
        0,
    );
    must(
        cu.cuMemMap(at(22), 32 * MIB, 0, r.chunks[2].handle, 0),
        "cuMemMap",
    );
    told.is(
        "access to the hole, refilled",
        cu.cuMemSetAccess(at(22), 32 * MIB, Some(&access(3)), 1),
        0,
    );
    set("memset over the refilled hole", r.p, r.size);
    told.is(
        "map over a mapping",
        cu.cuMemMap(r.p, 2 * MIB, 0, r.chunks[0].handle, 0),
        1,
    );
    told.is(
        "address free while mapped",
        cu.cuMemAddressFree(r.p, r.size),
        1,
    );
    told.is("unmap over all again", cu.cuMemUnmap(r.p, r.size), 0);
    told.is("unmap of what is not mapped", cu.cuMemUnmap(r.p, r.size), 0);
    told.is(
        "address free of a part",
        cu.cuMemAddressFree(r.p, 2 * MIB),
        1,
    );
    for c in &r.chunks {
        told.is("release", cu.cuMemRelease(c.handle), 0);
    }
    told.is("address free", cu.cuMemAddressFree(r.p, r.size), 0);
}

pub(super) fn handles(told: &Told) {
    let b = Bench::open();
    let r = b.range("V64");
    told.is(
        "release while mapped",
        b.cu.cuMemRelease(r.chunks[0].handle),
        0,
    );
    b.fill(r.p, r.size, 9);
    told.is("still usable", b.wrong(r.p, r.size, 9), 0);
    let mut handle = 0;
    told.is(
        "retain",
        b.cu.cuMemRetainAllocationHandle(Some(&mut handle), r.p + 4096),
        0,
    );
    told.is("unmap", b.cu.cuMemUnmap(r.p, r.size), 0);
    b.map(r.p, r.size, handle);
    told.is(
        "the bytes, mapped again by the retained handle",
        b.wrong(r.p, r.size, 9),
        0,
    );
    told.is("release of it", b.cu.cuMemRelease(handle), 0);
    let free = || {
        let mut free = 0;
        must(b.cu.cuMemGetInfo_v2(Some(&mut free), None), "cuMemGetInfo");
        free
    };
    let before = free();
    told.is("unmap", b.cu.cuMemUnmap(r.p, r.size), 0);
    told.is(
        "the memory comes back with the last mapping",
        free() - before,
        64 * MIB,
    );
    told.is("address free", b.cu.cuMemAddressFree(r.p, r.size), 0);
    // What was unmapped can be reserved again and mapped at once.
    let again = b.reserve(GRANULE);
    b.map(again, GRANULE, b.create(GRANULE, false));
    told.is(
        "memset of a new range",
        b.cu.cuMemsetD8_v2(again, 1, GRANULE),
        0,
    );
    b.done();
}
