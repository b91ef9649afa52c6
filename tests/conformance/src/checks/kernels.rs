//! The shim's own kernels (`assets/shim.ptx`): what they find, and how fast. On the simulated driver its own versions run.

use std::ffi::CString;
use std::ops::Range;
use std::time::{Duration, Instant};

use greenboost_abi::{CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, CUDA_ERROR_NOT_SUPPORTED};

use super::kernels_hash::hash as twin;
use super::kernels_input::{Area, Input};
use crate::api::{MISSING, TensorMap};
use crate::bench::{Bench, MIB, host_vmm, must};
use crate::host::Host;
use crate::told::Told;

const PTX: &str = include_str!("../../../../assets/shim.ptx");
/// What the kernels are compiled for.
const THREADS: u32 = 256;
/// Where the ranges that are looked for begin, and their distance and size: nothing is there.
const FIRST: u64 = 0x2b67_0000_0000;
const APART: u64 = 1 << 28;
const WIDE: u64 = 1 << 26;

/// The kernels, in the context of a bench.
struct Ours {
    b: Bench,
    scan: usize,
    hash: usize,
}

/// The arguments of a scan, in memory.
struct Prepared {
    arguments: [u64; 5],
    ranges: usize,
    memory: [u64; 2],
}

impl Ours {
    fn open() -> Ours {
        let b = Bench::open();
        let (text, mut module) = (CString::new(PTX).expect("no NUL"), 0);
        let code = b.cu.cuModuleLoadData(Some(&mut module), text.as_ptr());
        must(code, "cuModuleLoadData");
        let function = |name: &str| {
            let (name, mut function) = (CString::new(name).expect("no NUL"), 0);
            let code =
                b.cu.cuModuleGetFunction(Some(&mut function), module, name.as_ptr());
            must(code, "cuModuleGetFunction");
            function
        };
        let (scan, hash) = (function("greenboost_scan"), function("greenboost_hash"));
        Ours { b, scan, hash }
    }

    fn launch(&self, function: usize, blocks: u32, arguments: &[u64]) {
        let pointers: Vec<*const u64> = arguments.iter().map(std::ptr::from_ref).collect();
        let none = std::ptr::null();
        let code = self.b.cu.cuLaunchKernel(
            function,
            blocks,
            1,
            1,
            THREADS,
            1,
            1,
            0,
            0,
            pointers.as_ptr(),
            none,
        );
        must(code, "cuLaunchKernel");
    }

    fn download(&self, p: u64, bytes: usize) -> Host {
        let host = Host::new(bytes);
        must(
            self.b.cu.cuMemcpyDtoH_v2(host.address, p, bytes),
            "cuMemcpyDtoH",
        );
        host
    }

    fn tell(&self, areas: &[Area], table: &[Range<u64>]) -> Prepared {
        let input = Input::new(areas, table).expect("a table in order");
        let host = Host::new(8 * input.words.len());
        (0..).zip(&input.words).for_each(|(i, w)| host.set(i, *w));
        let at = self.b.alloc(8 * input.words.len());
        let code = self
            .b
            .cu
            .cuMemcpyHtoD_v2(at, host.address, 8 * input.words.len());
        must(code, "cuMemcpyHtoD");
        let flags = self.b.alloc(4 * table.len());
        must(
            self.b.cu.cuMemsetD8_v2(flags, 0, 4 * table.len()),
            "cuMemsetD8",
        );
        let count = table.len() as u64;
        Prepared {
            arguments: [at, input.areas, at + input.table, count, flags],
            ranges: table.len(),
            memory: [at, flags],
        }
    }

    fn forget(&self, told: Prepared) {
        for p in told.memory {
            must(self.b.cu.cuMemFree_v2(p), "cuMemFree");
        }
    }

    /// Which ranges of the table are found.
    fn found(&self, blocks: u32, areas: &[Area], table: &[Range<u64>]) -> Vec<usize> {
        let told = self.tell(areas, table);
        self.launch(self.scan, blocks, &told.arguments);
        let flags = Host::new((4 * told.ranges).next_multiple_of(8));
        let code = self
            .b
            .cu
            .cuMemcpyDtoH_v2(flags.address, told.arguments[4], 4 * told.ranges);
        must(code, "cuMemcpyDtoH");
        let found = (0..told.ranges).filter(|i| flags.half(*i) != 0).collect();
        self.forget(told);
        found
    }

