//! Who deserves VRAM: the placement policy, pure. It is told what the program does and what was moved, and answers what
//! to move. No clock (times are given), no I/O, no driver; [`trace`] records what it was told.
//!
//! - `extent`: which bytes an address names, and how hot they are;
//! - `clock`: steps of the program, found in what it names;
//! - `pace`: the bytes that operations name, and how long a step takes;
//! - `account`: what moves have earned, against leaving all where first come, first served puts it;
//! - `plan`: what to move now; `newcomer`: and for a new allocation; `stripe`: equally hot data, evenly;

mod account;
mod clock;
mod extent;
mod newcomer;
mod pace;
mod plan;
mod stripe;
pub mod trace;

use greenboost_wire::ledger::Tier;

use account::Account;
use clock::Clock;
use extent::Allocation;
use pace::Pace;

/// What bytes cost, measured on this machine.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Costs {
    /// Bytes per second of kernels that read Host.
    pub link: f64,
    /// Bytes per second of kernels that read VRAM.
    pub vram: f64,
    /// Seconds per byte of one promotion or demotion.
    pub move_per_byte: f64,
    /// Seconds per chunk moved, besides.
    pub move_each: f64,
    /// Seconds per attempt to find the device drained.
    pub drain: f64,
}

impl Costs {
    /// An H100 on PCIe 5 (measured): kernels read Host at 50.7 GB/s, VRAM at 3.05 TB/s; 256 MiB go down in 7.1 ms and
    /// come up in 5.6 ms.
    pub const H100: Costs = Costs {
        link: 50.7e9,
        vram: 3.05e12,
        move_per_byte: 20.5e-12,
        move_each: 0.2e-3,
        drain: 50e-6,
    };

    /// Seconds that moving a chunk of so many bytes takes.
    pub fn moving(&self, bytes: u64) -> f64 {
        self.move_each + self.move_per_byte * bytes as f64
    }

    /// Seconds that a byte costs more on Host, each time it is used.
    pub fn apart(&self) -> f64 {
        (1.0 / self.link - 1.0 / self.vram).max(0.0)
    }
}

/// What names addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// A kernel launch.
    Launch,
    /// A graph launch, with what its nodes name.
    Graph,
    /// A copy of so many bytes from or to each address.
    Copy {
        /// Bytes.
        bytes: u64,
    },
    /// A memset of so many bytes.
    Memset {
        /// Bytes.
        bytes: u64,
    },
}

/// What the budgets have free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Bytes of VRAM; negative when so much has to leave.
    pub vram: i64,
    /// Bytes of them that are kept for small allocations. Moves do not use them, but need not make good what
    /// allocations have taken of them.
    pub keep: u64,
    /// Bytes of Host.
    pub host: u64,
}

/// A chunk to move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Move {
    /// The allocation's address.
    pub base: u64,
    /// Which of its chunks.
    pub chunk: usize,
    /// Where to.
    pub to: Tier,
}

/// The placement policy of one device.
#[derive(Debug)]
pub struct Policy {
    costs: Costs,
    /// By address.
    allocations: Vec<Allocation>,
    /// Where addresses were found last.
    found: Box<[Found]>,
    /// Addresses inside extents that were named.
    starts: Box<[Start]>,
    clock: Clock,
    pace: Pace,
    account: Account,
    classes: newcomer::Classes,
    /// Operations so far; what tells two of them apart.
    op: u32,
    /// Numbers given to allocations: a new one whenever its extents change.
    ids: u64,
    /// Something changed since the last plan that left nothing to do.
    stale: bool,
    /// The room of that plan, and how much the step had named.
    planned: Option<Room>,
    planned_at: u64,
    /// No plan before this time, seconds: the device did not drain.
    retry: f64,
    /// How long to wait after the next failure, seconds.
    patience: f64,
    /// Even out what kernels read over the link.
    striped: bool,
    /// A plan was given out and nothing of it has been done yet.
    pending: bool,
}

/// An address, and where it is.
#[derive(Clone, Copy, Debug, Default)]
struct Found {
    address: u64,
    /// The allocation's number then; 0 is none.
    id: u64,
    allocation: u32,
    extent: u32,
}

/// An address inside an extent.
#[derive(Clone, Copy, Debug, Default)]
struct Start {
    address: u64,
    /// The last operation that named it.
    op: u32,
    /// Operations that did.
    times: u32,
}

/// So many operations have to name an address inside an extent until an extent begins there.
const RETURNS: u32 = 2;

