//! Builds the victims, runs them, and judges what is left behind.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Write;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use greenboost_wire::ledger::{Mapped, Placement, Report, Settings, Staging, Tier, VramLimit};
use greenboost_wire::record::{Kind, Record};
use greenboost_wire::{CONTROL_SOCKET, JOB_ENV, LEDGER_FILE, SHARE_SOCKET};
use nix::fcntl::{Flock, FlockArg};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{self, AddressFamily, Backlog, MsgFlags, SockFlag, SockType, UnixAddr};

pub const MIB: u64 = 1 << 20;

/// Nothing here runs longer unless it hangs.
const PATIENCE: Duration = Duration::from_secs(120);

/// The shim and the simulated driver, as the build script built them for embedding.
fn artefact(name: &str, built: Option<&str>) -> PathBuf {
    let path = std::env::var_os(name)
        .map(PathBuf::from)
        .or_else(|| built.map(PathBuf::from))
        .unwrap_or_else(|| panic!("{name} names no library"));
    assert!(path.is_file(), "{name}: no {}", path.display());
    path
}

pub fn shim() -> PathBuf {
    artefact("GREENBOOST_SHIM_PATH", option_env!("GREENBOOST_SHIM_FILE"))
}

fn fake_cuda() -> PathBuf {
    artefact(
        "GREENBOOST_FAKE_CUDA_PATH",
        option_env!("GREENBOOST_FAKE_CUDA_FILE"),
    )
}

/// The shim with `fault-injection`, built when it is first asked for, in a target directory of its own.
pub fn faulty_shim() -> PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    let path = BUILT.get_or_init(|| {
        let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("faulty-shim");
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        // What the outer cargo says to its tests is not meant for this build.
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("CARGO_PKG_") {
                cargo.env_remove(name);
            }
        }
        cargo
            .args(["build", "--quiet", "--locked", "--lib"])
            .args(["--package", "greenboost-shim"])
            .args(["--features", "greenboost-shim/fault-injection"])
            .arg("--manifest-path")
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml"))
            .arg("--target-dir")
            .arg(&target)
            .env_remove("CARGO_BUILD_TARGET")
            .env("CARGO_PROFILE_DEV_DEBUG", "0");
        let output = cargo.output().expect("cargo");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{cargo:?}\n{errors}");
        target.join("debug/libgreenboost_shim.so")
    });
    path.clone()
}

/// Where everything is that the victims need.
pub struct Bench {
    /// Victims and their libraries.
    pub victims: PathBuf,
    /// The simulated driver under the driver's names.
    pub driver: PathBuf,
}

/// Builds what is out of date, once.
pub fn bench() -> &'static Bench {
    static BENCH: OnceLock<Bench> = OnceLock::new();
    BENCH.get_or_init(|| {
        let top = Path::new(env!("CARGO_TARGET_TMPDIR")).join("shim-tests");
        fs::create_dir_all(&top).expect("target directory");
        let lock = File::create(top.join("lock")).expect("lock file");
        // Another test process may be at it too.
        let _lock = Flock::lock(lock, FlockArg::LockExclusive).expect("lock");
        let bench = Bench {
            victims: top.join("victims"),
            driver: top.join("driver"),
        };
        fs::create_dir_all(&bench.victims).expect("target directory");
        fs::create_dir_all(&bench.driver).expect("target directory");
        let real = fake_cuda();
        for name in ["libcuda.so.1", "libcuda.so", "libnvidia-ml.so.1"] {
            let link = bench.driver.join(name);
            if fs::read_link(&link).ok().as_ref() != Some(&real) {
                let _ = fs::remove_file(&link);
                std::os::unix::fs::symlink(&real, &link).expect("symlink");
            }
        }
        compile(&bench);
        bench
    })
}

