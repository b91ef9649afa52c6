//! Who holds how much, over all processes of the job.

use std::sync::atomic::Ordering::SeqCst;

use super::seat::Seat;
use super::{Ledger, Live, Pace, Part, REAPING, Tier};
use crate::sync::{DEVICES, SEATS};

impl Ledger {
    /// Bytes that the job holds in a tier of one device, reservations in progress not counted.
    pub fn used(&self, tier: Tier, device: usize) -> u64 {
        self.used_seats()
            .iter()
            .map(|s| s.held[device][tier as usize].bytes.load(SeqCst))
            .sum()
    }

    /// The part of [`Ledger::used`] that no allocation uses: freed backing that its process keeps for reuse.
    pub fn spare(&self, tier: Tier, device: usize) -> u64 {
        self.used_seats()
            .iter()
            .map(|s| s.held[device][tier as usize].spare.load(SeqCst))
            .sum()
    }

    /// Bytes of a part that the job holds on one device.
    pub fn part(&self, part: Part, device: usize) -> u64 {
        self.used_seats()
            .iter()
            .map(|s| s.parts[device][part as usize].load(SeqCst))
            .sum()
    }

    /// Bytes of a tier of one device that this process holds, what it keeps for reuse not counted; `None` when it is
    /// none of the job's.
    pub fn held_by(&self, pid: u32, tier: Tier, device: usize) -> Option<u64> {
        let seat = self
            .used_seats()
            .iter()
            .find(|s| s.owner.load(SeqCst) == u64::from(pid))?;
        let held = &seat.held[device][tier as usize];
        let bytes = held.bytes.load(SeqCst);
        Some(bytes.saturating_sub(held.spare.load(SeqCst)))
    }

    /// What is live on one device, in all processes that live.
    pub fn live(&self, device: usize) -> Live {
        let mut sum = Live::default();
        for seat in self.used_seats() {
            let owner = seat.owner.load(SeqCst);
            if owner == 0 || owner & REAPING != 0 {
                continue;
            }
            let count = &seat.live[device];
            sum.allocations += count.allocations.load(SeqCst);
            for tier in 0..2 {
                sum.parts[tier] += count.parts[tier].load(SeqCst);
                sum.bytes[tier] += count.bytes[tier].load(SeqCst);
            }
        }
        sum
    }

    /// How the processes that live use a device now: their heat together, and the longest of their steps.
    pub fn pace(&self, device: usize) -> Pace {
        let mut sum = Pace::default();
        for seat in self.used_seats() {
            let owner = seat.owner.load(SeqCst);
            if owner == 0 || owner & REAPING != 0 {
                continue;
            }
            let [vram, host, step] = &seat.pace[device];
            sum.heat[0] += vram.load(SeqCst);
            sum.heat[1] += host.load(SeqCst);
            sum.step_nanos = sum.step_nanos.max(step.load(SeqCst));
        }
        sum
    }

    /// Host bytes that the job holds over all devices.
    pub fn used_host(&self) -> u64 {
        (0..DEVICES).map(|d| self.used(Tier::Host, d)).sum()
    }

    /// Bytes that count against a limit that `device` falls under, reservations in progress among them: never less than
    /// what is held once they have ended.
    pub fn claimed(&self, tier: Tier, device: usize) -> u64 {
        self.sum(tier, device, true)
    }

    /// Live seats: pid and bytes held per tier over all devices (VRAM, Host).
    pub fn seats(&self) -> Vec<(u32, u64, u64)> {
        let mut out = Vec::new();
        for seat in self.used_seats() {
            let owner = seat.owner.load(SeqCst);
            if owner != 0 && owner & REAPING == 0 {
                let total = |t: Tier| {
                    seat.held
                        .iter()
                        .map(|h| h[t as usize].bytes.load(SeqCst))
                        .sum()
                };
                out.push((owner as u32, total(Tier::Vram), total(Tier::Host)));
            }
        }
        out
    }

    pub(super) fn used_seats(&self) -> &[Seat] {
        &self.seats[..(self.seats_used.load(SeqCst) as usize).min(SEATS)]
    }

    /// Sum of a tier's bytes that count against the limit that `device` falls under, with or without the pending ones.
    pub(crate) fn sum(&self, tier: Tier, device: usize, pending: bool) -> u64 {
        let devices = match tier {
            Tier::Vram => device..device + 1,
            Tier::Host => 0..DEVICES,
        };
        let mut sum = 0u64;
        for seat in self.used_seats() {
            for d in devices.clone() {
                let held = &seat.held[d][tier as usize];
                // A commit adds to `bytes` before it takes from `pending`. Reading in the opposite order sees the
                // amount at least once, so a sum with pending amounts is never too low.
                let p = if pending {
                    held.pending.load(SeqCst)
                } else {
                    0
                };
                sum = sum
                    .saturating_add(p)
                    .saturating_add(held.bytes.load(SeqCst));
            }
        }
        sum
    }

    /// The limit that holds now.
    pub(super) fn limit(&self, tier: Tier, device: usize) -> u64 {
        match tier {
            Tier::Vram => self.devices[device].vram_limit(),
            Tier::Host => self.ram_limit.load(SeqCst),
        }
    }
}
