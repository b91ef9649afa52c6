//! The ledger: the job's limits, and who holds how much of them.
//!
//! One file of plain atomics, mapped by the launcher and by every process of the job. There is no lock in it, because a
//! process can die at any instruction. Invariants:
//!
//! - what a process holds is written in its own seat and nowhere else, so a dead process can be forgotten as a whole;
//! - a reservation is written down first ([`Held::pending`]) and compared with the limit afterwards, so two processes can
//!   refuse each other for a moment, but never pass together;
//! - totals, counts and peaks that outlive a process are only ever added to.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::ptr::NonNull;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use crate::alive;
use crate::sync::{AtomicU8, AtomicU32, AtomicU64, Mutex, process_id, sleep, spin_loop, yield_now};
pub use crate::sync::{DEVICES, SEATS};

/// First word of a ledger file: `gbledgr` and the layout's version.
pub const MAGIC: u64 = u64::from_le_bytes(*b"gbledgr\x02");

const EMPTY: u32 = 0;
const CLAIMED: u32 = 1;
const READY: u32 = 2;

/// Bit of [`Seat::owner`] that says: the low half is the pid of a process that is clearing this seat of a dead owner.
pub(crate) const REAPING: u64 = 1 << 63;

/// How often a reservation tries again that only others' unfinished ones stand in the way of. The first tries take
/// microseconds, the rest 50 of them each: enough for a process that the scheduler has put aside.
const TRIES: u32 = 200;

/// What the launcher decided; written once, before any process maps the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// How much VRAM the job may hold on each device.
    pub vram_limit: VramLimit,
    /// Host bytes that the job may pin, over all devices.
    pub ram_limit: u64,
    /// Whether allocations may spill to host RAM.
    pub spill: bool,
    /// What memory queries report.
    pub report: Report,
}

/// The VRAM limit before a device is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VramLimit {
    /// What is free when the first process of the job sees the device, less a small reserve.
    Free,
    /// Bytes, clamped to the card.
    Bytes(u64),
    /// Hundredths of a per cent of the device's total.
    Share(u64),
}

/// What `cuMemGetInfo`, `cuDeviceTotalMem` and NVML say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Report {
    /// The budgets of all tiers together.
    Extended,
    /// The VRAM limit alone.
    Physical,
}

/// The mapped file.
#[repr(C)]
pub struct Ledger {
    magic: AtomicU64,
    size: AtomicU64,
    vram_limit_kind: AtomicU32,
    spill: AtomicU32,
    vram_limit: AtomicU64,
    ram_limit: AtomicU64,
    report: AtomicU32,
    _pad: AtomicU32,
    /// Highest sum of host bytes over all devices.
    pub host_peak: AtomicU64,
    /// Processes that initialised CUDA.
    pub cuda_processes: AtomicU64,
    /// Control records that were not sent, because nobody read or there was no room.
    pub records_lost: AtomicU64,
    /// Seats below this index have been used; the others need not be read.
    pub(crate) seats_used: AtomicU64,
    devices: [Device; DEVICES],
    pub(crate) seats: [Seat; SEATS],
}

/// One device, known by its UUID: ordinals differ between processes.
#[repr(C)]
pub struct Device {
    state: AtomicU32,
    _pad: AtomicU32,
    uuid: [AtomicU8; 16],
    total: AtomicU64,
    vram_limit: AtomicU64,
    refined: AtomicU32,
    _pad2: AtomicU32,
    /// Highest sum of VRAM bytes.
    pub vram_peak: AtomicU64,
    /// Highest sum of host bytes of this device's allocations.
    pub host_peak: AtomicU64,
    /// Allocations made.
    pub allocations: AtomicU64,
    /// Allocations freed, in whatever way but by the end of their process.
    pub frees: AtomicU64,
    /// Bytes of [`Device::allocations`] by tier, and of [`Device::frees`].
    allocated: [AtomicU64; 2],
    freed: [AtomicU64; 2],
    /// Allocations that were partly or wholly placed outside VRAM.
    pub spills: AtomicU64,
    /// Bytes that those had outside VRAM when they were made.
    pub spilled_bytes: AtomicU64,
    /// `CUDA_ERROR_OUT_OF_MEMORY` given to the program by the shim.
    pub ooms: AtomicU64,
    /// The largest request that got it, bytes.
    pub oom_largest: AtomicU64,
    /// Highest sum of each [`Part`].
    part_peaks: [AtomicU64; PARTS],
    pub(crate) largest: [Entry; LARGEST],
}

