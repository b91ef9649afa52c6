//! How a GPU is connected, as `/sys` tells it: NUMA node, IOMMU, ACS. Pure, but for reading files below a given root.

use std::fs;
use std::path::Path;

use super::figure::Section;

/// NVIDIA's number.
const VENDOR: &str = "0x10de";

/// Puts what is known about the device into its section.
///
/// `sys` is `/sys`, `bus_id` the device's PCI address, `cpus` the processors that we may run on (`0-3,8`).
pub fn describe(sys: &Path, bus_id: &str, cpus: &str, section: &mut Section) {
    let devices = sys.join("bus/pci/devices");
    let device = devices.join(bus_id);
    numa(sys, &device, cpus, section);
    iommu(&device, section);
    // It matters to what GPUs send each other, not to what one gets from host memory.
    if gpus(&devices) > 1 {
        acs(&device, section);
    }
}

/// The processors that this process may run on.
pub fn our_cpus() -> String {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mine = status
        .lines()
        .find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    mine.unwrap_or_default().trim().to_string()
}

fn read(path: &Path) -> Option<String> {
    fs::read_to_string(path).ok().map(|t| t.trim().to_string())
}

fn numa(sys: &Path, device: &Path, cpus: &str, section: &mut Section) {
    let nodes = sys.join("devices/system/node");
    let known = nodes_of(&nodes);
    let node = read(&device.join("numa_node")).and_then(|n| n.parse::<i32>().ok());
    let Some(node) = node.filter(|n| *n >= 0) else {
        if known.len() > 1 {
            let text = "not told by the firmware: which half of the memory is near is not known";
            section.fact("NUMA node", text);
        }
        return;
    };
    let distances = read(&nodes.join(format!("node{node}/distance")));
    section.fact(
        "NUMA node",
        format!("{node}, distances {}", distances.unwrap_or_default()),
    );
    let mine = list(cpus);
    let here: Vec<i32> = known
        .into_iter()
        .filter(|(_, theirs)| theirs.iter().any(|cpu| mine.contains(cpu)))
        .map(|(node, _)| node)
        .collect();
    if !here.is_empty() && !here.contains(&node) {
        section.warn(format!(
            "this process runs on NUMA nodes {here:?}, the GPU is on {node}: bind the program there (numactl --cpunodebind={node})"
        ));
    }
}

/// Nodes and their processors.
fn nodes_of(nodes: &Path) -> Vec<(i32, Vec<u32>)> {
    let Ok(entries) = fs::read_dir(nodes) else {
        return Vec::new();
    };
    let mut found: Vec<_> = entries
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let name = entry.file_name();
            let node = name.to_str()?.strip_prefix("node")?.parse().ok()?;
            Some((node, list(&read(&entry.path().join("cpulist"))?)))
        })
        .collect();
    found.sort();
    found
}

/// `0-3,8` as numbers.
fn list(text: &str) -> Vec<u32> {
    text.trim()
        .split(',')
        .filter_map(|part| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            Some(first.trim().parse::<u32>().ok()?..=last.trim().parse().ok()?)
        })
        .flatten()
        .take(1 << 16)
        .collect()
}

fn iommu(device: &Path, section: &mut Section) {
    let Some(kind) = read(&device.join("iommu_group/type")) else {
        return;
    };
    if kind.starts_with("DMA") {
        section.fact("IOMMU", format!("translates ({kind})"));
        section.warn("an IOMMU translates the GPU's accesses: large footprints may be slower (iommu=pt avoids it)");
    } else {
        section.fact("IOMMU", format!("passes through ({kind})"));
    }
}

/// NVIDIA's display and 3D controllers.
fn gpus(devices: &Path) -> usize {
    let Ok(entries) = fs::read_dir(devices) else {
        return 0;
    };
    entries
        .filter_map(|entry| {
            let device = entry.ok()?.path();
            let is_gpu = read(&device.join("class"))?.starts_with("0x03");
            (is_gpu && read(&device.join("vendor"))? == VENDOR).then_some(())
        })
        .count()
}

