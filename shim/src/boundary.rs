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

use crate::{freeze, process};

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
#[inline(always)]
pub fn enter(real: impl FnOnce() -> c_int, handle: impl FnOnce() -> c_int) -> c_int {
    if process::passes_through() || INSIDE.with(|inside| inside.replace(true)) {
        return real();
    }
    let _inside = Inside;
    match catch_unwind(AssertUnwindSafe(|| {
        if freeze::worth_a_look() {
            freeze::announce();
        }
        #[cfg(feature = "fault-injection")]
        fault::strike(std::any::type_name_of_val(&handle));
        handle()
    })) {
        Ok(result) => {
            if result >= 200 {
                process::device_error(result);
            }
            result
        }
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

/// Panics on demand, to prove what a panic does. Not in the library that anybody gets.
#[cfg(feature = "fault-injection")]
mod fault {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

    /// `GREENBOOST_FAULT=panic:FUNCTION:N`: the N-th call of that function panics in the shim; with `N+` all after it
    /// do, too.
    struct Rule {
        function: String,
        first: u64,
        all: bool,
    }

    fn rule() -> Option<Rule> {
        let text = std::env::var("GREENBOOST_FAULT").ok()?;
        let (function, count) = text.strip_prefix("panic:")?.split_once(':')?;
        Some(Rule {
            function: function.into(),
            first: count.trim_end_matches('+').parse().ok()?,
            all: count.ends_with('+'),
        })
    }

    /// `handler` is the type of a hook's closure: `...::hooks::FUNCTION::{{closure}}`.
    pub fn strike(handler: &str) {
        static RULE: OnceLock<Option<Rule>> = OnceLock::new();
        static CALLS: AtomicU64 = AtomicU64::new(0);
        let Some(rule) = RULE.get_or_init(rule) else {
            return;
        };
        if handler.split("::").any(|part| part == rule.function) {
            let call = CALLS.fetch_add(1, SeqCst) + 1;
            if call == rule.first || rule.all && call > rule.first {
                panic!("injected into {}", rule.function);
            }
        }
    }
}
