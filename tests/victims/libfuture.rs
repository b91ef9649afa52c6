//! A driver of the future, when it is opened under the driver's name: functions that nobody knows yet.
#![allow(non_snake_case, non_upper_case_globals, clippy::missing_safety_doc)]

use std::ffi::c_int;

/// More than fits into registers, of both kinds, and a structure on the stack.
#[repr(C)]
pub struct Large(pub [f64; 3]);

/// Every argument must be what the victim passes.
#[unsafe(no_mangle)]
pub extern "C" fn cuFutureMany(
    a: u64,
    b: i8,
    x: f64,
    c: u16,
    d: i32,
    y: f32,
    e: u64,
    f: u64,
    g: i64,
    h: u8,
    large: Large,
    s: f64,
    t: f64,
    u: f64,
    v: f64,
    w: f64,
    z: f64,
    last: f64,
    i: u32,
) -> f64 {
    assert_eq!((a, b, c, d), (u64::MAX, -2, 3, -4));
    assert_eq!((e, f, g, h, i), (5, 6, i64::MIN, 8, 9));
    assert_eq!((x, y), (0.5, -0.25));
    assert_eq!(large.0, [1e300, 2.0, 3.0]);
    [s, t, u, v, w, z, last]
        .iter()
        .fold(0.0, |sum, n| sum * 10.0 + n)
}

static mut SEEN: [u64; 18] = [0; 18];

/// Notes the registers that carry arguments, those that a call may not count on, and the return address.
#[cfg(target_arch = "x86_64")]
#[unsafe(no_mangle)]
#[unsafe(naked)]
pub unsafe extern "C" fn cuFutureRegisters() {
    core::arch::naked_asm!(
        "mov [rip + {seen}], rdi",
        "mov [rip + {seen} + 8], rsi",
        "mov [rip + {seen} + 16], rdx",
        "mov [rip + {seen} + 24], rcx",
        "mov [rip + {seen} + 32], r8",
        "mov [rip + {seen} + 40], r9",
        "mov [rip + {seen} + 48], rax",
        "mov [rip + {seen} + 56], r10",
        "movq [rip + {seen} + 64], xmm0",
        "movq [rip + {seen} + 72], xmm1",
        "movq [rip + {seen} + 80], xmm2",
        "movq [rip + {seen} + 88], xmm3",
        "movq [rip + {seen} + 96], xmm4",
        "movq [rip + {seen} + 104], xmm5",
        "movq [rip + {seen} + 112], xmm6",
        "movq [rip + {seen} + 120], xmm7",
        "mov rax, [rsp]",
        "mov [rip + {seen} + 128], rax",
        "mov [rip + {seen} + 136], rsp",
        "ret",
        seen = sym SEEN,
    )
}

/// Where [`cuFutureRegisters`] notes them.
#[unsafe(no_mangle)]
pub extern "C" fn future_seen() -> *const u64 {
    (&raw const SEEN).cast()
}

/// One that is known, and freezes.
#[unsafe(no_mangle)]
pub extern "C" fn cuGraphicsMapResources(
    count: u32,
    resources: *const u8,
    stream: *const u8,
) -> c_int {
    count as c_int + resources as c_int + stream as c_int
}

/// One that is known, and harmless.
#[unsafe(no_mangle)]
pub extern "C" fn cuProfilerStart() -> c_int {
    7
}

/// The same code under two names, of which one is known.
#[unsafe(no_mangle)]
pub extern "C" fn cuFutureLog() -> c_int {
    8
}

/// Not a function.
#[unsafe(no_mangle)]
pub static mut cuFutureData: u64 = 0x1122_3344_5566_7788;
