//! What needs a process of its own: sandboxes, limits, forks, ends. Each plays one part of [`part`].

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use greenboost_wire::nvme::{Place, Why};

use super::super::file::{Shortage, SpillFile};
use super::super::queue::{Direction, Piece, Pool, Queue, Ring};
use super::super::slots::Slot;
use super::super::store::{Failure, Refused};
use super::super::trial::Method;
use super::whole::{open_in, tasks};
use super::*;
use crate::tier::chunk::GRAIN;

const PART: &str = "SPILL_TEST_PART";
const DIR: &str = "SPILL_TEST_DIR";
const CLASS: u64 = 20 << 20;

/// A process that plays a part in a directory.
fn player(part: &str, dir: &tempfile::TempDir) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args([
            "--exact",
            "tier::spill::tests::processes::part",
            "--ignored",
        ])
        .arg("--nocapture")
        .env(PART, part)
        .env(DIR, dir.path())
        .stdin(Stdio::null());
    command
}

/// Plays it to the end. False: this machine does not let it.
fn play(part: &str) -> bool {
    let dir = scratch();
    let output = player(part, &dir).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{part}: {output:?}");
    assert!(said.contains("1 passed"), "{part}: {said}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "{part}");
    !said.contains("NOT POSSIBLE")
}

#[test]
#[ignore = "played by other tests"]
fn part() {
    let dir = PathBuf::from(std::env::var_os(DIR).expect("played by other tests"));
    match std::env::var(PART).unwrap().as_str() {
        "no io_uring" => no_io_uring(&dir),
        "no table of its own" => shared_table(&dir),
        "closes everything" => closes_everything(&dir),
        "forks" => forks(&dir),
        "little memory to lock" => little_memory_to_lock(&dir),
        "small files" => small_files(&dir),
        "smaller files later" => smaller_files_later(&dir),
        "read-only" => read_only(&dir),
        "full" => full(&dir),
        "is killed" => is_killed(&dir),
        other => panic!("{other}"),
    }
}

fn here(dir: &Path) -> Config {
    Config {
        step: 64 << 20,
        ..Config::new(dir.into(), Some(256 << 20))
    }
}

/// Has the kernel refuse these calls from here on, with EPERM, as sandboxes do: a filter made by hand.
fn refuse(calls: &[libc::c_long]) {
    const BPF_LD_W_ABS: u16 = 0x20;
    const BPF_JEQ_K: u16 = 0x15;
    const BPF_RET_K: u16 = 0x06;
    let op = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    // The number of the call is the first word of what the filter sees.
    let mut program = vec![op(BPF_LD_W_ABS, 0, 0, 0)];
    for call in calls {
        program.push(op(BPF_JEQ_K, 0, 1, *call as u32));
        program.push(op(
            BPF_RET_K,
            0,
            0,
            libc::SECCOMP_RET_ERRNO | libc::EPERM as u32,
        ));
    }
    program.push(op(BPF_RET_K, 0, 0, libc::SECCOMP_RET_ALLOW));
    let program = libc::sock_fprog {
        len: program.len() as u16,
        filter: program.as_mut_ptr(),
    };
    // SAFETY: the filter lives through the call; all threads are to have it.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        let tsync = libc::SECCOMP_FILTER_FLAG_TSYNC;
        let mode = libc::SECCOMP_SET_MODE_FILTER;
        assert_eq!(libc::syscall(libc::SYS_seccomp, mode, tsync, &program), 0);
    }
}

#[test]
fn where_io_uring_is_refused_threads_do_it() {
    assert!(play("no io_uring"));
}

