//! Work in flight and memory taken away from it.
#![allow(missing_docs, clippy::macro_metavars_in_unsafe)]
mod common;
use common::*;

#[test]
fn unmap_under_a_queued_kernel() {
    records(
        "unmap_under_a_queued_kernel",
        &[],
        &["with work in flight (gb_fill", "not mapped"],
        || {
            start();
            let (s, (va, _)) = (stream(1), mapped(GRANULE, false));
            spin(s, 100);
            assert_eq!(launch("gb_fill", s, &[va, 8, 1]), 0);
            unmap(va, GRANULE);
            assert_eq!(cu!(cuStreamSynchronize(s)), 700);
        },
    );
}

#[test]
fn unmap_under_a_queued_copy() {
    records(
        "unmap_under_a_queued_copy",
        &[],
        &["unmap of", "illegal address: read of"],
        || {
            start();
            let (s, (a, _), (b, _)) = (stream(1), mapped(GRANULE, false), mapped(GRANULE, true));
            spin(s, 100);
            ok!(cuMemcpyDtoDAsync_v2(a, b + 4096, 4096usize, s));
            unmap(b, GRANULE);
            assert_eq!(cu!(cuStreamSynchronize(s)), 700);
        },
    );
}

#[test]
fn rights_taken_under_a_queued_memset() {
    records(
        "rights_taken_under_a_queued_memset",
        &[],
        &["access revoked of", "no access right"],
        || {
            start();
            let (s, (a, _)) = (stream(1), mapped(GRANULE, false));
            spin(s, 100);
            ok!(cuMemsetD8Async(a, 1u8, 64usize, s));
            access(a, GRANULE, 1, 1);
            assert_eq!(cu!(cuStreamSynchronize(s)), 700);
        },
    );
}

#[test]
fn unmap_under_a_queued_graph() {
    records(
        "unmap_under_a_queued_graph",
        &[],
        &["with work in flight (graph", "not mapped"],
        || {
            start_with_module();
            let (s, (va, _), mut graph, mut exec) =
                (stream(1), mapped(GRANULE, false), 0usize, 0usize);
            ok!(cuStreamBeginCapture_v2(s, 0i32));
            spin(s, 100);
            assert_eq!(launch("gb_add", s, &[va, 8, 1]), 0);
            ok!(cuStreamEndCapture(s, &mut graph));
            ok!(cuGraphInstantiateWithFlags(&mut exec, graph, 0u64));
            ok!(cuGraphLaunch(exec, s));
            unmap(va, GRANULE);
            assert_eq!(cu!(cuStreamSynchronize(s)), 700);
        },
    );
}

#[test]
fn a_pointer_table_reaches_what_no_argument_names() {
    records(
        "a_pointer_table_reaches_what_no_argument_names",
        &[],
        &["by gb_deref: not mapped"],
        || {
            start();
            let (table, (va, _)) = (alloc(16), mapped(GRANULE, false));
            write(table, va + 8);
            write(table + 8, va + 16);
            assert_eq!(launch("gb_deref", 0, &[table, 2, 5]), 0);
            assert_eq!((read(va + 8), read(va + 16)), (5, 5));
            unmap(va, GRANULE);
            assert_eq!(launch("gb_deref", 0, &[table, 2, 5]), 0);
            assert_eq!(cu!(cuCtxSynchronize()), 700);
        },
    );
}

#[test]
fn mistakes_that_harm_nobody() {
    let expected = [
        "where nothing is mapped",
        "for the second time",
        "access set on",
    ];
    records("mistakes_that_harm_nobody", &[], &expected, || {
        start();
        let (va, size, s) = (reserve(2 * GRANULE), GRANULE as usize, stream(1));
        map(va + GRANULE, GRANULE, create(GRANULE, false));
        // With a hole it is one call as well; of a hole alone it is somebody's mistake.
        unmap(va, 2 * GRANULE);
        ok!(cuMemUnmap(va, size));
        let mut p = 0u64;
        spin(s, 100);
        ok!(cuMemAllocAsync(&mut p, 4096usize, s));
        ok!(cuMemFreeAsync(p, s));
        assert_eq!(cu!(cuMemFreeAsync(p, s)), 1);
        ok!(cuStreamSynchronize(s));
        assert_eq!(cu!(cuMemSetAccess(va, size, &[1i32, 0, 3], 1usize)), 1);
    });
}