fn acs(device: &Path, section: &mut Section) {
    let Ok(device) = fs::canonicalize(device) else {
        return;
    };
    let (mut redirecting, mut is_hidden) = (Vec::new(), false);
    for bridge in device.ancestors().skip(1) {
        let Ok(config) = fs::read(bridge.join("config")) else {
            break;
        };
        // Others than root get the first 64 bytes.
        if config.len() <= EXTENDED {
            is_hidden |= config.len() <= 64;
            continue;
        }
        if acs_control(&config).is_some_and(|bits| bits & REDIRECTS != 0)
            && let Some(name) = bridge.file_name()
        {
            redirecting.push(name.to_string_lossy().into_owned());
        }
    }
    if !redirecting.is_empty() {
        section.fact("ACS", format!("redirects at {}", redirecting.join(", ")));
        section.warn(
            "ACS sends what GPUs copy to each other through the processor: copies between GPUs are slower (a virtual machine's host needs it so)",
        );
    } else if is_hidden {
        section.fact("ACS", "only root can see it");
    } else {
        section.fact("ACS", "does not redirect");
    }
}

/// Where extended capabilities begin.
const EXTENDED: usize = 0x100;
/// `PCI_ACS_RR | PCI_ACS_CR` of the kernel's `pci_regs.h`: requests and completions between peers go up.
const REDIRECTS: u16 = 0x0c;

