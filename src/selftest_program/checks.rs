//! The checks, in the order in which they build on each other.

use std::path::PathBuf;

use anyhow::{Context, bail, ensure};
use greenboost_abi::{CU_MEMORYTYPE_DEVICE, CU_POINTER_ATTRIBUTE_MEMORY_TYPE};
use greenboost_wire::ledger::Mapped;
use greenboost_wire::{JOB_ENV, LEDGER_FILE};

use super::block::{Block, By, Kernels};
use super::driver::Driver;
use super::traffic::{self, Random};
use crate::size::human;
use crate::snapshot::Snapshot;

const MIB: usize = 1 << 20;
/// Sizes at and beside every border: of a word, of what the shim takes over, of a chunk, of several chunks.
const SIZES: [usize; 8] = [
    1,
    512,
    MIB - 1,
    2 * MIB,
    2 * MIB + 1,
    7 * MIB,
    64 * MIB,
    200 * MIB,
];
/// How much is allocated, in VRAM limits.
const TIMES_THE_LIMIT: u64 = 6;
/// From here on the shim serves an allocation itself.
const OWN_FROM: usize = 2 * MIB;
const THREADS: usize = 4;
const ROUNDS: usize = 40;

/// What the checks share.
pub struct Test<'a> {
    driver: &'a Driver,
    kernels: Kernels,
    /// The job's ledger, when there is a job.
    ledger: Option<Mapped>,
    random: Random,
    blocks: Vec<Block>,
    /// Two words for results of kernels.
    results: Block,
}