    fn hashed(&self, blocks: u32, p: u64, bytes: usize) -> [u64; 2] {
        let out = self.b.alloc(16);
        must(self.b.cu.cuMemsetD8_v2(out, 0, 16), "cuMemsetD8");
        self.launch(self.hash, blocks, &[p, bytes as u64 / 16, out]);
        let sums = self.download(out, 16);
        must(self.b.cu.cuMemFree_v2(out), "cuMemFree");
        [sums.word(0), sums.word(1)]
    }
}

fn area(address: u64, bytes: usize) -> Area {
    let bytes = bytes as u64;
    Area { address, bytes }
}

fn candidates() -> Vec<Range<u64>> {
    let range = |i| FIRST + i * APART..FIRST + i * APART + WIDE;
    (0..64).map(range).collect()
}

/// 4 MiB of every kind, and whether the CPU can write it.
fn places(b: &Bench) -> Vec<(&'static str, u64, bool)> {
    let mut places = vec![
        ("cuMemAlloc", b.alloc(4 * MIB), false),
        ("a range in VRAM", b.range("V2 V2").p, false),
        ("pinned", b.pinned(4 * MIB), true),
    ];
    if host_vmm(&b.cu) {
        places.push(("a range in VRAM and on the host", b.range("V2 H2").p, false));
        places.push(("a range on the host", b.range("H4").p, false));
    }
    places
}

pub(super) fn planted(told: &Told) {
    let ours = Ours::open();
    let (b, table) = (&ours.b, candidates());
    const KIB: usize = 1 << 10;
    let size = 4 * MIB;
    // Where each word goes, what it is, and which range it should show, if any.
    let start = |i: usize| table[i].start;
    let words = [
        (0, start(0), Some(0)),
        (64 * KIB + 16, table[1].end - 1, Some(1)),
        (20 * KIB + 8, 0xbeef << 48 | (start(2) + 12345), Some(2)),
        (128 * KIB + 8, start(3) + 8, Some(3)),
        (128 * KIB + 40, start(4), Some(4)),
        (200 * KIB + 24, start(5), Some(5)),
        // In no area as a whole.
        (200 * KIB, start(6), None),
        (200 * KIB + 32, start(7), None),
        (64 * KIB + 24, start(8), None),
        (128 * KIB, start(9), None),
        (size - 8, start(10), Some(10)),
        // Just outside.
        (24 * KIB, start(11) - 1, None),
        (24 * KIB + 8, table[12].end, None),
        // On no border of eight.
        (24 * KIB + 36, start(13), None),
        // Around the borders of what one thread block reads, and of mappings.
        (32 * KIB - 8, start(14), Some(14)),
        (32 * KIB, u64::MAX << 48 | start(15), Some(15)),
        (2 * MIB - 8, start(16), Some(16)),
        (2 * MIB, start(17), Some(17)),
        // The last range of all, and a word that another area has, too.
        (64 * KIB, start(63), Some(63)),
    ];
    let expected: Vec<usize> = {
        let mut all: Vec<usize> = words.iter().filter_map(|w| w.2).collect();
        all.sort();
        all
    };
    for (place, p, by_cpu) in places(b) {
        if by_cpu {
            // SAFETY: pinned memory of that size.
            unsafe { (p as *mut u8).write_bytes(0, size) };
        } else {
            must(b.cu.cuMemsetD8_v2(p, 0, size), "cuMemsetD8");
        }
        for (at, word, _) in words {
            match by_cpu {
                // SAFETY: inside pinned memory that no kernel uses now.
                true => unsafe { ((p as usize + at) as *mut u64).write_unaligned(word) },
                false => b.write(p + at as u64, word),
            }
        }
        let at = |offset: usize, bytes| area(p + offset as u64, bytes);
        let areas = [
            at(0, 64 * KIB + 24),
            at(128 * KIB + 8, 40),
            at(200 * KIB + 3, 29),
            at(300 * KIB, 0),
            at(300 * KIB + 1, 14),
            at(2 * MIB - 64, 128),
            at(60 * KIB, 4 * KIB + 8),
            at(size - 100 * KIB - 8, 100 * KIB + 8),
        ];
        for blocks in [1, 3, 528] {
            let found = ours.found(blocks, &areas, &table);
            told.is(
                format!("{place}, by {blocks} blocks"),
                found,
                expected.clone(),
            );
        }
    }
}

