//! The program as a child: started as if nobody stood in between, signals passed on, its end awaited.
//!
//! It stays in the launcher's process group and keeps the terminal, so what the terminal sends reaches it without help.
//! Only signals that somebody sent to the launcher alone are forwarded. A signal that was sent to the whole group by a
//! process outside cannot be told from one for the launcher; the program may see that one twice.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Command, ExitStatus};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use nix::errno::Errno;
use nix::libc;
use nix::sys::signal::{SigHandler, SigSet, SigmaskHow, Signal, kill, raise, signal};
use nix::sys::signalfd::{SfdFlags, SignalFd, siginfo};
use nix::unistd::Pid;

/// What the launcher forwards.
const FORWARDED: [Signal; 9] = [
    Signal::SIGINT,
    Signal::SIGTERM,
    Signal::SIGHUP,
    Signal::SIGQUIT,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGWINCH,
    Signal::SIGCONT,
    Signal::SIGTSTP,
];

static PIPE_WAS_IGNORED: AtomicBool = AtomicBool::new(false);
static CHILD_WAS_IGNORED: AtomicBool = AtomicBool::new(false);

/// Rust's own start-up code ignores SIGPIPE before `main`, so what we inherited must be noted earlier.
#[used]
#[unsafe(link_section = ".init_array")]
static NOTE_INHERITED: extern "C" fn() = note_inherited;

extern "C" fn note_inherited() {
    for (number, was_ignored) in [
        (libc::SIGPIPE, &PIPE_WAS_IGNORED),
        (libc::SIGCHLD, &CHILD_WAS_IGNORED),
    ] {
        let mut action = std::mem::MaybeUninit::<libc::sigaction>::zeroed();
        // SAFETY: a null pointer changes nothing; the kernel fills `action`, of which all-zero is a valid value.
        let action = unsafe {
            libc::sigaction(number, std::ptr::null(), action.as_mut_ptr());
            action.assume_init()
        };
        was_ignored.store(action.sa_sigaction == libc::SIG_IGN, Relaxed);
    }
}

/// What a new process does before it becomes the program: system calls only, no allocation and no lock.
pub type BeforeExec = Box<dyn FnMut() -> io::Result<()> + Send + Sync>;

/// What to execute.
pub struct Launch<'a> {
    /// The file.
    pub path: &'a Path,
    /// The name it was called by, and its arguments.
    pub command: &'a [OsString],
    /// Variables to set; all others are passed on.
    pub env: Vec<(&'static str, OsString)>,
}

impl Launch<'_> {
    /// The program with this signal mask; `first` is done in its process before anything else.
    pub fn command(&self, mask: SigSet, mut first: Option<BeforeExec>) -> Command {
        let mut command = Command::new(self.path);
        if let Some((name, args)) = self.command.split_first() {
            command.arg0(name).args(args);
        }
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        let restore = move || -> io::Result<()> {
            if let Some(first) = &mut first {
                first()?;
            }
            nix::sys::signal::sigprocmask(SigmaskHow::SIG_SETMASK, Some(&mask), None)?;
            for (number, was_ignored) in [
                (Signal::SIGPIPE, &PIPE_WAS_IGNORED),
                (Signal::SIGCHLD, &CHILD_WAS_IGNORED),
            ] {
                if was_ignored.load(Relaxed) {
                    // SAFETY: it installs no handler.
                    unsafe { signal(number, SigHandler::SigIgn) }?;
                }
            }
            Ok(())
        };
        // SAFETY: between fork and exec it makes system calls only: no allocation, no lock.
        unsafe { command.pre_exec(restore) };
        command
    }

    /// Becomes the program. Returns only when that fails.
    pub fn replace_us(&self) -> io::Error {
        match SigSet::thread_get_mask() {
            Ok(mask) => self.command(mask, None).exec(),
            Err(e) => e.into(),
        }
    }

    /// Starts the program.
    ///
    /// # Errors
    /// What `execve` said.
    pub fn start(&self, signals: Signals) -> io::Result<Child> {
        let child = self.command(signals.inherited, None).spawn()?;
        Ok(Child {
            pid: Pid::from_raw(child.id().cast_signed()),
            signals,
            is_stopped: false,
            asked_to_stop: false,
        })
    }
}

