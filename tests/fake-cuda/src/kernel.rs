//! The kernels that this device can run. One row in [`BUILTINS`] adds one.
mod probe;
mod shim;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::race::How;
use crate::transfer::zip;
use crate::va::{Fault, Segment, Who};
use crate::work::{MISALIGNED, Site};
use crate::world::world;

/// A range that a kernel reaches through an argument.
pub(crate) struct Touch {
    pub va: u64,
    pub len: u64,
    pub how: How,
}

type Run = fn(&Site, &[u64], &[Vec<Segment>]) -> Result<(), Fault>;

pub(crate) struct Builtin {
    pub name: &'static str,
    pub params: usize,
    /// What the arguments let it reach.
    pub touches: fn(&[u64]) -> Vec<Touch>,
    /// The work, on what the touches meant when its turn came.
    run: Run,
}

pub(crate) static BUILTINS: &[Builtin] = &[
    Builtin {
        name: "gb_fill",
        params: 3,
        touches: |a| vec![words(a[0], a[1], How::Write)],
        run: fill,
    },
    Builtin {
        name: "gb_check",
        params: 4,
        touches: |a| vec![words(a[0], a[1], How::Read), words(a[3], 1, How::Atomic)],
        run: check,
    },
    Builtin {
        name: "gb_add",
        params: 3,
        touches: |a| vec![words(a[0], a[1], How::Write)],
        run: add,
    },
    Builtin {
        name: "gb_axpy",
        params: 4,
        touches: |a| vec![words(a[0], a[2], How::Write), words(a[1], a[2], How::Read)],
        run: axpy,
    },
    Builtin {
        name: "gb_sum",
        params: 3,
        touches: |a| vec![words(a[0], a[1], How::Read), words(a[2], 1, How::Atomic)],
        run: sum,
    },
    Builtin {
        name: "gb_spin",
        params: 1,
        touches: |_| Vec::new(),
        run: spin,
    },
    Builtin {
        name: "gb_deref",
        params: 3,
        touches: |a| vec![words(a[0], a[1], How::Read)],
        run: deref,
    },
    Builtin {
        name: "gb_store",
        params: 2,
        touches: |a| vec![words(a[0], 1, How::Write)],
        run: store,
    },
    Builtin {
        name: "gb_probe_read16",
        params: 3,
        touches: |a| vec![bytes(a[0], a[1], 16, How::Read)],
        run: probe::read,
    },
    Builtin {
        name: "gb_probe_read4",
        params: 3,
        touches: |a| vec![bytes(a[0], a[1], 4, How::Read)],
        run: probe::read,
    },
    Builtin {
        name: "gb_probe_quantised",
        params: 3,
        touches: |a| vec![bytes(a[0], a[1], 18, How::Read)],
        run: probe::read,
    },
    Builtin {
        name: "gb_probe_random16",
        params: 5,
        touches: |a| vec![bytes(a[0], a[1], 16, How::Read)],
        run: probe::random16,
    },
    Builtin {
        name: "gb_probe_random_piece",
        params: 5,
        touches: |a| vec![bytes(a[0], a[1], 2 << 20, How::Read)],
        run: probe::random_piece,
    },
    Builtin {
        name: "gb_probe_write16",
        params: 3,
        touches: |a| vec![bytes(a[0], a[1], 16, How::Write)],
        run: probe::write,
    },
    Builtin {
        name: "gb_probe_reread16",
        params: 4,
        touches: |a| vec![bytes(a[0], a[1], 16, How::Read)],
        run: probe::reread,
    },
    Builtin {
        name: "gb_probe_busy",
        params: 4,
        touches: |a| vec![bytes(a[0], a[1], 16, How::Read)],
        run: probe::busy,
    },
    Builtin {
        name: "greenboost_scan",
        params: 5,
        touches: shim::scan_touches,
        run: shim::scan,
    },
    Builtin {
        name: "greenboost_hash",
        params: 3,
        touches: shim::hash_touches,
        run: shim::hash,
    },
];

pub(crate) fn find(name: &str) -> Option<&'static Builtin> {
    BUILTINS.iter().find(|b| b.name == name)
}

impl Builtin {
    pub(crate) fn run(&self, site: &Site, args: &[u64]) -> Result<(), Fault> {
        let mut reached = Vec::new();
        for touch in (self.touches)(args) {
            reached.push(reach(site, &touch)?);
        }
        (self.run)(site, args, &reached)
    }
}

fn words(va: u64, n: u64, how: How) -> Touch {
    Touch {
        va,
        len: n.saturating_mul(8),
        how,
    }
}

/// `n` units of `unit` bytes, as whole words.
fn bytes(va: u64, n: u64, unit: u64, how: How) -> Touch {
    Touch {
        va,
        len: n.saturating_mul(unit).next_multiple_of(8),
        how,
    }
}

