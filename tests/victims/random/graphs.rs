//! Graphs of a random program: captured or made by hand, launched again and again, changed in between.

use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use victim::gpu::Kernels;
use victim::graph as by_hand;
use victim::*;

use super::{Buffer, CAPTURING, Part, Worker, change, word_at};

/// A host function in a graph: counts.
extern "C" fn count(data: *mut c_void) {
    // SAFETY: the graph's own counter.
    unsafe { (*data.cast::<AtomicU64>()).fetch_add(1, SeqCst) };
}

/// A graph, and what a launch of it does.
pub struct Graph {
    exec: CUgraphExec,
    /// What it was made from, if its steps are a chain of nodes that may get new operands.
    made: Option<CUgraph>,
    /// Those nodes.
    nodes: Vec<CUgraphNode>,
    pub steps: Vec<Step>,
    launches: u64,
    counted: Box<AtomicU64>,
    /// Host functions in it.
    counts: u64,
    /// Pinned memory that its copies read at each launch.
    source: *mut u8,
}

const SOURCE: usize = 256 << 10;

/// Bytes that a graph allocates for itself at most.
const OWN: usize = 256 << 10;

/// One operation of a graph. Parts name buffers by their address here: others come and go meanwhile.
#[derive(Clone, Copy)]
pub enum Step {
    Set(Place, u32),
    Fill(Place, u64),
    Add(Place, u64),
    Axpy(Place, Place, u64),
    Copy(Place, Place),
    /// From so far into the pinned memory.
    Load(Place, usize),
    Count,
    /// A copy by way of memory of the graph's own, where a number is added.
    Through(Place, Place, u64),
}

/// A part of the buffer at an address.
#[derive(Clone, Copy)]
pub struct Place {
    pub base: CUdeviceptr,
    start: usize,
    len: usize,
}

impl Place {
    fn at(self) -> CUdeviceptr {
        self.base + self.start as u64
    }
}

impl Step {
    pub fn places(&self) -> Vec<Place> {
        match *self {
            Step::Set(p, _) | Step::Fill(p, _) | Step::Add(p, _) | Step::Load(p, _) => vec![p],
            Step::Axpy(a, b, _) | Step::Copy(a, b) | Step::Through(a, b, _) => vec![a, b],
            Step::Count => vec![],
        }
    }
}

