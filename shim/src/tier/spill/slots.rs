//! Who has which part of the file. Pure.
//!
//! A slot is a list of grains of 2 MiB, side by side where that is possible and anywhere where not: requests are no
//! larger than a grain, and disks without arms do not care. So there is no fragmentation: as long as enough grains are
//! free anywhere a slot of any class fits, and the file never holds more than was in use at once.
//!
//! A slot is written once and then only read, so that what was written is never lost to a write that fails half-way.

use std::collections::BTreeMap;

use crate::tier::chunk::{CLASSES, GRAIN};

/// A part of the file, as its holder knows it. That of a slot that was given back means nothing any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Slot {
    index: u32,
    generation: u32,
}

/// What a slot holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Content {
    /// Nothing yet.
    #[default]
    Nothing,
    /// A write is on its way.
    Coming,
    /// All of it was written; the checksum of each grain.
    Sums(Vec<u128>),
}

/// What is known of a slot.
#[derive(Debug, Default)]
struct Entry {
    generation: u32,
    /// Runs of grains: the first one, and how many.
    runs: Vec<(u32, u32)>,
    content: Content,
    /// Operations on their way.
    users: u32,
    /// Given back; the grains follow when the last operation has ended.
    is_leaving: bool,
}

/// The slots of one file.
#[derive(Debug, Default)]
pub struct Slots {
    entries: Vec<Entry>,
    /// Entries that nobody has.
    vacant: Vec<u32>,
    /// Runs of free grains: the first one, and how many.
    free: BTreeMap<u32, u32>,
    /// Grains that are free.
    spare: u32,
    /// Grains that the file has.
    grown: u32,
    /// Grains that the disk failed to write, never to be used again. Sorted.
    retired: Vec<u32>,
}

impl Slots {
    /// Bytes that the file has.
    pub fn grown(&self) -> u64 {
        u64::from(self.grown) * GRAIN
    }

    /// Bytes that are free.
    pub fn spare(&self) -> u64 {
        u64::from(self.spare) * GRAIN
    }

    /// Bytes on which the disk failed.
    pub fn retired(&self) -> u64 {
        self.retired.len() as u64 * GRAIN
    }

    /// The file has so many bytes now; fewer than before changes nothing, and what is no whole grain is not used.
    pub fn grow(&mut self, bytes: u64) {
        let grown = u32::try_from(bytes / GRAIN).unwrap_or(u32::MAX);
        if grown > self.grown {
            let first = std::mem::replace(&mut self.grown, grown);
            self.give(first, grown - first);
        }
    }

    /// Takes a slot of that size, one of [`CLASSES`]; `None`: the file has to grow first, or this is no class.
    pub fn reserve(&mut self, bytes: u64) -> Option<Slot> {
        if !CLASSES.contains(&bytes) || bytes > self.spare() {
            return None;
        }
        let runs = self.take((bytes / GRAIN) as u32);
        let index = match self.vacant.pop() {
            Some(index) => index,
            None => {
                self.entries.push(Entry::default());
                (self.entries.len() - 1) as u32
            }
        };
        let entry = &mut self.entries[index as usize];
        entry.runs = runs;
        let generation = entry.generation;
        Some(Slot { index, generation })
    }

    /// Whether somebody has it.
    pub fn is_held(&self, slot: Slot) -> bool {
        self.entry(slot).is_some()
    }

    /// What it holds; `None`: it was given back.
    pub fn content(&self, slot: Slot) -> Option<&Content> {
        self.entry(slot).map(|entry| &entry.content)
    }

    /// Its size, bytes.
    pub fn size(&self, slot: Slot) -> Option<u64> {
        let grains = |entry: &Entry| entry.runs.iter().map(|(_, n)| u64::from(*n)).sum::<u64>();
        self.entry(slot).map(|entry| grains(entry) * GRAIN)
    }

    /// Where in the file each of its grains lies.
    pub fn places(&self, slot: Slot) -> Option<Vec<u64>> {
        let entry = self.entry(slot)?;
        let grains = entry.runs.iter().flat_map(|&(first, n)| first..first + n);
        Some(grains.map(|grain| u64::from(grain) * GRAIN).collect())
    }

    /// Sets what it holds.
    pub fn set(&mut self, slot: Slot, content: Content) {
        if let Some(entry) = self.entry_mut(slot) {
            entry.content = content;
        }
    }

    /// An operation begins.
    pub fn enter(&mut self, slot: Slot) {
        if let Some(entry) = self.entry_mut(slot) {
            entry.users += 1;
        }
    }

