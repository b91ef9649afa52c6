//! The figures that decide, measured in rounds: one run of each, then one of each again, at several times while all else is
//! measured, and each round elsewhere in host memory. A disturbance of some hundred milliseconds, or memory that lies
//! badly, is then in some runs of every figure instead of in all runs of one.

use super::driver::{Event, Gpu, Stream};
use super::site::{Site, THREADS, rate};
use crate::probe::figure::Section;
use crate::probe::out::Out;
use crate::selftest_program::driver::Result;

/// What a run does.
#[derive(Clone, Copy)]
enum What {
    Up,
    Down,
    Both,
    /// A kernel, and the bytes of what it counts in.
    Kernel(&'static std::ffi::CStr, u64),
}

const ALL: [(&str, &str, What); 7] = [
    ("dma.h2d", "copy to the GPU", What::Up),
    ("dma.d2h", "copy from the GPU", What::Down),
    (
        "dma.both",
        "both at once, in total, until both end",
        What::Both,
    ),
    (
        "zero.read16",
        "kernel reads 16 B, coalesced",
        What::Kernel(c"gb_probe_read16", 16),
    ),
    (
        "zero.read4",
        "kernel reads 4 B, coalesced",
        What::Kernel(c"gb_probe_read4", 4),
    ),
    (
        "zero.quantised",
        "kernel reads quantised blocks",
        What::Kernel(c"gb_probe_quantised", 18),
    ),
    (
        "zero.write16",
        "kernel writes 16 B, coalesced",
        What::Kernel(c"gb_probe_write16", 16),
    ),
];

/// What was measured so far, and what it is measured with.
pub struct Rounds<'s, 'g, 'a> {
    site: &'s Site<'g, 'a>,
    block: u64,
    up: Stream<'g>,
    down: Stream<'g>,
    /// The copy down may begin, and has ended.
    marks: [Event<'g>; 2],
    /// Seconds of each run of each; or why there are none.
    seconds: Vec<Result<Vec<f64>>>,
    rounds: u64,
}

impl<'s, 'g, 'a> Rounds<'s, 'g, 'a> {
    /// Of `block` bytes at a time, which are there on both sides.
    ///
    /// # Errors
    /// The driver's.
    pub fn new(site: &'s Site<'g, 'a>, block: u64) -> Result<Rounds<'s, 'g, 'a>> {
        let gpu: &'g Gpu = site.gpu;
        let mut rounds = Rounds {
            site,
            block,
            // Used again and again: a stream's first copy takes longer, which is no property of the link.
            up: gpu.stream()?,
            down: gpu.stream()?,
            marks: [gpu.event()?, gpu.event()?],
            seconds: Vec::new(),
            rounds: 0,
        };
        // Does not count.
        let first = ALL.map(|(_, _, what)| rounds.run(what, 0));
        rounds.seconds = first.into_iter().map(|r| r.map(|_| Vec::new())).collect();
        Ok(rounds)
    }

    /// So many rounds more.
    pub fn go(&mut self, rounds: usize) {
        for _ in 0..rounds {
            let at = place(self.rounds, self.site.host_len - self.block);
            for (index, (_, _, what)) in ALL.into_iter().enumerate() {
                if self.seconds[index].is_err() {
                    continue;
                }
                match (self.run(what, at), &mut self.seconds[index]) {
                    (Ok(new), Ok(seconds)) => seconds.push(new),
                    (Err(error), seconds) => *seconds = Err(error),
                    (Ok(_), Err(_)) => {}
                }
            }
            self.rounds += 1;
        }
    }

    /// The figures of all rounds.
    pub fn end(self, limit: Option<f64>, section: &mut Section, out: &mut Out) {
        let block = self.block;
        for ((id, label, what), seconds) in ALL.into_iter().zip(self.seconds) {
            let (bytes, limit) = match what {
                What::Both => (block, limit.map(|l| 2.0 * l)),
                What::Kernel(_, unit) => (block / unit * unit, limit),
                What::Up | What::Down => (block, limit),
            };
            out.figure(section, rate(id, label, bytes, seconds, limit));
        }
    }

    /// Seconds of one run, on the block of host memory that begins there.
    fn run(&self, what: What, at: u64) -> Result<f64> {
        let (vram, host) = (
            self.site.vram.address,
            self.site.host.start().wrapping_add(at as usize),
        );
        let length = self.block as usize;
        match what {
            What::Up => self.up.time(|s| s.upload(vram, host, length)),
            What::Down => self.down.time(|s| s.download(host, vram, length)),
            What::Both => {
                let half = length / 2;
                let [begun, ended] = &self.marks;
                self.up.time(|up| {
                    begun.record(up)?;
                    self.down.after(begun)?;
                    up.upload(vram, host, half)?;
                    self.down
                        .download(host.wrapping_add(half), vram + half as u64, half)?;
                    ended.record(&self.down)?;
                    up.after(ended)
                })
            }
            What::Kernel(name, unit) => {
                let gpu = self.site.gpu;
                let kernel = gpu.kernel(name)?;
                // The last one is where a sum goes that never comes up; of the writer, what it writes.
                let arguments = [
                    self.site.host.address + at,
                    self.block / unit,
                    self.site.out,
                ];
                self.up
                    .time(|s| kernel.launch(s, gpu.multiprocessors * 8, THREADS, &arguments))
            }
        }
    }
}

/// Where the n-th round is, in so many bytes: evenly spread however many there will be, at a border of 2 MiB.
fn place(n: u64, room: u64) -> u64 {
    const BORDER: u64 = 2 << 20;
    // Multiples of the golden ratio, modulo 1.
    let part = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let places = room / BORDER + 1;
    ((u128::from(part) * u128::from(places)) >> 64) as u64 * BORDER
}

#[cfg(test)]
mod tests {
    use super::place;

    #[test]
    fn rounds_are_spread_over_all_of_it() {
        const GIB: u64 = 1 << 30;
        let places: Vec<u64> = (0..15).map(|n| place(n, 15 * GIB)).collect();
        assert!(
            places
                .iter()
                .all(|at| at % (2 << 20) == 0 && *at <= 15 * GIB)
        );
        for quarter in 0..4 {
            let (from, to) = (quarter * 15 * GIB / 4, (quarter + 1) * 15 * GIB / 4);
            let inside = places.iter().filter(|at| (from..to).contains(*at)).count();
            assert!((3..=5).contains(&inside), "{places:?}");
        }
        assert_eq!(place(7, 0), 0);
        assert!((0..9).all(|n| place(n, (2 << 20) - 1) == 0));
    }
}
