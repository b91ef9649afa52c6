//! What the launcher and the shims of one job share.
//!
//! - [`ledger`]: a small file, mapped by every process of the job, that holds the limits and who uses how much of them;
//! - [`record`]: fixed-size, versioned datagrams that a process sends to its launcher;
//! - [`share`]: what a process says to its launcher about memory that it shares with the job's other processes;
//! - [`ram`]: what the machine says of its memory;
//! - [`filesystem`] and [`nvme`]: what a directory lies on, and whether memory can spill to it;
//! - [`alive`]: whether a process that left something behind still lives.
//!
//! A job is a private directory. Its path travels in [`JOB_ENV`]; everything else is found inside it.
#![warn(missing_docs)]

pub mod alive;
pub mod filesystem;
pub mod ledger;
pub mod nvme;
pub mod ram;
pub mod record;
pub mod share;
mod sync;

#[cfg(test)]
mod ledger_tests;

/// Environment variable with the path of the job's directory; set by `greenboost run`, inherited by children.
pub const JOB_ENV: &str = "GREENBOOST_JOB";
/// Environment variable that makes the shim inert when it is `off`.
pub const SWITCH_ENV: &str = "GREENBOOST";
/// Environment variable that, when it is `pinned`, has host memory registered whole instead of mapped into ranges.
pub const BACKEND_ENV: &str = "GREENBOOST_BACKEND";
/// Environment variable with the absolute path of the file that a process writes its trace to.
pub const TRACE_ENV: &str = "GREENBOOST_TRACE";
/// The ledger's file name inside the job directory.
pub const LEDGER_FILE: &str = "ledger";
/// The control socket's file name inside the job directory (`SOCK_SEQPACKET`, the launcher listens).
pub const CONTROL_SOCKET: &str = "control";
/// The file name, inside the job directory, of the socket for shared memory (`SOCK_SEQPACKET`, the launcher listens).
pub const SHARE_SOCKET: &str = "share";
