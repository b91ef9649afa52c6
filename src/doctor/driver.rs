//! The look at the driver, in a process of its own: a driver may hang or crash, and then only that process does.
//!
//! Everything is tried for real, because attributes promise what some machines then refuse. Before each step that may
//! hang the process says what it is about to do; after it, what is known so far. Both are lines of JSON on stdout.

use std::ffi::{CStr, c_char, c_int, c_uint, c_ulonglong, c_void};
use std::io::Write;
use std::path::PathBuf;
use std::ptr;

use greenboost_abi::*;
use libloading::Library;
use serde::{Deserialize, Serialize};

use crate::embed;

/// Small enough for a full card, and the smallest piece that the shim uses.
const PIECE: usize = 2 << 20;
/// `CU_DEVICE_ATTRIBUTE_PAGEABLE_MEMORY_ACCESS_USES_HOST_PAGE_TABLES`: true where CPU and GPU share page tables.
const SHARES_PAGE_TABLES: CUdevice_attribute = 100;

/// What the driver says and does.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Driver {
    /// The file that was loaded.
    pub library: Option<PathBuf>,
    /// Whether that is the simulated driver out of this executable.
    pub simulated: bool,
    /// Why none could be loaded.
    pub load_error: Option<String>,
    /// What `cuInit` returned.
    pub init: Option<CUresult>,
    /// 13000 for 13.0.
    pub version: c_int,
    /// The devices, as this process sees them.
    pub devices: Vec<Gpu>,
}

/// One device.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Gpu {
    pub ordinal: c_int,
    pub name: String,
    /// Bytes.
    pub total: u64,
    /// Bytes that are free now, if a context could be made.
    pub free: Option<u64>,
    /// Compute capability.
    pub capability: (c_int, c_int),
    /// Part of the processor: it has no memory of its own.
    pub integrated: bool,
    /// CPU and GPU read each other's memory in hardware, by the same page tables.
    pub coherent: bool,
    /// Making a context.
    pub context: Trial,
    /// Memory of the device, mapped by virtual memory management, set and read back.
    pub device_backing: Trial,
    /// The same with memory of each host node, nearest first.
    pub host_backing: Vec<Node>,
    /// Pinning ordinary memory.
    pub pinning: Trial,
}

/// A node of host memory.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Node {
    pub node: c_int,
    pub trial: Trial,
}

/// How an attempt went.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "result")]
pub enum Trial {
    /// It was not made.
    #[default]
    Untried,
    /// It worked.
    Works,
    /// This call was refused; no code: the driver does not have it.
    Refused {
        call: String,
        code: Option<CUresult>,
    },
    /// Everything was granted, but other bytes came back.
    Wrong,
}

impl Gpu {
    /// Whether something can spill.
    pub fn can_spill(&self) -> bool {
        self.host_backing.iter().any(|n| n.trial == Trial::Works)
    }
}

/// One line of the child.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Line {
    /// What comes next.
    Doing(String),
    /// What is known.
    Known(Driver),
}

