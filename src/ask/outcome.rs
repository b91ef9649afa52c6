//! What came of a change of limits: pure, from what the ledger says.

use std::time::Duration;

use greenboost_wire::ledger::{
    Answer, Ledger, OBSTACLES, Obstacle, Placement, Settings, Tier, VramLimit,
};
use serde_json::{Value, json};

use crate::size::{human, share};
use crate::voice::{count, duration};

/// One limit and what is held under it.
#[derive(Clone, Debug, PartialEq)]
pub struct Budget {
    /// Ledger index of the device; `None`: host RAM, over all devices.
    pub device: Option<usize>,
    /// The limit before the change.
    pub before: u64,
    /// The limit now.
    pub limit: u64,
    /// Bytes held.
    pub held: u64,
}

impl Budget {
    /// The limits that are changed, as they are before.
    pub fn all(ledger: &Ledger, vram: bool, ram: bool) -> Vec<Budget> {
        let devices = ledger.devices().filter(|_| vram).map(|(n, _)| Some(n));
        devices
            .chain(ram.then_some(None))
            .map(|device| {
                let now = Budget::now(ledger, device);
                Budget {
                    before: now.limit,
                    ..now
                }
            })
            .collect()
    }

    fn now(ledger: &Ledger, device: Option<usize>) -> Budget {
        let (limit, held) = match device {
            Some(n) => (ledger.device(n).vram_limit(), ledger.used(Tier::Vram, n)),
            None => (ledger.settings().ram_limit, ledger.used_host()),
        };
        Budget {
            device,
            before: 0,
            limit,
            held,
        }
    }

    fn tier(&self) -> Tier {
        match self.device {
            Some(_) => Tier::Vram,
            None => Tier::Host,
        }
    }

    fn excess(&self) -> u64 {
        self.held.saturating_sub(self.limit)
    }

    fn line(&self, of_several: bool, time: Duration) -> String {
        let name = match self.device {
            Some(n) if of_several => format!("VRAM limit of GPU {n}"),
            Some(_) => "VRAM limit".into(),
            None => "RAM limit".into(),
        };
        let before = match self.before == self.limit {
            true => String::new(),
            false => format!(" (was {})", human(self.before)),
        };
        let much = match self.excess() {
            0 => String::new(),
            more => format!(", {} too much", human(more)),
        };
        format!(
            "{name} {}{before}: {} held after {}{much}",
            human(self.limit),
            human(self.held),
            duration(time)
        )
    }
}

/// How it stands.
#[derive(Debug)]
pub struct Outcome {
    /// Since the change.
    time: Duration,
    budgets: Vec<Budget>,
    /// Nothing is held above a limit.
    pub is_within: bool,
    /// Waiting longer would not help.
    pub is_final: bool,
    /// Why not, in words.
    reasons: Vec<String>,
    /// What was wished for VRAM, where no device is known yet.
    pub wish: Option<VramLimit>,
}

impl Outcome {
    /// Looks. `before`: the limits as they were; `change`: the number of the last one.
    pub fn of(ledger: &Ledger, before: &[Budget], change: u32, time: Duration) -> Outcome {
        let now = |was: &Budget| Budget {
            before: was.before,
            ..Budget::now(ledger, was.device)
        };
        let budgets: Vec<Budget> = before.iter().map(now).collect();
        Outcome::judge(budgets, &ledger.settings(), &ledger.holders(), change, time)
    }

    fn judge(
        budgets: Vec<Budget>,
        settings: &Settings,
        answers: &[Answer],
        change: u32,
        time: Duration,
    ) -> Outcome {
        let over: Vec<Tier> = [Tier::Vram, Tier::Host]
            .into_iter()
            .filter(|tier| budgets.iter().any(|b| b.tier() == *tier && b.excess() > 0))
            .collect();
        let never = never(settings);
        // Numbers go round; a process is never half of them behind.
        let is_silent = |a: &&Answer| (a.changes.wrapping_sub(change) as i32) < 0;
        let silent = answers.iter().filter(is_silent).count() as u64;
        let mut reasons = Vec::new();
        if !over.is_empty() {
            match never {
                Some(reason) => reasons.push(reason.into()),
                None if silent > 0 => reasons.push(format!(
                    "{} not answered, and may still do it",
                    count(silent, "process has", "processes have")
                )),
                None => {}
            }
            if never.is_none() {
                reasons.extend(over.iter().flat_map(|tier| stays(answers, *tier)));
                if reasons.is_empty() {
                    reasons.push("it goes down when the GPU is idle".into());
                }
            }
        }
        let mut in_the_way = over.iter().flat_map(|tier| sums(answers, *tier));
        // Who answers has done it, or given it up.
        let is_stuck = silent == 0 && in_the_way.any(|(_, bytes)| bytes > 0);
        Outcome {
            time,
            is_within: over.is_empty(),
            is_final: never.is_some() || is_stuck,
            reasons,
            budgets,
            wish: None,
        }
    }

