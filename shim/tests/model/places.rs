//! Places in the ledger. Seen to fail when a reservation is compared first and added afterwards; when a sum reads what
//! is held before what is pending; when a commit takes from what is pending before it adds to what is held; when a seat
//! is given away before it is cleared, or cleared without being claimed; when a reservation is refused after one look at
//! what others are clearing away; when the limit is read before a reservation is written down.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

use crate::ledger::*;
use crate::sync::{self, as_process, kill, process};

const LIMIT: u64 = 1000;

std::thread_local! {
    static LEDGER: Cell<Option<&'static Ledger>> = const { Cell::new(None) };
    static TEMPLATE: RefCell<Option<Rc<Mapped>>> = const { RefCell::new(None) };
}

/// The ledger of one execution, in the same place as the last one's, and within its limits from now on.
fn ledger() -> &'static Ledger {
    let template = TEMPLATE.with_borrow_mut(|t| t.get_or_insert_with(template).clone());
    let ledger = LEDGER.get().unwrap_or_else(|| {
        // SAFETY: a ledger of zeroes is one of atomics that are zero.
        Box::leak(unsafe { Box::<Ledger>::new_zeroed().assume_init() })
    });
    // SAFETY: both are ledgers, which are plain atomics; this thread is the only one, and nothing of the last execution
    // runs any more.
    unsafe {
        let to = std::ptr::from_ref(ledger).cast_mut().cast::<u8>();
        let from = std::ptr::from_ref(&**template).cast::<u8>();
        std::ptr::copy_nonoverlapping(from, to, size_of::<Ledger>());
    }
    LEDGER.set(Some(ledger));
    sync::begin(within_limits, 1);
    ledger
}

fn template() -> Rc<Mapped> {
    let name = format!(
        "gb-model-{}-{:?}",
        std::process::id(),
        std::thread::current().id()
    );
    let path = std::env::temp_dir().join(name);
    let settings = Settings {
        vram_limit: VramLimit::Bytes(LIMIT),
        ram_limit: LIMIT,
        spill: true,
        report: Report::Physical,
        placement: Placement::Auto,
        staging: Staging::Off,
    };
    let mapped = Mapped::create(&path, settings).unwrap();
    std::fs::remove_file(&path).unwrap();
    let facts = || DeviceFacts {
        total: LIMIT,
        vram_limit: LIMIT,
    };
    for index in 0..DEVICES {
        assert_eq!(
            mapped.device_index([index as u8 + 1; 16], facts),
            Some(index)
        );
    }
    Rc::new(mapped)
}

/// What is held at this very moment.
fn held(tier: Tier) -> u64 {
    let Some(ledger) = LEDGER.get() else { return 0 };
    let devices = if tier == Tier::Vram { 1 } else { DEVICES };
    let of = |seat: &crate::ledger::Seat| -> u64 {
        (0..devices)
            .map(|d| seat.held[d][tier as usize].bytes.peek())
            .sum()
    };
    ledger.seats.iter().map(of).sum()
}

fn within_limits() {
    for tier in [Tier::Vram, Tier::Host] {
        let held = held(tier);
        assert!(held <= LIMIT, "{held} bytes of {tier:?} are held");
    }
}

fn peaks_are_possible(ledger: &Ledger) {
    let peaks = [
        &ledger.device(0).vram_peak,
        &ledger.host_peak,
        &ledger.device(1).host_peak,
    ];
    for peak in peaks {
        assert!(peak.peek() <= LIMIT, "a peak of {}", peak.peek());
    }
}

