//! Device memory by size: `cuMemAlloc` and its kin.
//!
//! Up to 2 MiB an allocation is cut from a 2 MiB block; beyond that it has a block of its own. A pool's allocations are
//! cut from blocks of 32 MiB and multiples of it (measured).
use core::ffi::c_uint;

use greenboost_abi::{CUDA_ERROR_INVALID_VALUE, CUDA_ERROR_OUT_OF_MEMORY};

use crate::abi::{Out, Res};
use crate::config::config;
use crate::misuse::{leak, misuse};
use crate::phys::{GRANULE, Phys, Place};
use crate::queue::drain_where;
use crate::va::{Owner, READ_WRITE};
use crate::world::{World, serial, world};

const ALIGN: u64 = 512;

/// A mapped piece of driver memory, whole or cut into allocations.
pub(crate) struct Block {
    pub size: u64,
    pub ctx: usize,
    pub device: usize,
    cut: bool,
    /// Memory that stays reserved for a pool when its allocation is freed.
    pub pool: usize,
}

/// One live allocation of driver memory.
pub(crate) struct Alloc {
    pub size: u64,
    pub ctx: usize,
    pub device: usize,
    pub block: u64,
    pub id: u64,
    /// The pool it came from, 0 for `cuMemAlloc`.
    pub pool: usize,
    /// `cuMemFreeAsync` was called: the program may not use it in later operations.
    pub doomed: bool,
    /// On which stream.
    pub freed_on: u64,
}

impl World {
    pub(crate) fn alloc_of(&self, va: u64) -> Option<(u64, &Alloc)> {
        let (&start, alloc) = self.allocs.range(..=va).next_back()?;
        (va - start < alloc.size).then_some((start, alloc))
    }

