//! The newcomer's first command, on the embedded simulated driver.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::environment::{GREENBOOST, TestEnv, expect, stderr, stdout};
use crate::json::records;

#[test]
fn simulated_passes_and_says_what_that_means() {
    let env = TestEnv::new();
    let output = expect(&mut env.greenboost(["selftest", "--simulated"]), 0);
    let said = stdout(&output);
    assert_eq!(
        said.lines().last(),
        Some("PASSED on the SIMULATED driver: this says nothing about your GPU")
    );
    assert_eq!(
        said.lines().filter(|l| l.starts_with("ok    ")).count(),
        12,
        "{said}"
    );
    let said = stderr(&output);
    assert!(
        said.contains("greenboost: first spill on GPU 0: "),
        "{said}"
    );
    assert!(said.contains("greenboost: GPU 0 RAM "), "{said}");
    for line in said.lines() {
        assert!(
            line.starts_with("greenboost: ") && line.len() <= 120,
            "{line}"
        );
    }
    assert_eq!(fs::read_dir(env.runtime()).unwrap().count(), 0);
}

/// The self-test's program as an ordinary program, on a small simulated card.
fn small_card(env: &TestEnv, run: &[&str]) -> Command {
    let driver = env.simulated_driver();
    let mut command =
        env.greenboost([&["run"][..], run, &[GREENBOOST, "selftest-program"]].concat());
    command
        .env("LD_LIBRARY_PATH", driver)
        .env("FAKE_CUDA_VRAM", "24M");
    command
}

#[test]
fn records_of_a_run_that_spills() {
    let env = TestEnv::new();
    let output = expect(
        &mut small_card(&env, &["--vram-limit", "1G", "--json", "records"]),
        0,
    );
    let said = stderr(&output);
    assert!(
        said.contains("the VRAM limit 1.0 GiB is more than GPU 0 has: it is "),
        "{said}"
    );
    let records = records(&fs::read_to_string(env.file("records")).unwrap());
    let one = |kind: &str| -> &Value {
        let mut found = records.iter().filter(|r| r["type"] == kind);
        let first = found
            .next()
            .unwrap_or_else(|| panic!("no {kind} in {records:#?}"));
        assert!(found.next().is_none(), "two of {kind}");
        first
    };
    assert_eq!(one("hello")["devices"], 1);
    assert_eq!(one("device")["total"], 24 << 20);
    assert!(one("device")["vram_limit"].as_u64().unwrap() <= 24 << 20);
    assert!(one("first_spill")["host_bytes"].as_u64().unwrap() > 0);
    assert!(one("oom")["bytes"].as_u64().unwrap() > 1 << 30);
    let summary = one("summary");
    assert_eq!(summary["used_cuda"], true);
    assert_eq!(summary["cuda_processes"], 1);
    let device = &summary["devices"][0];
    assert!(device["vram_peak"].as_u64() <= device["vram_limit"].as_u64());
    assert_eq!(device["ooms"], 1);
    assert!(device["spills"].as_u64().unwrap() > 0);
    assert!(records.iter().any(|r| r["type"] == "snapshot"));
    let times: Vec<_> = records.iter().map(|r| r["t"].as_f64().unwrap()).collect();
    assert!(times.iter().all(|t| (0.0..600.0).contains(t)), "{times:?}");
}

#[test]
fn the_launcher_dies_and_every_byte_stays_right() {
    let env = TestEnv::new();
    let mut command = small_card(&env, &["--vram-limit", "16M"]);
    command.stdout(Stdio::piped()).stderr(Stdio::null());
    let mut launcher = command.spawn().unwrap();
    let mut out = BufReader::new(launcher.stdout.take().unwrap());
    let mut line = String::new();
    while !line.contains("ok    spill") {
        line.clear();
        assert_ne!(out.read_line(&mut line).unwrap(), 0, "it ended early");
    }
    launcher.kill().unwrap();
    launcher.wait().unwrap();
    let mut rest = String::new();
    out.read_to_string(&mut rest).unwrap();
    assert!(rest.contains("ok    every byte"), "{rest}");
    assert!(!rest.contains("FAIL"), "{rest}");
}

