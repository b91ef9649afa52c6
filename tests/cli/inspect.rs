//! `inspect`, and what `run` makes of it.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::environment::{GREENBOOST, TestEnv, expect, stderr, stdout};

fn inspect(env: &TestEnv, program: &Path, status: i32) -> Value {
    let mut command = env.greenboost(["inspect", "--json"]);
    let output = expect(command.arg(program), status);
    serde_json::from_slice(&output.stdout).unwrap()
}

/// A static program for x86_64 that exits with 42, with some data at its end.
#[cfg(target_arch = "x86_64")]
fn static_program(env: &TestEnv, name: &str, data: &[u8]) -> PathBuf {
    let code = [0xb8, 60, 0, 0, 0, 0xbf, 42, 0, 0, 0, 0x0f, 0x05];
    let (base, size) = (0x40_0000u64, 120 + (code.len() + data.len()) as u64);
    let mut elf = Vec::new();
    elf.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    for (value, bytes) in [
        (2, 2),          // ET_EXEC
        (62, 2),         // x86_64
        (1, 4),          // version
        (base + 120, 8), // entry
        (64, 8),         // program headers
        (0, 8),          // no sections
        (0, 4),
        (64, 2),
        (56, 2),
        (1, 2),
        (0, 2),
        (0, 2),
        (0, 2),
        (1, 4), // PT_LOAD
        (5, 4), // read, execute
        (0, 8),
        (base, 8),
        (base, 8),
        (size, 8),
        (size, 8),
        (0x1000, 8),
    ] {
        elf.extend(&u64::to_le_bytes(value)[..bytes]);
    }
    elf.extend(code);
    elf.extend(data);
    env.executable(name, &elf)
}

#[test]
fn the_shell() {
    let env = TestEnv::new();
    let found = inspect(&env, Path::new("/bin/sh"), 0);
    assert_eq!(found["verdict"], "works-if-it-loads-cuda");
    assert_eq!(found["elf"]["linking"], "dynamic");
    let output = expect(&mut env.greenboost(["inspect", "sh"]), 0);
    let text = stdout(&output);
    assert!(
        text.contains("\nverdict  works-if-it-loads-cuda: "),
        "{text}"
    );
    assert!(text.contains("\nneeds    libc.so.6 => /"), "{text}");
    expect(&mut env.greenboost(["inspect", "/no/such/program"]), 125);
}

#[test]
fn scripts_lead_to_what_runs_them() {
    let env = TestEnv::new();
    let inner = env.executable("inner", b"#!/usr/bin/env -S sh -e\n");
    let outer = env.executable("outer", format!("#!{}\n", inner.display()).as_bytes());
    let found = inspect(&env, &outer, 0);
    assert_eq!(found["scripts"].as_array().unwrap().len(), 2);
    assert!(found["executable"].as_str().unwrap().ends_with("/sh"));
}

#[test]
fn a_program_that_opens_the_driver_later() {
    let env = TestEnv::new();
    // greenboost itself does, for its self-test.
    let found = inspect(&env, Path::new(GREENBOOST), 0);
    assert_eq!(found["verdict"], "works-if-it-loads-cuda");
    assert!(found["reason"].as_str().unwrap().contains("libcuda.so.1"));
}

#[test]
#[cfg(target_arch = "x86_64")]
fn static_programs() {
    let env = TestEnv::new();
    let plain = static_program(&env, "plain", b"");
    let found = inspect(&env, &plain, 0);
    assert_eq!(found["elf"]["linking"], "static");
    let output = expect(env.greenboost(["run"]).arg(&plain), 42);
    assert!(
        stderr(&output).contains("statically linked"),
        "{}",
        stderr(&output)
    );

    let cuda = static_program(&env, "cuda", b"libcuda.so.1\0");
    assert_eq!(inspect(&env, &cuda, 2)["verdict"], "impossible");
    let output = expect(env.greenboost(["run"]).arg(&cuda), 125);
    assert!(
        stderr(&output).contains("nothing can be preloaded"),
        "{}",
        stderr(&output)
    );
}

#[test]
#[cfg(target_arch = "x86_64")]
fn foreign_machines_and_libraries() {
    let env = TestEnv::new();
    let sh = fs::read("/bin/sh").unwrap();
    let mut arm = sh.clone();
    arm[18] = 183;
    let arm = env.executable("arm", &arm);
    let found = inspect(&env, &arm, 2);
    assert_eq!(found["elf"]["arch"], "aarch64");
    assert!(
        found["reason"]
            .as_str()
            .unwrap()
            .contains("no shim for aarch64")
    );

    let (glibc, musl) = (
        b"/lib64/ld-linux-x86-64.so.2",
        b"/lib/ld-musl-x86_64.so.1\0\0\0",
    );
    let at = sh.windows(glibc.len()).position(|w| w == glibc).unwrap();
    let mut text = sh.clone();
    text[at..][..musl.len()].copy_from_slice(musl);
    let found = inspect(&env, &env.executable("musl", &text), 2);
    assert_eq!(found["elf"]["libc"], "musl");
}

#[test]
fn damaged_files() {
    let env = TestEnv::new();
    let sh = fs::read("/bin/sh").unwrap();
    for length in [4, 20, 64, 300, sh.len() / 2] {
        let path = env.executable(&format!("cut{length}"), &sh[..length]);
        let found = inspect(&env, &path, 2);
        assert!(
            found["reason"].as_str().unwrap().contains("damaged"),
            "{found}"
        );
    }
    let empty = env.executable("empty", b"");
    inspect(&env, &empty, 0);
}

#[test]
fn privileged_programs() {
    let env = TestEnv::new();
    let path = env.executable("raised", &fs::read("/bin/sh").unwrap());
    // Only root can make a file somebody else's; others find a set-user-ID file of root on every system.
    let path = if nix::unistd::Uid::current().is_root() {
        nix::unistd::chown(&path, Some(nix::unistd::Uid::from_raw(1)), None).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o4755);
        fs::set_permissions(&path, mode).unwrap();
        path
    } else {
        PathBuf::from("/usr/bin/passwd")
    };
    let found = inspect(&env, &path, 2);
    assert!(
        found["reason"].as_str().unwrap().contains("set-user-ID"),
        "{found}"
    );
    expect(env.greenboost(["run"]).arg(&path), 125);
}
