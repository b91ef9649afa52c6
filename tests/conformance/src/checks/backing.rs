//! Ranges whose backing is mixed, shared, or changes.

use std::ptr;

use greenboost_abi::*;

use crate::bench::{Bench, GRANULE, MIB, host_vmm, must};
use crate::host::Host;
use crate::told::Told;

fn open(told: &Told) -> Option<Bench> {
    let b = Bench::open();
    if host_vmm(&b.cu) {
        return Some(b);
    }
    told.skip("no host memory in virtual ranges here");
    None
}

/// A rectangle between two ranges.
pub(super) fn rows(to: u64, from: u64, width: usize, rows: usize, pitch: usize) -> CUDA_MEMCPY2D {
    CUDA_MEMCPY2D {
        srcXInBytes: 0,
        srcY: 0,
        srcMemoryType: CU_MEMORYTYPE_DEVICE,
        srcHost: ptr::null(),
        srcDevice: from,
        srcArray: ptr::null_mut(),
        srcPitch: pitch,
        dstXInBytes: 0,
        dstY: 0,
        dstMemoryType: CU_MEMORYTYPE_DEVICE,
        dstHost: ptr::null_mut(),
        dstDevice: to,
        dstArray: ptr::null_mut(),
        dstPitch: pitch,
        WidthInBytes: width,
        Height: rows,
    }
}

pub(super) fn mixed(told: &Told) {
    let Some(b) = open(told) else { return };
    let (m, flat) = (b.range("V2 H2 V4 H4"), b.alloc(12 * MIB));
    let n = m.size;
    b.fill(m.p, n, 5);
    told.is("a kernel's words", b.wrong(m.p, n, 5), 0);
    for (name, copy) in [("DtoD", 0), ("DtoDAsync", 1), ("2D", 2)] {
        must(b.cu.cuMemsetD8_v2(flat, 0, n), "cuMemsetD8");
        for (to, from, way) in [(flat, m.p, "out of"), (m.p, flat, "into")] {
            let code = match copy {
                0 => b.cu.cuMemcpyDtoD_v2(to, from, n),
                1 => b.cu.cuMemcpyDtoDAsync_v2(to, from, n, 0),
                _ => b.cu.cuMemcpy2D_v2(&rows(to, from, 8192, n / 8192, 8192)),
            };
            told.is(format!("{name} {way} a mixed range"), code, 0);
            told.is(
                format!("{name} {way} a mixed range: bytes"),
                b.wrong(to, n, 5),
                0,
            );
        }
    }
    let block = Host::new(n);
    for (name, host) in [("pageable", block.address), ("pinned", b.pinned(n))] {
        told.is(
            format!("DtoH, {name}"),
            b.cu.cuMemcpyDtoH_v2(host, m.p, n),
            0,
        );
        must(b.cu.cuMemsetD32_v2(m.p, 7, n / 4), "cuMemsetD32");
        told.is(
            format!("HtoD, {name}"),
            b.cu.cuMemcpyHtoD_v2(m.p, host, n),
            0,
        );
        told.is(format!("{name}: bytes"), b.wrong(m.p, n, 5), 0);
        must(b.cu.cuMemsetD32_v2(m.p, 7, n / 4), "cuMemsetD32");
        told.is(
            format!("HtoDAsync, {name}"),
            b.cu.cuMemcpyHtoDAsync_v2(m.p, host, n, 0),
            0,
        );
        told.is(format!("HtoDAsync, {name}: bytes"), b.wrong(m.p, n, 5), 0);
    }
    // Short operations around each seam.
    for seam in [2, 4, 8].map(|mib| m.p + (mib * MIB) as u64) {
        told.is(
            "memset over a seam",
            b.cu.cuMemsetD32_v2(seam - 8, 0x0102_0304, 4),
            0,
        );
        told.is("its end", b.read(seam), Ok(0x0102_0304_0102_0304));
        told.is("its start", b.read(seam - 8), Ok(0x0102_0304_0102_0304));
        told.is(
            "2D memset over a seam",
            b.cu.cuMemsetD2D8_v2(seam - 4096, 4096, 9, 4096, 2),
            0,
        );
        told.is("after it", b.read(seam + 4088), Ok(0x0909_0909_0909_0909));
        b.write(seam - 4, 0x1122_3344_5566_7788);
        told.is(
            "a word over a seam",
            b.read(seam - 4),
            Ok(0x1122_3344_5566_7788),
        );
    }
    // A sum that reads both places and a kernel that reads one range and writes the other.
    b.fill(m.p, n, 1);
    b.fill(flat, n, 1);
    must(
        b.launch("gb_axpy", 0, &[m.p, flat, n as u64 / 8, 0]),
        "gb_axpy",
    );
    told.is("axpy out of VRAM into a mixed range", b.wrong(m.p, n, 1), 0);
    must(
        b.launch("gb_axpy", 0, &[flat, m.p, n as u64 / 8, 0]),
        "gb_axpy",
    );
    told.is(
        "axpy out of a mixed range into VRAM",
        b.wrong(flat, n, 1),
        0,
    );
}

