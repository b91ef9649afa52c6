//! Stream-ordered allocations, and the pools they come from.

use victim::gpu::{Gpu, Kernels, pool_props};
use victim::*;

const MIB: usize = 1 << 20;

fn main() {
    match argument(1).as_str() {
        "story" => story(),
        "order" => order(),
        "sync" => sync(),
        "plain" => plain(),
        "frees" => frees(),
        "ends" => ends(),
        "export" => export(),
        "choice" => choice(),
        "capture" => capture(),
        "contexts" => contexts(),
        "peers" => peers(),
        "most" => most(),
        "exhaust" => exhaust(),
        "retained" => retained(),
        "threads" => threads(),
        other => panic!("{other}?"),
    }
}

fn stage(name: &str) {
    println!("stage {name}");
    std::io::stdin()
        .read_line(&mut String::new())
        .expect("stdin");
}

fn take(
    gpu: &Gpu,
    pool: CUmemoryPool,
    len: usize,
    stream: CUstream,
) -> Result<CUdeviceptr, CUresult> {
    let mut p = 0;
    match gpu.cuda.cuMemAllocFromPoolAsync(&mut p, len, pool, stream) {
        CUDA_SUCCESS => Ok(p),
        code => Err(code),
    }
}

/// Used now and at most, and whether as much is reserved.
fn figures(gpu: &Gpu, pool: CUmemoryPool) -> (u64, u64, bool, bool) {
    let of = |a| gpu.pool_number(pool, a);
    let (used, high) = (
        of(CU_MEMPOOL_ATTR_USED_MEM_CURRENT),
        of(CU_MEMPOOL_ATTR_USED_MEM_HIGH),
    );
    (
        used,
        high,
        of(CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT) >= used,
        of(CU_MEMPOOL_ATTR_RESERVED_MEM_HIGH) >= high,
    )
}

/// What the program sees of a pool of which most does not fit.
fn story() {
    let gpu = Gpu::open();
    let kernels = Kernels::load(&gpu);
    let (cuda, stream, pool) = (&gpu.cuda, gpu.stream(CU_STREAM_NON_BLOCKING), gpu.pool());
    let sizes = [3 * MIB, 1000, 20 * MIB + 8, 2 * MIB, 600, 9 * MIB, 40 * MIB];
    let all: Vec<CUdeviceptr> = sizes
        .iter()
        .map(|n| take(&gpu, pool, *n, stream).expect("an allocation"))
        .collect();
    for (i, (p, n)) in all.iter().zip(sizes).enumerate() {
        kernels.fill(&gpu, stream, *p, n as u64 / 8, i as u64);
        ok(cuda.cuMemsetD8Async(*p + 8, i as u8, 64, stream));
    }
    ok(cuda.cuStreamSynchronize(stream));
    println!("{:?}", figures(&gpu, pool));
    for (i, (p, n)) in all.iter().zip(sizes).enumerate() {
        let bytes = gpu.read(*p, n);
        println!("{i}: {:x}", digest(&bytes));
        let copy = gpu.alloc(n);
        ok(cuda.cuMemcpyDtoD_v2(copy, *p, n));
        assert!(gpu.read(copy, n) == bytes, "a copy inside the device");
        gpu.free(copy);
        let inside = p + 264;
        let at = |attribute| gpu.attribute(inside, attribute);
        println!(
            "{:?} {:?} {:?} {:?} {:?} {:?} {}",
            at(CU_POINTER_ATTRIBUTE_CONTEXT),
            at(CU_POINTER_ATTRIBUTE_MEMORY_TYPE),
            at(CU_POINTER_ATTRIBUTE_IS_MANAGED),
            at(CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL),
            at(CU_POINTER_ATTRIBUTE_RANGE_SIZE),
            at(CU_POINTER_ATTRIBUTE_IS_LEGACY_CUDA_IPC_CAPABLE),
            at(CU_POINTER_ATTRIBUTE_HOST_POINTER).is_err(),
        );
        assert_eq!(at(CU_POINTER_ATTRIBUTE_RANGE_START_ADDR), Ok(*p));
        assert_eq!(at(CU_POINTER_ATTRIBUTE_MEMPOOL_HANDLE), Ok(pool as u64));
        let (mut base, mut len) = (0, 0);
        ok(cuda.cuMemGetAddressRange_v2(&mut base, &mut len, inside));
        assert_eq!((base, len), (*p, n));
    }
    let free = gpu.memory().0;
    for p in &all[..4] {
        ok(cuda.cuMemFreeAsync(*p, stream));
    }
    ok(cuda.cuStreamSynchronize(stream));
    println!(
        "{:?}, more is free: {}",
        figures(&gpu, pool),
        gpu.memory().0 >= free
    );
    ok(cuda.cuMemPoolSetAttribute(pool, CU_MEMPOOL_ATTR_USED_MEM_HIGH, &0));
    println!("{:?}", figures(&gpu, pool));
    for (i, (p, n)) in all.iter().zip(sizes).enumerate().skip(4) {
        println!("{i}: {:x}", digest(&gpu.read(*p, n)));
        ok(cuda.cuMemFreeAsync(*p, stream));
    }
    ok(cuda.cuStreamSynchronize(stream));
    ok(cuda.cuMemPoolTrimTo(pool, 0));
    println!(
        "{:?}, reserved {}",
        figures(&gpu, pool),
        gpu.pool_number(pool, CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT)
    );
    ok(cuda.cuMemPoolDestroy(pool));
}

