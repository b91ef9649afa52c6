//! The CUDA driver API, as much of it as measuring needs. Everything is released when it goes out of scope, after the
//! device has ended what it does with it.

use std::ffi::{CStr, CString, c_char, c_float, c_int, c_uint, c_ulonglong, c_void};
use std::ptr;

use greenboost_abi::{
    CU_STREAM_NON_BLOCKING, CUcontext, CUdevice, CUdevice_attribute, CUdeviceptr, CUevent,
    CUfunction, CUmemAccessDesc, CUmemAllocationProp, CUmemGenericAllocationHandle, CUmodule,
    CUstream,
};
use libloading::Library;

use crate::selftest_program::driver::{Error, Result, api, call};

const PTX: &str = include_str!("../../../assets/probe.ptx");

api! {
    cuInit(c_uint);
    cuDeviceGet(*mut CUdevice, c_int);
    cuDeviceGetName(*mut c_char, c_int, CUdevice);
    cuDeviceGetAttribute(*mut c_int, CUdevice_attribute, CUdevice);
    cuDeviceGetPCIBusId(*mut c_char, c_int, CUdevice);
    cuDevicePrimaryCtxRetain(*mut CUcontext, CUdevice);
    cuDevicePrimaryCtxRelease_v2(CUdevice);
    cuCtxSetCurrent(CUcontext);
    cuCtxSynchronize();
    cuModuleLoadData(*mut CUmodule, *const c_void);
    cuModuleUnload(CUmodule);
    cuModuleGetFunction(*mut CUfunction, CUmodule, *const c_char);
    cuMemGetInfo_v2(*mut usize, *mut usize);
    cuMemAlloc_v2(*mut CUdeviceptr, usize);
    cuMemFree_v2(CUdeviceptr);
    cuMemHostAlloc(*mut *mut c_void, usize, c_uint);
    cuMemFreeHost(*mut c_void);
    cuMemHostRegister_v2(*mut c_void, usize, c_uint);
    cuMemHostUnregister(*mut c_void);
    cuMemHostGetDevicePointer_v2(*mut CUdeviceptr, *mut c_void, c_uint);
    cuMemcpyHtoDAsync_v2(CUdeviceptr, *const c_void, usize, CUstream);
    cuMemcpyDtoHAsync_v2(*mut c_void, CUdeviceptr, usize, CUstream);
    cuMemcpyDtoDAsync_v2(CUdeviceptr, CUdeviceptr, usize, CUstream);
    cuStreamCreate(*mut CUstream, c_uint);
    cuStreamSynchronize(CUstream);
    cuStreamWaitEvent(CUstream, CUevent, c_uint);
    cuStreamDestroy_v2(CUstream);
    cuEventCreate(*mut CUevent, c_uint);
    cuEventRecord(CUevent, CUstream);
    cuEventSynchronize(CUevent);
    cuEventElapsedTime(*mut c_float, CUevent, CUevent);
    cuEventDestroy_v2(CUevent);
    cuLaunchKernel(CUfunction, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, CUstream, *mut *mut c_void, *mut *mut c_void);
    cuMemCreate(*mut CUmemGenericAllocationHandle, usize, *const CUmemAllocationProp, c_ulonglong);
    cuMemRelease(CUmemGenericAllocationHandle);
    cuMemAddressReserve(*mut CUdeviceptr, usize, usize, CUdeviceptr, c_ulonglong);
    cuMemAddressFree(CUdeviceptr, usize);
    cuMemMap(CUdeviceptr, usize, usize, CUmemGenericAllocationHandle, c_ulonglong);
    cuMemUnmap(CUdeviceptr, usize);
    cuMemSetAccess(CUdeviceptr, usize, *const CUmemAccessDesc, usize);
}

/// A device with its primary context and the kernels.
pub struct Gpu {
    pub(super) api: Api,
    pub device: CUdevice,
    pub name: String,
    /// `0000:11:00.0`, as the driver writes it.
    pub bus_id: String,
    pub multiprocessors: u32,
    module: CUmodule,
}

