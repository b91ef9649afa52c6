//! What a PCIe link can carry. Pure, but for reading `/sys`.

use std::fs;
use std::path::Path;

/// A link as it runs, or as it could.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// 1 to 7.
    pub generation: u32,
    /// Lanes.
    pub width: u32,
}

impl Link {
    /// Bytes per second in one direction, with nothing but the encoding taken off: no transfer can be faster.
    ///
    /// PCI Express base specification: 2.5 and 5 GT/s with 8 bits in 10, then 8, 16 and 32 GT/s with 128 in 130, from 64
    /// GT/s on flits of 256 bytes that carry 236.
    pub fn rate(self) -> f64 {
        let (transfers, carried) = match self.generation {
            0 | 1 => (2.5e9, 0.8),
            2 => (5e9, 0.8),
            3 => (8e9, 128.0 / 130.0),
            4 => (16e9, 128.0 / 130.0),
            5 => (32e9, 128.0 / 130.0),
            6 => (64e9, 236.0 / 256.0),
            _ => (128e9, 236.0 / 256.0),
        };
        transfers * carried / 8.0 * f64::from(self.width)
    }
}

impl std::fmt::Display for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "PCIe {}.0 x{}", self.generation, self.width)
    }
}

/// The link of a device, as its directory in `/sys` tells it.
pub fn of_sysfs(device: &Path) -> Option<Link> {
    of_files(device, "current")
}

/// The most that it could be.
pub fn best_of_sysfs(device: &Path) -> Option<Link> {
    of_files(device, "max")
}

fn of_files(device: &Path, which: &str) -> Option<Link> {
    let read = |name: &str| fs::read_to_string(device.join(format!("{which}_link_{name}"))).ok();
    parse(&read("speed")?, &read("width")?)
}

/// `16.0 GT/s PCIe` and `16`.
fn parse(speed: &str, width: &str) -> Option<Link> {
    let transfers: f64 = speed.split_whitespace().next()?.parse().ok()?;
    let generation = match transfers {
        t if t <= 0.0 => return None,
        t if t < 4.0 => 1,
        t if t < 7.0 => 2,
        t if t < 12.0 => 3,
        t if t < 24.0 => 4,
        t if t < 48.0 => 5,
        t if t < 96.0 => 6,
        _ => 7,
    };
    let width = width.trim().parse().ok().filter(|w| (1..=64).contains(w))?;
    Some(Link { generation, width })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates() {
        for (generation, width, gigabytes) in [
            (1, 1, 0.25),
            (2, 4, 2.0),
            (3, 16, 15.75),
            (4, 16, 31.51),
            (5, 16, 63.02),
            (6, 16, 118.0),
        ] {
            let rate = Link { generation, width }.rate() / 1e9;
            assert!(
                (rate - gigabytes).abs() < 0.01 * gigabytes,
                "{generation} {width} {rate}"
            );
        }
    }

    #[test]
    fn as_the_kernel_writes_it() {
        let link = parse("16.0 GT/s PCIe\n", "8\n").unwrap();
        assert_eq!(link.to_string(), "PCIe 4.0 x8");
        assert_eq!(parse("32.0 GT/s PCIe", "16").unwrap().generation, 5);
        assert_eq!(parse("Unknown", "16"), None);
        assert_eq!(parse("2.5 GT/s", "0"), None);
        assert_eq!(
            parse("2.5 GT/s", "255"),
            None,
            "what a device that is off says"
        );
    }
}
