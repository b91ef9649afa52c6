//! `doctor`: what it finds, what it says, and that no driver can hold it up.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::environment::{GREENBOOST, TestEnv, cc, expect, stderr, stdout};

/// `doctor` on the simulated driver, with nothing around it that would spoil the verdict.
fn doctor(env: &TestEnv, words: &[&str]) -> Command {
    let driver = env.simulated_driver();
    let mut command = env.greenboost([&["doctor"][..], words].concat());
    command
        .env("LD_LIBRARY_PATH", driver)
        .env("CUDA_MPS_PIPE_DIRECTORY", "/no/such/directory")
        .env_remove("GGML_CUDA_ENABLE_UNIFIED_MEMORY");
    command
}

/// A driver of our own making, for `LD_LIBRARY_PATH`.
fn driver(env: &TestEnv, source: &str) -> std::path::PathBuf {
    let dir = env.file("driver");
    fs::create_dir_all(&dir).unwrap();
    cc(source, &["-shared", "-fPIC"], &dir.join("libcuda.so.1"));
    dir
}

#[test]
fn all_fine_on_the_simulated_driver() {
    let env = TestEnv::new();
    let misuse = env.file("misuse");
    let mut command = doctor(&env, &[]);
    let output = expect(command.env("FAKE_CUDA_REPORT", &misuse), 0);
    let said = stdout(&output);
    assert_eq!(
        said.lines().last(),
        Some("All fine, on the SIMULATED driver: this says nothing about your GPU.")
    );
    for part in [
        "note  driver       greenboost's SIMULATED driver for CUDA 13.0,",
        "ok    gpu 0        NVIDIA Simulated GPU, 1.0 GiB",
        "ok    vmm          VRAM can be mapped",
        "ok    host memory  can be mapped beside VRAM (node 0)",
        "ok    pinning      ",
        "ok    ram          a run may pin ",
        "ok    cache        ",
        "ok    preloading   works",
    ] {
        assert!(said.contains(part), "{part}\n{said}");
    }
    assert!(!said.contains('\x1b'), "no colours into a pipe");
    for line in said.lines() {
        // A path is not broken, so that it can be copied.
        assert!(line.chars().count() <= 80 || line.contains('/'), "{line}");
    }
    assert_eq!(stderr(&output), "");
    let misuse = fs::read_to_string(misuse).unwrap_or_default();
    assert_eq!(misuse, "", "the driver was used as its rules are");
    assert_eq!(fs::read_dir(env.runtime()).unwrap().count(), 0);
}

#[test]
fn what_older_drivers_allow() {
    let env = TestEnv::new();
    for (version, parts) in [
        ("12040", &["All fine"][..]),
        ("12030", &["warn  features", "stays where it", "Degraded: "]),
        (
            "12010",
            &[
                "warn  host memory",
                "spill whole",
                "12.2 or newer",
                "warn  features",
            ],
        ),
        (
            "11040",
            &["warn  host memory", "SIMULATED driver for CUDA 11.4"],
        ),
    ] {
        let mut command = doctor(&env, &[]);
        let status = i32::from(version != "12040");
        let said = stdout(&expect(command.env("FAKE_CUDA_DRIVER", version), status));
        let words = said.split_whitespace().collect::<Vec<_>>().join(" ");
        for part in parts {
            assert!(
                said.contains(part) || words.contains(part),
                "{version}: {part}\n{said}"
            );
        }
    }
    let mut command = doctor(&env, &[]);
    let said = stdout(&expect(command.env("FAKE_CUDA_NO_HOST_NUMA", "1"), 1));
    assert!(said.contains("cuMemCreate returned error 801"), "{said}");
    // Lines are broken at 80 columns.
    let words = said.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(words.contains("allocations spill whole"), "{said}");
}

#[test]
fn one_document() {
    let env = TestEnv::new();
    let output = expect(doctor(&env, &["--json"]).env("FAKE_CUDA_DEVICES", "2"), 0);
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(found["v"], 1);
    assert_eq!(
        (&found["verdict"], &found["exit_code"]),
        (&"fine".into(), &0.into())
    );
    assert_eq!(found["driver"]["devices"].as_array().unwrap().len(), 2);
    assert_eq!(
        found["driver"]["devices"][1]["device_backing"]["result"],
        "works"
    );
    assert_eq!(found["driver_end"]["how"], "finished");
    for finding in found["findings"].as_array().unwrap() {
        assert!(finding["name"].is_string() && finding["text"].is_string());
        assert!(
            ["fine", "note"].contains(&finding["level"].as_str().unwrap()),
            "{finding}"
        );
    }
}

#[test]
fn no_driver_is_impossible() {
    let env = TestEnv::new();
    let dir = env.file("driver");
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("libcuda.so.1"), "not a library").unwrap();
    let mut command = env.greenboost(["doctor"]);
    let said = stdout(&expect(command.env("LD_LIBRARY_PATH", &dir), 2));
    let text = said.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(
        text.starts_with("FAIL driver libcuda.so.1 cannot be loaded ("),
        "{said}"
    );
    assert!(said.contains("                   -> "), "{said}");
    assert!(said.ends_with("Impossible: greenboost cannot work here; see 'FAIL' above.\n"));
}