fn no_io_uring(dir: &Path) {
    refuse(&[libc::SYS_io_uring_setup]);
    let memory = Memory::new(128 << 20);
    let store = open(here(dir), &memory);
    let facts = store.facts();
    assert_eq!((facts.method, facts.registered), (Method::Threads, 0));
    assert_eq!(facts.method.name(), "threads with pread and pwrite");
    assert!(facts.refusal.as_ref().unwrap().contains("not permitted"));
    assert!(there_and_back(&store, &memory, 64 << 20, 1));
    // Asked for by name it is not replaced.
    let method = Some(Method::Uring);
    let config = Config {
        method,
        ..here(dir)
    };
    // SAFETY: never unmapped.
    let refusal = unsafe { Store::open(config, vec![], Duration::from_secs(60)) }.unwrap_err();
    assert_eq!(refusal.why, Why::Failed(libc::EPERM));
}

/// Opens so many files that every number below is taken again, each with some words in it.
fn files(dir: &Path, upto: RawFd) -> Vec<(PathBuf, File)> {
    let mut files = Vec::new();
    loop {
        let path = dir.join(format!("own-{}", files.len()));
        let mut file = File::options()
            .create_new(true)
            .read(true)
            .write(true)
            .open(&path)
            .unwrap();
        file.write_all(b"my own words").unwrap();
        let is_last = file.as_raw_fd() >= upto;
        files.push((path, file));
        if is_last {
            return files;
        }
    }
}

fn untouched(files: Vec<(PathBuf, File)>) {
    for (path, file) in files {
        drop(file);
        assert_eq!(std::fs::read(&path).unwrap(), b"my own words");
        std::fs::remove_file(path).unwrap();
    }
}

fn close_from(first: RawFd) {
    // SAFETY: what the test itself has open is not used any more.
    let code = unsafe { libc::syscall(libc::SYS_close_range, first, RawFd::MAX, 0) };
    assert_eq!(code, 0);
}

#[test]
fn programs_may_close_all_descriptors() {
    assert!(play("closes everything"));
}

fn closes_everything(dir: &Path) {
    let memory = Memory::new(128 << 20);
    let store = open(here(dir), &memory);
    assert!(store.facts().is_apart && open_in(Path::new("/proc/self"), dir).is_none());
    assert!(there_and_back(&store, &memory, CLASS, 1));
    close_from(3);
    let files = files(dir, 450);
    for (class, seed) in [(64 << 20, 2), (CLASS, 3)] {
        assert!(there_and_back(&store, &memory, class, seed));
    }
    // The file grows, too.
    let slots: Vec<Slot> = (0..3)
        .map(|_| store.reserve(64 << 20, soon()).unwrap())
        .collect();
    assert!(slots.into_iter().all(|slot| store.release(slot)));
    untouched(files);
}

/// Where a sandbox refuses a table of its own: a program that closes everything loses the tier, and no word of its files.
#[test]
fn what_reuses_our_descriptors_is_left_alone() {
    assert!(play("no table of its own"));
}

fn shared_table(dir: &Path) {
    refuse(&[libc::SYS_unshare]);
    for method in [Method::Threads, Method::Uring] {
        let memory = Memory::new(2 * CLASS as usize);
        // The flag that unshares cannot be told from others by the filter above.
        let method = Some(method);
        let store = open(
            Config {
                method,
                ..here(dir)
            },
            &memory,
        );
        assert!(store.facts().is_apart, "close_range does it alone");
    }
    refuse(&[libc::SYS_close_range]);
    for method in [Method::Threads, Method::Uring] {
        let memory = Memory::new(2 * CLASS as usize);
        let method = Some(method);
        let store = open(
            Config {
                method,
                ..here(dir)
            },
            &memory,
        );
        assert!(!store.facts().is_apart);
        assert!(there_and_back(&store, &memory, CLASS, 1));
        for fd in 3..1000 {
            // SAFETY: what the test itself has open is not used any more.
            unsafe { libc::close(fd) };
        }
        let files = files(dir, 450);
        if let Ok(slot) = store.reserve(GRAIN, soon()) {
            // SAFETY: never unmapped, and left alone.
            let ticket = unsafe { store.write(slot, memory.buffer(0, GRAIN)) };
            let end = ticket.map(|ticket| ticket.wait(Instant::now() + Duration::from_secs(5)));
            assert!(!matches!(end, Ok(Some(Ok(())))), "{end:?}");
        }
        let more = || store.reserve(64 << 20, Instant::now() + Duration::from_secs(5));
        assert!((0..3).any(|_| more().is_err()), "it cannot grow");
        drop(store);
        std::thread::sleep(Duration::from_millis(300));
        untouched(files);
    }
}

