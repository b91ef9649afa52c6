//! Memory between processes: legacy handles of memory that the shim backs, within a job and beyond it.

use std::path::Path;
use std::time::{Duration, Instant};

use greenboost_wire::record::Kind;

use crate::harness::{Job, MIB, Run, Running, bench, run};

/// A run that shares its card with the others of the test.
fn with(board: &tempfile::NamedTempFile, args: &[&str]) -> Run {
    run("ipc", args).env("FAKE_CUDA_SHARED", board.path())
}

fn board() -> tempfile::NamedTempFile {
    tempfile::NamedTempFile::new().expect("a file")
}

/// An exporter, and its handle.
fn exporter<'a>(board: &tempfile::NamedTempFile, job: &'a Job) -> (Running<'a>, String) {
    let mut one = with(board, &["export"]).start_in(job);
    let handle = one.next_line("handle ", 0).expect("a handle");
    (one, handle)
}

/// PITFALLS 26: large and small allocations, in VRAM and on the host, shared with a child: as without the shim.
#[test]
fn p26_shared_with_a_child() {
    let board = board();
    let outcome = with(&board, &["family"]).vram(16).both();
    assert!(outcome.spilled > 8 * MIB, "hardly anything spilled");
}

/// The launcher itself in between.
#[test]
fn under_the_launcher() {
    let board = board();
    let bench = bench();
    let family = |program: &Path| {
        let mut command = std::process::Command::new(program);
        command
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", board.path().with_extension("home"))
            .env("LD_LIBRARY_PATH", &bench.driver)
            .env("LIBCUDA_PATH", bench.driver.join("libcuda.so.1"))
            .env("FAKE_CUDA_SHARED", board.path());
        command
    };
    let victim = bench.victims.join("ipc");
    let told = |output: std::process::Output| {
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{errors}");
        (String::from_utf8_lossy(&output.stdout).into_owned(), errors)
    };
    let plain = family(&victim)
        .env("FAKE_CUDA_VRAM", "8g")
        .arg("family")
        .output();
    let mut launcher = family(Path::new(env!("CARGO_BIN_EXE_greenboost")));
    launcher
        .env("FAKE_CUDA_VRAM", "512m")
        .args(["run", "--vram-limit", "16M", "--ram-limit", "1G", "--"])
        .arg(&victim)
        .arg("family");
    let (plain, _) = told(plain.expect("it starts"));
    let (shimmed, said) = told(launcher.output().expect("it starts"));
    assert_eq!(plain, shimmed);
    assert!(!said.contains("degraded"), "{said}");
    let _ = std::fs::remove_dir_all(board.path().with_extension("home"));
}

/// Where all of it fits, and where nothing may spill.
#[test]
fn p26_shared_from_vram() {
    let board = board();
    with(&board, &["family"]).vram(256).both();
    with(&board, &["family"]).vram(256).no_spill().both();
}

/// Charged once for the job; gone when its owner has freed it, and not before others have closed it.
#[test]
fn opened_memory_is_its_owners() {
    let board = board();
    let job = with(&board, &[]).job();
    let (mut owner, handle) = exporter(&board, &job);
    let held = job.held();
    assert!(held.0 + held.1 >= 26 * MIB);
    let mut other = with(&board, &["open", &handle]).start_in(&job);
    assert_eq!(other.next_line("opened ", 0).unwrap(), "Ok(true)");
    assert_eq!(job.held(), held, "charged twice");
    other.tell("fork");
    assert_eq!(other.next_line("in a child ", 0).unwrap(), "3");
    // What the owner frees is not used again while somebody may have it open.
    owner.tell("free");
    owner.until("freed");
    owner.tell("other");
    owner.until("other");
    other.tell("look");
    assert_eq!(other.next_line("still ", 0).unwrap(), "true");
    other.tell("end");
    other.wait();
    let late = with(&board, &["open", &handle]).start_in(&job).wait();
    assert_eq!(late.stdout, "opened Err(400)\n");
    owner.tell("end");
    owner.wait();
    let degraded = |r: &&greenboost_wire::record::Record| r.kind == Kind::Degraded;
    assert_eq!(
        job.records().iter().filter(degraded).count(),
        1,
        "said once, by the late one"
    );
    job.demand_sane_and_empty();
}

#[test]
fn one_handle_opened_by_many_threads() {
    let board = board();
    let job = with(&board, &[]).job();
    let (mut owner, handle) = exporter(&board, &job);
    let outcome = with(&board, &["threads", &handle]).start_in(&job).wait();
    assert_eq!(outcome.stdout, "end\n");
    let outcome = with(&board, &["again", &handle]).start_in(&job).wait();
    assert_eq!(outcome.stdout, "then 1\n".repeat(3));
    owner.tell("end");
    owner.wait();
    job.demand_sane_and_empty();
}

/// A process that is killed leaves nothing behind that could be opened.
#[test]
fn owner_is_killed() {
    let board = board();
    let job = with(&board, &[]).job();
    let (mut owner, handle) = exporter(&board, &job);
    owner.kill();
    drop(owner);
    let start = Instant::now();
    let late = with(&board, &["open", &handle]).start_in(&job).wait();
    assert_eq!(late.stdout, "opened Err(400)\n");
    assert!(start.elapsed() < Duration::from_secs(4));
    job.demand_sane_and_empty();
}

