//! Contexts that draining must reach, and those that it must leave alone.

use crate::harness::{Run, run};

/// A free waits for work of a green context, also when the program knows neither that one's context nor the primary one.
#[test]
fn work_of_a_green_context() {
    run("contexts", &["green"]).both();
}

#[test]
fn memory_of_a_green_context() {
    run("contexts", &["green-memory"]).both();
}

fn detached() -> Run {
    run("contexts", &["detach"]).misuses("which is no allocation")
}

#[test]
fn the_last_detach_takes_the_memory_along() {
    detached().both();
    detached().vram(2).both();
}

#[test]
fn the_context_below_is_gone_already() {
    run("contexts", &["below"])
        .misuses("which is no allocation")
        .both();
}

/// PITFALLS 27: a drain of several contexts looks for captures before each.
#[test]
fn p27_capture_while_a_free_waits() {
    run("contexts", &["capture-meanwhile"]).vram(8).both();
}

/// No context is made current once its destruction has begun: the driver does not always survive that.
#[test]
fn contexts_come_and_go_beside_frees() {
    run("contexts", &["come-and-go"]).vram(8).both();
}
