//! Another instance in the place of one that the driver will not update.
//!
//! The driver refuses new operands of a copy node when they lie elsewhere: on the host instead of in VRAM, in a range of the
//! shim's instead of in memory of its own (measured: 1, and 910 for a whole graph). Had all been in VRAM, it would not
//! have. Where nothing else speaks against the update, an instance is made that is as the old one would be after it:
//! of the new graph, or for a single node of a clone of the old one, the *shadow*, that every change is made to as well.
//! Until the program destroys the graph, the shadow is kept; afterwards no node can be named (API doc).

use greenboost_abi::*;

use super::nodes;
use crate::driver::{self, graph};
use crate::freeze;
use crate::process;
use crate::tier::content::{Content, Node};
use crate::tier::drain;
use crate::tier::execs::{self, Exec, Graph, Last, Shadow, State, Tail};
use crate::tier::map::Handle;

/// Remembers an instance that was just made.
///
/// # Safety
/// The program's handles, good.
pub unsafe fn made(exec: CUgraphExec, whole: CUgraph, flags: u64) {
    if process::live().is_none() {
        execs::remove(exec);
        return;
    }
    let handle = Handle(whole as usize);
    // SAFETY: an instance of it has just been made.
    let content = unsafe { nodes::read(handle) };
    let graph = content.as_ref().map(|content| Graph {
        handle,
        index: nodes::numbers(content),
        // SAFETY: as above.
        shadow: may_come(flags, content)
            .then(|| unsafe { shadow(handle, content) })
            .flatten(),
        before: None,
    });
    let state = State {
        flags: flags & !CUDA_GRAPH_INSTANTIATE_FLAG_UPLOAD,
        content: content.unwrap_or_else(Content::unread),
        off: Default::default(),
        graph,
    };
    execs::insert(exec, state);
}

/// Whether another instance may ever come to take this one's place. One that kernels launch has handles elsewhere.
fn may_come(flags: u64, content: &Content) -> bool {
    flags & CUDA_GRAPH_INSTANTIATE_FLAG_DEVICE_LAUNCH == 0 && content.has_copies()
}

/// A clone of a graph. `None` for one that cannot be cloned: with nodes that allocate.
///
/// # Safety
/// A graph that is not destroyed, and what was read of it.
unsafe fn shadow(of: Handle, content: &Content) -> Option<Shadow> {
    // SAFETY: the caller's promise.
    let clone = unsafe { graph::clone(of) }.ok()?;
    let own = |node: &Node| {
        // SAFETY: as above.
        let own = unsafe { graph::in_clone(node.handle.0 as CUgraphNode, clone) };
        own.map(|node| Handle(node as usize))
    };
    match content.nodes.iter().map(own).collect() {
        Ok(nodes) => Some(Shadow {
            graph: clone,
            nodes,
            stale: false,
        }),
        Err(_) => {
            // SAFETY: the shim's own.
            unsafe { graph::destroy(clone) };
            None
        }
    }
}

/// Makes an instance and puts it in the place of what runs for `exec`, whose handle the program has as `own`.
///
/// # Safety
/// A graph that is not destroyed, and its nodes in the order of the state's.
unsafe fn replace(
    own: CUgraphExec,
    exec: &Exec,
    state: &State,
    template: Handle,
    nodes: &[Handle],
) -> Option<()> {
    // An unknown function could be one that runs instances, and would run the old one.
    if freeze::unknown_called()
        || process::live().is_none()
        || !may_come(state.flags, &state.content)
    {
        return None;
    }
    let kernels = state.content.nodes.iter().zip(nodes);
    let mut kernels = kernels.filter(|(n, _)| n.kind == CU_GRAPH_NODE_TYPE_KERNEL);
    // SAFETY: the caller's promise. What kernels update, they know by the old instance.
    if kernels.any(|(_, node)| unsafe { graph::is_device_updatable(*node) }) {
        return None;
    }
    let tail = behind(exec.last())?;
    let forget = |tail: Option<Tail>| {
        tail.into_iter()
            .for_each(|t| driver::event_destroy(t.event))
    };
    // SAFETY: the caller's promise.
    let made = unsafe { graph::instantiate(template, state.flags) }.and_then(|new| {
        let mut off = state.off.iter();
        // SAFETY: an instance of this graph, which nobody knows yet.
        unsafe {
            let done = off.try_for_each(|i| graph::disable(new, nodes[*i]));
            done.map(|()| new).inspect_err(|_| {
                graph::destroy_exec(new);
            })
        }
    });
    let Ok(new) = made else {
        forget(tail);
        return None;
    };
    let old = exec.real();
    exec.set_real(new);
    forget(exec.set_tail(tail));
    if old.0 != own as usize {
        // SAFETY: the shim's own, and replaced.
        unsafe { graph::destroy_exec(old) };
    }
    Some(())
}

