//! What runs: operations that name units, pass for pass.

pub const MIB: u64 = 1 << 20;

/// Numbers that look random, the same every time.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % bound
    }
}

/// An operation.
#[derive(Clone, Debug)]
pub struct Op {
    pub stream: u64,
    pub units: Vec<usize>,
    /// Seconds in VRAM.
    pub compute: f64,
    /// How often it reads what it touches, and which part of the units that is.
    pub reads: f64,
    pub touched: f64,
}

/// A program.
#[derive(Clone, Debug, Default)]
pub struct Program {
    /// Bytes, and whether the home is Host.
    pub units: Vec<(u64, bool)>,
    pub passes: Vec<Vec<Op>>,
}

impl Program {
    /// An allocation of so many MiB, in chunks of 64, 32, 20 and 2 MiB; not spilled yet.
    pub fn allocate(&mut self, mib: u64) -> Vec<usize> {
        let mut left = mib;
        let mut units = Vec::new();
        while left > 0 {
            let size = [64, 32, 20].into_iter().find(|s| *s <= left).unwrap_or(2);
            units.push(self.units.len());
            self.units.push((size * MIB, false));
            left = left.saturating_sub(size);
        }
        units
    }

    pub fn bytes(&self, host: bool) -> u64 {
        self.units.iter().filter(|u| u.1 == host).map(|u| u.0).sum()
    }

    /// Spills the last units until so many bytes are outside.
    pub fn spill_last(&mut self, bytes: f64) {
        let mut out = 0;
        for unit in self.units.iter_mut().rev() {
            if out as f64 >= bytes {
                break;
            }
            unit.1 = true;
            out += unit.0;
        }
    }

    /// Spills units until so many bytes are outside, evenly.
    pub fn spill_evenly(&mut self, bytes: f64) {
        let all = (self.bytes(false) + self.bytes(true)) as f64;
        let mut error = 0.0;
        for unit in &mut self.units {
            error += unit.0 as f64 * bytes / all;
            if error >= unit.0 as f64 / 2.0 {
                unit.1 = true;
                error -= unit.0 as f64;
            }
        }
    }
}

pub fn op(units: &[usize], compute: f64, reads: f64) -> Op {
    Op {
        stream: 1,
        units: units.to_vec(),
        compute,
        reads,
        touched: 1.0,
    }
}

/// How a batch computes: seconds of a pass, and how often weights are read.
#[derive(Clone, Copy, Debug)]
pub struct Batch {
    pub compute: f64,
    pub reads: f64,
}

/// The transformer of 25.4 GB that was measured on an H100.
pub const PROMPT: Batch = Batch {
    compute: 0.347,
    reads: 90.0,
};
pub const SHORT: Batch = Batch {
    compute: 0.0857,
    reads: 23.0,
};
pub const SMALL: Batch = Batch {
    compute: 0.013,
    reads: 1.4,
};
pub const DECODE: Batch = Batch {
    compute: 0.013,
    reads: 1.0,
};

/// Its 40 layers of five weights.
pub fn transformer() -> (Program, Vec<[Vec<usize>; 5]>) {
    let mut p = Program::default();
    let layers = (0..40)
        .map(|_| [150, 50, 135, 135, 135].map(|mib| p.allocate(mib)))
        .collect();
    (p, layers)
}

/// A pass over it; what runs between the products takes an eighth of the time.
pub fn forward(layers: &[[Vec<usize>; 5]], batch: Batch) -> Vec<Op> {
    let layer = batch.compute / layers.len() as f64;
    let parts = [150.0, 50.0, 135.0, 135.0, 135.0].map(|m| layer * 0.875 * m / 605.0);
    let mut ops = Vec::new();
    for weights in layers {
        ops.push(op(&[], layer * 0.01, 0.0));
        ops.push(op(&weights[0], parts[0], batch.reads));
        ops.push(op(&[], layer * 0.08, 0.0));
        for at in 1..5 {
            ops.push(op(&weights[at], parts[at], batch.reads));
        }
        ops.push(op(&[], layer * 0.035, 0.0));
    }
    ops
}

