//! That chunks come back as they went, and what is refused.

use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::super::store::Refused;
use super::super::trial::Method;
use super::*;
use crate::tier::chunk::{CLASSES, GRAIN};

#[test]
fn every_class_by_every_method() {
    let dir = scratch();
    let memory = Memory::new(128 << 20);
    for (method, request) in [
        (Method::Uring, 1 << 20),
        (Method::Uring, 2 << 20),
        (Method::Threads, 512 << 10),
        (Method::Buffered, 2 << 20),
    ] {
        let store = open(
            Config {
                request,
                method: Some(method),
                ..config(&dir)
            },
            &memory,
        );
        let facts = store.facts().clone();
        assert_eq!((facts.method, &facts.refusal), (method, &None));
        assert!(facts.is_firm && facts.is_apart, "{facts:?}");
        for (class, seed) in CLASSES.into_iter().zip(1..) {
            assert!(
                there_and_back(&store, &memory, class, seed),
                "{method:?} {class}"
            );
        }
        let counts = store.counts();
        let all = CLASSES.iter().sum::<u64>();
        assert_eq!((counts.written, counts.read, counts.failed), (all, all, 0));
        assert_eq!((counts.spare, counts.retired), (counts.grown, 0));
        assert!(
            counts.grown <= 128 << 20 && !counts.waited.is_zero(),
            "{counts:?}"
        );
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        assert!(store.close(soon()));
    }
}

/// The best that works, without being asked.
#[test]
fn io_uring_with_registered_memory() {
    let dir = scratch();
    let memory = Memory::new(8 << 20);
    let store = open(config(&dir), &memory);
    assert_eq!(store.facts().method, Method::Uring, "{:?}", store.facts());
    assert_eq!(store.facts().registered, 8 << 20);
    assert!(there_and_back(&store, &memory, GRAIN, 1));
    // Memory of which it was told nothing is as good.
    assert!(there_and_back(&store, &Memory::new(8 << 20), GRAIN, 2));
}

/// The RAM that the tier is to spare does not fill with the file instead.
#[test]
fn the_page_cache_stays_out_of_it() {
    let dir = scratch();
    let memory = Memory::new(128 << 20);
    for method in [Method::Uring, Method::Buffered] {
        let method = Some(method);
        let store = open(
            Config {
                method,
                ..config(&dir)
            },
            &memory,
        );
        assert!(there_and_back(&store, &memory, 64 << 20, 3));
        let cached = cached(dir.path(), store.counts().grown as usize);
        assert!(cached < 2 << 20, "{cached} bytes, {method:?}");
    }
}

/// Bytes of the file in that directory that are in the page cache.
fn cached(dir: &std::path::Path, size: usize) -> usize {
    use std::os::fd::AsRawFd;
    let file = tasks().find_map(|task| open_in(&task, dir)).unwrap();
    let file = std::fs::File::open(file).unwrap();
    let mut pages = vec![0u8; size / 4096];
    // SAFETY: a fresh mapping that nobody reads through, and a byte for each of its pages.
    unsafe {
        let fd = file.as_raw_fd();
        let null = std::ptr::null_mut();
        let start = libc::mmap(null, size, libc::PROT_READ, libc::MAP_SHARED, fd, 0);
        assert_ne!(start, libc::MAP_FAILED);
        assert_eq!(libc::mincore(start, size, pages.as_mut_ptr()), 0);
        libc::munmap(start, size);
    }
    pages.iter().filter(|page| **page & 1 != 0).count() * 4096
}

/// A file in that directory that a thread or process has open, under /proc.
pub fn open_in(task: &std::path::Path, dir: &std::path::Path) -> Option<std::path::PathBuf> {
    let open = std::fs::read_dir(task.join("fd")).ok()?;
    let mut open = open.filter_map(|fd| Some(fd.ok()?.path()));
    open.find(|fd| std::fs::read_link(fd).is_ok_and(|file| file.starts_with(dir)))
}

/// This process's threads, under /proc.
pub fn tasks() -> impl Iterator<Item = std::path::PathBuf> {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    tasks.map(|task| task.unwrap().path())
}

