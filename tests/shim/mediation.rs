//! No driver call bypasses the shim unseen: what it does not know, or cannot follow, ends all movement, once.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use goblin::elf::Elf;
use greenboost_wire::record::Kind;

use crate::harness::{Outcome, Run, bench, hooked, run};

/// Names and classes of `shim/symbols.txt`.
fn classes() -> BTreeMap<String, String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("shim/symbols.txt");
    let text = std::fs::read_to_string(path).expect("shim/symbols.txt");
    let lines = text.lines().filter(|l| !l.starts_with('#'));
    lines
        .map(|l| {
            let mut words = l.split(' ').map(String::from);
            (
                words.next().expect("a name"),
                words.next().expect("a class"),
            )
        })
        .collect()
}

/// The `cu*` symbols that a library exports.
fn exports(library: &Path) -> Vec<String> {
    let bytes = std::fs::read(library).unwrap_or_else(|e| panic!("{}: {e}", library.display()));
    let elf = Elf::parse(&bytes).expect("an ELF file");
    let defined = elf.dynsyms.iter().filter(|s| s.st_shndx != 0);
    defined
        .filter_map(|s| elf.dynstrtab.get_at(s.st_name))
        .filter(|n| n.starts_with("cu"))
        .map(String::from)
        .collect()
}

/// The driver of the future as a file that is named like the driver.
fn future() -> String {
    let link = bench().victims.join("libcuda.so.future");
    let library = bench().victims.join("libfuture.so");
    if let Err(e) = std::os::unix::fs::symlink(library, &link) {
        assert_eq!(e.kind(), std::io::ErrorKind::AlreadyExists, "{e}");
    }
    link.to_str().unwrap().to_string()
}

fn ahead(run: Run) -> Run {
    run.env("FAKE_CUDA_DRIVER", "99000")
}

/// What the launcher heard of it.
fn degraded(outcome: &Outcome) -> Vec<&str> {
    let records = outcome.records.iter();
    let degraded = records.filter(|r| r.kind == Kind::Frozen);
    degraded.map(|r| r.text.as_str()).collect()
}

fn announced(run: Run, text: &str) {
    let outcome = run.may_degrade().both();
    assert_eq!(degraded(&outcome), [text]);
}

#[test]
fn unknown_function_freezes_once() {
    for way in ["dlsym", "default", "next", "self", "old", "new"] {
        announced(
            ahead(run("unknown", &["call", way])),
            "memory stays where it is: the program called cuFutureCopyAsync (unknown to this version)",
        );
    }
}

#[test]
fn looking_up_does_not_freeze() {
    for way in ["dlsym", "default", "next", "self", "old", "new"] {
        ahead(run("unknown", &["look", way])).both();
    }
}

/// By `dlvsym`, from a library that has versions: rustc makes none, the C compiler does.
#[test]
fn unknown_function_by_dlvsym() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let file = |name: &str| dir.path().join(name);
    let source = "int cuFutureVersioned(int a, int b) { return 10 * a + b; }";
    std::fs::write(file("future.c"), source).expect("a file");
    std::fs::write(file("map"), "FUTURE_1 { global: *; };").expect("a file");
    let status = Command::new("cc")
        .current_dir(dir.path())
        .args(["-shared", "-fPIC", "-Wl,--version-script=map", "future.c"])
        .args(["-o", "libcuda.so.future"])
        .status();
    assert!(status.expect("cc").success());
    let library = file("libcuda.so.future");
    let run = run("unknown", &["versioned", library.to_str().unwrap()]);
    let outcome = run.may_degrade().both();
    assert!(
        outcome.stdout.contains("~ libgreenboost_shim.so"),
        "{outcome:?}"
    );
    assert_eq!(degraded(&outcome).len(), 1);
}

#[test]
fn first_call_from_many_threads() {
    announced(
        ahead(run("unknown", &["race"])),
        "memory stays where it is: the program called cuFutureCopyAsync (unknown to this version)",
    );
}

