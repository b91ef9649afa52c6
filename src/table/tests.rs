use super::bar::{clock, gauge, pair};
use super::*;
use crate::traffic::Traffic;

const GIB: u64 = 1 << 30;
const PLAIN: Style = Style {
    color: false,
    unicode: true,
};

fn snapshot(devices: usize) -> Snapshot {
    let device = |device| DeviceSnapshot {
        device,
        total: 80 * GIB,
        vram_limit: 10 * GIB,
        vram_bytes: 10 * GIB - 1,
        host_bytes: 50 * GIB,
        vram_allocations: 12,
        host_allocations: 1234,
        ..DeviceSnapshot::default()
    };
    Snapshot {
        ram_limit: 84 * GIB,
        devices: (0..devices).map(device).collect(),
        ..Snapshot::default()
    }
}

fn view(snapshot: &Snapshot) -> View<'_> {
    let link = Link {
        received: Some(51_234_000_000),
        sent: Some(81_000_000),
        rate: Some(63_016_000_000),
    };
    View {
        snapshot,
        links: snapshot.devices.iter().map(|d| (d.device, link)).collect(),
        rates: BTreeMap::new(),
        measured: None,
        processes: Vec::new(),
        running: Duration::from_secs(90),
    }
}

#[test]
fn narrow() {
    let lines = view(&snapshot(1)).lines(60, 9, PLAIN);
    assert_eq!(
        lines.join("\n"),
        "\
greenboost 1:30                used allocs PCIe in out GB/s
GPU 0 VRAM ██████▉ 10.0 of 10.0 GiB     12
GPU 0 RAM  ████▏░░ 50.0 of 84.0 GiB   1234    51.2      0.1
50.0 GiB spilled; link busy 81 %"
    );
}

#[test]
fn wide() {
    let lines = view(&snapshot(1)).lines(100, 9, PLAIN);
    assert_eq!(
        lines.join("\n"),
        "\
greenboost  1:30                                              used        allocs  PCIe in  out GB/s
GPU 0 VRAM  ███████████████████████████████████▉  10.0 of 10.0 GiB  99 %      12
GPU 0 RAM   █████████████████████▍░░░░░░░░░░░░░░  50.0 of 84.0 GiB  59 %    1234     51.2       0.1
50.0 GiB spilled; link busy 81 %; reading it once takes 0.9 s at best"
    );
}

#[test]
fn every_width_holds() {
    for columns in [40, 59, 60, 61, 79, 80, 81, 120, 200, 300] {
        for devices in [1, 2, 16] {
            let mut snapshot = snapshot(devices);
            for d in &mut snapshot.devices {
                d.traffic = moving().devices[0].traffic;
            }
            let mut view = moving_view(&snapshot);
            view.processes = (0..9)
                .map(|n| (n, format!("na\x1bme{n}"), u64::from(n) * GIB, GIB))
                .collect();
            for room in [4, 9, 60] {
                for style in [
                    PLAIN,
                    Style {
                        color: false,
                        unicode: false,
                    },
                ] {
                    let lines = view.lines(columns, room, style);
                    assert!(lines.len() <= room, "{lines:#?}");
                    for line in &lines {
                        assert!(line.chars().count() < columns.max(60), "{columns}: {line}");
                        assert!(!line.contains('\x1b'));
                        assert!(style.unicode || line.is_ascii(), "{line}");
                    }
                }
            }
        }
    }
}

#[test]
fn columns_without_a_source_are_absent() {
    let snapshot = snapshot(1);
    let mut view = view(&snapshot);
    view.links.clear();
    let text = view.lines(100, 9, PLAIN).join("\n");
    assert!(!text.contains("PCIe") && !text.contains("link"), "{text}");
}

