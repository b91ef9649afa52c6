//! A program that uses some of its memory more than the rest, in steps, as models do; and others that make moving hard.

use std::io::BufRead;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

use victim::gpu::{Gpu, Kernels};
use victim::*;

const MIB: usize = 1 << 20;
/// One chunk, as PyTorch's segments are.
const PIECE: usize = 20 * MIB;
/// What kernels really touch of it: they name the whole.
const WORDS: u64 = MIB as u64 / 8;

fn main() {
    match argument(1).as_str() {
        "cache" => cache(),
        "two" => two(),
        "busy" => busy(),
        "capture" => capture(),
        "steps" => steps(),
        "paced" => paced(),
        "many" => many(),
        "moved" => moved(),
        "edge" => edge(),
        other => panic!("{other}?"),
    }
}

/// Waits for the test to have looked.
fn pause(word: &str) -> bool {
    println!("~{word}");
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line).expect("stdin") > 0 && line.trim() != "end"
}

/// Becomes true when the test has seen enough, or there is none.
fn enough() -> &'static AtomicBool {
    static OVER: AtomicBool = AtomicBool::new(false);
    std::thread::spawn(|| {
        let _ = std::io::stdin().lock().read_line(&mut String::new());
        OVER.store(true, SeqCst);
    });
    &OVER
}

/// Weights and what is computed from them.
struct Model<'a> {
    gpu: &'a Gpu,
    kernels: &'a Kernels,
    weights: Vec<CUdeviceptr>,
    wrong: CUdeviceptr,
}

impl<'a> Model<'a> {
    fn new(gpu: &'a Gpu, kernels: &'a Kernels, count: usize) -> Model<'a> {
        let null = std::ptr::null_mut();
        let weights: Vec<CUdeviceptr> = (0..count).map(|_| gpu.alloc(PIECE)).collect();
        for (seed, p) in weights.iter().enumerate() {
            kernels.fill(gpu, null, *p, WORDS, seed as u64);
        }
        let wrong = gpu.alloc(8);
        gpu.write(wrong, &[0; 8]);
        ok(gpu.cuda.cuCtxSynchronize());
        Model {
            gpu,
            kernels,
            weights,
            wrong,
        }
    }

    /// Reads every weight once.
    fn step(&self, stream: CUstream) {
        for (seed, p) in self.weights.iter().enumerate() {
            self.kernels
                .check(self.gpu, stream, *p, WORDS, seed as u64, self.wrong);
        }
    }

    fn demand_right(&self) {
        assert_eq!(self.gpu.read(self.wrong, 8), [0; 8], "weights changed");
    }
}

/// Weights first, then a cache that each step reads and writes several times.
fn cache() {
    let gpu = Gpu::open();
    let kernels = Kernels::load(&gpu);
    let model = Model::new(&gpu, &kernels, 6);
    let cache = gpu.alloc(PIECE);
    let null = std::ptr::null_mut();
    kernels.fill(&gpu, null, cache, WORDS, 7);
    println!("~cache {cache}");
    let mut added = 0u64;
    let over = enough();
    for step in 0.. {
        if step >= 30 && over.load(SeqCst) {
            break;
        }
        model.step(null);
        for value in 1..5u64 {
            kernels.add(&gpu, null, cache, WORDS, value);
            added += value;
        }
        ok(gpu.cuda.cuCtxSynchronize());
        // The notes are read now and then.
        std::thread::sleep(Duration::from_millis(5));
    }
    model.demand_right();
    let bytes = gpu.read(cache, MIB);
    for (i, word) in bytes.chunks_exact(8).enumerate() {
        let is = u64::from_ne_bytes(word.try_into().unwrap());
        assert_eq!(is, Kernels::filled(7, i as u64).wrapping_add(added), "word {i}");
    }
    println!("right");
}

/// Two models, used in turns, each until the test has seen enough.
fn two() {
    let gpu = Gpu::open();
    let kernels = Kernels::load(&gpu);
    let models = [Model::new(&gpu, &kernels, 3), Model::new(&gpu, &kernels, 3)];
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines() {
            let _ = tell.send(line.is_ok());
        }
    });
    for turn in 0..4 {
        let model = &models[turn % 2];
        for p in &model.weights {
            println!("~weight {turn} {p}");
        }
        loop {
            model.step(std::ptr::null_mut());
            ok(gpu.cuda.cuCtxSynchronize());
            std::thread::sleep(Duration::from_millis(5));
            // Also when nobody says anything any more.
            if told.try_recv() != Err(std::sync::mpsc::TryRecvError::Empty) {
                break;
            }
        }
    }
    models.iter().for_each(Model::demand_right);
    println!("right");
}

