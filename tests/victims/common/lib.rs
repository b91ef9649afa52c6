//! What the victims share: the driver API by hand, the ways of reaching it, and a small context to work in.
//!
//! Every victim prints plain lines that do not depend on addresses or time, so that the test-suite can compare a run
//! under the shim with a run without it. A line that begins with `~` may differ. A victim that is not satisfied panics.
#![allow(
    non_snake_case,
    missing_docs,
    clippy::missing_safety_doc,
    clippy::not_unsafe_ptr_arg_deref,
    clippy::too_many_arguments
)]

pub mod gpu;
pub mod graph;
pub mod reach;
pub mod sys;
pub mod work;

pub use greenboost_abi::*;
pub use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_ushort, c_void};

/// The driver's functions that victims call: `$m` gets one row for each.
#[macro_export]
macro_rules! driver_functions {
    ($m:ident) => {
        $m! {
            cuInit(flags: c_uint);
            cuDriverGetVersion(version: *mut c_int);
            cuDeviceGet(device: *mut CUdevice, ordinal: c_int);
            cuDeviceGetCount(count: *mut c_int);
            cuDeviceTotalMem_v2(bytes: *mut usize, device: CUdevice);
            cuDeviceGetAttribute(value: *mut c_int, attribute: c_int, device: CUdevice);
            cuDevicePrimaryCtxRetain(context: *mut CUcontext, device: CUdevice);
            cuDevicePrimaryCtxRelease_v2(device: CUdevice);
            cuDevicePrimaryCtxReset_v2(device: CUdevice);
            cuCtxCreate_v2(context: *mut CUcontext, flags: c_uint, device: CUdevice);
            cuCtxDestroy_v2(context: CUcontext);
            cuCtxAttach(context: *mut CUcontext, flags: c_uint);
            cuCtxDetach(context: CUcontext);
            cuDeviceGetDevResource(device: CUdevice, resource: *mut c_void, kind: c_int);
            cuDevSmResourceSplitByCount(out: *mut c_void, groups: *mut c_uint, all: *const c_void, rest: *mut c_void, flags: c_uint, least: c_uint);
            cuDevResourceGenerateDesc(out: *mut *mut c_void, resources: *const c_void, count: c_uint);
            cuGreenCtxCreate(green: *mut CUgreenCtx, resources: *mut c_void, device: CUdevice, flags: c_uint);
            cuGreenCtxDestroy(green: CUgreenCtx);
            cuGreenCtxStreamCreate(stream: *mut CUstream, green: CUgreenCtx, flags: c_uint, priority: c_int);
            cuCtxFromGreenCtx(context: *mut CUcontext, green: CUgreenCtx);
            cuCtxSetCurrent(context: CUcontext);
            cuCtxGetCurrent(context: *mut CUcontext);
            cuCtxPushCurrent_v2(context: CUcontext);
            cuCtxPopCurrent_v2(context: *mut CUcontext);
            cuCtxGetDevice(device: *mut CUdevice);
            cuCtxSynchronize();
            cuMemGetInfo_v2(free: *mut usize, total: *mut usize);
            cuMemAlloc_v2(pointer: *mut CUdeviceptr, bytes: usize);
            cuMemAllocPitch_v2(pointer: *mut CUdeviceptr, pitch: *mut usize, width: usize, height: usize, element: c_uint);
            cuMemFree_v2(pointer: CUdeviceptr);
            cuMemGetAddressRange_v2(base: *mut CUdeviceptr, bytes: *mut usize, pointer: CUdeviceptr);
            cuPointerGetAttribute(data: *mut c_void, attribute: c_int, pointer: CUdeviceptr);
            cuPointerGetAttributes(count: c_uint, attributes: *mut c_int, data: *mut *mut c_void, pointer: CUdeviceptr);
            cuMemAllocManaged(pointer: *mut CUdeviceptr, bytes: usize, flags: c_uint);
            cuMemAllocAsync(pointer: *mut CUdeviceptr, bytes: usize, stream: CUstream);
            cuMemFreeAsync(pointer: CUdeviceptr, stream: CUstream);
            cuMemAllocFromPoolAsync(pointer: *mut CUdeviceptr, bytes: usize, pool: CUmemoryPool, stream: CUstream);
            cuMemPoolCreate(pool: *mut CUmemoryPool, props: *const CUmemPoolProps);
            cuMemPoolDestroy(pool: CUmemoryPool);
            cuMemPoolTrimTo(pool: CUmemoryPool, keep: usize);
            cuMemPoolGetAttribute(pool: CUmemoryPool, attribute: CUmemPool_attribute, value: *mut u64);
            cuMemPoolSetAttribute(pool: CUmemoryPool, attribute: CUmemPool_attribute, value: *const u64);
            cuMemPoolSetAccess(pool: CUmemoryPool, access: *const CUmemAccessDesc, count: usize);
            cuMemPoolExportToShareableHandle(handle: *mut c_int, pool: CUmemoryPool, kind: c_int, flags: u64);
            cuMemPoolImportFromShareableHandle(pool: *mut CUmemoryPool, handle: usize, kind: c_int, flags: u64);
            cuMemPoolExportPointer(data: *mut CUmemPoolPtrExportData, pointer: CUdeviceptr);
            cuMemPoolImportPointer(pointer: *mut CUdeviceptr, pool: CUmemoryPool, data: *const CUmemPoolPtrExportData);
            cuDeviceGetDefaultMemPool(pool: *mut CUmemoryPool, device: CUdevice);
            cuDeviceGetMemPool(pool: *mut CUmemoryPool, device: CUdevice);
            cuDeviceSetMemPool(device: CUdevice, pool: CUmemoryPool);
            cuMemGetMemPool(pool: *mut CUmemoryPool, location: *const CUmemLocation, kind: c_int);
            cuMemSetMemPool(location: *const CUmemLocation, kind: c_int, pool: CUmemoryPool);
            cuMemCreate(handle: *mut CUmemGenericAllocationHandle, bytes: usize, prop: *const CUmemAllocationProp, flags: u64);
            cuMemRelease(handle: CUmemGenericAllocationHandle);
            cuMemGetAllocationPropertiesFromHandle(prop: *mut CUmemAllocationProp, handle: CUmemGenericAllocationHandle);
            cuMemRetainAllocationHandle(handle: *mut CUmemGenericAllocationHandle, pointer: *mut c_void);
            cuMemAddressReserve(pointer: *mut CUdeviceptr, bytes: usize, alignment: usize, wanted: CUdeviceptr, flags: u64);
            cuMemAddressFree(pointer: CUdeviceptr, bytes: usize);
            cuMemMap(pointer: CUdeviceptr, bytes: usize, offset: usize, handle: CUmemGenericAllocationHandle, flags: u64);
            cuMemUnmap(pointer: CUdeviceptr, bytes: usize);
            cuMemSetAccess(pointer: CUdeviceptr, bytes: usize, access: *const CUmemAccessDesc, count: usize);
            cuMemGetAccess(flags: *mut u64, location: *const CUmemLocation, pointer: CUdeviceptr);
            cuMemExportToShareableHandle(out: *mut c_void, handle: CUmemGenericAllocationHandle, kind: c_int, flags: u64);
            cuMemImportFromShareableHandle(handle: *mut CUmemGenericAllocationHandle, from: *mut c_void, kind: c_int);
            cuIpcGetMemHandle(handle: *mut CUipcMemHandle, pointer: CUdeviceptr);
            cuIpcOpenMemHandle_v2(pointer: *mut CUdeviceptr, handle: CUipcMemHandle, flags: c_uint);
            cuIpcCloseMemHandle(pointer: CUdeviceptr);
            cuPointerSetAttribute(value: *const c_void, attribute: c_int, pointer: CUdeviceptr);
            cuMemGetHandleForAddressRange(out: *mut c_void, pointer: CUdeviceptr, bytes: usize, kind: c_int, flags: u64);
            cuCtxEnablePeerAccess(peer: CUcontext, flags: c_uint);
            cuCtxDisablePeerAccess(peer: CUcontext);
            cuArrayCreate_v2(array: *mut CUarray, descriptor: *const CUDA_ARRAY_DESCRIPTOR);
            cuArrayDestroy(array: CUarray);
            cuArray3DCreate_v2(array: *mut CUarray, descriptor: *const CUDA_ARRAY3D_DESCRIPTOR);
            cuMipmappedArrayCreate(array: *mut CUmipmappedArray, descriptor: *const CUDA_ARRAY3D_DESCRIPTOR, levels: c_uint);
            cuMipmappedArrayDestroy(array: CUmipmappedArray);
            cuMemAllocHost_v2(pointer: *mut *mut c_void, bytes: usize);
            cuMemHostRegister_v2(pointer: *mut c_void, bytes: usize, flags: c_uint);
            cuMemHostUnregister(pointer: *mut c_void);
            cuCtxSetLimit(limit: c_int, value: usize);
            cuModuleGetGlobal_v2(pointer: *mut CUdeviceptr, bytes: *mut usize, module: CUmodule, name: *const c_char);
            cuLibraryLoadData(
                library: *mut CUlibrary, code: *const c_void, jit: *mut c_int, jit_values: *mut *mut c_void, jit_count: c_uint,
                options: *mut c_int, values: *mut *mut c_void, count: c_uint
            );
            cuLibraryGetGlobal(pointer: *mut CUdeviceptr, bytes: *mut usize, library: CUlibrary, name: *const c_char);
            cuLibraryUnload(library: CUlibrary);
            cuImportExternalMemory(memory: *mut CUexternalMemory, desc: *const CUDA_EXTERNAL_MEMORY_HANDLE_DESC);
            cuExternalMemoryGetMappedBuffer(pointer: *mut CUdeviceptr, memory: CUexternalMemory, desc: *const CUDA_EXTERNAL_MEMORY_BUFFER_DESC);
            cuDestroyExternalMemory(memory: CUexternalMemory);
            cuMemHostAlloc(pointer: *mut *mut c_void, bytes: usize, flags: c_uint);
            cuMemFreeHost(pointer: *mut c_void);
            cuMemcpy(to: CUdeviceptr, from: CUdeviceptr, bytes: usize);
            cuMemcpyAsync(to: CUdeviceptr, from: CUdeviceptr, bytes: usize, stream: CUstream);
            cuMemcpyHtoD_v2(to: CUdeviceptr, from: *const c_void, bytes: usize);
            cuMemcpyDtoH_v2(to: *mut c_void, from: CUdeviceptr, bytes: usize);
            cuMemcpyDtoD_v2(to: CUdeviceptr, from: CUdeviceptr, bytes: usize);
            cuMemcpyHtoDAsync_v2(to: CUdeviceptr, from: *const c_void, bytes: usize, stream: CUstream);
            cuMemcpyDtoHAsync_v2(to: *mut c_void, from: CUdeviceptr, bytes: usize, stream: CUstream);
            cuMemcpyDtoDAsync_v2(to: CUdeviceptr, from: CUdeviceptr, bytes: usize, stream: CUstream);
            cuMemcpyPeer(to: CUdeviceptr, to_context: CUcontext, from: CUdeviceptr, from_context: CUcontext, bytes: usize);
            cuMemcpyPeerAsync(
                to: CUdeviceptr, to_context: CUcontext, from: CUdeviceptr, from_context: CUcontext, bytes: usize,
                stream: CUstream
            );
            cuMemcpy2D_v2(copy: *const CUDA_MEMCPY2D);
            cuMemcpy2DUnaligned_v2(copy: *const CUDA_MEMCPY2D);
            cuMemcpy2DAsync_v2(copy: *const CUDA_MEMCPY2D, stream: CUstream);
            cuMemsetD8_v2(to: CUdeviceptr, value: u8, count: usize);
            cuMemsetD16_v2(to: CUdeviceptr, value: c_ushort, count: usize);
            cuMemsetD32_v2(to: CUdeviceptr, value: c_uint, count: usize);
            cuMemsetD8Async(to: CUdeviceptr, value: u8, count: usize, stream: CUstream);
            cuMemsetD32Async(to: CUdeviceptr, value: c_uint, count: usize, stream: CUstream);
            cuMemsetD2D8_v2(to: CUdeviceptr, pitch: usize, value: u8, width: usize, height: usize);
            cuStreamCreate(stream: *mut CUstream, flags: c_uint);
            cuStreamDestroy_v2(stream: CUstream);
            cuStreamSynchronize(stream: CUstream);
            cuStreamQuery(stream: CUstream);
            cuStreamWaitEvent(stream: CUstream, event: CUevent, flags: c_uint);
            cuStreamBeginCapture_v2(stream: CUstream, mode: c_int);
            cuStreamEndCapture(stream: CUstream, graph: *mut CUgraph);
            cuStreamIsCapturing(stream: CUstream, status: *mut c_int);
            cuStreamAddCallback(stream: CUstream, callback: extern "C" fn(CUstream, CUresult, *mut c_void), data: *mut c_void, flags: c_uint);
            cuLaunchHostFunc(stream: CUstream, function: extern "C" fn(*mut c_void), data: *mut c_void);
            cuEventCreate(event: *mut CUevent, flags: c_uint);
            cuEventRecord(event: CUevent, stream: CUstream);
            cuEventSynchronize(event: CUevent);
            cuEventQuery(event: CUevent);
            cuEventDestroy_v2(event: CUevent);
            cuGraphInstantiateWithFlags(exec: *mut CUgraphExec, graph: CUgraph, flags: u64);
            cuGraphLaunch(exec: CUgraphExec, stream: CUstream);
            cuGraphExecDestroy(exec: CUgraphExec);
            cuGraphDestroy(graph: CUgraph);
            cuGraphUpload(exec: CUgraphExec, stream: CUstream);
            cuGraphCreate(graph: *mut CUgraph, flags: c_uint);
            cuGraphGetNodes(graph: CUgraph, nodes: *mut CUgraphNode, count: *mut usize);
            cuGraphAddDependencies(graph: CUgraph, from: *const CUgraphNode, to: *const CUgraphNode, count: usize);
            cuGraphAddKernelNode(node: *mut CUgraphNode, graph: CUgraph, after: *const CUgraphNode, count: usize, params: *const CUDA_KERNEL_NODE_PARAMS_v1);
            cuGraphAddMemcpyNode(node: *mut CUgraphNode, graph: CUgraph, after: *const CUgraphNode, count: usize, params: *const CUDA_MEMCPY3D, context: CUcontext);
            cuGraphAddMemsetNode(node: *mut CUgraphNode, graph: CUgraph, after: *const CUgraphNode, count: usize, params: *const CUDA_MEMSET_NODE_PARAMS, context: CUcontext);
            cuGraphAddHostNode(node: *mut CUgraphNode, graph: CUgraph, after: *const CUgraphNode, count: usize, params: *const CUDA_HOST_NODE_PARAMS);
            cuGraphAddEmptyNode(node: *mut CUgraphNode, graph: CUgraph, after: *const CUgraphNode, count: usize);
            cuGraphAddChildGraphNode(node: *mut CUgraphNode, graph: CUgraph, after: *const CUgraphNode, count: usize, child: CUgraph);
            cuGraphAddMemAllocNode(node: *mut CUgraphNode, graph: CUgraph, after: *const CUgraphNode, count: usize, params: *mut CUDA_MEM_ALLOC_NODE_PARAMS);
            cuGraphAddMemFreeNode(node: *mut CUgraphNode, graph: CUgraph, after: *const CUgraphNode, count: usize, pointer: CUdeviceptr);
            cuGraphAddNode(node: *mut CUgraphNode, graph: CUgraph, after: *const CUgraphNode, count: usize, params: *mut CUgraphNodeParams);
            cuGraphAddNode_v2(node: *mut CUgraphNode, graph: CUgraph, after: *const CUgraphNode, edges: *const c_void, count: usize, params: *mut CUgraphNodeParams);
            cuGraphExecKernelNodeSetParams(exec: CUgraphExec, node: CUgraphNode, params: *const CUDA_KERNEL_NODE_PARAMS_v1);
            cuGraphExecMemcpyNodeSetParams(exec: CUgraphExec, node: CUgraphNode, params: *const CUDA_MEMCPY3D, context: CUcontext);
            cuGraphExecMemsetNodeSetParams(exec: CUgraphExec, node: CUgraphNode, params: *const CUDA_MEMSET_NODE_PARAMS, context: CUcontext);
            cuGraphExecUpdate_v2(exec: CUgraphExec, graph: CUgraph, info: *mut [u64; 3]);
            cuGraphExecUpdate(exec: CUgraphExec, graph: CUgraph, node: *mut CUgraphNode, why: *mut c_int);
            cuGraphExecNodeSetParams(exec: CUgraphExec, node: CUgraphNode, params: *mut CUgraphNodeParams);
            cuGraphExecKernelNodeSetParams_v2(exec: CUgraphExec, node: CUgraphNode, params: *const CUDA_KERNEL_NODE_PARAMS);
            cuGraphExecHostNodeSetParams(exec: CUgraphExec, node: CUgraphNode, params: *const CUDA_HOST_NODE_PARAMS);
            cuGraphExecChildGraphNodeSetParams(exec: CUgraphExec, node: CUgraphNode, child: CUgraph);
            cuGraphExecGetFlags(exec: CUgraphExec, flags: *mut u64);
            cuGraphNodeSetEnabled(exec: CUgraphExec, node: CUgraphNode, on: c_uint);
            cuGraphNodeGetEnabled(exec: CUgraphExec, node: CUgraphNode, on: *mut c_uint);
            cuGraphAddEventRecordNode(node: *mut CUgraphNode, graph: CUgraph, after: *const CUgraphNode, count: usize, event: CUevent);
            cuGraphAddEventWaitNode(node: *mut CUgraphNode, graph: CUgraph, after: *const CUgraphNode, count: usize, event: CUevent);
            cuGraphExecEventRecordNodeSetEvent(exec: CUgraphExec, node: CUgraphNode, event: CUevent);
            cuGraphExecEventWaitNodeSetEvent(exec: CUgraphExec, node: CUgraphNode, event: CUevent);
            cuLibraryGetKernel(kernel: *mut *mut c_void, library: CUlibrary, name: *const c_char);
            cuGraphMemcpyNodeSetParams(node: CUgraphNode, params: *const CUDA_MEMCPY3D);
            cuGraphKernelNodeSetParams(node: CUgraphNode, params: *const CUDA_KERNEL_NODE_PARAMS_v1);
            cuGraphInstantiateWithParams(exec: *mut CUgraphExec, graph: CUgraph, params: *mut CUDA_GRAPH_INSTANTIATE_PARAMS);
            cuStreamWriteValue32_v2(stream: CUstream, pointer: CUdeviceptr, value: c_uint, flags: c_uint);
            cuDeviceGetGraphMemAttribute(device: CUdevice, attribute: c_int, value: *mut u64);
            cuDeviceSetGraphMemAttribute(device: CUdevice, attribute: c_int, value: *mut u64);
            cuDeviceGraphMemTrim(device: CUdevice);
            cuMemcpy3DAsync_v2(copy: *const CUDA_MEMCPY3D, stream: CUstream);
            cuMemsetD16Async(to: CUdeviceptr, value: c_ushort, count: usize, stream: CUstream);
            cuMemsetD2D8Async(to: CUdeviceptr, pitch: usize, value: u8, width: usize, height: usize, stream: CUstream);
            cuMemsetD2D16Async(to: CUdeviceptr, pitch: usize, value: c_ushort, width: usize, height: usize, stream: CUstream);
            cuMemsetD2D32Async(to: CUdeviceptr, pitch: usize, value: c_uint, width: usize, height: usize, stream: CUstream);
            cuModuleLoadData(module: *mut CUmodule, image: *const c_void);
            cuModuleGetFunction(function: *mut CUfunction, module: CUmodule, name: *const c_char);
            cuModuleUnload(module: CUmodule);
            cuLaunchKernel(
                function: CUfunction,
                gx: c_uint, gy: c_uint, gz: c_uint, bx: c_uint, by: c_uint, bz: c_uint,
                shared: c_uint, stream: CUstream, parameters: *mut *mut c_void, extra: *mut *mut c_void
            );
            cuLaunchKernelEx(
                config: *const CUlaunchConfig, function: CUfunction, parameters: *mut *mut c_void, extra: *mut *mut c_void
            );
        }
    };
}

