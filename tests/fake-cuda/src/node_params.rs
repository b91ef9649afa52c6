//! What graph nodes were made from, as they tell it; new operands for nodes of a graph; clones; nodes that are off.
use core::ffi::{c_int, c_uint};

use greenboost_abi::*;

use crate::abi::{In, Memcpy3D, Out, Res};
use crate::capture::Node;
use crate::graph::{node_handle, node_of, node_type};
use crate::node::{Made, boxes, either, host, kernel, memcpy, memset, record, set, wait};
use crate::work::Work;
use crate::world::{Kind, World, world};

impl World {
    fn node(&self, node: usize) -> Res<&Node> {
        let (graph, index) = node_of(node);
        self.graph(graph)?
            .get(index)
            .ok_or(CUDA_ERROR_INVALID_HANDLE)
    }
}

/// Asks a node something that only nodes of its kind know.
fn told<T>(node: usize, tell: impl FnOnce(&World, &Work) -> Option<T>) -> Res<T> {
    let w = world();
    tell(&w, &w.node(node)?.work).ok_or(CUDA_ERROR_INVALID_VALUE)
}

/// Gives a node of a graph new operands, of whatever memory.
fn renew(node: usize, make: impl FnOnce(&mut World) -> Res<Made>) -> Res {
    let mut w = world();
    let old = node_type(&w.node(node)?.work);
    let (name, work, ranges) = make(&mut w)?;
    if node_type(&work) != old {
        return Err(CUDA_ERROR_INVALID_VALUE);
    }
    let (graph, index) = node_of(node);
    if let Some(node) = w.graphs.get_mut(&graph).and_then(|g| g.get_mut(index)) {
        (node.name, node.work, node.ranges) = (name, work, ranges);
    }
    Ok(())
}

/// The parameters of any kind that can be changed.
fn of_any(w: &mut World, p: CUgraphNodeParams) -> Res<Made> {
    // SAFETY: the kind says which variant the caller filled in.
    unsafe {
        match p.type_ {
            CU_GRAPH_NODE_TYPE_KERNEL => kernel(w, p.of.kernel.ctx as usize, either(p.of.kernel)),
            CU_GRAPH_NODE_TYPE_MEMCPY => {
                let (ctx, copy) = (p.of.memcpy.copyCtx as usize, p.of.memcpy.copyParams);
                memcpy(w, ctx, boxes(copy))
            }
            CU_GRAPH_NODE_TYPE_MEMSET => memset(w, p.of.memset.ctx as usize, p.of.memset.v1),
            CU_GRAPH_NODE_TYPE_HOST => host(p.of.host),
            CU_GRAPH_NODE_TYPE_WAIT_EVENT => wait(w, p.of.event as usize),
            CU_GRAPH_NODE_TYPE_EVENT_RECORD => record(w, p.of.event as usize),
            _ => Err(CUDA_ERROR_NOT_SUPPORTED),
        }
    }
}

/// The graph in a child node, as it was when the node was made. Changing it changes nothing here.
fn child(node: usize) -> Res<usize> {
    let mut w = world();
    let Work::Graph(nodes) = &w.node(node)?.work else {
        return Err(CUDA_ERROR_INVALID_VALUE);
    };
    let nodes = Vec::clone(nodes);
    let place = node_of(node);
    if let Some(known) = w.children.get(&place) {
        return Ok(*known);
    }
    let graph = w.fresh(Kind::Graph) as usize;
    w.graphs.insert(graph, nodes);
    w.children.insert(place, graph);
    Ok(graph)
}

fn clone(graph: usize) -> Res<usize> {
    let mut w = world();
    if w.has_memory(graph) {
        return Err(CUDA_ERROR_NOT_SUPPORTED);
    }
    let nodes = w.graph(graph)?.clone();
    let clone = w.fresh(Kind::Graph) as usize;
    w.graphs.insert(clone, nodes);
    w.clones.insert(clone, graph);
    Ok(clone)
}

/// The node of a clone that was made of this one.
fn in_clone(node: usize, clone: usize) -> Res<usize> {
    let w = world();
    let (graph, index) = node_of(node);
    if w.clones.get(&clone) != Some(&graph) || index >= w.graph(clone)?.len() {
        return Err(CUDA_ERROR_INVALID_VALUE);
    }
    Ok(node_handle(clone, index))
}

