//! What each intercepted call means. One file a subject; the table that leads here is [`crate::hooks`].

pub mod array;
pub mod capture;
pub mod code;
pub mod context;
pub mod exec;
pub mod external;
pub mod graph;
pub mod host;
pub mod ipc;
pub mod launch;
pub mod memory;
pub mod nodes;
pub mod order;
pub mod pass;
pub mod pointer;
pub mod pool;
pub mod proc_address;
pub mod query;
pub mod renew;
pub mod sync;
pub mod vmm;
