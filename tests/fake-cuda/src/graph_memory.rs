//! Memory of graphs: addresses that allocation nodes hold for good, and physical memory that launches put behind them.
//!
//! An address is reserved when its node is made. A launch or an upload maps memory there: allocations that their own
//! graph frees share it with others of their stream, the rest have theirs alone. What is mapped stays so until a trim
//! finds it idle.
use core::ffi::c_int;
use std::collections::BTreeMap;
use std::sync::Arc;

use greenboost_abi::*;

use crate::abi::{In, Out, Res};
use crate::capture::Node;
use crate::config::MAX_DEVICES;
use crate::device;
use crate::memory::Alloc;
use crate::misuse::misuse;
use crate::node::Spot;
use crate::phys::{GRANULE, Phys, Place};
use crate::queue::Dep;
use crate::va::{Owner, READ_WRITE};
use crate::work::{Site, Work};
use crate::world::{World, serial, world};

/// In the place of an allocation's pool: a graph's.
pub(crate) const GRAPH: usize = usize::MAX;

const MOST: u64 = 1 << 42;

pub(crate) type AllocParams = CUDA_MEM_ALLOC_NODE_PARAMS;

/// What an allocation node holds.
struct Held {
    size: u64,
    whole: u64,
    device: usize,
    ctx: usize,
    graph: usize,
    /// Its own graph frees it.
    inner: bool,
    /// A launch left it to the program, which has not freed it yet.
    kept: bool,
    /// Neither the graph nor an instance of it is left.
    orphan: bool,
}

/// Physical memory, and the allocations that it is behind.
struct Backing {
    phys: Arc<Phys>,
    device: usize,
    /// Launches in one stream come one after another, and share.
    stream: u64,
    shared: bool,
    vas: Vec<u64>,
}

pub(crate) struct GraphMemory {
    held: BTreeMap<u64, Held>,
    backings: Vec<Backing>,
    high: [u64; MAX_DEVICES],
    /// What launches got before they ran out of memory. No trim gives it back (measured).
    stuck: Vec<(usize, Arc<Phys>)>,
}

impl GraphMemory {
    pub(crate) const fn new() -> GraphMemory {
        GraphMemory {
            held: BTreeMap::new(),
            backings: Vec::new(),
            high: [0; MAX_DEVICES],
            stuck: Vec::new(),
        }
    }

    fn used(&self, device: usize) -> u64 {
        let mine = self.backings.iter().filter(|b| b.device == device);
        mine.map(|b| b.phys.size).sum()
    }

    fn reserved(&self, device: usize) -> u64 {
        let mine = self.stuck.iter().filter(|(d, _)| *d == device);
        self.used(device) + mine.map(|(_, phys)| phys.size).sum::<u64>()
    }
}

/// The allocations that these nodes make, in their order.
fn allocated(nodes: &[Node]) -> impl Iterator<Item = u64> {
    nodes.iter().filter_map(|n| match n.work {
        Work::GraphAlloc { va, .. } => Some(va),
        _ => None,
    })
}

impl World {
    /// Whether the graph allocates or frees.
    pub(crate) fn has_memory(&self, graph: usize) -> bool {
        self.graphs
            .get(&graph)
            .is_some_and(|nodes| nodes.iter().any(Node::is_memory))
    }

    fn hold(&mut self, graph: usize, device: usize, ctx: usize, size: u64) -> Res<u64> {
        if size == 0 {
            return Err(CUDA_ERROR_INVALID_VALUE);
        }
        // Measured: 4 TiB are too much for a node, twice the card only for the launch.
        if size >= MOST {
            return Err(CUDA_ERROR_OUT_OF_MEMORY);
        }
        let whole = size
            .checked_next_multiple_of(GRANULE)
            .ok_or(CUDA_ERROR_OUT_OF_MEMORY)?;
        let va = self.space.reserve(whole, GRANULE, 0, Owner::Driver)?;
        let held = Held {
            size,
            whole,
            device,
            ctx,
            graph,
            inner: false,
            kept: false,
            orphan: false,
        };
        self.graph_memory.held.insert(va, held);
        Ok(va)
    }

