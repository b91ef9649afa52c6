//! Processes that begin and end in the ways that processes do.

use std::io::{BufRead, Write};
use std::os::unix::process::CommandExt;
use std::process::Command;
use victim::gpu::Gpu;
use victim::*;

fn say(line: &str) {
    let mut out = std::io::stdout();
    writeln!(out, "{line}").and_then(|()| out.flush()).expect("stdout");
}

fn wait_to_be_told() {
    std::io::stdin().lock().read_line(&mut String::new()).expect("stdin");
}

fn main() {
    match argument(1).as_str() {
        // Uses CUDA, then becomes another program, which uses it too (or does not).
        "becomes" => {
            let gpu = Gpu::open();
            gpu.alloc(12 << 20);
            gpu.alloc(100);
            say("holding");
            wait_to_be_told();
            let next = argument(2);
            let own = std::env::current_exe().expect("/proc");
            let error = match next.as_str() {
                "cuda" => Command::new(own).args(["fresh"]).exec(),
                _ => Command::new("/bin/sleep").arg("100").exec(),
            };
            panic!("{error}");
        }
        "fresh" => {
            let gpu = Gpu::open();
            let p = gpu.alloc(12 << 20);
            say("fresh");
            wait_to_be_told();
            gpu.free(p);
        }
        // Ends with memory held and work queued, in a way of its own.
        "ends" => {
            let gpu = Gpu::open();
            let p = gpu.alloc(30 << 20);
            gpu.alloc(100);
            let mut host = std::ptr::null_mut();
            ok(gpu.cuda.cuMemHostAlloc(&mut host, 1 << 20, 0));
            let stream = gpu.stream(0);
            ok(gpu.cuda.cuMemsetD8Async(p, 1, 30 << 20, stream));
            // SAFETY: each ends the process.
            unsafe {
                match argument(2).as_str() {
                    "_exit" => sys::_exit(9),
                    "exit" => sys::exit(9),
                    "abort" => std::process::abort(),
                    "illegal" => {
                        sys::kill(std::process::id() as c_int, 4);
                    }
                    other => panic!("{other}?"),
                }
            }
        }
        // Allocates and frees without end, in several threads; a signal comes somewhere in the middle.
        "busy" => {
            let gpu: &'static Gpu = Box::leak(Box::new(Gpu::open()));
            for t in 0..3u64 {
                std::thread::spawn(move || {
                    gpu.enter();
                    let mut numbers = Numbers(t);
                    loop {
                        let n = 1 + numbers.below(9 << 20) as usize;
                        if let Ok(p) = gpu.try_alloc(n) {
                            gpu.free(p);
                        }
                        let mut host = std::ptr::null_mut();
                        if gpu.cuda.cuMemHostAlloc(&mut host, 4096, 0) == 0 {
                            ok(gpu.cuda.cuMemFreeHost(host));
                        }
                    }
                });
            }
            say("busy");
            wait_to_be_told();
        }
        // Leaves a child behind that lives on, in a session of its own, with CUDA live.
        "daemon" => {
            // SAFETY: no CUDA and no other thread yet.
            unsafe {
                if sys::fork() > 0 {
                    say("parent ends");
                    sys::_exit(0);
                }
                setsid();
            }
            let gpu = Gpu::open();
            let p = gpu.alloc(12 << 20);
            gpu.write(p, &pattern(3, 12 << 20));
            let flag = std::path::PathBuf::from(argument(2));
            std::fs::write(flag.join("up"), std::process::id().to_string()).expect("a file");
            while !flag.join("go").exists() {
                std::thread::sleep(std::time::Duration::from_millis(2));
            }
            // The launcher and all that it kept are gone.
            assert!(gpu.read(p, 12 << 20) == pattern(3, 12 << 20));
            for round in 0..20 {
                gpu.works(round, 20 << 20);
            }
            let mut all = Vec::new();
            while let Ok(p) = gpu.try_alloc(4 << 20) {
                all.push(p);
            }
            let pieces = all.len();
            all.into_iter().for_each(|p| gpu.free(p));
            gpu.free(p);
            std::fs::write(flag.join("pieces"), pieces.to_string()).expect("a file");
        }
        other => panic!("{other}?"),
    }
}

unsafe extern "C" {
    fn setsid() -> c_int;
}