impl Gpu {
    /// Loads the driver, makes a device's primary context current and loads the kernels.
    ///
    /// # Errors
    /// When one of that is refused.
    pub fn open(ordinal: c_int) -> Result<Gpu> {
        // SAFETY: its initialisers are those that every CUDA program runs.
        let library = unsafe { Library::new("libcuda.so.1") }
            .map_err(|e| Error::NoGpu(format!("libcuda.so.1 cannot be loaded ({e})")))?;
        let api = Api::find(&library).map_err(|e| Error::NoGpu(format!("an odd driver ({e})")))?;
        // Drivers do not survive being unloaded.
        std::mem::forget(library);
        let mut gpu = Gpu {
            api,
            device: 0,
            name: String::new(),
            bus_id: String::new(),
            multiprocessors: 0,
            module: ptr::null_mut(),
        };
        call!(gpu, cuInit(0))?;
        call!(gpu, cuDeviceGet(&mut gpu.device, ordinal))?;
        let mut text = [0u8; 256];
        call!(
            gpu,
            cuDeviceGetName(text.as_mut_ptr().cast(), 255, gpu.device)
        )?;
        gpu.name = string(&text);
        text = [0; 256];
        call!(
            gpu,
            cuDeviceGetPCIBusId(text.as_mut_ptr().cast(), 255, gpu.device)
        )?;
        gpu.bus_id = string(&text).to_ascii_lowercase();
        gpu.multiprocessors = gpu.attribute(16).max(1) as u32;
        let mut context = ptr::null_mut();
        call!(gpu, cuDevicePrimaryCtxRetain(&mut context, gpu.device))?;
        call!(gpu, cuCtxSetCurrent(context))?;
        let text = CString::new(PTX).expect("PTX has no NUL");
        call!(gpu, cuModuleLoadData(&mut gpu.module, text.as_ptr().cast()))?;
        Ok(gpu)
    }

    /// A device attribute by its number; 0 when the driver does not know it.
    pub fn attribute(&self, which: CUdevice_attribute) -> c_int {
        let mut value = 0;
        let asked = call!(self, cuDeviceGetAttribute(&mut value, which, self.device));
        if asked.is_ok() { value } else { 0 }
    }

    /// Free and total bytes of VRAM.
    ///
    /// # Errors
    /// The driver's.
    pub fn memory(&self) -> Result<(u64, u64)> {
        let (mut free, mut total) = (0, 0);
        call!(self, cuMemGetInfo_v2(&mut free, &mut total))?;
        Ok((free as u64, total as u64))
    }

    /// Waits for everything.
    ///
    /// # Errors
    /// The device's.
    pub fn synchronize(&self) -> Result<()> {
        call!(self, cuCtxSynchronize())
    }

    /// A kernel.
    ///
    /// # Errors
    /// When the module has none of that name.
    pub fn kernel(&self, name: &CStr) -> Result<Kernel<'_>> {
        let mut function = ptr::null_mut();
        call!(
            self,
            cuModuleGetFunction(&mut function, self.module, name.as_ptr())
        )?;
        Ok(Kernel(self, function))
    }

    /// A stream that waits for no other.
    ///
    /// # Errors
    /// The driver's.
    pub fn stream(&self) -> Result<Stream<'_>> {
        let mut handle = ptr::null_mut();
        call!(self, cuStreamCreate(&mut handle, CU_STREAM_NON_BLOCKING))?;
        Ok(Stream(self, handle))
    }

    /// An event that takes the time.
    ///
    /// # Errors
    /// The driver's.
    pub fn event(&self) -> Result<Event<'_>> {
        let mut handle = ptr::null_mut();
        call!(self, cuEventCreate(&mut handle, 0))?;
        Ok(Event(self, handle))
    }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        // In this order, and whatever each says: the process ends anyway.
        let _ = call!(self, cuCtxSynchronize());
        let _ = call!(self, cuModuleUnload(self.module));
        let _ = call!(self, cuCtxSetCurrent(ptr::null_mut()));
        let _ = call!(self, cuDevicePrimaryCtxRelease_v2(self.device));
    }
}

fn string(bytes: &[u8]) -> String {
    CStr::from_bytes_until_nul(bytes)
        .map(|text| text.to_string_lossy().into_owned())
        .unwrap_or_default()
}

/// A kernel of the module.
#[derive(Clone, Copy)]
pub struct Kernel<'g>(&'g Gpu, CUfunction);

impl Kernel<'_> {
    /// Launches so many blocks of so many threads.
    ///
    /// # Errors
    /// The driver's.
    pub fn launch(
        &self,
        stream: &Stream,
        blocks: u32,
        threads: u32,
        arguments: &[u64],
    ) -> Result<()> {
        let mut values = arguments.to_vec();
        let mut pointers: Vec<*mut c_void> =
            values.iter_mut().map(|v| ptr::from_mut(v).cast()).collect();
        let gpu = self.0;
        call!(
            gpu,
            cuLaunchKernel(
                self.1,
                blocks,
                1,
                1,
                threads,
                1,
                1,
                0,
                stream.1,
                pointers.as_mut_ptr(),
                ptr::null_mut()
            )
        )
    }
}

