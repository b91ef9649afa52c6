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

/// A module with one variable of [`N`] bytes, and its name.
fn variable() -> (CString, CString) {
    let text = format!(
        ".version 7.0\n.target sm_50\n.address_size 64\n.visible .global .align 8 .b8 large[{N}];\n"
    );
    (c(&text), c("large"))
}

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
        "mipmap" => {
            let layers = |n| CUDA_ARRAY3D_DESCRIPTOR {
                Width: 1024,
                Height: 1024,
                Depth: n,
                Format: 0x20,
                NumChannels: 1,
                Flags: CUDA_ARRAY3D_LAYERED,
            };
            // 4 MiB and 2 of 1 and 3 levels; one that is backed by nothing yet.
            let mut all = [std::ptr::null_mut(); 3];
            let mut half = layers(1);
            half.Height = 512;
            for mip in &mut all {
                ok(cuda.cuMipmappedArrayCreate(mip, &layers(1), 1));
            }
            let mut rest = [std::ptr::null_mut(); 3];
            for array in &mut rest {
                ok(cuda.cuArray3DCreate_v2(array, &half));
            }
            let mut later = layers(200);
            later.Flags |= CUDA_ARRAY3D_SPARSE;
            let mut sparse = std::ptr::null_mut();
            ok(cuda.cuArray3DCreate_v2(&mut sparse, &later));
            stage("three held");
            ok(cuda.cuMipmappedArrayDestroy(all[0]));
            ok(cuda.cuArrayDestroy(rest[0]));
            stage("two held");
            for i in 1..3 {
                ok(cuda.cuMipmappedArrayDestroy(all[i]));
                ok(cuda.cuArrayDestroy(rest[i]));
            }
            ok(cuda.cuArrayDestroy(sparse));
        }
        "module" => {
            let (image, name) = variable();
            let mut all = [std::ptr::null_mut(); 3];
            for module in &mut all {
                ok(cuda.cuModuleLoadData(module, image.as_ptr().cast()));
                let (mut p, mut n) = (0, 0);
                for _ in 0..3 {
                    ok(cuda.cuModuleGetGlobal_v2(&mut p, &mut n, *module, name.as_ptr()));
                }
                assert_eq!(n, N);
                ok(cuda.cuMemsetD8_v2(p, 1, N));
            }
            ok(cuda.cuCtxSynchronize());
            stage("three held");
            ok(cuda.cuModuleUnload(all[1]));
            stage("two held");
            ok(cuda.cuModuleUnload(all[0]));
            ok(cuda.cuModuleUnload(all[2]));
        }
        "library" => {
            let (image, name) = variable();
            let (null, nulls) = (std::ptr::null_mut(), std::ptr::null_mut());
            let mut all = [std::ptr::null_mut(); 3];
            for library in &mut all {
                let code = image.as_ptr().cast();
                ok(cuda.cuLibraryLoadData(library, code, null, nulls, 0, null, nulls, 0));
                let (mut p, mut n) = (0, 0);
                for _ in 0..3 {
                    ok(cuda.cuLibraryGetGlobal(&mut p, &mut n, *library, name.as_ptr()));
                }
                assert_eq!(n, N);
            }
            stage("three held");
            ok(cuda.cuLibraryUnload(all[2]));
            stage("two held");
            ok(cuda.cuLibraryUnload(all[0]));
            ok(cuda.cuLibraryUnload(all[1]));
        }
        "context" => {
            // All that is counted, in contexts that end with it.
            let mut own = [std::ptr::null_mut(); 3];
            let (image, name) = variable();
            for context in &mut own {
                ok(cuda.cuCtxCreate_v2(context, 0, gpu.device));
                let mut module = std::ptr::null_mut();
                ok(cuda.cuModuleLoadData(&mut module, image.as_ptr().cast()));
                let (mut p, mut n) = (0, 0);
                ok(cuda.cuModuleGetGlobal_v2(&mut p, &mut n, module, name.as_ptr()));
                ok(cuda.cuMemAllocManaged(&mut p, N, 1));
                let mut host = std::ptr::null_mut();
                ok(cuda.cuMemHostAlloc(&mut host, N, 1));
                ok(cuda.cuCtxPopCurrent_v2(&mut std::ptr::null_mut()));
            }
            stage("three held");
            ok(cuda.cuCtxDestroy_v2(own[0]));
            stage("two held");
            ok(cuda.cuCtxDestroy_v2(own[1]));
            ok(cuda.cuCtxDestroy_v2(own[2]));
            gpu.enter();
        }
        "limit" => {
            // 270336 threads can be resident; so many bytes for each.
            let step = 24;
            ok(cuda.cuCtxSetLimit(CU_LIMIT_STACK_SIZE, 1024 + 3 * step));
            ok(cuda.cuCtxSetLimit(CU_LIMIT_MALLOC_HEAP_SIZE, 64 << 20));
            stage("three held");
            ok(cuda.cuCtxSetLimit(CU_LIMIT_STACK_SIZE, 1024 + 2 * step));
            stage("two held");
            ok(cuda.cuCtxSetLimit(CU_LIMIT_STACK_SIZE, 1024));
        }
        "managed" => {
            let mut all = [0; 3];
            for p in &mut all {
                ok(cuda.cuMemAllocManaged(p, N, 1));
                ok(cuda.cuMemsetD8_v2(*p, 3, N));
            }
            stage("three held");
            gpu.free(all[1]);
            stage("two held");
            println!("inside: {}", cuda.cuMemFree_v2(all[0] + 4096));
            gpu.free(all[0]);
            gpu.free(all[2]);
        }
        "pinned" => {
            let mut all = [std::ptr::null_mut(); 3];
            ok(cuda.cuMemHostAlloc(&mut all[0], N, 0));
            ok(cuda.cuMemAllocHost_v2(&mut all[1], N));
            ok(cuda.cuMemHostAlloc(&mut all[2], N - 100, 1));
            stage("three held");
            ok(cuda.cuMemFreeHost(all[1]));
            println!("inside: {}", cuda.cuMemFreeHost(all[0].wrapping_byte_add(4096)));
            stage("two held");
            println!("unregister: {}", cuda.cuMemHostUnregister(all[0]));
            ok(cuda.cuMemFreeHost(all[0]));
            ok(cuda.cuMemFreeHost(all[2]));
        }
        "registered" => {
            let memory: &'static mut [u8] = vec![7u8; 4 * N].leak();
            let start = memory.as_mut_ptr().wrapping_add(4096 - memory.as_ptr() as usize % 4096);
            let at = |i: usize| start.wrapping_add(i * N).cast::<c_void>();
            for i in 0..3 {
                ok(cuda.cuMemHostRegister_v2(at(i), N, 0));
            }
            println!("twice: {}", cuda.cuMemHostRegister_v2(at(1), N, 0));
            stage("three held");
            ok(cuda.cuMemHostUnregister(at(1)));
            println!("again: {}", cuda.cuMemHostUnregister(at(1)));
            println!("inside: {}", cuda.cuMemHostUnregister(at(0).wrapping_byte_add(8192)));
            stage("two held");
            println!("free: {}", cuda.cuMemFreeHost(at(0)));
            ok(cuda.cuMemHostUnregister(at(0)));
            ok(cuda.cuMemHostUnregister(at(2)));
        }
        "external" => {
            let mut prop = CUmemAllocationProp {
                type_: CU_MEM_ALLOCATION_TYPE_PINNED,
                requestedHandleTypes: CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR,
                location: CUmemLocation {
                    type_: CU_MEM_LOCATION_TYPE_DEVICE,
                    id: gpu.device,
                },
                win32HandleMetaData: std::ptr::null_mut(),
                allocFlags: CUmemAllocFlags::default(),
            };
            prop.allocFlags.usage = 0;
            // Another interface would have made it; CUDA's own export stands in for one, and is charged to VRAM once.
            let mut handle = 0;
            ok(cuda.cuMemCreate(&mut handle, N, &prop, 0));
            stage("one made");
            let mut all = [std::ptr::null_mut(); 3];
            for memory in &mut all {
                let mut fd = -1;
                ok(cuda.cuMemExportToShareableHandle((&raw mut fd).cast(), handle, 1, 0));
                let desc = CUDA_EXTERNAL_MEMORY_HANDLE_DESC {
                    type_: CU_EXTERNAL_MEMORY_HANDLE_TYPE_OPAQUE_FD,
                    fd,
                    size: N as u64,
                    ..Default::default()
                };
                ok(cuda.cuImportExternalMemory(memory, &desc));
            }
            let whole = CUDA_EXTERNAL_MEMORY_BUFFER_DESC { size: N as u64, ..Default::default() };
            let mut buffers = [0; 2];
            for p in &mut buffers {
                ok(cuda.cuExternalMemoryGetMappedBuffer(p, all[0], &whole));
            }
            gpu.write(buffers[0], &pattern(5, N));
            assert!(gpu.read(buffers[1], N) == pattern(5, N), "two mappings of one memory");
            stage("three held");
            ok(cuda.cuDestroyExternalMemory(all[1]));
            stage("two held");
            for p in buffers {
                gpu.free(p);
            }
            ok(cuda.cuDestroyExternalMemory(all[0]));
            ok(cuda.cuDestroyExternalMemory(all[2]));
            ok(cuda.cuMemRelease(handle));
        }
        "variable" => {
            // One of so many bytes, of which only the second question is about the large one.
            let bytes: usize = argument(2).parse().expect("bytes");
            let text = format!(
                ".version 7.0\n.target sm_50\n.address_size 64\n.visible .global .align 8 .b8 little[64];\n\
                 .visible .global .align 8 .b8 large[{bytes}];\n"
            );
            let (image, little, large) = (c(&text), c("little"), c("large"));
            let mut module = std::ptr::null_mut();
            ok(cuda.cuModuleLoadData(&mut module, image.as_ptr().cast()));
            stage("loaded");
            let (mut p, mut n) = (0, 0);
            ok(cuda.cuModuleGetGlobal_v2(&mut p, &mut n, module, little.as_ptr()));
            let none = std::ptr::null_mut();
            ok(cuda.cuModuleGetGlobal_v2(&mut p, none, module, large.as_ptr()));
            stage("known");
            ok(cuda.cuModuleUnload(module));
        }
        "array-limit" => {
            // Beside a range that was freed and is kept for reuse, until there are no more.
            gpu.works(1, 6 << 20);
            let descriptor = CUDA_ARRAY_DESCRIPTOR {
                Width: 1024,
                Height: 256,
                Format: 0x20,
                NumChannels: 1,
            };
            for round in 0..3 {
                let mut all = Vec::new();
                let last = loop {
                    let mut array = std::ptr::null_mut();
                    match cuda.cuArrayCreate_v2(&mut array, &descriptor) {
                        0 => all.push(array),
                        e => break e,
                    }
                };
                println!("~ round {round}: {} arrays, then {last}", all.len());
                for array in all {
                    ok(cuda.cuArrayDestroy(array));
                }
            }
        }
        "host-limit" => {
            // Takes pinned memory until it is refused; spilled memory that is kept for reuse is given up for it.
            gpu.works(1, 30 << 20);
            for round in 0..2 {
                let mut all = Vec::new();
                let last = loop {
                    let mut p = std::ptr::null_mut();
                    match cuda.cuMemHostAlloc(&mut p, 1 << 20, 0) {
                        0 => all.push(p),
                        e => break e,
                    }
                };
                println!("~ round {round}: {} pieces, then {last}", all.len());
                let mut block = vec![1u8; 4 << 20];
                let base = block.as_mut_ptr().cast();
                println!("register: {}", cuda.cuMemHostRegister_v2(base, 4 << 20, 0));
                println!("spill: {:?}", gpu.try_alloc(40 << 20).is_ok());
                for p in all {
                    ok(cuda.cuMemFreeHost(p));
                }
                println!("register: {}", cuda.cuMemHostRegister_v2(base, 4 << 20, 0));
                gpu.works(2, 30 << 20);
                ok(cuda.cuMemHostUnregister(base));
            }
        }
        other => panic!("{other}?"),
    }
    stage("end");
}
