//! The shim's own kernels, loaded into contexts of the simulated driver by the shim itself, which is linked in here.
//!
//! Each test runs in a process of its own: the shim lives once in a process, and what a context fails with is sticky.
#![allow(missing_docs)]

use std::ffi::{CString, c_void};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use greenboost_abi::*;
use greenboost_shim::driver::{self, kernel};
use greenboost_shim::hooks;
use greenboost_shim::process::{self, Job};
use greenboost_shim::tier::device::{self, Device};
use greenboost_shim::tier::map::Handle;
use greenboost_shim::tier::staging::kernels::input::Area;
use greenboost_shim::tier::staging::kernels::{self, Kernels, hash};
use greenboost_wire::ledger::{
    Mapped, Part, Placement, Report, Settings, Staging, Tier, VramLimit,
};
use greenboost_wire::{JOB_ENV, LEDGER_FILE};

const MIB: u64 = 1 << 20;
const ALL: u32 = u32::MAX;
/// The variable that tells a process which test it is to run.
const CHILD: &str = "KERNELS_TEST_CHILD";

/// The simulated driver, as cargo built it beside this test.
fn fake_cuda() -> PathBuf {
    let own = std::env::current_exe().unwrap();
    let deps = own.parent().unwrap();
    let places = [
        deps.join("libfake_cuda.so"),
        deps.with_file_name("libfake_cuda.so"),
    ];
    let newest = |p: &PathBuf| p.metadata().and_then(|m| m.modified()).ok();
    places
        .into_iter()
        .filter(|p| p.is_file())
        .max_by_key(newest)
        .expect("libfake_cuda.so was not built")
}

