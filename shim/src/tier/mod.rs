//! Allocations and the tiers that back them.
//!
//! Policy, pure and without CUDA types: [`chunk`] (sizes), [`placement`] (how much of a new range goes where), [`policy`]
//! (what is worth moving), [`budget`] (may the machine's RAM be pinned). Mechanism: [`device`], [`range`], [`pinned`],
//! [`spare`], [`small`], [`drain`]; in stream order: [`stream`], [`later`], [`pools`]; [`graphs`]. [`alloc`] and [`free`] put
//! them together; [`map`] knows what the program holds, [`counted`] what the driver holds for it, [`tally`] counts what is
//! live for whoever watches.
//!
//! What moves: [`access`] notes what operations name ([`args`], [`execs`]), the [`steward`] asks the policy, [`gate`] and
//! [`drain`] keep the device still, [`moving`] moves. [`staging`]: what is brought close just ahead of its use. [`spill`]: the
//! file of the tier below RAM.

pub mod access;
pub mod alloc;
pub mod args;
pub mod budget;
pub mod chunk;
pub mod content;
pub mod counted;
pub mod device;
pub mod drain;
pub mod execs;
pub mod free;
pub mod gate;
pub mod graphs;
pub mod later;
pub mod map;
pub mod moving;
pub mod pinned;
pub mod placement;
pub mod policy;
pub mod pools;
pub mod range;
pub mod resident;
pub mod small;
pub mod spare;
pub mod spill;
pub mod staging;
pub mod steward;
pub mod stream;
pub mod tally;
