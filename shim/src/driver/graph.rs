//! Graphs, as the driver tells them and makes them.
//!
//! None of these calls waits, and none concerns a capture; the thread's capture mode is relaxed all the same where
//! something is made ([`Relaxed`]).

use std::ffi::{c_int, c_uint};
use std::mem::MaybeUninit;

use greenboost_abi::*;

use super::{Relaxed, Result, check, raw};
use crate::hooks::real;
use crate::tier::map::Handle;

/// The nodes of a graph, in the driver's order.
///
/// # Safety
/// A graph that is not destroyed.
pub unsafe fn nodes(graph: Handle) -> Result<Vec<CUgraphNode>> {
    let mut count = 0;
    // SAFETY: the caller's promise; without a list only the count is written.
    check(unsafe { raw::cuGraphGetNodes(graph.0 as CUgraph, std::ptr::null_mut(), &mut count) })?;
    let mut nodes = vec![std::ptr::null_mut(); count];
    if count > 0 {
        // SAFETY: as above; the list has room for so many.
        check(unsafe { raw::cuGraphGetNodes(graph.0 as CUgraph, nodes.as_mut_ptr(), &mut count) })?;
    }
    nodes.truncate(count);
    Ok(nodes)
}

/// The edges of a graph, in the driver's order: from and to.
///
/// # Errors
/// The driver's; one is that edges carry data, before driver 12.3.
///
/// # Safety
/// A graph that is not destroyed.
pub unsafe fn edges(graph: Handle) -> Result<Vec<(CUgraphNode, CUgraphNode)>> {
    let graph = graph.0 as CUgraph;
    let list =
        |from: *mut CUgraphNode, to: *mut CUgraphNode, data: *mut [u8; 8], count: *mut usize| {
            // SAFETY: the caller's promise; all lists have room, or are null.
            unsafe {
                match check(raw::cuGraphGetEdges_v2(graph, from, to, data.cast(), count)) {
                    Err(_) => check(raw::cuGraphGetEdges(graph, from, to, count)),
                    done => done,
                }
            }
        };
    let (mut count, none) = (0, std::ptr::null_mut());
    list(none, none, std::ptr::null_mut(), &mut count)?;
    let mut from: Vec<CUgraphNode> = vec![std::ptr::null_mut(); count];
    let mut to = from.clone();
    let mut data = vec![[0u8; 8]; count];
    if count > 0 {
        list(
            from.as_mut_ptr(),
            to.as_mut_ptr(),
            data.as_mut_ptr(),
            &mut count,
        )?;
    }
    Ok(from.into_iter().zip(to).take(count).collect())
}

/// What kind of node it is.
///
/// # Safety
/// A node of a graph that is not destroyed.
pub unsafe fn kind(node: CUgraphNode) -> Result<CUgraphNodeType> {
    let mut kind: c_int = -1;
    // SAFETY: the caller's promise; writes one int.
    check(unsafe { raw::cuGraphNodeGetType(node, &mut kind) })?;
    Ok(kind)
}

