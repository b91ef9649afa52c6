//! Many threads allocate, free, launch, copy and ask, all at once; each checks its own bytes.

use std::sync::Barrier;

use victim::gpu::{Gpu, Kernels};
use victim::*;

fn main() {
    let gpu = Gpu::open();
    let kernels = Kernels::load(&gpu);
    let threads: u64 = argument(1).parse().expect("threads");
    let rounds: u64 = argument(2).parse().expect("rounds");
    let start = Barrier::new(threads as usize);
    let refused: u64 = std::thread::scope(|s| {
        let all: Vec<_> = (0..threads)
            .map(|t| {
                let (gpu, kernels, start) = (&gpu, &kernels, &start);
                s.spawn(move || {
                    start.wait();
                    one(gpu, kernels, t, rounds)
                })
            })
            .collect();
        all.into_iter().map(|t| t.join().expect("a thread")).sum()
    });
    ok(gpu.cuda.cuCtxSynchronize());
    println!("~ refused {refused}");
    println!("done");
}

/// One thread's rounds. Returns how many requests were refused for want of memory.
fn one(gpu: &Gpu, kernels: &Kernels, thread: u64, rounds: u64) -> u64 {
    gpu.enter();
    let cuda = &gpu.cuda;
    let stream = gpu.stream(CU_STREAM_NON_BLOCKING);
    let mut numbers = Numbers(thread + 1);
    let mut refused = 0;
    for round in 0..rounds {
        let n = match numbers.below(3) {
            0 => 8 + 8 * numbers.below(500) as usize,
            1 => 8 * (1 + numbers.below(200_000) as usize),
            _ => (2 << 20) + 8 * numbers.below(400_000) as usize,
        };
        let p = match gpu.try_alloc(n) {
            Ok(p) => p,
            Err(CUDA_ERROR_OUT_OF_MEMORY) => {
                refused += 1;
                continue;
            }
            Err(e) => panic!("error {e} in round {round} of {thread}"),
        };
        let words = n as u64 / 8;
        let value = numbers.draw() >> 1;
        kernels.fill(gpu, stream, p, words, value);
        kernels.add(gpu, stream, p, words, 7);
        let (mut base, mut size) = (0, 0);
        ok(cuda.cuMemGetAddressRange_v2(&mut base, &mut size, p + n as u64 / 2));
        assert_eq!((base, size), (p, n));
        assert_eq!(gpu.attribute(p, CU_POINTER_ATTRIBUTE_MEMORY_TYPE), Ok(2));
        let (free, total) = gpu.memory();
        assert!(free <= total);
        let mut host = std::ptr::null_mut();
        match cuda.cuMemHostAlloc(&mut host, n.min(65_536), 0) {
            0 => {
                ok(cuda.cuMemcpyDtoHAsync_v2(host, p, n.min(65_536), stream));
                ok(cuda.cuStreamSynchronize(stream));
                ok(cuda.cuMemFreeHost(host));
            }
            CUDA_ERROR_OUT_OF_MEMORY => refused += 1,
            e => panic!("error {e}"),
        }
        // Minus the seven that were added, it is what was filled in.
        kernels.add(gpu, stream, p, words, 0u64.wrapping_sub(7));
        let wrong = loop {
            match gpu.try_alloc(8) {
                Ok(q) => break q,
                Err(_) => std::thread::yield_now(),
            }
        };
        ok(cuda.cuMemsetD8Async(wrong, 0, 8, stream));
        kernels.check(gpu, stream, p, words, value, wrong);
        ok(cuda.cuStreamSynchronize(stream));
        assert_eq!(gpu.read(wrong, 8), [0; 8], "words changed: thread {thread}, round {round}");
        gpu.free(wrong);
        gpu.free(p);
    }
    ok(cuda.cuStreamDestroy_v2(stream));
    refused
}
