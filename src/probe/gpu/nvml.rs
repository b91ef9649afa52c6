//! What NVML says while a measurement runs: the link as it is under load, and what slows the clocks down.

use std::ffi::{CString, c_char, c_uint, c_ulonglong};

use libloading::Library;

use crate::probe::pcie::Link;

type Return = std::ffi::c_int;
type Handle = *mut std::ffi::c_void;

/// A device, through NVML.
pub struct Nvml {
    library: Library,
    device: Handle,
}

impl Nvml {
    /// Finds a device by its PCI address; `None` where there is no NVML.
    pub fn open(bus_id: &str) -> Option<Nvml> {
        // SAFETY: its initialisers are those that every program that uses NVML runs.
        let library = unsafe { Library::new("libnvidia-ml.so.1") }.ok()?;
        let bus_id = CString::new(bus_id).ok()?;
        let mut device: Handle = std::ptr::null_mut();
        // SAFETY: the types are those in nvml.h, the pointers are to live values of them.
        unsafe {
            let init = library
                .get::<unsafe extern "C" fn() -> Return>(b"nvmlInit_v2\0")
                .ok()?;
            let find = library
                .get::<unsafe extern "C" fn(*const c_char, *mut Handle) -> Return>(
                    b"nvmlDeviceGetHandleByPciBusId_v2\0",
                )
                .ok()?;
            if init() != 0 || find(bus_id.as_ptr(), &mut device) != 0 {
                return None;
            }
        }
        Some(Nvml { library, device })
    }

    /// The link as it is now: idle cards run it slower.
    pub fn link(&self) -> Option<Link> {
        Some(Link {
            generation: self.number(b"nvmlDeviceGetCurrPcieLinkGeneration\0")?,
            width: self.number(b"nvmlDeviceGetCurrPcieLinkWidth\0")?,
        })
    }

    /// What card and slot could do together.
    pub fn best_link(&self) -> Option<Link> {
        Some(Link {
            generation: self.number(b"nvmlDeviceGetMaxPcieLinkGeneration\0")?,
            width: self.number(b"nvmlDeviceGetMaxPcieLinkWidth\0")?,
        })
    }

    /// What slows the clocks down now, in words (`nvmlClocksThrottleReasons`).
    pub fn throttled(&self) -> Vec<&'static str> {
        const REASONS: [(c_ulonglong, &str); 4] = [
            (0x8, "hardware slowdown"),
            (0x20, "temperature"),
            (0x40, "temperature (hardware)"),
            (0x80, "external power brake"),
        ];
        let mut bits: c_ulonglong = 0;
        // SAFETY: as in `open`.
        let code = unsafe {
            self.library
                .get::<unsafe extern "C" fn(Handle, *mut c_ulonglong) -> Return>(
                    b"nvmlDeviceGetCurrentClocksThrottleReasons\0",
                )
                .map(|ask| ask(self.device, &mut bits))
        };
        if !matches!(code, Ok(0)) {
            return Vec::new();
        }
        let is_set = |(bit, _): &&(c_ulonglong, &str)| bits & bit != 0;
        REASONS
            .iter()
            .filter(is_set)
            .map(|(_, text)| *text)
            .collect()
    }

    fn number(&self, name: &[u8]) -> Option<c_uint> {
        let mut value: c_uint = 0;
        // SAFETY: as in `open`; all of these have this type.
        let code = unsafe {
            let ask = self
                .library
                .get::<unsafe extern "C" fn(Handle, *mut c_uint) -> Return>(name)
                .ok()?;
            ask(self.device, &mut value)
        };
        (code == 0 && value > 0).then_some(value)
    }
}

impl Drop for Nvml {
    fn drop(&mut self) {
        // SAFETY: as in `open`; it was initialised there.
        unsafe {
            if let Ok(end) = self
                .library
                .get::<unsafe extern "C" fn() -> Return>(b"nvmlShutdown\0")
            {
                end();
            }
        }
    }
}
