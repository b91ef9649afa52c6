//! Launches of kernels: they pass the gate, and what their arguments point to is noted.
//!
//! The note is made after a launch that the driver has accepted: what it refuses may have arguments that cannot be read.

use std::ffi::{c_uint, c_void};

use greenboost_abi::*;

use crate::hooks::real;
use crate::tier::access;
use crate::tier::gate::{self, Pass};
use crate::tier::staging::admit::{self, Admission};

macro_rules! launches {
    ($($ours:ident = $real:ident($($arg:ident: $ty:ty),*) with $f:expr, $params:expr, $extra:expr, on $stream:expr, $own:literal;)*) => {$(
        #[doc = concat!("Replaces `", stringify!($real), "`.")]
        ///
        /// # Safety
        /// As for the function it replaces.
        #[allow(clippy::too_many_arguments)]
        #[inline(always)]
        pub unsafe fn $ours($($arg: $ty),*) -> CUresult {
            let pass = gate::pass();
            // SAFETY: the program's own call.
            unsafe {
                let admission = admit::launch($f, $params, $extra, || $stream, $own);
                let result = real::$real($($arg),*);
                if result == CUDA_SUCCESS {
                    access::launched($f, $params, $extra);
                }
                match admission {
                    Some(admission) => staged(admission, pass, result),
                    None => result,
                }
            }
        }
    )*};
}

const NONE: *mut *mut c_void = std::ptr::null_mut();

launches! {
    kernel = cuLaunchKernel(f: CUfunction, gx: c_uint, gy: c_uint, gz: c_uint, bx: c_uint, by: c_uint, bz: c_uint, shared: c_uint, stream: CUstream, params: *mut *mut c_void, extra: *mut *mut c_void)
        with f, params, extra, on stream, false;
    kernel_ptsz = cuLaunchKernel_ptsz(f: CUfunction, gx: c_uint, gy: c_uint, gz: c_uint, bx: c_uint, by: c_uint, bz: c_uint, shared: c_uint, stream: CUstream, params: *mut *mut c_void, extra: *mut *mut c_void)
        with f, params, extra, on stream, true;
    kernel_ex = cuLaunchKernelEx(config: *const CUlaunchConfig, f: CUfunction, params: *mut *mut c_void, extra: *mut *mut c_void)
        with f, params, extra, on config.as_ref().map_or(std::ptr::null_mut(), |c| c.hStream), false;
    kernel_ex_ptsz = cuLaunchKernelEx_ptsz(config: *const CUlaunchConfig, f: CUfunction, params: *mut *mut c_void, extra: *mut *mut c_void)
        with f, params, extra, on config.as_ref().map_or(std::ptr::null_mut(), |c| c.hStream), true;
    cooperative = cuLaunchCooperativeKernel(f: CUfunction, gx: c_uint, gy: c_uint, gz: c_uint, bx: c_uint, by: c_uint, bz: c_uint, shared: c_uint, stream: CUstream, params: *mut *mut c_void)
        with f, params, NONE, on stream, false;
    cooperative_ptsz = cuLaunchCooperativeKernel_ptsz(f: CUfunction, gx: c_uint, gy: c_uint, gz: c_uint, bx: c_uint, by: c_uint, bz: c_uint, shared: c_uint, stream: CUstream, params: *mut *mut c_void)
        with f, params, NONE, on stream, true;
}

/// Behind a launch that names staged memory.
///
/// # Safety
/// The admission and the result of this launch.
#[cold]
unsafe fn staged(admission: Admission, pass: Pass, result: CUresult) -> CUresult {
    // SAFETY: the caller's promise.
    let watch = unsafe { admit::launched(admission, result) };
    drop(pass);
    watch.into_iter().for_each(admit::watch);
    result
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
        if admit::active() && !list.is_null() {
            for launch in std::slice::from_raw_parts(list, count as usize) {
                admit::held(launch.function, launch.kernelParams);
            }
        }
        let result = real::cuLaunchCooperativeKernelMultiDevice(list, count, flags);
        if result == CUDA_SUCCESS && access::noting() {
            for launch in std::slice::from_raw_parts(list, count as usize) {
                access::launched(launch.function, launch.kernelParams, NONE);
            }
        }
        result
    }
}
