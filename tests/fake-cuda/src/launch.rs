//! The launch calls: arguments are copied at the call, addresses mean what they mean at the run.
use core::ffi::{c_int, c_uint, c_void};
use std::sync::Arc;

use greenboost_abi::{
    CU_LAUNCH_PARAM_BUFFER_POINTER, CU_LAUNCH_PARAM_BUFFER_SIZE, CU_LAUNCH_PARAM_END,
    CUDA_ERROR_INVALID_HANDLE, CUDA_ERROR_INVALID_VALUE, CUDA_ERROR_NOT_SUPPORTED,
    CUDA_KERNEL_NODE_PARAMS, CUDA_KERNEL_NODE_PARAMS_v1, CUfunction, CUlaunchConfig,
};

use crate::abi::{In, Res};
use crate::gate::Flavour;
use crate::kernel::{self, Builtin};
use crate::misuse::misuse;
use crate::ptx::Param;
use crate::queue::Range;
use crate::va::Fault;
use crate::work::{Site, Work};
use crate::world::{World, world};

pub(crate) struct Launch {
    builtin: &'static Builtin,
    args: Vec<u64>,
    /// What it was made from, for who asks: the handle, and every argument in full.
    handle: usize,
    shape: Shape,
    _arguments: Vec<Vec<u8>>,
    pointers: Vec<usize>,
}

impl Launch {
    pub(crate) fn name(&self) -> &'static str {
        self.builtin.name
    }

    pub(crate) fn run(&self, site: &Site) -> Result<(), Fault> {
        self.builtin.run(site, &self.args)
    }

    /// As `cuGraphKernelNodeGetParams` tells it; the pointers are good while the launch is.
    pub(crate) fn told(&self, w: &World) -> CUDA_KERNEL_NODE_PARAMS {
        let kernel = w.kernels.contains_key(&self.handle);
        let either = |is: bool| if is { self.handle } else { 0 };
        let ([gridDimX, gridDimY, gridDimZ], [blockDimX, blockDimY, blockDimZ]) =
            (self.shape.grid, self.shape.block);
        CUDA_KERNEL_NODE_PARAMS {
            v1: CUDA_KERNEL_NODE_PARAMS_v1 {
                func: either(!kernel) as CUfunction,
                gridDimX,
                gridDimY,
                gridDimZ,
                blockDimX,
                blockDimY,
                blockDimZ,
                sharedMemBytes: self.shape.shared,
                kernelParams: self.pointers.as_ptr().cast_mut().cast(),
                extra: std::ptr::null_mut(),
            },
            kern: either(kernel) as *mut c_void,
            ctx: std::ptr::null_mut(),
        }
    }

    /// What the launch names: every range that an argument reaches, and at least its first byte.
    pub(crate) fn ranges(&self) -> Vec<Range> {
        let touches = (self.builtin.touches)(&self.args);
        touches
            .iter()
            .map(|t| (t.va, t.va.saturating_add(t.len.max(1))))
            .collect()
    }
}

/// `kernelParams`: one pointer per parameter.
fn from_pointers(params: &[Param], pointers: *const *const c_void) -> Res<Vec<Vec<u8>>> {
    let value = |(i, param): (usize, &Param)| {
        // SAFETY: the caller vouches for one pointer per parameter, and for what each points to.
        unsafe {
            let at = pointers.add(i).read();
            if at.is_null() {
                Err(CUDA_ERROR_INVALID_VALUE)
            } else {
                Ok(bytes(at.cast(), param.size))
            }
        }
    };
    params.iter().enumerate().map(value).collect()
}

/// `extra`: a list of keys and values that names one buffer.
fn from_buffer(params: &[Param], extra: *const *const c_void) -> Res<Vec<Vec<u8>>> {
    let (mut buffer, mut size) = (std::ptr::null::<u8>(), 0usize);
    let mut at = 0;
    loop {
        // SAFETY: the caller vouches for a list that ends with the end key.
        let (key, value) = unsafe {
            let key = extra.add(at).read() as usize;
            (
                key,
                if key == CU_LAUNCH_PARAM_END {
                    std::ptr::null()
                } else {
                    extra.add(at + 1).read()
                },
            )
        };
        match key {
            CU_LAUNCH_PARAM_END => break,
            CU_LAUNCH_PARAM_BUFFER_POINTER => buffer = value.cast(),
            CU_LAUNCH_PARAM_BUFFER_SIZE if !value.is_null() => {
                // SAFETY: this key's value points to the size.
                size = unsafe { value.cast::<usize>().read_unaligned() }
            }
            _ => return Err(CUDA_ERROR_INVALID_VALUE),
        }
        at += 2;
    }
    let needed = params.last().map_or(0, |p| p.offset + p.size);
    if size < needed || (buffer.is_null() && needed > 0) {
        return Err(CUDA_ERROR_INVALID_VALUE);
    }
    // SAFETY: the buffer is as long as its size says, which covers every parameter.
    Ok(params
        .iter()
        .map(|p| unsafe { bytes(buffer.add(p.offset), p.size) })
        .collect())
}

/// An argument.
///
/// # Safety
/// `size` bytes at `at` must be readable.
unsafe fn bytes(at: *const u8, size: usize) -> Vec<u8> {
    // SAFETY: promised by the caller.
    unsafe { std::slice::from_raw_parts(at, size) }.to_vec()
}

/// The first eight bytes of an argument, or all of a shorter one.
fn word(argument: &[u8]) -> u64 {
    let mut word = [0; 8];
    let size = argument.len().min(8);
    word[..size].copy_from_slice(&argument[..size]);
    u64::from_le_bytes(word)
}

