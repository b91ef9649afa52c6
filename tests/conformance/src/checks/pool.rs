//! Memory pools, on the device and on a host NUMA node: what they reserve, what waits for what.

use greenboost_abi::*;

use super::forms;
use crate::behind::Call;
use crate::bench::{Bench, MIB, access, host_vmm, must};
use crate::told::Told;

/// Where a pool's memory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Of {
    Device,
    Host,
}

pub(super) fn props(of: Of, node: i32, handle_types: i32) -> CUmemPoolProps {
    let (type_, id) = match of {
        Of::Device => (CU_MEM_LOCATION_TYPE_DEVICE, 0),
        Of::Host => (CU_MEM_LOCATION_TYPE_HOST_NUMA, node),
    };
    CUmemPoolProps {
        allocType: CU_MEM_ALLOCATION_TYPE_PINNED,
        handleTypes: handle_types,
        location: CUmemLocation { type_, id },
        win32SecurityAttributes: std::ptr::null_mut(),
        maxSize: 0,
        usage: 0,
        reserved: [0; 54],
    }
}

/// A pool, or why there is none.
pub(super) fn try_made(b: &Bench, of: Of) -> Result<usize, i32> {
    let mut pool = 0;
    match b
        .cu
        .cuMemPoolCreate(Some(&mut pool), Some(&props(of, b.node, 0)))
    {
        0 => Ok(pool),
        code => Err(code),
    }
}

/// A pool; device 0 may use it.
pub(super) fn made(b: &Bench, of: Of) -> usize {
    let pool = try_made(b, of).unwrap_or_else(|code| panic!("cuMemPoolCreate returned {code}"));
    if of == Of::Host {
        must(
            b.cu.cuMemPoolSetAccess(pool, Some(&access(3)), 1),
            "cuMemPoolSetAccess",
        );
    }
    pool
}

/// The pools that this driver can make.
pub(super) fn kinds(b: &Bench) -> Vec<Of> {
    match host_vmm(&b.cu) {
        true => vec![Of::Device, Of::Host],
        false => vec![Of::Device],
    }
}

pub(super) fn take(b: &Bench, pool: usize, size: usize, stream: usize) -> u64 {
    let mut p = 0;
    must(
        b.cu.cuMemAllocFromPoolAsync(Some(&mut p), size, pool, stream),
        "cuMemAllocFromPoolAsync",
    );
    p
}

pub(super) fn number(b: &Bench, pool: usize, attribute: i32) -> u64 {
    let mut value = 0;
    must(
        b.cu.cuMemPoolGetAttribute(pool, attribute, Some(&mut value)),
        "cuMemPoolGetAttribute",
    );
    value
}

/// Bytes reserved and used now.
pub(super) fn now(b: &Bench, pool: usize) -> (u64, u64) {
    (
        number(b, pool, CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT),
        number(b, pool, CU_MEMPOOL_ATTR_USED_MEM_CURRENT),
    )
}

const PIECE: usize = 6 * MIB;

