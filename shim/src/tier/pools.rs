//! The program's memory pools: what they hold is charged as a whole.
//!
//! A pool keeps more than its allocations use, and gives it back when the program synchronises, which the shim does not
//! see. So not allocations are counted but what the driver says that the pool has reserved (29 ns: measured), read again
//! after every call that may change it and before anything is refused. Nothing can drift.
//!
//! An allocation reserves first what it may make its pool grow by: its size in whole granules, 32 MiB (measured), or what
//! other growth has shown. Where not even trimming makes room for that, an allocation may still fit between those that
//! live, or into what was freed on its own stream; by their addresses the shim knows. That is tried, and undone if the
//! driver makes the pool grow nevertheless: the only moment at which a pool can be above the limit.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use greenboost_abi::*;
use greenboost_wire::ledger::Tier;
use greenboost_wire::ram::Ram;

use super::chunk::GRAIN;
use super::device::{self, Device};
use super::map::Handle;
use super::range::Shortage;
use super::stream::Lane;
use super::{budget, drain, gate, range, staging};
use crate::driver;
use crate::process::Job;

/// Whose memory a pool holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A device's.
    Device(CUdevice),
    /// The host's.
    Host,
    /// Managed memory, or another process's: the driver's affair.
    Other,
}

/// A pool.
pub struct Pool {
    /// The driver's handle.
    pub handle: Handle,
    /// Whose memory.
    pub kind: Kind,
    /// Whether its memory may leave the process: then it must come from the pool itself.
    pub exportable: bool,
    /// Most bytes that it may hold; 0: no bound of its own.
    pub most: u64,
    /// Held for reading around every use of the handle, for writing when the program destroys the pool.
    alive: RwLock<bool>,
    /// Ledger index of the device that it is charged to; `usize::MAX` until something is.
    index: AtomicUsize,
    account: Mutex<Account>,
    /// Other devices that the program let use it.
    access: Mutex<Vec<CUdevice>>,
}

#[derive(Default)]
struct Account {
    /// Bytes in the ledger for this pool, reservations of calls under way included.
    held: u64,
    /// Reservations of calls under way.
    pending: u64,
    /// Counts readings of the driver's number, so that an older one is not taken for the latest.
    reading: u64,
    /// What was freed since the pool last gave memory back, the latest last.
    freed: Vec<(Done, Piece)>,
    /// What it had reserved when last asked.
    reserved: u64,
    /// Allocations to come that do not try to fit in without a reservation.
    back_off: u32,
    /// Allocations in it that the program has not freed.
    live: u64,
    /// Bytes that the shim serves on its behalf: asked for, and backed.
    served: [u64; 2],
    /// The highest sums of the driver's bytes and those, since the program last reset them: used, reserved.
    high: [u64; 2],
}

static ANY: AtomicBool = AtomicBool::new(false);
static POOLS: Mutex<Option<HashMap<Handle, Arc<Pool>>>> = Mutex::new(None);
/// By what the driver grows pools: on driver 580, or learned.
static GRANULE: AtomicU64 = AtomicU64::new(32 << 20);
/// After a try that had to be undone, so many allocations do not try again.
const BACK_OFF: u32 = 32;
/// So many frees are remembered of a pool.
const FREES: usize = 256;

/// Address and bytes.
type Piece = (u64, u64);

/// When the driver can use again what was freed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Done {
    /// Now, anywhere.
    Yes,
    /// Now on this lane, elsewhere when that has come to the free.
    On(Lane),
    /// Some time.
    Unknown,
}

impl Done {
    fn usable_on(self, lane: Option<Lane>) -> bool {
        match self {
            Done::Yes => true,
            Done::On(freed) => lane == Some(freed),
            Done::Unknown => false,
        }
    }
}

mod gap;
mod live;

