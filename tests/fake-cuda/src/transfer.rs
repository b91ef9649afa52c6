//! Copies, as they run: rows of bytes from one place to another.
use core::ffi::c_void;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use greenboost_abi::{CU_MEMORYTYPE_DEVICE, CU_MEMORYTYPE_HOST, CUDA_MEMCPY3D};

use crate::config::config;
use crate::phys::Place;
use crate::queue::Range;
use crate::race::How;
use crate::va::{Fault, Segment, Who};
use crate::work::Site;
use crate::world::{World, world};

pub(crate) enum Side {
    /// An address of a device; `device` says whose rights count when that is not the running device.
    Device {
        va: u64,
        device: Option<usize>,
    },
    Host(u64),
    /// Pageable memory that was read at the call.
    Held(Vec<u8>),
}

pub(crate) struct Plane {
    pub side: Side,
    pub pitch: u64,
    pub slice: u64,
}

pub(crate) struct Copy {
    pub dst: Plane,
    pub src: Plane,
    pub width: u64,
    pub height: u64,
    pub depth: u64,
    /// What is behind destination and source when the copy is made.
    pub behind: [Behind; 2],
}

/// What a copy that a graph holds may be changed to: the same (measured).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Behind {
    /// Memory that is not the device's.
    Host,
    /// Memory that the driver allocated.
    Driver,
    /// Mapped into a range: VRAM, host memory, or some of each.
    Mapped { vram: bool, host: bool },
}

fn behind(w: &World, plane: &Plane, len: u64) -> Behind {
    let Side::Device { va, .. } = plane.side else {
        return Behind::Host;
    };
    let first = w.space.mapping_of(va).map_or(va, |(start, _)| start);
    let mappings = || w.space.mappings.range(first..va + len).map(|(_, m)| m);
    if mappings().any(|m| m.handle == 0) {
        return Behind::Driver;
    }
    let host = |m: &crate::va::Mapping| m.phys.place == Place::Host;
    Behind::Mapped {
        vram: mappings().any(|m| !host(m)),
        host: mappings().any(host),
    }
}

/// What a plane reaches, from its first byte to its last.
fn extent(plane: &Plane, width: u64, height: u64, depth: u64) -> u64 {
    plane.slice * (depth - 1) + plane.pitch * (height - 1) + width
}

impl Plane {
    fn row(&self, site: &Site, at: u64, len: u64, write: bool) -> Result<Vec<Segment>, Fault> {
        match &self.side {
            Side::Device { va, device } => {
                let mut w = world();
                let segments = w.translate(
                    device.unwrap_or(site.device),
                    va + at,
                    len,
                    write,
                    Who::Copy,
                )?;
                w.claim(site, &segments, if write { How::Write } else { How::Read });
                Ok(segments)
            }
            Side::Host(va) => Ok(vec![Segment::host(va + at, len)]),
            Side::Held(bytes) => Ok(vec![Segment::host(bytes.as_ptr() as u64 + at, len)]),
        }
    }
}

impl Copy {
    pub(crate) fn new(
        w: &World,
        dst: Plane,
        src: Plane,
        (width, height, depth): (u64, u64, u64),
    ) -> Copy {
        let behind = [&dst, &src].map(|p| behind(w, p, extent(p, width, height, depth)));
        Copy {
            dst,
            src,
            width,
            height,
            depth,
            behind,
        }
    }

    /// As `cuGraphMemcpyNodeGetParams` tells it.
    pub(crate) fn told(&self) -> CUDA_MEMCPY3D {
        let end = |plane: &Plane| match &plane.side {
            Side::Device { va, .. } => (CU_MEMORYTYPE_DEVICE, 0, *va),
            Side::Host(va) => (CU_MEMORYTYPE_HOST, *va, 0),
            Side::Held(bytes) => (CU_MEMORYTYPE_HOST, bytes.as_ptr() as u64, 0),
        };
        let rows = |plane: &Plane| plane.slice.checked_div(plane.pitch).unwrap_or(0) as usize;
        let (dst, src) = (end(&self.dst), end(&self.src));
        CUDA_MEMCPY3D {
            srcXInBytes: 0,
            srcY: 0,
            srcZ: 0,
            srcLOD: 0,
            srcMemoryType: src.0,
            srcHost: src.1 as *const c_void,
            srcDevice: src.2,
            srcArray: std::ptr::null_mut(),
            srcContext: std::ptr::null_mut(),
            srcPitch: self.src.pitch as usize,
            srcHeight: rows(&self.src),
            dstXInBytes: 0,
            dstY: 0,
            dstZ: 0,
            dstLOD: 0,
            dstMemoryType: dst.0,
            dstHost: dst.1 as *mut c_void,
            dstDevice: dst.2,
            dstArray: std::ptr::null_mut(),
            dstContext: std::ptr::null_mut(),
            dstPitch: self.dst.pitch as usize,
            dstHeight: rows(&self.dst),
            WidthInBytes: self.width as usize,
            Height: self.height as usize,
            Depth: self.depth as usize,
        }
    }

