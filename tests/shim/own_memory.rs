//! Programs that make and map device memory themselves: what VRAM has no room for is on the host, and they cannot tell.

use crate::harness::run;

const MIB: u64 = 1 << 20;

#[test]
fn what_does_not_fit_is_on_the_host() {
    let r = run("own_memory", &["use"]).vram(16).ram(128);
    let job = r.job();
    let shimmed = r.start_in(&job).wait();
    r.judge_records(&shimmed);
    r.compare(&r.plain(), &shimmed);
    // Two of eight fit into 16 MiB, in both rounds.
    assert_eq!(job.spilled(), 2 * 6 * 6 * MIB);
    job.demand_within_limits();
    job.demand_sane_and_empty();
}

#[test]
fn both_budgets_are_exact() {
    let made = |outcome: &crate::harness::Outcome| outcome.notes("made")[0].to_string();
    let only_vram = run("own_memory", &["count"]).vram(16).no_spill();
    assert_eq!(made(&only_vram.shimmed()), "2");
    let both = run("own_memory", &["count"]).vram(16).ram(32);
    assert_eq!(made(&both.shimmed()), "7");
}
