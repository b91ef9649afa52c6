//! Memory: aliasing, remapping, rights, capacity, and what is refused.
#![allow(missing_docs, clippy::macro_metavars_in_unsafe)]
mod common;
use common::*;

#[test]
fn aliases_are_one_memory() {
    clean("aliases_are_one_memory", &[], || {
        start();
        let (a, handle) = mapped(4 * MIB, false);
        let b = reserve(4 * MIB);
        map(b, 4 * MIB, handle);
        assert_eq!(launch("gb_fill", 0, &[a, 4 * MIB / 8, 7]), 0);
        let out = alloc(8);
        write(out, 0);
        assert_eq!(launch("gb_check", 0, &[b, 4 * MIB / 8, 7, out]), 0);
        assert_eq!(read(out), 0);
        assert_eq!(read(b + 80), mix(17));
        write(b + 80, 5);
        assert_eq!(read(a + 80), 5);
    });
}

#[test]
fn an_address_outlives_its_backing() {
    clean("an_address_outlives_its_backing", &[], || {
        start_with_module();
        let before = free_bytes();
        let (va, vram) = mapped(GRANULE, false);
        let other = reserve(GRANULE);
        assert_eq!(launch("gb_fill", 0, &[va, GRANULE / 8, 1]), 0);
        ok!(cuCtxSynchronize());
        // To host memory by way of an alias, as the shim does it.
        let host = create(GRANULE, true);
        map(other, GRANULE, host);
        ok!(cuMemcpyDtoD_v2(other, va, GRANULE as usize));
        ok!(cuCtxSynchronize());
        unmap(va, GRANULE);
        ok!(cuMemRelease(vram));
        map(va, GRANULE, host);
        let out = alloc(8);
        write(out, 0);
        assert_eq!(launch("gb_check", 0, &[va, GRANULE / 8, 1, out]), 0);
        assert_eq!(read(out), 0);
        assert_eq!(free_bytes(), before);
        let mut kind = 0i32;
        ok!(cuPointerGetAttribute(&mut kind, 2i32, va));
        assert_eq!(kind, 1);
    });
}

#[test]
fn a_range_may_mix_vram_and_host() {
    clean("a_range_may_mix_vram_and_host", &[], || {
        start();
        let va = reserve(3 * GRANULE);
        for (i, host) in [false, true, false].into_iter().enumerate() {
            map(va + i as u64 * GRANULE, GRANULE, create(GRANULE, host));
        }
        let (n, out) = (3 * GRANULE / 8, alloc(16));
        ok!(cuMemsetD8_v2(out, 0u8, 16usize));
        assert_eq!(launch("gb_fill", 0, &[va, n, 99]), 0);
        assert_eq!(launch("gb_check", 0, &[va, n, 99, out]), 0);
        assert_eq!(read(out), 0);
        let copy = alloc(3 * GRANULE);
        ok!(cuMemcpyDtoD_v2(copy, va, 3 * GRANULE as usize));
        assert_eq!(launch("gb_axpy", 0, &[va, copy, n, 2]), 0);
        assert_eq!(read(va + 8 * (n - 1)), mix(99 + n - 1).wrapping_mul(3));
        assert_eq!(launch("gb_sum", 0, &[copy, n, out]), 0);
        assert_eq!(
            read(out),
            (0..n).fold(0u64, |sum, i| sum.wrapping_add(mix(99 + i)))
        );
        ok!(cuMemsetD32_v2(va + GRANULE - 8, 0x01020304u32, 4usize));
        assert_eq!(read(va + GRANULE), 0x0102030401020304);
    });
}

#[test]
fn the_cpu_faults_where_it_has_no_access() {
    clean("the_cpu_faults_where_it_has_no_access", &[], || {
        start();
        let (va, _) = mapped(GRANULE, true);
        let readable = |at: u64| {
            let mut byte = 0u8;
            let local = libc::iovec {
                iov_base: (&raw mut byte).cast(),
                iov_len: 1,
            };
            let remote = libc::iovec {
                iov_base: at as *mut _,
                iov_len: 1,
            };
            // SAFETY: reads one byte of this process, and fails where it is not readable.
            unsafe { libc::process_vm_readv(libc::getpid(), &local, 1, &remote, 1, 0) == 1 }
        };
        assert!(!readable(va));
        access(va, GRANULE, 3, 3);
        assert!(readable(va));
        // SAFETY: just made accessible.
        unsafe { (va as *mut u64).write(42) };
        assert_eq!(read(va), 42);
        unmap(va, GRANULE);
        assert!(!readable(va));
        assert!(!readable(alloc(64)));
        assert_eq!(cu!(cuMemSetAccess(va, GRANULE as usize, &0u64, 0usize)), 1);
    });
}

