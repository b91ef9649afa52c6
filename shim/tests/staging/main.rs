//! The planner of staging against a GPU, a link and a program: what it loses to the bound, the longer of the compute and
//! the copies of all that has its home on Host.
//!
//! [`machine`] is the GPU with the link and the engine, [`programs`] what runs on it, [`table`] what it has to reach.
//! `cargo test -p greenboost-shim --test staging table -- --nocapture` prints all of it.
#![allow(missing_docs)]

mod machine;
mod programs;
mod properties;
mod table;
