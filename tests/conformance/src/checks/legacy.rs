//! The legacy handles of `cuMemAlloc` memory, between two processes.

use greenboost_abi::*;

use super::share::{SEED, elsewhere, peer};
use crate::api::IpcHandle;
use crate::bench::{Bench, GRANULE, MIB};
use crate::told::Told;

pub(super) fn legacy(told: &Told) {
    if let Some(handles) = peer() {
        return open_there(told, &handles);
    }
    let b = Bench::open();
    let cu = &b.cu;
    let (large, small) = (b.alloc(8 * MIB), b.alloc(8192));
    let behind = b.alloc(8192);
    b.fill(large, 8 * MIB, SEED);
    b.fill(small, 8192, SEED + 1);
    b.fill(behind, 8192, SEED + 2);
    b.done();
    let handle = |p: u64| {
        let mut handle = IpcHandle([0; 8]);
        let code = cu.cuIpcGetMemHandle(Some(&mut handle), p);
        (code, handle)
    };
    let (code, first) = handle(large);
    told.is("handle of an allocation", code, 0);
    told.is("the same again", handle(large), (0, first));
    told.is("at an address inside", handle(large + 4096), (0, first));
    told.is("past its end", handle(large + 8 * MIB as u64).0, 1);
    told.is("of nothing", handle(0x1234).0, 1);
    told.is("no room for it", cu.cuIpcGetMemHandle(None, large), 1);
    let (code, second) = handle(behind);
    told.is("handle of a small allocation", code, 0);
    let mut p = 0;
    told.is(
        "opened in its own process",
        cu.cuIpcOpenMemHandle_v2(Some(&mut p), first, 1),
        CUDA_ERROR_INVALID_CONTEXT,
    );
    told.is(
        "close of an own allocation",
        cu.cuIpcCloseMemHandle(large),
        1,
    );
    let text = |h: IpcHandle| h.0.map(|w| format!("{w:x}")).join(" ");
    let all_there = elsewhere(
        "legacy_handles",
        &format!("{},{}", text(first), text(second)),
        None,
    );
    told.is("the other process finds all as expected", all_there, true);
    told.is(
        "what the other process wrote",
        b.wrong(large, 8 * MIB, SEED + 3),
        0,
    );
    told.is("free", cu.cuMemFree_v2(large), 0);
    let again = b.alloc(8 * MIB);
    told.note(format!(
        "the next allocation has the same address: {}",
        again == large
    ));
    let (code, third) = handle(again);
    told.is(
        "handle of a new allocation",
        (code, third != first),
        (0, true),
    );
}