/// Allocations of a device with the most bytes outside VRAM that are remembered.
pub const LARGEST: usize = 8;

/// One of them. Written by whoever makes the turn odd; a process that dies in between leaves an entry that is never read
/// again, which is all that is lost.
#[repr(C)]
pub(crate) struct Entry {
    turn: AtomicU64,
    pid: AtomicU64,
    address: AtomicU64,
    bytes: AtomicU64,
    host_bytes: AtomicU64,
    made: AtomicU64,
    freed: AtomicU64,
}

/// An allocation that was placed outside VRAM, in part or as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spilled {
    /// The process.
    pub pid: u32,
    /// Where the program has it, or had it.
    pub address: u64,
    /// Its size.
    pub bytes: u64,
    /// How much of that is outside VRAM.
    pub host_bytes: u64,
    /// `CLOCK_MONOTONIC` when it was made, nanoseconds.
    pub made: u64,
    /// The same when it was freed, if it was.
    pub freed: Option<u64>,
}

/// What is live of one process, one device or all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Live {
    /// Allocations.
    pub allocations: u64,
    /// Those with bytes in a tier, by [`Tier`]: one that lies in both counts in both.
    pub parts: [u64; 2],
    /// Bytes in a tier.
    pub bytes: [u64; 2],
}

/// What one process holds.
#[repr(C)]
pub(crate) struct Seat {
    /// 0: free; a pid; or [`REAPING`] and the pid of who clears it.
    pub(crate) owner: AtomicU64,
    start: AtomicU64,
    /// Which program sat down (`alive::image`); 0 where that cannot be told.
    pub(crate) image: AtomicU64,
    pub(crate) held: [[Held; 2]; DEVICES],
    parts: [[AtomicU64; PARTS]; DEVICES],
    /// Live allocations. What a dead process leaves here is not read, and cleared by who sits down next.
    live: [Count; DEVICES],
}

/// [`Live`], in the ledger.
#[repr(C)]
pub(crate) struct Count {
    allocations: AtomicU64,
    parts: [AtomicU64; 2],
    bytes: [AtomicU64; 2],
}

/// Bytes of one tier on one device.
#[repr(C)]
pub(crate) struct Held {
    pub(crate) bytes: AtomicU64,
    pub(crate) pending: AtomicU64,
    /// The part of `bytes` that no allocation uses: freed backing, kept for reuse.
    spare: AtomicU64,
}

/// Which budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tier {
    /// The device's own memory: limited per device.
    Vram = 0,
    /// Pinned host RAM: limited over all devices together.
    Host = 1,
}

/// Memory that the driver holds for the program, by name. It is said, not limited: what counts against a budget is in
/// that tier's bytes besides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Part {
    /// Arrays and mipmapped arrays: part of the VRAM bytes.
    Arrays = 0,
    /// Variables of modules and stacks of kernels: part of the VRAM bytes.
    Code = 1,
    /// Host memory that the program had the driver allocate: part of the host bytes.
    Pinned = 2,
    /// The program's own memory, registered: part of the host bytes. Unlike all other host memory the cgroup sees it.
    Registered = 3,
    /// Managed memory: the driver decides where it is.
    Managed = 4,
    /// Memory of other interfaces, imported: it is there whether or not it is imported.
    External = 5,
}

/// How many there are.
const PARTS: usize = 6;

