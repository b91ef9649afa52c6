//! What holds whatever the program does; and what is copied by an engine that takes no time.

use greenboost_shim::tier::staging::{Planner, Rates, Unit};
use greenboost_wire::ledger::Tier;
use proptest::prelude::*;

use super::machine::DMA;
use super::programs::{MIB, Random};

const RATES: Rates = Rates {
    dma: DMA,
    zero_copy: 50.7e9,
};
const SIZE: u64 = 64 * MIB;

/// An engine whose copies take no time.
struct Engine {
    planner: Planner,
    units: Vec<Unit>,
    slots: u64,
    staged: Vec<Unit>,
    now: f64,
    copies: usize,
    /// Uses that found the unit in a slot, and all.
    found: usize,
    uses: usize,
}

impl Engine {
    /// So many units on Host, and slots for so many of them.
    fn new(units: usize, slots: u64) -> Engine {
        let mut planner = Planner::new(RATES);
        Engine {
            units: (0..units).map(|_| planner.add(SIZE, Tier::Host)).collect(),
            planner,
            slots: slots * SIZE,
            staged: Vec::new(),
            now: 0.0,
            copies: 0,
            found: 0,
            uses: 0,
        }
    }

    fn copy(&mut self) {
        while let Some(unit) = self.planner.next(self.slots) {
            assert!(!self.staged.contains(&unit), "it is in a slot");
            if (self.staged.len() + 1) as u64 * SIZE > self.slots {
                let victim = self
                    .planner
                    .victim(Some(unit), |_| true)
                    .expect("it said so");
                self.staged.retain(|u| *u != victim);
                self.planner.evicted(victim);
            }
            self.staged.push(unit);
            self.planner.staged(unit);
            self.copies += 1;
        }
    }

    fn launch(&mut self, stream: u64, units: &[usize]) {
        let units: Vec<Unit> = units.iter().map(|u| self.units[*u]).collect();
        self.now += 1e-3;
        self.uses += units.len();
        self.found += units.iter().filter(|u| self.staged.contains(u)).count();
        let number = self.planner.named(stream, &units, self.now);
        self.copy();
        self.planner.launched(number);
        self.copy();
    }

    fn reset(&mut self) {
        (self.copies, self.found, self.uses) = (0, 0, 0);
    }
}

/// Nothing is staged until a whole pass was seen twice alike.
#[test]
fn twice_alike_first() {
    let mut engine = Engine::new(40, 16);
    for pass in 0..3 {
        for unit in 0..40 {
            if pass < 2 && !(pass == 1 && unit == 39) {
                engine.launch(1, &[unit]);
                assert_eq!(engine.copies, 0, "pass {pass}, unit {unit}");
            } else {
                engine.launch(1, &[unit]);
            }
        }
    }
    assert!(engine.copies > 0);
}

/// Of a loop over more than the slots hold, what is in a slot mostly stays there.
#[test]
fn a_loop_copies_what_does_not_fit() {
    for (units, slots) in [(100, 50), (100, 90), (64, 32)] {
        let mut engine = Engine::new(units, slots as u64);
        for _ in 0..6 {
            (0..units).for_each(|u| engine.launch(1, &[u]));
        }
        engine.reset();
        for _ in 0..4 {
            (0..units).for_each(|u| engine.launch(1, &[u]));
        }
        let least = units - slots;
        // Ten milliseconds of copies are ahead, eight units.
        assert!(
            engine.copies <= 4 * (least + 10),
            "{} of {least}",
            engine.copies
        );
        assert_eq!(engine.found, engine.uses, "each is there in time");
    }
}

/// Forward, backward, optimizer: each place of the pass is told from the others that name the same.
#[test]
fn there_and_back() {
    let mut engine = Engine::new(60, 24);
    let pass: Vec<usize> = (0..60).chain((0..59).rev()).chain(0..60).collect();
    for _ in 0..4 {
        pass.iter().for_each(|u| engine.launch(1, &[*u]));
    }
    engine.reset();
    for _ in 0..3 {
        pass.iter().for_each(|u| engine.launch(1, &[*u]));
    }
    assert!(
        engine.found + 4 >= engine.uses,
        "{} of {}",
        engine.found,
        engine.uses
    );
    // What Belady copies, who knows the order and must have each in a slot when it is used, and those ahead.
    let least = belady(&pass, 24);
    assert!(
        engine.copies <= 3 * (least + 30),
        "{} of {least}",
        engine.copies
    );
}

