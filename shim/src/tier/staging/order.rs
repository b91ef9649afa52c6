//! The order of use of one stream, learned, and where in it the program is.
//!
//! What was used is written down, one **entry** a use. After a while the program does again what it did: then there is a
//! **cursor**, the earlier entry whose use comes next, and what is expected is what came after it; from the present on
//! it begins anew at the cursor. So between the cursor and the present lies one **period**, and an entry that comes true
//! leaves at its front and is written down again at its end.
//!
//! A use that is not the expected one is a **surprise**. It is held back until it is clear what it was: an additional
//! use (the expected one follows), some that are left out (the program is a little further on), or that the program is
//! elsewhere (another earlier place, where the same came before, foretells better). An entry is **trusted** when it has
//! come true, or when its unit has followed the one before it twice, anywhere; what is trusted and does not come is kept
//! for one more period. A unit is **steady** while most that is foretold of it comes true. Only what is both is expected.

use std::collections::VecDeque;

/// No entry.
const NONE: u64 = u64::MAX;
/// Entries remembered.
const ENTRIES: usize = 1 << 16;
/// So many entries further on than expected is the same place of the order, if it is no larger part of the period.
const NEAR: u64 = 64;
const PART: u64 = 4;
/// So few entries may be left out without a second use that proves it.
const LEFT_OUT: u64 = 8;
/// Operations that have to be alike until another place is believed: what one of them names proves nothing.
const ALIKE: u64 = 3;
/// Operations and uses compared at most.
const COMPARED: u64 = 24;
const COMPARED_USES: u64 = 512;
/// Earlier places that are looked at.
const PLACES: usize = 16;
/// Uses without one that was expected until nothing is.
const LOST: u32 = 64;
/// Entries that are foretold right after a surprise.
const CAREFUL: u64 = 16;
/// How steady a new unit is, of 255, and how steady it must be.
const NEW: u8 = 128;
const STEADY: u8 = 140;
/// What an entry is trusted that was seen twice alike.
const TRUSTED: u8 = 2;

/// One use.
#[derive(Clone, Copy, Debug)]
struct Entry {
    unit: u32,
    /// It is the first that its operation names.
    head: bool,
    /// Times it was seen alike, up to 3.
    trust: u8,
    /// When, seconds.
    at: f64,
    /// The uses of this unit before and after this one.
    before: u64,
    after: u64,
}

/// What is known of a unit in this order.
#[derive(Clone, Copy, Debug)]
struct Place {
    /// Its first entry at or after the cursor; right only in this epoch.
    first: u64,
    epoch: u32,
    /// Its last entry.
    last: u64,
    steady: u8,
    /// Its last use was expected.
    expected: bool,
    /// Units that came before it, and how often.
    follows: [(u32, u8); 4],
}

const NOWHERE: Place = Place {
    first: NONE,
    epoch: 0,
    last: NONE,
    steady: NEW,
    expected: false,
    follows: [(u32::MAX, 0); 4],
};

/// Another place where the program may be: uses from `from` to before `at` were as there, and those before them too.
#[derive(Clone, Copy, Debug)]
struct Other {
    from: u64,
    at: u64,
    /// Operations alike so far.
    alike: u64,
}

/// See the module.
#[derive(Debug)]
pub struct Order {
    entries: VecDeque<Entry>,
    /// The number of the first of them.
    base: u64,
    cursor: u64,
    places: Vec<Place>,
    /// Surprises held back: the uses that were as in the other place.
    held: Vec<(u32, bool)>,
    other: Option<Other>,
    /// Uses that came true since the cursor was set; and those that did not since one did.
    run: u64,
    lost: u32,
    /// Operations of those.
    strange: u32,
    /// A whole period was seen twice alike.
    known: bool,
    /// Raised when the cursor jumps.
    epoch: u32,
    /// When the last use was that came true.
    last: f64,
}

impl Order {
    /// An order of which nothing is known.
    pub fn new() -> Order {
        Order {
            entries: VecDeque::new(),
            base: 0,
            cursor: NONE,
            places: Vec::new(),
            held: Vec::with_capacity(64),
            other: None,
            run: 0,
            lost: 0,
            strange: 0,
            known: false,
            epoch: 1,
            last: 0.0,
        }
    }

    fn end(&self) -> u64 {
        self.base + self.entries.len() as u64
    }

    fn entry(&self, at: u64) -> &Entry {
        &self.entries[(at - self.base) as usize]
    }

    fn place(&self, unit: u32) -> &Place {
        self.places.get(unit as usize).unwrap_or(&NOWHERE)
    }

    fn place_mut(&mut self, unit: u32) -> &mut Place {
        let unit = unit as usize;
        if unit >= self.places.len() {
            self.places.resize(unit + 1, NOWHERE);
        }
        &mut self.places[unit]
    }

