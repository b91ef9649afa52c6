//! What nothing else covers of PITFALLS, and that its table (README.md beside this file) tells the truth.

use std::collections::HashSet;
use std::fs;
use std::path::Path;

use greenboost_wire::ledger::Tier;

use crate::harness::{MIB, run};

/// PITFALLS 15: a handle is charged to the device that it is on, whichever is current.
#[test]
fn p15_handle_on_another_device() {
    let r = run("corners", &["handle-elsewhere"]).env("FAKE_CUDA_DEVICES", "2");
    let job = r.job();
    let mut live = r.start_in(&job);
    live.until("holding");
    let mut used: Vec<u64> = job
        .ledger
        .devices()
        .map(|(index, _)| job.ledger.used(Tier::Vram, index) - job.ledger.spare(Tier::Vram, index))
        .collect();
    used.sort_unstable();
    assert_eq!(used, [2 * MIB, 6 * MIB]);
    live.tell("end");
    live.wait();
    job.demand_sane_and_empty();
}

/// PITFALLS 18: asked too early, the driver's own error comes back, whatever its age.
#[test]
fn p18_memory_info_without_a_context() {
    for version in ["12020", "13000"] {
        run("corners", &["info-without-context"])
            .env("FAKE_CUDA_DRIVER", version)
            .both();
    }
}

/// PITFALLS 22: managed memory is managed, spilled memory is not, at every address of them.
#[test]
fn p22_managed_is_managed() {
    run("corners", &["managed"]).both();
}

/// Every line has tests, and every test that the table names exists.
#[test]
fn the_table_tells_the_truth() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let table = fs::read_to_string(root.join("tests/shim/README.md")).expect("README.md");
    let mut sources = String::new();
    let mut folders = vec![root.join("tests"), root.join("shim")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a directory") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                sources += &fs::read_to_string(&path).expect("a source");
            }
        }
    }
    let mut lines = HashSet::new();
    for row in table.lines().filter(|l| l.starts_with("| ")) {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let [_, line, _, names, _] = cells[..] else {
            continue;
        };
        let Ok(line) = line.parse::<u32>() else {
            continue;
        };
        let tests: Vec<&str> = names.split('`').skip(1).step_by(2).collect();
        assert!(!tests.is_empty(), "line {line} has no test");
        for test in tests {
            let name = test.rsplit("::").next().expect("a name");
            assert!(
                sources.contains(&format!("fn {name}()")),
                "line {line}: there is no test `{test}`"
            );
        }
        lines.insert(line);
    }
    for line in (1..=33).chain(38..=40) {
        assert!(lines.contains(&line), "line {line} is missing");
    }
}
