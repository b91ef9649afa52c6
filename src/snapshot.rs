//! The ledger at one moment, as numbers.

use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use greenboost_wire::ledger::{self, Ledger, Part, Tier};
use serde::Serialize;

use crate::link;
use crate::size::human;
use crate::traffic::Traffic;
use crate::voice::duration;

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
    /// Whether all processes that hold memory are parked.
    pub parked: bool,
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
    /// What is used and moved.
    #[serde(flatten)]
    pub traffic: Traffic,
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
                traffic: Traffic::take(ledger, device, d),
            }
        });
        let devices: Vec<_> = devices.collect();
        Snapshot {
            cuda_processes: ledger.cuda_processes.load(SeqCst),
            host_bytes: devices.iter().map(|d| d.host_bytes).sum(),
            host_peak: ledger.host_peak.load(SeqCst),
            ram_limit: ledger.settings().ram_limit,
            parked: is_parked(ledger),
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
}

/// Whether there are processes that hold memory, and all of them are parked.
fn is_parked(ledger: &Ledger) -> bool {
    let holders = ledger.holders();
    !holders.is_empty() && holders.iter().all(|a| a.is_asleep)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot() -> Snapshot {
        Snapshot {
            host_bytes: 1 << 20,
            ram_limit: 90 << 30,
            devices: vec![DeviceSnapshot {
                vram_limit: 10 << 30,
                ..DeviceSnapshot::default()
            }],
            ..Snapshot::default()
        }
    }

    #[test]
    fn what_is_worth_a_line() {
        let before = snapshot();
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
            snapshot().line(Duration::from_secs(90)),
            "1 min 30 s: GPU 0 VRAM 0 B of 10.0 GiB, RAM 1.0 MiB of 90.0 GiB"
        );
    }
}
