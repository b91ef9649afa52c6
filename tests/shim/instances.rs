//! Instances of graphs that get other operands, wherever the memory lies.

use crate::harness::{Run, faulty_shim, run};

fn instances(what: &str) -> Run {
    run("instances", &[what])
}

/// Where plain memory can take the place of other memory, so can memory that lies elsewhere.
#[test]
fn copies_move_to_memory_of_every_place() {
    for vram in [2, 20, 24, 64] {
        let outcome = instances("copies").vram(vram).both();
        assert!(!outcome.stdout.contains("910") && outcome.stdout.contains("0 to 2: [0, 0, 0, 0]"));
    }
}

#[test]
fn whole_graphs_move_to_memory_of_every_place() {
    for vram in [2, 20, 24, 64] {
        let outcome = instances("whole").vram(vram).both();
        assert!(outcome.stdout.contains("16: (0, 0)"), "{}", outcome.stdout);
    }
}

#[test]
fn what_plain_memory_forbids_stays_forbidden() {
    for vram in [2, 20, 64] {
        instances("refusals")
            .vram(vram)
            .misuses("which it never was")
            .both();
    }
}

#[test]
fn launches_of_one_instance_come_one_after_another() {
    for vram in [2, 20, 64] {
        let outcome = instances("order").vram(vram).both();
        assert!(!outcome.stdout.contains("at most 2"), "{}", outcome.stdout);
    }
}

#[test]
fn nodes_that_are_off_stay_off() {
    for vram in [2, 20, 64] {
        instances("switches").vram(vram).both();
    }
}

#[test]
fn graphs_and_instances_end_in_every_order() {
    for vram in [2, 20, 64] {
        instances("ends").vram(vram).both();
    }
}

#[test]
fn random_changes_of_instances() {
    for seed in 0..12 {
        let vram = [2, 16, 20, 24][seed % 4];
        run("instances", &["random", &seed.to_string()])
            .vram(vram)
            .both();
    }
}

/// Older drivers have fewer functions; what they have works.
#[test]
fn older_drivers() {
    for version in ["11080", "12000", "12020"] {
        instances("copies")
            .vram(20)
            .env("FAKE_CUDA_DRIVER", version)
            .may_degrade()
            .both();
    }
}

/// Whatever the driver refuses on the way: the update is refused as the driver has it, and the instance stays what it was.
#[test]
fn no_other_instance_can_be_made() {
    for rule in [
        "cuGraphClone:1+:2",
        "cuGraphNodeFindInClone:2+:1",
        "cuGraphInstantiateWithFlags:2+:2",
        "cuGraphInstantiateWithFlags:4+:2",
        "cuGraphMemcpyNodeSetParams:1+:1",
        "cuGraphMemcpyNodeSetParams:4+:1",
        "cuGraphNodeSetEnabled:3+:1",
        "cuEventCreate:1+:2",
    ] {
        let outcome = instances("denied")
            .vram(20)
            .env("FAKE_CUDA_FAIL", rule)
            .shimmed();
        let refused = outcome
            .stdout
            .lines()
            .filter(|l| l.ends_with(": 1") || l.ends_with(": 910"));
        assert!(refused.count() > 3, "{rule}\n{}", outcome.stdout);
    }
}

/// A function that nobody knows could run instances by the program's handle, which then names an old one.
#[test]
fn no_other_instance_beside_unknown_functions() {
    let run = instances("unknown").vram(20);
    let outcome = run.env("FAKE_CUDA_DRIVER", "99000").shimmed();
    assert_eq!(outcome.stdout, "before: 0\nafter: 1\n");
}

/// What an instance names is known from its making on, and after every change.
#[test]
fn names_are_known() {
    let outcome = instances("names").under(faulty_shim()).vram(20).shimmed();
    // Place in the list, offset, nodes. Memory that the driver allocates itself is none of the shim's.
    let expected = [
        "all kinds: 4 [0+0x3, 1+0x1, 1+8x1, 2+64x1]",
        "another kernel's: 5 [0+0x2, 1+0x1, 1+8x1, 2+0x1, 2+64x1]",
        "another copy: 4 [0+0x1, 1+0x1, 1+8x2, 2+0x2]",
        "a memset elsewhere: 3 [0+0x1, 1+8x2, 2+0x2]",
        "without its graph: 3 [0+0x1, 1+8x2, 2+0x2]",
        "destroyed: -1 []",
        "captured: 2 [0+0x2, 1+0x2]",
        "updated: 2 [1+0x2, 2+0x2]",
        "children: 2 [0+1x2, 2+128x1]",
        "the same child: 2 [0+1x2, 2+128x1]",
    ];
    let told: Vec<String> = outcome
        .stdout
        .lines()
        .map(|l| {
            l.replace('"', "")
                .replace(" unknown 0", "")
                .replace(" unknown -1", "")
        })
        .collect();
    assert_eq!(told, expected);
}

/// Before driver 12.4 nobody knows what kernels are given.
#[test]
fn names_are_unknown_on_older_drivers() {
    let run = instances("names").under(faulty_shim()).vram(20);
    let outcome = run.env("FAKE_CUDA_DRIVER", "12020").shimmed();
    let first = outcome.stdout.lines().next().unwrap_or_default();
    assert_eq!(
        first.replace('"', ""),
        "all kinds: 3 [0+0x1, 1+0x1, 2+64x1] unknown 1"
    );
}

/// PITFALLS 28: however many instances are resident, a free asks the driver for no more.
#[test]
fn p28_frees_beside_many_instances() {
    let calls = |count: &str| -> Vec<usize> {
        let run = run("instances", &["resident", count]).vram(20);
        let trace = std::env::temp_dir().join(format!("gb-trace-{}-{count}", std::process::id()));
        run.env("FAKE_CUDA_TRACE", &trace).shimmed();
        let text = std::fs::read_to_string(&trace).expect("a trace");
        std::fs::remove_file(&trace).expect("a trace");
        let parts: Vec<&str> = text.split(" cuStreamQuery ").collect();
        parts
            .iter()
            .skip(1)
            .step_by(2)
            .map(|p| p.lines().count())
            .collect()
    };
    let (few, many) = (calls("1"), calls("1000"));
    assert_eq!(few, many);
}
