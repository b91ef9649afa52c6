//! Patterns of reads and writes on one file, for a given time each.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::data::{Data, UNIT as UNIT_LEN, Written};
use super::queue::{Direction, Method, Queue};

/// Largest request.
pub const LARGEST: usize = 2 << 20;
/// Deepest queue.
pub const DEEPEST: usize = 32;
const UNIT: u64 = UNIT_LEN as u64;
/// Left out at the start of each pattern.
const WARM_UP: Duration = Duration::from_millis(60);

/// Requests of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pattern {
    pub direction: Direction,
    /// Bytes of a request, a multiple of 128 KiB.
    pub len: usize,
    /// Requests at once.
    pub depth: usize,
    pub is_random: bool,
}

/// The file and what it holds.
pub struct Bench {
    queue: Queue,
    data: Data,
    size: u64,
    /// What each unit holds.
    written: Vec<Written>,
    /// Whether each slot's buffer still holds what it was filled with.
    is_filled: Vec<bool>,
    random: u64,
    is_direct: bool,
}

impl Bench {
    /// On a fresh file of that size.
    ///
    /// # Errors
    /// When memory or threads are out.
    pub fn new(
        file: File,
        size: u64,
        is_direct: bool,
        wish: Option<Method>,
    ) -> io::Result<(Bench, Method, Option<String>)> {
        // One more than can run, to be filled meanwhile.
        let slots = DEEPEST + 1;
        let seed = u64::from(crate::job::random()) << 32 | u64::from(crate::job::random());
        let (queue, method, refusal) = Queue::new(Arc::new(file), size, slots, LARGEST, wish)?;
        let bench = Bench {
            queue,
            data: Data::new(seed),
            size,
            written: vec![Written::default(); size.div_ceil(UNIT) as usize],
            is_filled: vec![false; slots],
            random: seed | 1,
            is_direct,
        };
        Ok((bench, method, refusal))
    }

    /// Bytes that were laid out.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The file's buffers, to be pinned, and their use.
    pub fn queue(&mut self) -> &mut Queue {
        &mut self.queue
    }

    /// The buffers hold something else now.
    pub fn forget_buffers(&mut self) {
        self.is_filled.fill(false);
    }

    /// Writes the file from its start, until it is full or the time is over; what was not reached is cut off. Gives the
    /// rate.
    ///
    /// # Errors
    /// The disk's.
    pub fn lay_out(&mut self, time: Duration) -> io::Result<f64> {
        const LEN: u64 = 1 << 20;
        let end = self.size / LEN * LEN;
        let (mut next, mut done) = (0, 0);
        let mut free: Vec<usize> = (0..9).collect();
        self.fill(9);
        let begin = Instant::now();
        while done < end {
            let is_over = next >= 16 * LEN && begin.elapsed() >= time;
            if next < end && !is_over && self.queue.in_flight() < 8 {
                let Some(slot) = free.pop() else { break };
                self.prepare(slot, next, LEN as usize);
                self.queue
                    .start(slot, Direction::Write, next, LEN as usize)?;
                next += LEN;
            } else if self.queue.in_flight() > 0 {
                free.push(self.queue.wait()?);
                done += LEN;
            } else {
                break;
            }
        }
        self.settle()?;
        let seconds = begin.elapsed().as_secs_f64();
        self.queue.shrink(done);
        self.size = done;
        self.written.truncate((done / UNIT) as usize);
        self.queue.file().set_len(done)?;
        Ok(done as f64 / seconds)
    }

    /// Rates of this pattern in so many windows of equal time.
    ///
    /// # Errors
    /// The disk's, or that what was read is not what was written.
    pub fn measure(
        &mut self,
        pattern: Pattern,
        time: Duration,
        windows: usize,
    ) -> io::Result<Vec<f64>> {
        let len = pattern.len as u64;
        let places = self.size / len;
        let depth = pattern.depth.min(DEEPEST).min((places / 2) as usize);
        if depth == 0 {
            return Err(io::Error::other("the file is too small for that"));
        }
        // What ended by an error left others on their way, in slots that are wanted now.
        self.queue.drain();
        match pattern.direction {
            Direction::Read => self.drop_cache()?,
            // Outside of what is timed: only the stamps change from write to write.
            Direction::Write => self.fill(depth + 1),
        }
        let mut free: Vec<usize> = (0..=depth).rev().collect();
        let mut ready: VecDeque<(usize, u64)> = VecDeque::new();
        let mut read: Option<usize> = None;
        let mut places_of = vec![None; self.queue.slots()];
        let mut cursor = 0;
        let window = time / windows.max(1) as u32;
        let begin = Instant::now();
        let mut meter = Meter::new(begin + WARM_UP, window, windows);
        while !meter.is_full() {
            while self.queue.in_flight() < depth {
                let (slot, at) = match ready.pop_front() {
                    Some(next) => next,
                    None => {
                        let at = self.next(pattern, places, &mut cursor, &places_of);
                        let Some(slot) = free.pop() else { break };
                        self.before(pattern, slot, at);
                        (slot, at)
                    }
                };
                places_of[slot] = Some(at);
                self.queue.start(slot, pattern.direction, at, pattern.len)?;
            }
            // While the disk works, the next buffer is filled, and the last one is looked at: one slot more than run.
            if pattern.direction == Direction::Write
                && ready.is_empty()
                && let Some(slot) = free.pop()
            {
                let at = self.next(pattern, places, &mut cursor, &places_of);
                places_of[slot] = Some(at);
                self.before(pattern, slot, at);
                ready.push_back((slot, at));
            }
            if let Some(slot) = read.take() {
                if let Some(at) = places_of[slot].take() {
                    self.after_read(slot, at, pattern.len)?;
                }
                free.push(slot);
            }
            let slot = self.queue.wait()?;
            meter.add(len);
            match pattern.direction {
                Direction::Read => read = Some(slot),
                Direction::Write => {
                    places_of[slot] = None;
                    free.push(slot);
                }
            }
        }
        self.finish(pattern, &places_of)?;
        // A buffer that was filled and never written carries a generation that the file has not seen.
        for (slot, at) in ready {
            self.queue.start(slot, Direction::Write, at, pattern.len)?;
            self.queue.wait()?;
        }
        if pattern.direction == Direction::Write {
            self.settle()?;
        }
        Ok(meter.rates)
    }

