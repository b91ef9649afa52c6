//! Graphs: nodes made by hand and captured, on memory of both tiers; memory that graphs allocate.

use victim::gpu::{Gpu, Kernels};
use victim::graph::*;
use victim::*;

fn main() {
    let gpu = Gpu::open();
    match argument(1).as_str() {
        "nodes" => nodes(&gpu),
        "updates" => updates(&gpu),
        "forms" => forms(&gpu),
        "memory" => memory(&gpu),
        "frees" => frees(&gpu),
        "pressure" => pressure(&gpu),
        "over-budget" => over_budget(&gpu),
        "card-full" => card_full(&gpu),
        "undisturbed" => undisturbed(&gpu),
        other => panic!("{other}?"),
    }
    ok(gpu.cuda.cuCtxSynchronize());
}

/// Large enough that some of two of them are in each tier.
const N: usize = 12 << 20;
const WORDS: u64 = N as u64 / 8;

fn run(gpu: &Gpu, exec: CUgraphExec, stream: CUstream) {
    ok(gpu.cuda.cuGraphLaunch(exec, stream));
    ok(gpu.cuda.cuStreamSynchronize(stream));
}

/// The words that a fill with this seed leaves.
fn filled(seed: u64, bytes: usize) -> Vec<u8> {
    (0..bytes as u64 / 8)
        .flat_map(|i| Kernels::filled(seed, i).to_le_bytes())
        .collect()
}

extern "C" fn count(user: *mut c_void) {
    // SAFETY: the counter that the node was made with outlives its graph.
    unsafe { *user.cast::<u64>() += 1 };
}

/// Every kind of node over ranges of both tiers, again and again.
fn nodes(gpu: &Gpu) {
    let (cuda, kernels, stream) = (&gpu.cuda, Kernels::load(gpu), gpu.stream(0));
    let (a, b, c, small) = (gpu.alloc(N), gpu.alloc(N), gpu.alloc(N), gpu.alloc(4096));
    let counter: &'static mut u64 = Box::leak(Box::new(0));
    let counter: *mut u64 = counter;
    let (graph, child) = (Graph::new(gpu), Graph::new(gpu));
    child.copy(&[], &line(small, b + 16, 1024));
    let start = graph.empty(&[]);
    let fill = graph.launch(&[start], kernels.fill_function(), &mut [a, WORDS, 5]);
    let copy = graph.copy(&[fill], &line(b, a, N));
    let set = graph.set(&[copy], &bytes(b + 100, 7, N / 2));
    let host = graph.host(&[set], count, counter.cast());
    let below = graph.child(&[host], &child);
    let area = graph.copy(&[below], &rows(c, a, 3000, 1000, 4096));
    let add = graph.launch(&[], kernels.add_function(), &mut [c + (8 << 20), 1024, 3]);
    ok(cuda.cuGraphAddDependencies(graph.graph, &area, &add, 1));
    let exec = graph.instantiate(0);
    for round in 0..3u64 {
        for p in [a, b, c] {
            ok(cuda.cuMemsetD8_v2(p, round as u8, N));
        }
        ok(cuda.cuCtxSynchronize());
        run(gpu, exec, stream);
        let (all, mut expected) = (gpu.read(a, N), filled(5, N));
        assert!(all == expected, "kernel node");
        expected[100..100 + N / 2].fill(7);
        assert!(gpu.read(b, N) == expected, "copy and memset nodes");
        assert!(gpu.read(small, 1024) == expected[16..16 + 1024], "child");
        let there = gpu.read(c, N);
        for row in [0, 1, 500, 999] {
            let at = row * 4096;
            assert!(there[at..at + 3000] == all[at..at + 3000], "row {row}");
            assert!(there[at + 3000..at + 4096].iter().all(|b| *b == round as u8));
        }
        // SAFETY: the graph is done.
        println!("round {round}: {}", unsafe { *counter });
    }
    ok(cuda.cuGraphExecDestroy(exec));
    for p in [a, b, c, small] {
        gpu.free(p);
    }
}

