//! `greenboost run`: inspect -> plan -> extract -> launch -> watch -> summary.

mod watch;

use std::ffi::OsString;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;
use greenboost_wire::ledger::Settings;
use greenboost_wire::nvme::NVME_ENV;
use greenboost_wire::{JOB_ENV, TRACE_ENV};
use nix::sys::stat::{SFlag, fstat};
use nix::time::{ClockId, clock_gettime};

use self::watch::{Program, Watch};
use crate::announce::Announcer;
use crate::asked::Asked;
use crate::cli::{JsonTarget, RunArgs, Stats};
use crate::job::{self, Job};
use crate::json::{self, Sink};
use crate::launch::{self, Launch, Signals};
use crate::link::Links;
use crate::machine::Machine;
use crate::plan::{self, Plan};
use crate::screen::{Screen, Terminal};
use crate::snapshot::Snapshot;
use crate::spill::{self, Spill};
use crate::summary::Means;
use crate::table::{self, Style};
use crate::target::{self, Target, Verdict};
use crate::traffic::Meter;
use crate::{embed, probe, reach, say};

/// Runs the program; its exit status becomes ours.
pub fn run(args: &RunArgs) -> anyhow::Result<u8> {
    let program = args.command.first().context("no program to run")?;
    let path = match target::find(program) {
        Ok(path) => path,
        Err(unrunnable) => {
            say(&unrunnable.reason);
            return Ok(unrunnable.status);
        }
    };
    let target = target::inspect(&path);
    match reach::advice(&args.command, &path) {
        // What was found in the file of sudo or docker says nothing about the program.
        Some(advice) if target.can_start() => say(&advice),
        _ => {
            if let Some(status) = refusal(&target) {
                return Ok(status);
            }
        }
    }
    if let Some((dir, ledger)) = job::outer() {
        return join(args, &path, &dir, &ledger.settings());
    }

    let plan = Plan::new(args, &Machine::look());
    let disk = match &args.spill {
        Some(Spill::Nvme(nvme)) => Some(spill::prepare(nvme)?),
        _ => None,
    };
    let notes = disk.iter().flat_map(|disk| &disk.note);
    for note in plan.notes.iter().chain(notes) {
        say(note);
    }
    let dirs = disk.iter().map(|disk| (disk.nvme.dir.clone(), disk.bytes));
    if let Some(warning) = probe::warning(&plan.settings, &Vec::from_iter(dirs)) {
        say(&warning);
    }
    let sink = match &args.json {
        Some(target) => Sink::open(target)?,
        None => Sink::none(),
    };
    let trace = args.trace.as_deref().map(trace_file).transpose()?;
    let signals = Signals::take().context("cannot receive signals")?;
    let job = Job::create(plan.settings)?;
    let shim = embed::extract(shim_for(&target), &job.dir().join("shim"))?;
    if args.verbose {
        say(&format!("{}: {}", target.verdict.word(), target.reason));
        say(&plan::describe(&plan.settings));
        say(&format!("preloading {}", shim.display()));
    }
    let mut env = vec![(JOB_ENV, job.dir().into()), (PRELOAD, preload(&shim))];
    env.extend(trace.map(|file| (TRACE_ENV, file.into())));
    env.extend(disk.map(|disk| (NVME_ENV, disk.nvme.encode())));
    let launch = Launch {
        path: &path,
        command: &args.command,
        env,
    };
    if let Some(signal) = signals.fatal() {
        return Ok(128 + signal);
    }
    let stats = args.stats.unwrap_or_default();
    let terminal = for_table(stats, args.json.as_ref());
    let started = Instant::now();
    let clock = monotonic();
    let child = match terminal {
        Some(terminal) => {
            Screen::start(&launch, signals, terminal).map(|s| Program::Below(s.into()))
        }
        None => launch.start(signals).map(Program::Direct),
    };
    let child = match child {
        Ok(child) => child,
        Err(error) => return Ok(cannot_start(program, &error)),
    };
    job::share::raise_limit();
    job.describe(&args.command, child.pid().as_raw());
    let mut watch = Watch {
        announcer: Announcer::new(stats, args.verbose, &plan.settings),
        stats,
        style: Style::of_environment(),
        links: Links::default(),
        means: Means::default(),
        sink,
        asked: Asked::default(),
        meter: Meter::default(),
        native: None,
        measured: probe::measured(),
        job,
        started,
        clock,
        last: Snapshot::default(),
        last_line: Snapshot::default(),
    };
    let fields = json::start(&target, &args.command, child.pid().as_raw(), &plan.settings);
    watch.sink.write("start", 0.0, fields);
    let (status, snapshot) = watch.until_the_end(child);
    watch.summarise(&target, program, status, &snapshot);
    Ok(launch::exit_code(status))
}

