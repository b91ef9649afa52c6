//! The roll of contexts. Seen to fail when a destruction does not say that it begins, when it does not wait for those that
//! are entering, when it waits without an end, and when a drain passes over a context that is being destroyed.

use std::cell::Cell;
use std::sync::atomic::Ordering::SeqCst;

use shuttle::thread;

use crate::roll::Roll;
use crate::sync::{self, AtomicUsize};

const CONTEXT: usize = 7;

std::thread_local! {
    /// Drains that are making the context current.
    static PUSHING: Cell<usize> = const { Cell::new(0) };
    /// The driver is destroying it, or has.
    static DESTROYING: Cell<bool> = const { Cell::new(false) };
    static BUSY: Cell<bool> = const { Cell::new(false) };
    static PUSHED: Cell<bool> = const { Cell::new(false) };
}

fn apart() {
    if PUSHING.get() > 0 && DESTROYING.get() {
        PUSHED.set(true);
    }
}

fn roll(tick: u32) -> &'static Roll {
    // A few bytes for each execution.
    let roll: &'static Roll = Box::leak(Box::new(Roll::new()));
    PUSHING.set(0);
    DESTROYING.set(false);
    BUSY.set(true);
    PUSHED.set(false);
    sync::begin(apart, tick);
    roll.add(CONTEXT, 0);
    roll
}

/// What passes between any two steps of others.
fn step() {
    static STEPS: AtomicUsize = AtomicUsize::new(0);
    STEPS.load(SeqCst);
}

/// As a drain does it: what it did not enter has no work left.
fn drain(roll: &Roll) {
    let entered = roll.enter(CONTEXT, || {
        PUSHING.set(PUSHING.get() + 1);
        apart();
        step();
        PUSHING.set(PUSHING.get() - 1);
    });
    match entered {
        // The wait in the context, which the destruction may share.
        Some(()) => {
            step();
            BUSY.set(false);
        }
        None => assert!(!BUSY.get(), "passed over, and its work goes on"),
    }
}

fn destroy(roll: &Roll, works: bool) {
    let done = roll.end(CONTEXT, || {
        if works {
            DESTROYING.set(true);
            apart();
            step();
            BUSY.set(false);
            step();
        }
        works
    });
    assert_eq!(done, works);
}

fn race(drains: usize, works: bool) {
    let roll = roll(0);
    let mut threads = vec![thread::spawn(move || destroy(roll, works))];
    for _ in 0..drains {
        threads.push(thread::spawn(move || drain(roll)));
    }
    for thread in threads {
        thread.join().unwrap();
    }
    assert!(!PUSHED.get(), "made current while it is destroyed");
    assert_eq!(roll.has(CONTEXT), !works);
    assert_eq!(roll.enter(CONTEXT, || ()).is_some(), !works);
    sync::end();
}

#[test]
fn a_drain_and_a_destruction() {
    crate::some(2000, || race(1, true));
}

#[test]
fn two_drains_and_a_destruction() {
    crate::some(2000, || race(2, true));
}

#[test]
fn a_destruction_that_is_refused() {
    crate::some(1000, || race(2, false));
}

/// The push may wait for the driver, which may wait for the thread that destroys.
#[test]
fn a_destruction_waits_for_a_bounded_time() {
    crate::some(1000, || {
        let roll = roll(1);
        let ended: &'static AtomicUsize = Box::leak(Box::new(AtomicUsize::new(0)));
        let drainer = thread::spawn(move || {
            roll.enter(CONTEXT, || {
                while ended.load(SeqCst) == 0 {
                    sync::yield_now();
                }
            });
        });
        assert!(roll.end(CONTEXT, || ended.fetch_add(1, SeqCst) == 0));
        drainer.join().unwrap();
        assert!(!roll.has(CONTEXT));
        sync::end();
    });
}

/// A handle that the driver gives out again before the first one is off the roll.
#[test]
fn a_handle_comes_back() {
    crate::some(1000, || {
        let roll = roll(0);
        let made: &'static AtomicUsize = Box::leak(Box::new(AtomicUsize::new(0)));
        let maker = thread::spawn(move || {
            while made.load(SeqCst) == 0 {
                sync::yield_now();
            }
            roll.add(CONTEXT, 0);
        });
        roll.end(CONTEXT, || {
            made.fetch_add(1, SeqCst);
            sync::yield_now();
            true
        });
        maker.join().unwrap();
        assert!(roll.has(CONTEXT), "the new context is unknown");
        assert_eq!(roll.of(Some(0)), [CONTEXT]);
        sync::end();
    });
}
