//! One budget for everything that a job starts, and nothing left of what has ended.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::harness::{Job, MIB, Run, run};

fn within<T: PartialEq + std::fmt::Debug>(
    patience: Duration,
    mut look: impl FnMut() -> T,
    want: T,
) {
    let start = Instant::now();
    loop {
        let seen = look();
        if seen == want {
            return;
        }
        assert!(start.elapsed() < patience, "{seen:?}, expected {want:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A process that becomes another program holds nothing of what the former one held: at once when the new one uses CUDA,
/// and as soon as anybody looks for the dead when it does not.
#[test]
fn exec_gives_back_what_was_held() {
    let r = run("exec", &["becomes", "cuda"]).vram(32);
    let job = r.job();
    let mut live = r.start_in(&job);
    live.until("holding");
    let before = job.held();
    assert!(before.0 >= 12 * MIB);
    live.tell("on");
    live.until("fresh");
    assert_eq!(job.ledger.seats().len(), 1, "{:?}", job.ledger.seats());
    assert!(
        job.held().0 < before.0 + MIB,
        "{:?} held, {before:?} before",
        job.held()
    );
    live.tell("on");
    live.wait();
    job.demand_sane_and_empty();

    let r = run("exec", &["becomes", "sleep"]);
    let job = r.job();
    let mut live = r.start_in(&job);
    live.until("holding");
    live.tell("on");
    let reaped = || {
        job.ledger.reap();
        job.ledger.seats().len()
    };
    within(Duration::from_secs(20), reaped, 0);
    assert_eq!(job.held(), (0, 0));
    assert!(live.is_running(), "it is the same process, asleep");
    live.kill();
}

/// However a process ends, its status is its own and nothing of it stays in the ledger or among the files.
#[test]
fn every_end_leaves_the_ledger_clean() {
    for (end, r) in [
        ("_exit", run("exec", &["ends", "_exit"]).exits(9)),
        ("exit", run("exec", &["ends", "exit"]).exits(9)),
        ("abort", run("exec", &["ends", "abort"]).dies_of(6)),
        ("illegal", run("exec", &["ends", "illegal"]).dies_of(4)),
    ] {
        let job = r.job();
        let before = files(&job);
        r.start_in(&job).wait();
        job.demand_sane_and_empty();
        assert_eq!(files(&job), before, "files after {end}");
    }
}

/// What is in the job's directory, but for what the harness writes.
fn files(job: &Job) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(job.path())
        .unwrap()
        .map(|e| e.unwrap().file_name().to_string_lossy().into_owned())
        .filter(|n| !["out", "err", "report"].iter().any(|h| n.starts_with(h)))
        .collect();
    names.sort();
    names
}

/// SIGTERM and SIGKILL in the middle of allocations, at many moments: nothing is stranded, and others get it all.
#[test]
fn signals_in_the_middle_of_allocations() {
    for signal in [15, 9] {
        let r = run("exec", &["busy"]).vram(16).ram(48).dies_of(signal);
        let job = r.job();
        for round in 0..12u64 {
            let mut live = r.start_in(&job);
            live.until("busy");
            std::thread::sleep(Duration::from_micros(500 + round * 1777 % 9000));
            live.signal(signal);
            live.wait();
            // The next process finds the whole budget: what the dead one held is reaped when it is in the way.
            let next = run("memory", &["exhaust", "3145728"]).vram(16).ram(48);
            let outcome = next.start_in(&job).wait();
            let counts = outcome.notes("pieces")[0];
            let first: u64 = counts[1..].split(',').next().unwrap().parse().unwrap();
            assert!(
                first >= 14,
                "only {first} pieces of 3 MiB in 64 MiB after signal {signal}"
            );
        }
        job.demand_sane_and_empty();
    }
}

/// A shell that starts three programs, one after another and side by side: one budget, three processes.
#[test]
fn a_shell_that_starts_three() {
    let bench = crate::harness::bench();
    let share = bench.victims.join("share");
    let script = format!(
        "{0} 1 2 20 6 && {{ {0} 2 2 20 6 & {0} 3 2 20 6 & wait; }}",
        share.display()
    );
    let r = run("/bin/sh", &["-c", &script]).vram(24).ram(32);
    let job = r.job();
    let outcome = r.start_in(&job).wait();
    assert_eq!(outcome.stdout.lines().filter(|l| *l == "done").count(), 3);
    let joined = job
        .ledger
        .cuda_processes
        .load(std::sync::atomic::Ordering::SeqCst);
    assert_eq!(joined, 3, "the shell itself never uses CUDA");
    job.demand_sane_and_empty();
}

/// A daemon that lives on when its launcher and the job's directory are gone keeps its memory and its limits.
#[test]
fn a_daemon_outlives_the_launcher() {
    let scratch = tempfile::tempdir().unwrap();
    let flag = scratch.path();
    let r = run("exec", &["daemon", flag.to_str().unwrap()])
        .vram(16)
        .ram(64);
    let job = r.job();
    let outcome = r.start_in(&job).wait();
    assert_eq!(outcome.stdout, "parent ends\n");
    let there = |name: &'static str| move || flag.join(name).exists();
    within(Duration::from_secs(60), there("up"), true);
    job.hang_up();
    drop(job);
    std::fs::write(flag.join("go"), "").unwrap();
    within(Duration::from_secs(60), there("pieces"), true);
    within(
        Duration::from_secs(20),
        || {
            std::fs::read_to_string(flag.join("pieces"))
                .unwrap_or_default()
                .is_empty()
        },
        false,
    );
    let pieces: u64 = std::fs::read_to_string(flag.join("pieces"))
        .unwrap()
        .parse()
        .unwrap();
    // 80 MiB, of which it holds 12 itself.
    assert!(
        (15..=17).contains(&pieces),
        "{pieces} pieces of 4 MiB in 68 MiB"
    );
}

/// Python with `ctypes`, as one of its ways of starting processes has it.
const PYTHON: &str = r#"
import ctypes, multiprocessing, os, sys

OOM = 2
MIB = 1 << 20

def ok(code):
    assert code == 0, code

class Gpu:
    def __init__(self):
        self.cuda = ctypes.CDLL("libcuda.so.1")
        ok(self.cuda.cuInit(0))
        context = ctypes.c_void_p()
        ok(self.cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0))
        ok(self.cuda.cuCtxSetCurrent(context))

    def alloc(self, n):
        p = ctypes.c_uint64()
        code = self.cuda.cuMemAlloc_v2(ctypes.byref(p), ctypes.c_size_t(n))
        assert code in (0, OOM), code
        return p if code == 0 else None

    def free(self, p):
        ok(self.cuda.cuMemFree_v2(p))

    def all(self):
        held = []
        while True:
            p = self.alloc(4 * MIB)
            if p is None:
                break
            data = bytes([len(held) % 251]) * (4 * MIB)
            ok(self.cuda.cuMemcpyHtoD_v2(p, data, ctypes.c_size_t(len(data))))
            held.append((p, data))
        for p, data in held:
            back = ctypes.create_string_buffer(4 * MIB)
            ok(self.cuda.cuMemcpyDtoH_v2(back, p, ctypes.c_size_t(4 * MIB)))
            assert back.raw == data, "bytes changed"
            self.free(p)
        return len(held)

def child(queue):
    queue.put((os.getpid(), Gpu().all()))

def one_after_another(context):
    counts = []
    for _ in range(2):
        queue = context.Queue()
        process = context.Process(target=child, args=(queue,))
        process.start()
        pid, count = queue.get(timeout=60)
        process.join()
        assert process.exitcode == 0, process.exitcode
        counts.append(count)
    return counts

if __name__ == "__main__":
    way = sys.argv[1]
    context = multiprocessing.get_context(way)
    if way == "fork":
        # Forked before CUDA comes up: every child is a process of its own.
        print("children", one_after_another(context))
        gpu = Gpu()
        print("own", gpu.all())
        # Forked after: CUDA does not work there, and nothing of the parent is hurt.
        p = gpu.alloc(8 * MIB)
        pid = os.fork()
        if pid == 0:
            os._exit(0 if gpu.cuda.cuCtxSynchronize() == 3 else 1)
        print("forked", os.waitpid(pid, 0)[1])
        gpu.free(p)
    else:
        gpu = Gpu()
        p = gpu.alloc(8 * MIB)
        # What the parent holds is missing for its children.
        print("children", one_after_another(context))
        gpu.free(p)
        print("own", gpu.all())
"#;

/// The interpreter itself: a wrapper of the user's would need the user's environment.
fn python() -> Option<String> {
    let output = std::process::Command::new("python3")
        .args(["-c", "import sys, ctypes; print(sys.executable)"])
        .output()
        .ok()?;
    let path = String::from_utf8(output.stdout).ok()?.trim().to_string();
    Path::new(&path).is_file().then_some(path)
}

#[test]
fn python_multiprocessing() {
    let Some(python) = python() else {
        println!("there is no python3 here");
        return;
    };
    let scratch = tempfile::tempdir().unwrap();
    let script = scratch.path().join("processes.py");
    std::fs::write(&script, PYTHON).unwrap();
    for way in ["fork", "spawn", "forkserver"] {
        let r: Run = run(&python, &[script.to_str().unwrap(), way])
            .vram(16)
            .ram(64);
        let job = r.job();
        let outcome = r.start_in(&job).wait();
        let line = |word: &str| {
            let found = outcome.stdout.lines().find_map(|l| l.strip_prefix(word));
            found
                .unwrap_or_else(|| panic!("{way}: no {word}: {}", outcome.stdout))
                .to_string()
        };
        // 4 MiB pieces in 16 + 64 MiB; two fewer while the parent holds 8 MiB.
        let whole = line("own ");
        assert!(["19", "20"].contains(&whole.as_str()), "{way}: {whole}");
        let whole: u64 = whole.parse().unwrap();
        let children = if way == "fork" { whole } else { whole - 2 };
        assert_eq!(
            line("children "),
            format!("[{children}, {children}]"),
            "{way}"
        );
        if way == "fork" {
            assert_eq!(line("forked "), "0");
        }
        job.demand_sane_and_empty();
    }
}
