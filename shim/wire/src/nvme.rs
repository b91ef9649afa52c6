//! The directory of the NVMe tier: how its name travels from the launcher to the shim, and what both ask of it.
//!
//! It travels in the environment, as other paths do: [`NVME_ENV`] is the limit in bytes, or nothing, then a colon, then
//! the directory, absolute.

use std::ffi::{CString, OsStr, OsString};
use std::fmt;
use std::fs;
use std::io;
use std::mem::MaybeUninit;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use crate::filesystem::{self, Kind};

/// Environment variable with what `--spill nvme:` asked for; set by `greenboost run`, inherited by children.
pub const NVME_ENV: &str = "GREENBOOST_NVME";

/// The smallest file that is of any use, bytes: the largest chunk.
pub const LEAST: u64 = 64 << 20;

/// What is left free for others at most, bytes; a small file system keeps a twentieth.
const MARGIN: u64 = 1 << 30;

/// What `--spill nvme:` asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nvme {
    /// Where the files go, one for each process.
    pub dir: PathBuf,
    /// Bytes that a file may hold; `None`: what the disk has.
    pub limit: Option<u64>,
}

impl Nvme {
    /// For the environment.
    pub fn encode(&self) -> OsString {
        let limit = self.limit.map(|n| n.to_string()).unwrap_or_default();
        let mut text = OsString::from(limit + ":");
        text.push(&self.dir);
        text
    }

    /// From the environment; `None` where that is not what a launcher writes.
    pub fn decode(text: &OsStr) -> Option<Nvme> {
        let bytes = text.as_bytes();
        let colon = bytes.iter().position(|b| *b == b':')?;
        let limit = match &bytes[..colon] {
            [] => None,
            digits => Some(std::str::from_utf8(digits).ok()?.parse().ok()?),
        };
        let dir = PathBuf::from(OsString::from_vec(bytes[colon + 1..].to_vec()));
        dir.is_absolute().then_some(Nvme { dir, limit })
    }
}

/// Room on a file system, bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// What we may fill.
    pub free: u64,
    /// What of that is left to others all the same.
    pub margin: u64,
}

impl Room {
    fn of(stat: &libc::statvfs) -> Room {
        let bytes = |blocks: libc::fsblkcnt_t| blocks.saturating_mul(stat.f_frsize);
        Room {
            free: bytes(stat.f_bavail),
            margin: MARGIN.min(bytes(stat.f_blocks) / 20),
        }
    }

    /// Asks the file system of an open file.
    ///
    /// # Errors
    /// The system's.
    pub fn around(fd: libc::c_int) -> io::Result<Room> {
        let mut stat = MaybeUninit::uninit();
        // SAFETY: writes one `statvfs`.
        match unsafe { libc::fstatvfs(fd, stat.as_mut_ptr()) } {
            // SAFETY: it was written.
            0 => Ok(Room::of(&unsafe { stat.assume_init() })),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// What may be filled, bytes.
    pub fn usable(&self) -> u64 {
        self.free.saturating_sub(self.margin)
    }
}

/// A directory in which a spill file can be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Type of its file system; empty where that is not known.
    pub file_system: String,
    /// Its room.
    pub room: Room,
}

impl Place {
    /// Looks whether a spill file can be made there. Makes nothing.
    ///
    /// # Errors
    /// Why it cannot.
    pub fn look(dir: &Path) -> Result<Place, Refusal> {
        let refuse = |why| Refusal {
            dir: dir.to_path_buf(),
            why,
        };
        let failed = |error: io::Error| refuse(Why::Failed(error.raw_os_error().unwrap_or(0)));
        match fs::metadata(dir) {
            Ok(found) if !found.is_dir() => return Err(refuse(Why::NoDirectory)),
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(refuse(Why::Missing)),
            Err(e) if e.kind() == io::ErrorKind::NotADirectory => {
                return Err(refuse(Why::NoDirectory));
            }
            Err(e) => return Err(failed(e)),
        }
        let (file_system, _) = filesystem::of(dir).map_err(failed)?;
        if filesystem::kind(&file_system) == Kind::Memory {
            return Err(refuse(Why::Memory(file_system)));
        }
        let path = CString::new(dir.as_os_str().as_bytes())
            .map_err(|_| refuse(Why::Failed(libc::EINVAL)))?;
        let mut stat = MaybeUninit::uninit();
        // SAFETY: a path that ends in NUL, and room for one `statvfs`.
        if unsafe { libc::statvfs(path.as_ptr(), stat.as_mut_ptr()) } != 0 {
            return Err(failed(io::Error::last_os_error()));
        }
        // SAFETY: it was written.
        let stat = unsafe { stat.assume_init() };
        if stat.f_flag & libc::ST_RDONLY != 0 {
            return Err(refuse(Why::ReadOnly));
        }
        let (here, access) = (libc::AT_FDCWD, libc::W_OK | libc::X_OK);
        // SAFETY: as above.
        let code = unsafe { libc::faccessat(here, path.as_ptr(), access, libc::AT_EACCESS) };
        if code != 0 {
            return Err(match io::Error::last_os_error() {
                e if e.raw_os_error() == Some(libc::EACCES) => refuse(Why::Forbidden),
                e => failed(e),
            });
        }
        let room = Room::of(&stat);
        if room.usable() < LEAST {
            return Err(refuse(Why::Full(room)));
        }
        Ok(Place { file_system, room })
    }
}

/// Why no spill file can be made in a directory; a sentence when displayed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The directory.
    pub dir: PathBuf,
    /// The cause.
    pub why: Why,
}

