//! Events: a place in a stream, and when it was passed.
use core::ffi::{c_float, c_uint};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use greenboost_abi::{CUDA_ERROR_INVALID_HANDLE, CUDA_ERROR_INVALID_VALUE, CUDA_ERROR_NOT_READY};

use crate::abi::{Out, Res};
use crate::capture::{Captured, Node};
use crate::error::CAPTURED_EVENT;
use crate::gate::Flavour;
use crate::misuse::misuse;
use crate::queue::{Dep, drain};
use crate::stream::failed;
use crate::work::Work;
use crate::world::{Kind, World, world};

const DISABLE_TIMING: c_uint = 2;
const KNOWN_FLAGS: c_uint = 7;

pub(crate) struct Event {
    pub ctx: usize,
    flags: c_uint,
    pub last: Last,
}

/// What the last record was.
pub(crate) enum Last {
    Never,
    Stream {
        dep: Dep,
        stamp: Arc<OnceLock<Instant>>,
    },
    Capture(Captured),
}

impl World {
    pub(crate) fn event(&self, handle: usize) -> Res<&Event> {
        self.events.get(&handle).ok_or_else(|| {
            misuse!("use of event {handle:#x}, which does not exist");
            CUDA_ERROR_INVALID_HANDLE
        })
    }
}

impl World {
    /// What a launch of these nodes must wait for, and what it records: events as they are when it is launched. A wait
    /// inside the graph holds up all of it, and a record counts when all of it is done.
    pub(crate) fn waited_by_graph(&self, nodes: &[Node]) -> Vec<Dep> {
        let mut own = Vec::new();
        let mut deps = Vec::new();
        for node in nodes {
            match &node.work {
                Work::Record(event) => own.push(*event),
                Work::WaitFor(event) if !own.contains(event) => {
                    if let Some(Last::Stream { dep, .. }) = self.events.get(event).map(|e| &e.last)
                    {
                        deps.push(*dep);
                    }
                }
                Work::Graph(nodes) => deps.extend(self.waited_by_graph(nodes)),
                _ => {}
            }
        }
        deps
    }

    pub(crate) fn recorded_by_graph(&mut self, nodes: &[Node], dep: Dep) {
        for node in nodes {
            match &node.work {
                Work::Record(event) => {
                    if let Some(event) = self.events.get_mut(event) {
                        let stamp = Arc::new(OnceLock::new());
                        let _ = stamp.set(Instant::now());
                        event.last = Last::Stream { dep, stamp };
                    }
                }
                Work::Graph(nodes) => self.recorded_by_graph(nodes, dep),
                _ => {}
            }
        }
    }
}

fn create(flags: c_uint) -> Res<usize> {
    if flags & !KNOWN_FLAGS != 0 || (flags & 4 != 0 && flags & DISABLE_TIMING == 0) {
        return Err(CUDA_ERROR_INVALID_VALUE);
    }
    let mut w = world();
    let ctx = w.here()?;
    let handle = w.fresh(Kind::Event) as usize;
    w.events.insert(
        handle,
        Event {
            ctx,
            flags,
            last: Last::Never,
        },
    );
    Ok(handle)
}

fn record(handle: usize, stream: usize, flavour: Flavour) -> Res {
    let mut w = world();
    let sid = w.stream(stream, flavour)?;
    let event = w.event(handle)?;
    if event.ctx != w.streams[&sid].ctx {
        return Err(CUDA_ERROR_INVALID_HANDLE);
    }
    let last = match w.captured_here(sid)? {
        Some(captured) => Last::Capture(captured),
        None => {
            let stamp = Arc::new(OnceLock::new());
            let seq = w.submit(
                sid,
                "event record",
                Work::Stamp(stamp.clone()),
                Vec::new(),
                Vec::new(),
            )?;
            Last::Stream {
                dep: Dep {
                    stream: sid,
                    seq: seq.unwrap_or(0),
                },
                stamp,
            }
        }
    };
    if let Some(event) = w.events.get_mut(&handle) {
        event.last = last;
    }
    Ok(())
}

fn query(handle: usize) -> Res {
    let mut w = world();
    w.refuse_unsafe("cuEventQuery")?;
    let event = w.event(handle)?;
    failed(&w, event.ctx)?;
    match &event.last {
        Last::Never => Ok(()),
        Last::Stream { dep, .. } if w.passed(*dep) => Ok(()),
        Last::Stream { .. } => Err(CUDA_ERROR_NOT_READY),
        Last::Capture(_) => Err(CAPTURED_EVENT),
    }
}

