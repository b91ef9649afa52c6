//! Memory shared between the job's processes: leaving descriptors with the launcher, and taking what others left.
//!
//! Nothing is kept: a connection lasts for one request, descriptors are closed as soon as they are passed on. So a program
//! that closes what it does not know harms nothing, and nothing reaches the child of a fork. Every wait is bounded; a
//! launcher that is gone or does not answer is a [`Failure`]. No lock is held here, and none by callers.

use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, Instant};

use greenboost_wire::SHARE_SOCKET;
use greenboost_wire::share::{BATCH, Facts, MOST, Message, Op, Piece, SIZE, Token};

use crate::process;

/// How long one request may take altogether. A launcher answers in microseconds; one that is stopped never does.
const PATIENCE: Duration = Duration::from_secs(5);

/// Why memory could not be left or taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The launcher is gone, or does not answer.
    Launcher,
    /// The launcher has no descriptors left, or is of another version.
    Refused,
    /// Nothing was left under this token: its owner has freed it or is dead.
    Unknown,
    /// What the caller does with the pieces failed, with the driver's error.
    Driver(crate::driver::Error),
}

impl Failure {
    /// In words, for the user.
    pub fn reason(self) -> &'static str {
        match self {
            Failure::Launcher => "the launcher does not answer",
            Failure::Refused => "the launcher has no descriptors left",
            Failure::Unknown => "its owner has freed it or has ended",
            Failure::Driver(_) => "the driver refused",
        }
    }
}

/// A token that nobody has had and nobody can guess.
pub fn new_token() -> Option<Token> {
    let mut token = Token::default();
    // SAFETY: writes at most the given length.
    let got = unsafe { libc::getrandom(token.as_mut_ptr().cast(), token.len(), 0) };
    (got == token.len() as isize).then_some(token)
}

/// Leaves an allocation with the launcher. `descriptor` makes one for a piece; all are closed again here.
pub fn leave(
    token: Token,
    mut facts: Facts,
    pieces: &[Piece],
    mut descriptor: impl FnMut(usize) -> Result<OwnedFd, Failure>,
) -> Result<(), Failure> {
    if pieces.is_empty() || pieces.len() > MOST {
        return Err(Failure::Refused);
    }
    let mut launcher = Launcher::dial()?;
    facts.pieces = pieces.len() as u32;
    let mut offer = Message::new(Op::Offer, token);
    offer.facts = facts;
    launcher.expect(Op::Done, &offer, &[])?;
    for (i, batch) in pieces.chunks(BATCH).enumerate() {
        let mut add = Message::new(Op::Add, token);
        add.pieces = batch.to_vec();
        let descriptors = (0..batch.len())
            .map(|at| descriptor(i * BATCH + at))
            .collect::<Result<Vec<_>, _>>()?;
        launcher.expect(Op::Done, &add, &descriptors)?;
    }
    Ok(())
}

/// What was left under this token.
pub fn ask(token: Token) -> Result<Facts, Failure> {
    let (answer, _) = Launcher::dial()?.expect(Op::Facts, &Message::new(Op::Ask, token), &[])?;
    Ok(answer.facts)
}

/// Takes all pieces of it, in order; `each` gets the descriptors one by one.
pub fn take(
    token: Token,
    count: u32,
    mut each: impl FnMut(Piece, OwnedFd) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let mut launcher = Launcher::dial()?;
    let mut first = 0;
    while first < count {
        let mut take = Message::new(Op::Take, token);
        take.first = first;
        let (answer, descriptors) = launcher.expect(Op::Pieces, &take, &[])?;
        // Cut off: this process has no room for more descriptors.
        if answer.pieces.is_empty() || descriptors.len() != answer.pieces.len() {
            return Err(Failure::Refused);
        }
        first += descriptors.len() as u32;
        for (piece, descriptor) in answer.pieces.into_iter().zip(descriptors) {
            each(piece, descriptor)?;
        }
    }
    Ok(())
}

