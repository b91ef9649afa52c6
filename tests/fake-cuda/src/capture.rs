//! Stream capture: operations are recorded as nodes, not run.
use core::ffi::c_int;

use greenboost_abi::{
    CU_STREAM_CAPTURE_MODE_GLOBAL, CU_STREAM_CAPTURE_MODE_RELAXED,
    CU_STREAM_CAPTURE_MODE_THREAD_LOCAL, CUDA_ERROR_INVALID_VALUE,
    CUDA_ERROR_STREAM_CAPTURE_IMPLICIT, CUDA_ERROR_STREAM_CAPTURE_INVALIDATED,
    CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD,
};

use crate::abi::{Out, Res};
use crate::error::{CAPTURED_EVENT, MERGE, UNJOINED, UNMATCHED};
use crate::gate::Flavour;
use crate::graph::node_handle;
use crate::local;
use crate::misuse::misuse;
use crate::queue::{Range, Sort};
use crate::work::Work;
use crate::world::{Kind, World, world};

pub(crate) struct Capture {
    pub mode: c_int,
    pub thread: u64,
    origin: u64,
    pub graph: usize,
    nodes: Vec<Node>,
    invalid: bool,
}

/// One captured operation; `after` are the nodes that it waits for.
#[derive(Clone)]
pub(crate) struct Node {
    pub name: &'static str,
    pub work: Work,
    pub ranges: Vec<Range>,
    pub after: Vec<usize>,
}

impl Node {
    /// Whether it allocates or frees memory of a graph.
    pub(crate) fn is_memory(&self) -> bool {
        matches!(self.work, Work::GraphAlloc { .. } | Work::GraphFree(_))
    }
}

/// A stream's part in a capture: the nodes that its next operation waits for.
#[derive(Clone)]
pub(crate) struct Joined {
    pub id: u64,
    pub tail: Vec<usize>,
}

/// An event recorded inside a capture.
#[derive(Clone)]
pub(crate) struct Captured {
    pub id: u64,
    pub tail: Vec<usize>,
}

impl World {
    /// Ends a capture's hopes and says why; it still has to be ended by the program.
    pub(crate) fn invalidate(&mut self, id: u64, why: &str) {
        misuse!("{why}");
        if let Some(capture) = self.captures.get_mut(&id) {
            capture.invalid = true;
        }
    }

    pub(crate) fn invalidate_stream(&mut self, sid: u64, why: &str) {
        if let Some(id) = self
            .streams
            .get(&sid)
            .and_then(|s| s.capture.as_ref())
            .map(|j| j.id)
        {
            self.invalidate(id, why);
        }
    }

    /// The stream is going away: what it captures goes with it, or loses a branch.
    pub(crate) fn abandon_capture(&mut self, sid: u64) {
        let Some(joined) = self.streams.get_mut(&sid).and_then(|s| s.capture.take()) else {
            return;
        };
        self.invalidate(joined.id, "destroy of a capturing stream");
        if self
            .captures
            .get(&joined.id)
            .is_some_and(|c| c.origin == sid)
        {
            self.captures.remove(&joined.id);
            for s in self
                .streams
                .values_mut()
                .filter(|s| s.capture.as_ref().is_some_and(|j| j.id == joined.id))
            {
                s.capture = None;
            }
        }
    }

