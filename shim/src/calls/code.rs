//! Code and what comes with it: variables of modules, stacks of kernels. VRAM that no allocation call shows (PITFALLS 29).
//!
//! Nobody says how much it is, so it is what is missing on the device after the call and was free before, less what the
//! job allocated meanwhile. Another program that allocates just then would be mistaken for it, so what nothing explains
//! (the size of a variable, the stacks of so many threads) is believed only within bounds.
//! The device is asked only around calls that load code (7 us each time: measured); what a launch loads is not seen.

use std::ffi::{c_char, c_int, c_uint, c_void};
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Mutex, PoisonError};

use greenboost_abi::*;
use greenboost_wire::ledger::{Part, Tier};

use super::memory::counting;
use crate::driver;
use crate::hooks::real;
use crate::process::Job;
use crate::tier::args;
use crate::tier::counted::{self, Counted};
use crate::tier::device::Device;
use crate::tier::map::Handle;

/// The current device at one moment.
struct Look {
    job: &'static Job,
    device: &'static Device,
    context: Handle,
    /// Bytes free, and bytes that the job holds for all the ledger knows.
    free: u64,
    known: u64,
}

impl Look {
    /// `None` without a context, or when the shim does not count.
    fn take() -> Option<Look> {
        let (job, device, context) = counting()?;
        let (free, _) = driver::mem_info().ok()?;
        let known = job.place.ledger().used(Tier::Vram, device.index);
        Some(Look {
            job,
            device,
            context,
            free,
            known,
        })
    }

    /// An entry for what belongs to the code with a handle.
    fn entry(&self, bytes: u64) -> Counted {
        Counted {
            part: Part::Code,
            index: self.device.index,
            bytes,
            context: self.context,
        }
    }

    /// Charges what the device lost since `before` to the code with this handle, or gives back what it gained.
    /// `explained` bytes of it are known to be its own.
    fn charge_since(&self, before: &Look, handle: u64, explained: u64) {
        if self.device.index != before.device.index {
            return;
        }
        let lost = before.free as i64 - self.free as i64;
        let allocated = self.known as i64 - before.known as i64;
        let own = believed(lost - allocated, explained, &UNEXPLAINED);
        counted::change(self.job, handle, self.entry(0), own);
    }
}

/// The most that one call is believed to have taken without an explanation, and all calls of the process together.
const MOST_OF_ONE: u64 = 32 << 20;
const MOST_OF_ALL: u64 = 256 << 20;
/// What was believed so far, bytes.
static UNEXPLAINED: AtomicU64 = AtomicU64::new(0);

/// How much of a loss is the call's own.
fn believed(loss: i64, explained: u64, so_far: &AtomicU64) -> i64 {
    let Some(more) = u64::try_from(loss)
        .ok()
        .and_then(|l| l.checked_sub(explained))
    else {
        return loss;
    };
    let more = more.min(MOST_OF_ONE);
    let before = so_far.fetch_add(more, SeqCst);
    let granted = more.min(MOST_OF_ALL.saturating_sub(before));
    so_far.fetch_sub(more - granted, SeqCst);
    (explained + granted) as i64
}

/// Makes a call of the program's that may load code; `handle` says afterwards which.
fn watched(call: impl FnOnce() -> CUresult, handle: impl FnOnce() -> u64) -> CUresult {
    let before = Look::take();
    let result = call();
    if result == CUDA_SUCCESS
        && let (Some(before), Some(after)) = (before, Look::take())
    {
        after.charge_since(&before, handle(), 0);
    }
    result
}

/// A variable of a module or library has so many bytes, so that takes no less.
fn has_variable(handle: u64, bytes: u64) {
    let taken = counted::bytes(Part::Code, handle);
    if let Some(here) = taken.filter(|t| *t < bytes).and_then(|_| Look::take()) {
        let lacking = bytes - taken.unwrap_or(0);
        counted::change(here.job, handle, here.entry(0), lacking as i64);
    }
}

/// Modules and libraries whose variables have been asked for. Loading may put that off until then (lazy loading).
static OPENED: Mutex<Vec<u64>> = Mutex::new(Vec::new());

/// As [`watched`], at the first such call only.
fn opened(handle: u64, call: impl FnOnce() -> CUresult) -> CUresult {
    let known = |opened: &Vec<u64>| opened.contains(&handle);
    if known(&OPENED.lock().unwrap_or_else(PoisonError::into_inner)) {
        return call();
    }
    let result = watched(call, || handle);
    let mut opened = OPENED.lock().unwrap_or_else(PoisonError::into_inner);
    if result == CUDA_SUCCESS && !known(&opened) {
        opened.push(handle);
    }
    result
}

fn unloaded(handle: u64, unload: impl FnOnce() -> CUresult) -> CUresult {
    args::forget();
    {
        let mut opened = OPENED.lock().unwrap_or_else(PoisonError::into_inner);
        opened.retain(|h| *h != handle);
    }
    counted::end(Part::Code, handle, unload)
}

macro_rules! loads {
    ($($ours:ident = $real:ident($($arg:ident: $ty:ty),*);)*) => {$(
        #[doc = concat!("Replaces `", stringify!($real), "`.")]
        ///
        /// # Safety
        /// As for the function it replaces.
        #[allow(clippy::too_many_arguments)]
        pub unsafe fn $ours(out: *mut *mut c_void, $($arg: $ty),*) -> CUresult {
            // SAFETY: the program's own call; after a success `out` holds the handle.
            unsafe { watched(|| real::$real(out, $($arg),*), || *out as u64) }
        }
    )*};
}

