//! The libraries inside this executable, and how they become files that a dynamic loader can map.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, Metadata, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use nix::sys::statvfs::{FsFlags, statvfs};
use nix::unistd::{Uid, User};

/// An embedded library.
pub struct Embedded {
    /// Machine that it is for, as in [`std::env::consts::ARCH`].
    pub arch: &'static str,
    /// C library that it is for: `gnu` or `musl`.
    pub libc: &'static str,
    /// Name of its file.
    pub file_name: &'static str,
    /// Digest of its content, in hexadecimal.
    pub digest: &'static str,
    /// Its content.
    pub bytes: &'static [u8],
}

const BUILT_FOR_LIBC: &str = if cfg!(target_env = "musl") {
    "musl"
} else {
    "gnu"
};

/// The shims, one for each kind of program that can be served.
static SHIMS: [Embedded; 1] = [Embedded {
    arch: std::env::consts::ARCH,
    libc: BUILT_FOR_LIBC,
    file_name: "libgreenboost_shim.so",
    digest: env!("GREENBOOST_SHIM_DIGEST"),
    bytes: include_bytes!(env!("GREENBOOST_SHIM_FILE")),
}];

/// The simulated driver, under the name by which programs look for the real one.
pub static SIMULATED_DRIVER: Embedded = Embedded {
    arch: std::env::consts::ARCH,
    libc: BUILT_FOR_LIBC,
    file_name: "libcuda.so.1",
    digest: env!("GREENBOOST_FAKE_CUDA_DIGEST"),
    bytes: include_bytes!(env!("GREENBOOST_FAKE_CUDA_FILE")),
};

/// The shim for programs of this machine and C library.
pub fn find(arch: &str, libc: &str) -> Option<&'static Embedded> {
    SHIMS.iter().find(|s| s.arch == arch && s.libc == libc)
}

/// The shim for programs like ourselves: for those whose own file does not tell.
pub fn native() -> &'static Embedded {
    &SHIMS[0]
}

/// What [`find`] can find, in words.
pub fn available() -> String {
    let names: Vec<String> = SHIMS
        .iter()
        .map(|s| format!("{} ({})", s.arch, s.libc))
        .collect();
    names.join(", ")
}

/// Puts the library into a file and returns its path; an earlier file of the same content serves again.
///
/// The user's cache directory is tried first. Where that cannot serve (not writable, mounted noexec, a name that
/// LD_PRELOAD cannot hold) other private places follow, `last_resort` at the end.
///
/// # Errors
/// When no place can serve; the message says what was wrong with each.
pub fn extract(library: &Embedded, last_resort: &Path) -> anyhow::Result<PathBuf> {
    extract_with_problems(library, last_resort).map(|(path, _)| path)
}

/// As [`extract`]; also says why better places could not serve.
///
/// # Errors
/// As [`extract`].
pub fn extract_with_problems(
    library: &Embedded,
    last_resort: &Path,
) -> anyhow::Result<(PathBuf, Vec<String>)> {
    let mut problems = Vec::new();
    for place in places(last_resort) {
        match extract_to(library, &place) {
            Ok(path) => return Ok((path, problems)),
            Err(problem) => problems.push(format!("{}: {problem:#}", place.display())),
        }
    }
    bail!(
        "no directory can hold {} ({})",
        library.file_name,
        problems.join("; ")
    )
}

/// Directories of ours to try, the best first.
fn places(last_resort: &Path) -> Vec<PathBuf> {
    let absolute = |name: &str| {
        let path = PathBuf::from(std::env::var_os(name)?);
        path.is_absolute().then_some(path)
    };
    let home = || absolute("HOME").or_else(|| Some(User::from_uid(Uid::current()).ok()??.dir));
    let cache = absolute("XDG_CACHE_HOME").or_else(|| home().map(|home| home.join(".cache")));
    let of_user = format!("greenboost-{}", Uid::effective());
    cache
        .into_iter()
        .chain(absolute("XDG_RUNTIME_DIR"))
        .map(|dir| dir.join("greenboost"))
        .chain(["/tmp", "/var/tmp", "/dev/shm"].map(|dir| Path::new(dir).join(&of_user)))
        .chain([last_resort.to_path_buf()])
        .collect()
}

fn extract_to(library: &Embedded, place: &Path) -> anyhow::Result<PathBuf> {
    if !loader_accepts(place.as_os_str()) {
        bail!("the dynamic loader cannot take a path with blanks, colons, semicolons or '$'");
    }
    private_dir(place)?;
    let dir = place.join(library.digest);
    private_dir(&dir)?;
    if statvfs(&dir)?.flags().contains(FsFlags::ST_NOEXEC) {
        bail!("mounted noexec");
    }
    let path = dir.join(library.file_name);
    if !is_intact(&path, library.bytes) {
        replace(&path, library.bytes).context("cannot write there")?;
    }
    Ok(path)
}

