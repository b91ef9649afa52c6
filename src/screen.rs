//! The program on a pseudo-terminal, and the table below it.
//!
//! The table has the terminal's bottom lines; the program believes in a terminal without them. Its output passes as it
//! is, but for the few sequences that would reach below (`filter`), and scrolls in the part above, from where it goes
//! into the terminal's own scrollback. Keys pass unread. While the program shows its alternate screen there is no table
//! and it has all lines; before CUDA is used there is none either.
//!
//! Job control: `keeper`. When the program is stopped from the keyboard the terminal is put back as it was and we stop as
//! it did; in the background nothing is drawn and no key is read.
//!
//! At the end the terminal is as a shell would have it: with the settings that the program left, unless a signal ended
//! it. Should the launcher be killed, the keeper puts it back (`rescue`).

mod draw;
mod filter;
mod keeper;
mod rescue;
mod terminal;

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::termios::{Termios, tcgetattr};
use nix::unistd::Pid;

use self::filter::Filter;
use self::keeper::{Keeper, News, Order};
use self::rescue::Rescue;
pub use self::terminal::{Terminal, size as size_of_terminal};
use crate::launch::{Launch, Signals};
use crate::voice;

/// What may wait to be taken by the terminal before the program's output waits, and the same for keys; bytes.
const ENOUGH: usize = 256 << 10;
/// How long a terminal that takes nothing is waited for at the end.
const PATIENCE: Duration = Duration::from_secs(2);
/// Rows that the program keeps at least.
const PROGRAM_ROWS: u16 = 8;

/// A program on a pseudo-terminal of ours.
pub struct Screen {
    terminal: Terminal,
    rescue: Rescue,
    /// How the pseudo-terminal was set at first.
    settings: Termios,
    /// Our end of the pseudo-terminal; `None` when the user's terminal is gone.
    pty: Option<File>,
    keeper: Keeper,
    pid: Pid,
    signals: Signals,
    filter: Filter,
    to_terminal: Vec<u8>,
    to_program: Vec<u8>,
    size: (u16, u16),
    /// What the table shows, or will when it may; and what of it is on the screen.
    wanted: Vec<String>,
    drawn: Vec<String>,
    /// Rows that the table has.
    height: u16,
    /// Said, but not shown yet.
    said: String,
    in_foreground: bool,
    is_stopped: bool,
    had_alternate: bool,
}

impl Screen {
    /// Starts the program.
    ///
    /// # Errors
    /// What `execve` said, or that there is no pseudo-terminal to be had.
    pub fn start(launch: &Launch, signals: Signals, terminal: Terminal) -> io::Result<Screen> {
        let size = terminal.size();
        let pty = nix::pty::openpty(None, &terminal.before)?;
        for fd in [&pty.master, &pty.slave] {
            fcntl(fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
        }
        fcntl(
            &pty.master,
            FcntlArg::F_SETFL(OFlag::O_NONBLOCK | OFlag::O_RDWR),
        )?;
        terminal::set_size(pty.master.as_fd(), terminal.as_fd(), size)?;
        let settings = tcgetattr(&pty.master)?;
        let rescue = Rescue::new()?;
        // Their answer is an error then, which is the right one in the background.
        let mut mask = SigSet::empty();
        mask.add(Signal::SIGTTIN);
        mask.add(Signal::SIGTTOU);
        mask.thread_block()?;
        let keeper = Keeper::start(launch, signals.inherited(), &terminal, &rescue, pty.slave)?;
        let pid = match keeper.news(true) {
            Some(News::Started(pid)) => pid,
            Some(News::Failed(error)) => return Err(io::Error::from_raw_os_error(error)),
            _ => return Err(Errno::EIO.into()),
        };
        let mut screen = Screen {
            terminal,
            rescue,
            settings,
            pty: Some(File::from(pty.master)),
            keeper,
            pid,
            signals,
            filter: Filter::new(),
            to_terminal: Vec::new(),
            to_program: Vec::new(),
            size,
            wanted: Vec::new(),
            drawn: Vec::new(),
            height: 0,
            said: String::new(),
            in_foreground: true,
            is_stopped: false,
            had_alternate: false,
        };
        screen.take_terminal();
        voice::divert();
        Ok(screen)
    }

    /// The program's process.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// The terminal's columns.
    pub fn columns(&self) -> u16 {
        self.size.1
    }

    /// Rows that a table may have.
    pub fn room(&self) -> u16 {
        self.size
            .0
            .saturating_sub(PROGRAM_ROWS)
            .min(self.size.0 / 2)
    }

    /// What to wait for.
    pub fn descriptors(&self) -> Vec<PollFd<'_>> {
        let mut fds = vec![
            PollFd::new(self.signals.descriptor(), PollFlags::POLLIN),
            PollFd::new(self.keeper.descriptor(), PollFlags::POLLIN),
        ];
        if let Some(pty) = &self.pty {
            let mut events = PollFlags::empty();
            events.set(PollFlags::POLLIN, self.to_terminal.len() < ENOUGH);
            events.set(PollFlags::POLLOUT, !self.to_program.is_empty());
            fds.push(PollFd::new(pty.as_fd(), events));
            let mut events = PollFlags::empty();
            let takes_keys = self.in_foreground && self.to_program.len() < ENOUGH;
            events.set(PollFlags::POLLIN, takes_keys);
            events.set(PollFlags::POLLOUT, !self.to_terminal.is_empty());
            if !events.is_empty() {
                fds.push(PollFd::new(self.terminal.as_fd(), events));
            }
        }
        fds
    }

