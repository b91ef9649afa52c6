//! The file: without a name from its birth, so that nothing is left however the program ends.
//!
//! It belongs to one thread, which keeps a table of descriptors of its own ([`super::table`]): the program can neither
//! close it nor take its number for a file of its own, and the child of a fork does not have it.

use std::collections::hash_map::RandomState;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::hash::{BuildHasher, Hasher};
use std::io;
use std::mem::ManuallyDrop;
use std::ops::Deref;
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use greenboost_wire::nvme::{LEAST, Place, Refusal, Room, Why, largest_file};

use crate::tier::chunk::GRAIN;

/// The file's descriptor is at least this: not one of the three that everybody writes to, and out of the numbers that
/// programs expect for their own where the table is shared after all.
const LOWEST: RawFd = 400;

/// The file, and how it grows.
#[derive(Debug)]
pub struct SpillFile {
    file: Handle,
    /// Bytes that are set aside.
    size: u64,
    limit: u64,
    /// Whether the page cache is out of the way.
    is_direct: bool,
    /// Whether the file system sets space aside (fallocate); where it does not, a full disk shows itself only when
    /// something is written.
    is_firm: bool,
}

/// Why the file cannot grow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shortage {
    /// The user's limit, bytes.
    Limit(u64),
    /// The process may not write larger files (`RLIMIT_FSIZE`), bytes.
    FileSize(u64),
    /// The disk has no more than this.
    Disk(Room),
    /// The system says so, by this `errno`.
    Failed(i32),
}

impl fmt::Display for Shortage {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Shortage::Limit(limit) => {
                write!(
                    f,
                    "the spill file has reached its limit of {} MiB",
                    limit >> 20
                )
            }
            Shortage::FileSize(limit) => write!(
                f,
                "files may only be {} MiB large here (ulimit -f)",
                limit >> 20
            ),
            Shortage::Disk(room) => write!(
                f,
                "the disk is full: {} MiB are free, of which {} MiB are left for others",
                room.free >> 20,
                room.margin >> 20
            ),
            Shortage::Failed(errno) => write!(
                f,
                "the spill file cannot grow ({})",
                io::Error::from_raw_os_error(*errno)
            ),
        }
    }
}

impl SpillFile {
    /// Makes it: empty, and never larger than `limit` bytes.
    ///
    /// # Errors
    /// Why the directory will not do.
    pub fn create(dir: &Path, limit: u64) -> Result<SpillFile, Refusal> {
        let place = Place::look(dir)?;
        SpillFile::make(dir, limit, place.room)
    }

    /// In a directory that has been looked at.
    pub(super) fn make(dir: &Path, limit: u64, room: Room) -> Result<SpillFile, Refusal> {
        let refuse = |why| Refusal {
            dir: dir.to_path_buf(),
            why,
        };
        let failed = |error: io::Error| {
            refuse(match error.raw_os_error().unwrap_or(libc::EIO) {
                libc::EROFS => Why::ReadOnly,
                libc::EACCES | libc::EPERM => Why::Forbidden,
                libc::ENOSPC | libc::EDQUOT => Why::Full(room),
                errno => Why::Failed(errno),
            })
        };
        let largest = largest_file();
        if largest < LEAST {
            return Err(refuse(Why::FileSize(largest)));
        }
        let file = nameless(dir).or_else(|_| unlinked(dir)).map_err(failed)?;
        let file = lift(file).and_then(Handle::of).map_err(failed)?;
        set_no_copies(&file);
        // Some file systems refuse O_DIRECT when asked; asked later, so that no file is left by an open that fails.
        let is_direct = set_direct(&file, true);
        Ok(SpillFile {
            file,
            size: 0,
            limit: limit / GRAIN * GRAIN,
            is_direct,
            is_firm: true,
        })
    }

    /// A second handle of the same file, for whoever reads and writes.
    ///
    /// # Errors
    /// When descriptors are out.
    pub fn handle(&self) -> io::Result<Handle> {
        Handle::of(lift(self.file.try_clone()?)?)
    }

    /// Bytes that it has.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Whether reads and writes go past the page cache.
    pub fn is_direct(&self) -> bool {
        self.is_direct
    }

    /// Whether what it has grown to is set aside on the disk.
    pub fn is_firm(&self) -> bool {
        self.is_firm
    }

