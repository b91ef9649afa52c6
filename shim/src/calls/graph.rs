//! Graphs: what they hold is counted when it can have changed.
//!
//! What a graph does with ranges of the shim needs no hook: its nodes hold addresses, and those stay valid.

use std::ffi::{c_char, c_int, c_ulonglong, c_void};

use greenboost_abi::*;

use super::memory::counting;
use crate::hooks::real;
use crate::process;
use crate::tier::graphs;

/// An allocation node was made: by hand, or by an allocation on a stream that captures.
pub fn node_made(result: CUresult, bytes: usize) -> CUresult {
    if result == CUDA_SUCCESS {
        graphs::node_made(bytes as u64);
        // The device that will be asked is known from now on.
        counting();
    }
    result
}

/// A call that may get memory for the nodes of a graph, or give it back.
fn backing(call: impl FnOnce() -> CUresult) -> CUresult {
    let job = process::live().filter(|_| graphs::any());
    if let Some(job) = job {
        graphs::make_way(job);
    }
    let result = call();
    if let Some(job) = job {
        graphs::count_all(job);
    }
    result
}

macro_rules! backed {
    ($($ours:ident = $real:ident($($arg:ident: $ty:ty),*);)*) => {$(
        #[doc = concat!("Replaces `", stringify!($real), "`.")]
        ///
        /// # Safety
        /// As for the function it replaces.
        pub unsafe fn $ours($($arg: $ty),*) -> CUresult {
            // SAFETY: the program's own call.
            backing(|| unsafe { real::$real($($arg),*) })
        }
    )*};
}

backed! {
    launch = cuGraphLaunch(exec: CUgraphExec, stream: CUstream);
    launch_ptsz = cuGraphLaunch_ptsz(exec: CUgraphExec, stream: CUstream);
    upload = cuGraphUpload(exec: CUgraphExec, stream: CUstream);
    upload_ptsz = cuGraphUpload_ptsz(exec: CUgraphExec, stream: CUstream);
    instantiate_v1 = cuGraphInstantiate(out: *mut CUgraphExec, graph: CUgraph, node: *mut CUgraphNode, log: *mut c_char, size: usize);
    instantiate_v2 = cuGraphInstantiate_v2(out: *mut CUgraphExec, graph: CUgraph, node: *mut CUgraphNode, log: *mut c_char, size: usize);
    instantiate_flags = cuGraphInstantiateWithFlags(out: *mut CUgraphExec, graph: CUgraph, flags: c_ulonglong);
    instantiate_params = cuGraphInstantiateWithParams(out: *mut CUgraphExec, graph: CUgraph, params: *mut c_void);
    instantiate_params_ptsz = cuGraphInstantiateWithParams_ptsz(out: *mut CUgraphExec, graph: CUgraph, params: *mut c_void);
    destroy_exec = cuGraphExecDestroy(exec: CUgraphExec);
    trim = cuDeviceGraphMemTrim(device: CUdevice);
}

/// Replaces `CUresult cuGraphAddMemAllocNode(CUgraphNode *phGraphNode, CUgraph hGraph, const CUgraphNode *dependencies,
/// size_t numDependencies, CUDA_MEM_ALLOC_NODE_PARAMS *nodeParams)`.
///
/// # Safety
/// As for the function it replaces.
pub unsafe fn add_alloc(
    out: *mut CUgraphNode,
    graph: CUgraph,
    after: *const CUgraphNode,
    count: usize,
    params: *mut CUDA_MEM_ALLOC_NODE_PARAMS,
) -> CUresult {
    // SAFETY: the program's own call; after a success the parameters were good.
    unsafe {
        match real::cuGraphAddMemAllocNode(out, graph, after, count, params) {
            CUDA_SUCCESS => node_made(CUDA_SUCCESS, (*params).bytesize),
            code => code,
        }
    }
}

/// Counts a node that was made, if it is one that allocates.
///
/// # Safety
/// After a success not null: parameters that the driver has just accepted.
unsafe fn made(result: CUresult, params: *const CUgraphNodeParams) -> CUresult {
    // SAFETY: the caller's promise; the kind says which variant is filled in.
    unsafe {
        if result == CUDA_SUCCESS && (*params).type_ == CU_GRAPH_NODE_TYPE_MEM_ALLOC {
            return node_made(result, (*params).of.alloc.bytesize);
        }
    }
    result
}

/// Replaces `CUresult cuGraphAddNode(CUgraphNode *phGraphNode, CUgraph hGraph, const CUgraphNode *dependencies, size_t
/// numDependencies, CUgraphNodeParams *nodeParams)`.
///
/// # Safety
/// As for the function it replaces.
pub unsafe fn add_node(
    out: *mut CUgraphNode,
    graph: CUgraph,
    after: *const CUgraphNode,
    count: usize,
    params: *mut CUgraphNodeParams,
) -> CUresult {
    // SAFETY: the program's own call; after a success the parameters were good.
    unsafe {
        let result = real::cuGraphAddNode(out, graph, after, count, params);
        made(result, params)
    }
}

/// Replaces `CUresult cuGraphAddNode_v2(CUgraphNode *phGraphNode, CUgraph hGraph, const CUgraphNode *dependencies, const
/// CUgraphEdgeData *dependencyData, size_t numDependencies, CUgraphNodeParams *nodeParams)`.
///
/// # Safety
/// As for the function it replaces.
pub unsafe fn add_node_v2(
    out: *mut CUgraphNode,
    graph: CUgraph,
    after: *const CUgraphNode,
    edges: *const c_void,
    count: usize,
    params: *mut CUgraphNodeParams,
) -> CUresult {
    // SAFETY: as in `add_node`.
    unsafe {
        let result = real::cuGraphAddNode_v2(out, graph, after, edges, count, params);
        made(result, params)
    }
}

/// Whether the stream that a call names captures: its allocations and frees are nodes then, and the driver's to make.
/// `own`: 0 stands for the thread's own stream.
pub fn captures(stream: CUstream, own: bool) -> bool {
    let stream = match stream as usize {
        0 if own => CU_STREAM_PER_THREAD as CUstream,
        _ => stream,
    };
    let mut state: c_int = 0;
    crate::tier::drain::capturing()
        // SAFETY: writes one int; a stream that does not exist is refused. It does not disturb a capture (measured).
        && unsafe { crate::driver::raw::cuStreamIsCapturing(stream, &mut state) } == CUDA_SUCCESS
        && state != 0
}
