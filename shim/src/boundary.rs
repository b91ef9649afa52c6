//! What every intercepted call passes.
//!
//! - A call that arrives while this thread is already inside a hook comes from the driver or from a library below it: it
//!   goes straight to the real function.
//! - A call in a process where the shim is off, or in the child of a fork, goes straight to the real function.
//! - A panic never crosses into the program: the call returns `CUDA_ERROR_UNKNOWN` and the shim is wounded.

use std::cell::Cell;
use std::ffi::c_int;
use std::panic::{AssertUnwindSafe, catch_unwind};

use greenboost_abi::CUDA_ERROR_UNKNOWN;

use crate::process;

thread_local! {
    // Constant and without a destructor: usable while the thread is being torn down.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// Leaves the hook at the end of its scope, however that comes.
struct Inside;

impl Drop for Inside {
    fn drop(&mut self) {
        INSIDE.with(|inside| inside.set(false));
    }
}

/// Runs a hook: `real` passes the call on unchanged, `handle` is what the shim makes of it.
pub fn enter(real: impl FnOnce() -> c_int, handle: impl FnOnce() -> c_int) -> c_int {
    if process::passes_through() || INSIDE.with(|inside| inside.replace(true)) {
        return real();
    }
    let _inside = Inside;
    match catch_unwind(AssertUnwindSafe(handle)) {
        Ok(result) => result,
        Err(panic) => {
            let what = panic
                .downcast_ref::<&str>()
                .map(|s| s.to_string())
                .or_else(|| panic.downcast_ref::<String>().cloned())
                .unwrap_or_default();
            process::wound(&what);
            CUDA_ERROR_UNKNOWN
        }
    }
}
