//! The hash of `greenboost_hash`, on the CPU: the same bits (`assets/shim.cu` says why it is made so).
//!
//! The sources are compiled a second time into the simulated driver and into the conformance suite.

/// To two sums, a word and its number among all words.
pub fn add(sums: &mut [u64; 2], number: u64, word: u64) {
    let key = number.wrapping_add(1).wrapping_mul(0xA076_1D64_78BD_642F);
    let mut m = word ^ key;
    m ^= m >> 32;
    m = m.wrapping_mul(0xBF58_476D_1CE4_E5B9);
    m ^= m >> 32;
    m = m.wrapping_add(key.rotate_left(32));
    m = m.wrapping_mul(0x94D0_49BB_1331_11EB);
    m ^= m >> 32;
    sums[0] = sums[0].wrapping_add(m);
    m ^= m >> 29;
    m = m.wrapping_mul(0xD6E8_FEB8_6659_FD93);
    m ^= m >> 32;
    sums[1] = sums[1].wrapping_add(m);
}

/// The hash of these words, as the GPU has it of the bytes in memory. (The simulated driver has no use for it.)
#[allow(dead_code)]
pub fn hash(words: impl IntoIterator<Item = u64>) -> [u64; 2] {
    let mut sums = [0; 2];
    for (number, word) in (0..).zip(words) {
        add(&mut sums, number, word);
    }
    sums
}