/// Addresses remembered: as many as a step of a large model names.
const FOUND: usize = 4096;

/// Wait after the first failure to drain, seconds; doubled up to [`LONGEST`].
const PATIENCE: f64 = 0.02;
/// The longest wait after failures to drain, seconds.
const LONGEST: f64 = 1.0;

impl Policy {
    /// A policy that knows of no allocation.
    pub fn new(costs: Costs) -> Policy {
        Policy {
            costs,
            allocations: Vec::new(),
            found: vec![Found::default(); FOUND].into(),
            starts: vec![Start::default(); FOUND].into(),
            clock: Clock::new(),
            pace: Pace::default(),
            account: Account::new(costs),
            classes: newcomer::Classes::default(),
            op: 0,
            ids: 0,
            stale: true,
            planned: None,
            planned_at: 0,
            retry: f64::NEG_INFINITY,
            patience: PATIENCE,
            striped: false,
            pending: false,
        }
    }

    /// The same, with what is equally hot striped over both tiers.
    pub fn striped(costs: Costs) -> Policy {
        Policy {
            striped: true,
            ..Policy::new(costs)
        }
    }

    /// There is a new allocation of `bytes` at `base`; its chunks lie one after the other. What cannot be `movable` is
    /// only watched. An allocation that it overlaps is gone.
    pub fn allocated(&mut self, base: u64, bytes: u64, chunks: &[(u64, Tier)], movable: bool) {
        self.ids += 1;
        let Some(mut new) = Allocation::new(self.ids, base, bytes, chunks, movable) else {
            return;
        };
        let (from, to) = (
            self.allocations.partition_point(|a| a.end() <= base),
            self.allocations.partition_point(|a| a.base < new.end()),
        );
        for at in (from..to).rev() {
            self.forget(at);
        }
        self.account.born(&mut new);
        self.allocations.insert(from, new);
        self.stale = true;
    }

    /// The allocation at `base` is gone.
    pub fn freed(&mut self, base: u64) {
        if let Some(at) = self.at(base) {
            self.forget(at);
        }
    }

    fn forget(&mut self, at: usize) {
        let gone = self.allocations.remove(at);
        gone.extents.iter().for_each(|e| self.clock.gone(e));
        self.account.died(&gone);
        self.classes.remember(&gone, &self.clock);
        self.stale = true;
    }

    /// The allocation at `base` is never moved from now on.
    pub fn fixed(&mut self, base: u64) {
        if let Some(at) = self.at(base) {
            self.allocations[at].movable = false;
        }
    }

    /// A chunk is in another tier now.
    pub fn moved(&mut self, base: u64, chunk: usize, to: Tier) {
        let Some(at) = self.at(base) else { return };
        if std::mem::take(&mut self.pending) {
            self.account.paid(self.costs.drain);
        }
        (self.retry, self.patience) = (f64::NEG_INFINITY, PATIENCE);
        self.account.moved(&mut self.allocations[at], chunk, to);
        self.stale = true;
    }

    /// The device did not drain: no plan for a while, each time longer.
    pub fn failed(&mut self, now: f64) {
        self.account.paid(self.costs.drain);
        self.pending = false;
        self.retry = now + self.patience;
        self.patience = (self.patience * 2.0).min(LONGEST);
    }

    /// An operation names these addresses, at their start or inside.
    pub fn named(&mut self, op: Op, addresses: &[u64], now: f64) {
        self.account.at(now);
        self.op = self.op.wrapping_add(1);
        for &address in addresses {
            match op {
                Op::Launch | Op::Graph => self.touch(address),
                // A copy crosses the link wherever it goes: most are from or to the program's host memory.
                Op::Copy { bytes } => self.sweep(address, bytes, 0.0),
                Op::Memset { bytes } => self.sweep(address, bytes, 1.0),
            }
        }
        self.pace.at(self.clock.step(), now);
        // Within a step that does not end, a plan is worth another look now and then.
        if self.clock.traffic() / 16 > self.planned_at {
            self.stale = true;
        }
    }

    /// The program waited for the device: it is likely drained.
    pub fn waited(&mut self, now: f64) {
        self.account.at(now);
        self.stale |= self.clock.end();
        self.pace.at(self.clock.step(), now);
    }

    /// Bytes that operations have named since the last time, by tier: all that an address names, whatever a kernel uses
    /// of it, once for each operation.
    pub fn take_named(&mut self) -> [u64; 2] {
        self.pace.take()
    }

