//! Room between a pool's allocations.

use super::Piece;

/// Whether `bytes` fit between what is `taken`, in the granules that this or what is `usable` lies in.
pub fn fits(mut taken: Vec<Piece>, usable: &[Piece], granule: u64, bytes: u64) -> bool {
    // What the driver aligns allocations to (measured).
    const ALIGN: u64 = 512;
    let mut blocks: Vec<Piece> = taken
        .iter()
        .chain(usable)
        .map(|(at, size)| (at - at % granule, (at + size).next_multiple_of(granule)))
        .collect();
    blocks.sort_unstable();
    taken.sort_unstable();
    let mut taken = taken.into_iter().peekable();
    let mut at = 0;
    for (start, end) in blocks {
        at = at.max(start);
        while let Some((next, size)) = taken.next_if(|(next, _)| *next < end) {
            if next.saturating_sub(at) >= bytes {
                return true;
            }
            at = at.max((next + size).next_multiple_of(ALIGN));
        }
        if end.saturating_sub(at) >= bytes {
            return true;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::Piece;

    #[test]
    fn gaps_between_what_lives() {
        let fit = |taken: &[Piece], usable: &[Piece], bytes| {
            super::fits(taken.to_vec(), usable, 1000, bytes)
        };
        assert!(!fit(&[], &[], 1));
        assert!(fit(&[(1000, 100)], &[], 400));
        // The gap begins at a multiple of 512: at 1536.
        assert!(fit(&[(1000, 100)], &[], 464) && !fit(&[(1000, 100)], &[], 465));
        assert!(fit(&[(1900, 100)], &[], 900) && !fit(&[(1900, 100)], &[], 901));
        assert!(!fit(&[(1000, 1000), (5000, 1000)], &[], 1));
        assert!(fit(&[(1000, 1000)], &[(5000, 1000)], 1000));
        // Two granules that one allocation lay in are one block.
        assert!(fit(&[], &[(5000, 1500)], 2000) && !fit(&[], &[(5000, 1500)], 2001));
        assert!(!fit(&[(5200, 700)], &[(5000, 1000)], 500));
    }
}
