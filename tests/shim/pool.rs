//! Stream-ordered allocations: from the program's pools while the limit has room, then served in stream order.

use greenboost_wire::record::Kind;

use crate::harness::{MIB, Run, run};

fn pool(what: &str) -> Run {
    run("pool", &[what]).vram(40).ram(512)
}

/// Two ways in which memory of a pool is backed beyond the limit: ranges, and registered memory.
fn everywhere(what: &str) -> [Run; 4] {
    [
        pool(what),
        pool(what).vram(2),
        pool(what).vram(2).env("FAKE_CUDA_DRIVER", "12040"),
        pool(what).env("FAKE_CUDA_NO_HOST_NUMA", "1").may_degrade(),
    ]
}

/// PITFALLS 22: bytes, figures and attributes are those of a card with room.
#[test]
fn p22_spilled_pool_memory_tells_the_pools_story() {
    for r in everywhere("story") {
        assert!(r.both().spilled > 30 * MIB);
    }
}

/// PITFALLS 21: nothing waits, and no memory is used by two streams at once.
#[test]
fn p21_stream_order() {
    for r in everywhere("order") {
        assert!(r.both().spilled > 0);
    }
}

/// Host backing changes nothing for pool memory either.
#[test]
fn synchronous_forms_do_not_wait() {
    assert!(pool("sync").both().spilled > 30 * MIB);
}

/// PITFALLS 21: `cuMemAlloc` memory that is freed in stream order.
#[test]
fn p21_plain_memory_freed_in_order() {
    for r in everywhere("plain") {
        r.misuses("free").both();
    }
    // More, one after the other, than both limits together.
    let all = pool("plain").vram(16).ram(64).misuses("free").both();
    assert_eq!(all.said(Kind::OutOfMemory), 0);
}

/// PITFALLS 15: wrong frees get the driver's answers and change no account.
#[test]
fn p15_wrong_frees() {
    for r in everywhere("frees") {
        r.misuses("free").both();
    }
}

/// PITFALLS 15: a pool that was destroyed is charged until its last allocation is freed, and no longer.
#[test]
fn p15_pools_end_before_their_memory() {
    for r in [pool("ends"), pool("ends").vram(200)] {
        let job = r.job();
        let mut live = r.start_in(&job);
        live.until("stage end");
        // What is kept for reuse, a sixteenth of the limit at most.
        assert!(job.held().0 <= 13 * MIB, "{} bytes of VRAM", job.held().0);
        live.tell("on");
        live.wait();
        job.demand_sane_and_empty();
    }
}

/// What may leave the process is the pool's own: it is refused, never served.
#[test]
fn exported_pools() {
    let outcome = pool("export").vram(100).card(1024).shimmed();
    assert_eq!(outcome.spilled, 0);
    assert!(outcome.stdout.contains("then 2"), "{}", outcome.stdout);
    let pieces: u64 = outcome.notes("pieces")[0].parse().unwrap();
    assert!((3..=4).contains(&pieces), "{pieces} pieces in 100 MiB");
}

#[test]
fn current_pools() {
    for r in everywhere("choice") {
        if !r.to_string().contains("12040") {
            assert!(r.both().spilled > 0);
        }
    }
}

/// PITFALLS 27: a capture is left alone, whatever happens beside it.
#[test]
fn p27_pools_beside_a_capture() {
    for r in everywhere("capture") {
        r.misuses("free async").both();
    }
}

#[test]
fn p18_contexts_end_and_pools_do_not() {
    let [.., registered] = everywhere("contexts");
    for r in &everywhere("contexts")[..3] {
        assert!(r.both().spilled > 0);
    }
    // Registered memory would end with its context: out of memory, sooner than lost.
    let outcome = registered.shimmed();
    assert!(!outcome.notes("refused").is_empty());
}

#[test]
fn peers_by_pool_access() {
    let r = pool("peers").env("FAKE_CUDA_DEVICES", "2");
    assert!(r.both().spilled > 30 * MIB);
}

/// A pool's own bound is not widened.
#[test]
fn bounded_pools() {
    assert!(pool("most").both().spilled > 0);
}

/// `--spill off`: out of VRAM is out of memory. With it: out of both.
#[test]
fn p36_exhausted() {
    let pieces = |r: Run| -> Vec<u64> {
        let outcome = r.shimmed();
        assert!(outcome.said(Kind::OutOfMemory) > 0, "nobody was told");
        let counts = outcome.notes("pieces")[0];
        let counts = counts.trim_matches(['[', ']']).split(", ");
        counts.map(|n| n.parse().unwrap()).collect()
    };
    let size = (10 * MIB).to_string();
    let r = |ram| run("pool", &["exhaust", &size]).vram(64).ram(ram);
    assert_eq!(pieces(r(100).no_spill()), [6, 6, 6]);
    let both = pieces(r(100));
    assert!(both.iter().all(|n| (15..=16).contains(n)), "{both:?}");
    // Nothing to spill to.
    assert_eq!(pieces(r(0)), [6, 6, 6]);
}

/// PITFALLS 15: what a pool keeps counts against the limit, is given up under pressure, and never counts for longer.
#[test]
fn p15_retained_memory() {
    let r = pool("retained").vram(100);
    let job = r.job();
    let mut live = r.start_in(&job);
    let mut held = Vec::new();
    for stage in [
        "start",
        "kept",
        "needed",
        "kept again",
        "needed for a handle",
        "trimmed",
        "destroyed",
    ] {
        live.until(&format!("stage {stage}"));
        held.push(job.held());
        live.tell("on");
    }
    live.wait();
    job.demand_sane_and_empty();
    let vram: Vec<u64> = held.iter().map(|h| h.0 / MIB).collect();
    // A freed range leaves some spare chunks behind.
    assert_eq!(vram[0], 0);
    assert_eq!(vram[1], 64);
    assert!((50..64).contains(&vram[2]), "{vram:?}");
    assert!((64..=70).contains(&vram[3]), "{vram:?}");
    assert!((50..64).contains(&vram[4]), "{vram:?}");
    assert!(vram[5] <= 6 && vram[6] <= 6, "{vram:?}");
    assert!(held.iter().all(|h| h.1 == 0), "it fits: {held:?}");
}

/// Many threads, one limit: at no moment is more held than may be, and in the end nothing.
#[test]
fn p13_pools_of_many_threads() {
    for vram in [40, 130] {
        let r = pool("threads").vram(vram).slack(32 * 12);
        let job = r.job();
        let mut live = r.start_in(&job);
        live.until("stage end");
        assert!(job.held().0 <= 16 * MIB, "{} bytes of VRAM", job.held().0);
        live.tell("on");
        let outcome = live.wait();
        assert!(outcome.stdout.contains("right"));
        job.demand_sane_and_empty();
    }
}
