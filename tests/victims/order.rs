//! What waits for what: frees behind running work, captures, host callbacks.

use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};
use victim::gpu::{Gpu, Kernels};
use victim::*;

fn main() {
    match argument(1).as_str() {
        "free-in-flight" => free_in_flight(),
        "free-behind-kernels" => free_behind_kernels(),
        "free-in-flight-elsewhere" => free_in_flight_elsewhere(),
        "capture" => capture(),
        "capture-elsewhere" => capture_elsewhere(),
        "capture-strict" => capture_strict(),
        "graph" => graph(),
        "callback" => callback(),
        "sync-forms" => sync_forms(),
        other => panic!("{other}?"),
    }
}

const HOLD: Duration = Duration::from_millis(300);

/// Holds a stream up, as a long kernel would.
extern "C" fn hold(_: *mut c_void) {
    std::thread::sleep(HOLD);
}

fn hold_up(gpu: &Gpu, stream: CUstream) -> Instant {
    ok(gpu
        .cuda
        .cuLaunchHostFunc(stream, hold, std::ptr::null_mut()));
    Instant::now()
}

/// Frees memory that queued work still reads and writes: the free waits, the work is right.
fn free_in_flight() {
    let gpu = Gpu::open();
    let cuda = &gpu.cuda;
    for flags in [0, CU_STREAM_NON_BLOCKING] {
        let stream = gpu.stream(flags);
        let n = 12 << 20;
        let (p, q) = (gpu.alloc(n), gpu.alloc(n));
        gpu.write(p, &pattern(1, n));
        ok(cuda.cuMemsetD8_v2(q, 0, n));
        ok(cuda.cuCtxSynchronize());
        let start = hold_up(&gpu, stream);
        ok(cuda.cuMemsetD8Async(p, 0x42, n / 2, stream));
        ok(cuda.cuMemcpyDtoDAsync_v2(q, p, n, stream));
        gpu.free(p);
        println!(
            "waited: {}",
            start.elapsed() >= HOLD - Duration::from_millis(50)
        );
        // Whatever takes the memory over must not disturb the copy.
        let r = gpu.alloc(n);
        ok(cuda.cuMemsetD8_v2(r, 0xFF, n));
        ok(cuda.cuStreamSynchronize(stream));
        let mut expected = pattern(1, n);
        expected[..n / 2].fill(0x42);
        assert!(gpu.read(q, n) == expected, "work in flight lost its memory");
        gpu.free(q);
        gpu.free(r);
        ok(cuda.cuStreamDestroy_v2(stream));
    }
}

/// The same with kernels: one that spins, then some that read and write what is freed.
fn free_behind_kernels() {
    let gpu = Gpu::open();
    let cuda = &gpu.cuda;
    let kernels = Kernels::load(&gpu);
    let n = 12 << 20;
    let wrong = gpu.alloc(8);
    for round in 0..3u64 {
        let (one, two) = (gpu.stream(0), gpu.stream(CU_STREAM_NON_BLOCKING));
        let (p, q) = (gpu.alloc(n), gpu.alloc(n));
        ok(cuda.cuMemsetD8_v2(wrong, 0, 8));
        ok(cuda.cuCtxSynchronize());
        let start = Instant::now();
        for (stream, at) in [(one, p), (two, q)] {
            kernels.spin(&gpu, stream, HOLD.as_nanos() as u64);
            kernels.fill(&gpu, stream, at, n as u64 / 8, round);
            kernels.check(&gpu, stream, at, n as u64 / 8, round, wrong);
        }
        gpu.free(p);
        println!(
            "waited: {}",
            start.elapsed() >= HOLD - Duration::from_millis(50)
        );
        gpu.free(q);
        assert_eq!(gpu.read(wrong, 8), [0; 8], "work in flight lost its memory");
        ok(cuda.cuStreamDestroy_v2(one));
        ok(cuda.cuStreamDestroy_v2(two));
    }
    gpu.free(wrong);
}