/// What [`Driver`]'s methods return for a function that the driver lacks.
pub const ABSENT: CUresult = -1;

macro_rules! define {
    ($($f:ident($($a:ident: $t:ty),* $(,)?);)*) => {
        /// The driver as one victim reached it. A function that was not found is `None`.
        pub struct Driver {
            $(pub $f: Option<unsafe extern "C" fn($($t),*) -> CUresult>,)*
        }
        impl Driver {
            /// Names of all functions here.
            pub const NAMES: &[&str] = &[$(stringify!($f)),*];
            /// Looks each function up.
            pub fn with(find: &dyn Fn(&str) -> *mut c_void) -> Driver {
                Driver {
                    // SAFETY: an `Option` of a function pointer has the layout of a pointer, null being `None`, and
                    // `find` answers with the driver's function of that name.
                    $($f: unsafe { std::mem::transmute::<*mut c_void, Option<unsafe extern "C" fn($($t),*) -> CUresult>>(find(stringify!($f))) },)*
                }
            }
            $(pub fn $f(&self, $($a: $t),*) -> CUresult {
                match self.$f {
                    // SAFETY: declared as in cuda.h; the victims vouch for their pointers or mean them to be wrong.
                    Some(f) => unsafe { f($($a),*) },
                    None => ABSENT,
                }
            })*
        }
    };
}
driver_functions!(define);