    /// Driver memory is used within one allocation: beyond its end lies somebody else's data.
    pub(crate) fn inside_one_alloc(&self, va: u64, end: u64) -> Result<(), &'static str> {
        match self.alloc_of(va) {
            Some((start, alloc)) if end <= start + alloc.size => Ok(()),
            Some(_) => Err("the range leaves its allocation"),
            None => Err("freed or never allocated"),
        }
    }

    /// A fresh block of driver memory, mapped for its device.
    pub(crate) fn add_block(
        &mut self,
        ctx: usize,
        device: usize,
        size: u64,
        cut: bool,
        pool: usize,
    ) -> Res<u64> {
        let owner = self.pools.get(&pool);
        if owner.is_some_and(|p| p.most > 0 && self.reserved(pool) + size > p.most) {
            return Err(CUDA_ERROR_OUT_OF_MEMORY);
        }
        let place = owner.map_or(Place::Device(device), |p| p.place);
        // Where devices are shared, other processes may want to open it.
        let exportable = owner.is_some_and(|p| p.exportable) || config().shared.is_some();
        let phys = Phys::new(place, size, exportable)?;
        let align = if pool == 0 {
            GRANULE
        } else {
            config().pool_granule
        };
        let start = self.space.reserve(size, align, 0, Owner::Driver)?;
        self.space.map(start, phys, 0);
        if let Some(m) = self.space.mappings.get_mut(&start)
            && place != Place::Host
        {
            m.rights[device] = READ_WRITE;
        }
        if place == Place::Host {
            self.space.set_host(start, READ_WRITE)?;
        }
        self.blocks.insert(
            start,
            Block {
                size,
                ctx,
                device,
                cut,
                pool,
            },
        );
        Ok(start)
    }

    /// A block that another process made, with one allocation of it.
    pub(crate) fn adopt_block(
        &mut self,
        ctx: usize,
        pool: usize,
        phys: std::sync::Arc<Phys>,
        offset: u64,
        size: u64,
    ) -> Res<u64> {
        let device = self.contexts[&ctx].device;
        self.adopt_for(ctx, (device, device), pool, phys, (offset, size))
    }

    /// Maps another process's block for the devices here, and enters the one allocation of it that was opened.
    pub(crate) fn add_opened(
        &mut self,
        ctx: usize,
        device: usize,
        here: usize,
        phys: std::sync::Arc<Phys>,
        offset: u64,
        size: u64,
    ) -> Res<u64> {
        self.adopt_for(ctx, (device, here), 0, phys, (offset, size))
    }

    fn adopt_for(
        &mut self,
        ctx: usize,
        (device, here): (usize, usize),
        pool: usize,
        phys: std::sync::Arc<Phys>,
        (offset, size): (u64, u64),
    ) -> Res<u64> {
        let span = phys.size;
        let start = self.space.reserve(span, GRANULE, 0, Owner::Driver)?;
        self.space.map(start, phys, 0);
        if let Some(m) = self.space.mappings.get_mut(&start) {
            m.rights[device] = READ_WRITE;
            m.rights[here] = READ_WRITE;
        }
        let block = Block {
            size: span,
            ctx,
            device,
            cut: false,
            pool,
        };
        self.blocks.insert(start, block);
        let alloc = Alloc {
            size,
            ctx,
            device,
            block: start,
            id: serial(),
            pool,
            doomed: false,
            freed_on: 0,
        };
        self.allocs.insert(start + offset, alloc);
        Ok(start + offset)
    }

    pub(crate) fn drop_block(&mut self, start: u64) {
        self.space.unmap(start);
        self.space.unreserve(start);
        self.blocks.remove(&start);
    }

    fn gap(&self, block: u64, size: u64) -> Option<u64> {
        let end = block + self.blocks.get(&block).map_or(0, |b| b.size);
        let mut at = block;
        for (&start, alloc) in self.allocs.range(block..end) {
            if at + size <= start {
                return Some(at);
            }
            at = (start + alloc.size).next_multiple_of(ALIGN);
        }
        (at + size <= end).then_some(at)
    }

    /// Cuts or maps a new allocation, for `cuMemAlloc` (pool 0) or for a pool.
    pub(crate) fn alloc(&mut self, ctx: usize, device: usize, size: u64, pool: usize) -> Res<u64> {
        let same = |b: &Block| b.device == device && b.pool == pool && (pool != 0 || b.ctx == ctx);
        let (va, block) = if size < GRANULE || pool != 0 {
            let cut = self.blocks.iter().filter(|(_, b)| b.cut && same(b));
            let found = cut
                .map(|(&start, _)| start)
                .find_map(|start| Some((self.gap(start, size)?, start)));
            let (va, block) = match found {
                Some(place) => place,
                None => {
                    let start = self.add_cut_block(ctx, device, size, pool)?;
                    (start, start)
                }
            };
            if size < GRANULE {
                self.paint(va, size, 0xa5);
            }
            (va, block)
        } else {
            let whole = size
                .checked_next_multiple_of(GRANULE)
                .ok_or(CUDA_ERROR_OUT_OF_MEMORY)?;
            let start = self.add_block(ctx, device, whole, false, pool)?;
            (start, start)
        };
        self.allocs.insert(
            va,
            Alloc {
                size,
                ctx,
                device,
                block,
                id: serial(),
                pool,
                doomed: false,
                freed_on: 0,
            },
        );
        Ok(va)
    }

    /// Makes memory that is mapped already an allocation of this context, which `cuMemFree` ends.
    pub(crate) fn adopt(&mut self, ctx: usize, device: usize, start: u64, size: u64) {
        self.blocks.insert(
            start,
            Block {
                size,
                ctx,
                device,
                cut: false,
                pool: 0,
            },
        );
        self.allocs.insert(
            start,
            Alloc {
                size,
                ctx,
                device,
                block: start,
                id: serial(),
                pool: 0,
                doomed: false,
                freed_on: 0,
            },
        );
    }

    /// A block to cut an allocation of this size from. Where a pool's granule is not to be had, less may be.
    fn add_cut_block(&mut self, ctx: usize, device: usize, size: u64, pool: usize) -> Res<u64> {
        let rounded = |granule| {
            size.checked_next_multiple_of(granule)
                .ok_or(CUDA_ERROR_OUT_OF_MEMORY)
        };
        if pool == 0 {
            return self.add_block(ctx, device, GRANULE, true, pool);
        }
        match self.add_block(ctx, device, rounded(config().pool_granule)?, true, pool) {
            Err(CUDA_ERROR_OUT_OF_MEMORY) => {
                self.add_block(ctx, device, rounded(GRANULE)?, true, pool)
            }
            other => other,
        }
    }

    /// Whether no live allocation lies in the block.
    pub(crate) fn vacant(&self, block: u64) -> bool {
        let size = self.blocks.get(&block).map_or(0, |b| b.size);
        self.allocs.range(block..block + size).next().is_none()
    }

    /// Sets a part of a block. New memory holds what was there before: here, a pattern that no test expects.
    pub(crate) fn paint(&self, va: u64, size: u64, byte: u8) {
        if let Some((start, m)) = self
            .space
            .mapping_of(va)
            .filter(|(start, m)| va + size <= start + m.size)
        {
            // SAFETY: inside the mapping's object, in a part that no operation can name yet.
            unsafe {
                m.phys
                    .base
                    .add((va - start) as usize)
                    .write_bytes(byte, size as usize)
            };
        }
    }

    pub(crate) fn free_alloc(&mut self, va: u64) {
        let Some(alloc) = self.allocs.remove(&va) else {
            return;
        };
        self.synchronous.remove(&va);
        if alloc.pool == 0 && self.vacant(alloc.block) {
            self.drop_block(alloc.block);
        }
    }

    pub(crate) fn free_context_memory(&mut self, ctx: usize) {
        let mine: Vec<u64> = self
            .allocs
            .iter()
            .filter(|(_, a)| a.ctx == ctx && a.pool == 0)
            .map(|(va, _)| *va)
            .collect();
        for va in mine {
            self.free_alloc(va);
        }
        self.free_host_memory(ctx);
        self.forget_opened(ctx);
    }
}

