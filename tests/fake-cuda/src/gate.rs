//! The one door: every exported function is declared by [`api`] and passes [`enter`].
use std::panic::{AssertUnwindSafe, catch_unwind};

use greenboost_abi::{
    CUDA_ERROR_NOT_INITIALIZED, CUDA_ERROR_NOT_PERMITTED, CUDA_ERROR_NOT_SUPPORTED,
    CUDA_ERROR_UNKNOWN, CUresult,
};

use crate::abi::Res;
use crate::config::config;
use crate::misuse::{append, misuse};
use crate::{local, stream, world};

/// What must be true before the function may run.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Need {
    /// Nothing at all: works before `cuInit` and inside callbacks.
    Nothing,
    /// `cuInit` was called.
    Init,
    /// `cuInit` was called, and the current context, if any, has not failed.
    Sound,
    /// A current context that lives and has not failed.
    Context,
}

/// Which stream the handle 0 names.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Flavour {
    Legacy,
    PerThread,
}

/// One exported function: `asked` is the name that `cuGetProcAddress` knows it by.
pub(crate) struct Symbol {
    pub asked: &'static str,
    pub since: u32,
    pub flavour: Flavour,
    pub address: *const (),
}

// SAFETY: `address` is that of a function, never dereferenced as data.
unsafe impl Sync for Symbol {}

pub(crate) struct Entry {
    pub name: &'static str,
    pub asked: &'static str,
    pub since: u32,
    pub need: Need,
}

/// Declares exported functions and this room's `SYMBOLS`:
/// `Need asked_name { since exported_name Flavour, ... } (arguments) |flavour| { body }`
macro_rules! api {
    ($($need:ident $asked:ident { $($since:literal $name:ident $flavour:ident),+ $(,)? } $args:tt |$f:ident| $body:block)*) => {
        $($($crate::gate::exported!($need $asked $since $name $flavour $args $f $body);)+)*
        pub(crate) static SYMBOLS: &[$crate::gate::Symbol] = &[$($($crate::gate::Symbol {
            asked: stringify!($asked),
            since: $since,
            flavour: $crate::gate::Flavour::$flavour,
            address: $name as *const (),
        }),+),*];
    };
}

macro_rules! exported {
    ($need:ident $asked:ident $since:literal $name:ident $flavour:ident ($($arg:ident : $ty:ty),* $(,)?) $f:ident $body:block) => {
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name($($arg: $ty),*) -> greenboost_abi::CUresult {
            static ENTRY: $crate::gate::Entry = $crate::gate::Entry {
                name: stringify!($name),
                asked: stringify!($asked),
                since: $since,
                need: $crate::gate::Need::$need,
            };
            $crate::gate::enter(&ENTRY, move || -> $crate::abi::Res {
                let $f = $crate::gate::Flavour::$flavour;
                let _ = $f;
                $body
            })
        }
    };
}
pub(crate) use exported;

/// Runs one call. No panic leaves it.
pub(crate) fn enter(entry: &'static Entry, call: impl FnOnce() -> Res) -> CUresult {
    let result = match catch_unwind(AssertUnwindSafe(|| admit(entry).and_then(|()| call()))) {
        Ok(Ok(())) => 0,
        Ok(Err(code)) => code,
        Err(_) => {
            misuse!("internal: {} panicked", entry.name);
            CUDA_ERROR_UNKNOWN
        }
    };
    trace(entry.name, result);
    result
}

pub(crate) fn trace(name: &str, result: i32) {
    if let Some(path) = &config().trace {
        // SAFETY: no arguments, cannot fail.
        let (pid, tid) = unsafe { (libc::getpid(), libc::syscall(libc::SYS_gettid)) };
        append(path, &format!("{pid} {tid} {name} {result}\n"));
    }
}

fn admit(entry: &'static Entry) -> Res {
    if entry.need != Need::Nothing && world::forked() {
        return Err(CUDA_ERROR_NOT_INITIALIZED);
    }
    let config = config();
    if entry.since > config.driver {
        return Err(CUDA_ERROR_NOT_SUPPORTED);
    }
    if entry.need != Need::Nothing && local::in_callback() {
        return Err(CUDA_ERROR_NOT_PERMITTED);
    }
    for rule in &config.blocks {
        rule.stand(entry.name, entry.asked);
    }
    for rule in &config.failures {
        match rule.strike(entry.name, entry.asked) {
            None | Some(0) => {}
            Some(code) => return Err(code),
        }
    }
    if entry.need == Need::Nothing {
        return Ok(());
    }
    if !world::initialised() {
        return Err(CUDA_ERROR_NOT_INITIALIZED);
    }
    match entry.need {
        Need::Context => world::world().here().map(drop),
        Need::Sound => stream::failed(&world::world(), local::current()),
        _ => Ok(()),
    }
}
