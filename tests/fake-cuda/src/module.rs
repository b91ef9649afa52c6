//! Modules: PTX text becomes functions and variables of a context.
use core::ffi::{c_char, c_int, c_uint, c_void};

use greenboost_abi::{
    CUDA_ERROR_INVALID_HANDLE, CUDA_ERROR_INVALID_IMAGE, CUDA_ERROR_INVALID_PTX,
    CUDA_ERROR_INVALID_VALUE, CUDA_ERROR_NOT_FOUND,
};

use crate::abi::{Out, Res, Text};
use crate::error::FILE_NOT_FOUND;
use crate::misuse::misuse;
use crate::ptx::{self, Param, Parsed};
use crate::world::{Kind, World, world};

pub(crate) struct Module {
    pub ctx: usize,
    functions: Vec<usize>,
    globals: Vec<(String, u64, u64)>,
}

impl Module {
    /// Whether one of this module's variables lies there.
    pub(crate) fn owns(&self, va: u64) -> bool {
        self.globals.iter().any(|(_, at, _)| *at == va)
    }
}

#[derive(Clone)]
pub(crate) struct Function {
    pub ctx: usize,
    pub module: usize,
    pub name: String,
    /// The name as a C string that lives as long as the process.
    pub c_name: &'static [u8],
    pub params: Vec<Param>,
    pub attributes: [c_int; 16],
}

/// What `cuFuncGetAttribute` says by default; the order is that of `CUfunction_attribute`.
pub(crate) const ATTRIBUTES: [c_int; 16] =
    [1024, 0, 0, 0, 32, 80, 90, 0, 49152, -1, 0, 0, 0, 0, 0, 0];

/// The text of an image, which ends with a zero.
pub(crate) fn text(image: *const c_void) -> Res<Parsed> {
    if image.is_null() {
        return Err(CUDA_ERROR_INVALID_VALUE);
    }
    // SAFETY: the caller vouches for an image, and every kind is longer than its magic number.
    let magic = unsafe { image.cast::<u32>().read_unaligned() };
    if matches!(magic, 0x464c_457f | 0xba55_ed50 | 0x4662_43b1) {
        // ELF, fat binary, its wrapper: machine code, which nothing here could run.
        return Err(CUDA_ERROR_INVALID_IMAGE);
    }
    // SAFETY: an image of no other kind is text, ending with a zero.
    let text = unsafe { core::ffi::CStr::from_ptr(image.cast()) };
    text.to_str()
        .ok()
        .and_then(ptx::parse)
        .ok_or(CUDA_ERROR_INVALID_PTX)
}

impl World {
    pub(crate) fn load(&mut self, ctx: usize, parsed: &Parsed) -> Res<usize> {
        let module = self.fresh(Kind::Module) as usize;
        let device = self.contexts[&ctx].device;
        let mut globals = Vec::new();
        for global in &parsed.globals {
            // Variables start as zeroes: initialisers are not read.
            let va = self.alloc(ctx, device, global.size.max(1), 0)?;
            self.paint(va, global.size, 0);
            globals.push((global.name.clone(), va, global.size));
        }
        let mut functions = Vec::new();
        for kernel in &parsed.kernels {
            let handle = self.fresh(Kind::Function) as usize;
            let c_name = Box::leak(format!("{}\0", kernel.name).into_bytes().into_boxed_slice());
            let function = Function {
                ctx,
                module,
                name: kernel.name.clone(),
                c_name,
                params: kernel.params.clone(),
                attributes: ATTRIBUTES,
            };
            self.functions.insert(handle, function);
            functions.push(handle);
        }
        self.modules.insert(
            module,
            Module {
                ctx,
                functions,
                globals,
            },
        );
        Ok(module)
    }

