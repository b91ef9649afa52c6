//! Contexts come and go; mapped ranges stay.

use greenboost_abi::*;

use crate::api::{MISSING, Resource};
use crate::bench::{Bench, MIB, host_vmm, must};
use crate::host::Host;
use crate::told::Told;

fn ranges(b: &Bench) -> Vec<(&'static str, u64, u64)> {
    let mut ranges = vec![("VRAM", b.range("V2").p, 0x1111)];
    if host_vmm(&b.cu) {
        ranges.push(("host", b.range("H2").p, 0x2222));
    }
    for (_, p, word) in &ranges {
        must(
            b.cu.cuMemsetD32_v2(*p, *word as u32, MIB / 2),
            "cuMemsetD32",
        );
    }
    b.done();
    ranges
}

fn survived(b: &Bench, told: &Told, when: &str, ranges: &[(&str, u64, u64)]) {
    for (name, p, word) in ranges {
        told.is(
            format!("{when}, {name}: read"),
            b.read(p + MIB as u64),
            Ok(word | word << 32),
        );
        told.is(
            format!("{when}, {name}: memset"),
            b.cu.cuMemsetD32_v2(*p, 9, 16),
            0,
        );
        told.is(format!("{when}, {name}: done"), b.cu.cuCtxSynchronize(), 0);
    }
}

pub(super) fn reset(told: &Told) {
    let mut b = Bench::open();
    let ranges = ranges(&b);
    let (alloc, before) = (b.alloc(4 * MIB), b.context);
    survived(&b, told, "before", &ranges);
    told.is(
        "cuDevicePrimaryCtxReset",
        b.cu.cuDevicePrimaryCtxReset_v2(0),
        0,
    );
    told.is(
        "a copy in the context that was reset",
        b.read(ranges[0].1),
        Err(CUDA_ERROR_CONTEXT_IS_DESTROYED),
    );
    b.enter();
    told.is("retained again: the handle", b.context, before);
    survived(&b, told, "after", &ranges);
    told.is(
        "cuMemFree of what was allocated before",
        b.cu.cuMemFree_v2(alloc),
        1,
    );
    for (_, p, _) in &ranges {
        b.open_access(*p, 2 * MIB);
    }
    survived(&b, told, "after cuMemSetAccess again", &ranges);
    b.fill(ranges[0].1, 2 * MIB, 4);
    told.is("kernels", b.wrong(ranges[0].1, 2 * MIB, 4), 0);
    for (name, p, _) in &ranges {
        told.is(format!("{name}: unmap"), b.cu.cuMemUnmap(*p, 2 * MIB), 0);
        told.is(
            format!("{name}: address free"),
            b.cu.cuMemAddressFree(*p, 2 * MIB),
            0,
        );
    }
}

/// Not measured before; the shim's pinned backend meets it.
pub(super) fn registered(told: &Told) {
    let b = Bench::open();
    let memory = Host::new(MIB).address;
    must(
        b.cu.cuMemHostRegister_v2(memory, MIB, 1),
        "cuMemHostRegister",
    );
    must(
        b.cu.cuDevicePrimaryCtxReset_v2(0),
        "cuDevicePrimaryCtxReset",
    );
    let code = b.cu.cuMemHostUnregister(memory);
    let codes = [
        0,
        CUDA_ERROR_CONTEXT_IS_DESTROYED,
        CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED,
    ];
    told.is(
        format!("cuMemHostUnregister returned {code}, which is"),
        codes.contains(&code),
        true,
    );
    told.note(format!(
        "cuMemHostUnregister in the context that was reset: {code}"
    ));
}

pub(super) fn own(told: &Told) {
    let b = Bench::open();
    let mut own = 0;
    must(b.cu.cuCtxCreate_v2(Some(&mut own), 0, 0), "cuCtxCreate");
    let (ranges, alloc) = (ranges(&b), b.alloc(4 * MIB));
    must(b.cu.cuCtxSetCurrent(b.context), "cuCtxSetCurrent");
    let owner = |p: u64| {
        let mut room = [0; 32];
        match b
            .cu
            .cuPointerGetAttribute(Some(&mut room), CU_POINTER_ATTRIBUTE_CONTEXT, p)
        {
            0 => Ok(usize::from_le_bytes(
                room[..8].try_into().expect("eight bytes"),
            )),
            code => Err(code),
        }
    };
    told.is("the context of a mapped range", owner(ranges[0].1), Ok(0));
    told.is("the context of an allocation", owner(alloc), Ok(own));
    survived(&b, told, "from the primary context", &ranges);
    told.is("cuCtxDestroy", b.cu.cuCtxDestroy_v2(own), 0);
    survived(&b, told, "after the destruction", &ranges);
    for (name, p, word) in &ranges {
        must(b.launch("gb_add", 0, &[p + MIB as u64, 1, 1]), "gb_add");
        told.is(
            format!("{name}: a kernel"),
            b.read(p + MIB as u64),
            Ok((word | word << 32) + 1),
        );
    }
    told.is(
        "cuMemFree of what was allocated in it",
        b.cu.cuMemFree_v2(alloc),
        1,
    );
    for (name, p, _) in &ranges {
        told.is(format!("{name}: unmap"), b.cu.cuMemUnmap(*p, 2 * MIB), 0);
        told.is(
            format!("{name}: address free"),
            b.cu.cuMemAddressFree(*p, 2 * MIB),
            0,
        );
    }
    // The destroyed context is not touched again: the driver once accepted it as current, and once crashed over it.
    let (mut flags, mut active) = (0, 0);
    told.is(
        "cuDevicePrimaryCtxGetState",
        b.cu.cuDevicePrimaryCtxGetState(0, Some(&mut flags), Some(&mut active)),
        0,
    );
    told.is("the primary context is active", active, 1);
}

