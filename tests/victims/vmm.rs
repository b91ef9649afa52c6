//! Programs that manage device memory themselves: PyTorch's expandable segments, vLLM's sleep mode, NCCL's buffers, and
//! those that ask for host memory.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::{Command, Stdio};

use victim::gpu::Gpu;
use victim::*;

const SEGMENT: usize = 20 << 20;
const GRAIN: usize = 2 << 20;

fn main() {
    match argument(1).as_str() {
        "expandable" => expandable(),
        "sleep" => sleep(),
        "exchange" => exchange(),
        "import" => import(),
        "host" => host(),
        "rights" => rights(),
        "references" => references(),
        "threads" => threads(),
        other => panic!("no case {other}"),
    }
}

fn prop(type_: c_int, id: c_int, types: c_int) -> CUmemAllocationProp {
    CUmemAllocationProp {
        type_: CU_MEM_ALLOCATION_TYPE_PINNED,
        requestedHandleTypes: types,
        location: CUmemLocation { type_, id },
        win32HandleMetaData: std::ptr::null_mut(),
        allocFlags: CUmemAllocFlags {
            gpuDirectRDMACapable: 1,
            ..Default::default()
        },
    }
}

fn device_memory() -> CUmemAllocationProp {
    prop(CU_MEM_LOCATION_TYPE_DEVICE, 0, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR)
}

const OPEN: CUmemAccessDesc = CUmemAccessDesc {
    location: CUmemLocation {
        type_: CU_MEM_LOCATION_TYPE_DEVICE,
        id: 0,
    },
    flags: CU_MEM_ACCESS_FLAGS_PROT_READWRITE,
};

fn create(gpu: &Gpu, bytes: usize, prop: &CUmemAllocationProp) -> Result<u64, CUresult> {
    let mut handle = 0;
    match gpu.cuda.cuMemCreate(&mut handle, bytes, prop, 0) {
        CUDA_SUCCESS => Ok(handle),
        code => Err(code),
    }
}

fn reserve(gpu: &Gpu, bytes: usize) -> CUdeviceptr {
    let mut p = 0;
    ok(gpu.cuda.cuMemAddressReserve(&mut p, bytes, 0, 0, 0));
    p
}

fn map(gpu: &Gpu, p: CUdeviceptr, bytes: usize, handle: u64) {
    ok(gpu.cuda.cuMemMap(p, bytes, 0, handle, 0));
    ok(gpu.cuda.cuMemSetAccess(p, bytes, &OPEN, 1));
}

/// A segment grows, shrinks at its end, and grows again at the same addresses. Handles are kept while they are mapped.
fn expandable() {
    let gpu = Gpu::open();
    let cuda = &gpu.cuda;
    let base = reserve(&gpu, 64 * SEGMENT);
    let mut handles = Vec::new();
    for round in 0..3 {
        while handles.len() < 5 {
            let at = base + (handles.len() * SEGMENT) as u64;
            let handle = create(&gpu, SEGMENT, &device_memory()).expect("a segment");
            map(&gpu, at, SEGMENT, handle);
            handles.push(handle);
        }
        let bytes = pattern(round, 5 * SEGMENT);
        gpu.write(base, &bytes);
        assert!(gpu.read(base, 5 * SEGMENT) == bytes, "round {round}");
        let kinds: Vec<_> = (0..5)
            .map(|i| gpu.attribute(base + (i * SEGMENT) as u64 + 8, CU_POINTER_ATTRIBUTE_MEMORY_TYPE))
            .collect();
        println!("round {round}: {:016x} {kinds:?}", digest(&bytes));
        // The middle goes too, in one call with what is behind it.
        let keep = [2, 4, 1][round as usize];
        ok(cuda.cuCtxSynchronize());
        ok(cuda.cuMemUnmap(base + (keep * SEGMENT) as u64, (5 - keep) * SEGMENT));
        for handle in handles.drain(keep..) {
            ok(cuda.cuMemRelease(handle));
        }
        assert!(gpu.read(base, keep * SEGMENT) == bytes[..keep * SEGMENT]);
        println!("part of one: {}", cuda.cuMemUnmap(base, GRAIN));
    }
    ok(cuda.cuMemUnmap(base, SEGMENT));
    ok(cuda.cuMemRelease(handles[0]));
    ok(cuda.cuMemAddressFree(base, 64 * SEGMENT));
}