/// Exec nodes get other operands: kernels and memsets anywhere, whole graphs by cuGraphExecUpdate.
fn updates(gpu: &Gpu) {
    let (cuda, kernels, stream) = (&gpu.cuda, Kernels::load(gpu), gpu.stream(0));
    let all = [gpu.alloc(N), gpu.alloc(N), gpu.alloc(N), gpu.alloc(1 << 20)];
    let least = 1 << 20;
    let graph = Graph::new(gpu);
    let fill = graph.launch(&[], kernels.fill_function(), &mut [all[0], least / 8, 1]);
    let set = graph.set(&[fill], &bytes(all[0], 9, 333));
    let exec = graph.instantiate(0);
    for (i, p) in all.into_iter().cycle().take(9).enumerate() {
        let seed = i as u64 + 2;
        let mut arguments = [p, least / 8, seed];
        let mut pointers = arguments.each_mut().map(|a| std::ptr::from_mut(a).cast());
        let launch = kernel(kernels.fill_function(), &mut pointers);
        ok(cuda.cuGraphExecKernelNodeSetParams(exec, fill, &launch));
        let memset = bytes(p, i as u8, 100 + i);
        ok(cuda.cuGraphExecMemsetNodeSetParams(exec, set, &memset, gpu.context));
        run(gpu, exec, stream);
        let mut expected = filled(seed, least as usize);
        expected[..100 + i].fill(i as u8);
        assert!(gpu.read(p, least as usize) == expected, "update {i}");
        println!("update {i}: {:016x}", digest(&expected));
    }
    ok(cuda.cuGraphExecDestroy(exec));
    // As programs do that capture each step anew.
    let mut exec: CUgraphExec = std::ptr::null_mut();
    let pairs = [(0, 1), (1, 2), (2, 0), (3, 1), (0, 3), (1, 0)];
    for (i, (to, from)) in pairs.into_iter().cycle().take(12).enumerate() {
        let (to, from) = (all[to], all[from]);
        let mut graph = std::ptr::null_mut();
        ok(cuda.cuStreamBeginCapture_v2(stream, CU_STREAM_CAPTURE_MODE_GLOBAL));
        kernels.fill(gpu, stream, from, least / 8, i as u64);
        ok(cuda.cuMemcpyDtoDAsync_v2(to, from, least as usize, stream));
        ok(cuda.cuMemsetD8Async(to, i as u8, 77, stream));
        ok(cuda.cuStreamEndCapture(stream, &mut graph));
        if exec.is_null() {
            ok(cuda.cuGraphInstantiateWithFlags(&mut exec, graph, 0));
        } else {
            ok(cuda.cuGraphExecUpdate_v2(exec, graph, &mut [0; 3]));
        }
        ok(cuda.cuGraphDestroy(graph));
        run(gpu, exec, stream);
        let mut expected = filled(i as u64, least as usize);
        expected[..77].fill(i as u8);
        assert!(gpu.read(to, least as usize) == expected, "step {i}");
        println!("step {i}: {:016x}", digest(&expected));
    }
    ok(cuda.cuGraphExecDestroy(exec));
    for p in all {
        gpu.free(p);
    }
}

