//! A driver, a device, a context: where most victims begin.

use crate::*;

/// A driver with device 0 and its primary context, current on the opening thread.
pub struct Gpu {
    pub cuda: Driver,
    pub device: CUdevice,
    pub context: CUcontext,
}

// SAFETY: driver handles may be used from every thread.
unsafe impl Sync for Gpu {}
// SAFETY: as above.
unsafe impl Send for Gpu {}

/// Properties of a pool on a device; `types`: as what it may leave the process.
pub fn pool_props(device: CUdevice, types: c_int) -> CUmemPoolProps {
    CUmemPoolProps {
        allocType: CU_MEM_ALLOCATION_TYPE_PINNED,
        handleTypes: types,
        location: CUmemLocation {
            type_: CU_MEM_LOCATION_TYPE_DEVICE,
            id: device,
        },
        win32SecurityAttributes: std::ptr::null_mut(),
        maxSize: 0,
        usage: 0,
        reserved: [0; 54],
    }
}

impl Gpu {
    /// A pool of its own.
    pub fn pool(&self) -> CUmemoryPool {
        let mut pool = std::ptr::null_mut();
        let props = pool_props(self.device, CU_MEM_HANDLE_TYPE_NONE);
        ok(self.cuda.cuMemPoolCreate(&mut pool, &props));
        pool
    }

    /// One of a pool's 64-bit numbers.
    pub fn pool_number(&self, pool: CUmemoryPool, attribute: CUmemPool_attribute) -> u64 {
        let mut value = 0;
        ok(self.cuda.cuMemPoolGetAttribute(pool, attribute, &mut value));
        value
    }

    /// Reached as `REACH` says.
    pub fn open() -> Gpu {
        Gpu::with(Driver::reach())
    }

    pub fn with(cuda: Driver) -> Gpu {
        ok(cuda.cuInit(0));
        Gpu::on(cuda, 0)
    }

    pub fn on(cuda: Driver, ordinal: c_int) -> Gpu {
        let mut device = -1;
        ok(cuda.cuDeviceGet(&mut device, ordinal));
        let mut context = std::ptr::null_mut();
        ok(cuda.cuDevicePrimaryCtxRetain(&mut context, device));
        ok(cuda.cuCtxSetCurrent(context));
        Gpu {
            cuda,
            device,
            context,
        }
    }

    /// Makes the context current on this thread.
    pub fn enter(&self) {
        ok(self.cuda.cuCtxSetCurrent(self.context));
    }

    pub fn try_alloc(&self, bytes: usize) -> Result<CUdeviceptr, CUresult> {
        let mut p = 0;
        match self.cuda.cuMemAlloc_v2(&mut p, bytes) {
            CUDA_SUCCESS => {
                assert_ne!(p, 0, "success without an address");
                Ok(p)
            }
            e => Err(e),
        }
    }

    #[track_caller]
    pub fn alloc(&self, bytes: usize) -> CUdeviceptr {
        self.try_alloc(bytes).expect("cuMemAlloc")
    }

    #[track_caller]
    pub fn free(&self, p: CUdeviceptr) {
        ok(self.cuda.cuMemFree_v2(p));
    }

    #[track_caller]
    pub fn write(&self, to: CUdeviceptr, bytes: &[u8]) {
        ok(self
            .cuda
            .cuMemcpyHtoD_v2(to, bytes.as_ptr().cast(), bytes.len()));
    }

    #[track_caller]
    pub fn read(&self, from: CUdeviceptr, len: usize) -> Vec<u8> {
        let mut out = vec![0xEE; len];
        ok(self
            .cuda
            .cuMemcpyDtoH_v2(out.as_mut_ptr().cast(), from, len));
        out
    }

    pub fn stream(&self, flags: c_uint) -> CUstream {
        let mut s = std::ptr::null_mut();
        ok(self.cuda.cuStreamCreate(&mut s, flags));
        s
    }

    pub fn memory(&self) -> (usize, usize) {
        let (mut free, mut total) = (0, 0);
        ok(self.cuda.cuMemGetInfo_v2(&mut free, &mut total));
        (free, total)
    }

    /// A numeric pointer attribute, or the driver's error.
    pub fn attribute(&self, p: CUdeviceptr, attribute: c_int) -> Result<u64, CUresult> {
        let mut value = [0u64; 2];
        match self
            .cuda
            .cuPointerGetAttribute(value.as_mut_ptr().cast(), attribute, p)
        {
            CUDA_SUCCESS => Ok(value[0]),
            e => Err(e),
        }
    }

    /// Allocates, fills by one pattern, reads back, frees: the GPU works.
    pub fn works(&self, seed: u64, bytes: usize) {
        let p = self.alloc(bytes);
        let data = pattern(seed, bytes);
        self.write(p, &data);
        assert!(self.read(p, bytes) == data, "bytes changed");
        self.free(p);
    }
}

/// The kernels that the simulated driver has built in. They work on words of eight bytes at addresses that are multiples
/// of eight; of their code only the declarations are there.
pub struct Kernels {
    fill: CUfunction,
    add: CUfunction,
    axpy: CUfunction,
    check: CUfunction,
    spin: CUfunction,
    deref: CUfunction,
    store: CUfunction,
}

// SAFETY: functions may be launched from every thread.
unsafe impl Sync for Kernels {}

