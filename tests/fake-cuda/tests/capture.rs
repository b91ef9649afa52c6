//! Capture and graphs.
#![allow(missing_docs, clippy::macro_metavars_in_unsafe)]
mod common;
use common::*;

const GLOBAL: i32 = 0;
const THREAD_LOCAL: i32 = 1;
const RELAXED: i32 = 2;

fn status(stream: usize) -> i32 {
    let mut now = -1i32;
    ok!(cuStreamIsCapturing(stream, &mut now));
    now
}

#[test]
fn a_graph_replays_what_was_captured() {
    clean("a_graph_replays_what_was_captured", &[], || {
        start_with_module();
        let (s, t, fork, join) = (stream(1), stream(1), event(), event());
        let (va, handle) = mapped(GRANULE, false);
        let out = alloc(8);
        let n = GRANULE / 8;
        ok!(cuStreamBeginCapture_v2(s, GLOBAL));
        assert_eq!((status(s), status(t)), (1, 0));
        assert_eq!(launch("gb_fill", s, &[va, n, 5]), 0);
        ok!(cuEventRecord(fork, s));
        ok!(cuStreamWaitEvent(t, fork, 0u32));
        assert_eq!(status(t), 1);
        ok!(cuMemsetD8Async(out, 0u8, 8usize, t));
        let (mut state, mut id, mut building, mut tails) = (0i32, 0u64, 0usize, 0usize);
        let mut tail = std::ptr::null::<usize>();
        ok!(cuStreamGetCaptureInfo_v2(
            t,
            &mut state,
            &mut id,
            &mut building,
            &mut tail,
            &mut tails
        ));
        assert_eq!((state, tails), (1, 1));
        assert!(id != 0 && building != 0 && !tail.is_null());
        ok!(cuEventRecord(join, t));
        ok!(cuStreamWaitEvent(s, join, 0u32));
        assert_eq!(launch("gb_check", s, &[va, n, 5, out]), 0);
        let (mut graph, mut exec, mut count) = (0usize, 0usize, 0usize);
        ok!(cuStreamEndCapture(s, &mut graph));
        assert_eq!((status(s), status(t)), (0, 0));
        write(out, 1);
        assert_eq!(read(out), 1);
        ok!(cuGraphGetNodes(
            graph,
            std::ptr::null_mut::<usize>(),
            &mut count
        ));
        assert_eq!(count, 3);
        let mut nodes = [0usize; 3];
        ok!(cuGraphGetNodes(graph, nodes.as_mut_ptr(), &mut count));
        let mut kind = -1i32;
        ok!(cuGraphNodeGetType(nodes[1], &mut kind));
        assert_eq!(kind, 2);
        ok!(cuGraphInstantiateWithFlags(&mut exec, graph, 0u64));
        ok!(cuGraphDestroy(graph));
        // The range moves to host memory; the graph follows.
        for host in [false, true] {
            unmap(va, GRANULE);
            map(
                va,
                GRANULE,
                if host { create(GRANULE, true) } else { handle },
            );
            write(out, 1);
            ok!(cuGraphLaunch(exec, s));
            ok!(cuStreamSynchronize(s));
            assert_eq!(read(out), 0);
            assert_eq!(read(va + 8), mix(6));
        }
        ok!(cuGraphExecDestroy(exec));
    });
}

#[test]
fn synchronising_kills_a_capture() {
    let expected = [
        "misuse: synchronise during capture: cuStreamSynchronize",
        "misuse: synchronise during capture: cuCtxSynchronize",
        "misuse: synchronise during capture: cuStreamQuery",
        "misuse: cuMemAlloc during capture",
        "misuse: cuMemFree during capture",
        "misuse: cuEventQuery during capture",
    ];
    records("synchronising_kills_a_capture", &[], &expected, || {
        start_with_module();
        let (s, va, e) = (stream(1), alloc(64), event());
        let killed = |act: &dyn Fn() -> i32| {
            ok!(cuStreamBeginCapture_v2(s, GLOBAL));
            assert_eq!(act(), 900);
            assert_eq!(status(s), 2);
            assert_eq!(cu!(cuMemsetD8Async(va, 0u8, 8usize, s)), 901);
            let mut graph = 1usize;
            assert_eq!(cu!(cuStreamEndCapture(s, &mut graph)), 901);
            assert_eq!((graph, status(s)), (0, 0));
        };
        let mut out = 0u64;
        let out = &raw mut out;
        killed(&|| cu!(cuStreamSynchronize(s)));
        killed(&|| cu!(cuCtxSynchronize()));
        killed(&|| cu!(cuStreamQuery(s)));
        killed(&|| cu!(cuMemAlloc_v2(out, 64usize)));
        killed(&|| cu!(cuMemFree_v2(va)));
        killed(&|| cu!(cuEventQuery(e)));
    });
}

