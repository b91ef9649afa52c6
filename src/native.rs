//! Programs that can keep a part of a model on the processor themselves: llama.cpp, and Ollama, which runs it. Where host
//! memory has many channels their own CPU layers beat any link; whoever spills should hear of it.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::probe::{self, Model, Rates};
use crate::snapshot::Snapshot;

/// From here on another way is called faster.
const WORTH: f64 = 1.05;

/// One of them, as it was started.
#[derive(Clone, Debug, PartialEq)]
pub struct Native {
    /// What the user sets to have fewer layers on the GPU.
    knob: &'static str,
    /// The model's file, where it was named.
    model: Option<PathBuf>,
}

impl Native {
    /// Recognises a running process.
    pub fn of_process(pid: u32) -> Option<Native> {
        let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let words = line.split(|byte| *byte == 0).map(|word| {
            let word = std::ffi::OsStr::from_bytes(word);
            word.to_string_lossy().into_owned()
        });
        let native = Native::of(&words.collect::<Vec<_>>())?;
        let dir = fs::read_link(format!("/proc/{pid}/cwd")).unwrap_or_default();
        Some(Native {
            model: native.model.map(|file| dir.join(file)),
            ..native
        })
    }

    fn of(words: &[String]) -> Option<Native> {
        let name = Path::new(words.first()?).file_name()?.to_str()?;
        let is_ollama = name == "ollama" && words.iter().any(|w| w == "runner");
        if !is_ollama && !name.starts_with("llama-") && name != "ollama_llama_server" {
            return None;
        }
        let after = |option: &str| {
            let pairs = words.iter().zip(words.iter().skip(1));
            pairs
                .filter(|(w, _)| *w == option)
                .map(|(_, value)| value)
                .next_back()
        };
        let joined = words.iter().find_map(|w| w.strip_prefix("--model="));
        let model = ["-m", "--model", "-model"].into_iter().find_map(after);
        Some(Native {
            knob: if name.starts_with("llama-") {
                "-ngl"
            } else {
                "num_gpu"
            },
            model: model.map(String::as_str).or(joined).map(PathBuf::from),
        })
    }

    /// Whether fewer layers on the GPU would have been faster than spilling; or how to find out. `None`: spilling is the
    /// better way, or nothing was spilled.
    pub fn advice(&self, snapshot: &Snapshot) -> Option<String> {
        let model = self
            .model
            .as_deref()
            .and_then(|file| probe::read_model(file).ok());
        self.judge(snapshot, model.as_ref(), probe::measured().as_ref())
    }

    fn judge(
        &self,
        snapshot: &Snapshot,
        model: Option<&Model>,
        rates: Option<&Rates>,
    ) -> Option<String> {
        let used = snapshot.devices.iter();
        if used.clone().all(|d| d.spills == 0) {
            return None;
        }
        let knob = self.knob;
        let (Some(model), Some(rates)) = (model, rates.filter(|r| r.ram > 0.0)) else {
            // What was measured is not measured again.
            let only = match rates {
                Some(_) if model.is_some() => " --only ram",
                _ => "",
            };
            let file = match (&self.model, model) {
                (Some(file), Some(_)) => shell(&file.display().to_string()),
                _ => "FILE".into(),
            };
            return Some(format!(
                "layers on the CPU (a smaller {knob}) may be faster than spilling: greenboost probe{only} --model {file} says whether"
            ));
        };
        let limit = used.map(|d| d.vram_limit).sum();
        let outlook = probe::outlook(model, limit, rates);
        let way = |name| outlook.predictions.iter().find(|p| p.way == name);
        let (spilled, layers) = (way("zero-copy")?, way("cpu-layers")?);
        let (decode, prompt) = (
            layers.decode / spilled.decode,
            layers.prompt / spilled.prompt,
        );
        if outlook.spilled == 0 || decode.max(prompt) < WORTH {
            return None;
        }
        Some(format!(
            "layers on the CPU would be faster here, as greenboost probe measured it: decode {decode:.1} times ({:.1} against \
             {:.1} tokens/s), prompts {prompt:.1} times, with {knob} at about {} % of all layers",
            layers.decode,
            spilled.decode,
            outlook.room * 100 / model.bytes.max(1)
        ))
    }
}

