//! The cores of the ledger, of the gate and of the roll of contexts, under every order of their steps that a scheduler can think of.
//!
//! The sources are the shim's own, compiled a second time over a `sync` of the model: the law of each test is checked
//! between any two atomic operations. Weak memory is not modelled, nor needed: all operations are sequentially
//! consistent. (loom treats those as weaker ones, so it would report errors here that there are not.) Small cases are
//! tried exhaustively, the others in random and in priority-driven orders from fixed seeds; `GREENBOOST_MODEL=N` tries N
//! times as many, from other seeds. A failure prints the order, for `shuttle::replay`.
//!
//! Every law was seen to fail when its reason is taken out of the code; the list is beside the tests.
#![allow(dead_code, unused_imports, missing_docs)]

mod sync;

/// Who is alive is the model's own affair.
mod alive {
    pub use crate::sync::start_time;

    /// No process of the model runs another program.
    pub fn image(_pid: u32) -> u64 {
        0
    }
}

#[path = "../../src/tier/gate/doors.rs"]
mod doors;
#[path = "../../src/tier/drain/gate.rs"]
mod gate;
#[path = "../../wire/src/ledger/mod.rs"]
mod ledger;
#[path = "../../src/tier/drain/roll.rs"]
mod roll;

mod contexts;
mod draining;
mod passing;
mod places;

use shuttle::scheduler::{DfsScheduler, PctScheduler, RandomScheduler, Scheduler};
use shuttle::{Config, MaxSteps, Runner};

/// What takes more steps than `most` has no end.
fn run(scheduler: impl Scheduler + 'static, most: usize, body: fn()) -> usize {
    let mut config = Config::new();
    config.silence_warnings = true;
    config.stack_size = 0x10000;
    config.max_steps = MaxSteps::FailAfter(most);
    Runner::new(scheduler, config).run(body)
}

/// Tries orders: half of them at random, half with few changes of priority.
fn some(orders: usize, body: fn()) {
    let times: usize = std::env::var("GREENBOOST_MODEL")
        .ok()
        .map_or(1, |n| n.parse().expect("GREENBOOST_MODEL=N"));
    for seed in 0..times as u64 {
        let random = RandomScheduler::new_from_seed(seed, orders / 2);
        run(random, 20_000, body);
        for depth in [2, 3] {
            let few = PctScheduler::new_from_seed(seed, depth, orders / 4);
            run(few, 20_000, body);
        }
    }
}

/// Tries all orders. Returns how many.
fn all(body: fn()) -> usize {
    run(DfsScheduler::new(None, false), 200, body)
}
