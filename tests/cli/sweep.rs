//! What a killed launcher leaves behind: the next one removes it, once nobody needs it.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::environment::{TestEnv, expect};

fn jobs(env: &TestEnv) -> Vec<PathBuf> {
    let entries = fs::read_dir(env.runtime()).unwrap();
    entries.map(|e| e.unwrap().path()).collect()
}

#[test]
fn swept_by_the_next_run() {
    let env = TestEnv::new();
    env.run_script("kill -9 $PPID; exec sleep 0.01")
        .status()
        .unwrap();
    let left = jobs(&env);
    assert_eq!(left.len(), 1);
    let until = Instant::now() + Duration::from_secs(10);
    loop {
        // The program may still be ending.
        expect(&mut env.greenboost(["run", "true"]), 0);
        if jobs(&env).is_empty() {
            break;
        }
        assert!(Instant::now() < until, "{:?}", jobs(&env));
    }
}

#[test]
fn not_while_its_program_lives() {
    let env = TestEnv::new();
    let go = env.file("go");
    let script = "kill -9 $PPID; until [ -e go ]; do sleep 0.02; done; ls $GREENBOOST_JOB >listed; touch over";
    env.run_script(script).status().unwrap();
    let left = jobs(&env);
    expect(&mut env.greenboost(["run", "true"]), 0);
    assert_eq!(jobs(&env), left, "its children still look for the ledger");
    fs::write(&go, "").unwrap();
    let until = Instant::now() + Duration::from_secs(10);
    while !env.file("over").exists() && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(
        fs::read_to_string(env.file("listed"))
            .unwrap()
            .contains("ledger")
    );
}

#[test]
fn not_a_living_launchers_and_not_somebody_elses() {
    let env = TestEnv::new();
    let strange = env.runtime().join("greenboost-1-00000000");
    fs::create_dir(&strange).unwrap();
    fs::write(env.runtime().join("greenboost-file"), "").unwrap();
    // The inner run is a job of its own, because it does not know of the outer one.
    let script = format!(
        "env -u GREENBOOST_JOB {} run --stats off true; ls $GREENBOOST_JOB >/dev/null",
        crate::environment::GREENBOOST
    );
    expect(&mut env.run_script(&script), 0);
    assert!(strange.exists());
    assert_eq!(jobs(&env).len(), 2);
}
