//! What the figures mean for a program that spills. Pure: every prediction shows its formula.

use serde::Serialize;

use super::figure::{Section, Tier, digits};
use super::model::Model;

/// Tokens of a prompt that are computed at once, as llama.cpp's default has it.
const PROMPT: u64 = 512;
/// Rows of a matrix product for which a weight is read once, as measured on cuBLAS: 4096 tokens read it 16 times.
const TILE: u64 = 256;
/// Left of the VRAM limit to what is not weights: KV cache, activations, scratch.
const RESERVE: u64 = 1 << 30;

/// The rates that decide, in bytes per second; only results, no errors of measurement.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Rates {
    /// A kernel reads VRAM.
    pub vram: f64,
    /// A kernel reads host memory, 16 bytes a thread.
    pub zero_copy: f64,
    /// The same, quantised blocks.
    pub zero_copy_quantised: f64,
    /// Copies to the GPU.
    pub dma: f64,
    /// All cores read host RAM; 0: not known.
    pub ram: f64,
    /// 32-bit operations per second of all cores; 0: not known.
    pub flops: f64,
    /// Which part of repeated reads crosses the link again: 1 when the GPU caches nothing.
    pub again: f64,
}

impl Rates {
    /// Picks them; `None` when the link or VRAM was not measured.
    pub fn of(sections: &[Section]) -> Option<Rates> {
        let value = |tier, id| {
            let found = sections.iter().filter(|s| s.tier == tier);
            found.filter_map(|s| s.value(id)).next()
        };
        let zero_copy = value(Tier::Link, "zero.read16")?;
        Some(Rates {
            vram: value(Tier::Vram, "vram.read")?,
            zero_copy,
            zero_copy_quantised: value(Tier::Link, "zero.quantised").unwrap_or(zero_copy),
            dma: value(Tier::Link, "dma.h2d")?,
            ram: value(Tier::Ram, "read.all").unwrap_or(0.0),
            flops: value(Tier::Ram, "flops").unwrap_or(0.0),
            again: value(Tier::Link, "zero.reread")
                .map_or(1.0, |f| ((f - 1.0) / 7.0).clamp(0.0, 1.0)),
        })
    }
}

/// What spilling costs here, in sentences.
pub fn spilling(rates: &Rates, disk: Option<f64>) -> Vec<String> {
    let hides = |seconds: f64| digits(rates.dma * seconds / 1e9);
    let mut all = vec![
        format!(
            "each spilled GB that a step reads once costs it {} ms by zero-copy (1 GB / {} GB/s)",
            digits(1e12 / rates.zero_copy),
            digits(rates.zero_copy / 1e9)
        ),
        format!(
            "copied ahead at {} GB/s, {} GB hide under a step of 10 ms, {} GB under 50 ms, {} GB under 200 ms",
            digits(rates.dma / 1e9),
            hides(0.01),
            hides(0.05),
            hides(0.2)
        ),
    ];
    all.push(if rates.again > 0.5 {
        "the GPU does not cache host memory: what a step reads several times crosses the link as often".into()
    } else {
        "the GPU caches host memory: what a step reads several times crosses the link about once".into()
    });
    if let Some(disk) = disk {
        all.push(format!(
            "each GB on the disk costs a step {} ms (1 GB / {} GB/s)",
            digits(1e12 / disk),
            digits(disk / 1e9)
        ));
    }
    all
}

/// Speed of a model in one way.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Prediction {
    /// `zero-copy`, `staged`, `cpu-layers`.
    pub way: &'static str,
    /// Tokens per second, one after the other.
    pub decode: f64,
    pub decode_formula: String,
    /// Tokens per second of a prompt, at most: what the GPU computes is not in it.
    pub prompt: f64,
    pub prompt_formula: String,
}

/// What is predicted for a model.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Outlook {
    /// Bytes of weights that do not fit.
    pub spilled: u64,
    /// Bytes of VRAM that weights may take.
    pub room: u64,
    pub predictions: Vec<Prediction>,
    pub sentences: Vec<String>,
}

/// A model as far as its speed depends on it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Load {
    /// Of all weights.
    pub bytes: u64,
    /// Of those outside VRAM.
    pub spilled: u64,
    /// Bytes that are read for every token.
    pub bytes_per_token: u64,
    /// Numbers that are used for every token.
    pub parameters_per_token: u64,
    pub is_quantised: bool,
}

/// Predicts, of a model whose weights get what is left of the limit.
pub fn outlook(model: &Model, vram_limit: u64, rates: &Rates) -> Outlook {
    let reserve = RESERVE.min(vram_limit / 4);
    let room = vram_limit - reserve;
    let load = Load {
        bytes: model.bytes,
        spilled: model.bytes.saturating_sub(room),
        bytes_per_token: model.bytes_per_token,
        parameters_per_token: model.parameters_per_token,
        is_quantised: model.is_quantised,
    };
    let predictions = predict(&load, rates);
    Outlook {
        spilled: load.spilled,
        room,
        sentences: sentences(load.spilled, room, &predictions),
        predictions,
    }
}

