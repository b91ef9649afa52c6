//! Which units should have their home in VRAM.
//!
//! Copies hide under compute, but only under what runs while slots are free to copy to: where all that streams lies
//! together, the link idles in one half of the pass and the compute waits in the other. So what streams is spread along
//! the pass, by the compute between: an error is carried along that grows by each use's share of the compute, and falls
//! by what streams. A unit on Host that lies where too much streams comes to VRAM, one in VRAM where too little does
//! leaves; within the bounds of the error all stays as it is. Besides, who is used more often in a pass rather stays.

use std::collections::VecDeque;

/// A pass must become so much shorter, or nothing is moved.
const WORTH: f64 = 0.98;
/// Steps in which a better layout is sought.
const ROUNDS: usize = 12;

/// A unit, as the layout sees it.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// Bytes.
    pub bytes: u64,
    /// Its home is Host.
    pub host: bool,
    /// It may change its home.
    pub movable: bool,
    /// Staging it gains; else kernels read it on Host, for little.
    pub streams: bool,
    /// Uses in a pass.
    pub uses: u32,
}

/// What becomes of a copy: the link idled before it, since no slot was free; it came too late.
#[derive(Clone, Copy, Debug, Default)]
struct Fate {
    idle: bool,
    late: bool,
}

/// Makes swaps.
fn exchange(places: &mut [Place], pairs: &[(usize, usize)]) {
    for &(leaves, comes) in pairs {
        (places[leaves].host, places[comes].host) = (true, false);
    }
}

/// A pass.
#[derive(Debug)]
pub struct Pass<'a> {
    /// Which place is used, and how long it computes, seconds; in order.
    pub uses: &'a [(usize, f64)],
    /// Bytes that are copied ahead.
    pub slots: u64,
    /// Bytes per second of copies.
    pub dma: f64,
}

