//! What the ledger says, as numbers and for people.

mod hindsight;

use std::collections::BTreeMap;
use std::time::Duration;

use std::sync::atomic::Ordering::SeqCst;

use comfy_table::{CellAlignment, Table, presets};
use greenboost_wire::ledger::{self, Ledger, Part, Tier};
use serde::Serialize;

pub use self::hindsight::{Largest, Means, advice};
use crate::link;

use crate::size::human;
use crate::voice::{count, duration};

/// The ledger at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Snapshot {
    /// Processes that initialised CUDA so far.
    pub cuda_processes: u64,
    /// Host bytes held now, over all devices.
    pub host_bytes: u64,
    /// The most there ever were.
    pub host_peak: u64,
    /// How many there may be.
    pub ram_limit: u64,
    /// Records that the job's processes could not send.
    pub records_lost: u64,
    /// The devices in use, in the order in which they came into use.
    pub devices: Vec<DeviceSnapshot>,
}

/// One device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct DeviceSnapshot {
    /// Its index in the ledger.
    pub device: usize,
    /// Its UUID as NVML writes it.
    pub uuid: String,
    /// Physical bytes.
    pub total: u64,
    /// How much of that the job may hold.
    pub vram_limit: u64,
    /// What it holds now.
    pub vram_bytes: u64,
    /// What it holds besides of freed backing that is kept for reuse.
    pub vram_spare: u64,
    /// The most it ever held.
    pub vram_peak: u64,
    /// Host bytes that stand in for VRAM of this device now.
    pub host_bytes: u64,
    /// Freed host backing that is kept for reuse.
    pub host_spare: u64,
    /// The most there ever were.
    pub host_peak: u64,
    /// Allocations that are live and have bytes in VRAM.
    pub vram_allocations: u64,
    /// Those with bytes in host memory; one that lies in both counts in both.
    pub host_allocations: u64,
    /// Allocations made. Less those freed and those that ended with their process, it is what is live.
    pub allocations: u64,
    /// Allocations that the program freed.
    pub frees: u64,
    /// Allocations that are live.
    pub live: u64,
    /// Allocations that ended with their process.
    pub ended: u64,
    /// Those that were partly or wholly placed outside VRAM.
    pub spills: u64,
    /// Bytes that those had outside VRAM when they were made.
    pub spilled_bytes: u64,
    /// Requests that were answered with "out of memory".
    pub ooms: u64,
    /// The largest of those, bytes.
    pub oom_largest: u64,
    /// What the driver holds for the program.
    pub counted: Counted,
}

/// What the driver holds for the program, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counted {
    /// Arrays; part of the VRAM.
    pub arrays: Figure,
    /// Variables of modules, stacks of kernels; part of the VRAM.
    pub code: Figure,
    /// Allocated by the program as pinned memory; part of the host bytes.
    pub pinned: Figure,
    /// The program's own memory, registered; part of the host bytes.
    pub registered: Figure,
    /// Managed memory; besides.
    pub managed: Figure,
    /// Imported from other interfaces; besides.
    pub external: Figure,
}

/// Bytes now, and the most there ever were.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Figure {
    /// Now.
    pub bytes: u64,
    /// At most.
    pub peak: u64,
}

impl Counted {
    fn take(ledger: &Ledger, index: usize, device: &ledger::Device) -> Counted {
        let figure = |part| Figure {
            bytes: ledger.part(part, index),
            peak: device.part_peak(part),
        };
        Counted {
            arrays: figure(Part::Arrays),
            code: figure(Part::Code),
            pinned: figure(Part::Pinned),
            registered: figure(Part::Registered),
            managed: figure(Part::Managed),
            external: figure(Part::External),
        }
    }

