//! Memory calls at their edges. Error codes are printed: they must be the driver's own.

use victim::gpu::Gpu;
use victim::*;

fn main() {
    match argument(1).as_str() {
        "before-init" => before_init(),
        "no-context" => no_context(),
        "null-results" => null_results(),
        "zero" => zero(),
        "huge" => huge(),
        "exhaust" => exhaust(),
        "bad-frees" => bad_frees(),
        "attributes" => attributes(),
        "ranges" => ranges(),
        "pitch" => pitch(),
        "small" => small(),
        "contexts" => contexts(),
        "reset" => reset(),
        "devices" => devices(),
        "info" => info(),
        "cycles" => cycles(),
        "between" => between(),
        other => panic!("{other}?"),
    }
}

/// Every call before `cuInit`, and after it.
fn before_init() {
    let cuda = Driver::reach();
    let mut p = 1;
    let mut n = [0usize; 2];
    let mut pointer = std::ptr::null_mut();
    println!("version {}", cuda.cuDriverGetVersion(&mut 0));
    println!("alloc {}", cuda.cuMemAlloc_v2(&mut p, 4 << 20));
    println!("free {}", cuda.cuMemFree_v2(0));
    println!("free {}", cuda.cuMemFree_v2(0x7000_0000));
    println!(
        "pitch {}",
        cuda.cuMemAllocPitch_v2(&mut p, &mut n[0], 64, 64, 4)
    );
    println!("info {}", cuda.cuMemGetInfo_v2(&mut n[0], &mut n[1]));
    println!("total {}", cuda.cuDeviceTotalMem_v2(&mut n[0], 0));
    println!("device {}", cuda.cuDeviceGet(&mut 0, 0));
    println!("count {}", cuda.cuDeviceGetCount(&mut 0));
    println!("retain {}", cuda.cuDevicePrimaryCtxRetain(&mut pointer, 0));
    println!("sync {}", cuda.cuCtxSynchronize());
    println!(
        "range {}",
        cuda.cuMemGetAddressRange_v2(&mut p, &mut n[0], 64)
    );
    println!(
        "attribute {}",
        cuda.cuPointerGetAttribute(n.as_mut_ptr().cast(), 2, 64)
    );
    println!("flags {}", cuda.cuInit(7));
    println!("still {}", cuda.cuMemAlloc_v2(&mut p, 4 << 20));
    println!("init {}", cuda.cuInit(0));
    println!("again {}", cuda.cuInit(0));
    Gpu::on(cuda, 0).works(3, 5 << 20);
}

/// A thread that no context was made current on.
fn no_context() {
    let gpu = Gpu::open();
    let p = gpu.alloc(4 << 20);
    let small = gpu.alloc(100);
    std::thread::scope(|s| {
        s.spawn(|| {
            let cuda = &gpu.cuda;
            let mut q = 5;
            let mut n = [0usize; 2];
            let mut byte = 0u8;
            println!("alloc {} {}", cuda.cuMemAlloc_v2(&mut q, 4 << 20), q);
            println!("small {} {}", cuda.cuMemAlloc_v2(&mut q, 64), q);
            println!("zero {} {}", cuda.cuMemAlloc_v2(&mut q, 0), q);
            println!("nowhere {}", cuda.cuMemAlloc_v2(std::ptr::null_mut(), 64));
            println!(
                "pitch {}",
                cuda.cuMemAllocPitch_v2(&mut q, &mut n[0], 64, 64, 4)
            );
            println!("info {}", cuda.cuMemGetInfo_v2(&mut n[0], &mut n[1]));
            println!(
                "info {}",
                cuda.cuMemGetInfo_v2(&mut n[0], std::ptr::null_mut())
            );
            println!("sync {}", cuda.cuCtxSynchronize());
            println!("device {}", cuda.cuCtxGetDevice(&mut 0));
            println!(
                "read {}",
                cuda.cuMemcpyDtoH_v2((&raw mut byte).cast(), p, 1)
            );
            for (which, p) in [("large", p), ("small", small), ("null", 0), ("host", 64)] {
                println!(
                    "{which}: range {} kind {:?}",
                    cuda.cuMemGetAddressRange_v2(&mut q, &mut n[0], p),
                    gpu.attribute(p, CU_POINTER_ATTRIBUTE_MEMORY_TYPE)
                );
                if which != "host" {
                    println!("{which}: free {}", cuda.cuMemFree_v2(p));
                }
            }
            // With a context all is well on this thread too.
            gpu.enter();
            gpu.works(9, 4 << 20);
        });
    });
    // Freeing needs no context (measured): both are gone.
    gpu.works(10, 4 << 20);
}

