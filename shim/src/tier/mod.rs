//! Allocations and the tiers that back them.
//!
//! Policy, pure and without CUDA types: [`chunk`] (sizes), [`placement`] (how much goes where), [`budget`] (may the
//! machine's RAM be pinned). Mechanism: [`device`], [`range`], [`pinned`], [`spare`], [`small`], [`drain`]; in stream order:
//! [`stream`], [`later`], [`pools`]; [`graphs`]. [`alloc`] and [`free`] put them together; [`map`] knows what the program holds,
//! [`counted`] what the driver holds for it, [`tally`] counts what is live for whoever watches.

pub mod alloc;
pub mod budget;
pub mod chunk;
pub mod counted;
pub mod device;
pub mod drain;
pub mod free;
pub mod graphs;
pub mod later;
pub mod map;
pub mod pinned;
pub mod placement;
pub mod pools;
pub mod range;
pub mod resident;
pub mod small;
pub mod spare;
pub mod stream;
pub mod tally;
