//! What the program holds: its allocations by address.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock};

use greenboost_abi::{CUcontext, CUdevice};
use greenboost_wire::ledger::Tier;
use greenboost_wire::share::Token;

use super::access;
use super::device;
use super::pinned::Pinned;
use super::range::Range;
use super::small;
use super::spare::Chunk;
use super::staging;
use super::steward::{self, News};
use super::tally;
use crate::process;

/// An allocation that the shim backs.
#[derive(Debug)]
pub struct Allocation {
    /// The program's address.
    pub base: u64,
    /// Bytes that the program asked for.
    pub size: u64,
    /// The device it was allocated on.
    pub device: CUdevice,
    /// The context that was current then; the allocation ends with it.
    pub context: Handle,
    /// What holds the bytes.
    pub backing: Backing,
    /// What else is known of it.
    pub ties: Ties,
}

/// What others know of an allocation, and what the program asked of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ties {
    /// Other processes or devices reach its memory past the calls of this process: its backing is never moved, and never
    /// kept for another allocation.
    pub fixed: bool,
    /// `SYNC_MEMOPS` is set: synchronous operations on it wait until they are done.
    pub synchronous: bool,
    /// What other processes of the job open it by.
    pub left_as: Option<Token>,
    /// It is another process's, opened here.
    pub opened: Option<Opened>,
}

/// An allocation of another process of the job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opened {
    /// What it was opened by.
    pub token: Token,
    /// Opened so often more than closed.
    pub count: u32,
    /// The device that its owner allocated it on; [`Allocation::device`] is the one that it was opened for.
    pub home: CUdevice,
}

/// A driver handle that is only compared and given back to the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Handle(pub usize);

impl From<CUcontext> for Handle {
    fn from(context: CUcontext) -> Handle {
        Handle(context as usize)
    }
}

/// What holds an allocation's bytes.
#[derive(Debug)]
pub enum Backing {
    /// A range of its own.
    Range(Range),
    /// Registered host memory of its own.
    Pinned(Pinned),
    /// A piece of a slab of its device.
    Piece,
}

/// What a query needs to know of an allocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The program's address.
    pub base: u64,
    /// Bytes that the program asked for.
    pub size: u64,
    /// The device it was allocated on.
    pub device: CUdevice,
    /// The context it was allocated in.
    pub context: Handle,
    /// First and last mapped address of a range of its own.
    pub mapped: Option<(u64, u64)>,
    /// What else is known of it.
    pub ties: Ties,
}

static MAP: RwLock<BTreeMap<u64, Allocation>> = RwLock::new(BTreeMap::new());

/// Held while chunks change their backing. Whoever takes an allocation out of the map, or ties it to where it is, waits.
static STILL: Mutex<()> = Mutex::new(());

/// Keeps all allocations in the map, their ties as they are, and all chunks mapped. Taken before the map's own lock, and by
/// nobody who holds another.
pub fn hold_still() -> Still {
    // Before the lock: what is in transit takes as long as the driver takes.
    let paused = staging::pause();
    Still {
        _paused: paused,
        _held: STILL.lock().unwrap_or_else(PoisonError::into_inner),
    }
}

/// What [`hold_still`] gives.
pub struct Still {
    _paused: staging::AllPaused,
    _held: MutexGuard<'static, ()>,
}

/// A chunk that may move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Movable {
    /// Where it begins.
    pub address: u64,
    /// What it is now.
    pub chunk: Chunk,
    /// The context that its allocation was made in.
    pub context: Handle,
}

/// A chunk of the allocation that starts at this address, if that may move. Meant for whoever holds still.
pub fn movable(base: u64, index: usize) -> Option<Movable> {
    let map = MAP.read().unwrap_or_else(PoisonError::into_inner);
    let allocation = map.get(&base).filter(|a| a.may_move())?;
    let Backing::Range(range) = &allocation.backing else {
        return None;
    };
    let (address, chunk) = range.chunk(index)?;
    if staging::away(allocation.device, base, index) {
        return None;
    }
    Some(Movable {
        address,
        chunk,
        context: allocation.context,
    })
}