    /// A free in this graph: of its own allocation once, or of one that another graph leaves.
    fn freed_by(&mut self, graph: usize, va: u64) -> Res<(u64, u64)> {
        let Some(held) = self.graph_memory.held.get_mut(&va).filter(|h| !h.inner) else {
            return Err(CUDA_ERROR_INVALID_VALUE);
        };
        held.inner = held.graph == graph;
        Ok((va, va + held.whole))
    }

    pub(crate) fn capture_alloc(&mut self, sid: u64, size: u64, pool: Option<usize>) -> Res<u64> {
        if size == 0 {
            // Measured: taken without a word.
            return Ok(0);
        }
        let (ctx, mut device) = (self.streams[&sid].ctx, self.streams[&sid].device);
        if let Some(pool) = pool {
            match self.pools.get(&pool).ok_or(CUDA_ERROR_INVALID_VALUE)?.place {
                Place::Device(owner) => device = owner,
                // A graph's memory is a device's (801: measured).
                Place::Host => return Err(CUDA_ERROR_NOT_SUPPORTED),
            }
        }
        let graph = self.captured_graph(sid)?;
        let va = self.hold(graph, device, ctx, size)?;
        let range = (va, va + size.next_multiple_of(GRANULE));
        let work = Work::GraphAlloc { va, size };
        self.capture_node(sid, "alloc node", work, vec![range])?;
        Ok(va)
    }

    pub(crate) fn capture_free(&mut self, sid: u64, va: u64) -> Res {
        let graph = self.captured_graph(sid)?;
        let range = self.freed_by(graph, va)?;
        self.capture_node(sid, "free node", Work::GraphFree(va), vec![range])
    }

    /// Whether the program may free the address: what a graph frees itself is not its to free. A yes gives it up.
    pub(crate) fn kept_by_program(&mut self, va: u64) -> bool {
        self.graph_memory
            .held
            .get_mut(&va)
            .is_none_or(|held| std::mem::take(&mut held.kept))
    }

    /// Puts memory behind every allocation of an executable graph, for a launch in this stream; what that launch must
    /// wait for.
    pub(crate) fn back_graph(&mut self, exec: usize, sid: u64) -> Res<Vec<Dep>> {
        let nodes = self.exec(exec)?.nodes.clone();
        let mut deps = Vec::new();
        for va in allocated(&nodes) {
            deps.extend(self.back(va, sid)?);
        }
        Ok(deps)
    }

    fn back(&mut self, va: u64, sid: u64) -> Res<Option<Dep>> {
        let held = &self.graph_memory.held[&va];
        let (device, whole, shared) = (held.device, held.whole, held.inner);
        let memory = &mut self.graph_memory;
        if let Some(backing) = memory.backings.iter_mut().find(|b| b.vas.contains(&va)) {
            // Work in the stream that had it comes first.
            let before = std::mem::replace(&mut backing.stream, sid);
            let dep = self.streams.get(&before).map(|s| Dep {
                stream: before,
                seq: s.enqueued,
            });
            return Ok(dep.filter(|_| before != sid));
        }
        let fits = |b: &&mut Backing| {
            b.shared && shared && b.device == device && b.stream == sid && b.phys.size == whole
        };
        let phys = match memory.backings.iter_mut().find(fits) {
            Some(backing) => {
                backing.vas.push(va);
                backing.phys.clone()
            }
            None => {
                let phys = self.graph_phys(device, whole)?;
                self.graph_memory.backings.push(Backing {
                    phys: phys.clone(),
                    device,
                    stream: sid,
                    shared,
                    vas: vec![va],
                });
                phys
            }
        };
        self.space.map(va, phys, 0);
        if let Some(m) = self.space.mappings.get_mut(&va) {
            m.rights[device] = READ_WRITE;
        }
        let reserved = self.graph_memory.reserved(device);
        let high = &mut self.graph_memory.high[device];
        *high = reserved.max(*high);
        Ok(None)
    }

