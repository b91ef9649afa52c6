//! What capture forbids: each refusal invalidates the captures concerned and says so.
use greenboost_abi::{
    CU_STREAM_CAPTURE_MODE_GLOBAL, CU_STREAM_CAPTURE_MODE_RELAXED,
    CUDA_ERROR_STREAM_CAPTURE_IMPLICIT, CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED,
};

use crate::abi::Res;
use crate::error::ISOLATION;
use crate::local;
use crate::queue::Sort;
use crate::world::World;

impl World {
    /// A capturing stream may not wait for what happened outside its capture.
    pub(crate) fn refuse_outside_event(&mut self, sid: u64) -> Res {
        if self.streams[&sid].capture.is_some() {
            self.invalidate_stream(sid, "wait for an event from outside the capture");
            return Err(ISOLATION);
        }
        Ok(())
    }

    /// Work on the legacy stream would wait for a capturing stream.
    pub(crate) fn refuse_implicit(&mut self, ctx: usize, name: &str) -> Res {
        let caught: Vec<u64> = self
            .streams
            .values()
            .filter(|s| s.ctx == ctx && s.sort.blocks())
            .filter_map(|s| s.capture.as_ref().map(|j| j.id))
            .collect();
        for id in &caught {
            self.invalidate(*id, &format!("{name} on the legacy stream during capture"));
        }
        if caught.is_empty() {
            Ok(())
        } else {
            Err(CUDA_ERROR_STREAM_CAPTURE_IMPLICIT)
        }
    }

    /// Asking whether a capturing stream is done has no answer.
    pub(crate) fn refuse_synchronise(&mut self, sid: u64, name: &str) -> Res {
        if self.streams[&sid].capture.is_some() {
            self.invalidate_stream(sid, &format!("synchronise during capture: {name}"));
            return Err(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
        }
        if self.streams[&sid].sort == Sort::Legacy {
            self.refuse_implicit(self.streams[&sid].ctx, &format!("synchronise: {name}"))?;
        }
        // Of another stream it is as unsafe as an allocation (measured).
        self.refuse_unsafe(name)
    }

    /// A synchronise of the whole context while one of its streams captures.
    pub(crate) fn refuse_synchronise_context(&mut self, ctx: usize, name: &str) -> Res {
        let caught: Vec<u64> = self
            .streams
            .values()
            .filter(|s| s.ctx == ctx)
            .filter_map(|s| s.capture.as_ref().map(|j| j.id))
            .collect();
        for id in &caught {
            self.invalidate(*id, &format!("synchronise during capture: {name}"));
        }
        if caught.is_empty() {
            Ok(())
        } else {
            Err(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED)
        }
    }

    /// The calls that capture calls potentially unsafe, by the rules of the thread's mode.
    pub(crate) fn refuse_unsafe(&mut self, name: &str) -> Res {
        let (mode, key) = (local::capture_mode(), local::key());
        if mode == CU_STREAM_CAPTURE_MODE_RELAXED || self.captures.is_empty() {
            return Ok(());
        }
        let caught: Vec<u64> = self
            .captures
            .iter()
            .filter(|(_, c)| {
                (c.thread == key && c.mode != CU_STREAM_CAPTURE_MODE_RELAXED)
                    || (mode == CU_STREAM_CAPTURE_MODE_GLOBAL
                        && c.mode == CU_STREAM_CAPTURE_MODE_GLOBAL)
            })
            .map(|(id, _)| *id)
            .collect();
        for id in &caught {
            self.invalidate(*id, &format!("{name} during capture"));
        }
        if caught.is_empty() {
            Ok(())
        } else {
            Err(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED)
        }
    }
}
