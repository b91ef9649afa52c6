//! Which allocations are unescaped: no word in memory that the GPU reaches holds an address inside them, so only
//! operations that name them touch them. Pure.
//!
//! A conservative collector's argument: at first all memory is searched for such words. From then on a word can only come
//! from an operation that was given an address. Copies between device memory carry only words that were there, uploads
//! are searched as they pass, and of kernels each *function* is watched once: while the first launch of it that is given an
//! address runs, nothing is in transit, and behind it memory is searched again. A function that left such a word is a
//! pointer-maker: whatever it is given has escaped for ever.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

/// What is known of an allocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Memory has not been searched since it came.
    Unproven,
    /// No word names it.
    Unescaped,
    /// A word names it, or may.
    Escaped,
}

/// What is known of a function that was given addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Function {
    /// It has not been watched.
    New,
    /// It left no word behind.
    Harmless,
    /// It leaves words behind.
    Maker,
}

/// All of them.
#[derive(Debug, Default)]
pub struct Escapes {
    /// Address, bytes and status of each allocation.
    allocations: BTreeMap<u64, (u64, Status)>,
    functions: HashMap<u64, Function>,
    /// Where the highest allocation so far ended.
    highest: u64,
}

/// Words that name an allocation may point a little before it or behind it: bytes on either side (DESIGN section 6).
pub const PAD: u64 = crate::driver::GAP / 2;

impl Escapes {
    /// An allocation has come. `watching`: functions are watched by now.
    ///
    /// Addresses that nobody had before are in no word of memory, so it is unescaped until a function leaves one. Those
    /// that come again may be in words of what was there.
    pub fn born(&mut self, base: u64, bytes: u64, watching: bool) {
        let is_new = base >= self.highest.saturating_add(PAD);
        self.highest = self.highest.max(base + bytes);
        let status = match watching && is_new {
            true => Status::Unescaped,
            false => Status::Unproven,
        };
        self.allocations.insert(base, (bytes, status));
    }

    /// It is gone.
    pub fn gone(&mut self, base: u64) {
        self.allocations.remove(&base);
    }

    /// What is known of the allocation that starts here.
    pub fn status(&self, base: u64) -> Status {
        self.allocations
            .get(&base)
            .map_or(Status::Escaped, |(_, status)| *status)
    }

    /// It has escaped.
    pub fn escaped(&mut self, base: u64) {
        if let Some((_, status)) = self.allocations.get_mut(&base) {
            *status = Status::Escaped;
        }
    }

    /// It may have escaped: memory has to be searched again.
    pub fn doubt(&mut self, base: u64) {
        if let Some((_, status @ Status::Unescaped)) = self.allocations.get_mut(&base) {
            *status = Status::Unproven;
        }
    }

    /// The same of all.
    pub fn doubt_all(&mut self) {
        for (_, status) in self.allocations.values_mut() {
            if *status == Status::Unescaped {
                *status = Status::Unproven;
            }
        }
    }

    /// Whether memory has to be searched before more can be proven.
    pub fn is_unproven(&self) -> bool {
        let mut all = self.allocations.values();
        all.any(|(_, status)| *status == Status::Unproven)
    }

    /// What is known of a function.
    pub fn function(&self, function: u64) -> Function {
        self.functions
            .get(&function)
            .copied()
            .unwrap_or(Function::New)
    }

    /// The ranges that a search looks for, in order and apart: all that have not escaped. Which allocations each is of.
    pub fn wanted(&self) -> (Vec<Range<u64>>, Vec<Vec<u64>>) {
        let (mut ranges, mut of): (Vec<Range<u64>>, Vec<Vec<u64>>) = (Vec::new(), Vec::new());
        for (base, (bytes, status)) in &self.allocations {
            if *status == Status::Escaped {
                continue;
            }
            let (from, to) = (base.saturating_sub(PAD), base + bytes + PAD);
            match ranges.last_mut() {
                // Padding that overlaps: a word there may be either's.
                Some(last) if from < last.end => {
                    last.end = to;
                    of.last_mut().expect("as many").push(*base);
                }
                _ => {
                    ranges.push(from..to);
                    of.push(vec![*base]);
                }
            }
        }
        (ranges, of)
    }

    /// All memory was searched: words were found for the ranges with a true flag. Returns what has escaped by that.
    pub fn searched(&mut self, of: &[Vec<u64>], found: &[bool]) -> Vec<u64> {
        let mut out = Vec::new();
        for (bases, found) in of.iter().zip(found) {
            for base in bases {
                let Some((_, status)) = self.allocations.get_mut(base) else {
                    continue;
                };
                match found {
                    true => {
                        *status = Status::Escaped;
                        out.push(*base);
                    }
                    false if *status == Status::Unproven => *status = Status::Unescaped,
                    false => {}
                }
            }
        }
        out
    }

    /// A function was watched while it ran, and memory searched behind it: whether that found anything.
    pub fn watched(&mut self, function: u64, left_words: bool) {
        let known = match left_words {
            true => Function::Maker,
            false => Function::Harmless,
        };
        self.functions.insert(function, known);
    }

    /// A function may do something else from now on.
    pub fn forget(&mut self, function: u64) {
        self.functions.remove(&function);
    }

