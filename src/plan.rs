//! What was asked for and what the machine has, made into the job's settings. Pure.

use greenboost_wire::ledger::{Placement, Report, Settings, Staging, VramLimit};

use crate::cli::{PlacementArg, ReportArg, RunArgs, StagingArg};
use crate::machine::Machine;
use crate::size::{Amount, human, part_of, share};
use crate::spill::Spill;

/// Part of the available host memory that a job may pin unless it is told otherwise, in hundredths of a per cent.
/// Pinned memory cannot be swapped, so the rest of the machine needs its share.
const DEFAULT_RAM_SHARE: u64 = 7_500;

/// The settings, and what the user should hear about them.
#[derive(Debug, PartialEq, Eq)]
pub struct Plan {
    /// For the ledger.
    pub settings: Settings,
    /// Sentences about what was asked for and is not so.
    pub notes: Vec<String>,
}

impl Plan {
    /// Decides.
    pub fn new(args: &RunArgs, machine: &Machine) -> Plan {
        let mut notes = Vec::new();
        let spill = args.spill != Some(Spill::Off);
        let ram_limit = match args.ram_limit {
            _ if !spill => 0,
            None => part_of(machine.available, DEFAULT_RAM_SHARE),
            Some(Amount::Share(hundredths)) => part_of(machine.total, hundredths),
            Some(Amount::Bytes(bytes)) if bytes > machine.total => {
                notes.push(format!(
                    "the RAM limit {} is more than there is: it is {} now",
                    human(bytes),
                    human(machine.total)
                ));
                machine.total
            }
            Some(Amount::Bytes(bytes)) => bytes,
        };
        if !spill && args.ram_limit.is_some() {
            notes.push("the RAM limit has no effect, because spilling is off".into());
        }
        if !spill && args.staging == Some(StagingArg::Auto) {
            notes.push("--staging has no effect, because spilling is off".into());
        }
        if spill && ram_limit == 0 && args.ram_limit.is_none() {
            notes.push("no host RAM is available: nothing can spill".into());
        }
        Plan {
            settings: Settings {
                vram_limit: match args.vram_limit {
                    None => VramLimit::Free,
                    Some(Amount::Bytes(bytes)) => VramLimit::Bytes(bytes),
                    Some(Amount::Share(hundredths)) => VramLimit::Share(hundredths),
                },
                ram_limit,
                spill,
                report: match args.report {
                    Some(ReportArg::Physical) => Report::Physical,
                    Some(ReportArg::Extended) | None => Report::Extended,
                },
                placement: match args.placement {
                    Some(PlacementArg::FirstFit) => Placement::FirstFit,
                    Some(PlacementArg::Auto) | None => Placement::Auto,
                },
                staging: match args.staging {
                    Some(StagingArg::Auto) => Staging::Auto,
                    Some(StagingArg::Off) | None => Staging::Off,
                },
            },
            notes,
        }
    }
}

/// The settings in one line.
pub fn describe(settings: &Settings) -> String {
    let vram = match settings.vram_limit {
        VramLimit::Free => "what is free".into(),
        VramLimit::Bytes(bytes) => human(bytes),
        VramLimit::Share(hundredths) => format!("{} of the card", share(hundredths)),
    };
    let ram = if settings.spill {
        format!("RAM limit {}", human(settings.ram_limit))
    } else {
        "no spilling".into()
    };
    let report = match settings.report {
        Report::Extended => "both together",
        Report::Physical => "the VRAM limit",
    };
    let placement = match settings.placement {
        Placement::Auto => "",
        Placement::FirstFit => "; nothing moves",
    };
    let staging = match settings.staging {
        Staging::Off => "",
        Staging::Auto => "; spilled memory is staged",
    };
    format!("VRAM limit {vram}; {ram}; the program is told of {report}{placement}{staging}")
}

