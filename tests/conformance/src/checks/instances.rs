//! What the shim needs of graphs: clones that are as their graphs, nodes that tell what they were made from, instances of
//! clones, switches that outlive updates, and captures that are read alike.

use std::ptr;

use greenboost_abi::*;

use super::forms::LARGE;
use super::nodes::{bytes, line};
use crate::api::MISSING;
use crate::bench::{Bench, MIB, host_vmm, must};
use crate::told::Told;

fn nodes(b: &Bench, graph: usize) -> Vec<usize> {
    let (mut all, mut count) = ([0usize; 32], 32);
    must(
        b.cu.cuGraphGetNodes(graph, all.as_mut_ptr(), &mut count),
        "cuGraphGetNodes",
    );
    all[..count].to_vec()
}

/// Edges by the numbers of their nodes.
fn edges(b: &Bench, graph: usize) -> Vec<(usize, usize)> {
    let (mut from, mut to, mut data, mut count) = ([0usize; 64], [0usize; 64], [0u64; 64], 64);
    let list = nodes(b, graph);
    let (f, t) = (from.as_mut_ptr(), to.as_mut_ptr());
    let code = match b.cu.symbol("cuGraphGetEdges_v2") {
        Some(_) => {
            b.cu.cuGraphGetEdges_v2(graph, f, t, data.as_mut_ptr(), &mut count)
        }
        None => MISSING,
    };
    if matches!(code, MISSING | CUDA_ERROR_NOT_SUPPORTED) {
        must(
            b.cu.cuGraphGetEdges(graph, f, t, &mut count),
            "cuGraphGetEdges",
        );
    } else {
        must(code, "cuGraphGetEdges_v2");
    }
    let number = |node: &usize| list.iter().position(|n| n == node).unwrap_or(usize::MAX);
    let ends = from.iter().zip(&to).take(count);
    ends.map(|(f, t)| (number(f), number(t))).collect()
}

fn instantiate(b: &Bench, graph: usize) -> usize {
    let mut exec = 0;
    must(
        b.cu.cuGraphInstantiateWithFlags(Some(&mut exec), graph, 0),
        "cuGraphInstantiateWithFlags",
    );
    exec
}

fn update(b: &Bench, exec: usize, graph: usize) -> i32 {
    let mut info = [0; 3];
    match b.cu.cuGraphExecUpdate_v2(exec, graph, Some(&mut info)) {
        MISSING | CUDA_ERROR_NOT_SUPPORTED => {
            b.cu.cuGraphExecUpdate(exec, graph, Some(&mut 0), Some(&mut 0))
        }
        code => code,
    }
}

/// Two streams that fork and join, with a kernel, copies and a memset.
fn capture(
    b: &Bench,
    streams: [usize; 2],
    events: [usize; 2],
    to: u64,
    from: u64,
    seed: u64,
) -> usize {
    let (cu, mut graph, [one, two]) = (&b.cu, 0, streams);
    must(cu.cuStreamBeginCapture_v2(one, 0), "cuStreamBeginCapture");
    must(
        b.launch("gb_fill", one, &[from, LARGE as u64 / 8, seed]),
        "gb_fill",
    );
    must(cu.cuEventRecord(events[0], one), "cuEventRecord");
    must(cu.cuStreamWaitEvent(two, events[0], 0), "cuStreamWaitEvent");
    must(
        cu.cuMemcpyDtoDAsync_v2(to, from, LARGE, one),
        "cuMemcpyDtoDAsync",
    );
    let other = to + LARGE as u64;
    must(
        cu.cuMemcpyDtoDAsync_v2(other, from, LARGE, two),
        "cuMemcpyDtoDAsync",
    );
    must(cu.cuEventRecord(events[1], two), "cuEventRecord");
    must(cu.cuStreamWaitEvent(one, events[1], 0), "cuStreamWaitEvent");
    must(cu.cuMemsetD8Async(to, 5, 64, one), "cuMemsetD8Async");
    must(
        cu.cuStreamEndCapture(one, Some(&mut graph)),
        "cuStreamEndCapture",
    );
    graph
}

