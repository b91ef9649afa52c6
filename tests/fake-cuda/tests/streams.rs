//! Streams and events: who waits for whom.
#![allow(missing_docs, clippy::macro_metavars_in_unsafe)]
mod common;
use common::*;

/// Queues a long kernel on `first`, then `act`, and says whether `act`'s effect came after it.
fn ordered(first: usize, second: usize) -> bool {
    let (a, b) = (event(), event());
    spin(first, LONG);
    ok!(cuEventRecord(a, first));
    ok!(cuEventRecord(b, second));
    ok!(cuEventSynchronize(b));
    let late = cu!(cuEventQuery(a)) == 0;
    ok!(cuCtxSynchronize());
    late
}

#[test]
fn the_legacy_stream_orders_blocking_streams() {
    clean("the_legacy_stream_orders_blocking_streams", &[], || {
        start();
        let (blocking, other, free) = (stream(0), stream(0), stream(1));
        assert!(ordered(blocking, 0));
        assert!(ordered(0, blocking));
        assert!(ordered(1, blocking));
        assert!(!ordered(blocking, other));
        assert!(!ordered(free, 0));
        assert!(!ordered(0, free));
        assert!(ordered(2, 0));
        assert!(!ordered(2, blocking));
        assert_eq!(cu!(cuStreamQuery(blocking)), 0);
        spin(blocking, 50);
        assert_eq!(cu!(cuStreamQuery(blocking)), 600);
        assert_eq!(cu!(cuStreamQuery(0usize)), 600);
        assert_eq!(cu!(cuStreamQuery_ptsz(0usize)), 0);
        ok!(cuStreamSynchronize(blocking));
        ok!(cuStreamDestroy_v2(other));
    });
}

#[test]
fn threads_have_default_streams_of_their_own() {
    clean("threads_have_default_streams_of_their_own", &[], || {
        let ctx = start();
        let none = std::ptr::null::<*const u8>();
        let ns = LONG * 1_000_000;
        let args = [&raw const ns];
        let spin = function("gb_spin");
        ok!(cuLaunchKernel_ptsz(
            spin,
            1u32,
            1u32,
            1u32,
            1u32,
            1u32,
            1u32,
            0u32,
            0usize,
            args.as_ptr(),
            none
        ));
        std::thread::spawn(move || {
            ok!(cuCtxSetCurrent(ctx));
            assert!(!waited(|| ok!(cuStreamSynchronize_ptsz(0usize))));
        })
        .join()
        .unwrap();
        assert!(waited(|| ok!(cuStreamSynchronize(2usize))));
    });
}

#[test]
fn events_mark_and_measure() {
    clean("events_mark_and_measure", &[], || {
        start();
        let (s, t, a, b) = (stream(1), stream(1), event(), event());
        ok!(cuEventQuery(a));
        ok!(cuEventRecord(a, s));
        spin(s, 100);
        ok!(cuEventRecord(b, s));
        assert_eq!(cu!(cuEventQuery(b)), 600);
        let mut ms = 0f32;
        assert_eq!(cu!(cuEventElapsedTime(&mut ms, a, b)), 600);
        ok!(cuStreamWaitEvent(t, b, 0u32));
        assert!(timed(|| ok!(cuStreamSynchronize(t))).as_millis() > 50);
        ok!(cuEventElapsedTime(&mut ms, a, b));
        assert!((90.0..1000.0).contains(&ms), "{ms}");
        ok!(cuEventElapsedTime_v2(&mut ms, b, a));
        assert!(ms < -90.0);
        ok!(cuEventDestroy_v2(a));
    });
}