    fn graph_phys(&mut self, device: usize, size: u64) -> Res<Arc<Phys>> {
        Phys::new(Place::Device(device), size, false).or_else(|_| {
            crate::pool::trim_device(self, device);
            self.trim_graphs(device);
            Phys::new(Place::Device(device), size, false).inspect_err(|_| {
                let rest = crate::phys::free(device) / GRANULE * GRANULE;
                if rest > 0
                    && let Ok(phys) = Phys::new(Place::Device(device), rest, false)
                {
                    self.graph_memory.stuck.push((device, phys));
                }
            })
        })
    }

    /// What must be true before a graph may be launched in this stream; what the launch waits for.
    pub(crate) fn enter_graph(&mut self, exec: usize, sid: u64) -> Res<Vec<Dep>> {
        let (nodes, flags) = (self.exec(exec)?.nodes.clone(), self.execs[&exec].flags);
        let held = &self.graph_memory.held;
        let kept = |va: &u64| held.get(va).is_some_and(|h| h.kept);
        let own: Vec<u64> = allocated(&nodes).collect();
        if flags & CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH == 0 && own.iter().any(kept) {
            return Err(CUDA_ERROR_INVALID_VALUE);
        }
        for node in nodes.iter() {
            if let Work::GraphFree(va) = node.work
                && !own.contains(&va)
                && !kept(&va)
            {
                return Err(CUDA_ERROR_INVALID_VALUE);
            }
        }
        let mut deps = self.waited_by_graph(&nodes);
        deps.extend(self.back_graph(exec, sid)?);
        Ok(deps)
    }

    /// The graph is on its way: what it leaves is the program's, what it frees is no longer.
    pub(crate) fn leave_graph(&mut self, nodes: &[Node]) {
        for node in nodes {
            match node.work {
                Work::GraphAlloc { va, .. } => {
                    if let Some(held) = self.graph_memory.held.get_mut(&va).filter(|h| !h.inner) {
                        held.kept = true;
                        self.show(va);
                    }
                }
                Work::GraphFree(va) => {
                    if let Some(held) = self.graph_memory.held.get_mut(&va) {
                        held.kept = false;
                    }
                }
                _ => {}
            }
        }
    }

    /// From here on the address is an allocation.
    fn show(&mut self, va: u64) {
        if let Some(held) = self.graph_memory.held.get(&va)
            && !self.allocs.contains_key(&va)
        {
            let alloc = Alloc {
                size: held.size,
                ctx: held.ctx,
                device: held.device,
                block: va,
                id: serial(),
                pool: GRAPH,
                doomed: false,
                freed_on: 0,
            };
            self.allocs.insert(va, alloc);
        }
    }

    /// After a graph or an instance is gone.
    pub(crate) fn forget_graph(&mut self, graph: usize) {
        if !self.graphs.contains_key(&graph) && self.execs.values().all(|e| e.graph != graph) {
            let mine = self.graph_memory.held.values_mut();
            mine.filter(|h| h.graph == graph)
                .for_each(|h| h.orphan = true);
            self.bury_orphans();
        }
    }

    fn busy(&self, va: u64) -> bool {
        let held = &self.graph_memory.held[&va];
        held.kept
            || self.allocs.contains_key(&va)
            || self.flight.touching(va, va + held.whole).is_some()
    }

    /// Addresses go with the last that knows them, their memory only in a trim.
    fn bury_orphans(&mut self) {
        let dead: Vec<u64> = self
            .graph_memory
            .held
            .iter()
            .filter(|(va, h)| h.orphan && !self.busy(**va))
            .map(|(va, _)| *va)
            .collect();
        for va in dead {
            self.space.unmap(va);
            self.space.unreserve(va);
            self.graph_memory.held.remove(&va);
            for backing in &mut self.graph_memory.backings {
                backing.vas.retain(|v| *v != va);
            }
        }
    }

    fn trim_graphs(&mut self, device: usize) {
        self.bury_orphans();
        let (idle, rest) = std::mem::take(&mut self.graph_memory.backings)
            .into_iter()
            .partition(|b| b.device == device && !b.vas.iter().any(|va| self.busy(*va)));
        self.graph_memory.backings = rest;
        let idle: Vec<Backing> = idle;
        for va in idle.iter().flat_map(|b| &b.vas) {
            self.space.unmap(*va);
        }
    }
}