#[test]
fn the_child_of_a_fork_is_harmless() {
    assert!(play("forks"));
}

fn forks(dir: &Path) {
    let memory = Memory::new(2 * CLASS as usize);
    let store = open(here(dir), &memory);
    let slot = store.reserve(CLASS, soon()).unwrap();
    let buffer = memory.buffer(0, CLASS);
    fill(buffer, 1);
    // SAFETY: never unmapped, and left alone until it has ended.
    let ticket = unsafe { store.write(slot, buffer) }.unwrap();
    // SAFETY: the child only asks the store, which takes no lock there, and looks at /proc.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let later = Instant::now() + Duration::from_secs(60);
        // SAFETY: refused.
        let asked = unsafe {
            [
                store.reserve(CLASS, later).map(drop),
                store.write(slot, buffer).map(drop),
                store.read(slot, buffer).map(drop),
            ]
        };
        let waited = ticket.wait(later) == Some(Err(Failure::Forked));
        let closed = store.close(later) && !store.release(slot) && !store.uses(&buffer);
        let has_it = open_in(Path::new("/proc/self"), dir).is_some();
        drop(store);
        let is_good = asked.iter().all(|a| *a == Err(Refused::Forked)) && waited && closed;
        // SAFETY: ends the child without a word.
        unsafe { libc::_exit(if is_good && !has_it { 0 } else { 1 }) };
    }
    let mut status = 0;
    // SAFETY: our own child.
    assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
    assert_eq!(status, 0, "the child's view");
    assert_eq!(ticket.wait(soon()), Some(Ok(())));
    assert!(there_and_back(&store, &memory, CLASS, 2));
}

#[test]
fn what_cannot_be_registered_is_used_all_the_same() {
    assert!(play("little memory to lock"));
}

fn limit(resource: libc::__rlimit_resource_t, bytes: u64) {
    let limit = libc::rlimit {
        rlim_cur: bytes,
        rlim_max: libc::RLIM_INFINITY,
    };
    let lower = libc::rlimit {
        rlim_max: bytes,
        ..limit
    };
    // SAFETY: reads one `rlimit`; who may not keep the hard limit lowers it as well.
    unsafe {
        let code = libc::setrlimit(resource, &limit);
        assert!(code == 0 || libc::setrlimit(resource, &lower) == 0);
    }
}

/// Without CAP_IPC_LOCK, which root has and which lifts the limit.
fn drop_capabilities() {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    // Version 3: two words each of effective, permitted and inheritable ones.
    let (header, none) = (
        Header {
            version: 0x2008_0522,
            pid: 0,
        },
        [0u32; 6],
    );
    // SAFETY: both live through the call.
    let code = unsafe { libc::syscall(libc::SYS_capset, &header, none.as_ptr()) };
    assert_eq!(code, 0);
}

fn little_memory_to_lock(dir: &Path) {
    limit(libc::RLIMIT_MEMLOCK, 6 << 20);
    drop_capabilities();
    let memory = Memory::new(128 << 20);
    let store = open(here(dir), &memory);
    let facts = store.facts();
    assert_eq!(facts.method, Method::Uring, "{facts:?}");
    let registered = facts.registered;
    assert!((2 << 20..=6 << 20).contains(&registered), "{registered}");
    assert!(there_and_back(&store, &memory, 64 << 20, 1));
}

#[test]
fn small_files_are_refused_and_harm_nobody() {
    assert!(play("small files"));
    assert!(play("smaller files later"));
}

