//! What processes of the job report, as sentences. Nobody wants to read the same one a thousand times.

use std::collections::{BTreeMap, BTreeSet};

use greenboost_wire::ledger::VramLimit;
use greenboost_wire::record::{Kind, Record};

use crate::cli::Stats;
use crate::json::backend_and_name;
use crate::size::human;
use crate::voice::count;

/// Refusals of memory that are told one by one; the summary counts them all.
const REFUSALS_TOLD: u32 = 3;

/// Remembers what was said.
pub struct Announcer {
    stats: Stats,
    verbose: bool,
    vram_limit: VramLimit,
    said: BTreeSet<String>,
    refusals: u32,
    /// Names of the devices, by ledger index.
    pub names: BTreeMap<usize, String>,
    /// Whether any process said anything: only those that use CUDA do.
    pub heard: bool,
}

impl Announcer {
    /// Nothing said yet.
    pub fn new(stats: Stats, verbose: bool, vram_limit: VramLimit) -> Announcer {
        Announcer {
            stats,
            verbose,
            vram_limit,
            said: BTreeSet::new(),
            refusals: 0,
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
                format!(
                    "first spill on GPU {gpu}: {} of a {} allocation is in host RAM; the GPU reaches it over the link",
                    human(*a),
                    human(*b)
                )
            }),
            Kind::OutOfMemory => {
                self.refusals += 1;
                let more = if self.refusals == REFUSALS_TOLD {
                    "; further ones are only counted"
                } else {
                    ""
                };
                (self.refusals <= REFUSALS_TOLD)
                    .then(|| format!("out of memory on GPU {gpu}: {} asked for, {text}{more}", human(*a)))
            }
            Kind::HostRefused => (!quiet).then(|| format!("host RAM is short: {text}")),
            // Nothing is moved yet, so nothing is lost.
            Kind::Frozen => self.verbose.then(|| text.to_string()),
            Kind::Degraded => Some(format!("degraded: {text}")),
            Kind::Wounded => Some(format!(
                "WOUNDED: {text}; process {pid} gets no further memory from greenboost. Please report this"
            )),
        }?;
        let is_told_each_time = matches!(record.kind, Kind::Hello | Kind::Bye | Kind::OutOfMemory);
        (is_told_each_time || self.said.insert(sentence.clone())).then_some(sentence)
    }
}

#[cfg(test)]
mod tests {
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

    #[test]
    fn spills_and_refusals() {
        let mut announcer = Announcer::new(Stats::Auto, false, VramLimit::Bytes(200 * GIB));
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
            "first spill on GPU 0: 1.5 GiB of a 2.0 GiB allocation is in host RAM; the GPU reaches it over the link"
        );
        let oom = record(Kind::OutOfMemory, GIB, 0, "the VRAM limit is 10.0 GiB");
        let told = (0..10).filter_map(|_| announcer.sentence(&oom)).count();
        assert_eq!(told, 3);
    }

    #[test]
    fn off_leaves_what_matters() {
        let mut announcer = Announcer::new(Stats::Off, false, VramLimit::Free);
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