    /// Whether the page cache holds some of the first `bytes`, O_DIRECT or not: some file systems take the flag and go
    /// through the cache all the same (ext4 that journals data, btrfs with its own checksums).
    pub fn is_cached(&self, bytes: usize) -> bool {
        let mut pages = vec![0u8; bytes.div_ceil(4096)];
        // SAFETY: a fresh mapping of a descriptor of ours, which nobody reads through and which goes again; a byte for
        // each page of it, of 4 KiB or more.
        unsafe {
            let (fd, null) = (self.file.as_raw_fd(), std::ptr::null_mut());
            let start = libc::mmap(null, bytes, libc::PROT_READ, libc::MAP_SHARED, fd, 0);
            if start == libc::MAP_FAILED {
                return false;
            }
            let code = libc::mincore(start, bytes, pages.as_mut_ptr());
            libc::munmap(start, bytes);
            code == 0 && pages.iter().any(|page| page & 1 != 0)
        }
    }

    /// As on a file system that cannot set room aside.
    #[cfg(test)]
    pub(super) fn forget_firmness(&mut self) {
        self.is_firm = false;
    }

    /// From now on through the page cache: the file system took O_DIRECT and then did not keep to it.
    pub fn give_up_direct(&mut self) {
        set_direct(&self.file, false);
        self.is_direct = false;
        // Nothing is read ahead: what nobody asked for is not dropped either.
        // SAFETY: a plain call on a descriptor of ours.
        unsafe { libc::posix_fadvise(self.file.as_raw_fd(), 0, 0, libc::POSIX_FADV_RANDOM) };
    }

    /// Grows by `step` bytes, or by what is possible, but at least by `least`. Gives its new size.
    ///
    /// # Errors
    /// When `least` is not possible.
    pub fn grow(&mut self, least: u64, step: u64) -> Result<u64, Shortage> {
        if self.file.fd().is_none() {
            return Err(Shortage::Failed(libc::EBADF));
        }
        let room = Room::around(self.file.as_raw_fd())
            .map_err(|e| Shortage::Failed(e.raw_os_error().unwrap_or(libc::EIO)))?;
        let largest = largest_file();
        // A file of holes takes its room only when it is written, and all that was promised of it.
        let promised = if self.is_firm {
            0
        } else {
            self.size - self.used()
        };
        let ceilings = [
            (self.limit, Shortage::Limit(self.limit)),
            (largest, Shortage::FileSize(largest)),
            (
                (self.size + room.usable()).saturating_sub(promised),
                Shortage::Disk(room),
            ),
        ];
        let mut by = step.max(least);
        for (ceiling, shortage) in ceilings {
            let left = ceiling.saturating_sub(self.size) / GRAIN * GRAIN;
            if left < least {
                return Err(shortage);
            }
            by = by.min(left);
        }
        loop {
            match self.set_aside(by) {
                Ok(()) => {
                    self.size += by;
                    return Ok(self.size);
                }
                Err(libc::ENOSPC | libc::EDQUOT) if by > least => {
                    by = (by / 2 / GRAIN * GRAIN).max(least);
                }
                Err(libc::ENOSPC | libc::EDQUOT) => return Err(Shortage::Disk(room)),
                Err(libc::EFBIG) => return Err(Shortage::FileSize(largest)),
                Err(errno) => return Err(Shortage::Failed(errno)),
            }
        }
    }

    /// By fallocate; or, where the file system cannot, as a hole. (Zeros would be written twice over, and say nothing on
    /// file systems that compress or copy on write: just those that cannot.)
    fn set_aside(&mut self, by: u64) -> Result<(), i32> {
        let fd = self.file.as_raw_fd();
        let errno = || {
            io::Error::last_os_error()
                .raw_os_error()
                .unwrap_or(libc::EIO)
        };
        while self.is_firm {
            // SAFETY: a plain call on a descriptor of ours.
            if unsafe { libc::fallocate(fd, 0, self.size as i64, by as i64) } == 0 {
                return Ok(());
            }
            match errno() {
                libc::EINTR => {}
                libc::EOPNOTSUPP | libc::ENOSYS => self.is_firm = false,
                errno => return Err(errno),
            }
        }
        // SAFETY: as above.
        match unsafe { libc::ftruncate(fd, (self.size + by) as i64) } {
            0 => Ok(()),
            _ => Err(errno()),
        }
    }

