//! The real driver, `Result`-typed, for the shim's own use.
//!
//! Functions that the program's calls are intercepted at are reached through [`crate::hooks::real`]; the table below
//! holds those that the shim only uses.

use std::ffi::{CStr, c_char, c_int, c_uchar, c_uint, c_ulonglong, c_ushort, c_void};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::*};

use greenboost_abi::*;

pub use crate::hooks::MISSING;
use crate::hooks::real;
use crate::tier::map::Handle;

pub mod graph;
pub mod kernel;
pub mod queue;

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
    fn cuDeviceCanAccessPeer(can: *mut c_int, device: CUdevice, peer: CUdevice);
    fn cuDevicePrimaryCtxGetState(device: CUdevice, flags: *mut c_uint, active: *mut c_int);
    fn cuCtxGetCurrent(context: *mut CUcontext);
    fn cuCtxFromGreenCtx(context: *mut CUcontext, green: CUgreenCtx);
    fn cuCtxGetDevice(device: *mut CUdevice);
    fn cuCtxPushCurrent_v2(context: CUcontext);
    fn cuCtxPopCurrent_v2(context: *mut CUcontext);
    fn cuCtxSynchronize();
    fn cuThreadExchangeStreamCaptureMode(mode: *mut c_int);
    fn cuCtxGetLimit(value: *mut usize, limit: c_int);
    fn cuStreamIsCapturing(stream: CUstream, status: *mut c_int);
    fn cuStreamGetCtx(stream: CUstream, context: *mut CUcontext);
    fn cuEventCreate(event: *mut CUevent, flags: c_uint);
    fn cuEventRecord(event: CUevent, stream: CUstream);
    fn cuEventRecord_ptsz(event: CUevent, stream: CUstream);
    fn cuEventQuery(event: CUevent);
    fn cuEventElapsedTime(milliseconds: *mut f32, from: CUevent, to: CUevent);
    fn cuCtxGetStreamPriorityRange(least: *mut c_int, greatest: *mut c_int);
    fn cuStreamCreateWithPriority(stream: *mut CUstream, flags: c_uint, priority: c_int);
    fn cuEventDestroy_v2(event: CUevent);
    fn cuDeviceGetMemPool(pool: *mut CUmemoryPool, device: CUdevice);
    fn cuDeviceGetDefaultMemPool(pool: *mut CUmemoryPool, device: CUdevice);
    fn cuMemHostGetDevicePointer_v2(out: *mut CUdeviceptr, address: *mut c_void, flags: c_uint);
    fn cuMemAddressReserve(address: *mut CUdeviceptr, size: usize, align: usize, wish: CUdeviceptr, flags: c_ulonglong);
    fn cuMemAddressFree(address: CUdeviceptr, size: usize);
    fn cuStreamSynchronize(stream: CUstream);
    fn cuStreamSynchronize_ptsz(stream: CUstream);
    fn cuMemGetAccess(flags: *mut c_ulonglong, location: *const CUmemLocation, address: CUdeviceptr);
    fn cuMemSetAccess(address: CUdeviceptr, size: usize, access: *const CUmemAccessDesc, count: usize);
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
    fn nvmlDeviceGetMigMode(device: nvmlDevice_t, current: *mut c_uint, pending: *mut c_uint);
    fn cuDeviceGetGraphMemAttribute(device: CUdevice, attribute: CUgraphMem_attribute, value: *mut c_void);
    fn cuFuncGetName(name: *mut *const c_char, function: CUfunction);
    fn cuKernelGetName(name: *mut *const c_char, kernel: *mut c_void);
    fn cuStreamWaitEvent(stream: CUstream, event: CUevent, flags: c_uint);
    fn cuGraphGetNodes(graph: CUgraph, nodes: *mut CUgraphNode, count: *mut usize);
    fn cuGraphGetEdges(graph: CUgraph, from: *mut CUgraphNode, to: *mut CUgraphNode, count: *mut usize);
    fn cuGraphGetEdges_v2(graph: CUgraph, from: *mut CUgraphNode, to: *mut CUgraphNode, data: *mut c_void, count: *mut usize);
    fn cuGraphNodeGetType(node: CUgraphNode, kind: *mut c_int);
    fn cuGraphKernelNodeGetParams_v2(node: CUgraphNode, params: *mut CUDA_KERNEL_NODE_PARAMS);
    fn cuGraphMemcpyNodeGetParams(node: CUgraphNode, params: *mut CUDA_MEMCPY3D);
    fn cuGraphMemsetNodeGetParams(node: CUgraphNode, params: *mut CUDA_MEMSET_NODE_PARAMS);
    fn cuGraphBatchMemOpNodeGetParams(node: CUgraphNode, params: *mut CUDA_BATCH_MEM_OP_NODE_PARAMS);
    fn cuGraphChildGraphNodeGetGraph(node: CUgraphNode, graph: *mut CUgraph);
    fn cuGraphKernelNodeGetAttribute(node: CUgraphNode, attribute: c_int, value: *mut c_void);
    fn cuGraphClone(clone: *mut CUgraph, graph: CUgraph);
    fn cuGraphNodeFindInClone(found: *mut CUgraphNode, node: CUgraphNode, clone: CUgraph);
    fn cuGraphKernelNodeSetParams(node: CUgraphNode, params: *const CUDA_KERNEL_NODE_PARAMS_v1);
    fn cuGraphKernelNodeSetParams_v2(node: CUgraphNode, params: *const CUDA_KERNEL_NODE_PARAMS);
    fn cuGraphMemcpyNodeSetParams(node: CUgraphNode, params: *const CUDA_MEMCPY3D);
    fn cuGraphMemsetNodeSetParams(node: CUgraphNode, params: *const CUDA_MEMSET_NODE_PARAMS);
    fn cuGraphHostNodeSetParams(node: CUgraphNode, params: *const CUDA_HOST_NODE_PARAMS);
    fn cuGraphEventRecordNodeSetEvent(node: CUgraphNode, event: CUevent);
    fn cuGraphEventWaitNodeSetEvent(node: CUgraphNode, event: CUevent);
    fn cuGraphExternalSemaphoresSignalNodeSetParams(node: CUgraphNode, params: *const c_void);
    fn cuGraphExternalSemaphoresWaitNodeSetParams(node: CUgraphNode, params: *const c_void);
    fn cuGraphBatchMemOpNodeSetParams(node: CUgraphNode, params: *const CUDA_BATCH_MEM_OP_NODE_PARAMS);
    fn cuGraphNodeSetParams(node: CUgraphNode, params: *const CUgraphNodeParams);
    fn cuFuncGetParamInfo(function: *mut c_void, index: usize, offset: *mut usize, size: *mut usize);
    fn cuKernelGetParamInfo(kernel: *mut c_void, index: usize, offset: *mut usize, size: *mut usize);
    fn cuModuleGetFunction(function: *mut CUfunction, module: CUmodule, name: *const c_char);
    fn cuFuncLoad(function: CUfunction);
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

