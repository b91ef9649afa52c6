//! Operations that mean to us what they mean to the driver: they pass the gate, and what they name is noted.
//!
//! Each handler is called as the function that it replaces.

use std::ffi::{c_uchar, c_uint, c_ulonglong, c_ushort, c_void};

use greenboost_abi::*;

use super::order::{Operand, extent};
use crate::hooks::real;
use crate::tier::staging::admit;
use crate::tier::{access, gate, map, steward};

/// Bytes of so many elements.
fn scaled(count: usize, size: u64) -> u64 {
    (count as u64).saturating_mul(size)
}

/// Notes the operands of a batch of copies.
///
/// # Safety
/// The lists are the program's, of `count` elements each, or null.
unsafe fn note_batch(to: *const u64, from: *const u64, bytes: *const usize, count: usize) {
    if !access::wanted() || to.is_null() || from.is_null() || bytes.is_null() {
        return;
    }
    for at in 0..count {
        // SAFETY: the caller's promise.
        let (to, from, bytes) = unsafe { (*to.add(at), *from.add(at), *bytes.add(at) as u64) };
        access::copied(&[(to, bytes), (from, bytes)]);
    }
}

macro_rules! passes {
    ($($name:ident($($arg:ident: $ty:ty),*) names $operands:expr;)*) => {$(
        #[doc = concat!("Replaces `", stringify!($name), "`.")]
        ///
        /// # Safety
        /// As for the function it replaces.
        #[allow(non_snake_case, clippy::too_many_arguments)]
        pub unsafe fn $name($($arg: $ty),*) -> CUresult {
            let _pass = gate::pass();
            let operands: &[Operand] = &$operands;
            access::copied(operands);
            // SAFETY: the program's own call.
            unsafe { real::$name($($arg),*) }
        }
    )*};
}

macro_rules! sends {
    ($($name:ident;)*) => {$(
        #[doc = concat!("Replaces `", stringify!($name), "`.")]
        ///
        /// # Safety
        /// As for the function it replaces.
        #[allow(non_snake_case)]
        pub unsafe fn $name(to: CUdeviceptr, from: *const c_void, bytes: usize, stream: CUstream) -> CUresult {
            let _pass = gate::pass();
            access::copied(&[(to, bytes as u64)]);
            // SAFETY: the program's own call.
            unsafe {
                admit::upload(from, bytes);
                real::$name(to, from, bytes, stream)
            }
        }
    )*};
}

sends! {
    cuMemcpyHtoDAsync_v2;
    cuMemcpyHtoDAsync_v2_ptsz;
}

macro_rules! batches {
    ($($name:ident($($more:ident: $ty:ty),*);)*) => {$(
        #[doc = concat!("Replaces `", stringify!($name), "`.")]
        ///
        /// # Safety
        /// As for the function it replaces.
        #[allow(non_snake_case, clippy::too_many_arguments)]
        pub unsafe fn $name(
            to: *mut CUdeviceptr,
            from: *mut CUdeviceptr,
            bytes: *mut usize,
            count: usize,
            $($more: $ty),*
        ) -> CUresult {
            let _pass = gate::pass();
            // SAFETY: the program's own call.
            unsafe {
                let result = real::$name(to, from, bytes, count, $($more),*);
                if result == CUDA_SUCCESS {
                    note_batch(to, from, bytes, count);
                }
                result
            }
        }
    )*};
}

/// Whatever words of a list of stream memory operations could be addresses (`CUstreamBatchMemOpParams` is six words).
///
/// # Safety
/// The list is the program's, of `count` entries, or null.
unsafe fn keep_listed(list: *const c_void, count: c_uint) {
    // `CUstreamBatchMemOpParams` is six words; which of them is the address depends on the operation.
    let words = if list.is_null() {
        0
    } else {
        count as usize * 6
    };
    for at in 0..words {
        // SAFETY: the caller's promise.
        keep(unsafe { list.cast::<u64>().add(at).read() });
    }
}

/// The front end of the GPU polls and writes these addresses itself: the memory is never moved.
fn keep(address: CUdeviceptr) {
    if access::owned(address) {
        map::keep(address);
    }
}

