//! Which bytes are in VRAM: those that are used most, whatever came first; and nothing is moved where that cannot be done.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use greenboost_wire::ledger::{Placement, Tier, VramLimit};

use crate::harness::{Job, MIB, Run, Running, run};

/// Bytes of the allocation at this address that are on Host, as the ledger remembers.
fn on_host(job: &Job, address: u64) -> u64 {
    let (_, device) = job.ledger.devices().next().expect("a device");
    let largest = device.largest();
    let found = largest.iter().find(|s| s.address == address);
    found.map_or(0, |s| if s.freed.is_some() { 0 } else { s.host_bytes })
}

fn number(running: &mut Running, word: &str, n: usize) -> u64 {
    let line = running.next_line(word, n).expect("a line");
    line.trim().parse().expect("a number")
}

/// Waits until that is so.
#[track_caller]
fn soon(what: impl Fn() -> bool) {
    let start = Instant::now();
    while !what() {
        assert!(start.elapsed() < Duration::from_secs(30), "not in time");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn finish(run: &Run, job: &Job, mut running: Running) {
    running.say_on();
    let mut outcome = running.wait();
    outcome.records = job.records();
    run.judge_records(&outcome);
    job.demand_sane_and_empty();
}

/// PITFALLS 31: a KV cache that comes last is in VRAM all the same.
#[test]
fn p31_what_each_step_uses_most_is_in_vram() {
    let run = run("placement", &["cache"]).vram(90);
    let job = run.job();
    let mut running = run.start_in(&job);
    let cache = number(&mut running, "~cache ", 0);
    assert!(on_host(&job, cache) > 0);
    soon(|| on_host(&job, cache) == 0);
    finish(&run, &job, running);
    assert!(job.moved() < 400 * MIB, "{}", job.moved());
    run.both();
}

/// First come, first served, when that is asked for.
#[test]
fn first_fit_moves_nothing() {
    let run = run("placement", &["cache"])
        .vram(90)
        .placement(Placement::FirstFit);
    assert_eq!(run.both().moved, 0);
}

/// PITFALLS 30: no more is read of a launch's arguments than there is.
#[test]
fn p30_arguments_at_the_end_of_a_page() {
    run("placement", &["edge"]).vram(13).both();
}

/// `--trace FILE`: what happened.
#[test]
fn traces_are_written() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("trace");
    run("placement", &["cache"])
        .vram(90)
        .env("GREENBOOST_TRACE", &path)
        .shimmed();
    let trace = std::fs::read(&path).unwrap();
    assert!(trace.starts_with(b"GBTRACE\x01") && trace.len() > 2000);
}

/// PITFALLS 33: of two models used in turns the active one is in VRAM.
#[test]
fn p33_the_model_in_use_is_in_vram() {
    let run = run("placement", &["two"]).vram(62);
    let job = run.job();
    let mut running = run.start_in(&job);
    for turn in 0..4 {
        let weights: Vec<u64> = (0..3)
            .map(|n| number(&mut running, &format!("~weight {turn} "), n))
            .collect();
        soon(|| weights.iter().all(|w| on_host(&job, *w) == 0));
        running.tell("on");
    }
    finish(&run, &job, running);
}

/// DESIGN law 3: a device that does not drain keeps nobody up.
#[test]
fn a_device_that_never_drains() {
    let run = run("placement", &["busy"])
        .vram(50)
        .env("GREENBOOST_MOVES", "always");
    let job = run.job();
    let mut running = run.start_in(&job);
    running.until("~done");
    let (_, device) = job.ledger.devices().next().expect("a device");
    assert!(device.traffic.moves_abandoned.load(SeqCst) > 0);
    finish(&run, &job, running);
}

#[test]
fn p27_nothing_moves_during_a_capture() {
    let run = run("placement", &["capture"])
        .vram(50)
        .env("GREENBOOST_MOVES", "always");
    let job = run.job();
    let mut running = run.start_in(&job);
    running.until("~begun");
    let before = job.moved();
    running.tell("on");
    running.until("~stepped");
    assert_eq!(job.moved(), before);
    running.tell("on");
    let outcome = running.wait();
    assert!(outcome.stdout.contains("right"));
    assert!(job.moved() > before, "nothing moved after it either");
}

fn moving(rule: &str) -> Run {
    run("placement", &["moved"])
        .vram(13)
        .ram(40)
        .env("GREENBOOST_MOVES", "always")
        .env("FAKE_CUDA_FAIL", rule)
}

/// Calls of each function of the driver, by what the simulated one wrote down: all, and those before anything moved.
fn calls() -> BTreeMap<String, u64> {
    let trace = tempfile::NamedTempFile::new().unwrap();
    moving("").env("FAKE_CUDA_TRACE", trace.path()).shimmed();
    let text = std::fs::read_to_string(trace.path()).unwrap();
    let mut counts = BTreeMap::new();
    for name in text.lines().filter_map(|l| l.split(' ').nth(2)) {
        *counts.entry(name.to_string()).or_insert(0) += 1;
    }
    counts
}

/// Any call that a move makes may fail: the bytes are right, and nothing is lost.
#[test]
fn calls_of_moves_fail() {
    let calls = calls();
    let mut tried = 0;
    for name in [
        "cuMemAddressReserve",
        "cuMemCreate",
        "cuMemMap",
        "cuMemSetAccess",
        "cuMemcpyDtoDAsync_v2",
        "cuStreamSynchronize",
        "cuMemUnmap",
        "cuMemRelease",
        "cuMemAddressFree",
    ] {
        let count = calls.get(name).copied().unwrap_or(0);
        // The first calls are of the allocations; the last of the end.
        let own = if name == "cuMemcpyDtoDAsync_v2" {
            0
        } else {
            count / 3
        };
        for nth in (own + 1..=count).step_by((count as usize / 6).max(1)) {
            for code in [999, 2] {
                let mut run = moving(&format!("{name}:{nth}:{code}"));
                // Memory that cannot be unmapped can never be used again.
                if name == "cuMemUnmap" {
                    run = run.may_be_wounded();
                }
                let job = run.job();
                let mut outcome = run.start_in(&job).wait();
                outcome.records = job.records();
                run.judge_records(&outcome);
                assert!(outcome.stdout.contains("right"), "{run}");
                job.demand_within_limits();
                tried += 1;
            }
        }
    }
    assert!(tried > 60, "only {tried}");
}

/// When a chunk can be mapped neither at its new place nor at its old one, the program is stopped: it holds an address
/// that is not valid any more.
#[test]
fn what_cannot_be_mapped_back_stops_the_program() {
    let calls = calls();
    let mut stopped = 0;
    for nth in 1..=calls["cuMemMap"] {
        let run = moving(&format!("cuMemMap:{nth}+:999")).may_be_wounded();
        let job = run.job();
        let outcome = run.start_in(&job).unjudged();
        match std::os::unix::process::ExitStatusExt::signal(&outcome.status) {
            Some(6) => {
                assert!(outcome.stderr.contains("stopped the program"), "{run}");
                assert!(outcome.stdout.contains("moving") && !outcome.stdout.contains("right"));
                stopped += 1;
            }
            _ => assert!(!outcome.stdout.contains("~moved") || outcome.stdout.contains("right")),
        }
    }
    assert!(stopped > 0);
}

/// Limits that change while the program runs, down and up again; what it computes does not change.
#[test]
fn limits_change_under_load() {
    let run = run("placement", &["steps"]).vram(100);
    let job = run.job();
    let mut running = run.start_in(&job);
    running.until("~running");
    let (index, _) = job.ledger.devices().next().expect("a device");
    let used = || job.ledger.used(Tier::Vram, index);
    for mib in [30, 100, 20, 70, 100] {
        job.ledger.set_vram_limit(VramLimit::Bytes(mib * MIB));
        soon(|| used() <= mib * MIB);
        // What may come back does, since each step uses it.
        soon(|| used() + 25 * MIB >= mib * MIB);
    }
    running.tell("end");
    finish(&run, &job, running);
}

/// What the table and the summary tell of a step: the bytes that it names where they are, and how long it takes.
#[test]
fn what_a_step_uses_and_takes() {
    let run = run("placement", &["paced"]).vram(62);
    let job = run.job();
    let mut running = run.start_in(&job);
    running.until("~running");
    let (index, device) = job.ledger.devices().next().expect("a device");
    let on_host = job.ledger.live(index).bytes[1];
    assert!(on_host > 50 * MIB);
    soon(|| job.ledger.pace(index).step_nanos > 0);
    std::thread::sleep(Duration::from_secs(2));
    let pace = job.ledger.pace(index);
    running.tell("end");
    let steps = number(&mut running, "~steps ", 0);
    let mut outcome = running.wait();
    outcome.records = job.records();
    run.judge_records(&outcome);
    job.demand_sane_and_empty();

    let step = Duration::from_nanos(pace.step_nanos);
    let range = Duration::from_millis(75)..Duration::from_millis(130);
    assert!(range.contains(&step), "{step:?}");
    let near = |bytes: u64, times: u64| bytes as f64 / (on_host * times) as f64;
    let heat = near(pace.heat[1], 1);
    assert!((0.8..1.2).contains(&heat), "{heat}");
    // All that was named until the end, and what filled it before the first step.
    let named = near(device.traffic.named_bytes[1].load(SeqCst), steps + 1);
    assert!((0.95..1.05).contains(&named), "{named} of {steps} steps");
    assert_eq!(job.moved(), 0, "what is used alike stays");
}

/// Processor time of the steward of this process, nanoseconds.
fn steward_time(pid: u32) -> u64 {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let of = |task: std::io::Result<std::fs::DirEntry>| {
        let task = task.unwrap().path();
        let name = std::fs::read_to_string(task.join("comm")).ok()?;
        (name.trim() == "greenboost").then(|| std::fs::read_to_string(task.join("schedstat")))
    };
    let stat = tasks.filter_map(of).next().expect("a steward").unwrap();
    let time = stat.split(' ').next().unwrap();
    time.parse().unwrap()
}

/// What the steward takes of a processor while memory is spilled, and how soon it hears that the program goes on.
#[test]
fn the_steward_costs_little() {
    const SECONDS: f64 = 2.0;
    let run = run("placement", &["many"]).card(1024).vram(400);
    let job = run.job();
    let mut running = run.start_in(&job);
    running.until("~rests 0");
    let (_, device) = job.ledger.devices().next().expect("a device");
    let named = || device.traffic.named_bytes[1].load(SeqCst);
    soon(|| named() > 0);
    std::thread::sleep(Duration::from_millis(500));
    let before = steward_time(running.pid());
    std::thread::sleep(Duration::from_secs_f64(SECONDS));
    let idle = (steward_time(running.pid()) - before) as f64 / 1e9 / SECONDS;
    assert!(idle < 0.002, "{idle} while nothing happens");

    let mut turns = 0;
    let mut heard: Vec<Duration> = Vec::new();
    for _ in 0..5 {
        let (begin, before) = (Instant::now(), named());
        running.tell("1");
        soon(|| named() > before);
        heard.push(begin.elapsed());
        turns += 1;
        running.until(&format!("~rests {turns}"));
        std::thread::sleep(Duration::from_millis(300));
    }
    heard.sort();
    // A fifth of what it sleeps when nobody wakes it.
    assert!(heard[2] < Duration::from_millis(40), "{heard:?}");

    let before = steward_time(running.pid());
    running.tell("100");
    running.until(&format!("~rests {}", turns + 100));
    let busy = (steward_time(running.pid()) - before) as f64 / 1e9 / SECONDS;
    assert!(busy < 0.05, "{busy} with 20,000 launches a second");
    running.tell("end");
    finish(&run, &job, running);
}

/// All goes down when the job is parked, and comes back when the program goes on.
#[test]
fn parked_and_woken() {
    let run = run("placement", &["steps"]).vram(100);
    let job = run.job();
    let mut running = run.start_in(&job);
    running.until("~running");
    let (index, _) = job.ledger.devices().next().expect("a device");
    let used = || job.ledger.used(Tier::Vram, index);
    let before = used();
    assert!(before > 60 * MIB);
    running.tell("rest");
    running.until("~rest");
    job.ledger.request_park();
    soon(|| used() < 2 * MIB);
    std::thread::sleep(Duration::from_millis(300));
    assert!(used() < 2 * MIB, "it came back by itself");
    running.tell("on");
    running.until("~on");
    soon(|| used() + 25 * MIB >= before);
    running.tell("end");
    finish(&run, &job, running);
}
