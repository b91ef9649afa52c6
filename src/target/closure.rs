//! The libraries that a program is started with, found as its dynamic loader finds them (ld.so(8)).

use std::collections::{HashSet, VecDeque};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use serde::Serialize;

use super::dynamic::Dynamic;
use super::elf::{CudaLink, cuda_link};
use super::ldcache::Cache;

/// No program that is known comes near.
const MOST: usize = 2_000;

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Library {
    /// As it is asked for.
    pub name: String,
    /// Who asked first.
    pub needed_by: String,
    /// The file; `None`: there is none, and the program will not start.
    pub path: Option<PathBuf>,
    /// What led there.
    pub found_by: Option<FoundBy>,
    /// How it comes to CUDA, if it does.
    pub cuda: Option<CudaLink>,
    /// What its CUDA kernels are for.
    pub kernels: Vec<String>,
}

/// What led to a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum FoundBy {
    /// The name is a path.
    Name,
    /// DT_RPATH of the file that asks or of those above it.
    Rpath,
    /// The variable.
    LdLibraryPath,
    /// DT_RUNPATH of the file that asks.
    Runpath,
    /// `/etc/ld.so.cache`.
    Cache,
    /// The system's directories.
    Default,
}

impl FoundBy {
    /// As the user knows it.
    pub fn word(self) -> &'static str {
        match self {
            FoundBy::Name => "its path",
            FoundBy::Rpath => "RPATH",
            FoundBy::LdLibraryPath => "LD_LIBRARY_PATH",
            FoundBy::Runpath => "RUNPATH",
            FoundBy::Cache => "ld.so.cache",
            FoundBy::Default => "default directory",
        }
    }
}

/// What the loader knows besides the files.
pub struct Loader {
    /// LD_LIBRARY_PATH.
    pub path: String,
    /// The index of libraries; musl has none.
    pub cache: Cache,
    /// Where to look last.
    pub default: Vec<PathBuf>,
}

impl Loader {
    /// That of this system, for programs of this machine and C library.
    pub fn of_system(arch: &str, libc: &str) -> Loader {
        let path = std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
        let path = path.to_string_lossy().into_owned();
        let dirs = |list: &[&str]| list.iter().map(PathBuf::from).collect();
        if libc == "musl" {
            let file = std::fs::read_to_string(format!("/etc/ld-musl-{arch}.path"));
            let list = file.unwrap_or_else(|_| "/lib:/usr/local/lib:/usr/lib".into());
            return Loader {
                path,
                cache: Cache::default(),
                default: list
                    .split([':', '\n'])
                    .filter(|d| !d.is_empty())
                    .map(PathBuf::from)
                    .collect(),
            };
        }
        Loader {
            path,
            cache: Cache::read(Path::new("/etc/ld.so.cache")),
            default: [
                vec![
                    PathBuf::from(format!("/lib/{arch}-linux-gnu")),
                    PathBuf::from(format!("/usr/lib/{arch}-linux-gnu")),
                ],
                dirs(&["/lib64", "/usr/lib64", "/lib", "/usr/lib"]),
            ]
            .concat(),
        }
    }
}

/// A file that has been loaded, and the one that asked for it.
struct Object {
    path: PathBuf,
    facts: Dynamic,
    parent: Option<Rc<Object>>,
}

/// All libraries of a program, in the order in which the loader takes them; none for a file that is not ELF.
pub fn closure(program: &Path, loader: &Loader) -> Vec<Library> {
    let Some(facts) = Dynamic::read(program) else {
        return Vec::new();
    };
    let program = Rc::new(Object {
        path: program.to_path_buf(),
        facts,
        parent: None,
    });
    let mut libraries = Vec::new();
    let mut seen: HashSet<String> = HashSet::new();
    let mut waiting = VecDeque::from([program]);
    while let Some(object) = waiting.pop_front() {
        for name in &object.facts.needed {
            if libraries.len() >= MOST || !seen.insert(name.clone()) {
                continue;
            }
            let found = find(name, &object, loader);
            let facts = found.as_ref().map(|(_, _, facts)| facts);
            libraries.push(Library {
                name: name.clone(),
                needed_by: file_name(&object.path),
                path: found.as_ref().map(|(path, ..)| path.clone()),
                found_by: found.as_ref().map(|(_, by, _)| *by),
                cuda: cuda_link(name).or_else(|| facts.and_then(has_runtime_inside)),
                kernels: facts.map(|f| f.kernels.clone()).unwrap_or_default(),
            });
            if let Some((path, _, facts)) = found {
                waiting.push_back(Rc::new(Object {
                    path,
                    facts,
                    parent: Some(object.clone()),
                }));
            }
        }
    }
    libraries
}

/// Kernels, and no shared runtime that would register them: then the runtime is inside.
fn has_runtime_inside(facts: &Dynamic) -> Option<CudaLink> {
    let is_shared = facts.needed.iter().any(|n| n.starts_with("libcudart.so"));
    (facts.has_kernels && !is_shared).then_some(CudaLink::StaticRuntime)
}

fn file_name(path: &Path) -> String {
    let name = path.file_name().unwrap_or(path.as_os_str());
    name.to_string_lossy().into_owned()
}

