//! Graphs: what a capture recorded, and its replay as one operation in a stream.
use core::ffi::{c_int, c_uint, c_void};
use std::sync::Arc;

use greenboost_abi::{CUDA_ERROR_INVALID_HANDLE, CUDA_ERROR_INVALID_VALUE};

use crate::abi::{Out, Res};
use crate::error::GRAPH_EXEC_UPDATE_FAILURE;
use crate::gate::Flavour;
use crate::misuse::misuse;
use crate::work::Work;
use crate::world::{Kind, World, world};

/// A node's handle holds its graph's serial number and, below that, its own number plus one.
const NODES: usize = 1 << 24;
const NODE_TAG: usize = 0x1e << 56;

impl World {
    fn graph(&self, handle: usize) -> Res<&Vec<crate::capture::Node>> {
        self.graphs.get(&handle).ok_or_else(|| {
            misuse!("use of graph {handle:#x}, which does not exist");
            CUDA_ERROR_INVALID_HANDLE
        })
    }

    fn exec(&self, handle: usize) -> Res<Arc<Vec<crate::capture::Node>>> {
        self.execs.get(&handle).cloned().ok_or_else(|| {
            misuse!("use of executable graph {handle:#x}, which does not exist");
            CUDA_ERROR_INVALID_HANDLE
        })
    }
}

pub(crate) fn node_handle(graph: usize, index: usize) -> usize {
    NODE_TAG | (((graph & ((1 << 40) - 1)) >> 6) * NODES + index + 1)
}

/// `CUgraphNodeType`
fn node_type(work: &Work) -> c_int {
    match work {
        Work::Launch(_) => 0,
        Work::Copy(_) => 1,
        Work::Fill(_) => 2,
        Work::Host { .. } | Work::Callback { .. } => 3,
        Work::Graph(_) => 4,
        Work::Nothing | Work::Stamp(_) | Work::Free(_) => 5,
        Work::Store(_) | Work::Await(_) => 12,
    }
}

fn instantiate(out: Out<usize>, graph: usize, flags: u64) -> Res {
    out.check()?;
    // Device-launchable graphs (bit 2) are not simulated.
    if flags & !0b1011 != 0 {
        return Err(CUDA_ERROR_INVALID_VALUE);
    }
    let mut w = world();
    let nodes = Arc::new(w.graph(graph)?.clone());
    let exec = w.fresh(Kind::GraphExec) as usize;
    w.execs.insert(exec, nodes);
    out.set(exec)
}

fn launch(exec: usize, stream: usize, flavour: Flavour) -> Res {
    let mut w = world();
    let sid = w.stream(stream, flavour)?;
    let nodes = w.exec(exec)?;
    let ranges = nodes
        .iter()
        .flat_map(|n| n.ranges.iter().copied())
        .collect();
    w.submit(sid, "graph", Work::Graph(nodes), ranges, Vec::new())
        .map(drop)
}

fn update(exec: usize, graph: usize) -> Res {
    let mut w = world();
    let (old, new) = (w.exec(exec)?, w.graph(graph)?.clone());
    let alike = old.len() == new.len()
        && old
            .iter()
            .zip(&new)
            .all(|(a, b)| node_type(&a.work) == node_type(&b.work) && a.after == b.after);
    if !alike {
        return Err(GRAPH_EXEC_UPDATE_FAILURE);
    }
    w.execs.insert(exec, Arc::new(new));
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
    let graph = ((Kind::Graph as usize) << 40) | (((node & !NODE_TAG) / NODES) << 6);
    let index = node % NODES;
    let w = world();
    let node = w
        .graph(graph)?
        .get(index.wrapping_sub(1))
        .ok_or(CUDA_ERROR_INVALID_HANDLE)?;
    Ok(node_type(&node.work))
}

/// `CUDA_GRAPH_INSTANTIATE_PARAMS`
#[repr(C)]
#[derive(Clone, Copy)]
pub struct InstantiateParams {
    flags: u64,
    hUploadStream: *mut c_void,
    hErrNode_out: *mut c_void,
    result_out: c_int,
}

/// `CUgraphExecUpdateResultInfo`
#[repr(C)]
#[derive(Clone, Copy)]
pub struct UpdateInfo {
    result: c_int,
    node: usize,
    from: usize,
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
        Ok(())
    }
    Context cuGraphInstantiate {
        10000 cuGraphInstantiate Legacy,
        11000 cuGraphInstantiate_v2 Legacy,
    } (exec: Out<usize>, graph: usize, error: Out<usize>, log: usize, size: usize) |_f| {
        let _ = (log, size);
        error.maybe(0);
        instantiate(exec, graph, 0)
    }
    Context cuGraphInstantiateWithFlags { 11040 cuGraphInstantiateWithFlags Legacy } (exec: Out<usize>, graph: usize, flags: u64) |_f| {
        instantiate(exec, graph, flags)
    }
    Context cuGraphInstantiateWithParams {
        12000 cuGraphInstantiateWithParams Legacy,
        12000 cuGraphInstantiateWithParams_ptsz PerThread,
    } (exec: Out<usize>, graph: usize, params: Out<InstantiateParams>) |_f| {
        let mut p = params.get()?;
        instantiate(exec, graph, p.flags & !2)?;
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
        w.stream(stream, f)?;
        w.exec(exec).map(drop)
    }
    Init cuGraphExecDestroy { 10000 cuGraphExecDestroy Legacy } (exec: usize) |_f| {
        let mut w = world();
        w.exec(exec)?;
        w.execs.remove(&exec);
        Ok(())
    }
    Init cuGraphExecUpdate { 10020 cuGraphExecUpdate Legacy } (exec: usize, graph: usize, node: Out<usize>, result: Out<c_int>) |_f| {
        node.maybe(0);
        let outcome = update(exec, graph);
        result.maybe(c_int::from(outcome.is_err()));
        outcome
    }
    Init cuGraphExecUpdate { 12000 cuGraphExecUpdate_v2 Legacy } (exec: usize, graph: usize, info: Out<UpdateInfo>) |_f| {
        let outcome = update(exec, graph);
        info.maybe(UpdateInfo { result: c_int::from(outcome.is_err()), node: 0, from: 0 });
        outcome
    }
    Init cuGraphGetNodes { 10000 cuGraphGetNodes Legacy } (graph: usize, out: Out<usize>, count: Out<usize>) |_f| {
        list(&nodes(graph, false)?, out, count)
    }
    Init cuGraphGetRootNodes { 10000 cuGraphGetRootNodes Legacy } (graph: usize, out: Out<usize>, count: Out<usize>) |_f| {
        list(&nodes(graph, true)?, out, count)
    }
    Init cuGraphNodeGetType { 10000 cuGraphNodeGetType Legacy } (node: usize, kind: Out<c_int>) |_f| { kind.set(type_of(node)?) }
}