/// Has the launcher forget it: the descriptors there would keep the memory.
pub fn withdraw(token: Token) -> Result<(), Failure> {
    let message = Message::new(Op::Withdraw, token);
    Launcher::dial()?.expect(Op::Done, &message, &[]).map(drop)
}

/// A connection for one request.
struct Launcher {
    socket: OwnedFd,
    until: Instant,
}

impl Launcher {
    fn dial() -> Result<Launcher, Failure> {
        let directory = process::directory().ok_or(Failure::Launcher)?;
        let socket = connect(&directory.join(SHARE_SOCKET)).ok_or(Failure::Launcher)?;
        let until = Instant::now() + PATIENCE;
        Ok(Launcher { socket, until })
    }

    /// Sends a request and waits for its answer, which is to be this one.
    fn expect(
        &mut self,
        op: Op,
        message: &Message,
        descriptors: &[OwnedFd],
    ) -> Result<(Message, Vec<OwnedFd>), Failure> {
        self.send(message, descriptors)?;
        // The time is for each request and its answer: many make up a large allocation.
        self.until = Instant::now() + PATIENCE;
        let (answer, descriptors) = self.receive()?;
        match answer.op {
            found if found == op => Ok((answer, descriptors)),
            Op::Unknown => Err(Failure::Unknown),
            _ => Err(Failure::Refused),
        }
    }

    /// Waits until the socket is ready; whether it was in time.
    fn ready(&self, events: i16) -> bool {
        loop {
            let left = self.until.saturating_duration_since(Instant::now());
            let mut poll = libc::pollfd {
                fd: self.socket.as_raw_fd(),
                events,
                revents: 0,
            };
            // SAFETY: one entry, as is said.
            let ready = unsafe { libc::poll(&mut poll, 1, left.as_millis() as i32 + 1) };
            if ready != 0 || left.is_zero() {
                // Interrupted by a signal of the program's: asked again.
                if ready < 0 && errno() == libc::EINTR && !left.is_zero() {
                    continue;
                }
                return ready > 0;
            }
        }
    }

    fn send(&mut self, message: &Message, descriptors: &[OwnedFd]) -> Result<(), Failure> {
        let mut bytes = message.encode();
        let mut control = Control::new();
        loop {
            if !self.ready(libc::POLLOUT) {
                return Err(Failure::Launcher);
            }
            let mut part = part(&mut bytes);
            let header = control.header(&mut part, descriptors);
            // SAFETY: the header names `bytes` and the control buffer, which live through the call.
            let sent = unsafe {
                libc::sendmsg(
                    self.socket.as_raw_fd(),
                    &header,
                    libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT,
                )
            };
            match sent {
                n if n == SIZE as isize => return Ok(()),
                n if n < 0 && matches!(errno(), libc::EINTR | libc::EAGAIN) => {}
                // Too many descriptors are on their way already.
                n if n < 0 && errno() == libc::ETOOMANYREFS => return Err(Failure::Refused),
                _ => return Err(Failure::Launcher),
            }
        }
    }

    fn receive(&mut self) -> Result<(Message, Vec<OwnedFd>), Failure> {
        let mut bytes = [0u8; SIZE];
        let mut control = Control::new();
        loop {
            if !self.ready(libc::POLLIN) {
                return Err(Failure::Launcher);
            }
            let mut part = part(&mut bytes);
            let mut header = control.room(&mut part);
            // SAFETY: as in `send`; the kernel writes no further than is said.
            let got = unsafe {
                libc::recvmsg(
                    self.socket.as_raw_fd(),
                    &mut header,
                    libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC,
                )
            };
            if got < 0 && matches!(errno(), libc::EINTR | libc::EAGAIN) {
                continue;
            }
            if got <= 0 {
                return Err(Failure::Launcher);
            }
            // Taken first, so that they are closed whatever the message is.
            let descriptors = descriptors(&header);
            let message = Message::decode(&bytes[..got as usize]).ok_or(Failure::Refused)?;
            return Ok((message, descriptors));
        }
    }
}

