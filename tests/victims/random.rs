//! A random program: allocations, copies, memsets, kernels, graphs, host functions and frees on several threads and
//! streams, compared byte for byte with a plain memory on the host.
//!
//! `random SEED FROM TO THREADS STREAMS OPERATIONS MIB [pool] [peer] [graph-memory]`: programs FROM to TO of this seed,
//! one after another; each thread holds at most MIB. An out-of-memory is an answer; the thread goes on with less. The
//! first operations of a longer run are those of a shorter one. With `pool` some allocations are stream-ordered, from
//! the default pool and from one of the thread's own, with `peer` some are on a second device, with `graph-memory` graphs allocate too.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use victim::gpu::{Gpu, Kernels};
use victim::*;

#[path = "random/graphs.rs"]
mod graphs;

use graphs::{Graph, Step};

fn main() {
    let number = |n: usize| argument(n).parse::<u64>().expect("a number");
    let (seed, programs) = (number(1), number(2)..number(3));
    let shape = Shape {
        threads: number(4),
        streams: number(5),
        operations: number(6),
        mib: number(7),
        pool: std::env::args().any(|a| a == "pool"),
        graph_memory: std::env::args().any(|a| a == "graph-memory"),
    };
    let gpu = Gpu::open();
    let kernels = Kernels::load(&gpu);
    let peer = std::env::args().any(|a| a == "peer");
    let far = peer.then(|| Gpu::on(Driver::reach(), 1));
    gpu.enter();
    let (mut refused, mut left) = (0, None);
    for program in programs {
        let seed = seed.wrapping_mul(0x1_0001).wrapping_add(program << 40);
        refused += run(seed, &shape, &gpu, &kernels, far.as_ref());
        // What a program has freed is free for the next one, all of it.
        let free = all_free(&gpu, far.as_ref());
        let before = left.get_or_insert_with(|| free.clone());
        // One block of small allocations of each device may be there still; and what the shim stages by, once it does.
        let tools = if std::env::var_os("GREENBOOST_TRANSITS").is_some_and(|v| v == "always") {
            3 * GRAIN
        } else {
            0
        };
        let same = |(a, b): (&usize, &usize)| a.abs_diff(*b) <= GRAIN * free.len() + tools;
        assert!(
            free.iter().zip(&*before).all(same),
            "free memory before and after program {program}: {before:?}, {free:?}"
        );
    }
    println!("~ refused {refused}");
    println!("right");
}

/// What the programs of a process have in common.
struct Shape {
    threads: u64,
    streams: u64,
    operations: u64,
    mib: u64,
    pool: bool,
    graph_memory: bool,
}

/// Runs one program; how many of its allocations were refused.
fn run(seed: u64, shape: &Shape, gpu: &Gpu, kernels: &Kernels, far: Option<&Gpu>) -> u64 {
    std::thread::scope(|s| {
        let workers: Vec<_> = (0..shape.threads)
            .map(|t| {
                s.spawn(move || {
                    gpu.enter();
                    let numbers = Numbers(seed.wrapping_add(t * 7919 + 1));
                    let most = (shape.mib as usize) << 20;
                    let mut w = Worker::new(gpu, kernels, t, numbers, shape.streams, most);
                    (w.pool, w.far, w.graph_memory) = (shape.pool, far, shape.graph_memory);
                    if shape.pool {
                        w.open_pool();
                    }
                    for operation in 0..shape.operations {
                        w.operation = operation;
                        w.step();
                    }
                    w.end();
                    w.refused
                })
            })
            .collect();
        let mut refused = 0;
        for worker in workers {
            refused += worker.join().unwrap_or_else(|_| std::process::exit(101));
        }
        refused
    })
}

/// Bytes that are free on both devices while nothing is allocated.
fn all_free(gpu: &Gpu, far: Option<&Gpu>) -> Vec<usize> {
    let mut free = Vec::new();
    for gpu in [Some(gpu), far].into_iter().flatten() {
        gpu.enter();
        ok(gpu.cuda.cuCtxSynchronize());
        ok(gpu.cuda.cuDeviceGraphMemTrim(gpu.device));
        // What was freed in a capture may be waiting for the next call.
        gpu.free(gpu.alloc(1000));
        free.push(gpu.memory().0);
    }
    gpu.enter();
    free
}

/// A stream, and what the thread keeps for it.
struct Lane {
    stream: CUstream,
    blocking: bool,
    /// Pinned memory for copies in and out: reused after a synchronise.
    pinned: *mut u8,
    /// Bytes of it in use by queued copies.
    used: usize,
    /// What queued copies out must have brought: offset in the pinned memory, and the bytes.
    due: VecDeque<(usize, Vec<u8>, u64)>,
    /// Host functions that have run here, and how many there must be.
    called: Box<AtomicU64>,
    calls: u64,
}

