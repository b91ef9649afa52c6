//! Allocations and the tiers that back them.
//!
//! Policy, pure and without CUDA types: [`chunk`] (sizes), [`placement`] (how much goes where), [`budget`] (may the
//! machine's RAM be pinned). Mechanism: [`device`], [`range`], [`pinned`], [`spare`], [`small`], [`drain`]. [`alloc`] and [`free`] put
//! them together; [`map`] knows what the program holds, [`counted`] what the driver holds for it.

pub mod alloc;
pub mod budget;
pub mod chunk;
pub mod counted;
pub mod device;
pub mod drain;
pub mod free;
pub mod map;
pub mod pinned;
pub mod placement;
pub mod range;
pub mod resident;
pub mod small;
pub mod spare;
