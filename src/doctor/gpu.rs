//! What the driver said, as findings. Pure.

use greenboost_abi::CUDA_SUCCESS;

use super::ask::End;
use super::driver::{Driver, Gpu, Trial};
use super::init::{about_driver, no_device, version};
use super::{Finding, Level};
use crate::size::human;

/// The first driver whose launches can be read (`cuFuncGetParamInfo`).
const KNOWS_PARAMETERS: i32 = 12_040;
/// The first driver that maps host memory beside VRAM.
const MAPS_HOST: i32 = 12_020;

/// Where we are, as far as it changes the advice.
#[derive(Clone, Debug, Default)]
pub struct Place {
    /// In a container of this kind.
    pub container: Option<String>,
    /// In Windows' Linux.
    pub is_wsl: bool,
    /// `CUDA_VISIBLE_DEVICES`.
    pub visible: Option<String>,
    /// Version of the kernel module, when it is loaded.
    pub module: Option<String>,
}

/// Findings about the driver and every device.
pub fn findings(driver: &Driver, end: &End, place: &Place) -> Vec<Finding> {
    let mut all = vec![about_driver(driver, place)];
    match end {
        End::Finished => {}
        End::Hung { doing } => all.push(
            Finding::new(
                "driver",
                Level::Impossible,
                format!("it does not answer: it was still {doing} when the time was over"),
            )
            .advise("look for GPU errors in `dmesg` (Xid), end what uses the GPU, or reboot"),
        ),
        End::Died { doing, status } => all.push(
            Finding::new(
                "driver",
                Level::Impossible,
                format!("a program that uses it crashes while {doing} ({status})"),
            )
            .advise("install the driver again; `greenboost selftest --simulated` needs none"),
        ),
    }
    if driver.init != Some(CUDA_SUCCESS) {
        return all;
    }
    if driver.devices.is_empty() && *end == End::Finished {
        all.push(no_device(place));
    }
    for gpu in &driver.devices {
        all.extend(about(gpu, driver, *end == End::Finished));
    }
    if driver.version < KNOWS_PARAMETERS && !driver.devices.is_empty() {
        all.push(
            Finding::new(
                "features",
                Level::Degraded,
                format!(
                    "driver {} does not describe launches: memory stays where it is first placed",
                    version(driver.version)
                ),
            )
            .advise("a driver for CUDA 12.4 or newer (550 series) allows everything"),
        );
    }
    all
}

fn about(gpu: &Gpu, driver: &Driver, is_finished: bool) -> Vec<Finding> {
    let name = format!("gpu {}", gpu.ordinal);
    let free = gpu
        .free
        .map(|free| format!(", {} free", human(free)))
        .unwrap_or_default();
    let (major, minor) = gpu.capability;
    let text = format!(
        "{}, {}{free}, compute capability {major}.{minor}",
        gpu.name,
        human(gpu.total)
    );
    let mut all = vec![match &gpu.context {
        Trial::Refused { code, .. } => Finding::new(
            &name,
            Level::Impossible,
            format!("{text}; a context is refused{}", number(*code)),
        )
        .advise("free its memory, or look at its compute mode: nvidia-smi -q -d COMPUTE"),
        _ if gpu.integrated => Finding::new(
            &name,
            Level::Degraded,
            format!("{text}; it is integrated and uses the host's RAM already"),
        )
        .advise("nothing to gain here: run the program without greenboost"),
        _ if gpu.coherent => Finding::new(
            &name,
            Level::Degraded,
            format!("{text}; it is coherent with the host and reaches all of its RAM already"),
        )
        .advise("little to gain here; the VRAM limit works"),
        _ => Finding::new(&name, Level::Fine, text),
    }];
    if gpu.name.contains("MIG ") {
        let text = "it is a MIG slice: memory and limits are those of the slice".into();
        all.push(Finding::new(&name, Level::Note, text));
    }
    if gpu.context != Trial::Works {
        return all;
    }
    all.extend(backing(gpu, driver, is_finished));
    all
}

