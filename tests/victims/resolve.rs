//! Looks names up in every way, and says what it found: nothing, or which function it is.

use victim::reach::{Answer, LIBCUDA, Resolver};
use victim::sys::{self, RTLD_DEFAULT, RTLD_GLOBAL, RTLD_LOCAL, RTLD_NEXT, RTLD_NOW};
use victim::*;

fn main() {
    match argument(1).as_str() {
        "handle" => handle(),
        "scopes" => scopes(&argument(2)),
        "versions" => versions(),
        "cudart" => cudart(),
        "errors" => errors(),
        "dlvsym" => dlvsym(),
        "foreign" => foreign(&argument(2)),
        "next" => next(&argument(2)),
        "threads" => threads(),
        "absent" => absent(),
        other => panic!("{other}?"),
    }
}

fn libcuda(scope: c_int) -> *mut c_void {
    sys::open(Some(LIBCUDA), RTLD_NOW | scope)
}

/// Names that the harness passes: the shim's whole table, and the driver's own.
fn names() -> Vec<String> {
    let mut names: Vec<String> = std::env::var("NAMES")
        .expect("NAMES")
        .split(',')
        .map(String::from)
        .collect();
    names.extend(Driver::NAMES.iter().map(|n| n.to_string()));
    names.extend(
        [
            "cuNoSuchFunction",
            "cuMemAlloc_v3",
            "cuMemFree_v99",
            "cuMemAlloc_v2_ptsz",
            "cuMemAlloc_v2_ptds",
            "cuMemAlloc_ptsz",
            "cuGetProcAddress_v3",
            "cuCtxGetDevice_v2",
            "cuCtxCreate_v3",
            "cuCtxCreate_v4",
            "cuCtxSynchronize_v2",
            "cuMemGetInfo",
            "cuMemAlloc",
            "cuMemFree",
            "cu",
            "cuda",
            "nvml",
            "nvmlNoSuchFunction",
            "nvmlDeviceGetMemoryInfo_v3",
        ]
        .map(String::from),
    );
    names.sort();
    names.dedup();
    names
}

fn found(p: *mut c_void) -> &'static str {
    if p.is_null() { "nothing" } else { "something" }
}

/// Every name through the driver's handle.
fn handle() {
    let h = libcuda(RTLD_LOCAL);
    for name in names() {
        let p = sys::symbol(h, &name);
        let error = sys::dl_error();
        assert_eq!(p.is_null(), error.is_some(), "{name}: dlerror {error:?}");
        println!("{name}: {}", found(p));
    }
}

/// Every name through the pseudo-handles and `dlopen(NULL)`, from the program itself and from a library.
fn scopes(probe: &str) {
    type Probe = extern "C" fn(*mut c_void, *const c_char) -> *mut c_void;
    let probe = sys::symbol(sys::open(Some(probe), RTLD_NOW | RTLD_LOCAL), "probe_dlsym");
    // SAFETY: that is the type of the library's function.
    let probe: Probe = unsafe { std::mem::transmute::<*mut c_void, Probe>(probe) };
    let this = sys::open(None, RTLD_NOW);
    let mut names = names();
    names.extend(["malloc", "no_such_name", "main"].map(String::from));
    for stage in ["before libcuda", "libcuda local", "libcuda global"] {
        match stage {
            "libcuda local" => {
                libcuda(RTLD_LOCAL);
            }
            "libcuda global" => {
                libcuda(RTLD_GLOBAL);
            }
            _ => {}
        }
        for name in &names {
            let text = c(name);
            let mut line = format!("{stage}, {name}:");
            for (scope, h) in [
                ("default", RTLD_DEFAULT),
                ("next", RTLD_NEXT),
                ("self", this),
            ] {
                let mine = sys::symbol(h, name);
                let failed = sys::dl_error().is_some();
                assert_eq!(mine.is_null(), failed, "{stage}, {scope}, {name}: dlerror");
                let theirs = probe(h, text.as_ptr());
                let failed = sys::dl_error().is_some();
                assert_eq!(
                    theirs.is_null(),
                    failed,
                    "{stage}, {scope}, {name}: dlerror in the library"
                );
                // From a library that was opened by itself nothing comes next, though libcuda be in the global
                // scope; the shim, which sees that scope, still finds it.
                if (stage, scope) == ("libcuda global", "next") {
                    println!("~ {name}: {}", found(theirs));
                    line += &format!(" {scope} {}", found(mine));
                } else {
                    line += &format!(" {scope} {}/{}", found(mine), found(theirs));
                }
            }
            println!("{line}");
        }
    }
}