impl Part {
    /// The budget that it counts against.
    pub fn tier(self) -> Option<Tier> {
        match self {
            Part::Arrays | Part::Code => Some(Tier::Vram),
            Part::Pinned | Part::Registered => Some(Tier::Host),
            Part::Managed | Part::External => None,
        }
    }
}

/// The budget has no room for a reservation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Bytes that the whole job holds in that tier.
    pub held: u64,
    /// The limit they were compared with.
    pub limit: u64,
}

/// A ledger mapped into this process, for the process's life.
pub struct Mapped(NonNull<Ledger>);

// SAFETY: the ledger consists of atomics only, and the mapping is never undone.
unsafe impl Send for Mapped {}
// SAFETY: as above.
unsafe impl Sync for Mapped {}

impl std::ops::Deref for Mapped {
    type Target = Ledger;
    fn deref(&self) -> &Ledger {
        // SAFETY: the mapping is of the ledger's size, page-aligned, initialised by the kernel to zero or by the launcher,
        // and lives as long as the process.
        unsafe { self.0.as_ref() }
    }
}

impl Mapped {
    /// Creates the file (it must not exist) with these settings and maps it.
    pub fn create(path: &Path, settings: Settings) -> io::Result<Mapped> {
        use std::os::unix::fs::OpenOptionsExt;
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)?;
        file.set_len(size_of::<Ledger>() as u64)?;
        let map = Self::map(&file)?;
        let (kind, value) = match settings.vram_limit {
            VramLimit::Free => (0, 0),
            VramLimit::Bytes(n) => (1, n),
            VramLimit::Share(n) => (2, n),
        };
        map.vram_limit_kind.store(kind, SeqCst);
        map.vram_limit.store(value, SeqCst);
        map.ram_limit.store(settings.ram_limit, SeqCst);
        map.spill.store(settings.spill.into(), SeqCst);
        map.report
            .store((settings.report == Report::Physical).into(), SeqCst);
        map.size.store(size_of::<Ledger>() as u64, SeqCst);
        map.magic.store(MAGIC, SeqCst);
        Ok(map)
    }

    /// Maps an existing ledger.
    ///
    /// # Errors
    /// `InvalidData` when the file is not a ledger of this version and size.
    pub fn open(path: &Path) -> io::Result<Mapped> {
        let file = File::options().read(true).write(true).open(path)?;
        let wrong = || io::Error::new(io::ErrorKind::InvalidData, "not a ledger of this version");
        if file.metadata()?.len() != size_of::<Ledger>() as u64 {
            return Err(wrong());
        }
        let map = Self::map(&file)?;
        if map.magic.load(SeqCst) != MAGIC || map.size.load(SeqCst) != size_of::<Ledger>() as u64 {
            return Err(wrong());
        }
        Ok(map)
    }

    fn map(file: &File) -> io::Result<Mapped> {
        // SAFETY: a fresh shared mapping of a file that has at least this length.
        let at = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                size_of::<Ledger>(),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Mapped(
            NonNull::new(at.cast()).expect("mmap gave address 0"),
        ))
    }
}

impl Ledger {
    /// The launcher's settings.
    pub fn settings(&self) -> Settings {
        let value = self.vram_limit.load(SeqCst);
        Settings {
            vram_limit: match self.vram_limit_kind.load(SeqCst) {
                1 => VramLimit::Bytes(value),
                2 => VramLimit::Share(value),
                _ => VramLimit::Free,
            },
            ram_limit: self.ram_limit.load(SeqCst),
            spill: self.spill.load(SeqCst) != 0,
            report: if self.report.load(SeqCst) == 1 {
                Report::Physical
            } else {
                Report::Extended
            },
        }
    }

