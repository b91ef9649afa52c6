//! The disk under a directory: sequential and random, shallow and deep, large and small requests.

mod bench;
mod data;
mod disk;
mod place;
mod queue;
mod scratch;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::bail;

pub use self::bench::Bench;
use self::bench::{LARGEST, Pattern};
pub use self::place::Place;
pub use self::queue::{Direction, Method};
use super::figure::{Figure, Section, Tier, Unit};
use super::out::Out;
use crate::machine::Machine;
use crate::size::human;

/// What is to be measured, and how long that may take.
pub struct Wish {
    pub size: Option<u64>,
    pub method: Option<Method>,
    pub quick: bool,
    /// Directories that share the time.
    pub dirs: u32,
}

/// Smallest file: some requests of the largest kind at once.
const SMALLEST: u64 = 32 << 20;

/// A directory that can be measured.
pub struct Target {
    pub dir: PathBuf,
    place: Place,
    size: u64,
}

impl Target {
    /// Looks whether it can be, before anything takes time.
    ///
    /// # Errors
    /// What is wrong, in a sentence.
    pub fn new(dir: &Path, wish: &Wish) -> anyhow::Result<Target> {
        let shown = dir.display();
        let place = match Place::look(dir) {
            Ok(place) if dir.is_dir() => place,
            Ok(_) => bail!("--dir: {shown} is not a directory"),
            Err(error) => bail!("--dir: {shown} cannot be looked at ({error})"),
        };
        let size = match wish.size {
            Some(size) if size < SMALLEST => bail!(
                "--size: {} is too small to measure with: at least {} are needed",
                human(size),
                human(SMALLEST)
            ),
            Some(size) if size > place.free => bail!(
                "--size: {} are more than the {} that are free in {shown}",
                human(size),
                human(place.free)
            ),
            Some(size) => size,
            None => {
                let most: u64 = if wish.quick { 1 << 30 } else { 4 << 30 };
                // A file system may itself lie in RAM.
                let ram = Machine::look().available / 2;
                most.min(place.free / 4).min(ram).max(SMALLEST)
            }
        };
        Ok(Target {
            dir: dir.to_path_buf(),
            place,
            size: size / LARGEST as u64 * LARGEST as u64,
        })
    }
}

fn patterns(quick: bool) -> Vec<(&'static str, &'static str, Pattern)> {
    use Direction::{Read, Write};
    const M: usize = 1 << 20;
    const K: usize = 128 << 10;
    let all = [
        ("read.1m.1", "read 1 MiB, queue 1", Read, M, 1, false),
        ("read.1m.8", "read 1 MiB, queue 8", Read, M, 8, false),
        ("read.1m.32", "read 1 MiB, queue 32", Read, M, 32, false),
        ("read.128k.1", "read 128 KiB, queue 1", Read, K, 1, false),
        ("read.128k.8", "read 128 KiB, queue 8", Read, K, 8, false),
        ("read.128k.32", "read 128 KiB, queue 32", Read, K, 32, false),
        (
            "read.random",
            "read 2 MiB anywhere, queue 8",
            Read,
            LARGEST,
            8,
            true,
        ),
        ("write.1m.1", "write 1 MiB, queue 1", Write, M, 1, false),
        ("write.1m.8", "write 1 MiB, queue 8", Write, M, 8, false),
        ("write.1m.32", "write 1 MiB, queue 32", Write, M, 32, false),
        ("write.128k.1", "write 128 KiB, queue 1", Write, K, 1, false),
        ("write.128k.8", "write 128 KiB, queue 8", Write, K, 8, false),
        (
            "write.128k.32",
            "write 128 KiB, queue 32",
            Write,
            K,
            32,
            false,
        ),
        (
            "write.random",
            "write 2 MiB anywhere, queue 8",
            Write,
            LARGEST,
            8,
            true,
        ),
    ];
    const QUICK: [&str; 4] = ["read.1m.8", "read.random", "write.1m.8", "write.random"];
    all.into_iter()
        .filter(|(id, ..)| !quick || QUICK.contains(id))
        .map(|(id, label, direction, len, depth, is_random)| {
            let pattern = Pattern {
                direction,
                len,
                depth,
                is_random,
            };
            (id, label, pattern)
        })
        .collect()
}

/// How many steps [`measure`] takes.
pub fn steps(wish: &Wish) -> usize {
    patterns(wish.quick).len() + 2
}

/// What comes after the disk's own patterns: the way on to the GPU.
pub type Beyond<'a> = &'a mut dyn FnMut(&mut Bench, &mut Section, &mut Out);

/// Measures.
///
/// # Errors
/// When no file can be made there.
pub fn measure(
    target: &Target,
    wish: &Wish,
    out: &mut Out,
    beyond: Beyond,
) -> anyhow::Result<Section> {
    let shown = target.dir.display().to_string();
    let mut section = Section::new(Tier::Nvme, &shown);
    let place = &target.place;
    let (file, is_direct) = scratch::create(&target.dir, target.size)?;
    let (mut bench, method, refusal) = Bench::new(file, target.size, is_direct, wish.method)?;
    section.fact("file system", place.mounted());
    if let Some(disk) = &place.disk {
        let model = disk.model.as_deref().unwrap_or("no model name");
        section.fact("device", format!("{} ({model})", disk.name));
        section.fact("link at most", disk.link.to_string());
    }
    let limit = place.disk.as_ref().and_then(|disk| disk.link.rate());
    section.fact("free", human(place.free));
    section.fact("O_DIRECT", if is_direct { "yes" } else { "no" });
    section.fact("method", method.name());
    if let Some(refusal) = refusal {
        section.warn(format!(
            "io_uring was refused ({refusal}): threads were used instead"
        ));
    }
    if !is_direct {
        section.warn("no O_DIRECT here: the page cache is in the figures, and would be in the way of a spill");
    }
    section.warnings.extend(place.warnings());

    out.step(&format!("{shown}: writing the file"));
    let share = |ms: u64| Duration::from_millis(ms) / wish.dirs.max(1);
    let (first, each, windows) = if wish.quick {
        (share(900), share(330), 3)
    } else {
        (share(5_000), share(1_300), 5)
    };
    let label = "first write, 1 MiB, queue 8";
    let figure = match bench.lay_out(first) {
        Ok(rate) => Figure::new("write.first", label, Unit::Rate, &[rate], limit),
        Err(error) => Figure::failed("write.first", label, Unit::Rate, error),
    };
    let is_laid_out = figure.error.is_none();
    out.figure(&mut section, figure);
    section.fact("file", human(bench.size()));
    if is_laid_out {
        for (id, label, pattern) in patterns(wish.quick) {
            out.step(&format!("{shown}: {label}"));
            let figure = match bench.measure(pattern, each, windows) {
                Ok(rates) => Figure::new(id, label, Unit::Rate, &rates, limit),
                Err(error) => {
                    bench.queue().drain();
                    Figure::failed(id, label, Unit::Rate, error)
                }
            };
            out.figure(&mut section, figure);
        }
        let size = bench.size();
        let cached = scratch::cached(bench.queue().file(), size);
        if is_direct && cached.is_some_and(|part| part > 0.1) {
            section.warn(
                "the page cache holds the file in spite of O_DIRECT: reads may have come from RAM",
            );
        }
        beyond(&mut bench, &mut section, out);
        out.step(&format!("{shown}: comparing every byte"));
        match bench.verify() {
            Ok(()) => section.fact("read back", "every byte right"),
            Err(error) => section.warn(format!("DO NOT SPILL HERE: {error}")),
        }
    }
    out.section(&section);
    Ok(section)
}
