//! Programs that manage device memory themselves, and memory that leaves the process's sight.

use greenboost_wire::record::Kind;

use crate::harness::{MIB, Run, run};

fn with(case: &str) -> Run {
    // What the programs try in vain.
    run("vmm", &[case])
        .vram(45)
        .misuses("ends inside a mapping")
        .misuses("over a mapping")
        .misuses("outside any reservation")
        .misuses("which is not held")
}

/// PyTorch's expandable segments: grown, shrunk and grown again, the same bytes and kinds.
#[test]
fn expandable_segments() {
    let outcome = with("expandable").both();
    assert!(outcome.spilled >= 60 * MIB, "{}", outcome.spilled);
    with("expandable").vram(400).both();
}

/// vLLM's sleep mode: all is given back, and comes again under its address.
#[test]
fn sleep_mode() {
    for vram in [45, 100] {
        let outcome = with("sleep").vram(vram).both();
        assert_eq!(outcome.notes("held"), [&(60 * MIB).to_string(); 4]);
        assert_eq!(outcome.notes("asleep"), ["0"; 4]);
    }
}

/// NCCL's buffers: exported, imported by another process and by the same, counted once, a device's to everybody.
#[test]
fn exchanged_buffers() {
    let board = tempfile::NamedTempFile::new().expect("a file");
    let shared = |vram| {
        with("exchange")
            .vram(vram)
            .env("FAKE_CUDA_SHARED", board.path())
    };
    let outcome = shared(24).both();
    assert!(outcome.spilled >= 20 * MIB, "nothing spilled");
    shared(100).both();
    shared(100).no_spill().both();
}

/// Host memory that cannot be exported as was asked: out of memory at once, and no surprise later.
#[test]
fn what_cannot_be_exported_is_not_made() {
    let run = with("exchange")
        .vram(24)
        .env("FAKE_CUDA_NO_HOST_EXPORT", "1")
        .exits(101);
    let job = run.job();
    let mut live = run.start_in(&job);
    while live.is_running() {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let outcome = live.unjudged();
    assert!(outcome.stderr.contains("a buffer: 2"), "{}", outcome.stderr);
    job.demand_sane_and_empty();
}

/// Host memory of the program's own counts against the RAM limit, and is told as what it is.
#[test]
fn p25_own_host_memory() {
    let outcome = with("host").ram(130).shimmed();
    assert_eq!(outcome.notes("made"), ["5 then 2"]);
    assert_eq!(outcome.said(Kind::OutOfMemory), 1);
    assert!(
        outcome
            .stdout
            .starts_with("host is host: CUmemLocation { type_: 3, id: 0 }, kind Ok(1)")
    );
    // Without spilling there is no such limit, but the card's driver has one.
    let outcome = with("host")
        .no_spill()
        .env("FAKE_CUDA_HOST", "150m")
        .shimmed();
    assert_eq!(outcome.notes("made"), ["6 then 2"]);
}

#[test]
fn access_rights() {
    let outcome = with("rights").vram(24).both();
    assert_eq!(outcome.notes("tiles"), ["1"], "tiles are a device's only");
}

#[test]
fn references_count() {
    with("references").vram(24).both();
    with("references").vram(100).both();
}

#[test]
fn threads_at_once() {
    let outcome = with("threads").vram(24).both();
    assert_eq!(outcome.notes("held"), ["0"]);
}

/// `SYNC_MEMOPS`, tokens, buffer ids and descriptors behave as on plain memory, wherever the memory is.
#[test]
fn sync_memops() {
    let sight = |vram, tokens| run("sight", &[tokens]).vram(vram);
    sight(64, "tokens").both();
    sight(2, "").both();
    for (vram, tokens) in [(64, "tokens"), (2, "")] {
        sight(vram, tokens)
            .env("GREENBOOST_BACKEND", "pinned")
            .may_degrade()
            .both();
    }
}
