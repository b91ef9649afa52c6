//! The user's terminal: raw while the table is up, and as it was afterwards.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::time::Duration;

use nix::errno::Errno;
use nix::libc;
use nix::pty::Winsize;
use nix::sys::stat::fstat;
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use nix::unistd::{Pid, getpgrp, isatty, tcgetpgrp};

nix::ioctl_read_bad!(get_size, libc::TIOCGWINSZ, Winsize);
nix::ioctl_write_ptr_bad!(put_size, libc::TIOCSWINSZ, Winsize);

/// What a terminal without a size is taken for.
const UNKNOWN: (u16, u16) = (24, 80);

/// The terminal that stderr is, if it controls this process.
pub struct Terminal {
    /// A description of our own, so that others do not find their descriptors non-blocking.
    file: File,
    /// How it was.
    pub before: Termios,
    raw: Termios,
    is_raw: bool,
    /// The device, by which its other descriptors are known.
    device: u64,
}

impl Terminal {
    /// Opens it. `None`: stderr is no terminal, or another one than that which controls this process, or somebody else
    /// has the foreground.
    pub fn open() -> Option<Terminal> {
        let stderr = io::stderr();
        if tcgetpgrp(&stderr).ok()? != getpgrp() {
            return None;
        }
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
            .open("/dev/tty")
            .ok()?;
        let before = tcgetattr(&file).ok()?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        Some(Terminal {
            file,
            before,
            raw,
            is_raw: false,
            device: fstat(stderr.as_fd()).ok()?.st_rdev,
        })
    }

    /// Whether this descriptor is the same terminal.
    pub fn is(&self, fd: BorrowedFd) -> bool {
        isatty(fd).unwrap_or(false) && fstat(fd).is_ok_and(|s| s.st_rdev == self.device)
    }

    /// The descriptors that a program started now would inherit and that are this terminal.
    pub fn inherited(&self) -> Vec<i32> {
        use nix::fcntl::{FcntlArg, FdFlag, fcntl};
        let numbers = std::fs::read_dir("/proc/self/fd").into_iter().flatten();
        let mut found: Vec<i32> = numbers
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
            .collect();
        found.retain(|number| {
            // SAFETY: only used in this block; a descriptor that has been closed meanwhile is refused by the kernel.
            let fd = unsafe { BorrowedFd::borrow_raw(*number) };
            let flags = fcntl(fd, FcntlArg::F_GETFD).unwrap_or(libc::FD_CLOEXEC);
            !FdFlag::from_bits_truncate(flags).contains(FdFlag::FD_CLOEXEC) && self.is(fd)
        });
        found
    }

    /// Rows and columns.
    pub fn size(&self) -> (u16, u16) {
        size(self.file.as_fd()).unwrap_or(UNKNOWN)
    }

    /// Whether keys are ours to read.
    pub fn is_ours(&self) -> bool {
        tcgetpgrp(&self.file).is_ok_and(|group: Pid| group == getpgrp())
    }

    /// Whether it is still there.
    pub fn is_open(&self) -> bool {
        tcgetattr(&self.file).is_ok()
    }

    /// Keys come as they are pressed, and output is shown as it is.
    pub fn make_raw(&mut self) {
        // While others had it they may have set it otherwise.
        if !self.is_raw
            && let Ok(now) = tcgetattr(&self.file)
        {
            self.raw = now.clone();
            cfmakeraw(&mut self.raw);
            self.before = now;
        }
        self.is_raw = tcsetattr(&self.file, SetArg::TCSADRAIN, &self.raw).is_ok();
    }

    /// As it was. Not while others have it: what they set is theirs.
    pub fn restore(&mut self) {
        if std::mem::take(&mut self.is_raw) {
            let _ = tcsetattr(&self.file, SetArg::TCSADRAIN, &self.before);
        }
    }

    /// As it was, but for what a program has changed of its own terminal's settings: those are to stay.
    pub fn restore_with(&mut self, first: &Termios, last: &Termios) {
        if std::mem::take(&mut self.is_raw) {
            let settings = with_changes(&self.before, first, last);
            let _ = tcsetattr(&self.file, SetArg::TCSADRAIN, &settings);
        }
    }