/// Everything is given back and comes again under the same address; what was to be kept was copied to the host.
fn sleep() {
    let gpu = Gpu::open();
    let cuda = &gpu.cuda;
    let p = reserve(&gpu, 3 * SEGMENT);
    let mut bytes = pattern(1, 3 * SEGMENT);
    for round in 0..4 {
        let handle = create(&gpu, 3 * SEGMENT, &device_memory()).expect("memory");
        map(&gpu, p, 3 * SEGMENT, handle);
        gpu.write(p, &bytes);
        ok(cuda.cuMemsetD8_v2(p + round * 1000, 0xA5, 500));
        bytes = gpu.read(p, 3 * SEGMENT);
        println!("awake {round}: {:016x}", digest(&bytes));
        let (free, total) = gpu.memory();
        println!("~ held {}", total - free);
        ok(cuda.cuCtxSynchronize());
        ok(cuda.cuMemUnmap(p, 3 * SEGMENT));
        ok(cuda.cuMemRelease(handle));
        let (free, total) = gpu.memory();
        println!("~ asleep {}", total - free);
    }
    ok(cuda.cuMemAddressFree(p, 3 * SEGMENT));
}

fn export(gpu: &Gpu, handle: u64) -> OwnedFd {
    let mut fd: c_int = -1;
    ok(gpu.cuda.cuMemExportToShareableHandle((&raw mut fd).cast(), handle, 1, 0));
    // SAFETY: the driver made it for the caller.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

fn take(gpu: &Gpu, fd: c_int) -> u64 {
    let mut handle = 0;
    ok(gpu.cuda.cuMemImportFromShareableHandle(&mut handle, fd as usize as *mut c_void, 1));
    handle
}

/// Buffers are exported to another process, and imported again by the same.
fn exchange() {
    let gpu = Gpu::open();
    let cuda = &gpu.cuda;
    // Room for one in VRAM at most.
    for i in 0..2 {
        let held = || {
            let (free, total) = gpu.memory();
            total - free
        };
        let own = create(&gpu, SEGMENT, &device_memory()).expect("a buffer");
        let p = reserve(&gpu, SEGMENT);
        map(&gpu, p, SEGMENT, own);
        gpu.write(p, &pattern(i, SEGMENT));
        let before = held();
        let fd = export(&gpu, own);
        let again = take(&gpu, fd.as_raw_fd());
        let q = reserve(&gpu, SEGMENT);
        map(&gpu, q, SEGMENT, again);
        assert!(gpu.read(q, SEGMENT) == pattern(i, SEGMENT));
        println!("{i}: counted again {}", held() - before);
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["import", &i.to_string()])
            .stdin(Stdio::from(fd))
            .output()
            .expect("a child");
        print!("{}", String::from_utf8_lossy(&output.stdout));
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(gpu.read(p, SEGMENT) == pattern(10 + i, SEGMENT), "the child's bytes");
        assert!(gpu.read(q, SEGMENT) == pattern(10 + i, SEGMENT), "through the import");
        ok(cuda.cuMemUnmap(q, SEGMENT));
        ok(cuda.cuMemRelease(again));
        println!("{i}: the first one is still held {}", held() - before);
        if i == 1 {
            ok(cuda.cuMemUnmap(p, SEGMENT));
            ok(cuda.cuMemRelease(own));
        }
    }
}

