//! `greenboost probe`: what each tier can do on this machine, and what spilling will cost. Its records: `probe/json.md`.

mod advice;
mod area;
mod bus;
mod cache;
mod figure;
#[cfg(test)]
mod fuzz;
mod gpu;
mod model;
mod modules;
mod nvme;
mod out;
mod pcie;
mod ram;
mod show;
pub mod verdict;

use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail};
use greenboost_wire::{JOB_ENV, SWITCH_ENV};
use serde_json::json;

pub use self::advice::warning;
use self::figure::{Section, Tier};
pub use self::model::Model;
pub use self::model::read as read_model;
pub use self::nvme::Method;
use self::nvme::{Target, Wish};
use self::out::Out;
pub use self::verdict::{Rates, outlook};
use crate::cli::{Only, ProbeArgs};
use crate::doctor::{Usable, usable};
use crate::json::Sink;
use crate::selftest::{FAILED, NO_GPU, own_path};
use crate::size::{Amount, part_of};
use crate::voice::print;
use crate::{job, say};

/// How long the driver may take to answer whether there is a GPU.
const PATIENCE: Duration = Duration::from_secs(30);

/// Measures, prints and keeps.
pub fn probe(args: &ProbeArgs) -> anyhow::Result<u8> {
    if job::outer().is_some() && std::env::var_os(SWITCH_ENV).is_none_or(|v| v != "off") {
        return Err(without_shim());
    }
    // All that can be wrong with what was asked for is said before anything takes time.
    let does = |what| args.only.is_none_or(|only| only == what);
    let wish = Wish {
        size: args.size,
        method: args.io,
        quick: args.quick,
        dirs: args.dirs.len().max(1) as u32,
    };
    let targets = if does(Only::Nvme) {
        targets(args, &wish)?
    } else {
        Vec::new()
    };
    let model = match &args.model {
        Some(path) => Some((path, model::read(path)?)),
        None => None,
    };
    let sink = match &args.json {
        Some(target) => Sink::open(target)?,
        None => Sink::none(),
    };
    let mut out = Out::new(sink);
    out.record("start", json!({"greenboost": env!("CARGO_PKG_VERSION"), "quick": args.quick, "device": args.device}));

    // Also for the disk: the way on to the GPU is part of it.
    let wants_gpu = args.only != Some(Only::Ram);
    let (bench, no_gpu) = if wants_gpu {
        out.expect(1);
        out.step("looking for the GPU");
        open_gpu(args)?
    } else {
        (None, None)
    };
    let sections = measure(args, &targets, &wish, bench.as_ref(), &mut out)?;
    keep(&sections, bench.as_ref());
    let free = bench.as_ref().and_then(gpu::Bench::free);
    drop(bench);
    out.finish();

    let mut text: String = sections.iter().map(|s| show::section(s) + "\n").collect();
    text += &conclude(args, &sections, model.as_ref(), free, &mut out);
    if let Some(reason) = &no_gpu {
        text += &format!("No usable GPU: {reason}\n");
    }
    print(&text)?;
    let is_needed = does(Only::Link);
    let status = match &no_gpu {
        Some(_) if is_needed => NO_GPU,
        _ if is_wrong(&sections) => FAILED,
        _ => 0,
    };
    out.record("end", json!({"exit_code": status, "no_gpu": no_gpu}));
    Ok(status)
}

/// Starts ourselves again, in a process that no shim answers for the driver in.
fn without_shim() -> anyhow::Error {
    let error = Command::new(own_path())
        .args(std::env::args_os().skip(1))
        .env(SWITCH_ENV, "off")
        .env_remove(JOB_ENV)
        .exec();
    anyhow::Error::new(error).context("cannot start myself again")
}

fn targets(args: &ProbeArgs, wish: &Wish) -> anyhow::Result<Vec<Target>> {
    let dirs = if args.dirs.is_empty() {
        vec![std::env::current_dir().context("there is no current directory")?]
    } else {
        args.dirs.clone()
    };
    dirs.iter().map(|dir| Target::new(dir, wish)).collect()
}

/// The device, or why there is none to measure.
fn open_gpu(args: &ProbeArgs) -> anyhow::Result<(Option<gpu::Bench>, Option<String>)> {
    match usable(args.device, PATIENCE)? {
        Usable::Yes => {}
        Usable::NotThatMany(devices) => bail!(
            "--device: there is no GPU {}: this machine has {devices}, counted from 0",
            args.device
        ),
        Usable::No(reason) => return Ok((None, Some(reason))),
    }
    Ok(match gpu::Bench::open(args.device, args.quick) {
        Ok(bench) => (Some(bench), None),
        Err(error) => (None, Some(error.to_string())),
    })
}

