//! The shim under programs that try it: every test runs small programs (`tests/victims`) on the simulated driver, with
//! the shim preloaded and, mostly, without it, and compares what they print.
//!
//! After each run the simulated driver must have seen no misuse, stderr must be empty, and the ledger must be sane:
//! never above a limit, and nothing held when the process is gone. Test names carry the number of the line of the
//! table in README.md that they cover.

mod contexts;
mod drivers;
mod exports;
mod graph;
mod harness;
mod inject;
mod instances;
mod interception;
mod ipc;
mod life;
mod limits;
mod mediation;
mod memory;
mod order;
mod own_memory;
mod peers;
mod pinned;
mod pitfalls;
mod placement;
mod pool;
mod processes;
mod random;
/// The launcher's own.
#[path = "../../src/job/share.rs"]
#[allow(dead_code)]
mod share;
mod staging;
mod threads;
mod vmm;
mod wounded;