    pub(crate) fn unload(&mut self, module: usize) {
        let Some(module) = self.modules.remove(&module) else {
            return;
        };
        module
            .functions
            .iter()
            .for_each(|handle| drop(self.functions.remove(handle)));
        module
            .globals
            .iter()
            .for_each(|(_, va, _)| self.free_alloc(*va));
    }

    fn module(&self, handle: usize) -> Res<&Module> {
        self.modules.get(&handle).ok_or_else(|| {
            misuse!("use of module {handle:#x}, which is not loaded");
            CUDA_ERROR_INVALID_HANDLE
        })
    }

    pub(crate) fn function_named(&self, module: usize, name: &str) -> Res<usize> {
        let found = self
            .module(module)?
            .functions
            .iter()
            .find(|f| self.functions[*f].name == name);
        found.copied().ok_or(CUDA_ERROR_NOT_FOUND)
    }

    pub(crate) fn global_named(&self, module: usize, name: &str) -> Res<(u64, u64)> {
        let found = self
            .module(module)?
            .globals
            .iter()
            .find(|(n, _, _)| n == name);
        found
            .map(|(_, va, size)| (*va, *size))
            .ok_or(CUDA_ERROR_NOT_FOUND)
    }

    /// The function that a `CUfunction` or `CUkernel` names in the calling thread's context.
    pub(crate) fn function(&mut self, handle: usize) -> Res<&Function> {
        let handle = if self.kernels.contains_key(&handle) {
            self.kernel_function(handle)?
        } else {
            handle
        };
        self.functions.get(&handle).ok_or_else(|| {
            misuse!("use of function {handle:#x}, which is not loaded");
            CUDA_ERROR_INVALID_HANDLE
        })
    }
}

fn load(out: Out<usize>, image: *const c_void) -> Res {
    out.check()?;
    let parsed = text(image)?;
    let mut w = world();
    w.refuse_unsafe("cuModuleLoadData")?;
    let ctx = w.here()?;
    out.set(w.load(ctx, &parsed)?)
}

fn load_file(out: Out<usize>, path: Text) -> Res {
    let mut bytes = std::fs::read(path.get()?).map_err(|_| FILE_NOT_FOUND)?;
    bytes.extend([0; 4]);
    load(out, bytes.as_ptr().cast())
}

/// Offset and size of a parameter.
pub(crate) fn param(params: &[Param], index: usize, offset: Out<usize>, size: Out<usize>) -> Res {
    let param = params.get(index).ok_or(CUDA_ERROR_INVALID_VALUE)?;
    offset.set(param.offset)?;
    size.maybe(param.size);
    Ok(())
}

fn attribute(which: c_int) -> Res<usize> {
    usize::try_from(which)
        .ok()
        .filter(|i| *i < ATTRIBUTES.len())
        .ok_or(CUDA_ERROR_INVALID_VALUE)
}

/// Blocks of this size that fit a multiprocessor of 2048 threads.
fn occupancy(block: c_int) -> Res<c_int> {
    if block < 1 {
        Err(CUDA_ERROR_INVALID_VALUE)
    } else {
        Ok((2048 / block).min(32))
    }
}

