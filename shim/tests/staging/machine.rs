//! A GPU, a link and the engine that does what the planner says, event by event.

use std::collections::VecDeque;

use greenboost_shim::tier::staging::{Planner, Rates, Unit};
use greenboost_wire::ledger::Tier;

use super::programs::{Op, Program};

pub const GIB: f64 = (1u64 << 30) as f64;
/// Copies Host to VRAM, bytes per second; and seconds that each takes besides.
pub const DMA: f64 = 54.9e9;
const EACH: f64 = 10e-6;
/// Seconds of CPU time to launch an operation.
const LAUNCH: f64 = 5e-6;
/// Seconds per GiB: unmap the host range, map the slot; unmap the slot and map the host range.
const UNMAP: f64 = 4e-3 / GIB;
const MAP: f64 = 2e-3 / GIB;
const EVICT: f64 = 16e-3 / GIB;
/// Operations that the GPU queues.
const QUEUE: usize = 1024;

/// How the machine is built.
#[derive(Clone, Copy, Debug)]
pub struct Machine {
    /// Bytes per second of kernels that read Host.
    pub zero_copy: f64,
    /// Threads that map.
    pub workers: usize,
    /// Units on their way at once, copies queued among them.
    pub depth: usize,
    pub copies: usize,
    /// Slots whatever the planner says, bytes; 0 stages nothing.
    pub slots: Option<u64>,
    /// Ask for a layout after each so many passes; 0 is never.
    pub layout: usize,
}

/// Two threads that map, two copies in flight.
pub const H100: Machine = Machine {
    zero_copy: 50.7e9,
    workers: 2,
    depth: 6,
    copies: 2,
    slots: None,
    layout: 0,
};

/// What a pass took.
#[derive(Clone, Copy, Debug, Default)]
pub struct Took {
    pub seconds: f64,
    /// Of compute, all in VRAM.
    pub compute: f64,
    /// Bytes of uses of what has its home on Host.
    pub needed: f64,
    /// Bytes copied, and of slots.
    pub copied: f64,
    pub slots: f64,
    /// Bytes read on Host.
    pub read: f64,
    /// Swaps of the layout after it.
    pub swaps: usize,
}

impl Took {
    pub fn bound(&self) -> f64 {
        self.compute.max(self.needed / DMA)
    }
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum State {
    Host,
    /// On its way, still mapped; and not any more.
    Asked,
    Moving,
    Staged,
    Leaving,
}

enum Task {
    Unmap(usize),
    Map(usize),
    Evict(usize),
}

struct Launched {
    number: Option<u64>,
    units: Vec<usize>,
    compute: f64,
    /// Bytes that cross the link for it, and of those on Host.
    link: f64,
    host: f64,
}

struct Running {
    op: Launched,
    begin: f64,
    compute_left: f64,
    link_left: f64,
}

struct Sim<'a> {
    machine: Machine,
    program: &'a Program,
    planner: Planner,
    now: f64,
    units: Vec<Unit>,
    host: Vec<bool>,
    state: Vec<State>,
    pins: Vec<u32>,
    slot_bytes: u64,
    /// Bytes of slots promised: those of what is on its way out no longer count.
    used: u64,
    /// Bytes of slots that hold something, wherever it is going.
    filled: u64,
    /// Asked for, not yet unmapped.
    asked: Vec<usize>,
    on_way: usize,
    tasks: VecDeque<Task>,
    workers: Vec<(f64, Task)>,
    /// Unmapped, to be copied; and bytes left of the first in flight.
    to_copy: VecDeque<usize>,
    copying: VecDeque<(usize, f64)>,
    gpu: VecDeque<Launched>,
    running: Option<Running>,
    took: Took,
    reported: u64,
}

/// Runs all passes of a program.
pub fn run(machine: Machine, program: &Program) -> Vec<Took> {
    let mut planner = Planner::new(Rates {
        dma: DMA,
        zero_copy: machine.zero_copy,
    });
    let tier = |host: bool| if host { Tier::Host } else { Tier::Vram };
    let units: Vec<Unit> = program
        .units
        .iter()
        .map(|u| planner.add(u.0, tier(u.1)))
        .collect();
    let count = units.len();
    let mut sim = Sim {
        machine,
        program,
        planner,
        now: 0.0,
        units,
        host: program.units.iter().map(|u| u.1).collect(),
        state: vec![State::Host; count],
        pins: vec![0; count],
        slot_bytes: 0,
        used: 0,
        filled: 0,
        asked: Vec::new(),
        on_way: 0,
        tasks: VecDeque::new(),
        workers: Vec::new(),
        to_copy: VecDeque::new(),
        copying: VecDeque::new(),
        gpu: VecDeque::new(),
        running: None,
        took: Took::default(),
        reported: 0,
    };
    let mut passes = Vec::new();
    for (number, pass) in program.passes.iter().enumerate() {
        sim.resize();
        sim.took = Took {
            slots: sim.slot_bytes as f64,
            ..Took::default()
        };
        let begin = sim.now;
        for op in pass {
            sim.launch(op);
        }
        while sim.running.is_some() || !sim.gpu.is_empty() {
            sim.advance(f64::INFINITY);
        }
        sim.took.seconds = sim.now - begin;
        if machine.layout > 0 && number % machine.layout == machine.layout - 1 {
            sim.lay_out();
        }
        passes.push(sim.took);
    }
    passes
}

