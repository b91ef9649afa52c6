//! Contexts: the thread's stack, primary contexts, peer access.
use core::ffi::{c_int, c_uint};
use std::collections::BTreeMap;

use greenboost_abi::{
    CU_LIMIT_STACK_SIZE, CUDA_ERROR_INVALID_CONTEXT, CUDA_ERROR_INVALID_VALUE,
    CUDA_ERROR_PRIMARY_CONTEXT_ACTIVE, CUDA_ERROR_UNKNOWN, CUdevice, CUresult,
};

use crate::abi::{CtxCreateParams, In, Out, Res};
use crate::config::config;
use crate::error::{PEER_ACCESS_ALREADY_ENABLED, PEER_ACCESS_NOT_ENABLED, PEER_ACCESS_UNSUPPORTED};
use crate::misuse::misuse;
use crate::phys::{Place, charge, discharge};
use crate::queue::{Sort, drain_where};
use crate::stream::failed;
use crate::world::{Guard, Kind, World, world};
use crate::{device, local};

/// Scheduling, blocking sync, mapped host memory, and the newer flags.
const KNOWN_FLAGS: c_uint = 0x1ff;

pub(crate) struct Context {
    pub device: usize,
    pub flags: c_uint,
    version: c_uint,
    /// What it failed with; every later call answers with it.
    pub error: CUresult,
    pub legacy: u64,
    pub per_thread: BTreeMap<u64, u64>,
    pub id: u64,
    /// The green context that it is of, or 0.
    pub green: usize,
    /// References that `cuCtxDetach` takes away.
    uses: u32,
    /// Its destruction has begun.
    ending: bool,
    limits: BTreeMap<c_int, usize>,
    /// Bytes of VRAM that its threads' stacks take beyond the usual.
    stacks: u64,
}

impl World {
    pub(crate) fn add_context(
        &mut self,
        handle: usize,
        device: usize,
        flags: c_uint,
        version: c_uint,
    ) {
        let context = Context {
            device,
            flags,
            version,
            error: 0,
            legacy: 0,
            per_thread: BTreeMap::new(),
            id: crate::world::serial(),
            green: 0,
            uses: 1,
            ending: false,
            limits: BTreeMap::new(),
            stacks: 0,
        };
        self.buried.remove(&handle);
        self.contexts.insert(handle, context);
        let legacy = self.add_stream(handle, Sort::Legacy, 0, 0);
        if let Some(context) = self.contexts.get_mut(&handle) {
            context.legacy = legacy;
        }
    }

    pub(crate) fn peers_between(&self, from: usize, to: usize) -> bool {
        let on = |ctx: &usize| self.contexts.get(ctx).map(|c| c.device);
        self.peers
            .iter()
            .any(|(a, b)| on(a) == Some(from) && on(b) == Some(to))
    }
}

/// Waits for the context's work, then takes everything away that was made in it.
pub(crate) fn bury(mut w: Guard, ctx: usize) -> Guard {
    if let Some(context) = w.contexts.get_mut(&ctx) {
        context.ending = true;
    }
    w = drain_where(w, |s| s.ctx == ctx);
    let streams: Vec<u64> = w
        .streams
        .iter()
        .filter(|(_, s)| s.ctx == ctx)
        .map(|(sid, _)| *sid)
        .collect();
    streams.into_iter().for_each(|sid| w.abandon_capture(sid));
    if let Some(context) = w.contexts.remove(&ctx) {
        discharge(Place::Device(context.device), context.stacks);
    }
    w.buried.insert(ctx);
    w.peers.retain(|(a, b)| *a != ctx && *b != ctx);
    w.streams.retain(|_, s| s.ctx != ctx);
    w.events.retain(|_, e| e.ctx != ctx);
    let gone: Vec<usize> = w
        .modules
        .iter()
        .filter(|(_, m)| m.ctx == ctx)
        .map(|(h, _)| *h)
        .collect();
    for module in gone {
        w.unload(module);
    }
    w.free_context_memory(ctx);
    w
}

