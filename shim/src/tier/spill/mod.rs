//! The file of the tier below RAM: chunks go to a disk and come back, whole and unchanged, or it is said that they do not.
//!
//! Nothing here knows CUDA: memory is an address and a length. From the bottom up:
//! - [`slots`]: who has which part of the file; pure;
//! - [`table`] and [`file`]: a file without a name, in a table of descriptors that the program does not share;
//! - [`queue`]: many requests at once, by io_uring or by threads; [`trial`] finds out which;
//! - [`worker`]: the thread that cuts operations into requests, and computes and compares checksums;
//! - [`store`]: what the rest of the shim calls.
//!
//! # What it promises
//! - A slot that was reserved has its room on the disk, where the file system can set room aside.
//! - Data counts as written when its operation has ended well, never before. A write that fails gives the slot back, and
//!   the caller still has the data: it retries elsewhere. Where the disk failed nothing is written again.
//! - What is read has the checksum of what was written, or is an error of its own kind, [`store::Failure::Checksum`].
//!   128 bits of XXH3 for each 2 MiB: it finds what disks, cables and file systems do by accident, at memory speed
//!   (27 GB/s measured); nobody forges here. The sums lie in memory, so a block that was written to the wrong place or
//!   not at all is found too.
//! - Nobody waits longer than asked for. An operation on a disk that stalls goes on, and its memory is taken until it has
//!   ended.
//! - Nothing starts before [`store::Store::open`]; its threads take no signals; the child of a fork has neither file nor
//!   ring, and is refused.

pub mod area;
pub mod file;
pub mod promise;
pub mod queue;
pub mod slots;
pub mod store;
pub mod table;
pub mod trial;
pub mod worker;

#[cfg(test)]
mod tests;
