//! What is asked of a running job.

use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use super::ledger;
use crate::ledger::*;

#[test]
fn a_wish_survives_what_is_found() {
    let (dir, map) = ledger("wish");
    let other = Mapped::open(&dir.file()).unwrap();
    other.set_vram_limit(VramLimit::Bytes(900));
    assert_eq!(map.device(0).vram_limit(), 900);
    map.device(0).refine(300);
    assert_eq!(map.device(0).vram_limit(), 900);
    assert_eq!(map.settings().vram_limit, VramLimit::Bytes(900));
    // More than the device has is all of it, and of another device as much as that has.
    other.set_vram_limit(VramLimit::Bytes(5000));
    assert_eq!(map.device(0).vram_limit(), 2000);
    other.set_vram_limit(VramLimit::Share(2_500));
    assert_eq!(map.device(0).vram_limit(), 500);
    other.set_vram_limit(VramLimit::Bytes(0));
    assert_eq!(map.device(0).vram_limit(), 0);
    // Taken back: what was found holds.
    other.set_vram_limit(VramLimit::Free);
    assert_eq!(map.device(0).vram_limit(), 300);
    assert_eq!(map.settings().vram_limit, VramLimit::Free);
}

#[test]
fn a_later_device_takes_the_new_wish() {
    let (_dir, map) = ledger("later");
    map.set_vram_limit(VramLimit::Bytes(700));
    let facts = || DeviceFacts {
        total: 600,
        vram_limit: map.settings().vram_limit.of(600).unwrap(),
    };
    let second = map.device_index([2; 16], facts).unwrap();
    assert_eq!(map.device(second).vram_limit(), 600);
    assert_eq!(map.device(0).vram_limit(), 700);
}

/// A device that is being entered while the wish changes ends up with the new one, whichever it read.
#[test]
fn a_device_is_entered_while_the_wish_changes() {
    let (_dir, map) = ledger("entering");
    let read = std::sync::Barrier::new(2);
    std::thread::scope(|s| {
        s.spawn(|| {
            map.device_index([2; 16], || {
                let vram_limit = map.settings().vram_limit.of(2000).unwrap();
                read.wait();
                std::thread::sleep(Duration::from_millis(5));
                DeviceFacts {
                    total: 2000,
                    vram_limit,
                }
            })
        });
        read.wait();
        map.set_vram_limit(VramLimit::Bytes(100));
    });
    assert_eq!(map.device(1).vram_limit(), 100);
}

#[test]
fn a_lower_limit_holds_at_once() {
    let (_dir, map) = ledger("lower");
    let place = Place::take(map).unwrap();
    place.reserve(Tier::Vram, 0, 800).unwrap();
    place.reserve(Tier::Host, 0, 400).unwrap();
    map.set_vram_limit(VramLimit::Bytes(500));
    map.set_ram_limit(100);
    let refused = |held, limit| Err(Refused { held, limit });
    assert_eq!(place.reserve(Tier::Vram, 0, 1), refused(800, 500));
    assert_eq!(place.reserve(Tier::Host, 0, 1), refused(400, 100));
    assert_eq!(map.settings().ram_limit, 100);
    place.release(Tier::Vram, 0, 400);
    assert_eq!(place.reserve(Tier::Vram, 0, 100), Ok(()));
    map.set_ram_limit(700);
    assert_eq!(place.reserve(Tier::Host, 0, 300), Ok(()));
    assert_eq!(map.claimed(Tier::Host, 0), 700);
}

/// Whoever lowers a limit and then sums up what is claimed knows all that will ever be held above it.
#[test]
fn nothing_slips_past_a_lower_limit() {
    let (_dir, map) = ledger("slip");
    let places: Vec<Place> = (0..2).map(|_| Place::take(map).unwrap()).collect();
    for _ in 0..300 {
        map.set_vram_limit(VramLimit::Bytes(1000));
        std::thread::scope(|s| {
            for place in &places {
                s.spawn(|| while place.reserve(Tier::Vram, 0, 9).is_ok() {});
            }
            s.spawn(|| {
                map.set_vram_limit(VramLimit::Bytes(300));
                let most = map.claimed(Tier::Vram, 0).max(300);
                std::thread::sleep(Duration::from_micros(100));
                assert!(map.used(Tier::Vram, 0) <= most);
            });
        });
        for place in &places {
            place.release(Tier::Vram, 0, place.own(Tier::Vram, 0));
        }
    }
}

#[test]
fn a_change_wakes_who_waits() {
    let (dir, map) = ledger("wakes");
    let other = Mapped::open(&dir.file()).unwrap();
    let seen = map.changes();
    let began = Instant::now();
    std::thread::scope(|s| {
        s.spawn(|| {
            while map.changes() == seen {
                map.wait_for_change(seen, Duration::from_secs(60));
            }
        });
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(other.set_ram_limit(7), seen.wrapping_add(1));
    });
    assert!(began.elapsed() < Duration::from_secs(30), "it slept on");
    map.wait_for_change(seen, Duration::from_secs(60));
    assert!(began.elapsed() < Duration::from_secs(30), "there is news");
    map.wait_for_change(map.changes(), Duration::from_millis(1));
}

#[test]
fn answers_are_those_of_the_living() {
    let (_dir, map) = ledger("answers");
    let (one, two) = (Place::take(map).unwrap(), Place::take(map).unwrap());
    let request = map.request_park();
    assert_eq!((request, map.park_requests()), (1, 1));
    let mut obstacles = [[0; OBSTACLES]; 2];
    obstacles[Tier::Vram as usize][Obstacle::Pinned as usize] = 5;
    one.parked(request, obstacles);
    one.answer(map.changes(), obstacles);
    let answers = map.answers();
    assert_eq!(
        answers[0],
        Answer {
            pid: std::process::id(),
            changes: 1,
            parked: 1,
            is_asleep: true,
            obstacles,
        }
    );
    assert_eq!((answers[1].changes, answers[1].parked), (0, 0));
    assert!(map.holders().is_empty());
    two.reserve(Tier::Host, 0, 3).unwrap();
    assert_eq!(map.holders(), [answers[1]]);
    one.woken();
    assert!(!map.answers()[0].is_asleep);
    drop(two);
    assert_eq!(map.answers().len(), 1);
    // Who comes later has nothing to do for what was asked before.
    let three = Place::take(map).unwrap();
    let late = map.answers()[1];
    assert_eq!((late.changes, late.parked, late.is_asleep), (1, 1, false));
    drop(one);
    let four = Place::take(map).unwrap();
    assert_eq!(map.answers()[0].obstacles, [[0; OBSTACLES]; 2]);
    drop((three, four));
}

#[test]
fn the_pace_is_that_of_the_living() {
    let (_dir, map) = ledger("pace");
    let (one, two) = (Place::take(map).unwrap(), Place::take(map).unwrap());
    let pace = |vram, host, step_nanos| Pace {
        heat: [vram, host],
        step_nanos,
    };
    one.set_pace(0, pace(10, 3, 7));
    two.set_pace(0, pace(5, 1, 9));
    assert_eq!(map.pace(0), pace(15, 4, 9));
    assert_eq!(map.pace(1), Pace::default());
    drop(two);
    assert_eq!(map.pace(0), pace(10, 3, 7));
    let three = Place::take(map).unwrap();
    assert_eq!(map.pace(0), pace(10, 3, 7));
    drop(three);
    let traffic = &map.device(0).traffic;
    traffic.promoted_bytes.fetch_add(4, SeqCst);
    drop(one);
    assert_eq!(traffic.promoted_bytes.load(SeqCst), 4);
}
