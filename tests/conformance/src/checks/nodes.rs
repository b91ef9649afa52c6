//! Graph nodes: captured copies and memsets, nodes made by hand, and new operands for old nodes, on every backing.

use std::ffi::c_void;
use std::ptr;

use greenboost_abi::*;

use super::forms::{LARGE, area, cube};
use crate::bench::{Bench, MIB, host_vmm, must};
use crate::host::Host;
use crate::told::Told;

/// `cuMemAlloc` memory, and ranges: VRAM, host, both.
fn places(b: &Bench) -> &'static [&'static str] {
    match host_vmm(&b.cu) {
        true => &["A", "V8", "H8", "V2 H2 V4"],
        false => &["A", "V8"],
    }
}

fn place(b: &Bench, layout: &str) -> u64 {
    match layout {
        "A" => b.alloc(8 * MIB),
        layout => b.range(layout).p,
    }
}

type Call<'a> = Box<dyn Fn(u64, u64, usize) -> i32 + 'a>;

/// Every asynchronous form, with a stream of its own choosing.
fn forms(b: &Bench) -> Vec<(&'static str, Call<'_>)> {
    let (cu, context) = (&b.cu, b.context);
    let (plain, pinned, bounce) = (Host::new(LARGE), b.pinned(LARGE), b.pinned(LARGE));
    for i in 0..LARGE / 8 {
        plain.set(i, 0x9e37_79b9 * i as u64);
    }
    must(
        cu.cuMemcpyHtoD_v2(pinned, plain.address, LARGE),
        "cuMemcpyHtoD",
    );
    let plain = plain.address;
    vec![
        (
            "cuMemcpyDtoDAsync",
            Box::new(move |d, s, on| cu.cuMemcpyDtoDAsync_v2(d, s, LARGE, on)),
        ),
        (
            "cuMemcpyDtoDAsync 64 B",
            Box::new(move |d, s, on| cu.cuMemcpyDtoDAsync_v2(d, s, 64, on)),
        ),
        (
            "cuMemcpyAsync",
            Box::new(move |d, s, on| cu.cuMemcpyAsync(d, s, LARGE, on)),
        ),
        (
            "cuMemcpyPeerAsync",
            Box::new(move |d, s, on| cu.cuMemcpyPeerAsync(d, context, s, context, LARGE, on)),
        ),
        (
            "cuMemcpy2DAsync",
            Box::new(move |d, s, on| cu.cuMemcpy2DAsync_v2(&area(d, s), on)),
        ),
        (
            "cuMemcpy3DAsync",
            Box::new(move |d, s, on| cu.cuMemcpy3DAsync_v2(&cube(d, s, 0), on)),
        ),
        (
            "cuMemcpy3DPeerAsync",
            Box::new(move |d, s, on| cu.cuMemcpy3DPeerAsync(&cube(d, s, context), on)),
        ),
        (
            "cuMemcpyHtoDAsync pageable",
            Box::new(move |d, _, on| cu.cuMemcpyHtoDAsync_v2(d, plain, LARGE, on)),
        ),
        (
            "cuMemcpyHtoDAsync pageable 4K",
            Box::new(move |d, _, on| cu.cuMemcpyHtoDAsync_v2(d, plain, 4096, on)),
        ),
        (
            "cuMemcpyHtoDAsync pinned",
            Box::new(move |d, _, on| cu.cuMemcpyHtoDAsync_v2(d, pinned, LARGE, on)),
        ),
        (
            "cuMemcpyDtoHAsync pinned, and back",
            Box::new(
                move |d, s, on| match cu.cuMemcpyDtoHAsync_v2(bounce, s, LARGE, on) {
                    0 => cu.cuMemcpyHtoDAsync_v2(d, bounce, LARGE, on),
                    code => code,
                },
            ),
        ),
        (
            "cuMemsetD8Async",
            Box::new(move |d, _, on| cu.cuMemsetD8Async(d + 3, 7, LARGE - 5, on)),
        ),
        (
            "cuMemsetD16Async",
            Box::new(move |d, _, on| cu.cuMemsetD16Async(d + 2, 0x0708, LARGE / 2 - 3, on)),
        ),
        (
            "cuMemsetD32Async",
            Box::new(move |d, _, on| cu.cuMemsetD32Async(d + 4, 0x0708_090a, LARGE / 4 - 3, on)),
        ),
        (
            "cuMemsetD2D8Async",
            Box::new(move |d, _, on| cu.cuMemsetD2D8Async(d, 4096, 1, 1001, 700, on)),
        ),
        (
            "cuMemsetD2D16Async",
            Box::new(move |d, _, on| cu.cuMemsetD2D16Async(d, 4096, 0x0102, 1001, 700, on)),
        ),
        (
            "cuMemsetD2D32Async",
            Box::new(move |d, _, on| cu.cuMemsetD2D32Async(d, 4096, 0x0102_0304, 1001, 700, on)),
        ),
    ]
}

