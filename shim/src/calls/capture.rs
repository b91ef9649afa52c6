//! Stream capture: the shim knows how many captures are open, because nothing may be drained or freed meanwhile
//! (PITFALLS 27).

use std::collections::HashSet;
use std::ffi::{c_int, c_void};
use std::sync::Mutex;

use greenboost_abi::*;

use crate::driver;
use crate::hooks::real;
use crate::tier::map::Handle;
use crate::tier::stream::Lane;
use crate::tier::{drain, execs, free, gate, later};

/// Streams with an open capture. The default streams stand for other streams in every thread, so they carry the thread.
static OPEN: Mutex<Option<HashSet<(usize, u64)>>> = Mutex::new(None);

fn key(stream: CUstream) -> (usize, u64) {
    let thread = match stream as usize {
        // SAFETY: no preconditions.
        0..=CU_STREAM_PER_THREAD => unsafe { libc::pthread_self() },
        _ => 0,
    };
    (stream as usize, thread)
}

fn begin_with(stream: CUstream, begin: impl FnOnce() -> CUresult) -> CUresult {
    let _pass = gate::pass();
    drain::capture_opens();
    let result = begin();
    let new = result == CUDA_SUCCESS
        && OPEN
            .lock()
            .unwrap_or_else(|e| e.into_inner())
            .get_or_insert_default()
            .insert(key(stream));
    if !new {
        drain::capture_closes();
    }
    result
}

/// Forgets a stream's capture; the last one lets queued frees go.
fn close(stream: CUstream) {
    let was_open = OPEN
        .lock()
        .unwrap_or_else(|e| e.into_inner())
        .as_mut()
        .is_some_and(|open| open.remove(&key(stream)));
    if was_open {
        drain::capture_closes();
        free::settle();
    }
}

fn end_with(stream: CUstream, end: impl FnOnce() -> CUresult) -> CUresult {
    let result = {
        let _pass = gate::pass();
        end()
    };
    // An invalidated capture has ended too. A call from the wrong thread leaves it open, and so may another failure.
    let is_open = match result {
        CUDA_SUCCESS => false,
        CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD => true,
        _ => driver::stream_captures(Handle(stream as usize)) == Ok(true),
    };
    if !is_open {
        close(stream);
    }
    result
}

macro_rules! captures {
    ($($ours:ident = $with:ident $real:ident($($arg:ident: $ty:ty),*);)*) => {$(
        #[doc = concat!("Replaces `", stringify!($real), "`.")]
        ///
        /// # Safety
        /// As for the function it replaces.
        pub unsafe fn $ours(stream: CUstream $(, $arg: $ty)*) -> CUresult {
            // SAFETY: the program's own call.
            $with(stream, || unsafe { real::$real(stream $(, $arg)*) })
        }
    )*};
}

captures! {
    begin = begin_with cuStreamBeginCapture();
    begin_ptsz = begin_with cuStreamBeginCapture_ptsz();
    begin_v2 = begin_with cuStreamBeginCapture_v2(mode: c_int);
    begin_v2_ptsz = begin_with cuStreamBeginCapture_v2_ptsz(mode: c_int);
    begin_to_graph = begin_with cuStreamBeginCaptureToGraph(graph: CUgraph, nodes: *const CUgraphNode, edges: *const c_void, count: usize, mode: c_int);
    begin_to_graph_ptsz = begin_with cuStreamBeginCaptureToGraph_ptsz(graph: CUgraph, nodes: *const CUgraphNode, edges: *const c_void, count: usize, mode: c_int);
    end = end_with cuStreamEndCapture(out: *mut CUgraph);
    end_ptsz = end_with cuStreamEndCapture_ptsz(out: *mut CUgraph);
}

fn destroy_with(stream: CUstream, destroy: impl FnOnce() -> CUresult) -> CUresult {
    if let Some(lane) = Lane::of_made(stream) {
        later::stream_ends(lane);
        execs::stream_ends(stream);
    }
    let result = destroy();
    if result == CUDA_SUCCESS {
        close(stream);
    }
    result
}

captures! {
    destroy_v1 = destroy_with cuStreamDestroy();
    destroy_v2 = destroy_with cuStreamDestroy_v2();
}
