//! What there is on this version of the driver, found by using it: one line a subject, for the table of drivers.

use victim::gpu::{Gpu, Kernels};
use victim::reach::Resolver;
use victim::sys::{self, RTLD_LOCAL, RTLD_NOW};
use victim::*;

const MIB: usize = 1 << 20;

fn main() {
    let library = sys::open(Some(reach::LIBCUDA), RTLD_NOW | RTLD_LOCAL);
    let gpu = Gpu::open();
    let cuda = &gpu.cuda;

    let works = |symbol: &str, new: bool| {
        let resolver = Resolver::from(sys::symbol(library, symbol), new)?;
        let answer = resolver.ask("cuMemAlloc", 11030, 0);
        (answer.result == 0 && !answer.pointer.is_null()).then_some(())
    };
    let lookup = match (works("cuGetProcAddress", false), works("cuGetProcAddress_v2", true)) {
        (Some(()), Some(())) => "both",
        (Some(()), None) => "the first",
        _ => "none",
    };
    println!("~ lookup {lookup}");

    // 24 MiB where VRAM has room for 16: through kernels and copies, byte for byte.
    let n = 24 * MIB;
    let p = gpu.alloc(n);
    let kernels = Kernels::load(&gpu);
    let none = std::ptr::null_mut();
    kernels.fill(&gpu, none, p, (n / 8) as u64, 42);
    let wrong = gpu.alloc(8);
    ok(cuda.cuMemsetD8_v2(wrong, 0, 8));
    kernels.check(&gpu, none, p, (n / 8) as u64, 42, wrong);
    assert_eq!(gpu.read(wrong, 8), [0; 8]);
    gpu.write(p, &pattern(1, n));
    assert!(gpu.read(p, n) == pattern(1, n));
    let mut handle = [0u64; 8];
    let get = sys::symbol(library, "cuIpcGetMemHandle");
    // SAFETY: declared as in cuda.h; room for a handle of 64 bytes.
    let ipc = unsafe {
        let get = std::mem::transmute::<*mut c_void, unsafe extern "C" fn(*mut u64, CUdeviceptr) -> CUresult>(get);
        get(handle.as_mut_ptr(), p)
    };
    println!("~ ipc {}", if ipc == 0 { "yes" } else { "no" });
    gpu.free(p);
    gpu.free(wrong);

    // The program's own handle, which it may export.
    let prop = CUmemAllocationProp {
        type_: CU_MEM_ALLOCATION_TYPE_PINNED,
        requestedHandleTypes: CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR,
        location: CUmemLocation { type_: CU_MEM_LOCATION_TYPE_DEVICE, id: gpu.device },
        win32HandleMetaData: std::ptr::null_mut(),
        allocFlags: CUmemAllocFlags::default(),
    };
    let mut own = 0;
    let made = cuda.cuMemCreate(&mut own, n, &prop, 0);
    let own_memory = match made {
        0 => {
            let mut fd = -1;
            let exported = cuda.cuMemExportToShareableHandle((&raw mut fd).cast(), own, 1, 0);
            ok(cuda.cuMemRelease(own));
            if exported == 0 { "in RAM, can be exported" } else { "in RAM" }
        }
        CUDA_ERROR_OUT_OF_MEMORY => "out of memory",
        e => panic!("cuMemCreate: {e}"),
    };
    println!("~ own {own_memory}");

    // Stream-ordered, beyond the limit. The harness reads the ledger meanwhile.
    let stream = gpu.stream(CU_STREAM_NON_BLOCKING);
    let mut all = Vec::new();
    for _ in 0..3 {
        let mut p = 0;
        match cuda.cuMemAllocAsync(&mut p, 8 * MIB, stream) {
            0 => all.push(p),
            CUDA_ERROR_OUT_OF_MEMORY => break,
            e => panic!("cuMemAllocAsync: {e}"),
        }
        ok(cuda.cuMemsetD8Async(p, 1, 8 * MIB, stream));
    }
    ok(cuda.cuStreamSynchronize(stream));
    println!("~ ordered {}", all.len());
    println!("held");
    std::io::stdin().read_line(&mut String::new()).expect("stdin");
    for p in all {
        ok(cuda.cuMemFreeAsync(p, stream));
    }
    ok(cuda.cuStreamSynchronize(stream));
    ok(cuda.cuStreamDestroy_v2(stream));

    let info = sys::symbol(library, "cuFuncGetParamInfo");
    let (mut offset, mut size) = (0usize, 0usize);
    // SAFETY: declared as in cuda.h.
    let code = unsafe {
        type Info = unsafe extern "C" fn(CUfunction, usize, *mut usize, *mut usize) -> CUresult;
        let info = std::mem::transmute::<*mut c_void, Info>(info);
        info(kernels.any(), 0, &mut offset, &mut size)
    };
    println!("~ parameters {}", if code == 0 { "known" } else { "unknown" });
}
