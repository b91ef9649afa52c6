//! The stream calls.
use core::ffi::{c_int, c_uint};

use greenboost_abi::{
    CU_STREAM_LEGACY, CU_STREAM_NON_BLOCKING, CU_STREAM_PER_THREAD, CUDA_ERROR_INVALID_HANDLE,
    CUDA_ERROR_INVALID_VALUE, CUDA_ERROR_NOT_READY,
};

use crate::abi::{HostFn, Out, Res, StreamCallback};
use crate::gate::Flavour;
use crate::local;
use crate::misuse::misuse;
use crate::queue::{Dep, Sort, Stream, drain};
use crate::work::Work;
use crate::world::{Guard, Kind, World, world};

impl World {
    /// The stream that a handle names, in the calling thread's context.
    pub(crate) fn stream(&mut self, handle: usize, flavour: Flavour) -> Res<u64> {
        match (handle, flavour) {
            (0, Flavour::Legacy) | (CU_STREAM_LEGACY, _) => {
                let ctx = self.here()?;
                Ok(self.contexts[&ctx].legacy)
            }
            (0, Flavour::PerThread) | (CU_STREAM_PER_THREAD, _) => self.per_thread(),
            _ => match self.streams.get(&(handle as u64)) {
                Some(s) if !s.gone && matches!(s.sort, Sort::Blocking | Sort::NonBlocking) => {
                    self.sound(s.ctx)?;
                    Ok(handle as u64)
                }
                _ => {
                    misuse!("use of stream {handle:#x}, which does not exist");
                    Err(CUDA_ERROR_INVALID_HANDLE)
                }
            },
        }
    }

    fn per_thread(&mut self) -> Res<u64> {
        let (ctx, key) = (self.here()?, local::key());
        if let Some(&sid) = self.contexts[&ctx].per_thread.get(&key) {
            return Ok(sid);
        }
        let sid = self.add_stream(ctx, Sort::PerThread, 0, 0);
        if let Some(context) = self.contexts.get_mut(&ctx) {
            context.per_thread.insert(key, sid);
        }
        Ok(sid)
    }

    pub(crate) fn add_stream(&mut self, ctx: usize, sort: Sort, flags: u32, priority: i32) -> u64 {
        let sid = self.fresh(Kind::Stream);
        let device = self.contexts.get(&ctx).map_or(0, |c| c.device);
        self.streams
            .insert(sid, Stream::new(ctx, device, sort, flags, priority));
        sid
    }

    /// Forgets the stream when nothing is queued on it, else leaves that to its worker.
    pub(crate) fn bury_stream(&mut self, sid: u64) {
        if self.streams.get(&sid).is_some_and(Stream::idle) {
            self.streams.remove(&sid);
        } else if let Some(s) = self.streams.get_mut(&sid) {
            s.gone = true;
        }
    }
}

fn create(flags: c_uint, priority: c_int) -> Res<usize> {
    if flags & !CU_STREAM_NON_BLOCKING != 0 {
        return Err(CUDA_ERROR_INVALID_VALUE);
    }
    let mut w = world();
    let ctx = w.here()?;
    let sort = if flags == 0 {
        Sort::Blocking
    } else {
        Sort::NonBlocking
    };
    Ok(w.add_stream(ctx, sort, flags, priority.clamp(-5, 0)) as usize)
}

fn destroy(handle: usize) -> Res {
    let mut w = world();
    if handle <= CU_STREAM_PER_THREAD {
        return Err(CUDA_ERROR_INVALID_HANDLE);
    }
    let sid = w.stream(handle, Flavour::Legacy)?;
    w.abandon_capture(sid);
    w.bury_stream(sid);
    Ok(())
}

fn synchronise(handle: usize, flavour: Flavour) -> Res {
    let mut w = world();
    let sid = w.stream(handle, flavour)?;
    w.refuse_synchronise(sid, "cuStreamSynchronize")?;
    wait_all(w, sid)
}

/// Waits for what is enqueued on the stream, then says whether its context failed.
pub(crate) fn wait_all(w: Guard, sid: u64) -> Res {
    let (ctx, seq, sort) = (
        w.streams[&sid].ctx,
        w.streams[&sid].enqueued,
        w.streams[&sid].sort,
    );
    let mut w = drain(w, Dep { stream: sid, seq });
    if sort == Sort::Legacy {
        // The legacy stream is done when the streams that it waits for are.
        w = crate::queue::drain_where(w, |s| s.ctx == ctx && s.sort.blocks());
    }
    failed(&w, ctx)
}

pub(crate) fn failed(w: &World, ctx: usize) -> Res {
    w.contexts
        .get(&ctx)
        .map_or(Ok(()), |c| if c.error == 0 { Ok(()) } else { Err(c.error) })
}