    /// Peaks in words, one line for each of VRAM, host RAM and what is in neither.
    fn lines(&self) -> Vec<String> {
        let rows = [
            ("in VRAM", [(&self.arrays, "arrays"), (&self.code, "code")]),
            (
                "in host RAM",
                [(&self.pinned, "pinned"), (&self.registered, "registered")],
            ),
            (
                "besides",
                [(&self.managed, "managed"), (&self.external, "external")],
            ),
        ];
        let mut lines = Vec::new();
        for (of, figures) in rows {
            let parts: Vec<String> = figures
                .iter()
                .filter(|(figure, _)| figure.peak > 0)
                .map(|(figure, name)| format!("{} {name}", human(figure.peak)))
                .collect();
            if !parts.is_empty() {
                lines.push(format!("{of}: up to {}", parts.join(", ")));
            }
        }
        lines
    }
}

impl Snapshot {
    /// Reads the ledger.
    pub fn take(ledger: &Ledger) -> Snapshot {
        // Freed backing that a process keeps for reuse belongs to no allocation. (The two are not read at one moment.)
        let held = |tier, device| {
            let used = ledger.used(tier, device);
            used.saturating_sub(ledger.spare(tier, device))
        };
        let devices = ledger.devices().map(|(device, d)| {
            // Read in this order, so that an allocation that is made or freed meanwhile never makes "ended" negative.
            let frees = d.frees.load(SeqCst);
            let live = ledger.live(device);
            let allocations = d.allocations.load(SeqCst);
            DeviceSnapshot {
                device,
                uuid: link::uuid_text(&d.uuid()),
                total: d.total(),
                vram_limit: d.vram_limit(),
                vram_bytes: held(Tier::Vram, device),
                vram_spare: ledger.spare(Tier::Vram, device),
                vram_peak: d.vram_peak.load(SeqCst),
                host_bytes: held(Tier::Host, device),
                host_spare: ledger.spare(Tier::Host, device),
                host_peak: d.host_peak.load(SeqCst),
                vram_allocations: live.parts[Tier::Vram as usize],
                host_allocations: live.parts[Tier::Host as usize],
                allocations,
                frees,
                live: live.allocations,
                ended: allocations.saturating_sub(frees + live.allocations),
                spills: d.spills.load(SeqCst),
                spilled_bytes: d.spilled_bytes.load(SeqCst),
                ooms: d.ooms.load(SeqCst),
                oom_largest: d.oom_largest.load(SeqCst),
                counted: Counted::take(ledger, device, d),
            }
        });
        let devices: Vec<_> = devices.collect();
        Snapshot {
            cuda_processes: ledger.cuda_processes.load(SeqCst),
            host_bytes: devices.iter().map(|d| d.host_bytes).sum(),
            host_peak: ledger.host_peak.load(SeqCst),
            ram_limit: ledger.settings().ram_limit,
            records_lost: ledger.records_lost.load(SeqCst),
            devices,
        }
    }

    /// Whether a person should hear of the change: a twentieth of a tier more or less, or another refusal.
    pub fn differs(&self, before: &Snapshot) -> bool {
        let far = |a: u64, b: u64, limit: u64| a.abs_diff(b) >= (limit / 20).max(1);
        self.devices.len() != before.devices.len()
            || far(self.host_bytes, before.host_bytes, self.ram_limit)
            || self
                .devices
                .iter()
                .zip(&before.devices)
                .any(|(a, b)| far(a.vram_bytes, b.vram_bytes, a.vram_limit) || a.ooms != b.ooms)
    }

    /// One line for now and then: what is held of what may be held.
    pub fn line(&self, running: Duration) -> String {
        let mut parts: Vec<String> = self
            .devices
            .iter()
            .map(|d| {
                format!(
                    "GPU {} VRAM {} of {}",
                    d.device,
                    human(d.vram_bytes),
                    human(d.vram_limit)
                )
            })
            .collect();
        if self.ram_limit > 0 {
            parts.push(format!(
                "RAM {} of {}",
                human(self.host_bytes),
                human(self.ram_limit)
            ));
        }
        format!("{}: {}", duration(running), parts.join(", "))
    }

