//! What the policy is held to, on the traces in `traces/`.

use std::fs;
use std::path::PathBuf;

use greenboost_shim::tier::policy::trace::{Reader, Record, Writer};

use super::machine::{Reads, Took, Who, run, run_watched};
use super::{bound, workloads};

/// Seconds that a plan may take.
pub const BOX: f64 = 0.25;

/// A trace that is checked in.
fn stored(name: &str) -> Vec<Record> {
    let file = fs::read(path(name)).unwrap();
    let mut reader = Reader::new(&file[..]).unwrap();
    let trace = std::iter::from_fn(|| reader.record().unwrap()).collect();
    assert!(!reader.truncated(), "{name}");
    trace
}

fn path(name: &str) -> PathBuf {
    let here = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/policy/traces");
    here.join(name).with_extension("trace")
}

/// The traces in `traces/` are those that `workloads` makes.
#[test]
fn traces_are_current() {
    for (name, trace) in workloads::all() {
        let mut writer = Writer::new(Vec::new()).unwrap();
        trace.iter().for_each(|r| writer.record(r).unwrap());
        let bytes = writer.into_inner();
        if std::env::var_os("UPDATE").is_some() {
            fs::write(path(name), &bytes).unwrap();
        }
        assert!(
            fs::read(path(name)).is_ok_and(|there| there == bytes),
            "UPDATE=1 cargo test -p greenboost-shim --test policy"
        );
    }
}

/// A trace with the policy, first come, first served, and the least that could be lost.
fn compare(name: &str) -> (Took, Took, f64) {
    let trace = stored(name);
    let ours = run(&trace, Who::Policy(BOX), Reads::Sum);
    let first = run(&trace, Who::FirstFit, Reads::Sum);
    let least = bound::lost(&trace);
    for took in [&ours, &first] {
        assert!(took.lost() >= least * 0.999_999, "{name}: below the bound");
    }
    println!(
        "{name:<11} {:>8.2} {:>9.2} {:>9.2} {:>9.2} {:>7.3} {:>7.3} {:>8.3} {:>8.1}",
        ours.ideal,
        first.lost(),
        ours.lost(),
        least,
        ours.lost() / least,
        ours.time / first.time,
        ours.moving,
        ours.moved as f64 / 1e9,
    );
    (ours, first, least)
}

/// The time lost to the link and to moves is within 1.3 times the least, on what programs do; and nothing takes more
/// than 2 % longer than with first come, first served.
#[test]
fn table() {
    println!(
        "{:<11} {:>8} {:>9} {:>9} {:>9} {:>7} {:>7} {:>8} {:>8}",
        "trace",
        "in VRAM",
        "first-fit",
        "policy",
        "bound",
        "/bound",
        "/first",
        "moving",
        "moved GB"
    );
    for name in ["llm", "prompt", "diffusion", "training", "moe"] {
        let (ours, first, least) = compare(name);
        assert!(ours.lost() <= 1.3 * least, "{name}");
        assert!(ours.time <= first.time, "{name}");
    }
    for name in ["scan", "adversary", "two-models"] {
        let (ours, first, _) = compare(name);
        assert!(ours.time <= 1.02 * first.time, "{name}");
    }
}

/// Whatever the program does: no more than 2 % and a fraction of a second.
#[test]
fn adversaries_win_little() {
    for seed in 0..12 {
        let trace = workloads::adversary(seed);
        let first = run(&trace, Who::FirstFit, Reads::Sum);
        let ours = run(&trace, Who::Policy(BOX), Reads::Sum);
        let more = ours.time - first.time;
        assert!(more <= 0.01 * first.time + 0.3, "{seed}: {more} s");
    }
}

/// Of two models that are used in turn, 20 steps each, one is in VRAM at least 16 of them.
#[test]
fn the_model_in_use_is_promoted() {
    let trace = stored("two-models");
    let (mut before, mut full, mut steps) = (Took::default(), 0, 0);
    run_watched(&trace, Who::Policy(BOX), Reads::Sum, |_, now| {
        let ideal = now.ideal - before.ideal;
        full += u32::from(now.time - before.time < 1.05 * ideal);
        steps += 1;
        before = now.clone();
    });
    assert_eq!(steps, 240);
    assert!(full >= 192, "{full} of 240 steps at full speed");
}

