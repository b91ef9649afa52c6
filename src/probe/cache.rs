//! What was measured, kept for `run`: one file a section, in the user's cache directory.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::figure::{Section, Tier};

/// Version of the files' layout.
const VERSION: u32 = 1;
/// Files of ours are far smaller; anything larger is not.
const LARGEST: u64 = 1 << 20;

/// What a measurement holds for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Key {
    /// This installation.
    pub machine: String,
    /// The kernel's driver module; empty without one.
    pub driver: String,
}

impl Key {
    /// Of this machine, now. Needs no GPU.
    pub fn here() -> Key {
        let read = |path: &str| fs::read_to_string(path).ok().map(|t| t.trim().to_string());
        let machine = read("/etc/machine-id").filter(|id| !id.is_empty());
        Key {
            machine: machine
                .or_else(|| read("/proc/sys/kernel/hostname"))
                .unwrap_or_default(),
            driver: read("/sys/module/nvidia/version").unwrap_or_default(),
        }
    }
}

/// A file.
#[derive(Debug, Serialize, Deserialize)]
struct Entry {
    v: u32,
    key: Key,
    /// Seconds since 1970.
    time: u64,
    /// What of that tier: a device's PCI address, a directory.
    what: String,
    section: Section,
}

/// A section that was measured earlier.
#[derive(Clone, Debug, PartialEq)]
pub struct Kept {
    pub what: String,
    pub section: Section,
    /// Seconds since 1970.
    pub time: u64,
}

/// Where the files are.
pub fn directory() -> Option<PathBuf> {
    let absolute = |name: &str| {
        let path = PathBuf::from(std::env::var_os(name)?);
        path.is_absolute().then_some(path)
    };
    let cache = absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")))?;
    Some(cache.join("greenboost").join("probe"))
}

/// Keeps a section; an earlier one of the same is replaced.
///
/// # Errors
/// When it cannot be written.
pub fn keep(dir: &Path, key: &Key, what: &str, section: &Section) -> anyhow::Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)?;
    let time = SystemTime::now().duration_since(UNIX_EPOCH);
    let entry = Entry {
        v: VERSION,
        key: key.clone(),
        time: time.map_or(0, |t| t.as_secs()),
        what: what.to_string(),
        section: section.clone(),
    };
    let path = dir.join(file_name(key, section.tier, what));
    let fresh = dir.join(format!(
        ".{}-{:08x}",
        std::process::id(),
        crate::job::random()
    ));
    let written = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&fresh)
        .and_then(|mut file| file.write_all(serde_json::to_string(&entry)?.as_bytes()))
        .and_then(|()| fs::rename(&fresh, &path));
    if written.is_err() {
        let _ = fs::remove_file(&fresh);
    }
    Ok(written?)
}

/// All that holds for this machine and driver.
pub fn kept(dir: &Path, key: &Key) -> Vec<Kept> {
    let Ok(files) = fs::read_dir(dir) else {
        return Vec::new();
    };
    files
        .filter_map(|file| {
            let path = file.ok()?.path();
            let is_ours = path.extension().is_some_and(|e| e == "json")
                && fs::metadata(&path).is_ok_and(|m| m.is_file() && m.len() <= LARGEST);
            let bytes = is_ours.then(|| fs::read(&path).ok()).flatten()?;
            parse(&bytes, key)
        })
        .collect()
}

/// What a file holds, if that is for this machine and driver. It may have been written by anybody who may write there.
fn parse(bytes: &[u8], key: &Key) -> Option<Kept> {
    let entry: Entry = serde_json::from_slice(bytes).ok()?;
    (entry.v == VERSION && entry.key == *key).then_some(Kept {
        what: entry.what,
        section: entry.section,
        time: entry.time,
    })
}

