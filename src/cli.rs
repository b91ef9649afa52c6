//! The command line, and nothing else: one table from which parsing, help, man pages and completions come.

use std::error::Error as _;
use std::ffi::OsString;
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Args, Parser, Subcommand, ValueEnum, ValueHint};

use crate::OWN_ERROR;
use crate::size::{self, Amount};
use crate::spill::{self, Spill};

/// Run an unmodified CUDA program with VRAM and host RAM as one GPU memory
#[derive(Debug, Parser)]
#[command(
    name = "greenboost",
    version,
    arg_required_else_help = true,
    disable_help_subcommand = true,
    after_help = "First try: greenboost doctor, then greenboost selftest"
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a program with more GPU memory than the card has
    ///
    /// Allocations that no longer fit into the VRAM limit are placed in pinned host RAM, which the GPU reads and writes
    /// over the link. The program sees one memory; nothing that it computes changes.
    Run(Box<RunArgs>),
    /// Say where a program gets CUDA from, and whether greenboost can serve it
    Inspect(InspectArgs),
    /// Say whether greenboost can work on this machine, and what would help
    ///
    /// The driver is asked by a short-lived process, and memory is mapped for real. Nothing is left behind but
    /// the library's file in the cache directory.
    Doctor(DoctorArgs),
    /// Check on this machine that spilled memory stays bit for bit right
    ///
    /// A small CUDA program is run under `greenboost run` with a VRAM limit far below what it needs. It allocates,
    /// computes and copies across the border between VRAM and host RAM, and checks every byte.
    Selftest(SelftestArgs),
    /// Show the table of running jobs, from another terminal
    ///
    /// What `greenboost run` shows below its program. `q` or Ctrl-C ends it, which means nothing to the job. When
    /// stdout is not a terminal it is shown once.
    Top(TopArgs),
    /// Change the limits of a running job
    ///
    /// New allocations keep to them at once. What is held above them goes to the next tier while the program runs: its
    /// addresses stay as they are. Says what came of it.
    Limit(LimitArgs),
    /// Send all that a running job has in VRAM to host RAM, until it uses the GPU again
    ///
    /// For a program that is idle, whose VRAM another one needs.
    Park(ParkArgs),
    /// List the running jobs: programs, processes, devices, tiers, age
    Ps(PsArgs),
    /// Measure what link, memory and disk can do here, and what spilling will cost
    ///
    /// Copies and kernels between host RAM and VRAM, mapping, pinning, host RAM, and the disk under a directory, in a
    /// file that has no name and is gone at the end, however that comes. `run` warns when its plan contradicts what was
    /// measured.
    Probe(ProbeArgs),
    /// Print the completion script of a shell
    Completions(CompletionsArgs),
    /// The program that `selftest` runs under `greenboost run`.
    #[command(name = "selftest-program", hide = true)]
    SelftestProgram {
        /// Only look whether there is a usable GPU.
        #[arg(long)]
        probe: bool,
    },
    /// The process in which `doctor` asks the driver.
    #[command(name = "doctor-program", hide = true)]
    DoctorProgram,
    /// Write man pages and completions into DIR/man and DIR/completions.
    #[command(hide = true)]
    Generate {
        /// Where to.
        dir: PathBuf,
    },
}

const RUN_USAGE: &str = "greenboost run [OPTIONS] [--] PROGRAM [ARG]...";

const RUN_NOTES: &str = "\
Sizes: K, M, G, T and KiB to TiB are powers of 1024; KB to TB are powers of 1000.

Each option may also come from the environment, as GREENBOOST_VRAM_LIMIT, GREENBOOST_RAM_LIMIT, GREENBOOST_SPILL, \
GREENBOOST_REPORT, GREENBOOST_PLACEMENT, GREENBOOST_STAGING, GREENBOOST_TRACE, GREENBOOST_JSON and GREENBOOST_STATS; the command line has precedence. GREENBOOST=off makes the \
library in the program do nothing.

Exit status: the program's own, or 128+n when signal n ended it; 125 when greenboost itself failed, 126 when PROGRAM \
cannot be executed, 127 when it was not found.";

