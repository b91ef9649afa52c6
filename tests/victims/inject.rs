//! Uses memory while driver calls fail now and then: an error is an answer, wrong bytes are not.

use victim::gpu::Gpu;
use victim::*;

fn main() {
    // The beginning may fail as well; then it is tried once more.
    let cuda = Driver::reach();
    twice(|| cuda.cuInit(0));
    let mut device = -1;
    twice(|| cuda.cuDeviceGet(&mut device, 0));
    let mut context = std::ptr::null_mut();
    twice(|| cuda.cuDevicePrimaryCtxRetain(&mut context, device));
    twice(|| cuda.cuCtxSetCurrent(context));
    let gpu = Gpu {
        cuda,
        device,
        context,
    };
    if std::env::args().nth(1).as_deref() == Some("all") {
        all(&gpu);
        pieces(&gpu);
        return;
    }
    let mut errors = Vec::new();
    for round in 0..2u64 {
        let mut held = Vec::new();
        for (i, n) in [3 << 20, 300, 5 << 20, 2 << 20, 70_000, (2 << 20) + 1]
            .into_iter()
            .enumerate()
        {
            let seed = round * 10 + i as u64;
            match gpu.try_alloc(n) {
                Ok(p) => {
                    gpu.write(p, &pattern(seed, n));
                    held.push((p, n, seed));
                }
                Err(e) => errors.push(format!("alloc {e}")),
            }
            let (mut free, mut total) = (0, 0);
            match gpu.cuda.cuMemGetInfo_v2(&mut free, &mut total) {
                0 => assert!(free <= total, "{free} free of {total}"),
                e => errors.push(format!("info {e}")),
            }
        }
        for &(p, n, seed) in &held {
            assert!(gpu.read(p, n) == pattern(seed, n), "bytes changed");
            let (mut base, mut size) = (0, 0);
            match gpu
                .cuda
                .cuMemGetAddressRange_v2(&mut base, &mut size, p + 5)
            {
                0 => assert_eq!((base, size), (p, n)),
                e => errors.push(format!("range {e}")),
            }
        }
        for (p, n, seed) in held {
            match gpu.cuda.cuMemFree_v2(p) {
                0 => {}
                e => {
                    errors.push(format!("free {e}"));
                    // It failed, so the memory is still there, and a second try ends it.
                    assert!(
                        gpu.read(p, n) == pattern(seed, n),
                        "bytes changed in a failed free"
                    );
                    gpu.free(p);
                }
            }
        }
    }
    let lasting = std::env::var("FAKE_CUDA_FAIL").is_ok_and(|rule| rule.contains('+'));
    if !lasting {
        // The failure may have waited for one of these; then all is well.
        for _ in 0..4 {
            match gpu.try_alloc(5 << 20) {
                Ok(p) => gpu.free(p),
                Err(e) => errors.push(format!("alloc {e}")),
            }
        }
        gpu.works(99, 5 << 20);
    }
    println!("~ errors {errors:?}");
    pieces(&gpu);
}

/// Calls once more what failed: an injected failure is one call's. Panics when it fails again.
fn twice(mut call: impl FnMut() -> CUresult) {
    if call() != 0 {
        ok(call());
    }
}

/// As [`twice`], for what a failure may have ended all the same, or may not find any more.
fn end(mut call: impl FnMut() -> CUresult) {
    if call() != 0 {
        call();
    }
}