/// Nothing waits, and what one stream still uses no other gets.
fn order() {
    let gpu = Gpu::open();
    let kernels = Kernels::load(&gpu);
    let cuda = &gpu.cuda;
    let (a, b) = (
        gpu.stream(CU_STREAM_NON_BLOCKING),
        gpu.stream(CU_STREAM_NON_BLOCKING),
    );
    let pool = gpu.pool();
    let busy = |stream| cuda.cuStreamQuery(stream) == CUDA_ERROR_NOT_READY;
    for len in [5 * MIB, 700, 30 * MIB] {
        let words = len as u64 / 8;
        for round in 0..2 {
            let p = take(&gpu, pool, len, a).expect("an allocation");
            kernels.spin(&gpu, a, 120_000_000);
            kernels.fill(&gpu, a, p, words, 1);
            ok(cuda.cuMemFreeAsync(p, a));
            // Taken while the first is freed but in use.
            let q = take(&gpu, pool, len, b).expect("an allocation");
            kernels.fill(&gpu, b, q, words, 2);
            let r = take(&gpu, pool, len, a).expect("an allocation");
            kernels.fill(&gpu, a, r, words, 3);
            println!("{len} {round}: nothing waited: {}", busy(a));
            ok(cuda.cuStreamSynchronize(a));
            ok(cuda.cuStreamSynchronize(b));
            for (p, seed) in [(q, 2), (r, 3)] {
                let expected: Vec<u8> = (0..words)
                    .flat_map(|i| Kernels::filled(seed, i).to_le_bytes())
                    .collect();
                assert!(
                    gpu.read(p, words as usize * 8) == expected,
                    "{len}: seed {seed}"
                );
            }
            // On another stream than it came from, or by the call that waits for nothing here.
            if round % 2 == 0 {
                ok(cuda.cuMemFreeAsync(q, a));
            } else {
                kernels.spin(&gpu, a, 120_000_000);
                ok(cuda.cuMemFree_v2(q));
                println!("{len} {round}: cuMemFree did not wait: {}", busy(a));
            }
            ok(cuda.cuMemFreeAsync(r, b));
            ok(cuda.cuStreamSynchronize(a));
            ok(cuda.cuStreamSynchronize(b));
        }
    }
    ok(cuda.cuMemPoolDestroy(pool));
}

/// Synchronous copies and memsets inside the device return at once, as on memory that is in VRAM.
fn sync() {
    let gpu = Gpu::open();
    let kernels = Kernels::load(&gpu);
    let (cuda, stream, pool) = (&gpu.cuda, gpu.stream(0), gpu.pool());
    for len in [9 * MIB, 9 * MIB, 1 << 16, 40 * MIB] {
        let p = take(&gpu, pool, len, stream).expect("an allocation");
        let q = take(&gpu, pool, len, stream).expect("an allocation");
        ok(cuda.cuStreamSynchronize(stream));
        gpu.write(p, &pattern(3, len));
        let forms: [(&str, &dyn Fn() -> CUresult); 4] = [
            ("cuMemcpyDtoD", &|| cuda.cuMemcpyDtoD_v2(q, p, len)),
            ("cuMemcpy", &|| cuda.cuMemcpy(q, p, len)),
            ("cuMemsetD8", &|| cuda.cuMemsetD8_v2(q, 7, len / 2)),
            ("cuMemsetD32", &|| cuda.cuMemsetD32_v2(q, 9, len / 8)),
        ];
        for (name, form) in forms {
            kernels.spin(&gpu, stream, 120_000_000);
            ok(form());
            println!(
                "{len} {name} waited: {}",
                cuda.cuStreamQuery(stream) != CUDA_ERROR_NOT_READY
            );
            ok(cuda.cuCtxSynchronize());
        }
        println!("{:x}", digest(&gpu.read(q, len)));
    }
}