/// Copies of the third pass by the best choice there is.
fn belady(pass: &[usize], slots: usize) -> usize {
    let all: Vec<usize> = pass.iter().copied().cycle().take(pass.len() * 5).collect();
    let mut held: Vec<usize> = Vec::new();
    let mut copies = 0;
    for at in 0..pass.len() * 3 {
        if held.contains(&all[at]) {
            continue;
        }
        copies += usize::from(at >= pass.len() * 2);
        if held.len() == slots {
            let next = |u: usize| all[at..].iter().position(|v| *v == u);
            let far = (0..slots).max_by_key(|h| next(held[*h]).unwrap_or(usize::MAX));
            held.swap_remove(far.expect("there are slots"));
        }
        held.push(all[at]);
    }
    copies
}

/// Two programs on two streams, each at its own pace.
#[test]
fn streams_have_their_own_order() {
    let mut engine = Engine::new(90, 40);
    let mut random = Random(9);
    let mut at = [0, 0];
    for turn in 0..3000 {
        if turn == 1500 {
            engine.reset();
        }
        let which = usize::from(random.below(3) == 0);
        let unit = [at[0] % 50, 50 + at[1] % 40][which];
        at[which] += 1;
        engine.launch(which as u64, &[unit]);
    }
    assert!(
        engine.found * 100 >= engine.uses * 97,
        "{} of {}",
        engine.found,
        engine.uses
    );
}

/// What may not be staged now is passed over, and comes once it may.
#[test]
fn what_may_not_come_hides_no_other() {
    let mut engine = Engine::new(40, 0);
    for _ in 0..3 {
        (0..40).for_each(|u| engine.launch(1, &[u]));
    }
    let slots = 20 * SIZE;
    let (first, second) = (engine.units[0], engine.units[1]);
    assert_eq!(engine.planner.next_of(slots, |u| u != first), Some(second));
    assert_eq!(engine.planner.next_of(slots, |_| false), None);
    assert_eq!(engine.planner.next_of(slots, |_| true), Some(first));
}

/// A unit that is gone comes again, with its number, at its place.
#[test]
fn new_units_take_the_place_of_old_ones() {
    let mut engine = Engine::new(50, 20);
    for pass in 0..12 {
        if pass == 8 {
            engine.reset();
        }
        for unit in 0..50 {
            engine.launch(1, &[unit]);
        }
        let old = engine.units[30];
        if engine.staged.contains(&old) {
            engine.staged.retain(|u| *u != old);
        }
        engine.planner.gone(old);
        engine.units[30] = engine.planner.add(SIZE, Tier::Host);
        assert_eq!(engine.units[30], old, "numbers are used again");
    }
    // All but that one, which proves itself anew each time.
    assert!(
        engine.found + 8 >= engine.uses,
        "{} of {}",
        engine.found,
        engine.uses
    );
}

/// A pass that has changed is learned anew within three passes.
#[test]
fn a_change_is_learned() {
    let mut engine = Engine::new(80, 24);
    for _ in 0..5 {
        (0..60).for_each(|u| engine.launch(1, &[u]));
    }
    let other: Vec<usize> = (20..80).rev().collect();
    for pass in 0..6 {
        if pass == 3 {
            engine.reset();
        }
        other.iter().for_each(|u| engine.launch(1, &[*u]));
    }
    assert!(
        engine.found + 3 >= engine.uses,
        "{} of {}",
        engine.found,
        engine.uses
    );
}

