//! How much of a new allocation goes to VRAM. First come, first served for now: VRAM while the budget has room, the tail
//! on Host.

use greenboost_wire::ledger::VramLimit;

use super::chunk::GRAIN;

/// Bytes of a new range that go to VRAM; the rest is its tail, on Host. All arguments are bytes, `span` a multiple of
/// [`GRAIN`], and so is the result.
///
/// A range that does not fit whole leaves `reserve` untouched: small allocations that follow stay in VRAM.
pub fn vram_share(span: u64, room: u64, reserve: u64) -> u64 {
    if span <= room {
        return span;
    }
    let usable = room.saturating_sub(reserve);
    usable - usable % GRAIN
}

/// The room that a range leaves for small allocations when it spills, bytes.
pub fn small_reserve(vram_limit: u64) -> u64 {
    (vram_limit / 32).min(32 << 20)
}

/// The VRAM limit of a device with `total` bytes, as far as it is known before a context exists.
///
/// Without a limit from the user a part stays free for what no allocation call shows (PITFALLS 29): contexts, modules,
/// local memory.
pub fn first_limit(wish: VramLimit, total: u64) -> u64 {
    wish.of(total).unwrap_or_else(|| total - headroom(total))
}

/// The limit without a wish of the user, once it is known what is free.
pub fn free_limit(total: u64, free: u64) -> u64 {
    free.min(total).saturating_sub(headroom(total))
}

/// What stays free: 2 % of the card, at least 512 MiB; on very small devices an eighth.
fn headroom(total: u64) -> u64 {
    (total / 50).max(512 << 20).min(total / 8)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn what_fits_goes_to_vram_whole() {
        assert_eq!(vram_share(64 * MIB, 64 * MIB, 32 * MIB), 64 * MIB);
    }

    #[test]
    fn what_does_not_leaves_the_reserve() {
        assert_eq!(vram_share(64 * MIB, 63 * MIB, 8 * MIB), 54 * MIB);
        assert_eq!(vram_share(64 * MIB, 8 * MIB, 8 * MIB), 0);
        assert_eq!(vram_share(64 * MIB, 0, 8 * MIB), 0);
    }

    #[test]
    fn limits() {
        assert_eq!(first_limit(VramLimit::Bytes(20 << 30), 80 << 30), 20 << 30);
        assert_eq!(first_limit(VramLimit::Bytes(200 << 30), 80 << 30), 80 << 30);
        assert_eq!(first_limit(VramLimit::Share(2_500), 80 << 30), 20 << 30);
        assert_eq!(first_limit(VramLimit::Share(20_000), 80 << 30), 80 << 30);
        assert_eq!(
            first_limit(VramLimit::Free, 8 << 30),
            (8 << 30) - (512 << 20)
        );
        assert_eq!(first_limit(VramLimit::Free, 64 * MIB), 56 * MIB);
        assert_eq!(free_limit(80 << 30, 10 << 30), (10 << 30) - (80 << 30) / 50);
        assert_eq!(free_limit(80 << 30, 1), 0);
    }
}