/// Once a program has settled, next to nothing is moved any more.
#[test]
fn what_has_settled_stays() {
    for name in ["llm", "prompt", "training", "diffusion"] {
        let trace = stored(name);
        let mut all = Vec::new();
        run_watched(&trace, Who::Policy(BOX), Reads::Sum, |_, now| {
            all.push(now.clone())
        });
        let (half, end) = (&all[all.len() / 2], &all[all.len() - 1]);
        let moving = end.moving - half.moving;
        assert!(
            moving <= 0.02 * (end.time - half.time),
            "{name}: {moving} s"
        );
    }
}

/// What the account says was earned is what was.
#[test]
fn the_account_is_right() {
    for name in [
        "llm",
        "diffusion",
        "training",
        "moe",
        "scan",
        "adversary",
        "two-models",
    ] {
        let trace = stored(name);
        let first = run(&trace, Who::FirstFit, Reads::Sum);
        let mut earned = 0.0;
        let ours = run_watched(&trace, Who::Policy(BOX), Reads::Sum, |policy, _| {
            earned = policy.earned();
        });
        let really = first.time - ours.time;
        let wrong = (really - earned).abs();
        assert!(
            wrong <= 0.01 * first.time + 0.005,
            "{name}: {earned}, not {really}"
        );
    }
}

/// A small box delays, and no more.
#[test]
fn small_boxes_do() {
    let trace = stored("llm");
    let large = run(&trace, Who::Policy(BOX), Reads::Sum);
    let small = run(&trace, Who::Policy(0.01), Reads::Sum);
    assert!(
        small.time < 1.1 * large.time,
        "{} {}",
        small.time,
        large.time
    );
}

/// Kernels that read both tiers at once: striping is worth it when little is on Host.
#[test]
fn stripes() {
    for (fit, least) in [(95, 0.93), (90, 0.93), (75, 0.97), (50, 1.0)] {
        let trace = workloads::decode(fit);
        let whole = run(&trace, Who::Policy(BOX), Reads::Max);
        let striped = run(&trace, Who::Striped(BOX), Reads::Max);
        let ratio = striped.time / whole.time;
        println!("{fit} % in VRAM: striped takes {ratio:.3} of the time");
        assert!(ratio < least, "{fit}");
    }
    for (name, trace) in workloads::all() {
        let whole = run(&trace, Who::Policy(BOX), Reads::Max);
        let striped = run(&trace, Who::Striped(BOX), Reads::Max);
        println!(
            "{name}: striped takes {:.3} of the time",
            striped.time / whole.time
        );
        assert!(striped.time <= 1.02 * whole.time + 0.1, "{name}");
    }
}

/// What is told of the bytes that operations name is what they use, also while it is being learned where they end.
#[test]
fn what_is_named_is_what_is_used() {
    for (name, _) in workloads::all() {
        for who in [Who::FirstFit, Who::Policy(BOX)] {
            let took = run(&stored(name), who, Reads::Sum);
            for tier in 0..2 {
                let part = took.named[tier] as f64 / took.used[tier];
                assert!(
                    (0.95..1.05).contains(&part),
                    "{name} {who:?} {tier}: {part}"
                );
            }
        }
    }
}

/// And the time of a step is near what it takes: each waits once. (A step is a little less than a turn of the loop.)
#[test]
fn steps_take_what_they_take() {
    for name in ["llm", "prompt", "training", "two-models"] {
        let (mut waits, mut step) = (Vec::new(), None);
        run_watched(&stored(name), Who::FirstFit, Reads::Sum, |policy, now| {
            waits.push(now.time);
            step = policy.step_time(now.time);
        });
        let last = &waits[waits.len() - 6..];
        let part = step.unwrap() / ((last[5] - last[0]) / 5.0);
        assert!((0.85..1.05).contains(&part), "{name}: {part}");
    }
}