#[test]
fn capacity_is_counted() {
    clean(
        "capacity_is_counted",
        &[("FAKE_CUDA_VRAM", "16M"), ("FAKE_CUDA_VRAM_TAKEN", "4M")],
        || {
            start();
            assert_eq!(free_bytes(), 12 * MIB);
            let (a, b) = (alloc(4 * MIB), alloc(100));
            assert_eq!(free_bytes(), 6 * MIB);
            assert_eq!(alloc(100) - b, 512);
            assert_eq!(free_bytes(), 6 * MIB);
            let handle = create(4 * MIB, false);
            let mut more = 0u64;
            assert_eq!(cu!(cuMemAlloc_v2(&mut more, 3 * MIB as usize)), 2);
            assert_eq!(
                cu!(cuMemCreate(&mut more, 4 * MIB as usize, &prop(false), 0u64)),
                2
            );
            ok!(cuMemCreate(&mut more, 64 * MIB as usize, &prop(true), 0u64));
            ok!(cuMemFree_v2(a));
            ok!(cuMemRelease(handle));
            assert_eq!(free_bytes(), 10 * MIB);
            let mut bytes = 0usize;
            ok!(cuDeviceTotalMem_v2(&mut bytes, 0i32));
            assert_eq!(bytes as u64, 16 * MIB);
            ok!(nvmlInit_v2());
            let (mut device, mut info) = (0usize, [0u64; 3]);
            ok!(nvmlDeviceGetHandleByIndex_v2(0u32, &mut device));
            ok!(nvmlDeviceGetMemoryInfo(device, &mut info));
            assert_eq!(info, [16 * MIB, 10 * MIB, 6 * MIB]);
            let mut arrays = 0usize;
            let shape = [1024usize, 1024, 1 << 32 | 0x20];
            ok!(cuArrayCreate_v2(&mut arrays, &shape));
            assert_eq!(free_bytes(), 6 * MIB);
            ok!(cuArrayDestroy(arrays));
        },
    );
}

#[test]
fn memory_lives_while_mapped_or_held() {
    clean("memory_lives_while_mapped_or_held", &[], || {
        start();
        let (va, handle) = mapped(GRANULE, false);
        write(va, 11);
        ok!(cuMemRelease(handle));
        assert_eq!(read(va), 11);
        assert_eq!(free_bytes(), 1022 * MIB);
        let mut again = 0u64;
        ok!(cuMemRetainAllocationHandle(&mut again, va + 4096));
        assert_eq!(again, handle);
        unmap(va, GRANULE);
        assert_eq!(free_bytes(), 1022 * MIB);
        ok!(cuMemRelease(again));
        assert_eq!(free_bytes(), 1024 * MIB);
        ok!(cuMemAddressFree(va, GRANULE as usize));
    });
}