/// Something that the next launch of a new instance can wait for: instances run one launch after another (API doc), and
/// the new one knows nothing of the old one's. `None` when there is none to be had.
fn behind(last: Last) -> Option<Option<Tail>> {
    let Last::On(stream, context, thread) = last else {
        return (last == Last::None).then_some(None);
    };
    if thread != 0 && thread != this_thread() {
        return None;
    }
    let event = drain::in_context(context, || {
        let _relaxed = driver::Relaxed::enter();
        match driver::stream_captures(stream) {
            Ok(false) => driver::event_behind(stream),
            Ok(true) => Err(CUDA_ERROR_NOT_PERMITTED),
            Err(code) => Err(code),
        }
    });
    let event = event.ok()?.ok()?;
    Some(Some(Tail { event, context }))
}

fn this_thread() -> u64 {
    // SAFETY: no preconditions.
    unsafe { libc::pthread_self() }
}

/// The stream that a launch names, by a handle that says it alone.
fn named(stream: CUstream, own: bool) -> Handle {
    Handle(match stream as usize {
        0 if own => CU_STREAM_PER_THREAD,
        0 => CU_STREAM_LEGACY,
        made => made,
    })
}

/// What a launch on a stream leaves to be remembered.
fn there(stream: Handle, last: Last) -> Last {
    let made = stream.0 > CU_STREAM_PER_THREAD;
    let context = match last {
        Last::On(known, context, _) if made && known == stream => Ok(context),
        _ if made => driver::stream_context(stream),
        _ => driver::current_context().map(Handle::from),
    };
    let thread = match stream.0 {
        CU_STREAM_PER_THREAD => this_thread(),
        _ => 0,
    };
    // What cannot be asked for now cannot be waited for later.
    context.map_or(Last::Gone, |context| Last::On(stream, context, thread))
}

/// A launch of an instance that another one may come to replace, or has.
pub fn launch(
    exec: &Exec,
    stream: CUstream,
    own: bool,
    call: impl FnOnce(CUgraphExec) -> CUresult,
) -> CUresult {
    let real = || exec.real().0 as CUgraphExec;
    // A captured launch is part of another graph.
    if super::graph::captures(stream, own) {
        return call(real());
    }
    let stream = named(stream, own);
    let (last, tail) = (exec.last(), exec.tail());
    let now = there(stream, last);
    if let Some(tail) = tail
        && (now != last || now == Last::Gone)
        // SAFETY: the program's stream, and an event that is destroyed only below.
        && let Err(code) = unsafe { graph::wait(stream, tail.event) }
    {
        return code;
    }
    let result = call(real());
    if result == CUDA_SUCCESS {
        exec.set_last(now);
        if tail.is_some() {
            let over = exec.set_tail(None);
            over.into_iter()
                .for_each(|t| driver::event_destroy(t.event));
        }
    }
    result
}