    /// What remains to be said at the end. `names`: device names by ledger index; on few columns one figure is left out.
    pub fn summary(&self, names: &BTreeMap<usize, String>, means: &Means, columns: u16) -> String {
        let mut table = Table::new();
        table.load_preset(presets::NOTHING);
        let is_narrow = columns < 70;
        let row = |cells: [String; 5]| -> Vec<String> {
            let kept = cells.into_iter().enumerate();
            kept.filter(|(n, _)| !is_narrow || *n != 3)
                .map(|(_, cell)| cell)
                .collect()
        };
        table.set_header(row(["", "peak", "mean", "final", "limit"].map(String::from)));
        for d in &self.devices {
            table.add_row(row([
                format!("GPU {} VRAM", d.device),
                human(d.vram_peak),
                human(means.of(d.device).0),
                human(d.vram_bytes),
                human(d.vram_limit),
            ]));
            table.add_row(row([
                format!("GPU {} RAM", d.device),
                human(d.host_peak),
                human(means.of(d.device).1),
                human(d.host_bytes),
                // The limit is for all devices together.
                match self.devices.len() {
                    1 => human(self.ram_limit),
                    _ => String::new(),
                },
            ]));
        }
        if self.devices.len() > 1 {
            table.add_row(row([
                "all RAM".into(),
                human(self.host_peak),
                human(means.host()),
                human(self.host_bytes),
                human(self.ram_limit),
            ]));
        }
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
            column.set_padding((2, 0));
        }
        if let Some(first) = table.column_mut(0) {
            first.set_padding((0, 1));
        }
        let mut lines: Vec<String> = table.lines().map(|l| l.trim_end().to_string()).collect();
        for d in &self.devices {
            lines.push(d.counts());
            let named = d.counted.lines().into_iter();
            lines.extend(named.map(|line| format!("GPU {} {line}", d.device)));
        }
        for (device, name) in names {
            lines.push(format!("GPU {device} is {name}"));
        }
        lines.join("\n")
    }
}

