//! The real driver, `Result`-typed, for the shim's own use.
//!
//! Functions that the program's calls are intercepted at are reached through [`crate::hooks::real`]; the table below
//! holds those that the shim only uses.

use std::ffi::{CStr, c_char, c_int, c_uchar, c_uint, c_ulonglong, c_ushort, c_void};
use std::sync::atomic::{AtomicUsize, Ordering::*};

use greenboost_abi::*;

pub use crate::hooks::MISSING;
use crate::hooks::real;

/// A `CUresult` other than success.
pub type Error = CUresult;
/// What a driver call gives.
pub type Result<T> = std::result::Result<T, Error>;

fn check(code: CUresult) -> Result<()> {
    if code == CUDA_SUCCESS {
        Ok(())
    } else {
        Err(code)
    }
}

macro_rules! uses {
    ($( fn $name:ident($($arg:ident: $ty:ty),* $(,)?); )*) => {
        #[allow(non_camel_case_types)]
        enum Index { $($name),* }
        static NAMES: [&CStr; [$(stringify!($name)),*].len()] = [$(
            // SAFETY: the literal ends with its only NUL.
            unsafe { CStr::from_bytes_with_nul_unchecked(concat!(stringify!($name), "\0").as_bytes()) }
        ),*];
        static REAL: [AtomicUsize; NAMES.len()] = [const { AtomicUsize::new(0) }; NAMES.len()];
        /// The functions as they are, for handlers that replace one call by another.
        #[allow(non_snake_case, missing_docs, clippy::missing_safety_doc)]
        pub mod raw {
            use super::*;
            $(
                pub unsafe fn $name($($arg: $ty),*) -> c_int {
                    let address = REAL[Index::$name as usize].load(Acquire);
                    if address == 0 {
                        return MISSING;
                    }
                    // SAFETY: the address of the driver's function of this name, whose signature this is.
                    let function: unsafe extern "C" fn($($ty),*) -> c_int = unsafe { std::mem::transmute(address) };
                    // SAFETY: the caller's promise.
                    unsafe { function($($arg),*) }
                }
            )*
        }
    };
}

/// Stores the real addresses that `lookup` knows.
pub fn fill(lookup: impl Fn(&CStr) -> Option<usize>) {
    for (name, slot) in NAMES.iter().zip(&REAL) {
        if let Some(address) = lookup(name) {
            slot.store(address, Release);
        }
    }
}