pub(super) fn random(told: &Told) {
    let ours = Ours::open();
    let b = &ours.b;
    let size = 4 * MIB;
    // Of 500,000 random words one half is in each range on average; every second range overlaps the one before.
    let table: Vec<Range<u64>> = (0..1000)
        .map(|i| {
            let start = (i / 2) << 39 | (i % 2) << 28;
            start..start + (1 << 29)
        })
        .collect();
    for (place, p, by_cpu) in places(b) {
        b.fill(p, size, 5 + p);
        let parts = [(3, MIB), (2 * MIB - 40, 100), (2 * MIB + 8, 2 * MIB - 16)];
        let areas = parts.map(|(at, bytes)| area(p + at as u64, bytes));
        let found = ours.found(97, &areas, &table);
        b.done();
        let copy = match by_cpu {
            false => ours.download(p, size),
            true => Host::new(size),
        };
        let word = |i: usize| match by_cpu {
            false => copy.word(i),
            // SAFETY: inside pinned memory that no kernel uses now.
            true => unsafe { (p as *const u64).add(i).read() },
        };
        let mut expected = vec![false; table.len()];
        for (at, bytes) in parts {
            for i in at.div_ceil(8)..(at + bytes) / 8 {
                let word = word(i) & 0xffff_ffff_ffff;
                let last = table.partition_point(|r| r.start <= word);
                for r in last.saturating_sub(2)..last {
                    expected[r] |= table[r].contains(&word);
                }
            }
        }
        let expected: Vec<usize> = (0..table.len()).filter(|i| expected[*i]).collect();
        told.is(
            format!("{place}: some, not all"),
            (100..900).contains(&expected.len()),
            true,
        );
        told.is(place, found, expected);
    }
}

pub(super) fn descriptor(told: &Told) {
    let ours = Ours::open();
    let b = &ours.b;
    let p = b.alloc(4 * MIB);
    let mut map = TensorMap([0; 16]);
    let (sides, strides, boxes, steps) = ([1024, 1024], [2048], [64, 64], [1, 1]);
    let base = p + 0x4000;
    let code = b.cu.cuTensorMapEncodeTiled(
        Some(&mut map),
        9,
        2,
        base,
        Some(&sides),
        Some(&strides),
        Some(&boxes),
        Some(&steps),
        0,
        3,
        2,
        0,
    );
    if code == MISSING || code == CUDA_ERROR_NOT_SUPPORTED {
        told.note("no tensor maps on this driver or device: one as it was measured");
        map = TensorMap([base; 16]);
    } else {
        must(code, "cuTensorMapEncodeTiled");
    }
    let at = b.alloc(128);
    must(
        b.cu.cuMemcpyHtoD_v2(at, (&raw const map) as u64, 128),
        "cuMemcpyHtoD",
    );
    let table = [p - (2 << 20)..p, p..p + (4 << 20)];
    told.is("found", ours.found(1, &[area(at, 128)], &table), vec![1]);
}

pub(super) fn hashes(told: &Told) {
    let ours = Ours::open();
    let b = &ours.b;
    let size = 4 * MIB;
    for (place, p, _) in places(b) {
        b.fill(p, size, 3);
        let copy = Host::new(size);
        let code = b.cu.cuMemcpyDtoH_v2(copy.address, p, size);
        must(code, "cuMemcpyDtoH");
        for (at, bytes) in [(0, 16), (16, 48), (2 * MIB - 4096, 8208), (0, size)] {
            let words = at / 8..(at + bytes) / 8;
            let expected = twin(words.map(|i| copy.word(i)));
            for blocks in [1, 5, 528] {
                told.is(
                    format!("{place}: {bytes} bytes at {at} by {blocks} blocks"),
                    ours.hashed(blocks, p + at as u64, bytes),
                    expected,
                );
            }
        }
        // One bit.
        let before = ours.hashed(528, p, size);
        b.write(p + 8 * 77_777, copy.word(77_777) ^ 1 << 40);
        let after = ours.hashed(528, p, size);
        told.is("half 0 differs", before[0] != after[0], true);
        told.is("half 1 differs", before[1] != after[1], true);
    }
}

