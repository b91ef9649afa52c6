//! A machine that runs a trace: VRAM at its rate, Host at the link's, moves at their cost, one after the other.

use std::collections::HashMap;

use greenboost_shim::tier::chunk::{GRAIN, split};
use greenboost_shim::tier::placement::{small_reserve, vram_share};
use greenboost_shim::tier::policy::trace::{Event, Record};
use greenboost_shim::tier::policy::{Costs, Move, Op, Policy, Room};
use greenboost_wire::ledger::Tier;

use super::truth::{Act, Truth};

/// Who places.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Who {
    /// First come, first served; nothing moves.
    FirstFit,
    /// The policy; every plan may take so many seconds.
    Policy(f64),
    /// The same, striped.
    Striped(f64),
}

/// How a kernel that reads both reads them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Reads {
    /// One after the other.
    Sum,
    /// At once.
    Max,
}

/// What it took, seconds.
#[derive(Clone, Debug, Default)]
pub struct Took {
    /// In all.
    pub time: f64,
    /// If everything had been in VRAM.
    pub ideal: f64,
    /// Of moves and drains.
    pub moving: f64,
    /// Bytes moved.
    pub moved: u64,
    /// Bytes that launches and memsets used in each tier.
    pub used: [f64; 2],
    /// The same as the policy counts them.
    pub named: [u64; 2],
    /// VRAM free at the end, bytes.
    pub free: u64,
    /// What is live at the end: address, bytes, bytes on Host.
    pub live: Vec<(u64, u64, u64)>,
}

impl Took {
    pub fn lost(&self) -> f64 {
        self.time - self.ideal
    }

    /// Bytes on Host, at the end, of what was allocated from this address.
    pub fn on_host(&self, base: u64) -> u64 {
        self.live
            .iter()
            .find(|l| l.0 == base)
            .expect("it is live")
            .2
    }
}

struct Held {
    base: u64,
    chunks: Vec<(u64, Tier)>,
    /// Bytes on Host of each piece; found when asked for after a change.
    host: HashMap<usize, f64>,
}

/// A machine in the middle of a trace.
struct Machine<'a> {
    truth: &'a Truth,
    costs: Costs,
    vram: i64,
    host: i64,
    held: HashMap<usize, Held>,
    by_base: HashMap<u64, usize>,
    took: Took,
}

/// Runs a trace.
pub fn run(trace: &[Record], who: Who, reads: Reads) -> Took {
    run_watched(trace, who, reads, |_, _| {})
}

/// The same, with a look at the policy after every wait.
pub fn run_watched(
    trace: &[Record],
    who: Who,
    reads: Reads,
    mut look: impl FnMut(&Policy, &Took),
) -> Took {
    let truth = Truth::of(trace);
    let Event::Begun { vram, host, costs } = trace[0].event else {
        panic!("a trace begins with its limits");
    };
    let mut policy = match who {
        Who::Striped(_) => Policy::striped(costs),
        _ => Policy::new(costs),
    };
    let mut m = Machine {
        truth: &truth,
        costs,
        vram: vram as i64,
        host: host as i64,
        held: HashMap::new(),
        by_base: HashMap::new(),
        took: Took::default(),
    };
    let reserve = small_reserve(vram);
    for (record, act) in trace.iter().zip(&truth.acts) {
        if let Event::Named { op, addresses, .. } = &record.event {
            policy.named(*op, addresses, m.took.time);
            let named = policy.take_named();
            // Copies cost the same wherever the bytes are, and are not used here.
            if !matches!(op, Op::Copy { .. }) {
                m.took.named[0] += named[0];
                m.took.named[1] += named[1];
            }
        }
        match act {
            None => {}
            Some(Act::Allocate(id, base, bytes)) => {
                let span = bytes.next_multiple_of(GRAIN);
                if who != Who::FirstFit && span as i64 > m.vram {
                    let free = (m.vram - reserve as i64).max(0) as u64;
                    for step in policy.newcomer(span, free) {
                        if m.host >= m.bytes(step) as i64 {
                            m.apply(step);
                            policy.moved(step.base, step.chunk, step.to);
                        }
                    }
                }
                let share = vram_share(span, m.vram.max(0) as u64, reserve);
                let mut chunks: Vec<(u64, Tier)> =
                    split(share).into_iter().map(|b| (b, Tier::Vram)).collect();
                chunks.extend(split(span - share).into_iter().map(|b| (b, Tier::Host)));
                m.vram -= share as i64;
                m.host -= (span - share) as i64;
                assert!(m.host >= 0, "the trace does not fit");
                policy.allocated(*base, *bytes, &chunks, true);
                m.by_base.insert(*base, *id);
                m.held.insert(
                    *id,
                    Held {
                        base: *base,
                        chunks,
                        host: HashMap::new(),
                    },
                );
            }
            Some(Act::Free(id)) => {
                let gone = m.held.remove(id).unwrap();
                for (bytes, tier) in gone.chunks {
                    *m.budget(tier) += bytes as i64;
                }
                policy.freed(gone.base);
            }
            Some(Act::Use(pieces)) => m.launch(pieces, reads),
            Some(Act::Fill(id, start, bytes)) => {
                let host = m.on_host(*id, *start, start + bytes);
                m.spend(*bytes as f64 - host, host, reads);
            }
            Some(Act::Wait) => {
                policy.waited(m.took.time);
                if let Who::Policy(time_box) | Who::Striped(time_box) = who {
                    let room = Room {
                        vram: m.vram,
                        keep: reserve,
                        host: m.host as u64,
                    };
                    let plan = policy.plan(room, m.took.time, time_box);
                    if !plan.is_empty() {
                        m.took.time += costs.drain;
                        m.took.moving += costs.drain;
                    }
                    for step in plan {
                        m.apply(step);
                        policy.moved(step.base, step.chunk, step.to);
                    }
                }
                look(&policy, &m.took);
            }
        }
    }
    for held in m.held.values() {
        let bytes = |of: &[(u64, Tier)]| of.iter().map(|c| c.0).sum();
        let host: Vec<_> = held
            .chunks
            .iter()
            .copied()
            .filter(|c| c.1 == Tier::Host)
            .collect();
        m.took
            .live
            .push((held.base, bytes(&held.chunks), bytes(&host)));
    }
    m.took.free = m.vram as u64;
    m.took
}

