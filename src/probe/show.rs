//! The tables.

use comfy_table::{CellAlignment, Table, presets};

use super::figure::{Figure, Section, Tier, Unit, digits};
use super::verdict::Outlook;

fn table() -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table
}

fn text(mut table: Table) -> String {
    for index in [1, 2, 3, 4] {
        if let Some(column) = table.column_mut(index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    let lines: Vec<String> = table
        .lines()
        .map(|l| l.trim_end().to_string() + "\n")
        .collect();
    lines.concat()
}

/// Names come from files, devices and the user: nothing in them reaches the terminal as a control sequence.
fn harmless(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

/// A section as people read it.
pub fn section(section: &Section) -> String {
    let name = match section.tier {
        Tier::Link => "Link to",
        Tier::Vram => "VRAM of",
        Tier::Ram => "RAM and processor of the",
        Tier::Nvme => "Disk under",
    };
    let mut out = format!("{name} {}\n", harmless(&section.title));
    for (name, text) in &section.facts {
        out += &format!("  {name}: {}\n", harmless(text));
    }
    let mut table = table();
    table.set_header(["", "GB/s", "best", "spread", "of maximum"]);
    let mut errors = Vec::new();
    let mut costs: Vec<(String, Vec<&Figure>)> = Vec::new();
    for figure in &section.figures {
        if let Some(error) = &figure.error {
            errors.push(format!("{}: {error}", figure.label));
            continue;
        }
        if let (Unit::Cost, Some((group, _))) = (figure.unit, figure.label.split_once(": ")) {
            match costs.iter_mut().find(|(name, _)| name == group) {
                Some((_, all)) => all.push(figure),
                None => costs.push((group.to_string(), vec![figure])),
            }
            continue;
        }
        let (value, best) = match figure.unit {
            Unit::Rate => (digits(figure.value / 1e9), digits(figure.high / 1e9)),
            _ => (figure.text(figure.value), String::new()),
        };
        let (best, spread) = if figure.runs > 1 {
            (best, format!("{:.0} %", figure.spread()))
        } else {
            Default::default()
        };
        let share = figure
            .share()
            .map(|s| format!("{s:.0} %"))
            .unwrap_or_default();
        table.add_row([figure.label.clone(), value, best, spread, share]);
    }
    if !table.is_empty() {
        out += &text(table);
    }
    if !costs.is_empty() {
        out += &self::costs(&costs);
    }
    for error in errors {
        out += &format!("  ERROR {}\n", harmless(&error));
    }
    for warning in &section.warnings {
        out += &format!("  WARNING {}\n", harmless(warning));
    }
    out
}

fn costs(groups: &[(String, Vec<&Figure>)]) -> String {
    let mut table = table();
    let steps = groups
        .iter()
        .map(|(_, all)| all)
        .max_by_key(|all| all.len());
    let name = |figure: &&Figure| match figure.label.split_once(": ") {
        Some((_, step)) => step.to_string(),
        None => figure.label.clone(),
    };
    let header = steps.map(|all| all.iter().map(name).collect::<Vec<_>>());
    table.set_header(std::iter::once("ms per GiB".to_string()).chain(header.unwrap_or_default()));
    for (group, all) in groups {
        let values = all.iter().map(|f| digits(f.value * 1e3));
        table.add_row(std::iter::once(group.clone()).chain(values));
    }
    text(table)
}

/// The verdict on spilling.
pub fn verdict(sentences: &[String]) -> String {
    let mut out = "Verdict\n".to_string();
    for sentence in sentences {
        out += &format!("  {}\n", harmless(sentence));
    }
    out
}

/// The verdict on a model.
pub fn model(name: &str, about: &str, outlook: &Outlook) -> String {
    let mut out = format!("Model {}\n  {}\n", harmless(name), harmless(about));
    if outlook.spilled > 0 {
        let mut table = table();
        table.set_header(["tokens/s", "decode", "prompt, at most"]);
        for p in &outlook.predictions {
            table.add_row([p.way.to_string(), digits(p.decode), digits(p.prompt)]);
        }
        out += &text(table);
        for p in &outlook.predictions {
            out += &format!(
                "  {}: decode = {}; prompt = {}\n",
                p.way, p.decode_formula, p.prompt_formula
            );
        }
        out += "  1 GiB of the limit (a quarter of a small one) is left to KV cache and scratch; what the GPU computes is not \
                in these\n";
    }
    for sentence in &outlook.sentences {
        out += &format!("  {}\n", harmless(sentence));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_section() {
        let mut s = Section::new(Tier::Link, "NVIDIA \x1b[2J");
        s.fact("link at most", "PCIe 5.0 x16");
        s.warn("slow");
        for (id, value) in [("dma", 50e9), ("odd", 90e9)] {
            s.figures.push(Figure::new(
                id,
                id,
                Unit::Rate,
                &[value, value * 1.02],
                Some(63e9),
            ));
        }
        for step in ["create", "map"] {
            let label = format!("2 MiB chunks, host: {step}");
            s.figures
                .push(Figure::new(step, &label, Unit::Cost, &[0.186], None));
        }
        let shown = section(&s);
        assert!(!shown.contains('\x1b'));
        let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
        let lines: Vec<_> = shown.lines().map(words).collect();
        for line in [
            "dma 50.5 51.0 2 % 80 %",
            "ms per GiB create map",
            "2 MiB chunks, host 186 186",
            "ERROR odd: error of measurement: 90.9 GB/s is more than the 63.0 GB/s that are possible",
            "WARNING slow",
        ] {
            assert!(lines.contains(&line.to_string()), "{line}\n{shown}");
        }
    }
}
