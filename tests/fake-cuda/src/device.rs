//! What the machine has: identical simulated devices.
use core::ffi::{c_char, c_int};

use greenboost_abi::{CUDA_ERROR_INVALID_DEVICE, CUDA_ERROR_INVALID_VALUE, CUdevice, CUuuid};

use crate::abi::{Out, Res, Text, put_text};
use crate::config::config;
use crate::phys;
use crate::world::{self, world};

pub(crate) const NAME: &str = "NVIDIA Simulated GPU";

pub(crate) struct Device {
    /// The handle of the primary context; the context itself lives only while retained.
    pub primary: usize,
    pub retained: u32,
    pub primary_flags: u32,
    pub default_pool: usize,
    pub pool: usize,
}

impl Device {
    pub(crate) fn new() -> Device {
        Device {
            primary: 0,
            retained: 0,
            primary_flags: 0,
            default_pool: 0,
            pool: 0,
        }
    }
}

pub(crate) fn announce() {
    phys::open_shared();
}

pub(crate) fn check(device: CUdevice) -> Res<usize> {
    usize::try_from(device)
        .ok()
        .filter(|d| *d < config().devices)
        .ok_or(CUDA_ERROR_INVALID_DEVICE)
}

pub(crate) fn uuid(device: usize) -> [u8; 16] {
    let mut bytes = *b"\x67\x62\x46\x61\x6b\x65\x43\x75\x8d\x61\x00\x00\x00\x00\x00\x00";
    bytes[15] = device as u8 + 1;
    bytes
}

/// The UUID of the GPU around a MIG instance; without MIG the device's own.
pub(crate) fn whole_uuid(device: usize) -> [u8; 16] {
    let mut bytes = uuid(device);
    if config().mig {
        bytes[14] = 0x55;
    }
    bytes
}

/// The PCI bus number: one device per bus.
pub(crate) fn bus(device: usize) -> u32 {
    0x11 + device as u32
}

pub(crate) fn bus_id(device: usize) -> String {
    format!("0000:{:02X}:00.0", bus(device))
}

/// Understands `[domain]:bus:device[.function]`, any case, any width.
pub(crate) fn by_bus_id(text: &str) -> Option<usize> {
    let mut fields: Vec<&str> = text.trim().split(':').collect();
    let last = fields.pop()?.split('.').next()?;
    let hex = |s: &str| u32::from_str_radix(s, 16).ok();
    if hex(last)? != 0 {
        return None;
    }
    let bus_number = hex(fields.pop()?)?;
    if let Some(domain) = fields.pop()
        && (hex(domain)? != 0 || !fields.is_empty())
    {
        return None;
    }
    (0..config().devices).find(|d| bus(*d) == bus_number)
}

fn attribute(device: usize, attribute: c_int) -> Option<c_int> {
    let numa = c_int::from(config().host_numa && config().driver >= 12020);
    Some(match attribute {
        1 => 1024,
        2 | 3 => 1024,
        4 => 64,
        5 => c_int::MAX,
        6 | 7 => 65535,
        8 => 49152,
        9 => 65536,
        10 => 32,
        11 => c_int::MAX,
        12 => 65536,
        13 => 1_980_000,
        14 => 512,
        15 => 1,
        16 => 132,
        17 | 18 => 0,
        19 => 1,
        20 => 0,
        21 => 131_072,
        22 => 131_072,
        23 => 65536,
        24..=26 => 16384,
        27..=29 => 32768,
        30 => 512,
        31 => 1,
        32 => 1,
        33 => bus(device) as c_int,
        34 | 35 => 0,
        36 => 2_619_000,
        37 => 5120,
        38 => 50 << 20,
        39 => 2048,
        40 => 3,
        41 => 1,
        42..=49 => 16384,
        50 => 0,
        51 => 32,
        52..=74 => 16384,
        75 => 9,
        76 => 0,
        77 => 16384,
        78..=80 => 1,
        81 => 233_472,
        82 => 65536,
        83 => 1,
        84..=86 => 0,
        87 => 2,
        88 => 0,
        89 => 1,
        90 => 1,
        91 => 1,
        92..=94 => 0,
        95 | 96 => 1,
        97 => 232_448,
        98 => 1,
        99 => 1,
        100 | 101 => 0,
        102 => 1,
        103 => 1,
        104 | 105 => 0,
        106 => 32,
        107 => 0,
        108 => 32 << 20,
        109 => 128 << 20,
        110 => 1,
        111 => 1024,
        112 => 0,
        113 => 1,
        114 => 1,
        115 => 1,
        116 => 1,
        117 => 1,
        118 => 100,
        119 => 1,
        120 => 1,
        121 => 0,
        122 | 123 => 1,
        124 => 0,
        125 => 0,
        126 => 4,
        127 => 1,
        128 | 129 => 0,
        130 => 0,
        131 => -1,
        132 | 133 => 0,
        134 => 0,
        135..=140 => 0,
        141 => numa,
        142..=147 => 0,
        _ => return None,
    })
}

