//! `greenboost inspect`: what is known about a program, and what follows from it.

use crate::cli::InspectArgs;
use crate::target::{self, Linking, Target, Verdict};
use crate::voice::print;

/// Exit status for a program that cannot be served.
const IMPOSSIBLE: u8 = 2;

/// Prints it.
pub fn inspect(args: &InspectArgs) -> anyhow::Result<u8> {
    let path = match target::find(&args.program) {
        Ok(path) => path,
        Err(unrunnable) => anyhow::bail!("{}", unrunnable.reason),
    };
    let target = target::inspect(&path);
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
        for library in &elf.needed {
            rows.push(("needs", library.clone()));
        }
        for link in &elf.cuda {
            rows.push(("cuda", link.describe()));
        }
    }
    rows.push((
        "verdict",
        format!("{}: {}", target.verdict.word(), target.reason),
    ));
    rows.iter()
        .map(|(name, value)| format!("{name:<9}{value}\n"))
        .collect()
}