uses! {
    fn cuDriverGetVersion(version: *mut c_int);
    fn cuDeviceGetCount(count: *mut c_int);
    fn cuDeviceGetName(name: *mut c_char, length: c_int, device: CUdevice);
    fn cuDeviceGetUuid(uuid: *mut CUuuid, device: CUdevice);
    fn cuDeviceGetUuid_v2(uuid: *mut CUuuid, device: CUdevice);
    fn cuDeviceGetAttribute(value: *mut c_int, attribute: CUdevice_attribute, device: CUdevice);
    fn cuDevicePrimaryCtxGetState(device: CUdevice, flags: *mut c_uint, active: *mut c_int);
    fn cuCtxGetCurrent(context: *mut CUcontext);
    fn cuCtxFromGreenCtx(context: *mut CUcontext, green: CUgreenCtx);
    fn cuCtxGetDevice(device: *mut CUdevice);
    fn cuCtxPushCurrent_v2(context: CUcontext);
    fn cuCtxPopCurrent_v2(context: *mut CUcontext);
    fn cuCtxSynchronize();
    fn cuThreadExchangeStreamCaptureMode(mode: *mut c_int);
    fn cuCtxGetLimit(value: *mut usize, limit: c_int);
    fn cuMemHostGetDevicePointer_v2(out: *mut CUdeviceptr, address: *mut c_void, flags: c_uint);
    fn cuMemAddressReserve(address: *mut CUdeviceptr, size: usize, align: usize, wish: CUdeviceptr, flags: c_ulonglong);
    fn cuMemAddressFree(address: CUdeviceptr, size: usize);
    fn cuMemSetAccess(address: CUdeviceptr, size: usize, access: *const CUmemAccessDesc, count: usize);
    fn cuMemcpyDtoDAsync_v2(to: CUdeviceptr, from: CUdeviceptr, bytes: usize, stream: CUstream);
    fn cuMemcpyDtoDAsync_v2_ptsz(to: CUdeviceptr, from: CUdeviceptr, bytes: usize, stream: CUstream);
    fn cuMemsetD8Async(to: CUdeviceptr, value: c_uchar, count: usize, stream: CUstream);
    fn cuMemsetD2D8Async(to: CUdeviceptr, pitch: usize, value: c_uchar, width: usize, height: usize, stream: CUstream);
    fn cuMemsetD8Async_ptsz(to: CUdeviceptr, value: c_uchar, count: usize, stream: CUstream);
    fn cuMemsetD2D8Async_ptsz(to: CUdeviceptr, pitch: usize, value: c_uchar, width: usize, height: usize, stream: CUstream);
    fn cuMemsetD16Async(to: CUdeviceptr, value: c_ushort, count: usize, stream: CUstream);
    fn cuMemsetD2D16Async(to: CUdeviceptr, pitch: usize, value: c_ushort, width: usize, height: usize, stream: CUstream);
    fn cuMemsetD16Async_ptsz(to: CUdeviceptr, value: c_ushort, count: usize, stream: CUstream);
    fn cuMemsetD2D16Async_ptsz(to: CUdeviceptr, pitch: usize, value: c_ushort, width: usize, height: usize, stream: CUstream);
    fn cuMemsetD32Async(to: CUdeviceptr, value: c_uint, count: usize, stream: CUstream);
    fn cuMemsetD2D32Async(to: CUdeviceptr, pitch: usize, value: c_uint, width: usize, height: usize, stream: CUstream);
    fn cuMemsetD32Async_ptsz(to: CUdeviceptr, value: c_uint, count: usize, stream: CUstream);
    fn cuMemsetD2D32Async_ptsz(to: CUdeviceptr, pitch: usize, value: c_uint, width: usize, height: usize, stream: CUstream);
    fn cuMemcpyAsync(to: CUdeviceptr, from: CUdeviceptr, bytes: usize, stream: CUstream);
    fn cuMemcpyPeerAsync(to: CUdeviceptr, to_context: CUcontext, from: CUdeviceptr, from_context: CUcontext, bytes: usize, stream: CUstream);
    fn cuMemcpy2DAsync_v2(copy: *const CUDA_MEMCPY2D, stream: CUstream);
    fn cuMemcpy3DAsync_v2(copy: *const CUDA_MEMCPY3D, stream: CUstream);
    fn cuMemcpy3DPeerAsync(copy: *const CUDA_MEMCPY3D, stream: CUstream);
    fn cuMemcpyAsync_ptsz(to: CUdeviceptr, from: CUdeviceptr, bytes: usize, stream: CUstream);
    fn cuMemcpyPeerAsync_ptsz(to: CUdeviceptr, to_context: CUcontext, from: CUdeviceptr, from_context: CUcontext, bytes: usize, stream: CUstream);
    fn cuMemcpy2DAsync_v2_ptsz(copy: *const CUDA_MEMCPY2D, stream: CUstream);
    fn cuMemcpy3DAsync_v2_ptsz(copy: *const CUDA_MEMCPY3D, stream: CUstream);
    fn cuMemcpy3DPeerAsync_ptsz(copy: *const CUDA_MEMCPY3D, stream: CUstream);
    fn nvmlDeviceGetMigMode(device: nvmlDevice_t, current: *mut c_uint, pending: *mut c_uint);
    fn nvmlDeviceGetUUID(device: nvmlDevice_t, text: *mut c_char, length: c_uint);
}

/// The driver's version: 13000 is 13.0. 0 when it does not say.
pub fn version() -> u32 {
    let mut version = 0;
    // SAFETY: writes one int.
    unsafe { raw::cuDriverGetVersion(&mut version) };
    version.max(0) as u32
}

/// Devices that the process sees.
pub fn device_count() -> Result<u32> {
    let mut count = 0;
    // SAFETY: writes one int.
    check(unsafe { raw::cuDeviceGetCount(&mut count) })?;
    Ok(count.max(0) as u32)
}

/// The marketing name.
pub fn device_name(device: CUdevice) -> Result<String> {
    let mut name = [0u8; 128];
    // SAFETY: writes at most the given length, NUL included.
    check(unsafe { raw::cuDeviceGetName(name.as_mut_ptr().cast(), name.len() as c_int, device) })?;
    let text = CStr::from_bytes_until_nul(&name).unwrap_or_default();
    Ok(text.to_string_lossy().into_owned())
}

