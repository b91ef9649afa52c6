//! The placement policy against traces: what it loses to the link, next to first come, first served, and to a bound that
//! nothing can be below.
//!
//! [`workloads`] makes the traces in `traces/` (`UPDATE=1` writes them), [`machine`] replays one, [`bound`] computes the
//! bound. `cargo test -p greenboost-shim --test policy table -- --nocapture` prints all of them.
#![allow(missing_docs)]

mod bound;
mod codec;
mod held;
mod machine;
mod naming;
mod pitfalls;
mod properties;
mod truth;
mod workloads;
