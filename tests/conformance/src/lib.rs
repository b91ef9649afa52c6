//! What the shim relies on a CUDA driver for: one suite, two drivers.
//!
//! Every check opens `libcuda.so.1` itself and goes through one handle (`api::Driver`), so the same code holds the simulated driver to
//! the real one. No greenboost is involved. Expectations are measurements (`tests/gpu/facts.cu`, driver 580 on an
//! H200) unless a check says otherwise. The rooms:
//!
//! - `api`: the functions, `host`: memory of this process that the driver may be given.
//! - `bench`: a driver that is ready for work, with ranges, streams and kernels. `behind`: did a call wait?
//! - `told`: what a check found. `runner`: each check in a process of its own.
//! - `checks`: the checks, and the one list of them.

mod api;
mod behind;
mod bench;
mod checks;
mod host;
mod runner;
mod told;

pub use checks::{CHECKS, Check};
pub use runner::main;
pub use told::Told;
