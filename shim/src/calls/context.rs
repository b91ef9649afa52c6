//! Contexts: known, so that draining reaches all of them; and what was allocated in one ends with it.

use std::collections::HashMap;
use std::ffi::{c_int, c_uint, c_void};
use std::sync::{Mutex, MutexGuard, PoisonError};

use greenboost_abi::*;

use crate::hooks::real;
use crate::tier::map::{self, Handle};
use crate::tier::{args, device, drain, execs, free, gate, later, staging};
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

/// The context of each green context, and their device.
static GREEN: Mutex<Vec<(Handle, Handle, CUdevice)>> = Mutex::new(Vec::new());

fn green() -> MutexGuard<'static, Vec<(Handle, Handle, CUdevice)>> {
    GREEN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Replaces `CUresult cuGreenCtxCreate(CUgreenCtx *phCtx, CUdevResourceDesc desc, CUdevice dev, unsigned int flags)`.
///
/// Its streams belong to a context that the program may never ask for: one handle for as long as it lives (measured).
/// It keeps the primary context alive (API doc), and memory is the latter's.
///
/// # Safety
/// As for the function it replaces.
pub unsafe fn green_create(
    out: *mut CUgreenCtx,
    resources: *mut c_void,
    device: CUdevice,
    flags: c_uint,
) -> CUresult {
    // SAFETY: the program's own call; after a success `out` holds the green context.
    unsafe {
        let result = real::cuGreenCtxCreate(out, resources, device, flags);
        if result == CUDA_SUCCESS {
            let mut context = std::ptr::null_mut();
            if driver::raw::cuCtxFromGreenCtx(&mut context, *out) == CUDA_SUCCESS {
                drain::context_made(context, device);
                green().push(((*out).into(), context.into(), device));
            }
            let mut primary = std::ptr::null_mut();
            if primary_retain(&mut primary, device) == CUDA_SUCCESS {
                real::cuDevicePrimaryCtxRelease_v2(device);
            }
        }
        result
    }
}

/// Replaces `CUresult cuGreenCtxDestroy(CUgreenCtx hCtx)`. What was allocated in it stays (API doc), unless it was the
/// last that kept the primary context.
///
/// # Safety
/// As for the function it replaces.
pub unsafe fn green_destroy(green_context: CUgreenCtx) -> CUresult {
    let handle = Handle::from(green_context);
    let known = green().iter().find(|g| g.0 == handle).copied();
    // SAFETY: the program's own call.
    let destroy = || unsafe { real::cuGreenCtxDestroy(green_context) };
    let Some((_, context, device)) = known else {
        return destroy();
    };
    let (_pass, _ending) = (gate::pass(), ending(context));
    let result = drain::context_ends(context, destroy);
    if result == CUDA_SUCCESS {
        green().retain(|g| g.0 != handle);
    }
    released(result, device)
}

/// The context whose memory it is that a thread allocates in this one.
pub fn owner_of_memory(context: Handle) -> Handle {
    let device = green().iter().find(|g| g.1 == context).map(|g| g.2);
    device.and_then(primary).unwrap_or(context)
}

/// Replaces `CUresult cuCtxAttach(CUcontext *pctx, unsigned int flags)`.
///
/// # Safety
/// As for the function it replaces.
pub unsafe fn attach(out: *mut CUcontext, flags: c_uint) -> CUresult {
    // SAFETY: the program's own call; after a success `out` holds the context.
    unsafe {
        let result = real::cuCtxAttach(out, flags);
        if result == CUDA_SUCCESS {
            drain::context_attached((*out).into());
        }
        result
    }
}