/// The device's UUID; of its MIG instance where there is one (`_v2`, driver 11.4).
pub fn device_uuid(device: CUdevice) -> Result<[u8; 16]> {
    let mut uuid = CUuuid::default();
    // SAFETY: both write one UUID.
    unsafe {
        check(raw::cuDeviceGetUuid_v2(&mut uuid, device))
            .or_else(|_| check(raw::cuDeviceGetUuid(&mut uuid, device)))?;
    }
    Ok(uuid.bytes)
}

/// An attribute of a device; one that the driver does not know is an error.
pub fn attribute(attribute: CUdevice_attribute, device: CUdevice) -> Result<c_int> {
    let mut value = 0;
    // SAFETY: writes one int.
    check(unsafe { raw::cuDeviceGetAttribute(&mut value, attribute, device) })?;
    Ok(value)
}

/// Whether the device's primary context exists.
pub fn primary_active(device: CUdevice) -> Result<bool> {
    let (mut flags, mut active) = (0, 0);
    // SAFETY: writes two ints.
    check(unsafe { raw::cuDevicePrimaryCtxGetState(device, &mut flags, &mut active) })?;
    Ok(active != 0)
}

/// The thread's current context; null when it has none.
pub fn current_context() -> Result<CUcontext> {
    let mut context = std::ptr::null_mut();
    // SAFETY: writes one handle.
    check(unsafe { raw::cuCtxGetCurrent(&mut context) })?;
    Ok(context)
}

/// The device of the thread's current context.
///
/// # Errors
/// 201 without a context, as `cuMemAlloc` has it; the context's own error when it is broken.
pub fn current_device() -> Result<CUdevice> {
    let mut device = 0;
    // SAFETY: writes one int.
    check(unsafe { raw::cuCtxGetDevice(&mut device) })?;
    Ok(device)
}

/// Makes a context current on this thread; [`pop`] undoes it.
///
/// # Safety
/// A context that the program made and that is not destroyed meanwhile: the driver does not always survive that.
pub unsafe fn push(context: CUcontext) -> Result<()> {
    // SAFETY: the caller's promise.
    check(unsafe { raw::cuCtxPushCurrent_v2(context) })
}

/// Takes off what [`push`] put on.
pub fn pop() {
    // SAFETY: writes one handle.
    unsafe { raw::cuCtxPopCurrent_v2(&mut std::ptr::null_mut()) };
}

/// Waits until all work of the thread's context is done.
///
/// Fails without waiting when there is none or it is gone (201, 709), broken (its sticky error) or capturing (900), or
/// when the thread is inside a host callback (800).
pub fn synchronize_current() -> Result<()> {
    // SAFETY: no arguments.
    check(unsafe { raw::cuCtxSynchronize() })
}

/// Runs `f` with this context current.
///
/// # Safety
/// As for [`push`].
pub unsafe fn with_context<T>(context: CUcontext, f: impl FnOnce() -> T) -> Result<T> {
    // SAFETY: the caller's promise.
    unsafe { push(context)? };
    let result = f();
    pop();
    Ok(result)
}

/// Runs `f` with no context current: after the current one was destroyed, calls that need none may still refuse
/// because of it.
pub fn without_context<T>(f: impl FnOnce() -> T) -> T {
    let mut context = std::ptr::null_mut();
    // SAFETY: what is popped is pushed again. If it was destroyed it is a primary context, whose handle stays good: any
    // other is taken off the stack by its destruction.
    unsafe {
        let popped = check(raw::cuCtxPopCurrent_v2(&mut context)).is_ok() && !context.is_null();
        let result = f();
        if popped {
            raw::cuCtxPushCurrent_v2(context);
        }
        result
    }
}

/// A limit of the current context.
pub fn context_limit(limit: c_int) -> Result<u64> {
    let mut value = 0;
    // SAFETY: writes one size.
    check(unsafe { raw::cuCtxGetLimit(&mut value, limit) })?;
    Ok(value as u64)
}

/// Where physical memory is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Location {
    /// On a device; `rdma` asks for memory that network adapters may address.
    Device {
        /// Ordinal.
        device: CUdevice,
        /// `gpuDirectRDMACapable`.
        rdma: bool,
    },
    /// On a host NUMA node.
    HostNuma(c_int),
}

