//! Arguments of launches.

use std::ffi::c_void;
use std::ptr;

use greenboost_abi::*;

use crate::api::MISSING;
use crate::bench::Bench;
use crate::told::Told;

pub(super) fn arguments(told: &Told) {
    let b = Bench::open();
    let function = b.function("gb_axpy");
    let (mut offset, mut size) = (0, 0);
    for i in 0..5 {
        let want = if i < 4 { (0, i * 8, 8) } else { (1, 24, 8) };
        match b
            .cu
            .cuFuncGetParamInfo(function, i, Some(&mut offset), Some(&mut size))
        {
            MISSING | CUDA_ERROR_NOT_SUPPORTED => {
                told.note("no cuFuncGetParamInfo before driver 12.4");
                break;
            }
            code => told.is(format!("parameter {i}"), (code, offset, size), want),
        }
    }
    let p = b.alloc(64);
    b.write(p, 40);
    let args = [p, 1, 2];
    let bytes = size_of_val(&args);
    let extra: [*const c_void; 5] = [
        CU_LAUNCH_PARAM_BUFFER_POINTER as *const c_void,
        args.as_ptr().cast(),
        CU_LAUNCH_PARAM_BUFFER_SIZE as *const c_void,
        (&raw const bytes).cast(),
        CU_LAUNCH_PARAM_END as *const c_void,
    ];
    let f = b.function("gb_add");
    let code =
        b.cu.cuLaunchKernel(f, 1, 1, 1, 32, 1, 1, 0, 0, ptr::null(), extra.as_ptr());
    told.is("launch with `extra`", code, 0);
    told.is("what it did", b.read(p), Ok(42));
}