#[test]
fn what_the_driver_refuses() {
    let expected = [
        "misuse: map at",
        "misuse: unmap of",
        "misuse: release of",
        "misuse: free of",
        "misuse: address free",
    ];
    records("what_the_driver_refuses", &[], &expected, || {
        start();
        let (va, handle) = mapped(2 * GRANULE, false);
        let size = 2 * GRANULE as usize;
        let mut other = 0u64;
        assert_eq!(
            cu!(cuMemCreate(&mut other, 4096usize, &prop(false), 0u64)),
            1
        );
        let spare = reserve(4 * GRANULE);
        assert_eq!(
            cu!(cuMemMap(spare, GRANULE as usize, 0usize, handle, 0u64)),
            801
        );
        assert_eq!(
            cu!(cuMemMap(
                spare,
                GRANULE as usize,
                GRANULE as usize,
                handle,
                0u64
            )),
            801
        );
        assert_eq!(cu!(cuMemMap(spare, 2 * size, 0usize, handle, 0u64)), 1);
        assert_eq!(cu!(cuMemMap(va, size, 0usize, handle, 0u64)), 1);
        assert_eq!(cu!(cuMemUnmap(va, size / 2)), 1);
        assert_eq!(cu!(cuMemRelease(handle + 64)), 1);
        assert_eq!(cu!(cuMemFree_v2(0x1234u64)), 1);
        assert_eq!(cu!(cuMemAddressFree(va, size)), 1);
        ok!(cuMemFree_v2(0u64));
        assert_eq!(cu!(cuIpcGetMemHandle(&mut [0u64; 8], va)), 1);
        ok!(cuIpcGetMemHandle(&mut [0u64; 8], alloc(64)));
    });
}

#[test]
fn rights_are_checked_at_the_run() {
    records(
        "rights_are_checked_at_the_run",
        &[],
        &["misuse: illegal address: write to"],
        || {
            start();
            let (va, handle) = (reserve(GRANULE), create(GRANULE, false));
            ok!(cuMemMap(va, GRANULE as usize, 0usize, handle, 0u64));
            access(va, GRANULE, 1, 1);
            let out = alloc(8);
            assert_eq!(launch("gb_sum", 0, &[va, 4, out]), 0);
            ok!(cuCtxSynchronize());
            assert_eq!(launch("gb_add", 0, &[va, 4, 1]), 0);
            assert_eq!(cu!(cuCtxSynchronize()), 700);
            // Sticky, until the context is gone.
            let mut va = 0u64;
            assert_eq!(cu!(cuMemAlloc_v2(&mut va, 64usize)), 700);
            assert_eq!(launch_failed(), 700);
            ok!(cuDevicePrimaryCtxReset_v2(0i32));
            assert_eq!(cu!(cuMemAlloc_v2(&mut va, 64usize)), 709);
            context(0);
            ok!(cuMemAlloc_v2(&mut va, 64usize));
        },
    );
}

fn launch_failed() -> i32 {
    cu!(cuStreamSynchronize(0usize))
}

#[test]
fn an_unmapped_address_is_illegal() {
    records(
        "an_unmapped_address_is_illegal",
        &[],
        &["not mapped"],
        || {
            start();
            let (va, handle) = mapped(GRANULE, false);
            let nb = stream(1);
            // Queued while unmapped, mapped again before its turn: fine.
            unmap(va, GRANULE);
            spin(nb, 100);
            assert_eq!(launch("gb_fill", nb, &[va + 512, 8, 1]), 0);
            let size = GRANULE as usize;
            let mapped = cu!(cuMemMap(va, size, 0usize, handle, 0u64));
            assert_eq!(mapped, 0);
            access(va, GRANULE, 1, 3);
            ok!(cuStreamSynchronize(nb));
            unmap(va, GRANULE);
            assert_eq!(launch("gb_fill", nb, &[va, 8, 1]), 0);
            assert_eq!(cu!(cuStreamSynchronize(nb)), 700);
        },
    );
}

#[test]
fn a_freed_neighbour_is_not_reached() {
    records(
        "a_freed_neighbour_is_not_reached",
        &[],
        &["leaves its allocation"],
        || {
            start();
            let a = alloc(512);
            assert_eq!(launch("gb_fill", 0, &[a, 65, 1]), 0);
            assert_eq!(cu!(cuCtxSynchronize()), 700);
        },
    );
}