#[derive(Clone, Copy)]
struct Shape {
    grid: [c_uint; 3],
    block: [c_uint; 3],
    shared: c_uint,
}

struct Arguments {
    pointers: *const *const c_void,
    extra: *const *const c_void,
}

/// A launch that can run in this context.
fn build(
    w: &mut World,
    ctx: usize,
    handle: usize,
    shape: &Shape,
    arguments: &Arguments,
) -> Res<Launch> {
    let function = w.function(handle)?.clone();
    if !w.works_for(ctx, function.ctx) {
        return Err(CUDA_ERROR_INVALID_HANDLE);
    }
    let threads = shape
        .block
        .iter()
        .try_fold(1u32, |n, d| n.checked_mul(*d))
        .unwrap_or(u32::MAX);
    let bounded =
        threads <= 1024 && shape.block[2] <= 64 && shape.grid[1] <= 65535 && shape.grid[2] <= 65535;
    if !bounded || threads == 0 || shape.grid.contains(&0) || shape.shared > 232_448 {
        return Err(CUDA_ERROR_INVALID_VALUE);
    }
    let arguments = match (arguments.pointers.is_null(), arguments.extra.is_null()) {
        (false, false) => return Err(CUDA_ERROR_INVALID_VALUE),
        (false, true) => from_pointers(&function.params, arguments.pointers)?,
        (true, false) => from_buffer(&function.params, arguments.extra)?,
        (true, true) if function.params.is_empty() => Vec::new(),
        (true, true) => return Err(CUDA_ERROR_INVALID_VALUE),
    };
    let args: Vec<u64> = arguments.iter().map(|a| word(a)).collect();
    let Some(builtin) = kernel::find(&function.name).filter(|b| b.params == args.len()) else {
        misuse!(
            "launch of {} with {} parameters, which is not built in",
            function.name,
            args.len()
        );
        return Err(CUDA_ERROR_NOT_SUPPORTED);
    };
    let pointers = arguments.iter().map(|a| a.as_ptr() as usize).collect();
    Ok(Launch {
        builtin,
        args,
        handle,
        shape: *shape,
        _arguments: arguments,
        pointers,
    })
}

/// The launch that a kernel node makes.
pub(crate) fn node(w: &mut World, ctx: usize, p: &CUDA_KERNEL_NODE_PARAMS_v1) -> Res<Launch> {
    let shape = Shape {
        grid: [p.gridDimX, p.gridDimY, p.gridDimZ],
        block: [p.blockDimX, p.blockDimY, p.blockDimZ],
        shared: p.sharedMemBytes,
    };
    let arguments = Arguments {
        pointers: p.kernelParams as *const *const c_void,
        extra: p.extra as *const *const c_void,
    };
    build(w, ctx, p.func as usize, &shape, &arguments)
}

fn launch(
    handle: usize,
    shape: &Shape,
    stream: usize,
    arguments: &Arguments,
    flavour: Flavour,
) -> Res {
    let mut w = world();
    let sid = w.stream(stream, flavour)?;
    let ctx = w.streams[&sid].ctx;
    let launch = build(&mut w, ctx, handle, shape, arguments)?;
    let ranges = launch.ranges();
    w.submit(
        sid,
        launch.builtin.name,
        Work::Launch(Arc::new(launch)),
        ranges,
        Vec::new(),
    )
    .map(drop)
}

api! {
    Context cuLaunchKernel {
        4000 cuLaunchKernel Legacy,
        7000 cuLaunchKernel_ptsz PerThread,
    } (
        function: usize, gx: c_uint, gy: c_uint, gz: c_uint, bx: c_uint, by: c_uint, bz: c_uint, shared: c_uint,
        stream: usize, pointers: *const *const c_void, extra: *const *const c_void,
    ) |f| {
        let shape = Shape { grid: [gx, gy, gz], block: [bx, by, bz], shared };
        launch(function, &shape, stream, &Arguments { pointers, extra }, f)
    }
    Context cuLaunchKernelEx {
        11060 cuLaunchKernelEx Legacy,
        11060 cuLaunchKernelEx_ptsz PerThread,
    } (config: In<CUlaunchConfig>, function: usize, pointers: *const *const c_void, extra: *const *const c_void) |f| {
        let c = config.get()?;
        let shape = Shape {
            grid: [c.gridDimX, c.gridDimY, c.gridDimZ],
            block: [c.blockDimX, c.blockDimY, c.blockDimZ],
            shared: c.sharedMemBytes,
        };
        launch(function, &shape, c.hStream as usize, &Arguments { pointers, extra }, f)
    }
    Context cuLaunchCooperativeKernel {
        9000 cuLaunchCooperativeKernel Legacy,
        9000 cuLaunchCooperativeKernel_ptsz PerThread,
    } (
        function: usize, gx: c_uint, gy: c_uint, gz: c_uint, bx: c_uint, by: c_uint, bz: c_uint, shared: c_uint,
        stream: usize, pointers: *const *const c_void,
    ) |f| {
        let shape = Shape { grid: [gx, gy, gz], block: [bx, by, bz], shared };
        launch(function, &shape, stream, &Arguments { pointers, extra: std::ptr::null() }, f)
    }
    Context cuFuncSetBlockShape { 2000 cuFuncSetBlockShape Legacy } (function: usize, x: c_int, y: c_int, z: c_int) |_f| {
        let _ = (function, x, y, z);
        Err(CUDA_ERROR_NOT_SUPPORTED)
    }
}