    /// An operation has ended; `is_void`: by a write that failed, with which the slot goes back.
    pub fn leave(&mut self, slot: Slot, is_void: bool) {
        let Some(entry) = self.entry_of(slot) else {
            return;
        };
        entry.users = entry.users.saturating_sub(1);
        entry.is_leaving |= is_void;
        if entry.users == 0 && entry.is_leaving {
            self.vacate(slot.index);
        }
    }

    /// Gives a slot back: at once, or when the last operation on it has ended. False: it was given back before.
    pub fn release(&mut self, slot: Slot) -> bool {
        let Some(entry) = self.entry_mut(slot) else {
            return false;
        };
        entry.is_leaving = true;
        if entry.users == 0 {
            self.vacate(slot.index);
        }
        true
    }

    /// The disk fails at this place, which somebody holds: when it comes back it is not used again.
    pub fn retire(&mut self, place: u64) {
        let grain = (place / GRAIN) as u32;
        if grain < self.grown
            && let Err(at) = self.retired.binary_search(&grain)
        {
            self.retired.insert(at, grain);
        }
    }

    fn entry(&self, slot: Slot) -> Option<&Entry> {
        let entry = self.entries.get(slot.index as usize)?;
        let is_held = entry.generation == slot.generation && !entry.is_leaving;
        (is_held && !entry.runs.is_empty()).then_some(entry)
    }

    fn entry_mut(&mut self, slot: Slot) -> Option<&mut Entry> {
        self.entry(slot)?;
        self.entries.get_mut(slot.index as usize)
    }

    /// Also one that is leaving.
    fn entry_of(&mut self, slot: Slot) -> Option<&mut Entry> {
        let entry = self.entries.get_mut(slot.index as usize)?;
        (entry.generation == slot.generation && !entry.runs.is_empty()).then_some(entry)
    }

    fn vacate(&mut self, index: u32) {
        let entry = &mut self.entries[index as usize];
        let runs = std::mem::take(&mut entry.runs);
        let generation = entry.generation.wrapping_add(1);
        *entry = Entry {
            generation,
            ..Entry::default()
        };
        self.vacant.push(index);
        for (first, n) in runs {
            self.give(first, n);
        }
    }

    /// Takes so many grains, of which at least as many are free: the first run that is long enough, else the first ones.
    fn take(&mut self, wanted: u32) -> Vec<(u32, u32)> {
        let whole = self.free.iter().find(|(_, n)| **n >= wanted);
        let mut at = whole.map(|(first, _)| *first);
        let mut runs = Vec::new();
        let mut left = wanted;
        while left > 0 {
            let Some(first) = at.or_else(|| self.free.keys().next().copied()) else {
                break;
            };
            let n = self.free.remove(&first).unwrap_or(0);
            let taken = n.min(left);
            if taken < n {
                self.free.insert(first + taken, n - taken);
            }
            runs.push((first, taken));
            left -= taken;
            at = None;
        }
        self.spare -= wanted - left;
        runs
    }

    /// Makes a run free, but for what is retired of it.
    fn give(&mut self, first: u32, n: u32) {
        let end = first + n;
        let from = self.retired.partition_point(|grain| *grain < first);
        let bad: Vec<u32> = self.retired[from..]
            .iter()
            .copied()
            .take_while(|grain| *grain < end)
            .collect();
        let mut start = first;
        for stop in bad.into_iter().chain([end]) {
            self.give_good(start, stop - start);
            start = stop + 1;
        }
    }