/// The same, from a thread with another context current than the one whose stream is busy.
fn free_in_flight_elsewhere() {
    let gpu = Gpu::open();
    let cuda = &gpu.cuda;
    let n = 12 << 20;
    let (p, q) = (gpu.alloc(n), gpu.alloc(n));
    gpu.write(p, &pattern(2, n));
    let mut other = std::ptr::null_mut();
    ok(cuda.cuCtxCreate_v2(&mut other, 0, gpu.device));
    // Work of the second context on memory of the first.
    let stream = gpu.stream(CU_STREAM_NON_BLOCKING);
    let start = hold_up(&gpu, stream);
    ok(cuda.cuMemcpyDtoDAsync_v2(q, p, n, stream));
    std::thread::scope(|s| {
        s.spawn(|| {
            gpu.enter();
            gpu.free(p);
            println!(
                "~ waited: {}",
                start.elapsed() >= HOLD - Duration::from_millis(50)
            );
        });
    });
    ok(cuda.cuStreamSynchronize(stream));
    assert!(
        gpu.read(q, n) == pattern(2, n),
        "work in flight lost its memory"
    );
    ok(cuda.cuCtxDestroy_v2(other));
    gpu.enter();
    gpu.free(q);
}

fn begin(gpu: &Gpu, stream: CUstream, mode: c_int) {
    ok(gpu.cuda.cuStreamBeginCapture_v2(stream, mode));
}

fn end(gpu: &Gpu, stream: CUstream) -> CUgraphExec {
    let (mut graph, mut exec) = (std::ptr::null_mut(), std::ptr::null_mut());
    ok(gpu.cuda.cuStreamEndCapture(stream, &mut graph));
    ok(gpu.cuda.cuGraphInstantiateWithFlags(&mut exec, graph, 0));
    ok(gpu.cuda.cuGraphDestroy(graph));
    exec
}

/// Allocates and frees on the capturing thread, in relaxed mode: the capture stays valid, nothing is lost.
fn capture() {
    let gpu = Gpu::open();
    let cuda = &gpu.cuda;
    let stream = gpu.stream(CU_STREAM_NON_BLOCKING);
    let n = 10 << 20;
    for round in 0..3u8 {
        let (p, q) = (gpu.alloc(n), gpu.alloc(n));
        let (old, small) = (gpu.alloc(n), gpu.alloc(500));
        begin(&gpu, stream, CU_STREAM_CAPTURE_MODE_RELAXED);
        ok(cuda.cuMemsetD8Async(p, round, n, stream));
        println!("free large: {}", cuda.cuMemFree_v2(old));
        println!("free small: {}", cuda.cuMemFree_v2(small));
        println!("free again: {}", cuda.cuMemFree_v2(old));
        // Queued by the shim until the capture ends, and until then known.
        println!(
            "~ freed is unknown: {} {:?}",
            cuda.cuMemGetAddressRange_v2(&mut 0, &mut 0, old),
            gpu.attribute(old, 2).err()
        );
        let inside = gpu.alloc(n);
        let mut status = -1;
        ok(cuda.cuStreamIsCapturing(stream, &mut status));
        println!("capturing: {status}");
        ok(cuda.cuMemcpyDtoDAsync_v2(q, p, n, stream));
        ok(cuda.cuMemcpyDtoDAsync_v2(inside, q, n, stream));
        let exec = end(&gpu, stream);
        for _ in 0..2 {
            ok(cuda.cuGraphLaunch(exec, stream));
        }
        ok(cuda.cuStreamSynchronize(stream));
        assert!(gpu.read(inside, n).iter().all(|b| *b == round));
        ok(cuda.cuGraphExecDestroy(exec));
        for p in [p, q, inside] {
            gpu.free(p);
        }
    }
    gpu.works(1, 20 << 20);
    ok(cuda.cuStreamDestroy_v2(stream));
    // A capture that the program gives up by destroying its stream.
    let stream = gpu.stream(CU_STREAM_NON_BLOCKING);
    let old = gpu.alloc(n);
    begin(&gpu, stream, CU_STREAM_CAPTURE_MODE_RELAXED);
    println!("free large: {}", cuda.cuMemFree_v2(old));
    println!("destroyed: {}", cuda.cuStreamDestroy_v2(stream));
    gpu.works(1, 20 << 20);
}