/// Makes physical memory; `size` is a multiple of 2 MiB (the granularity of both locations: measured).
pub fn create(size: usize, location: Location) -> Result<CUmemGenericAllocationHandle> {
    let (type_, id, rdma) = match location {
        Location::Device { device, rdma } => (CU_MEM_LOCATION_TYPE_DEVICE, device, rdma),
        Location::HostNuma(node) => (CU_MEM_LOCATION_TYPE_HOST_NUMA, node, false),
    };
    let prop = CUmemAllocationProp {
        type_: CU_MEM_ALLOCATION_TYPE_PINNED,
        requestedHandleTypes: CU_MEM_HANDLE_TYPE_NONE,
        location: CUmemLocation { type_, id },
        win32HandleMetaData: std::ptr::null_mut(),
        allocFlags: CUmemAllocFlags {
            gpuDirectRDMACapable: rdma.into(),
            ..Default::default()
        },
    };
    let mut handle = 0;
    // SAFETY: writes one handle.
    check(unsafe { real::cuMemCreate(&mut handle, size, &prop, 0) })?;
    Ok(handle)
}

/// Drops a handle; the memory lives on while it is mapped.
///
/// # Safety
/// The handle is the caller's own and is not used again.
pub unsafe fn release(handle: CUmemGenericAllocationHandle) -> Result<()> {
    // SAFETY: the caller's promise.
    check(unsafe { real::cuMemRelease(handle) })
}

/// Reserves a virtual range, aligned to 2 MiB.
pub fn reserve(size: usize) -> Result<CUdeviceptr> {
    let mut address = 0;
    // SAFETY: writes one address.
    check(unsafe { raw::cuMemAddressReserve(&mut address, size, 2 << 20, 0, 0) })?;
    Ok(address)
}

/// Gives a virtual range back.
///
/// # Safety
/// The range came from [`reserve`], and nothing is mapped in it.
pub unsafe fn unreserve(address: CUdeviceptr, size: usize) -> Result<()> {
    // SAFETY: the caller's promise.
    check(unsafe { raw::cuMemAddressFree(address, size) })
}

/// Maps a whole handle (part of one is refused: measured).
///
/// # Safety
/// The range is reserved by the caller and has nothing mapped in it; `size` is the handle's.
pub unsafe fn map(
    address: CUdeviceptr,
    size: usize,
    handle: CUmemGenericAllocationHandle,
) -> Result<()> {
    // SAFETY: the caller's promise.
    check(unsafe { real::cuMemMap(address, size, 0, handle, 0) })
}

/// Unmaps whole mappings.
///
/// # Safety
/// No work that could touch the range is in flight, and none can start: `cuMemUnmap` does not wait (measured).
pub unsafe fn unmap(address: CUdeviceptr, size: usize) -> Result<()> {
    // SAFETY: the caller's promise.
    check(unsafe { real::cuMemUnmap(address, size) })
}

/// Lets these devices read and write a range of whole mappings.
///
/// # Safety
/// The range is the caller's, mapped throughout.
pub unsafe fn set_access(
    address: CUdeviceptr,
    size: usize,
    devices: impl IntoIterator<Item = CUdevice>,
) -> Result<()> {
    let access: Vec<CUmemAccessDesc> = devices
        .into_iter()
        .map(|id| CUmemAccessDesc {
            location: CUmemLocation {
                type_: CU_MEM_LOCATION_TYPE_DEVICE,
                id,
            },
            flags: CU_MEM_ACCESS_FLAGS_PROT_READWRITE,
        })
        .collect();
    // SAFETY: the caller's promise; the driver reads `access.len()` descriptors.
    check(unsafe { raw::cuMemSetAccess(address, size, access.as_ptr(), access.len()) })
}

/// While it lives, calls of this thread are not held against a capture that is open elsewhere.
pub struct Relaxed(Option<c_int>);

impl Relaxed {
    /// Exchanges the thread's capture mode.
    pub fn enter() -> Relaxed {
        let mut mode = CU_STREAM_CAPTURE_MODE_RELAXED;
        // SAFETY: exchanges one int.
        let done = unsafe { raw::cuThreadExchangeStreamCaptureMode(&mut mode) };
        Relaxed((done == CUDA_SUCCESS).then_some(mode))
    }
}

impl Drop for Relaxed {
    fn drop(&mut self) {
        if let Some(mode) = &mut self.0 {
            // SAFETY: gives back the mode that was there.
            unsafe { raw::cuThreadExchangeStreamCaptureMode(mode) };
        }
    }
}

/// Pins memory and maps it for all contexts.
///
/// # Safety
/// The memory stays mapped until [`host_unregister`].
pub unsafe fn host_register(address: u64, bytes: usize) -> Result<()> {
    let flags = CU_MEMHOSTREGISTER_PORTABLE | CU_MEMHOSTREGISTER_DEVICEMAP;
    // SAFETY: the caller's promise.
    check(unsafe { real::cuMemHostRegister_v2(address as *mut c_void, bytes, flags) })
}