api! {
    Nothing cuInit { 2000 cuInit Legacy } (flags: u32) |_f| { world::init(flags) }
    Nothing cuDriverGetVersion { 2020 cuDriverGetVersion Legacy } (version: Out<c_int>) |_f| {
        version.set(config().driver as c_int)
    }
    Init cuDeviceGet { 2000 cuDeviceGet Legacy } (device: Out<CUdevice>, ordinal: c_int) |_f| {
        device.set(check(ordinal)? as CUdevice)
    }
    Init cuDeviceGetCount { 2000 cuDeviceGetCount Legacy } (count: Out<c_int>) |_f| {
        count.set(config().devices as c_int)
    }
    Init cuDeviceGetName { 2000 cuDeviceGetName Legacy } (name: Out<c_char>, len: c_int, device: CUdevice) |_f| {
        check(device)?;
        put_text(name, usize::try_from(len).unwrap_or(0), NAME)
    }
    // The first version says which GPU, the second which instance of it (documented).
    Init cuDeviceGetUuid { 9020 cuDeviceGetUuid Legacy } (id: Out<CUuuid>, device: CUdevice) |_f| {
        id.set(CUuuid { bytes: whole_uuid(check(device)?) })
    }
    Init cuDeviceGetUuid { 11040 cuDeviceGetUuid_v2 Legacy } (id: Out<CUuuid>, device: CUdevice) |_f| {
        id.set(CUuuid { bytes: uuid(check(device)?) })
    }
    Init cuDeviceGetLuid { 10000 cuDeviceGetLuid Legacy } (luid: usize, mask: usize, device: CUdevice) |_f| {
        let _ = (luid, mask);
        check(device)?;
        Err(greenboost_abi::CUDA_ERROR_NOT_SUPPORTED)
    }
    Init cuDeviceTotalMem { 3020 cuDeviceTotalMem_v2 Legacy } (bytes: Out<usize>, device: CUdevice) |_f| {
        check(device)?;
        bytes.set(config().vram as usize)
    }
    Init cuDeviceGetAttribute { 2000 cuDeviceGetAttribute Legacy } (value: Out<c_int>, which: c_int, device: CUdevice) |_f| {
        let device = check(device)?;
        value.set(attribute(device, which).ok_or(CUDA_ERROR_INVALID_VALUE)?)
    }
    Init cuDeviceComputeCapability { 2000 cuDeviceComputeCapability Legacy } (major: Out<c_int>, minor: Out<c_int>, device: CUdevice) |_f| {
        check(device)?;
        major.set(9)?;
        minor.set(0)
    }
    Init cuDeviceGetPCIBusId { 4010 cuDeviceGetPCIBusId Legacy } (text: Out<c_char>, len: c_int, device: CUdevice) |_f| {
        let device = check(device)?;
        put_text(text, usize::try_from(len).unwrap_or(0), &bus_id(device))
    }
    Init cuDeviceGetByPCIBusId { 4010 cuDeviceGetByPCIBusId Legacy } (device: Out<CUdevice>, text: Text) |_f| {
        device.set(by_bus_id(text.get()?).ok_or(CUDA_ERROR_INVALID_DEVICE)? as CUdevice)
    }
    Init cuDeviceCanAccessPeer { 4000 cuDeviceCanAccessPeer Legacy } (can: Out<c_int>, device: CUdevice, peer: CUdevice) |_f| {
        can.set(c_int::from(check(device)? != check(peer)? && config().peers))
    }
    Init cuDeviceGetP2PAttribute { 8000 cuDeviceGetP2PAttribute Legacy } (value: Out<c_int>, which: c_int, from: CUdevice, to: CUdevice) |_f| {
        if check(from)? == check(to)? {
            return Err(CUDA_ERROR_INVALID_DEVICE);
        }
        value.set(c_int::from(which != 1))
    }
    Context cuMemGetInfo { 3020 cuMemGetInfo_v2 Legacy } (free: Out<usize>, total: Out<usize>) |_f| {
        let device = world().device_here()?;
        free.maybe(phys::free(device) as usize);
        total.maybe(config().vram as usize);
        Ok(())
    }
}