/// Asks both resolvers for about a hundred names, in all flags and several versions, and names what comes back after
/// the exported symbol that is the same address.
fn versions() {
    let h = libcuda(RTLD_LOCAL);
    let driver_version = {
        let cuda = Driver::with(&|name| sys::symbol(h, name));
        let mut v = 0;
        ok(cuda.cuDriverGetVersion(&mut v));
        v
    };
    println!("driver {driver_version}");
    let resolvers = [
        ("old", "cuGetProcAddress", false),
        ("new", "cuGetProcAddress_v2", true),
    ];
    let mut names: Vec<String> = names()
        .iter()
        .map(|n| {
            n.trim_end_matches("_ptsz")
                .trim_end_matches("_ptds")
                .trim_end_matches("_v2")
                .to_string()
        })
        .collect();
    names.push(String::new());
    names.sort();
    names.dedup();
    let symbols: Vec<(String, *mut c_void)> = names
        .iter()
        .filter(|n| !n.is_empty())
        .flat_map(|n| {
            ["", "_v2", "_v3", "_v4"].into_iter().flat_map(move |v| {
                ["", "_ptds", "_ptsz"]
                    .into_iter()
                    .map(move |t| format!("{n}{v}{t}"))
            })
        })
        .map(|n| {
            let p = sys::symbol(h, &n);
            (n, p)
        })
        .filter(|(_, p)| !p.is_null())
        .collect();
    let label = |p: *mut c_void| {
        if p.is_null() {
            return "nothing".into();
        }
        let mut all: Vec<&str> = symbols
            .iter()
            .filter(|(_, q)| *q == p)
            .map(|(n, _)| n.as_str())
            .collect();
        all.sort_unstable();
        if all.is_empty() {
            "no exported symbol".to_string()
        } else {
            all.join("=")
        }
    };
    for (which, symbol, new) in resolvers {
        let Some(resolver) = Resolver::from(sys::symbol(h, symbol), new) else {
            println!("{which}: absent");
            continue;
        };
        for name in &names {
            for flags in [0, 1, 2, 99] {
                for version in [2000, 3020, 7000, 11000, 11030, 12000, 12020, 13000, 99000] {
                    let Answer {
                        result,
                        pointer,
                        status,
                    } = resolver.ask(name, version, flags);
                    println!(
                        "{which} {name:?} {version} {flags}: {result} status {status} {}",
                        label(pointer)
                    );
                }
            }
        }
    }
}

/// As libcudart does it: one lookup, then everything from the resolver, the resolver itself included.
fn cudart() {
    let h = libcuda(RTLD_LOCAL);
    let first =
        Resolver::from(sys::symbol(h, "cuGetProcAddress_v2"), true).expect("cuGetProcAddress_v2");
    let empty = first.ask("", 12000, 0);
    println!(
        "empty name: {} {} {}",
        empty.result,
        empty.status,
        found(empty.pointer)
    );
    // The answers of the first are kept and used; the inner resolvers' answers must be the same.
    let old = first.ask("cuGetProcAddress", 11030, 0);
    let new = first.ask("cuGetProcAddress", 12000, 0);
    assert_eq!((old.result, new.result), (0, 0));
    assert_eq!((old.status, new.status), (0, 0));
    let old = Resolver::from(old.pointer, false).expect("cuGetProcAddress at 11030");
    let new = Resolver::from(new.pointer, true).expect("cuGetProcAddress at 12000");
    for flags in [0, 2] {
        let mut kept = 0;
        for name in names() {
            let (name, version) = reach::base(&name);
            let a = first.ask(name, version, flags);
            let b = new.ask(name, version, flags);
            let c = old.ask(name, version, flags);
            assert_eq!(a, b, "{name}");
            assert_eq!(a.pointer, c.pointer, "{name} by the old resolver");
            kept += usize::from(!a.pointer.is_null());
        }
        println!("flags {flags}: {kept} kept");
        let cuda = Driver::with(&|name| {
            let (name, version) = reach::base(name);
            first.ask(name, version, flags).pointer
        });
        work::everything(&gpu::Gpu::with(cuda));
    }
}

