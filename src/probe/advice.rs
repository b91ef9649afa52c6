//! Whether a plan of `run` contradicts what was measured, in one line.

use std::path::{Path, PathBuf};

use greenboost_wire::ledger::Settings;

use super::cache::{self, Kept};
use super::figure::Tier;
use super::nvme::Place;
use crate::size::human;

/// A step that waits longer than this for spilled memory is worth a word.
const LONG: f64 = 5.0;

/// The warning, from what earlier probes of this machine found; `dirs` are what the job may spill to, and how many bytes.
/// Reads a few small files and touches no GPU.
pub fn warning(settings: &Settings, dirs: &[(PathBuf, u64)]) -> Option<String> {
    let kept = cache::directory().map(|dir| cache::kept(&dir, &cache::Key::here()));
    let dirs: Vec<SpillTo> = dirs
        .iter()
        .filter_map(|(dir, bytes)| SpillTo::look(dir, *bytes))
        .collect();
    judge(settings, &dirs, &kept.unwrap_or_default())
}

/// A directory that a job may spill to.
#[derive(Debug, PartialEq)]
pub(super) struct SpillTo {
    dir: PathBuf,
    bytes: u64,
    /// Type of the file system and what is mounted, as a section of figures has them.
    mounted: String,
    /// What is wrong with spilling there, whatever its speed.
    problem: Option<String>,
}

impl SpillTo {
    /// `None` for one that cannot be looked at: whoever uses it says so.
    fn look(dir: &Path, bytes: u64) -> Option<SpillTo> {
        let place = Place::look(dir).ok()?;
        Some(SpillTo {
            dir: std::fs::canonicalize(dir).ok()?,
            bytes,
            mounted: place.mounted(),
            problem: place.warnings().into_iter().next(),
        })
    }

    /// What was measured there, or in the nearest directory above it on the same file system.
    fn rate(&self, kept: &[Kept]) -> Option<f64> {
        kept.iter()
            .filter(|k| k.section.tier == Tier::Nvme && self.dir.starts_with(&k.what))
            .filter(|k| k.section.is_said("file system", &self.mounted))
            .max_by_key(|k| (k.what.len(), k.time))
            .and_then(|k| k.section.value("read.1m.8"))
    }
}

pub(super) fn judge(settings: &Settings, dirs: &[SpillTo], kept: &[Kept]) -> Option<String> {
    for to in dirs {
        let shown = to.dir.display();
        if let Some(problem) = &to.problem {
            return Some(format!("{shown}: {problem}"));
        }
        let seconds = |rate: f64| to.bytes as f64 / rate;
        if let Some(rate) = to.rate(kept).filter(|rate| seconds(*rate) > LONG) {
            return Some(format!(
                "{shown}: {} on a disk that the probe measured at {:.1} GB/s: a step that needs all of it takes {:.0} s",
                human(to.bytes),
                rate / 1e9,
                seconds(rate)
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
    use greenboost_wire::ledger::{Placement, Report, Staging, VramLimit};

    use super::*;
    use crate::probe::figure::{Figure, Section, Unit};

    const GIB: u64 = 1 << 30;

    fn kept(tier: Tier, what: &str, id: &str, rate: f64) -> Kept {
        let mut section = Section::new(tier, what);
        section.fact("file system", "ext4 on /dev/vda");
        let figure = Figure::new(id, "", Unit::Rate, &[rate], None);
        section.figures.push(figure);
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
            placement: Placement::Auto,
            staging: Staging::Off,
        }
    }

    /// A directory on a file system of this type.
    fn to(dir: &str, file_system: &str, bytes: u64) -> SpillTo {
        let place = Place {
            file_system: file_system.into(),
            source: "/dev/vda".into(),
            ..Place::default()
        };
        SpillTo {
            dir: dir.into(),
            bytes,
            mounted: place.mounted(),
            problem: place.warnings().into_iter().next(),
        }
    }

    const GB: u64 = 1_000_000_000;

    #[test]
    fn directories_that_are_no_disk() {
        for (file_system, part) in [
            ("nfs4", "nfs4 is (or may be) a network"),
            ("fuse.sshfs", "a lost connection would stop the program"),
            ("tmpfs", "tmpfs is host RAM, not a disk"),
            ("overlay", "overlay is a container's layer"),
        ] {
            let said = judge(&settings(0), &[to("/scratch", file_system, GB)], &[]).unwrap();
            assert!(
                said.starts_with("/scratch: ") && said.contains(part),
                "{said}"
            );
            assert_eq!(said.lines().count(), 1);
        }
    }

    #[test]
    fn plans_that_contradict() {
        let slow = [
            kept(Tier::Link, "0000:01:00.0", "zero.read16", 1e9),
            kept(Tier::Nvme, "/scratch", "read.1m.8", 1e9),
            kept(Tier::Nvme, "/", "read.1m.8", 90e9),
        ];
        for dir in ["/scratch", "/scratch/job/1"] {
            let said = judge(&settings(0), &[to(dir, "ext4", 20 * GB)], &slow).unwrap();
            assert_eq!(
                said,
                format!(
                    "{dir}: 18.6 GiB on a disk that the probe measured at 1.0 GB/s: a step that needs all of it takes 20 s"
                )
            );
        }
        // The second of two, and of one directory the later measurement.
        let dirs = [to("/else", "ext4", GB), to("/scratch", "ext4", 20 * GB)];
        assert!(
            judge(&settings(0), &dirs, &slow)
                .unwrap()
                .starts_with("/scratch")
        );
        let mut faster = kept(Tier::Nvme, "/scratch", "read.1m.8", 7e9);
        faster.time = 1;
        let both = [slow[1].clone(), faster];
        assert_eq!(judge(&settings(0), &dirs, &both), None);

        let said = judge(&settings(64 * GIB), &[], &slow).unwrap();
        assert!(
            said.contains("1.0 GB/s") && said.ends_with("takes 69 s"),
            "{said}"
        );
        assert!(said.lines().count() == 1);
    }

    #[test]
    fn what_is_looked_at() {
        let dir = tempfile::tempdir().unwrap();
        let to = SpillTo::look(&dir.path().join("."), 7).unwrap();
        assert_eq!(to.dir, std::fs::canonicalize(dir.path()).unwrap());
        assert!(to.mounted.contains(" on "), "{to:?}");
        assert_eq!(SpillTo::look(Path::new("/no/such"), 7), None);
        if let Some(shared) = SpillTo::look(Path::new("/dev/shm"), 7) {
            let problem = shared.problem.unwrap_or_default();
            assert!(problem.contains("host RAM"), "{problem}");
        }
    }

    #[test]
    fn plans_that_do_not() {
        let fast = [
            kept(Tier::Link, "a", "zero.read16", 1e9),
            kept(Tier::Link, "b", "zero.read16", 50e9),
            kept(Tier::Nvme, "/other", "read.1m.8", 1e8),
        ];
        let dirs = [to("/scratch", "ext4", 100 * GB)];
        assert_eq!(judge(&settings(64 * GIB), &dirs, &fast), None);
        // Another file system that is mounted below what was measured.
        let dirs = [to("/other/mount", "xfs", 100 * GB)];
        assert_eq!(judge(&settings(0), &dirs, &fast), None);
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