pub(super) fn alike(told: &Told) {
    let b = Bench::open();
    let (streams, events) = ([b.stream(1), b.stream(1)], [b.event(), b.event()]);
    let (to, from) = (b.alloc(12 * MIB), b.alloc(8 * MIB));
    let graphs: Vec<usize> = (0..3)
        .map(|seed| capture(&b, streams, events, to + seed * 4096, from, seed))
        .collect();
    let kinds = |graph: usize| -> Vec<i32> {
        let all = nodes(&b, graph).into_iter();
        all.map(|node| {
            let mut kind = -1;
            must(
                b.cu.cuGraphNodeGetType(node, Some(&mut kind)),
                "cuGraphNodeGetType",
            );
            kind
        })
        .collect()
    };
    for graph in &graphs[1..] {
        told.is(
            "kinds of nodes, captured again",
            kinds(*graph),
            kinds(graphs[0]),
        );
        told.is(
            "edges, captured again",
            edges(&b, *graph),
            edges(&b, graphs[0]),
        );
    }
    for graph in graphs {
        must(b.cu.cuGraphDestroy(graph), "cuGraphDestroy");
    }
}

pub(super) fn told_again(told: &Told) {
    let b = Bench::open();
    let (cu, s) = (&b.cu, b.stream(1));
    let (to, from) = (b.alloc(12 * MIB), b.alloc(8 * MIB));
    let events = [b.event(), b.event()];
    let graph = capture(&b, [s, b.stream(1)], events, to, from, 9);
    let mut kinds = [0; 3];
    for node in nodes(&b, graph) {
        let mut kind = -1;
        must(
            cu.cuGraphNodeGetType(node, Some(&mut kind)),
            "cuGraphNodeGetType",
        );
        match kind {
            CU_GRAPH_NODE_TYPE_KERNEL => {
                kinds[0] += 1;
                // SAFETY: a plain struct of numbers and pointers.
                let mut params: CUDA_KERNEL_NODE_PARAMS = unsafe { std::mem::zeroed() };
                match cu.cuGraphKernelNodeGetParams_v2(node, &mut params) {
                    MISSING | CUDA_ERROR_NOT_SUPPORTED => continue,
                    code => told.is("cuGraphKernelNodeGetParams", code, 0),
                }
                told.note(format!(
                    "a captured launch tells func {} kern {}",
                    !params.v1.func.is_null(),
                    !params.kern.is_null()
                ));
                told.is(
                    "one of them",
                    params.v1.func.is_null() && params.kern.is_null(),
                    false,
                );
                told.is("kernelParams", params.v1.kernelParams.is_null(), false);
                // SAFETY: the node's own arguments, of which there are three.
                let words =
                    [0, 1, 2].map(|i| unsafe { *(*params.v1.kernelParams.add(i)).cast::<u64>() });
                told.is("arguments", words, [from, LARGE as u64 / 8, 9]);
            }
            CU_GRAPH_NODE_TYPE_MEMCPY => {
                kinds[1] += 1;
                let mut params = line(0, 0, 1);
                told.is(
                    "cuGraphMemcpyNodeGetParams",
                    cu.cuGraphMemcpyNodeGetParams(node, &mut params),
                    0,
                );
                let kinds = [params.dstMemoryType, params.srcMemoryType];
                told.note(format!("a captured copy tells memory types {kinds:?}"));
                told.is("source", params.srcDevice, from);
                told.is(
                    "destination",
                    params.dstDevice == to || params.dstDevice == to + LARGE as u64,
                    true,
                );
                told.is(
                    "shape",
                    [params.WidthInBytes, params.Height, params.Depth],
                    [LARGE, 1, 1],
                );
            }
            CU_GRAPH_NODE_TYPE_MEMSET => {
                kinds[2] += 1;
                let mut params = bytes(0, 0, 0);
                told.is(
                    "cuGraphMemsetNodeGetParams",
                    cu.cuGraphMemsetNodeGetParams(node, &mut params),
                    0,
                );
                told.is("memset", (params.dst, params.height), (to, 1));
            }
            _ => {}
        }
    }
    told.is("kernels, copies, memsets", kinds, [1, 2, 1]);
    must(cu.cuGraphDestroy(graph), "cuGraphDestroy");
    let cell = b.alloc(64);
    let mut graph = 0;
    must(cu.cuStreamBeginCapture_v2(s, 0), "cuStreamBeginCapture");
    let code = cu.cuStreamWriteValue32_v2(s, cell, 5, 0);
    must(
        cu.cuStreamEndCapture(s, Some(&mut graph)),
        "cuStreamEndCapture",
    );
    if code == 0 {
        // SAFETY: as above.
        let mut params: CUDA_BATCH_MEM_OP_NODE_PARAMS = unsafe { std::mem::zeroed() };
        let node = nodes(&b, graph)[0];
        told.is(
            "cuGraphBatchMemOpNodeGetParams",
            cu.cuGraphBatchMemOpNodeGetParams(node, &mut params),
            0,
        );
        if params.count == 1 {
            // SAFETY: the node's own operation.
            let op = unsafe { *params.paramArray };
            told.is(
                "operation",
                (op[0] as u32, op[1]),
                (CU_STREAM_MEM_OP_WRITE_VALUE_32, cell),
            );
        }
        told.is("operations", params.count, 1);
    }
    must(cu.cuGraphDestroy(graph), "cuGraphDestroy");
}