fn errno() -> i32 {
    std::io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

fn part(bytes: &mut [u8; SIZE]) -> libc::iovec {
    libc::iovec {
        iov_base: bytes.as_mut_ptr().cast(),
        iov_len: SIZE,
    }
}

const FDS: u32 = (BATCH * size_of::<RawFd>()) as u32;

/// Room for what travels beside a message, aligned as its header must be.
#[repr(C)]
struct Control {
    _align: [libc::cmsghdr; 0],
    // SAFETY: pure arithmetic.
    bytes: [u8; unsafe { libc::CMSG_SPACE(FDS) } as usize],
}

impl Control {
    fn new() -> Control {
        Control {
            _align: [],
            bytes: [0; _],
        }
    }

    /// A header that names this room and a part.
    fn room(&mut self, part: &mut libc::iovec) -> libc::msghdr {
        // SAFETY: all-zero is a valid header.
        let mut header: libc::msghdr = unsafe { MaybeUninit::zeroed().assume_init() };
        header.msg_iov = part;
        header.msg_iovlen = 1;
        header.msg_control = self.bytes.as_mut_ptr().cast();
        header.msg_controllen = self.bytes.len() as _;
        header
    }

    /// The same, with these descriptors in it (at most [`BATCH`]).
    fn header(&mut self, part: &mut libc::iovec, descriptors: &[OwnedFd]) -> libc::msghdr {
        let mut header = self.room(part);
        let descriptors = &descriptors[..descriptors.len().min(BATCH)];
        if descriptors.is_empty() {
            header.msg_control = std::ptr::null_mut();
            header.msg_controllen = 0;
            return header;
        }
        let length = (descriptors.len() * size_of::<RawFd>()) as u32;
        // SAFETY: the room is aligned and long enough for one control message with `BATCH` descriptors.
        unsafe {
            header.msg_controllen = libc::CMSG_SPACE(length) as _;
            let control = libc::CMSG_FIRSTHDR(&header);
            (*control).cmsg_level = libc::SOL_SOCKET;
            (*control).cmsg_type = libc::SCM_RIGHTS;
            (*control).cmsg_len = libc::CMSG_LEN(length) as _;
            let data = libc::CMSG_DATA(control).cast::<RawFd>();
            for (i, descriptor) in descriptors.iter().enumerate() {
                data.add(i).write_unaligned(descriptor.as_raw_fd());
            }
        }
        header
    }
}

/// The descriptors beside a message that was received.
fn descriptors(header: &libc::msghdr) -> Vec<OwnedFd> {
    let mut found = Vec::new();
    // SAFETY: the kernel has filled the header; the descriptors in it are new and nobody else's.
    unsafe {
        let mut control = libc::CMSG_FIRSTHDR(header);
        while !control.is_null() {
            if ((*control).cmsg_level, (*control).cmsg_type) == (libc::SOL_SOCKET, libc::SCM_RIGHTS)
            {
                let start = libc::CMSG_LEN(0) as usize;
                let bytes = ((*control).cmsg_len as usize).saturating_sub(start);
                let data = libc::CMSG_DATA(control).cast::<RawFd>();
                for i in 0..bytes / size_of::<RawFd>() {
                    found.push(OwnedFd::from_raw_fd(data.add(i).read_unaligned()));
                }
            }
            control = libc::CMSG_NXTHDR(header, control);
        }
    }
    found
}

/// Never blocks: a launcher whose queue is full is as good as none.
fn connect(path: &Path) -> Option<OwnedFd> {
    let bytes = path.as_os_str().as_bytes();
    // SAFETY: all-zero is a valid address; the path is copied in with room for its NUL; the descriptor is ours.
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
        let fd = libc::socket(libc::AF_UNIX, kind, 0);
        if fd < 0 {
            return None;
        }
        let socket = OwnedFd::from_raw_fd(fd);
        let length = size_of::<libc::sockaddr_un>() as libc::socklen_t;
        (libc::connect(fd, (&raw const address).cast(), length) == 0).then_some(socket)
    }
}
