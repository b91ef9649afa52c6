//! Streams as queues: an operation runs when everything it waits for has finished.
//!
//! Each stream has a worker thread, started at its first operation and gone after a while without
//! work. An operation waits only for operations that were enqueued before it, so no cycle can arise.
use std::collections::{BTreeMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, PoisonError};
use std::time::Duration;

use greenboost_abi::{CUDA_ERROR_OUT_OF_MEMORY, CUDA_ERROR_UNKNOWN, CUresult};

use crate::abi::Res;
use crate::capture::Joined;
use crate::misuse::misuse;
use crate::work::{self, Site, Work};
use crate::world::{self, Guard, World, world};

const IDLE: Duration = Duration::from_secs(2);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Sort {
    Legacy,
    PerThread,
    Blocking,
    NonBlocking,
}

impl Sort {
    /// Whether the legacy stream and this one wait for each other.
    pub(crate) fn blocks(self) -> bool {
        self != Sort::NonBlocking
    }
}

pub(crate) struct Stream {
    pub ctx: usize,
    pub device: usize,
    pub sort: Sort,
    pub flags: u32,
    pub priority: i32,
    pub id: u64,
    /// The program destroyed it; what is queued still runs.
    pub gone: bool,
    pub capture: Option<Joined>,
    queue: VecDeque<Op>,
    pub enqueued: u64,
    pub completed: u64,
    running: bool,
    wake: Arc<Condvar>,
}

impl Stream {
    pub(crate) fn new(ctx: usize, device: usize, sort: Sort, flags: u32, priority: i32) -> Stream {
        Stream {
            ctx,
            device,
            sort,
            flags,
            priority,
            id: world::serial(),
            gone: false,
            capture: None,
            queue: VecDeque::new(),
            enqueued: 0,
            completed: 0,
            running: false,
            wake: Arc::new(Condvar::new()),
        }
    }

    pub(crate) fn idle(&self) -> bool {
        self.completed == self.enqueued
    }
}

/// "The stream's first `seq` operations."
#[derive(Clone, Copy)]
pub(crate) struct Dep {
    pub stream: u64,
    pub seq: u64,
}

struct Op {
    ticket: u64,
    name: &'static str,
    deps: Vec<Dep>,
    work: Work,
}

/// Addresses that an operation names or touches: `start..end`.
pub(crate) type Range = (u64, u64);

/// What is queued or running, and the addresses that it names.
pub(crate) struct Flight {
    next: u64,
    ops: BTreeMap<u64, (&'static str, Vec<Range>)>,
}

impl Flight {
    pub(crate) const fn new() -> Flight {
        Flight {
            next: 0,
            ops: BTreeMap::new(),
        }
    }

    fn depart(&mut self, name: &'static str, ranges: Vec<Range>) -> u64 {
        self.next += 1;
        if !ranges.is_empty() {
            self.ops.insert(self.next, (name, ranges));
        }
        self.next
    }

    fn arrive(&mut self, ticket: u64) {
        self.ops.remove(&ticket);
    }

    /// Addresses that an operation found out while running (pointer tables).
    pub(crate) fn also(&mut self, ticket: u64, name: &'static str, ranges: &[Range]) {
        self.ops
            .entry(ticket)
            .or_insert_with(|| (name, Vec::new()))
            .1
            .extend_from_slice(ranges);
    }

    pub(crate) fn touching(&self, start: u64, end: u64) -> Option<(&'static str, u64)> {
        self.touching_but(0, start, end)
    }

    pub(crate) fn touching_but(
        &self,
        ticket: u64,
        start: u64,
        end: u64,
    ) -> Option<(&'static str, u64)> {
        self.ops
            .iter()
            .filter(|(t, _)| **t != ticket)
            .find_map(|(_, (name, ranges))| {
                ranges
                    .iter()
                    .find(|(a, b)| *a < end && start < *b)
                    .map(|(a, _)| (*name, *a))
            })
    }
}

impl World {
    pub(crate) fn passed(&self, dep: Dep) -> bool {
        self.streams
            .get(&dep.stream)
            .is_none_or(|s| s.completed >= dep.seq)
    }

    /// Appends to the stream, or to what it captures (then `None`).
    pub(crate) fn submit(
        &mut self,
        sid: u64,
        name: &'static str,
        work: Work,
        ranges: Vec<Range>,
        deps: Vec<Dep>,
    ) -> Res<Option<u64>> {
        if self.streams[&sid].capture.is_some() {
            return self.capture_node(sid, name, work, ranges).map(|()| None);
        }
        if self.streams[&sid].sort == Sort::Legacy {
            self.refuse_implicit(self.streams[&sid].ctx, name)?;
        }
        self.enqueue(sid, name, work, ranges, deps).map(Some)
    }

