//! Memory that graphs allocate and free: allocation nodes, the device's graph memory, what holds it and what gives it back.

use std::ptr;

use greenboost_abi::*;

use crate::bench::{Bench, MIB, must};
use crate::told::Told;

/// Bytes of an allocation: large, so that rounding does not show.
const SIZE: usize = 64 * MIB;
const WORDS: u64 = SIZE as u64 / 8;

/// Bytes that graphs use, and bytes that the device holds for them.
fn figures(b: &Bench) -> (u64, u64) {
    let figure = |attribute| {
        let mut value = u64::MAX;
        let code =
            b.cu.cuDeviceGetGraphMemAttribute(0, attribute, Some(&mut value));
        must(code, "cuDeviceGetGraphMemAttribute");
        value
    };
    (
        figure(CU_GRAPH_MEM_ATTR_USED_MEM_CURRENT),
        figure(CU_GRAPH_MEM_ATTR_RESERVED_MEM_CURRENT),
    )
}

fn free_bytes(b: &Bench) -> i64 {
    let (mut free, mut total) = (0, 0);
    must(
        b.cu.cuMemGetInfo_v2(Some(&mut free), Some(&mut total)),
        "cuMemGetInfo",
    );
    free as i64
}

fn alloc_params(size: usize) -> CUDA_MEM_ALLOC_NODE_PARAMS {
    CUDA_MEM_ALLOC_NODE_PARAMS {
        poolProps: CUmemPoolProps {
            allocType: 1,
            handleTypes: 0,
            location: CUmemLocation {
                type_: CU_MEM_LOCATION_TYPE_DEVICE,
                id: 0,
            },
            win32SecurityAttributes: ptr::null_mut(),
            maxSize: 0,
            usage: 0,
            reserved: [0; 54],
        },
        accessDescs: ptr::null(),
        accessDescCount: 0,
        bytesize: size,
        dptr: 0,
    }
}

/// A captured graph that allocates, fills, and frees if asked to. Its address.
fn captured(b: &Bench, s: usize, size: usize, seed: u64, freed: bool) -> (usize, u64) {
    let (mut graph, mut p) = (0, 0);
    must(
        b.cu.cuStreamBeginCapture_v2(s, CU_STREAM_CAPTURE_MODE_GLOBAL),
        "cuStreamBeginCapture",
    );
    must(
        b.cu.cuMemAllocAsync(Some(&mut p), size, s),
        "cuMemAllocAsync",
    );
    must(
        b.launch("gb_fill", s, &[p, size as u64 / 8, seed]),
        "gb_fill",
    );
    if freed {
        must(b.cu.cuMemFreeAsync(p, s), "cuMemFreeAsync");
    }
    must(
        b.cu.cuStreamEndCapture(s, Some(&mut graph)),
        "cuStreamEndCapture",
    );
    (graph, p)
}

fn instantiate(b: &Bench, graph: usize, flags: u64) -> usize {
    let mut exec = 0;
    must(
        b.cu.cuGraphInstantiateWithFlags(Some(&mut exec), graph, flags),
        "cuGraphInstantiate",
    );
    exec
}

fn run(b: &Bench, exec: usize, s: usize) -> (i32, i32) {
    (b.cu.cuGraphLaunch(exec, s), b.cu.cuStreamSynchronize(s))
}

fn destroy(b: &Bench, graph: usize, exec: usize) {
    must(b.cu.cuGraphExecDestroy(exec), "cuGraphExecDestroy");
    must(b.cu.cuGraphDestroy(graph), "cuGraphDestroy");
}