    /// Does what there is to do; returns the status when the program has ended.
    pub fn attend(&mut self) -> Option<ExitStatus> {
        while let Some(info) = self.signals.read() {
            match Signal::try_from(info.ssi_signo.cast_signed()) {
                Ok(Signal::SIGWINCH) => self.resize(),
                Ok(Signal::SIGCONT) => self.come_back(),
                Ok(Signal::SIGCHLD) | Err(_) => {}
                Ok(signal) => self.keeper.order(Order::Signal(signal as i32)),
            }
        }
        if !self.in_foreground && self.terminal.is_ours() {
            self.come_back();
        }
        self.relay_keys();
        self.relay_output();
        while let Some(news) = self.keeper.news(false) {
            match news {
                News::Started(_) | News::Failed(_) => {}
                News::Stopped(signal) => {
                    self.is_stopped = true;
                    // By another signal it was not from the keyboard: whoever stopped it will continue it.
                    if let Ok(s @ (Signal::SIGTSTP | Signal::SIGTTIN | Signal::SIGTTOU)) =
                        Signal::try_from(signal)
                    {
                        self.stop(s);
                    }
                }
                News::Ended(status) => {
                    self.finish(status);
                    return Some(status);
                }
                News::Lost => {
                    let status = ExitStatus::from_raw(i32::from(crate::OWN_ERROR) << 8);
                    self.finish(status);
                    return Some(status);
                }
            }
        }
        self.speak();
        self.draw();
        self.flush();
        None
    }

    /// Shows these lines as the table, each shorter than the terminal is wide; none: no table.
    pub fn show(&mut self, lines: Vec<String>) {
        self.wanted = lines;
        self.speak();
        self.draw();
        self.flush();
    }

    fn relay_keys(&mut self) {
        let Some(pty) = &mut self.pty else { return };
        let mut buffer = [0; 4096];
        let mut is_gone = false;
        while self.in_foreground && self.to_program.len() < ENOUGH {
            match self.terminal.read(&mut buffer) {
                Ok(0) => is_gone = true,
                Ok(n) => self.to_program.extend(&buffer[..n]),
                Err(e) if terminal::is_later(&e) => break,
                // In the background keys are not ours; otherwise the terminal has been closed.
                Err(_) if !self.terminal.is_ours() && self.terminal.is_open() => {
                    self.in_foreground = false;
                    self.rescue.set_charge(false);
                }
                Err(_) => is_gone = true,
            }
            if is_gone {
                break;
            }
        }
        while !self.to_program.is_empty() {
            match pty.write(&self.to_program) {
                Ok(n) => drop(self.to_program.drain(..n)),
                Err(_) => break,
            }
        }
        if is_gone {
            // To the program, too, its terminal is closed.
            self.pty = None;
            self.keeper.order(Order::Signal(libc::SIGHUP));
        }
    }

    fn relay_output(&mut self) {
        let mut buffer = [0; 16384];
        while self.to_terminal.len() < ENOUGH {
            let Some(pty) = &mut self.pty else { return };
            match pty.read(&mut buffer) {
                Ok(n @ 1..) => self.filter.pass(&buffer[..n], &mut self.to_terminal),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                // EIO: nobody has the other end open just now.
                _ => break,
            }
        }
        if self.filter.alternate != self.had_alternate {
            self.had_alternate = self.filter.alternate;
            self.resize_program();
        }
        if std::mem::take(&mut self.filter.wiped) {
            self.drawn.clear();
        }
    }

