//! Just enough of PTX: kernels with their parameters, and module-level variables.

pub(crate) struct Parsed {
    pub kernels: Vec<Kernel>,
    pub globals: Vec<Global>,
}

pub(crate) struct Kernel {
    pub name: String,
    pub params: Vec<Param>,
}

#[derive(Clone, Copy)]
pub(crate) struct Param {
    pub offset: usize,
    pub size: usize,
}

pub(crate) struct Global {
    pub name: String,
    pub size: u64,
}

/// `None` when the text is not PTX.
pub(crate) fn parse(text: &str) -> Option<Parsed> {
    let text = strip_comments(text);
    if !text.contains(".version") || !text.contains(".target") {
        return None;
    }
    let mut parsed = Parsed {
        kernels: Vec::new(),
        globals: Vec::new(),
    };
    let mut rest = text.as_str();
    while let Some(at) = rest.find(['{', ';', '.']) {
        match rest.as_bytes()[at] {
            b'{' => rest = skip_body(&rest[at..]),
            b';' => rest = &rest[at + 1..],
            _ => {
                let word = word(&rest[at..]);
                rest = &rest[at + word.len()..];
                match word {
                    ".entry" => {
                        let (kernel, after) = entry(rest)?;
                        parsed.kernels.push(kernel);
                        rest = after;
                    }
                    ".global" => {
                        let end = rest.find(';')?;
                        parsed.globals.extend(global(&rest[..end]));
                        // An initialiser may hold braces: the whole statement is passed over.
                        rest = &rest[end + 1..];
                    }
                    _ => {}
                }
            }
        }
    }
    Some(parsed)
}

fn strip_comments(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("/*").into_iter().chain(rest.find("//")).min() {
        out.push_str(&rest[..at]);
        let (close, keep) = if rest[at..].starts_with("/*") {
            ("*/", 2)
        } else {
            ("\n", 0)
        };
        rest = rest[at..]
            .find(close)
            .map_or("", |end| &rest[at + end + keep..]);
    }
    out + rest
}

fn is_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '$' | '%')
}

/// The directive or name at the start.
fn word(text: &str) -> &str {
    let end = text
        .char_indices()
        .skip(1)
        .find(|(_, c)| !is_name(*c))
        .map_or(text.len(), |(i, _)| i);
    &text[..end]
}

/// What follows the body that starts here.
fn skip_body(text: &str) -> &str {
    let mut depth = 0usize;
    for (i, c) in text.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => {
                depth -= 1;
                if depth == 0 {
                    return &text[i + 1..];
                }
            }
            _ => {}
        }
    }
    ""
}

fn entry(text: &str) -> Option<(Kernel, &str)> {
    let text = text.trim_start();
    let name: String = text.chars().take_while(|c| is_name(*c)).collect();
    let after = &text[name.len()..];
    let trimmed = after.trim_start();
    if name.is_empty() {
        return None;
    }
    let Some(list) = trimmed.strip_prefix('(') else {
        return Some((
            Kernel {
                name,
                params: Vec::new(),
            },
            after,
        ));
    };
    let end = list.find(')')?;
    let mut params = Vec::new();
    let mut offset = 0usize;
    for text in list[..end].split(',').filter(|p| p.contains(".param")) {
        let (size, align, _) = variable(text)?;
        offset = offset.next_multiple_of(align);
        params.push(Param { offset, size });
        offset += size;
    }
    Some((Kernel { name, params }, &list[end + 1..]))
}

fn global(text: &str) -> Option<Global> {
    let declared = text.split('=').next()?;
    let (size, _, name) = variable(declared)?;
    Some(Global {
        name,
        size: size as u64,
    })
}

/// Size, alignment and name of `[.align N] .type name[count]`.
fn variable(text: &str) -> Option<(usize, usize, String)> {
    let count = match text.split_once('[') {
        Some((_, rest)) => rest.split(']').next()?.trim().parse().unwrap_or(0),
        None => 1usize,
    };
    let declared = text.split('[').next()?;
    let (mut align, mut size) = (None, None);
    let mut words = declared.split_whitespace();
    let mut name = "";
    while let Some(word) = words.next() {
        match (word, size) {
            // After the type, `.align` speaks of what a pointer points to.
            (".align", None) => align = words.next()?.parse().ok(),
            (".align", Some(_)) => drop(words.next()),
            (_, None) if width(word).is_some() => size = width(word),
            _ if !word.starts_with('.') => name = word,
            _ => {}
        }
    }
    let size = size?;
    Some((size * count, align.unwrap_or(size), name.to_owned()))
}

fn width(kind: &str) -> Option<usize> {
    Some(match kind {
        ".b8" | ".u8" | ".s8" | ".pred" => 1,
        ".b16" | ".u16" | ".s16" | ".f16" | ".bf16" => 2,
        ".b32" | ".u32" | ".s32" | ".f32" | ".f16x2" | ".bf16x2" => 4,
        ".b64" | ".u64" | ".s64" | ".f64" => 8,
        ".b128" => 16,
        _ => return None,
    })
}
