//! `greenboost doctor`: can greenboost work on this machine, and if not, what would help.

mod ask;
mod driver;
mod gpu;
mod here;
mod init;

use std::io::IsTerminal;
use std::time::Duration;

use serde::Serialize;
use serde_json::json;

use crate::cli::DoctorArgs;
use crate::voice::print;

/// Widest line.
const WIDTH: usize = 80;
/// Where the text of a finding begins.
const INDENT: usize = 19;

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    /// As it should be.
    Fine,
    /// Worth knowing.
    Note,
    /// greenboost can do less.
    Degraded,
    /// greenboost can do nothing.
    Impossible,
}

/// One thing that was looked at.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    /// What, in a word or two.
    pub name: String,
    /// How it is.
    pub level: Level,
    /// In words.
    pub text: String,
    /// What would help.
    pub advice: Option<String>,
}

impl Finding {
    fn new(name: &str, level: Level, text: String) -> Finding {
        Finding {
            name: name.to_string(),
            level,
            text,
            advice: None,
        }
    }

    fn advise(mut self, advice: &str) -> Finding {
        self.advice = Some(advice.to_string());
        self
    }
}

/// Looks at everything and prints it.
pub fn doctor(args: &DoctorArgs) -> anyhow::Result<u8> {
    let place = here::place();
    let (driver, end) = ask::driver(Duration::from_secs(args.timeout.into()))?;
    let mut findings = gpu::findings(&driver, &end, &place);
    findings.extend(here::findings(&place));
    let worst = worst(&findings, driver.devices.iter().any(driver::Gpu::can_spill));
    let (word, status) = match worst {
        Level::Fine | Level::Note => ("fine", 0),
        Level::Degraded => ("degraded", 1),
        Level::Impossible => ("impossible", 2),
    };
    let text = if args.json {
        let document = json!({
            "v": 1,
            "verdict": word,
            "exit_code": status,
            "findings": findings,
            "driver": driver,
            "driver_end": end,
        });
        serde_json::to_string_pretty(&document)? + "\n"
    } else {
        let last = match worst {
            Level::Fine | Level::Note if driver.simulated => {
                "All fine, on the SIMULATED driver: this says nothing about your GPU."
            }
            Level::Fine | Level::Note => "All fine: greenboost can do everything here.",
            Level::Degraded => "Degraded: greenboost works here with less; see 'warn' above.",
            Level::Impossible => "Impossible: greenboost cannot work here; see 'FAIL' above.",
        };
        render(&findings, is_colourful()) + last + "\n"
    };
    print(&text)?;
    Ok(status)
}

/// What stands against using a device, in words; or that nothing does.
pub enum Usable {
    Yes,
    /// There are GPUs, but only so many.
    NotThatMany(usize),
    No(String),
}

/// Whether a program could use this device. The driver is asked by a short-lived process.
///
/// # Errors
/// When that cannot be started.
pub fn usable(device: u32, patience: Duration) -> anyhow::Result<Usable> {
    let place = here::place();
    let (driver, end) = ask::driver(patience)?;
    if let Some(gpu) = driver.devices.get(device as usize) {
        if gpu.context == driver::Trial::Works && end == ask::End::Finished {
            return Ok(Usable::Yes);
        }
    } else if !driver.devices.is_empty() && end == ask::End::Finished {
        return Ok(Usable::NotThatMany(driver.devices.len()));
    }
    let name = format!("gpu {device}");
    let findings = gpu::findings(&driver, &end, &place);
    let reason = findings
        .into_iter()
        .find(|f| f.level == Level::Impossible && (!f.name.starts_with("gpu ") || f.name == name));
    Ok(Usable::No(match reason {
        Some(Finding {
            text,
            advice: Some(advice),
            ..
        }) => format!("{text}; {advice}"),
        Some(Finding { text, .. }) => text,
        None => "the driver says nothing about it".into(),
    }))
}