    /// Bytes that the disk has given to it.
    fn used(&self) -> u64 {
        use std::os::unix::fs::MetadataExt;
        let blocks = self.file.metadata().map_or(0, |m| m.blocks());
        (blocks * 512).min(self.size)
    }
}

/// The file, by a descriptor of which somebody else may dispose after all: where the table is the program's.
#[derive(Debug)]
pub struct Handle {
    file: ManuallyDrop<File>,
    identity: (u64, u64),
}

impl Handle {
    fn of(file: File) -> io::Result<Handle> {
        let identity = identity(file.as_raw_fd()).ok_or_else(io::Error::last_os_error)?;
        Ok(Handle {
            file: ManuallyDrop::new(file),
            identity,
        })
    }

    /// Its descriptor; `None`: somebody has closed it, and it may be another file's now.
    pub fn fd(&self) -> Option<RawFd> {
        let fd = self.file.as_raw_fd();
        (identity(fd) == Some(self.identity)).then_some(fd)
    }
}

impl Deref for Handle {
    type Target = File;

    fn deref(&self) -> &File {
        &self.file
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        if self.fd().is_some() {
            // SAFETY: not used after this.
            unsafe { ManuallyDrop::drop(&mut self.file) };
        }
    }
}

/// Device and number of what a descriptor stands for.
fn identity(fd: RawFd) -> Option<(u64, u64)> {
    // SAFETY: all-zero is a valid `stat`; `fstat` accepts any number.
    unsafe {
        let mut stat: libc::stat = std::mem::zeroed();
        (libc::fstat(fd, &mut stat) == 0).then_some((stat.st_dev, stat.st_ino))
    }
}

fn nameless(dir: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .mode(0o600)
        .custom_flags(libc::O_TMPFILE | libc::O_EXCL | libc::O_CLOEXEC)
        .open(dir)
}

/// For file systems that know no nameless files. Only SIGKILL can come in between: this thread takes no signals, and the
/// program cannot end it.
fn unlinked(dir: &Path) -> io::Result<File> {
    for _ in 0..16 {
        // The standard library's keys are random; there is nothing else here that is.
        let random = RandomState::new().build_hasher().finish();
        let path = dir.join(format!(".greenboost-spill-{random:016x}"));
        let made = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .custom_flags(libc::O_CLOEXEC)
            .open(&path);
        match made {
            Ok(file) => return std::fs::remove_file(&path).map(|()| file),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(e),
        }
    }
    Err(io::Error::from_raw_os_error(libc::EEXIST))
}

/// The same file under a higher number.
fn lift(file: File) -> io::Result<File> {
    // A low RLIMIT_NOFILE may leave nothing above.
    for lowest in [LOWEST, 3] {
        // SAFETY: a plain call on a descriptor of ours; what it gives is nobody else's.
        unsafe {
            let fd = libc::fcntl(file.as_raw_fd(), libc::F_DUPFD_CLOEXEC, lowest);
            if fd >= 0 {
                return Ok(File::from_raw_fd(fd));
            }
        }
    }
    Err(io::Error::last_os_error())
}

/// File systems that copy on write (btrfs) write in place then, past the page cache, and in the room that was set aside;
/// their own checksums are not needed here. Others refuse, which changes nothing.
fn set_no_copies(file: &File) {
    const FS_NOCOW_FL: libc::c_int = 0x0080_0000;
    let fd = file.as_raw_fd();
    let mut flags: libc::c_int = 0;
    // SAFETY: the call reads and writes one word, of the size that it has in fact (whatever its number says).
    unsafe {
        if libc::ioctl(fd, libc::FS_IOC_GETFLAGS, &mut flags) == 0 {
            flags |= FS_NOCOW_FL;
            libc::ioctl(fd, libc::FS_IOC_SETFLAGS, &flags);
        }
    }
}

