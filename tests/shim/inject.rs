//! Errors of the driver at every call: the program gets a clean error or none, its bytes are right, nothing leaks.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{Mutex, OnceLock};

use greenboost_wire::record::Kind;

use crate::harness::{MIB, Run, run};

/// What the shim may call on the way of an allocation, a free or a query.
const CALLS: [&str; 16] = [
    "cuMemCreate",
    "cuMemAddressReserve",
    "cuMemMap",
    "cuMemSetAccess",
    "cuMemAlloc_v2",
    "cuMemUnmap",
    "cuMemRelease",
    "cuMemAddressFree",
    "cuMemFree_v2",
    "cuCtxSynchronize",
    "cuDeviceGetAttribute",
    "cuMemGetInfo_v2",
    "cuDeviceTotalMem_v2",
    "cuCtxGetDevice",
    "cuCtxGetCurrent",
    "cuPointerGetAttribute",
];

/// Runs the victim with a rule of `FAKE_CUDA_FAIL` and demands that it ends well. Returns how many pieces of 2 MiB it
/// got in the end, and whether the shim said that it works less well.
fn pieces(rule: &str) -> (u64, bool) {
    let mut r = run("inject", &[])
        .vram(8)
        .ram(32)
        .env("FAKE_CUDA_FAIL", rule)
        .may_degrade();
    // Memory that cannot be unmapped can never be used again.
    if rule.starts_with("cuMemUnmap:") {
        r = r.may_be_wounded();
    }
    ended_well(&r)
}

/// Runs it: it must end well, with budgets kept. Its pieces, and whether the shim said that it works less well.
fn ended_well(r: &Run) -> (u64, bool) {
    let job = r.job();
    let mut live = r.start_in(&job);
    live.until("freed");
    let (vram, host) = job.held();
    live.tell("end");
    let mut outcome = live.wait();
    outcome.records = job.records();
    r.judge_records(&outcome);
    job.demand_sane_and_empty();
    assert!(
        vram <= 8 * MIB && host <= 40 * MIB,
        "{r}: {vram} and {host} held"
    );
    let degraded = outcome.said(Kind::Degraded) + outcome.said(Kind::Wounded) > 0;
    (outcome.notes("pieces")[0].parse().unwrap(), degraded)
}

/// Fails the n-th call (or, with `later`, that and all after it) of one function: nothing of the budget may be lost.
fn fails(function: &str, nth: u64, later: bool, code: i32) {
    static UNHURT: OnceLock<u64> = OnceLock::new();
    let unhurt = *UNHURT.get_or_init(|| pieces("").0);
    assert!(unhurt >= 19, "only {unhurt} pieces in 40 MiB");
    let rule = format!("{function}:{nth}{}:{code}", if later { "+" } else { "" });
    let (got, degraded) = pieces(&rule);
    // Memory that the driver does not take back is lost, and is not counted as free.
    let lost = function == "cuMemRelease" && got + 1 == unhurt;
    assert!(
        got == unhurt || later || degraded || lost,
        "{rule}: {got} pieces in the end, {unhurt} without a failure"
    );
}

/// Functions that the scenario's calls reach in the simulated driver, and how often.
fn called() -> BTreeMap<String, u64> {
    let trace = tempfile::NamedTempFile::new().unwrap();
    let r = run("inject", &["all"])
        .vram(8)
        .ram(40)
        .env("FAKE_CUDA_POOL_GRANULE", "2m")
        .env("FAKE_CUDA_TRACE", trace.path());
    let job = r.job();
    let mut live = r.start_in(&job);
    live.until("freed");
    let text = std::fs::read_to_string(trace.path()).unwrap();
    live.tell("end");
    live.wait();
    let mut counts = BTreeMap::new();
    for name in text.lines().filter_map(|l| l.split(' ').nth(2)) {
        *counts.entry(name.to_string()).or_insert(0) += 1;
    }
    counts
}

/// What the shim only uses: the names in its table.
fn used() -> Vec<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("shim/src/driver.rs");
    let text = std::fs::read_to_string(path).expect("shim/src/driver.rs");
    let table = text.split_once("\nuses! {").expect("the table").1;
    let table = table.split_once("\n}").expect("its end").0;
    table
        .lines()
        .filter_map(|line| line.trim().strip_prefix("fn ")?.split_once('('))
        .map(|(name, _)| name.to_string())
        .collect()
}

/// Not reached by the scenario: other forms of functions that it reaches, NVML, what only other devices need.
fn elsewhere(name: &str) -> bool {
    let other_forms = ["_ptsz", "_ptds"].iter().any(|end| name.ends_with(end))
        || name.starts_with("cuMemsetD2D")
        || name.starts_with("cuMemcpy3D");
    // The first where the second is missing; the pinned backend, in `pinned::`; a release, in `memory::`; names of
    // functions, in `placement::`; the shim's own kernels, in `shim/tests/kernels.rs`.
    let older = matches!(
        name,
        "cuDeviceGetUuid"
            | "cuCtxFromGreenCtx"
            | "cuMemHostGetDevicePointer_v2"
            | "cuDevicePrimaryCtxGetState"
            | "cuDeviceCanAccessPeer"
            | "cuFuncGetName"
            | "cuKernelGetName"
            | "cuGraphGetEdges"
            | "cuModuleGetFunction"
            | "cuFuncLoad"
            | "cuEventElapsedTime"
            | "cuCtxGetStreamPriorityRange"
            | "cuStreamCreateWithPriority"
            | "cuMemGetAccess"
    );
    // Not simulated.
    let strange = name.starts_with("cuGraphExternal") || name == "cuGraphBatchMemOpNodeSetParams";
    strange
        || other_forms
        || older
        || name.starts_with("nvml")
        || name == "cuThreadExchangeStreamCaptureMode"
}