pub(super) fn aliases(told: &Told) {
    let b = Bench::open();
    let places: &[&str] = if host_vmm(&b.cu) {
        &["V8", "H8"]
    } else {
        &["V8"]
    };
    for place in places {
        let first = b.range(place);
        let second = b.reserve(first.size);
        b.map(second, first.size, first.chunks[0].handle);
        for seed in 1..20 {
            let (write, read) = if seed % 2 == 0 {
                (first.p, second)
            } else {
                (second, first.p)
            };
            b.fill(write, first.size, seed);
            b.done();
            told.is(
                format!("{place}: seen through the other address"),
                b.wrong(read, first.size, seed),
                0,
            );
        }
        b.write(first.p + 800, 77);
        told.is(format!("{place}: a word"), b.read(second + 800), Ok(77));
        must(b.cu.cuMemUnmap(first.p, first.size), "cuMemUnmap");
        told.is(
            format!("{place}: one is left"),
            b.read(second + 800),
            Ok(77),
        );
    }
}

/// Copies a range's bytes into another handle by way of an alias, and maps that in place of the old one.
fn replace(b: &Bench, p: u64, size: usize, old: u64, host: bool) -> u64 {
    let (new, alias) = (b.create(size, host), b.reserve(size));
    b.map(alias, size, new);
    must(
        b.cu.cuMemcpyDtoDAsync_v2(alias, p, size, 0),
        "cuMemcpyDtoDAsync",
    );
    b.done();
    must(b.cu.cuMemUnmap(p, size), "cuMemUnmap");
    must(b.cu.cuMemRelease(old), "cuMemRelease");
    b.map(p, size, new);
    must(b.cu.cuMemUnmap(alias, size), "cuMemUnmap");
    must(b.cu.cuMemAddressFree(alias, size), "cuMemAddressFree");
    new
}

pub(super) fn moves(told: &Told) {
    let Some(b) = open(told) else { return };
    let r = b.range("V8");
    b.fill(r.p, r.size, 3);
    let mut handle = r.chunks[0].handle;
    for host in [true, false, true, false] {
        handle = replace(&b, r.p, r.size, handle, host);
        told.is(
            format!("moved, host {host}: bytes"),
            b.wrong(r.p, r.size, 3),
            0,
        );
        let mut room = [0; 32];
        must(
            b.cu.cuPointerGetAttribute(Some(&mut room), CU_POINTER_ATTRIBUTE_MEMORY_TYPE, r.p),
            "attribute",
        );
        told.is(
            "the driver's word for it",
            room[0],
            if host { 1 } else { 2 },
        );
        must(
            b.launch("gb_add", 0, &[r.p, r.size as u64 / 8, 0]),
            "gb_add",
        );
        told.is("a kernel that writes it", b.wrong(r.p, r.size, 3), 0);
    }
}

pub(super) fn graph(told: &Told) {
    let Some(b) = open(told) else { return };
    let (r, out, s) = (b.range("V4"), b.alloc(16), b.stream(1));
    let n = r.size as u64 / 8;
    let (mut graph, mut exec) = (0, 0);
    must(
        b.cu.cuStreamBeginCapture_v2(s, CU_STREAM_CAPTURE_MODE_GLOBAL),
        "cuStreamBeginCapture",
    );
    must(b.launch("gb_fill", s, &[r.p, n, 21]), "gb_fill");
    must(b.cu.cuMemsetD8Async(out, 0, 16, s), "cuMemsetD8Async");
    must(b.launch("gb_check", s, &[r.p, n, 21, out]), "gb_check");
    must(
        b.cu.cuMemcpyDtoDAsync_v2(out + 8, r.p + 80, 8, s),
        "cuMemcpyDtoDAsync",
    );
    must(b.cu.cuMemsetD32Async(r.p, 0, 2, s), "cuMemsetD32Async");
    must(
        b.cu.cuStreamEndCapture(s, Some(&mut graph)),
        "cuStreamEndCapture",
    );
    must(
        b.cu.cuGraphInstantiateWithFlags(Some(&mut exec), graph, 0),
        "cuGraphInstantiate",
    );
    let mut handle = r.chunks[0].handle;
    let mut first = None;
    for host in [false, true, false, true] {
        handle = replace(&b, r.p, r.size, handle, host);
        must(b.cu.cuMemsetD8_v2(r.p, 0xff, r.size), "cuMemsetD8");
        b.write(out, 1);
        b.done();
        told.is(
            format!("launch, host {host}"),
            b.cu.cuGraphLaunch(exec, s),
            0,
        );
        told.is("done", b.cu.cuStreamSynchronize(s), 0);
        told.is("its kernels agree", b.read(out), Ok(0));
        let word = b.read(out + 8);
        told.is(
            "its copy is the same each time",
            word,
            *first.get_or_insert(word),
        );
        told.is("its memset", b.read(r.p), Ok(0));
        told.is(
            "its kernel's words behind it",
            b.wrong(r.p + 8, GRANULE, 22),
            0,
        );
    }
    told.is("destroy", b.cu.cuGraphExecDestroy(exec), 0);
    told.is("destroy", b.cu.cuGraphDestroy(graph), 0);
}

pub(super) fn tables(told: &Told) {
    let Some(b) = open(told) else { return };
    let (r, table) = (b.range("V2 H2"), b.alloc(16));
    let (in_vram, in_host) = (r.p + 8, r.p + GRANULE as u64 + 16);
    must(b.cu.cuMemsetD8_v2(r.p, 0, r.size), "cuMemsetD8");
    b.write(table, in_vram);
    b.write(table + 8, in_host);
    let mut handle = r.chunks[1].handle;
    for round in 1..=3 {
        must(b.launch("gb_deref", 0, &[table, 2, 5]), "gb_deref");
        told.is("in VRAM", b.read(in_vram), Ok(5 * round));
        told.is("in the part that moves", b.read(in_host), Ok(5 * round));
        handle = replace(&b, r.p + GRANULE as u64, GRANULE, handle, round % 2 == 0);
    }
}
