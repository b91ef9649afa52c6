//! Wraps a function of the library that it is linked to, as OpenMP's and other probes do.

use std::ffi::{c_int, c_void};
use victim::sys;

#[link(name = "marked")]
unsafe extern "C" {
    safe fn marker_keep() -> c_int;
}

#[unsafe(no_mangle)]
pub extern "C" fn marker() -> c_int {
    let next = sys::symbol(sys::RTLD_NEXT, "marker");
    assert!(!next.is_null(), "nothing after the wrapper");
    // SAFETY: the wrapped function takes nothing and returns a number.
    let next = unsafe { std::mem::transmute::<*mut c_void, extern "C" fn() -> c_int>(next) };
    assert_ne!(
        next as usize, marker as *const () as usize,
        "the wrapper found itself"
    );
    1 + next() + marker_keep()
}
