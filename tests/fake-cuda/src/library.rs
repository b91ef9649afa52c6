//! Libraries and kernels: code that belongs to no context until it is asked for in one.
use core::ffi::{c_char, c_int, c_uint, c_void};
use std::collections::BTreeMap;
use std::sync::Arc;

use greenboost_abi::{CUDA_ERROR_INVALID_HANDLE, CUDA_ERROR_INVALID_VALUE, CUDA_ERROR_NOT_FOUND};

use crate::abi::{Out, Res, Text};
use crate::device;
use crate::misuse::misuse;
use crate::module::{ATTRIBUTES, param, text};
use crate::ptx::Parsed;
use crate::world::{Kind, World, world};

pub(crate) struct Library {
    parsed: Arc<Parsed>,
    /// The module made for each context.
    modules: BTreeMap<usize, usize>,
    kernels: Vec<usize>,
}

pub(crate) struct Kernel {
    library: usize,
    index: usize,
}

impl World {
    fn library(&self, handle: usize) -> Res<&Library> {
        self.libraries.get(&handle).ok_or_else(|| {
            misuse!("use of library {handle:#x}, which is not loaded");
            CUDA_ERROR_INVALID_HANDLE
        })
    }

    fn library_module(&mut self, handle: usize) -> Res<usize> {
        let ctx = self.here()?;
        let library = self.library(handle)?;
        if let Some(&module) = library
            .modules
            .get(&ctx)
            .filter(|m| self.modules.contains_key(m))
        {
            return Ok(module);
        }
        let parsed = library.parsed.clone();
        let module = self.load(ctx, &parsed)?;
        if let Some(library) = self.libraries.get_mut(&handle) {
            library.modules.insert(ctx, module);
        }
        Ok(module)
    }

    /// The function of a kernel in the calling thread's context.
    pub(crate) fn kernel_function(&mut self, handle: usize) -> Res<usize> {
        let kernel = self.kernels.get(&handle).ok_or(CUDA_ERROR_INVALID_HANDLE)?;
        let (library, index) = (kernel.library, kernel.index);
        let module = self.library_module(library)?;
        let name = self.library(library)?.parsed.kernels[index].name.clone();
        self.function_named(module, &name)
    }
}

fn load(out: Out<usize>, code: *const c_void) -> Res {
    out.check()?;
    let parsed = Arc::new(text(code)?);
    let mut w = world();
    let library = w.fresh(Kind::Library) as usize;
    let mut kernels = Vec::new();
    for index in 0..parsed.kernels.len() {
        let handle = w.fresh(Kind::Kernel) as usize;
        w.kernels.insert(handle, Kernel { library, index });
        kernels.push(handle);
    }
    w.libraries.insert(
        library,
        Library {
            parsed,
            modules: BTreeMap::new(),
            kernels,
        },
    );
    out.set(library)
}

fn unload(handle: usize) -> Res {
    let mut w = world();
    w.library(handle)?;
    let Some(library) = w.libraries.remove(&handle) else {
        return Ok(());
    };
    w.kernels.retain(|_, kernel| kernel.library != handle);
    library.modules.values().for_each(|m| w.unload(*m));
    Ok(())
}

fn kernel(library: usize, name: &str) -> Res<usize> {
    let w = world();
    let library = w.library(library)?;
    let index = library
        .parsed
        .kernels
        .iter()
        .position(|k| k.name == name)
        .ok_or(CUDA_ERROR_NOT_FOUND)?;
    Ok(library.kernels[index])
}

fn look<T>(handle: usize, at: impl FnOnce(&crate::ptx::Kernel) -> Res<T>) -> Res<T> {
    let w = world();
    let kernel = w.kernels.get(&handle).ok_or(CUDA_ERROR_INVALID_HANDLE)?;
    at(&w.library(kernel.library)?.parsed.kernels[kernel.index])
}

api! {
    Init cuLibraryLoadData { 12000 cuLibraryLoadData Legacy } (library: Out<usize>, code: *const c_void, jit: usize, jit_values: usize, jit_count: c_uint, options: usize, values: usize, count: c_uint) |_f| {
        let _ = (jit, jit_values, jit_count, options, values, count);
        load(library, code)
    }
    Init cuLibraryUnload { 12000 cuLibraryUnload Legacy } (library: usize) |_f| { unload(library) }
    Init cuLibraryGetKernel { 12000 cuLibraryGetKernel Legacy } (out: Out<usize>, library: usize, name: Text) |_f| {
        out.check()?;
        out.set(kernel(library, name.get()?)?)
    }
    Init cuLibraryGetKernelCount { 12040 cuLibraryGetKernelCount Legacy } (count: Out<c_uint>, library: usize) |_f| {
        count.set(world().library(library)?.kernels.len() as c_uint)
    }
    Init cuLibraryEnumerateKernels { 12040 cuLibraryEnumerateKernels Legacy } (kernels: Out<usize>, room: c_uint, library: usize) |_f| {
        let w = world();
        w.library(library)?.kernels.iter().take(room as usize).enumerate().try_for_each(|(i, k)| kernels.set_at(i, *k))
    }
    Context cuLibraryGetModule { 12000 cuLibraryGetModule Legacy } (module: Out<usize>, library: usize) |_f| {
        module.set(world().library_module(library)?)
    }
    Context cuLibraryGetGlobal { 12000 cuLibraryGetGlobal Legacy } (va: Out<u64>, size: Out<usize>, library: usize, name: Text) |_f| {
        let mut w = world();
        let module = w.library_module(library)?;
        let (at, len) = w.global_named(module, name.get()?)?;
        va.maybe(at);
        size.maybe(len as usize);
        Ok(())
    }
    Context cuKernelGetFunction { 12000 cuKernelGetFunction Legacy } (function: Out<usize>, kernel: usize) |_f| {
        function.set(world().kernel_function(kernel)?)
    }
    Init cuKernelGetLibrary { 12050 cuKernelGetLibrary Legacy } (library: Out<usize>, kernel: usize) |_f| {
        library.set(world().kernels.get(&kernel).ok_or(CUDA_ERROR_INVALID_HANDLE)?.library)
    }
    Init cuKernelGetAttribute { 12000 cuKernelGetAttribute Legacy } (value: Out<c_int>, which: c_int, kernel: usize, device: c_int) |_f| {
        device::check(device)?;
        look(kernel, |_| Ok(()))?;
        value.set(*ATTRIBUTES.get(which as usize).ok_or(CUDA_ERROR_INVALID_VALUE)?)
    }
    Init cuKernelSetAttribute { 12000 cuKernelSetAttribute Legacy } (which: c_int, value: c_int, kernel: usize, device: c_int) |_f| {
        let _ = (which, value);
        device::check(device)?;
        look(kernel, |_| Ok(()))
    }
    Init cuKernelGetName { 12030 cuKernelGetName Legacy } (name: Out<*const c_char>, kernel: usize) |_f| {
        let text = look(kernel, |k| Ok(format!("{}\0", k.name)))?;
        name.set(Box::leak(text.into_boxed_str()).as_ptr().cast())
    }
    Init cuKernelGetParamInfo { 12040 cuKernelGetParamInfo Legacy } (kernel: usize, index: usize, offset: Out<usize>, size: Out<usize>) |_f| {
        look(kernel, |k| param(&k.params, index, offset, size))
    }
}
