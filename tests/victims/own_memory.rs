//! A program that manages device memory itself, as XLA does: more handles than VRAM has room for, mapped side by side.

use victim::gpu::Gpu;
use victim::*;

const N: usize = 6 << 20;
const MANY: usize = 8;

fn main() {
    let gpu = Gpu::open();
    let cuda = &gpu.cuda;
    let location = CUmemLocation {
        type_: CU_MEM_LOCATION_TYPE_DEVICE,
        id: gpu.device,
    };
    let prop = CUmemAllocationProp {
        type_: CU_MEM_ALLOCATION_TYPE_PINNED,
        requestedHandleTypes: CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR,
        location,
        win32HandleMetaData: std::ptr::null_mut(),
        allocFlags: CUmemAllocFlags {
            gpuDirectRDMACapable: 1,
            ..Default::default()
        },
    };
    let access = CUmemAccessDesc {
        location,
        flags: CU_MEM_ACCESS_FLAGS_PROT_READWRITE,
    };
    if argument(1) == "count" {
        let mut handles = vec![0];
        while cuda.cuMemCreate(handles.last_mut().unwrap(), N, &prop, 0) == 0 {
            handles.push(0);
        }
        handles.pop();
        println!("~ made {}", handles.len());
        for handle in handles {
            ok(cuda.cuMemRelease(handle));
        }
        return;
    }
    for round in 0..2 {
        let (mut at, mut handles) = (0, [0; MANY]);
        ok(cuda.cuMemAddressReserve(&mut at, MANY * N, 0, 0, 0));
        for (i, handle) in handles.iter_mut().enumerate() {
            let here = at + (i * N) as u64;
            ok(cuda.cuMemCreate(handle, N, &prop, 0));
            ok(cuda.cuMemMap(here, N, 0, *handle, 0));
            ok(cuda.cuMemSetAccess(here, N, &access, 1));
            let mut told = prop;
            ok(cuda.cuMemGetAllocationPropertiesFromHandle(&mut told, *handle));
            println!(
                "{round}.{i}: on {:?}, rdma {}, kind {:?} {:?}, device {:?}",
                told.location,
                told.allocFlags.gpuDirectRDMACapable,
                gpu.attribute(here, CU_POINTER_ATTRIBUTE_MEMORY_TYPE),
                gpu.attribute(here + N as u64 - 1, CU_POINTER_ATTRIBUTE_MEMORY_TYPE),
                gpu.attribute(here, CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL),
            );
        }
        // One pattern over all of it, across every border.
        let bytes = pattern(7 + round, MANY * N);
        gpu.write(at, &bytes);
        assert!(gpu.read(at, MANY * N) == bytes);
        let own = gpu.alloc(3 << 20);
        gpu.write(own, &bytes[..3 << 20]);
        ok(cuda.cuMemcpyDtoD_v2(at + 5 * N as u64 - 100, own, 3 << 20));
        let back = gpu.read(at + 5 * N as u64 - 100, 3 << 20);
        assert!(back == bytes[..3 << 20]);
        gpu.free(own);
        let (free, total) = gpu.memory();
        println!("~ held {}", total - free);
        for (i, handle) in handles.into_iter().enumerate() {
            ok(cuda.cuMemUnmap(at + (i * N) as u64, N));
            ok(cuda.cuMemRelease(handle));
        }
        ok(cuda.cuMemAddressFree(at, MANY * N));
    }
    let mut handle = 0;
    println!("huge: {}", cuda.cuMemCreate(&mut handle, 1 << 40, &prop, 0));
    println!("odd: {}", cuda.cuMemCreate(&mut handle, 1000, &prop, 0));
    gpu.works(3, 4 << 20);
}
