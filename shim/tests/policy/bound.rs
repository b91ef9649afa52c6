//! What nothing can be below.
//!
//! The bound is the cost of the best plan with perfect foresight in a relaxed world: any fraction of any bytes may be
//! moved (so chunks do not matter), at every allocation, free and wait of the trace, for the time that it costs per byte
//! in the largest chunks; a new allocation is put anywhere for nothing; the device always drains, at no cost; nothing is
//! reserved; Host has no limit; memsets are free. What a policy does in the replay is such a plan too, and costs it at
//! least as much, so the bound is one. The relaxed world has a best plan that is easily found: bytes of VRAM flow through
//! time, from one use to the next, either idle or holding bytes of a piece; to hold some that the next launches use
//! saves their crossing, to change what is held costs the move. That is a flow of least cost.
//!
//! Two simplifications change nothing: pieces that live and are used alike are one; and stretches between two moments
//! with the same uses are one (of two states in alike stretches, holding the better one in both is no worse: costs of
//! moves obey the triangle inequality).

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

use greenboost_shim::tier::policy::Costs;
use greenboost_shim::tier::policy::trace::{Event, Record};

use super::truth::{Act, Truth};

/// The largest chunk, bytes.
const LARGEST: f64 = (64 << 20) as f64;
/// Costs are whole femtoseconds per byte.
const UNIT: f64 = 1e15;

/// Bytes that live and are used together.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Line {
    /// The stretch it is born before, and the one that it does not live to see.
    pub born: usize,
    pub died: usize,
    /// Stretches that use it, and how often.
    pub uses: Vec<(usize, u32)>,
}

/// The least time lost to the link and to moves, seconds.
pub fn lost(trace: &[Record]) -> f64 {
    let truth = Truth::of(trace);
    let Event::Begun { costs, .. } = trace[0].event else {
        panic!("a trace begins with its limits");
    };
    let (lines, stretches) = lines(&truth);
    let least = least(&lines, stretches, truth.vram, Prices::of(&costs));
    least as f64 / UNIT
}

/// Costs per byte.
#[derive(Clone, Copy, Debug)]
pub struct Prices {
    pub crossing: i64,
    pub moving: i64,
}

impl Prices {
    pub fn of(costs: &Costs) -> Prices {
        Prices {
            // Rounded so that the bound only gets lower.
            crossing: (costs.apart() * UNIT).floor() as i64,
            moving: (costs.moving(LARGEST as u64) / LARGEST * UNIT).floor() as i64,
        }
    }
}

/// What the trace uses, stretch by stretch.
fn lines(truth: &Truth) -> (HashMap<Line, u64>, usize) {
    let mut lines: Vec<Line> = truth
        .pieces
        .iter()
        .map(|_| Line {
            born: 0,
            died: usize::MAX,
            uses: Vec::new(),
        })
        .collect();
    let of = |id: usize| {
        let from = truth.pieces.partition_point(|p| p.allocation < id);
        let to = truth.pieces.partition_point(|p| p.allocation <= id);
        from..to
    };
    let mut now: HashMap<usize, u32> = HashMap::new();
    let mut before: Option<HashMap<usize, u32>> = None;
    let mut stretch = 0;
    // The last stretch can be made longer only if nothing was born or died since.
    let mut still = false;
    let mut end =
        |lines: &mut Vec<Line>, now: &mut HashMap<usize, u32>, still: &mut bool, births: bool| {
            if !now.is_empty() {
                if *still && before.as_ref() == Some(now) {
                    // As often again: counted by adding to the stretch that is there.
                    for (piece, count) in now.iter() {
                        lines[*piece].uses.last_mut().expect("it was used").1 += count;
                    }
                } else {
                    for (piece, count) in now.iter() {
                        lines[*piece].uses.push((stretch, *count));
                    }
                    stretch += 1;
                    before = Some(now.clone());
                    *still = true;
                }
                now.clear();
            }
            if births {
                *still = false;
            }
            stretch
        };
    for act in truth.acts.iter().flatten() {
        match act {
            Act::Use(pieces) => {
                for piece in pieces {
                    *now.entry(*piece).or_default() += 1;
                }
            }
            Act::Allocate(id, ..) => {
                let at = end(&mut lines, &mut now, &mut still, true);
                lines[of(*id)].iter_mut().for_each(|l| l.born = at);
            }
            Act::Free(id) => {
                let at = end(&mut lines, &mut now, &mut still, true);
                lines[of(*id)].iter_mut().for_each(|l| l.died = at);
            }
            Act::Wait => drop(end(&mut lines, &mut now, &mut still, false)),
            Act::Fill(..) => {}
        }
    }
    let stretches = end(&mut lines, &mut now, &mut still, true);
    let mut merged: HashMap<Line, u64> = HashMap::new();
    for (mut line, piece) in lines.into_iter().zip(&truth.pieces) {
        line.died = line.died.min(stretches);
        if !line.uses.is_empty() {
            *merged.entry(line).or_default() += piece.end - piece.start;
        }
    }
    (merged, stretches)
}