#[test]
fn every_argument_arrives() {
    let run = run("unknown", &["arguments", &future()]);
    let outcome = run.may_degrade().both();
    assert!(
        outcome.stdout.contains("~ libgreenboost_shim.so"),
        "{outcome:?}"
    );
    assert!(outcome.stdout.contains("registers"));
    assert_eq!(
        degraded(&outcome),
        ["memory stays where it is: the program called cuFutureMany (unknown to this version)"]
    );
}

#[test]
fn known_function_that_freezes() {
    announced(
        run("unknown", &["freezing", &future()]),
        "memory stays where it is: the program called cuGraphicsMapResources \
         (graphics interop: another interface holds the memory too)",
    );
}

/// The pointer is the driver's own for a harmless function and for what is no function; a function that is not known
/// comes behind a stub, and as long as it is not called nothing freezes.
#[test]
fn harmless_functions_and_data_are_the_drivers_own() {
    let outcome = run("unknown", &["harmless", &future()]).both();
    assert!(outcome.stdout.contains("libcuda.so.future"), "{outcome:?}");
    assert!(
        outcome.stdout.contains("~ libgreenboost_shim.so"),
        "{outcome:?}"
    );
}

/// Of all that the simulated driver has, the program gets ours for what is intercepted, a stub for what freezes, and the
/// driver's own address for the rest.
#[test]
fn what_is_given_for_each_name() {
    let (classes, hooks) = (classes(), hooked());
    let names = exports(&bench().driver.join("libcuda.so.1"));
    let expected: String = names
        .iter()
        .map(|name| {
            let class = classes.get(name).map(String::as_str);
            let ours = hooks.contains(name) || matches!(class, None | Some("freezing"));
            format!("{name}: {}\n", if ours { "shim" } else { "driver" })
        })
        .collect();
    let outcome = ahead(run("unknown", &["given"]))
        .env("NAMES", names.join(","))
        .shimmed();
    assert_eq!(outcome.stdout, expected);
}

#[test]
fn every_symbol_of_the_simulated_driver_is_classified() {
    let classes = classes();
    let mut unknown = exports(&bench().driver.join("libcuda.so.1"));
    unknown.retain(|n| !classes.contains_key(n));
    assert_eq!(unknown, ["cuFutureCopyAsync"]);
}

/// With `GREENBOOST_REAL_LIBCUDA=/path/of/libcuda.so.1`: so is every symbol of a real one.
#[test]
fn every_symbol_of_a_real_driver_is_classified() {
    let Some(path) = std::env::var_os("GREENBOOST_REAL_LIBCUDA").map(PathBuf::from) else {
        return;
    };
    let classes = classes();
    let mut unknown = exports(&path);
    unknown.retain(|n| !classes.contains_key(n));
    assert!(
        unknown.is_empty(),
        "to be classified in shim/symbols.txt: {unknown:?}"
    );
}

/// The loader's binding cannot be watched: to be linked is enough.
#[test]
fn linked_to_an_unknown_function() {
    for arguments in [&[][..], &["call"]] {
        announced(
            ahead(run("ahead", arguments)),
            "memory stays where it is: the program is linked to cuFutureCopyAsync (unknown to this version)",
        );
    }
}

#[test]
fn child_of_a_fork_passes_through() {
    ahead(run("unknown", &["child"])).both();
}

/// Without a launcher, and when it is switched off, the driver's own pointers are handed out.
#[test]
fn switched_off() {
    let names = "cuFutureCopyAsync,cuMemAlloc_v2,cuInit";
    let run = ahead(run("unknown", &["given"])).env("NAMES", names);
    let off = run.clone().env("GREENBOOST", "off");
    for outcome in [off.shimmed(), run.plain()] {
        assert_eq!(outcome.stdout.matches(": driver").count(), 3, "{outcome:?}");
    }
}
