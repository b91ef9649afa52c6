//! Job control: stopping and continuing, by a shell on a terminal and by signals to the launcher alone.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::Stdio;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::environment::{GREENBOOST, TestEnv, cc, expect, stdout};

/// A terminal with an interactive shell on it; everything that it shows is kept.
struct Terminal {
    shell: std::process::Child,
    keys: File,
    shown: std::sync::mpsc::Receiver<Vec<u8>>,
    text: String,
}

impl Terminal {
    fn open(env: &TestEnv) -> Terminal {
        let pty = nix::pty::openpty(None, None).unwrap();
        let side = |fd: &OwnedFd| Stdio::from(fd.try_clone().unwrap());
        let shell = env
            .program("setsid")
            .args(["-c", "-w", "bash", "--norc", "--noprofile", "-i"])
            .env("PS1", "$ ")
            .env("HISTFILE", "/dev/null")
            .stdin(side(&pty.slave))
            .stdout(side(&pty.slave))
            .stderr(side(&pty.slave))
            .spawn()
            .unwrap();
        drop(pty.slave);
        let keys = File::from(pty.master);
        let mut screen = keys.try_clone().unwrap();
        let (sender, shown) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(n @ 1..) = screen.read(&mut buffer) {
                let _ = sender.send(buffer[..n].to_vec());
            }
        });
        Terminal {
            shell,
            keys,
            shown,
            text: String::new(),
        }
    }

    fn press(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).unwrap();
    }

    /// Waits until this is shown; what comes before it is forgotten.
    #[track_caller]
    fn wait_for(&mut self, what: &str) {
        let until = Instant::now() + Duration::from_secs(20);
        loop {
            if let Some(at) = self.text.find(what) {
                self.text.drain(..at + what.len());
                return;
            }
            let left = until.saturating_duration_since(Instant::now());
            match self.shown.recv_timeout(left) {
                Ok(bytes) => self.text += &String::from_utf8_lossy(&bytes),
                Err(_) => panic!("'{what}' was not shown, but {:?}", self.text),
            }
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // A test that failed leaves nothing running: with the shell goes the session, by SIGHUP.
        let _ = self.shell.kill();
        let _ = self.shell.wait();
    }
}

#[test]
fn stopped_and_brought_back_by_the_shell() {
    let env = TestEnv::new();
    // Words in two halves that the shell joins, so that what was typed is not taken for what was answered. They tell when
    // they have been continued: before that, keys would still go to the shell.
    let reads = env.executable(
        "reads",
        b"#!/bin/sh\ntrap 'echo is\"\"continued' CONT\necho is''ready\n\
          until read -r word; do :; done\necho got''$word\nexit 3\n",
    );
    let mut terminal = Terminal::open(&env);
    terminal.wait_for("$ ");
    terminal.press(&format!(
        "{GREENBOOST} run --stats off -- {}\n",
        reads.display()
    ));
    terminal.wait_for("isready");
    terminal.press("\x1a");
    terminal.wait_for("Stopped");
    terminal.wait_for("$ ");
    // The shell has the terminal, as it would have without us.
    terminal.press("echo back''ground\n");
    terminal.wait_for("background");
    terminal.press("fg\n");
    terminal.wait_for("iscontinued");
    // It reads from the terminal, so it is in the foreground again.
    terminal.press("hello\n");
    terminal.wait_for("gothello");
    terminal.press("echo status''=$?\n");
    terminal.wait_for("status=3");

    // Again and again, and then in the background.
    // Not a script: a shell that is stopped while it starts a program by vfork waits in the kernel, and never stops.
    let waits = env.file("waits");
    let source = r#"
        #include <signal.h>
        #include <unistd.h>
        static void continued(int s) { write(1, "iscontinued\n", 12); }
        int main(void) {
            signal(SIGCONT, continued);
            write(1, "isready\n", 8);
            while (access("go", F_OK)) usleep(20000);
            write(1, "isover\n", 7);
        }"#;
    cc(source, &["-w"], &waits);
    terminal.press(&format!(
        "{GREENBOOST} run --stats off -- {}\n",
        waits.display()
    ));
    terminal.wait_for("isready");
    for _ in 0..5 {
        terminal.press("\x1a");
        terminal.wait_for("Stopped");
        terminal.wait_for("$ ");
        terminal.press("fg\n");
        terminal.wait_for("iscontinued");
    }
    terminal.press("\x1a");
    terminal.wait_for("Stopped");
    terminal.wait_for("$ ");
    terminal.press("bg; touch go; wait; echo status''=$?\n");
    terminal.wait_for("isover");
    terminal.wait_for("status=0");
    terminal.press("exit\n");
    terminal.shell.wait().unwrap();
}

#[test]
fn a_stopped_launcher_holds_nobody_up() {
    let env = TestEnv::new();
    let done = env.file("done");
    let mut command = env.run_script("echo ready; sleep 0.2; touch done; exit 4");
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut ready = [0; 6];
    child.stdout.take().unwrap().read_exact(&mut ready).unwrap();
    let pid = Pid::from_raw(child.id() as i32);
    kill(pid, Signal::SIGSTOP).unwrap();
    let until = Instant::now() + Duration::from_secs(10);
    while !done.exists() {
        assert!(Instant::now() < until, "the program waits for its launcher");
        std::thread::sleep(Duration::from_millis(10));
    }
    kill(pid, Signal::SIGCONT).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(4));
}

#[test]
fn a_program_stopped_from_outside_is_waited_for() {
    let env = TestEnv::new();
    let script = "echo $$; sleep 0.2; exit 6";
    let mut command = env.run_script(script);
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let out = child.stdout.take().unwrap();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(out), &mut line).unwrap();
    let program = Pid::from_raw(line.trim().parse().unwrap());
    kill(program, Signal::SIGSTOP).unwrap();
    std::thread::sleep(Duration::from_millis(400));
    assert!(child.try_wait().unwrap().is_none());
    kill(program, Signal::SIGCONT).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(6));
}

#[test]
fn the_program_stays_in_our_group_and_session() {
    let env = TestEnv::new();
    // Fields 5 and 6 of stat: process group and session; of the program and of the launcher.
    let script = "for p in $$ $PPID; do read -r _ _ _ _ group session _ </proc/$p/stat; echo $group $session; done";
    let said = stdout(&expect(&mut env.run_script(script), 0));
    let lines: Vec<_> = said.lines().collect();
    assert_eq!(lines.len(), 2);
    assert_eq!(lines[0], lines[1]);
}