/// A number for a range's bytes, whatever they are.
fn sum(b: &Bench, p: u64) -> u64 {
    let host = Host::new(LARGE);
    must(b.cu.cuMemcpyDtoH_v2(host.address, p, LARGE), "cuMemcpyDtoH");
    (0..LARGE / 8).fold(0, |sum: u64, i| {
        (sum.rotate_left(7) ^ host.word(i)).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    })
}

fn instantiate(b: &Bench, graph: usize) -> usize {
    let mut exec = 0;
    must(
        b.cu.cuGraphInstantiateWithFlags(Some(&mut exec), graph, 0),
        "cuGraphInstantiate",
    );
    exec
}

fn destroy(b: &Bench, graph: usize, exec: usize) {
    must(b.cu.cuGraphExecDestroy(exec), "cuGraphExecDestroy");
    must(b.cu.cuGraphDestroy(graph), "cuGraphDestroy");
}

pub(super) fn captured(told: &Told) {
    let b = Bench::open();
    let (s, list) = (b.stream(1), forms(&b));
    let mut plain = Vec::new();
    for layout in places(&b) {
        let (to, from) = (place(&b, layout), place(&b, layout));
        for (i, (name, call)) in list.iter().enumerate() {
            let mut graph = 0;
            b.fill(from, LARGE, 1);
            b.fill(to, LARGE, 2);
            b.done();
            must(
                b.cu.cuStreamBeginCapture_v2(s, CU_STREAM_CAPTURE_MODE_GLOBAL),
                "cuStreamBeginCapture",
            );
            let code = call(to, from, s);
            let end = b.cu.cuStreamEndCapture(s, Some(&mut graph));
            let refused = name.contains("Peer");
            told.is(
                format!("{name} on {layout}, captured"),
                (code, end),
                if refused { (900, 901) } else { (0, 0) },
            );
            if graph == 0 {
                plain.push(Vec::new());
                continue;
            }
            let exec = instantiate(&b, graph);
            let mut sums = Vec::new();
            for seed in [1, 3] {
                b.fill(from, LARGE, seed);
                b.done();
                must(b.cu.cuGraphLaunch(exec, s), "cuGraphLaunch");
                b.done();
                sums.push(sum(&b, to));
            }
            destroy(&b, graph, exec);
            if *layout == "A" {
                // What the call does when it is not captured.
                b.fill(to, LARGE, 2);
                b.done();
                must(call(to, from, s), name);
                b.done();
                told.is(format!("{name}, replayed"), sums[1], sum(&b, to));
                plain.push(sums);
            } else {
                told.is(format!("{name} on {layout}, bytes"), &sums, &plain[i]);
            }
        }
    }
}

/// A copy of one row, as nodes take it.
pub(super) fn line(to: u64, from: u64, bytes: usize) -> CUDA_MEMCPY3D {
    CUDA_MEMCPY3D {
        srcPitch: 0,
        srcHeight: 0,
        dstPitch: 0,
        dstHeight: 0,
        WidthInBytes: bytes,
        Height: 1,
        Depth: 1,
        ..cube(to, from, 0)
    }
}

pub(super) fn bytes(to: u64, value: u32, count: usize) -> CUDA_MEMSET_NODE_PARAMS {
    CUDA_MEMSET_NODE_PARAMS {
        dst: to,
        pitch: 0,
        value,
        elementSize: 1,
        width: count,
        height: 1,
    }
}