    /// Whether a whole period was seen twice alike, and the program is in one.
    pub fn known(&self) -> bool {
        self.known && self.cursor != NONE
    }

    /// Whether a whole period was ever seen twice alike.
    pub fn learned(&self) -> bool {
        self.known
    }

    /// Changes when the cursor has jumped.
    pub fn jumps(&self) -> u32 {
        self.epoch
    }

    /// Entries in a period; none while the program is in none.
    pub fn period(&self) -> u64 {
        if self.cursor == NONE {
            0
        } else {
            self.end() - self.cursor
        }
    }

    /// Whether what is foretold of a unit mostly comes true.
    pub fn steady(&self, unit: u32) -> bool {
        self.known && self.place(unit).steady >= STEADY
    }

    /// The numbers of the entries that are foretold now, few after a surprise; nearest first.
    pub fn ahead(&self) -> std::ops::Range<u64> {
        if !self.known() {
            return 0..0;
        }
        let sure = if self.lost > 0 {
            CAREFUL
        } else {
            match self.run {
                0..16 => CAREFUL.max(4 << self.run),
                _ => u64::MAX,
            }
        };
        self.cursor..self.end().min(self.cursor.saturating_add(sure))
    }

    /// The unit of an entry.
    pub fn unit(&self, at: u64) -> u32 {
        self.entry(at).unit
    }

    /// When the use of an entry ahead is foretold, seconds; in the order of the entries.
    pub fn when(&self, at: u64) -> f64 {
        let before = self.entry(self.cursor.saturating_sub(1).max(self.base)).at;
        self.last + (self.entry(at).at - before)
    }

    /// Whether the use that an entry ahead foretells is expected.
    pub fn expected(&self, at: u64) -> bool {
        let entry = self.entry(at);
        let place = self.place(entry.unit);
        place.steady >= STEADY
            && (entry.trust >= TRUSTED
                || at > self.base && {
                    let before = self.entry(at - 1).unit;
                    let twice = |f: &(u32, u8)| f.0 == before && f.1 >= TRUSTED;
                    place.follows.iter().any(twice)
                })
    }

    /// The next expected use of a unit.
    pub fn next(&mut self, unit: u32) -> Option<u64> {
        if !self.known() {
            return None;
        }
        let mut at = self.first(unit);
        while at != NONE && !self.expected(at) {
            at = self.entry(at).after;
        }
        (at != NONE).then_some(at)
    }

    /// The first entry of a unit at or after the cursor.
    fn first(&mut self, unit: u32) -> u64 {
        let place = *self.place(unit);
        if self.cursor == NONE || place.epoch == self.epoch {
            return if self.cursor == NONE {
                NONE
            } else {
                place.first
            };
        }
        let (mut first, mut at) = (NONE, place.last);
        while at != NONE && at >= self.cursor && at >= self.base {
            first = at;
            at = self.entry(at).before;
        }
        let epoch = self.epoch;
        let place = self.place_mut(unit);
        (place.first, place.epoch) = (first, epoch);
        first
    }

    /// A unit is gone. Who gets its number is likely used where it was.
    pub fn gone(&mut self, unit: u32) {
        if let Some(place) = self.places.get_mut(unit as usize) {
            *place = NOWHERE;
        }
    }

    /// Whether a unit's last use was expected.
    pub fn was_expected(&self, unit: u32) -> bool {
        self.place(unit).expected
    }

    /// A unit is used, the first that its operation names or not. Returns whether that was expected.
    pub fn used(&mut self, unit: u32, head: bool, at: f64) -> bool {
        let last = self.held.last().map(|h| h.0);
        if last.or_else(|| self.entries.back().map(|e| e.unit)) == Some(unit) {
            return self.was_expected(unit);
        }
        if let Some(at_once) = self.nearest().filter(|n| self.entry(*n).unit == unit) {
            while self.cursor < at_once {
                self.left_out(at);
            }
        }
        let hit = self.cursor < self.end() && self.entry(self.cursor).unit == unit;
        let expected = hit && self.known && self.expected(self.cursor);
        self.place_mut(unit).expected = expected;
        if hit {
            self.let_go(at);
            (self.lost, self.strange) = (0, 0);
            self.comes_true(at);
            return expected;
        }
        self.lost += 1;
        self.strange += u32::from(head);
        if self.lost > LOST && self.cursor != NONE {
            self.cursor = NONE;
            self.epoch += 1;
        }
        match &mut self.other {
            Some(other)
                if other.at < self.base + self.entries.len() as u64
                    && self.entries[(other.at - self.base) as usize].unit == unit =>
            {
                other.at += 1;
                other.alike += u64::from(head);
                self.held.push((unit, head));
            }
            _ => {
                self.let_go(at);
                self.other = self.look(unit, head);
                if self.other.is_none() {
                    self.write(unit, head, 1, at, true);
                    return false;
                }
                self.held.push((unit, head));
            }
        }
        self.believe(at);
        false
    }