/// One thread captures, another allocates, copies and frees.
fn capture_elsewhere() {
    let gpu = Gpu::open();
    let cuda = &gpu.cuda;
    let stream = gpu.stream(CU_STREAM_NON_BLOCKING);
    let n = 6 << 20;
    let (p, q) = (gpu.alloc(n), gpu.alloc(n));
    let done = AtomicBool::new(false);
    std::thread::scope(|s| {
        for seed in 0..2 {
            let (gpu, done) = (&gpu, &done);
            s.spawn(move || {
                gpu.enter();
                let mut rounds = 0u64;
                while !done.load(SeqCst) || rounds < 3 {
                    let own = gpu.stream(CU_STREAM_NON_BLOCKING);
                    let p = gpu.alloc(5 << 20);
                    let data = pattern(seed + rounds, 5 << 20);
                    ok(cuda.cuMemcpyHtoDAsync_v2(p, data.as_ptr().cast(), data.len(), own));
                    ok(cuda.cuStreamSynchronize(own));
                    let mut back = vec![0u8; data.len()];
                    ok(cuda.cuMemcpyDtoHAsync_v2(back.as_mut_ptr().cast(), p, back.len(), own));
                    ok(cuda.cuStreamSynchronize(own));
                    assert!(back == data, "bytes changed beside a capture");
                    gpu.free(p);
                    ok(cuda.cuStreamDestroy_v2(own));
                    rounds += 1;
                }
            });
        }
        for round in 0..20u8 {
            begin(&gpu, stream, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL);
            ok(cuda.cuMemsetD8Async(p, round, n, stream));
            std::thread::sleep(Duration::from_millis(5));
            ok(cuda.cuMemcpyDtoDAsync_v2(q, p, n, stream));
            let exec = end(&gpu, stream);
            ok(cuda.cuGraphLaunch(exec, stream));
            ok(cuda.cuStreamSynchronize(stream));
            assert!(gpu.read(q, n).iter().all(|b| *b == round));
            ok(cuda.cuGraphExecDestroy(exec));
        }
        done.store(true, SeqCst);
    });
    gpu.free(p);
    gpu.free(q);
    println!("done");
}

/// In the strict modes the driver forbids allocations during capture: so it is with the shim.
fn capture_strict() {
    let gpu = Gpu::open();
    let cuda = &gpu.cuda;
    let n = 6 << 20;
    for mode in [
        CU_STREAM_CAPTURE_MODE_GLOBAL,
        CU_STREAM_CAPTURE_MODE_THREAD_LOCAL,
    ] {
        for what in [
            "alloc",
            "small",
            "pitch",
            "free",
            "free small",
            "info",
            "query",
            "sync",
        ] {
            let stream = gpu.stream(CU_STREAM_NON_BLOCKING);
            let (p, old, small) = (gpu.alloc(n), gpu.alloc(n), gpu.alloc(600));
            begin(&gpu, stream, mode);
            ok(cuda.cuMemsetD8Async(p, 1, n, stream));
            let (mut q, mut a, mut b) = (0, 0, 0);
            let result = match what {
                "alloc" => cuda.cuMemAlloc_v2(&mut q, n),
                "small" => cuda.cuMemAlloc_v2(&mut q, 600),
                "pitch" => cuda.cuMemAllocPitch_v2(&mut q, &mut a, 4096, 1024, 4),
                "free" => cuda.cuMemFree_v2(old),
                "free small" => cuda.cuMemFree_v2(small),
                "info" => cuda.cuMemGetInfo_v2(&mut a, &mut b),
                "query" => cuda.cuMemGetAddressRange_v2(&mut q, &mut a, p),
                _ => cuda.cuCtxSynchronize(),
            };
            let mut status = -1;
            let asked = cuda.cuStreamIsCapturing(stream, &mut status);
            let mut graph = std::ptr::null_mut();
            let ended = cuda.cuStreamEndCapture(stream, &mut graph);
            // The shim takes and frees memory where the driver would give the capture up; nothing else may differ.
            let more = ["alloc", "small", "pitch", "free"].contains(&what);
            let note = if more { "~ " } else { "" };
            println!("{note}mode {mode} {what}: {result}, asked {asked} {status}, ended {ended}");
            if !graph.is_null() {
                ok(cuda.cuGraphDestroy(graph));
            }
            if q != 0 && what != "query" && result == 0 {
                gpu.free(q);
            }
            // A free that was refused left its memory alone.
            for (name, p) in [("free", old), ("free small", small)] {
                if what != name || result != 0 {
                    gpu.free(p);
                }
            }
            gpu.free(p);
            ok(cuda.cuStreamDestroy_v2(stream));
        }
    }
    gpu.works(1, 20 << 20);
}

