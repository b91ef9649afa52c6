//! Uses memory while driver calls fail now and then: an error is an answer, wrong bytes are not.

use victim::gpu::Gpu;
use victim::*;

fn main() {
    // The beginning may fail as well; then it is tried once more.
    let cuda = Driver::reach();
    if cuda.cuInit(0) != 0 {
        ok(cuda.cuInit(0));
    }
    let mut device = -1;
    ok(cuda.cuDeviceGet(&mut device, 0));
    let mut context = std::ptr::null_mut();
    if cuda.cuDevicePrimaryCtxRetain(&mut context, device) != 0 {
        ok(cuda.cuDevicePrimaryCtxRetain(&mut context, device));
    }
    ok(cuda.cuCtxSetCurrent(context));
    let gpu = Gpu {
        cuda,
        device,
        context,
    };
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
    // All that there is: a reservation that was not undone would be missing.
    let mut all = Vec::new();
    while let Ok(p) = gpu.try_alloc(2 << 20) {
        all.push(p);
    }
    println!("~ pieces {}", all.len());
    for p in all {
        gpu.free(p);
    }
    println!("freed");
    std::io::stdin()
        .read_line(&mut String::new())
        .expect("stdin");
}