const PTX: &str = "
.version 7.0
.target sm_50
.address_size 64
.visible .entry gb_fill(.param .u64 p, .param .u64 n, .param .u64 seed) { ret; }
.visible .entry gb_add(.param .u64 p, .param .u64 n, .param .u64 value) { ret; }
.visible .entry gb_axpy(.param .u64 to, .param .u64 from, .param .u64 n, .param .u64 factor) { ret; }
.visible .entry gb_check(.param .u64 p, .param .u64 n, .param .u64 seed, .param .u64 wrong) { ret; }
.visible .entry gb_spin(.param .u64 nanoseconds) { ret; }
.visible .entry gb_deref(.param .u64 table, .param .u64 n, .param .u64 value) { ret; }
.visible .entry gb_store(.param .u64 to, .param .u64 word) { ret; }
";

impl Kernels {
    pub fn load(gpu: &Gpu) -> Kernels {
        let text = c(PTX);
        let mut module = std::ptr::null_mut();
        ok(gpu.cuda.cuModuleLoadData(&mut module, text.as_ptr().cast()));
        let get = |name: &str| {
            let name = c(name);
            let mut f = std::ptr::null_mut();
            ok(gpu.cuda.cuModuleGetFunction(&mut f, module, name.as_ptr()));
            f
        };
        Kernels {
            fill: get("gb_fill"),
            add: get("gb_add"),
            axpy: get("gb_axpy"),
            check: get("gb_check"),
            spin: get("gb_spin"),
            deref: get("gb_deref"),
            store: get("gb_store"),
        }
    }

    /// One of them.
    pub fn any(&self) -> CUfunction {
        self.fill
    }

    /// By `kernelParams`, or by an `extra` buffer when the last argument is odd.
    fn launch(&self, gpu: &Gpu, f: CUfunction, stream: CUstream, arguments: &mut [u64]) {
        let none: *mut c_void = std::ptr::null_mut();
        let one = 1 as c_uint;
        if arguments.last().is_some_and(|last| last & 1 == 0) {
            let mut pointers: Vec<*mut c_void> = arguments
                .iter_mut()
                .map(|a| std::ptr::from_mut(a).cast())
                .collect();
            ok(gpu.cuda.cuLaunchKernel(
                f,
                one,
                one,
                one,
                one,
                one,
                one,
                0,
                stream,
                pointers.as_mut_ptr(),
                none.cast(),
            ));
        } else {
            let mut size = size_of_val(arguments);
            let mut extra = [
                CU_LAUNCH_PARAM_BUFFER_POINTER as *mut c_void,
                arguments.as_mut_ptr().cast(),
                CU_LAUNCH_PARAM_BUFFER_SIZE as *mut c_void,
                (&raw mut size).cast(),
                CU_LAUNCH_PARAM_END as *mut c_void,
            ];
            ok(gpu.cuda.cuLaunchKernel(
                f,
                one,
                one,
                one,
                one,
                one,
                one,
                0,
                stream,
                none.cast(),
                extra.as_mut_ptr(),
            ));
        }
    }

    /// The word that [`Kernels::fill`] writes at an index.
    pub fn filled(seed: u64, index: u64) -> u64 {
        Numbers(seed.wrapping_add(index)).draw()
    }

    pub fn fill(&self, gpu: &Gpu, stream: CUstream, p: CUdeviceptr, words: u64, seed: u64) {
        self.launch(gpu, self.fill, stream, &mut [p, words, seed]);
    }

    /// The function of [`Kernels::fill`], for graph nodes.
    pub fn fill_function(&self) -> CUfunction {
        self.fill
    }

    /// The function of [`Kernels::add`], for graph nodes.
    pub fn add_function(&self) -> CUfunction {
        self.add
    }

    /// The function of [`Kernels::axpy`], for graph nodes.
    pub fn axpy_function(&self) -> CUfunction {
        self.axpy
    }

    /// The function of [`Kernels::spin`], for graph nodes.
    pub fn spin_function(&self) -> CUfunction {
        self.spin
    }

    /// Adds to every word.
    pub fn add(&self, gpu: &Gpu, stream: CUstream, p: CUdeviceptr, words: u64, value: u64) {
        self.launch(gpu, self.add, stream, &mut [p, words, value]);
    }

    /// `to = to * factor + from`, word by word.
    pub fn axpy(
        &self,
        gpu: &Gpu,
        stream: CUstream,
        to: CUdeviceptr,
        from: CUdeviceptr,
        words: u64,
        factor: u64,
    ) {
        self.launch(gpu, self.axpy, stream, &mut [to, from, words, factor]);
    }

    /// Adds to the word at `wrong` how many words are not what [`Kernels::fill`] wrote.
    pub fn check(
        &self,
        gpu: &Gpu,
        stream: CUstream,
        p: CUdeviceptr,
        words: u64,
        seed: u64,
        wrong: CUdeviceptr,
    ) {
        self.launch(gpu, self.check, stream, &mut [p, words, seed, wrong]);
    }

    /// Adds to each word that the table names.
    pub fn deref(&self, gpu: &Gpu, stream: CUstream, table: CUdeviceptr, n: u64, value: u64) {
        self.launch(gpu, self.deref, stream, &mut [table, n, value]);
    }

    /// Writes a word.
    pub fn store(&self, gpu: &Gpu, stream: CUstream, to: CUdeviceptr, word: u64) {
        self.launch(gpu, self.store, stream, &mut [to, word]);
    }

    pub fn spin(&self, gpu: &Gpu, stream: CUstream, nanoseconds: u64) {
        self.launch(gpu, self.spin, stream, &mut [nanoseconds]);
    }
}
