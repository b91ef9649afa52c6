//! Draining: the proof that no work which could touch a range is in flight. And the captures that forbid it.
//!
//! All contexts that the program made on the device are synchronised, and all there are once peers have access: the
//! program's own synchronisations are hints, not proofs.
//!
//! `cuCtxSynchronize` breaks a capture that is open when it is called; the [`gate`] keeps the two apart.

use greenboost_abi::*;

use self::gate::Gate;
use self::roll::Roll;
use super::device::Device;
use super::map::Handle;
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
}

/// Remembers the context that is current on this thread, however it was made.
pub fn context_met(context: CUcontext, device: CUdevice) {
    if !CONTEXTS.has(context as usize) {
        CONTEXTS.add(context as usize, device);
        // Another thread may just have destroyed it.
        if driver::current_device().is_err() {
            CONTEXTS.remove(context as usize);
        }
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

fn synchronize(device: &Device, own: Handle) -> Drained {
    let shared = device.users().len() > 1;
    let mut contexts = CONTEXTS.of((!shared).then_some(device.ordinal));
    if own.0 != 0 && !contexts.contains(&own.0) {
        contexts.push(own.0);
    }
    // A context that came about in a way the shim does not know is at least current here.
    let current = driver::current_context().map_or(0, |c| c as usize);
    if current != 0 && !contexts.contains(&current) {
        contexts.push(current);
    }
    for context in contexts {
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
