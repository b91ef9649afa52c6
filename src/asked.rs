//! What was asked of the running job from elsewhere, by `greenboost limit` and `park`: for the announcements and the
//! records of its launcher.

use std::collections::BTreeMap;

use greenboost_wire::ledger::Ledger;
use serde_json::{Value, json};

use crate::size::human;
use crate::snapshot::Snapshot;

/// What was seen last.
#[derive(Debug, Default)]
pub struct Asked {
    changes: u32,
    vram: BTreeMap<usize, u64>,
    ram: Option<u64>,
    is_parked: bool,
}

/// What is new.
#[derive(Debug, PartialEq)]
pub enum News {
    /// Another limit: of a device's VRAM, or of host RAM.
    Limit {
        device: Option<usize>,
        before: u64,
        limit: u64,
        held: u64,
    },
    /// All processes sent down what they could.
    Parked { vram: u64, host: u64 },
    /// One of them uses the GPU again.
    Woken,
}

impl Asked {
    /// Compares with the last look.
    pub fn look(&mut self, ledger: &Ledger, snapshot: &Snapshot) -> Vec<News> {
        self.compare(ledger.changes(), snapshot)
    }

    fn compare(&mut self, changes: u32, snapshot: &Snapshot) -> Vec<News> {
        let mut news = Vec::new();
        // A limit that is found out about changes, too, but nobody asked for that.
        let is_asked = std::mem::replace(&mut self.changes, changes) != changes;
        let mut limit = |device, before: Option<u64>, limit, held| {
            if let Some(before) = before.filter(|before| is_asked && *before != limit) {
                news.push(News::Limit {
                    device,
                    before,
                    limit,
                    held,
                });
            }
        };
        for d in &snapshot.devices {
            let before = self.vram.insert(d.device, d.vram_limit);
            limit(Some(d.device), before, d.vram_limit, d.vram_bytes);
        }
        let before = self.ram.replace(snapshot.ram_limit);
        limit(None, before, snapshot.ram_limit, snapshot.host_bytes);
        let was_parked = std::mem::replace(&mut self.is_parked, snapshot.parked);
        let holds = snapshot
            .devices
            .iter()
            .any(|d| d.vram_bytes + d.host_bytes > 0);
        if self.is_parked && !was_parked {
            news.push(News::Parked {
                vram: snapshot.devices.iter().map(|d| d.vram_bytes).sum(),
                host: snapshot.host_bytes,
            });
        } else if was_parked && !self.is_parked && holds {
            news.push(News::Woken);
        }
        news
    }
}

impl News {
    /// In words.
    pub fn sentence(&self) -> String {
        match self {
            News::Limit {
                device,
                before,
                limit,
                held,
            } => {
                let name = match device {
                    Some(n) => format!("VRAM limit of GPU {n}"),
                    None => "RAM limit".into(),
                };
                let much = match held.saturating_sub(*limit) {
                    0 => String::new(),
                    more => format!("; {} more than that are held and go down", human(more)),
                };
                format!(
                    "the {name} is {} now, it was {}{much}",
                    human(*limit),
                    human(*before)
                )
            }
            News::Parked { vram, host } => format!(
                "parked: {} in VRAM, {} in host RAM; the next use of the GPU wakes it",
                human(*vram),
                human(*host)
            ),
            News::Woken => "awake: it uses the GPU again".into(),
        }
    }

    /// As a record: its type and fields.
    pub fn record(&self) -> (&'static str, Value) {
        match self {
            News::Limit {
                device: Some(n),
                before,
                limit,
                held,
            } => (
                "limit",
                json!({"device": n, "vram_limit": limit, "before": before, "held": held}),
            ),
            News::Limit {
                before,
                limit,
                held,
                ..
            } => (
                "limit",
                json!({"ram_limit": limit, "before": before, "held": held}),
            ),
            News::Parked { vram, host } => {
                ("parked", json!({"vram_bytes": vram, "host_bytes": host}))
            }
            News::Woken => ("woken", json!({})),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::DeviceSnapshot;

    fn snapshot(limit: u64, parked: bool) -> Snapshot {
        Snapshot {
            ram_limit: 90 << 30,
            parked,
            devices: vec![DeviceSnapshot {
                vram_limit: limit << 30,
                vram_bytes: 20 << 30,
                ..DeviceSnapshot::default()
            }],
            ..Snapshot::default()
        }
    }

    #[test]
    fn limits_that_were_asked_for() {
        let mut asked = Asked::default();
        assert_eq!(asked.compare(0, &Snapshot::default()), []);
        assert_eq!(asked.compare(0, &snapshot(40, false)), []);
        assert_eq!(asked.compare(0, &snapshot(30, false)), [], "found out");
        let news = asked.compare(1, &snapshot(12, false));
        assert_eq!(news.len(), 1);
        assert_eq!(
            news[0].sentence(),
            "the VRAM limit of GPU 0 is 12.0 GiB now, it was 30.0 GiB; 8.0 GiB more than that are held and go down"
        );
        let (kind, fields) = news[0].record();
        assert_eq!(
            (kind, &fields["vram_limit"]),
            ("limit", &json!(12u64 << 30))
        );
        let more = Snapshot {
            ram_limit: 80 << 30,
            ..snapshot(12, false)
        };
        let news = asked.compare(2, &more);
        assert_eq!(
            news[0].sentence(),
            "the RAM limit is 80.0 GiB now, it was 90.0 GiB"
        );
        assert_eq!(asked.compare(3, &more), [], "asked for what there is");
    }

    #[test]
    fn parked_and_woken() {
        let mut asked = Asked::default();
        asked.compare(0, &snapshot(40, false));
        let news = asked.compare(1, &snapshot(40, true));
        assert!(
            news[0].sentence().starts_with("parked: 20.0 GiB in VRAM"),
            "{news:?}"
        );
        assert_eq!(asked.compare(1, &snapshot(40, true)), []);
        assert_eq!(asked.compare(1, &snapshot(40, false)), [News::Woken]);
        asked.compare(2, &snapshot(40, true));
        assert_eq!(asked.compare(2, &Snapshot::default()), [], "it has ended");
    }
}
