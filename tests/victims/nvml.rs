//! What NVML says of memory, before CUDA comes up, with it, and beside `cuMemGetInfo`.

use victim::gpu::Gpu;
use victim::sys::{self, RTLD_LOCAL, RTLD_NOW};
use victim::*;

type Init = unsafe extern "C" fn() -> nvmlReturn_t;
type ByIndex = unsafe extern "C" fn(c_uint, *mut nvmlDevice_t) -> nvmlReturn_t;
type Info = unsafe extern "C" fn(nvmlDevice_t, *mut nvmlMemory_t) -> nvmlReturn_t;
type InfoV2 = unsafe extern "C" fn(nvmlDevice_t, *mut nvmlMemory_v2_t) -> nvmlReturn_t;

struct Nvml {
    by_index: ByIndex,
    info: Info,
    info_v2: InfoV2,
}

impl Nvml {
    fn open() -> Nvml {
        let h = sys::open(Some("libnvidia-ml.so.1"), RTLD_NOW | RTLD_LOCAL);
        let get = |name: &str| {
            let p = sys::symbol(h, name);
            assert!(!p.is_null(), "{name}");
            p
        };
        // SAFETY: declared as in nvml.h.
        unsafe {
            let init = std::mem::transmute::<*mut c_void, Init>(get("nvmlInit_v2"));
            assert_eq!(init(), NVML_SUCCESS);
            Nvml {
                by_index: std::mem::transmute::<*mut c_void, ByIndex>(get(
                    "nvmlDeviceGetHandleByIndex_v2",
                )),
                info: std::mem::transmute::<*mut c_void, Info>(get("nvmlDeviceGetMemoryInfo")),
                info_v2: std::mem::transmute::<*mut c_void, InfoV2>(get(
                    "nvmlDeviceGetMemoryInfo_v2",
                )),
            }
        }
    }

    fn show(&self, when: &str) {
        let mut device = std::ptr::null_mut();
        let mut one = nvmlMemory_t::default();
        let mut two = nvmlMemory_v2_t {
            version: nvmlMemory_v2,
            ..Default::default()
        };
        let mut wrong = nvmlMemory_v2_t {
            version: 7,
            ..Default::default()
        };
        // SAFETY: places for the answers.
        let codes = unsafe {
            assert_eq!((self.by_index)(0, &mut device), NVML_SUCCESS);
            [
                (self.info)(device, &mut one),
                (self.info_v2)(device, &mut two),
                (self.info_v2)(device, &mut wrong),
                (self.info)(device, std::ptr::null_mut()),
                (self.info_v2)(device, std::ptr::null_mut()),
            ]
        };
        println!("{when}: {codes:?} version {:#x}", two.version);
        println!("~ nvml1-{when} {} {} {}", one.total, one.free, one.used);
        println!(
            "~ nvml2-{when} {} {} {} {}",
            two.total, two.free, two.used, two.reserved
        );
    }
}

fn main() {
    let nvml = Nvml::open();
    nvml.show("before");
    if argument(1) == "alone" {
        return;
    }
    let gpu = Gpu::open();
    let show = |when: &str| {
        nvml.show(when);
        let (free, total) = gpu.memory();
        println!("~ cuda-{when} {total} {free}");
    };
    show("start");
    let (p, small) = (gpu.alloc(30 << 20), gpu.alloc(1000));
    show("held");
    gpu.free(p);
    gpu.free(small);
    show("end");
}
