//! Who chooses what is staged: the planner; or, for tests, chance.

use greenboost_wire::ledger::Tier;

pub use super::planner::Unit;
use super::planner::{Planner, Rates};

/// An H100 on PCIe 5 (measured): copies of whole chunks with the mapping that they wait for, and kernels that read Host.
const H100: Rates = Rates {
    dma: 50e9,
    zero_copy: 50.7e9,
};

/// Who chooses.
#[derive(Debug)]
pub enum Chooser {
    /// What is used next comes next.
    Planner(Box<Planner>),
    /// Chunks at random: transitions at every opportunity (`GREENBOOST_TRANSITS=always`). Nothing that a program computes
    /// may depend on it.
    Chance(Chance),
}

impl Chooser {
    /// The planner, or chance.
    pub fn new(chance: bool) -> Chooser {
        match chance {
            true => Chooser::Chance(Chance::default()),
            false => Chooser::Planner(Box::new(Planner::new(H100))),
        }
    }

    /// A chunk has come.
    pub fn add(&mut self, bytes: u64, home: Tier) -> Unit {
        match self {
            Chooser::Planner(planner) => planner.add(bytes, home),
            Chooser::Chance(chance) => chance.add(bytes, home),
        }
    }

    /// It is gone.
    pub fn gone(&mut self, unit: Unit) {
        match self {
            Chooser::Planner(planner) => planner.gone(unit),
            Chooser::Chance(chance) => chance.units[unit.0 as usize] = None,
        }
    }

    /// Its home is elsewhere now.
    pub fn homed(&mut self, unit: Unit, home: Tier) {
        match self {
            Chooser::Planner(planner) => planner.homed(unit, home),
            Chooser::Chance(chance) => {
                if let Some((_, tier)) = &mut chance.units[unit.0 as usize] {
                    *tier = home;
                }
            }
        }
    }

    /// It is never staged from now on.
    pub fn forbid(&mut self, unit: Unit) {
        if let Chooser::Planner(planner) = self {
            planner.forbid(unit);
        }
    }

    /// An operation is about to be launched; its number.
    pub fn named(&mut self, stream: u64, units: &[Unit], now: f64) -> u64 {
        match self {
            Chooser::Planner(planner) => planner.named(stream, units, now),
            Chooser::Chance(chance) => {
                chance.operations += 1;
                chance.operations
            }
        }
    }

    /// It was launched, with all that it names in place.
    pub fn launched(&mut self, number: u64) {
        if let Chooser::Planner(planner) = self {
            planner.launched(number);
        }
    }

    /// When an operation ran, seconds.
    pub fn ran(&mut self, number: u64, begin: f64, end: f64, in_vram: bool) {
        if let Chooser::Planner(planner) = self {
            planner.ran(number, begin, end, in_vram);
        }
    }

    /// A chunk is in a slot; or it stays there.
    pub fn staged(&mut self, unit: Unit) {
        if let Chooser::Planner(planner) = self {
            planner.staged(unit);
        }
    }

    /// A chunk is at home, again or still.
    pub fn evicted(&mut self, unit: Unit) {
        if let Chooser::Planner(planner) = self {
            planner.evicted(unit);
        }
    }

    /// What to stage next, if it may be. It is on its way from then on, until it is staged or evicted.
    pub fn next(&mut self, slots: u64, may: impl FnMut(Unit) -> bool) -> Option<Unit> {
        match self {
            Chooser::Planner(planner) => planner.next_of(slots, may),
            Chooser::Chance(chance) => chance.pick(may),
        }
    }

    /// What to give up for it, of those that may be. It is on its way from then on, until it is evicted or staged.
    pub fn victim(&mut self, wanted: Unit, may: impl FnMut(Unit) -> bool) -> Option<Unit> {
        match self {
            Chooser::Planner(planner) => planner.victim(Some(wanted), may),
            Chooser::Chance(chance) => chance.pick(may),
        }
    }

    /// Whether a launch waits for a chunk that is on Host now.
    pub fn worth_waiting(&mut self, unit: Unit) -> bool {
        match self {
            Chooser::Planner(planner) => planner.worth_waiting(unit),
            Chooser::Chance(chance) => chance.any(4) == 0,
        }
    }

    /// Bytes of slots that pay now.
    pub fn slots(&self) -> u64 {
        match self {
            Chooser::Planner(planner) => planner.slots(),
            // Room for a few of the largest.
            Chooser::Chance(chance) => {
                let host = chance.units.iter().flatten().filter(|u| u.1 == Tier::Host);
                host.map(|u| u.0).max().map_or(0, |largest| 2 * largest)
            }
        }
    }

    /// Pairs of chunks, the first to leave VRAM for the second, that spread what streams; at most so many.
    pub fn layout(&mut self, most: usize) -> Vec<(Unit, Unit)> {
        match self {
            Chooser::Planner(planner) => planner.layout(most),
            Chooser::Chance(_) => Vec::new(),
        }
    }
}

/// Chunks at random.
#[derive(Debug)]
pub struct Chance {
    units: Vec<Option<(u64, Tier)>>,
    state: u64,
    operations: u64,
}

impl Default for Chance {
    fn default() -> Chance {
        Chance {
            units: Vec::new(),
            state: 0x9e37_79b9_7f4a_7c15,
            operations: 0,
        }
    }
}

impl Chance {
    fn any(&mut self, end: usize) -> usize {
        let x = &mut self.state;
        *x ^= *x << 13;
        *x ^= *x >> 7;
        *x ^= *x << 17;
        (*x >> 11) as usize % end.max(1)
    }

    fn pick(&mut self, mut may: impl FnMut(Unit) -> bool) -> Option<Unit> {
        let all = self.units.len();
        let first = self.any(all);
        (0..all)
            .map(|i| Unit(((first + i) % all) as u32))
            .find(|u| may(*u))
    }

    fn add(&mut self, bytes: u64, home: Tier) -> Unit {
        let free = self.units.iter().position(Option::is_none);
        let at = free.unwrap_or_else(|| {
            self.units.push(None);
            self.units.len() - 1
        });
        self.units[at] = Some((bytes, home));
        Unit(at as u32)
    }
}
