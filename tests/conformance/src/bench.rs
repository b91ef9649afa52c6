//! A driver that is ready for work.

use std::ffi::CString;
use std::ptr;

use greenboost_abi::*;

use crate::api::Driver;
use crate::host::Host;

/// One MiB.
pub const MIB: usize = 1 << 20;
/// What the driver maps by.
pub const GRANULE: usize = 2 * MIB;

/// The kernels: real on the GPU, built in on the simulation.
const PTX: &str = include_str!("../../../assets/selftest.ptx");

/// Stops the check when a step fails that is not what the check is about.
#[track_caller]
pub fn must(code: i32, what: &str) {
    assert!(code == 0, "{what} returned {code}");
}

/// One physical piece of a range.
#[derive(Clone, Copy, Debug)]
pub struct Chunk {
    /// Offset in the range.
    pub at: usize,
    /// Bytes.
    pub size: usize,
    /// What `cuMemCreate` gave.
    pub handle: u64,
}

/// A reserved range, backed by chunks.
#[derive(Clone, Debug)]
pub struct Range {
    /// Its address.
    pub p: u64,
    /// Bytes.
    pub size: usize,
    /// What is behind it.
    pub chunks: Vec<Chunk>,
}

/// Device 0 with its primary context current, and the kernels loaded.
#[derive(Debug)]
pub struct Bench {
    /// The functions.
    pub cu: Driver,
    /// The primary context.
    pub context: usize,
    /// The host NUMA node of the device.
    pub node: i32,
    module: usize,
}

/// The properties of VRAM, or of memory on a host NUMA node.
pub fn prop(host: bool, node: i32) -> CUmemAllocationProp {
    let location = match host {
        true => CUmemLocation {
            type_: CU_MEM_LOCATION_TYPE_HOST_NUMA,
            id: node,
        },
        false => CUmemLocation {
            type_: CU_MEM_LOCATION_TYPE_DEVICE,
            id: 0,
        },
    };
    CUmemAllocationProp {
        type_: CU_MEM_ALLOCATION_TYPE_PINNED,
        requestedHandleTypes: CU_MEM_HANDLE_TYPE_NONE,
        location,
        win32HandleMetaData: ptr::null_mut(),
        allocFlags: CUmemAllocFlags::default(),
    }
}

/// Rights of device 0.
pub fn access(flags: i32) -> CUmemAccessDesc {
    let location = CUmemLocation {
        type_: CU_MEM_LOCATION_TYPE_DEVICE,
        id: 0,
    };
    CUmemAccessDesc { location, flags }
}

/// The node to ask for host memory on.
pub fn node(cu: &Driver) -> i32 {
    let mut node = -1;
    let code = cu.cuDeviceGetAttribute(Some(&mut node), CU_DEVICE_ATTRIBUTE_HOST_NUMA_ID, 0);
    if code == 0 { node.max(0) } else { 0 }
}

/// Whether the driver backs ranges with host memory.
pub fn host_vmm(cu: &Driver) -> bool {
    let mut yes = 0;
    let attribute = CU_DEVICE_ATTRIBUTE_HOST_NUMA_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED;
    cu.cuDeviceGetAttribute(Some(&mut yes), attribute, 0) == 0 && yes != 0
}

/// Loads the driver; its absence ends the check.
pub fn load() -> Driver {
    Driver::load().unwrap_or_else(|e| panic!("libcuda.so.1 cannot be loaded: {e}"))
}

impl Bench {
    /// Makes everything ready.
    pub fn open() -> Bench {
        Bench::of(load())
    }

    /// The same, for a driver that was looked at before.
    pub fn of(cu: Driver) -> Bench {
        must(cu.cuInit(0), "cuInit");
        let node = node(&cu);
        let mut bench = Bench {
            cu,
            context: 0,
            node,
            module: 0,
        };
        bench.enter();
        bench
    }

    /// Retains the primary context, makes it current and loads the kernels into it.
    pub fn enter(&mut self) {
        must(
            self.cu.cuDevicePrimaryCtxRetain(Some(&mut self.context), 0),
            "cuDevicePrimaryCtxRetain",
        );
        must(self.cu.cuCtxSetCurrent(self.context), "cuCtxSetCurrent");
        let text = CString::new(PTX).expect("PTX has no NUL");
        must(
            self.cu
                .cuModuleLoadData(Some(&mut self.module), text.as_ptr()),
            "cuModuleLoadData",
        );
        // The first launch loads the code, which is not possible during a capture.
        let p = self.alloc(64);
        for (kernel, args) in [
            ("gb_fill", &[p, 1, 1][..]),
            ("gb_check", &[p, 1, 1, p + 8]),
            ("gb_add", &[p, 1, 1]),
            ("gb_axpy", &[p, p + 16, 1, 1]),
            ("gb_sum", &[p, 1, p + 8]),
            ("gb_deref", &[p, 0, 1]),
            ("gb_spin", &[1000]),
        ] {
            must(self.launch(kernel, 0, args), kernel);
        }
        self.done();
        must(self.cu.cuMemFree_v2(p), "cuMemFree");
    }

    /// A kernel of the module.
    pub fn function(&self, name: &str) -> usize {
        let (name, mut function) = (CString::new(name).expect("no NUL"), 0);
        must(
            self.cu
                .cuModuleGetFunction(Some(&mut function), self.module, name.as_ptr()),
            "cuModuleGetFunction",
        );
        function
    }

    /// Launches a kernel; the answer of the call.
    pub fn launch(&self, name: &str, stream: usize, args: &[u64]) -> i32 {
        let pointers: Vec<*const u64> = args.iter().map(ptr::from_ref).collect();
        // One thread spins; the others share the work.
        let (grid, block) = if name == "gb_spin" { (1, 1) } else { (32, 256) };
        let function = self.function(name);
        self.cu.cuLaunchKernel(
            function,
            grid,
            1,
            1,
            block,
            1,
            1,
            0,
            stream,
            pointers.as_ptr(),
            ptr::null(),
        )
    }

