//! Streams, and copies of rows.

use std::ffi::{c_uint, c_void};
use std::ptr;

use greenboost_abi::{CU_MEMORYTYPE_DEVICE, CUDA_MEMCPY2D, CUdeviceptr, CUstream};

use super::driver::{Driver, Kernel, Result, call};

/// Equal rows in two allocations.
pub struct Rows {
    /// First row's address in the source, and the distance to the next.
    pub from: (CUdeviceptr, usize),
    /// The same of the destination.
    pub to: (CUdeviceptr, usize),
    /// Bytes in a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
}

impl Rows {
    /// As the driver wants it.
    pub(super) fn descriptor(&self) -> CUDA_MEMCPY2D {
        CUDA_MEMCPY2D {
            srcXInBytes: 0,
            srcY: 0,
            srcMemoryType: CU_MEMORYTYPE_DEVICE,
            srcHost: ptr::null(),
            srcDevice: self.from.0,
            srcArray: ptr::null_mut(),
            srcPitch: self.from.1,
            dstXInBytes: 0,
            dstY: 0,
            dstMemoryType: CU_MEMORYTYPE_DEVICE,
            dstHost: ptr::null_mut(),
            dstDevice: self.to.0,
            dstArray: ptr::null_mut(),
            dstPitch: self.to.1,
            WidthInBytes: self.width,
            Height: self.height,
        }
    }
}

/// A stream, and the host memory that its copies still read.
pub struct Stream<'a> {
    driver: &'a Driver,
    handle: CUstream,
    sources: Vec<Vec<u8>>,
}

impl<'a> Stream<'a> {
    /// A stream by its handle; null is the default one.
    pub(super) fn new(driver: &'a Driver, handle: CUstream) -> Stream<'a> {
        Stream {
            driver,
            handle,
            sources: Vec::new(),
        }
    }

    /// Waits for what was put into it.
    pub fn synchronize(&mut self) -> Result<()> {
        call!(self.driver, cuStreamSynchronize(self.handle))?;
        self.sources.clear();
        Ok(())
    }

    /// Runs a kernel over `n` elements; its parameters are 64-bit words.
    pub fn launch(&self, kernel: Kernel, n: usize, parameters: &[u64]) -> Result<()> {
        const THREADS: usize = 256;
        let blocks = n.div_ceil(THREADS).clamp(1, 2048) as c_uint;
        let mut pointers: Vec<*mut c_void> = parameters
            .iter()
            .map(|p| ptr::from_ref(p).cast_mut().cast())
            .collect();
        call!(
            self.driver,
            cuLaunchKernel(
                kernel.0,
                blocks,
                1,
                1,
                THREADS as c_uint,
                1,
                1,
                0,
                self.handle,
                pointers.as_mut_ptr(),
                ptr::null_mut()
            )
        )
    }

    /// Host to device. The source is kept until the stream is synchronised.
    pub fn write(&mut self, to: CUdeviceptr, from: Vec<u8>) -> Result<()> {
        let (source, bytes) = (from.as_ptr(), from.len());
        self.sources.push(from);
        call!(
            self.driver,
            cuMemcpyHtoDAsync_v2(to, source.cast(), bytes, self.handle)
        )
    }

    /// Device to pinned host memory, and back out of it when the copy is done.
    pub fn read(&mut self, from: CUdeviceptr, bytes: usize) -> Result<Vec<u8>> {
        let mut pinned = ptr::null_mut();
        call!(self.driver, cuMemHostAlloc(&mut pinned, bytes, 0))?;
        call!(
            self.driver,
            cuMemcpyDtoHAsync_v2(pinned, from, bytes, self.handle)
        )?;
        self.synchronize()?;
        // SAFETY: the driver has given us these bytes, has written all of them, and no copy into them is left.
        let copy = unsafe { std::slice::from_raw_parts(pinned.cast::<u8>(), bytes) }.to_vec();
        call!(self.driver, cuMemFreeHost(pinned))?;
        Ok(copy)
    }

    /// Device to device.
    pub fn copy(&self, to: CUdeviceptr, from: CUdeviceptr, bytes: usize) -> Result<()> {
        call!(
            self.driver,
            cuMemcpyDtoDAsync_v2(to, from, bytes, self.handle)
        )
    }

    /// Rows from device to device.
    pub fn copy_rows(&self, rows: &Rows) -> Result<()> {
        call!(
            self.driver,
            cuMemcpy2DAsync_v2(&rows.descriptor(), self.handle)
        )
    }

    /// Sets bytes.
    pub fn set(&self, to: CUdeviceptr, value: u8, bytes: usize) -> Result<()> {
        call!(self.driver, cuMemsetD8Async(to, value, bytes, self.handle))
    }

    /// Sets 32-bit words.
    pub fn set_words(&self, to: CUdeviceptr, value: u32, words: usize) -> Result<()> {
        call!(self.driver, cuMemsetD32Async(to, value, words, self.handle))
    }
}

impl Drop for Stream<'_> {
    fn drop(&mut self) {
        // Sources must outlive the copies also when a check failed half-way.
        let _ = self.synchronize();
        if !self.handle.is_null() {
            let _ = call!(self.driver, cuStreamDestroy_v2(self.handle));
        }
    }
}
