//! Several devices of one process.

use crate::harness::{Run, run};

fn with(case: &str) -> Run {
    run("peers", &[case]).env("FAKE_CUDA_DEVICES", "2")
}

/// A free waits for the other device's copy, with all of it in VRAM and with parts on the host.
#[test]
fn a_free_waits_for_another_devices_copy() {
    for vram in [64, 4] {
        run("peers", &["copies", "all"])
            .env("FAKE_CUDA_DEVICES", "2")
            .vram(vram)
            .both();
    }
}

/// The same where no device reaches another one's memory, and only copies that name both contexts get there.
#[test]
fn a_free_waits_where_there_are_no_peers() {
    run("peers", &["copies", "named"])
        .env("FAKE_CUDA_DEVICES", "2")
        .env("FAKE_CUDA_NO_PEERS", "1")
        .vram(64)
        .both();
}

#[test]
fn access_follows_enable_and_disable() {
    for vram in [64, 4] {
        let outcome = with("access").vram(vram).both();
        assert_eq!(outcome.notes("rights"), ["0", "3 3", "0", "3"], "{vram}");
    }
}

#[test]
fn ranges_made_meanwhile_are_open_too() {
    let outcome = with("threads").vram(64).both();
    let rounds = outcome.notes("round");
    assert_eq!(rounds.len(), 20);
    assert!(
        rounds.iter().all(|r| r.ends_with(&format!("{:?}", [3; 8]))),
        "{rounds:?}"
    );
}
