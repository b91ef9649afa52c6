//! Steps of the program, found in what it names: a token, a training step, a pass of a denoiser.
//!
//! A step is over when nine tenths of the bytes that the last one named have been named again; or, if the program has
//! gone on to other bytes, when half of what it named has been named twice, and twice as much as the last step named.
//! So steps follow loops of any length, whether or not the program waits in between, and a small buffer that is named a
//! hundred times does not make a hundred steps.

use super::extent::Extent;

/// Times the usual gap after which heat that is not renewed has halved.
const HALF_LIFE: f32 = 2.0;
/// Half-lives more that heat loses at once when the program goes on to other bytes.
const CHANGE: f32 = 2.0;
/// The least part that the newest step has in the mean.
pub const NEWEST: f32 = 0.2;
/// How often bytes count at most in the traffic of a step.
const OFTEN: u32 = 64;
/// Steps whose end is remembered.
const REMEMBERED: usize = 64;

/// What is left after so many half-lives, none or more; right to a thousandth. The mathematical library would be one
/// more for every process to load.
pub fn halved(times: f32) -> f32 {
    // A power of two by its exponent, and the rest by a polynomial.
    let whole = times as u32;
    if whole > 100 {
        return 0.0;
    }
    let rest = times - whole as f32;
    let part = 1.0
        + rest * (-std::f32::consts::LN_2 + rest * (0.239_7 + rest * (-0.054_4 + rest * 0.007_8)));
    part * f32::from_bits((127 - whole) << 23)
}

/// The first step. What was never named is older than any.
const FIRST: u32 = 2;

/// Where the program is.
#[derive(Debug)]
pub struct Clock {
    step: u32,
    /// How often the program has gone on to other bytes.
    changes: u32,
    /// How each of the last steps ended.
    ends: [End; REMEMBERED],
    /// Bytes that this step has named.
    named: u64,
    /// Bytes of them that the last step named too.
    again: u64,
    /// Bytes of them that this step has named twice.
    twice: u64,
    /// The first launch of this step.
    began: u32,
    /// Launches from that one to the first that named these bytes, times bytes.
    first: f64,
    /// Bytes of those that the last step did not name.
    other: u64,
    /// Bytes named in this step, as often as they were.
    traffic: u64,
    /// Bytes that the last step named, of those still there; or named twice, if it left the others behind.
    last: u64,
    left: bool,
}

/// How a step ended.
#[derive(Clone, Copy, Debug, Default)]
struct End {
    /// Changes before and after.
    changes: [u32; 2],
    /// The launch, on average, that named first what it named twice.
    since: u32,
}

impl Clock {
    pub fn new() -> Clock {
        Clock {
            step: FIRST,
            changes: 0,
            ends: [End::default(); REMEMBERED],
            began: 0,
            first: 0.0,
            named: 0,
            again: 0,
            twice: 0,
            other: 0,
            traffic: 0,
            last: 0,
            left: false,
        }
    }

    /// The step that is going on.
    pub fn step(&self) -> u32 {
        self.step
    }

    /// No step is over yet.
    pub fn young(&self) -> bool {
        self.step == FIRST
    }

    /// Bytes named in this step, as often as they were.
    pub fn traffic(&self) -> u64 {
        self.traffic
    }

    /// Bytes that the last step named.
    pub fn last(&self) -> u64 {
        self.last
    }

    /// How much of an extent's heat is left since a step named it last.
    pub fn left(&self, extent: &Extent) -> f32 {
        let age = (self.step - extent.step) as usize;
        if age >= REMEMBERED {
            return 0.0;
        }
        // What the program named before it went on to what it repeats belongs to what it left.
        let end = &self.ends[extent.step as usize % REMEMBERED];
        let left = extent.op.wrapping_sub(end.since) as i32 >= 0;
        let changes = self.changes - end.changes[usize::from(left)];
        // A step is a little less than a turn, so missing one now and then means nothing.
        let late = ((age - 1) as f32 / extent.gap - 1.0).max(0.0);
        halved(late / HALF_LIFE + CHANGE * changes as f32)
    }

