//! What the environment changes, and how calls come in.
#![allow(missing_docs, clippy::macro_metavars_in_unsafe)]
mod common;
use common::*;
use std::ffi::{CStr, CString};

#[test]
fn nothing_works_before_init() {
    clean("nothing_works_before_init", &[], || {
        let mut n = 0i32;
        assert_eq!(cu!(cuDeviceGetCount(&mut n)), 3);
        ok!(cuDriverGetVersion(&mut n));
        assert_eq!(n, 13000);
        let mut text = std::ptr::null();
        ok!(cuGetErrorName(700i32, &mut text));
        // SAFETY: just answered, and constant.
        let name = unsafe { CStr::from_ptr(text) };
        assert_eq!(name, c"CUDA_ERROR_ILLEGAL_ADDRESS");
        ok!(cuInit(0u32));
        let mut va = 0u64;
        assert_eq!(cu!(cuMemAlloc_v2(&mut va, 64usize)), 201);
        // Mapped memory needs no context.
        let (va, _) = mapped(GRANULE, false);
        unmap(va, GRANULE);
    });
}

#[test]
fn contexts_come_and_go() {
    clean("contexts_come_and_go", &[], || {
        ok!(cuInit(0u32));
        let (mut ctx, mut now, mut device) = (0usize, 0usize, -1i32);
        ok!(cuCtxCreate_v2(&mut ctx, 0u32, 0i32));
        ok!(cuCtxGetCurrent(&mut now));
        assert_eq!(now, ctx);
        ok!(cuCtxGetDevice(&mut device));
        assert_eq!(device, 0);
        let lost = alloc(GRANULE);
        let (va, _) = mapped(GRANULE, false);
        write(va, 8);
        assert_eq!(free_bytes(), 1020 * MIB);
        ok!(cuCtxDestroy_v2(ctx));
        ok!(cuCtxGetCurrent(&mut now));
        assert_eq!(now, 0);
        context(0);
        // What was allocated in the context went with it; mapped memory did not.
        assert_eq!(read(va), 8);
        assert_eq!(free_bytes(), 1022 * MIB);
        assert_eq!(cu!(cuPointerGetAttribute(&mut now, 1i32, lost)), 1);
        let mut active = 0i32;
        ok!(cuDevicePrimaryCtxGetState(0i32, &mut 0u32, &mut active));
        assert_eq!(active, 1);
        ok!(cuDevicePrimaryCtxRelease_v2(0i32));
        let mut gone = 0u64;
        assert_eq!(cu!(cuMemAlloc_v2(&mut gone, 64usize)), 709);
    });
}

#[test]
fn parameters_are_laid_out() {
    let stranger = ["misuse: launch of stranger"];
    records("parameters_are_laid_out", &[], &stranger, || {
        start();
        let f = function("stranger");
        let layout: Vec<(usize, usize)> = (0..4)
            .map(|i| {
                let (mut offset, mut size) = (0usize, 0usize);
                ok!(cuFuncGetParamInfo(f, i as usize, &mut offset, &mut size));
                (offset, size)
            })
            .collect();
        assert_eq!(layout, [(0, 4), (16, 24), (40, 1), (48, 8)]);
        assert_eq!(
            cu!(cuFuncGetParamInfo(f, 4usize, &mut 0usize, &mut 0usize)),
            1
        );
        let args = [0u64; 4];
        let pointers = args.each_ref().map(std::ptr::from_ref);
        let none = std::ptr::null::<*const u8>();
        let launched = cu!(cuLaunchKernel(
            f,
            1u32,
            1u32,
            1u32,
            1u32,
            1u32,
            1u32,
            0u32,
            0usize,
            pointers.as_ptr(),
            none
        ));
        assert_eq!(launched, 801);
        // The same arguments as one buffer.
        let out = alloc(64);
        let mut buffer = [out, 8, 4];
        let mut size = 24usize;
        let extra = [
            1usize,
            buffer.as_mut_ptr() as usize,
            2,
            &raw mut size as usize,
            0,
        ];
        let none = std::ptr::null::<*const u8>();
        ok!(cuLaunchKernel(
            function("gb_fill"),
            1u32,
            1u32,
            1u32,
            1u32,
            1u32,
            1u32,
            0u32,
            0usize,
            none,
            extra.as_ptr()
        ));
        assert_eq!(read(out + 56), mix(11));
        // A library's kernel is launched as it is.
        let image = CString::new(PTX).unwrap();
        let (mut library, mut kernel) = (0usize, 0usize);
        let nil = std::ptr::null::<u8>();
        ok!(cuLibraryLoadData(
            &mut library,
            image.as_ptr(),
            nil,
            nil,
            0u32,
            nil,
            nil,
            0u32
        ));
        ok!(cuLibraryGetKernel(&mut kernel, library, c"gb_add".as_ptr()));
        ok!(cuKernelGetParamInfo(kernel, 2usize, &mut 0usize, &mut size));
        assert_eq!(size, 8);
        let args = [out, 8, 1];
        let pointers = args.each_ref().map(std::ptr::from_ref);
        ok!(cuLaunchKernel(
            kernel,
            1u32,
            1u32,
            1u32,
            1u32,
            1u32,
            1u32,
            0u32,
            0usize,
            pointers.as_ptr(),
            none
        ));
        assert_eq!(read(out + 56), mix(11) + 1);
        let (mut at, mut len) = (0u64, 0usize);
        ok!(cuModuleGetGlobal_v2(
            &mut at,
            &mut len,
            module(),
            c"counter".as_ptr()
        ));
        assert_eq!((read(at), len), (0, 32));
        let fat = [0xba55ed50u32, 0, 0, 0];
        assert_eq!(cu!(cuModuleLoadData(&mut library, fat.as_ptr())), 200);
        assert_eq!(
            cu!(cuModuleLoadData(&mut library, c"nonsense".as_ptr())),
            218
        );
    });
}

