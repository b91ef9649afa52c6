//! Exit statuses and what is said with them.

use std::fs;

use crate::environment::{TestEnv, expect, stderr, stdout};

#[test]
fn the_programs_own_status() {
    let env = TestEnv::new();
    for status in [0, 1, 2, 7, 125, 255] {
        expect(&mut env.run_script(&format!("exit {status}")), status);
    }
}

#[test]
fn a_signal_is_128_and_its_number() {
    let env = TestEnv::new();
    for (name, number) in [
        ("KILL", 9),
        ("TERM", 15),
        ("SEGV", 11),
        ("PIPE", 13),
        ("34", 34),
    ] {
        let mut command = env.run_script(&format!("ulimit -c 0; kill -{name} $$"));
        let output = expect(&mut command, 128 + number);
        assert!(
            stderr(&output).contains("sh was ended by "),
            "{}",
            stderr(&output)
        );
    }
}

#[test]
fn not_found_and_not_executable() {
    let env = TestEnv::new();
    let plain = env.file("plain");
    fs::write(&plain, "x").unwrap();
    let torn = env.executable("torn", b"#!/no/such/interpreter\n");
    for (program, status, sentence) in [
        ("no-such-program", 127, "there is no such program in PATH"),
        ("/no/such/program", 127, "there is no such file"),
        (plain.to_str().unwrap(), 126, "is not executable"),
        ("/", 126, "is a directory"),
        (torn.to_str().unwrap(), 127, "its interpreter cannot run"),
    ] {
        let output = expect(&mut env.greenboost(["run", "--", program]), status);
        let said = stderr(&output);
        assert!(said.contains(sentence), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
    }
}

#[test]
fn usage_errors_are_ours() {
    let env = TestEnv::new();
    for words in [
        &["run"][..],
        &["run", "--no-such-flag", "true"],
        &["run", "--vram-limit"],
        &["no-such-command"],
        &["inspect"],
        &["completions", "no-such-shell"],
        &[],
    ] {
        let output = expect(&mut env.greenboost(words), 125);
        assert!(!output.stderr.is_empty() && output.stdout.is_empty());
    }
    for words in [["--help"], ["--version"]] {
        expect(&mut env.greenboost(words), 0);
    }
    expect(&mut env.greenboost(["run", "--help"]), 0);
}

#[test]
fn bad_values_in_one_sentence() {
    let env = TestEnv::new();
    for (flag, value, sentence) in [
        (
            "--vram-limit",
            "20X",
            "'X' in '20X' is not a unit: write a number with a unit, like 20G",
        ),
        (
            "--vram-limit",
            "20",
            "'20' is 20 bytes, less than one 2 MiB chunk: write",
        ),
        (
            "--ram-limit",
            "101%",
            "'101%' is not a usable percentage: write one from 0.01% to 100%",
        ),
        ("--ram-limit", "", "the size is empty: write"),
        (
            "--spill",
            "nvme:/scratch",
            "there is no NVMe tier in this version: use 'ram' or 'off'",
        ),
        (
            "--spill",
            "disk",
            "'disk' is not a place to spill to: use 'ram' or 'off'",
        ),
        (
            "--report",
            "x",
            "'x' is not a choice: use one of extended, physical",
        ),
        (
            "--placement",
            "best",
            "'best' is not a choice: use one of auto, first-fit",
        ),
        (
            "--staging",
            "on",
            "'on' is not a choice: use one of auto, off",
        ),
        (
            "--trace",
            "/no/such/dir/file",
            "'/no/such/dir/file' cannot be written",
        ),
        (
            "--trace",
            ".",
            "cannot be written: write the name of a file",
        ),
        (
            "--stats",
            "tables",
            "'tables' is not a choice: use one of auto, table, lines, off",
        ),
        (
            "--json",
            "-",
            "'-' is refused, because stdout is the program's: write a file name",
        ),
        ("--json", "fd:1", "'fd:1' is refused"),
        ("--json", "fd:77", "descriptor 77 is not open"),
        (
            "--json",
            "/no/such/dir/file",
            "cannot write /no/such/dir/file",
        ),
    ] {
        let output = expect(
            &mut env.greenboost(["run", flag, value, "--", "echo", "x"]),
            125,
        );
        let said = stderr(&output);
        assert!(said.contains(sentence), "{said}");
        assert!(said.starts_with(&format!("greenboost: {flag}: ")), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
        assert!(output.stdout.is_empty(), "the program must not have run");

        let variable = format!("GREENBOOST_{}", flag[2..].replace('-', "_").to_uppercase());
        let mut command = env.run_script("echo x");
        let output = expect(command.env(&variable, value), 125);
        assert!(stderr(&output).contains(sentence), "{}", stderr(&output));
    }
    let mut command = env.run_script("echo x");
    let output = expect(command.env("GREENBOOST_VRAM_LIMIT", "lots"), 125);
    assert!(stderr(&output).starts_with("greenboost: --vram-limit (or GREENBOOST_VRAM_LIMIT): "));
}

#[test]
fn flags_win_over_the_environment() {
    let env = TestEnv::new();
    let mut command = env.greenboost(["run", "-v", "--vram-limit", "3G", "true"]);
    command
        .env("GREENBOOST_VRAM_LIMIT", "5G")
        .env("GREENBOOST_RAM_LIMIT", "64M");
    let said = stderr(&expect(&mut command, 0));
    assert!(
        said.contains("VRAM limit 3.0 GiB; RAM limit 64.0 MiB"),
        "{said}"
    );
}

#[test]
fn a_program_without_cuda() {
    let env = TestEnv::new();
    let output = expect(&mut env.greenboost(["run", "true"]), 0);
    let said = stderr(&output);
    assert!(
        said.starts_with("greenboost: true ended with status 0 after "),
        "{said}"
    );
    assert!(said.ends_with(" and never used CUDA\n"), "{said}");
    assert_eq!(said.lines().count(), 1);
    assert_eq!(stdout(&output), "");

    let mut command = env.greenboost(["run", "true"]);
    let said = stderr(&expect(command.env("GREENBOOST", "off"), 0));
    assert!(said.contains("greenboost was off"), "{said}");
}

#[test]
fn a_stop_by_the_shim_is_an_abort() {
    // As `abort` ends it: the shim stops a program that way.
    let env = TestEnv::new();
    let mut command = env.run_script("ulimit -c 0; kill -ABRT $$");
    let said = stderr(&expect(&mut command, 134));
    assert!(said.contains("sh was ended by SIGABRT"), "{said}");
}

#[test]
fn no_usable_gpu_is_3() {
    let env = TestEnv::new();
    let driver = env.simulated_driver();
    for words in [&["selftest-program"][..], &["selftest-program", "--probe"]] {
        let mut command = env.greenboost(words);
        command
            .env("LD_LIBRARY_PATH", &driver)
            .env("FAKE_CUDA_FAIL", "cuInit:1+:100");
        let said = stdout(&expect(&mut command, 3));
        assert!(said.contains("no usable GPU"), "{said}");
    }
}

#[test]
fn own_errors_of_every_command() {
    let env = TestEnv::new();
    for words in [
        &["doctor", "--timeout", "0"][..],
        &["doctor", "x"],
        &["selftest", "--no-such-flag"],
        &["inspect", "no-such-program"],
    ] {
        let output = expect(&mut env.greenboost(words), 125);
        assert!(!output.stderr.is_empty() && output.stdout.is_empty());
    }
}
