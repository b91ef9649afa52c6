//! A stream: its order of use, and what a pass of it consists of.

use super::order::Order;
use super::planner::Unit;

/// Operations after which what was passed over is looked at again.
const AGAIN: u32 = 64;
/// Passes without one that is known until the last one known counts no more.
const FORGOTTEN: u64 = 4;
/// Entries of an order looked at in one call.
const LOOKED_AT: usize = 4096;

/// What a pass consists of.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sum {
    /// Uses.
    pub uses: u64,
    /// Seconds of compute.
    pub work: f64,
    /// Bytes that stream.
    pub bytes: u64,
    /// Those of the largest operation.
    pub largest: u64,
}

/// A stream and its order.
#[derive(Debug)]
pub struct Track {
    /// The stream.
    pub stream: u64,
    /// The operation that named last.
    pub number: u64,
    /// What is used next.
    pub order: Order,
    /// When the operation measured last ended, seconds, and its number.
    pub ended: Option<(u64, f64)>,
    /// The last pass that was known.
    pub whole: Sum,
    /// What the last operation named.
    last: Vec<Unit>,
    /// Entries before this one need not be staged; as long as the cursor has not jumped since.
    scanned: u64,
    jumps: u32,
    /// Operations since all were looked at.
    looked: u32,
    /// What this pass has had so far; and the jumps of the cursor when it began.
    pass: Sum,
    jumped: u32,
    /// Uses since a pass was known.
    unknown: u64,
}

impl Track {
    /// A stream that was not seen before.
    pub fn new(stream: u64, number: u64) -> Track {
        Track {
            stream,
            number,
            order: Order::new(),
            ended: None,
            whole: Sum::default(),
            last: Vec::new(),
            scanned: 0,
            jumps: 0,
            looked: 0,
            pass: Sum::default(),
            jumped: 0,
            unknown: 0,
        }
    }

    /// Whether an operation names just what the last one did.
    pub fn again(&mut self, units: &[Unit]) -> bool {
        let again = self.last == units;
        if !again {
            self.last.clear();
            self.last.extend_from_slice(units);
        }
        again
    }

    /// A unit is gone.
    pub fn gone(&mut self, unit: Unit) {
        self.order.gone(unit.0);
        self.last.clear();
    }

    /// All entries are looked at again: what was not to be staged may be.
    pub fn look_again(&mut self) {
        self.scanned = 0;
    }

    /// An operation has named all that it does, and computes so long. Of what is named again only the largest counts.
    pub fn add(&mut self, units: usize, again: bool, work: f64, streaming: u64) {
        self.looked += 1;
        if self.looked >= AGAIN {
            self.looked = 0;
            self.look_again();
        }
        if std::mem::replace(&mut self.jumped, self.order.jumps()) != self.order.jumps() {
            self.pass = Sum::default();
        }
        self.pass.largest = self.pass.largest.max(streaming);
        if !again {
            self.pass.uses += units as u64;
            self.pass.work += work;
            self.pass.bytes += streaming;
        }
        let period = self.order.period();
        if period > 0 && self.pass.uses >= period {
            self.whole = std::mem::take(&mut self.pass);
        }
        if self.order.known() {
            self.unknown = 0;
        } else {
            self.unknown += units as u64;
            if self.unknown > FORGOTTEN * self.whole.uses {
                self.whole = Sum::default();
            }
        }
    }

    /// The first unit of the order that is `wanted` and `may` be, and when it is used. What is not wanted is passed over
    /// for a while.
    pub fn first(
        &mut self,
        wanted: impl Fn(Unit) -> bool,
        may: &mut impl FnMut(Unit) -> bool,
    ) -> Option<(f64, Unit)> {
        let ahead = self.order.ahead();
        if std::mem::replace(&mut self.jumps, self.order.jumps()) != self.order.jumps() {
            self.look_again();
        }
        let from = self.scanned.max(ahead.start);
        let end = ahead.end.min(from + LOOKED_AT as u64);
        let mut passed = true;
        for at in from..end {
            let unit = Unit(self.order.unit(at));
            if !wanted(unit) || !self.order.expected(at) {
                continue;
            }
            if std::mem::take(&mut passed) {
                self.scanned = at;
            }
            if may(unit) {
                return Some((self.order.when(at), unit));
            }
        }
        if passed {
            self.scanned = end.max(from);
        }
        None
    }
}
