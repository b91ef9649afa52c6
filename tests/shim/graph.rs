//! Graphs over ranges of both tiers, and the memory that graphs allocate.

use greenboost_wire::ledger::Placement;

use crate::harness::{MIB, Outcome, Run, run};

fn graph(what: &str) -> Run {
    run("graph", &[what])
}

/// The numbers of notes that begin so.
fn numbers(outcome: &Outcome, words: &str) -> Vec<Vec<u64>> {
    let notes = outcome.notes(words);
    assert!(!notes.is_empty(), "no note {words:?}");
    let all = notes.iter().map(|line| {
        line.split(|c: char| !c.is_ascii_digit())
            .filter_map(|n| n.parse().ok())
            .collect()
    });
    all.collect()
}

#[test]
fn nodes_made_by_hand() {
    for vram in [2, 16, 24] {
        assert!(graph("nodes").vram(vram).both().spilled > 0);
    }
}

#[test]
fn nodes_get_other_operands() {
    for vram in [2, 16, 24] {
        assert!(graph("updates").vram(vram).both().spilled > 0);
    }
}

#[test]
fn every_form_can_be_captured() {
    for vram in [1, 14, 64] {
        graph("forms").vram(vram).both();
    }
}

/// What graphs hold is part of the VRAM budget, from the launch to the trim, and no more than once.
#[test]
fn graph_memory_is_counted() {
    let outcome = graph("memory").vram(64).physical().both();
    let first = numbers(&outcome, "first")[0][0];
    let launched = numbers(&outcome, "launched");
    assert_eq!(launched, vec![[first - 4 * MIB]; 4]);
    assert_eq!(numbers(&outcome, "trimmed"), vec![[first]; 4]);
}

#[test]
fn graph_memory_with_everything_else_spilled() {
    assert!(graph("memory").vram(6).slack(4).both().spilled > 0);
}

/// Allocations of graphs are freed by whoever may; the shim owns none of them and takes none for its own.
#[test]
fn frees_outside_the_graph() {
    for vram in [64, 8] {
        graph("frees")
            .vram(vram)
            .slack(4)
            .misuses("which is no allocation")
            .misuses("which its graph frees")
            .both();
    }
}

/// Memory that idle graphs hold makes room for allocations; used memory does not, and nothing drifts.
#[test]
fn idle_graph_memory_yields() {
    let outcome = graph("pressure").vram(16).slack(8).physical().shimmed();
    // Only where a graph was still to run did an allocation go to the host.
    assert!(
        outcome.spilled <= 4 * 12 * MIB,
        "{} bytes spilled",
        outcome.spilled
    );
    for round in numbers(&outcome, "launched") {
        assert_eq!(round, [8 * MIB, 8 * MIB]);
    }
    for round in numbers(&outcome, "allocated") {
        assert_eq!(round, [0, 16 * MIB]);
    }
    assert_eq!(numbers(&outcome, "last"), [[16 * MIB]]);
    graph("pressure").vram(16).slack(8).both();
}

/// A graph larger than the budget is the driver's to run: it is counted, other memory gives way, nothing fails.
#[test]
fn a_graph_over_the_budget() {
    let outcome = graph("over-budget")
        .vram(16)
        .slack(32)
        .physical()
        .placement(Placement::FirstFit)
        .both();
    for round in numbers(&outcome, "launched") {
        assert_eq!(round, [32 * MIB, 0]);
    }
    assert_eq!(numbers(&outcome, "trimmed"), [[0, 4 * MIB]]);
    let free = numbers(&outcome, "free");
    assert_eq!(free, [[4 * MIB], [16 * MIB]]);
}

/// What the shim keeps for reuse is given up when a launch finds the card full.
#[test]
fn a_launch_on_a_full_card() {
    graph("card-full").vram(64).card(64).shimmed();
}

/// PITFALLS 27: whatever call is made while somebody captures, in whatever mode.
#[test]
fn p27_calls_beside_a_capture() {
    for vram in [2, 16] {
        let outcome = graph("undisturbed").vram(vram).slack(2).both();
        for line in outcome.stdout.lines() {
            assert!(line.ends_with(": 0 0"), "{line}");
        }
    }
}

#[test]
fn nodes_on_older_drivers() {
    for version in ["11040", "12000", "12020"] {
        let outcome = graph("nodes")
            .env("FAKE_CUDA_DRIVER", version)
            .may_degrade()
            .both();
        assert!(outcome.stdout.contains("round 2"));
    }
}
