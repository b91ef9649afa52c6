//! Virtual ranges and the page table.
//!
//! A reservation is a real `PROT_NONE` mapping, so the CPU faults on device memory as on hardware.
//! A mapping joins a piece of it to one whole physical object; rights are per device and for the host.
use std::collections::BTreeMap;
use std::sync::Arc;

use greenboost_abi::{CUDA_ERROR_INVALID_VALUE, CUDA_ERROR_OUT_OF_MEMORY};

use crate::abi::Res;
use crate::config::MAX_DEVICES;
use crate::phys::{GRANULE, Phys, Place};
use crate::world::World;

pub(crate) const READ: u8 = 1;
pub(crate) const READ_WRITE: u8 = 3;

/// Where reservations of the program start: real drivers hand out addresses as low as this.
const LOW: u64 = 0x3_0200_0000;
const LOW_END: u64 = 0x100_0000_0000;

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Owner {
    /// `cuMemAddressReserve`
    Program,
    /// Memory that the driver maps itself: `cuMemAlloc`, pools, module globals.
    Driver,
}

#[derive(Clone, Copy)]
pub(crate) struct Reservation {
    pub size: u64,
    pub owner: Owner,
}

pub(crate) struct Mapping {
    pub size: u64,
    pub phys: Arc<Phys>,
    pub handle: u64,
    pub rights: [u8; MAX_DEVICES],
    pub host: u8,
}

pub(crate) struct Space {
    pub reservations: BTreeMap<u64, Reservation>,
    pub mappings: BTreeMap<u64, Mapping>,
}

/// A piece of memory as the CPU reaches it; keeps the object alive while an operation runs.
pub(crate) struct Segment {
    pub ptr: *mut u8,
    pub len: u64,
    pub place: Place,
    /// The object and the offset in it; for host memory 0 and the address.
    pub object: (u64, u64),
    _keep: Option<Arc<Phys>>,
}

// SAFETY: the pointer is good while `_keep` lives, from any thread.
unsafe impl Send for Segment {}

impl Segment {
    /// Host memory as the program named it.
    pub(crate) fn host(va: u64, len: u64) -> Segment {
        Segment {
            ptr: va as *mut u8,
            len,
            place: Place::Host,
            object: (0, va),
            _keep: None,
        }
    }
}

/// Why an address cannot be used.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fault {
    pub va: u64,
    pub write: bool,
    pub why: &'static str,
}

/// Who is asking: kernels need rights (or peer access), copies reach driver memory of any device.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Who {
    Kernel,
    Copy,
}

fn map_fixed(at: u64, size: u64, extra: i32) -> bool {
    // SAFETY: an anonymous inaccessible mapping; with NOREPLACE it takes nothing away, without it
    // it is used only on ranges that this room reserved.
    let got = unsafe {
        libc::mmap(
            at as *mut _,
            size as usize,
            libc::PROT_NONE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | extra,
            -1,
            0,
        )
    };
    if got == libc::MAP_FAILED {
        return false;
    }
    if got as u64 != at {
        // SAFETY: the mapping just made, which nobody knows.
        unsafe { libc::munmap(got, size as usize) };
        return false;
    }
    true
}

/// A reservation anywhere, trimmed to the alignment.
fn map_anywhere(size: u64, align: u64) -> Option<u64> {
    let span = size.checked_add(align)?;
    // SAFETY: an anonymous inaccessible mapping at an address the kernel picks.
    let got = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            span as usize,
            libc::PROT_NONE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            -1,
            0,
        )
    };
    if got == libc::MAP_FAILED {
        return None;
    }
    let (got, start) = (got as u64, (got as u64).next_multiple_of(align));
    let tail = got + span - (start + size);
    // SAFETY: the two ends of the mapping just made.
    unsafe {
        if start > got {
            libc::munmap(got as *mut _, (start - got) as usize);
        }
        if tail > 0 {
            libc::munmap((start + size) as *mut _, tail as usize);
        }
    }
    Some(start)
}

