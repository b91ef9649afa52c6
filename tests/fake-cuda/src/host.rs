//! Host memory that the device knows: pinned, registered, managed.
use core::ffi::{c_int, c_uint};

use greenboost_abi::{CUDA_ERROR_INVALID_VALUE, CUDA_ERROR_OUT_OF_MEMORY, CUmemLocation};

use crate::abi::{Out, Res};
use crate::error::{HOST_MEMORY_ALREADY_REGISTERED, HOST_MEMORY_NOT_REGISTERED};
use crate::misuse::misuse;
use crate::phys::{Place, charge, discharge};
use crate::queue::drain_where;
use crate::world::{Guard, World, serial, world};

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sort {
    Allocated,
    Registered,
    Managed,
}

pub(crate) struct HostRange {
    pub size: u64,
    pub sort: Sort,
    pub flags: c_uint,
    pub ctx: usize,
    pub device: usize,
    pub id: u64,
}

impl World {
    pub(crate) fn host_range(&self, va: u64) -> Option<(u64, &HostRange)> {
        let (&start, range) = self.host.range(..=va).next_back()?;
        (va - start < range.size).then_some((start, range))
    }

    pub(crate) fn managed(&self, va: u64) -> bool {
        self.host.get(&va).is_some_and(|r| r.sort == Sort::Managed)
    }

    /// What was allocated or registered in a context goes with it (measured).
    pub(crate) fn free_host_memory(&mut self, ctx: usize) {
        for (va, range) in self.host.extract_if(.., |_, r| r.ctx == ctx) {
            if range.sort != Sort::Managed {
                discharge(Place::Host, range.size);
            }
            if range.sort == Sort::Registered {
                self.lapsed.insert(va);
                continue;
            }
            // SAFETY: made by `take`, and its owner is gone.
            unsafe { libc::munmap(va as *mut _, range.size.next_multiple_of(4096) as usize) };
        }
    }

    pub(crate) fn free_managed(&mut self, va: u64) -> Res {
        if let Some(range) = self.host.remove(&va) {
            // SAFETY: made by `take`, and the program says that it is done with it.
            unsafe { libc::munmap(va as *mut _, range.size as usize) };
        }
        Ok(())
    }
}

/// Readable and writable pages, as the driver would hand out.
fn take(size: u64) -> Res<u64> {
    let pages = size
        .checked_next_multiple_of(4096)
        .ok_or(CUDA_ERROR_OUT_OF_MEMORY)?;
    // SAFETY: fresh anonymous memory at an address the kernel picks.
    let got = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            pages as usize,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        )
    };
    if got == libc::MAP_FAILED {
        Err(CUDA_ERROR_OUT_OF_MEMORY)
    } else {
        Ok(got as u64)
    }
}

fn add(w: &mut World, va: u64, size: u64, sort: Sort, flags: c_uint) -> Res {
    let ctx = w.here()?;
    let device = w.contexts[&ctx].device;
    w.host.insert(
        va,
        HostRange {
            size,
            sort,
            flags,
            ctx,
            device,
            id: serial(),
        },
    );
    Ok(())
}

fn alloc(size: u64, flags: c_uint) -> Res<u64> {
    if flags & !7 != 0 {
        return Err(CUDA_ERROR_INVALID_VALUE);
    }
    // No bytes are no error (measured).
    if size == 0 {
        return Ok(0);
    }
    let mut w = world();
    w.refuse_unsafe("cuMemHostAlloc")?;
    charge(Place::Host, size)?;
    let va = take(size).inspect_err(|_| discharge(Place::Host, size))?;
    add(&mut w, va, size, Sort::Allocated, flags)?;
    Ok(va)
}

/// Everything that could still touch the range must be done first; the real call waits as well.
fn settle(w: Guard) -> Guard {
    drain_where(w, |_| true)
}

fn free(va: u64) -> Res {
    if va == 0 {
        return Ok(());
    }
    let mut w = world();
    w.refuse_unsafe("cuMemFreeHost")?;
    if w.host.get(&va).is_none_or(|r| r.sort != Sort::Allocated) {
        misuse!("free of host memory {va:#x}, which was not allocated here");
        return Err(CUDA_ERROR_INVALID_VALUE);
    }
    w = settle(w);
    if let Some(range) = w.host.remove(&va) {
        discharge(Place::Host, range.size);
        // SAFETY: made by `take`, and the program says that it is done with it.
        unsafe { libc::munmap(va as *mut _, range.size.next_multiple_of(4096) as usize) };
    }
    Ok(())
}

/// Whether the kernel would let the driver pin these pages (measured: not those of a writable shared file).
fn pinnable(va: u64, size: u64, read_only: bool) -> bool {
    let Ok(maps) = std::fs::read_to_string("/proc/self/maps") else {
        return true;
    };
    let (mut at, end) = (va, va + size);
    for line in maps.lines() {
        let mut fields = line.split_whitespace();
        let Some((from, to)) = fields.next().and_then(|r| r.split_once('-')) else {
            continue;
        };
        let (Ok(from), Ok(to)) = (u64::from_str_radix(from, 16), u64::from_str_radix(to, 16))
        else {
            continue;
        };
        if to <= at || from >= end {
            continue;
        }
        let rights = fields.next().unwrap_or("");
        let path = fields.nth(3).unwrap_or("");
        let memory = path.is_empty()
            || ["[", "/memfd:", "/dev/shm/", "/dev/zero", "/SYSV"]
                .iter()
                .any(|p| path.starts_with(p));
        let writable_file = rights.contains('w') && rights.ends_with('s') && !memory;
        let denied = !rights.starts_with('r') || (!read_only && !rights.contains('w'));
        if from > at || writable_file || denied {
            return false;
        }
        at = to;
        if at >= end {
            return true;
        }
    }
    false
}