/// A function and a kernel in each other's place: asking is harmless, whatever the answer.
pub(super) fn parameters(told: &Told) {
    let b = Bench::open();
    let (cu, function) = (&b.cu, b.function("gb_fill"));
    let (mut offset, mut size) = (9, 9);
    if matches!(
        cu.cuFuncGetParamInfo(function, 0, Some(&mut 0), Some(&mut 0)),
        MISSING | CUDA_ERROR_NOT_SUPPORTED
    ) {
        told.skip("no cuFuncGetParamInfo before driver 12.4");
        return;
    }
    let mut ask = |kernel: bool, handle, index| {
        (offset, size) = (9, 9);
        let (o, s) = (Some(&mut offset), Some(&mut size));
        let code = match kernel {
            true => cu.cuKernelGetParamInfo(handle, index, o, s),
            false => cu.cuFuncGetParamInfo(handle, index, o, s),
        };
        (code, offset, size)
    };
    told.is("past the last", ask(false, function, 3).0, 1);
    told.is("far past it", ask(false, function, 9999).0, 1);
    told.note(format!(
        "a function as a kernel: {:?}",
        ask(true, function, 0)
    ));
    let text = c".version 7.0\n.target sm_50\n.address_size 64\n\
        .visible .entry gb_fill(.param .u64 p, .param .u64 n, .param .u64 seed) { ret; }\n";
    let (mut library, mut kernel) = (0, 0);
    must(
        cu.cuLibraryLoadData(Some(&mut library), text.as_ptr(), 0, 0, 0, 0, 0, 0),
        "cuLibraryLoadData",
    );
    must(
        cu.cuLibraryGetKernel(Some(&mut kernel), library, c"gb_fill".as_ptr()),
        "cuLibraryGetKernel",
    );
    for i in 0..3 {
        told.is(
            format!("parameter {i}"),
            ask(true, kernel, i),
            (0, i * 8, 8),
        );
    }
    told.is("past the last", ask(true, kernel, 3).0, 1);
    told.note(format!(
        "a kernel as a function: {:?}",
        ask(false, kernel, 0)
    ));
    must(cu.cuLibraryUnload(library), "cuLibraryUnload");
}