macro_rules! fixes {
    ($($name:ident($($arg:ident: $ty:ty),*) by $keep:expr;)*) => {$(
        #[doc = concat!("Replaces `", stringify!($name), "`.")]
        ///
        /// # Safety
        /// As for the function it replaces.
        #[allow(non_snake_case)]
        pub unsafe fn $name($($arg: $ty),*) -> CUresult {
            let _pass = gate::pass();
            // SAFETY: the program's own call.
            unsafe {
                $keep;
                real::$name($($arg),*)
            }
        }
    )*};
}

/// After a synchronous copy to the host the device is likely drained.
macro_rules! downloads {
    ($($name:ident;)*) => {$(
        #[doc = concat!("Replaces `", stringify!($name), "`.")]
        ///
        /// # Safety
        /// As for the function it replaces.
        #[allow(non_snake_case)]
        pub unsafe fn $name(to: *mut c_void, from: CUdeviceptr, bytes: usize) -> CUresult {
            let result = {
                let _pass = gate::pass();
                access::copied(&[(from, bytes as u64)]);
                // SAFETY: the program's own call.
                unsafe { real::$name(to, from, bytes) }
            };
            if result == CUDA_SUCCESS {
                steward::waited();
            }
            result
        }
    )*};
}

downloads! {
    cuMemcpyDtoH_v2;
    cuMemcpyDtoH_v2_ptds;
}

