//! The limits are exact, and every query tells one story.

use std::time::Duration;

use greenboost_wire::ledger::Tier;
use greenboost_wire::record::Kind;

use crate::harness::{MIB, Run, run};

/// PITFALLS 13: many processes and threads under one limit; at no moment is the sum above it.
#[test]
fn p13_shared_limit_is_exact() {
    let one = |seed: u64| {
        run("share", &[&seed.to_string(), "3", "60", "9"])
            .vram(24)
            .ram(32)
    };
    let job = one(0).job();
    let mut all: Vec<_> = (1..=6).map(|seed| one(seed).start_in(&job)).collect();
    let mut seen = 0;
    while all.iter_mut().any(|r| r.is_running()) {
        let (vram, host) = job.held();
        assert!(vram <= 24 * MIB, "{vram} bytes of VRAM held");
        assert!(host <= 32 * MIB, "{host} bytes of host memory held");
        seen = seen.max(vram + host);
        std::thread::sleep(Duration::from_micros(300));
    }
    for r in all {
        r.wait();
    }
    assert!(
        seen > 40 * MIB,
        "the limits were never tried: {seen} bytes at most"
    );
    job.demand_sane_and_empty();
}

/// The same on a card that is itself too small, shared by processes that do not know of each other's bytes.
#[test]
fn p13_shared_card_is_too_small() {
    let board = tempfile::NamedTempFile::new().unwrap();
    let one = |seed: u64| {
        run("share", &[&seed.to_string(), "2", "40", "9"])
            .vram(400)
            .ram(64)
            .card(30)
            .env("FAKE_CUDA_SHARED", board.path())
    };
    let job = one(0).job();
    let all: Vec<_> = (1..=4).map(|seed| one(seed).start_in(&job)).collect();
    for r in all {
        r.wait();
    }
    job.demand_sane_and_empty();
}

/// Takes everything, several times over: the same number of pieces each time, out of memory in between.
#[test]
fn p15_exhausted_again_and_again() {
    for (vram, ram, piece) in [
        (16, 48, 3 << 20),
        (16, 48, (2 << 20) + 1),
        (8, 24, 100_000),
        (33, 9, 5 << 20),
    ] {
        let outcome = run("memory", &["exhaust", &piece.to_string()])
            .vram(vram)
            .ram(ram)
            .shimmed();
        assert!(outcome.said(Kind::OutOfMemory) > 0, "nobody was told");
        let counts = outcome.notes("pieces")[0];
        let first: u64 = counts[1..].split(',').next().unwrap().parse().unwrap();
        let rounded = |granule: u64| (piece as u64).next_multiple_of(granule);
        let budget = (vram + ram) * MIB;
        assert!(
            first * piece as u64 <= budget,
            "{first} pieces of {piece} in {budget} bytes"
        );
        // Large pieces come in whole granules of 2 MiB per tier; small ones share.
        let least = if piece as u64 >= 2 * MIB {
            budget / rounded(2 * MIB) - 2
        } else {
            budget / rounded(512) * 3 / 4
        };
        assert!(
            first >= least,
            "only {first} pieces of {piece} in {budget} bytes; {least} should fit"
        );
    }
}

/// `--spill off`: out of VRAM is out of memory.
#[test]
fn p36_no_spill() {
    let outcome = run("memory", &["exhaust", "3000000"])
        .vram(16)
        .no_spill()
        .shimmed();
    let counts = outcome.notes("pieces")[0];
    let first: u64 = counts[1..].split(',').next().unwrap().parse().unwrap();
    assert!((3..=5).contains(&first), "{first} pieces of 3 MB in 16 MiB");
}

/// Frees give back what was taken: after a hundred rounds no more is held than after five.
#[test]
fn p15_nothing_leaks() {
    let held_after = |rounds: &str| {
        let r = run("memory", &["cycles", rounds]);
        let job = r.job();
        let mut live = r.start_in(&job);
        live.until("freed");
        let held = job.held();
        live.tell("end");
        live.wait();
        job.demand_sane_and_empty();
        held
    };
    let (few, many) = (held_after("5"), held_after("60"));
    assert_eq!(few, many, "held after 5 rounds and after 60");
}

fn story(r: Run) -> Vec<[u64; 3]> {
    let outcome = r.shimmed();
    ["start", "ten", "forty", "end"]
        .iter()
        .map(|when| {
            let line = outcome.notes(when)[0];
            let numbers: Vec<u64> = line.split(' ').map(|n| n.parse().unwrap()).collect();
            [numbers[0], numbers[1], numbers[2]]
        })
        .collect()
}