    /// The first entry that is expected, if only few lie before it: those are no surprise whether they come or not.
    fn nearest(&self) -> Option<u64> {
        let mut few = self.ahead().take(LEFT_OUT as usize);
        few.find(|at| self.expected(*at))
    }

    /// What was held back was additional.
    fn let_go(&mut self, at: f64) {
        self.other = None;
        for index in 0..self.held.len() {
            let (unit, head) = self.held[index];
            self.write(unit, head, 1, at, true);
        }
        self.held.clear();
    }

    /// The entry at the cursor has come true.
    fn comes_true(&mut self, at: f64) {
        let Entry {
            unit, head, trust, ..
        } = *self.entry(self.cursor);
        self.pass();
        let place = self.place_mut(unit);
        place.steady += (255 - place.steady).div_ceil(4);
        self.write(unit, head, (trust + 1).min(3), at, true);
        self.last = at;
        self.run += 1;
        self.known |= self.run >= self.period();
    }

    /// The entry at the cursor lies behind.
    fn pass(&mut self) {
        let Entry { unit, after, .. } = *self.entry(self.cursor);
        let (cursor, epoch) = (self.cursor, self.epoch);
        let place = self.place_mut(unit);
        if place.epoch == epoch && place.first == cursor {
            place.first = after;
        }
        self.cursor += 1;
    }

    /// Writes a use down; `seen` or only expected.
    fn write(&mut self, unit: u32, head: bool, trust: u8, at: f64, seen: bool) {
        if self.entries.len() == ENTRIES {
            self.entries.pop_front();
            self.base += 1;
            if self.cursor < self.base {
                self.cursor = NONE;
                self.epoch += 1;
            }
            self.other = self.other.filter(|o| o.from >= self.base);
        }
        let before = self.entries.back().map(|e| e.unit);
        let (end, base, epoch) = (self.end(), self.base, self.epoch);
        let place = self.place_mut(unit);
        if let (Some(before), true) = (before, seen) {
            match place.follows.iter_mut().find(|f| f.0 == before) {
                Some(follows) => follows.1 = (follows.1 + 1).min(15),
                None => match place.follows.iter_mut().find(|f| f.1 == 0) {
                    Some(follows) => *follows = (before, 1),
                    None => place.follows.iter_mut().for_each(|f| f.1 -= 1),
                },
            }
        }
        let last = std::mem::replace(&mut place.last, end);
        if place.epoch == epoch && place.first == NONE {
            place.first = end;
        }
        let last = if last != NONE && last >= base {
            self.entries[(last - base) as usize].after = end;
            last
        } else {
            NONE
        };
        self.entries.push_back(Entry {
            unit,
            head,
            trust,
            at,
            before: last,
            after: NONE,
        });
    }

    /// The earlier place that foretold `unit` after what was used last; of two, the nearer one.
    fn look(&mut self, unit: u32, head: bool) -> Option<Other> {
        let end = self.end();
        let alike = |order: &Order, at: u64| {
            let far = COMPARED_USES.min(at - order.base).min(end - order.base);
            let mut alike = u64::from(head);
            for back in 1..=far {
                let entry = order.entry(at - back);
                if entry.unit != order.entry(end - back).unit || alike == COMPARED {
                    break;
                }
                alike += u64::from(entry.head);
            }
            alike
        };
        let mut best: Option<(u64, u64)> = None;
        let first = self.first(unit);
        let near = self.near(first);
        if near {
            // What was left out is more likely than to be elsewhere, at first.
            if self.strange <= 1 {
                return Some(Other {
                    from: first,
                    at: first + 1,
                    alike: u64::from(head),
                });
            }
            best = Some((alike(self, first), first));
        }
        let mut at = self.place(unit).last;
        for _ in 0..PLACES {
            if at == NONE || at < self.base {
                break;
            }
            let length = alike(self, at);
            if best.is_none_or(|b| length > b.0) {
                best = Some((length, at));
            }
            at = self.entry(at).before;
        }
        best.map(|(alike, from)| Other {
            from,
            at: from + 1,
            alike,
        })
    }

    /// Whether an entry is only a little further on than the cursor.
    fn near(&self, at: u64) -> bool {
        self.cursor != NONE
            && (self.cursor..self.end()).contains(&at)
            && at - self.cursor <= NEAR.min(self.period() / PART)
    }