    /// Index of the device with this UUID; a new one gets the total and the limit that `facts` returns.
    ///
    /// `None` when the table is full or its claimer died half-way (the device is then unlimited to nobody: callers treat
    /// it as out of budget).
    pub fn device_index(
        &self,
        uuid: [u8; 16],
        facts: impl FnOnce() -> DeviceFacts,
    ) -> Option<usize> {
        let mut facts = Some(facts);
        for (index, d) in self.devices.iter().enumerate() {
            if d.state.load(SeqCst) == EMPTY
                && d.state
                    .compare_exchange(EMPTY, CLAIMED, SeqCst, SeqCst)
                    .is_ok()
            {
                let f = facts.take().map(|f| f())?;
                for (slot, byte) in d.uuid.iter().zip(uuid) {
                    slot.store(byte, SeqCst);
                }
                d.total.store(f.total, SeqCst);
                d.vram_limit.store(f.vram_limit, SeqCst);
                d.state.store(READY, SeqCst);
                return Some(index);
            }
            // Another process is filling this entry; that takes microseconds unless it was killed just then.
            for _ in 0..10_000 {
                if d.state.load(SeqCst) == READY {
                    break;
                }
                sleep(Duration::from_micros(20));
            }
            if d.state.load(SeqCst) == READY && d.uuid() == uuid {
                return Some(index);
            }
        }
        None
    }

    /// The devices seen so far, by index.
    pub fn devices(&self) -> impl Iterator<Item = (usize, &Device)> {
        self.devices
            .iter()
            .enumerate()
            .filter(|(_, d)| d.state.load(SeqCst) == READY)
    }

    /// A device by the index that [`Ledger::device_index`] gave.
    pub fn device(&self, index: usize) -> &Device {
        &self.devices[index]
    }

    /// Bytes that the job holds in a tier of one device, reservations in progress not counted.
    pub fn used(&self, tier: Tier, device: usize) -> u64 {
        self.used_seats()
            .iter()
            .map(|s| s.held[device][tier as usize].bytes.load(SeqCst))
            .sum()
    }

    /// The part of [`Ledger::used`] that no allocation uses: freed backing that its process keeps for reuse.
    pub fn spare(&self, tier: Tier, device: usize) -> u64 {
        self.used_seats()
            .iter()
            .map(|s| s.held[device][tier as usize].spare.load(SeqCst))
            .sum()
    }

    /// Bytes of a part that the job holds on one device.
    pub fn part(&self, part: Part, device: usize) -> u64 {
        self.used_seats()
            .iter()
            .map(|s| s.parts[device][part as usize].load(SeqCst))
            .sum()
    }

    /// Bytes of a tier of one device that this process holds, what it keeps for reuse not counted; `None` when it is
    /// none of the job's.
    pub fn held_by(&self, pid: u32, tier: Tier, device: usize) -> Option<u64> {
        let seat = self
            .used_seats()
            .iter()
            .find(|s| s.owner.load(SeqCst) == u64::from(pid))?;
        let held = &seat.held[device][tier as usize];
        let bytes = held.bytes.load(SeqCst);
        Some(bytes.saturating_sub(held.spare.load(SeqCst)))
    }

    /// What is live on one device, in all processes that live.
    pub fn live(&self, device: usize) -> Live {
        let mut sum = Live::default();
        for seat in self.used_seats() {
            let owner = seat.owner.load(SeqCst);
            if owner == 0 || owner & REAPING != 0 {
                continue;
            }
            let count = &seat.live[device];
            sum.allocations += count.allocations.load(SeqCst);
            for tier in 0..2 {
                sum.parts[tier] += count.parts[tier].load(SeqCst);
                sum.bytes[tier] += count.bytes[tier].load(SeqCst);
            }
        }
        sum
    }

    /// Host bytes that the job holds over all devices.
    pub fn used_host(&self) -> u64 {
        (0..DEVICES).map(|d| self.used(Tier::Host, d)).sum()
    }

    fn used_seats(&self) -> &[Seat] {
        &self.seats[..(self.seats_used.load(SeqCst) as usize).min(SEATS)]
    }

