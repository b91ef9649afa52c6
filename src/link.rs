//! How busy a device's PCIe link is, as the driver counts it.
//!
//! NVML counts the bytes of 20 ms, those of all programs together and what the link needs for itself (measured: 58.4 GB/s
//! where copies move 55); it is asked by a thread of its own, because it takes that long to answer. A figure above what the link can carry is an error of the counter, and is no figure.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{CString, c_char, c_int, c_uint, c_void};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use libloading::Library;
use serde::Serialize;

use crate::probe;

/// How often each device is asked.
const EVERY: Duration = Duration::from_millis(500);
/// `NVML_PCIE_UTIL_TX_BYTES` and `NVML_PCIE_UTIL_RX_BYTES`: as the device sees it.
const SENT: c_uint = 0;
const RECEIVED: c_uint = 1;

/// One device's link. All in bytes per second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Link {
    /// What the device receives now: reads of host memory, and copies to the device.
    pub received: Option<u64>,
    /// What it sends.
    pub sent: Option<u64>,
    /// What the link can carry each way.
    pub rate: Option<u64>,
}

/// What the thread has found, by UUID.
type Found = Arc<Mutex<HashMap<[u8; 16], Link>>>;

/// The links of the devices that were asked about.
#[derive(Default)]
pub struct Links {
    found: Option<Found>,
}

impl Links {
    /// The link of a device. The first question starts the thread; until it has an answer there is none.
    pub fn of(&mut self, uuid: [u8; 16]) -> Link {
        let found = self.found.get_or_insert_with(|| {
            let found = Found::default();
            let theirs = found.clone();
            // Should there be no thread, there are no figures.
            let _ = std::thread::Builder::new()
                .name("link".into())
                .spawn(move || {
                    let _no_driver = watch(&theirs);
                });
            found
        });
        let mut found = found.lock().unwrap_or_else(PoisonError::into_inner);
        *found.entry(uuid).or_default()
    }
}

/// Asks for ever, about whoever is in the list; `None` when there is no such driver.
fn watch(found: &Found) -> Option<()> {
    let nvml = Nvml::load()?;
    let mut handles: HashMap<[u8; 16], Option<usize>> = HashMap::new();
    loop {
        // The list has ended when nobody else has it: the launcher is done.
        if Arc::strong_count(found) == 1 {
            return Some(());
        }
        let list = || found.lock().unwrap_or_else(PoisonError::into_inner);
        let uuids: Vec<_> = list().keys().copied().collect();
        for uuid in uuids {
            let handle = *handles.entry(uuid).or_insert_with(|| nvml.handle(&uuid));
            if let Some(handle) = handle {
                let link = nvml.link(handle);
                list().insert(uuid, link);
            }
        }
        std::thread::sleep(EVERY);
    }
}

/// What each link can carry, by ledger index: as it is built, or as copies were measured where that is not known.
pub fn ceiling<'a>(
    links: &'a BTreeMap<usize, Link>,
    measured: Option<&'a probe::Rates>,
) -> impl Fn(usize) -> Option<u64> + 'a {
    move |device| {
        let built = links.get(&device).and_then(|link| link.rate);
        built.or(measured.map(|rates| rates.dma as u64))
    }
}

/// What a PCIe link of this generation and width can carry each way: bytes per second.
fn rate(generation: c_uint, lanes: c_uint) -> Option<u64> {
    // Gigabits of data per second and lane, after encoding (PCIe base specification).
    let lane = match generation {
        1 => 2.0,
        2 => 4.0,
        3 => 7.877,
        4 => 15.754,
        5 => 31.508,
        6 => 60.5,
        _ => return None,
    };
    (1..=32)
        .contains(&lanes)
        .then(|| (lane / 8.0 * 1e9 * f64::from(lanes)) as u64)
}

/// A figure of the counter, unless it is above what is possible.
fn plausible(bytes: Option<u64>, rate: Option<u64>) -> Option<u64> {
    bytes.filter(|bytes| rate.is_none_or(|rate| *bytes <= rate))
}

type Number = unsafe extern "C" fn(*mut c_void, *mut c_uint) -> c_int;
type Counter = unsafe extern "C" fn(*mut c_void, c_uint, *mut c_uint) -> c_int;
type ByUuid = unsafe extern "C" fn(*const c_char, *mut *mut c_void) -> c_int;

/// The functions of NVML that are needed, never unloaded.
struct Nvml {
    by_uuid: ByUuid,
    generation: Number,
    lanes: Number,
    throughput: Counter,
}

impl Nvml {
    fn load() -> Option<Nvml> {
        // SAFETY: the initialisers are those of every program that uses NVML; the library stays loaded, so what is taken
        // from it stays valid, and each symbol has the signature that nvml.h gives it.
        unsafe {
            let library = Box::leak(Box::new(Library::new("libnvidia-ml.so.1").ok()?));
            let init = library
                .get::<unsafe extern "C" fn() -> c_int>(b"nvmlInit_v2")
                .ok()?;
            let nvml = Nvml {
                by_uuid: *library.get(b"nvmlDeviceGetHandleByUUID").ok()?,
                generation: *library.get(b"nvmlDeviceGetMaxPcieLinkGeneration").ok()?,
                lanes: *library.get(b"nvmlDeviceGetMaxPcieLinkWidth").ok()?,
                throughput: *library.get(b"nvmlDeviceGetPcieThroughput").ok()?,
            };
            (init() == 0).then_some(nvml)
        }
    }

    fn handle(&self, uuid: &[u8; 16]) -> Option<usize> {
        let name = CString::new(uuid_text(uuid)).ok()?;
        let mut handle = std::ptr::null_mut();
        // SAFETY: a string with its NUL, and room for the handle.
        let code = unsafe { (self.by_uuid)(name.as_ptr(), &mut handle) };
        (code == 0).then_some(handle as usize)
    }

    fn link(&self, handle: usize) -> Link {
        let handle = handle as *mut c_void;
        let number = |ask: Number| {
            let mut value = 0;
            // SAFETY: a handle that NVML gave, and room for the number.
            (unsafe { ask(handle, &mut value) } == 0).then_some(value)
        };
        let count = |counter| {
            let mut kilobytes = 0;
            // SAFETY: as above.
            let code = unsafe { (self.throughput)(handle, counter, &mut kilobytes) };
            (code == 0).then_some(u64::from(kilobytes) * 1000)
        };
        let rate = number(self.generation)
            .zip(number(self.lanes))
            .and_then(|(generation, lanes)| rate(generation, lanes));
        Link {
            received: plausible(count(RECEIVED), rate),
            sent: plausible(count(SENT), rate),
            rate,
        }
    }
}

/// A UUID as NVML writes it.
pub fn uuid_text(uuid: &[u8; 16]) -> String {
    let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
    let parts = [
        &uuid[..4],
        &uuid[4..6],
        &uuid[6..8],
        &uuid[8..10],
        &uuid[10..],
    ];
    format!("GPU-{}", parts.map(hex).join("-"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_above_physics_is_none() {
        let rate = rate(4, 16);
        assert_eq!(rate, Some(31_508_000_000));
        assert_eq!(plausible(Some(31_000_000_000), rate), Some(31_000_000_000));
        assert_eq!(plausible(Some(48_000_000_000), rate), None);
        assert_eq!(plausible(None, rate), None);
        assert_eq!(super::rate(9, 16), None, "a link that is not known yet");
        assert_eq!(super::rate(4, 0), None);
    }

    #[test]
    fn uuids() {
        assert_eq!(
            uuid_text(&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 255]),
            "GPU-00010203-0405-0607-0809-0a0b0c0d0eff"
        );
    }
}
