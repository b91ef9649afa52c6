//! `src/json.md` says what the records are, and how they become metrics.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use serde_json::Value;

use crate::environment::{TestEnv, expect};
use crate::json::records;
use crate::tty::{actor, simulated};

fn document() -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/json.md")).unwrap()
}

/// The words in code quotes under each heading of the third level.
pub fn documented() -> BTreeMap<String, BTreeSet<String>> {
    let document = document();
    let document = document.split("\n## ").next().unwrap();
    let sections = document.split("\n### ").skip(1);
    sections
        .map(|section| {
            let (name, text) = section.split_once('\n').unwrap();
            let words = text.split('`').skip(1).step_by(2);
            (name.trim().to_string(), words.map(str::to_string).collect())
        })
        .collect()
}

/// A job in which most things happen, and what is where is known beforehand.
fn job(env: &TestEnv) -> Vec<Value> {
    let actor = actor(env);
    let mut command = env.greenboost(["run", "--vram-limit", "64M", "--ram-limit", "256M"]);
    command.args(["--placement", "first-fit"]);
    command.args(["--json", "records", "--"]).arg(actor).args([
        "cuda",
        "alloc:32",
        "alloc:32",
        "alloc:48",
        "oom",
        "free",
        "wait:2300",
        "alloc:20",
        "wait:1200",
    ]);
    simulated(env, &mut command);
    expect(&mut command, 0);
    records(&fs::read_to_string(env.file("records")).unwrap())
}

#[test]
fn every_field_is_documented() {
    let env = TestEnv::new();
    let documented = documented();
    let snapshot = &documented["snapshot"];
    let mut seen: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    let all = job(&env);
    for record in &all {
        let kind = record["type"].as_str().unwrap();
        let fields = seen.entry(kind).or_default();
        fields.extend(record.as_object().unwrap().keys().cloned());
        for device in record["devices"].as_array().into_iter().flatten() {
            let fields = seen.entry("devices").or_default();
            fields.extend(device.as_object().unwrap().keys().cloned());
            let counted = device["counted"].as_object().unwrap();
            fields.extend(counted.keys().cloned());
            for figure in counted.values() {
                fields.extend(figure.as_object().unwrap().keys().cloned());
            }
        }
    }
    for kind in [
        "start",
        "hello",
        "device",
        "first_spill",
        "oom",
        "bye",
        "snapshot",
        "devices",
        "summary",
    ] {
        let fields = seen.get(kind).unwrap_or_else(|| panic!("no {kind}"));
        let known = documented
            .get(kind)
            .unwrap_or_else(|| panic!("{kind} is not documented"));
        for field in fields {
            let is_common = ["v", "type", "t", "pid", "device"].contains(&field.as_str());
            let is_known = known.contains(field) || kind == "summary" && snapshot.contains(field);
            assert!(is_common || is_known, "{kind}: {field} is not documented");
        }
    }
    // And what is documented is there.
    for kind in ["snapshot", "devices"] {
        let there = &seen[kind];
        for field in documented[kind]
            .iter()
            .filter(|f| !["summary", "snapshot"].contains(&f.as_str()))
        {
            let words = field.split(' ').count();
            assert!(words > 1 || there.contains(field), "{kind} has no {field}");
        }
    }
}

#[test]
fn the_counters_reconcile() {
    let env = TestEnv::new();
    let all = job(&env);
    let mut snapshots = 0;
    for record in all
        .iter()
        .filter(|r| !r["devices"].is_null() && r["type"] != "hello")
    {
        for device in record["devices"].as_array().unwrap() {
            let n = |name: &str| device[name].as_u64().unwrap();
            assert_eq!(
                n("allocations"),
                n("frees") + n("live") + n("ended"),
                "{device}"
            );
            snapshots += 1;
        }
    }
    assert!(snapshots >= 3, "{all:#?}");
    let device = &all.last().unwrap()["devices"][0];
    let n = |name: &str| device[name].as_u64().unwrap();
    assert_eq!(
        (n("allocations"), n("frees"), n("live")),
        (4, 1, 3),
        "{device}"
    );
    assert_eq!(
        (n("vram_allocations"), n("host_allocations")),
        (2, 1),
        "{device}"
    );
    assert_eq!(
        (n("vram_bytes"), n("host_bytes")),
        (64 << 20, 20 << 20),
        "{device}"
    );
    assert_eq!(
        (n("vram_peak"), n("host_peak")),
        (64 << 20, 48 << 20),
        "{device}"
    );
    let mean = n("host_mean") as f64 / f64::from(20 << 20);
    // 20 MiB for 1.2 of 3.5 seconds, nothing before.
    assert!((0.2..0.5).contains(&mean), "{mean}: {device}");
    let largest = all.last().unwrap()["largest"].as_array().unwrap();
    let bytes: Vec<_> = largest
        .iter()
        .map(|l| l["host_bytes"].as_u64().unwrap() >> 20)
        .collect();
    assert_eq!(bytes, [48, 20]);
    assert_eq!(
        (&largest[0]["live"], &largest[1]["live"]),
        (&false.into(), &true.into())
    );
    let age = |n: usize| largest[n]["age"].as_f64().unwrap();
    assert!(age(0) < 0.5 && (1.1..2.0).contains(&age(1)), "{largest:#?}");
}

