//! Whether a plan of `run` contradicts what was measured, in one line.

use std::path::PathBuf;

use greenboost_wire::ledger::Settings;

use super::cache::{self, Kept};
use super::figure::Tier;
use super::nvme::place;
use crate::size::human;

/// A step that waits longer than this for spilled memory is worth a word.
const LONG: f64 = 5.0;

/// A directory that a job may spill to, and how much.
pub struct SpillTo {
    pub dir: PathBuf,
    /// Type of its file system.
    pub file_system: String,
    pub bytes: u64,
}

/// The warning, from what earlier probes of this machine found. Reads a few small files and touches no GPU.
pub fn warning(settings: &Settings, dirs: &[SpillTo]) -> Option<String> {
    let kept = cache::directory().map(|dir| cache::kept(&dir, &cache::Key::here()));
    judge(settings, dirs, &kept.unwrap_or_default())
}

fn judge(settings: &Settings, dirs: &[SpillTo], kept: &[Kept]) -> Option<String> {
    for to in dirs {
        let shown = to.dir.display();
        if let Some(problem) = place::warning(&to.file_system) {
            return Some(format!("{shown}: {problem}"));
        }
        let measured = kept
            .iter()
            .filter(|k| k.section.tier == Tier::Nvme && k.what == to.dir.to_string_lossy())
            .find_map(|k| k.section.value("read.1m.8"));
        if let Some(rate) = measured.filter(|rate| to.bytes as f64 / rate > LONG) {
            return Some(format!(
                "{shown}: {} on a disk that was measured at {:.1} GB/s: a step that needs all of it takes {:.0} s",
                human(to.bytes),
                rate / 1e9,
                to.bytes as f64 / rate
            ));
        }
    }
    if !settings.spill {
        return None;
    }
    // Of several GPUs the one with the fastest link: it is not known yet which the program takes.
    let link = kept
        .iter()
        .filter(|k| k.section.tier == Tier::Link)
        .filter_map(|k| k.section.value("zero.read16"))
        .fold(0.0, f64::max);
    let seconds = settings.ram_limit as f64 / link;
    (link > 0.0 && seconds > LONG).then(|| {
        format!(
            "the probe measured {:.1} GB/s for spilled memory: a step that reads all of the {} that may spill takes {:.0} s",
            link / 1e9,
            human(settings.ram_limit),
            seconds
        )
    })
}

#[cfg(test)]
mod tests {
    use greenboost_wire::ledger::{Report, VramLimit};

    use super::*;
    use crate::probe::figure::{Figure, Section, Unit};

    const GIB: u64 = 1 << 30;

    fn kept(tier: Tier, what: &str, id: &str, rate: f64) -> Kept {
        let mut section = Section::new(tier, what);
        section
            .figures
            .push(Figure::new(id, "", Unit::Rate, &[rate], None));
        Kept {
            what: what.into(),
            section,
            time: 0,
        }
    }

    fn settings(ram_limit: u64) -> Settings {
        Settings {
            vram_limit: VramLimit::Free,
            ram_limit,
            spill: ram_limit > 0,
            report: Report::Extended,
        }
    }

    fn to(file_system: &str, bytes: u64) -> [SpillTo; 1] {
        [SpillTo {
            dir: "/scratch".into(),
            file_system: file_system.into(),
            bytes,
        }]
    }

    #[test]
    fn plans_that_contradict() {
        let slow = [
            kept(Tier::Link, "0000:01:00.0", "zero.read16", 1e9),
            kept(Tier::Nvme, "/scratch", "read.1m.8", 1e9),
        ];
        let said = judge(&settings(0), &to("nfs4", GIB), &slow).unwrap();
        assert!(said.contains("network"), "{said}");
        let said = judge(&settings(0), &to("ext4", 20_000_000_000), &slow).unwrap();
        assert!(said.ends_with("takes 20 s"), "{said}");
        let said = judge(&settings(64 * GIB), &[], &slow).unwrap();
        assert!(
            said.contains("1.0 GB/s") && said.ends_with("takes 69 s"),
            "{said}"
        );
        assert!(said.lines().count() == 1);
    }

    #[test]
    fn plans_that_do_not() {
        let fast = [
            kept(Tier::Link, "a", "zero.read16", 1e9),
            kept(Tier::Link, "b", "zero.read16", 50e9),
            kept(Tier::Nvme, "/other", "read.1m.8", 1e8),
        ];
        assert_eq!(
            judge(&settings(64 * GIB), &to("ext4", 100 * GIB), &fast),
            None
        );
        let off = Settings {
            spill: false,
            ..settings(64 * GIB)
        };
        assert_eq!(judge(&off, &[], &fast[..1]), None, "nothing spills");
        assert_eq!(
            judge(&settings(64 * GIB), &[], &[]),
            None,
            "nothing was measured"
        );
    }
}
