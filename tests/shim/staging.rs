//! Staging: chunks that come and go in slots while the program runs, and nothing that it computes is another for that.

use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use greenboost_wire::ledger::Placement;

use crate::harness::{Job, Run, run};

fn chance(victim: &str, args: &[&str], vram: u64) -> Run {
    run(victim, args)
        .vram(vram)
        .env("GREENBOOST_TRANSITS", "always")
}

fn traffic(job: &Job) -> &greenboost_wire::ledger::Traffic {
    let (_, device) = job.ledger.devices().next().expect("a device");
    &device.traffic
}

/// Runs it, and tells how many chunks were staged, and how many bytes came home changed.
fn staged(run: &Run) -> (u64, u64) {
    let job = run.job();
    let mut running = run.start_in(&job);
    running.say_on();
    let mut outcome = running.wait();
    outcome.records = job.records();
    run.judge_records(&outcome);
    job.demand_sane_and_empty();
    let traffic = traffic(&job);
    (
        traffic.stagings.load(SeqCst),
        traffic.returned_bytes.load(SeqCst),
    )
}

/// Runs it until much has been staged; how many bytes came home changed.
fn staged_long(run: &Run) -> u64 {
    let job = run.job();
    let mut running = run.start_in(&job);
    running.until("~cache");
    let start = Instant::now();
    while traffic(&job).stagings.load(SeqCst) < 40 {
        assert!(start.elapsed() < Duration::from_secs(60), "not in time");
        std::thread::sleep(Duration::from_millis(5));
    }
    running.say_on();
    let mut outcome = running.wait();
    outcome.records = job.records();
    run.judge_records(&outcome);
    job.demand_sane_and_empty();
    traffic(&job).returned_bytes.load(SeqCst)
}

#[test]
fn chunks_come_and_go_while_steps_run() {
    // First come, first served: the cache, which each step writes to, stays at home on Host.
    let first_fit = chance("placement", &["cache"], 90).placement(Placement::FirstFit);
    assert!(staged_long(&first_fit) > 0);
    first_fit.both();
    // The same while chunks change their homes as well.
    staged_long(&chance("placement", &["cache"], 90));
}

fn failing(rule: &str) -> Run {
    chance("staging", &["loop"], 20).env("FAKE_CUDA_FAIL", rule)
}

/// Any call that staging makes may fail: the bytes are right, and nothing is lost.
#[test]
fn calls_of_staging_fail() {
    for name in [
        "cuCtxGetStreamPriorityRange",
        "cuStreamCreateWithPriority",
        "cuEventCreate",
        "cuEventRecord",
        "cuEventQuery",
        "cuEventSynchronize",
        "cuEventElapsedTime",
        "cuMemAddressReserve",
        "cuMemCreate",
        "cuMemMap",
        "cuMemSetAccess",
        "cuMemUnmap",
        "cuMemcpyDtoDAsync_v2",
        "cuMemGetAddressRange",
        "cuModuleLoadData",
        "cuModuleGetFunction",
    ] {
        // The first calls of some are the program's own.
        let calls: &[u64] = match name {
            "cuModuleLoadData" => &[2],
            "cuModuleGetFunction" => &[8, 9],
            _ if name.starts_with("cuMem") => &[45, 60, 100],
            _ => &[1, 2, 40],
        };
        for nth in calls {
            let run = failing(&format!("{name}:{nth}:999")).may_be_wounded();
            let job = run.job();
            let mut outcome = run.start_in(&job).wait();
            outcome.records = job.records();
            assert!(outcome.stdout.contains("right"), "{run}");
            job.demand_within_limits();
        }
    }
}

/// Tables of addresses in device memory, which no argument names: found when they are uploaded or made, in time.
#[test]
fn what_tables_name_stays_where_it_is() {
    for table in ["uploaded", "queued", "made"] {
        let run = chance("staging", &[table], 20);
        let (stagings, _) = staged(&run);
        assert!(stagings > 5, "{table}: {stagings}");
        run.both();
    }
}

/// What cannot be seen stops the program, with one clear message; it never computes with wrong data.
#[test]
fn what_cannot_be_seen_stops_the_program() {
    let run = chance("staging", &["unseen"], 20)
        .dies_of(6)
        .may_be_wounded()
        .misuses("illegal address");
    let job = run.job();
    let outcome = run.start_in(&job).unjudged();
    assert!(
        outcome.stderr.contains("`--staging off` tells which"),
        "{}",
        outcome.stderr
    );
}

/// PITFALLS 26: what is given to another process is at home, and stays there.
#[test]
fn what_is_shared_goes_home() {
    let run = chance("staging", &["shared"], 20);
    let (stagings, _) = staged(&run);
    assert!(stagings > 5, "{stagings}");
}

/// With the planner: what a loop uses next is in a slot in time.
#[test]
fn a_loop_is_staged() {
    let run = run("staging", &["loop"]).vram(26).staging();
    let (stagings, _) = staged(&run);
    assert!(stagings > 20, "{stagings}");
    run.both();
}
