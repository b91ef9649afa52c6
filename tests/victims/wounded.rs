//! The shim panics in a call: that call fails with 999, and everything else goes on.

use victim::gpu::Gpu;
use victim::*;

const UNKNOWN: CUresult = 999;
const LARGE: usize = 12 << 20;

fn main() {
    let gpu = Gpu::open();
    let cuda = &gpu.cuda;
    match argument(1).as_str() {
        "alloc" => {
            let held = hold(&gpu);
            assert_eq!(gpu.try_alloc(LARGE), Err(UNKNOWN));
            live_on(&gpu, held);
        }
        "free" => {
            let mut held = hold(&gpu);
            gpu.free(held.remove(0).0);
            // The free that fails has freed nothing.
            assert_eq!(cuda.cuMemFree_v2(held[0].0), UNKNOWN);
            live_on(&gpu, held);
        }
        "info" => {
            let held = hold(&gpu);
            let (mut free, mut total) = (7, 7);
            for call in 0..5 {
                let result = cuda.cuMemGetInfo_v2(&mut free, &mut total);
                assert_eq!(result, if call == 0 { 0 } else { UNKNOWN });
            }
            live_on(&gpu, held);
        }
        "capture" => {
            let held = hold(&gpu);
            let stream = gpu.stream(CU_STREAM_NON_BLOCKING);
            let mode = CU_STREAM_CAPTURE_MODE_RELAXED;
            ok(cuda.cuStreamBeginCapture_v2(stream, mode));
            ok(cuda.cuMemsetD8Async(held[1].0, 0x77, LARGE, stream));
            assert_eq!(gpu.try_alloc(LARGE), Err(UNKNOWN));
            gpu.free(held[0].0);
            let (mut graph, mut exec) = (std::ptr::null_mut(), std::ptr::null_mut());
            ok(cuda.cuStreamEndCapture(stream, &mut graph));
            ok(cuda.cuGraphInstantiateWithFlags(&mut exec, graph, 0));
            ok(cuda.cuGraphLaunch(exec, stream));
            ok(cuda.cuStreamSynchronize(stream));
            assert!(gpu.read(held[1].0, LARGE).iter().all(|b| *b == 0x77));
            ok(cuda.cuGraphExecDestroy(exec));
            ok(cuda.cuGraphDestroy(graph));
            live_on(&gpu, vec![held[2].clone()]);
            gpu.free(held[1].0);
        }
        other => panic!("{other}?"),
    }
    println!("went on");
}

type Held = (CUdeviceptr, Vec<u8>);

/// Three allocations, the first of them in both tiers, with bytes in them.
fn hold(gpu: &Gpu) -> Vec<Held> {
    (0..3)
        .map(|n| {
            let p = gpu.alloc(LARGE);
            let bytes = pattern(n, LARGE);
            gpu.write(p, &bytes);
            (p, bytes)
        })
        .collect()
}

/// What is owned is described, read, written and freed; new memory is the driver's.
fn live_on(gpu: &Gpu, held: Vec<Held>) {
    let cuda = &gpu.cuda;
    for (p, bytes) in &held {
        let (mut base, mut size) = (0, 0);
        ok(cuda.cuMemGetAddressRange_v2(&mut base, &mut size, p + 5));
        assert_eq!((base, size), (*p, LARGE));
        let kind = gpu.attribute(p + LARGE as u64 - 1, CU_POINTER_ATTRIBUTE_MEMORY_TYPE);
        assert_eq!(kind, Ok(CU_MEMORYTYPE_DEVICE.into()));
        assert!(gpu.read(*p, LARGE) == *bytes, "bytes changed");
    }
    // More than the budget has left: nobody places it any more, so it is all on the card.
    let new = gpu.try_alloc(100 << 20).expect("the driver has room");
    ok(cuda.cuMemsetD8_v2(new, 3, 100 << 20));
    ok(cuda.cuMemcpyDtoD_v2(new, held[0].0, LARGE));
    assert!(gpu.read(new, LARGE) == held[0].1);
    let (mut base, mut size) = (0, 0);
    ok(cuda.cuMemGetAddressRange_v2(&mut base, &mut size, new + 5));
    assert_eq!((base, size), (new, 100 << 20));
    gpu.free(new);
    // Frees wait for what is in flight, still.
    let stream = gpu.stream(CU_STREAM_NON_BLOCKING);
    for (p, _) in &held {
        ok(cuda.cuMemsetD8Async(*p, 9, LARGE, stream));
        gpu.free(*p);
    }
    ok(cuda.cuStreamDestroy_v2(stream));
    let small = gpu.alloc(100);
    gpu.free(small);
    assert_eq!(cuda.cuMemFree_v2(small + 1), CUDA_ERROR_INVALID_VALUE);
    ok(cuda.cuCtxSynchronize());
}
