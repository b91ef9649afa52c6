//! What processes of the job report, as sentences. Nobody wants to read the same one a thousand times.

use std::collections::{BTreeMap, BTreeSet};

use greenboost_wire::ledger::{Placement, Settings, VramLimit};
use greenboost_wire::record::{Kind, Record};

use crate::cli::Stats;
use crate::json::backend_and_name;
use crate::size::human;
use crate::snapshot::Snapshot;
use crate::voice::count;

/// Refusals of memory that are told one by one; the summary counts them all.
const REFUSALS_TOLD: u32 = 3;

/// Remembers what was said.
pub struct Announcer {
    stats: Stats,
    verbose: bool,
    vram_limit: VramLimit,
    /// Whether memory is to move.
    moves: bool,
    /// Whether anything has spilled.
    spilled: bool,
    /// Why nothing moves, as long as that is nobody's concern.
    frozen: Vec<String>,
    said: BTreeSet<String>,
    refusals: u32,
    /// Tiers that were told to be full: VRAM by device, `None` is host RAM.
    full: BTreeSet<Option<usize>>,
    /// Names of the devices, by ledger index.
    pub names: BTreeMap<usize, String>,
    /// Whether any process said anything: only those that use CUDA do.
    pub heard: bool,
}

impl Announcer {
    /// Nothing said yet.
    pub fn new(stats: Stats, verbose: bool, settings: &Settings) -> Announcer {
        Announcer {
            stats,
            verbose,
            vram_limit: settings.vram_limit,
            moves: settings.placement == Placement::Auto,
            spilled: false,
            frozen: Vec::new(),
            said: BTreeSet::new(),
            refusals: 0,
            full: BTreeSet::new(),
            names: BTreeMap::new(),
            heard: false,
        }
    }

    /// The sentence that this record deserves, if any.
    pub fn sentence(&mut self, record: &Record) -> Option<String> {
        let Record {
            pid, a, b, text, ..
        } = record;
        self.heard = true;
        let gpu = record.device;
        let quiet = self.stats == Stats::Off;
        let sentence = match record.kind {
            Kind::Hello => self.verbose.then(|| {
                format!(
                    "process {pid} ({text}) uses CUDA: driver {}.{}, {}",
                    a / 1000,
                    a % 1000 / 10,
                    count(*b, "device", "devices")
                )
            }),
            Kind::Bye => self.verbose.then(|| {
                format!("process {pid} ends with {} of VRAM and {} of host RAM", human(*a), human(*b))
            }),
            Kind::Device => {
                let (backend, name) = backend_and_name(text);
                let name = name.to_string();
                let asked = self.vram_limit;
                let first = self.names.insert(gpu as usize, name.clone()).is_none();
                match asked {
                    _ if !first => None,
                    VramLimit::Bytes(asked) if asked > *a && !quiet => Some(format!(
                        "the VRAM limit {} is more than GPU {gpu} has: it is {} there",
                        human(asked),
                        human(*b)
                    )),
                    _ => self.verbose.then(|| {
                        format!(
                            "GPU {gpu} is {name} ({}), VRAM limit {}, backend {backend}",
                            human(*a),
                            human(*b)
                        )
                    }),
                }
            }
            Kind::FirstSpill => (!quiet).then(|| {
                self.spilled = true;
                let mut lines = vec![format!(
                    "first spill on GPU {gpu}: {} of a {} allocation is in host RAM, at link speed (or --spill off)",
                    human(*a),
                    human(*b)
                )];
                lines.append(&mut self.frozen);
                lines.join("\n")
            }),
            Kind::OutOfMemory => {
                self.refusals += 1;
                let more = if self.refusals == REFUSALS_TOLD {
                    "; further ones are only counted"
                } else {
                    ""
                };
                (self.refusals <= REFUSALS_TOLD)
                    .then(|| format!("out of memory on GPU {gpu}: {} asked for, {text}{}{more}", human(*a), remedy(text)))
            }
            Kind::HostRefused => (!quiet).then(|| format!("host RAM is short: {text}")),
            Kind::DeviceError => Some(format!(
                "GPU error {a} in process {pid}: {text}; run it without greenboost to see whose error it is"
            )),
            // Where nothing has spilled, nothing is to move.
            Kind::Frozen => {
                let sentence = format!("process {pid}: {text}");
                let is_due = self.verbose || self.moves && self.spilled && !quiet;
                if !is_due && self.moves && !quiet && !self.frozen.contains(&sentence) {
                    self.frozen.push(sentence.clone());
                }
                is_due.then_some(sentence)
            }
            Kind::Degraded => Some(format!("degraded: {text}")),
            Kind::Wounded => Some(format!(
                "WOUNDED: {text}; process {pid} gets no further memory from greenboost. Please report this"
            )),
        }?;
        let is_told_each_time = matches!(record.kind, Kind::Hello | Kind::Bye | Kind::OutOfMemory);
        (is_told_each_time || self.said.insert(sentence.clone())).then_some(sentence)
    }
}