/// Fills the ends of all edges in, or says how many there are.
fn edges(graph: usize, from: Out<usize>, to: Out<usize>, count: Out<usize>) -> Res {
    let w = world();
    let nodes = w.graph(graph)?.iter().enumerate();
    let all: Vec<[usize; 2]> = nodes
        .flat_map(|(i, n)| n.after.iter().map(move |before| [*before, i]))
        .map(|ends| ends.map(|i| node_handle(graph, i)))
        .collect();
    if from.is_null() && to.is_null() {
        return count.set(all.len());
    }
    let room = count.get()?.min(all.len());
    for (i, ends) in all.iter().take(room).enumerate() {
        from.set_at(i, ends[0])?;
        to.set_at(i, ends[1])?;
    }
    count.set(room)
}

/// The place of a node in an executable graph, if it is of a kind that can be off.
fn switch(w: &World, exec: usize, node: usize) -> Res<usize> {
    let (graph, index) = node_of(node);
    let exec = w.exec(exec)?;
    let at = exec
        .place
        .get(index)
        .filter(|_| exec.graph == graph)
        .ok_or(CUDA_ERROR_INVALID_VALUE)?;
    match exec.nodes[*at].work {
        Work::Launch(_) | Work::Copy(_) | Work::Fill(_) => Ok(*at),
        _ => Err(CUDA_ERROR_INVALID_VALUE),
    }
}