/// Processes that take and give back. Returns how many reservations were granted.
fn take_and_give(tier: Tier, wants: &'static [&'static [u64]]) -> u64 {
    let ledger = ledger();
    let granted = Arc::new(sync::AtomicU64::new(0));
    let mut processes = Vec::new();
    for (n, amounts) in wants.iter().enumerate() {
        let granted = granted.clone();
        processes.push(process(10 + n as u32, move || {
            let place = Place::take(ledger).expect("a seat for each");
            for amount in *amounts {
                // Host memory is one budget over all devices.
                let device = if tier == Tier::Host { n % DEVICES } else { 0 };
                if place.reserve(tier, device, *amount).is_ok() {
                    granted.fetch_add(1, SeqCst);
                    place.release(tier, device, *amount);
                }
            }
        }));
    }
    for process in processes {
        process.join().unwrap();
    }
    assert_eq!(held(tier), 0, "all was given back");
    peaks_are_possible(ledger);
    // Nobody is there any more: everything can be had.
    let place = Place::take(ledger).unwrap();
    assert_eq!(place.reserve(tier, 0, LIMIT), Ok(()));
    drop(place);
    sync::end();
    granted.peek()
}

#[test]
fn two_that_do_not_fit_together() {
    crate::some(1500, || {
        take_and_give(Tier::Vram, &[&[600, 700], &[600, 500]]);
    });
}

#[test]
fn three_that_do_not_fit_together() {
    crate::some(1000, || {
        take_and_give(Tier::Vram, &[&[600], &[400, 600], &[300, 700]]);
    });
}

#[test]
fn host_memory_of_two_devices() {
    crate::some(750, || {
        take_and_give(Tier::Host, &[&[600, 500], &[600, 500]]);
    });
}

/// Those that fit together are all served, however they get into each other's way.
#[test]
fn who_fits_is_served() {
    crate::some(1000, || {
        let granted = take_and_give(Tier::Vram, &[&[500, 500], &[500, 300]]);
        assert_eq!(granted, 4, "somebody was refused for nothing");
        let granted = take_and_give(Tier::Vram, &[&[300], &[400], &[300, 200]]);
        assert_eq!(granted, 4, "somebody was refused for nothing");
    });
}

/// Of two that do not fit together, one at least is served: they do not refuse each other.
#[test]
fn one_of_two_is_served() {
    crate::some(1000, || {
        let ledger = ledger();
        let granted: &'static Cell<u64> = Box::leak(Box::new(Cell::new(0)));
        let granted = Shared(granted);
        let take = move |pid| {
            process(pid, move || {
                let place = Place::take(ledger).unwrap();
                if place.reserve(Tier::Vram, 0, 600).is_ok() {
                    granted.get().set(granted.get().get() + 1);
                }
                std::mem::forget(place);
            })
        };
        let both = [take(10), take(11)];
        for process in both {
            process.join().unwrap();
        }
        assert_eq!(granted.get().get(), 1);
        sync::end();
    });
}

/// A cell that the threads of an execution share: they are coroutines of one thread.
#[derive(Clone, Copy)]
struct Shared(&'static Cell<u64>);
// SAFETY: an execution runs on one thread.
unsafe impl Send for Shared {}
impl Shared {
    fn get(&self) -> &'static Cell<u64> {
        self.0
    }
}

/// Threads of one process share its place.
#[test]
fn threads_of_one_process() {
    crate::some(750, || {
        let ledger = ledger();
        let place = Arc::new(Place::take(ledger).unwrap());
        let threads = [0, 1].map(|_| {
            let place = place.clone();
            process(1, move || {
                assert_eq!(place.reserve(Tier::Vram, 0, 500), Ok(()));
                place.release(Tier::Vram, 0, 500);
                assert_eq!(place.reserve(Tier::Vram, 0, 400), Ok(()));
            })
        });
        for thread in threads {
            thread.join().unwrap();
        }
        assert_eq!(place.own(Tier::Vram, 0), 800);
        sync::end();
    });
}

