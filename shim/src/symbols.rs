//! `dlsym` and `dlvsym`, and where the real functions are.
//!
//! Both are naked trampolines: they ask [`decide`], and for every name that is neither in the table of hooks nor one that
//! freezes ([`crate::mediation`]) they *jump* to the real function with the caller's registers and return address untouched, because glibc resolves `RTLD_NEXT` and
//! `RTLD_DEFAULT` from the return address (PITFALLS 1).
//!
//! Nothing here takes a lock of ours, allocates or starts anything: glibc and Rust's std call `dlsym` themselves while
//! they spawn threads.

use std::ffi::{CStr, c_char, c_void};
use std::sync::atomic::{AtomicUsize, Ordering::*};

use crate::{driver, elf, hooks, mediation, process};

/// glibc's `dlsym` and `dlvsym`, once [`find_real`] has run.
static REAL_DLSYM: AtomicUsize = AtomicUsize::new(0);
static REAL_DLVSYM: AtomicUsize = AtomicUsize::new(0);

/// What the trampolines get back, in two registers: if `answered` is not zero, `value` is the result.
#[repr(C)]
struct Answer {
    answered: usize,
    value: usize,
}

const PASS: Answer = Answer {
    answered: 0,
    value: 0,
};

/// Replaces `void *dlsym(void *handle, const char *name)`.
///
/// # Safety
/// As for the function it replaces.
#[cfg(target_arch = "x86_64")]
#[cfg_attr(not(test), unsafe(no_mangle))]
#[unsafe(naked)]
pub unsafe extern "C" fn dlsym(_handle: *mut c_void, _name: *const c_char) -> *mut c_void {
    core::arch::naked_asm!(
        "push rdi",
        "push rsi",
        "sub rsp, 8",
        "mov rdx, [rsp + 24]", // the caller's return address
        "xor ecx, ecx",
        "call {decide}",
        "add rsp, 8",
        "pop rsi",
        "pop rdi",
        "test rax, rax",
        "jne 2f",
        "jmp qword ptr [rip + {real}]",
        "2:",
        "mov rax, rdx",
        "ret",
        decide = sym decide,
        real = sym REAL_DLSYM,
    )
}

/// Replaces `void *dlvsym(void *handle, const char *name, const char *version)`.
///
/// # Safety
/// As for the function it replaces.
#[cfg(target_arch = "x86_64")]
#[cfg_attr(not(test), unsafe(no_mangle))]
#[unsafe(naked)]
pub unsafe extern "C" fn dlvsym(
    _handle: *mut c_void,
    _name: *const c_char,
    _version: *const c_char,
) -> *mut c_void {
    core::arch::naked_asm!(
        "push rdi",
        "push rsi",
        "push rdx",
        "mov rcx, rdx",
        "mov rdx, [rsp + 24]",
        "call {decide}",
        "mov rcx, rdx",
        "pop rdx",
        "pop rsi",
        "pop rdi",
        "test rax, rax",
        "jne 2f",
        "jmp qword ptr [rip + {real}]",
        "2:",
        "mov rax, rcx",
        "ret",
        decide = sym decide,
        real = sym REAL_DLVSYM,
    )
}

/// Replaces `void *dlsym(void *handle, const char *name)`. Not tested: no such machine was at hand.
///
/// # Safety
/// As for the function it replaces.
#[cfg(target_arch = "aarch64")]
#[cfg_attr(not(test), unsafe(no_mangle))]
#[unsafe(naked)]
pub unsafe extern "C" fn dlsym(_handle: *mut c_void, _name: *const c_char) -> *mut c_void {
    core::arch::naked_asm!(
        "stp x29, x30, [sp, #-32]!",
        "stp x0, x1, [sp, #16]",
        "mov x2, x30",
        "mov x3, xzr",
        "bl {decide}",
        "mov x9, x0",
        "mov x10, x1",
        "ldp x0, x1, [sp, #16]",
        "ldp x29, x30, [sp], #32",
        "cbnz x9, 2f",
        "adrp x9, {real}",
        "ldr x9, [x9, :lo12:{real}]",
        "br x9",
        "2:",
        "mov x0, x10",
        "ret",
        decide = sym decide,
        real = sym REAL_DLSYM,
    )
}

