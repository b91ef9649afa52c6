//! What a check found.

use std::cell::Cell;
use std::fmt::Debug;

/// Collects the differences of one check, so that a table is reported whole and not only up to its first surprise.
#[derive(Debug, Default)]
pub struct Told {
    rows: Cell<u32>,
    wrong: Cell<u32>,
    skipped: Cell<bool>,
}

impl Told {
    /// One observation. A difference is printed and counted.
    pub fn is<T: PartialEq + Debug>(&self, what: impl AsRef<str>, got: T, want: T) {
        self.rows.set(self.rows.get() + 1);
        if got != want {
            self.wrong.set(self.wrong.get() + 1);
            println!("{}: {got:?}, expected {want:?}", what.as_ref());
        }
    }

    /// A remark that is no difference.
    pub fn note(&self, what: impl AsRef<str>) {
        println!("({})", what.as_ref());
    }

    /// This driver cannot do what the check is about.
    pub fn skip(&self, why: impl AsRef<str>) {
        self.skipped.set(true);
        println!("{}", why.as_ref());
    }

    /// Observations made, and how many of them differ.
    pub fn score(&self) -> (u32, u32) {
        (self.rows.get(), self.wrong.get())
    }

    /// Whether the check had nothing to look at.
    pub fn skipped(&self) -> bool {
        self.skipped.get() && self.rows.get() == 0
    }
}
