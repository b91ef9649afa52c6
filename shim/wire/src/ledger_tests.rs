use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use crate::ledger::*;

struct Dir(std::path::PathBuf);
impl Dir {
    fn new(name: &str) -> Dir {
        let path = std::env::temp_dir().join(format!("gb-ledger-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir(&path).unwrap();
        Dir(path)
    }
    fn file(&self) -> std::path::PathBuf {
        self.0.join(crate::LEDGER_FILE)
    }
}
impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

const SETTINGS: Settings = Settings {
    vram_limit: VramLimit::Bytes(1000),
    ram_limit: 500,
    spill: true,
    report: Report::Physical,
};

fn ledger(name: &str) -> (Dir, &'static Mapped) {
    let dir = Dir::new(name);
    let map = Box::leak(Box::new(Mapped::create(&dir.file(), SETTINGS).unwrap()));
    map.device_index([1; 16], || DeviceFacts {
        total: 2000,
        vram_limit: 1000,
    })
    .unwrap();
    (dir, map)
}

#[test]
fn settings_survive_the_file() {
    let (dir, _) = ledger("settings");
    assert_eq!(Mapped::open(&dir.file()).unwrap().settings(), SETTINGS);
    assert!(Mapped::create(&dir.file(), SETTINGS).is_err());
    std::fs::write(dir.0.join("other"), "short").unwrap();
    assert!(Mapped::open(&dir.0.join("other")).is_err());
    std::fs::write(dir.0.join("zeros"), vec![0; size_of::<Ledger>()]).unwrap();
    assert!(Mapped::open(&dir.0.join("zeros")).is_err());
}

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
            "ledger_tests::the_dead_are_reaped",
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
    assert!(place.reserve(Tier::Vram, 0, 200).is_err());
    child.kill().unwrap();
    child.wait().unwrap();
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
