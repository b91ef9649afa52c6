//! Graphs: what they hold is counted when it can have changed, and what their instances name is known.
//!
//! What a graph does with ranges of the shim needs no hook: its nodes hold addresses, and those stay valid. What changes
//! an instance is in [`super::exec`].

use std::ffi::{c_char, c_int, c_ulonglong, c_void};

use greenboost_abi::*;

use super::memory::counting;
use super::renew;
use crate::hooks::real;
use crate::tier::map::Handle;
use crate::tier::staging::admit::{self, Watch};
use crate::tier::{access, execs, gate, graphs};
use crate::{driver, process};

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
    let result = {
        let _pass = gate::pass();
        call()
    };
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
    trim = cuDeviceGraphMemTrim(device: CUdevice);
}

macro_rules! runs {
    ($($ours:ident = $real:ident, $own:literal;)*) => {$(
        #[doc = concat!("Replaces `CUresult ", stringify!($real), "(CUgraphExec hGraphExec, CUstream hStream)`.")]
        ///
        /// # Safety
        /// As for the function it replaces.
        pub unsafe fn $ours(exec: CUgraphExec, stream: CUstream) -> CUresult {
            // SAFETY: the program's own call, on what runs for the instance.
            let call = |exec| unsafe { real::$real(exec, stream) };
            let mut watch = None;
            let result = backing(|| {
                watch = named(exec);
                match execs::find(exec) {
                    Some(known) if known.has_copies() => renew::launch(&known, stream, $own, call),
                    Some(known) => call(known.real().0 as CUgraphExec),
                    None => call(exec),
                }
            });
            if result == CUDA_SUCCESS && access::noting() {
                note(exec);
            }
            watch.into_iter().for_each(admit::watch);
            result
        }
    )*};
}

runs! {
    launch = cuGraphLaunch, false;
    launch_ptsz = cuGraphLaunch_ptsz, true;
}

/// What the nodes of an instance name is held while it runs.
fn named(exec: CUgraphExec) -> Option<Watch> {
    let names = execs::names(exec)?;
    admit::graph(exec as u64, names.list.iter().map(|n| n.address))
}

/// Nodes of a launched graph that name the same address count one by one, up to so many.
const OFTEN: u32 = 8;

/// Notes what the nodes of an instance name, as so many launches.
fn note(exec: CUgraphExec) {
    let Some(names) = execs::names(exec) else {
        return;
    };
    for turn in 1..=OFTEN {
        let mut again = names.list.iter().filter(|n| n.nodes >= turn).peekable();
        if again.peek().is_none() {
            break;
        }
        access::graph(exec as u64, again.map(|n| n.address));
    }
}

macro_rules! uploads {
    ($($ours:ident = $real:ident;)*) => {$(
        #[doc = concat!("Replaces `CUresult ", stringify!($real), "(CUgraphExec hGraphExec, CUstream hStream)`.")]
        ///
        /// # Safety
        /// As for the function it replaces.
        pub unsafe fn $ours(exec: CUgraphExec, stream: CUstream) -> CUresult {
            let running = execs::find(exec).map_or(exec, |e| e.real().0 as CUgraphExec);
            // SAFETY: the program's own call, on what runs for the instance.
            backing(|| unsafe { real::$real(running, stream) })
        }
    )*};
}

uploads! {
    upload = cuGraphUpload;
    upload_ptsz = cuGraphUpload_ptsz;
}

macro_rules! instances {
    ($($ours:ident = $real:ident($($arg:ident: $ty:ty),*), $flags:expr;)*) => {$(
        #[doc = concat!("Replaces `", stringify!($real), "`.")]
        ///
        /// # Safety
        /// As for the function it replaces.
        pub unsafe fn $ours(out: *mut CUgraphExec, graph: CUgraph $(, $arg: $ty)*) -> CUresult {
            // SAFETY: the program's own call; after a success its arguments were good.
            unsafe {
                let result = backing(|| real::$real(out, graph $(, $arg)*));
                if result == CUDA_SUCCESS {
                    renew::made(*out, graph, $flags);
                }
                result
            }
        }
    )*};
}

instances! {
    instantiate_v1 = cuGraphInstantiate(node: *mut CUgraphNode, log: *mut c_char, size: usize), 0;
    instantiate_v2 = cuGraphInstantiate_v2(node: *mut CUgraphNode, log: *mut c_char, size: usize), 0;
    instantiate_flags = cuGraphInstantiateWithFlags(flags: c_ulonglong), flags;
    instantiate_params = cuGraphInstantiateWithParams(params: *mut CUDA_GRAPH_INSTANTIATE_PARAMS), (*params).flags;
    instantiate_params_ptsz = cuGraphInstantiateWithParams_ptsz(params: *mut CUDA_GRAPH_INSTANTIATE_PARAMS), (*params).flags;
}

/// Replaces `CUresult cuGraphExecDestroy(CUgraphExec hGraphExec)`.
///
/// # Safety
/// As for the function it replaces.
pub unsafe fn destroy_exec(exec: CUgraphExec) -> CUresult {
    // Before its handle can come back for another.
    let known = execs::remove(exec);
    // SAFETY: the program's own call.
    backing(|| unsafe {
        let result = real::cuGraphExecDestroy(exec);
        if let Some(known) = &known {
            renew::ended(exec, known);
        }
        result
    })
}

/// Replaces `CUresult cuGraphDestroy(CUgraph hGraph)`.
///
/// # Safety
/// As for the function it replaces.
pub unsafe fn destroy(graph: CUgraph) -> CUresult {
    let shadows = execs::graph_ends(Handle(graph as usize));
    // SAFETY: the program's own call; the shadows are the shim's, and nobody knows them any more.
    unsafe {
        let result = real::cuGraphDestroy(graph);
        for shadow in shadows {
            driver::graph::destroy(shadow);
        }
        result
    }
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