fn open_there(told: &Told, handles: &str) {
    let b = Bench::open();
    let cu = &b.cu;
    let parse = |text: &str| {
        let mut words = text
            .split(' ')
            .map(|w| u64::from_str_radix(w, 16).expect("a number"));
        IpcHandle([(); 8].map(|()| words.next().expect("eight words")))
    };
    let (first, second) = handles.split_once(',').expect("two handles");
    let (first, second) = (parse(first), parse(second));
    let open = |handle: IpcHandle| {
        let mut p = 0;
        match cu.cuIpcOpenMemHandle_v2(Some(&mut p), handle, 1) {
            0 => Ok(p),
            code => Err(code),
        }
    };
    let mut p = 0;
    told.is(
        "open without its flag",
        cu.cuIpcOpenMemHandle_v2(Some(&mut p), first, 0),
        1,
    );
    told.is(
        "open without room",
        cu.cuIpcOpenMemHandle_v2(None, first, 1),
        1,
    );
    let mut changed = first;
    changed.0 = *b"greenboost: a handle that no driver made, as it will be refused!"
        .as_chunks()
        .0
        .first_chunk::<8>()
        .map(|words| words.map(u64::from_le_bytes))
        .as_ref()
        .expect("64 bytes");
    let code = open(changed);
    told.is("open of what is no handle", code, Err(1));
    let before = b.free_bytes();
    let Ok(p) = open(first) else {
        return told.is("open", open(first), Ok(0));
    };
    told.note(format!(
        "memory taken by opening: {}",
        before - b.free_bytes()
    ));
    told.is("bytes", b.wrong(p, 8 * MIB, SEED), 0);
    let (mut base, mut size) = (0, 0);
    let code = cu.cuMemGetAddressRange_v2(Some(&mut base), Some(&mut size), p + 4096);
    told.is("address range", (code, base, size), (0, p, 8 * MIB));
    for (name, attribute, wanted) in [
        ("memory type", CU_POINTER_ATTRIBUTE_MEMORY_TYPE, Ok(2)),
        (
            "context",
            CU_POINTER_ATTRIBUTE_CONTEXT,
            Ok(b.context as u64),
        ),
        ("device", CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL, Ok(0)),
        ("start", CU_POINTER_ATTRIBUTE_RANGE_START_ADDR, Ok(p)),
        ("size", CU_POINTER_ATTRIBUTE_RANGE_SIZE, Ok(8 * MIB as u64)),
        ("host pointer", CU_POINTER_ATTRIBUTE_HOST_POINTER, Err(1)),
        ("managed", CU_POINTER_ATTRIBUTE_IS_MANAGED, Ok(0)),
        ("mapped", CU_POINTER_ATTRIBUTE_MAPPED, Ok(1)),
        (
            "legacy capable",
            CU_POINTER_ATTRIBUTE_IS_LEGACY_CUDA_IPC_CAPABLE,
            Ok(0),
        ),
        (
            "handle types",
            CU_POINTER_ATTRIBUTE_ALLOWED_HANDLE_TYPES,
            Ok(0),
        ),
    ] {
        told.is(name, b.attribute(attribute, p + 8), wanted);
    }
    let mut again = IpcHandle([0; 8]);
    let code = cu.cuIpcGetMemHandle(Some(&mut again), p);
    told.is("a handle of what was opened", code, 1);
    told.is("opened twice: the same address", open(first), Ok(p));
    told.is("free of what was opened", cu.cuMemFree_v2(p), 1);
    told.is(
        "close at an address inside",
        cu.cuIpcCloseMemHandle(p + 4096),
        1,
    );
    let open_and_close = || match open(first) {
        Ok(p) => cu.cuIpcCloseMemHandle(p),
        Err(code) => code,
    };
    told.is(
        "a close that is not the last waits for a running kernel",
        b.waits(0, true, &open_and_close),
        true,
    );
    told.is("close", cu.cuIpcCloseMemHandle(p), 0);
    told.is(
        "bytes after one of two closes",
        b.wrong(p, 8 * MIB, SEED),
        0,
    );
    b.fill(p, 8 * MIB, SEED + 3);
    b.done();
    let Ok(q) = open(second) else {
        return told.is("open of a small allocation", open(second), Ok(0));
    };
    told.is("bytes of a small allocation", b.wrong(q, 8192, SEED + 2), 0);
    let code = cu.cuMemGetAddressRange_v2(Some(&mut base), Some(&mut size), q);
    told.note(format!(
        "a small allocation: offset in its block {}, range {code} {} {size}",
        q % GRANULE as u64,
        q.wrapping_sub(base)
    ));
    told.is("close of it", cu.cuIpcCloseMemHandle(q), 0);
    let waited = b.waits(0, true, &|| {
        let code = cu.cuIpcCloseMemHandle(p);
        // Tried again behind a longer kernel, it has to be open again.
        if code == 1 {
            open(first).map_or_else(|c| c, |p| cu.cuIpcCloseMemHandle(p))
        } else {
            code
        }
    });
    told.is("the last close waits for a running kernel", waited, true);
    told.is("close once more", cu.cuIpcCloseMemHandle(p), 1);
    told.is(
        "what is known of the address",
        b.attribute(CU_POINTER_ATTRIBUTE_MEMORY_TYPE, p),
        Err(1),
    );
    match open(first) {
        Ok(p) => told.is("close after opening anew", cu.cuIpcCloseMemHandle(p), 0),
        code => told.is("open anew", code, Ok(0)),
    }
}