macro_rules! told {
    ($($(#[$about:meta])* $ours:ident = $raw:ident -> $ty:ty;)*) => {$(
        $(#[$about])*
        ///
        /// # Safety
        /// A node of that kind, of a graph that is not destroyed. What the parameters point to is the node's.
        pub unsafe fn $ours(node: CUgraphNode) -> Result<$ty> {
            let mut params = MaybeUninit::<$ty>::zeroed();
            // SAFETY: the caller's promise; the driver fills all of it in.
            check(unsafe { raw::$raw(node, params.as_mut_ptr()) })?;
            // SAFETY: filled in; and zeroes are good for it.
            Ok(unsafe { params.assume_init() })
        }
    )*};
}

told! {
    /// What a kernel node launches.
    kernel = cuGraphKernelNodeGetParams_v2 -> CUDA_KERNEL_NODE_PARAMS;
    /// What a copy node copies.
    copy = cuGraphMemcpyNodeGetParams -> CUDA_MEMCPY3D;
    /// What a memset node sets.
    set = cuGraphMemsetNodeGetParams -> CUDA_MEMSET_NODE_PARAMS;
    /// The memory operations of a node.
    batch = cuGraphBatchMemOpNodeGetParams -> CUDA_BATCH_MEM_OP_NODE_PARAMS;
}

/// The graph that a child node holds.
///
/// # Safety
/// A child node of a graph that is not destroyed.
pub unsafe fn child(node: CUgraphNode) -> Result<Handle> {
    let mut graph = std::ptr::null_mut();
    // SAFETY: the caller's promise; writes one handle, which is the node's.
    check(unsafe { raw::cuGraphChildGraphNodeGetGraph(node, &mut graph) })?;
    Ok(Handle(graph as usize))
}

/// A copy of a graph, the caller's own.
///
/// # Safety
/// A graph that is not destroyed.
pub unsafe fn clone(graph: Handle) -> Result<Handle> {
    let _relaxed = Relaxed::enter();
    let mut clone = std::ptr::null_mut();
    // SAFETY: the caller's promise; writes one handle.
    check(unsafe { raw::cuGraphClone(&mut clone, graph.0 as CUgraph) })?;
    Ok(Handle(clone as usize))
}

/// The node of a clone that was made of this one.
///
/// # Safety
/// A node of the graph that was cloned; neither is destroyed.
pub unsafe fn in_clone(node: CUgraphNode, clone: Handle) -> Result<CUgraphNode> {
    let mut found = std::ptr::null_mut();
    // SAFETY: the caller's promise; writes one handle.
    check(unsafe { raw::cuGraphNodeFindInClone(&mut found, node, clone.0 as CUgraph) })?;
    Ok(found)
}

/// Destroys a graph of the shim's own.
///
/// # Safety
/// It came from [`clone`], and nobody uses it any more.
pub unsafe fn destroy(graph: Handle) {
    // SAFETY: the caller's promise.
    unsafe { real::cuGraphDestroy(graph.0 as CUgraph) };
}

/// A new instance of a graph.
///
/// # Safety
/// A graph that is not destroyed.
pub unsafe fn instantiate(graph: Handle, flags: u64) -> Result<Handle> {
    let _relaxed = Relaxed::enter();
    let (graph, mut exec) = (graph.0 as CUgraph, std::ptr::null_mut());
    // SAFETY: the caller's promise; writes one handle. Before driver 11.4 there are no flags.
    check(unsafe {
        match real::cuGraphInstantiateWithFlags(&mut exec, graph, flags) {
            super::MISSING if flags == 0 => {
                let none = std::ptr::null_mut();
                real::cuGraphInstantiate_v2(&mut exec, graph, none, none.cast(), 0)
            }
            code => code,
        }
    })?;
    Ok(Handle(exec as usize))
}

/// Destroys an instance. One that runs ends first, without this call waiting for it (API doc).
///
/// # Safety
/// Nobody uses it any more.
pub unsafe fn destroy_exec(exec: Handle) -> CUresult {
    // SAFETY: the caller's promise.
    unsafe { real::cuGraphExecDestroy(exec.0 as CUgraphExec) }
}

/// Whether kernels may update a kernel node.
///
/// # Safety
/// A kernel node of a graph that is not destroyed.
pub unsafe fn is_device_updatable(node: Handle) -> bool {
    /// `CU_LAUNCH_ATTRIBUTE_DEVICE_UPDATABLE_KERNEL_NODE` (driver 12.4)
    const UPDATABLE: c_int = 13;
    // `CUlaunchAttributeValue`: 64 bytes, of which the first int says so.
    let mut value = [0 as c_int; 16];
    let out = value.as_mut_ptr().cast();
    // SAFETY: the caller's promise; there is room for any attribute.
    let code = unsafe { raw::cuGraphKernelNodeGetAttribute(node.0 as CUgraphNode, UPDATABLE, out) };
    code == CUDA_SUCCESS && value[0] != 0
}

/// Takes a node of an instance out of its work.
///
/// # Safety
/// A node of the graph that the instance was made of.
pub unsafe fn disable(exec: Handle, node: Handle) -> Result<()> {
    let (exec, node) = (exec.0 as CUgraphExec, node.0 as CUgraphNode);
    // SAFETY: the caller's promise.
    check(unsafe { real::cuGraphNodeSetEnabled(exec, node, 0 as c_uint) })
}

/// Gives a copy node of a graph other operands, in the context that it has.
///
/// # Safety
/// A copy node of a graph of the shim's own.
pub unsafe fn set_copy(node: Handle, copy: &CUDA_MEMCPY3D) -> Result<()> {
    // SAFETY: the caller's promise.
    check(unsafe { raw::cuGraphMemcpyNodeSetParams(node.0 as CUgraphNode, copy) })
}

/// Lets what comes next on a stream wait for an event of [`super::event_behind`].
///
/// # Safety
/// A stream of the program's; an event that is not destroyed.
pub unsafe fn wait(stream: Handle, event: Handle) -> Result<()> {
    // SAFETY: the caller's promise.
    check(unsafe { raw::cuStreamWaitEvent(stream.0 as CUstream, event.0 as CUevent, 0) })
}
