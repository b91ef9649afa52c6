//! Memory that the shim counts and does not place: what it takes of the device, and when.

use std::ffi::CString;
use std::time::Instant;

use greenboost_abi::*;

use super::nvml;
use crate::bench::{Bench, GRANULE, MIB, must, prop};
use crate::host::Host;
use crate::told::Told;

/// Bytes of a level: rows are padded to 64 bytes, and there are as many as a multiple of 8.
fn tiles(row: usize, rows: usize, slices: usize) -> usize {
    row.next_multiple_of(64) * rows.next_multiple_of(8) * slices
}

/// What a shape takes may exceed its tiles by this part (the smallest levels), and by the driver's granule.
const SLACK: usize = 32;

/// Bytes free on the device.
fn free(b: &Bench) -> usize {
    let mut free = 0;
    must(b.cu.cuMemGetInfo_v2(Some(&mut free), None), "cuMemGetInfo");
    free
}

/// What is missing now that was free before; negative when there is more.
fn taken(b: &Bench, before: usize) -> i64 {
    before as i64 - free(b) as i64
}

fn shape(extent: [usize; 3], format: i32, channels: u32, flags: u32) -> CUDA_ARRAY3D_DESCRIPTOR {
    CUDA_ARRAY3D_DESCRIPTOR {
        Width: extent[0],
        Height: extent[1],
        Depth: extent[2],
        Format: format,
        NumChannels: channels,
        Flags: flags,
    }
}

