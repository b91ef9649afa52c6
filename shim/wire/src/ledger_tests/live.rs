//! What is live, and the largest that are spilled.

use std::sync::atomic::Ordering::SeqCst;

use super::ledger;
use crate::ledger::*;

/// What was made less what was freed is what is live; what a dead process had is live no more.
#[test]
fn allocations_reconcile() {
    let (_dir, map) = ledger("live");
    let (one, two) = (Place::take(map).unwrap(), Place::take(map).unwrap());
    one.count(0, [7, 0]);
    one.count(0, [3, 4]);
    two.count(0, [0, 5]);
    let live = Live {
        allocations: 3,
        parts: [2, 2],
        bytes: [10, 9],
    };
    assert_eq!(map.live(0), live);
    one.uncount(0, [3, 4]);
    let d = map.device(0);
    assert_eq!(d.turnover(Tier::Vram), (10, 3));
    assert_eq!(d.turnover(Tier::Host), (9, 4));
    assert_eq!(map.live(0).bytes, [7, 5]);
    assert_eq!((d.allocations.load(SeqCst), d.frees.load(SeqCst)), (3, 1));
    drop(two);
    assert_eq!(map.live(0).allocations, 1);
    // Whoever sits down there next begins with nothing.
    let three = Place::take(map).unwrap();
    three.count(0, [1, 0]);
    assert_eq!(map.live(0).bytes, [8, 0]);
}

#[test]
fn the_largest_are_remembered() {
    let (_dir, map) = ledger("largest");
    let d = map.device(0);
    let spilled = |n: u64| Spilled {
        pid: 7,
        address: n << 20,
        bytes: 2 * n,
        host_bytes: n,
        made: 100,
        freed: None,
    };
    for n in [5, 1, 12, 3, 9, 2, 11, 4, 10, 6, 8, 7] {
        d.remember(spilled(n));
    }
    let kept = |d: &Device| -> Vec<u64> { d.largest().iter().map(|s| s.host_bytes).collect() };
    assert_eq!(kept(d), [12, 11, 10, 9, 8, 7, 6, 5]);
    d.forget(8, 9 << 20, 150);
    d.forget(7, 9 << 20, 150);
    d.forget(7, 9 << 20, 170);
    let freed: Vec<_> = d.largest().iter().map(|s| s.freed).collect();
    assert_eq!(freed[3], Some(150), "by its process, once");
    assert_eq!(freed.iter().flatten().count(), 1);
    // A process that died while it wrote an entry.
    d.break_an_entry();
    assert_eq!(kept(d).len(), LARGEST - 1);
    for n in 20..40 {
        d.remember(spilled(n));
    }
    assert_eq!(kept(d), [39, 38, 37, 36, 35, 34, 33]);
}

/// Readers and writers at the same time: what is read is one allocation, never parts of two.
#[test]
fn the_largest_are_read_whole() {
    let (_dir, map) = ledger("whole");
    let d = map.device(0);
    std::thread::scope(|s| {
        for thread in 0..3u64 {
            s.spawn(move || {
                for n in 1..20_000 {
                    let host_bytes = n * 3 + thread;
                    d.remember(Spilled {
                        pid: 1,
                        address: host_bytes * 7,
                        bytes: host_bytes * 2,
                        host_bytes,
                        made: host_bytes * 5,
                        freed: None,
                    });
                }
            });
        }
        for _ in 0..20_000 {
            for one in d.largest() {
                assert_eq!(
                    (one.address, one.bytes, one.made),
                    (one.host_bytes * 7, one.host_bytes * 2, one.host_bytes * 5)
                );
            }
        }
    });
}
