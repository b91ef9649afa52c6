//! `FUNCTIONS.md`: the intercepted functions with what each does, from the table of hooks, and the classes of the others.
//!
//! To bring it up to date: `UPDATE=1 cargo test -p greenboost-shim functions`.

use std::path::Path;

use crate::mediation::{Class, class_of};

/// A row of the table in `hooks.rs`, as its source has it.
pub struct Hook {
    /// Heading of its group.
    pub group: String,
    /// What it does.
    pub about: String,
    /// Its name.
    pub name: String,
}

impl Hook {
    /// Whether it is of the CUDA driver; the others are of NVML, which moves nothing.
    pub fn is_cuda(&self) -> bool {
        self.name.starts_with("cu")
    }
}

/// The table of hooks.
pub fn hooks() -> Vec<Hook> {
    let source = include_str!("hooks.rs");
    let table = source.split_once("\nhooks! {").expect("the table").1;
    let (mut group, mut about) = (String::new(), String::new());
    let mut hooks = Vec::new();
    for line in table.lines().map(str::trim) {
        if let Some(text) = line.strip_prefix("/// ") {
            about = format!("{about} {text}").trim().to_string();
        } else if let Some(text) = line.strip_prefix("// ") {
            group = text.into();
        } else if let Some((name, _)) = line.strip_prefix("fn ").and_then(|l| l.split_once('(')) {
            hooks.push(Hook {
                group: group.clone(),
                about: std::mem::take(&mut about),
                name: name.into(),
            });
        }
    }
    hooks
}

fn page() -> String {
    let hooks = hooks();
    let mut out = String::from(
        "# Functions\n\n\
         Made from the table in `src/hooks.rs` and from `symbols.txt` by\n\
         `UPDATE=1 cargo test -p greenboost-shim functions`.\n\n\
         ## Intercepted\n",
    );
    let mut group = "";
    let mut rest = hooks.as_slice();
    while let Some(first) = rest.first() {
        if group != first.group {
            group = &first.group;
            out += &format!("\n### {group}\n| function | what the shim makes of it |\n|---|---|\n");
        }
        let same = rest
            .iter()
            .take_while(|h| h.group == first.group && h.about == first.about)
            .count();
        let names: Vec<String> = rest[..same]
            .iter()
            .map(|h| format!("`{}`", h.name))
            .collect();
        out += &format!("| {} | {} |\n", names.join(" "), first.about);
        rest = &rest[same..];
    }

    let list = include_str!("../symbols.txt");
    let names: Vec<&str> = list
        .lines()
        .filter(|l| !l.starts_with('#'))
        .filter_map(|l| l.split(' ').next())
        .collect();
    let of = |class: Class| {
        let names = names.iter().copied();
        names.filter(move |n| class_of(n.as_bytes()).is_some_and(|(c, _)| c == class))
    };
    let intercepted = |name: &str| hooks.iter().any(|h| h.name == name);
    let count = |class: Class| {
        let hooked = of(class).filter(|n| intercepted(n)).count();
        format!("{} | {hooked}", of(class).count())
    };
    out += &format!(
        "\n## All functions of the driver\n\
         `symbols.txt` has the {} functions of driver 580.159.04.\n\n\
         | class | functions | intercepted | meaning |\n|---|---|---|---|\n\
         | gated | {} | starts work that touches memory, or changes what is mapped |\n\
         | naming | {} | names memory for work that starts later, by a gated function |\n\
         | harmless | {} | neither names nor touches memory that could move |\n\
         | freezing | {} | names memory in a way that the shim cannot follow |\n\n\
         A freezing function, and one that is not in the list because the driver is newer, is handed out behind a stub.\n\
         At its first call nothing is moved in the process any more, which the launcher hears once; the call itself\n\
         goes on unchanged.\n",
        names.len(),
        count(Class::Gated),
        count(Class::Naming),
        count(Class::Harmless),
        count(Class::Freezing),
    );
    out += "\n### Freezing\n| why | functions |\n|---|---|\n";
    let mut reasons: Vec<&str> = Vec::new();
    for name in of(Class::Freezing) {
        let reason = class_of(name.as_bytes()).expect("listed").1;
        if !reasons.contains(&reason) {
            reasons.push(reason);
        }
    }
    for reason in reasons {
        let with = of(Class::Freezing)
            .filter(|n| class_of(n.as_bytes()).expect("listed").1 == reason)
            .map(|n| format!("`{n}`"));
        out += &format!("| {reason} | {} |\n", with.collect::<Vec<_>>().join(" "));
    }
    out
}

#[test]
fn functions_page_is_current() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("FUNCTIONS.md");
    let page = page();
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&path, &page).unwrap();
    }
    assert!(
        std::fs::read_to_string(&path).is_ok_and(|old| old == page),
        "{} is stale: UPDATE=1 cargo test -p greenboost-shim functions",
        path.display()
    );
}

#[test]
fn every_intercepted_function_says_what_it_does() {
    let hooks = hooks();
    assert!(hooks.len() > 50);
    for hook in hooks {
        assert!(
            !hook.about.is_empty() && !hook.group.is_empty(),
            "{}",
            hook.name
        );
    }
}