#[test]
fn a_driver_that_hangs_does_not_hang_us() {
    let env = TestEnv::new();
    let dir = driver(
        &env,
        "#include <unistd.h>\nint cuInit(unsigned f) { for (;;) pause(); }",
    );
    let start = Instant::now();
    let mut command = env.greenboost(["doctor", "--timeout", "1"]);
    let said = stdout(&expect(command.env("LD_LIBRARY_PATH", &dir), 2));
    assert!(
        start.elapsed() < Duration::from_secs(8),
        "{:?}",
        start.elapsed()
    );
    let text = said.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(
        text.contains("it was still calling cuInit when the time was over"),
        "{said}"
    );
    assert!(
        said.contains("ok    preloading"),
        "the rest is told all the same\n{said}"
    );
}

#[test]
fn a_driver_that_hangs_at_exit_does_not_either() {
    let env = TestEnv::new();
    let source = "#include <unistd.h>\nint cuInit(unsigned f) { return 100; }\n\
        __attribute__((destructor)) static void end(void) { for (;;) pause(); }";
    let dir = driver(&env, source);
    let mut command = env.greenboost(["doctor", "--timeout", "1", "--json"]);
    let output = expect(command.env("LD_LIBRARY_PATH", &dir), 2);
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(found["driver_end"]["how"], "hung");
    assert_eq!(found["driver"]["init"], 100);
}

#[test]
fn a_driver_that_crashes_or_refuses() {
    let env = TestEnv::new();
    for (body, part) in [
        ("abort();", "crashes while calling cuInit"),
        ("return 803;", "library and kernel module differ (803)"),
        ("return 34;", "stubs directory"),
        ("return 100;", "CUDA_VISIBLE_DEVICES is '7'"),
    ] {
        let source = format!("#include <stdlib.h>\nint cuInit(unsigned f) {{ {body} }}");
        let dir = driver(&env, &source);
        let mut command = env.greenboost(["doctor"]);
        command
            .env("LD_LIBRARY_PATH", &dir)
            .env("CUDA_VISIBLE_DEVICES", "7");
        let said = stdout(&expect(&mut command, 2));
        let text = said.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(text.contains(part), "{said}");
    }
}

#[test]
fn settings_that_stand_in_the_way() {
    let env = TestEnv::new();
    for (name, value, part) in [
        ("GGML_CUDA_ENABLE_UNIFIED_MEMORY", "1", "escapes greenboost"),
        ("GREENBOOST", "off", "-> unset GREENBOOST"),
        (
            "GREENBOOST_RAM_LIMIT",
            "lots",
            "--ram-limit (or GREENBOOST_RAM_LIMIT): 'lots'",
        ),
        ("GREENBOOST_RAM_LIMIT", "64M", "warn  ram"),
    ] {
        let mut command = doctor(&env, &[]);
        let said = stdout(&expect(command.env(name, value), 1));
        assert!(said.contains(part), "{part}\n{said}");
    }
    let pipes = env.file("mps");
    fs::create_dir(&pipes).unwrap();
    fs::write(pipes.join("control"), "").unwrap();
    let mut command = doctor(&env, &[]);
    let said = stdout(&expect(command.env("CUDA_MPS_PIPE_DIRECTORY", &pipes), 1));
    assert!(said.contains("warn  mps "), "{said}");
}

#[test]
fn a_home_that_cannot_serve_is_told() {
    let env = TestEnv::new();
    let mut command = doctor(&env, &[]);
    let said = stdout(&expect(command.env("HOME", "/proc"), 0));
    assert!(said.contains("note  cache "), "{said}");
    assert!(said.contains("-> set XDG_CACHE_HOME"), "{said}");
}

#[test]
fn inside_a_run_it_asks_the_driver_itself() {
    let env = TestEnv::new();
    let driver = env.simulated_driver();
    let mut command = env.greenboost(["run", "--stats", "off", "--vram-limit", "64M"]);
    command
        .args(["--", GREENBOOST, "doctor"])
        .env("LD_LIBRARY_PATH", driver)
        .env("CUDA_MPS_PIPE_DIRECTORY", "/no/such/directory");
    let said = stdout(&expect(&mut command, 0));
    assert!(
        said.contains("NVIDIA Simulated GPU, 1.0 GiB, 1.0 GiB free"),
        "{said}"
    );
    assert!(said.contains("note  job "), "{said}");
}

#[test]
fn colours_on_a_terminal_only() {
    let env = TestEnv::new();
    let line = format!("{GREENBOOST} doctor");
    let on_terminal = |name: &str, value: &str| {
        let mut command = doctor(&env, &[]);
        let driver = command
            .get_envs()
            .find(|(n, _)| *n == "LD_LIBRARY_PATH")
            .unwrap();
        let driver = driver.1.unwrap().to_os_string();
        command = env.program("script");
        command
            .args(["-qec", &line, "/dev/null"])
            .env("LD_LIBRARY_PATH", driver)
            .env("TERM", "xterm")
            .env_remove("NO_COLOR")
            .env(name, value);
        stdout(&command.output().unwrap())
    };
    assert!(on_terminal("X", "").contains("\x1b[32mok    \x1b[0m"));
    assert!(!on_terminal("NO_COLOR", "1").contains('\x1b'));
    assert!(!on_terminal("TERM", "dumb").contains('\x1b'));
}
