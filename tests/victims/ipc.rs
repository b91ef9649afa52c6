//! Memory between processes by legacy handles, as torch.multiprocessing shares tensors.

use std::io::BufRead;
use std::process::Command;

use victim::gpu::{Gpu, Kernels};
use victim::*;

const LARGE: usize = (24 << 20) + 5;
const MIDDLE: usize = 3 << 20;
const SMALL: usize = 100_000;

fn main() {
    match argument(1).as_str() {
        "family" => family(),
        "child" => child(),
        "export" => export(),
        "open" => open_one(),
        "threads" => threads(),
        "again" => again(),
        other => panic!("no case {other}"),
    }
}

fn handle(gpu: &Gpu, p: CUdeviceptr) -> Result<CUipcMemHandle, CUresult> {
    let mut handle = CUipcMemHandle { reserved: [0; 64] };
    match gpu.cuda.cuIpcGetMemHandle(&mut handle, p) {
        CUDA_SUCCESS => Ok(handle),
        code => Err(code),
    }
}

fn open(gpu: &Gpu, handle: CUipcMemHandle) -> Result<CUdeviceptr, CUresult> {
    let mut p = 0;
    match gpu.cuda.cuIpcOpenMemHandle_v2(&mut p, handle, 1) {
        CUDA_SUCCESS => Ok(p),
        code => Err(code),
    }
}

fn text(handle: CUipcMemHandle) -> String {
    handle.reserved.map(|b| format!("{b:02x}")).concat()
}

fn parse(text: &str) -> CUipcMemHandle {
    let byte = |i: usize| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).expect("hexadecimal");
    CUipcMemHandle {
        reserved: std::array::from_fn(byte),
    }
}

/// One process shares what it has, large and small, in VRAM and beside it; another uses it.
fn family() {
    let gpu = Gpu::open();
    let cuda = &gpu.cuda;
    let mut all: Vec<(CUdeviceptr, usize)> = [LARGE, MIDDLE].map(|n| (gpu.alloc(n), n)).into();
    // Enough small ones that some are in VRAM and some are not.
    all.extend((0..40).map(|_| (gpu.alloc(SMALL), SMALL)));
    for (i, (p, n)) in all.iter().enumerate() {
        gpu.write(*p, &pattern(i as u64, *n));
    }
    let mut handles = Vec::new();
    for (i, (p, n)) in all.iter().enumerate() {
        let got = handle(&gpu, *p).expect("a handle");
        assert_eq!(handle(&gpu, *p), Ok(got), "{i}: the same again");
        assert_eq!(handle(&gpu, p + *n as u64 / 2), Ok(got), "{i}: inside");
        assert!(!handles.contains(&got), "{i}: a handle of its own");
        handles.push(got);
    }
    println!("past the end: {:?}", handle(&gpu, all[0].0 + LARGE as u64));
    println!("its own: {:?}", open(&gpu, handles[0]));
    println!("closed: {}", cuda.cuIpcCloseMemHandle(all[0].0));
    println!("no room: {}", cuda.cuIpcGetMemHandle(std::ptr::null_mut(), all[0].0));
    let output = Command::new(std::env::current_exe().unwrap())
        .arg("child")
        .args(handles.iter().map(|h| text(*h)))
        .output()
        .expect("a child");
    print!("{}", String::from_utf8_lossy(&output.stdout));
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    for (i, (p, n)) in all.iter().enumerate() {
        assert!(gpu.read(*p, *n) == pattern(100 + i as u64, *n), "{i}: the child's bytes");
        let name = |a| gpu.attribute(*p, a);
        println!(
            "{i}: capable {:?}, types {:?}",
            name(CU_POINTER_ATTRIBUTE_IS_LEGACY_CUDA_IPC_CAPABLE),
            name(CU_POINTER_ATTRIBUTE_ALLOWED_HANDLE_TYPES)
        );
        gpu.free(*p);
    }
    let next = gpu.alloc(LARGE);
    let new = handle(&gpu, next).expect("a handle");
    println!("another allocation, another handle: {}", !handles.contains(&new));
    gpu.free(next);
}