/// `cuMemAlloc` memory freed in stream order: again and again, more than there is.
fn plain() {
    let gpu = Gpu::open();
    let kernels = Kernels::load(&gpu);
    let (cuda, stream) = (&gpu.cuda, gpu.stream(CU_STREAM_NON_BLOCKING));
    for round in 0..12 {
        let n = (20 + 3 * (round % 5)) * MIB;
        let p = gpu.alloc(n);
        gpu.write(p, &pattern(round as u64, n));
        kernels.spin(&gpu, stream, 80_000_000);
        kernels.add(&gpu, stream, p, n as u64 / 8, 1);
        ok(cuda.cuMemFreeAsync(p, stream));
        println!(
            "{round}: waited: {}",
            cuda.cuStreamQuery(stream) != CUDA_ERROR_NOT_READY
        );
        println!("{round}: again: {}", cuda.cuMemFreeAsync(p, stream));
        let mut kind = 0u64;
        println!(
            "{round}: known: {}",
            cuda.cuPointerGetAttribute((&raw mut kind).cast(), CU_POINTER_ATTRIBUTE_MEMORY_TYPE, p)
        );
        ok(cuda.cuStreamSynchronize(stream));
    }
    // By streams that end at once.
    for round in 0..6 {
        let (short, n) = (gpu.stream(0), 24 * MIB);
        let p = gpu.alloc(n);
        kernels.spin(&gpu, short, 30_000_000);
        kernels.fill(&gpu, short, p, n as u64 / 8, round);
        ok(cuda.cuMemFreeAsync(p, short));
        ok(cuda.cuStreamDestroy_v2(short));
        let again = gpu.stream(0);
        let mut q = 0;
        ok(cuda.cuMemAllocAsync(&mut q, n, again));
        kernels.fill(&gpu, again, q, n as u64 / 8, 77);
        ok(cuda.cuStreamSynchronize(again));
        ok(cuda.cuCtxSynchronize());
        println!("{:x}", digest(&gpu.read(q, n)));
        ok(cuda.cuMemFreeAsync(q, again));
        ok(cuda.cuStreamSynchronize(again));
        ok(cuda.cuStreamDestroy_v2(again));
    }
}

/// Frees that are mistakes.
fn frees() {
    let gpu = Gpu::open();
    let (cuda, stream, pool) = (&gpu.cuda, gpu.stream(CU_STREAM_NON_BLOCKING), gpu.pool());
    for len in [30 * MIB, 30 * MIB, 3000, 40 * MIB] {
        let p = take(&gpu, pool, len, stream).expect("an allocation");
        let free = |p| cuda.cuMemFreeAsync(p, stream);
        println!("null {}", free(0));
        println!("interior {} {}", free(p + 512), cuda.cuMemFree_v2(p + 512));
        println!(
            "first {}, second {}, third {}",
            free(p),
            free(p),
            cuda.cuMemFree_v2(p)
        );
        ok(cuda.cuStreamSynchronize(stream));
        println!("later {}", free(p));
        let p = take(&gpu, pool, len, stream).expect("an allocation");
        ok(cuda.cuStreamSynchronize(stream));
        println!("plainly {} {}", cuda.cuMemFree_v2(p), cuda.cuMemFree_v2(p));
        // What stays makes the next ones spill.
        take(&gpu, pool, len, stream).expect("an allocation");
    }
    println!("used {}", figures(&gpu, pool).0);
}

