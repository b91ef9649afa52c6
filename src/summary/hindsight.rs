//! What can be said afterwards: means over time, the largest spills, and what would have been better.

use std::collections::BTreeMap;
use std::time::Duration;

use greenboost_wire::ledger::{Ledger, VramLimit};
use serde::Serialize;

use crate::size::human;
use crate::snapshot::Snapshot;
use crate::voice::duration;

/// What the job could be given to be faster; only what its figures prove.
pub fn advice(snapshot: &Snapshot, asked: VramLimit, means: &Means) -> Vec<String> {
    // Without a limit of the user's the card was full of others, and nothing can be said.
    if asked == VramLimit::Free {
        return Vec::new();
    }
    let mut advice = Vec::new();
    for d in snapshot.devices.iter().filter(|d| d.spills > 0) {
        // The peaks need not have been at the same time: so much is enough, less may be.
        let enough = d.vram_peak + d.host_peak;
        // What CUDA itself takes for contexts and code is not the job's.
        let room = d.total.saturating_sub((d.total / 40).max(1 << 30));
        // Most of the traffic is what each step uses; the rest may stay where it is.
        let used = means.hottest(d.device);
        let for_used = (d.vram_limit + used).div_ceil(1 << 30);
        if used > 0 && used <= d.host_peak / 5 * 4 && for_used << 30 <= room {
            advice.push(format!(
                "GPU {}: of {} in RAM a step used up to {}: --vram-limit {for_used}G would have avoided most of the traffic",
                d.device,
                human(d.host_peak),
                human(used)
            ));
        } else if enough <= room {
            let gib = enough.div_ceil(1 << 30) + 1;
            if d.vram_limit < enough && gib << 30 <= d.total {
                advice.push(format!(
                    "GPU {}: --vram-limit {gib}G would have kept everything in VRAM",
                    d.device
                ));
            }
        } else if d.vram_limit < room / 10 * 9 {
            advice.push(format!(
                "GPU {}: it has {}; a higher --vram-limit would have kept more in VRAM",
                d.device,
                human(d.total)
            ));
        }
    }
    advice
}

/// One of the largest allocations outside VRAM.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Largest {
    /// Ledger index of its device.
    pub device: usize,
    /// Whose it is or was.
    pub pid: u32,
    /// Its size.
    pub bytes: u64,
    /// How much of that was outside VRAM.
    pub host_bytes: u64,
    /// How long it lived, or lives, seconds.
    pub age: f64,
    /// Whether the program had not freed it.
    pub live: bool,
}

impl Largest {
    /// From the ledger, the largest first; `now`: `CLOCK_MONOTONIC`, nanoseconds.
    pub fn of(ledger: &Ledger, now: u64) -> Vec<Largest> {
        let mut all: Vec<Largest> = ledger
            .devices()
            .flat_map(|(device, d)| d.largest().into_iter().map(move |s| (device, s)))
            .map(|(device, s)| Largest {
                device,
                pid: s.pid,
                bytes: s.bytes,
                host_bytes: s.host_bytes,
                age: s.freed.unwrap_or(now).saturating_sub(s.made) as f64 / 1e9,
                live: s.freed.is_none(),
            })
            .collect();
        all.sort_by_key(|l| std::cmp::Reverse((l.host_bytes, l.bytes)));
        all
    }

    /// In words.
    pub fn line(&self) -> String {
        let age = duration(Duration::from_secs_f64(self.age));
        let end = if self.live { "old" } else { "until freed" };
        format!(
            "GPU {}: {} of {} in host RAM, {age} {end} (process {})",
            self.device,
            human(self.host_bytes),
            human(self.bytes),
            self.pid
        )
    }
}

/// Means over time, from looks at the ledger: what was seen at one counts until the next.
#[derive(Debug, Default)]
pub struct Means {
    /// When last looked, since the launch, and what was held then.
    last: Duration,
    held: BTreeMap<usize, (u64, u64)>,
    /// Byte-seconds in VRAM and on Host by device, and the seconds since it came into use.
    sums: BTreeMap<usize, (f64, f64, f64)>,
    /// The same for the host bytes of all devices, since the first came into use.
    host: (f64, f64),
    /// The most that a step was seen to use of a device's host bytes.
    hottest: BTreeMap<usize, u64>,
}

impl Means {
    /// A look, so long after the launch.
    pub fn add(&mut self, snapshot: &Snapshot, now: Duration) {
        let seconds = now.saturating_sub(self.last).as_secs_f64();
        for (device, (vram, host)) in &self.held {
            let sum = self.sums.entry(*device).or_default();
            sum.0 += *vram as f64 * seconds;
            sum.1 += *host as f64 * seconds;
            sum.2 += seconds;
            self.host.0 += *host as f64 * seconds;
        }
        if !self.held.is_empty() {
            self.host.1 += seconds;
        }
        for d in &snapshot.devices {
            // What is used several times counts as often, but is not more.
            let used = d.traffic.host_heat.min(d.host_bytes);
            let hottest = self.hottest.entry(d.device).or_default();
            *hottest = used.max(*hottest);
        }
        self.last = now;
        self.held = snapshot
            .devices
            .iter()
            .map(|d| (d.device, (d.vram_bytes, d.host_bytes)))
            .collect();
    }

    /// Mean bytes in VRAM and on Host since the device came into use.
    pub fn of(&self, device: usize) -> (u64, u64) {
        match self.sums.get(&device) {
            Some((vram, host, seconds)) if *seconds > 0.0 => {
                ((vram / seconds) as u64, (host / seconds) as u64)
            }
            _ => self.held.get(&device).copied().unwrap_or_default(),
        }
    }

    /// The most bytes on Host that a step was seen to use.
    pub fn hottest(&self, device: usize) -> u64 {
        self.hottest.get(&device).copied().unwrap_or_default()
    }

    /// Mean host bytes of all devices.
    pub fn host(&self) -> u64 {
        match self.host {
            (sum, seconds) if seconds > 0.0 => (sum / seconds) as u64,
            _ => self.held.values().map(|(_, host)| host).sum(),
        }
    }
}
