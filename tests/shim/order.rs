//! What waits for what.

use crate::harness::run;

/// PITFALLS 20: a free waits for the work that uses the memory.
#[test]
fn p20_free_in_flight() {
    run("order", &["free-in-flight"]).vram(24).both();
    run("order", &["free-in-flight"]).vram(1).both();
}

#[test]
fn p20_free_behind_kernels() {
    run("order", &["free-behind-kernels"]).vram(24).both();
    run("order", &["free-behind-kernels"]).vram(2).both();
}

#[test]
fn p20_free_in_flight_from_another_context() {
    run("order", &["free-in-flight-elsewhere"]).both();
}

/// PITFALLS 27: allocations and frees while the thread captures leave the capture valid.
#[test]
fn p27_capture() {
    run("order", &["capture"])
        .misuses("which is no allocation")
        .misuses("destroy of a capturing stream")
        .both();
}

#[test]
fn p27_capture_beside_other_threads() {
    run("order", &["capture-elsewhere"]).both();
}

/// In the strict modes the driver gives a capture up when memory is taken or freed. The shim may do better, not worse.
#[test]
fn p27_capture_in_strict_modes() {
    let outcome = run("order", &["capture-strict"])
        .misuses("during capture")
        .both();
    let lines = outcome.notes("mode");
    assert_eq!(lines.len(), 8);
    for line in lines {
        assert!(
            line.ends_with(": 900, asked 0 2, ended 901")
                || line.ends_with(": 0, asked 0 1, ended 0"),
            "mode {line}"
        );
    }
}

#[test]
fn graph_over_both_tiers() {
    run("order", &["graph"]).both();
}

/// DESIGN law 7: calls from host callbacks get the driver's answer.
#[test]
fn calls_in_callbacks() {
    run("order", &["callback"]).both();
}

/// Host backing does not change what waits: synchronous copies and memsets of the device return at once, as on VRAM.
#[test]
fn copies_return_when_they_would_on_vram() {
    run("order", &["sync-forms"]).vram(9).both();
}