/// Every driver call of a program that does everything, its own and the shim's, fails once: at the first, at a middle and
/// at the last call of each function. The program gets an error or none, its bytes are right, its memory comes back.
#[test]
fn every_call_fails() {
    let called = called();
    let missing: Vec<String> = used()
        .into_iter()
        .filter(|name| !called.contains_key(name) && !elsewhere(name))
        .collect();
    assert!(
        missing.is_empty(),
        "the scenario makes the shim call all but {missing:?}"
    );
    let mut cases = Vec::new();
    for (name, count) in &called {
        let mut turns = vec![1, count.div_ceil(2), *count];
        turns.dedup();
        cases.extend(turns.into_iter().map(|n| (name.clone(), n, 999)));
        if name.contains("Alloc") || name.contains("Create") || name.contains("Map") {
            cases.push((name.clone(), count.div_ceil(2), 2));
        }
    }
    side_by_side(cases, |(function, nth, code)| {
        static UNHURT: OnceLock<u64> = OnceLock::new();
        let unhurt = *UNHURT.get_or_init(|| survives("").0);
        let rule = format!("{function}:{nth}:{code}");
        let (got, degraded) = survives(&rule);
        // What the driver does not take back is lost, and is not counted as free.
        let lost = function == "cuMemRelease" && got + 1 >= unhurt;
        assert!(
            got >= unhurt || degraded || lost,
            "{rule}: {got} pieces in the end, {unhurt} without a failure"
        );
    });
}

/// Runs the scenario with a rule, as [`pieces`] runs the other.
fn survives(rule: &str) -> (u64, bool) {
    let mut r = run("inject", &["all"])
        .vram(8)
        .ram(40)
        .slack(8)
        .env("FAKE_CUDA_POOL_GRANULE", "2m")
        .env("FAKE_CUDA_FAIL", rule)
        .may_degrade();
    if rule.starts_with("cuMemUnmap:") || rule.starts_with("cuMemHostUnregister:") {
        r = r.may_be_wounded();
    }
    ended_well(&r)
}

/// Runs all cases, a few at a time, and lists every one that fails.
fn all(cases: Vec<(&'static str, u64, bool, i32)>) {
    side_by_side(cases, |(function, nth, later, code)| {
        fails(function, nth, later, code)
    });
}

fn side_by_side<T: Send>(cases: Vec<T>, judge: impl Fn(T) + Sync) {
    let cases = Mutex::new(cases);
    let bad = Mutex::new(Vec::new());
    let width = std::thread::available_parallelism().map_or(2, |n| n.get());
    std::thread::scope(|s| {
        for _ in 0..width {
            s.spawn(|| {
                loop {
                    let next = cases.lock().unwrap().pop();
                    let Some(case) = next else { break };
                    let outcome = catch_unwind(AssertUnwindSafe(|| judge(case)));
                    if let Err(panic) = outcome {
                        bad.lock().unwrap().push(reason(panic));
                    }
                }
            });
        }
    });
    let bad = bad.into_inner().unwrap();
    assert!(
        bad.is_empty(),
        "{} cases fail:\n{}",
        bad.len(),
        bad.join("\n\n")
    );
}

/// What a panic said.
pub fn reason(panic: Box<dyn std::any::Any + Send>) -> String {
    panic
        .downcast_ref::<String>()
        .cloned()
        .or_else(|| panic.downcast_ref::<&str>().map(|s| s.to_string()))
        .unwrap_or_default()
}

/// Out of memory at the n-th call of everything on the path of an allocation.
#[test]
fn nth_call_out_of_memory() {
    let on_the_path = [
        "cuMemCreate",
        "cuMemAlloc_v2",
        "cuMemAddressReserve",
        "cuMemMap",
        "cuMemSetAccess",
    ];
    all(on_the_path
        .into_iter()
        .flat_map(|f| (1..=12).map(move |n| (f, n, false, 2)))
        .collect());
}

/// From the n-th call on, there is no more: what was had before stays, the program gets out of memory, frees, ends.
#[test]
fn no_more_from_the_nth_call_on() {
    all(["cuMemCreate", "cuMemAlloc_v2", "cuMemAddressReserve"]
        .into_iter()
        .flat_map(|f| [1, 2, 3, 4, 5, 7, 9, 12, 20].map(move |n| (f, n, true, 2)))
        .collect());
}

/// Any other error, of every function that the shim calls.
#[test]
fn nth_call_fails() {
    all(CALLS
        .into_iter()
        .flat_map(|f| [1, 2, 3, 5, 8].map(move |n| (f, n, false, 999)))
        .collect());
}