    /// Code is unloaded: its handles may come back for other functions. Pointer-makers stay what they are: to take
    /// another function for one costs speed only.
    pub fn forget_functions(&mut self) {
        self.functions.retain(|_, known| *known == Function::Maker);
    }

    /// Gives `each` the allocations that a word names, of those that have not escaped.
    pub fn names(&self, word: u64, mut each: impl FnMut(u64)) {
        let address = word & ((1 << 48) - 1);
        let near = self.allocations.range(..=address.saturating_add(PAD));
        for (base, (bytes, status)) in near.rev() {
            // They do not overlap: those before end before.
            if address >= base + bytes + PAD {
                return;
            }
            if *status != Status::Escaped {
                each(*base);
            }
        }
    }

    /// First and last address that any word could name; empty when there is nothing to be named.
    pub fn bounds(&self) -> (u64, u64) {
        let mut all = self
            .allocations
            .iter()
            .filter(|(_, (_, status))| *status != Status::Escaped)
            .map(|(base, (bytes, _))| (base.saturating_sub(PAD), base + bytes + PAD));
        let Some(first) = all.next() else {
            return (1, 0);
        };
        (first.0, all.next_back().map_or(first.1, |last| last.1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const A: u64 = 0x2b67_0000_0000;

    #[test]
    fn only_what_was_searched_for_is_proven() {
        let mut e = Escapes::default();
        e.born(A, 64 * MIB, false);
        e.born(A + 1024 * MIB, 20 * MIB, false);
        assert_eq!(e.status(A), Status::Unproven);
        let (ranges, of) = e.wanted();
        assert_eq!(ranges[0], A - PAD..A + 64 * MIB + PAD);
        assert_eq!(of, [vec![A], vec![A + 1024 * MIB]]);
        // One more comes while memory is searched: it is not proven by that.
        e.born(A + 2048 * MIB, 2 * MIB, false);
        assert_eq!(e.searched(&of, &[false, true]), [A + 1024 * MIB]);
        assert_eq!(e.status(A), Status::Unescaped);
        assert_eq!(e.status(A + 1024 * MIB), Status::Escaped);
        assert_eq!(e.status(A + 2048 * MIB), Status::Unproven);
        assert_eq!(e.status(A + 1), Status::Escaped, "nothing is known of it");
        // Once escaped, for ever; and nobody looks for it again.
        let (_, of) = e.wanted();
        assert!(!of.concat().contains(&(A + 1024 * MIB)));
    }

    #[test]
    fn ranges_whose_padding_meets_are_one() {
        let mut e = Escapes::default();
        e.born(A, 20 * MIB, false);
        e.born(A + 20 * MIB, 20 * MIB, false);
        e.born(A + 60 * MIB, 2 * MIB, false);
        let (ranges, of) = e.wanted();
        assert_eq!(ranges.len(), 2);
        assert!(ranges[0].end <= ranges[1].start);
        assert_eq!(of[0], [A, A + 20 * MIB]);
        assert_eq!(e.searched(&of, &[true, false]), [A, A + 20 * MIB]);
    }

    fn named(e: &Escapes, word: u64) -> Vec<u64> {
        let mut all = Vec::new();
        e.names(word, |base| all.push(base));
        all
    }

    #[test]
    fn words_with_tags_and_at_the_ends() {
        let mut e = Escapes::default();
        e.born(A, 20 * MIB, false);
        for word in [A, A + 20 * MIB - 1, A - 8, A + 20 * MIB, 0xabcd << 48 | A] {
            assert_eq!(named(&e, word), [A], "{word:x}");
        }
        for word in [0, A - PAD - 1, A + 20 * MIB + PAD, u64::MAX] {
            assert_eq!(named(&e, word), [], "{word:x}");
        }
        assert_eq!(e.bounds(), (A - PAD, A + 20 * MIB + PAD));
        // Where the padding of two meets, a word is either's.
        e.born(A + 22 * MIB, 2 * MIB, false);
        assert_eq!(named(&e, A + 21 * MIB), [A + 22 * MIB, A]);
        assert_eq!(named(&e, A + 5 * MIB), [A]);
        e.escaped(A);
        assert_eq!(named(&e, A), []);
        e.gone(A + 22 * MIB);
        assert_eq!(e.bounds(), (1, 0));
    }

    #[test]
    fn addresses_that_nobody_had_are_in_no_word() {
        let mut e = Escapes::default();
        e.born(A, 20 * MIB, false);
        e.born(A + 24 * MIB, 20 * MIB, true);
        assert_eq!(e.status(A + 24 * MIB), Status::Unescaped);
        // It comes again, and a word may be left of it.
        e.gone(A + 24 * MIB);
        e.born(A + 24 * MIB, 20 * MIB, true);
        assert_eq!(e.status(A + 24 * MIB), Status::Unproven);
        // So may one that named the end of another.
        e.born(A + 45 * MIB, 2 * MIB, true);
        assert_eq!(e.status(A + 45 * MIB), Status::Unproven);
    }

    #[test]
    fn functions_are_watched_once() {
        let mut e = Escapes::default();
        assert_eq!(e.function(1), Function::New);
        e.watched(1, false);
        e.watched(2, true);
        assert_eq!(e.function(1), Function::Harmless);
        e.forget_functions();
        assert_eq!(e.function(1), Function::New);
        assert_eq!(e.function(2), Function::Maker);
    }
}