passes! {
    cuMemcpyDtoHAsync_v2(to: *mut c_void, from: CUdeviceptr, bytes: usize, stream: CUstream) names [(from, bytes as u64)];
    cuMemsetD8Async(to: CUdeviceptr, value: c_uchar, count: usize, stream: CUstream) names [(to, count as u64)];
    cuMemsetD2D8Async(to: CUdeviceptr, pitch: usize, value: c_uchar, width: usize, height: usize, stream: CUstream) names [(to, extent(pitch, width, height))];
    cuMemsetD16Async(to: CUdeviceptr, value: c_ushort, count: usize, stream: CUstream) names [(to, scaled(count, 2))];
    cuMemsetD2D16Async(to: CUdeviceptr, pitch: usize, value: c_ushort, width: usize, height: usize, stream: CUstream) names [(to, extent(pitch, width.saturating_mul(2), height))];
    cuMemsetD32Async(to: CUdeviceptr, value: c_uint, count: usize, stream: CUstream) names [(to, scaled(count, 4))];
    cuMemsetD2D32Async(to: CUdeviceptr, pitch: usize, value: c_uint, width: usize, height: usize, stream: CUstream) names [(to, extent(pitch, width.saturating_mul(4), height))];
    cuMemcpyDtoHAsync_v2_ptsz(to: *mut c_void, from: CUdeviceptr, bytes: usize, stream: CUstream) names [(from, bytes as u64)];
    cuMemsetD8Async_ptsz(to: CUdeviceptr, value: c_uchar, count: usize, stream: CUstream) names [(to, count as u64)];
    cuMemsetD2D8Async_ptsz(to: CUdeviceptr, pitch: usize, value: c_uchar, width: usize, height: usize, stream: CUstream) names [(to, extent(pitch, width, height))];
    cuMemsetD16Async_ptsz(to: CUdeviceptr, value: c_ushort, count: usize, stream: CUstream) names [(to, scaled(count, 2))];
    cuMemsetD2D16Async_ptsz(to: CUdeviceptr, pitch: usize, value: c_ushort, width: usize, height: usize, stream: CUstream) names [(to, extent(pitch, width.saturating_mul(2), height))];
    cuMemsetD32Async_ptsz(to: CUdeviceptr, value: c_uint, count: usize, stream: CUstream) names [(to, scaled(count, 4))];
    cuMemsetD2D32Async_ptsz(to: CUdeviceptr, pitch: usize, value: c_uint, width: usize, height: usize, stream: CUstream) names [(to, extent(pitch, width.saturating_mul(4), height))];
    cuMemcpyDtoA_v2(to: CUarray, at: usize, from: CUdeviceptr, bytes: usize) names [(from, bytes as u64)];
    cuMemcpyAtoD_v2(to: CUdeviceptr, from: CUarray, at: usize, bytes: usize) names [(to, bytes as u64)];
    cuMemcpyAtoA_v2(to: CUarray, to_at: usize, from: CUarray, from_at: usize, bytes: usize) names [];
    cuMemcpyAtoH_v2(to: *mut c_void, from: CUarray, at: usize, bytes: usize) names [];
    cuMemcpyHtoA_v2(to: CUarray, at: usize, from: *const c_void, bytes: usize) names [];
    cuMemcpyDtoA_v2_ptds(to: CUarray, at: usize, from: CUdeviceptr, bytes: usize) names [(from, bytes as u64)];
    cuMemcpyAtoD_v2_ptds(to: CUdeviceptr, from: CUarray, at: usize, bytes: usize) names [(to, bytes as u64)];
    cuMemcpyAtoA_v2_ptds(to: CUarray, to_at: usize, from: CUarray, from_at: usize, bytes: usize) names [];
    cuMemcpyAtoH_v2_ptds(to: *mut c_void, from: CUarray, at: usize, bytes: usize) names [];
    cuMemcpyHtoA_v2_ptds(to: CUarray, at: usize, from: *const c_void, bytes: usize) names [];
    cuMemcpyAtoHAsync_v2(to: *mut c_void, from: CUarray, at: usize, bytes: usize, stream: CUstream) names [];
    cuMemcpyHtoAAsync_v2(to: CUarray, at: usize, from: *const c_void, bytes: usize, stream: CUstream) names [];
    cuMemcpy3DBatchAsync(count: usize, list: *mut c_void, failed: *mut usize, flags: c_ulonglong, stream: CUstream) names [admit::ANYTHING];
    cuMemcpy3DBatchAsync_v2(count: usize, list: *mut c_void, flags: c_ulonglong, stream: CUstream) names [admit::ANYTHING];
    cuMemPrefetchAsync(address: CUdeviceptr, bytes: usize, device: CUdevice, stream: CUstream) names [(address, bytes as u64)];
    cuMemPrefetchAsync_v2(address: CUdeviceptr, bytes: usize, location: CUmemLocation, flags: c_uint, stream: CUstream) names [(address, bytes as u64)];
    cuMemPrefetchBatchAsync(addresses: *mut CUdeviceptr, bytes: *mut usize, count: usize, locations: *mut CUmemLocation, indices: *mut usize, places: usize, flags: c_ulonglong, stream: CUstream) names [admit::ANYTHING];
    cuMemDiscardAndPrefetchBatchAsync(addresses: *mut CUdeviceptr, bytes: *mut usize, count: usize, locations: *mut CUmemLocation, indices: *mut usize, places: usize, flags: c_ulonglong, stream: CUstream) names [admit::ANYTHING];
    cuMemDiscardBatchAsync(addresses: *mut CUdeviceptr, bytes: *mut usize, count: usize, flags: c_ulonglong, stream: CUstream) names [admit::ANYTHING];
    cuMemBatchDecompressAsync(list: *mut c_void, count: usize, flags: c_uint, failed: *mut usize, stream: CUstream) names [admit::ANYTHING];
    cuMemMapArrayAsync(list: *mut c_void, count: c_uint, stream: CUstream) names [];
    cuMemcpyAtoHAsync_v2_ptsz(to: *mut c_void, from: CUarray, at: usize, bytes: usize, stream: CUstream) names [];
    cuMemcpyHtoAAsync_v2_ptsz(to: CUarray, at: usize, from: *const c_void, bytes: usize, stream: CUstream) names [];
    cuMemcpy3DBatchAsync_ptsz(count: usize, list: *mut c_void, failed: *mut usize, flags: c_ulonglong, stream: CUstream) names [admit::ANYTHING];
    cuMemcpy3DBatchAsync_v2_ptsz(count: usize, list: *mut c_void, flags: c_ulonglong, stream: CUstream) names [admit::ANYTHING];
    cuMemPrefetchAsync_ptsz(address: CUdeviceptr, bytes: usize, device: CUdevice, stream: CUstream) names [(address, bytes as u64)];
    cuMemPrefetchAsync_v2_ptsz(address: CUdeviceptr, bytes: usize, location: CUmemLocation, flags: c_uint, stream: CUstream) names [(address, bytes as u64)];
    cuMemPrefetchBatchAsync_ptsz(addresses: *mut CUdeviceptr, bytes: *mut usize, count: usize, locations: *mut CUmemLocation, indices: *mut usize, places: usize, flags: c_ulonglong, stream: CUstream) names [admit::ANYTHING];
    cuMemDiscardAndPrefetchBatchAsync_ptsz(addresses: *mut CUdeviceptr, bytes: *mut usize, count: usize, locations: *mut CUmemLocation, indices: *mut usize, places: usize, flags: c_ulonglong, stream: CUstream) names [admit::ANYTHING];
    cuMemDiscardBatchAsync_ptsz(addresses: *mut CUdeviceptr, bytes: *mut usize, count: usize, flags: c_ulonglong, stream: CUstream) names [admit::ANYTHING];
    cuMemBatchDecompressAsync_ptsz(list: *mut c_void, count: usize, flags: c_uint, failed: *mut usize, stream: CUstream) names [admit::ANYTHING];
    cuMemMapArrayAsync_ptsz(list: *mut c_void, count: c_uint, stream: CUstream) names [];
}

