//! The doors of the gate. Seen to fail when a thread looks at the state before it says that it is inside, when whoever
//! closes looks who is inside before it closes, when it moves without shutting, when patience opens what is shut, and
//! when one closing cannot be told from the next.

use std::cell::Cell;
use std::sync::atomic::Ordering::SeqCst;

use shuttle::thread;

use crate::doors::{Doors, OPEN};
use crate::sync::{self, AtomicU32};

std::thread_local! {
    static WORKING: Cell<usize> = const { Cell::new(0) };
    static MOVING: Cell<bool> = const { Cell::new(false) };
    static TOGETHER: Cell<bool> = const { Cell::new(false) };
}

fn apart() {
    if WORKING.get() > 0 && MOVING.get() {
        TOGETHER.set(true);
    }
}

struct House {
    doors: Doors,
    slots: [AtomicU32; 2],
}

fn house() -> &'static House {
    let house: &'static House = Box::leak(Box::new(House {
        doors: Doors::new(),
        slots: [const { AtomicU32::new(0) }; 2],
    }));
    WORKING.set(0);
    MOVING.set(false);
    TOGETHER.set(false);
    sync::begin(apart, 0);
    house
}

/// A call of the program's: as `gate::pass`. One without patience opens what is only closing.
fn call(house: &House, slot: usize, patient: bool) {
    while !house.doors.enter(&house.slots[slot]) {
        let seen = house.doors.state.load(SeqCst);
        if !patient {
            house.doors.give_up(seen);
        }
        sync::yield_now();
    }
    WORKING.set(WORKING.get() + 1);
    apart();
    house.slots[slot].load(SeqCst);
    WORKING.set(WORKING.get() - 1);
    house.doors.leave(&house.slots[slot]);
}

/// As `moving::still`: closes, waits for a bounded time until all are out, shuts, moves.
fn motion(house: &House) -> bool {
    let Some(closing) = house.doors.close() else {
        return false;
    };
    for _ in 0..4 {
        if house.slots.iter().all(|s| s.load(SeqCst) == 0) {
            if !house.doors.shut(closing) {
                return false;
            }
            MOVING.set(true);
            apart();
            house.doors.state.load(SeqCst);
            MOVING.set(false);
            house.doors.open();
            return true;
        }
        sync::yield_now();
    }
    house.doors.reopen(closing);
    false
}

fn never_together(patient: bool, movers: usize) {
    let house = house();
    let mut threads = Vec::new();
    for slot in 0..2 {
        threads.push(thread::spawn(move || {
            call(house, slot, patient);
            call(house, slot, patient);
        }));
    }
    for _ in 0..movers {
        threads.push(thread::spawn(|| {
            motion(house);
        }));
    }
    for thread in threads {
        thread.join().unwrap();
    }
    assert!(!TOGETHER.get(), "memory moves under a call");
    assert_eq!(house.doors.state.load(SeqCst), OPEN, "it stays closed");
    assert!(motion(house), "with nobody there it does not move");
    sync::end();
}

#[test]
fn patient_calls_and_a_move() {
    crate::some(2000, || never_together(true, 1));
}

#[test]
fn calls_without_patience_and_two_movers() {
    crate::some(3000, || never_together(false, 2));
}
