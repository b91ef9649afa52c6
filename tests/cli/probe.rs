//! `probe`: what it measures on the simulated driver and on this machine's disk, and what it leaves behind: nothing.

use std::fs;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::environment::{TestEnv, expect, stderr, stdout};
use crate::json::records;

/// `probe` on the simulated driver with a link of 0.4 GB/s.
pub fn probe(env: &TestEnv, words: &[&str]) -> Command {
    let mut command = env.greenboost([&["probe"][..], words].concat());
    command
        .env("LD_LIBRARY_PATH", env.simulated_driver())
        .env("FAKE_CUDA_LINK", "400000000")
        .env("FAKE_CUDA_REPORT", env.file("misuse"))
        .env("FAKE_CUDA_LEAKS", "1");
    command
}

fn of_type<'r>(records: &'r [Value], kind: &str) -> Vec<&'r Value> {
    records.iter().filter(|r| r["type"] == kind).collect()
}

fn figure<'r>(records: &'r [Value], id: &str) -> &'r Value {
    let all = of_type(records, "figure");
    let found = all.into_iter().find(|r| r["id"] == id);
    found.unwrap_or_else(|| panic!("no {id} in {records:#?}"))
}

#[test]
fn the_link_is_as_fast_as_it_was_set() {
    let env = TestEnv::new();
    // Other tests want the processors too; a link that is seen slower than it is gets a second chance.
    for attempt in 0..3 {
        let mut command = probe(&env, &["--only", "link", "--quick", "--json", "records"]);
        let said = stdout(&expect(&mut command, 0));
        let records = records(&fs::read_to_string(env.file("records")).unwrap());
        let rates: Vec<f64> = [
            "dma.h2d",
            "dma.d2h",
            "zero.read16",
            "zero.quantised",
            "zero.write16",
        ]
        .iter()
        .map(|id| figure(&records, id)["value"].as_f64().unwrap() / 4e8)
        .collect();
        assert!(
            rates.iter().all(|r| *r < 1.02),
            "faster than the link: {rates:?}"
        );
        let both = figure(&records, "dma.both")["value"].as_f64().unwrap() / 8e8;
        assert!(both < 1.02, "{both}");
        let reread = figure(&records, "zero.reread")["value"].as_f64().unwrap();
        assert!(reread < 8.5, "{reread}");
        for part in [
            "Link to NVIDIA Simulated GPU",
            "link under load: PCIe 5.0 x16, 63.0 GB/s",
            "VRAM of NVIDIA Simulated GPU",
            "64 MiB chunks, host",
            "each spilled GB that a step reads once costs it",
            "the GPU does not cache host memory",
        ] {
            assert!(said.contains(part), "{part}\n{said}");
        }
        assert!(!said.contains("ERROR") && !said.contains('\x1b'), "{said}");
        assert!(!said.contains("throttled"), "{said}");
        let misuse = fs::read_to_string(env.file("misuse")).unwrap_or_default();
        assert_eq!(
            misuse, "",
            "the driver was used as its rules are, and everything was given back"
        );
        // What people see of it.
        let mut rows = said.lines().map(|line| line.trim());
        let row = rows
            .find(|row| row.starts_with("copy to the GPU "))
            .unwrap();
        let shown = row.split_whitespace().nth(4).unwrap();
        let is_close =
            rates.iter().all(|r| *r > 0.95) && both > 0.9 && reread > 7.0 && shown == "0.40";
        if is_close {
            return;
        }
        assert!(
            attempt < 2,
            "slower than the link: {rates:?} {both} {reread}, {row}"
        );
    }
}

#[test]
fn a_slow_slot_and_impossible_figures() {
    let env = TestEnv::new();
    let words = ["--only", "link", "--quick", "--json", "records"];
    let mut command = probe(&env, &words);
    // 0.25 GB/s at most, so 0.4 GB/s cannot be; and clocks that a temperature and a power brake hold down, a power limit too,
    // which is as it should be.
    command
        .env("FAKE_CUDA_PCIE", "1x1/4x16")
        .env("FAKE_CUDA_THROTTLE", (0x20 | 0x80 | 0x4).to_string());
    let output = expect(&mut command, 1);
    let said = stdout(&output);
    assert!(
        said.contains(
            "WARNING the GPU was throttled meanwhile: temperature, external power brake\n"
        ),
        "{said}"
    );
    assert!(
        said.contains("WARNING the link runs as PCIe 1.0 x1, the card could do PCIe 4.0 x16"),
        "{said}"
    );
    assert!(
        said.contains("ERROR copy to the GPU: error of measurement: "),
        "{said}"
    );
    assert!(
        said.contains("is more than the 0.25 GB/s that are possible"),
        "{said}"
    );
    assert!(
        !said.contains("each spilled GB"),
        "no verdict on such figures\n{said}"
    );
    let records = records(&fs::read_to_string(env.file("records")).unwrap());
    let error = &figure(&records, "dma.h2d")["error"];
    assert!(error.as_str().unwrap().starts_with("error of measurement"));
    assert_eq!(records.last().unwrap()["exit_code"], 1);
}