pub(super) fn reserved(told: &Told) {
    let b = Bench::open();
    let (s, size) = (b.stream(1), SIZE as u64);
    told.is("at first", figures(&b), (0, 0));
    let (graph, _) = captured(&b, s, SIZE, 1, true);
    told.is("captured", figures(&b), (0, 0));
    let exec = instantiate(&b, graph, 0);
    told.is("instantiated", figures(&b), (0, 0));
    let before = free_bytes(&b);
    told.is("cuGraphUpload", b.cu.cuGraphUpload(exec, s), 0);
    b.done();
    told.is("uploaded", figures(&b), (size, size));
    told.is("launch", run(&b, exec, s), (0, 0));
    told.is("launched", figures(&b), (size, size));
    told.is("cuMemGetInfo", before - free_bytes(&b), SIZE as i64);
    told.is("launch again", run(&b, exec, s), (0, 0));
    told.is("launched again", figures(&b), (size, size));
    told.is("trim", b.cu.cuDeviceGraphMemTrim(0), 0);
    told.is("trimmed", figures(&b), (0, 0));
    told.is("cuMemGetInfo, trimmed", before - free_bytes(&b), 0);
    told.is("launch, trimmed", run(&b, exec, s), (0, 0));
    told.is("launched, trimmed", figures(&b), (size, size));
    destroy(&b, graph, exec);
    told.is("destroyed", figures(&b), (size, size));
    // A graph that is launched in the same stream takes what lies there.
    let (graph, _) = captured(&b, s, SIZE, 2, true);
    let exec = instantiate(&b, graph, 0);
    told.is("launch another", run(&b, exec, s), (0, 0));
    told.is("launched another", figures(&b), (size, size));
    let (second, _) = captured(&b, s, SIZE, 3, true);
    let second_exec = instantiate(&b, second, 0);
    told.is("launch a second", run(&b, second_exec, s), (0, 0));
    told.is("launched two in one stream", figures(&b), (size, size));
    destroy(&b, second, second_exec);
    destroy(&b, graph, exec);
    told.is("trim at last", b.cu.cuDeviceGraphMemTrim(0), 0);
    told.is("trimmed at last", figures(&b), (0, 0));
    // What cuMemAlloc needs, graphs give up unasked, or not: only seen, as it needs the whole card.
    let (graph, _) = captured(&b, s, 1000, 4, true);
    let upload = CUDA_GRAPH_INSTANTIATE_FLAG_UPLOAD;
    let code =
        b.cu.cuGraphInstantiateWithFlags(Some(&mut 0), graph, upload);
    told.is("the upload flag needs a stream", code, 1);
    let (mut exec, mut params) = (0, [upload, s as u64, 0, 0]);
    let code =
        b.cu.cuGraphInstantiateWithParams(Some(&mut exec), graph, Some(&mut params));
    told.is("instantiated with upload", code, 0);
    b.done();
    told.is("uploaded at once", figures(&b).1 > 0, true);
    told.is("launch 1000 bytes", run(&b, exec, s), (0, 0));
    let (used, held) = figures(&b);
    told.note(format!("1000 bytes: {used} used, {held} reserved"));
    told.is("1000 bytes", held >= 1000 && held <= 32 * MIB as u64, true);
    destroy(&b, graph, exec);
    let high = CU_GRAPH_MEM_ATTR_RESERVED_MEM_HIGH;
    let mut value = 0;
    told.is(
        "high",
        b.cu.cuDeviceGetGraphMemAttribute(0, high, Some(&mut value)),
        0,
    );
    told.is("high is the most there was", value, size);
    told.is(
        "set current",
        b.cu.cuDeviceSetGraphMemAttribute(0, CU_GRAPH_MEM_ATTR_RESERVED_MEM_CURRENT, Some(&0)),
        1,
    );
    told.is(
        "reset high",
        b.cu.cuDeviceSetGraphMemAttribute(0, high, Some(&0)),
        0,
    );
    told.is(
        "trim the small one",
        (b.cu.cuDeviceGraphMemTrim(0), figures(&b)),
        (0, (0, 0)),
    );
}

/// What is said of an address: memory type, range, and the mapping's size; codes where there is none.
fn asked(b: &Bench, p: u64) -> [(i32, u64); 5] {
    [
        CU_POINTER_ATTRIBUTE_MEMORY_TYPE,
        CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL,
        CU_POINTER_ATTRIBUTE_RANGE_START_ADDR,
        CU_POINTER_ATTRIBUTE_RANGE_SIZE,
        CU_POINTER_ATTRIBUTE_MAPPED,
    ]
    .map(|attribute| {
        let mut room = [0; 32];
        let code = b.cu.cuPointerGetAttribute(Some(&mut room), attribute, p);
        let word = room[..8].try_into().map_or(0, u64::from_le_bytes);
        (code, if code == 0 { word } else { 0 })
    })
}

