//! Completions and man pages: made from the command line's one table.

use std::fs;
use std::path::Path;

use clap::{Command, CommandFactory, ValueEnum};
use clap_complete::Shell;

use crate::cli::Cli;
use crate::voice::print;

const NAME: &str = "greenboost";

/// The command line without its hidden commands: shells would offer them.
fn shown() -> Command {
    let all = Cli::command();
    let mut shown = Command::new(NAME).version(env!("CARGO_PKG_VERSION"));
    shown = shown
        .subcommand_required(true)
        .disable_help_subcommand(true);
    if let Some(about) = all.get_about() {
        shown = shown.about(about.clone());
    }
    if let Some(notes) = all.get_after_help() {
        shown = shown.after_help(notes.clone());
    }
    shown.subcommands(all.get_subcommands().filter(|c| !c.is_hide_set()).cloned())
}

/// Prints the completion script of a shell.
pub fn completions(shell: Shell) -> anyhow::Result<u8> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut shown(), NAME, &mut script);
    print(&String::from_utf8(script)?)?;
    Ok(0)
}

/// Writes everything that is checked in under `man/` and `completions/`.
pub fn all(dir: &Path) -> anyhow::Result<u8> {
    let completions = dir.join("completions");
    fs::create_dir_all(&completions)?;
    for shell in Shell::value_variants() {
        clap_complete::generate_to(*shell, &mut shown(), NAME, &completions)?;
    }
    let man = dir.join("man");
    fs::create_dir_all(&man)?;
    let mut top = shown();
    top.build();
    page(&top, &man)?;
    for command in top.get_subcommands() {
        page(command, &man)?;
    }
    Ok(0)
}

fn page(command: &Command, dir: &Path) -> anyhow::Result<()> {
    // No date: a page must not change when nothing in it does.
    clap_mangen::Man::new(command.clone())
        .source(format!("{NAME} {}", env!("CARGO_PKG_VERSION")))
        .manual("greenboost")
        .generate_to(dir)?;
    Ok(())
}
