//! Every way of reaching the driver ends at the shim, and nothing else does.

use crate::harness::{MIB, Run, bench, hooked, run};

fn names() -> String {
    hooked().join(",")
}

fn library(name: &str) -> String {
    bench().victims.join(name).to_str().unwrap().to_string()
}

/// The program does the same and prints the same; and the shim saw it: a victim that needs more than its VRAM limit
/// must have spilled.
fn reached(run: Run) {
    let spilled = run.both().spilled;
    assert!(
        spilled >= 4 * MIB,
        "{run}: it escaped: {spilled} bytes spilled"
    );
}

#[test]
fn linked_program() {
    reached(run("linked", &[]));
}

#[test]
fn dlopen_and_dlsym() {
    reached(run("everything", &[]));
}

/// PITFALLS 9: an absolute path does not bypass `dlsym`.
#[test]
fn p09_dlopen_by_absolute_path() {
    reached(run("everything", &[]).env("REACH", "absolute"));
}

#[test]
fn pseudo_handles_in_the_program() {
    for way in ["default", "next", "self"] {
        reached(run("everything", &[]).env("REACH", way));
    }
}

#[test]
fn pseudo_handles_in_a_library() {
    let probe = library("libprobe.so");
    // Not by RTLD_NEXT: nothing comes after a library that was opened by itself.
    for way in ["dlsym", "default", "self", "proc 0", "nested"] {
        for scope in ["local", "global"] {
            reached(run("lent", &[&probe, scope]).env("REACH", way));
        }
    }
}

/// PITFALLS 3: both resolvers, by `dlsym` and by each other, with all flags.
#[test]
fn p03_both_resolvers() {
    for way in [
        "proc 0",
        "proc 1",
        "proc 2",
        "oldproc 0",
        "oldproc 1",
        "oldproc 2",
        "nested 0",
        "nested 2",
        "oldnested 0",
        "oldnested 2",
    ] {
        reached(run("everything", &[]).env("REACH", way));
    }
}

/// PITFALLS 3: libcudart's own sequence.
#[test]
fn p03_static_cudart() {
    reached(run("resolve", &["cudart"]).env("NAMES", names()));
}

/// PITFALLS 4 and 5: each name, version and flag gives the function that the driver gives, in its status too.
#[test]
fn p04_p05_versions_and_flags() {
    for driver in [13000, 12000, 11040] {
        run("resolve", &["versions"])
            .env("NAMES", names())
            .env("FAKE_CUDA_DRIVER", driver.to_string())
            .both();
    }
}

/// PITFALLS 5: what a driver lacks stays missing, for drivers of every age.
#[test]
fn p05_old_drivers_lack_what_they_lack() {
    for driver in [11000, 11040, 12000, 12020, 12040, 13000] {
        run("resolve", &["handle"])
            .env("NAMES", names())
            .env("FAKE_CUDA_DRIVER", driver.to_string())
            .both();
    }
}

/// PITFALLS 5: and so do names that nobody has.
#[test]
fn p05_absent_names() {
    run("resolve", &["absent"]).both();
}

/// PITFALLS 1 and 5: pseudo-handles find what they would find, before and after libcuda is there, locally and globally,
/// in the program and in a library.
#[test]
fn p01_p05_scopes() {
    run("resolve", &["scopes", &library("libprobe.so")])
        .env("NAMES", names())
        .both();
}

/// The same from a library that the program is linked to, which then uses the driver in all ways.
#[test]
fn p01_p05_scopes_of_a_linked_library() {
    for way in ["dlsym", "default", "next", "self", "proc 0"] {
        run("startup", &[]).env("REACH", way).both();
    }
}

/// PITFALLS 1: `RTLD_NEXT` is counted from the caller.
#[test]
fn p01_next_from_a_wrapper() {
    run("resolve", &["next", &library("libwrapper.so")]).both();
}

/// PITFALLS 2: names of other libraries that begin with `cu`, and even the driver's names in another library.
#[test]
fn p02_other_libraries_names() {
    run("resolve", &["foreign", &library("libcublas.so")]).both();
}

#[test]
fn dlerror_says_what_it_would_say() {
    run("resolve", &["errors"]).both();
}

/// PITFALLS 6: `dlvsym`, and how other interposers find the real `dlsym`.
#[test]
fn p06_dlvsym() {
    run("resolve", &["dlvsym"]).both();
}

/// PITFALLS 6: lookups while threads start and end.
#[test]
fn p06_lookups_among_starting_threads() {
    run("resolve", &["threads"]).both();
}

/// PITFALLS 7: a constructor of the program's library uses CUDA before any of ours would have run.
#[test]
fn p07_constructor_uses_cuda() {
    run("early", &[]).both();
}

/// PITFALLS 8: calls before `cuInit`.
#[test]
fn p08_before_init() {
    run("memory", &["before-init"]).both();
    run("memory", &["before-init"])
        .env("REACH", "proc 0")
        .both();
}

/// PITFALLS 8: a thread without a context gets the driver's error.
#[test]
fn p08_no_context() {
    run("memory", &["no-context"]).both();
}

/// PITFALLS 8: null places for results.
#[test]
fn p08_null_results() {
    run("memory", &["null-results"]).both();
}

/// PITFALLS 9: a library that bypasses the exported symbols is not harmed, nor does it harm.
#[test]
fn p09_deepbind() {
    run("deep", &[&library("libdeep.so")]).both();
}

/// PITFALLS 10: the shim works when nothing but `dlopen` was ever called before, on every kind of driver.
#[test]
fn p10_driver_versions() {
    for driver in [12020, 12040, 12080, 13000] {
        run("everything", &[])
            .env("FAKE_CUDA_DRIVER", driver.to_string())
            .both();
    }
}