fn import() {
    let gpu = Gpu::open();
    let i: u64 = argument(2).parse().unwrap();
    let (free, _) = gpu.memory();
    // Number 0 is a null pointer to the driver.
    // SAFETY: nothing else has this number.
    let fd = unsafe { sys::dup2(0, 100) };
    let handle = take(&gpu, fd);
    let p = reserve(&gpu, SEGMENT);
    map(&gpu, p, SEGMENT, handle);
    let mut told = device_memory();
    ok(gpu.cuda.cuMemGetAllocationPropertiesFromHandle(&mut told, handle));
    println!(
        "{i} there: {:?}, kind {:?}, device {:?}, {}, counted {}",
        told.location,
        gpu.attribute(p, CU_POINTER_ATTRIBUTE_MEMORY_TYPE),
        gpu.attribute(p, CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL),
        gpu.read(p, SEGMENT) == pattern(i, SEGMENT),
        free - gpu.memory().0,
    );
    gpu.write(p, &pattern(10 + i, SEGMENT));
    ok(gpu.cuda.cuCtxSynchronize());
    ok(gpu.cuda.cuMemRelease(handle));
    ok(gpu.cuda.cuMemUnmap(p, SEGMENT));
}

/// Host memory that the program makes itself, until there is no more of it.
fn host() {
    let gpu = Gpu::open();
    let cuda = &gpu.cuda;
    let mut one = prop(CU_MEM_LOCATION_TYPE_HOST_NUMA, 0, 0);
    one.allocFlags.gpuDirectRDMACapable = 0;
    let handle = create(&gpu, SEGMENT, &one).expect("host memory");
    let p = reserve(&gpu, SEGMENT);
    map(&gpu, p, SEGMENT, handle);
    gpu.write(p, &pattern(1, SEGMENT));
    assert!(gpu.read(p, SEGMENT) == pattern(1, SEGMENT));
    let mut told = device_memory();
    ok(cuda.cuMemGetAllocationPropertiesFromHandle(&mut told, handle));
    println!("host is host: {:?}, kind {:?}", told.location, gpu.attribute(p, CU_POINTER_ATTRIBUTE_MEMORY_TYPE));
    let mut all = Vec::new();
    let code = loop {
        match create(&gpu, SEGMENT, &one) {
            Ok(handle) if all.len() < 30 => all.push(handle),
            Ok(_) => panic!("no end of it"),
            Err(code) => break code,
        }
    };
    println!("~ made {} then {code}", all.len());
    for handle in all {
        ok(cuda.cuMemRelease(handle));
    }
    ok(cuda.cuMemUnmap(p, SEGMENT));
    ok(cuda.cuMemRelease(handle));
    ok(cuda.cuMemAddressFree(p, SEGMENT));
    let again = create(&gpu, SEGMENT, &one).expect("room again");
    ok(cuda.cuMemRelease(again));
}

/// Access rights of device memory, wherever it is; and of memory that is not the program's to open.
fn rights() {
    let gpu = Gpu::open();
    let cuda = &gpu.cuda;
    for i in 0..3 {
        let handle = create(&gpu, SEGMENT, &device_memory()).expect("memory");
        let p = reserve(&gpu, SEGMENT);
        ok(cuda.cuMemMap(p, SEGMENT, 0, handle, 0));
        let rights = || {
            let mut flags = 9;
            ok(cuda.cuMemGetAccess(&mut flags, &OPEN.location, p));
            flags
        };
        let mut seen = vec![rights()];
        for flags in [3, 1, 0, 3] {
            ok(cuda.cuMemSetAccess(p, SEGMENT, &CUmemAccessDesc { flags, ..OPEN }, 1));
            seen.push(rights());
        }
        println!("{i}: {seen:?}");
        let cpu = CUmemLocation {
            type_: CU_MEM_LOCATION_TYPE_HOST_NUMA,
            id: 0,
        };
        let for_cpu = CUmemAccessDesc {
            location: cpu,
            flags: 3,
        };
        let mut flags = 9;
        println!(
            "{i}: for the CPU {}, then {} {flags}",
            cuda.cuMemSetAccess(p, SEGMENT, &for_cpu, 1),
            cuda.cuMemGetAccess(&mut flags, &cpu, p),
        );
        println!("{i}: a part {}", cuda.cuMemSetAccess(p, GRAIN, &OPEN, 1));
        ok(cuda.cuMemUnmap(p, SEGMENT));
        ok(cuda.cuMemRelease(handle));
    }
    let own = gpu.alloc(SEGMENT);
    println!("of an allocation: {}", cuda.cuMemSetAccess(own, SEGMENT, &OPEN, 1));
    gpu.write(own, &pattern(3, SEGMENT));
    gpu.free(own);
    let mut tile = device_memory();
    tile.allocFlags.usage = 1;
    let made: Vec<_> = (0..3).map_while(|_| create(&gpu, SEGMENT, &tile).ok()).collect();
    println!("~ tiles {}", made.len());
    for handle in made {
        ok(cuda.cuMemRelease(handle));
    }
}

