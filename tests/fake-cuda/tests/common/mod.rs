//! Every test runs in a process of its own: the environment is read once, and failures are sticky.
#![allow(
    dead_code,
    unused_macros,
    missing_docs,
    clippy::macro_metavars_in_unsafe
)]

use std::ffi::{CString, c_void};
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

pub const MIB: u64 = 1 << 20;
pub const GRANULE: u64 = 2 * MIB;

/// PTX of every built-in kernel.
pub const PTX: &str = "//
.version 8.0
.target sm_90
.address_size 64
.global .align 8 .u64 counter[4];
.visible .entry gb_fill(.param .u64 p, .param .u64 n, .param .u64 seed) { ret; }
.visible .entry gb_check(.param .u64 p, .param .u64 n, .param .u64 seed, .param .u64 out) { ret; }
.visible .entry gb_add(.param .u64 p, .param .u64 n, .param .u64 v) { ret; }
.visible .entry gb_axpy(.param .u64 d, .param .u64 s, .param .u64 n, .param .u64 k) { ret; }
.visible .entry gb_sum(.param .u64 .ptr .global .align 8 p, .param .u64 n, .param .u64 out) { ret; }
.visible .entry gb_spin(.param .u64 ns) .maxntid 32 { { ret; } }
.visible .entry gb_deref(.param .u64 t, .param .u64 n, .param .u64 v) { ret; }
.visible .entry stranger(.param .u32 a, .param .align 16 .b8 b[24], .param .u8 c, .param .u64 d) { ret; }
";

/// The object under test, as cargo built it beside this test.
pub fn library() -> PathBuf {
    let deps = std::env::current_exe()
        .unwrap()
        .parent()
        .unwrap()
        .to_owned();
    let places = [
        deps.join("libfake_cuda.so"),
        deps.parent().unwrap().join("libfake_cuda.so"),
    ];
    let newest = |p: &PathBuf| p.metadata().and_then(|m| m.modified()).ok();
    places
        .into_iter()
        .max_by_key(newest)
        .filter(|p| p.exists())
        .expect("libfake_cuda.so was not built")
}

fn object() -> *mut c_void {
    static OBJECT: OnceLock<usize> = OnceLock::new();
    *OBJECT.get_or_init(|| {
        let path = CString::new(library().to_str().unwrap()).unwrap();
        // SAFETY: the object has no constructors.
        let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        assert!(!handle.is_null(), "dlopen of {path:?} failed");
        handle as usize
    }) as *mut c_void
}

pub fn lookup(name: &str) -> *mut c_void {
    let name = CString::new(name).unwrap();
    // SAFETY: a live handle and a terminated name.
    unsafe { libc::dlsym(object(), name.as_ptr()) }
}

pub fn symbol(name: &str) -> *mut c_void {
    let address = lookup(name);
    assert!(!address.is_null(), "{name} is not exported");
    address
}

/// Calls an exported function; the arguments must have exactly the C types.
#[macro_export]
macro_rules! cu {
    (@any $arg:expr) => { _ };
    ($name:ident($($arg:expr),* $(,)?)) => {{
        let address = $crate::common::symbol(stringify!($name));
        // SAFETY: the test gives the arguments that the function is declared with.
        unsafe {
            let call: unsafe extern "C" fn($(cu!(@any $arg)),*) -> i32 = std::mem::transmute(address);
            call($($arg),*)
        }
    }};
}

/// The same, and it must succeed.
#[macro_export]
macro_rules! ok {
    ($name:ident($($arg:expr),* $(,)?)) => { assert_eq!(cu!($name($($arg),*)), 0, stringify!($name)) };
}

