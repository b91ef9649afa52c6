//! What waits for what: each call behind a kernel, in each kind of stream.

use greenboost_abi::CU_STREAM_PER_THREAD;

use super::forms::{self, Form, LARGE, On};
use crate::behind::Call;
use crate::bench::{Bench, GRANULE, MIB, Range, host_vmm, must};
use crate::told::Told;

/// Where the kernel runs: name, stream, and whether a call in the legacy or the thread's own stream is behind it.
fn places(b: &Bench) -> [(&'static str, usize, bool, bool); 4] {
    [
        ("null", 0, true, true),
        ("blocking", b.stream(0), true, false),
        ("non-blocking", b.stream(1), false, false),
        ("per-thread", CU_STREAM_PER_THREAD, true, true),
    ]
}

/// Tries all forms; `waits` says whether a form waits for what is before it in its stream.
fn tried(
    b: &Bench,
    told: &Told,
    forms: &[Form],
    to: u64,
    from: u64,
    waits: impl Fn(&Form) -> bool,
) {
    // The first use of a form may load something.
    for f in forms {
        must((f.call)(to, from), f.name);
    }
    b.done();
    for (place, stream, legacy, own) in places(b) {
        let (mut at_once, mut later) = (Vec::new(), Vec::new());
        for f in forms {
            let behind = match f.on {
                On::Legacy => legacy,
                On::Own => own,
                On::Made => false,
            };
            let call: Box<dyn Fn() -> i32> = Box::new(move || (f.call)(to, from));
            let list = if waits(f) && behind {
                &mut later
            } else {
                &mut at_once
            };
            list.push((f.name.to_owned(), call));
        }
        let calls: Vec<(String, Call)> = at_once
            .iter()
            .map(|(name, call)| (name.clone(), &**call as Call))
            .collect();
        b.none_waits(told, stream, place, &calls);
        for (name, call) in &later {
            told.is(
                format!("{name} behind a kernel in {place}: waits"),
                b.waits(stream, true, &**call),
                true,
            );
        }
    }
}

fn two(told: &Told, to: &str, from: &str) -> Option<(Bench, Range, Range)> {
    let b = Bench::open();
    if (to.contains('H') || from.contains('H')) && !host_vmm(&b.cu) {
        told.skip("no host memory in virtual ranges here");
        return None;
    }
    let (to, from) = (b.range(to), b.range(from));
    Some((b, to, from))
}

pub(super) fn vram_to_vram(told: &Told) {
    let Some((b, to, from)) = two(told, "V8", "V8") else {
        return;
    };
    tried(&b, told, &forms::copies(&b), to.p, from.p, |_| false);
}

pub(super) fn host_to_vram(told: &Told) {
    let Some((b, to, from)) = two(told, "V8", "H8") else {
        return;
    };
    tried(&b, told, &forms::copies(&b), to.p, from.p, |_| true);
}

pub(super) fn vram_to_host(told: &Told) {
    let Some((b, to, from)) = two(told, "H8", "V8") else {
        return;
    };
    tried(&b, told, &forms::copies(&b), to.p, from.p, |_| true);
}

pub(super) fn host_to_host(told: &Told) {
    let Some((b, to, from)) = two(told, "H8", "H8") else {
        return;
    };
    tried(&b, told, &forms::copies(&b), to.p, from.p, |_| true);
}

pub(super) fn mixed(told: &Told) {
    let Some((b, to, from)) = two(told, "V2 H6", "V2 H6") else {
        return;
    };
    tried(&b, told, &forms::copies(&b), to.p, from.p, |f| !f.short);
    tried(&b, told, &forms::memsets(&b), to.p, from.p, |f| !f.short);
}

pub(super) fn memset_vram(told: &Told) {
    let Some((b, to, from)) = two(told, "V8", "V8") else {
        return;
    };
    tried(&b, told, &forms::memsets(&b), to.p, from.p, |_| false);
}

pub(super) fn memset_host(told: &Told) {
    let Some((b, to, from)) = two(told, "H8", "H8") else {
        return;
    };
    tried(&b, told, &forms::memsets(&b), to.p, from.p, |_| true);
}

pub(super) fn transfers(told: &Told) {
    let Some((b, vram, _)) = two(told, "V8", "V2") else {
        return;
    };
    tried(&b, told, &forms::transfers(&b), vram.p, 0, |_| true);
    if host_vmm(&b.cu) {
        tried(&b, told, &forms::transfers(&b), b.range("H8").p, 0, |_| {
            true
        });
    }
}

pub(super) fn asynchronous(told: &Told) {
    let b = Bench::open();
    let pairs: &[(&str, &str)] = match host_vmm(&b.cu) {
        true => &[
            ("V8", "V8"),
            ("V8", "H8"),
            ("H8", "V8"),
            ("H8", "H8"),
            ("V2 H6", "V2 H6"),
        ],
        false => &[("V8", "V8")],
    };
    for (to, from) in pairs {
        tried(
            &b,
            told,
            &forms::asynchronous(&b),
            b.range(to).p,
            b.range(from).p,
            |_| false,
        );
    }
}

pub(super) fn mapping(told: &Told) {
    let b = Bench::open();
    let cu = &b.cu;
    let layouts: &[(&str, bool)] = if host_vmm(cu) {
        &[("V2", false), ("H2", true)]
    } else {
        &[("V2", false)]
    };
    for (layout, host) in layouts {
        let r = b.range(layout);
        let (p, handle) = (r.p, r.chunks[0].handle);
        b.fill(p, r.size, 1);
        b.done();
        let create = || cu.cuMemRelease(b.create(GRANULE, *host));
        let reserve = || cu.cuMemAddressFree(b.reserve(GRANULE), GRANULE);
        let unmap = || cu.cuMemUnmap(p, GRANULE);
        let map = || {
            b.map(p, GRANULE, handle);
            0
        };
        let round = || unmap() + map();
        let calls: [(&str, Call); 3] = [
            ("create, release", &create),
            ("reserve, free", &reserve),
            ("unmap, map, access", &round),
        ];
        let calls = calls.map(|(name, call)| (format!("{layout}: {name}"), call));
        let [null, _, free, _] = places(&b);
        for (place, stream, ..) in [null, free] {
            b.none_waits(told, stream, place, &calls);
        }
        told.is(format!("{layout}: the bytes"), b.wrong(p, r.size, 1), 0);
    }
}

pub(super) fn free(told: &Told) {
    let b = Bench::open();
    for size in [64, LARGE, 64 * MIB] {
        for (place, stream, _, _) in places(&b) {
            let free = || b.cu.cuMemFree_v2(b.alloc(size));
            told.is(
                format!("{size} bytes behind a kernel in {place}: waits"),
                b.waits(stream, true, &free),
                true,
            );
        }
    }
}