fn create(out: Out<usize>, flags: c_uint, device: CUdevice, version: c_uint) -> Res {
    out.check()?;
    let device = device::check(device)?;
    if flags & !KNOWN_FLAGS != 0 {
        return Err(CUDA_ERROR_INVALID_VALUE);
    }
    let mut w = world();
    let handle = w.fresh(Kind::Context) as usize;
    w.add_context(handle, device, flags, version);
    local::push(handle)?;
    out.set(handle)
}

fn destroy(ctx: usize) -> Res {
    let w = world();
    if !w.contexts.contains_key(&ctx) {
        return Err(CUDA_ERROR_INVALID_CONTEXT);
    }
    if w.contexts[&ctx].green != 0 || w.devices.iter().any(|d| d.primary == ctx) {
        return Err(CUDA_ERROR_INVALID_CONTEXT);
    }
    if local::current() == ctx {
        let _ = local::pop();
    }
    drop(bury(w, ctx));
    Ok(())
}

fn exists(ctx: usize) -> Res {
    let w = world();
    // A destroyed one was once accepted, and once it crashed the process (measured). Primary contexts keep their handle.
    let ending = w.contexts.get(&ctx).is_some_and(|c| c.ending);
    if (ending || w.buried.contains(&ctx)) && !w.devices.iter().any(|d| d.primary == ctx) {
        misuse!("a destroyed context is made current");
    }
    if w.contexts.contains_key(&ctx) || w.buried.contains(&ctx) {
        Ok(())
    } else {
        Err(CUDA_ERROR_INVALID_CONTEXT)
    }
}

fn retain(out: Out<usize>, device: CUdevice) -> Res {
    out.check()?;
    out.set(retain_primary(device::check(device)?))
}

pub(crate) fn retain_primary(device: usize) -> usize {
    let mut w = world();
    let handle = w.devices[device].primary;
    if !w.contexts.contains_key(&handle) {
        let flags = w.devices[device].primary_flags;
        w.add_context(handle, device, flags, config().driver);
    }
    w.devices[device].retained += 1;
    handle
}

/// `cuCtxAttach` and `cuCtxDetach`, for the thread's own context; the last reference destroys.
fn attach(out: Out<usize>, flags: c_uint) -> Res {
    if flags != 0 {
        return Err(CUDA_ERROR_INVALID_VALUE);
    }
    let mut w = world();
    let here = w.here()?;
    w.contexts.get_mut(&here).ok_or(CUDA_ERROR_UNKNOWN)?.uses += 1;
    out.set(here)
}

fn detach(ctx: usize) -> Res {
    if ctx != local::current() {
        return Err(CUDA_ERROR_INVALID_CONTEXT);
    }
    let mut w = world();
    let context = w.contexts.get_mut(&ctx).ok_or(CUDA_ERROR_INVALID_CONTEXT)?;
    if context.uses > 1 {
        context.uses -= 1;
        return Ok(());
    }
    // A primary context is released (measured: 0; that it is no more than that is an assumption).
    let primary = w.devices.iter().position(|d| d.primary == ctx);
    drop(w);
    match primary {
        Some(device) => release(device as CUdevice, false),
        None => destroy(ctx),
    }
}

pub(crate) fn release(device: CUdevice, all: bool) -> Res {
    let device = device::check(device)?;
    let mut w = world();
    let entry = &mut w.devices[device];
    if entry.retained == 0 {
        return if all {
            Ok(())
        } else {
            Err(CUDA_ERROR_INVALID_CONTEXT)
        };
    }
    let handle = entry.primary;
    if all {
        // The next retain makes it anew, under the same handle (measured).
        w = bury(w, handle);
    } else {
        entry.retained -= 1;
        if entry.retained == 0 {
            w = bury(w, handle);
        }
    }
    drop(w);
    Ok(())
}