/// A stream.
pub struct Stream<'g>(pub(super) &'g Gpu, pub(super) CUstream);

impl<'g> Stream<'g> {
    /// Waits for what was enqueued.
    ///
    /// # Errors
    /// The device's.
    pub fn synchronize(&self) -> Result<()> {
        call!(self.0, cuStreamSynchronize(self.1))
    }

    /// Host memory to VRAM; the source must be pinned and stay until this has been waited for.
    ///
    /// # Errors
    /// The driver's.
    pub fn upload(&self, to: CUdeviceptr, from: *const u8, bytes: usize) -> Result<()> {
        call!(self.0, cuMemcpyHtoDAsync_v2(to, from.cast(), bytes, self.1))
    }

    /// VRAM to host memory; as [`Stream::upload`].
    ///
    /// # Errors
    /// The driver's.
    pub fn download(&self, to: *mut u8, from: CUdeviceptr, bytes: usize) -> Result<()> {
        call!(self.0, cuMemcpyDtoHAsync_v2(to.cast(), from, bytes, self.1))
    }

    /// Between addresses of the device.
    ///
    /// # Errors
    /// The driver's.
    pub fn copy(&self, to: CUdeviceptr, from: CUdeviceptr, bytes: usize) -> Result<()> {
        call!(self.0, cuMemcpyDtoDAsync_v2(to, from, bytes, self.1))
    }

    /// Waits, on the device, until an event of another stream has passed.
    ///
    /// # Errors
    /// The driver's.
    pub fn after(&self, event: &Event) -> Result<()> {
        call!(self.0, cuStreamWaitEvent(self.1, event.1, 0))
    }

    /// Seconds that the device needed for what `enqueue` puts into this stream.
    ///
    /// # Errors
    /// The driver's.
    pub fn time(&self, enqueue: impl FnOnce(&Stream<'g>) -> Result<()>) -> Result<f64> {
        let (begin, end) = (self.0.event()?, self.0.event()?);
        begin.record(self)?;
        enqueue(self)?;
        end.record(self)?;
        end.synchronize()?;
        begin.until(&end)
    }
}

impl Drop for Stream<'_> {
    fn drop(&mut self) {
        let _ = call!(self.0, cuStreamDestroy_v2(self.1));
    }
}

/// An event.
pub struct Event<'g>(pub(super) &'g Gpu, pub(super) CUevent);

impl Event<'_> {
    /// Marks where the stream is now.
    ///
    /// # Errors
    /// The driver's.
    pub fn record(&self, stream: &Stream) -> Result<()> {
        call!(self.0, cuEventRecord(self.1, stream.1))
    }

    /// Waits until the mark has passed.
    ///
    /// # Errors
    /// The device's.
    pub fn synchronize(&self) -> Result<()> {
        call!(self.0, cuEventSynchronize(self.1))
    }

    /// Seconds from this mark to that.
    ///
    /// # Errors
    /// When one of them has not passed.
    pub fn until(&self, end: &Event) -> Result<f64> {
        let mut milliseconds = 0.0;
        call!(self.0, cuEventElapsedTime(&mut milliseconds, self.1, end.1))?;
        Ok(f64::from(milliseconds) / 1e3)
    }
}

impl Drop for Event<'_> {
    fn drop(&mut self) {
        let _ = call!(self.0, cuEventDestroy_v2(self.1));
    }
}

#[cfg(test)]
mod tests {
    use super::PTX;

    /// What the simulated driver reads of it, and what older drivers need.
    #[test]
    fn the_kernels_are_as_the_drivers_expect_them() {
        assert!(PTX.contains("\n.version 7.0\n.target sm_50\n.address_size 64\n"));
        assert!(PTX.is_ascii());
        let mut found = Vec::new();
        for entry in PTX.split(".visible .entry ").skip(1) {
            let (name, rest) = entry.split_once('(').unwrap();
            let (parameters, _) = rest.split_once(')').unwrap();
            let all = parameters.matches(".param").count();
            assert_eq!(parameters.matches(".param .u64 ").count(), all, "{name}");
            found.push((name, all));
        }
        let expected = [
            ("gb_probe_read16", 3),
            ("gb_probe_read4", 3),
            ("gb_probe_quantised", 3),
            ("gb_probe_random16", 5),
            ("gb_probe_random_piece", 5),
            ("gb_probe_write16", 3),
            ("gb_probe_reread16", 4),
            ("gb_probe_busy", 4),
        ];
        assert_eq!(found, expected);
    }
}