/// So many passes of each batch, one after the other.
pub fn batches(batches: &[(Batch, usize)]) -> Program {
    let (mut p, layers) = transformer();
    for &(batch, times) in batches {
        for _ in 0..times {
            p.passes.push(forward(&layers, batch));
        }
    }
    p
}

/// Puts additional uses of random weights into each pass, so many of 100 operations.
pub fn noise(p: &mut Program, percent: u64, seed: u64) {
    let mut random = Random(seed);
    for pass in &mut p.passes {
        let mut noisy = Vec::new();
        let named: Vec<Op> = pass
            .iter()
            .filter(|o| !o.units.is_empty())
            .cloned()
            .collect();
        for op in pass.drain(..) {
            noisy.push(op);
            if random.below(100) < percent {
                noisy.push(named[random.below(named.len() as u64) as usize].clone());
            }
        }
        *pass = noisy;
    }
}

/// Forward, backward in reverse, AdamW on bf16 weights with two states of 4 bytes; each product takes so many
/// seconds.
pub fn training(passes: usize, compute: f64) -> Program {
    let mut p = Program::default();
    let layers: Vec<[Vec<usize>; 4]> = (0..24)
        .map(|_| [256, 256, 512, 512].map(|mib| p.allocate(mib)))
        .collect();
    for _ in 0..passes {
        let mut ops = Vec::new();
        for [weight, ..] in &layers {
            ops.push(op(weight, compute, 40.0));
        }
        for [weight, gradient, ..] in layers.iter().rev() {
            ops.push(op(weight, compute, 40.0));
            ops.push(op(gradient, compute, 40.0));
        }
        for layer in &layers {
            let all: Vec<usize> = layer.iter().flatten().copied().collect();
            ops.push(op(&all, 0.001, 1.6));
        }
        p.passes.push(ops);
    }
    p
}

/// Text encoder, so many passes of a denoiser, decoder; each pass here is a picture.
pub fn diffusion(pictures: usize, steps: usize) -> Program {
    let mut p = Program::default();
    let mut load = |layers: usize, mib: u64| -> Vec<Vec<usize>> {
        (0..layers).map(|_| p.allocate(mib)).collect()
    };
    let encoder = load(24, 384);
    let denoiser = load(57, 416);
    let decoder = load(8, 20);
    for _ in 0..pictures {
        let mut ops = Vec::new();
        let mut model = |layers: &[Vec<usize>], compute: f64, reads: f64| {
            for layer in layers {
                ops.push(op(&layer[..layer.len() / 2], compute / 2.0, reads));
                ops.push(op(&[], compute / 10.0, 0.0));
                ops.push(op(&layer[layer.len() / 2..], compute / 2.0, reads));
            }
        };
        model(&encoder, 0.0005, 3.0);
        for _ in 0..steps {
            model(&denoiser, 0.0095, 40.0);
        }
        model(&decoder, 0.010, 10.0);
        p.passes.push(ops);
    }
    p
}

/// Weights in any order, another one each time.
pub fn random(passes: usize, batch: Batch, seed: u64) -> Program {
    let (mut p, layers) = transformer();
    let mut random = Random(seed);
    for _ in 0..passes {
        let ops = forward(&layers, batch);
        let named: Vec<&Op> = ops.iter().filter(|o| !o.units.is_empty()).collect();
        let pass = (0..ops.len())
            .map(|_| named[random.below(named.len() as u64) as usize].clone())
            .collect();
        p.passes.push(pass);
    }
    p
}

/// A mixture of experts: of eight, each layer uses two, any.
pub fn experts(passes: usize, seed: u64) -> Program {
    let mut p = Program::default();
    let mut random = Random(seed);
    let layers: Vec<(Vec<usize>, Vec<Vec<usize>>)> = (0..24)
        .map(|_| (p.allocate(64), (0..8).map(|_| p.allocate(128)).collect()))
        .collect();
    for _ in 0..passes {
        let mut ops = Vec::new();
        for (attention, of) in &layers {
            ops.push(op(attention, 50e-6, 1.0));
            let first = random.below(8);
            let second = (first + 1 + random.below(7)) % 8;
            for expert in [first, second] {
                ops.push(op(&of[expert as usize], 50e-6, 1.0));
            }
        }
        p.passes.push(ops);
    }
    p
}