    /// Sum of a tier's bytes that count against the limit that `device` falls under, with or without the pending ones.
    pub(crate) fn sum(&self, tier: Tier, device: usize, pending: bool) -> u64 {
        let devices = match tier {
            Tier::Vram => device..device + 1,
            Tier::Host => 0..DEVICES,
        };
        let mut sum = 0u64;
        for seat in self.used_seats() {
            for d in devices.clone() {
                let held = &seat.held[d][tier as usize];
                // A commit adds to `bytes` before it takes from `pending`. Reading in the opposite order sees the
                // amount at least once, so a sum with pending amounts is never too low.
                let p = if pending {
                    held.pending.load(SeqCst)
                } else {
                    0
                };
                sum = sum
                    .saturating_add(p)
                    .saturating_add(held.bytes.load(SeqCst));
            }
        }
        sum
    }

    fn limit(&self, tier: Tier, device: usize) -> u64 {
        match tier {
            Tier::Vram => self.devices[device].vram_limit.load(SeqCst),
            Tier::Host => self.ram_limit.load(SeqCst),
        }
    }

    /// Forgets what dead processes held. Returns how many were found dead.
    ///
    /// Any process of the job may call it at any time. A reaper that dies half-way is itself reaped.
    pub fn reap(&self) -> usize {
        self.reap_with(alive::start_time)
    }

    pub(crate) fn reap_with(&self, start_time: impl Fn(u32) -> Option<u64>) -> usize {
        let me = process_id();
        let mut found = 0;
        for seat in self.used_seats() {
            let owner = seat.owner.load(SeqCst);
            if owner == 0 {
                continue;
            }
            let reaping = owner & REAPING != 0;
            let now = start_time((owner & u64::from(u32::MAX)) as u32);
            // A dead reaper's seat is taken over; a live owner has the start time that it wrote when it sat down.
            let dead = if reaping {
                now.is_none()
            } else {
                now.is_none_or(|t| t != seat.start.load(SeqCst))
                    || replaced(owner as u32, seat.image.load(SeqCst))
            };
            let mine = REAPING | u64::from(me);
            if !dead
                || seat
                    .owner
                    .compare_exchange(owner, mine, SeqCst, SeqCst)
                    .is_err()
            {
                continue;
            }
            seat.clear();
            seat.owner.store(0, SeqCst);
            found += 1;
        }
        found
    }

    /// Whether a seat is being cleared, or taken.
    fn clearing(&self) -> bool {
        self.used_seats()
            .iter()
            .any(|seat| seat.owner.load(SeqCst) & REAPING != 0)
    }

    /// Live seats: pid and bytes held per tier over all devices (VRAM, Host).
    pub fn seats(&self) -> Vec<(u32, u64, u64)> {
        let mut out = Vec::new();
        for seat in self.used_seats() {
            let owner = seat.owner.load(SeqCst);
            if owner != 0 && owner & REAPING == 0 {
                let total = |t: Tier| {
                    seat.held
                        .iter()
                        .map(|h| h[t as usize].bytes.load(SeqCst))
                        .sum()
                };
                out.push((owner as u32, total(Tier::Vram), total(Tier::Host)));
            }
        }
        out
    }
}

/// What is known of a device when it enters the ledger, bytes.
#[derive(Clone, Copy, Debug)]
pub struct DeviceFacts {
    /// Physical memory.
    pub total: u64,
    /// The limit that results for this device.
    pub vram_limit: u64,
}

impl Device {
    /// The device's UUID.
    pub fn uuid(&self) -> [u8; 16] {
        std::array::from_fn(|i| self.uuid[i].load(SeqCst))
    }
    /// Physical bytes.
    pub fn total(&self) -> u64 {
        self.total.load(SeqCst)
    }
    /// The VRAM limit, bytes.
    pub fn vram_limit(&self) -> u64 {
        self.vram_limit.load(SeqCst)
    }
    /// The most that was ever held by this name, bytes.
    pub fn part_peak(&self, part: Part) -> u64 {
        self.part_peaks[part as usize].load(SeqCst)
    }
    /// Bytes of the allocations made and freed in a tier, ever.
    pub fn turnover(&self, tier: Tier) -> (u64, u64) {
        let of = |both: &[AtomicU64; 2]| both[tier as usize].load(SeqCst);
        (of(&self.allocated), of(&self.freed))
    }

