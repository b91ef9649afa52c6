//! What was measured: a median with its spread, held against what is physically possible. Pure.

use serde::{Deserialize, Serialize};

/// A part of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Tier {
    /// Between host RAM and the GPU.
    Link,
    /// The GPU's own memory.
    Vram,
    /// Host memory and processor.
    Ram,
    /// A directory's file system.
    Nvme,
}

/// What a figure counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Unit {
    /// Bytes per second.
    #[serde(rename = "B/s")]
    Rate,
    /// Seconds per GiB.
    #[serde(rename = "s/GiB")]
    Cost,
    /// One thing in multiples of another.
    #[serde(rename = "x")]
    Factor,
    /// Operations on numbers of 32 bits per second.
    #[serde(rename = "FLOP/s")]
    Compute,
}

/// One figure.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    /// Name for programs, unique in its section; stays the same in later versions.
    pub id: String,
    /// Name for people.
    pub label: String,
    pub unit: Unit,
    /// The median.
    pub value: f64,
    pub low: f64,
    pub high: f64,
    /// How often it was measured.
    pub runs: usize,
    /// More than this cannot be, in the same unit.
    pub limit: Option<f64>,
    /// Why it is not a result: it is above the limit, or could not be measured.
    pub error: Option<String>,
}

/// Figures of one tier, and what was found out about it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Section {
    pub tier: Tier,
    /// Which one: a device's name, a directory.
    pub title: String,
    pub facts: Vec<(String, String)>,
    pub figures: Vec<Figure>,
    pub warnings: Vec<String>,
}

impl Section {
    /// An empty one.
    pub fn new(tier: Tier, title: &str) -> Section {
        Section {
            tier,
            title: title.to_string(),
            facts: Vec::new(),
            figures: Vec::new(),
            warnings: Vec::new(),
        }
    }

    /// Adds something that was found out.
    pub fn fact(&mut self, name: &str, text: impl Into<String>) {
        self.facts.push((name.to_string(), text.into()));
    }

    /// Adds a warning.
    pub fn warn(&mut self, text: impl Into<String>) {
        self.warnings.push(text.into());
    }

    /// Whether that was found out.
    pub fn is_said(&self, name: &str, text: &str) -> bool {
        self.facts.iter().any(|(n, t)| n == name && t == text)
    }

    /// A figure that is a result.
    pub fn value(&self, id: &str) -> Option<f64> {
        let figure = self.figures.iter().find(|f| f.id == id)?;
        // What is kept in a file may be anything.
        let is_result = figure.error.is_none() && (1e-3..1e21).contains(&figure.value);
        is_result.then_some(figure.value)
    }
}

impl Figure {
    /// Makes one of what repeated measurements gave.
    pub fn new(id: &str, label: &str, unit: Unit, samples: &[f64], limit: Option<f64>) -> Figure {
        let mut sorted: Vec<f64> = samples.iter().copied().filter(|v| v.is_finite()).collect();
        sorted.sort_by(f64::total_cmp);
        let mut figure = Figure {
            id: id.to_string(),
            label: label.to_string(),
            unit,
            value: median(&sorted),
            low: sorted.first().copied().unwrap_or(0.0),
            high: sorted.last().copied().unwrap_or(0.0),
            runs: sorted.len(),
            limit,
            error: None,
        };
        if sorted.is_empty() {
            figure.error = Some("nothing was measured".into());
        } else if let Some(limit) = limit.filter(|limit| figure.value > *limit) {
            figure.error = Some(format!(
                "error of measurement: {} is more than the {} that are possible",
                figure.text(figure.value),
                figure.text(limit)
            ));
        }
        figure
    }

    /// A rate, of how long each run took for so many bytes.
    pub fn rate(id: &str, label: &str, bytes: u64, seconds: &[f64], limit: Option<f64>) -> Figure {
        let rates: Vec<f64> = seconds.iter().map(|s| bytes as f64 / s).collect();
        Figure::new(id, label, Unit::Rate, &rates, limit)
    }

    /// One that could not be measured.
    pub fn failed(id: &str, label: &str, unit: Unit, why: impl std::fmt::Display) -> Figure {
        Figure {
            error: Some(why.to_string()),
            ..Figure::new(id, label, unit, &[], None)
        }
    }

    /// A value with its unit.
    pub fn text(&self, value: f64) -> String {
        match self.unit {
            Unit::Rate => format!("{} GB/s", digits(value / 1e9)),
            Unit::Cost => format!("{} ms/GiB", digits(value * 1e3)),
            Unit::Factor => format!("{}x", digits(value)),
            Unit::Compute => format!("{} GFLOP/s", digits(value / 1e9)),
        }
    }

    /// How far the runs lie apart, in hundredths of the median.
    pub fn spread(&self) -> f64 {
        if self.value > 0.0 {
            (self.high - self.low) / self.value * 100.0
        } else {
            0.0
        }
    }

    /// How much of what is possible, in hundredths.
    pub fn share(&self) -> Option<f64> {
        self.limit.map(|limit| self.value / limit * 100.0)
    }
}

fn median(sorted: &[f64]) -> f64 {
    match sorted.len() {
        0 => 0.0,
        n if n % 2 == 1 => sorted[n / 2],
        n => (sorted[n / 2 - 1] + sorted[n / 2]) / 2.0,
    }
}

/// Three digits that matter, as far as there are any.
pub fn digits(value: f64) -> String {
    match value.abs() {
        0.0 => "0".into(),
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        v if v >= 0.1 => format!("{value:.2}"),
        _ => format!("{value:.4}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        let of = |samples: &[f64]| Figure::new("a", "b", Unit::Factor, samples, None);
        let figure = of(&[3.0, 1.0, 2.0]);
        assert_eq!(
            (figure.value, figure.low, figure.high, figure.runs),
            (2.0, 1.0, 3.0, 3)
        );
        assert_eq!(figure.spread(), 100.0);
        assert_eq!(of(&[4.0, 1.0]).value, 2.5);
        assert_eq!(of(&[1.0, f64::INFINITY]).runs, 1);
        assert!(of(&[]).error.is_some());
    }

    #[test]
    fn more_than_possible_is_no_result() {
        let mut section = Section::new(Tier::Link, "");
        for (id, seconds) in [("sane", 2.0), ("odd", 0.5)] {
            let figure = Figure::rate(id, id, 16 << 30, &[seconds], Some(15.75e9));
            section.figures.push(figure);
        }
        assert!(section.value("sane").is_some());
        assert_eq!(section.value("odd"), None);
        assert_eq!(section.value("neither"), None);
        let error = section.figures[1].error.as_deref().unwrap();
        assert_eq!(
            error,
            "error of measurement: 34.4 GB/s is more than the 15.8 GB/s that are possible"
        );
    }
}
