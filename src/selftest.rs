//! `greenboost selftest`: runs the CUDA program that is inside this executable under `greenboost run`, as any other
//! program, and says what came of it.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};
use serde_json::{Value, json};

use crate::cli::SelftestArgs;
use crate::voice::print;
use crate::{embed, say};

/// Exit status: a check failed.
pub const FAILED: u8 = 1;
/// Exit status: no usable GPU.
pub const NO_GPU: u8 = 3;

/// What is said then.
const WITHOUT_GPU: &str = "no usable GPU here; `greenboost selftest --simulated` checks greenboost itself without one, on a simulated driver";

/// VRAM limit on a real card: small, so that little memory and little time are needed.
const LIMIT: &str = "256M";
/// VRAM of the simulated card, and the limit on it.
const SIMULATED_CARD: &str = "96M";
const SIMULATED_LIMIT: &str = "64M";

/// The last line on the simulated driver. Exactly this, for those who look for it.
const SIMULATED_PASS: &str = "PASSED on the SIMULATED driver: this says nothing about your GPU";
const SIMULATED_FAIL: &str = "FAILED on the SIMULATED driver: this says nothing about your GPU";

/// One check, as its line says.
struct Check {
    result: String,
    name: String,
    detail: String,
}

/// What a run of the program gave.
struct Outcome {
    status: Option<i32>,
    checks: Vec<Check>,
    records: Vec<Value>,
    misuse: Vec<String>,
}

/// Runs it.
pub fn selftest(args: &SelftestArgs) -> anyhow::Result<u8> {
    let is_simulated = args.simulated;
    if !is_simulated && !has_gpu()? {
        say(WITHOUT_GPU);
        return Ok(NO_GPU);
    }
    let scratch = Scratch::create()?;
    let outcome = attempt(&scratch.0, is_simulated, args.json)?;
    if outcome.status == Some(NO_GPU.into()) {
        say(WITHOUT_GPU);
        return Ok(NO_GPU);
    }
    let has_passed = outcome.status == Some(0) && outcome.misuse.is_empty();
    let device = outcome.record("device").and_then(|r| r["name"].as_str());
    let device = device.unwrap_or("an unknown device").to_string();
    let verdict = match (is_simulated, has_passed) {
        (true, true) => SIMULATED_PASS.to_string(),
        (true, false) => SIMULATED_FAIL.to_string(),
        (false, true) => format!("PASSED on {device}"),
        (false, false) => format!("FAILED on {device}"),
    };
    let text = if args.json {
        let document = outcome.document(is_simulated, has_passed, &device, &verdict);
        serde_json::to_string_pretty(&document)? + "\n"
    } else {
        let mut text = String::new();
        for line in &outcome.misuse {
            text += &format!("FAIL  driver misuse: {line}\n");
        }
        if !matches!(outcome.status, Some(0..=3)) {
            text += &format!("FAIL  the program ended with status {:?}\n", outcome.status);
        }
        text + &verdict + "\n"
    };
    print(&text)?;
    Ok(if has_passed { 0 } else { FAILED })
}

/// Ourselves, by the real name where there still is one: it is shown.
pub fn own_path() -> PathBuf {
    std::env::current_exe()
        .ok()
        .filter(|path| path.exists())
        .unwrap_or_else(|| "/proc/self/exe".into())
}

/// Whether a CUDA program finds a GPU here, as far as a look in a process of its own can tell.
fn has_gpu() -> anyhow::Result<bool> {
    let status = Command::new(own_path())
        .args(["selftest-program", "--probe"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status()
        .context("cannot start myself again")?;
    // Anything else than a clear "no" is for the real attempt to show.
    Ok(status.code() != Some(NO_GPU.into()))
}

/// One run of the program under a launcher of its own.
fn attempt(scratch: &Path, simulated: bool, quiet: bool) -> anyhow::Result<Outcome> {
    let records = scratch.join("records");
    let misuse = scratch.join("misuse");
    let limit = if simulated { SIMULATED_LIMIT } else { LIMIT };
    let own = own_path();
    let mut command = Command::new(&own);
    command
        .args([
            "run",
            "--vram-limit",
            limit,
            "--spill",
            "ram",
            "--report",
            "extended",
        ])
        .args(["--stats", if quiet { "off" } else { "lines" }])
        .arg("--json")
        .arg(&records)
        .arg("--")
        .arg(&own)
        .arg("selftest-program")
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    // Whatever the user has set is for other programs; RAM limits hold here too.
    for name in ["GREENBOOST_JOB", "GREENBOOST"] {
        command.env_remove(name);
    }
    if simulated {
        let dir = embed::extract_simulated_driver(&scratch.join("driver"))?;
        let mut path = dir.into_os_string();
        if let Some(users) = std::env::var_os("LD_LIBRARY_PATH").filter(|p| !p.is_empty()) {
            path.push(":");
            path.push(users);
        }
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("FAKE_CUDA_") {
                command.env_remove(name);
            }
        }
        command
            .env("LD_LIBRARY_PATH", path)
            .env("FAKE_CUDA_VRAM", SIMULATED_CARD)
            .env("FAKE_CUDA_REPORT", &misuse);
    }
    let mut child = command.spawn().context("cannot start myself again")?;
    let mut checks = Vec::new();
    if let Some(out) = child.stdout.take() {
        for line in BufReader::new(out).lines() {
            let line = line.context("cannot read what the program says")?;
            if !quiet && !line.starts_with("none ") {
                // As they come: some take seconds.
                let _ = writeln!(std::io::stdout(), "{line}");
            }
            checks.extend(Check::parse(&line));
        }
    }
    let status = child.wait()?.code();
    if status == Some(crate::OWN_ERROR.into()) {
        bail!("the self-test could not be started");
    }
    let records = fs::read_to_string(&records).unwrap_or_default();
    let misuse = fs::read_to_string(&misuse).unwrap_or_default();
    Ok(Outcome {
        status,
        checks,
        records: records
            .lines()
            .filter_map(|l| serde_json::from_str(l).ok())
            .collect(),
        misuse: misuse.lines().map(str::to_string).collect(),
    })
}

impl Check {
    fn parse(line: &str) -> Option<Check> {
        let (result, rest) = line.split_once(' ')?;
        let (name, detail) = rest.split_once(": ")?;
        Some(Check {
            result: result.to_string(),
            name: name.trim().to_string(),
            detail: detail.to_string(),
        })
    }
}

impl Outcome {
    fn record(&self, kind: &str) -> Option<&Value> {
        self.records.iter().find(|r| r["type"] == kind)
    }

    fn document(&self, simulated: bool, passed: bool, device: &str, verdict: &str) -> Value {
        let checks: Vec<Value> = self
            .checks
            .iter()
            .map(|c| json!({"name": c.name, "ok": c.result == "ok", "detail": c.detail}))
            .collect();
        json!({
            "v": 1,
            "passed": passed,
            "simulated": simulated,
            "device": device,
            "verdict": verdict,
            "exit_code": self.status,
            "checks": checks,
            "driver_misuse": self.misuse,
            "summary": self.record("summary"),
        })
    }
}

/// A private directory that goes when we do.
struct Scratch(PathBuf);

impl Scratch {
    fn create() -> anyhow::Result<Scratch> {
        use std::os::unix::fs::DirBuilderExt;
        let name = format!(
            "greenboost-selftest-{}-{:08x}",
            std::process::id(),
            crate::job::random()
        );
        let dir = std::env::temp_dir().join(name);
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&dir)
            .with_context(|| format!("cannot create {}", dir.display()))?;
        Ok(Scratch(dir))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
