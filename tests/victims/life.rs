//! Beginnings and ends: exits, forks, kills, closed descriptors.

use std::fs::File;
use std::io::{BufRead, Read, Seek, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixDatagram;
use std::process::Command;
use std::sync::OnceLock;
use victim::gpu::Gpu;
use victim::*;

fn main() {
    match argument(1).as_str() {
        "exit-frees" => exit_frees(),
        "leave" => leave(),
        "fork" => fork_live(),
        "fork-before" => fork_before(),
        "fork-exec" => fork_exec(),
        "hold" => hold(),
        "descriptors" => descriptors(),
        "threads" => threads(),
        "fresh" => Gpu::open().works(1, 12 << 20),
        other => panic!("{other}?"),
    }
}

static GPU: OnceLock<Gpu> = OnceLock::new();
static LEFT: OnceLock<[CUdeviceptr; 4]> = OnceLock::new();

fn say(line: &str) {
    let mut out = std::io::stdout();
    writeln!(out, "{line}")
        .and_then(|()| out.flush())
        .expect("stdout");
}

extern "C" fn at_exit_first() {
    let (Some(gpu), Some(left)) = (GPU.get(), LEFT.get()) else {
        return;
    };
    say(&format!(
        "registered before: free {}",
        gpu.cuda.cuMemFree_v2(left[0])
    ));
    say(&format!(
        "registered before: free {}",
        gpu.cuda.cuMemFree_v2(left[1])
    ));
    say(&format!("again: free {}", gpu.cuda.cuMemFree_v2(left[2])));
}

extern "C" fn at_exit_last() {
    let (Some(gpu), Some(left)) = (GPU.get(), LEFT.get()) else {
        return;
    };
    say(&format!(
        "registered after: free {}",
        gpu.cuda.cuMemFree_v2(left[2])
    ));
    say(&format!(
        "registered after: free {}",
        gpu.cuda.cuMemFree_v2(left[3])
    ));
    let mut p = 0;
    say(&format!(
        "alloc {}",
        gpu.cuda.cuMemAlloc_v2(&mut p, 12 << 20)
    ));
    say(&format!("free {}", gpu.cuda.cuMemFree_v2(p)));
}

struct FreesLate(CUdeviceptr);

impl Drop for FreesLate {
    fn drop(&mut self) {
        if let Some(gpu) = GPU.get() {
            let result = gpu.cuda.cuMemFree_v2(self.0);
            if self.0 != 0 {
                say(&format!("thread-local destructor: free {result}"));
            }
        }
    }
}

thread_local! {
    static LATE: std::cell::RefCell<FreesLate> = const { std::cell::RefCell::new(FreesLate(0)) };
}

/// Frees in exit handlers registered before and after CUDA came up, and in a thread-local's destructor.
fn exit_frees() {
    // SAFETY: the handler stays loaded.
    unsafe { sys::atexit(at_exit_first) };
    let gpu = GPU.get_or_init(Gpu::open);
    let n = 14 << 20;
    LEFT.get_or_init(|| [gpu.alloc(n), gpu.alloc(90), gpu.alloc(n), gpu.alloc(90)]);
    // SAFETY: as above.
    unsafe { sys::atexit(at_exit_last) };
    std::thread::spawn(move || {
        gpu.enter();
        LATE.with(|late| late.borrow_mut().0 = gpu.alloc(n));
    })
    .join()
    .expect("a thread");
    LATE.with(|late| late.borrow_mut().0 = gpu.alloc(n));
    say("main ends");
}

/// Ends with memory held and work queued.
fn leave() {
    let gpu = Gpu::open();
    let p = gpu.alloc(30 << 20);
    gpu.alloc(100);
    let stream = gpu.stream(0);
    ok(gpu.cuda.cuMemsetD8Async(p, 1, 30 << 20, stream));
    if argument(2) == "abruptly" {
        // SAFETY: ends the process.
        unsafe { sys::_exit(7) };
    }
    std::process::exit(7);
}

fn wait_for(child: c_int) -> c_int {
    let mut status = 0;
    // SAFETY: our own child.
    let pid = unsafe { sys::waitpid(child, &mut status, 0) };
    assert_eq!(pid, child);
    status
}

/// A fork while CUDA is live: nothing works in the child, everything goes on in the parent.
fn fork_live() {
    let gpu = Gpu::open();
    let cuda = &gpu.cuda;
    let n = 14 << 20;
    let (p, small) = (gpu.alloc(n), gpu.alloc(100));
    gpu.write(p, &pattern(1, n));
    for round in 0..3 {
        // SAFETY: no other thread of this program's runs; the child only calls what is printed and ends.
        let child = unsafe { sys::fork() };
        if child == 0 {
            // SAFETY: the child of a fork; a hang must not hang the suite.
            unsafe { sys::alarm(20) };
            let mut q = 0;
            say(&format!("child: alloc {}", cuda.cuMemAlloc_v2(&mut q, n)));
            say(&format!("child: small {}", cuda.cuMemAlloc_v2(&mut q, 60)));
            say(&format!("child: free {}", cuda.cuMemFree_v2(p)));
            say(&format!("child: free {}", cuda.cuMemFree_v2(small)));
            say(&format!("child: init {}", cuda.cuInit(0)));
            say(&format!("child: sync {}", cuda.cuCtxSynchronize()));
            if round == 0 {
                // SAFETY: ends the child.
                unsafe { sys::_exit(3) };
            }
            // With the exit handlers that the parent registered.
            std::process::exit(3);
        }
        println!("child ended: {:#x}", wait_for(child));
        assert!(gpu.read(p, n) == pattern(1, n), "a child hurt its parent");
        gpu.works(4, 10 << 20);
    }
    gpu.free(p);
    gpu.free(small);
    println!("parent is well");
}

/// A fork before CUDA comes up: both sides use it.
fn fork_before() {
    let cuda = Driver::reach();
    // SAFETY: as above.
    let child = unsafe { sys::fork() };
    ok(cuda.cuInit(0));
    let gpu = Gpu::on(cuda, 0);
    for round in 0..4 {
        gpu.works(round, 12 << 20);
    }
    if child == 0 {
        std::process::exit(3);
    }
    println!("child ended: {:#x}", wait_for(child));
}

/// A fork with exec: the child is a process of its own.
fn fork_exec() {
    let gpu = Gpu::open();
    let p = gpu.alloc(14 << 20);
    gpu.write(p, &pattern(1, 14 << 20));
    let status = Command::new(std::env::current_exe().expect("/proc"))
        .arg("fresh")
        .status()
        .expect("exec");
    println!("child: {:?}", status.code());
    assert!(gpu.read(p, 14 << 20) == pattern(1, 14 << 20));
    gpu.free(p);
}

/// Takes memory, says so, and waits to be told to end (or killed). Work is queued all the while.
fn hold() {
    let gpu = Gpu::open();
    let bytes: usize = argument(2).parse().expect("bytes");
    let p = gpu.alloc(bytes);
    let small = gpu.alloc(100);
    ok(gpu.cuda.cuMemsetD8_v2(p, 1, bytes));
    if std::env::args().nth(3).as_deref() == Some("fork") {
        // A child that comes and goes, its exit handlers included, is not the end of its parent.
        // SAFETY: the child only ends.
        let child = unsafe { sys::fork() };
        if child == 0 {
            std::process::exit(0);
        }
        wait_for(child);
    }
    say("holding");
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line).expect("stdin");
    gpu.free(p);
    gpu.free(small);
    say("freed");
}