/// A green context with a few multiprocessors, and a stream of it. `None`: the driver has none.
fn green_context(b: &Bench) -> Option<(usize, usize)> {
    let (mut all, mut part) = (Resource([0; 144]), Resource([0; 144]));
    if b.cu.cuDeviceGetDevResource(0, Some(&mut all), 1) == MISSING {
        return None;
    }
    let mut groups = 1;
    must(
        b.cu.cuDevSmResourceSplitByCount(
            Some(&mut part),
            Some(&mut groups),
            Some(&all),
            None,
            0,
            16,
        ),
        "cuDevSmResourceSplitByCount",
    );
    let (mut description, mut green, mut stream) = (0, 0, 0);
    must(
        b.cu.cuDevResourceGenerateDesc(Some(&mut description), Some(&part), 1),
        "cuDevResourceGenerateDesc",
    );
    must(
        b.cu.cuGreenCtxCreate(Some(&mut green), description, 0, 1),
        "cuGreenCtxCreate",
    );
    must(
        b.cu.cuGreenCtxStreamCreate(Some(&mut stream), green, 1, 0),
        "cuGreenCtxStreamCreate",
    );
    Some((green, stream))
}

pub(super) fn green(told: &Told) {
    let b = Bench::open();
    let Some((green, stream)) = green_context(&b) else {
        told.note("this driver has no green contexts");
        return;
    };
    let busy = || b.cu.cuStreamQuery(stream) == CUDA_ERROR_NOT_READY;
    b.spin(stream, 100);
    told.is("its stream is busy", busy(), true);
    b.done();
    told.is(
        "after cuCtxSynchronize in the primary context",
        busy(),
        false,
    );
    let (mut one, mut two) = (0, 0);
    for context in [&mut one, &mut two] {
        must(
            b.cu.cuCtxFromGreenCtx(Some(context), green),
            "cuCtxFromGreenCtx",
        );
    }
    told.is("its context is always the same", one, two);
    told.is("and is not the primary one", one != b.context, true);
    let p = b.alloc(4 * MIB);
    b.spin(stream, 100);
    told.is("cuMemFree", b.cu.cuMemFree_v2(p), 0);
    told.is("has waited for its stream", busy(), false);

    must(b.cu.cuCtxSetCurrent(one), "cuCtxSetCurrent");
    let p = b.alloc(4 * MIB);
    must(b.cu.cuMemsetD32_v2(p, 0x3333, MIB), "cuMemsetD32");
    let mut room = [0; 32];
    told.is(
        "cuPointerGetAttribute",
        b.cu.cuPointerGetAttribute(Some(&mut room), CU_POINTER_ATTRIBUTE_CONTEXT, p),
        0,
    );
    let owner = usize::from_le_bytes(room[..8].try_into().expect("eight bytes"));
    told.note(format!(
        "memory allocated in it says that its context is {}",
        match owner {
            o if o == one => "the green one",
            o if o == b.context => "the primary one",
            _ => "another one",
        }
    ));
    told.is("cuCtxSynchronize in it", b.cu.cuCtxSynchronize(), 0);
    must(b.cu.cuCtxSetCurrent(b.context), "cuCtxSetCurrent");
    told.is("cuGreenCtxDestroy", b.cu.cuGreenCtxDestroy(green), 0);
    told.is(
        "what was allocated in it stays",
        b.read(p),
        Ok(0x3333 | 0x3333 << 32),
    );
    told.is("and is freed", b.cu.cuMemFree_v2(p), 0);
}

pub(super) fn detach(told: &Told) {
    let b = Bench::open();
    let (mut own, mut again) = (0, 0);
    must(b.cu.cuCtxCreate_v2(Some(&mut own), 0, 0), "cuCtxCreate");
    let p = b.alloc(4 * MIB);
    told.is("cuCtxAttach", b.cu.cuCtxAttach(Some(&mut again), 0), 0);
    told.is("gives the context", again, own);
    told.is("cuCtxDetach", b.cu.cuCtxDetach(own), 0);
    told.is("memory is there", b.cu.cuMemsetD32_v2(p, 1, MIB), 0);
    told.is("the last cuCtxDetach", b.cu.cuCtxDetach(own), 0);
    let mut current = 1;
    must(b.cu.cuCtxGetCurrent(Some(&mut current)), "cuCtxGetCurrent");
    told.is("takes it off the stack", current, b.context);
    told.is("memory is gone", b.cu.cuMemFree_v2(p), 1);
    told.is("the primary one", b.cu.cuCtxDetach(b.context), 0);
    let (mut flags, mut active) = (0, 0);
    told.is(
        "cuDevicePrimaryCtxGetState",
        b.cu.cuDevicePrimaryCtxGetState(0, Some(&mut flags), Some(&mut active)),
        0,
    );
    told.note(format!(
        "the primary context is {} after it",
        if active == 0 { "gone" } else { "still active" }
    ));
}
