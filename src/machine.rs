//! What this machine, or the container around us, has to give: host memory.

use greenboost_wire::ram::Ram;

/// Host memory, in bytes, at the moment of the look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Machine {
    /// All of it: `MemTotal`, or the cgroup's limit where that is less.
    pub total: u64,
    /// What could be taken now without hurting anybody: `MemAvailable`, or the room under the cgroup's limit where that
    /// is less.
    pub available: u64,
    /// The tightest limit of the cgroups that we are in, if it is less than the machine has.
    pub cgroup_limit: Option<u64>,
}

impl Machine {
    /// Reads `/proc` and `/sys`.
    pub fn look() -> Machine {
        Machine::of(Ram::now())
    }

    fn of(ram: Ram) -> Machine {
        Machine {
            total: ram.total.min(ram.cgroup_limit.unwrap_or(u64::MAX)),
            available: ram.available.min(ram.cgroup_room.unwrap_or(u64::MAX)),
            cgroup_limit: ram.cgroup_limit.filter(|limit| *limit < ram.total),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tighter_bound_counts() {
        let mut ram = Ram {
            total: 16,
            available: 8,
            cgroup_limit: Some(12),
            cgroup_room: Some(3),
        };
        let machine = Machine::of(ram);
        assert_eq!((machine.total, machine.available), (12, 3));
        assert_eq!(machine.cgroup_limit, Some(12));
        ram.cgroup_limit = Some(20);
        ram.cgroup_room = Some(19);
        let machine = Machine::of(ram);
        assert_eq!((machine.total, machine.available), (16, 8));
        assert_eq!(machine.cgroup_limit, None);
    }
}
