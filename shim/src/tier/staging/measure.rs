//! How long uses of a unit take, in VRAM and on Host, and whether staging it gains.

/// Weight of a new measurement in the mean.
const NEW: f32 = 0.5;
/// A measurement so many times as long or as short is another kind of work: the mean begins anew.
const OTHER: f32 = 2.0;
/// Staging begins to gain when reading on Host takes so many times as long as the copy, and ends to below.
const GAINS: f64 = 1.04;
const LOSES: f64 = 0.96;
/// Seconds after which what is known may no longer be true.
const OLD: f64 = 20.0;

/// A mean that follows.
#[derive(Clone, Copy, Debug, Default)]
pub struct Mean(Option<f32>);

impl Mean {
    /// Takes a measurement in, seconds.
    pub fn add(&mut self, new: f64) {
        let new = new as f32;
        self.0 = Some(match self.0 {
            Some(old) if new <= old * OTHER && old <= new * OTHER => old + (new - old) * NEW,
            _ => new,
        });
    }

    /// The mean, seconds.
    pub fn get(self) -> Option<f64> {
        self.0.map(f64::from)
    }
}

/// How much runs besides the operations that are measured.
#[derive(Clone, Copy, Debug, Default)]
pub struct Between {
    gaps: f64,
    uses: f64,
}

impl Between {
    /// An operation of so many seconds, for which nothing waited, began so many after the one before it had ended.
    pub fn add(&mut self, gap: f64, seconds: f64) {
        // A pause of the program is no compute.
        let gap = gap.min(4.0 * seconds);
        self.gaps += (gap - self.gaps) / 64.0;
        self.uses += (seconds - self.uses) / 64.0;
    }

    /// What to multiply the seconds of operations with.
    pub fn factor(&self) -> f64 {
        if self.uses > 0.0 {
            1.0 + self.gaps / self.uses
        } else {
            1.0
        }
    }
}

/// What was measured of a unit.
#[derive(Clone, Copy, Debug)]
pub struct Measured {
    /// Seconds of a use in VRAM: its share of the operation.
    vram: Mean,
    /// Seconds that a use on Host takes longer.
    extra: Option<f32>,
    /// When it was measured last.
    at: f64,
    /// Staging gains.
    gains: bool,
}

impl Measured {
    /// Nothing is: staging is assumed to gain.
    pub fn new(now: f64) -> Measured {
        Measured {
            vram: Mean::default(),
            extra: None,
            at: now,
            gains: true,
        }
    }

    /// A use in VRAM took so many seconds.
    pub fn in_vram(&mut self, seconds: f64) {
        self.vram.add(seconds);
    }

    /// A use on Host took `extra` seconds longer than in VRAM; the copy would take `copy`.
    pub fn on_host(&mut self, extra: f64, copy: f64, now: f64) {
        // A unit may be used in several ways; the one that gains counts, until it has not been seen for a while.
        let extra = extra.max(0.0);
        let extra = self
            .extra
            .map_or(extra, |old| extra.max(0.75 * f64::from(old) + 0.25 * extra));
        self.extra = Some(extra as f32);
        self.at = now;
        self.gains = extra > copy * if self.gains { LOSES } else { GAINS };
    }

    /// Whether staging gains.
    pub fn gains(&self) -> bool {
        self.gains
    }

    /// Whether staging gains so much that even an unexpected use should wait for the copy.
    pub fn gains_much(&self, copy: f64) -> bool {
        self.gains && self.extra.is_some_and(|e| f64::from(e) > 3.0 * copy)
    }

    /// Seconds of a use in VRAM, if measured.
    pub fn vram(&self) -> Option<f64> {
        self.vram.get()
    }

    /// What a use on Host is likely to cost to measure anew, seconds, or what a copy does for a unit that is not
    /// staged; none if what is known is still good. `zero_copy` is how long the link takes to be read at best.
    pub fn trial(&self, copy: f64, zero_copy: f64, now: f64) -> Option<f64> {
        if now - self.at < OLD {
            return None;
        }
        if !self.gains {
            return Some(copy);
        }
        self.extra.map(|e| zero_copy.max(f64::from(e)))
    }

    /// It is tried now.
    pub fn tried(&mut self, now: f64) {
        self.at = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COPY: f64 = 1e-3;

    #[test]
    fn what_is_read_once_for_less_than_a_copy_is_left() {
        let mut measured = Measured::new(0.0);
        assert!(measured.gains(), "until something is known");
        measured.in_vram(1e-5);
        measured.on_host(0.9e-3, COPY, 0.0);
        assert!(!measured.gains());
        // Near the copy it stays as it is, whatever that is.
        measured.on_host(1.02e-3, COPY, 0.0);
        assert!(!measured.gains());
        measured.on_host(1.5e-3, COPY, 0.0);
        assert!(measured.gains());
        measured.on_host(1.0e-3, COPY, 0.0);
        assert!(measured.gains());
    }

    #[test]
    fn another_kind_of_work_is_learned_at_once() {
        let mut measured = Measured::new(0.0);
        measured.on_host(1e-5, COPY, 0.0);
        assert!(!measured.gains());
        measured.on_host(50e-3, COPY, 0.0);
        assert!(measured.gains() && measured.gains_much(COPY));
        measured.in_vram(1e-5);
        measured.in_vram(1e-3);
        assert_eq!(measured.vram().map(|s| (s * 1e6).round()), Some(1000.0));
    }

    #[test]
    fn what_is_old_is_tried_for_its_price() {
        let mut measured = Measured::new(0.0);
        measured.on_host(5e-3, COPY, 1.0);
        assert_eq!(measured.trial(COPY, COPY, 2.0), None);
        let price = measured.trial(COPY, COPY, 30.0).expect("it is old");
        assert!((price - 5e-3).abs() < 1e-6);
        measured.tried(30.0);
        assert_eq!(measured.trial(COPY, COPY, 31.0), None);
    }
}
