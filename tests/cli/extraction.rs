//! The shim as a file.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;

use crate::environment::{TestEnv, expect, find, stdout};

const SHIM: &str = "libgreenboost_shim.so";

fn preloaded(command: &mut Command) -> PathBuf {
    stdout(&expect(command, 0)).trim().into()
}

#[test]
fn into_the_cache_once() {
    let env = TestEnv::new();
    let path = preloaded(&mut env.run_script("echo $LD_PRELOAD"));
    assert!(
        path.starts_with(env.home().join(".cache/greenboost")),
        "{path:?}"
    );
    let mode = |path: &std::path::Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(path.parent().unwrap()), 0o700);
    assert_eq!(mode(&path) & 0o222, 0);
    assert_eq!(preloaded(&mut env.run_script("echo $LD_PRELOAD")), path);

    let cache = env.file("cache");
    let mut command = env.run_script("echo $LD_PRELOAD");
    let path = preloaded(command.env("XDG_CACHE_HOME", &cache));
    assert!(path.starts_with(cache), "{path:?}");
}

#[test]
fn a_tampered_file_is_replaced() {
    let env = TestEnv::new();
    let path = preloaded(&mut env.run_script("echo $LD_PRELOAD"));
    let good = fs::read(&path).unwrap();
    let mut bad = good.clone();
    let middle = bad.len() / 2;
    bad[middle] ^= 1;
    for content in [&bad[..], b"", b"not a library"] {
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
        fs::write(&path, content).unwrap();
        assert_eq!(preloaded(&mut env.run_script("echo $LD_PRELOAD")), path);
        assert!(fs::read(&path).unwrap() == good);
    }
}

#[test]
fn homes_that_cannot_serve() {
    let env = TestEnv::new();
    let with_blank = env.file("a b");
    fs::create_dir(&with_blank).unwrap();
    let with_colon = env.file("a:b");
    fs::create_dir(&with_colon).unwrap();
    // /proc: not even root can write there. Then names that LD_PRELOAD would split.
    for home in [
        PathBuf::from("/proc"),
        PathBuf::from("/dev/null"),
        with_blank,
        with_colon,
    ] {
        let mut command =
            env.run_script("echo $LD_PRELOAD; grep -q greenboost_shim /proc/self/maps");
        let path = preloaded(command.env("HOME", &home));
        assert!(path.starts_with(env.runtime()), "{path:?}");
        assert!(path.is_file());
    }
    // The runtime directory cannot serve either: a private one in /tmp does.
    let mut command = env.run_script("echo $LD_PRELOAD; grep -q greenboost_shim /proc/self/maps");
    command.env("HOME", "/proc").env("XDG_RUNTIME_DIR", "/proc");
    assert!(preloaded(&mut command).starts_with("/tmp"));
}

#[test]
fn many_at_once() {
    let env = TestEnv::new();
    let children: Vec<_> = (0..8)
        .map(|_| {
            let mut command = env.run_script("grep -q greenboost_shim /proc/self/maps");
            command.stderr(std::process::Stdio::null()).spawn().unwrap()
        })
        .collect();
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
    let path = find(&env.home(), SHIM).unwrap();
    let files = fs::read_dir(path.parent().unwrap()).unwrap().count();
    assert_eq!(files, 1, "no temporary file is left");
}