pub(super) fn reserved(told: &Told) {
    let b = Bench::open();
    for of in kinds(&b) {
        let (pool, s) = (made(&b, of), b.stream(1));
        told.is(format!("{of:?}: at first"), now(&b, pool), (0, 0));
        told.is(
            format!("{of:?}: threshold"),
            number(&b, pool, CU_MEMPOOL_ATTR_RELEASE_THRESHOLD),
            0,
        );
        b.spin(s, 200);
        let p = take(&b, pool, PIECE, s);
        let (reserved, used) = now(&b, pool);
        told.is(
            format!("{of:?}: reserved at the call"),
            reserved >= PIECE as u64,
            true,
        );
        told.is(format!("{of:?}: used at the call"), used, PIECE as u64);
        told.note(format!("{of:?}: {PIECE} bytes reserve {reserved}"));
        b.spin(s, 200);
        must(b.cu.cuMemFreeAsync(p, s), "cuMemFreeAsync");
        told.is(
            format!("{of:?}: reserved while the free is queued"),
            now(&b, pool).0,
            reserved,
        );
        told.is(
            format!("{of:?}: used while the free is queued"),
            now(&b, pool).1,
            0,
        );
        must(b.cu.cuMemPoolTrimTo(pool, 0), "cuMemPoolTrimTo");
        told.is(
            format!("{of:?}: reserved after a trim while the free is queued"),
            now(&b, pool).0,
            reserved,
        );
        must(b.cu.cuStreamSynchronize(s), "cuStreamSynchronize");
        told.note(format!(
            "{of:?}: after the stream is done, threshold 0: {:?}",
            now(&b, pool)
        ));
        must(b.cu.cuMemPoolTrimTo(pool, 0), "cuMemPoolTrimTo");
        told.is(format!("{of:?}: after a trim"), now(&b, pool), (0, 0));
        // What a threshold keeps stays until it is trimmed away.
        must(
            b.cu.cuMemPoolSetAttribute(pool, CU_MEMPOOL_ATTR_RELEASE_THRESHOLD, Some(&u64::MAX)),
            "cuMemPoolSetAttribute",
        );
        let (p, q) = (take(&b, pool, PIECE, s), take(&b, pool, 1000, s));
        let both = now(&b, pool);
        told.note(format!("{of:?}: {PIECE} and 1000 bytes: {both:?}"));
        must(b.cu.cuMemFreeAsync(p, s), "cuMemFreeAsync");
        must(b.cu.cuStreamSynchronize(s), "cuStreamSynchronize");
        b.done();
        told.is(format!("{of:?}: kept"), now(&b, pool).0, both.0);
        must(b.cu.cuMemPoolTrimTo(pool, 0), "cuMemPoolTrimTo");
        told.note(format!(
            "{of:?}: trimmed around 1000 bytes: {:?}",
            now(&b, pool)
        ));
        must(b.cu.cuMemFreeAsync(q, s), "cuMemFreeAsync");
        must(b.cu.cuStreamSynchronize(s), "cuStreamSynchronize");
        told.is(format!("{of:?}: used at the end"), now(&b, pool).1, 0);
        must(b.cu.cuMemPoolTrimTo(pool, 0), "cuMemPoolTrimTo");
        told.is(format!("{of:?}: reserved at the end"), now(&b, pool).0, 0);
        told.is(
            format!("{of:?}: high water, and its reset"),
            (
                number(&b, pool, CU_MEMPOOL_ATTR_USED_MEM_HIGH) >= PIECE as u64,
                b.cu.cuMemPoolSetAttribute(pool, CU_MEMPOOL_ATTR_USED_MEM_HIGH, Some(&0)),
                number(&b, pool, CU_MEMPOOL_ATTR_USED_MEM_HIGH),
            ),
            (true, 0, 0),
        );
        must(b.cu.cuMemPoolDestroy(pool), "cuMemPoolDestroy");
    }
}

pub(super) fn order(told: &Told) {
    let b = Bench::open();
    for of in kinds(&b) {
        let pool = made(&b, of);
        // The first use may set something up.
        let p = take(&b, pool, PIECE, 0);
        must(b.cu.cuMemFreeAsync(p, 0), "cuMemFreeAsync");
        b.done();
        for (place, s) in [("null", 0), ("non-blocking", b.stream(1))] {
            let (cu, b) = (&b.cu, &b);
            let round = || cu.cuMemFreeAsync(take(b, pool, PIECE, s), s);
            // On another stream than the kernel's: new memory, since what is queued cannot be used again.
            let other = b.stream(1);
            let beside = || cu.cuMemFreeAsync(take(b, pool, 9 * MIB, other), other);
            let trim = || cu.cuMemPoolTrimTo(pool, 0);
            let ask = || {
                now(b, pool);
                0
            };
            let calls: [(&str, Call); 4] = [
                ("allocate, free", &round),
                ("allocate, free beside", &beside),
                ("trim", &trim),
                ("ask", &ask),
            ];
            let calls = calls.map(|(name, call)| (format!("{of:?}: {name}"), call));
            b.none_waits(told, s, place, &calls);
        }
        b.done();
        // Memory that one stream freed serves the next in order.
        let s = b.stream(1);
        let p = take(&b, pool, PIECE, s);
        must(b.launch("gb_fill", s, &[p, PIECE as u64 / 8, 1]), "gb_fill");
        b.spin(s, 50);
        must(b.cu.cuMemFreeAsync(p, s), "cuMemFreeAsync");
        let q = take(&b, pool, PIECE, s);
        told.note(format!(
            "{of:?}: the same stream gets the same address: {}",
            p == q
        ));
        must(b.launch("gb_fill", s, &[q, PIECE as u64 / 8, 2]), "gb_fill");
        b.done();
        told.is(format!("{of:?}: used again"), b.wrong(q, PIECE, 2), 0);
        must(b.cu.cuMemFreeAsync(q, s), "cuMemFreeAsync");
        b.done();
        must(b.cu.cuMemPoolDestroy(pool), "cuMemPoolDestroy");
    }
}