fn small_files(dir: &Path) {
    limit(libc::RLIMIT_FSIZE, 8 << 20);
    // SAFETY: nothing is registered.
    let refusal = unsafe { Store::open(here(dir), vec![], Duration::from_secs(60)) }.unwrap_err();
    assert_eq!(refusal.why, Why::FileSize(8 << 20));
    assert!(refusal.to_string().contains("ulimit -f"), "{refusal}");
    limit(libc::RLIMIT_FSIZE, 100 << 20);
    let store = open(here(dir), &Memory::new(GRAIN as usize));
    assert!(store.reserve(64 << 20, soon()).is_ok());
    let refused = store.reserve(64 << 20, soon());
    assert_eq!(refused, Err(Refused::Short(Shortage::FileSize(100 << 20))));
    assert!(
        store.reserve(32 << 20, soon()).is_ok(),
        "what is left of it"
    );
}

fn smaller_files_later(dir: &Path) {
    for method in [Method::Uring, Method::Threads, Method::Buffered] {
        let memory = Memory::new(2 * CLASS as usize);
        let method = Some(method);
        let store = open(
            Config {
                method,
                ..here(dir)
            },
            &memory,
        );
        let slot = store.reserve(CLASS, soon()).unwrap();
        let from = memory.buffer(0, CLASS);
        fill(from, 1);
        limit(libc::RLIMIT_FSIZE, 4 << 20);
        // SAFETY: never unmapped, and left alone until it has ended.
        let end = unsafe { store.write(slot, from) }.unwrap().wait(soon());
        let Some(Err(failure)) = end else {
            panic!("{end:?} by {method:?}");
        };
        assert!(failure.is_full() && holds(from, 1), "{failure}");
        limit(libc::RLIMIT_FSIZE, libc::RLIM_INFINITY);
        assert!(there_and_back(&store, &memory, CLASS, 2));
    }
}

/// A private set of mounts; `None`: not allowed.
fn private_mounts() -> Option<()> {
    let (root, null) = (c"/".as_ptr(), std::ptr::null());
    let flags = libc::MS_PRIVATE | libc::MS_REC;
    // SAFETY: paths that end in NUL.
    let is_private = unsafe {
        libc::unshare(libc::CLONE_NEWNS) == 0
            && libc::mount(null, root, null, flags, std::ptr::null()) == 0
    };
    if !is_private {
        println!("NOT POSSIBLE");
    }
    is_private.then_some(())
}

fn c(path: &Path) -> std::ffi::CString {
    std::ffi::CString::new(path.to_str().unwrap()).unwrap()
}

#[test]
fn a_read_only_file_system_is_refused() {
    if !play("read-only") {
        println!("not tested: this needs root");
    }
}

fn read_only(dir: &Path) {
    if private_mounts().is_none() {
        return;
    }
    let path = c(dir);
    let remount = libc::MS_REMOUNT | libc::MS_BIND | libc::MS_RDONLY;
    let (null, none) = (std::ptr::null(), std::ptr::null());
    // SAFETY: paths that end in NUL.
    unsafe {
        assert_eq!(
            libc::mount(path.as_ptr(), path.as_ptr(), null, libc::MS_BIND, none),
            0
        );
        assert_eq!(libc::mount(null, path.as_ptr(), null, remount, none), 0);
    }
    let refusal = Place::look(dir).unwrap_err();
    assert_eq!(refusal.why, Why::ReadOnly);
    assert!(refusal.to_string().contains("mounted read-only"));
    // SAFETY: nothing is registered.
    let refusal = unsafe { Store::open(here(dir), vec![], Duration::from_secs(60)) }.unwrap_err();
    assert_eq!(refusal.why, Why::ReadOnly);
}

/// A disk that is full indeed: a small file system in RAM, which is refused otherwise.
#[test]
fn a_disk_without_room() {
    if !play("full") {
        println!("not tested: this needs root");
    }
}