pub(super) fn clones(told: &Told) {
    let b = Bench::open();
    let (cu, s) = (&b.cu, b.stream(1));
    let mut places = vec!["A", "V8"];
    if host_vmm(cu) {
        places.extend(["H8", "V2 H2 V4"]);
    }
    let place = |layout: &str| match layout {
        "A" => b.alloc(8 * MIB),
        layout => b.range(layout).p,
    };
    for old in &places {
        for new in &places {
            let what = format!("{old} to {new}");
            let (to, from, new_to, new_from) = (place(old), place(old), place(new), place(new));
            let (mut graph, mut clone, none) = (0, 0, ptr::null());
            let (mut copy, mut set, mut own, mut own_set) = (0, 0, 0, 0);
            must(cu.cuGraphCreate(Some(&mut graph), 0), "cuGraphCreate");
            let first = line(to, from, LARGE);
            must(
                cu.cuGraphAddMemcpyNode(Some(&mut copy), graph, none, 0, &first, b.context),
                "cuGraphAddMemcpyNode",
            );
            let clear = bytes(to, 0, 64);
            must(
                cu.cuGraphAddMemsetNode(Some(&mut set), graph, &copy, 1, &clear, b.context),
                "cuGraphAddMemsetNode",
            );
            told.is(
                format!("{what}: clone"),
                cu.cuGraphClone(Some(&mut clone), graph),
                0,
            );
            told.is(
                "find",
                cu.cuGraphNodeFindInClone(Some(&mut own), copy, clone),
                0,
            );
            told.is(
                "find",
                cu.cuGraphNodeFindInClone(Some(&mut own_set), set, clone),
                0,
            );
            // A graph's own copy node goes wherever it is told.
            let moved = line(new_to, new_from, LARGE);
            told.is(
                format!("{what}: in a graph"),
                cu.cuGraphMemcpyNodeSetParams(own, &moved),
                0,
            );
            b.fill(new_from, LARGE, 3);
            b.fill(new_to, LARGE, 4);
            b.done();
            let exec = instantiate(&b, clone);
            must(cu.cuGraphDestroy(graph), "cuGraphDestroy");
            told.is(
                "by the clone's node",
                cu.cuGraphExecMemsetNodeSetParams(exec, own_set, &bytes(new_to, 0, 8), b.context),
                0,
            );
            must(cu.cuGraphLaunch(exec, s), "cuGraphLaunch");
            b.done();
            told.is(
                format!("{what}: what the clone's instance did"),
                b.wrong(new_to, LARGE, 3),
                1,
            );
            must(cu.cuGraphExecDestroy(exec), "cuGraphExecDestroy");
            must(cu.cuGraphDestroy(clone), "cuGraphDestroy");
        }
    }
}