impl Machine<'_> {
    fn budget(&mut self, tier: Tier) -> &mut i64 {
        match tier {
            Tier::Vram => &mut self.vram,
            Tier::Host => &mut self.host,
        }
    }

    fn bytes(&self, step: Move) -> u64 {
        self.held[&self.by_base[&step.base]].chunks[step.chunk].0
    }

    /// Makes a move. The budgets must have room for it at that moment.
    fn apply(&mut self, step: Move) {
        let id = self.by_base[&step.base];
        let held = self.held.get_mut(&id).expect("only what is live is moved");
        let (bytes, tier) = held.chunks[step.chunk];
        assert_ne!(tier, step.to, "it is there already");
        held.chunks[step.chunk].1 = step.to;
        held.host.clear();
        *self.budget(tier) += bytes as i64;
        *self.budget(step.to) -= bytes as i64;
        assert!(*self.budget(step.to) >= 0, "no room for {step:?}");
        let cost = self.costs.moving(bytes);
        self.took.time += cost;
        self.took.moving += cost;
        self.took.moved += bytes;
    }

    fn on_host(&self, id: usize, start: u64, end: u64) -> f64 {
        let held = &self.held[&id];
        let (mut at, mut host) = (held.base, 0);
        for (bytes, tier) in &held.chunks {
            let (from, to) = (start.max(at), end.min(at + bytes));
            if *tier == Tier::Host && from < to {
                host += to - from;
            }
            at += bytes;
        }
        host as f64
    }

    fn launch(&mut self, pieces: &[usize], reads: Reads) {
        let (mut vram, mut host) = (0.0, 0.0);
        for &piece in pieces {
            let p = self.truth.pieces[piece];
            let on_host = match self.held[&p.allocation].host.get(&piece) {
                Some(host) => *host,
                None => {
                    let host = self.on_host(p.allocation, p.start, p.end);
                    let held = self.held.get_mut(&p.allocation);
                    held.expect("it is live").host.insert(piece, host);
                    host
                }
            };
            vram += (p.end - p.start) as f64 - on_host;
            host += on_host;
        }
        self.spend(vram, host, reads);
    }

    fn spend(&mut self, vram: f64, host: f64, reads: Reads) {
        let (near, far) = (vram / self.costs.vram, host / self.costs.link);
        self.took.time += match reads {
            Reads::Sum => near + far,
            Reads::Max => near.max(far),
        };
        self.took.used[Tier::Vram as usize] += vram;
        self.took.used[Tier::Host as usize] += host;
        self.took.ideal += (vram + host) / self.costs.vram;
    }
}