impl Space {
    pub(crate) const fn new() -> Space {
        Space {
            reservations: BTreeMap::new(),
            mappings: BTreeMap::new(),
        }
    }

    pub(crate) fn reserve(&mut self, size: u64, align: u64, hint: u64, owner: Owner) -> Res<u64> {
        let align = align.max(GRANULE);
        let start = self
            .try_hint(size, align, hint)
            .or_else(|| {
                (owner == Owner::Program)
                    .then(|| self.try_low(size, align))
                    .flatten()
            })
            .or_else(|| map_anywhere(size, align))
            .ok_or(CUDA_ERROR_OUT_OF_MEMORY)?;
        self.reservations.insert(start, Reservation { size, owner });
        Ok(start)
    }

    fn try_hint(&self, size: u64, align: u64, hint: u64) -> Option<u64> {
        (hint != 0
            && hint.is_multiple_of(align)
            && map_fixed(hint, size, libc::MAP_FIXED_NOREPLACE))
        .then_some(hint)
    }

    /// The lowest gap: addresses that were freed are soon used again, as on the real driver.
    fn try_low(&self, size: u64, align: u64) -> Option<u64> {
        let mut at = LOW.next_multiple_of(align);
        for (&start, r) in self.reservations.range(LOW..LOW_END) {
            if at + size <= start {
                break;
            }
            at = at.max(start + r.size).next_multiple_of(align);
        }
        (at + size <= LOW_END && map_fixed(at, size, libc::MAP_FIXED_NOREPLACE)).then_some(at)
    }

    pub(crate) fn unreserve(&mut self, start: u64) {
        if let Some(r) = self.reservations.remove(&start) {
            // SAFETY: the reservation's own pages, in which nothing is mapped any more.
            unsafe { libc::munmap(start as *mut _, r.size as usize) };
        }
    }

    pub(crate) fn reservation_of(&self, va: u64) -> Option<(u64, Reservation)> {
        let (&start, &r) = self.reservations.range(..=va).next_back()?;
        (va - start < r.size).then_some((start, r))
    }

    pub(crate) fn mapping_of(&self, va: u64) -> Option<(u64, &Mapping)> {
        let (&start, m) = self.mappings.range(..=va).next_back()?;
        (va - start < m.size).then_some((start, m))
    }

    /// Whether any mapping lies in `[start, end)`.
    pub(crate) fn occupied(&self, start: u64, end: u64) -> bool {
        self.mapping_of(start).is_some() || self.mappings.range(start..end).next().is_some()
    }

    /// The starts of the mappings in `[start, end)`, which may have holes but must not cut one (measured).
    pub(crate) fn whole(&self, start: u64, end: u64) -> Result<Vec<u64>, &'static str> {
        if self.mapping_of(start).is_some_and(|(at, _)| at != start) {
            return Err("starts inside a mapping");
        }
        if self
            .mapping_of(end - 1)
            .is_some_and(|(at, m)| at + m.size != end)
        {
            return Err("ends inside a mapping");
        }
        Ok(self.mappings.range(start..end).map(|(at, _)| *at).collect())
    }

    pub(crate) fn map(&mut self, start: u64, phys: Arc<Phys>, handle: u64) {
        let size = phys.size;
        self.mappings.insert(
            start,
            Mapping {
                size,
                phys,
                handle,
                rights: [0; MAX_DEVICES],
                host: 0,
            },
        );
    }

    pub(crate) fn unmap(&mut self, start: u64) -> Option<Mapping> {
        let m = self.mappings.remove(&start)?;
        if m.host != 0 {
            map_fixed(start, m.size, libc::MAP_FIXED);
        }
        Some(m)
    }

    /// Gives or takes the CPU's access to a mapping.
    pub(crate) fn set_host(&mut self, start: u64, rights: u8) -> Res {
        let Some(m) = self.mappings.get_mut(&start) else {
            return Err(CUDA_ERROR_INVALID_VALUE);
        };
        if rights == 0 {
            if m.host != 0 {
                map_fixed(start, m.size, libc::MAP_FIXED);
            }
        } else {
            let prot = if rights == READ_WRITE {
                libc::PROT_READ | libc::PROT_WRITE
            } else {
                libc::PROT_READ
            };
            // SAFETY: a second mapping of the object's pages (old length 0 duplicates a shared mapping),
            // placed over a part of a reservation that belongs to this mapping.
            let ok = unsafe {
                let got = libc::mremap(
                    m.phys.base.cast(),
                    0,
                    m.size as usize,
                    libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED,
                    start as *mut libc::c_void,
                );
                got != libc::MAP_FAILED && libc::mprotect(got, m.size as usize, prot) == 0
            };
            if !ok {
                map_fixed(start, m.size, libc::MAP_FIXED);
                return Err(CUDA_ERROR_OUT_OF_MEMORY);
            }
        }
        m.host = rights;
        Ok(())
    }
}

