//! Linked to libcuda and opened with `RTLD_DEEPBIND`: its calls go straight to the driver.
#![allow(non_snake_case)]

use victim::*;

#[link(name = "cuda")]
unsafe extern "C" {
    safe fn cuMemAlloc_v2(pointer: &mut CUdeviceptr, bytes: usize) -> CUresult;
    fn cuMemcpyHtoD_v2(to: CUdeviceptr, from: *const c_void, bytes: usize) -> CUresult;
    safe fn cuMemFree_v2(pointer: CUdeviceptr) -> CUresult;
}

#[unsafe(no_mangle)]
pub extern "C" fn deep_alloc(bytes: usize, seed: u64) -> CUdeviceptr {
    let mut p = 0;
    ok(cuMemAlloc_v2(&mut p, bytes));
    let data = pattern(seed, bytes);
    // SAFETY: a live buffer and a live allocation of this length.
    ok(unsafe { cuMemcpyHtoD_v2(p, data.as_ptr().cast(), bytes) });
    p
}

#[unsafe(no_mangle)]
pub extern "C" fn deep_free(p: CUdeviceptr) {
    ok(cuMemFree_v2(p));
}