fn query(handle: usize, flavour: Flavour) -> Res {
    let mut w = world();
    let sid = w.stream(handle, flavour)?;
    w.refuse_synchronise(sid, "cuStreamQuery")?;
    let (ctx, sort) = (w.streams[&sid].ctx, w.streams[&sid].sort);
    failed(&w, ctx)?;
    let others_idle = || {
        w.streams
            .values()
            .filter(|s| s.ctx == ctx && s.sort.blocks())
            .all(Stream::idle)
    };
    let idle = w.streams[&sid].idle() && (sort != Sort::Legacy || others_idle());
    if idle {
        Ok(())
    } else {
        Err(CUDA_ERROR_NOT_READY)
    }
}

fn host(handle: usize, flavour: Flavour, name: &'static str, work: Work) -> Res {
    let mut w = world();
    let sid = w.stream(handle, flavour)?;
    w.submit(sid, name, work, Vec::new(), Vec::new()).map(drop)
}

fn look<T>(handle: usize, flavour: Flavour, at: impl FnOnce(&Stream) -> T) -> Res<T> {
    let mut w = world();
    let sid = w.stream(handle, flavour)?;
    Ok(at(&w.streams[&sid]))
}

api! {
    Context cuStreamCreate { 2000 cuStreamCreate Legacy } (stream: Out<usize>, flags: c_uint) |_f| {
        stream.check()?;
        stream.set(create(flags, 0)?)
    }
    Context cuStreamCreateWithPriority { 5050 cuStreamCreateWithPriority Legacy } (stream: Out<usize>, flags: c_uint, priority: c_int) |_f| {
        stream.check()?;
        stream.set(create(flags, priority)?)
    }
    Init cuStreamDestroy {
        2000 cuStreamDestroy Legacy,
        4000 cuStreamDestroy_v2 Legacy,
    } (stream: usize) |_f| { destroy(stream) }
    Context cuStreamSynchronize {
        2000 cuStreamSynchronize Legacy,
        7000 cuStreamSynchronize_ptsz PerThread,
    } (stream: usize) |f| { synchronise(stream, f) }
    Context cuStreamQuery {
        2000 cuStreamQuery Legacy,
        7000 cuStreamQuery_ptsz PerThread,
    } (stream: usize) |f| { query(stream, f) }
    Context cuStreamGetPriority {
        5050 cuStreamGetPriority Legacy,
        7000 cuStreamGetPriority_ptsz PerThread,
    } (stream: usize, priority: Out<c_int>) |f| { priority.set(look(stream, f, |s| s.priority)?) }
    Context cuStreamGetFlags {
        5050 cuStreamGetFlags Legacy,
        7000 cuStreamGetFlags_ptsz PerThread,
    } (stream: usize, flags: Out<c_uint>) |f| { flags.set(look(stream, f, |s| s.flags)?) }
    Context cuStreamGetId {
        12000 cuStreamGetId Legacy,
        12000 cuStreamGetId_ptsz PerThread,
    } (stream: usize, id: Out<u64>) |f| { id.set(look(stream, f, |s| s.id)?) }
    Context cuStreamGetCtx {
        9020 cuStreamGetCtx Legacy,
        9020 cuStreamGetCtx_ptsz PerThread,
    } (stream: usize, ctx: Out<usize>) |f| { ctx.set(look(stream, f, |s| s.ctx)?) }
    Context cuStreamGetCtx {
        12050 cuStreamGetCtx_v2 Legacy,
        12050 cuStreamGetCtx_v2_ptsz PerThread,
    } (stream: usize, ctx: Out<usize>, green: Out<usize>) |f| {
        green.maybe(0);
        ctx.set(look(stream, f, |s| s.ctx)?)
    }
    Context cuStreamGetDevice {
        12080 cuStreamGetDevice Legacy,
        12080 cuStreamGetDevice_ptsz PerThread,
    } (stream: usize, device: Out<c_int>) |f| { device.set(look(stream, f, |s| s.device as c_int)?) }
    Context cuLaunchHostFunc {
        10000 cuLaunchHostFunc Legacy,
        10000 cuLaunchHostFunc_ptsz PerThread,
    } (stream: usize, call: Option<HostFn>, user: usize) |f| {
        let call = call.ok_or(CUDA_ERROR_INVALID_VALUE)?;
        host(stream, f, "host function", Work::Host { call, user })
    }
    Context cuStreamAddCallback {
        5000 cuStreamAddCallback Legacy,
        7000 cuStreamAddCallback_ptsz PerThread,
    } (stream: usize, call: Option<StreamCallback>, user: usize, flags: c_uint) |f| {
        let call = call.filter(|_| flags == 0).ok_or(CUDA_ERROR_INVALID_VALUE)?;
        host(stream, f, "callback", Work::Callback { call, user, stream })
    }
    Context cuStreamAttachMemAsync {
        6000 cuStreamAttachMemAsync Legacy,
        7000 cuStreamAttachMemAsync_ptsz PerThread,
    } (stream: usize, va: u64, len: usize, flags: c_uint) |f| {
        let _ = (va, len, flags);
        look(stream, f, |_| ())
    }
}
