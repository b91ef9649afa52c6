//! Reservations and limits.

use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use super::ledger;
use crate::ledger::*;

#[test]
fn a_device_keeps_its_first_limit() {
    let (_dir, map) = ledger("device");
    let second = map
        .device_index([2; 16], || DeviceFacts {
            total: 9,
            vram_limit: 8,
        })
        .unwrap();
    assert_eq!(map.device_index([2; 16], || unreachable!()), Some(second));
    assert_eq!(map.device_index([1; 16], || unreachable!()), Some(0));
    assert_eq!(map.device(second).vram_limit(), 8);
    for n in 3..=DEVICES as u8 {
        map.device_index([n; 16], || DeviceFacts {
            total: 9,
            vram_limit: 8,
        })
        .unwrap();
    }
    assert_eq!(map.device_index([99; 16], || unreachable!()), None);
}

#[test]
fn limits_are_exact_under_threads() {
    let (_dir, map) = ledger("threads");
    let place = Place::take(map).unwrap();
    let granted = AtomicU64::new(0);
    std::thread::scope(|s| {
        for _ in 0..8 {
            s.spawn(|| {
                for _ in 0..500 {
                    if place.reserve(Tier::Vram, 0, 7).is_ok() {
                        granted.fetch_add(1, SeqCst);
                    }
                }
            });
        }
    });
    // 142 * 7 = 994: every grant that fits is made, none more.
    assert_eq!(granted.load(SeqCst), 142);
    assert_eq!(map.used(Tier::Vram, 0), 994);
    assert_eq!(
        place.reserve(Tier::Vram, 0, 7),
        Err(Refused {
            held: 994,
            limit: 1000
        })
    );
    place.reserve(Tier::Vram, 0, 6).unwrap();
    place.release(Tier::Vram, 0, 1000);
    assert_eq!(map.used(Tier::Vram, 0), 0);
    assert_eq!(map.device(0).vram_peak.load(SeqCst), 1000);
}

#[test]
fn host_is_one_budget_over_devices() {
    let (_dir, map) = ledger("host");
    map.device_index([2; 16], || DeviceFacts {
        total: 9,
        vram_limit: 8,
    })
    .unwrap();
    let place = Place::take(map).unwrap();
    place.reserve(Tier::Host, 0, 300).unwrap();
    place.reserve(Tier::Host, 1, 200).unwrap();
    assert_eq!(
        place.reserve(Tier::Host, 1, 1),
        Err(Refused {
            held: 500,
            limit: 500
        })
    );
    assert_eq!(map.used_host(), 500);
    drop(place);
    assert_eq!(map.used_host(), 0);
}

/// Several places stand for several processes: their pending reservations may collide, but the sum never exceeds the
/// limit, and nobody is refused what would fit after the others' attempts have ended.
#[test]
fn places_never_pass_together() {
    let (_dir, map) = ledger("race");
    let places: Vec<Place> = (0..4).map(|_| Place::take(map).unwrap()).collect();
    let over = AtomicU64::new(0);
    std::thread::scope(|s| {
        for place in &places {
            s.spawn(|| {
                for _ in 0..2000 {
                    // At most 3 of 4 fit together.
                    if place.reserve(Tier::Vram, 0, 330).is_ok() {
                        if map.used(Tier::Vram, 0) > 1000 {
                            over.fetch_add(1, SeqCst);
                        }
                        place.release(Tier::Vram, 0, 330);
                    }
                }
            });
        }
    });
    assert_eq!(over.load(SeqCst), 0);
    assert_eq!(map.used(Tier::Vram, 0), 0);
    // Two that fit together are both served, always.
    std::thread::scope(|s| {
        for place in &places[..2] {
            s.spawn(|| {
                for _ in 0..2000 {
                    place.reserve(Tier::Vram, 0, 500).unwrap();
                    place.release(Tier::Vram, 0, 500);
                }
            });
        }
    });
}
