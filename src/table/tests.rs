use super::*;

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
            let snapshot = snapshot(devices);
            let mut view = view(&snapshot);
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
