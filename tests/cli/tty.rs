//! A terminal for tests: a pseudo-terminal with an emulator behind it.

use std::fs::File;
use std::io::{Read, Write};
use std::num::NonZero;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::pty::Winsize;
use nix::sys::termios::{Termios, tcgetattr};

use crate::environment::{GREENBOOST, TestEnv, cc};

nix::ioctl_write_ptr_bad!(put_size, nix::libc::TIOCSWINSZ, Winsize);

/// Nothing takes longer unless it hangs.
const PATIENCE: Duration = Duration::from_secs(30);

fn size_of(n: u16) -> NonZero<u16> {
    NonZero::new(n).unwrap()
}

/// What a program on it would see of the user.
pub struct Tty {
    pub child: Child,
    keys: File,
    slave: OwnedFd,
    parser: Arc<Mutex<vt100::Parser>>,
    shown: Arc<Mutex<Vec<u8>>>,
}

impl Tty {
    /// Runs a command as the leader of a session on a new terminal.
    pub fn start(command: &mut Command, rows: u16, columns: u16) -> Tty {
        let size = Winsize {
            ws_row: rows,
            ws_col: columns,
            ws_xpixel: 8 * columns,
            ws_ypixel: 16 * rows,
        };
        let pty = nix::pty::openpty(Some(&size), None).unwrap();
        for fd in [&pty.master, &pty.slave] {
            let flags = nix::fcntl::FdFlag::FD_CLOEXEC;
            nix::fcntl::fcntl(fd, nix::fcntl::FcntlArg::F_SETFD(flags)).unwrap();
        }
        let side = || Stdio::from(pty.slave.try_clone().unwrap());
        let child = command
            .stdin(side())
            .stdout(side())
            .stderr(side())
            .spawn()
            .unwrap();
        let keys = File::from(pty.master);
        let parser = Arc::new(Mutex::new(vt100::Parser::new(
            size_of(rows),
            size_of(columns),
            0,
        )));
        let shown = Arc::new(Mutex::new(Vec::new()));
        let (mut screen, theirs, log) = (keys.try_clone().unwrap(), parser.clone(), shown.clone());
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(n @ 1..) = screen.read(&mut buffer) {
                log.lock().unwrap().extend(&buffer[..n]);
                theirs.lock().unwrap().process(&buffer[..n]);
            }
        });
        Tty {
            child,
            keys,
            slave: pty.slave,
            parser,
            shown,
        }
    }

    pub fn press(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).unwrap();
    }

    /// For use while waiting.
    pub fn press_again(&self, keys: &str) {
        (&self.keys).write_all(keys.as_bytes()).unwrap();
        std::thread::sleep(Duration::from_millis(200));
    }

    pub fn resize(&mut self, rows: u16, columns: u16) {
        let size = Winsize {
            ws_row: rows,
            ws_col: columns,
            ws_xpixel: 8 * columns,
            ws_ypixel: 16 * rows,
        };
        self.parser
            .lock()
            .unwrap()
            .screen_mut()
            .set_size(size_of(rows), size_of(columns));
        // SAFETY: reads `size`.
        unsafe { put_size(self.keys.as_raw_fd(), &size) }.unwrap();
    }

    /// The lines on the screen, without blanks at their ends.
    pub fn lines(&self) -> Vec<String> {
        let parser = self.parser.lock().unwrap();
        let (_, columns) = parser.screen().size();
        let rows = parser.screen().rows(0, columns.get());
        rows.map(|row| row.trim_end().to_string()).collect()
    }

    pub fn text(&self) -> String {
        self.lines().join("\n")
    }

    /// Where the cursor is, whether it is shown, and whether the alternate screen is.
    pub fn cursor(&self) -> ((u16, u16), bool, bool) {
        let parser = self.parser.lock().unwrap();
        let screen = parser.screen();
        (
            screen.cursor_position(),
            !screen.hide_cursor(),
            screen.alternate_screen(),
        )
    }

    /// Whether mouse reports or marks around what is pasted are asked for.
    pub fn is_modal(&self) -> bool {
        let parser = self.parser.lock().unwrap();
        let screen = parser.screen();
        screen.mouse_protocol_mode() != vt100::MouseProtocolMode::None || screen.bracketed_paste()
    }

    /// Everything that was ever sent to the terminal.
    pub fn sent(&self) -> String {
        String::from_utf8_lossy(&self.shown.lock().unwrap()).into_owned()
    }

    pub fn settings(&self) -> Termios {
        tcgetattr(self.slave.as_fd()).unwrap()
    }

    #[track_caller]
    pub fn wait_until(&self, what: &str, is_so: impl Fn(&Tty) -> bool) {
        let until = Instant::now() + PATIENCE;
        while !is_so(self) {
            if Instant::now() > until {
                panic!("not so: {what}\n{}\n---\n{:?}", self.text(), self.sent());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    #[track_caller]
    pub fn wait_for(&self, text: &str) {
        self.wait_until(text, |tty| tty.text().contains(text));
    }

    #[track_caller]
    pub fn end(&mut self) -> ExitStatus {
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                // What it has written last is on its way.
                std::thread::sleep(Duration::from_millis(100));
                return status;
            }
            if Instant::now() > until {
                panic!("it does not end\n{}\n---\n{:?}", self.text(), self.sent());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Tty {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A program that does what its arguments say, one after the other; see `tests/cli/actor.c`.
pub fn actor(env: &TestEnv) -> PathBuf {
    let out = env.file("actor");
    cc(include_str!("actor.c"), &["-w", "-ldl"], &out);
    out
}

/// `greenboost run OPTIONS -- actor WORDS` on the simulated driver, as the leader of a session.
pub fn acting(env: &TestEnv, actor: &Path, options: &[&str], words: &[&str]) -> Command {
    let mut command = env.program("setsid");
    command.args(["-c", "-w", GREENBOOST, "run", "--vram-limit", "64M"]);
    command
        .args(["--ram-limit", "256M"])
        .args(options)
        .arg("--");
    command.arg(actor).args(words);
    simulated(env, &mut command);
    command
}

/// What makes a terminal and a card of 128 MiB whose link is busy.
pub fn simulated(env: &TestEnv, command: &mut Command) {
    command
        .env("LD_LIBRARY_PATH", env.simulated_driver())
        .env("FAKE_CUDA_VRAM", "128M")
        .env("FAKE_CUDA_TRAFFIC", "81000:51234000")
        .env("TERM", "xterm-256color")
        .env("LC_ALL", "C.UTF-8")
        .env_remove("NO_COLOR");
}
