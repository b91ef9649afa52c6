//! A capture that begins while another thread waits.

use std::sync::atomic::{AtomicBool, AtomicI32, Ordering::SeqCst};
use std::time::Duration;

use super::capture::MODES;
use crate::bench::{Bench, must};
use crate::told::Told;

/// What a round gave: the wait, begin, launch, end.
type Round = [i32; 4];

/// A capture that begins while another thread waits behind a kernel, and ends before or after that thread returns.
fn round(b: &Bench, whole: bool, across: bool, mode: i32, p: u64) -> Round {
    let (s, t) = (b.stream(1), b.stream(1));
    b.spin(s, 300);
    let (entering, waited) = (AtomicBool::new(false), AtomicI32::new(-2));
    let mut graph = 0;
    let (begun, launched, ended) = std::thread::scope(|scope| {
        let waiter = scope.spawn(|| {
            must(b.cu.cuCtxSetCurrent(b.context), "cuCtxSetCurrent");
            entering.store(true, SeqCst);
            let code = if whole {
                b.cu.cuCtxSynchronize()
            } else {
                b.cu.cuStreamSynchronize(s)
            };
            waited.store(code, SeqCst);
        });
        while !entering.load(SeqCst) {
            std::thread::yield_now();
        }
        std::thread::sleep(Duration::from_millis(100));
        let begun = b.cu.cuStreamBeginCapture_v2(t, mode);
        let launched = b.launch("gb_add", t, &[p, 1, 1]);
        let mut end = || b.cu.cuStreamEndCapture(t, Some(&mut graph));
        let early = (!across).then(&mut end);
        waiter.join().expect("the waiter does not panic");
        (begun, launched, early.unwrap_or_else(end))
    });
    if ended == 0 {
        let mut exec = 0;
        must(
            b.cu.cuGraphInstantiateWithFlags(Some(&mut exec), graph, 0),
            "cuGraphInstantiate",
        );
        must(b.cu.cuGraphLaunch(exec, t), "cuGraphLaunch");
    }
    b.done();
    [waited.load(SeqCst), begun, launched, ended]
}

pub(super) fn after_wait(told: &Told) {
    let b = Bench::open();
    let p = b.alloc(64);
    must(b.cu.cuMemsetD8_v2(p, 0, 64), "cuMemsetD8");
    b.done();
    for whole in [true, false] {
        for across in [false, true] {
            for (mode, m) in MODES {
                let call = if whole { "context" } else { "stream" };
                let name =
                    format!("wait for the {call}, then {mode}, open until it returns {across}");
                // A thread that was held up before its call came too late: once more.
                let mut rounds = (0..3).map(|_| round(&b, whole, across, m, p));
                let good = rounds.find(|r| *r == [0; 4]);
                told.is(
                    name,
                    good.unwrap_or_else(|| round(&b, whole, across, m, p)),
                    [0; 4],
                );
            }
        }
    }
    let ran = b.read(p).unwrap_or(0);
    told.is("the graphs ran", ran >= 12, true);
}
