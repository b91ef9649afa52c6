//! The disk below a file system, through partitions, device mapper and RAID, and how fast its link can be. Pure, but for
//! reading `/sys`.

use std::fs;
use std::path::{Path, PathBuf};

use crate::probe::pcie;

/// Deeper stacks of devices are not followed.
const DEEPEST: u32 = 8;

/// What is there.
#[derive(Clone, Debug, PartialEq)]
pub struct Disk {
    /// Kernel name; with what lies below, where it is not a disk by itself.
    pub name: String,
    pub model: Option<String>,
    /// Of the links of the disks below.
    pub link: Link,
    pub rotates: bool,
    /// It is reached over a network by this protocol.
    pub network: Option<String>,
    /// Kernel names of the disks below.
    leaves: Vec<String>,
}

/// What a disk's link carries at most.
#[derive(Clone, Debug, PartialEq)]
pub enum Link {
    /// Bytes per second, and in words.
    Known(f64, String),
    /// Why it is not known.
    Unknown(String),
}

impl Link {
    /// Bytes per second.
    pub fn rate(&self) -> Option<f64> {
        match self {
            Link::Known(rate, _) => Some(*rate),
            Link::Unknown(_) => None,
        }
    }
}

impl std::fmt::Display for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        match self {
            Link::Known(rate, text) => write!(f, "{text}, {:.2} GB/s", rate / 1e9),
            Link::Unknown(why) => write!(f, "unknown ({why})"),
        }
    }
}

fn read(path: PathBuf) -> Option<String> {
    fs::read_to_string(path).ok().map(|t| t.trim().to_string())
}

fn name_of(path: &Path) -> String {
    path.file_name()
        .map(|n| n.to_string_lossy().into_owned())
        .unwrap_or_default()
}

impl Disk {
    /// By the number of a block device. `sys` is `/sys`.
    pub fn find(sys: &Path, (major, minor): (u64, u64)) -> Option<Disk> {
        let path = fs::canonicalize(sys.join(format!("dev/block/{major}:{minor}"))).ok()?;
        let mut disk = Disk::of(&path, 0)?;
        disk.with_btrfs(sys, &name_of(&path));
        Some(disk)
    }

    /// What is wrong with spilling there, whatever its speed.
    pub fn warnings(&self) -> Vec<String> {
        let mut all = Vec::new();
        if let Some(protocol) = &self.network {
            all.push(format!(
                "the disk is reached over a network ({protocol}): a lost connection would stop the program"
            ));
        }
        if self.rotates {
            all.push(
                "the disk says that it rotates: random access may be far slower than measured"
                    .into(),
            );
        }
        all
    }

    fn of(path: &Path, depth: u32) -> Option<Disk> {
        if depth > DEEPEST {
            return None;
        }
        if path.join("partition").exists() {
            return Disk::of(path.parent()?, depth + 1);
        }
        let mut below: Vec<PathBuf> = fs::read_dir(path.join("slaves"))
            .into_iter()
            .flatten()
            .filter_map(|entry| fs::canonicalize(entry.ok()?.path()).ok())
            .collect();
        below.sort();
        let mut below: Vec<Disk> = below
            .iter()
            .map(|path| Disk::of(path, depth + 1))
            .collect::<Option<_>>()?;
        let Some(first) = below.first() else {
            return Some(Disk::leaf(path));
        };
        let name = name_of(path);
        let mut leaves: Vec<String> = below.iter().flat_map(|d| d.leaves.clone()).collect();
        leaves.sort();
        leaves.dedup();
        let stack = |disks: &[String]| format!("{name} on {}", disks.join(", "));
        if leaves.len() == 1 {
            return Some(Disk {
                name: stack(&leaves),
                ..first.clone()
            });
        }
        let level = read(path.join("md/level"));
        let rates: Option<Vec<f64>> = below.iter().map(|d| d.link.rate()).collect();
        let link = match (level.as_deref(), rates) {
            // Stripes: every disk carries its part.
            (Some("raid0"), Some(rates)) => {
                Link::Known(rates.iter().sum(), format!("{} stripes", rates.len()))
            }
            _ => Link::Unknown("it lies on several disks".into()),
        };
        Some(Disk {
            name: stack(&leaves),
            model: None,
            link,
            rotates: below.iter().any(|d| d.rotates),
            network: below.iter_mut().find_map(|d| d.network.take()),
            leaves,
        })
    }

