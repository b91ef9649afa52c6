//! What remains to be said at the end.

mod cost;
mod hindsight;

use std::collections::BTreeMap;

use comfy_table::{CellAlignment, Table, presets};

pub use self::cost::costs;
pub use self::hindsight::{Largest, Means, advice};
use crate::size::human;
use crate::snapshot::{Counted, DeviceSnapshot, Snapshot};
use crate::voice::count;

impl Counted {
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
    use std::time::Duration;

    use greenboost_wire::ledger::VramLimit;

    use super::*;
    use crate::snapshot::Figure;

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
            devices: (0..devices).map(device).collect(),
            ..Snapshot::default()
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
            advice(&snapshot, asked, &Means::default()).join("; ")
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
        assert!(advice(&snapshot(1), VramLimit::Free, &Means::default()).is_empty());
    }

    /// Most of what was spilled is not used again; what is would have fitted into little more.
    #[test]
    fn a_limit_against_most_of_the_traffic() {
        let asked = VramLimit::Bytes(10 << 30);
        let of = |heat: u64, change: fn(&mut DeviceSnapshot)| {
            let mut snapshot = snapshot(1);
            snapshot.devices[0].host_bytes = 50 << 30;
            snapshot.devices[0].traffic.host_heat = heat;
            change(&mut snapshot.devices[0]);
            let mut means = Means::default();
            means.add(&snapshot, Duration::from_secs(1));
            snapshot.devices[0].traffic.host_heat = 0;
            means.add(&snapshot, Duration::from_secs(2));
            advice(&snapshot, asked, &means).join("; ")
        };
        let expected = "GPU 0: of 52.0 GiB in RAM a step used up to 3.5 GiB: --vram-limit 14G would have avoided most of the traffic";
        assert_eq!(of(7 << 29, |_| {}), expected);
        let all = "GPU 0: --vram-limit 63G would have kept everything in VRAM";
        assert_eq!(of(49 << 30, |_| {}), all, "nearly all is used");
        assert_eq!(of(1 << 50, |_| {}), all, "used several times a step");
        let too_little = of(7 << 29, |d| (d.total, d.vram_limit) = (13 << 30, 12 << 30));
        assert_eq!(too_little, "");
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
}
