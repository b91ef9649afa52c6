//! Sharing by legacy handles: made for `cuMemAlloc` memory, refused for mapped memory (measured).
//!
//! With `FAKE_CUDA_SHARED` a handle can be opened by another process: the memory is found through the descriptors of the
//! process that made it, so it must be alive. What is opened is charged where it was made.
use core::ffi::c_uint;
use std::fs::File;

use greenboost_abi::{
    CUDA_ERROR_INVALID_CONTEXT, CUDA_ERROR_INVALID_HANDLE, CUDA_ERROR_INVALID_VALUE,
    CUDA_ERROR_NOT_SUPPORTED,
};

use crate::abi::{Out, Res};
use crate::config::config;
use crate::device;
use crate::misuse::misuse;
use crate::phys::{Phys, Place};
use crate::queue::drain_where;
use crate::world::{World, world};

/// First word of a handle: what does not begin so was not made here.
const MAGIC: u64 = u64::from_le_bytes(*b"fakeipc\x01");
/// `CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS`, without which opening is refused.
const LAZY_ENABLE_PEER_ACCESS: c_uint = 1;

/// `CUipcMemHandle`
#[repr(C)]
#[derive(Clone, Copy)]
pub struct MemHandle {
    magic: u64,
    pid: u64,
    /// Of the object, in the process that made it; -1 where it kept none.
    fd: i64,
    device: u64,
    /// Of the allocation in its block.
    offset: u64,
    size: u64,
    block: u64,
    id: u64,
}

/// An allocation of another process that is open here.
pub(crate) struct Opened {
    /// Process and allocation there.
    of: (u64, u64),
    ctx: usize,
    count: u32,
}

fn get(va: u64) -> Res<MemHandle> {
    let w = world();
    let (start, alloc) = w
        .alloc_of(va)
        .filter(|(start, a)| a.pool == 0 && !w.opened.contains_key(start))
        .ok_or(CUDA_ERROR_INVALID_VALUE)?;
    let (_, mapping) = w.space.mapping_of(start).ok_or(CUDA_ERROR_INVALID_VALUE)?;
    Ok(MemHandle {
        magic: MAGIC,
        pid: u64::from(std::process::id()),
        fd: mapping.phys.descriptor(),
        device: alloc.device as u64,
        offset: start - alloc.block,
        size: alloc.size,
        block: mapping.size,
        id: alloc.id,
    })
}

fn open(handle: MemHandle, flags: c_uint) -> Res<u64> {
    if flags != LAZY_ENABLE_PEER_ACCESS {
        return Err(CUDA_ERROR_INVALID_VALUE);
    }
    if handle.magic != MAGIC {
        return Err(CUDA_ERROR_INVALID_VALUE);
    }
    if handle.pid == u64::from(std::process::id()) {
        return Err(CUDA_ERROR_INVALID_CONTEXT);
    }
    if config().shared.is_none() {
        return Err(CUDA_ERROR_NOT_SUPPORTED);
    }
    let mut w = world();
    let ctx = w.here()?;
    let of = (handle.pid, handle.id);
    let known = w
        .opened
        .iter_mut()
        .find(|(_, o)| o.of == of && o.ctx == ctx);
    if let Some((va, opened)) = known {
        opened.count += 1;
        return Ok(*va);
    }
    let device = device::check(handle.device as i32)?;
    let path = format!("/proc/{}/fd/{}", handle.pid, handle.fd);
    let name = std::fs::read_link(&path).map_err(|_| CUDA_ERROR_INVALID_HANDLE)?;
    if !name
        .to_string_lossy()
        .starts_with(&format!("/memfd:fakecuda-d{device}"))
    {
        return Err(CUDA_ERROR_INVALID_HANDLE);
    }
    let file = File::options()
        .read(true)
        .write(true)
        .open(&path)
        .map_err(|_| CUDA_ERROR_INVALID_HANDLE)?;
    let long_enough = file.metadata().is_ok_and(|m| m.len() == handle.block);
    if !long_enough || handle.offset + handle.size > handle.block {
        return Err(CUDA_ERROR_INVALID_HANDLE);
    }
    let phys = Phys::imported(Place::Device(device), handle.block, file.into())?;
    let here = w.contexts[&ctx].device;
    let va = w.add_opened(ctx, device, here, phys, handle.offset, handle.size)?;
    w.opened.insert(va, Opened { of, ctx, count: 1 });
    Ok(va)
}

/// Waits for the device first, whether it is the last close or not (measured).
fn close(va: u64) -> Res {
    let mut w = world();
    let ctx = match w.opened.get(&va) {
        Some(opened) => opened.ctx,
        None => return Err(CUDA_ERROR_INVALID_VALUE),
    };
    let device = w.contexts.get(&ctx).map(|c| c.device);
    w = drain_where(w, |s| Some(s.device) == device);
    let Some(opened) = w.opened.get_mut(&va) else {
        return Err(CUDA_ERROR_INVALID_VALUE);
    };
    opened.count -= 1;
    if opened.count > 0 {
        return Ok(());
    }
    let end = va + w.allocs.get(&va).map_or(0, |a| a.size);
    if let Some((name, at)) = w.flight.touching(va, end) {
        misuse!("ipc close of {va:#x}..{end:#x} with work in flight ({name} at {at:#x})");
    }
    w.opened.remove(&va);
    w.free_alloc(va);
    Ok(())
}

impl World {
    /// What a context opened goes with it.
    pub(crate) fn forget_opened(&mut self, ctx: usize) {
        self.opened.retain(|_, o| o.ctx != ctx);
    }
}

api! {
    Context cuIpcGetMemHandle { 4010 cuIpcGetMemHandle Legacy } (out: Out<MemHandle>, va: u64) |_f| {
        out.check()?;
        out.set(get(va)?)
    }
    Context cuIpcOpenMemHandle {
        4010 cuIpcOpenMemHandle Legacy,
        11000 cuIpcOpenMemHandle_v2 Legacy,
    } (va: Out<u64>, handle: MemHandle, flags: c_uint) |_f| {
        va.check()?;
        va.set(open(handle, flags)?)
    }
    Context cuIpcCloseMemHandle { 4010 cuIpcCloseMemHandle Legacy } (va: u64) |_f| { close(va) }
    Context cuMemGetHandleForAddressRange { 11070 cuMemGetHandleForAddressRange Legacy } (handle: usize, va: u64, size: usize, kind: c_uint, flags: u64) |_f| {
        // No dma-buf here.
        let _ = (handle, va, size, kind, flags);
        Err(CUDA_ERROR_NOT_SUPPORTED)
    }
}
