//! Host callbacks.

use std::ffi::c_void;
use std::sync::atomic::{AtomicI32, Ordering::SeqCst};

use greenboost_abi::CUDA_ERROR_NOT_PERMITTED;

use crate::api::Driver;
use crate::bench::{Bench, MIB};
use crate::told::Told;

/// What the callback is given, and what it finds.
struct Inside {
    cu: *const Driver,
    context: usize,
    synchronise: AtomicI32,
    alloc: AtomicI32,
    done: AtomicI32,
}

extern "C" fn inside(user: *mut c_void) {
    // SAFETY: the check below outlives the callback: it waits for the stream.
    let (inside, cu) = unsafe {
        let inside = &*user.cast::<Inside>();
        (inside, &*inside.cu)
    };
    cu.cuCtxSetCurrent(inside.context);
    inside
        .alloc
        .store(cu.cuMemAlloc_v2(Some(&mut 0), MIB), SeqCst);
    inside.synchronise.store(cu.cuCtxSynchronize(), SeqCst);
    inside.done.store(1, SeqCst);
}

pub(super) fn refused(told: &Told) {
    let b = Bench::open();
    let s = b.stream(1);
    let never = || AtomicI32::new(-2);
    let found = Inside {
        cu: &b.cu,
        context: b.context,
        synchronise: never(),
        alloc: never(),
        done: never(),
    };
    let user = (&raw const found).cast_mut().cast();
    told.is(
        "cuLaunchHostFunc",
        b.cu.cuLaunchHostFunc(s, inside, user),
        0,
    );
    told.is("the stream", b.cu.cuStreamSynchronize(s), 0);
    told.is("it ran", found.done.load(SeqCst), 1);
    told.is(
        "cuMemAlloc inside",
        found.alloc.load(SeqCst),
        CUDA_ERROR_NOT_PERMITTED,
    );
    told.is(
        "cuCtxSynchronize inside",
        found.synchronise.load(SeqCst),
        CUDA_ERROR_NOT_PERMITTED,
    );
    told.is("the context afterwards", b.cu.cuCtxSynchronize(), 0);
}
