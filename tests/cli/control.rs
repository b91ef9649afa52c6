//! `limit` and `park`: what is asked of a running job from another terminal.
//!
//! Where the answer of a process is what matters the test itself is one: it has a seat in the job's ledger.

use std::fs;
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use greenboost_wire::LEDGER_FILE;
use greenboost_wire::ledger::{
    DeviceFacts, Ledger, Mapped, OBSTACLES, Obstacle, Place, Tier, VramLimit,
};
use serde_json::Value;

use crate::environment::{GREENBOOST, TestEnv, expect, stderr, stdout};
use crate::json::records;
use crate::tty::{actor, simulated};

const MIB: u64 = 1 << 20;

/// A running job whose program does as it is told.
struct Job<'a> {
    env: &'a TestEnv,
    launcher: Child,
}

impl<'a> Job<'a> {
    /// A VRAM limit of 64 MiB and a RAM limit of 256 MiB; `words` come before `tell:there`.
    fn start(env: &'a TestEnv, options: &[&str], words: &[&str], then: &[&str]) -> Job<'a> {
        let actor = actor(env);
        let mut command = env.greenboost(["run", "--vram-limit", "64M", "--ram-limit", "256M"]);
        command.args(["--json", "records"]).args(options).arg("--");
        command.arg(actor).args(words).arg("tell:there").args(then);
        simulated(env, &mut command);
        let launcher = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let job = Job { env, launcher };
        wait_until("it runs", || env.file("there").exists());
        job
    }

    fn word(&self) -> String {
        self.launcher.id().to_string()
    }

    fn ledger(&self) -> &'static Ledger {
        ledger(self.env)
    }

    /// `greenboost COMMAND JOB OPTIONS`: what it printed.
    #[track_caller]
    fn ask(&self, command: &str, options: &[&str], status: i32) -> String {
        let mut asking = self.env.greenboost([command]);
        asking.arg(self.word()).args(options);
        let output = expect(&mut asking, status);
        stdout(&output) + &stderr(&output)
    }

    /// Waits for a record of the launcher.
    #[track_caller]
    fn told(&self, kind: &str) {
        wait_until(kind, || {
            let text = fs::read_to_string(self.env.file("records")).unwrap();
            text.contains(&format!("\"type\":\"{kind}\""))
        });
    }

    /// What the program and its launcher said until the end.
    fn finish(self) -> String {
        fs::write(self.env.file("go"), "").unwrap();
        let output = self.launcher.wait_with_output().unwrap();
        stdout(&output) + &stderr(&output)
    }
}

