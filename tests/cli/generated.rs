//! Completions and man pages are made from the command line's table and checked in.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use crate::environment::{TestEnv, expect, stdout};

fn files(dir: &Path) -> BTreeMap<String, String> {
    let mut files = BTreeMap::new();
    for sub in ["completions", "man"] {
        for entry in fs::read_dir(dir.join(sub)).unwrap() {
            let path = entry.unwrap().path();
            let name = format!("{sub}/{}", path.file_name().unwrap().display());
            files.insert(name, fs::read_to_string(path).unwrap());
        }
    }
    files
}

#[test]
fn checked_in_files_are_current() {
    let env = TestEnv::new();
    let fresh = env.file("fresh");
    expect(env.greenboost(["generate"]).arg(&fresh), 0);
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (fresh, kept) = (files(&fresh), files(root));
    let stale: Vec<_> = fresh
        .keys()
        .chain(kept.keys())
        .filter(|name| fresh.get(*name) != kept.get(*name))
        .collect();
    assert!(
        stale.is_empty(),
        "stale: {stale:?}\nrun this and check the result in: cargo run -- generate ."
    );
}

#[test]
fn every_shell_has_its_script() {
    let env = TestEnv::new();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let output = expect(&mut env.greenboost(["completions", shell]), 0);
        assert!(stdout(&output).contains("selftest"));
        assert!(
            !stdout(&output).contains("selftest-program"),
            "{shell} offers a hidden command"
        );
    }
}