/// Another backing has been mapped in place of a chunk's, while [`hold_still`] was held: the old one is the caller's.
pub fn exchange(base: u64, index: usize, new: Chunk) -> Option<Chunk> {
    let mut map = MAP.write().unwrap_or_else(PoisonError::into_inner);
    let allocation = map.get_mut(&base)?;
    let before = [Tier::Vram, Tier::Host].map(|tier| allocation.bytes(tier));
    let Backing::Range(range) = &mut allocation.backing else {
        return None;
    };
    let old = range.exchange(index, new);
    let after = [Tier::Vram, Tier::Host].map(|tier| allocation.bytes(tier));
    if let Some(device) = device::known(allocation.device) {
        tally::moved(
            device.index,
            allocation.base,
            allocation.size,
            before,
            after,
        );
    }
    Some(old)
}

/// Calls `each` with every allocation of a device that is a range of its own: address, bytes, chunks, may it move.
pub fn each_range(device: CUdevice, mut each: impl FnMut(u64, u64, &[Chunk], bool)) {
    let map = MAP.read().unwrap_or_else(PoisonError::into_inner);
    for a in map.values().filter(|a| a.device == device) {
        if let (Backing::Range(range), None) = (&a.backing, a.ties.opened) {
            each(a.base, a.size, range.chunks(), a.may_move());
        }
    }
}

/// Calls `each` with every allocation.
pub fn each(each: impl FnMut(&Allocation)) {
    let map = MAP.read().unwrap_or_else(PoisonError::into_inner);
    map.values().for_each(each);
}

/// Adds an allocation.
pub fn insert(allocation: Allocation) {
    allocation.tally(true);
    allocation.own(true);
    MAP.write()
        .unwrap_or_else(PoisonError::into_inner)
        .insert(allocation.base, allocation);
}

/// Takes the allocation that starts at this address: of two threads that free it, one gets it. One that is another
/// process's stays: it is closed, not freed.
pub fn remove(base: u64) -> Option<Allocation> {
    let _still = hold_still();
    let mut map = MAP.write().unwrap_or_else(PoisonError::into_inner);
    map.get(&base).filter(|a| a.ties.opened.is_none())?;
    let removed = map.remove(&base);
    drop(map);
    removed.inspect(|a| {
        a.tally(false);
        a.own(false);
    })
}

/// Changes what is known of the allocation that this address is inside; `None` when it is in none.
pub fn tie<T>(address: u64, change: impl FnOnce(&mut Ties) -> T) -> Option<T> {
    let _still = hold_still();
    let mut map = MAP.write().unwrap_or_else(PoisonError::into_inner);
    let (_, a) = map.range_mut(..=address).next_back()?;
    let result = (address - a.base < a.size).then(|| change(&mut a.ties));
    if a.ties.fixed {
        staging::fix(a.device, a.base);
        steward::tell(News::Fixed(a.device, a.base));
    }
    result
}

/// The allocation that this address is inside is never moved from now on.
pub fn keep(address: u64) {
    // A look first: programs do this again and again.
    if find(address).is_some_and(|place| !place.ties.fixed) {
        tie(address, |ties| ties.fixed = true);
    }
}

/// Asks an allocation's backing something; `None` when this address is in none, or its backing is no range of its own.
pub fn with_range<T>(address: u64, ask: impl FnOnce(&Range) -> T) -> Option<T> {
    let map = MAP.read().unwrap_or_else(PoisonError::into_inner);
    let (_, a) = map.range(..=address).next_back()?;
    match &a.backing {
        Backing::Range(range) if address - a.base < a.size => Some(ask(range)),
        _ => None,
    }
}

/// Adds an allocation of another process, unless its context has it open already: then that is opened once more, and the
/// new one comes back. Returns the address that is to be used.
pub fn open(allocation: Allocation) -> (u64, Option<Allocation>) {
    let mut map = MAP.write().unwrap_or_else(PoisonError::into_inner);
    let same = |a: &Allocation| {
        let tokens = (a.ties.opened, allocation.ties.opened);
        let same = matches!(tokens, (Some(one), Some(two)) if one.token == two.token);
        same && a.context == allocation.context
    };
    if let Some(there) = map.values_mut().find(|a| same(a)) {
        if let Some(opened) = &mut there.ties.opened {
            opened.count += 1;
        }
        return (there.base, Some(allocation));
    }
    let base = allocation.base;
    map.insert(base, allocation);
    (base, None)
}