/// A captured call of every form does what the call itself does.
fn forms(gpu: &Gpu) {
    let (cuda, stream) = (&gpu.cuda, gpu.stream(CU_STREAM_NON_BLOCKING));
    let (to, from) = (gpu.alloc(N), gpu.alloc(N));
    let mut pinned = std::ptr::null_mut();
    ok(cuda.cuMemHostAlloc(&mut pinned, N, 0));
    let plain = pattern(3, N);
    // SAFETY: pinned memory of this size that nobody else uses now.
    unsafe { pinned.cast::<u8>().copy_from(plain.as_ptr(), N) };
    let source: *const c_void = plain.as_ptr().cast();
    let two_d = work::two_d_between(from + 5, 4096, to + 3, 8192, 1001, 700);
    let box_ = CUDA_MEMCPY3D {
        srcHeight: 70,
        dstHeight: 70,
        Depth: 10,
        ..rows(to, from, 2222, 61, 4096)
    };
    type Form<'a> = (&'a str, Box<dyn Fn() -> CUresult + 'a>);
    let forms: Vec<Form> = vec![
        ("DtoD", Box::new(|| cuda.cuMemcpyDtoDAsync_v2(to + 1, from + 2, N - 7, stream))),
        ("unified", Box::new(|| cuda.cuMemcpyAsync(to, from, N, stream))),
        ("HtoD pageable", Box::new(|| cuda.cuMemcpyHtoDAsync_v2(to + 9, source, N - 9, stream))),
        ("HtoD pinned", Box::new(|| cuda.cuMemcpyHtoDAsync_v2(to, pinned, N, stream))),
        ("2D", Box::new(|| cuda.cuMemcpy2DAsync_v2(&two_d, stream))),
        ("3D", Box::new(|| cuda.cuMemcpy3DAsync_v2(&box_, stream))),
        ("set 8", Box::new(|| cuda.cuMemsetD8Async(to + 3, 0x11, N - 5, stream))),
        ("set 16", Box::new(|| cuda.cuMemsetD16Async(to + 2, 0x1122, N / 2 - 3, stream))),
        ("set 32", Box::new(|| cuda.cuMemsetD32Async(to + 4, 0x1122_3344, N / 4 - 3, stream))),
        ("set 2D 8", Box::new(|| cuda.cuMemsetD2D8Async(to, 4096, 0x22, 1001, 1700, stream))),
        ("set 2D 16", Box::new(|| cuda.cuMemsetD2D16Async(to, 4096, 0x2233, 1001, 1700, stream))),
        ("set 2D 32", Box::new(|| cuda.cuMemsetD2D32Async(to, 4096, 0x2233_4455, 1001, 1700, stream))),
        ("DtoH pinned", Box::new(|| cuda.cuMemcpyDtoHAsync_v2(pinned, from, N, stream))),
    ];
    for (name, form) in &forms {
        let mut digests = Vec::new();
        for captured in [false, true] {
            gpu.write(from, &pattern(1, N));
            ok(cuda.cuMemsetD8_v2(to, 0xEE, N));
            ok(cuda.cuCtxSynchronize());
            if captured {
                let (mut graph, mut exec) = (std::ptr::null_mut(), std::ptr::null_mut());
                ok(cuda.cuStreamBeginCapture_v2(stream, CU_STREAM_CAPTURE_MODE_GLOBAL));
                ok(form());
                ok(cuda.cuStreamEndCapture(stream, &mut graph));
                ok(cuda.cuGraphInstantiateWithFlags(&mut exec, graph, 0));
                run(gpu, exec, stream);
                ok(cuda.cuGraphExecDestroy(exec));
                ok(cuda.cuGraphDestroy(graph));
            } else {
                ok(form());
                ok(cuda.cuStreamSynchronize(stream));
            }
            // SAFETY: the device is done with the pinned memory.
            let host = unsafe { std::slice::from_raw_parts(pinned.cast::<u8>(), N) };
            digests.push((digest(&gpu.read(to, N)), digest(host)));
        }
        assert_eq!(digests[0], digests[1], "{name}");
        println!("{name}: {digests:016x?}");
    }
    drop(forms);
    ok(cuda.cuMemFreeHost(pinned));
    gpu.free(to);
    gpu.free(from);
}

/// Bytes that the device holds for graphs.
fn held(gpu: &Gpu) -> u64 {
    let mut bytes = 0;
    let attribute = CU_GRAPH_MEM_ATTR_RESERVED_MEM_CURRENT;
    ok(gpu.cuda.cuDeviceGetGraphMemAttribute(0, attribute, &mut bytes));
    bytes
}