impl World {
    /// Whether the address is one that the driver gave out for the device: then a copy is a device copy.
    pub(crate) fn is_device_address(&self, va: u64) -> bool {
        self.space.reservation_of(va).is_some()
    }

    /// Whether any byte of the range is backed by host memory (mapped or pinned).
    pub(crate) fn host_backed(&self, va: u64, len: u64) -> bool {
        if !self.is_device_address(va) {
            return true;
        }
        let first = self.space.mapping_of(va).map_or(va, |(start, _)| start);
        self.space
            .mappings
            .range(first..va.saturating_add(len.max(1)))
            .any(|(_, m)| m.phys.place == Place::Host)
    }

    /// What `[va, va + len)` means to the device right now.
    pub(crate) fn translate(
        &self,
        device: usize,
        va: u64,
        len: u64,
        write: bool,
        who: Who,
    ) -> Result<Vec<Segment>, Fault> {
        let fault = |va, why| Fault { va, write, why };
        let end = va
            .checked_add(len)
            .ok_or(fault(va, "the range wraps around"))?;
        if self.space.reservation_of(va).is_none() {
            return match self.host_range(va) {
                Some((start, range)) if end <= start + range.size => {
                    Ok(vec![Segment::host(va, len)])
                }
                Some(_) => Err(fault(va, "the range leaves its pinned host memory")),
                None => Err(fault(va, "no such memory")),
            };
        }
        let mut segments = Vec::new();
        let mut at = va;
        while at < end {
            let Some((start, m)) = self.space.mapping_of(at) else {
                return Err(fault(at, "not mapped"));
            };
            if m.handle == 0 {
                self.inside_one_alloc(at, end)
                    .map_err(|why| fault(at, why))?;
            }
            if !self.allowed(m, device, write, who) {
                return Err(fault(at, "no access right"));
            }
            let stop = end.min(start + m.size);
            // SAFETY: `at` lies inside the mapping, so the offset lies inside the object.
            let ptr = unsafe { m.phys.base.add((at - start) as usize) };
            let object = (m.phys.id, at - start);
            segments.push(Segment {
                ptr,
                len: stop - at,
                place: m.phys.place,
                object,
                _keep: Some(m.phys.clone()),
            });
            at = stop;
        }
        Ok(segments)
    }

    fn allowed(&self, m: &Mapping, device: usize, write: bool, who: Who) -> bool {
        let need = if write { READ_WRITE } else { READ };
        if m.rights[device] & need == need {
            return true;
        }
        // Memory that the driver mapped itself: copies find it on any device, kernels through peer access.
        match m.phys.place {
            Place::Device(owner) if m.handle == 0 => {
                who == Who::Copy || self.peers_between(device, owner)
            }
            _ => false,
        }
    }
}
