//! NVML, seen beside CUDA.

use greenboost_abi::*;

use std::time::Instant;

use crate::bench::Bench;
use crate::host::Host;
use crate::told::Told;

pub(super) fn memory(told: &Told) {
    let b = Bench::open();
    if b.cu.symbol("nvmlInit_v2").is_none() {
        return told.skip("no NVML here");
    }
    let (mut one, mut two) = (
        nvmlMemory_t::default(),
        nvmlMemory_v2_t {
            version: nvmlMemory_v2,
            ..Default::default()
        },
    );
    let mut device = 0;
    told.is(
        "a handle before nvmlInit",
        b.cu.nvmlDeviceGetHandleByIndex_v2(0, Some(&mut device)),
        NVML_ERROR_UNINITIALIZED,
    );
    told.is("nvmlInit", b.cu.nvmlInit_v2(), NVML_SUCCESS);
    told.is(
        "a handle",
        b.cu.nvmlDeviceGetHandleByIndex_v2(0, Some(&mut device)),
        NVML_SUCCESS,
    );
    told.is(
        "memory",
        b.cu.nvmlDeviceGetMemoryInfo(device, Some(&mut one)),
        NVML_SUCCESS,
    );
    told.is(
        "memory, v2",
        b.cu.nvmlDeviceGetMemoryInfo_v2(device, Some(&mut two)),
        NVML_SUCCESS,
    );
    let (mut free, mut total) = (0, 0);
    told.is(
        "cuMemGetInfo",
        b.cu.cuMemGetInfo_v2(Some(&mut free), Some(&mut total)),
        0,
    );
    told.is(
        "v1: used and free make the total",
        one.used + one.free,
        one.total,
    );
    told.is(
        "v2: used, free and reserved make the total",
        two.used + two.free + two.reserved,
        two.total,
    );
    told.is("both totals", two.total, one.total);
    told.is(
        "CUDA has no more than NVML",
        total as u64 <= one.total,
        true,
    );
    told.is("v2 has no version by mistake", two.version, nvmlMemory_v2);
    let gap = one.total - total as u64;
    told.note(format!(
        "NVML's total is {gap} bytes above CUDA's; v2 reserves {}; not measured before",
        two.reserved
    ));
}

/// The handle of device 0, with NVML initialised; `None` without NVML.
pub(super) fn device(b: &Bench) -> Option<usize> {
    b.cu.symbol("nvmlInit_v2")?;
    let mut device = 0;
    let good = b.cu.nvmlInit_v2() == NVML_SUCCESS
        && b.cu.nvmlDeviceGetHandleByIndex_v2(0, Some(&mut device)) == NVML_SUCCESS;
    good.then_some(device)
}

/// Words that no entry of a list may touch.
const CANARY: u64 = 0x5ca1_ab1e_0ddb_a11d;

pub(super) fn processes(told: &Told) {
    let b = Bench::open();
    let Some(device) = device(&b) else {
        return told.skip("no NVML here");
    };
    let p = b.alloc(64 << 20);
    let ask = |version: u32, count: &mut u32, infos: *mut u64| match version {
        1 => {
            b.cu.nvmlDeviceGetComputeRunningProcesses(device, Some(count), infos)
        }
        2 => {
            b.cu.nvmlDeviceGetComputeRunningProcesses_v2(device, Some(count), infos)
        }
        _ => {
            b.cu.nvmlDeviceGetComputeRunningProcesses_v3(device, Some(count), infos)
        }
    };
    for (version, words) in [(1, 2), (2, 3), (3, 3)] {
        let mut count = 0;
        let code = ask(version, &mut count, std::ptr::null_mut());
        if code == crate::api::MISSING {
            told.note(format!("v{version}: this NVML lacks it"));
            continue;
        }
        let expected = if count == 0 {
            NVML_SUCCESS
        } else {
            NVML_ERROR_INSUFFICIENT_SIZE
        };
        told.is(format!("v{version}: asking how many"), code, expected);
        let mut room = vec![CANARY; 66 * words];
        let (entries, mut count) = (64, 64);
        let code = ask(version, &mut count, room.as_mut_ptr());
        told.is(format!("v{version}: asking which"), code, NVML_SUCCESS);
        told.is(
            format!("v{version}: no more than there is room for"),
            count <= entries,
            true,
        );
        let behind = room[count as usize * words..].iter().all(|w| *w == CANARY);
        told.is(
            format!("v{version}: nothing is written behind {count} entries"),
            behind,
            true,
        );
        let own = std::process::id();
        let listed = room.chunks(words).take(count as usize);
        let mine: Vec<u64> = listed
            .filter(|entry| entry[0] as u32 == own)
            .map(|entry| entry[1])
            .collect();
        told.note(format!(
            "v{version}: {count} processes, of this one {mine:?}"
        ));
        for used in mine.iter().filter(|u| **u != NVML_VALUE_NOT_AVAILABLE) {
            told.is(
                format!("v{version}: it holds {used}"),
                *used >= 64 << 20,
                true,
            );
        }
        if !mine.is_empty() {
            let (mut none, mut room) = (0, [CANARY; 6]);
            let code = ask(version, &mut none, room.as_mut_ptr());
            told.is(
                format!("v{version}: no room"),
                (code, none >= 1),
                (NVML_ERROR_INSUFFICIENT_SIZE, true),
            );
            told.is(
                format!("v{version}: and nothing written"),
                room,
                [CANARY; 6],
            );
        }
    }
    b.cu.cuMemFree_v2(p);
}

