//! What is around the program: memory, container, settings, and whether a library can be preloaded at all.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};

use super::gpu::Place;
use super::{Finding, Level};
use crate::cli::{self, RunArgs};
use crate::embed;
use crate::launch;
use crate::machine::Machine;
use crate::plan::Plan;
use crate::size::human;
use crate::target;

/// With less than this nothing worth the trouble can spill.
const LITTLE: u64 = 1 << 30;

fn variable(name: &str) -> Option<String> {
    Some(std::env::var_os(name)?.to_string_lossy().into_owned())
}

/// Looks where we are.
pub fn place() -> Place {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let module = fs::read_to_string("/sys/module/nvidia/version").ok();
    Place {
        container: container(),
        is_wsl: release.to_ascii_lowercase().contains("microsoft"),
        visible: variable("CUDA_VISIBLE_DEVICES"),
        module: module.map(|m| m.trim().to_string()),
    }
}

fn container() -> Option<String> {
    if Path::new("/run/.containerenv").exists() {
        return Some("podman".into());
    }
    if Path::new("/.dockerenv").exists() {
        return Some("docker".into());
    }
    if let Some(kind) = variable("container").filter(|kind| !kind.is_empty()) {
        return Some(kind);
    }
    let groups = fs::read_to_string("/proc/1/cgroup").unwrap_or_default();
    ["kubepods", "docker", "lxc", "libpod"]
        .into_iter()
        .find(|kind| groups.contains(kind))
        .map(str::to_string)
}

/// Everything but the GPU. Each costs microseconds, but for starting a shell twice.
pub fn findings(place: &Place) -> Vec<Finding> {
    let mut all = vec![ram()];
    all.extend(surroundings(place));
    all.extend(settings());
    let (cache, shim) = cache();
    all.push(cache);
    all.push(match shim {
        Some(shim) => preloading(&shim),
        None => Finding::new("preloading", Level::Note, "could not be tried".into()),
    });
    all.extend(job());
    all.extend(core_limit());
    all
}

/// A run needs a private directory with a socket and a mapped file in it: made, and removed again.
fn job() -> Option<Finding> {
    let settings = Plan::new(&RunArgs::default(), &Machine::look()).settings;
    let error = crate::job::Job::create(settings).err()?;
    let finding = Finding::new("job", Level::Impossible, format!("{error:#}"));
    Some(finding.advise("set XDG_RUNTIME_DIR to a directory of yours with a short name"))
}

/// The RAM budget as `run` would choose it.
fn ram() -> Finding {
    let machine = Machine::look();
    let args = match cli::run_from_environment() {
        Ok(args) => args,
        Err(problem) => {
            return Finding::new("ram", Level::Degraded, problem)
                .advise("correct or unset that variable: `greenboost run` would refuse to start");
        }
    };
    judge_ram(&args, &machine)
}

fn judge_ram(args: &RunArgs, machine: &Machine) -> Finding {
    let plan = Plan::new(args, machine);
    let limit = plan.settings.ram_limit;
    let of = match machine.cgroup_limit {
        Some(cgroup) => format!("the cgroup's limit is {}", human(cgroup)),
        None => format!("the machine has {}", human(machine.total)),
    };
    let text = format!(
        "a run may pin {}; {} are available, {of}",
        human(limit),
        human(machine.available)
    );
    if !plan.settings.spill {
        return Finding::new(
            "ram",
            Level::Note,
            "spilling is off (GREENBOOST_SPILL)".into(),
        );
    }
    if limit > machine.available {
        Finding::new("ram", Level::Degraded, text)
            .advise("set GREENBOOST_RAM_LIMIT below what is available, or unset it")
    } else if limit < LITTLE {
        Finding::new("ram", Level::Degraded, text)
            .advise("end what uses memory, or raise the container's or cgroup's limit")
    } else {
        Finding::new("ram", Level::Fine, text)
    }
}

fn surroundings(place: &Place) -> Vec<Finding> {
    let mut all = Vec::new();
    if let Some(kind) = &place.container {
        let text = format!("this is one ({kind}), and greenboost is inside of it: right");
        all.push(Finding::new("container", Level::Note, text));
    }
    if place.is_wsl {
        let text = "this is WSL2: Windows lets programs pin about half of its RAM".into();
        all.push(
            Finding::new("wsl2", Level::Note, text)
                .advise("set GREENBOOST_RAM_LIMIT=40% should pinning fail"),
        );
    }
    let pipes = variable("CUDA_MPS_PIPE_DIRECTORY").unwrap_or_else(|| "/tmp/nvidia-mps".into());
    if Path::new(&pipes).join("control").exists() {
        let text =
            format!("an MPS server is here ({pipes}): memory stays where it is first placed");
        all.push(
            Finding::new("mps", Level::Degraded, text)
                .advise("if you do not share the GPU: echo quit | nvidia-cuda-mps-control"),
        );
    }
    all
}

