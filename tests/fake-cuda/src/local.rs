//! What belongs to a thread. No value here has a destructor, so it stays usable while the thread
//! (or the process) is being torn down.
use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};

use greenboost_abi::{CU_STREAM_CAPTURE_MODE_GLOBAL, CUDA_ERROR_INVALID_CONTEXT, CUresult};

const DEPTH: usize = 64;

thread_local! {
    static STACK: [Cell<usize>; DEPTH] = const { [const { Cell::new(0) }; DEPTH] };
    static HEIGHT: Cell<usize> = const { Cell::new(0) };
    static KEY: Cell<u64> = const { Cell::new(0) };
    static IN_CALLBACK: Cell<bool> = const { Cell::new(false) };
    static CAPTURE_MODE: Cell<i32> = const { Cell::new(CU_STREAM_CAPTURE_MODE_GLOBAL) };
}

/// The context on top of this thread's stack, 0 when there is none.
pub(crate) fn current() -> usize {
    match HEIGHT.get() {
        0 => 0,
        n => STACK.with(|s| s[n - 1].get()),
    }
}

/// Replaces the top of the stack (`cuCtxSetCurrent`); 0 pops it.
pub(crate) fn set_current(ctx: usize) {
    let height = HEIGHT.get();
    match (height, ctx) {
        (0, 0) => {}
        (0, _) => {
            let _ = push(ctx);
        }
        (_, 0) => {
            let _ = pop();
        }
        _ => STACK.with(|s| s[height - 1].set(ctx)),
    }
}

pub(crate) fn push(ctx: usize) -> Result<(), CUresult> {
    let height = HEIGHT.get();
    if height == DEPTH {
        return Err(CUDA_ERROR_INVALID_CONTEXT);
    }
    STACK.with(|s| s[height].set(ctx));
    HEIGHT.set(height + 1);
    Ok(())
}

pub(crate) fn pop() -> Option<usize> {
    let height = HEIGHT.get().checked_sub(1)?;
    HEIGHT.set(height);
    Some(STACK.with(|s| s[height].get()))
}

/// A number for this thread that no other thread of the process ever had.
pub(crate) fn key() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    if KEY.get() == 0 {
        KEY.set(NEXT.fetch_add(1, Ordering::Relaxed));
    }
    KEY.get()
}

pub(crate) fn in_callback() -> bool {
    IN_CALLBACK.get()
}

pub(crate) fn set_in_callback(on: bool) {
    IN_CALLBACK.set(on);
}

pub(crate) fn capture_mode() -> i32 {
    CAPTURE_MODE.get()
}

pub(crate) fn set_capture_mode(mode: i32) -> i32 {
    CAPTURE_MODE.replace(mode)
}
