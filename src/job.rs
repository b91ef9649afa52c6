//! The job: a private directory with the ledger and the sockets, for as long as the program runs.

pub mod share;
mod sweep;

use std::fs::{self, DirBuilder};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::Context;
use greenboost_wire::ledger::{Mapped, Settings};
use greenboost_wire::record::{self, Record};
use greenboost_wire::{CONTROL_SOCKET, JOB_ENV, LEDGER_FILE};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, accept4, connect, recv, socket,
};
use nix::unistd::Uid;
use serde::{Deserialize, Serialize};

/// Records that are read from one connection before the others have their turn.
const TURN: usize = 64;

/// A job of this launcher. Dropping it removes its directory.
pub struct Job {
    dir: PathBuf,
    /// Limits, and who holds what.
    pub ledger: Mapped,
    control: OwnedFd,
    share: share::Share,
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
            let socket = || format!("cannot open a socket in {}", dir.display());
            let control = share::listen_in(&dir.join(CONTROL_SOCKET)).with_context(socket)?;
            let share = share::Share::open(&dir).with_context(socket)?;
            Ok(Job {
                dir: dir.clone(),
                ledger,
                control,
                share,
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

    /// Leaves word of what runs, for `greenboost ps` and `top`. Without it the job is only not listed.
    pub fn describe(&self, command: &[std::ffi::OsString], pid: i32) {
        let words = command.iter().map(|w| w.to_string_lossy().into_owned());
        let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let about = About {
            launcher: std::process::id(),
            pid: pid.cast_unsigned(),
            began: since_epoch.map_or(0.0, |t| t.as_secs_f64()),
            command: words.collect(),
        };
        let text = serde_json::to_string(&about).unwrap_or_default();
        let _ = fs::write(self.dir.join(ABOUT), text);
    }

    /// Everything that may have something to read.
    pub fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let control = (!self.is_full).then_some(self.control.as_fd());
        control
            .into_iter()
            .chain(self.connections.iter().map(AsFd::as_fd))
            .chain(self.share.descriptors())
    }

    /// Takes new connections and reads what has arrived, without waiting.
    pub fn read(&mut self) -> Vec<Record> {
        self.share.attend();
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

/// The file with what a job's launcher says of it.
const ABOUT: &str = "about";

/// What a job's launcher says of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct About {
    /// The launcher's process.
    pub launcher: u32,
    /// The program's.
    pub pid: u32,
    /// Seconds since 1970.
    pub began: f64,
    /// The program and its arguments.
    pub command: Vec<String>,
}

impl About {
    /// Reads it; `None` when the launcher is dead, or has not got so far.
    pub fn read(dir: &Path) -> Option<About> {
        let text = fs::read_to_string(dir.join(ABOUT)).ok()?;
        dial(dir).ok()?;
        serde_json::from_str(&text).ok()
    }
}

/// Directories of this user's jobs, dead ones among them.
pub fn directories() -> Vec<PathBuf> {
    let is_ours = |dir: &PathBuf| {
        fs::symlink_metadata(dir)
            .is_ok_and(|meta| meta.is_dir() && meta.uid() == Uid::effective().as_raw())
    };
    bases()
        .flat_map(|base| fs::read_dir(base).into_iter().flatten().flatten())
        .map(|entry| entry.path())
        .filter(|dir| name_of(dir).is_some() && is_ours(dir))
        .collect()
}

/// What a job with this directory is called: its launcher's pid and a number.
pub fn name_of(dir: &Path) -> Option<String> {
    let name = dir.file_name()?.to_str()?.strip_prefix(PREFIX)?;
    let of_user = format!("{}-", Uid::effective());
    // In a directory that is shared by all users it begins with the user's number.
    match name.matches('-').count() {
        1 => Some(name.to_string()),
        2 => name.strip_prefix(&of_user).map(str::to_string),
        _ => None,
    }
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
    use greenboost_wire::ledger::{Placement, Report, Staging, VramLimit};
    use greenboost_wire::record::{Kind, NO_DEVICE};
    use nix::sys::socket::send;

    const SETTINGS: Settings = Settings {
        vram_limit: VramLimit::Free,
        ram_limit: 1,
        spill: true,
        report: Report::Extended,
        placement: Placement::Auto,
        staging: Staging::Off,
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
            3,
            "two listeners and one connection"
        );
        drop(job);
        assert!(!dir.exists());
    }
}
