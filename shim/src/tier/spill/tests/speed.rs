//! How fast it is, beside the disk itself in the same minute: `cargo test --release -p greenboost-shim --lib
//! spill::tests::speed -- --ignored --nocapture`, in a directory named by `SPILL_SPEED_DIR`.

use std::fs::File;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use super::super::store::Ticket;
use super::super::trial::Method;
use super::*;

const CLASS: u64 = 64 << 20;
const CHUNKS: usize = 24;
const ROUNDS: usize = 5;

/// So many threads, each with a request of a MiB at a time, one after the other through a file that is set aside: MB/s
/// of writing and of reading. One thread is what `dd oflag=direct bs=1M` does.
fn raw(dir: &Path, threads: usize, memory: &Memory) -> [f64; 2] {
    let bytes = CLASS as usize * CHUNKS;
    let file = File::options()
        .read(true)
        .write(true)
        .custom_flags(libc::O_TMPFILE | libc::O_DIRECT)
        .open(dir)
        .unwrap();
    // SAFETY: a plain call on a descriptor of ours.
    let code = unsafe {
        use std::os::fd::AsRawFd;
        libc::fallocate(file.as_raw_fd(), 0, 0, bytes as i64)
    };
    assert_eq!(code, 0);
    [true, false].map(|is_write| {
        let begun = Instant::now();
        let next = std::sync::atomic::AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for n in 0..threads {
                let (file, next, start) = (&file, &next, memory.start + (n << 20));
                scope.spawn(move || {
                    loop {
                        let at = next.fetch_add(1 << 20, std::sync::atomic::Ordering::SeqCst);
                        if at >= bytes {
                            return;
                        }
                        // SAFETY: this thread's own part of a Memory.
                        let buffer =
                            unsafe { std::slice::from_raw_parts_mut(start as *mut u8, 1 << 20) };
                        let done = match is_write {
                            true => file.write_at(buffer, at as u64),
                            false => file.read_at(buffer, at as u64),
                        };
                        assert_eq!(done.unwrap(), 1 << 20);
                    }
                });
            }
        });
        bytes as f64 / begun.elapsed().as_secs_f64() / 1e6
    })
}

/// The same amount through a store, two chunks at a time.
fn stored(dir: &Path, how: (Method, usize, usize), memory: &Memory) -> [f64; 2] {
    let (method, depth, request) = how;
    let config = Config {
        method: Some(method),
        depth,
        request,
        ..Config::new(dir.into(), None)
    };
    let store = open(config, memory);
    let buffers = [
        memory.buffer(0, CLASS),
        memory.buffer(CLASS as usize, CLASS),
    ];
    let mut slots = Vec::new();
    let rates = [true, false].map(|is_write| {
        let begun = Instant::now();
        let mut before: Option<Ticket> = None;
        for n in 0..CHUNKS {
            if is_write {
                slots.push(store.reserve(CLASS, soon()).unwrap());
            }
            let buffer = buffers[n % 2];
            // SAFETY: never unmapped, and the one before the last has ended.
            let ticket = unsafe {
                match is_write {
                    true => store.write(slots[n], buffer),
                    false => store.read(slots[n], buffer),
                }
            };
            if let Some(before) = before.replace(ticket.unwrap()) {
                assert_eq!(before.wait(soon()), Some(Ok(())));
            }
        }
        assert_eq!(before.unwrap().wait(soon()), Some(Ok(())));
        CHUNKS as f64 * CLASS as f64 / begun.elapsed().as_secs_f64() / 1e6
    });
    assert!(store.close(soon()));
    rates
}

#[test]
#[ignore = "measures"]
fn beside_the_raw_disk() {
    let own = scratch();
    let dir =
        std::env::var_os("SPILL_SPEED_DIR").map_or(own.path().into(), std::path::PathBuf::from);
    let memory = Memory::new(2 * CLASS as usize);
    fill(memory.buffer(0, 2 * CLASS), 1);
    let ways = [
        (Method::Uring, 32, 1 << 20),
        (Method::Uring, 16, 2 << 20),
        (Method::Uring, 8, 1 << 20),
        (Method::Threads, 16, 1 << 20),
    ];
    let mut all = [[[0.0; ROUNDS]; 2]; 6];
    let mut spent = [0.0; 6];
    for round in 0..ROUNDS {
        for (which, rates) in all.iter_mut().enumerate() {
            let before = cpu();
            let [write, read] = match which {
                0 => raw(&dir, 1, &memory),
                1 => raw(&dir, 16, &memory),
                _ => stored(&dir, ways[which - 2], &memory),
            };
            spent[which] += cpu() - before;
            (rates[0][round], rates[1][round]) = (write, read);
        }
    }
    let median = |mut rates: [f64; ROUNDS]| {
        rates.sort_by(f64::total_cmp);
        rates[ROUNDS / 2]
    };
    let best = |what: usize| median(all[0][what]).max(median(all[1][what]));
    println!("MB/s, median of {ROUNDS} (least to most); in parts of the better raw one");
    for (which, [write, read]) in all.into_iter().enumerate() {
        let name = match which {
            0 => "raw, one at a time".into(),
            1 => "raw, 16 threads".into(),
            _ => {
                let (method, depth, request) = ways[which - 2];
                format!("{method:?}, {depth} of {} MiB", request >> 20)
            }
        };
        let show = |rates: [f64; ROUNDS], best: f64| {
            let least = rates.iter().copied().fold(f64::MAX, f64::min);
            let most = rates.iter().copied().fold(0.0, f64::max);
            let median = median(rates);
            format!(
                "{median:6.0} ({least:4.0} to {most:4.0}) {:.2}",
                median / best
            )
        };
        let gigabytes = (2 * ROUNDS * CHUNKS) as f64 * CLASS as f64 / 1e9;
        let (write, read) = (show(write, best(0)), show(read, best(1)));
        let cpu = spent[which] / gigabytes * 1e3;
        println!("{name:22} write {write}, read {read}, {cpu:.0} ms of CPU each GB");
    }
}

/// Seconds of CPU that this process has used.
fn cpu() -> f64 {
    // SAFETY: all-zero is a valid `rusage`, of which one is written.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_SELF, &mut usage);
        usage
    };
    let seconds = |t: libc::timeval| t.tv_sec as f64 + t.tv_usec as f64 / 1e6;
    seconds(usage.ru_utime) + seconds(usage.ru_stime)
}
