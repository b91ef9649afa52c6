//! What `greenboost_scan` is told, as it lies in memory: where to look, and what for.

use std::ops::Range;

/// What one thread block looks through at a time, bytes (`TILE` in `assets/shim.cu`).
const TILE: u64 = 32 << 10;

/// Memory to look through: address and bytes. What counts are the words that begin at a multiple of 8 and lie in it
/// whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Area {
    /// First byte.
    pub address: u64,
    /// Bytes.
    pub bytes: u64,
}

impl Area {
    fn tiles(self) -> Option<u64> {
        let end = self.address.checked_add(self.bytes)? & !7;
        let begin = self.address.checked_next_multiple_of(8)?;
        let body = begin.checked_next_multiple_of(16)?;
        // An area may have a word at each end that no aligned 16 bytes hold: it has a tile for them.
        let tiles = (end & !15).saturating_sub(body).div_ceil(TILE).max(1);
        Some(if begin < end { tiles } else { 0 })
    }
}

/// The input of a scan.
#[derive(Debug, PartialEq, Eq)]
pub struct Input {
    /// As it lies in memory: three words for each area, three for their end, two for each range.
    pub words: Vec<u64>,
    /// How many areas there are.
    pub areas: u64,
    /// Where the ranges begin in memory, bytes.
    pub table: u64,
    /// How many thread blocks find something to do.
    pub tiles: u64,
}

impl Input {
    /// Areas without a word are left out. `None`: an area wraps around, or a range is empty or its start or end is below
    /// that of the one before.
    pub fn new(areas: &[Area], table: &[Range<u64>]) -> Option<Input> {
        let empty = table.iter().any(|r| r.is_empty());
        let sorted = |(a, b): (&Range<u64>, &Range<u64>)| a.start <= b.start && a.end <= b.end;
        if empty || !table.iter().zip(table.iter().skip(1)).all(sorted) {
            return None;
        }
        let mut words = Vec::with_capacity(3 * (areas.len() + 1) + 2 * table.len());
        let (mut tiles, mut count) = (0, 0);
        for area in areas {
            let own = area.tiles()?;
            if own > 0 {
                words.extend([area.address, area.bytes, tiles]);
                tiles += own;
                count += 1;
            }
        }
        words.extend([0, 0, tiles]);
        let table_at = 8 * words.len() as u64;
        words.extend(table.iter().flat_map(|r| [r.start, r.end]));
        Some(Input {
            words,
            areas: count,
            table: table_at,
            tiles,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn area(address: u64, bytes: u64) -> Area {
        Area { address, bytes }
    }

    #[test]
    fn tiles_cover_an_area() {
        let tiles = |address, bytes| area(address, bytes).tiles();
        assert_eq!(tiles(0x1000, 0), Some(0));
        assert_eq!(tiles(0x1001, 14), Some(0), "no whole word");
        assert_eq!(tiles(0x1001, 15), Some(1));
        assert_eq!(tiles(0x1008, 8), Some(1), "one word, not in 16 bytes");
        assert_eq!(tiles(0x1000, TILE), Some(1));
        assert_eq!(tiles(0x1000, TILE + 8), Some(1), "a word at the end");
        assert_eq!(tiles(0x1000, TILE + 16), Some(2));
        assert_eq!(tiles(0x1008, TILE + 8), Some(1), "a word at the start");
        assert_eq!(tiles(u64::MAX - 15, 32), None);
    }

    #[test]
    fn what_lies_in_memory() {
        let areas = [area(0x2000, TILE * 2), area(0x100, 4), area(0x9008, 24)];
        let table = [5..6, 5..7, 6..9];
        let input = Input::new(&areas, &table).unwrap();
        let expected = [
            0x2000,
            TILE * 2,
            0,
            0x9008,
            24,
            2,
            0,
            0,
            3,
            5,
            6,
            5,
            7,
            6,
            9,
        ];
        assert_eq!(input.words, expected);
        assert_eq!((input.areas, input.table, input.tiles), (2, 72, 3));
        let nothing = Input::new(&[], &[]).unwrap();
        assert_eq!((nothing.words, nothing.table), (vec![0; 3], 24));
    }

    #[test]
    #[allow(clippy::reversed_empty_ranges)]
    fn the_table_is_in_order() {
        for table in [[5..5, 6..7], [5..4, 6..7], [5..8, 4..9], [4..9, 5..8]] {
            assert_eq!(Input::new(&[], &table), None);
        }
        assert_eq!(Input::new(&[area(u64::MAX, 16)], &[]), None);
    }
}