pub(super) fn addresses(told: &Told) {
    let b = Bench::open();
    let s = b.stream(1);
    let (graph, p) = captured(&b, s, SIZE, 1, false);
    let known = [(0, 2), (0, 0), (0, p), (0, SIZE as u64), (0, 1)];
    let unknown = [(1, 0); 5];
    told.is("captured", asked(&b, p + 8), unknown);
    let range = || {
        let (mut base, mut size) = (0, 0);
        let code =
            b.cu.cuMemGetAddressRange_v2(Some(&mut base), Some(&mut size), p + 8);
        (code, base, size)
    };
    told.is("its range, captured", range().0, CUDA_ERROR_NOT_FOUND);
    let exec = instantiate(&b, graph, 0);
    told.is("instantiated", asked(&b, p + 8), unknown);
    told.is("cuMemFree before the launch", b.cu.cuMemFree_v2(p), 1);
    told.is(
        "cuMemFreeAsync before the launch",
        b.cu.cuMemFreeAsync(p, s),
        1,
    );
    told.is("launch", run(&b, exec, s), (0, 0));
    told.is("launched", asked(&b, p + 8), known);
    told.is("its range", range(), (0, p, SIZE));
    told.is("what it wrote", b.wrong(p, SIZE, 1), 0);
    told.is("cuMemFree of its inside", b.cu.cuMemFree_v2(p + 512), 1);
    told.is("cuMemFree", b.cu.cuMemFree_v2(p), 0);
    told.is("freed", asked(&b, p + 8), unknown);
    told.is("freed", figures(&b).1, SIZE as u64);
    told.is("cuMemFree again", b.cu.cuMemFree_v2(p), 1);
    told.is("launch again", run(&b, exec, s), (0, 0));
    told.is("cuMemFreeAsync", b.cu.cuMemFreeAsync(p, s), 0);
    b.done();
    destroy(&b, graph, exec);
    told.is("destroyed", asked(&b, p + 8)[0].0, CUDA_ERROR_INVALID_VALUE);
    must(b.cu.cuDeviceGraphMemTrim(0), "cuDeviceGraphMemTrim");
    told.is("gone", figures(&b), (0, 0));
    // Freed inside: the graph's own, and nobody else may free it.
    let (graph, p) = captured(&b, s, SIZE, 2, true);
    let exec = instantiate(&b, graph, 0);
    told.is("launch, freed inside", run(&b, exec, s), (0, 0));
    told.is("cuMemFree, freed inside", b.cu.cuMemFree_v2(p), 1);
    told.is("cuMemFreeAsync, freed inside", b.cu.cuMemFreeAsync(p, s), 1);
    destroy(&b, graph, exec);
    must(b.cu.cuDeviceGraphMemTrim(0), "cuDeviceGraphMemTrim");
}

pub(super) fn kept(told: &Told) {
    let b = Bench::open();
    let (s, size) = (b.stream(1), SIZE as u64);
    let (graph, p) = captured(&b, s, SIZE, 1, false);
    let exec = instantiate(&b, graph, 0);
    told.is("launch", run(&b, exec, s), (0, 0));
    told.is("trim", b.cu.cuDeviceGraphMemTrim(0), 0);
    told.is("trimmed", figures(&b), (size, size));
    told.is("its bytes", b.wrong(p, SIZE, 1), 0);
    told.is("launch again", b.cu.cuGraphLaunch(exec, s), 1);
    told.is("its bytes then", b.wrong(p, SIZE, 1), 0);
    told.is("cuMemFreeAsync", b.cu.cuMemFreeAsync(p, s), 0);
    told.is("launch, freed", run(&b, exec, s), (0, 0));
    // Destroying the graph leaves the allocation.
    destroy(&b, graph, exec);
    told.is("destroyed", figures(&b), (size, size));
    told.is("its bytes, destroyed", b.wrong(p, SIZE, 1), 0);
    told.is("cuMemFree, destroyed", b.cu.cuMemFree_v2(p), 0);
    must(b.cu.cuDeviceGraphMemTrim(0), "cuDeviceGraphMemTrim");
    told.is("gone", figures(&b), (0, 0));
    let (graph, p) = captured(&b, s, SIZE, 2, false);
    let exec = instantiate(&b, graph, CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH);
    told.is("launch, auto-free", run(&b, exec, s), (0, 0));
    told.is("launch again, auto-free", run(&b, exec, s), (0, 0));
    told.is("auto-free", figures(&b), (size, size));
    told.is("its bytes, auto-free", b.wrong(p, SIZE, 2), 0);
    told.is("cuMemFree, auto-free", b.cu.cuMemFree_v2(p), 0);
    destroy(&b, graph, exec);
    must(b.cu.cuDeviceGraphMemTrim(0), "cuDeviceGraphMemTrim");
    told.is("auto-free, gone", figures(&b), (0, 0));
    // A graph may free what another one allocated.
    let (first, p) = captured(&b, s, SIZE, 3, false);
    let first_exec = instantiate(&b, first, 0);
    let (mut second, mut node) = (0, 0);
    must(b.cu.cuGraphCreate(Some(&mut second), 0), "cuGraphCreate");
    let code =
        b.cu.cuGraphAddMemFreeNode(Some(&mut node), second, ptr::null(), 0, p);
    told.is("cuGraphAddMemFreeNode of another graph's", code, 0);
    let second_exec = instantiate(&b, second, 0);
    for _ in 0..2 {
        told.is("allocating graph", run(&b, first_exec, s), (0, 0));
        told.is("freeing graph", run(&b, second_exec, s), (0, 0));
    }
    told.is("freed by a graph: cuMemFree", b.cu.cuMemFree_v2(p), 1);
    destroy(&b, first, first_exec);
    destroy(&b, second, second_exec);
    must(b.cu.cuDeviceGraphMemTrim(0), "cuDeviceGraphMemTrim");
    told.is("all gone", figures(&b), (0, 0));
}

