//! What holds whatever the program does.

use std::collections::{BTreeMap, HashMap};

use greenboost_shim::tier::policy::{Costs, Move, Op, Policy, Room};
use greenboost_wire::ledger::Tier;
use proptest::prelude::*;

use super::bound::{Line, Prices, least};
use super::held::BOX;
use super::machine::{Reads, Who, run};
use super::workloads::{Buffer, GIB, MIB, Program};

/// What happens to the policy.
#[derive(Clone, Debug)]
enum Step {
    Allocate {
        slot: u64,
        chunks: Vec<(u64, Tier)>,
        movable: bool,
    },
    Free(u64),
    Fix(u64),
    Name(Op, Vec<(u64, u64)>),
    Wait,
    Fail,
    Plan {
        vram: i64,
        host: u64,
        keep: u64,
        done: usize,
    },
    Shrink(u64),
    Newcomer(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let tier = || prop_oneof![Just(Tier::Vram), Just(Tier::Host)];
    let chunk = || {
        (
            prop_oneof![Just(2u64), Just(20), Just(32), Just(64)],
            tier(),
        )
    };
    let op = prop_oneof![
        4 => Just(Op::Launch),
        1 => Just(Op::Graph),
        1 => (0u64..1 << 30).prop_map(|bytes| Op::Copy { bytes }),
        1 => any::<u64>().prop_map(|bytes| Op::Memset { bytes }),
    ];
    let host = || prop_oneof![Just(0), 0u64..1 << 27, 0u64..1 << 30];
    let inside = prop_oneof![3 => Just(0u64), 2 => 0u64..400 << 20];
    prop_oneof![
        3 => (0u64..12, prop::collection::vec(chunk(), 0..8), any::<bool>()).prop_map(
            |(slot, chunks, movable)| Step::Allocate { slot, chunks, movable }
        ),
        1 => (0u64..12).prop_map(Step::Free),
        1 => (0u64..12).prop_map(Step::Fix),
        20 => (op, prop::collection::vec((0u64..12, inside), 0..6)).prop_map(|(o, a)| Step::Name(o, a)),
        2 => Just(Step::Wait),
        1 => Just(Step::Fail),
        6 => (-(1i64 << 29)..1 << 29, host(), 0u64..1 << 26, 0usize..99).prop_map(
            |(vram, host, keep, done)| Step::Plan { vram, host, keep, done }
        ),
        1 => (0u64..1 << 29).prop_map(Step::Shrink),
        1 => (0u64..1 << 29).prop_map(Step::Newcomer),
    ]
}

/// The chunks as they are, and whether they may be moved.
type Held = BTreeMap<u64, (Vec<(u64, Tier)>, bool)>;

/// Slots lie closely: some allocations reach into the next slot.
fn base(slot: u64) -> u64 {
    (1 << 33) + slot * (256 << 20)
}

/// Makes the first `done` of the moves, in order; all of them must be possible.
fn make(policy: &mut Policy, held: &mut Held, moves: &[Move], room: Option<Room>, done: usize) {
    let mut room = room.map(|r| (r.vram, r.host as i64));
    for (index, step) in moves.iter().enumerate() {
        let (chunks, movable) = held.get_mut(&step.base).expect("it is live");
        assert!(*movable, "{step:?} must not be moved");
        let (bytes, tier) = &mut chunks[step.chunk];
        assert_ne!(*tier, step.to, "it is there");
        if let Some((vram, host)) = &mut room {
            let (to, from) = match step.to {
                Tier::Vram => (&mut *vram, &mut *host),
                Tier::Host => (&mut *host, &mut *vram),
            };
            assert!(*to >= *bytes as i64, "no room for {step:?}");
            *to -= *bytes as i64;
            *from += *bytes as i64;
        }
        if index < done {
            *tier = step.to;
            policy.moved(step.base, step.chunk, step.to);
        } else if room.is_none() {
            break;
        }
    }
}

/// All that happens, one after the other. True if anything was moved.
fn drive(mut policy: Policy, steps: Vec<Step>) {
    let mut held = Held::new();
    let mut now = 0.0;
    for step in steps {
        now += 1e-3;
        match step {
            Step::Allocate {
                slot,
                chunks,
                movable,
            } => {
                let chunks: Vec<_> = chunks.into_iter().map(|(n, t)| (n << 20, t)).collect();
                let bytes = chunks.iter().map(|c| c.0).sum::<u64>();
                policy.allocated(base(slot), bytes, &chunks, movable);
                if bytes > 0 {
                    let end = base(slot) + bytes;
                    let ends =
                        |b: u64, of: &Vec<(u64, Tier)>| b + of.iter().map(|c| c.0).sum::<u64>();
                    held.retain(|b, (of, _)| *b >= end || ends(*b, of) <= base(slot));
                    held.insert(base(slot), (chunks, movable));
                }
            }
            Step::Free(slot) => {
                policy.freed(base(slot));
                held.remove(&base(slot));
            }
            Step::Fix(slot) => {
                policy.fixed(base(slot));
                if let Some(of) = held.get_mut(&base(slot)) {
                    of.1 = false;
                }
            }
            Step::Name(op, addresses) => {
                let addresses: Vec<u64> = addresses.iter().map(|(s, i)| base(*s) + i).collect();
                policy.named(op, &addresses, now);
            }
            Step::Wait => policy.waited(now),
            Step::Fail => {
                policy.failed(now);
                let room = Room {
                    vram: 0,
                    keep: 0,
                    host: 1 << 40,
                };
                assert!(policy.plan(room, now, 1.0).is_empty(), "it has just failed");
            }
            Step::Plan {
                vram,
                host,
                keep,
                done,
            } => {
                let room = Room { vram, keep, host };
                let moves = policy.plan(room, now, 0.05);
                let cost: f64 = moves
                    .iter()
                    .map(|m| Costs::H100.moving(held[&m.base].0[m.chunk].0))
                    .sum();
                assert!(cost <= 0.05 || moves.len() == 1, "{cost} s");
                if vram >= 0 {
                    make(&mut policy, &mut held, &moves, Some(room), done);
                } else {
                    // It has to shrink first.
                    let down: u64 = moves
                        .iter()
                        .take_while(|m| m.to == Tier::Host)
                        .map(|m| held[&m.base].0[m.chunk].0)
                        .sum();
                    assert!(down <= host, "no room on Host");
                    let up = moves.iter().any(|m| m.to == Tier::Vram);
                    assert!(!up || down as i64 >= -vram, "promoted without room");
                    make(&mut policy, &mut held, &moves, None, done);
                }
            }
            Step::Shrink(bytes) => {
                let there = |held: &Held| -> u64 {
                    let may = held.values().filter(|h| h.1).flat_map(|h| &h.0);
                    may.filter(|c| c.1 == Tier::Vram).map(|c| c.0).sum()
                };
                let before = there(&held);
                let moves = policy.shrink(bytes);
                make(&mut policy, &mut held, &moves, None, usize::MAX);
                assert!(before - there(&held) >= bytes.min(before));
            }
            Step::Newcomer(bytes) => {
                let moves = policy.newcomer(bytes, 0);
                assert!(moves.iter().all(|m| m.to == Tier::Host));
                make(&mut policy, &mut held, &moves, None, usize::MAX);
            }
        }
        for tier in [Tier::Vram, Tier::Host] {
            let heat = policy.heat(tier);
            assert!(heat.is_finite() && heat >= 0.0, "{heat}");
        }
        assert!(policy.earned().is_finite());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn plans_can_be_carried_out(steps in prop::collection::vec(step(), 0..160)) {
        drive(Policy::new(Costs::H100), steps);
    }

    #[test]
    fn striped_plans_can_be_carried_out(steps in prop::collection::vec(step(), 0..160)) {
        drive(Policy::striped(Costs::H100), steps);
    }

    /// Whatever is used alike stays where it is, in whatever sizes and however the program waits; while it uses the same
    /// several times in a row it waits only when all had their turn, or these are phases.
    #[test]
    fn equal_heat_never_moves(
        sizes in prop::collection::vec(1u64..300, 2..20),
        fits in 0.05..0.95f64,
        waits in 1usize..30,
        times in 1usize..5,
        rounds in 3usize..40,
    ) {
        // Small ones that came last would be guessed to be hot.
        let mut sizes = sizes;
        sizes.sort_unstable();
        let all: u64 = sizes.iter().sum::<u64>() * 2 * MIB;
        let mut p = Program::new((all as f64 * fits) as u64 + 64 * MIB);
        let buffers: Vec<Buffer> = sizes.iter().map(|s| p.allocate(s * 2 * MIB)).collect();
        let mut count = 0;
        for _ in 0..rounds {
            for b in &buffers {
                for _ in 0..times {
                    p.launch("use", &[b.base]);
                    count += 1;
                    if count % waits == 0 && times == 1 {
                        p.wait();
                    }
                }
            }
            p.wait();
        }
        prop_assert_eq!(run(&p.trace, Who::Policy(BOX), Reads::Sum).moved, 0);
    }

    /// What the first turn has not come to yet is not cold.
    #[test]
    fn the_first_turn_moves_nothing(count in 3u64..20, fits in 0.1..0.9f64) {
        let mut p = Program::new((count as f64 * fits * GIB as f64) as u64 + 64 * MIB);
        let buffers: Vec<Buffer> = (0..count).map(|_| p.allocate(GIB)).collect();
        for b in buffers.iter().rev() {
            p.launch("use", &[b.base]);
            p.launch("use", &[b.base]);
            p.wait();
        }
        prop_assert_eq!(run(&p.trace, Who::Policy(BOX), Reads::Sum).moved, 0);
    }

    /// The bound is what trying everything finds, where that can be tried.
    #[test]
    fn the_bound_is_the_least(
        lines in prop::collection::vec((0usize..3, 1usize..5, prop::collection::vec(0u32..4, 4)), 1..5),
        vram in 0u64..4,
        crossing in 1i64..10,
        moving in 0i64..20,
    ) {
        let stretches = 4;
        let prices = Prices { crossing, moving };
        let mut merged: HashMap<Line, u64> = HashMap::new();
        let mut single = Vec::new();
        for (born, lives, uses) in lines {
            let died = (born + lives).min(stretches);
            let used: Vec<(usize, u32)> = (born..died).map(|s| (s, uses[s])).filter(|u| u.1 > 0).collect();
            if used.is_empty() {
                continue;
            }
            let line = Line { born, died, uses: used };
            *merged.entry(line.clone()).or_default() += 1;
            single.push(line);
        }
        prop_assert_eq!(
            least(&merged, stretches, vram, prices),
            i128::from(tried(&single, stretches, vram, prices))
        );
    }
}

/// The least cost over all plans: which lines are in VRAM in which stretch.
fn tried(lines: &[Line], stretches: usize, vram: u64, prices: Prices) -> i64 {
    let alive = |l: &Line, s: usize| l.born <= s && s < l.died;
    let mut best: HashMap<usize, i64> = HashMap::from([(0, 0)]);
    for s in 0..stretches {
        let mut next: HashMap<usize, i64> = HashMap::new();
        for set in 0..1usize << lines.len() {
            let there = |i: usize| set >> i & 1 == 1;
            if set.count_ones() as u64 > vram
                || (0..lines.len()).any(|i| there(i) && !alive(&lines[i], s))
            {
                continue;
            }
            for (&before, &cost) in &best {
                let mut cost = cost;
                for (i, line) in lines.iter().enumerate().filter(|(_, l)| alive(l, s)) {
                    let was = before >> i & 1 == 1;
                    if line.born < s && was != there(i) {
                        cost += prices.moving;
                    }
                    let uses = line.uses.iter().find(|u| u.0 == s).map_or(0, |u| u.1);
                    if !there(i) {
                        cost += i64::from(uses) * prices.crossing;
                    }
                }
                let entry = next.entry(set).or_insert(i64::MAX);
                *entry = (*entry).min(cost);
            }
        }
        best = next;
    }
    *best.values().min().unwrap()
}

/// A little more or less, as chance has it, is the same.
#[test]
fn nearly_equal_heat_never_moves() {
    for seed in 0..10 {
        let mut random = super::workloads::Random(seed);
        let mut p = Program::new(5 * GIB);
        let buffers: Vec<Buffer> = (0..20).map(|_| p.allocate(512 * MIB)).collect();
        for _ in 0..60 {
            for b in &buffers {
                (0..18 + random.below(5)).for_each(|_| p.launch("use", &[b.base]));
            }
            p.wait();
        }
        assert_eq!(
            run(&p.trace, Who::Policy(BOX), Reads::Sum).moved,
            0,
            "{seed}"
        );
    }
}

/// Chance does its worst: a random program, with buffers that come and go.
#[test]
fn random_programs_lose_little() {
    for seed in 0..40 {
        let mut random = super::workloads::Random(seed);
        let mut p = Program::new(6 * GIB);
        let mut live: Vec<Buffer> = Vec::new();
        for _ in 0..1500 {
            match random.below(40) {
                0 => live.push(p.allocate((1 + random.below(300)) * 2 * MIB)),
                1 if live.len() > 12 => {
                    let gone = live.swap_remove(random.below(live.len() as u64) as usize);
                    p.free(gone);
                }
                2 | 3 => p.wait(),
                _ if !live.is_empty() => {
                    // Some far more often than others, and others later.
                    let of = (random.below(live.len() as u64) * random.below(live.len() as u64))
                        as usize;
                    p.launch("any", &[live[of / live.len()].base]);
                }
                _ => {}
            }
        }
        let first = run(&p.trace, Who::FirstFit, Reads::Sum);
        let ours = run(&p.trace, Who::Policy(BOX), Reads::Sum);
        let more = ours.time - first.time;
        assert!(more <= 0.01 * first.time + 0.3, "{seed}: {more} s");
    }
}
