//! Graph nodes that the program makes by hand, and their new operands in an executable graph.
use core::ffi::c_void;
use std::sync::Arc;

use greenboost_abi::*;

use crate::abi::{In, Memcpy3D, Out, Res};
use crate::area;
use crate::capture::Node;
use crate::copy;
use crate::graph::{node_handle, node_of, node_type, ranges};
use crate::graph_memory::{AllocParams, alloc_node, free_node};
use crate::launch;
use crate::memset;
use crate::queue::Range;
use crate::work::Work;
use crate::world::{World, world};

/// What a node is to do, its name, and the addresses that it names.
pub(crate) type Made = (&'static str, Work, Vec<Range>);

/// Where a node goes: the graph, and the nodes that it waits for.
#[derive(Clone, Copy)]
pub(crate) struct Spot {
    pub graph: usize,
    after: In<usize>,
    count: usize,
}

impl Spot {
    /// The numbers of the nodes that it waits for: all of this graph, none twice.
    fn after(&self, w: &World) -> Res<Vec<usize>> {
        let nodes = w.graph(self.graph)?.len();
        let mut after = Vec::new();
        for node in self.after.many(self.count)? {
            let (graph, index) = node_of(node);
            if graph != self.graph || index >= nodes || after.contains(&index) {
                return Err(CUDA_ERROR_INVALID_VALUE);
            }
            after.push(index);
        }
        Ok(after)
    }

    pub(crate) fn add(&self, out: Out<usize>, make: impl FnOnce(&mut World) -> Res<Made>) -> Res {
        out.check()?;
        let mut w = world();
        let after = self.after(&w)?;
        let (name, work, ranges) = make(&mut w)?;
        let Some(nodes) = w.graphs.get_mut(&self.graph) else {
            return Err(CUDA_ERROR_INVALID_HANDLE);
        };
        nodes.push(Node {
            name,
            work,
            ranges,
            after,
        });
        out.set(node_handle(self.graph, nodes.len() - 1))
    }
}

pub(crate) fn kernel(w: &mut World, ctx: usize, p: CUDA_KERNEL_NODE_PARAMS_v1) -> Res<Made> {
    let ctx = if ctx == 0 { w.here()? } else { ctx };
    let launch = launch::node(w, ctx, &p)?;
    let (name, ranges) = (launch.name(), launch.ranges());
    Ok((name, Work::Launch(Arc::new(launch)), ranges))
}

/// A kernel that is named in its own field takes the function's place.
pub(crate) fn either(p: CUDA_KERNEL_NODE_PARAMS) -> CUDA_KERNEL_NODE_PARAMS_v1 {
    let func = if p.v1.func.is_null() {
        p.kern.cast()
    } else {
        p.v1.func
    };
    CUDA_KERNEL_NODE_PARAMS_v1 { func, ..p.v1 }
}

pub(crate) fn memcpy(w: &mut World, ctx: usize, p: Memcpy3D) -> Res<Made> {
    w.sound(ctx)?;
    let (dst, src, shape) = area::sides(p, false)?;
    let copy = copy::node(w, dst, src, shape)?;
    let ranges = copy.ranges();
    Ok(("memcpy node", Work::Copy(Arc::new(copy)), ranges))
}

pub(crate) fn memset(w: &mut World, ctx: usize, p: CUDA_MEMSET_NODE_PARAMS) -> Res<Made> {
    w.sound(ctx)?;
    let (fill, len) = memset::node(w, &p)?;
    Ok((
        "memset node",
        Work::Fill(Arc::new(fill)),
        vec![(p.dst, p.dst + len)],
    ))
}

pub(crate) fn host(p: CUDA_HOST_NODE_PARAMS) -> Res<Made> {
    let call = p.r#fn.ok_or(CUDA_ERROR_INVALID_VALUE)?;
    let user = p.userData as usize;
    Ok(("host node", Work::Host { call, user }, Vec::new()))
}

fn empty() -> Made {
    ("empty node", Work::Nothing, Vec::new())
}

/// The child is copied as it is now.
fn child(w: &mut World, parent: usize, graph: usize) -> Res<Made> {
    if graph == parent {
        return Err(CUDA_ERROR_INVALID_VALUE);
    }
    if w.graph(graph)?.iter().any(Node::is_memory) {
        return Err(CUDA_ERROR_NOT_SUPPORTED);
    }
    let nodes = crate::graph::ordered(w.graph(graph)?)?.0;
    let named = ranges(&nodes);
    Ok(("child graph", Work::Graph(Arc::new(nodes)), named))
}

pub(crate) fn record(w: &World, event: usize) -> Res<Made> {
    w.event(event)?;
    Ok(("event record node", Work::Record(event), Vec::new()))
}

pub(crate) fn wait(w: &World, event: usize) -> Res<Made> {
    w.event(event)?;
    Ok(("event wait node", Work::WaitFor(event), Vec::new()))
}

/// Whether an executable graph's node may get these operands: a copy or memset of one row stays one (documented), and
/// copies stay on the kind of memory that they are on (measured).
pub(crate) fn may_become(old: &Work, new: &Work) -> bool {
    match (old, new) {
        (Work::Copy(a), Work::Copy(b)) => {
            let flat = |c: &crate::transfer::Copy| c.height == 1 && c.depth == 1;
            let same = a.width == b.width && a.height == b.height && a.depth == b.depth;
            (flat(a) && flat(b) || same) && a.behind == b.behind
        }
        (Work::Fill(a), Work::Fill(b)) => a.flat() == b.flat(),
        _ => true,
    }
}

/// Gives a node of an executable graph new operands. Launches that are under way keep the old ones.
pub(crate) fn set(exec: usize, node: usize, make: impl FnOnce(&mut World) -> Res<Made>) -> Res {
    let mut w = world();
    let (graph, index) = node_of(node);
    let old = w.exec(exec)?;
    if old.graph != graph || index >= old.place.len() {
        return Err(CUDA_ERROR_INVALID_VALUE);
    }
    let at = old.place[index];
    let (name, work, ranges) = make(&mut w)?;
    let Some(exec) = w.execs.get_mut(&exec) else {
        return Err(CUDA_ERROR_INVALID_HANDLE);
    };
    let old = &exec.nodes[at].work;
    if node_type(old) != node_type(&work) || !may_become(old, &work) {
        return Err(CUDA_ERROR_INVALID_VALUE);
    }
    let node = &mut Arc::make_mut(&mut exec.nodes)[at];
    (node.name, node.work, node.ranges) = (name, work, ranges);
    Ok(())
}

/// The one function for all kinds of nodes.
fn any(out: Out<usize>, spot: Spot, params: Out<CUgraphNodeParams>) -> Res {
    let mut p = params.get()?;
    // SAFETY: the kind says which variant the caller filled in.
    unsafe {
        match p.type_ {
            CU_GRAPH_NODE_TYPE_KERNEL => {
                let ctx = p.of.kernel.ctx as usize;
                spot.add(out, |w| kernel(w, ctx, either(p.of.kernel)))
            }
            CU_GRAPH_NODE_TYPE_MEMCPY => {
                let (ctx, copy) = (p.of.memcpy.copyCtx as usize, p.of.memcpy.copyParams);
                spot.add(out, |w| memcpy(w, ctx, boxes(copy)))
            }
            CU_GRAPH_NODE_TYPE_MEMSET => {
                let (ctx, set) = (p.of.memset.ctx as usize, p.of.memset.v1);
                spot.add(out, |w| memset(w, ctx, set))
            }
            CU_GRAPH_NODE_TYPE_HOST => spot.add(out, |_| host(p.of.host)),
            CU_GRAPH_NODE_TYPE_GRAPH => {
                spot.add(out, |w| child(w, spot.graph, p.of.graph as usize))
            }
            CU_GRAPH_NODE_TYPE_EMPTY => spot.add(out, |_| Ok(empty())),
            CU_GRAPH_NODE_TYPE_WAIT_EVENT => spot.add(out, |w| wait(w, p.of.event as usize)),
            CU_GRAPH_NODE_TYPE_EVENT_RECORD => spot.add(out, |w| record(w, p.of.event as usize)),
            CU_GRAPH_NODE_TYPE_MEM_ALLOC => {
                let alloc = &mut p.of.alloc;
                alloc_node(out, spot, alloc)?;
                params.set(p)
            }
            CU_GRAPH_NODE_TYPE_MEM_FREE => free_node(out, spot, p.of.free),
            _ => Err(CUDA_ERROR_NOT_SUPPORTED),
        }
    }
}

/// The same struct under its two names.
pub(crate) fn boxes(p: CUDA_MEMCPY3D) -> Memcpy3D {
    // SAFETY: both are `CUDA_MEMCPY3D` of `cuda.h`, field by field.
    unsafe { std::mem::transmute::<CUDA_MEMCPY3D, Memcpy3D>(p) }
}

api! {
    Context cuGraphAddKernelNode { 10000 cuGraphAddKernelNode Legacy } (out: Out<usize>, graph: usize, after: In<usize>, count: usize, p: In<CUDA_KERNEL_NODE_PARAMS_v1>) |_f| {
        let p = p.get()?;
        Spot { graph, after, count }.add(out, |w| kernel(w, 0, p))
    }
    Context cuGraphAddKernelNode { 12000 cuGraphAddKernelNode_v2 Legacy } (out: Out<usize>, graph: usize, after: In<usize>, count: usize, p: In<CUDA_KERNEL_NODE_PARAMS>) |_f| {
        let p = p.get()?;
        Spot { graph, after, count }.add(out, |w| kernel(w, p.ctx as usize, either(p)))
    }
    Init cuGraphAddMemcpyNode { 10000 cuGraphAddMemcpyNode Legacy } (out: Out<usize>, graph: usize, after: In<usize>, count: usize, p: In<Memcpy3D>, ctx: usize) |_f| {
        let p = p.get()?;
        Spot { graph, after, count }.add(out, |w| memcpy(w, ctx, p))
    }
    Init cuGraphAddMemsetNode { 10000 cuGraphAddMemsetNode Legacy } (out: Out<usize>, graph: usize, after: In<usize>, count: usize, p: In<CUDA_MEMSET_NODE_PARAMS>, ctx: usize) |_f| {
        let p = p.get()?;
        Spot { graph, after, count }.add(out, |w| memset(w, ctx, p))
    }
    Init cuGraphAddHostNode { 10000 cuGraphAddHostNode Legacy } (out: Out<usize>, graph: usize, after: In<usize>, count: usize, p: In<CUDA_HOST_NODE_PARAMS>) |_f| {
        let p = p.get()?;
        Spot { graph, after, count }.add(out, |_| host(p))
    }
    Init cuGraphAddEmptyNode { 10000 cuGraphAddEmptyNode Legacy } (out: Out<usize>, graph: usize, after: In<usize>, count: usize) |_f| {
        Spot { graph, after, count }.add(out, |_| Ok(empty()))
    }
    Init cuGraphAddChildGraphNode { 10000 cuGraphAddChildGraphNode Legacy } (out: Out<usize>, graph: usize, after: In<usize>, count: usize, below: usize) |_f| {
        Spot { graph, after, count }.add(out, |w| child(w, graph, below))
    }
    Init cuGraphAddEventRecordNode { 11010 cuGraphAddEventRecordNode Legacy } (out: Out<usize>, graph: usize, after: In<usize>, count: usize, event: usize) |_f| {
        Spot { graph, after, count }.add(out, |w| record(w, event))
    }
    Init cuGraphAddEventWaitNode { 11010 cuGraphAddEventWaitNode Legacy } (out: Out<usize>, graph: usize, after: In<usize>, count: usize, event: usize) |_f| {
        Spot { graph, after, count }.add(out, |w| wait(w, event))
    }
    Context cuGraphAddMemAllocNode { 11040 cuGraphAddMemAllocNode Legacy } (out: Out<usize>, graph: usize, after: In<usize>, count: usize, p: Out<AllocParams>) |_f| {
        let mut params = p.get()?;
        alloc_node(out, Spot { graph, after, count }, &mut params)?;
        p.set(params)
    }
    Init cuGraphAddMemFreeNode { 11040 cuGraphAddMemFreeNode Legacy } (out: Out<usize>, graph: usize, after: In<usize>, count: usize, va: u64) |_f| {
        free_node(out, Spot { graph, after, count }, va)
    }
    Context cuGraphAddNode { 12020 cuGraphAddNode Legacy } (out: Out<usize>, graph: usize, after: In<usize>, count: usize, p: Out<CUgraphNodeParams>) |_f| {
        any(out, Spot { graph, after, count }, p)
    }
    Context cuGraphAddNode { 12030 cuGraphAddNode_v2 Legacy } (out: Out<usize>, graph: usize, after: In<usize>, edges: *const c_void, count: usize, p: Out<CUgraphNodeParams>) |_f| {
        let _ = edges;
        any(out, Spot { graph, after, count }, p)
    }
    Context cuGraphExecKernelNodeSetParams { 10010 cuGraphExecKernelNodeSetParams Legacy } (exec: usize, node: usize, p: In<CUDA_KERNEL_NODE_PARAMS_v1>) |_f| {
        let p = p.get()?;
        set(exec, node, |w| kernel(w, 0, p))
    }
    Context cuGraphExecKernelNodeSetParams { 12000 cuGraphExecKernelNodeSetParams_v2 Legacy } (exec: usize, node: usize, p: In<CUDA_KERNEL_NODE_PARAMS>) |_f| {
        let p = p.get()?;
        set(exec, node, |w| kernel(w, p.ctx as usize, either(p)))
    }
    Init cuGraphExecMemcpyNodeSetParams { 10020 cuGraphExecMemcpyNodeSetParams Legacy } (exec: usize, node: usize, p: In<Memcpy3D>, ctx: usize) |_f| {
        let p = p.get()?;
        set(exec, node, |w| memcpy(w, ctx, p))
    }
    Init cuGraphExecMemsetNodeSetParams { 10020 cuGraphExecMemsetNodeSetParams Legacy } (exec: usize, node: usize, p: In<CUDA_MEMSET_NODE_PARAMS>, ctx: usize) |_f| {
        let p = p.get()?;
        set(exec, node, |w| memset(w, ctx, p))
    }
    Init cuGraphExecHostNodeSetParams { 10020 cuGraphExecHostNodeSetParams Legacy } (exec: usize, node: usize, p: In<CUDA_HOST_NODE_PARAMS>) |_f| {
        let p = p.get()?;
        set(exec, node, |_| host(p))
    }
    Init cuGraphExecChildGraphNodeSetParams { 11010 cuGraphExecChildGraphNodeSetParams Legacy } (exec: usize, node: usize, below: usize) |_f| {
        set(exec, node, |w| child(w, 0, below))
    }
    Init cuGraphExecEventRecordNodeSetEvent { 11010 cuGraphExecEventRecordNodeSetEvent Legacy } (exec: usize, node: usize, event: usize) |_f| {
        set(exec, node, |w| record(w, event))
    }
    Init cuGraphExecEventWaitNodeSetEvent { 11010 cuGraphExecEventWaitNodeSetEvent Legacy } (exec: usize, node: usize, event: usize) |_f| {
        set(exec, node, |w| wait(w, event))
    }
}
