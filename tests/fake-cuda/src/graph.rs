//! Graphs: nodes that a capture recorded or the program made, and their replay as one operation in a stream.
use core::ffi::{c_int, c_uint};
use std::collections::BTreeSet;
use std::sync::Arc;

use greenboost_abi::*;

use crate::abi::{In, Out, Res};
use crate::capture::Node;
use crate::gate::Flavour;
use crate::misuse::misuse;
use crate::queue::Dep;
use crate::work::Work;
use crate::world::{Kind, World, world};

/// A node's handle holds its graph's serial number and, below that, its own number plus one.
const NODES: usize = 1 << 24;
const NODE_TAG: usize = 0x1e << 56;

/// An executable graph.
pub(crate) struct Exec {
    /// In an order in which every node comes after those that it waits for.
    pub nodes: Arc<Vec<Node>>,
    /// Where the graph's nodes are in that order.
    pub place: Vec<usize>,
    pub graph: usize,
    pub flags: u64,
    /// Nodes that do nothing now, by their place.
    pub off: BTreeSet<usize>,
    /// Its launches wait for each other, whatever their streams.
    pub last: Option<Dep>,
}

impl Exec {
    /// Its nodes; those that are off do nothing.
    fn to_run(&self) -> Arc<Vec<Node>> {
        if self.off.is_empty() {
            return self.nodes.clone();
        }
        let mut nodes = Vec::clone(&self.nodes);
        for at in &self.off {
            (nodes[*at].work, nodes[*at].ranges) = (Work::Nothing, Vec::new());
        }
        Arc::new(nodes)
    }
}

impl World {
    pub(crate) fn graph(&self, handle: usize) -> Res<&Vec<Node>> {
        self.graphs.get(&handle).ok_or_else(|| {
            misuse!("use of graph {handle:#x}, which does not exist");
            CUDA_ERROR_INVALID_HANDLE
        })
    }

    pub(crate) fn exec(&self, handle: usize) -> Res<&Exec> {
        self.execs.get(&handle).ok_or_else(|| {
            misuse!("use of executable graph {handle:#x}, which does not exist");
            CUDA_ERROR_INVALID_HANDLE
        })
    }
}

pub(crate) fn node_handle(graph: usize, index: usize) -> usize {
    NODE_TAG | (((graph & ((1 << 40) - 1)) >> 6) * NODES + index + 1)
}

/// The graph that a node's handle names, and the node's number in it.
pub(crate) fn node_of(node: usize) -> (usize, usize) {
    let graph = ((Kind::Graph as usize) << 40) | (((node & !NODE_TAG) / NODES) << 6);
    (graph, (node % NODES).wrapping_sub(1))
}

/// `CUgraphNodeType`
pub(crate) fn node_type(work: &Work) -> c_int {
    match work {
        Work::Launch(_) => CU_GRAPH_NODE_TYPE_KERNEL,
        Work::Copy(_) => CU_GRAPH_NODE_TYPE_MEMCPY,
        Work::Fill(_) => CU_GRAPH_NODE_TYPE_MEMSET,
        Work::Host { .. } | Work::Callback { .. } => CU_GRAPH_NODE_TYPE_HOST,
        Work::Graph(_) => CU_GRAPH_NODE_TYPE_GRAPH,
        Work::Nothing | Work::Stamp(_) | Work::Free(..) => CU_GRAPH_NODE_TYPE_EMPTY,
        Work::WaitFor(_) => CU_GRAPH_NODE_TYPE_WAIT_EVENT,
        Work::Record(_) => CU_GRAPH_NODE_TYPE_EVENT_RECORD,
        Work::GraphAlloc { .. } => CU_GRAPH_NODE_TYPE_MEM_ALLOC,
        Work::GraphFree(_) => CU_GRAPH_NODE_TYPE_MEM_FREE,
        Work::Store(_) | Work::Await(_) => CU_GRAPH_NODE_TYPE_BATCH_MEM_OP,
    }
}

