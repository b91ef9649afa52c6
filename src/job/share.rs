//! Memory that the job's processes share: the descriptors that one leaves here and others take.
//!
//! Nothing here waits for anybody: each datagram is read, done and answered, or its connection is closed. What a process
//! left is forgotten when it withdraws it or ends, for a descriptor keeps the memory behind it.

use std::collections::HashMap;
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;

use greenboost_wire::alive;
use greenboost_wire::share::{BATCH, Facts, MOST, Message, Op, Piece, SIZE, Token};
use nix::errno::Errno;
use nix::libc;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::socket::sockopt::PeerCredentials;
use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType,
    UnixAddr, accept4, bind, getsockopt, listen, recvmsg, sendmsg, socket,
};

/// Connections at once; each lives for one request or a few.
const CONNECTIONS: usize = 64;

/// What the processes left, and who is talking.
pub struct Share {
    listener: OwnedFd,
    connections: Vec<Connection>,
    left: HashMap<Token, Allocation>,
    /// Those who left something: readable when they end.
    owners: HashMap<Owner, Option<OwnedFd>>,
}

/// A process, by pid and start time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Owner {
    pid: u32,
    start: u64,
}

impl Owner {
    fn of(connection: &OwnedFd) -> Option<Owner> {
        let pid = getsockopt(connection, PeerCredentials).ok()?.pid();
        let pid = u32::try_from(pid).ok().filter(|pid| *pid != 0)?;
        let start = alive::start_time(pid)?;
        Some(Owner { pid, start })
    }

    fn lives(self) -> bool {
        alive::start_time(self.pid) == Some(self.start)
    }

    /// A descriptor that becomes readable when the process ends; `None` on kernels before 5.3.
    fn descriptor(self) -> Option<OwnedFd> {
        // SAFETY: a plain system call; the descriptor that it makes is nobody else's.
        unsafe {
            let fd = libc::syscall(libc::SYS_pidfd_open, self.pid, 0);
            (fd >= 0).then(|| OwnedFd::from_raw_fd(fd as RawFd))
        }
    }
}

struct Allocation {
    owner: Owner,
    facts: Facts,
    pieces: Vec<(Piece, OwnedFd)>,
}

impl Allocation {
    fn is_whole(&self) -> bool {
        self.pieces.len() == self.facts.pieces as usize
    }
}

struct Connection {
    socket: OwnedFd,
    /// What is being left on it.
    offer: Option<(Token, Allocation)>,
}

/// A datagram with what came beside it.
struct Request {
    message: Message,
    descriptors: Vec<OwnedFd>,
}

impl Share {
    /// Listens in the job's directory.
    ///
    /// # Errors
    /// The system's, of making the socket.
    pub fn open(directory: &Path) -> nix::Result<Share> {
        Ok(Share {
            listener: listen_in(&directory.join(greenboost_wire::SHARE_SOCKET))?,
            connections: Vec::new(),
            left: HashMap::new(),
            owners: HashMap::new(),
        })
    }