/// Pools that end before their memory.
fn ends() {
    let gpu = Gpu::open();
    let kernels = Kernels::load(&gpu);
    let (cuda, stream) = (&gpu.cuda, gpu.stream(CU_STREAM_NON_BLOCKING));
    for round in 0..8 {
        let pool = gpu.pool();
        let all: Vec<CUdeviceptr> = (0..6)
            .map(|_| take(&gpu, pool, 11 * MIB, stream).expect("an allocation"))
            .collect();
        println!("destroyed {}", cuda.cuMemPoolDestroy(pool));
        for (i, p) in all.iter().enumerate() {
            kernels.fill(&gpu, stream, *p, 11 << 17, i as u64);
        }
        ok(cuda.cuStreamSynchronize(stream));
        for p in &all {
            println!("{:x}", digest(&gpu.read(*p, 11 * MIB)));
        }
        for p in all {
            ok(if round % 2 == 0 {
                cuda.cuMemFreeAsync(p, stream)
            } else {
                cuda.cuMemFree_v2(p)
            });
        }
        ok(cuda.cuStreamSynchronize(stream));
    }
    let mut default = std::ptr::null_mut();
    ok(cuda.cuDeviceGetDefaultMemPool(&mut default, 0));
    println!("the default {}", cuda.cuMemPoolDestroy(default));
    let mut p = 0;
    ok(cuda.cuMemAllocAsync(&mut p, MIB, stream));
    ok(cuda.cuMemFreeAsync(p, stream));
    ok(cuda.cuStreamSynchronize(stream));
    stage("end");
}

/// Memory that leaves the process comes from its pool or not at all.
fn export() {
    let gpu = Gpu::open();
    let (cuda, stream) = (&gpu.cuda, gpu.stream(CU_STREAM_NON_BLOCKING));
    let kind = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;
    let (mut pool, mut fd, mut data) = (std::ptr::null_mut(), -1, [0; 64]);
    ok(cuda.cuMemPoolCreate(&mut pool, &pool_props(gpu.device, kind)));
    let p = take(&gpu, pool, 4 * MIB, stream).expect("an allocation");
    ok(cuda.cuStreamSynchronize(stream));
    gpu.write(p, &pattern(5, 4 * MIB));
    ok(cuda.cuMemPoolExportToShareableHandle(&mut fd, pool, kind, 0));
    ok(cuda.cuMemPoolExportPointer(&mut data, p));
    let (mut other, mut q) = (std::ptr::null_mut(), 0);
    ok(cuda.cuMemPoolImportFromShareableHandle(&mut other, fd as usize, kind, 0));
    ok(cuda.cuMemPoolImportPointer(&mut q, other, &data));
    assert!(
        gpu.read(q, 4 * MIB) == pattern(5, 4 * MIB),
        "the imported bytes"
    );
    println!(
        "an allocation from an imported pool: {:?}",
        take(&gpu, other, MIB, stream)
    );
    ok(cuda.cuMemFreeAsync(q, stream));
    let mut all = vec![p];
    let refused = loop {
        match take(&gpu, pool, 30 * MIB, stream) {
            Ok(p) => {
                ok(cuda.cuMemPoolExportPointer(&mut data, p));
                all.push(p);
            }
            Err(code) => break code,
        }
    };
    println!("~ pieces {}", all.len());
    println!("then {refused}");
    for p in all {
        ok(cuda.cuMemFreeAsync(p, stream));
    }
    ok(cuda.cuStreamSynchronize(stream));
    ok(cuda.cuMemPoolDestroy(other));
    ok(cuda.cuMemPoolDestroy(pool));
}

/// The pool of `cuMemAllocAsync` is the program's choice.
fn choice() {
    let gpu = Gpu::open();
    let (cuda, stream, own) = (&gpu.cuda, gpu.stream(CU_STREAM_NON_BLOCKING), gpu.pool());
    let (mut default, mut now) = (std::ptr::null_mut(), std::ptr::null_mut());
    ok(cuda.cuDeviceGetDefaultMemPool(&mut default, 0));
    let here = CUmemLocation {
        type_: CU_MEM_LOCATION_TYPE_DEVICE,
        id: 0,
    };
    for round in 0..3 {
        let chosen = match round {
            0 => default,
            1 => {
                ok(cuda.cuDeviceSetMemPool(0, own));
                own
            }
            _ => {
                ok(cuda.cuMemSetMemPool(&here, CU_MEM_ALLOCATION_TYPE_PINNED, default));
                default
            }
        };
        ok(cuda.cuDeviceGetMemPool(&mut now, 0));
        assert_eq!(now, chosen);
        ok(cuda.cuMemGetMemPool(&mut now, &here, CU_MEM_ALLOCATION_TYPE_PINNED));
        assert_eq!(now, chosen);
        let all: Vec<CUdeviceptr> = [8, 30, 8, 50]
            .iter()
            .map(|n| {
                let mut p = 0;
                ok(cuda.cuMemAllocAsync(&mut p, n * MIB, stream));
                p
            })
            .collect();
        for p in all {
            let pool = gpu.attribute(p, CU_POINTER_ATTRIBUTE_MEMPOOL_HANDLE);
            assert_eq!(pool, Ok(chosen as u64), "round {round}");
            ok(cuda.cuMemFreeAsync(p, stream));
        }
        println!("used {}", figures(&gpu, chosen).0);
        ok(cuda.cuStreamSynchronize(stream));
    }
    ok(cuda.cuMemPoolDestroy(own));
}