const PINNED: usize = 2 << 20;

/// Chunks are multiples of this.
const GRAIN: usize = 2 << 20;

/// Held by a thread that captures, and by one that synchronises the context.
static CAPTURING: Mutex<()> = Mutex::new(());

/// An allocation, what it must hold, and the lane of its last use.
struct Buffer {
    at: CUdeviceptr,
    bytes: Vec<u8>,
    last: usize,
    /// Stream-ordered.
    pooled: bool,
}

/// What a host function does in its turn: says that it came in its turn, and writes where a copy will read.
struct Call {
    called: *const AtomicU64,
    turn: u64,
    seed: u64,
    to: *mut u8,
    len: usize,
}

/// Host functions that came out of turn.
static OUT_OF_TURN: AtomicU64 = AtomicU64::new(0);

extern "C" fn call(data: *mut c_void) {
    // SAFETY: the caller made it by `Box::into_raw` for this one call; what it points to outlives the lane's work.
    unsafe {
        let it = Box::from_raw(data.cast::<Call>());
        if (*it.called).fetch_add(1, SeqCst) != it.turn {
            OUT_OF_TURN.fetch_add(1, SeqCst);
        }
        Numbers(it.seed).fill(std::slice::from_raw_parts_mut(it.to, it.len));
    }
}

/// An allocation on the second device.
struct Far {
    at: CUdeviceptr,
    bytes: Vec<u8>,
    last: usize,
}

struct Worker<'a> {
    gpu: &'a Gpu,
    kernels: &'a Kernels,
    thread: u64,
    numbers: Numbers,
    operation: u64,
    most: usize,
    held: usize,
    lanes: Vec<Lane>,
    buffers: Vec<Buffer>,
    graphs: Vec<Graph>,
    pool: bool,
    /// A pool of the thread's own; null without `pool`.
    own: CUmemoryPool,
    /// Graphs allocate.
    graph_memory: bool,
    far: Option<&'a Gpu>,
    fars: Vec<Far>,
    refused: u64,
    verbose: bool,
}

/// A part of a buffer.
#[derive(Clone, Copy)]
struct Part {
    buffer: usize,
    start: usize,
    len: usize,
}