/// `dlerror` says what it would say.
fn errors() {
    let h = libcuda(RTLD_LOCAL);
    let ask = |name: &str| {
        let p = sys::symbol(h, name);
        let first = sys::dl_error();
        let second = sys::dl_error();
        let first = first.map(|e| e.rsplit(':').next().unwrap_or_default().trim().to_string());
        println!("{name}: {} {first:?} {second:?}", found(p));
    };
    for name in [
        "cuMemAlloc_v2",
        "cuNoSuchFunction",
        "cuInit",
        "cuMemAlloc_v3",
        "malloc_no",
        "cuMemFree_v2",
    ] {
        ask(name);
    }
    // A failed lookup's message survives a later successful one, until it is asked for.
    sys::symbol(h, "cuNoSuchFunction");
    sys::symbol(h, "cuMemAlloc_v2");
    println!("kept: {}", sys::dl_error().is_some());
    sys::symbol(h, "cuMemAlloc_v2");
    println!("clean: {}", sys::dl_error().is_none());
    // Nonsense handles are the loader's affair.
    let text = c("cuMemAlloc_v2");
    // SAFETY: a C string; the handle of a closed library is not used, only one never opened for lookup.
    let p = unsafe { sys::dlsym(sys::open(Some("libc.so.6"), RTLD_NOW), text.as_ptr()) };
    println!("in libc: {} {}", found(p), sys::dl_error().is_some());
}

/// `dlvsym` with versions that fit and that do not.
fn dlvsym() {
    let h = libcuda(RTLD_LOCAL);
    let ask = |handle, name: &str, version: &str| {
        let (n, v) = (c(name), c(version));
        // SAFETY: a handle and two C strings.
        let p = unsafe { sys::dlvsym(handle, n.as_ptr(), v.as_ptr()) };
        assert_eq!(p.is_null(), sys::dl_error().is_some(), "{name} {version}");
        p
    };
    for name in ["cuMemAlloc_v2", "cuInit", "cuNoSuchFunction"] {
        for version in ["libcuda.so.1", "GLIBC_2.2.5", "NO_SUCH_VERSION"] {
            println!("{name}@{version}: {}", found(ask(h, name, version)));
        }
    }
    println!(
        "malloc: {} {}",
        found(ask(RTLD_DEFAULT, "malloc", "GLIBC_2.2.5")),
        found(ask(RTLD_NEXT, "malloc", "GLIBC_9.9"))
    );
    // How other interposers find the real dlsym: it must work, whoever's it is.
    for scope in [RTLD_DEFAULT, RTLD_NEXT] {
        let mut p = ask(scope, "dlsym", "GLIBC_2.34");
        if p.is_null() {
            p = ask(scope, "dlsym", "GLIBC_2.2.5");
        }
        type Dlsym = unsafe extern "C" fn(*mut c_void, *const c_char) -> *mut c_void;
        assert!(!p.is_null(), "no dlsym");
        // SAFETY: the C library's dlsym, or one in its stead.
        let dlsym = unsafe { std::mem::transmute::<*mut c_void, Dlsym>(p) };
        let cuda = Driver::with(&|name| {
            let name = c(name);
            // SAFETY: an open handle and a C string.
            unsafe { dlsym(h, name.as_ptr()) }
        });
        let gpu = gpu::Gpu::with(cuda);
        gpu.works(1, 3 << 20);
    }
    println!("works");
}