/// While a stream captures, its calls are nodes; other streams go on.
fn capture() {
    let gpu = Gpu::open();
    let kernels = Kernels::load(&gpu);
    let cuda = &gpu.cuda;
    let (a, b, pool) = (
        gpu.stream(CU_STREAM_NON_BLOCKING),
        gpu.stream(CU_STREAM_NON_BLOCKING),
        gpu.pool(),
    );
    let before = take(&gpu, pool, 40 * MIB, b).expect("an allocation");
    let (word, mut graph, mut exec) = (gpu.alloc(8), std::ptr::null_mut(), std::ptr::null_mut());
    gpu.write(word, &[0; 8]);
    ok(cuda.cuCtxSynchronize());
    ok(cuda.cuStreamBeginCapture_v2(a, CU_STREAM_CAPTURE_MODE_RELAXED));
    kernels.add(&gpu, a, word, 1, 1);
    let all: Vec<CUdeviceptr> = (0..4)
        .map(|_| take(&gpu, pool, 30 * MIB, b).expect("an allocation beside a capture"))
        .collect();
    for p in &all {
        kernels.fill(&gpu, b, *p, 1000, 9);
        ok(cuda.cuMemFreeAsync(*p, b));
    }
    // What no capture allocated no capture frees.
    println!("a free in the capture: {}", cuda.cuMemFreeAsync(before, a));
    ok(cuda.cuMemPoolTrimTo(pool, 0));
    gpu.memory();
    ok(cuda.cuStreamEndCapture(a, &mut graph));
    ok(cuda.cuGraphInstantiateWithFlags(&mut exec, graph, 0));
    ok(cuda.cuGraphLaunch(exec, a));
    ok(cuda.cuStreamSynchronize(a));
    println!("{:?}", gpu.read(word, 8));
    ok(cuda.cuMemFreeAsync(before, a));
    ok(cuda.cuStreamSynchronize(a));
    ok(cuda.cuStreamSynchronize(b));
    ok(cuda.cuGraphExecDestroy(exec));
    ok(cuda.cuGraphDestroy(graph));
    gpu.free(word);
    ok(cuda.cuMemPoolDestroy(pool));
}

/// Contexts end; pool memory does not.
fn contexts() {
    let gpu = Gpu::open();
    let (cuda, pool) = (&gpu.cuda, gpu.pool());
    let mut own = std::ptr::null_mut();
    ok(cuda.cuCtxCreate_v2(&mut own, 0, 0));
    let stream = gpu.stream(0);
    let all: Vec<CUdeviceptr> = (0..5)
        .map_while(|_| take(&gpu, pool, 13 * MIB, stream).ok())
        .collect();
    if all.len() < 5 {
        println!("~ refused after {}", all.len());
        return;
    }
    for (i, p) in all.iter().enumerate() {
        ok(cuda.cuMemsetD8Async(*p, i as u8 + 1, 13 * MIB, stream));
    }
    // Two are freed in the context that ends.
    ok(cuda.cuMemFreeAsync(all[0], stream));
    ok(cuda.cuMemFreeAsync(all[4], stream));
    ok(cuda.cuCtxDestroy_v2(own));
    gpu.enter();
    for (i, p) in all.iter().enumerate().take(4).skip(1) {
        let right = gpu.read(*p, 13 * MIB).iter().all(|b| *b == i as u8 + 1);
        println!("{i}: {right}");
    }
    let again = gpu.stream(0);
    for p in &all[1..4] {
        ok(cuda.cuMemFreeAsync(*p, again));
    }
    for _ in 0..20 {
        let p = take(&gpu, pool, 13 * MIB, again).expect("an allocation");
        ok(cuda.cuMemsetD8Async(p, 1, 13 * MIB, again));
        ok(cuda.cuMemFreeAsync(p, again));
    }
    ok(cuda.cuStreamSynchronize(again));
    ok(cuda.cuMemPoolDestroy(pool));
}

