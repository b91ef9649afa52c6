//! Requests by io_uring.
//!
//! The file is registered: whatever happens to its descriptor, requests go to this file. Memory is registered as far as RLIMIT_MEMLOCK allows; what lies outside is used all the same, and
//! pinned by the kernel for each request.

use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::AsRawFd;
use std::time::Duration;

use io_uring::types::{Fixed, SubmitArgs, Timespec};
use io_uring::{IoUring, opcode};

use super::{Direction, Disk, Piece};
use crate::tier::chunk::GRAIN;
use crate::tier::spill::area::Region;
use crate::tier::spill::file::Handle;

/// The kernel's limit of registered buffers (IORING_MAX_REG_BUFFERS).
const MOST: usize = 1 << 14;

/// A ring and its file.
pub struct Ring {
    ring: ManuallyDrop<IoUring>,
    _file: Handle,
    /// Where each registered buffer begins; each is a grain. Sorted.
    registered: Vec<(usize, u16)>,
}

impl Ring {
    /// A ring for so many requests at once. `regions` is what they will mostly use.
    ///
    /// # Errors
    /// When the kernel or a sandbox refuses.
    ///
    /// # Safety
    /// The regions stay mapped.
    pub unsafe fn new(file: Handle, depth: usize, regions: &[Region]) -> io::Result<Ring> {
        let entries = (depth as u32).next_power_of_two();
        let ring: IoUring = IoUring::builder().dontfork().build(entries)?;
        let fd = file.fd().ok_or(io::Error::from_raw_os_error(libc::EBADF))?;
        ring.submitter().register_files(&[fd])?;
        // Grain by grain: no request crosses the border of one, and as many as the limit allows can be had.
        let grains = regions.iter().flat_map(|region| {
            let end = region.address + region.len;
            (region.address..end)
                .step_by(GRAIN as usize)
                .filter(move |start| end - start >= GRAIN as usize)
        });
        let grains: Vec<usize> = grains.take(MOST).collect();
        let mut n = grains.len();
        while n > 0 {
            let buffers: Vec<libc::iovec> = grains[..n]
                .iter()
                .map(|start| libc::iovec {
                    iov_base: *start as *mut _,
                    iov_len: GRAIN as usize,
                })
                .collect();
            // SAFETY: they stay mapped, by the caller's promise.
            match unsafe { ring.submitter().register_buffers(&buffers) } {
                Ok(()) => break,
                // RLIMIT_MEMLOCK.
                Err(e) if e.raw_os_error() == Some(libc::ENOMEM) => n = n * 3 / 4,
                Err(_) => n = 0,
            }
        }
        let mut registered: Vec<(usize, u16)> = grains[..n].iter().copied().zip(0..).collect();
        registered.sort_unstable();
        Ok(Ring {
            ring: ManuallyDrop::new(ring),
            _file: file,
            registered,
        })
    }

    /// Bytes of the regions that are registered.
    pub fn registered(&self) -> u64 {
        self.registered.len() as u64 * GRAIN
    }

    /// The registered buffer that holds all of it.
    fn buffer(&self, piece: &Piece) -> Option<u16> {
        let after = self
            .registered
            .partition_point(|(start, _)| *start <= piece.address);
        let (start, index) = *self.registered.get(after.checked_sub(1)?)?;
        (piece.address + piece.len <= start + GRAIN as usize).then_some(index)
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // Where the table of descriptors is the program's the number may be another file's, which is not ours to close.
        let link = format!("/proc/thread-self/fd/{}", self.ring.as_raw_fd());
        let is_ours =
            std::fs::read_link(link).is_ok_and(|to| to.ends_with("anon_inode:[io_uring]"));
        if is_ours {
            // SAFETY: not used after this.
            unsafe { ManuallyDrop::drop(&mut self.ring) };
        }
    }
}

impl Disk for Ring {
    fn start(&mut self, id: u32, piece: Piece) -> io::Result<()> {
        let (file, len, at) = (Fixed(0), piece.len as u32, piece.at);
        let address = piece.address as *mut u8;
        let entry = match (piece.direction, self.buffer(&piece)) {
            (Direction::Read, Some(buffer)) => opcode::ReadFixed::new(file, address, len, buffer)
                .offset(at)
                .build(),
            (Direction::Write, Some(buffer)) => opcode::WriteFixed::new(file, address, len, buffer)
                .offset(at)
                .build(),
            (Direction::Read, None) => opcode::Read::new(file, address, len).offset(at).build(),
            (Direction::Write, None) => opcode::Write::new(file, address, len).offset(at).build(),
        };
        let entry = entry.user_data(u64::from(id));
        // SAFETY: the memory is left alone until the request has ended, by the promise of whoever began it.
        unsafe { self.ring.submission().push(&entry) }
            .map_err(|_| io::Error::from(io::ErrorKind::WouldBlock))?;
        // At once: the next one has to be hashed first. What is not taken now stays in the ring until the next call.
        let _ = self.ring.submit();
        Ok(())
    }

    fn collect(&mut self, patience: Duration, ended: &mut Vec<(u32, i32)>) -> io::Result<()> {
        let before = ended.len();
        let mut take = |ring: &mut IoUring| {
            ended.extend(
                ring.completion()
                    .map(|e| (e.user_data() as u32, e.result())),
            );
            ended.len() > before
        };
        let is_there = take(&mut self.ring);
        let wanted = usize::from(!is_there && !patience.is_zero());
        let entered = if wanted == 0 {
            self.ring.submit()
        } else if self.ring.params().is_feature_ext_arg() {
            let time = Timespec::from(patience);
            let args = SubmitArgs::new().timespec(&time);
            self.ring.submitter().submit_with_args(wanted, &args)
        } else {
            let submitted = self.ring.submit();
            let mut poll = libc::pollfd {
                fd: self.ring.as_raw_fd(),
                events: libc::POLLIN,
                revents: 0,
            };
            let patience = patience.as_millis().clamp(1, 1000) as i32;
            // SAFETY: one descriptor, in memory of ours.
            unsafe { libc::poll(&mut poll, 1, patience) };
            submitted
        };
        take(&mut self.ring);
        match entered {
            Ok(_) => Ok(()),
            // Time is over, or what was pushed stays in the ring and is submitted by the next call.
            Err(e) => match e.raw_os_error() {
                Some(libc::ETIME | libc::EINTR) => Ok(()),
                Some(libc::EAGAIN | libc::EBUSY) => {
                    std::thread::sleep(patience.min(super::AGAIN));
                    Ok(())
                }
                _ => Err(e),
            },
        }
    }
}
