//! Figures as the table has them: bars, pairs, times.

use std::time::Duration;

use crate::size::human;

/// `1:30`, `2:01:05`.
pub fn clock(time: Duration) -> String {
    let seconds = time.as_secs();
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    match hours {
        0 => format!("{minutes}:{seconds:02}"),
        _ => format!("{hours}:{minutes:02}:{seconds:02}"),
    }
}

/// How much of a limit is used.
pub fn percent(used: u64, limit: u64) -> String {
    match limit {
        0 => String::new(),
        // Only a full tier is 100 %.
        _ => format!("{} %", (u128::from(used) * 100 / u128::from(limit))),
    }
}

/// `9.9 of 10.0 GiB`.
pub fn pair(used: u64, limit: u64) -> String {
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
pub fn gauge(used: u64, limit: u64, width: usize, unicode: bool) -> String {
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