fn full(dir: &Path) {
    if private_mounts().is_none() {
        return;
    }
    let path = c(dir);
    let (kind, size) = (c"tmpfs".as_ptr(), c"size=100m");
    // SAFETY: strings that end in NUL.
    unsafe {
        let options = size.as_ptr().cast();
        assert_eq!(libc::mount(kind, path.as_ptr(), kind, 0, options), 0);
    }
    let refused = Place::look(dir).unwrap_err();
    assert_eq!(refused.why, Why::Memory("tmpfs".into()));
    // SAFETY: nothing is registered.
    let refusal = unsafe { Store::open(here(dir), vec![], Duration::from_secs(60)) }.unwrap_err();
    assert_eq!(refusal, refused);

    let room = greenboost_wire::nvme::Room { free: 0, margin: 0 };
    let mut file = SpillFile::make(dir, u64::MAX, room).unwrap();
    // A twentieth is left for others: 95 MiB are not.
    assert_eq!(file.grow(64 << 20, 1 << 30), Ok(94 << 20));
    let Err(Shortage::Disk(room)) = file.grow(GRAIN, GRAIN) else {
        panic!("more than there is");
    };
    assert_eq!((room.free, room.margin), (6 << 20, 5 << 20));

    // Holes, and then somebody else fills the disk.
    drop(file);
    full_while_it_is_used(SpillFile::make(dir, u64::MAX, room).unwrap(), dir);
}

fn full_while_it_is_used(mut file: SpillFile, dir: &Path) {
    file.forget_firmness();
    file.give_up_direct();
    let memory = Memory::new(GRAIN as usize);
    let size = file.grow(GRAIN, GRAIN).unwrap();
    let mut other = File::create(dir.join("other")).unwrap();
    while other.write_all(&[7; 4096]).is_ok() {}
    let ring = file.handle().and_then(|handle| {
        // SAFETY: nothing is registered.
        Ok(Box::new(unsafe { Ring::new(handle, 4, &[]) }?) as Box<dyn super::super::queue::Disk>)
    });
    let pool = Pool::new(file.handle().unwrap(), false, 4).unwrap();
    for disk in [ring.unwrap(), Box::new(pool)] {
        let mut queue = Queue::new(disk, 4);
        let piece = Piece {
            direction: Direction::Write,
            at: size - GRAIN,
            address: memory.start,
            len: GRAIN as usize,
        };
        // SAFETY: of a Memory that is never unmapped.
        unsafe { queue.start(1, piece) };
        let mut came = None;
        while came.is_none() {
            let wait = Duration::from_millis(10);
            queue
                .collect(wait, |_, result| came = Some(result))
                .unwrap();
        }
        assert_eq!(came, Some(Err(libc::ENOSPC)));
    }
}

/// Nothing remains of a program that is killed, whoever it is killed by.
#[test]
fn no_file_remains() {
    let dir = scratch();
    let mut child = player("is killed", &dir)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = String::new();
    let mut output = child.stdout.take().unwrap();
    let mut bytes = [0; 256];
    while !said.contains("written") {
        let n = output.read(&mut bytes).unwrap();
        assert!(n > 0, "{said}");
        said += &String::from_utf8_lossy(&bytes[..n]);
    }
    let threads = PathBuf::from(format!("/proc/{}/task", child.id()));
    let threads = std::fs::read_dir(threads).unwrap();
    let is_there = threads
        .into_iter()
        .any(|task| open_in(&task.unwrap().path(), dir.path()).is_some());
    assert!(is_there, "it has a file");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

fn is_killed(dir: &Path) {
    let memory = Memory::new(128 << 20);
    let store = open(here(dir), &memory);
    for seed in 0.. {
        assert!(there_and_back(&store, &memory, 64 << 20, seed));
        println!("written, by {} threads", tasks().count());
    }
}