    /// The allocations with the most bytes outside VRAM, the largest first. Best effort: one that is being replaced is
    /// missing.
    pub fn largest(&self) -> Vec<Spilled> {
        let mut all: Vec<Spilled> = self.largest.iter().filter_map(Entry::read).collect();
        all.sort_by_key(|s| std::cmp::Reverse((s.host_bytes, s.bytes)));
        all
    }

    /// Remembers an allocation if it is larger than one that is remembered, by its bytes outside VRAM.
    pub fn remember(&self, spilled: Spilled) {
        let smallest = |e: &&Entry| e.host_bytes.load(SeqCst);
        let even = |e: &&Entry| e.turn.load(SeqCst).is_multiple_of(2);
        let Some(entry) = self.largest.iter().filter(even).min_by_key(smallest) else {
            return;
        };
        if entry.host_bytes.load(SeqCst) < spilled.host_bytes {
            entry.change(|e| {
                e.pid.store(spilled.pid.into(), SeqCst);
                e.address.store(spilled.address, SeqCst);
                e.bytes.store(spilled.bytes, SeqCst);
                e.host_bytes.store(spilled.host_bytes, SeqCst);
                e.made.store(spilled.made, SeqCst);
                e.freed.store(spilled.freed.unwrap_or(0), SeqCst);
            });
        }
    }

    /// As a process leaves it that dies while it writes.
    #[cfg(test)]
    pub(crate) fn break_an_entry(&self) {
        self.largest[0].turn.fetch_add(1, SeqCst);
    }

    /// Notes when an allocation was freed, if it is remembered.
    pub fn forget(&self, pid: u32, address: u64, now: u64) {
        let is_it = |e: &&Entry| {
            e.address.load(SeqCst) == address
                && e.pid.load(SeqCst) == u64::from(pid)
                && e.freed.load(SeqCst) == 0
        };
        if let Some(entry) = self.largest.iter().find(is_it) {
            entry.change(|e| e.freed.store(now, SeqCst));
        }
    }

    /// Lowers the limit once, when the job first learns what is free on the device.
    pub fn refine(&self, limit: u64) {
        if self.refined.compare_exchange(0, 1, SeqCst, SeqCst).is_ok() {
            self.vram_limit.fetch_min(limit, SeqCst);
        }
    }
}

/// Whether a living process runs another program than the one that sat down: `exec` ends all that the old one held.
fn replaced(pid: u32, image: u64) -> bool {
    let now = if image == 0 { 0 } else { alive::image(pid) };
    now != 0 && now != image
}

impl Entry {
    /// Changes it, unless another process is at it.
    fn change(&self, change: impl FnOnce(&Entry)) {
        let turn = self.turn.load(SeqCst);
        let mine = turn.is_multiple_of(2)
            && self
                .turn
                .compare_exchange(turn, turn + 1, SeqCst, SeqCst)
                .is_ok();
        if mine {
            change(self);
            self.turn.store(turn + 2, SeqCst);
        }
    }

    fn read(&self) -> Option<Spilled> {
        let turn = self.turn.load(SeqCst);
        let freed = self.freed.load(SeqCst);
        let spilled = Spilled {
            pid: self.pid.load(SeqCst) as u32,
            address: self.address.load(SeqCst),
            bytes: self.bytes.load(SeqCst),
            host_bytes: self.host_bytes.load(SeqCst),
            made: self.made.load(SeqCst),
            freed: (freed > 0).then_some(freed),
        };
        let is_whole = turn.is_multiple_of(2) && turn == self.turn.load(SeqCst);
        (is_whole && spilled.host_bytes > 0).then_some(spilled)
    }
}

impl Seat {
    /// Nothing is live in a process that has just sat down.
    fn begin(&self) {
        for count in &self.live {
            count.allocations.store(0, SeqCst);
            for number in count.parts.iter().chain(&count.bytes) {
                number.store(0, SeqCst);
            }
        }
    }