fn capture(gpu: &Gpu, stream: CUstream, mode: c_int, act: impl FnOnce()) -> CUgraph {
    let mut graph = std::ptr::null_mut();
    ok(gpu.cuda.cuStreamBeginCapture_v2(stream, mode));
    act();
    ok(gpu.cuda.cuStreamEndCapture(stream, &mut graph));
    graph
}

/// Allocation nodes of all makes, used with memory of both tiers.
fn memory(gpu: &Gpu) {
    let (cuda, kernels, stream) = (&gpu.cuda, Kernels::load(gpu), gpu.stream(0));
    let (a, b) = (gpu.alloc(N), gpu.alloc(N));
    println!("~ first {}", gpu.memory().0);
    for how in ["captured", "node", "any node", "any node 2"] {
        let graph = Graph::new(gpu);
        let (graph, p) = match how {
            "captured" => {
                let mut p = 0;
                let captured = capture(gpu, stream, CU_STREAM_CAPTURE_MODE_GLOBAL, || {
                    ok(cuda.cuMemAllocAsync(&mut p, 4 << 20, stream));
                    kernels.fill(gpu, stream, p, 1000, 8);
                    ok(cuda.cuMemcpyDtoDAsync_v2(b, p, 8000, stream));
                    ok(cuda.cuMemcpyDtoDAsync_v2(p, a, 4 << 20, stream));
                    ok(cuda.cuMemcpyDtoDAsync_v2(b + 8000, p, 4 << 20, stream));
                    ok(cuda.cuMemFreeAsync(p, stream));
                });
                (captured, p)
            }
            how => {
                let (alloc, p) = match how {
                    "node" => graph.alloc(&[], 4 << 20),
                    how => {
                        let mut params = CUgraphNodeParams {
                            type_: CU_GRAPH_NODE_TYPE_MEM_ALLOC,
                            reserved0: [0; 3],
                            of: CUgraphNodeParams_variant { room: [0; 29] },
                            reserved2: 0,
                        };
                        params.of.alloc = allocation(4 << 20);
                        let (mut node, none) = (std::ptr::null_mut(), std::ptr::null());
                        ok(if how == "any node" {
                            cuda.cuGraphAddNode(&mut node, graph.graph, none, 0, &mut params)
                        } else {
                            let edges = std::ptr::null();
                            cuda.cuGraphAddNode_v2(
                                &mut node,
                                graph.graph,
                                none,
                                edges,
                                0,
                                &mut params,
                            )
                        });
                        // SAFETY: the variant that the driver has filled in.
                        (node, unsafe { params.of.alloc.dptr })
                    }
                };
                let fill = graph.launch(&[alloc], kernels.fill_function(), &mut [p, 1000, 8]);
                let one = graph.copy(&[fill], &line(b, p, 8000));
                let two = graph.copy(&[one], &line(p, a, 4 << 20));
                let three = graph.copy(&[two], &line(b + 8000, p, 4 << 20));
                graph.free(&[three], p);
                (graph.graph, p)
            }
        };
        println!(
            "{how}: {:?} before, held {}",
            gpu.attribute(p, CU_POINTER_ATTRIBUTE_MEMORY_TYPE),
            held(gpu)
        );
        let mut exec = std::ptr::null_mut();
        ok(cuda.cuGraphInstantiateWithFlags(&mut exec, graph, 0));
        for round in 0..3 {
            gpu.write(a, &pattern(round, N));
            ok(cuda.cuMemsetD8_v2(b, 0, N));
            ok(cuda.cuCtxSynchronize());
            run(gpu, exec, stream);
            let mut expected = filled(8, 8000);
            expected.extend(&pattern(round, N)[..4 << 20]);
            assert!(gpu.read(b, 8000 + (4 << 20)) == expected, "{how} {round}");
            println!("{how} {round}: held {}", held(gpu));
        }
        println!("~ launched {}", gpu.memory().0);
        ok(cuda.cuGraphExecDestroy(exec));
        if how == "captured" {
            ok(cuda.cuGraphDestroy(graph));
        }
        ok(cuda.cuDeviceGraphMemTrim(0));
        println!("{how}: held {}", held(gpu));
        println!("~ trimmed {}", gpu.memory().0);
    }
    gpu.free(a);
    gpu.free(b);
}

