//! The shim's own code on a device: modules, launches, and the copies that go with them.
//!
//! None of these calls concerns a capture of the program's: the caller relaxes the thread's capture mode
//! ([`super::Relaxed`]), and uses a stream that does not capture.

use std::ffi::{CStr, c_uint, c_void};
use std::ptr;

use greenboost_abi::*;

use super::{Result, check, raw};
use crate::hooks::{MISSING, real};
use crate::tier::map::Handle;

/// Loads a module from PTX into the current context. What it takes of VRAM may be taken only by [`function`].
pub fn load(ptx: &CStr) -> Result<Handle> {
    let mut module = ptr::null_mut();
    // SAFETY: PTX ends with a NUL; writes one handle.
    check(unsafe { real::cuModuleLoadData(&mut module, ptx.as_ptr().cast()) })?;
    Ok(module.into())
}

/// Unloads it.
///
/// # Safety
/// It came from [`load`] in the current context, and none of its functions runs or is used again.
pub unsafe fn unload(module: Handle) -> Result<()> {
    // SAFETY: the caller's promise.
    check(unsafe { real::cuModuleUnload(module.0 as CUmodule) })
}

/// A function of a module, its code on the device: a launch loads nothing more (lazy loading would have it wait for the
/// context, or be refused, then: CUDA C++ Programming Guide, "Lazy Loading").
///
/// # Safety
/// A module of the current context.
pub unsafe fn function(module: Handle, name: &CStr) -> Result<Handle> {
    let mut function = ptr::null_mut();
    // SAFETY: the caller's promise; writes one handle.
    unsafe {
        check(raw::cuModuleGetFunction(
            &mut function,
            module.0 as CUmodule,
            name.as_ptr(),
        ))?;
        // Driver 12.4. Before it, asking for the function is said to load it.
        match raw::cuFuncLoad(function) {
            MISSING => {}
            code => check(code)?,
        }
    }
    Ok(function.into())
}

/// Launches a function whose parameters are 64-bit integers, on a grid of one dimension.
///
/// # Safety
/// A function of the current context with so many parameters, on a stream of that context. What it reads and writes is
/// mapped until it has ended, and nobody minds.
pub unsafe fn launch(
    function: Handle,
    stream: Handle,
    blocks: u32,
    threads: u32,
    arguments: &[u64],
) -> Result<()> {
    let mut pointers: Vec<*mut c_void> = arguments
        .iter()
        .map(|a| ptr::from_ref(a).cast_mut().cast())
        .collect();
    let one: c_uint = 1;
    // SAFETY: the caller's promise; the arguments are read during the call.
    check(unsafe {
        real::cuLaunchKernel(
            function.0 as CUfunction,
            blocks,
            one,
            one,
            threads,
            one,
            one,
            0,
            stream.0 as CUstream,
            pointers.as_mut_ptr(),
            ptr::null_mut(),
        )
    })
}

/// Copies from pinned host memory, in stream order.
///
/// # Safety
/// Both hold so many bytes until the copy has ended, and nothing else uses the destination.
pub unsafe fn upload(to: CUdeviceptr, from: *const u8, bytes: usize, stream: Handle) -> Result<()> {
    let stream = stream.0 as CUstream;
    // SAFETY: the caller's promise.
    check(unsafe { real::cuMemcpyHtoDAsync_v2(to, from.cast(), bytes, stream) })
}

/// Copies to pinned host memory, in stream order.
///
/// # Safety
/// As for [`upload`].
pub unsafe fn download(to: *mut u8, from: CUdeviceptr, bytes: usize, stream: Handle) -> Result<()> {
    let stream = stream.0 as CUstream;
    // SAFETY: the caller's promise.
    check(unsafe { real::cuMemcpyDtoHAsync_v2(to.cast(), from, bytes, stream) })
}

/// Sets bytes to zero, in stream order.
///
/// # Safety
/// Nothing else uses so many bytes there until it has ended.
pub unsafe fn clear(to: CUdeviceptr, bytes: usize, stream: Handle) -> Result<()> {
    // SAFETY: the caller's promise.
    check(unsafe { raw::cuMemsetD8Async(to, 0, bytes, stream.0 as CUstream) })
}

/// Frees what [`super::mem_alloc`] gave. The driver waits for the device first (measured).
///
/// # Safety
/// Nobody uses it again.
pub unsafe fn mem_free(address: CUdeviceptr) -> Result<()> {
    // SAFETY: the caller's promise.
    check(unsafe { real::cuMemFree_v2(address) })
}
