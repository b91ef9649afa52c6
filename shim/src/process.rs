//! The life of the process, as the shim sees it.
//!
//! Asleep until the program's own `cuInit` succeeds: no thread, no descriptor, no output, nothing read but one
//! environment variable. Then live; and from there possibly wounded. The child of a fork passes everything through: the
//! driver does not work there either.

use std::ffi::{CStr, c_uint};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering::*};
use std::sync::{Mutex, OnceLock};

use greenboost_abi::*;
use greenboost_wire::ledger::{Ledger, Mapped, Place, Tier};
use greenboost_wire::record::Kind;
use greenboost_wire::{CONTROL_SOCKET, JOB_ENV, LEDGER_FILE};

use crate::hooks::real;
use crate::tier::{staging, steward};
use crate::{driver, freeze, telemetry};

const UNASKED: u8 = 0;
const ASLEEP: u8 = 1;
const LIVE: u8 = 2;
const WOUNDED: u8 = 3;
const OFF: u8 = 4;
const FORKED: u8 = 5;

static STATE: AtomicU8 = AtomicU8::new(UNASKED);
static JOB: OnceLock<Job> = OnceLock::new();
static LEDGER: OnceLock<Option<&'static Ledger>> = OnceLock::new();

/// This process's part of the job.
pub struct Job {
    /// Where budgets are reserved.
    pub place: Place,
}

/// Whether the user switched the shim off, or no launcher stands behind it. Allocates nothing: the resolvers ask.
pub fn is_off() -> bool {
    let mut state = STATE.load(Acquire);
    if state == UNASKED {
        let off = variable(c"GREENBOOST").is_some_and(|v| v.to_bytes() == b"off")
            || variable(c"GREENBOOST_JOB").is_none();
        let answer = if off { OFF } else { ASLEEP };
        state = STATE
            .compare_exchange(UNASKED, answer, AcqRel, Acquire)
            .map_or_else(|now| now, |_| answer);
    }
    state == OFF
}

fn variable(name: &CStr) -> Option<&'static CStr> {
    // SAFETY: `getenv` returns NULL or a NUL-terminated string of the environment, which is read at once.
    unsafe {
        let value = libc::getenv(name.as_ptr());
        (!value.is_null()).then(|| CStr::from_ptr(value))
    }
}

/// Whether hooks go straight to the real functions.
#[inline]
pub fn passes_through() -> bool {
    is_off() || STATE.load(Acquire) == FORKED
}

/// The job, when allocations are to be placed: CUDA is initialised and the shim is well.
pub fn live() -> Option<&'static Job> {
    (STATE.load(Acquire) == LIVE).then(|| JOB.get()).flatten()
}

/// The job, even when wounded: ranges that exist are still freed and described.
pub fn job() -> Option<&'static Job> {
    matches!(STATE.load(Acquire), LIVE | WOUNDED)
        .then(|| JOB.get())
        .flatten()
}

/// The ledger, also before CUDA is initialised: NVML may be asked first.
pub fn ledger() -> Option<&'static Ledger> {
    *LEDGER.get_or_init(|| {
        let mapped = Mapped::open(&directory()?.join(LEDGER_FILE)).ok()?;
        let mapped: &'static Mapped = Box::leak(Box::new(mapped));
        Some(mapped)
    })
}

/// The job's directory, as the environment named it when it was first asked for: programs change theirs.
pub fn directory() -> Option<&'static Path> {
    static DIRECTORY: OnceLock<Option<PathBuf>> = OnceLock::new();
    let directory = DIRECTORY.get_or_init(|| {
        std::env::var_os(JOB_ENV)
            .map(PathBuf::from)
            .filter(|p| p.is_absolute())
    });
    directory.as_deref()
}

/// Replaces `CUresult cuInit(unsigned int flags)`.
///
/// # Safety
/// As for `cuInit`.
pub unsafe fn init(flags: c_uint) -> CUresult {
    // SAFETY: the program's own call.
    let result = unsafe { real::cuInit(flags) };
    if result == CUDA_SUCCESS {
        awaken();
    }
    result
}