    /// Everything that may have something to read.
    pub fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let listener = (self.connections.len() < CONNECTIONS).then(|| self.listener.as_fd());
        let connections = self.connections.iter().map(|c| c.socket.as_fd());
        let owners = self.owners.values().flatten().map(AsFd::as_fd);
        listener.into_iter().chain(connections).chain(owners)
    }

    /// Does all that can be done without waiting.
    pub fn attend(&mut self) {
        if !self.owners.is_empty() {
            self.forget_the_dead();
        }
        while self.connections.len() < CONNECTIONS {
            let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
            match accept4(self.listener.as_raw_fd(), flags) {
                Ok(fd) => self.connections.push(Connection {
                    // SAFETY: the kernel has just made this descriptor for us, and nobody else knows it.
                    socket: unsafe { OwnedFd::from_raw_fd(fd) },
                    offer: None,
                }),
                Err(Errno::EINTR | Errno::ECONNABORTED) => {}
                Err(_) => break,
            }
        }
        let mut connections = std::mem::take(&mut self.connections);
        connections.retain_mut(|connection| self.serve(connection));
        self.connections = connections;
    }

    fn forget_the_dead(&mut self) {
        self.owners.retain(|owner, _| owner.lives());
        let owners = &self.owners;
        self.left.retain(|_, a| owners.contains_key(&a.owner));
    }

    /// Answers what has arrived; says whether the connection is still open.
    fn serve(&mut self, connection: &mut Connection) -> bool {
        loop {
            let request = match receive(&connection.socket) {
                Ok(Some(request)) => request,
                Ok(None) => return false,
                Err(Errno::EAGAIN) => return true,
                Err(Errno::EINTR) => continue,
                Err(_) => return false,
            };
            let (answer, pieces) = self.answer(connection, request);
            if send(&connection.socket, &answer, &pieces).is_err() {
                return false;
            }
        }
    }

    /// The answer, and the descriptors that go with it.
    fn answer(
        &mut self,
        connection: &mut Connection,
        request: Request,
    ) -> (Message, Vec<BorrowedFd<'_>>) {
        let Request {
            message,
            descriptors,
        } = request;
        let token = message.token;
        let plain = |op| (Message::new(op, token), Vec::new());
        // Whoever is dead but not yet buried is not taken from.
        let owner_of = |a: &Allocation| Some(a.owner).filter(|owner| owner.lives());
        let left_by = self.left.get(&token).and_then(owner_of);
        match message.op {
            Op::Offer => {
                let pieces = message.facts.pieces as usize;
                let owner = Owner::of(&connection.socket);
                let Some(owner) = owner.filter(|_| (1..=MOST).contains(&pieces)) else {
                    return plain(Op::Refused);
                };
                let facts = message.facts;
                let pieces = Vec::new();
                connection.offer = Some((
                    token,
                    Allocation {
                        owner,
                        facts,
                        pieces,
                    },
                ));
                plain(Op::Done)
            }
            Op::Add => {
                let offer = connection.offer.take().filter(|(t, _)| *t == token);
                let Some((_, mut allocation)) = offer else {
                    return plain(Op::Refused);
                };
                // Fewer descriptors than pieces: this process has no more room for any.
                let room = allocation.facts.pieces as usize - allocation.pieces.len();
                if descriptors.len() != message.pieces.len() || descriptors.len() > room {
                    return plain(Op::Refused);
                }
                allocation
                    .pieces
                    .extend(message.pieces.into_iter().zip(descriptors));
                if allocation.is_whole() {
                    let owner = allocation.owner;
                    self.owners
                        .entry(owner)
                        .or_insert_with(|| owner.descriptor());
                    self.left.insert(token, allocation);
                } else {
                    connection.offer = Some((token, allocation));
                }
                plain(Op::Done)
            }
            Op::Ask => {
                let Some(allocation) = left_by.and_then(|_| self.left.get(&token)) else {
                    return plain(Op::Unknown);
                };
                let mut answer = Message::new(Op::Facts, token);
                answer.facts = allocation.facts;
                (answer, Vec::new())
            }
            Op::Take => {
                let Some(allocation) = left_by.and_then(|_| self.left.get(&token)) else {
                    return plain(Op::Unknown);
                };
                let first = (message.first as usize).min(allocation.pieces.len());
                let end = (first + BATCH).min(allocation.pieces.len());
                let mut answer = Message::new(Op::Pieces, token);
                answer.first = first as u32;
                let batch = &allocation.pieces[first..end];
                answer.pieces = batch.iter().map(|(piece, _)| *piece).collect();
                (answer, batch.iter().map(|(_, fd)| fd.as_fd()).collect())
            }
            Op::Withdraw => {
                let owner = Owner::of(&connection.socket);
                if owner.is_some() && left_by == owner {
                    self.left.remove(&token);
                }
                plain(Op::Done)
            }
            _ => plain(Op::Refused),
        }
    }
}

