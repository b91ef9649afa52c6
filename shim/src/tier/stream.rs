//! A stream that a call names: where it runs, and what is in order with it.

use greenboost_abi::*;

use super::drain;
use super::map::Handle;
use crate::driver;

/// A stream that does not capture.
#[derive(Clone, Copy, Debug)]
pub struct Stream {
    /// As the driver's plain functions know it: the default streams by their own handles.
    pub handle: Handle,
    /// Its context.
    pub context: Handle,
    /// Its device.
    pub device: CUdevice,
    /// What is put on one lane runs in the order in which it was put there. `None`: the default stream of a thread,
    /// whose name another thread may inherit.
    pub lane: Option<Lane>,
}

/// A stream that the program made, or the legacy stream of a context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lane(usize, Handle);

impl Lane {
    /// The lane of a stream that the program made; the others have none that can end.
    pub fn of_made(stream: CUstream) -> Option<Lane> {
        (stream as usize > CU_STREAM_PER_THREAD).then_some(Lane(stream as usize, Handle(0)))
    }
}

/// Looks at the stream that a call names; `per_thread` says what 0 stands for. `None`: it captures.
///
/// # Errors
/// The driver's: no context (201), a stream that is none (400), the legacy stream beside a blocking capture (906).
pub fn look(stream: CUstream, per_thread: bool) -> driver::Result<Option<Stream>> {
    let handle = match stream as usize {
        0 if per_thread => CU_STREAM_PER_THREAD,
        0 => CU_STREAM_LEGACY,
        made => made,
    };
    let named = Handle(handle);
    if driver::stream_captures(named)? {
        return Ok(None);
    }
    let current: Handle = driver::current_context()?.into();
    let made = handle > CU_STREAM_PER_THREAD;
    let context = if made {
        driver::stream_context(named)?
    } else {
        current
    };
    let device = match drain::device_of(context) {
        Some(device) => device,
        None => drain::in_context(context, driver::current_device)??,
    };
    let lane = match handle {
        CU_STREAM_PER_THREAD => None,
        CU_STREAM_LEGACY => Some(Lane(handle, context)),
        made => Some(Lane(made, Handle(0))),
    };
    Ok(Some(Stream {
        handle: named,
        context,
        device,
        lane,
    }))
}