/// The terminal for the table, if there is to be one.
fn for_table(stats: Stats, json: Option<&JsonTarget>) -> Option<Terminal> {
    // Whoever is at the other end of a pipe may want the keyboard (a pager), or writes to the terminal itself.
    let is_piped = |fd: BorrowedFd| {
        let kind = fstat(fd).map_or(0, |s| s.st_mode) & SFlag::S_IFMT.bits();
        kind == SFlag::S_IFIFO.bits() || kind == SFlag::S_IFSOCK.bits()
    };
    let (stdin, stdout) = (std::io::stdin(), std::io::stdout());
    let wanted = match stats {
        // Records on stderr would be written across it.
        _ if json == Some(&JsonTarget::Fd(2)) => false,
        Stats::Table => true,
        Stats::Auto => {
            table::has_a_terminal() && !is_piped(stdin.as_fd()) && !is_piped(stdout.as_fd())
        }
        Stats::Lines | Stats::Off => false,
    };
    let terminal = wanted.then(Terminal::open).flatten();
    if stats == Stats::Table && terminal.is_none() {
        say(
            "no table: stderr is not a terminal that has the keyboard, or has the records; lines instead",
        );
    }
    terminal
}

/// Where the trace goes, as the program's processes are told it: they may be in other directories.
fn trace_file(file: &Path) -> anyhow::Result<PathBuf> {
    let file = std::path::absolute(file).with_context(|| format!("--trace {}", file.display()))?;
    let is_possible = !file.is_dir() && file.parent().is_some_and(Path::is_dir);
    anyhow::ensure!(
        is_possible,
        "--trace: '{}' cannot be written: write the name of a file in a directory that exists",
        file.display()
    );
    Ok(file)
}

const PRELOAD: &str = "LD_PRELOAD";

fn preload(shim: &Path) -> OsString {
    launch::preload(shim, std::env::var_os(PRELOAD).as_deref())
}

fn shim_for(target: &Target) -> &'static embed::Embedded {
    let elf = target.elf.as_ref();
    elf.and_then(|elf| embed::find(&elf.arch, elf.libc.as_deref()?))
        .unwrap_or_else(embed::native)
}

/// Refuses what cannot work, with this exit status, and warns of what may disappoint.
fn refusal(target: &Target) -> Option<u8> {
    let is_refused = target.verdict == Verdict::Impossible;
    if is_refused || target.is_static() {
        say(&format!("{}: {}", target.program.display(), target.reason));
    }
    is_refused.then_some(target.refused_with)
}

/// What `execve` said, as a sentence and a status.
fn cannot_start(program: &OsString, error: &std::io::Error) -> u8 {
    say(&format!(
        "'{}' cannot be executed: {error}",
        program.display()
    ));
    match error.kind() {
        std::io::ErrorKind::NotFound => 127,
        _ => 126,
    }
}

/// A `run` inside a job: the program becomes one more process of it. The outer launcher watches and sums up.
fn join(args: &RunArgs, path: &Path, dir: &Path, settings: &Settings) -> anyhow::Result<u8> {
    let lost = plan::narrower_than(args, settings);
    if !lost.is_empty() {
        say(&format!(
            "inside another greenboost run, its limits hold ({}); {} cannot narrow them here",
            plan::describe(settings),
            lost.join(" and ")
        ));
    }
    if matches!(args.spill, Some(Spill::Nvme(_))) {
        say("inside another greenboost run, --spill nvme has no effect: the outer one decides");
    }
    if args.json.is_some() {
        say("inside another greenboost run, --json has no effect: the outer one keeps the records");
    }
    let trace = args.trace.as_deref().map(trace_file).transpose()?;
    let mut launch = Launch {
        path,
        command: &args.command,
        env: Vec::from_iter(trace.map(|file| (TRACE_ENV, file.into()))),
    };
    let inherited = std::env::var_os(PRELOAD).unwrap_or_default();
    if !inherited
        .to_string_lossy()
        .contains(embed::native().file_name)
    {
        let shim = embed::extract(embed::native(), &dir.join("shim"))?;
        launch.env.push((PRELOAD, preload(&shim)));
    }
    let error = launch.replace_us();
    Ok(cannot_start(&args.command[0], &error))
}

/// `CLOCK_MONOTONIC`, nanoseconds: the clock of the records.
pub fn monotonic() -> u64 {
    clock_gettime(ClockId::CLOCK_MONOTONIC)
        .map(|t| Duration::from(t).as_nanos() as u64)
        .unwrap_or(0)
}