    /// For the one who stays when the launcher is killed: frees the terminal of what the program has turned on, by what
    /// `undoing` says, and of the table, and puts it back as it was unless somebody has set it otherwise already.
    pub fn rescue(&self, undoing: &[u8]) {
        let is_as_we_left_it = tcgetattr(&self.file).is_ok_and(|now| {
            let parts = |t: &Termios| (t.input_flags, t.output_flags, t.local_flags);
            parts(&now) == parts(&self.raw)
        });
        // First, because the shell already says that the launcher was killed.
        if is_as_we_left_it {
            let _ = tcsetattr(&self.file, SetArg::TCSADRAIN, &self.before);
        }
        // What was being written may have ended inside a sequence.
        let mut text = b"\x18".to_vec();
        text.extend(undoing);
        text.extend(b"\x1b7\x1b[r\x1b8\x1b[m\x1b[?25h");
        // Where somebody else already writes, the line is theirs.
        let end: &[u8] = if is_as_we_left_it {
            b"\r\n\x1b[J"
        } else {
            b"\x1b[J"
        };
        text.extend(end);
        // While others write it takes nothing from who does not want to wait.
        let mut rest = &text[..];
        for _ in 0..200 {
            match (&self.file).write(rest) {
                Ok(n) if n == rest.len() => return,
                Ok(n) => rest = &rest[n..],
                Err(error) if is_later(&error) => std::thread::sleep(Duration::from_millis(1)),
                Err(_) => return,
            }
        }
    }

    /// Reads keys; `Ok(0)`: the terminal is gone.
    pub fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.file.read(buffer)
    }

    /// Writes what it takes now.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    /// Its descriptor's number, for the keeper.
    pub fn number(&self) -> i32 {
        self.file.as_raw_fd()
    }
}

impl AsFd for Terminal {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// `before`, with what is another in `last` than in `first`. How bytes are sent is the device's own affair.
fn with_changes(before: &Termios, first: &Termios, last: &Termios) -> Termios {
    macro_rules! changed {
        ($flags:ident) => {
            (before.$flags & !(first.$flags ^ last.$flags))
                | (last.$flags & (first.$flags ^ last.$flags))
        };
    }
    let mut settings = before.clone();
    settings.input_flags = changed!(input_flags);
    settings.output_flags = changed!(output_flags);
    settings.local_flags = changed!(local_flags);
    let keys = first.control_chars.iter().zip(&last.control_chars);
    for (key, (first, last)) in settings.control_chars.iter_mut().zip(keys) {
        if first != last {
            *key = *last;
        }
    }
    settings
}

/// Rows and columns of a terminal that has any.
pub fn size(fd: BorrowedFd) -> Option<(u16, u16)> {
    window(fd).map(|size| (size.ws_row, size.ws_col))
}

fn window(fd: BorrowedFd) -> Option<Winsize> {
    let mut size = Winsize {
        ws_row: 0,
        ws_col: 0,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: the kernel fills `size`.
    unsafe { get_size(fd.as_raw_fd(), &mut size) }.ok()?;
    (size.ws_row > 0 && size.ws_col > 0).then_some(size)
}

/// Gives a terminal a size; who has it in the foreground gets SIGWINCH if it changes. Its characters have as many pixels as
/// those of `like`.
pub fn set_size(fd: BorrowedFd, like: BorrowedFd, (rows, columns): (u16, u16)) -> nix::Result<()> {
    let part =
        |pixels: u16, n: u16, of: u16| (u32::from(pixels) * u32::from(n) / u32::from(of)) as u16;
    let (xpixel, ypixel) = window(like).map_or((0, 0), |w| {
        (
            part(w.ws_xpixel, columns.min(w.ws_col), w.ws_col),
            part(w.ws_ypixel, rows.min(w.ws_row), w.ws_row),
        )
    });
    let size = Winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: xpixel,
        ws_ypixel: ypixel,
    };
    // SAFETY: the kernel reads `size`.
    unsafe { put_size(fd.as_raw_fd(), &size) }.map(drop)
}

/// Whether reading or writing only has to be tried again later.
pub fn is_later(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error().map(Errno::from_raw),
        Some(Errno::EAGAIN | Errno::EINTR)
    )
}

#[cfg(test)]
mod tests {
    use nix::sys::termios::{ControlFlags, InputFlags, LocalFlags, SpecialCharacterIndices};

    use super::*;

    #[test]
    fn changes_are_carried_over_and_nothing_else() {
        let pty = nix::pty::openpty(None, None).unwrap();
        let first = tcgetattr(&pty.slave).unwrap();
        // The user's own terminal is another one: it has 7 bits and no flow control.
        let mut before = first.clone();
        before.control_flags.remove(ControlFlags::CS8);
        before.input_flags.remove(InputFlags::IXON);
        let erase = SpecialCharacterIndices::VERASE as usize;
        before.control_chars[erase] = 8;
        assert_eq!(with_changes(&before, &first, &first), before);
        let mut last = first.clone();
        last.local_flags.remove(LocalFlags::ECHO);
        last.control_flags.insert(ControlFlags::PARENB);
        let interrupt = SpecialCharacterIndices::VINTR as usize;
        last.control_chars[interrupt] = 7;
        let mut expected = before.clone();
        expected.local_flags.remove(LocalFlags::ECHO);
        expected.control_chars[interrupt] = 7;
        assert_eq!(with_changes(&before, &first, &last), expected);
    }
}