/// What happens to the planner.
#[derive(Clone, Debug)]
enum Step {
    Add(u64, bool),
    Gone(usize),
    Homed(usize, bool),
    Forbid(usize),
    Pass {
        stream: u64,
        from: usize,
        count: usize,
        times: usize,
    },
    Name(u64, Vec<usize>),
    Ran {
        back: u64,
        takes: f64,
        in_vram: bool,
    },
    Next(u64),
    Done(bool),
    Victim(Option<usize>, usize),
    Evicted,
    Layout(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let size = prop_oneof![
        Just(2 * MIB),
        Just(20 * MIB),
        Just(32 * MIB),
        Just(64 * MIB)
    ];
    prop_oneof![
        4 => (size, any::<bool>()).prop_map(|(b, h)| Step::Add(b, h)),
        1 => (0usize..64).prop_map(Step::Gone),
        1 => (0usize..64, any::<bool>()).prop_map(|(u, h)| Step::Homed(u, h)),
        1 => (0usize..64).prop_map(Step::Forbid),
        3 => (0u64..12, 0usize..64, 1usize..40, 1usize..5)
            .prop_map(|(stream, from, count, times)| Step::Pass { stream, from, count, times }),
        6 => (0u64..12, prop::collection::vec(0usize..64, 0..6)).prop_map(|(s, u)| Step::Name(s, u)),
        4 => (0u64..40, 0.0f64..0.1, any::<bool>())
            .prop_map(|(back, takes, in_vram)| Step::Ran { back, takes, in_vram }),
        8 => (0u64..1 << 31).prop_map(Step::Next),
        6 => any::<bool>().prop_map(Step::Done),
        4 => (prop::option::of(0usize..64), 0usize..4).prop_map(|(w, m)| Step::Victim(w, m)),
        4 => Just(Step::Evicted),
        1 => (0usize..20).prop_map(Step::Layout),
    ]
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum At {
    Home,
    Coming,
    Staged,
    Leaving,
}

/// A unit as it is.
#[derive(Clone, Copy, Debug)]
struct Known {
    unit: Unit,
    bytes: u64,
    host: bool,
    forbidden: bool,
    at: At,
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_it_says_can_be_done(steps in prop::collection::vec(step(), 0..300)) {
        let tier = |host: bool| if host { Tier::Host } else { Tier::Vram };
        let mut planner = Planner::new(RATES);
        let mut known: Vec<Known> = Vec::new();
        let (mut now, mut last) = (0.0, 0);
        for step in steps {
            now += 1e-4;
            let count = known.len();
            let pick = |u: usize| (count > 0).then(|| u % count);
            match step {
                Step::Add(bytes, host) => {
                    let unit = planner.add(bytes, tier(host));
                    prop_assert!(known.iter().all(|k| k.unit != unit), "its number is its own");
                    known.push(Known { unit, bytes, host, forbidden: false, at: At::Home });
                }
                Step::Gone(u) => if let Some(u) = pick(u) {
                    planner.gone(known.swap_remove(u).unit);
                },
                Step::Homed(u, host) => if let Some(u) = pick(u) {
                    (known[u].host, known[u].at) = (host, At::Home);
                    planner.homed(known[u].unit, tier(host));
                },
                Step::Forbid(u) => if let Some(u) = pick(u) {
                    known[u].forbidden = true;
                    planner.forbid(known[u].unit);
                },
                Step::Pass { stream, from, count, times } => if !known.is_empty() {
                    for at in (0..times).flat_map(|_| from..from + count) {
                        now += 1e-4;
                        last = planner.named(stream, &[known[at % known.len()].unit], now);
                    }
                },
                Step::Name(stream, units) => {
                    let units: Vec<Unit> = units.into_iter().filter_map(pick).map(|u| known[u].unit).collect();
                    let number = planner.named(stream, &units, now);
                    prop_assert!(number >= last, "numbers rise");
                    last = number;
                    for unit in units {
                        let k = known.iter().find(|k| k.unit == unit).expect("it is live");
                        if planner.worth_waiting(unit) {
                            prop_assert!(k.host && !k.forbidden && k.at != At::Staged, "{k:?}");
                        }
                    }
                }
                Step::Ran { back, takes, in_vram } => {
                    planner.ran(last.saturating_sub(back), now, now + takes, in_vram);
                }
                Step::Next(slots) => if let Some(unit) = planner.next(slots) {
                    let k = known.iter_mut().find(|k| k.unit == unit).expect("it is live");
                    prop_assert!(k.host && !k.forbidden && k.at == At::Home && k.bytes <= slots, "{k:?}");
                    k.at = At::Coming;
                },
                Step::Done(good) => if let Some(k) = known.iter_mut().find(|k| k.at == At::Coming) {
                    if good {
                        k.at = At::Staged;
                        planner.staged(k.unit);
                    } else {
                        k.at = At::Home;
                        planner.evicted(k.unit);
                    }
                },
                Step::Victim(wanted, may) => {
                    let wanted = wanted.and_then(pick).map(|u| known[u].unit);
                    let may = |u: Unit| !(u.0 as usize).is_multiple_of(may + 1);
                    if let Some(unit) = planner.victim(wanted, may) {
                        let k = known.iter_mut().find(|k| k.unit == unit).expect("it is live");
                        prop_assert!(k.at == At::Staged && may(unit) && wanted != Some(unit), "{k:?}");
                        k.at = At::Leaving;
                    }
                }
                Step::Evicted => if let Some(k) = known.iter_mut().find(|k| k.at == At::Leaving) {
                    k.at = At::Home;
                    planner.evicted(k.unit);
                },
                Step::Layout(most) => {
                    let pairs = planner.layout(most);
                    prop_assert!(pairs.len() <= most);
                    for (leaves, comes) in &pairs {
                        let of = |unit: &Unit| *known.iter().find(|k| k.unit == *unit).expect("it is live");
                        let (l, c) = (of(leaves), of(comes));
                        prop_assert!(!l.host && c.host && l.bytes == c.bytes && !l.forbidden && !c.forbidden);
                    }
                    let mut all: Vec<Unit> = pairs.iter().flat_map(|p| [p.0, p.1]).collect();
                    all.sort();
                    all.dedup();
                    prop_assert_eq!(all.len(), pairs.len() * 2, "each moves once");
                }
            }
            let resident: u64 = known.iter().filter(|k| !k.host || k.at != At::Home).map(|k| k.bytes).sum();
            prop_assert!(planner.slots() <= resident / 4);
        }
    }
}