#[test]
fn failures_are_injected() {
    clean(
        "failures_are_injected",
        &[(
            "FAKE_CUDA_FAIL",
            "cuMemCreate:3:2,cuMemMap:2+:999,cuMemAlloc:1:46",
        )],
        || {
            start();
            let create = || cu!(cuMemCreate(&mut 0u64, GRANULE as usize, &prop(false), 0u64));
            assert_eq!([create(), create(), create(), create()], [0, 0, 2, 0]);
            let va = reserve(4 * GRANULE);
            let map = |i: u64| {
                let mut handle = 0u64;
                ok!(cuMemCreate(
                    &mut handle,
                    GRANULE as usize,
                    &prop(false),
                    0u64
                ));
                cu!(cuMemMap(
                    va + i * GRANULE,
                    GRANULE as usize,
                    0usize,
                    handle,
                    0u64
                ))
            };
            assert_eq!([map(0), map(1), map(2)], [0, 999, 999]);
            assert_eq!(cu!(cuMemAlloc_v2(&mut 0u64, 64usize)), 46);
            ok!(cuMemAlloc_v2(&mut 0u64, 64usize));
        },
    );
}

#[test]
fn host_numa_may_be_missing() {
    clean(
        "host_numa_may_be_missing",
        &[("FAKE_CUDA_NO_HOST_NUMA", "1")],
        || {
            start();
            let mut value = -1i32;
            ok!(cuDeviceGetAttribute(&mut value, 141i32, 0i32));
            assert_eq!(value, 0);
            assert_eq!(
                cu!(cuMemCreate(&mut 0u64, GRANULE as usize, &prop(true), 0u64)),
                801
            );
            ok!(cuDeviceGetAttribute(&mut value, 102i32, 0i32));
            assert_eq!(value, 1);
        },
    );
}

#[test]
fn nvml_and_cuda_name_the_same_device() {
    clean(
        "nvml_and_cuda_name_the_same_device",
        &[("FAKE_CUDA_DEVICES", "2")],
        || {
            start();
            assert_eq!(cu!(nvmlDeviceGetCount_v2(&mut 0u32)), 1);
            ok!(nvmlInit_v2());
            let (mut id, mut device, mut text) = ([0u8; 16], 0usize, [0u8; 96]);
            ok!(cuDeviceGetUuid_v2(&mut id, 1i32));
            ok!(nvmlDeviceGetHandleByIndex_v2(1u32, &mut device));
            ok!(nvmlDeviceGetUUID(device, text.as_mut_ptr(), 96u32));
            let shown = CStr::from_bytes_until_nul(&text).unwrap().to_str().unwrap();
            let hex: String = id.iter().map(|b| format!("{b:02x}")).collect();
            assert_eq!(shown.replace('-', ""), format!("GPU{hex}"));
            let mut same = 0usize;
            ok!(nvmlDeviceGetHandleByUUID(text.as_ptr(), &mut same));
            assert_eq!(same, device);
            ok!(cuDeviceGetPCIBusId(text.as_mut_ptr(), 96i32, 1i32));
            ok!(nvmlDeviceGetHandleByPciBusId_v2(text.as_ptr(), &mut same));
            assert_eq!(same, device);
            let mut info = greenboost_abi::nvmlMemory_v2_t::default();
            assert_eq!(cu!(nvmlDeviceGetMemoryInfo_v2(device, &mut info)), 25);
            info.version = greenboost_abi::nvmlMemory_v2;
            ok!(nvmlDeviceGetMemoryInfo_v2(device, &mut info));
            assert_eq!(
                (info.total, info.free + info.used + info.reserved),
                (1 << 30, 1 << 30)
            );
            ok!(nvmlShutdown());
        },
    );
}
