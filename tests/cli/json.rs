//! The record stream.

use std::fs;

use serde_json::Value;

use crate::environment::{GREENBOOST, TestEnv, expect, stderr};

pub fn records(text: &str) -> Vec<Value> {
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{line}: {e}")))
        .inspect(|r: &Value| assert_eq!(r["v"], 1))
        .collect()
}

#[test]
fn into_a_file() {
    let env = TestEnv::new();
    let file = env.file("records");
    let mut command =
        env.greenboost(["run", "--vram-limit", "50%", "--ram-limit", "64M", "--json"]);
    command.arg(&file).args(["--", "sh", "-c", "exit 5"]);
    expect(&mut command, 5);
    let records = records(&fs::read_to_string(file).unwrap());
    let types: Vec<_> = records
        .iter()
        .map(|r| r["type"].as_str().unwrap())
        .collect();
    assert_eq!(types, ["start", "summary"]);
    let (start, summary) = (&records[0], &records[1]);
    assert_eq!(start["command"], serde_json::json!(["sh", "-c", "exit 5"]));
    assert_eq!(start["vram_limit_percent"], 50.0);
    assert_eq!(start["vram_limit"], Value::Null);
    assert_eq!(start["ram_limit"], 64 << 20);
    assert_eq!(summary["exit_code"], 5);
    assert_eq!(summary["signal"], Value::Null);
    assert_eq!(summary["used_cuda"], false);
    assert!(summary["t"].as_f64().unwrap() >= 0.0);
}

#[test]
fn into_a_descriptor_that_the_program_does_not_get() {
    let env = TestEnv::new();
    let file = env.file("records");
    let script = format!(
        "exec {GREENBOOST} run --json fd:7 -- sh -c 'test -e /proc/$$/fd/7 && echo inherited >&2; kill -9 $$' 7>{}",
        file.display()
    );
    let output = expect(env.program("sh").args(["-c", &script]), 137);
    assert!(
        !stderr(&output).contains("inherited"),
        "{}",
        stderr(&output)
    );
    let records = records(&fs::read_to_string(file).unwrap());
    assert_eq!(records.last().unwrap()["signal"], 9);
}

#[test]
fn a_sink_that_fails_harms_nobody() {
    let env = TestEnv::new();
    let output = expect(
        &mut env.greenboost(["run", "--json", "/dev/full", "sh", "-c", "exit 4"]),
        4,
    );
    let said = stderr(&output);
    assert_eq!(
        said.matches("--json: no further records").count(),
        1,
        "{said}"
    );

    // A reader that has gone away.
    let script = format!(
        "exec 4>&1; {{ {GREENBOOST} run --json fd:3 sh -c 'sleep 0.2; exit 4' 3>&1 >&4 4>&-; echo $? >&4; }} | true"
    );

    let output = env.program("sh").args(["-c", &script]).output().unwrap();
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "4\n",
        "{}",
        stderr(&output)
    );
}
