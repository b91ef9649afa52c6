//! A Python interpreter, and what it would import that uses CUDA. Found by looking at files, without running it.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;

/// Packages that use CUDA, by the beginning of their metadata's name.
const USES_CUDA: [&str; 9] = [
    "cupy",
    "jax_cuda",
    "tensorflow-",
    "vllm-",
    "llama_cpp_python-",
    "onnxruntime_gpu-",
    "paddlepaddle_gpu-",
    "ctranslate2-",
    "numba_cuda-",
];

/// What is known about one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Python {
    /// The interpreter.
    pub interpreter: PathBuf,
    /// Where it imports from, as far as that can be seen.
    pub packages: Vec<PathBuf>,
    /// PyTorch.
    pub torch: Option<Torch>,
    /// Other packages that use CUDA, with their versions.
    pub others: Vec<String>,
}

/// An installed PyTorch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Torch {
    /// Its version.
    pub version: String,
    /// The CUDA that it was built for; `None`: for none.
    pub cuda: Option<String>,
    /// Where it is.
    pub path: PathBuf,
}

impl Python {
    /// Looks around an interpreter.
    pub fn of(interpreter: &Path) -> Python {
        let interpreter = behind_shim(interpreter).unwrap_or_else(|| interpreter.to_path_buf());
        let packages = packages(&interpreter);
        Python {
            torch: packages.iter().find_map(|dir| torch(dir)),
            others: others(&packages),
            interpreter,
            packages,
        }
    }

    /// Half a sentence about where CUDA comes from.
    pub fn describe(&self) -> String {
        match (&self.torch, self.others.first()) {
            (
                Some(Torch {
                    version,
                    cuda: Some(cuda),
                    ..
                }),
                _,
            ) => {
                format!("it is Python with torch {version}, built for CUDA {cuda}")
            }
            (_, Some(other)) => format!("it is Python with {other}"),
            (
                Some(Torch {
                    version,
                    cuda: None,
                    ..
                }),
                None,
            ) => {
                format!("it is Python with torch {version}, which was built without CUDA")
            }
            (None, None) => "it is Python: CUDA comes with the modules that it imports".into(),
        }
    }
}

/// The interpreter that a pyenv shim (a shell script) would start by default.
fn behind_shim(path: &Path) -> Option<PathBuf> {
    let dir = path.parent().filter(|dir| dir.ends_with("shims"))?;
    let root = dir.parent()?;
    let version =
        std::env::var("PYENV_VERSION").or_else(|_| fs::read_to_string(root.join("version")));
    let version = version.ok()?;
    let version = version.split([':', '\n']).next()?.trim();
    let real = root
        .join("versions")
        .join(version)
        .join("bin")
        .join(path.file_name()?);
    real.is_file().then_some(real)
}

/// The directories that it imports from: of its virtual environment, of the user, of the installation.
fn packages(interpreter: &Path) -> Vec<PathBuf> {
    let real = fs::canonicalize(interpreter).unwrap_or_else(|_| interpreter.to_path_buf());
    let version = real.file_name().and_then(|name| {
        let name = name.to_str()?;
        name.starts_with("python3.").then(|| name.to_string())
    });
    let prefix = |path: &Path| Some(path.parent()?.parent()?.to_path_buf());
    let mut prefixes: Vec<PathBuf> = prefix(interpreter).into_iter().collect();
    let settings = prefixes
        .first()
        .and_then(|own| fs::read_to_string(own.join("pyvenv.cfg")).ok());
    let is_alone = settings.as_ref().is_some_and(|text| {
        !text.lines().any(|line| {
            line.split_once('=').is_some_and(|(k, v)| {
                k.trim() == "include-system-site-packages" && v.trim() == "true"
            })
        })
    });
    if !is_alone {
        prefixes.extend(std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".local")));
        prefixes.extend(prefix(&real));
        if prefixes.contains(&PathBuf::from("/usr")) {
            prefixes.push("/usr/local".into());
        }
    }
    let mut dirs: Vec<PathBuf> = std::env::var_os("PYTHONPATH")
        .map(|path| {
            std::env::split_paths(&path)
                .filter(|p| p.is_dir())
                .collect()
        })
        .unwrap_or_default();
    for prefix in prefixes {
        for lib in ["lib", "lib64"] {
            let mut versions: Vec<PathBuf> = fs::read_dir(prefix.join(lib))
                .into_iter()
                .flatten()
                .flatten()
                .map(|entry| entry.path())
                .filter(|path| {
                    let name = path.file_name().unwrap_or_default().to_string_lossy();
                    name == "python3"
                        || version
                            .as_ref()
                            .map_or(name.starts_with("python3."), |v| name == *v)
                })
                .collect();
            versions.sort();
            for dir in versions {
                dirs.extend(
                    ["site-packages", "dist-packages"]
                        .map(|d| dir.join(d))
                        .into_iter()
                        .filter(|d| d.is_dir()),
                );
            }
        }
    }
    let mut seen = std::collections::HashSet::new();
    dirs.retain(|dir| seen.insert(fs::canonicalize(dir).unwrap_or_else(|_| dir.clone())));
    dirs
}