/// Runs `body` in a process that is a job of its own with this VRAM limit in MiB. What the driver had to complain of is
/// compared with `records`, by a part of each.
fn test(name: &str, vram: u64, env: &[(&str, &str)], records: &[&str], body: impl FnOnce(&Live)) {
    if std::env::var(CHILD).as_deref() == Ok(name) {
        body(&Live::start());
        println!("{name} has run");
        return;
    }
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR"))
        .join(format!("kernels-{}-{name}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    std::os::unix::fs::symlink(fake_cuda(), dir.join("libcuda.so.1")).unwrap();
    let settings = Settings {
        vram_limit: VramLimit::Bytes(vram * MIB),
        ram_limit: 256 * MIB,
        spill: true,
        report: Report::Extended,
        placement: Placement::Auto,
        staging: Staging::Off,
    };
    Mapped::create(&dir.join(LEDGER_FILE), settings).unwrap();
    let report = dir.join("report");
    let output = Command::new(std::env::current_exe().unwrap())
        .args([name, "--exact", "--nocapture", "--test-threads=1"])
        .env(CHILD, name)
        .env(JOB_ENV, &dir)
        .env("FAKE_CUDA_REPORT", &report)
        .env("FAKE_CUDA_VRAM", "1G")
        .envs(env.iter().copied())
        .output()
        .unwrap();
    let told = std::fs::read_to_string(&report).unwrap_or_default();
    std::fs::remove_dir_all(&dir).unwrap();
    let text = [output.stdout, output.stderr].map(|b| String::from_utf8_lossy(&b).into_owned());
    assert!(
        output.status.success(),
        "{}\n{text:?}\n{told}",
        output.status
    );
    assert!(
        text[0].contains("has run"),
        "{name} is not the name of the test"
    );
    let told: Vec<&str> = told.lines().collect();
    let same = told.len() == records.len() && told.iter().zip(records).all(|(t, r)| t.contains(r));
    assert!(same, "{told:#?}, expected {records:#?}");
}

/// A process with the shim alive and the primary context current.
struct Live {
    cuda: *mut c_void,
    job: &'static Job,
    device: &'static Device,
    context: Handle,
}

/// Calls a function of the driver itself; the arguments must have exactly the C types.
macro_rules! cu {
    (@any $arg:expr) => { _ };
    ($cuda:expr, $name:ident($($arg:expr),*)) => {{
        let address = symbol($cuda, stringify!($name));
        // SAFETY: the test gives the arguments that the function is declared with.
        unsafe {
            let call: unsafe extern "C" fn($(cu!(@any $arg)),*) -> i32 = std::mem::transmute(address);
            call($($arg),*)
        }
    }};
}

fn symbol(cuda: *mut c_void, name: &str) -> *mut c_void {
    let name = CString::new(name).unwrap();
    // SAFETY: a live handle and a terminated name.
    let address = unsafe { libc::dlsym(cuda, name.as_ptr()) };
    assert!(!address.is_null(), "{name:?}");
    address
}

/// Retains the primary context through the shim, and makes it current.
fn retain(cuda: *mut c_void) -> Handle {
    let mut context: CUcontext = std::ptr::null_mut();
    // SAFETY: writes one handle.
    let code = unsafe { hooks::cuDevicePrimaryCtxRetain(&mut context, 0) };
    assert_eq!(code, 0);
    assert_eq!(cu!(cuda, cuCtxSetCurrent(context)), 0);
    context.into()
}

/// What the ledger says: bytes of VRAM, of it code, and bytes of the host.
type Used = (u64, u64, u64);

impl Live {
    fn start() -> Live {
        let path = std::env::var(JOB_ENV).unwrap() + "/libcuda.so.1";
        let path = CString::new(path).unwrap();
        // SAFETY: the object has no constructors.
        let cuda = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW) };
        assert!(!cuda.is_null());
        let panics = std::panic::take_hook();
        // SAFETY: no preconditions.
        assert_eq!(unsafe { hooks::cuInit(0) }, 0);
        // The shim's own are silent.
        std::panic::set_hook(panics);
        let context = retain(cuda);
        let job = process::job().expect("the shim lives");
        let device = device::get(job, 0).unwrap().unwrap();
        Live {
            cuda,
            job,
            device,
            context,
        }
    }

    fn used(&self) -> Used {
        let ledger = self.job.place.ledger();
        (
            ledger.used(Tier::Vram, 0),
            ledger.part(Part::Code, 0),
            ledger.used_host(),
        )
    }

    fn kernels(&self) -> driver::Result<Arc<Kernels>> {
        kernels::get(self.job, self.device, self.context)
    }

    fn stream(&self) -> Handle {
        let mut stream = 0usize;
        assert_eq!(cu!(self.cuda, cuStreamCreate(&mut stream, 1u32)), 0);
        Handle(stream)
    }

    /// Memory of the driver's own with these words.
    fn put(&self, words: &[u64]) -> u64 {
        let p = driver::mem_alloc(8 * words.len()).unwrap();
        let from = words.as_ptr();
        assert_eq!(cu!(self.cuda, cuMemcpyHtoD_v2(p, from, 8 * words.len())), 0);
        p
    }

    /// Holds a stream up until the sender is dropped.
    fn hold(&self, stream: Handle) -> std::sync::mpsc::Sender<()> {
        extern "C" fn wait(receiver: *mut c_void) {
            // SAFETY: the receiver given below, once.
            let receiver =
                unsafe { Box::from_raw(receiver.cast::<std::sync::mpsc::Receiver<()>>()) };
            let _ = receiver.recv();
        }
        let (sender, receiver) = std::sync::mpsc::channel();
        let receiver: *mut c_void = Box::into_raw(Box::new(receiver)).cast();
        let call: extern "C" fn(*mut c_void) = wait;
        assert_eq!(
            cu!(self.cuda, cuLaunchHostFunc(stream.0, call, receiver)),
            0
        );
        sender
    }

    fn wait(&self, stream: Handle) {
        assert_eq!(cu!(self.cuda, cuStreamSynchronize(stream.0)), 0);
    }
}

fn area(address: u64, bytes: u64) -> Area {
    Area { address, bytes }
}

/// Whole words of a pattern, in which the last one is an address.
fn words(address: u64) -> Vec<u64> {
    (0..1000u64)
        .map(|i| i * i)
        .chain([address | 7 << 48])
        .collect()
}

const WANTED: [Range<u64>; 2] = [
    0x2b67_0000_0000..0x2b67_1000_0000,
    0x2b67_2000_0000..0x2b67_3000_0000,
];