/// PITFALLS 16 and 17: what is free and what there is, in both modes of reporting.
#[test]
fn p16_p17_memory_info() {
    for (r, budget) in [
        (run("memory", &["info"]).vram(16).ram(64), 80 * MIB),
        (
            run("memory", &["info"]).vram(16).ram(64).physical(),
            16 * MIB,
        ),
        (
            run("memory", &["info"]).vram(16).ram(64).no_spill(),
            16 * MIB,
        ),
    ] {
        let label = r.to_string();
        // Without a spill the 40 MiB do not fit; the victim would fail.
        if label.contains("spill: false") {
            continue;
        }
        let [start, ten, forty, end]: [[u64; 3]; 4] = story(r).try_into().unwrap();
        for [free, total, device_total] in [start, ten, forty, end] {
            assert_eq!(total, budget, "{label}: total");
            assert_eq!(device_total, budget, "{label}: cuDeviceTotalMem");
            assert!(free <= total, "{label}: {free} free of {total}");
        }
        assert!(
            start[0] > ten[0] || ten[0] == 0,
            "{label}: an allocation is not seen"
        );
        assert!(ten[0] >= forty[0], "{label}: free grows by allocating");
        assert!(end[0] >= ten[0], "{label}: a free is not seen");
    }
}

/// The RAM limit holds over several devices together.
#[test]
fn ram_limit_over_devices() {
    let r = run("memory", &["devices"])
        .env("FAKE_CUDA_DEVICES", "3")
        .vram(4)
        .ram(26);
    let job = r.job();
    r.start_in(&job).wait();
    job.demand_sane_and_empty();
    assert_eq!(job.ledger.devices().count(), 3);
    let host: u64 = job
        .ledger
        .devices()
        .map(|(i, _)| job.ledger.used(Tier::Host, i))
        .sum();
    assert_eq!(host, 0);
}

/// Walks a victim through its stages and reads what is held in each.
fn stages(what: &str) -> Vec<(String, u64)> {
    let r = run("counted", &[what]).vram(64);
    let r = match what {
        // It frees twice, and tries the shim's ranges with the program's calls and the reverse.
        "async" => r.misuses("free"),
        "vmm" => r.misuses("free").misuses("unmap"),
        _ => r.misuses("destroy of array"),
    };
    let plain = {
        let mut live = r.clone().card(4096).start_plain();
        for _ in 0..9 {
            live.say_on();
        }
        live.wait()
    };
    let job = r.job();
    let mut live = r.start_in(&job);
    let mut all = Vec::new();
    while let Some(stage) = live.next_line("stage ", all.len()) {
        all.push((stage.clone(), job.held().0));
        live.tell("on");
        if stage == "end" {
            break;
        }
    }
    let outcome = live.wait();
    r.compare(&plain, &outcome);
    job.demand_sane_and_empty();
    all
}

fn demand_stages(what: &str, piece: u64) {
    let all = stages(what);
    let start = all[0].1;
    for (stage, held) in &all {
        let pieces = match stage.split(' ').next() {
            Some("three") => 3,
            Some("two") => 2,
            _ => 0,
        };
        let expected = start + pieces * piece;
        // What the shim keeps for reuse is held too.
        assert!(
            (expected..=expected + 4 * MIB).contains(held),
            "{what}, {stage}: {held} bytes held, {expected} expected; {all:?}"
        );
    }
}

/// PITFALLS 15 and 21: stream-ordered allocations are the driver's, counted, and no longer when freed by whichever call.
#[test]
fn p15_p21_async_is_counted() {
    demand_stages("async", 6 * MIB);
}

/// PITFALLS 15: a handle that was released but is still mapped is still held.
#[test]
fn p15_own_virtual_memory_is_counted() {
    demand_stages("vmm", 6 * MIB);
}

/// PITFALLS 29: arrays are counted.
#[test]
fn p29_arrays_are_counted() {
    demand_stages("array", 6 * MIB);
}

/// PITFALLS 16: NVML tells the same story as CUDA, in both versions, in both modes, also before CUDA is up.
#[test]
fn p16_nvml() {
    for r in [
        run("nvml", &["both"]).vram(16).ram(64),
        run("nvml", &["both"]).vram(16).ram(64).physical(),
    ] {
        let outcome = r.both();
        let numbers = |word: &str| -> Vec<u64> {
            outcome.notes(word)[0]
                .split(' ')
                .map(|n| n.parse().unwrap())
                .collect()
        };
        let budget = numbers("cuda-start")[0];
        for when in ["before", "start", "held", "end"] {
            let (one, two) = (
                numbers(&format!("nvml1-{when}")),
                numbers(&format!("nvml2-{when}")),
            );
            assert_eq!(one[0], budget, "{r}: {when}: total");
            assert_eq!(one[1] + one[2], one[0], "{r}: {when}: free and used");
            assert_eq!(two[0], budget, "{r}: {when}: total of v2");
            assert_eq!(
                two[1] + two[2] + two[3],
                two[0],
                "{r}: {when}: free, used and reserved"
            );
            if when != "before" {
                let cuda = numbers(&format!("cuda-{when}"));
                assert_eq!(
                    (cuda[0], cuda[1]),
                    (one[0], one[1]),
                    "{r}: {when}: two stories"
                );
            }
        }
    }
    // A program that never uses CUDA, as nvidia-smi.
    run("nvml", &["alone"]).both();
}
