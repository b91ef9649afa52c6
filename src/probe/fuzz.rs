//! For tests of what reads foreign bytes: damaged inputs, and how much memory reading them takes.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use proptest::collection::vec;
use proptest::prelude::*;

struct Counting;

thread_local! {
    /// Bytes that this thread holds, and the most it held.
    static HELD: Cell<(isize, isize)> = const { Cell::new((0, 0)) };
}

fn count(bytes: isize) {
    // A thread that ends has nothing to count in.
    let _ = HELD.try_with(|held| {
        let (now, most) = held.get();
        held.set((now + bytes, most.max(now + bytes)));
    });
}

// SAFETY: the system's allocator, with a count that allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, start: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(start, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// What the work gives, and how many bytes more than before it held at most.
pub fn peak<T>(work: impl FnOnce() -> T) -> (T, usize) {
    let (before, _) = HELD.get();
    HELD.set((before, before));
    let result = work();
    let (_, most) = HELD.get();
    (result, (most - before).max(0) as usize)
}

/// These bytes with some of them changed, left out or doubled.
pub fn damaged(whole: Vec<u8>) -> impl Strategy<Value = Vec<u8>> {
    let value = prop_oneof![
        vec(any::<u8>(), 1..9),
        prop_oneof![Just(u64::MAX), Just(0), Just(1 << 40), any::<u64>()]
            .prop_map(|n| n.to_le_bytes().to_vec()),
        prop_oneof![Just(u32::MAX), 0..40u32].prop_map(|n| n.to_le_bytes().to_vec()),
    ];
    let change = (0..3, any::<prop::sample::Index>(), value);
    vec(change, 1..5).prop_map(move |changes| {
        let mut bytes = whole.clone();
        for (kind, at, value) in changes {
            let at = at.index(bytes.len().max(1)).min(bytes.len());
            let end = (at + value.len()).min(bytes.len());
            match kind {
                0 => bytes[at..end].copy_from_slice(&value[..end - at]),
                1 => drop(bytes.drain(at..end)),
                _ => drop(bytes.splice(at..at, value)),
            }
        }
        bytes
    })
}

#[test]
fn the_count_counts() {
    let (length, most) = peak(|| std::hint::black_box(vec![1u8; 1 << 20]).len());
    assert_eq!(length, 1 << 20);
    assert!((1 << 20..2 << 20).contains(&most), "{most}");
    assert!(peak(|| ()).1 == 0);
}