/// Allocations that outlive their graph, freed in every way that is allowed, and some that are not.
fn frees(gpu: &Gpu) {
    let (cuda, kernels, stream) = (&gpu.cuda, Kernels::load(gpu), gpu.stream(0));
    let (size, others) = (4usize << 20, [gpu.alloc(N), gpu.alloc(N), gpu.alloc(1000)]);
    let words = size as u64 / 8;
    let mut p = 0;
    let graph = capture(gpu, stream, CU_STREAM_CAPTURE_MODE_GLOBAL, || {
        ok(cuda.cuMemAllocAsync(&mut p, size, stream));
        kernels.fill(gpu, stream, p, words, 4);
        // What is not a graph's stays the program's, and the capture good.
        for (i, other) in others.iter().enumerate() {
            println!("free of {i}: {}", cuda.cuMemFreeAsync(*other, stream));
        }
    });
    for (i, other) in others.iter().enumerate() {
        ok(cuda.cuMemsetD8_v2(*other, i as u8, 1000));
        assert!(gpu.read(*other, 1000).iter().all(|b| *b == i as u8));
    }
    for flags in [0, CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH] {
        let mut exec = std::ptr::null_mut();
        ok(cuda.cuGraphInstantiateWithFlags(&mut exec, graph, flags));
        println!("free before: {}", cuda.cuMemFree_v2(p));
        for round in 0..4 {
            ok(cuda.cuGraphLaunch(exec, stream));
            println!("relaunch: {}", cuda.cuGraphLaunch(exec, stream));
            ok(cuda.cuStreamSynchronize(stream));
            assert!(gpu.read(p, size) == filled(4, size), "round {round}");
            println!(
                "{round}: type {:?} size {:?} held {}",
                gpu.attribute(p, CU_POINTER_ATTRIBUTE_MEMORY_TYPE),
                gpu.attribute(p + 5, CU_POINTER_ATTRIBUTE_RANGE_SIZE),
                held(gpu)
            );
            if round % 2 == 0 {
                gpu.free(p);
            } else {
                ok(cuda.cuMemFreeAsync(p, stream));
                ok(cuda.cuStreamSynchronize(stream));
            }
            println!("free again: {}", cuda.cuMemFree_v2(p));
        }
        ok(cuda.cuGraphExecDestroy(exec));
    }
    ok(cuda.cuGraphDestroy(graph));
    ok(cuda.cuDeviceGraphMemTrim(0));
    println!("held {}", held(gpu));
    println!("~ free {}", gpu.memory().0);
    for other in others {
        gpu.free(other);
    }
}

/// A graph that allocates, and allocations that need the room it leaves idle, in turn.
fn pressure(gpu: &Gpu) {
    let (cuda, kernels, stream) = (&gpu.cuda, Kernels::load(gpu), gpu.stream(0));
    let size = 8usize << 20;
    let mut p = 0;
    let graph = capture(gpu, stream, CU_STREAM_CAPTURE_MODE_GLOBAL, || {
        ok(cuda.cuMemAllocAsync(&mut p, size, stream));
        kernels.fill(gpu, stream, p, size as u64 / 8, 4);
        ok(cuda.cuMemFreeAsync(p, stream));
    });
    let mut exec = std::ptr::null_mut();
    ok(cuda.cuGraphInstantiateWithFlags(&mut exec, graph, 0));
    for round in 0..40u64 {
        run(gpu, exec, stream);
        println!("~ launched {} {}", held(gpu), gpu.memory().0);
        // Fits only if the graph's memory is given back.
        gpu.works(round, N);
        println!("~ allocated {} {}", held(gpu), gpu.memory().0);
    }
    // A trim must not take what is used: here the graph waits behind a kernel.
    for round in 0..4u64 {
        kernels.spin(gpu, stream, 30_000_000);
        ok(cuda.cuGraphLaunch(exec, stream));
        let q = gpu.alloc(N);
        ok(cuda.cuStreamSynchronize(stream));
        gpu.write(q, &pattern(round, N));
        assert!(gpu.read(q, N) == pattern(round, N));
        gpu.free(q);
    }
    ok(cuda.cuGraphExecDestroy(exec));
    ok(cuda.cuGraphDestroy(graph));
    gpu.works(99, N);
    ok(cuda.cuDeviceGraphMemTrim(0));
    println!("~ last {}", gpu.memory().0);
}