/// An instance that the program has destroyed: what the shim made for it goes too.
///
/// # Safety
/// Nobody uses it any more.
pub unsafe fn ended(own: CUgraphExec, exec: &Exec) {
    let graph = exec.take().and_then(|s| s.graph);
    // SAFETY: the shim's own, and the caller's promise.
    unsafe {
        if exec.real().0 != own as usize {
            graph::destroy_exec(exec.real());
        }
        let kept = graph.iter().flat_map(Graph::kept);
        kept.for_each(|shadow| graph::destroy(shadow));
    }
    let tail = exec.set_tail(None);
    tail.into_iter()
        .for_each(|t| driver::event_destroy(t.event));
}

/// What the driver knows an instance and one of its nodes by.
pub fn translated(own: CUgraphExec, node: CUgraphNode) -> (CUgraphExec, CUgraphNode) {
    let Some(exec) = execs::find(own).filter(|e| e.real().0 != own as usize) else {
        return (own, node);
    };
    let Some(state) = exec.take() else {
        // The driver refuses it: the node is of another graph.
        return (exec.real().0 as CUgraphExec, node);
    };
    let shadow = |g: &Graph| {
        let index = g.index.get(&(node as usize))?;
        let made_of = g.before.as_ref().or(g.shadow.as_ref())?;
        made_of.nodes.get(*index).copied()
    };
    let node = state
        .graph
        .as_ref()
        .and_then(shadow)
        .map_or(node, |n| n.0 as CUgraphNode);
    exec.put(state);
    (exec.real().0 as CUgraphExec, node)
}

/// The driver has taken new parameters for a node of an instance: `shadow` gives the same to the shadow's node, `read`
/// takes down what the node names now.
pub fn changed(
    own: CUgraphExec,
    node: CUgraphNode,
    shadow: impl FnOnce(CUgraphNode) -> CUresult,
    read: impl FnOnce(&mut Node),
) {
    let Some(exec) = execs::find(own) else { return };
    let Some(mut state) = exec.take() else { return };
    if let Some(graph) = &mut state.graph
        && let Some(index) = graph.index.get(&(node as usize))
    {
        if let Some(own) = &mut graph.shadow
            && !own.stale
        {
            own.stale = shadow(own.nodes[*index].0 as CUgraphNode) != CUDA_SUCCESS;
        }
        read(&mut state.content.nodes[*index]);
        exec.rename();
    }
    exec.put(state);
}

/// The program has disabled a node, or enabled it.
pub fn switched(own: CUgraphExec, node: CUgraphNode, on: bool) {
    let Some(exec) = execs::find(own) else { return };
    let Some(mut state) = exec.take() else { return };
    let number = state
        .graph
        .as_ref()
        .and_then(|g| g.index.get(&(node as usize)));
    if let Some(number) = number.copied() {
        match on {
            true => state.off.remove(&number),
            false => state.off.insert(number),
        };
    }
    exec.put(state);
}

/// The driver has refused new operands for a copy node. Returns whether they are in place now all the same.
///
/// # Safety
/// The program's handles, and operands as a program gives them.
pub unsafe fn copy(own: CUgraphExec, node: CUgraphNode, params: &CUDA_MEMCPY3D) -> bool {
    let Some(exec) = execs::find(own) else {
        return false;
    };
    let Some(mut state) = exec.take() else {
        return false;
    };
    // SAFETY: the caller's promise.
    let done = unsafe { copy_in(own, &exec, &mut state, node, params) };
    exec.put(state);
    done.is_some()
}