extern "C" fn count(user: *mut c_void) {
    // SAFETY: the word that the node was made with, which is never freed.
    unsafe { *user.cast::<u64>() += 1 };
}

pub(super) fn made(told: &Told) {
    let b = Bench::open();
    let (cu, s, out) = (&b.cu, b.stream(1), b.alloc(16));
    for layout in places(&b) {
        let (to, from, called) = (place(&b, layout), place(&b, layout), Host::new(8));
        let (mut graph, mut child, mut nodes) = (0, 0, [0usize; 9]);
        must(cu.cuGraphCreate(Some(&mut graph), 0), "cuGraphCreate");
        must(cu.cuGraphCreate(Some(&mut child), 0), "cuGraphCreate");
        let n = LARGE as u64 / 8;
        let arguments = [from, n, 5];
        let mut pointers = arguments
            .each_ref()
            .map(|a| ptr::from_ref(a) as *mut c_void);
        let kernel = CUDA_KERNEL_NODE_PARAMS_v1 {
            func: b.function("gb_fill") as CUfunction,
            gridDimX: 32,
            gridDimY: 1,
            gridDimZ: 1,
            blockDimX: 256,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: 0,
            kernelParams: pointers.as_mut_ptr(),
            extra: ptr::null_mut(),
        };
        let host = CUDA_HOST_NODE_PARAMS {
            r#fn: Some(count),
            userData: called.address as *mut c_void,
        };
        let event = b.event();
        let [empty, fill, copy, set, call, record, wait, sub, last] = &mut nodes;
        let none = ptr::null();
        let steps = [
            ("empty", cu.cuGraphAddEmptyNode(Some(empty), graph, none, 0)),
            (
                "kernel",
                cu.cuGraphAddKernelNode(Some(fill), graph, empty, 1, &kernel),
            ),
            (
                "copy",
                cu.cuGraphAddMemcpyNode(
                    Some(copy),
                    graph,
                    fill,
                    1,
                    &line(to, from, LARGE),
                    b.context,
                ),
            ),
            (
                "memset",
                cu.cuGraphAddMemsetNode(Some(set), graph, copy, 1, &bytes(to, 0, 80), b.context),
            ),
            (
                "host",
                cu.cuGraphAddHostNode(Some(call), graph, set, 1, &host),
            ),
            (
                "event record",
                cu.cuGraphAddEventRecordNode(Some(record), graph, call, 1, event),
            ),
            (
                "event wait",
                cu.cuGraphAddEventWaitNode(Some(wait), graph, record, 1, event),
            ),
            (
                "in the child",
                cu.cuGraphAddMemcpyNode(
                    Some(&mut 0),
                    child,
                    none,
                    0,
                    &line(out, to + 80, 8),
                    b.context,
                ),
            ),
            (
                "child",
                cu.cuGraphAddChildGraphNode(Some(sub), graph, wait, 1, child),
            ),
            (
                "area",
                cu.cuGraphAddMemcpyNode(
                    Some(last),
                    graph,
                    sub,
                    1,
                    &CUDA_MEMCPY3D {
                        Depth: 1,
                        ..cube(to + LARGE as u64, from, 0)
                    },
                    b.context,
                ),
            ),
        ];
        for (name, code) in steps {
            told.is(format!("{name} on {layout}"), code, 0);
        }
        let kinds = nodes.map(|node| {
            let mut kind = -1;
            must(
                cu.cuGraphNodeGetType(node, Some(&mut kind)),
                "cuGraphNodeGetType",
            );
            kind
        });
        told.is("kinds", kinds, [5, 0, 1, 2, 3, 7, 6, 4, 1]);
        let exec = instantiate(&b, graph);
        for round in 1..3 {
            b.fill(to, LARGE, 9);
            b.fill(to + LARGE as u64, LARGE, 9);
            b.done();
            told.is("launch", cu.cuGraphLaunch(exec, s), 0);
            told.is("done", cu.cuStreamSynchronize(s), 0);
            told.is(format!("{layout}: memset"), b.read(to + 72), Ok(0));
            told.is(format!("{layout}: copy"), b.wrong(to + 80, 4096, 15), 0);
            told.is(
                format!("{layout}: the child's copy"),
                b.read(out),
                b.read(to + 80),
            );
            let at = to + LARGE as u64 + 4096;
            told.is(format!("{layout}: area"), b.read(at), b.read(from + 4096));
            told.is(format!("{layout}: host"), called.word(0), round);
        }
        let arguments = [from, n, 6];
        let mut pointers = arguments
            .each_ref()
            .map(|a| ptr::from_ref(a) as *mut c_void);
        let kernel = CUDA_KERNEL_NODE_PARAMS_v1 {
            kernelParams: pointers.as_mut_ptr(),
            ..kernel
        };
        let code = cu.cuGraphExecKernelNodeSetParams(exec, nodes[1], &kernel);
        told.is("other arguments", code, 0);
        must(cu.cuGraphLaunch(exec, s), "cuGraphLaunch");
        b.done();
        told.is(
            format!("{layout}: other arguments"),
            b.wrong(to + 80, 4096, 16),
            0,
        );
        // The same through the one function for all kinds, where there is one.
        let mut params = CUgraphNodeParams {
            type_: CU_GRAPH_NODE_TYPE_MEMSET,
            reserved0: [0; 3],
            of: CUgraphNodeParams_variant { room: [0; 29] },
            reserved2: 0,
        };
        params.of.memset = CUDA_MEMSET_NODE_PARAMS_v2 {
            v1: bytes(to, 3, LARGE),
            ctx: b.context as CUcontext,
        };
        let (mut other, mut node) = (0, 0);
        must(cu.cuGraphCreate(Some(&mut other), 0), "cuGraphCreate");
        if cu.symbol("cuGraphAddNode").is_some() {
            told.is(
                format!("cuGraphAddNode on {layout}"),
                cu.cuGraphAddNode(Some(&mut node), other, none, 0, &mut params),
                0,
            );
            params.type_ = CU_GRAPH_NODE_TYPE_MEMCPY;
            params.of.room = [0; 29];
            params.of.memcpy = CUDA_MEMCPY_NODE_PARAMS {
                flags: 0,
                reserved: 0,
                copyCtx: b.context as CUcontext,
                copyParams: line(from, to, LARGE),
            };
            let after = [node];
            told.is(
                format!("cuGraphAddNode_v2 on {layout}"),
                cu.cuGraphAddNode_v2(
                    Some(&mut node),
                    other,
                    after.as_ptr(),
                    ptr::null(),
                    1,
                    &mut params,
                ),
                0,
            );
            let exec = instantiate(&b, other);
            must(cu.cuGraphLaunch(exec, s), "cuGraphLaunch");
            b.done();
            let threes = u64::from_ne_bytes([3; 8]);
            told.is("its memset and copy", b.read(from + 4096), Ok(threes));
            must(cu.cuGraphExecDestroy(exec), "cuGraphExecDestroy");
        }
        must(cu.cuGraphDestroy(other), "cuGraphDestroy");
        must(cu.cuGraphDestroy(child), "cuGraphDestroy");
        destroy(&b, graph, exec);
    }
}

