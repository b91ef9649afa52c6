//! A run inside a run is part of the outer job.

use crate::environment::{GREENBOOST, TestEnv, expect, stderr, stdout};

#[test]
fn one_job_one_summary() {
    let env = TestEnv::new();
    let script = format!(
        "echo $GREENBOOST_JOB $LD_PRELOAD; {GREENBOOST} run -- sh -c 'echo $GREENBOOST_JOB $LD_PRELOAD; exit 8'"
    );
    let output = expect(&mut env.run_script(&script), 8);
    let said = stdout(&output);
    let lines: Vec<_> = said.lines().collect();
    assert_eq!(lines.len(), 2);
    assert_eq!(lines[0], lines[1], "the same job, preloaded once");
    assert_eq!(
        stderr(&output).matches("ended with status").count(),
        1,
        "{}",
        stderr(&output)
    );
}

#[test]
fn what_it_cannot_do_is_said() {
    let env = TestEnv::new();
    let mut command = env.greenboost(["run", "--vram-limit", "8G", "--staging", "auto", "--"]);
    command.args([GREENBOOST, "run", "--vram-limit", "4G", "--json", "x"]);
    command.args(["--staging", "off", "true"]);
    let said = stderr(&expect(&mut command, 0));
    assert!(
        said.contains("--vram-limit and --staging off cannot narrow them here"),
        "{said}"
    );
    assert!(said.contains("--json has no effect"), "{said}");
    assert!(!env.file("x").exists());
}

#[test]
fn a_dead_job_is_not_joined() {
    let env = TestEnv::new();
    let mut command = env.run_script("echo $GREENBOOST_JOB");
    let output = expect(command.env("GREENBOOST_JOB", env.file("gone")), 0);
    assert!(stdout(&output).starts_with(env.runtime().to_str().unwrap()));

    // Its launcher was killed, so that its directory stayed.
    let mut command = env.run_script("kill -9 $PPID; sleep 0.1");
    command.status().unwrap();
    let left = std::fs::read_dir(env.runtime()).unwrap().next().unwrap();
    let left = left.unwrap().path();
    assert!(left.join("ledger").exists());
    let mut command = env.run_script("echo $GREENBOOST_JOB");
    let output = expect(command.env("GREENBOOST_JOB", &left), 0);
    assert_ne!(stdout(&output).trim(), left.to_str().unwrap());
}