pub(super) fn arrays(told: &Told) {
    let b = Bench::open();
    // What the first array of a process takes besides is not an array's.
    let mut first = 0;
    must(
        b.cu.cuArray3DCreate_v2(Some(&mut first), Some(&shape([64, 64, 0], 0x20, 1, 0))),
        "cuArray3DCreate",
    );
    let layered = CUDA_ARRAY3D_LAYERED;
    let rows: [(&str, CUDA_ARRAY3D_DESCRIPTOR, u32, usize); 8] = [
        (
            "4096 x 4096 float",
            shape([4096, 4096, 0], 0x20, 1, 0),
            0,
            64 * MIB,
        ),
        (
            "4096 x 4096 float4",
            shape([4096, 4096, 0], 0x20, 4, 0),
            0,
            256 * MIB,
        ),
        (
            "4000 x 4000 char",
            shape([4000, 4000, 0], 0x01, 1, 0),
            0,
            tiles(4000, 4000, 1),
        ),
        (
            "256 x 256 x 256 half",
            shape([256, 256, 256], 0x10, 1, 0),
            0,
            32 * MIB,
        ),
        (
            "130 x 130 x 1000 half",
            shape([130, 130, 1000], 0x10, 1, 0),
            0,
            tiles(260, 130, 1000),
        ),
        (
            "1024 x 1024, 16 layers, short2",
            shape([1024, 1024, 16], 0x02, 2, layered),
            0,
            64 * MIB,
        ),
        (
            "4096 x 4096 float, 13 levels",
            shape([4096, 4096, 0], 0x20, 1, 0),
            13,
            64 * MIB / 3 * 4,
        ),
        (
            "1024 x 1024, 8 layers, float, 4 levels",
            shape([1024, 1024, 8], 0x20, 1, layered),
            4,
            32 * MIB / 64 * 85,
        ),
    ];
    for (name, shape, levels, tiles) in rows {
        let (before, mut array) = (free(&b), 0);
        let code = match levels {
            0 => b.cu.cuArray3DCreate_v2(Some(&mut array), Some(&shape)),
            _ => {
                b.cu.cuMipmappedArrayCreate(Some(&mut array), Some(&shape), levels)
            }
        };
        told.is(format!("{name}: create"), code, 0);
        let took = taken(&b, before);
        // What is free of the granule that small arrays share may serve a large one in part.
        let least = tiles as i64 - GRANULE as i64;
        let most = (tiles + tiles / SLACK + 2 * GRANULE) as i64;
        told.is(
            format!("{name}: took {took} bytes for {tiles} of tiles, which is between {least} and {most}"),
            (least..=most).contains(&took),
            true,
        );
        told.note(format!("{name}: {tiles} bytes of tiles, took {took}"));
        let code = match levels {
            0 => b.cu.cuArrayDestroy(array),
            _ => b.cu.cuMipmappedArrayDestroy(array),
        };
        told.is(format!("{name}: destroy"), code, 0);
        let left = taken(&b, before);
        told.is(format!("{name}: left behind"), left <= GRANULE as i64, true);
    }
    // Many small ones: what one of them costs in the long run.
    for (name, shape) in [
        ("64 x 64 float", shape([64, 64, 0], 0x20, 1, 0)),
        ("256 x 256 char4", shape([256, 256, 0], 0x01, 4, 0)),
    ] {
        let before = free(&b);
        let arrays: Vec<usize> = (0..256)
            .map(|_| {
                let mut array = 0;
                must(
                    b.cu.cuArray3DCreate_v2(Some(&mut array), Some(&shape)),
                    "cuArray3DCreate",
                );
                array
            })
            .collect();
        told.note(format!("{name}: 256 of them took {}", taken(&b, before)));
        for array in arrays {
            must(b.cu.cuArrayDestroy(array), "cuArrayDestroy");
        }
    }
    let (before, mut deferred) = (free(&b), 0);
    let sparse = shape([4096, 4096, 0], 0x20, 1, CUDA_ARRAY3D_DEFERRED_MAPPING);
    let code = b.cu.cuArray3DCreate_v2(Some(&mut deferred), Some(&sparse));
    told.note(format!("deferred mapping: create {code}"));
    if code == 0 {
        told.is(
            "deferred mapping takes nothing",
            taken(&b, before) <= GRANULE as i64,
            true,
        );
        must(b.cu.cuArrayDestroy(deferred), "cuArrayDestroy");
    }
    told.is("destroy", b.cu.cuArrayDestroy(first), 0);
    let flat = CUDA_ARRAY_DESCRIPTOR {
        Width: 0,
        Height: 4,
        Format: 0x20,
        NumChannels: 1,
    };
    told.is(
        "no width",
        b.cu.cuArrayCreate_v2(Some(&mut first), Some(&flat)),
        1,
    );
    told.is(
        "no result wanted",
        b.cu.cuArrayCreate_v2(None, Some(&flat)),
        1,
    );
    let vast = CUDA_ARRAY_DESCRIPTOR {
        Width: 65536,
        Height: 65536,
        Format: 0x20,
        NumChannels: 4,
    };
    let (mut held, mut code) = (Vec::new(), 0);
    // 64 GiB each: two of them are more than any card of today has.
    while code == 0 && held.len() < 4 {
        let mut array = 0;
        code = b.cu.cuArrayCreate_v2(Some(&mut array), Some(&vast));
        held.push(array);
    }
    told.is("more than there is", code, CUDA_ERROR_OUT_OF_MEMORY);
}

