//! Comes to functions of which the shim knows nothing, or nothing good.

use victim::gpu::Gpu;
use victim::reach::{LIBCUDA, Resolver};
use victim::sys::{self, RTLD_DEFAULT, RTLD_GLOBAL, RTLD_LOCAL, RTLD_NEXT, RTLD_NOW};
use victim::*;

fn main() {
    match argument(1).as_str() {
        "call" => call(&argument(2), 3),
        "look" => call(&argument(2), 0),
        "race" => race(),
        "arguments" => arguments(&argument(2)),
        "freezing" => freezing(&argument(2)),
        "harmless" => harmless(&argument(2)),
        "versioned" => versioned(&argument(2)),
        "given" => given(),
        "child" => child(),
        other => panic!("{other}?"),
    }
}

type Copy = unsafe extern "C" fn(CUdeviceptr, CUdeviceptr, usize, CUstream) -> CUresult;
const FUTURE: &str = "cuFutureCopyAsync";

/// The function that only a driver of the future has.
fn future(way: &str) -> *mut c_void {
    let local = || sys::open(Some(LIBCUDA), RTLD_NOW | RTLD_LOCAL);
    let global = || sys::open(Some(LIBCUDA), RTLD_NOW | RTLD_GLOBAL);
    let resolver = |name: &str, new| {
        let answer = Resolver::from(sys::symbol(local(), name), new)
            .expect(name)
            .ask(FUTURE, 99000, 0);
        assert_eq!(answer.result, CUDA_SUCCESS);
        answer.pointer
    };
    let p = match way {
        "dlsym" => sys::symbol(local(), FUTURE),
        "default" => {
            global();
            sys::symbol(RTLD_DEFAULT, FUTURE)
        }
        "next" => {
            global();
            sys::symbol(RTLD_NEXT, FUTURE)
        }
        "self" => {
            global();
            sys::symbol(sys::open(None, RTLD_NOW), FUTURE)
        }
        "old" => resolver("cuGetProcAddress", false),
        "new" => resolver("cuGetProcAddress_v2", true),
        _ => panic!("{way}?"),
    };
    assert!(!p.is_null(), "{:?}", sys::dl_error());
    assert!(sys::dl_error().is_none(), "{way} left an error behind");
    p
}

fn copy(p: *mut c_void) -> Copy {
    // SAFETY: the type of the simulated driver's function.
    unsafe { std::mem::transmute::<*mut c_void, Copy>(p) }
}

fn call(way: &str, times: usize) {
    let gpu = Gpu::open();
    let p = future(way);
    assert_eq!(p, future(way), "another pointer the second time");
    assert_eq!(p, future("dlsym"), "dlsym gives another pointer");
    let f = copy(p);
    let n = 5_000_001;
    let (from, to) = (gpu.alloc(n), gpu.alloc(n));
    for i in 0..times {
        let data = pattern(i as u64, n);
        gpu.write(from, &data);
        // SAFETY: two ranges of this many bytes.
        ok(unsafe { f(to, from, n, std::ptr::null_mut()) });
        assert!(gpu.read(to, n) == data, "bytes changed");
        println!("copied");
    }
    gpu.free(from);
    gpu.free(to);
    println!("done");
}

/// The first call, from many threads at once.
fn race() {
    let gpu = Gpu::open();
    let f = copy(future("dlsym"));
    let n = 100_000;
    let barrier = std::sync::Barrier::new(8);
    std::thread::scope(|s| {
        for i in 0..8 {
            let (gpu, barrier) = (&gpu, &barrier);
            s.spawn(move || {
                gpu.enter();
                let (from, to) = (gpu.alloc(n), gpu.alloc(n));
                let data = pattern(i, n);
                gpu.write(from, &data);
                barrier.wait();
                // SAFETY: two ranges of this many bytes.
                ok(unsafe { f(to, from, n, std::ptr::null_mut()) });
                assert!(gpu.read(to, n) == data, "bytes changed");
                gpu.free(from);
                gpu.free(to);
            });
        }
    });
    println!("done");
}

/// `libfuture`, under a name of the driver's, once CUDA is in use.
fn ahead(path: &str) -> (Gpu, *mut c_void) {
    (Gpu::open(), sys::open(Some(path), RTLD_NOW | RTLD_LOCAL))
}

