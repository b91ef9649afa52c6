//! Instances of graphs ("execs"): what their nodes name, and what runs for them.
//!
//! A copy node keeps, from its instantiation on, to the kinds of memory that its operands had then (measured: of
//! `cuMemAlloc`, VRAM or host memory mapped into a range, or both). To the program all of those are device memory. So when
//! the driver refuses new operands for nothing else, another instance is made and takes the old one's place; the
//! program keeps its handle, and all that it does with it reaches the new one ([`Exec::real`]). The first instance is kept
//! as long as the program keeps it: so its handle cannot come back for another.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::*};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use greenboost_abi::*;

use super::content::{Content, Names};
use super::map::Handle;
use super::staging;

/// A graph of the shim's own that stays as the instance is.
#[derive(Clone, Debug)]
pub struct Shadow {
    /// The graph.
    pub graph: Handle,
    /// Its nodes, in the order of the program's.
    pub nodes: Vec<Handle>,
    /// It lacks a change: no instance may be made of it.
    pub stale: bool,
}

/// What is known of an instance beyond what its launches need.
#[derive(Debug)]
pub struct State {
    /// What it was instantiated with.
    pub flags: u64,
    /// Its nodes. While the graph that it was made of lives, by that graph's handles.
    pub content: Content,
    /// Numbers of the nodes that the program has disabled.
    pub off: HashSet<usize>,
    /// The graph that it was made of, and the numbers of its nodes, while that lives: only then can nodes be named.
    pub graph: Option<Graph>,
}

impl State {
    /// The instance does now what this graph does. Nodes keep the handles that they can be named by.
    pub fn renew(&mut self, mut new: Content) {
        if self.graph.is_none() {
            self.content = new;
        } else if new.nodes.len() == self.content.nodes.len() {
            for (new, old) in new.nodes.iter_mut().zip(&self.content.nodes) {
                new.handle = old.handle;
            }
            self.content = new;
        } else {
            // It could not be read.
            for node in &mut self.content.nodes {
                (node.unknown, node.copy) = (true, None);
            }
        }
    }
}

/// The graph that an instance was made of.
#[derive(Debug)]
pub struct Graph {
    /// The program's handle.
    pub handle: Handle,
    /// Numbers of nodes.
    pub index: HashMap<usize, usize>,
    /// Only of a graph with copies.
    pub shadow: Option<Shadow>,
    /// The shadow that the instance that runs was made of, when there has been a newer one since: it knows nodes by this.
    pub before: Option<Shadow>,
}

impl Graph {
    /// The graphs of the shim's that are kept for it.
    pub fn kept(&self) -> impl Iterator<Item = Handle> {
        self.shadow.iter().chain(&self.before).map(|s| s.graph)
    }
}

/// The stream that an instance was launched on last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Last {
    /// It was never launched, or that is over.
    None,
    /// By handle, context, and for a thread's default stream the thread.
    On(Handle, Handle, u64),
    /// The stream is no more.
    Gone,
}

/// What the new instance's first launch waits for.
#[derive(Clone, Copy, Debug)]
pub struct Tail {
    /// An event behind the old one's last launch.
    pub event: Handle,
    /// Its context.
    pub context: Handle,
}

