//! Operations whose measurement may still come, and what they named.

use std::collections::VecDeque;

use super::planner::Unit;

/// Operations remembered.
const OPERATIONS: usize = 4096;
/// Units named by them that are.
const NAMED: usize = 1 << 15;

/// An operation.
#[derive(Clone, Copy, Debug)]
pub struct Operation {
    /// Its stream's track.
    pub track: usize,
    /// Its launch had to wait for a unit.
    pub waited: bool,
    /// Where what it names begins, and how many.
    first: u64,
    count: u32,
}

/// The last operations.
#[derive(Debug)]
pub struct Operations {
    all: VecDeque<Operation>,
    /// The number of the first of them.
    oldest: u64,
    /// What they named, and whether it was read on Host; a ring.
    named: Vec<(Unit, bool)>,
    written: u64,
}

impl Operations {
    /// None so far.
    pub fn new() -> Operations {
        Operations {
            all: VecDeque::with_capacity(OPERATIONS),
            oldest: 0,
            named: Vec::new(),
            written: 0,
        }
    }

    /// The number of the next one.
    pub fn next(&self) -> u64 {
        self.oldest + self.all.len() as u64
    }

    /// The number of the oldest that is remembered.
    pub fn oldest(&self) -> u64 {
        self.oldest
    }

    /// The next one; what it names is to follow.
    pub fn begin(&mut self, track: usize) {
        if self.all.len() == OPERATIONS {
            self.all.pop_front();
            self.oldest += 1;
        }
        self.all.push_back(Operation {
            track,
            waited: false,
            first: self.written,
            count: 0,
        });
    }

    /// It names a unit, which is read on Host or not; and waits for it, or not.
    pub fn names(&mut self, unit: Unit, on_host: bool, waits: bool) {
        let Some(operation) = self.all.back_mut() else {
            return;
        };
        operation.count += 1;
        operation.waited |= waits;
        match self.named.get_mut(self.written as usize % NAMED) {
            Some(named) => *named = (unit, on_host),
            None => self.named.push((unit, on_host)),
        }
        self.written += 1;
    }

    /// An operation by its number, if all that it named is remembered.
    pub fn get(&self, number: u64) -> Option<Operation> {
        let at = number.checked_sub(self.oldest)?;
        let operation = *self.all.get(at as usize)?;
        (self.written - operation.first <= NAMED as u64).then_some(operation)
    }

    /// What an operation named, and whether it was read on Host.
    pub fn units(&self, operation: Operation) -> impl Iterator<Item = (Unit, bool)> {
        let range = operation.first..operation.first + u64::from(operation.count);
        range.map(|at| self.named[at as usize % NAMED])
    }
}
