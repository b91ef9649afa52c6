//! A random program: allocations, copies, memsets, kernels, graphs and frees on several threads and streams, compared
//! byte for byte with a plain memory on the host.
//!
//! `random SEED THREADS STREAMS OPERATIONS MIB`: each thread holds at most MIB. An out-of-memory is an answer; the
//! thread goes on with less. The first operations of a longer run are those of a shorter one.

use std::collections::VecDeque;
use std::sync::Mutex;
use victim::gpu::{Gpu, Kernels};
use victim::*;

fn main() {
    let number = |n: usize| argument(n).parse::<u64>().expect("a number");
    let (seed, threads, streams, operations, mib) =
        (number(1), number(2), number(3), number(4), number(5));
    let gpu = Gpu::open();
    let kernels = Kernels::load(&gpu);
    let refused: u64 = std::thread::scope(|s| {
        let workers: Vec<_> = (0..threads)
            .map(|t| {
                let (gpu, kernels) = (&gpu, &kernels);
                s.spawn(move || {
                    gpu.enter();
                    let numbers = Numbers(seed.wrapping_mul(0x1_0001) + t * 7919 + 1);
                    let mut w =
                        Worker::new(gpu, kernels, t, numbers, streams, (mib << 20) as usize);
                    for operation in 0..operations {
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
    });
    println!("~ refused {refused}");
    println!("right");
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
}

const PINNED: usize = 4 << 20;

/// Held by a thread that captures, and by one that synchronises the context.
static CAPTURING: Mutex<()> = Mutex::new(());

/// An allocation, what it must hold, and the lane of its last use.
struct Buffer {
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
        // Lane 0 is the legacy null stream, with which blocking streams are in order.
        let lanes = (0..=streams)
            .map(|i| {
                let mut pinned = std::ptr::null_mut();
                ok(gpu.cuda.cuMemHostAlloc(&mut pinned, PINNED, 0));
                let flags = if i % 2 == 0 {
                    CU_STREAM_NON_BLOCKING
                } else {
                    0
                };
                Lane {
                    stream: if i == 0 {
                        std::ptr::null_mut()
                    } else {
                        gpu.stream(flags)
                    },
                    blocking: i == 0 || flags == 0,
                    pinned: pinned.cast(),
                    used: 0,
                    due: VecDeque::new(),
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
        let start = self.below(units);
        let len = 1 + self.below((units - start).min(most / unit).max(1));
        let len = len.min(units - start);
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
        let implicit =
            (last == 0 || lane == 0) && self.lanes[last].blocking && self.lanes[lane].blocking;
        if last == lane || implicit {
            return;
        }
        let cuda = &self.gpu.cuda;
        let mut event = std::ptr::null_mut();
        ok(cuda.cuEventCreate(&mut event, 2));
        ok(cuda.cuEventRecord(event, self.lanes[last].stream));
        ok(cuda.cuStreamWaitEvent(self.lanes[lane].stream, event, 0));
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
        match self.below(24) {
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
            _ => self.unified(),
        }
    }

    fn allocate(&mut self) {
        let len = match self.below(10) {
            0..=1 => 1 + self.below(64 << 10),
            2..=3 => 1 + self.below(2 << 20),
            4 => (2 << 20) * (1 + self.below(3)),
            _ => (2 << 20) + self.below(8 << 20),
        };
        if self.held + len > self.most {
            return self.free();
        }
        let at = match self.gpu.try_alloc(len) {
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
        let lane = self.lane();
        self.buffers.push(Buffer {
            at,
            bytes: vec![0; len],
            last: lane,
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
        let buffer = self.buffers.swap_remove(i);
        self.held -= buffer.bytes.len();
        self.say(&format!("free {:#x}", buffer.at));
        if self.numbers.below(3) == 0 {
            self.settle(buffer.last);
            let got = self.gpu.read(buffer.at, buffer.bytes.len());
            self.compare(&got, &buffer.bytes, "a buffer at its free");
        }
        self.gpu.free(buffer.at);
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

    /// A few operations captured, launched several times.
    fn graph(&mut self) {
        // Not a blocking stream: while one captures, nobody may use the null stream.
        let lane = (1..self.lanes.len())
            .rev()
            .find(|l| !self.lanes[*l].blocking);
        let Some(lane) = lane else { return };
        let Some((to, from)) = self.two(2 << 20, 8) else {
            return;
        };
        self.say(&format!(
            "graph {:#x} <- {:#x} {}",
            self.at(to),
            self.at(from),
            to.len
        ));
        self.follow(to.buffer, lane);
        self.follow(from.buffer, lane);
        let (cuda, stream) = (&self.gpu.cuda, self.lanes[lane].stream);
        let value = self.numbers.draw() as u32;
        // Relaxed: the other threads allocate and free meanwhile. Only a context that captures is not synchronised.
        let capturing = CAPTURING.lock().expect("no panic in a capture");
        ok(cuda.cuStreamBeginCapture_v2(stream, CU_STREAM_CAPTURE_MODE_RELAXED));
        ok(cuda.cuMemsetD32Async(self.at(to), value, to.len / 4, stream));
        let words = to.len as u64 / 8;
        self.kernels
            .axpy(self.gpu, stream, self.at(from), self.at(to), words, 3);
        ok(cuda.cuMemcpyDtoDAsync_v2(self.at(to), self.at(from), to.len, stream));
        let (mut graph, mut exec) = (std::ptr::null_mut(), std::ptr::null_mut());
        ok(cuda.cuStreamEndCapture(stream, &mut graph));
        drop(capturing);
        ok(cuda.cuGraphInstantiateWithFlags(&mut exec, graph, 0));
        ok(cuda.cuGraphDestroy(graph));
        let times = 1 + self.numbers.below(3);
        for _ in 0..times {
            ok(cuda.cuGraphLaunch(exec, stream));
            let set = u64::from(value) << 32 | u64::from(value);
            change(self.model(from), |word, _| {
                word.wrapping_mul(3).wrapping_add(set)
            });
        }
        self.moved(to, from);
        self.settle(lane);
        ok(cuda.cuGraphExecDestroy(exec));
    }

    fn synchronise(&mut self) {
        if self.numbers.below(3) == 0 {
            self.synchronise_context();
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
        self.synchronise_context();
        for buffer in std::mem::take(&mut self.buffers) {
            let got = self.gpu.read(buffer.at, buffer.bytes.len());
            self.compare(&got, &buffer.bytes, "a buffer at the end");
            self.gpu.free(buffer.at);
        }
        for lane in &self.lanes {
            ok(self.gpu.cuda.cuMemFreeHost(lane.pinned.cast()));
            if !lane.stream.is_null() {
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