    /// For people.
    pub fn lines(&self) -> Vec<String> {
        let devices = self.budgets.iter().filter(|b| b.device.is_some()).count();
        let mut lines: Vec<String> = Vec::new();
        match self.wish {
            Some(VramLimit::Bytes(n)) => lines.push(unused(&human(n))),
            Some(VramLimit::Share(n)) => lines.push(unused(&format!("{} of the card", share(n)))),
            Some(VramLimit::Free) | None => {}
        }
        let budgets = self.budgets.iter();
        lines.extend(budgets.map(|b| b.line(devices > 1, self.time)));
        if !self.reasons.is_empty() {
            lines.push(format!(
                "{}; new allocations keep to it",
                self.reasons.join("; ")
            ));
        }
        lines
    }

    /// For programs.
    pub fn document(&self) -> Value {
        let budgets: Vec<Value> = self
            .budgets
            .iter()
            .map(|b| {
                json!({
                    "tier": match b.tier() { Tier::Vram => "vram", Tier::Host => "ram" },
                    "device": b.device,
                    "before": b.before,
                    "limit": b.limit,
                    "held": b.held,
                })
            })
            .collect();
        json!({
            "v": 1,
            "within": self.is_within,
            "seconds": (self.time.as_secs_f64() * 1e3).round() / 1e3,
            "budgets": budgets,
            "reasons": self.reasons,
        })
    }
}

fn unused(limit: &str) -> String {
    format!("VRAM limit {limit}: the job uses no GPU yet")
}

/// Why nothing of the job can go down, ever.
fn never(settings: &Settings) -> Option<&'static str> {
    match settings {
        Settings { spill: false, .. } => {
            Some("the job runs with --spill off, so nothing goes down")
        }
        Settings {
            placement: Placement::FirstFit,
            ..
        } => Some("the job runs with --placement first-fit, so nothing moves"),
        _ => None,
    }
}

fn sums(answers: &[Answer], tier: Tier) -> [(Obstacle, u64); OBSTACLES] {
    Obstacle::ALL.map(|o| {
        let bytes = answers
            .iter()
            .map(|a| a.obstacles[tier as usize][o as usize]);
        (o, bytes.sum())
    })
}