#[test]
fn synchronous_copies_wait_as_measured() {
    clean("synchronous_copies_wait_as_measured", &[], || {
        start();
        let (v, w) = (mapped(GRANULE, false).0, mapped(GRANULE, false).0);
        let h = mapped(GRANULE, true).0;
        let n = GRANULE as usize;
        let behind = |act: &dyn Fn()| {
            ok!(cuCtxSynchronize());
            spin(0, LONG);
            waited(act)
        };
        assert!(!behind(&|| ok!(cuMemcpyDtoD_v2(v, w, n))));
        assert!(behind(&|| ok!(cuMemcpyDtoD_v2(h, w, n))));
        assert!(behind(&|| ok!(cuMemcpyDtoD_v2(v, h, n))));
        assert!(!behind(&|| ok!(cuMemsetD8_v2(v, 1u8, n))));
        assert!(behind(&|| ok!(cuMemsetD8_v2(h, 1u8, n))));
        assert!(behind(&|| write(v, 1)));
        assert!(behind(&|| assert_eq!(read(v), 1)));
        for at in [v, h] {
            assert!(!behind(&|| ok!(cuMemsetD8Async(at, 1u8, n, 0usize))));
            assert!(!behind(&|| ok!(cuMemcpyDtoDAsync_v2(w, at, n, 0usize))));
            // Small pageable memory is read at the call.
            let mut word = 5u64;
            assert!(!behind(&|| ok!(cuMemcpyHtoDAsync_v2(
                at, &word, 8usize, 0usize
            ))));
            word = 6;
            ok!(cuCtxSynchronize());
            assert_eq!((read(at), word), (5, 6));
            assert!(behind(&|| ok!(cuMemcpyDtoHAsync_v2(
                &raw const word,
                at,
                8usize,
                0usize
            ))));
            let mut pinned = 0u64;
            ok!(cuMemAllocHost_v2(&mut pinned, n));
            assert!(!behind(&|| ok!(cuMemcpyDtoHAsync_v2(
                pinned, at, n, 0usize
            ))));
            assert!(!behind(&|| ok!(cuMemcpyAsync(at, pinned, n, 0usize))));
            ok!(cuMemFreeHost(pinned));
        }
    });
}

#[test]
fn free_waits_for_the_device_and_unmap_does_not() {
    clean("free_waits_for_the_device_and_unmap_does_not", &[], || {
        start();
        let (s, a, (va, handle)) = (stream(1), alloc(64), mapped(GRANULE, false));
        spin(s, LONG);
        assert!(!waited(|| {
            unmap(va, GRANULE);
            map(va, GRANULE, handle);
            ok!(cuMemRelease(create(GRANULE, true)));
        }));
        assert!(waited(|| ok!(cuMemFree_v2(a))));
    });
}

#[test]
fn stream_ordered_memory() {
    clean("stream_ordered_memory", &[], || {
        start_with_module();
        let all = free_bytes();
        let (s, mut va, mut pool, mut used) = (stream(1), 0u64, 0usize, 0u64);
        ok!(cuMemAllocAsync(&mut va, 3usize << 20, s));
        ok!(cuDeviceGetDefaultMemPool(&mut pool, 0i32));
        ok!(cuMemPoolGetAttribute(pool, 7i32, &mut used));
        assert_eq!(used, 3 << 20);
        spin(s, 100);
        assert_eq!(launch("gb_fill", s, &[va, 100, 1]), 0);
        ok!(cuMemFreeAsync(va, s));
        assert_eq!(free_bytes(), all - 32 * MIB);
        ok!(cuStreamSynchronize(s));
        assert_eq!(free_bytes(), all);
        // With a threshold the pool keeps what is freed, until somebody needs it.
        ok!(cuMemPoolSetAttribute(pool, 4i32, &u64::MAX));
        ok!(cuMemAllocAsync(&mut va, 960usize << 20, s));
        ok!(cuMemFreeAsync(va, s));
        ok!(cuStreamSynchronize(s));
        assert_eq!(free_bytes(), all - 960 * MIB);
        ok!(cuMemFree_v2(alloc(100 * MIB)));
        assert_eq!(free_bytes(), all);
    });
}

#[test]
fn callbacks_may_not_call() {
    extern "C" fn call(to: *mut std::ffi::c_void) {
        let mut va = 0u64;
        let result = cu!(cuMemAlloc_v2(&mut va, 64usize));
        // SAFETY: the test's variable, which it does not touch before synchronising.
        unsafe { to.cast::<i32>().write(result) };
    }
    clean("callbacks_may_not_call", &[], || {
        start();
        let (s, mut result) = (stream(0), -1i32);
        spin(s, 20);
        ok!(cuLaunchHostFunc(s, call as *const (), &raw mut result));
        ok!(cuStreamSynchronize(s));
        assert_eq!(result, 800);
    });
}

