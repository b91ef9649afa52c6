//! A table of descriptors of a thread's own.
//!
//! Programs close descriptors that they do not know, and reuse their numbers (PITFALLS 38): what is written to such a
//! number then lands in the program's file. And the child of a fork inherits descriptors. Neither concerns a thread that
//! has its own table, nor the threads that it starts. `/proc/PID/task/TID/fd` shows it.

use std::fs;
use std::os::fd::RawFd;

/// `close_range` gives the caller a table of its own first (Linux 5.9).
const CLOSE_RANGE_UNSHARE: libc::c_uint = 2;

/// Gives the calling thread an empty table of its own, but for `/dev/null` where stdin, stdout and stderr would be: some
/// library may write there. False: the kernel or a sandbox refuses, and the table is the program's.
pub fn own() -> bool {
    // SAFETY: with this flag only the calling thread's table changes, which holds nothing that this thread uses.
    let code = unsafe { libc::syscall(libc::SYS_close_range, 0, RawFd::MAX, CLOSE_RANGE_UNSHARE) };
    let is_own = code == 0 || unshared();
    if is_own {
        for _ in 0..3 {
            // SAFETY: a path that ends in NUL; the lowest free number is taken, and never closed.
            unsafe { libc::open(c"/dev/null".as_ptr(), libc::O_RDWR | libc::O_CLOEXEC) };
        }
    }
    is_own
}

/// For older kernels: a copy, of which everything is closed.
fn unshared() -> bool {
    // SAFETY: as above.
    if unsafe { libc::unshare(libc::CLONE_FILES) } != 0 {
        return false;
    }
    let numbers = |entry: std::io::Result<fs::DirEntry>| -> Option<RawFd> {
        entry.ok()?.file_name().to_str()?.parse().ok()
    };
    // What stays open here by a failure only keeps files open for longer.
    let open: Vec<RawFd> = fs::read_dir("/proc/thread-self/fd")
        .map(|dir| dir.filter_map(numbers).collect())
        .unwrap_or_default();
    for fd in open {
        // SAFETY: of this thread's own table; that of the directory, read above, is closed already.
        unsafe { libc::close(fd) };
    }
    true
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn what_happens_there_is_not_seen_here() {
        for way in [own as fn() -> bool, unshared] {
            let here = File::open("/dev/zero").unwrap();
            let fd = here.as_raw_fd();
            let there = std::thread::spawn(move || {
                // SAFETY: a plain call that takes any number.
                way().then(|| unsafe { libc::fcntl(fd.max(3), libc::F_GETFD) })
            });
            assert_eq!(there.join().unwrap(), Some(-1), "not inherited");
            assert!(here.metadata().is_ok(), "still open here");
        }
    }
}
