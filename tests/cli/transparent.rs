//! What the program sees is what it would see without us.

use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::environment::{GREENBOOST, TestEnv, expect, stderr, stdout};

#[test]
fn streams_pass_untouched() {
    let env = TestEnv::new();
    let mut command = env.greenboost([
        "run",
        "--stats",
        "off",
        "--",
        "sh",
        "-c",
        "echo err >&2; cat",
    ]);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let bytes: Vec<u8> = (0..300_000u32).map(|i| ((i * 7) >> 3) as u8).collect();
    let sent = bytes.clone();
    let writer = std::thread::spawn(move || stdin.write_all(&sent).unwrap());
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    assert!(output.stdout == bytes);
    assert_eq!(
        stderr(&output),
        "err\n",
        "--stats off says nothing when nothing is wrong"
    );
}

/// The library in the program is told where, wherever that is.
#[test]
fn the_trace_is_an_absolute_path() {
    let env = TestEnv::new();
    let file = env.file("t.trace");
    let show = "cd / && printf %s \"$GREENBOOST_TRACE\"";
    let words = ["run", "--trace", "t.trace", "--", "sh", "-c", show];
    let output = expect(&mut env.greenboost(words), 0);
    assert_eq!(stdout(&output), file.to_str().unwrap());
    let output = expect(env.run_script(show).env("GREENBOOST_TRACE", "t.trace"), 0);
    assert_eq!(stdout(&output), file.to_str().unwrap());
    let inner = format!("cd / && {GREENBOOST} run --trace no/x -- true");
    let said = stderr(&expect(&mut env.run_script(&inner), 125));
    assert!(said.contains("--trace: '/no/x' cannot be"), "{said}");
    assert_eq!(stdout(&expect(&mut env.run_script(show), 0)), "");
}

#[test]
fn arguments_and_environment_pass_exactly() {
    let env = TestEnv::new();
    let odd = OsStr::from_bytes(b"a  b\n\xff$HOME");
    let mut command = env.greenboost(["run", "--"]);
    command
        .args(["printf", "%s|"])
        .arg(odd)
        .arg("")
        .arg("--vram-limit")
        .arg("x");
    let output = expect(&mut command, 0);
    assert_eq!(output.stdout, b"a  b\n\xff$HOME||--vram-limit|x|");

    let mut command = env.run_script("printf '%s|' \"$ODD\" \"$GREENBOOST_STATS\"");
    command.env("ODD", odd).env("GREENBOOST_STATS", "off");
    assert_eq!(expect(&mut command, 0).stdout, b"a  b\n\xff$HOME|off|");

    let output = expect(&mut env.greenboost(["run", "sh", "-c", "echo $0"]), 0);
    assert_eq!(stdout(&output), "sh\n", "the name it was called by");
}

#[test]
fn no_descriptor_of_ours_is_inherited() {
    let env = TestEnv::new();
    // The test runner may have some open; the program gets those, and no other.
    let script = "cd /proc/$$/fd && echo *";
    let without = expect(env.program("sh").args(["-c", script]), 0);
    let with = expect(&mut env.run_script(script), 0);
    assert_eq!(stdout(&with), stdout(&without));
}

#[test]
fn users_preload_is_kept() {
    let env = TestEnv::new();
    let mut command = env.run_script("echo $LD_PRELOAD; echo $GREENBOOST_JOB");
    command.env("LD_PRELOAD", "libm.so.6:libdl.so.2");
    let said = stdout(&expect(&mut command, 0));
    let (preload, job) = said.trim().split_once('\n').unwrap();
    assert!(
        preload.ends_with("/libgreenboost_shim.so:libm.so.6:libdl.so.2"),
        "{preload}"
    );
    assert!(job.starts_with(env.runtime().to_str().unwrap()), "{job}");
}

#[test]
fn the_shim_is_loaded_and_quiet() {
    let env = TestEnv::new();
    let output = expect(
        &mut env.greenboost([
            "run",
            "--stats",
            "off",
            "grep",
            "-c",
            "greenboost_shim",
            "/proc/self/maps",
        ]),
        0,
    );
    assert_ne!(stdout(&output), "0\n");
    assert_eq!(stderr(&output), "");
}