/// Compiles `tests/victims` with plain rustc: three stages, because some libraries are linked by others.
fn compile(bench: &Bench) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let sources = root.join("tests/victims");
    let abi = root.join("shim/abi/src/lib.rs");
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());

    let mut files: Vec<PathBuf> = fs::read_dir(&sources)
        .expect("tests/victims")
        .chain(fs::read_dir(sources.join("common")).expect("tests/victims/common"))
        .chain(fs::read_dir(sources.join("random")).expect("tests/victims/random"))
        .map(|e| e.expect("directory entry").path())
        .filter(|p| p.extension().is_some_and(|e| e == "rs"))
        .collect();
    let abi_sources = fs::read_dir(root.join("shim/abi/src")).expect("shim/abi/src");
    files.extend(abi_sources.map(|e| e.expect("directory entry").path()));
    files.sort();
    let mut hash = DefaultHasher::new();
    for file in &files {
        (file, fs::read(file).expect("source")).hash(&mut hash);
    }
    let version = Command::new(&rustc).arg("-vV").output().expect("rustc");
    version.stdout.hash(&mut hash);
    let stamp = bench.victims.join("stamp");
    let fresh = format!("{:016x}", hash.finish());
    if fs::read_to_string(&stamp).is_ok_and(|old| old == fresh) {
        return;
    }
    let _ = fs::remove_file(&stamp);

    let base = |source: &Path| {
        let mut c = Command::new(&rustc);
        c.args([
            "--edition",
            "2024",
            "-C",
            "opt-level=1",
            "-C",
            "panic=unwind",
        ])
        .args(["-C", "strip=debuginfo"])
        .arg("--out-dir")
        .arg(&bench.victims)
        .arg("-L")
        .arg(&bench.victims)
        .arg("-L")
        .arg(&bench.driver)
        .arg(source);
        c
    };
    let mut c = base(&abi);
    c.args(["--crate-name", "greenboost_abi", "--crate-type", "rlib"]);
    finish(vec![c]);
    let mut c = base(&sources.join("common/lib.rs"));
    c.args(["--crate-name", "victim", "--crate-type", "rlib"]);
    c.args(["--extern", "greenboost_abi"]);
    finish(vec![c]);

    let stage = |source: &Path| match source.file_stem().and_then(|s| s.to_str()) {
        Some("libmarked") => 0,
        Some(name) if name.starts_with("lib") => 1,
        _ => 2,
    };
    for now in 0..3 {
        let programs = files.iter().filter(|f| f.parent() == Some(&sources));
        finish(
            programs
                .filter(|source| stage(source) == now)
                .map(|source| {
                    let mut c = base(source);
                    c.args(["--extern", "victim"]);
                    if let (true, Some(name)) = (now < 2, source.file_stem()) {
                        let name = name.to_string_lossy();
                        c.args(["--crate-type", "cdylib", "--crate-name"]);
                        c.arg(name.trim_start_matches("lib"));
                    }
                    c
                })
                .collect(),
        );
    }
    fs::write(&stamp, fresh).expect("stamp");
}

/// Runs commands, as many at a time as there are processors.
fn finish(commands: Vec<Command>) {
    let width = std::thread::available_parallelism().map_or(2, |n| n.get());
    let queue = Mutex::new(commands);
    std::thread::scope(|s| {
        for _ in 0..width {
            s.spawn(|| {
                loop {
                    let next = queue.lock().unwrap().pop();
                    let Some(mut command) = next else { break };
                    let output = command.output().expect("rustc");
                    assert!(
                        output.status.success(),
                        "{command:?}\n{}",
                        String::from_utf8_lossy(&output.stderr)
                    );
                }
            });
        }
    });
}

/// The names in the shim's table of hooks, in its order.
pub fn hooked() -> Vec<String> {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("shim/src/hooks.rs"))
        .expect("shim/src/hooks.rs");
    let table = text
        .split_once("\nhooks! {")
        .expect("the table begins with `hooks! {`")
        .1;
    let names: Vec<String> = table
        .lines()
        .filter_map(|line| line.trim().strip_prefix("fn ")?.split_once('('))
        .map(|(name, _)| name.to_string())
        .collect();
    assert!(names.len() > 20, "only {names:?}");
    names
}