/// Replaces `CUresult cuCtxDetach(CUcontext ctx)`: the last one destroys; of a primary context it is a release (the
/// driver takes it: measured).
///
/// # Safety
/// As for the function it replaces.
pub unsafe fn detach(context: CUcontext) -> CUresult {
    // SAFETY: the program's own call.
    let detach = || unsafe { real::cuCtxDetach(context) };
    if let Some(device) = primary_of(context.into()) {
        let (_pass, _ending) = (gate::pass(), ending(context.into()));
        return released(detach(), device);
    }
    if drain::context_detaches(context.into()) {
        return destroy_with(context, detach);
    }
    let result = detach();
    if result != CUDA_SUCCESS {
        drain::context_attached(context.into());
    }
    result
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

/// Makes current again what was: the one below on the thread's stack may have been destroyed by another thread.
fn back(context: CUcontext) {
    if primary_of(context.into()).is_some() {
        // SAFETY: the handle of a primary context stays good (measured).
        let _ = unsafe { driver::push(context) };
    } else {
        drain::make_current(context.into());
    }
}

/// The driver has destroyed what this context held.
fn emptied(context: Handle) {
    if let Some(job) = process::job() {
        let release = || {
            staging::context_gone(context);
            // SAFETY: destroyed by the driver, which the caller saw succeed.
            unsafe { free::context_gone(job, context) }
        };
        driver::without_context(release, back);
    }
}

/// A context is about to end, or may be.
#[must_use]
fn ending(context: Handle) -> staging::AllPaused {
    later::context_ends(context);
    execs::context_ends(context);
    // Its functions go with it.
    args::forget();
    staging::code_ends();
    // Nothing of the shim's runs in it from here on.
    staging::pause()
}

fn destroy_with(context: CUcontext, destroy: impl FnOnce() -> CUresult) -> CUresult {
    let (_pass, _ending) = (gate::pass(), ending(context.into()));
    let result = drain::context_ends(context.into(), destroy);
    if result == CUDA_SUCCESS {
        emptied(context.into());
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

/// The device whose primary context this is.
pub fn primary_of(context: Handle) -> Option<CUdevice> {
    let primary = PRIMARY.lock().unwrap_or_else(PoisonError::into_inner);
    let mut all = primary.as_ref()?.iter();
    all.find(|(_, c)| **c == context).map(|(d, _)| *d)
}

/// After a release: the primary context is gone if it is no longer active.
fn released(result: CUresult, device: CUdevice) -> CUresult {
    if result == CUDA_SUCCESS
        && driver::primary_active(device) == Ok(false)
        && let Some(context) = primary(device)
    {
        // Its handle stays good for the driver: the next retain makes it anew (measured).
        drain::context_gone(context);
        emptied(context);
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
            let (_pass, _ending) = (gate::pass(), primary(device).map(ending));
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
    let Some((owner, user)) = pair(peer) else {
        return result;
    };
    let_in(owner, user);
    result
}

/// Opens a device's ranges to another one, which can reach its memory.
pub fn let_in(owner: &device::Device, user: CUdevice) {
    {
        let mut peers = owner.peers.lock().unwrap_or_else(PoisonError::into_inner);
        let known = peers.contains(&user);
        peers.push(user);
        staging::unseen();
        if known {
            return;
        }
    }
    // While a chunk moves its range has a hole.
    let _still = map::hold_still();
    for (base, span) in map::ranges_of(owner.ordinal) {
        // SAFETY: a range that is mapped while it is in the map. One that is freed just now is refused: no harm.
        if unsafe { driver::set_access(base, span as usize, [user]) }.is_err()
            && map::find(base).is_some()
        {
            process::wound("a range could not be opened to a peer device");
        }
    }
}

/// The peer's device, and the current context's, which reaches for the peer's memory. `None` if they are one.
fn pair(peer: CUcontext) -> Option<(&'static device::Device, CUdevice)> {
    let job = process::job()?;
    let user = driver::current_device().ok()?;
    // The peer may have nothing yet: it is tried out in its own context.
    let owner = || device::get(job, driver::current_device()?);
    // SAFETY: the program's context, which the driver has just accepted.
    let owner = unsafe { driver::with_context(peer, owner) }.ok()?.ok()??;
    (owner.ordinal != user).then_some((owner, user))
}

/// Replaces `CUresult cuCtxDisablePeerAccess(CUcontext peerContext)`: the peer's ranges are closed to the current
/// context's device, once no other context of it has access and nothing is in flight that could use it. While that cannot
/// be known they stay open, which harms nobody.
///
/// # Safety
/// As for the function it replaces.
pub unsafe fn disable_peer(peer: CUcontext) -> CUresult {
    // SAFETY: the program's own call.
    let result = unsafe { real::cuCtxDisablePeerAccess(peer) };
    let Some((owner, user)) = pair(peer).filter(|_| result == CUDA_SUCCESS) else {
        return result;
    };
    // With the user still among the peers: its work is waited for as well.
    if drain::drain(owner, peer.into()) != drain::Drained::Idle {
        return result;
    }
    {
        let mut peers = owner.peers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = peers.iter().position(|p| *p == user) {
            peers.swap_remove(at);
        }
        if peers.contains(&user) {
            return result;
        }
    }
    let _still = map::hold_still();
    for (base, span) in map::ranges_of(owner.ordinal) {
        // SAFETY: drained; a range that is mapped while it is in the map. A refusal leaves it open.
        let _ = unsafe { driver::take_access(base, span as usize, [user]) };
    }
    result
}
