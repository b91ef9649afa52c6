//! What staging has to reach.

use super::machine::{H100, Machine, Took, run};
use super::programs::*;

/// The mean of the last passes.
fn last(passes: &[Took], count: usize) -> Took {
    let of = &passes[passes.len() - count..];
    let mean = |f: fn(&Took) -> f64| of.iter().map(f).sum::<f64>() / count as f64;
    Took {
        seconds: mean(|t| t.seconds),
        compute: mean(|t| t.compute),
        needed: mean(|t| t.needed),
        copied: mean(|t| t.copied),
        slots: mean(|t| t.slots),
        read: mean(|t| t.read),
        swaps: of.iter().map(|t| t.swaps).sum(),
    }
}

fn header() {
    println!(
        "{:<34} {:>8} {:>8} {:>6} | {:>6} {:>6} {:>6} {:>6} | {:>9}",
        "work", "ms", "bound", "ratio", "copied", "least", "slots", "read", "zero-copy"
    );
}

/// Prints and returns what the last passes took.
fn line(name: &str, machine: Machine, program: &Program, count: usize) -> Took {
    let passes = run(machine, program);
    let took = last(&passes, count);
    let without = Machine {
        slots: Some(0),
        ..machine
    };
    let short = Program {
        passes: program.passes[program.passes.len() - 1..].to_vec(),
        ..program.clone()
    };
    let zero = last(&run(without, &short), 1);
    let least = (took.needed - took.slots).max(0.0);
    println!(
        "{name:<34} {:>8.1} {:>8.1} {:>6.3} | {:>6.2} {:>6.2} {:>6.2} {:>6.2} | {:>9.1}",
        took.seconds * 1e3,
        took.bound() * 1e3,
        took.seconds / took.bound(),
        took.copied / 1e9,
        least / 1e9,
        took.slots / 1e9,
        took.read / 1e9,
        zero.seconds * 1e3,
    );
    if std::env::var("PASSES").is_ok() {
        for (n, t) in passes.iter().enumerate() {
            println!(
                "    {n:3} {:8.1} ms copied {:.2} read {:.2} slots {:.2} swaps {}",
                t.seconds * 1e3,
                t.copied / 1e9,
                t.read / 1e9,
                t.slots / 1e9,
                t.swaps
            );
        }
    }
    took
}

fn only(batch: Batch, passes: usize) -> Program {
    let mut p = batches(&[(batch, passes)]);
    p.spill_last(14e9);
    p
}

/// The ratio to the bound is at most this.
#[track_caller]
fn reaches(took: Took, target: f64) {
    let ratio = took.seconds / took.bound();
    assert!(
        ratio <= target,
        "{ratio:.3} of the bound, more than {target}"
    );
}

/// Of what streams, at most what does not fit into the slots is copied, and `ahead` bytes.
#[track_caller]
fn copies_least(took: Took, ahead: f64) {
    let least = took.needed - took.slots;
    assert!(
        took.copied <= least + ahead,
        "{:.2} GB copied, of {:.2}",
        took.copied / 1e9,
        least / 1e9
    );
}

#[test]
fn table() {
    header();
    for (name, batch, target) in [
        ("4 x 2048", PROMPT, 1.05),
        ("4 x 512", SHORT, 1.05),
        ("1 x 128", SMALL, 1.0),
        ("1 x 1", DECODE, 1.0),
    ] {
        line(
            &format!("{name}, the last half outside"),
            H100,
            &only(batch, 10),
            3,
        );
        let laying = Machine { layout: 3, ..H100 };
        let laid = line(
            &format!("{name}, laid out then"),
            laying,
            &only(batch, 14),
            3,
        );
        reaches(laid, target);
        let mut even = batches(&[(batch, 10)]);
        even.spill_evenly(14e9);
        let spread = line(&format!("{name}, spread"), H100, &even, 3);
        reaches(spread, target);
        if batch.compute < 0.1 {
            copies_least(spread, 0.6e9);
        }
        let one = Machine { workers: 1, ..H100 };
        line(&format!("{name}, spread, one thread maps"), one, &even, 3);
    }
    let slow = Machine {
        zero_copy: 37e9,
        ..H100
    };
    reaches(line("Q4 decode", slow, &only(DECODE, 10), 3), 1.0);
    let mut t = training(24, 0.016);
    t.spill_last(18e9);
    line("training", H100, &t, 3);
    // AdamW uses all in a moment: what is outside and in no slot crosses the link then, and nothing hides it.
    reaches(
        line(
            "training, laid out then",
            Machine { layout: 4, ..H100 },
            &t,
            3,
        ),
        1.22,
    );
    let mut t = training(16, 0.032);
    t.spill_last(18e9);
    reaches(line("training, a larger batch", H100, &t, 3), 1.15);
    let mut d = diffusion(6, 20);
    d.spill_last(16e9);
    reaches(line("diffusion", H100, &d, 2), 1.05);
    for (name, batch, target) in [("4 x 2048", PROMPT, 1.05), ("1 x 1", DECODE, 1.0)] {
        let mut n = batches(&[(batch, 16)]);
        n.spill_evenly(14e9);
        noise(&mut n, 5, 7);
        reaches(line(&format!("{name}, noise"), H100, &n, 4), target);
    }
    let mut p = batches(&[(DECODE, 6), (PROMPT, 6), (DECODE, 6), (SHORT, 6)]);
    p.spill_evenly(14e9);
    reaches(line("decode, prompt, decode, prompt", H100, &p, 3), 1.05);
}

/// Where nothing can be foretold, or nothing gains, it is as if nothing were staged.
#[test]
fn no_worse_than_zero_copy() {
    header();
    let mut tiny = batches(&[(DECODE, 40)]);
    tiny.spill_evenly(14e9);
    for op in tiny.passes.iter_mut().flatten() {
        op.touched = 0.02;
    }
    let of = |mut program: Program| {
        program.spill_evenly(14e9);
        program
    };
    // An order that is learned, and then is none any more.
    let lost = |batch| {
        let mut lost = batches(&[(batch, 6)]);
        lost.passes.extend(random(12, batch, 5).passes);
        lost
    };
    // The same operations, in another order each time.
    let mut shuffled = batches(&[(SMALL, 16)]);
    let mut dice = Random(11);
    for pass in &mut shuffled.passes {
        for at in (1..pass.len()).rev() {
            pass.swap(at, dice.below(at as u64 + 1) as usize);
        }
    }
    for (name, program) in [
        ("an order, then random, 1 x 1", of(lost(DECODE))),
        ("an order, then random, 1 x 128", of(lost(SMALL))),
        ("shuffled, 1 x 128", of(shuffled)),
        ("random, 1 x 1", of(random(12, DECODE, 3))),
        ("random, 1 x 128", of(random(12, SMALL, 3))),
        ("experts, any", of(experts(60, 5))),
        ("little of each unit touched", tiny),
    ] {
        let half = program.passes.len() / 2;
        let took = line(name, H100, &program, half);
        let without = Machine {
            slots: Some(0),
            ..H100
        };
        let zero = last(&run(without, &program), half);
        assert!(
            took.seconds <= zero.seconds * 1.02,
            "{name}: {took:?} {zero:?}"
        );
    }
}