/// A word that a shell takes as one.
fn shell(word: &str) -> String {
    let is_plain = |c: char| c.is_alphanumeric() || "/._-+:@%=".contains(c);
    match !word.is_empty() && word.chars().all(is_plain) {
        true => word.into(),
        false => format!("'{}'", word.replace('\'', "'\\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::DeviceSnapshot;

    const RATES: Rates = Rates {
        vram: 3e12,
        zero_copy: 50e9,
        zero_copy_quantised: 40e9,
        dma: 55e9,
        ram: 100e9,
        flops: 1e12,
        again: 1.0,
    };

    fn of(line: &str) -> Option<Native> {
        Native::of(&line.split(' ').map(String::from).collect::<Vec<_>>())
    }

    #[test]
    fn who_they_are() {
        let native = of("/opt/llama-server -m /a/x.gguf -ngl 99").unwrap();
        assert_eq!(native.knob, "-ngl");
        assert_eq!(native.model, Some("/a/x.gguf".into()));
        let native = of("llama-bench --model=x.gguf").unwrap();
        assert_eq!(native.model, Some("x.gguf".into()));
        assert_eq!(of("llama-cli -hf someone/model").unwrap().model, None);
        let native = of("/usr/bin/ollama runner --model /b/sha256-1 --n-gpu-layers 33").unwrap();
        assert_eq!(
            (native.knob, native.model),
            ("num_gpu", Some("/b/sha256-1".into()))
        );
        for other in [
            "ollama serve",
            "python llama-server.py -m x",
            "/x/mllama-cli",
            "",
        ] {
            assert_eq!(of(other), None, "{other}");
        }
    }

    /// This very process is none; what is started as one is found with its model's whole path.
    #[test]
    fn a_running_one() {
        assert_eq!(Native::of_process(std::process::id()), None);
        use std::os::unix::process::CommandExt;
        let dir = tempfile::tempdir().unwrap();
        let mut child = std::process::Command::new("/bin/sh")
            .arg0("/opt/llama-cli")
            .args(["-c", "read x", "-m", "m.gguf"])
            .current_dir(dir.path())
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        // The kernel may still be writing down the arguments.
        let found = (0..1000).find_map(|_| {
            std::thread::sleep(std::time::Duration::from_millis(1));
            Native::of_process(child.id())
        });
        drop(child.stdin.take());
        child.wait().unwrap();
        let whole = fs::canonicalize(dir.path()).unwrap().join("m.gguf");
        assert_eq!(found.unwrap().model, Some(whole));
        assert_eq!(Native::of_process(child.id()), None);
    }

    fn spilled() -> Snapshot {
        Snapshot {
            devices: vec![DeviceSnapshot {
                vram_limit: 8 << 30,
                spills: 3,
                ..DeviceSnapshot::default()
            }],
            ..Snapshot::default()
        }
    }

    fn dense(bytes: u64) -> Model {
        Model {
            bytes,
            bytes_per_token: bytes,
            parameters: bytes / 2,
            parameters_per_token: bytes / 2,
            ..Model::default()
        }
    }

    #[test]
    fn when_they_win() {
        let native = of("llama-cli -m m.gguf").unwrap();
        let model = dense(14 << 30);
        let said = native
            .judge(&spilled(), Some(&model), Some(&RATES))
            .unwrap();
        // Half the model outside: 1 / (7 GiB / 3 TB/s + 7 GiB / 100 GB/s) against 50 GB/s.
        assert!(
            said.contains("decode 2.0 times (12.9 against 6.5 tokens/s), prompts 0.1 times, with -ngl at about 50 % of all"),
            "{said}"
        );
        let slow = Rates { ram: 30e9, ..RATES };
        assert_eq!(native.judge(&spilled(), Some(&model), Some(&slow)), None);
        assert_eq!(
            native.judge(&spilled(), Some(&dense(1 << 30)), Some(&RATES)),
            None
        );
        let mut nothing = spilled();
        nothing.devices[0].spills = 0;
        assert_eq!(native.judge(&nothing, Some(&model), None), None);
    }

    #[test]
    fn when_it_is_not_known() {
        let native = of("llama-cli -m /my models/m.gguf").unwrap();
        let native = Native {
            model: Some("/my models/m.gguf".into()),
            ..native
        };
        let model = dense(14 << 30);
        let said = |model, rates| native.judge(&spilled(), model, rates).unwrap();
        let text = said(Some(&model), None);
        assert!(
            text.ends_with(": greenboost probe --model '/my models/m.gguf' says whether"),
            "{text}"
        );
        let no_ram = Rates { ram: 0.0, ..RATES };
        let text = said(Some(&model), Some(&no_ram));
        assert!(
            text.contains("greenboost probe --only ram --model '/my"),
            "{text}"
        );
        let text = said(None, Some(&RATES));
        assert!(
            text.contains("greenboost probe --model FILE says"),
            "{text}"
        );
    }
}
