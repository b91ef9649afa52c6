//! The program that is to run: where it is, what really executes it, where it gets CUDA from, and whether a preloaded
//! library can reach it.

mod closure;
mod dynamic;
mod elf;
mod fatbin;
mod full;
mod ldcache;
mod python;
mod script;

use std::ffi::{CString, OsStr};
use std::fs::{self, File, Metadata};
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::unistd::{AccessFlags, Uid, access};
use serde::Serialize;

pub use closure::{FoundBy, Library};
pub use elf::{CudaLink, Elf, Linking};
pub use full::inspect_in_full;
pub use python::Python;
pub use script::Script;

use crate::{OWN_ERROR, embed};

/// Scripts that may lead to each other; the kernel allows about as many.
const MAX_SCRIPTS: usize = 4;
/// Larger files are not read: a launch must not wait for that, nor need the memory.
const MAX_READ: u64 = 2 << 30;

/// A program that cannot be executed, with `env`'s exit status for it.
#[derive(Debug, PartialEq, Eq)]
pub struct Unrunnable {
    /// 126 or 127.
    pub status: u8,
    /// Why, in one sentence.
    pub reason: String,
}

/// What is known about a program before it runs.
#[derive(Debug, Serialize)]
pub struct Target {
    /// The file that was asked for.
    pub program: PathBuf,
    /// The scripts on the way to the executed file, outermost first.
    pub scripts: Vec<Script>,
    /// The file that the kernel executes in the end.
    pub executable: PathBuf,
    /// What it is, unless it could not be read.
    pub elf: Option<Elf>,
    /// What the CUDA kernels in it are for. This and the next two only after a look [in full](inspect_in_full).
    pub kernels: Vec<String>,
    /// The libraries that it is started with.
    pub libraries: Vec<Library>,
    /// The Python that it is.
    pub python: Option<Python>,
    /// What greenboost can do for it.
    pub verdict: Verdict,
    /// Why, in one sentence.
    pub reason: String,
    /// Exit status of a `run` that is refused: ours, or that of `env` where the kernel would refuse as well.
    #[serde(skip)]
    pub refused_with: u8,
}

/// What greenboost can do for a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// It uses CUDA and can be served.
    Works,
    /// It can be served; whether it uses CUDA cannot be seen from outside.
    WorksIfItLoadsCuda,
    /// It cannot be served.
    Impossible,
}

impl Verdict {
    /// As the user reads it.
    pub fn word(self) -> &'static str {
        match self {
            Verdict::Works => "works",
            Verdict::WorksIfItLoadsCuda => "works-if-it-loads-cuda",
            Verdict::Impossible => "impossible",
        }
    }
}

/// Finds a program as `execvp` would.
pub fn find(name: &OsStr) -> Result<PathBuf, Unrunnable> {
    let shown = name.display();
    let unrunnable = |status, reason: String| Unrunnable { status, reason };
    if name.as_bytes().contains(&b'/') {
        let path = Path::new(name);
        return match path.metadata() {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                Err(unrunnable(127, format!("'{shown}': there is no such file")))
            }
            Err(e) => Err(unrunnable(126, format!("'{shown}': {e}"))),
            Ok(meta) if meta.is_dir() => Err(unrunnable(126, format!("'{shown}' is a directory"))),
            Ok(_) if access(path, AccessFlags::X_OK).is_err() => Err(unrunnable(
                126,
                format!("'{shown}' is not executable (no permission)"),
            )),
            Ok(_) => Ok(path.to_path_buf()),
        };
    }
    if let Ok(path) = which::which(name) {
        return Ok(path);
    }
    let blocked = std::env::var_os("PATH").and_then(|path| {
        std::env::split_paths(&path)
            .map(|dir| dir.join(name))
            .find(|file| !name.is_empty() && file.is_file())
    });
    Err(match blocked {
        Some(file) => unrunnable(
            126,
            format!("'{}' is not executable (no permission)", file.display()),
        ),
        None => unrunnable(127, format!("'{shown}': there is no such program in PATH")),
    })
}

/// Looks into a program and everything that has to run before it.
pub fn inspect(program: &Path) -> Target {
    let mut scripts: Vec<Script> = Vec::new();
    let mut executable = program.to_path_buf();
    loop {
        let script = read_start(&executable)
            .as_deref()
            .and_then(|start| script::parse(&executable, start));
        let Some(script) = script else { break };
        let next = find(script.interpreter.as_os_str());
        scripts.push(script);
        match next {
            Ok(_) if scripts.len() > MAX_SCRIPTS => {
                let reason = format!("more than {MAX_SCRIPTS} scripts lead to each other");
                return Target::impossible(program, scripts, executable, None, (126, reason));
            }
            Ok(path) => executable = path,
            Err(e) => {
                let why = (
                    e.status,
                    format!("its interpreter cannot run: {}", e.reason),
                );
                return Target::impossible(program, scripts, executable, None, why);
            }
        }
    }
    let (elf, problem) = match read_whole(&executable) {
        Ok(bytes) => match Elf::parse(&bytes) {
            Ok(elf) => (Some(elf), None),
            Err(problem) => (None, Some(problem)),
        },
        Err(problem) => (None, Some(elf::Problem::Unknown(problem))),
    };
    if let Some(reason) = privilege(&executable) {
        return Target::impossible(program, scripts, executable, elf, (OWN_ERROR, reason));
    }
    let python = std::iter::once(executable.as_path())
        .chain(scripts.iter().map(|s| s.interpreter.as_path()))
        .any(is_python);
    let mut refused_with = OWN_ERROR;
    let (verdict, reason) = match (&elf, problem) {
        (Some(elf), _) => judge(elf, python),
        (None, Some(elf::Problem::Damaged(reason))) => {
            refused_with = 126;
            (Verdict::Impossible, reason)
        }
        (None, Some(elf::Problem::Unknown(reason))) => (Verdict::WorksIfItLoadsCuda, reason),
        (None, None) => unreachable!("a file was read or was not"),
    };
    Target {
        program: program.to_path_buf(),
        scripts,
        executable,
        elf,
        kernels: Vec::new(),
        libraries: Vec::new(),
        python: None,
        verdict,
        reason,
        refused_with,
    }
}

