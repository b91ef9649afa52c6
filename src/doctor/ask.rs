//! Asks the driver through a short-lived child of our own, and never waits longer than it may.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::Context;
use greenboost_wire::SWITCH_ENV;
use serde::Serialize;

use super::driver::{Driver, Line};
use crate::selftest::own_path;

/// How the child ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "how")]
pub enum End {
    /// With everything said.
    #[default]
    Finished,
    /// It was still at this when the time was over.
    Hung { doing: String },
    /// It crashed at this.
    Died { doing: String, status: String },
}

/// Asks.
///
/// # Errors
/// When the child cannot be started.
pub fn driver(patience: Duration) -> anyhow::Result<(Driver, End)> {
    let mut child = Command::new(own_path())
        .arg("doctor-program")
        // Inside a `greenboost run` the shim would answer in the driver's place.
        .env(SWITCH_ENV, "off")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .context("cannot start myself again")?;
    let out = child.stdout.take().context("the child has no stdout")?;
    let (sender, lines) = mpsc::channel();
    // Reading may block for ever; a thread that does is left behind and ends with us.
    std::thread::spawn(move || {
        for line in BufReader::new(out).lines() {
            let Some(line) = line.ok().and_then(|l| serde_json::from_str(&l).ok()) else {
                continue;
            };
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    let deadline = Instant::now() + patience;
    let mut known = Driver::default();
    let mut doing = String::from("starting");
    loop {
        match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(Line::Doing(what)) => doing = what,
            Ok(Line::Known(driver)) => known = driver,
            Err(RecvTimeoutError::Timeout) => {
                end(&mut child);
                return Ok((known, End::Hung { doing }));
            }
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    // It has closed its stdout, so it is ending; what the driver does at exit may hang as well.
    let status = loop {
        match child.try_wait()? {
            Some(status) => break status,
            None if Instant::now() >= deadline => {
                end(&mut child);
                let doing = "ending the process".into();
                return Ok((known, End::Hung { doing }));
            }
            None => std::thread::sleep(Duration::from_millis(2)),
        }
    };
    if status.success() {
        return Ok((known, End::Finished));
    }
    let status = status.to_string();
    Ok((known, End::Died { doing, status }))
}

/// Kills it. A process that hangs inside the kernel does not even die, so there is no waiting for that.
fn end(child: &mut Child) {
    let _ = child.kill();
    let until = Instant::now() + Duration::from_millis(500);
    while Instant::now() < until && matches!(child.try_wait(), Ok(None)) {
        std::thread::sleep(Duration::from_millis(5));
    }
}