/// Opens an allocation of another process once more, if this context has it open: its address.
pub fn open_again(token: Token, context: Handle) -> Option<u64> {
    let mut map = MAP.write().unwrap_or_else(PoisonError::into_inner);
    map.values_mut().find_map(|a| {
        let opened = a.ties.opened.as_mut()?;
        (opened.token == token && a.context == context).then(|| {
            opened.count += 1;
            a.base
        })
    })
}

/// The device that another process's allocation at this address was opened for.
pub fn opened_for(base: u64) -> Option<CUdevice> {
    let map = MAP.read().unwrap_or_else(PoisonError::into_inner);
    map.get(&base).map(|a| a.device)
}

/// Closes an allocation of another process once. `None`: there is none that starts here. The inner one is the
/// allocation, when nothing has it open any more.
pub fn close_once(base: u64) -> Option<Option<Allocation>> {
    let mut map = MAP.write().unwrap_or_else(PoisonError::into_inner);
    let opened = map.get_mut(&base)?.ties.opened.as_mut()?;
    opened.count = opened.count.saturating_sub(1);
    Some(match opened.count {
        0 => map.remove(&base),
        _ => None,
    })
}

/// Whether `SYNC_MEMOPS` is set for any of these bytes.
pub fn synchronous(address: u64, bytes: u64) -> bool {
    let map = MAP.read().unwrap_or_else(PoisonError::into_inner);
    let end = address.saturating_add(bytes.max(1));
    map.range(..end)
        .next_back()
        .is_some_and(|(base, a)| a.ties.synchronous && address < base + a.size)
}

/// Takes all allocations of a context.
pub fn remove_context(context: Handle) -> Vec<Allocation> {
    let _still = hold_still();
    let mut map = MAP.write().unwrap_or_else(PoisonError::into_inner);
    map.extract_if(.., |_, a| a.context == context)
        .map(|(_, a)| a)
        .inspect(|a| {
            a.tally(false);
            a.own(false);
        })
        .collect()
}

/// The allocation that this address is inside.
pub fn find(address: u64) -> Option<Place> {
    let map = MAP.read().unwrap_or_else(PoisonError::into_inner);
    let (_, a) = map.range(..=address).next_back()?;
    (address - a.base < a.size).then(|| a.place())
}

/// Whether an address is in the padding behind an allocation: mapped, but not the program's.
pub fn in_padding(address: u64) -> bool {
    let map = MAP.read().unwrap_or_else(PoisonError::into_inner);
    map.range(..=address).next_back().is_some_and(|(_, a)| {
        let inside = a.place().mapped.is_some_and(|(_, last)| address <= last);
        inside && address - a.base >= a.size
    })
}

/// Whether these addresses touch memory that the shim mapped.
pub fn touches(address: u64, size: u64) -> bool {
    let map = MAP.read().unwrap_or_else(PoisonError::into_inner);
    let end = address.saturating_add(size.max(1));
    map.range(..end).next_back().is_some_and(|(_, a)| {
        let last = a
            .place()
            .mapped
            .map_or(a.base + a.size - 1, |(_, last)| last);
        last >= address
    })
}

/// Whether any of these bytes are in host memory.
pub fn on_host(address: u64, bytes: u64) -> bool {
    let map = MAP.read().unwrap_or_else(PoisonError::into_inner);
    let end = address.saturating_add(bytes);
    map.range(..end)
        .next_back()
        .is_some_and(|(base, a)| match &a.backing {
            Backing::Range(range) => range.on_host(address.saturating_sub(*base), end - base),
            Backing::Pinned(_) | Backing::Piece => address < base + a.size,
        })
}

/// The range of its own of the allocation that starts at this address: address and bytes.
pub fn range_at(base: u64) -> Option<(u64, u64)> {
    let map = MAP.read().unwrap_or_else(PoisonError::into_inner);
    match &map.get(&base)?.backing {
        Backing::Range(range) => Some((range.base, range.span)),
        Backing::Pinned(_) | Backing::Piece => None,
    }
}

/// The mapped ranges of a device: address and bytes.
pub fn ranges_of(device: CUdevice) -> Vec<(u64, u64)> {
    let map = MAP.read().unwrap_or_else(PoisonError::into_inner);
    map.values()
        .filter(|a| a.device == device)
        .filter_map(|a| match &a.backing {
            Backing::Range(range) => Some((range.base, range.span)),
            Backing::Pinned(_) | Backing::Piece => None,
        })
        .collect()
}

