//! Takes and gives back memory in several threads, as much as it can get, beside other processes that do the same.

use victim::gpu::Gpu;
use victim::*;

fn main() {
    let gpu = Gpu::open();
    let seed: u64 = argument(1).parse().expect("seed");
    let threads: u64 = argument(2).parse().expect("threads");
    let rounds: u64 = argument(3).parse().expect("rounds");
    let largest: u64 = argument(4).parse().expect("largest, MiB");
    std::thread::scope(|s| {
        for t in 0..threads {
            let gpu = &gpu;
            s.spawn(move || {
                gpu.enter();
                let mut numbers = Numbers(seed * 1000 + t);
                let mut held: Vec<(CUdeviceptr, usize, u8)> = Vec::new();
                for round in 0..rounds {
                    let n = 1 + numbers.below(largest << 20) as usize;
                    match gpu.try_alloc(n) {
                        Ok(p) => {
                            let value = numbers.draw() as u8;
                            ok(gpu.cuda.cuMemsetD8_v2(p, value, n));
                            held.push((p, n, value));
                        }
                        Err(CUDA_ERROR_OUT_OF_MEMORY) => {}
                        Err(e) => panic!("error {e} in round {round}"),
                    }
                    while held.len() > 3 || (!held.is_empty() && numbers.below(3) == 0) {
                        let at = numbers.below(held.len() as u64) as usize;
                        let (p, n, value) = held.swap_remove(at);
                        let edges = [0, n / 2, n - 1];
                        for e in edges {
                            assert_eq!(gpu.read(p + e as u64, 1), [value], "a byte changed");
                        }
                        gpu.free(p);
                    }
                }
                for (p, ..) in held {
                    gpu.free(p);
                }
            });
        }
    });
    println!("done");
}
