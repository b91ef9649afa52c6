//! The limits are exact, and every query tells one story.

use std::time::Duration;

use greenboost_wire::ledger::{Part, Tier};
use greenboost_wire::record::Kind;

use crate::harness::{Job, MIB, Run, run};

/// PITFALLS 13: many processes and threads under one limit; at no moment is the sum above it.
#[test]
fn p13_shared_limit_is_exact() {
    let one = |seed: u64| {
        run("share", &[&seed.to_string(), "3", "60", "9"])
            .vram(24)
            .ram(32)
    };
    let job = one(0).job();
    let mut all: Vec<_> = (1..=6).map(|seed| one(seed).start_in(&job)).collect();
    let mut seen = 0;
    while all.iter_mut().any(|r| r.is_running()) {
        let (vram, host) = job.held();
        assert!(vram <= 24 * MIB, "{vram} bytes of VRAM held");
        assert!(host <= 32 * MIB, "{host} bytes of host memory held");
        seen = seen.max(vram + host);
        std::thread::sleep(Duration::from_micros(300));
    }
    for r in all {
        r.wait();
    }
    assert!(
        seen > 40 * MIB,
        "the limits were never tried: {seen} bytes at most"
    );
    job.demand_sane_and_empty();
}

/// The same on a card that is itself too small, shared by processes that do not know of each other's bytes.
#[test]
fn p13_shared_card_is_too_small() {
    let board = tempfile::NamedTempFile::new().unwrap();
    let one = |seed: u64| {
        run("share", &[&seed.to_string(), "2", "40", "9"])
            .vram(400)
            .ram(64)
            .card(30)
            .env("FAKE_CUDA_SHARED", board.path())
    };
    let job = one(0).job();
    let all: Vec<_> = (1..=4).map(|seed| one(seed).start_in(&job)).collect();
    for r in all {
        r.wait();
    }
    job.demand_sane_and_empty();
}

/// Takes everything, several times over: the same number of pieces each time, out of memory in between.
#[test]
fn p15_exhausted_again_and_again() {
    for (vram, ram, piece) in [
        (16, 48, 3 << 20),
        (16, 48, (2 << 20) + 1),
        (8, 24, 100_000),
        (33, 9, 5 << 20),
    ] {
        let outcome = run("memory", &["exhaust", &piece.to_string()])
            .vram(vram)
            .ram(ram)
            .shimmed();
        assert!(outcome.said(Kind::OutOfMemory) > 0, "nobody was told");
        let counts = outcome.notes("pieces")[0];
        let first: u64 = counts[1..].split(',').next().unwrap().parse().unwrap();
        let rounded = |granule: u64| (piece as u64).next_multiple_of(granule);
        let budget = (vram + ram) * MIB;
        assert!(
            first * piece as u64 <= budget,
            "{first} pieces of {piece} in {budget} bytes"
        );
        // Large pieces come in whole granules of 2 MiB per tier; small ones share.
        let least = if piece as u64 >= 2 * MIB {
            budget / rounded(2 * MIB) - 2
        } else {
            budget / rounded(512) * 3 / 4
        };
        assert!(
            first >= least,
            "only {first} pieces of {piece} in {budget} bytes; {least} should fit"
        );
    }
}

/// `--spill off`: out of VRAM is out of memory.
#[test]
fn p36_no_spill() {
    let outcome = run("memory", &["exhaust", "3000000"])
        .vram(16)
        .no_spill()
        .shimmed();
    let counts = outcome.notes("pieces")[0];
    let first: u64 = counts[1..].split(',').next().unwrap().parse().unwrap();
    assert!((3..=5).contains(&first), "{first} pieces of 3 MB in 16 MiB");
}

