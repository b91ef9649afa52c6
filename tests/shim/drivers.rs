//! What works on which version of the driver: the table of README.md, made by using each.
//!
//! To bring it up to date: `UPDATE=1 cargo test --test shim drivers`.

use std::path::Path;

use greenboost_wire::record::Kind;

use crate::harness::{MIB, run};

/// From the first with all that is needed at all to the newest.
const DRIVERS: [u32; 7] = [11040, 11080, 12000, 12020, 12040, 12090, 13000];

const HEAD: &str = "\
| driver | memory beyond the VRAM limit | stream-ordered beyond it | `cuMemCreate` beyond it | `cuIpcGetMemHandle` of it | `cuGetProcAddress` | layout of kernel parameters |
|---|---|---|---|---|---|---|
";
const BEGIN: &str = "<!-- drivers -->\n";
const END: &str = "<!-- /drivers -->\n";

/// One row: found by a program that uses everything, under a limit that it exceeds.
fn row(driver: u32) -> String {
    let r = run("drivers", &[])
        .vram(16)
        .ram(256)
        .slack(16)
        .env("FAKE_CUDA_DRIVER", driver.to_string())
        .may_degrade();
    let job = r.job();
    let mut live = r.start_in(&job);
    live.until("held");
    let (vram, host) = job.held();
    live.tell("on");
    let mut outcome = live.wait();
    outcome.records = job.records();
    r.judge_records(&outcome);
    job.demand_sane_and_empty();
    let device = outcome
        .records
        .iter()
        .find(|r| r.kind == Kind::Device)
        .expect("a device");
    let beyond = match device.text.split(' ').next() {
        Some("vmm") => "shares a range with VRAM",
        Some("pinned") => "whole allocations in registered RAM",
        _ => "out of memory",
    };
    let note = |word: &str| outcome.notes(word)[0].to_string();
    // Three of 8 MiB, where there is room for two.
    let ordered = match (note("ordered").as_str(), vram > 16 * MIB) {
        ("3", true) => "counted, stays in VRAM",
        ("3", false) if host > 0 => "in RAM",
        _ => "out of memory",
    };
    format!(
        "| {}.{} | {beyond} | {ordered} | {} | {} | {} | {} |\n",
        driver / 1000,
        driver % 1000 / 10,
        note("own"),
        note("ipc"),
        note("lookup"),
        note("parameters"),
    )
}

#[test]
fn the_table_of_drivers_is_true() {
    let rows: String = DRIVERS.map(row).concat();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md");
    let readme = std::fs::read_to_string(&path).expect("README.md");
    let (before, rest) = readme
        .split_once(BEGIN)
        .expect("README.md has a table of drivers");
    let (kept, after) = rest.split_once(END).expect("the table has an end");
    let fresh = format!("{HEAD}{rows}");
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&path, format!("{before}{BEGIN}{fresh}{END}{after}")).expect("README.md");
        return;
    }
    assert_eq!(
        kept, fresh,
        "run `UPDATE=1 cargo test --test shim drivers` and check the result in"
    );
}
