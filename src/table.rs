//! The table: for each device a line per tier, below it a verdict in words. Pure: numbers in, lines out.

use std::collections::BTreeMap;
use std::time::Duration;

use comfy_table::{CellAlignment, Table, presets};

use crate::link::Link;
use crate::size::human;
use crate::summary::{DeviceSnapshot, Snapshot};
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
    /// How long the job runs.
    pub running: Duration,
}

impl View<'_> {
    /// The lines: each shorter than `columns`, at most `room` of them.
    pub fn lines(&self, columns: usize, room: usize, style: Style) -> Vec<String> {
        let most = columns.saturating_sub(1);
        let devices = &self.snapshot.devices;
        let lines_of = |d: &DeviceSnapshot| 1 + usize::from(self.has_host(d));
        // A head and the verdict; then the devices; processes when there is room for all.
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
        let mut lines = self.table(&devices[..shown], most, style);
        if shown < devices.len() {
            lines.push(format!(
                "and {} more; see greenboost top",
                count((devices.len() - shown) as u64, "GPU", "GPUs")
            ));
            left = 0;
        }
        let processes = self.process_lines();
        if processes.len() <= left {
            lines.extend(processes);
        }
        lines.push(self.verdict(most));
        let lines = lines.into_iter().map(|line| cut(&line, most));
        match style.color {
            false => lines.collect(),
            true => lines.enumerate().map(|(i, l)| colored(i, &l)).collect(),
        }
    }

    fn has_host(&self, device: &DeviceSnapshot) -> bool {
        self.snapshot.ram_limit > 0 || device.host_bytes > 0
    }

    fn table(&self, devices: &[DeviceSnapshot], most: usize, style: Style) -> Vec<String> {
        let is_wide = most >= 75;
        let gap = if is_wide { 2 } else { 1 };
        let with_link = devices.iter().any(|d| {
            let link = self.link(d);
            link.received.is_some() || link.sent.is_some()
        });
        let mut rows: Vec<Vec<String>> = Vec::new();
        let mut gauges: Vec<(u64, u64)> = Vec::new();
        let mut head = vec!["greenboost".into(), clock(self.running), "used".into()];
        head.extend(is_wide.then(String::new));
        head.push("allocs".into());
        if with_link {
            head.extend(["PCIe in".into(), "out GB/s".into()]);
        }
        for d in devices {
            let has_host = self.has_host(d);
            let (n, limit) = (d.device, self.snapshot.ram_limit);
            let vram = (
                format!("GPU {n} VRAM"),
                d.vram_bytes,
                d.vram_limit,
                d.vram_allocations,
            );
            let host = (
                format!("GPU {n} RAM"),
                d.host_bytes,
                limit,
                d.host_allocations,
            );
            let tiers = [Some((vram, !has_host)), has_host.then_some((host, true))];
            for ((name, used, limit, allocations), is_last) in tiers.into_iter().flatten() {
                let mut row = vec![name, String::new(), pair(used, limit)];
                row.extend(is_wide.then(|| percent(used, limit)));
                row.push(allocations.to_string());
                if with_link {
                    // The link is between the two tiers; what it carries stands once.
                    let link = if is_last {
                        self.link(d)
                    } else {
                        Link::default()
                    };
                    let rate = |r: Option<u64>| {
                        r.map_or(String::new(), |r| format!("{:.1}", r as f64 / 1e9))
                    };
                    row.extend([rate(link.received), rate(link.sent)]);
                }
                rows.push(row);
                gauges.push((used, limit));
            }
        }
        let width = |n: usize| {
            let cells = rows.iter().chain([&head]).map(|r| r[n].chars().count());
            cells.max().unwrap_or(0)
        };
        let others: usize = (0..head.len()).filter(|n| *n != 1).map(width).sum();
        let gauge_width = most
            .saturating_sub(others + gap * (head.len() - 1))
            .clamp(4, 40);
        head[1] = cut(&head[1], gauge_width);
        for (row, (used, limit)) in rows.iter_mut().zip(gauges) {
            row[1] = gauge(used, limit, gauge_width, style.unicode);
        }

        let mut table = Table::new();
        table.load_preset(presets::NOTHING);
        table.set_header(head);
        table.add_rows(rows);
        for (n, column) in table.column_iter_mut().enumerate() {
            column.set_padding((if n == 0 { 0 } else { gap as u16 }, 0));
            if n > 1 {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        table.lines().map(|l| l.trim_end().to_string()).collect()
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

    /// What it means, as many parts of it as fit.
    fn verdict(&self, most: usize) -> String {
        let spilled: u64 = self.snapshot.devices.iter().map(|d| d.host_bytes).sum();
        let mut parts = Vec::new();
        match spilled {
            0 => parts.push("nothing is spilled".to_string()),
            n => parts.push(format!("{} spilled", human(n))),
        }
        let busiest = self
            .snapshot
            .devices
            .iter()
            .filter_map(|d| {
                let link = self.link(d);
                let rate = link.rate?;
                let most = link.received?.max(link.sent?);
                Some((most * 100 / rate.max(1), d.device))
            })
            .max();
        if let Some((busy, device)) = busiest {
            parts.push(match self.snapshot.devices.len() {
                1 => format!("link busy {busy} %"),
                _ => format!("link of GPU {device} busy {busy} %"),
            });
        }
        // What each device has spilled crosses its own link.
        let pass = self
            .snapshot
            .devices
            .iter()
            .filter_map(|d| Some(d.host_bytes as f64 / self.link(d).rate? as f64))
            .fold(0.0, f64::max);
        if pass > 0.0 {
            let time = match pass {
                0.0..0.1 => format!("{:.0} ms", (pass * 1e3).max(1.0)),
                _ => format!("{pass:.1} s"),
            };
            parts.push(format!("reading it once takes {time} at best"));
        }
        let ooms: u64 = self.snapshot.devices.iter().map(|d| d.ooms).sum();
        if ooms > 0 {
            parts.push(count(ooms, "OOM", "OOMs"));
        }
        let mut text = String::new();
        for part in parts {
            let longer = match text.is_empty() {
                true => part,
                false => format!("{text}; {part}"),
            };
            if longer.chars().count() > most && !text.is_empty() {
                continue;
            }
            text = longer;
        }
        text
    }
}

/// `1:30`, `2:01:05`.
fn clock(time: Duration) -> String {
    let seconds = time.as_secs();
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    match hours {
        0 => format!("{minutes}:{seconds:02}"),
        _ => format!("{hours}:{minutes:02}:{seconds:02}"),
    }
}

fn percent(used: u64, limit: u64) -> String {
    match limit {
        0 => String::new(),
        // Only a full tier is 100 %.
        _ => format!("{} %", (u128::from(used) * 100 / u128::from(limit))),
    }
}

/// `9.9 of 10.0 GiB`.
fn pair(used: u64, limit: u64) -> String {
    let unit = match human(limit.max(used)).split_once(' ') {
        Some((_, unit)) if unit != "B" => unit.to_string(),
        _ => return format!("{used} of {limit} B"),
    };
    let size = match unit.as_str() {
        "KiB" => 1u64 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1 << 40,
        "PiB" => 1 << 50,
        _ => 1,
    };
    let number = |bytes: u64| format!("{:.1}", bytes as f64 / size as f64);
    format!("{} of {} {unit}", number(used), number(limit))
}

/// A bar, by eighths of a character where those can be shown. Only a full tier has a full bar, and only an empty one an
/// empty bar.
fn gauge(used: u64, limit: u64, width: usize, unicode: bool) -> String {
    let steps = if unicode { 8 } else { 1 };
    let (inner, all) = match unicode {
        true => (width, width * 8),
        false => (width.saturating_sub(2), width.saturating_sub(2)),
    };
    let filled = match limit {
        0 => 0,
        _ if used >= limit => all,
        _ => {
            let filled = (u128::from(used) * all as u128 / u128::from(limit)) as usize;
            filled.clamp(usize::from(used > 0), all.saturating_sub(1).max(1))
        }
    };
    if !unicode {
        return format!("[{}{}]", "#".repeat(filled), "-".repeat(inner - filled));
    }
    let part = ['▏', '▎', '▍', '▌', '▋', '▊', '▉'];
    let mut bar = "█".repeat(filled / steps);
    if !filled.is_multiple_of(steps) {
        bar.push(part[filled % steps - 1]);
    }
    let rest = inner - bar.chars().count();
    bar + &"░".repeat(rest)
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
