//! Names and meanings of results.
use core::ffi::c_char;

use greenboost_abi::*;

use crate::abi::Out;

pub(crate) const UNSUPPORTED_EXEC_AFFINITY: CUresult = 224;
pub(crate) const FILE_NOT_FOUND: CUresult = 301;
pub(crate) const PEER_ACCESS_ALREADY_ENABLED: CUresult = 704;
pub(crate) const PEER_ACCESS_NOT_ENABLED: CUresult = 705;
pub(crate) const PEER_ACCESS_UNSUPPORTED: CUresult = 217;
pub(crate) const HOST_MEMORY_ALREADY_REGISTERED: CUresult = 712;
pub(crate) const HOST_MEMORY_NOT_REGISTERED: CUresult = 713;
pub(crate) const MERGE: CUresult = 902;
pub(crate) const UNMATCHED: CUresult = 903;
pub(crate) const UNJOINED: CUresult = 904;
pub(crate) const ISOLATION: CUresult = 905;
pub(crate) const CAPTURED_EVENT: CUresult = 907;

/// Code, name, meaning; both strings end with a zero.
const RESULTS: &[(CUresult, &str, &str)] = &[
    (CUDA_SUCCESS, "CUDA_SUCCESS\0", "no error\0"),
    (
        CUDA_ERROR_INVALID_VALUE,
        "CUDA_ERROR_INVALID_VALUE\0",
        "invalid argument\0",
    ),
    (
        CUDA_ERROR_OUT_OF_MEMORY,
        "CUDA_ERROR_OUT_OF_MEMORY\0",
        "out of memory\0",
    ),
    (
        CUDA_ERROR_NOT_INITIALIZED,
        "CUDA_ERROR_NOT_INITIALIZED\0",
        "initialization error\0",
    ),
    (
        CUDA_ERROR_DEINITIALIZED,
        "CUDA_ERROR_DEINITIALIZED\0",
        "driver shutting down\0",
    ),
    (
        CUDA_ERROR_NO_DEVICE,
        "CUDA_ERROR_NO_DEVICE\0",
        "no CUDA-capable device is detected\0",
    ),
    (
        CUDA_ERROR_INVALID_DEVICE,
        "CUDA_ERROR_INVALID_DEVICE\0",
        "invalid device ordinal\0",
    ),
    (
        CUDA_ERROR_INVALID_IMAGE,
        "CUDA_ERROR_INVALID_IMAGE\0",
        "device kernel image is invalid\0",
    ),
    (
        CUDA_ERROR_INVALID_CONTEXT,
        "CUDA_ERROR_INVALID_CONTEXT\0",
        "invalid device context\0",
    ),
    (
        CUDA_ERROR_INVALID_PTX,
        "CUDA_ERROR_INVALID_PTX\0",
        "a PTX JIT compilation failed\0",
    ),
    (
        UNSUPPORTED_EXEC_AFFINITY,
        "CUDA_ERROR_UNSUPPORTED_EXEC_AFFINITY\0",
        "exec affinity is not supported\0",
    ),
    (
        FILE_NOT_FOUND,
        "CUDA_ERROR_FILE_NOT_FOUND\0",
        "file not found\0",
    ),
    (
        CUDA_ERROR_INVALID_HANDLE,
        "CUDA_ERROR_INVALID_HANDLE\0",
        "invalid resource handle\0",
    ),
    (
        CUDA_ERROR_NOT_FOUND,
        "CUDA_ERROR_NOT_FOUND\0",
        "named symbol not found\0",
    ),
    (
        CUDA_ERROR_NOT_READY,
        "CUDA_ERROR_NOT_READY\0",
        "device not ready\0",
    ),
    (
        CUDA_ERROR_ILLEGAL_ADDRESS,
        "CUDA_ERROR_ILLEGAL_ADDRESS\0",
        "an illegal memory access was encountered\0",
    ),
    (
        PEER_ACCESS_ALREADY_ENABLED,
        "CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED\0",
        "peer access is already enabled\0",
    ),
    (
        PEER_ACCESS_NOT_ENABLED,
        "CUDA_ERROR_PEER_ACCESS_NOT_ENABLED\0",
        "peer access has not been enabled\0",
    ),
    (
        CUDA_ERROR_PRIMARY_CONTEXT_ACTIVE,
        "CUDA_ERROR_PRIMARY_CONTEXT_ACTIVE\0",
        "the primary context is active\0",
    ),
    (
        CUDA_ERROR_CONTEXT_IS_DESTROYED,
        "CUDA_ERROR_CONTEXT_IS_DESTROYED\0",
        "context is destroyed\0",
    ),
    (
        HOST_MEMORY_ALREADY_REGISTERED,
        "CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED\0",
        "host memory already registered\0",
    ),
    (
        HOST_MEMORY_NOT_REGISTERED,
        "CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED\0",
        "host memory is not registered\0",
    ),
    (
        716,
        "CUDA_ERROR_MISALIGNED_ADDRESS\0",
        "misaligned address\0",
    ),
    (
        CUDA_ERROR_LAUNCH_FAILED,
        "CUDA_ERROR_LAUNCH_FAILED\0",
        "unspecified launch failure\0",
    ),
    (
        CUDA_ERROR_NOT_PERMITTED,
        "CUDA_ERROR_NOT_PERMITTED\0",
        "operation not permitted\0",
    ),
    (
        CUDA_ERROR_NOT_SUPPORTED,
        "CUDA_ERROR_NOT_SUPPORTED\0",
        "operation not supported\0",
    ),
    (
        CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED,
        "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED\0",
        "not permitted during capture\0",
    ),
    (
        CUDA_ERROR_STREAM_CAPTURE_INVALIDATED,
        "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED\0",
        "the capture was invalidated\0",
    ),
    (
        MERGE,
        "CUDA_ERROR_STREAM_CAPTURE_MERGE\0",
        "two captures would be merged\0",
    ),
    (
        UNMATCHED,
        "CUDA_ERROR_STREAM_CAPTURE_UNMATCHED\0",
        "the capture was not begun in this stream\0",
    ),
    (
        UNJOINED,
        "CUDA_ERROR_STREAM_CAPTURE_UNJOINED\0",
        "captured streams were not joined\0",
    ),
    (
        ISOLATION,
        "CUDA_ERROR_STREAM_CAPTURE_ISOLATION\0",
        "a dependency crosses the capture's border\0",
    ),
    (
        CUDA_ERROR_STREAM_CAPTURE_IMPLICIT,
        "CUDA_ERROR_STREAM_CAPTURE_IMPLICIT\0",
        "a capture would depend on the legacy stream\0",
    ),
    (
        CAPTURED_EVENT,
        "CUDA_ERROR_CAPTURED_EVENT\0",
        "the event was last recorded in a capture\0",
    ),
    (
        CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD,
        "CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD\0",
        "the capture was begun by another thread\0",
    ),
    (
        CUDA_ERROR_GRAPH_EXEC_UPDATE_FAILURE,
        "CUDA_ERROR_GRAPH_EXEC_UPDATE_FAILURE\0",
        "the graph update was not possible\0",
    ),
    (
        CUDA_ERROR_UNKNOWN,
        "CUDA_ERROR_UNKNOWN\0",
        "unknown error\0",
    ),
];

fn tell(
    code: CUresult,
    out: Out<*const c_char>,
    pick: impl Fn(&(CUresult, &'static str, &'static str)) -> &'static str,
) -> crate::abi::Res {
    match RESULTS.iter().find(|row| row.0 == code) {
        Some(row) => out.set(pick(row).as_ptr().cast()),
        None => {
            out.maybe(std::ptr::null());
            Err(CUDA_ERROR_INVALID_VALUE)
        }
    }
}

api! {
    Nothing cuGetErrorName { 6000 cuGetErrorName Legacy } (code: CUresult, out: Out<*const c_char>) |_f| {
        tell(code, out, |row| row.1)
    }
    Nothing cuGetErrorString { 6000 cuGetErrorString Legacy } (code: CUresult, out: Out<*const c_char>) |_f| {
        tell(code, out, |row| row.2)
    }
}