    /// Reads everything and compares every byte.
    ///
    /// # Errors
    /// The disk's, or the place of the first wrong byte.
    pub fn verify(&mut self) -> io::Result<()> {
        const LEN: u64 = 1 << 20;
        self.queue.drain();
        self.drop_cache()?;
        let mut next = 0;
        let mut free: Vec<usize> = (0..8).collect();
        let mut places = [0u64; 8];
        while next < self.size || self.queue.in_flight() > 0 {
            if next < self.size
                && let Some(slot) = free.pop()
            {
                places[slot] = next;
                self.is_filled[slot] = false;
                self.queue
                    .start(slot, Direction::Read, next, LEN as usize)?;
                next += LEN;
                continue;
            }
            let slot = self.queue.wait()?;
            let at = places[slot];
            for from in (0..LEN).step_by(UNIT as usize) {
                let written = self.written[((at + from) / UNIT) as usize];
                let buffer =
                    &self.queue.buffer(slot, LEN as usize)[from as usize..][..UNIT as usize];
                self.data.check(at + from, written, buffer).map_err(wrong)?;
            }
            free.push(slot);
        }
        Ok(())
    }

    fn next(
        &mut self,
        pattern: Pattern,
        places: u64,
        cursor: &mut u64,
        taken: &[Option<u64>],
    ) -> u64 {
        loop {
            let index = if pattern.is_random {
                // xorshift64
                self.random ^= self.random << 13;
                self.random ^= self.random >> 7;
                self.random ^= self.random << 17;
                self.random % places
            } else {
                *cursor = (*cursor + 1) % places;
                *cursor
            };
            let at = index * pattern.len as u64;
            // Two writes of one place at a time could leave either.
            if !taken.contains(&Some(at)) {
                return at;
            }
        }
    }

    fn before(&mut self, pattern: Pattern, slot: usize, at: u64) {
        match pattern.direction {
            Direction::Read => self.is_filled[slot] = false,
            Direction::Write => self.prepare(slot, at, pattern.len),
        }
    }

    /// Fills the buffers of the first slots, in which nothing runs, as far as that was not done.
    fn fill(&mut self, slots: usize) {
        for slot in 0..slots {
            if !std::mem::replace(&mut self.is_filled[slot], true) {
                self.data.fill(slot, self.queue.buffer(slot, LARGEST));
            }
        }
    }

    /// Makes a filled buffer what is to be written there next.
    fn prepare(&mut self, slot: usize, at: u64, len: usize) {
        let first = (at / UNIT) as usize;
        let buffer = self.queue.buffer(slot, len);
        for (n, piece) in buffer.chunks_mut(UNIT_LEN).enumerate() {
            let written = &mut self.written[first + n];
            written.generation += 1;
            written.phase = Data::phase(slot, n);
            self.data
                .stamp(at + n as u64 * UNIT, written.generation, piece);
        }
    }

    /// Whether a timed read brought what belongs there. Every byte is compared at the end.
    fn after_read(&mut self, slot: usize, at: u64, len: usize) -> io::Result<()> {
        let first = (at / UNIT) as usize;
        let buffer = self.queue.buffer(slot, len);
        for (n, piece) in buffer.chunks(UNIT_LEN).enumerate() {
            let place = at + n as u64 * UNIT;
            if !self.data.is_of(place, self.written[first + n], piece) {
                return Err(wrong(place));
            }
        }
        Ok(())
    }

    fn finish(&mut self, pattern: Pattern, places: &[Option<u64>]) -> io::Result<()> {
        while self.queue.in_flight() > 0 {
            let slot = self.queue.wait()?;
            if let (Direction::Read, Some(at)) = (pattern.direction, places[slot]) {
                self.after_read(slot, at, pattern.len)?;
            }
        }
        Ok(())
    }

