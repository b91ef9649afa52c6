//! Disks that fail: nothing is lost, and it is said what happened.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};

use super::super::queue::Direction;
use super::super::store::{Failure, Refused};
use super::super::trial::Method;
use super::faulty::{self, Fault};
use super::*;
use crate::tier::chunk::GRAIN;

const BOTH: [Method; 2] = [Method::Uring, Method::Threads];

/// Which grain of a chunk is the one that fails.
const CLASS: u64 = 20 << 20;

fn with(method: Method, dir: &tempfile::TempDir) -> Config {
    Config {
        method: Some(method),
        ..config(dir)
    }
}

#[test]
fn a_write_that_fails_gives_the_slot_back_and_the_place_is_not_used_again() {
    for method in BOTH {
        let dir = scratch();
        let memory = Memory::new(2 * CLASS as usize);
        let bad = 6 << 20;
        let store = faulty::open(with(method, &dir), &memory, move |_, piece| {
            match piece.direction == Direction::Write && piece.at == bad {
                true => Fault::Errno(libc::EIO),
                false => Fault::None,
            }
        });
        let from = memory.buffer(0, CLASS);
        fill(from, 1);
        let slot = store.reserve(CLASS, soon()).unwrap();
        // SAFETY: never unmapped, and left alone until it has ended.
        let end = unsafe { store.write(slot, from) }.unwrap().wait(soon());
        let failure = Failure::Disk(Direction::Write, libc::EIO);
        assert_eq!(end, Some(Err(failure)));
        let said = failure.to_string();
        assert!(
            said.starts_with("the spill file could not be written to"),
            "{said}"
        );
        assert!(
            !failure.is_full() && holds(from, 1),
            "the caller still has it"
        );
        assert!(!store.release(slot), "given back already");
        let counts = store.counts();
        assert_eq!(
            (counts.failed, counts.written, counts.retired),
            (1, 0, GRAIN)
        );
        assert_eq!(counts.spare, counts.grown - GRAIN);
        for seed in 2..5 {
            assert!(there_and_back(&store, &memory, CLASS, seed), "elsewhere");
        }
    }
}

#[test]
fn a_full_disk_is_told_as_one() {
    for (method, errno) in BOTH.into_iter().zip([libc::ENOSPC, libc::EFBIG]) {
        let dir = scratch();
        let memory = Memory::new(2 * CLASS as usize);
        let is_full = Arc::new(AtomicBool::new(true));
        let full = is_full.clone();
        let store = faulty::open(with(method, &dir), &memory, move |n, _| {
            match full.load(SeqCst) && n >= 3 {
                true => Fault::Errno(errno),
                false => Fault::None,
            }
        });
        let slot = store.reserve(CLASS, soon()).unwrap();
        let from = memory.buffer(0, CLASS);
        // SAFETY: never unmapped, and left alone until it has ended.
        let end = unsafe { store.write(slot, from) }.unwrap().wait(soon());
        let Some(Err(failure)) = end else {
            panic!("{end:?}");
        };
        assert!(failure.is_full(), "{failure}");
        // The place is as good as any other once there is room.
        assert_eq!(store.counts().retired, 0);
        is_full.store(false, SeqCst);
        assert!(there_and_back(&store, &memory, CLASS, 1));
    }
}

#[test]
fn a_read_that_fails_leaves_the_slot_as_it_was() {
    for method in BOTH {
        let dir = scratch();
        let memory = Memory::new(2 * CLASS as usize);
        let fails = Arc::new(AtomicBool::new(true));
        let failing = fails.clone();
        let store = faulty::open(with(method, &dir), &memory, move |_, piece| {
            match piece.direction == Direction::Read && failing.load(SeqCst) {
                true => Fault::Errno(libc::EIO),
                false => Fault::None,
            }
        });
        let (from, to) = (
            memory.buffer(0, CLASS),
            memory.buffer(CLASS as usize, CLASS),
        );
        fill(from, 9);
        let slot = store.reserve(CLASS, soon()).unwrap();
        // SAFETY: never unmapped, and left alone until each has ended.
        unsafe {
            assert_eq!(store.write(slot, from).unwrap().wait(soon()), Some(Ok(())));
            let end = store.read(slot, to).unwrap().wait(soon());
            assert_eq!(end, Some(Err(Failure::Disk(Direction::Read, libc::EIO))));
            fails.store(false, SeqCst);
            assert_eq!(store.read(slot, to).unwrap().wait(soon()), Some(Ok(())));
        }
        assert!(holds(to, 9));
        assert_eq!(store.counts().retired, 0);
    }
}