    fn clear(&self) {
        for held in self.held.iter().flatten() {
            held.bytes.store(0, SeqCst);
            held.pending.store(0, SeqCst);
            held.spare.store(0, SeqCst);
        }
        for part in self.parts.iter().flatten() {
            part.store(0, SeqCst);
        }
    }
}

/// This process's place in the ledger.
pub struct Place {
    ledger: &'static Ledger,
    seat: usize,
    /// Threads of one process take turns, so that they never refuse each other; it guards no driver call and dies with
    /// the process.
    turn: Mutex<()>,
}

impl Place {
    /// Sits down. Seats of dead processes are cleared first when none is free; `None` when all are taken by the living.
    pub fn take(ledger: &'static Ledger) -> Option<Place> {
        let pid = process_id();
        let start = alive::start_time(pid)?;
        for attempt in 0..2 {
            for (index, seat) in ledger.seats.iter().enumerate() {
                // While we fill the seat it reads as being reaped by us: nobody else touches it.
                if seat
                    .owner
                    .compare_exchange(0, REAPING | u64::from(pid), SeqCst, SeqCst)
                    .is_ok()
                {
                    ledger.seats_used.fetch_max(index as u64 + 1, SeqCst);
                    seat.clear();
                    seat.begin();
                    seat.start.store(start, SeqCst);
                    seat.image.store(alive::image(pid), SeqCst);
                    seat.owner.store(pid.into(), SeqCst);
                    return Some(Place {
                        ledger,
                        seat: index,
                        turn: Mutex::new(()),
                    });
                }
            }
            if attempt == 0 {
                ledger.reap();
            }
        }
        None
    }