pub(super) fn speed(told: &Told) {
    let ours = Ours::open();
    let b = &ours.b;
    let mut processors = 0;
    b.cu.cuDeviceGetAttribute(
        Some(&mut processors),
        CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT,
        0,
    );
    let processors = processors.max(1) as u32;
    let timed = |times: u32, act: &dyn Fn()| {
        b.done();
        let begun = Instant::now();
        (0..times).for_each(|_| act());
        b.done();
        begun.elapsed() / times
    };
    let table = candidates();
    // So many ranges as a large program has, with none of them in what is read.
    let many: Vec<Range<u64>> = (0..2000u64)
        .map(|i| (0x7f00 << 32) + (i << 26)..(0x7f00 << 32) + (i << 26) + (1 << 25))
        .collect();
    let small = b.alloc(16 * MIB);
    b.fill(small, 16 * MIB, 1);
    let one = ours.tell(&[area(small, 16 * MIB)], &table);
    let out = b.alloc(16);
    must(b.cu.cuMemsetD8_v2(out, 0, 16), "cuMemsetD8");
    let scan = |told: &Prepared, blocks| ours.launch(ours.scan, blocks, &told.arguments);
    let hash =
        |p, bytes: usize, blocks| ours.launch(ours.hash, blocks, &[p, bytes as u64 / 16, out]);
    scan(&one, 1);
    let first = timed(1, &|| scan(&one, 4 * processors));
    told.is(
        "a scan of 16 MiB ends",
        first < Duration::from_secs(20),
        true,
    );
    if first > Duration::from_millis(3) {
        return told.note(format!(
            "a scan of 16 MiB takes {first:?}: no more is measured"
        ));
    }
    for (place, bytes, p) in [
        ("VRAM", 2048 * MIB, b.alloc(2048 * MIB)),
        ("VRAM", 64 * MIB, b.alloc(64 * MIB)),
        ("VRAM", 2 * MIB, b.alloc(2 * MIB)),
        ("pinned host memory", 512 * MIB, b.pinned(512 * MIB)),
    ] {
        b.fill(p, bytes, 11);
        let rate = |took: Duration| bytes as f64 / took.as_secs_f64() / 1e9;
        for (what, table) in [("64", &table), ("2000", &many)] {
            let input = ours.tell(&[area(p, bytes)], table);
            for share in [1, 4] {
                let blocks = (4 * processors / share).max(1);
                let took = timed(8, &|| scan(&input, blocks));
                told.note(format!(
                    "scan of {} MiB of {place} for {what} ranges by {blocks} blocks: {took:?}, {:.0} GB/s",
                    bytes / MIB,
                    rate(took)
                ));
            }
            ours.forget(input);
        }
        for share in [1, 4] {
            let blocks = (4 * processors / share).max(1);
            let took = timed(8, &|| hash(p, bytes, blocks));
            told.note(format!(
                "hash of {} MiB of {place} by {blocks} blocks: {took:?}, {:.0} GB/s",
                bytes / MIB,
                rate(took)
            ));
        }
    }
    // As weights are: small halves, of which many look like the upper half of an address of the shim's.
    let bytes = 1024 * MIB;
    let p = b.alloc(bytes);
    let host = Host::new(64 * MIB);
    let mut state = 1u64;
    for i in 0..64 * MIB / 8 {
        let mut word = 0;
        for half in 0..4 {
            state = state
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            // Exponents 7 to 11 of fp16, any mantissa, either sign.
            let (sign, exponent, mantissa) =
                (state >> 63, 7 + (state >> 40) % 5, (state >> 20) % 1024);
            let bits = (sign << 15) | (exponent << 10) | mantissa;
            word |= bits << (16 * half);
        }
        host.set(i, word);
    }
    for at in (0..bytes).step_by(64 * MIB) {
        let code = b.cu.cuMemcpyHtoD_v2(p + at as u64, host.address, 64 * MIB);
        must(code, "cuMemcpyHtoD");
    }
    let odd: Vec<Range<u64>> = (0..2000u64)
        .map(|i| FIRST + (i << 28)..FIRST + (i << 28) + (1 << 25))
        .collect();
    let input = ours.tell(&[area(p, bytes)], &odd);
    let took = timed(8, &|| scan(&input, 4 * processors));
    told.note(format!(
        "scan of 1 GiB of fp16 weights for 2000 ranges where the shim's are: {took:?}, {:.0} GB/s",
        bytes as f64 / took.as_secs_f64() / 1e9
    ));
}