/// The verdict over all. One device that cannot be used does not spoil the others.
fn worst(findings: &[Finding], can_spill: bool) -> Level {
    let is_of_one_device = |f: &&Finding| f.name.starts_with("gpu ");
    let level = |f: &Finding| f.level;
    let most = findings.iter().map(level).max().unwrap_or(Level::Fine);
    let without = findings.iter().filter(|f| !is_of_one_device(f)).map(level);
    match most {
        Level::Impossible if can_spill => without.max().unwrap_or(Level::Fine).max(Level::Degraded),
        most => most,
    }
}

fn is_colourful() -> bool {
    let is_set = |name| std::env::var_os(name).is_some_and(|v| !v.is_empty());
    std::io::stdout().is_terminal()
        && !is_set("NO_COLOR")
        && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// The findings as lines: a mark, a name, a text, and below it what would help.
fn render(findings: &[Finding], colour: bool) -> String {
    let mut out = String::new();
    for finding in findings {
        let (mark, code) = match finding.level {
            Level::Fine => ("ok", 32),
            Level::Note => ("note", 36),
            Level::Degraded => ("warn", 33),
            Level::Impossible => ("FAIL", 31),
        };
        let padded = format!("{mark:<6}");
        let mark = if colour {
            format!("\x1b[{code}m{padded}\x1b[0m")
        } else {
            padded
        };
        let name = format!("{:<13}", finding.name);
        let text: String = finding.text.chars().map(harmless).collect();
        out += &format!("{mark}{name}{}\n", wrap(&text, INDENT));
        if let Some(advice) = &finding.advice {
            let indent = INDENT + 3;
            let text: String = advice.chars().map(harmless).collect();
            out += &format!("{:INDENT$}-> {}\n", "", wrap(&text, indent));
        }
    }
    out
}

/// Names of devices and files come from elsewhere: nothing in them reaches the terminal as a control sequence.
fn harmless(c: char) -> char {
    if c.is_control() { ' ' } else { c }
}

/// Breaks a text between words; all lines but the first begin this far to the right. A long word stays whole, so that a
/// path can be copied.
fn wrap(text: &str, indent: usize) -> String {
    let mut out = String::new();
    let mut column = indent;
    for word in text.split_whitespace() {
        let length = word.chars().count();
        if column > indent && column + 1 + length > WIDTH {
            out += &format!("\n{:indent$}", "");
            column = indent;
        } else if column > indent {
            out.push(' ');
            column += 1;
        }
        out += word;
        column += length;
    }
    out
}

/// The child that [`doctor`] starts.
pub fn program() -> u8 {
    driver::look()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(name: &str, level: Level) -> Finding {
        Finding::new(name, level, "word ".repeat(30)).advise(&"help ".repeat(30))
    }

    #[test]
    fn eighty_columns() {
        let all = [
            finding("driver", Level::Fine),
            finding("gpu 0", Level::Impossible),
        ];
        let text = render(&all, false);
        assert!(text.lines().all(|l| l.len() <= WIDTH), "{text}");
        assert!(text.contains("\nFAIL  gpu 0        word word"), "{text}");
        assert!(text.contains(&format!("\n{:INDENT$}-> help", "")), "{text}");
        assert!(!text.contains('\x1b'));
        assert!(render(&all, true).contains("\x1b[31mFAIL  \x1b[0m"));
        let mut odd = finding("gpu 0", Level::Fine);
        odd.text = "NVIDIA \x1b[2J".into();
        assert!(!render(&[odd], false).contains('\x1b'));
    }

    #[test]
    fn one_broken_device_is_not_the_end() {
        let of = |levels: &[(&str, Level)], spill| {
            let all: Vec<_> = levels.iter().map(|(n, l)| finding(n, *l)).collect();
            worst(&all, spill)
        };
        let broken = [("gpu 0", Level::Fine), ("gpu 1", Level::Impossible)];
        assert_eq!(of(&broken, true), Level::Degraded);
        assert_eq!(of(&broken, false), Level::Impossible);
        assert_eq!(of(&[("cache", Level::Impossible)], true), Level::Impossible);
        assert_eq!(of(&[("cache", Level::Note)], true), Level::Note);
    }
}