    /// The ledger it is in.
    pub fn ledger(&self) -> &'static Ledger {
        self.ledger
    }

    pub(crate) fn held(&self, tier: Tier, device: usize) -> &Held {
        &self.ledger.seats[self.seat].held[device][tier as usize]
    }

    /// Bytes that this process holds.
    pub fn own(&self, tier: Tier, device: usize) -> u64 {
        self.held(tier, device).bytes.load(SeqCst)
    }

    /// Reserves bytes in a tier, exactly: the sum over all processes never exceeds the limit.
    ///
    /// # Errors
    /// [`Refused`] when the living hold too much; nothing is reserved then.
    pub fn reserve(&self, tier: Tier, device: usize, bytes: u64) -> Result<(), Refused> {
        let _turn = self.turn.lock().unwrap_or_else(|e| e.into_inner());
        let held = self.held(tier, device);
        // Whether there was nobody dead, and no seat half cleared, when last looked.
        let mut settled = false;
        let mut tries = 0;
        loop {
            let limit = self.ledger.limit(tier, device);
            held.pending.fetch_add(bytes, SeqCst);
            if self.ledger.sum(tier, device, true) <= limit {
                held.bytes.fetch_add(bytes, SeqCst);
                held.pending.fetch_sub(bytes, SeqCst);
                self.raise_peaks(tier, device, limit);
                return Ok(());
            }
            held.pending.fetch_sub(bytes, SeqCst);
            let others = self.ledger.sum(tier, device, false);
            let full = others.saturating_add(bytes) > limit;
            if full && settled || tries == TRIES {
                return Err(Refused {
                    held: others,
                    limit,
                });
            }
            // Full, it may be, of the dead, whom another process may be clearing away just now. Not full: only others'
            // reservations in progress stand in the way. They end in microseconds, or their owner was killed in one.
            settled = (full || tries % 32 == 31) && self.ledger.reap() == 0;
            settled = settled && full && !self.ledger.clearing();
            if !settled {
                pause(tries);
            }
            tries += 1;
        }
    }

    /// Counts bytes that are held whether or not the limit allows them (memory that the shim does not place).
    pub fn charge(&self, tier: Tier, device: usize, bytes: u64) {
        self.held(tier, device).bytes.fetch_add(bytes, SeqCst);
        self.raise_peaks(tier, device, u64::MAX);
    }

    /// Gives bytes back. More than are held is a fault of the caller and leaves zero.
    pub fn release(&self, tier: Tier, device: usize, bytes: u64) {
        let was = self
            .held(tier, device)
            .bytes
            .fetch_update(SeqCst, SeqCst, |b| Some(b.saturating_sub(bytes)));
        debug_assert!(
            was.is_ok_and(|w| w >= bytes),
            "released {bytes} bytes of {was:?} in {tier:?}"
        );
    }

    /// Says that so many bytes more are held by name. Their tier's bytes are charged besides, by the caller.
    pub fn name(&self, part: Part, device: usize, bytes: u64) {
        self.ledger.seats[self.seat].parts[device][part as usize].fetch_add(bytes, SeqCst);
        let most = self.ledger.part(part, device);
        self.ledger.devices[device].part_peaks[part as usize].fetch_max(most, SeqCst);
    }

    /// Undoes [`Place::name`].
    pub fn unname(&self, part: Part, device: usize, bytes: u64) {
        let _ = self.ledger.seats[self.seat].parts[device][part as usize].fetch_update(
            SeqCst,
            SeqCst,
            |b| Some(b.saturating_sub(bytes)),
        );
    }

    /// Counts an allocation that the program has got, by its bytes in each tier.
    pub fn count(&self, device: usize, bytes: [u64; 2]) {
        let (seat, d) = (
            &self.ledger.seats[self.seat].live[device],
            &self.ledger.devices[device],
        );
        d.allocations.fetch_add(1, SeqCst);
        seat.allocations.fetch_add(1, SeqCst);
        for (tier, bytes) in bytes.into_iter().enumerate().filter(|(_, b)| *b > 0) {
            d.allocated[tier].fetch_add(bytes, SeqCst);
            seat.parts[tier].fetch_add(1, SeqCst);
            seat.bytes[tier].fetch_add(bytes, SeqCst);
        }
    }

    /// Counts that it is freed.
    pub fn uncount(&self, device: usize, bytes: [u64; 2]) {
        let (seat, d) = (
            &self.ledger.seats[self.seat].live[device],
            &self.ledger.devices[device],
        );
        d.frees.fetch_add(1, SeqCst);
        seat.allocations.fetch_sub(1, SeqCst);
        for (tier, bytes) in bytes.into_iter().enumerate().filter(|(_, b)| *b > 0) {
            d.freed[tier].fetch_add(bytes, SeqCst);
            seat.parts[tier].fetch_sub(1, SeqCst);
            seat.bytes[tier].fetch_sub(bytes, SeqCst);
        }
    }

    /// Says how much of what this process holds is kept for reuse.
    pub fn set_spare(&self, tier: Tier, device: usize, bytes: u64) {
        self.held(tier, device).spare.store(bytes, SeqCst);
    }

    /// Others come and go while the sums are made, so a sum can be too high; but never were more held than `most`.
    fn raise_peaks(&self, tier: Tier, device: usize, most: u64) {
        let d = &self.ledger.devices[device];
        let own = self.ledger.used(tier, device).min(most);
        match tier {
            Tier::Vram => d.vram_peak.fetch_max(own, SeqCst),
            Tier::Host => {
                let all = self.ledger.used_host().min(most);
                self.ledger.host_peak.fetch_max(all, SeqCst);
                d.host_peak.fetch_max(own, SeqCst)
            }
        };
    }
}

/// Waits before another try: longer and longer, and not as long as other processes do.
fn pause(tries: u32) {
    match tries {
        0..8 => {
            for _ in 0..(1 << tries) * (1 + process_id() % 7) {
                spin_loop();
            }
        }
        8..16 => yield_now(),
        _ => sleep(Duration::from_micros(50)),
    }
}

impl Drop for Place {
    /// Stands up: what the process held is forgotten.
    fn drop(&mut self) {
        let seat = &self.ledger.seats[self.seat];
        seat.clear();
        seat.owner.store(0, SeqCst);
    }
}