fn alloc(size: u64) -> Res<u64> {
    let mut w = world();
    let ctx = w.here()?;
    w.refuse_unsafe("cuMemAlloc")?;
    if size == 0 {
        return Err(CUDA_ERROR_INVALID_VALUE);
    }
    let device = w.contexts[&ctx].device;
    if crate::phys::free(device) < size {
        crate::pool::trim_device(&mut w, device);
    }
    let owner = w.owner(ctx);
    w.alloc(owner, device, size, 0)
}

/// `cuMemFree` waits for the whole device, as the real one was measured to do. Memory of a pool it frees at once: the
/// program says that it is done with it.
fn free(va: u64) -> Res {
    let mut w = world();
    w.refuse_unsafe("cuMemFree")?;
    if va == 0 {
        return Ok(());
    }
    if w.managed(va) {
        return w.free_managed(va);
    }
    if w.opened.contains_key(&va) {
        // Another process's: it is closed, not freed.
        return Err(CUDA_ERROR_INVALID_VALUE);
    }
    let variable = w.modules.values().any(|m| m.owns(va));
    let Some(alloc) = w.allocs.get(&va).filter(|a| !a.doomed && !variable) else {
        misuse!("free of {va:#x}, which is no allocation");
        return Err(CUDA_ERROR_INVALID_VALUE);
    };
    let (device, pool, end) = (alloc.device, alloc.pool, va + alloc.size);
    if !w.kept_by_program(va) {
        misuse!("free of {va:#x}, which its graph frees");
        return Err(CUDA_ERROR_INVALID_VALUE);
    }
    if pool == 0 {
        w = drain_where(w, |s| s.device == device);
        // And for other devices' copies from the memory (not measured).
        if w.flight.touching(va, end).is_some() {
            w = drain_where(w, |_| true);
        }
    }
    let Some(alloc) = w.allocs.get(&va) else {
        misuse!("free of {va:#x} by two threads at once");
        return Err(CUDA_ERROR_INVALID_VALUE);
    };
    let end = va + alloc.size;
    w.in_flight_misuse("free", va, end);
    if w.allocs[&va].pool != 0 {
        crate::pool::give_back(&mut w, va);
    } else {
        w.free_alloc(va);
    }
    Ok(())
}

