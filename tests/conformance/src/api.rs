//! The driver's functions, found by name when they are called.
//!
//! Results are out-parameters as in C, but typed as references: `None` is the null pointer. Handles and device addresses
//! are plain numbers; a wrong one is for the driver to refuse, which is what many checks are about.

use std::ffi::{c_char, c_void};

use greenboost_abi::*;
use libloading::Library;

/// What a call of a function that this driver lacks returns; no `CUresult`.
pub const MISSING: i32 = -1;

/// Where a result goes; `None` is null.
pub type Out<'a, T> = Option<&'a mut T>;
/// Where an argument lies; `None` is null.
pub type In<'a, T> = Option<&'a T>;
/// Room for any pointer attribute.
pub type Room = [u8; 32];

/// `CUmemcpyAttributes`
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct CopyAttributes {
    /// 1: the source is read in stream order.
    pub order: i32,
    /// Where the source is, and the destination: hints.
    pub hints: [i32; 4],
    /// None known.
    pub flags: u32,
}

/// `CUdevResource`
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug)]
pub struct Resource(pub [u8; 144]);

/// `CUtensorMap`
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug)]
pub struct TensorMap(pub [u64; 16]);

/// `CUipcMemHandle`
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IpcHandle(pub [u64; 8]);

/// A driver, simulated or real: whatever `libcuda.so.1` and `libnvidia-ml.so.1` are here.
#[derive(Debug)]
pub struct Driver {
    cuda: Library,
    nvml: Option<Library>,
}

impl Driver {
    /// Loads the driver; nothing is called yet.
    pub fn load() -> Result<Driver, libloading::Error> {
        // SAFETY: the initialisers are those that every CUDA program runs.
        let cuda = unsafe { Library::new("libcuda.so.1") }?;
        // SAFETY: as above.
        let nvml = unsafe { Library::new("libnvidia-ml.so.1") }.ok();
        Ok(Driver { cuda, nvml })
    }

    /// Where `dlsym` finds a function.
    pub fn symbol(&self, name: &str) -> Option<usize> {
        let library = match name.starts_with("nvml") {
            true => self.nvml.as_ref()?,
            false => &self.cuda,
        };
        // SAFETY: only the address is taken.
        let symbol = unsafe { library.get::<*const c_void>(name.as_bytes()) }.ok()?;
        // SAFETY: as above.
        Some(unsafe { symbol.into_raw() }.as_raw_ptr() as usize)
    }
}

macro_rules! functions {
    ($( fn $name:ident($($arg:ident: $ty:ty),* $(,)?); )*) => {
        #[allow(non_snake_case, missing_docs, clippy::too_many_arguments)]
        impl Driver {
            $(pub(crate) fn $name(&self, $($arg: $ty),*) -> i32 {
                let Some(address) = self.symbol(stringify!($name)) else { return MISSING };
                // SAFETY: the driver's function of this name has this signature (cuda.h, nvml.h).
                let call: unsafe extern "C" fn($($ty),*) -> i32 = unsafe { std::mem::transmute(address) };
                // SAFETY: references are valid by their types; host memory is leaked (`Host`) or the driver's own; other
                // handles and addresses are the driver's to check.
                unsafe { call($($arg),*) }
            })*

            /// Every function above.
            pub(crate) fn names() -> &'static [&'static str] {
                &[$(stringify!($name)),*]
            }
        }
    };
}