batches! {
    cuMemcpyBatchAsync(attributes: *mut c_void, indices: *mut usize, kinds: usize, failed: *mut usize, stream: CUstream);
    cuMemcpyBatchAsync_v2(attributes: *mut c_void, indices: *mut usize, kinds: usize, stream: CUstream);
    cuMemcpyBatchAsync_ptsz(attributes: *mut c_void, indices: *mut usize, kinds: usize, failed: *mut usize, stream: CUstream);
    cuMemcpyBatchAsync_v2_ptsz(attributes: *mut c_void, indices: *mut usize, kinds: usize, stream: CUstream);
}

fixes! {
    cuStreamWaitValue32(stream: CUstream, address: CUdeviceptr, value: c_uint, flags: c_uint) by keep(address);
    cuStreamWriteValue32(stream: CUstream, address: CUdeviceptr, value: c_uint, flags: c_uint) by keep(address);
    cuStreamWaitValue64(stream: CUstream, address: CUdeviceptr, value: c_ulonglong, flags: c_uint) by keep(address);
    cuStreamWriteValue64(stream: CUstream, address: CUdeviceptr, value: c_ulonglong, flags: c_uint) by keep(address);
    cuStreamBatchMemOp(stream: CUstream, count: c_uint, list: *mut c_void, flags: c_uint) by keep_listed(list, count);
    cuStreamWaitValue32_v2(stream: CUstream, address: CUdeviceptr, value: c_uint, flags: c_uint) by keep(address);
    cuStreamWriteValue32_v2(stream: CUstream, address: CUdeviceptr, value: c_uint, flags: c_uint) by keep(address);
    cuStreamWaitValue64_v2(stream: CUstream, address: CUdeviceptr, value: c_ulonglong, flags: c_uint) by keep(address);
    cuStreamWriteValue64_v2(stream: CUstream, address: CUdeviceptr, value: c_ulonglong, flags: c_uint) by keep(address);
    cuStreamBatchMemOp_v2(stream: CUstream, count: c_uint, list: *mut c_void, flags: c_uint) by keep_listed(list, count);
    cuStreamWaitValue32_ptsz(stream: CUstream, address: CUdeviceptr, value: c_uint, flags: c_uint) by keep(address);
    cuStreamWriteValue32_ptsz(stream: CUstream, address: CUdeviceptr, value: c_uint, flags: c_uint) by keep(address);
    cuStreamWaitValue64_ptsz(stream: CUstream, address: CUdeviceptr, value: c_ulonglong, flags: c_uint) by keep(address);
    cuStreamWriteValue64_ptsz(stream: CUstream, address: CUdeviceptr, value: c_ulonglong, flags: c_uint) by keep(address);
    cuStreamBatchMemOp_ptsz(stream: CUstream, count: c_uint, list: *mut c_void, flags: c_uint) by keep_listed(list, count);
    cuStreamWaitValue32_v2_ptsz(stream: CUstream, address: CUdeviceptr, value: c_uint, flags: c_uint) by keep(address);
    cuStreamWriteValue32_v2_ptsz(stream: CUstream, address: CUdeviceptr, value: c_uint, flags: c_uint) by keep(address);
    cuStreamWaitValue64_v2_ptsz(stream: CUstream, address: CUdeviceptr, value: c_ulonglong, flags: c_uint) by keep(address);
    cuStreamWriteValue64_v2_ptsz(stream: CUstream, address: CUdeviceptr, value: c_ulonglong, flags: c_uint) by keep(address);
    cuStreamBatchMemOp_v2_ptsz(stream: CUstream, count: c_uint, list: *mut c_void, flags: c_uint) by keep_listed(list, count);
}