#[test]
fn signal_dispositions_and_mask_are_inherited() {
    let env = TestEnv::new();
    let status = |words: &[&str]| {
        let output = expect(env.program("env").args(words), 0);
        stdout(&output)
    };
    let looking = ["grep", "^Sig[BI][lg][kn]", "/proc/self/status"];
    let through = [&[GREENBOOST, "run"][..], &looking].concat();
    // Rust's own test runner hands on an ignored SIGPIPE or not; both ways must come out as they went in.
    assert_eq!(status(&through), status(&looking));
    let ignoring = |words: &[&str]| {
        let mut command = env.program("sh");
        command.args(["-c", "trap '' PIPE HUP USR1 CHLD; exec \"$@\"", "sh"]);
        stdout(&expect(command.args(words), 0))
    };
    assert_eq!(ignoring(&through), ignoring(&looking));
    assert_ne!(ignoring(&looking), status(&looking));
}

#[test]
fn a_status_is_found_although_our_parent_ignores_its_children() {
    let env = TestEnv::new();
    let script = format!("trap '' CHLD; exec {GREENBOOST} run sh -c 'exit 6'");
    expect(env.program("sh").args(["-c", &script]), 6);
}

#[test]
fn the_end_of_the_program_is_the_end() {
    let env = TestEnv::new();
    let start = Instant::now();
    // A daemon that stays behind is not waited for.
    expect(
        &mut env.run_script("sleep 20 >/dev/null 2>&1 </dev/null & exit 3"),
        3,
    );
    assert!(start.elapsed() < Duration::from_secs(10));
}

#[test]
fn nothing_is_left_behind() {
    let env = TestEnv::new();
    expect(&mut env.run_script("ls $GREENBOOST_JOB >&2; exit 1"), 1);
    expect(&mut env.greenboost(["run", "/no/such/file"]), 127);
    let broken = env.executable("broken", b"\x7fELF");
    expect(
        &mut env.greenboost([OsStr::new("run"), broken.as_os_str()]),
        126,
    );
    let left: Vec<_> = fs::read_dir(env.runtime()).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn starting_a_process_inside_costs_little() {
    const STARTS: u32 = 200;
    let env = TestEnv::new();
    // `times` tells the processor time of the children, which other work on this machine does not change much.
    let script = format!("i=0; while [ $i -lt {STARTS} ]; do /bin/true; i=$((i+1)); done; times");
    let measure = |command: &mut dyn FnMut() -> std::process::Command| {
        let start = Instant::now();
        let said = stdout(&expect(&mut command(), 0));
        let children = said.lines().nth(1).unwrap();
        let seconds: f64 = children
            .split(' ')
            .map(|time| {
                let (minutes, seconds) = time.trim_end_matches('s').split_once('m').unwrap();
                minutes.parse::<f64>().unwrap() * 60.0 + seconds.parse::<f64>().unwrap()
            })
            .sum();
        (seconds, start.elapsed())
    };
    let mut best = [(f64::MAX, Duration::MAX); 2];
    for _ in 0..3 {
        let bare = measure(&mut || {
            let mut command = env.program("sh");
            command.args(["-c", &script]);
            command
        });
        let inside = measure(&mut || env.run_script(&script));
        for (best, new) in best.iter_mut().zip([bare, inside]) {
            *best = (best.0.min(new.0), best.1.min(new.1));
        }
    }
    let [(bare, bare_wall), (inside, inside_wall)] = best;
    let extra = (inside - bare) * 1e6 / f64::from(STARTS);
    println!(
        "{STARTS} starts of /bin/true: {bare:.3} s of processor time bare, {inside:.3} s inside: \
         {extra:.0} us more each (by the clock {bare_wall:.2?} and {inside_wall:.2?}, with the run itself)"
    );
    assert!(extra < 3000.0, "{extra} us");
}

#[test]
fn names_with_blanks() {
    let env = TestEnv::new();
    let dir = env.file("a b c");
    fs::create_dir(&dir).unwrap();
    let program = env.executable("a b c/my prog", b"#!/bin/sh\necho \"$0|$1|$PWD|$MY_VAR\"\ngrep -c greenboost_shim /proc/self/maps >/dev/null\n");
    let mut command = env.greenboost(["run", "--stats", "off", "--"]);
    command
        .arg(&program)
        .arg("x y")
        .env("MY_VAR", " p  q ")
        .current_dir(&dir);
    let said = stdout(&expect(&mut command, 0));
    let dir = dir.display();
    assert_eq!(said, format!("{dir}/my prog|x y|{dir}| p  q \n"));
}
