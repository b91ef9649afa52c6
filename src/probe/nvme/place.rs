//! What a directory lies on: file system, device, free space.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::sys::stat::{major, minor};
use nix::sys::statvfs::statvfs;

use super::disk::Disk;

/// A directory, looked at from outside.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Place {
    /// Type of the file system, as in `/proc/self/mountinfo`.
    pub file_system: String,
    /// What is mounted.
    pub source: String,
    /// Bytes that we may fill.
    pub free: u64,
    /// What it lies on, if that is a block device of this machine.
    pub disk: Option<Disk>,
}

/// What kind of file system it is, for those that do not lie on a disk of this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Local,
    Network,
    Memory,
    Overlay,
}

/// By the type's name.
fn kind(file_system: &str) -> Kind {
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
        "tmpfs" | "ramfs" | "hugetlbfs" => Kind::Memory,
        "overlay" | "aufs" | "fuse-overlayfs" | "fuse.fuse-overlayfs" => Kind::Overlay,
        name if network.contains(&name) || name.starts_with("fuse.") => Kind::Network,
        _ => Kind::Local,
    }
}

/// What is wrong with spilling to such a file system.
fn warning(file_system: &str) -> Option<String> {
    Some(match kind(file_system) {
        Kind::Local => return None,
        Kind::Network => format!(
            "{file_system} is (or may be) a network or user-space file system: a lost connection would stop the program"
        ),
        Kind::Memory => {
            format!("{file_system} is host RAM, not a disk: spilling there gains nothing")
        }
        Kind::Overlay => format!(
            "{file_system} is a container's layer: take a directory that is mounted from a disk"
        ),
    })
}

impl Place {
    /// Looks.
    ///
    /// # Errors
    /// When the directory cannot be looked at.
    pub fn look(dir: &Path) -> anyhow::Result<Place> {
        let metadata = fs::metadata(dir)?;
        let space = statvfs(dir)?;
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let full = fs::canonicalize(dir)?;
        let (file_system, source) = mount(&mounts, &full).unwrap_or_default();
        // File systems over several devices have numbers of their own; their source may be a device all the same.
        let find = |device| Disk::find(Path::new("/sys"), (major(device), minor(device)));
        let disk = find(metadata.dev()).or_else(|| {
            let device = fs::metadata(&source).ok();
            find(device.filter(|_| source.starts_with("/dev/"))?.rdev())
        });
        Ok(Place {
            file_system,
            source,
            free: space.blocks_available() as u64 * space.fragment_size() as u64,
            disk,
        })
    }
}

impl Place {
    /// File system and source in one.
    pub fn mounted(&self) -> String {
        format!("{} on {}", self.file_system, self.source)
    }

    /// What is wrong with spilling there, whatever its speed.
    pub fn warnings(&self) -> Vec<String> {
        let of_disk = self.disk.iter().flat_map(Disk::warnings);
        warning(&self.file_system)
            .into_iter()
            .chain(of_disk)
            .collect()
    }
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
            assert_eq!(warning(name).is_none(), expected == Kind::Local, "{name}");
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

    #[test]
    fn here() {
        let place = Place::look(Path::new("/")).unwrap();
        assert!(!place.file_system.is_empty() && place.free > 0, "{place:?}");
        assert!(Place::look(Path::new("/no/such/directory")).is_err());
    }
}
