//! The job: a private directory with the ledger and the control socket, for as long as the program runs.

mod sweep;

use std::fs::{self, DirBuilder};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::Context;
use greenboost_wire::ledger::{Mapped, Settings};
use greenboost_wire::record::{self, Record};
use greenboost_wire::{CONTROL_SOCKET, JOB_ENV, LEDGER_FILE};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, Backlog, MsgFlags, SockFlag, SockType, UnixAddr, accept4, bind, connect, listen,
    recv, socket,
};
use nix::unistd::Uid;

/// Records that are read from one connection before the others have their turn.
const TURN: usize = 64;

/// A job of this launcher. Dropping it removes its directory.
pub struct Job {
    dir: PathBuf,
    /// Limits, and who holds what.
    pub ledger: Mapped,
    control: OwnedFd,
    connections: Vec<OwnedFd>,
    /// Out of descriptors: until one is free, waiting for new connections would only spin.
    is_full: bool,
    /// Datagrams that were not understood: a shim of another version.
    pub strange: u64,
    /// Whether a process hung up since this was last cleared: it may have ended.
    pub hung_up: bool,
}

impl Job {
    /// Creates the directory, the ledger and the socket.
    pub fn create(settings: Settings) -> anyhow::Result<Job> {
        sweep::away();
        let dir = create_dir()?;
        // From here on an error must not leave the directory behind.
        let build = || -> anyhow::Result<Job> {
            // Unsigned, it is only never swept.
            let _ = sweep::sign(&dir);
            let ledger = Mapped::create(&dir.join(LEDGER_FILE), settings)
                .with_context(|| format!("cannot create the ledger in {}", dir.display()))?;
            let control = listen_in(&dir)
                .with_context(|| format!("cannot open a socket in {}", dir.display()))?;
            Ok(Job {
                dir: dir.clone(),
                ledger,
                control,
                connections: Vec::new(),
                is_full: false,
                strange: 0,
                hung_up: false,
            })
        };
        build().inspect_err(|_| {
            let _ = fs::remove_dir_all(&dir);
        })
    }