pub(super) fn on_host(told: &Told) {
    let b = Bench::open();
    if !host_vmm(&b.cu) {
        return told.skip("no host memory in virtual ranges here");
    }
    let (mut pool, mut flags) = (0, -1);
    told.is(
        "cuMemPoolCreate",
        b.cu.cuMemPoolCreate(Some(&mut pool), Some(&props(Of::Host, b.node, 0))),
        0,
    );
    let here = access(3).location;
    told.is(
        "access at first",
        (
            b.cu.cuMemPoolGetAccess(Some(&mut flags), pool, Some(&here)),
            flags,
        ),
        (0, 0),
    );
    // Both orders: before anything is allocated, and over what there is.
    let before = take(&b, pool, PIECE, 0);
    told.is(
        "cuMemPoolSetAccess",
        b.cu.cuMemPoolSetAccess(pool, Some(&access(3)), 1),
        0,
    );
    told.is(
        "access then",
        (
            b.cu.cuMemPoolGetAccess(Some(&mut flags), pool, Some(&here)),
            flags,
        ),
        (0, 3),
    );
    let after = take(&b, pool, 20 * MIB + 8, 0);
    let small = take(&b, pool, 1000, 0);
    told.is(
        "alignment",
        (before % 512, after % 512, small % 512),
        (0, 0, 0),
    );
    for (name, p, size) in [
        ("before", before, PIECE),
        ("after", after, 20 * MIB),
        ("small", small, 1000),
    ] {
        b.fill(p, size, 3);
        told.is(format!("{name}: a kernel's words"), b.wrong(p, size, 3), 0);
        let copy = b.alloc(size);
        must(b.cu.cuMemcpyAsync(copy, p, size, 0), "cuMemcpyAsync");
        told.is(format!("{name}: copied"), b.wrong(copy, size, 3), 0);
        must(b.cu.cuMemFree_v2(copy), "cuMemFree");
    }
    told.is(
        "freed",
        [before, after, small].map(|p| b.cu.cuMemFreeAsync(p, 0)),
        [0; 3],
    );
    b.done();
    told.is("cuMemPoolDestroy", b.cu.cuMemPoolDestroy(pool), 0);
    // A node that is not there.
    told.is(
        "a pool on node 4000",
        b.cu.cuMemPoolCreate(Some(&mut pool), Some(&props(Of::Host, 4000, 0))) != 0,
        true,
    );
    let exportable = props(Of::Host, b.node, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR);
    let code = b.cu.cuMemPoolCreate(Some(&mut pool), Some(&exportable));
    told.note(format!("an exportable pool on the host: {code}"));
}

pub(super) fn copies(told: &Told) {
    let b = Bench::open();
    let pool = made(&b, Of::Device);
    let [to, from] = [(); 2].map(|()| take(&b, pool, 8 * MIB, 0));
    let mut forms = forms::copies(&b);
    forms.extend(forms::memsets(&b));
    for f in &forms {
        must((f.call)(to, from), f.name);
    }
    b.done();
    let calls: Vec<(String, Box<dyn Fn() -> i32>)> = forms
        .iter()
        .map(|f| {
            let call: Box<dyn Fn() -> i32> = Box::new(move || (f.call)(to, from));
            (f.name.to_owned(), call)
        })
        .collect();
    let calls: Vec<(String, Call)> = calls
        .iter()
        .map(|(name, call)| (name.clone(), &**call as Call))
        .collect();
    b.none_waits(told, 0, "null", &calls);
}

/// Why the shim serves no allocation from a pool on the host: calls that ask for device memory refuse it.
pub(super) fn host_forms(told: &Told) {
    let b = Bench::open();
    if !host_vmm(&b.cu) {
        return told.skip("no host memory in virtual ranges here");
    }
    let pool = made(&b, Of::Host);
    let far = [take(&b, pool, 8 * MIB, 0), take(&b, pool, 8 * MIB, 0)];
    let (pinned, near) = ([b.pinned(8 * MIB), b.pinned(8 * MIB)], b.alloc(8 * MIB));
    b.done();
    let mut forms = forms::copies(&b);
    forms.extend(forms::asynchronous(&b));
    for f in &forms {
        let asks = ![
            "cuMemcpy",
            "cuMemcpy_ptds",
            "cuMemcpyAsync",
            "cuMemcpyBatchAsync",
        ]
        .contains(&f.name)
            && !f.name.starts_with("cuMemset");
        let codes = |[one, two]: [u64; 2]| [(f.call)(one, near), (f.call)(two, one)];
        let want = if asks { [1, 1] } else { [0, 0] };
        told.is(f.name, codes(far), want);
        told.is(format!("{}, pinned", f.name), codes(pinned), [0, 0]);
    }
    b.done();
    // The CPU's access is not to be taken away.
    for (type_, id) in [
        (CU_MEM_LOCATION_TYPE_HOST, 0),
        (CU_MEM_LOCATION_TYPE_HOST_NUMA, b.node),
    ] {
        let none = CUmemAccessDesc {
            location: CUmemLocation { type_, id },
            flags: CU_MEM_ACCESS_FLAGS_PROT_NONE,
        };
        told.is(
            format!("taking access from location type {type_}"),
            b.cu.cuMemPoolSetAccess(pool, Some(&none), 1),
            CUDA_ERROR_NOT_SUPPORTED,
        );
    }
}
