//! The long look that `inspect` takes and `run` has no time for: libraries, kernels, Python's packages.

use std::path::Path;

use super::closure::{Loader, closure};
use super::dynamic::Dynamic;
use super::python::Python;
use super::{CudaLink, Linking, Target, Verdict, inspect, is_python};

/// Looks into a program and everything that it is started with.
pub fn inspect_in_full(program: &Path) -> Target {
    let mut target = inspect(program);
    let Some(elf) = &target.elf else {
        return target;
    };
    if let Some(facts) = Dynamic::read(&target.executable) {
        target.kernels = facts.kernels;
    }
    if elf.linking == Linking::Dynamic {
        let loader = Loader::of_system(&elf.arch, elf.libc.as_deref().unwrap_or("gnu"));
        target.libraries = closure(&target.executable, &loader);
    }
    target.python = std::iter::once(target.executable.as_path())
        .chain(std::iter::once(program))
        .chain(target.scripts.iter().map(|s| s.path.as_path()))
        .find(|path| is_python(path))
        .map(Python::of);
    if target.verdict == Verdict::WorksIfItLoadsCuda && !target.is_static() {
        refine(&mut target);
    }
    target
}

/// With the libraries known, the verdict may be surer.
fn refine(target: &mut Target) {
    let of_library = target.libraries.iter().find_map(|library| {
        let link = library.cuda.as_ref()?;
        Some(match link {
            CudaLink::StaticRuntime => {
                format!(
                    "it is linked with {}, which has the CUDA runtime built in",
                    library.name
                )
            }
            _ => format!(
                "it is linked with {}, which needs {}",
                library.needed_by, library.name
            ),
        })
    });
    if let Some(reason) = of_library {
        target.verdict = Verdict::Works;
        target.reason = reason;
    } else if let Some(python) = &target.python {
        target.reason = python.describe();
    }
}
