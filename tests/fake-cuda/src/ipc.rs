//! Sharing by legacy handles: made for `cuMemAlloc` memory, refused for mapped memory (measured).
use core::ffi::c_uint;

use greenboost_abi::{CUDA_ERROR_INVALID_VALUE, CUDA_ERROR_NOT_SUPPORTED};

use crate::abi::Out;
use crate::world::world;

/// `CUipcMemHandle`
#[repr(C)]
#[derive(Clone, Copy)]
pub struct MemHandle {
    pid: u64,
    va: u64,
    size: u64,
    id: u64,
    rest: [u64; 4],
}

api! {
    Context cuIpcGetMemHandle { 4010 cuIpcGetMemHandle Legacy } (out: Out<MemHandle>, va: u64) |_f| {
        out.check()?;
        let w = world();
        let (start, alloc) = w.alloc_of(va).filter(|(_, a)| a.pool == 0).ok_or(CUDA_ERROR_INVALID_VALUE)?;
        out.set(MemHandle { pid: u64::from(std::process::id()), va: start, size: alloc.size, id: alloc.id, rest: [0; 4] })
    }
    Context cuIpcOpenMemHandle {
        4010 cuIpcOpenMemHandle Legacy,
        11000 cuIpcOpenMemHandle_v2 Legacy,
    } (va: Out<u64>, handle: MemHandle, flags: c_uint) |_f| {
        // Opening in another process is not simulated.
        let _ = (va, handle, flags);
        Err(CUDA_ERROR_NOT_SUPPORTED)
    }
    Context cuIpcCloseMemHandle { 4010 cuIpcCloseMemHandle Legacy } (va: u64) |_f| {
        let _ = va;
        Err(CUDA_ERROR_INVALID_VALUE)
    }
    Context cuMemGetHandleForAddressRange { 11070 cuMemGetHandleForAddressRange Legacy } (handle: usize, va: u64, size: usize, kind: c_uint, flags: u64) |_f| {
        // No dma-buf here.
        let _ = (handle, va, size, kind, flags);
        Err(CUDA_ERROR_NOT_SUPPORTED)
    }
}