/// A socket of the job's, at this path.
///
/// # Errors
/// The system's.
pub fn listen_in(path: &Path) -> nix::Result<OwnedFd> {
    let socket = socket(
        AddressFamily::Unix,
        SockType::SeqPacket,
        SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
        None,
    )?;
    bind(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    // A program may start many processes at once while the launcher has other things to do.
    listen(&socket, Backlog::MAXALLOWABLE)?;
    Ok(socket)
}

/// Makes room for the descriptors of large allocations. Only for ourselves: the program has been started already.
pub fn raise_limit() {
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard.min(1 << 20), hard);
    }
}

/// One datagram; `None` when the other side has closed, or does not speak as we do.
fn receive(socket: &OwnedFd) -> nix::Result<Option<Request>> {
    // One byte more than a message: a longer datagram must not pass for one.
    let mut buffer = [0u8; SIZE + 1];
    let mut room = nix::cmsg_space!([RawFd; BATCH]);
    let mut parts = [IoSliceMut::new(&mut buffer)];
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
    let got = recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut room), flags)?;
    let mut descriptors = Vec::new();
    // What was cut off for want of room is missing in the count.
    for message in got.cmsgs().into_iter().flatten() {
        if let ControlMessageOwned::ScmRights(fds) = message {
            // SAFETY: the kernel has just made these descriptors for us.
            descriptors.extend(
                fds.into_iter()
                    .map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }),
            );
        }
    }
    let length = got.bytes;
    Ok(Message::decode(&buffer[..length]).map(|message| Request {
        message,
        descriptors,
    }))
}