/// Names of another library that begin with `cu`, one of them the driver's own.
fn foreign(cublas: &str) {
    let driver = libcuda(RTLD_LOCAL);
    let blas = sys::open(Some(cublas), RTLD_NOW | RTLD_GLOBAL);
    let call = |p: *mut c_void| {
        assert!(!p.is_null());
        // SAFETY: all functions of the library take nothing and return a number.
        unsafe { std::mem::transmute::<*mut c_void, extern "C" fn() -> c_int>(p)() }
    };
    for name in [
        "cublasCreate_v2",
        "cudnnCreate",
        "cuMemAlloc_v2",
        "cuMemFree_v2",
        "cuGetProcAddress_v2",
        "cuPrivate",
    ] {
        println!("{name}: {}", call(sys::symbol(blas, name)));
    }
    for name in ["cublasCreate_v2", "cuPrivate"] {
        println!("{name} globally: {}", call(sys::symbol(RTLD_DEFAULT, name)));
        println!("{name} in the driver: {}", found(sys::symbol(driver, name)));
    }
    assert_ne!(
        sys::symbol(driver, "cuMemAlloc_v2"),
        sys::symbol(blas, "cuMemAlloc_v2")
    );
    work::everything(&gpu::Gpu::with(Driver::with(&|name| {
        sys::symbol(driver, name)
    })));
    for name in ["cuMemAlloc_v2", "cuMemFree_v2", "cuGetProcAddress_v2"] {
        println!("{name} later: {}", call(sys::symbol(blas, name)));
    }
}

/// A library that wraps a function of the next one, as probes do: `RTLD_NEXT` must be counted from the library.
fn next(wrapper: &str) {
    let h = sys::open(Some(wrapper), RTLD_NOW | RTLD_LOCAL);
    let p = sys::symbol(h, "marker");
    // SAFETY: the library's function takes nothing and returns a number.
    let marker = unsafe { std::mem::transmute::<*mut c_void, extern "C" fn() -> c_int>(p) };
    // 1 for the wrapper and 10 for the wrapped; a wrapper that finds itself never returns.
    println!("marker: {}", marker());
}

/// Lookups in some threads while others start and end threads (which makes glibc look things up itself).
fn threads() {
    let h = libcuda(RTLD_LOCAL) as usize;
    std::thread::scope(|s| {
        for _ in 0..4 {
            s.spawn(move || {
                for _ in 0..300 {
                    for name in Driver::NAMES {
                        assert!(!sys::symbol(h as *mut c_void, name).is_null(), "{name}");
                    }
                    sys::symbol(h as *mut c_void, "cuNoSuchFunction");
                    assert!(sys::dl_error().is_some());
                    assert!(!sys::symbol(RTLD_DEFAULT, "malloc").is_null());
                }
            });
        }
        for _ in 0..2 {
            s.spawn(|| {
                for _ in 0..300 {
                    std::thread::spawn(|| std::hint::black_box(1))
                        .join()
                        .expect("a thread");
                }
            });
        }
        s.spawn(move || {
            let cuda = Driver::with(&|name| sys::symbol(h as *mut c_void, name));
            gpu::Gpu::with(cuda).works(5, 5 << 20);
        });
    });
    println!("done");
}

/// Symbols that the driver lacks, asked in every way.
fn absent() {
    let h = libcuda(RTLD_GLOBAL);
    for name in [
        "cuNoSuchFunction",
        "cuMemAlloc_v3",
        "cuGetProcAddress_v3",
        "nvmlNoSuchFunction",
    ] {
        for handle in [h, RTLD_DEFAULT, RTLD_NEXT, sys::open(None, RTLD_NOW)] {
            assert!(sys::symbol(handle, name).is_null(), "{name}");
            assert!(sys::dl_error().is_some(), "{name}: no dlerror");
        }
    }
    let new = Resolver::from(sys::symbol(h, "cuGetProcAddress_v2"), true).expect("resolver");
    let old = Resolver::from(sys::symbol(h, "cuGetProcAddress"), false).expect("resolver");
    for name in ["cuNoSuchFunction", "cuMemAlloc_v3"] {
        for flags in [0, 1, 2] {
            println!("{name} {flags}: {:?}", new.ask(name, 13000, flags));
            println!("{name} {flags}: {:?}", old.ask(name, 13000, flags));
        }
    }
}
