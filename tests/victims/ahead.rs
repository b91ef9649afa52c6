//! Linked to a function of a driver of the future: the loader binds it, nobody looks it up.
#![allow(non_snake_case)]

use victim::*;

#[link(name = "cuda")]
unsafe extern "C" {
    fn cuFutureCopyAsync(
        to: CUdeviceptr,
        from: CUdeviceptr,
        bytes: usize,
        stream: CUstream,
    ) -> CUresult;
}

fn main() {
    let gpu = gpu::Gpu::open();
    let n = 3_000_001;
    let (from, to) = (gpu.alloc(n), gpu.alloc(n));
    let data = pattern(9, n);
    gpu.write(from, &data);
    if std::env::args().any(|a| a == "call") {
        // SAFETY: two ranges of this many bytes.
        ok(unsafe { cuFutureCopyAsync(to, from, n, std::ptr::null_mut()) });
        assert!(gpu.read(to, n) == data, "bytes changed");
    }
    println!("done");
    gpu.free(from);
    gpu.free(to);
}
