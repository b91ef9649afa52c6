//! Draining: the proof that no work which could touch a range is in flight. And the captures that forbid it.
//!
//! All contexts that the program made on the device are synchronised, and all there are once peers have access: the
//! program's own synchronisations are hints, not proofs.
//!
//! `cuCtxSynchronize` breaks a capture that is open when it is called; the [`gate`] keeps the two apart.

use std::sync::{Mutex, PoisonError};

use greenboost_abi::*;

use self::gate::Gate;
use super::device::Device;
use super::map::Handle;
use crate::driver;

mod gate;

/// What the gate is made of. The model (`shim/tests/model`) compiles its source a second time, over its own.
mod sync {
    pub use std::sync::atomic::AtomicUsize;
    pub use std::thread::sleep;
    pub use std::time::Instant;
}

static GATE: Gate = Gate::new();
/// The program's contexts and their devices.
static CONTEXTS: Mutex<Vec<(Handle, CUdevice)>> = Mutex::new(Vec::new());

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
    let mut contexts = CONTEXTS.lock().unwrap_or_else(PoisonError::into_inner);
    if !contexts.iter().any(|(c, _)| *c == context.into()) {
        contexts.push((context.into(), device));
    }
}

/// Forgets a context. Returns whether it was known.
pub fn context_gone(context: Handle) -> bool {
    let mut contexts = CONTEXTS.lock().unwrap_or_else(PoisonError::into_inner);
    let before = contexts.len();
    contexts.retain(|(c, _)| *c != context);
    contexts.len() != before
}

/// A context of the program's, if there is one.
pub fn any_context() -> Option<Handle> {
    let contexts = CONTEXTS.lock().unwrap_or_else(PoisonError::into_inner);
    contexts.first().map(|(context, _)| *context)
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
    let mut contexts: Vec<Handle> = {
        let all = CONTEXTS.lock().unwrap_or_else(PoisonError::into_inner);
        all.iter()
            .filter(|(_, d)| shared || *d == device.ordinal)
            .map(|(c, _)| *c)
            .collect()
    };
    // A context that came about in a way the shim does not know is at least current here.
    let current = driver::current_context().unwrap_or(std::ptr::null_mut());
    for extra in [own, current.into()] {
        if extra.0 != 0 && !contexts.contains(&extra) {
            contexts.push(extra);
        }
    }
    for context in contexts {
        // SAFETY: a context that the program made.
        match unsafe { driver::synchronize(context.0 as CUcontext) } {
            Ok(()) => {}
            // A context that is gone has no work.
            Err(CUDA_ERROR_INVALID_CONTEXT | CUDA_ERROR_CONTEXT_IS_DESTROYED) => {}
            Err(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED..=CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD) => {
                return Drained::Capturing;
            }
            Err(code @ (CUDA_ERROR_NOT_PERMITTED | CUDA_ERROR_DEINITIALIZED)) => {
                return Drained::Failed(code);
            }
            Err(code) if context == own => return Drained::Failed(code),
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
}