/// Replaces `void *dlvsym(void *handle, const char *name, const char *version)`. Not tested, as above.
///
/// # Safety
/// As for the function it replaces.
#[cfg(target_arch = "aarch64")]
#[cfg_attr(not(test), unsafe(no_mangle))]
#[unsafe(naked)]
pub unsafe extern "C" fn dlvsym(
    _handle: *mut c_void,
    _name: *const c_char,
    _version: *const c_char,
) -> *mut c_void {
    core::arch::naked_asm!(
        "stp x29, x30, [sp, #-48]!",
        "stp x0, x1, [sp, #16]",
        "str x2, [sp, #32]",
        "mov x3, x2",
        "mov x2, x30",
        "bl {decide}",
        "mov x9, x0",
        "mov x10, x1",
        "ldp x0, x1, [sp, #16]",
        "ldr x2, [sp, #32]",
        "ldp x29, x30, [sp], #48",
        "cbnz x9, 2f",
        "adrp x9, {real}",
        "ldr x9, [x9, :lo12:{real}]",
        "br x9",
        "2:",
        "mov x0, x10",
        "ret",
        decide = sym decide,
        real = sym REAL_DLVSYM,
    )
}

type Dlsym = unsafe extern "C" fn(*mut c_void, *const c_char) -> *mut c_void;
type Dlvsym = unsafe extern "C" fn(*mut c_void, *const c_char, *const c_char) -> *mut c_void;

/// Fills [`REAL_DLSYM`] and [`REAL_DLVSYM`]. Racing threads find the same addresses.
#[cold]
fn find_real() {
    // glibc before 2.34 keeps both in libdl; musl in its libc, which is also its loader.
    let libc = |o: &elf::Object| {
        let of = |name: &str| o.name().starts_with(name.as_bytes());
        (of("libc.so.") || of("libdl.so.") || of("ld-musl") || of("libc.musl"))
            && o.symbol(c"dlsym").is_some()
    };
    let found = elf::with(libc, |o| (o.symbol(c"dlsym"), o.symbol(c"dlvsym")));
    let Some((Some(dlsym), dlvsym)) = found else {
        // Without it no lookup of this process can be answered: there is nothing to fall back to.
        std::process::abort()
    };
    REAL_DLVSYM.store(dlvsym.unwrap_or(0), Release);
    REAL_DLSYM.store(dlsym, Release);
}

/// The real `dlsym`. With [`libc::RTLD_NEXT`] it searches what comes after the shim.
///
/// # Safety
/// As for `dlsym`.
unsafe fn real_dlsym(handle: *mut c_void, name: *const c_char) -> *mut c_void {
    if REAL_DLSYM.load(Acquire) == 0 {
        find_real();
    }
    // SAFETY: the address of glibc's `dlsym`, stored by `find_real`.
    let real: Dlsym = unsafe { std::mem::transmute(REAL_DLSYM.load(Acquire)) };
    // SAFETY: the caller's promise.
    unsafe { real(handle, name) }
}

/// Decides a lookup: [`PASS`] for every name that is none of ours; the trampoline then jumps to the real function.
unsafe extern "C" fn decide(
    handle: *mut c_void,
    name: *const c_char,
    caller: *const c_void,
    version: *const c_char,
) -> Answer {
    if REAL_DLSYM.load(Acquire) == 0 {
        find_real();
    }
    if name.is_null() {
        return PASS;
    }
    // SAFETY: a NUL-terminated name, by the contract of `dlsym`; bytes are read up to the first that differs.
    let ours = unsafe {
        match *name as u8 {
            b'c' => *name.add(1) as u8 == b'u',
            b'n' => *name.add(1) as u8 == b'v' && *name.add(2) as u8 == b'm',
            _ => false,
        }
    };
    if !ours {
        return PASS;
    }
    // SAFETY: as above.
    let name = unsafe { CStr::from_ptr(name) };
    let hooked = hooks::index_of(name).is_some();
    if !hooked && !mediation::is_suspect(name.to_bytes())
        || process::is_off()
        || !hooked && !mediation::is_suspect_of_driver(name)
    {
        return PASS;
    }
    // SAFETY: the program's own arguments.
    unsafe { answer(handle, name, caller, version, hooked) }
}

