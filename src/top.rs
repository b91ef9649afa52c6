//! `greenboost top`: the table of running jobs, from another terminal.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::termios::{LocalFlags, SetArg, Termios, tcgetattr, tcsetattr};

use crate::cli::TopArgs;
use crate::jobs::{Running, links_of, processes_of, running, unknown};
use crate::link::{Links, ceiling};
use crate::probe;
use crate::screen::size_of_terminal;
use crate::snapshot::Snapshot;
use crate::table::{Style, View, has_a_terminal};
use crate::traffic::Meter;
use crate::voice;

/// How often it is drawn.
const EVERY: Duration = Duration::from_millis(500);
/// How long the links may take to be counted before what is shown once is shown without them.
const PATIENCE: Duration = Duration::from_millis(700);

/// Shows the jobs until a key or a signal ends it, or once.
pub fn top(args: &TopArgs) -> anyhow::Result<u8> {
    let chosen = |before| -> anyhow::Result<Vec<Running>> {
        let mut jobs = running(before);
        if let Some(word) = &args.job {
            jobs.retain(|job| job.is(word));
            if jobs.is_empty() {
                return Err(unknown(word));
            }
        }
        Ok(jobs)
    };
    let mut eyes = Eyes {
        links: Links::default(),
        meters: BTreeMap::new(),
        measured: probe::measured(),
        began: Instant::now(),
    };
    let style = Style::of_environment();
    let first = chosen(Vec::new())?;
    let (out, input) = (io::stdout(), io::stdin());
    if !out.is_terminal() || !input.is_terminal() || !has_a_terminal() {
        if !first.is_empty() {
            lines(&first, &mut eyes, 100, usize::MAX, style);
            std::thread::sleep(PATIENCE);
        }
        let plain = Style {
            color: style.color && out.is_terminal(),
            ..style
        };
        let columns = size_of_terminal(out.as_fd()).map_or(100, |(_, columns)| columns);
        let text = lines(&first, &mut eyes, columns.into(), usize::MAX, plain).join("\n");
        voice::print(&(text + "\n"))?;
        return Ok(0);
    }

    let mut ends = SigSet::empty();
    for signal in [
        Signal::SIGINT,
        Signal::SIGTERM,
        Signal::SIGHUP,
        Signal::SIGQUIT,
    ] {
        ends.add(signal);
    }
    let mut wakes = ends;
    wakes.add(Signal::SIGWINCH);
    wakes.thread_block()?;
    let signals = SignalFd::with_flags(&wakes, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
    let _screen = Alternate::enter(&input)?;
    let mut jobs = first;
    loop {
        let (rows, columns) = size_of_terminal(out.as_fd()).unwrap_or((24, 80));
        let shown = lines(
            &jobs,
            &mut eyes,
            columns.into(),
            usize::from(rows) - 1,
            style,
        );
        draw(&shown)?;
        let until = Instant::now() + EVERY;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let mut fds = [
                PollFd::new(signals.as_fd(), PollFlags::POLLIN),
                PollFd::new(input.as_fd(), PollFlags::POLLIN),
            ];
            let left = PollTimeout::try_from(left + Duration::from_millis(1));
            let ready = poll(&mut fds, left.unwrap_or(PollTimeout::ZERO)).unwrap_or(0);
            if ready == 0 {
                break;
            }
            if let Ok(Some(info)) = signals.read_signal() {
                match Signal::try_from(info.ssi_signo.cast_signed()) {
                    Ok(Signal::SIGWINCH) => break,
                    _ => return Ok(0),
                }
            }
            let has_key = fds[1].revents().is_some_and(|r| !r.is_empty());
            let mut key = [0; 64];
            if has_key {
                match nix::unistd::read(&input, &mut key) {
                    Ok(n @ 1..) if !key[..n].contains(&b'q') => {}
                    Err(nix::errno::Errno::EINTR) => {}
                    _ => return Ok(0),
                }
            }
        }
        // A job that was asked for and has ended ends this, too.
        jobs = match chosen(jobs) {
            Ok(jobs) => jobs,
            Err(_) => return Ok(0),
        };
    }
}

/// What is looked at again and again.
struct Eyes {
    links: Links,
    /// By the names of the jobs.
    meters: BTreeMap<String, Meter>,
    measured: Option<probe::Rates>,
    began: Instant,
}

fn lines(
    jobs: &[Running],
    eyes: &mut Eyes,
    columns: usize,
    room: usize,
    style: Style,
) -> Vec<String> {
    if jobs.is_empty() {
        return vec!["no job is running".into()];
    }
    let mut lines = Vec::new();
    for job in jobs {
        if !lines.is_empty() {
            lines.push(String::new());
        }
        let name = format!("{}: {}", job.name, job.about.command.join(" "));
        let name = name.chars().filter(|c| !c.is_control());
        lines.push(name.take(columns.saturating_sub(1)).collect());
        let Some(ledger) = &job.ledger else {
            lines.push("of another version of greenboost".into());
            continue;
        };
        let snapshot = Snapshot::take(ledger);
        if snapshot.devices.is_empty() {
            lines.push("no memory of a GPU yet".into());
            continue;
        }
        let meter = eyes.meters.entry(job.name.clone()).or_default();
        meter.add(&snapshot, eyes.began.elapsed());
        let links = links_of(ledger, &mut eyes.links);
        let measured = eyes.measured.as_ref();
        let view = View {
            snapshot: &snapshot,
            rates: meter.rates(ceiling(&links, measured)),
            links,
            measured,
            processes: processes_of(ledger),
            running: job.age(),
        };
        let left = room.saturating_sub(lines.len());
        lines.extend(view.lines(columns, left, style));
    }
    lines.truncate(room);
    lines
}

fn draw(lines: &[String]) -> io::Result<()> {
    let mut text = String::from("\x1b[?2026h\x1b[H");
    for line in lines {
        text += line;
        text += "\x1b[m\x1b[K\r\n";
    }
    text += "\x1b[J\x1b[?2026l";
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// The alternate screen, and keys as they are pressed, until it is dropped.
struct Alternate(Termios);

impl Alternate {
    fn enter(input: &io::Stdin) -> anyhow::Result<Alternate> {
        let before = tcgetattr(input)?;
        let mut keys = before.clone();
        keys.local_flags
            .remove(LocalFlags::ICANON | LocalFlags::ECHO);
        tcsetattr(input, SetArg::TCSADRAIN, &keys)?;
        let alternate = Alternate(before);
        let mut out = io::stdout();
        out.write_all(b"\x1b[?1049h\x1b[?25l")?;
        out.flush()?;
        Ok(alternate)
    }
}

impl Drop for Alternate {
    fn drop(&mut self) {
        let _ = io::stdout().write_all(b"\x1b[?25h\x1b[?1049l");
        let _ = io::stdout().flush();
        let _ = tcsetattr(io::stdin(), SetArg::TCSADRAIN, &self.0);
    }
}