#[test]
fn two_dimensions_and_peers() {
    clean(
        "two_dimensions_and_peers",
        &[("FAKE_CUDA_DEVICES", "2")],
        || {
            let first = start();
            let (mut va, mut pitch) = (0u64, 0usize);
            ok!(cuMemAllocPitch_v2(
                &mut va, &mut pitch, 700usize, 3usize, 4u32
            ));
            assert_eq!(pitch, 1024);
            ok!(cuMemsetD2D8_v2(va, pitch, 9u8, 700usize, 3usize));
            let mut rows = [[0u8; 700]; 3];
            let mut p = greenboost_abi::CUDA_MEMCPY2D {
                srcXInBytes: 0,
                srcY: 0,
                srcMemoryType: 2,
                srcHost: std::ptr::null(),
                srcDevice: va,
                srcArray: std::ptr::null_mut(),
                srcPitch: pitch,
                dstXInBytes: 0,
                dstY: 0,
                dstMemoryType: 1,
                dstHost: rows.as_mut_ptr().cast(),
                dstDevice: 0,
                dstArray: std::ptr::null_mut(),
                dstPitch: 700,
                WidthInBytes: 700,
                Height: 3,
            };
            ok!(cuMemcpy2D_v2(&p));
            assert!(rows.iter().flatten().all(|b| *b == 9));
            p.srcY = 3;
            p.Height = 0;
            ok!(cuMemcpy2DAsync_v2(&p, 0usize));
            let second = context(1);
            let far = alloc(4096);
            ok!(cuMemcpyPeer(far, second, va, first, 700usize));
            ok!(cuMemcpyDtoH_v2(rows.as_mut_ptr(), far, 8usize));
            assert_eq!(free_bytes(), 1022 * MIB);
            ok!(cuCtxSetCurrent(first));
            ok!(cuCtxEnablePeerAccess(second, 0u32));
            assert_eq!(launch("gb_add", 0, &[far, 4, 1]), 0);
            ok!(cuCtxSynchronize());
            assert_eq!(read(far), 0x090909090909090a);
        },
    );
}

#[test]
fn a_stream_waits_for_a_word() {
    clean("a_stream_waits_for_a_word", &[], || {
        start();
        let (s, t, word, e) = (stream(1), stream(1), alloc(8), event());
        ok!(cuMemsetD8_v2(word, 0u8, 8usize));
        ok!(cuCtxSynchronize());
        ok!(cuStreamWaitValue32_v2(s, word, 3u32, 0u32));
        ok!(cuEventRecord(e, s));
        ok!(cuStreamWriteValue32_v2(t, word, 2u32, 0u32));
        ok!(cuStreamSynchronize(t));
        assert_eq!(cu!(cuEventQuery(e)), 600);
        let ops = [2u64, word, 4, 0, 0, 0];
        ok!(cuStreamBatchMemOp_v2(t, 1u32, ops.as_ptr(), 0u32));
        ok!(cuStreamSynchronize(s));
        assert_eq!(read(word), 4);
    });
}

#[test]
fn the_link_has_a_speed() {
    clean("the_link_has_a_speed", &[("FAKE_CUDA_LINK", "10M")], || {
        start();
        let ((v, _), (w, _), (h, _)) = (
            mapped(GRANULE, false),
            mapped(GRANULE, false),
            mapped(GRANULE, true),
        );
        let n = GRANULE as usize;
        let ms = |act: &dyn Fn()| {
            timed(|| {
                act();
                ok!(cuCtxSynchronize());
            })
            .as_millis()
        };
        assert!(ms(&|| ok!(cuMemcpyDtoD_v2(v, w, n))) < 100);
        assert!(ms(&|| ok!(cuMemcpyDtoD_v2(v, h, n))) >= 190);
        // One direction is one lane, whatever the streams; the other direction is another.
        let (s, t) = (stream(1), stream(1));
        assert!(
            ms(&|| {
                ok!(cuMemcpyDtoDAsync_v2(v, h, n, s));
                ok!(cuMemcpyDtoDAsync_v2(w, h, n, t));
            }) >= 390
        );
    });
}

#[test]
fn three_dimensions() {
    clean("three_dimensions", &[], || {
        start();
        let (va, out) = (alloc(4 * 1024), [0u8; 2 * 3 * 5]);
        let bytes: Vec<u8> = (0..4096u32).map(|i| (i % 251) as u8).collect();
        ok!(cuMemcpyHtoD_v2(va, bytes.as_ptr(), 4096usize));
        let nil = 0usize;
        // x 7, y 1, z 1 of a volume of rows of 64 bytes and slices of 8 rows; 5 x 3 x 2 of it.
        let p: [usize; 25] = [
            7,
            1,
            1,
            0,
            2,
            nil,
            va as usize,
            nil,
            nil,
            64,
            8, // from
            0,
            0,
            0,
            0,
            1,
            out.as_ptr() as usize,
            nil,
            nil,
            nil,
            5,
            3, // to
            5,
            3,
            2,
        ];
        ok!(cuMemcpy3D_v2(p.as_ptr()));
        let want = |i: usize| bytes[(1 + i / 15) * 512 + (1 + i / 5 % 3) * 64 + 7 + i % 5];
        assert!(
            out.iter().enumerate().all(|(i, b)| *b == want(i)),
            "{out:?}"
        );
    });
}
