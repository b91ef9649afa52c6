//! The C library, by hand: victims are compiled without crates.

use std::ffi::{CStr, c_char, c_int, c_void};

pub const RTLD_LAZY: c_int = 1;
pub const RTLD_NOW: c_int = 2;
pub const RTLD_NOLOAD: c_int = 4;
pub const RTLD_DEEPBIND: c_int = 8;
pub const RTLD_GLOBAL: c_int = 0x100;
pub const RTLD_LOCAL: c_int = 0;
pub const RTLD_DEFAULT: *mut c_void = std::ptr::null_mut();
pub const RTLD_NEXT: *mut c_void = -1isize as *mut c_void;

unsafe extern "C" {
    pub fn dlopen(path: *const c_char, flags: c_int) -> *mut c_void;
    pub fn dlsym(handle: *mut c_void, name: *const c_char) -> *mut c_void;
    pub fn dlvsym(handle: *mut c_void, name: *const c_char, version: *const c_char) -> *mut c_void;
    pub fn dlclose(handle: *mut c_void) -> c_int;
    pub fn dlerror() -> *const c_char;
    pub fn fork() -> c_int;
    pub fn waitpid(pid: c_int, status: *mut c_int, options: c_int) -> c_int;
    pub fn kill(pid: c_int, signal: c_int) -> c_int;
    pub fn _exit(status: c_int) -> !;
    pub fn exit(status: c_int) -> !;
    pub fn atexit(handler: extern "C" fn()) -> c_int;
    pub fn close(fd: c_int) -> c_int;
    pub fn dup2(from: c_int, to: c_int) -> c_int;
    pub fn alarm(seconds: u32) -> u32;
}

pub const SIGKILL: c_int = 9;

/// The message of the last failed `dl*` call, if there is one; asking clears it.
pub fn dl_error() -> Option<String> {
    // SAFETY: dlerror returns null or a string that lives until the next dl call of this thread.
    unsafe {
        let text = dlerror();
        (!text.is_null()).then(|| CStr::from_ptr(text).to_string_lossy().into_owned())
    }
}

/// Opens a library or panics with the loader's reason. `None` is the program itself.
#[track_caller]
pub fn open(path: Option<&str>, flags: c_int) -> *mut c_void {
    let path = path.map(crate::c);
    // SAFETY: a C string or null.
    let handle = unsafe {
        dlopen(
            path.as_ref().map_or(std::ptr::null(), |p| p.as_ptr()),
            flags,
        )
    };
    assert!(!handle.is_null(), "dlopen: {:?}", dl_error());
    handle
}

/// `dlsym` from the object that this is linked into.
pub fn symbol(handle: *mut c_void, name: &str) -> *mut c_void {
    let name = crate::c(name);
    // SAFETY: a handle or a pseudo-handle, and a C string.
    unsafe { dlsym(handle, name.as_ptr()) }
}

/// Numbers of this process's open descriptors, sorted, without the one that reads the list.
pub fn descriptors() -> Vec<i32> {
    let mut all: Vec<i32> = std::fs::read_dir("/proc/self/fd")
        .expect("/proc")
        .filter_map(|e| e.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    all.sort_unstable();
    all.retain(|fd| std::fs::metadata(format!("/proc/self/fd/{fd}")).is_ok());
    all
}

/// How many threads this process has.
pub fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").expect("/proc").count()
}