/// Joins the job, once. A process that cannot join stays outside of it and is not limited: it says so if it can.
fn awaken() {
    static ONCE: Mutex<()> = Mutex::new(());
    let _once = ONCE.lock().unwrap_or_else(|e| e.into_inner());
    if STATE.load(Acquire) != ASLEEP {
        return;
    }
    let Some(directory) = directory() else { return };
    quiet_panics();
    telemetry::connect(&directory.join(CONTROL_SOCKET));
    // What this very process held before an `exec` is gone, and what others left too.
    if let Some(ledger) = ledger() {
        ledger.reap();
    }
    let Some(place) = ledger().and_then(Place::take) else {
        telemetry::say(
            Kind::Degraded,
            None,
            [0; 3],
            "this process could not join the job: it is not limited",
        );
        STATE.store(OFF, Release);
        return;
    };
    let ledger = place.ledger();
    if JOB.set(Job { place }).is_err() {
        return;
    }
    // SAFETY: both functions take no argument, do not unwind, and stay loaded: a preloaded library is never closed.
    unsafe {
        libc::pthread_atfork(None, None, Some(after_fork));
        libc::atexit(at_exit);
    }
    ledger.cuda_processes.fetch_add(1, SeqCst);
    STATE.store(LIVE, Release);
    let devices = driver::device_count().unwrap_or(0);
    telemetry::say(
        Kind::Hello,
        None,
        [driver::version().into(), devices.into(), 0],
        &program_name(),
    );
    freeze::look_at_links();
}

fn program_name() -> String {
    std::env::args_os()
        .next()
        .map(|path| {
            Path::new(&path)
                .file_name()
                .unwrap_or(&path)
                .to_string_lossy()
                .into_owned()
        })
        .unwrap_or_default()
}

/// A panic inside the shim is caught at the boundary; its message must not reach the program's terminal.
fn quiet_panics() {
    std::panic::set_hook(Box::new(|_| {}));
}

/// The shim found itself broken: it takes no new allocations, and keeps serving the ranges that it owns.
pub fn wound(what: &str) {
    if STATE
        .compare_exchange(LIVE, WOUNDED, AcqRel, Acquire)
        .is_ok()
    {
        telemetry::say(Kind::Wounded, None, [0; 3], what);
    }
}

/// Stops the program: it holds addresses that are not valid any more.
pub fn stop(what: &str) -> ! {
    telemetry::say(Kind::Wounded, None, [0; 3], what);
    let line = format!("greenboost: stopped the program: {what}\n");
    // SAFETY: writes bytes that are there.
    unsafe { libc::write(2, line.as_ptr().cast(), line.len()) };
    std::process::abort()
}

/// Tells the launcher, once, of an error after which the driver refuses all further work (cuda.h says which those are).
/// It comes as the result of whatever call is made next, so the one that is seen here need not be its cause.
pub fn device_error(code: CUresult) {
    let name = match code {
        214 => "uncorrectable ECC error",
        CUDA_ERROR_ILLEGAL_ADDRESS => "illegal address",
        702 => "launch timeout",
        710 => "assertion failed",
        714 => "hardware stack error",
        715 => "illegal instruction",
        716 => "misaligned address",
        717 => "invalid address space",
        718 => "invalid program counter",
        CUDA_ERROR_LAUNCH_FAILED => "launch failed",
        _ => return,
    };
    if code == CUDA_ERROR_ILLEGAL_ADDRESS
        && let Some(what) = staging::suspect()
    {
        stop(&what);
    }
    static SAID: AtomicBool = AtomicBool::new(false);
    if job().is_some() && !SAID.swap(true, AcqRel) {
        telemetry::say(Kind::DeviceError, None, [code as u64, 0, 0], name);
    }
}

extern "C" fn after_fork() {
    STATE.store(FORKED, Release);
}

extern "C" fn at_exit() {
    let Some(job) = job() else { return };
    steward::end(job);
    freeze::announce();
    let sum = |tier| {
        (0..greenboost_wire::ledger::DEVICES)
            .map(|d| job.place.own(tier, d))
            .sum()
    };
    telemetry::say(Kind::Bye, None, [sum(Tier::Vram), sum(Tier::Host), 0], "");
}