/// Places for results that are null.
fn null_results() {
    let gpu = Gpu::open();
    let cuda = &gpu.cuda;
    let none = std::ptr::null_mut();
    let (mut n, mut p) = (0usize, 0);
    println!(
        "alloc {}",
        cuda.cuMemAlloc_v2(std::ptr::null_mut(), 4 << 20)
    );
    println!("alloc {}", cuda.cuMemAlloc_v2(std::ptr::null_mut(), 64));
    println!("free only {}", cuda.cuMemGetInfo_v2(&mut n, none));
    println!("~ {n}");
    println!("total only {}", cuda.cuMemGetInfo_v2(none, &mut n));
    println!("neither {}", cuda.cuMemGetInfo_v2(none, none));
    println!("total {}", cuda.cuDeviceTotalMem_v2(none, 0));
    println!("pitch {}", cuda.cuMemAllocPitch_v2(&mut p, none, 64, 64, 4));
    println!(
        "pitch {}",
        cuda.cuMemAllocPitch_v2(std::ptr::null_mut(), &mut n, 64, 64, 4)
    );
    println!(
        "large pitch {}",
        cuda.cuMemAllocPitch_v2(&mut p, none, 4096, 4096, 4)
    );
    for bytes in [64, 4 << 20] {
        let a = gpu.alloc(bytes);
        println!(
            "base only {} {}",
            cuda.cuMemGetAddressRange_v2(&mut p, none, a + 3),
            p == a
        );
        println!(
            "size only {} {n}",
            cuda.cuMemGetAddressRange_v2(std::ptr::null_mut(), &mut n, a + 3)
        );
        println!(
            "neither {}",
            cuda.cuMemGetAddressRange_v2(std::ptr::null_mut(), none, a + 3)
        );
        println!(
            "attribute {}",
            cuda.cuPointerGetAttribute(std::ptr::null_mut(), 2, a)
        );
        gpu.free(a);
    }
    gpu.works(4, 3 << 20);
}

fn zero() {
    let gpu = Gpu::open();
    let cuda = &gpu.cuda;
    let mut p = 77;
    println!("alloc {} {p}", cuda.cuMemAlloc_v2(&mut p, 0));
    println!("free {}", cuda.cuMemFree_v2(0));
    let mut pitch = 0;
    for (w, h) in [(0, 0), (0, 5), (5, 0)] {
        println!(
            "pitch {w}x{h} {}",
            cuda.cuMemAllocPitch_v2(&mut p, &mut pitch, w, h, 4)
        );
    }
    for bytes in [64, 4 << 20] {
        let p = gpu.alloc(bytes);
        println!("set {}", cuda.cuMemsetD8_v2(p, 1, 0));
        println!("set {}", cuda.cuMemsetD32_v2(p, 1, 0));
        println!("in {}", cuda.cuMemcpyHtoD_v2(p, std::ptr::null(), 0));
        println!("between {}", cuda.cuMemcpyDtoD_v2(p, p, 0));
        gpu.free(p);
    }
    gpu.works(2, 3 << 20);
}

/// Sizes that no machine has: refused, and the program goes on.
fn huge() {
    let gpu = Gpu::open();
    for bytes in [
        1usize << 60,
        usize::MAX,
        usize::MAX - (2 << 20) + 1,
        usize::MAX / 2,
        1 << 47,
        1 << 40,
    ] {
        println!("{bytes:#x}: {:?}", gpu.try_alloc(bytes).err());
    }
    let (mut p, mut pitch) = (0, 0);
    for (w, h) in [
        (1usize << 40, 1usize << 20),
        (usize::MAX, 2),
        (1 << 33, 1 << 33),
    ] {
        println!(
            "pitch {}",
            gpu.cuda.cuMemAllocPitch_v2(&mut p, &mut pitch, w, h, 4)
        );
    }
    gpu.works(8, 6 << 20);
}