fn find(h: *mut c_void, name: &str) -> *mut c_void {
    let p = sys::symbol(h, name);
    assert!(!p.is_null(), "{name}");
    p
}

#[repr(C)]
struct Large([f64; 3]);

type Many = extern "C" fn(
    u64,
    i8,
    f64,
    u16,
    i32,
    f32,
    u64,
    u64,
    i64,
    u8,
    Large,
    f64,
    f64,
    f64,
    f64,
    f64,
    f64,
    f64,
    u32,
) -> f64;

fn arguments(path: &str) {
    let (gpu, h) = ahead(path);
    let p = find(h, "cuFutureMany");
    println!("~ {}", place(p).0);
    // SAFETY: the library's function has this type.
    let many = unsafe { std::mem::transmute::<*mut c_void, Many>(p) };
    for _ in 0..3 {
        let large = Large([1e300, 2.0, 3.0]);
        let result = many(
            u64::MAX,
            -2,
            0.5,
            3,
            -4,
            -0.25,
            5,
            6,
            i64::MIN,
            8,
            large,
            1.0,
            2.0,
            3.0,
            4.0,
            5.0,
            6.0,
            7.0,
            9,
        );
        println!("{result}");
    }
    registers(h);
    gpu.works(3, 3 << 20);
}

#[cfg(target_arch = "x86_64")]
fn registers(h: *mut c_void) {
    let f = find(h, "cuFutureRegisters");
    let seen = find(h, "future_seen");
    // SAFETY: it takes nothing and gives an address.
    let seen = unsafe { std::mem::transmute::<*mut c_void, extern "C" fn() -> *const u64>(seen)() };
    for _ in 0..2 {
        let (back, stack): (u64, u64);
        // SAFETY: a call of a C function with nothing on the stack; the red zone is not used where asm may push.
        unsafe {
            std::arch::asm!(
                "mov r14, rsp",
                "lea r13, [rip + 9f]",
                "call r12",
                "9:",
                in("r12") f,
                out("r13") back,
                out("r14") stack,
                inout("rdi") 1u64 => _,
                inout("rsi") 2u64 => _,
                inout("rdx") 3u64 => _,
                inout("rcx") 4u64 => _,
                inout("r8") 5u64 => _,
                inout("r9") 6u64 => _,
                inout("rax") 7u64 => _,
                inout("r10") 8u64 => _,
                inout("xmm0") 1.5f64 => _,
                inout("xmm1") 2.5f64 => _,
                inout("xmm2") 3.5f64 => _,
                inout("xmm3") 4.5f64 => _,
                inout("xmm4") 5.5f64 => _,
                inout("xmm5") 6.5f64 => _,
                inout("xmm6") 7.5f64 => _,
                inout("xmm7") 8.5f64 => _,
                clobber_abi("C"),
            );
        }
        // SAFETY: eighteen words, written by the call.
        let seen = unsafe { std::slice::from_raw_parts(seen, 18) };
        assert_eq!(seen[..8], [1, 2, 3, 4, 5, 6, 7, 8]);
        let floats: Vec<f64> = seen[8..16].iter().map(|&b| f64::from_bits(b)).collect();
        assert_eq!(floats, [1.5, 2.5, 3.5, 4.5, 5.5, 6.5, 7.5, 8.5]);
        assert_eq!(seen[16], back, "another return address");
        assert_eq!(seen[17], stack - 8, "another stack");
    }
    println!("registers");
}

#[cfg(not(target_arch = "x86_64"))]
fn registers(_: *mut c_void) {
    println!("registers");
}

fn freezing(path: &str) {
    let (gpu, h) = ahead(path);
    type Map = extern "C" fn(u32, *const u8, *const u8) -> c_int;
    let p = find(h, "cuGraphicsMapResources");
    println!("~ {}", place(p).0);
    // SAFETY: the library's function has this type.
    let map = unsafe { std::mem::transmute::<*mut c_void, Map>(p) };
    for _ in 0..2 {
        println!("{}", map(1, 20 as *const u8, 300 as *const u8));
    }
    gpu.works(4, 3 << 20);
}

