//! A driver that maps no host memory into ranges: whole allocations spill into registered memory.

use crate::harness::{MIB, Run, run};

fn old(victim: &str, args: &[&str]) -> Run {
    run(victim, args)
        .env("FAKE_CUDA_NO_HOST_NUMA", "1")
        .may_degrade()
}

#[test]
fn programs_cannot_tell() {
    for args in [
        &["attributes"][..],
        &["ranges"],
        &["pitch"],
        &["small", "400"],
        &["bad-frees"],
        &["no-context"],
        &["contexts"],
        &["between"],
        &["reset"],
    ] {
        // Some of them free twice, on purpose.
        old("memory", args)
            .vram(4)
            .ram(256)
            .misuses("which is no allocation")
            .both();
    }
}

#[test]
fn nothing_waits_that_would_not_on_vram() {
    let r = old("random", &["7", "0", "1", "2", "3", "120", "40"])
        .vram(8)
        .ram(512);
    let outcome = r.shimmed();
    assert!(outcome.spilled > 8 * MIB);
}

#[test]
fn random_programs() {
    for seed in 0..24u64 {
        let threads = 1 + seed % 4;
        let args = [seed, 0, 2, threads, 3, 160 / threads, 80 / threads].map(|n| n.to_string());
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        old("random", &args).vram(2 + seed % 24).ram(512).shimmed();
    }
}
