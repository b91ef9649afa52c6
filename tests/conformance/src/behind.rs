//! Did a call wait for a kernel?
//!
//! An event behind the kernel tells: if it has not passed when the call returns, the call did not wait, however slow this
//! machine is. The other way round a stall may look like a wait, so a surprise is tried again behind a longer kernel.

use greenboost_abi::CUDA_ERROR_NOT_READY;

use crate::bench::{Bench, must};
use crate::told::Told;

/// Milliseconds of the kernel, when a call is expected to wait and when not.
const WAITED_FOR: u64 = 100;
const NOT_WAITED_FOR: u64 = 300;
const TRIES: u32 = 4;

/// A call that may wait; its answer.
pub type Call<'a> = &'a dyn Fn() -> i32;

impl Bench {
    fn once(&self, stream: usize, ms: u64, act: Call) -> Option<bool> {
        let event = self.event();
        self.spin(stream, ms);
        must(self.cu.cuEventRecord(event, stream), "cuEventRecord");
        let running = self.cu.cuEventQuery(event) == CUDA_ERROR_NOT_READY;
        let code = act();
        let passed = self.cu.cuEventQuery(event) == 0;
        self.done();
        must(code, "the call behind the kernel");
        running.then_some(passed)
    }

    /// Whether the call returns only after a kernel that is running in the stream.
    pub fn waits(&self, stream: usize, expected: bool, act: Call) -> bool {
        let first = if expected { WAITED_FOR } else { NOT_WAITED_FOR };
        for i in 0..TRIES {
            match self.once(stream, first << i, act) {
                Some(false) => return false,
                Some(true) if expected => return true,
                _ => {}
            }
        }
        true
    }

    /// Checks that none of these calls waits; all of them behind one kernel, the doubtful ones again alone.
    pub fn none_waits(&self, told: &Told, stream: usize, place: &str, calls: &[(String, Call)]) {
        let event = self.event();
        self.spin(stream, NOT_WAITED_FOR);
        must(self.cu.cuEventRecord(event, stream), "cuEventRecord");
        let mut doubtful = Vec::new();
        for (name, act) in calls {
            must(act(), name);
            match self.cu.cuEventQuery(event) {
                CUDA_ERROR_NOT_READY => told.is(name, true, true),
                _ => doubtful.push((name, act)),
            }
        }
        self.done();
        for (name, act) in doubtful {
            told.is(
                format!("{name} behind a kernel in {place}: waits"),
                self.waits(stream, false, *act),
                false,
            );
        }
    }
}
