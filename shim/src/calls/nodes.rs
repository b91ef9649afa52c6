//! What the nodes of a graph name: read when an instance of it is made, and when one is changed.

use std::collections::HashMap;
use std::ffi::c_void;

use greenboost_abi::*;

use super::vmm;
use crate::driver;
use crate::driver::graph;
use crate::tier::args;
use crate::tier::content::{Content, Copy, Node, Operand, View};
use crate::tier::map::{self, Handle};

/// Reads a graph; `None` when the driver does not let it be read.
///
/// # Safety
/// A graph that is not destroyed, and of which an instance can be made.
pub unsafe fn read(whole: Handle) -> Option<Content> {
    // SAFETY: the caller's promise.
    let handles = unsafe { graph::nodes(whole) }.ok()?;
    let nodes = handles
        .iter()
        // SAFETY: nodes of this graph.
        .map(|node| unsafe { read_node(*node) })
        .collect();
    let mut content = Content {
        nodes,
        edges: Vec::new(),
    };
    if content.has_copies() {
        // SAFETY: the caller's promise.
        match unsafe { edges(whole, &content) } {
            Some(edges) => content.edges = edges,
            // Nothing can be compared with it.
            None => content.nodes.iter_mut().for_each(|n| n.copy = None),
        }
    }
    Some(content)
}

/// Its edges by the numbers of their nodes.
///
/// # Safety
/// As for [`read`].
unsafe fn edges(whole: Handle, content: &Content) -> Option<Vec<(u32, u32)>> {
    let number = numbers(content);
    let of = |node: CUgraphNode| number.get(&(node as usize)).map(|n| *n as u32);
    // SAFETY: the caller's promise.
    let edges = unsafe { graph::edges(whole) }.ok()?;
    let numbered = edges.into_iter();
    numbered
        .map(|(from, to)| Some((of(from)?, of(to)?)))
        .collect()
}

/// The numbers of a graph's nodes.
pub fn numbers(content: &Content) -> HashMap<usize, usize> {
    let handles = content.nodes.iter().map(|n| n.handle.0);
    handles.enumerate().map(|(i, node)| (node, i)).collect()
}

/// # Safety
/// A node of a graph that is not destroyed.
unsafe fn read_node(handle: CUgraphNode) -> Node {
    let mut node = Node {
        handle: Handle(handle as usize),
        kind: -1,
        names: Vec::new(),
        unknown: true,
        copy: None,
        fixed: None,
    };
    // SAFETY: the caller's promise; each is asked of a node of its kind.
    unsafe {
        let Ok(kind) = graph::kind(handle) else {
            return node;
        };
        node.kind = kind;
        match kind {
            CU_GRAPH_NODE_TYPE_KERNEL => {
                if let Ok(params) = graph::kernel(handle) {
                    launches(&mut node, &params);
                }
            }
            CU_GRAPH_NODE_TYPE_MEMCPY => {
                if let Ok(params) = graph::copy(handle) {
                    copies(&mut node, &params);
                }
            }
            CU_GRAPH_NODE_TYPE_MEMSET => {
                if let Ok(params) = graph::set(handle) {
                    sets(&mut node, &params);
                }
            }
            CU_GRAPH_NODE_TYPE_BATCH_MEM_OP => {
                if let Ok(params) = graph::batch(handle) {
                    batches(&mut node, &params);
                }
            }
            CU_GRAPH_NODE_TYPE_GRAPH => {
                if let Ok(inner) = graph::child(handle) {
                    holds(&mut node, inner);
                }
            }
            CU_GRAPH_NODE_TYPE_HOST
            | CU_GRAPH_NODE_TYPE_EMPTY
            | CU_GRAPH_NODE_TYPE_WAIT_EVENT
            | CU_GRAPH_NODE_TYPE_EVENT_RECORD
            | CU_GRAPH_NODE_TYPE_EXT_SEMAS_SIGNAL
            | CU_GRAPH_NODE_TYPE_EXT_SEMAS_WAIT
            | CU_GRAPH_NODE_TYPE_MEM_ALLOC
            | CU_GRAPH_NODE_TYPE_MEM_FREE => node.unknown = false,
            // The bodies of a conditional node are not told, and what newer nodes do is not known.
            _ => {}
        }
    }
    node
}

impl Node {
    fn name(&mut self, names: impl IntoIterator<Item = u64>, unknown: bool) {
        self.names.clear();
        for address in names {
            // Small numbers and others that are no address of a device.
            let may = address >= 1 << 16 && address >> 56 == 0;
            if may && !self.names.contains(&address) && map::find(address).is_some() {
                self.names.push(address);
            }
        }
        self.unknown = unknown;
    }
}

