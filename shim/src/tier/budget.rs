//! May this much more of the machine's RAM be pinned?
//!
//! Memory that the driver pins is charged neither to the cgroup nor to RSS nor to `RLIMIT_MEMLOCK` (measured), and it
//! cannot be swapped: nobody else protects the machine (PITFALLS 24, 25). So before each piece the machine is asked again.

use greenboost_wire::ram::Ram;

/// Why a piece of host memory is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// MemAvailable would fall under the floor.
    Machine,
    /// The cgroup's limit.
    Cgroup,
}

impl Refusal {
    /// In words, for the user.
    pub fn reason(self) -> &'static str {
        match self {
            Refusal::Machine => "the machine's available RAM",
            Refusal::Cgroup => "the cgroup's memory limit",
        }
    }
}

/// What stays available to everybody else: 2 GiB or a tenth of the machine, whichever is more.
pub fn floor(total: u64) -> u64 {
    (total / 10).max(2 << 30)
}

/// Decides about `bytes` more while the job has `pinned` already.
///
/// The cgroup does not see pinned bytes, so they are added to its usage here.
pub fn check(ram: Ram, bytes: u64, pinned: u64) -> Result<(), Refusal> {
    if ram.available < bytes.saturating_add(floor(ram.total)) {
        return Err(Refusal::Machine);
    }
    match ram.cgroup_room {
        Some(room) if room < pinned.saturating_add(bytes) => Err(Refusal::Cgroup),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn the_floor_stays_free() {
        let ram = Ram {
            total: 128 * GIB,
            available: 20 * GIB,
            cgroup_room: None,
            ..Ram::default()
        };
        let floor = floor(ram.total);
        assert_eq!(check(ram, 20 * GIB - floor, 0), Ok(()));
        assert_eq!(check(ram, 20 * GIB - floor + 1, 0), Err(Refusal::Machine));
        assert_eq!(check(ram, u64::MAX, 0), Err(Refusal::Machine));
        assert_eq!(super::floor(8 * GIB), 2 * GIB);
    }

    #[test]
    fn the_cgroup_does_not_see_pinned_bytes() {
        let ram = Ram {
            total: 128 * GIB,
            available: 100 * GIB,
            cgroup_room: Some(10 * GIB),
            ..Ram::default()
        };
        assert_eq!(check(ram, 2 * GIB, 8 * GIB), Ok(()));
        assert_eq!(check(ram, 2 * GIB, 9 * GIB), Err(Refusal::Cgroup));
    }
}