#[test]
fn results_come_when_the_stream_does() {
    test("results_come_when_the_stream_does", 64, &[], &[], |live| {
        let before = live.used();
        let kernels = live.kernels().unwrap();
        assert!(Arc::ptr_eq(&kernels, &live.kernels().unwrap()));
        let after = live.used();
        // A module without variables takes nothing in the simulation.
        assert_eq!(after.0 - before.0, MIB);
        assert_eq!(after.1 - before.1, MIB);
        assert_eq!(after.2 - before.2, 2 * MIB);

        let stream = live.stream();
        let words = words(WANTED[1].end - 1);
        let bytes = 8 * words.len() as u64;
        let p = live.put(&words);
        // SAFETY: the words, which nobody writes; 8 bytes more or less make no multiple of 16.
        let (held, scan, first, second) = unsafe {
            let held = live.hold(stream);
            let scan = kernels
                .scan(stream, &[area(p, bytes)], &WANTED, ALL)
                .unwrap();
            let first = kernels.hash(stream, p, bytes - 8, ALL).unwrap();
            let second = kernels.hash(stream, p + 16, 32, 1).unwrap();
            (held, scan, first, second)
        };
        // SAFETY: as above; refused.
        let other = unsafe { kernels.scan(stream, &[], &WANTED, ALL) };
        assert_eq!(other.err(), Some(CUDA_ERROR_NOT_READY));
        assert_eq!(
            (scan.flags(), first.value(), second.value()),
            (None, None, None)
        );
        drop(held);
        live.wait(stream);
        assert_eq!(scan.flags(), Some(vec![false, true]));
        assert_eq!(
            first.value(),
            Some(hash::hash(words[..1000].iter().copied()))
        );
        assert_eq!(
            second.value(),
            Some(hash::hash(words[2..6].iter().copied()))
        );
        drop((scan, first, second));
        // All of it is used again.
        for _ in 0..2 * kernels::MOST_HASHES / 100 {
            // SAFETY: as above.
            let many: Vec<_> = (0..200)
                .map(|_| unsafe { kernels.hash(stream, p, 16, 1).unwrap() })
                .collect();
            live.wait(stream);
            let expected = Some(hash::hash([0, 1]));
            assert!(many.iter().all(|h| h.value() == expected));
        }
        for round in 0..3 {
            // SAFETY: as above.
            let scan =
                unsafe { kernels.scan(stream, &[area(p, bytes - 8 * round)], &WANTED, 1) }.unwrap();
            live.wait(stream);
            assert_eq!(scan.flags(), Some(vec![false, round == 0]));
        }
        // SAFETY: as above.
        unsafe {
            let nothing = kernels.scan(stream, &[], &WANTED, 1).unwrap();
            live.wait(stream);
            assert_eq!(nothing.flags(), Some(vec![false; 2]));
            drop(nothing);
            assert_eq!(
                kernels.scan(stream, &[area(p, 8)], &[], 1).unwrap().flags(),
                Some(vec![])
            );
            assert_eq!(
                kernels.hash(stream, p + 8, 16, 1).err(),
                Some(CUDA_ERROR_INVALID_VALUE)
            );
            assert_eq!(
                kernels.hash(stream, p, 24, 1).err(),
                Some(CUDA_ERROR_INVALID_VALUE)
            );
            assert_eq!(
                kernels.hash(stream, p, 0, 1).err(),
                Some(CUDA_ERROR_INVALID_VALUE)
            );
            let wrong = [WANTED[1].clone(), WANTED[0].clone()];
            assert_eq!(
                kernels.scan(stream, &[], &wrong, 1).err(),
                Some(CUDA_ERROR_INVALID_VALUE)
            );
        }
        assert_eq!(live.used(), after);
    });
}

