//! What is written: bytes that no disk can compress or deduplicate, and that tell where they belong. Pure.

/// The border at which every block carries its place.
pub const BLOCK: usize = 4096;
/// After this the bytes between the stamps repeat.
const PERIOD: usize = 1 << 20;

/// Where the bytes come from.
pub struct Data {
    base: Vec<u8>,
}

fn mix(x: u64) -> u64 {
    let z = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// What a block at this place begins with, after it was written for the n-th time.
fn stamp(at: u64, generation: u32) -> [u8; 16] {
    let first = mix(at);
    let second = mix(first ^ u64::from(generation));
    let mut stamp = [0; 16];
    stamp[..8].copy_from_slice(&first.to_le_bytes());
    stamp[8..].copy_from_slice(&second.to_le_bytes());
    stamp
}

impl Data {
    /// Other bytes for every seed.
    pub fn new(seed: u64) -> Data {
        let words = (0..PERIOD as u64 / 8).map(|i| mix(seed.wrapping_add(i)));
        Data {
            base: words.flat_map(u64::to_le_bytes).collect(),
        }
    }

    /// Where in the period a place lies: buffers of one phase differ in their stamps only.
    pub fn phase(at: u64) -> u64 {
        at % PERIOD as u64
    }

    /// The bytes of this place. `at` and the length are multiples of [`BLOCK`].
    pub fn fill(&self, at: u64, generation: u32, buffer: &mut [u8]) {
        let mut from = Self::phase(at) as usize;
        let mut rest = &mut buffer[..];
        while !rest.is_empty() {
            let length = rest.len().min(PERIOD - from);
            rest[..length].copy_from_slice(&self.base[from..from + length]);
            rest = &mut rest[length..];
            from = 0;
        }
        self.restamp(at, generation, buffer);
    }

    /// As `fill`, in a buffer that already holds bytes of this phase.
    pub fn restamp(&self, at: u64, generation: u32, buffer: &mut [u8]) {
        for (i, block) in buffer.chunks_mut(BLOCK).enumerate() {
            block[..16].copy_from_slice(&stamp(at + (i * BLOCK) as u64, generation));
        }
    }

    /// Whether every block came from its place, by the stamps alone; or the place of the first that did not.
    pub fn check_stamps(&self, at: u64, generation: u32, buffer: &[u8]) -> Result<(), u64> {
        for (i, block) in buffer.chunks(BLOCK).enumerate() {
            let place = at + (i * BLOCK) as u64;
            if block[..16] != stamp(place, generation) {
                return Err(place);
            }
        }
        Ok(())
    }

    /// Whether every byte is right; or the place of the first block that is not.
    pub fn check(&self, at: u64, generation: u32, buffer: &[u8]) -> Result<(), u64> {
        self.check_stamps(at, generation, buffer)?;
        for (i, block) in buffer.chunks(BLOCK).enumerate() {
            let place = at + (i * BLOCK) as u64;
            let from = Self::phase(place) as usize;
            if block[16..] != self.base[from + 16..from + block.len()] {
                return Err(place);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_counts() {
        let data = Data::new(7);
        let mut buffer = vec![0; 4 * BLOCK];
        // Over the end of the period.
        let at = (3 * PERIOD - 2 * BLOCK) as u64;
        data.fill(at, 5, &mut buffer);
        assert_eq!(data.check(at, 5, &buffer), Ok(()));
        assert_eq!(data.check(at, 4, &buffer), Err(at), "an older generation");
        assert_eq!(data.check(at + 4096, 5, &buffer), Err(at + 4096));
        for (byte, block) in [(0, 0), (BLOCK + 17, 1), (4 * BLOCK - 1, 3)] {
            buffer[byte] ^= 1;
            assert_eq!(data.check(at, 5, &buffer), Err(at + block * 4096));
            buffer[byte] ^= 1;
        }
        data.restamp(at, 6, &mut buffer);
        let mut again = vec![0; 4 * BLOCK];
        data.fill(at, 6, &mut again);
        assert!(buffer == again);
    }

    #[test]
    fn no_two_blocks_alike_and_no_byte_more_frequent() {
        let data = Data::new(1);
        let mut buffer = vec![0; 2 << 20];
        data.fill(0, 1, &mut buffer);
        let blocks: std::collections::HashSet<_> = buffer.chunks(BLOCK).collect();
        assert_eq!(blocks.len(), buffer.len() / BLOCK);
        let mut counts = [0u32; 256];
        buffer.iter().for_each(|b| counts[usize::from(*b)] += 1);
        let expected = buffer.len() as u32 / 256;
        assert!(counts.iter().all(|n| n.abs_diff(expected) < expected / 10));
    }
}
