//! What the figures mean, in words below the lines of the tiers.

use super::View;
use super::columns::{NAMED, PER_STEP};
use crate::size::human;
use crate::snapshot::DeviceSnapshot;
use crate::traffic::{Rates, Traffic};
use crate::voice::count;

impl View<'_> {
    /// What it means, as many parts of it as fit.
    pub(super) fn verdict(&self, most: usize) -> String {
        let devices = &self.snapshot.devices;
        let mut parts = Vec::new();
        if self.snapshot.parked {
            parts.push("parked".to_string());
        }
        parts.push(match devices.iter().map(|d| d.host_bytes).sum() {
            0 => "nothing is spilled".to_string(),
            n => format!("{} spilled", human(n)),
        });
        let busy = |d: &DeviceSnapshot| {
            let link = self.link(d);
            let most = link.received?.max(link.sent?);
            Some((most * 100 / link.rate?.max(1), d.device))
        };
        if let Some((busy, device)) = devices.iter().filter_map(busy).max() {
            parts.push(match devices.len() {
                1 => format!("link busy {busy} %"),
                _ => format!("link of GPU {device} busy {busy} %"),
            });
        }
        parts.extend(self.price());
        let ooms: u64 = devices.iter().map(|d| d.ooms).sum();
        if ooms > 0 {
            parts.push(count(ooms, "OOM", "OOMs"));
        }
        let mut text = String::new();
        for part in parts {
            let longer = match text.is_empty() {
                true => part,
                false => format!("{text}; {part}"),
            };
            if longer.chars().count() > most && !text.is_empty() {
                continue;
            }
            text = longer;
        }
        text
    }

    /// What a step waits for its spilled memory at best; while no step is known, what all of it would take.
    fn price(&self) -> Option<String> {
        let devices = self.snapshot.devices.iter();
        let rated = devices.filter_map(|d| Some((d, self.link_rate(d)? as f64)));
        let steps = rated.clone().filter_map(|(d, rate)| {
            let Traffic {
                host_heat,
                step_nanos,
                ..
            } = d.traffic;
            let reading = host_heat as f64 / rate;
            (host_heat > 0 && step_nanos > 0).then_some((reading, step_nanos as f64 / 1e9))
        });
        if let Some((reading, step)) = steps.max_by(|a, b| a.0.total_cmp(&b.0)) {
            let (times, decimals, _) = unit(step);
            // A step that is shorter than that does not read all that it names.
            let (word, part) = match reading > step {
                true => ("up to", step * times),
                false => ("about", reading * times),
            };
            return Some(format!("{word} {part:.decimals$} of each {}", time(step)));
        }
        // What each device has spilled crosses its own link.
        let pass = rated
            .map(|(d, rate)| d.host_bytes as f64 / rate)
            .fold(0.0, f64::max);
        let text = match pass {
            0.0..0.1 => format!("{:.0} ms", (pass * 1e3).max(1.0)),
            _ => format!("{pass:.1} s"),
        };
        (pass > 0.0).then(|| format!("reading it once takes {text} at best"))
    }

    /// What moves and waits cost, and what is used unless a column says it: so many lines at most. Where nothing is known
    /// there is nothing to say.
    pub(super) fn costs(&self, most: usize, room: usize, columns: &[&str]) -> Vec<String> {
        let devices = &self.snapshot.devices;
        let total = |of: fn(&Traffic) -> u64| devices.iter().map(|d| of(&d.traffic)).sum::<u64>();
        let rates = self.rates.values();
        let rate = |of: fn(&Rates) -> f64| rates.clone().map(of).fold(0.0, |a, b| a + b);
        let mut parts = Vec::new();
        if total(Traffic::moved) > 0 {
            let (up, down) = (rate(|r| r.promoted as f64), rate(|r| r.demoted as f64));
            let share = rates.clone().map(|r| r.moving).fold(0.0, f64::max);
            parts.push(match up + down > 0.0 {
                true => format!(
                    "moves {:.1} GB/s in, {:.1} out, {:.1} % of the time",
                    up / 1e9,
                    down / 1e9,
                    share * 100.0
                ),
                false => format!(
                    "moved {} in, {} out so far",
                    human(total(|t| t.promoted_bytes)),
                    human(total(|t| t.demoted_bytes))
                ),
            });
        }
        let waited = total(|t| t.wait_nanos) as f64 / 1e9;
        if waited > 0.0 {
            let now = rate(|r| r.waiting);
            parts.push(match now > 0.0 {
                true => format!("launches wait {} a second", time(now)),
                false => format!("launches waited {} so far", time(waited)),
            });
        }
        // Where the driver counts what the link carries, that is in the columns.
        let is_counted = devices.iter().any(|d| self.link(d).received.is_some());
        let named: u64 = rates.clone().filter_map(|r| r.named).sum();
        if named > 0 && !is_counted && !columns.contains(&NAMED) {
            parts.push(format!("{:.1} GB/s named in RAM", named as f64 / 1e9));
        }
        if let [one] = &devices[..]
            && one.traffic.step_nanos > 0
            && !columns.contains(&PER_STEP)
        {
            let step = one.traffic.step_nanos as f64 / 1e9;
            parts.push(format!(
                "a step of {} uses {} VRAM, {} RAM",
                time(step),
                human(one.traffic.vram_heat),
                self.step_host(one)
            ));
        }
        let mut lines: Vec<String> = Vec::new();
        for part in parts {
            match lines.last_mut() {
                Some(last) if last.chars().count() + 2 + part.chars().count() <= most => {
                    *last += &format!("; {part}");
                }
                _ => lines.push(part),
            }
        }
        lines.truncate(room);
        lines
    }

    /// What a step uses of host memory: no more than its link carries meanwhile.
    pub(super) fn step_host(&self, device: &DeviceSnapshot) -> String {
        let Traffic {
            host_heat,
            step_nanos,
            ..
        } = device.traffic;
        let carried = |rate: u64| (rate as f64 * (step_nanos as f64 / 1e9)) as u64;
        match self.link(device).rate.map(carried) {
            Some(most) if most < host_heat => format!("up to {}", human(most)),
            _ => human(host_heat),
        }
    }

    /// What the link of a device carries when a kernel reads over it: as it was measured, or as it is built.
    fn link_rate(&self, device: &DeviceSnapshot) -> Option<u64> {
        let measured = self.measured.map(|rates| rates.zero_copy as u64);
        let built = self.link(device).rate;
        measured
            .into_iter()
            .chain(built)
            .min()
            .filter(|rate| *rate > 0)
    }
}

/// The unit for so many seconds: how many of it they are, its decimals, its name.
fn unit(seconds: f64) -> (f64, usize, &'static str) {
    match seconds {
        0.0..0.01 => (1e3, 1, "ms"),
        0.01..1.0 => (1e3, 0, "ms"),
        _ => (1.0, 1, "s"),
    }
}

/// `131 ms`, `1.4 s`.
fn time(seconds: f64) -> String {
    let (times, decimals, name) = unit(seconds);
    format!("{:.decimals$} {name}", seconds * times)
}