/// What a nested `run` asks for that the outer job does not already guarantee, in words; the outer limits hold.
pub fn narrower_than(args: &RunArgs, outer: &Settings) -> Vec<&'static str> {
    let narrows = |asked: Option<Amount>, limit: Option<u64>| match (asked, limit) {
        (None, _) => false,
        (Some(Amount::Bytes(bytes)), Some(limit)) => bytes < limit,
        (Some(_), _) => true,
    };
    let vram = match outer.vram_limit {
        VramLimit::Bytes(bytes) => Some(bytes),
        VramLimit::Free | VramLimit::Share(_) => None,
    };
    let spill_off = args.spill == Some(Spill::Off) && outer.spill;
    let unmoved =
        args.placement == Some(PlacementArg::FirstFit) && outer.placement != Placement::FirstFit;
    let unstaged = args.staging == Some(StagingArg::Off) && outer.staging != Staging::Off;
    [
        ("--vram-limit", narrows(args.vram_limit, vram)),
        (
            "--ram-limit",
            narrows(args.ram_limit, Some(outer.ram_limit)),
        ),
        ("--spill off", spill_off),
        ("--placement first-fit", unmoved),
        ("--staging off", unstaged),
    ]
    .into_iter()
    .filter_map(|(name, is_narrower)| is_narrower.then_some(name))
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;
    const MACHINE: Machine = Machine {
        total: 64 * GIB,
        available: 40 * GIB,
        cgroup_limit: None,
    };

    fn plan(args: RunArgs) -> Plan {
        Plan::new(&args, &MACHINE)
    }

    #[test]
    fn defaults() {
        let plan = plan(RunArgs::default());
        let expected = Settings {
            vram_limit: VramLimit::Free,
            ram_limit: 30 * GIB,
            spill: true,
            report: Report::Extended,
            placement: Placement::Auto,
            staging: Staging::Off,
        };
        assert_eq!((plan.settings, plan.notes), (expected, vec![]));
    }

    #[test]
    fn limits_as_asked() {
        let plan = plan(RunArgs {
            vram_limit: Some(Amount::Share(5_000)),
            ram_limit: Some(Amount::Share(2_500)),
            report: Some(ReportArg::Physical),
            placement: Some(PlacementArg::FirstFit),
            staging: Some(StagingArg::Auto),
            ..RunArgs::default()
        });
        assert_eq!(plan.settings.vram_limit, VramLimit::Share(5_000));
        assert_eq!(plan.settings.ram_limit, 16 * GIB);
        assert_eq!(plan.settings.report, Report::Physical);
        assert_eq!(plan.settings.placement, Placement::FirstFit);
        assert_eq!(plan.settings.staging, Staging::Auto);
        assert!(plan.notes.is_empty());
    }

    #[test]
    fn more_ram_than_there_is() {
        let plan = plan(RunArgs {
            ram_limit: Some(Amount::Bytes(100 * GIB)),
            ..RunArgs::default()
        });
        assert_eq!(plan.settings.ram_limit, 64 * GIB);
        assert_eq!(plan.notes.len(), 1);
    }

    #[test]
    fn off_stands_alone() {
        let plan = plan(RunArgs {
            spill: Some(Spill::Off),
            ram_limit: Some(Amount::Bytes(GIB)),
            staging: Some(StagingArg::Auto),
            ..RunArgs::default()
        });
        assert!(!plan.settings.spill);
        assert_eq!(plan.settings.ram_limit, 0);
        assert_eq!(plan.notes.len(), 2);
    }

    #[test]
    fn nested_limits() {
        let outer = Settings {
            vram_limit: VramLimit::Bytes(8 * GIB),
            ram_limit: 8 * GIB,
            spill: true,
            report: Report::Extended,
            placement: Placement::Auto,
            staging: Staging::Auto,
        };
        let asked = |vram, ram| RunArgs {
            vram_limit: vram,
            ram_limit: ram,
            ..RunArgs::default()
        };
        let bytes = |n| Some(Amount::Bytes(n * GIB));
        assert!(narrower_than(&asked(None, None), &outer).is_empty());
        assert!(narrower_than(&asked(bytes(8), bytes(9)), &outer).is_empty());
        let both = asked(bytes(4), Some(Amount::Share(100)));
        assert_eq!(
            narrower_than(&both, &outer),
            ["--vram-limit", "--ram-limit"]
        );
        let still = RunArgs {
            placement: Some(PlacementArg::FirstFit),
            ..RunArgs::default()
        };
        assert_eq!(narrower_than(&still, &outer), ["--placement first-fit"]);
        let staging = |staging| RunArgs {
            staging: Some(staging),
            ..RunArgs::default()
        };
        let off = staging(StagingArg::Off);
        assert_eq!(narrower_than(&off, &outer), ["--staging off"]);
        assert!(narrower_than(&staging(StagingArg::Auto), &outer).is_empty());
        let unstaged = Settings {
            staging: Staging::Off,
            ..outer
        };
        assert!(narrower_than(&off, &unstaged).is_empty());
        assert!(narrower_than(&staging(StagingArg::Auto), &unstaged).is_empty());
    }
}