/// Memory is counted until the last handle and the last mapping are gone, in whatever order, and calls that fail count
/// for nothing.
fn references() {
    let gpu = Gpu::open();
    let cuda = &gpu.cuda;
    let held = || {
        let (free, total) = gpu.memory();
        (total - free) >> 20
    };
    let small = gpu.alloc(4096);
    let start = held();
    let say = |what: &str| println!("{what}: {}", held() - start);
    let a = create(&gpu, SEGMENT, &device_memory()).expect("memory");
    let b = create(&gpu, SEGMENT, &device_memory()).expect("memory");
    say("two");
    let p = reserve(&gpu, 3 * SEGMENT);
    map(&gpu, p, SEGMENT, a);
    map(&gpu, p + SEGMENT as u64, SEGMENT, b);
    map(&gpu, p + 2 * SEGMENT as u64, SEGMENT, a);
    println!("over another {}", cuda.cuMemMap(p, SEGMENT, 0, b, 0));
    println!("out of nowhere {}", cuda.cuMemMap(0x1234_5000, SEGMENT, 0, b, 0));
    ok(cuda.cuMemRelease(a));
    ok(cuda.cuMemRelease(b));
    println!("released again {}", cuda.cuMemRelease(b));
    say("released while mapped");
    let mut again = 0;
    ok(cuda.cuMemRetainAllocationHandle(&mut again, (p + 8) as *mut c_void));
    println!("retained {}", again == a);
    let mut other = 0;
    println!("of an allocation {}", cuda.cuMemRetainAllocationHandle(&mut other, small as *mut c_void));
    ok(cuda.cuMemUnmap(p, 2 * SEGMENT));
    say("two of three unmapped");
    ok(cuda.cuMemUnmap(p + 2 * SEGMENT as u64, SEGMENT));
    say("retained alone");
    map(&gpu, p, SEGMENT, again);
    ok(cuda.cuMemUnmap(p, SEGMENT));
    ok(cuda.cuMemRelease(again));
    say("nothing");
    gpu.free(small);
    ok(cuda.cuMemAddressFree(p, 3 * SEGMENT));
}

/// Threads make, map, unmap and release at once, each in the other order.
fn threads() {
    let gpu = Gpu::open();
    std::thread::scope(|scope| {
        for n in 0..8u64 {
            let gpu = &gpu;
            scope.spawn(move || {
                gpu.enter();
                let p = reserve(gpu, 4 * GRAIN);
                for round in 0..60 {
                    let Ok(handle) = create(gpu, 4 * GRAIN, &device_memory()) else {
                        continue;
                    };
                    map(gpu, p, 4 * GRAIN, handle);
                    if (n + round) % 2 == 0 {
                        ok(gpu.cuda.cuMemRelease(handle));
                    }
                    gpu.write(p, &pattern(n * 1000 + round, 4096));
                    assert!(gpu.read(p, 4096) == pattern(n * 1000 + round, 4096));
                    ok(gpu.cuda.cuMemUnmap(p, 4 * GRAIN));
                    if (n + round) % 2 == 1 {
                        ok(gpu.cuda.cuMemRelease(handle));
                    }
                }
                ok(gpu.cuda.cuMemAddressFree(p, 4 * GRAIN));
            });
        }
    });
    let (free, total) = gpu.memory();
    println!("~ held {}", total - free);
    println!("end");
}