pub(super) fn pinned(told: &Told) {
    let b = Bench::open();
    let before = free(&b);
    let p = b.pinned(256 * MIB);
    told.is(
        "pinned memory takes no VRAM",
        taken(&b, before) <= GRANULE as i64,
        true,
    );
    told.is("cuMemFree of pinned memory", b.cu.cuMemFree_v2(p), 1);
    told.is(
        "cuMemHostUnregister of pinned memory",
        b.cu.cuMemHostUnregister(p),
        1,
    );
    told.is("cuMemFreeHost inside", b.cu.cuMemFreeHost(p + 4096), 1);
    told.is("cuMemFreeHost", b.cu.cuMemFreeHost(p), 0);
    told.is("cuMemFreeHost again", b.cu.cuMemFreeHost(p), 1);
    let mut none = 0;
    told.is("no bytes", b.cu.cuMemHostAlloc(Some(&mut none), 0, 0), 0);
    told.note(format!("no bytes are at {none:#x}"));
    told.is("no result wanted", b.cu.cuMemHostAlloc(None, 4096, 0), 1);
    told.is(
        "unknown flags",
        b.cu.cuMemHostAlloc(Some(&mut none), 4096, 1 << 20),
        1,
    );
    told.is(
        "without a context",
        b.elsewhere(|| {
            must(b.cu.cuCtxSetCurrent(0), "cuCtxSetCurrent");
            let mut p = 0;
            b.cu.cuMemHostAlloc(Some(&mut p), 4096, 0)
        }),
        CUDA_ERROR_INVALID_CONTEXT,
    );

    let (memory, own) = (Host::new(8 * MIB).address, Host::new(8 * MIB).address);
    let before = free(&b);
    told.is("register", b.cu.cuMemHostRegister_v2(memory, 4 * MIB, 0), 0);
    told.is(
        "registering takes no VRAM",
        taken(&b, before) <= GRANULE as i64,
        true,
    );
    told.is(
        "register again",
        b.cu.cuMemHostRegister_v2(memory, 4 * MIB, 0),
        712,
    );
    told.is(
        "register in part",
        b.cu.cuMemHostRegister_v2(memory + 2 * MIB as u64, 4 * MIB, 0),
        712,
    );
    told.is(
        "cuMemFreeHost of registered memory",
        b.cu.cuMemFreeHost(memory),
        1,
    );
    told.is(
        "unregister inside",
        b.cu.cuMemHostUnregister(memory + 4096),
        1,
    );
    told.is("unregister", b.cu.cuMemHostUnregister(memory), 0);
    told.is("unregister again", b.cu.cuMemHostUnregister(memory), 713);
    told.is(
        "register at an odd address",
        b.cu.cuMemHostRegister_v2(memory + 5, 100, 0),
        0,
    );
    told.is(
        "and unregister there",
        b.cu.cuMemHostUnregister(memory + 5),
        0,
    );

    // What is pinned in a context ends with it.
    let mut context = 0;
    must(b.cu.cuCtxCreate_v2(Some(&mut context), 0, 0), "cuCtxCreate");
    let (p, portable) = (b.pinned(4 * MIB), {
        let mut p = 0;
        must(
            b.cu.cuMemHostAlloc(Some(&mut p), 4 * MIB, 1),
            "cuMemHostAlloc",
        );
        p
    });
    must(
        b.cu.cuMemHostRegister_v2(own, 4 * MIB, 1),
        "cuMemHostRegister",
    );
    must(b.cu.cuCtxSetCurrent(b.context), "cuCtxSetCurrent");
    must(b.cu.cuCtxDestroy_v2(context), "cuCtxDestroy");
    let kind = |p: u64| {
        let mut room = [0; 32];
        b.cu.cuPointerGetAttribute(Some(&mut room), CU_POINTER_ATTRIBUTE_MEMORY_TYPE, p)
    };
    told.is("allocated in a context that is gone: known", kind(p), 1);
    told.is(
        "portable, in a context that is gone: known",
        kind(portable),
        1,
    );
    told.is("freed after its context", b.cu.cuMemFreeHost(p), 1);
    told.is("registered in a context that is gone: known", kind(own), 1);
    told.is(
        "unregistered after its context",
        b.cu.cuMemHostUnregister(own),
        713,
    );
    told.is(
        "registered anew",
        b.cu.cuMemHostRegister_v2(own, 4 * MIB, 0),
        0,
    );
    told.is("and unregistered", b.cu.cuMemHostUnregister(own), 0);
}

/// A module with one variable of so many MiB.
fn with_variable(mib: usize) -> CString {
    CString::new(format!(
        ".version 7.0\n.target sm_50\n.address_size 64\n.visible .global .align 8 .b8 large[{}];\n\
         .visible .entry gb_spin(.param .u64 ns) {{ ret; }}\n",
        mib * MIB
    ))
    .expect("no NUL")
}