#[test]
fn unmap_elsewhere_is_nobodys_business() {
    clean("unmap_elsewhere_is_nobodys_business", &[], || {
        start();
        let va = reserve(2 * GRANULE);
        for i in 0..2 {
            map(va + i * GRANULE, GRANULE, create(GRANULE, false));
        }
        let s = stream(1);
        spin(s, 100);
        // Names the first chunk to its last byte, and not the second.
        assert_eq!(launch("gb_fill", s, &[va, GRANULE / 8, 1]), 0);
        unmap(va + GRANULE, GRANULE);
        ok!(cuStreamSynchronize(s));
        unmap(va, GRANULE);
    });
}

#[test]
fn free_async_under_work_of_another_stream() {
    records(
        "free_async_under_work_of_another_stream",
        &[],
        &["free async of", "illegal address"],
        || {
            start();
            let (s, t, mut va) = (stream(1), stream(1), 0u64);
            ok!(cuMemAllocAsync(&mut va, 4096usize, s));
            ok!(cuStreamSynchronize(s));
            spin(t, 100);
            assert_eq!(launch("gb_fill", t, &[va, 8, 1]), 0);
            ok!(cuMemFreeAsync(va, s));
            assert_eq!(cu!(cuCtxSynchronize()), 700);
        },
    );
}

#[test]
fn handles_that_do_not_exist() {
    let expected = [
        "use of stream",
        "use of event",
        "use of function",
        "use of module",
        "copy names",
        "memset names",
    ];
    records("handles_that_do_not_exist", &[], &expected, || {
        start();
        let s = stream(0);
        ok!(cuStreamDestroy_v2(s));
        assert_eq!(cu!(cuStreamSynchronize(s)), 400);
        assert_eq!(cu!(cuEventQuery(0x55usize)), 400);
        let none = std::ptr::null::<*const u8>();
        assert_eq!(
            cu!(cuLaunchKernel(
                0x55usize, 1u32, 1u32, 1u32, 1u32, 1u32, 1u32, 0u32, 0usize, none, none
            )),
            400
        );
        assert_eq!(cu!(cuModuleUnload(0x55usize)), 400);
        assert_eq!(cu!(cuMemcpyHtoD_v2(0x5000u64, &1u64, 8usize)), 1);
        assert_eq!(cu!(cuMemsetD8_v2(0x5000u64, 1u8, 8usize)), 1);
    });
}

#[test]
fn two_operations_on_the_same_bytes() {
    records(
        "two_operations_on_the_same_bytes",
        &[("FAKE_CUDA_LINK", "20M")],
        &["race: "],
        || {
            start_with_module();
            let (s, t, (va, handle), out) =
                (stream(1), stream(1), mapped(GRANULE, false), alloc(8));
            let mut pinned = 0u64;
            ok!(cuMemHostAlloc(&mut pinned, GRANULE as usize, 0u32));
            let alias = reserve(GRANULE);
            map(alias, GRANULE, handle);
            write(out, 0);
            // 100 ms on the link; meanwhile a kernel on another stream writes through another address.
            let slow = || ok!(cuMemcpyHtoDAsync_v2(va, pinned, GRANULE as usize, s));
            slow();
            std::thread::sleep(std::time::Duration::from_millis(20));
            assert_eq!(launch("gb_add", t, &[alias + 4096, 1, 1]), 0);
            ok!(cuCtxSynchronize());
            // Readers do not disturb each other, nor do atomic sums, nor what is ordered by an event.
            ok!(cuMemcpyDtoHAsync_v2(pinned, va, GRANULE as usize, s));
            std::thread::sleep(std::time::Duration::from_millis(20));
            assert_eq!(launch("gb_sum", t, &[alias, 100, out]), 0);
            ok!(cuCtxSynchronize());
            let done = event();
            slow();
            ok!(cuEventRecord(done, s));
            ok!(cuStreamWaitEvent(t, done, 0u32));
            assert_eq!(launch("gb_add", t, &[alias + 4096, 1, 1]), 0);
            ok!(cuCtxSynchronize());
        },
    );
}