/// Frees give back what was taken: after a hundred rounds no more is held than after five.
#[test]
fn p15_nothing_leaks() {
    let held_after = |rounds: &str| {
        let r = run("memory", &["cycles", rounds]);
        let job = r.job();
        let mut live = r.start_in(&job);
        live.until("freed");
        let held = job.held();
        live.tell("end");
        live.wait();
        job.demand_sane_and_empty();
        held
    };
    let (few, many) = (held_after("5"), held_after("60"));
    assert_eq!(few, many, "held after 5 rounds and after 60");
}

fn story(r: Run) -> Vec<[u64; 3]> {
    let outcome = r.shimmed();
    ["start", "ten", "forty", "end"]
        .iter()
        .map(|when| {
            let line = outcome.notes(when)[0];
            let numbers: Vec<u64> = line.split(' ').map(|n| n.parse().unwrap()).collect();
            [numbers[0], numbers[1], numbers[2]]
        })
        .collect()
}

/// PITFALLS 16 and 17: what is free and what there is, in both modes of reporting.
#[test]
fn p16_p17_memory_info() {
    for (r, budget) in [
        (run("memory", &["info"]).vram(16).ram(64), 80 * MIB),
        (
            run("memory", &["info"]).vram(16).ram(64).physical(),
            16 * MIB,
        ),
        (
            run("memory", &["info"]).vram(16).ram(64).no_spill(),
            16 * MIB,
        ),
    ] {
        let label = r.to_string();
        // Without a spill the 40 MiB do not fit; the victim would fail.
        if label.contains("spill: false") {
            continue;
        }
        let [start, ten, forty, end]: [[u64; 3]; 4] = story(r).try_into().unwrap();
        for [free, total, device_total] in [start, ten, forty, end] {
            assert_eq!(total, budget, "{label}: total");
            assert_eq!(device_total, budget, "{label}: cuDeviceTotalMem");
            assert!(free <= total, "{label}: {free} free of {total}");
        }
        assert!(
            start[0] > ten[0] || ten[0] == 0,
            "{label}: an allocation is not seen"
        );
        assert!(ten[0] >= forty[0], "{label}: free grows by allocating");
        assert!(end[0] >= ten[0], "{label}: a free is not seen");
    }
}

/// The RAM limit holds over several devices together.
#[test]
fn ram_limit_over_devices() {
    let r = run("memory", &["devices"])
        .env("FAKE_CUDA_DEVICES", "3")
        .vram(4)
        .ram(26);
    let job = r.job();
    r.start_in(&job).wait();
    job.demand_sane_and_empty();
    assert_eq!(job.ledger.devices().count(), 3);
    let host: u64 = job
        .ledger
        .devices()
        .map(|(i, _)| job.ledger.used(Tier::Host, i))
        .sum();
    assert_eq!(host, 0);
}

/// What is held of one kind.
fn held_as(job: &Job, part: Option<Part>) -> u64 {
    match part {
        None => job.held().0,
        Some(part) => job
            .ledger
            .devices()
            .map(|(i, _)| job.ledger.part(part, i))
            .sum(),
    }
}

/// Walks a victim through its stages and reads what is held in each: in VRAM, or of a part.
fn stages(what: &str, part: Option<Part>) -> Vec<(String, u64)> {
    let r = run("counted", &[what]).vram(64);
    let r = match what {
        // It frees twice, and tries the shim's ranges with the program's calls and the reverse.
        "async" => r.misuses("free").env("FAKE_CUDA_POOL_GRANULE", "2m"),
        "vmm" => r.misuses("free").misuses("unmap"),
        "array" => r.misuses("destroy of array"),
        "managed" => r.misuses("which is no allocation"),
        "pinned" | "registered" => r.misuses("of host memory"),
        _ => r,
    };
    let plain = {
        let mut live = r.clone().card(4096).start_plain();
        for _ in 0..9 {
            live.say_on();
        }
        live.wait()
    };
    let job = r.job();
    let mut live = r.start_in(&job);
    let mut all = Vec::new();
    while let Some(stage) = live.next_line("stage ", all.len()) {
        all.push((stage.clone(), held_as(&job, part)));
        live.tell("on");
        if stage == "end" {
            break;
        }
    }
    let outcome = live.wait();
    r.compare(&plain, &outcome);
    job.demand_sane_and_empty();
    all
}

