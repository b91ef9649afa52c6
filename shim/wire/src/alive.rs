//! Is a process, known by pid and start time, still alive?

use std::fs;

/// When a process started, in clock ticks since boot (`/proc/PID/stat` field 22), or `None` when it is gone.
///
/// A zombie counts as gone: the kernel has already released its memory and its device files.
pub fn start_time(pid: u32) -> Option<u64> {
    parse_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// The start time of a line of `/proc/PID/stat`, or `None` for a zombie or an unreadable line.
///
/// The command in parentheses may hold spaces and parentheses itself, so fields are counted from the last `)`.
fn parse_stat(line: &str) -> Option<u64> {
    let mut fields = line[line.rfind(')')? + 1..].split_ascii_whitespace();
    match fields.next()? {
        "Z" | "X" | "x" => None,
        _ => fields.nth(18)?.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_start_time_is_stable() {
        let own = std::process::id();
        assert!(start_time(own).is_some());
        assert_eq!(start_time(own), start_time(own));
    }

    #[test]
    fn command_with_spaces_and_parentheses() {
        let line = "7 (a b) (c)) S 1 7 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4242 1 1";
        assert_eq!(parse_stat(line), Some(4242));
    }

    #[test]
    fn zombie_is_gone() {
        let line = "7 (x) Z 1 7 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4242 1 1";
        assert_eq!(parse_stat(line), None);
        assert_eq!(parse_stat("nonsense"), None);
    }

    #[test]
    fn unreaped_child_is_gone() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let pid = child.id();
        while start_time(pid).is_some() {
            std::thread::yield_now();
        }
        child.wait().unwrap();
    }
}