fn send(socket: &OwnedFd, message: &Message, descriptors: &[BorrowedFd]) -> nix::Result<()> {
    let bytes = message.encode();
    let fds: Vec<RawFd> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&fds)];
    let beside = if fds.is_empty() { &[][..] } else { &rights };
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    let parts = [IoSlice::new(&bytes)];
    sendmsg::<()>(socket.as_raw_fd(), &parts, beside, flags, None).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::socket::{connect, recv};
    use std::fs::File;

    /// A directory of its own with a share in it, and a connection.
    struct Here {
        dir: std::path::PathBuf,
        share: Share,
    }

    impl Here {
        fn new(name: &str) -> Here {
            let dir = std::env::temp_dir()
                .join(format!("greenboost-share-{name}-{}", std::process::id()));
            let _ = std::fs::remove_dir_all(&dir);
            std::fs::create_dir(&dir).unwrap();
            let share = Share::open(&dir).unwrap();
            Here { dir, share }
        }

        fn dial(&self) -> OwnedFd {
            let fd = socket(
                AddressFamily::Unix,
                SockType::SeqPacket,
                SockFlag::SOCK_CLOEXEC,
                None,
            )
            .unwrap();
            let address = UnixAddr::new(&self.dir.join(greenboost_wire::SHARE_SOCKET)).unwrap();
            connect(fd.as_raw_fd(), &address).unwrap();
            fd
        }

        fn ask(&mut self, on: &OwnedFd, message: &Message, fds: &[BorrowedFd]) -> Request {
            send(on, message, fds).unwrap();
            self.share.attend();
            receive(on).unwrap().expect("an answer")
        }
    }

    impl Drop for Here {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.dir);
        }
    }

    const TOKEN: Token = [3; 16];

    fn offer(pieces: u32) -> Message {
        let mut offer = Message::new(Op::Offer, TOKEN);
        offer.facts = Facts {
            size: 5,
            pieces,
            ..Facts::default()
        };
        offer
    }

    fn add(count: usize) -> Message {
        let mut add = Message::new(Op::Add, TOKEN);
        add.pieces = vec![
            Piece {
                size: 2 << 20,
                on_host: true
            };
            count
        ];
        add
    }

    fn inode(file: impl AsFd) -> u64 {
        nix::sys::stat::fstat(file).unwrap().st_ino
    }

    #[test]
    fn left_and_taken() {
        let mut here = Here::new("taken");
        let files: Vec<File> = (0..BATCH + 1)
            .map(|i| File::create(here.dir.join(i.to_string())).unwrap())
            .collect();
        let fds: Vec<BorrowedFd> = files.iter().map(AsFd::as_fd).collect();
        let (giver, taker) = (here.dial(), here.dial());
        let op = |r: Request| r.message.op;
        assert_eq!(
            op(here.ask(&giver, &offer(fds.len() as u32), &[])),
            Op::Done
        );
        assert_eq!(op(here.ask(&giver, &add(BATCH), &fds[..BATCH])), Op::Done);
        let ask = Message::new(Op::Ask, TOKEN);
        assert_eq!(
            op(here.ask(&taker, &ask, &[])),
            Op::Unknown,
            "not whole yet"
        );
        assert_eq!(op(here.ask(&giver, &add(1), &fds[BATCH..])), Op::Done);
        drop(giver);
        let facts = here.ask(&taker, &ask, &[]).message;
        assert_eq!((facts.op, facts.facts.size), (Op::Facts, 5));
        let mut take = Message::new(Op::Take, TOKEN);
        let mut found = Vec::new();
        while found.len() < fds.len() {
            take.first = found.len() as u32;
            let got = here.ask(&taker, &take, &[]);
            assert_eq!(got.message.pieces.len(), got.descriptors.len());
            assert!(
                got.message
                    .pieces
                    .iter()
                    .all(|p| p.on_host && p.size == 2 << 20)
            );
            found.extend(got.descriptors.into_iter().map(inode));
        }
        assert_eq!(found, fds.iter().map(inode).collect::<Vec<_>>());
        let withdraw = Message::new(Op::Withdraw, TOKEN);
        assert_eq!(op(here.ask(&taker, &withdraw, &[])), Op::Done);
        assert_eq!(op(here.ask(&taker, &ask, &[])), Op::Unknown);
    }

    #[test]
    fn out_of_turn() {
        let mut here = Here::new("turn");
        let file = File::create(here.dir.join("x")).unwrap();
        let one = here.dial();
        let op = |r: Request| r.message.op;
        assert_eq!(op(here.ask(&one, &add(1), &[file.as_fd()])), Op::Refused);
        assert_eq!(op(here.ask(&one, &offer(0), &[])), Op::Refused);
        assert_eq!(op(here.ask(&one, &offer(1), &[])), Op::Done);
        assert_eq!(
            op(here.ask(&one, &add(2), &[file.as_fd(), file.as_fd()])),
            Op::Refused
        );
        assert_eq!(op(here.ask(&one, &offer(2), &[])), Op::Done);
        assert_eq!(
            op(here.ask(&one, &add(2), &[file.as_fd()])),
            Op::Refused,
            "one is missing"
        );
        // Another version of us is not answered at all.
        let two = here.dial();
        nix::sys::socket::send(two.as_raw_fd(), b"nonsense", MsgFlags::empty()).unwrap();
        here.share.attend();
        assert_eq!(
            recv(two.as_raw_fd(), &mut [0u8; 8], MsgFlags::empty()),
            Ok(0)
        );
    }

    #[test]
    fn what_the_dead_left_is_forgotten() {
        let mut here = Here::new("dead");
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .unwrap();
        let owner = Owner {
            pid: child.id(),
            start: alive::start_time(child.id()).unwrap(),
        };
        let file = File::create(here.dir.join("x")).unwrap();
        let piece = Piece {
            size: 2 << 20,
            on_host: false,
        };
        let allocation = Allocation {
            owner,
            facts: Facts::default(),
            pieces: vec![(piece, file.into())],
        };
        here.share.left.insert(TOKEN, allocation);
        here.share.owners.insert(owner, owner.descriptor());
        here.share.attend();
        assert_eq!(here.share.left.len(), 1);
        let before = here.share.descriptors().count();
        child.kill().unwrap();
        child.wait().unwrap();
        here.share.attend();
        assert!(here.share.left.is_empty());
        assert_eq!(here.share.descriptors().count(), before - 1);
    }
}
