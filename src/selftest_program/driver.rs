//! The CUDA driver API, as much of it as the self-test needs, found as most programs find it: by `dlopen` and `dlsym`.
//!
//! Calls are safe to make as long as their pointers are; that is what this file looks after. Device addresses are plain
//! numbers: a wrong one is an error of the device, not of this process.

use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::ptr;

use greenboost_abi::{
    CU_STREAM_NON_BLOCKING, CUDA_ERROR_NO_DEVICE, CUDA_ERROR_OUT_OF_MEMORY, CUDA_MEMCPY2D,
    CUcontext, CUdevice, CUdeviceptr, CUfunction, CUmodule, CUresult, CUstream,
};
use libloading::Library;

use super::stream::{Rows, Stream};

/// A call that failed.
#[derive(Debug)]
pub enum Error {
    /// There is no driver here, or one without a device.
    NoGpu(String),
    /// The driver's answer to a call.
    Call(&'static str, CUresult),
}

impl Error {
    /// Whether the program was told that memory is out.
    pub fn is_out_of_memory(&self) -> bool {
        matches!(self, Error::Call(_, CUDA_ERROR_OUT_OF_MEMORY))
    }
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        match self {
            Error::NoGpu(why) => write!(f, "no usable GPU: {why}"),
            Error::Call(name, code) => write!(f, "{name} returned error {code}"),
        }
    }
}

impl std::error::Error for Error {}

/// What a call gives.
pub type Result<T> = std::result::Result<T, Error>;

/// Functions of the driver with their types in cuda.h, as a table `Api` that `find` fills.
macro_rules! api {
    ($($name:ident($($arg:ty),*);)*) => {
        #[allow(non_snake_case)]
        pub(super) struct Api {
            $(pub(super) $name: unsafe extern "C" fn($($arg),*) -> ::greenboost_abi::CUresult,)*
        }
        impl Api {
            fn find(library: &::libloading::Library) -> std::result::Result<Api, ::libloading::Error> {
                Ok(Api {
                    $(
                        // SAFETY: the signature is the one in cuda.h; whoever uses the table never closes the library.
                        $name: *unsafe { library.get(concat!(stringify!($name), "\0").as_bytes()) }?,
                    )*
                })
            }
        }
    };
}
pub(crate) use api;

api! {
    cuInit(c_uint);
    cuDriverGetVersion(*mut c_int);
    cuDeviceGetCount(*mut c_int);
    cuDeviceGet(*mut CUdevice, c_int);
    cuDeviceGetName(*mut c_char, c_int, CUdevice);
    cuDevicePrimaryCtxRetain(*mut CUcontext, CUdevice);
    cuCtxSetCurrent(CUcontext);
    cuCtxSynchronize();
    cuModuleLoadData(*mut CUmodule, *const c_void);
    cuModuleGetFunction(*mut CUfunction, CUmodule, *const c_char);
    cuMemGetInfo_v2(*mut usize, *mut usize);
    cuMemAlloc_v2(*mut CUdeviceptr, usize);
    cuMemAllocPitch_v2(*mut CUdeviceptr, *mut usize, usize, usize, c_uint);
    cuMemFree_v2(CUdeviceptr);
    cuMemHostAlloc(*mut *mut c_void, usize, c_uint);
    cuMemFreeHost(*mut c_void);
    cuMemGetAddressRange_v2(*mut CUdeviceptr, *mut usize, CUdeviceptr);
    cuPointerGetAttribute(*mut c_void, c_int, CUdeviceptr);
    cuMemcpyHtoD_v2(CUdeviceptr, *const c_void, usize);
    cuMemcpyDtoH_v2(*mut c_void, CUdeviceptr, usize);
    cuMemcpyDtoD_v2(CUdeviceptr, CUdeviceptr, usize);
    cuMemcpyHtoDAsync_v2(CUdeviceptr, *const c_void, usize, CUstream);
    cuMemcpyDtoHAsync_v2(*mut c_void, CUdeviceptr, usize, CUstream);
    cuMemcpyDtoDAsync_v2(CUdeviceptr, CUdeviceptr, usize, CUstream);
    cuMemcpy2D_v2(*const CUDA_MEMCPY2D);
    cuMemcpy2DAsync_v2(*const CUDA_MEMCPY2D, CUstream);
    cuMemsetD8_v2(CUdeviceptr, u8, usize);
    cuMemsetD8Async(CUdeviceptr, u8, usize, CUstream);
    cuMemsetD32Async(CUdeviceptr, c_uint, usize, CUstream);
    cuStreamCreate(*mut CUstream, c_uint);
    cuStreamSynchronize(CUstream);
    cuStreamDestroy_v2(CUstream);
    cuLaunchKernel(CUfunction, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, CUstream, *mut *mut c_void, *mut *mut c_void);
}