/// The nodes in an order in which they can run, and where each went. A circle has none.
pub(crate) fn ordered(nodes: &[Node]) -> Res<(Vec<Node>, Vec<usize>)> {
    let (mut order, mut place) = (Vec::new(), vec![usize::MAX; nodes.len()]);
    while order.len() < nodes.len() {
        let before = order.len();
        for (i, node) in nodes.iter().enumerate() {
            if place[i] == usize::MAX && node.after.iter().all(|n| place[*n] != usize::MAX) {
                place[i] = order.len();
                order.push(node.clone());
            }
        }
        if order.len() == before {
            return Err(CUDA_ERROR_INVALID_VALUE);
        }
    }
    Ok((order, place))
}

fn instantiate(out: Out<usize>, graph: usize, flags: u64, stream: Option<u64>) -> Res {
    out.check()?;
    // Device-launchable graphs (bit 2) are not simulated.
    if flags & !0b1011 != 0 {
        return Err(CUDA_ERROR_INVALID_VALUE);
    }
    let mut w = world();
    let (nodes, place) = ordered(w.graph(graph)?)?;
    if w.has_memory(graph) && w.execs.values().any(|e| e.graph == graph) {
        return Err(CUDA_ERROR_NOT_SUPPORTED);
    }
    let handle = w.fresh(Kind::GraphExec) as usize;
    let exec = Exec {
        nodes: Arc::new(nodes),
        place,
        graph,
        flags,
        off: BTreeSet::new(),
        last: None,
    };
    w.execs.insert(handle, exec);
    if let Some(sid) = stream
        && let Err(code) = w.back_graph(handle, sid)
    {
        w.execs.remove(&handle);
        return Err(code);
    }
    out.set(handle)
}

fn instantiate_in(
    out: Out<usize>,
    graph: usize,
    flags: u64,
    stream: Option<usize>,
    flavour: Flavour,
) -> Res {
    let sid = stream.map(|s| world().stream(s, flavour)).transpose()?;
    instantiate(out, graph, flags, sid)
}

fn launch(exec: usize, stream: usize, flavour: Flavour) -> Res {
    let mut w = world();
    let sid = w.stream(stream, flavour)?;
    let nodes = w.exec(exec)?.to_run();
    if w.streams[&sid].capture.is_some() {
        // A captured launch is a child graph.
        if nodes.iter().any(Node::is_memory) {
            return Err(CUDA_ERROR_NOT_SUPPORTED);
        }
        return w
            .submit(
                sid,
                "graph",
                Work::Graph(nodes.clone()),
                ranges(&nodes),
                Vec::new(),
            )
            .map(drop);
    }
    let mut deps: Vec<Dep> = w.exec(exec)?.last.into_iter().collect();
    deps.extend(w.enter_graph(exec, sid)?);
    let seq = w.submit(
        sid,
        "graph",
        Work::Graph(nodes.clone()),
        ranges(&nodes),
        deps,
    )?;
    w.leave_graph(&nodes);
    if let Some(seq) = seq {
        let dep = Dep { stream: sid, seq };
        if let Some(exec) = w.execs.get_mut(&exec) {
            exec.last = Some(dep);
        }
        w.recorded_by_graph(&nodes, dep);
    }
    Ok(())
}

pub(crate) fn ranges(nodes: &[Node]) -> Vec<crate::queue::Range> {
    nodes
        .iter()
        .flat_map(|n| n.ranges.iter().copied())
        .collect()
}

/// Why an update is refused, and because of which node of the new graph (0: none in particular).
struct Refusal {
    result: CUgraphExecUpdateResult,
    node: usize,
    code: CUresult,
}

impl From<CUresult> for Refusal {
    fn from(code: CUresult) -> Refusal {
        Refusal {
            result: CU_GRAPH_EXEC_UPDATE_ERROR,
            node: 0,
            code,
        }
    }
}