/// Runs `body` in a process with this environment, and returns its report; `None` in that process.
pub fn isolated(name: &str, env: &[(&str, &str)], body: impl FnOnce()) -> Option<Vec<String>> {
    if std::env::var("FAKE_TEST_CHILD").as_deref() == Ok(name) {
        // A sign that the process ran this test, and not none.
        std::fs::write(std::env::var_os("FAKE_TEST_RAN").unwrap(), name).unwrap();
        body();
        return None;
    }
    let report =
        std::env::temp_dir().join(format!("fake-cuda-{}-{name}.report", std::process::id()));
    let ran = report.with_extension("ran");
    let _ = std::fs::remove_file(&report);
    let output = Command::new(std::env::current_exe().unwrap())
        .args([name, "--exact", "--nocapture", "--test-threads=1"])
        .env("FAKE_TEST_CHILD", name)
        .env("FAKE_TEST_RAN", &ran)
        .env("FAKE_CUDA_REPORT", &report)
        .envs(env.iter().copied())
        .output()
        .unwrap();
    let text = std::fs::read_to_string(&report).unwrap_or_default();
    let _ = std::fs::remove_file(&report);
    assert!(
        std::fs::remove_file(&ran).is_ok(),
        "{name} is not the name of the test"
    );
    assert!(
        output.status.success(),
        "{name}: {}\n{}{}\n{text}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    Some(text.lines().map(str::to_owned).collect())
}

/// A test that must leave no misuse behind.
pub fn clean(name: &str, env: &[(&str, &str)], body: impl FnOnce()) {
    if let Some(report) = isolated(name, env, body) {
        assert!(report.is_empty(), "{name} left {report:#?}");
    }
}

/// A test that must leave exactly these records, each given by a part of it.
pub fn records(name: &str, env: &[(&str, &str)], expected: &[&str], body: impl FnOnce()) {
    if let Some(report) = isolated(name, env, body) {
        let same = report.len() == expected.len()
            && report.iter().zip(expected).all(|(r, e)| r.contains(e));
        assert!(same, "{name} left {report:#?}, expected {expected:#?}");
    }
}

/// `cuInit` and a current context on device 0.
pub fn start() -> usize {
    ok!(cuInit(0u32));
    context(0)
}

pub fn context(device: i32) -> usize {
    let mut ctx = 0usize;
    ok!(cuDevicePrimaryCtxRetain(&mut ctx, device));
    ok!(cuCtxSetCurrent(ctx));
    ctx
}

/// The same, with the module loaded: that is not possible during a capture.
pub fn start_with_module() -> usize {
    let ctx = start();
    module();
    ctx
}

pub fn alloc(size: u64) -> u64 {
    let mut va = 0u64;
    ok!(cuMemAlloc_v2(&mut va, size as usize));
    va
}

pub fn free_bytes() -> u64 {
    let (mut free, mut total) = (0usize, 0usize);
    ok!(cuMemGetInfo_v2(&mut free, &mut total));
    free as u64
}

pub fn prop(host: bool) -> greenboost_abi::CUmemAllocationProp {
    greenboost_abi::CUmemAllocationProp {
        type_: 1,
        requestedHandleTypes: 0,
        location: greenboost_abi::CUmemLocation {
            type_: if host { 3 } else { 1 },
            id: 0,
        },
        win32HandleMetaData: std::ptr::null_mut(),
        allocFlags: Default::default(),
    }
}

pub fn create(size: u64, host: bool) -> u64 {
    let mut handle = 0u64;
    ok!(cuMemCreate(&mut handle, size as usize, &prop(host), 0u64));
    handle
}

pub fn reserve(size: u64) -> u64 {
    let mut va = 0u64;
    ok!(cuMemAddressReserve(
        &mut va,
        size as usize,
        0usize,
        0u64,
        0u64
    ));
    va
}

pub fn map(va: u64, size: u64, handle: u64) {
    ok!(cuMemMap(va, size as usize, 0usize, handle, 0u64));
    access(va, size, 1, 3);
}

pub fn access(va: u64, size: u64, location: i32, flags: i32) {
    let location = greenboost_abi::CUmemLocation {
        type_: location,
        id: 0,
    };
    let desc = greenboost_abi::CUmemAccessDesc { location, flags };
    ok!(cuMemSetAccess(va, size as usize, &desc, 1usize));
}

pub fn unmap(va: u64, size: u64) {
    ok!(cuMemUnmap(va, size as usize));
}

/// A new mapping of new memory.
pub fn mapped(size: u64, host: bool) -> (u64, u64) {
    let (va, handle) = (reserve(size), create(size, host));
    map(va, size, handle);
    (va, handle)
}

pub fn stream(flags: u32) -> usize {
    let mut stream = 0usize;
    ok!(cuStreamCreate(&mut stream, flags));
    stream
}

pub fn event() -> usize {
    let mut event = 0usize;
    ok!(cuEventCreate(&mut event, 0u32));
    event
}

pub fn module() -> usize {
    static MODULE: OnceLock<usize> = OnceLock::new();
    *MODULE.get_or_init(|| {
        let image = CString::new(PTX).unwrap();
        let mut module = 0usize;
        ok!(cuModuleLoadData(&mut module, image.as_ptr()));
        module
    })
}

pub fn function(name: &str) -> usize {
    let name = CString::new(name).unwrap();
    let mut function = 0usize;
    ok!(cuModuleGetFunction(&mut function, module(), name.as_ptr()));
    function
}

/// Launches a built-in kernel; the result of the call.
pub fn launch(name: &str, stream: usize, args: &[u64]) -> i32 {
    let pointers: Vec<*const u64> = args.iter().map(std::ptr::from_ref).collect();
    let none = std::ptr::null::<*const c_void>();
    cu!(cuLaunchKernel(
        function(name),
        1u32,
        1u32,
        1u32,
        32u32,
        1u32,
        1u32,
        0u32,
        stream,
        pointers.as_ptr(),
        none
    ))
}

pub fn spin(stream: usize, ms: u64) {
    assert_eq!(launch("gb_spin", stream, &[ms * 1_000_000]), 0);
}

pub fn read(va: u64) -> u64 {
    let mut word = 0u64;
    ok!(cuMemcpyDtoH_v2(&mut word, va, 8usize));
    word
}

pub fn write(va: u64, word: u64) {
    ok!(cuMemcpyHtoD_v2(va, &word, 8usize));
}

pub fn mix(x: u64) -> u64 {
    let z = x.wrapping_add(0x9E3779B97F4A7C15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xBF58476D1CE4E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D049BB133111EB);
    z ^ (z >> 31)
}

pub fn timed(act: impl FnOnce()) -> Duration {
    let start = Instant::now();
    act();
    start.elapsed()
}

pub const LONG: u64 = 300;

/// Whether a call waited for a kernel of `LONG` ms.
pub fn waited(act: impl FnOnce()) -> bool {
    timed(act) > Duration::from_millis(LONG / 2)
}