/// The cause of a [`Refusal`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Why {
    /// There is no such directory.
    Missing,
    /// It is something else.
    NoDirectory,
    /// Its file system, of this type, lies in RAM.
    Memory(String),
    /// Its file system is mounted read-only.
    ReadOnly,
    /// Its permissions.
    Forbidden,
    /// There is no room for even one large chunk.
    Full(Room),
    /// This process may only write files of so many bytes (`RLIMIT_FSIZE`).
    FileSize(u64),
    /// The disk did not answer in time.
    Silent,
    /// The system says so, by this `errno`.
    Failed(i32),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let dir = self.dir.display();
        let mib = |bytes: u64| bytes >> 20;
        match &self.why {
            Why::Missing => write!(
                f,
                "'{dir}' does not exist: make it first, or name another directory"
            ),
            Why::NoDirectory => write!(f, "'{dir}' is not a directory: name one"),
            Why::Memory(name) => write!(
                f,
                "'{dir}' is in host RAM ({name}), so spilling there gains nothing: name a directory on a disk"
            ),
            Why::ReadOnly => write!(
                f,
                "'{dir}' is on a file system that is mounted read-only: name another directory"
            ),
            Why::Forbidden => write!(
                f,
                "'{dir}' may not be written to by this user: name another directory"
            ),
            Why::Full(room) => write!(
                f,
                "'{dir}' has {} MiB free, of which {} MiB are left for others, and at least {} MiB are needed: \
                 make room, or name another directory",
                mib(room.free),
                mib(room.margin),
                mib(LEAST)
            ),
            Why::FileSize(limit) => write!(
                f,
                "files may only be {} MiB large here (ulimit -f), and at least {} MiB are needed: raise that limit",
                mib(*limit),
                mib(LEAST)
            ),
            Why::Silent => write!(
                f,
                "the disk under '{dir}' does not answer: name another directory"
            ),
            Why::Failed(errno) => write!(
                f,
                "no file can be made in '{dir}' ({})",
                io::Error::from_raw_os_error(*errno)
            ),
        }
    }
}

/// The largest file that this process may write now, bytes (`RLIMIT_FSIZE`).
pub fn largest_file() -> u64 {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: writes one `rlimit`.
    match unsafe { libc::getrlimit(libc::RLIMIT_FSIZE, &mut limit) } {
        0 => limit.rlim_cur,
        _ => u64::MAX,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn why(dir: &Path) -> Why {
        let refusal = Place::look(dir).unwrap_err();
        let said = refusal.to_string();
        assert!(
            said.contains(&*dir.display().to_string())
                && said.contains(": ")
                && !said.ends_with('.'),
            "{said}"
        );
        refusal.why
    }

    #[test]
    fn it_travels() {
        for (nvme, text) in [
            (("/scratch", None), ":/scratch"),
            (("/a:b,c d", Some(5 << 30)), "5368709120:/a:b,c d"),
        ] {
            let nvme = Nvme {
                dir: nvme.0.into(),
                limit: nvme.1,
            };
            assert_eq!(nvme.encode(), text);
            assert_eq!(Nvme::decode(text.as_ref()), Some(nvme));
        }
        let odd = OsString::from_vec(b":/\xff".to_vec());
        assert_eq!(Nvme::decode(&odd).unwrap().encode(), odd);
        for bad in ["", "/scratch", ":scratch", ":", "x:/scratch", "-1:/scratch"] {
            assert_eq!(Nvme::decode(bad.as_ref()), None, "{bad}");
        }
    }

    #[test]
    fn directories_that_will_not_do() {
        // Where the tests themselves lie is a disk; temporary files may be in RAM.
        let tests = std::env::current_exe().unwrap();
        let dir = tempfile::tempdir_in(tests.parent().unwrap()).unwrap();
        let place = Place::look(dir.path()).unwrap();
        assert!(place.room.usable() >= LEAST, "{place:?}");
        assert_eq!(why(&dir.path().join("no")), Why::Missing);
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        assert_eq!(why(&file), Why::NoDirectory);
        assert_eq!(why(&file.join("below")), Why::NoDirectory);
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o500)).unwrap();
        // SAFETY: a plain call.
        if unsafe { libc::geteuid() } == 0 {
            // Root may write everywhere, so long as it is there to be written.
            assert!(Place::look(dir.path()).is_ok());
        } else {
            assert_eq!(why(dir.path()), Why::Forbidden);
        }
        let shm = Path::new("/dev/shm");
        if filesystem::of(shm).is_ok_and(|(name, _)| name == "tmpfs") {
            assert_eq!(why(shm), Why::Memory("tmpfs".into()));
        }
        assert!(Place::look(Path::new("/proc/self")).is_err());
    }

    #[test]
    fn some_is_left_for_others() {
        // SAFETY: all-zero is a valid `statvfs`.
        let mut stat: libc::statvfs = unsafe { std::mem::zeroed() };
        (stat.f_frsize, stat.f_blocks, stat.f_bavail) = (4096, 1 << 28, 1 << 20);
        let room = Room::of(&stat);
        assert_eq!(
            (room.free, room.margin, room.usable()),
            (4 << 30, 1 << 30, 3 << 30)
        );
        (stat.f_blocks, stat.f_bavail) = (25600, 1000);
        let room = Room::of(&stat);
        assert_eq!((room.margin, room.usable()), (5 << 20, 0));
    }
}