impl Allocation {
    /// Bytes that it takes of a tier.
    pub fn bytes(&self, tier: Tier) -> u64 {
        match &self.backing {
            Backing::Range(range) => range.bytes(tier),
            Backing::Pinned(pinned) if tier == Tier::Host => pinned.span,
            Backing::Piece if tier == Tier::Host => small::rounded(self.size),
            Backing::Pinned(_) | Backing::Piece => 0,
        }
    }

    /// Whether its chunks may change their backing: nobody else reaches them past the calls of this process.
    fn may_move(&self) -> bool {
        !self.ties.fixed && self.ties.opened.is_none()
    }

    /// Operations that name it are noted from now on, or no more. The driver gives the addresses to another allocation
    /// only after they are given back, which comes later.
    fn own(&self, ours: bool) {
        if let (Backing::Range(range), None) = (&self.backing, self.ties.opened) {
            access::own(range.base, range.span, ours);
            if let Some(job) = process::live().filter(|_| ours && self.may_move()) {
                staging::born(
                    job,
                    self.device,
                    range.base,
                    range.span,
                    self.context,
                    range.chunks(),
                );
            }
            steward::tell(match ours {
                true => News::Made(
                    self.device,
                    self.base,
                    self.size,
                    steward::chunks(range.chunks()),
                    self.may_move(),
                ),
                false => News::Gone(self.device, self.base),
            });
        }
    }

    /// Counts it in the ledger as live, or as freed.
    fn tally(&self, live: bool) {
        let Some(device) = device::known(self.device) else {
            return;
        };
        // Another process's is counted there.
        if self.ties.opened.is_some() {
            return;
        }
        let bytes = [Tier::Vram, Tier::Host].map(|tier| self.bytes(tier));
        tally::allocation(device.index, self.base, self.size, bytes, live);
    }

    fn place(&self) -> Place {
        Place {
            base: self.base,
            size: self.size,
            device: self.ties.opened.map_or(self.device, |o| o.home),
            context: self.context,
            ties: self.ties,
            mapped: match &self.backing {
                Backing::Range(range) => Some((range.base, range.base + range.span - 1)),
                Backing::Pinned(p) => Some((p.base, p.base + p.span - 1)),
                Backing::Piece => None,
            },
        }
    }
}

/// Something that the driver holds for the program and the shim counts as VRAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counted {
    /// Ledger index of the device.
    pub index: usize,
    /// Bytes charged.
    pub bytes: u64,
    /// The context that it ends with.
    pub context: Handle,
}

/// What the driver allocated itself, by what the program frees it by.
static COUNTED: Mutex<Option<HashMap<(Kind, u64), Counted>>> = Mutex::new(None);

/// What a counted handle is, so that numbers of different kinds cannot meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// An address.
    Memory,
}

fn counted() -> MutexGuard<'static, Option<HashMap<(Kind, u64), Counted>>> {
    COUNTED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Remembers what was charged for a handle.
pub fn count(kind: Kind, handle: u64, what: Counted) {
    what.tally(true);
    counted()
        .get_or_insert_default()
        .insert((kind, handle), what);
}

/// Calls `each` with the address of all memory that the driver allocated itself, and the ledger index of its device.
pub fn each_counted(mut each: impl FnMut(u64, usize)) {
    let counted = counted();
    for ((Kind::Memory, address), what) in counted.iter().flatten() {
        each(*address, what.index);
    }
}

/// Takes what was charged for a handle.
pub fn uncount(kind: Kind, handle: u64) -> Option<Counted> {
    let removed = counted().as_mut()?.remove(&(kind, handle));
    removed.inspect(|c| c.tally(false))
}

impl Counted {
    fn tally(&self, live: bool) {
        tally::number(self.index, [self.bytes, 0], live);
    }
}

/// Takes all that was charged for a context.
pub fn uncount_context(context: Handle) -> Vec<Counted> {
    let mut counted = counted();
    let Some(map) = counted.as_mut() else {
        return Vec::new();
    };
    map.extract_if(|_, c| c.context == context)
        .map(|(_, c)| c)
        .inspect(|c| c.tally(false))
        .collect()
}