pub use live::{each_own, freed, lives, serve, served_for, unserve};

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Remembers a pool.
pub fn made(handle: Handle, kind: Kind, exportable: bool, most: u64) -> Arc<Pool> {
    ANY.store(true, SeqCst);
    let pool = Arc::new(Pool {
        handle,
        kind,
        exportable,
        most,
        alive: RwLock::new(true),
        index: AtomicUsize::new(usize::MAX),
        account: Mutex::default(),
        access: Mutex::default(),
    });
    lock(&POOLS)
        .get_or_insert_default()
        .insert(handle, pool.clone());
    pool
}

/// Whether the program has used any.
pub fn any() -> bool {
    ANY.load(SeqCst)
}

/// A pool that was seen before.
pub fn known(handle: Handle) -> Option<Arc<Pool>> {
    lock(&POOLS).as_ref()?.get(&handle).cloned()
}

/// A pool that the program names; a device's default pool is met here first. `None`: of unknown origin.
pub fn find(handle: Handle, near: CUdevice) -> Option<Arc<Pool>> {
    known(handle).or_else(|| {
        let others = device::all().map(|d| d.ordinal).filter(|d| *d != near);
        let owner = std::iter::once(near)
            .chain(others)
            .find(|d| driver::default_pool(*d) == Ok(handle))?;
        Some(made(handle, Kind::Device(owner), false, 0))
    })
}

fn all(kind: Kind) -> Vec<Arc<Pool>> {
    lock(&POOLS)
        .iter()
        .flat_map(HashMap::values)
        .filter(|p| p.kind == kind)
        .cloned()
        .collect()
}

impl Pool {
    /// The tier that its memory counts in.
    pub fn tier(&self) -> Tier {
        match self.kind {
            Kind::Host => Tier::Host,
            Kind::Device(_) | Kind::Other => Tier::Vram,
        }
    }

    /// Asks the driver, unless the pool is gone.
    fn ask(&self, attribute: CUmemPool_attribute) -> Option<u64> {
        let alive = self.alive.read().unwrap_or_else(PoisonError::into_inner);
        if !*alive {
            return None;
        }
        // As unsafe to a capture as an allocation (measured).
        let _relaxed = drain::capturing().then(driver::Relaxed::enter);
        driver::pool_attribute(self.handle, attribute).ok()
    }

    /// Reserves what an allocation may make the pool grow by, and says how much that is.
    fn begin(&self, job: &Job, device: &Device, bytes: u64) -> Result<u64, Shortage> {
        // A pool on the host is charged to the device that used it first.
        let _ = (self.index).compare_exchange(usize::MAX, device.index, SeqCst, SeqCst);
        let growth = bytes
            .checked_next_multiple_of(GRANULE.load(SeqCst))
            .ok_or(Shortage::Budget)?;
        self.reserve(job, growth)?;
        let mut account = lock(&self.account);
        account.held += growth;
        account.pending += growth;
        Ok(growth)
    }

    /// Whether an allocation that cannot be reserved for should fit between what lives in the pool.
    fn may_fit(&self, bytes: u64, lane: Option<Lane>) -> bool {
        let mut blocks = live::own_of(self.handle);
        let mut account = lock(&self.account);
        account.back_off = account.back_off.saturating_sub(1);
        let (usable, busy): (Vec<_>, Vec<_>) = account
            .freed
            .iter()
            .copied()
            .partition(|(done, _)| done.usable_on(lane));
        blocks.extend(busy.into_iter().map(|(_, piece)| piece));
        let usable: Vec<Piece> = usable.into_iter().map(|(_, piece)| piece).collect();
        account.back_off == 0 && gap::fits(blocks, &usable, GRANULE.load(SeqCst), bytes)
    }

    /// An allocation was freed.
    fn freed(&self, done: Done, piece: Piece) {
        let mut account = lock(&self.account);
        if account.freed.len() == FREES {
            account.freed.remove(0);
        }
        account.freed.push((done, piece));
    }