/// Calls an entry of the table and makes its answer a `Result`.
macro_rules! call {
    ($driver:expr, $name:ident($($arg:expr),*)) => {{
        // SAFETY: every pointer among the arguments is to a live value of the type and size that cuda.h asks for, for as
        // long as the driver uses it: through the call, or, for asynchronous copies, until the stream is synchronised.
        let code = unsafe { ($driver.api.$name)($($arg),*) };
        match code {
            ::greenboost_abi::CUDA_SUCCESS => Ok(()),
            code => Err($crate::selftest_program::driver::Error::Call(stringify!($name), code)),
        }
    }};
}
pub(crate) use call;

/// The driver, with one device and its primary context.
pub struct Driver {
    pub(super) api: Api,
    context: CUcontext,
    module: CUmodule,
    /// Its name.
    pub device_name: String,
    /// Its version, 13000 for 13.0.
    pub version: i32,
    /// Devices of this machine.
    pub devices: i32,
}

// SAFETY: the driver API may be called from every thread, and handles are valid in all of them.
unsafe impl Send for Driver {}
// SAFETY: as above.
unsafe impl Sync for Driver {}

impl Driver {
    /// Loads the driver, makes device 0 current and loads these kernels.
    pub fn open(ptx: &str) -> Result<Driver> {
        // SAFETY: its initialisers are those that every CUDA program runs.
        let library = unsafe { Library::new("libcuda.so.1") }
            .map_err(|e| Error::NoGpu(format!("libcuda.so.1 cannot be loaded ({e})")))?;
        let api = Api::find(&library).map_err(|e| Error::NoGpu(format!("an odd driver ({e})")))?;
        // Drivers do not survive being unloaded.
        std::mem::forget(library);
        let mut driver = Driver {
            api,
            context: ptr::null_mut(),
            module: ptr::null_mut(),
            device_name: String::new(),
            version: 0,
            devices: 0,
        };
        let no_gpu = |e: Error| Error::NoGpu(e.to_string());
        match call!(driver, cuInit(0)) {
            Err(Error::Call(_, CUDA_ERROR_NO_DEVICE)) => {
                return Err(Error::NoGpu("the driver sees no device".into()));
            }
            other => other.map_err(no_gpu)?,
        }
        call!(driver, cuDriverGetVersion(&mut driver.version))?;
        call!(driver, cuDeviceGetCount(&mut driver.devices))?;
        if driver.devices == 0 {
            return Err(Error::NoGpu("the driver sees no device".into()));
        }
        let mut device = 0;
        call!(driver, cuDeviceGet(&mut device, 0))?;
        let mut name = [0u8; 256];
        call!(
            driver,
            cuDeviceGetName(name.as_mut_ptr().cast(), 255, device)
        )?;
        driver.device_name = CStr::from_bytes_until_nul(&name)
            .map(|n| n.to_string_lossy().into_owned())
            .unwrap_or_default();
        call!(
            driver,
            cuDevicePrimaryCtxRetain(&mut driver.context, device)
        )
        .map_err(no_gpu)?;
        driver.enter()?;
        let text = CString::new(ptx).expect("PTX has no NUL");
        call!(
            driver,
            cuModuleLoadData(&mut driver.module, text.as_ptr().cast())
        )?;
        Ok(driver)
    }

    /// Makes the context current in this thread.
    pub fn enter(&self) -> Result<()> {
        call!(self, cuCtxSetCurrent(self.context))
    }

