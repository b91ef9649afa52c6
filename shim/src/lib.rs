//! The greenboost shim: the library that `greenboost run` preloads into a CUDA program.
//!
//! # The law
//! Prediction moves pages, never meaning. Every address that the program holds stays valid for every kernel, or the
//! program is stopped with a clear message. Nothing is unmapped, moved or freed while work that could touch it may be in
//! flight. When every tier is full the program gets `CUDA_ERROR_OUT_OF_MEMORY`, as on a real card, and goes on.
//!
//! # The house, in the direction of knowledge
//! - [`symbols`]: `dlsym` and `dlvsym`, and where the real functions are ([`elf`] reads the loaded objects);
//! - [`hooks`]: the one table of intercepted functions;
//! - [`boundary`]: what every intercepted call passes: re-entrancy, panics, fall-through;
//! - [`mediation`]: what every other function of the driver may do, [`freeze`]: and the end of all movement if need be;
//! - [`calls`]: what each intercepted call means;
//! - [`tier`]: allocations, chunks, budgets, mappings, draining, the gate, placement;
//! - [`driver`]: the real driver, `Result`-typed.
//!
//! [`process`] holds the life of the process (asleep until its `cuInit`), [`telemetry`] what the launcher hears,
//! [`share`] what it keeps for other processes.

pub mod boundary;
pub mod calls;
pub mod driver;
pub mod elf;
pub mod freeze;
#[cfg(test)]
mod functions;
pub mod hooks;
pub mod mediation;
pub mod process;
pub mod share;
pub mod symbols;
pub mod telemetry;
pub mod tier;
