//! Programs that have another process do the work, out of reach of what they inherit: a daemon, another user, another
//! machine. greenboost must go there instead, and says so before they start.

use std::borrow::Cow;
use std::ffi::OsString;
use std::path::Path;

/// Programs that only prepare something and then become what they are given, and their options that take a value.
const TRANSPARENT: [(&str, &[&str]); 13] = [
    ("env", &["-u", "--unset", "-C", "--chdir"]),
    ("nice", &["-n", "--adjustment"]),
    ("nohup", &[]),
    ("setsid", &[]),
    ("timeout", &["-s", "--signal", "-k", "--kill-after"]),
    ("time", &["-f", "--format", "-o", "--output"]),
    ("stdbuf", &["-i", "-o", "-e"]),
    ("taskset", &["-c", "--cpu-list"]),
    ("ionice", &["-c", "-n"]),
    ("chrt", &[]),
    ("numactl", &["-C", "-N", "-m", "-i", "-p"]),
    ("prlimit", &[]),
    ("strace", &["-e", "-o", "-s"]),
];
const SHELLS: [&str; 6] = ["sh", "bash", "dash", "zsh", "ksh", "fish"];
/// A chain of wrappers longer than this is not followed.
const DEEPEST: usize = 8;

/// Where greenboost must go instead, if this command leads out of its reach: one or two lines.
///
/// `path` is the file that was found for the first word.
pub fn advice(command: &[OsString], path: &Path) -> Option<String> {
    let words: Vec<Cow<str>> = command.iter().map(|w| w.to_string_lossy()).collect();
    let words: Vec<&str> = words.iter().map(AsRef::as_ref).collect();
    packaged(path).or_else(|| of_words(&words, DEEPEST))
}

/// Commands that package managers put into PATH: they look like the program and start its sandbox.
fn packaged(path: &Path) -> Option<String> {
    let own = path.to_string_lossy();
    if own.contains("/flatpak/exports/bin/") {
        return Some(sandbox("flatpak"));
    }
    let real = std::fs::canonicalize(path).unwrap_or_default();
    let is_snap = own.starts_with("/snap/bin/") || name_of(&real.to_string_lossy()) == "snap";
    (is_snap && name_of(&own) != "snap").then(|| sandbox("snap"))
}

fn name_of(word: &str) -> &str {
    word.rsplit('/').next().unwrap_or(word)
}

fn of_words(words: &[&str], deepest: usize) -> Option<String> {
    let (first, rest) = words.split_first()?;
    let name = name_of(first);
    if deepest > 0 {
        if let Some((_, valued)) = TRANSPARENT.iter().find(|(known, _)| *known == name) {
            return of_words(beyond(rest, valued), deepest - 1);
        }
        if SHELLS.contains(&name) {
            return of_words(&first_command(rest), deepest - 1);
        }
    }
    let action = rest.iter().find(|word| !word.starts_with('-')).copied();
    let starts = |known: &[&str]| actions(rest).any(|action| known.contains(&action));
    match name {
        "docker" | "podman" | "nerdctl" => {
            let is_start = starts(&[
                "run",
                "exec",
                "start",
                "create",
                "restart",
                "compose",
                "container",
                "kube",
            ]);
            is_start.then(|| container(name))
        }
        "docker-compose" | "podman-compose" | "distrobox" | "toolbox" | "lxc" | "incus" => {
            Some(container(name))
        }
        "apptainer" | "singularity" => {
            starts(&["run", "exec", "shell", "instance"]).then(|| container(name))
        }
        "kubectl" | "oc" => starts(&["run", "exec", "apply", "create"]).then(|| {
            format!(
                "{name} has the cluster start the program, out of greenboost's reach: \
                 put greenboost into the image, and `greenboost run --` before its command"
            )
        }),
        "sudo" | "doas" | "pkexec" | "su" | "runuser" => {
            let instead = match name {
                "su" => "su -c 'greenboost run -- PROGRAM'".into(),
                "runuser" => "runuser -u USER -- greenboost run -- PROGRAM".into(),
                _ => format!("{name} greenboost run -- PROGRAM"),
            };
            Some(format!(
                "{name} starts the program with other rights, and the system drops preloaded libraries there:\n\
                 use `{instead}` instead"
            ))
        }
        "flatpak" | "snap" => starts(&["run"]).then(|| sandbox(name)),
        "ssh" | "mosh" => action.map(|_| {
            format!(
                "{name} starts the program on another machine, out of greenboost's reach:\n\
                 use `{name} ... greenboost run -- PROGRAM` instead"
            )
        }),
        "systemd-run" | "srun" => Some(format!(
            "{name} has a daemon start the program, out of greenboost's reach:\n\
             use `{name} ... greenboost run -- PROGRAM` instead"
        )),
        "sbatch" | "qsub" | "bsub" | "at" | "batch" => Some(format!(
            "{name} has the program started later, out of greenboost's reach: \
             write `greenboost run --` into the job's script"
        )),
        "systemctl" | "service" => {
            let is_start = rest
                .iter()
                .any(|w| ["start", "restart", "reload-or-restart"].contains(w));
            is_start.then(|| {
                format!(
                    "{name} has the system start the program, out of greenboost's reach: \
                     put `greenboost run --` into the ExecStart= of its unit"
                )
            })
        }
        "tmux" | "screen" => Some(format!(
            "what starts in a {name} that runs already is out of greenboost's reach: \
             use `greenboost run` inside of it"
        )),
        "ollama" => {
            let is_client =
                action.is_some_and(|action| !["serve", "start", "help"].contains(&action));
            is_client.then(|| {
                "this only talks to Ollama's server, and it is the server that uses the GPU:\n\
                 use `greenboost run -- ollama serve` (first stop one that runs: `systemctl stop ollama`)"
                    .into()
            })
        }
        _ => None,
    }
}

