//! A panic inside the shim: the call fails, the program goes on, what it owns stays good (DESIGN law 6).

use greenboost_wire::record::Kind;

use crate::harness::{MIB, Outcome, Run, faulty_shim, run};

fn wounded(what: &str, rule: &str) -> Run {
    run("wounded", &[what])
        .under(faulty_shim())
        .env("GREENBOOST_FAULT", format!("panic:{rule}"))
        .may_be_wounded()
        .misuses("which is no allocation")
}

/// The launcher hears of it once, with the reason; the terminal never (`shimmed` demands an empty stderr).
fn demand_one_record(outcome: &Outcome, function: &str) {
    let said: Vec<&str> = outcome
        .records
        .iter()
        .filter(|r| r.kind == Kind::Wounded)
        .map(|r| r.text.as_str())
        .collect();
    assert_eq!(said, [format!("injected into {function}")]);
}

/// The variant without a rule is the shim.
#[test]
fn the_faulty_shim_is_a_shim() {
    run("everything", &[]).under(faulty_shim()).both();
}

#[test]
fn p40_panic_in_an_allocation() {
    let outcome = wounded("alloc", "cuMemAlloc_v2:4").shimmed();
    demand_one_record(&outcome, "cuMemAlloc_v2");
    assert!(outcome.spilled > 20 * MIB, "the ranges were not mixed");
}

#[test]
fn panic_in_a_free() {
    let outcome = wounded("free", "cuMemFree_v2:2").shimmed();
    demand_one_record(&outcome, "cuMemFree_v2");
}

#[test]
fn panics_again_and_again_are_told_once() {
    let outcome = wounded("info", "cuMemGetInfo_v2:2+").shimmed();
    demand_one_record(&outcome, "cuMemGetInfo_v2");
}

/// In a capture: it ends as the program wants, and what was freed meanwhile is freed after it.
#[test]
fn panic_in_a_capture() {
    let outcome = wounded("capture", "cuMemAlloc_v2:4").shimmed();
    demand_one_record(&outcome, "cuMemAlloc_v2");
}
