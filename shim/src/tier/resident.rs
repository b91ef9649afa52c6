//! Which of the program's own pages are in RAM.

use std::ffi::c_void;

const PAGE: u64 = 4096;
/// Pages that are asked about in one call.
const PIECE: u64 = 1 << 16;

/// Bytes of these pages that are not in RAM: not touched yet, swapped out, or of a file that is not cached. Pinning them
/// takes that much more of the machine. 0 where nothing is mapped: the driver refuses that.
///
/// `start` and `bytes` are multiples of 4096.
pub fn missing(start: u64, bytes: u64) -> u64 {
    let mut present = vec![0u8; (bytes / PAGE).min(PIECE) as usize];
    let mut missing = 0;
    let mut at = 0;
    while at < bytes {
        let piece = (bytes - at).min(PIECE * PAGE);
        let pages = (piece / PAGE) as usize;
        // SAFETY: writes one byte for each page, for which there is room; any range of addresses may be asked about.
        let code = unsafe {
            libc::mincore(
                (start + at) as *mut c_void,
                piece as usize,
                present.as_mut_ptr(),
            )
        };
        if code != 0 {
            return 0;
        }
        missing += present[..pages].iter().filter(|p| **p & 1 == 0).count() as u64 * PAGE;
        at += piece;
    }
    missing
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn touched_pages_are_not_missing() {
        let bytes = 100 * PAGE;
        // SAFETY: a new mapping, unmapped at the end.
        unsafe {
            let at = libc::mmap(
                std::ptr::null_mut(),
                bytes as usize,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            );
            libc::madvise(at, bytes as usize, libc::MADV_NOHUGEPAGE);
            let start = at as u64;
            assert_eq!(missing(start, bytes), bytes);
            for page in 0..30 {
                ((start + page * PAGE) as *mut u8).write_volatile(1);
            }
            assert_eq!(missing(start, bytes), bytes - 30 * PAGE);
            assert_eq!(missing(start, 30 * PAGE), 0);
            libc::munmap(at, bytes as usize);
            assert_eq!(missing(start, bytes), 0);
        }
    }
}