/// What to do when memory is out for this reason (the shim's words).
fn remedy(reason: &str) -> &'static str {
    match reason {
        "the VRAM and RAM limits" => ": raise --vram-limit or --ram-limit",
        "the VRAM limit" => ": raise --vram-limit, or allow --spill ram",
        "the machine's available RAM" => ": free host RAM, or raise --vram-limit",
        "the cgroup's memory limit" => ": raise the container's memory limit, or --vram-limit",
        _ => "",
    }
}

impl Announcer {
    /// A tier has another limit: should it fill up to a higher one, that is news; a lower one was wished.
    pub fn limit_changed(&mut self, device: Option<usize>, is_lower: bool) {
        match is_lower {
            true => self.full.insert(device),
            false => self.full.remove(&device),
        };
    }
}

/// From here on a tier is called full, in hundredths.
const FULL: u64 = 95;

impl Announcer {
    /// Tiers that have filled up since the last look: once each.
    pub fn levels(&mut self, snapshot: &Snapshot) -> Vec<String> {
        if self.stats == Stats::Off {
            return Vec::new();
        }
        let is_full = |used: u64, limit: u64| limit > 0 && used / 100 >= limit / 10_000 * FULL;
        let mut said = Vec::new();
        for d in &snapshot.devices {
            if is_full(d.vram_bytes, d.vram_limit) && self.full.insert(Some(d.device)) {
                let next = match snapshot.ram_limit {
                    0 => "then memory is out: raise --vram-limit, or allow --spill ram",
                    _ => "more goes to host RAM: raise --vram-limit to avoid it",
                };
                said.push(format!(
                    "VRAM of GPU {} fills up: {} of {}; {next}",
                    d.device,
                    human(d.vram_bytes),
                    human(d.vram_limit)
                ));
            }
        }
        if is_full(snapshot.host_bytes, snapshot.ram_limit) && self.full.insert(None) {
            said.push(format!(
                "the RAM limit is nearly reached, {} of {}; then memory is out: raise --ram-limit",
                human(snapshot.host_bytes),
                human(snapshot.ram_limit)
            ));
        }
        said
    }
}

#[cfg(test)]
mod tests {
    use greenboost_wire::ledger::{Report, Staging};

    use super::*;

    fn record(kind: Kind, a: u64, b: u64, text: &str) -> Record {
        Record {
            kind,
            pid: 7,
            device: 0,
            time: 0,
            a,
            b,
            c: 0,
            text: text.into(),
        }
    }

    const GIB: u64 = 1 << 30;

    fn settings(vram_limit: VramLimit) -> Settings {
        Settings {
            vram_limit,
            ram_limit: 4 * GIB,
            spill: true,
            report: Report::Extended,
            placement: Placement::Auto,
            staging: Staging::Off,
        }
    }

    #[test]
    fn spills_and_refusals() {
        let mut announcer =
            Announcer::new(Stats::Auto, false, &settings(VramLimit::Bytes(200 * GIB)));
        let device = record(Kind::Device, 80 * GIB, 80 * GIB, "vmm NVIDIA H100");
        assert_eq!(
            announcer.sentence(&device).unwrap(),
            "the VRAM limit 200.0 GiB is more than GPU 0 has: it is 80.0 GiB there"
        );
        assert_eq!(announcer.sentence(&device), None);
        assert_eq!(announcer.names[&0], "NVIDIA H100");
        assert_eq!(
            announcer
                .sentence(&record(Kind::FirstSpill, 3 * GIB / 2, 2 * GIB, ""))
                .unwrap(),
            "first spill on GPU 0: 1.5 GiB of a 2.0 GiB allocation is in host RAM, at link speed (or --spill off)"
        );
        let oom = record(Kind::OutOfMemory, GIB, 0, "the VRAM limit is 10.0 GiB");
        let told = (0..10).filter_map(|_| announcer.sentence(&oom)).count();
        assert_eq!(told, 3);
    }