    /// How long a step takes, seconds; `None` while that is not known, or none is going on any more.
    pub fn step_time(&self, now: f64) -> Option<f64> {
        self.pace.step(now)
    }

    /// Steps of the program so far. A step is over when what the last one named has been named again.
    pub fn step(&self) -> u64 {
        u64::from(self.clock.step())
    }

    /// Bytes used per step, of those in a tier.
    pub fn heat(&self, tier: Tier) -> f64 {
        self.allocations
            .iter()
            .flat_map(|a| &a.extents)
            .map(|e| {
                let host = e.on_host as f64;
                let there = match tier {
                    Tier::Host => host,
                    Tier::Vram => e.length() as f64 - host,
                };
                f64::from(e.value(&self.clock)) * there
            })
            .sum()
    }

    /// Seconds that moves have earned so far, their cost taken off: what first come, first served would have taken
    /// longer, as far as the operations told. The account is cut off above, so this is the least.
    pub fn earned(&self) -> f64 {
        self.account.total()
    }

    fn at(&self, base: u64) -> Option<usize> {
        self.allocations
            .binary_search_by_key(&base, |a| a.base)
            .ok()
    }

    /// The allocation that holds `address`, and the extent.
    fn find(&self, address: u64) -> Option<(usize, usize)> {
        let at = self.allocations.partition_point(|a| a.base <= address);
        let at = at.checked_sub(1)?;
        Some((at, self.allocations[at].find(address)?))
    }

    /// Whether an address inside an extent comes again and again. One that does not may be a row that a cache grows by, or
    /// the middle of a view: it ends nothing.
    fn returns(&mut self, address: u64) -> bool {
        let slot = (address >> 8).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 52;
        let start = &mut self.starts[slot as usize & (FOUND - 1)];
        if start.address != address {
            *start = Start {
                address,
                op: self.op,
                times: 1,
            };
            return false;
        }
        if start.op != self.op {
            (start.op, start.times) = (self.op, start.times.saturating_add(1));
        }
        start.times >= RETURNS
    }

    /// A kernel was given `address`.
    fn touch(&mut self, address: u64) {
        let slot = (address >> 8).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 52;
        let found = self.found[slot as usize & (FOUND - 1)];
        let hit = found.address == address
            && self
                .allocations
                .get(found.allocation as usize)
                .is_some_and(|a| a.id == found.id);
        let (at, index) = if hit {
            (found.allocation as usize, found.extent as usize)
        } else {
            let Some((at, mut index)) = self.find(address) else {
                return;
            };
            let inside = self.allocations[at].extents[index].start != address;
            let settled = !inside || self.returns(address);
            let allocation = &mut self.allocations[at];
            if settled && allocation.split(index, address, &mut self.clock) {
                index += 1;
                self.ids += 1;
                allocation.id = self.ids;
            }
            (at, index)
        };
        let allocation = &mut self.allocations[at];
        if self.clock.over() && !allocation.extents[index].in_a_row(self.op, &self.clock) {
            self.clock.end();
            self.stale = true;
        }
        while allocation.extents[index].fresh(&self.clock)
            && allocation.outlived(index, &self.clock)
        {
            allocation.merge(index);
            self.ids += 1;
            allocation.id = self.ids;
        }
        let extent = &mut allocation.extents[index];
        if extent.use_once(self.op, &mut self.clock) {
            self.account.used(extent.off, 1.0);
            self.pace.used(extent, extent.start == address);
        }
        if extent.start != address {
            return;
        }
        self.found[slot as usize & (FOUND - 1)] = Found {
            address,
            id: allocation.id,
            allocation: at as u32,
            extent: index as u32,
        };
    }

    /// A copy or memset covered `bytes` from `address`; it takes `crossing` times as much longer on Host as a read.
    fn sweep(&mut self, address: u64, bytes: u64, crossing: f64) {
        let Some((at, first)) = self.find(address) else {
            return;
        };
        let end = address.saturating_add(bytes);
        let allocation = &mut self.allocations[at];
        for chunk in &allocation.chunks[allocation.chunks_in(address, end)] {
            let covered = end.min(chunk.end()) - address.max(chunk.start);
            self.pace.covered(chunk.tier, covered);
        }
        for extent in &mut allocation.extents[first..] {
            if extent.start >= end {
                break;
            }
            let covered = end.min(extent.end) - address.max(extent.start);
            let part = covered as f64 / extent.length() as f64;
            extent.use_part(part as f32, &mut self.clock);
            self.account.used(extent.off, part * crossing);
        }
    }
}
