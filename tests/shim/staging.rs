//! Staging: chunks that come and go in slots while the program runs, and nothing that it computes is another for that.

use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use greenboost_wire::ledger::{Placement, Traffic};

use crate::harness::{Job, Run, run};

fn chance(victim: &str, args: &[&str], vram: u64) -> Run {
    run(victim, args)
        .vram(vram)
        .env("GREENBOOST_TRANSITS", "always")
}

fn traffic(job: &Job) -> &Traffic {
    let (_, device) = job.ledger.devices().next().expect("a device");
    &device.traffic
}

/// Runs it until more than so many chunks were staged in a run: on a busy machine the device may not drain in time for
/// staging to begin, and then the run says nothing.
fn staged(run: &Run, more_than: u64) {
    let enough = (0..8).any(|_| {
        let job = run.job();
        let mut running = run.start_in(&job);
        running.say_on();
        let mut outcome = running.wait();
        outcome.records = job.records();
        run.judge_records(&outcome);
        job.demand_sane_and_empty();
        traffic(&job).stagings.load(SeqCst) > more_than
    });
    assert!(enough, "{run}: little was staged");
}

/// Runs it until `enough` has been staged.
fn staged_until(run: &Run, enough: impl Fn(&Traffic) -> bool) {
    let job = run.job();
    let mut running = run.start_in(&job);
    running.until("~cache");
    let start = Instant::now();
    while !enough(traffic(&job)) {
        assert!(start.elapsed() < Duration::from_secs(60), "not in time");
        std::thread::sleep(Duration::from_millis(5));
    }
    running.say_on();
    let mut outcome = running.wait();
    outcome.records = job.records();
    run.judge_records(&outcome);
    job.demand_sane_and_empty();
}

#[test]
fn chunks_come_and_go_while_steps_run() {
    let many = |t: &Traffic| t.stagings.load(SeqCst) >= 40;
    // First come, first served: the cache, which each step writes to, stays at home on Host, and comes home changed.
    let first_fit = chance("placement", &["cache"], 90).placement(Placement::FirstFit);
    staged_until(&first_fit, |t| many(t) && t.returned_bytes.load(SeqCst) > 0);
    first_fit.both();
    // The same while chunks change their homes as well.
    staged_until(&chance("placement", &["cache"], 90), many);
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
            _ if name.starts_with("cuMem") => &[45, 100],
            _ => &[1, 40],
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
        staged(&run, 5);
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
    staged(&run, 5);
}

/// With the planner: what a loop uses next is in a slot in time.
#[test]
fn a_loop_is_staged() {
    let run = run("staging", &["loop"]).vram(26).staging();
    staged(&run, 20);
    run.both();
}
