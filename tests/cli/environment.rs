//! Where each test lives: nothing of the user's, nothing left behind.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The binary under test.
pub const GREENBOOST: &str = env!("CARGO_BIN_EXE_greenboost");

/// A home, a runtime directory and a place for files.
pub struct TestEnv {
    root: tempfile::TempDir,
}

impl TestEnv {
    pub fn new() -> TestEnv {
        // A short path, because a Unix socket goes into it.
        let root = tempfile::Builder::new()
            .prefix("gb")
            .tempdir_in("/tmp")
            .unwrap();
        for dir in ["home", "run", "work"] {
            fs::create_dir(root.path().join(dir)).unwrap();
        }
        TestEnv { root }
    }

    pub fn home(&self) -> PathBuf {
        self.root.path().join("home")
    }

    pub fn runtime(&self) -> PathBuf {
        self.root.path().join("run")
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.root.path().join("work").join(name)
    }

    /// Any program, in this environment.
    pub fn program(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        for (name, _) in std::env::vars_os() {
            let name = name.to_string_lossy();
            if ["GREENBOOST", "FAKE_CUDA", "XDG_", "LD_"]
                .iter()
                .any(|p| name.starts_with(p))
            {
                command.env_remove(&*name);
            }
        }
        command
            .env("HOME", self.home())
            .env("XDG_RUNTIME_DIR", self.runtime())
            .current_dir(self.root.path().join("work"));
        command
    }

    /// `greenboost WORDS...`
    pub fn greenboost<I: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = I>) -> Command {
        let mut command = self.program(GREENBOOST);
        command.args(words);
        command
    }

    /// `greenboost run -- sh -c SCRIPT`
    pub fn run_script(&self, script: &str) -> Command {
        self.greenboost(["run", "--", "sh", "-c", script])
    }

    /// An executable file with this content.
    pub fn executable(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.file(name);
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    /// The simulated driver's directory, for LD_LIBRARY_PATH.
    pub fn simulated_driver(&self) -> PathBuf {
        // `selftest` extracts it; the quickest way to make it do so is a run that is refused.
        let mut command = self.greenboost(["selftest", "--simulated", "--json"]);
        command.env("GREENBOOST_RAM_LIMIT", "refused");
        let _ = command.output().unwrap();
        let found = find(&self.home().join(".cache/greenboost"), "libcuda.so.1");
        found
            .expect("the driver was extracted")
            .parent()
            .unwrap()
            .to_path_buf()
    }
}

/// A file of this name somewhere under a directory.
pub fn find(dir: &Path, name: &str) -> Option<PathBuf> {
    for entry in fs::read_dir(dir).ok()? {
        let path = entry.ok()?.path();
        if path.file_name() == Some(OsStr::new(name)) {
            return Some(path);
        }
        if let Some(found) = path.is_dir().then(|| find(&path, name)).flatten() {
            return Some(found);
        }
    }
    None
}

pub fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Runs it and checks the exit status; shows everything when that is another.
#[track_caller]
pub fn expect(command: &mut Command, status: i32) -> Output {
    let output = command.output().unwrap();
    assert_eq!(
        output.status.code(),
        Some(status),
        "{command:?}\n--- stdout\n{}--- stderr\n{}",
        stdout(&output),
        stderr(&output)
    );
    output
}

/// Compiles C; whoever builds this has a compiler, because Rust links with it.
#[track_caller]
pub fn cc(source: &str, flags: &[&str], out: &Path) {
    let file = out.with_extension("c");
    fs::write(&file, source).unwrap();
    let mut command = Command::new("cc");
    command.arg("-o").arg(out).arg(&file).args(flags);
    expect(&mut command, 0);
}
