//! Two devices of one process: peer access, and copies from one to the other.

use victim::gpu::{Gpu, Kernels};
use victim::*;

const N: usize = 6 << 20;

fn main() {
    let one = Gpu::open();
    let two = Gpu::on(Driver::reach(), 1);
    match argument(1).as_str() {
        "copies" => copies(&one, &two),
        "access" => access(&one, &two),
        "threads" => threads(&one, &two),
        other => panic!("no case {other}"),
    }
}

/// Memory of device 0 is freed while device 1 still copies from it, in every form that reaches across.
fn copies(one: &Gpu, two: &Gpu) {
    let kernels = Kernels::load(two);
    let stream = two.stream(CU_STREAM_NON_BLOCKING);
    let to = two.alloc(N);
    let forms = if argument(2) == "named" { 1 } else { 4 };
    for form in 0..forms {
        one.enter();
        let from = one.alloc(N);
        one.write(from, &pattern(form, N));
        two.enter();
        kernels.spin(two, stream, 80_000_000);
        let cuda = &two.cuda;
        ok(match form {
            0 => cuda.cuMemcpyPeerAsync(to, two.context, from, one.context, N, stream),
            1 => cuda.cuMemcpyAsync(to, from, N, stream),
            2 => cuda.cuMemcpyDtoDAsync_v2(to, from, N, stream),
            _ => {
                let mut copy = victim::work::two_d_out(from, N / 4, &mut vec![0; N], N / 4, 4);
                copy.dstMemoryType = CU_MEMORYTYPE_DEVICE;
                copy.dstDevice = to;
                copy.dstPitch = N / 4;
                cuda.cuMemcpy2DAsync_v2(&copy, stream)
            }
        });
        one.enter();
        one.free(from);
        two.enter();
        ok(cuda.cuStreamSynchronize(stream));
        println!("form {form}: {}", two.read(to, N) == pattern(form, N));
    }
    two.free(to);
}

/// The rights of device 1 on memory of device 0, if it is a range of the shim's.
fn rights(one: &Gpu, p: CUdeviceptr) -> u64 {
    let location = CUmemLocation {
        type_: CU_MEM_LOCATION_TYPE_DEVICE,
        id: 1,
    };
    let mut flags = 9;
    ok(one.cuda.cuMemGetAccess(&mut flags, &location, p));
    flags
}

fn access(one: &Gpu, two: &Gpu) {
    let cuda = &two.cuda;
    one.enter();
    let before = one.alloc(N);
    one.write(before, &pattern(1, N));
    println!("~ rights {}", rights(one, before));
    two.enter();
    let kernels = Kernels::load(two);
    println!("enable {}", cuda.cuCtxEnablePeerAccess(one.context, 0));
    println!("twice {}", cuda.cuCtxEnablePeerAccess(one.context, 0));
    one.enter();
    let after = one.alloc(N);
    one.write(after, &pattern(2, N));
    println!("~ rights {} {}", rights(one, before), rights(one, after));
    two.enter();
    for p in [before, after] {
        kernels.add(two, std::ptr::null_mut(), p, N as u64 / 8, 5);
        ok(cuda.cuCtxSynchronize());
    }
    // A kernel of device 1 runs on while device 0 frees what it works on.
    kernels.spin(two, std::ptr::null_mut(), 50_000_000);
    kernels.add(two, std::ptr::null_mut(), after, N as u64 / 8, 5);
    one.enter();
    let bytes = one.read(before, N);
    println!("added {:016x}", digest(&bytes));
    one.free(after);
    two.enter();
    kernels.spin(two, std::ptr::null_mut(), 50_000_000);
    kernels.add(two, std::ptr::null_mut(), before, N as u64 / 8, 7);
    println!("disable {}", cuda.cuCtxDisablePeerAccess(one.context));
    println!("twice {}", cuda.cuCtxDisablePeerAccess(one.context));
    ok(cuda.cuCtxSynchronize());
    one.enter();
    println!("added {:016x}", digest(&one.read(before, N)));
    println!("~ rights {}", rights(one, before));
    two.enter();
    println!("enable {}", cuda.cuCtxEnablePeerAccess(one.context, 0));
    kernels.add(two, std::ptr::null_mut(), before, N as u64 / 8, 9);
    ok(cuda.cuCtxSynchronize());
    one.enter();
    println!("added {:016x}", digest(&one.read(before, N)));
    println!("~ rights {}", rights(one, before));
    one.free(before);
}

/// Device 0 allocates while device 1 is let in: no range is missed.
fn threads(one: &Gpu, two: &Gpu) {
    let cuda = &two.cuda;
    for round in 0..20 {
        let all: Vec<CUdeviceptr> = std::thread::scope(|scope| {
            let made = scope.spawn(|| {
                one.enter();
                (0..8).map(|_| one.alloc(2 << 20)).collect::<Vec<_>>()
            });
            two.enter();
            ok(cuda.cuCtxEnablePeerAccess(one.context, 0));
            made.join().unwrap()
        });
        let rights: Vec<u64> = all.iter().map(|p| rights(one, *p)).collect();
        println!("~ round {round} {rights:?}");
        two.enter();
        ok(cuda.cuCtxDisablePeerAccess(one.context));
        one.enter();
        for p in all {
            one.free(p);
        }
    }
}
