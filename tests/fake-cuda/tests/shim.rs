//! The shim's own kernels: they find and hash what is there, and fault where nothing is. (`tests/conformance` holds their
//! results to those of the real ones.)
#![allow(missing_docs, clippy::macro_metavars_in_unsafe)]
mod common;
use std::ffi::{CString, c_void};
use std::ptr;

use common::*;

/// A kernel of `assets/shim.ptx`.
fn kernel(name: &str) -> usize {
    let image = CString::new(include_str!("../../../assets/shim.ptx")).unwrap();
    let (mut module, mut function) = (0usize, 0usize);
    ok!(cuModuleLoadData(&mut module, image.as_ptr()));
    let name = CString::new(name).unwrap();
    ok!(cuModuleGetFunction(&mut function, module, name.as_ptr()));
    function
}

fn run(function: usize, args: &[u64]) -> i32 {
    let pointers: Vec<*const u64> = args.iter().map(ptr::from_ref).collect();
    let none = ptr::null::<*const c_void>();
    ok!(cuLaunchKernel(
        function,
        8u32,
        1u32,
        1u32,
        256u32,
        1u32,
        1u32,
        0u32,
        0usize,
        pointers.as_ptr(),
        none
    ));
    cu!(cuCtxSynchronize())
}

/// Words in memory of their own.
fn put(words: &[u64]) -> u64 {
    let at = alloc(8 * words.len() as u64);
    ok!(cuMemcpyHtoD_v2(at, words.as_ptr(), 8 * words.len()));
    at
}

const RANGES: [u64; 6] = [
    0x1_0000_0000,
    0x1_1000_0000,
    0x1_0800_0000,
    0x1_1800_0000,
    0x7f00_0000_0000,
    0x7f00_0000_0001,
];

/// One area, of so many tiles, and three ranges; the result and the flags.
fn scan(address: u64, bytes: u64, tiles: u64) -> (i32, [u32; 3]) {
    let areas = put(&[address, bytes, 0, 0, 0, tiles]);
    let flags = put(&[0, 0]);
    let function = kernel("greenboost_scan");
    let result = run(function, &[areas, 1, put(&RANGES), 3, flags]);
    let mut told = [0u32; 3];
    if result == 0 {
        ok!(cuMemcpyDtoH_v2(told.as_mut_ptr(), flags, 12usize));
    }
    (result, told)
}

#[test]
fn a_scan_sees_every_backing() {
    clean("a_scan_sees_every_backing", &[], || {
        start();
        let va = reserve(2 * GRANULE);
        map(va, GRANULE, create(GRANULE, false));
        map(va + GRANULE, GRANULE, create(GRANULE, true));
        ok!(cuMemsetD8_v2(va, 0u8, 2 * GRANULE as usize));
        let tiles = 2 * GRANULE / (32 << 10);
        assert_eq!(scan(va, 2 * GRANULE, tiles), (0, [0, 0, 0]));
        write(va + 16, 0x7f00_0000_0000);
        assert_eq!(scan(va, 2 * GRANULE, tiles), (0, [0, 0, 1]));
        write(va + 2 * GRANULE - 8, 0xffff_0001_0fff_ffff);
        assert_eq!(scan(va, 2 * GRANULE, tiles), (0, [1, 1, 1]));
        let mut pinned = 0u64;
        ok!(cuMemHostAlloc(&mut pinned, 4096usize, 0u32));
        // SAFETY: pinned memory of that size.
        unsafe { (pinned as *mut u64).add(511).write(0x1_1000_0000) };
        assert_eq!(scan(pinned + 1, 4095, 1), (0, [0, 1, 0]));
        assert_eq!(scan(pinned, 4095, 1), (0, [0, 0, 0]));
    });
}

#[test]
fn a_scan_faults_where_nothing_is() {
    let body = || {
        start();
        let va = reserve(2 * GRANULE);
        map(va, GRANULE, create(GRANULE, false));
        let tiles = 2 * GRANULE / (32 << 10);
        assert_eq!(scan(va, 2 * GRANULE, tiles).0, 700);
    };
    let record = ["illegal address: read of"];
    records("a_scan_faults_where_nothing_is", &[], &record, body);
}

#[test]
fn a_scan_that_is_told_wrong_is_recorded() {
    let body = || {
        start();
        let p = put(&[0; 4]);
        assert_eq!(scan(p, 32, 2).0, 0);
        let flags = put(&[0]);
        let areas = put(&[0, 0, 0]);
        let function = kernel("greenboost_scan");
        let table = put(&[5, 6, 4, 7]);
        assert_eq!(run(function, &[areas, 0, table, 2, flags]), 0);
    };
    let record = ["2 tiles, not 1", "not in order"];
    records("a_scan_that_is_told_wrong_is_recorded", &[], &record, body);
}

#[test]
fn a_hash_adds_to_what_is_there() {
    clean("a_hash_adds_to_what_is_there", &[], || {
        start();
        let function = kernel("greenboost_hash");
        let p = put(&[1, 2, 3, u64::MAX]);
        let out = put(&[5, 0]);
        assert_eq!(run(function, &[p, 2, out]), 0);
        // By another implementation, as in the shim's own test.
        assert_eq!(read(out), 0x18ea_9201_327a_007c + 5);
        assert_eq!(read(out + 8), 0xbba1_46d7_bb25_cebb);
        assert_eq!(run(function, &[p, 0, out]), 0);
        assert_eq!(read(out), 0x18ea_9201_327a_007c + 5);
    });
}

#[test]
fn a_hash_of_odd_memory_faults() {
    let body = || {
        start();
        let p = put(&[1, 2, 3, 4]);
        let out = put(&[0, 0]);
        assert_eq!(run(kernel("greenboost_hash"), &[p + 8, 1, out]), 716);
    };
    records("a_hash_of_odd_memory_faults", &[], &["misaligned"], body);
}