/// A graph that takes more than the budget: the driver runs it, and nothing else stops working.
fn over_budget(gpu: &Gpu) {
    let (cuda, kernels, stream) = (&gpu.cuda, Kernels::load(gpu), gpu.stream(0));
    let size = 32usize << 20;
    let a = gpu.alloc(N);
    gpu.write(a, &pattern(1, N));
    println!("~ free {}", gpu.memory().0);
    let mut p = 0;
    let graph = capture(gpu, stream, CU_STREAM_CAPTURE_MODE_GLOBAL, || {
        ok(cuda.cuMemAllocAsync(&mut p, size, stream));
        kernels.fill(gpu, stream, p, size as u64 / 8, 4);
    });
    let mut exec = std::ptr::null_mut();
    ok(cuda.cuGraphInstantiateWithFlags(&mut exec, graph, 1));
    for round in 0..5 {
        run(gpu, exec, stream);
        println!("~ launched {} {}", held(gpu), gpu.memory().0);
        assert!(gpu.read(p, size) == filled(4, size), "round {round}");
        assert!(gpu.read(a, N) == pattern(1, N));
        gpu.works(round, N);
        gpu.works(round, 1000);
    }
    gpu.free(p);
    ok(cuda.cuGraphExecDestroy(exec));
    ok(cuda.cuGraphDestroy(graph));
    ok(cuda.cuDeviceGraphMemTrim(0));
    println!("~ trimmed {} {}", held(gpu), gpu.memory().0);
    gpu.free(a);
    gpu.works(7, N);
    println!("~ free {}", gpu.memory().0);
}

/// The card itself is full of what the shim keeps for reuse: a launch gets it.
fn card_full(gpu: &Gpu) {
    let (cuda, kernels, stream) = (&gpu.cuda, Kernels::load(gpu), gpu.stream(0));
    // So much that there is room only without what the shim keeps: a 16th of the limit at most.
    let size = 60usize << 20;
    let mut p = 0;
    let graph = capture(gpu, stream, CU_STREAM_CAPTURE_MODE_GLOBAL, || {
        ok(cuda.cuMemAllocAsync(&mut p, size, stream));
        kernels.fill(gpu, stream, p, size as u64 / 8, 4);
        ok(cuda.cuMemFreeAsync(p, stream));
    });
    let mut exec = std::ptr::null_mut();
    ok(cuda.cuGraphInstantiateWithFlags(&mut exec, graph, 0));
    let all: Vec<CUdeviceptr> = (0..14).map(|_| gpu.alloc(2 << 20)).collect();
    for p in &all[..13] {
        gpu.free(*p);
    }
    run(gpu, exec, stream);
    println!("held {}", held(gpu));
    ok(cuda.cuGraphExecDestroy(exec));
    ok(cuda.cuGraphDestroy(graph));
    gpu.free(all[13]);
    ok(cuda.cuDeviceGraphMemTrim(0));
}

