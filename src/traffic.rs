//! What a job's memory costs it: bytes that cross the link, chunks that move, calls that wait. Counters, and the rates
//! that two looks at them give.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use greenboost_wire::ledger::{self, Ledger, Tier};
use serde::{Serialize, Serializer};

use crate::snapshot::Snapshot;

/// The counters of one device; times are seconds in the records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Traffic {
    /// Bytes of chunks that were brought to VRAM.
    pub promoted_bytes: u64,
    /// Bytes of chunks that were sent to host memory.
    pub demoted_bytes: u64,
    /// Chunks.
    pub promotions: u64,
    /// Chunks.
    pub demotions: u64,
    /// Moves that were begun and given up.
    pub moves_abandoned: u64,
    /// How long the device was held for moves, nanoseconds.
    #[serde(rename = "move_seconds", serialize_with = "seconds")]
    pub move_nanos: u64,
    /// How long the program's calls waited, all threads together, nanoseconds.
    #[serde(rename = "wait_seconds", serialize_with = "seconds")]
    pub wait_nanos: u64,
    /// Bytes that operations named in VRAM.
    pub vram_named_bytes: u64,
    /// Those in host memory. Kernels need not read all of it, and may read it more than once.
    pub host_named_bytes: u64,
    /// Bytes in VRAM that a step uses.
    pub vram_heat: u64,
    /// Bytes in host memory that a step uses.
    pub host_heat: u64,
    /// How long a step takes, nanoseconds.
    #[serde(rename = "step_seconds", serialize_with = "seconds")]
    pub step_nanos: u64,
}

fn seconds<S: Serializer>(nanos: &u64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(*nanos as f64 / 1e9)
}

impl Traffic {
    /// Reads the ledger.
    pub fn take(ledger: &Ledger, index: usize, device: &ledger::Device) -> Traffic {
        let (counters, pace) = (&device.traffic, ledger.pace(index));
        let now = |counter: &AtomicU64| counter.load(SeqCst);
        let named = |tier| now(&counters.named_bytes[tier as usize]);
        Traffic {
            promoted_bytes: now(&counters.promoted_bytes),
            demoted_bytes: now(&counters.demoted_bytes),
            promotions: now(&counters.promotions),
            demotions: now(&counters.demotions),
            moves_abandoned: now(&counters.moves_abandoned),
            move_nanos: now(&counters.move_nanos),
            wait_nanos: now(&counters.waited_nanos),
            vram_named_bytes: named(Tier::Vram),
            host_named_bytes: named(Tier::Host),
            vram_heat: pace.heat[Tier::Vram as usize],
            host_heat: pace.heat[Tier::Host as usize],
            step_nanos: pace.step_nanos,
        }
    }

    /// Bytes moved, both ways.
    pub fn moved(&self) -> u64 {
        self.promoted_bytes + self.demoted_bytes
    }
}

/// What happens in a second on one device.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rates {
    /// Bytes brought to VRAM.
    pub promoted: u64,
    /// Bytes sent to host memory.
    pub demoted: u64,
    /// Bytes that operations named in host memory, where it is known what the link can carry: no more than that.
    pub named: Option<u64>,
    /// The part of the time in which the device was held for moves.
    pub moving: f64,
    /// Seconds that calls waited, all threads together.
    pub waiting: f64,
}

/// Rates are means over this time; moves come in bursts.
const WINDOW: Duration = Duration::from_secs(2);
/// Less time between two looks gives no rate.
const LEAST: Duration = Duration::from_millis(200);

/// Remembers looks for the rates between them.
#[derive(Debug, Default)]
pub struct Meter {
    looks: VecDeque<(Duration, BTreeMap<usize, Traffic>)>,
}

impl Meter {
    /// A look; `now` since any beginning.
    pub fn add(&mut self, snapshot: &Snapshot, now: Duration) {
        let devices = snapshot.devices.iter().map(|d| (d.device, d.traffic));
        self.looks.push_back((now, devices.collect()));
        // The oldest stays as long as the second oldest is not old enough.
        while self
            .looks
            .get(1)
            .is_some_and(|(time, _)| now.saturating_sub(*time) >= WINDOW)
        {
            self.looks.pop_front();
        }
    }

