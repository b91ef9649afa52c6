//! Memory that requests read and write, given by the caller.
//!
//! It should be huge pages: a request is then one piece of physical memory, and with small pages some disks were seen at
//! half the rate. And it should not be inherited by forks (`MADV_DONTFORK`): kernels before 5.12 may give the page into
//! which a disk is just writing to the child.

/// Memory whose pages may be pinned for as long as the store lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// Where it begins.
    pub address: usize,
    /// Bytes.
    pub len: usize,
}

/// Memory of one operation: a chunk's size, at a multiple of [`super::queue::UNIT`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffer {
    /// Where it begins.
    pub address: usize,
    /// Bytes.
    pub len: usize,
}

impl Buffer {
    /// Whether they share a byte.
    pub fn overlaps(&self, other: &Buffer) -> bool {
        self.address < other.address + other.len && other.address < self.address + self.len
    }
}