/// Takes pieces until there are none, checks that each kept its bytes, gives all back, and does it again.
fn exhaust() {
    let gpu = Gpu::open();
    let piece: usize = argument(2).parse().expect("bytes");
    let mut counts = Vec::new();
    for round in 0..3 {
        let mut all = Vec::new();
        let error = loop {
            match gpu.try_alloc(piece) {
                Ok(p) => {
                    gpu.write(p, &pattern(all.len() as u64 + round, piece));
                    all.push(p);
                }
                Err(e) => break e,
            }
        };
        assert_eq!(error, CUDA_ERROR_OUT_OF_MEMORY);
        for (i, &p) in all.iter().enumerate() {
            assert!(
                gpu.read(p, piece) == pattern(i as u64 + round, piece),
                "round {round}: piece {i} changed"
            );
        }
        // Every second one first: what is left must not move or change.
        for (i, &p) in all.iter().enumerate() {
            if i % 2 == 0 {
                gpu.free(p);
            }
        }
        for (i, &p) in all.iter().enumerate() {
            if i % 2 == 1 {
                assert!(gpu.read(p, piece) == pattern(i as u64 + round, piece));
                gpu.free(p);
            }
        }
        counts.push(all.len());
    }
    println!("~ pieces {counts:?}");
    assert!(
        counts.iter().all(|c| *c == counts[0]),
        "what was freed did not come back: {counts:?}"
    );
    gpu.works(1, piece);
}

/// Frees of what was not allocated: the driver's error, and no harm to others.
fn bad_frees() {
    let gpu = Gpu::open();
    let cuda = &gpu.cuda;
    let sizes = [4usize << 20, 100, 6 << 20, 5000];
    let all: Vec<CUdeviceptr> = sizes.iter().map(|&n| gpu.alloc(n)).collect();
    for (i, (&p, &n)) in all.iter().zip(&sizes).enumerate() {
        gpu.write(p, &pattern(i as u64, n));
    }
    let stack = 5u64;
    for (which, p) in [
        ("interior of large", all[0] + 256),
        ("interior of large", all[0] + (2 << 20)),
        ("last of large", all[0] + (4 << 20) - 1),
        ("interior of small", all[1] + 1),
        ("host", &raw const stack as u64),
        ("low", 64),
        ("high", u64::MAX - 7),
    ] {
        println!("{which}: {}", cuda.cuMemFree_v2(p));
    }
    gpu.free(all[0]);
    gpu.free(all[1]);
    println!("twice, large: {}", cuda.cuMemFree_v2(all[0]));
    println!("twice, small: {}", cuda.cuMemFree_v2(all[1]));
    println!("after large: {}", cuda.cuMemFree_v2(all[0] + 256));
    let mut byte = 0u8;
    println!(
        "freed read: {}",
        cuda.cuMemGetAddressRange_v2(&mut 0, &mut 0, all[0])
    );
    println!(
        "freed kind: {:?}",
        gpu.attribute(all[0], CU_POINTER_ATTRIBUTE_MEMORY_TYPE)
    );
    std::hint::black_box(&mut byte);
    for i in [2, 3] {
        assert!(
            gpu.read(all[i], sizes[i]) == pattern(i as u64, sizes[i]),
            "a bad free hurt allocation {i}"
        );
        gpu.free(all[i]);
    }
    gpu.works(6, 4 << 20);
}

/// What the driver says about pointers of every kind.
fn attributes() {
    let gpu = Gpu::open();
    let cuda = &gpu.cuda;
    let mut host = std::ptr::null_mut();
    ok(cuda.cuMemHostAlloc(&mut host, 8192, 0));
    let plain = Box::new([0u8; 100]);
    let (large, small, spilled) = (gpu.alloc(12 << 20), gpu.alloc(100), gpu.alloc(12 << 20));
    let pointers = [
        ("large", large),
        ("inside large", large + (12 << 20) - 1),
        ("small", small),
        ("spilled", spilled),
        ("inside spilled", spilled + (10 << 20)),
        ("pinned", host as u64),
        ("inside pinned", host as u64 + 8000),
        ("pageable", plain.as_ptr() as u64),
        ("null", 0),
        ("nonsense", 0xFFFF_FFFF_FFFF_0000),
    ];
    for (which, p) in pointers {
        for attribute in [2, 8, 9, 12, 13, 99, -1, 0] {
            println!(
                "{which} {attribute}: {:?}",
                gpu.attribute(p, attribute)
                    .map(|v| if attribute == 8 || attribute == 13 {
                        v & 0xFF
                    } else {
                        v
                    })
            );
        }
        let at = gpu.attribute(p, CU_POINTER_ATTRIBUTE_DEVICE_POINTER);
        println!("{which} device pointer: {:?}", at.map(|at| at == p));
        let start = gpu.attribute(p, CU_POINTER_ATTRIBUTE_RANGE_START_ADDR);
        println!("{which} from start: {:?}", start.map(|s| p.wrapping_sub(s)));
        let context = gpu.attribute(p, CU_POINTER_ATTRIBUTE_CONTEXT);
        println!(
            "{which} context: {:?}",
            context.map(|c| c == gpu.context as u64)
        );
        // Several at once: unknown pointers are answered with zeros there, not with an error.
        let (mut kind, mut managed, mut ordinal, mut bytes) = (9u32, 9u8, 9i32, 9usize);
        let mut which_ones = [2, 8, 9, 12];
        let mut places = [
            (&raw mut kind).cast(),
            (&raw mut managed).cast(),
            (&raw mut ordinal).cast(),
            (&raw mut bytes).cast(),
        ];
        let result =
            cuda.cuPointerGetAttributes(4, which_ones.as_mut_ptr(), places.as_mut_ptr(), p);
        println!("{which} together: {result} {kind} {managed} {ordinal} {bytes}");
        println!(
            "{which} none: {}",
            cuda.cuPointerGetAttributes(0, which_ones.as_mut_ptr(), places.as_mut_ptr(), p)
        );
    }
    for p in [large, small, spilled] {
        gpu.free(p);
    }
    ok(cuda.cuMemFreeHost(host));
}