pub(super) fn uuids(told: &Told) {
    let b = Bench::open();
    let Some(device) = device(&b) else {
        return told.skip("no NVML here");
    };
    let (mut cuda, mut text) = ([0; 16], [0; 96]);
    told.is("CUDA's", b.cu.cuDeviceGetUuid_v2(Some(&mut cuda), 0), 0);
    told.is(
        "NVML's",
        b.cu.nvmlDeviceGetUUID(device, Some(&mut text), 96),
        NVML_SUCCESS,
    );
    let name = std::ffi::CStr::from_bytes_until_nul(&text).unwrap_or_default();
    let digits = name
        .to_string_lossy()
        .replacen("GPU-", "", 1)
        .replace('-', "");
    let hex: String = cuda.iter().map(|b| format!("{b:02x}")).collect();
    // On a machine of several GPUs the first of the one need not be the first of the other.
    told.note(format!("NVML {digits}, CUDA {hex}"));
    let mut again = 0;
    told.is(
        "the handle of that UUID",
        (
            b.cu.nvmlDeviceGetHandleByUUID(name.as_ptr(), Some(&mut again)),
            again,
        ),
        (NVML_SUCCESS, device),
    );
    let mut none = 0;
    told.is(
        "of no UUID",
        b.cu.nvmlDeviceGetHandleByUUID(c"GPU-0".as_ptr(), Some(&mut none)) != 0,
        true,
    );
}

/// `NVML_PCIE_UTIL_TX_BYTES` and `NVML_PCIE_UTIL_RX_BYTES`, as the device sees them.
const COUNTERS: [(&str, u32); 2] = [("sent", 0), ("received", 1)];

/// What the launcher asks to show how busy the link is.
pub(super) fn link(told: &Told) {
    let b = Bench::open();
    if b.cu.symbol("nvmlDeviceGetPcieThroughput").is_none() {
        return told.skip("no NVML, or none that counts on the link");
    }
    told.is("nvmlInit", b.cu.nvmlInit_v2(), NVML_SUCCESS);
    let (mut by_index, mut by_uuid) = (0, 0);
    b.cu.nvmlDeviceGetHandleByIndex_v2(0, Some(&mut by_index));
    let mut uuid = [0; 16];
    told.is(
        "cuDeviceGetUuid",
        b.cu.cuDeviceGetUuid(Some(&mut uuid), 0),
        0,
    );
    let hex = |part: &[u8]| {
        part.iter()
            .map(|byte| format!("{byte:02x}"))
            .collect::<String>()
    };
    let parts = [
        &uuid[..4],
        &uuid[4..6],
        &uuid[6..8],
        &uuid[8..10],
        &uuid[10..],
    ]
    .map(hex);
    let mut text = [0u8; 96];
    let name = format!("GPU-{}", parts.join("-"));
    text[..name.len()].copy_from_slice(name.as_bytes());
    let found =
        b.cu.nvmlDeviceGetHandleByUUID(text.as_ptr().cast(), Some(&mut by_uuid));
    told.is(
        "CUDA's UUID, written as NVML does, is found",
        found,
        NVML_SUCCESS,
    );
    let (mut generation, mut lanes) = (0, 0);
    let code =
        b.cu.nvmlDeviceGetMaxPcieLinkGeneration(by_uuid, Some(&mut generation));
    told.is("the link's generation", code, NVML_SUCCESS);
    let code =
        b.cu.nvmlDeviceGetMaxPcieLinkWidth(by_uuid, Some(&mut lanes));
    told.is("the link's width", code, NVML_SUCCESS);
    // Gigatransfers per second and lane; 128 of 130 bits are data from the third generation on.
    let rate = [2.0, 4.0, 7.877, 15.754, 31.508, 60.5]
        .get((generation as usize).wrapping_sub(1))
        .map_or(f64::INFINITY, |r| r / 8.0 * 1e6 * f64::from(lanes));
    told.note(format!(
        "PCIe {generation}.0 x{lanes}: at most {:.1} GB/s each way",
        rate / 1e6
    ));

    let (host, bytes) = (Host::new(16 << 20), 16 << 20);
    let registered = b.cu.cuMemHostRegister_v2(host.address, bytes, 0);
    let device = b.alloc(bytes);
    for busy in [false, true] {
        if busy {
            told.is("registered", registered, 0);
            for _ in 0..256 {
                b.cu.cuMemcpyHtoDAsync_v2(device, host.address, bytes, 0);
            }
        }
        for (way, counter) in COUNTERS {
            let (begun, mut kilobytes) = (Instant::now(), 0);
            let code =
                b.cu.nvmlDeviceGetPcieThroughput(by_uuid, counter, Some(&mut kilobytes));
            told.is(format!("bytes {way}, busy: {busy}"), code, NVML_SUCCESS);
            told.is(
                format!("bytes {way} below the link's rate, busy: {busy}"),
                f64::from(kilobytes) <= rate,
                true,
            );
            let took = begun.elapsed().as_secs_f64() * 1e3;
            told.note(format!(
                "{way} {:.2} GB/s, asking took {took:.1} ms, copying to the device: {busy}; measured on an H100: 20.7 ms, 58.4 GB/s received while copying",
                f64::from(kilobytes) / 1e6
            ));
        }
    }
    b.done();
}
