//! Draining: the proof that no work which could touch a range is in flight. And the captures that forbid it.
//!
//! All contexts that the program made on the device are synchronised, and all there are once peers have access or one
//! device has copied another one's memory: the program's own synchronisations are hints, not proofs.
//!
//! `cuCtxSynchronize` breaks a capture that is open when it is called; the [`gate`] keeps the two apart.

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

use greenboost_abi::*;

use self::gate::Gate;
use self::roll::Roll;
use super::device::{self, Device};
use super::map::Handle;
use super::{pools, staging};
use crate::driver;

mod gate;
mod roll;

/// What gate and roll are made of. The model (`shim/tests/model`) compiles their sources a second time, over its own.
mod sync {
    pub use std::sync::Mutex;
    pub use std::sync::atomic::AtomicUsize;
    pub use std::thread::sleep;
    pub use std::time::Instant;
}

static GATE: Gate = Gate::new();
static CONTEXTS: Roll = Roll::new();

/// Whether one device has ever been told to use another one's memory, beyond what enabled peers do.
static CROSSED: AtomicBool = AtomicBool::new(false);

/// Whether there have been contexts on several devices.
static SEVERAL: AtomicBool = AtomicBool::new(false);

/// One device uses another one's memory: from here on, work of every device may touch any range.
pub fn crosses() {
    if !CROSSED.swap(true, SeqCst) {
        staging::unseen();
    }
}

/// Whether that has to be watched for: there are contexts on several devices.
pub fn may_cross() -> bool {
    SEVERAL.load(SeqCst)
}

/// A capture is about to begin.
pub fn capture_opens() {
    GATE.open();
}

/// A capture has ended or did not begin.
pub fn capture_closes() {
    GATE.close();
}

/// Whether any capture is open.
pub fn capturing() -> bool {
    GATE.is_open()
}

/// Remembers a context of the program.
pub fn context_made(context: CUcontext, device: CUdevice) {
    CONTEXTS.add(context as usize, device);
    look_for_several(device);
}

/// After a context of this device was added.
fn look_for_several(device: CUdevice) {
    if CONTEXTS.of(None).len() != CONTEXTS.of(Some(device)).len() {
        SEVERAL.store(true, SeqCst);
    }
}

/// Remembers the context that is current on this thread, however it was made.
pub fn context_met(context: CUcontext, device: CUdevice) {
    if !CONTEXTS.has(context as usize) {
        CONTEXTS.add(context as usize, device);
        // Another thread may just have destroyed it.
        if driver::current_device().is_err() {
            CONTEXTS.remove(context as usize);
        }
        look_for_several(device);
    }
}

/// Forgets a context that is gone, or that no work can run on any more. Returns whether it was known.
pub fn context_gone(context: Handle) -> bool {
    CONTEXTS.remove(context.0)
}

/// Destroys a context by `destroy`, kept apart from drains; forgets it if that succeeds.
pub fn context_ends(context: Handle, destroy: impl FnOnce() -> CUresult) -> CUresult {
    let mut result = CUDA_SUCCESS;
    CONTEXTS.end(context.0, || {
        result = destroy();
        result == CUDA_SUCCESS
    });
    result
}

/// `cuCtxAttach` has added a reference.
pub fn context_attached(context: Handle) {
    CONTEXTS.attach(context.0);
}

/// Takes a reference away. Returns whether it is the last one: then it stays, and the context is to be destroyed.
pub fn context_detaches(context: Handle) -> bool {
    CONTEXTS.detach(context.0)
}

/// Makes a context of the roll current; one that is gone stays away.
pub fn make_current(context: Handle) {
    // SAFETY: the roll has it, so the program made it, and nobody destroys it while it is made current.
    let _ = CONTEXTS.enter(context.0, || unsafe {
        driver::push(context.0 as CUcontext)
    });
}

/// Runs `f` in a context of the program's, if there is one.
pub fn in_any_context<T>(f: impl FnOnce() -> T) -> Option<driver::Result<T>> {
    let context = CONTEXTS.of(None).first().copied()?;
    inside(context, f)
}

/// Runs `f` with a context of the roll current; `None`: it is gone.
fn inside<T>(context: usize, f: impl FnOnce() -> T) -> Option<driver::Result<T>> {
    // SAFETY: the roll has it, so the program made it, and nobody destroys it while it is made current.
    let entered = CONTEXTS.enter(context, || unsafe { driver::push(context as CUcontext) })?;
    Some(entered.map(|()| {
        let result = f();
        driver::pop();
        result
    }))
}

/// The device of a context of the program, if the shim knows it.
pub fn device_of(context: Handle) -> Option<CUdevice> {
    CONTEXTS.device(context.0)
}

/// Runs `f` in a context of the roll. One that is not there may be gone, and is not made current: the driver does not
/// always survive that.
pub fn in_known_context<T>(context: Handle, f: impl FnOnce() -> T) -> driver::Result<T> {
    inside(context.0, f).unwrap_or(Err(CUDA_ERROR_CONTEXT_IS_DESTROYED))
}

/// Runs `f` in the context of a stream that the program has just named.
pub fn in_context<T>(context: Handle, f: impl FnOnce() -> T) -> driver::Result<T> {
    if driver::current_context().is_ok_and(|c| c as usize == context.0) {
        return Ok(f());
    }
    if CONTEXTS.has(context.0) {
        return inside(context.0, f).unwrap_or(Err(CUDA_ERROR_CONTEXT_IS_DESTROYED));
    }
    // SAFETY: the driver has just named it as the context of a stream that is in use.
    unsafe { driver::with_context(context.0 as CUcontext, f) }
}