/// What a driver of the future has that is known, and what it has that is no function.
fn harmless(path: &str) {
    let (gpu, h) = ahead(path);
    let p = find(h, "cuProfilerStart");
    println!("{:?}", place(p));
    // SAFETY: it takes nothing and gives a number.
    println!("{}", unsafe {
        std::mem::transmute::<*mut c_void, extern "C" fn() -> c_int>(p)()
    });
    // SAFETY: eight bytes of the library.
    println!("{:x}", unsafe { *find(h, "cuFutureData").cast::<u64>() });
    // Looked up, never called.
    println!("~ {}", place(find(h, "cuFutureLog")).0);
    gpu.works(5, 3 << 20);
}

/// `dlvsym`, with the version that the library gives its function and with another.
fn versioned(path: &str) {
    let (gpu, h) = ahead(path);
    let ask = |name: &str, version: &str| {
        let (name, version) = (c(name), c(version));
        // SAFETY: a handle and two C strings.
        let p = unsafe { sys::dlvsym(h, name.as_ptr(), version.as_ptr()) };
        assert_eq!(p.is_null(), sys::dl_error().is_some());
        p
    };
    assert!(ask("cuFutureVersioned", "FUTURE_2").is_null());
    assert!(ask("cuFutureAbsent", "FUTURE_1").is_null());
    let p = ask("cuFutureVersioned", "FUTURE_1");
    assert_eq!(p, find(h, "cuFutureVersioned"));
    println!("~ {}", place(p).0);
    // SAFETY: the library's function has this type.
    let f = unsafe { std::mem::transmute::<*mut c_void, extern "C" fn(c_int, c_int) -> c_int>(p) };
    println!("{} {}", f(4, 2), f(5, 6));
    gpu.works(7, 3 << 20);
}

#[repr(C)]
struct Info {
    file: *const c_char,
    base: *mut c_void,
    name: *const c_char,
    address: *mut c_void,
}
unsafe extern "C" {
    fn dladdr(address: *const c_void, info: *mut Info) -> c_int;
}

/// The file that an address is in, and the name of the symbol that begins exactly there.
fn place(p: *mut c_void) -> (String, String) {
    // SAFETY: all-zero is a valid `Info`; the strings live as long as their object.
    unsafe {
        let mut info: Info = std::mem::zeroed();
        assert_ne!(dladdr(p, &mut info), 0);
        let text = |p: *const c_char| CStr::from_ptr(p).to_string_lossy().into_owned();
        let file = text(info.file);
        let file = file.rsplit('/').next().unwrap_or_default().to_string();
        let exact = !info.name.is_null() && info.address == p;
        (
            file,
            if exact {
                text(info.name)
            } else {
                String::new()
            },
        )
    }
}

/// Where each of the names in `NAMES` lies that the driver is asked for: in the driver, or in something before it.
fn given() {
    let h = sys::open(Some(LIBCUDA), RTLD_NOW | RTLD_LOCAL);
    let resolver = Resolver::from(sys::symbol(h, "cuGetProcAddress_v2"), true).expect("resolver");
    for name in std::env::var("NAMES").expect("NAMES").split(',') {
        let p = find(h, name);
        let (file, symbol) = place(p);
        let inside = file.starts_with("libcuda.so");
        assert!(!inside || symbol == name, "{name} is {symbol}");
        println!("{name}: {}", if inside { "driver" } else { "shim" });
        // A resolver that knows this very function gives the same pointer.
        for version in [
            2000, 3020, 4000, 7000, 10000, 11000, 11030, 12000, 13000, 99000,
        ] {
            let (base, _) = reach::base(name);
            let q = resolver.ask(base, version, 0).pointer;
            if !q.is_null() && place(q) == place(p) && inside {
                assert_eq!(p, q, "{name} at {version}");
            }
        }
    }
}

/// After a fork the child calls what its parent has looked up.
fn child() {
    let gpu = Gpu::open();
    let f = copy(future("dlsym"));
    // SAFETY: the child calls one function and ends.
    unsafe {
        let pid = sys::fork();
        if pid == 0 {
            let result = f(0, 0, 0, std::ptr::null_mut());
            sys::_exit(if result == CUDA_SUCCESS { 1 } else { 0 });
        }
        let mut status = -1;
        assert_eq!(sys::waitpid(pid, &mut status, 0), pid);
        assert_eq!(status, 0, "the child");
    }
    gpu.works(6, 3 << 20);
    println!("done");
}