fn demand_stages(what: &str, piece: u64) {
    demand_stages_of(what, None, piece);
}

/// After each stage so much is held: of a part exactly; of VRAM with what the shim keeps for reuse.
fn demand_stages_of(what: &str, part: Option<Part>, piece: u64) {
    let all = stages(what, part);
    let start = all[0].1;
    let slack = if part.is_none() { 4 * MIB } else { piece / 4 };
    for (stage, held) in &all {
        let pieces = match stage.split(' ').next() {
            Some("three") => 3,
            Some("two") => 2,
            _ => 0,
        };
        let expected = start + pieces * piece;
        // What the shim keeps for reuse is held too.
        // That includes the range that was freed in stream order, at the end.
        let kept = if what == "async" && stage == "end" {
            6
        } else {
            4
        };
        assert!(
            (expected..=expected + slack.max(kept * MIB)).contains(held),
            "{what}, {stage}: {held} bytes held, {expected} expected; {all:?}"
        );
    }
}

/// PITFALLS 15 and 21: stream-ordered allocations are the driver's, counted, and no longer when freed by whichever call.
#[test]
fn p15_p21_async_is_counted() {
    demand_stages("async", 6 * MIB);
}

/// PITFALLS 15: a handle that was released but is still mapped is still held.
#[test]
fn p15_own_virtual_memory_is_counted() {
    demand_stages("vmm", 6 * MIB);
}

/// PITFALLS 29: arrays are counted, in VRAM and by name; mipmapped, layered and sparse ones as what they are.
#[test]
fn p29_arrays_are_counted() {
    demand_stages("array", 6 * MIB);
    demand_stages_of("array", Some(Part::Arrays), 6 * MIB);
    demand_stages("mipmap", 6 * MIB);
    demand_stages_of("mipmap", Some(Part::Arrays), 6 * MIB);
}

/// PITFALLS 29: variables of modules and of libraries, and the stacks of kernels, which no allocation call shows.
#[test]
fn p29_code_is_counted() {
    for what in ["module", "library", "limit"] {
        demand_stages(what, 6 * MIB);
        demand_stages_of(what, Some(Part::Code), 6 * MIB);
    }
}

/// A large variable is counted whole once it is known; another program that takes memory while a module is loaded is
/// mistaken for it within bounds.
#[test]
fn code_is_counted_within_bounds() {
    let known = |r: Run, meanwhile: Option<(Run, &Job)>| {
        let job = r.job();
        let mut live = r.start_in(&job);
        live.until("stage start");
        live.tell("on");
        let mut other = meanwhile.map(|(r, job)| r.start_in(job));
        if let Some(other) = &mut other {
            other.until("holding");
        }
        live.until("stage loaded");
        live.tell("on");
        live.until("stage known");
        let held = held_as(&job, Some(Part::Code));
        live.tell("on");
        live.say_on();
        live.wait();
        other
            .into_iter()
            .for_each(|mut o| (o.tell("end"), drop(o.wait())).1);
        job.demand_sane_and_empty();
        held
    };
    let bytes = 200 * MIB;
    let r = run("counted", &["variable", &bytes.to_string()]).slack(256);
    let held = known(r, None);
    assert!(
        (bytes..bytes + 3 * MIB).contains(&held),
        "{held} bytes of {bytes}"
    );

    let board = tempfile::NamedTempFile::new().unwrap();
    let stranger = run("life", &["hold", "314572800"])
        .vram(400)
        .env("FAKE_CUDA_SHARED", board.path());
    let other_job = stranger.job();
    let r = run("counted", &["variable", "4194304"])
        .slack(128)
        .env("FAKE_CUDA_SHARED", board.path())
        .env("FAKE_CUDA_BLOCK", "cuModuleLoadData:1:4000");
    let held = known(r, Some((stranger, &other_job)));
    assert!((4 * MIB..=68 * MIB).contains(&held), "{held} bytes");
}