/// Everything that makes the shim call the driver, in an order in which each failure can strike each call.
fn all(gpu: &Gpu) {
    let cuda = &gpu.cuda;
    let n = 6 << 20;
    let alloc = |n: usize| {
        let mut p = 0;
        twice(|| cuda.cuMemAlloc_v2(&mut p, n));
        p
    };
    // Of these some are in host RAM: 24 MiB where VRAM has room for 8.
    let held: Vec<CUdeviceptr> = (0..4).map(|_| alloc(n)).collect();
    let small = alloc(1000);
    for (i, &p) in held.iter().enumerate() {
        let data = pattern(i as u64, n);
        twice(|| cuda.cuMemcpyHtoD_v2(p, data.as_ptr().cast(), n));
    }
    // Synchronous forms, which the shim issues otherwise over host RAM.
    let last = held[3];
    twice(|| cuda.cuMemcpyDtoD_v2(last, held[0], n));
    twice(|| cuda.cuMemcpy(last, held[1], n));
    twice(|| cuda.cuMemcpyPeer(last, gpu.context, held[2], gpu.context, n));
    twice(|| cuda.cuMemsetD8_v2(last, 1, 4096));
    twice(|| cuda.cuMemsetD16_v2(last + 4096, 0x202, 2048));
    twice(|| cuda.cuMemsetD32_v2(last + 8192, 0x3030303, 1024));
    twice(|| cuda.cuMemsetD2D8_v2(last + 12288, 128, 4, 64, 32));
    let rows = work::two_d_between(held[0], 4096, last + (1 << 20), 4096, 4000, 100);
    twice(|| cuda.cuMemcpy2D_v2(&rows));
    let mut back = vec![0u8; n];
    let read = |p: CUdeviceptr, back: &mut [u8]| {
        twice(|| cuda.cuMemcpyDtoH_v2(back.as_mut_ptr().cast(), p, back.len()));
    };
    read(last, &mut back);
    assert!(back[..4096].iter().all(|b| *b == 1) && back[8192..12288].iter().all(|b| *b == 3));
    assert_eq!(back[(1 << 20)..(1 << 20) + 4000], pattern(0, n)[..4000]);
    let untouched = 3 << 20;
    assert!(back[untouched..] == pattern(2, n)[untouched..], "bytes changed");
    let (mut base, mut size, mut kind, mut total) = (0, 0, 0u64, 0);
    twice(|| cuda.cuMemGetAddressRange_v2(&mut base, &mut size, last + 5));
    assert_eq!((base, size), (last, n));
    twice(|| cuda.cuPointerGetAttribute((&raw mut kind).cast(), CU_POINTER_ATTRIBUTE_MEMORY_TYPE, last));
    assert_eq!(kind as c_uint, CU_MEMORYTYPE_DEVICE);
    twice(|| cuda.cuDeviceTotalMem_v2(&mut total, gpu.device));
    let mut free = 0;
    twice(|| cuda.cuMemGetInfo_v2(&mut free, &mut total));
    assert!(free <= total);

    // What is only counted.
    let shape = CUDA_ARRAY_DESCRIPTOR { Width: 64, Height: 64, Format: 0x20, NumChannels: 1 };
    let mut array = std::ptr::null_mut();
    let mut host = std::ptr::null_mut();
    let mut module = std::ptr::null_mut();
    let mut managed = 0;
    let image = c(".version 7.0\n.target sm_50\n.address_size 64\n.visible .global .align 8 .b8 x[3000000];\n");
    // The budgets may be full; then there is none of it.
    if cuda.cuArrayCreate_v2(&mut array, &shape) == 0 {
        twice(|| cuda.cuArrayDestroy(array));
    }
    twice(|| cuda.cuMemHostAlloc(&mut host, 8192, 0));
    twice(|| cuda.cuMemFreeHost(host));
    let mut own = vec![0u8; 3 << 20];
    twice(|| cuda.cuMemHostRegister_v2(own.as_mut_ptr().cast(), own.len(), 0));
    twice(|| cuda.cuMemHostUnregister(own.as_mut_ptr().cast()));
    twice(|| cuda.cuModuleLoadData(&mut module, image.as_ptr().cast()));
    let (mut at, name) = (0, c("x"));
    twice(|| cuda.cuModuleGetGlobal_v2(&mut at, &mut size, module, name.as_ptr()));
    twice(|| cuda.cuModuleUnload(module));
    twice(|| cuda.cuCtxSetLimit(CU_LIMIT_MALLOC_HEAP_SIZE, 1 << 20));
    twice(|| cuda.cuCtxSetLimit(CU_LIMIT_STACK_SIZE, 1024));
    twice(|| cuda.cuMemAllocManaged(&mut managed, 5000, 1));
    twice(|| cuda.cuMemFree_v2(managed));

    // A free while a stream captures waits for the end of the capture.
    let (mut stream, mut graph) = (std::ptr::null_mut(), std::ptr::null_mut());
    twice(|| cuda.cuStreamCreate(&mut stream, CU_STREAM_NON_BLOCKING));
    twice(|| cuda.cuStreamBeginCapture_v2(stream, CU_STREAM_CAPTURE_MODE_RELAXED));
    twice(|| cuda.cuMemFree_v2(held[2]));
    // A node that allocates: its memory would come with a launch.
    let mut node = 0;
    let _ = cuda.cuMemAllocAsync(&mut node, 1 << 20, stream);
    end(|| cuda.cuStreamEndCapture(stream, &mut graph));
    if !graph.is_null() {
        twice(|| cuda.cuGraphDestroy(graph));
    }

    graphs(gpu, stream, [held[0], held[1], last]);

    // In stream order: a pool has no room to grow here, so the shim serves it. Freed memory is used again.
    for round in 0..3u8 {
        let mut p = 0;
        // The budgets may be full.
        if cuda.cuMemAllocAsync(&mut p, 3 << 20, stream) != 0 {
            continue;
        }
        twice(|| cuda.cuMemsetD8Async(p, round + 7, 3 << 20, stream));
        twice(|| cuda.cuStreamSynchronize(stream));
        let mut is = vec![0u8; 3 << 20];
        read(p, &mut is);
        assert!(is.iter().all(|b| *b == round + 7), "bytes changed");
        twice(|| cuda.cuMemFreeAsync(p, stream));
    }
    twice(|| cuda.cuStreamSynchronize(stream));
    twice(|| cuda.cuStreamDestroy_v2(stream));

    // A context of its own, with memory that ends with it.
    let mut context = std::ptr::null_mut();
    twice(|| cuda.cuCtxCreate_v2(&mut context, 0, gpu.device));
    let theirs = alloc(100);
    let mut more = 0;
    let _ = cuda.cuMemAlloc_v2(&mut more, 4 << 20);
    twice(|| cuda.cuCtxSetCurrent(gpu.context));
    twice(|| cuda.cuMemFree_v2(theirs));
    twice(|| cuda.cuCtxDestroy_v2(context));
    twice(|| cuda.cuCtxSetCurrent(gpu.context));

    // The program's own handles and mappings.
    let location = CUmemLocation { type_: CU_MEM_LOCATION_TYPE_DEVICE, id: gpu.device };
    let prop = CUmemAllocationProp {
        type_: CU_MEM_ALLOCATION_TYPE_PINNED,
        requestedHandleTypes: CU_MEM_HANDLE_TYPE_NONE,
        location,
        win32HandleMetaData: std::ptr::null_mut(),
        allocFlags: CUmemAllocFlags::default(),
    };
    let access = CUmemAccessDesc { location, flags: CU_MEM_ACCESS_FLAGS_PROT_READWRITE };
    let (mut handle, mut range) = (0, 0);
    let mut made = cuda.cuMemCreate(&mut handle, 4 << 20, &prop, 0);
    if made != 0 {
        made = cuda.cuMemCreate(&mut handle, 4 << 20, &prop, 0);
    }
    // Where a failure cost the shim its ranges, there is none on the host for it.
    if made != CUDA_ERROR_OUT_OF_MEMORY {
        ok(made);
    twice(|| cuda.cuMemAddressReserve(&mut range, 4 << 20, 0, 0, 0));
    twice(|| cuda.cuMemMap(range, 4 << 20, 0, handle, 0));
    twice(|| cuda.cuMemSetAccess(range, 4 << 20, &access, 1));
    twice(|| cuda.cuMemsetD8_v2(range, 9, 4 << 20));
    let mut nine = vec![0u8; 4 << 20];
    read(range, &mut nine);
    assert!(nine.iter().all(|b| *b == 9));
    twice(|| cuda.cuCtxSynchronize());
    twice(|| cuda.cuMemUnmap(range, 4 << 20));
    twice(|| cuda.cuMemRelease(handle));
    twice(|| cuda.cuMemAddressFree(range, 4 << 20));
    }

    for (i, &p) in held.iter().enumerate().take(2) {
        read(p, &mut back);
        assert!(back == pattern(i as u64, n), "bytes changed");
    }
    for p in [held[0], held[1], last, small] {
        twice(|| cuda.cuMemFree_v2(p));
    }
    // A failure may have waited for one of these; then all is well.
    for _ in 0..4 {
        let p = alloc(5 << 20);
        twice(|| cuda.cuMemFree_v2(p));
    }
}

