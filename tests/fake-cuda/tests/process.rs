//! Processes: sharing a device, forking, ending, being watched.
#![allow(missing_docs, clippy::macro_metavars_in_unsafe)]
mod common;
use common::*;

#[test]
fn processes_share_a_device() {
    let path = std::env::temp_dir().join("fake-cuda-shared-board");
    let env = [
        ("FAKE_CUDA_SHARED", path.to_str().unwrap()),
        ("FAKE_CUDA_VRAM", "64M"),
    ];
    clean("processes_share_a_device", &env, || {
        if std::env::var_os("FAKE_TEST_SECOND").is_some() {
            start();
            assert_eq!(free_bytes(), 44 * MIB);
            assert_eq!(cu!(cuMemAlloc_v2(&mut 0u64, 46 * MIB as usize)), 2);
            alloc(40 * MIB);
            return;
        }
        start();
        alloc(20 * MIB);
        let mut second = std::process::Command::new(std::env::current_exe().unwrap());
        let args = ["processes_share_a_device", "--exact", "--nocapture"];
        assert!(
            second
                .args(args)
                .env("FAKE_TEST_SECOND", "1")
                .status()
                .unwrap()
                .success()
        );
        // The dead hold nothing.
        assert_eq!(free_bytes(), 44 * MIB);
        let _ = std::fs::remove_file(std::env::var("FAKE_CUDA_SHARED").unwrap());
    });
}

#[test]
fn a_fork_is_harmless() {
    clean("a_fork_is_harmless", &[], || {
        start();
        spin(stream(0), 100);
        // SAFETY: the child calls only the driver and `_exit`.
        let child = unsafe { libc::fork() };
        if child == 0 {
            let results = [
                cu!(cuInit(0u32)),
                cu!(cuCtxSynchronize()),
                cu!(cuMemFree_v2(0u64)),
            ];
            // SAFETY: ends the child without running the test harness.
            unsafe { libc::_exit(i32::from(results != [3, 3, 3])) };
        }
        let mut status = -1;
        // SAFETY: waits for the child just made.
        unsafe { libc::waitpid(child, &mut status, 0) };
        assert_eq!(status, 0);
        ok!(cuCtxSynchronize());
    });
}

#[test]
fn exit_is_survived_and_leaks_are_told() {
    extern "C" fn late() {
        let mut free = 0usize;
        if cu!(cuMemGetInfo_v2(&mut free, std::ptr::null_mut::<usize>())) != 0 {
            // SAFETY: ends the process from its exit handler.
            unsafe { libc::_exit(9) };
        }
    }
    let expected = [
        "leak: allocation of 64 bytes",
        "leak: handle",
        "leak: mapping",
        "leak: reservation",
    ];
    records(
        "exit_is_survived_and_leaks_are_told",
        &[("FAKE_CUDA_LEAKS", "1")],
        &expected,
        || {
            start();
            alloc(64);
            mapped(GRANULE, false);
            spin(stream(0), 10_000);
            // SAFETY: a handler that stays loaded; then the process ends as a program does.
            unsafe {
                libc::atexit(late);
                libc::exit(0);
            }
        },
    );
}

#[test]
fn calls_are_traced() {
    let path = std::env::temp_dir().join(format!("fake-cuda-{}.trace", std::process::id()));
    let path = std::env::var("FAKE_CUDA_TRACE").map_or(path, Into::into);
    clean(
        "calls_are_traced",
        &[("FAKE_CUDA_TRACE", path.to_str().unwrap())],
        || {
            start();
            assert_eq!(cu!(cuMemAlloc_v2(&mut 0u64, 0usize)), 1);
        },
    );
    if std::env::var_os("FAKE_TEST_CHILD").is_none() {
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let calls: Vec<String> = text
            .lines()
            .map(|l| l.split(' ').skip(2).collect::<Vec<_>>().join(" "))
            .collect();
        assert_eq!(
            calls,
            [
                "cuInit 0",
                "cuDevicePrimaryCtxRetain 0",
                "cuCtxSetCurrent 0",
                "cuMemAlloc_v2 1"
            ]
        );
    }
}
