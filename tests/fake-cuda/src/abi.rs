//! Pointers as they arrive from C: null is an answer, anything else must be valid (the ABI's word).
use core::ffi::{CStr, c_char, c_int, c_uint, c_void};

use greenboost_abi::{CUDA_ERROR_INVALID_VALUE, CUresult};

pub(crate) type Res<T = ()> = Result<T, CUresult>;

pub(crate) type HostFn = unsafe extern "C" fn(*mut c_void);
pub(crate) type StreamCallback = unsafe extern "C" fn(*mut c_void, CUresult, *mut c_void);

/// Where a result goes. Only the ABI makes one, so a non-null one points to writable memory.
#[repr(transparent)]
pub struct Out<T>(*mut T);

impl<T> Clone for Out<T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for Out<T> {}

impl<T> Out<T> {
    pub(crate) fn is_null(self) -> bool {
        self.0.is_null()
    }

    pub(crate) fn check(self) -> Res {
        if self.0.is_null() {
            Err(CUDA_ERROR_INVALID_VALUE)
        } else {
            Ok(())
        }
    }

    /// Stores a result that the caller must want.
    pub(crate) fn set(self, value: T) -> Res {
        self.check()?;
        // SAFETY: not null, and the caller of the C function vouches for it.
        unsafe { self.0.write_unaligned(value) };
        Ok(())
    }

    /// Stores a result that the caller may decline with null.
    pub(crate) fn maybe(self, value: T) {
        let _ = self.set(value);
    }

    /// Stores the `i`-th of an array of results.
    pub(crate) fn set_at(self, i: usize, value: T) -> Res {
        self.check()?;
        // SAFETY: the caller of the C function vouches for the array's length, which bounds `i`.
        unsafe { self.0.add(i).write_unaligned(value) };
        Ok(())
    }
}

impl<T: Copy> Out<T> {
    pub(crate) fn get(self) -> Res<T> {
        self.check()?;
        // SAFETY: not null, and the caller of the C function vouches for it.
        Ok(unsafe { self.0.read_unaligned() })
    }
}

/// Where an argument (or an array of them) lies.
#[repr(transparent)]
pub struct In<T>(*const T);

impl<T> Clone for In<T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for In<T> {}

impl<T: Copy> In<T> {
    pub(crate) fn is_null(self) -> bool {
        self.0.is_null()
    }

    pub(crate) fn get(self) -> Res<T> {
        self.at(0)
    }

    pub(crate) fn at(self, i: usize) -> Res<T> {
        if self.0.is_null() {
            return Err(CUDA_ERROR_INVALID_VALUE);
        }
        // SAFETY: not null, and the caller of the C function vouches for it and for the length.
        Ok(unsafe { self.0.add(i).read_unaligned() })
    }

    pub(crate) fn many(self, n: usize) -> Res<Vec<T>> {
        (0..n).map(|i| self.at(i)).collect()
    }
}

/// A C string.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub struct Text(*const c_char);

impl Text {
    pub(crate) fn get(self) -> Res<&'static str> {
        if self.0.is_null() {
            return Err(CUDA_ERROR_INVALID_VALUE);
        }
        // SAFETY: not null and, says the caller of the C function, terminated; used only during the call.
        unsafe { CStr::from_ptr(self.0) }
            .to_str()
            .map_err(|_| CUDA_ERROR_INVALID_VALUE)
    }
}

/// A buffer for a C string that the caller sized.
pub(crate) fn put_text(to: Out<c_char>, room: usize, text: &str) -> Res {
    to.check()?;
    if room == 0 {
        return Err(CUDA_ERROR_INVALID_VALUE);
    }
    let n = text.len().min(room - 1);
    for (i, byte) in text.bytes().take(n).chain([0]).enumerate() {
        to.set_at(i, byte as c_char)?;
    }
    Ok(())
}

/// `CUDA_MEMCPY3D` (v2) and `CUDA_MEMCPY3D_PEER`, which differ in the meaning of two fields only.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Memcpy3D {
    pub srcXInBytes: usize,
    pub srcY: usize,
    pub srcZ: usize,
    pub srcLOD: usize,
    pub srcMemoryType: c_uint,
    pub srcHost: *const c_void,
    pub srcDevice: u64,
    pub srcArray: *mut c_void,
    pub srcContext: *mut c_void,
    pub srcPitch: usize,
    pub srcHeight: usize,
    pub dstXInBytes: usize,
    pub dstY: usize,
    pub dstZ: usize,
    pub dstLOD: usize,
    pub dstMemoryType: c_uint,
    pub dstHost: *mut c_void,
    pub dstDevice: u64,
    pub dstArray: *mut c_void,
    pub dstContext: *mut c_void,
    pub dstPitch: usize,
    pub dstHeight: usize,
    pub WidthInBytes: usize,
    pub Height: usize,
    pub Depth: usize,
}

/// `CUctxCreateParams`
#[repr(C)]
#[derive(Clone, Copy)]
pub struct CtxCreateParams {
    pub execAffinityParams: *mut c_void,
    pub numExecAffinityParams: c_int,
    pub cigParams: *mut c_void,
}