/// `torch/version.py` is written when it is built, one setting a line.
fn torch(packages: &Path) -> Option<Torch> {
    let path = packages.join("torch");
    let text = fs::read_to_string(path.join("version.py")).ok()?;
    let value = |name: &str| {
        text.lines().find_map(|line| {
            let (left, right) = line.split_once('=')?;
            let left = left.split(':').next()?.trim();
            (left == name).then(|| right.trim().trim_matches(['\'', '"']).to_string())
        })
    };
    Some(Torch {
        version: value("__version__")?,
        cuda: value("cuda").filter(|cuda| cuda != "None"),
        path,
    })
}

fn others(packages: &[PathBuf]) -> Vec<String> {
    let mut names: Vec<String> = packages
        .iter()
        .flat_map(|dir| fs::read_dir(dir).into_iter().flatten().flatten())
        .filter_map(|entry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            let name = name.strip_suffix(".dist-info")?;
            let known = USES_CUDA.iter().any(|package| name.starts_with(package));
            known.then(|| name.replacen('-', " ", 1))
        })
        .collect();
    names.sort();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(root: &Path, name: &str, text: &str) -> PathBuf {
        let path = root.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        path
    }

    const VERSION: &str = "from typing import Optional\n\n__all__ = ['__version__', 'cuda']\n\
        __version__ = '2.4.0+cu121'\ndebug = False\ncuda: Optional[str] = '12.1'\nhip: Optional[str] = None\n";

    #[test]
    fn a_virtual_environment() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        let python = file(root, "venv/bin/python3", "");
        file(
            root,
            "venv/pyvenv.cfg",
            "home = /usr/bin\ninclude-system-site-packages = false\n",
        );
        let packages = "venv/lib/python3.11/site-packages";
        file(root, &format!("{packages}/torch/version.py"), VERSION);
        file(
            root,
            &format!("{packages}/cupy_cuda12x-13.2.0.dist-info/METADATA"),
            "",
        );
        file(
            root,
            &format!("{packages}/numpy-2.0.dist-info/METADATA"),
            "",
        );
        let found = Python::of(&python);
        assert_eq!(found.packages, [root.join(packages)]);
        let torch = found.torch.clone().unwrap();
        assert_eq!(
            (torch.version.as_str(), torch.cuda.as_deref()),
            ("2.4.0+cu121", Some("12.1"))
        );
        assert_eq!(found.others, ["cupy_cuda12x 13.2.0"]);
        assert_eq!(
            found.describe(),
            "it is Python with torch 2.4.0+cu121, built for CUDA 12.1"
        );
    }

    #[test]
    fn without_cuda_or_behind_a_shim() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        file(root, "version", "3.11.7\n");
        let shim = file(root, "shims/python3", "#!/bin/sh\n");
        let real = file(root, "versions/3.11.7/bin/python3", "");
        let text = VERSION.replace("'12.1'", "None").replace("+cu121", "+cpu");
        file(
            root,
            "versions/3.11.7/lib/python3.11/site-packages/torch/version.py",
            &text,
        );
        let found = Python::of(&shim);
        assert_eq!(found.interpreter, real);
        assert!(
            found
                .describe()
                .ends_with("torch 2.4.0+cpu, which was built without CUDA")
        );
        let none = Python::of(Path::new("/no/such/python3"));
        assert!(none.describe().contains("the modules that it imports"));
    }
}
