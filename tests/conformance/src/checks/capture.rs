//! What a capture forbids, and to whom.

use std::sync::Mutex;

use greenboost_abi::*;

use super::forms::{self, Form, On};
use super::pool;
use crate::bench::{Bench, GRANULE, access, host_vmm, must, prop};
use crate::host::Host;
use crate::told::Told;

pub(super) const MODES: [(&str, i32); 3] = [
    ("global", CU_STREAM_CAPTURE_MODE_GLOBAL),
    ("thread-local", CU_STREAM_CAPTURE_MODE_THREAD_LOCAL),
    ("relaxed", CU_STREAM_CAPTURE_MODE_RELAXED),
];

/// Whom a call harms.
#[derive(Clone, Copy)]
enum Rule {
    /// Nobody.
    Safe,
    /// The captures that the thread's mode makes it answer for.
    Unsafe,
    /// Every capture of the context.
    Always,
}

/// Who calls while somebody captures.
#[derive(Clone, Copy, PartialEq)]
enum Who {
    Same,
    Other,
    /// Another thread that said it knows what it does.
    Relaxed,
}

type Act<'a> = Box<dyn Fn() -> i32 + Sync + 'a>;

fn rows(b: &Bench, other: usize, range: u64, handle: u64) -> Vec<(&'static str, Rule, Act<'_>)> {
    use Rule::{Always, Safe, Unsafe};
    let (cu, p, event, host) = (&b.cu, b.alloc(4096), b.event(), Host::new(4096).address);
    must(cu.cuEventRecord(event, other), "cuEventRecord");
    let pool = pool::made(b, pool::Of::Device);
    let stock: Vec<u64> = (0..9).map(|_| pool::take(b, pool, 4096, other)).collect();
    let stock = Mutex::new(stock);
    // What a call made goes again, once the capture is over: these leave it.
    let mut rows: Vec<(&'static str, Rule, Act)> = vec![
        (
            "cuCtxSynchronize",
            Always,
            Box::new(|| cu.cuCtxSynchronize()),
        ),
        (
            "cuStreamSynchronize(other)",
            Unsafe,
            Box::new(move || cu.cuStreamSynchronize(other)),
        ),
        (
            "cuStreamSynchronize(null)",
            Unsafe,
            Box::new(|| cu.cuStreamSynchronize(0)),
        ),
        (
            "cuStreamQuery(other)",
            Unsafe,
            Box::new(move || cu.cuStreamQuery(other)),
        ),
        (
            "cuStreamQuery(null)",
            Unsafe,
            Box::new(|| cu.cuStreamQuery(0)),
        ),
        (
            "cuEventQuery",
            Unsafe,
            Box::new(move || cu.cuEventQuery(event)),
        ),
        (
            "cuEventSynchronize",
            Unsafe,
            Box::new(move || cu.cuEventSynchronize(event)),
        ),
        (
            "cuEventRecord(other)",
            Safe,
            Box::new(move || cu.cuEventRecord(event, other)),
        ),
        (
            "cuMemsetD8Async(other)",
            Safe,
            Box::new(move || cu.cuMemsetD8Async(p + 512, 0, 64, other)),
        ),
        (
            "cuMemcpyDtoH, pageable",
            Safe,
            Box::new(move || cu.cuMemcpyDtoH_v2(host, p, 64)),
        ),
        (
            "cuMemGetInfo",
            Safe,
            Box::new(|| cu.cuMemGetInfo_v2(None, None)),
        ),
        (
            "cuPointerGetAttribute",
            Safe,
            Box::new(move || cu.cuPointerGetAttribute(Some(&mut [0; 32]), 2, p)),
        ),
        (
            "cuDeviceGetGraphMemAttribute",
            Safe,
            Box::new(|| cu.cuDeviceGetGraphMemAttribute(0, 2, Some(&mut 0))),
        ),
        (
            "cuDeviceGraphMemTrim",
            Safe,
            Box::new(|| cu.cuDeviceGraphMemTrim(0)),
        ),
        (
            "cuMemAlloc 2 MiB",
            Unsafe,
            Box::new(|| cu.cuMemAlloc_v2(Some(&mut 0), GRANULE)),
        ),
        (
            "cuMemAlloc 1 KiB",
            Unsafe,
            Box::new(|| cu.cuMemAlloc_v2(Some(&mut 0), 1024)),
        ),
        ("cuMemFree(0)", Unsafe, Box::new(|| cu.cuMemFree_v2(0))),
        (
            "cuMemAllocPitch",
            Unsafe,
            Box::new(|| cu.cuMemAllocPitch_v2(Some(&mut 0), Some(&mut 0), 100, 100, 4)),
        ),
        (
            "cuMemHostAlloc",
            Unsafe,
            Box::new(|| cu.cuMemHostAlloc(Some(&mut 0), 4096, 0)),
        ),
        (
            "cuMemHostRegister",
            Unsafe,
            Box::new(|| cu.cuMemHostRegister_v2(Host::new(4096).address, 4096, 0)),
        ),
        (
            "cuMemAllocAsync(other)",
            Unsafe,
            Box::new(move || cu.cuMemAllocAsync(Some(&mut 0), 4096, other)),
        ),
        (
            "cuMemFreeAsync(other)",
            Unsafe,
            Box::new(move || {
                let p = stock.lock().expect("no panic").pop();
                cu.cuMemFreeAsync(p.expect("enough for every column"), other)
            }),
        ),
        (
            "cuMemPoolTrimTo",
            Unsafe,
            Box::new(move || cu.cuMemPoolTrimTo(pool, 0)),
        ),
        (
            "cuMemPoolGetAttribute",
            Unsafe,
            Box::new(move || cu.cuMemPoolGetAttribute(pool, 5, Some(&mut 0))),
        ),
        (
            "cuMemPoolSetAccess",
            Unsafe,
            Box::new(move || cu.cuMemPoolSetAccess(pool, Some(&access(3)), 1)),
        ),
        (
            "cuMemPoolCreate",
            Unsafe,
            Box::new(|| pool::try_made(b, pool::Of::Device).map_or_else(|code| code, |_| 0)),
        ),
        (
            "cuMemCreate, cuMemRelease",
            Safe,
            Box::new(|| cu.cuMemRelease(b.create(GRANULE, false))),
        ),
        (
            "cuMemAddressReserve",
            Safe,
            Box::new(|| cu.cuMemAddressFree(b.reserve(GRANULE), GRANULE)),
        ),
        (
            "cuMemUnmap, cuMemMap, cuMemSetAccess",
            Safe,
            Box::new(move || {
                let code = cu.cuMemUnmap(range, GRANULE);
                b.map(range, GRANULE, handle);
                code
            }),
        ),
    ];
    if host_vmm(cu) {
        let create = || {
            let mut handle = 0;
            let code = cu.cuMemCreate(Some(&mut handle), GRANULE, Some(&prop(true, b.node)), 0);
            must(cu.cuMemRelease(handle), "cuMemRelease");
            code
        };
        rows.push(("cuMemCreate host", Safe, Box::new(create)));
    }
    rows
}