/// Whether LD_PRELOAD and LD_LIBRARY_PATH can hold this path: they split at blanks, colons and semicolons, and expand
/// `$ORIGIN` and its like.
fn loader_accepts(path: &OsStr) -> bool {
    !path
        .as_bytes()
        .iter()
        .any(|b| b.is_ascii_whitespace() || b":;$".contains(b))
}

/// Makes sure that a directory exists, is ours, and that nobody else can write into it.
fn private_dir(dir: &Path) -> anyhow::Result<()> {
    if let Some(parent) = dir.parent().filter(|p| !p.exists()) {
        // ~/.cache on a fresh account. Above that, a missing directory is a misconfiguration to leave alone.
        DirBuilder::new().mode(0o700).create(parent)?;
    }
    match DirBuilder::new().mode(0o700).create(dir) {
        Ok(()) => return Ok(()),
        Err(e) if e.kind() == ErrorKind::AlreadyExists => {}
        Err(e) => return Err(e.into()),
    }
    let meta = fs::symlink_metadata(dir)?;
    if !meta.is_dir() || !is_only_ours(&meta) {
        bail!("somebody else could change what is in {}", dir.display());
    }
    Ok(())
}

fn is_only_ours(meta: &Metadata) -> bool {
    meta.uid() == Uid::effective().as_raw() && meta.mode() & 0o022 == 0
}

/// Whether the file is there, ours, and holds exactly these bytes.
fn is_intact(path: &Path, bytes: &[u8]) -> bool {
    let read = || -> io::Result<bool> {
        let mut file = OpenOptions::new()
            .read(true)
            .custom_flags(nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK)
            .open(path)?;
        let meta = file.metadata()?;
        if !meta.is_file() || !is_only_ours(&meta) || meta.len() != bytes.len() as u64 {
            return Ok(false);
        }
        let mut found = Vec::with_capacity(bytes.len());
        file.read_to_end(&mut found)?;
        Ok(found == bytes)
    };
    read().unwrap_or(false)
}

/// Puts a new file in the place of whatever is there, at once and whole: another launcher may be doing the same, and a
/// program may be running from the old one.
fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(format!(
        ".{}-{:08x}",
        std::process::id(),
        crate::job::random()
    ));
    let temporary = path.with_file_name(name);
    let write = || -> io::Result<()> {
        let mut file: File = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o500)
            .open(&temporary)?;
        file.write_all(bytes)?;
        fs::rename(&temporary, path)
    };
    write().inspect_err(|_| {
        let _ = fs::remove_file(&temporary);
    })
}

/// Extracts the simulated driver, also under the name of the management library, and returns the directory.
///
/// # Errors
/// As [`extract`].
pub fn extract_simulated_driver(last_resort: &Path) -> anyhow::Result<PathBuf> {
    let path = extract(&SIMULATED_DRIVER, last_resort)?;
    let dir = path
        .parent()
        .context("a file has a directory")?
        .to_path_buf();
    let nvml = dir.join("libnvidia-ml.so.1");
    match std::os::unix::fs::symlink(SIMULATED_DRIVER.file_name, &nvml) {
        Err(e) if e.kind() != ErrorKind::AlreadyExists => {
            Err(e).with_context(|| format!("cannot create {}", nvml.display()))
        }
        _ => Ok(dir),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    const LIBRARY: Embedded = Embedded {
        arch: "x",
        libc: "y",
        file_name: "lib.so",
        digest: "0123",
        bytes: b"content",
    };

    #[test]
    fn extracted_once_and_verified() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("deep/place");
        let path = extract_to(&LIBRARY, &place).unwrap();
        let inode = fs::metadata(&path).unwrap().ino();
        assert_eq!(fs::read(&path).unwrap(), b"content");
        assert_eq!(extract_to(&LIBRARY, &place).unwrap(), path);
        assert_eq!(fs::metadata(&path).unwrap().ino(), inode, "used again");

        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(&path, "c0ntent").unwrap();
        extract_to(&LIBRARY, &place).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"content");

        fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
        extract_to(&LIBRARY, &place).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o500);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn symlinks_and_open_directories_are_not_trusted() {
        let dir = tempfile::tempdir().unwrap();
        let path = extract_to(&LIBRARY, &dir.path().join("a")).unwrap();
        let elsewhere = dir.path().join("elsewhere");
        fs::write(&elsewhere, "content").unwrap();
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink(&elsewhere, &path).unwrap();
        extract_to(&LIBRARY, &dir.path().join("a")).unwrap();
        assert!(fs::symlink_metadata(&path).unwrap().is_file());

        let open = dir.path().join("open");
        fs::create_dir(&open).unwrap();
        fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).unwrap();
        assert!(extract_to(&LIBRARY, &open).is_err());
    }

    #[test]
    fn paths_that_would_split() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["a b", "a:b", "a;b", "$ORIGIN", "a\tb"] {
            assert!(
                extract_to(&LIBRARY, &dir.path().join(name)).is_err(),
                "{name}"
            );
        }
    }
}
