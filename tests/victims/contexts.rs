//! Contexts that come about, and end, in less common ways.

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;
use victim::gpu::{Gpu, Kernels};
use victim::*;

fn main() {
    match argument(1).as_str() {
        "green" => green(),
        "green-memory" => green_memory(),
        "detach" => detach(),
        "below" => below(),
        "capture-meanwhile" => capture_meanwhile(),
        "come-and-go" => come_and_go(),
        other => panic!("{other}?"),
    }
}

const HOLD: Duration = Duration::from_millis(300);

/// A green context and a stream of it.
fn green_context(cuda: &Driver) -> (CUgreenCtx, CUstream) {
    let (mut all, mut part) = ([0u64; 18], [0u64; 18]);
    ok(cuda.cuDeviceGetDevResource(0, all.as_mut_ptr().cast(), 1));
    let mut groups = 1;
    ok(cuda.cuDevSmResourceSplitByCount(
        part.as_mut_ptr().cast(),
        &mut groups,
        all.as_ptr().cast(),
        std::ptr::null_mut(),
        0,
        16,
    ));
    let mut description = std::ptr::null_mut();
    let (mut green, mut stream) = (std::ptr::null_mut(), std::ptr::null_mut());
    ok(cuda.cuDevResourceGenerateDesc(&mut description, part.as_ptr().cast(), 1));
    ok(cuda.cuGreenCtxCreate(&mut green, description, 0, 1));
    ok(cuda.cuGreenCtxStreamCreate(&mut stream, green, CU_STREAM_NON_BLOCKING, 0));
    (green, stream)
}

extern "C" fn hold(_: *mut c_void) {
    std::thread::sleep(HOLD);
}

/// The program never asks for the primary context: its memory is of a context of its own, its work is green.
fn green() {
    let cuda = Driver::reach();
    ok(cuda.cuInit(0));
    let mut own = std::ptr::null_mut();
    ok(cuda.cuCtxCreate_v2(&mut own, 0, 0));
    let gpu = Gpu {
        cuda,
        device: 0,
        context: own,
    };
    let cuda = &gpu.cuda;
    let (green, stream) = green_context(cuda);
    let n = 12 << 20;
    let (p, q) = (gpu.alloc(n), gpu.alloc(n));
    gpu.write(p, &pattern(1, n));
    ok(cuda.cuCtxSynchronize());
    ok(cuda.cuLaunchHostFunc(stream, hold, std::ptr::null_mut()));
    ok(cuda.cuMemcpyDtoDAsync_v2(q, p, n, stream));
    gpu.free(p);
    println!("busy after the free: {}", cuda.cuStreamQuery(stream));
    let r = gpu.alloc(n);
    ok(cuda.cuMemsetD8_v2(r, 0xFF, n));
    ok(cuda.cuStreamSynchronize(stream));
    assert!(gpu.read(q, n) == pattern(1, n), "work in flight lost its memory");
    gpu.free(q);
    gpu.free(r);
    ok(cuda.cuGreenCtxDestroy(green));
    ok(cuda.cuCtxDestroy_v2(own));
}

/// What is allocated with a green context current is the primary context's.
fn green_memory() {
    let gpu = Gpu::open();
    let cuda = &gpu.cuda;
    let (green, _) = green_context(cuda);
    let mut context = std::ptr::null_mut();
    ok(cuda.cuCtxFromGreenCtx(&mut context, green));
    ok(cuda.cuCtxSetCurrent(context));
    let (large, small) = (gpu.alloc(12 << 20), gpu.alloc(100));
    for p in [large, small] {
        let owner = gpu.attribute(p, CU_POINTER_ATTRIBUTE_CONTEXT);
        println!("the primary one: {}", owner == Ok(gpu.context as u64));
    }
    gpu.enter();
    gpu.write(large, &pattern(3, 12 << 20));
    println!("destroyed: {}", cuda.cuGreenCtxDestroy(green));
    println!("again: {}", cuda.cuGreenCtxDestroy(green));
    assert!(gpu.read(large, 12 << 20) == pattern(3, 12 << 20));
    gpu.free(large);
    gpu.free(small);
}

/// The last reference takes the memory along.
fn detach() {
    let gpu = Gpu::open();
    let cuda = &gpu.cuda;
    let (mut own, mut again) = (std::ptr::null_mut(), std::ptr::null_mut());
    ok(cuda.cuCtxCreate_v2(&mut own, 0, 0));
    let (large, small) = (gpu.alloc(12 << 20), gpu.alloc(100));
    gpu.write(large, &pattern(5, 12 << 20));
    println!("attach: {} {}", cuda.cuCtxAttach(&mut again, 0), again == own);
    println!("detach: {}", cuda.cuCtxDetach(own));
    assert!(gpu.read(large, 12 << 20) == pattern(5, 12 << 20));
    println!("detach another's: {}", cuda.cuCtxDetach(gpu.context));
    gpu.enter();
    let mut primary = std::ptr::null_mut();
    ok(cuda.cuDevicePrimaryCtxRetain(&mut primary, gpu.device));
    let kept = gpu.alloc(12 << 20);
    println!("detach the primary one: {}", cuda.cuCtxDetach(primary));
    gpu.write(kept, &pattern(6, 12 << 20));
    assert!(gpu.read(kept, 12 << 20) == pattern(6, 12 << 20));
    gpu.free(kept);
    ok(cuda.cuCtxSetCurrent(own));
    println!("detach: {}", cuda.cuCtxDetach(own));
    for (name, p) in [("large", large), ("small", small)] {
        println!("{name}: {}", cuda.cuMemFree_v2(p));
    }
    gpu.works(4, 14 << 20);
}

