//! Memory of the device and pinned memory of the host, released when they go out of scope.

use greenboost_abi::{
    CU_MEM_ACCESS_FLAGS_PROT_READWRITE, CU_MEM_ALLOCATION_TYPE_PINNED, CU_MEM_HANDLE_TYPE_NONE,
    CU_MEM_LOCATION_TYPE_DEVICE, CU_MEM_LOCATION_TYPE_HOST_NUMA, CUdeviceptr, CUmemAccessDesc,
    CUmemAllocFlags, CUmemAllocationProp, CUmemGenericAllocationHandle, CUmemLocation,
};

use super::driver::Gpu;
use crate::probe::area::Area;
use crate::selftest_program::driver::{Result, call};

/// `CU_MEMHOSTREGISTER_PORTABLE | CU_MEMHOSTREGISTER_DEVICEMAP`, the same bits as of `cuMemHostAlloc`.
const MAPPED: u32 = 3;

/// VRAM.
pub struct Vram<'g> {
    gpu: &'g Gpu,
    pub address: CUdeviceptr,
    pub len: u64,
}

impl<'g> Vram<'g> {
    /// Allocates.
    ///
    /// # Errors
    /// The driver's.
    pub fn new(gpu: &'g Gpu, len: u64) -> Result<Vram<'g>> {
        let mut address = 0;
        call!(gpu, cuMemAlloc_v2(&mut address, len as usize))?;
        Ok(Vram { gpu, address, len })
    }
}

impl Drop for Vram<'_> {
    fn drop(&mut self) {
        // Waits for the device by itself.
        let _ = call!(self.gpu, cuMemFree_v2(self.address));
    }
}

/// Ordinary memory that the device may reach as long as this lives.
pub struct Registered<'g, 'a> {
    gpu: &'g Gpu,
    area: &'a Area,
    /// As the device names it.
    pub address: CUdeviceptr,
}

impl<'g, 'a> Registered<'g, 'a> {
    /// Pins it.
    ///
    /// # Errors
    /// The driver's.
    pub fn new(gpu: &'g Gpu, area: &'a Area) -> Result<Registered<'g, 'a>> {
        call!(
            gpu,
            cuMemHostRegister_v2(area.start().cast(), area.len(), MAPPED)
        )?;
        let mut registered = Registered {
            gpu,
            area,
            address: 0,
        };
        call!(
            gpu,
            cuMemHostGetDevicePointer_v2(&mut registered.address, area.start().cast(), 0)
        )?;
        Ok(registered)
    }

    /// As the host names it.
    pub fn start(&self) -> *mut u8 {
        self.area.start()
    }
}

impl Drop for Registered<'_, '_> {
    fn drop(&mut self) {
        let _ = self.gpu.synchronize();
        let _ = call!(self.gpu, cuMemHostUnregister(self.area.start().cast()));
    }
}

/// Pinned memory from the driver, gone again.
///
/// # Errors
/// The driver's.
pub fn host_alloc(gpu: &Gpu, len: usize) -> Result<()> {
    let mut start = std::ptr::null_mut();
    call!(gpu, cuMemHostAlloc(&mut start, len, MAPPED))?;
    call!(gpu, cuMemFreeHost(start))
}

/// Where physical memory is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Location {
    Device,
    Host,
}

impl Location {
    fn of(self, gpu: &Gpu) -> CUmemLocation {
        match self {
            Location::Device => CUmemLocation {
                type_: CU_MEM_LOCATION_TYPE_DEVICE,
                id: gpu.device,
            },
            Location::Host => CUmemLocation {
                type_: CU_MEM_LOCATION_TYPE_HOST_NUMA,
                id: gpu
                    .attribute(greenboost_abi::CU_DEVICE_ATTRIBUTE_HOST_NUMA_ID)
                    .max(0),
            },
        }
    }
}

/// A piece of physical memory.
pub struct Piece<'g> {
    gpu: &'g Gpu,
    handle: CUmemGenericAllocationHandle,
    pub len: usize,
}

impl<'g> Piece<'g> {
    /// Makes it.
    ///
    /// # Errors
    /// The driver's.
    pub fn new(gpu: &'g Gpu, location: Location, len: usize) -> Result<Piece<'g>> {
        let properties = CUmemAllocationProp {
            type_: CU_MEM_ALLOCATION_TYPE_PINNED,
            requestedHandleTypes: CU_MEM_HANDLE_TYPE_NONE,
            location: location.of(gpu),
            win32HandleMetaData: std::ptr::null_mut(),
            allocFlags: CUmemAllocFlags::default(),
        };
        let mut handle = 0;
        call!(gpu, cuMemCreate(&mut handle, len, &properties, 0))?;
        Ok(Piece { gpu, handle, len })
    }
}

impl Drop for Piece<'_> {
    fn drop(&mut self) {
        let _ = call!(self.gpu, cuMemRelease(self.handle));
    }
}

/// A range of addresses, mapped from its start.
pub struct Range<'g> {
    gpu: &'g Gpu,
    pub address: CUdeviceptr,
    len: usize,
    /// Lengths of what is mapped, one after the other.
    mapped: Vec<usize>,
}

impl<'g> Range<'g> {
    /// Reserves it.
    ///
    /// # Errors
    /// The driver's.
    pub fn new(gpu: &'g Gpu, len: usize) -> Result<Range<'g>> {
        let mut address = 0;
        call!(gpu, cuMemAddressReserve(&mut address, len, 2 << 20, 0, 0))?;
        Ok(Range {
            gpu,
            address,
            len,
            mapped: Vec::new(),
        })
    }

    fn end(&self) -> CUdeviceptr {
        self.address + self.mapped.iter().sum::<usize>() as u64
    }

    /// Maps a piece after those that are mapped.
    ///
    /// # Errors
    /// The driver's.
    pub fn map(&mut self, piece: &Piece) -> Result<()> {
        call!(
            self.gpu,
            cuMemMap(self.end(), piece.len, 0, piece.handle, 0)
        )?;
        self.mapped.push(piece.len);
        Ok(())
    }

    /// Lets the device use all that is mapped.
    ///
    /// # Errors
    /// The driver's.
    pub fn open(&self) -> Result<()> {
        let access = CUmemAccessDesc {
            location: Location::Device.of(self.gpu),
            flags: CU_MEM_ACCESS_FLAGS_PROT_READWRITE,
        };
        let len = self.mapped.iter().sum();
        call!(self.gpu, cuMemSetAccess(self.address, len, &access, 1))
    }

    /// Unmaps everything, piece by piece. Nothing may use it any more.
    ///
    /// # Errors
    /// The driver's.
    pub fn unmap(&mut self) -> Result<()> {
        while let Some(len) = self.mapped.pop() {
            call!(self.gpu, cuMemUnmap(self.end(), len))?;
        }
        Ok(())
    }
}

impl Drop for Range<'_> {
    fn drop(&mut self) {
        let _ = self.gpu.synchronize();
        let _ = self.unmap();
        let _ = call!(self.gpu, cuMemAddressFree(self.address, self.len));
    }
}