/// Panics unless the call succeeded.
#[track_caller]
pub fn ok(result: CUresult) {
    assert_eq!(result, CUDA_SUCCESS, "a driver call failed");
}

/// An owned C string.
pub fn c(text: &str) -> CString {
    CString::new(text).expect("no zero byte in a name")
}

/// The victim's n-th argument.
#[track_caller]
pub fn argument(n: usize) -> String {
    std::env::args().nth(n).expect("an argument is missing")
}

/// A small generator of numbers (splitmix64): the same everywhere, for ever.
#[derive(Clone)]
pub struct Numbers(pub u64);

impl Numbers {
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
    /// A number below `n` (0 for 0).
    pub fn below(&mut self, n: u64) -> u64 {
        if n == 0 { 0 } else { self.draw() % n }
    }
    /// Fills with bytes, eight at a time.
    pub fn fill(&mut self, bytes: &mut [u8]) {
        for word in bytes.chunks_mut(8) {
            let n = self.draw().to_le_bytes();
            word.copy_from_slice(&n[..word.len()]);
        }
    }
}

/// Bytes that only this seed gives.
pub fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut out = vec![0; len];
    Numbers(seed).fill(&mut out);
    out
}

/// A short name for a long content (FNV over words).
pub fn digest(bytes: &[u8]) -> u64 {
    let mut h = 0xCBF2_9CE4_8422_2325u64 ^ bytes.len() as u64;
    for word in bytes.chunks(8) {
        let mut w = [0; 8];
        w[..word.len()].copy_from_slice(word);
        h = (h ^ u64::from_le_bytes(w)).wrapping_mul(0x0000_0100_0000_01B3);
        h ^= h >> 29;
    }
    h
}
