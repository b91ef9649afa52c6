//! The file that is measured: without a name, so that nothing is left behind however we end.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::Context;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};

/// Makes a file of this size in the directory, and says whether the page cache is out of its way.
///
/// # Errors
/// When that cannot be, in a sentence.
pub fn create(dir: &Path, size: u64) -> anyhow::Result<(File, bool)> {
    let file = nameless(dir)
        .or_else(|_| unlinked(dir))
        .with_context(|| format!("{}: no file can be made there", dir.display()))?;
    // Some file systems refuse O_DIRECT when asked; asked later, so that no file is left by an open that fails.
    let flags = OFlag::from_bits_retain(fcntl(file.as_fd(), FcntlArg::F_GETFL)?);
    let is_direct = fcntl(file.as_fd(), FcntlArg::F_SETFL(flags | OFlag::O_DIRECT)).is_ok();
    // SAFETY: a plain call on a descriptor of ours.
    let code = unsafe { libc::posix_fallocate(file.as_raw_fd(), 0, size as libc::off_t) };
    match code {
        0 | libc::EOPNOTSUPP | libc::EINVAL => {}
        code => {
            return Err(io::Error::from_raw_os_error(code)).with_context(|| {
                format!(
                    "{}: no room for a file of {}",
                    dir.display(),
                    crate::size::human(size)
                )
            });
        }
    }
    Ok((file, is_direct))
}

fn nameless(dir: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .mode(0o600)
        .custom_flags(libc::O_TMPFILE | libc::O_EXCL)
        .open(dir)
}

/// For file systems that know no nameless files: made and unlinked, while nothing can end us in between but SIGKILL.
fn unlinked(dir: &Path) -> io::Result<File> {
    let name = format!(
        ".greenboost-probe-{}-{:08x}",
        std::process::id(),
        crate::job::random()
    );
    let path = dir.join(name);
    let mut before = SigSet::empty();
    let mut ends = SigSet::empty();
    for signal in [
        Signal::SIGINT,
        Signal::SIGTERM,
        Signal::SIGHUP,
        Signal::SIGQUIT,
    ] {
        ends.add(signal);
    }
    sigprocmask(SigmaskHow::SIG_BLOCK, Some(&ends), Some(&mut before))?;
    let made = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&path);
    let made = made.and_then(|file| std::fs::remove_file(&path).map(|()| file));
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&before), None)?;
    made
}

/// Which part of the file's first `size` bytes lies in the page cache; `None` where that cannot be asked.
pub fn cached(file: &File, size: u64) -> Option<f64> {
    let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok()??;
    let length = usize::try_from(size).ok().filter(|length| *length > 0)?;
    let mut pages = vec![0u8; length.div_ceil(usize::try_from(page).ok()?)];
    // SAFETY: a fresh mapping of a descriptor of ours, which nobody reads through and which goes again below; `pages` has
    // one byte for each of its pages.
    let code = unsafe {
        let (access, fd) = (libc::PROT_READ, file.as_raw_fd());
        let start = libc::mmap(
            std::ptr::null_mut(),
            length,
            access,
            libc::MAP_SHARED,
            fd,
            0,
        );
        if start == libc::MAP_FAILED {
            return None;
        }
        let code = libc::mincore(start, length, pages.as_mut_ptr());
        libc::munmap(start, length);
        code
    };
    let there = pages.iter().filter(|page| **page & 1 != 0).count();
    (code == 0).then(|| there as f64 / pages.len() as f64)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn no_name_and_all_of_its_size() {
        let dir = tempfile::tempdir().unwrap();
        let (file, _) = create(dir.path(), 3 << 20).unwrap();
        let metadata = file.metadata().unwrap();
        assert_eq!((metadata.len(), metadata.nlink()), (3 << 20, 0));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        let file = unlinked(dir.path()).unwrap();
        assert_eq!(file.metadata().unwrap().nlink(), 0);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        assert!(create(Path::new("/proc/self"), 1 << 20).is_err());
    }

    #[test]
    fn what_the_page_cache_holds() {
        use std::os::unix::fs::FileExt;
        let dir = tempfile::tempdir().unwrap();
        let (file, is_direct) = create(dir.path(), 4 << 20).unwrap();
        let local = crate::probe::nvme::place::Place::look(dir.path()).unwrap();
        // Where a file system honours it; one in RAM does not.
        if is_direct && local.disk.is_some() {
            let area = crate::probe::area::Area::new(4 << 20, true).unwrap();
            let bytes = area.words().as_ptr().cast::<u8>();
            // SAFETY: the area's own bytes, which nobody writes.
            let bytes = unsafe { std::slice::from_raw_parts(bytes, 4 << 20) };
            file.write_all_at(bytes, 0).unwrap();
            assert!(cached(&file, 4 << 20).unwrap() < 0.1);
        }
        let file = unlinked(dir.path()).unwrap();
        file.write_all_at(&[1; 4 << 20], 0).unwrap();
        assert_eq!(cached(&file, 4 << 20), Some(1.0));
        assert_eq!(cached(&file, 0), None);
    }
}