/// An instance of a graph, by the handle that the program has.
pub struct Exec {
    /// The program's handle.
    own: usize,
    real: AtomicUsize,
    names: Mutex<Arc<Names>>,
    changed: AtomicBool,
    copies: AtomicBool,
    last: Mutex<Last>,
    tail: Mutex<Option<Tail>>,
    state: Mutex<Option<Box<State>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Exec {
    /// The instance that the driver runs in its place.
    pub fn real(&self) -> Handle {
        Handle(self.real.load(Acquire))
    }

    /// Puts another one in its place.
    pub fn set_real(&self, real: Handle) {
        self.real.store(real.0, Release);
    }

    /// Whether it has copies: only then another one may come to take its place.
    pub fn has_copies(&self) -> bool {
        self.copies.load(Acquire)
    }

    /// What its nodes name.
    pub fn names(&self) -> Arc<Names> {
        if self.changed.load(Acquire)
            && let Some(state) = &*lock(&self.state)
        {
            self.settle(state);
        }
        lock(&self.names).clone()
    }

    fn settle(&self, state: &State) {
        if self.changed.swap(false, AcqRel) {
            *lock(&self.names) = Arc::new(state.content.names());
        }
    }

    /// When its nodes can be named no more, only what an update of the whole is compared with is kept of them.
    fn compact(&self, state: &mut State) {
        if state.graph.is_some() {
            return;
        }
        self.settle(state);
        if state.content.has_copies() {
            state
                .content
                .nodes
                .iter_mut()
                .for_each(|n| n.names = Vec::new());
        } else {
            state.content = Content::default();
        }
    }

    /// Takes the state for a call that changes it; [`Exec::put`] brings it back. The program does not change one instance
    /// in two threads at once (API doc); if it does, the second finds none.
    pub fn take(&self) -> Option<Box<State>> {
        lock(&self.state).take()
    }

    /// Brings the state back, changed or not.
    pub fn put(&self, mut state: Box<State>) {
        self.copies.store(state.content.has_copies(), Release);
        self.compact(&mut state);
        *lock(&self.state) = Some(state);
    }

    /// What its nodes name has changed.
    pub fn rename(&self) {
        self.changed.store(true, Release);
        staging::changed(self.own as u64);
    }

    /// The stream that it was launched on last.
    pub fn last(&self) -> Last {
        *lock(&self.last)
    }

    /// It was launched.
    pub fn set_last(&self, last: Last) {
        let mut there = lock(&self.last);
        if *there != last {
            *there = last;
        }
    }

    /// What its next launch waits for first, if not on the stream that it was launched on last.
    pub fn tail(&self) -> Option<Tail> {
        *lock(&self.tail)
    }

    /// Changes that; returns what it was.
    pub fn set_tail(&self, tail: Option<Tail>) -> Option<Tail> {
        std::mem::replace(&mut *lock(&self.tail), tail)
    }
}

static EXECS: RwLock<Option<HashMap<usize, Arc<Exec>>>> = RwLock::new(None);

/// What is known of an instance, by the program's handle.
pub fn find(exec: CUgraphExec) -> Option<Arc<Exec>> {
    let execs = EXECS.read().unwrap_or_else(PoisonError::into_inner);
    execs.as_ref()?.get(&(exec as usize)).cloned()
}

/// What the nodes of an instance name; `None`: it was made before the shim was at work, and names nothing that it owns.
pub fn names(exec: CUgraphExec) -> Option<Arc<Names>> {
    Some(find(exec)?.names())
}

/// Remembers an instance. What was known by that handle is forgotten: it ended with its context.
pub fn insert(exec: CUgraphExec, state: State) {
    staging::changed(exec as u64);
    let new = Exec {
        own: exec as usize,
        real: AtomicUsize::new(exec as usize),
        names: Mutex::default(),
        changed: AtomicBool::new(true),
        copies: AtomicBool::new(false),
        last: Mutex::new(Last::None),
        tail: Mutex::new(None),
        state: Mutex::new(None),
    };
    new.put(Box::new(state));
    let mut execs = EXECS.write().unwrap_or_else(PoisonError::into_inner);
    execs
        .get_or_insert_default()
        .insert(exec as usize, Arc::new(new));
}

/// Forgets an instance that the program destroys.
pub fn remove(exec: CUgraphExec) -> Option<Arc<Exec>> {
    let mut execs = EXECS.write().unwrap_or_else(PoisonError::into_inner);
    execs.as_mut()?.remove(&(exec as usize))
}

fn each(mut f: impl FnMut(&Exec)) {
    let execs = EXECS.read().unwrap_or_else(PoisonError::into_inner);
    execs.iter().flat_map(HashMap::values).for_each(|e| f(e));
}

/// The program destroys a graph: no node of its instances can be named any more. Returns the shadows, to be destroyed.
pub fn graph_ends(graph: Handle) -> Vec<Handle> {
    let mut shadows = Vec::new();
    each(|exec| {
        let mut state = lock(&exec.state);
        if let Some(state) = &mut *state
            && let Some(ended) = state.graph.take_if(|g| g.handle == graph)
        {
            shadows.extend(ended.kept());
            exec.compact(state);
        }
    });
    shadows
}

/// The program destroys a stream.
pub fn stream_ends(stream: CUstream) {
    each(|exec| {
        let mut last = lock(&exec.last);
        if matches!(*last, Last::On(s, ..) if s.0 == stream as usize) {
            *last = Last::Gone;
        }
    });
}

/// A context ends, and all work and events in it.
pub fn context_ends(context: Handle) {
    each(|exec| {
        lock(&exec.tail).take_if(|t| t.context == context);
        let mut last = lock(&exec.last);
        if matches!(*last, Last::On(_, c, _) if c == context) {
            *last = Last::None;
        }
    });
}