/// Bytes that the driver holds on a device for graphs, in use or not.
pub fn graph_memory(device: CUdevice) -> Result<u64> {
    let mut bytes = 0u64;
    let attribute = CU_GRAPH_MEM_ATTR_RESERVED_MEM_CURRENT;
    // SAFETY: writes one 64-bit number.
    check(unsafe {
        raw::cuDeviceGetGraphMemAttribute(device, attribute, (&raw mut bytes).cast())
    })?;
    Ok(bytes)
}

/// Gives back what the driver holds for graphs and no graph uses now.
pub fn trim_graph_memory(device: CUdevice) -> Result<()> {
    // SAFETY: no preconditions.
    check(unsafe { real::cuDeviceGraphMemTrim(device) })
}

/// What a `CUfunction`, or the `CUkernel` in its place, is called (12.3).
///
/// # Safety
/// A function or kernel of the program's that can be launched.
pub unsafe fn function_name(function: *mut c_void) -> Option<String> {
    let mut name: *const c_char = std::ptr::null();
    // SAFETY: the caller's promise; what is written lives as long as the function.
    unsafe {
        check(raw::cuFuncGetName(&mut name, function))
            .or_else(|_| check(raw::cuKernelGetName(&mut name, function)))
            .ok()?;
        (!name.is_null()).then(|| CStr::from_ptr(name).to_string_lossy().into_owned())
    }
}