#[test]
fn the_legacy_stream_kills_a_capture() {
    let expected = [
        "on the legacy stream during capture",
        "on the legacy stream during capture",
    ];
    records("the_legacy_stream_kills_a_capture", &[], &expected, || {
        start_with_module();
        let (blocking, free, va, mut graph) = (stream(0), stream(1), alloc(64), 0usize);
        ok!(cuStreamBeginCapture_v2(blocking, RELAXED));
        assert_eq!(cu!(cuStreamIsCapturing(0usize, &mut 0i32)), 906);
        assert_eq!(status(blocking), 1);
        assert_eq!(cu!(cuMemsetD8Async(va, 0u8, 8usize, 0usize)), 906);
        assert_eq!(cu!(cuStreamEndCapture(blocking, &mut graph)), 901);
        ok!(cuStreamBeginCapture_v2(blocking, RELAXED));
        assert_eq!(cu!(cuStreamSynchronize(0usize)), 906);
        assert_eq!(cu!(cuStreamEndCapture(blocking, &mut graph)), 901);
        // A non-blocking stream does not mind.
        ok!(cuStreamBeginCapture_v2(free, RELAXED));
        ok!(cuMemsetD8Async(va, 0u8, 8usize, 0usize));
        ok!(cuStreamSynchronize(0usize));
        ok!(cuStreamEndCapture(free, &mut graph));
        assert_eq!(cu!(cuStreamBeginCapture_v2(0usize, GLOBAL)), 900);
    });
}

#[test]
fn modes_decide_who_is_disturbed() {
    clean("modes_decide_who_is_disturbed", &[], || {
        let ctx = start_with_module();
        let (s, mut graph, mut va) = (stream(1), 0usize, 0u64);
        // Another thread may allocate during a thread-local capture.
        ok!(cuStreamBeginCapture_v2(s, THREAD_LOCAL));
        std::thread::spawn(move || {
            ok!(cuCtxSetCurrent(ctx));
            alloc(64);
        })
        .join()
        .unwrap();
        // And this one, once it says that it knows what it does.
        let mut mode = RELAXED;
        ok!(cuThreadExchangeStreamCaptureMode(&mut mode));
        assert_eq!(mode, GLOBAL);
        ok!(cuMemAlloc_v2(&mut va, 64usize));
        ok!(cuThreadExchangeStreamCaptureMode(&mut mode));
        assert_eq!(mode, RELAXED);
        ok!(cuStreamEndCapture(s, &mut graph));
        assert_ne!(graph, 0);
    });
}

#[test]
fn captures_keep_to_themselves() {
    let expected = [
        "from outside the capture",
        "not joined",
        "ended on another thread",
    ];
    records("captures_keep_to_themselves", &[], &expected, || {
        let ctx = start_with_module();
        let (s, t, outside, inside, mut graph) = (stream(1), stream(1), event(), event(), 0usize);
        ok!(cuEventRecord(outside, t));
        ok!(cuStreamBeginCapture_v2(s, RELAXED));
        assert_eq!(cu!(cuStreamWaitEvent(s, outside, 0u32)), 905);
        assert_eq!(cu!(cuStreamEndCapture(s, &mut graph)), 901);
        ok!(cuStreamBeginCapture_v2(s, RELAXED));
        ok!(cuEventRecord(inside, s));
        assert_eq!(cu!(cuEventQuery(inside)), 907);
        ok!(cuStreamWaitEvent(t, inside, 0u32));
        spin(t, 1);
        assert_eq!(cu!(cuStreamEndCapture(s, &mut graph)), 904);
        ok!(cuStreamBeginCapture_v2(s, THREAD_LOCAL));
        std::thread::spawn(move || {
            ok!(cuCtxSetCurrent(ctx));
            assert_eq!(cu!(cuStreamEndCapture(s, &mut 0usize)), 908);
        })
        .join()
        .unwrap();
        assert_eq!(cu!(cuStreamEndCapture(s, &mut graph)), 901);
    });
}