    /// A device with nothing below.
    fn leaf(path: &Path) -> Disk {
        let name = name_of(path);
        let model = read(path.join("device/model")).filter(|m| !m.is_empty());
        let is = |prefixes: &[&str]| prefixes.iter().any(|p| name.starts_with(p));
        // What these say of links and rotation means nothing.
        let is_virtual = is(&["vd", "xvd", "loop", "ram", "zram", "pmem"])
            || model.as_deref().is_some_and(is_emulated);
        let network = if is(&["nbd", "rbd", "drbd"]) {
            Some(
                name.trim_end_matches(|c: char| c.is_ascii_digit())
                    .to_string(),
            )
        } else {
            controller(path)
                .and_then(|c| read(c.join("transport")))
                .filter(|transport| !matches!(transport.as_str(), "pcie" | "loop" | "apple-nvme"))
        };
        let link = match &network {
            Some(protocol) => Link::Unknown(format!("it is reached by {protocol}")),
            None if is_virtual => Link::Unknown("a virtual disk".into()),
            None => link(path),
        };
        let rotates = read(path.join("queue/rotational")).is_some_and(|r| r == "1");
        Disk {
            leaves: vec![name.clone()],
            name,
            model,
            link,
            rotates: rotates && !is_virtual,
            network,
        }
    }

    /// A btrfs over several devices shows only one of them as its source.
    fn with_btrfs(&mut self, sys: &Path, name: &str) {
        let file_systems = fs::read_dir(sys.join("fs/btrfs")).into_iter().flatten();
        for file_system in file_systems.filter_map(Result::ok) {
            let devices = file_system.path().join("devices");
            if devices.join(name).exists()
                && fs::read_dir(&devices).is_ok_and(|entries| entries.count() > 1)
            {
                self.link = Link::Unknown("btrfs over several devices".into());
            }
        }
    }
}

/// Models of disks that a hypervisor or a cloud makes.
fn is_emulated(model: &str) -> bool {
    let model = model.to_ascii_lowercase();
    [
        "qemu",
        "virtual",
        "vbox",
        "vmware",
        "amazon",
        "msft",
        "nvme_card",
        "persistentdisk",
    ]
    .iter()
    .any(|part| model.contains(part))
}

/// The one controller of an NVMe namespace, also where the kernel would use several.
fn controller(path: &Path) -> Option<PathBuf> {
    if !name_of(path).starts_with("nvme") {
        return None;
    }
    let device = fs::canonicalize(path.join("device")).ok()?;
    if !name_of(&device).starts_with("nvme-subsys") {
        return Some(device);
    }
    let is_controller = |name: &str| {
        name.strip_prefix("nvme")
            .is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
    };
    let mut all = fs::read_dir(&device)
        .ok()?
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .filter(|path| is_controller(&name_of(path)));
    let first = all.next()?;
    match all.next() {
        None => fs::canonicalize(first).ok(),
        Some(_) => None,
    }
}

fn link(path: &Path) -> Link {
    if name_of(path).starts_with("nvme") {
        let link = controller(path).and_then(|c| pcie::of_sysfs(&c.join("device")));
        return match link {
            Some(link) => Link::Known(link.rate(), link.to_string()),
            None => Link::Unknown("its PCIe link is not shown".into()),
        };
    }
    for ancestor in path.ancestors() {
        let name = name_of(ancestor);
        let port = name
            .strip_prefix("ata")
            .filter(|n| n.parse::<u32>().is_ok());
        if let Some(port) = port {
            let file = format!("link{port}/ata_link/link{port}/sata_spd");
            return match read(ancestor.join(file)).and_then(|text| sata(&text)) {
                Some((rate, text)) => Link::Known(rate, text),
                None => Link::Unknown("its SATA link is not shown".into()),
            };
        }
        if name.starts_with("usb") {
            return Link::Unknown("a USB disk".into());
        }
    }
    Link::Unknown("this kind of disk does not show its link".into())
}