    /// Goes to the other place if that is believed by now.
    fn believe(&mut self, at: f64) {
        let Some(Other {
            from,
            at: to,
            alike,
        }) = self.other
        else {
            return;
        };
        let near = self.near(from);
        let few =
            near && from - self.cursor <= LEFT_OUT && self.place(self.unit(from)).steady >= STEADY;
        if !(few || alike >= if near { ALIKE - 1 } else { ALIKE }) {
            return;
        }
        self.other = None;
        self.held.clear();
        if near {
            while self.cursor < from {
                self.left_out(at);
            }
        } else {
            self.cursor = from;
            self.epoch += 1;
            self.run = 0;
        }
        (self.lost, self.strange) = (0, 0);
        for _ in from..to {
            if self.cursor == NONE {
                break;
            }
            self.comes_true(at);
        }
    }

    /// The use at the cursor did not come. What is trusted is expected once more.
    fn left_out(&mut self, at: f64) {
        let Entry {
            unit, head, trust, ..
        } = *self.entry(self.cursor);
        if self.known && self.expected(self.cursor) {
            let place = self.place_mut(unit);
            place.steady -= place.steady / 4;
        }
        self.pass();
        if trust >= TRUSTED {
            self.write(unit, head, trust - 1, at, false);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Uses units, one an operation; returns how many were expected.
    fn pass(order: &mut Order, units: impl IntoIterator<Item = u32>) -> usize {
        let at = order.last + 1.0;
        units
            .into_iter()
            .filter(|u| order.used(*u, true, at))
            .count()
    }

    fn ahead(order: &Order, count: usize) -> Vec<u32> {
        let expected = order.ahead().filter(|at| order.expected(*at));
        expected.take(count).map(|at| order.unit(at)).collect()
    }

    #[test]
    fn what_was_seen_twice_alike_is_expected() {
        let mut order = Order::new();
        assert_eq!(pass(&mut order, 0..20), 0);
        assert_eq!(pass(&mut order, 0..20), 0);
        assert!(order.known());
        assert_eq!(order.period(), 20);
        assert_eq!(pass(&mut order, 0..20), 20);
        assert_eq!(ahead(&order, 3), [0, 1, 2]);
    }

    #[test]
    fn an_additional_use_and_a_missing_one_change_little() {
        let mut order = Order::new();
        for _ in 0..4 {
            pass(&mut order, 0..40);
        }
        assert_eq!(pass(&mut order, (0..10).chain([33]).chain(10..40)), 40);
        // It is not expected again; and its absence is no surprise.
        assert_eq!(pass(&mut order, 0..20), 20);
        assert_eq!(ahead(&order, 2), [20, 21]);
        // Those after the missing one are expected as soon as one of them is seen.
        assert_eq!(pass(&mut order, 21..40), 18);
        // What was missing once is expected still.
        assert_eq!(pass(&mut order, 0..40), 40);
    }

    #[test]
    fn the_way_there_is_told_from_the_way_back() {
        let mut order = Order::new();
        let both = || (0..30).chain((0..29).rev()).chain(30..35);
        for _ in 0..4 {
            pass(&mut order, both());
        }
        assert_eq!(order.period(), 64);
        assert_eq!(pass(&mut order, 0..20), 20);
        assert_eq!(ahead(&order, 2), [20, 21]);
        assert_eq!(pass(&mut order, (20..30).chain((11..29).rev())), 28);
        assert_eq!(ahead(&order, 2), [10, 9]);
    }

    #[test]
    fn a_loop_within_a_loop_is_one() {
        let mut order = Order::new();
        let picture = || (0..10).chain((0..6).flat_map(|_| 10..40)).chain(40..44);
        for _ in 0..3 {
            pass(&mut order, picture());
        }
        assert_eq!(pass(&mut order, picture()), 10 + 6 * 30 + 4);
        assert_eq!(pass(&mut order, 0..10), 10);
        assert_eq!(ahead(&order, 1), [10]);
    }

    #[test]
    fn chance_is_never_expected() {
        let mut order = Order::new();
        let mut x = 9u64;
        let expected = pass(
            &mut order,
            (0..20_000).map(|_| {
                x ^= x << 13;
                x ^= x >> 7;
                x ^= x << 17;
                (x >> 20) as u32 % 200
            }),
        );
        assert!(expected < 20, "{expected}");
    }

    #[test]
    fn the_next_use_is_the_nearest_entry() {
        let mut order = Order::new();
        let units = || [0, 1, 2, 0, 3, 4, 5, 1, 6, 7, 8, 9];
        for _ in 0..4 {
            pass(&mut order, units());
        }
        pass(&mut order, [0, 1]);
        for unit in 0..10 {
            let nearest = order.ahead().find(|at| order.unit(*at) == unit);
            assert_eq!(order.next(unit), nearest, "{unit}");
        }
        assert_eq!(order.next(10), None);
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut order = Order::new();
        pass(&mut order, (0..3 * ENTRIES as u32).map(|u| u % 50_000));
        assert_eq!(order.entries.len(), ENTRIES);
        assert!(order.held.len() < 100);
        assert!(order.known(), "a long pass is one");
        assert_eq!(order.period(), 50_000);
    }
}
