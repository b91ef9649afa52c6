//! Random operations on several streams, from several threads, each on blocks of its own, and all mirrored in the models.

use super::block::{Block, By, Kernels, Shape};
use super::driver::{Driver, Result};

/// Copies and sets of up to this many bytes: more than one chunk of memory.
const LONGEST: usize = 5 << 20;

/// A generator whose sequence is known: a failure can be repeated.
pub struct Random(u64);

impl Random {
    /// Starts a sequence.
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    /// A number below `n`, which is not 0.
    pub fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(1);
        (super::block::mix(self.0) % n as u64) as usize
    }
}

/// One thread's share: `rounds` operations on these blocks. Returns how many bytes were found wrong on the way.
pub fn run(
    driver: &Driver,
    kernels: &Kernels,
    blocks: &mut [Block],
    random: &mut Random,
    rounds: usize,
) -> Result<usize> {
    driver.enter()?;
    let mut stream = driver.stream()?;
    let mut wrong = 0;
    if blocks.len() < 2 {
        return Ok(0);
    }
    for round in 0..rounds {
        let target = random.below(blocks.len());
        let source = (target + 1 + random.below(blocks.len() - 1)) % blocks.len();
        let [block, other] = blocks
            .get_disjoint_mut([target, source])
            .expect("two different blocks");
        let size = block.model.len();
        let length = 1 + random.below(size.min(LONGEST));
        let to = random.below(size - length + 1);
        // Every few rounds the synchronous form; it knows nothing of the stream, so both wait for each other.
        let is_synchronous = round % 5 == 4;
        if is_synchronous {
            stream.synchronize()?;
        }
        let by = |stream| match is_synchronous {
            true => By::Driver(driver),
            false => By::Stream(stream),
        };
        match random.below(9) {
            0 => block.fill(&mut stream, kernels, random.below(1 << 30) as u64)?,
            1 => block.add(&stream, kernels, 1 + random.below(1 << 20) as u64)?,
            2 => block.axpy(&stream, kernels, other, 3)?,
            3 => {
                let bytes: Vec<u8> = (0..length).map(|i| (i ^ round) as u8).collect();
                block.model[to..][..length].copy_from_slice(&bytes);
                if is_synchronous {
                    driver.write(block.at(to), &bytes)?;
                } else {
                    stream.write(block.at(to), bytes)?;
                }
            }
            4 => {
                let length = length.min(other.model.len());
                let from = random.below(other.model.len() - length + 1);
                block.copy_from(&by(&stream), to, (other, from), length)?;
            }
            5 => block.set(&by(&stream), to, length, round as u8)?,
            6 => {
                let (to, words) = (to / 4 * 4, length / 4);
                let value = random.below(1 << 32) as u32;
                for word in block.model[to..][..words * 4].chunks_exact_mut(4) {
                    word.copy_from_slice(&value.to_le_bytes());
                }
                if words > 0 {
                    stream.set_words(block.at(to), value, words)?;
                }
            }
            7 => {
                let found = stream.read(block.at(to), length)?;
                let expected = &block.model[to..][..length];
                wrong += found.iter().zip(expected).filter(|(f, e)| f != e).count();
            }
            _ => {
                // Rows of 4096 + 100 and 8192 + 36 bytes: they drift over every border there is.
                let rows = |bytes: usize, pitch: usize| bytes.saturating_sub(2048) / pitch;
                let (from_pitch, to_pitch) = (4196, 8228);
                let height = rows(size, to_pitch)
                    .min(rows(other.model.len(), from_pitch))
                    .min(1 + length / 2048);
                let shape = Shape {
                    from_pitch,
                    to_pitch,
                    width: 2048,
                    height,
                };
                if height > 0 {
                    block.copy_rows_from(&by(&stream), other, &shape)?;
                }
            }
        }
        if is_synchronous {
            // Synchronous copies inside the device return early; the default stream knows when they are done.
            driver.default_stream().synchronize()?;
        }
    }
    stream.synchronize()?;
    Ok(wrong)
}