/// Captures one call between two launches; its answer, and that of the end.
fn within(b: &Bench, s: usize, act: impl FnOnce() -> i32) -> (i32, i32) {
    must(
        b.cu.cuStreamBeginCapture_v2(s, CU_STREAM_CAPTURE_MODE_RELAXED),
        "cuStreamBeginCapture",
    );
    let (code, mut graph) = (act(), 0);
    let end = b.cu.cuStreamEndCapture(s, Some(&mut graph));
    if graph != 0 {
        must(b.cu.cuGraphDestroy(graph), "cuGraphDestroy");
    }
    (code, end)
}

pub(super) fn refusals(told: &Told) {
    let b = Bench::open();
    let (s, plain) = (b.stream(1), b.alloc(4096));
    let mut pooled = 0;
    must(
        b.cu.cuMemAllocAsync(Some(&mut pooled), 4096, s),
        "cuMemAllocAsync",
    );
    b.done();
    let (r, cu) = (b.range("V2"), &b.cu);
    let free = |p| within(&b, s, || cu.cuMemFreeAsync(p, s));
    told.is("free of cuMemAlloc memory", free(plain), (1, 0));
    told.is("free of pool memory", free(pooled), (1, 0));
    told.is("free of a mapped range", free(r.p), (1, 0));
    told.is("free of nothing", free(0x1234), (1, 0));
    told.is(
        "zero bytes",
        within(&b, s, || cu.cuMemAllocAsync(Some(&mut 0), 0, s)),
        (0, 0),
    );
    let twice = || {
        let mut p = 0;
        must(cu.cuMemAllocAsync(Some(&mut p), 4096, s), "cuMemAllocAsync");
        must(cu.cuMemFreeAsync(p, s), "cuMemFreeAsync");
        cu.cuMemFreeAsync(p, s)
    };
    told.is("free twice", within(&b, s, twice), (1, 0));
    let (mut graph, mut node, mut params) = (0, 0, alloc_params(SIZE));
    must(cu.cuGraphCreate(Some(&mut graph), 0), "cuGraphCreate");
    let mut add = |params: &mut CUDA_MEM_ALLOC_NODE_PARAMS| {
        cu.cuGraphAddMemAllocNode(Some(&mut node), graph, ptr::null(), 0, params)
    };
    told.is("alloc node", add(&mut params), 0);
    told.is("its address", params.dptr != 0, true);
    told.is("alloc node of zero bytes", add(&mut alloc_params(0)), 1);
    let mut elsewhere = alloc_params(SIZE);
    elsewhere.poolProps.location.id = 99;
    told.is(
        "alloc node on device 99",
        add(&mut elsewhere),
        CUDA_ERROR_INVALID_VALUE,
    );
    let mut host = alloc_params(SIZE);
    host.poolProps.location = CUmemLocation {
        type_: CU_MEM_LOCATION_TYPE_HOST_NUMA,
        id: b.node,
    };
    told.is("alloc node on the host", add(&mut host), 801);
    told.is("alloc node of 4 TiB", add(&mut alloc_params(1 << 42)), 2);
    for (what, p, code) in [
        ("cuMemAlloc memory", plain, 1),
        ("pool memory", pooled, 1),
        ("nothing", 0x1234, 1),
    ] {
        let got = cu.cuGraphAddMemFreeNode(Some(&mut 0), graph, ptr::null(), 0, p);
        told.is(format!("free node of {what}"), got, code);
    }
    let after = [node];
    let free = || {
        let mut other = 0;
        cu.cuGraphAddMemFreeNode(Some(&mut other), graph, after.as_ptr(), 1, params.dptr)
    };
    told.is("free node", free(), 0);
    told.is("free node again", free(), 1);
    let (mut parent, mut child) = (0, 0);
    must(cu.cuGraphCreate(Some(&mut parent), 0), "cuGraphCreate");
    told.is(
        "as a child",
        cu.cuGraphAddChildGraphNode(Some(&mut child), parent, ptr::null(), 0, graph),
        CUDA_ERROR_NOT_SUPPORTED,
    );
    must(cu.cuGraphDestroy(parent), "cuGraphDestroy");
    must(cu.cuGraphDestroy(graph), "cuGraphDestroy");
    // One instantiation at a time.
    let (graph, _) = captured(&b, s, SIZE, 1, true);
    let exec = instantiate(&b, graph, 0);
    told.is(
        "a second instantiation",
        cu.cuGraphInstantiateWithFlags(Some(&mut 0), graph, 0),
        CUDA_ERROR_NOT_SUPPORTED,
    );
    // More than the card has: told at the launch, and nothing is broken.
    destroy(&b, graph, exec);
    let (_, mut total) = (0usize, 0usize);
    must(cu.cuMemGetInfo_v2(None, Some(&mut total)), "cuMemGetInfo");
    must(
        cu.cuStreamBeginCapture_v2(s, CU_STREAM_CAPTURE_MODE_RELAXED),
        "cuStreamBeginCapture",
    );
    let (mut p, mut graph, mut exec) = (0, 0, 0);
    let code = cu.cuMemAllocAsync(Some(&mut p), total * 2, s);
    told.is("too much, captured", code, 0);
    let end = cu.cuStreamEndCapture(s, Some(&mut graph));
    told.is("too much, end of the capture", end, 0);
    if graph != 0 {
        let made = cu.cuGraphInstantiateWithFlags(Some(&mut exec), graph, 0);
        told.is("too much, instantiated", made, 0);
        if made == 0 {
            told.is("too much, launched", cu.cuGraphLaunch(exec, s), 2);
            must(cu.cuGraphExecDestroy(exec), "cuGraphExecDestroy");
        }
        must(cu.cuGraphDestroy(graph), "cuGraphDestroy");
    }
    told.is("too much, after that", cu.cuCtxSynchronize(), 0);
    must(cu.cuDeviceGraphMemTrim(0), "cuDeviceGraphMemTrim");
    // What the failed launch got before it failed stays with the driver, whatever is trimmed (measured). Nothing can be
    // allocated then, so this comes last.
    let (used, held) = figures(&b);
    told.is("a failed launch uses nothing", used, 0);
    told.is("what it got stays", held > total as u64 / 2, true);
    told.is(
        "an allocation after that",
        cu.cuMemAlloc_v2(Some(&mut 0), total / 4),
        2,
    );
}