    /// Its keys and its screen are ours.
    fn take_terminal(&mut self) {
        self.rescue.set_charge(true);
        self.terminal.make_raw();
    }

    fn flush(&mut self) {
        // Whatever of it gets there, what is left word of undoes that: first more, in the end what is needed.
        let undoing = self.filter.undoing();
        if undoing.len() > self.rescue.length() {
            self.rescue.leave(&undoing);
        }
        self.flush_to_terminal();
        if self.to_terminal.is_empty() {
            self.rescue.leave(&undoing);
        }
    }

    fn flush_to_terminal(&mut self) {
        while !self.to_terminal.is_empty() {
            match self.terminal.write(&self.to_terminal) {
                Ok(n @ 1..) => drop(self.to_terminal.drain(..n)),
                Err(e) if terminal::is_later(&e) => return,
                _ => self.to_terminal.clear(),
            }
        }
    }

    fn flush_all(&mut self) {
        let until = Instant::now() + PATIENCE;
        loop {
            self.flush();
            let left = until.saturating_duration_since(Instant::now());
            if self.to_terminal.is_empty() || left.is_zero() {
                return;
            }
            let mut fds = [PollFd::new(self.terminal.as_fd(), PollFlags::POLLOUT)];
            let _ = poll(
                &mut fds,
                PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO),
            );
        }
    }

    fn put(&mut self, text: &str) {
        self.to_terminal.extend(text.as_bytes());
    }

    /// Stops as the program did, with everything that the terminal would have stopped.
    fn stop(&mut self, signal: Signal) {
        self.relay_output();
        self.set_height(0);
        self.flush_all();
        self.terminal.restore();
        self.rescue.set_charge(false);
        let _ = kill(Pid::from_raw(0), signal);
        // Here it stops; or not, when nobody is there to continue it.
        let mut mask = SigSet::empty();
        mask.add(signal);
        let _ = mask.thread_unblock();
        let _ = mask.thread_block();
        while let Some(info) = self.signals.read() {
            let number = info.ssi_signo.cast_signed();
            match Signal::try_from(number) {
                Ok(Signal::SIGCONT | Signal::SIGTSTP | Signal::SIGCHLD | Signal::SIGWINCH)
                | Err(_) => {}
                Ok(signal) => self.keeper.order(Order::Signal(signal as i32)),
            }
        }
        self.come_back();
    }

    /// We have been continued, or given the terminal.
    fn come_back(&mut self) {
        let was = std::mem::replace(&mut self.in_foreground, self.terminal.is_ours());
        if self.in_foreground {
            self.take_terminal();
            self.resize();
            self.drawn.clear();
        } else {
            self.rescue.set_charge(false);
            self.set_height(0);
        }
        if self.is_stopped || was != self.in_foreground {
            self.is_stopped = false;
            self.keeper.order(Order::Continue {
                foreground: self.in_foreground,
            });
        }
    }

    /// The program has ended: shows what it still had to say and puts the terminal back.
    fn finish(&mut self, status: ExitStatus) {
        // A program that others of its job go on writing for is not waited for.
        for _ in 0..64 {
            self.relay_output();
            if self.to_terminal.len() < ENOUGH {
                break;
            }
            self.flush_all();
        }
        self.filter.flush(&mut self.to_terminal);
        let was_killed = status.signal().is_some() || status.code().is_some_and(|c| c > 128);
        if was_killed || self.filter.alternate {
            let undo = self.filter.undo();
            self.put(&undo);
        }
        self.set_height(0);
        if !self.filter.at_line_start {
            self.put("\r\n");
            self.filter.at_line_start = true;
        }
        self.speak();
        self.flush_all();
        // As a shell does: what a program sets and leaves so when it ends stays, what one leaves that was killed does not.
        let last = self.pty.as_ref().and_then(|pty| tcgetattr(pty).ok());
        match last.filter(|_| status.code().is_some()) {
            Some(last) => self.terminal.restore_with(&self.settings, &last),
            None => self.terminal.restore(),
        }
        self.rescue.set_charge(false);
        voice::undivert();
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        self.terminal.restore();
        self.rescue.set_charge(false);
        voice::undivert();
    }
}
