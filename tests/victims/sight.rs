//! Memory that others are to reach without this process's calls: `SYNC_MEMOPS`, tokens, descriptors of ranges.

use victim::gpu::{Gpu, Kernels};
use victim::*;

const N: usize = 6 << 20;

/// Whether a call returns only when the kernel before it is done.
fn waits(gpu: &Gpu, kernels: &Kernels, call: &dyn Fn() -> CUresult) -> bool {
    let mut event = std::ptr::null_mut();
    ok(gpu.cuda.cuEventCreate(&mut event, 2));
    kernels.spin(gpu, std::ptr::null_mut(), 300_000_000);
    ok(gpu.cuda.cuEventRecord(event, std::ptr::null_mut()));
    ok(call());
    let passed = gpu.cuda.cuEventQuery(event) == CUDA_SUCCESS;
    ok(gpu.cuda.cuCtxSynchronize());
    ok(gpu.cuda.cuEventDestroy_v2(event));
    passed
}

fn main() {
    let gpu = Gpu::open();
    let cuda = &gpu.cuda;
    let kernels = Kernels::load(&gpu);
    let set = |p: CUdeviceptr, on: c_uint| {
        let value = (&raw const on).cast();
        cuda.cuPointerSetAttribute(value, CU_POINTER_ATTRIBUTE_SYNC_MEMOPS, p)
    };
    let get = |p| gpu.attribute(p, CU_POINTER_ATTRIBUTE_SYNC_MEMOPS).map(|v| v & 1);
    let plain = gpu.alloc(N);
    let marked = gpu.alloc(N);
    let fill = |p: CUdeviceptr| move || cuda.cuMemsetD8_v2(p, 3, 1 << 20);
    let copy = |to: CUdeviceptr, from: CUdeviceptr| move || cuda.cuMemcpyDtoD_v2(to, from, 1 << 20);
    let same = |p: CUdeviceptr| move || cuda.cuMemcpy(p, p + (2 << 20), 1 << 20);
    println!("first {:?} {:?}", get(plain), get(marked));
    println!("set {} {}", set(marked + 4096, 1), set(0x1234, 1));
    println!("then {:?} {:?}", get(plain), get(marked + N as u64 - 1));
    println!("memset {} {}", waits(&gpu, &kernels, &fill(plain)), waits(&gpu, &kernels, &fill(marked)));
    println!(
        "copies {} {} {} {}",
        waits(&gpu, &kernels, &copy(plain, plain + (3 << 20))),
        waits(&gpu, &kernels, &copy(plain, marked)),
        waits(&gpu, &kernels, &copy(marked, plain)),
        waits(&gpu, &kernels, &same(marked)),
    );
    let later = || cuda.cuMemsetD8Async(marked, 3, 1 << 20, std::ptr::null_mut());
    println!("asynchronous {}", waits(&gpu, &kernels, &later));
    println!("cleared {}", set(marked, 0));
    println!("then {:?}, memset {}", get(marked), waits(&gpu, &kernels, &fill(marked)));
    // Whoever asks for tokens has it set. Host memory has none.
    if argument(1) == "tokens" {
        let tokens = gpu.attribute(plain, CU_POINTER_ATTRIBUTE_P2P_TOKENS).is_ok();
        println!("tokens {tokens}, then {:?}", get(plain));
    }
    println!("memset {}", waits(&gpu, &kernels, &fill(plain)));
    let id = |p| gpu.attribute(p, CU_POINTER_ATTRIBUTE_BUFFER_ID);
    println!("one buffer {}", id(plain) == id(plain + N as u64 - 1) && id(plain) != id(marked));
    let mut fd: c_int = -1;
    let out = (&raw mut fd).cast();
    println!("descriptor {}", cuda.cuMemGetHandleForAddressRange(out, marked, N, 1, 0));
    gpu.free(plain);
    gpu.free(marked);
}
