//! What the ledger is made of. The model (`shim/tests/model`) compiles the ledger's source a second time, over its own
//! module of this name: a small table, and atomics between whose operations every order is tried.

use std::time::Duration;

pub use std::hint::spin_loop;
pub use std::process::id as process_id;
pub use std::sync::Mutex;
pub use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64};
pub use std::thread::{sleep, yield_now};

/// Devices that a ledger can hold.
pub const DEVICES: usize = 16;
/// Processes that can hold memory at the same time.
pub const SEATS: usize = 256;

/// Wakes all that wait on a word, in whatever process.
pub fn wake(word: &AtomicU32) {
    // SAFETY: a futex call with the address of a word that lives; it reads nothing else.
    unsafe {
        libc::syscall(
            libc::SYS_futex,
            word.as_ptr(),
            libc::FUTEX_WAKE,
            libc::c_int::MAX,
        );
    }
}

/// Waits while the word has this value, but not longer; may return earlier.
pub fn wait_on(word: &AtomicU32, value: u32, longest: Duration) {
    let longest = libc::timespec {
        tv_sec: longest.as_secs().try_into().unwrap_or(libc::time_t::MAX),
        tv_nsec: longest.subsec_nanos().into(),
    };
    // SAFETY: as above; the time is on our stack for as long as the call.
    unsafe {
        libc::syscall(
            libc::SYS_futex,
            word.as_ptr(),
            libc::FUTEX_WAIT,
            value,
            &raw const longest,
        );
    }
}
