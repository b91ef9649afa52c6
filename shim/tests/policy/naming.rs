//! What the policy makes of the addresses it is told: steps and heat, without allocating.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::time::Instant;

use greenboost_shim::tier::chunk::split;
use greenboost_shim::tier::policy::{Costs, Op, Policy};
use greenboost_wire::ledger::Tier;

use super::workloads::{GIB, MIB};

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: the system's allocator does all; counting does not allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

fn allocate(policy: &mut Policy, base: u64, bytes: u64) {
    let chunks: Vec<_> = split(bytes).into_iter().map(|b| (b, Tier::Vram)).collect();
    policy.allocated(base, bytes, &chunks, true);
}

/// A step per turn of the loop, however often scratch is named, and however the loop is waited for: not at all.
#[test]
fn steps_follow_the_loop() {
    for scratches in [1, 40] {
        let mut policy = Policy::new(Costs::H100);
        for i in 0..11 {
            allocate(&mut policy, (i + 1) * GIB, 512 * MIB);
        }
        allocate(&mut policy, 20 * GIB, 64 * MIB);
        for turn in 0..100 {
            for layer in 0..10 {
                policy.named(Op::Launch, &[(layer + 1) * GIB, 20 * GIB], f64::from(turn));
                for _ in 1..scratches {
                    policy.named(Op::Launch, &[20 * GIB], f64::from(turn));
                }
            }
        }
        let steps = policy.step();
        assert!((90..125).contains(&steps), "{steps} steps of 100");
        // Each weight once per step, scratch with each layer; what was never named has no heat.
        let used = (10 * 512 + 10 * scratches * 64) as f64 * MIB as f64;
        let heat = policy.heat(Tier::Vram) / used;
        assert!((0.8..1.2).contains(&heat), "{heat}");
        assert_eq!(policy.heat(Tier::Host), 0.0);
    }
}

/// All weights in one allocation: each address names what is behind it up to the next.
#[test]
fn one_allocation_holds_many_tensors() {
    let mut policy = Policy::new(Costs::H100);
    allocate(&mut policy, GIB, 8 * GIB);
    // Only the first half is ever used, and by its end another tensor begins.
    for _ in 0..20 {
        for tensor in 0..16 {
            policy.named(Op::Launch, &[GIB + tensor * 256 * MIB], 0.0);
        }
        policy.named(Op::Launch, &[GIB + 16 * 256 * MIB], 0.0);
    }
    let heat = policy.heat(Tier::Vram) / (8 * GIB) as f64;
    assert!((0.8..1.2).contains(&heat), "{heat}");
}

/// Where the next token goes is another address each time; that does not cut the cache off from its base.
#[test]
fn positions_do_not_cool_what_is_behind_them() {
    let mut policy = Policy::new(Costs::H100);
    allocate(&mut policy, GIB, 2 * GIB);
    allocate(&mut policy, 8 * GIB, 4 * GIB);
    for token in 0..400 {
        policy.named(Op::Launch, &[8 * GIB], 0.0);
        policy.named(Op::Launch, &[GIB + 64 * MIB + token * 4 * MIB], 0.0);
        policy.named(Op::Launch, &[GIB], 0.0);
    }
    // 1.6 GiB of the cache are in use, and all of the weights; a position counts as a use of the whole cache.
    let heat = policy.heat(Tier::Vram) / (5.6 * GIB as f64);
    assert!((0.8..1.5).contains(&heat), "{heat}");
}

/// Loading is no use; a copy at every step is.
#[test]
fn copies_count_by_their_bytes() {
    let mut policy = Policy::new(Costs::H100);
    allocate(&mut policy, GIB, GIB);
    allocate(&mut policy, 4 * GIB, GIB);
    allocate(&mut policy, 6 * GIB, 64 * MIB);
    let turn = |policy: &mut Policy, copy: u64| {
        policy.named(Op::Launch, &[GIB], 0.0);
        policy.named(Op::Launch, &[6 * GIB], 0.0);
        if copy > 0 {
            policy.named(Op::Copy { bytes: copy }, &[4 * GIB], 0.0);
        }
    };
    for piece in 0..16 {
        policy.named(Op::Copy { bytes: 64 * MIB }, &[GIB + piece * 64 * MIB], 0.0);
    }
    (0..40).for_each(|_| turn(&mut policy, 0));
    let heat = policy.heat(Tier::Vram) / GIB as f64;
    assert!((0.8..1.2).contains(&heat), "{heat}");
    (0..40).for_each(|_| turn(&mut policy, 512 * MIB));
    let heat = policy.heat(Tier::Vram) / GIB as f64;
    assert!((1.3..1.8).contains(&heat), "{heat}");
}

/// A launch that names an address twice uses it once.
#[test]
fn twice_in_one_launch_is_once() {
    let mut policy = Policy::new(Costs::H100);
    allocate(&mut policy, GIB, GIB);
    allocate(&mut policy, 4 * GIB, GIB);
    for _ in 0..40 {
        policy.named(Op::Launch, &[GIB, GIB, GIB], 0.0);
        policy.named(Op::Launch, &[4 * GIB], 0.0);
    }
    let heat = policy.heat(Tier::Vram) / (2 * GIB) as f64;
    assert!((0.8..1.2).contains(&heat), "{heat}");
}

/// In the steady state naming does not allocate, and takes next to no time.
#[test]
fn naming_is_cheap() {
    let mut policy = Policy::new(Costs::H100);
    for i in 0..1000 {
        allocate(&mut policy, (i + 1) * GIB, 64 * MIB);
    }
    let launch = |policy: &mut Policy, i: u64| {
        let at = |n: u64| (i * n % 1000 + 1) * GIB + i % 4 * 1024;
        policy.named(Op::Launch, &[at(1), at(3), at(7), at(9)], i as f64 * 1e-5);
    };
    (0..8000).for_each(|i| launch(&mut policy, i));
    let (before, start) = (ALLOCATIONS.get(), Instant::now());
    (0..100_000).for_each(|i| launch(&mut policy, i));
    let each = start.elapsed() / 400_000;
    assert_eq!(ALLOCATIONS.get(), before);
    println!("{each:?} per address");
    assert!(each.as_nanos() < 2000, "{each:?} per address");
}

/// Bytes named: of a launch what its addresses stand for, once; of a copy or memset those that it covers.
#[test]
fn bytes_are_counted_in_their_tier() {
    let mut policy = Policy::new(Costs::H100);
    let chunks = [(64 * MIB, Tier::Vram), (64 * MIB, Tier::Host)];
    policy.allocated(GIB, 120 * MIB, &chunks, true);
    let mut named = |op, addresses: &[u64]| {
        policy.named(op, addresses, 0.0);
        policy.take_named().map(|bytes| bytes / MIB)
    };
    assert_eq!(named(Op::Launch, &[GIB, GIB]), [64, 56]);
    assert_eq!(named(Op::Launch, &[GIB + MIB]), [0, 0], "it is among those");
    assert_eq!(named(Op::Graph, &[GIB]), [64, 56]);
    let copy = Op::Copy { bytes: 10 * MIB };
    assert_eq!(named(copy, &[GIB + 60 * MIB]), [4, 6]);
    let fill = Op::Memset { bytes: 2 * MIB };
    assert_eq!(named(fill, &[GIB + 100 * MIB]), [0, 2]);
    assert_eq!(named(fill, &[9 * GIB]), [0, 0], "nobody's");
}