/// What was counted in a context is no longer when it is gone, of every kind.
#[test]
fn contexts_end_what_is_counted() {
    for part in [Part::Code, Part::Managed, Part::Pinned] {
        demand_stages_of("context", Some(part), 6 * MIB);
    }
}

/// Managed and external memory is counted by name and until it is freed, and charged to no limit.
#[test]
fn what_is_counted_apart() {
    for (what, part) in [("managed", Part::Managed), ("external", Part::External)] {
        demand_stages_of(what, Some(part), 6 * MIB);
    }
    // Of VRAM it holds what it made, once, however often that is imported.
    let all = stages("external", None);
    let of = |stage: &str| all.iter().find(|(s, _)| s == stage).unwrap().1;
    assert_eq!(of("one made"), of("three held"), "{all:?}");
    let all = stages("managed", None);
    assert!(all.iter().all(|(_, held)| *held <= 4 * MIB), "{all:?}");
}

/// The program's own pinned memory is part of the host memory, by name and in the budget.
#[test]
fn p25_pinned_host_memory_is_counted() {
    for (what, part) in [("pinned", Part::Pinned), ("registered", Part::Registered)] {
        demand_stages_of(what, Some(part), 6 * MIB);
    }
}

/// Arrays go up to the VRAM limit and not beyond it, also when what is kept for reuse has to make room for them.
#[test]
fn p29_arrays_stay_within_the_limit() {
    let outcome = run("counted", &["array-limit"]).vram(16).shimmed();
    for round in 0..3 {
        assert_eq!(
            outcome.notes("round")[round],
            format!("{round}: 16 arrays, then 2")
        );
    }
    assert_eq!(outcome.said(Kind::OutOfMemory), 3);
}

/// PITFALLS 25: what the program pins is refused beyond the RAM limit, and what it spills shares that limit with it.
#[test]
fn p25_pinned_host_memory_stays_within_the_limit() {
    let outcome = run("counted", &["host-limit"]).vram(8).ram(48).shimmed();
    for round in 0..2 {
        let pieces: u64 = outcome.notes("round")[round]
            .split(' ')
            .nth(1)
            .unwrap()
            .parse()
            .unwrap();
        assert!(
            (46..=48).contains(&pieces),
            "{pieces} pieces of 1 MiB in 48"
        );
    }
    let said = |line: &str| outcome.stdout.lines().filter(|l| *l == line).count();
    assert_eq!(said("register: 2"), 2, "{}", outcome.stdout);
    assert_eq!(said("register: 0"), 2, "{}", outcome.stdout);
    assert_eq!(said("spill: false"), 2, "{}", outcome.stdout);
    // Without spilling there is no RAM budget, and the machine has plenty.
    let r = run("counted", &["pinned"])
        .no_spill()
        .misuses("of host memory");
    let job = r.job();
    let mut live = r.start_in(&job);
    (0..9).for_each(|_| live.say_on());
    live.wait();
    assert_eq!(job.held(), (0, 0));
}

/// PITFALLS 24: what spills is pinned in bounded pieces, and the machine is asked before each.
#[test]
fn p24_host_memory_comes_in_pieces() {
    let trace = tempfile::NamedTempFile::new().unwrap();
    let r = run("life", &["hold", "1073741824"])
        .ram(4096)
        .env("FAKE_CUDA_TRACE", trace.path());
    let job = r.job();
    let mut live = r.start_in(&job);
    live.until("holding");
    let calls = std::fs::read_to_string(trace.path()).unwrap();
    let made = calls
        .lines()
        .filter(|l| l.contains(" cuMemCreate 0"))
        .count();
    // Of at most 64 MiB each; two more are made when the device is tried out.
    assert!(made >= 16, "{made} pieces of 1 GiB");
    live.tell("end");
    live.wait();
}

