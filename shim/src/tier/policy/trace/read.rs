//! Reading a trace. Whatever the file holds, the reader needs bounded memory and does not panic.

use std::io::{self, ErrorKind, Read};

use greenboost_wire::ledger::Tier;

use super::{Event, LONGEST, MAGIC, REMEMBERED, Record, kind};
use crate::tier::chunk::GRAIN;
use crate::tier::policy::{Costs, Op};

/// Chunks that one allocation may have: 64 TiB in the smallest ones would be more.
const CHUNKS: u64 = 1 << 20;

/// Reads a trace, a record at a time. The inner reader should be buffered.
#[derive(Debug)]
pub struct Reader<R> {
    from: R,
    at: u64,
    known: Vec<u64>,
    last: u64,
    record: Vec<u8>,
    truncated: bool,
}

impl<R: Read> Reader<R> {
    /// Begins to read a trace.
    ///
    /// # Errors
    /// `InvalidData` if it is none, or of another version; those of the inner reader.
    pub fn new(mut from: R) -> io::Result<Reader<R>> {
        let mut magic = [0; MAGIC.len()];
        from.read_exact(&mut magic).map_err(|e| match e.kind() {
            ErrorKind::UnexpectedEof => wrong("not a trace"),
            _ => e,
        })?;
        if magic[..7] != MAGIC[..7] {
            return Err(wrong("not a trace"));
        }
        if magic != MAGIC {
            return Err(wrong("a trace of a newer version"));
        }
        Ok(Reader {
            from,
            at: 0,
            known: Vec::new(),
            last: 0,
            record: Vec::new(),
            truncated: false,
        })
    }

    /// The next record of a known kind; `None` at the end.
    ///
    /// # Errors
    /// `InvalidData` for a record that is not what its kind says; those of the inner reader.
    pub fn record(&mut self) -> io::Result<Option<Record>> {
        match self.next() {
            Err(e) if e.kind() == ErrorKind::UnexpectedEof => {
                self.truncated = true;
                Ok(None)
            }
            other => other,
        }
    }

    /// The trace ended within a record: the program was killed, or the disk was full.
    pub fn truncated(&self) -> bool {
        self.truncated
    }

    fn next(&mut self) -> io::Result<Option<Record>> {
        loop {
            let mut first = [0; 1];
            let begun = loop {
                match self.from.read(&mut first) {
                    Err(e) if e.kind() == ErrorKind::Interrupted => {}
                    other => break other? > 0,
                }
            };
            if !begun {
                return Ok(None);
            }
            let kind = self.varint(Some(first[0]))?;
            let length = self.varint(None)?;
            if length > LONGEST || !(kind::BEGUN..=kind::DRAINED).contains(&kind) {
                let skipped = io::copy(&mut (&mut self.from).take(length), &mut io::sink())?;
                if skipped < length {
                    return Err(ErrorKind::UnexpectedEof.into());
                }
                continue;
            }
            let mut record = std::mem::take(&mut self.record);
            record.resize(length as usize, 0);
            self.from.read_exact(&mut record)?;
            let event = self.event(kind, &mut Fields(&record));
            self.record = record;
            let event = event.ok_or_else(|| wrong("a record is not what its kind says"))?;
            return Ok(Some(Record { at: self.at, event }));
        }
    }

    fn event(&mut self, kind: u64, fields: &mut Fields) -> Option<Event> {
        self.at = self.at.checked_add(fields.varint()?)?;
        Some(match kind {
            kind::BEGUN => Event::Begun {
                vram: fields.varint()?,
                host: fields.varint()?,
                costs: Costs {
                    link: fields.float()?,
                    vram: fields.float()?,
                    move_per_byte: fields.float()?,
                    move_each: fields.float()?,
                    drain: fields.float()?,
                },
            },
            kind::ALLOCATED => {
                let (base, bytes) = (self.address(fields)?, fields.varint()?);
                let movable = fields.flag()?;
                let mut chunks = Vec::new();
                for _ in 0..fields.varint()? {
                    let size = fields.varint()?;
                    let bytes = match size & 1 {
                        0 => (size >> 1).checked_mul(GRAIN)?,
                        _ => size >> 1,
                    };
                    let (tier, count) = (fields.tier()?, fields.varint()?);
                    if count > CHUNKS - chunks.len() as u64 {
                        return None;
                    }
                    chunks.extend(std::iter::repeat_n((bytes, tier), count as usize));
                }
                Event::Allocated {
                    base,
                    bytes,
                    movable,
                    chunks,
                }
            }
            kind::FREED => Event::Freed {
                base: self.address(fields)?,
            },
            kind::FIXED => Event::Fixed {
                base: self.address(fields)?,
            },
            kind::MOVED => Event::Moved {
                base: self.address(fields)?,
                chunk: fields.varint()?,
                to: fields.tier()?,
            },
            kind::NAMED => Event::Named {
                op: match fields.varint()? {
                    0 => Op::Launch,
                    1 => Op::Graph,
                    2 => Op::Copy {
                        bytes: fields.varint()?,
                    },
                    3 => Op::Memset {
                        bytes: fields.varint()?,
                    },
                    _ => return None,
                },
                thread: fields.varint()?,
                function: fields.varint()?,
                addresses: {
                    let mut addresses = Vec::new();
                    for _ in 0..fields.varint()? {
                        addresses.push(self.address(fields)?);
                    }
                    addresses
                },
            },
            kind::FUNCTION => Event::Function {
                id: fields.varint()?,
                name: {
                    let length = usize::try_from(fields.varint()?).ok()?;
                    String::from_utf8_lossy(fields.0.get(..length)?).into_owned()
                },
            },
            kind::WAITED => {
                fields.varint()?;
                Event::Waited
            }
            _ => Event::Drained {
                drained: fields.flag()?,
                took: fields.varint()?,
            },
        })
    }

    fn address(&mut self, fields: &mut Fields) -> Option<u64> {
        let number = fields.varint()?;
        if let Some(known) = number.checked_sub(1) {
            return self.known.get(usize::try_from(known).ok()?).copied();
        }
        let apart = fields.varint()?;
        let apart = (apart >> 1) as i64 ^ -((apart & 1) as i64);
        self.last = self.last.wrapping_add(apart as u64);
        if self.known.len() < REMEMBERED {
            self.known.push(self.last);
        }
        Some(self.last)
    }

    fn varint(&mut self, mut first: Option<u8>) -> io::Result<u64> {
        let mut read = || match first.take() {
            Some(byte) => Ok(byte),
            None => {
                let mut byte = [0; 1];
                self.from.read_exact(&mut byte)?;
                Ok::<u8, io::Error>(byte[0])
            }
        };
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = read()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(wrong("a number without an end"))
    }
}

/// What is left of a record.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Some(value);
            }
        }
        None
    }

    fn float(&mut self) -> Option<f64> {
        let (bytes, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(f64::from_le_bytes(*bytes))
    }

    fn flag(&mut self) -> Option<bool> {
        Some(self.varint()? != 0)
    }

    fn tier(&mut self) -> Option<Tier> {
        match self.varint()? {
            0 => Some(Tier::Vram),
            1 => Some(Tier::Host),
            _ => None,
        }
    }
}

fn wrong(what: &'static str) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, what)
}
