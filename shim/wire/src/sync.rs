//! What the ledger is made of. The model (`shim/tests/model`) compiles the ledger's source a second time, over its own
//! module of this name: a small table, and atomics between whose operations every order is tried.

pub use std::hint::spin_loop;
pub use std::process::id as process_id;
pub use std::sync::Mutex;
pub use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64};
pub use std::thread::{sleep, yield_now};

/// Devices that a ledger can hold.
pub const DEVICES: usize = 16;
/// Processes that can hold memory at the same time.
pub const SEATS: usize = 256;
