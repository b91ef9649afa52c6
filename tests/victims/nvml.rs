//! What NVML says of memory, before CUDA comes up, with it, and beside `cuMemGetInfo`.

use victim::gpu::Gpu;
use victim::sys::{self, RTLD_LOCAL, RTLD_NOW};
use victim::*;

type Init = unsafe extern "C" fn() -> nvmlReturn_t;
type ByIndex = unsafe extern "C" fn(c_uint, *mut nvmlDevice_t) -> nvmlReturn_t;
type Info = unsafe extern "C" fn(nvmlDevice_t, *mut nvmlMemory_t) -> nvmlReturn_t;
type InfoV2 = unsafe extern "C" fn(nvmlDevice_t, *mut nvmlMemory_v2_t) -> nvmlReturn_t;

type Words = unsafe extern "C" fn(usize, usize, usize) -> nvmlReturn_t;

struct Nvml {
    library: *mut c_void,
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
                library: h,
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

    /// A function that takes no more than three words.
    fn call(&self, name: &str, a: usize, b: usize, c: usize) -> nvmlReturn_t {
        let f = sys::symbol(self.library, name);
        assert!(!f.is_null(), "{name}");
        // SAFETY: on this machine words travel alike, whatever their types, and the callers pass what nvml.h says.
        unsafe {
            let f = std::mem::transmute::<*mut c_void, Words>(f);
            f(a, b, c)
        }
    }

    /// The entries of a list of processes, from words of eight bytes: pid and bytes.
    fn processes(&self, device: nvmlDevice_t, version: &str, words: usize) -> Vec<(u32, u64)> {
        let name = format!("nvmlDeviceGetComputeRunningProcesses{version}");
        let mut count: c_uint = 0;
        let many = self.call(&name, device as usize, (&raw mut count) as usize, 0);
        println!("{name}: how many {many}");
        let mut room = vec![!0u64; 64 * words];
        count = 64;
        let code = self.call(&name, device as usize, (&raw mut count) as usize, room.as_mut_ptr() as usize);
        println!("{name}: which {code}");
        assert!(room[count as usize * words..].iter().all(|w| *w == !0), "{name} wrote behind its entries");
        let entries = room.chunks(words).take(count as usize);
        entries.map(|e| (e[0] as u32, e[1])).collect()
    }

    fn memory(&self, device: nvmlDevice_t) -> nvmlMemory_t {
        let mut memory = nvmlMemory_t::default();
        // SAFETY: a place for the answer.
        assert_eq!(unsafe { (self.info)(device, &mut memory) }, NVML_SUCCESS);
        memory
    }

    fn device(&self) -> nvmlDevice_t {
        let mut device = std::ptr::null_mut();
        // SAFETY: a place for the answer.
        assert_eq!(unsafe { (self.by_index)(0, &mut device) }, NVML_SUCCESS);
        device
    }

    /// All lists, beside what the device says of itself.
    fn show_processes(&self) {
        let device = self.device();
        for (version, words) in [("", 2), ("_v2", 3), ("_v3", 3)] {
            for (pid, used) in self.processes(device, version, words) {
                println!("~ process {pid} {used}");
            }
        }
        let memory = self.memory(device);
        println!("~ device {} {}", memory.total, memory.used);
    }

    /// A GPU that is divided, and its instance, by index and by UUID.
    fn show_instances(&self, gpu: &Gpu) {
        let whole = self.device();
        let mut instance: nvmlDevice_t = std::ptr::null_mut();
        let out = (&raw mut instance) as usize;
        assert_eq!(self.call("nvmlDeviceGetMigDeviceHandleByIndex", whole as usize, 0, out), 0);
        let mut text = [0u8; 96];
        assert_eq!(self.call("nvmlDeviceGetUUID", instance as usize, text.as_mut_ptr() as usize, 96), 0);
        let mut again: nvmlDevice_t = std::ptr::null_mut();
        let out = (&raw mut again) as usize;
        assert_eq!(self.call("nvmlDeviceGetHandleByUUID", text.as_ptr() as usize, out, 0), 0);
        println!("same: {} MIG: {}", again == instance, text.starts_with(b"MIG-"));
        let (free, total) = gpu.memory();
        let (of_whole, of_instance) = (self.memory(whole), self.memory(again));
        println!("~ whole {} {}", of_whole.total, of_whole.free);
        println!("~ instance {} {}", of_instance.total, of_instance.free);
        println!("~ cuda {total} {free}");
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
    match argument(1).as_str() {
        "processes" => {
            let gpu = Gpu::open();
            let (p, small) = (gpu.alloc(30 << 20), gpu.alloc(1000));
            nvml.show_processes();
            println!("held");
            std::io::stdin().read_line(&mut String::new()).expect("stdin");
            gpu.free(p);
            gpu.free(small);
            return;
        }
        "instances" => {
            let gpu = Gpu::open();
            let p = gpu.alloc(30 << 20);
            nvml.show_instances(&gpu);
            gpu.free(p);
            return;
        }
        _ => {}
    }
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