    pub(crate) fn capture_node(
        &mut self,
        sid: u64,
        name: &'static str,
        work: Work,
        ranges: Vec<Range>,
    ) -> Res {
        let Some(joined) = self.streams.get_mut(&sid).and_then(|s| s.capture.as_mut()) else {
            return Ok(());
        };
        let Some(capture) = self.captures.get_mut(&joined.id) else {
            return Ok(());
        };
        if capture.invalid {
            return Err(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
        }
        let after = std::mem::replace(&mut joined.tail, vec![capture.nodes.len()]);
        capture.nodes.push(Node {
            name,
            work,
            ranges,
            after,
        });
        Ok(())
    }

    /// The graph that a stream's capture builds.
    pub(crate) fn captured_graph(&self, sid: u64) -> Res<usize> {
        let joined = self.streams[&sid].capture.as_ref();
        match joined.and_then(|j| self.captures.get(&j.id)) {
            Some(capture) if !capture.invalid => Ok(capture.graph),
            _ => Err(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED),
        }
    }

    /// An event recorded on a capturing stream marks a place in the capture.
    pub(crate) fn captured_here(&self, sid: u64) -> Res<Option<Captured>> {
        let Some(joined) = &self.streams[&sid].capture else {
            return Ok(None);
        };
        match self.captures.get(&joined.id) {
            Some(capture) if !capture.invalid => Ok(Some(Captured {
                id: joined.id,
                tail: joined.tail.clone(),
            })),
            _ => Err(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED),
        }
    }

    /// A stream that waits for a captured event becomes part of that capture.
    pub(crate) fn join(&mut self, sid: u64, captured: &Captured) -> Res {
        match self.captures.get(&captured.id) {
            None => return Err(CAPTURED_EVENT),
            Some(capture) if capture.invalid => return Err(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED),
            Some(_) => {}
        }
        let Some(s) = self.streams.get_mut(&sid) else {
            return Ok(());
        };
        if s.sort == Sort::Legacy {
            self.invalidate(
                captured.id,
                "legacy stream waits for a captured event during capture",
            );
            return Err(CUDA_ERROR_STREAM_CAPTURE_IMPLICIT);
        }
        match &mut s.capture {
            None => {
                s.capture = Some(Joined {
                    id: captured.id,
                    tail: captured.tail.clone(),
                })
            }
            Some(joined) if joined.id == captured.id => {
                joined.tail.extend(
                    captured
                        .tail
                        .iter()
                        .filter(|n| !joined.tail.contains(n))
                        .copied()
                        .collect::<Vec<_>>(),
                );
            }
            Some(joined) => {
                let id = joined.id;
                self.invalidate(id, "captures merged by an event");
                self.invalidate(captured.id, "captures merged by an event");
                return Err(MERGE);
            }
        }
        Ok(())
    }
}

fn begin(stream: usize, mode: c_int, flavour: Flavour) -> Res {
    if !(CU_STREAM_CAPTURE_MODE_GLOBAL..=CU_STREAM_CAPTURE_MODE_RELAXED).contains(&mode) {
        return Err(CUDA_ERROR_INVALID_VALUE);
    }
    let mut w = world();
    let sid = w.stream(stream, flavour)?;
    if w.streams[&sid].sort == Sort::Legacy {
        return Err(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
    }
    if w.streams[&sid].capture.is_some() {
        w.invalidate_stream(sid, "capture begun twice on one stream");
        return Err(greenboost_abi::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
    }
    let (id, graph) = (w.fresh(Kind::Other), w.fresh(Kind::Graph) as usize);
    let capture = Capture {
        mode,
        thread: local::key(),
        origin: sid,
        graph,
        nodes: Vec::new(),
        invalid: false,
    };
    w.captures.insert(id, capture);
    if let Some(s) = w.streams.get_mut(&sid) {
        s.capture = Some(Joined {
            id,
            tail: Vec::new(),
        });
    }
    Ok(())
}

fn end(stream: usize, graph: Out<usize>, flavour: Flavour) -> Res {
    graph.maybe(0);
    let mut w = world();
    let sid = w.stream(stream, flavour)?;
    let Some(joined) = w.streams[&sid].capture.clone() else {
        return Err(CUDA_ERROR_INVALID_VALUE);
    };
    let capture = &w.captures[&joined.id];
    if capture.origin != sid {
        w.invalidate(joined.id, "capture ended on a stream that did not begin it");
        return Err(UNMATCHED);
    }
    if capture.mode != CU_STREAM_CAPTURE_MODE_RELAXED && capture.thread != local::key() {
        w.invalidate(joined.id, "capture ended on another thread");
        return Err(CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD);
    }
    // Everything that other streams captured must be waited for by the origin's last node.
    let mut reached = vec![false; capture.nodes.len()];
    let mut todo = joined.tail.clone();
    while let Some(i) = todo.pop() {
        if !std::mem::replace(&mut reached[i], true) {
            todo.extend_from_slice(&capture.nodes[i].after);
        }
    }
    let unjoined = w
        .streams
        .iter()
        .filter(|(id, _)| **id != sid)
        .filter_map(|(_, s)| s.capture.as_ref().filter(|j| j.id == joined.id))
        .any(|j| j.tail.iter().any(|n| !reached[*n]));
    for s in w.streams.values_mut() {
        if s.capture.as_ref().is_some_and(|j| j.id == joined.id) {
            s.capture = None;
        }
    }
    let Some(capture) = w.captures.remove(&joined.id) else {
        return Err(CUDA_ERROR_INVALID_VALUE);
    };
    if capture.invalid {
        return Err(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
    }
    if unjoined {
        misuse!("capture ended with streams that were not joined");
        return Err(UNJOINED);
    }
    w.graphs.insert(capture.graph, capture.nodes);
    graph.set(capture.graph)
}

/// What a stream captures.
#[derive(Default)]
struct Status {
    /// 0 nothing, 1 something, 2 something that was invalidated.
    now: c_int,
    id: u64,
    graph: usize,
    /// What its next operation would wait for.
    nodes: Vec<usize>,
}

fn status(stream: usize, flavour: Flavour) -> Res<Status> {
    let mut w = world();
    let sid = w.stream(stream, flavour)?;
    if w.streams[&sid].sort == Sort::Legacy {
        let ctx = w.streams[&sid].ctx;
        let mut others = w
            .streams
            .values()
            .filter(|s| s.ctx == ctx && s.sort.blocks());
        if others.any(|s| s.capture.is_some()) {
            return Err(CUDA_ERROR_STREAM_CAPTURE_IMPLICIT);
        }
    }
    let Some(joined) = &w.streams[&sid].capture else {
        return Ok(Status::default());
    };
    let capture = &w.captures[&joined.id];
    Ok(Status {
        now: if capture.invalid { 2 } else { 1 },
        id: joined.id,
        graph: capture.graph,
        nodes: joined
            .tail
            .iter()
            .map(|n| node_handle(capture.graph, *n))
            .collect(),
    })
}

/// What `cuStreamGetCaptureInfo` tells beyond the state.
struct Info {
    id: Out<u64>,
    graph: Out<usize>,
    nodes: Out<*const usize>,
    count: Out<usize>,
}

fn info(stream: usize, flavour: Flavour, state: Out<c_int>, to: &Info) -> Res {
    let status = status(stream, flavour)?;
    if status.now == 1 {
        to.id.maybe(status.id);
        to.graph.maybe(status.graph);
        to.count.maybe(status.nodes.len());
        if !to.nodes.is_null() {
            // The list must outlive the call, and nobody says when it is done with.
            to.nodes.maybe(Vec::leak(status.nodes).as_ptr());
        }
    }
    state.set(status.now)
}

fn exchange(mode: Out<c_int>) -> Res {
    let wanted = mode.get()?;
    if !matches!(
        wanted,
        CU_STREAM_CAPTURE_MODE_GLOBAL
            | CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
            | CU_STREAM_CAPTURE_MODE_RELAXED
    ) {
        return Err(CUDA_ERROR_INVALID_VALUE);
    }
    mode.set(local::set_capture_mode(wanted))
}

api! {
    Context cuStreamBeginCapture {
        10000 cuStreamBeginCapture Legacy,
        10000 cuStreamBeginCapture_ptsz PerThread,
    } (stream: usize) |f| { begin(stream, CU_STREAM_CAPTURE_MODE_GLOBAL, f) }
    Context cuStreamBeginCapture {
        10010 cuStreamBeginCapture_v2 Legacy,
        10010 cuStreamBeginCapture_v2_ptsz PerThread,
    } (stream: usize, mode: c_int) |f| { begin(stream, mode, f) }
    Context cuStreamEndCapture {
        10000 cuStreamEndCapture Legacy,
        10000 cuStreamEndCapture_ptsz PerThread,
    } (stream: usize, graph: Out<usize>) |f| { end(stream, graph, f) }
    Context cuStreamIsCapturing {
        10000 cuStreamIsCapturing Legacy,
        10000 cuStreamIsCapturing_ptsz PerThread,
    } (stream: usize, state: Out<c_int>) |f| { state.set(status(stream, f)?.now) }
    Context cuStreamGetCaptureInfo {
        10010 cuStreamGetCaptureInfo Legacy,
        10010 cuStreamGetCaptureInfo_ptsz PerThread,
    } (stream: usize, state: Out<c_int>, id: Out<u64>) |f| {
        let status = status(stream, f)?;
        if status.now == 1 {
            id.maybe(status.id);
        }
        state.set(status.now)
    }
    Context cuStreamGetCaptureInfo {
        11030 cuStreamGetCaptureInfo_v2 Legacy,
        11030 cuStreamGetCaptureInfo_v2_ptsz PerThread,
    } (
        stream: usize, state: Out<c_int>, id: Out<u64>, graph: Out<usize>, nodes: Out<*const usize>,
        count: Out<usize>,
    ) |f| { info(stream, f, state, &Info { id, graph, nodes, count }) }
    Context cuStreamGetCaptureInfo {
        12030 cuStreamGetCaptureInfo_v3 Legacy,
        12030 cuStreamGetCaptureInfo_v3_ptsz PerThread,
    } (
        stream: usize, state: Out<c_int>, id: Out<u64>, graph: Out<usize>, nodes: Out<*const usize>,
        edges: Out<usize>, count: Out<usize>,
    ) |f| {
        // No edge carries data here.
        edges.maybe(0);
        info(stream, f, state, &Info { id, graph, nodes, count })
    }
    Init cuThreadExchangeStreamCaptureMode { 10010 cuThreadExchangeStreamCaptureMode Legacy } (mode: Out<c_int>) |_f| {
        exchange(mode)
    }
}
