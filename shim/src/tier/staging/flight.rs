//! Operations that the program has launched and that name tracked chunks, until they are seen to have ended: each with an
//! event behind it on its stream. Events of a stream pass in order, so only the first of each stream is ever asked.

use std::collections::VecDeque;

use super::units::Unit;
use crate::tier::map::Handle;

/// One operation.
#[derive(Debug)]
pub struct Flight {
    /// Passes when it has ended.
    pub event: Handle,
    /// Passed before it began, where that was recorded.
    pub begin: Option<Handle>,
    /// The chunks that it names.
    pub units: Vec<Unit>,
    /// Its number, by the planner.
    pub number: u64,
    /// All of them were in VRAM.
    pub in_vram: bool,
}

/// All of them, by the stream they are on, and events to use again.
#[derive(Debug, Default)]
pub struct Flights {
    lanes: Vec<(Lane, VecDeque<Flight>)>,
    events: Vec<Handle>,
}

/// A stream as the program names it; a null one may be the thread's own, so that counts too.
pub type Lane = (u64, u64);

impl Flights {
    /// An operation was launched on a stream, and its event recorded.
    pub fn push(&mut self, lane: Lane, flight: Flight) {
        match self.lanes.iter_mut().find(|(l, _)| *l == lane) {
            Some((_, queue)) => queue.push_back(flight),
            None => self.lanes.push((lane, VecDeque::from([flight]))),
        }
    }

    /// The first event of each stream.
    pub fn fronts(&self, to: &mut Vec<(Lane, Handle)>) {
        to.clear();
        to.extend(
            self.lanes
                .iter()
                .filter_map(|(lane, queue)| Some((*lane, queue.front()?.event))),
        );
    }

    /// The first operation of a stream has ended, if this is still its event.
    pub fn passed(&mut self, lane: Lane, event: Handle) -> Option<Flight> {
        let at = self.lanes.iter().position(|(l, _)| *l == lane)?;
        let queue = &mut self.lanes[at].1;
        let flight = match queue.front() {
            Some(first) if first.event == event => queue.pop_front(),
            _ => None,
        };
        if queue.is_empty() {
            self.lanes.swap_remove(at);
        }
        flight
    }

    /// All operations have ended.
    pub fn all(&mut self) -> impl Iterator<Item = Flight> {
        self.lanes.drain(..).flat_map(|(_, queue)| queue)
    }

    /// A chunk is gone: no operation names it any more.
    pub fn forget(&mut self, unit: Unit) {
        for flight in self.lanes.iter_mut().flat_map(|(_, queue)| queue) {
            flight.units.retain(|u| *u != unit);
        }
    }

    /// How many are under way.
    pub fn len(&self) -> usize {
        self.lanes.iter().map(|(_, queue)| queue.len()).sum()
    }

    /// Whether any is under way.
    pub fn is_empty(&self) -> bool {
        self.lanes.is_empty()
    }

    /// An event that was used before.
    pub fn event(&mut self) -> Option<Handle> {
        self.events.pop()
    }

    /// These events can be used again.
    pub fn give(&mut self, events: impl IntoIterator<Item = Handle>) {
        self.events.extend(events);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flight(event: usize) -> Flight {
        Flight {
            event: Handle(event),
            begin: None,
            units: Vec::new(),
            number: 0,
            in_vram: true,
        }
    }

    #[test]
    fn streams_pass_in_order_each_for_itself() {
        let mut flights = Flights::default();
        for (lane, event) in [(1, 10), (2, 20), (1, 11)] {
            flights.push((lane, 0), flight(event));
        }
        let mut fronts = Vec::new();
        flights.fronts(&mut fronts);
        assert_eq!(fronts, [((1, 0), Handle(10)), ((2, 0), Handle(20))]);
        // What is not first, or of another stream, has not passed.
        assert!(flights.passed((1, 0), Handle(11)).is_none());
        assert!(flights.passed((2, 0), Handle(10)).is_none());
        assert_eq!(
            flights.passed((1, 0), Handle(10)).unwrap().event,
            Handle(10)
        );
        assert!(flights.passed((1, 0), Handle(10)).is_none());
        assert!(flights.passed((2, 0), Handle(20)).is_some());
        assert_eq!(flights.all().count(), 1);
        assert!(flights.is_empty());
    }
}
