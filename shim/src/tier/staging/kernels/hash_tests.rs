//! What the hash promises. (Apart from its source, which others compile too.)

use proptest::collection::vec;
use proptest::prelude::*;

use super::hash::{add, hash};

fn of(words: &[u64]) -> [u64; 2] {
    hash(words.iter().copied())
}

/// Both halves, each for itself: one that saw nothing would leave 64 bits.
fn differ(a: &[u64], b: &[u64]) -> bool {
    let (a, b) = (of(a), of(b));
    a[0] != b[0] && a[1] != b[1]
}

#[test]
fn known_bits() {
    assert_eq!(of(&[]), [0, 0]);
    let expected = [0x8b82_3e5b_b16b_dbed, 0xef46_a7a9_8a2d_e494];
    assert_eq!(of(&[0, 0]), expected);
    let expected = [0x18ea_9201_327a_007c, 0xbba1_46d7_bb25_cebb];
    assert_eq!(of(&[1, 2, 3, u64::MAX]), expected);
}

/// What memory is full of: zeroes, one value, counters, small numbers, anything.
fn contents() -> impl Strategy<Value = Vec<u64>> {
    let like = prop_oneof![
        Just((0, 0, 0)),
        (any::<u64>(), Just(0), Just(0)),
        (any::<u64>(), any::<u64>(), Just(0)),
        (Just(0), Just(1), Just(0)),
        (Just(0), Just(0), 1..16u64),
        (Just(0), Just(0), Just(u64::MAX)),
    ];
    (like, vec(any::<u64>(), 4..300)).prop_map(|((base, step, noise), random)| {
        let word = |(i, r): (u64, u64)| {
            base.wrapping_add(step.wrapping_mul(i))
                .wrapping_add(r & noise)
        };
        (0..).zip(random).map(word).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn a_flipped_bit_shows(words in contents(), at in any::<prop::sample::Index>(), bit in 0..64) {
        let mut other = words.clone();
        other[at.index(words.len())] ^= 1u64 << bit;
        prop_assert!(differ(&words, &other));
    }

    #[test]
    fn two_flipped_bits_show(words in contents(), a in any::<prop::sample::Index>(), b in any::<prop::sample::Index>(), bit in 0..64, other_bit in 0..64) {
        let mut other = words.clone();
        other[a.index(words.len())] ^= 1u64 << bit;
        other[b.index(words.len())] ^= 1u64 << other_bit;
        prop_assert!(words == other || differ(&words, &other));
    }

    #[test]
    fn swapped_words_show(words in contents(), a in any::<prop::sample::Index>(), b in any::<prop::sample::Index>()) {
        let mut other = words.clone();
        other.swap(a.index(words.len()), b.index(words.len()));
        prop_assert!(words == other || differ(&words, &other));
    }

    #[test]
    fn a_shift_shows(words in contents(), by in 1..300usize) {
        let mut other = words.clone();
        other.rotate_right(by % words.len());
        prop_assert!(words == other || differ(&words, &other));
        let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
        let mut moved = bytes.clone();
        moved.rotate_right(by % bytes.len());
        let moved: Vec<u64> = moved.chunks(8).map(|c| u64::from_le_bytes(c.try_into().unwrap())).collect();
        prop_assert!(words == moved || differ(&words, &moved));
    }

    #[test]
    fn what_is_added_in_any_order_is_the_same(words in contents(), at in any::<prop::sample::Index>()) {
        let mut sums = [0; 2];
        let (before, after) = words.split_at(at.index(words.len()));
        for (i, word) in after.iter().enumerate().rev() {
            add(&mut sums, (before.len() + i) as u64, *word);
        }
        let first = of(before);
        prop_assert_eq!([0, 1].map(|i| sums[i].wrapping_add(first[i])), of(&words));
    }
}

/// Every bit of a word changes about half of the bits of both sums, wherever the word is.
#[test]
fn bits_spread() {
    for number in [0, 1, 7, 1 << 20, (8 << 30) / 8] {
        for half in 0..2 {
            let mut flips = [[0u32; 64]; 64];
            for word in 0..200u64 {
                let word = word.wrapping_mul(0x0123_4567_89ab_cdef);
                let one = |word| {
                    let mut sums = [0; 2];
                    add(&mut sums, number, word);
                    sums[half]
                };
                for (bit, flips) in flips.iter_mut().enumerate() {
                    let changed = one(word) ^ one(word ^ 1 << bit);
                    for (out, count) in flips.iter_mut().enumerate() {
                        *count += (changed >> out & 1) as u32;
                    }
                }
            }
            for (bit, flips) in flips.iter().enumerate() {
                let all: u32 = flips.iter().sum();
                // Of 200 times 64: within a tenth of the half.
                assert!((5760..7040).contains(&all), "{number} {half} {bit}: {all}");
            }
        }
    }
}

/// Many small changes at once cancel no better than chance would have it: no two of 200,000 hashes share even half.
#[test]
fn many_changes_collide_with_none() {
    let mut seen = [(); 2].map(|()| std::collections::HashSet::new());
    let mut words = vec![0u64; 64];
    let mut state = 1u64;
    for _ in 0..200_000 {
        state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        let (at, to) = ((state >> 40) % 64, (state >> 60) % 4);
        words[at as usize] = words[at as usize].wrapping_add(to.wrapping_add(1) << 32);
        let sums = of(&words);
        for half in 0..2 {
            assert!(seen[half].insert(sums[half]));
        }
    }
}
