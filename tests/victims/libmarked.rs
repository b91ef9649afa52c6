//! The wrapped library of [`libwrapper.rs`].

#[unsafe(no_mangle)]
pub extern "C" fn marker() -> i32 {
    10
}

/// Called by name, so that the linker keeps the wrapper's dependency on this library.
#[unsafe(no_mangle)]
pub extern "C" fn marker_keep() -> i32 {
    100
}
