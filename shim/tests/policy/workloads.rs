//! Programs as the shim would see them: sizes and orders of real ones, with fewer and larger layers so that the traces
//! stay small. Times are those of a machine where everything is in VRAM.

use greenboost_shim::tier::chunk::{GRAIN, split};
use greenboost_shim::tier::policy::trace::{Event, Record};
use greenboost_shim::tier::policy::{Costs, Op};
use greenboost_wire::ledger::Tier;

pub const MIB: u64 = 1 << 20;
pub const GIB: u64 = 1 << 30;

/// All of them, by the names of their files.
pub fn all() -> Vec<(&'static str, Vec<Record>)> {
    vec![
        ("llm", llm().0),
        ("prompt", prompt().0),
        ("diffusion", diffusion()),
        ("training", training()),
        ("moe", moe(7)),
        ("scan", scan()),
        ("adversary", adversary(3)),
        ("two-models", two_models(20)),
    ]
}

/// Random numbers that are the same everywhere (splitmix64).
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

/// Something that was allocated.
#[derive(Clone, Copy, Debug)]
pub struct Buffer {
    pub base: u64,
    pub bytes: u64,
}

/// A program in the making.
pub struct Program {
    pub trace: Vec<Record>,
    at: u64,
    next: u64,
    functions: Vec<&'static str>,
}

impl Program {
    pub fn new(vram: u64) -> Program {
        let begun = Event::Begun {
            vram,
            host: 256 * GIB,
            costs: Costs::H100,
        };
        Program {
            trace: vec![Record {
                at: 0,
                event: begun,
            }],
            at: 0,
            next: 0x3_0200_0000,
            functions: Vec::new(),
        }
    }

    fn push(&mut self, event: Event) {
        self.trace.push(Record { at: self.at, event });
    }

    pub fn allocate(&mut self, bytes: u64) -> Buffer {
        let base = self.next;
        let span = bytes.next_multiple_of(GRAIN);
        self.next += span + GRAIN;
        self.push(Event::Allocated {
            base,
            bytes,
            movable: true,
            chunks: split(span).into_iter().map(|b| (b, Tier::Vram)).collect(),
        });
        Buffer { base, bytes }
    }

    pub fn upload(&mut self, bytes: u64) -> Buffer {
        let buffer = self.allocate(bytes);
        self.copy(buffer.base, bytes);
        buffer
    }

    pub fn copy(&mut self, address: u64, bytes: u64) {
        self.at += bytes / 40;
        self.push(Event::Named {
            op: Op::Copy { bytes },
            thread: 1,
            function: 0,
            addresses: vec![address],
        });
    }

    pub fn free(&mut self, buffer: Buffer) {
        self.push(Event::Freed { base: buffer.base });
    }

    pub fn launch(&mut self, name: &'static str, addresses: &[u64]) {
        let id = match self.functions.iter().position(|f| *f == name) {
            Some(at) => at as u64 + 1,
            None => {
                self.functions.push(name);
                let id = self.functions.len() as u64;
                let name = name.to_owned();
                self.push(Event::Function { id, name });
                id
            }
        };
        self.at += 20_000;
        self.push(Event::Named {
            op: Op::Launch,
            thread: 1,
            function: id,
            addresses: addresses.to_vec(),
        });
    }

    pub fn wait(&mut self) {
        self.push(Event::Waited);
    }
}

/// Decode of a model that was loaded layer by layer; the KV cache comes last and grows, a new buffer each time.
///
/// Besides, the addresses of what is hot at the end: keys, values, scratch.
pub fn llm() -> (Vec<Record>, Vec<u64>) {
    let mut p = Program::new(15 * GIB);
    let layers: Vec<[Buffer; 2]> = (0..16)
        .map(|_| [p.upload(416 * MIB), p.upload(1248 * MIB)])
        .collect();
    let head = p.upload(500 * MIB);
    let mut caches: Vec<Buffer> = (0..16).map(|_| p.allocate(64 * MIB)).collect();
    let scratch = p.allocate(96 * MIB);
    for token in 0..96 {
        if token % 24 == 8 {
            for cache in &mut caches {
                let new = p.allocate(cache.bytes + 64 * MIB);
                p.launch("cat", &[cache.base, new.base]);
                p.free(*cache);
                *cache = new;
            }
        }
        for (layer, cache) in layers.iter().zip(&caches) {
            p.launch("qkvo", &[layer[0].base, scratch.base]);
            p.launch("append", &[cache.base, scratch.base]);
            p.launch("attention", &[cache.base, scratch.base]);
            p.launch("mlp", &[layer[1].base, scratch.base]);
        }
        p.launch("head", &[head.base, scratch.base]);
        p.wait();
    }
    let hot = caches.iter().chain([&scratch]).map(|b| b.base).collect();
    (p.trace, hot)
}

