//! What an operation does when its turn has come.
use std::sync::Arc;
use std::sync::OnceLock;
use std::time::Instant;

use greenboost_abi::{CUDA_ERROR_ILLEGAL_ADDRESS, CUresult};

use crate::abi::{HostFn, Res, StreamCallback};
use crate::capture::Node;
use crate::cell::Cell;
use crate::launch::Launch;
use crate::local;
use crate::memset::Fill;
use crate::misuse::misuse;
use crate::race::How;
use crate::transfer::Copy;
use crate::va::{Fault, Segment, Who};
use crate::world::world;

/// `CUDA_ERROR_MISALIGNED_ADDRESS`, and the fault that leads to it.
const MISALIGNED_ADDRESS: CUresult = 716;
pub(crate) const MISALIGNED: &str = "misaligned";

/// Where an operation runs.
pub(crate) struct Site {
    pub device: usize,
    pub name: &'static str,
    pub ticket: u64,
    /// What the context had failed with when the operation's turn came.
    pub error: CUresult,
}

impl Site {
    /// What a range means to the device now; the operation is known to use it until it has finished.
    pub(crate) fn reach(
        &self,
        va: u64,
        len: u64,
        how: How,
        who: Who,
    ) -> Result<Vec<Segment>, Fault> {
        let mut w = world();
        let segments = w.translate(self.device, va, len, how != How::Read, who)?;
        w.claim(self, &segments, how);
        Ok(segments)
    }
}

#[derive(Clone)]
pub(crate) enum Work {
    /// Only waits (for an event, for the other streams).
    Nothing,
    Launch(Arc<Launch>),
    Copy(Arc<Copy>),
    Fill(Arc<Fill>),
    Host {
        call: HostFn,
        user: usize,
    },
    Callback {
        call: StreamCallback,
        user: usize,
        stream: usize,
    },
    Stamp(Arc<OnceLock<Instant>>),
    /// `cuMemFreeAsync`: address and number of the allocation.
    Free(u64, u64),
    Graph(Arc<Vec<Node>>),
    /// A graph's event record: the launch does it.
    Record(usize),
    /// A graph's wait for an event: the launch waits.
    WaitFor(usize),
    /// From here on the graph's allocation may be used.
    GraphAlloc {
        va: u64,
        size: u64,
    },
    /// From here on it may not.
    GraphFree(u64),
    Store(Cell),
    Await(Cell),
}

/// Runs it; an error is what the context fails with.
pub(crate) fn run(site: &Site, name: &'static str, work: &Work) -> Res {
    if site.error != 0 {
        // A failed context runs nothing, but those who wait must hear of it.
        match work {
            Work::Callback { call, user, stream } => {
                in_callback(|| call_back(*call, *user, *stream, site.error))
            }
            Work::Stamp(stamp) => drop(stamp.set(Instant::now())),
            _ => {}
        }
        return Ok(());
    }
    let outcome = match work {
        Work::Nothing | Work::Record(_) | Work::WaitFor(_) => Ok(()),
        Work::GraphAlloc { va, size } => {
            crate::graph_memory::begin(site, *va, *size);
            Ok(())
        }
        Work::GraphFree(va) => {
            crate::graph_memory::end(site, *va);
            Ok(())
        }
        Work::Launch(launch) => launch.run(site),
        Work::Copy(copy) => copy.run(site),
        Work::Fill(fill) => fill.run(site),
        Work::Host { call, user } => {
            // SAFETY: the program gave the function and its argument for exactly this.
            in_callback(|| unsafe { call(*user as *mut _) });
            Ok(())
        }
        Work::Callback { call, user, stream } => {
            in_callback(|| call_back(*call, *user, *stream, 0));
            Ok(())
        }
        Work::Stamp(stamp) => {
            let _ = stamp.set(Instant::now());
            Ok(())
        }
        Work::Free(va, id) => {
            crate::pool::free_now(site, *va, *id);
            Ok(())
        }
        Work::Graph(nodes) => {
            return nodes
                .iter()
                .try_for_each(|node| run(site, node.name, &node.work));
        }
        Work::Store(cell) => cell.store(site),
        Work::Await(cell) => cell.wait(site),
    };
    outcome.map_err(|fault| {
        let access = if fault.write { "write to" } else { "read of" };
        misuse!(
            "illegal address: {access} {:#x} by {name}: {}",
            fault.va,
            fault.why
        );
        if fault.why == MISALIGNED {
            MISALIGNED_ADDRESS
        } else {
            CUDA_ERROR_ILLEGAL_ADDRESS
        }
    })
}

fn in_callback(call: impl FnOnce()) {
    local::set_in_callback(true);
    call();
    local::set_in_callback(false);
}

fn call_back(call: StreamCallback, user: usize, stream: usize, error: CUresult) {
    // SAFETY: the program gave the function and its argument for exactly this.
    unsafe { call(stream as *mut _, error, user as *mut _) };
}