    /// A launch names an extent; `launched` counts it already, `op` is the launch before.
    pub fn name(&mut self, extent: &mut Extent, op: u32) {
        let bytes = extent.length();
        if self.named == 0 {
            self.began = op;
        }
        if extent.launched == 1 {
            self.named += bytes;
            self.again += if extent.again { bytes } else { 0 };
        } else if !extent.twice {
            // Named in a row, or with few of the others in between, is not yet come back to.
            let between = self
                .traffic
                .saturating_sub(extent.mark.saturating_add(bytes));
            let others = (self.named.saturating_sub(bytes) / 2).max(1);
            if between >= others || extent.launched >= OFTEN {
                extent.twice = true;
                let since = extent.op.wrapping_sub(self.began);
                self.first += bytes as f64 * f64::from(since);
                self.twice += bytes;
                self.other += if extent.again { 0 } else { bytes };
            }
        }
        extent.mark = self.traffic;
        if extent.launched <= OFTEN {
            self.traffic = self.traffic.saturating_add(bytes);
        }
    }

    /// An extent, or `bytes` of it that were split off, is not what it was.
    pub fn take(&mut self, extent: &Extent, bytes: u64) {
        if extent.launched == 0 {
            return;
        }
        if extent.step == self.step {
            self.named = self.named.saturating_sub(bytes);
            if extent.again {
                self.again = self.again.saturating_sub(bytes);
            }
            if extent.twice {
                self.twice = self.twice.saturating_sub(bytes);
                if !extent.again {
                    self.other = self.other.saturating_sub(bytes);
                }
            }
        }
    }

    /// An extent that this step has not named yet is one of the `last` bytes.
    pub fn in_last(&self, extent: &Extent) -> bool {
        let named = extent.launched > 0 && extent.step + 1 == self.step;
        named && (extent.twice || !self.left)
    }

    /// An extent is gone.
    pub fn gone(&mut self, extent: &Extent) {
        self.take(extent, extent.length());
        let last = match extent.step == self.step {
            true => extent.again,
            false => self.in_last(extent),
        };
        if last {
            self.last = self.last.saturating_sub(extent.length());
        }
    }

    /// What the last step named has been named again.
    fn round(&self) -> bool {
        self.last > 0 && self.again >= self.last - self.last / 10
    }

    /// The step is over as soon as the program turns to anything else.
    pub fn over(&self) -> bool {
        let other = self.twice >= self.named / 2 && self.traffic >= self.last.saturating_mul(2);
        self.named > 0 && (self.round() || other)
    }

    /// How many turns of its loop the program took in the step that named this extent last: two where it had gone on to
    /// other bytes, and this is one of them.
    pub fn turns(&self, extent: &Extent) -> u8 {
        let end = &self.ends[extent.step as usize % REMEMBERED];
        let known = extent.step < self.step && self.step - extent.step < REMEMBERED as u32;
        1 + u8::from(known && extent.twice && end.changes[0] != end.changes[1])
    }

    /// Ends the step, if it is over.
    pub fn end(&mut self) -> bool {
        let round = self.round();
        if !self.over() {
            return false;
        }
        let before = self.changes;
        if !round && self.other >= self.twice / 2 {
            self.changes += 1;
        }
        let first = (self.first / self.twice.max(1) as f64) as u32;
        self.ends[self.step as usize % REMEMBERED] = End {
            changes: [before, self.changes],
            since: self.began.wrapping_add(first),
        };
        self.step = self.step.saturating_add(1);
        self.left = !round;
        self.last = if round { self.named } else { self.twice };
        (self.named, self.again, self.twice) = (0, 0, 0);
        (self.other, self.traffic, self.first) = (0, 0, 0.0);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn powers_of_two() {
        for i in 0..4000 {
            let times = i as f32 / 97.0;
            let (is, should) = (halved(times), (-times).exp2());
            assert!((is / should - 1.0).abs() < 1e-3, "{times}: {is}, {should}");
        }
        assert_eq!(halved(1e9), 0.0);
    }
}