    /// The device addresses that the copy names.
    pub(crate) fn ranges(&self) -> Vec<Range> {
        [&self.dst, &self.src]
            .into_iter()
            .filter_map(|plane| match plane.side {
                Side::Device { va, .. } => {
                    Some((va, va + extent(plane, self.width, self.height, self.depth)))
                }
                _ => None,
            })
            .collect()
    }

    pub(crate) fn run(&self, site: &Site) -> Result<(), Fault> {
        let tight = |p: &Plane| {
            (self.height == 1 || p.pitch == self.width)
                && (self.depth == 1 || p.slice == p.pitch * self.height)
        };
        let (width, height, depth) = if tight(&self.dst) && tight(&self.src) {
            (self.width * self.height * self.depth, 1, 1)
        } else {
            (self.width, self.height, self.depth)
        };
        let begun = Instant::now();
        let mut crossing = [0u64; 2];
        for z in 0..depth {
            for y in 0..height {
                let src =
                    self.src
                        .row(site, z * self.src.slice + y * self.src.pitch, width, false)?;
                let dst =
                    self.dst
                        .row(site, z * self.dst.slice + y * self.dst.pitch, width, true)?;
                zip(&dst, &src, |to, from, len| {
                    if let Some(direction) = direction(to.place, from.place) {
                        crossing[direction] += len;
                    }
                    // SAFETY: both pieces are that long, and live while the segments do; `copy` allows overlap.
                    unsafe { std::ptr::copy(from.ptr, to.ptr, len as usize) };
                });
            }
        }
        crossing
            .into_iter()
            .enumerate()
            .for_each(|(direction, bytes)| throttle(direction, bytes, begun));
        Ok(())
    }
}

/// 0 towards the device, 1 away from it; nothing crosses the link otherwise.
fn direction(to: Place, from: Place) -> Option<usize> {
    match (to, from) {
        (Place::Device(_), Place::Host) => Some(0),
        (Place::Host, Place::Device(_)) => Some(1),
        _ => None,
    }
}

impl Segment {
    fn piece(&self, skip: u64) -> Piece {
        // SAFETY: `skip` lies inside the segment.
        let ptr = unsafe { self.ptr.add(skip as usize) };
        Piece {
            ptr,
            place: self.place,
        }
    }
}

/// A part of a segment.
pub(crate) struct Piece {
    pub ptr: *mut u8,
    pub place: Place,
}

/// Walks two lists of segments of the same total length in common pieces.
pub(crate) fn zip(a: &[Segment], b: &[Segment], mut each: impl FnMut(Piece, Piece, u64)) {
    let (mut i, mut j, mut skip_a, mut skip_b) = (0, 0, 0, 0);
    while i < a.len() && j < b.len() {
        let len = (a[i].len - skip_a).min(b[j].len - skip_b);
        if len > 0 {
            each(a[i].piece(skip_a), b[j].piece(skip_b), len);
        }
        skip_a += len;
        skip_b += len;
        if skip_a == a[i].len {
            (i, skip_a) = (i + 1, 0);
        }
        if skip_b == b[j].len {
            (j, skip_b) = (j + 1, 0);
        }
    }
}

/// `FAKE_CUDA_LINK`: each direction of the link carries one transfer at a time, at the rate set. What the simulation itself
/// needed since `begun` counts as part of the transfer. Returns when that would be over; 0 is towards the device.
pub(crate) fn throttle(direction: usize, bytes: u64, begun: Instant) {
    static FREE_AT: [Mutex<Option<Instant>>; 2] = [const { Mutex::new(None) }; 2];
    let Some(rate) = config().link.filter(|_| bytes > 0) else {
        return;
    };
    let until = {
        let mut free_at = FREE_AT[direction]
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let start = free_at.map_or(begun, |at| at.max(begun));
        let until = start + Duration::from_secs_f64(bytes as f64 / rate);
        *free_at = Some(until);
        until
    };
    std::thread::sleep(until.saturating_duration_since(Instant::now()));
}