    /// Reserves bytes of the pool's tier; of host memory only what the machine can spare.
    fn reserve(&self, job: &Job, bytes: u64) -> Result<(), Shortage> {
        let (tier, index) = (self.tier(), self.index.load(SeqCst));
        job.place
            .reserve(tier, index, bytes)
            .map_err(|_| Shortage::Budget)?;
        if tier == Tier::Host {
            let pinned = job.place.ledger().used_host().saturating_sub(bytes);
            budget::check(Ram::now(), bytes, pinned).map_err(|why| {
                job.place.release(tier, index, bytes);
                Shortage::Ram(why)
            })?;
        }
        Ok(())
    }

    /// After the call that [`Pool::begin`] reserved for: what the pool has now is charged, no more. `asked`: bytes of an
    /// allocation that was made. `false`: it grew beyond what the budget has room for, and the allocation must go.
    fn finish(&self, job: &Job, growth: u64, asked: Option<u64>) -> bool {
        lock(&self.account).pending -= growth;
        let before = lock(&self.account).held;
        let Some((reserved, over)) = self.settle(job) else {
            return true;
        };
        if let Some(bytes) = asked.filter(|_| growth > 0 || over > 0) {
            learn(bytes, (reserved + growth).saturating_sub(before));
        }
        if over == 0 {
            return true;
        }
        let fits = self.reserve(job, over).is_ok();
        if !fits {
            // It is held all the same, until the pool gives it back.
            job.place.charge(self.tier(), self.index.load(SeqCst), over);
        }
        let mut account = lock(&self.account);
        account.held += over;
        if !fits {
            account.back_off = BACK_OFF;
        }
        fits
    }

    /// Brings the ledger down to what the pool has reserved; returns that, and how much more than the ledger's it is.
    fn settle(&self, job: &Job) -> Option<(u64, u64)> {
        let mine = {
            let mut account = lock(&self.account);
            account.reading += 1;
            account.reading
        };
        let reserved = self.ask(CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT)?;
        let (surplus, over) = {
            let mut account = lock(&self.account);
            // Somebody reads it again just now: theirs is the later word.
            if account.reading != mine {
                return Some((reserved, 0));
            }
            // Calls under way may still grow it, by what they have reserved.
            let target = account.held.min(reserved.saturating_add(account.pending));
            let surplus = account.held - target;
            account.held = target;
            if reserved < account.reserved {
                account.freed.clear();
            }
            account.reserved = reserved;
            (surplus, reserved.saturating_sub(target))
        };
        if surplus > 0 {
            job.place
                .release(self.tier(), self.index.load(SeqCst), surplus);
        }
        Some((reserved, over))
    }

    /// Charges what the pool has reserved now, within the limit or not.
    pub fn sync(&self, job: &Job) {
        if self.index.load(SeqCst) == usize::MAX {
            return;
        }
        if let Some((_, over)) = self.settle(job)
            && over > 0
        {
            job.place.charge(self.tier(), self.index.load(SeqCst), over);
            lock(&self.account).held += over;
        }
    }

    /// Gives back what the pool keeps without need. Does not wait, also for what is freed but not done (measured).
    pub fn trim(&self, job: &Job) -> bool {
        let before = lock(&self.account).held;
        {
            let _pass = gate::pass();
            let alive = self.alive.read().unwrap_or_else(PoisonError::into_inner);
            if !*alive {
                return false;
            }
            let _ = driver::pool_trim(self.handle);
        }
        self.sync(job);
        lock(&self.account).held < before
    }

    /// Whether the shim may serve an allocation of so many bytes on the pool's behalf.
    pub fn may_be_served(&self, bytes: u64) -> bool {
        let room = || {
            // The count of used bytes does not notice `cuMemFree` (measured).
            let [used, reserved] = [
                CU_MEMPOOL_ATTR_USED_MEM_CURRENT,
                CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT,
            ]
            .map(|a| self.ask(a).unwrap_or(0));
            let (used, served) = (used.min(reserved), lock(&self.account).served[0]);
            self.most
                .saturating_sub(used.saturating_add(served))
                .ge(&bytes)
        };
        matches!(self.kind, Kind::Device(_)) && !self.exportable && (self.most == 0 || room())
    }