/// Another device uses the pool's memory once it may, before and after.
fn peers() {
    let near = Gpu::open();
    let far = Gpu::on(Driver::reach(), 1);
    near.enter();
    let (cuda, stream, pool) = (&near.cuda, near.stream(CU_STREAM_NON_BLOCKING), near.pool());
    let before = take(&near, pool, 40 * MIB, stream).expect("an allocation");
    let first = take(&near, pool, 9 * MIB, stream).expect("an allocation");
    let access = CUmemAccessDesc {
        location: CUmemLocation {
            type_: CU_MEM_LOCATION_TYPE_DEVICE,
            id: 1,
        },
        flags: CU_MEM_ACCESS_FLAGS_PROT_READWRITE,
    };
    ok(cuda.cuMemPoolSetAccess(pool, &access, 1));
    let after = take(&near, pool, 50 * MIB, stream).expect("an allocation");
    ok(cuda.cuMemFreeAsync(before, stream));
    let again = take(&near, pool, 40 * MIB, stream).expect("an allocation");
    ok(cuda.cuStreamSynchronize(stream));
    far.enter();
    let kernels = Kernels::load(&far);
    for (i, p) in [first, after, again].into_iter().enumerate() {
        kernels.fill(&far, std::ptr::null_mut(), p, 1000, i as u64);
        ok(cuda.cuCtxSynchronize());
        println!("{:x}", digest(&far.read(p, 8000)));
    }
    near.enter();
    for p in [first, after, again] {
        println!("{:x}", digest(&near.read(p, 8000)));
        ok(cuda.cuMemFreeAsync(p, stream));
    }
    ok(cuda.cuStreamSynchronize(stream));
    ok(cuda.cuMemPoolDestroy(pool));
}

/// A pool's own bound holds, whoever serves it.
fn most() {
    let gpu = Gpu::open();
    let (cuda, stream) = (&gpu.cuda, gpu.stream(CU_STREAM_NON_BLOCKING));
    let mut props = pool_props(gpu.device, CU_MEM_HANDLE_TYPE_NONE);
    props.maxSize = 96 * MIB;
    let mut pool = std::ptr::null_mut();
    ok(cuda.cuMemPoolCreate(&mut pool, &props));
    let mut all = Vec::new();
    let code = loop {
        match take(&gpu, pool, 16 * MIB, stream) {
            Ok(p) => all.push(p),
            Err(code) => break code,
        }
    };
    println!("{} pieces, then {code}", all.len());
    for p in all {
        ok(cuda.cuMemFreeAsync(p, stream));
    }
    ok(cuda.cuStreamSynchronize(stream));
    ok(cuda.cuMemPoolDestroy(pool));
}

/// Takes everything, three times: the same number of pieces each time.
fn exhaust() {
    let gpu = Gpu::open();
    let (cuda, stream, pool) = (&gpu.cuda, gpu.stream(CU_STREAM_NON_BLOCKING), gpu.pool());
    let size: usize = argument(2).parse().expect("a size");
    let mut counts = Vec::new();
    for _ in 0..3 {
        let mut all = Vec::new();
        let code = loop {
            match take(&gpu, pool, size, stream) {
                Ok(p) => all.push(p),
                Err(code) => break code,
            }
        };
        assert_eq!(code, CUDA_ERROR_OUT_OF_MEMORY);
        counts.push(all.len());
        for p in all {
            ok(cuda.cuMemFreeAsync(p, stream));
        }
        ok(cuda.cuStreamSynchronize(stream));
    }
    println!("~ pieces {counts:?}");
    ok(cuda.cuMemPoolDestroy(pool));
}