/// Offset and size, bytes, of each parameter of a `CUfunction`, or of the `CUkernel` that may stand in its place. `None`:
/// the driver does not tell (before 12.4).
///
/// # Safety
/// A function or kernel of the program's that can be launched.
pub unsafe fn parameters(function: *mut c_void) -> Option<Vec<(usize, usize)>> {
    // The most that a kernel can have: 32764 bytes of parameters (documented).
    const MOST: usize = 1 << 15;
    // Asking may load the function. That is no call of the program's in a capture.
    let _relaxed = Relaxed::enter();
    let list = |ask: unsafe fn(*mut c_void, usize, *mut usize, *mut usize) -> CUresult| {
        let mut all = Vec::new();
        loop {
            let (mut offset, mut size) = (0, 0);
            // SAFETY: the caller's promise; writes two sizes.
            match check(unsafe { ask(function, all.len(), &mut offset, &mut size) }) {
                Ok(()) if all.len() < MOST => all.push((offset, size)),
                Ok(()) => return Err(CUDA_ERROR_INVALID_VALUE),
                // Past the last one.
                Err(CUDA_ERROR_INVALID_VALUE) => return Ok(all),
                Err(code) => return Err(code),
            }
        }
    };
    match list(raw::cuFuncGetParamInfo) {
        Ok(all) if !all.is_empty() => Some(all),
        // A function without any, or a kernel: that is said to have none, or to be no function.
        none => list(raw::cuKernelGetParamInfo).or(none).ok(),
    }
}

