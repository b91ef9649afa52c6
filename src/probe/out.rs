//! What is told while it goes on: progress for people on stderr, records for programs.

use std::time::Instant;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Value, json};

use super::figure::{Figure, Section};
use crate::json::Sink;

/// Both.
pub struct Out {
    bar: ProgressBar,
    sink: Sink,
    started: Instant,
}

impl Out {
    /// A bar on stderr, if that is a terminal, and this sink.
    pub fn new(sink: Sink) -> Out {
        let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr());
        let style = ProgressStyle::with_template("{bar:30} {pos:>2}/{len} {elapsed} {wide_msg}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        Out {
            bar,
            sink,
            started: Instant::now(),
        }
    }

    /// Time since the start.
    pub fn seconds(&self) -> f64 {
        self.started.elapsed().as_secs_f64()
    }

    /// There will be so many more steps.
    pub fn expect(&mut self, steps: usize) {
        self.bar.inc_length(steps as u64);
    }

    /// One of them begins.
    pub fn step(&mut self, what: &str) {
        self.bar.set_message(what.to_string());
        self.bar.inc(1);
    }

    /// Ends the bar.
    pub fn finish(&mut self) {
        self.bar.finish_and_clear();
    }

    /// Writes a record.
    pub fn record(&mut self, kind: &str, fields: Value) {
        let time = self.seconds();
        self.sink.write(kind, time, fields);
    }

    /// A figure is there: it becomes part of the section.
    pub fn figure(&mut self, section: &mut Section, figure: Figure) {
        let mut fields = serde_json::to_value(&figure).unwrap_or_default();
        fields["tier"] = json!(section.tier);
        fields["of"] = json!(section.title);
        self.record("figure", fields);
        section.figures.push(figure);
    }

    /// The section is complete.
    pub fn section(&mut self, section: &Section) {
        let facts: serde_json::Map<String, Value> = section
            .facts
            .iter()
            .map(|(name, text)| (name.clone(), json!(text)))
            .collect();
        let fields = json!({
            "tier": section.tier,
            "of": section.title,
            "facts": facts,
            "warnings": section.warnings,
        });
        self.record("section", fields);
    }
}
