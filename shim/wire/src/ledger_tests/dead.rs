//! Seats, and what the dead leave in them.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::Ordering::SeqCst;

use super::ledger;
use crate::ledger::*;

/// PITFALLS 14: a process killed by SIGKILL strands its usage. Here the killed process is this test binary itself.
#[test]
fn the_dead_are_reaped() {
    if let Ok(path) = std::env::var("GB_TEST_LEDGER") {
        let map = Box::leak(Box::new(Mapped::open(Path::new(&path)).unwrap()));
        let place = Place::take(map).unwrap();
        place.reserve(Tier::Vram, 0, 900).unwrap();
        place.held(Tier::Vram, 0).pending.fetch_add(100, SeqCst); // killed within a reservation
        println!("ready");
        loop {
            std::thread::park();
        }
    }
    let (dir, map) = ledger("reap");
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "ledger_tests::dead::the_dead_are_reaped",
            "--nocapture",
        ])
        .env("GB_TEST_LEDGER", dir.file())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    while map.used(Tier::Vram, 0) != 900 || map.sum(Tier::Vram, 0, true) != 1000 {
        std::thread::yield_now();
    }
    let place = Place::take(map).unwrap();
    assert_eq!(map.reap(), 0);
    assert_eq!(map.reap_but(child.id()), 0);
    assert!(place.reserve(Tier::Vram, 0, 200).is_err());
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(map.reap_but(child.id()), 0, "it is still to be told of");
    assert_eq!(map.used(Tier::Vram, 0), 900);
    place.reserve(Tier::Vram, 0, 1000).unwrap();
    assert_eq!(map.seats().len(), 1);
}

/// A reaper killed half-way leaves a seat that the next reaper finishes.
#[test]
fn a_dead_reaper_is_reaped() {
    let (_dir, map) = ledger("reaper");
    let seat = &map.seats[3];
    map.seats_used.store(4, SeqCst);
    seat.owner.store(REAPING | 999_999_999, SeqCst);
    seat.held[0][0].bytes.store(77, SeqCst);
    assert_eq!(map.reap_with(|_| Some(1)), 0);
    assert_eq!(map.reap_with(|_| None), 1);
    assert_eq!(map.used(Tier::Vram, 0), 0);
}

/// A pid that was given to another process does not keep the dead one's seat.
#[test]
fn a_recycled_pid_is_another_process() {
    let (_dir, map) = ledger("recycled");
    let place = Place::take(map).unwrap();
    place.reserve(Tier::Host, 0, 5).unwrap();
    assert_eq!(map.reap_with(|_| Some(1)), 1);
    assert_eq!(map.used_host(), 0);
    std::mem::forget(place);
}

/// A process that runs another program now holds nothing of what the former one held.
#[test]
fn exec_ends_what_was_held() {
    let (_dir, map) = ledger("exec");
    let place = Place::take(map).unwrap();
    place.reserve(Tier::Host, 0, 5).unwrap();
    place.name(Part::Pinned, 0, 5);
    assert_eq!(map.reap(), 0);
    assert_eq!(map.held_by(std::process::id(), Tier::Host, 0), Some(5));
    map.seats[0].image.fetch_add(16, SeqCst);
    assert_eq!(map.reap(), 1);
    assert_eq!((map.used_host(), map.part(Part::Pinned, 0)), (0, 0));
    assert_eq!(map.device(0).part_peak(Part::Pinned), 5);
    std::mem::forget(place);
}

#[test]
fn all_seats_taken() {
    let (_dir, map) = ledger("full");
    let places: Vec<_> = (0..SEATS).map(|_| Place::take(map).unwrap()).collect();
    assert!(Place::take(map).is_none());
    drop(places);
    assert!(Place::take(map).is_some());
}