    /// The rates of each device, those that there can be: `ceiling` is what its link can carry each way, bytes per second.
    pub fn rates(&self, ceiling: impl Fn(usize) -> Option<u64>) -> BTreeMap<usize, Rates> {
        let (Some((then, before)), Some((now, after))) = (self.looks.front(), self.looks.back())
        else {
            return BTreeMap::new();
        };
        let time = now.saturating_sub(*then);
        if time < LEAST {
            return BTreeMap::new();
        }
        let rate = |n| {
            let (before, after) = (before.get(n)?, after.get(n)?);
            Some((*n, between(before, after, time.as_secs_f64(), ceiling(*n))))
        };
        after.keys().filter_map(rate).collect()
    }
}

fn between(before: &Traffic, after: &Traffic, seconds: f64, ceiling: Option<u64>) -> Rates {
    let per_second =
        |of: fn(&Traffic) -> u64| of(after).saturating_sub(of(before)) as f64 / seconds;
    // What took longer than the window is counted at its end.
    let bytes = |of| (per_second(of) as u64).min(ceiling.unwrap_or(u64::MAX));
    Rates {
        promoted: bytes(|t| t.promoted_bytes),
        demoted: bytes(|t| t.demoted_bytes),
        named: ceiling.map(|_| bytes(|t| t.host_named_bytes)),
        moving: (per_second(|t| t.move_nanos) / 1e9).min(1.0),
        waiting: per_second(|t| t.wait_nanos) / 1e9,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::DeviceSnapshot;

    fn look(seconds: u64) -> Snapshot {
        let traffic = Traffic {
            promoted_bytes: seconds * 10,
            demoted_bytes: seconds * 400,
            move_nanos: seconds * 20_000_000,
            wait_nanos: seconds * 3_000_000_000,
            host_named_bytes: seconds * 70,
            ..Traffic::default()
        };
        Snapshot {
            devices: vec![DeviceSnapshot {
                traffic,
                ..DeviceSnapshot::default()
            }],
            ..Snapshot::default()
        }
    }

    #[test]
    fn means_over_the_window_and_never_above_the_link() {
        let mut meter = Meter::default();
        meter.add(&look(0), Duration::ZERO);
        assert!(meter.rates(|_| None).is_empty(), "one look");
        meter.add(&look(0), Duration::from_millis(100));
        assert!(meter.rates(|_| None).is_empty(), "too soon");
        for n in 1..=100 {
            let now = Duration::from_millis(250 * n);
            // Nothing happens in the last two seconds and a quarter.
            meter.add(&look((n / 4).min(23)), now);
        }
        assert_eq!(meter.rates(|_| None)[&0], Rates::default());
        let mut meter = Meter::default();
        for n in 10..14 {
            meter.add(&look(n), Duration::from_secs(n));
        }
        let rates = meter.rates(|_| Some(100))[&0];
        let expected = Rates {
            promoted: 10,
            demoted: 100,
            named: Some(70),
            moving: 0.02,
            waiting: 3.0,
        };
        assert_eq!(rates, expected);
        assert_eq!(meter.rates(|_| Some(50))[&0].named, Some(50));
        let unknown = meter.rates(|_| None)[&0];
        assert_eq!((unknown.demoted, unknown.named), (400, None));
    }

    #[test]
    fn a_device_that_is_new_has_no_rate() {
        let mut meter = Meter::default();
        meter.add(&Snapshot::default(), Duration::ZERO);
        meter.add(&look(9), Duration::from_secs(1));
        assert!(meter.rates(|_| None).is_empty());
    }

    #[test]
    fn records_have_seconds() {
        let value = serde_json::to_value(look(1).devices[0].traffic).unwrap();
        assert_eq!(value["move_seconds"], 0.02);
        assert_eq!(value["wait_seconds"], 3.0);
        assert_eq!(value["promoted_bytes"], 10);
    }
}