api! {
    Context cuModuleLoad { 2000 cuModuleLoad Legacy } (module: Out<usize>, path: Text) |_f| { load_file(module, path) }
    Context cuModuleLoadData { 2000 cuModuleLoadData Legacy } (module: Out<usize>, image: *const c_void) |_f| { load(module, image) }
    Context cuModuleLoadDataEx { 2010 cuModuleLoadDataEx Legacy } (module: Out<usize>, image: *const c_void, count: c_uint, options: usize, values: usize) |_f| {
        let _ = (count, options, values);
        load(module, image)
    }
    Context cuModuleLoadFatBinary { 2000 cuModuleLoadFatBinary Legacy } (module: Out<usize>, image: *const c_void) |_f| { load(module, image) }
    Context cuModuleUnload { 2000 cuModuleUnload Legacy } (module: usize) |_f| {
        let mut w = world();
        w.module(module)?;
        w.unload(module);
        Ok(())
    }
    Context cuModuleGetFunction { 2000 cuModuleGetFunction Legacy } (function: Out<usize>, module: usize, name: Text) |_f| {
        function.check()?;
        function.set(world().function_named(module, name.get()?)?)
    }
    Context cuModuleGetGlobal { 3020 cuModuleGetGlobal_v2 Legacy } (va: Out<u64>, size: Out<usize>, module: usize, name: Text) |_f| {
        let (at, len) = world().global_named(module, name.get()?)?;
        va.maybe(at);
        size.maybe(len as usize);
        Ok(())
    }
    Context cuModuleGetFunctionCount { 12040 cuModuleGetFunctionCount Legacy } (count: Out<c_uint>, module: usize) |_f| {
        count.set(world().module(module)?.functions.len() as c_uint)
    }
    Context cuModuleEnumerateFunctions { 12040 cuModuleEnumerateFunctions Legacy } (functions: Out<usize>, room: c_uint, module: usize) |_f| {
        let w = world();
        w.module(module)?.functions.iter().take(room as usize).enumerate().try_for_each(|(i, f)| functions.set_at(i, *f))
    }
    Init cuModuleGetLoadingMode { 11070 cuModuleGetLoadingMode Legacy } (mode: Out<c_int>) |_f| { mode.set(1) }
    Context cuFuncGetAttribute { 2020 cuFuncGetAttribute Legacy } (value: Out<c_int>, which: c_int, function: usize) |_f| {
        let which = attribute(which)?;
        value.set(world().function(function)?.attributes[which])
    }
    Context cuFuncSetAttribute { 9000 cuFuncSetAttribute Legacy } (function: usize, which: c_int, value: c_int) |_f| {
        let which = attribute(which)?;
        let mut w = world();
        w.function(function)?;
        if let Some(f) = w.functions.get_mut(&function) {
            f.attributes[which] = value;
        }
        Ok(())
    }
    Context cuFuncSetCacheConfig { 3000 cuFuncSetCacheConfig Legacy } (function: usize, config: c_int) |_f| {
        let _ = config;
        world().function(function).map(drop)
    }
    Context cuFuncGetModule { 11000 cuFuncGetModule Legacy } (module: Out<usize>, function: usize) |_f| {
        module.set(world().function(function)?.module)
    }
    Context cuFuncGetName { 12030 cuFuncGetName Legacy } (name: Out<*const c_char>, function: usize) |_f| {
        name.set(world().function(function)?.c_name.as_ptr().cast())
    }
    Context cuFuncGetParamInfo { 12040 cuFuncGetParamInfo Legacy } (function: usize, index: usize, offset: Out<usize>, size: Out<usize>) |_f| {
        // A kernel is none here, though it may be launched as one.
        let w = world();
        let known = w.functions.get(&function).ok_or(CUDA_ERROR_INVALID_HANDLE)?;
        param(&known.params, index, offset, size)
    }
    Context cuFuncIsLoaded { 12040 cuFuncIsLoaded Legacy } (state: Out<c_int>, function: usize) |_f| {
        world().function(function)?;
        state.set(1)
    }
    Context cuFuncLoad { 12040 cuFuncLoad Legacy } (function: usize) |_f| { world().function(function).map(drop) }
    Context cuOccupancyMaxActiveBlocksPerMultiprocessor { 6050 cuOccupancyMaxActiveBlocksPerMultiprocessor Legacy } (blocks: Out<c_int>, function: usize, block: c_int, shared: usize) |_f| {
        let _ = shared;
        world().function(function)?;
        blocks.set(occupancy(block)?)
    }
    Context cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags { 7000 cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags Legacy } (blocks: Out<c_int>, function: usize, block: c_int, shared: usize, flags: c_uint) |_f| {
        let _ = (shared, flags);
        world().function(function)?;
        blocks.set(occupancy(block)?)
    }
}