/// `greenboost run`.
#[derive(Args, Debug, Default)]
#[command(override_usage = RUN_USAGE, after_long_help = RUN_NOTES)]
pub struct RunArgs {
    /// VRAM that the job may hold on each device: a size, or a percentage of the card [default: what is free]
    #[arg(long, value_name = "SIZE|PERCENT", env = "GREENBOOST_VRAM_LIMIT", hide_env = true,
          value_parser = size::parse)]
    pub vram_limit: Option<Amount>,

    /// Host RAM that the job may pin: a size, or a percentage of RAM [default: 75% of what is available]
    #[arg(long, value_name = "SIZE|PERCENT", env = "GREENBOOST_RAM_LIMIT", hide_env = true,
          value_parser = size::parse)]
    pub ram_limit: Option<Amount>,

    /// Where allocations go when VRAM is full: `ram`, or `off` (out of VRAM is out of memory) [default: ram]
    #[arg(long, value_name = "ram|off", env = "GREENBOOST_SPILL", hide_env = true,
          value_parser = OsStringValueParser::new().try_map(spill::parse))]
    pub spill: Option<Spill>,

    /// Memory that the program is told it has: VRAM and host RAM together, or the VRAM limit alone [default: extended]
    #[arg(
        long,
        env = "GREENBOOST_REPORT",
        hide_env = true,
        value_enum,
        hide_possible_values = true,
        value_name = "extended|physical"
    )]
    pub report: Option<ReportArg>,

    /// Who gets VRAM: what is used most, whenever it was allocated, or what comes first, unmoved [default: auto]
    #[arg(
        long,
        env = "GREENBOOST_PLACEMENT",
        hide_env = true,
        value_enum,
        hide_possible_values = true,
        value_name = "auto|first-fit"
    )]
    pub placement: Option<PlacementArg>,

    /// Copy spilled memory into VRAM ahead of its use (experimental) [default: off]
    #[arg(
        long,
        env = "GREENBOOST_STAGING",
        hide_env = true,
        value_enum,
        hide_possible_values = true,
        value_name = "auto|off"
    )]
    pub staging: Option<StagingArg>,

    /// Write what the program allocates, uses and waits for to a file, to replay placement with
    ///
    /// The first process that uses CUDA writes FILE, further ones FILE.PID.
    #[arg(long, value_name = "FILE", env = greenboost_wire::TRACE_ENV, hide_env = true,
          value_hint = ValueHint::FilePath)]
    pub trace: Option<PathBuf>,

    /// Write newline-delimited JSON records of the run to a file or an open descriptor
    ///
    /// src/json.md of the source says what is in them.
    #[arg(long, value_name = "FILE|fd:N", env = "GREENBOOST_JSON", hide_env = true,
          value_hint = ValueHint::FilePath, value_parser = OsStringValueParser::new().try_map(parse_json))]
    pub json: Option<JsonTarget>,

    /// What to show on stderr while the program runs: a `table` below its output, `lines`, or only what went wrong
    /// [default: auto]
    ///
    /// The table needs a terminal: the program then runs on a pseudo-terminal, and is hung up on should the launcher be
    /// killed. With `lines` and `off` nothing stands between the program and its terminal. `auto` is the table when
    /// stdin and stdout are no pipes and stderr is a terminal that has the keyboard, otherwise lines: one for each
    /// significant change, and one every 30 seconds.
    #[arg(
        long,
        env = "GREENBOOST_STATS",
        hide_env = true,
        value_enum,
        hide_possible_values = true,
        value_name = "auto|table|lines|off"
    )]
    pub stats: Option<Stats>,

    /// Say what was decided before the launch, and name each process that uses CUDA
    #[arg(short, long)]
    pub verbose: bool,

    /// The program and its arguments
    #[arg(required = true, trailing_var_arg = true, value_name = "PROGRAM", num_args = 1..,
          value_hint = ValueHint::CommandWithArguments)]
    pub command: Vec<OsString>,
}

/// `--report`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ReportArg {
    /// VRAM and host RAM together.
    Extended,
    /// The VRAM limit alone.
    Physical,
}

/// `--placement`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PlacementArg {
    /// By use.
    Auto,
    /// By order.
    FirstFit,
}

/// `--staging`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum StagingArg {
    /// Where it pays.
    Auto,
    /// Never.
    Off,
}

/// `--stats`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Stats {
    /// Whatever suits where stderr goes.
    #[default]
    Auto,
    /// A table below the program's output.
    Table,
    /// A line now and then.
    Lines,
    /// Only what went wrong; no summary.
    Off,
}

/// `--json` of `run`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JsonTarget {
    /// A file, created or truncated.
    File(PathBuf),
    /// A descriptor that whoever started us has opened.
    Fd(RawFd),
}

