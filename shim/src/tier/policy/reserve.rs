//! What stays free of VRAM for allocations that are too small for a range of their own.

/// What small allocations have needed lately.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reserve {
    live: u64,
    peak: u64,
}

impl Reserve {
    /// So many bytes of small allocations are live now.
    pub fn live(&mut self, bytes: u64) {
        self.live = bytes;
        self.peak = self.peak.max(bytes);
    }

    /// A step is over: peaks of long ago count less.
    pub fn step(&mut self) {
        self.peak -= (self.peak - self.live).div_ceil(64);
    }

    /// Bytes to leave free under a limit: what the last peaks need again and a quarter of it besides, at least 4 MiB, at
    /// most a 32nd of the limit.
    pub fn bytes(&self, vram_limit: u64) -> u64 {
        (self.peak - self.live + self.peak / 4)
            .max(4 << 20)
            .min(vram_limit / 32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn it_follows_the_peaks() {
        let mut reserve = Reserve::default();
        assert_eq!(reserve.bytes(64 << 30), 4 * MIB);
        reserve.live(400 * MIB);
        assert_eq!(reserve.bytes(64 << 30), 100 * MIB);
        reserve.live(100 * MIB);
        assert_eq!(reserve.bytes(64 << 30), 400 * MIB);
        // Long after, as much as is live is what a peak may be.
        (0..2000).for_each(|_| reserve.step());
        assert_eq!(reserve.bytes(64 << 30), 25 * MIB);
    }

    #[test]
    fn it_is_never_much() {
        let mut reserve = Reserve::default();
        reserve.live(8 << 30);
        assert_eq!(reserve.bytes(4 << 30), 128 * MIB);
        assert_eq!(reserve.bytes(32 * MIB), MIB);
    }
}