impl Target {
    fn impossible(
        program: &Path,
        scripts: Vec<Script>,
        executable: PathBuf,
        elf: Option<Elf>,
        (refused_with, reason): (u8, String),
    ) -> Target {
        Target {
            program: program.to_path_buf(),
            scripts,
            executable,
            elf,
            kernels: Vec::new(),
            libraries: Vec::new(),
            python: None,
            verdict: Verdict::Impossible,
            reason,
            refused_with,
        }
    }

    /// Whether the kernel would start it, served or not.
    pub fn can_start(&self) -> bool {
        self.verdict != Verdict::Impossible || self.refused_with == OWN_ERROR
    }

    /// Whether the shim cannot be in this process itself, only in those that it starts.
    pub fn is_static(&self) -> bool {
        self.elf
            .as_ref()
            .is_some_and(|e| matches!(e.linking, Linking::Static | Linking::StaticPie))
    }
}

/// The verdict over an executable that does not run with privileges.
fn judge(elf: &Elf, python: bool) -> (Verdict, String) {
    let cuda = elf.cuda.first().map(CudaLink::describe);
    match (elf.linking, &cuda) {
        (Linking::Static | Linking::StaticPie, Some(cuda)) => {
            let reason = format!("it is statically linked, so nothing can be preloaded; {cuda}");
            return (Verdict::Impossible, reason);
        }
        (Linking::Static | Linking::StaticPie, None) => {
            return (
                Verdict::WorksIfItLoadsCuda,
                "it is statically linked, so only dynamically linked programs that it starts can be served"
                    .into(),
            );
        }
        (Linking::Dynamic | Linking::Loader, _) => {}
    }
    let libc = elf.libc.as_deref().unwrap_or("unknown");
    if embed::find(&elf.arch, libc).is_none() {
        let reason = format!(
            "this greenboost has no shim for {} programs on {} ({libc}); it has one for {}",
            elf.arch,
            elf.interpreter.as_deref().unwrap_or("an unknown loader"),
            embed::available()
        );
        return (Verdict::Impossible, reason);
    }
    match cuda {
        Some(cuda) if elf.cuda.iter().all(|c| *c == CudaLink::OpensDriver) => {
            (Verdict::WorksIfItLoadsCuda, cuda)
        }
        Some(cuda) => (Verdict::Works, cuda),
        None if python => (
            Verdict::WorksIfItLoadsCuda,
            "it is Python: CUDA comes with the modules that it imports".into(),
        ),
        None => (
            Verdict::WorksIfItLoadsCuda,
            "nothing in it names CUDA; libraries that it loads and programs that it starts may use it"
                .into(),
        ),
    }
}

/// Why the dynamic loader would ignore LD_PRELOAD for this file, if it would.
fn privilege(path: &Path) -> Option<String> {
    const S_ISUID: u32 = 0o4000;
    const S_ISGID: u32 = 0o2000;
    let meta: Metadata = fs::metadata(path).ok()?;
    let name = path.display();
    let advice = "start greenboost with those rights instead";
    if meta.mode() & S_ISUID != 0 && meta.uid() != Uid::current().as_raw() {
        return Some(format!(
            "{name} is set-user-ID, and the system ignores preloaded libraries there: {advice}"
        ));
    }
    let gid = nix::unistd::getgid().as_raw();
    if meta.mode() & S_ISGID != 0 && meta.mode() & 0o010 != 0 && meta.gid() != gid {
        return Some(format!(
            "{name} is set-group-ID, and the system ignores preloaded libraries there: {advice}"
        ));
    }
    if !Uid::current().is_root() && has_capabilities(path) {
        return Some(format!(
            "{name} has file capabilities, and the system ignores preloaded libraries there: {advice}"
        ));
    }
    None
}

fn has_capabilities(path: &Path) -> bool {
    let Ok(path) = CString::new(path.as_os_str().as_bytes()) else {
        return false;
    };
    // SAFETY: both strings end in NUL and live through the call; with a size of 0 nothing is written.
    let size = unsafe {
        nix::libc::getxattr(
            path.as_ptr(),
            c"security.capability".as_ptr(),
            std::ptr::null_mut(),
            0,
        )
    };
    size > 0
}

fn is_python(path: &Path) -> bool {
    path.file_name()
        .and_then(OsStr::to_str)
        .is_some_and(|name| name.starts_with("python") || name.starts_with("pypy"))
}

/// The first bytes of a regular file, as many as the kernel looks at for a script.
fn read_start(path: &Path) -> Option<Vec<u8>> {
    if !fs::metadata(path).ok()?.is_file() {
        return None;
    }
    let mut start = Vec::new();
    File::open(path)
        .ok()?
        .take(script::KERNEL_LOOKS_AT)
        .read_to_end(&mut start)
        .ok()?;
    Some(start)
}

fn read_whole(path: &Path) -> Result<Vec<u8>, String> {
    let meta = fs::metadata(path).map_err(|e| format!("it cannot be looked at ({e})"))?;
    if !meta.is_file() {
        return Err("it is not a regular file, so it was not looked at".into());
    }
    if meta.len() > MAX_READ {
        return Err("it is too large to be looked into".into());
    }
    fs::read(path).map_err(|e| format!("it may be executed but not read ({e})"))
}

#[cfg(test)]
mod tests;