fn backing(gpu: &Gpu, driver: &Driver, is_finished: bool) -> Vec<Finding> {
    const WHATS_LEFT: &str =
        "what is left: allocations spill whole, where ordinary memory can be pinned";
    let mut all = Vec::new();
    match &gpu.device_backing {
        Trial::Works => all.push(Finding::new(
            "vmm",
            Level::Fine,
            "VRAM can be mapped piece by piece".into(),
        )),
        Trial::Untried => return all,
        refused => {
            all.push(
                Finding::new(
                    "vmm",
                    Level::Degraded,
                    format!("VRAM cannot be mapped piece by piece: {}", why(refused)),
                )
                .advise(WHATS_LEFT),
            );
            return all;
        }
    }
    let works: Vec<String> = gpu
        .host_backing
        .iter()
        .filter(|n| n.trial == Trial::Works)
        .map(|n| n.node.to_string())
        .collect();
    let first_refusal = gpu.host_backing.iter().find(|n| n.trial != Trial::Works);
    match (works.is_empty(), first_refusal) {
        (false, None) => all.push(Finding::new(
            "host memory",
            Level::Fine,
            format!("can be mapped beside VRAM (node {})", works.join(", ")),
        )),
        (false, Some(refused)) => all.push(Finding::new(
            "host memory",
            Level::Note,
            format!(
                "can be mapped beside VRAM from node {}, not from node {}: {}",
                works.join(", "),
                refused.node,
                why(&refused.trial)
            ),
        )),
        (true, Some(refused)) => {
            let text = format!(
                "cannot be mapped beside VRAM: {}; {WHATS_LEFT}",
                why(&refused.trial)
            );
            let advice = if driver.version < MAPS_HOST {
                "a driver for CUDA 12.2 or newer (535 series) can; 12.4 (550) allows everything"
            } else {
                "in a container allow mbind (docker: --cap-add SYS_NICE); else a newer driver may"
            };
            all.push(Finding::new("host memory", Level::Degraded, text).advise(advice));
        }
        (true, None) if is_finished => {}
        (true, None) => return all,
    }
    match &gpu.pinning {
        Trial::Works => all.push(Finding::new(
            "pinning",
            Level::Fine,
            "ordinary host memory can be pinned".into(),
        )),
        Trial::Untried => {}
        refused => all.push(
            Finding::new(
                "pinning",
                Level::Degraded,
                format!("host memory cannot be pinned: {}", why(refused)),
            )
            .advise("look at limits of the container or of virtualisation"),
        ),
    }
    all
}

fn number(code: Option<i32>) -> String {
    code.map(|c| format!(" (error {c})")).unwrap_or_default()
}

fn why(trial: &Trial) -> String {
    match trial {
        Trial::Refused { call, code: None } => format!("this driver has no {call}"),
        Trial::Refused {
            call,
            code: Some(code),
        } => format!("{call} returned error {code}"),
        Trial::Wrong => "other bytes came back than were written".into(),
        Trial::Untried => "it was not tried".into(),
        Trial::Works => "it works".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::driver::Node;
    use super::*;

    fn driver(version: i32) -> Driver {
        Driver {
            library: Some("/lib/libcuda.so.1".into()),
            init: Some(CUDA_SUCCESS),
            version,
            devices: vec![Gpu {
                name: "NVIDIA X".into(),
                total: 8 << 30,
                context: Trial::Works,
                device_backing: Trial::Works,
                host_backing: vec![Node {
                    node: 0,
                    trial: Trial::Works,
                }],
                pinning: Trial::Works,
                ..Gpu::default()
            }],
            ..Driver::default()
        }
    }

    fn refused(call: &str, code: Option<i32>) -> Trial {
        let call = call.to_string();
        Trial::Refused { call, code }
    }

    fn judge(driver: &Driver) -> (Level, String) {
        let all = findings(driver, &End::Finished, &Place::default());
        let worst = all.iter().map(|f| f.level).max().unwrap();
        (worst, all.iter().map(|f| format!("{f:?}\n")).collect())
    }

    #[test]
    fn versions() {
        assert_eq!(judge(&driver(13_000)).0, Level::Fine);
        assert_eq!(judge(&driver(12_040)).0, Level::Fine);
        let (level, said) = judge(&driver(12_030));
        assert_eq!(level, Level::Degraded);
        assert!(said.contains("driver 12.3 does not describe launches"));
        let mut old = driver(12_010);
        old.devices[0].host_backing[0].trial = refused("cuMemCreate", Some(1));
        let (level, said) = judge(&old);
        assert_eq!(level, Level::Degraded);
        assert!(said.contains("allocations spill whole") && said.contains("12.2 or newer"));
    }

    #[test]
    fn refusals() {
        let mut no_vmm = driver(13_000);
        no_vmm.devices[0].device_backing = refused("cuMemCreate", None);
        let (level, said) = judge(&no_vmm);
        assert_eq!(level, Level::Degraded);
        assert!(said.contains("this driver has no cuMemCreate"), "{said}");

        let mut wrong = driver(13_000);
        wrong.devices[0].host_backing[0].trial = Trial::Wrong;
        assert!(judge(&wrong).1.contains("other bytes came back"));

        let mut none = driver(13_000);
        none.devices.clear();
        assert_eq!(judge(&none).0, Level::Impossible);
        none.init = Some(803);
        let (level, said) = judge(&none);
        assert_eq!(level, Level::Impossible);
        assert!(said.contains("reboot"), "{said}");
    }

    #[test]
    fn no_gain() {
        for set in [
            |g: &mut Gpu| g.integrated = true,
            |g: &mut Gpu| g.coherent = true,
        ] {
            let mut driver = driver(13_000);
            set(&mut driver.devices[0]);
            let (level, said) = judge(&driver);
            assert_eq!(level, Level::Degraded);
            assert!(said.contains("to gain here"));
        }
    }

    #[test]
    fn no_driver() {
        let missing = Driver {
            load_error: Some("no such file".into()),
            ..Driver::default()
        };
        let advice = |place: &Place| {
            let all = findings(&missing, &End::Finished, place);
            assert_eq!((all.len(), all[0].level), (1, Level::Impossible));
            all[0].advice.clone().unwrap()
        };
        let mut place = Place::default();
        assert!(advice(&place).contains("install"));
        place.container = Some("docker".into());
        assert!(advice(&place).contains("--gpus all"));
        place.is_wsl = true;
        assert!(advice(&place).contains("Windows"));
    }
}