/// `greenboost inspect`.
#[derive(Args, Debug)]
#[command(after_long_help = "Exit status: 0, or 2 when greenboost cannot serve the program.")]
pub struct InspectArgs {
    /// The program: a path, or a name looked up in PATH
    #[arg(value_name = "PROGRAM", value_hint = ValueHint::CommandName)]
    pub program: OsString,
    /// Print one JSON document
    #[arg(long)]
    pub json: bool,
}

/// `greenboost doctor`.
#[derive(Args, Debug)]
#[command(after_long_help = "\
Exit status: 0 fine, 1 degraded (greenboost can do less here), 2 impossible.")]
pub struct DoctorArgs {
    /// Print one JSON document
    #[arg(long)]
    pub json: bool,
    /// How long the driver may take to answer
    #[arg(long, value_name = "SECONDS", default_value_t = 30,
          value_parser = clap::value_parser!(u32).range(1..=3600))]
    pub timeout: u32,
}

/// `greenboost selftest`.
#[derive(Args, Debug)]
#[command(after_long_help = "\
Exit status: 0 passed, 1 failed, 3 no usable GPU (with --simulated none is needed).")]
pub struct SelftestArgs {
    /// Use the embedded simulated driver: needs no GPU, and says nothing about one
    #[arg(long)]
    pub simulated: bool,
    /// Print one JSON document instead of lines
    #[arg(long)]
    pub json: bool,
}

/// `greenboost top`.
#[derive(Args, Debug)]
pub struct TopArgs {
    /// The job, as `greenboost ps` calls it, or a process of it [default: all]
    #[arg(value_name = "JOB")]
    pub job: Option<String>,
}

/// `greenboost limit`.
#[derive(Args, Debug)]
#[command(group = clap::ArgGroup::new("which").required(true).multiple(true),
          after_long_help = "\
Exit status: 0 when the job keeps to the limits, 1 when it still holds more.

From inside a job its limits can only be made narrower.")]
pub struct LimitArgs {
    /// The job, as `greenboost ps` calls it, or a process of it
    #[arg(value_name = "JOB")]
    pub job: String,
    /// VRAM that it may hold on each device: a size, or a percentage of the card
    #[arg(long, value_name = "SIZE|PERCENT", value_parser = size::parse, group = "which")]
    pub vram: Option<Amount>,
    /// Host RAM that it may pin: a size, or a percentage of RAM
    #[arg(long, value_name = "SIZE|PERCENT", value_parser = size::parse, group = "which")]
    pub ram: Option<Amount>,
    /// How long to wait until it keeps to them
    #[arg(long, value_name = "SECONDS", default_value_t = 30,
          value_parser = clap::value_parser!(u32).range(0..=3600))]
    pub timeout: u32,
    /// Print one JSON document
    #[arg(long)]
    pub json: bool,
}

/// `greenboost park`.
#[derive(Args, Debug)]
#[command(after_long_help = "\
Exit status: 0 when the job is parked, 1 when it is not, or holds much that cannot move.")]
pub struct ParkArgs {
    /// The job, as `greenboost ps` calls it, or a process of it
    #[arg(value_name = "JOB")]
    pub job: String,
    /// How long to wait until it is parked
    #[arg(long, value_name = "SECONDS", default_value_t = 30,
          value_parser = clap::value_parser!(u32).range(0..=3600))]
    pub timeout: u32,
    /// Print one JSON document
    #[arg(long)]
    pub json: bool,
}

/// `greenboost ps`.
#[derive(Args, Debug)]
pub struct PsArgs {
    /// Print one JSON document
    #[arg(long)]
    pub json: bool,
}

/// `greenboost probe`.
#[derive(Args, Debug)]
#[command(after_long_help = "\
Exit status: 0, 1 when a figure is an error of measurement or the disk gave back wrong bytes, 3 when there is no usable \
GPU (RAM and disk are measured all the same).")]
pub struct ProbeArgs {
    /// The GPU, by its number
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub device: u32,
    /// A directory whose disk is measured; may be given several times [default: the current directory]
    #[arg(long = "dir", value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub dirs: Vec<PathBuf>,
    /// Size of the file that is written there [default: 4 GiB, less where space, RAM or time are short]
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    pub size: Option<u64>,
    /// Measure less, in about 10 seconds
    #[arg(long)]
    pub quick: bool,
    /// Measure only this: the GPU with its link, host RAM, or the disk
    #[arg(
        long,
        value_enum,
        hide_possible_values = true,
        value_name = "link|ram|nvme"
    )]
    pub only: Option<Only>,
    /// A model file (GGUF or safetensors) whose speed is predicted
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub model: Option<PathBuf>,
    /// The VRAM limit for that: a size, or a percentage of the card [default: what is free]
    #[arg(long, value_name = "SIZE|PERCENT", value_parser = size::parse)]
    pub vram_limit: Option<Amount>,
    /// Write newline-delimited JSON records to a file or an open descriptor
    #[arg(long, value_name = "FILE|fd:N", value_hint = ValueHint::FilePath,
          value_parser = OsStringValueParser::new().try_map(parse_json))]
    pub json: Option<JsonTarget>,
    /// How the disk is used, instead of the best that works.
    #[arg(long, value_enum, hide = true)]
    pub io: Option<crate::probe::Method>,
}