#[test]
fn pointers_tell_what_they_are() {
    clean("pointers_tell_what_they_are", &[], || {
        let ctx = start();
        let small = alloc(1000);
        let (base, mut size) = (&mut 0u64, 0usize);
        ok!(cuMemGetAddressRange_v2(
            &raw mut *base,
            &raw mut size,
            small + 999
        ));
        assert_eq!((*base, size), (small, 1000));
        let mut owner = 0usize;
        ok!(cuPointerGetAttribute(&mut owner, 1i32, small));
        assert_eq!(owner, ctx);
        let mut word = 0u64;
        let (va, _) = mapped(GRANULE, false);
        ok!(cuPointerGetAttribute(&mut word, 12i32, va + 5));
        assert_eq!(word, GRANULE);
        let mut pinned = 0u64;
        ok!(cuMemHostAlloc(&mut pinned, 4096usize, 0u32));
        let (mut kind, mut managed) = (0i32, 9i32);
        ok!(cuPointerGetAttribute(&mut kind, 2i32, pinned));
        assert_eq!(kind, 1);
        let pageable = &raw const word as u64;
        assert_eq!(cu!(cuPointerGetAttribute(&mut kind, 2i32, pageable)), 1);
        let wanted = [2i32, 8, 9];
        let mut ordinal = 7i32;
        let to = [
            (&raw mut kind).cast::<u8>(),
            (&raw mut managed).cast(),
            (&raw mut ordinal).cast(),
        ];
        ok!(cuPointerGetAttributes(
            3u32,
            wanted.as_ptr(),
            to.as_ptr(),
            pageable
        ));
        assert_eq!((kind, managed, ordinal), (0, 0, -2));
        ok!(cuMemFreeHost(pinned));
    });
}

#[test]
fn host_memory_is_pinned_once() {
    clean(
        "host_memory_is_pinned_once",
        &[("FAKE_CUDA_HOST", "8M")],
        || {
            start();
            let mut block = vec![1u8; 4 << 20];
            let at = block.as_mut_ptr();
            ok!(cuMemHostRegister_v2(at, 4usize << 20, 0u32));
            assert_eq!(cu!(cuMemHostRegister_v2(at, 4096usize, 0u32)), 712);
            let mut more = 0u64;
            assert_eq!(cu!(cuMemHostAlloc(&mut more, 5usize << 20, 0u32)), 2);
            assert_eq!(
                cu!(cuMemCreate(&mut more, 6usize << 20, &prop(true), 0u64)),
                2
            );
            let mut device = 0u64;
            ok!(cuMemHostGetDevicePointer_v2(&mut device, at, 0u32));
            assert_eq!(launch("gb_fill", 0, &[device, 8, 3]), 0);
            ok!(cuCtxSynchronize());
            assert_eq!(block[..8], mix(3).to_le_bytes());
            ok!(cuMemHostUnregister(block.as_ptr()));
            // A writable shared file mapping cannot be pinned.
            let file = std::env::current_exe()
                .unwrap()
                .with_file_name(format!("pin-{}", std::process::id()));
            std::fs::write(&file, vec![0u8; 4096]).unwrap();
            let opened = std::fs::OpenOptions::new()
                .read(true)
                .write(true)
                .open(&file)
                .unwrap();
            std::fs::remove_file(&file).unwrap();
            // SAFETY: a new mapping of an open file.
            let shared = unsafe {
                use std::os::fd::AsRawFd;
                libc::mmap(
                    std::ptr::null_mut(),
                    4096,
                    3,
                    libc::MAP_SHARED,
                    opened.as_raw_fd(),
                    0,
                )
            };
            assert_eq!(cu!(cuMemHostRegister_v2(shared, 4096usize, 0u32)), 1);
        },
    );
}

#[test]
fn a_handle_travels_as_a_descriptor() {
    clean("a_handle_travels_as_a_descriptor", &[], || {
        start();
        let mut prop = prop(false);
        prop.requestedHandleTypes = 1;
        let (mut handle, mut copy, mut fd) = (0u64, 0u64, -1i32);
        ok!(cuMemCreate(&mut handle, GRANULE as usize, &prop, 0u64));
        ok!(cuMemExportToShareableHandle(&mut fd, handle, 1i32, 0u64));
        ok!(cuMemImportFromShareableHandle(&mut copy, fd as usize, 1i32));
        let (a, b) = (reserve(GRANULE), reserve(GRANULE));
        map(a, GRANULE, handle);
        map(b, GRANULE, copy);
        write(a, 77);
        assert_eq!(read(b), 77);
        assert_eq!(free_bytes(), 1022 * MIB);
        let plain = create(GRANULE, false);
        assert_eq!(
            cu!(cuMemExportToShareableHandle(&mut fd, plain, 1i32, 0u64)),
            1
        );
    });
}