/// A capture of one launch, around a call. The call's answer and that of cuStreamEndCapture.
fn around(
    b: &Bench,
    stream: usize,
    counter: u64,
    mode: i32,
    who: Who,
    act: &(dyn Fn() -> i32 + Sync),
) -> (i32, i32) {
    must(
        b.cu.cuStreamBeginCapture_v2(stream, mode),
        "cuStreamBeginCapture",
    );
    must(b.launch("gb_add", stream, &[counter, 1, 1]), "gb_add");
    let code = match who {
        Who::Same => act(),
        _ => b.elsewhere(|| {
            let mut relaxed = CU_STREAM_CAPTURE_MODE_RELAXED;
            if who == Who::Relaxed {
                must(
                    b.cu.cuThreadExchangeStreamCaptureMode(Some(&mut relaxed)),
                    "exchange",
                );
            }
            act()
        }),
    };
    let mut graph = 0;
    let end = b.cu.cuStreamEndCapture(stream, Some(&mut graph));
    if graph != 0 {
        must(b.cu.cuGraphDestroy(graph), "cuGraphDestroy");
    }
    b.done();
    (code, end)
}

pub(super) fn table(told: &Told) {
    let b = Bench::open();
    let (captured, other, counter) = (b.stream(1), b.stream(1), b.alloc(4096));
    let r = b.range("V2");
    for (name, rule, act) in rows(&b, other, r.p, r.chunks[0].handle) {
        for (mode, m) in MODES {
            for (place, who) in [
                ("same thread", Who::Same),
                ("other thread", Who::Other),
                ("relaxed thread", Who::Relaxed),
            ] {
                let caught = match rule {
                    Rule::Safe => false,
                    Rule::Always => true,
                    Rule::Unsafe => match m {
                        CU_STREAM_CAPTURE_MODE_GLOBAL => who != Who::Relaxed,
                        CU_STREAM_CAPTURE_MODE_THREAD_LOCAL => who == Who::Same,
                        _ => false,
                    },
                };
                let want = if caught { (900, 901) } else { (0, 0) };
                told.is(
                    format!("{name}, {mode} capture, {place}"),
                    around(&b, captured, counter, m, who, &*act),
                    want,
                );
            }
        }
    }
    let status = || {
        let mut now = -1;
        (b.cu.cuStreamIsCapturing(captured, Some(&mut now)), now)
    };
    told.is("cuStreamIsCapturing before", status(), (0, 0));
    must(
        b.cu.cuStreamBeginCapture_v2(captured, 0),
        "cuStreamBeginCapture",
    );
    told.is("cuStreamIsCapturing during", status(), (0, 1));
    told.is(
        "cuMemAlloc during",
        b.cu.cuMemAlloc_v2(Some(&mut 0), 64),
        900,
    );
    told.is("cuStreamIsCapturing then", status(), (0, 2));
    told.is(
        "cuStreamEndCapture",
        b.cu.cuStreamEndCapture(captured, Some(&mut 0)),
        901,
    );
    told.is("cuStreamIsCapturing after", status(), (0, 0));
    // What the thread itself said counts too: a capture that it began in global mode does not mind its relaxed calls.
    let mut mode = CU_STREAM_CAPTURE_MODE_RELAXED;
    must(
        b.cu.cuThreadExchangeStreamCaptureMode(Some(&mut mode)),
        "exchange",
    );
    told.is("the mode before", mode, CU_STREAM_CAPTURE_MODE_GLOBAL);
    must(
        b.cu.cuThreadExchangeStreamCaptureMode(Some(&mut mode)),
        "exchange",
    );
    told.is(
        "the mode that was set",
        mode,
        CU_STREAM_CAPTURE_MODE_RELAXED,
    );
}

