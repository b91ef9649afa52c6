//! What spilling costs, as the table, `top`, the records and the summary tell it. The test counts in the job's ledger, as
//! a process of the job would.

use std::cell::RefCell;
use std::fs;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use greenboost_wire::ledger::{Ledger, Pace, Place, Tier};
use serde_json::Value;

use crate::control::ledger;
use crate::environment::{TestEnv, expect, stderr, stdout};
use crate::json::records;
use crate::probe::{model, probe};
use crate::tty::{Tty, acting, actor, simulated};

const MIB: u64 = 1 << 20;

/// Every 50 ms, until it is over: 10 MB are brought in and 5 MB sent out in 1 ms, calls wait for 2 ms, and operations name
/// far more in host memory than any link carries.
fn count(ledger: &Ledger, over: &AtomicBool) {
    let traffic = &ledger.device(0).traffic;
    while !over.load(SeqCst) {
        traffic.promoted_bytes.fetch_add(10_000_000, SeqCst);
        traffic.promotions.fetch_add(1, SeqCst);
        traffic.demoted_bytes.fetch_add(5_000_000, SeqCst);
        traffic.move_nanos.fetch_add(1_000_000, SeqCst);
        traffic.waited_nanos.fetch_add(2_000_000, SeqCst);
        traffic.named_bytes[Tier::Host as usize].fetch_add(1 << 40, SeqCst);
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Also when a test fails.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, SeqCst);
    }
}

/// A number before a word in a text.
fn number_before(text: &str, word: &str) -> f64 {
    let before = text.split(word).next().unwrap();
    let number = before.rsplit(' ').find(|w| !w.is_empty()).unwrap();
    number.parse().unwrap_or_else(|_| panic!("{word}: {text}"))
}

#[test]
fn while_it_runs_and_afterwards() {
    let env = TestEnv::new();
    let actor = actor(&env);
    for columns in [60, 80, 200] {
        let _ = fs::remove_file(env.file("go"));
        let words = ["cuda", "alloc:32", "alloc:32", "alloc:48", "until:go"];
        let options = ["--json", "records"];
        let mut tty = Tty::start(&mut acting(&env, &actor, &options, &words), 24, columns);
        tty.wait_for("48.0 of 256.0 MiB");
        assert!(
            !tty.text().contains("move"),
            "nothing does:\n{}",
            tty.text()
        );
        let ledger = ledger(&env);
        let place = Place::take(ledger).unwrap();
        let pace = Pace {
            heat: [64 * MIB, 24 * MIB],
            step_nanos: 20_000_000,
        };
        place.set_pace(0, pace);
        let over = AtomicBool::new(false);
        std::thread::scope(|s| {
            s.spawn(|| count(ledger, &over));
            let _end = Over(&over);
            std::thread::sleep(Duration::from_millis(2500));
            // As it was when it was whole: it may just be drawn anew.
            let seen = RefCell::new(String::new());
            tty.wait_until("the rates are there", |tty| {
                let text = tty.text();
                let parts = ["GB/s in, ", "link busy", " ms a second"];
                let is_whole = parts.iter().all(|p| text.contains(p))
                    && (text.contains("a step of 20 ms uses") || text.contains("per step"));
                seen.replace(text);
                is_whole
            });
            let text = seen.into_inner();
            // One more or less falls into the window; and others use the processor, too.
            let share = number_before(&text, " % of the time");
            assert!((0.5..=2.2).contains(&share), "{text}");
            let wait = number_before(&text, " ms a second");
            assert!((10.0..=44.0).contains(&wait), "{text}");
            assert!(text.contains("about 0 of each 20 ms"), "{text}");
            let in_columns = text.contains("per step") && text.contains("24.0 MiB");
            let in_words = text.contains("a step of 20 ms uses 64.0 MiB VRAM, 24.0 MiB RAM");
            assert!(
                in_columns == (columns == 200) && in_words != in_columns,
                "{text}"
            );
            // The link carries 63 GB/s.
            assert_eq!(text.contains("named GB/s"), columns == 200, "{text}");
            assert!(columns != 200 || text.contains(" 63.0 "), "{text}");
            let lines: Vec<&str> = text.lines().collect();
            let start = lines.iter().rposition(|l| l.starts_with("greenboost "));
            let is_short = |l: &&str| l.chars().count() < columns.into();
            assert!(lines[start.unwrap()..].iter().all(is_short), "{text}");
            let mut top = env.greenboost(["top"]);
            simulated(&env, &mut top);
            let text = stdout(&expect(&mut top, 0));
            assert!(text.contains("GB/s in, "), "{text}");
            assert!(text.contains("moved in"), "{text}");
        });
        drop(place);
        std::thread::sleep(Duration::from_millis(2500));
        tty.wait_until("it has calmed down", |tty| {
            let text = tty.text();
            text.contains(" out so far") && text.contains("launches waited ")
        });
        fs::write(env.file("go"), "").unwrap();
        assert_eq!(tty.end().code(), Some(0));
        let text = tty.text();
        for part in [
            "GPU 0: moved ",
            " % of the time\n",
            "GPU 0: operations named ",
            "GPU 0: launches waited ",
        ] {
            assert!(text.contains(part), "{part}:\n{text}");
        }
        in_the_records(&env);
    }
}