/// A graph over ranges in both tiers, launched again and again while other memory comes and goes.
fn graph() {
    let gpu = Gpu::open();
    let cuda = &gpu.cuda;
    let stream = gpu.stream(CU_STREAM_NON_BLOCKING);
    let n = 9 << 20;
    let all: Vec<CUdeviceptr> = (0..5).map(|_| gpu.alloc(n)).collect();
    begin(&gpu, stream, CU_STREAM_CAPTURE_MODE_GLOBAL);
    for pair in all.windows(2) {
        ok(cuda.cuMemcpyDtoDAsync_v2(pair[1] + 3, pair[0], n - 3, stream));
    }
    let exec = end(&gpu, stream);
    for round in 0..6 {
        let data = pattern(round, n);
        gpu.write(all[0], &data);
        let passing: Vec<CUdeviceptr> = (0..3).map(|_| gpu.alloc(4 << 20)).collect();
        ok(cuda.cuGraphLaunch(exec, stream));
        for p in passing {
            gpu.free(p);
        }
        ok(cuda.cuStreamSynchronize(stream));
        for (i, &p) in all.iter().enumerate() {
            let last = gpu.read(p, n);
            assert!(
                last[3 * i..] == data[..n - 3 * i],
                "round {round}: {i} is wrong"
            );
        }
        println!("round {round}: {:016x}", digest(&gpu.read(all[4], n)[12..]));
    }
    ok(cuda.cuGraphExecDestroy(exec));
    for p in all {
        gpu.free(p);
    }
}

static RESULTS: [AtomicI32; 8] = [const { AtomicI32::new(-9) }; 8];
static CALLS: AtomicU64 = AtomicU64::new(0);

struct InCallback {
    gpu: *const Gpu,
    large: CUdeviceptr,
    small: CUdeviceptr,
}

fn call_everything(data: *mut c_void) {
    // SAFETY: the launcher keeps it alive until the stream is drained.
    let it = unsafe { &*data.cast::<InCallback>() };
    // SAFETY: as above.
    let gpu = unsafe { &*it.gpu };
    let cuda = &gpu.cuda;
    let (mut p, mut a, mut b) = (0, 0, 0);
    let results = [
        cuda.cuMemAlloc_v2(&mut p, 5 << 20),
        cuda.cuMemAlloc_v2(&mut p, 50),
        cuda.cuMemAllocPitch_v2(&mut p, &mut a, 4096, 1024, 4),
        cuda.cuMemFree_v2(it.large),
        cuda.cuMemFree_v2(it.small),
        cuda.cuMemGetInfo_v2(&mut a, &mut b),
        cuda.cuMemGetAddressRange_v2(&mut p, &mut a, it.large),
        cuda.cuCtxSynchronize(),
    ];
    for (to, from) in RESULTS.iter().zip(results) {
        to.store(from, SeqCst);
    }
    CALLS.fetch_add(1, SeqCst);
}

