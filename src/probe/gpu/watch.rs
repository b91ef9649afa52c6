//! What the card says of itself while it works: how its link runs, and what slows it down.

use std::path::PathBuf;

use super::nvml::Nvml;
use super::site::Site;
use crate::probe::figure::Section;
use crate::probe::pcie::{self, Link};
use crate::selftest_program::driver::Result;

/// What was seen so far.
pub struct Watch<'n> {
    nvml: Option<&'n Nvml>,
    /// The device's directory in `/sys`.
    sys: PathBuf,
    seen: Seen,
}

/// Pure.
#[derive(Default)]
struct Seen {
    slowest: Option<Link>,
    fastest: Option<Link>,
    best: Option<Link>,
    /// Why the clocks were lower than they could be.
    slowed: Vec<&'static str>,
}

impl<'n> Watch<'n> {
    /// Of a device by its PCI address.
    pub fn new(nvml: Option<&'n Nvml>, bus_id: &str) -> Watch<'n> {
        let sys = PathBuf::from("/sys/bus/pci/devices").join(bus_id);
        let best = nvml
            .and_then(Nvml::best_link)
            .or_else(|| pcie::best_of_sysfs(&sys));
        let seen = Seen {
            best,
            ..Seen::default()
        };
        Watch { nvml, sys, seen }
    }

    /// Looks, while the card works: idle ones run their link slower.
    pub fn look(&mut self) {
        let link = self.nvml.and_then(Nvml::link);
        if let Some(link) = link.or_else(|| pcie::of_sysfs(&self.sys)) {
            self.seen.link(link);
        }
        self.seen
            .slow(&self.nvml.map(Nvml::throttled).unwrap_or_default());
    }

    /// Keeps a copy going, and looks meanwhile.
    ///
    /// # Errors
    /// The driver's.
    pub fn under_load(&mut self, site: &Site, bytes: u64) -> Result<()> {
        let stream = site.gpu.stream()?;
        for _ in 0..4 {
            stream.upload(site.vram.address, site.host.start(), bytes as usize)?;
        }
        self.look();
        stream.synchronize()
    }

    /// Bytes per second each way that the link cannot exceed.
    pub fn limit(&self) -> Option<f64> {
        self.seen.fastest.map(Link::rate)
    }

    /// What came of it.
    pub fn end(&self, section: &mut Section) {
        self.seen.tell(section);
    }
}

impl Seen {
    fn link(&mut self, link: Link) {
        let slower = |old: Link| old.rate() < link.rate();
        if !self.slowest.is_some_and(slower) {
            self.slowest = Some(link);
        }
        if self.fastest.is_none_or(slower) {
            self.fastest = Some(link);
        }
    }

    fn slow(&mut self, reasons: &[&'static str]) {
        for reason in reasons {
            if !self.slowed.contains(reason) {
                self.slowed.push(reason);
            }
        }
    }

    fn tell(&self, section: &mut Section) {
        if let Some(best) = self.best {
            section.fact("link at most", best.to_string());
        }
        if let (Some(slowest), Some(link)) = (self.slowest, self.fastest) {
            let text = format!("{link}, {:.1} GB/s", link.rate() / 1e9);
            section.fact("link under load", text);
            if slowest.rate() < 0.99 * link.rate() {
                section.warn(format!(
                    "the link went down to {slowest} under load: look for errors of the link (dmesg) and power saving"
                ));
            }
            if let Some(best) = self.best.filter(|best| link.rate() < 0.99 * best.rate()) {
                section.warn(format!(
                    "the link runs as {link}, the card could do {best}: look at slot, riser and firmware settings"
                ));
            }
        }
        if !self.slowed.is_empty() {
            section.warn(format!(
                "the GPU was throttled meanwhile: {}",
                self.slowed.join(", ")
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::figure::Tier;

    const fn link(generation: u32, width: u32) -> Link {
        Link { generation, width }
    }

    fn warnings(best: Option<Link>, links: &[Link], slowed: &[&[&'static str]]) -> Vec<String> {
        let mut seen = Seen {
            best,
            ..Seen::default()
        };
        links.iter().for_each(|l| seen.link(*l));
        slowed.iter().for_each(|s| seen.slow(s));
        let mut section = Section::new(Tier::Link, "");
        seen.tell(&mut section);
        section.warnings
    }

    #[test]
    fn what_is_worth_a_warning() {
        let best = Some(link(5, 16));
        let none: [String; 0] = [];
        assert_eq!(warnings(best, &[link(5, 16); 3], &[&[], &[]]), none);
        assert_eq!(warnings(None, &[], &[]), none, "nothing is known");
        let said = warnings(best, &[link(4, 16), link(4, 16)], &[]);
        assert_eq!(said.len(), 1);
        assert!(said[0].contains("runs as PCIe 4.0 x16, the card could do PCIe 5.0 x16"));
        let said = warnings(best, &[link(5, 16), link(1, 16), link(5, 16)], &[]);
        assert!(said.len() == 1 && said[0].contains("went down to PCIe 1.0 x16"));
        let said = warnings(
            best,
            &[],
            &[
                &[],
                &["temperature"],
                &["temperature", "external power brake"],
            ],
        );
        assert!(
            said[0].ends_with("meanwhile: temperature, external power brake"),
            "{said:?}"
        );
    }
}
