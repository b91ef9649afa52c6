//! Commands that lead out of greenboost's reach: it says where it belongs, and does what it was told.

use crate::environment::{TestEnv, expect, stderr, stdout};

/// The path with our own programs first.
fn path(env: &TestEnv) -> String {
    let dir = env.file("");
    format!("{}:{}", dir.display(), std::env::var("PATH").unwrap())
}

#[test]
fn said_before_and_run_all_the_same() {
    let env = TestEnv::new();
    let path = path(&env);
    for name in [
        "docker",
        "podman",
        "nerdctl",
        "flatpak",
        "ssh",
        "systemd-run",
        "srun",
        "ollama",
    ] {
        env.executable(
            name,
            b"#!/bin/sh\necho \"$0 runs\" >&2\necho \"$@\"\nexit 7\n",
        );
        let mut command = env.greenboost(["run", "--stats", "off", "--", name, "run", "x"]);
        let output = expect(command.env("PATH", &path), 7);
        assert_eq!(stdout(&output), "run x\n");
        let said = stderr(&output);
        let lines: Vec<_> = said.lines().collect();
        let ours = lines
            .iter()
            .take_while(|l| l.starts_with("greenboost: "))
            .count();
        assert!((1..=2).contains(&ours) && lines.len() == ours + 1, "{said}");
        let belongs = said.contains("greenboost run -- ") || said.contains("without flatpak");
        assert!(belongs, "{said}");
    }
    let mut command = env.greenboost(["run", "--stats", "off", "docker", "ps"]);
    let said = stderr(&expect(command.env("PATH", &path), 7));
    assert!(!said.contains("greenboost:"), "{said}");
}

#[test]
fn sudo_is_run_although_nothing_can_be_preloaded() {
    // Only root can make a file somebody else's.
    if !nix::unistd::Uid::current().is_root() {
        return;
    }
    let env = TestEnv::new();
    let sudo = env.executable("sudo", &std::fs::read("/bin/sh").unwrap());
    nix::unistd::chown(&sudo, Some(nix::unistd::Uid::from_raw(65534)), None).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o4755);
    std::fs::set_permissions(&sudo, mode).unwrap();
    let mut command = env.greenboost(["run", "--stats", "off", "--", "sudo", "-c", "exit 5"]);
    let said = stderr(&expect(command.env("PATH", path(&env)), 5));
    assert!(
        said.contains("use `sudo greenboost run -- PROGRAM` instead"),
        "{said}"
    );
}

#[test]
fn behind_other_commands() {
    let env = TestEnv::new();
    env.executable("docker", b"#!/bin/sh\nexit 0\n");
    for words in [
        &["env", "A=1", "nice", "docker", "exec", "x"][..],
        &["sh", "-c", "docker run x"],
    ] {
        let mut command = env.greenboost([&["run", "--"][..], words].concat());
        let said = stderr(&expect(command.env("PATH", path(&env)), 0));
        assert!(
            said.contains("in a container, out of greenboost's reach"),
            "{said}"
        );
    }
}
