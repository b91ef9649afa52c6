//! Physical memory: memfd objects, charged to a device or to the host while they live.
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use greenboost_abi::CUDA_ERROR_OUT_OF_MEMORY;

use crate::abi::Res;
use crate::config::{MAX_DEVICES, config};
use crate::{shared, world};

/// Granularity of physical objects and of everything that is mapped.
pub(crate) const GRANULE: u64 = 2 << 20;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Place {
    Device(usize),
    Host,
}

/// One physical object. Its bytes are reached through `base` whatever is mapped where.
pub(crate) struct Phys {
    pub id: u64,
    pub size: u64,
    pub place: Place,
    pub base: *mut u8,
    /// Kept only where the program may export it: descriptors are scarce.
    pub fd: Option<OwnedFd>,
    charged: bool,
}

// SAFETY: `base` is a mapping owned by this object; who may touch its bytes when is the simulated program's affair.
unsafe impl Send for Phys {}
// SAFETY: as above.
unsafe impl Sync for Phys {}

static VRAM: [AtomicU64; MAX_DEVICES] = [const { AtomicU64::new(0) }; MAX_DEVICES];
static HOST: AtomicU64 = AtomicU64::new(0);

/// Bytes of the device that this process may still take.
pub(crate) fn free(device: usize) -> u64 {
    config()
        .vram
        .saturating_sub(config().taken)
        .saturating_sub(VRAM[device].load(Ordering::Relaxed))
        .saturating_sub(shared::others(device))
}

/// Bytes of the device that this process holds.
pub(crate) fn used(device: usize) -> u64 {
    VRAM[device].load(Ordering::Relaxed)
}

pub(crate) fn open_shared() {
    shared::open();
}

/// Takes the bytes if there are as many: checked and added in one step.
pub(crate) fn charge(place: Place, size: u64) -> Res {
    let (counter, room) = match place {
        Place::Device(d) => (&VRAM[d], config().vram.saturating_sub(config().taken)),
        Place::Host => (&HOST, config().host.unwrap_or(u64::MAX)),
    };
    let _lock = matches!(place, Place::Device(_)).then(shared::lock);
    let room = match place {
        Place::Device(d) => room.saturating_sub(shared::others(d)),
        Place::Host => room,
    };
    counter
        .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
            used.checked_add(size).filter(|sum| *sum <= room)
        })
        .map_err(|_| CUDA_ERROR_OUT_OF_MEMORY)?;
    publish(place);
    Ok(())
}

pub(crate) fn discharge(place: Place, size: u64) {
    match place {
        Place::Device(d) => VRAM[d].fetch_sub(size, Ordering::Relaxed),
        Place::Host => HOST.fetch_sub(size, Ordering::Relaxed),
    };
    publish(place);
}

fn publish(place: Place) {
    if let Place::Device(d) = place {
        shared::publish(d, VRAM[d].load(Ordering::Relaxed));
    }
}

impl Phys {
    /// A new object of zeroes.
    pub(crate) fn new(place: Place, size: u64, exportable: bool) -> Res<Arc<Phys>> {
        charge(place, size)?;
        let name = match place {
            Place::Device(d) => format!("fakecuda-d{d}\0"),
            Place::Host => "fakecuda-h\0".to_owned(),
        };
        // SAFETY: the name is terminated.
        let fd = unsafe { libc::memfd_create(name.as_ptr().cast(), libc::MFD_CLOEXEC) };
        if fd < 0 {
            discharge(place, size);
            return Err(CUDA_ERROR_OUT_OF_MEMORY);
        }
        // SAFETY: a fresh descriptor that nobody else owns.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: plain call on an owned descriptor.
        if unsafe { libc::ftruncate(fd.as_raw_fd(), size as libc::off_t) } != 0 {
            discharge(place, size);
            return Err(CUDA_ERROR_OUT_OF_MEMORY);
        }
        Phys::around(place, size, fd, exportable, true)
    }

    /// An object that another process (or an earlier handle) made; it is charged where it was made.
    pub(crate) fn imported(place: Place, size: u64, fd: OwnedFd) -> Res<Arc<Phys>> {
        Phys::around(place, size, fd, true, false)
    }

    fn around(place: Place, size: u64, fd: OwnedFd, keep: bool, charged: bool) -> Res<Arc<Phys>> {
        // SAFETY: a new shared mapping of a descriptor of at least this size, at an address the kernel picks.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                size as usize,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                fd.as_raw_fd(),
                0,
            )
        };
        if base == libc::MAP_FAILED {
            if charged {
                discharge(place, size);
            }
            return Err(CUDA_ERROR_OUT_OF_MEMORY);
        }
        let fd = keep.then_some(fd);
        Ok(Arc::new(Phys {
            id: world::serial(),
            size,
            place,
            base: base.cast(),
            fd,
            charged,
        }))
    }
}

impl Phys {
    /// The descriptor's number; -1 where none is kept.
    pub(crate) fn descriptor(&self) -> i64 {
        self.fd.as_ref().map_or(-1, |fd| fd.as_raw_fd().into())
    }
}

impl Drop for Phys {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `around`, which nobody can reach any more.
        unsafe { libc::munmap(self.base.cast(), self.size as usize) };
        if self.charged {
            discharge(self.place, self.size);
        }
    }
}