/// `cuMemGetAddressRange` gives the program's own size, and nothing outside an allocation.
fn ranges() {
    let gpu = Gpu::open();
    for bytes in [
        1,
        255,
        4096,
        (1 << 20) + 1,
        2 << 20,
        (2 << 20) + 1,
        (7 << 20) - 3,
        20 << 20,
    ] {
        let p = gpu.alloc(bytes);
        for at in [0, bytes as u64 / 2, bytes as u64 - 1] {
            let (mut base, mut size) = (0, 0);
            let result = gpu
                .cuda
                .cuMemGetAddressRange_v2(&mut base, &mut size, p + at);
            println!("{bytes} at {at}: {result} {} {size}", base == p);
        }
        gpu.free(p);
    }
    let (mut base, mut size) = (0, 0);
    for p in [0, 64, u64::MAX] {
        println!(
            "{p}: {}",
            gpu.cuda.cuMemGetAddressRange_v2(&mut base, &mut size, p)
        );
    }
}

fn pitch() {
    let gpu = Gpu::open();
    for (width, height, element) in [
        (1, 1, 4),
        (100, 100, 4),
        (511, 7, 8),
        (512, 4096, 16),
        (3000, 2000, 4),
        (8192, 1024, 4),
        (64, 64, 3),
        (64, 64, 0),
    ] {
        let (mut p, mut pitch) = (0, 0);
        let result = gpu
            .cuda
            .cuMemAllocPitch_v2(&mut p, &mut pitch, width, height, element);
        println!("{width}x{height} of {element}: {result} pitch {pitch}");
        if result != 0 {
            continue;
        }
        let rows = pattern(width as u64, width * height);
        ok(gpu
            .cuda
            .cuMemcpy2D_v2(&work::two_d_in(&rows, width, height, p, pitch)));
        ok(gpu.cuda.cuMemsetD2D8_v2(p, pitch, 9, width / 2, height));
        let mut back = vec![0; width * height];
        ok(gpu
            .cuda
            .cuMemcpy2D_v2(&work::two_d_out(p, pitch, &mut back, width, height)));
        println!("{:016x}", digest(&back));
        gpu.free(p);
    }
}

/// Many small allocations, more than the VRAM limit holds.
fn small() {
    let gpu = Gpu::open();
    let count: usize = argument(2).parse().expect("count");
    let mut numbers = Numbers(4);
    let mut all: Vec<(CUdeviceptr, Vec<u8>)> = Vec::new();
    for i in 0..count {
        let bytes = 1 + numbers.below(200_000) as usize;
        let p = gpu.alloc(bytes);
        assert_eq!(p % 256, 0, "not aligned");
        let data = pattern(i as u64, bytes);
        gpu.write(p, &data);
        all.push((p, data));
    }
    let mut sorted: Vec<(u64, u64)> = all.iter().map(|(p, d)| (*p, d.len() as u64)).collect();
    sorted.sort_unstable();
    for pair in sorted.windows(2) {
        assert!(pair[0].0 + pair[0].1 <= pair[1].0, "allocations overlap");
    }
    for round in 0..4 {
        for (i, (p, data)) in all.iter_mut().enumerate() {
            if i % 4 == round {
                assert!(gpu.read(*p, data.len()) == *data, "small {i} changed");
                gpu.free(*p);
                *p = gpu.alloc(data.len());
                gpu.write(*p, data);
            }
        }
    }
    for (i, (p, data)) in all.into_iter().enumerate() {
        assert!(gpu.read(p, data.len()) == data, "small {i} changed");
        gpu.free(p);
    }
    println!("{count} kept");
}