/// A call that failed.
struct Refused(&'static str, Option<CUresult>);
type Result<T> = std::result::Result<T, Refused>;

impl From<Result<()>> for Trial {
    fn from(result: Result<()>) -> Trial {
        match result {
            Ok(()) => Trial::Works,
            Err(Refused(call, code)) => Trial::Refused {
                call: call.to_string(),
                code,
            },
        }
    }
}

/// Looks a function up and calls it. Old drivers lack some, so each is looked up when it is needed.
macro_rules! call {
    ($library:expr, $name:literal, $($arg:expr => $type:ty),* $(,)?) => {{
        // SAFETY: the types are those in cuda.h.
        let found = unsafe {
            $library.get::<unsafe extern "C" fn($($type),*) -> CUresult>(concat!($name, "\0").as_bytes())
        };
        match found {
            // SAFETY: every pointer among the arguments is to a live value of the type that cuda.h asks for.
            Ok(function) => match unsafe { function($($arg),*) } {
                CUDA_SUCCESS => Ok(()),
                code => Err(Refused($name, Some(code))),
            },
            Err(_) => Err(Refused($name, None)),
        }
    }};
}

fn say(line: &Line) {
    let mut out = std::io::stdout().lock();
    let text = serde_json::to_string(line).unwrap_or_default();
    // Out at once: the next call may be the last. A reader that has gone away does not matter.
    let _ = writeln!(out, "{text}").and_then(|()| out.flush());
}

fn doing(what: &str) {
    say(&Line::Doing(what.to_string()));
}

/// The child: looks, and says what it finds.
pub fn look() -> u8 {
    let mut driver = Driver::default();
    doing("loading libcuda.so.1");
    // SAFETY: its initialisers are those that every CUDA program runs.
    match unsafe { Library::new("libcuda.so.1") } {
        Ok(library) => {
            driver.library = loaded_from();
            driver.simulated = driver.library.as_ref().is_some_and(|path| {
                std::fs::read(path).is_ok_and(|bytes| bytes == embed::SIMULATED_DRIVER.bytes)
            });
            say(&Line::Known(driver.clone()));
            look_into(&library, &mut driver);
            // Drivers do not survive being unloaded.
            std::mem::forget(library);
        }
        Err(error) => {
            // The loader's own words are one level down.
            let source = std::error::Error::source(&error).map(ToString::to_string);
            driver.load_error = Some(source.unwrap_or_else(|| error.to_string()));
        }
    }
    say(&Line::Known(driver));
    0
}

/// The file behind the library, which only the kernel knows for sure.
fn loaded_from() -> Option<PathBuf> {
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    maps.lines()
        .filter_map(|line| Some(PathBuf::from(&line[line.find('/')?..])))
        .find(|path| {
            path.file_name()
                .is_some_and(|n| n.to_string_lossy().starts_with("libcuda.so"))
        })
}

fn look_into(library: &Library, driver: &mut Driver) {
    // Needs no initialised driver, and tells what could not be initialised.
    let _ = call!(library, "cuDriverGetVersion", &mut driver.version => *mut c_int);
    doing("calling cuInit");
    let init = call!(library, "cuInit", 0 => c_uint);
    driver.init = match init {
        Ok(()) => Some(CUDA_SUCCESS),
        Err(Refused(_, code)) => code.or(Some(CUDA_ERROR_NOT_FOUND)),
    };
    let mut devices = 0;
    if driver.init == Some(CUDA_SUCCESS) {
        let _ = call!(library, "cuDeviceGetCount", &mut devices => *mut c_int);
    }
    for ordinal in 0..devices {
        driver.devices.push(Gpu {
            ordinal,
            ..Gpu::default()
        });
        let last = driver.devices.len() - 1;
        doing(&format!("asking GPU {ordinal} what it is"));
        describe(library, &mut driver.devices[last]);
        say(&Line::Known(driver.clone()));
        try_out(library, &mut driver.devices[last]);
        say(&Line::Known(driver.clone()));
    }
}

fn attribute(library: &Library, which: CUdevice_attribute, device: CUdevice) -> c_int {
    let mut value = 0;
    let asked = call!(library, "cuDeviceGetAttribute",
        &mut value => *mut c_int, which => CUdevice_attribute, device => CUdevice);
    asked.map_or(0, |()| value)
}

fn describe(library: &Library, gpu: &mut Gpu) {
    let device = gpu.ordinal;
    let mut name = [0u8; 256];
    let named = call!(library, "cuDeviceGetName",
        name.as_mut_ptr().cast() => *mut c_char, 255 => c_int, device => CUdevice);
    if named.is_ok()
        && let Ok(text) = CStr::from_bytes_until_nul(&name)
    {
        gpu.name = text.to_string_lossy().into_owned();
    }
    let mut total = 0usize;
    let _ = call!(library, "cuDeviceTotalMem_v2", &mut total => *mut usize, device => CUdevice);
    gpu.total = total as u64;
    let has = |which| attribute(library, which, device);
    gpu.capability = (
        has(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR),
        has(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR),
    );
    gpu.integrated = has(CU_DEVICE_ATTRIBUTE_INTEGRATED) != 0;
    gpu.coherent = !gpu.integrated && has(SHARES_PAGE_TABLES) != 0;
}

fn try_out(library: &Library, gpu: &mut Gpu) {
    let device = gpu.ordinal;
    doing(&format!("making a context on GPU {device}"));
    let mut context: CUcontext = ptr::null_mut();
    let made = call!(library, "cuDevicePrimaryCtxRetain",
        &mut context => *mut CUcontext, device => CUdevice)
    .and_then(|()| call!(library, "cuCtxSetCurrent", context => CUcontext));
    let is_made = made.is_ok();
    gpu.context = made.into();
    if !is_made {
        return;
    }
    let (mut free, mut total) = (0usize, 0usize);
    let asked =
        call!(library, "cuMemGetInfo_v2", &mut free => *mut usize, &mut total => *mut usize);
    gpu.free = asked.ok().map(|()| free as u64);

    doing(&format!("mapping memory of GPU {device}"));
    let location = |type_, id| CUmemLocation { type_, id };
    gpu.device_backing = back(
        library,
        device,
        location(CU_MEM_LOCATION_TYPE_DEVICE, device),
    );
    for node in nodes(attribute(library, CU_DEVICE_ATTRIBUTE_HOST_NUMA_ID, device)) {
        doing(&format!(
            "mapping memory of host node {node} to GPU {device}"
        ));
        let trial = back(
            library,
            device,
            location(CU_MEM_LOCATION_TYPE_HOST_NUMA, node),
        );
        gpu.host_backing.push(Node { node, trial });
    }
    doing(&format!("pinning host memory for GPU {device}"));
    gpu.pinning = pin(library).into();
    doing(&format!("leaving GPU {device}"));
    let _ = call!(library, "cuCtxSetCurrent", ptr::null_mut() => CUcontext);
    let _ = call!(library, "cuDevicePrimaryCtxRelease_v2", device => CUdevice);
}

/// The host nodes with memory, the nearest first.
fn nodes(nearest: c_int) -> Vec<c_int> {
    let text = std::fs::read_to_string("/sys/devices/system/node/has_memory").unwrap_or_default();
    let listed = text
        .trim()
        .split(',')
        .filter_map(|part| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            Some(first.parse().ok()?..=last.parse().ok()?)
        })
        .flatten();
    let nearest = nearest.max(0);
    std::iter::once(nearest)
        .chain(listed.filter(|node| *node != nearest))
        .collect()
}