/// The launcher's part in memory that processes share, as the launcher does it.
struct Share {
    serves: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Share {
    fn start(dir: &Path) -> Share {
        let mut share = crate::share::Share::open(dir).expect("socket");
        let serves = Arc::new(AtomicBool::new(true));
        let on = serves.clone();
        let thread = std::thread::spawn(move || {
            while on.load(SeqCst) {
                let mut fds: Vec<PollFd> = share
                    .descriptors()
                    .map(|fd| PollFd::new(fd, PollFlags::POLLIN))
                    .collect();
                let _ = poll(&mut fds, PollTimeout::from(10u8));
                drop(fds);
                share.attend();
            }
        });
        Share {
            serves,
            thread: Some(thread),
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.serves.store(false, SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// One job: what `greenboost run` would have prepared.
pub struct Job {
    share: Mutex<Option<Share>>,
    dir: tempfile::TempDir,
    pub ledger: &'static Mapped,
    control: Mutex<Option<OwnedFd>>,
    slack: u64,
}

impl Job {
    pub fn new(settings: Settings) -> Job {
        let dir = tempfile::Builder::new()
            .prefix("gbt")
            .tempdir()
            .expect("a temporary directory");
        let ledger = Mapped::create(&dir.path().join(LEDGER_FILE), settings).expect("ledger");
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let control =
            socket::socket(AddressFamily::Unix, SockType::SeqPacket, flags, None).expect("socket");
        let address = UnixAddr::new(&dir.path().join(CONTROL_SOCKET)).expect("short path");
        socket::bind(control.as_raw_fd(), &address).expect("bind");
        socket::listen(&control, Backlog::new(100).expect("backlog")).expect("listen");
        Job {
            share: Mutex::new(Some(Share::start(dir.path()))),
            dir,
            ledger: Box::leak(Box::new(ledger)),
            control: Mutex::new(Some(control)),
            slack: 0,
        }
    }

    /// The launcher is gone: nobody listens any more.
    pub fn hang_up(&self) {
        *self.control.lock().unwrap() = None;
        *self.share.lock().unwrap() = None;
    }

    /// The launcher is stopped: it takes connections, for the system does that, and never answers.
    pub fn stop_answering(&self) {
        *self.share.lock().unwrap() = None;
        let path = self.dir.path().join(SHARE_SOCKET);
        fs::remove_file(&path).expect("the socket");
        let mute = crate::share::listen_in(&path).expect("socket");
        Box::leak(Box::new(mute));
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// What processes have sent. Their sockets' buffers keep it until it is asked for; the senders must have ended.
    pub fn records(&self) -> Vec<Record> {
        let mut all = Vec::new();
        let control = self.control.lock().unwrap();
        let Some(control) = control.as_ref() else {
            return all;
        };
        while let Ok(fd) = socket::accept4(control.as_raw_fd(), SockFlag::SOCK_CLOEXEC) {
            // SAFETY: accept has just made this descriptor, and nobody else has it.
            let connection = unsafe { OwnedFd::from_raw_fd(fd) };
            let mut buffer = [0; 1024];
            while let Ok(n @ 1..) =
                socket::recv(connection.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT)
            {
                all.push(
                    Record::decode(&buffer[..n])
                        .unwrap_or_else(|| panic!("a strange record: {:?}", &buffer[..n])),
                );
            }
        }
        all
    }

    /// Peaks below limits, and at the end nobody holds anything.
    pub fn demand_sane_and_empty(&self) {
        self.demand_within_limits();
        self.ledger.reap();
        assert_eq!(
            self.ledger.seats(),
            vec![],
            "somebody still sits in the ledger"
        );
        for (index, _) in self.ledger.devices() {
            assert_eq!(self.ledger.used(Tier::Vram, index), 0);
        }
        assert_eq!(self.ledger.used_host(), 0);
    }

    pub fn demand_within_limits(&self) {
        let l = self.ledger;
        let most = l.host_peak.load(SeqCst);
        let limit = l.settings().ram_limit;
        assert!(most <= limit, "{most} bytes of host memory of {limit}");
        for (index, device) in l.devices() {
            let most = device.vram_peak.load(SeqCst);
            let limit = device.vram_limit() + self.slack;
            assert!(
                most <= limit,
                "device {index}: {most} bytes of VRAM of {limit}"
            );
        }
    }

    /// Bytes of allocations that were placed outside VRAM when they were made, over all devices.
    pub fn spilled(&self) -> u64 {
        self.ledger
            .devices()
            .map(|(_, d)| d.spilled_bytes.load(SeqCst))
            .sum()
    }

    /// Bytes that have changed their tier.
    pub fn moved(&self) -> u64 {
        let of = |d: &greenboost_wire::ledger::Device| {
            d.traffic.promoted_bytes.load(SeqCst) + d.traffic.demoted_bytes.load(SeqCst)
        };
        self.ledger.devices().map(|(_, d)| of(d)).sum()
    }

    /// Bytes held now: VRAM over all devices, host.
    pub fn held(&self) -> (u64, u64) {
        let vram = self
            .ledger
            .devices()
            .map(|(index, _)| self.ledger.used(Tier::Vram, index))
            .sum();
        (vram, self.ledger.used_host())
    }
}

/// A victim to be run, and in which world.
#[derive(Clone)]
pub struct Run {
    victim: String,
    args: Vec<OsString>,
    env: BTreeMap<String, OsString>,
    settings: Settings,
    expected: Expected,
    degraded: bool,
    wounded: bool,
    complaints: Vec<String>,
    shim: Option<PathBuf>,
    slack: u64,
}

#[derive(Clone, Copy, PartialEq)]
enum Expected {
    Code(i32),
    Signal(i32),
}

/// A run of `victim`: a card of 512 MiB, of which the job may hold 16, and 2 GiB of RAM.
pub fn run(victim: &str, args: &[&str]) -> Run {
    Run {
        victim: victim.into(),
        args: args.iter().map(OsString::from).collect(),
        env: BTreeMap::from([("FAKE_CUDA_VRAM".into(), "512m".into())]),
        settings: Settings {
            vram_limit: VramLimit::Bytes(16 * MIB),
            ram_limit: 2048 * MIB,
            spill: true,
            report: Report::Extended,
            placement: Placement::Auto,
            staging: Staging::Off,
        },
        expected: Expected::Code(0),
        degraded: false,
        wounded: false,
        complaints: Vec::new(),
        shim: None,
        slack: 0,
    }
}

impl Run {
    pub fn env(mut self, name: &str, value: impl Into<OsString>) -> Run {
        self.env.insert(name.into(), value.into());
        self
    }
    /// VRAM limit of the job, MiB.
    pub fn vram(mut self, mib: u64) -> Run {
        self.settings.vram_limit = VramLimit::Bytes(mib * MIB);
        self
    }
    /// RAM limit of the job, MiB.
    pub fn ram(mut self, mib: u64) -> Run {
        self.settings.ram_limit = mib * MIB;
        self
    }
    pub fn placement(mut self, placement: Placement) -> Run {
        self.settings.placement = placement;
        self
    }
    /// With `--staging auto`.
    pub fn staging(mut self) -> Run {
        self.settings.staging = Staging::Auto;
        self
    }

    pub fn no_spill(mut self) -> Run {
        self.settings.spill = false;
        self
    }
    pub fn physical(mut self) -> Run {
        self.settings.report = Report::Physical;
        self
    }
    /// Bytes of the simulated card, MiB.
    pub fn card(self, mib: u64) -> Run {
        self.env("FAKE_CUDA_VRAM", (mib * MIB).to_string())
    }
    pub fn exits(mut self, code: i32) -> Run {
        self.expected = Expected::Code(code);
        self
    }
    pub fn dies_of(mut self, signal: i32) -> Run {
        self.expected = Expected::Signal(signal);
        self
    }
    /// The shim may say that something works less well.
    pub fn may_degrade(mut self) -> Run {
        self.degraded = true;
        self
    }

    /// The shim may find itself broken: the driver refused what it never refuses.
    pub fn may_be_wounded(mut self) -> Run {
        self.wounded = true;
        self
    }

    /// With another build of the shim.
    pub fn under(mut self, shim: PathBuf) -> Run {
        self.shim = Some(shim);
        self
    }

    /// So many MiB more of VRAM than the limit may be held: what the driver's own pools took is counted, not limited.
    pub fn slack(mut self, mib: u64) -> Run {
        self.slack = mib * MIB;
        self
    }

    /// The program itself does what the simulated driver complains of in such words.
    pub fn misuses(mut self, words: &str) -> Run {
        self.complaints.push(words.into());
        self
    }

    pub fn job(&self) -> Job {
        Job {
            slack: self.slack,
            ..Job::new(self.settings)
        }
    }

    fn command(&self, dir: &Path) -> Command {
        let bench = bench();
        let mut libraries = OsString::from(&bench.driver);
        libraries.push(":");
        libraries.push(&bench.victims);
        let mut c = Command::new(bench.victims.join(&self.victim));
        c.args(&self.args)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("TMPDIR", dir)
            .env("LD_LIBRARY_PATH", libraries)
            .env("LIBCUDA_PATH", bench.driver.join("libcuda.so.1"))
            .env("FAKE_CUDA_REPORT", dir.join("report"))
            .envs(&self.env)
            .current_dir(dir);
        c
    }

    /// Starts it without the shim.
    pub fn start_plain(&self) -> Running<'static> {
        let dir = tempfile::Builder::new()
            .prefix("gbp")
            .tempdir()
            .expect("a temporary directory");
        let command = self.command(dir.path());
        Running::start(self.clone(), command, Some(dir), None)
    }

    /// Starts it under the shim, as a part of `job`.
    pub fn start_in<'a>(&self, job: &'a Job) -> Running<'a> {
        let mut command = self.command(job.path());
        command
            .env("LD_PRELOAD", self.shim.clone().unwrap_or_else(shim))
            .env(JOB_ENV, job.path())
            .envs(&self.env);
        Running::start(self.clone(), command, None, Some(job))
    }

    /// Runs it without the shim.
    pub fn plain(&self) -> Outcome {
        self.start_plain().wait()
    }

    /// Runs it under the shim, in a job of its own, and demands that the ledger is empty afterwards.
    pub fn shimmed(&self) -> Outcome {
        let job = self.job();
        let mut outcome = self.start_in(&job).wait();
        outcome.records = job.records();
        self.judge_records(&outcome);
        job.demand_sane_and_empty();
        outcome.spilled = job.spilled();
        outcome.moved = job.moved();
        outcome
    }

    pub fn judge_records(&self, outcome: &Outcome) {
        for record in &outcome.records {
            let fine = match record.kind {
                Kind::Wounded => self.wounded,
                Kind::Degraded => self.degraded,
                _ => true,
            };
            assert!(fine, "{self}: {record:?}");
        }
    }

    /// Runs it both ways: it must print the same. The plain run gets a card that holds everything.
    pub fn both(&self) -> Outcome {
        let plain = self.clone().card(8192).plain();
        let shimmed = self.shimmed();
        self.compare(&plain, &shimmed);
        shimmed
    }

    pub fn compare(&self, plain: &Outcome, shimmed: &Outcome) {
        let lines = |o: &Outcome| -> Vec<String> {
            o.stdout
                .lines()
                .filter(|l| !l.starts_with('~'))
                .map(String::from)
                .collect()
        };
        let (p, s) = (lines(plain), lines(shimmed));
        let different: Vec<String> = p
            .iter()
            .zip(&s)
            .filter(|(a, b)| a != b)
            .map(|(a, b)| format!("  plain   {a}\n  shimmed {b}"))
            .collect();
        assert!(
            p == s,
            "{self}: {} lines plain, {} shimmed; {} differ:\n{}",
            p.len(),
            s.len(),
            different.len(),
            different[..different.len().min(12)].join("\n")
        );
    }
}

impl std::fmt::Display for Run {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let env: BTreeMap<_, _> = self
            .env
            .iter()
            .filter(|(name, _)| *name != "NAMES")
            .collect();
        write!(
            f,
            "{} {:?} {env:?} {:?}",
            self.victim, self.args, self.settings
        )
    }
}

/// A victim that runs.
pub struct Running<'a> {
    run: Run,
    child: Child,
    pub stdin: Option<ChildStdin>,
    dir: PathBuf,
    tag: String,
    _own: Option<tempfile::TempDir>,
    _job: Option<&'a Job>,
}

impl<'a> Running<'a> {
    fn start(
        run: Run,
        mut command: Command,
        own: Option<tempfile::TempDir>,
        job: Option<&'a Job>,
    ) -> Running<'a> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let tag = COUNT.fetch_add(1, SeqCst).to_string();
        let dir = own
            .as_ref()
            .map(|d| d.path())
            .or(job.map(|j| j.path()))
            .expect("a directory")
            .to_path_buf();
        // Files, not pipes: nobody has to read along, and a grandchild that lives on holds nothing up.
        let file = |kind: &str| File::create(dir.join(format!("{kind}{tag}"))).expect("a file");
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(file("out"))
            .stderr(file("err"))
            .spawn()
            .unwrap_or_else(|e| panic!("{command:?}: {e}"));
        Running {
            stdin: child.stdin.take(),
            run,
            child,
            dir,
            tag,
            _own: own,
            _job: job,
        }
    }