/// Memory of a context goes with it.
fn contexts() {
    let gpu = Gpu::open();
    let cuda = &gpu.cuda;
    let kept = gpu.alloc(6 << 20);
    gpu.write(kept, &pattern(1, 6 << 20));
    for round in 0..5 {
        let mut context = std::ptr::null_mut();
        ok(cuda.cuCtxCreate_v2(&mut context, 0, gpu.device));
        let own = gpu.alloc(14 << 20);
        let small = gpu.alloc(1000);
        gpu.write(own, &pattern(round, 14 << 20));
        gpu.write(small, &pattern(round, 1000));
        assert!(gpu.read(own, 14 << 20) == pattern(round, 14 << 20));
        let mut popped = std::ptr::null_mut();
        ok(cuda.cuCtxPopCurrent_v2(&mut popped));
        assert_eq!(popped, context);
        ok(cuda.cuCtxDestroy_v2(context));
        gpu.enter();
        println!("gone, large: {}", cuda.cuMemFree_v2(own));
        println!("gone, small: {}", cuda.cuMemFree_v2(small));
        println!(
            "gone: {} {:?}",
            cuda.cuMemGetAddressRange_v2(&mut 0, &mut 0, own),
            gpu.attribute(own, 2)
        );
        assert!(
            gpu.read(kept, 6 << 20) == pattern(1, 6 << 20),
            "another context's memory changed"
        );
    }
    gpu.free(kept);
    // Pushed and popped: the current context decides where an allocation belongs.
    let mut context = std::ptr::null_mut();
    ok(cuda.cuCtxCreate_v2(&mut context, 0, gpu.device));
    ok(cuda.cuCtxPushCurrent_v2(gpu.context));
    let p = gpu.alloc(4 << 20);
    ok(cuda.cuCtxPopCurrent_v2(&mut std::ptr::null_mut()));
    println!("freed from another context: {}", cuda.cuMemFree_v2(p));
    ok(cuda.cuCtxDestroy_v2(context));
    gpu.enter();
    gpu.works(3, 14 << 20);
}

/// The primary context is reset: all memory is gone, and everything works again.
fn reset() {
    let gpu = Gpu::open();
    let cuda = &gpu.cuda;
    for round in 0..4 {
        let large = gpu.alloc(18 << 20);
        let small = gpu.alloc(500);
        gpu.write(large, &pattern(round, 18 << 20));
        ok(cuda.cuDevicePrimaryCtxReset_v2(gpu.device));
        let mut context = std::ptr::null_mut();
        ok(cuda.cuDevicePrimaryCtxRetain(&mut context, gpu.device));
        ok(cuda.cuCtxSetCurrent(context));
        println!("gone, large: {}", cuda.cuMemFree_v2(large));
        println!("gone, small: {}", cuda.cuMemFree_v2(small));
        gpu.works(round, 18 << 20);
    }
    // And released for good.
    let p = gpu.alloc(9 << 20);
    let mut retained = 0;
    while cuda.cuDevicePrimaryCtxRelease_v2(gpu.device) == 0 {
        retained += 1;
        assert!(retained < 100);
    }
    println!("retained {retained}");
    println!("released: {}", cuda.cuMemFree_v2(p));
    let mut context = std::ptr::null_mut();
    ok(cuda.cuDevicePrimaryCtxRetain(&mut context, gpu.device));
    ok(cuda.cuCtxSetCurrent(context));
    gpu.works(20, 18 << 20);
}