#[test]
fn a_disk_and_the_way_to_vram() {
    let env = TestEnv::new();
    let dir = env.file("disk");
    fs::create_dir(&dir).unwrap();
    for (method, name) in [
        ("uring", "io_uring"),
        ("threads", "threads with pread and pwrite"),
    ] {
        let words = [
            "--only", "nvme", "--quick", "--dir", "disk", "--size", "64M", "--json", "records",
            "--io", method,
        ];
        // On a busy machine the time that it takes for the first write may not do for all of it.
        let whole = |said: &String| said.contains("file: 64.0 MiB");
        let run = || stdout(&expect(&mut probe(&env, &words), 0));
        let mut tries = std::iter::repeat_with(run).take(10);
        let said = tries.find(whole).expect("a file as large as asked");
        for part in [
            &format!("method: {name}")[..],
            "read back: every byte right",
        ] {
            assert!(said.contains(part), "{part}\n{said}");
        }
        let records = records(&fs::read_to_string(env.file("records")).unwrap());
        for id in [
            "write.first",
            "read.1m.8",
            "read.random",
            "write.1m.8",
            "write.random",
            "disk.vram",
            "vram.disk",
        ] {
            let figure = figure(&records, id);
            assert!(
                figure["error"].is_null() && figure["value"].as_f64() > Some(0.0),
                "{figure}"
            );
            assert!(figure["low"].as_f64() <= figure["value"].as_f64());
            assert_eq!(figure["v"], 1);
            assert_eq!(figure["tier"], "nvme");
        }
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 0);
    }
    let misuse = fs::read_to_string(env.file("misuse")).unwrap_or_default();
    assert_eq!(misuse, "");
}