pub(super) fn modules(told: &Told) {
    let b = Bench::open();
    let (image, name) = (with_variable(64), CString::new("large").expect("no NUL"));
    let enough = (64 * MIB - GRANULE) as i64;
    let before = free(&b);
    let (mut module, mut p, mut size) = (0, 0, 0);
    told.is(
        "load",
        b.cu.cuModuleLoadData(Some(&mut module), image.as_ptr()),
        0,
    );
    let at_load = taken(&b, before);
    let code =
        b.cu.cuModuleGetGlobal_v2(Some(&mut p), Some(&mut size), module, name.as_ptr());
    told.is("cuModuleGetGlobal", (code, size), (0, 64 * MIB));
    let known = taken(&b, before);
    told.is(
        format!("took {known} bytes once known, at least {enough}"),
        known >= enough,
        true,
    );
    told.note(format!(
        "cuModuleLoadData took {at_load}, cuModuleGetGlobal {}",
        known - at_load
    ));
    told.is("a variable is not freed", b.cu.cuMemFree_v2(p), 1);
    told.is("unload", b.cu.cuModuleUnload(module), 0);
    let left = taken(&b, before);
    told.is(
        format!("left behind {left}"),
        left <= 2 * GRANULE as i64,
        true,
    );

    let before = free(&b);
    let (mut library, mut p) = (0, 0);
    let code =
        b.cu.cuLibraryLoadData(Some(&mut library), image.as_ptr(), 0, 0, 0, 0, 0, 0);
    told.is("cuLibraryLoadData", code, 0);
    let at_load = taken(&b, before);
    let code =
        b.cu.cuLibraryGetGlobal(Some(&mut p), Some(&mut size), library, name.as_ptr());
    told.is("cuLibraryGetGlobal", (code, size), (0, 64 * MIB));
    let known = taken(&b, before);
    told.is(
        format!("took {known} bytes once known, at least {enough}"),
        known >= enough,
        true,
    );
    told.note(format!(
        "cuLibraryLoadData took {at_load}, cuLibraryGetGlobal {}",
        known - at_load
    ));
    told.is("cuLibraryUnload", b.cu.cuLibraryUnload(library), 0);
    let left = taken(&b, before);
    told.is(
        format!("left behind {left}"),
        left <= 2 * GRANULE as i64,
        true,
    );
}

pub(super) fn limits(told: &Told) {
    let b = Bench::open();
    let (mut was, mut now) = (0, 0);
    let before = free(&b);
    told.is(
        "the heap",
        b.cu.cuCtxGetLimit(Some(&mut was), CU_LIMIT_MALLOC_HEAP_SIZE),
        0,
    );
    told.is(
        "a larger one",
        b.cu.cuCtxSetLimit(CU_LIMIT_MALLOC_HEAP_SIZE, 256 * MIB),
        0,
    );
    told.is(
        "it is set",
        (
            b.cu.cuCtxGetLimit(Some(&mut now), CU_LIMIT_MALLOC_HEAP_SIZE),
            now,
        ),
        (0, 256 * MIB),
    );
    told.is(
        "it takes nothing yet",
        taken(&b, before) <= GRANULE as i64,
        true,
    );
    told.is(
        "the stack",
        b.cu.cuCtxGetLimit(Some(&mut was), CU_LIMIT_STACK_SIZE),
        0,
    );
    let before = free(&b);
    told.is(
        "a larger one",
        b.cu.cuCtxSetLimit(CU_LIMIT_STACK_SIZE, 8192),
        0,
    );
    let larger = taken(&b, before);
    told.is(
        format!("it took {larger} at once"),
        larger > GRANULE as i64,
        true,
    );
    told.is("as before", b.cu.cuCtxSetLimit(CU_LIMIT_STACK_SIZE, was), 0);
    told.note(format!(
        "a stack of 8192 bytes took {larger}, back at {was} {}",
        taken(&b, before)
    ));
    told.is("an unknown limit", b.cu.cuCtxSetLimit(99, 1) != 0, true);
}