    /// Where it is.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Everything that may have something to read.
    pub fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let control = (!self.is_full).then_some(self.control.as_fd());
        control
            .into_iter()
            .chain(self.connections.iter().map(AsFd::as_fd))
    }

    /// Takes new connections and reads what has arrived, without waiting.
    pub fn read(&mut self) -> Vec<Record> {
        self.is_full = loop {
            let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
            match accept4(self.control.as_raw_fd(), flags) {
                // SAFETY: the kernel has just made this descriptor for us, and nobody else knows it.
                Ok(fd) => self.connections.push(unsafe { OwnedFd::from_raw_fd(fd) }),
                Err(Errno::EINTR | Errno::ECONNABORTED) => {}
                Err(error) => break error != Errno::EAGAIN,
            }
        };
        let mut records = Vec::new();
        let strange = &mut self.strange;
        let before = self.connections.len();
        self.connections
            .retain(|connection| read_one(connection, &mut records, strange));
        self.hung_up |= self.connections.len() < before;
        records
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        // A program that outlives the launcher has the ledger mapped; it loses nothing that it still needs.
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// Reads some datagrams; says whether the connection is still open.
fn read_one(connection: &OwnedFd, records: &mut Vec<Record>, strange: &mut u64) -> bool {
    for _ in 0..TURN {
        // One byte more than a record: a longer datagram must not pass for a record.
        let mut buffer = [0u8; record::SIZE + 1];
        match recv(connection.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
            Ok(0) => return false,
            Ok(length) => match Record::decode(&buffer[..length]) {
                Some(record) => records.push(record),
                None => *strange += 1,
            },
            Err(Errno::EAGAIN) => return true,
            Err(Errno::EINTR) => {}
            Err(_) => return false,
        }
    }
    true
}

/// How the names of job directories begin.
const PREFIX: &str = "greenboost-";

/// Where they may be, the best first.
fn bases() -> impl Iterator<Item = PathBuf> {
    std::env::var_os("XDG_RUNTIME_DIR")
        .map(PathBuf::from)
        .into_iter()
        .chain([PathBuf::from("/tmp"), std::env::temp_dir()])
        .filter(|base| base.is_absolute())
}

/// A directory of ours with a short path: the address of a Unix socket holds 108 bytes.
fn create_dir() -> anyhow::Result<PathBuf> {
    let mut problem = None;
    for base in bases() {
        let of_user = match std::env::var_os("XDG_RUNTIME_DIR") {
            Some(dir) if Path::new(&dir) == base => String::new(),
            _ => format!("{}-", Uid::effective()),
        };
        let name = format!("{PREFIX}{of_user}{}-{:08x}", std::process::id(), random());
        let dir = base.join(name);
        if UnixAddr::new(&dir.join(CONTROL_SOCKET)).is_err() {
            problem.get_or_insert(format!("{}: too long for a socket", dir.display()));
            continue;
        }
        match DirBuilder::new().mode(0o700).create(&dir) {
            Ok(()) => return Ok(dir),
            Err(e) => drop(problem.get_or_insert(format!("{}: {e}", dir.display()))),
        }
    }
    let problem = problem.unwrap_or_default();
    anyhow::bail!("cannot create a directory for the job ({problem})")
}

fn listen_in(dir: &Path) -> nix::Result<OwnedFd> {
    let socket = socket(
        AddressFamily::Unix,
        SockType::SeqPacket,
        SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
        None,
    )?;
    bind(
        socket.as_raw_fd(),
        &UnixAddr::new(&dir.join(CONTROL_SOCKET))?,
    )?;
    // A program may start many processes at once while the launcher has other things to do.
    listen(&socket, Backlog::MAXALLOWABLE)?;
    Ok(socket)
}

/// The job that this process is already in, if it is one of the same user whose launcher lives.
pub fn outer() -> Option<(PathBuf, Mapped)> {
    let dir = PathBuf::from(std::env::var_os(JOB_ENV)?);
    let meta = fs::symlink_metadata(&dir).ok()?;
    if !meta.is_dir() || meta.uid() != Uid::effective().as_raw() {
        return None;
    }
    dial(&dir).ok()?;
    let ledger = Mapped::open(&dir.join(LEDGER_FILE)).ok()?;
    Some((dir, ledger))
}

/// Reaches the launcher of a job: only a living one has its socket open.
fn dial(dir: &Path) -> nix::Result<OwnedFd> {
    let socket = socket(
        AddressFamily::Unix,
        SockType::SeqPacket,
        SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
        None,
    )?;
    connect(
        socket.as_raw_fd(),
        &UnixAddr::new(&dir.join(CONTROL_SOCKET))?,
    )?;
    Ok(socket)
}

/// A number that another launcher does not have; not a secret.
pub fn random() -> u32 {
    use std::hash::{BuildHasher, Hasher};
    let mut hasher = std::hash::RandomState::new().build_hasher();
    hasher.write_u32(std::process::id());
    hasher.finish() as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use greenboost_wire::ledger::{Report, VramLimit};
    use greenboost_wire::record::{Kind, NO_DEVICE};
    use nix::sys::socket::send;

    const SETTINGS: Settings = Settings {
        vram_limit: VramLimit::Free,
        ram_limit: 1,
        spill: true,
        report: Report::Extended,
    };

    fn hello(pid: u32) -> Record {
        Record {
            kind: Kind::Hello,
            pid,
            device: NO_DEVICE,
            time: 1,
            a: 13000,
            b: 1,
            c: 0,
            text: "prog".into(),
        }
    }

    #[test]
    fn records_arrive_and_the_directory_goes() {
        let mut job = Job::create(SETTINGS).unwrap();
        let dir = job.dir().to_path_buf();
        assert_eq!(fs::metadata(&dir).unwrap().mode() & 0o777, 0o700);
        let (one, two) = (dial(job.dir()).unwrap(), dial(job.dir()).unwrap());
        let say = |to: &OwnedFd, bytes: &[u8]| {
            send(to.as_raw_fd(), bytes, MsgFlags::MSG_NOSIGNAL).unwrap();
        };
        say(&one, &hello(1).encode());
        say(&two, &hello(2).encode());
        say(&two, b"nonsense");
        let mut longer = hello(3).encode().to_vec();
        longer.push(0);
        say(&two, &longer);
        drop(one);
        let mut pids: Vec<u32> = job.read().iter().map(|r| r.pid).collect();
        pids.sort();
        assert_eq!(pids, [1, 2]);
        assert_eq!(job.strange, 2);
        assert!(job.hung_up);
        assert_eq!(
            job.descriptors().count(),
            2,
            "the listener and one connection"
        );
        drop(job);
        assert!(!dir.exists());
    }
}
