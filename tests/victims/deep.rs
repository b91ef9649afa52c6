//! Uses a library that is bound past every interposer, beside its own calls.

use victim::sys::{self, RTLD_DEEPBIND, RTLD_NOW};
use victim::*;

fn main() {
    let gpu = gpu::Gpu::open();
    let library = sys::open(Some(&argument(1)), RTLD_NOW | RTLD_DEEPBIND);
    let (alloc, free) = (
        sys::symbol(library, "deep_alloc"),
        sys::symbol(library, "deep_free"),
    );
    // SAFETY: those are the types of the library's functions.
    let (alloc, free) = unsafe {
        (
            std::mem::transmute::<*mut c_void, extern "C" fn(usize, u64) -> CUdeviceptr>(alloc),
            std::mem::transmute::<*mut c_void, extern "C" fn(CUdeviceptr)>(free),
        )
    };
    for bytes in [200, 5 << 20] {
        let theirs = [alloc(bytes, 1), alloc(bytes, 2)];
        let ours = gpu.alloc(bytes);
        ok(gpu.cuda.cuMemcpyDtoD_v2(ours, theirs[1], bytes));
        assert!(gpu.read(ours, bytes) == pattern(2, bytes));
        let (mut base, mut size) = (0, 0);
        ok(gpu
            .cuda
            .cuMemGetAddressRange_v2(&mut base, &mut size, theirs[0] + 5));
        println!("{} {size}", base == theirs[0]);
        println!("kind {:?}", gpu.attribute(theirs[0], 2));
        gpu.free(ours);
        // Freed by whom it came from, and by the program.
        free(theirs[0]);
        gpu.free(theirs[1]);
    }
    println!("done");
}