loads! {
    module = cuModuleLoad(path: *const c_char);
    module_data = cuModuleLoadData(image: *const c_void);
    module_data_ex = cuModuleLoadDataEx(image: *const c_void, count: c_uint, options: *mut c_int, values: *mut *mut c_void);
    module_fat = cuModuleLoadFatBinary(image: *const c_void);
    library = cuLibraryLoadData(code: *const c_void, jit: *mut c_int, jit_values: *mut *mut c_void, jit_count: c_uint, options: *mut c_int, values: *mut *mut c_void, count: c_uint);
    library_file = cuLibraryLoadFromFile(path: *const c_char, jit: *mut c_int, jit_values: *mut *mut c_void, jit_count: c_uint, options: *mut c_int, values: *mut *mut c_void, count: c_uint);
}

/// Replaces `CUresult cuModuleUnload(CUmodule hmod)`.
///
/// # Safety
/// As for the function it replaces.
pub unsafe fn module_unload(module: CUmodule) -> CUresult {
    // SAFETY: the program's own call.
    unloaded(module as u64, || unsafe { real::cuModuleUnload(module) })
}

/// Replaces `CUresult cuLibraryUnload(CUlibrary library)`.
///
/// # Safety
/// As for the function it replaces.
pub unsafe fn library_unload(library: CUlibrary) -> CUresult {
    // SAFETY: the program's own call.
    unloaded(library as u64, || unsafe { real::cuLibraryUnload(library) })
}

/// Replaces `CUresult cuModuleGetGlobal_v2(CUdeviceptr *dptr, size_t *bytes, CUmodule hmod, const char *name)`.
///
/// # Safety
/// As for the function it replaces.
pub unsafe fn module_global(
    out: *mut CUdeviceptr,
    bytes: *mut usize,
    module: CUmodule,
    name: *const c_char,
) -> CUresult {
    let mut size = 0;
    // SAFETY: the program's own call; where it does not want the size, we do.
    unsafe {
        let bytes = if bytes.is_null() {
            &raw mut size
        } else {
            bytes
        };
        let call = || real::cuModuleGetGlobal_v2(out, bytes, module, name);
        let result = opened(module as u64, call);
        if result == CUDA_SUCCESS {
            has_variable(module as u64, *bytes as u64);
        }
        result
    }
}

/// Replaces `CUresult cuLibraryGetGlobal(CUdeviceptr *dptr, size_t *bytes, CUlibrary library, const char *name)`.
///
/// # Safety
/// As for the function it replaces.
pub unsafe fn library_global(
    out: *mut CUdeviceptr,
    bytes: *mut usize,
    library: CUlibrary,
    name: *const c_char,
) -> CUresult {
    let mut size = 0;
    // SAFETY: as in `module_global`.
    unsafe {
        let bytes = if bytes.is_null() {
            &raw mut size
        } else {
            bytes
        };
        let call = || real::cuLibraryGetGlobal(out, bytes, library, name);
        let result = opened(library as u64, call);
        if result == CUDA_SUCCESS {
            has_variable(library as u64, *bytes as u64);
        }
        result
    }
}

/// Replaces `CUresult cuLibraryGetModule(CUmodule *pMod, CUlibrary library)`: the library is loaded into the context.
///
/// # Safety
/// As for the function it replaces.
pub unsafe fn library_module(out: *mut CUmodule, library: CUlibrary) -> CUresult {
    // SAFETY: the program's own call.
    opened(library as u64, || unsafe {
        real::cuLibraryGetModule(out, library)
    })
}

/// Replaces `CUresult cuCtxSetLimit(CUlimit limit, size_t value)`. A larger stack takes its bytes at once, for every
/// thread that can be resident: 64 KiB took 16.2 GiB on an H100 (measured). A larger heap takes them when code is loaded.
///
/// # Safety
/// As for the function it replaces.
pub unsafe fn set_limit(limit: c_int, value: usize) -> CUresult {
    let before = Look::take();
    let stacks = before
        .as_ref()
        .filter(|_| limit == CU_LIMIT_STACK_SIZE)
        .map_or(0, |look| more_stack(look.device.ordinal, value as u64));
    // SAFETY: the program's own call.
    let result = unsafe { real::cuCtxSetLimit(limit, value) };
    if result == CUDA_SUCCESS
        && let (Some(before), Some(after)) = (before, Look::take())
    {
        // A context's handle is none of a module's: both are addresses of the driver's.
        after.charge_since(&before, before.context.0 as u64, stacks);
    }
    result
}

/// Bytes that stacks of `size` bytes take more than they do now.
fn more_stack(device: CUdevice, size: u64) -> u64 {
    let count = |a| driver::attribute(a, device).unwrap_or(0).max(0) as u64;
    let resident = count(CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)
        * count(CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR);
    let now = driver::context_limit(CU_LIMIT_STACK_SIZE).unwrap_or(size);
    resident.saturating_mul(size.saturating_sub(now))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: i64 = 1 << 20;

    #[test]
    fn what_nothing_explains_is_believed_within_bounds() {
        let so_far = AtomicU64::new(0);
        assert_eq!(believed(10 * MIB, 0, &so_far), 10 * MIB);
        assert_eq!(believed(-5 * MIB, 0, &so_far), -5 * MIB);
        assert_eq!(believed(5000 * MIB, 4000 << 20, &so_far), 4032 * MIB);
        assert_eq!(believed(3 * MIB, 4 << 20, &so_far), 3 * MIB);
        let rest: i64 = (0..100).map(|_| believed(500 * MIB, 0, &so_far)).sum();
        assert_eq!(rest, 256 * MIB - 42 * MIB);
        assert_eq!(believed(500 * MIB, 100 << 20, &so_far), 100 * MIB);
    }
}
