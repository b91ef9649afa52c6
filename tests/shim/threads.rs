//! Many threads at once, and no lock held across a driver call that takes its time.

use crate::harness::{MIB, run};

/// 64 threads allocate, free, launch, copy and ask. With room for all, and with too little for them.
#[test]
fn a_crowd() {
    for (vram, ram) in [(64, 1024), (16, 48)] {
        let r = run("crowd", &["64", "6"]).vram(vram).ram(ram);
        let outcome = r.shimmed();
        assert!(outcome.spilled > MIB, "nothing spilled");
        let refused: u64 = outcome.notes("refused")[0].parse().unwrap();
        assert_eq!(
            refused > 0,
            ram == 48,
            "{refused} requests refused with {ram} MiB"
        );
    }
}

/// The same on registered memory.
#[test]
fn a_crowd_on_registered_memory() {
    let r = run("crowd", &["64", "3"])
        .env("FAKE_CUDA_NO_HOST_NUMA", "1")
        .vram(16)
        .ram(1024)
        .may_degrade();
    assert!(r.shimmed().spilled > MIB);
}

/// One thread is inside a driver call for as long as it takes; everything that other threads do on other objects ends.
fn demand_that_others_get_through(way: &str, function: &str) {
    let scratch = tempfile::tempdir().unwrap();
    let r = run("blocked", &[way, "frees"])
        .env("FAKE_CUDA_BLOCK", format!("{function}:slow:20000"))
        .env("FAKE_CUDA_RELEASE", scratch.path().join("release"));
    let outcome = r.shimmed();
    assert!(outcome.stdout.contains("through"), "{way}, {function}");
}

#[test]
fn nobody_waits_for_an_allocation() {
    for function in [
        "cuMemCreate",
        "cuMemAddressReserve",
        "cuMemMap",
        "cuMemSetAccess",
    ] {
        demand_that_others_get_through("alloc", function);
    }
    demand_that_others_get_through("small", "cuMemAlloc_v2");
}

#[test]
fn nobody_waits_for_a_free() {
    for function in ["cuCtxSynchronize", "cuMemUnmap", "cuMemAddressFree"] {
        demand_that_others_get_through("free", function);
    }
    demand_that_others_get_through("small", "cuMemFree_v2");
}

#[test]
fn nobody_waits_for_what_is_only_counted() {
    for (way, function) in [
        ("host", "cuMemHostAlloc"),
        ("host", "cuMemFreeHost"),
        ("array", "cuArrayCreate_v2"),
        ("array", "cuArrayDestroy"),
        ("module", "cuModuleLoadData"),
        ("module", "cuModuleUnload"),
        ("info", "cuMemGetInfo_v2"),
    ] {
        demand_that_others_get_through(way, function);
    }
}
