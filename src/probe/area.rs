//! Host memory of our own, page by page as we want it.

use std::io;
use std::ptr;

use libc::{MADV_HUGEPAGE, MADV_NOHUGEPAGE, MADV_POPULATE_WRITE, MAP_ANONYMOUS, MAP_PRIVATE};

/// Huge pages start at such borders.
const HUGE: usize = 2 << 20;

/// Anonymous memory, zeroed, at a border of 2 MiB.
pub struct Area {
    mapping: *mut u8,
    mapped: usize,
    start: *mut u8,
    len: usize,
}

// SAFETY: it owns its memory, as a Vec does.
unsafe impl Send for Area {}
// SAFETY: as above; shared references only read.
unsafe impl Sync for Area {}

impl Area {
    /// Reserves so many bytes; pages come when they are touched.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn new(len: usize, huge_pages: bool) -> io::Result<Area> {
        let mapped = len.max(1).next_multiple_of(HUGE) + HUGE;
        // SAFETY: a fresh private mapping, which nothing else knows.
        let mapping = unsafe {
            libc::mmap(
                ptr::null_mut(),
                mapped,
                libc::PROT_READ | libc::PROT_WRITE,
                MAP_PRIVATE | MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if mapping == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let mapping = mapping.cast::<u8>();
        let start = mapping.wrapping_add(mapping.align_offset(HUGE));
        let advice = if huge_pages {
            MADV_HUGEPAGE
        } else {
            MADV_NOHUGEPAGE
        };
        // A kernel without huge pages has small ones: slower, not wrong.
        // SAFETY: inside the mapping.
        unsafe { libc::madvise(start.cast(), mapped - HUGE, advice) };
        Ok(Area {
            mapping,
            mapped,
            start,
            len,
        })
    }

    /// Gets all pages of an area that nobody has written to, by so many threads at once.
    ///
    /// # Errors
    /// When memory is out.
    pub fn populate(&self, threads: usize) -> io::Result<()> {
        let part = self.len.div_ceil(threads.max(1)).next_multiple_of(HUGE);
        let end = self.len.next_multiple_of(HUGE);
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..end)
                .step_by(part)
                .map(|from| {
                    let length = part.min(end - from);
                    scope.spawn(move || {
                        let start = self.start.wrapping_add(from);
                        // SAFETY: inside the mapping; touching pages changes nothing that anybody sees.
                        let code =
                            unsafe { libc::madvise(start.cast(), length, MADV_POPULATE_WRITE) };
                        match io::Error::last_os_error() {
                            _ if code == 0 => Ok(()),
                            // A kernel before 5.14 does not know how: page by page, then.
                            e if e.raw_os_error() == Some(libc::EINVAL) => {
                                for at in (0..length).step_by(4096) {
                                    // SAFETY: inside the mapping, in which nothing was written yet.
                                    unsafe { start.wrapping_add(at).write_volatile(0) };
                                }
                                Ok(())
                            }
                            e => Err(e),
                        }
                    })
                })
                .collect();
            workers.into_iter().try_for_each(|worker| {
                worker
                    .join()
                    .unwrap_or_else(|_| Err(io::Error::other("a thread failed")))
            })
        })
    }

    /// Asks for pages of this node, as far as the kernel wants to.
    pub fn prefer_node(&self, node: u32) {
        const MPOL_PREFERRED: libc::c_ulong = 1;
        if node >= 64 {
            return;
        }
        let mask: u64 = 1 << node;
        // SAFETY: the range is ours, the mask lives through the call; a refusal changes nothing.
        unsafe {
            libc::syscall(
                libc::SYS_mbind,
                self.start,
                self.mapped - HUGE,
                MPOL_PREFERRED,
                &raw const mask,
                65 as libc::c_ulong,
                0 as libc::c_ulong,
            );
        }
    }

    /// The same memory under a second owner that does not unmap it.
    ///
    /// # Safety
    /// It must not be used after this is gone.
    pub unsafe fn alias(&self) -> Area {
        Area {
            mapping: self.mapping,
            mapped: 0,
            start: self.start,
            len: self.len,
        }
    }

    /// Where it starts.
    pub fn start(&self) -> *mut u8 {
        self.start
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// The memory.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: mapped as long as we live, and borrowed alone.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.len) }
    }

    /// The memory as words.
    pub fn words(&self) -> &[u64] {
        // SAFETY: mapped as long as we live, and whoever writes through the pointer does not while this is borrowed; the start is aligned to far more than a word, and all bits are words.
        unsafe { std::slice::from_raw_parts(self.start.cast(), self.len / 8) }
    }
}

impl Drop for Area {
    fn drop(&mut self) {
        if self.mapped == 0 {
            return;
        }
        // SAFETY: mapped by us; nobody has a reference any more.
        unsafe { libc::munmap(self.mapping.cast(), self.mapped) };
    }
}
