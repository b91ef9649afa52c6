//! Tracked allocations and their chunks, by address: which chunks an operation names, and where each of them is.

use std::collections::BTreeMap;

use greenboost_wire::ledger::Tier;

use super::escape::PAD;
use super::slots::Slot;
use crate::tier::spare::Chunk;

pub use super::choose::Unit;

/// A hash of a chunk's bytes, made on the device.
pub type Digest = [u64; 2];

/// Where a chunk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In VRAM for good: its home is there.
    Resident,
    /// At home on Host, mapped for zero-copy.
    Host,
    /// On its way into a slot. It is mapped nowhere that the program sees.
    Coming,
    /// In a slot; what its bytes hashed to when it came, if that is known.
    Staged(Slot, Option<Digest>),
    /// On its way home. It is mapped nowhere that the program sees.
    Leaving,
}

impl Place {
    /// Whether no operation may begin that names it.
    pub fn in_transit(self) -> bool {
        matches!(self, Place::Coming | Place::Leaving)
    }
}

/// A chunk.
#[derive(Clone, Copy, Debug)]
pub struct Record {
    /// The program's address of it.
    pub address: u64,
    /// Its home.
    pub home: Chunk,
    /// Where the home is mapped for the shim alone; 0: not yet.
    pub alias: u64,
    /// Its allocation's address.
    pub base: u64,
    /// Where it is.
    pub place: Place,
    /// Operations under way that name it, and launches that are about to.
    pub uses: u32,
    /// Operations named it whose end is only seen when the device is found drained.
    pub foreign: bool,
}

impl Record {
    /// Whether no operation is under way that names it.
    pub fn is_idle(&self) -> bool {
        self.uses == 0 && !self.foreign
    }
}

/// An allocation.
#[derive(Debug)]
pub struct Tracked {
    /// The program's address.
    pub base: u64,
    /// Bytes that are mapped.
    pub span: u64,
    /// Its chunks, in order.
    pub units: Vec<Unit>,
    /// It never changes from now on: it is about to go, or others reach it.
    pub fixed: bool,
}

/// All of them.
#[derive(Debug, Default)]
pub struct Units {
    allocations: BTreeMap<u64, Tracked>,
    records: Vec<Option<Record>>,
}

impl Units {
    /// The allocation that starts here.
    pub fn tracked(&self, base: u64) -> Option<&Tracked> {
        self.allocations.get(&base)
    }

    /// The same, to be changed.
    pub fn tracked_mut(&mut self, base: u64) -> Option<&mut Tracked> {
        self.allocations.get_mut(&base)
    }

    /// Adds one, with its chunks.
    pub fn add(&mut self, tracked: Tracked, chunks: &[Chunk]) {
        let mut address = tracked.base;
        for (unit, chunk) in tracked.units.iter().zip(chunks) {
            let at = unit.0 as usize;
            if self.records.len() <= at {
                self.records.resize(at + 1, None);
            }
            self.records[at] = Some(Record {
                address,
                home: *chunk,
                alias: 0,
                base: tracked.base,
                place: home(chunk),
                uses: 0,
                foreign: false,
            });
            address += chunk.size;
        }
        self.allocations.insert(tracked.base, tracked);
    }

    /// Takes one out, with its chunks.
    pub fn remove(&mut self, base: u64) -> Option<(Tracked, Vec<Record>)> {
        let tracked = self.allocations.remove(&base)?;
        let records = tracked
            .units
            .iter()
            .filter_map(|u| self.records[u.0 as usize].take())
            .collect();
        Some((tracked, records))
    }

    /// A chunk. Units of what is gone have none.
    pub fn get(&self, unit: Unit) -> Option<&Record> {
        self.records.get(unit.0 as usize)?.as_ref()
    }

    /// The same, to be changed.
    pub fn get_mut(&mut self, unit: Unit) -> Option<&mut Record> {
        self.records.get_mut(unit.0 as usize)?.as_mut()
    }

    /// All chunks.
    pub fn all(&self) -> impl Iterator<Item = (Unit, &Record)> {
        self.records
            .iter()
            .enumerate()
            .filter_map(|(at, record)| Some((Unit(at as u32), record.as_ref()?)))
    }

    /// All chunks, to be changed.
    pub fn all_mut(&mut self) -> impl Iterator<Item = (Unit, &mut Record)> {
        self.records
            .iter_mut()
            .enumerate()
            .filter_map(|(at, record)| Some((Unit(at as u32), record.as_mut()?)))
    }