#[test]
fn the_recipe_for_prometheus() {
    let env = TestEnv::new();
    if std::process::Command::new("jq")
        .arg("--version")
        .output()
        .is_err()
    {
        return println!("no jq here");
    }
    job(&env);
    fs::rename(env.file("records"), env.file("run.jsonl")).unwrap();
    let document = document();
    let recipe = document
        .split("```sh\n")
        .nth(1)
        .unwrap()
        .split("```")
        .next()
        .unwrap();
    expect(env.program("sh").args(["-e", "-c", recipe]), 0);
    let metrics = fs::read_to_string(env.file("greenboost.prom")).unwrap();
    let uuid = "GPU-6762";
    for (name, value) in [
        ("vram_bytes", 64 << 20),
        ("host_peak", 48 << 20),
        ("allocations", 4),
    ] {
        let line = metrics
            .lines()
            .find(|l| l.starts_with(&format!("greenboost_{name}{{uuid=\"{uuid}")))
            .unwrap_or_else(|| panic!("no {name} in {metrics}"));
        assert!(line.ends_with(&format!("\"}} {value}")), "{line}");
    }
}

/// The control socket is full, because the launcher does not read: nobody waits, and what is lost is counted.
#[test]
fn records_are_dropped_and_counted() {
    let env = TestEnv::new();
    let actor = actor(&env);
    let mut command = env.greenboost(["run", "--vram-limit", "64M", "--ram-limit", "64M"]);
    command.args(["--json", "records", "--"]).arg(actor);
    command.args([
        "cuda",
        "alloc:2",
        "tell:there",
        "until:go",
        "ooms:3000",
        "tell:over",
    ]);
    simulated(&env, &mut command);
    let mut launcher = command
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let pid = nix::unistd::Pid::from_raw(launcher.id() as i32);
    let wait_for = |name: &str| {
        let until = Instant::now() + Duration::from_secs(30);
        while !env.file(name).exists() {
            assert!(Instant::now() < until, "no {name}");
            std::thread::sleep(Duration::from_millis(10));
        }
    };
    wait_for("there");
    kill(pid, Signal::SIGSTOP).unwrap();
    fs::write(env.file("go"), "").unwrap();
    wait_for("over");
    kill(pid, Signal::SIGCONT).unwrap();
    let mut said = String::new();
    std::io::Read::read_to_string(&mut launcher.stderr.take().unwrap(), &mut said).unwrap();
    assert_eq!(launcher.wait().unwrap().code(), Some(0));
    let records = records(&fs::read_to_string(env.file("records")).unwrap());
    let heard = records.iter().filter(|r| r["type"] == "oom").count() as u64;
    let bye = records.iter().filter(|r| r["type"] == "bye").count() as u64;
    let summary = records.last().unwrap();
    let lost = summary["records_lost"].as_u64().unwrap();
    assert!(lost > 100, "{summary}");
    assert_eq!(
        heard + bye + lost,
        1000 + 1,
        "each was heard or counted: {summary}"
    );
    assert_eq!(summary["devices"][0]["ooms"], 3000);
    assert!(
        said.contains(&format!(
            "{lost} records of the program's processes were lost"
        )),
        "{said}"
    );
    assert_eq!(said.matches("out of memory on GPU 0").count(), 3, "{said}");
    assert!(
        said.contains(": raise --vram-limit or --ram-limit"),
        "{said}"
    );
}

#[test]
fn an_error_of_the_device_is_told() {
    let env = TestEnv::new();
    let actor = actor(&env);
    let mut command = env.greenboost(["run", "--json", "records", "--"]);
    command
        .arg(actor)
        .args(["cuda", "alloc:2", "fault", "fault"]);
    simulated(&env, &mut command);
    command.env("FAKE_CUDA_FAIL", "cuMemGetInfo:2+:719");
    let output = expect(&mut command, 0);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(
        said.matches("GPU error 719 in process").count(),
        1,
        "{said}"
    );
    let records = records(&fs::read_to_string(env.file("records")).unwrap());
    let errors: Vec<_> = records
        .iter()
        .filter(|r| r["type"] == "device_error")
        .collect();
    assert_eq!(errors.len(), 1);
    assert_eq!(
        (&errors[0]["code"], &errors[0]["reason"]),
        (&719.into(), &"launch failed".into())
    );
}