    fn text(&self, kind: &str) -> String {
        let bytes = fs::read(self.dir.join(format!("{kind}{}", self.tag))).expect("its file");
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Waits until it has printed a line that begins so.
    pub fn until(&mut self, line: &str) {
        let start = Instant::now();
        while !self.text("out").lines().any(|l| l.starts_with(line)) {
            if let Some(status) = self.child.try_wait().expect("wait") {
                panic!(
                    "{}: {status} before {line:?}\n{}",
                    self.run,
                    self.text("err")
                );
            }
            assert!(start.elapsed() < PATIENCE, "{}: no {line:?}", self.run);
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Sends a line to its stdin.
    pub fn tell(&mut self, line: &str) {
        let stdin = self.stdin.as_mut().expect("stdin");
        writeln!(stdin, "{line}").expect("it reads its stdin");
    }

    /// Sends a line that it may be too late for.
    pub fn say_on(&mut self) {
        if let Some(stdin) = &mut self.stdin {
            let _ = writeln!(stdin, "on");
        }
    }

    /// The rest of the n-th line that begins so, when it has come; `None` when the program has ended without it.
    pub fn next_line(&mut self, start: &str, n: usize) -> Option<String> {
        let since = Instant::now();
        loop {
            let ended = !self.is_running();
            let text = self.text("out");
            if let Some(line) = text.lines().filter_map(|l| l.strip_prefix(start)).nth(n) {
                return Some(line.into());
            }
            if ended {
                return None;
            }
            assert!(since.elapsed() < PATIENCE, "{}: no {start:?} {n}", self.run);
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("wait").is_none()
    }

    pub fn signal(&mut self, signal: i32) {
        let pid = nix::unistd::Pid::from_raw(self.child.id() as i32);
        let signal = nix::sys::signal::Signal::try_from(signal).expect("a signal");
        nix::sys::signal::kill(pid, signal).expect("kill");
    }

    pub fn kill(&mut self) {
        self.child.kill().expect("kill");
    }

    /// Waits for the end, and demands that it was as expected and that nothing bad is on record.
    pub fn wait(self) -> Outcome {
        let run = self.run.clone();
        let outcome = self.unjudged();
        outcome.judge(&run);
        outcome
    }

    /// Waits for the end, whatever it is.
    pub fn unjudged(mut self) -> Outcome {
        self.stdin = None;
        let start = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("wait") {
                break status;
            }
            if start.elapsed() > PATIENCE {
                let stacks = stacks(self.child.id());
                let _ = self.child.kill();
                let _ = self.child.wait();
                panic!(
                    "{}: hangs\n{}\n{}\n{stacks}",
                    self.run,
                    self.text("out"),
                    self.text("err")
                );
            }
            std::thread::sleep(Duration::from_millis(1));
        };
        Outcome {
            stdout: self.text("out"),
            stderr: self.text("err"),
            report: fs::read_to_string(self.dir.join("report")).unwrap_or_default(),
            status,
            records: Vec::new(),
            spilled: 0,
            moved: 0,
        }
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Where the threads of a hanging process wait in the kernel.
fn stacks(pid: u32) -> String {
    let mut out = String::new();
    for task in fs::read_dir(format!("/proc/{pid}/task"))
        .into_iter()
        .flatten()
        .flatten()
    {
        let read = |name: &str| {
            fs::read_to_string(task.path().join(name))
                .unwrap_or_default()
                .trim()
                .to_string()
        };
        out += &format!("{} {} {}\n", read("comm"), read("wchan"), read("syscall"));
    }
    out
}

/// What a run left.
#[derive(Debug)]
pub struct Outcome {
    pub stdout: String,
    pub stderr: String,
    /// What the simulated driver complained about.
    pub report: String,
    pub status: ExitStatus,
    pub records: Vec<Record>,
    /// Bytes of allocations that were placed outside VRAM when they were made.
    pub spilled: u64,
    /// Bytes that changed their tier.
    pub moved: u64,
}

impl Outcome {
    fn judge(&self, run: &Run) {
        let as_expected = match run.expected {
            Expected::Code(code) => self.status.code() == Some(code),
            Expected::Signal(signal) => self.status.signal() == Some(signal),
        };
        assert!(
            as_expected,
            "{run}: {}\n{}\n{}\n{}",
            self.status,
            last(&self.stdout),
            self.stderr,
            self.report
        );
        assert_eq!(self.stderr, "", "{run}: stderr");
        let complaints: Vec<&str> = self
            .report
            .lines()
            .filter(|l| !run.complaints.iter().any(|words| l.contains(words)))
            .collect();
        assert_eq!(complaints, [""; 0], "{run}: the simulated driver complains");
    }

    /// Lines that begin with `~ WORD`, without it.
    pub fn notes(&self, word: &str) -> Vec<&str> {
        let start = format!("~ {word} ");
        self.stdout
            .lines()
            .filter_map(|l| l.strip_prefix(start.as_str()))
            .collect()
    }

    pub fn said(&self, kind: Kind) -> usize {
        self.records.iter().filter(|r| r.kind == kind).count()
    }
}

fn last(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(15)..].join("\n")
}