impl Sim<'_> {
    fn bytes(&self, unit: usize) -> u64 {
        self.program.units[unit].0
    }

    fn index(&self, unit: Unit) -> usize {
        // The planner numbers from none in the order in which units are added.
        unit.0 as usize
    }

    fn wanted_slots(&self) -> u64 {
        self.machine.slots.unwrap_or_else(|| self.planner.slots())
    }

    fn resize(&mut self) {
        self.slot_bytes = self.wanted_slots();
        while self.used > self.slot_bytes {
            let pins = &self.pins;
            let Some(unit) = self.planner.victim(None, |u| pins[u.0 as usize] == 0) else {
                break;
            };
            self.evict(self.index(unit));
            while !(self.workers.is_empty() && self.tasks.is_empty()) {
                self.advance(f64::INFINITY);
            }
        }
    }

    fn evict(&mut self, unit: usize) {
        assert_eq!(self.state[unit], State::Staged);
        assert_eq!(self.pins[unit], 0, "a unit in use must stay");
        self.state[unit] = State::Leaving;
        self.used -= self.bytes(unit);
        self.tasks.push_back(Task::Evict(unit));
    }

    /// Moves homes as the planner wants, while nothing runs; the time is not counted.
    fn lay_out(&mut self) {
        while self.on_way > 0 || !self.workers.is_empty() || !self.tasks.is_empty() {
            if !self.advance(f64::INFINITY) {
                break;
            }
        }
        let swaps = self.planner.layout(64);
        for &(leaves, comes) in &swaps {
            let (l, c) = (self.index(leaves), self.index(comes));
            assert!(
                !self.host[l] && self.host[c],
                "homes are as the planner was told"
            );
            assert_eq!(self.bytes(l), self.bytes(c), "as much leaves as comes");
            if matches!(self.state[c], State::Asked) {
                continue;
            }
            if self.state[c] == State::Staged {
                self.used -= self.bytes(c);
                self.filled -= self.bytes(c);
                self.state[c] = State::Host;
            }
            (self.host[l], self.host[c]) = (true, false);
            self.planner.homed(leaves, Tier::Host);
            self.planner.homed(comes, Tier::Vram);
        }
        self.took.swaps = swaps.len();
    }

    /// The program launches an operation, as soon as all that it waits for is in place.
    fn launch(&mut self, op: &Op) {
        let numbers: Vec<Unit> = op.units.iter().map(|u| self.units[*u]).collect();
        let number =
            (!numbers.is_empty()).then(|| self.planner.named(op.stream, &numbers, self.now));
        // Slots are made when they pay; they are given up between passes.
        self.slot_bytes = self.slot_bytes.max(self.wanted_slots());
        let mut units = op.units.clone();
        units.sort_unstable();
        units.dedup();
        let outside: Vec<usize> = units.iter().copied().filter(|u| self.host[*u]).collect();
        let fits = outside.iter().map(|u| self.bytes(*u)).sum::<u64>() <= self.slot_bytes;
        let mut pinned = vec![false; outside.len()];
        let since = self.now;
        loop {
            self.pump();
            let mut ready = true;
            for (at, &unit) in outside.iter().enumerate() {
                if pinned[at] {
                    continue;
                }
                let waits = self.planner.worth_waiting(self.units[unit]) && fits;
                match self.state[unit] {
                    State::Staged => {
                        pinned[at] = true;
                        self.pins[unit] += 1;
                    }
                    State::Host | State::Asked if !waits => {}
                    _ => ready = false,
                }
            }
            if ready && self.gpu.len() < QUEUE {
                break;
            }
            if !self.advance(f64::INFINITY) {
                let states: Vec<_> = outside.iter().map(|u| (u, self.state[*u])).collect();
                panic!(
                    "nothing moves: {states:?}, asked {:?}, used {}, slots {}",
                    self.asked, self.used, self.slot_bytes
                );
            }
            assert!(self.now - since < 60.0, "a launch waits for ever");
        }
        for (at, &unit) in outside.iter().enumerate() {
            if !pinned[at] {
                self.pins[unit] += 1;
            }
        }
        if let Some(number) = number {
            self.planner.launched(number);
        }
        let host: f64 = outside
            .iter()
            .zip(&pinned)
            .filter(|(_, p)| !**p)
            .map(|(u, _)| self.bytes(*u) as f64)
            .sum();
        self.took.compute += op.compute;
        self.took.needed += outside
            .iter()
            .map(|u| self.bytes(*u) as f64 * op.touched)
            .sum::<f64>();
        self.gpu.push_back(Launched {
            number,
            units: outside,
            compute: op.compute,
            link: host * op.reads * op.touched,
            host: host * op.touched,
        });
        self.start();
        let until = self.now + LAUNCH;
        while self.now < until {
            self.advance(until);
        }
    }

    fn start(&mut self) {
        if self.running.is_some() {
            return;
        }
        if let Some(op) = self.gpu.pop_front() {
            self.running = Some(Running {
                begin: self.now,
                compute_left: op.compute,
                link_left: op.link,
                op,
            });
        }
    }

    /// The engine starts what it can.
    fn pump(&mut self) {
        while self.on_way < self.machine.depth {
            let Some(unit) = self.planner.next(self.slot_bytes) else {
                break;
            };
            let at = self.index(unit);
            assert!(
                self.host[at] && self.state[at] == State::Host,
                "it can be staged"
            );
            let mut room = true;
            while self.used + self.bytes(at) > self.slot_bytes {
                let pins = &self.pins;
                let Some(victim) = self.planner.victim(Some(unit), |u| pins[u.0 as usize] == 0)
                else {
                    room = false;
                    break;
                };
                self.evict(self.index(victim));
            }
            if !room {
                self.planner.evicted(unit);
                break;
            }
            self.used += self.bytes(at);
            self.state[at] = State::Asked;
            self.on_way += 1;
            self.asked.push(at);
        }
        // Who has a slot that is really free, and is not in use, is unmapped.
        let mut index = 0;
        while index < self.asked.len() {
            let unit = self.asked[index];
            if self.pins[unit] == 0 && self.filled + self.bytes(unit) <= self.slot_bytes {
                self.asked.remove(index);
                self.filled += self.bytes(unit);
                self.state[unit] = State::Moving;
                self.tasks.push_front(Task::Unmap(unit));
            } else {
                index += 1;
            }
        }
        while self.copying.len() < self.machine.copies {
            let Some(unit) = self.to_copy.pop_front() else {
                break;
            };
            self.copying
                .push_back((unit, self.bytes(unit) as f64 + EACH * DMA));
        }
        while self.workers.len() < self.machine.workers {
            let Some(task) = self.tasks.pop_front() else {
                break;
            };
            let takes = match task {
                Task::Unmap(unit) => UNMAP * self.bytes(unit) as f64,
                Task::Map(unit) => MAP * self.bytes(unit) as f64,
                Task::Evict(unit) => EVICT * self.bytes(unit) as f64,
            };
            self.workers.push((self.now + takes, task));
        }
    }

    /// Goes on to the next event, at most to `until`. False if there is none.
    fn advance(&mut self, until: f64) -> bool {
        self.pump();
        let reading = self.running.as_ref().is_some_and(|r| r.link_left > 0.0);
        let share = if reading && !self.copying.is_empty() {
            0.5
        } else {
            1.0
        };
        let (dma, zero) = (DMA * share, self.machine.zero_copy * share);
        let mut next = until;
        for (end, _) in &self.workers {
            next = next.min(*end);
        }
        if let Some((_, left)) = self.copying.front() {
            next = next.min(self.now + left / dma);
        }
        if let Some(r) = &self.running {
            next = next.min(
                self.now
                    + if r.link_left > 0.0 {
                        r.link_left / zero
                    } else {
                        r.compute_left
                    },
            );
        }
        if next == f64::INFINITY {
            return false;
        }
        let passed = (next - self.now).max(0.0);
        self.now = next;
        if let Some((unit, left)) = self.copying.front_mut() {
            *left -= passed * dma;
            if *left < 1.0 {
                let unit = *unit;
                self.copying.pop_front();
                self.took.copied += self.bytes(unit) as f64;
                self.tasks.push_front(Task::Map(unit));
            }
        }
        let mut at = 0;
        while at < self.workers.len() {
            if self.workers[at].0 > self.now {
                at += 1;
                continue;
            }
            match self.workers.swap_remove(at).1 {
                Task::Unmap(unit) => self.to_copy.push_back(unit),
                Task::Map(unit) => {
                    self.state[unit] = State::Staged;
                    self.on_way -= 1;
                    self.planner.staged(self.units[unit]);
                }
                Task::Evict(unit) => {
                    self.state[unit] = State::Host;
                    self.filled -= self.bytes(unit);
                    self.planner.evicted(self.units[unit]);
                }
            }
        }
        if let Some(r) = &mut self.running {
            r.compute_left = (r.compute_left - passed).max(0.0);
            r.link_left = (r.link_left - passed * zero).max(0.0);
            // What is left by rounding is nothing.
            if r.link_left < 1.0 {
                r.link_left = 0.0;
            }
            if r.compute_left < 1e-11 {
                r.compute_left = 0.0;
            }
            if r.link_left == 0.0 && r.compute_left == 0.0 {
                let Running { op, begin, .. } = self.running.take().expect("it runs");
                for &unit in &op.units {
                    self.pins[unit] -= 1;
                }
                self.took.read += op.host;
                self.reported += 1;
                if let Some(number) = op.number.filter(|_| !self.reported.is_multiple_of(7)) {
                    self.planner.ran(number, begin, self.now, op.host == 0.0);
                }
                self.start();
            }
        }
        true
    }
}