fn child() {
    let gpu = Gpu::open();
    let cuda = &gpu.cuda;
    let kernels = Kernels::load(&gpu);
    let handles: Vec<CUipcMemHandle> = std::env::args().skip(2).map(|t| parse(&t)).collect();
    let mut p = 0;
    println!("no flags: {}", cuda.cuIpcOpenMemHandle_v2(&mut p, handles[0], 0));
    println!(
        "no room: {}",
        cuda.cuIpcOpenMemHandle_v2(std::ptr::null_mut(), handles[0], 1)
    );
    let opened: Vec<CUdeviceptr> = handles
        .iter()
        .map(|h| open(&gpu, *h).expect("it opens"))
        .collect();
    for (i, p) in opened.iter().copied().enumerate() {
        let n = [LARGE, MIDDLE].get(i).copied().unwrap_or(SMALL);
        assert!(gpu.read(p, n) == pattern(i as u64, n), "{i}: the parent's bytes");
        assert_eq!(open(&gpu, handles[i]), Ok(p), "{i}: the same address");
        let (mut base, mut bytes) = (0, 0);
        let code = cuda.cuMemGetAddressRange_v2(&mut base, &mut bytes, p + n as u64 / 2);
        let name = |a| gpu.attribute(p + 8, a);
        println!(
            "{i}: range {code} {} {bytes}; kind {:?}, device {:?}, context {}, start {}, size {:?}, host {:?}, \
             capable {:?}, types {:?}, handle {:?}, free {}",
            base == p,
            name(CU_POINTER_ATTRIBUTE_MEMORY_TYPE),
            name(CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL),
            name(CU_POINTER_ATTRIBUTE_CONTEXT) == Ok(gpu.context as u64),
            name(CU_POINTER_ATTRIBUTE_RANGE_START_ADDR) == Ok(p),
            name(CU_POINTER_ATTRIBUTE_RANGE_SIZE),
            name(CU_POINTER_ATTRIBUTE_HOST_POINTER),
            name(CU_POINTER_ATTRIBUTE_IS_LEGACY_CUDA_IPC_CAPABLE),
            name(CU_POINTER_ATTRIBUTE_ALLOWED_HANDLE_TYPES),
            handle(&gpu, p),
            cuda.cuMemFree_v2(p),
        );
        // Behind a kernel: neither close may overtake it.
        ok(cuda.cuIpcCloseMemHandle(p));
        gpu.write(p, &pattern(100 + i as u64, n));
        let copy = gpu.alloc(n);
        ok(cuda.cuMemcpyDtoD_v2(copy, p, n));
        assert!(gpu.read(copy, n) == pattern(100 + i as u64, n), "{i}: copied");
        gpu.free(copy);
        kernels.spin(&gpu, std::ptr::null_mut(), 20_000_000);
        ok(cuda.cuMemcpyDtoDAsync_v2(p, p + 64, 0, std::ptr::null_mut()));
        kernels.add(&gpu, std::ptr::null_mut(), p, 1, 0);
        println!(
            "{i}: inside {}, last {}, once more {}, then {:?}",
            cuda.cuIpcCloseMemHandle(p + 8),
            cuda.cuIpcCloseMemHandle(p),
            cuda.cuIpcCloseMemHandle(p),
            name(CU_POINTER_ATTRIBUTE_MEMORY_TYPE),
        );
    }
    // Once closed it can be opened anew.
    let p = open(&gpu, handles[1]).expect("it opens again");
    assert!(gpu.read(p, MIDDLE) == pattern(101, MIDDLE));
    ok(cuda.cuIpcCloseMemHandle(p));
    // And what is open at the end goes with the process.
    open(&gpu, handles[0]).expect("it opens again");
}

/// Shares one allocation, and does as it is told.
fn export() {
    let gpu = Gpu::open();
    let mut p = gpu.alloc(LARGE);
    gpu.write(p, &pattern(1, LARGE));
    match handle(&gpu, p) {
        Ok(handle) => println!("handle {}", text(handle)),
        Err(code) => println!("no handle {code}"),
    }
    for line in std::io::stdin().lock().lines() {
        match line.expect("a line").as_str() {
            "free" => {
                gpu.free(p);
                p = 0;
                println!("freed");
            }
            "other" => {
                let other = gpu.alloc(LARGE);
                gpu.write(other, &pattern(2, LARGE));
                println!("other");
            }
            "handle" => println!("asked {:?}", handle(&gpu, p).map(text)),
            "end" => break,
            other => panic!("{other}?"),
        }
    }
    if p != 0 {
        gpu.free(p);
    }
}

/// Opens a handle, and does as it is told.
fn open_one() {
    let gpu = Gpu::open();
    let start = std::time::Instant::now();
    let opened = open(&gpu, parse(&argument(2)));
    assert!(start.elapsed().as_secs() < 20, "{:?}", start.elapsed());
    println!("opened {:?}", opened.map(|p| gpu.read(p, LARGE) == pattern(1, LARGE)));
    let Ok(p) = opened else { return };
    for line in std::io::stdin().lock().lines() {
        match line.expect("a line").as_str() {
            "look" => println!("still {}", gpu.read(p, LARGE) == pattern(1, LARGE)),
            "fork" => {
                // SAFETY: the child calls the driver, which refuses, and leaves.
                let pid = unsafe { sys::fork() };
                if pid == 0 {
                    let code = gpu.cuda.cuIpcCloseMemHandle(p);
                    // SAFETY: ends this process only.
                    unsafe { sys::_exit(code) };
                }
                let mut status = 0;
                // SAFETY: waits for the child just made.
                unsafe { sys::waitpid(pid, &mut status, 0) };
                println!("in a child {}", status >> 8);
            }
            "end" => break,
            other => panic!("{other}?"),
        }
    }
    ok(gpu.cuda.cuIpcCloseMemHandle(p));
    println!("end");
}

/// Many threads open and close one handle at once.
fn threads() {
    let gpu = Gpu::open();
    let handle = parse(&argument(2));
    for _ in 0..10 {
        let all: Vec<CUdeviceptr> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8)
                .map(|_| {
                    scope.spawn(|| {
                        gpu.enter();
                        open(&gpu, handle).expect("it opens")
                    })
                })
                .collect();
            threads.into_iter().map(|t| t.join().unwrap()).collect()
        });
        assert!(all.iter().all(|p| *p == all[0]), "{all:x?}");
        assert!(gpu.read(all[0], LARGE) == pattern(1, LARGE));
        std::thread::scope(|scope| {
            for p in all {
                let gpu = &gpu;
                scope.spawn(move || {
                    gpu.enter();
                    ok(gpu.cuda.cuIpcCloseMemHandle(p));
                });
            }
        });
    }
    println!("end");
}

/// A context is destroyed with something open in it, and the memory is opened in the next one.
fn again() {
    let gpu = Gpu::open();
    let cuda = &gpu.cuda;
    let handle = parse(&argument(2));
    for _ in 0..3 {
        let mut context = std::ptr::null_mut();
        ok(cuda.cuCtxCreate_v2(&mut context, 0, gpu.device));
        let p = open(&gpu, handle).expect("it opens");
        assert!(gpu.read(p, LARGE) == pattern(1, LARGE));
        ok(cuda.cuCtxDestroy_v2(context));
        gpu.enter();
        println!("then {}", cuda.cuIpcCloseMemHandle(p));
    }
}