extern "C" fn host_function(data: *mut c_void) {
    call_everything(data);
}

extern "C" fn stream_callback(_: CUstream, _: CUresult, data: *mut c_void) {
    call_everything(data);
}

/// Driver calls from host callbacks: whatever the driver says, at once, and nothing hangs.
fn callback() {
    let gpu = Gpu::open();
    let cuda = &gpu.cuda;
    for flags in [0, CU_STREAM_NON_BLOCKING] {
        let stream = gpu.stream(flags);
        for which in 0..2 {
            let it = InCallback {
                gpu: &gpu,
                large: gpu.alloc(20 << 20),
                small: gpu.alloc(100),
            };
            let data = (&raw const it).cast_mut().cast();
            ok(match which {
                0 => cuda.cuLaunchHostFunc(stream, host_function, data),
                _ => cuda.cuStreamAddCallback(stream, stream_callback, data, 0),
            });
            ok(cuda.cuStreamSynchronize(stream));
            let results: Vec<i32> = RESULTS.iter().map(|r| r.load(SeqCst)).collect();
            // The last but one is the range of an address: the shim knows it without the driver.
            println!("in callback {which}: {:?} {}", &results[..6], results[7]);
            if results[3] != 0 {
                gpu.free(it.large);
            }
            if results[4] != 0 {
                gpu.free(it.small);
            }
        }
        ok(cuda.cuStreamDestroy_v2(stream));
    }
    assert_eq!(CALLS.load(SeqCst), 4);
    gpu.works(1, 20 << 20);
}

/// Which copies and memsets return before the work ahead of them is done: host-backed memory must not change that.
fn sync_forms() {
    let gpu = Gpu::open();
    let cuda = &gpu.cuda;
    let n = 6 << 20;
    let mut pinned = std::ptr::null_mut();
    ok(cuda.cuMemHostAlloc(&mut pinned, n, 0));
    let places: Vec<CUdeviceptr> = (0..4).map(|_| gpu.alloc(n)).collect();
    for (i, &p) in places.iter().enumerate() {
        let q = places[(i + 1) % places.len()];
        let rows = work::two_d_between(q, 4096, p, 4096, 4000, n / 4096);
        for form in [
            "DtoD",
            "memcpy",
            "set8",
            "set16",
            "set32",
            "HtoD async",
            "2d",
            "2d unaligned",
            "2d async",
            "set 2d",
            "DtoH async",
            "DtoD async",
            "set8 async",
        ] {
            let start = hold_up(&gpu, std::ptr::null_mut());
            let none = std::ptr::null_mut();
            ok(match form {
                "2d" => cuda.cuMemcpy2D_v2(&rows),
                "2d unaligned" => cuda.cuMemcpy2DUnaligned_v2(&rows),
                "2d async" => cuda.cuMemcpy2DAsync_v2(&rows, none),
                "set 2d" => cuda.cuMemsetD2D8_v2(p, 4096, 1, 4000, n / 4096),
                "DtoD" => cuda.cuMemcpyDtoD_v2(p, q, n),
                "memcpy" => cuda.cuMemcpy(p, q, n),
                "set8" => cuda.cuMemsetD8_v2(p, 1, n),
                "set16" => cuda.cuMemsetD16_v2(p, 1, n / 2),
                "set32" => cuda.cuMemsetD32_v2(p, 1, n / 4),
                "HtoD async" => cuda.cuMemcpyHtoDAsync_v2(p, pinned, n, none),
                "DtoH async" => cuda.cuMemcpyDtoHAsync_v2(pinned, p, n, none),
                "DtoD async" => cuda.cuMemcpyDtoDAsync_v2(p, q, n, none),
                _ => cuda.cuMemsetD8Async(p, 1, n, none),
            });
            println!("{i} {form}: waited {}", start.elapsed() >= HOLD / 2);
            ok(cuda.cuCtxSynchronize());
        }
    }
    for p in places {
        gpu.free(p);
    }
    ok(cuda.cuMemFreeHost(pinned));
}