/// The words that may be the subcommand: the first that is neither an option nor may be the value of one, and those
/// before it that may be either.
fn actions<'a>(words: &[&'a str]) -> impl Iterator<Item = &'a str> {
    let is_option = |word: &str| word.starts_with('-');
    let first = (0..words.len())
        .find(|at| !is_option(words[*at]) && (*at == 0 || !is_option(words[at - 1])));
    let end = first.map_or(words.len(), |at| at + 1);
    words[..end]
        .iter()
        .copied()
        .filter(move |word| !is_option(word))
}

fn container(name: &str) -> String {
    format!(
        "{name} has the program started in a container, out of greenboost's reach:\n\
         put greenboost into the image and use `{name} ... greenboost run -- PROGRAM` instead"
    )
}

fn sandbox(name: &str) -> String {
    format!(
        "{name} starts the program in a sandbox, out of greenboost's reach: \
         install the program without {name} and run that"
    )
}

/// What is left of a transparent program's words when its own are gone: options, settings and numbers.
fn beyond<'a, 'b>(mut words: &'a [&'b str], valued: &[&str]) -> &'a [&'b str] {
    while let Some((word, rest)) = words.split_first() {
        let is_number = word.starts_with(|c: char| c.is_ascii_digit());
        let is_setting = word.contains('=') && !word.contains('/');
        words = if *word == "--" {
            return rest;
        } else if valued.contains(word) {
            rest.get(1..).unwrap_or_default()
        } else if word.starts_with('-') || is_number || is_setting {
            rest
        } else {
            break;
        };
    }
    words
}

/// The first simple command of a shell's `-c` script. What comes after it is not looked at: a wrong warning would be
/// worse than none.
fn first_command<'a>(words: &[&'a str]) -> Vec<&'a str> {
    let is_script =
        |word: &&&str| word.starts_with('-') && !word.starts_with("--") && word.ends_with('c');
    let Some(at) = words.iter().position(|word| is_script(&word)) else {
        return Vec::new();
    };
    let script = words.get(at + 1).copied().unwrap_or_default();
    let end = script
        .find([';', '|', '&', '\n', '(', '{'])
        .unwrap_or(script.len());
    script[..end]
        .split_whitespace()
        .skip_while(|word| *word == "exec")
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(line: &str) -> Option<String> {
        let command: Vec<OsString> = line.split(' ').map(OsString::from).collect();
        advice(&command, Path::new(&command[0]))
    }

    #[test]
    fn out_of_reach() {
        for (line, part) in [
            (
                "docker run --gpus all image",
                "`docker ... greenboost run -- PROGRAM`",
            ),
            (
                "/usr/bin/podman exec box prog",
                "`podman ... greenboost run -- PROGRAM`",
            ),
            ("nerdctl run image", "container"),
            ("sudo -E prog", "`sudo greenboost run -- PROGRAM`"),
            ("doas prog", "`doas greenboost run -- PROGRAM`"),
            ("su -c prog user", "`su -c 'greenboost run -- PROGRAM'`"),
            ("flatpak run org.x", "sandbox"),
            ("snap run x", "sandbox"),
            ("/snap/bin/ollama", "sandbox"),
            ("/var/lib/flatpak/exports/bin/org.x", "sandbox"),
            ("ssh -p 22 gpu1 prog", "`ssh ... greenboost run -- PROGRAM`"),
            ("docker --context far run image", "`docker ..."),
            ("docker -D run image", "`docker ..."),
            (
                "systemd-run --user prog",
                "`systemd-run ... greenboost run -- PROGRAM`",
            ),
            ("srun -n 4 prog", "`srun ... greenboost run -- PROGRAM`"),
            ("systemctl --user start x", "ExecStart="),
            ("ollama run llama3", "`greenboost run -- ollama serve`"),
            ("env -u X A=1 nice -n 5 sudo prog", "`sudo greenboost"),
            ("timeout -s KILL 5m docker run x", "`docker ..."),
            ("taskset -c 0-3 ssh gpu1 prog", "another machine"),
        ] {
            let text = said(line).unwrap_or_else(|| panic!("nothing for {line}"));
            assert!(text.contains(part), "{line}: {text}");
            assert!(text.lines().count() <= 2, "{text}");
        }
        let script = ["bash", "-lc", "exec docker run x; true"].map(OsString::from);
        assert!(advice(&script, Path::new("bash")).is_some());
    }

    #[test]
    fn within_reach() {
        for line in [
            "docker ps",
            "docker --context far ps run",
            "python3 train.py --backend docker run",
            "nohup ./train sudo",
            "ollama serve",
            "ollama --version",
            "env A=1 ./prog",
            "env",
            "nice",
            "sh script.sh docker",
            "sh -c",
            "sh -c ./prog",
            "flatpak list",
            "systemctl status x",
            "./sudoku",
        ] {
            assert_eq!(said(line), None, "{line}");
        }
    }

    #[test]
    fn a_chain_without_end_is_given_up() {
        let line = vec![OsString::from("nice"); 10_000];
        assert_eq!(advice(&line, Path::new("nice")), None);
    }
}