#[test]
fn colors_change_no_width() {
    let snapshot = snapshot(2);
    let view = view(&snapshot);
    let colors = Style {
        color: true,
        unicode: true,
    };
    let strip = |line: &String| {
        let mut out = line.clone();
        for code in ["\x1b[2m", "\x1b[36m", "\x1b[m"] {
            out = out.replace(code, "");
        }
        out
    };
    let colored = view.lines(80, 9, colors);
    assert!(colored.iter().any(|l| l.contains("\x1b[36m")));
    let plain: Vec<String> = colored.iter().map(strip).collect();
    assert_eq!(plain, view.lines(80, 9, PLAIN));
}

#[test]
fn bars_tell_full_from_nearly() {
    assert_eq!(gauge(0, 10, 4, true), "░░░░");
    assert_eq!(gauge(1, 1 << 40, 4, true), "▏░░░");
    assert_eq!(gauge((1 << 40) - 1, 1 << 40, 4, true), "███▉");
    assert_eq!(gauge(10, 10, 4, true), "████");
    assert_eq!(gauge(12, 10, 4, true), "████");
    assert_eq!(gauge(5, 10, 6, false), "[##--]");
    assert_eq!(gauge(9, 10, 6, false), "[###-]");
    assert_eq!(gauge(0, 0, 6, false), "[----]");
    assert_eq!(pair(512 << 20, 10 * GIB), "0.5 of 10.0 GiB");
    assert_eq!(clock(Duration::from_secs(7265)), "2:01:05");
    assert_eq!(pair(0, 0), "0 of 0 B");
}

#[test]
fn processes_when_there_are_several() {
    let snapshot = snapshot(1);
    let mut view = view(&snapshot);
    view.processes = vec![
        (7, "python".into(), GIB, 0),
        (8, "worker".into(), 2 * GIB, 3 * GIB),
    ];
    let text = view.lines(80, 9, PLAIN).join("\n");
    assert!(
        text.contains("8 worker: 2.0 GiB VRAM, 3.0 GiB RAM\n7 python: 1.0 GiB VRAM, 0 B RAM\n"),
        "{text}"
    );
    assert!(!view.lines(80, 5, PLAIN).join("\n").contains("python"));
}

/// A job in which chunks move and calls wait.
fn moving() -> Snapshot {
    let mut snapshot = snapshot(1);
    snapshot.devices[0].host_bytes = 62 * GIB / 10;
    snapshot.devices[0].traffic = Traffic {
        promoted_bytes: 3 * GIB,
        demoted_bytes: 2 * GIB,
        wait_nanos: 12_000_000,
        host_named_bytes: 900 * GIB,
        vram_heat: 10 * GIB,
        host_heat: 62 * GIB / 10,
        step_nanos: 143_000_000,
        ..Traffic::default()
    };
    snapshot
}

const RATES: Rates = Rates {
    promoted: 1_234_000_000,
    demoted: 820_000_000,
    named: Some(46_100_000_000),
    moving: 0.0131,
    waiting: 0.0034,
};

const MEASURED: probe::Rates = probe::Rates {
    vram: 3e12,
    zero_copy: 50.7e9,
    zero_copy_quantised: 40e9,
    dma: 55e9,
    ram: 1e11,
    flops: 1e12,
    again: 1.0,
};

fn moving_view(snapshot: &Snapshot) -> View<'_> {
    View {
        rates: snapshot.devices.iter().map(|d| (d.device, RATES)).collect(),
        measured: Some(&MEASURED),
        ..view(snapshot)
    }
}