/// `6.0 Gbps`: 8 bits in 10.
fn sata(text: &str) -> Option<(f64, String)> {
    let gigabits: f64 = text.strip_suffix(" Gbps")?.parse().ok()?;
    (gigabits > 0.0).then(|| (gigabits * 1e9 * 0.8 / 8.0, format!("SATA {text}")))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// A tree like `/sys`.
    struct Sys(tempfile::TempDir);

    const NVME: &str = "devices/pci0000:00/0000:00:01.1/0000:01:00.0/nvme/nvme0/nvme0n1";
    const SATA: &str = "devices/pci0000:00/0000:00:17.0/ata3/host2/target2:0:0/2:0:0:0/block/sda";

    impl Sys {
        fn new() -> Sys {
            Sys(tempfile::tempdir().unwrap())
        }

        fn path(&self, path: &str) -> PathBuf {
            self.0.path().join(path)
        }

        fn write(&self, path: &str, text: &str) {
            fs::create_dir_all(self.path(path).parent().unwrap()).unwrap();
            fs::write(self.path(path), text).unwrap();
        }

        fn link(&self, from: &str, to: &str) {
            fs::create_dir_all(self.path(from).parent().unwrap()).unwrap();
            symlink(self.path(to), self.path(from)).unwrap();
        }

        /// A block device of this number.
        fn block(&self, number: &str, path: &str) {
            fs::create_dir_all(self.path(path)).unwrap();
            self.link(&format!("dev/block/{number}"), path);
        }

        /// `nvme0n1` with a PCIe link, as 259:0.
        fn nvme(&self) {
            self.block("259:0", NVME);
            self.link(
                &format!("{NVME}/device"),
                "devices/pci0000:00/0000:00:01.1/0000:01:00.0/nvme/nvme0",
            );
            self.write(&format!("{NVME}/../model"), "Solid 990  \n");
            self.write(&format!("{NVME}/../transport"), "pcie\n");
            self.link(
                &format!("{NVME}/../device"),
                "devices/pci0000:00/0000:00:01.1/0000:01:00.0",
            );
            self.write(
                &format!("{NVME}/../../../current_link_speed"),
                "16.0 GT/s PCIe\n",
            );
            self.write(&format!("{NVME}/../../../current_link_width"), "4\n");
            self.write(&format!("{NVME}/queue/rotational"), "0\n");
            self.block("259:2", &format!("{NVME}/nvme0n1p2"));
            self.write(&format!("{NVME}/nvme0n1p2/partition"), "2\n");
        }

        /// A second one, the same, as 259:5.
        fn second(&self) {
            let path = NVME.replace("0000:01", "0000:02").replace("nvme0", "nvme1");
            let card = "devices/pci0000:00/0000:00:01.1/0000:02:00.0";
            self.block("259:5", &path);
            self.link(&format!("{path}/device"), &format!("{card}/nvme/nvme1"));
            self.link(&format!("{path}/../device"), card);
            self.write(&format!("{card}/current_link_speed"), "8.0 GT/s PCIe\n");
            self.write(&format!("{card}/current_link_width"), "4\n");
        }

        /// A device of the mapper or of RAID over others.
        fn stack(&self, number: &str, name: &str, below: &[&str]) {
            let path = format!("devices/virtual/block/{name}");
            self.block(number, &path);
            for disk in below {
                let name = name_of(Path::new(disk));
                self.link(&format!("{path}/slaves/{name}"), disk);
            }
        }

        fn find(&self, major: u64, minor: u64) -> Disk {
            Disk::find(self.0.path(), (major, minor)).unwrap()
        }
    }

    #[test]
    fn a_partition_of_an_nvme_disk() {
        let sys = Sys::new();
        sys.nvme();
        let disk = sys.find(259, 2);
        assert_eq!(disk, sys.find(259, 0));
        assert_eq!(disk.name, "nvme0n1");
        assert_eq!(disk.model.as_deref(), Some("Solid 990"));
        assert_eq!(disk.link.to_string(), "PCIe 4.0 x4, 7.88 GB/s");
        assert!(!disk.rotates && disk.network.is_none());
        assert_eq!(Disk::find(sys.0.path(), (8, 0)), None);
    }

    #[test]
    fn volumes_and_stripes() {
        let sys = Sys::new();
        sys.nvme();
        sys.second();
        let part = format!("{NVME}/nvme0n1p2");
        // A volume on an encrypted partition.
        sys.stack("254:0", "dm-0", &[&part]);
        sys.stack("254:1", "dm-1", &["devices/virtual/block/dm-0"]);
        let disk = sys.find(254, 1);
        assert_eq!(disk.name, "dm-1 on nvme0n1");
        assert_eq!(disk.link.to_string(), "PCIe 4.0 x4, 7.88 GB/s");
        assert_eq!(disk.model.as_deref(), Some("Solid 990"));
        // Over two disks it is not known how.
        let other = NVME.replace("0000:01", "0000:02").replace("nvme0", "nvme1");
        sys.stack("254:2", "dm-2", &[&part, &other]);
        let disk = sys.find(254, 2);
        assert_eq!(disk.name, "dm-2 on nvme0n1, nvme1n1");
        assert_eq!(disk.link.to_string(), "unknown (it lies on several disks)");
        for (minor, level, expected) in [
            (0, "raid0", "2 stripes, 11.82 GB/s"),
            (1, "raid1", "unknown (it lies on several disks)"),
        ] {
            sys.stack(
                &format!("9:{minor}"),
                &format!("md{minor}"),
                &[&part, &other],
            );
            sys.write(&format!("devices/virtual/block/md{minor}/md/level"), level);
            assert_eq!(sys.find(9, minor).link.to_string(), expected);
        }
        // Something that lies on itself ends.
        sys.stack("254:9", "dm-9", &["devices/virtual/block/dm-9"]);
        assert_eq!(Disk::find(sys.0.path(), (254, 9)), None);
    }

    #[test]
    fn several_paths_and_networks() {
        let sys = Sys::new();
        sys.nvme();
        let subsystem = "devices/virtual/nvme-subsystem/nvme-subsys0";
        let path = format!("{subsystem}/nvme3n1");
        sys.block("259:7", &path);
        sys.link(&format!("{path}/device"), subsystem);
        sys.link(&format!("{subsystem}/nvme0"), &format!("{NVME}/.."));
        assert_eq!(sys.find(259, 7).link.to_string(), "PCIe 4.0 x4, 7.88 GB/s");
        sys.link(&format!("{subsystem}/nvme1"), &format!("{NVME}/.."));
        assert_eq!(
            sys.find(259, 7).link.rate(),
            None,
            "which of them is not known"
        );
        sys.write(&format!("{NVME}/../transport"), "tcp\n");
        let disk = sys.find(259, 0);
        assert_eq!(disk.network.as_deref(), Some("tcp"));
        assert!(disk.warnings()[0].contains("over a network (tcp)"));
        assert_eq!(disk.link.to_string(), "unknown (it is reached by tcp)");
        sys.block("43:0", "devices/virtual/block/nbd0");
        assert_eq!(sys.find(43, 0).network.as_deref(), Some("nbd"));
    }

    #[test]
    fn other_kinds() {
        let sys = Sys::new();
        sys.block("8:0", SATA);
        sys.write(&format!("{SATA}/device/model"), "Spinner\n");
        sys.write(&format!("{SATA}/queue/rotational"), "1\n");
        assert_eq!(
            sys.find(8, 0).link.to_string(),
            "unknown (its SATA link is not shown)"
        );
        let speed = "devices/pci0000:00/0000:00:17.0/ata3/link3/ata_link/link3/sata_spd";
        sys.write(speed, "6.0 Gbps\n");
        let disk = sys.find(8, 0);
        assert_eq!(disk.link.to_string(), "SATA 6.0 Gbps, 0.60 GB/s");
        assert!(disk.rotates && disk.warnings()[0].contains("rotates"));
        sys.block("254:0", "devices/pci0000:00/0000:00:02.0/virtio1/block/vda");
        sys.write(
            "devices/pci0000:00/0000:00:02.0/virtio1/block/vda/queue/rotational",
            "1",
        );
        let disk = sys.find(254, 0);
        assert_eq!(disk.link.to_string(), "unknown (a virtual disk)");
        assert!(!disk.rotates, "virtual disks say so without meaning it");
        sys.block(
            "8:16",
            "devices/pci0000:00/0000:00:14.0/usb2/2-1/host6/target6:0:0/6:0:0:0/block/sdb",
        );
        assert_eq!(sys.find(8, 16).link.to_string(), "unknown (a USB disk)");
        // An emulated one has a PCIe link that binds nobody.
        sys.nvme();
        sys.write(&format!("{NVME}/../model"), "QEMU NVMe Ctrl\n");
        assert_eq!(
            sys.find(259, 0).link.to_string(),
            "unknown (a virtual disk)"
        );
    }

    #[test]
    fn a_btrfs_of_several_devices() {
        let sys = Sys::new();
        sys.nvme();
        let devices = "fs/btrfs/0b1c/devices";
        sys.link(
            &format!("{devices}/nvme0n1p2"),
            &format!("{NVME}/nvme0n1p2"),
        );
        assert!(sys.find(259, 2).link.rate().is_some());
        sys.link(&format!("{devices}/nvme1n1p2"), NVME);
        assert_eq!(
            sys.find(259, 2).link.to_string(),
            "unknown (btrfs over several devices)"
        );
    }
}
