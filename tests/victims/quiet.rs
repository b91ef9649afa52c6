//! Never touches CUDA: no thread, no descriptor, no output and no time for it.

use victim::sys;

fn main() {
    let descriptors: Vec<String> = sys::descriptors()
        .into_iter()
        .filter(|fd| *fd > 2)
        .filter_map(|fd| {
            let link = std::fs::read_link(format!("/proc/self/fd/{fd}")).ok()?;
            Some(format!("{fd} {}", link.display()))
        })
        .collect();
    println!("threads {}", sys::threads());
    for line in descriptors {
        println!("descriptor {line}");
    }
    // Anonymous executable memory, heap blocks and signal handlers would show here.
    let status = std::fs::read_to_string("/proc/self/status").expect("/proc");
    for line in status.lines() {
        // SigQ counts what the user's other processes have queued.
        let own = line.starts_with("Sig") && !line.starts_with("SigQ");
        if own || line.starts_with("Threads") {
            println!("{line}");
        }
    }
}
