//! What spilling cost, in lines.

use std::time::Duration;

use crate::size::human;
use crate::snapshot::{DeviceSnapshot, Snapshot};
use crate::voice::{count, duration};

/// What was moved, what crossed the link and what was waited for, of each device; nothing where nothing was. `ceiling`:
/// what a device's link can carry each way, bytes per second.
pub fn costs(
    snapshot: &Snapshot,
    running: Duration,
    ceiling: impl Fn(usize) -> Option<u64>,
) -> Vec<String> {
    let devices = snapshot.devices.iter();
    devices
        .flat_map(|d| {
            let lines = of(d, running, ceiling(d.device)).into_iter();
            lines.map(|line| format!("GPU {}: {line}", d.device))
        })
        .collect()
}

fn of(device: &DeviceSnapshot, running: Duration, ceiling: Option<u64>) -> Vec<String> {
    let traffic = &device.traffic;
    let mut lines = Vec::new();
    if traffic.moved() > 0 {
        let held = Duration::from_nanos(traffic.move_nanos);
        let share = held.as_secs_f64() / running.as_secs_f64().max(1e-9) * 100.0;
        lines.push(format!(
            "moved {} in, {} out: {}, {:.1} % of the time",
            human(traffic.promoted_bytes),
            human(traffic.demoted_bytes),
            duration(held),
            share.min(100.0)
        ));
    }
    if traffic.moves_abandoned > 0 {
        let moves = count(traffic.moves_abandoned, "move was", "moves were");
        lines.push(format!("{moves} given up: the GPU did not become idle"));
    }
    if traffic.host_named_bytes > 0 {
        let named = format!(
            "operations named {} in RAM",
            human(traffic.host_named_bytes)
        );
        // Operations need not use all that they name.
        let most = ceiling.map(|rate| (rate as f64 * running.as_secs_f64()) as u64);
        lines.push(match most.filter(|most| *most < traffic.host_named_bytes) {
            Some(most) => format!("{named}, of which the link carried {} at most", human(most)),
            None => named,
        });
    }
    if traffic.wait_nanos > 0 {
        let waited = Duration::from_nanos(traffic.wait_nanos);
        lines.push(format!("launches waited {} in all", duration(waited)));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::traffic::Traffic;

    #[test]
    fn in_lines() {
        let traffic = Traffic {
            promoted_bytes: 3 << 30,
            demoted_bytes: 2 << 30,
            move_nanos: 900_000_000,
            moves_abandoned: 2,
            wait_nanos: 1_500_000_000,
            host_named_bytes: 1 << 50,
            ..Traffic::default()
        };
        let mut snapshot = Snapshot {
            devices: vec![DeviceSnapshot {
                traffic,
                ..DeviceSnapshot::default()
            }],
            ..Snapshot::default()
        };
        let minute = Duration::from_secs(60);
        assert_eq!(
            costs(&snapshot, minute, |_| Some(1 << 30)),
            [
                "GPU 0: moved 3.0 GiB in, 2.0 GiB out: 0.9 s, 1.5 % of the time",
                "GPU 0: 2 moves were given up: the GPU did not become idle",
                "GPU 0: operations named 1.0 PiB in RAM, of which the link carried 60.0 GiB at most",
                "GPU 0: launches waited 1.5 s in all",
            ]
        );
        for rate in [None, Some(1 << 50)] {
            assert_eq!(
                costs(&snapshot, minute, |_| rate)[2],
                "GPU 0: operations named 1.0 PiB in RAM"
            );
        }
        snapshot.devices[0].traffic = Traffic::default();
        assert!(costs(&snapshot, minute, |_| Some(1)).is_empty());
    }
}