/// A node launches this.
///
/// # Safety
/// Parameters that the driver has accepted, of a function that can be launched.
pub unsafe fn launches(node: &mut Node, params: &CUDA_KERNEL_NODE_PARAMS) {
    let function = match params.v1.func {
        function if function.is_null() => params.kern,
        function => function.cast::<c_void>(),
    };
    let mut words = Vec::new();
    // SAFETY: the caller's promise.
    let layout = unsafe { args::layout(function) };
    if let Some(layout) = layout {
        let (parameters, extra) = (params.v1.kernelParams, params.v1.extra);
        // SAFETY: as above.
        unsafe { layout.each(parameters, extra, |_, word| words.push(word)) };
    }
    node.name(words, layout.is_none());
}

/// A node copies this.
pub fn copies(node: &mut Node, params: &CUDA_MEMCPY3D) {
    let to = operand(
        params.dstMemoryType,
        params.dstHost as u64,
        params.dstDevice,
        params.dstArray,
    );
    let from = operand(
        params.srcMemoryType,
        params.srcHost as u64,
        params.srcDevice,
        params.srcArray,
    );
    let device = |kind| matches!(kind, CU_MEMORYTYPE_DEVICE | CU_MEMORYTYPE_UNIFIED);
    let names = [
        (params.dstMemoryType, params.dstDevice),
        (params.srcMemoryType, params.srcDevice),
    ];
    let names = names.into_iter().filter(|(kind, _)| device(*kind));
    node.name(names.map(|(_, address)| address), false);
    node.copy = Some(Box::new(Copy {
        params: *params,
        operands: [to, from],
    }));
}

/// A node sets this.
pub fn sets(node: &mut Node, params: &CUDA_MEMSET_NODE_PARAMS) {
    node.name([params.dst], false);
    node.fixed = (params.height > 1).then(|| {
        let p = params;
        let all = [p.dst, p.pitch as u64, p.value.into(), p.elementSize.into()];
        [
            all[0],
            all[1],
            all[2],
            all[3],
            p.width as u64,
            p.height as u64,
        ]
    });
}

/// A node does these memory operations.
///
/// # Safety
/// Parameters that the driver has accepted.
pub unsafe fn batches(node: &mut Node, params: &CUDA_BATCH_MEM_OP_NODE_PARAMS) {
    let ops = match params.count {
        0 => &[],
        // SAFETY: the caller's promise: so many operations.
        n => unsafe { std::slice::from_raw_parts(params.paramArray, n as usize) },
    };
    let kind = |op: &CUstreamBatchMemOpParams| op[0] as u32;
    let names = |op: &&CUstreamBatchMemOpParams| {
        matches!(
            kind(op),
            CU_STREAM_MEM_OP_WAIT_VALUE_32
                | CU_STREAM_MEM_OP_WRITE_VALUE_32
                | CU_STREAM_MEM_OP_WAIT_VALUE_64
                | CU_STREAM_MEM_OP_WRITE_VALUE_64
        )
    };
    let nameless = [
        CU_STREAM_MEM_OP_FLUSH_REMOTE_WRITES,
        CU_STREAM_MEM_OP_BARRIER,
    ];
    let unknown = ops
        .iter()
        .any(|op| !names(&op) && !nameless.contains(&kind(op)));
    node.name(ops.iter().filter(names).map(|op| op[1]), unknown);
}

/// A node holds this graph.
///
/// # Safety
/// A graph that is not destroyed, and of which an instance can be made.
pub unsafe fn holds(node: &mut Node, inner: Handle) {
    // SAFETY: the caller's promise.
    let content = unsafe { read(inner) };
    let nodes = content.iter().flat_map(|c| &c.nodes);
    let names: Vec<u64> = nodes.clone().flat_map(|n| &n.names).copied().collect();
    let unknown = content.is_none() || nodes.clone().any(|n| n.unknown);
    node.name(names, unknown);
}

/// What an operand is to the program.
fn operand(kind: u32, host: u64, device: CUdeviceptr, array: CUarray) -> Operand {
    let address = match kind {
        CU_MEMORYTYPE_HOST => host,
        CU_MEMORYTYPE_ARRAY => {
            return Operand {
                view: View::Array(array as usize),
                placed: false,
            };
        }
        _ => device,
    };
    if let Some(place) = map::find(address) {
        return Operand {
            view: View::Device(place.device, false),
            placed: true,
        };
    }
    if let Some(device) = vmm::spilled_from(address) {
        return Operand {
            view: View::Device(device, true),
            placed: true,
        };
    }
    let ask = |attribute| driver::pointer_number(address, attribute);
    let view = match ask(CU_POINTER_ATTRIBUTE_MEMORY_TYPE) {
        Ok(_) if ask(CU_POINTER_ATTRIBUTE_IS_MANAGED).is_ok_and(|m| m != 0) => View::Managed,
        Ok(CU_MEMORYTYPE_DEVICE) => {
            let ordinal = ask(CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL).unwrap_or(0);
            View::Device(ordinal as CUdevice, vmm::is_mapped(address))
        }
        Ok(_) => View::Pinned,
        Err(_) => View::Pageable,
    };
    Operand {
        view,
        placed: false,
    }
}