/// A limit is lowered while two take what there is: whoever lowers it and sums up what is claimed knows all that will ever
/// be held above it.
#[test]
fn nothing_slips_past_a_lower_limit() {
    crate::some(1500, || {
        let ledger = ledger();
        let known: &'static Cell<u64> = Box::leak(Box::new(Cell::new(0)));
        let known = Shared(known);
        let mut all: Vec<_> = [(10, [300, 300]), (11, [400, 200])]
            .map(|(pid, wants)| {
                process(pid, move || {
                    let place = Place::take(ledger).unwrap();
                    for bytes in wants {
                        let _ = place.reserve(Tier::Vram, 0, bytes);
                    }
                    std::mem::forget(place);
                })
            })
            .into();
        all.push(process(12, move || {
            ledger.set_vram_limit(VramLimit::Bytes(500));
            known.get().set(ledger.claimed(Tier::Vram, 0));
        }));
        for process in all {
            process.join().unwrap();
        }
        let (held, known) = (held(Tier::Vram), known.get().get());
        assert!(
            held <= known.max(500),
            "{held} are held, {known} were known"
        );
        sync::end();
    });
}

/// A process that dies with memory, in the middle of a reservation.
fn somebody_died(ledger: &'static Ledger, bytes: u64, pending: u64) {
    as_process(66, || {
        let place = Place::take(ledger).unwrap();
        place.reserve(Tier::Vram, 0, bytes).unwrap();
        place.held(Tier::Vram, 0).pending.fetch_add(pending, SeqCst);
        std::mem::forget(place);
    });
    kill(66);
}

/// Two find the same process dead at the same time: both are served, and what they get is theirs.
#[test]
fn two_reapers_at_once() {
    crate::some(1500, || {
        let ledger = ledger();
        somebody_died(ledger, 900, 100);
        let both = [10, 11].map(|pid| {
            process(pid, move || {
                let place = Place::take(ledger).unwrap();
                assert_eq!(
                    place.reserve(Tier::Vram, 0, 500),
                    Ok(()),
                    "{pid} is refused"
                );
                assert_eq!(place.own(Tier::Vram, 0), 500);
                std::mem::forget(place);
            })
        });
        for process in both {
            process.join().unwrap();
        }
        assert_eq!(held(Tier::Vram), 1000);
        assert_eq!(ledger.seats().len(), 2);
        sync::end();
    });
}

/// The seat of the dead is taken while it is cleared, by whom nobody may clear away.
#[test]
fn a_seat_is_taken_while_it_is_cleared() {
    crate::some(1500, || {
        let ledger = ledger();
        somebody_died(ledger, 900, 100);
        let reapers = [10, 11].map(|pid| {
            process(pid, move || {
                ledger.reap();
            })
        });
        let takers = [12, 13, 14].map(|pid| {
            process(pid, move || {
                // Three seats for three of the living: there is one for each when the dead are gone. Somebody else may
                // be clearing it just now.
                let place = (0..50).find_map(|_| {
                    Place::take(ledger).or_else(|| {
                        sync::yield_now();
                        None
                    })
                });
                let place = place.expect("a seat");
                assert_eq!(
                    place.reserve(Tier::Vram, 0, 300),
                    Ok(()),
                    "{pid} is refused"
                );
                assert_eq!(place.own(Tier::Vram, 0), 300, "{pid} was cleared away");
                std::mem::forget(place);
            })
        });
        for process in reapers.into_iter().chain(takers) {
            process.join().unwrap();
        }
        assert_eq!(held(Tier::Vram), 900);
        let mut living: Vec<u32> = ledger.seats().iter().map(|(pid, _, _)| *pid).collect();
        living.sort_unstable();
        assert_eq!(living, [12, 13, 14]);
        sync::end();
    });
}

/// A reaper dies half-way; the next one finishes.
#[test]
fn a_reaper_dies() {
    crate::some(750, || {
        let ledger = ledger();
        somebody_died(ledger, 900, 100);
        // Another has begun to clear, and died.
        ledger.seats[0].owner.store(REAPING | 67, SeqCst);
        ledger.seats[0].held[0][0].pending.store(0, SeqCst);
        let both = [10, 11].map(|pid| {
            process(pid, move || {
                let place = Place::take(ledger).unwrap();
                if pid == 10 {
                    kill(67);
                    assert_eq!(place.reserve(Tier::Vram, 0, 500), Ok(()));
                }
                std::mem::forget(place);
            })
        });
        for process in both {
            process.join().unwrap();
        }
        assert_eq!(held(Tier::Vram), 500);
        sync::end();
    });
}
