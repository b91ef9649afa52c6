//! What the launcher hears: rare events, as datagrams on the job's control socket. Numbers are in the ledger.
//!
//! Nothing here can harm the program: sends neither block nor raise `SIGPIPE`, a launcher that died loses the records,
//! and a descriptor that the program has closed or reused is never written to.

use std::os::fd::RawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::Ordering::SeqCst;

use greenboost_wire::record::{Kind, NO_DEVICE, Record};

use crate::process;

/// The descriptor is moved up here, out of the numbers that programs expect for their own files.
const LOWEST: RawFd = 400;

struct Channel {
    path: PathBuf,
    /// The socket and its identity; programs close and reuse descriptors that they do not know (PITFALLS 38).
    socket: Option<(RawFd, (u64, u64))>,
}

static CHANNEL: Mutex<Option<Channel>> = Mutex::new(None);

/// Remembers where the launcher listens, and connects.
pub fn connect(path: &Path) {
    let mut channel = Channel {
        path: path.into(),
        socket: None,
    };
    channel.reopen();
    *CHANNEL.lock().unwrap_or_else(|e| e.into_inner()) = Some(channel);
}

/// Sends one record about a device of the ledger, or about none.
pub fn say(kind: Kind, device: Option<usize>, [a, b, c]: [u64; 3], text: &str) {
    let record = Record {
        kind,
        pid: std::process::id(),
        device: device.map_or(NO_DEVICE, |d| d as u32),
        time: monotonic(),
        a,
        b,
        c,
        text: text.into(),
    };
    // Another thread that is just sending holds the lock for microseconds: no send blocks.
    let mut channel = CHANNEL.lock().unwrap_or_else(|e| e.into_inner());
    let sent = channel
        .as_mut()
        .is_some_and(|channel| channel.send(&record.encode()));
    if !sent && let Some(ledger) = process::ledger() {
        ledger.records_lost.fetch_add(1, SeqCst);
    }
}

/// `CLOCK_MONOTONIC`, nanoseconds.
pub fn monotonic() -> u64 {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: writes one timespec.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut now) };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

fn identity(fd: RawFd) -> Option<(u64, u64)> {
    // SAFETY: all-zero is a valid `stat`; `fstat` accepts any number.
    unsafe {
        let mut stat: libc::stat = std::mem::zeroed();
        (libc::fstat(fd, &mut stat) == 0).then_some((stat.st_dev, stat.st_ino))
    }
}

impl Channel {
    /// Whether it was sent: a full or dead peer loses the record.
    fn send(&mut self, datagram: &[u8]) -> bool {
        if self.socket.is_none_or(|(fd, id)| identity(fd) != Some(id)) {
            self.reopen();
        }
        let Some((fd, _)) = self.socket else {
            return false;
        };
        // SAFETY: reads `datagram.len()` bytes.
        let sent = unsafe {
            libc::send(
                fd,
                datagram.as_ptr().cast(),
                datagram.len(),
                libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT,
            )
        };
        usize::try_from(sent) == Ok(datagram.len())
    }

    fn reopen(&mut self) {
        self.socket = open(&self.path);
    }
}

fn open(path: &Path) -> Option<(RawFd, (u64, u64))> {
    let bytes = path.as_os_str().as_bytes();
    // SAFETY: all-zero is a valid address; the path is copied in with room for its NUL; descriptors are ours until
    // returned.
    unsafe {
        let mut address: libc::sockaddr_un = std::mem::zeroed();
        if bytes.len() >= address.sun_path.len() {
            return None;
        }
        address.sun_family = libc::AF_UNIX as libc::sa_family_t;
        for (to, from) in address.sun_path.iter_mut().zip(bytes) {
            *to = *from as libc::c_char;
        }
        let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        let low = libc::socket(libc::AF_UNIX, kind, 0);
        if low < 0 {
            return None;
        }
        let mut fd = libc::fcntl(low, libc::F_DUPFD_CLOEXEC, LOWEST);
        if fd < 0 {
            fd = libc::dup(low);
        }
        libc::close(low);
        let length = size_of::<libc::sockaddr_un>() as libc::socklen_t;
        if fd < 0 || libc::connect(fd, (&raw const address).cast(), length) != 0 {
            if fd >= 0 {
                libc::close(fd);
            }
            return None;
        }
        identity(fd).map(|id| (fd, id))
    }
}