functions! {
    fn cuInit(flags: u32);
    fn cuDriverGetVersion(version: Out<i32>);
    fn cuGetProcAddress(name: *const c_char, out: Out<usize>, version: i32, flags: u64);
    fn cuGetProcAddress_v2(name: *const c_char, out: Out<usize>, version: i32, flags: u64, status: Out<i32>);
    fn cuDeviceGetCount(count: Out<i32>);
    fn cuDeviceGetName(name: Out<[u8; 256]>, size: i32, device: i32);
    fn cuDeviceGetUuid(uuid: Out<[u8; 16]>, device: i32);
    fn cuDeviceGetAttribute(value: Out<i32>, attribute: i32, device: i32);
    fn cuDeviceTotalMem_v2(bytes: Out<usize>, device: i32);
    fn cuDevicePrimaryCtxRetain(context: Out<usize>, device: i32);
    fn cuDevicePrimaryCtxReset_v2(device: i32);
    fn cuDevicePrimaryCtxGetState(device: i32, flags: Out<u32>, active: Out<i32>);
    fn cuCtxCreate_v2(context: Out<usize>, flags: u32, device: i32);
    fn cuCtxDestroy_v2(context: usize);
    fn cuCtxAttach(context: Out<usize>, flags: u32);
    fn cuCtxDetach(context: usize);
    fn cuDeviceGetDevResource(device: i32, resource: Out<Resource>, kind: i32);
    fn cuDevSmResourceSplitByCount(out: Out<Resource>, groups: Out<u32>, all: In<Resource>, rest: Out<Resource>, flags: u32, least: u32);
    fn cuDevResourceGenerateDesc(out: Out<usize>, resources: In<Resource>, count: u32);
    fn cuGreenCtxCreate(green: Out<usize>, resources: usize, device: i32, flags: u32);
    fn cuGreenCtxDestroy(green: usize);
    fn cuGreenCtxStreamCreate(stream: Out<usize>, green: usize, flags: u32, priority: i32);
    fn cuCtxFromGreenCtx(context: Out<usize>, green: usize);
    fn cuCtxSetCurrent(context: usize);
    fn cuCtxGetCurrent(context: Out<usize>);
    fn cuCtxGetDevice(device: Out<i32>);
    fn cuCtxSynchronize();
    fn cuTensorMapEncodeTiled(map: Out<TensorMap>, kind: i32, rank: u32, base: u64, sides: In<[u64; 2]>, strides: In<[u64; 1]>,
        boxes: In<[u32; 2]>, steps: In<[u32; 2]>, interleave: i32, swizzle: i32, promotion: i32, fill: i32);
    fn cuModuleLoadData(module: Out<usize>, image: *const c_char);
    fn cuModuleGetFunction(function: Out<usize>, module: usize, name: *const c_char);
    fn cuFuncGetParamInfo(function: usize, index: usize, offset: Out<usize>, size: Out<usize>);
    fn cuLaunchKernel(function: usize, gx: u32, gy: u32, gz: u32, bx: u32, by: u32, bz: u32, shared: u32, stream: usize,
        arguments: *const *const u64, extra: *const *const c_void);
    fn cuLaunchHostFunc(stream: usize, call: extern "C" fn(*mut c_void), user: *mut c_void);
    fn cuMemGetInfo_v2(free: Out<usize>, total: Out<usize>);
    fn cuMemAlloc_v2(address: Out<u64>, size: usize);
    fn cuMemAllocPitch_v2(address: Out<u64>, pitch: Out<usize>, width: usize, height: usize, element: u32);
    fn cuMemFree_v2(address: u64);
    fn cuMemAllocAsync(address: Out<u64>, size: usize, stream: usize);
    fn cuMemFreeAsync(address: u64, stream: usize);
    fn cuArrayCreate_v2(array: Out<usize>, shape: In<CUDA_ARRAY_DESCRIPTOR>);
    fn cuArray3DCreate_v2(array: Out<usize>, shape: In<CUDA_ARRAY3D_DESCRIPTOR>);
    fn cuArrayDestroy(array: usize);
    fn cuMipmappedArrayCreate(array: Out<usize>, shape: In<CUDA_ARRAY3D_DESCRIPTOR>, levels: u32);
    fn cuMipmappedArrayDestroy(array: usize);
    fn cuMemAllocManaged(address: Out<u64>, size: usize, flags: u32);
    fn cuModuleUnload(module: usize);
    fn cuModuleGetGlobal_v2(address: Out<u64>, size: Out<usize>, module: usize, name: *const c_char);
    fn cuLibraryGetKernel(kernel: Out<usize>, library: usize, name: *const c_char);
    fn cuLibraryLoadData(library: Out<usize>, code: *const c_char, jit: usize, jit_values: usize, jit_count: u32,
        options: usize, values: usize, count: u32);
    fn cuLibraryGetGlobal(address: Out<u64>, size: Out<usize>, library: usize, name: *const c_char);
    fn cuLibraryUnload(library: usize);
    fn cuCtxGetLimit(value: Out<usize>, limit: i32);
    fn cuCtxSetLimit(limit: i32, value: usize);
    fn cuImportExternalMemory(memory: Out<usize>, desc: In<CUDA_EXTERNAL_MEMORY_HANDLE_DESC>);
    fn cuExternalMemoryGetMappedBuffer(address: Out<u64>, memory: usize, desc: In<CUDA_EXTERNAL_MEMORY_BUFFER_DESC>);
    fn cuDestroyExternalMemory(memory: usize);
    fn cuDeviceGetUuid_v2(uuid: Out<[u8; 16]>, device: i32);
    fn cuMemAllocFromPoolAsync(address: Out<u64>, size: usize, pool: usize, stream: usize);
    fn cuMemPoolCreate(pool: Out<usize>, prop: In<CUmemPoolProps>);
    fn cuMemPoolDestroy(pool: usize);
    fn cuMemPoolTrimTo(pool: usize, keep: usize);
    fn cuMemPoolGetAttribute(pool: usize, attribute: i32, value: Out<u64>);
    fn cuMemPoolSetAttribute(pool: usize, attribute: i32, value: In<u64>);
    fn cuMemPoolSetAccess(pool: usize, access: In<CUmemAccessDesc>, count: usize);
    fn cuMemPoolGetAccess(flags: Out<i32>, pool: usize, location: In<CUmemLocation>);
    fn cuMemPoolExportToShareableHandle(handle: Out<i32>, pool: usize, kind: i32, flags: u64);
    fn cuMemPoolImportFromShareableHandle(pool: Out<usize>, handle: usize, kind: i32, flags: u64);
    fn cuMemPoolExportPointer(data: Out<CUmemPoolPtrExportData>, address: u64);
    fn cuMemPoolImportPointer(address: Out<u64>, pool: usize, data: In<CUmemPoolPtrExportData>);
    fn cuDeviceGetDefaultMemPool(pool: Out<usize>, device: i32);
    fn cuDeviceGetMemPool(pool: Out<usize>, device: i32);
    fn cuDeviceSetMemPool(device: i32, pool: usize);
    fn cuMemGetDefaultMemPool(pool: Out<usize>, location: In<CUmemLocation>, kind: i32);
    fn cuMemGetMemPool(pool: Out<usize>, location: In<CUmemLocation>, kind: i32);
    fn cuMemSetMemPool(location: In<CUmemLocation>, kind: i32, pool: usize);
    fn cuMemHostAlloc(address: Out<u64>, size: usize, flags: u32);
    fn cuMemFreeHost(address: u64);
    fn cuMemHostRegister_v2(address: u64, size: usize, flags: u32);
    fn cuMemHostUnregister(address: u64);
    fn cuMemGetAddressRange_v2(base: Out<u64>, size: Out<usize>, address: u64);
    fn cuPointerGetAttribute(data: Out<Room>, attribute: i32, address: u64);
    fn cuPointerGetAttributes(count: u32, attributes: In<i32>, data: In<*mut Room>, address: u64);
    fn cuMemGetAllocationGranularity(bytes: Out<usize>, prop: In<CUmemAllocationProp>, option: i32);
    fn cuMemAddressReserve(address: Out<u64>, size: usize, align: usize, wish: u64, flags: u64);
    fn cuMemAddressFree(address: u64, size: usize);
    fn cuMemCreate(handle: Out<u64>, size: usize, prop: In<CUmemAllocationProp>, flags: u64);
    fn cuMemRelease(handle: u64);
    fn cuMemRetainAllocationHandle(handle: Out<u64>, address: u64);
    fn cuMemMap(address: u64, size: usize, offset: usize, handle: u64, flags: u64);
    fn cuMemUnmap(address: u64, size: usize);
    fn cuMemSetAccess(address: u64, size: usize, access: In<CUmemAccessDesc>, count: usize);
    fn cuMemGetAccess(flags: Out<u64>, location: In<CUmemLocation>, address: u64);
    fn cuMemGetAllocationPropertiesFromHandle(prop: Out<CUmemAllocationProp>, handle: u64);
    fn cuMemExportToShareableHandle(descriptor: Out<i32>, handle: u64, kind: i32, flags: u64);
    fn cuMemImportFromShareableHandle(handle: Out<u64>, descriptor: usize, kind: i32);
    fn cuMemGetHandleForAddressRange(descriptor: Out<i32>, address: u64, size: usize, kind: i32, flags: u64);
    fn cuPointerSetAttribute(value: In<u32>, attribute: i32, address: u64);
    fn cuIpcGetMemHandle(handle: Out<IpcHandle>, address: u64);
    fn cuIpcOpenMemHandle_v2(address: Out<u64>, handle: IpcHandle, flags: u32);
    fn cuIpcCloseMemHandle(address: u64);
    fn cuDeviceCanAccessPeer(can: Out<i32>, device: i32, peer: i32);
    fn cuDeviceGetP2PAttribute(value: Out<i32>, attribute: i32, from: i32, to: i32);
    fn cuCtxEnablePeerAccess(context: usize, flags: u32);
    fn cuCtxDisablePeerAccess(context: usize);
    fn cuMemcpyPeerAsync(to: u64, to_context: usize, from: u64, from_context: usize, size: usize, stream: usize);
    fn cuMemcpy(to: u64, from: u64, size: usize);
    fn cuMemcpy_ptds(to: u64, from: u64, size: usize);
    fn cuMemcpyAsync(to: u64, from: u64, size: usize, stream: usize);
    fn cuMemcpyHtoD_v2(to: u64, from: u64, size: usize);
    fn cuMemcpyHtoDAsync_v2(to: u64, from: u64, size: usize, stream: usize);
    fn cuMemcpyDtoH_v2(to: u64, from: u64, size: usize);
    fn cuMemcpyDtoHAsync_v2(to: u64, from: u64, size: usize, stream: usize);
    fn cuMemcpyDtoD_v2(to: u64, from: u64, size: usize);
    fn cuMemcpyDtoD_v2_ptds(to: u64, from: u64, size: usize);
    fn cuMemcpyDtoDAsync_v2(to: u64, from: u64, size: usize, stream: usize);
    fn cuMemcpyPeer(to: u64, to_context: usize, from: u64, from_context: usize, size: usize);
    fn cuMemcpyBatchAsync_v2(to: In<[u64; 2]>, from: In<[u64; 2]>, sizes: In<[usize; 2]>, count: usize,
        attributes: In<CopyAttributes>, first: In<usize>, attributes_count: usize, stream: usize);
    fn cuMemcpy2D_v2(copy: &CUDA_MEMCPY2D);
    fn cuMemcpy2D_v2_ptds(copy: &CUDA_MEMCPY2D);
    fn cuMemcpy2DUnaligned_v2(copy: &CUDA_MEMCPY2D);
    fn cuMemcpy2DAsync_v2(copy: &CUDA_MEMCPY2D, stream: usize);
    fn cuMemcpy3D_v2(copy: &CUDA_MEMCPY3D);
    fn cuMemcpy3DPeer(copy: &CUDA_MEMCPY3D);
    fn cuMemsetD8_v2(to: u64, value: u8, count: usize);
    fn cuMemsetD8_v2_ptds(to: u64, value: u8, count: usize);
    fn cuMemsetD8Async(to: u64, value: u8, count: usize, stream: usize);
    fn cuMemsetD16Async(to: u64, value: u16, count: usize, stream: usize);
    fn cuMemsetD2D8Async(to: u64, pitch: usize, value: u8, width: usize, height: usize, stream: usize);
    fn cuMemsetD2D16Async(to: u64, pitch: usize, value: u16, width: usize, height: usize, stream: usize);
    fn cuMemsetD2D32Async(to: u64, pitch: usize, value: u32, width: usize, height: usize, stream: usize);
    fn cuMemcpy3DAsync_v2(copy: &CUDA_MEMCPY3D, stream: usize);
    fn cuMemcpy3DPeerAsync(copy: &CUDA_MEMCPY3D, stream: usize);
    fn cuMemsetD16_v2(to: u64, value: u16, count: usize);
    fn cuMemsetD32_v2(to: u64, value: u32, count: usize);
    fn cuMemsetD32Async(to: u64, value: u32, count: usize, stream: usize);
    fn cuMemsetD2D8_v2(to: u64, pitch: usize, value: u8, width: usize, height: usize);
    fn cuMemsetD2D8_v2_ptds(to: u64, pitch: usize, value: u8, width: usize, height: usize);
    fn cuMemsetD2D16_v2(to: u64, pitch: usize, value: u16, width: usize, height: usize);
    fn cuMemsetD2D32_v2(to: u64, pitch: usize, value: u32, width: usize, height: usize);
    fn cuStreamCreate(stream: Out<usize>, flags: u32);
    fn cuStreamSynchronize(stream: usize);
    fn cuStreamQuery(stream: usize);
    fn cuStreamWaitEvent(stream: usize, event: usize, flags: u32);
    fn cuStreamWriteValue32_v2(stream: usize, at: u64, value: u32, flags: u32);
    fn cuStreamIsCapturing(stream: usize, status: Out<i32>);
    fn cuStreamBeginCapture_v2(stream: usize, mode: i32);
    fn cuStreamEndCapture(stream: usize, graph: Out<usize>);
    fn cuThreadExchangeStreamCaptureMode(mode: Out<i32>);
    fn cuEventCreate(event: Out<usize>, flags: u32);
    fn cuEventRecord(event: usize, stream: usize);
    fn cuEventQuery(event: usize);
    fn cuEventSynchronize(event: usize);
    fn cuGraphInstantiateWithFlags(exec: Out<usize>, graph: usize, flags: u64);
    fn cuGraphLaunch(exec: usize, stream: usize);
    fn cuGraphDestroy(graph: usize);
    fn cuGraphExecDestroy(exec: usize);
    fn cuGraphInstantiateWithParams(exec: Out<usize>, graph: usize, params: Out<[u64; 4]>);
    fn cuGraphUpload(exec: usize, stream: usize);
    fn cuGraphCreate(graph: Out<usize>, flags: u32);
    fn cuGraphNodeGetType(node: usize, kind: Out<i32>);
    fn cuGraphAddKernelNode(node: Out<usize>, graph: usize, after: *const usize, count: usize, params: &CUDA_KERNEL_NODE_PARAMS_v1);
    fn cuGraphAddMemcpyNode(node: Out<usize>, graph: usize, after: *const usize, count: usize, params: &CUDA_MEMCPY3D, context: usize);
    fn cuGraphAddMemsetNode(node: Out<usize>, graph: usize, after: *const usize, count: usize, params: &CUDA_MEMSET_NODE_PARAMS, context: usize);
    fn cuGraphAddHostNode(node: Out<usize>, graph: usize, after: *const usize, count: usize, params: &CUDA_HOST_NODE_PARAMS);
    fn cuGraphAddEmptyNode(node: Out<usize>, graph: usize, after: *const usize, count: usize);
    fn cuGraphAddChildGraphNode(node: Out<usize>, graph: usize, after: *const usize, count: usize, child: usize);
    fn cuGraphAddEventRecordNode(node: Out<usize>, graph: usize, after: *const usize, count: usize, event: usize);
    fn cuGraphAddEventWaitNode(node: Out<usize>, graph: usize, after: *const usize, count: usize, event: usize);
    fn cuGraphAddMemAllocNode(node: Out<usize>, graph: usize, after: *const usize, count: usize, params: &mut CUDA_MEM_ALLOC_NODE_PARAMS);
    fn cuGraphAddMemFreeNode(node: Out<usize>, graph: usize, after: *const usize, count: usize, address: u64);
    fn cuGraphAddNode(node: Out<usize>, graph: usize, after: *const usize, count: usize, params: &mut CUgraphNodeParams);
    fn cuGraphAddNode_v2(node: Out<usize>, graph: usize, after: *const usize, edges: *const c_void, count: usize, params: &mut CUgraphNodeParams);
    fn cuGraphExecKernelNodeSetParams(exec: usize, node: usize, params: &CUDA_KERNEL_NODE_PARAMS_v1);
    fn cuGraphExecMemcpyNodeSetParams(exec: usize, node: usize, params: &CUDA_MEMCPY3D, context: usize);
    fn cuGraphExecMemsetNodeSetParams(exec: usize, node: usize, params: &CUDA_MEMSET_NODE_PARAMS, context: usize);
    fn cuGraphExecUpdate(exec: usize, graph: usize, node: Out<usize>, result: Out<i32>);
    fn cuGraphExecUpdate_v2(exec: usize, graph: usize, info: Out<[u64; 3]>);
    fn cuGraphGetNodes(graph: usize, nodes: *mut usize, count: &mut usize);
    fn cuGraphGetEdges(graph: usize, from: *mut usize, to: *mut usize, count: &mut usize);
    fn cuGraphGetEdges_v2(graph: usize, from: *mut usize, to: *mut usize, data: *mut u64, count: &mut usize);
    fn cuGraphClone(clone: Out<usize>, graph: usize);
    fn cuGraphNodeFindInClone(found: Out<usize>, node: usize, clone: usize);
    fn cuGraphKernelNodeGetParams_v2(node: usize, params: &mut CUDA_KERNEL_NODE_PARAMS);
    fn cuGraphMemcpyNodeGetParams(node: usize, params: &mut CUDA_MEMCPY3D);
    fn cuGraphMemsetNodeGetParams(node: usize, params: &mut CUDA_MEMSET_NODE_PARAMS);
    fn cuGraphBatchMemOpNodeGetParams(node: usize, params: &mut CUDA_BATCH_MEM_OP_NODE_PARAMS);
    fn cuGraphMemcpyNodeSetParams(node: usize, params: &CUDA_MEMCPY3D);
    fn cuGraphNodeSetEnabled(exec: usize, node: usize, on: u32);
    fn cuGraphNodeGetEnabled(exec: usize, node: usize, on: Out<u32>);
    fn cuKernelGetParamInfo(kernel: usize, index: usize, offset: Out<usize>, size: Out<usize>);
    fn cuDeviceGetGraphMemAttribute(device: i32, attribute: i32, value: Out<u64>);
    fn cuDeviceSetGraphMemAttribute(device: i32, attribute: i32, value: In<u64>);
    fn cuDeviceGraphMemTrim(device: i32);
    fn nvmlInit_v2();
    fn nvmlDeviceGetHandleByIndex_v2(index: u32, device: Out<usize>);
    fn nvmlDeviceGetHandleByUUID(uuid: *const c_char, device: Out<usize>);
    fn nvmlDeviceGetUUID(device: usize, text: Out<[u8; 96]>, room: u32);
    fn nvmlDeviceGetComputeRunningProcesses(device: usize, count: Out<u32>, infos: *mut u64);
    fn nvmlDeviceGetComputeRunningProcesses_v2(device: usize, count: Out<u32>, infos: *mut u64);
    fn nvmlDeviceGetComputeRunningProcesses_v3(device: usize, count: Out<u32>, infos: *mut u64);
    fn nvmlDeviceGetMaxPcieLinkGeneration(device: usize, generation: Out<u32>);
    fn nvmlDeviceGetMaxPcieLinkWidth(device: usize, lanes: Out<u32>);
    fn nvmlDeviceGetPcieThroughput(device: usize, counter: u32, kilobytes: Out<u32>);
    fn nvmlDeviceGetMemoryInfo(device: usize, memory: Out<greenboost_abi::nvmlMemory_t>);
    fn nvmlDeviceGetMemoryInfo_v2(device: usize, memory: Out<greenboost_abi::nvmlMemory_v2_t>);
}
