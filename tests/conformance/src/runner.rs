//! Each check in a process of its own: drivers keep state, and errors of a context are for good.

use std::error::Error;
use std::io::Read;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use crate::api::Driver;
use crate::checks::{CHECKS, Check};
use crate::told::Told;

/// Longer than any check takes on a loaded machine.
const LIMIT: Duration = Duration::from_secs(30);
/// How a process says that its check had nothing to look at.
const SKIPPED: u8 = 77;

enum Outcome {
    Same(String),
    Different(String),
    Skipped(String),
}

/// The program: runs the checks named by the arguments, or all. 0 when none differs, 1 otherwise.
pub fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let names: Vec<&str> = args.iter().map(String::as_str).collect();
    match names[..] {
        ["--list"] => list(),
        ["--alone", name] => alone(name),
        ["--help" | "-h"] => {
            println!("usage: conformance [--list] [NAME...]");
            ExitCode::SUCCESS
        }
        [] => run(CHECKS.iter().collect()),
        _ => {
            let known = |name: &&str| {
                CHECKS
                    .iter()
                    .find(|c| c.name == *name)
                    .ok_or(name.to_string())
            };
            match names.iter().map(known).collect::<Result<Vec<_>, _>>() {
                Ok(chosen) => run(chosen),
                Err(name) => {
                    eprintln!("there is no check {name}; --list names them");
                    ExitCode::FAILURE
                }
            }
        }
    }
}

fn list() -> ExitCode {
    for check in CHECKS {
        println!("{:28} {}", check.name, check.expects);
    }
    ExitCode::SUCCESS
}

/// In the child: one check, its findings on standard output.
fn alone(name: &str) -> ExitCode {
    let Some(check) = CHECKS.iter().find(|c| c.name == name) else {
        return ExitCode::FAILURE;
    };
    let told = Told::default();
    (check.run)(&told);
    let (rows, wrong) = told.score();
    if told.skipped() {
        return ExitCode::from(SKIPPED);
    }
    println!("{rows} looked at, {wrong} different");
    if wrong == 0 && rows > 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn run(chosen: Vec<&Check>) -> ExitCode {
    match about() {
        Ok(text) => println!("{text}"),
        Err(why) => {
            println!("no driver to check: {why}");
            return ExitCode::FAILURE;
        }
    }
    let (mut same, mut different, mut skipped) = (0, 0, 0);
    for check in chosen {
        let start = Instant::now();
        let outcome = spawn(check.name);
        let seconds = start.elapsed().as_secs_f64();
        let (word, text) = match outcome {
            Outcome::Same(text) => (same += 1, ("ok", text)).1,
            Outcome::Different(text) => (different += 1, ("DIFFERENT", text)).1,
            Outcome::Skipped(text) => (skipped += 1, ("skipped", text)).1,
        };
        println!(
            "{word:9} {:28} {seconds:6.2} s  {}",
            check.name, check.expects
        );
        // Of a check that is as expected only remarks are of interest.
        let interesting = |line: &&str| word != "ok" || line.starts_with('(');
        text.lines()
            .filter(interesting)
            .for_each(|line| println!("          | {line}"));
    }
    println!("{same} as expected, {different} different, {skipped} skipped");
    if different == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// What is under test.
fn about() -> Result<String, String> {
    let driver = Driver::load().map_err(|e| match e.source() {
        Some(why) => format!("{e}: {why}"),
        None => e.to_string(),
    })?;
    let mut version = 0;
    driver.cuDriverGetVersion(Some(&mut version));
    match driver.cuInit(0) {
        0 => {}
        code => return Err(format!("cuInit returned {code}")),
    }
    let mut name = [0u8; 256];
    driver.cuDeviceGetName(Some(&mut name), 255, 0);
    let name = String::from_utf8_lossy(&name);
    // A driver does not survive being unloaded.
    std::mem::forget(driver);
    Ok(format!(
        "{}, CUDA {}.{}",
        name.trim_end_matches('\0'),
        version / 1000,
        version % 1000 / 10
    ))
}

fn spawn(name: &str) -> Outcome {
    let own = match std::env::current_exe() {
        Ok(own) => own,
        Err(e) => return Outcome::Different(e.to_string()),
    };
    let child = Command::new(own)
        .args(["--alone", name])
        .env("RUST_BACKTRACE", "0")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    match child {
        Ok(child) => watch(child),
        Err(e) => Outcome::Different(e.to_string()),
    }
}

fn watch(mut child: Child) -> Outcome {
    let (out, err) = (child.stdout.take(), child.stderr.take());
    std::thread::scope(|scope| {
        let out = scope.spawn(move || text(out));
        let err = scope.spawn(move || text(err));
        let deadline = Instant::now() + LIMIT;
        let status = loop {
            match child.try_wait() {
                Ok(Some(status)) => break Some(status),
                Ok(None) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(5))
                }
                _ => {
                    let _ = child.kill();
                    let _ = child.wait();
                    break None;
                }
            }
        };
        let mut said = out.join().unwrap_or_default();
        let complaint = err.join().unwrap_or_default();
        match status {
            Some(status) if status.success() => return Outcome::Same(said),
            Some(status) if status.code() == Some(SKIPPED.into()) => return Outcome::Skipped(said),
            Some(status) if status.code() == Some(1) => {}
            Some(status) => said += &format!("{status}\n"),
            None => said += &format!("still running after {} s\n", LIMIT.as_secs()),
        }
        Outcome::Different(said + &complaint)
    })
}

fn text(from: Option<impl Read>) -> String {
    let mut bytes = Vec::new();
    if let Some(mut from) = from {
        let _ = from.read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