    /// Keeps a stream busy.
    pub fn spin(&self, stream: usize, ms: u64) {
        must(self.launch("gb_spin", stream, &[ms * 1_000_000]), "gb_spin");
    }

    /// Waits for everything.
    pub fn done(&self) {
        must(self.cu.cuCtxSynchronize(), "cuCtxSynchronize");
    }

    /// `cuMemAlloc`
    pub fn alloc(&self, size: usize) -> u64 {
        let mut p = 0;
        must(self.cu.cuMemAlloc_v2(Some(&mut p), size), "cuMemAlloc");
        p
    }

    /// Pinned host memory.
    pub fn pinned(&self, size: usize) -> u64 {
        let mut p = 0;
        must(
            self.cu.cuMemHostAlloc(Some(&mut p), size, 0),
            "cuMemHostAlloc",
        );
        p
    }

    /// Physical memory.
    pub fn create(&self, size: usize, host: bool) -> u64 {
        let mut handle = 0;
        let code = self
            .cu
            .cuMemCreate(Some(&mut handle), size, Some(&prop(host, self.node)), 0);
        must(
            code,
            if host {
                "cuMemCreate on the host"
            } else {
                "cuMemCreate"
            },
        );
        handle
    }

    /// A virtual range with nothing behind it.
    pub fn reserve(&self, size: usize) -> u64 {
        let mut p = 0;
        must(
            self.cu
                .cuMemAddressReserve(Some(&mut p), size, GRANULE, 0, 0),
            "cuMemAddressReserve",
        );
        p
    }

    /// Maps a whole handle, with read and write access.
    pub fn map(&self, p: u64, size: usize, handle: u64) {
        must(self.cu.cuMemMap(p, size, 0, handle, 0), "cuMemMap");
        self.open_access(p, size);
    }

    /// Read and write access for device 0.
    pub fn open_access(&self, p: u64, size: usize) {
        must(
            self.cu.cuMemSetAccess(p, size, Some(&access(3)), 1),
            "cuMemSetAccess",
        );
    }

    /// A range by places and MiB: `V2 H20 V64`. Mapped, without access.
    pub fn closed(&self, layout: &str) -> Range {
        let mut range = Range {
            p: 0,
            size: 0,
            chunks: Vec::new(),
        };
        for piece in layout.split_whitespace() {
            let (place, mib) = piece.split_at(1);
            let size = mib.parse::<usize>().expect("a number of MiB") * MIB;
            let handle = self.create(size, place == "H");
            range.chunks.push(Chunk {
                at: range.size,
                size,
                handle,
            });
            range.size += size;
        }
        range.p = self.reserve(range.size);
        for c in &range.chunks {
            must(
                self.cu
                    .cuMemMap(range.p + c.at as u64, c.size, 0, c.handle, 0),
                "cuMemMap",
            );
        }
        range
    }

    /// The same, with access.
    pub fn range(&self, layout: &str) -> Range {
        let range = self.closed(layout);
        self.open_access(range.p, range.size);
        range
    }

    /// Maps all chunks again, after all were unmapped.
    pub fn remap(&self, range: &Range) {
        for c in &range.chunks {
            must(
                self.cu
                    .cuMemMap(range.p + c.at as u64, c.size, 0, c.handle, 0),
                "cuMemMap",
            );
        }
        self.open_access(range.p, range.size);
    }

    /// A blocking (0) or non-blocking (1) stream.
    pub fn stream(&self, flags: u32) -> usize {
        let mut stream = 0;
        must(
            self.cu.cuStreamCreate(Some(&mut stream), flags),
            "cuStreamCreate",
        );
        stream
    }

    /// An event without timing.
    pub fn event(&self) -> usize {
        let mut event = 0;
        must(self.cu.cuEventCreate(Some(&mut event), 2), "cuEventCreate");
        event
    }

    /// A word of device memory, once everything before it is done; or what the copy returned.
    pub fn read(&self, p: u64) -> Result<u64, i32> {
        let word = Host::new(8);
        match self.cu.cuMemcpyDtoH_v2(word.address, p, 8) {
            0 => Ok(word.word(0)),
            code => Err(code),
        }
    }

    /// Sets a word of device memory.
    pub fn write(&self, p: u64, value: u64) {
        let word = Host::new(8);
        word.set(0, value);
        must(self.cu.cuMemcpyHtoD_v2(p, word.address, 8), "cuMemcpyHtoD");
    }

    /// Fills a range with the pattern of a seed.
    pub fn fill(&self, p: u64, size: usize, seed: u64) {
        must(
            self.launch("gb_fill", 0, &[p, size as u64 / 8, seed]),
            "gb_fill",
        );
    }

    /// How many words of a range are not those of the seed.
    pub fn wrong(&self, p: u64, size: usize, seed: u64) -> u64 {
        let out = self.alloc(8);
        must(self.cu.cuMemsetD8_v2(out, 0, 8), "cuMemsetD8");
        must(
            self.launch("gb_check", 0, &[p, size as u64 / 8, seed, out]),
            "gb_check",
        );
        let wrong = self
            .read(out)
            .unwrap_or_else(|code| panic!("reading back returned {code}"));
        must(self.cu.cuMemFree_v2(out), "cuMemFree");
        wrong
    }

    /// Runs in a thread of its own that has the context current.
    pub fn elsewhere<T: Send>(&self, act: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                must(self.cu.cuCtxSetCurrent(self.context), "cuCtxSetCurrent");
                act()
            });
            thread.join().expect("the thread does not panic")
        })
    }
}
