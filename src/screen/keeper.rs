//! The keeper of the pseudo-terminal: a small process between the launcher and the program.
//!
//! A terminal belongs to a session, and a program can be stopped from its keyboard only while its parent is in the same
//! session. So the launcher forks: the child leads a session of its own, with the pseudo-terminal as its terminal, starts
//! the program in that terminal's foreground, and tells the launcher what becomes of it. It does nothing else, and has no
//! thread, so that it can go on where the launcher was when it forked.
//!
//! When the launcher dies, the keeper puts the user's terminal back as it was, its screen too (`rescue`), and ends, as the
//! shell of a terminal that was closed would; the program hears of that by SIGHUP.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill, killpg, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, send, socketpair};
use nix::unistd::{ForkResult, Pid, fork, getpgrp, setpgid, setsid, tcgetpgrp, tcsetpgrp};

use super::rescue::Rescue;
use super::terminal::Terminal;
use crate::launch::{self, Launch};

nix::ioctl_write_int_bad!(take_terminal, libc::TIOCSCTTY);

/// What the keeper tells.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum News {
    /// The program runs, as this process.
    Started(Pid),
    /// It could not be started: an error number.
    Failed(i32),
    /// It was stopped by this signal.
    Stopped(i32),
    /// It has ended.
    Ended(ExitStatus),
    /// The keeper is gone, and nobody knows.
    Lost,
}

/// What the keeper is told.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Order {
    /// Send the program a signal.
    Signal(i32),
    /// Let the stopped program go on, in the foreground or in the background of its terminal.
    Continue { foreground: bool },
}

type Message = [u8; 8];

fn message(kind: i32, value: i32) -> Message {
    let mut bytes = [0; 8];
    bytes[..4].copy_from_slice(&kind.to_ne_bytes());
    bytes[4..].copy_from_slice(&value.to_ne_bytes());
    bytes
}

fn parts(bytes: &Message) -> (i32, i32) {
    let number = |at: usize| i32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap_or_default());
    (number(0), number(4))
}

/// The launcher's end.
pub struct Keeper {
    socket: OwnedFd,
    /// The keeper's process.
    pid: Pid,
}

impl Keeper {
    /// Forks the keeper, which starts the program with `pty` in place of every descriptor that is `terminal`.
    ///
    /// Must be called while this process has one thread.
    ///
    /// # Errors
    /// When no process or socket can be had. That the program cannot be started is told as [`News::Failed`].
    pub fn start(
        launch: &Launch,
        inherited: SigSet,
        terminal: &Terminal,
        rescue: &Rescue,
        pty: OwnedFd,
    ) -> io::Result<Keeper> {
        let (ours, theirs) = socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_CLOEXEC,
        )?;
        let replaced = terminal.inherited();
        // SAFETY: this process has one thread, so the child may go on in Rust; it never returns from `keep`.
        match unsafe { fork() }? {
            ForkResult::Child => {
                drop(ours);
                let tty = (terminal, rescue);
                keep(launch, inherited, tty, &pty, &replaced, theirs)
            }
            ForkResult::Parent { child } => Ok(Keeper {
                socket: ours,
                pid: child,
            }),
        }
    }

    /// Readable when there is news.
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// What has happened. Waits for it if `wait`.
    pub fn news(&self, wait: bool) -> Option<News> {
        let mut bytes = Message::default();
        let flags = if wait {
            MsgFlags::empty()
        } else {
            MsgFlags::MSG_DONTWAIT
        };
        loop {
            return match recv(self.socket.as_raw_fd(), &mut bytes, flags) {
                Ok(8) => Some(match parts(&bytes) {
                    (0, pid) => News::Started(Pid::from_raw(pid)),
                    (1, error) => News::Failed(error),
                    (2, signal) => News::Stopped(signal),
                    (_, status) => News::Ended(ExitStatus::from_raw(status)),
                }),
                Err(Errno::EINTR) => continue,
                Err(Errno::EAGAIN) => None,
                _ => Some(News::Lost),
            };
        }
    }

    /// Tells the keeper. A keeper that is gone is heard of as [`News::Lost`].
    pub fn order(&self, order: Order) {
        let bytes = match order {
            Order::Signal(number) => message(0, number),
            Order::Continue { foreground } => message(1, foreground.into()),
        };
        let _ = send(self.socket.as_raw_fd(), &bytes, MsgFlags::MSG_NOSIGNAL);
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        // It ends as soon as it has told of the end; were it to hang, nobody should wait for it.
        for _ in 0..100 {
            match nix::sys::wait::waitpid(self.pid, Some(nix::sys::wait::WaitPidFlag::WNOHANG)) {
                Ok(nix::sys::wait::WaitStatus::StillAlive) => {
                    std::thread::sleep(std::time::Duration::from_millis(1));
                }
                _ => return,
            }
        }
    }
}

fn end() -> ! {
    // SAFETY: ends the process without running what the launcher left to be run at its own exit.
    unsafe { libc::_exit(0) }
}