/// To a process outside of the job the handle is none, and to one of another job neither; that one says why.
#[test]
fn outside_of_the_job() {
    let board = board();
    let job = with(&board, &[]).job();
    let (mut owner, handle) = exporter(&board, &job);
    let outside = with(&board, &["open", &handle]).plain();
    assert_eq!(outside.stdout, "opened Err(1)\n");
    let elsewhere = with(&board, &["open", &handle]).may_degrade().shimmed();
    assert_eq!(elsewhere.stdout, "opened Err(400)\n");
    assert_eq!(elsewhere.said(Kind::Degraded), 1);
    owner.tell("end");
    owner.wait();
    job.demand_sane_and_empty();
}

/// What the driver shares itself still comes in from outside.
#[test]
fn from_outside_of_the_job() {
    let board = board();
    let mut owner = with(&board, &["export"]).card(512).start_plain();
    let handle = owner.next_line("handle ", 0).expect("a handle");
    let job = with(&board, &[]).job();
    let mut other = with(&board, &["open", &handle]).start_in(&job);
    assert_eq!(other.next_line("opened ", 0).unwrap(), "Ok(true)");
    other.tell("end");
    other.wait();
    owner.tell("end");
    owner.wait();
    job.demand_sane_and_empty();
}

/// PITFALLS 38: without a launcher there is nobody to leave memory with. Everything else goes on.
#[test]
fn p38_launcher_gone() {
    let board = board();
    let job = with(&board, &[]).job();
    let (mut owner, handle) = exporter(&board, &job);
    let mut open = with(&board, &["open", &handle]).start_in(&job);
    assert_eq!(open.next_line("opened ", 0).unwrap(), "Ok(true)");
    job.hang_up();
    open.tell("look");
    assert_eq!(open.next_line("still ", 0).unwrap(), "true");
    open.tell("end");
    open.wait();
    let late = with(&board, &["open", &handle]).start_in(&job).wait();
    assert_eq!(late.stdout, "opened Err(205)\n");
    let none = with(&board, &["export"]).start_in(&job).wait();
    assert_eq!(none.stdout, "no handle 1\n");
    owner.tell("handle");
    assert_eq!(
        owner.next_line("asked ", 0).unwrap(),
        format!("Ok({handle:?})")
    );
    owner.tell("end");
    owner.wait();
    job.demand_sane_and_empty();
}

/// A launcher that never answers: every wait ends.
#[test]
fn launcher_does_not_answer() {
    let board = board();
    let job = with(&board, &[]).job();
    let (mut owner, handle) = exporter(&board, &job);
    job.stop_answering();
    let start = Instant::now();
    let late = with(&board, &["open", &handle]).start_in(&job).wait();
    assert_eq!(late.stdout, "opened Err(205)\n");
    assert!(start.elapsed() < Duration::from_secs(15));
    let none = with(&board, &["export"]).start_in(&job).wait();
    assert_eq!(none.stdout, "no handle 1\n");
    // Its free withdraws what it left, and does not wait for ever either.
    owner.tell("end");
    owner.wait();
    job.demand_sane_and_empty();
}

/// Where memory cannot be exported, or is registered memory, there are no handles: said once, and nothing else changes.
#[test]
fn memory_that_cannot_be_shared() {
    let board = board();
    let one = with(&board, &["export"])
        .env("FAKE_CUDA_FAIL", "cuMemExportToShareableHandle:1+:801")
        .may_degrade()
        .shimmed();
    assert_eq!(one.stdout, "no handle 1\n");
    assert_eq!(one.said(Kind::Degraded), 1);
    let one = with(&board, &["export"])
        .env("GREENBOOST_BACKEND", "pinned")
        .may_degrade()
        .shimmed();
    assert_eq!(one.stdout, "no handle 1\n");
}

/// The driver fails half-way: an error to the program, and nothing left over.
#[test]
fn failures_half_way() {
    let board = board();
    let job = with(&board, &[]).job();
    let (mut owner, handle) = exporter(&board, &job);
    for (rule, answer) in [
        ("cuMemImportFromShareableHandle:2:2", 2),
        ("cuMemAddressReserve:1+:2", 2),
        ("cuMemMap:2+:999", 999),
        ("cuMemSetAccess:1+:999", 999),
    ] {
        // The first calls of these are the shim's own trials of the device.
        let other = with(&board, &["open", &handle])
            .env("FAKE_CUDA_FAIL", shifted(rule))
            .env("FAKE_CUDA_LEAKS", "1")
            .may_degrade();
        let outcome = other.start_in(&job).wait();
        assert_eq!(outcome.stdout, format!("opened Err({answer})\n"), "{rule}");
    }
    owner.tell("end");
    owner.wait();
    job.demand_sane_and_empty();
}

/// The shim tries out two kinds of memory first: so many calls come before those that open a handle.
fn shifted(rule: &str) -> String {
    let (name, rest) = rule.split_once(':').expect("NAME:N:CODE");
    let (nth, code) = rest.split_once(':').expect("N:CODE");
    let trials = if name == "cuMemImportFromShareableHandle" {
        0
    } else {
        2
    };
    let (digits, plus) = match nth.strip_suffix('+') {
        Some(digits) => (digits, "+"),
        None => (nth, ""),
    };
    let nth: u32 = digits.parse().expect("a number");
    format!("{name}:{}{plus}:{code}", nth + trials)
}
