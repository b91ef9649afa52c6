//! The suite on the simulated driver: what CI runs.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The simulated driver, as cargo built it beside this test.
fn fake_cuda() -> PathBuf {
    let own = std::env::current_exe().expect("the path of this test");
    let deps = own.parent().expect("a directory");
    let places = [
        deps.join("libfake_cuda.so"),
        deps.with_file_name("libfake_cuda.so"),
    ];
    let newest = |p: &PathBuf| p.metadata().and_then(|m| m.modified()).ok();
    let found = places
        .into_iter()
        .filter(|p| p.is_file())
        .max_by_key(newest);
    found.expect("libfake_cuda.so was not built")
}

/// A directory in which it has the driver's names.
fn driver() -> PathBuf {
    let top =
        Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("conformance-{}", std::process::id()));
    std::fs::create_dir_all(&top).expect("target directory");
    for name in ["libcuda.so.1", "libnvidia-ml.so.1"] {
        std::os::unix::fs::symlink(fake_cuda(), top.join(name)).expect("symlink");
    }
    top
}

#[test]
fn the_simulated_driver_conforms() {
    let driver = driver();
    let output = Command::new(env!("CARGO_BIN_EXE_conformance"))
        .env("LD_LIBRARY_PATH", &driver)
        .env("FAKE_CUDA_VRAM", "4G")
        .env("FAKE_CUDA_DEVICES", "2")
        .env("FAKE_CUDA_SHARED", driver.join("shared"))
        .env_remove("LD_PRELOAD")
        .output()
        .expect("the suite starts");
    std::fs::remove_dir_all(&driver).expect("target directory");
    let text = String::from_utf8_lossy(&output.stdout);
    println!("{text}");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(text.contains(" 0 different, 0 skipped"));
}