/// The name of one; cut off at 15 bytes.
pub fn comm(task: &std::path::Path) -> String {
    let name = std::fs::read_to_string(task.join("comm")).unwrap_or_default();
    name.trim().to_string()
}

#[test]
fn the_threads_take_no_signals() {
    let dir = scratch();
    for method in [Method::Uring, Method::Threads] {
        let method = Some(method);
        let _store = open(
            Config {
                method,
                ..config(&dir)
            },
            &Memory::new(GRAIN as usize),
        );
        let mut seen = 0;
        for task in tasks().filter(|task| comm(task).starts_with("greenboost-")) {
            // Other tests' threads come and go.
            let Ok(status) = std::fs::read_to_string(task.join("status")) else {
                continue;
            };
            let blocked = status
                .lines()
                .find_map(|l| l.strip_prefix("SigBlk:"))
                .unwrap();
            let blocked = u64::from_str_radix(blocked.trim(), 16).unwrap();
            // All but SIGKILL, SIGSTOP and the two that are the C library's own.
            let free: Vec<_> = (1..=64).filter(|n| blocked >> (n - 1) & 1 == 0).collect();
            assert!(free.iter().all(|n| [9, 19, 32, 33].contains(n)), "{free:?}");
            seen += 1;
        }
        assert!(seen >= 2);
    }
}

#[test]
fn what_makes_no_sense_is_refused() {
    let dir = scratch();
    let memory = Memory::new(64 << 20);
    let store = open(config(&dir), &memory);
    let here = memory.buffer(0, GRAIN);
    let slot = store.reserve(GRAIN, soon()).unwrap();
    assert_eq!(store.reserve(3 << 20, soon()), Err(Refused::Shape));
    let odd = Buffer {
        address: here.address + 512,
        ..here
    };
    let null = Buffer { address: 0, ..here };
    // SAFETY: never unmapped, and nothing of this begins but the write that is waited for.
    unsafe {
        let read = |slot, buffer| store.read(slot, buffer).map(drop);
        assert_eq!(read(slot, here), Err(Refused::Empty));
        for shape in [odd, null, memory.buffer(0, 20 << 20)] {
            assert_eq!(store.write(slot, shape).map(drop), Err(Refused::Shape));
        }
        let ticket = store.write(slot, here).unwrap();
        let other = store.reserve(GRAIN, soon()).unwrap();
        assert_eq!(ticket.wait(soon()), Some(Ok(())));
        assert!(!store.uses(&here));
        assert_eq!(store.write(slot, here).map(drop), Err(Refused::Full));
        assert!(store.release(slot) && !store.release(slot));
        assert_eq!(read(slot, here), Err(Refused::Stale));
        assert!(store.close(soon()));
        assert_eq!(store.write(other, here).map(drop), Err(Refused::Closed));
    }
    assert_eq!(store.reserve(GRAIN, soon()), Err(Refused::Closed));
}

#[test]
fn the_limit_is_a_limit() {
    let dir = scratch();
    let store = open(config(&dir), &Memory::new(GRAIN as usize));
    let slots: Vec<_> = (0..4)
        .map(|_| store.reserve(64 << 20, soon()).unwrap())
        .collect();
    let Err(Refused::Short(shortage)) = store.reserve(GRAIN, soon()) else {
        panic!("more than the limit");
    };
    assert!(
        shortage.to_string().contains("its limit of 256 MiB"),
        "{shortage}"
    );
    assert_eq!(store.counts().grown, 256 << 20);
    assert!(store.release(slots[2]));
    // In what one large chunk leaves several small ones have their place, and the other way round.
    let small: Vec<_> = (0..32)
        .map(|_| store.reserve(GRAIN, soon()).unwrap())
        .collect();
    assert!(store.reserve(GRAIN, soon()).is_err());
    assert!(small.iter().all(|slot| store.release(*slot)));
    assert!(store.reserve(64 << 20, soon()).is_ok());
}

