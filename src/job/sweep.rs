//! Directories of jobs whose launcher was killed: the next launcher removes them.
//!
//! Only when nobody can need them any more: the launcher is dead, by pid and start time as seen from the same pid
//! namespace, and no process of ours has the job in its environment. Whatever cannot be known is left alone.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use greenboost_wire::{JOB_ENV, alive};
use nix::unistd::Uid;

use super::{PREFIX, bases};

/// Who made the directory: pid, start time and pid namespace.
const SIGNATURE: &str = "launcher";

/// Leaves our name in a new job's directory.
pub fn sign(dir: &Path) -> io::Result<()> {
    let pid = std::process::id();
    let start = alive::start_time(pid).ok_or(io::ErrorKind::NotFound)?;
    fs::write(
        dir.join(SIGNATURE),
        format!("{pid} {start} {}\n", namespace()),
    )
}

/// In a container that shares /tmp with others, their launchers cannot be seen.
fn namespace() -> u64 {
    fs::metadata("/proc/self/ns/pid").map_or(0, |meta| meta.ino())
}

/// Removes what dead launchers left. Failing to is no error: the next one tries again.
pub fn away() {
    let mut done: Vec<PathBuf> = Vec::new();
    for base in bases() {
        if done.contains(&base) {
            continue;
        }
        for entry in fs::read_dir(&base).into_iter().flatten().flatten() {
            let is_named_so = entry.file_name().as_bytes().starts_with(PREFIX.as_bytes());
            if is_named_so && is_abandoned(&entry.path()) {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
        done.push(base);
    }
}

fn is_abandoned(dir: &Path) -> bool {
    let is_ours = fs::symlink_metadata(dir)
        .is_ok_and(|meta| meta.is_dir() && meta.uid() == Uid::effective().as_raw());
    is_ours && launcher_is_dead(dir) == Some(true) && !is_in_use(dir)
}

/// `None`: it cannot be known.
fn launcher_is_dead(dir: &Path) -> Option<bool> {
    let text = fs::read_to_string(dir.join(SIGNATURE)).ok()?;
    let mut fields = text.split_ascii_whitespace();
    let pid: u32 = fields.next()?.parse().ok()?;
    let start: u64 = fields.next()?.parse().ok()?;
    let space: u64 = fields.next()?.parse().ok()?;
    let is_comparable = space != 0 && space == namespace();
    is_comparable.then(|| alive::start_time(pid) != Some(start))
}

/// Whether a process has inherited the job: it may outlive its launcher, and its children still look for the ledger and
/// may have been given a library in there.
fn is_in_use(dir: &Path) -> bool {
    let mut setting = JOB_ENV.as_bytes().to_vec();
    setting.push(b'=');
    setting.extend(dir.as_os_str().as_bytes());
    let Ok(processes) = fs::read_dir("/proc") else {
        return true;
    };
    processes.flatten().any(|process| {
        // Those of other users cannot be read, and cannot use our private directory either.
        let environment = fs::read(process.path().join("environ")).unwrap_or_default();
        environment
            .split(|byte| *byte == 0)
            .any(|line| line == setting)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signed(text: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(SIGNATURE), text).unwrap();
        dir
    }

    #[test]
    fn only_what_is_surely_dead() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!is_abandoned(dir.path()), "unsigned");
        sign(dir.path()).unwrap();
        assert!(!is_abandoned(dir.path()), "we live");

        let (own, here) = (std::process::id(), namespace());
        let start = alive::start_time(own).unwrap();
        let reused = signed(&format!("{own} {} {here}\n", start - 1));
        assert!(is_abandoned(reused.path()), "the pid is another process's");
        for text in [
            format!("{own} {} {}\n", start - 1, here + 1),
            format!("{own} {}\n", start - 1),
            format!("{own}\n"),
            String::new(),
            "x y z".into(),
        ] {
            assert!(!is_abandoned(signed(&text).path()), "{text}");
        }
        assert!(!is_abandoned(Path::new("/no/such/dir")));
    }

    #[test]
    fn a_program_that_lives_on_keeps_its_job() {
        let dead = signed(&format!("{} 1 {}\n", std::process::id(), namespace()));
        let mut child = std::process::Command::new("sleep")
            .arg("30")
            .env(JOB_ENV, dead.path())
            .spawn()
            .unwrap();
        // A moment after it has begun to run, the system shows its environment.
        let seen = || {
            std::thread::sleep(std::time::Duration::from_millis(10));
            !is_abandoned(dead.path())
        };
        assert!((0..500).any(|_| seen()));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(is_abandoned(dead.path()));
    }
}
