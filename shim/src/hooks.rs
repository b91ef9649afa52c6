//! The one table of intercepted functions.
//!
//! A row gives a function's C signature and the handler that says what the call means. It expands to the exported
//! function, to the typed caller of the real one in [`real`], and to the entry that the resolvers look up. Adding a row
//! is all it takes to intercept a function; a test holds the built library's exports to this table.

use std::ffi::{CStr, c_char, c_int, c_uchar, c_uint, c_ulonglong, c_ushort, c_void};
use std::sync::atomic::{AtomicUsize, Ordering::*};

use greenboost_abi::*;

use crate::calls::{
    array, capture, code, context, exec, external, graph, host, ipc, launch, memory, order, pass,
    pointer, pool, proc_address, query, sync, vmm,
};
use crate::{boundary, process};

/// A hook of any signature.
type Hook = unsafe extern "C" fn();

/// A row of the table.
struct Row {
    name: &'static CStr,
    ours: Hook,
    /// Address of the driver's function; 0 while unknown, or when this driver lacks it.
    real: AtomicUsize,
}

macro_rules! hooks {
    ($( $(#[$about:meta])* fn $name:ident($($arg:ident: $ty:ty),* $(,)?) => $handler:path; )*) => {
        #[allow(non_camel_case_types)]
        enum Index { $($name),* }

        static ROWS: [Row; [$(stringify!($name)),*].len()] = [$(
            Row {
                // SAFETY: the literal ends with its only NUL.
                name: unsafe { CStr::from_bytes_with_nul_unchecked(concat!(stringify!($name), "\0").as_bytes()) },
                // SAFETY: function pointers have one size; a `Hook` is only compared and handed out, never called.
                ours: unsafe { std::mem::transmute::<unsafe extern "C" fn($($ty),*) -> c_int, Hook>($name) },
                real: AtomicUsize::new(0),
            },
        )*];

        $(
            $(#[$about])*
            #[cfg_attr(not(test), unsafe(no_mangle))]
            #[allow(non_snake_case, clippy::missing_safety_doc, clippy::too_many_arguments)]
            pub unsafe extern "C" fn $name($($arg: $ty),*) -> c_int {
                boundary::enter(
                    // SAFETY: the program's own arguments, passed on as they are.
                    || unsafe { real::$name($($arg),*) },
                    // SAFETY: as above.
                    || unsafe { $handler($($arg),*) },
                )
            }
        )*

        /// The driver's own functions. A function that this driver lacks returns [`MISSING`].
        ///
        /// # Safety
        /// As the driver's documentation says of each.
        #[allow(non_snake_case, missing_docs, clippy::missing_safety_doc, clippy::too_many_arguments)]
        pub mod real {
            use super::*;
            $(
                pub unsafe fn $name($($arg: $ty),*) -> c_int {
                    let Some(address) = super::real_address(Index::$name as usize) else { return MISSING };
                    // SAFETY: the address of the driver's function of this name, whose signature this is.
                    let function: unsafe extern "C" fn($($ty),*) -> c_int = unsafe { std::mem::transmute(address) };
                    // SAFETY: the caller's promise.
                    unsafe { function($($arg),*) }
                }
            )*
        }
    };
}

/// What a function returns that the installed driver does not have: `CUDA_ERROR_NOT_FOUND`.
pub const MISSING: c_int = CUDA_ERROR_NOT_FOUND;

#[inline(always)]
fn real_address(index: usize) -> Option<usize> {
    match ROWS[index].real.load(Acquire) {
        0 => look_up(index),
        address => Some(address),
    }
}

#[cold]
fn look_up(index: usize) -> Option<usize> {
    crate::symbols::learn_from_link();
    Some(ROWS[index].real.load(Acquire)).filter(|&a| a != 0)
}

/// The row of a name, if it is intercepted.
pub fn index_of(name: &CStr) -> Option<usize> {
    ROWS.iter().position(|row| row.name == name)
}

/// Whether this is the real address of a function in the table.
pub fn known(real: usize) -> bool {
    ROWS.iter().any(|row| row.real.load(Acquire) == real)
}

/// Our function for the real one at this address.
pub fn replacement(real: usize) -> Option<usize> {
    ROWS.iter()
        .find(|row| real != 0 && row.real.load(Acquire) == real)
        .map(|row| row.ours as usize)
}

/// Stores the real addresses that `lookup` knows.
pub fn fill(lookup: impl Fn(&CStr) -> Option<usize>) {
    for row in &ROWS {
        if let Some(address) = lookup(row.name) {
            row.real.store(address, Release);
        }
    }
}

hooks! {
    // Resolvers and start
    /// Substitutes intercepted functions in the answer, by the returned address.
    fn cuGetProcAddress(name: *const c_char, out: *mut *mut c_void, version: c_int, flags: c_ulonglong)
        => proc_address::v1;
    /// Substitutes intercepted functions in the answer, by the returned address.
    fn cuGetProcAddress_v2(name: *const c_char, out: *mut *mut c_void, version: c_int, flags: c_ulonglong, status: *mut c_int)
        => proc_address::v2;
    /// Wakes the shim when it succeeds.
    fn cuInit(flags: c_uint) => process::init;

    // Contexts: known, so that draining reaches all of them, and their memory goes with them
    /// Remembers the context.
    fn cuCtxCreate(out: *mut CUcontext, flags: c_uint, device: CUdevice) => context::create_v1;
    /// Remembers the context.
    fn cuCtxCreate_v2(out: *mut CUcontext, flags: c_uint, device: CUdevice) => context::create_v2;
    /// Remembers the context.
    fn cuCtxCreate_v3(out: *mut CUcontext, params: *mut c_void, count: c_int, flags: c_uint, device: CUdevice)
        => context::create_v3;
    /// Remembers the context.
    fn cuCtxCreate_v4(out: *mut CUcontext, params: *mut c_void, flags: c_uint, device: CUdevice) => context::create_v4;
    /// Remembers the context that its streams belong to.
    fn cuGreenCtxCreate(out: *mut CUgreenCtx, resources: *mut c_void, device: CUdevice, flags: c_uint)
        => context::green_create;
    /// Forgets that context; memory stays the primary context's.
    fn cuGreenCtxDestroy(green: CUgreenCtx) => context::green_destroy;
    /// Counts the references to the context.
    fn cuCtxAttach(out: *mut CUcontext, flags: c_uint) => context::attach;
    /// Releases the context's allocations if this was the last reference.
    fn cuCtxDetach(context: CUcontext) => context::detach;
    /// Releases the context's allocations after it is gone.
    fn cuCtxDestroy(context: CUcontext) => context::destroy_v1;
    /// Releases the context's allocations after it is gone.
    fn cuCtxDestroy_v2(context: CUcontext) => context::destroy_v2;
    /// Remembers the context.
    fn cuDevicePrimaryCtxRetain(out: *mut CUcontext, device: CUdevice) => context::primary_retain;
    /// Releases the context's allocations if this was the last reference.
    fn cuDevicePrimaryCtxRelease(device: CUdevice) => context::primary_release_v1;
    /// Releases the context's allocations if this was the last reference.
    fn cuDevicePrimaryCtxRelease_v2(device: CUdevice) => context::primary_release_v2;
    /// Releases the context's allocations.
    fn cuDevicePrimaryCtxReset(device: CUdevice) => context::primary_reset_v1;
    /// Releases the context's allocations.
    fn cuDevicePrimaryCtxReset_v2(device: CUdevice) => context::primary_reset_v2;
    /// Opens the shim's ranges on the peer to this context's device.
    fn cuCtxEnablePeerAccess(peer: CUcontext, flags: c_uint) => context::enable_peer;

    /// Closes the shim's ranges to this context's device again.
    fn cuCtxDisablePeerAccess(peer: CUcontext) => context::disable_peer;

    // Memory
    /// Places the allocation: VRAM first, the rest in host RAM.
    fn cuMemAlloc_v2(out: *mut CUdeviceptr, bytes: usize) => memory::alloc;
    /// As `cuMemAlloc_v2`, with rows padded as the driver pads them.
    fn cuMemAllocPitch_v2(out: *mut CUdeviceptr, pitch: *mut usize, width: usize, height: usize, element: c_uint)
        => memory::alloc_pitch;
    /// Waits for all work that could touch the range, then gives its backing back.
    fn cuMemFree_v2(address: CUdeviceptr) => memory::free;
    /// Counted, never placed.
    fn cuMemAllocManaged(out: *mut CUdeviceptr, bytes: usize, flags: c_uint) => memory::alloc_managed;

    // Queries: one story
    /// Reports the budgets.
    fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize) => query::mem_info;
    /// Reports the budgets.
    fn cuDeviceTotalMem_v2(out: *mut usize, device: CUdevice) => query::total_mem;
    /// Reports the budgets.
    fn nvmlDeviceGetMemoryInfo(device: nvmlDevice_t, memory: *mut nvmlMemory_t) => query::nvml_v1;
    /// Reports the budgets.
    fn nvmlDeviceGetMemoryInfo_v2(device: nvmlDevice_t, memory: *mut nvmlMemory_v2_t) => query::nvml_v2;
    /// Says of processes of the job what the job's limits know of them.
    fn nvmlDeviceGetComputeRunningProcesses(device: nvmlDevice_t, count: *mut c_uint, infos: *mut nvmlProcessInfo_v1_t)
        => query::nvml_processes_v1;
    /// Says of processes of the job what the job's limits know of them.
    fn nvmlDeviceGetComputeRunningProcesses_v2(device: nvmlDevice_t, count: *mut c_uint, infos: *mut nvmlProcessInfo_v2_t)
        => query::nvml_processes_v2;
    /// Says of processes of the job what the job's limits know of them.
    fn nvmlDeviceGetComputeRunningProcesses_v3(device: nvmlDevice_t, count: *mut c_uint, infos: *mut nvmlProcessInfo_v2_t)
        => query::nvml_processes_v3;
    /// Answers with the program's own base and size.
    fn cuMemGetAddressRange_v2(base: *mut CUdeviceptr, size: *mut usize, address: CUdeviceptr) => pointer::address_range;
    /// Answers for spilled memory as for device memory.
    fn cuPointerGetAttribute(out: *mut c_void, attribute: CUpointer_attribute, address: CUdeviceptr)
        => pointer::attribute;
    /// Answers for spilled memory as for device memory.
    fn cuPointerGetAttributes(count: c_uint, attributes: *mut CUpointer_attribute, out: *mut *mut c_void, address: CUdeviceptr)
        => pointer::attributes;

    // The program's own virtual memory: counted while a handle or a mapping holds it
    /// Made on the host when VRAM has no room; counted.
    fn cuMemCreate(out: *mut CUmemGenericAllocationHandle, size: usize, prop: *const CUmemAllocationProp, flags: c_ulonglong)
        => vmm::create;
    /// Answers for spilled memory with what the program asked for.
    fn cuMemGetAllocationPropertiesFromHandle(prop: *mut CUmemAllocationProp, handle: CUmemGenericAllocationHandle)
        => vmm::properties;
    /// Counted until the last mapping goes.
    fn cuMemRelease(handle: CUmemGenericAllocationHandle) => vmm::release;
    /// Remembers what is mapped where.
    fn cuMemMap(address: CUdeviceptr, size: usize, offset: usize, handle: CUmemGenericAllocationHandle, flags: c_ulonglong)
        => vmm::map;
    /// Refuses ranges of the shim; counts the program's own.
    fn cuMemUnmap(address: CUdeviceptr, size: usize) => vmm::unmap;
    /// Says what the driver says of `cuMemAlloc` memory: there is no handle.
    fn cuMemRetainAllocationHandle(out: *mut CUmemGenericAllocationHandle, address: *mut c_void) => vmm::retain;

    /// Refuses ranges of the shim.
    fn cuMemSetAccess(address: CUdeviceptr, size: usize, access: *const CUmemAccessDesc, count: usize)
        => vmm::set_access;
    /// What is exported is never moved.
    fn cuMemExportToShareableHandle(out: *mut c_void, handle: CUmemGenericAllocationHandle, kind: c_int, flags: c_ulonglong)
        => vmm::export;
    /// Counted where it was made.
    fn cuMemImportFromShareableHandle(out: *mut CUmemGenericAllocationHandle, from: *mut c_void, kind: c_int)
        => vmm::import;

    // Out of the process's sight
    /// Of ranges of the shim: the memory is left with the launcher, for processes of the job.
    fn cuIpcGetMemHandle(out: *mut CUipcMemHandle, address: CUdeviceptr) => ipc::get;
    /// Maps what another process of the job left with the launcher.
    fn cuIpcOpenMemHandle(out: *mut CUdeviceptr, handle: CUipcMemHandle, flags: c_uint) => ipc::open_v1;
    /// Maps what another process of the job left with the launcher.
    fn cuIpcOpenMemHandle_v2(out: *mut CUdeviceptr, handle: CUipcMemHandle, flags: c_uint) => ipc::open_v2;
    /// Waits for the device, then takes the mapping down.
    fn cuIpcCloseMemHandle(address: CUdeviceptr) => ipc::close;
    /// Keeps `SYNC_MEMOPS` for ranges of the shim.
    fn cuPointerSetAttribute(value: *const c_void, attribute: CUpointer_attribute, address: CUdeviceptr)
        => pointer::set_attribute;
    /// What another device may reach is never moved.
    fn cuMemGetHandleForAddressRange(out: *mut c_void, address: CUdeviceptr, size: usize, kind: c_int, flags: c_ulonglong)
        => pointer::range_handle;

    // Stream-ordered allocations: from the program's pool while VRAM has room, then from memory of the shim's
    /// From the pool, or served on its behalf when VRAM has no room.
    fn cuMemAllocAsync(out: *mut CUdeviceptr, bytes: usize, stream: CUstream) => pool::alloc;
    /// From the pool, or served on its behalf when VRAM has no room.
    fn cuMemAllocAsync_ptsz(out: *mut CUdeviceptr, bytes: usize, stream: CUstream) => pool::alloc_ptsz;
    /// From the pool, or served on its behalf when VRAM has no room.
    fn cuMemAllocFromPoolAsync(out: *mut CUdeviceptr, bytes: usize, pool: CUmemoryPool, stream: CUstream)
        => pool::alloc_from;
    /// From the pool, or served on its behalf when VRAM has no room.
    fn cuMemAllocFromPoolAsync_ptsz(out: *mut CUdeviceptr, bytes: usize, pool: CUmemoryPool, stream: CUstream)
        => pool::alloc_from_ptsz;
    /// Memory of the shim is free for others when the stream has come to it.
    fn cuMemFreeAsync(address: CUdeviceptr, stream: CUstream) => pool::free;
    /// Memory of the shim is free for others when the stream has come to it.
    fn cuMemFreeAsync_ptsz(address: CUdeviceptr, stream: CUstream) => pool::free_ptsz;
    /// Remembers whose memory it is, and whether it may leave the process.
    fn cuMemPoolCreate(out: *mut CUmemoryPool, props: *const CUmemPoolProps) => pool::create;
    /// Charged until its last allocation is freed.
    fn cuMemPoolDestroy(pool: CUmemoryPool) => pool::destroy;
    /// Charges what is left.
    fn cuMemPoolTrimTo(pool: CUmemoryPool, keep: usize) => pool::trim;
    /// Includes what the shim serves on the pool's behalf.
    fn cuMemPoolGetAttribute(pool: CUmemoryPool, attribute: CUmemPool_attribute, value: *mut c_void)
        => pool::get_attribute;
    /// Resets the shim's high-water marks too.
    fn cuMemPoolSetAttribute(pool: CUmemoryPool, attribute: CUmemPool_attribute, value: *mut c_void)
        => pool::set_attribute;
    /// Opens what the shim serves on the pool's behalf to the same devices.
    fn cuMemPoolSetAccess(pool: CUmemoryPool, access: *const CUmemAccessDesc, count: usize) => pool::set_access;
    /// Charged where it was made.
    fn cuMemPoolImportFromShareableHandle(out: *mut CUmemoryPool, handle: *mut c_void, kind: c_int, flags: c_ulonglong)
        => pool::import;
    /// Remembers whose memory it is.
    fn cuMemGetDefaultMemPool(out: *mut CUmemoryPool, location: *mut CUmemLocation, kind: c_int) => pool::default_at;
    /// Remembers whose memory it is.
    fn cuMemGetMemPool(out: *mut CUmemoryPool, location: *mut CUmemLocation, kind: c_int) => pool::current_at;

    // Where the program waits, pools give memory back
    /// Brings the charges of pools up to date.
    fn cuStreamSynchronize(stream: CUstream) => sync::stream;
    /// Brings the charges of pools up to date.
    fn cuStreamSynchronize_ptsz(stream: CUstream) => sync::stream_ptsz;
    /// Brings the charges of pools up to date.
    fn cuEventSynchronize(event: CUevent) => sync::event;
    /// Brings the charges of pools up to date.
    fn cuCtxSynchronize() => sync::context;
    /// Brings the charges of pools up to date.
    fn cuCtxSynchronize_v2(context: CUcontext) => sync::context_v2;

    // Arrays: within the VRAM limit, never placed elsewhere
    /// Reserved first; out of memory beyond the limit.
    fn cuArrayCreate_v2(out: *mut CUarray, descriptor: *const CUDA_ARRAY_DESCRIPTOR) => array::create;
    /// Reserved first; out of memory beyond the limit.
    fn cuArray3DCreate_v2(out: *mut CUarray, descriptor: *const CUDA_ARRAY3D_DESCRIPTOR) => array::create_3d;
    /// Uncounted.
    fn cuArrayDestroy(array: CUarray) => array::destroy;
    /// Reserved first; out of memory beyond the limit.
    fn cuMipmappedArrayCreate(out: *mut CUmipmappedArray, descriptor: *const CUDA_ARRAY3D_DESCRIPTOR, levels: c_uint)
        => array::create_mipmapped;
    /// Uncounted.
    fn cuMipmappedArrayDestroy(array: CUmipmappedArray) => array::destroy_mipmapped;

    // Host memory that the program pins: within the RAM limit
    /// Reserved first; out of memory beyond the limit, or when the machine is short of RAM.
    fn cuMemHostAlloc(out: *mut *mut c_void, bytes: usize, flags: c_uint) => host::alloc;
    /// Reserved first; out of memory beyond the limit, or when the machine is short of RAM.
    fn cuMemAllocHost_v2(out: *mut *mut c_void, bytes: usize) => host::alloc_v2;
    /// Uncounted.
    fn cuMemFreeHost(address: *mut c_void) => host::free;
    /// Reserved first; out of memory beyond the limit, or when the machine is short of RAM.
    fn cuMemHostRegister(address: *mut c_void, bytes: usize, flags: c_uint) => host::register;
    /// Reserved first; out of memory beyond the limit, or when the machine is short of RAM.
    fn cuMemHostRegister_v2(address: *mut c_void, bytes: usize, flags: c_uint) => host::register_v2;
    /// Uncounted.
    fn cuMemHostUnregister(address: *mut c_void) => host::unregister;

    // Code and what comes with it: counted by what is missing on the device afterwards
    /// Counted.
    fn cuModuleLoad(out: *mut CUmodule, path: *const c_char) => code::module;
    /// Counted.
    fn cuModuleLoadData(out: *mut CUmodule, image: *const c_void) => code::module_data;
    /// Counted.
    fn cuModuleLoadDataEx(out: *mut CUmodule, image: *const c_void, count: c_uint, options: *mut c_int, values: *mut *mut c_void)
        => code::module_data_ex;
    /// Counted.
    fn cuModuleLoadFatBinary(out: *mut CUmodule, image: *const c_void) => code::module_fat;
    /// Counted, the first time that it is asked of a module.
    fn cuModuleGetGlobal_v2(out: *mut CUdeviceptr, bytes: *mut usize, module: CUmodule, name: *const c_char)
        => code::module_global;
    /// Uncounted.
    fn cuModuleUnload(module: CUmodule) => code::module_unload;
    /// Counted.
    fn cuLibraryLoadData(out: *mut CUlibrary, code: *const c_void, jit: *mut c_int, jit_values: *mut *mut c_void, jit_count: c_uint, options: *mut c_int, values: *mut *mut c_void, count: c_uint)
        => code::library;
    /// Counted.
    fn cuLibraryLoadFromFile(out: *mut CUlibrary, path: *const c_char, jit: *mut c_int, jit_values: *mut *mut c_void, jit_count: c_uint, options: *mut c_int, values: *mut *mut c_void, count: c_uint)
        => code::library_file;
    /// Counted, the first time that it is asked of a library.
    fn cuLibraryGetGlobal(out: *mut CUdeviceptr, bytes: *mut usize, library: CUlibrary, name: *const c_char)
        => code::library_global;
    /// Counted, the first time that it is asked of a library.
    fn cuLibraryGetModule(out: *mut CUmodule, library: CUlibrary) => code::library_module;
    /// Uncounted.
    fn cuLibraryUnload(library: CUlibrary) => code::library_unload;
    /// Counted: stacks of kernels.
    fn cuCtxSetLimit(limit: c_int, value: usize) => code::set_limit;

    // External memory: counted by name, charged to no limit
    /// Counted.
    fn cuImportExternalMemory(out: *mut CUexternalMemory, desc: *const CUDA_EXTERNAL_MEMORY_HANDLE_DESC) => external::import;
    /// Uncounted.
    fn cuDestroyExternalMemory(memory: CUexternalMemory) => external::destroy;

    // Captures: nothing is drained or freed while one is open
    /// Opens a capture.
    fn cuStreamBeginCapture(stream: CUstream) => capture::begin;
    /// Opens a capture.
    fn cuStreamBeginCapture_ptsz(stream: CUstream) => capture::begin_ptsz;
    /// Opens a capture.
    fn cuStreamBeginCapture_v2(stream: CUstream, mode: c_int) => capture::begin_v2;
    /// Opens a capture.
    fn cuStreamBeginCapture_v2_ptsz(stream: CUstream, mode: c_int) => capture::begin_v2_ptsz;
    /// Opens a capture.
    fn cuStreamBeginCaptureToGraph(stream: CUstream, graph: CUgraph, nodes: *const CUgraphNode, edges: *const c_void, count: usize, mode: c_int)
        => capture::begin_to_graph;
    /// Opens a capture.
    fn cuStreamBeginCaptureToGraph_ptsz(stream: CUstream, graph: CUgraph, nodes: *const CUgraphNode, edges: *const c_void, count: usize, mode: c_int)
        => capture::begin_to_graph_ptsz;
    /// Closes a capture; the last one lets queued frees go.
    fn cuStreamEndCapture(stream: CUstream, out: *mut CUgraph) => capture::end;
    /// Closes a capture; the last one lets queued frees go.
    fn cuStreamEndCapture_ptsz(stream: CUstream, out: *mut CUgraph) => capture::end_ptsz;
    /// Closes a capture that the program gave up.
    fn cuStreamDestroy(stream: CUstream) => capture::destroy_v1;
    /// Closes a capture that the program gave up.
    fn cuStreamDestroy_v2(stream: CUstream) => capture::destroy_v2;

    // Graphs: what instances name is known; the memory that nodes allocate is the driver's, counted when it can have changed
    /// Reaches the instance that runs; counts what graphs hold.
    fn cuGraphLaunch(exec: CUgraphExec, stream: CUstream) => graph::launch;
    /// Reaches the instance that runs; counts what graphs hold.
    fn cuGraphLaunch_ptsz(exec: CUgraphExec, stream: CUstream) => graph::launch_ptsz;
    /// Reaches the instance that runs; counts what graphs hold.
    fn cuGraphUpload(exec: CUgraphExec, stream: CUstream) => graph::upload;
    /// Reaches the instance that runs; counts what graphs hold.
    fn cuGraphUpload_ptsz(exec: CUgraphExec, stream: CUstream) => graph::upload_ptsz;
    /// Remembers what its nodes name; counts what graphs hold.
    fn cuGraphInstantiate(out: *mut CUgraphExec, graph: CUgraph, node: *mut CUgraphNode, log: *mut c_char, size: usize)
        => graph::instantiate_v1;
    /// Remembers what its nodes name; counts what graphs hold.
    fn cuGraphInstantiate_v2(out: *mut CUgraphExec, graph: CUgraph, node: *mut CUgraphNode, log: *mut c_char, size: usize)
        => graph::instantiate_v2;
    /// Remembers what its nodes name; counts what graphs hold.
    fn cuGraphInstantiateWithFlags(out: *mut CUgraphExec, graph: CUgraph, flags: c_ulonglong) => graph::instantiate_flags;
    /// Remembers what its nodes name; counts what graphs hold.
    fn cuGraphInstantiateWithParams(out: *mut CUgraphExec, graph: CUgraph, params: *mut CUDA_GRAPH_INSTANTIATE_PARAMS)
        => graph::instantiate_params;
    /// Remembers what its nodes name; counts what graphs hold.
    fn cuGraphInstantiateWithParams_ptsz(out: *mut CUgraphExec, graph: CUgraph, params: *mut CUDA_GRAPH_INSTANTIATE_PARAMS)
        => graph::instantiate_params_ptsz;
    /// Destroys what runs in its place too; counts what graphs hold.
    fn cuGraphExecDestroy(exec: CUgraphExec) => graph::destroy_exec;
    /// Counts what graphs hold.
    fn cuDeviceGraphMemTrim(device: CUdevice) => graph::trim;
    /// From the first allocation node on, what graphs hold is counted.
    fn cuGraphAddMemAllocNode(out: *mut CUgraphNode, graph: CUgraph, after: *const CUgraphNode, count: usize, params: *mut CUDA_MEM_ALLOC_NODE_PARAMS)
        => graph::add_alloc;
    /// From the first allocation node on, what graphs hold is counted.
    fn cuGraphAddNode(out: *mut CUgraphNode, graph: CUgraph, after: *const CUgraphNode, count: usize, params: *mut CUgraphNodeParams)
        => graph::add_node;
    /// From the first allocation node on, what graphs hold is counted.
    fn cuGraphAddNode_v2(out: *mut CUgraphNode, graph: CUgraph, after: *const CUgraphNode, edges: *const c_void, count: usize, params: *mut CUgraphNodeParams)
        => graph::add_node_v2;

    /// No node of its instances can be named any more.
    fn cuGraphDestroy(graph: CUgraph) => graph::destroy;
    /// Succeeds where only the place of memory speaks against it: another instance runs then.
    fn cuGraphExecUpdate(exec: CUgraphExec, graph: CUgraph, node: *mut CUgraphNode, why: *mut CUgraphExecUpdateResult)
        => exec::update_v1;
    /// Succeeds where only the place of memory speaks against it: another instance runs then.
    fn cuGraphExecUpdate_v2(exec: CUgraphExec, graph: CUgraph, info: *mut CUgraphExecUpdateResultInfo) => exec::update;
    /// Succeeds where only the place of memory speaks against it: another instance runs then.
    fn cuGraphExecMemcpyNodeSetParams(exec: CUgraphExec, node: CUgraphNode, params: *const CUDA_MEMCPY3D, context: CUcontext)
        => exec::set_copy;
    /// Succeeds where only the place of memory speaks against it: another instance runs then.
    fn cuGraphExecNodeSetParams(exec: CUgraphExec, node: CUgraphNode, params: *mut CUgraphNodeParams) => exec::set_any;
    /// Reaches the instance that runs; remembers what the node names.
    fn cuGraphExecKernelNodeSetParams(exec: CUgraphExec, node: CUgraphNode, params: *const CUDA_KERNEL_NODE_PARAMS_v1)
        => exec::set_kernel_v1;
    /// Reaches the instance that runs; remembers what the node names.
    fn cuGraphExecKernelNodeSetParams_v2(exec: CUgraphExec, node: CUgraphNode, params: *const CUDA_KERNEL_NODE_PARAMS)
        => exec::set_kernel;
    /// Reaches the instance that runs; remembers what the node names.
    fn cuGraphExecMemsetNodeSetParams(exec: CUgraphExec, node: CUgraphNode, params: *const CUDA_MEMSET_NODE_PARAMS, context: CUcontext)
        => exec::set_set;
    /// Reaches the instance that runs; remembers what the node names.
    fn cuGraphExecBatchMemOpNodeSetParams(exec: CUgraphExec, node: CUgraphNode, params: *const CUDA_BATCH_MEM_OP_NODE_PARAMS)
        => exec::set_batch;
    /// Reaches the instance that runs; remembers what the node names.
    fn cuGraphExecChildGraphNodeSetParams(exec: CUgraphExec, node: CUgraphNode, child: CUgraph) => exec::set_child;
    /// Reaches the instance that runs.
    fn cuGraphExecHostNodeSetParams(exec: CUgraphExec, node: CUgraphNode, params: *const CUDA_HOST_NODE_PARAMS)
        => exec::set_host;
    /// Reaches the instance that runs.
    fn cuGraphExecEventRecordNodeSetEvent(exec: CUgraphExec, node: CUgraphNode, event: CUevent) => exec::set_record;
    /// Reaches the instance that runs.
    fn cuGraphExecEventWaitNodeSetEvent(exec: CUgraphExec, node: CUgraphNode, event: CUevent) => exec::set_wait;
    /// Reaches the instance that runs.
    fn cuGraphExecExternalSemaphoresSignalNodeSetParams(exec: CUgraphExec, node: CUgraphNode, params: *const c_void)
        => exec::set_signal;
    /// Reaches the instance that runs.
    fn cuGraphExecExternalSemaphoresWaitNodeSetParams(exec: CUgraphExec, node: CUgraphNode, params: *const c_void)
        => exec::set_await;
    /// Reaches the instance that runs.
    fn cuGraphNodeSetEnabled(exec: CUgraphExec, node: CUgraphNode, on: c_uint) => exec::set_enabled;
    /// Reaches the instance that runs.
    fn cuGraphNodeGetEnabled(exec: CUgraphExec, node: CUgraphNode, on: *mut c_uint) => exec::get_enabled;
    /// Reaches the instance that runs.
    fn cuGraphExecGetFlags(exec: CUgraphExec, flags: *mut c_ulonglong) => exec::get_flags;

    // Synchronous calls that must not wait for host-backed ranges where they would not for VRAM
    /// Issued in its asynchronous form when an operand is host-backed.
    fn cuMemcpyDtoD_v2(to: CUdeviceptr, from: CUdeviceptr, bytes: usize) => order::copy;
    /// Issued in its asynchronous form when an operand is host-backed.
    fn cuMemcpyDtoD_v2_ptds(to: CUdeviceptr, from: CUdeviceptr, bytes: usize) => order::copy_ptds;
    /// Issued in its asynchronous form when an operand is host-backed.
    fn cuMemsetD8_v2(to: CUdeviceptr, value: c_uchar, count: usize) => order::set8;
    /// Issued in its asynchronous form when an operand is host-backed.
    fn cuMemsetD2D8_v2(to: CUdeviceptr, pitch: usize, value: c_uchar, width: usize, height: usize)
        => order::rows8;
    /// Issued in its asynchronous form when an operand is host-backed.
    fn cuMemsetD8_v2_ptds(to: CUdeviceptr, value: c_uchar, count: usize) => order::set8_ptds;
    /// Issued in its asynchronous form when an operand is host-backed.
    fn cuMemsetD2D8_v2_ptds(to: CUdeviceptr, pitch: usize, value: c_uchar, width: usize, height: usize)
        => order::rows8_ptds;
    /// Issued in its asynchronous form when an operand is host-backed.
    fn cuMemsetD16_v2(to: CUdeviceptr, value: c_ushort, count: usize) => order::set16;
    /// Issued in its asynchronous form when an operand is host-backed.
    fn cuMemsetD2D16_v2(to: CUdeviceptr, pitch: usize, value: c_ushort, width: usize, height: usize)
        => order::rows16;
    /// Issued in its asynchronous form when an operand is host-backed.
    fn cuMemsetD16_v2_ptds(to: CUdeviceptr, value: c_ushort, count: usize) => order::set16_ptds;
    /// Issued in its asynchronous form when an operand is host-backed.
    fn cuMemsetD2D16_v2_ptds(to: CUdeviceptr, pitch: usize, value: c_ushort, width: usize, height: usize)
        => order::rows16_ptds;
    /// Issued in its asynchronous form when an operand is host-backed.
    fn cuMemsetD32_v2(to: CUdeviceptr, value: c_uint, count: usize) => order::set32;
    /// Issued in its asynchronous form when an operand is host-backed.
    fn cuMemsetD2D32_v2(to: CUdeviceptr, pitch: usize, value: c_uint, width: usize, height: usize)
        => order::rows32;
    /// Issued in its asynchronous form when an operand is host-backed.
    fn cuMemsetD32_v2_ptds(to: CUdeviceptr, value: c_uint, count: usize) => order::set32_ptds;
    /// Issued in its asynchronous form when an operand is host-backed.
    fn cuMemsetD2D32_v2_ptds(to: CUdeviceptr, pitch: usize, value: c_uint, width: usize, height: usize)
        => order::rows32_ptds;
    /// Issued in its asynchronous form when an operand is host-backed.
    fn cuMemcpy(to: CUdeviceptr, from: CUdeviceptr, bytes: usize) => order::unified;
    /// Issued in its asynchronous form when an operand is host-backed.
    fn cuMemcpyPeer(to: CUdeviceptr, to_context: CUcontext, from: CUdeviceptr, from_context: CUcontext, bytes: usize)
        => order::peer;
    /// Issued in its asynchronous form when an operand is host-backed.
    fn cuMemcpy2D_v2(copy: *const CUDA_MEMCPY2D) => order::copy2d;
    /// Issued in its asynchronous form when an operand is host-backed.
    fn cuMemcpy2DUnaligned_v2(copy: *const CUDA_MEMCPY2D) => order::copy2d_unaligned;
    /// Issued in its asynchronous form when an operand is host-backed.
    fn cuMemcpy3D_v2(copy: *const CUDA_MEMCPY3D) => order::copy3d;
    /// Issued in its asynchronous form when an operand is host-backed.
    fn cuMemcpy3DPeer(copy: *const CUDA_MEMCPY3D) => order::copy3d_peer;
    /// Issued in its asynchronous form when an operand is host-backed.
    fn cuMemcpy_ptds(to: CUdeviceptr, from: CUdeviceptr, bytes: usize) => order::unified_ptds;
    /// Issued in its asynchronous form when an operand is host-backed.
    fn cuMemcpyPeer_ptds(to: CUdeviceptr, to_context: CUcontext, from: CUdeviceptr, from_context: CUcontext, bytes: usize)
        => order::peer_ptds;
    /// Issued in its asynchronous form when an operand is host-backed.
    fn cuMemcpy2D_v2_ptds(copy: *const CUDA_MEMCPY2D) => order::copy2d_ptds;
    /// Issued in its asynchronous form when an operand is host-backed.
    fn cuMemcpy2DUnaligned_v2_ptds(copy: *const CUDA_MEMCPY2D) => order::copy2d_unaligned_ptds;
    /// Issued in its asynchronous form when an operand is host-backed.
    fn cuMemcpy3D_v2_ptds(copy: *const CUDA_MEMCPY3D) => order::copy3d_ptds;
    /// Issued in its asynchronous form when an operand is host-backed.
    fn cuMemcpy3DPeer_ptds(copy: *const CUDA_MEMCPY3D) => order::copy3d_peer_ptds;
    /// Over when it returns, where the program has set `SYNC_MEMOPS`.
    fn cuMemcpyHtoD_v2(to: CUdeviceptr, from: *const c_void, bytes: usize) => order::upload;
    /// Over when it returns, where the program has set `SYNC_MEMOPS`.
    fn cuMemcpyHtoD_v2_ptds(to: CUdeviceptr, from: *const c_void, bytes: usize) => order::upload_ptds;

    // Copies that may reach from one device to another: a free waits for both from then on
    /// Noticed when it reaches from one device to another.
    fn cuMemcpyAsync(to: CUdeviceptr, from: CUdeviceptr, bytes: usize, stream: CUstream) => order::later;
    /// Noticed when it reaches from one device to another.
    fn cuMemcpyAsync_ptsz(to: CUdeviceptr, from: CUdeviceptr, bytes: usize, stream: CUstream) => order::later_ptsz;
    /// Noticed when it reaches from one device to another.
    fn cuMemcpyDtoDAsync_v2(to: CUdeviceptr, from: CUdeviceptr, bytes: usize, stream: CUstream) => order::later_device;
    /// Noticed when it reaches from one device to another.
    fn cuMemcpyDtoDAsync_v2_ptsz(to: CUdeviceptr, from: CUdeviceptr, bytes: usize, stream: CUstream) => order::later_device_ptsz;
    /// Noticed when it reaches from one device to another.
    fn cuMemcpyPeerAsync(to: CUdeviceptr, to_context: CUcontext, from: CUdeviceptr, from_context: CUcontext, bytes: usize, stream: CUstream) => order::later_peer;
    /// Noticed when it reaches from one device to another.
    fn cuMemcpyPeerAsync_ptsz(to: CUdeviceptr, to_context: CUcontext, from: CUdeviceptr, from_context: CUcontext, bytes: usize, stream: CUstream) => order::later_peer_ptsz;
    /// Noticed when it reaches from one device to another.
    fn cuMemcpy2DAsync_v2(copy: *const CUDA_MEMCPY2D, stream: CUstream) => order::later2d;
    /// Noticed when it reaches from one device to another.
    fn cuMemcpy2DAsync_v2_ptsz(copy: *const CUDA_MEMCPY2D, stream: CUstream) => order::later2d_ptsz;
    /// Noticed when it reaches from one device to another.
    fn cuMemcpy3DAsync_v2(copy: *const CUDA_MEMCPY3D, stream: CUstream) => order::later3d;
    /// Noticed when it reaches from one device to another.
    fn cuMemcpy3DAsync_v2_ptsz(copy: *const CUDA_MEMCPY3D, stream: CUstream) => order::later3d_ptsz;
    /// Noticed when it reaches from one device to another.
    fn cuMemcpy3DPeerAsync(copy: *const CUDA_MEMCPY3D, stream: CUstream) => order::later3d_peer;
    /// Noticed when it reaches from one device to another.
    fn cuMemcpy3DPeerAsync_ptsz(copy: *const CUDA_MEMCPY3D, stream: CUstream) => order::later3d_peer_ptsz;

    // Launches: what their arguments point to is noted
    /// Passes the gate; what it names is noted.
    fn cuLaunchKernel(f: CUfunction, gx: c_uint, gy: c_uint, gz: c_uint, bx: c_uint, by: c_uint, bz: c_uint, shared: c_uint, stream: CUstream, params: *mut *mut c_void, extra: *mut *mut c_void)
        => launch::kernel;
    /// Passes the gate; what it names is noted.
    fn cuLaunchKernel_ptsz(f: CUfunction, gx: c_uint, gy: c_uint, gz: c_uint, bx: c_uint, by: c_uint, bz: c_uint, shared: c_uint, stream: CUstream, params: *mut *mut c_void, extra: *mut *mut c_void)
        => launch::kernel_ptsz;
    /// Passes the gate; what it names is noted.
    fn cuLaunchKernelEx(config: *const CUlaunchConfig, f: CUfunction, params: *mut *mut c_void, extra: *mut *mut c_void)
        => launch::kernel_ex;
    /// Passes the gate; what it names is noted.
    fn cuLaunchKernelEx_ptsz(config: *const CUlaunchConfig, f: CUfunction, params: *mut *mut c_void, extra: *mut *mut c_void)
        => launch::kernel_ex_ptsz;
    /// Passes the gate; what it names is noted.
    fn cuLaunchCooperativeKernel(f: CUfunction, gx: c_uint, gy: c_uint, gz: c_uint, bx: c_uint, by: c_uint, bz: c_uint, shared: c_uint, stream: CUstream, params: *mut *mut c_void)
        => launch::cooperative;
    /// Passes the gate; what it names is noted.
    fn cuLaunchCooperativeKernel_ptsz(f: CUfunction, gx: c_uint, gy: c_uint, gz: c_uint, bx: c_uint, by: c_uint, bz: c_uint, shared: c_uint, stream: CUstream, params: *mut *mut c_void)
        => launch::cooperative_ptsz;
    /// Passes the gate; what it names is noted.
    fn cuLaunchCooperativeKernelMultiDevice(list: *mut CUDA_LAUNCH_PARAMS, count: c_uint, flags: c_uint)
        => launch::cooperative_devices;

    // Other operations on memory
    /// Passes the gate; what it names is noted.
    fn cuMemcpyDtoH_v2(to: *mut c_void, from: CUdeviceptr, bytes: usize)
        => pass::cuMemcpyDtoH_v2;
    /// Passes the gate; what it names is noted.
    fn cuMemcpyDtoH_v2_ptds(to: *mut c_void, from: CUdeviceptr, bytes: usize)
        => pass::cuMemcpyDtoH_v2_ptds;
    /// Passes the gate; what it names is noted.
    fn cuMemcpyHtoDAsync_v2(to: CUdeviceptr, from: *const c_void, bytes: usize, stream: CUstream)
        => pass::cuMemcpyHtoDAsync_v2;
    /// Passes the gate; what it names is noted.
    fn cuMemcpyDtoHAsync_v2(to: *mut c_void, from: CUdeviceptr, bytes: usize, stream: CUstream)
        => pass::cuMemcpyDtoHAsync_v2;
    /// Passes the gate; what it names is noted.
    fn cuMemsetD8Async(to: CUdeviceptr, value: c_uchar, count: usize, stream: CUstream)
        => pass::cuMemsetD8Async;
    /// Passes the gate; what it names is noted.
    fn cuMemsetD2D8Async(to: CUdeviceptr, pitch: usize, value: c_uchar, width: usize, height: usize, stream: CUstream)
        => pass::cuMemsetD2D8Async;
    /// Passes the gate; what it names is noted.
    fn cuMemsetD16Async(to: CUdeviceptr, value: c_ushort, count: usize, stream: CUstream)
        => pass::cuMemsetD16Async;
    /// Passes the gate; what it names is noted.
    fn cuMemsetD2D16Async(to: CUdeviceptr, pitch: usize, value: c_ushort, width: usize, height: usize, stream: CUstream)
        => pass::cuMemsetD2D16Async;
    /// Passes the gate; what it names is noted.
    fn cuMemsetD32Async(to: CUdeviceptr, value: c_uint, count: usize, stream: CUstream)
        => pass::cuMemsetD32Async;
    /// Passes the gate; what it names is noted.
    fn cuMemsetD2D32Async(to: CUdeviceptr, pitch: usize, value: c_uint, width: usize, height: usize, stream: CUstream)
        => pass::cuMemsetD2D32Async;
    /// Passes the gate; what it names is noted.
    fn cuMemcpyHtoDAsync_v2_ptsz(to: CUdeviceptr, from: *const c_void, bytes: usize, stream: CUstream)
        => pass::cuMemcpyHtoDAsync_v2_ptsz;
    /// Passes the gate; what it names is noted.
    fn cuMemcpyDtoHAsync_v2_ptsz(to: *mut c_void, from: CUdeviceptr, bytes: usize, stream: CUstream)
        => pass::cuMemcpyDtoHAsync_v2_ptsz;
    /// Passes the gate; what it names is noted.
    fn cuMemsetD8Async_ptsz(to: CUdeviceptr, value: c_uchar, count: usize, stream: CUstream)
        => pass::cuMemsetD8Async_ptsz;
    /// Passes the gate; what it names is noted.
    fn cuMemsetD2D8Async_ptsz(to: CUdeviceptr, pitch: usize, value: c_uchar, width: usize, height: usize, stream: CUstream)
        => pass::cuMemsetD2D8Async_ptsz;
    /// Passes the gate; what it names is noted.
    fn cuMemsetD16Async_ptsz(to: CUdeviceptr, value: c_ushort, count: usize, stream: CUstream)
        => pass::cuMemsetD16Async_ptsz;
    /// Passes the gate; what it names is noted.
    fn cuMemsetD2D16Async_ptsz(to: CUdeviceptr, pitch: usize, value: c_ushort, width: usize, height: usize, stream: CUstream)
        => pass::cuMemsetD2D16Async_ptsz;
    /// Passes the gate; what it names is noted.
    fn cuMemsetD32Async_ptsz(to: CUdeviceptr, value: c_uint, count: usize, stream: CUstream)
        => pass::cuMemsetD32Async_ptsz;
    /// Passes the gate; what it names is noted.
    fn cuMemsetD2D32Async_ptsz(to: CUdeviceptr, pitch: usize, value: c_uint, width: usize, height: usize, stream: CUstream)
        => pass::cuMemsetD2D32Async_ptsz;
    /// Passes the gate; what it names is noted.
    fn cuMemcpyDtoA_v2(to: CUarray, at: usize, from: CUdeviceptr, bytes: usize)
        => pass::cuMemcpyDtoA_v2;
    /// Passes the gate; what it names is noted.
    fn cuMemcpyAtoD_v2(to: CUdeviceptr, from: CUarray, at: usize, bytes: usize)
        => pass::cuMemcpyAtoD_v2;
    /// Passes the gate.
    fn cuMemcpyAtoA_v2(to: CUarray, to_at: usize, from: CUarray, from_at: usize, bytes: usize)
        => pass::cuMemcpyAtoA_v2;
    /// Passes the gate.
    fn cuMemcpyAtoH_v2(to: *mut c_void, from: CUarray, at: usize, bytes: usize)
        => pass::cuMemcpyAtoH_v2;
    /// Passes the gate.
    fn cuMemcpyHtoA_v2(to: CUarray, at: usize, from: *const c_void, bytes: usize)
        => pass::cuMemcpyHtoA_v2;
    /// Passes the gate; what it names is noted.
    fn cuMemcpyDtoA_v2_ptds(to: CUarray, at: usize, from: CUdeviceptr, bytes: usize)
        => pass::cuMemcpyDtoA_v2_ptds;
    /// Passes the gate; what it names is noted.
    fn cuMemcpyAtoD_v2_ptds(to: CUdeviceptr, from: CUarray, at: usize, bytes: usize)
        => pass::cuMemcpyAtoD_v2_ptds;
    /// Passes the gate.
    fn cuMemcpyAtoA_v2_ptds(to: CUarray, to_at: usize, from: CUarray, from_at: usize, bytes: usize)
        => pass::cuMemcpyAtoA_v2_ptds;
    /// Passes the gate.
    fn cuMemcpyAtoH_v2_ptds(to: *mut c_void, from: CUarray, at: usize, bytes: usize)
        => pass::cuMemcpyAtoH_v2_ptds;
    /// Passes the gate.
    fn cuMemcpyHtoA_v2_ptds(to: CUarray, at: usize, from: *const c_void, bytes: usize)
        => pass::cuMemcpyHtoA_v2_ptds;
    /// Passes the gate.
    fn cuMemcpyAtoHAsync_v2(to: *mut c_void, from: CUarray, at: usize, bytes: usize, stream: CUstream)
        => pass::cuMemcpyAtoHAsync_v2;
    /// Passes the gate.
    fn cuMemcpyHtoAAsync_v2(to: CUarray, at: usize, from: *const c_void, bytes: usize, stream: CUstream)
        => pass::cuMemcpyHtoAAsync_v2;
    /// Passes the gate; what it names is noted.
    fn cuMemcpyBatchAsync(to: *mut CUdeviceptr, from: *mut CUdeviceptr, bytes: *mut usize, count: usize, attributes: *mut c_void, indices: *mut usize, kinds: usize, failed: *mut usize, stream: CUstream)
        => pass::cuMemcpyBatchAsync;
    /// Passes the gate; what it names is noted.
    fn cuMemcpyBatchAsync_v2(to: *mut CUdeviceptr, from: *mut CUdeviceptr, bytes: *mut usize, count: usize, attributes: *mut c_void, indices: *mut usize, kinds: usize, stream: CUstream)
        => pass::cuMemcpyBatchAsync_v2;
    /// Passes the gate.
    fn cuMemcpy3DBatchAsync(count: usize, list: *mut c_void, failed: *mut usize, flags: c_ulonglong, stream: CUstream)
        => pass::cuMemcpy3DBatchAsync;
    /// Passes the gate.
    fn cuMemcpy3DBatchAsync_v2(count: usize, list: *mut c_void, flags: c_ulonglong, stream: CUstream)
        => pass::cuMemcpy3DBatchAsync_v2;
    /// Passes the gate.
    fn cuMemPrefetchAsync(address: CUdeviceptr, bytes: usize, device: CUdevice, stream: CUstream)
        => pass::cuMemPrefetchAsync;
    /// Passes the gate.
    fn cuMemPrefetchAsync_v2(address: CUdeviceptr, bytes: usize, location: CUmemLocation, flags: c_uint, stream: CUstream)
        => pass::cuMemPrefetchAsync_v2;
    /// Passes the gate.
    fn cuMemPrefetchBatchAsync(addresses: *mut CUdeviceptr, bytes: *mut usize, count: usize, locations: *mut CUmemLocation, indices: *mut usize, places: usize, flags: c_ulonglong, stream: CUstream)
        => pass::cuMemPrefetchBatchAsync;
    /// Passes the gate.
    fn cuMemDiscardAndPrefetchBatchAsync(addresses: *mut CUdeviceptr, bytes: *mut usize, count: usize, locations: *mut CUmemLocation, indices: *mut usize, places: usize, flags: c_ulonglong, stream: CUstream)
        => pass::cuMemDiscardAndPrefetchBatchAsync;
    /// Passes the gate.
    fn cuMemDiscardBatchAsync(addresses: *mut CUdeviceptr, bytes: *mut usize, count: usize, flags: c_ulonglong, stream: CUstream)
        => pass::cuMemDiscardBatchAsync;
    /// Passes the gate.
    fn cuMemBatchDecompressAsync(list: *mut c_void, count: usize, flags: c_uint, failed: *mut usize, stream: CUstream)
        => pass::cuMemBatchDecompressAsync;
    /// Passes the gate.
    fn cuMemMapArrayAsync(list: *mut c_void, count: c_uint, stream: CUstream)
        => pass::cuMemMapArrayAsync;
    /// Passes the gate; the memory stays where it is from then on.
    fn cuStreamWaitValue32(stream: CUstream, address: CUdeviceptr, value: c_uint, flags: c_uint)
        => pass::cuStreamWaitValue32;
    /// Passes the gate; the memory stays where it is from then on.
    fn cuStreamWriteValue32(stream: CUstream, address: CUdeviceptr, value: c_uint, flags: c_uint)
        => pass::cuStreamWriteValue32;
    /// Passes the gate; the memory stays where it is from then on.
    fn cuStreamWaitValue64(stream: CUstream, address: CUdeviceptr, value: c_ulonglong, flags: c_uint)
        => pass::cuStreamWaitValue64;
    /// Passes the gate; the memory stays where it is from then on.
    fn cuStreamWriteValue64(stream: CUstream, address: CUdeviceptr, value: c_ulonglong, flags: c_uint)
        => pass::cuStreamWriteValue64;
    /// Passes the gate; the memory stays where it is from then on.
    fn cuStreamBatchMemOp(stream: CUstream, count: c_uint, list: *mut c_void, flags: c_uint)
        => pass::cuStreamBatchMemOp;
    /// Passes the gate; the memory stays where it is from then on.
    fn cuStreamWaitValue32_v2(stream: CUstream, address: CUdeviceptr, value: c_uint, flags: c_uint)
        => pass::cuStreamWaitValue32_v2;
    /// Passes the gate; the memory stays where it is from then on.
    fn cuStreamWriteValue32_v2(stream: CUstream, address: CUdeviceptr, value: c_uint, flags: c_uint)
        => pass::cuStreamWriteValue32_v2;
    /// Passes the gate; the memory stays where it is from then on.
    fn cuStreamWaitValue64_v2(stream: CUstream, address: CUdeviceptr, value: c_ulonglong, flags: c_uint)
        => pass::cuStreamWaitValue64_v2;
    /// Passes the gate; the memory stays where it is from then on.
    fn cuStreamWriteValue64_v2(stream: CUstream, address: CUdeviceptr, value: c_ulonglong, flags: c_uint)
        => pass::cuStreamWriteValue64_v2;
    /// Passes the gate; the memory stays where it is from then on.
    fn cuStreamBatchMemOp_v2(stream: CUstream, count: c_uint, list: *mut c_void, flags: c_uint)
        => pass::cuStreamBatchMemOp_v2;
    /// Passes the gate.
    fn cuMemcpyAtoHAsync_v2_ptsz(to: *mut c_void, from: CUarray, at: usize, bytes: usize, stream: CUstream)
        => pass::cuMemcpyAtoHAsync_v2_ptsz;
    /// Passes the gate.
    fn cuMemcpyHtoAAsync_v2_ptsz(to: CUarray, at: usize, from: *const c_void, bytes: usize, stream: CUstream)
        => pass::cuMemcpyHtoAAsync_v2_ptsz;
    /// Passes the gate; what it names is noted.
    fn cuMemcpyBatchAsync_ptsz(to: *mut CUdeviceptr, from: *mut CUdeviceptr, bytes: *mut usize, count: usize, attributes: *mut c_void, indices: *mut usize, kinds: usize, failed: *mut usize, stream: CUstream)
        => pass::cuMemcpyBatchAsync_ptsz;
    /// Passes the gate; what it names is noted.
    fn cuMemcpyBatchAsync_v2_ptsz(to: *mut CUdeviceptr, from: *mut CUdeviceptr, bytes: *mut usize, count: usize, attributes: *mut c_void, indices: *mut usize, kinds: usize, stream: CUstream)
        => pass::cuMemcpyBatchAsync_v2_ptsz;
    /// Passes the gate.
    fn cuMemcpy3DBatchAsync_ptsz(count: usize, list: *mut c_void, failed: *mut usize, flags: c_ulonglong, stream: CUstream)
        => pass::cuMemcpy3DBatchAsync_ptsz;
    /// Passes the gate.
    fn cuMemcpy3DBatchAsync_v2_ptsz(count: usize, list: *mut c_void, flags: c_ulonglong, stream: CUstream)
        => pass::cuMemcpy3DBatchAsync_v2_ptsz;
    /// Passes the gate.
    fn cuMemPrefetchAsync_ptsz(address: CUdeviceptr, bytes: usize, device: CUdevice, stream: CUstream)
        => pass::cuMemPrefetchAsync_ptsz;
    /// Passes the gate.
    fn cuMemPrefetchAsync_v2_ptsz(address: CUdeviceptr, bytes: usize, location: CUmemLocation, flags: c_uint, stream: CUstream)
        => pass::cuMemPrefetchAsync_v2_ptsz;
    /// Passes the gate.
    fn cuMemPrefetchBatchAsync_ptsz(addresses: *mut CUdeviceptr, bytes: *mut usize, count: usize, locations: *mut CUmemLocation, indices: *mut usize, places: usize, flags: c_ulonglong, stream: CUstream)
        => pass::cuMemPrefetchBatchAsync_ptsz;
    /// Passes the gate.
    fn cuMemDiscardAndPrefetchBatchAsync_ptsz(addresses: *mut CUdeviceptr, bytes: *mut usize, count: usize, locations: *mut CUmemLocation, indices: *mut usize, places: usize, flags: c_ulonglong, stream: CUstream)
        => pass::cuMemDiscardAndPrefetchBatchAsync_ptsz;
    /// Passes the gate.
    fn cuMemDiscardBatchAsync_ptsz(addresses: *mut CUdeviceptr, bytes: *mut usize, count: usize, flags: c_ulonglong, stream: CUstream)
        => pass::cuMemDiscardBatchAsync_ptsz;
    /// Passes the gate.
    fn cuMemBatchDecompressAsync_ptsz(list: *mut c_void, count: usize, flags: c_uint, failed: *mut usize, stream: CUstream)
        => pass::cuMemBatchDecompressAsync_ptsz;
    /// Passes the gate.
    fn cuMemMapArrayAsync_ptsz(list: *mut c_void, count: c_uint, stream: CUstream)
        => pass::cuMemMapArrayAsync_ptsz;
    /// Passes the gate; the memory stays where it is from then on.
    fn cuStreamWaitValue32_ptsz(stream: CUstream, address: CUdeviceptr, value: c_uint, flags: c_uint)
        => pass::cuStreamWaitValue32_ptsz;
    /// Passes the gate; the memory stays where it is from then on.
    fn cuStreamWriteValue32_ptsz(stream: CUstream, address: CUdeviceptr, value: c_uint, flags: c_uint)
        => pass::cuStreamWriteValue32_ptsz;
    /// Passes the gate; the memory stays where it is from then on.
    fn cuStreamWaitValue64_ptsz(stream: CUstream, address: CUdeviceptr, value: c_ulonglong, flags: c_uint)
        => pass::cuStreamWaitValue64_ptsz;
    /// Passes the gate; the memory stays where it is from then on.
    fn cuStreamWriteValue64_ptsz(stream: CUstream, address: CUdeviceptr, value: c_ulonglong, flags: c_uint)
        => pass::cuStreamWriteValue64_ptsz;
    /// Passes the gate; the memory stays where it is from then on.
    fn cuStreamBatchMemOp_ptsz(stream: CUstream, count: c_uint, list: *mut c_void, flags: c_uint)
        => pass::cuStreamBatchMemOp_ptsz;
    /// Passes the gate; the memory stays where it is from then on.
    fn cuStreamWaitValue32_v2_ptsz(stream: CUstream, address: CUdeviceptr, value: c_uint, flags: c_uint)
        => pass::cuStreamWaitValue32_v2_ptsz;
    /// Passes the gate; the memory stays where it is from then on.
    fn cuStreamWriteValue32_v2_ptsz(stream: CUstream, address: CUdeviceptr, value: c_uint, flags: c_uint)
        => pass::cuStreamWriteValue32_v2_ptsz;
    /// Passes the gate; the memory stays where it is from then on.
    fn cuStreamWaitValue64_v2_ptsz(stream: CUstream, address: CUdeviceptr, value: c_ulonglong, flags: c_uint)
        => pass::cuStreamWaitValue64_v2_ptsz;
    /// Passes the gate; the memory stays where it is from then on.
    fn cuStreamWriteValue64_v2_ptsz(stream: CUstream, address: CUdeviceptr, value: c_ulonglong, flags: c_uint)
        => pass::cuStreamWriteValue64_v2_ptsz;
    /// Passes the gate; the memory stays where it is from then on.
    fn cuStreamBatchMemOp_v2_ptsz(stream: CUstream, count: c_uint, list: *mut c_void, flags: c_uint)
        => pass::cuStreamBatchMemOp_v2_ptsz;
}