/// Predicts by zero-copy, staged, and where host RAM was measured by the program's own CPU layers.
pub fn predict(model: &Load, rates: &Rates) -> Vec<Prediction> {
    let share = if model.bytes == 0 {
        0.0
    } else {
        model.spilled as f64 / model.bytes as f64
    };
    let per_token = model.bytes_per_token as f64;
    let (outside, inside) = (per_token * share, per_token * (1.0 - share));
    let all = model.bytes as f64;
    let (all_outside, all_inside) = (all * share, all * (1.0 - share));
    let operations = 2.0 * model.parameters_per_token as f64 * share * PROMPT as f64;
    let zero_copy = if model.is_quantised {
        rates.zero_copy_quantised
    } else {
        rates.zero_copy
    };
    let times = 1.0 + rates.again * (PROMPT.div_ceil(TILE) - 1) as f64;
    let gb = |bytes: f64| format!("{} GB", digits(bytes / 1e9));
    let rate = |rate: f64| format!("{} GB/s", digits(rate / 1e9));
    let per_second = |tokens: u64, seconds: f64| {
        if seconds > 0.0 {
            tokens as f64 / seconds
        } else {
            f64::INFINITY
        }
    };

    let mut predictions = vec![
        Prediction {
            way: "zero-copy",
            decode: per_second(1, inside / rates.vram + outside / zero_copy),
            decode_formula: format!(
                "1 / ({} / {} + {} / {})",
                gb(inside),
                rate(rates.vram),
                gb(outside),
                rate(zero_copy)
            ),
            prompt: per_second(
                PROMPT,
                all_inside / rates.vram + all_outside * times / zero_copy,
            ),
            prompt_formula: format!(
                "{PROMPT} / ({} / {} + {} times {} / {})",
                gb(all_inside),
                rate(rates.vram),
                digits(times),
                gb(all_outside),
                rate(zero_copy)
            ),
        },
        Prediction {
            way: "staged",
            decode: per_second(1, (per_token / rates.vram).max(outside / rates.dma)),
            decode_formula: format!(
                "1 / max({} / {}, {} / {})",
                gb(per_token),
                rate(rates.vram),
                gb(outside),
                rate(rates.dma)
            ),
            prompt: per_second(PROMPT, (all / rates.vram).max(all_outside / rates.dma)),
            prompt_formula: format!(
                "{PROMPT} / max({} / {}, {} / {})",
                gb(all),
                rate(rates.vram),
                gb(all_outside),
                rate(rates.dma)
            ),
        },
    ];
    if rates.ram > 0.0 {
        let computing = if rates.flops > 0.0 {
            operations / rates.flops
        } else {
            0.0
        };
        predictions.push(Prediction {
            way: "cpu-layers",
            decode: per_second(1, inside / rates.vram + outside / rates.ram),
            decode_formula: format!(
                "1 / ({} / {} + {} / {})",
                gb(inside),
                rate(rates.vram),
                gb(outside),
                rate(rates.ram)
            ),
            prompt: per_second(
                PROMPT,
                all_inside / rates.vram + (all_outside / rates.ram).max(computing),
            ),
            prompt_formula: format!(
                "{PROMPT} / ({} / {} + max({} / {}, {} GFLOP / {} GFLOP/s))",
                gb(all_inside),
                rate(rates.vram),
                gb(all_outside),
                rate(rates.ram),
                digits(operations / 1e9),
                digits(rates.flops / 1e9)
            ),
        });
    }
    predictions
}