/// A memory cgroup of its own, below ours; gone with this value.
struct Cgroup(std::path::PathBuf);

impl Cgroup {
    /// `None` where the system does not let us: no root, no delegation.
    fn create(limit: u64) -> Option<Cgroup> {
        let own = std::fs::read_to_string("/proc/self/cgroup").ok()?;
        let name = format!("greenboost-test-{}", std::process::id());
        for line in own.lines() {
            let fields: Vec<&str> = line.splitn(3, ':').collect();
            let (top, file) = match fields[1] {
                "" => ("/sys/fs/cgroup", "memory.max"),
                c if c.split(',').any(|c| c == "memory") => {
                    ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")
                }
                _ => continue,
            };
            // In a container our own path may not be visible; then the top is ours.
            for parent in [format!("{top}{}", fields[2]), top.to_string()] {
                let dir = std::path::Path::new(&parent).join(&name);
                if std::fs::create_dir(&dir).is_err() {
                    continue;
                }
                let group = Cgroup(dir.clone());
                if std::fs::write(dir.join(file), limit.to_string()).is_ok() {
                    return Some(group);
                }
            }
        }
        None
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(&self.0);
    }
}

/// PITFALLS 24 and 25 in a real cgroup: what is spilled and what the program pins stay within its limit, although the
/// kernel would charge neither; the program gets out of memory and is not killed.
#[test]
fn p24_p25_under_a_cgroup_limit() {
    const LIMIT: u64 = 400 * MIB;
    let Some(group) = Cgroup::create(LIMIT) else {
        println!("this system lets us make no cgroup");
        return;
    };
    let inside = |victim: &str, args: &str| {
        let program = crate::harness::bench().victims.join(victim);
        let procs = group.0.join("cgroup.procs");
        let script = format!(
            "echo $$ > {} && exec {} {args}",
            procs.display(),
            program.display()
        );
        run("/bin/sh", &["-c", &script]).vram(16).ram(16384)
    };
    let demand_refused = |outcome: &crate::harness::Outcome, bytes: u64| {
        assert!(bytes <= LIMIT, "{bytes} bytes under a limit of {LIMIT}");
        assert!(
            bytes >= LIMIT / 8,
            "only {bytes} bytes under a limit of {LIMIT}"
        );
        let cgroup = outcome.records.iter().any(|r| r.text.contains("cgroup"));
        assert!(cgroup, "nobody was told why: {:?}", outcome.records);
    };
    let outcome = inside("memory", "exhaust 3145728").shimmed();
    let counts = outcome.notes("pieces")[0];
    let first: u64 = counts[1..].split(',').next().unwrap().parse().unwrap();
    demand_refused(&outcome, (first * 3 * MIB).saturating_sub(16 * MIB));
    let outcome = inside("counted", "host-limit").shimmed();
    let first = outcome.notes("round")[0].split(' ').nth(1).unwrap();
    demand_refused(&outcome, first.parse::<u64>().unwrap() * MIB);
}