/// The context below on the stack is destroyed by another thread, then the one above it by this.
fn below() {
    let gpu = Gpu::open();
    let cuda = &gpu.cuda;
    let (mut lower, mut upper) = (std::ptr::null_mut(), std::ptr::null_mut());
    ok(cuda.cuCtxCreate_v2(&mut lower, 0, 0));
    ok(cuda.cuCtxCreate_v2(&mut upper, 0, 0));
    let large = gpu.alloc(12 << 20);
    let lower_address = lower as usize;
    std::thread::scope(|s| {
        s.spawn(move || ok(cuda.cuCtxDestroy_v2(lower_address as CUcontext)));
    });
    ok(cuda.cuCtxDestroy_v2(upper));
    println!("free: {}", cuda.cuMemFree_v2(large));
    gpu.enter();
    gpu.works(4, 14 << 20);
}

/// While a free waits for the first context, a capture begins in the second one, and goes on.
fn capture_meanwhile() {
    let gpu = Gpu::open();
    let cuda = &gpu.cuda;
    let (p, stream) = (gpu.alloc(12 << 20), gpu.stream(CU_STREAM_NON_BLOCKING));
    let mut own = std::ptr::null_mut();
    ok(cuda.cuCtxCreate_v2(&mut own, 0, 0));
    let theirs = gpu.stream(CU_STREAM_NON_BLOCKING);
    gpu.enter();
    ok(cuda.cuLaunchHostFunc(stream, hold, std::ptr::null_mut()));
    let (own, theirs) = (own as usize, theirs as usize);
    std::thread::scope(|s| {
        s.spawn(move || {
            ok(cuda.cuCtxSetCurrent(own as CUcontext));
            std::thread::sleep(HOLD / 4);
            let mut graph = std::ptr::null_mut();
            let theirs = theirs as CUstream;
            ok(cuda.cuStreamBeginCapture_v2(theirs, CU_STREAM_CAPTURE_MODE_RELAXED));
            std::thread::sleep(HOLD * 2);
            println!("end of the capture: {}", cuda.cuStreamEndCapture(theirs, &mut graph));
        });
        gpu.free(p);
    });
    gpu.works(8, 14 << 20);
}

/// Contexts are made and destroyed by some threads while others free memory: each free drains all contexts.
fn come_and_go() {
    let gpu = Gpu::open();
    let cuda = &gpu.cuda;
    let kernels = Kernels::load(&gpu);
    let over = AtomicBool::new(false);
    std::thread::scope(|s| {
        let makers: Vec<_> = (0..3u64)
            .map(|maker| {
                let gpu = &gpu;
                s.spawn(move || {
                    for round in 0..60 {
                        let mut own = std::ptr::null_mut();
                        ok(cuda.cuCtxCreate_v2(&mut own, 0, 0));
                        let n = 3 << 20;
                        let p = gpu.alloc(n);
                        gpu.write(p, &pattern(maker * 1000 + round, n));
                        ok(cuda.cuMemsetD8Async(p, 7, 512, std::ptr::null_mut()));
                        assert!(gpu.read(p, n)[512..] == pattern(maker * 1000 + round, n)[512..]);
                        // Half of them leave their memory to the destruction.
                        if round % 2 == 0 {
                            gpu.free(p);
                        }
                        ok(cuda.cuCtxDestroy_v2(own));
                    }
                })
            })
            .collect();
        for thread in 0..2u64 {
            let (gpu, kernels, over) = (&gpu, &kernels, &over);
            s.spawn(move || {
                gpu.enter();
                let stream = gpu.stream(CU_STREAM_NON_BLOCKING);
                let wrong = gpu.alloc(8);
                gpu.write(wrong, &[0; 8]);
                let mut round = 0;
                while !over.load(SeqCst) {
                    let words = (4 << 20) / 8;
                    let p = gpu.alloc(words as usize * 8);
                    kernels.fill(gpu, stream, p, words, thread + round);
                    kernels.check(gpu, stream, p, words, thread + round, wrong);
                    gpu.free(p);
                    round += 1;
                }
                assert_eq!(gpu.read(wrong, 8), [0; 8], "bytes changed");
                gpu.free(wrong);
            });
        }
        for maker in makers {
            let done = maker.join();
            over.store(true, SeqCst);
            done.expect("a maker of contexts");
        }
    });
}