    /// Waits for everything.
    pub fn synchronize(&self) -> Result<()> {
        call!(self, cuCtxSynchronize())
    }

    /// A kernel of the module.
    pub fn kernel(&self, name: &CStr) -> Result<Kernel> {
        let mut function = ptr::null_mut();
        call!(
            self,
            cuModuleGetFunction(&mut function, self.module, name.as_ptr())
        )?;
        Ok(Kernel(function))
    }

    /// Free and total bytes, as the program is told.
    pub fn memory_info(&self) -> Result<(usize, usize)> {
        let (mut free, mut total) = (0, 0);
        call!(self, cuMemGetInfo_v2(&mut free, &mut total))?;
        Ok((free, total))
    }

    /// Allocates.
    pub fn alloc(&self, bytes: usize) -> Result<CUdeviceptr> {
        let mut address = 0;
        call!(self, cuMemAlloc_v2(&mut address, bytes))?;
        Ok(address)
    }

    /// Allocates rows; returns the address and the distance of rows.
    pub fn alloc_pitch(&self, width: usize, height: usize) -> Result<(CUdeviceptr, usize)> {
        let (mut address, mut pitch) = (0, 0);
        call!(
            self,
            cuMemAllocPitch_v2(&mut address, &mut pitch, width, height, 16)
        )?;
        Ok((address, pitch))
    }

    /// Frees.
    pub fn free(&self, address: CUdeviceptr) -> Result<()> {
        call!(self, cuMemFree_v2(address))
    }

    /// Start and size of the allocation around an address.
    pub fn range_of(&self, address: CUdeviceptr) -> Result<(CUdeviceptr, usize)> {
        let (mut start, mut size) = (0, 0);
        call!(
            self,
            cuMemGetAddressRange_v2(&mut start, &mut size, address)
        )?;
        Ok((start, size))
    }

    /// A 4-byte attribute of an address.
    pub fn attribute(&self, attribute: c_int, address: CUdeviceptr) -> Result<c_uint> {
        let mut value: c_uint = 0;
        call!(
            self,
            cuPointerGetAttribute((&raw mut value).cast(), attribute, address)
        )?;
        Ok(value)
    }

    /// Host to device; returns when the source may be changed.
    pub fn write(&self, to: CUdeviceptr, from: &[u8]) -> Result<()> {
        call!(self, cuMemcpyHtoD_v2(to, from.as_ptr().cast(), from.len()))
    }

    /// Device to host; returns when it is there.
    pub fn read(&self, to: &mut [u8], from: CUdeviceptr) -> Result<()> {
        call!(
            self,
            cuMemcpyDtoH_v2(to.as_mut_ptr().cast(), from, to.len())
        )
    }

    /// Device to device, on the default stream.
    pub fn copy(&self, to: CUdeviceptr, from: CUdeviceptr, bytes: usize) -> Result<()> {
        call!(self, cuMemcpyDtoD_v2(to, from, bytes))
    }

    /// Rows from device to device, on the default stream.
    pub fn copy_rows(&self, rows: &Rows) -> Result<()> {
        call!(self, cuMemcpy2D_v2(&rows.descriptor()))
    }

    /// Sets bytes, on the default stream.
    pub fn set(&self, to: CUdeviceptr, value: u8, bytes: usize) -> Result<()> {
        call!(self, cuMemsetD8_v2(to, value, bytes))
    }

    /// A stream that does not wait for the default one.
    pub fn stream(&self) -> Result<Stream<'_>> {
        let mut handle = ptr::null_mut();
        call!(self, cuStreamCreate(&mut handle, CU_STREAM_NON_BLOCKING))?;
        Ok(Stream::new(self, handle))
    }

    /// The default stream.
    pub fn default_stream(&self) -> Stream<'_> {
        Stream::new(self, ptr::null_mut())
    }
}

/// A kernel.
#[derive(Clone, Copy)]
pub struct Kernel(pub(super) CUfunction);

// SAFETY: a handle that is valid in every thread.
unsafe impl Send for Kernel {}
// SAFETY: as above.
unsafe impl Sync for Kernel {}
