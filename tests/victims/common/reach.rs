//! The ways in which programs come to the driver's functions.

use crate::sys::{self, RTLD_DEFAULT, RTLD_GLOBAL, RTLD_LOCAL, RTLD_NEXT, RTLD_NOW};
use crate::*;

/// The driver's library, as everyone names it.
pub const LIBCUDA: &str = "libcuda.so.1";

pub type GetProcAddress =
    unsafe extern "C" fn(*const c_char, *mut *mut c_void, c_int, u64) -> CUresult;
pub type GetProcAddressV2 =
    unsafe extern "C" fn(*const c_char, *mut *mut c_void, c_int, u64, *mut c_int) -> CUresult;

/// What `cuGetProcAddress` or `_v2` answered.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Answer {
    pub result: CUresult,
    pub pointer: *mut c_void,
    /// `symbolStatus`; -7 when it was left alone or cannot be told (the old function).
    pub status: c_int,
}

/// Either resolver of the driver.
#[derive(Clone, Copy)]
pub enum Resolver {
    Old(GetProcAddress),
    New(GetProcAddressV2),
}

impl Resolver {
    /// From an address that `dlsym` or a resolver gave for `cuGetProcAddress` or `cuGetProcAddress_v2`.
    pub fn from(address: *mut c_void, new: bool) -> Option<Resolver> {
        if address.is_null() {
            return None;
        }
        // SAFETY: the caller names the right one of the two.
        Some(unsafe {
            if new {
                Resolver::New(std::mem::transmute::<*mut c_void, GetProcAddressV2>(
                    address,
                ))
            } else {
                Resolver::Old(std::mem::transmute::<*mut c_void, GetProcAddress>(address))
            }
        })
    }

    pub fn ask(self, name: &str, version: c_int, flags: u64) -> Answer {
        let name = c(name);
        let mut pointer = std::ptr::null_mut();
        let mut status = -7;
        // SAFETY: a C string and places for the answers.
        let result = unsafe {
            match self {
                Resolver::Old(f) => f(name.as_ptr(), &mut pointer, version, flags),
                Resolver::New(f) => f(name.as_ptr(), &mut pointer, version, flags, &mut status),
            }
        };
        Answer {
            result,
            pointer,
            status,
        }
    }
}

/// The name and version under which a resolver knows an exported symbol.
pub fn base(symbol: &str) -> (&str, c_int) {
    match symbol {
        // Later versions of this name take other arguments.
        "cuCtxCreate_v2" => ("cuCtxCreate", 3020),
        "cuGraphInstantiateWithFlags" => (symbol, 11040),
        _ => (
            symbol
                .strip_suffix("_v2")
                .or_else(|| symbol.strip_suffix("_v3"))
                .unwrap_or(symbol),
            12000,
        ),
    }
}

impl Driver {
    /// The driver, reached as the environment variable `REACH` says (see [`Driver::by`]); by `dlsym` without it.
    pub fn reach() -> Driver {
        Driver::by(&std::env::var("REACH").unwrap_or_else(|_| "dlsym".into()))
    }

    /// - `dlsym`: as most programs do; `absolute`: the library opened by the path in `LIBCUDA_PATH`;
    /// - `default`, `next`, `self`: opened globally, then `RTLD_DEFAULT`, `RTLD_NEXT`, the handle of `dlopen(NULL)`;
    /// - `proc FLAGS`, `oldproc FLAGS`: `cuGetProcAddress_v2` or `cuGetProcAddress` by `dlsym`, all else through it;
    /// - `nested`, `oldnested`: as libcudart: the resolver is asked for itself (at 12000, at 11030), its answer is used.
    pub fn by(way: &str) -> Driver {
        let (kind, flags) = way.split_once(' ').unwrap_or((way, "0"));
        let flags: u64 = flags.parse().expect("flags");
        let local = || sys::open(Some(LIBCUDA), RTLD_NOW | RTLD_LOCAL);
        let global = || sys::open(Some(LIBCUDA), RTLD_NOW | RTLD_GLOBAL);
        let by_handle = |h: *mut c_void| Driver::with(&|name| sys::symbol(h, name));
        let by_resolver = |r: Resolver| {
            Driver::with(&|name| {
                let (name, version) = base(name);
                r.ask(name, version, flags).pointer
            })
        };
        match kind {
            "dlsym" => by_handle(local()),
            "absolute" => {
                let path = std::env::var("LIBCUDA_PATH").expect("LIBCUDA_PATH");
                by_handle(sys::open(Some(&path), RTLD_NOW | RTLD_LOCAL))
            }
            "default" => {
                global();
                by_handle(RTLD_DEFAULT)
            }
            "next" => {
                global();
                by_handle(RTLD_NEXT)
            }
            "self" => {
                global();
                by_handle(sys::open(None, RTLD_NOW))
            }
            "proc" | "nested" | "oldproc" | "oldnested" => {
                let new = !kind.starts_with("old");
                let symbol = if new {
                    "cuGetProcAddress_v2"
                } else {
                    "cuGetProcAddress"
                };
                let first = Resolver::from(sys::symbol(local(), symbol), new).expect("no resolver");
                if !kind.ends_with("nested") {
                    return by_resolver(first);
                }
                first.ask("", 12000, 0);
                let version = if new { 12000 } else { 11030 };
                let inner = first.ask("cuGetProcAddress", version, 0);
                assert_eq!(
                    inner.result, CUDA_SUCCESS,
                    "the resolver does not find itself"
                );
                by_resolver(Resolver::from(inner.pointer, new).expect("no inner resolver"))
            }
            _ => panic!("REACH={way}?"),
        }
    }
}
