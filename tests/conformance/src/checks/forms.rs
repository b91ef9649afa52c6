//! The copy and memset calls, each as a form that is tried on different memory.

use std::ptr;

use greenboost_abi::*;

use super::backing::rows;
use crate::api::CopyAttributes;
use crate::bench::{Bench, MIB};
use crate::host::Host;

/// Bytes of a large form. Rectangles and boxes stay below 2 MiB, and so do the short forms.
pub(super) const LARGE: usize = 4 * MIB;

/// Which stream a form runs in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum On {
    /// The legacy stream.
    Legacy,
    /// The calling thread's own.
    Own,
    /// A blocking stream that the program made.
    Made,
}

/// A call with a destination and a source.
pub(super) struct Form<'a> {
    pub name: &'static str,
    pub on: On,
    /// Whether all of what it touches lies in the first 2 MiB.
    pub short: bool,
    pub call: Box<dyn Fn(u64, u64) -> i32 + Sync + 'a>,
}

fn form<'a>(
    name: &'static str,
    on: On,
    short: bool,
    call: impl Fn(u64, u64) -> i32 + Sync + 'a,
) -> Form<'a> {
    Form {
        name,
        on,
        short,
        call: Box::new(call),
    }
}

pub(super) fn area(to: u64, from: u64) -> CUDA_MEMCPY2D {
    rows(to, from, 1000, 100, 4096)
}

pub(super) fn cube(to: u64, from: u64, context: usize) -> CUDA_MEMCPY3D {
    CUDA_MEMCPY3D {
        srcXInBytes: 0,
        srcY: 0,
        srcZ: 0,
        srcLOD: 0,
        srcMemoryType: CU_MEMORYTYPE_DEVICE,
        srcHost: ptr::null(),
        srcDevice: from,
        srcArray: ptr::null_mut(),
        srcContext: context as CUcontext,
        srcPitch: 4096,
        srcHeight: 64,
        dstXInBytes: 0,
        dstY: 0,
        dstZ: 0,
        dstLOD: 0,
        dstMemoryType: CU_MEMORYTYPE_DEVICE,
        dstHost: ptr::null_mut(),
        dstDevice: to,
        dstArray: ptr::null_mut(),
        dstContext: context as CUcontext,
        dstPitch: 4096,
        dstHeight: 64,
        WidthInBytes: 1000,
        Height: 50,
        Depth: 4,
    }
}

/// Synchronous copies between ranges.
pub(super) fn copies(b: &Bench) -> Vec<Form<'_>> {
    let (cu, context) = (&b.cu, b.context);
    let all = vec![
        form("cuMemcpyDtoD", On::Legacy, false, move |d, s| {
            cu.cuMemcpyDtoD_v2(d, s, LARGE)
        }),
        form("cuMemcpyDtoD 64 B", On::Legacy, true, move |d, s| {
            cu.cuMemcpyDtoD_v2(d, s, 64)
        }),
        form("cuMemcpy", On::Legacy, false, move |d, s| {
            cu.cuMemcpy(d, s, LARGE)
        }),
        form("cuMemcpyPeer", On::Legacy, false, move |d, s| {
            cu.cuMemcpyPeer(d, context, s, context, LARGE)
        }),
        form("cuMemcpy2D", On::Legacy, true, move |d, s| {
            cu.cuMemcpy2D_v2(&area(d, s))
        }),
        form("cuMemcpy2DUnaligned", On::Legacy, true, move |d, s| {
            cu.cuMemcpy2DUnaligned_v2(&area(d, s))
        }),
        form("cuMemcpy3D", On::Legacy, true, move |d, s| {
            cu.cuMemcpy3D_v2(&cube(d, s, 0))
        }),
        form("cuMemcpy3DPeer", On::Legacy, true, move |d, s| {
            cu.cuMemcpy3DPeer(&cube(d, s, context))
        }),
        form("cuMemcpyDtoD_v2_ptds", On::Own, false, move |d, s| {
            cu.cuMemcpyDtoD_v2_ptds(d, s, LARGE)
        }),
        form("cuMemcpy_ptds", On::Own, false, move |d, s| {
            cu.cuMemcpy_ptds(d, s, LARGE)
        }),
        form("cuMemcpy2D_v2_ptds", On::Own, true, move |d, s| {
            cu.cuMemcpy2D_v2_ptds(&area(d, s))
        }),
    ];
    all.into_iter().filter(|f| known(b, f)).collect()
}

/// Synchronous memsets; they have no source.
pub(super) fn memsets(b: &Bench) -> Vec<Form<'_>> {
    let cu = &b.cu;
    let all = vec![
        form("cuMemsetD8", On::Legacy, false, move |d, _| {
            cu.cuMemsetD8_v2(d, 1, LARGE)
        }),
        form("cuMemsetD8 64 B", On::Legacy, true, move |d, _| {
            cu.cuMemsetD8_v2(d, 1, 64)
        }),
        form("cuMemsetD16", On::Legacy, false, move |d, _| {
            cu.cuMemsetD16_v2(d, 1, LARGE / 2)
        }),
        form("cuMemsetD32", On::Legacy, false, move |d, _| {
            cu.cuMemsetD32_v2(d, 1, LARGE / 4)
        }),
        form("cuMemsetD2D8", On::Legacy, true, move |d, _| {
            cu.cuMemsetD2D8_v2(d, 4096, 1, 1000, 100)
        }),
        form("cuMemsetD2D16", On::Legacy, true, move |d, _| {
            cu.cuMemsetD2D16_v2(d, 4096, 1, 1000, 100)
        }),
        form("cuMemsetD2D32", On::Legacy, true, move |d, _| {
            cu.cuMemsetD2D32_v2(d, 4096, 1, 1000, 100)
        }),
        form("cuMemsetD8_v2_ptds", On::Own, false, move |d, _| {
            cu.cuMemsetD8_v2_ptds(d, 1, LARGE)
        }),
        form("cuMemsetD2D8_v2_ptds", On::Own, true, move |d, _| {
            cu.cuMemsetD2D8_v2_ptds(d, 4096, 1, 1000, 100)
        }),
    ];
    all.into_iter().filter(|f| known(b, f)).collect()
}