#[test]
fn as_much_as_fits_is_looked_for() {
    test("as_much_as_fits_is_looked_for", 64, &[], &[], |live| {
        let kernels = live.kernels().unwrap();
        let stream = live.stream();
        let table: Vec<Range<u64>> = (0..kernels::MOST_RANGES as u64)
            .map(|i| (1 << 40) + (i << 12)..(1 << 40) + (i << 12) + 9)
            .collect();
        let p = live.put(&[
            table[0].start,
            table[table.len() - 1].end - 1,
            table[77].end,
        ]);
        let mut areas = vec![area(p + 16, 8); 8191];
        areas[0] = area(p, 16);
        // SAFETY: the words, which nobody writes.
        unsafe {
            let scan = kernels.scan(stream, &areas, &table, ALL).unwrap();
            live.wait(stream);
            let flags = scan.flags().unwrap();
            let found: Vec<usize> = (0..flags.len()).filter(|i| flags[*i]).collect();
            assert_eq!(found, [0, table.len() - 1]);
            drop(scan);
            areas.push(areas[1]);
            assert_eq!(
                kernels.scan(stream, &areas, &table, ALL).err(),
                Some(CUDA_ERROR_INVALID_VALUE)
            );
            let more = (1 << 50)..(1 << 50) + 1;
            let table: Vec<_> = table.into_iter().chain([more]).collect();
            assert_eq!(
                kernels.scan(stream, &[], &table, ALL).err(),
                Some(CUDA_ERROR_INVALID_VALUE)
            );
        }
    });
}

#[test]
fn hashes_run_out() {
    test("hashes_run_out", 64, &[], &[], |live| {
        let kernels = live.kernels().unwrap();
        let stream = live.stream();
        let p = live.put(&[1, 2]);
        let held = live.hold(stream);
        // SAFETY: the words, which nobody writes.
        let hash = || unsafe { kernels.hash(stream, p, 16, 1) };
        let mut all: Vec<_> = (0..kernels::MOST_HASHES).map(|_| hash().unwrap()).collect();
        assert_eq!(hash().err(), Some(CUDA_ERROR_NOT_READY));
        // What is dropped before it is there may still be written to.
        all.truncate(10);
        assert_eq!(hash().err(), Some(CUDA_ERROR_NOT_READY));
        drop(held);
        live.wait(stream);
        assert!(all.iter().all(|h| h.value() == Some(hash::hash([1, 2]))));
        all.truncate(9);
        assert!(hash().is_ok());
        assert_eq!(hash().err(), Some(CUDA_ERROR_NOT_READY));
    });
}

#[test]
fn a_context_takes_them_along() {
    test("a_context_takes_them_along", 64, &[], &[], |live| {
        let before = live.used();
        let kernels = live.kernels().unwrap();
        let stream = live.stream();
        let p = live.put(&[1, 2]);
        // SAFETY: the words, which nobody writes.
        let hash = unsafe { kernels.hash(stream, p, 16, 1).unwrap() };
        live.wait(stream);
        // SAFETY: nothing of it is in use.
        assert_eq!(unsafe { hooks::cuDevicePrimaryCtxReset_v2(0) }, 0);
        // The memory of the host is there while somebody may read it.
        assert_eq!(hash.value(), Some(hash::hash([1, 2])));
        assert_eq!(live.used(), (before.0, before.1, before.2 + 2 * MIB));
        // SAFETY: refused.
        let late = unsafe { kernels.hash(stream, p, 16, 1) };
        assert_eq!(late.err(), Some(CUDA_ERROR_CONTEXT_IS_DESTROYED));
        drop(hash);
        drop(kernels);
        assert_eq!(live.used(), before);
        assert_eq!(retain(live.cuda), live.context);
        let kernels = live.kernels().unwrap();
        let (stream, p) = (live.stream(), live.put(&[3, 4]));
        // SAFETY: the words, which nobody writes.
        let hash = unsafe { kernels.hash(stream, p, 16, 1).unwrap() };
        live.wait(stream);
        assert_eq!(hash.value(), Some(hash::hash([3, 4])));
    });
}

