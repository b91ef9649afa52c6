//! Contexts: known, so that draining reaches all of them; and what was allocated in one ends with it.

use std::collections::HashMap;
use std::ffi::{c_int, c_uint, c_void};
use std::sync::{Mutex, PoisonError};

use greenboost_abi::*;

use crate::hooks::real;
use crate::tier::map::{self, Handle};
use crate::tier::{device, drain, free};
use crate::{driver, process};

/// The primary context of each device that retained it.
static PRIMARY: Mutex<Option<HashMap<CUdevice, Handle>>> = Mutex::new(None);

/// # Safety
/// After a success `out` points to the context.
unsafe fn made(result: CUresult, out: *mut CUcontext, device: CUdevice) -> CUresult {
    if result == CUDA_SUCCESS {
        // SAFETY: the driver has just written it.
        drain::context_made(unsafe { *out }, device);
    }
    result
}

macro_rules! creates {
    ($($ours:ident = $real:ident($($arg:ident: $ty:ty),*);)*) => {$(
        #[doc = concat!("Replaces `", stringify!($real), "`.")]
        ///
        /// # Safety
        /// As for the function it replaces.
        pub unsafe fn $ours(out: *mut CUcontext, $($arg: $ty,)* device: CUdevice) -> CUresult {
            // SAFETY: the program's own call.
            unsafe { made(real::$real(out, $($arg,)* device), out, device) }
        }
    )*};
}

creates! {
    create_v1 = cuCtxCreate(flags: c_uint);
    create_v2 = cuCtxCreate_v2(flags: c_uint);
    create_v3 = cuCtxCreate_v3(params: *mut c_void, count: c_int, flags: c_uint);
    create_v4 = cuCtxCreate_v4(params: *mut c_void, flags: c_uint);
}

/// Replaces `CUresult cuCtxFromGreenCtx(CUcontext *pContext, CUgreenCtx hCtx)`.
///
/// # Safety
/// As for the function it replaces.
pub unsafe fn from_green(out: *mut CUcontext, green: *mut c_void) -> CUresult {
    // SAFETY: the program's own call; after a success `out` holds the context.
    unsafe {
        let result = real::cuCtxFromGreenCtx(out, green);
        if result == CUDA_SUCCESS
            && let Ok(Ok(device)) = driver::with_context(*out, driver::current_device)
        {
            drain::context_made(*out, device);
        }
        result
    }
}

/// Replaces `CUresult cuDevicePrimaryCtxRetain(CUcontext *pctx, CUdevice dev)`.
///
/// # Safety
/// As for the function it replaces.
pub unsafe fn primary_retain(out: *mut CUcontext, device: CUdevice) -> CUresult {
    // SAFETY: the program's own call; after a success `out` holds the context.
    unsafe {
        let result = made(real::cuDevicePrimaryCtxRetain(out, device), out, device);
        if result == CUDA_SUCCESS {
            let mut primary = PRIMARY.lock().unwrap_or_else(PoisonError::into_inner);
            primary
                .get_or_insert_default()
                .insert(device, (*out).into());
        }
        result
    }
}

/// The driver has destroyed what this context held.
fn emptied(context: Handle) {
    if let Some(job) = process::job() {
        // SAFETY: destroyed by the driver, which the caller saw succeed.
        driver::without_context(|| unsafe { free::context_gone(job, context) });
    }
}

/// The driver has destroyed this context.
fn gone(context: Handle) {
    drain::context_gone(context);
    emptied(context);
}

fn destroy_with(context: CUcontext, destroy: impl FnOnce() -> CUresult) -> CUresult {
    let result = destroy();
    if result == CUDA_SUCCESS {
        gone(context.into());
    }
    result
}

/// Replaces the first `cuCtxDestroy`.
///
/// # Safety
/// As for the function it replaces.
pub unsafe fn destroy_v1(context: CUcontext) -> CUresult {
    // SAFETY: the program's own call.
    destroy_with(context, || unsafe { real::cuCtxDestroy(context) })
}

/// Replaces `CUresult cuCtxDestroy_v2(CUcontext ctx)`.
///
/// # Safety
/// As for the function it replaces.
pub unsafe fn destroy_v2(context: CUcontext) -> CUresult {
    // SAFETY: the program's own call.
    destroy_with(context, || unsafe { real::cuCtxDestroy_v2(context) })
}

fn primary(device: CUdevice) -> Option<Handle> {
    let primary = PRIMARY.lock().unwrap_or_else(PoisonError::into_inner);
    primary.as_ref()?.get(&device).copied()
}

/// After a release: the primary context is gone if it is no longer active.
fn released(result: CUresult, device: CUdevice) -> CUresult {
    if result == CUDA_SUCCESS
        && driver::primary_active(device) == Ok(false)
        && let Some(context) = primary(device)
    {
        gone(context);
    }
    result
}

/// After a reset: the primary context is empty, and lives on under the same handle for those who use it (measured).
fn reset(result: CUresult, device: CUdevice) -> CUresult {
    if result == CUDA_SUCCESS
        && let Some(context) = primary(device)
    {
        emptied(context);
    }
    result
}

macro_rules! primaries {
    ($($ours:ident = $after:ident $real:ident;)*) => {$(
        #[doc = concat!("Replaces `", stringify!($real), "`.")]
        ///
        /// # Safety
        /// As for the function it replaces.
        pub unsafe fn $ours(device: CUdevice) -> CUresult {
            // SAFETY: the program's own call.
            $after(unsafe { real::$real(device) }, device)
        }
    )*};
}

primaries! {
    primary_release_v1 = released cuDevicePrimaryCtxRelease;
    primary_release_v2 = released cuDevicePrimaryCtxRelease_v2;
    primary_reset_v1 = reset cuDevicePrimaryCtxReset;
    primary_reset_v2 = reset cuDevicePrimaryCtxReset_v2;
}

/// Replaces `CUresult cuCtxEnablePeerAccess(CUcontext peerContext, unsigned int Flags)`: `cuMemAlloc` memory of the peer
/// becomes accessible to the current context's device, ranges must be opened to it.
///
/// # Safety
/// As for the function it replaces.
pub unsafe fn enable_peer(peer: CUcontext, flags: c_uint) -> CUresult {
    // SAFETY: the program's own call.
    let result = unsafe { real::cuCtxEnablePeerAccess(peer, flags) };
    if result != CUDA_SUCCESS {
        return result;
    }
    // SAFETY: the program's context, which the driver has just accepted.
    let in_peer = unsafe { driver::with_context(peer, driver::current_device) };
    let (Ok(user), Ok(Ok(owner))) = (driver::current_device(), in_peer) else {
        return result;
    };
    let Some(job) = process::job() else {
        return result;
    };
    // The peer may have nothing yet: it is tried out in its own context.
    // SAFETY: as above.
    let owner = unsafe { driver::with_context(peer, || device::get(job, owner)) };
    let Ok(Ok(Some(owner))) = owner else {
        return result;
    };
    {
        let mut peers = owner.peers.lock().unwrap_or_else(PoisonError::into_inner);
        if user == owner.ordinal || peers.contains(&user) {
            return result;
        }
        peers.push(user);
    }
    for (base, span) in map::ranges_of(owner.ordinal) {
        // SAFETY: a range that is mapped while it is in the map. One that is freed just now is refused: no harm.
        if unsafe { driver::set_access(base, span as usize, [user]) }.is_err()
            && map::find(base).is_some()
        {
            process::wound("a range could not be opened to a peer device");
        }
    }
    result
}