impl<'a> Test<'a> {
    pub fn new(driver: &'a Driver) -> anyhow::Result<Test<'a>> {
        let ledger = std::env::var_os(JOB_ENV)
            .map(|dir| Mapped::open(&PathBuf::from(dir).join(LEDGER_FILE)))
            .transpose()
            .context("the job's ledger cannot be opened")?;
        Ok(Test {
            driver,
            kernels: Kernels::find(driver)?,
            ledger,
            random: Random::new(20_260_101),
            blocks: Vec::new(),
            results: Block::alloc(driver, 16)?,
        })
    }

    /// The device's VRAM limit and the RAM limit.
    fn limits(&self) -> anyhow::Result<(u64, u64)> {
        let Some(ledger) = &self.ledger else {
            bail!("it does not run under greenboost run");
        };
        let snapshot = Snapshot::take(ledger);
        let device = snapshot.devices.first().context(
            "the shim has not registered a device: it was not loaded, or does not see this program's calls",
        )?;
        Ok((device.vram_limit, snapshot.ram_limit))
    }

    pub fn device(&mut self) -> anyhow::Result<String> {
        let (vram, ram) = self.limits()?;
        let (free, total) = self.driver.memory_info()?;
        ensure!(free <= total, "{free} bytes are free of {total}");
        Ok(format!(
            "{}, driver {}.{}, VRAM limit {}, RAM limit {}, the program is told of {}",
            self.driver.device_name,
            self.driver.version / 1000,
            self.driver.version % 1000 / 10,
            human(vram),
            human(ram),
            human(total as u64),
        ))
    }

    fn total(&self) -> u64 {
        self.blocks.iter().map(|b| b.model.len() as u64).sum()
    }

    pub fn allocate(&mut self) -> anyhow::Result<String> {
        let (vram, ram) = self.limits()?;
        // Host RAM is needed three times: for what spills, for the model, and for whatever else the machine does.
        let aim = (TIMES_THE_LIMIT * vram).min(vram + ram / 2);
        ensure!(
            aim >= 2 * vram,
            "there is too little host RAM to spill to ({})",
            human(ram)
        );
        loop {
            let before = self.total();
            for size in SIZES {
                if self.total() + size as u64 <= aim {
                    let block = Block::alloc(self.driver, size)
                        .with_context(|| format!("{size} bytes, after {}", self.total()))?;
                    self.blocks.push(block);
                }
            }
            // Only the small ones fit any more.
            if self.total() - before < 64 * MIB as u64 {
                break;
            }
        }
        let mut ranges: Vec<(u64, usize)> = self
            .blocks
            .iter()
            .map(|b| (b.address, b.model.len()))
            .collect();
        ranges.sort_unstable();
        for pair in ranges.windows(2) {
            ensure!(
                pair[0].0 + pair[0].1 as u64 <= pair[1].0,
                "{:#x} and {:#x} overlap",
                pair[0].0,
                pair[1].0
            );
        }
        ensure!(
            ranges.iter().all(|(address, _)| address % 256 == 0),
            "an address is not a multiple of 256"
        );
        Ok(format!(
            "{} allocations of 1 B to {}, {} together, {:.1} times the VRAM limit",
            self.blocks.len(),
            human(ranges.iter().map(|r| r.1).max().unwrap_or(0) as u64),
            human(self.total()),
            self.total() as f64 / vram as f64
        ))
    }

    pub fn allocate_rows(&mut self) -> anyhow::Result<String> {
        let mut pitches = Vec::new();
        for (width, height) in [(1, 3), (1000, 3000), (4097, 1027)] {
            let (address, pitch) = self.driver.alloc_pitch(width, height)?;
            ensure!(
                pitch >= width,
                "rows of {width} bytes got a pitch of {pitch}"
            );
            self.blocks.push(Block {
                address,
                model: vec![0; pitch * height],
            });
            pitches.push(pitch.to_string());
        }
        Ok(format!("pitches {}", pitches.join(", ")))
    }

    pub fn spilled(&mut self) -> anyhow::Result<String> {
        let Some(ledger) = &self.ledger else {
            bail!("it does not run under greenboost run");
        };
        let snapshot = Snapshot::take(ledger);
        let device = snapshot.devices.first().context("no device")?;
        ensure!(
            device.vram_bytes <= device.vram_limit,
            "{} of VRAM are held, the limit is {}",
            device.vram_bytes,
            device.vram_limit
        );
        let together = device.vram_bytes + device.host_bytes;
        ensure!(
            together >= self.total(),
            "{together} bytes are held, {} were allocated",
            self.total()
        );
        ensure!(device.spills > 0, "nothing spilled");
        Ok(format!(
            "{} in VRAM, {} in host RAM, {} of {} allocations spilled",
            human(device.vram_bytes),
            human(device.host_bytes),
            device.spills,
            device.allocations
        ))
    }

    pub fn pointers(&mut self) -> anyhow::Result<String> {
        let mut asked = 0;
        for block in &self.blocks {
            let bytes = block.model.len();
            for offset in [0, 1, bytes / 2, bytes.saturating_sub(1)] {
                let address = block.at(offset.min(bytes - 1));
                let (start, size) = self.driver.range_of(address)?;
                let is_right = start == block.address
                    && (size == bytes || (bytes < OWN_FROM && size >= bytes));
                ensure!(
                    is_right,
                    "{address:#x} is said to lie in {start:#x} + {size}, allocated were {:#x} + {bytes}",
                    block.address
                );
                let kind = self
                    .driver
                    .attribute(CU_POINTER_ATTRIBUTE_MEMORY_TYPE, address)?;
                ensure!(
                    kind == CU_MEMORYTYPE_DEVICE,
                    "{address:#x} is said to be memory of type {kind}, not of the device"
                );
                asked += 1;
            }
        }
        Ok(format!(
            "{asked} addresses know their allocation and are the device's"
        ))
    }

    /// Fills one half by kernel, the other by copies; the device compares.
    pub fn fill(&mut self) -> anyhow::Result<String> {
        let mut stream = self.driver.stream()?;
        self.driver.set(self.results.address, 0, 16)?;
        self.driver.default_stream().synchronize()?;
        for (i, block) in self.blocks.iter_mut().enumerate() {
            let seed = (i as u64) << 32;
            if i % 2 == 0 {
                block.fill(&mut stream, &self.kernels, seed)?;
            } else {
                block.fill_by_copies(self.driver, seed)?;
            }
        }
        // Copies from the host may be under way inside the device when they return.
        self.driver.synchronize()?;
        for (i, block) in self.blocks.iter().enumerate() {
            let seed = (i as u64) << 32;
            block.count_wrong(&stream, &self.kernels, seed, self.results.address)?;
        }
        stream.synchronize()?;
        let wrong = self.result()?;
        ensure!(wrong == 0, "a kernel found {wrong} wrong words");
        Ok(format!(
            "{}, and a kernel found no wrong word",
            human(self.total())
        ))
    }

    fn result(&self) -> anyhow::Result<u64> {
        let mut word = [0; 8];
        self.driver.read(&mut word, self.results.address)?;
        Ok(u64::from_le_bytes(word))
    }

    pub fn compute(&mut self) -> anyhow::Result<String> {
        let mut stream = self.driver.stream()?;
        let mut table = Block::alloc(self.driver, 8 * 4096)?;
        for i in 0..self.blocks.len() {
            self.blocks[i].add(&stream, &self.kernels, i as u64 + 1)?;
            if i > 0 {
                let (before, after) = self.blocks.split_at_mut(i);
                after[0].axpy(&stream, &self.kernels, &before[i - 1], 5)?;
            }
            let stride = (self.blocks[i].words() / 4096).max(1) * 8;
            let block = &mut self.blocks[i];
            block.add_through_table(&mut stream, &self.kernels, &mut table, stride, 7)?;
        }
        self.driver.set(self.results.address, 0, 16)?;
        self.driver.default_stream().synchronize()?;
        let mut expected = 0u64;
        for block in &self.blocks {
            let sum = block.sum(&stream, &self.kernels, self.results.address)?;
            expected = expected.wrapping_add(sum);
        }
        stream.synchronize()?;
        let sum = self.result()?;
        ensure!(
            sum == expected,
            "the sum is {sum:#x}, it should be {expected:#x}"
        );
        self.driver.free(table.address)?;
        Ok(format!(
            "the sum over everything is {sum:#018x}, as it should be"
        ))
    }

    /// Copies across every border between chunks, in every direction, by the synchronous calls.
    pub fn copy_over_seams(&mut self) -> anyhow::Result<String> {
        const SEAM: usize = 2 * MIB;
        let large: Vec<usize> = (0..self.blocks.len())
            .filter(|i| self.blocks[*i].model.len() > 3 * SEAM)
            .collect();
        ensure!(large.len() >= 2, "too few large allocations");
        let by = By::Driver(self.driver);
        let mut copies = 0;
        for (turn, pair) in large.windows(2).enumerate() {
            let [block, other] = self
                .blocks
                .get_disjoint_mut([pair[0], pair[1]])
                .expect("two different blocks");
            let seams = block.model.len().min(other.model.len()) / SEAM;
            for seam in 1..seams {
                let here = seam * SEAM - 77 - turn;
                let there = seam * SEAM - 4099;
                block.copy_from(&by, here, (other, there), 5000)?;
                other.copy_from(&by, there + 3, (block, here + 1), 2048)?;
                block.set(&by, here + 5100, 200, seam as u8)?;
                copies += 3;
            }
        }
        self.driver.default_stream().synchronize()?;
        for i in &large {
            let block = &self.blocks[*i];
            if let Some(at) = block.first_wrong(self.driver)? {
                bail!("byte {at} of {} is wrong", block.model.len());
            }
        }
        Ok(format!("{copies} copies and fills across seams of 2 MiB"))
    }

    pub fn threads(&mut self) -> anyhow::Result<String> {
        // Dealt out like cards, so that each thread has large and small ones.
        let mut hands: Vec<Vec<Block>> = (0..THREADS).map(|_| Vec::new()).collect();
        for (i, block) in std::mem::take(&mut self.blocks).into_iter().enumerate() {
            hands[i % THREADS].push(block);
        }
        let (driver, kernels) = (self.driver, &self.kernels);
        let seeds: Vec<u64> = (0..THREADS)
            .map(|_| self.random.below(1 << 40) as u64)
            .collect();
        let results: Vec<_> = std::thread::scope(|scope| {
            let running: Vec<_> = hands
                .iter_mut()
                .zip(seeds)
                .map(|(hand, seed)| {
                    scope.spawn(move || {
                        traffic::run(driver, kernels, hand, &mut Random::new(seed), ROUNDS)
                    })
                })
                .collect();
            running.into_iter().map(|t| t.join()).collect()
        });
        self.blocks = hands.into_iter().flatten().collect();
        for result in results {
            let Ok(wrong) = result else {
                bail!("a thread panicked");
            };
            let wrong = wrong?;
            ensure!(
                wrong == 0,
                "{wrong} bytes were wrong when a thread read them"
            );
        }
        self.compare()?;
        Ok(format!(
            "{THREADS} threads, {THREADS} streams, {} operations",
            THREADS * ROUNDS
        ))
    }

    pub fn out_of_memory(&mut self) -> anyhow::Result<String> {
        let (vram, ram) = self.limits()?;
        let bytes = usize::try_from(vram.saturating_add(ram).saturating_add(1 << 30))?;
        match self.driver.alloc(bytes) {
            Err(error) if error.is_out_of_memory() => {}
            Err(error) => bail!("{} were refused, but by: {error}", human(bytes as u64)),
            Ok(_) => bail!("{} were given", human(bytes as u64)),
        }
        Ok(format!(
            "{} were refused, and the program goes on",
            human(bytes as u64)
        ))
    }

    /// Frees half in another order than it was allocated, allocates other sizes, and looks whether anybody was hurt.
    pub fn free_and_reuse(&mut self) -> anyhow::Result<String> {
        let mut freed = Vec::new();
        let half = self.blocks.len() / 2;
        while self.blocks.len() > half {
            let block = self
                .blocks
                .swap_remove(self.random.below(self.blocks.len()));
            self.driver.free(block.address)?;
            freed.push(block.model.len());
        }
        let mut stream = self.driver.stream()?;
        for (i, size) in freed.iter().enumerate() {
            let size = size - size / 4 + (size / 4).min(i);
            let mut block = Block::alloc(self.driver, size)?;
            block.fill(&mut stream, &self.kernels, (i as u64) << 40)?;
            self.blocks.push(block);
        }
        stream.synchronize()?;
        self.compare()?;
        Ok(format!(
            "{} freed and allocated anew in other sizes",
            freed.len()
        ))
    }

    pub fn every_byte(&mut self) -> anyhow::Result<String> {
        self.compare()?;
        let total = self.total();
        for block in self.blocks.drain(..) {
            self.driver.free(block.address)?;
        }
        self.driver.free(self.results.address)?;
        Ok(format!("{} are as they should be", human(total)))
    }

    fn compare(&self) -> anyhow::Result<()> {
        for block in &self.blocks {
            if let Some(at) = block.first_wrong(self.driver)? {
                bail!(
                    "byte {at} of an allocation of {} is wrong",
                    block.model.len()
                );
            }
        }
        Ok(())
    }
}
