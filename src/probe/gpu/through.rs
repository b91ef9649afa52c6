//! Disk -> pinned buffer -> VRAM, and back: the way of a spilled chunk, end to end.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::driver::{Event, Gpu, Stream};
use super::memory::{Registered, Vram};
use crate::probe::figure::{Figure, Section, Unit};
use crate::probe::nvme::{Bench as Disk, Direction};
use crate::probe::out::Out;
use crate::selftest_program::driver::Result;

/// Bytes of a request.
const LEN: u64 = 2 << 20;
/// Buffers between disk and VRAM.
const SLOTS: usize = 16;
/// Requests of the disk at once.
const DEPTH: usize = 8;

/// Measures both ways, over a part of the file. What comes back to the disk is what it held, so that the comparison of
/// every byte that follows holds this way too.
pub fn measure(gpu: &Gpu, quick: bool, disk: &mut Disk, section: &mut Section, out: &mut Out) {
    let ids = [
        ("disk.vram", "disk to VRAM, 2 MiB, end to end"),
        ("vram.disk", "VRAM to disk, 2 MiB, end to end"),
    ];
    match both(gpu, quick, disk) {
        Ok(figures) => {
            for ((id, label), (bytes, seconds)) in ids.into_iter().zip(figures) {
                out.figure(section, Figure::rate(id, label, bytes, &seconds, None));
            }
        }
        Err(error) => {
            disk.queue().drain();
            for (id, label) in ids {
                out.figure(section, Figure::failed(id, label, Unit::Rate, &error));
            }
        }
    }
    disk.forget_buffers();
}

type Measured = (u64, Vec<f64>);

fn both(gpu: &Gpu, quick: bool, disk: &mut Disk) -> anyhow::Result<[Measured; 2]> {
    let room = gpu.memory()?.0 / 8;
    let bytes = disk.size().min(room).min(512 << 20) / LEN * LEN;
    anyhow::ensure!(
        bytes >= LEN * SLOTS as u64,
        "the file or the free VRAM is too small for that"
    );
    let vram = Vram::new(gpu, bytes)?;
    // SAFETY: the queue keeps its buffers where they are for as long as it lives, and it outlives this call.
    let buffers = unsafe { disk.queue().memory().alias() };
    let registered = Registered::new(gpu, &buffers)?;
    let time = Duration::from_millis(if quick { 250 } else { 900 });
    let mut pump = Pump {
        stream: gpu.stream()?,
        events: (0..SLOTS).map(|_| gpu.event()).collect::<Result<_>>()?,
        disk,
        vram: &vram,
        bytes,
    };
    let mut measured = [(bytes, Vec::new()), (bytes, Vec::new())];
    // Once at least, so that all of it is in VRAM before it comes back.
    for (direction, (_, samples)) in [Direction::Read, Direction::Write]
        .into_iter()
        .zip(&mut measured)
    {
        let begin = Instant::now();
        while samples.is_empty() || (begin.elapsed() < time && samples.len() < 5) {
            samples.push(pump.pass(direction)?);
        }
    }
    drop(pump);
    drop(registered);
    Ok(measured)
}

struct Pump<'g, 'p> {
    stream: Stream<'g>,
    /// One of each slot: its copy has ended.
    events: Vec<Event<'g>>,
    disk: &'p mut Disk,
    vram: &'p Vram<'g>,
    bytes: u64,
}

impl Pump<'_, '_> {
    /// Seconds for all bytes.
    fn pass(&mut self, direction: Direction) -> anyhow::Result<f64> {
        let begin = Instant::now();
        match direction {
            Direction::Read => self.down_to_vram()?,
            Direction::Write => self.up_to_disk()?,
        }
        Ok(begin.elapsed().as_secs_f64())
    }

    fn down_to_vram(&mut self) -> anyhow::Result<()> {
        let mut free: Vec<usize> = (0..SLOTS).collect();
        let mut copying: VecDeque<usize> = VecDeque::new();
        let mut places = [0u64; SLOTS];
        let mut next = 0;
        while next < self.bytes || self.disk.queue().in_flight() > 0 {
            if free.is_empty()
                && let Some(slot) = copying.pop_front()
            {
                self.events[slot].synchronize()?;
                free.push(slot);
            }
            if next < self.bytes
                && self.disk.queue().in_flight() < DEPTH
                && let Some(slot) = free.pop()
            {
                places[slot] = next;
                self.disk
                    .queue()
                    .start(slot, Direction::Read, next, LEN as usize)?;
                next += LEN;
                continue;
            }
            let slot = self.disk.queue().wait()?;
            let from = self.disk.queue().address(slot);
            self.stream
                .upload(self.vram.address + places[slot], from, LEN as usize)?;
            self.events[slot].record(&self.stream)?;
            copying.push_back(slot);
        }
        self.stream.synchronize()?;
        Ok(())
    }

    fn up_to_disk(&mut self) -> anyhow::Result<()> {
        let mut free: Vec<usize> = (0..SLOTS).collect();
        let mut copying: VecDeque<(usize, u64)> = VecDeque::new();
        let mut next = 0;
        loop {
            while next < self.bytes
                && let Some(slot) = free.pop()
            {
                let to = self.disk.queue().address(slot);
                self.stream
                    .download(to, self.vram.address + next, LEN as usize)?;
                self.events[slot].record(&self.stream)?;
                copying.push_back((slot, next));
                next += LEN;
            }
            let in_flight = self.disk.queue().in_flight();
            if in_flight < DEPTH
                && let Some((slot, at)) = copying.pop_front()
            {
                self.events[slot].synchronize()?;
                self.disk
                    .queue()
                    .start(slot, Direction::Write, at, LEN as usize)?;
            } else if in_flight > 0 {
                free.push(self.disk.queue().wait()?);
            } else {
                return Ok(());
            }
        }
    }
}