/// Undoes [`host_register`].
///
/// # Safety
/// No work that could touch the memory is in flight.
pub unsafe fn host_unregister(address: u64) -> Result<()> {
    // SAFETY: the caller's promise.
    check(unsafe { real::cuMemHostUnregister(address as *mut c_void) })
}

/// Where the GPU sees registered memory.
pub fn device_address(address: u64) -> Result<CUdeviceptr> {
    let mut out = 0;
    // SAFETY: writes one address.
    check(unsafe { raw::cuMemHostGetDevicePointer_v2(&mut out, address as *mut c_void, 0) })?;
    Ok(out)
}

/// The driver's own allocation.
pub fn mem_alloc(bytes: usize) -> Result<CUdeviceptr> {
    let mut address = 0;
    // SAFETY: writes one address.
    check(unsafe { real::cuMemAlloc_v2(&mut address, bytes) })?;
    Ok(address)
}

/// Bytes free and in total on the current context's device, as the driver sees them.
pub fn mem_info() -> Result<(u64, u64)> {
    let (mut free, mut total) = (0, 0);
    // SAFETY: writes two sizes.
    check(unsafe { real::cuMemGetInfo_v2(&mut free, &mut total) })?;
    Ok((free as u64, total as u64))
}

/// The device's physical bytes.
pub fn total_mem(device: CUdevice) -> Result<u64> {
    let mut total = 0;
    // SAFETY: writes one size.
    check(unsafe { real::cuDeviceTotalMem_v2(&mut total, device) })?;
    Ok(total as u64)
}

/// The `CUmemorytype` of an address, as the driver sees it.
pub fn memory_type(address: CUdeviceptr) -> Result<c_uint> {
    let mut kind: c_uint = 0;
    let out = (&raw mut kind).cast();
    // SAFETY: writes one unsigned int; any address may be asked about.
    check(unsafe { real::cuPointerGetAttribute(out, CU_POINTER_ATTRIBUTE_MEMORY_TYPE, address) })?;
    Ok(kind)
}

/// Whether this is a GPU in MIG mode; an instance of one is not.
///
/// # Safety
/// The handle is the program's, from NVML.
pub unsafe fn nvml_is_divided(device: nvmlDevice_t) -> bool {
    let (mut now, mut later) = (0, 0);
    // SAFETY: NVML writes two unsigned ints. It refuses instances, and GPUs that know no MIG.
    let code = unsafe { raw::nvmlDeviceGetMigMode(device, &mut now, &mut later) };
    code == NVML_SUCCESS && now == 1
}

/// The UUID of an NVML device, as CUDA has it. `None` for text that is not `GPU-` or `MIG-` and 32 hexadecimal digits.
///
/// # Safety
/// The handle is the program's, from NVML.
pub unsafe fn nvml_uuid(device: nvmlDevice_t) -> Option<[u8; 16]> {
    let mut text = [0u8; 96];
    // SAFETY: NVML writes at most the given length, NUL included.
    let code =
        unsafe { raw::nvmlDeviceGetUUID(device, text.as_mut_ptr().cast(), text.len() as c_uint) };
    if code != NVML_SUCCESS {
        return None;
    }
    parse_uuid(CStr::from_bytes_until_nul(&text).ok()?.to_str().ok()?)
}

fn parse_uuid(text: &str) -> Option<[u8; 16]> {
    let digits: Vec<u8> = text
        .split_once('-')?
        .1
        .chars()
        .filter(|c| *c != '-')
        .map(|c| c.to_digit(16).map(|d| d as u8))
        .collect::<Option<_>>()?;
    let pairs: Vec<u8> = digits
        .chunks(2)
        .map(|p| p.iter().fold(0, |n, d| n << 4 | d))
        .collect();
    pairs.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uuid_text() {
        let uuid = parse_uuid("GPU-00112233-4455-6677-8899-aabbccddeeff").unwrap();
        assert_eq!(uuid[0..3], [0x00, 0x11, 0x22]);
        assert_eq!(uuid[15], 0xff);
        assert_eq!(parse_uuid("GPU-00112233"), None);
        assert_eq!(parse_uuid("GPU-0011223x-4455-6677-8899-aabbccddeeff"), None);
        assert_eq!(parse_uuid(""), None);
    }
}