/// A prompt in four batches, then decode; all weights in one allocation, keys and values in another, written at a
/// position inside that is another one for each token.
///
/// Besides, the addresses of what is hot at the end.
pub fn prompt() -> (Vec<Record>, Vec<u64>) {
    let mut p = Program::new(9 * GIB);
    let weights = p.allocate(13 * GIB);
    let tensor = |layer: u64, which: u64| weights.base + layer * 832 * MIB + which * 208 * MIB;
    for piece in 0..26 {
        p.copy(weights.base + piece * 512 * MIB, 512 * MIB);
    }
    let cache = p.allocate(2 * GIB);
    let of = |layer: u64| cache.base + layer * 128 * MIB;
    let compute = p.allocate(304 * MIB);
    let big = p.allocate(GIB);
    let pass = |p: &mut Program, scratch: &[u64], position: u64| {
        for layer in 0..16 {
            p.launch("qkv", &[tensor(layer, 0), scratch[0]]);
            p.launch("store", &[scratch[0], of(layer) + position * 60 * 1024]);
            p.launch("attention", &[of(layer), scratch[0]]);
            p.launch("out", &[tensor(layer, 1), scratch[0]]);
            p.launch("up", &[tensor(layer, 2), scratch[scratch.len() - 1]]);
            p.launch("down", &[tensor(layer, 3), scratch[scratch.len() - 1]]);
        }
        p.wait();
    };
    for batch in 0..4 {
        pass(&mut p, &[compute.base, big.base], batch * 512);
    }
    p.free(big);
    for token in 0..64 {
        pass(&mut p, &[compute.base], 2048 + token);
    }
    (p.trace, vec![compute.base])
}

/// Text encoder, decoder and denoiser, loaded in this order; 24 pictures of 30 steps.
pub fn diffusion() -> Vec<Record> {
    let mut p = Program::new(15 * GIB);
    let load = |p: &mut Program, layers: u64, bytes: u64| -> Vec<Buffer> {
        (0..layers).map(|_| p.upload(bytes)).collect()
    };
    let encoder = load(&mut p, 9, 1024 * MIB);
    let decoder = load(&mut p, 2, 256 * MIB);
    let denoiser = load(&mut p, 8, 1408 * MIB);
    let latents = p.allocate(32 * MIB);
    let scratch = p.allocate(512 * MIB);
    let pass = |p: &mut Program, model: &[Buffer]| {
        for layer in model {
            p.launch("layer", &[layer.base, scratch.base, latents.base]);
        }
        p.wait();
    };
    for _ in 0..24 {
        pass(&mut p, &encoder);
        for _ in 0..30 {
            pass(&mut p, &denoiser);
        }
        pass(&mut p, &decoder);
        pass(&mut p, &decoder);
    }
    p.trace
}

/// Forward, backward, AdamW; the optimizer's states were made at the start, before activations and gradients.
pub fn training() -> Vec<Record> {
    let mut p = Program::new(16 * GIB);
    let weights: Vec<Buffer> = (0..8).map(|_| p.upload(512 * MIB)).collect();
    let states: Vec<[Buffer; 2]> = (0..8).map(|_| [p.allocate(GIB), p.allocate(GIB)]).collect();
    let activations: Vec<Buffer> = (0..8).map(|_| p.allocate(384 * MIB)).collect();
    let gradients: Vec<Buffer> = (0..8).map(|_| p.allocate(512 * MIB)).collect();
    let scratch = p.allocate(256 * MIB);
    for _ in 0..40 {
        for layer in 0..8 {
            p.launch(
                "forward",
                &[weights[layer].base, activations[layer].base, scratch.base],
            );
        }
        for layer in (0..8).rev() {
            p.launch(
                "backward",
                &[weights[layer].base, activations[layer].base, scratch.base],
            );
            p.launch(
                "gradient",
                &[activations[layer].base, gradients[layer].base, scratch.base],
            );
        }
        p.wait();
        for layer in 0..8 {
            let [m, v] = states[layer];
            p.launch(
                "adamw",
                &[weights[layer].base, gradients[layer].base, m.base, v.base],
            );
        }
    }
    p.trace
}