    /// That nothing moves is told when something should: from the first spill on.
    #[test]
    fn what_stays_where_it_is() {
        let frozen = record(Kind::Frozen, 0, 0, "memory stays where it is: x");
        let spill = record(Kind::FirstSpill, GIB, GIB, "");
        let mut announcer = Announcer::new(Stats::Auto, false, &settings(VramLimit::Free));
        assert_eq!(announcer.sentence(&frozen), None);
        let said = announcer.sentence(&spill).unwrap();
        assert!(
            said.ends_with("\nprocess 7: memory stays where it is: x"),
            "{said}"
        );
        let mut announcer = Announcer::new(Stats::Auto, false, &settings(VramLimit::Free));
        announcer.sentence(&spill);
        assert!(announcer.sentence(&frozen).is_some());
        assert_eq!(announcer.sentence(&frozen), None, "said once");
        let still = Settings {
            placement: Placement::FirstFit,
            ..settings(VramLimit::Free)
        };
        for (stats, settings) in [
            (Stats::Auto, still),
            (Stats::Off, settings(VramLimit::Free)),
        ] {
            let mut announcer = Announcer::new(stats, false, &settings);
            assert_eq!(announcer.sentence(&frozen), None);
            let said = announcer.sentence(&spill).unwrap_or_default();
            assert!(!said.contains("stays"), "{said}");
            assert_eq!(announcer.sentence(&frozen), None);
        }
    }

    #[test]
    fn tiers_that_fill_up_are_told_once() {
        let mut announcer = Announcer::new(Stats::Auto, false, &settings(VramLimit::Free));
        let device = crate::snapshot::DeviceSnapshot {
            vram_bytes: 9 * GIB,
            vram_limit: 10 * GIB,
            ..Default::default()
        };
        let mut snapshot = Snapshot {
            ram_limit: 4 * GIB,
            devices: vec![device],
            ..Snapshot::default()
        };
        assert!(announcer.levels(&snapshot).is_empty());
        snapshot.devices[0].vram_bytes = 10 * GIB - 1;
        assert_eq!(
            announcer.levels(&snapshot),
            [
                "VRAM of GPU 0 fills up: 10.0 GiB of 10.0 GiB; more goes to host RAM: raise --vram-limit to avoid it"
            ]
        );
        snapshot.host_bytes = 39 * GIB / 10;
        assert_eq!(
            announcer.levels(&snapshot),
            [
                "the RAM limit is nearly reached, 3.9 GiB of 4.0 GiB; then memory is out: raise --ram-limit"
            ]
        );
        assert!(announcer.levels(&snapshot).is_empty(), "told once");
        announcer.limit_changed(Some(0), true);
        snapshot.devices[0].vram_limit = 5 * GIB;
        assert!(announcer.levels(&snapshot).is_empty(), "it was wished");
        announcer.limit_changed(Some(0), false);
        assert_eq!(announcer.levels(&snapshot).len(), 1);
        let mut quiet = Announcer::new(Stats::Off, false, &settings(VramLimit::Free));
        assert!(quiet.levels(&snapshot).is_empty());
    }

    #[test]
    fn off_leaves_what_matters() {
        let mut announcer = Announcer::new(Stats::Off, false, &settings(VramLimit::Free));
        assert_eq!(
            announcer.sentence(&record(Kind::FirstSpill, 1, 2, "")),
            None
        );
        assert_eq!(
            announcer.sentence(&record(Kind::HostRefused, 1, 0, "x")),
            None
        );
        for kind in [Kind::OutOfMemory, Kind::Degraded, Kind::Wounded] {
            assert!(
                announcer
                    .sentence(&record(kind, 1, 2, "why"))
                    .unwrap()
                    .contains("why")
            );
        }
        let again = record(Kind::Degraded, 1, 2, "why");
        assert_eq!(announcer.sentence(&again), None, "said once");
    }
}