/// What the range attributes say: the allocation, or the whole reservation.
pub(crate) fn range(w: &World, va: u64) -> Option<(u64, u64)> {
    if let Some((start, alloc)) = w.alloc_of(va) {
        return Some((start, alloc.size));
    }
    if w.space.mapping_of(va).is_some_and(|(_, m)| m.handle != 0) {
        return w.space.reservation_of(va).map(|(start, r)| (start, r.size));
    }
    w.host_range(va).map(|(start, range)| (start, range.size))
}

/// What `cuMemGetAddressRange` says: the allocation; of a reserved range only the mapping around the address (measured).
fn around(w: &World, va: u64) -> Option<(u64, u64)> {
    match w.space.mapping_of(va) {
        Some((start, m)) if m.handle != 0 => Some((start, m.size)),
        _ => range(w, va),
    }
}

pub(crate) fn report_leaks() {
    let w = world();
    for (va, alloc) in w
        .allocs
        .iter()
        .filter(|(va, _)| !w.modules.values().any(|m| m.owns(**va)))
    {
        leak(format_args!(
            "allocation of {} bytes at {va:#x}",
            alloc.size
        ));
    }
    for (handle, entry) in w.handles.iter().filter(|(_, e)| e.refs > 0) {
        leak(format_args!(
            "handle {handle:#x} of {} bytes, {} references",
            entry.phys.size, entry.refs
        ));
    }
    for (va, m) in w.space.mappings.iter().filter(|(_, m)| m.handle != 0) {
        leak(format_args!("mapping of {} bytes at {va:#x}", m.size));
    }
    for (va, r) in w
        .space
        .reservations
        .iter()
        .filter(|(_, r)| r.owner == Owner::Program)
    {
        leak(format_args!("reservation of {} bytes at {va:#x}", r.size));
    }
    if w.imported() > 0 {
        leak(format_args!("{} pieces of external memory", w.imported()));
    }
    for (va, range) in &w.host {
        leak(format_args!(
            "host memory of {} bytes at {va:#x}",
            range.size
        ));
    }
}

api! {
    Context cuMemAlloc { 3020 cuMemAlloc_v2 Legacy } (va: Out<u64>, size: usize) |_f| {
        va.check()?;
        va.set(alloc(size as u64)?)
    }
    Context cuMemAllocPitch { 3020 cuMemAllocPitch_v2 Legacy } (va: Out<u64>, pitch: Out<usize>, width: usize, height: usize, element: c_uint) |_f| {
        va.check()?;
        if width == 0 || height == 0 || !matches!(element, 4 | 8 | 16) {
            return Err(CUDA_ERROR_INVALID_VALUE);
        }
        let row = width.checked_next_multiple_of(ALIGN as usize).ok_or(CUDA_ERROR_INVALID_VALUE)?;
        let size = row.checked_mul(height).ok_or(CUDA_ERROR_INVALID_VALUE)?;
        pitch.set(row)?;
        va.set(alloc(size as u64)?)
    }
    Init cuMemFree { 3020 cuMemFree_v2 Legacy } (va: u64) |_f| { free(va) }
    Context cuMemGetAddressRange { 3020 cuMemGetAddressRange_v2 Legacy } (base: Out<u64>, size: Out<usize>, va: u64) |_f| {
        let (start, len) = around(&world(), va).ok_or(greenboost_abi::CUDA_ERROR_NOT_FOUND)?;
        base.maybe(start);
        size.maybe(len as usize);
        Ok(())
    }
}
