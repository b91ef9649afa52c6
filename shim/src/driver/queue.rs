//! Streams and events of the shim's own.

use greenboost_abi::*;

use super::{Result, check, raw};
use crate::hooks::real;
use crate::tier::map::Handle;

/// A new stream that no other one waits for or is waited for by, and that goes first. Its context must be current.
pub fn stream() -> Result<Handle> {
    let mut stream = std::ptr::null_mut();
    let (mut least, mut greatest) = (0, 0);
    // SAFETY: writes two ints, and one handle.
    unsafe {
        let asked = raw::cuCtxGetStreamPriorityRange(&mut least, &mut greatest);
        let priority = if asked == CUDA_SUCCESS { greatest } else { 0 };
        check(raw::cuStreamCreateWithPriority(
            &mut stream,
            CU_STREAM_NON_BLOCKING,
            priority,
        ))?;
    }
    Ok(Handle(stream as usize))
}

/// A new event, one that a thread can sleep on. Its context must be current. Destroyed by
/// [`event_destroy`](super::event_destroy).
pub fn event() -> Result<Handle> {
    let mut event = std::ptr::null_mut();
    // SAFETY: writes one handle.
    check(unsafe { raw::cuEventCreate(&mut event, CU_EVENT_BLOCKING_SYNC) })?;
    Ok(Handle(event as usize))
}

/// Puts an event behind all that is on a stream. `own`: a null stream is the thread's own.
///
/// # Safety
/// An event of [`event`] and a stream, both of one context.
pub unsafe fn record(event: Handle, stream: Handle, own: bool) -> Result<()> {
    let (event, stream) = (event.0 as CUevent, stream.0 as CUstream);
    // SAFETY: the caller's promise.
    check(unsafe {
        match own {
            true => raw::cuEventRecord_ptsz(event, stream),
            false => raw::cuEventRecord(event, stream),
        }
    })
}

/// Whether an event has passed. Never waits.
///
/// # Errors
/// The device's, after which nothing passes any more.
pub fn passed(event: Handle) -> Result<bool> {
    // SAFETY: an event of the shim's that is not destroyed yet.
    match unsafe { raw::cuEventQuery(event.0 as CUevent) } {
        CUDA_SUCCESS => Ok(true),
        CUDA_ERROR_NOT_READY => Ok(false),
        code => Err(code),
    }
}

/// Sleeps until an event has passed.
///
/// # Errors
/// The device's.
pub fn wait(event: Handle) -> Result<()> {
    // SAFETY: an event of the shim's that is not destroyed yet.
    check(unsafe { real::cuEventSynchronize(event.0 as CUevent) })
}

/// Seconds between two events that have passed.
pub fn seconds(from: Handle, to: Handle) -> Result<f64> {
    let mut milliseconds = 0.0f32;
    let (from, to) = (from.0 as CUevent, to.0 as CUevent);
    // SAFETY: events of the shim's; writes one float.
    check(unsafe { raw::cuEventElapsedTime(&mut milliseconds, from, to) })?;
    Ok(f64::from(milliseconds) * 1e-3)
}

/// Copies on a stream, between two addresses of its device.
///
/// # Safety
/// Both are mapped for the device for so many bytes until the copy is over, and nothing else uses either.
pub unsafe fn copy_on(
    stream: Handle,
    to: CUdeviceptr,
    from: CUdeviceptr,
    bytes: usize,
) -> Result<()> {
    // SAFETY: the caller's promise.
    check(unsafe { real::cuMemcpyDtoDAsync_v2(to, from, bytes, stream.0 as CUstream) })
}