fn in_the_records(env: &TestEnv) {
    let all = records(&fs::read_to_string(env.file("records")).unwrap());
    let mut rated = 0;
    for record in all.iter().filter(|r| r["type"] == "snapshot") {
        let device = &record["devices"][0];
        let Some(read) = device["host_named_per_second"].as_u64() else {
            continue;
        };
        assert!(read <= device["pcie_rate"].as_u64().unwrap(), "{device}");
        if device["promoted_per_second"].as_u64() > Some(0) {
            rated += 1;
            assert!(
                device["promoted_per_second"].as_u64() <= Some(260_000_000),
                "{device}"
            );
            assert!(device["moving"].as_f64().unwrap() <= 0.026, "{device}");
        }
    }
    assert!(rated >= 2, "no rates:\n{all:#?}");
    let device = &all.last().unwrap()["devices"][0];
    let steps = device["promotions"].as_u64().unwrap();
    assert!(steps > 5);
    assert_eq!(device["promoted_bytes"], steps * 10_000_000);
    assert_eq!(device["move_seconds"], steps as f64 / 1e3);
    assert_eq!(device["wait_seconds"], (2 * steps) as f64 / 1e3);
    assert!(device["promoted_per_second"].is_null(), "only in snapshots");
}

/// The kept figures of host RAM, as a machine with many memory channels has them: this one may be anything.
fn fast_memory(env: &TestEnv) {
    let files = fs::read_dir(env.home().join(".cache/greenboost/probe")).unwrap();
    let mut found = 0;
    for file in files {
        let file = file.unwrap().path();
        let mut kept: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
        for figure in kept["section"]["figures"].as_array_mut().unwrap() {
            if figure["id"] == "read.all" {
                figure["value"] = 2e10.into();
                found += 1;
            }
        }
        fs::write(&file, kept.to_string()).unwrap();
    }
    assert_eq!(found, 1);
}

/// llama.cpp can keep layers on the CPU itself. What the probe found of this machine, whose simulated link is slow, says
/// that it should.
#[test]
fn layers_on_the_cpu() {
    let env = TestEnv::new();
    let llama = env.file("llama-cli");
    fs::rename(actor(&env), &llama).unwrap();
    model(&env, 120_000_000);
    let run = || {
        let mut command = env.greenboost(["run", "--vram-limit", "64M", "--ram-limit", "256M"]);
        command.args(["--json", "records", "--"]).arg(&llama);
        command.args(["-m", "m.gguf", "cuda", "alloc:48", "alloc:48", "wait:300"]);
        simulated(&env, &mut command);
        stderr(&expect(&mut command, 0))
    };
    let said = run();
    let file = fs::canonicalize(env.file("m.gguf")).unwrap();
    let probing = format!(
        "layers on the CPU (a smaller -ngl) may be faster than spilling: greenboost probe --model {} says whether",
        file.display()
    );
    assert!(said.contains(&probing), "{said}");
    expect(&mut probe(&env, &["--only", "link", "--quick"]), 0);
    let said = run();
    assert!(
        said.contains("greenboost probe --only ram --model "),
        "{said}"
    );
    expect(&mut probe(&env, &["--only", "ram", "--quick"]), 0);
    fast_memory(&env);
    let said = run();
    assert!(
        said.contains(
            "layers on the CPU would be faster here, as greenboost probe measured it: decode "
        ),
        "{said}"
    );
    let times = number_before(&said, " times (");
    assert!(times > 1.5, "{said}");
    let records = records(&fs::read_to_string(env.file("records")).unwrap());
    let advice = records.last().unwrap()["advice"].as_array().unwrap();
    assert!(
        advice.iter().any(|a| a.as_str().unwrap().contains("-ngl")),
        "{advice:?}"
    );
    // Another program that spills as much hears nothing of it.
    fs::rename(&llama, env.file("other")).unwrap();
    let mut command = env.greenboost(["run", "--vram-limit", "64M", "--ram-limit", "256M", "--"]);
    command
        .arg(env.file("other"))
        .args(["-m", "m.gguf", "cuda", "alloc:48", "alloc:48"]);
    simulated(&env, &mut command);
    let said = stderr(&expect(&mut command, 0));
    assert!(
        said.contains("1 spilled") && !said.contains("-ngl"),
        "{said}"
    );
}
