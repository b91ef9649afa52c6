//! The table: for each device a line per tier, below it a verdict in words. Pure: numbers in, lines out.

mod bar;
mod columns;
mod words;

use std::collections::BTreeMap;
use std::time::Duration;

use crate::link::Link;
use crate::probe;
use crate::size::human;
use crate::snapshot::{DeviceSnapshot, Snapshot};
use crate::traffic::Rates;
use crate::voice::count;

/// Processes that have a line of their own.
const PROCESSES: usize = 4;

/// How lines may look.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Style {
    /// Colours.
    pub color: bool,
    /// More than ASCII.
    pub unicode: bool,
}

impl Style {
    /// What the environment asks for (NO_COLOR, TERM, the locale).
    pub fn of_environment() -> Style {
        let set = |name: &str| std::env::var(name).ok().filter(|v| !v.is_empty());
        let locale = ["LC_ALL", "LC_CTYPE", "LANG"].into_iter().find_map(set);
        let locale = locale.unwrap_or_default().to_ascii_lowercase();
        Style {
            color: set("NO_COLOR").is_none() && has_a_terminal(),
            unicode: locale.contains("utf-8") || locale.contains("utf8"),
        }
    }
}

/// Whether TERM names a terminal that can do more than print.
pub fn has_a_terminal() -> bool {
    std::env::var("TERM").is_ok_and(|term| !term.is_empty() && term != "dumb")
}

/// What the table shows.
pub struct View<'a> {
    /// Who holds what.
    pub snapshot: &'a Snapshot,
    /// The links, by ledger index.
    pub links: BTreeMap<usize, Link>,
    /// The job's processes with their programs: pid, name, bytes in VRAM and on Host.
    pub processes: Vec<(u32, String, u64, u64)>,
    /// What happens in a second, by ledger index.
    pub rates: BTreeMap<usize, Rates>,
    /// What was measured here earlier.
    pub measured: Option<&'a probe::Rates>,
    /// How long the job runs.
    pub running: Duration,
}

impl View<'_> {
    /// The lines: each shorter than `columns`, at most `room` of them.
    pub fn lines(&self, columns: usize, room: usize, style: Style) -> Vec<String> {
        let most = columns.saturating_sub(1);
        let devices = &self.snapshot.devices;
        let lines_of = |d: &DeviceSnapshot| 1 + usize::from(self.has_host(d));
        // A head and the verdict; then the devices; what it costs; processes when there is room for all.
        let mut left = room.saturating_sub(2);
        let all: usize = devices.iter().map(lines_of).sum();
        let mut shown = 0;
        for device in devices {
            let more = usize::from(all > room.saturating_sub(2));
            if lines_of(device) + more > left {
                break;
            }
            left -= lines_of(device);
            shown += 1;
        }
        let (mut lines, columns) = self.grid(&devices[..shown], most, style);
        if shown < devices.len() {
            lines.push(format!(
                "and {} more; see greenboost top",
                count((devices.len() - shown) as u64, "GPU", "GPUs")
            ));
            left = 0;
        }
        let costs = self.costs(most, left, &columns);
        left -= costs.len();
        let processes = self.process_lines();
        if processes.len() <= left {
            lines.extend(processes);
        }
        lines.push(self.verdict(most));
        lines.extend(costs);
        let lines = lines.into_iter().map(|line| cut(&line, most));
        match style.color {
            false => lines.collect(),
            true => lines.enumerate().map(|(i, l)| colored(i, &l)).collect(),
        }
    }

    fn has_host(&self, device: &DeviceSnapshot) -> bool {
        self.snapshot.ram_limit > 0 || device.host_bytes > 0
    }

    fn link(&self, device: &DeviceSnapshot) -> Link {
        self.links.get(&device.device).copied().unwrap_or_default()
    }

    fn process_lines(&self) -> Vec<String> {
        if self.processes.len() < 2 {
            return Vec::new();
        }
        let mut processes: Vec<_> = self.processes.iter().collect();
        processes.sort_by_key(|(pid, _, vram, host)| (std::cmp::Reverse(vram + host), *pid));
        let (own, others) = processes.split_at(processes.len().min(PROCESSES));
        let mut lines: Vec<String> = own
            .iter()
            .map(|(pid, name, vram, host)| {
                format!("{pid} {name}: {} VRAM, {} RAM", human(*vram), human(*host))
            })
            .collect();
        if !others.is_empty() {
            let sum = |of: fn(&(u32, String, u64, u64)) -> u64| others.iter().map(|p| of(p)).sum();
            lines.push(format!(
                "and {}: {} VRAM, {} RAM",
                count(others.len() as u64, "more process", "more processes"),
                human(sum(|p| p.2)),
                human(sum(|p| p.3))
            ));
        }
        lines
    }
}

fn cut(text: &str, most: usize) -> String {
    // Names of processes are in it: nothing of them reaches the terminal as a control sequence.
    text.chars()
        .filter(|c| !c.is_control())
        .take(most)
        .collect()
}

/// The first line is a head; in the others bars have a colour.
fn colored(n: usize, line: &str) -> String {
    if n == 0 {
        return format!("\x1b[2m{line}\x1b[m");
    }
    let is_bar = |c: char| "█▉▊▋▌▍▎▏░[#-]".contains(c);
    match line.find(|c: char| "█▉▊▋▌▍▎▏░[".contains(c)) {
        Some(start) if n > 0 && line.starts_with("GPU") => {
            let end = line[start..]
                .find(|c| !is_bar(c))
                .map_or(line.len(), |e| start + e);
            let (before, bar, after) = (&line[..start], &line[start..end], &line[end..]);
            format!("{before}\x1b[36m{bar}\x1b[m{after}")
        }
        _ => line.to_string(),
    }
}

#[cfg(test)]
mod tests;