/// Makes a piece of memory there, maps it, lets the device write it, reads it, and takes everything down.
fn back(library: &Library, device: CUdevice, location: CUmemLocation) -> Trial {
    let properties = CUmemAllocationProp {
        type_: CU_MEM_ALLOCATION_TYPE_PINNED,
        requestedHandleTypes: CU_MEM_HANDLE_TYPE_NONE,
        location,
        win32HandleMetaData: ptr::null_mut(),
        allocFlags: CUmemAllocFlags::default(),
    };
    let (mut handle, mut address) = (0u64, 0u64);
    let made = call!(library, "cuMemCreate",
        &mut handle => *mut CUmemGenericAllocationHandle, PIECE => usize,
        &properties => *const CUmemAllocationProp, 0 => c_ulonglong);
    if made.is_err() {
        return made.into();
    }
    let reserved = call!(library, "cuMemAddressReserve",
        &mut address => *mut CUdeviceptr, PIECE => usize, PIECE => usize, 0 => CUdeviceptr, 0 => c_ulonglong);
    let mapped = reserved.and_then(|()| {
        call!(library, "cuMemMap", address => CUdeviceptr, PIECE => usize, 0 => usize,
            handle => CUmemGenericAllocationHandle, 0 => c_ulonglong)
    });
    let trial = match mapped {
        Ok(()) => {
            let trial = open_and_use(library, device, address);
            let _ = call!(library, "cuMemUnmap", address => CUdeviceptr, PIECE => usize);
            trial
        }
        refused => refused.into(),
    };
    if address != 0 {
        let _ = call!(library, "cuMemAddressFree", address => CUdeviceptr, PIECE => usize);
    }
    let _ = call!(library, "cuMemRelease", handle => CUmemGenericAllocationHandle);
    trial
}

fn open_and_use(library: &Library, device: CUdevice, address: CUdeviceptr) -> Trial {
    let access = CUmemAccessDesc {
        location: CUmemLocation {
            type_: CU_MEM_LOCATION_TYPE_DEVICE,
            id: device,
        },
        flags: CU_MEM_ACCESS_FLAGS_PROT_READWRITE,
    };
    let mut seen = [0u8; 64];
    let used = call!(library, "cuMemSetAccess", address => CUdeviceptr, PIECE => usize,
        &access => *const CUmemAccessDesc, 1 => usize)
    .and_then(
        |()| call!(library, "cuMemsetD8_v2", address => CUdeviceptr, 0xa5 => u8, PIECE => usize),
    )
    .and_then(|()| {
        let last = address + (PIECE - seen.len()) as u64;
        call!(library, "cuMemcpyDtoH_v2",
            seen.as_mut_ptr().cast() => *mut c_void, last => CUdeviceptr, seen.len() => usize)
    });
    match used {
        Ok(()) if seen != [0xa5; 64] => Trial::Wrong,
        other => other.into(),
    }
}

/// Pins a piece of ordinary memory and lets it go.
fn pin(library: &Library) -> Result<()> {
    // Whole pages of its own: nothing else may share a page that the driver pins.
    let mut memory = vec![1u8; PIECE + 4096];
    let start = memory.as_mut_ptr();
    let start = start.wrapping_add(start.align_offset(4096));
    call!(library, "cuMemHostRegister_v2",
        start.cast() => *mut c_void, PIECE => usize, 0 => c_uint)?;
    call!(library, "cuMemHostUnregister", start.cast() => *mut c_void)
}