fn update(exec: usize, graph: usize) -> Result<(), Refusal> {
    let refused = |result, node| Refusal {
        result,
        node,
        code: CUDA_ERROR_GRAPH_EXEC_UPDATE_FAILURE,
    };
    let mut w = world();
    let (nodes, place) = ordered(w.graph(graph)?)?;
    let old = w.exec(exec)?;
    let pairs = || old.nodes.iter().zip(&nodes);
    if old.nodes.len() != nodes.len()
        || old.place != place
        || pairs().any(|(a, b)| a.after != b.after)
    {
        return Err(refused(CU_GRAPH_EXEC_UPDATE_ERROR_TOPOLOGY_CHANGED, 0));
    }
    let handle = |at: usize| {
        let index = place.iter().position(|p| *p == at);
        index.map_or(0, |i| node_handle(graph, i))
    };
    for (at, (a, b)) in pairs().enumerate() {
        if node_type(&a.work) != node_type(&b.work) {
            let why = CU_GRAPH_EXEC_UPDATE_ERROR_NODE_TYPE_CHANGED;
            return Err(refused(why, handle(at)));
        }
        if !crate::node::may_become(&a.work, &b.work) {
            let why = CU_GRAPH_EXEC_UPDATE_ERROR_PARAMETERS_CHANGED;
            return Err(refused(why, handle(at)));
        }
    }
    // Allocations belong to the graph that was instantiated: a graph that has some is not taken (not measured).
    if let Some(at) = nodes.iter().position(Node::is_memory) {
        let why = CU_GRAPH_EXEC_UPDATE_ERROR_NOT_SUPPORTED;
        return Err(refused(why, handle(at)));
    }
    if let Some(exec) = w.execs.get_mut(&exec) {
        exec.nodes = Arc::new(nodes);
    }
    Ok(())
}

/// Fills an array of handles, or says how many there are.
fn list(all: &[usize], out: Out<usize>, count: Out<usize>) -> Res {
    let room = count.get()?;
    if out.is_null() {
        return count.set(all.len());
    }
    for i in 0..room {
        out.set_at(i, all.get(i).copied().unwrap_or(0))?;
    }
    count.set(all.len().min(room))
}

fn nodes(graph: usize, roots: bool) -> Res<Vec<usize>> {
    let w = world();
    let all = w.graph(graph)?.iter().enumerate();
    Ok(all
        .filter(|(_, n)| !roots || n.after.is_empty())
        .map(|(i, _)| node_handle(graph, i))
        .collect())
}

fn type_of(node: usize) -> Res<c_int> {
    let (graph, index) = node_of(node);
    let w = world();
    let node = w
        .graph(graph)?
        .get(index)
        .ok_or(CUDA_ERROR_INVALID_HANDLE)?;
    Ok(node_type(&node.work))
}

/// Adds edges.
fn join(graph: usize, from: Vec<usize>, to: Vec<usize>) -> Res {
    let mut w = world();
    let count = w.graph(graph)?.len();
    for (from, to) in from.into_iter().zip(to) {
        let ((a, before), (b, after)) = (node_of(from), node_of(to));
        if (a, b) != (graph, graph) || before >= count || after >= count || before == after {
            return Err(CUDA_ERROR_INVALID_VALUE);
        }
        let nodes = w.graphs.get_mut(&graph).ok_or(CUDA_ERROR_INVALID_HANDLE)?;
        if nodes[after].after.contains(&before) {
            return Err(CUDA_ERROR_INVALID_VALUE);
        }
        nodes[after].after.push(before);
    }
    Ok(())
}

