//! What the program's operations come to: the bytes that they name in each tier, and how long a step takes.
//!
//! A kernel may use a part of what it names, or read it several times: these are bytes named, not bytes read.

use greenboost_wire::ledger::Tier;

use super::extent::Extent;

/// Steps are timed together for at least so long, seconds: they may be shorter than it takes until they are heard of.
const LEAST: f64 = 0.05;
/// Times remembered. The one in the middle counts, so that a pause is no long step.
const TIMES: usize = 5;
/// How many steps' time, and how many seconds besides, no step has to end until none is going on.
const OVER: (f64, f64) = (8.0, 2.0);

/// What the operations of one device come to.
#[derive(Debug, Default)]
pub struct Pace {
    /// Bytes named since they were last taken, by tier.
    named: [u64; 2],
    /// The last step that has ended, and when that was noticed.
    ended: Option<(u32, f64)>,
    /// The same of the one from which on steps are being timed.
    since: Option<(u32, f64)>,
    /// Seconds per step, the newest over the oldest.
    times: [f64; TIMES],
    timed: usize,
}

impl Pace {
    /// A launch names an extent; `start`: by its first address. Where the bytes of an address inside end is not known: all
    /// such together count as the whole, once for each time that the start is named. So as long as the tensors in an
    /// allocation are being learned, all of them together count as the allocation.
    pub fn used(&mut self, extent: &mut Extent, start: bool) {
        let counts = !extent.counted && (start || extent.launched == 1);
        extent.counted = !start && (extent.counted || counts);
        if counts {
            self.covered(Tier::Host, extent.on_host);
            self.covered(Tier::Vram, extent.length() - extent.on_host);
        }
    }

    /// A copy or memset covers so many bytes in a tier.
    pub fn covered(&mut self, tier: Tier, bytes: u64) {
        let named = &mut self.named[tier as usize];
        *named = named.saturating_add(bytes);
    }

    /// Bytes named since the last time, by tier.
    pub fn take(&mut self) -> [u64; 2] {
        std::mem::take(&mut self.named)
    }

    /// It is `now`, seconds, and this step is going on.
    pub fn at(&mut self, step: u32, now: f64) {
        let Some((last, _)) = self.ended else {
            self.ended = Some((step, now));
            return;
        };
        if step == last {
            return;
        }
        self.ended = Some((step, now));
        // The first step began at any time.
        let Some((from, then)) = self.since else {
            self.since = self.ended;
            return;
        };
        let elapsed = now - then;
        if elapsed >= LEAST {
            self.times[self.timed % TIMES] = elapsed / f64::from(step - from);
            self.timed += 1;
            self.since = self.ended;
        }
    }

    /// How long a step takes, seconds; `None` while that is not known, or none is going on any more.
    pub fn step(&self, now: f64) -> Option<f64> {
        let mut times = self.times;
        let known = &mut times[..self.timed.min(TIMES)];
        known.sort_unstable_by(f64::total_cmp);
        let time = *known.get((known.len().max(1) - 1) / 2)?;
        let (_, last) = self.ended?;
        (now - last <= OVER.0 * time + OVER.1).then_some(time)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Steps that end at these times; how long one takes at the end.
    fn timed(ends: impl IntoIterator<Item = f64>) -> (Pace, Option<f64>) {
        let (mut pace, mut last) = (Pace::default(), 0.0);
        for (step, end) in ends.into_iter().enumerate() {
            pace.at(step as u32, end);
            last = end;
        }
        let step = pace.step(last);
        (pace, step)
    }

    #[test]
    fn steps_are_timed() {
        assert_eq!(timed([1.0, 9.0]).1, None, "the first begins at any time");
        let (pace, step) = timed((0..9).map(|n| f64::from(n) * 0.25));
        assert_eq!(step, Some(0.25));
        assert_eq!(pace.step(2.0 + 3.9), Some(0.25));
        assert_eq!(pace.step(2.0 + 4.1), None, "it does nothing any more");
    }

    /// Steps of 3 ms, and of 30 ms, of which is heard every 4 ms; and every 200 ms.
    #[test]
    fn short_steps_are_timed_together() {
        for (takes, look) in [(0.003, 0.004), (0.03, 0.004), (0.003, 0.2)] {
            let heard = (0..1000).map(|n| (f64::from(n) * takes / look).ceil() * look);
            let step = timed(heard).1.unwrap();
            assert!((step / takes - 1.0).abs() < 0.1, "{takes} {look}: {step}");
        }
    }

    /// Somebody types between one answer and the next.
    #[test]
    fn a_pause_is_no_step() {
        let ends = (0..30).map(|n| f64::from(n) * 0.06 + f64::from(n / 10) * 7.0);
        let step = timed(ends).1.unwrap();
        assert!((step - 0.06).abs() < 1e-6, "{step}");
    }
}