/// Room that comes too late for whoever asked for it is there for the next one.
#[test]
fn nobody_waits_longer_for_room() {
    let dir = scratch();
    let config = Config {
        step: GRAIN,
        ..config(&dir)
    };
    let store = open(config, &Memory::new(GRAIN as usize));
    let mut late = 0;
    for _ in 0..20 {
        // More than is free, always.
        let bytes = CLASSES
            .into_iter()
            .rev()
            .find(|c| *c > store.counts().spare);
        let Some(bytes) = bytes else { break };
        match store.reserve(bytes, Instant::now()) {
            Ok(slot) => assert!(store.release(slot)),
            Err(Refused::Late) => late += 1,
            other => panic!("{other:?}"),
        }
    }
    assert!(late > 0);
    let slot = store.reserve(64 << 20, soon()).unwrap();
    assert!(store.release(slot));
    let counts = store.counts();
    assert_eq!(counts.spare, counts.grown, "nothing is lost");
}

#[test]
fn the_directory_may_go() {
    let dir = scratch();
    let below = dir.path().join("below");
    std::fs::create_dir(&below).unwrap();
    let memory = Memory::new(128 << 20);
    let config = Config {
        dir: below.clone(),
        ..config(&dir)
    };
    let store = open(config, &memory);
    std::fs::remove_dir(&below).unwrap();
    assert!(there_and_back(&store, &memory, 64 << 20, 5));
}

#[test]
fn many_threads_at_once() {
    let dir = scratch();
    let memories: Vec<Memory> = (0..4).map(|_| Memory::new(64 << 20)).collect();
    let store = open(config(&dir), &memories[0]);
    std::thread::scope(|scope| {
        for (memory, seed) in memories.iter().zip([100, 200, 300, 400]) {
            let store = &store;
            scope.spawn(move || {
                for n in 0..6 {
                    let class = CLASSES[1 + n % 3];
                    assert!(there_and_back(store, memory, class, seed + n as u64));
                }
            });
        }
    });
    assert_eq!(store.counts().spare, store.counts().grown);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(6))]
    /// What is in the file is what was written last into each slot, whatever came before and beside it.
    #[test]
    fn as_a_flat_memory(
        method in prop_oneof![Just(Method::Uring), Just(Method::Threads)],
        steps in proptest::collection::vec((0usize..4, any::<u8>()), 5..40),
    ) {
        let dir = scratch();
        let memory = Memory::new(160 << 20);
        let config = Config { method: Some(method), limit: 200 << 20, ..config(&dir) };
        let store = open(config, &memory);
        let mut kept: Vec<(super::super::slots::Slot, u64, u64)> = Vec::new();
        for (seed, (class, choice)) in steps.into_iter().enumerate() {
            let (class, seed) = (CLASSES[class], seed as u64 + 1);
            if choice % 3 == 0 && !kept.is_empty() {
                let (slot, ..) = kept.swap_remove(choice as usize % kept.len());
                prop_assert!(store.release(slot));
            }
            let from = memory.buffer(64 << 20, class);
            let Ok(slot) = store.reserve(class, soon()) else {
                let held: u64 = kept.iter().map(|(_, class, _)| class).sum();
                prop_assert!(held + class > 200 << 20);
                continue;
            };
            fill(from, seed);
            // SAFETY: never unmapped, and left alone until both have ended.
            let (written, read) = unsafe {
                let written = store.write(slot, from).unwrap();
                let other = kept.get(choice as usize % kept.len().max(1)).copied();
                let read = other.map(|(slot, class, seed)| {
                    let to = memory.buffer(0, class);
                    (store.read(slot, to).unwrap(), to, seed)
                });
                (written, read)
            };
            prop_assert_eq!(written.wait(soon()), Some(Ok(())));
            if let Some((ticket, to, seed)) = read {
                prop_assert_eq!(ticket.wait(soon()), Some(Ok(())));
                prop_assert!(holds(to, seed));
            }
            kept.push((slot, class, seed));
        }
        for (slot, class, seed) in kept {
            let to = memory.buffer(0, class);
            // SAFETY: as above.
            let ticket = unsafe { store.read(slot, to) }.unwrap();
            prop_assert_eq!(ticket.wait(Instant::now() + Duration::from_secs(60)), Some(Ok(())));
            prop_assert!(holds(to, seed));
        }
    }
}
