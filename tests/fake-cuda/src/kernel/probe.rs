//! What the kernels of `greenboost probe` do (`assets/probe.cu`): they read and write, and host memory is as far away as
//! `FAKE_CUDA_LINK` says.
use std::hint::black_box;
use std::time::Instant;

use super::{each, mix, spin};
use crate::phys::Place;
use crate::transfer::throttle;
use crate::va::{Fault, Segment};
use crate::work::Site;

const PIECE: u64 = 2 << 20;
const TOWARDS_DEVICE: usize = 0;
const AWAY: usize = 1;

/// How much of it crosses the link, of `used` bytes spread over all of it.
fn crossing(segments: &[Segment], used: u64) -> u64 {
    let all: u64 = segments.iter().map(|s| s.len).sum();
    let host = segments.iter().filter(|s| matches!(s.place, Place::Host));
    let host: u64 = host.map(|s| s.len).sum();
    match all {
        0 => 0,
        all => (u128::from(used) * u128::from(host) / u128::from(all)) as u64,
    }
}

fn length(segments: &[Segment]) -> u64 {
    segments.iter().map(|s| s.len).sum()
}

fn sum(segments: &[Segment]) {
    let mut total = 0u64;
    // SAFETY: `each` gives words inside segments that live during the call.
    each(segments, |_, p| total ^= unsafe { p.read() });
    black_box(total);
}

/// The word at this distance from the start.
fn word(segments: &[Segment], mut at: u64) -> u64 {
    for segment in segments {
        if at + 8 <= segment.len {
            // SAFETY: inside the segment, and aligned as its start and every border are.
            return unsafe { segment.ptr.add(at as usize).cast::<u64>().read() };
        }
        at = at.saturating_sub(segment.len);
    }
    0
}

pub(super) fn read(_: &Site, _: &[u64], m: &[Vec<Segment>]) -> Result<(), Fault> {
    let begun = Instant::now();
    sum(&m[0]);
    throttle(TOWARDS_DEVICE, crossing(&m[0], length(&m[0])), begun);
    Ok(())
}

pub(super) fn random16(_: &Site, a: &[u64], m: &[Vec<Segment>]) -> Result<(), Fault> {
    let begun = Instant::now();
    let mut total = 0;
    for i in 0..a[2] {
        total ^= word(&m[0], mix(a[3].wrapping_add(i)) % a[1].max(1) * 16);
    }
    black_box(total);
    throttle(TOWARDS_DEVICE, crossing(&m[0], a[2] * 16), begun);
    Ok(())
}

pub(super) fn random_piece(_: &Site, a: &[u64], m: &[Vec<Segment>]) -> Result<(), Fault> {
    let begun = Instant::now();
    let mut total = 0;
    for i in 0..a[2] {
        let start = mix(a[3].wrapping_add(i)) % a[1].max(1) * PIECE;
        for at in (start..start + PIECE).step_by(64) {
            total ^= word(&m[0], at);
        }
    }
    black_box(total);
    throttle(TOWARDS_DEVICE, crossing(&m[0], a[2] * PIECE), begun);
    Ok(())
}

pub(super) fn write(_: &Site, a: &[u64], m: &[Vec<Segment>]) -> Result<(), Fault> {
    let begun = Instant::now();
    // SAFETY: as in `sum`; that nobody else uses the words is up to the simulated program.
    each(&m[0], |i, p| unsafe { p.write(i ^ a[2]) });
    throttle(AWAY, crossing(&m[0], length(&m[0])), begun);
    Ok(())
}

pub(super) fn reread(_: &Site, a: &[u64], m: &[Vec<Segment>]) -> Result<(), Fault> {
    let begun = Instant::now();
    sum(&m[0]);
    let used = length(&m[0]).saturating_mul(a[2]);
    throttle(TOWARDS_DEVICE, crossing(&m[0], used), begun);
    Ok(())
}

pub(super) fn busy(site: &Site, a: &[u64], _: &[Vec<Segment>]) -> Result<(), Fault> {
    spin(site, &a[2..3], &[])
}
