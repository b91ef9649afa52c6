//! Corners that no other program comes to.

use victim::gpu::Gpu;
use victim::*;

const N: usize = 6 << 20;

fn main() {
    match argument(1).as_str() {
        "managed" => managed(),
        "handle-elsewhere" => handle_elsewhere(),
        "info-without-context" => info_without_context(),
        other => panic!("{other}?"),
    }
}

/// Managed memory stays managed, and spilled memory is not, inside as at the base.
fn managed() {
    let gpu = Gpu::open();
    let cuda = &gpu.cuda;
    let mut p = 0;
    ok(cuda.cuMemAllocManaged(&mut p, N, 1));
    let placed: Vec<CUdeviceptr> = (0..4).map(|_| gpu.alloc(N)).collect();
    for (i, at) in placed.iter().copied().chain([p]).enumerate() {
        for offset in [0, 1, N as u64 / 2, N as u64 - 1] {
            // Memory type, host pointer, managed.
            let of = |attribute| gpu.attribute(at + offset, attribute).map(|v| v & 0xFF);
            let host = gpu.attribute(at + offset, 4).is_ok();
            println!("{i} {offset}: {:?} {host} {:?}", of(2), of(8));
        }
        let (mut base, mut size) = (0, 0);
        let result = cuda.cuMemGetAddressRange_v2(&mut base, &mut size, at + 77);
        println!("{i}: {result} {} {size}", base == at);
    }
    ok(cuda.cuMemcpyDtoD_v2(p, placed[3], N));
    for at in placed.into_iter().chain([p]) {
        gpu.free(at);
    }
}

/// A handle on another device than the current one.
fn handle_elsewhere() {
    let near = Gpu::open();
    let cuda = &near.cuda;
    let far = Gpu::on(Driver::reach(), 1);
    far.works(1, N);
    near.enter();
    let p = near.alloc(2 << 20);
    let prop = CUmemAllocationProp {
        type_: CU_MEM_ALLOCATION_TYPE_PINNED,
        requestedHandleTypes: 0,
        location: CUmemLocation {
            type_: CU_MEM_LOCATION_TYPE_DEVICE,
            id: far.device,
        },
        win32HandleMetaData: std::ptr::null_mut(),
        allocFlags: Default::default(),
    };
    let mut handle = 0;
    ok(cuda.cuMemCreate(&mut handle, N, &prop, 0));
    println!("holding");
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).expect("stdin");
    ok(cuda.cuMemRelease(handle));
    near.free(p);
}

/// What there is, asked before there is a context: the driver's own answer.
fn info_without_context() {
    let cuda = Driver::reach();
    let (mut free, mut total) = (1, 1);
    println!("before init: {}", cuda.cuMemGetInfo_v2(&mut free, &mut total));
    ok(cuda.cuInit(0));
    println!("before a context: {}", cuda.cuMemGetInfo_v2(&mut free, &mut total));
    let gpu = Gpu::on(cuda, 0);
    println!("with one: {}", gpu.cuda.cuMemGetInfo_v2(&mut free, &mut total));
    assert!(free > 1 && free <= total);
    gpu.works(1, N);
    ok(gpu.cuda.cuCtxSetCurrent(std::ptr::null_mut()));
    println!("without it: {}", gpu.cuda.cuMemGetInfo_v2(&mut free, &mut total));
    gpu.enter();
    gpu.works(2, N);
}