fn sentences(spilled: u64, room: u64, predictions: &[Prediction]) -> Vec<String> {
    use crate::size::human;
    if spilled == 0 {
        return vec![format!(
            "all weights fit into {} of VRAM: nothing spills",
            human(room)
        )];
    }
    let mut all = vec![format!(
        "{} of the weights do not fit into the {} of VRAM that are left to them",
        human(spilled),
        human(room)
    )];
    let [zero_copy, staged, rest @ ..] = predictions else {
        return all;
    };
    let Some(native) = rest.first() else {
        all.push("host RAM was not measured, so nothing is said about CPU layers".into());
        return all;
    };
    for (what, pick) in [
        (
            "decode",
            (|p: &Prediction| p.decode) as fn(&Prediction) -> f64,
        ),
        ("prompt", |p| p.prompt),
    ] {
        let (zero, ahead, cpu) = (pick(zero_copy), pick(staged), pick(native));
        let (name, best) = if ahead >= zero {
            ("staged", ahead)
        } else {
            ("zero-copy", zero)
        };
        all.push(if cpu > best {
            format!(
                "{what}: the program's own CPU layers (llama.cpp: a smaller -ngl) WIN: {} times the speed of zero-copy, {} \
                 times that of staged",
                digits(cpu / zero),
                digits(cpu / ahead)
            )
        } else {
            format!(
                "{what}: greenboost wins: {name} is {} times as fast as the program's own CPU layers (zero-copy: {})",
                digits(best / cpu),
                digits(zero / cpu)
            )
        });
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATES: Rates = Rates {
        vram: 3e12,
        zero_copy: 50e9,
        zero_copy_quantised: 40e9,
        dma: 55e9,
        ram: 100e9,
        flops: 1e12,
        again: 1.0,
    };

    fn model(bytes: u64) -> Model {
        Model {
            bytes,
            parameters: bytes / 2,
            bytes_per_token: bytes,
            parameters_per_token: bytes / 2,
            ..Model::default()
        }
    }

    fn close(a: f64, b: f64) -> bool {
        (a - b).abs() <= 1e-9 * b.abs()
    }

    #[test]
    fn half_outside() {
        let room = 7_000_000_000;
        let outlook = outlook(&model(14_000_000_000), room + RESERVE, &RATES);
        assert_eq!((outlook.spilled, outlook.room), (7_000_000_000, room));
        let [zero, staged, cpu] = &outlook.predictions[..] else {
            panic!("{outlook:?}");
        };
        assert!(
            close(zero.decode, 1.0 / (7e9 / 3e12 + 7e9 / 50e9)),
            "{zero:?}"
        );
        assert!(close(staged.decode, 55e9 / 7e9), "{staged:?}");
        assert!(
            close(cpu.decode, 1.0 / (7e9 / 3e12 + 7e9 / 100e9)),
            "{cpu:?}"
        );
        // Twice over the link, because 512 tokens are two tiles.
        assert!(
            close(zero.prompt, 512.0 / (7e9 / 3e12 + 14e9 / 50e9)),
            "{zero:?}"
        );
        assert!(close(staged.prompt, 512.0 * 55e9 / 7e9));
        // 2 x 3.5 G numbers x 512 tokens at 1 TFLOP/s.
        assert!(close(cpu.prompt, 512.0 / (7e9 / 3e12 + 3.584)), "{cpu:?}");
        assert_eq!(
            zero.decode_formula,
            "1 / (7.00 GB / 3000 GB/s + 7.00 GB / 50.0 GB/s)"
        );
        assert!(
            outlook.sentences[1].contains("WIN: 1.97 times the speed of zero-copy"),
            "{outlook:?}"
        );
        assert!(
            outlook.sentences[2].contains("prompt: greenboost wins: staged is 28"),
            "{outlook:?}"
        );
    }

    #[test]
    fn a_slow_memory_loses() {
        let rates = Rates { ram: 20e9, ..RATES };
        let outlook = outlook(&model(14_000_000_000), 8_000_000_000, &rates);
        assert!(
            outlook.sentences[1].contains("decode: greenboost wins: staged"),
            "{outlook:?}"
        );
    }

    #[test]
    fn quantised_experts() {
        let model = Model {
            bytes: 40_000_000_000,
            bytes_per_token: 4_000_000_000,
            is_quantised: true,
            ..model(0)
        };
        let outlook = outlook(&model, 20_000_000_000 + RESERVE, &RATES);
        let expected = 1.0 / (2e9 / 3e12 + 2e9 / 40e9);
        assert!(
            close(outlook.predictions[0].decode, expected),
            "{outlook:?}"
        );
    }

    #[test]
    fn what_fits_does_not_spill() {
        let outlook = outlook(&model(1 << 30), 8 << 30, &RATES);
        assert_eq!(outlook.spilled, 0);
        assert!(outlook.sentences[0].contains("nothing spills"));
        assert!(close(
            outlook.predictions[0].decode,
            3e12 / (1u64 << 30) as f64
        ));
    }

    #[test]
    fn no_speed_without_results() {
        use super::super::figure::{Figure, Unit};
        let mut link = Section::new(Tier::Link, "gpu");
        let mut vram = Section::new(Tier::Vram, "gpu");
        let figure = |id, value| Figure::new(id, "", Unit::Rate, &[value], Some(1e13));
        link.figures
            .extend([figure("zero.read16", 50e9), figure("dma.h2d", 55e9)]);
        vram.figures.push(figure("vram.read", 3e12));
        let sections = [link.clone(), vram.clone()];
        let rates = Rates::of(&sections).unwrap();
        assert_eq!((rates.dma, rates.ram, rates.again), (55e9, 0.0, 1.0));
        assert_eq!(spilling(&rates, Some(1e9)).len(), 4);
        link.figures[1].error = Some("impossible".into());
        assert_eq!(Rates::of(&[link, vram]), None);
    }
}