#[test]
fn what_moves_and_waits() {
    let snapshot = moving();
    let view = moving_view(&snapshot);
    let text = |columns| view.lines(columns, 9, PLAIN).join("\n");
    assert_eq!(
        text(60),
        "\
greenboost 1:30                used allocs PCIe in out GB/s
GPU 0 VRAM ██████▉ 10.0 of 10.0 GiB     12
GPU 0 RAM  ▌░░░░░░  6.2 of 84.0 GiB   1234    51.2      0.1
6.2 GiB spilled; link busy 81 %; about 131 of each 143 ms
moves 1.2 GB/s in, 0.8 out, 1.3 % of the time
launches wait 3.4 ms a second
a step of 143 ms uses 10.0 GiB VRAM, 6.2 GiB RAM"
    );
    assert_eq!(
        text(80),
        "\
greenboost  1:30                          used        allocs  PCIe in  out GB/s
GPU 0 VRAM  ███████████████▉  10.0 of 10.0 GiB  99 %      12
GPU 0 RAM   █▏░░░░░░░░░░░░░░   6.2 of 84.0 GiB   7 %    1234     51.2       0.1
6.2 GiB spilled; link busy 81 %; about 131 of each 143 ms
moves 1.2 GB/s in, 0.8 out, 1.3 % of the time; launches wait 3.4 ms a second
a step of 143 ms uses 10.0 GiB VRAM, 6.2 GiB RAM"
    );
    assert_eq!(
        text(200),
        "\
greenboost  1:30                                                  used        allocs  moved in  out GB/s  per step  named GB/s  PCIe in  out GB/s
GPU 0 VRAM  ███████████████████████████████████████▉  10.0 of 10.0 GiB  99 %      12       1.2       0.8  10.0 GiB
GPU 0 RAM   ██▉░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░   6.2 of 84.0 GiB   7 %    1234       0.8       1.2   6.2 GiB        46.1     51.2       0.1
6.2 GiB spilled; link busy 81 %; about 131 of each 143 ms
moves 1.2 GB/s in, 0.8 out, 1.3 % of the time; launches wait 3.4 ms a second"
    );
    // With little room what it costs goes first, the processes before it.
    assert_eq!(view.lines(60, 5, PLAIN).len(), 5);
    assert_eq!(view.lines(60, 4, PLAIN).len(), 4);
}

#[test]
fn what_has_moved_and_waited() {
    let mut snapshot = moving();
    let view = View {
        rates: BTreeMap::from([(0, Rates::default())]),
        ..moving_view(&snapshot)
    };
    let text = view.lines(80, 9, PLAIN).join("\n");
    assert!(
        text.ends_with("\nmoved 3.0 GiB in, 2.0 GiB out so far; launches waited 12 ms so far\na step of 143 ms uses 10.0 GiB VRAM, 6.2 GiB RAM"),
        "{text}"
    );
    snapshot.parked = true;
    let text = view_of(&snapshot);
    assert!(text.contains("\nparked; 6.2 GiB spilled; "), "{text}");
}

fn view_of(snapshot: &Snapshot) -> String {
    moving_view(snapshot).lines(80, 9, PLAIN).join("\n")
}

/// Where the driver does not count what the link carries, what operations name stands for it.
#[test]
fn without_the_drivers_counter() {
    let snapshot = moving();
    let mut view = moving_view(&snapshot);
    view.links.clear();
    let text = view.lines(80, 9, PLAIN).join("\n");
    assert!(text.contains("46.1 GB/s named in RAM"), "{text}");
    let text = view.lines(110, 9, PLAIN).join("\n");
    assert!(
        text.contains("named GB/s\n") && !text.contains("named in RAM"),
        "{text}"
    );
}

/// A step that takes less than the link would need for what it uses: not all of that can have crossed it.
#[test]
fn no_part_is_larger_than_the_whole() {
    let mut snapshot = moving();
    snapshot.devices[0].traffic.step_nanos = 5_000_000;
    let text = view_of(&snapshot);
    assert!(text.contains("up to 5.0 of each 5.0 ms"), "{text}");
    assert!(
        text.contains("a step of 5.0 ms uses 10.0 GiB VRAM, up to 300.5 MiB RAM"),
        "{text}"
    );
    snapshot.devices[0].traffic.step_nanos = 3_000_000_000;
    let text = view_of(&snapshot);
    assert!(text.contains("about 0.1 of each 3.0 s"), "{text}");
    snapshot.devices[0].traffic = Traffic::default();
    let text = view_of(&snapshot);
    assert!(
        text.ends_with("reading it once takes 0.1 s at best"),
        "{text}"
    );
}