#[test]
fn every_context_has_its_own() {
    test("every_context_has_its_own", 64, &[], &[], |live| {
        let first = live.kernels().unwrap();
        let before = live.used();
        let mut context: CUcontext = std::ptr::null_mut();
        // SAFETY: writes one handle; the context is current then.
        assert_eq!(unsafe { hooks::cuCtxCreate_v2(&mut context, 0, 0) }, 0);
        let (stream, p) = (live.stream(), live.put(&[5, 6]));
        let (own, other) = (Handle::from(context), live.context);
        let second = kernels::get(live.job, live.device, own).unwrap();
        assert!(!Arc::ptr_eq(&first, &second));
        assert_eq!(live.used().0 - before.0, MIB);
        // From a thread in whatever context.
        // SAFETY: a context of the test's.
        let hash = unsafe {
            driver::with_context(other.0 as CUcontext, || second.hash(stream, p, 16, ALL))
        };
        let hash = hash.unwrap().unwrap();
        live.wait(stream);
        assert_eq!(hash.value(), Some(hash::hash([5, 6])));
        drop((hash, second));
        // SAFETY: nothing of it is in use.
        assert_eq!(unsafe { hooks::cuCtxDestroy_v2(context) }, 0);
        assert_eq!(live.used(), before);
        assert_eq!(
            kernels::get(live.job, live.device, own).err(),
            Some(CUDA_ERROR_CONTEXT_IS_DESTROYED)
        );
        assert!(Arc::ptr_eq(&first, &live.kernels().unwrap()));
    });
}

#[test]
fn nothing_is_loaded_while_a_capture_is_open() {
    let name = "nothing_is_loaded_while_a_capture_is_open";
    test(name, 64, &[], &[], |live| {
        let (before, capturing) = (live.used(), live.stream());
        // In global mode, in which unsafe calls break the capture.
        // SAFETY: the stream just made.
        let begin = || unsafe { hooks::cuStreamBeginCapture_v2(capturing.0 as CUstream, 0) };
        assert_eq!(begin(), 0);
        assert_eq!(live.kernels().err(), Some(CUDA_ERROR_NOT_READY));
        let mut graph: CUgraph = std::ptr::null_mut();
        // SAFETY: as above; writes one handle.
        let end = |graph: &mut CUgraph| unsafe {
            hooks::cuStreamEndCapture(capturing.0 as CUstream, graph)
        };
        assert_eq!(end(&mut graph), 0);
        assert_eq!(live.used(), before);
        // What is loaded works beside a capture.
        let kernels = live.kernels().unwrap();
        let (stream, words) = (live.stream(), words(WANTED[0].start));
        let p = live.put(&words);
        assert_eq!(begin(), 0);
        // SAFETY: the words, which nobody writes.
        unsafe {
            let hash = kernels.hash(stream, p, 16, ALL).unwrap();
            let scan = kernels
                .scan(stream, &[area(p, 8 * words.len() as u64)], &WANTED, ALL)
                .unwrap();
            let until = Instant::now() + Duration::from_secs(10);
            while scan.flags().is_none() || hash.value().is_none() {
                assert!(Instant::now() < until);
                std::thread::sleep(Duration::from_millis(1));
            }
            assert_eq!(scan.flags(), Some(vec![true, false]));
        }
        assert_eq!(end(&mut graph), 0);
    });
}

#[test]
fn no_budget_no_kernels() {
    test("no_budget_no_kernels", 2, &[], &[], |live| {
        let taken = driver::mem_alloc(MIB as usize).unwrap();
        live.job.place.reserve(Tier::Vram, 0, 2 * MIB - 1).unwrap();
        let before = live.used();
        assert_eq!(live.kernels().err(), Some(CUDA_ERROR_OUT_OF_MEMORY));
        assert_eq!(live.used(), before);
        live.job.place.release(Tier::Vram, 0, 2 * MIB - 1);
        assert!(live.kernels().is_ok());
        // SAFETY: our own.
        unsafe { kernel::mem_free(taken) }.unwrap();
    });
}

#[test]
fn what_the_driver_refuses_is_undone() {
    for (i, fails) in [
        "cuModuleLoadData:1:218",
        "cuModuleGetFunction:2:500",
        "cuFuncLoad:1:999",
        "cuMemAlloc:1:2",
        "cuMemHostRegister:1:304",
    ]
    .into_iter()
    .enumerate()
    {
        let env = [("FAKE_CUDA_FAIL", fails)];
        if std::env::var(CHILD).is_ok() && std::env::var(env[0].0).as_deref() != Ok(fails) {
            continue;
        }
        test("what_the_driver_refuses_is_undone", 64, &env, &[], |live| {
            let before = live.used();
            let expected = [218, 500, 999, 2, 2][i];
            assert_eq!(live.kernels().err(), Some(expected), "{fails}");
            assert_eq!(live.used(), before);
            assert!(live.kernels().is_ok());
        });
    }
}