pub(super) fn switches(told: &Told) {
    let b = Bench::open();
    let (cu, s) = (&b.cu, b.stream(1));
    let p = b.alloc(8 * MIB);
    let make = |at: u64| {
        let (mut graph, mut one, mut two) = (0, 0, 0);
        must(cu.cuGraphCreate(Some(&mut graph), 0), "cuGraphCreate");
        let (a, z) = (bytes(at, 1, 8), bytes(at + 8, 2, 8));
        must(
            cu.cuGraphAddMemsetNode(Some(&mut one), graph, ptr::null(), 0, &a, b.context),
            "cuGraphAddMemsetNode",
        );
        must(
            cu.cuGraphAddMemsetNode(Some(&mut two), graph, &one, 1, &z, b.context),
            "cuGraphAddMemsetNode",
        );
        (graph, one)
    };
    let ((graph, node), (other, _)) = (make(p), make(p + 64));
    let exec = instantiate(&b, graph);
    if matches!(
        cu.cuGraphNodeSetEnabled(exec, node, 0),
        MISSING | CUDA_ERROR_NOT_SUPPORTED
    ) {
        told.skip("no cuGraphNodeSetEnabled before driver 11.6");
        return;
    }
    b.fill(p, 4096, 9);
    b.done();
    let before = b.read(p + 64);
    told.is("update", update(&b, exec, other), 0);
    must(cu.cuGraphLaunch(exec, s), "cuGraphLaunch");
    b.done();
    let mut on = 9;
    told.is(
        "after an update",
        (cu.cuGraphNodeGetEnabled(exec, node, Some(&mut on)), on),
        (0, 0),
    );
    told.is("it is still off", b.read(p + 64), before);
    told.is(
        "the other is on",
        b.read(p + 72),
        Ok(u64::from_ne_bytes([2; 8])),
    );
    must(cu.cuGraphDestroy(other), "cuGraphDestroy");
    must(cu.cuGraphDestroy(graph), "cuGraphDestroy");
    // An instance that runs is destroyed without waiting for it.
    let mut graph = 0;
    must(cu.cuStreamBeginCapture_v2(s, 0), "cuStreamBeginCapture");
    b.spin(s, 200);
    must(cu.cuMemsetD8Async(p, 7, 8, s), "cuMemsetD8Async");
    must(
        cu.cuStreamEndCapture(s, Some(&mut graph)),
        "cuStreamEndCapture",
    );
    let running = instantiate(&b, graph);
    must(cu.cuGraphLaunch(running, s), "cuGraphLaunch");
    told.is("destroy of what runs", cu.cuGraphExecDestroy(running), 0);
    told.is("it did not wait", cu.cuStreamQuery(s), 600);
    b.done();
    told.is(
        "it ran to its end",
        b.read(p),
        Ok(u64::from_ne_bytes([7; 8])),
    );
    must(cu.cuGraphDestroy(graph), "cuGraphDestroy");
    must(cu.cuGraphExecDestroy(exec), "cuGraphExecDestroy");
}

/// What a copy of several rows may become: on plain memory.
pub(super) fn rows(told: &Told) {
    let b = Bench::open();
    let cu = &b.cu;
    let (to, from) = (b.alloc(12 * MIB), b.alloc(8 * MIB));
    let rows = |to: u64, from: u64, height: usize| CUDA_MEMCPY3D {
        srcPitch: 4096,
        dstPitch: 4096,
        Height: height,
        ..line(to, from, 1000)
    };
    for (what, first, second) in [
        (
            "rows elsewhere",
            rows(to, from, 20),
            rows(to + 64, from + 64, 20),
        ),
        ("the same rows", rows(to, from, 20), rows(to, from, 20)),
        ("more rows", rows(to, from, 20), rows(to, from, 21)),
        ("a row for rows", rows(to, from, 20), line(to, from, 1000)),
        ("rows for a row", line(to, from, 1000), rows(to, from, 20)),
        ("a longer row", line(to, from, 1000), line(to, from, 2000)),
    ] {
        let (mut graph, mut node) = (0, 0);
        must(cu.cuGraphCreate(Some(&mut graph), 0), "cuGraphCreate");
        must(
            cu.cuGraphAddMemcpyNode(Some(&mut node), graph, ptr::null(), 0, &first, b.context),
            "cuGraphAddMemcpyNode",
        );
        let exec = instantiate(&b, graph);
        let code = cu.cuGraphExecMemcpyNodeSetParams(exec, node, &second, b.context);
        // Documented: only one row may change for another.
        let flat = |c: &CUDA_MEMCPY3D| c.Height == 1;
        if flat(&first) && flat(&second) {
            told.is(what, code, 0);
        } else {
            told.note(format!("{what}: {code}"));
        }
        must(cu.cuGraphExecDestroy(exec), "cuGraphExecDestroy");
        must(cu.cuGraphDestroy(graph), "cuGraphDestroy");
    }
}