/// Copies between a range and this process's memory that wait on VRAM and on host memory alike.
pub(super) fn transfers(b: &Bench) -> Vec<Form<'_>> {
    let (cu, plain, pinned) = (&b.cu, Host::new(LARGE).address, b.pinned(LARGE));
    vec![
        form("cuMemcpyHtoD pageable", On::Legacy, false, move |d, _| {
            cu.cuMemcpyHtoD_v2(d, plain, LARGE)
        }),
        form("cuMemcpyHtoD pageable 4K", On::Legacy, true, move |d, _| {
            cu.cuMemcpyHtoD_v2(d, plain, 4096)
        }),
        form("cuMemcpyHtoD pinned", On::Legacy, false, move |d, _| {
            cu.cuMemcpyHtoD_v2(d, pinned, LARGE)
        }),
        form("cuMemcpyDtoH pageable", On::Legacy, false, move |d, _| {
            cu.cuMemcpyDtoH_v2(plain, d, LARGE)
        }),
        form("cuMemcpyDtoH pinned", On::Legacy, false, move |d, _| {
            cu.cuMemcpyDtoH_v2(pinned, d, LARGE)
        }),
        form(
            "cuMemcpyHtoDAsync pageable",
            On::Legacy,
            false,
            move |d, _| cu.cuMemcpyHtoDAsync_v2(d, plain, LARGE, 0),
        ),
    ]
}

/// Forms that never wait.
pub(super) fn asynchronous(b: &Bench) -> Vec<Form<'_>> {
    let (cu, plain, pinned) = (&b.cu, Host::new(LARGE).address, b.pinned(LARGE));
    let (legacy, own, made) = (CU_STREAM_LEGACY, CU_STREAM_PER_THREAD, b.stream(0));
    let batch = move |d: u64, s: u64| {
        let half = LARGE as u64 / 2;
        let (to, from, sizes) = ([d, d + half], [s, s + half], [LARGE / 2, LARGE / 2]);
        let attributes = CopyAttributes {
            order: 1,
            ..Default::default()
        };
        cu.cuMemcpyBatchAsync_v2(
            Some(&to),
            Some(&from),
            Some(&sizes),
            2,
            Some(&attributes),
            Some(&0),
            1,
            made,
        )
    };
    let all = vec![
        form("cuMemcpyDtoDAsync", On::Legacy, false, move |d, s| {
            cu.cuMemcpyDtoDAsync_v2(d, s, LARGE, 0)
        }),
        form(
            "cuMemcpyDtoDAsync legacy",
            On::Legacy,
            false,
            move |d, s| cu.cuMemcpyDtoDAsync_v2(d, s, LARGE, legacy),
        ),
        form(
            "cuMemcpyDtoDAsync per thread",
            On::Own,
            false,
            move |d, s| cu.cuMemcpyDtoDAsync_v2(d, s, LARGE, own),
        ),
        form("cuMemcpyAsync", On::Legacy, false, move |d, s| {
            cu.cuMemcpyAsync(d, s, LARGE, 0)
        }),
        form("cuMemcpy2DAsync", On::Legacy, true, move |d, s| {
            cu.cuMemcpy2DAsync_v2(&area(d, s), 0)
        }),
        form("cuMemsetD8Async", On::Legacy, false, move |d, _| {
            cu.cuMemsetD8Async(d, 1, LARGE, 0)
        }),
        form("cuMemsetD32Async", On::Legacy, false, move |d, _| {
            cu.cuMemsetD32Async(d, 1, LARGE / 4, 0)
        }),
        form("cuMemcpyHtoDAsync 4K", On::Legacy, true, move |d, _| {
            cu.cuMemcpyHtoDAsync_v2(d, plain, 4096, 0)
        }),
        form(
            "cuMemcpyHtoDAsync pinned",
            On::Legacy,
            false,
            move |d, _| cu.cuMemcpyHtoDAsync_v2(d, pinned, LARGE, 0),
        ),
        form(
            "cuMemcpyDtoHAsync pinned",
            On::Legacy,
            false,
            move |d, _| cu.cuMemcpyDtoHAsync_v2(pinned, d, LARGE, 0),
        ),
        form("cuMemcpyBatchAsync", On::Made, false, batch),
    ];
    all.into_iter().filter(|f| known(b, f)).collect()
}

/// Old drivers lack some.
fn known(b: &Bench, f: &Form) -> bool {
    let name = f.name.split(' ').next().unwrap_or_default();
    let exported = if name == "cuMemcpyBatchAsync" {
        "cuMemcpyBatchAsync_v2"
    } else {
        name
    };
    let mut version = 0;
    b.cu.cuDriverGetVersion(Some(&mut version));
    (b.cu.symbol(exported).is_some() || b.cu.symbol(&format!("{exported}_v2")).is_some())
        && (name != "cuMemcpyBatchAsync" || version >= 13000)
}