/// Several devices, each with its own memory.
fn devices() {
    let cuda = Driver::reach();
    ok(cuda.cuInit(0));
    let mut count = 0;
    ok(cuda.cuDeviceGetCount(&mut count));
    println!("{count} devices");
    let mut gpus = Vec::new();
    for i in 0..count {
        let gpu = Gpu::on(Driver::reach(), i);
        let p = gpu.alloc(10 << 20);
        let small = gpu.alloc(100);
        gpu.write(p, &pattern(i as u64, 10 << 20));
        println!(
            "{i}: ordinal {:?} {:?}",
            gpu.attribute(p, CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL),
            gpu.attribute(small, CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL)
        );
        gpus.push((gpu, p, small));
    }
    for (i, (gpu, p, small)) in gpus.iter().enumerate() {
        gpu.enter();
        assert!(gpu.read(*p, 10 << 20) == pattern(i as u64, 10 << 20));
        gpu.free(*small);
        // From whichever context is current.
        gpus[0].0.enter();
        println!("free {}", cuda.cuMemFree_v2(*p));
    }
}

/// Memory information, for the harness to judge.
fn info() {
    let gpu = Gpu::open();
    let show = |when: &str| {
        let (free, total) = gpu.memory();
        let mut whole = 0;
        ok(gpu.cuda.cuDeviceTotalMem_v2(&mut whole, gpu.device));
        println!("~ {when} {free} {total} {whole}");
    };
    show("start");
    let p = gpu.alloc(10 << 20);
    show("ten");
    let q = gpu.alloc(30 << 20);
    show("forty");
    gpu.free(p);
    gpu.free(q);
    show("end");
}

/// Takes and gives back, over and over, then waits for a line on stdin with everything freed.
fn cycles() {
    let gpu = Gpu::open();
    let rounds: u64 = argument(2).parse().expect("rounds");
    for round in 0..rounds {
        let all: Vec<(CUdeviceptr, usize)> = [20 << 20, 5 << 20, 3 << 20, 1000, 100_000, 9 << 20]
            .into_iter()
            .map(|n| (gpu.alloc(n), n))
            .collect();
        for &(p, n) in &all {
            ok(gpu.cuda.cuMemsetD8_v2(p, round as u8, n));
        }
        for (p, n) in all {
            assert!(gpu.read(p, n).iter().all(|b| *b == round as u8));
            gpu.free(p);
        }
    }
    println!("freed");
    std::io::stdin()
        .read_line(&mut String::new())
        .expect("stdin");
}

/// Copies between all pairs of places: pageable, pinned, in VRAM, mixed, spilled, small.
fn between() {
    let gpu = Gpu::open();
    let cuda = &gpu.cuda;
    let n = 5_000_003usize;
    let mut pinned = std::ptr::null_mut();
    ok(cuda.cuMemHostAlloc(&mut pinned, n, 0));
    let mut pageable = vec![0u8; n];
    let places: Vec<(String, CUdeviceptr)> = (0..6)
        .map(|i| (format!("device {i}"), gpu.alloc(n)))
        .chain([
            ("pinned".into(), pinned as u64),
            ("pageable".into(), pageable.as_mut_ptr() as u64),
        ])
        .collect();
    let is_host = |i: usize| i >= 6;
    for (i, (from, a)) in places.iter().enumerate() {
        for (j, (to, b)) in places.iter().enumerate() {
            if i == j {
                continue;
            }
            let data = pattern((i * 10 + j) as u64, n);
            // Into the source, over, and out of the target.
            put(&gpu, *a, &data, is_host(i));
            let result = match (is_host(i), is_host(j)) {
                (false, false) => cuda.cuMemcpyDtoD_v2(*b, *a, n),
                (true, false) => cuda.cuMemcpyHtoD_v2(*b, *a as *const c_void, n),
                (false, true) => cuda.cuMemcpyDtoH_v2(*b as *mut c_void, *a, n),
                (true, true) => continue,
            };
            assert!(
                get(&gpu, *b, n, is_host(j)) == data,
                "{from} to {to}: bytes changed"
            );
            println!("{from} to {to}: {result}");
        }
    }
    for (_, p) in &places[..6] {
        gpu.free(*p);
    }
    ok(cuda.cuMemFreeHost(pinned));
}

fn put(gpu: &Gpu, to: CUdeviceptr, data: &[u8], host: bool) {
    if host {
        // SAFETY: a live buffer of this length.
        unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), to as *mut u8, data.len()) };
    } else {
        gpu.write(to, data);
    }
}

fn get(gpu: &Gpu, from: CUdeviceptr, n: usize, host: bool) -> Vec<u8> {
    if host {
        // SAFETY: a live buffer of this length.
        unsafe { std::slice::from_raw_parts(from as *const u8, n) }.to_vec()
    } else {
        gpu.read(from, n)
    }
}