    /// Other devices that the program let use the pool's memory.
    pub fn access(&self) -> Vec<CUdevice> {
        lock(&self.access).clone()
    }

    /// What the program is told of one of the four numbers, given the driver's.
    pub fn told(&self, attribute: CUmemPool_attribute, value: u64) -> u64 {
        let account = lock(&self.account);
        let [used, span] = account.served;
        match attribute {
            CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT => value + span,
            CU_MEMPOOL_ATTR_USED_MEM_CURRENT => value + used,
            CU_MEMPOOL_ATTR_RESERVED_MEM_HIGH => value.max(account.high[1]),
            CU_MEMPOOL_ATTR_USED_MEM_HIGH => value.max(account.high[0]),
            _ => value,
        }
    }

    /// The program has reset a high-water mark.
    pub fn reset_high(&self, attribute: CUmemPool_attribute) {
        let (which, now) = match attribute {
            CU_MEMPOOL_ATTR_USED_MEM_HIGH => (0, CU_MEMPOOL_ATTR_USED_MEM_CURRENT),
            CU_MEMPOOL_ATTR_RESERVED_MEM_HIGH => (1, CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT),
            _ => return,
        };
        let value = self.ask(now).unwrap_or(0);
        let mut account = lock(&self.account);
        account.high[which] = if account.served[which] > 0 {
            value + account.served[which]
        } else {
            0
        };
    }

    fn raise_high(&self) {
        let now = [
            CU_MEMPOOL_ATTR_USED_MEM_CURRENT,
            CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT,
        ]
        .map(|a| self.ask(a).unwrap_or(0));
        let mut account = lock(&self.account);
        for (which, value) in now.into_iter().enumerate() {
            account.high[which] = account.high[which].max(value + account.served[which]);
        }
    }
}

/// The program has waited for a stream, or for all there are: what was freed there is done.
pub fn waited_for(lane: Option<Lane>) {
    let pools = lock(&POOLS);
    for pool in pools.iter().flat_map(HashMap::values) {
        for (done, _) in &mut lock(&pool.account).freed {
            if lane.is_none_or(|lane| *done == Done::On(lane)) {
                *done = Done::Yes;
            }
        }
    }
}

/// Learns the granule from a growth: the smallest power of two that an allocation of so many bytes comes to it by.
fn learn(bytes: u64, growth: u64) {
    if growth == 0 || bytes.checked_next_multiple_of(GRANULE.load(SeqCst)) == Some(growth) {
        return;
    }
    let granule = (0..6)
        .map(|shift| GRAIN << shift)
        .find(|g| bytes.next_multiple_of(*g) == growth);
    if let Some(granule) = granule {
        GRANULE.store(granule, SeqCst);
    }
}

/// Lets a device use what a pool has and will have.
pub fn open(pool: &Pool, user: CUdevice) -> driver::Result<()> {
    if pool.kind == Kind::Device(user) {
        return Ok(());
    }
    {
        let mut access = lock(&pool.access);
        if !access.contains(&user) {
            access.push(user);
            staging::unseen();
        }
    }
    live::served_of(pool.handle)
        .into_iter()
        .try_for_each(|base| open_range(base, user))
}

/// Whether the program let another device use a pool of this one.
pub fn shared(ordinal: CUdevice) -> bool {
    let open = |p: &Arc<Pool>| !lock(&p.access).is_empty();
    any() && all(Kind::Device(ordinal)).iter().any(open)
}

/// Lets a device use the memory of one allocation. Registered memory is everybody's.
pub fn open_range(base: u64, user: CUdevice) -> driver::Result<()> {
    match super::map::range_at(base) {
        // SAFETY: a range that is mapped while it is in the map; one that is freed just now is refused.
        Some((base, span)) => unsafe { driver::set_access(base, span as usize, [user]) },
        None => Ok(()),
    }
}

fn gone(pool: &Pool) -> bool {
    !*pool.alive.read().unwrap_or_else(PoisonError::into_inner)
}