impl DeviceSnapshot {
    fn counts(&self) -> String {
        let mut text = format!(
            "GPU {}: {}",
            self.device,
            count(self.allocations, "allocation", "allocations")
        );
        text += &match self.spills {
            0 => ", none spilled".into(),
            n => format!(", {n} spilled {}", human(self.spilled_bytes)),
        };
        if self.ooms > 0 {
            text += &format!(
                ", {} (max {})",
                count(self.ooms, "OOM", "OOMs"),
                human(self.oom_largest)
            );
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use greenboost_wire::ledger::VramLimit;

    use super::*;

    fn snapshot(devices: usize) -> Snapshot {
        let device = |device| DeviceSnapshot {
            device,
            total: 80 << 30,
            vram_limit: 10 << 30,
            vram_peak: 10 << 30,
            host_bytes: 1 << 20,
            host_peak: 52 << 30,
            allocations: 12_345,
            spills: 12,
            spilled_bytes: 55 << 30,
            ooms: 1,
            oom_largest: 2 << 30,
            ..DeviceSnapshot::default()
        };
        Snapshot {
            cuda_processes: 1,
            host_bytes: 1 << 20,
            host_peak: 52 << 30,
            ram_limit: 90 << 30,
            records_lost: 0,
            devices: (0..devices).map(device).collect(),
        }
    }

    #[test]
    fn summary_of_one_device() {
        let names = BTreeMap::from([(0, "NVIDIA H100 80GB HBM3".to_string())]);
        let expected = "                 peak      mean    final     limit
GPU 0 VRAM   10.0 GiB   2.5 GiB      0 B  10.0 GiB
GPU 0 RAM    52.0 GiB  13.0 GiB  1.0 MiB  90.0 GiB
GPU 0: 12345 allocations, 12 spilled 55.0 GiB, 1 OOM (max 2.0 GiB)
GPU 0 is NVIDIA H100 80GB HBM3";
        let mut means = Means::default();
        let mut then = snapshot(1);
        means.add(&Snapshot::default(), Duration::from_secs(100));
        (then.devices[0].vram_bytes, then.devices[0].host_bytes) = (10 << 30, 52 << 30);
        means.add(&then, Duration::from_secs(101));
        (then.devices[0].vram_bytes, then.devices[0].host_bytes) = (0, 0);
        means.add(&then, Duration::from_secs(102));
        means.add(&then, Duration::from_secs(105));
        assert_eq!(means.host(), 13 << 30);
        assert_eq!(snapshot(1).summary(&names, &means, 80), expected);
    }

    #[test]
    fn advice_is_what_the_figures_prove() {
        let asked = VramLimit::Bytes(10 << 30);
        let of = |change: fn(&mut DeviceSnapshot)| {
            let mut snapshot = snapshot(1);
            change(&mut snapshot.devices[0]);
            advice(&snapshot, asked).join("; ")
        };
        assert_eq!(
            of(|_| {}),
            "GPU 0: --vram-limit 63G would have kept everything in VRAM"
        );
        assert_eq!(
            of(|d| d.host_peak = 90 << 30),
            "GPU 0: it has 80.0 GiB; a higher --vram-limit would have kept more in VRAM"
        );
        assert_eq!(
            of(|d| (d.host_peak, d.vram_limit) = (90 << 30, 79 << 30)),
            ""
        );
        assert_eq!(of(|d| d.spills = 0), "");
        assert!(advice(&snapshot(1), VramLimit::Free).is_empty());
    }

    #[test]
    fn ages() {
        let largest = Largest {
            device: 0,
            pid: 7,
            bytes: 4 << 30,
            host_bytes: 3 << 30,
            age: 75.0,
            live: false,
        };
        assert_eq!(
            largest.line(),
            "GPU 0: 3.0 GiB of 4.0 GiB in host RAM, 1 min 15 s until freed (process 7)"
        );
    }

    #[test]
    fn the_table_fits_60_columns() {
        let text = snapshot(16).summary(&BTreeMap::new(), &Means::default(), 60);
        for line in text.lines().take(18) {
            assert!("greenboost: ".len() + line.len() <= 60, "{line}");
        }
    }

    #[test]
    fn what_is_only_counted_has_a_name() {
        let mut all = snapshot(1);
        let figure = |peak| Figure { bytes: 0, peak };
        all.devices[0].counted = Counted {
            arrays: figure(1 << 30),
            pinned: figure(3 << 20),
            registered: figure(5 << 20),
            ..Counted::default()
        };
        assert!(all.devices[0].counted.lines().len() == 2);
        let text = all.summary(&BTreeMap::new(), &Means::default(), 80);
        assert!(
            text.contains("\nGPU 0 in VRAM: up to 1.0 GiB arrays\n"),
            "{text}"
        );
        let host = "GPU 0 in host RAM: up to 3.0 MiB pinned, 5.0 MiB registered";
        assert!(text.ends_with(host), "{text}");
    }

    #[test]
    fn it_fits_80_columns() {
        for line in snapshot(16)
            .summary(&BTreeMap::new(), &Means::default(), 80)
            .lines()
        {
            assert!("greenboost: ".len() + line.len() <= 80, "{line}");
        }
    }

    #[test]
    fn what_is_worth_a_line() {
        let before = snapshot(1);
        let differs = |change: fn(&mut Snapshot)| {
            let mut after = before.clone();
            change(&mut after);
            after.differs(&before)
        };
        assert!(!differs(|_| {}));
        assert!(!differs(|s| s.devices[0].vram_bytes += 400 << 20));
        assert!(differs(|s| s.devices[0].vram_bytes += 600 << 20));
        assert!(differs(|s| s.host_bytes += 5 << 30));
        assert!(differs(|s| s.devices[0].ooms += 1));
        assert!(before.differs(&Snapshot::default()));
    }

    #[test]
    fn line_now_and_then() {
        assert_eq!(
            snapshot(1).line(Duration::from_secs(90)),
            "1 min 30 s: GPU 0 VRAM 0 B of 10.0 GiB, RAM 1.0 MiB of 90.0 GiB"
        );
    }
}
