//! Instances of graphs that are changed: each call reaches the instance that runs, and what it changes is taken down.

use std::ffi::{c_uint, c_ulonglong, c_void};

use greenboost_abi::*;

use super::{nodes, renew};
use crate::driver::raw;
use crate::hooks::real;
use crate::tier::content::Node;
use crate::tier::execs;
use crate::tier::map::Handle;

macro_rules! sets {
    ($($ours:ident = $real:ident($param:ident: $ty:ty) on $raw:ident, $read:expr;)*) => {$(
        #[doc = concat!("Replaces `", stringify!($real), "`.")]
        ///
        /// # Safety
        /// As for the function it replaces.
        pub unsafe fn $ours(exec: CUgraphExec, node: CUgraphNode, $param: $ty) -> CUresult {
            let (running, there) = renew::translated(exec, node);
            // SAFETY: the program's own call; what the driver has taken it takes for the same node of another graph.
            unsafe {
                let result = real::$real(running, there, $param);
                if result == CUDA_SUCCESS {
                    let read: unsafe fn(&mut Node, $ty) = $read;
                    renew::changed(exec, node, |own| raw::$raw(own, $param), |node| read(node, $param));
                }
                result
            }
        }
    )*};
}

sets! {
    set_kernel_v1 = cuGraphExecKernelNodeSetParams(params: *const CUDA_KERNEL_NODE_PARAMS_v1) on cuGraphKernelNodeSetParams, |node, params| {
        let whole = CUDA_KERNEL_NODE_PARAMS {
            v1: *params,
            kern: std::ptr::null_mut(),
            ctx: std::ptr::null_mut(),
        };
        nodes::launches(node, &whole);
    };
    set_kernel = cuGraphExecKernelNodeSetParams_v2(params: *const CUDA_KERNEL_NODE_PARAMS) on cuGraphKernelNodeSetParams_v2, |node, params| {
        nodes::launches(node, &*params);
    };
    set_host = cuGraphExecHostNodeSetParams(params: *const CUDA_HOST_NODE_PARAMS) on cuGraphHostNodeSetParams, |_, _| {};
    set_record = cuGraphExecEventRecordNodeSetEvent(event: CUevent) on cuGraphEventRecordNodeSetEvent, |_, _| {};
    set_wait = cuGraphExecEventWaitNodeSetEvent(event: CUevent) on cuGraphEventWaitNodeSetEvent, |_, _| {};
    set_signal = cuGraphExecExternalSemaphoresSignalNodeSetParams(params: *const c_void) on cuGraphExternalSemaphoresSignalNodeSetParams, |_, _| {};
    set_await = cuGraphExecExternalSemaphoresWaitNodeSetParams(params: *const c_void) on cuGraphExternalSemaphoresWaitNodeSetParams, |_, _| {};
    set_batch = cuGraphExecBatchMemOpNodeSetParams(params: *const CUDA_BATCH_MEM_OP_NODE_PARAMS) on cuGraphBatchMemOpNodeSetParams, |node, params| {
        nodes::batches(node, &*params);
    };
}

/// Replaces `CUresult cuGraphExecMemsetNodeSetParams(CUgraphExec hGraphExec, CUgraphNode hNode, const
/// CUDA_MEMSET_NODE_PARAMS *memsetParams, CUcontext ctx)`.
///
/// # Safety
/// As for the function it replaces.
pub unsafe fn set_set(
    exec: CUgraphExec,
    node: CUgraphNode,
    params: *const CUDA_MEMSET_NODE_PARAMS,
    context: CUcontext,
) -> CUresult {
    let (running, there) = renew::translated(exec, node);
    // SAFETY: the program's own call; after a success the parameters were good.
    unsafe {
        let result = real::cuGraphExecMemsetNodeSetParams(running, there, params, context);
        if result == CUDA_SUCCESS {
            let shadow = |own| raw::cuGraphMemsetNodeSetParams(own, params);
            renew::changed(exec, node, shadow, |node| nodes::sets(node, &*params));
        }
        result
    }
}

/// Replaces `CUresult cuGraphExecMemcpyNodeSetParams(CUgraphExec hGraphExec, CUgraphNode hNode, const CUDA_MEMCPY3D
/// *copyParams, CUcontext ctx)`.
///
/// # Safety
/// As for the function it replaces.
pub unsafe fn set_copy(
    exec: CUgraphExec,
    node: CUgraphNode,
    params: *const CUDA_MEMCPY3D,
    context: CUcontext,
) -> CUresult {
    let (running, there) = renew::translated(exec, node);
    // SAFETY: the program's own call.
    unsafe {
        let result = real::cuGraphExecMemcpyNodeSetParams(running, there, params, context);
        copied(exec, node, params, result)
    }
}