pub(super) fn managed(told: &Told) {
    let b = Bench::open();
    let (before, mut p) = (free(&b), 0);
    told.is(
        "allocate",
        b.cu.cuMemAllocManaged(Some(&mut p), 256 * MIB, 1),
        0,
    );
    told.is(
        "it takes nothing yet",
        taken(&b, before) <= 2 * GRANULE as i64,
        true,
    );
    must(b.cu.cuMemsetD8_v2(p, 1, 64 * MIB), "cuMemsetD8");
    b.done();
    told.note(format!(
        "64 MiB of it touched by the GPU took {}",
        taken(&b, before)
    ));
    told.is("free inside", b.cu.cuMemFree_v2(p + 4096), 1);
    told.is("free", b.cu.cuMemFree_v2(p), 0);
    told.is("free again", b.cu.cuMemFree_v2(p), 1);
    told.note(format!("left behind {}", taken(&b, before)));
}

/// What CUDA exports itself stands in for what another API does: the real driver may refuse it, which is remarked.
pub(super) fn external(told: &Told) {
    let b = Bench::open();
    let mut wish = prop(false, b.node);
    wish.requestedHandleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;
    let (mut handle, mut fd) = (0, -1);
    must(
        b.cu.cuMemCreate(Some(&mut handle), 4 * MIB, Some(&wish), 0),
        "cuMemCreate",
    );
    let kind = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;
    must(
        b.cu.cuMemExportToShareableHandle(Some(&mut fd), handle, kind, 0),
        "cuMemExportToShareableHandle",
    );
    let mut desc = CUDA_EXTERNAL_MEMORY_HANDLE_DESC {
        type_: CU_EXTERNAL_MEMORY_HANDLE_TYPE_OPAQUE_FD,
        fd,
        size: 4 * MIB as u64,
        ..Default::default()
    };
    let (before, mut memory, mut p) = (free(&b), 0, 0);
    let code = b.cu.cuImportExternalMemory(Some(&mut memory), Some(&desc));
    told.is(
        "importing takes no VRAM",
        taken(&b, before) <= GRANULE as i64,
        true,
    );
    told.note(format!(
        "cuImportExternalMemory of what CUDA exported: {code}"
    ));
    if code == 0 {
        let whole = CUDA_EXTERNAL_MEMORY_BUFFER_DESC {
            size: 4 * MIB as u64,
            ..Default::default()
        };
        let code =
            b.cu.cuExternalMemoryGetMappedBuffer(Some(&mut p), memory, Some(&whole));
        told.note(format!("cuExternalMemoryGetMappedBuffer: {code}"));
        if code == 0 {
            told.is(
                "mapping takes no VRAM",
                taken(&b, before) <= GRANULE as i64,
                true,
            );
            b.write(p, 77);
            told.is("what was written", b.read(p), Ok(77));
            told.is("cuMemFree of the buffer", b.cu.cuMemFree_v2(p), 0);
        }
        told.is(
            "cuDestroyExternalMemory",
            b.cu.cuDestroyExternalMemory(memory),
            0,
        );
    }
    told.is(
        "no description",
        b.cu.cuImportExternalMemory(Some(&mut memory), None),
        1,
    );
    desc.type_ = 0;
    told.is(
        "an unknown type",
        b.cu.cuImportExternalMemory(Some(&mut memory), Some(&desc)) != 0,
        true,
    );
    must(b.cu.cuMemRelease(handle), "cuMemRelease");
}

/// The shim asks what is free around calls that load code.
pub(super) fn cost(told: &Told) {
    let b = Bench::open();
    const TIMES: u32 = 200;
    let start = Instant::now();
    for _ in 0..TIMES {
        free(&b);
    }
    let each = start.elapsed() / TIMES;
    told.is(
        format!("{each:?} is less than a millisecond"),
        each.as_micros() < 1000,
        true,
    );
    told.note(format!("cuMemGetInfo takes {each:?}"));
    let Some(device) = nvml::device(&b) else {
        return;
    };
    let start = Instant::now();
    let mut memory = nvmlMemory_t::default();
    for _ in 0..TIMES {
        b.cu.nvmlDeviceGetMemoryInfo(device, Some(&mut memory));
    }
    told.note(format!(
        "nvmlDeviceGetMemoryInfo takes {:?}",
        start.elapsed() / TIMES
    ));
}