/// Variables that change what greenboost can do.
fn settings() -> Vec<Finding> {
    let mut all = Vec::new();
    let set = |name: &str| variable(name).filter(|v| !v.is_empty());
    if let Some(value) = set("GGML_CUDA_ENABLE_UNIFIED_MEMORY") {
        let text = format!(
            "GGML_CUDA_ENABLE_UNIFIED_MEMORY={value}: llama.cpp then takes managed memory, which escapes greenboost"
        );
        let advice = "unset GGML_CUDA_ENABLE_UNIFIED_MEMORY";
        all.push(Finding::new("llama.cpp", Level::Degraded, text).advise(advice));
    }
    if set(greenboost_wire::SWITCH_ENV).as_deref() == Some("off") {
        let text = "GREENBOOST=off: the library in the program does nothing".into();
        all.push(Finding::new("switch", Level::Degraded, text).advise("unset GREENBOOST"));
    }
    if crate::job::outer().is_some() {
        let text =
            "this is inside a greenboost run: a run here joins it, and its limits hold".into();
        all.push(Finding::new("job", Level::Note, text));
    }
    all
}

/// Puts the library where `run` would, and says where that is.
fn cache() -> (Finding, Option<std::path::PathBuf>) {
    let last = std::env::temp_dir().join(format!("greenboost-{}", nix::unistd::Uid::effective()));
    match embed::extract_with_problems(embed::native(), &last) {
        Ok((path, problems)) => {
            let dir = path.parent().unwrap_or(&path).display().to_string();
            let finding = match problems.first() {
                None => Finding::new("cache", Level::Fine, dir),
                Some(problem) => {
                    Finding::new("cache", Level::Note, format!("{dir}, because {problem}"))
                        .advise("set XDG_CACHE_HOME to a directory of yours for one that lasts")
                }
            };
            (finding, Some(path))
        }
        Err(error) => {
            let finding = Finding::new("cache", Level::Impossible, format!("{error:#}"))
                .advise("set XDG_CACHE_HOME to a directory of yours that may hold programs");
            (finding, None)
        }
    }
}

/// Whether a program of this system takes the library: the shell looks into its own memory.
fn preloading(shim: &Path) -> Finding {
    const NAME: &str = "preloading";
    const SCRIPT: &str = "while read -r line; do case $line in *libgreenboost_shim*) exit 0;; esac; \
        done </proc/self/maps; exit 1";
    let shell = target::inspect(Path::new("/bin/sh"));
    let libc = shell.elf.as_ref().and_then(|elf| elf.libc.clone());
    if let Some(elf) = &shell.elf
        && let Some(libc) = libc.as_deref()
        && embed::find(&elf.arch, libc).is_none()
    {
        let text = format!(
            "this system's programs are for {} ({libc}); this greenboost serves {}",
            elf.arch,
            embed::available()
        );
        return Finding::new(NAME, Level::Impossible, text)
            .advise("take the greenboost that was built for this system");
    }
    let mut command = Command::new("/bin/sh");
    command
        .args(["-c", SCRIPT])
        .env(
            "LD_PRELOAD",
            launch::preload(shim, std::env::var_os("LD_PRELOAD").as_deref()),
        )
        .env(greenboost_wire::SWITCH_ENV, "off")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let Ok(mut child) = command.spawn() else {
        return Finding::new(
            NAME,
            Level::Note,
            "/bin/sh could not be started to try it".into(),
        );
    };
    let until = Instant::now() + Duration::from_secs(5);
    while matches!(child.try_wait(), Ok(None)) {
        if Instant::now() >= until {
            let _ = child.kill();
            break;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    let Ok(output) = child.wait_with_output() else {
        return Finding::new(NAME, Level::Note, "/bin/sh could not be watched".into());
    };
    if output.status.success() {
        let libc = libc.map(|l| format!(" ({l})")).unwrap_or_default();
        return Finding::new(
            NAME,
            Level::Fine,
            format!("works in this system's programs{libc}"),
        );
    }
    if shell.is_static() {
        let text = "/bin/sh is statically linked, so it could not be tried".into();
        return Finding::new(NAME, Level::Note, text);
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let reason = said
        .lines()
        .next()
        .unwrap_or("the loader ignored it")
        .trim();
    Finding::new(
        NAME,
        Level::Impossible,
        format!("does not work here: {reason}"),
    )
    .advise("a security module or a hardened loader may forbid it")
}

fn core_limit() -> Option<Finding> {
    let (soft, _) = getrlimit(Resource::RLIMIT_CORE).ok()?;
    Some(match soft {
        RLIM_INFINITY => Finding::new(
            "core dumps",
            Level::Note,
            "are unlimited: that of a program with spilled memory may be as large as the RAM"
                .into(),
        )
        .advise("`ulimit -c 0` before a long run, unless you need them"),
        0 => Finding::new("core dumps", Level::Fine, "are off".into()),
        bytes => Finding::new(
            "core dumps",
            Level::Fine,
            format!("end at {}", human(bytes)),
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn budgets() {
        const GIB: u64 = 1 << 30;
        let machine = |available| Machine {
            total: 16 * GIB,
            available,
            cgroup_limit: None,
        };
        let judge = |available, args| judge_ram(&args, &machine(available));
        assert_eq!(judge(8 * GIB, RunArgs::default()).level, Level::Fine);
        assert_eq!(judge(GIB, RunArgs::default()).level, Level::Degraded);
        let all = RunArgs {
            ram_limit: Some(crate::size::Amount::Share(10_000)),
            ..RunArgs::default()
        };
        let finding = judge(8 * GIB, all);
        assert_eq!(finding.level, Level::Degraded);
        assert!(finding.text.contains("may pin 16.0 GiB; 8.0 GiB are"));
    }
}
