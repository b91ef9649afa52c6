//! The record stream of `run --json` and `probe --json`: one JSON object per line, versioned, raw bytes and seconds.
//!
//! Whoever reads it may be slow, full or gone; the program must not notice. So nothing here waits for long, and the first
//! failure ends the stream with one warning.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use greenboost_wire::ledger::{Placement, Report, Settings, Staging, VramLimit};
use greenboost_wire::record::{Kind, NO_DEVICE, Record};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::{Map, Value, json};

use crate::cli::JsonTarget;
use crate::link::Link;
use crate::say;
use crate::snapshot::Snapshot;
use crate::summary::Means;
use crate::target::Target;
use crate::traffic::Rates;

/// Version of the records' layout.
const VERSION: u32 = 1;
/// How long a reader may keep us waiting for room, per record. Only the launcher waits, never the program.
const PATIENCE: Duration = Duration::from_millis(200);

/// Where records go.
pub struct Sink {
    file: Option<File>,
}

impl Sink {
    /// A sink that takes nothing.
    pub fn none() -> Sink {
        Sink { file: None }
    }

    /// Opens the file or takes the descriptor.
    ///
    /// # Errors
    /// When that cannot be; before the program has started, so it is an error of usage.
    pub fn open(target: &JsonTarget) -> anyhow::Result<Sink> {
        let file = match target {
            JsonTarget::File(path) => create(path)?,
            JsonTarget::Fd(number) => {
                // SAFETY: only used in this block, to ask the kernel whether it is open and to duplicate it.
                let fd = unsafe { BorrowedFd::borrow_raw(*number) };
                let own = fd.try_clone_to_owned().with_context(|| {
                    format!("--json: descriptor {number} is not open: write fd:N for one that is, like 'fd:3' with '3>FILE'")
                })?;
                // The stream is the launcher's alone: a program that inherited it would keep a pipe's reader waiting.
                if *number > 2 {
                    fcntl(fd.as_fd(), FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
                }
                File::from(own)
            }
        };
        Ok(Sink { file: Some(file) })
    }

    /// Whether anybody listens.
    pub fn is_open(&self) -> bool {
        self.file.is_some()
    }

    /// Writes one record: a version, its type, its time in seconds since the launch, and these fields.
    pub fn write(&mut self, kind: &str, time: f64, fields: Value) {
        let Some(file) = &mut self.file else { return };
        let mut record = Map::new();
        record.insert("v".into(), VERSION.into());
        record.insert("type".into(), kind.into());
        record.insert("t".into(), json!((time * 1e6).round() / 1e6));
        if let Value::Object(fields) = fields {
            record.extend(fields);
        }
        let mut line = Value::Object(record).to_string();
        line.push('\n');
        let result = wait_for_room(file).and_then(|()| file.write_all(line.as_bytes()));
        if let Err(e) = result {
            say(&format!("--json: no further records, writing failed ({e})"));
            self.file = None;
        }
    }

    /// Writes what a process of the job said.
    pub fn record(&mut self, record: &Record, time: f64) {
        let (kind, fields) = fields(record);
        let mut value = fields;
        value["pid"] = record.pid.into();
        if record.device != NO_DEVICE {
            value["device"] = record.device.into();
        }
        self.write(kind, time, value);
    }
}

fn create(path: &Path) -> anyhow::Result<File> {
    File::create(path).with_context(|| format!("--json: cannot write {}", path.display()))
}

/// A pipe with room takes a line at once; a regular file always has room.
fn wait_for_room(file: &File) -> io::Result<()> {
    let mut fds = [PollFd::new(file.as_fd(), PollFlags::POLLOUT)];
    let timeout = PollTimeout::try_from(PATIENCE).unwrap_or(PollTimeout::ZERO);
    match poll(&mut fds, timeout)? {
        0 => Err(io::Error::new(
            io::ErrorKind::TimedOut,
            "its reader does not read",
        )),
        _ => Ok(()),
    }
}

fn fields(record: &Record) -> (&'static str, Value) {
    let Record { a, b, c, text, .. } = record;
    match record.kind {
        Kind::Hello => (
            "hello",
            json!({"driver_version": a, "devices": b, "program": text}),
        ),
        Kind::Device => {
            let (backend, name) = backend_and_name(text);
            (
                "device",
                json!({"backend": backend, "name": name, "total": a, "vram_limit": b, "free": c}),
            )
        }
        Kind::FirstSpill => ("first_spill", json!({"host_bytes": a, "bytes": b})),
        Kind::OutOfMemory => ("oom", json!({"bytes": a, "host_bytes": b, "reason": text})),
        Kind::HostRefused => ("host_refused", json!({"bytes": a, "reason": text})),
        Kind::Degraded => ("degraded", json!({"reason": text})),
        Kind::Frozen => ("frozen", json!({"reason": text})),
        Kind::DeviceError => ("device_error", json!({"code": a, "reason": text})),
        Kind::Wounded => ("wounded", json!({"reason": text})),
        Kind::Bye => ("bye", json!({"vram_bytes": a, "host_bytes": b})),
    }
}

/// A device record's text: how its memory is served, and its name.
pub fn backend_and_name(text: &str) -> (&str, &str) {
    text.split_once(' ').unwrap_or((text, ""))
}

/// The fields of the first record.
pub fn start(
    target: &Target,
    command: &[std::ffi::OsString],
    pid: i32,
    settings: &Settings,
) -> Value {
    let words: Vec<_> = command.iter().map(|w| w.to_string_lossy()).collect();
    let (bytes, percent) = match settings.vram_limit {
        VramLimit::Free => (None, None),
        VramLimit::Bytes(bytes) => (Some(bytes), None),
        VramLimit::Share(hundredths) => (None, Some(hundredths as f64 / 100.0)),
    };
    json!({
        "greenboost": env!("CARGO_PKG_VERSION"),
        "pid": pid,
        "command": words,
        "program": target.program.to_string_lossy(),
        "executable": target.executable.to_string_lossy(),
        "verdict": target.verdict,
        "vram_limit": bytes,
        "vram_limit_percent": percent,
        "ram_limit": settings.ram_limit,
        "spill": if settings.spill { "ram" } else { "off" },
        "report": match settings.report {
            Report::Extended => "extended",
            Report::Physical => "physical",
        },
        "placement": match settings.placement {
            Placement::Auto => "auto",
            Placement::FirstFit => "first-fit",
        },
        "staging": match settings.staging {
            Staging::Off => "off",
            Staging::Auto => "auto",
        },
    })
}

/// The fields of a snapshot.
pub fn snapshot(snapshot: &Snapshot) -> Value {
    serde_json::to_value(snapshot).unwrap_or_default()
}

/// Adds what happens in a second to a snapshot's devices: only figures that there are.
pub fn add_rates(fields: &mut Value, rates: &BTreeMap<usize, Rates>) {
    each_device(fields, |n, device| {
        let Some(rates) = rates.get(&n) else { return };
        device["promoted_per_second"] = rates.promoted.into();
        device["demoted_per_second"] = rates.demoted.into();
        device["moving"] = rates.moving.into();
        device["waiting"] = rates.waiting.into();
        if let Some(named) = rates.named {
            device["host_named_per_second"] = named.into();
        }
    });
}

/// Adds what the links carry to a snapshot's devices: only figures that there are.
pub fn add_links(fields: &mut Value, links: &BTreeMap<usize, Link>) {
    each_device(fields, |n, device| {
        let link = links.get(&n).copied().unwrap_or_default();
        let figures = [
            ("pcie_received_per_second", link.received),
            ("pcie_sent_per_second", link.sent),
            ("pcie_rate", link.rate),
        ];
        for (name, figure) in figures {
            if let Some(figure) = figure {
                device[name] = figure.into();
            }
        }
    });
}

/// Adds the means over time to a snapshot's devices.
pub fn add_means(fields: &mut Value, means: &Means) {
    fields["host_mean"] = means.host().into();
    each_device(fields, |n, device| {
        let (vram, host) = means.of(n);
        device["vram_mean"] = vram.into();
        device["host_mean"] = host.into();
    });
}

fn each_device(fields: &mut Value, mut change: impl FnMut(usize, &mut Value)) {
    let devices = fields["devices"].as_array_mut();
    for device in devices.into_iter().flatten() {
        if let Some(n) = device["device"].as_u64() {
            change(n as usize, device);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(kind: Kind, device: u32, text: &str) -> Record {
        Record {
            kind,
            pid: 7,
            device,
            time: 0,
            a: u64::MAX,
            b: 2,
            c: 3,
            text: text.into(),
        }
    }

    #[test]
    fn one_line_each() {
        let mut file = tempfile::tempfile().unwrap();
        let mut sink = Sink {
            file: Some(file.try_clone().unwrap()),
        };
        sink.record(&record(Kind::Device, 0, "vmm NVIDIA \"X\"\n"), 1.5);
        sink.record(&record(Kind::Wounded, NO_DEVICE, "why"), 2.0);
        let mut text = String::new();
        io::Seek::rewind(&mut file).unwrap();
        io::Read::read_to_string(&mut file, &mut text).unwrap();
        let lines: Vec<Value> = text
            .lines()
            .map(|l| serde_json::from_str(l).unwrap())
            .collect();
        assert_eq!(lines.len(), 2);
        let expected = json!({"v": 1, "type": "device", "t": 1.5, "pid": 7, "device": 0, "backend": "vmm",
            "name": "NVIDIA \"X\"\n", "total": u64::MAX, "vram_limit": 2, "free": 3});
        assert_eq!(lines[0], expected);
        assert_eq!(
            lines[1],
            json!({"v": 1, "type": "wounded", "t": 2.0, "pid": 7, "reason": "why"})
        );
    }

    #[test]
    fn a_reader_that_never_reads_ends_the_stream() {
        let (reader, writer) = io::pipe().unwrap();
        let mut sink = Sink {
            file: Some(File::from(std::os::fd::OwnedFd::from(writer))),
        };
        for _ in 0..10_000 {
            sink.record(&record(Kind::Degraded, NO_DEVICE, "why"), 0.0);
        }
        assert!(!sink.is_open());
        drop(reader);
    }
}