api! {
    Init cuGraphClone { 10000 cuGraphClone Legacy } (out: Out<usize>, graph: usize) |_f| {
        out.check()?;
        out.set(clone(graph)?)
    }
    Init cuGraphNodeFindInClone { 10000 cuGraphNodeFindInClone Legacy } (out: Out<usize>, node: usize, graph: usize) |_f| {
        out.set(in_clone(node, graph)?)
    }
    Init cuGraphChildGraphNodeGetGraph { 10000 cuGraphChildGraphNodeGetGraph Legacy } (node: usize, out: Out<usize>) |_f| {
        out.check()?;
        out.set(child(node)?)
    }
    Init cuGraphGetEdges { 10000 cuGraphGetEdges Legacy } (graph: usize, from: Out<usize>, to: Out<usize>, count: Out<usize>) |_f| {
        edges(graph, from, to, count)
    }
    Init cuGraphGetEdges { 12030 cuGraphGetEdges_v2 Legacy } (graph: usize, from: Out<usize>, to: Out<usize>, data: Out<u64>, count: Out<usize>) |_f| {
        edges(graph, from, to, count)?;
        // No edge carries data here.
        (0..if data.is_null() { 0 } else { count.get()? }).try_for_each(|i| data.set_at(i, 0))
    }
    Init cuGraphKernelNodeGetParams { 12000 cuGraphKernelNodeGetParams_v2 Legacy } (node: usize, p: Out<CUDA_KERNEL_NODE_PARAMS>) |_f| {
        p.set(told(node, |w, work| match work {
            Work::Launch(launch) => Some(launch.told(w)),
            _ => None,
        })?)
    }
    Init cuGraphKernelNodeGetAttribute { 11000 cuGraphKernelNodeGetAttribute Legacy } (node: usize, which: c_int, value: Out<[u64; 8]>) |_f| {
        let _ = which;
        // Attributes of launches are ignored.
        value.set(told(node, |_, work| matches!(work, Work::Launch(_)).then_some([0; 8]))?)
    }
    Init cuGraphMemcpyNodeGetParams { 10000 cuGraphMemcpyNodeGetParams Legacy } (node: usize, p: Out<CUDA_MEMCPY3D>) |_f| {
        p.set(told(node, |_, work| match work {
            Work::Copy(copy) => Some(copy.told()),
            _ => None,
        })?)
    }
    Init cuGraphMemsetNodeGetParams { 10000 cuGraphMemsetNodeGetParams Legacy } (node: usize, p: Out<CUDA_MEMSET_NODE_PARAMS>) |_f| {
        p.set(told(node, |_, work| match work {
            Work::Fill(fill) => Some(fill.told()),
            _ => None,
        })?)
    }
    Init cuGraphBatchMemOpNodeGetParams { 11070 cuGraphBatchMemOpNodeGetParams Legacy } (node: usize, p: Out<CUDA_BATCH_MEM_OP_NODE_PARAMS>) |_f| {
        let op = told(node, |_, work| match work {
            Work::Store(cell) => Some(cell.told(false)),
            Work::Await(cell) => Some(cell.told(true)),
            _ => None,
        })?;
        p.set(CUDA_BATCH_MEM_OP_NODE_PARAMS {
            ctx: std::ptr::null_mut(),
            count: 1,
            // The list must outlive the call, and nobody says when it is done with.
            paramArray: Box::leak(Box::new(op)),
            flags: 0,
        })
    }
    Context cuGraphKernelNodeSetParams { 10000 cuGraphKernelNodeSetParams Legacy } (node: usize, p: In<CUDA_KERNEL_NODE_PARAMS_v1>) |_f| {
        let p = p.get()?;
        renew(node, |w| kernel(w, 0, p))
    }
    Context cuGraphKernelNodeSetParams { 12000 cuGraphKernelNodeSetParams_v2 Legacy } (node: usize, p: In<CUDA_KERNEL_NODE_PARAMS>) |_f| {
        let p = p.get()?;
        renew(node, |w| kernel(w, p.ctx as usize, either(p)))
    }
    Context cuGraphMemcpyNodeSetParams { 10000 cuGraphMemcpyNodeSetParams Legacy } (node: usize, p: In<Memcpy3D>) |_f| {
        let p = p.get()?;
        renew(node, |w| { let ctx = w.here()?; memcpy(w, ctx, p) })
    }
    Context cuGraphMemsetNodeSetParams { 10000 cuGraphMemsetNodeSetParams Legacy } (node: usize, p: In<CUDA_MEMSET_NODE_PARAMS>) |_f| {
        let p = p.get()?;
        renew(node, |w| { let ctx = w.here()?; memset(w, ctx, p) })
    }
    Init cuGraphHostNodeSetParams { 10000 cuGraphHostNodeSetParams Legacy } (node: usize, p: In<CUDA_HOST_NODE_PARAMS>) |_f| {
        let p = p.get()?;
        renew(node, |_| host(p))
    }
    Init cuGraphEventRecordNodeSetEvent { 11010 cuGraphEventRecordNodeSetEvent Legacy } (node: usize, event: usize) |_f| {
        renew(node, |w| record(w, event))
    }
    Init cuGraphEventWaitNodeSetEvent { 11010 cuGraphEventWaitNodeSetEvent Legacy } (node: usize, event: usize) |_f| {
        renew(node, |w| wait(w, event))
    }
    Init cuGraphNodeSetParams { 12020 cuGraphNodeSetParams Legacy } (node: usize, p: In<CUgraphNodeParams>) |_f| {
        let p = p.get()?;
        renew(node, |w| of_any(w, p))
    }
    Init cuGraphExecNodeSetParams { 12020 cuGraphExecNodeSetParams Legacy } (exec: usize, node: usize, p: In<CUgraphNodeParams>) |_f| {
        let p = p.get()?;
        set(exec, node, |w| of_any(w, p))
    }
    Init cuGraphNodeSetEnabled { 11060 cuGraphNodeSetEnabled Legacy } (exec: usize, node: usize, on: c_uint) |_f| {
        let mut w = world();
        let at = switch(&w, exec, node)?;
        let exec = w.execs.get_mut(&exec).ok_or(CUDA_ERROR_INVALID_HANDLE)?;
        if on == 0 {
            exec.off.insert(at);
        } else {
            exec.off.remove(&at);
        }
        Ok(())
    }
    Init cuGraphNodeGetEnabled { 11060 cuGraphNodeGetEnabled Legacy } (exec: usize, node: usize, on: Out<c_uint>) |_f| {
        let w = world();
        let at = switch(&w, exec, node)?;
        on.set(c_uint::from(!w.exec(exec)?.off.contains(&at)))
    }
    Init cuGraphExecGetFlags { 12000 cuGraphExecGetFlags Legacy } (exec: usize, flags: Out<u64>) |_f| {
        // The upload is over.
        flags.set(world().exec(exec)?.flags & !CUDA_GRAPH_INSTANTIATE_FLAG_UPLOAD)
    }
}