/// The cost of the best plan: all uses crossing the link, less what the best flow of `vram` bytes saves.
pub fn least(lines: &HashMap<Line, u64>, stretches: usize, vram: u64, prices: Prices) -> i128 {
    // Nodes 0..=stretches are moments of idle VRAM; a line has its own where it can be entered and left.
    let mut flow = Flow::new(stretches + 1);
    for at in 0..stretches {
        flow.arc(at, at + 1, i64::MAX / 4, 0);
    }
    let mut all = 0;
    let mut sorted: Vec<_> = lines.iter().collect();
    sorted.sort_by_key(|(l, _)| (l.born, l.died, l.uses.clone()));
    for (line, &bytes) in sorted {
        let mut last: Option<(usize, usize)> = None;
        for (index, &(at, count)) in line.uses.iter().enumerate() {
            let saved = i64::from(count) * prices.crossing;
            all += i128::from(saved) * i128::from(bytes);
            let (enter, leave) = (flow.node(), flow.node());
            flow.arc(enter, leave, bytes as i64, -saved);
            if let Some((left, _)) = last {
                flow.arc(left, enter, bytes as i64, 0);
            }
            let price = |free: bool| if free { 0 } else { prices.moving };
            // It is born into VRAM before its first use at no cost, so long as it stays there.
            flow.arc(at, enter, bytes as i64, prices.moving);
            if index == 0 {
                flow.arc(line.born, enter, bytes as i64, 0);
            }
            flow.arc(leave, at + 1, bytes as i64, price(at + 1 == line.died));
            if index + 1 == line.uses.len() && line.died > at + 1 {
                flow.arc(leave, line.died, bytes as i64, 0);
            }
            last = Some((leave, at));
        }
    }
    all + flow.least(0, stretches, vram as i64)
}

struct Arc {
    to: usize,
    left: i64,
    cost: i64,
}

/// A flow of least cost, by shortest paths. The network has no cycle before anything flows.
struct Flow {
    arcs: Vec<Arc>,
    from: Vec<Vec<usize>>,
}

impl Flow {
    fn new(nodes: usize) -> Flow {
        Flow {
            arcs: Vec::new(),
            from: vec![Vec::new(); nodes],
        }
    }

    fn node(&mut self) -> usize {
        self.from.push(Vec::new());
        self.from.len() - 1
    }

    fn arc(&mut self, from: usize, to: usize, left: i64, cost: i64) {
        self.from[from].push(self.arcs.len());
        self.arcs.push(Arc { to, left, cost });
        self.from[to].push(self.arcs.len());
        self.arcs.push(Arc {
            to: from,
            left: 0,
            cost: -cost,
        });
    }

    /// Distances from `source` before anything flows, in the order of the network.
    fn first(&self, source: usize) -> Vec<i64> {
        let mut before = vec![0; self.from.len()];
        for arc in self.arcs.iter().filter(|a| a.left > 0) {
            before[arc.to] += 1;
        }
        let mut distance = vec![FAR; self.from.len()];
        distance[source] = 0;
        let mut ready: Vec<usize> = (0..self.from.len()).filter(|n| before[*n] == 0).collect();
        let mut seen = 0;
        while let Some(node) = ready.pop() {
            seen += 1;
            for arc in self.from[node]
                .iter()
                .map(|a| &self.arcs[*a])
                .filter(|a| a.left > 0)
            {
                if distance[node] < FAR {
                    distance[arc.to] = distance[arc.to].min(distance[node] + arc.cost);
                }
                before[arc.to] -= 1;
                if before[arc.to] == 0 {
                    ready.push(arc.to);
                }
            }
        }
        assert_eq!(seen, self.from.len(), "the network has a cycle");
        distance
    }

    /// Sends up to `amount`, as long as that lowers the cost, which it returns.
    fn least(&mut self, source: usize, sink: usize, mut amount: i64) -> i128 {
        let mut height = self.first(source);
        let mut total = 0;
        let mut distance = height.clone();
        let mut via = vec![usize::MAX; self.from.len()];
        while amount > 0 {
            distance.fill(FAR);
            via.fill(usize::MAX);
            distance[source] = 0;
            let mut queue = BinaryHeap::from([(Reverse(0), source)]);
            while let Some((Reverse(far), node)) = queue.pop() {
                if far > distance[node] {
                    continue;
                }
                for &index in &self.from[node] {
                    let arc = &self.arcs[index];
                    if arc.left == 0 || height[arc.to] >= FAR {
                        continue;
                    }
                    let next = far + arc.cost + height[node] - height[arc.to];
                    if next < distance[arc.to] {
                        distance[arc.to] = next;
                        via[arc.to] = index;
                        queue.push((Reverse(next), arc.to));
                    }
                }
            }
            if distance[sink] >= FAR {
                break;
            }
            for (h, d) in height.iter_mut().zip(&distance) {
                if *d < FAR {
                    *h += d;
                } else {
                    *h = FAR;
                }
            }
            let cost = height[sink] - height[source];
            if cost >= 0 {
                break;
            }
            let (mut most, mut node) = (amount, sink);
            while node != source {
                most = most.min(self.arcs[via[node]].left);
                node = self.arcs[via[node] ^ 1].to;
            }
            node = sink;
            while node != source {
                self.arcs[via[node]].left -= most;
                self.arcs[via[node] ^ 1].left += most;
                node = self.arcs[via[node] ^ 1].to;
            }
            amount -= most;
            total += i128::from(cost) * i128::from(most);
        }
        total
    }
}

/// Farther than anything.
const FAR: i64 = i64::MAX / 4;
