//! Builds the shim and the simulated driver, so that the launcher can embed them: `cargo build` is the whole build.
//!
//! Both are libraries of this workspace. They are built by one nested cargo in a target directory of its own (the outer
//! cargo holds the lock of the other), with a profile and target of their own (the shim must unwind, and the outer
//! profile may not), and without what the outer cargo says to this script (it would be taken for the user's wishes).
//!
//! `GREENBOOST_SHIM=path` and `GREENBOOST_FAKE_CUDA=path` name libraries that were built elsewhere, for packagers.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use sha2::{Digest, Sha256};

/// Package, library file, variable that names a ready-made one.
const EMBEDDED: [(&str, &str, &str); 2] = [
    (
        "greenboost-shim",
        "libgreenboost_shim.so",
        "GREENBOOST_SHIM",
    ),
    (
        "greenboost-fake-cuda",
        "libfake_cuda.so",
        "GREENBOOST_FAKE_CUDA",
    ),
];

fn main() {
    // Sources only: tests beside them change nothing here.
    for path in [
        "Cargo.toml",
        "Cargo.lock",
        "src/build.rs",
        "shim/Cargo.toml",
        "shim/src",
        "shim/symbols.txt",
        "shim/abi",
        "shim/wire",
        "assets/shim.ptx",
        "tests/fake-cuda/Cargo.toml",
        "tests/fake-cuda/src",
    ] {
        println!("cargo::rerun-if-changed={path}");
    }
    for (_, _, preset) in EMBEDDED {
        println!("cargo::rerun-if-env-changed={preset}");
    }
    let os = var("CARGO_CFG_TARGET_OS");
    assert!(
        os == "linux",
        "greenboost preloads a library into Linux programs; it cannot be built for {os}"
    );

    let missing: Vec<&str> = EMBEDDED
        .iter()
        .filter(|(_, _, preset)| env::var_os(preset).is_none())
        .map(|(package, _, _)| *package)
        .collect();
    let built = nested_target();
    if !missing.is_empty() {
        build(&missing, &built);
    }
    for (_, file, preset) in EMBEDDED {
        let path = match env::var_os(preset) {
            Some(path) => {
                let path = fs::canonicalize(&path)
                    .unwrap_or_else(|e| panic!("{preset}={}: {e}", path.display()));
                println!("cargo::rerun-if-changed={}", path.display());
                path
            }
            None => built.join(var("TARGET")).join("shim").join(file),
        };
        embed(preset, &path);
    }
}

/// Tells the crate where the library is, and the digest of its content.
fn embed(name: &str, path: &Path) {
    let bytes = fs::read(path).unwrap_or_else(|e| panic!("cannot read {}: {e}", path.display()));
    let digest: String = Sha256::digest(&bytes)
        .iter()
        .take(16)
        .map(|b| format!("{b:02x}"))
        .collect();
    println!("cargo::rustc-env={name}_FILE={}", path.display());
    println!("cargo::rustc-env={name}_DIGEST={digest}");
}

fn nested_target() -> PathBuf {
    PathBuf::from(var("OUT_DIR")).join("embedded")
}

fn build(packages: &[&str], target_dir: &Path) {
    let mut cargo = Command::new(var("CARGO"));
    cargo
        .env_clear()
        .envs(env::vars_os().filter(|(name, _)| !is_from_outer_cargo(name)));
    cargo
        .args(["build", "--locked", "--lib", "--profile", "shim"])
        .args(["--target", &var("TARGET")])
        .arg("--manifest-path")
        .arg(Path::new(&var("CARGO_MANIFEST_DIR")).join("Cargo.toml"))
        .arg("--target-dir")
        .arg(target_dir);
    for package in packages {
        cargo.args(["--package", package]);
    }
    let status = cargo
        .status()
        .unwrap_or_else(|e| panic!("cannot start {cargo:?}: {e}"));
    if !status.success() {
        eprintln!(
            "building {} for embedding failed ({status})",
            packages.join(" and ")
        );
        std::process::exit(1);
    }
}

/// Whether a variable was set for this script by the cargo that runs it (or by its clippy), or would move the build.
fn is_from_outer_cargo(name: &OsString) -> bool {
    let Some(name) = name.to_str() else {
        return false;
    };
    const PREFIXES: [&str; 6] = [
        "CARGO_CFG_",
        "CARGO_FEATURE_",
        "CARGO_PKG_",
        "CARGO_MANIFEST_",
        "CLIPPY_",
        "DEP_",
    ];
    const NAMES: [&str; 19] = [
        "CARGO",
        "CARGO_BUILD_BUILD_DIR",
        "CARGO_BUILD_TARGET",
        "CARGO_BUILD_TARGET_DIR",
        "CARGO_ENCODED_RUSTFLAGS",
        "CARGO_PRIMARY_PACKAGE",
        "CARGO_TARGET_DIR",
        "DEBUG",
        "HOST",
        "NUM_JOBS",
        "OPT_LEVEL",
        "OUT_DIR",
        "PROFILE",
        "RUSTC",
        "RUSTC_LINKER",
        "RUSTC_WORKSPACE_WRAPPER",
        "RUSTDOC",
        "RUSTFLAGS",
        "TARGET",
    ];
    NAMES.contains(&name) || PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

fn var(name: &str) -> String {
    env::var(name).unwrap_or_else(|_| panic!("cargo sets {name}"))
}