#[test]
fn short_and_interrupted_requests_are_done_whole() {
    for method in BOTH {
        let dir = scratch();
        let memory = Memory::new(2 * CLASS as usize);
        let faults = Arc::new(AtomicUsize::new(0));
        let count = faults.clone();
        let store = faulty::open(with(method, &dir), &memory, move |n, piece| {
            let fault = match n % 5 {
                0 => Fault::Short(piece.len / 3),
                1 => Fault::Errno(libc::EINTR),
                2 => Fault::Short(piece.len / 2 + 4096),
                3 => Fault::Errno(libc::EAGAIN),
                _ => return Fault::None,
            };
            count.fetch_add(1, SeqCst);
            fault
        });
        assert!(there_and_back(&store, &memory, CLASS, 4));
        assert!(faults.load(SeqCst) > 100);
        assert_eq!(store.counts().failed, 0);
    }
}

#[test]
fn a_file_that_was_cut_off_is_an_error() {
    let dir = scratch();
    let memory = Memory::new(2 * CLASS as usize);
    let store = faulty::open(with(Method::Uring, &dir), &memory, |_, piece| {
        match piece.direction {
            // As the kernel answers beyond the end.
            Direction::Read => Fault::Errno(0),
            Direction::Write => Fault::None,
        }
    });
    let slot = store.reserve(CLASS, soon()).unwrap();
    // SAFETY: never unmapped, and left alone until each has ended.
    unsafe {
        let buffer = memory.buffer(0, CLASS);
        assert_eq!(
            store.write(slot, buffer).unwrap().wait(soon()),
            Some(Ok(()))
        );
        let end = store.read(slot, buffer).unwrap().wait(soon());
        assert_eq!(end, Some(Err(Failure::Disk(Direction::Read, libc::EIO))));
    }
}

/// Read wrongly, written wrongly, not written at all: each is found, and none is taken for the others' errors.
#[test]
fn wrong_bytes_are_found() {
    for method in BOTH {
        for (direction, fault) in [
            (Direction::Read, Fault::Corrupt),
            (Direction::Write, Fault::Corrupt),
            (Direction::Write, Fault::Lost),
        ] {
            let dir = scratch();
            let memory = Memory::new(2 * CLASS as usize);
            let place = 8 << 20;
            let store = faulty::open(with(method, &dir), &memory, move |_, piece| {
                match piece.direction == direction && piece.at == place {
                    true => fault,
                    false => Fault::None,
                }
            });
            let (from, to) = (
                memory.buffer(0, CLASS),
                memory.buffer(CLASS as usize, CLASS),
            );
            fill(from, 7);
            let slot = store.reserve(CLASS, soon()).unwrap();
            // SAFETY: never unmapped, and left alone until each has ended.
            unsafe {
                assert_eq!(store.write(slot, from).unwrap().wait(soon()), Some(Ok(())));
                assert!(holds(from, 7));
                let end = store.read(slot, to).unwrap().wait(soon());
                assert_eq!(end, Some(Err(Failure::Checksum(place))), "{fault:?}");
            }
            assert!(Failure::Checksum(place).to_string().contains("wrong data"));
            assert_eq!(store.counts().read, 0);
        }
    }
}

