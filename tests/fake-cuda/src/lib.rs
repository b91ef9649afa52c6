//! The simulated driver: `libcuda.so.1` and `libnvidia-ml.so.1` in one object, without a GPU.
//!
//! It is strict (whatever would corrupt or fault on a GPU is found and recorded) and honest (it
//! answers as the hardware was measured to answer). The rooms:
//!
//! - `abi` `gate`: how a call comes in. Every exported function is declared with [`gate::api`] and
//!   passes `gate::enter`: fork guard, fault injection, initialisation, context, panics, trace.
//! - `config` `misuse` `error` `local` `world`: environment, reports, names, thread state, all state.
//! - `device` `context` `nvml`: what there is.
//! - `phys` `handle` `va` `vmm` `memory` `host` `pool` `pool_share` `array` `external` `shared` `pointer` `ipc`: memory,
//!   from the
//!   physical object up to the questions about a pointer.
//! - `queue` `work` `stream` `event` `race`: asynchrony. A stream is a thread with a queue.
//! - `copy` `area` `transfer` `memset` `cell`: moving bytes; words that streams write and wait for.
//! - `ptx` `module` `library` `kernel` `launch`: code.
//! - `capture` `refuse` `graph` `node` `graph_memory`: recording work and replaying it.
//! - `resolve`: names to addresses.
//!
//! Nothing happens before the first call, and nothing is ever torn down: the state survives the
//! exit handlers of the program.
#![allow(missing_docs, non_snake_case, clippy::missing_safety_doc)]

#[macro_use]
mod gate;

mod abi;
mod area;
mod array;
mod capture;
mod cell;
mod config;
mod context;
mod copy;
mod device;
mod error;
mod event;
mod external;
mod graph;
mod graph_memory;
mod green;
mod handle;
mod host;
mod ipc;
mod kernel;
mod launch;
mod library;
mod local;
mod memory;
mod memset;
mod misuse;
mod module;
mod node;
mod node_params;
mod nvml;
mod phys;
mod pointer;
mod pool;
mod pool_share;
mod ptx;
mod queue;
mod race;
mod refuse;
mod resolve;
mod shared;
mod stream;
mod transfer;
mod va;
mod vmm;
mod work;
mod world;
