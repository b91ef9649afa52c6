//! Signals: each reaches the program, once.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdout, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::environment::{GREENBOOST, TestEnv};

/// Says "ready", then the name of each signal that comes; ends with 9 at TERM.
const LISTENER: &str = "for s in INT HUP QUIT USR1 USR2 WINCH CONT; do trap \"echo $s\" $s; done; \
    trap 'echo TERM; exit 9' TERM; echo ready; while :; do sleep 0.02; done";

fn start(env: &TestEnv, script: &str) -> (Child, BufReader<ChildStdout>) {
    let mut child = env
        .run_script(script)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        // A group that nobody outside of it is the parent of does not stop (POSIX): whoever runs the tests may be gone.
        .process_group(0)
        .spawn()
        .unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    assert_eq!(line(&mut out), "ready");
    (child, out)
}

fn line(out: &mut impl BufRead) -> String {
    let mut line = String::new();
    out.read_line(&mut line).unwrap();
    line.trim_end().to_string()
}

fn send(child: &Child, signal: Signal) {
    kill(Pid::from_raw(child.id() as i32), signal).unwrap();
}

#[test]
fn forwarded_once_each() {
    let env = TestEnv::new();
    let (mut child, mut out) = start(&env, LISTENER);
    let signals = [
        ("INT", Signal::SIGINT),
        ("HUP", Signal::SIGHUP),
        ("QUIT", Signal::SIGQUIT),
        ("USR1", Signal::SIGUSR1),
        ("USR2", Signal::SIGUSR2),
        ("WINCH", Signal::SIGWINCH),
        ("TERM", Signal::SIGTERM),
    ];
    for (name, signal) in signals {
        send(&child, signal);
        // A second delivery would be read here in place of the next name.
        assert_eq!(line(&mut out), name);
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(child.wait().unwrap().code(), Some(9));
}

#[test]
fn an_unhandled_one_ends_both() {
    let env = TestEnv::new();
    let (mut child, _out) = start(&env, "echo ready; exec sleep 30");
    send(&child, Signal::SIGTERM);
    assert_eq!(child.wait().unwrap().code(), Some(143));
}

#[test]
fn the_programs_own_group_signal_is_not_echoed() {
    let env = TestEnv::new();
    // In a group of its own, so that this test survives. The first line must not appear twice.
    let script = format!(
        "exec setsid -w {GREENBOOST} run --stats off -- sh -c \
         'trap \"echo got\" USR1; kill -USR1 0; sleep 0.3; echo end'"
    );
    let output = env.program("sh").args(["-c", &script]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "got\nend\n");
}

#[test]
fn a_terminals_interrupt_comes_once() {
    let env = TestEnv::new();
    let pty = nix::pty::openpty(None, None).unwrap();
    let side = |fd: &OwnedFd| Stdio::from(fd.try_clone().unwrap());
    let script = "trap 'echo INT; n=x$n' INT; echo ready; \
                  while [ \"$n\" != x ]; do sleep 0.02; done; sleep 0.3; echo end$n";
    let mut child = env
        .program("setsid")
        .args([
            "-c", "-w", GREENBOOST, "run", "--stats", "off", "--", "sh", "-c", script,
        ])
        .stdin(side(&pty.slave))
        .stdout(side(&pty.slave))
        .stderr(side(&pty.slave))
        .spawn()
        .unwrap();
    let mut master = File::from(pty.master);
    let mut out = BufReader::new(master.try_clone().unwrap());
    assert_eq!(line(&mut out), "ready");
    master.write_all(b"\x03").unwrap();
    let mut seen = Vec::new();
    while !line_into(&mut out, &mut seen).starts_with("end") {}
    assert_eq!(
        seen.iter().filter(|l| l.ends_with("INT")).count(),
        1,
        "{seen:?}"
    );
    assert_eq!(seen.last().unwrap(), "endx");
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

fn line_into(out: &mut impl BufRead, seen: &mut Vec<String>) -> String {
    let line = line(out);
    seen.push(line.clone());
    line
}

#[test]
fn the_program_survives_its_launcher() {
    let env = TestEnv::new();
    let (mut child, mut out) = start(&env, "echo ready; sleep 0.3; echo still here; exit 0");
    child.kill().unwrap();
    child.wait().unwrap();
    let mut rest = String::new();
    out.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "still here\n");
}

#[test]
fn stop_and_continue() {
    let env = TestEnv::new();
    let (mut child, mut out) = start(&env, "echo ready; sleep 0.4; echo on; exec sleep 30");
    let own = child.id();
    let state = |pid: u32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        stat[stat.rfind(')').unwrap() + 2..].chars().next().unwrap()
    };
    send(&child, Signal::SIGTSTP);
    for _ in 0..200 {
        if state(own) == 'T' {
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(
        state(own),
        'T',
        "it stops with the program, as its parent expects"
    );
    send(&child, Signal::SIGCONT);
    assert_eq!(line(&mut out), "on");
    send(&child, Signal::SIGINT);
    assert_eq!(child.wait().unwrap().code(), Some(130));
}