/// The device never drains: a stream is held up by the host, for as long as another thread launches and synchronises
/// on a stream of its own. Nobody may hang.
fn busy() {
    let gpu = Gpu::open();
    let kernels = Kernels::load(&gpu);
    let model = Model::new(&gpu, &kernels, 6);
    static OVER: AtomicBool = AtomicBool::new(false);
    extern "C" fn hold(_: *mut c_void) {
        while !OVER.load(SeqCst) {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    let (held, free) = (
        gpu.stream(CU_STREAM_NON_BLOCKING),
        gpu.stream(CU_STREAM_NON_BLOCKING),
    );
    ok(gpu.cuda.cuLaunchHostFunc(held, hold, std::ptr::null_mut()));
    let start = Instant::now();
    for _ in 0..40 {
        model.step(free);
        ok(gpu.cuda.cuStreamSynchronize(free));
    }
    println!("in time: {}", start.elapsed() < Duration::from_secs(20));
    pause("done");
    OVER.store(true, SeqCst);
    ok(gpu.cuda.cuCtxSynchronize());
    model.demand_right();
}

/// Steps while another stream captures, for long: nothing may be moved, and the capture stays valid.
fn capture() {
    let gpu = Gpu::open();
    let kernels = Kernels::load(&gpu);
    let model = Model::new(&gpu, &kernels, 6);
    let (captured, free) = (
        gpu.stream(CU_STREAM_NON_BLOCKING),
        gpu.stream(CU_STREAM_NON_BLOCKING),
    );
    ok(gpu.cuda.cuStreamBeginCapture_v2(captured, CU_STREAM_CAPTURE_MODE_RELAXED));
    model.step(captured);
    pause("begun");
    for _ in 0..20 {
        model.step(free);
        ok(gpu.cuda.cuStreamSynchronize(free));
        std::thread::sleep(Duration::from_millis(5));
    }
    pause("stepped");
    let (mut graph, mut exec) = (std::ptr::null_mut(), std::ptr::null_mut());
    ok(gpu.cuda.cuStreamEndCapture(captured, &mut graph));
    ok(gpu.cuda.cuGraphInstantiateWithFlags(&mut exec, graph, 0));
    for _ in 0..10 {
        ok(gpu.cuda.cuGraphLaunch(exec, free));
        ok(gpu.cuda.cuStreamSynchronize(free));
    }
    model.demand_right();
    ok(gpu.cuda.cuGraphExecDestroy(exec));
    ok(gpu.cuda.cuGraphDestroy(graph));
    println!("right");
}

/// Steps from two threads until the test says that it is enough.
fn steps() {
    let gpu = Gpu::open();
    let kernels = Kernels::load(&gpu);
    let model = Model::new(&gpu, &kernels, 6);
    let rest = AtomicBool::new(false);
    let over = AtomicBool::new(false);
    std::thread::scope(|s| {
        for _ in 0..2 {
            s.spawn(|| {
                gpu.enter();
                let stream = gpu.stream(CU_STREAM_NON_BLOCKING);
                while !over.load(SeqCst) {
                    if !rest.load(SeqCst) {
                        model.step(stream);
                    }
                    ok(gpu.cuda.cuStreamSynchronize(stream));
                    std::thread::sleep(Duration::from_millis(2));
                }
            });
        }
        let mut lines = std::io::stdin().lock().lines();
        println!("~running");
        while let Some(Ok(line)) = lines.next() {
            match line.trim() {
                "rest" => rest.store(true, SeqCst),
                "on" => rest.store(false, SeqCst),
                _ => break,
            }
            std::thread::sleep(Duration::from_millis(20));
            println!("~{line}");
        }
        over.store(true, SeqCst);
    });
    model.demand_right();
    println!("right");
}

/// A step every 100 ms until the test has seen enough; says how many they were.
fn paced() {
    let gpu = Gpu::open();
    let kernels = Kernels::load(&gpu);
    let model = Model::new(&gpu, &kernels, 6);
    println!("~running");
    let over = enough();
    let begin = Instant::now();
    let mut steps = 0;
    while !over.load(SeqCst) {
        model.step(std::ptr::null_mut());
        ok(gpu.cuda.cuCtxSynchronize());
        steps += 1;
        let next = Duration::from_millis(100 * steps);
        std::thread::sleep(next.saturating_sub(begin.elapsed()));
    }
    println!("~steps {steps}");
    model.demand_right();
    println!("right");
}

/// Many allocations, all used every 20 ms, as often as the test says: 20,000 launches a second. Meanwhile it rests.
fn many() {
    const SMALL: usize = 2 * MIB;
    let gpu = Gpu::open();
    let kernels = Kernels::load(&gpu);
    let null = std::ptr::null_mut();
    let all: Vec<CUdeviceptr> = (0..400).map(|_| gpu.alloc(SMALL)).collect();
    all.iter().for_each(|p| kernels.fill(&gpu, null, *p, 1, 0));
    let mut turns = 0;
    let mut lines = std::io::stdin().lock().lines();
    loop {
        ok(gpu.cuda.cuCtxSynchronize());
        println!("~rests {turns}");
        let line = lines.next().and_then(Result::ok);
        let Some(more) = line.and_then(|line| line.parse::<u64>().ok()) else {
            break;
        };
        let begin = Instant::now();
        for turn in 1..=more {
            all.iter().for_each(|p| kernels.add(&gpu, null, *p, 1, 1));
            if turn % 10 == 0 {
                ok(gpu.cuda.cuCtxSynchronize());
            }
            let next = Duration::from_millis(20 * turn);
            std::thread::sleep(next.saturating_sub(begin.elapsed()));
        }
        turns += more;
    }
    for p in all {
        let word = u64::from_ne_bytes(gpu.read(p, 8).try_into().unwrap());
        assert_eq!(word, Kernels::filled(0, 0).wrapping_add(turns));
    }
    println!("right");
}

/// Memory that is moved whenever the program synchronises; a driver call of that may fail, the program's own are made
/// again then.
fn moved() {
    let gpu = Gpu::open();
    let n = 6 * MIB;
    let again = |call: &dyn Fn() -> CUresult| {
        if call() != 0 {
            ok(call());
        }
    };
    let alloc = |_| gpu.try_alloc(n).unwrap_or_else(|_| gpu.alloc(n));
    let all: Vec<CUdeviceptr> = (0..4).map(alloc).collect();
    for (i, p) in all.iter().enumerate() {
        let bytes = pattern(i as u64, n);
        again(&|| gpu.cuda.cuMemcpyHtoD_v2(*p, bytes.as_ptr().cast(), n));
    }
    println!("~moving");
    for _ in 0..12 {
        again(&|| gpu.cuda.cuCtxSynchronize());
    }
    println!("~moved");
    for (i, p) in all.iter().enumerate() {
        let mut bytes = vec![0u8; n];
        let to: *mut c_void = bytes.as_mut_ptr().cast();
        again(&|| gpu.cuda.cuMemcpyDtoH_v2(to, *p, n));
        assert!(bytes == pattern(i as u64, n), "bytes changed");
    }
    println!("right");
}

unsafe extern "C" {
    fn mmap(at: *mut c_void, bytes: usize, protection: c_int, flags: c_int, fd: c_int, offset: i64) -> *mut c_void;
    fn mprotect(at: *mut c_void, bytes: usize, protection: c_int) -> c_int;
}

/// Arguments whose list, and whose last value, end where memory ends.
fn edge() {
    let gpu = Gpu::open();
    let kernels = Kernels::load(&gpu);
    // Something is spilled, so that launches are noted.
    let all: Vec<CUdeviceptr> = (0..4).map(|_| gpu.alloc(6 * MIB)).collect();
    let page = 4096;
    // SAFETY: two new pages, of which the second is never touched.
    let last = unsafe {
        let at = mmap(std::ptr::null_mut(), 2 * page, 3, 0x22, -1, 0);
        assert_eq!(mprotect(at.add(page), page, 0), 0);
        at.add(page).cast::<u64>()
    };
    for (seed, p) in all.iter().enumerate() {
        // SAFETY: the last six words of the page: three values, and the list of pointers to them.
        unsafe {
            let values = last.sub(6);
            for (i, value) in [*p, WORDS, seed as u64].into_iter().enumerate() {
                values.add(i).write(value);
                last.sub(3 - i).write(values.add(i) as u64);
            }
            let (f, none) = (kernels.fill_function(), std::ptr::null_mut());
            let list = last.sub(3).cast::<*mut c_void>();
            ok(gpu.cuda.cuLaunchKernel(f, 1, 1, 1, 1, 1, 1, 0, none, list, none.cast()));
        }
    }
    ok(gpu.cuda.cuCtxSynchronize());
    for (seed, p) in all.iter().enumerate() {
        let first = gpu.read(*p, 8);
        assert_eq!(first, Kernels::filled(seed as u64, 0).to_ne_bytes());
    }
    println!("right");
}