    /// The chunk that holds this place of an allocation.
    pub fn chunk(&self, base: u64, index: usize) -> Option<Unit> {
        self.allocations.get(&base)?.units.get(index).copied()
    }

    /// The allocations that an address names: in them, or a little beside them, as pointers that are counted from 1 are.
    fn near(&self, address: u64) -> impl Iterator<Item = &Tracked> {
        let before = self.allocations.range(..=address.saturating_add(PAD));
        // They do not overlap: those before end before.
        before
            .rev()
            .map(|(_, tracked)| tracked)
            .take_while(move |t| address < t.base + t.span + PAD)
    }

    /// Adds to `units` what an address names: all of its allocation, since a kernel may reach any of it from there.
    pub fn named(&self, address: u64, units: &mut Vec<Unit>) {
        for tracked in self.near(address) {
            // All chunks of an allocation come together.
            let is_new = tracked.units.first().is_some_and(|u| !units.contains(u));
            if is_new {
                units.extend(&tracked.units);
            }
        }
    }

    /// Adds to `units` the chunks that these bytes are in.
    pub fn inside(&self, address: u64, bytes: u64, units: &mut Vec<Unit>) {
        let end = address.saturating_add(bytes);
        let Some((_, tracked)) = self.allocations.range(..end).next_back() else {
            return;
        };
        for unit in &tracked.units {
            let touches = self
                .get(*unit)
                .is_some_and(|r| r.address < end && address < r.address + r.home.size);
            if touches && !units.contains(unit) {
                units.push(*unit);
            }
        }
    }

    /// The addresses of the allocations that an address names.
    pub fn bases_of(&self, address: u64) -> impl Iterator<Item = u64> {
        self.near(address).map(|t| t.base)
    }
}

/// Where a chunk with this home is when nothing has been done with it.
pub fn home(chunk: &Chunk) -> Place {
    match chunk.tier {
        Tier::Vram => Place::Resident,
        Tier::Host => Place::Host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const A: u64 = 0x2b67_0000_0000;

    fn units(all: &[(u64, u32, u32)]) -> Units {
        let mut units = Units::default();
        for (base, first, count) in all {
            let chunk = Chunk {
                size: 2 * MIB,
                tier: Tier::Host,
                handle: 1,
            };
            let tracked = Tracked {
                base: *base,
                span: 2 * MIB * u64::from(*count),
                units: (*first..first + count).map(Unit).collect(),
                fixed: false,
            };
            units.add(tracked, &vec![chunk; *count as usize]);
        }
        units
    }

    fn named(units: &Units, address: u64) -> Vec<u32> {
        let mut all = Vec::new();
        units.named(address, &mut all);
        units.named(address, &mut all);
        all.into_iter().map(|u| u.0).collect()
    }

    #[test]
    fn an_address_names_all_of_its_allocation_and_nothing_far_from_it() {
        let units = units(&[(A, 0, 3), (A + 10 * MIB, 3, 1)]);
        for address in [A, A + 5 * MIB, A - 8, A + 6 * MIB, A + 8 * MIB - 1] {
            assert_eq!(named(&units, address), [0, 1, 2], "{address:x}");
        }
        for address in [A + 8 * MIB, A + 10 * MIB, A + 12 * MIB] {
            assert_eq!(named(&units, address), [3], "{address:x}");
        }
        for address in [0, A - PAD - 1, A + 14 * MIB, u64::MAX] {
            assert_eq!(named(&units, address), [0u32; 0], "{address:x}");
        }
    }

    #[test]
    fn beside_two_allocations_either_is_named() {
        let units = units(&[(A, 0, 1), (A + 2 * MIB, 1, 1)]);
        assert_eq!(named(&units, A + MIB), [1, 0]);
        assert_eq!(units.bases_of(A + 3 * MIB).count(), 2);
    }

    #[test]
    fn bytes_name_the_chunks_that_they_touch() {
        let units = units(&[(A, 0, 3)]);
        let mut all = Vec::new();
        units.inside(A + 2 * MIB - 1, 2, &mut all);
        assert_eq!(all, [Unit(0), Unit(1)]);
        all.clear();
        units.inside(A + 6 * MIB, 100, &mut all);
        units.inside(A - 100, 100, &mut all);
        assert_eq!(all, []);
    }
}