/// The ACS control register of a bridge (PCI Express base specification: extended capability 0x0d, its word at 6).
fn acs_control(config: &[u8]) -> Option<u16> {
    let mut at = EXTENDED;
    // Each takes 8 bytes at least, so a chain that goes in circles ends here.
    for _ in 0..(4096 - EXTENDED) / 8 {
        let header = config.get(at..at + 4)?;
        let header = u32::from_le_bytes(header.try_into().ok()?);
        if header & 0xffff == 0x0d {
            let word = config.get(at + 6..at + 8)?;
            return Some(u16::from_le_bytes(word.try_into().ok()?));
        }
        at = (header >> 20) as usize & !3;
        if at < EXTENDED {
            return None;
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::path::PathBuf;

    use super::*;
    use crate::probe::figure::Tier;

    /// A machine of two nodes and two GPUs, each below a bridge.
    struct Machine(tempfile::TempDir);

    impl Machine {
        fn new() -> Machine {
            let machine = Machine(tempfile::tempdir().unwrap());
            for (node, cpus) in [(0, "0-7"), (1, "8-15")] {
                let path = format!("devices/system/node/node{node}");
                machine.write(&format!("{path}/cpulist"), cpus);
                machine.write(&format!("{path}/distance"), "10 21\n");
            }
            for gpu in 1..3 {
                let at = format!("devices/pci0000:00/0000:00:0{gpu}.0/0000:0{gpu}:00.0");
                machine.write(&format!("{at}/class"), "0x030200\n");
                machine.write(&format!("{at}/vendor"), "0x10de\n");
                machine.write(&format!("{at}/numa_node"), "1\n");
                machine.write(&format!("{at}/config"), "");
                machine.write(&format!("{at}/../config"), [0; 64]);
                let link = machine.path(&format!("bus/pci/devices/0000:0{gpu}:00.0"));
                fs::create_dir_all(link.parent().unwrap()).unwrap();
                symlink(machine.path(&at), link).unwrap();
            }
            machine
        }

        fn path(&self, path: &str) -> PathBuf {
            self.0.path().join(path)
        }

        fn write(&self, path: &str, bytes: impl AsRef<[u8]>) {
            let path = self.path(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        }

        fn gpu(&self, path: &str, bytes: impl AsRef<[u8]>) {
            self.write(&format!("bus/pci/devices/0000:01:00.0/{path}"), bytes);
        }

        fn look(&self, cpus: &str) -> Section {
            let mut section = Section::new(Tier::Link, "");
            describe(self.0.path(), "0000:01:00.0", cpus, &mut section);
            section
        }
    }

    fn fact<'s>(section: &'s Section, name: &str) -> Option<&'s str> {
        let found = section.facts.iter().find(|(n, _)| n == name);
        found.map(|(_, text)| text.as_str())
    }

    #[test]
    fn the_node_of_the_gpu() {
        let machine = Machine::new();
        let section = machine.look("4-9");
        assert_eq!(fact(&section, "NUMA node"), Some("1, distances 10 21"));
        assert_eq!(section.warnings, [""; 0], "one of its nodes is near");
        let section = machine.look("0-3");
        assert!(
            section.warnings[0].contains("nodes [0], the GPU is on 1"),
            "{section:?}"
        );
        machine.gpu("numa_node", "-1\n");
        let section = machine.look("0-3");
        assert!(fact(&section, "NUMA node").unwrap().contains("not told"));
        assert_eq!(section.warnings, [""; 0]);
        fs::remove_dir_all(machine.path("devices/system/node/node1")).unwrap();
        assert_eq!(fact(&machine.look("0-3"), "NUMA node"), None);
    }

    #[test]
    fn iommus() {
        let machine = Machine::new();
        assert_eq!(fact(&machine.look(""), "IOMMU"), None);
        machine.gpu("iommu_group/type", "DMA-FQ\n");
        let section = machine.look("");
        assert_eq!(fact(&section, "IOMMU"), Some("translates (DMA-FQ)"));
        assert!(section.warnings[0].contains("iommu=pt"));
        machine.gpu("iommu_group/type", "identity\n");
        let section = machine.look("");
        assert_eq!(fact(&section, "IOMMU"), Some("passes through (identity)"));
        assert_eq!(section.warnings, [""; 0]);
    }

    /// Configuration space with two capabilities, the second ACS with these control bits.
    fn config(bits: u16) -> Vec<u8> {
        let mut config = vec![0; 4096];
        config[0x100..0x104].copy_from_slice(&(0x1u32 | 1 << 16 | 0x148 << 20).to_le_bytes());
        config[0x148..0x14c].copy_from_slice(&(0xdu32 | 1 << 16).to_le_bytes());
        config[0x14e..0x150].copy_from_slice(&bits.to_le_bytes());
        config
    }

    #[test]
    fn acs_as_far_as_it_can_be_seen() {
        let machine = Machine::new();
        assert_eq!(fact(&machine.look(""), "ACS"), Some("only root can see it"));
        machine.gpu("../config", config(0x1d));
        let section = machine.look("");
        assert_eq!(fact(&section, "ACS"), Some("redirects at 0000:00:01.0"));
        assert!(section.warnings[0].contains("between GPUs"));
        machine.gpu("../config", config(0x01));
        let section = machine.look("");
        assert_eq!(fact(&section, "ACS"), Some("does not redirect"));
        assert_eq!(section.warnings, [""; 0]);
        // With one GPU there is nothing to redirect.
        machine.gpu("../config", config(0x1d));
        machine.write("bus/pci/devices/0000:02:00.0/class", "0x010802\n");
        assert_eq!(fact(&machine.look(""), "ACS"), None);
    }

    #[test]
    fn odd_configuration_spaces() {
        assert_eq!(acs_control(&config(0x1d)), Some(0x1d));
        assert_eq!(acs_control(&[0; 4096]), None);
        assert_eq!(acs_control(&[0xff; 4096]), None, "a device that is gone");
        assert_eq!(acs_control(&config(1)[..0x14a]), None);
        let mut circle = vec![0; 4096];
        circle[0x100..0x104].copy_from_slice(&(0x1u32 | 0x100 << 20).to_le_bytes());
        assert_eq!(acs_control(&circle), None);
    }

    #[test]
    fn lists_of_processors() {
        assert_eq!(list("0-2,5\n"), [0, 1, 2, 5]);
        assert_eq!(list(""), [] as [u32; 0]);
        assert_eq!(list("x"), [] as [u32; 0]);
        assert_eq!(list("0-4294967295").len(), 1 << 16);
    }
}
