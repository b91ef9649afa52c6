//! What a directory lies on: file system, device, free space.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use greenboost_wire::filesystem::{self, Kind, kind};
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
        let (file_system, source) = filesystem::of(dir)?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_disks_of_this_machine_go_without_a_warning() {
        for name in ["ext4", "xfs", "nfs4", "fuse.sshfs", "tmpfs", "overlay"] {
            let is_local = kind(name) == Kind::Local;
            assert_eq!(warning(name).is_none(), is_local, "{name}");
        }
    }

    #[test]
    fn here() {
        let place = Place::look(Path::new("/")).unwrap();
        assert!(!place.file_system.is_empty() && place.free > 0, "{place:?}");
        assert!(Place::look(Path::new("/no/such/directory")).is_err());
    }
}