/// The keeper's whole life.
fn keep(
    launch: &Launch,
    inherited: SigSet,
    (terminal, rescue): (&Terminal, &Rescue),
    pty: &OwnedFd,
    replaced: &[i32],
    socket: OwnedFd,
) -> ! {
    let tell = |kind, value| {
        let _ = send(
            socket.as_raw_fd(),
            &message(kind, value),
            MsgFlags::MSG_NOSIGNAL,
        );
    };
    let fail = |error: Errno| -> ! {
        tell(1, error as i32);
        end()
    };
    let _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), None);
    let mine = [pty.as_raw_fd(), socket.as_raw_fd(), terminal.number()];
    close_all(&mine, true);
    // SAFETY: takes no pointer; the terminal is nobody's yet.
    let taken = setsid().and_then(|_| unsafe { take_terminal(pty.as_raw_fd(), 0) });
    let children = SigSet::from(Signal::SIGCHLD);
    let woken = SignalFd::with_flags(&children, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC);
    let woken = match taken.and(woken) {
        Ok(woken) => woken,
        Err(error) => fail(error),
    };

    let (slave, numbers) = (pty.as_raw_fd(), replaced.to_vec());
    let first = move || -> io::Result<()> {
        // A group in the background that sets the foreground would be stopped.
        sigprocmask(
            SigmaskHow::SIG_BLOCK,
            Some(&SigSet::from(Signal::SIGTTOU)),
            None,
        )?;
        setpgid(Pid::from_raw(0), Pid::from_raw(0))?;
        // SAFETY: the keeper's descriptor, open until the program's own start.
        tcsetpgrp(unsafe { BorrowedFd::borrow_raw(slave) }, getpgrp())?;
        for number in &numbers {
            // SAFETY: takes no pointer; the number is that of the terminal that the program would have inherited.
            Errno::result(unsafe { libc::dup2(slave, *number) })?;
        }
        Ok(())
    };
    let child = match launch.command(inherited, Some(Box::new(first))).spawn() {
        Ok(child) => child,
        Err(error) => fail(Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO))),
    };
    let pid = Pid::from_raw(child.id().cast_signed());
    tell(0, pid.as_raw());
    // What the program has, it has; held open here it would keep others waiting for its end.
    let mine = [mine[0], mine[1], mine[2], woken.as_raw_fd()];
    close_all(&mine, false);

    let mut foreground = pid;
    loop {
        let mut fds = [
            PollFd::new(woken.as_fd(), PollFlags::POLLIN),
            PollFd::new(socket.as_fd(), PollFlags::POLLIN),
        ];
        let _ = poll(&mut fds, PollTimeout::NONE);
        while let Ok(Some(_)) = woken.read_signal() {}
        while let Some(status) = launch::wait(pid) {
            if let Some(signal) = status.stopped_signal() {
                if let Ok(group) = tcgetpgrp(pty) {
                    foreground = if group == getpgrp() {
                        foreground
                    } else {
                        group
                    };
                }
                tell(2, signal);
            } else if !status.continued() {
                // What the program left running loses its terminal, but is not hung up on.
                let _ = tcsetpgrp(pty, getpgrp());
                tell(3, status.into_raw());
                end();
            }
        }
        let mut bytes = Message::default();
        match recv(socket.as_raw_fd(), &mut bytes, MsgFlags::MSG_DONTWAIT) {
            Ok(8) => match parts(&bytes) {
                (0, number) => {
                    // SAFETY: takes no pointer; the process is our child and has not been waited for.
                    unsafe { libc::kill(pid.as_raw(), number) };
                }
                (_, in_foreground) => {
                    let group = if in_foreground == 1 {
                        foreground
                    } else {
                        getpgrp()
                    };
                    let _ = tcsetpgrp(pty, group);
                    let _ = killpg(pid, Signal::SIGCONT).or_else(|_| kill(pid, Signal::SIGCONT));
                }
            },
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            _ => {
                if let Some(undoing) = rescue.read() {
                    terminal.rescue(&undoing);
                }
                for signal in [Signal::SIGHUP, Signal::SIGCONT] {
                    let _ = killpg(tcgetpgrp(pty).unwrap_or(pid), signal);
                }
                end()
            }
        }
    }
}

/// Closes what this process has open but these numbers: only what is not inherited, or everything; the standard ones go
/// to /dev/null then.
fn close_all(kept: &[i32], only_own: bool) {
    let numbers = std::fs::read_dir("/proc/self/fd").into_iter().flatten();
    let numbers: Vec<i32> = numbers
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    for number in numbers.into_iter().filter(|n| *n > 2 && !kept.contains(n)) {
        // SAFETY: numbers only; whoever owned one of them in the launcher does not run here.
        unsafe {
            if !only_own || libc::fcntl(number, libc::F_GETFD) & libc::FD_CLOEXEC != 0 {
                libc::close(number);
            }
        }
    }
    if only_own {
        return;
    }
    // SAFETY: a constant path, and numbers.
    unsafe {
        let null = libc::open(c"/dev/null".as_ptr(), libc::O_RDWR | libc::O_CLOEXEC);
        for number in 0..3 {
            libc::dup2(null, number);
        }
        if null > 2 {
            libc::close(null);
        }
    }
}
