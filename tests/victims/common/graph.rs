//! Graphs by hand.

use crate::gpu::Gpu;
use crate::*;

/// A graph that is being made; each node waits for those that are named.
pub struct Graph<'a> {
    gpu: &'a Gpu,
    pub graph: CUgraph,
}

/// Parameters of a launch with one thread.
pub fn kernel(function: CUfunction, pointers: &mut [*mut c_void]) -> CUDA_KERNEL_NODE_PARAMS_v1 {
    CUDA_KERNEL_NODE_PARAMS_v1 {
        func: function,
        gridDimX: 1,
        gridDimY: 1,
        gridDimZ: 1,
        blockDimX: 1,
        blockDimY: 1,
        blockDimZ: 1,
        sharedMemBytes: 0,
        kernelParams: pointers.as_mut_ptr(),
        extra: std::ptr::null_mut(),
    }
}

/// A copy of rows.
pub fn rows(
    to: CUdeviceptr,
    from: CUdeviceptr,
    width: usize,
    height: usize,
    pitch: usize,
) -> CUDA_MEMCPY3D {
    CUDA_MEMCPY3D {
        srcXInBytes: 0,
        srcY: 0,
        srcZ: 0,
        srcLOD: 0,
        srcMemoryType: CU_MEMORYTYPE_DEVICE,
        srcHost: std::ptr::null(),
        srcDevice: from,
        srcArray: std::ptr::null_mut(),
        srcContext: std::ptr::null_mut(),
        srcPitch: pitch,
        srcHeight: 0,
        dstXInBytes: 0,
        dstY: 0,
        dstZ: 0,
        dstLOD: 0,
        dstMemoryType: CU_MEMORYTYPE_DEVICE,
        dstHost: std::ptr::null_mut(),
        dstDevice: to,
        dstArray: std::ptr::null_mut(),
        dstContext: std::ptr::null_mut(),
        dstPitch: pitch,
        dstHeight: 0,
        WidthInBytes: width,
        Height: height,
        Depth: 1,
    }
}

/// A copy of bytes.
pub fn line(to: CUdeviceptr, from: CUdeviceptr, bytes: usize) -> CUDA_MEMCPY3D {
    rows(to, from, bytes, 1, 0)
}

/// A memset of bytes.
pub fn bytes(to: CUdeviceptr, value: u8, count: usize) -> CUDA_MEMSET_NODE_PARAMS {
    CUDA_MEMSET_NODE_PARAMS {
        dst: to,
        pitch: 0,
        value: value.into(),
        elementSize: 1,
        width: count,
        height: 1,
    }
}

/// An allocation on device 0.
pub fn allocation(bytes: usize) -> CUDA_MEM_ALLOC_NODE_PARAMS {
    CUDA_MEM_ALLOC_NODE_PARAMS {
        poolProps: CUmemPoolProps {
            allocType: CU_MEM_ALLOCATION_TYPE_PINNED,
            handleTypes: 0,
            location: CUmemLocation {
                type_: CU_MEM_LOCATION_TYPE_DEVICE,
                id: 0,
            },
            win32SecurityAttributes: std::ptr::null_mut(),
            maxSize: 0,
            usage: 0,
            reserved: [0; 54],
        },
        accessDescs: std::ptr::null(),
        accessDescCount: 0,
        bytesize: bytes,
        dptr: 0,
    }
}

impl Graph<'_> {
    pub fn new(gpu: &Gpu) -> Graph<'_> {
        let mut graph = std::ptr::null_mut();
        ok(gpu.cuda.cuGraphCreate(&mut graph, 0));
        Graph { gpu, graph }
    }

    fn node(&self, make: impl FnOnce(*mut CUgraphNode) -> CUresult) -> CUgraphNode {
        let mut node = std::ptr::null_mut();
        ok(make(&mut node));
        node
    }

    pub fn launch(
        &self,
        after: &[CUgraphNode],
        function: CUfunction,
        arguments: &mut [u64],
    ) -> CUgraphNode {
        let mut pointers: Vec<*mut c_void> = arguments
            .iter_mut()
            .map(|a| std::ptr::from_mut(a).cast())
            .collect();
        let params = kernel(function, &mut pointers);
        self.node(|out| {
            let (cuda, n) = (&self.gpu.cuda, after.len());
            cuda.cuGraphAddKernelNode(out, self.graph, after.as_ptr(), n, &params)
        })
    }

    pub fn copy(&self, after: &[CUgraphNode], params: &CUDA_MEMCPY3D) -> CUgraphNode {
        self.node(|out| {
            let (cuda, n, context) = (&self.gpu.cuda, after.len(), self.gpu.context);
            cuda.cuGraphAddMemcpyNode(out, self.graph, after.as_ptr(), n, params, context)
        })
    }

    pub fn set(&self, after: &[CUgraphNode], params: &CUDA_MEMSET_NODE_PARAMS) -> CUgraphNode {
        self.node(|out| {
            let (cuda, n, context) = (&self.gpu.cuda, after.len(), self.gpu.context);
            cuda.cuGraphAddMemsetNode(out, self.graph, after.as_ptr(), n, params, context)
        })
    }

    pub fn host(
        &self,
        after: &[CUgraphNode],
        call: unsafe extern "C" fn(*mut c_void),
        user: *mut c_void,
    ) -> CUgraphNode {
        let params = CUDA_HOST_NODE_PARAMS {
            r#fn: Some(call),
            userData: user,
        };
        self.node(|out| {
            let (cuda, n) = (&self.gpu.cuda, after.len());
            cuda.cuGraphAddHostNode(out, self.graph, after.as_ptr(), n, &params)
        })
    }

    pub fn empty(&self, after: &[CUgraphNode]) -> CUgraphNode {
        self.node(|out| {
            let (cuda, n) = (&self.gpu.cuda, after.len());
            cuda.cuGraphAddEmptyNode(out, self.graph, after.as_ptr(), n)
        })
    }

    pub fn child(&self, after: &[CUgraphNode], child: &Graph) -> CUgraphNode {
        self.node(|out| {
            let (cuda, n) = (&self.gpu.cuda, after.len());
            cuda.cuGraphAddChildGraphNode(out, self.graph, after.as_ptr(), n, child.graph)
        })
    }

    /// The node, and its address.
    pub fn alloc(&self, after: &[CUgraphNode], bytes: usize) -> (CUgraphNode, CUdeviceptr) {
        let mut params = allocation(bytes);
        let node = self.node(|out| {
            let (cuda, n) = (&self.gpu.cuda, after.len());
            cuda.cuGraphAddMemAllocNode(out, self.graph, after.as_ptr(), n, &mut params)
        });
        (node, params.dptr)
    }

    pub fn free(&self, after: &[CUgraphNode], pointer: CUdeviceptr) -> CUgraphNode {
        self.node(|out| {
            let (cuda, n) = (&self.gpu.cuda, after.len());
            cuda.cuGraphAddMemFreeNode(out, self.graph, after.as_ptr(), n, pointer)
        })
    }

    pub fn instantiate(&self, flags: u64) -> CUgraphExec {
        let mut exec = std::ptr::null_mut();
        ok(self
            .gpu
            .cuda
            .cuGraphInstantiateWithFlags(&mut exec, self.graph, flags));
        exec
    }
}

impl Drop for Graph<'_> {
    fn drop(&mut self) {
        ok(self.gpu.cuda.cuGraphDestroy(self.graph));
    }
}