/// Two places of one kind of backing: what a copy touches is all of that kind.
struct Spots {
    kind: &'static str,
    to: [u64; 2],
    from: [u64; 2],
}

/// A copy node takes operands of the kind that it has: `cuMemAlloc` memory, VRAM mapped into a range, host memory mapped
/// into a range, or a copy over both kinds of mapping (measured: every change of kind is refused).
fn spots(b: &Bench) -> Vec<Spots> {
    let pair = |layout| [place(b, layout), place(b, layout)];
    let spots = |kind, layout| Spots {
        kind,
        to: pair(layout),
        from: pair(layout),
    };
    let mut all = vec![spots("cuMemAlloc", "A"), spots("VRAM", "V8")];
    if host_vmm(&b.cu) {
        all.push(spots("host", "H8"));
        all.push(spots("both", "V2 H2 V4"));
        // The two parts of one range, whatever else is in it.
        let (to, from) = (b.range("V8 H8").p, b.range("V8 H8").p);
        let at = |p: u64, half: u64| p + half * 8 * MIB as u64;
        for (kind, half) in [("VRAM", 0), ("host", 1)] {
            all.push(Spots {
                kind,
                to: [at(to, half), at(to, half) + 4096],
                from: [at(from, half), at(from, half) + 4096],
            });
        }
        // Several handles of one kind.
        all.push(spots("VRAM", "V2 V2 V4"));
    }
    all
}