/// LD_PRELOAD with our library first and what the user had in it after that. Should that be a shim (of a job that is no
/// more, perhaps of another version), it goes: two in one process would be two masters.
pub fn preload(library: &Path, users: Option<&OsStr>) -> OsString {
    let mut value = library.as_os_str().as_bytes().to_vec();
    let name = library.file_name().unwrap_or_default().as_bytes();
    let users = users.unwrap_or_default().as_bytes();
    for entry in users.split_inclusive(|b| b": ".contains(b)) {
        let path = entry.trim_ascii_end();
        let path = path.strip_suffix(b":").unwrap_or(path);
        if path.is_empty() || path.ends_with(name) {
            continue;
        }
        if !value.ends_with(b":") && !value.ends_with(b" ") {
            value.push(b':');
        }
        value.extend(entry);
    }
    while value.ends_with(b":") || value.ends_with(b" ") {
        value.pop();
    }
    OsString::from_vec(value)
}

/// Signals arrive as data from here on, in this thread and those it starts.
pub struct Signals {
    fd: SignalFd,
    inherited: SigSet,
}

impl Signals {
    /// Blocks them; from here on none ends us before we have cleaned up.
    ///
    /// # Errors
    /// When the system has no descriptor left.
    pub fn take() -> nix::Result<Signals> {
        let mut mask: SigSet = FORWARDED.into_iter().collect();
        mask.add(Signal::SIGCHLD);
        let inherited = SigSet::thread_get_mask()?;
        // SAFETY: it installs no handler. A parent that ignores SIGCHLD bequeaths that, and then no status could be read.
        unsafe { signal(Signal::SIGCHLD, SigHandler::SigDfl) }?;
        mask.thread_block()?;
        let fd = SignalFd::with_flags(&mask, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
        Ok(Signals { fd, inherited })
    }

    /// The mask that the program gets.
    pub fn inherited(&self) -> SigSet {
        self.inherited
    }

    /// Readable when a signal has come.
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// The next signal, if one has come.
    pub fn read(&self) -> Option<siginfo> {
        self.fd.read_signal().ok().flatten()
    }

    /// A signal that has come so far and would have ended us: there is no program yet that could take it.
    pub fn fatal(&self) -> Option<u8> {
        while let Some(info) = self.read() {
            let number = info.ssi_signo.cast_signed();
            if matches!(
                Signal::try_from(number),
                Ok(Signal::SIGINT | Signal::SIGTERM | Signal::SIGHUP | Signal::SIGQUIT)
            ) {
                return Some(number as u8);
            }
        }
        None
    }
}

/// The running program.
pub struct Child {
    pid: Pid,
    signals: Signals,
    is_stopped: bool,
    asked_to_stop: bool,
}

impl Child {
    /// Its process.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Readable when [`Child::attend`] has something to do.
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.signals.descriptor()
    }

    /// Forwards what has arrived; returns the status when the program has ended.
    pub fn attend(&mut self) -> Option<ExitStatus> {
        while let Some(info) = self.signals.read() {
            self.pass_on(&info);
        }
        while let Some(status) = wait(self.pid) {
            if status.continued() {
                self.is_stopped = false;
            } else if status.stopped_signal().is_some() {
                self.is_stopped = true;
            } else {
                return Some(status);
            }
        }
        if self.is_stopped && self.asked_to_stop {
            // Ctrl-Z: our parent waits for us, not for the program, so we stop as it did.
            self.asked_to_stop = false;
            let _ = raise(Signal::SIGSTOP);
        }
        None
    }

    fn pass_on(&mut self, info: &siginfo) {
        let Ok(signal) = Signal::try_from(info.ssi_signo.cast_signed()) else {
            return;
        };
        match signal {
            Signal::SIGCHLD => return,
            Signal::SIGTSTP => self.asked_to_stop = true,
            Signal::SIGCONT => {
                self.asked_to_stop = false;
                if !needs_continuing(self.pid) {
                    return;
                }
            }
            _ => {}
        }
        // The terminal signals the whole group, and so does a program that signals its own group.
        let reached_both = info.ssi_code == libc::SI_KERNEL
            || descends_from(Pid::from_raw(info.ssi_pid.cast_signed()), self.pid);
        if !reached_both {
            let _ = kill(self.pid, signal);
        }
    }
}

