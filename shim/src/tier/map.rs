//! What the program holds: its allocations by address.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock};

use greenboost_abi::{CUcontext, CUdevice};

use super::pinned::Pinned;
use super::range::Range;

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
}

static MAP: RwLock<BTreeMap<u64, Allocation>> = RwLock::new(BTreeMap::new());

/// Adds an allocation.
pub fn insert(allocation: Allocation) {
    MAP.write()
        .unwrap_or_else(PoisonError::into_inner)
        .insert(allocation.base, allocation);
}

/// Takes the allocation that starts at this address: of two threads that free it, one gets it.
pub fn remove(base: u64) -> Option<Allocation> {
    MAP.write()
        .unwrap_or_else(PoisonError::into_inner)
        .remove(&base)
}

/// Takes all allocations of a context.
pub fn remove_context(context: Handle) -> Vec<Allocation> {
    let mut map = MAP.write().unwrap_or_else(PoisonError::into_inner);
    map.extract_if(.., |_, a| a.context == context)
        .map(|(_, a)| a)
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
    fn place(&self) -> Place {
        Place {
            base: self.base,
            size: self.size,
            device: self.device,
            context: self.context,
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
    counted()
        .get_or_insert_default()
        .insert((kind, handle), what);
}

/// Takes what was charged for a handle.
pub fn uncount(kind: Kind, handle: u64) -> Option<Counted> {
    counted().as_mut()?.remove(&(kind, handle))
}

/// Takes all that was charged for a context.
pub fn uncount_context(context: Handle) -> Vec<Counted> {
    let mut counted = counted();
    let Some(map) = counted.as_mut() else {
        return Vec::new();
    };
    map.extract_if(|_, c| c.context == context)
        .map(|(_, c)| c)
        .collect()
}
