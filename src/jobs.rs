//! The running jobs of this user, from outside: who they are and what they hold.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use comfy_table::{CellAlignment, Table, presets};
use greenboost_wire::LEDGER_FILE;
use greenboost_wire::ledger::{Ledger, Mapped};
use serde_json::{Value, json};

use crate::cli::PsArgs;
use crate::job::{self, About};
use crate::link::{Link, Links};
use crate::size::human;
use crate::snapshot::Snapshot;
use crate::voice::{self, duration};

/// A running job.
pub struct Running {
    /// What it is called: the end of its directory's name.
    pub name: String,
    /// Its directory.
    pub dir: PathBuf,
    /// What its launcher says of it.
    pub about: About,
    /// The ledger; `None` when it is of another version of greenboost.
    pub ledger: Option<Mapped>,
}

impl Running {
    fn open(dir: &Path) -> Option<Running> {
        Some(Running {
            name: job::name_of(dir)?,
            dir: dir.to_path_buf(),
            about: About::read(dir)?,
            ledger: Mapped::open(&dir.join(LEDGER_FILE)).ok(),
        })
    }

    /// How long it runs.
    pub fn age(&self) -> Duration {
        let began = SystemTime::UNIX_EPOCH + Duration::from_secs_f64(self.about.began.max(0.0));
        began.elapsed().unwrap_or_default()
    }

    /// Whether somebody who says this means this job: its name, or a process of it.
    pub fn is(&self, word: &str) -> bool {
        let pid: Option<u32> = word.parse().ok();
        let has = |pid: u32| {
            let in_ledger = self
                .ledger
                .iter()
                .any(|l| l.seats().iter().any(|s| s.0 == pid));
            in_ledger || [self.about.launcher, self.about.pid].contains(&pid)
        };
        self.name == word || pid.is_some_and(has)
    }
}

/// The running job that somebody means.
///
/// # Errors
/// When there is none.
pub fn find(word: &str) -> anyhow::Result<Running> {
    let all = running(Vec::new());
    let found = all.into_iter().find(|job| job.is(word));
    found.ok_or_else(|| unknown(word))
}

/// There is no such job.
pub fn unknown(word: &str) -> anyhow::Error {
    anyhow::anyhow!("no running job is called '{word}' or has that process: see greenboost ps")
}

/// All running jobs, the oldest first; what is known of those in `before` is not opened again.
pub fn running(before: Vec<Running>) -> Vec<Running> {
    let mut dirs: Vec<PathBuf> = job::directories();
    dirs.sort();
    dirs.dedup();
    let mut before: Vec<Option<Running>> = before.into_iter().map(Some).collect();
    let mut open = |dir: &PathBuf| {
        let name = job::name_of(dir)?;
        let known = before
            .iter_mut()
            .find(|job| job.as_ref().is_some_and(|job| job.name == name));
        match known {
            Some(known) => About::read(dir).and_then(|_| known.take()),
            None => Running::open(dir),
        }
    };
    let mut jobs: Vec<Running> = dirs.iter().filter_map(&mut open).collect();
    jobs.sort_by(|a, b| a.about.began.total_cmp(&b.about.began));
    jobs
}

/// The links of the job's devices, by ledger index.
pub fn links_of(ledger: &Ledger, links: &mut Links) -> BTreeMap<usize, Link> {
    let devices = ledger.devices();
    devices.map(|(n, d)| (n, links.of(d.uuid()))).collect()
}

/// The job's processes with their programs: pid, name, bytes in VRAM and on Host.
pub fn processes_of(ledger: &Ledger) -> Vec<(u32, String, u64, u64)> {
    let seats = ledger.seats().into_iter();
    seats
        .map(|(pid, vram, host)| {
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            (pid, name.trim_end().to_string(), vram, host)
        })
        .collect()
}

/// `greenboost ps`.
pub fn ps(args: &PsArgs) -> anyhow::Result<u8> {
    let jobs = running(Vec::new());
    if args.json {
        let jobs: Vec<Value> = jobs.iter().map(document).collect();
        voice::print(&format!("{}\n", json!({"v": 1, "jobs": jobs})))?;
        return Ok(0);
    }
    if jobs.is_empty() {
        voice::print("no job is running\n")?;
        return Ok(0);
    }
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table.set_header(["JOB", "PID", "AGE", "GPUS", "VRAM", "RAM", "PROGRAM"]);
    for job in &jobs {
        let snapshot = job.ledger.as_deref().map(Snapshot::take);
        let of = |text: fn(&Snapshot) -> String| snapshot.as_ref().map_or("?".into(), text);
        table.add_row([
            job.name.clone(),
            job.about.pid.to_string(),
            duration(job.age()),
            of(|s| s.devices.len().to_string()),
            of(|s| human(s.devices.iter().map(|d| d.vram_bytes).sum())),
            of(|s| human(s.host_bytes)),
            printable(&job.about.command.join(" ")),
        ]);
    }
    for (n, column) in table.column_iter_mut().enumerate() {
        column.set_padding((if n == 0 { 0 } else { 2 }, 0));
        if (1..6).contains(&n) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    let lines: Vec<String> = table.lines().map(|l| l.trim_end().to_string()).collect();
    voice::print(&(lines.join("\n") + "\n"))?;
    Ok(0)
}

/// Nothing of a command line reaches the terminal as a control sequence, and it has one line.
fn printable(text: &str) -> String {
    let text: String = text
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    match text.char_indices().nth(100) {
        Some((at, _)) => format!("{}...", &text[..at]),
        None => text,
    }
}

fn document(job: &Running) -> Value {
    let mut document = json!({
        "job": job.name,
        "launcher": job.about.launcher,
        "pid": job.about.pid,
        "command": job.about.command,
        "age": (job.age().as_secs_f64() * 1e3).round() / 1e3,
    });
    if let Some(ledger) = &job.ledger {
        let processes = processes_of(ledger).into_iter();
        let processes: Vec<Value> = processes
            .map(|(pid, program, vram, host)| {
                json!({"pid": pid, "program": program, "vram_bytes": vram, "host_bytes": host})
            })
            .collect();
        document["processes"] = processes.into();
        document["memory"] = crate::json::snapshot(&Snapshot::take(ledger));
    }
    document
}