#[test]
fn nobody_waits_longer_for_a_disk_that_stalls() {
    for method in BOTH {
        let dir = scratch();
        let memory = Memory::new(3 * CLASS as usize);
        let stall = Duration::from_secs(3);
        let store = faulty::open(with(method, &dir), &memory, move |_, piece| {
            match piece.at {
                0 => Fault::Stall(stall),
                _ => Fault::None,
            }
        });
        let buffer = memory.buffer(0, CLASS);
        fill(buffer, 1);
        let slot = store.reserve(CLASS, soon()).unwrap();
        let begun = Instant::now();
        // SAFETY: never unmapped, and left alone until it has ended.
        let ticket = unsafe { store.write(slot, buffer) }.unwrap();
        assert_eq!(ticket.wait(begun + Duration::from_millis(200)), None);
        let waited = begun.elapsed();
        assert!(
            waited >= Duration::from_millis(200) && waited < stall,
            "{waited:?}"
        );
        // Its memory is taken, its slot is not readable, and not free though it is given back.
        assert!(store.uses(&buffer) && ticket.poll().is_none());
        let spare = store.counts().spare;
        let other = store.reserve(CLASS, soon()).unwrap();
        // SAFETY: refused, or never unmapped and left alone.
        unsafe {
            assert_eq!(store.write(other, buffer).map(drop), Err(Refused::Taken));
            assert_eq!(store.read(slot, buffer).map(drop), Err(Refused::Empty));
            // Others go on meanwhile.
            let elsewhere = memory.buffer(CLASS as usize, CLASS);
            let end = store.write(other, elsewhere).unwrap().wait(begun + stall);
            assert_eq!(end, Some(Ok(())));
        }
        assert!(store.release(slot));
        assert_eq!(store.counts().spare, spare - CLASS);
        assert!(!store.close(Instant::now()), "not yet");
        assert_eq!(ticket.wait(soon()), Some(Ok(())), "it went on");
        assert!(begun.elapsed() >= stall && !store.uses(&buffer));
        assert!(store.close(soon()));
        let waited = store.counts().waited;
        assert!(waited >= stall - Duration::from_secs(1), "{waited:?}");
    }
}

/// A grain of a slot that was given back under a write is not somebody else's before that write has ended.
#[test]
fn a_slot_that_is_given_back_is_free_when_its_write_has_ended() {
    let dir = scratch();
    let memory = Memory::new(2 * CLASS as usize);
    let config = Config {
        limit: 64 << 20,
        ..with(Method::Uring, &dir)
    };
    let store = faulty::open(config, &memory, |n, _| match n {
        0 => Fault::Stall(Duration::from_millis(500)),
        _ => Fault::None,
    });
    let slots: Vec<_> = (0..3)
        .map(|_| store.reserve(CLASS, soon()).unwrap())
        .collect();
    // SAFETY: never unmapped, and left alone until it has ended.
    let ticket = unsafe { store.write(slots[1], memory.buffer(0, CLASS)) }.unwrap();
    assert!(store.release(slots[1]));
    assert!(matches!(
        store.reserve(CLASS, soon()),
        Err(Refused::Short(_))
    ));
    assert_eq!(ticket.wait(soon()), Some(Ok(())));
    assert!(store.reserve(CLASS, soon()).is_ok());
}

#[test]
fn closing_ends_what_has_not_begun() {
    let dir = scratch();
    let memory = Memory::new(64 << 20);
    let config = Config {
        depth: 2,
        ..with(Method::Uring, &dir)
    };
    let store = faulty::open(config, &memory, |n, _| match n {
        0 | 1 => Fault::Stall(Duration::from_millis(300)),
        _ => Fault::None,
    });
    let tickets: Vec<_> = (0..3)
        .map(|n| {
            let slot = store.reserve(CLASS, soon()).unwrap();
            let buffer = memory.buffer(n * CLASS as usize, CLASS);
            // SAFETY: never unmapped, and left alone until it has ended.
            unsafe { store.write(slot, buffer) }.unwrap()
        })
        .collect();
    assert!(store.close(soon()));
    for ticket in tickets {
        assert_eq!(ticket.poll(), Some(Err(Failure::Closed)));
    }
    assert_eq!(store.counts().spare, store.counts().grown);
}