/// Nothing that the shim adds to a call disturbs a capture, whoever captures in whatever mode.
fn undisturbed(gpu: &Gpu) {
    let (cuda, kernels) = (&gpu.cuda, Kernels::load(gpu));
    let (captured, other) = (gpu.stream(CU_STREAM_NON_BLOCKING), gpu.stream(CU_STREAM_NON_BLOCKING));
    let (a, b, small) = (gpu.alloc(N), gpu.alloc(N), gpu.alloc(4096));
    let warm = capture(gpu, other, CU_STREAM_CAPTURE_MODE_RELAXED, || {
        let mut p = 0;
        ok(cuda.cuMemAllocAsync(&mut p, 2 << 20, other));
        kernels.fill(gpu, other, p, 1000, 3);
        ok(cuda.cuMemFreeAsync(p, other));
    });
    let mut exec = std::ptr::null_mut();
    ok(cuda.cuGraphInstantiateWithFlags(&mut exec, warm, 0));
    type Act<'a> = (&'a str, Box<dyn Fn() -> CUresult + 'a>);
    let acts: Vec<Act> = vec![
        ("copy", Box::new(|| cuda.cuMemcpyDtoD_v2(a, b, N))),
        ("copy small", Box::new(|| cuda.cuMemcpyDtoD_v2(small, b, 4096))),
        ("set", Box::new(|| cuda.cuMemsetD8_v2(b, 1, N))),
        ("write", Box::new(|| cuda.cuMemcpyHtoD_v2(a, [7u8; 64].as_ptr().cast(), 64))),
        ("info", Box::new(|| cuda.cuMemGetInfo_v2(&mut 0, &mut 0))),
        ("attribute", Box::new(|| match gpu.attribute(b, CU_POINTER_ATTRIBUTE_MEMORY_TYPE) {
            Ok(_) => 0,
            Err(e) => e,
        })),
        ("range", Box::new(|| cuda.cuMemGetAddressRange_v2(&mut 0, &mut 0, b + 8))),
        ("launch", Box::new(|| cuda.cuGraphLaunch(exec, other))),
        ("upload", Box::new(|| cuda.cuGraphUpload(exec, other))),
        ("trim", Box::new(|| cuda.cuDeviceGraphMemTrim(0))),
        ("instantiate", Box::new(|| {
            let (mut graph, mut exec) = (std::ptr::null_mut(), std::ptr::null_mut());
            ok(cuda.cuGraphCreate(&mut graph, 0));
            ok(cuda.cuGraphInstantiateWithFlags(&mut exec, graph, 0));
            ok(cuda.cuGraphExecDestroy(exec));
            cuda.cuGraphDestroy(graph)
        })),
        ("release", Box::new(|| {
            let prop = CUmemAllocationProp {
                type_: CU_MEM_ALLOCATION_TYPE_PINNED,
                requestedHandleTypes: CU_MEM_HANDLE_TYPE_NONE,
                location: CUmemLocation { type_: CU_MEM_LOCATION_TYPE_DEVICE, id: 0 },
                win32HandleMetaData: std::ptr::null_mut(),
                allocFlags: CUmemAllocFlags::default(),
            };
            let mut handle = 0;
            ok(cuda.cuMemCreate(&mut handle, N, &prop, 0));
            cuda.cuMemRelease(handle)
        })),
    ];
    for (mode, name) in [(0, "global"), (1, "thread-local"), (2, "relaxed")] {
        for (what, act) in &acts {
            let (mut graph, mut p) = (std::ptr::null_mut(), 0);
            ok(cuda.cuStreamBeginCapture_v2(captured, mode));
            kernels.fill(gpu, captured, a, 8, 1);
            ok(cuda.cuMemAllocAsync(&mut p, 2 << 20, captured));
            let code = act();
            ok(cuda.cuMemcpyDtoDAsync_v2(p, a, 64, captured));
            ok(cuda.cuMemFreeAsync(p, captured));
            let end = cuda.cuStreamEndCapture(captured, &mut graph);
            println!("{what}, {name}: {code} {end}");
            ok(cuda.cuGraphDestroy(graph));
            ok(cuda.cuCtxSynchronize());
        }
    }
    drop(acts);
    ok(cuda.cuGraphExecDestroy(exec));
    ok(cuda.cuGraphDestroy(warm));
    ok(cuda.cuDeviceGraphMemTrim(0));
    for p in [a, b, small] {
        gpu.free(p);
    }
}