/// Gives up the charge of a destroyed pool once nothing of it lives. What it kept went with the pool.
fn bury(job: &Job, pool: &Pool) {
    let held = {
        let mut account = lock(&pool.account);
        if account.live > 0 {
            return;
        }
        std::mem::take(&mut account.held)
    };
    if held > 0 {
        job.place
            .release(pool.tier(), pool.index.load(SeqCst), held);
    }
}

/// Destroys a pool by `destroy`. Its memory lives until the last allocation is freed (measured).
pub fn destroyed(job: &Job, handle: Handle, destroy: impl FnOnce() -> CUresult) -> CUresult {
    let Some(pool) = known(handle) else {
        return destroy();
    };
    if !drain::capturing() {
        pool.trim(job);
    }
    let set = |alive| *pool.alive.write().unwrap_or_else(PoisonError::into_inner) = alive;
    set(false);
    if let Some(pools) = lock(&POOLS).as_mut() {
        pools.remove(&handle);
    }
    let result = destroy();
    if result == CUDA_SUCCESS {
        bury(job, &pool);
    } else {
        set(true);
        lock(&POOLS)
            .get_or_insert_default()
            .entry(handle)
            .or_insert(pool);
    }
    result
}

/// Charges what the pools of a device have reserved now: the program's synchronisations give memory back.
pub fn sync(job: &Job, device: &Device) {
    for pool in all(Kind::Device(device.ordinal)) {
        pool.sync(job);
    }
}

/// Gives back what pools keep without need, for an allocation that a tier has no room for. Returns whether that was
/// anything. Trimming harms a capture as allocations do, so while one is open the ledger is only brought up to date.
pub fn make_room(job: &Job, device: &Device, tier: Tier) -> bool {
    let kind = match tier {
        Tier::Vram => Kind::Device(device.ordinal),
        Tier::Host => Kind::Host,
    };
    let mut any = false;
    for pool in all(kind) {
        let before = lock(&pool.account).held;
        if drain::capturing() {
            pool.sync(job);
        } else {
            pool.trim(job);
        }
        any |= lock(&pool.account).held < before;
    }
    any
}

/// Makes an allocation in a pool by `make`, within the budget; `undo` frees one that the budget has no room for after all.
/// The inner result is the driver's.
pub fn allocate(
    job: &Job,
    device: &Device,
    pool: &Pool,
    (bytes, lane): (u64, Option<Lane>),
    make: impl Fn() -> CUresult,
    undo: impl Fn(),
) -> Result<CUresult, Shortage> {
    let attempt = |growth| {
        let code = make();
        let good = code == CUDA_SUCCESS;
        let fits = pool.finish(job, growth, good.then_some(bytes));
        match code {
            CUDA_SUCCESS if fits => Ok(code),
            CUDA_SUCCESS => {
                undo();
                pool.sync(job);
                Err(Shortage::Budget)
            }
            CUDA_ERROR_OUT_OF_MEMORY => Err(Shortage::Driver),
            code => Ok(code),
        }
    };
    let reserved = || pool.begin(job, device, bytes).and_then(attempt);
    let mut result = reserved();
    // What should fit is tried before anything is trimmed for it.
    if result == Err(Shortage::Budget) && pool.may_fit(bytes, lane) {
        result = attempt(0);
    }
    if result.is_err() && range::make_room(job, device, pool.tier()) {
        result = reserved();
    }
    if result == Err(Shortage::Budget) && pool.may_fit(bytes, lane) {
        result = attempt(0);
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_granule_is_learned_from_growth() {
        // Measured: 33 MiB reserve 64, 256 bytes 32.
        learn(33 << 20, 64 << 20);
        learn(256, 32 << 20);
        learn(256, 0);
        learn(1 << 20, 3 << 20);
        assert_eq!(GRANULE.load(SeqCst), 32 << 20);
        // A driver that grows pools by less.
        learn(6 << 20, 6 << 20);
        assert_eq!(GRANULE.load(SeqCst), GRAIN);
        learn(33 << 20, 64 << 20);
        assert_eq!(GRANULE.load(SeqCst), 32 << 20);
    }
}
