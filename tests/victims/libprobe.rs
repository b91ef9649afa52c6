//! A library that looks names up from where it lies.

use std::ffi::{c_char, c_void};

/// `dlsym`, called from this library. The call must not become a jump: the loader looks at who called it.
///
/// # Safety
/// As for `dlsym`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn probe_dlsym(handle: *mut c_void, name: *const c_char) -> *mut c_void {
    // SAFETY: the caller's promise.
    let p = unsafe { victim::sys::dlsym(handle, name) };
    std::hint::black_box(p)
}

/// Reaches the driver from this library, in the way that `REACH` says, and does a little of everything.
#[unsafe(no_mangle)]
pub extern "C" fn probe_everything() {
    victim::work::everything(&victim::gpu::Gpu::open());
}