fn reach(site: &Site, touch: &Touch) -> Result<Vec<Segment>, Fault> {
    if touch.len == 0 {
        return Ok(Vec::new());
    }
    if !touch.va.is_multiple_of(8) {
        return Err(Fault {
            va: touch.va,
            write: touch.how != How::Read,
            why: MISALIGNED,
        });
    }
    site.reach(touch.va, touch.len, touch.how, Who::Kernel)
}

/// splitmix64: a word that tells its index and seed.
fn mix(x: u64) -> u64 {
    let z = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Every word of the segments in order: index and place.
fn each(segments: &[Segment], mut act: impl FnMut(u64, *mut u64)) {
    let mut index = 0;
    for segment in segments {
        let at = segment.ptr.cast::<u64>();
        for i in 0..segment.len / 8 {
            // SAFETY: the segment holds that many words; its start is aligned, as the address and
            // every border of a mapping are.
            act(index + i, unsafe { at.add(i as usize) });
        }
        index += segment.len / 8;
    }
}

/// One word that several kernels may add to at once.
fn atomic_add(at: &[Segment], value: u64) {
    if let Some(segment) = at.first() {
        // SAFETY: an aligned word inside the segment; atomic, as on the device.
        unsafe { AtomicU64::from_ptr(segment.ptr.cast()) }.fetch_add(value, Ordering::Relaxed);
    }
}

fn fill(_: &Site, a: &[u64], m: &[Vec<Segment>]) -> Result<(), Fault> {
    // SAFETY: `each` gives places inside segments that live during the call. That nobody else uses
    // them is up to the simulated program, as on a device.
    each(&m[0], |i, p| unsafe { p.write(mix(a[2].wrapping_add(i))) });
    Ok(())
}

fn check(_: &Site, a: &[u64], m: &[Vec<Segment>]) -> Result<(), Fault> {
    let mut wrong = 0;
    each(&m[0], |i, p| {
        // SAFETY: as in `fill`.
        wrong += u64::from(unsafe { p.read() } != mix(a[2].wrapping_add(i)));
    });
    atomic_add(&m[1], wrong);
    Ok(())
}

fn add(_: &Site, a: &[u64], m: &[Vec<Segment>]) -> Result<(), Fault> {
    // SAFETY: as in `fill`.
    each(&m[0], |_, p| unsafe {
        p.write(p.read().wrapping_add(a[2]))
    });
    Ok(())
}

fn axpy(_: &Site, a: &[u64], m: &[Vec<Segment>]) -> Result<(), Fault> {
    zip(&m[0], &m[1], |dst, src, len| {
        let (dst, src) = (dst.ptr.cast::<u64>(), src.ptr.cast::<u64>());
        for i in 0..(len / 8) as usize {
            // SAFETY: both pieces hold `len` bytes; otherwise as in `fill`.
            unsafe {
                let sum = dst
                    .add(i)
                    .read()
                    .wrapping_mul(a[3])
                    .wrapping_add(src.add(i).read());
                dst.add(i).write(sum);
            }
        }
    });
    Ok(())
}

fn sum(_: &Site, _: &[u64], m: &[Vec<Segment>]) -> Result<(), Fault> {
    let mut total = 0u64;
    each(&m[0], |_, p| {
        // SAFETY: as in `fill`.
        total = total.wrapping_add(unsafe { p.read() });
    });
    atomic_add(&m[1], total);
    Ok(())
}

/// Busy as the device would be; the CPU is left to others meanwhile.
fn spin(_: &Site, a: &[u64], _: &[Vec<Segment>]) -> Result<(), Fault> {
    let until = Instant::now() + Duration::from_nanos(a[0]);
    std::thread::sleep(until.saturating_duration_since(Instant::now()));
    Ok(())
}

/// `*to = word`: leaves its argument, which may be an address, in memory.
fn store(_: &Site, a: &[u64], m: &[Vec<Segment>]) -> Result<(), Fault> {
    // SAFETY: as in `fill`.
    each(&m[0], |_, p| unsafe { p.write(a[1]) });
    Ok(())
}

fn deref(site: &Site, a: &[u64], m: &[Vec<Segment>]) -> Result<(), Fault> {
    let mut table = Vec::new();
    // SAFETY: as in `fill`.
    each(&m[0], |_, p| table.push(unsafe { p.read() }));
    // From here on the operation is known to touch what the table names.
    let ranges: Vec<(u64, u64)> = table.iter().map(|va| (*va, va.saturating_add(8))).collect();
    world().flight.also(site.ticket, "gb_deref", &ranges);
    for va in table {
        let word = reach(site, &words(va, 1, How::Write))?;
        // SAFETY: as in `fill`.
        each(&word, |_, p| unsafe {
            p.write(p.read().wrapping_add(a[2]))
        });
    }
    Ok(())
}
