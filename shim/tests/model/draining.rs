//! The gate. Seen to fail when a drain looks for captures before it announces itself, when a capture looks for drains
//! before it announces itself, and when a capture waits without an end.

use std::cell::Cell;
use std::time::Duration;

use shuttle::thread;

use crate::gate::Gate;
use crate::sync::{self, AtomicUsize};

std::thread_local! {
    static SYNCHRONISING: Cell<usize> = const { Cell::new(0) };
    static CAPTURES: Cell<usize> = const { Cell::new(0) };
    static TOGETHER: Cell<bool> = const { Cell::new(false) };
}

fn apart() {
    if SYNCHRONISING.get() > 0 && CAPTURES.get() > 0 {
        TOGETHER.set(true);
    }
}

/// A new gate; `tick` in milliseconds is what each look at the clock costs.
fn gate(tick: u32) -> &'static Gate {
    // A few bytes for each execution.
    let gate: &'static Gate = Box::leak(Box::new(Gate::new()));
    for count in [&SYNCHRONISING, &CAPTURES] {
        count.set(0);
    }
    TOGETHER.set(false);
    sync::begin(apart, tick);
    gate
}

fn capture(gate: &Gate) {
    gate.open();
    CAPTURES.set(CAPTURES.get() + 1);
    apart();
    gate.is_open();
    CAPTURES.set(CAPTURES.get() - 1);
    gate.close();
}

fn drain(gate: &Gate) -> bool {
    gate.drain(|| {
        SYNCHRONISING.set(SYNCHRONISING.get() + 1);
        apart();
        gate.is_open();
        SYNCHRONISING.set(SYNCHRONISING.get() - 1);
    })
    .is_some()
}

/// While the clock stands still, no capture is open while a drain synchronises.
fn never_together(captures: usize, drains: usize) {
    let gate = gate(0);
    let mut threads = Vec::new();
    for _ in 0..captures {
        threads.push(thread::spawn(|| capture(gate)));
    }
    for _ in 0..drains {
        threads.push(thread::spawn(|| {
            drain(gate);
        }));
    }
    for thread in threads {
        thread.join().unwrap();
    }
    assert!(
        !TOGETHER.get(),
        "a drain synchronises while a capture is open"
    );
    assert!(!gate.is_open());
    // With nobody there both pass.
    assert!(drain(gate));
    capture(gate);
    sync::end();
}

#[test]
fn one_capture_and_one_drain() {
    crate::some(2000, || never_together(1, 1));
}

#[test]
fn two_captures_and_two_drains() {
    crate::some(2000, || never_together(2, 2));
}

/// All orders of one capture and one drain: they are together only when the capture has waited its time.
#[test]
fn every_order_of_one_and_one() {
    let orders = crate::all(|| {
        let gate = gate(4);
        let waited = thread::spawn(|| {
            let before = sync::Instant::now();
            gate.open();
            // Every look costs 4 ms, here and there: a capture that gave up waiting has looked four times.
            let out_of_time = sync::Instant::now() >= before + 5 * Duration::from_millis(4);
            CAPTURES.set(1);
            apart();
            gate.is_open();
            CAPTURES.set(0);
            gate.close();
            out_of_time
        });
        drain(gate);
        let waited = waited.join().unwrap();
        assert!(!TOGETHER.get() || waited, "together without need");
        assert!(drain(gate), "the gate stays shut");
        sync::end();
    });
    assert!(orders > 100, "only {orders} orders");
}

/// A drain may wait for work that waits for the thread which begins a capture: that goes on nevertheless.
#[test]
fn a_capture_waits_for_a_bounded_time() {
    crate::some(1000, || {
        let gate = gate(1);
        let begun: &'static AtomicUsize = Box::leak(Box::new(AtomicUsize::new(0)));
        let drainer = thread::spawn(move || {
            use std::sync::atomic::Ordering::SeqCst;
            gate.drain(|| {
                while begun.load(SeqCst) == 0 {
                    sync::yield_now();
                }
            });
        });
        gate.open();
        begun.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        drainer.join().unwrap();
        gate.close();
        assert!(!gate.is_open());
        sync::end();
    });
}
