//! Green contexts: a context of its own for some of the device's multiprocessors, whose memory is the primary one's.
//!
//! Which multiprocessors does not matter here: a description of resources is only checked for what it is.
use core::ffi::{c_int, c_uint};

use greenboost_abi::{
    CU_STREAM_NON_BLOCKING, CUDA_ERROR_INVALID_CONTEXT, CUDA_ERROR_INVALID_VALUE, CUdevice,
};

use crate::abi::{In, Out, Res};
use crate::config::config;
use crate::queue::Sort;
use crate::world::{Kind, World, world};
use crate::{context, device};

const SM: c_int = 1;
const MULTIPROCESSORS: c_uint = 132;
/// Partitions are multiples of this (documented for compute capability 9).
const SMALLEST: c_uint = 8;
const DEFAULT_STREAM: c_uint = 1;

/// `CUdevResource`
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Resource {
    kind: c_int,
    padding: [u8; 92],
    multiprocessors: c_uint,
    smallest: c_uint,
    alignment: c_uint,
    rest: [u8; 36],
}

impl Resource {
    fn of(multiprocessors: c_uint) -> Resource {
        Resource {
            kind: SM,
            padding: [0; 92],
            multiprocessors,
            smallest: SMALLEST,
            alignment: SMALLEST,
            rest: [0; 36],
        }
    }
}

impl World {
    /// The context of a green context.
    fn green(&self, green: usize) -> Res<usize> {
        let found = self.contexts.iter().find(|(_, c)| c.green == green);
        let found = found.filter(|_| green != 0).map(|(ctx, _)| *ctx);
        found.ok_or(CUDA_ERROR_INVALID_CONTEXT)
    }

    /// The context whose memory is allocated in this one.
    pub(crate) fn owner(&self, ctx: usize) -> usize {
        match self.contexts.get(&ctx) {
            Some(c) if c.green != 0 => self.devices[c.device].primary,
            _ => ctx,
        }
    }

    /// Whether work on one context is work on another: that of green contexts is the primary context's too (measured).
    pub(crate) fn works_for(&self, stream: usize, ctx: usize) -> bool {
        stream == ctx || self.owner(stream) == ctx
    }
}

fn create(out: Out<usize>, resources: usize, device: CUdevice, flags: c_uint) -> Res {
    out.check()?;
    let ordinal = device::check(device)?;
    if flags != DEFAULT_STREAM || !world().descriptions.contains(&resources) {
        return Err(CUDA_ERROR_INVALID_VALUE);
    }
    context::retain_primary(ordinal);
    let mut w = world();
    let (ctx, green) = (
        w.fresh(Kind::Context) as usize,
        w.fresh(Kind::Other) as usize,
    );
    w.add_context(ctx, ordinal, 0, config().driver);
    w.contexts
        .get_mut(&ctx)
        .ok_or(CUDA_ERROR_INVALID_VALUE)?
        .green = green;
    out.set(green)
}

fn destroy(green: usize) -> Res {
    let w = world();
    let ctx = w.green(green)?;
    let device = w.contexts[&ctx].device;
    drop(context::bury(w, ctx));
    context::release(device as CUdevice, false)
}

fn stream(out: Out<usize>, green: usize, flags: c_uint, priority: c_int) -> Res {
    out.check()?;
    let mut w = world();
    let ctx = w.green(green)?;
    if flags != CU_STREAM_NON_BLOCKING {
        return Err(CUDA_ERROR_INVALID_VALUE);
    }
    out.set(w.add_stream(ctx, Sort::NonBlocking, flags, priority.clamp(-5, 0)) as usize)
}

api! {
    Init cuDeviceGetDevResource { 12040 cuDeviceGetDevResource Legacy } (device: CUdevice, out: Out<Resource>, kind: c_int) |_f| {
        device::check(device)?;
        if kind != SM {
            return Err(CUDA_ERROR_INVALID_VALUE);
        }
        out.set(Resource::of(MULTIPROCESSORS))
    }
    Init cuDevSmResourceSplitByCount { 12040 cuDevSmResourceSplitByCount Legacy } (out: Out<Resource>, groups: Out<c_uint>, input: In<Resource>, remaining: Out<Resource>, flags: c_uint, least: c_uint) |_f| {
        let (all, wanted) = (input.get()?, groups.get()?);
        let each = least.max(1).next_multiple_of(SMALLEST);
        if all.kind != SM || flags > 3 || each > all.multiprocessors {
            return Err(CUDA_ERROR_INVALID_VALUE);
        }
        let possible = (all.multiprocessors / each).min(wanted);
        for i in 0..possible {
            out.set_at(i as usize, Resource::of(each))?;
        }
        remaining.maybe(Resource::of(all.multiprocessors - possible * each));
        groups.set(possible)
    }
    Init cuDevResourceGenerateDesc { 12040 cuDevResourceGenerateDesc Legacy } (out: Out<usize>, resources: In<Resource>, count: c_uint) |_f| {
        out.check()?;
        if count == 0 || resources.many(count as usize)?.iter().any(|r| r.kind != SM) {
            return Err(CUDA_ERROR_INVALID_VALUE);
        }
        let mut w = world();
        let description = w.fresh(Kind::Other) as usize;
        w.descriptions.insert(description);
        out.set(description)
    }
    Init cuGreenCtxCreate { 12040 cuGreenCtxCreate Legacy } (out: Out<usize>, resources: usize, device: CUdevice, flags: c_uint) |_f| {
        create(out, resources, device, flags)
    }
    Init cuGreenCtxDestroy { 12040 cuGreenCtxDestroy Legacy } (green: usize) |_f| { destroy(green) }
    Init cuCtxFromGreenCtx { 12040 cuCtxFromGreenCtx Legacy } (out: Out<usize>, green: usize) |_f| {
        out.check()?;
        out.set(world().green(green)?)
    }
    Init cuGreenCtxStreamCreate { 12050 cuGreenCtxStreamCreate Legacy } (out: Out<usize>, green: usize, flags: c_uint, priority: c_int) |_f| {
        stream(out, green, flags, priority)
    }
}