/// PITFALLS 16: NVML tells the same story as CUDA, in both versions, in both modes, also before CUDA is up.
#[test]
fn p16_nvml() {
    for r in [
        run("nvml", &["both"]).vram(16).ram(64),
        run("nvml", &["both"]).vram(16).ram(64).physical(),
    ] {
        let outcome = r.both();
        let numbers = |word: &str| -> Vec<u64> {
            outcome.notes(word)[0]
                .split(' ')
                .map(|n| n.parse().unwrap())
                .collect()
        };
        let budget = numbers("cuda-start")[0];
        for when in ["before", "start", "held", "end"] {
            let (one, two) = (
                numbers(&format!("nvml1-{when}")),
                numbers(&format!("nvml2-{when}")),
            );
            assert_eq!(one[0], budget, "{r}: {when}: total");
            assert_eq!(one[1] + one[2], one[0], "{r}: {when}: free and used");
            assert_eq!(two[0], budget, "{r}: {when}: total of v2");
            assert_eq!(
                two[1] + two[2] + two[3],
                two[0],
                "{r}: {when}: free, used and reserved"
            );
            if when != "before" {
                let cuda = numbers(&format!("cuda-{when}"));
                assert_eq!(
                    (cuda[0], cuda[1]),
                    (one[0], one[1]),
                    "{r}: {when}: two stories"
                );
            }
        }
    }
    // A program that never uses CUDA, as nvidia-smi.
    run("nvml", &["alone"]).both();
}

/// PITFALLS 16: in NVML's lists a process of the job holds what the job's story says, others what they hold.
#[test]
fn p16_nvml_processes() {
    let board = tempfile::NamedTempFile::new().unwrap();
    let r = |physical: bool| {
        let r = run("nvml", &["processes"])
            .vram(24)
            .ram(64)
            .env("FAKE_CUDA_SHARED", board.path());
        if physical { r.physical() } else { r }
    };
    // Of another job, on the same card: none of our business.
    let stranger = run("life", &["hold", "41943040"])
        .vram(48)
        .env("FAKE_CUDA_SHARED", board.path());
    let other_job = stranger.job();
    let mut other = stranger.start_in(&other_job);
    other.until("holding");
    for physical in [false, true] {
        let job = r(physical).job();
        let mut one = r(physical).start_in(&job);
        one.until("held");
        let mut two = r(physical).start_in(&job);
        two.until("held");
        let total = if physical { 24 * MIB } else { 88 * MIB };
        let told = |pid: u32| {
            let held = |tier| job.ledger.held_by(pid, tier, 0).unwrap();
            let host = if physical { 0 } else { held(Tier::Host) };
            (held(Tier::Vram) + host).min(total)
        };
        let expected = [(one.pid(), told(one.pid())), (two.pid(), told(two.pid()))];
        assert!(expected.iter().all(|(_, used)| *used > 0));
        two.tell("end");
        let outcome = two.wait();
        let rows: Vec<(u32, u64)> = outcome
            .notes("process")
            .iter()
            .map(|l| l.split_once(' ').unwrap())
            .map(|(pid, used)| (pid.parse().unwrap(), used.parse().unwrap()))
            .collect();
        assert_eq!(rows.len(), 9, "three lists of three: {rows:?}");
        for (pid, used) in expected {
            let said: Vec<u64> = rows
                .iter()
                .filter(|(p, _)| *p == pid)
                .map(|(_, u)| *u)
                .collect();
            assert_eq!(said, [used; 3], "of {pid}, physical {physical}");
            assert!(used <= total);
        }
        let (_, stranger) = rows.iter().find(|(p, _)| *p == other.pid()).unwrap();
        assert!(*stranger >= 40 * MIB, "{stranger} bytes of another job");
        one.tell("end");
        one.wait();
        job.demand_sane_and_empty();
    }
    other.tell("end");
    other.wait();
}

/// NVML's handle of a MIG instance, by index or UUID, tells CUDA's story; the GPU around it its own.
#[test]
fn p16_nvml_instances() {
    let r = run("nvml", &["instances"])
        .vram(16)
        .ram(64)
        .env("FAKE_CUDA_MIG", "1");
    let outcome = r.both();
    assert!(outcome.stdout.contains("same: true MIG: true"));
    let pair = |word: &str| outcome.notes(word)[0].to_string();
    assert_eq!(pair("instance"), pair("cuda"));
    let whole: u64 = pair("whole").split(' ').next().unwrap().parse().unwrap();
    assert_eq!(whole, 7 * 512 * MIB);
}