fn file_name(key: &Key, tier: Tier, what: &str) -> String {
    let text = format!("{}\0{}\0{tier:?}\0{what}", key.machine, key.driver);
    // FNV-1a; names only have to differ, what a file holds for is inside.
    let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
    });
    format!("{hash:016x}.json")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::probe::advice::judge;
    use crate::probe::figure::{Figure, Unit};
    use crate::probe::fuzz::{damaged, peak};
    use crate::probe::verdict::{self, Rates};

    fn here() -> Key {
        Key {
            machine: "m".into(),
            driver: "580".into(),
        }
    }

    /// A file in which everything is that a verdict needs.
    fn whole() -> Vec<u8> {
        let mut section = Section::new(Tier::Link, "GPU");
        section.fact("file system", "ext4 on /dev/vda");
        for id in [
            "zero.read16",
            "dma.h2d",
            "vram.read",
            "zero.reread",
            "read.1m.8",
        ] {
            let figure = Figure::new(id, id, Unit::Rate, &[1e9, 2e9], Some(7e9));
            section.figures.push(figure);
        }
        let entry = Entry {
            v: VERSION,
            key: here(),
            time: 7,
            what: "/scratch".into(),
            section,
        };
        serde_json::to_vec(&entry).unwrap()
    }

    /// What is said by such files is said in finite numbers, or not.
    fn speak(mut kept: Kept) {
        let mut sections = Vec::new();
        for tier in [Tier::Link, Tier::Vram, Tier::Nvme] {
            kept.section.tier = tier;
            let settings = crate::plan::Plan::new(
                &crate::cli::RunArgs::default(),
                &crate::machine::Machine::look(),
            )
            .settings;
            let said = judge(&settings, &[], &[kept.clone()]).unwrap_or_default();
            assert!(!said.contains("NaN") && !said.contains("inf"), "{said}");
            sections.push(kept.section.clone());
        }
        if let Some(rates) = Rates::of(&sections) {
            let said = verdict::spilling(&rates, None).concat();
            assert!(!said.contains("NaN") && !said.contains("inf"), "{said}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2048))]

        #[test]
        fn damaged_files_are_passed_over(bytes in damaged(whole())) {
            let (kept, most) = peak(|| parse(&bytes, &here()));
            prop_assert!(most < 64 << 10, "{most}");
            if let Some(kept) = kept {
                speak(kept);
            }
        }

        #[test]
        fn any_numbers(value in any::<f64>(), other in any::<f64>()) {
            let text = String::from_utf8(whole()).unwrap();
            let with = |n: f64| serde_json::to_string(&n).unwrap();
            let text = text.replace("1500000000.0", &with(value)).replace("2000000000.0", &with(other));
            if let Some(kept) = parse(text.as_bytes(), &here()) {
                speak(kept);
            }
        }
    }

    #[test]
    fn the_sample_is_whole() {
        let kept = parse(&whole(), &here()).unwrap();
        assert_eq!(kept.section.value("dma.h2d"), Some(1.5e9));
        assert!(String::from_utf8(whole()).unwrap().contains("1500000000.0"));
        speak(kept);
    }

    #[test]
    fn for_this_machine_driver_and_directory_only() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("a/probe");
        let key = |machine: &str, driver: &str| Key {
            machine: machine.into(),
            driver: driver.into(),
        };
        let mut section = Section::new(Tier::Nvme, "/scratch");
        let figure = Figure::new("read.1m.8", "", Unit::Rate, &[1e9, 2e9], Some(7e9));
        section.figures.push(figure);
        let here = key("m", "580");
        keep(&dir, &here, "/scratch", &section).unwrap();
        keep(&dir, &here, "/other", &section).unwrap();
        section.warn("again");
        keep(&dir, &here, "/scratch", &section).unwrap();
        let mut found = kept(&dir, &here);
        found.sort_by(|a, b| a.what.cmp(&b.what));
        assert_eq!(found.len(), 2);
        assert_eq!(
            (found[1].what.as_str(), &found[1].section),
            ("/scratch", &section)
        );
        assert!(kept(&dir, &key("m", "570")).is_empty());
        assert!(kept(&dir, &key("n", "580")).is_empty());
        for file in fs::read_dir(&dir).unwrap() {
            fs::write(file.unwrap().path(), "{\"v\":1}").unwrap();
        }
        assert!(kept(&dir, &here).is_empty(), "damaged files");
        assert!(kept(Path::new("/no/such"), &here).is_empty());
    }
}
