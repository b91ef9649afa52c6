//! Host memory that a driver may be given: it is never freed, so no copy that is still queued can outlive it.

/// A block of ordinary memory, aligned to a page.
#[derive(Clone, Copy, Debug)]
pub struct Host {
    /// Where it is.
    pub address: u64,
    size: usize,
}

impl Host {
    /// Zeroes.
    pub fn new(size: usize) -> Host {
        let pages = size.div_ceil(4096).max(1);
        let block: &'static mut [[u8; 4096]] = vec![[0u8; 4096]; pages + 1].leak();
        let start = block.as_mut_ptr().cast::<u8>();
        // Touched now, so that no copy measures page faults.
        for page in block.iter_mut() {
            page[0] = 0;
        }
        let address = (start as u64).next_multiple_of(4096);
        Host { address, size }
    }

    /// The `i`-th 64-bit word.
    pub fn word(self, i: usize) -> u64 {
        assert!((i + 1) * 8 <= self.size);
        // SAFETY: inside the block, which is never freed; the device may write it meanwhile, hence volatile.
        unsafe { (self.address as *const u64).add(i).read_volatile() }
    }

    /// The `i`-th 32-bit word.
    pub fn half(self, i: usize) -> u32 {
        (self.word(i / 2) >> (32 * (i % 2))) as u32
    }

    /// Sets the `i`-th 64-bit word.
    pub fn set(self, i: usize, word: u64) {
        assert!((i + 1) * 8 <= self.size);
        // SAFETY: as in `word`.
        unsafe { (self.address as *mut u64).add(i).write_volatile(word) }
    }
}
