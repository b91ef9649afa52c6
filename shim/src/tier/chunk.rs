//! Chunk sizes. A chunk is a whole physical handle, mapped from its start (the driver refuses anything else: measured),
//! so sizes come in few classes and freed backing fits the next allocation.

/// Granularity of physical memory, on devices and on the host (measured; `cuMemGetAllocationGranularity`). Also the size
/// from which an allocation is a range of its own.
pub const GRAIN: u64 = 2 << 20;

/// The classes, largest first, bytes. 64 MiB keeps mapping costs below a tenth of the copy; 20 MiB is PyTorch's segment.
pub const CLASSES: [u64; 4] = [64 << 20, 32 << 20, 20 << 20, GRAIN];

/// The smallest number of chunks that make up `size`, a multiple of [`GRAIN`]; largest first.
pub fn split(size: u64) -> Vec<u64> {
    debug_assert!(size.is_multiple_of(GRAIN));
    let [largest, ..] = CLASSES;
    // The largest class is always right for all but the last two chunks of it; the rest is small enough to try
    // everything (40 MiB is 20 + 20, not 32 and four times 2).
    let whole = (size / largest).saturating_sub(1);
    let mut chunks = vec![largest; whole as usize];
    let mut rest = (size - whole * largest) / GRAIN;
    let first = first_chunks(rest as usize);
    while rest > 0 {
        let class = CLASSES[first[rest as usize]];
        chunks.push(class);
        rest -= class / GRAIN;
    }
    chunks.sort_unstable_by(|a, b| b.cmp(a));
    chunks
}

/// For every number of grains up to `most`: which class a shortest split may take first.
fn first_chunks(most: usize) -> Vec<usize> {
    let mut fewest = vec![0usize; most + 1];
    let mut first = vec![0usize; most + 1];
    for grains in 1..=most {
        let (count, class) = CLASSES
            .iter()
            .enumerate()
            .filter_map(|(i, c)| Some((fewest[grains.checked_sub((c / GRAIN) as usize)?] + 1, i)))
            .min()
            .expect("one grain always fits");
        (fewest[grains], first[grains]) = (count, class);
    }
    first
}

/// What a chunk of this class is tried as when memory is too fragmented or too short for it whole.
/// Empty for the smallest.
pub fn smaller(class: u64) -> Vec<u64> {
    match class {
        GRAIN => Vec::new(),
        c if c == CLASSES[0] => vec![CLASSES[1]; 2],
        c => {
            let next = CLASSES.iter().copied().find(|s| *s < c).unwrap_or(GRAIN);
            let mut parts = vec![next; (c / next) as usize];
            parts.extend(vec![GRAIN; (c % next / GRAIN) as usize]);
            parts
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fewest classes that sum to `size`, by dynamic programming.
    fn fewest(size: u64) -> usize {
        let n = (size / GRAIN) as usize;
        let mut best = vec![0usize; n + 1];
        for i in 1..=n {
            best[i] = CLASSES
                .iter()
                .map(|c| (c / GRAIN) as usize)
                .filter(|c| *c <= i)
                .map(|c| best[i - c] + 1)
                .min()
                .unwrap();
        }
        best[n]
    }

    #[test]
    fn splits_are_exact_and_shortest() {
        for n in 0..200 {
            let size = n * GRAIN;
            let chunks = split(size);
            assert_eq!(chunks.iter().sum::<u64>(), size);
            assert!(chunks.iter().all(|c| CLASSES.contains(c)));
            assert_eq!(chunks.len(), fewest(size), "{size}: {chunks:?}");
        }
    }

    #[test]
    fn smaller_pieces_are_the_same_amount() {
        for class in CLASSES {
            let parts = smaller(class);
            if class == GRAIN {
                assert!(parts.is_empty());
                continue;
            }
            assert_eq!(parts.iter().sum::<u64>(), class);
            assert!(
                parts.iter().all(|p| *p < class && CLASSES.contains(p)),
                "{class}: {parts:?}"
            );
        }
    }
}
