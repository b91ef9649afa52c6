//! What lives in the pools, by address: their own allocations, and what the shim serves on their behalf.

use std::collections::HashMap;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, Mutex};

use greenboost_abi::*;
use greenboost_wire::ledger::Tier;

use super::{Done, Piece, Pool, bury, gone, lock};
use crate::process::Job;
use crate::tier::map::Handle;
use crate::tier::tally;

static LIVE: Mutex<Option<HashMap<u64, Entry>>> = Mutex::new(None);

enum Entry {
    Own(Arc<Pool>, u64),
    Served {
        pool: Arc<Pool>,
        used: u64,
        span: u64,
    },
}

/// Counts a pool's own allocation as live, or as freed.
fn count(pool: &Pool, bytes: u64, live: bool) {
    let index = pool.index.load(SeqCst);
    if index != usize::MAX {
        let bytes = match pool.tier() {
            Tier::Vram => [bytes, 0],
            Tier::Host => [0, bytes],
        };
        tally::number(index, bytes, live);
    }
}

/// The program's allocation of so many bytes in a pool.
pub fn lives(address: u64, pool: &Arc<Pool>, bytes: u64) {
    lock(&pool.account).live += 1;
    count(pool, bytes, true);
    insert(address, Entry::Own(pool.clone(), bytes));
}

/// What the shim serves on a pool's behalf: bytes asked for and backed.
pub fn serve(address: u64, pool: &Arc<Pool>, used: u64, span: u64) {
    {
        let mut account = lock(&pool.account);
        account.served[0] += used;
        account.served[1] += span;
    }
    pool.raise_high();
    let pool = pool.clone();
    insert(address, Entry::Served { pool, used, span });
}

fn insert(address: u64, entry: Entry) {
    let old = lock(&LIVE).get_or_insert_default().insert(address, entry);
    // The address was freed in a way that the shim did not see.
    drop(old.map(ended));
}

fn ended(entry: Entry) -> Arc<Pool> {
    match entry {
        Entry::Own(pool, bytes) => {
            count(&pool, bytes, false);
            let mut account = lock(&pool.account);
            account.live = account.live.saturating_sub(1);
            drop(account);
            pool
        }
        Entry::Served { pool, used, span } => {
            let mut account = lock(&pool.account);
            account.served[0] = account.served[0].saturating_sub(used);
            account.served[1] = account.served[1].saturating_sub(span);
            drop(account);
            pool
        }
    }
}

/// The pool that an allocation of the shim's was served for.
pub fn served_for(base: u64) -> Option<Handle> {
    match lock(&LIVE).as_ref()?.get(&base)? {
        Entry::Served { pool, .. } => Some(pool.handle),
        Entry::Own(..) => None,
    }
}

/// The shim's allocation at this address is freed.
pub fn unserve(base: u64) {
    let entry = lock(&LIVE).as_mut().and_then(|live| live.remove(&base));
    drop(entry.map(ended));
}

/// Frees an allocation that may be a pool's by `free`; `address` is anybody's to use once that has succeeded.
pub fn freed(job: &Job, address: u64, done: Done, free: impl FnOnce() -> CUresult) -> CUresult {
    let own = |live: &mut HashMap<u64, Entry>| match live.get(&address) {
        Some(Entry::Own(..)) => live.remove(&address),
        _ => None,
    };
    let entry = lock(&LIVE).as_mut().and_then(own);
    let result = free();
    match entry {
        Some(entry) if result == CUDA_SUCCESS => {
            let bytes = if let Entry::Own(_, n) = &entry { *n } else { 0 };
            let pool = ended(entry);
            pool.freed(done, (address, bytes));
            if gone(&pool) {
                bury(job, &pool);
            } else {
                pool.sync(job);
            }
        }
        Some(entry) => {
            lock(&LIVE).get_or_insert_default().insert(address, entry);
        }
        None => {}
    }
    result
}

/// Calls `each` with the address of all that is the pools' own, and the ledger index of its device.
pub fn each_own(mut each: impl FnMut(u64, usize)) {
    for (address, entry) in lock(&LIVE).iter().flatten() {
        if let Entry::Own(pool, _) = entry {
            each(*address, pool.index.load(SeqCst));
        }
    }
}

/// The allocations of its own in a pool.
pub fn own_of(pool: Handle) -> Vec<Piece> {
    let live = lock(&LIVE);
    let own = live
        .iter()
        .flatten()
        .filter_map(|(address, entry)| match entry {
            Entry::Own(p, size) if p.handle == pool => Some((*address, *size)),
            _ => None,
        });
    own.collect()
}

/// The addresses of what the shim serves on a pool's behalf.
pub fn served_of(pool: Handle) -> Vec<u64> {
    let live = lock(&LIVE);
    let served = live
        .iter()
        .flatten()
        .filter(|(_, entry)| matches!(entry, Entry::Served { pool: p, .. } if p.handle == pool));
    served.map(|(base, _)| *base).collect()
}