fn measure(
    args: &ProbeArgs,
    targets: &[Target],
    wish: &Wish,
    bench: Option<&gpu::Bench>,
    out: &mut Out,
) -> anyhow::Result<Vec<Section>> {
    let does = |what| args.only.is_none_or(|only| only == what);
    let link = bench.filter(|_| does(Only::Link));
    out.expect(link.map_or(0, gpu::Bench::steps));
    if does(Only::Ram) {
        out.expect(ram::STEPS);
    }
    let through = usize::from(bench.is_some());
    out.expect(targets.len() * (nvme::steps(wish) + through));

    let mut sections = Vec::new();
    if let Some(bench) = link {
        match bench.measure(out) {
            Ok(measured) => sections.extend(measured),
            Err(error) => {
                let mut section = Section::new(Tier::Link, bench.name());
                let unit = figure::Unit::Rate;
                let figure =
                    figure::Figure::failed("link", "measuring", unit, format!("{error:#}"));
                out.figure(&mut section, figure);
                sections.push(section);
            }
        }
    }
    if does(Only::Ram) {
        let mut section = ram::measure(args.quick, out);
        if let Some(bench) = link {
            bench.pinning(&mut section, out);
        }
        out.section(&section);
        sections.push(section);
    }
    for target in targets {
        let mut through = |disk: &mut nvme::Bench, section: &mut Section, out: &mut Out| {
            if let Some(bench) = bench {
                bench.through(disk, section, out);
            }
        };
        sections.push(nvme::measure(target, wish, out, &mut through)?);
    }
    Ok(sections)
}

/// For `run`, which can do without.
fn keep(sections: &[Section], bench: Option<&gpu::Bench>) {
    let Some(dir) = cache::directory() else {
        return;
    };
    let key = cache::Key::here();
    for section in sections {
        let what = match section.tier {
            Tier::Link | Tier::Vram => bench.map_or("", gpu::Bench::bus_id).to_string(),
            Tier::Ram => String::new(),
            Tier::Nvme => std::fs::canonicalize(&section.title)
                .unwrap_or_else(|_| PathBuf::from(&section.title))
                .to_string_lossy()
                .into_owned(),
        };
        if let Err(error) = cache::keep(&dir, &key, &what, section) {
            say(&format!(
                "what was measured cannot be kept in {}: {error:#}",
                dir.display()
            ));
            return;
        }
    }
}

/// The verdict, also from what was measured earlier here.
fn conclude(
    args: &ProbeArgs,
    sections: &[Section],
    model: Option<&(&PathBuf, Model)>,
    free: Option<(u64, u64)>,
    out: &mut Out,
) -> String {
    let mut known = sections.to_vec();
    complete(&mut known);
    let Some(rates) = Rates::of(&known) else {
        return match model {
            Some(_) => {
                "Nothing can be said about the model: the link to a GPU was never measured here\n"
                    .into()
            }
            None => String::new(),
        };
    };
    let disk = sections.iter().find_map(|s| s.value("read.1m.8"));
    let sentences = verdict::spilling(&rates, disk);
    out.record("verdict", json!({"rates": rates, "sentences": sentences}));
    let mut text = show::verdict(&sentences);
    if let Some((path, model)) = model {
        let limit = match (args.vram_limit, free) {
            (Some(Amount::Bytes(bytes)), _) => bytes,
            (Some(Amount::Share(share)), Some((_, total))) => part_of(total, share),
            (None, Some((free, _))) => free,
            (_, None) => {
                return text
                    + "Nothing can be said about the model: give --vram-limit as a size where no GPU is at hand\n";
            }
        };
        let outlook = verdict::outlook(model, limit, &rates);
        out.record(
            "model",
            json!({"file": path, "bytes": model.bytes, "bytes_per_token": model.bytes_per_token,
            "parameters": model.parameters, "vram_limit": limit, "outlook": outlook}),
        );
        text += &show::model(&path.display().to_string(), &model.describe(), &outlook);
    }
    text
}

/// Adds what was measured here earlier of GPU and RAM and is not among it, the newest of each.
fn complete(known: &mut Vec<Section>) {
    let Some(dir) = cache::directory() else {
        return;
    };
    let mut earlier = cache::kept(&dir, &cache::Key::here());
    earlier.sort_by_key(|kept| std::cmp::Reverse(kept.time));
    for kept in earlier.into_iter().filter(|k| k.section.tier != Tier::Nvme) {
        if known.iter().all(|s| s.tier != kept.section.tier) {
            known.push(kept.section);
        }
    }
}

/// The rates that were measured here earlier. Reads a few small files and touches no GPU.
pub fn measured() -> Option<Rates> {
    let mut known = Vec::new();
    complete(&mut known);
    Rates::of(&known)
}

/// Whether something is an error of measurement, or a disk lost bytes.
fn is_wrong(sections: &[Section]) -> bool {
    let is_error = |e: &String| e.starts_with("error of measurement");
    sections.iter().any(|s| {
        s.figures
            .iter()
            .any(|f| f.error.as_ref().is_some_and(is_error))
            || s.warnings.iter().any(|w| w.starts_with("DO NOT SPILL"))
    })
}