#[test]
fn what_was_not_begun_leaves_no_trace() {
    let name = "what_was_not_begun_leaves_no_trace";
    let fails = "cuMemcpyHtoDAsync:1:2,cuMemsetD8Async:2:2,cuLaunchKernel:3:701";
    test(name, 64, &[("FAKE_CUDA_FAIL", fails)], &[], |live| {
        let kernels = live.kernels().unwrap();
        let (stream, p) = (live.stream(), live.put(&[1, 2]));
        // SAFETY: the words, which nobody writes.
        let scan = || unsafe { kernels.scan(stream, &[area(p, 16)], &WANTED, 1) };
        // SAFETY: as above.
        let hash = || unsafe { kernels.hash(stream, p, 16, 1) };
        let expected = Some(hash::hash([1, 2]));
        // The copy of its input, then nothing, is refused.
        assert_eq!(scan().err(), Some(2));
        let first = scan().unwrap();
        live.wait(stream);
        assert_eq!(first.flags(), Some(vec![false, false]));
        drop(first);
        // Its memset, then nothing, then its launch is refused.
        assert_eq!(hash().err(), Some(2));
        let second = hash().unwrap();
        live.wait(stream);
        assert_eq!(second.value(), expected);
        assert_eq!(hash().err(), Some(701));
        let third = hash().unwrap();
        live.wait(stream);
        assert_eq!(third.value(), expected);
        drop((second, third));
        // One place of all is lost, to the launch that was refused.
        let all: Vec<_> = std::iter::from_fn(|| hash().ok()).collect();
        assert_eq!(all.len(), kernels::MOST_HASHES - 1);
    });
}

#[test]
fn a_host_callback_is_no_place() {
    static LIVE: std::sync::OnceLock<(CUresult, bool)> = std::sync::OnceLock::new();
    extern "C" fn ask(live: *mut c_void) {
        // SAFETY: what the test gave, which lives until the stream is done.
        let live = unsafe { &*live.cast::<Live>() };
        let before = live.used();
        let code = live.kernels().err().unwrap_or(0);
        let _ = LIVE.set((code, live.used() == before));
    }
    test("a_host_callback_is_no_place", 64, &[], &[], |live| {
        let stream = live.stream();
        let call: extern "C" fn(*mut c_void) = ask;
        let user = std::ptr::from_ref(live).cast_mut().cast::<c_void>();
        assert_eq!(cu!(live.cuda, cuLaunchHostFunc(stream.0, call, user)), 0);
        live.wait(stream);
        assert_eq!(LIVE.get(), Some(&(CUDA_ERROR_NOT_PERMITTED, true)));
    });
}

#[test]
fn a_broken_context_only_says_so() {
    let records = ["illegal address: read of"];
    test("a_broken_context_only_says_so", 64, &[], &records, |live| {
        let kernels = live.kernels().unwrap();
        let stream = live.stream();
        // SAFETY: nothing is there: that is what the test is about.
        unsafe {
            let hash = kernels.hash(stream, 0x2b67_0000_0000, 16, 1).unwrap();
            assert_eq!(driver::raw::cuStreamSynchronize(stream.0 as CUstream), 700);
            assert_eq!(hash.value(), None);
            assert_eq!(
                kernels.hash(stream, 0x2b67_0000_0000, 16, 1).err(),
                Some(700)
            );
            assert_eq!(kernels.scan(stream, &[], &WANTED, 1).err(), Some(700));
            drop(hash);
        }
    });
}

#[test]
fn threads_load_them_once() {
    test("threads_load_them_once", 64, &[], &[], |live| {
        let before = live.used();
        let (job, device, context) = (live.job, live.device, live.context);
        let all: Vec<_> = (0..8)
            .map(|_| std::thread::spawn(move || kernels::get(job, device, context).unwrap()))
            .collect();
        let all: Vec<_> = all.into_iter().map(|t| t.join().unwrap()).collect();
        assert!(all.iter().all(|k| Arc::ptr_eq(k, &all[0])));
        let after = live.used();
        assert_eq!((after.0 - before.0, after.2 - before.2), (MIB, 2 * MIB));
    });
}
