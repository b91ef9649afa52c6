//! Watching: what is in motion while the program runs, and what is said at its end.

use std::ffi::OsString;
use std::os::fd::AsFd;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use greenboost_wire::SWITCH_ENV;
use greenboost_wire::record::Kind;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::Pid;
use serde_json::json;

use super::monotonic;
use crate::announce::Announcer;
use crate::asked::{Asked, News};
use crate::cli::Stats;
use crate::job::Job;
use crate::jobs::{links_of, processes_of};
use crate::json::{self, Sink};
use crate::launch::Child;
use crate::link::{Links, ceiling};
use crate::native::Native;
use crate::probe;
use crate::say;
use crate::screen::{Screen, size_of_terminal};
use crate::snapshot::Snapshot;
use crate::summary::{self, Largest, Means};
use crate::table::{Style, View};
use crate::target::{Target, Verdict};
use crate::traffic::Meter;
use crate::voice::{count, duration};

/// How often the ledger is looked at, and the table drawn.
const BEAT: Duration = Duration::from_millis(250);
/// The first look after a process hung up; later ones come at a slower and slower pace, until it is the beat again.
const SOON: Duration = Duration::from_millis(20);
/// How often a record tells of it, if anything has changed.
const RECORD_EVERY: Duration = Duration::from_secs(1);
/// How often a line says what is held, at least, and at first at most when it changes.
const LINE_EVERY: Duration = Duration::from_secs(30);
const LINES_APART: Duration = Duration::from_secs(2);

/// When a line is due: soon after a change, but what goes on changing is told less and less often.
struct Lines {
    last: Option<Duration>,
    apart: Duration,
}

impl Lines {
    const NONE: Lines = Lines {
        last: None,
        apart: LINES_APART,
    };

    /// Whether a line is due now, which it is said then.
    fn due(&mut self, now: Duration, changed: bool) -> bool {
        let since = self.last.map_or(Duration::MAX, |last| now - last);
        let due = since >= LINE_EVERY || changed && since >= self.apart;
        if due {
            self.apart = match self.last {
                Some(_) if changed => (self.apart * 2).min(LINE_EVERY),
                _ => LINES_APART,
            };
            self.last = Some(now);
        }
        due
    }
}

/// Allocations that the summary names.
const LARGEST_SAID: usize = 3;

/// The running program.
pub enum Program {
    /// With nothing in between.
    Direct(Child),
    /// On a pseudo-terminal, with the table below.
    Below(Box<Screen>),
}

impl Program {
    /// Its process.
    pub fn pid(&self) -> Pid {
        match self {
            Program::Direct(child) => child.pid(),
            Program::Below(screen) => screen.pid(),
        }
    }

    fn descriptors(&self) -> Vec<PollFd<'_>> {
        match self {
            Program::Direct(child) => vec![PollFd::new(child.descriptor(), PollFlags::POLLIN)],
            Program::Below(screen) => screen.descriptors(),
        }
    }

    fn attend(&mut self) -> Option<ExitStatus> {
        match self {
            Program::Direct(child) => child.attend(),
            Program::Below(screen) => screen.attend(),
        }
    }
}

/// What is in motion while the program runs.
pub struct Watch {
    pub(super) announcer: Announcer,
    pub(super) stats: Stats,
    pub(super) style: Style,
    pub(super) links: Links,
    pub(super) means: Means,
    pub(super) sink: Sink,
    pub(super) asked: Asked,
    pub(super) meter: Meter,
    pub(super) native: Option<Native>,
    /// What was measured here earlier.
    pub(super) measured: Option<probe::Rates>,
    pub(super) job: Job,
    pub(super) started: Instant,
    /// `CLOCK_MONOTONIC` at the launch, nanoseconds: the clock of the records.
    pub(super) clock: u64,
    pub(super) last: Snapshot,
    /// What the last line told.
    pub(super) last_line: Snapshot,
}

