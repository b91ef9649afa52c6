//! `greenboost inspect`: what is known about a program, and what follows from it.

use crate::cli::InspectArgs;
use crate::target::{self, CudaLink, FoundBy, Linking, Target, Verdict};
use crate::voice::print;

/// Exit status for a program that cannot be served.
const IMPOSSIBLE: u8 = 2;

/// Prints it.
pub fn inspect(args: &InspectArgs) -> anyhow::Result<u8> {
    let path = match target::find(&args.program) {
        Ok(path) => path,
        Err(unrunnable) => anyhow::bail!("{}", unrunnable.reason),
    };
    let target = target::inspect_in_full(&path);
    let text = if args.json {
        let mut document = serde_json::to_value(&target)?;
        document["v"] = 1.into();
        serde_json::to_string_pretty(&document)? + "\n"
    } else {
        describe(&target)
    };
    print(&text)?;
    Ok(match target.verdict {
        Verdict::Impossible => IMPOSSIBLE,
        Verdict::Works | Verdict::WorksIfItLoadsCuda => 0,
    })
}

fn describe(target: &Target) -> String {
    let mut rows: Vec<(&str, String)> = vec![("program", target.program.display().to_string())];
    for script in &target.scripts {
        let line = match script.line.as_str() {
            "" => "a script without a first line for the kernel".to_string(),
            line => format!("a script, #!{line}"),
        };
        rows.push(("is", line));
        rows.push(("run by", script.interpreter.display().to_string()));
    }
    if target.executable != target.program {
        rows.push(("executes", target.executable.display().to_string()));
    }
    if let Some(elf) = &target.elf {
        let linking = match elf.linking {
            Linking::Dynamic => "dynamically linked",
            Linking::Static => "statically linked",
            Linking::StaticPie => "statically linked, position-independent",
            Linking::Loader => "a dynamic loader",
        };
        let libc = elf
            .libc
            .as_deref()
            .map(|l| format!(", {l}"))
            .unwrap_or_default();
        rows.push(("kind", format!("{}{libc}, {linking}", elf.arch)));
        if let Some(interpreter) = &elf.interpreter {
            rows.push(("loader", interpreter.clone()));
        }
        for link in &elf.cuda {
            let sign = match (link, &elf.static_runtime_by) {
                (CudaLink::StaticRuntime, Some(sign)) => format!(" ({sign})"),
                _ => String::new(),
            };
            rows.push(("cuda", link.describe() + &sign));
        }
        if target.libraries.is_empty() {
            // The loader's own view is not to be had; the names are.
            rows.extend(elf.needed.iter().map(|name| ("needs", name.clone())));
        }
    }
    if !target.kernels.is_empty() {
        rows.push(("kernels", target.kernels.join(", ")));
    }
    rows.extend(libraries(target));
    rows.extend(python(target));
    rows.push((
        "verdict",
        format!("{}: {}", target.verdict.word(), target.reason),
    ));
    rows.iter()
        .map(|(name, value)| format!("{name:<9}{value}\n"))
        .collect()
}

/// The libraries that it is started with: where each is, and what it has to do with CUDA.
fn libraries(target: &Target) -> Vec<(&'static str, String)> {
    let mut rows = Vec::new();
    for library in &target.libraries {
        let by = match library.found_by {
            Some(FoundBy::Default | FoundBy::Cache | FoundBy::Name) | None => String::new(),
            Some(by) => format!(" by {}", by.word()),
        };
        match &library.path {
            Some(path) => {
                let name = &library.name;
                rows.push(("needs", format!("{name} => {}{by}", path.display())));
            }
            None => rows.push((
                "missing",
                format!("{}, which {} needs", library.name, library.needed_by),
            )),
        }
        if library.cuda == Some(CudaLink::StaticRuntime) {
            rows.push((
                "cuda",
                format!("{} has the CUDA runtime built in", library.name),
            ));
        } else if library.cuda.is_some() {
            rows.push((
                "cuda",
                format!("{} needs {}", library.needed_by, library.name),
            ));
        }
        if !library.kernels.is_empty() {
            rows.push((
                "kernels",
                format!("{}: {}", library.name, library.kernels.join(", ")),
            ));
        }
    }
    rows
}

fn python(target: &Target) -> Vec<(&'static str, String)> {
    let Some(python) = &target.python else {
        return Vec::new();
    };
    let mut rows = vec![("python", python.interpreter.display().to_string())];
    rows.extend(
        python
            .packages
            .iter()
            .map(|dir| ("imports", dir.display().to_string())),
    );
    if let Some(torch) = &python.torch {
        let cuda = match &torch.cuda {
            Some(cuda) => format!("for CUDA {cuda}"),
            None => "without CUDA".into(),
        };
        rows.push(("torch", format!("{}, built {cuda}", torch.version)));
    }
    rows.extend(
        python
            .others
            .iter()
            .map(|package| ("package", package.clone())),
    );
    rows
}