/// `--only` of `probe`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Only {
    /// The GPU.
    Link,
    /// Host RAM.
    Ram,
    /// The disk.
    Nvme,
}

/// `greenboost completions`.
#[derive(Args, Debug)]
pub struct CompletionsArgs {
    /// The shell
    pub shell: clap_complete::Shell,
}

fn parse_bytes(text: &str) -> Result<u64, String> {
    match size::parse(text)? {
        Amount::Bytes(bytes) => Ok(bytes),
        Amount::Share(_) => Err(format!(
            "'{text}' is a percentage, and a size is needed: write a number with a unit, like 20G or 512M"
        )),
    }
}

fn parse_json(target: OsString) -> Result<JsonTarget, String> {
    const FORMS: &str = "write a file name, or fd:N for a descriptor that is open, like fd:3";
    let Some(text) = target.to_str() else {
        return Ok(JsonTarget::File(target.into()));
    };
    match text.strip_prefix("fd:").map(str::parse::<RawFd>) {
        _ if text.is_empty() => Err(format!("the file name is empty: {FORMS}")),
        _ if text == "-" => Err(format!(
            "'-' is refused, because stdout is the program's: {FORMS}"
        )),
        None => Ok(JsonTarget::File(target.into())),
        Some(Ok(fd @ 0..2)) => Err(format!(
            "'fd:{fd}' is refused, because stdin and stdout are the program's: {FORMS}"
        )),
        Some(Ok(fd @ 2..)) => Ok(JsonTarget::Fd(fd)),
        Some(_) => Err(format!("'{text}' does not name a descriptor: {FORMS}")),
    }
}

/// What `run` would be asked for here, by the environment alone.
///
/// # Errors
/// What it would say to that.
pub fn run_from_environment() -> Result<RunArgs, String> {
    match Cli::try_parse_from(["greenboost", "run", "true"]) {
        Ok(cli) => match cli.command {
            Command::Run(args) => Ok(*args),
            _ => Ok(RunArgs::default()),
        },
        Err(error) => Err(sentence(&error).unwrap_or_else(|| error.to_string())),
    }
}

/// The command line and the environment as commands and settings; or, when that cannot be or help was asked for, what
/// was to be said has been said and this is the exit status.
pub fn parse() -> Result<Cli, ExitCode> {
    Cli::try_parse().map_err(|error| match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            // A reader that has gone away (`greenboost --help | head -1`) is no error of ours.
            let _ = error.print();
            ExitCode::SUCCESS
        }
        _ => {
            match sentence(&error) {
                Some(sentence) => crate::say(&sentence),
                None => drop(error.print()),
            }
            ExitCode::from(OWN_ERROR)
        }
    })
}

/// A bad value, in one sentence: which flag, which value, what instead.
fn sentence(error: &clap::Error) -> Option<String> {
    let text = |kind| match error.get(kind) {
        Some(ContextValue::String(s)) => Some(s.clone()),
        Some(ContextValue::Strings(s)) => Some(s.join(", ")),
        _ => None,
    };
    let flag = text(ContextKind::InvalidArg)?;
    let flag = flag.split_once(' ').map_or(flag.as_str(), |(name, _)| name);
    let variable = format!(
        "GREENBOOST_{}",
        flag.trim_start_matches('-')
            .replace('-', "_")
            .to_uppercase()
    );
    let place = match std::env::var_os(&variable) {
        Some(_) => format!("{flag} (or {variable})"),
        None => flag.to_string(),
    };
    match error.kind() {
        ErrorKind::ValueValidation => Some(format!("{place}: {}", error.source()?)),
        ErrorKind::InvalidValue => {
            let value = text(ContextKind::InvalidValue)?;
            let valid = text(ContextKind::ValidValue)?;
            let problem = if value.is_empty() {
                "a value is missing".into()
            } else {
                format!("'{value}' is not a choice")
            };
            Some(format!("{place}: {problem}: use one of {valid}"))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests;