impl Watch {
    /// Listens until the program has ended; returns its status and what was held then.
    pub fn until_the_end(&mut self, mut child: Program) -> (ExitStatus, Snapshot) {
        let mut lines = Lines::NONE;
        let mut next_record = RECORD_EVERY;
        let mut next_beat = BEAT;
        let mut pace = BEAT;
        loop {
            let now = self.started.elapsed();
            let timeout = next_beat.saturating_sub(now);
            let mut fds = child.descriptors();
            fds.extend(
                self.job
                    .descriptors()
                    .map(|fd| PollFd::new(fd, PollFlags::POLLIN)),
            );
            // Rounded up: a timeout of 0.3 ms must not become a busy loop.
            let timeout = PollTimeout::try_from(timeout + Duration::from_millis(1));
            let _ = poll(&mut fds, timeout.unwrap_or(PollTimeout::ZERO));
            drop(fds);

            if let Some(status) = child.attend() {
                let held = Snapshot::take(&self.job.ledger);
                self.listen();
                self.heed(&held, self.started.elapsed());
                self.means.add(&held, self.started.elapsed());
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
            self.means.add(&snapshot, now);
            self.meter.add(&snapshot, now);
            self.heed(&snapshot, now);
            for sentence in self.announcer.levels(&snapshot) {
                say(&sentence);
            }
            if now >= next_record {
                next_record = now + RECORD_EVERY;
                self.record(&snapshot);
            }
            match &mut child {
                Program::Below(screen) => self.show(screen, &snapshot, now),
                Program::Direct(_) => {
                    let told = self.stats != Stats::Off && !snapshot.devices.is_empty();
                    if told && lines.due(now, snapshot.differs(&self.last_line)) {
                        say(&snapshot.line(now));
                        self.last_line = snapshot.clone();
                    }
                }
            }
            // What dead processes held is free again. Not what the program itself held when it ended: that is the
            // summary's, and it may be a while from its end until we hear of it.
            self.job
                .ledger
                .reap_but(child.pid().as_raw().cast_unsigned());
            if let Some(status) = child.attend() {
                self.listen();
                return (status, snapshot);
            }
        }
    }

    /// Tells of what was asked of the job from elsewhere.
    fn heed(&mut self, snapshot: &Snapshot, now: Duration) {
        for news in self.asked.look(&self.job.ledger, snapshot) {
            if let News::Limit {
                device,
                before,
                limit,
                ..
            } = news
            {
                self.announcer.limit_changed(device, limit < before);
            }
            let (kind, fields) = news.record();
            self.sink.write(kind, now.as_secs_f64(), fields);
            if self.stats != Stats::Off {
                say(&news.sentence());
            }
        }
    }

    /// Draws the table, from the moment on at which CUDA is used.
    fn show(&mut self, screen: &mut Screen, snapshot: &Snapshot, now: Duration) {
        if snapshot.devices.is_empty() {
            return;
        }
        let links = links_of(&self.job.ledger, &mut self.links);
        let view = View {
            snapshot,
            rates: self.meter.rates(ceiling(&links, self.measured.as_ref())),
            links,
            measured: self.measured.as_ref(),
            processes: processes_of(&self.job.ledger),
            running: now,
        };
        let lines = view.lines(screen.columns().into(), screen.room().into(), self.style);
        screen.show(lines);
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
                if record.kind == Kind::Hello {
                    self.native = Native::of_process(record.pid).or(self.native.take());
                }
                if let Some(sentence) = self.announcer.sentence(&record) {
                    say(&sentence);
                }
            }
        }
    }

    fn record(&mut self, snapshot: &Snapshot) {
        if self.sink.is_open() && *snapshot != self.last {
            self.last = snapshot.clone();
            let time = self.started.elapsed().as_secs_f64();
            let mut fields = json::snapshot(snapshot);
            let links = links_of(&self.job.ledger, &mut self.links);
            json::add_links(&mut fields, &links);
            let rates = self.meter.rates(ceiling(&links, self.measured.as_ref()));
            json::add_rates(&mut fields, &rates);
            self.sink.write("snapshot", time, fields);
        }
    }

    /// Says, and writes down, what there was.
    pub fn summarise(
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
        let largest = Largest::of(&self.job.ledger, monotonic());
        let asked = self.job.ledger.settings().vram_limit;
        let mut advice = summary::advice(snapshot, asked, &self.means);
        advice.extend(self.native.as_ref().and_then(|n| n.advice(snapshot)));
        json::add_means(&mut fields, &self.means);
        fields["advice"] = json!(advice);
        fields["largest"] = json!(largest);
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
        if snapshot.records_lost > 0 && self.stats != Stats::Off {
            say(&format!(
                "{} of the program's processes were lost: nobody read them in time",
                count(snapshot.records_lost, "record", "records")
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
                let columns = size_of_terminal(std::io::stderr().as_fd()).map_or(80, |(_, c)| c);
                say(&snapshot.summary(&self.announcer.names, &self.means, columns));
            }
            let links = links_of(&self.job.ledger, &mut self.links);
            let ceiling = ceiling(&links, self.measured.as_ref());
            for line in summary::costs(snapshot, time, ceiling) {
                say(&line);
            }
            for one in largest.iter().take(LARGEST_SAID) {
                say(&one.line());
            }
            for sentence in advice {
                say(&sentence);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_on_changing_is_told_less_and_less_often() {
        let mut lines = Lines::NONE;
        let said: Vec<u64> = (0..100)
            .filter(|s| lines.due(Duration::from_secs(*s), true))
            .collect();
        assert_eq!(said, [0, 2, 6, 14, 30, 60, 90]);
        let quiet: Vec<u64> = (100..200)
            .filter(|s| lines.due(Duration::from_secs(*s), *s == 152))
            .collect();
        assert_eq!(quiet, [120, 150, 152, 182]);
    }
}