/// What a pool keeps counts, until somebody needs the room.
fn retained() {
    let gpu = Gpu::open();
    let (cuda, stream, pool) = (&gpu.cuda, gpu.stream(CU_STREAM_NON_BLOCKING), gpu.pool());
    ok(cuda.cuMemPoolSetAttribute(pool, CU_MEMPOOL_ATTR_RELEASE_THRESHOLD, &u64::MAX));
    stage("start");
    let p = take(&gpu, pool, 60 * MIB, stream).expect("an allocation");
    ok(cuda.cuMemFreeAsync(p, stream));
    ok(cuda.cuStreamSynchronize(stream));
    stage("kept");
    let own = gpu.alloc(50 * MIB);
    stage("needed");
    gpu.free(own);
    let p = take(&gpu, pool, 60 * MIB, stream).expect("an allocation");
    ok(cuda.cuMemFreeAsync(p, stream));
    ok(cuda.cuStreamSynchronize(stream));
    stage("kept again");
    let prop = CUmemAllocationProp {
        type_: CU_MEM_ALLOCATION_TYPE_PINNED,
        requestedHandleTypes: CU_MEM_HANDLE_TYPE_NONE,
        location: CUmemLocation {
            type_: CU_MEM_LOCATION_TYPE_DEVICE,
            id: 0,
        },
        win32HandleMetaData: std::ptr::null_mut(),
        allocFlags: CUmemAllocFlags::default(),
    };
    let mut handle = 0;
    ok(cuda.cuMemCreate(&mut handle, 50 * MIB, &prop, 0));
    stage("needed for a handle");
    ok(cuda.cuMemRelease(handle));
    let p = take(&gpu, pool, 60 * MIB, stream).expect("an allocation");
    ok(cuda.cuMemFreeAsync(p, stream));
    ok(cuda.cuStreamSynchronize(stream));
    ok(cuda.cuMemPoolTrimTo(pool, 0));
    stage("trimmed");
    let p = take(&gpu, pool, 60 * MIB, stream).expect("an allocation");
    ok(cuda.cuMemFreeAsync(p, stream));
    ok(cuda.cuStreamSynchronize(stream));
    ok(cuda.cuMemPoolDestroy(pool));
    stage("destroyed");
}

/// Many threads at once, in one pool and in pools of their own.
fn threads() {
    let gpu = Gpu::open();
    let kernels = Kernels::load(&gpu);
    let shared = gpu.pool() as usize;
    std::thread::scope(|scope| {
        for t in 0..12u64 {
            let (gpu, kernels) = (&gpu, &kernels);
            scope.spawn(move || {
                gpu.enter();
                let (cuda, stream) = (&gpu.cuda, gpu.stream(CU_STREAM_NON_BLOCKING));
                let own = gpu.pool();
                let mut numbers = Numbers(t);
                let mut held: Vec<(CUdeviceptr, usize, u64)> = Vec::new();
                for round in 0..60 {
                    let pool = if numbers.below(2) == 0 {
                        own
                    } else {
                        shared as CUmemoryPool
                    };
                    let len = 8 + numbers.below(6 << 20) as usize / 8 * 8;
                    if let Ok(p) = take(gpu, pool, len, stream) {
                        let seed = t * 1000 + round;
                        kernels.fill(gpu, stream, p, len as u64 / 8, seed);
                        held.push((p, len, seed));
                    }
                    if held.len() > 4 {
                        let (p, len, seed) = held.swap_remove(numbers.below(4) as usize);
                        if numbers.below(4) == 0 {
                            let n = len.min(4096) / 8;
                            let mut out = vec![0u8; n * 8];
                            let to = out.as_mut_ptr().cast();
                            ok(cuda.cuMemcpyDtoHAsync_v2(to, p, n * 8, stream));
                            ok(cuda.cuStreamSynchronize(stream));
                            let right = out
                                .chunks(8)
                                .enumerate()
                                .all(|(i, w)| w == Kernels::filled(seed, i as u64).to_le_bytes());
                            assert!(right, "thread {t}, round {round}");
                        }
                        ok(cuda.cuMemFreeAsync(p, stream));
                    }
                    gpu.memory();
                }
                for (p, ..) in held {
                    ok(cuda.cuMemFreeAsync(p, stream));
                }
                ok(cuda.cuStreamSynchronize(stream));
                ok(cuda.cuMemPoolDestroy(own));
                ok(cuda.cuStreamDestroy_v2(stream));
            });
        }
    });
    ok(gpu.cuda.cuMemPoolDestroy(shared as CUmemoryPool));
    println!("right");
    stage("end");
}