fn set_flags(device: CUdevice, flags: c_uint, strict: bool) -> Res {
    let device = device::check(device)?;
    if flags & !KNOWN_FLAGS != 0 {
        return Err(CUDA_ERROR_INVALID_VALUE);
    }
    let mut w = world();
    let handle = w.devices[device].primary;
    if let Some(context) = w.contexts.get_mut(&handle) {
        if strict {
            return Err(CUDA_ERROR_PRIMARY_CONTEXT_ACTIVE);
        }
        context.flags = flags;
    }
    w.devices[device].primary_flags = flags;
    Ok(())
}

/// Waits for everything on the context; refused while one of its streams captures.
fn synchronise(ctx: usize) -> Res {
    let mut w = world();
    w.sound(ctx)?;
    w.refuse_synchronise_context(ctx, "cuCtxSynchronize")?;
    let greens: Vec<usize> = w
        .contexts
        .keys()
        .copied()
        .filter(|c| w.works_for(*c, ctx))
        .collect();
    let w = drain_where(w, |s| greens.contains(&s.ctx));
    failed(&w, ctx)
}

fn peer(other: usize, flags: c_uint, on: bool) -> Res {
    if flags != 0 {
        return Err(CUDA_ERROR_INVALID_VALUE);
    }
    let mut w = world();
    let here = w.here()?;
    if !on {
        // What still reaches over comes first (not measured).
        w = drain_where(w, |s| s.ctx == here);
    }
    let device = w
        .contexts
        .get(&other)
        .ok_or(CUDA_ERROR_INVALID_CONTEXT)?
        .device;
    if device == w.contexts[&here].device || !config().peers {
        return Err(if on {
            PEER_ACCESS_UNSUPPORTED
        } else {
            PEER_ACCESS_NOT_ENABLED
        });
    }
    match (on, w.peers.contains(&(here, other))) {
        (true, true) => Err(PEER_ACCESS_ALREADY_ENABLED),
        (false, false) => Err(PEER_ACCESS_NOT_ENABLED),
        (true, false) => {
            w.peers.insert((here, other));
            Ok(())
        }
        (false, true) => {
            w.peers.remove(&(here, other));
            Ok(())
        }
    }
}

/// The context asked about: the one given, or the current one for 0.
fn named<T>(ctx: usize, look: impl FnOnce(&Context) -> T) -> Res<T> {
    let ctx = if ctx == 0 { local::current() } else { ctx };
    world()
        .contexts
        .get(&ctx)
        .map(look)
        .ok_or(CUDA_ERROR_INVALID_CONTEXT)
}

/// Threads that can be resident at once: 132 multiprocessors of 2048.
const RESIDENT: u64 = 132 * 2048;

/// A larger stack is there at once, for every thread that can be resident (measured: 64 KiB for 16.2 GiB). That a smaller
/// one gives it back was not measured.
fn set_stack(context: &mut Context, value: u64) -> Res {
    let wanted = RESIDENT * value.saturating_sub(1024);
    let place = Place::Device(context.device);
    match wanted.checked_sub(context.stacks) {
        Some(more) => charge(place, more)?,
        None => discharge(place, context.stacks - wanted),
    }
    context.stacks = wanted;
    Ok(())
}

fn limit_default(limit: c_int) -> Res<usize> {
    match limit {
        0 => Ok(1024),
        1 => Ok(1 << 20),
        2 => Ok(8 << 20),
        3 => Ok(2),
        4 => Ok(2048),
        5 => Ok(128),
        6 => Ok(0),
        _ => Err(greenboost_abi::CUDA_ERROR_NOT_SUPPORTED),
    }
}