/// What cannot leave a tier, and why, in words.
pub fn stays(answers: &[Answer], tier: Tier) -> Vec<String> {
    let room = match tier {
        Tier::Vram => "host RAM has no room",
        Tier::Host => "VRAM has no room",
    };
    sums(answers, tier)
        .into_iter()
        .filter(|(_, bytes)| *bytes > 0)
        .map(|(obstacle, bytes)| {
            let why = match obstacle {
                Obstacle::FirstFit => "nothing moves with --placement first-fit",
                Obstacle::Frozen => {
                    "its process uses the GPU in a way that forbids moving (run --verbose says which)"
                }
                Obstacle::Pinned => "it is shared with others, or was placed by the driver",
                Obstacle::Capture => "a stream capture is open",
                Obstacle::Busy => "the GPU did not become idle",
                Obstacle::NoRoom => room,
                Obstacle::Unable => "this driver maps no host memory into ranges",
            };
            format!("{} cannot move: {why}", human(bytes))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use greenboost_wire::ledger::{Report, Staging};

    use super::*;

    const GIB: u64 = 1 << 30;
    const SETTINGS: Settings = Settings {
        vram_limit: VramLimit::Bytes(12 * GIB),
        ram_limit: 90 * GIB,
        spill: true,
        report: Report::Extended,
        placement: Placement::Auto,
        staging: Staging::Off,
    };

    fn budget(device: Option<usize>, held: u64) -> Budget {
        Budget {
            device,
            before: 20 * GIB,
            limit: 12 * GIB,
            held,
        }
    }

    fn judge(held: u64, settings: Settings, answers: &[Answer]) -> Outcome {
        let time = Duration::from_millis(400);
        Outcome::judge(vec![budget(Some(0), held)], &settings, answers, 5, time)
    }

    fn answer(changes: u32, obstacle: Option<Obstacle>) -> Answer {
        let mut answer = Answer {
            pid: 7,
            changes,
            ..Answer::default()
        };
        if let Some(obstacle) = obstacle {
            answer.obstacles[0][obstacle as usize] = 2 * GIB;
        }
        answer
    }

    #[test]
    fn within() {
        let outcome = judge(118 * GIB / 10, SETTINGS, &[answer(4, None)]);
        assert!(outcome.is_within);
        assert_eq!(
            outcome.lines(),
            ["VRAM limit 12.0 GiB (was 20.0 GiB): 11.8 GiB held after 0.4 s"]
        );
        assert_eq!(outcome.document()["budgets"][0]["tier"], "vram");
    }

    #[test]
    fn what_is_never_to_come_is_not_waited_for() {
        let still = Settings {
            placement: Placement::FirstFit,
            ..SETTINGS
        };
        let outcome = judge(14 * GIB, still, &[answer(4, None)]);
        assert!(!outcome.is_within && outcome.is_final);
        assert_eq!(
            outcome.lines(),
            [
                "VRAM limit 12.0 GiB (was 20.0 GiB): 14.0 GiB held after 0.4 s, 2.0 GiB too much",
                "the job runs with --placement first-fit, so nothing moves; new allocations keep to it"
            ]
        );
        let off = Settings {
            spill: false,
            ..SETTINGS
        };
        let outcome = judge(14 * GIB, off, &[]);
        assert!(outcome.is_final && outcome.lines()[1].contains("--spill off"));
    }

    #[test]
    fn who_has_not_answered_may_still_do_it() {
        let answers = [answer(4, None), answer(5, Some(Obstacle::Frozen))];
        let outcome = judge(14 * GIB, SETTINGS, &answers);
        assert!(!outcome.is_final);
        let lines = outcome.lines();
        assert!(
            lines[1].starts_with("1 process has not answered"),
            "{lines:?}"
        );
        let outcome = judge(14 * GIB, SETTINGS, &answers[1..]);
        assert!(outcome.is_final);
        let lines = outcome.lines();
        assert!(
            lines[1].starts_with("2.0 GiB cannot move: its process"),
            "{lines:?}"
        );
        let answers = [answer(6, Some(Obstacle::Capture)), answers[1]];
        let outcome = judge(14 * GIB, SETTINGS, &answers);
        assert!(outcome.is_final, "{outcome:?}");
        assert!(outcome.lines()[1].contains("2.0 GiB cannot move: a stream capture is open"));
        let outcome = judge(14 * GIB, SETTINGS, &[answer(5, None)]);
        assert!(!outcome.is_final);
        assert!(outcome.lines()[1].starts_with("it goes down when"));
    }

    /// The numbers of changes go round.
    #[test]
    fn after_very_many_changes() {
        let outcome = |answered, change| {
            let answers = [answer(answered, Some(Obstacle::Pinned))];
            let budgets = vec![budget(Some(0), 14 * GIB)];
            Outcome::judge(budgets, &SETTINGS, &answers, change, Duration::ZERO).is_final
        };
        assert!(outcome(2, u32::MAX));
        assert!(!outcome(u32::MAX, 2));
    }

    #[test]
    fn what_lies_in_the_way_of_one_tier_is_none_of_the_others() {
        let mut host = answer(5, None);
        host.obstacles[Tier::Host as usize][Obstacle::NoRoom as usize] = GIB;
        let outcome = judge(14 * GIB, SETTINGS, &[host]);
        assert!(!outcome.is_final && !outcome.lines()[1].contains("room"));
        let budgets = vec![budget(Some(0), GIB), budget(None, 13 * GIB)];
        let outcome = Outcome::judge(budgets, &SETTINGS, &[host], 5, Duration::from_secs(2));
        assert!(outcome.is_final);
        assert_eq!(
            outcome.lines()[1..],
            [
                "RAM limit 12.0 GiB (was 20.0 GiB): 13.0 GiB held after 2.0 s, 1.0 GiB too much",
                "1.0 GiB cannot move: VRAM has no room; new allocations keep to it"
            ]
        );
    }

    #[test]
    fn several_devices_have_names() {
        let budgets = vec![budget(Some(0), GIB), budget(Some(1), GIB)];
        let outcome = Outcome::judge(budgets, &SETTINGS, &[], 5, Duration::ZERO);
        let lines = outcome.lines();
        assert!(
            lines[1].starts_with("VRAM limit of GPU 1 12.0 GiB (was"),
            "{lines:?}"
        );
    }
}
