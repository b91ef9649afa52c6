//! Memory that the driver places itself: taken and given back in stages, each announced, so that the harness can read
//! the ledger in between.

use victim::gpu::Gpu;
use victim::*;

fn stage(name: &str) {
    println!("stage {name}");
    std::io::stdin()
        .read_line(&mut String::new())
        .expect("stdin");
}

const N: usize = 6 << 20;

fn main() {
    let gpu = Gpu::open();
    let cuda = &gpu.cuda;
    stage("start");
    match argument(1).as_str() {
        "async" => {
            let stream = gpu.stream(CU_STREAM_NON_BLOCKING);
            let mut all = [0; 3];
            for p in &mut all {
                ok(cuda.cuMemAllocAsync(p, N, stream));
                ok(cuda.cuMemsetD8Async(*p, 3, N, stream));
            }
            ok(cuda.cuStreamSynchronize(stream));
            stage("three held");
            ok(cuda.cuMemFreeAsync(all[0], stream));
            println!("twice: {}", cuda.cuMemFreeAsync(all[0], stream));
            ok(cuda.cuStreamSynchronize(stream));
            stage("two held");
            assert!(gpu.read(all[1], N).iter().all(|b| *b == 3));
            // What was allocated in stream order may be freed by the other call, and the other way round.
            ok(cuda.cuMemFree_v2(all[1]));
            ok(cuda.cuMemFreeAsync(all[2], stream));
            let own = gpu.alloc(N);
            ok(cuda.cuMemsetD8Async(own, 9, N, stream));
            println!("own, in stream order: {}", cuda.cuMemFreeAsync(own, stream));
            ok(cuda.cuStreamSynchronize(stream));
            for _ in 0..50 {
                let mut p = 0;
                ok(cuda.cuMemAllocAsync(&mut p, N, stream));
                ok(cuda.cuMemFreeAsync(p, stream));
            }
            ok(cuda.cuStreamSynchronize(stream));
            ok(cuda.cuStreamDestroy_v2(stream));
        }
        "vmm" => {
            let prop = CUmemAllocationProp {
                type_: CU_MEM_ALLOCATION_TYPE_PINNED,
                requestedHandleTypes: CU_MEM_HANDLE_TYPE_NONE,
                location: CUmemLocation {
                    type_: CU_MEM_LOCATION_TYPE_DEVICE,
                    id: gpu.device,
                },
                win32HandleMetaData: std::ptr::null_mut(),
                allocFlags: CUmemAllocFlags::default(),
            };
            let access = CUmemAccessDesc {
                location: prop.location,
                flags: CU_MEM_ACCESS_FLAGS_PROT_READWRITE,
            };
            let (mut at, mut all) = (0, [0; 3]);
            ok(cuda.cuMemAddressReserve(&mut at, 3 * N, 0, 0, 0));
            for (i, handle) in all.iter_mut().enumerate() {
                ok(cuda.cuMemCreate(handle, N, &prop, 0));
                ok(cuda.cuMemMap(at + (i * N) as u64, N, 0, *handle, 0));
            }
            ok(cuda.cuMemSetAccess(at, 3 * N, &access, 1));
            ok(cuda.cuMemsetD8_v2(at, 5, 3 * N));
            stage("three held");
            // Released, and held by the mapping all the same; the mapping gone, and held by the handle.
            ok(cuda.cuMemRelease(all[0]));
            ok(cuda.cuCtxSynchronize());
            ok(cuda.cuMemUnmap(at + N as u64, N));
            stage("three held, in part");
            assert!(gpu.read(at, N).iter().all(|b| *b == 5));
            ok(cuda.cuMemRelease(all[1]));
            stage("two held");
            // The program's own ranges are none of ours, and ours are none of its.
            let mut retained = 0;
            ok(cuda.cuMemRetainAllocationHandle(&mut retained, at as *mut c_void));
            ok(cuda.cuMemRelease(retained));
            let own = gpu.alloc(N);
            println!(
                "retain: {}",
                cuda.cuMemRetainAllocationHandle(&mut retained, own as *mut c_void)
            );
            println!("unmap: {}", cuda.cuMemUnmap(own, N));
            println!("release: {}", cuda.cuMemAddressFree(own, N));
            println!("free: {}", cuda.cuMemFree_v2(at));
            gpu.write(own, &pattern(1, N));
            assert!(gpu.read(own, N) == pattern(1, N));
            gpu.free(own);
            ok(cuda.cuMemUnmap(at, N));
            ok(cuda.cuMemUnmap(at + 2 * N as u64, N));
            ok(cuda.cuMemRelease(all[2]));
            ok(cuda.cuMemAddressFree(at, 3 * N));
        }
        "array" => {
            let descriptor = CUDA_ARRAY_DESCRIPTOR {
                Width: 1536,
                Height: 1024,
                Format: 0x20,
                NumChannels: 1,
            };
            let mut all = [std::ptr::null_mut(); 3];
            for array in &mut all {
                ok(cuda.cuArrayCreate_v2(array, &descriptor));
            }
            stage("three held");
            ok(cuda.cuArrayDestroy(all[0]));
            println!("twice: {}", cuda.cuArrayDestroy(all[0]) != 0);
            stage("two held");
            ok(cuda.cuArrayDestroy(all[1]));
            ok(cuda.cuArrayDestroy(all[2]));
        }
        other => panic!("{other}?"),
    }
    stage("end");
}
