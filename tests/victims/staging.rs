//! Programs that make staging hard: memory that is reached by addresses which lie in memory, short-lived ones too.

use std::io::BufRead;

use victim::gpu::{Gpu, Kernels};
use victim::*;

const MIB: usize = 1 << 20;
const PIECE: usize = 6 * MIB;
const WORDS: u64 = PIECE as u64 / 8;
const COUNT: usize = 6;
const ROUNDS: u64 = 60;

fn main() {
    match argument(1).as_str() {
        "uploaded" => tables(Table::Uploaded),
        "queued" => tables(Table::Queued),
        "made" => tables(Table::Made),
        "loop" => steady(),
        "unseen" => unseen(),
        "shared" => shared(),
        other => panic!("{other}?"),
    }
}

/// How the addresses come into memory.
#[derive(PartialEq)]
enum Table {
    /// By a synchronous copy from pageable memory.
    Uploaded,
    /// By an asynchronous one from pinned memory.
    Queued,
    /// By a kernel that is given them.
    Made,
}

struct Pieces<'a> {
    gpu: &'a Gpu,
    kernels: &'a Kernels,
    all: Vec<CUdeviceptr>,
    wrong: CUdeviceptr,
    /// What was added to the first word of each.
    added: Vec<u64>,
}

impl<'a> Pieces<'a> {
    fn new(gpu: &'a Gpu, kernels: &'a Kernels) -> Pieces<'a> {
        let null = std::ptr::null_mut();
        let all: Vec<CUdeviceptr> = (0..COUNT).map(|_| gpu.alloc(PIECE)).collect();
        for (seed, p) in all.iter().enumerate() {
            kernels.fill(gpu, null, *p, WORDS, seed as u64);
        }
        let wrong = gpu.alloc(8);
        gpu.write(wrong, &[0; 8]);
        ok(gpu.cuda.cuCtxSynchronize());
        Pieces {
            gpu,
            kernels,
            all,
            wrong,
            added: vec![0; COUNT],
        }
    }

    /// All but the first word of each, so that chunks come and go.
    fn step(&self, stream: CUstream) {
        for (seed, p) in self.all.iter().enumerate() {
            let seed = seed as u64 + 1;
            self.kernels
                .check(self.gpu, stream, p + 8, WORDS - 1, seed, self.wrong);
        }
    }

    fn demand_right(&self) {
        ok(self.gpu.cuda.cuCtxSynchronize());
        assert_eq!(self.gpu.read(self.wrong, 8), [0; 8], "words changed");
        for (seed, p) in self.all.iter().enumerate() {
            let is = u64::from_ne_bytes(self.gpu.read(*p, 8).try_into().unwrap());
            let should = Kernels::filled(seed as u64, 0).wrapping_add(self.added[seed]);
            assert_eq!(is, should, "piece {seed}");
        }
    }
}

/// Tables of addresses that live from one launch to the next.
fn tables(table: Table) {
    let gpu = Gpu::open();
    let kernels = Kernels::load(&gpu);
    let mut pieces = Pieces::new(&gpu, &kernels);
    let stream = gpu.stream(CU_STREAM_NON_BLOCKING);
    let list = gpu.alloc(64);
    gpu.write(list, &[0; 64]);
    let mut host = std::ptr::null_mut();
    ok(gpu.cuda.cuMemHostAlloc(&mut host, 64, 0));
    for round in 0..ROUNDS {
        pieces.step(stream);
        // Late, when much has been staged already.
        if round >= 20 {
            let chosen = [round as usize % COUNT, (round as usize + 2) % COUNT];
            let addresses = chosen.map(|c| pieces.all[c]);
            let bytes: Vec<u8> = addresses.iter().flat_map(|a| a.to_ne_bytes()).collect();
            match table {
                Table::Uploaded => {
                    ok(gpu.cuda.cuStreamSynchronize(stream));
                    gpu.write(list, &bytes);
                }
                Table::Queued => {
                    ok(gpu.cuda.cuStreamSynchronize(stream));
                    // SAFETY: 64 bytes of our own, that no copy reads now.
                    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), host.cast(), 16) };
                    ok(gpu.cuda.cuMemcpyHtoDAsync_v2(list, host, 16, stream));
                }
                Table::Made => {
                    for (i, address) in (0..).zip(addresses) {
                        kernels.store(&gpu, stream, list + 8 * i, address);
                    }
                }
            }
            kernels.deref(&gpu, stream, list, 2, round + 1);
            chosen.iter().for_each(|c| pieces.added[*c] += round + 1);
            // Gone again before anybody looks.
            ok(gpu.cuda.cuMemsetD8Async(list, 0, 64, stream));
        }
        if round % 3 == 0 {
            ok(gpu.cuda.cuStreamSynchronize(stream));
        }
    }
    pieces.demand_right();
    ok(gpu.cuda.cuMemFreeHost(host));
    println!("right");
}

/// The same steps over all pieces, again and again, and now and then one that writes to them.
fn steady() {
    let gpu = Gpu::open();
    let kernels = Kernels::load(&gpu);
    let mut pieces = Pieces::new(&gpu, &kernels);
    let stream = gpu.stream(CU_STREAM_NON_BLOCKING);
    for round in 0..200 {
        pieces.step(stream);
        if round % 50 == 49 {
            for (p, added) in pieces.all.iter().zip(&mut pieces.added) {
                kernels.add(&gpu, stream, *p, 1, round);
                *added += round;
            }
        }
        ok(gpu.cuda.cuStreamSynchronize(stream));
    }
    pieces.demand_right();
    println!("right");
}

/// Addresses in memory that the CPU writes and kernels read where it is: nobody can see that in time. A kernel that comes
/// by a chunk in transit faults; never does it compute with wrong data.
fn unseen() {
    let gpu = Gpu::open();
    let kernels = Kernels::load(&gpu);
    let pieces = Pieces::new(&gpu, &kernels);
    let stream = gpu.stream(CU_STREAM_NON_BLOCKING);
    let mut host = std::ptr::null_mut();
    ok(gpu.cuda.cuMemHostAlloc(&mut host, 64, 0));
    let table: *mut u64 = host.cast();
    let end = std::time::Instant::now() + std::time::Duration::from_secs(20);
    for round in 0.. {
        pieces.step(stream);
        // SAFETY: 64 bytes of our own, that no kernel reads now.
        unsafe { table.write_volatile(if round < 20 { pieces.wrong } else { pieces.all[round % COUNT] }) };
        kernels.deref(&gpu, stream, host as u64, 1, 0);
        ok(gpu.cuda.cuStreamSynchronize(stream));
        if std::time::Instant::now() > end {
            break;
        }
    }
    println!("right");
}

/// An allocation that has been staged is given to another process.
fn shared() {
    let gpu = Gpu::open();
    let kernels = Kernels::load(&gpu);
    let pieces = Pieces::new(&gpu, &kernels);
    let stream = gpu.stream(CU_STREAM_NON_BLOCKING);
    for _ in 0..30 {
        pieces.step(stream);
        ok(gpu.cuda.cuStreamSynchronize(stream));
    }
    for p in &pieces.all {
        let mut handle = CUipcMemHandle { reserved: [0; 64] };
        ok(gpu.cuda.cuIpcGetMemHandle(&mut handle, *p));
    }
    for _ in 0..30 {
        pieces.step(stream);
        ok(gpu.cuda.cuStreamSynchronize(stream));
    }
    pieces.demand_right();
    println!("~shared");
    let _ = std::io::stdin().lock().read_line(&mut String::new());
    println!("right");
}