/// Closes all that it did not open, and uses the numbers for files of its own.
fn descriptors() {
    let gpu = Gpu::open();
    // Enough to have been announced: a spill, an out-of-memory.
    let p = gpu.alloc(20 << 20);
    // The driver's own descriptors a program leaves alone: here, the simulated one's memory.
    let driver_owns = |fd: i32| {
        let link = std::fs::read_link(format!("/proc/self/fd/{fd}")).unwrap_or_default();
        link.to_string_lossy().contains("memfd:")
    };
    let mut closed = Vec::new();
    for fd in sys::descriptors() {
        if fd > 2 && !driver_owns(fd) {
            // SAFETY: the point of this program.
            unsafe { sys::close(fd) };
            closed.push(fd);
        }
    }
    println!("~ closed {}", closed.len());
    let dir = std::env::temp_dir().join(format!("gb-victim-{}", std::process::id()));
    std::fs::create_dir(&dir).expect("a directory");
    let mut files: Vec<File> = (0..20)
        .map(|i| {
            File::options()
                .read(true)
                .write(true)
                .create_new(true)
                .open(dir.join(i.to_string()))
                .expect("a file")
        })
        .collect();
    // And connected sockets of the program's own under the very numbers that were closed.
    let taken: Vec<i32> = files.iter().map(|f| f.as_raw_fd()).collect();
    let pairs: Vec<(UnixDatagram, UnixDatagram)> = (0..closed.len())
        .map(|_| UnixDatagram::pair().expect("sockets"))
        .collect();
    let mut placed = 0;
    for (&fd, (one, other)) in closed.iter().zip(&pairs) {
        other.set_nonblocking(true).expect("a socket");
        let free = std::fs::metadata(format!("/proc/self/fd/{fd}")).is_err();
        if free && !taken.contains(&fd) {
            // SAFETY: a number that nobody uses.
            assert_eq!(unsafe { sys::dup2(one.as_raw_fd(), fd) }, fd);
            placed += 1;
        }
    }
    println!("~ placed {placed}");
    for round in 0..5 {
        gpu.works(round, 25 << 20);
        assert!(gpu.try_alloc(1 << 45).is_err());
    }
    gpu.free(p);
    for (i, file) in files.iter_mut().enumerate() {
        let mut content = Vec::new();
        file.rewind().expect("a file");
        file.read_to_end(&mut content).expect("a file is readable");
        assert!(
            content.is_empty(),
            "{} bytes of another's in file {i}",
            content.len()
        );
    }
    for (_, other) in &pairs {
        assert!(
            other.recv(&mut [0; 512]).is_err(),
            "something came over the program's own socket"
        );
    }
    std::fs::remove_dir_all(&dir).expect("the directory");
    println!("{} files empty", files.len());
}