/// After a copy node was given new operands, or was refused them.
///
/// # Safety
/// The program's arguments.
unsafe fn copied(
    exec: CUgraphExec,
    node: CUgraphNode,
    params: *const CUDA_MEMCPY3D,
    result: CUresult,
) -> CUresult {
    // SAFETY: operands are read by the driver too, whatever it makes of them; only a null pointer it refuses.
    unsafe {
        match result {
            CUDA_SUCCESS => {
                let shadow = |own| raw::cuGraphMemcpyNodeSetParams(own, params);
                renew::changed(exec, node, shadow, |node| nodes::copies(node, &*params));
                CUDA_SUCCESS
            }
            CUDA_ERROR_INVALID_VALUE if !params.is_null() && renew::copy(exec, node, &*params) => {
                CUDA_SUCCESS
            }
            code => code,
        }
    }
}

/// Replaces `CUresult cuGraphExecChildGraphNodeSetParams(CUgraphExec hGraphExec, CUgraphNode hNode, CUgraph childGraph)`.
///
/// # Safety
/// As for the function it replaces.
pub unsafe fn set_child(exec: CUgraphExec, node: CUgraphNode, child: CUgraph) -> CUresult {
    let (running, there) = renew::translated(exec, node);
    // SAFETY: the program's own call; the driver has just used the graph.
    unsafe {
        let result = real::cuGraphExecChildGraphNodeSetParams(running, there, child);
        if result == CUDA_SUCCESS {
            // No function gives a node of a graph another child.
            let holds = |node: &mut Node| nodes::holds(node, Handle(child as usize));
            renew::changed(exec, node, |_| CUDA_ERROR_NOT_SUPPORTED, holds);
        }
        result
    }
}

/// Replaces `CUresult cuGraphExecNodeSetParams(CUgraphExec hGraphExec, CUgraphNode hNode, CUgraphNodeParams *nodeParams)`.
///
/// # Safety
/// As for the function it replaces.
pub unsafe fn set_any(
    exec: CUgraphExec,
    node: CUgraphNode,
    params: *mut CUgraphNodeParams,
) -> CUresult {
    let (running, there) = renew::translated(exec, node);
    // SAFETY: the program's own call; the kind says which variant is filled in.
    unsafe {
        let result = real::cuGraphExecNodeSetParams(running, there, params);
        if params.is_null() {
            return result;
        }
        let kind = (*params).type_;
        if kind == CU_GRAPH_NODE_TYPE_MEMCPY {
            return copied(
                exec,
                node,
                &raw const (*params).of.memcpy.copyParams,
                result,
            );
        }
        if result == CUDA_SUCCESS {
            let shadow = |own| match kind {
                CU_GRAPH_NODE_TYPE_GRAPH => CUDA_ERROR_NOT_SUPPORTED,
                _ => raw::cuGraphNodeSetParams(own, params),
            };
            let of = &(*params).of;
            renew::changed(exec, node, shadow, |node| match kind {
                CU_GRAPH_NODE_TYPE_KERNEL => nodes::launches(node, &of.kernel),
                CU_GRAPH_NODE_TYPE_MEMSET => nodes::sets(node, &of.memset.v1),
                CU_GRAPH_NODE_TYPE_BATCH_MEM_OP => nodes::batches(node, &of.batch),
                CU_GRAPH_NODE_TYPE_GRAPH => nodes::holds(node, Handle(of.graph as usize)),
                _ => {}
            });
        }
        result
    }
}

/// Replaces `CUresult cuGraphNodeSetEnabled(CUgraphExec hGraphExec, CUgraphNode hNode, unsigned int isEnabled)`.
///
/// # Safety
/// As for the function it replaces.
pub unsafe fn set_enabled(exec: CUgraphExec, node: CUgraphNode, on: c_uint) -> CUresult {
    let (running, there) = renew::translated(exec, node);
    // SAFETY: the program's own call.
    let result = unsafe { real::cuGraphNodeSetEnabled(running, there, on) };
    if result == CUDA_SUCCESS {
        renew::switched(exec, node, on != 0);
    }
    result
}