/// Nodes of every kind over memory of both tiers, and new operands for all of them. An update may be refused.
fn graphs(gpu: &Gpu, stream: CUstream, [one, two, last]: [CUdeviceptr; 3]) {
    let cuda = &gpu.cuda;
    let none = std::ptr::null_mut();
    let image = c(".version 7.0\n.target sm_50\n.address_size 64\n\
        .visible .entry gb_fill(.param .u64 p, .param .u64 n, .param .u64 seed) { ret; }\n");
    let (mut library, mut fill, name) = (none, none, c("gb_fill"));
    twice(|| cuda.cuLibraryLoadData(&mut library, image.as_ptr().cast(), none.cast(), none.cast(), 0, none.cast(), none.cast(), 0));
    twice(|| cuda.cuLibraryGetKernel(&mut fill, library, name.as_ptr()));
    let (mut graph, mut inner, mut exec, mut other, mut event) = (none, none, none, none, none);
    twice(|| cuda.cuStreamCreate(&mut other, CU_STREAM_NON_BLOCKING));
    twice(|| cuda.cuEventCreate(&mut event, 0));
    twice(|| cuda.cuStreamBeginCapture_v2(stream, CU_STREAM_CAPTURE_MODE_RELAXED));
    twice(|| cuda.cuStreamWriteValue32_v2(stream, one, 0, 0));
    end(|| cuda.cuStreamEndCapture(stream, &mut inner));
    twice(|| cuda.cuGraphCreate(&mut graph, 0));
    let [mut filled, mut copied, mut set, mut host, mut record, mut wait, mut child] = [none; 7];
    // The copy's operands move: what is filled, copied and set is in the last half of each range.
    let (from, to, size) = (one + (4 << 20), two + (4 << 20), 1 << 20);
    let words = size as u64 / 8;
    let mut arguments = [from, words, 6];
    let mut pointers: [*mut c_void; 3] = arguments.each_mut().map(|a| std::ptr::from_mut(a).cast());
    let launch = graph::kernel(fill.cast(), &mut pointers);
    let call = CUDA_HOST_NODE_PARAMS { r#fn: Some(nothing), userData: none };
    let copy = graph::line(to, from, size);
    twice(|| cuda.cuGraphAddKernelNode(&mut filled, graph, none.cast(), 0, &launch));
    twice(|| cuda.cuGraphAddMemcpyNode(&mut copied, graph, &filled, 1, &copy, gpu.context));
    twice(|| cuda.cuGraphAddMemsetNode(&mut set, graph, &copied, 1, &graph::bytes(to, 1, 64), gpu.context));
    twice(|| cuda.cuGraphAddHostNode(&mut host, graph, &set, 1, &call));
    twice(|| cuda.cuGraphAddEventRecordNode(&mut record, graph, &host, 1, event));
    twice(|| cuda.cuGraphAddEventWaitNode(&mut wait, graph, none.cast(), 0, event));
    if !inner.is_null() {
        twice(|| cuda.cuGraphAddChildGraphNode(&mut child, graph, &wait, 1, inner));
    }
    twice(|| cuda.cuGraphInstantiateWithFlags(&mut exec, graph, 0));
    let mut place = to;
    let check = |place: CUdeviceptr, stream: CUstream| {
        twice(|| cuda.cuGraphLaunch(exec, stream));
        twice(|| cuda.cuStreamSynchronize(stream));
        let mut is = vec![0; size];
        twice(|| cuda.cuMemcpyDtoH_v2(is.as_mut_ptr().cast(), place, size));
        let word = |i: usize| u64::from_ne_bytes(is[i * 8..i * 8 + 8].try_into().expect("eight bytes"));
        assert!((8..words as usize).all(|i| word(i) == gpu::Kernels::filled(6, i as u64)), "a graph's bytes");
    };
    check(place, stream);
    for round in 0..3 {
        // All that keeps what the node does.
        twice(|| cuda.cuGraphExecKernelNodeSetParams(exec, filled, &launch));
        let whole = CUDA_KERNEL_NODE_PARAMS { v1: launch, kern: none, ctx: none };
        twice(|| cuda.cuGraphExecKernelNodeSetParams_v2(exec, filled, &whole));
        twice(|| cuda.cuGraphExecMemsetNodeSetParams(exec, set, &graph::bytes(place, 2, 64), gpu.context));
        twice(|| cuda.cuGraphExecHostNodeSetParams(exec, host, &call));
        twice(|| cuda.cuGraphExecEventRecordNodeSetEvent(exec, record, event));
        twice(|| cuda.cuGraphExecEventWaitNodeSetEvent(exec, wait, event));
        let mut any = CUgraphNodeParams {
            type_: CU_GRAPH_NODE_TYPE_MEMSET,
            reserved0: [0; 3],
            of: CUgraphNodeParams_variant { room: [0; 29] },
            reserved2: 0,
        };
        any.of.memset = CUDA_MEMSET_NODE_PARAMS_v2 { v1: graph::bytes(place, 3, 64), ctx: gpu.context };
        twice(|| cuda.cuGraphExecNodeSetParams(exec, set, &mut any));
        twice(|| cuda.cuGraphNodeSetEnabled(exec, set, round % 2));
        // The copy goes elsewhere, if it may; the launch before it is on another stream.
        twice(|| cuda.cuGraphLaunch(exec, other));
        let next = [last, one, two][round as usize] + (5 << 20);
        let moved = graph::line(next, from, size);
        let go = || cuda.cuGraphExecMemcpyNodeSetParams(exec, copied, &moved, gpu.context);
        if go() == 0 || go() == 0 {
            place = next;
        }
        check(place, stream);
    }
    // The whole, captured, for one that was captured.
    let (mut first, mut captured) = (none, none);
    for place in [two, last, two].map(|p| p + (4 << 20)) {
        let mut next = none;
        twice(|| cuda.cuStreamBeginCapture_v2(stream, CU_STREAM_CAPTURE_MODE_RELAXED));
        twice(|| cuda.cuLaunchKernel(fill.cast(), 1, 1, 1, 1, 1, 1, 0, stream, pointers.as_mut_ptr(), none.cast()));
        twice(|| cuda.cuMemcpyDtoDAsync_v2(place, from, size, stream));
        end(|| cuda.cuStreamEndCapture(stream, &mut next));
        if next.is_null() {
            continue;
        }
        let update = |exec| cuda.cuGraphExecUpdate_v2(exec, next, &mut [0; 3]);
        if captured.is_null() || update(captured) != 0 && update(captured) != 0 {
            if !captured.is_null() {
                end(|| cuda.cuGraphExecDestroy(captured));
            }
            twice(|| cuda.cuGraphInstantiateWithFlags(&mut captured, next, 0));
        }
        twice(|| cuda.cuGraphLaunch(captured, stream));
        twice(|| cuda.cuStreamSynchronize(stream));
        if first.is_null() {
            first = next;
        } else {
            twice(|| cuda.cuGraphDestroy(next));
        }
    }
    for gone in [exec, captured].into_iter().filter(|e| !e.is_null()) {
        end(|| cuda.cuGraphExecDestroy(gone));
    }
    for gone in [graph, inner, first].into_iter().filter(|g| !g.is_null()) {
        end(|| cuda.cuGraphDestroy(gone));
    }
    // What was filled in the range whose bytes are compared in the end is filled anew.
    for (p, seed) in [(one, 0), (two, 1)] {
        let data = pattern(seed, 6 << 20);
        twice(|| cuda.cuMemcpyHtoD_v2(p, data.as_ptr().cast(), data.len()));
    }
    end(|| cuda.cuEventDestroy_v2(event));
    end(|| cuda.cuStreamDestroy_v2(other));
    end(|| cuda.cuLibraryUnload(library));
}

extern "C" fn nothing(_: *mut c_void) {}

fn pieces(gpu: &Gpu) {
    // All that there is: a reservation that was not undone would be missing.
    let mut all = Vec::new();
    let again = || gpu.try_alloc(2 << 20).or_else(|_| gpu.try_alloc(2 << 20));
    while let Ok(p) = again() {
        all.push(p);
    }
    println!("~ pieces {}", all.len());
    for p in all {
        twice(|| gpu.cuda.cuMemFree_v2(p));
    }
    println!("freed");
    std::io::stdin()
        .read_line(&mut String::new())
        .expect("stdin");
}