/// Answers a lookup of a name in the table (`hooked`) or of one that freezes: by what the real lookup finds, never by the
/// name alone.
///
/// # Safety
/// As for `dlsym`; `caller` is its return address.
unsafe fn answer(
    handle: *mut c_void,
    name: &CStr,
    caller: *const c_void,
    version: *const c_char,
    hooked: bool,
) -> Answer {
    let lookup = |handle| {
        if version.is_null() {
            // SAFETY: the program's lookup.
            return unsafe { real_dlsym(handle, name.as_ptr()) };
        }
        // SAFETY: `decide` ran `find_real`; a program that reached our `dlvsym` has one in its libc too.
        let real: Dlvsym = unsafe { std::mem::transmute(REAL_DLVSYM.load(Acquire)) };
        // SAFETY: the program's lookup.
        unsafe { real(handle, name.as_ptr(), version) }
    };
    let found = |result: *mut c_void| Answer {
        answered: 1,
        value: result as usize,
    };
    if handle != libc::RTLD_DEFAULT && handle != libc::RTLD_NEXT {
        let result = lookup(handle);
        match provider(result) {
            Provider::Driver => return found(substitute(result, name)),
            // `dlopen(NULL)`: the global scope starts with us. The driver's own symbol decides whether it exists.
            Provider::Shim => {}
            Provider::None | Provider::Other => return found(result),
        }
    }
    // These depend on who asks. The driver is either in the global scope, behind us, or in the caller's own.
    // We export the names of the table, so those are asked for behind us.
    let behind_us = if hooked { libc::RTLD_NEXT } else { handle };
    let mut result = lookup(behind_us);
    if result.is_null() {
        // SAFETY: loads nothing.
        let own = unsafe { handle_of(caller) };
        if !own.is_null() {
            result = lookup(own);
            // SAFETY: gives back the reference that `handle_of` took; the caller itself keeps the object loaded.
            unsafe { libc::dlclose(own) };
        }
    }
    match provider(result) {
        Provider::Driver => found(substitute(result, name)),
        // Only we have it: without us this lookup would have failed, and so it does (PITFALLS 5).
        Provider::None | Provider::Shim if hooked => found(lookup(libc::RTLD_NEXT)),
        Provider::None | Provider::Shim | Provider::Other => PASS,
    }
}

/// A handle of the library that an address is in; null for the program itself, whose scope is the global one.
///
/// # Safety
/// Every handle must be closed.
unsafe fn handle_of(address: *const c_void) -> *mut c_void {
    let Some(info) = describe(address).filter(|i| !i.dli_fname.is_null()) else {
        return std::ptr::null_mut();
    };
    // SAFETY: a NUL-terminated path; RTLD_NOLOAD loads nothing. A program's own path is no loaded library's name.
    unsafe { libc::dlopen(info.dli_fname, libc::RTLD_LAZY | libc::RTLD_NOLOAD) }
}

/// Which object a symbol comes from.
enum Provider {
    /// Nothing was found.
    None,
    /// This library.
    Shim,
    /// libcuda or libnvidia-ml.
    Driver,
    /// Any other: libcublas and libcudnn have names that begin with `cu` as well (PITFALLS 2).
    Other,
}

fn describe(address: *const c_void) -> Option<libc::Dl_info> {
    // SAFETY: all-zero is a valid `Dl_info`; `dladdr` accepts any address and fills what is passed.
    unsafe {
        let mut info: libc::Dl_info = std::mem::zeroed();
        (libc::dladdr(address, &mut info) != 0).then_some(info)
    }
}

/// Whether a file name is that of a driver library.
fn is_driver(name: &[u8]) -> bool {
    name.starts_with(b"libcuda.so") || name.starts_with(b"libnvidia-ml.so")
}

/// Where a symbol comes from. The first one from a driver library makes all real addresses of the table known.
fn provider(symbol: *mut c_void) -> Provider {
    let address = symbol as usize;
    if address == 0 {
        return Provider::None;
    }
    if hooks::known(address) {
        return Provider::Driver;
    }
    let own = decide as *const () as usize;
    elf::with(
        |o| o.contains(address),
        |o| {
            if o.contains(own) {
                Provider::Shim
            } else if is_driver(o.name()) {
                learn(o);
                Provider::Driver
            } else {
                Provider::Other
            }
        },
    )
    .unwrap_or(Provider::Other)
}

/// Learns the real addresses of every function of the table that this object defines.
fn learn(object: &elf::Object) {
    hooks::fill(|name| object.symbol(name));
    driver::fill(|name| object.symbol(name));
}

/// Our function for a real one, or what is handed out for one that is not intercepted.
fn substitute(symbol: *mut c_void, name: &CStr) -> *mut c_void {
    let real = symbol as usize;
    hooks::replacement(real).unwrap_or_else(|| mediation::hand_out(real, name)) as *mut c_void
}

/// Makes the real functions known when the program reached a hook without any lookup: it is linked to the driver.
#[cold]
pub fn learn_from_link() {
    for library in ["libcuda.so", "libnvidia-ml.so"] {
        elf::with(|o| o.name().starts_with(library.as_bytes()), learn);
    }
}
