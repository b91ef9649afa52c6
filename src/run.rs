//! `greenboost run`: inspect -> plan -> extract -> launch -> watch -> summary.

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use anyhow::Context;
use greenboost_wire::ledger::Settings;
use greenboost_wire::{JOB_ENV, SWITCH_ENV};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::time::{ClockId, clock_gettime};
use serde_json::json;

use crate::announce::Announcer;
use crate::cli::{RunArgs, Stats};
use crate::job::{self, Job};
use crate::json::{self, Sink};
use crate::launch::{self, Child, Launch, Signals};
use crate::machine::Machine;
use crate::plan::{self, Plan};
use crate::summary::Snapshot;
use crate::target::{self, Target, Verdict};
use crate::voice::{count, duration};
use crate::{embed, reach, say};

/// How often the ledger is looked at.
const BEAT: Duration = Duration::from_secs(1);
/// The first look after a process hung up; later ones come at a slower and slower pace, until it is the beat again.
const SOON: Duration = Duration::from_millis(20);
/// How often a line says what is held.
const LINE_EVERY: Duration = Duration::from_secs(30);

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
    for note in &plan.notes {
        say(note);
    }
    let sink = match &args.json {
        Some(target) => Sink::open(target)?,
        None => Sink::none(),
    };
    let signals = Signals::take().context("cannot receive signals")?;
    let job = Job::create(plan.settings)?;
    let shim = embed::extract(shim_for(&target), &job.dir().join("shim"))?;
    if args.verbose {
        say(&format!("{}: {}", target.verdict.word(), target.reason));
        say(&plan::describe(&plan.settings));
        say(&format!("preloading {}", shim.display()));
    }
    let launch = Launch {
        path: &path,
        command: &args.command,
        env: vec![(JOB_ENV, job.dir().into()), (PRELOAD, preload(&shim))],
    };
    if let Some(signal) = signals.fatal() {
        return Ok(128 + signal);
    }
    let started = Instant::now();
    let clock = monotonic();
    let child = match launch.start(signals) {
        Ok(child) => child,
        Err(error) => return Ok(cannot_start(program, &error)),
    };
    let mut watch = Watch {
        announcer: Announcer::new(
            args.stats.unwrap_or_default(),
            args.verbose,
            plan.settings.vram_limit,
        ),
        stats: args.stats.unwrap_or_default(),
        sink,
        job,
        started,
        clock,
        last: Snapshot::default(),
    };
    let fields = json::start(&target, &args.command, child.pid().as_raw(), &plan.settings);
    watch.sink.write("start", 0.0, fields);
    let (status, snapshot) = watch.until_the_end(child);
    watch.summarise(&target, program, status, &snapshot);
    Ok(launch::exit_code(status))
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
    if args.json.is_some() {
        say("inside another greenboost run, --json has no effect: the outer one keeps the records");
    }
    let mut launch = Launch {
        path,
        command: &args.command,
        env: Vec::new(),
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

/// What is in motion while the program runs.
struct Watch {
    announcer: Announcer,
    stats: Stats,
    sink: Sink,
    job: Job,
    started: Instant,
    /// `CLOCK_MONOTONIC` at the launch, nanoseconds: the clock of the records.
    clock: u64,
    last: Snapshot,
}

impl Watch {
    /// Listens until the program has ended; returns its status and what was held then.
    fn until_the_end(&mut self, mut child: Child) -> (ExitStatus, Snapshot) {
        let mut next_line = LINE_EVERY;
        let mut next_beat = BEAT;
        let mut pace = BEAT;
        loop {
            let now = self.started.elapsed();
            let timeout = next_beat.saturating_sub(now);
            let mut fds: Vec<PollFd> = std::iter::once(child.descriptor())
                .chain(self.job.descriptors())
                .map(|fd| PollFd::new(fd, PollFlags::POLLIN))
                .collect();
            // Rounded up: a timeout of 0.3 ms must not become a busy loop.
            let timeout = PollTimeout::try_from(timeout + Duration::from_millis(1));
            let _ = poll(&mut fds, timeout.unwrap_or(PollTimeout::ZERO));
            drop(fds);

            if let Some(status) = child.attend() {
                let held = Snapshot::take(&self.job.ledger);
                self.listen();
                return (status, held);
            }
            self.listen();
            let now = self.started.elapsed();
            // What a process held that has just ended must not wait for the beat. Ending takes it a moment after it hung up.
            if std::mem::take(&mut self.job.hung_up) {
                pace = SOON;
                next_beat = next_beat.min(now + pace);
            }
            if now < next_beat {
                continue;
            }
            pace = (pace * 3).min(BEAT);
            next_beat = now + pace;
            let snapshot = Snapshot::take(&self.job.ledger);
            self.beat(&snapshot);
            if now >= next_line {
                next_line = now + LINE_EVERY;
                if self.stats != Stats::Off && !snapshot.devices.is_empty() {
                    say(&snapshot.line(now));
                }
            }
            // What dead processes held is free again. Not what the program itself held when it ended: that is the
            // summary's, so if it has ended between our two looks, the earlier one counts.
            self.job.ledger.reap();
            if let Some(status) = child.attend() {
                self.listen();
                return (status, snapshot);
            }
        }
    }

    /// Hears what the processes of the job have to say.
    fn listen(&mut self) {
        loop {
            let records = self.job.read();
            if records.is_empty() {
                return;
            }
            for record in records {
                let time = record.time.saturating_sub(self.clock) as f64 / 1e9;
                self.sink.record(&record, time);
                if let Some(sentence) = self.announcer.sentence(&record) {
                    say(&sentence);
                }
            }
        }
    }

    fn beat(&mut self, snapshot: &Snapshot) {
        if self.sink.is_open() && *snapshot != self.last {
            self.last = snapshot.clone();
            let time = self.started.elapsed().as_secs_f64();
            self.sink.write("snapshot", time, json::snapshot(snapshot));
        }
    }

    fn summarise(
        &mut self,
        target: &Target,
        program: &OsString,
        status: ExitStatus,
        snapshot: &Snapshot,
    ) {
        use std::os::unix::process::ExitStatusExt;
        let time = self.started.elapsed();
        let used_cuda = snapshot.cuda_processes > 0 || self.announcer.heard;
        let mut fields = json::snapshot(snapshot);
        fields["exit_code"] = json!(status.code());
        fields["signal"] = json!(status.signal());
        fields["used_cuda"] = json!(used_cuda);
        self.sink.write("summary", time.as_secs_f64(), fields);
        if self.job.strange > 0 {
            say(&format!(
                "{} of another version were not understood",
                count(self.job.strange, "record", "records")
            ));
        }
        if self.stats == Stats::Off {
            return;
        }
        let end = match (status.code(), status.signal()) {
            (Some(code), _) => format!("ended with status {code}"),
            (_, Some(signal)) => format!("was ended by {}", signal_name(signal)),
            _ => "ended".into(),
        };
        let beginning = format!("{} {end} after {}", program.display(), duration(time));
        if used_cuda && snapshot.cuda_processes == 0 {
            say(&format!("{beginning}; it used CUDA, but outside the job"));
        } else if used_cuda {
            let processes = count(snapshot.cuda_processes, "process", "processes");
            say(&format!("{beginning}; {processes} used CUDA"));
            if !snapshot.devices.is_empty() {
                say(&snapshot.summary(&self.announcer.names));
            }
        } else if std::env::var_os(SWITCH_ENV).is_some_and(|v| v == "off") {
            say(&format!(
                "{beginning}; greenboost was off ({SWITCH_ENV}=off)"
            ));
        } else if target.verdict == Verdict::Works {
            say(&format!(
                "{beginning} and never used CUDA, although {}: it found no GPU, or the shim was never loaded",
                target.reason
            ));
        } else {
            say(&format!("{beginning} and never used CUDA"));
        }
    }
}

fn signal_name(number: i32) -> String {
    match nix::sys::signal::Signal::try_from(number) {
        Ok(signal) => signal.to_string(),
        Err(_) => format!("signal {number}"),
    }
}

fn monotonic() -> u64 {
    clock_gettime(ClockId::CLOCK_MONOTONIC)
        .map(|t| Duration::from(t).as_nanos() as u64)
        .unwrap_or(0)
}
