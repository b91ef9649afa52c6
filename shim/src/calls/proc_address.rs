//! `cuGetProcAddress` and `_v2`: the driver answers, and intercepted functions are substituted by the returned address.
//!
//! So versions, `_v2` names and per-thread-stream flags need no table: `dlsym` and `cuGetProcAddress` return equal
//! addresses (measured on driver 580). What the driver lacks stays missing; what the shim neither intercepts nor knows
//! comes behind a stub.

use std::ffi::{CStr, c_char, c_int, c_ulonglong, c_void};

use greenboost_abi::*;

use crate::hooks::{self, real};
use crate::mediation;

/// Replaces the lookup of CUDA 11.3 to 11.8.
///
/// # Safety
/// As for `cuGetProcAddress`.
pub unsafe fn v1(
    name: *const c_char,
    out: *mut *mut c_void,
    version: c_int,
    flags: c_ulonglong,
) -> CUresult {
    // SAFETY: the program's own call.
    unsafe {
        let result = real::cuGetProcAddress(name, out, version, flags);
        substitute(result, name, out);
        result
    }
}

/// Replaces the lookup since CUDA 12.0.
///
/// # Safety
/// As for `cuGetProcAddress_v2`.
pub unsafe fn v2(
    name: *const c_char,
    out: *mut *mut c_void,
    version: c_int,
    flags: c_ulonglong,
    status: *mut c_int,
) -> CUresult {
    // SAFETY: the program's own call.
    unsafe {
        let result = real::cuGetProcAddress_v2(name, out, version, flags, status);
        substitute(result, name, out);
        result
    }
}

/// # Safety
/// After a success `name` is a C string, and `out` points to the answer.
unsafe fn substitute(result: CUresult, name: *const c_char, out: *mut *mut c_void) {
    if result != CUDA_SUCCESS || name.is_null() || out.is_null() {
        return;
    }
    // SAFETY: the driver has just written it.
    unsafe {
        let address = *out as usize;
        if address != 0 {
            *out = hooks::replacement(address)
                .unwrap_or_else(|| mediation::hand_out(address, CStr::from_ptr(name)))
                as *mut c_void;
        }
    }
}
