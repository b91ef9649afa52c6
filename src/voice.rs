//! How greenboost speaks: on stderr, each line marked as ours, never in the way of the program.

use std::fmt::Write as _;
use std::io::Write as _;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// What is said while something else has the terminal, until it takes that; `None`: it goes to stderr.
static DIVERTED: Mutex<Option<String>> = Mutex::new(None);

fn diversion() -> MutexGuard<'static, Option<String>> {
    DIVERTED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// From here on what is said is kept for [`diverted`].
pub fn divert() {
    diversion().get_or_insert_default();
}

/// Takes what was said.
pub fn diverted() -> String {
    diversion().as_mut().map(std::mem::take).unwrap_or_default()
}

/// From here on what is said goes to stderr again; what nobody has taken does so first.
pub fn undivert() {
    if let Some(text) = diversion().take() {
        let _ = std::io::stderr().write_all(text.as_bytes());
    }
}

/// Says it. An stderr that is closed or full is not our concern.
pub fn say(text: &str) {
    if let Some(kept) = diversion().as_mut() {
        return kept.push_str(&mark(text));
    }
    // One write for all lines, so that the program's own output does not come between.
    let _ = std::io::stderr().write_all(mark(text).as_bytes());
}

/// Prints a result on stdout. A reader that has seen enough (`... | head`) is no error.
///
/// # Errors
/// When stdout cannot take it for another reason.
pub fn print(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(anyhow::Error::new(e).context("cannot write to stdout"))
        }
        _ => Ok(()),
    }
}

/// Every line with our name in front. Texts may hold what a program called itself, so nothing in them reaches the
/// terminal as a control sequence.
fn mark(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 16);
    for line in text.lines() {
        out.push_str("greenboost: ");
        for c in line.chars() {
            if c.is_control() {
                let _ = write!(out, "{}", c.escape_default());
            } else {
                out.push(c);
            }
        }
        out.push('\n');
    }
    out
}

/// A duration as a person reads it.
pub fn duration(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        0..60 => format!("{:.1} s", time.as_secs_f64()),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        _ => format!("{} h {} min", seconds / 3600, seconds / 60 % 60),
    }
}

/// `1 process`, `2 processes`.
pub fn count(n: u64, one: &str, many: &str) -> String {
    format!("{n} {}", if n == 1 { one } else { many })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marked_and_harmless() {
        assert_eq!(mark("a\nb"), "greenboost: a\ngreenboost: b\n");
        assert_eq!(mark("\u{1b}[31mred\r"), "greenboost: \\u{1b}[31mred\\r\n");
        assert_eq!(mark("größer"), "greenboost: größer\n");
    }

    #[test]
    fn durations() {
        for (ms, text) in [
            (40, "0.0 s"),
            (59_400, "59.4 s"),
            (61_000, "1 min 1 s"),
            (7_260_000, "2 h 1 min"),
        ] {
            assert_eq!(duration(Duration::from_millis(ms)), text);
        }
    }
}
