//! Races: two operations that use the same bytes at the same time, and not both to read them.
//!
//! Only what really overlaps in time is seen, whatever the addresses: aliases of one object count.
use std::collections::BTreeMap;

use crate::misuse::misuse;
use crate::va::Segment;
use crate::work::Site;
use crate::world::World;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum How {
    Read,
    Write,
    /// Atomic updates go well with each other.
    Atomic,
}

impl How {
    fn clashes(self, other: How) -> bool {
        !matches!(
            (self, other),
            (How::Read, How::Read) | (How::Atomic, How::Atomic)
        )
    }
}

struct Use {
    object: u64,
    start: u64,
    end: u64,
    how: How,
}

struct Running {
    name: &'static str,
    uses: Vec<Use>,
    told: bool,
}

/// What each running operation uses.
pub(crate) struct Races {
    running: BTreeMap<u64, Running>,
}

impl Races {
    pub(crate) const fn new() -> Races {
        Races {
            running: BTreeMap::new(),
        }
    }

    pub(crate) fn release(&mut self, ticket: u64) {
        self.running.remove(&ticket);
    }

    fn clash(&self, ticket: u64, new: &Use) -> Option<&'static str> {
        let others = self
            .running
            .iter()
            .filter(|(t, _)| **t != ticket)
            .map(|(_, other)| other);
        let meets = |old: &Use| {
            old.object == new.object
                && old.start < new.end
                && new.start < old.end
                && old.how.clashes(new.how)
        };
        others
            .filter(|other| other.uses.iter().any(meets))
            .map(|other| other.name)
            .next()
    }
}

impl World {
    /// The operation uses these bytes from now until it has finished.
    pub(crate) fn claim(&mut self, site: &Site, segments: &[Segment], how: How) {
        for segment in segments {
            let (object, start) = segment.object;
            let new = Use {
                object,
                start,
                end: start + segment.len,
                how,
            };
            let clash = self.races.clash(site.ticket, &new);
            let entry = self.races.running.entry(site.ticket);
            let mine = entry.or_insert_with(|| Running {
                name: site.name,
                uses: Vec::new(),
                told: false,
            });
            if let Some(other) = clash
                && !mine.told
            {
                mine.told = true;
                misuse!(
                    "race: {} and {other} use the same memory at the same time",
                    site.name
                );
            }
            match mine.uses.last_mut() {
                Some(last) if last.object == object && last.end == start && last.how == how => {
                    last.end = new.end
                }
                _ => mine.uses.push(new),
            }
        }
    }
}