    /// Waits for what the page cache holds back, where it is in the way.
    fn settle(&self) -> io::Result<()> {
        if self.is_direct {
            return Ok(());
        }
        self.queue.file().sync_data()
    }

    fn drop_cache(&self) -> io::Result<()> {
        self.settle()?;
        if !self.is_direct {
            let fd = self.queue.file().as_raw_fd();
            // SAFETY: a plain call on a descriptor of ours; advice only.
            unsafe { libc::posix_fadvise(fd, 0, 0, libc::POSIX_FADV_DONTNEED) };
        }
        Ok(())
    }
}

fn wrong(place: u64) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("what was read at {place} is not what was written"),
    )
}

/// Counts bytes by windows of time.
struct Meter {
    /// When the window began, and what was done since.
    since: Option<Instant>,
    bytes: u64,
    not_before: Instant,
    window: Duration,
    windows: usize,
    rates: Vec<f64>,
}

impl Meter {
    fn new(not_before: Instant, window: Duration, windows: usize) -> Meter {
        Meter {
            since: None,
            bytes: 0,
            not_before,
            window,
            windows,
            rates: Vec::new(),
        }
    }

    fn is_full(&self) -> bool {
        self.rates.len() >= self.windows
    }

    /// One more request has ended.
    fn add(&mut self, bytes: u64) {
        let now = Instant::now();
        let Some(since) = self.since else {
            self.since = (now >= self.not_before).then_some(now);
            return;
        };
        self.bytes += bytes;
        let time = now - since;
        if time >= self.window {
            self.rates.push(self.bytes as f64 / time.as_secs_f64());
            (self.since, self.bytes) = (Some(now), 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    const READ: Pattern = Pattern {
        direction: Direction::Read,
        len: 1 << 20,
        depth: 8,
        is_random: false,
    };
    const TIME: Duration = Duration::from_millis(30);

    fn bench(method: Method) -> (Bench, File) {
        let file = tempfile::tempfile().unwrap();
        let other = file.try_clone().unwrap();
        let (mut bench, used, _) = Bench::new(file, 64 << 20, false, Some(method)).unwrap();
        assert_eq!(used, method);
        assert!(bench.lay_out(Duration::from_secs(60)).unwrap() > 0.0);
        assert_eq!(bench.size(), 64 << 20);
        (bench, other)
    }

    #[test]
    fn every_pattern_leaves_what_it_should() {
        for method in [Method::Uring, Method::Threads] {
            let (mut bench, file) = bench(method);
            for direction in [Direction::Read, Direction::Write] {
                for (len, depth, is_random) in [
                    (1 << 20, 1, false),
                    (1 << 20, 8, false),
                    (128 << 10, 32, false),
                    (2 << 20, 32, true),
                    (128 << 10, 8, true),
                ] {
                    let pattern = Pattern {
                        direction,
                        len,
                        depth,
                        is_random,
                    };
                    let rates = bench.measure(pattern, TIME, 3).unwrap();
                    assert_eq!(rates.len(), 3, "{pattern:?}");
                    assert!(rates.iter().all(|r| *r > 0.0), "{pattern:?}");
                }
            }
            bench.verify().unwrap();
            assert_eq!(file.metadata().unwrap().len(), 64 << 20);
        }
    }

    #[test]
    fn wrong_bytes_are_found() {
        let (mut bench, file) = bench(Method::Threads);
        bench.verify().unwrap();
        file.write_at(&[0xff; 3], (33 << 20) + 5000).unwrap();
        let error = bench.verify().unwrap_err();
        assert!(error.to_string().contains("at 34607104"), "{error}");
        // A stamp is seen even by a timed read, if that comes there.
        file.write_at(&[0xff; 3], 1 << 20).unwrap();
        let error = bench.measure(READ, TIME, 1).unwrap_err();
        assert!(error.to_string().contains("at 1048576"), "{error}");
    }

    #[test]
    fn lost_writes_are_found() {
        let (mut bench, file) = bench(Method::Threads);
        let mut before = vec![0; 128 << 10];
        file.read_at(&mut before, 8 << 20).unwrap();
        let write = Pattern {
            direction: Direction::Write,
            ..READ
        };
        // Long enough to come by every place.
        for _ in 0..200 {
            if bench.written[(8 << 20) / UNIT as usize].generation < 2 {
                bench.measure(write, TIME, 1).unwrap();
            }
        }
        bench.verify().unwrap();
        file.write_at(&before, 8 << 20).unwrap();
        assert!(bench.verify().is_err());
    }

    #[test]
    fn a_slow_disk_gets_a_small_file() {
        let file = tempfile::tempfile().unwrap();
        let other = file.try_clone().unwrap();
        let (mut bench, _, _) = Bench::new(file, 1 << 30, false, None).unwrap();
        bench.lay_out(Duration::ZERO).unwrap();
        assert_eq!(bench.size(), 16 << 20);
        assert_eq!(other.metadata().unwrap().len(), 16 << 20);
        bench.measure(READ, TIME, 1).unwrap();
        bench.verify().unwrap();
    }
}
