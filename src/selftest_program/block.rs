//! Device memory and, beside it, what every byte of it should be.

use greenboost_abi::CUdeviceptr;

use super::driver::{Driver, Kernel, Result};
use super::stream::{Rows, Stream};

/// The kernels of `assets/selftest.ptx`.
#[derive(Clone, Copy)]
pub struct Kernels {
    fill: Kernel,
    check: Kernel,
    add: Kernel,
    axpy: Kernel,
    sum: Kernel,
    deref: Kernel,
}

impl Kernels {
    /// Looks them up.
    pub fn find(driver: &Driver) -> Result<Kernels> {
        Ok(Kernels {
            fill: driver.kernel(c"gb_fill")?,
            check: driver.kernel(c"gb_check")?,
            add: driver.kernel(c"gb_add")?,
            axpy: driver.kernel(c"gb_axpy")?,
            sum: driver.kernel(c"gb_sum")?,
            deref: driver.kernel(c"gb_deref")?,
        })
    }
}

/// The word that the kernels put at index `i` of a block that was filled with `seed`, for `x = seed + i`.
pub fn mix(x: u64) -> u64 {
    let z = x.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// One allocation and its model. Every operation is done to both.
pub struct Block {
    /// Where it is on the device.
    pub address: CUdeviceptr,
    /// What it should hold.
    pub model: Vec<u8>,
}

impl Block {
    /// Allocates; what is in it is not known yet, so all of it is written once.
    pub fn alloc(driver: &Driver, bytes: usize) -> Result<Block> {
        Ok(Block {
            address: driver.alloc(bytes)?,
            model: vec![0; bytes],
        })
    }

    /// Whole words in it.
    pub fn words(&self) -> usize {
        self.model.len() / 8
    }

    /// An address inside.
    pub fn at(&self, offset: usize) -> CUdeviceptr {
        self.address + offset as u64
    }

    /// Fills the words by kernel and the rest by a copy.
    pub fn fill(&mut self, stream: &mut Stream, kernels: &Kernels, seed: u64) -> Result<()> {
        let n = self.words();
        for (i, word) in self.model.chunks_mut(8).enumerate() {
            word.copy_from_slice(&mix(seed.wrapping_add(i as u64)).to_le_bytes()[..word.len()]);
        }
        if n > 0 {
            stream.launch(kernels.fill, n, &[self.address, n as u64, seed])?;
        }
        match &self.model[n * 8..] {
            [] => Ok(()),
            rest => stream.write(self.at(n * 8), rest.to_vec()),
        }
    }

    /// Fills it by copies from the host, in pieces of odd sizes.
    pub fn fill_by_copies(&mut self, driver: &Driver, seed: u64) -> Result<()> {
        for (i, word) in self.model.chunks_mut(8).enumerate() {
            word.copy_from_slice(&mix(seed.wrapping_add(i as u64)).to_le_bytes()[..word.len()]);
        }
        const PIECE: usize = (3 << 20) + 17;
        for (i, piece) in self.model.chunks(PIECE).enumerate() {
            driver.write(self.at(i * PIECE), piece)?;
        }
        Ok(())
    }

    /// Lets the device count the words that are not those of a fill with `seed`, onto the word at `counter`.
    pub fn count_wrong(
        &self,
        stream: &Stream,
        kernels: &Kernels,
        seed: u64,
        counter: CUdeviceptr,
    ) -> Result<()> {
        let n = self.words();
        if n == 0 {
            return Ok(());
        }
        stream.launch(kernels.check, n, &[self.address, n as u64, seed, counter])
    }

    /// Adds to every word.
    pub fn add(&mut self, stream: &Stream, kernels: &Kernels, value: u64) -> Result<()> {
        let n = self.words();
        for word in self.model.chunks_exact_mut(8) {
            let sum = read_word(word).wrapping_add(value);
            word.copy_from_slice(&sum.to_le_bytes());
        }
        if n == 0 {
            return Ok(());
        }
        stream.launch(kernels.add, n, &[self.address, n as u64, value])
    }

    /// Multiplies every word by `k` and adds the other block's.
    pub fn axpy(
        &mut self,
        stream: &Stream,
        kernels: &Kernels,
        other: &Block,
        k: u64,
    ) -> Result<()> {
        let n = self.words().min(other.words());
        let others = other.model.chunks_exact(8);
        for (word, other) in self.model.chunks_exact_mut(8).zip(others) {
            let sum = read_word(word)
                .wrapping_mul(k)
                .wrapping_add(read_word(other));
            word.copy_from_slice(&sum.to_le_bytes());
        }
        if n == 0 {
            return Ok(());
        }
        stream.launch(kernels.axpy, n, &[self.address, other.address, n as u64, k])
    }

    /// Lets the device add up the words, onto the word at `total`; returns what should be added.
    pub fn sum(&self, stream: &Stream, kernels: &Kernels, total: CUdeviceptr) -> Result<u64> {
        let n = self.words();
        if n > 0 {
            stream.launch(kernels.sum, n, &[self.address, n as u64, total])?;
        }
        let words = self.model.chunks_exact(8).map(read_word);
        Ok(words.fold(0, u64::wrapping_add))
    }

    /// Writes `count` addresses of own words, `stride` bytes apart, into `table`, and lets the device add to what they
    /// point at.
    pub fn add_through_table(
        &mut self,
        stream: &mut Stream,
        kernels: &Kernels,
        table: &mut Block,
        stride: usize,
        value: u64,
    ) -> Result<()> {
        let count = (self.words() * 8 / stride).min(table.words());
        if count == 0 {
            return Ok(());
        }
        for i in 0..count {
            let address = self.at(i * stride).to_le_bytes();
            table.model[i * 8..][..8].copy_from_slice(&address);
            let word = &mut self.model[i * stride..][..8];
            let sum = read_word(word).wrapping_add(value);
            word.copy_from_slice(&sum.to_le_bytes());
        }
        stream.write(table.address, table.model[..count * 8].to_vec())?;
        stream.launch(kernels.deref, count, &[table.address, count as u64, value])
    }

    /// Copies a part from another block, asynchronously or not.
    pub fn copy_from(
        &mut self,
        by: &By,
        to: usize,
        from: (&Block, usize),
        bytes: usize,
    ) -> Result<()> {
        let (other, offset) = from;
        self.model[to..][..bytes].copy_from_slice(&other.model[offset..][..bytes]);
        match by {
            By::Driver(driver) => driver.copy(self.at(to), other.at(offset), bytes),
            By::Stream(stream) => stream.copy(self.at(to), other.at(offset), bytes),
        }
    }

    /// Copies rows from another block: each `pitch` apart there and here, from the beginning.
    pub fn copy_rows_from(&mut self, by: &By, other: &Block, shape: &Shape) -> Result<()> {
        for row in 0..shape.height {
            let (from, to) = (row * shape.from_pitch, row * shape.to_pitch);
            self.model[to..][..shape.width].copy_from_slice(&other.model[from..][..shape.width]);
        }
        let rows = Rows {
            from: (other.address, shape.from_pitch),
            to: (self.address, shape.to_pitch),
            width: shape.width,
            height: shape.height,
        };
        match by {
            By::Driver(driver) => driver.copy_rows(&rows),
            By::Stream(stream) => stream.copy_rows(&rows),
        }
    }

    /// Sets a part to a byte.
    pub fn set(&mut self, by: &By, to: usize, bytes: usize, value: u8) -> Result<()> {
        self.model[to..][..bytes].fill(value);
        match by {
            By::Driver(driver) => driver.set(self.at(to), value, bytes),
            By::Stream(stream) => stream.set(self.at(to), value, bytes),
        }
    }

    /// The first byte that is not what it should be.
    pub fn first_wrong(&self, driver: &Driver) -> Result<Option<usize>> {
        const PIECE: usize = 16 << 20;
        let mut found = vec![0; self.model.len().min(PIECE)];
        for (i, expected) in self.model.chunks(PIECE).enumerate() {
            let found = &mut found[..expected.len()];
            driver.read(found, self.at(i * PIECE))?;
            if found != expected {
                let at = found.iter().zip(expected).position(|(f, e)| f != e);
                return Ok(at.map(|at| i * PIECE + at));
            }
        }
        Ok(None)
    }
}

/// Who does an operation: the synchronous call, or the asynchronous one of a stream.
pub enum By<'a, 'b> {
    /// The synchronous form. The device may still be at it when it returns.
    Driver(&'a Driver),
    /// The asynchronous form.
    Stream(&'a Stream<'b>),
}

/// The shape of a copy of rows.
pub struct Shape {
    /// Distance of rows in the source.
    pub from_pitch: usize,
    /// Distance of rows in the destination.
    pub to_pitch: usize,
    /// Bytes in a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
}

fn read_word(bytes: &[u8]) -> u64 {
    u64::from_le_bytes(bytes.try_into().expect("a word is 8 bytes"))
}

#[cfg(test)]
mod tests {
    #[test]
    fn mix_is_splitmix64() {
        // First outputs of the reference implementation for the seed 1234567.
        let seed = 1_234_567u64;
        assert_eq!(super::mix(seed), 6_457_827_717_110_365_317);
        let second = seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
        assert_eq!(super::mix(second), 3_203_168_211_198_807_973);
    }
}
