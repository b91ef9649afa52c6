//! `ps` and `top`: running jobs, seen from another terminal.

use std::fs;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::environment::{GREENBOOST, TestEnv, expect, stderr, stdout};
use crate::tty::{Tty, actor, simulated};

/// A job that holds 64 MiB of VRAM and 48 MiB of host memory until the file `go` is there.
fn start(env: &TestEnv) -> Child {
    let actor = actor(env);
    let mut command = env.greenboost(["run", "--vram-limit", "64M", "--ram-limit", "256M", "--"]);
    let words = [
        "cuda",
        "alloc:32",
        "alloc:32",
        "alloc:48",
        "tell:there",
        "until:go",
    ];
    command.arg(actor).args(words);
    simulated(env, &mut command);
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let until = Instant::now() + Duration::from_secs(30);
    while !env.file("there").exists() {
        assert!(Instant::now() < until, "it does not begin");
        std::thread::sleep(Duration::from_millis(10));
    }
    child
}

fn finish(env: &TestEnv, mut job: Child) {
    fs::write(env.file("go"), "").unwrap();
    assert_eq!(job.wait().unwrap().code(), Some(0));
}

fn list(env: &TestEnv) -> Vec<Value> {
    let output = expect(&mut env.greenboost(["ps", "--json"]), 0);
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(document["v"], 1);
    document["jobs"].as_array().unwrap().clone()
}

#[test]
fn listed_while_it_runs() {
    let env = TestEnv::new();
    assert_eq!(
        stdout(&expect(&mut env.greenboost(["ps"]), 0)),
        "no job is running\n"
    );
    let job = start(&env);
    let jobs = list(&env);
    assert_eq!(jobs.len(), 1);
    let one = &jobs[0];
    assert_eq!(one["launcher"], job.id());
    assert_eq!(one["processes"][0]["pid"], one["pid"]);
    assert_eq!(one["processes"][0]["program"], "actor");
    assert_eq!(one["processes"][0]["vram_bytes"], 64 << 20);
    assert_eq!(one["memory"]["devices"][0]["host_bytes"], 48 << 20);
    assert_eq!(one["command"][1], "cuda");
    assert!((0.0..30.0).contains(&one["age"].as_f64().unwrap()), "{one}");
    let text = stdout(&expect(&mut env.greenboost(["ps"]), 0));
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 2, "{text}");
    assert!(lines[0].starts_with("JOB "), "{text}");
    for word in [
        one["job"].as_str().unwrap(),
        "64.0 MiB",
        "48.0 MiB",
        "actor cuda alloc:32",
    ] {
        assert!(lines[1].contains(word), "{text}");
    }
    finish(&env, job);
    assert!(list(&env).is_empty());
}

#[test]
fn top_of_one_job_once() {
    let env = TestEnv::new();
    let none = expect(&mut env.greenboost(["top"]), 0);
    assert_eq!(stdout(&none), "no job is running\n");
    let job = start(&env);
    let name = list(&env)[0]["job"].as_str().unwrap().to_string();
    let pid = list(&env)[0]["pid"].to_string();
    for word in [None, Some(name), Some(pid), Some(job.id().to_string())] {
        let mut command = env.greenboost(["top"]);
        simulated(&env, &mut command);
        let text = stdout(&expect(command.args(&word), 0));
        assert!(text.contains("64.0 of 64.0 MiB"), "{word:?}: {text}");
        assert!(text.contains("48.0 MiB spilled; link busy 81 %"), "{text}");
        assert!(!text.contains('\x1b'), "{text}");
    }
    let output = expect(&mut env.greenboost(["top", "1"]), 125);
    assert!(
        stderr(&output).contains("no running job is called '1'"),
        "{}",
        stderr(&output)
    );
    finish(&env, job);
}

#[test]
fn top_on_a_terminal() {
    let env = TestEnv::new();
    let job = start(&env);
    for end in ["q", "\x03", "over"] {
        let mut command = env.program("setsid");
        command.args(["-c", "-w", GREENBOOST, "top", &job.id().to_string()]);
        simulated(&env, &mut command);
        let mut tty = Tty::start(&mut command, 12, 70);
        let before = tty.settings();
        tty.wait_for("48.0 of 256.0 MiB");
        tty.wait_for("link busy 81 %");
        assert!(tty.cursor().2, "on a screen of its own");
        tty.resize(20, 60);
        std::thread::sleep(Duration::from_millis(700));
        assert!(
            tty.lines()[4].starts_with("48.0 MiB spilled"),
            "{}",
            tty.text()
        );
        if end == "over" {
            fs::write(env.file("go"), "").unwrap();
        } else {
            tty.press(end);
        }
        assert_eq!(tty.end().code(), Some(0));
        let (_, is_shown, is_alternate) = tty.cursor();
        assert!(is_shown && !is_alternate);
        assert_eq!(tty.settings(), before);
    }
    finish(&env, job);
}