/// Whether a device can reach another one's memory.
pub fn can_access(device: CUdevice, peer: CUdevice) -> bool {
    let mut can = 0;
    // SAFETY: writes one int.
    check(unsafe { raw::cuDeviceCanAccessPeer(&mut can, device, peer) }).is_ok() && can != 0
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
/// because of it. What was current before is made so again by `back`.
pub fn without_context<T>(f: impl FnOnce() -> T, back: impl FnOnce(CUcontext)) -> T {
    let mut context = std::ptr::null_mut();
    // SAFETY: writes one handle.
    let popped = check(unsafe { raw::cuCtxPopCurrent_v2(&mut context) }).is_ok();
    let result = f();
    if popped && !context.is_null() {
        back(context);
    }
    result
}

/// A limit of the current context.
pub fn context_limit(limit: c_int) -> Result<u64> {
    let mut value = 0;
    // SAFETY: writes one size.
    check(unsafe { raw::cuCtxGetLimit(&mut value, limit) })?;
    Ok(value as u64)
}

/// Whether a stream captures, also when its capture has been invalidated.
pub fn stream_captures(stream: Handle) -> Result<bool> {
    let mut status = 0;
    // SAFETY: the program's stream; writes one int.
    check(unsafe { raw::cuStreamIsCapturing(stream.0 as CUstream, &mut status) })?;
    Ok(status != 0)
}

/// The context of a stream that the program made.
pub fn stream_context(stream: Handle) -> Result<Handle> {
    let mut context = std::ptr::null_mut();
    // SAFETY: the program's stream; writes one handle.
    check(unsafe { raw::cuStreamGetCtx(stream.0 as CUstream, &mut context) })?;
    Ok(context.into())
}

/// A new event behind all that is on a stream. Its context must be current.
pub fn event_behind(stream: Handle) -> Result<Handle> {
    let mut event = std::ptr::null_mut();
    // SAFETY: writes one handle.
    check(unsafe { raw::cuEventCreate(&mut event, CU_EVENT_DISABLE_TIMING) })?;
    // SAFETY: the event just made, and the program's stream.
    let recorded = check(unsafe { raw::cuEventRecord(event, stream.0 as CUstream) });
    if recorded.is_err() {
        event_destroy(Handle(event as usize));
    }
    recorded.map(|()| Handle(event as usize))
}

/// Whether an event of [`event_behind`] has passed. Never waits.
pub fn event_passed(event: Handle) -> bool {
    // SAFETY: an event of the shim's that is not destroyed yet.
    unsafe { raw::cuEventQuery(event.0 as CUevent) == CUDA_SUCCESS }
}

/// Destroys an event of [`event_behind`], passed or not.
pub fn event_destroy(event: Handle) {
    // SAFETY: an event of the shim's, that nobody uses any more.
    unsafe { raw::cuEventDestroy_v2(event.0 as CUevent) };
}

/// The pool that `cuMemAllocAsync` takes from on a device.
pub fn current_pool(device: CUdevice) -> Result<Handle> {
    let mut pool = std::ptr::null_mut();
    // SAFETY: writes one handle.
    check(unsafe { raw::cuDeviceGetMemPool(&mut pool, device) })?;
    Ok(Handle(pool as usize))
}

/// The pool that a device begins with.
pub fn default_pool(device: CUdevice) -> Result<Handle> {
    let mut pool = std::ptr::null_mut();
    // SAFETY: writes one handle.
    check(unsafe { raw::cuDeviceGetDefaultMemPool(&mut pool, device) })?;
    Ok(Handle(pool as usize))
}

/// One of a pool's 64-bit numbers.
pub fn pool_attribute(pool: Handle, attribute: CUmemPool_attribute) -> Result<u64> {
    let mut value = 0u64;
    let out = (&raw mut value).cast();
    // SAFETY: a pool that is not destroyed; the attribute is 64 bits wide.
    check(unsafe { real::cuMemPoolGetAttribute(pool.0 as CUmemoryPool, attribute, out) })?;
    Ok(value)
}

/// Lets a pool give back all that no allocation uses.
pub fn pool_trim(pool: Handle) -> Result<()> {
    // SAFETY: a pool that is not destroyed.
    check(unsafe { real::cuMemPoolTrimTo(pool.0 as CUmemoryPool, 0) })
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
    create_as(size, location, CU_MEM_HANDLE_TYPE_NONE)
}

/// The same, for memory that other processes may be given. It costs nothing more (measured).
pub fn create_for_export(size: usize, location: Location) -> Result<CUmemGenericAllocationHandle> {
    create_as(size, location, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR)
}

fn create_as(
    size: usize,
    location: Location,
    types: c_int,
) -> Result<CUmemGenericAllocationHandle> {
    let (type_, id, rdma) = match location {
        Location::Device { device, rdma } => (CU_MEM_LOCATION_TYPE_DEVICE, device, rdma),
        Location::HostNuma(node) => (CU_MEM_LOCATION_TYPE_HOST_NUMA, node, false),
    };
    let prop = CUmemAllocationProp {
        type_: CU_MEM_ALLOCATION_TYPE_PINNED,
        requestedHandleTypes: types,
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

/// A descriptor of memory that was made for export. It keeps the memory until it is closed.
pub fn export(handle: CUmemGenericAllocationHandle) -> Result<OwnedFd> {
    let mut fd: c_int = -1;
    let kind = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;
    // SAFETY: writes one descriptor, which is the caller's.
    unsafe {
        let out = (&raw mut fd).cast();
        check(real::cuMemExportToShareableHandle(out, handle, kind, 0))?;
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

/// Memory by a descriptor that another process exported; a handle of its own. The descriptor may be closed then.
pub fn import(descriptor: &OwnedFd) -> Result<CUmemGenericAllocationHandle> {
    let mut handle = 0;
    // The number itself is what the pointer says (documented), so number 0 is refused as a null pointer (measured).
    let other = match descriptor.as_raw_fd() {
        0 => Some(
            descriptor
                .try_clone()
                .map_err(|_| CUDA_ERROR_INVALID_VALUE)?,
        ),
        _ => None,
    };
    let descriptor = other.as_ref().unwrap_or(descriptor);
    let from = descriptor.as_raw_fd() as usize as *mut c_void;
    let kind = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;
    // SAFETY: writes one handle.
    check(unsafe { real::cuMemImportFromShareableHandle(&mut handle, from, kind) })?;
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

/// Where ranges are reserved, if there is room: kernels are given pairs of small numbers in the words of their arguments,
/// and with addresses as low as the driver's own (0x302000000: measured) such a pair looks like one. No matrix has sides
/// that are as odd as these upper halves.
const ODD: std::ops::Range<u64> = 0x2b67_0000_0000..0x2bff_0000_0000;

/// Left free behind each range, so that an address a little beside one range is not in the next: what is looked for in
/// memory is padded by half of this on either side (`staging::escape`).
pub const GAP: u64 = 4 << 20;

/// Reserves a virtual range, aligned to 2 MiB.
pub fn reserve(size: usize) -> Result<CUdeviceptr> {
    static NEXT: AtomicU64 = AtomicU64::new(ODD.start);
    let grain = 2 << 20;
    let span = (size as u64).next_multiple_of(grain);
    let turn = |at: u64| {
        let start = if at + span <= ODD.end { at } else { ODD.start };
        Some(start + span + GAP)
    };
    let at = NEXT.fetch_update(SeqCst, SeqCst, turn).unwrap_or(0);
    let wish = if at + span <= ODD.end { at } else { ODD.start };
    let mut address = 0;
    // SAFETY: writes one address.
    let ask = |address: &mut CUdeviceptr, wish| unsafe {
        check(raw::cuMemAddressReserve(
            address,
            size,
            grain as usize,
            wish,
            0,
        ))
    };
    ask(&mut address, wish).or_else(|_| ask(&mut address, 0))?;
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

/// Copies between two addresses of the current context's device, and waits for it.
///
/// # Errors
/// The driver's, and whether the copy is over, or was never begun; if not, it may go on.
///
/// # Safety
/// Both are mapped for the device for so many bytes, and nothing else uses either.
pub unsafe fn copy(
    to: CUdeviceptr,
    from: CUdeviceptr,
    bytes: usize,
) -> std::result::Result<(), (Error, bool)> {
    let stream = std::ptr::null_mut();
    // SAFETY: the caller's promise.
    unsafe {
        check(real::cuMemcpyDtoDAsync_v2(to, from, bytes, stream)).map_err(|code| (code, true))?;
        check(raw::cuStreamSynchronize(stream))
            .map_err(|code| (code, synchronize_current().is_ok()))
    }
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
    // SAFETY: the caller's promise.
    unsafe { set_rights(address, size, devices, CU_MEM_ACCESS_FLAGS_PROT_READWRITE) }
}

/// The allocation of the driver's own that an address is in: its start and its bytes. Needs a current context.
pub fn extent(address: CUdeviceptr) -> Result<(CUdeviceptr, usize)> {
    let (mut base, mut bytes) = (0, 0);
    // SAFETY: writes one address and one size.
    check(unsafe { real::cuMemGetAddressRange_v2(&mut base, &mut bytes, address) })?;
    Ok((base, bytes))
}

/// Whether a device can read mapped memory at an address.
pub fn readable(address: CUdeviceptr, device: CUdevice) -> bool {
    let (mut flags, location) = (
        0,
        CUmemLocation {
            type_: CU_MEM_LOCATION_TYPE_DEVICE,
            id: device,
        },
    );
    // SAFETY: writes one word; of an address where nothing is mapped the driver knows nothing.
    unsafe { raw::cuMemGetAccess(&mut flags, &location, address) == CUDA_SUCCESS && flags & 1 != 0 }
}

/// Takes that right from these devices.
///
/// # Safety
/// As for [`set_access`]; and no work of theirs that could touch the range is in flight.
pub unsafe fn take_access(
    address: CUdeviceptr,
    size: usize,
    devices: impl IntoIterator<Item = CUdevice>,
) -> Result<()> {
    // SAFETY: the caller's promise.
    unsafe { set_rights(address, size, devices, CU_MEM_ACCESS_FLAGS_PROT_NONE) }
}

/// # Safety
/// As for [`take_access`].
unsafe fn set_rights(
    address: CUdeviceptr,
    size: usize,
    devices: impl IntoIterator<Item = CUdevice>,
    flags: c_int,
) -> Result<()> {
    let access: Vec<CUmemAccessDesc> = devices
        .into_iter()
        .map(|id| CUmemAccessDesc {
            location: CUmemLocation {
                type_: CU_MEM_LOCATION_TYPE_DEVICE,
                id,
            },
            flags,
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
    pointer_number(address, CU_POINTER_ATTRIBUTE_MEMORY_TYPE)
}

/// An attribute of an address that is 32 bits wide at most, as the driver sees it.
pub fn pointer_number(address: CUdeviceptr, attribute: CUpointer_attribute) -> Result<c_uint> {
    let mut number: c_uint = 0;
    let out = (&raw mut number).cast();
    // SAFETY: writes at most one unsigned int; any address may be asked about.
    check(unsafe { real::cuPointerGetAttribute(out, attribute, address) })?;
    Ok(number)
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
