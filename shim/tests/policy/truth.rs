//! What operations really touch, with hindsight: the policy only knows the starts that were named so far, here all are
//! known. A start that is named once or twice in all is a position inside other data, not data of its own.

use std::collections::BTreeMap;

use greenboost_shim::tier::policy::Op;
use greenboost_shim::tier::policy::trace::{Event, Record};

/// Bytes that are always used together: those from one start to the next.
#[derive(Clone, Copy, Debug)]
pub struct Piece {
    /// Which allocation, in the order of the trace.
    pub allocation: usize,
    pub start: u64,
    pub end: u64,
}

/// One thing that happens.
#[derive(Clone, Debug)]
pub enum Act {
    /// An allocation: its address and size.
    Allocate(usize, u64, u64),
    Free(usize),
    /// A launch uses pieces.
    Use(Vec<usize>),
    /// A memset covers bytes of an allocation.
    Fill(usize, u64, u64),
    /// The program waited.
    Wait,
}

/// A trace, understood. `acts` has as many entries as the trace has records.
#[derive(Debug, Default)]
pub struct Truth {
    pub vram: u64,
    pub pieces: Vec<Piece>,
    pub acts: Vec<Option<Act>>,
}

impl Truth {
    pub fn of(trace: &[Record]) -> Truth {
        let mut truth = Truth::default();
        // By address: the allocation's number, its end, and how often addresses in it were named.
        let mut live: BTreeMap<u64, (usize, u64)> = BTreeMap::new();
        let mut starts: Vec<(u64, u64, BTreeMap<u64, u32>)> = Vec::new();
        for record in trace {
            match &record.event {
                Event::Allocated { base, bytes, .. } => {
                    live.insert(*base, (starts.len(), base + bytes));
                    starts.push((*base, base + bytes, BTreeMap::from([(*base, u32::MAX)])));
                }
                Event::Freed { base } => drop(live.remove(base)),
                Event::Named {
                    op: Op::Launch | Op::Graph,
                    addresses,
                    ..
                } => {
                    for (allocation, address) in addresses.iter().filter_map(|a| inside(&live, *a))
                    {
                        let count = starts[allocation].2.entry(address).or_default();
                        *count = count.saturating_add(1);
                    }
                }
                _ => {}
            }
        }
        let mut first = Vec::new();
        for (allocation, (_, end, counts)) in starts.iter().enumerate() {
            first.push(truth.pieces.len());
            let kept: Vec<u64> = counts.iter().filter(|c| *c.1 > 2).map(|c| *c.0).collect();
            for (i, &start) in kept.iter().enumerate() {
                truth.pieces.push(Piece {
                    allocation,
                    start,
                    end: *kept.get(i + 1).unwrap_or(end),
                });
            }
        }
        live.clear();
        let mut count = 0;
        for record in trace {
            let act = match &record.event {
                Event::Begun { vram, .. } => {
                    truth.vram = truth.vram.max(*vram);
                    None
                }
                Event::Allocated { base, bytes, .. } => {
                    live.insert(*base, (count, base + bytes));
                    count += 1;
                    Some(Act::Allocate(count - 1, *base, *bytes))
                }
                Event::Freed { base } => live.remove(base).map(|gone| Act::Free(gone.0)),
                Event::Named { op, addresses, .. } => {
                    let named = addresses.iter().filter_map(|a| inside(&live, *a));
                    match op {
                        Op::Launch | Op::Graph => {
                            // A position inside other data: next to nothing.
                            let data = named.filter(|(allocation, address)| {
                                starts[*allocation].2.get(address).is_some_and(|c| *c > 2)
                            });
                            let mut used: Vec<usize> = data
                                .map(|(allocation, address)| {
                                    let of = &truth.pieces[first[allocation]..];
                                    let count = of.partition_point(|p| {
                                        p.allocation == allocation && p.start <= address
                                    });
                                    first[allocation] + count - 1
                                })
                                .collect();
                            used.sort_unstable();
                            used.dedup();
                            Some(Act::Use(used))
                        }
                        // The same wherever it goes: it crosses the link.
                        Op::Copy { .. } => None,
                        Op::Memset { bytes } => named
                            .map(|(allocation, address)| Act::Fill(allocation, address, *bytes))
                            .next(),
                    }
                }
                Event::Waited => Some(Act::Wait),
                _ => None,
            };
            truth.acts.push(act);
        }
        truth
    }
}

fn inside(live: &BTreeMap<u64, (usize, u64)>, address: u64) -> Option<(usize, u64)> {
    let (_, &(allocation, end)) = live.range(..=address).next_back()?;
    (address < end).then_some((allocation, address))
}
