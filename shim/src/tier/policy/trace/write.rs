//! Writing a trace.

use std::collections::HashMap;
use std::io::{self, Write};

use greenboost_wire::ledger::Tier;

use super::{Event, MAGIC, REMEMBERED, Record, kind};
use crate::tier::chunk::GRAIN;
use crate::tier::policy::Op;

/// Writes a trace. It does not flush: what is handed in is buffered as the inner writer buffers.
#[derive(Debug)]
pub struct Writer<W> {
    into: W,
    at: u64,
    known: HashMap<u64, u64>,
    last: u64,
    record: Vec<u8>,
    head: Vec<u8>,
}

impl<W: Write> Writer<W> {
    /// Begins a trace.
    ///
    /// # Errors
    /// Those of the inner writer.
    pub fn new(mut into: W) -> io::Result<Writer<W>> {
        into.write_all(&MAGIC)?;
        Ok(Writer {
            into,
            at: 0,
            known: HashMap::new(),
            last: 0,
            record: Vec::new(),
            head: Vec::new(),
        })
    }

    /// Writes a record. A time before that of the last record is taken for that.
    ///
    /// # Errors
    /// Those of the inner writer. The trace ends there: the record may be there in part.
    pub fn record(&mut self, record: &Record) -> io::Result<()> {
        let at = record.at.max(self.at);
        self.record.clear();
        self.put(at - self.at);
        self.at = at;
        let kind = match &record.event {
            Event::Begun { vram, host, costs } => {
                self.put(*vram);
                self.put(*host);
                for cost in [
                    costs.link,
                    costs.vram,
                    costs.move_per_byte,
                    costs.move_each,
                    costs.drain,
                ] {
                    self.record.extend(cost.to_le_bytes());
                }
                kind::BEGUN
            }
            Event::Allocated {
                base,
                bytes,
                movable,
                chunks,
            } => {
                self.address(*base);
                self.put(*bytes);
                self.put(u64::from(*movable));
                self.put(chunks.chunk_by(|a, b| a == b).count() as u64);
                for run in chunks.chunk_by(|a, b| a == b) {
                    self.size(run[0].0);
                    self.tier(run[0].1);
                    self.put(run.len() as u64);
                }
                kind::ALLOCATED
            }
            Event::Freed { base } => {
                self.address(*base);
                kind::FREED
            }
            Event::Fixed { base } => {
                self.address(*base);
                kind::FIXED
            }
            Event::Moved { base, chunk, to } => {
                self.address(*base);
                self.put(*chunk);
                self.tier(*to);
                kind::MOVED
            }
            Event::Named {
                op,
                thread,
                function,
                addresses,
            } => {
                let (op, bytes) = match *op {
                    Op::Launch => (0, None),
                    Op::Graph => (1, None),
                    Op::Copy { bytes } => (2, Some(bytes)),
                    Op::Memset { bytes } => (3, Some(bytes)),
                };
                self.put(op);
                if let Some(bytes) = bytes {
                    self.put(bytes);
                }
                self.put(*thread);
                self.put(*function);
                self.put(addresses.len() as u64);
                addresses.iter().for_each(|a| self.address(*a));
                kind::NAMED
            }
            Event::Function { id, name } => {
                self.put(*id);
                self.put(name.len() as u64);
                self.record.extend(name.as_bytes());
                kind::FUNCTION
            }
            Event::Waited => {
                self.put(0);
                kind::WAITED
            }
            Event::Drained { drained, took } => {
                self.put(u64::from(*drained));
                self.put(*took);
                kind::DRAINED
            }
        };
        self.head.clear();
        varint(&mut self.head, kind);
        varint(&mut self.head, self.record.len() as u64);
        self.into.write_all(&self.head)?;
        self.into.write_all(&self.record)
    }

    /// Flushes the inner writer.
    ///
    /// # Errors
    /// Those of the inner writer.
    pub fn flush(&mut self) -> io::Result<()> {
        self.into.flush()
    }

    /// The inner writer.
    pub fn into_inner(self) -> W {
        self.into
    }

    fn put(&mut self, value: u64) {
        varint(&mut self.record, value);
    }

    /// Sizes of chunks are whole grains; what is not is told apart by the lowest bit.
    fn size(&mut self, bytes: u64) {
        match bytes.is_multiple_of(GRAIN) {
            true => self.put((bytes / GRAIN) << 1),
            // The highest bit is lost: there are no such sizes.
            false => self.put((bytes << 1) | 1),
        }
    }

    fn tier(&mut self, tier: Tier) {
        self.put(match tier {
            Tier::Vram => 0,
            Tier::Host => 1,
        });
    }

    /// An address by its number, or a new one: 0, then how far it lies from the last new one.
    fn address(&mut self, address: u64) {
        if let Some(&number) = self.known.get(&address) {
            return self.put(number);
        }
        let apart = address.wrapping_sub(self.last) as i64;
        self.last = address;
        if self.known.len() < REMEMBERED {
            self.known.insert(address, self.known.len() as u64 + 1);
        }
        self.put(0);
        self.put((apart << 1 ^ apart >> 63) as u64);
    }
}

fn varint(into: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        into.push(value as u8 | 0x80);
        value >>= 7;
    }
    into.push(value as u8);
}