fn set_direct(file: &File, on: bool) -> bool {
    // SAFETY: plain calls on a descriptor of ours.
    unsafe {
        let flags = libc::fcntl(file.as_raw_fd(), libc::F_GETFL);
        let flags = match on {
            true => flags | libc::O_DIRECT,
            false => flags & !libc::O_DIRECT,
        };
        libc::fcntl(file.as_raw_fd(), libc::F_SETFL, flags) == 0
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::super::tests::scratch;
    use super::*;

    #[test]
    fn no_name_and_nobody_elses_business() {
        let dir = scratch();
        for file in [nameless(dir.path()).unwrap(), unlinked(dir.path()).unwrap()] {
            let found = lift(file).unwrap();
            assert!(found.as_raw_fd() >= 3);
            let flags = |what| {
                // SAFETY: a plain call on a descriptor of ours.
                unsafe { libc::fcntl(found.as_raw_fd(), what) }
            };
            assert_eq!(flags(libc::F_GETFD) & libc::FD_CLOEXEC, libc::FD_CLOEXEC);
            let found = found.metadata().unwrap();
            assert_eq!((found.nlink(), found.mode() & 0o777), (0, 0o600));
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn it_grows_in_steps_up_to_its_limit() {
        let dir = scratch();
        let mut file = SpillFile::create(dir.path(), (100 << 20) + 5).unwrap();
        assert_eq!(file.grow(GRAIN, 64 << 20), Ok(64 << 20));
        assert_eq!(file.grow(20 << 20, 64 << 20), Ok(100 << 20));
        assert_eq!(file.grow(GRAIN, GRAIN), Err(Shortage::Limit(100 << 20)));
        assert!(file.is_firm());
        assert_eq!(file.used(), 100 << 20, "set aside");
    }

    /// As on a file system that cannot set space aside.
    #[test]
    fn holes_are_promised_once() {
        let dir = scratch();
        let mut file = SpillFile::create(dir.path(), u64::MAX).unwrap();
        file.forget_firmness();
        assert_eq!(file.grow(GRAIN, 32 << 20), Ok(32 << 20));
        assert_eq!(
            (file.used(), file.file.metadata().unwrap().len()),
            (0, 32 << 20)
        );
        // Half of what is free now is there once, not twice more.
        let room = Room::around(file.file.as_raw_fd()).unwrap();
        let most = room.usable() / GRAIN * GRAIN;
        let size = file.grow(GRAIN, u64::MAX / 2).unwrap();
        // Others use this disk too.
        assert!(size <= most + (1 << 30), "{size} of {most}");
        let Err(Shortage::Disk(_)) = file.grow(4 << 30, 4 << 30) else {
            panic!("more than there is");
        };
    }

    #[test]
    fn more_than_the_disk_has() {
        let dir = scratch();
        let mut file = SpillFile::create(dir.path(), u64::MAX).unwrap();
        let Err(shortage @ Shortage::Disk(room)) = file.grow(1 << 60, 1 << 60) else {
            panic!("an exbibyte");
        };
        assert!(room.free > room.margin && shortage.to_string().contains("left for others"));
        assert_eq!((file.size(), file.used()), (0, 0));
    }

    #[test]
    fn what_the_page_cache_holds() {
        use std::os::unix::fs::FileExt;
        let dir = scratch();
        let mut file = SpillFile::create(dir.path(), 64 << 20).unwrap();
        assert!(file.is_direct());
        file.grow(GRAIN, GRAIN).unwrap();
        assert!(!file.is_cached(1 << 20), "nothing was written");
        file.give_up_direct();
        file.file.write_all_at(&[1; 4096], 512 << 10).unwrap();
        assert!(file.is_cached(1 << 20));
    }

    #[test]
    fn another_file_under_its_number_is_left_alone() {
        let dir = scratch();
        let mut file = SpillFile::create(dir.path(), 64 << 20).unwrap();
        let handle = file.handle().unwrap();
        assert!(handle.fd().is_some());
        let other = std::fs::File::create(dir.path().join("other")).unwrap();
        for fd in [file.file.as_raw_fd(), handle.file.as_raw_fd()] {
            // SAFETY: both are descriptors of ours.
            unsafe { libc::dup2(other.as_raw_fd(), fd) };
        }
        assert_eq!(handle.fd(), None);
        assert_eq!(file.grow(GRAIN, GRAIN), Err(Shortage::Failed(libc::EBADF)));
        assert_eq!(other.metadata().unwrap().len(), 0);
    }
}