#[test]
fn killed_programs_keep_their_figures() {
    let env = TestEnv::new();
    let mut command = small_card(&env, &["--vram-limit", "16M", "--json", "records"]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut launcher = command.spawn().unwrap();
    let mut out = BufReader::new(launcher.stdout.take().unwrap());
    let mut line = String::new();
    while !line.contains("ok    spill") {
        line.clear();
        assert_ne!(out.read_line(&mut line).unwrap(), 0, "it ended early");
    }
    let start = fs::read_to_string(env.file("records")).unwrap();
    let pid = records(start.lines().next().unwrap())[0]["pid"]
        .as_i64()
        .unwrap();
    let pid = nix::unistd::Pid::from_raw(pid as i32);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
    assert_eq!(launcher.wait().unwrap().code(), Some(137));
    let records = records(&fs::read_to_string(env.file("records")).unwrap());
    let summary = records.last().unwrap();
    assert_eq!(summary["type"], "summary");
    assert!(
        summary["host_bytes"].as_u64().unwrap() > 60 << 20,
        "what it held when it ended: {summary}"
    );
}

#[test]
fn no_gpu_and_too_little_ram() {
    let env = TestEnv::new();
    // Nothing but the launcher: no driver at all.
    let output = expect(
        &mut env.greenboost(["run", GREENBOOST, "selftest-program"]),
        3,
    );
    assert!(
        stdout(&output).starts_with("none  no usable GPU: "),
        "{}",
        stdout(&output)
    );

    // Without --simulated, with a driver that cannot be loaded: one sentence, which says what needs no GPU.
    fs::write(env.file("libcuda.so.1"), "broken").unwrap();
    for words in [&["selftest"][..], &["selftest", "--json"]] {
        let mut command = env.greenboost(words);
        command.env("LD_LIBRARY_PATH", env.file(""));
        let output = expect(&mut command, 3);
        assert_eq!(stdout(&output), "");
        let said = stderr(&output);
        assert_eq!(said.lines().count(), 1, "{said}");
        assert!(said.starts_with("greenboost: no usable GPU here"), "{said}");
        assert!(said.contains("`greenboost selftest --simulated`"), "{said}");
    }

    let mut command = env.greenboost(["selftest", "--simulated", "--json"]);
    let output = expect(command.env("GREENBOOST_RAM_LIMIT", "2M"), 1);
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(document["passed"], false);
    assert_eq!(document["simulated"], true);
    let checks = document["checks"].as_array().unwrap();
    assert_eq!(checks.last().unwrap()["ok"], false);
}

/// What a killed process held is free again within a second, although nobody in the job allocates or asks.
#[test]
fn the_share_of_a_killed_process_comes_back() {
    let env = TestEnv::new();
    let driver = env.simulated_driver();
    let script = format!(
        "{GREENBOOST} selftest-program >out & until grep -q '^ok' out; do sleep 0.01; done; kill -9 $!; sleep 0.7; exit 5"
    );
    let records = env.file("records");
    let mut command = env.greenboost(["run", "--vram-limit", "64M", "--json"]);
    command
        .arg(&records)
        .args(["--", "sh", "-c", &script])
        .env("LD_LIBRARY_PATH", driver)
        .env("FAKE_CUDA_VRAM", "96M");
    expect(&mut command, 5);
    let text = fs::read_to_string(&records).unwrap();
    let summary: Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    assert_eq!(summary["type"], "summary");
    let device = &summary["devices"][0];
    assert!(
        device["vram_peak"].as_u64().unwrap() > 1 << 20,
        "it held nothing: {summary}"
    );
    assert_eq!(device["vram_bytes"], 0, "{summary}");
    assert_eq!(summary["host_bytes"], 0, "{summary}");
    assert_eq!(device["counted"]["arrays"]["bytes"], 0, "{summary}");
}

#[test]
fn a_cuda_program_survives_its_launcher() {
    // It goes on talking to a socket that nobody reads any more, and to a ledger that has no other reader.
    let env = TestEnv::new();
    let out = env.file("out");
    let driver = env.simulated_driver();
    let script = format!(
        "{GREENBOOST} selftest-program >out & sleep 0.05; kill -9 $PPID; wait $!; echo status $? >>out; touch over"
    );
    let mut command = env.greenboost(["run", "--vram-limit", "64M", "--", "sh", "-c", &script]);
    command
        .env("LD_LIBRARY_PATH", driver)
        .env("FAKE_CUDA_VRAM", "96M");
    command.status().unwrap();
    let until = std::time::Instant::now() + std::time::Duration::from_secs(120);
    while !env.file("over").exists() {
        assert!(
            std::time::Instant::now() < until,
            "{:?}",
            fs::read_to_string(&out)
        );
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let said = fs::read_to_string(&out).unwrap();
    assert!(said.ends_with("status 0\n"), "{said}");
    assert!(said.contains("ok    every byte"), "{said}");
}
