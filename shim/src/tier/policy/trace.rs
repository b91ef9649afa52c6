//! What the policy was told, recorded: `--trace FILE`. The layout is described in `shim/TRACE.md`.
//!
//! A record is a kind, a length and so many bytes; who does not know the kind skips it, and what a known record has more
//! than is known is ignored. So a file can hold more than its reader understands. A program that is killed leaves a
//! file that ends within a record: what is before it counts.

mod read;
mod write;

use greenboost_wire::ledger::Tier;

use super::{Costs, Op};
pub use read::Reader;
pub use write::Writer;

/// What a file begins with: the name and the version. A version is only raised when old readers would misunderstand.
pub const MAGIC: [u8; 8] = *b"GBTRACE\x01";

/// Bytes that a record may have; longer ones are skipped.
pub const LONGEST: u64 = 1 << 20;

/// Addresses that are remembered, and named by a number from then on.
const REMEMBERED: usize = 1 << 16;

/// The kinds of records.
mod kind {
    pub const BEGUN: u64 = 1;
    pub const ALLOCATED: u64 = 2;
    pub const FREED: u64 = 3;
    pub const FIXED: u64 = 4;
    pub const MOVED: u64 = 5;
    pub const NAMED: u64 = 6;
    pub const FUNCTION: u64 = 7;
    pub const WAITED: u64 = 8;
    pub const DRAINED: u64 = 9;
}

/// One thing that happened, at a time in nanoseconds since the trace began.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// Nanoseconds since the trace began; never less than that of the record before.
    pub at: u64,
    /// What happened.
    pub event: Event,
}

/// What happened.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The trace begins, or a limit was changed.
    Begun {
        /// The limit of VRAM, bytes.
        vram: u64,
        /// The limit of Host, bytes.
        host: u64,
        /// What was measured.
        costs: Costs,
    },
    /// A new allocation.
    Allocated {
        /// Its address.
        base: u64,
        /// What the program asked for, bytes.
        bytes: u64,
        /// It may be moved.
        movable: bool,
        /// Its chunks, one after the other, bytes.
        chunks: Vec<(u64, Tier)>,
    },
    /// The allocation at this address is gone.
    Freed {
        /// Its address.
        base: u64,
    },
    /// The allocation at this address is never moved from now on.
    Fixed {
        /// Its address.
        base: u64,
    },
    /// A chunk was moved.
    Moved {
        /// The allocation's address.
        base: u64,
        /// Which of its chunks.
        chunk: u64,
        /// Where to.
        to: Tier,
    },
    /// An operation names addresses.
    Named {
        /// What it is.
        op: Op,
        /// The thread that made it, a number from 1.
        thread: u64,
        /// The function, numbered likewise; 0 for what has none.
        function: u64,
        /// The addresses inside the program's allocations.
        addresses: Vec<u64>,
    },
    /// What a function is called.
    Function {
        /// Its number.
        id: u64,
        /// Its name.
        name: String,
    },
    /// The program waited for the device.
    Waited,
    /// The shim tried to find the device drained.
    Drained {
        /// It was.
        drained: bool,
        /// Nanoseconds that it took.
        took: u64,
    },
}