/// Many short-lived threads allocate and free, some freeing what others took.
fn threads() {
    let gpu = Gpu::open();
    let (sender, receiver) = std::sync::mpsc::channel::<(CUdeviceptr, u64, usize)>();
    std::thread::scope(|s| {
        s.spawn(|| {
            gpu.enter();
            for (p, seed, n) in receiver {
                assert!(
                    gpu.read(p, n) == pattern(seed, n),
                    "bytes changed between threads"
                );
                gpu.free(p);
            }
        });
        for t in 0..6u64 {
            let sender = sender.clone();
            let gpu = &gpu;
            s.spawn(move || {
                for round in 0..6 {
                    let sender = sender.clone();
                    std::thread::spawn({
                        let gpu = gpu as *const Gpu as usize;
                        move || {
                            // SAFETY: the scope outlives this thread, which is joined in it.
                            let gpu = unsafe { &*(gpu as *const Gpu) };
                            gpu.enter();
                            let seed = t * 100 + round;
                            let n = 100 + (seed as usize * 131_071) % (4 << 20);
                            let p = gpu.alloc(n);
                            gpu.write(p, &pattern(seed, n));
                            sender.send((p, seed, n)).expect("the receiver lives");
                        }
                    })
                    .join()
                    .expect("a thread");
                }
            });
        }
        drop(sender);
    });
    println!("done");
}