impl Pass<'_> {
    /// Seconds that a pass takes when every use on Host is copied ahead, as far as the slots reach.
    pub fn takes(&self, places: &[Place]) -> f64 {
        self.play(places, |_, _| {})
    }

    /// The same; tells of each use in the second of two passes what became of its copy.
    fn play(&self, places: &[Place], mut tell: impl FnMut(usize, Fate)) -> f64 {
        let (mut gpu, mut link, mut full) = (0.0f64, 0.0f64, 0u64);
        let mut slots: VecDeque<(f64, u64)> = VecDeque::new();
        let mut first = 0.0;
        for lap in 0..2 {
            for (index, &(place, work)) in self.uses.iter().enumerate() {
                let Place { bytes, .. } = places[place];
                let mut fate = Fate::default();
                if places[place].host && places[place].streams {
                    while full + bytes > self.slots {
                        let Some((end, given)) = slots.pop_front() else {
                            break;
                        };
                        fate.idle |= end > link;
                        link = link.max(end);
                        full -= given;
                    }
                    link += bytes as f64 / self.dma;
                    fate.late = link > gpu;
                    gpu = gpu.max(link) + work;
                    full += bytes;
                    slots.push_back((gpu, bytes));
                } else {
                    gpu += work;
                }
                if lap == 1 {
                    tell(index, fate);
                }
            }
            if lap == 0 {
                first = gpu;
            }
        }
        gpu - first
    }

    /// Pairs of places of the same size, the first to leave VRAM and the second to come: at most so many, those that
    /// matter most first. None if the pass would not become shorter enough.
    pub fn swaps(&self, places: &[Place], most: usize) -> Vec<(usize, usize)> {
        let now = self.takes(places);
        let work: f64 = self.uses.iter().map(|u| u.1).sum();
        if now * WORTH <= work {
            return Vec::new();
        }
        let (even, even_takes) = self.even(places);
        let (mut swaps, takes) = if even_takes <= now * WORTH {
            (even, even_takes)
        } else {
            self.by_price(places)
        };
        if takes > now * WORTH {
            return Vec::new();
        }
        swaps.truncate(most);
        swaps
    }

    /// What a byte copied for each use costs: all of its time where a copy after it comes late, and nothing where the link
    /// idles before one does. Added up for each place.
    fn prices(&self, places: &[Place]) -> Vec<f64> {
        let mut fates = vec![Fate::default(); self.uses.len()];
        self.play(places, |use_, fate| fates[use_] = fate);
        let mut prices = vec![0.0; places.len()];
        let mut price = 0.0;
        // What comes after the end is what comes at the beginning.
        for lap in 0..2 {
            for (fate, &(place, _)) in fates.iter().zip(self.uses).rev() {
                if fate.late {
                    price = 1.0;
                }
                if lap == 1 {
                    prices[place] += price;
                }
                if fate.idle {
                    price = 0.0;
                }
            }
        }
        prices
    }

    /// What costs most comes for what would cost least, a part at a time, as long as the pass becomes shorter; and how long
    /// it takes then.
    fn by_price(&self, places: &[Place]) -> (Vec<(usize, usize)>, f64) {
        let mut then = places.to_vec();
        let mut takes = self.takes(&then);
        let mut swaps: Vec<(usize, usize)> = Vec::new();
        let mut part = 4;
        for _ in 0..ROUNDS {
            let prices = self.prices(&then);
            let moved = |p: &usize| then[*p].host != places[*p].host;
            let (mut leave, mut come): (Vec<usize>, Vec<usize>) = (0..then.len())
                .filter(|p| {
                    then[*p].movable && !moved(p) && (then[*p].streams || prices[*p] == 0.0)
                })
                .partition(|p| !then[*p].host);
            // Of those that are alike, any, all along the pass.
            let any = |p: &usize| (*p as u32).wrapping_mul(0x9e37_79b9);
            let key = |p: &usize| (then[*p].bytes, prices[*p] as u32);
            come.sort_by_key(|p| (key(p).0, std::cmp::Reverse(key(p).1), any(p)));
            leave.sort_by_key(|p| (key(p), any(p)));
            let mut leave = leave.into_iter().peekable();
            let mut pairs = Vec::new();
            for comes in come {
                while leave
                    .next_if(|l| then[*l].bytes < then[comes].bytes)
                    .is_some()
                {}
                let less =
                    |l: &usize| then[*l].bytes == then[comes].bytes && prices[*l] < prices[comes];
                pairs.extend(leave.next_if(less).map(|l| (l, comes)));
            }
            if pairs.is_empty() {
                break;
            }
            // Those that gain most first.
            pairs.sort_by_key(|(l, c)| {
                let less = (prices[*c] - prices[*l]) as u64;
                (std::cmp::Reverse(less * then[*c].bytes), any(c))
            });
            pairs.truncate(pairs.len().div_ceil(part));
            let mut next = then.clone();
            exchange(&mut next, &pairs);
            let shorter = self.takes(&next);
            if shorter < takes * 0.999 {
                (then, takes) = (next, shorter);
                swaps.extend(pairs);
            } else {
                part *= 2;
            }
        }
        (swaps, takes)
    }

    /// What has to change for what streams to lie evenly.
    fn even(&self, places: &[Place]) -> (Vec<(usize, usize)>, f64) {
        let streams = |p: usize| places[p].host && places[p].streams;
        let total: f64 = self.uses.iter().map(|u| u.1).sum();
        let bytes: u64 = self
            .uses
            .iter()
            .map(|u| u.0)
            .filter(|p| streams(*p))
            .map(|p| places[p].bytes)
            .sum();
        let largest = self
            .uses
            .iter()
            .map(|u| places[u.0].bytes)
            .max()
            .unwrap_or(0);
        if total <= 0.0 || bytes == 0 {
            return (Vec::new(), f64::INFINITY);
        }
        // The error may become a part of the slots, which cover it.
        let bound = (self.slots as f64 / 8.0).max(1.5 * largest as f64);
        let mut error = 0.0;
        let (mut leave, mut come) = (Vec::new(), Vec::new());
        for &(at, work) in self.uses {
            let place = places[at];
            let size = place.bytes as f64;
            error += bytes as f64 * work / total;
            let movable = place.movable && place.uses == 1;
            if streams(at) {
                if movable && error - size < -bound {
                    come.push(at);
                } else {
                    error -= size;
                }
            } else if movable && !place.host && error - size > bound {
                leave.push(at);
                error -= size;
            }
        }
        // As much leaves as comes, of each size.
        let mut pairs = Vec::new();
        for comes in come {
            let same = |l: &usize| places[*l].bytes == places[comes].bytes;
            if let Some(index) = leave.iter().position(same) {
                pairs.push((leave.remove(index), comes));
            }
        }
        let mut then = places.to_vec();
        exchange(&mut then, &pairs);
        let takes = self.takes(&then);
        (pairs, takes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DMA: f64 = 50e9;

    /// As many places, each used once for a millisecond; those for which `host` is true stream for as long.
    fn even_work(count: usize, host: impl Fn(usize) -> bool) -> (Vec<Place>, Vec<(usize, f64)>) {
        let place = |at| Place {
            bytes: 50_000_000,
            host: host(at),
            movable: true,
            streams: true,
            uses: 1,
        };
        (
            (0..count).map(place).collect(),
            (0..count).map(|at| (at, 1e-3)).collect(),
        )
    }

    fn laid(pass: &Pass, places: &[Place], most: usize) -> Vec<Place> {
        let mut then = places.to_vec();
        exchange(&mut then, &pass.swaps(places, most));
        then
    }

    #[test]
    fn what_lies_together_is_spread() {
        let (places, uses) = even_work(200, |at| at >= 110);
        let pass = Pass {
            uses: &uses,
            slots: 500_000_000,
            dma: DMA,
        };
        // Ninety copies, of which ten are made before the first of them is used.
        assert!(
            pass.takes(&places) > 0.209 * 0.95,
            "{}",
            pass.takes(&places)
        );
        let places: Vec<Place> = places
            .iter()
            .map(|p| Place {
                bytes: 100_000_000,
                ..*p
            })
            .collect();
        let before = pass.takes(&places);
        let then = laid(&pass, &places, 200);
        assert!(
            pass.takes(&then) < before * 0.9,
            "{} of {before}",
            pass.takes(&then)
        );
        assert_eq!(
            then.iter().filter(|p| p.host).count(),
            90,
            "as many are outside"
        );
        assert!(pass.swaps(&then, 200).is_empty(), "then it is good enough");
    }

    #[test]
    fn what_is_even_stays() {
        for every in [2, 3, 5] {
            let (places, uses) = even_work(200, |at| at % every == 0);
            let pass = Pass {
                uses: &uses,
                slots: 500_000_000,
                dma: DMA,
            };
            assert!(pass.swaps(&places, 200).is_empty(), "{every}");
        }
    }

    #[test]
    fn what_is_used_often_comes_where_copies_take_the_time() {
        let (mut places, mut uses) = even_work(100, |at| at >= 50);
        // The last ten are used four times.
        for _ in 0..3 {
            uses.extend((90..100).map(|at| (at, 1e-4)));
        }
        places[90..].iter_mut().for_each(|p| p.uses = 4);
        uses.iter_mut().for_each(|u| u.1 /= 100.0);
        let pass = Pass {
            uses: &uses,
            slots: 200_000_000,
            dma: DMA,
        };
        let then = laid(&pass, &places, 100);
        assert!(then[90..].iter().all(|p| !p.host));
        assert_eq!(
            laid(&pass, &places, 3)
                .iter()
                .zip(&places)
                .filter(|(a, b)| a.host != b.host)
                .count(),
            6
        );
    }

    #[test]
    fn what_may_not_move_or_is_of_another_size_does_not() {
        let (mut places, uses) = even_work(200, |at| at >= 110);
        for place in &mut places {
            place.bytes = 100_000_000;
        }
        places[..110].iter_mut().for_each(|p| p.bytes = 60_000_000);
        let pass = Pass {
            uses: &uses,
            slots: 500_000_000,
            dma: DMA,
        };
        assert!(pass.swaps(&places, 200).is_empty());
        places[..110]
            .iter_mut()
            .for_each(|p| (p.bytes, p.movable) = (100_000_000, false));
        assert!(pass.swaps(&places, 200).is_empty());
    }
}