fn find(name: &str, object: &Object, loader: &Loader) -> Option<(PathBuf, FoundBy, Dynamic)> {
    let arch = &object.facts.arch;
    // The loader skips files for other machines, and so do we.
    let fitting = |path: PathBuf| {
        let facts = Dynamic::read(&path).filter(|facts| facts.arch == *arch)?;
        Some((path, facts))
    };
    let in_dirs = |dirs: Vec<PathBuf>| dirs.into_iter().find_map(|dir| fitting(dir.join(name)));
    if name.contains('/') {
        let path = PathBuf::from(expand(name, object));
        return fitting(path).map(|(path, facts)| (path, FoundBy::Name, facts));
    }
    let rpaths = || {
        let mut dirs = Vec::new();
        if object.facts.runpath.is_some() {
            return dirs;
        }
        let mut asks = Some(object);
        while let Some(object) = asks {
            if object.facts.runpath.is_none() {
                dirs.extend(split(object.facts.rpath.as_deref(), ":", object));
            }
            asks = object.parent.as_deref();
        }
        dirs
    };
    let cached = || {
        let known = loader.cache.find(name);
        known.map(Path::to_path_buf).find_map(fitting)
    };
    let is_default_wanted = !object.facts.no_default;
    let found = |by| move |(path, facts)| (path, by, facts);
    in_dirs(rpaths())
        .map(found(FoundBy::Rpath))
        .or_else(|| {
            in_dirs(split(Some(&loader.path), ":;", object)).map(found(FoundBy::LdLibraryPath))
        })
        .or_else(|| {
            let dirs = split(object.facts.runpath.as_deref(), ":", object);
            in_dirs(dirs).map(found(FoundBy::Runpath))
        })
        .or_else(|| {
            cached()
                .filter(|_| is_default_wanted)
                .map(found(FoundBy::Cache))
        })
        .or_else(|| {
            let dirs = loader.default.clone();
            in_dirs(dirs)
                .filter(|_| is_default_wanted)
                .map(found(FoundBy::Default))
        })
}

/// A list of directories, with what stands for others replaced. An empty entry is the current directory.
fn split(list: Option<&str>, separators: &str, object: &Object) -> Vec<PathBuf> {
    let Some(list) = list.filter(|list| !list.is_empty()) else {
        return Vec::new();
    };
    list.split(|c| separators.contains(c))
        .map(|dir| match dir {
            "" => PathBuf::from("."),
            dir => PathBuf::from(expand(dir, object)),
        })
        .collect()
}

/// `$ORIGIN`, `$LIB` and `$PLATFORM`, with or without braces.
fn expand(text: &str, object: &Object) -> String {
    if !text.contains('$') {
        return text.to_string();
    }
    // The loader takes the path with all links resolved only for the program itself (from the kernel).
    let real = std::fs::canonicalize(&object.path).ok();
    let path = match &object.parent {
        None => real.as_deref().unwrap_or(&object.path),
        Some(_) => &object.path,
    };
    let origin = path
        .parent()
        .unwrap_or(Path::new("/"))
        .to_string_lossy()
        .into_owned();
    let arch = &object.facts.arch;
    let multiarch = format!("lib/{arch}-linux-gnu");
    let lib = if Path::new("/").join(&multiarch).is_dir() {
        multiarch.as_str()
    } else {
        "lib64"
    };
    let mut text = text.to_string();
    for (name, value) in [
        ("ORIGIN", origin.as_str()),
        ("LIB", lib),
        ("PLATFORM", arch),
    ] {
        text = text.replace(&format!("${{{name}}}"), value);
        text = text.replace(&format!("${name}"), value);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_test_itself() {
        let own = std::env::current_exe().unwrap();
        let libc = if cfg!(target_env = "musl") {
            "musl"
        } else {
            "gnu"
        };
        let all = closure(&own, &Loader::of_system(std::env::consts::ARCH, libc));
        assert!(all.iter().any(|l| l.name.starts_with("libc.so")), "{all:?}");
        for library in &all {
            assert!(
                library.path.as_ref().is_some_and(|p| p.is_file()),
                "{library:?}"
            );
            assert_eq!(library.cuda, None);
        }
        let names: HashSet<_> = all.iter().map(|l| &l.name).collect();
        assert_eq!(names.len(), all.len(), "each once");
    }

    #[test]
    fn what_stands_for_directories() {
        let object = Object {
            path: "/opt/app/lib/libx.so".into(),
            facts: Dynamic {
                arch: "none".into(),
                ..Dynamic::default()
            },
            parent: Some(Rc::new(Object {
                path: "/opt/app/bin/x".into(),
                facts: Dynamic::default(),
                parent: None,
            })),
        };
        assert_eq!(expand("$ORIGIN/../x", &object), "/opt/app/lib/../x");
        assert_eq!(
            expand("${ORIGIN}:/$LIB/$PLATFORM", &object),
            "/opt/app/lib:/lib64/none"
        );
        let dirs = split(Some("/a::/b"), ":", &object);
        assert_eq!(dirs, ["/a", ".", "/b"].map(PathBuf::from));
        assert!(split(Some(""), ":", &object).is_empty());
    }
}
