//! The life of a process.

use std::process::Command;
use std::time::{Duration, Instant};

use greenboost_wire::record::Kind;

use crate::harness::{MIB, run, shim};

/// PITFALLS 8: frees in exit handlers and thread-local destructors.
#[test]
fn p08_frees_at_exit() {
    run("life", &["exit-frees"])
        .misuses("which is no allocation")
        .both();
}

/// A process that gives nothing back leaves nothing in the ledger.
#[test]
fn p14_leaving_everything() {
    for how in ["orderly", "abruptly"] {
        run("life", &["leave", how]).exits(7).both();
    }
}

#[test]
fn fork_with_cuda_live() {
    let outcome = run("life", &["fork"]).both();
    assert_eq!(outcome.said(Kind::Hello), 1, "a child is nobody");
    assert_eq!(outcome.said(Kind::Bye), 1, "a child takes no leave");
}

#[test]
fn fork_before_cuda() {
    let outcome = run("life", &["fork-before"]).both();
    assert_eq!(outcome.said(Kind::Hello), 2, "both sides join the job");
}

#[test]
fn fork_and_exec() {
    let outcome = run("life", &["fork-exec"]).both();
    assert_eq!(outcome.said(Kind::Hello), 2, "both processes join the job");
}

#[test]
fn threads_come_and_go() {
    run("life", &["threads"]).vram(8).both();
}

/// PITFALLS 14: a killed process's memory is there for the next one.
#[test]
fn p14_killed() {
    let holder = run("life", &["hold", &(60 * MIB).to_string()]).ram(64);
    let job = holder.job();
    for _ in 0..3 {
        let mut first = holder.dies_of_kill().start_in(&job);
        first.until("holding");
        let (vram, host) = job.held();
        assert!(vram + host >= 60 * MIB, "{vram} and {host} bytes held");
        // While it lives there is no room for a second one.
        let refused = run("life", &["hold", &(60 * MIB).to_string()])
            .ram(64)
            .exits(101);
        let mut second = refused.start_in(&job);
        while second.is_running() {
            std::thread::sleep(Duration::from_millis(5));
        }
        drop(second);
        first.kill();
        first.wait();
        let mut third = holder.start_in(&job);
        third.until("holding");
        third.tell("end");
        third.wait();
    }
    job.demand_sane_and_empty();
}

impl crate::harness::Run {
    fn dies_of_kill(&self) -> crate::harness::Run {
        self.clone().dies_of(9)
    }
}

/// PITFALLS 14: a child's end does not clear what its parent holds.
#[test]
fn p14_child_ends() {
    let r = run("life", &["hold", &(40 * MIB).to_string(), "fork"]);
    let job = r.job();
    let mut live = r.start_in(&job);
    live.until("holding");
    job.ledger.reap();
    let (vram, host) = job.held();
    assert!(vram + host >= 40 * MIB, "{vram} and {host} bytes held");
    live.tell("end");
    live.wait();
    job.demand_sane_and_empty();
}

/// PITFALLS 38: a program closes descriptors that it did not open and uses their numbers: nothing of ours may reach its
/// files, and nothing of its may be closed.
#[test]
fn p38_closed_descriptors() {
    let outcome = run("life", &["descriptors"]).ram(256).both();
    let placed: u64 = outcome.notes("placed")[0].parse().unwrap();
    assert!(placed > 0, "the shim's descriptors were not found");
    // The shim found its way back to the launcher.
    assert!(outcome.said(Kind::OutOfMemory) >= 5 && outcome.said(Kind::Bye) == 1);
}

/// PITFALLS 38: a launcher that is gone does no harm.
#[test]
fn p38_launcher_gone() {
    let r = run("life", &["hold", &(30 * MIB).to_string()]);
    let job = r.job();
    let mut live = r.start_in(&job);
    live.until("holding");
    job.hang_up();
    live.tell("end");
    live.wait();
    // And one that was gone before the program began.
    r.start_in(&job).wait();
    let mut live = run("memory", &["cycles", "3"]).start_in(&job);
    live.until("freed");
    live.tell("end");
    live.wait();
    job.demand_sane_and_empty();
}

/// PITFALLS 11 and 40: a process that never touches CUDA has no thread, descriptor or output more.
#[test]
fn p11_p40_never_touches_cuda() {
    let r = run("quiet", &[]);
    let outcome = r.both();
    assert!(outcome.records.is_empty());
}

/// PITFALLS 11: and no time.
#[test]
fn p11_costs_no_time() {
    let job = run("quiet", &[]).job();
    let time = |preload: bool| {
        let mut best = Duration::MAX;
        for _ in 0..100 {
            let mut c = Command::new("/bin/true");
            c.env("GREENBOOST_JOB", job.path());
            if preload {
                c.env("LD_PRELOAD", shim());
            }
            let start = Instant::now();
            assert!(c.status().unwrap().success());
            best = best.min(start.elapsed());
        }
        best
    };
    let (without, with) = (time(false), time(true));
    assert!(
        with < without + Duration::from_millis(1),
        "{without:?} without the shim, {with:?} with it"
    );
}

/// DESIGN law 7: switched off, the shim is inert.
#[test]
fn switched_off() {
    let r = run("everything", &[]).env("GREENBOOST", "off");
    let plain = r.plain();
    let job = r.job();
    let off = r.start_in(&job).wait();
    r.compare(&plain, &off);
    assert!(job.records().is_empty(), "it spoke to the launcher");
    assert_eq!(job.ledger.devices().count(), 0, "it touched the ledger");
    let r = run("quiet", &[]).env("GREENBOOST", "off");
    r.both();
}

/// A preloaded shim without a job behind it is inert too.
#[test]
fn no_job() {
    let r = run("everything", &[]);
    let outcome = r.clone().env("LD_PRELOAD", shim()).plain();
    r.compare(&r.plain(), &outcome);
}

/// A job directory that is not there, or holds nonsense: the program runs without limits.
#[test]
fn broken_job() {
    let r = run("everything", &[]);
    let plain = r.plain();
    let gone = r
        .clone()
        .env("LD_PRELOAD", shim())
        .env("GREENBOOST_JOB", "/nonexistent/job");
    r.compare(&plain, &gone.plain());
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("ledger"), b"nonsense").unwrap();
    let nonsense = r
        .clone()
        .env("LD_PRELOAD", shim())
        .env("GREENBOOST_JOB", dir.path());
    r.compare(&plain, &nonsense.plain());
}
