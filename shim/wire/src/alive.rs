//! Is a process, known by pid and start time, still alive?

use std::fs;

/// When a process started, in clock ticks since boot (`/proc/PID/stat` field 22), or `None` when it is gone.
///
/// A zombie counts as gone: the kernel has already released its memory and its device files.
pub fn start_time(pid: u32) -> Option<u64> {
    parse_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// Tells a process before an `exec` from the same process after it: where its stack began (`/proc/PID/stat` field 28),
/// which is another place for every program started. 0 when it cannot be told: the process is gone or ends just now, or
/// does not let itself be looked at.
pub fn image(pid: u32) -> u64 {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .ok()
        .and_then(|line| field(&line, 28)?.parse().ok())
        .unwrap_or(0)
}

/// A field of `/proc/PID/stat` behind the command, by the number that `proc(5)` gives it.
fn field(line: &str, number: usize) -> Option<&str> {
    line[line.rfind(')')? + 1..]
        .split_ascii_whitespace()
        .nth(number - 3)
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

    /// Without a random layout of addresses one program may follow another at the same place; then nothing is told.
    #[test]
    fn a_program_that_execs_is_another_image() {
        let mut child = std::process::Command::new("/bin/sh")
            .args(["-c", "read x; exec sleep 100"])
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let (pid, start) = (child.id(), start_time(child.id()));
        let is_shell = |pid: u32| {
            fs::read_to_string(format!("/proc/{pid}/cmdline")).is_ok_and(|c| c.contains("read"))
        };
        while !is_shell(pid) {
            std::thread::yield_now();
        }
        let before = image(pid);
        assert_eq!(image(pid), before);
        drop(child.stdin.take());
        while is_shell(pid) {
            std::thread::yield_now();
        }
        assert_eq!(start_time(pid), start, "it is the same process");
        let layout = fs::read_to_string("/proc/sys/kernel/randomize_va_space");
        assert!(image(pid) != before || layout.is_ok_and(|l| l.trim() == "0"));
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(image(pid), 0);
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