    fn give_good(&mut self, mut first: u32, mut n: u32) {
        if n == 0 {
            return;
        }
        self.spare += n;
        if let Some(after) = self.free.remove(&(first + n)) {
            n += after;
        }
        if let Some((&before, &length)) = self.free.range(..first).next_back()
            && before + length == first
        {
            first = before;
            n += length;
        }
        self.free.insert(first, n);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Reserve(usize),
        Release(usize),
        /// Of a slot that is long gone.
        ReleaseAgain(usize),
        Enter(usize),
        Leave(usize, bool),
        Retire(usize),
        Grow(u64),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            6 => (0..CLASSES.len()).prop_map(Step::Reserve),
            4 => any::<usize>().prop_map(Step::Release),
            1 => any::<usize>().prop_map(Step::ReleaseAgain),
            2 => any::<usize>().prop_map(Step::Enter),
            2 => (any::<usize>(), any::<bool>()).prop_map(|(n, v)| Step::Leave(n, v)),
            1 => any::<usize>().prop_map(Step::Retire),
            2 => (0..200u64).prop_map(Step::Grow),
        ];
        proptest::collection::vec(step, 1..120)
    }

    /// One that is held, or is leaving while it is used.
    struct Model {
        slot: Slot,
        places: Vec<u64>,
        users: u32,
        is_leaving: bool,
    }

    proptest! {
        /// Grains are never shared, never lost, and enough of them are always enough.
        #[test]
        fn slots_and_their_model_agree(steps in steps()) {
            let mut slots = Slots::default();
            let (mut held, mut gone) = (Vec::<Model>::new(), Vec::<Slot>::new());
            let mut retired = HashSet::new();
            for step in steps {
                match step {
                    Step::Grow(grains) => slots.grow(grains * GRAIN),
                    Step::Reserve(class) => {
                        let bytes = CLASSES[class];
                        let enough = slots.spare() >= bytes;
                        let slot = slots.reserve(bytes);
                        prop_assert_eq!(slot.is_some(), enough);
                        if let Some(slot) = slot {
                            let places = slots.places(slot).unwrap();
                            prop_assert_eq!(slots.size(slot), Some(bytes));
                            prop_assert_eq!(slots.content(slot), Some(&Content::Nothing));
                            prop_assert!(!gone.contains(&slot), "a handle twice");
                            held.push(Model { slot, places, users: 0, is_leaving: false });
                        }
                    }
                    Step::Release(n) if !held.is_empty() => {
                        let n = n % held.len();
                        prop_assert_eq!(slots.release(held[n].slot), !held[n].is_leaving);
                        held[n].is_leaving = true;
                    }
                    Step::ReleaseAgain(n) if !gone.is_empty() => {
                        let old = gone[n % gone.len()];
                        prop_assert!(!slots.release(old) && !slots.is_held(old));
                        prop_assert_eq!(slots.places(old), None);
                        slots.leave(old, true);
                    }
                    Step::Enter(n) if !held.is_empty() => {
                        let n = n % held.len();
                        let one = &mut held[n];
                        slots.enter(one.slot);
                        one.users += u32::from(!one.is_leaving);
                    }
                    Step::Leave(n, is_void) => {
                        let mut busy: Vec<_> = held.iter_mut().filter(|m| m.users > 0).collect();
                        if !busy.is_empty() {
                            let n = n % busy.len();
                            slots.leave(busy[n].slot, is_void);
                            busy[n].users -= 1;
                            busy[n].is_leaving |= is_void;
                        }
                    }
                    Step::Retire(n) if !held.is_empty() => {
                        let one = &held[n % held.len()];
                        let place = one.places[n % one.places.len()];
                        slots.retire(place);
                        retired.insert(place);
                    }
                    _ => {}
                }
                held.retain(|m| {
                    let stays = !m.is_leaving || m.users > 0;
                    if !stays {
                        gone.push(m.slot);
                    }
                    stays
                });
                let mut taken = HashSet::new();
                for m in &held {
                    prop_assert_eq!(slots.is_held(m.slot), !m.is_leaving);
                    for place in &m.places {
                        prop_assert!(place + GRAIN <= slots.grown());
                        prop_assert!(taken.insert(*place), "a grain twice");
                    }
                }
                let lost = retired.iter().filter(|place| !taken.contains(*place)).count() as u64;
                let live = taken.len() as u64 * GRAIN;
                prop_assert_eq!(live + lost * GRAIN + slots.spare(), slots.grown());
                prop_assert_eq!(slots.retired(), retired.len() as u64 * GRAIN);
            }
        }

        /// What is taken after a grain was retired is never that grain.
        #[test]
        fn a_bad_grain_is_not_met_again(which in 0usize..10) {
            let mut slots = Slots::default();
            slots.grow(11 * GRAIN);
            let slot = slots.reserve(20 << 20).unwrap();
            let bad = slots.places(slot).unwrap()[which];
            slots.retire(bad);
            prop_assert!(slots.release(slot));
            prop_assert_eq!(slots.spare(), 10 * GRAIN);
            let slot = slots.reserve(20 << 20).unwrap();
            prop_assert!(!slots.places(slot).unwrap().contains(&bad));
        }
    }

    #[test]
    fn side_by_side_where_possible() {
        let mut slots = Slots::default();
        slots.grow(64 << 20);
        let small: Vec<Slot> = (0..12).map(|_| slots.reserve(GRAIN).unwrap()).collect();
        assert!(slots.release(small[0]) && slots.release(small[2]));
        let large = slots.reserve(20 << 20).unwrap();
        let places = slots.places(large).unwrap();
        assert_eq!(places[0], 12 * GRAIN);
        assert!(places.windows(2).all(|p| p[1] == p[0] + GRAIN));
        assert_eq!(slots.reserve(64 << 20), None, "there is no room");
        assert_eq!(slots.reserve(3 << 20), None, "no class");
    }
}
