//! What is written: bytes that no disk can compress or deduplicate, and that tell where they belong. Pure.

/// The border at which every block carries its place.
pub const BLOCK: usize = 4096;
/// What was written when is known by pieces of this size: that of the smallest request.
pub const UNIT: usize = 128 << 10;
/// After so many units the bytes between the stamps repeat.
const PERIOD: usize = 8;

/// What a unit holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// How often it was written.
    pub generation: u32,
    /// Which unit of the period lies between the stamps.
    pub phase: u8,
}

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
        let words = (0..(PERIOD * UNIT) as u64 / 8).map(|i| mix(seed.wrapping_add(i)));
        Data {
            base: words.flat_map(u64::to_le_bytes).collect(),
        }
    }

    /// The phase of the n-th unit of a buffer that was filled as the `buffer`-th.
    pub fn phase(buffer: usize, n: usize) -> u8 {
        ((buffer + n) % PERIOD) as u8
    }

    fn unit(&self, phase: u8) -> &[u8] {
        &self.base[usize::from(phase) * UNIT..][..UNIT]
    }

    /// All that is not stamps, once for as long as a buffer is only written from: where it goes does not matter to it.
    pub fn fill(&self, buffer: usize, bytes: &mut [u8]) {
        for (n, piece) in bytes.chunks_mut(UNIT).enumerate() {
            piece.copy_from_slice(&self.unit(Self::phase(buffer, n))[..piece.len()]);
        }
    }

    /// Marks a unit for its place.
    pub fn stamp(&self, at: u64, generation: u32, unit: &mut [u8]) {
        for (i, block) in unit.chunks_mut(BLOCK).enumerate() {
            block[..16].copy_from_slice(&stamp(at + (i * BLOCK) as u64, generation));
        }
    }

    /// Whether this unit came from its place, by its first stamp alone: little enough to do while a disk is timed.
    pub fn is_of(&self, at: u64, written: Written, unit: &[u8]) -> bool {
        unit[..16] == stamp(at, written.generation)
    }

    /// Whether every byte of a unit is right; or the place of the first block that is not.
    pub fn check(&self, at: u64, written: Written, unit: &[u8]) -> Result<(), u64> {
        let right = self.unit(written.phase).chunks(BLOCK);
        for (i, (block, right)) in unit.chunks(BLOCK).zip(right).enumerate() {
            let place = at + (i * BLOCK) as u64;
            if block[..16] != stamp(place, written.generation) || block[16..] != right[16..] {
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
        let mut buffer = vec![0; 2 * UNIT];
        data.fill(7, &mut buffer);
        let (at, unit) = (3 * UNIT as u64, &mut buffer[UNIT..]);
        data.stamp(at, 5, unit);
        let written = Written {
            generation: 5,
            // Over the end of the period.
            phase: 0,
        };
        assert_eq!(Data::phase(7, 1), 0);
        assert_eq!(data.check(at, written, unit), Ok(()));
        let older = Written {
            generation: 4,
            ..written
        };
        assert_eq!(data.check(at, older, unit), Err(at), "an older generation");
        let other = Written {
            phase: 1,
            ..written
        };
        assert_eq!(data.check(at, other, unit), Err(at), "another's bytes");
        assert_eq!(data.check(at + 4096, written, unit), Err(at + 4096));
        assert!(data.is_of(at, written, unit));
        assert!(!data.is_of(at, older, unit) && !data.is_of(at + 4096, written, unit));
        for (byte, block) in [(0, 0), (BLOCK + 17, 1), (UNIT - 1, UNIT / BLOCK - 1)] {
            unit[byte] ^= 1;
            let place = at + (block * BLOCK) as u64;
            assert_eq!(data.check(at, written, unit), Err(place));
            unit[byte] ^= 1;
        }
        data.stamp(at, 6, unit);
        let next = Written {
            generation: 6,
            ..written
        };
        assert_eq!(data.check(at, next, unit), Ok(()));
    }

    #[test]
    fn no_two_blocks_alike_and_no_byte_more_frequent() {
        let data = Data::new(1);
        let mut buffer = vec![0; 2 << 20];
        data.fill(0, &mut buffer);
        for (n, unit) in buffer.chunks_mut(UNIT).enumerate() {
            data.stamp((n * UNIT) as u64, 1, unit);
        }
        let blocks: std::collections::HashSet<_> = buffer.chunks(BLOCK).collect();
        assert_eq!(blocks.len(), buffer.len() / BLOCK);
        let mut counts = [0u32; 256];
        buffer.iter().for_each(|b| counts[usize::from(*b)] += 1);
        let expected = buffer.len() as u32 / 256;
        assert!(counts.iter().all(|n| n.abs_diff(expected) < expected / 10));
    }
}