api! {
    Init cuCtxCreate {
        2000 cuCtxCreate Legacy,
        3020 cuCtxCreate_v2 Legacy,
    } (ctx: Out<usize>, flags: c_uint, device: CUdevice) |_f| { create(ctx, flags, device, 3020) }
    Init cuCtxCreate { 11040 cuCtxCreate_v3 Legacy } (ctx: Out<usize>, affinity: usize, count: c_int, flags: c_uint, device: CUdevice) |_f| {
        if affinity != 0 || count != 0 {
            return Err(crate::error::UNSUPPORTED_EXEC_AFFINITY);
        }
        create(ctx, flags, device, 3030)
    }
    Init cuCtxCreate { 12050 cuCtxCreate_v4 Legacy } (ctx: Out<usize>, params: In<CtxCreateParams>, flags: c_uint, device: CUdevice) |_f| {
        if !params.is_null() && (params.get()?.numExecAffinityParams != 0 || !params.get()?.cigParams.is_null()) {
            return Err(greenboost_abi::CUDA_ERROR_NOT_SUPPORTED);
        }
        create(ctx, flags, device, 3040)
    }
    Init cuCtxDestroy {
        2000 cuCtxDestroy Legacy,
        4000 cuCtxDestroy_v2 Legacy,
    } (ctx: usize) |_f| { destroy(ctx) }
    Init cuCtxAttach { 2000 cuCtxAttach Legacy } (ctx: Out<usize>, flags: c_uint) |_f| { attach(ctx, flags) }
    Init cuCtxDetach { 2000 cuCtxDetach Legacy } (ctx: usize) |_f| { detach(ctx) }
    Init cuCtxPushCurrent {
        2000 cuCtxPushCurrent Legacy,
        4000 cuCtxPushCurrent_v2 Legacy,
    } (ctx: usize) |_f| {
        exists(ctx)?;
        local::push(ctx)
    }
    Init cuCtxPopCurrent {
        2000 cuCtxPopCurrent Legacy,
        4000 cuCtxPopCurrent_v2 Legacy,
    } (ctx: Out<usize>) |_f| {
        let top = local::pop().ok_or(CUDA_ERROR_INVALID_CONTEXT)?;
        ctx.maybe(top);
        Ok(())
    }
    Init cuCtxSetCurrent { 4000 cuCtxSetCurrent Legacy } (ctx: usize) |_f| {
        if ctx != 0 {
            exists(ctx)?;
        }
        local::set_current(ctx);
        Ok(())
    }
    Init cuCtxGetCurrent { 4000 cuCtxGetCurrent Legacy } (ctx: Out<usize>) |_f| { ctx.set(local::current()) }
    Init cuCtxGetDevice { 2000 cuCtxGetDevice Legacy } (device: Out<CUdevice>) |_f| {
        device.set(named(0, |c| c.device as CUdevice)?)
    }
    Init cuCtxGetDevice { 13000 cuCtxGetDevice_v2 Legacy } (device: Out<CUdevice>, ctx: usize) |_f| {
        device.set(named(ctx, |c| c.device as CUdevice)?)
    }
    Init cuCtxGetFlags { 7000 cuCtxGetFlags Legacy } (flags: Out<c_uint>) |_f| { flags.set(named(0, |c| c.flags)?) }
    Context cuCtxSetFlags { 12010 cuCtxSetFlags Legacy } (flags: c_uint) |_f| {
        if flags & !KNOWN_FLAGS != 0 {
            return Err(CUDA_ERROR_INVALID_VALUE);
        }
        let mut w = world();
        let here = w.here()?;
        w.contexts.get_mut(&here).ok_or(CUDA_ERROR_UNKNOWN)?.flags = flags;
        Ok(())
    }
    Context cuProfilerStart { 4000 cuProfilerStart Legacy } () |_f| { Ok(()) }
    Context cuProfilerStop { 4000 cuProfilerStop Legacy } () |_f| { Ok(()) }
    Init cuCtxGetId { 12000 cuCtxGetId Legacy } (ctx: usize, id: Out<u64>) |_f| { id.set(named(ctx, |c| c.id)?) }
    Init cuCtxGetApiVersion { 3020 cuCtxGetApiVersion Legacy } (ctx: usize, version: Out<c_uint>) |_f| {
        version.set(named(ctx, |c| c.version)?)
    }
    Context cuCtxSynchronize { 2000 cuCtxSynchronize Legacy } () |_f| { synchronise(local::current()) }
    Init cuCtxSynchronize { 13000 cuCtxSynchronize_v2 Legacy } (ctx: usize) |_f| {
        synchronise(if ctx == 0 { local::current() } else { ctx })
    }
    Context cuCtxGetLimit { 3010 cuCtxGetLimit Legacy } (value: Out<usize>, limit: c_int) |_f| {
        let default = limit_default(limit)?;
        value.set(named(0, |c| c.limits.get(&limit).copied().unwrap_or(default))?)
    }
    Context cuCtxSetLimit { 3010 cuCtxSetLimit Legacy } (limit: c_int, value: usize) |_f| {
        limit_default(limit)?;
        let mut w = world();
        let here = w.here()?;
        let context = w.contexts.get_mut(&here).ok_or(CUDA_ERROR_UNKNOWN)?;
        if limit == CU_LIMIT_STACK_SIZE {
            set_stack(context, value as u64)?;
        }
        context.limits.insert(limit, value);
        Ok(())
    }
    Context cuCtxGetStreamPriorityRange { 5050 cuCtxGetStreamPriorityRange Legacy } (least: Out<c_int>, greatest: Out<c_int>) |_f| {
        least.maybe(0);
        greatest.maybe(-5);
        Ok(())
    }
    Context cuCtxGetCacheConfig { 3020 cuCtxGetCacheConfig Legacy } (config: Out<c_int>) |_f| { config.set(0) }
    Context cuCtxSetCacheConfig { 3020 cuCtxSetCacheConfig Legacy } (config: c_int) |_f| {
        if (0..=3).contains(&config) { Ok(()) } else { Err(CUDA_ERROR_INVALID_VALUE) }
    }
    Context cuCtxEnablePeerAccess { 4000 cuCtxEnablePeerAccess Legacy } (ctx: usize, flags: c_uint) |_f| { peer(ctx, flags, true) }
    Context cuCtxDisablePeerAccess { 4000 cuCtxDisablePeerAccess Legacy } (ctx: usize) |_f| { peer(ctx, 0, false) }
    Init cuDevicePrimaryCtxRetain { 7000 cuDevicePrimaryCtxRetain Legacy } (ctx: Out<usize>, device: CUdevice) |_f| { retain(ctx, device) }
    Init cuDevicePrimaryCtxRelease {
        7000 cuDevicePrimaryCtxRelease Legacy,
        11000 cuDevicePrimaryCtxRelease_v2 Legacy,
    } (device: CUdevice) |_f| { release(device, false) }
    Init cuDevicePrimaryCtxReset {
        7000 cuDevicePrimaryCtxReset Legacy,
        11000 cuDevicePrimaryCtxReset_v2 Legacy,
    } (device: CUdevice) |_f| { release(device, true) }
    Init cuDevicePrimaryCtxSetFlags { 7000 cuDevicePrimaryCtxSetFlags Legacy } (device: CUdevice, flags: c_uint) |_f| {
        set_flags(device, flags, true)
    }
    Init cuDevicePrimaryCtxSetFlags { 11000 cuDevicePrimaryCtxSetFlags_v2 Legacy } (device: CUdevice, flags: c_uint) |_f| {
        set_flags(device, flags, false)
    }
    Init cuDevicePrimaryCtxGetState { 7000 cuDevicePrimaryCtxGetState Legacy } (device: CUdevice, flags: Out<c_uint>, active: Out<c_int>) |_f| {
        let device = device::check(device)?;
        let w = world();
        let context = w.contexts.get(&w.devices[device].primary);
        flags.maybe(context.map_or(w.devices[device].primary_flags, |c| c.flags));
        active.maybe(c_int::from(context.is_some()));
        Ok(())
    }
}