#[track_caller]
fn wait_until(what: &str, is_so: impl Fn() -> bool) {
    let until = Instant::now() + Duration::from_secs(30);
    while !is_so() {
        assert!(Instant::now() < until, "not so: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The ledger of the only job that runs.
pub fn ledger(env: &TestEnv) -> &'static Ledger {
    let mut dirs = fs::read_dir(env.runtime()).unwrap().flatten();
    let file = dirs.next().unwrap().path().join(LEDGER_FILE);
    Box::leak(Box::new(Mapped::open(&file).unwrap()))
}

/// A process of the job on a device of 128 MiB, with so many bytes in VRAM and on Host.
fn member(ledger: &'static Ledger, vram: u64, host: u64) -> Place {
    let place = Place::take(ledger).unwrap();
    let facts = || DeviceFacts {
        total: 128 * MIB,
        vram_limit: ledger.settings().vram_limit.of(128 * MIB).unwrap(),
    };
    let device = ledger.device_index([7; 16], facts).unwrap();
    place.reserve(Tier::Vram, device, vram).unwrap();
    place.reserve(Tier::Host, device, host).unwrap();
    place
}

const NONE: [[u64; OBSTACLES]; 2] = [[0; OBSTACLES]; 2];

fn obstacle(why: Obstacle, bytes: u64) -> [[u64; OBSTACLES]; 2] {
    let mut all = NONE;
    all[Tier::Vram as usize][why as usize] = bytes;
    all
}

/// Waits for what is asked after `seen`, and does this then.
fn when_asked(ledger: &'static Ledger, seen: u32, act: impl FnOnce(u32)) {
    wait_until("something is asked", || {
        ledger.wait_for_change(seen, Duration::from_millis(100));
        ledger.changes() != seen
    });
    act(ledger.changes());
}

#[test]
fn limits_of_a_program_that_moves_nothing() {
    let env = TestEnv::new();
    let words = ["cuda", "alloc:16", "alloc:16", "alloc:16", "wait:600"];
    let then = ["until:more", "alloc:8", "tell:got", "until:go"];
    let job = Job::start(&env, &["--placement", "first-fit"], &words, &then);
    let began = Instant::now();
    let said = job.ask("limit", &["--vram", "32M"], 1);
    assert!(began.elapsed() < Duration::from_secs(10), "it waited");
    let lines: Vec<&str> = said.lines().collect();
    assert!(
        lines[0].starts_with("VRAM limit 32.0 MiB (was 64.0 MiB): 48.0 MiB held after ")
            && lines[0].ends_with(", 16.0 MiB too much"),
        "{said}"
    );
    assert_eq!(
        lines[1],
        "the job runs with --placement first-fit, so nothing moves; new allocations keep to it"
    );
    fs::write(env.file("more"), "").unwrap();
    wait_until("it has more", || env.file("got").exists());
    let list = expect(&mut env.greenboost(["ps", "--json"]), 0);
    let list: Value = serde_json::from_slice(&list.stdout).unwrap();
    let device = &list["jobs"][0]["memory"]["devices"][0];
    let held = [
        &device["vram_bytes"],
        &device["host_bytes"],
        &device["vram_limit"],
    ];
    assert_eq!(
        held.map(|h| h.as_u64().unwrap() / MIB),
        [48, 8, 32],
        "{device}"
    );
    let said = job.ask("park", &[], 125);
    assert!(said.contains("--placement first-fit"), "{said}");
    let said = job.finish();
    assert!(
        said.contains("the VRAM limit of GPU 0 is 32.0 MiB now, it was 64.0 MiB; 16.0 MiB more"),
        "{said}"
    );
    assert!(said.contains("ended with status 0"), "{said}");
}

#[test]
fn wider_limits_are_used_at_once() {
    let env = TestEnv::new();
    let words = ["cuda", "alloc:60", "wait:600"];
    let then = [
        "until:more",
        "alloc:30",
        "tell:got",
        "until:less",
        "alloc:100",
    ];
    let job = Job::start(&env, &[], &words, &then);
    let said = job.ask("limit", &["--vram", "75%"], 0);
    assert!(
        said.starts_with("VRAM limit 96.0 MiB (was 64.0 MiB): 60.0 MiB held after 0.0 s\n"),
        "{said}"
    );
    fs::write(env.file("more"), "").unwrap();
    wait_until("it has more", || env.file("got").exists());
    let ledger = job.ledger();
    assert_eq!(ledger.used(Tier::Vram, 0), 90 * MIB);
    assert_eq!(ledger.settings().vram_limit, VramLimit::Share(7_500));
    let said = job.ask("limit", &["--ram", "20M", "--json"], 0);
    let document: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(document["budgets"][0]["tier"], "ram");
    assert_eq!(document["budgets"][0]["before"], 256 * MIB);
    assert_eq!(
        (&document["within"], &document["v"]),
        (&true.into(), &1.into())
    );
    // What no longer fits under either is out of memory.
    fs::write(env.file("less"), "").unwrap();
    let said = job.finish();
    assert!(said.contains("cuMemAlloc: error 2"), "{said}");
    assert!(
        said.contains("the RAM limit is 20.0 MiB now, it was 256.0 MiB"),
        "{said}"
    );
}

#[test]
fn it_waits_until_the_processes_have_done_it() {
    let env = TestEnv::new();
    let job = Job::start(&env, &[], &[], &["until:go"]);
    let ledger = job.ledger();
    let place = member(ledger, 40 * MIB, 20 * MIB);
    let seen = ledger.changes();
    std::thread::scope(|s| {
        s.spawn(|| {
            when_asked(ledger, seen, |change| {
                std::thread::sleep(Duration::from_millis(400));
                place.release(Tier::Vram, 0, 30 * MIB);
                place.answer(change, NONE);
            });
        });
        let said = job.ask("limit", &["--vram", "16M"], 0);
        let (line, time) = said.trim().rsplit_once(" after ").unwrap();
        assert_eq!(line, "VRAM limit 16.0 MiB (was 64.0 MiB): 10.0 MiB held");
        let seconds: f64 = time.trim_end_matches(" s").parse().unwrap();
        assert!((0.3..20.0).contains(&seconds), "{said}");
    });
    // It is given up at once when the process says that it cannot.
    place.reserve(Tier::Vram, 0, 6 * MIB).unwrap();
    let seen = ledger.changes();
    std::thread::scope(|s| {
        s.spawn(|| {
            when_asked(ledger, seen, |change| {
                place.answer(change, obstacle(Obstacle::Pinned, 8 * MIB))
            })
        });
        let began = Instant::now();
        let said = job.ask("limit", &["--vram", "8M"], 1);
        assert!(began.elapsed() < Duration::from_secs(20), "it waited");
        assert!(said.contains("16.0 MiB held"), "{said}");
        assert!(
            said.contains(
                "\n8.0 MiB cannot move: it is shared with others, or was placed by the driver; new"
            ),
            "{said}"
        );
    });
    // Nobody answers: it says so, and the limit stays.
    let said = job.ask("limit", &["--vram", "4M", "--timeout", "1"], 1);
    assert!(
        said.contains("\n1 process has not answered, and may still do it; "),
        "{said}"
    );
    assert_eq!(ledger.device(0).vram_limit(), 4 * MIB);
    // Host memory, where nothing has to go.
    let said = job.ask("limit", &["--ram", "20M", "--vram", "50%"], 0);
    assert!(
        said.contains("VRAM limit 64.0 MiB (was 4.0 MiB): 16.0 MiB held after 0.0 s\nRAM limit 20.0 MiB (was 256.0 MiB): 20.0 MiB held"),
        "{said}"
    );
    drop(place);
    job.finish();
}

#[test]
fn parked_until_it_is_used() {
    let env = TestEnv::new();
    let job = Job::start(&env, &[], &[], &["until:go"]);
    let ledger = job.ledger();
    assert!(
        job.ask("park", &[], 0)
            .starts_with("the job holds no memory of a GPU")
    );
    let place = member(ledger, 40 * MIB, 0);
    let seen = ledger.changes();
    std::thread::scope(|s| {
        s.spawn(|| {
            when_asked(ledger, seen, |change| {
                let request = ledger.park_requests();
                place.reserve(Tier::Host, 0, 38 * MIB).unwrap();
                place.release(Tier::Vram, 0, 38 * MIB);
                place.parked(request, obstacle(Obstacle::Pinned, 2 * MIB));
                place.answer(change, obstacle(Obstacle::Pinned, 2 * MIB));
            });
        });
        let said = job.ask("park", &[], 0);
        assert!(said.starts_with("parked after "), "{said}");
        assert!(
            said.contains(
                ": 38.0 MiB of 40.0 MiB of VRAM given back; the next use of the GPU wakes it\n"
            ),
            "{said}"
        );
        assert!(
            said.contains("what stays: 2.0 MiB cannot move: it is shared"),
            "{said}"
        );
    });
    job.told("parked");
    let top = stdout(&expect(&mut env.greenboost(["top"]), 0));
    assert!(top.contains("parked; "), "{top}");
    place.woken();
    job.told("woken");
    // Nobody does it.
    let said = job.ask("park", &["--timeout", "0", "--json"], 1);
    let document: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(document["parked"], false);
    assert_eq!(document["vram_bytes"], 2 * MIB);
    let said = job.ask("park", &["--timeout", "0"], 1);
    assert!(
        said.starts_with("not parked after 0.0 s: 2.0 MiB of VRAM are held; 1 process has"),
        "{said}"
    );
    job.ask("limit", &["--vram", "20M"], 0);
    job.told("limit");
    drop(place);
    let said = job.finish();
    assert!(
        said.contains("parked: 2.0 MiB in VRAM, 38.0 MiB in host RAM; the next"),
        "{said}"
    );
    assert!(said.contains("awake: it uses the GPU again"), "{said}");
    are_documented(&env.file("records"));
}

/// The records of what was asked, as src/json.md has them.
fn are_documented(file: &Path) {
    let documented = crate::schema::documented();
    let all = records(&fs::read_to_string(file).unwrap());
    for kind in ["limit", "parked", "woken"] {
        let record = all.iter().find(|r| r["type"] == kind).unwrap();
        for field in record.as_object().unwrap().keys() {
            let is_common = ["v", "type", "t", "device"].contains(&field.as_str());
            assert!(
                is_common || documented[kind].contains(field),
                "{kind}: {field}"
            );
        }
    }
}

/// The real thing: what is held above a new limit goes down while the program runs, comes back when it may, and is what it
/// was.
#[test]
fn what_is_held_goes_down_and_comes_back() {
    let env = TestEnv::new();
    let words = ["cuda", "alloc:16", "alloc:16", "alloc:16", "fill:40"];
    let then = [
        "until:one",
        "check:40",
        "tell:checked",
        "until:go",
        "check:40",
    ];
    let job = Job::start(&env, &[], &words, &then);
    let ledger = job.ledger();
    assert_eq!(ledger.used(Tier::Vram, 0), 48 * MIB);
    let said = job.ask("limit", &["--vram", "20M"], 0);
    assert!(
        said.starts_with("VRAM limit 20.0 MiB (was 64.0 MiB): "),
        "{said}"
    );
    assert!(ledger.used(Tier::Vram, 0) <= 20 * MIB, "{said}");
    assert!(ledger.used_host() >= 28 * MIB, "{said}");
    fs::write(env.file("one"), "").unwrap();
    wait_until("it is all there", || env.file("checked").exists());
    assert!(ledger.used(Tier::Vram, 0) <= 20 * MIB);
    assert!(ledger.device(0).traffic.demoted_bytes.load(SeqCst) >= 28 * MIB);
    job.ask("limit", &["--vram", "64M"], 0);
    let said = job.finish();
    assert!(said.contains("ended with status 0"), "{said}");
    assert!(said.contains("GPU 0: moved "), "{said}");
}

#[test]
fn limits_change_under_load() {
    let env = TestEnv::new();
    let words = ["cuda", "alloc:16", "alloc:16", "alloc:16"];
    let job = Job::start(&env, &[], &words, &["use:go"]);
    let ledger = job.ledger();
    for round in 0..6 {
        let (limit, most) = [("20M", 20), ("64M", 64), ("34M", 34)][round % 3];
        let said = job.ask("limit", &["--vram", limit], 0);
        assert!(ledger.used(Tier::Vram, 0) <= most * MIB, "{said}");
    }
    let said = job.finish();
    assert!(said.contains("ended with status 0"), "{said}");
}

#[test]
fn a_parked_job_wakes_by_itself() {
    let env = TestEnv::new();
    let words = ["cuda", "alloc:16", "alloc:16", "alloc:16", "fill:70"];
    let then = [
        "until:one",
        "check:70",
        "fill:71",
        "tell:woken",
        "until:go",
        "check:71",
    ];
    let job = Job::start(&env, &[], &words, &then);
    let ledger = job.ledger();
    let said = job.ask("park", &[], 0);
    assert!(
        said.contains(": 48.0 MiB of 48.0 MiB of VRAM given back; "),
        "{said}"
    );
    assert_eq!(ledger.used(Tier::Vram, 0), 0);
    job.told("parked");
    fs::write(env.file("one"), "").unwrap();
    wait_until("it uses the GPU", || env.file("woken").exists());
    let is_asleep = || ledger.answers().iter().any(|a| a.is_asleep);
    wait_until("it is awake", || !is_asleep());
    job.told("woken");
    let said = job.finish();
    assert!(said.contains("ended with status 0"), "{said}");
    assert!(
        said.contains("\ngreenboost: parked: 0 B in VRAM, 48.0 MiB"),
        "{said}"
    );
    assert!(said.contains("\ngreenboost: awake: "), "{said}");
}

#[test]
fn from_inside_they_only_become_narrower() {
    let env = TestEnv::new();
    let script = format!(
        "until {GREENBOOST} ps | grep -q $PPID; do :; done; for limit in '--vram 128M' '--ram 512M' '--vram 90%' '--ram 100M --vram 8M'; do \
         {GREENBOOST} limit $PPID $limit; echo \"status $?\"; done; {GREENBOOST} ps --json"
    );
    let mut command = env.greenboost(["run", "--stats", "off", "--vram-limit", "64M"]);
    command.args(["--ram-limit", "256M", "--", "sh", "-c", &script]);
    let output = expect(&mut command, 0);
    let said = stderr(&output);
    assert_eq!(
        said.matches("can only be made narrower").count(),
        3,
        "{said}"
    );
    assert!(said.contains("--ram: from inside a job"), "{said}");
    let said = stdout(&output);
    assert_eq!(said.matches("status 125").count(), 3, "{said}");
    assert!(
        said.contains("VRAM limit 8.0 MiB: the job uses no GPU yet\nRAM limit 100.0 MiB (was"),
        "{said}"
    );
    assert!(said.contains("\"ram_limit\":104857600"), "{said}");
    // A job of its own may be given anything.
    let job = Job::start(&env, &[], &[], &["until:go"]);
    let mut other = env.run_script(&format!("{GREENBOOST} limit {} --vram 1G", job.word()));
    let said = stdout(&expect(other.args::<_, &str>([]), 0));
    assert!(said.contains("VRAM limit 1.0 GiB"), "{said}");
    job.finish();
}

#[test]
fn what_cannot_be_asked_is_said() {
    let env = TestEnv::new();
    let job = Job::start(&env, &["--spill", "off"], &[], &["until:go"]);
    for (words, sentence) in [
        (
            &["limit", "nobody", "--vram", "1G"][..],
            "no running job is called 'nobody'",
        ),
        (
            &["park", "1"],
            "no running job is called '1' or has that process",
        ),
        (
            &["limit", &job.word(), "--ram", "1G"],
            "--ram: the job runs with --spill off",
        ),
        (
            &["park", &job.word()],
            "with --spill off, so nothing of it can go to host RAM",
        ),
        (
            &["limit", &job.word(), "--vram", "lots"],
            "--vram: 'lots' is not a size",
        ),
        (
            &["limit", &job.word()],
            "required arguments were not provided",
        ),
        (
            &["limit", "--vram", "1G"],
            "required arguments were not provided",
        ),
    ] {
        let output = expect(&mut env.greenboost(words), 125);
        assert!(stderr(&output).contains(sentence), "{}", stderr(&output));
        assert!(output.stdout.is_empty());
    }
    job.finish();
}