api! {
    Init cuGraphCreate { 10000 cuGraphCreate Legacy } (graph: Out<usize>, flags: c_uint) |_f| {
        if flags != 0 {
            return Err(CUDA_ERROR_INVALID_VALUE);
        }
        let mut w = world();
        let handle = w.fresh(Kind::Graph) as usize;
        w.graphs.insert(handle, Vec::new());
        graph.set(handle)
    }
    Init cuGraphDestroy { 10000 cuGraphDestroy Legacy } (graph: usize) |_f| {
        let mut w = world();
        w.graph(graph)?;
        w.graphs.remove(&graph);
        w.clones.remove(&graph);
        let children: Vec<usize> = w.children.extract_if(.., |(parent, _), _| *parent == graph).map(|(_, child)| child).collect();
        children.iter().for_each(|child| drop(w.graphs.remove(child)));
        w.forget_graph(graph);
        Ok(())
    }
    Context cuGraphInstantiate {
        10000 cuGraphInstantiate Legacy,
        11000 cuGraphInstantiate_v2 Legacy,
    } (exec: Out<usize>, graph: usize, error: Out<usize>, log: usize, size: usize) |_f| {
        let _ = (log, size);
        error.maybe(0);
        instantiate(exec, graph, 0, None)
    }
    Context cuGraphInstantiateWithFlags { 11040 cuGraphInstantiateWithFlags Legacy } (exec: Out<usize>, graph: usize, flags: u64) |_f| {
        // There is no stream to upload to (measured: 1).
        if flags & CUDA_GRAPH_INSTANTIATE_FLAG_UPLOAD != 0 {
            return Err(CUDA_ERROR_INVALID_VALUE);
        }
        instantiate(exec, graph, flags, None)
    }
    Context cuGraphInstantiateWithParams {
        12000 cuGraphInstantiateWithParams Legacy,
        12000 cuGraphInstantiateWithParams_ptsz PerThread,
    } (exec: Out<usize>, graph: usize, params: Out<CUDA_GRAPH_INSTANTIATE_PARAMS>) |f| {
        let mut p = params.get()?;
        let stream = (p.flags & CUDA_GRAPH_INSTANTIATE_FLAG_UPLOAD != 0).then_some(p.hUploadStream as usize);
        instantiate_in(exec, graph, p.flags, stream, f)?;
        p.result_out = 0;
        p.hErrNode_out = std::ptr::null_mut();
        params.set(p)
    }
    Context cuGraphLaunch {
        10000 cuGraphLaunch Legacy,
        10000 cuGraphLaunch_ptsz PerThread,
    } (exec: usize, stream: usize) |f| { launch(exec, stream, f) }
    Context cuGraphUpload {
        11010 cuGraphUpload Legacy,
        11010 cuGraphUpload_ptsz PerThread,
    } (exec: usize, stream: usize) |f| {
        let mut w = world();
        let sid = w.stream(stream, f)?;
        w.exec(exec)?;
        w.back_graph(exec, sid).map(drop)
    }
    Init cuGraphExecDestroy { 10000 cuGraphExecDestroy Legacy } (exec: usize) |_f| {
        let mut w = world();
        let graph = w.exec(exec)?.graph;
        w.execs.remove(&exec);
        w.forget_graph(graph);
        Ok(())
    }
    Init cuGraphExecUpdate { 10020 cuGraphExecUpdate Legacy } (exec: usize, graph: usize, node: Out<usize>, result: Out<c_int>) |_f| {
        let outcome = update(exec, graph);
        node.maybe(outcome.as_ref().err().map_or(0, |r| r.node));
        result.maybe(outcome.as_ref().err().map_or(CU_GRAPH_EXEC_UPDATE_SUCCESS, |r| r.result));
        outcome.map_err(|r| r.code)
    }
    Init cuGraphExecUpdate { 12000 cuGraphExecUpdate_v2 Legacy } (exec: usize, graph: usize, info: Out<CUgraphExecUpdateResultInfo>) |_f| {
        let outcome = update(exec, graph);
        info.maybe(CUgraphExecUpdateResultInfo {
            result: outcome.as_ref().err().map_or(CU_GRAPH_EXEC_UPDATE_SUCCESS, |r| r.result),
            errorNode: outcome.as_ref().err().map_or(0, |r| r.node) as CUgraphNode,
            errorFromNode: std::ptr::null_mut(),
        });
        outcome.map_err(|r| r.code)
    }
    Init cuGraphAddDependencies { 10000 cuGraphAddDependencies Legacy } (graph: usize, from: In<usize>, to: In<usize>, count: usize) |_f| {
        join(graph, from.many(count)?, to.many(count)?)
    }
    Init cuGraphAddDependencies { 12030 cuGraphAddDependencies_v2 Legacy } (graph: usize, from: In<usize>, to: In<usize>, edges: usize, count: usize) |_f| {
        let _ = edges;
        join(graph, from.many(count)?, to.many(count)?)
    }
    Init cuGraphGetNodes { 10000 cuGraphGetNodes Legacy } (graph: usize, out: Out<usize>, count: Out<usize>) |_f| {
        list(&nodes(graph, false)?, out, count)
    }
    Init cuGraphGetRootNodes { 10000 cuGraphGetRootNodes Legacy } (graph: usize, out: Out<usize>, count: Out<usize>) |_f| {
        list(&nodes(graph, true)?, out, count)
    }
    Init cuGraphNodeGetType { 10000 cuGraphNodeGetType Legacy } (node: usize, kind: Out<c_int>) |_f| { kind.set(type_of(node)?) }
}
