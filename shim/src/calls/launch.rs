//! Launches of kernels: they pass the gate, and what their arguments point to is noted.
//!
//! The note is made after a launch that the driver has accepted: what it refuses may have arguments that cannot be read.

use std::ffi::{c_uint, c_void};

use greenboost_abi::*;

use crate::hooks::real;
use crate::tier::{access, gate};

macro_rules! launches {
    ($($ours:ident = $real:ident($($arg:ident: $ty:ty),*) with $f:expr, $params:expr, $extra:expr;)*) => {$(
        #[doc = concat!("Replaces `", stringify!($real), "`.")]
        ///
        /// # Safety
        /// As for the function it replaces.
        #[allow(clippy::too_many_arguments)]
        #[inline(always)]
        pub unsafe fn $ours($($arg: $ty),*) -> CUresult {
            let _pass = gate::pass();
            // SAFETY: the program's own call.
            unsafe {
                let result = real::$real($($arg),*);
                if result == CUDA_SUCCESS {
                    access::launched($f, $params, $extra);
                }
                result
            }
        }
    )*};
}

const NONE: *mut *mut c_void = std::ptr::null_mut();

launches! {
    kernel = cuLaunchKernel(f: CUfunction, gx: c_uint, gy: c_uint, gz: c_uint, bx: c_uint, by: c_uint, bz: c_uint, shared: c_uint, stream: CUstream, params: *mut *mut c_void, extra: *mut *mut c_void)
        with f, params, extra;
    kernel_ptsz = cuLaunchKernel_ptsz(f: CUfunction, gx: c_uint, gy: c_uint, gz: c_uint, bx: c_uint, by: c_uint, bz: c_uint, shared: c_uint, stream: CUstream, params: *mut *mut c_void, extra: *mut *mut c_void)
        with f, params, extra;
    kernel_ex = cuLaunchKernelEx(config: *const CUlaunchConfig, f: CUfunction, params: *mut *mut c_void, extra: *mut *mut c_void)
        with f, params, extra;
    kernel_ex_ptsz = cuLaunchKernelEx_ptsz(config: *const CUlaunchConfig, f: CUfunction, params: *mut *mut c_void, extra: *mut *mut c_void)
        with f, params, extra;
    cooperative = cuLaunchCooperativeKernel(f: CUfunction, gx: c_uint, gy: c_uint, gz: c_uint, bx: c_uint, by: c_uint, bz: c_uint, shared: c_uint, stream: CUstream, params: *mut *mut c_void)
        with f, params, NONE;
    cooperative_ptsz = cuLaunchCooperativeKernel_ptsz(f: CUfunction, gx: c_uint, gy: c_uint, gz: c_uint, bx: c_uint, by: c_uint, bz: c_uint, shared: c_uint, stream: CUstream, params: *mut *mut c_void)
        with f, params, NONE;
}

/// Replaces `cuLaunchCooperativeKernelMultiDevice`.
///
/// # Safety
/// As for the function it replaces.
pub unsafe fn cooperative_devices(
    list: *mut CUDA_LAUNCH_PARAMS,
    count: c_uint,
    flags: c_uint,
) -> CUresult {
    let _pass = gate::pass();
    // SAFETY: the program's own call; after a success the list was good.
    unsafe {
        let result = real::cuLaunchCooperativeKernelMultiDevice(list, count, flags);
        if result == CUDA_SUCCESS && access::noting() {
            for launch in std::slice::from_raw_parts(list, count as usize) {
                access::launched(launch.function, launch.kernelParams, NONE);
            }
        }
        result
    }
}