    fn enqueue(
        &mut self,
        sid: u64,
        name: &'static str,
        work: Work,
        ranges: Vec<Range>,
        mut deps: Vec<Dep>,
    ) -> Res<u64> {
        let (ctx, sort) = (self.streams[&sid].ctx, self.streams[&sid].sort);
        let pending = |(&stream, s): (&u64, &Stream)| {
            (!s.idle()).then_some(Dep {
                stream,
                seq: s.enqueued,
            })
        };
        match sort {
            Sort::Legacy => {
                let others = self
                    .streams
                    .iter()
                    .filter(|(id, s)| **id != sid && s.ctx == ctx && s.sort.blocks());
                deps.extend(others.filter_map(pending));
            }
            Sort::PerThread | Sort::Blocking => {
                let legacy = self.contexts.get(&ctx).map_or(0, |c| c.legacy);
                deps.extend(self.streams.get_key_value(&legacy).and_then(pending));
            }
            Sort::NonBlocking => {}
        }
        let Some(s) = self.streams.get_mut(&sid) else {
            return Err(CUDA_ERROR_UNKNOWN);
        };
        if s.running {
            s.wake.notify_one();
        } else {
            start_worker(sid).map_err(|_| CUDA_ERROR_OUT_OF_MEMORY)?;
            s.running = true;
        }
        let ticket = self.flight.depart(name, ranges);
        s.queue.push_back(Op {
            ticket,
            name,
            deps,
            work,
        });
        s.enqueued += 1;
        Ok(s.enqueued)
    }

    /// A context that failed runs nothing more and answers every call with the reason.
    pub(crate) fn fail(&mut self, ctx: usize, code: CUresult) {
        if let Some(context) = self.contexts.get_mut(&ctx)
            && context.error == 0
        {
            context.error = code;
        }
    }

    fn finish(&mut self, sid: u64, ticket: u64) {
        self.flight.arrive(ticket);
        self.races.release(ticket);
        if let Some(s) = self.streams.get_mut(&sid) {
            s.completed += 1;
        }
        world::announce();
    }
}

/// Workers take no signals: those are for the program's own threads.
fn start_worker(sid: u64) -> std::io::Result<()> {
    // SAFETY: plain calls on local signal sets.
    let old = unsafe {
        let (mut all, mut old) = (std::mem::zeroed(), std::mem::zeroed());
        libc::sigfillset(&mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &all, &mut old);
        old
    };
    let started = std::thread::Builder::new()
        .name("fake-cuda".to_owned())
        .spawn(move || worker(sid));
    // SAFETY: restores the mask saved above.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &old, std::ptr::null_mut()) };
    started.map(drop)
}

fn worker(sid: u64) {
    let mut w = world();
    loop {
        let Some(s) = w.streams.get_mut(&sid) else {
            return;
        };
        let Some(op) = s.queue.front() else {
            if s.gone {
                w.streams.remove(&sid);
                world::announce();
                return;
            }
            let wake = s.wake.clone();
            let (back, timeout) = wake
                .wait_timeout(w, IDLE)
                .unwrap_or_else(PoisonError::into_inner);
            w = back;
            if let Some(s) = w.streams.get_mut(&sid)
                && timeout.timed_out()
                && s.queue.is_empty()
                && !s.gone
            {
                s.running = false;
                return;
            }
            continue;
        };
        let deps = op.deps.clone();
        if !deps.into_iter().all(|dep| w.passed(dep)) {
            w = world::wait(w);
            continue;
        }
        let Some((op, ctx, device)) = w
            .streams
            .get_mut(&sid)
            .and_then(|s| s.queue.pop_front().map(|op| (op, s.ctx, s.device)))
        else {
            continue;
        };
        let error = w.contexts.get(&ctx).map_or(0, |c| c.error);
        let site = Site {
            device,
            name: op.name,
            ticket: op.ticket,
            error,
        };
        drop(w);
        let result = catch_unwind(AssertUnwindSafe(|| work::run(&site, op.name, &op.work)));
        w = world();
        let code = result.unwrap_or_else(|_| {
            misuse!("internal: {} panicked while running", op.name);
            Err(CUDA_ERROR_UNKNOWN)
        });
        if let Err(code) = code {
            w.fail(ctx, code);
        }
        w.finish(sid, op.ticket);
    }
}

/// Waits until the stream's first `seq` operations are done.
pub(crate) fn drain(mut w: Guard, dep: Dep) -> Guard {
    while !w.passed(dep) {
        w = world::wait(w);
    }
    w
}

/// Waits for everything that is enqueued now on the streams chosen.
pub(crate) fn drain_where(mut w: Guard, chosen: impl Fn(&Stream) -> bool) -> Guard {
    let pending: Vec<Dep> = w
        .streams
        .iter()
        .filter(|(_, s)| chosen(s) && !s.idle())
        .map(|(&stream, s)| Dep {
            stream,
            seq: s.enqueued,
        })
        .collect();
    for dep in pending {
        w = drain(w, dep);
    }
    w
}
