//! Finding programs, and chains of scripts.

use super::*;
use std::os::unix::fs::PermissionsExt;

fn program(dir: &Path, name: &str, text: &str) -> PathBuf {
    let path = dir.join(name);
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

#[test]
fn finding() {
    let dir = tempfile::tempdir().unwrap();
    assert!(find("sh".as_ref()).unwrap().is_absolute());
    assert_eq!(
        find("no-such-program-at-all".as_ref()).unwrap_err().status,
        127
    );
    assert_eq!(find("".as_ref()).unwrap_err().status, 127);
    assert_eq!(find("/no/such".as_ref()).unwrap_err().status, 127);
    assert_eq!(find(dir.path().as_os_str()).unwrap_err().status, 126);
    let plain = dir.path().join("plain");
    fs::write(&plain, "x").unwrap();
    assert_eq!(find(plain.as_os_str()).unwrap_err().status, 126);
}

#[test]
fn the_shell_works_if() {
    let target = inspect(Path::new("/bin/sh"));
    assert_eq!(
        target.verdict,
        Verdict::WorksIfItLoadsCuda,
        "{}",
        target.reason
    );
    assert!(
        target
            .elf
            .unwrap()
            .needed
            .iter()
            .any(|n| n.starts_with("libc.so"))
    );
}

#[test]
fn chains_of_scripts() {
    let dir = tempfile::tempdir().unwrap();
    let mut last = program(dir.path(), "0", "#!/bin/sh -e\n");
    for level in 1..MAX_SCRIPTS {
        last = program(
            dir.path(),
            &level.to_string(),
            &format!("#!{}\n", last.display()),
        );
    }
    let target = inspect(&last);
    assert_eq!(target.scripts.len(), MAX_SCRIPTS);
    assert_eq!(target.executable, Path::new("/bin/sh"));
    assert_eq!(target.verdict, Verdict::WorksIfItLoadsCuda);

    let itself = dir.path().join("itself");
    program(dir.path(), "itself", &format!("#!{}\n", itself.display()));
    assert_eq!(inspect(&itself).verdict, Verdict::Impossible);

    let lost = program(dir.path(), "lost", "#!/no/such/interpreter\n");
    assert_eq!(inspect(&lost).verdict, Verdict::Impossible);
}

#[test]
fn env_names_the_interpreter() {
    let dir = tempfile::tempdir().unwrap();
    let script = program(dir.path(), "s", "#!/usr/bin/env -S A=1 sh -e\n");
    let target = inspect(&script);
    assert!(target.executable.ends_with("sh"), "{target:?}");
}