pub(super) fn forms(told: &Told) {
    let b = Bench::open();
    let (blocking, free, counter) = (b.stream(0), b.stream(1), b.alloc(4096));
    let layouts: &[&str] = if host_vmm(&b.cu) {
        &["V8", "H8"]
    } else {
        &["V8"]
    };
    let mut list: Vec<Form> = forms::copies(&b);
    list.extend(forms::memsets(&b));
    list.extend(forms::transfers(&b));
    // The batch form runs in a stream that the program made, which no capture here concerns.
    list.extend(
        forms::asynchronous(&b)
            .into_iter()
            .filter(|f| f.on != On::Made),
    );
    let columns = [
        (
            "blocking, global",
            blocking,
            CU_STREAM_CAPTURE_MODE_GLOBAL,
            Who::Same,
        ),
        (
            "non-blocking, global",
            free,
            CU_STREAM_CAPTURE_MODE_GLOBAL,
            Who::Same,
        ),
        (
            "non-blocking, thread-local",
            free,
            CU_STREAM_CAPTURE_MODE_THREAD_LOCAL,
            Who::Same,
        ),
        (
            "blocking, relaxed",
            blocking,
            CU_STREAM_CAPTURE_MODE_RELAXED,
            Who::Same,
        ),
        (
            "non-blocking, global, other thread",
            free,
            CU_STREAM_CAPTURE_MODE_GLOBAL,
            Who::Other,
        ),
    ];
    for layout in layouts {
        let (to, from) = (b.range(layout), b.range(layout));
        for f in &list {
            // The first use of a form may load something.
            must((f.call)(to.p, from.p), f.name);
            b.done();
            for (column, stream, mode, who) in columns {
                let want = if f.on == On::Legacy && stream == blocking {
                    (906, 901)
                } else {
                    (0, 0)
                };
                let got = around(&b, stream, counter, mode, who, &|| (f.call)(to.p, from.p));
                told.is(format!("{} on {layout}, {column}", f.name), got, want);
            }
        }
    }
}