/// # Safety
/// As for [`copy`].
unsafe fn copy_in(
    own: CUgraphExec,
    exec: &Exec,
    state: &mut State,
    node: CUgraphNode,
    params: &CUDA_MEMCPY3D,
) -> Option<()> {
    let graph = state.graph.as_ref()?;
    let index = *graph.index.get(&(node as usize))?;
    let shadow = graph.shadow.clone().filter(|s| !s.stale)?;
    let old = &state.content.nodes[index];
    let mut new = old.clone();
    nodes::copies(&mut new, params);
    if !old.copy.as_ref()?.is_placed_otherwise(new.copy.as_ref()?) {
        return None;
    }
    let own_node = shadow.nodes[index];
    // SAFETY: nodes of the shim's own graph.
    unsafe {
        driver::graph::set_copy(own_node, params).ok()?;
        let done = replace(own, exec, state, shadow.graph, &shadow.nodes);
        if done.is_none() {
            let back = driver::graph::set_copy(own_node, &old.copy.as_ref()?.params);
            if let Some(shadow) = state.graph.as_mut().and_then(|g| g.shadow.as_mut()) {
                shadow.stale |= back.is_err();
            }
            return None;
        }
    }
    state.content.nodes[index] = new;
    drop_before(state);
    exec.rename();
    Some(())
}

/// What runs was made of the shadow.
fn drop_before(state: &mut State) {
    let before = state.graph.as_mut().and_then(|g| g.before.take());
    // SAFETY: the shim's own, and nothing runs that was made of it.
    before
        .into_iter()
        .for_each(|s| unsafe { graph::destroy(s.graph) });
}

/// The driver has updated an instance to a graph.
///
/// # Safety
/// The program's handles, good.
pub unsafe fn updated(own: CUgraphExec, whole: CUgraph) {
    let Some(exec) = execs::find(own) else { return };
    let Some(mut state) = exec.take() else { return };
    let whole = Handle(whole as usize);
    // SAFETY: the driver has just used it for an instance.
    let content = unsafe { nodes::read(whole) }.unwrap_or_else(Content::unread);
    let first = exec.real().0 == own as usize;
    if let Some(graph) = state.graph.as_mut().filter(|g| g.shadow.is_some()) {
        // SAFETY: as above.
        match unsafe { shadow(whole, &content) } {
            Some(new) => {
                let mut old = graph.shadow.replace(new);
                if !first && graph.before.is_none() {
                    graph.before = old.take();
                }
                // SAFETY: the shim's own, and nothing runs that was made of it.
                old.into_iter()
                    .for_each(|s| unsafe { graph::destroy(s.graph) });
            }
            None => graph.shadow.iter_mut().for_each(|s| s.stale = true),
        }
    }
    state.renew(content);
    exec.rename();
    exec.put(state);
}

/// The driver has refused to update an instance to a graph. Returns whether that is done now all the same.
///
/// # Safety
/// The program's handles, good.
pub unsafe fn update(own: CUgraphExec, whole: CUgraph) -> bool {
    let Some(exec) = execs::find(own) else {
        return false;
    };
    let Some(mut state) = exec.take() else {
        return false;
    };
    // SAFETY: the caller's promise.
    let done = unsafe { update_in(own, &exec, &mut state, Handle(whole as usize)) };
    exec.put(state);
    done.is_some()
}

/// # Safety
/// As for [`update`].
unsafe fn update_in(own: CUgraphExec, exec: &Exec, state: &mut State, whole: Handle) -> Option<()> {
    // SAFETY: the caller's promise: a graph that an instance can be made of, or it is refused below.
    unsafe {
        let new = nodes::read(whole)?;
        if !state.content.may_become(&new) {
            return None;
        }
        match &state.graph {
            // Nodes of the old graph may still be named: they are paired with those of a graph that stays.
            Some(_) => {
                let clone = shadow(whole, &new)?;
                if replace(own, exec, state, clone.graph, &clone.nodes).is_none() {
                    graph::destroy(clone.graph);
                    return None;
                }
                let old = state.graph.as_mut()?.shadow.replace(clone);
                old.into_iter().for_each(|s| graph::destroy(s.graph));
                drop_before(state);
            }
            None => {
                let all: Vec<Handle> = new.nodes.iter().map(|n| n.handle).collect();
                replace(own, exec, state, whole, &all)?;
            }
        }
        state.renew(new);
    }
    exec.rename();
    Some(())
}