/// Makes `io_uring_setup` fail with EPERM, as sandboxes do.
fn forbid_io_uring() -> std::io::Result<()> {
    let rule = |code: u32, jt, jf, k| libc::sock_filter {
        code: code as u16,
        jt,
        jf,
        k,
    };
    let refusal = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
    let mut rules = [
        // The number of the call is the first word of what a filter sees.
        rule(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        rule(
            libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K,
            0,
            1,
            libc::SYS_io_uring_setup as u32,
        ),
        rule(libc::BPF_RET | libc::BPF_K, 0, 0, refusal),
        rule(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog {
        len: rules.len() as u16,
        filter: rules.as_mut_ptr(),
    };
    // SAFETY: plain calls; the kernel copies the rules, which live until it has.
    let code = unsafe {
        match libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) {
            0 => libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &program),
            code => code,
        }
    };
    match code {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

#[test]
fn a_sandbox_that_refuses_io_uring() {
    let env = TestEnv::new();
    let words = [
        "probe", "--only", "nvme", "--quick", "--size", "32M", "--json", "records",
    ];
    let forbidden = |words: &[&str]| {
        let mut command = env.greenboost(words);
        command.env("LD_LIBRARY_PATH", "");
        // SAFETY: it calls nothing but the kernel.
        unsafe { command.pre_exec(forbid_io_uring) };
        command
    };
    let said = stdout(&expect(&mut forbidden(&words), 0));
    for part in [
        "method: threads with pread and pwrite",
        "WARNING io_uring was refused (Operation not permitted (os error 1)): threads were used instead",
        "read back: every byte right",
    ] {
        assert!(said.contains(part), "{part}\n{said}");
    }
    let records = records(&fs::read_to_string(env.file("records")).unwrap());
    assert!(figure(&records, "read.1m.8")["value"].as_f64() > Some(0.0));
    // Asked for by name it is no use to do something else.
    let output = expect(
        &mut forbidden(&[&words[..], &["--io", "uring"]].concat()),
        125,
    );
    assert!(stderr(&output).contains("Operation not permitted"));
}

#[test]
fn a_driver_without_a_device() {
    let env = TestEnv::new();
    let mut command = probe(&env, &["--only", "link"]);
    let output = expect(command.env("FAKE_CUDA_DEVICES", "0"), 3);
    let said = stdout(&output);
    assert!(said.starts_with("No usable GPU: "), "{said}");
    assert!(!said.contains("libcuda.so.1 cannot be loaded"), "{said}");
}

#[test]
fn without_a_gpu() {
    let env = TestEnv::new();
    fs::create_dir(env.file("driver")).unwrap();
    fs::write(env.file("driver/libcuda.so.1"), "not a library").unwrap();
    let no_gpu = |words: &[&str]| {
        let mut command = env.greenboost(
            [
                &["probe", "--quick", "--size", "32M", "--json", "records"][..],
                words,
            ]
            .concat(),
        );
        command.env("LD_LIBRARY_PATH", env.file("driver"));
        command
    };
    let start = Instant::now();
    let output = expect(&mut no_gpu(&[]), 3);
    let said = stdout(&output);
    assert_eq!(
        stderr(&output),
        "",
        "no progress where there is no terminal"
    );
    assert!(
        start.elapsed() < Duration::from_secs(30),
        "{:?}",
        start.elapsed()
    );
    for part in [
        "read, all cores",
        "read, one core",
        "read 1 MiB, queue 8",
        "No usable GPU: libcuda.so.1 cannot be loaded (",
    ] {
        assert!(said.contains(part), "{part}\n{said}");
    }
    let records = records(&fs::read_to_string(env.file("records")).unwrap());
    assert_eq!(records[0]["type"], "start");
    let last = records.last().unwrap();
    assert_eq!(
        (&last["type"], &last["exit_code"]),
        (&"end".into(), &3.into())
    );
    assert!(last["no_gpu"].as_str().unwrap().contains("libcuda"));
    let times: Vec<_> = records.iter().map(|r| r["t"].as_f64().unwrap()).collect();
    assert!(times.is_sorted(), "{times:?}");
    // What needs none is no failure without.
    let said = stdout(&expect(&mut no_gpu(&["--only", "ram"]), 0));
    assert!(!said.contains("No usable GPU"), "{said}");
    let said = stdout(&expect(&mut no_gpu(&["--only", "link"]), 3));
    assert!(said.starts_with("No usable GPU"), "{said}");
}

#[test]
fn one_sentence_for_what_cannot_be() {
    let env = TestEnv::new();
    fs::write(env.file("file"), "text").unwrap();
    for (words, part) in [
        (&["--size", "0"][..], "--size"),
        (&["--size", "50%"], "is a percentage"),
        (
            &["--size", "4M", "--only", "nvme"],
            "at least 32.0 MiB are needed",
        ),
        (&["--size", "9999T", "--only", "nvme"], "that are free in"),
        (
            &["--dir", "/no/such/place"],
            "/no/such/place cannot be looked at",
        ),
        (&["--dir", "file"], "file is not a directory"),
        (&["--only", "vram"], "'vram' is not a choice"),
        (
            &["--json", "/no/such/place/file", "--only", "ram"],
            "cannot write",
        ),
        (&["--model", "/no/such/model.gguf"], "cannot be opened"),
        (
            &["--model", "file"],
            "it is neither a GGUF nor a safetensors file",
        ),
        (
            &["--device", "7", "--only", "link"],
            "there is no GPU 7: this machine has 1",
        ),
    ] {
        let output = expect(&mut probe(&env, words), 125);
        let said = stderr(&output);
        assert!(
            said.contains(part) && said.lines().count() == 1,
            "{words:?}: {said}"
        );
        assert_eq!(stdout(&output), "");
    }
}

/// A GGUF file that claims weights of so many bytes, in two tensors.
pub fn model(env: &TestEnv, bytes: u64) {
    let mut out = b"GGUF".to_vec();
    out.extend(3u32.to_le_bytes());
    out.extend(2u64.to_le_bytes());
    out.extend(0u64.to_le_bytes());
    for name in ["blk.0.attn_q.weight", "blk.1.attn_q.weight"] {
        out.extend((name.len() as u64).to_le_bytes());
        out.extend(name.as_bytes());
        out.extend(1u32.to_le_bytes());
        out.extend((bytes / 4).to_le_bytes());
        out.extend(1u32.to_le_bytes());
        out.extend(0u64.to_le_bytes());
    }
    fs::write(env.file("m.gguf"), out).unwrap();
}

#[test]
fn a_model_by_what_was_measured_and_kept() {
    let env = TestEnv::new();
    model(&env, 10_000_000_000);
    let words = [
        "--only",
        "ram",
        "--quick",
        "--model",
        "m.gguf",
        "--vram-limit",
        "5GB",
    ];
    let said = stdout(&expect(&mut probe(&env, &words), 0));
    assert!(
        said.contains("the link to a GPU was never measured here"),
        "{said}"
    );
    expect(&mut probe(&env, &["--only", "link", "--quick"]), 0);
    let words = [&words[..], &["--json", "records"]].concat();
    let said = stdout(&expect(&mut probe(&env, &words), 0));
    let records = records(&fs::read_to_string(env.file("records")).unwrap());
    assert_eq!(of_type(&records, "model").len(), 1);
    assert_eq!(of_type(&records, "section").len(), 1);
    assert_documented(&records);
    let words = said.split_whitespace().collect::<Vec<_>>().join(" ");
    for part in [
        "GGUF, 2 tensors: 9.3 GiB of weights (not quantised), 9.3 GiB read for each token",
        "zero-copy: decode = 1 / (",
        "staged: decode = 1 / max(",
        "cpu-layers: decode = 1 / (",
        "the program's own CPU layers",
    ] {
        assert!(words.contains(part), "{part}\n{said}");
    }
    // And `run` remembers: much RAM over that link takes long.
    let mut command = env.greenboost(["run", "--ram-limit", "100%", "--", "true"]);
    let said = stderr(&expect(&mut command, 0));
    let is_warned = said.contains("the probe measured 0.4 GB/s for spilled memory");
    assert!(is_warned, "{said}");
    let mut command = env.greenboost(["run", "--ram-limit", "1G", "--", "true"]);
    assert!(!stderr(&expect(&mut command, 0)).contains("the probe measured"));
}

/// Every record and every field is in the document, where its type is.
fn assert_documented(records: &[Value]) {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/probe/json.md");
    let document = fs::read_to_string(path).unwrap();
    let part_of = |kind: &str| {
        let (_, part) = document.split_once(&format!("\n### {kind}\n"))?;
        Some(part.split("\n### ").next().unwrap_or_default().to_string())
    };
    for record in records {
        let kind = record["type"].as_str().unwrap();
        let part = part_of(kind).unwrap_or_else(|| panic!("{kind} is not documented"));
        let mut fields: Vec<&String> = record.as_object().unwrap().keys().collect();
        if kind == "model" {
            let outlook = &record["outlook"];
            fields.extend(outlook.as_object().unwrap().keys());
            fields.extend(outlook["predictions"][0].as_object().unwrap().keys());
        }
        fields.extend(
            record["rates"]
                .as_object()
                .into_iter()
                .flat_map(|r| r.keys()),
        );
        for field in fields
            .into_iter()
            .filter(|f| !["v", "type", "t"].contains(&f.as_str()))
        {
            assert!(part.contains(&format!("`{field}`")), "{kind}: {field}");
        }
    }
}

#[test]
fn interrupted_it_leaves_nothing() {
    let env = TestEnv::new();
    let dir = env.file("disk");
    fs::create_dir(&dir).unwrap();
    for after in [200, 700] {
        let mut command =
            env.greenboost(["probe", "--only", "nvme", "--dir", "disk", "--size", "256M"]);
        command
            .env("LD_LIBRARY_PATH", "")
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        std::thread::sleep(Duration::from_millis(after));
        assert_eq!(
            fs::read_dir(&dir).unwrap().count(),
            0,
            "no name even meanwhile"
        );
        let pid = nix::unistd::Pid::from_raw(child.id() as i32);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).unwrap();
        let status = child.wait().unwrap();
        use std::os::unix::process::ExitStatusExt;
        assert_eq!(status.signal(), Some(2), "{status:?}");
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 0);
    }
}

#[test]
fn within_a_run_the_real_driver_is_asked() {
    let env = TestEnv::new();
    let mut command = probe(&env, &[]);
    let words: Vec<_> = command.get_args().map(|a| a.to_os_string()).collect();
    let mut outer = env.greenboost([
        "run",
        "--vram-limit",
        "64M",
        "--",
        crate::environment::GREENBOOST,
    ]);
    outer
        .args(words)
        .args(["--only", "link", "--quick", "--json", "records"]);
    for (name, value) in command.get_envs() {
        if let Some(value) = value {
            outer.env(name, value);
        }
    }
    command = outer;
    let said = stdout(&expect(&mut command, 0));
    // Not the limit of the job.
    assert!(said.contains("free: 1.0 GiB"), "{said}");
}
