//! The file, and how it comes into a process.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::ptr::NonNull;
use std::sync::atomic::Ordering::SeqCst;

use super::{Ledger, MAGIC, Settings};

/// A ledger mapped into this process, for the process's life.
pub struct Mapped(NonNull<Ledger>);

// SAFETY: the ledger consists of atomics only, and the mapping is never undone.
unsafe impl Send for Mapped {}
// SAFETY: as above.
unsafe impl Sync for Mapped {}

impl std::ops::Deref for Mapped {
    type Target = Ledger;
    fn deref(&self) -> &Ledger {
        // SAFETY: the mapping is of the ledger's size, page-aligned, initialised by the kernel to zero or by the launcher,
        // and lives as long as the process.
        unsafe { self.0.as_ref() }
    }
}

impl Mapped {
    /// Creates the file (it must not exist) with these settings and maps it.
    pub fn create(path: &Path, settings: Settings) -> io::Result<Mapped> {
        use std::os::unix::fs::OpenOptionsExt;
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)?;
        file.set_len(size_of::<Ledger>() as u64)?;
        let map = Self::map(&file)?;
        map.begin(settings);
        map.size.store(size_of::<Ledger>() as u64, SeqCst);
        map.magic.store(MAGIC, SeqCst);
        Ok(map)
    }

    /// Maps an existing ledger.
    ///
    /// # Errors
    /// `InvalidData` when the file is not a ledger of this version and size.
    pub fn open(path: &Path) -> io::Result<Mapped> {
        let file = File::options().read(true).write(true).open(path)?;
        let wrong = || io::Error::new(io::ErrorKind::InvalidData, "not a ledger of this version");
        if file.metadata()?.len() != size_of::<Ledger>() as u64 {
            return Err(wrong());
        }
        let map = Self::map(&file)?;
        if map.magic.load(SeqCst) != MAGIC || map.size.load(SeqCst) != size_of::<Ledger>() as u64 {
            return Err(wrong());
        }
        Ok(map)
    }

    fn map(file: &File) -> io::Result<Mapped> {
        // SAFETY: a fresh shared mapping of a file that has at least this length.
        let at = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                size_of::<Ledger>(),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Mapped(
            NonNull::new(at.cast()).expect("mmap gave address 0"),
        ))
    }
}
