//! One thread is in a driver call that takes its time; all others must get through meanwhile.

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

use victim::gpu::{Gpu, Kernels};
use victim::*;

/// Far less than the call blocks for, far more than a loaded machine needs.
const PATIENCE: Duration = Duration::from_secs(8);

fn main() {
    let gpu = Gpu::open();
    let kernels = Kernels::load(&gpu);
    // Whatever is done once is done.
    gpu.works(1, 12 << 20);
    gpu.works(2, 100);
    let (mine, small) = (gpu.alloc(9 << 20), gpu.alloc(4096));
    let theirs = gpu.alloc(9 << 20);
    let way = argument(1);
    let frees = argument(2) == "frees";
    let ended = AtomicBool::new(false);
    let started = AtomicBool::new(false);
    std::thread::scope(|s| {
        let slow = std::thread::Builder::new().name("slow".into());
        let slow = slow.spawn_scoped(s, || {
            gpu.enter();
            started.store(true, SeqCst);
            match way.as_str() {
                "alloc" => gpu.works(3, 40 << 20),
                "free" => gpu.free(theirs),
                "small" => {
                    let p = gpu.alloc(512);
                    gpu.free(p);
                }
                "host" => {
                    let mut p = std::ptr::null_mut();
                    ok(gpu.cuda.cuMemHostAlloc(&mut p, 1 << 20, 0));
                    ok(gpu.cuda.cuMemFreeHost(p));
                }
                "array" => {
                    let shape = CUDA_ARRAY_DESCRIPTOR { Width: 64, Height: 64, Format: 0x20, NumChannels: 1 };
                    let mut array = std::ptr::null_mut();
                    ok(gpu.cuda.cuArrayCreate_v2(&mut array, &shape));
                    ok(gpu.cuda.cuArrayDestroy(array));
                }
                "module" => {
                    let image = c(".version 7.0\n.target sm_50\n.address_size 64\n.visible .global .align 8 .b8 x[64];\n");
                    let mut module = std::ptr::null_mut();
                    ok(gpu.cuda.cuModuleLoadData(&mut module, image.as_ptr().cast()));
                    ok(gpu.cuda.cuModuleUnload(module));
                }
                "info" => {
                    gpu.memory();
                }
                other => panic!("{other}?"),
            }
            ended.store(true, SeqCst);
        });
        slow.expect("a thread");
        while !started.load(SeqCst) {
            std::hint::spin_loop();
        }
        // By now it is in the call.
        std::thread::sleep(Duration::from_millis(300));
        assert!(!ended.load(SeqCst), "nothing blocked");
        let begin = Instant::now();
        let mut slowest = (Duration::ZERO, "");
        let mut time = |what: &'static str, act: &mut dyn FnMut()| {
            let start = Instant::now();
            act();
            slowest = slowest.max((start.elapsed(), what));
        };
        for round in 0..3 {
            time("write", &mut || gpu.write(mine, &pattern(round, 9 << 20)));
            time("launch", &mut || kernels.add(&gpu, std::ptr::null_mut(), mine, 1000, 1));
            time("read", &mut || drop(gpu.read(mine, 9 << 20)));
            time("info", &mut || drop(gpu.memory()));
            time("attribute", &mut || drop(gpu.attribute(mine, 2)));
            time("range", &mut || {
                let (mut base, mut size) = (0, 0);
                ok(gpu.cuda.cuMemGetAddressRange_v2(&mut base, &mut size, mine + 5));
            });
            time("memset", &mut || ok(gpu.cuda.cuMemsetD8_v2(mine, 1, 9 << 20)));
            let mut p = 0;
            time("alloc", &mut || p = gpu.alloc(6 << 20));
            let mut q = 0;
            time("small alloc", &mut || q = gpu.alloc(600));
            let mut host = std::ptr::null_mut();
            time("host alloc", &mut || ok(gpu.cuda.cuMemHostAlloc(&mut host, 8192, 0)));
            if frees {
                time("free", &mut || gpu.free(p));
                time("small free", &mut || gpu.free(q));
                time("host free", &mut || ok(gpu.cuda.cuMemFreeHost(host)));
            }
            let (stream, mut graph) = (gpu.stream(CU_STREAM_NON_BLOCKING), std::ptr::null_mut());
            time("capture", &mut || {
                ok(gpu.cuda.cuStreamBeginCapture_v2(stream, CU_STREAM_CAPTURE_MODE_RELAXED));
                ok(gpu.cuda.cuMemsetD8Async(mine, 3, 4096, stream));
                ok(gpu.cuda.cuStreamEndCapture(stream, &mut graph));
            });
            ok(gpu.cuda.cuGraphDestroy(graph));
            ok(gpu.cuda.cuStreamDestroy_v2(stream));
        }
        assert!(begin.elapsed() < PATIENCE, "{:?}, most of it {slowest:?}", begin.elapsed());
        assert!(!ended.load(SeqCst), "it did not block long enough to tell");
        let release = std::env::var_os("FAKE_CUDA_RELEASE").expect("a file to make");
        std::fs::write(release, "").expect("a file");
        println!("~ slowest {slowest:?}");
    });
    gpu.free(small);
    println!("through");
}
