//! What memory calls mean at their edges.

use crate::harness::run;

#[test]
fn zero_bytes() {
    run("memory", &["zero"]).both();
}

/// DESIGN law 5: a size that nobody has is out of memory, and the program goes on.
#[test]
fn huge_sizes() {
    run("memory", &["huge"]).both();
}

/// PITFALLS 15: frees of what was not allocated, twice freed, interior.
#[test]
fn p15_bad_frees() {
    run("memory", &["bad-frees"])
        .misuses("which is no allocation")
        .both();
}

/// PITFALLS 8 and 22: spilled memory looks like device memory; host pointers are answered as by the driver.
#[test]
fn p08_p22_pointer_attributes() {
    run("memory", &["attributes"]).both();
}

#[test]
fn p22_address_ranges() {
    run("memory", &["ranges"]).both();
}

#[test]
fn pitched() {
    run("memory", &["pitch"]).both();
}

/// More small allocations than the VRAM limit holds.
#[test]
fn small_ones_spill_too() {
    run("memory", &["small", "400"]).vram(8).both();
}

/// PITFALLS 18: everything works on contexts that come and go.
#[test]
fn p18_context_destroyed() {
    run("memory", &["contexts"])
        .misuses("which is no allocation")
        .both();
}

#[test]
fn primary_context_reset() {
    run("memory", &["reset"])
        .misuses("which is no allocation")
        .both();
}

#[test]
fn several_devices() {
    run("memory", &["devices"])
        .env("FAKE_CUDA_DEVICES", "3")
        .both();
}

/// Copies between VRAM, mixed ranges, spilled ranges, pinned and pageable memory.
#[test]
fn copies_between_all_places() {
    run("memory", &["between"]).both();
}

/// The card itself is smaller than the limit: a real out-of-memory means "VRAM is full".
#[test]
fn card_smaller_than_limit() {
    run("everything", &[]).vram(4096).card(16).both();
}

/// PITFALLS 23: without host VMM the program still runs, or gets a clean error, never wrong bytes.
#[test]
fn p23_no_host_memory_for_the_gpu() {
    let r = run("memory", &["exhaust", "3000000"])
        .env("FAKE_CUDA_NO_HOST_NUMA", "1")
        .ram(64)
        .may_degrade();
    r.shimmed();
}
