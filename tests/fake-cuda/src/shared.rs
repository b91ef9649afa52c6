//! `FAKE_CUDA_SHARED`: a file in which processes tell each other how much of each device they hold.
//!
//! A slot belongs to a process (pid and start time); slots of the dead count for nothing and are reused.
use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::config::{MAX_DEVICES, config};

const SLOTS: usize = 256;

#[repr(C)]
struct Slot {
    pid: AtomicU64,
    start: AtomicU64,
    used: [AtomicU64; MAX_DEVICES],
}

struct Board {
    file: File,
    slots: &'static [Slot],
    mine: usize,
}

static BOARD: OnceLock<Option<Board>> = OnceLock::new();

/// Field 22 of `/proc/PID/stat`: with the pid it names a process for ever.
fn start_time(pid: u64) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?
        .1
        .split_whitespace()
        .nth(19)?
        .parse()
        .ok()
}

fn alive(slot: &Slot) -> bool {
    let pid = slot.pid.load(Ordering::Acquire);
    pid != 0 && start_time(pid) == Some(slot.start.load(Ordering::Acquire))
}

/// Held while a process checks the room and takes it.
pub(crate) struct Lock(Option<i32>);

impl Drop for Lock {
    fn drop(&mut self) {
        if let Some(fd) = self.0 {
            // SAFETY: the board's descriptor, open for the life of the process.
            unsafe { libc::flock(fd, libc::LOCK_UN) };
        }
    }
}

pub(crate) fn lock() -> Lock {
    let fd = board().map(|b| b.file.as_raw_fd());
    if let Some(fd) = fd {
        // SAFETY: as above.
        unsafe { libc::flock(fd, libc::LOCK_EX) };
    }
    Lock(fd)
}

fn board() -> Option<&'static Board> {
    BOARD.get().and_then(Option::as_ref)
}

pub(crate) fn open() {
    BOARD.get_or_init(|| {
        let path = config().shared.as_ref()?;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .ok()?;
        let bytes = size_of::<Slot>() * SLOTS;
        let fd = file.as_raw_fd();
        // SAFETY: an owned descriptor; the mapping is as long as the file was made and is never undone.
        let slots = unsafe {
            libc::flock(fd, libc::LOCK_EX);
            if file.metadata().ok()?.len() < bytes as u64
                && libc::ftruncate(fd, bytes as libc::off_t) != 0
            {
                return None;
            }
            let at = libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                fd,
                0,
            );
            if at == libc::MAP_FAILED {
                return None;
            }
            std::slice::from_raw_parts(at.cast::<Slot>(), SLOTS)
        };
        let mine = slots.iter().position(|slot| !alive(slot));
        if let Some(i) = mine {
            let pid = u64::from(std::process::id());
            slots[i]
                .used
                .iter()
                .for_each(|used| used.store(0, Ordering::Relaxed));
            slots[i]
                .start
                .store(start_time(pid).unwrap_or(0), Ordering::Release);
            slots[i].pid.store(pid, Ordering::Release);
        }
        // SAFETY: as above.
        unsafe { libc::flock(fd, libc::LOCK_UN) };
        Some(Board {
            file,
            slots,
            mine: mine?,
        })
    });
}

/// Bytes of the device that other live processes hold.
pub(crate) fn others(device: usize) -> u64 {
    let Some(board) = board() else { return 0 };
    let live = board
        .slots
        .iter()
        .enumerate()
        .filter(|(i, slot)| *i != board.mine && alive(slot));
    live.map(|(_, slot)| slot.used[device].load(Ordering::Relaxed))
        .sum()
}

/// Other live processes that hold memory of the device: pid and bytes.
pub(crate) fn holders(device: usize) -> Vec<(u32, u64)> {
    let Some(board) = board() else {
        return Vec::new();
    };
    let slots = board.slots.iter().enumerate();
    slots
        .filter(|(i, slot)| *i != board.mine && alive(slot))
        .map(|(_, s)| {
            (
                s.pid.load(Ordering::Acquire) as u32,
                s.used[device].load(Ordering::Relaxed),
            )
        })
        .filter(|(_, used)| *used > 0)
        .collect()
}

pub(crate) fn publish(device: usize, used: u64) {
    if let Some(board) = board() {
        board.slots[board.mine].used[device].store(used, Ordering::Relaxed);
    }
}