pub(crate) fn alloc_node(out: Out<usize>, spot: Spot, p: &mut AllocParams) -> Res {
    let props = p.poolProps;
    if props.allocType != 1 {
        return Err(CUDA_ERROR_INVALID_VALUE);
    }
    if props.location.type_ != CU_MEM_LOCATION_TYPE_DEVICE {
        return Err(CUDA_ERROR_NOT_SUPPORTED);
    }
    let device = device::check(props.location.id).map_err(|_| CUDA_ERROR_INVALID_VALUE)?;
    let size = p.bytesize as u64;
    let mut address = 0;
    spot.add(out, |w| {
        let ctx = w.here()?;
        let va = w.hold(spot.graph, device, ctx, size)?;
        address = va;
        let range = (va, va + size.next_multiple_of(GRANULE));
        Ok(("alloc node", Work::GraphAlloc { va, size }, vec![range]))
    })?;
    p.dptr = address;
    Ok(())
}

pub(crate) fn free_node(out: Out<usize>, spot: Spot, va: u64) -> Res {
    spot.add(out, |w| {
        let range = w.freed_by(spot.graph, va)?;
        Ok(("free node", Work::GraphFree(va), vec![range]))
    })
}

/// An allocation node's turn.
pub(crate) fn begin(_site: &Site, va: u64, size: u64) {
    let mut w = world();
    w.show(va);
    w.paint(va, size.min(1 << 20), 0xa5);
}

/// A free node's turn.
pub(crate) fn end(site: &Site, va: u64) {
    let mut w = world();
    if let Some(alloc) = w.allocs.remove(&va) {
        let end = va + alloc.size;
        if let Some((name, at)) = w.flight.touching_but(site.ticket, va, end)
            && name != site.name
        {
            misuse!("free node of {va:#x}..{end:#x} with work in flight ({name} at {at:#x})");
        }
    }
}

fn attribute(device: c_int, attribute: CUgraphMem_attribute) -> Res<u64> {
    let device = device::check(device)?;
    let w = world();
    match attribute {
        // Measured: what is mapped counts as used until it is trimmed.
        CU_GRAPH_MEM_ATTR_USED_MEM_CURRENT => Ok(w.graph_memory.used(device)),
        CU_GRAPH_MEM_ATTR_RESERVED_MEM_CURRENT => Ok(w.graph_memory.reserved(device)),
        CU_GRAPH_MEM_ATTR_USED_MEM_HIGH | CU_GRAPH_MEM_ATTR_RESERVED_MEM_HIGH => {
            Ok(w.graph_memory.high[device])
        }
        _ => Err(CUDA_ERROR_INVALID_VALUE),
    }
}

api! {
    Init cuDeviceGetGraphMemAttribute { 11040 cuDeviceGetGraphMemAttribute Legacy } (device: c_int, kind: CUgraphMem_attribute, value: Out<u64>) |_f| {
        value.set(attribute(device, kind)?)
    }
    Init cuDeviceSetGraphMemAttribute { 11040 cuDeviceSetGraphMemAttribute Legacy } (device: c_int, kind: CUgraphMem_attribute, value: In<u64>) |_f| {
        let device = device::check(device)?;
        let high = matches!(kind, CU_GRAPH_MEM_ATTR_USED_MEM_HIGH | CU_GRAPH_MEM_ATTR_RESERVED_MEM_HIGH);
        if !high || value.get()? != 0 {
            return Err(CUDA_ERROR_INVALID_VALUE);
        }
        let mut w = world();
        let reserved = w.graph_memory.reserved(device);
        w.graph_memory.high[device] = reserved;
        Ok(())
    }
    Init cuDeviceGraphMemTrim { 11040 cuDeviceGraphMemTrim Legacy } (device: c_int) |_f| {
        let device = device::check(device)?;
        world().trim_graphs(device);
        Ok(())
    }
}