impl Worker<'_> {
    /// A place in a random buffer, for a graph.
    fn place(&mut self, most: usize) -> Option<Place> {
        let p = self.part(most, 8)?;
        Some(Place {
            base: self.buffers[p.buffer].at,
            start: p.start,
            len: p.len,
        })
    }

    /// Two places of the same length that do not overlap.
    fn places(&mut self, most: usize) -> Option<(Place, Place)> {
        let (a, b) = self.two(most, 8)?;
        let place = |p: Part| Place {
            base: self.buffers[p.buffer].at,
            start: p.start,
            len: p.len,
        };
        Some((place(a), place(b)))
    }

    fn random_step(&mut self, own_memory: bool) -> Option<Step> {
        match self.below(9) {
            0 | 1 if own_memory => self.step_like(7),
            other => self.step_like(other % 7),
        }
    }

    /// A step of a kind.
    fn step_like(&mut self, kind: usize) -> Option<Step> {
        let value = self.numbers.draw();
        let most = 2 << 20;
        Some(match kind {
            0 => Step::Set(self.place(most)?, value as u32),
            1 => Step::Fill(self.place(most)?, value),
            2 => Step::Add(self.place(most)?, value),
            3 => {
                let (to, from) = self.places(most)?;
                Step::Axpy(to, from, value)
            }
            4 => {
                let (to, from) = self.places(most)?;
                Step::Copy(to, from)
            }
            5 => {
                let to = self.place(SOURCE / 2)?;
                Step::Load(to, self.below(SOURCE / 2))
            }
            6 => Step::Count,
            _ => {
                let (to, from) = self.places(OWN)?;
                Step::Through(to, from, value)
            }
        })
    }

    /// Puts a step on a stream.
    fn enqueue(&self, step: &Step, graph: &Graph, stream: CUstream) {
        let (cuda, gpu, k) = (&self.gpu.cuda, self.gpu, self.kernels);
        let words = |p: &Place| p.len as u64 / 8;
        match step {
            Step::Set(p, v) => ok(cuda.cuMemsetD32Async(p.at(), *v, p.len / 4, stream)),
            Step::Fill(p, v) => k.fill(gpu, stream, p.at(), words(p), *v),
            Step::Add(p, v) => k.add(gpu, stream, p.at(), words(p), *v),
            Step::Axpy(to, from, v) => k.axpy(gpu, stream, to.at(), from.at(), words(to), *v),
            Step::Copy(to, from) => {
                ok(cuda.cuMemcpyDtoDAsync_v2(to.at(), from.at(), to.len, stream))
            }
            Step::Load(to, offset) => {
                // SAFETY: within the graph's pinned memory.
                let from = unsafe { graph.source.add(*offset) };
                ok(cuda.cuMemcpyHtoDAsync_v2(to.at(), from.cast(), to.len, stream));
            }
            Step::Count => {
                let counter = std::ptr::from_ref(&*graph.counted).cast_mut().cast();
                ok(cuda.cuLaunchHostFunc(stream, count, counter));
            }
            Step::Through(to, from, v) => {
                let mut own = 0;
                ok(cuda.cuMemAllocAsync(&mut own, from.len, stream));
                ok(cuda.cuMemcpyDtoDAsync_v2(own, from.at(), from.len, stream));
                k.add(gpu, stream, own, words(from), *v);
                ok(cuda.cuMemcpyDtoDAsync_v2(to.at(), own, to.len, stream));
                ok(cuda.cuMemFreeAsync(own, stream));
            }
        }
    }

    /// Adds a step to a graph; the node that others wait for.
    fn add(
        &self,
        step: &Step,
        graph: &Graph,
        hand: &by_hand::Graph,
        after: &[CUgraphNode],
    ) -> CUgraphNode {
        let k = self.kernels;
        let words = |p: &Place| p.len as u64 / 8;
        match step {
            Step::Set(p, v) => hand.set(after, &set_params(p, *v)),
            Step::Copy(to, from) => hand.copy(after, &by_hand::line(to.at(), from.at(), to.len)),
            Step::Load(to, offset) => hand.copy(after, &load_params(to, graph, *offset)),
            Step::Count => {
                let counter = std::ptr::from_ref(&*graph.counted).cast_mut().cast();
                hand.host(after, count, counter)
            }
            Step::Through(to, from, v) => {
                let (alloc, own) = hand.alloc(after, from.len);
                let one = hand.copy(&[alloc], &by_hand::line(own, from.at(), from.len));
                let two = hand.launch(&[one], k.add_function(), &mut [own, words(from), *v]);
                let three = hand.copy(&[two], &by_hand::line(to.at(), own, to.len));
                hand.free(&[three], own)
            }
            Step::Fill(..) | Step::Add(..) | Step::Axpy(..) => {
                let (function, mut arguments) = self.kernel_of(step).expect("a kernel");
                hand.launch(after, function, &mut arguments)
            }
        }
    }

    /// The kernel of a step, and its arguments.
    fn kernel_of(&self, step: &Step) -> Option<(CUfunction, Vec<u64>)> {
        let (k, words) = (self.kernels, |p: &Place| p.len as u64 / 8);
        Some(match step {
            Step::Fill(p, v) => (k.fill_function(), vec![p.at(), words(p), *v]),
            Step::Add(p, v) => (k.add_function(), vec![p.at(), words(p), *v]),
            Step::Axpy(to, from, v) => {
                let arguments = vec![to.at(), from.at(), words(to), *v];
                (k.axpy_function(), arguments)
            }
            _ => return None,
        })
    }

    /// The steps as nodes: in a chain, or only as far as they touch the same buffers. The nodes of a chain.
    fn nodes(
        &self,
        graph: &Graph,
        hand: &by_hand::Graph,
        steps: &[Step],
        chain: bool,
    ) -> Vec<CUgraphNode> {
        let mut nodes: Vec<CUgraphNode> = Vec::new();
        for (i, step) in steps.iter().enumerate() {
            let bases: Vec<u64> = step.places().iter().map(|p| p.base).collect();
            let touches = |j: &usize| {
                let theirs = steps[*j].places();
                if chain {
                    *j + 1 == i
                } else {
                    theirs.iter().any(|p| bases.contains(&p.base))
                }
            };
            let after: Vec<CUgraphNode> = (0..i).filter(touches).map(|j| nodes[j]).collect();
            nodes.push(self.add(step, graph, hand, &after));
        }
        nodes
    }

    fn part_of(&self, p: Place) -> Part {
        let buffer = self.buffers.iter().position(|b| b.at == p.base);
        Part {
            buffer: buffer.expect("graphs go with their buffers"),
            start: p.start,
            len: p.len,
        }
    }

    /// What a step does, done to the model.
    fn imitate(&mut self, step: &Step, source: &[u8]) {
        match *step {
            Step::Set(p, v) => {
                let p = self.part_of(p);
                self.fill(p, 4, v);
            }
            Step::Fill(p, v) => {
                let p = self.part_of(p);
                change(self.model(p), |_, i| Kernels::filled(v, i as u64));
            }
            Step::Add(p, v) => {
                let p = self.part_of(p);
                change(self.model(p), |word, _| word.wrapping_add(v));
            }
            Step::Axpy(to, from, v) => {
                let (to, from) = (self.part_of(to), self.part_of(from));
                let other = self.model(from).to_vec();
                change(self.model(to), |word, i| {
                    word.wrapping_mul(v).wrapping_add(word_at(&other, i))
                });
            }
            Step::Copy(to, from) => {
                let (to, from) = (self.part_of(to), self.part_of(from));
                self.moved(to, from);
            }
            Step::Load(to, offset) => {
                let part = self.part_of(to);
                self.model(part)
                    .copy_from_slice(&source[offset..offset + to.len]);
            }
            Step::Count => {}
            Step::Through(to, from, v) => {
                let (to, from) = (self.part_of(to), self.part_of(from));
                self.moved(to, from);
                change(self.model(to), |word, _| word.wrapping_add(v));
            }
        }
    }

    /// Some operations as a graph, captured or made by hand; launched several times.
    pub fn graph(&mut self) {
        if self.graphs.len() > 2 {
            return self.again();
        }
        let count = 1 + self.below(8);
        let mut steps: Vec<Step> = Vec::new();
        for _ in 0..count {
            let own = steps.iter().any(|s| matches!(s, Step::Through(..)));
            let own_memory = self.graph_memory && !own;
            steps.extend(self.random_step(own_memory));
        }
        let cuda = &self.gpu.cuda;
        let mut source = std::ptr::null_mut();
        match cuda.cuMemHostAlloc(&mut source, SOURCE, 0) {
            // The RAM limit holds it too.
            CUDA_ERROR_OUT_OF_MEMORY => return self.again(),
            code => ok(code),
        }
        let mut graph = Graph {
            exec: std::ptr::null_mut(),
            made: None,
            nodes: Vec::new(),
            counts: steps.iter().filter(|s| matches!(s, Step::Count)).count() as u64,
            steps,
            launches: 0,
            counted: Box::default(),
            source: source.cast(),
        };
        let seed = self.numbers.draw();
        Numbers(seed).fill(
            // SAFETY: the graph's own memory, that nothing reads yet.
            unsafe { std::slice::from_raw_parts_mut(graph.source, SOURCE) },
        );
        let lane = match self.below(2) {
            0 => self.captured(&mut graph),
            _ => None,
        };
        let lane = lane.unwrap_or_else(|| {
            self.made_by_hand(&mut graph);
            self.lane()
        });
        self.graphs.push(graph);
        for _ in 0..1 + self.below(3) {
            self.launch_graph(self.graphs.len() - 1, lane);
        }
    }

    fn made_by_hand(&mut self, graph: &mut Graph) {
        let own = graph.steps.iter().any(|s| matches!(s, Step::Through(..)));
        let chain = !own && self.below(3) > 0;
        self.say(&format!("make {} steps, chain {chain}", graph.steps.len()));
        let hand = by_hand::Graph::new(self.gpu);
        let nodes = self.nodes(graph, &hand, &graph.steps, chain);
        graph.exec = hand.instantiate(0);
        if chain {
            graph.nodes = nodes;
            graph.made = Some(hand.graph);
            std::mem::forget(hand);
        }
    }

    /// Captures a graph, over two streams at times, while memory comes and goes. The lane; `None`: there is none that may
    /// capture.
    fn captured(&mut self, graph: &mut Graph) -> Option<usize> {
        // Not blocking streams: while one captures, nobody may use the null stream.
        let free_ones: Vec<usize> = (1..self.lanes.len())
            .filter(|l| !self.lanes[*l].blocking)
            .collect();
        if free_ones.is_empty() {
            return None;
        }
        let lane = free_ones[self.below(free_ones.len())];
        let other = free_ones[self.below(free_ones.len())];
        let (cuda, stream) = (&self.gpu.cuda, self.lanes[lane].stream);
        self.say(&format!("capture {} steps, lane {lane}", graph.steps.len()));
        // What is in flight on the second stream has nothing to do with the capture.
        let branch = (other != lane).then(|| self.below(graph.steps.len() + 1));
        if branch.is_some() {
            self.settle(other);
        }
        // Relaxed: the other threads allocate and free meanwhile. Only a context that captures is not synchronised.
        let capturing = CAPTURING.lock().expect("no panic in a capture");
        ok(cuda.cuStreamBeginCapture_v2(stream, CU_STREAM_CAPTURE_MODE_RELAXED));
        let mut new = None;
        for (i, step) in graph.steps.iter().enumerate() {
            let aside = self.lanes[other].stream;
            if branch == Some(i) {
                self.join(aside, stream);
                self.enqueue(step, graph, aside);
                self.join(stream, aside);
            } else {
                self.enqueue(step, graph, stream);
            }
        }
        // Memory comes and goes while the capture is open.
        let spare = |b: &Buffer| {
            let mut places = graph.steps.iter().flat_map(Step::places);
            !b.pooled && !places.any(|p| p.base == b.at)
        };
        let idle = self.graphs.is_empty();
        if let (true, Some(i)) = (idle, self.buffers.iter().position(spare)) {
            let buffer = self.take_out(i);
            self.say(&format!("free {:#x} in the capture", buffer.at));
            let len = buffer.bytes.len();
            self.gpu.free(buffer.at);
            new = self.gpu.try_alloc(len).ok().map(|at| (at, len));
        }
        let mut made = std::ptr::null_mut();
        ok(cuda.cuStreamEndCapture(stream, &mut made));
        drop(capturing);
        ok(cuda.cuGraphInstantiateWithFlags(&mut graph.exec, made, 0));
        ok(cuda.cuGraphDestroy(made));
        if let Some((at, len)) = new {
            ok(cuda.cuMemsetD8Async(at, 0x3C, len, stream));
            self.held += len;
            self.buffers.push(Buffer {
                at,
                bytes: vec![0x3C; len],
                last: lane,
                pooled: false,
            });
        }
        Some(lane)
    }

    /// New operands for one node of a graph, or for all of them.
    fn alter(&mut self, i: usize) {
        if self.graphs[i].made.is_none() || self.graphs[i].nodes.is_empty() {
            return;
        }
        if self.below(3) == 0 {
            return self.alter_all(i);
        }
        let at = self.below(self.graphs[i].nodes.len());
        let Some(new) = self.like(self.graphs[i].steps[at]) else {
            return;
        };
        let (graph, cuda, context) = (&self.graphs[i], &self.gpu.cuda, self.gpu.context);
        let (exec, node) = (graph.exec, graph.nodes[at]);
        let code = match new {
            Step::Set(p, v) => {
                cuda.cuGraphExecMemsetNodeSetParams(exec, node, &set_params(&p, v), context)
            }
            Step::Copy(to, from) => {
                let copy = by_hand::line(to.at(), from.at(), to.len);
                cuda.cuGraphExecMemcpyNodeSetParams(exec, node, &copy, context)
            }
            Step::Load(to, offset) => {
                let copy = load_params(&to, graph, offset);
                cuda.cuGraphExecMemcpyNodeSetParams(exec, node, &copy, context)
            }
            Step::Count | Step::Through(..) => return,
            Step::Fill(..) | Step::Add(..) | Step::Axpy(..) => {
                let (function, mut arguments) = self.kernel_of(&new).expect("a kernel");
                let mut pointers: Vec<*mut c_void> = arguments
                    .iter_mut()
                    .map(|a| std::ptr::from_mut(a).cast())
                    .collect();
                let params = by_hand::kernel(function, &mut pointers);
                cuda.cuGraphExecKernelNodeSetParams(exec, node, &params)
            }
        };
        self.say(&format!("new operands for node {at}: {code}"));
        // A copy stays on the kind of memory that it is on: the graph goes on as it was.
        let refused = matches!(new, Step::Copy(..) | Step::Load(..));
        assert!(
            code == 0 || refused && code == CUDA_ERROR_INVALID_VALUE,
            "new operands: {code}"
        );
        if code == 0 {
            self.graphs[i].steps[at] = new;
        }
    }

    /// A step of the same kind with other operands.
    fn like(&mut self, step: Step) -> Option<Step> {
        self.step_like(match step {
            Step::Set(..) => 0,
            Step::Fill(..) => 1,
            Step::Add(..) => 2,
            Step::Axpy(..) => 3,
            Step::Copy(..) => 4,
            Step::Load(..) => 5,
            Step::Count => 6,
            Step::Through(..) => 7,
        })
    }

    /// A whole new graph of the same shape; a new instance of it where the old one does not take it.
    fn alter_all(&mut self, i: usize) {
        let old = self.graphs[i].steps.clone();
        let steps: Option<Vec<Step>> = old.into_iter().map(|step| self.like(step)).collect();
        let Some(steps) = steps else { return };
        let mut graph = self.graphs.swap_remove(i);
        let hand = by_hand::Graph::new(self.gpu);
        let nodes = self.nodes(&graph, &hand, &steps, true);
        let cuda = &self.gpu.cuda;
        let code = cuda.cuGraphExecUpdate_v2(graph.exec, hand.graph, &mut [0; 3]);
        self.say(&format!("a graph changes: {code}"));
        assert!(matches!(code, 0 | 910), "cuGraphExecUpdate: {code}");
        if code != 0 {
            // What is in flight goes on all the same.
            ok(cuda.cuGraphExecDestroy(graph.exec));
            graph.exec = hand.instantiate(0);
            graph.nodes = nodes;
            if let Some(old) = graph.made.replace(hand.graph) {
                ok(cuda.cuGraphDestroy(old));
            }
            std::mem::forget(hand);
        }
        graph.steps = steps;
        self.graphs.push(graph);
    }

    /// A graph of before, on any stream.
    pub fn again(&mut self) {
        if self.graphs.is_empty() {
            return;
        }
        let (i, lane) = (self.below(self.graphs.len()), self.lane());
        if self.below(4) == 0 {
            // The last launch may be on any lane.
            for lane in 0..self.lanes.len() {
                self.settle(lane);
            }
            let graph = self.graphs.swap_remove(i);
            return self.forget(graph);
        }
        if self.below(2) == 0 {
            self.alter(i);
            return self.launch_graph(self.graphs.len() - 1, lane);
        }
        self.launch_graph(i, lane);
    }

    fn launch_graph(&mut self, i: usize, lane: usize) {
        let mut graph = self.graphs.swap_remove(i);
        self.say(&format!("launch a graph, lane {lane}"));
        for place in graph.steps.iter().flat_map(Step::places) {
            let part = self.part_of(place);
            self.follow(part.buffer, lane);
        }
        let stream = self.lanes[lane].stream;
        if self.below(4) == 0 {
            ok(self.gpu.cuda.cuGraphUpload(graph.exec, stream));
        }
        ok(self.gpu.cuda.cuGraphLaunch(graph.exec, stream));
        graph.launches += 1;
        // SAFETY: nobody writes it any more.
        let source = unsafe { std::slice::from_raw_parts(graph.source, SOURCE) };
        for step in &graph.steps {
            self.imitate(step, source);
        }
        self.graphs.push(graph);
    }

    /// Destroys a graph.
    pub fn forget(&mut self, graph: Graph) {
        for lane in 0..self.lanes.len() {
            self.settle(lane);
        }
        assert_eq!(
            graph.counted.load(SeqCst),
            graph.counts * graph.launches,
            "host functions of a graph"
        );
        ok(self.gpu.cuda.cuGraphExecDestroy(graph.exec));
        if let Some(made) = graph.made {
            ok(self.gpu.cuda.cuGraphDestroy(made));
        }
        ok(self.gpu.cuda.cuMemFreeHost(graph.source.cast()));
    }
}

fn set_params(p: &Place, value: u32) -> CUDA_MEMSET_NODE_PARAMS {
    CUDA_MEMSET_NODE_PARAMS {
        elementSize: 4,
        value,
        ..by_hand::bytes(p.at(), 0, p.len / 4)
    }
}

/// A copy from a graph's pinned memory.
fn load_params(to: &Place, graph: &Graph, offset: usize) -> CUDA_MEMCPY3D {
    CUDA_MEMCPY3D {
        srcMemoryType: CU_MEMORYTYPE_HOST,
        // SAFETY: within the graph's pinned memory.
        srcHost: unsafe { graph.source.add(offset) }.cast(),
        srcDevice: 0,
        ..by_hand::line(to.at(), 0, to.len)
    }
}
