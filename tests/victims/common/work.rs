//! A little of everything that programs do with memory: the same lines come out however the driver was reached and
//! wherever the memory is.

use crate::gpu::{Gpu, Kernels};
use crate::*;

pub fn everything(gpu: &Gpu) {
    let cuda = &gpu.cuda;
    let sizes = [
        5 << 20,
        (3 << 20) + 12345,
        64,
        1,
        8 << 20,
        300_000,
        2 << 20,
        (2 << 20) - 1,
    ];
    let all: Vec<(CUdeviceptr, usize)> = sizes.iter().map(|&n| (gpu.alloc(n), n)).collect();
    for (i, &(p, n)) in all.iter().enumerate() {
        assert_eq!(p % 256, 0, "allocation {i} of {n} bytes is not aligned");
        gpu.write(p, &pattern(i as u64, n));
    }
    for (i, &(p, n)) in all.iter().enumerate() {
        println!("written {i}: {n} bytes {:016x}", digest(&gpu.read(p, n)));
        let (mut base, mut bytes) = (0, 0);
        ok(cuda.cuMemGetAddressRange_v2(&mut base, &mut bytes, p + n as u64 / 2));
        println!("range {i}: starts {} bytes {bytes}", base == p);
        let kind = gpu.attribute(p + n as u64 - 1, CU_POINTER_ATTRIBUTE_MEMORY_TYPE);
        println!("kind {i}: {kind:?}");
    }

    // Between allocations, over the inside of them.
    ok(cuda.cuMemcpyDtoD_v2(all[4].0 + 1_000_001, all[0].0 + 17, 3_000_000));
    ok(cuda.cuMemsetD8_v2(all[4].0 + (6 << 20), 0x5A, 1_000_003));
    ok(cuda.cuMemsetD32_v2(all[1].0 + 4, 0xDEAD_BEEF, 500_000));
    ok(cuda.cuMemcpy(all[5].0, all[4].0 + (5 << 20), 300_000));
    for i in [4, 1, 5] {
        println!("moved {i}: {:016x}", digest(&gpu.read(all[i].0, all[i].1)));
    }

    // A pitched image, in and out by rows.
    let (width, height) = (1999, 1031);
    let (mut image, mut pitch) = (0, 0);
    ok(cuda.cuMemAllocPitch_v2(&mut image, &mut pitch, width, height, 4));
    assert!(pitch >= width && pitch % 4 == 0, "pitch {pitch}");
    let rows = pattern(77, width * height);
    ok(cuda.cuMemcpy2D_v2(&two_d_in(&rows, width, height, image, pitch)));
    let mut back = vec![0u8; width * height];
    ok(cuda.cuMemcpy2D_v2(&two_d_out(image, pitch, &mut back, width, height)));
    println!("image: {:016x}", digest(&back));
    assert!(back == rows, "the image changed");
    gpu.free(image);

    // Two streams and an event between them.
    let (one, two) = (gpu.stream(0), gpu.stream(CU_STREAM_NON_BLOCKING));
    let mut event = std::ptr::null_mut();
    ok(cuda.cuEventCreate(&mut event, 2));
    ok(cuda.cuMemsetD8Async(all[0].0, 7, 5 << 20, one));
    ok(cuda.cuEventRecord(event, one));
    ok(cuda.cuStreamWaitEvent(two, event, 0));
    ok(cuda.cuMemcpyDtoDAsync_v2(all[4].0, all[0].0, 5 << 20, two));
    ok(cuda.cuStreamSynchronize(two));
    println!("streamed: {:016x}", digest(&gpu.read(all[4].0, 8 << 20)));
    ok(cuda.cuEventDestroy_v2(event));
    ok(cuda.cuStreamDestroy_v2(one));
    ok(cuda.cuStreamDestroy_v2(two));

    // Kernels over a whole allocation.
    let kernels = Kernels::load(gpu);
    let none = std::ptr::null_mut();
    let (a, b, words) = (all[4].0, all[0].0, (5 << 20) / 8);
    kernels.fill(gpu, none, a, (8 << 20) / 8, 42);
    kernels.axpy(gpu, none, b, a, words, 3);
    kernels.add(gpu, none, b, words, 12345);
    ok(cuda.cuMemsetD8_v2(all[2].0, 0, 8));
    kernels.check(gpu, none, a, (8 << 20) / 8, 42, all[2].0);
    assert_eq!(gpu.read(all[2].0, 8), [0; 8], "a kernel's words changed");
    println!("computed: {:016x}", digest(&gpu.read(b, 5 << 20)));

    for (p, _) in all {
        gpu.free(p);
    }
    ok(cuda.cuCtxSynchronize());
}

fn two_d_none(width: usize, height: usize) -> CUDA_MEMCPY2D {
    CUDA_MEMCPY2D {
        srcXInBytes: 0,
        srcY: 0,
        srcMemoryType: 0,
        srcHost: std::ptr::null(),
        srcDevice: 0,
        srcArray: std::ptr::null_mut(),
        srcPitch: 0,
        dstXInBytes: 0,
        dstY: 0,
        dstMemoryType: 0,
        dstHost: std::ptr::null_mut(),
        dstDevice: 0,
        dstArray: std::ptr::null_mut(),
        dstPitch: 0,
        WidthInBytes: width,
        Height: height,
    }
}

/// Packed rows of the host into pitched rows of the device.
pub fn two_d_in(
    rows: &[u8],
    width: usize,
    height: usize,
    to: CUdeviceptr,
    pitch: usize,
) -> CUDA_MEMCPY2D {
    assert!(rows.len() >= width * height);
    CUDA_MEMCPY2D {
        srcMemoryType: CU_MEMORYTYPE_HOST,
        srcHost: rows.as_ptr().cast(),
        srcPitch: width,
        dstMemoryType: CU_MEMORYTYPE_DEVICE,
        dstDevice: to,
        dstPitch: pitch,
        ..two_d_none(width, height)
    }
}

/// Pitched rows of the device into packed rows of the host.
pub fn two_d_out(
    from: CUdeviceptr,
    pitch: usize,
    rows: &mut [u8],
    width: usize,
    height: usize,
) -> CUDA_MEMCPY2D {
    assert!(rows.len() >= width * height);
    CUDA_MEMCPY2D {
        srcMemoryType: CU_MEMORYTYPE_DEVICE,
        srcDevice: from,
        srcPitch: pitch,
        dstMemoryType: CU_MEMORYTYPE_HOST,
        dstHost: rows.as_mut_ptr().cast(),
        dstPitch: width,
        ..two_d_none(width, height)
    }
}

/// Rows of the device to rows of the device.
pub fn two_d_between(
    from: CUdeviceptr,
    from_pitch: usize,
    to: CUdeviceptr,
    to_pitch: usize,
    width: usize,
    height: usize,
) -> CUDA_MEMCPY2D {
    CUDA_MEMCPY2D {
        srcMemoryType: CU_MEMORYTYPE_DEVICE,
        srcDevice: from,
        srcPitch: from_pitch,
        dstMemoryType: CU_MEMORYTYPE_DEVICE,
        dstDevice: to,
        dstPitch: to_pitch,
        ..two_d_none(width, height)
    }
}