pub(super) fn waits(told: &Told) {
    let b = Bench::open();
    let (busy, s) = (b.stream(1), b.stream(1));
    let (graph, _) = captured(&b, s, SIZE, 1, true);
    let exec = instantiate(&b, graph, 0);
    told.is("launch", run(&b, exec, s), (0, 0));
    let attribute = || b.cu.cuDeviceGetGraphMemAttribute(0, 2, Some(&mut 0));
    told.is("attribute waits", b.waits(busy, false, &attribute), false);
    let trim = || b.cu.cuDeviceGraphMemTrim(0);
    told.is("trim waits", b.waits(busy, false, &trim), false);
    let upload = || b.cu.cuGraphUpload(exec, s);
    told.is("upload waits", b.waits(busy, false, &upload), false);
    let launch = || b.cu.cuGraphLaunch(exec, s);
    told.is("launch waits", b.waits(busy, false, &launch), false);
    // A graph whose turn has not come keeps its memory.
    let event = b.event();
    b.spin(busy, 200);
    must(b.cu.cuEventRecord(event, busy), "cuEventRecord");
    must(b.cu.cuStreamWaitEvent(s, event, 0), "cuStreamWaitEvent");
    must(b.cu.cuGraphLaunch(exec, s), "cuGraphLaunch");
    told.is("trim of a queued graph's", b.cu.cuDeviceGraphMemTrim(0), 0);
    if b.cu.cuEventQuery(event) != 0 {
        told.is("a queued graph keeps", figures(&b), (WORDS * 8, WORDS * 8));
    }
    b.done();
    destroy(&b, graph, exec);
    must(b.cu.cuDeviceGraphMemTrim(0), "cuDeviceGraphMemTrim");
}