fn register(va: u64, size: u64, flags: c_uint) -> Res {
    if va == 0 || size == 0 || flags & !0xf != 0 {
        return Err(CUDA_ERROR_INVALID_VALUE);
    }
    let end = va.checked_add(size).ok_or(CUDA_ERROR_INVALID_VALUE)?;
    let mut w = world();
    w.refuse_unsafe("cuMemHostRegister")?;
    if w.host_range(va).is_some() || w.host.range(va..end).next().is_some() {
        return Err(HOST_MEMORY_ALREADY_REGISTERED);
    }
    if w.is_device_address(va) || !pinnable(va, size, flags & 8 != 0) {
        return Err(CUDA_ERROR_INVALID_VALUE);
    }
    charge(Place::Host, size)?;
    w.lapsed.remove(&va);
    add(&mut w, va, size, Sort::Registered, flags)
}

fn unregister(va: u64) -> Res {
    let mut w = world();
    w.refuse_unsafe("cuMemHostUnregister")?;
    // It ended with its context, which the program need not know.
    if w.lapsed.remove(&va) {
        return Err(HOST_MEMORY_NOT_REGISTERED);
    }
    if w.host.get(&va).is_none_or(|r| r.sort != Sort::Registered) {
        misuse!("unregister of host memory {va:#x}, which is not registered");
        // Inside a registration, or in memory that CUDA allocated, it is another error (measured).
        return Err(match w.host_range(va) {
            Some(_) => CUDA_ERROR_INVALID_VALUE,
            None => HOST_MEMORY_NOT_REGISTERED,
        });
    }
    w = settle(w);
    if let Some(range) = w.host.remove(&va) {
        discharge(Place::Host, range.size);
    }
    Ok(())
}

fn managed(size: u64, flags: c_uint) -> Res<u64> {
    if size == 0 || !matches!(flags, 1 | 2) {
        return Err(CUDA_ERROR_INVALID_VALUE);
    }
    let mut w = world();
    w.refuse_unsafe("cuMemAllocManaged")?;
    let va = take(size)?;
    add(&mut w, va, size, Sort::Managed, flags)?;
    Ok(va)
}

/// Managed memory takes hints; where it lies makes no difference here.
fn hint(va: u64) -> Res {
    match world().host_range(va) {
        Some((_, range)) if range.sort == Sort::Managed => Ok(()),
        _ => Err(CUDA_ERROR_INVALID_VALUE),
    }
}

api! {
    Context cuMemAllocHost { 3020 cuMemAllocHost_v2 Legacy } (va: Out<u64>, size: usize) |_f| {
        va.check()?;
        va.set(alloc(size as u64, 0)?)
    }
    Context cuMemHostAlloc { 2020 cuMemHostAlloc Legacy } (va: Out<u64>, size: usize, flags: c_uint) |_f| {
        va.check()?;
        va.set(alloc(size as u64, flags)?)
    }
    Context cuMemFreeHost { 2000 cuMemFreeHost Legacy } (va: u64) |_f| { free(va) }
    Context cuMemHostRegister { 6050 cuMemHostRegister_v2 Legacy } (va: u64, size: usize, flags: c_uint) |_f| {
        register(va, size as u64, flags)
    }
    // Like `cuMemFree` it finds the owner by the address; not measured.
    Init cuMemHostUnregister { 4000 cuMemHostUnregister Legacy } (va: u64) |_f| { unregister(va) }
    Context cuMemHostGetDevicePointer { 3020 cuMemHostGetDevicePointer_v2 Legacy } (device: Out<u64>, va: u64, flags: c_uint) |_f| {
        if flags != 0 || world().host_range(va).is_none_or(|(_, r)| r.sort == Sort::Managed) {
            return Err(CUDA_ERROR_INVALID_VALUE);
        }
        device.set(va)
    }
    Context cuMemHostGetFlags { 2030 cuMemHostGetFlags Legacy } (flags: Out<c_uint>, va: u64) |_f| {
        let w = world();
        let (_, range) = w.host_range(va).filter(|(_, r)| r.sort == Sort::Allocated).ok_or(CUDA_ERROR_INVALID_VALUE)?;
        // Pinned memory is always mapped under unified addressing.
        flags.set(range.flags | 2)
    }
    Context cuMemAllocManaged { 6000 cuMemAllocManaged Legacy } (va: Out<u64>, size: usize, flags: c_uint) |_f| {
        va.check()?;
        va.set(managed(size as u64, flags)?)
    }
    Context cuMemAdvise { 8000 cuMemAdvise Legacy } (va: u64, size: usize, advice: c_int, device: c_int) |_f| {
        let _ = (size, advice, device);
        hint(va)
    }
    Context cuMemAdvise { 12020 cuMemAdvise_v2 Legacy } (va: u64, size: usize, advice: c_int, location: CUmemLocation) |_f| {
        let _ = (size, advice, location);
        hint(va)
    }
    Context cuMemPrefetchAsync {
        8000 cuMemPrefetchAsync Legacy,
        8000 cuMemPrefetchAsync_ptsz PerThread,
    } (va: u64, size: usize, device: c_int, stream: usize) |f| {
        let _ = (size, device);
        world().stream(stream, f)?;
        hint(va)
    }
    Context cuMemPrefetchAsync {
        12020 cuMemPrefetchAsync_v2 Legacy,
        12020 cuMemPrefetchAsync_v2_ptsz PerThread,
    } (va: u64, size: usize, location: CUmemLocation, flags: c_uint, stream: usize) |f| {
        let _ = (size, location, flags);
        world().stream(stream, f)?;
        hint(va)
    }
}
