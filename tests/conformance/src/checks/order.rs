//! What streams wait for.

use greenboost_abi::{CU_STREAM_LEGACY, CU_STREAM_PER_THREAD, CUDA_ERROR_NOT_READY};

use crate::bench::{Bench, must};
use crate::told::Told;

pub(super) fn legacy(told: &Told) {
    let b = Bench::open();
    let (blocking, free) = (b.stream(0), b.stream(1));
    let streams = [
        ("legacy", CU_STREAM_LEGACY),
        ("blocking", blocking),
        ("free", free),
        ("own", CU_STREAM_PER_THREAD),
    ];
    for (i, (first, s)) in streams.iter().enumerate() {
        for (second, t) in streams
            .iter()
            .enumerate()
            .filter(|(j, _)| *j != i)
            .map(|(_, t)| t)
        {
            // Only a stream and the legacy one wait for each other, and a non-blocking one for nobody.
            let waits = (*first == "legacy" || *second == "legacy")
                && *first != "free"
                && *second != "free";
            told.is(
                format!("{second} waits for {first}"),
                follows(&b, *s, *t, waits),
                waits,
            );
        }
    }
    let (event, p) = (b.event(), b.alloc(8));
    b.spin(free, 100);
    b.write(p, 1);
    must(b.cu.cuEventRecord(event, free), "cuEventRecord");
    must(
        b.cu.cuStreamWaitEvent(blocking, event, 0),
        "cuStreamWaitEvent",
    );
    must(b.launch("gb_add", blocking, &[p, 1, 1]), "gb_add");
    told.is("cuEventSynchronize", b.cu.cuEventSynchronize(event), 0);
    told.is("the event afterwards", b.cu.cuEventQuery(event), 0);
    b.done();
    told.is("behind the event", b.read(p), Ok(2));
}

/// Whether work in the second stream runs only after work in the first. What ran before certainly did not wait; a stall
/// of this machine may look like waiting, so that is tried again.
fn follows(b: &Bench, first: usize, second: usize, expected: bool) -> bool {
    for i in 0..4 {
        let (early, late, p) = (b.event(), b.event(), b.alloc(8));
        b.spin(first, (if expected { 100 } else { 250 }) << i);
        must(b.cu.cuEventRecord(early, first), "cuEventRecord");
        must(b.launch("gb_add", second, &[p, 1, 1]), "gb_add");
        must(b.cu.cuEventRecord(late, second), "cuEventRecord");
        let running = b.cu.cuEventQuery(early) == CUDA_ERROR_NOT_READY;
        while b.cu.cuEventQuery(late) == CUDA_ERROR_NOT_READY {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        let waited = b.cu.cuEventQuery(early) == 0;
        b.done();
        if !waited {
            return false;
        }
        if expected && running {
            return true;
        }
    }
    true
}
