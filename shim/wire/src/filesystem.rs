//! What a path lies on, by `/proc/thread-self/mountinfo`.

use std::fs;
use std::io;
use std::path::Path;

/// What a file system lies on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A disk of this machine, as far as one can tell.
    Local,
    /// Another machine, or a process of this one.
    Network,
    /// RAM.
    Memory,
    /// Another file system: a container's layer.
    Overlay,
}

/// By the type's name.
pub fn kind(file_system: &str) -> Kind {
    let network = [
        "nfs",
        "nfs4",
        "cifs",
        "smb3",
        "smbfs",
        "ceph",
        "9p",
        "virtiofs",
        "lustre",
        "gpfs",
        "beegfs",
        "afs",
        "ncpfs",
        "glusterfs",
        "orangefs",
        "pvfs2",
    ];
    match file_system {
        "tmpfs" | "ramfs" | "hugetlbfs" | "devtmpfs" => Kind::Memory,
        "overlay" | "aufs" | "fuse-overlayfs" | "fuse.fuse-overlayfs" => Kind::Overlay,
        name if network.contains(&name) || name.starts_with("fuse.") => Kind::Network,
        _ => Kind::Local,
    }
}

/// Type and source of the file system that a path lies on; both empty where `/proc` does not say.
///
/// # Errors
/// When the path is not there.
pub fn of(path: &Path) -> io::Result<(String, String)> {
    let full = fs::canonicalize(path)?;
    let mounts = fs::read_to_string("/proc/thread-self/mountinfo").unwrap_or_default();
    Ok(mount(&mounts, &full).unwrap_or_default())
}

/// Type and source of the mount that holds a path.
fn mount(mounts: &str, path: &Path) -> Option<(String, String)> {
    mounts
        .lines()
        .filter_map(|line| {
            let (before, after) = line.split_once(" - ")?;
            let point = unescape(before.split(' ').nth(4)?);
            let mut after = after.split(' ');
            let found = (after.next()?.to_string(), unescape(after.next()?));
            path.starts_with(&point).then_some((point.len(), found))
        })
        // Of two mounts at one point the later one counts.
        .max_by_key(|(length, _)| *length)
        .map(|(_, found)| found)
}

/// `\040` as the kernel writes blanks.
fn unescape(text: &str) -> String {
    text.replace("\\040", " ")
        .replace("\\011", "\t")
        .replace("\\134", "\\")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds() {
        for (name, expected) in [
            ("ext4", Kind::Local),
            ("xfs", Kind::Local),
            ("btrfs", Kind::Local),
            ("nfs4", Kind::Network),
            ("fuse.sshfs", Kind::Network),
            ("tmpfs", Kind::Memory),
            ("overlay", Kind::Overlay),
        ] {
            assert_eq!(kind(name), expected, "{name}");
        }
    }

    #[test]
    fn the_mount_around_a_path() {
        let mounts = "21 1 254:0 / / rw,relatime - ext4 /dev/vda rw\n\
            22 21 0:20 / /mnt/my\\040disk rw shared:1 - nfs4 server:/a\\040b rw\n\
            23 21 0:21 / /mnt rw - tmpfs tmpfs rw\n\
            24 21 0:22 / /mnt rw - xfs /dev/nvme0n1p1 rw\nrubbish";
        let of = |path: &str| mount(mounts, Path::new(path)).unwrap();
        assert_eq!(of("/home"), ("ext4".into(), "/dev/vda".into()));
        assert_eq!(of("/mnt/my disk/x"), ("nfs4".into(), "server:/a b".into()));
        assert_eq!(of("/mnt/other").0, "xfs");
        assert_eq!(of("/mntx").0, "ext4");
    }
}