pub(super) fn updated(told: &Told) {
    let b = Bench::open();
    let (cu, s) = (&b.cu, b.stream(1));
    let all = spots(&b);
    let n = LARGE as u64 / 8;
    for (i, old) in all.iter().enumerate() {
        for (j, new) in all.iter().enumerate() {
            let what = format!("{} ({i}) to {} ({j})", old.kind, new.kind);
            let alike = old.kind == new.kind;
            let (to, from) = (old.to[0], old.from[0]);
            let (new_to, new_from) = (new.to[1], new.from[1]);
            let (mut graph, mut copy, mut set) = (0, 0, 0);
            must(cu.cuGraphCreate(Some(&mut graph), 0), "cuGraphCreate");
            let first = line(to, from, LARGE);
            must(
                cu.cuGraphAddMemcpyNode(Some(&mut copy), graph, ptr::null(), 0, &first, b.context),
                "cuGraphAddMemcpyNode",
            );
            let clear = bytes(to, 0, 8);
            must(
                cu.cuGraphAddMemsetNode(Some(&mut set), graph, &copy, 1, &clear, b.context),
                "cuGraphAddMemsetNode",
            );
            let exec = instantiate(&b, graph);
            b.fill(new_from, LARGE, 7);
            b.fill(new_to, LARGE, 8);
            b.done();
            let moved = line(new_to, new_from, LARGE);
            let copied = cu.cuGraphExecMemcpyNodeSetParams(exec, copy, &moved, b.context);
            told.is(
                format!("{what}: copy"),
                copied,
                if alike { 0 } else { CUDA_ERROR_INVALID_VALUE },
            );
            let clear = bytes(new_to, 0, 8);
            let cleared = cu.cuGraphExecMemsetNodeSetParams(exec, set, &clear, b.context);
            told.is(format!("{what}: memset"), cleared, 0);
            must(cu.cuGraphLaunch(exec, s), "cuGraphLaunch");
            b.done();
            told.is(format!("{what}: cleared"), b.read(new_to), Ok(0));
            if copied == 0 {
                told.is(format!("{what}: copied"), b.wrong(new_to, LARGE, 7), 1);
            }
            destroy(&b, graph, exec);
            // A captured graph that took the place of another.
            let capture = |to: u64, from: u64| {
                let mut graph = 0;
                must(cu.cuStreamBeginCapture_v2(s, 0), "cuStreamBeginCapture");
                must(b.launch("gb_fill", s, &[from, n, 4]), "gb_fill");
                must(
                    cu.cuMemcpyDtoDAsync_v2(to, from, LARGE, s),
                    "cuMemcpyDtoDAsync",
                );
                must(cu.cuMemsetD8Async(to, 0, 8, s), "cuMemsetD8Async");
                must(
                    cu.cuStreamEndCapture(s, Some(&mut graph)),
                    "cuStreamEndCapture",
                );
                graph
            };
            let (before, after) = (capture(to, from), capture(new_to, new_from));
            let exec = instantiate(&b, before);
            let mut version = 0;
            must(
                cu.cuDriverGetVersion(Some(&mut version)),
                "cuDriverGetVersion",
            );
            let code = match version >= 12000 {
                true => cu.cuGraphExecUpdate_v2(exec, after, Some(&mut [0; 3])),
                false => cu.cuGraphExecUpdate(exec, after, Some(&mut 0), Some(&mut 0)),
            };
            told.is(format!("{what}: update"), code, if alike { 0 } else { 910 });
            if code == 0 {
                must(cu.cuGraphLaunch(exec, s), "cuGraphLaunch");
                b.done();
                told.is(format!("{what}: updated"), b.wrong(new_to, LARGE, 4), 1);
            }
            must(cu.cuGraphDestroy(before), "cuGraphDestroy");
            destroy(&b, after, exec);
        }
    }
}