impl<'a> Worker<'a> {
    fn new(
        gpu: &'a Gpu,
        kernels: &'a Kernels,
        thread: u64,
        numbers: Numbers,
        streams: u64,
        most: usize,
    ) -> Worker<'a> {
        // Lane 0 is the legacy null stream, with which blocking streams are in order; one of those is the thread's own.
        let lanes = (0..=streams)
            .map(|i| {
                let mut pinned = std::ptr::null_mut();
                // It is within the RAM limit, which other threads may have used up for now.
                while gpu.cuda.cuMemHostAlloc(&mut pinned, PINNED, 0) == CUDA_ERROR_OUT_OF_MEMORY {
                    std::thread::sleep(std::time::Duration::from_millis(1));
                }
                assert!(!pinned.is_null(), "cuMemHostAlloc");
                let flags = if i % 2 == 0 {
                    CU_STREAM_NON_BLOCKING
                } else {
                    0
                };
                Lane {
                    stream: match i {
                        0 => std::ptr::null_mut(),
                        3 => CU_STREAM_PER_THREAD as CUstream,
                        _ => gpu.stream(flags),
                    },
                    blocking: i == 0 || flags == 0,
                    pinned: pinned.cast(),
                    used: 0,
                    due: VecDeque::new(),
                    called: Box::default(),
                    calls: 0,
                }
            })
            .collect();
        Worker {
            gpu,
            kernels,
            thread,
            numbers,
            operation: 0,
            most,
            held: 0,
            lanes,
            buffers: Vec::new(),
            graphs: Vec::new(),
            pool: false,
            own: std::ptr::null_mut(),
            graph_memory: false,
            far: None,
            fars: Vec::new(),
            refused: 0,
            verbose: std::env::var_os("VERBOSE").is_some(),
        }
    }

    fn below(&mut self, n: usize) -> usize {
        self.numbers.below(n as u64) as usize
    }

    fn lane(&mut self) -> usize {
        self.below(self.lanes.len())
    }

    fn say(&self, what: &str) {
        if self.verbose {
            eprintln!("{} {} {what}", self.thread, self.operation);
        }
    }

    /// A part of a random buffer, of at most `most` bytes, both ends multiples of `unit`.
    fn part(&mut self, most: usize, unit: usize) -> Option<Part> {
        if self.buffers.is_empty() {
            return None;
        }
        let buffer = self.below(self.buffers.len());
        let units = self.buffers[buffer].bytes.len() / unit;
        if units == 0 {
            return None;
        }
        let most = (most / unit).max(1);
        let seam = GRAIN / unit;
        let (start, len) = match self.below(8) {
            // Over a seam between chunks, or up to it, or from it on.
            0..=2 if units > seam => {
                let at = seam * (1 + self.below((units - 1) / seam));
                let start = at - self.below(at.min(2000));
                (start, 1 + self.below(4000))
            }
            // The end.
            3 => {
                let len = 1 + self.below(units.min(most).min(4000));
                (units - len, len)
            }
            // Anything, seldom.
            4 => {
                let start = self.below(units);
                (start, 1 + self.below(units - start))
            }
            _ => (self.below(units), 1 + self.below(20_000)),
        };
        let len = len.min(units - start).min(most);
        Some(Part {
            buffer,
            start: start * unit,
            len: len * unit,
        })
    }

    fn at(&self, p: Part) -> CUdeviceptr {
        self.buffers[p.buffer].at + p.start as u64
    }

    fn model(&mut self, p: Part) -> &mut [u8] {
        &mut self.buffers[p.buffer].bytes[p.start..p.start + p.len]
    }

    /// Puts the next use of a buffer, on `lane`, behind its last one.
    fn follow(&mut self, buffer: usize, lane: usize) {
        let last = std::mem::replace(&mut self.buffers[buffer].last, lane);
        self.wait(lane, last);
    }

    /// Lets what comes on a lane wait for what is on another.
    fn wait(&self, lane: usize, last: usize) {
        let implicit =
            (last == 0 || lane == 0) && self.lanes[last].blocking && self.lanes[lane].blocking;
        if last != lane && !implicit {
            self.join(self.lanes[lane].stream, self.lanes[last].stream);
        }
    }

    /// A stream waits for an event of another.
    fn join(&self, stream: CUstream, other: CUstream) {
        let cuda = &self.gpu.cuda;
        let mut event = std::ptr::null_mut();
        ok(cuda.cuEventCreate(&mut event, 2));
        ok(cuda.cuEventRecord(event, other));
        ok(cuda.cuStreamWaitEvent(stream, event, 0));
        ok(cuda.cuEventDestroy_v2(event));
    }

    fn settle(&mut self, lane: usize) {
        ok(self.gpu.cuda.cuStreamSynchronize(self.lanes[lane].stream));
        let due = std::mem::take(&mut self.lanes[lane].due);
        for (offset, bytes, operation) in due {
            // SAFETY: the copy into this part of the lane's own memory is complete.
            let got = unsafe {
                std::slice::from_raw_parts(self.lanes[lane].pinned.add(offset), bytes.len())
            };
            self.compare(got, &bytes, &format!("the copy of operation {operation}"));
        }
        self.lanes[lane].used = 0;
        let (called, calls) = (self.lanes[lane].called.load(SeqCst), self.lanes[lane].calls);
        assert_eq!(called, calls, "host functions of lane {lane}");
        assert_eq!(OUT_OF_TURN.load(SeqCst), 0, "host functions out of turn");
    }

    /// A piece of the lane's pinned memory.
    fn pinned(&mut self, lane: usize, len: usize) -> usize {
        if self.lanes[lane].used + len > PINNED {
            self.settle(lane);
        }
        let offset = self.lanes[lane].used;
        self.lanes[lane].used += len;
        offset
    }

    #[track_caller]
    fn compare(&self, got: &[u8], expected: &[u8], what: &str) {
        if got == expected {
            return;
        }
        let at = got.iter().zip(expected).position(|(a, b)| a != b);
        let wrong = got.iter().zip(expected).filter(|(a, b)| a != b).count();
        panic!(
            "thread {}, operation {}: {what}: {wrong} of {} bytes are wrong, the first at {at:?}",
            self.thread,
            self.operation,
            expected.len()
        );
    }

    fn step(&mut self) {
        match self.below(30) {
            0..=4 => self.allocate(),
            5..=6 => self.free(),
            7 => self.write(),
            8 => self.read(),
            9 => self.copy(),
            10..=11 => self.write_async(),
            12..=13 => self.read_async(),
            14..=15 => self.copy_async(),
            16 => self.set(),
            17 => self.set_async(),
            18..=19 => self.launch(),
            20 => self.rectangle(),
            21 => self.graph(),
            22 => self.synchronise(),
            23 => self.unified(),
            24..=25 => self.host_function(),
            26..=27 => self.again(),
            28 => self.event(),
            _ => self.peer(),
        }
    }

    fn allocate(&mut self) {
        // Large ones where there is room for several.
        let large = if self.most > 24 << 20 {
            8 << 20
        } else {
            3 << 20
        };
        let len = match self.below(10) {
            0..=1 => 1 + self.below(64 << 10),
            2 => 1 + self.below(GRAIN),
            3 => GRAIN * (1 + self.below(2)) - 1 + self.below(3),
            4 => GRAIN * (1 + self.below(3)),
            _ => GRAIN + self.below(large),
        };
        if self.held + len > self.most {
            return self.free();
        }
        let lane = self.lane();
        let pooled = self.pool && self.below(2) == 0;
        let made = if pooled {
            let mut at = 0;
            let (cuda, stream) = (&self.gpu.cuda, self.lanes[lane].stream);
            let code = if self.numbers.below(2) == 0 {
                cuda.cuMemAllocAsync(&mut at, len, stream)
            } else {
                cuda.cuMemAllocFromPoolAsync(&mut at, len, self.own, stream)
            };
            match code {
                CUDA_SUCCESS => Ok(at),
                e => Err(e),
            }
        } else {
            self.gpu.try_alloc(len)
        };
        let at = match made {
            Ok(at) => at,
            Err(CUDA_ERROR_OUT_OF_MEMORY) => {
                self.say("out of memory");
                self.refused += 1;
                return self.free();
            }
            Err(e) => panic!(
                "operation {}: allocation of {len} failed: {e}",
                self.operation
            ),
        };
        self.say(&format!("alloc {len} at {at:#x}"));
        self.held += len;
        self.buffers.push(Buffer {
            at,
            bytes: vec![0; len],
            last: lane,
            pooled,
        });
        let whole = Part {
            buffer: self.buffers.len() - 1,
            start: 0,
            len,
        };
        // What new memory holds is anybody's guess: it is written first.
        let cuda = &self.gpu.cuda;
        match self.numbers.below(3) {
            0 => {
                let seed = self.numbers.draw();
                self.model(whole).copy_from_slice(&pattern(seed, len));
                self.follow(whole.buffer, 0);
                self.gpu.write(at, &self.buffers[whole.buffer].bytes);
            }
            1 => {
                let value = self.numbers.draw() as u8;
                self.model(whole).fill(value);
                ok(cuda.cuMemsetD8Async(at, value, len, self.lanes[lane].stream));
            }
            _ => {
                let value = self.numbers.draw() as u8;
                self.model(whole).fill(value);
                self.follow(whole.buffer, 0);
                ok(cuda.cuMemsetD8_v2(at, value, len));
            }
        }
    }

    fn free(&mut self) {
        if self.buffers.is_empty() {
            return;
        }
        let i = self.below(self.buffers.len());
        let buffer = self.take_out(i);
        self.say(&format!("free {:#x}", buffer.at));
        if self.numbers.below(3) == 0 {
            self.settle(buffer.last);
            let got = self.gpu.read(buffer.at, buffer.bytes.len());
            self.compare(&got, &buffer.bytes, "a buffer at its free");
        }
        self.release(buffer);
    }

    /// Takes a buffer and the graphs that know it off the lists.
    fn take_out(&mut self, i: usize) -> Buffer {
        let buffer = self.buffers.swap_remove(i);
        self.held -= buffer.bytes.len();
        let knows = |g: &Graph| {
            g.steps
                .iter()
                .flat_map(Step::places)
                .any(|p| p.base == buffer.at)
        };
        while let Some(i) = self.graphs.iter().position(knows) {
            let graph = self.graphs.swap_remove(i);
            self.settle(buffer.last);
            self.forget(graph);
        }
        buffer
    }

    /// Frees a buffer; work on it may be queued.
    fn release(&mut self, buffer: Buffer) {
        // The one call frees what the other allocated; of a pool's memory all use must be over then.
        let plainly = self.below(6) == 0;
        if plainly && buffer.pooled {
            for lane in 0..self.lanes.len() {
                self.settle(lane);
            }
        }
        if plainly || !buffer.pooled && (!self.pool || self.below(2) == 0) {
            return self.gpu.free(buffer.at);
        }
        let lane = self.lane();
        self.wait(lane, buffer.last);
        ok(self
            .gpu
            .cuda
            .cuMemFreeAsync(buffer.at, self.lanes[lane].stream));
    }

    /// A pool of the thread's own, that keeps what is freed or not.
    fn open_pool(&mut self) {
        self.own = self.gpu.pool();
        let keep = [0, 8 << 20, u64::MAX][self.below(3)];
        let attribute = CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
        let cuda = &self.gpu.cuda;
        ok(cuda.cuMemPoolSetAttribute(self.own, attribute, &keep));
    }

    /// All of the pool's memory was freed, and the frees are done.
    fn close_pool(&self) {
        let cuda = &self.gpu.cuda;
        ok(cuda.cuMemPoolTrimTo(self.own, 0));
        let reserved = CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT;
        assert_eq!(self.gpu.pool_number(self.own, reserved), 0);
        ok(cuda.cuMemPoolDestroy(self.own));
    }

    fn write(&mut self) {
        let Some(p) = self.part(3 << 20, 1) else {
            return;
        };
        let seed = self.numbers.draw();
        self.say(&format!("write {:#x} {}", self.at(p), p.len));
        self.model(p).copy_from_slice(&pattern(seed, p.len));
        self.follow(p.buffer, 0);
        self.gpu.write(self.at(p), &pattern(seed, p.len));
    }

    fn read(&mut self) {
        let Some(p) = self.part(8 << 20, 1) else {
            return;
        };
        self.say(&format!("read {:#x} {}", self.at(p), p.len));
        self.follow(p.buffer, 0);
        let got = self.gpu.read(self.at(p), p.len);
        let expected = self.model(p).to_vec();
        self.compare(&got, &expected, "a read");
    }

    /// Two parts of the same length that do not overlap.
    fn two(&mut self, most: usize, unit: usize) -> Option<(Part, Part)> {
        let (mut a, mut b) = (self.part(most, unit)?, self.part(most, unit)?);
        let len = a.len.min(b.len);
        (a.len, b.len) = (len, len);
        let apart = a.buffer != b.buffer || a.start + len <= b.start || b.start + len <= a.start;
        apart.then_some((a, b))
    }

    fn moved(&mut self, to: Part, from: Part) {
        let bytes = self.model(from).to_vec();
        self.model(to).copy_from_slice(&bytes);
    }

    fn copy(&mut self) {
        let Some((to, from)) = self.two(6 << 20, 1) else {
            return;
        };
        self.say(&format!(
            "copy {:#x} <- {:#x} {}",
            self.at(to),
            self.at(from),
            to.len
        ));
        self.follow(to.buffer, 0);
        self.follow(from.buffer, 0);
        ok(self
            .gpu
            .cuda
            .cuMemcpyDtoD_v2(self.at(to), self.at(from), to.len));
        self.moved(to, from);
    }

    fn write_async(&mut self) {
        let lane = self.lane();
        let Some(p) = self.part(PINNED / 2, 1) else {
            return;
        };
        let data = pattern(self.numbers.draw(), p.len);
        self.model(p).copy_from_slice(&data);
        self.follow(p.buffer, lane);
        let pageable = self.numbers.below(3) == 0;
        self.say(&format!(
            "write async {:#x} {} lane {lane} pageable {pageable}",
            self.at(p),
            p.len
        ));
        let (at, stream) = (self.at(p), self.lanes[lane].stream);
        let cuda = &self.gpu.cuda;
        if pageable {
            // Such a source has been read when the call returns.
            let mut source = data;
            ok(cuda.cuMemcpyHtoDAsync_v2(at, source.as_ptr().cast(), p.len, stream));
            source.fill(0xDD);
            std::hint::black_box(&source);
        } else {
            let offset = self.pinned(lane, p.len);
            // SAFETY: no queued copy uses this part of the lane's own memory.
            let source = unsafe {
                let source = self.lanes[lane].pinned.add(offset);
                std::ptr::copy_nonoverlapping(data.as_ptr(), source, p.len);
                source
            };
            ok(cuda.cuMemcpyHtoDAsync_v2(at, source.cast(), p.len, stream));
        }
    }

    fn read_async(&mut self) {
        let lane = self.lane();
        let Some(p) = self.part(PINNED / 2, 1) else {
            return;
        };
        self.say(&format!(
            "read async {:#x} {} lane {lane}",
            self.at(p),
            p.len
        ));
        self.follow(p.buffer, lane);
        let offset = self.pinned(lane, p.len);
        // SAFETY: within the lane's own memory.
        let target = unsafe { self.lanes[lane].pinned.add(offset) };
        ok(self.gpu.cuda.cuMemcpyDtoHAsync_v2(
            target.cast(),
            self.at(p),
            p.len,
            self.lanes[lane].stream,
        ));
        let expected = self.model(p).to_vec();
        let operation = self.operation;
        self.lanes[lane]
            .due
            .push_back((offset, expected, operation));
    }

    fn copy_async(&mut self) {
        let lane = self.lane();
        let Some((to, from)) = self.two(8 << 20, 1) else {
            return;
        };
        self.say(&format!(
            "copy async {:#x} <- {:#x} {} lane {lane}",
            self.at(to),
            self.at(from),
            to.len
        ));
        self.follow(to.buffer, lane);
        self.follow(from.buffer, lane);
        ok(self.gpu.cuda.cuMemcpyDtoDAsync_v2(
            self.at(to),
            self.at(from),
            to.len,
            self.lanes[lane].stream,
        ));
        self.moved(to, from);
    }

    fn set(&mut self) {
        let unit = [1, 2, 4][self.below(3)];
        let Some(p) = self.part(8 << 20, unit) else {
            return;
        };
        let value = self.numbers.draw() as u32;
        self.say(&format!("set{} {:#x} {}", unit * 8, self.at(p), p.len));
        self.follow(p.buffer, 0);
        let (at, cuda) = (self.at(p), &self.gpu.cuda);
        ok(match unit {
            1 => cuda.cuMemsetD8_v2(at, value as u8, p.len),
            2 => cuda.cuMemsetD16_v2(at, value as u16, p.len / 2),
            _ => cuda.cuMemsetD32_v2(at, value, p.len / 4),
        });
        self.fill(p, unit, value);
    }

    fn fill(&mut self, p: Part, unit: usize, value: u32) {
        for word in self.model(p).chunks_exact_mut(unit) {
            word.copy_from_slice(&value.to_le_bytes()[..unit]);
        }
    }

    fn set_async(&mut self) {
        let lane = self.lane();
        let unit = [1, 4][self.below(2)];
        let Some(p) = self.part(8 << 20, unit) else {
            return;
        };
        let value = self.numbers.draw() as u32;
        self.say(&format!(
            "set{} async {:#x} {} lane {lane}",
            unit * 8,
            self.at(p),
            p.len
        ));
        self.follow(p.buffer, lane);
        let (at, cuda, stream) = (self.at(p), &self.gpu.cuda, self.lanes[lane].stream);
        ok(match unit {
            1 => cuda.cuMemsetD8Async(at, value as u8, p.len, stream),
            _ => cuda.cuMemsetD32Async(at, value, p.len / 4, stream),
        });
        self.fill(p, unit, value);
    }

    fn launch(&mut self) {
        let lane = self.lane();
        let stream = self.lanes[lane].stream;
        let value = self.numbers.draw();
        match self.numbers.below(3) {
            0 => {
                let Some(p) = self.part(4 << 20, 8) else {
                    return;
                };
                self.say(&format!("fill {:#x} {} lane {lane}", self.at(p), p.len));
                self.follow(p.buffer, lane);
                self.kernels
                    .fill(self.gpu, stream, self.at(p), p.len as u64 / 8, value);
                for (i, word) in self.model(p).chunks_exact_mut(8).enumerate() {
                    word.copy_from_slice(&Kernels::filled(value, i as u64).to_le_bytes());
                }
            }
            1 => {
                let Some(p) = self.part(4 << 20, 8) else {
                    return;
                };
                self.say(&format!("add {:#x} {} lane {lane}", self.at(p), p.len));
                self.follow(p.buffer, lane);
                self.kernels
                    .add(self.gpu, stream, self.at(p), p.len as u64 / 8, value);
                change(self.model(p), |word, _| word.wrapping_add(value));
            }
            _ => {
                let Some((to, from)) = self.two(4 << 20, 8) else {
                    return;
                };
                self.say(&format!(
                    "axpy {:#x} <- {:#x} {} lane {lane}",
                    self.at(to),
                    self.at(from),
                    to.len
                ));
                self.follow(to.buffer, lane);
                self.follow(from.buffer, lane);
                let words = to.len as u64 / 8;
                self.kernels
                    .axpy(self.gpu, stream, self.at(to), self.at(from), words, value);
                let source = self.model(from).to_vec();
                change(self.model(to), |word, i| {
                    word.wrapping_mul(value).wrapping_add(word_at(&source, i))
                });
            }
        }
    }

    /// A rectangle of one buffer into a rectangle of another, or in and out of the host.
    fn rectangle(&mut self) {
        let Some((mut to, mut from)) = self.two(4 << 20, 1) else {
            return;
        };
        let pitches = (8 + self.below(3000), 8 + self.below(3000));
        let width = 1 + self.below(pitches.0.min(pitches.1));
        let most = |p: Part, pitch: usize| {
            if p.len < width {
                0
            } else {
                (p.len - width) / pitch + 1
            }
        };
        let height = most(to, pitches.0).min(most(from, pitches.1));
        if height == 0 {
            return;
        }
        let cuda = &self.gpu.cuda;
        let rows = |p: Part, pitch: usize| (0..height).map(move |y| p.start + y * pitch);
        (to.len, from.len) = (pitches.0 * height, pitches.1 * height);
        match self.numbers.below(3) {
            0 => {
                let lane = self.lane();
                self.say(&format!(
                    "2d {:#x} <- {:#x} {width}x{height}",
                    self.at(to),
                    self.at(from)
                ));
                self.follow(to.buffer, lane);
                self.follow(from.buffer, lane);
                let copy = work::two_d_between(
                    self.at(from),
                    pitches.1,
                    self.at(to),
                    pitches.0,
                    width,
                    height,
                );
                ok(cuda.cuMemcpy2DAsync_v2(&copy, self.lanes[lane].stream));
                for (t, f) in rows(to, pitches.0).zip(rows(from, pitches.1)) {
                    let row = self.buffers[from.buffer].bytes[f..f + width].to_vec();
                    self.buffers[to.buffer].bytes[t..t + width].copy_from_slice(&row);
                }
            }
            1 => {
                self.say(&format!("2d in {:#x} {width}x{height}", self.at(to)));
                let data = pattern(self.numbers.draw(), width * height);
                self.follow(to.buffer, 0);
                let copy = work::two_d_in(&data, width, height, self.at(to), pitches.0);
                ok(cuda.cuMemcpy2DUnaligned_v2(&copy));
                for (t, row) in rows(to, pitches.0).zip(data.chunks_exact(width)) {
                    self.buffers[to.buffer].bytes[t..t + width].copy_from_slice(row);
                }
            }
            _ => {
                self.say(&format!("2d out {:#x} {width}x{height}", self.at(from)));
                self.follow(from.buffer, 0);
                let mut data = vec![0; width * height];
                let copy = work::two_d_out(self.at(from), pitches.1, &mut data, width, height);
                ok(cuda.cuMemcpy2DUnaligned_v2(&copy));
                for (f, row) in rows(from, pitches.1).zip(data.chunks_exact(width)) {
                    let expected = &self.buffers[from.buffer].bytes[f..f + width];
                    self.compare(row, expected, "a row");
                }
            }
        }
    }

    /// A host function writes what a copy behind it brings to the device.
    fn host_function(&mut self) {
        let lane = self.lane();
        let Some(p) = self.part(PINNED / 8, 1) else {
            return;
        };
        self.follow(p.buffer, lane);
        let offset = self.pinned(lane, p.len);
        let seed = self.numbers.draw();
        self.say(&format!(
            "host function {:#x} {} lane {lane}",
            self.at(p),
            p.len
        ));
        // SAFETY: within the lane's own memory.
        let to = unsafe { self.lanes[lane].pinned.add(offset) };
        let call_data = Box::new(Call {
            called: &raw const *self.lanes[lane].called,
            turn: self.lanes[lane].calls,
            seed,
            to,
            len: p.len,
        });
        self.lanes[lane].calls += 1;
        let (cuda, stream) = (&self.gpu.cuda, self.lanes[lane].stream);
        ok(cuda.cuLaunchHostFunc(stream, call, Box::into_raw(call_data).cast()));
        ok(cuda.cuMemcpyHtoDAsync_v2(self.at(p), to.cast_const().cast(), p.len, stream));
        self.model(p).copy_from_slice(&pattern(seed, p.len));
    }

    /// Waits for an event instead of a stream; sometimes another stream waits too.
    fn event(&mut self) {
        let (lane, other) = (self.lane(), self.lane());
        self.wait(other, lane);
        let cuda = &self.gpu.cuda;
        let mut event = std::ptr::null_mut();
        ok(cuda.cuEventCreate(&mut event, 2));
        ok(cuda.cuEventRecord(event, self.lanes[lane].stream));
        ok(cuda.cuEventSynchronize(event));
        ok(cuda.cuEventDestroy_v2(event));
        // Other threads may have work on the null stream.
        let query = cuda.cuStreamQuery(self.lanes[lane].stream);
        assert!(query == CUDA_SUCCESS || lane == 0 && query == CUDA_ERROR_NOT_READY);
        self.settle(lane);
    }

    /// Memory of a second device, reached by copies only.
    fn peer(&mut self) {
        let Some(far) = self.far else { return };
        let what = self.below(5);
        if what == 0 && self.fars.len() < 3 {
            let len = (1 << 20) + self.below(4 << 20);
            far.enter();
            if let Ok(at) = far.try_alloc(len) {
                let seed = self.numbers.draw();
                far.write(at, &pattern(seed, len));
                self.say(&format!("far alloc {len} at {at:#x}"));
                self.fars.push(Far {
                    at,
                    bytes: pattern(seed, len),
                    last: 0,
                });
            } else {
                self.refused += 1;
            }
            return self.gpu.enter();
        }
        if self.fars.is_empty() {
            return;
        }
        let f = self.below(self.fars.len());
        if what == 1 {
            let it = self.fars.swap_remove(f);
            self.say(&format!("far free {:#x}", it.at));
            self.settle(it.last);
            far.enter();
            let got = far.read(it.at, it.bytes.len());
            self.compare(&got, &it.bytes, "far memory");
            far.free(it.at);
            return self.gpu.enter();
        }
        let Some(mut near) = self.part(2 << 20, 1) else {
            return;
        };
        let len = near.len.min(self.fars[f].bytes.len());
        let start = self.below(self.fars[f].bytes.len() - len + 1);
        near.len = len;
        // The synchronous form runs in order with the null stream.
        let sync = self.below(2) == 0;
        let lane = if sync { 0 } else { self.lane() };
        self.follow(near.buffer, lane);
        let last = std::mem::replace(&mut self.fars[f].last, lane);
        self.wait(lane, last);
        let (near_at, far_at) = (self.at(near), self.fars[f].at + start as u64);
        let ((to, to_context), (from, from_context)) = if what < 4 {
            ((near_at, self.gpu.context), (far_at, far.context))
        } else {
            ((far_at, far.context), (near_at, self.gpu.context))
        };
        self.say(&format!("peer {to:#x} <- {from:#x} {len} lane {lane}"));
        let (cuda, stream) = (&self.gpu.cuda, self.lanes[lane].stream);
        ok(if sync {
            cuda.cuMemcpyPeer(to, to_context, from, from_context, len)
        } else {
            cuda.cuMemcpyPeerAsync(to, to_context, from, from_context, len, stream)
        });
        if what < 4 {
            let bytes = self.fars[f].bytes[start..start + len].to_vec();
            self.model(near).copy_from_slice(&bytes);
        } else {
            let bytes = self.model(near).to_vec();
            self.fars[f].bytes[start..start + len].copy_from_slice(&bytes);
        }
    }

    fn synchronise(&mut self) {
        if self.numbers.below(3) == 0 {
            self.synchronise_context();
        }
        if self.pool && self.numbers.below(3) == 0 {
            let keep = self.below(16 << 20);
            ok(self.gpu.cuda.cuMemPoolTrimTo(self.own, keep));
        }
        // Graphs may be in flight: what they use stays.
        if self.graph_memory && self.below(3) == 0 {
            ok(self.gpu.cuda.cuDeviceGraphMemTrim(0));
        }
        let lane = self.lane();
        self.settle(lane);
    }

    fn synchronise_context(&self) {
        let _nobody_captures = CAPTURING.lock().expect("no panic in a capture");
        ok(self.gpu.cuda.cuCtxSynchronize());
    }

    /// `cuMemcpy`, which finds out by itself what is where.
    fn unified(&mut self) {
        let Some((to, from)) = self.two(1 << 20, 1) else {
            return;
        };
        self.say(&format!(
            "unified {:#x} <- {:#x} {}",
            self.at(to),
            self.at(from),
            to.len
        ));
        self.follow(to.buffer, 0);
        self.follow(from.buffer, 0);
        let cuda = &self.gpu.cuda;
        ok(cuda.cuMemcpy(self.at(to), self.at(from), to.len));
        self.moved(to, from);
        let mut out = vec![0u8; to.len];
        ok(cuda.cuMemcpy(out.as_mut_ptr() as CUdeviceptr, self.at(to), to.len));
        let expected = self.model(to).to_vec();
        self.compare(&out, &expected, "a unified copy");
    }

    fn end(&mut self) {
        for lane in 0..self.lanes.len() {
            self.settle(lane);
        }
        for graph in std::mem::take(&mut self.graphs) {
            self.forget(graph);
        }
        self.synchronise_context();
        if let Some(far) = self.far {
            far.enter();
            for it in std::mem::take(&mut self.fars) {
                let got = far.read(it.at, it.bytes.len());
                self.compare(&got, &it.bytes, "far memory at the end");
                far.free(it.at);
            }
            self.gpu.enter();
        }
        for buffer in std::mem::take(&mut self.buffers) {
            let got = self.gpu.read(buffer.at, buffer.bytes.len());
            self.compare(&got, &buffer.bytes, "a buffer at the end");
            self.release(buffer);
        }
        for lane in 0..self.lanes.len() {
            self.settle(lane);
        }
        if self.pool {
            self.close_pool();
        }
        for lane in &self.lanes {
            ok(self.gpu.cuda.cuMemFreeHost(lane.pinned.cast()));
            if lane.stream as usize > CU_STREAM_PER_THREAD {
                ok(self.gpu.cuda.cuStreamDestroy_v2(lane.stream));
            }
        }
    }
}

fn word_at(bytes: &[u8], index: usize) -> u64 {
    let word = &bytes[index * 8..index * 8 + 8];
    u64::from_le_bytes(word.try_into().expect("eight bytes"))
}

/// Replaces every word by what `f` makes of it and its index.
fn change(bytes: &mut [u8], f: impl Fn(u64, usize) -> u64) {
    for i in 0..bytes.len() / 8 {
        let word = f(word_at(bytes, i), i);
        bytes[i * 8..i * 8 + 8].copy_from_slice(&word.to_le_bytes());
    }
}