fn synchronise(handle: usize) -> Res {
    let mut w = world();
    w.refuse_unsafe("cuEventSynchronize")?;
    let event = w.event(handle)?;
    let ctx = event.ctx;
    match &event.last {
        Last::Never => Ok(()),
        Last::Stream { dep, .. } => {
            let dep = *dep;
            let w = drain(w, dep);
            failed(&w, ctx)
        }
        Last::Capture(captured) => {
            let id = captured.id;
            w.invalidate(
                id,
                "synchronise during capture: cuEventSynchronize on a captured event",
            );
            Err(CAPTURED_EVENT)
        }
    }
}

fn elapsed(start: usize, end: usize) -> Res<c_float> {
    let w = world();
    let (start, end) = (w.event(start)?, w.event(end)?);
    if (start.flags | end.flags) & DISABLE_TIMING != 0 {
        return Err(CUDA_ERROR_INVALID_HANDLE);
    }
    let at = |event: &Event| match &event.last {
        Last::Never => Err(CUDA_ERROR_INVALID_HANDLE),
        Last::Capture(_) => Err(CAPTURED_EVENT),
        Last::Stream { dep, stamp } if w.passed(*dep) => {
            stamp.get().copied().ok_or(CUDA_ERROR_NOT_READY)
        }
        Last::Stream { .. } => Err(CUDA_ERROR_NOT_READY),
    };
    let (start, end) = (at(start)?, at(end)?);
    let seconds = match end.checked_duration_since(start) {
        Some(forward) => forward.as_secs_f64(),
        None => -start.duration_since(end).as_secs_f64(),
    };
    Ok((seconds * 1e3) as c_float)
}

fn destroy(handle: usize) -> Res {
    let mut w = world();
    w.event(handle)?;
    w.events.remove(&handle);
    Ok(())
}

fn wait(stream: usize, handle: usize, flags: c_uint, flavour: Flavour) -> Res {
    if flags > 1 {
        return Err(CUDA_ERROR_INVALID_VALUE);
    }
    let mut w = world();
    let sid = w.stream(stream, flavour)?;
    // An external wait in a capture is a node; outside one there is no difference.
    if flags == 1 && w.streams[&sid].capture.is_some() {
        w.event(handle)?;
        return w.capture_node(sid, "event wait", Work::WaitFor(handle), Vec::new());
    }
    match &w.event(handle)?.last {
        Last::Never => Ok(()),
        Last::Capture(captured) => {
            let captured = captured.clone();
            w.join(sid, &captured)
        }
        Last::Stream { dep, .. } => {
            let dep = *dep;
            w.refuse_outside_event(sid)?;
            if w.passed(dep) {
                return Ok(());
            }
            w.submit(sid, "event wait", Work::Nothing, Vec::new(), vec![dep])
                .map(drop)
        }
    }
}

api! {
    Context cuEventCreate { 2000 cuEventCreate Legacy } (event: Out<usize>, flags: c_uint) |_f| {
        event.check()?;
        event.set(create(flags)?)
    }
    Init cuEventDestroy {
        2000 cuEventDestroy Legacy,
        4000 cuEventDestroy_v2 Legacy,
    } (event: usize) |_f| { destroy(event) }
    Context cuEventRecord {
        2000 cuEventRecord Legacy,
        7000 cuEventRecord_ptsz PerThread,
    } (event: usize, stream: usize) |f| { record(event, stream, f) }
    Context cuEventRecordWithFlags {
        11010 cuEventRecordWithFlags Legacy,
        11010 cuEventRecordWithFlags_ptsz PerThread,
    } (event: usize, stream: usize, flags: c_uint) |f| {
        match flags {
            0 => record(event, stream, f),
            1 => {
                let mut w = world();
                let sid = w.stream(stream, f)?;
                if w.streams[&sid].capture.is_none() {
                    drop(w);
                    return record(event, stream, f);
                }
                w.event(event)?;
                w.capture_node(sid, "event record", Work::Record(event), Vec::new())
            }
            _ => Err(CUDA_ERROR_INVALID_VALUE),
        }
    }
    Init cuEventQuery { 2000 cuEventQuery Legacy } (event: usize) |_f| { query(event) }
    Init cuEventSynchronize { 2000 cuEventSynchronize Legacy } (event: usize) |_f| { synchronise(event) }
    Init cuEventElapsedTime {
        2000 cuEventElapsedTime Legacy,
        12080 cuEventElapsedTime_v2 Legacy,
    } (ms: Out<c_float>, start: usize, end: usize) |_f| {
        ms.check()?;
        ms.set(elapsed(start, end)?)
    }
    Context cuStreamWaitEvent {
        3020 cuStreamWaitEvent Legacy,
        7000 cuStreamWaitEvent_ptsz PerThread,
    } (stream: usize, event: usize, flags: c_uint) |f| { wait(stream, event, flags, f) }
}