/// What a drain found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drained {
    /// Nothing that could touch the device's ranges is in flight.
    Idle,
    /// A capture is open: ask again later.
    Capturing,
    /// The driver refused: the error of the allocation's own context, or 800 inside a host callback.
    Failed(CUresult),
}

/// Waits for all work that could touch allocations of this device made in `own`.
pub fn drain(device: &Device, own: Handle) -> Drained {
    GATE.drain(|| synchronize(device, own))
        .unwrap_or(Drained::Capturing)
}

/// Whether a helper drains the device in time. It goes on when it does not, alone, and harms nobody: a synchronise that
/// waits already leaves a capture alone that begins meanwhile (measured).
pub fn within(ordinal: CUdevice, patience: Duration) -> bool {
    static BUSY: AtomicBool = AtomicBool::new(false);
    let current: Handle = driver::current_context()
        .unwrap_or(std::ptr::null_mut())
        .into();
    let deadline = Instant::now() + patience;
    // One helper at a time; the last one may still be waiting for work that is long over for this thread.
    while BUSY.swap(true, SeqCst) {
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(Duration::from_micros(100));
    }
    let (tell, told) = std::sync::mpsc::channel();
    let helper = without_signals(|| {
        std::thread::Builder::new().spawn(move || {
            let known = device::known(ordinal);
            let idle = known.is_some_and(|d| drain(d, current) == Drained::Idle);
            BUSY.store(false, SeqCst);
            let _ = tell.send(idle);
        })
    });
    if helper.is_err() {
        BUSY.store(false, SeqCst);
        return false;
    }
    let left = deadline.saturating_duration_since(Instant::now());
    told.recv_timeout(left).unwrap_or(false)
}

/// Signals are for the program's own threads: what `f` starts takes none.
pub fn without_signals<T>(f: impl FnOnce() -> T) -> T {
    // SAFETY: plain calls on local signal sets; the mask is restored.
    unsafe {
        let (mut all, mut old) = (std::mem::zeroed(), std::mem::zeroed());
        libc::sigfillset(&mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &all, &mut old);
        let result = f();
        libc::pthread_sigmask(libc::SIG_SETMASK, &old, std::ptr::null_mut());
        result
    }
}

/// Whether work of other devices may touch this one's memory, or has been told to.
pub fn shared(device: &Device) -> bool {
    device.users().len() > 1 || pools::shared(device.ordinal) || CROSSED.load(SeqCst)
}

fn synchronize(device: &Device, own: Handle) -> Drained {
    let mut contexts = CONTEXTS.of((!shared(device)).then_some(device.ordinal));
    if own.0 != 0 && !contexts.contains(&own.0) {
        contexts.push(own.0);
    }
    // A context that came about in a way the shim does not know is at least current here.
    let current = driver::current_context().map_or(0, |c| c as usize);
    if current != 0 && !contexts.contains(&current) {
        contexts.push(current);
    }
    for context in contexts {
        // The wait for the one before may have taken longer than the start of a capture waits.
        if capturing() {
            return Drained::Capturing;
        }
        let result = if context == current {
            driver::synchronize_current()
        } else {
            let waited = inside(context, driver::synchronize_current);
            waited.map_or(Ok(()), |waited| waited.and_then(|w| w))
        };
        match result {
            Ok(()) => {}
            // A context that is gone has no work.
            Err(CUDA_ERROR_INVALID_CONTEXT | CUDA_ERROR_CONTEXT_IS_DESTROYED) => {}
            Err(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED..=CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD) => {
                return Drained::Capturing;
            }
            Err(code @ (CUDA_ERROR_NOT_PERMITTED | CUDA_ERROR_DEINITIALIZED)) => {
                return Drained::Failed(code);
            }
            Err(code) if context == own.0 => return Drained::Failed(code),
            // Another context that is broken by its own fault: its work has ended.
            Err(_) => {}
        }
    }
    Drained::Idle
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In real time; every order of the steps is tried in `shim/tests/model`.
    #[test]
    fn a_capture_waits_for_a_drain_but_not_for_ever() {
        let drained = GATE.drain(|| {
            let start = std::time::Instant::now();
            capture_opens();
            assert!(start.elapsed() >= gate::ENTRY);
            assert!(capturing());
            assert_eq!(GATE.drain(|| ()), None);
            capture_closes();
        });
        assert_eq!(drained, Some(()));
        assert!(!capturing());
    }

    #[test]
    fn contexts_are_known_once() {
        let context = 0x51 as CUcontext;
        context_made(context, 0);
        context_made(context, 0);
        assert!(context_gone(context.into()));
        assert!(!context_gone(context.into()));
    }

    #[test]
    fn the_last_reference_destroys() {
        let context = Handle(0x52);
        context_made(0x52 as CUcontext, 0);
        context_attached(context);
        assert!(!context_detaches(context));
        assert!(context_detaches(context) && context_detaches(context));
        assert_eq!(
            context_ends(context, || CUDA_ERROR_NOT_PERMITTED),
            CUDA_ERROR_NOT_PERMITTED
        );
        assert_eq!(CONTEXTS.enter(0x52, || 1), Some(1), "not destroyed");
        assert_eq!(context_ends(context, || CUDA_SUCCESS), CUDA_SUCCESS);
        assert_eq!(CONTEXTS.enter(0x52, || 1), None);
        assert!(!context_detaches(context));
    }
}