/// A change of the child's state, if there is one.
pub fn wait(child: Pid) -> Option<ExitStatus> {
    // nix would turn the status of a program ended by a real-time signal into an error, and lose it.
    loop {
        let mut status = 0;
        // SAFETY: `status` lives through the call.
        let found = unsafe {
            libc::waitpid(
                child.as_raw(),
                &mut status,
                libc::WNOHANG | libc::WUNTRACED | libc::WCONTINUED,
            )
        };
        match found {
            0 => return None,
            n if n > 0 => return Some(ExitStatus::from_raw(status)),
            _ if Errno::last() == Errno::EINTR => {}
            // Not our child any more: nobody can know its status. That is an error of ours.
            _ => return Some(ExitStatus::from_raw(i32::from(crate::OWN_ERROR) << 8)),
        }
    }
}

/// The exit status that a shell would report: the program's own, or 128+n for signal n.
pub fn exit_code(status: ExitStatus) -> u8 {
    match (status.code(), status.signal()) {
        (Some(code), _) => code as u8,
        (None, Some(signal)) => (128 + signal) as u8,
        (None, None) => crate::OWN_ERROR,
    }
}

/// The state letter and the parent, from `/proc/PID/stat`.
fn state_and_parent(pid: Pid) -> Option<(char, Pid)> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat[stat.rfind(')')? + 1..].split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((state, Pid::from_raw(fields.next()?.parse().ok()?)))
}

fn is_stopped(pid: Pid) -> bool {
    state_and_parent(pid).is_some_and(|(state, _)| state == 'T')
}

/// Whether a SIGCONT that reached us must be passed on: the program is stopped, and was not just stopped anew.
///
/// A shell continues the whole group. Should Ctrl-Z follow at once, the program may be stopped again before we have read
/// the first signal; continuing it then would undo the Ctrl-Z. Ours is on its way in that case, hence the pause.
fn needs_continuing(pid: Pid) -> bool {
    if !is_stopped(pid) {
        return false;
    }
    std::thread::sleep(std::time::Duration::from_millis(10));
    is_stopped(pid) && !is_pending(Signal::SIGTSTP)
}

/// Whether this signal waits to be read.
fn is_pending(signal: Signal) -> bool {
    let mut set = std::mem::MaybeUninit::<libc::sigset_t>::zeroed();
    // SAFETY: the kernel fills `set`, of which all-zero is a valid value; the second call only reads it.
    unsafe {
        libc::sigpending(set.as_mut_ptr()) == 0
            && libc::sigismember(set.as_ptr(), signal as i32) == 1
    }
}

fn descends_from(mut pid: Pid, ancestor: Pid) -> bool {
    // A bound, because pids are reused while we look.
    for _ in 0..64 {
        if pid == ancestor {
            return true;
        }
        match state_and_parent(pid) {
            Some((_, parent)) if parent.as_raw() > 1 => pid = parent,
            _ => return false,
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_preload_is_kept() {
        let ours = Path::new("/x/shim.so");
        assert_eq!(preload(ours, None), "/x/shim.so");
        assert_eq!(preload(ours, Some("".as_ref())), "/x/shim.so");
        let older = "/a.so:/cache/1/shim.so:/b.so";
        assert_eq!(
            preload(ours, Some(older.as_ref())),
            "/x/shim.so:/a.so:/b.so"
        );
        assert_eq!(preload(ours, Some("/y/shim.so".as_ref())), "/x/shim.so");
        assert_eq!(
            preload(ours, Some("/a.so /b.so".as_ref())),
            "/x/shim.so:/a.so /b.so"
        );
    }

    #[test]
    fn statuses() {
        let of = |raw| exit_code(ExitStatus::from_raw(raw));
        assert_eq!(of(0), 0);
        assert_eq!(of(3 << 8), 3);
        assert_eq!(of(9), 137);
        assert_eq!(of(11 | 0x80), 139, "with a core dump");
        assert_eq!(of(34), 162, "a real-time signal");
    }

    #[test]
    fn descent() {
        let own = Pid::this();
        assert!(descends_from(own, own));
        assert!(descends_from(own, Pid::parent()));
        assert!(!descends_from(Pid::parent(), own));
    }
}
