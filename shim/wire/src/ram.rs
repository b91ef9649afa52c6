//! What the machine, or the container around us, says of its host memory.

use std::fs;
use std::path::{Path, PathBuf};

/// Host memory at the moment of the look, bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ram {
    /// `MemTotal`.
    pub total: u64,
    /// `MemAvailable`.
    pub available: u64,
    /// The tightest limit of the cgroups that we are in.
    pub cgroup_limit: Option<u64>,
    /// The least that is left under one of them; file cache that the kernel would drop counts as left.
    pub cgroup_room: Option<u64>,
}

/// A limit and how much of it is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Bound {
    limit: u64,
    room: u64,
}

impl Ram {
    /// Reads `/proc` and `/sys`: some tens of microseconds.
    pub fn now() -> Ram {
        Ram::under(Path::new("/"))
    }

    fn under(root: &Path) -> Ram {
        let meminfo = fs::read_to_string(root.join("proc/meminfo")).unwrap_or_default();
        let bounds = cgroup_bounds(root);
        Ram {
            total: meminfo_field(&meminfo, "MemTotal:").unwrap_or(0),
            available: meminfo_field(&meminfo, "MemAvailable:").unwrap_or(0),
            cgroup_limit: bounds.iter().map(|b| b.limit).min(),
            cgroup_room: bounds.iter().map(|b| b.room).min(),
        }
    }
}

fn meminfo_field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|l| l.strip_prefix(name))?;
    line.trim()
        .strip_suffix("kB")?
        .trim()
        .parse::<u64>()
        .ok()?
        .checked_mul(1024)
}

/// The memory limits of our cgroup and of all above it, in version 2 and in version 1.
fn cgroup_bounds(root: &Path) -> Vec<Bound> {
    let memberships = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let mut bounds = Vec::new();
    for line in memberships.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) =
            (fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        let files = if controllers.is_empty() {
            &V2
        } else if controllers.split(',').any(|c| c == "memory") {
            &V1
        } else {
            continue;
        };
        let top = root.join(files.mount);
        // Inside a container the path may be the host's, of which only the top is visible: walking up gets there.
        let mut here: PathBuf = top.join(path.trim_start_matches('/'));
        while here.starts_with(&top) {
            bounds.extend(files.bound(&here));
            if !here.pop() {
                break;
            }
        }
    }
    bounds
}

struct Files {
    mount: &'static str,
    limit: &'static str,
    usage: &'static str,
    /// File cache that the kernel drops before it refuses memory.
    reclaimable: &'static str,
}

const V2: Files = Files {
    mount: "sys/fs/cgroup",
    limit: "memory.max",
    usage: "memory.current",
    reclaimable: "inactive_file ",
};
const V1: Files = Files {
    mount: "sys/fs/cgroup/memory",
    limit: "memory.limit_in_bytes",
    usage: "memory.usage_in_bytes",
    reclaimable: "total_inactive_file ",
};

impl Files {
    fn bound(&self, group: &Path) -> Option<Bound> {
        let number = |name: &str| {
            fs::read_to_string(group.join(name))
                .ok()?
                .trim()
                .parse()
                .ok()
        };
        // "max" does not parse: no limit. Version 1 says "no limit" by a number near 2^63.
        let limit: u64 = number(self.limit).filter(|l| *l < 1 << 60)?;
        let usage: u64 = number(self.usage).unwrap_or(0);
        let stat = fs::read_to_string(group.join("memory.stat")).unwrap_or_default();
        let reclaimable = stat
            .lines()
            .find_map(|l| l.strip_prefix(self.reclaimable)?.trim().parse().ok())
            .unwrap_or(0);
        Some(Bound {
            limit,
            room: limit.saturating_sub(usage.saturating_sub(reclaimable)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A root directory with these files.
    fn root(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        dir
    }

    const MEMINFO: &str =
        "MemTotal:       16777216 kB\nMemFree: 1 kB\nMemAvailable:   8388608 kB\n";

    const GIB: u64 = 1 << 30;

    fn ram(limit: Option<u64>, room: Option<u64>) -> Ram {
        Ram {
            total: 16 * GIB,
            available: 8 * GIB,
            cgroup_limit: limit,
            cgroup_room: room,
        }
    }

    #[test]
    fn plain_machine() {
        let dir = root(&[("proc/meminfo", MEMINFO), ("proc/self/cgroup", "0::/\n")]);
        assert_eq!(Ram::under(dir.path()), ram(None, None));
    }

    #[test]
    fn version_2_parent_is_tighter() {
        let dir = root(&[
            ("proc/meminfo", MEMINFO),
            ("proc/self/cgroup", "0::/a/b\n"),
            ("sys/fs/cgroup/a/b/memory.max", "max\n"),
            ("sys/fs/cgroup/a/memory.max", "4294967296\n"),
            ("sys/fs/cgroup/a/memory.current", "2147483648\n"),
            (
                "sys/fs/cgroup/a/memory.stat",
                "anon 5\ninactive_file 1073741824\n",
            ),
        ]);
        let expected = ram(Some(4 * GIB), Some(3 * GIB));
        assert_eq!(Ram::under(dir.path()), expected);
    }

    #[test]
    fn version_1_in_a_container_sees_only_the_top() {
        let dir = root(&[
            ("proc/meminfo", MEMINFO),
            (
                "proc/self/cgroup",
                "5:cpu:/x\n4:memory:/docker/0123\n0::/\n",
            ),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "2147483648\n"),
            ("sys/fs/cgroup/memory/memory.usage_in_bytes", "3221225472\n"),
        ]);
        assert_eq!(Ram::under(dir.path()), ram(Some(2 * GIB), Some(0)));
    }

    #[test]
    fn version_1_without_a_limit() {
        let dir = root(&[
            ("proc/meminfo", MEMINFO),
            ("proc/self/cgroup", "4:memory:/\n"),
            (
                "sys/fs/cgroup/memory/memory.limit_in_bytes",
                "9223372036854771712\n",
            ),
        ]);
        assert_eq!(Ram::under(dir.path()), ram(None, None));
    }

    #[test]
    fn nonsense_is_nothing() {
        let dir = root(&[
            ("proc/meminfo", "MemTotal: many kB\n"),
            ("proc/self/cgroup", "x\n:\n"),
        ]);
        assert_eq!(Ram::under(dir.path()), Ram::default());
    }

    #[test]
    fn this_machine_has_memory() {
        let ram = Ram::now();
        assert!(ram.total > 0 && ram.available <= ram.total, "{ram:?}");
    }
}