/// A mixture of experts: of eight, each token of a layer uses two, some far more often than others.
pub fn moe(seed: u64) -> Vec<Record> {
    let mut p = Program::new(9 * GIB);
    let mut random = Random(seed);
    let experts: Vec<Vec<Buffer>> = (0..6)
        .map(|_| (0..8).map(|_| p.upload(256 * MIB)).collect())
        .collect();
    let attention: Vec<Buffer> = (0..6).map(|_| p.upload(352 * MIB)).collect();
    let caches: Vec<Buffer> = (0..6).map(|_| p.allocate(128 * MIB)).collect();
    let scratch = p.allocate(64 * MIB);
    // How likely an expert is, of 100; each layer likes others.
    let likely = [34, 24, 14, 10, 7, 5, 4, 2];
    for _ in 0..400 {
        for layer in 0..6 {
            p.launch("attention", &[attention[layer].base, scratch.base]);
            p.launch("keys", &[caches[layer].base, scratch.base]);
            p.launch("values", &[caches[layer].base, scratch.base]);
            let mut pick = || {
                let mut of = random.below(100);
                let mut expert = 0;
                while of >= likely[expert] {
                    of -= likely[expert];
                    expert += 1;
                }
                experts[layer][(expert * 3 + layer) % 8].base
            };
            let first = pick();
            let second = loop {
                let other = pick();
                if other != first {
                    break other;
                }
            };
            p.launch("expert", &[first, scratch.base]);
            p.launch("expert", &[second, scratch.base]);
        }
        p.wait();
    }
    p.trace
}

/// A loop over a little more than fits: who keeps what was used last has always just sent away what is next.
pub fn scan() -> Vec<Record> {
    let mut p = Program::new(18 * GIB);
    let buffers: Vec<Buffer> = (0..40).map(|_| p.allocate(512 * MIB)).collect();
    for _ in 0..60 {
        for (i, buffer) in buffers.iter().enumerate() {
            p.launch("scan", &[buffer.base]);
            if i % 4 == 3 {
                p.wait();
            }
        }
    }
    p.trace
}

/// What is hot is hot just as long as it takes to believe it; then what went down for it is.
pub fn adversary(seed: u64) -> Vec<Record> {
    let mut p = Program::new(25 * GIB);
    let mut random = Random(seed);
    let buffers: Vec<Buffer> = (0..40)
        .map(|_| p.allocate((1 + random.below(8)) * 160 * MIB))
        .collect();
    let mut turn = 0;
    for _ in 0..240 {
        let count = 4 + random.below(16);
        let set: Vec<usize> = match random.below(3) {
            // Half of everything, then the other half.
            0 => {
                turn += 1;
                (0..40).filter(|i| (i + turn) % 2 == 0).collect()
            }
            1 => (0..count).map(|_| random.below(40) as usize).collect(),
            _ => {
                let from = random.below(40);
                (from..from + count).map(|i| (i % 40) as usize).collect()
            }
        };
        for _ in 0..1 + random.below(6) {
            for &i in &set {
                p.launch("any", &[buffers[i].base]);
            }
            if random.below(2) == 0 {
                p.wait();
            }
        }
    }
    p.trace
}

/// Two models that do not fit together, each in turn for so many steps.
pub fn two_models(steps: usize) -> Vec<Record> {
    let mut p = Program::new(12 * GIB);
    let models: Vec<Vec<Buffer>> = (0..2)
        .map(|_| (0..20).map(|_| p.upload(512 * MIB)).collect())
        .collect();
    let scratch = p.allocate(64 * MIB);
    for block in 0..240 / steps {
        for _ in 0..steps {
            for layer in &models[block % 2] {
                p.launch("layer", &[layer.base, scratch.base]);
            }
            p.wait();
        }
    }
    p.trace
}

/// Long decode of a model of which so many of 100 parts fit.
pub fn decode(fit: u64) -> Vec<Record> {
    let mut p = Program::new(20 * GIB * fit / 100);
    let scratch = p.allocate(64 * MIB);
    let layers: Vec<Buffer> = (0..40).map(|_| p.upload(512 * MIB)).collect();
    for _ in 0..2000 {
        for layer in &layers {
            p.launch("layer", &[layer.base, scratch.base]);
        }
        p.wait();
    }
    p.trace
}