/// Replaces `CUresult cuGraphNodeGetEnabled(CUgraphExec hGraphExec, CUgraphNode hNode, unsigned int *isEnabled)`.
///
/// # Safety
/// As for the function it replaces.
pub unsafe fn get_enabled(exec: CUgraphExec, node: CUgraphNode, on: *mut c_uint) -> CUresult {
    let (running, there) = renew::translated(exec, node);
    // SAFETY: the program's own call.
    unsafe { real::cuGraphNodeGetEnabled(running, there, on) }
}

/// What runs for an instance.
fn running(exec: CUgraphExec) -> CUgraphExec {
    execs::find(exec).map_or(exec, |e| e.real().0 as CUgraphExec)
}

/// Replaces `CUresult cuGraphExecGetFlags(CUgraphExec hGraphExec, cuuint64_t *flags)`.
///
/// # Safety
/// As for the function it replaces.
pub unsafe fn get_flags(exec: CUgraphExec, flags: *mut c_ulonglong) -> CUresult {
    // SAFETY: the program's own call.
    unsafe { real::cuGraphExecGetFlags(running(exec), flags) }
}

/// After a whole graph was to take an instance's place.
///
/// # Safety
/// The program's handles.
unsafe fn updated(exec: CUgraphExec, graph: CUgraph, result: CUresult) -> CUresult {
    // SAFETY: the driver has looked at both.
    unsafe {
        match result {
            CUDA_SUCCESS => renew::updated(exec, graph),
            CUDA_ERROR_GRAPH_EXEC_UPDATE_FAILURE if renew::update(exec, graph) => {}
            code => return code,
        }
    }
    CUDA_SUCCESS
}

/// Replaces `CUresult cuGraphExecUpdate(CUgraphExec hGraphExec, CUgraph hGraph, CUgraphNode *hErrorNode_out,
/// CUgraphExecUpdateResult *updateResult_out)`.
///
/// # Safety
/// As for the function it replaces.
pub unsafe fn update_v1(
    exec: CUgraphExec,
    graph: CUgraph,
    node: *mut CUgraphNode,
    why: *mut CUgraphExecUpdateResult,
) -> CUresult {
    // SAFETY: the program's own call and pointers, which the driver wants.
    unsafe {
        let told = real::cuGraphExecUpdate(running(exec), graph, node, why);
        let result = updated(exec, graph, told);
        if result != told {
            if !node.is_null() {
                *node = std::ptr::null_mut();
            }
            if !why.is_null() {
                *why = CU_GRAPH_EXEC_UPDATE_SUCCESS;
            }
        }
        result
    }
}

/// Replaces `CUresult cuGraphExecUpdate_v2(CUgraphExec hGraphExec, CUgraph hGraph, CUgraphExecUpdateResultInfo
/// *resultInfo)`.
///
/// # Safety
/// As for the function it replaces.
pub unsafe fn update(
    exec: CUgraphExec,
    graph: CUgraph,
    info: *mut CUgraphExecUpdateResultInfo,
) -> CUresult {
    // SAFETY: the program's own call and pointer.
    unsafe {
        let told = real::cuGraphExecUpdate_v2(running(exec), graph, info);
        let result = updated(exec, graph, told);
        if result != told && !info.is_null() {
            *info = CUgraphExecUpdateResultInfo {
                result: CU_GRAPH_EXEC_UPDATE_SUCCESS,
                errorNode: std::ptr::null_mut(),
                errorFromNode: std::ptr::null_mut(),
            };
        }
        result
    }
}

/// What an instance names, for tests. Not in the library that anybody gets.
#[cfg(feature = "fault-injection")]
mod told {
    use super::*;

    /// Writes up to `room` addresses and how many nodes name each; returns how many there are, -1 for an instance that is
    /// not known.
    ///
    /// # Safety
    /// Room for so many.
    #[unsafe(no_mangle)]
    pub unsafe extern "C" fn greenboost_names(
        exec: CUgraphExec,
        addresses: *mut u64,
        nodes: *mut u32,
        room: usize,
        unknown: *mut std::ffi::c_int,
    ) -> isize {
        let Some(names) = execs::names(exec) else {
            return -1;
        };
        // SAFETY: the caller's promise.
        unsafe {
            *unknown = names.unknown.into();
            for (i, named) in names.list.iter().take(room).enumerate() {
                *addresses.add(i) = named.address;
                *nodes.add(i) = named.nodes;
            }
        }
        names.list.len() as isize
    }
}
