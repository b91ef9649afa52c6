//! What a device's allocations cost: chunks moved, bytes used in each tier, time waited. Counters only grow, and outlive
//! the processes that added to them.

use crate::sync::AtomicU64;

/// The counters of one device.
#[repr(C, align(64))]
pub struct Traffic {
    /// Bytes of chunks that were brought to VRAM.
    pub promoted_bytes: AtomicU64,
    /// Bytes of chunks that were sent to Host.
    pub demoted_bytes: AtomicU64,
    /// Chunks that were brought to VRAM.
    pub promotions: AtomicU64,
    /// Chunks that were sent to Host.
    pub demotions: AtomicU64,
    /// Moves that were begun and given up: the device did not drain in time, or a capture was opened.
    pub moves_abandoned: AtomicU64,
    /// How long the device was held for moves, nanoseconds.
    pub move_nanos: AtomicU64,
    /// How long calls of the program waited at the gate, all threads together, nanoseconds.
    pub waited_nanos: AtomicU64,
    /// Bytes that operations named in each tier, by [`super::Tier`], while anything was outside VRAM. A kernel need not use
    /// all that it names, and may read it more than once; of what is on Host each time crosses the link.
    pub named_bytes: [AtomicU64; 2],
    /// Chunks that were staged: copied into VRAM ahead of their use.
    pub stagings: AtomicU64,
    /// Bytes of them.
    pub staged_bytes: AtomicU64,
    /// Bytes of staged chunks that had changed, and were copied home.
    pub returned_bytes: AtomicU64,
    /// How long launches waited for chunks that were staged, all threads together, nanoseconds.
    pub staging_nanos: AtomicU64,
}

/// How a process uses one device now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pace {
    /// Bytes that one step uses in each tier, by [`super::Tier`].
    pub heat: [u64; 2],
    /// How long a step takes, nanoseconds.
    pub step_nanos: u64,
}
