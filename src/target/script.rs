//! `#!` lines.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use serde::Serialize;

/// Linux reads this much of a file to see what it is.
pub const KERNEL_LOOKS_AT: u64 = 256;

/// One script on the way to the program that is executed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Script {
    /// The file.
    pub path: PathBuf,
    /// Its first line without `#!`; empty when it has none and is left to the shell.
    pub line: String,
    /// What runs it: a path, or a name to be looked up when the line goes through `env`.
    pub interpreter: PathBuf,
}

/// What a file's first bytes say about who runs it; `None` for a file that is no script.
pub fn parse(path: &Path, start: &[u8]) -> Option<Script> {
    if start.starts_with(b"\x7fELF") {
        return None;
    }
    let script = |line: &[u8], interpreter: &[u8]| Script {
        path: path.to_path_buf(),
        line: String::from_utf8_lossy(line).into_owned(),
        interpreter: PathBuf::from(OsStr::from_bytes(interpreter)),
    };
    let Some(line) = start.strip_prefix(b"#!") else {
        // The kernel refuses such a file, and execvp then hands it to the shell, as every shell does. Files of other
        // kinds (a foreign executable with a registered handler) hold NUL bytes and are not judged.
        let is_text = !start.is_empty() && !start.contains(&0);
        return is_text.then(|| script(b"", b"/bin/sh"));
    };
    let line = line.split(|b| *b == b'\n').next()?.trim_ascii();
    let mut words = line
        .split(|b| b" \t".contains(b))
        .filter(|word| !word.is_empty());
    let interpreter = words.next()?;
    if interpreter.rsplit(|b| *b == b'/').next() == Some(b"env")
        && let Some(name) = named_for_env(words)
    {
        return Some(script(line, name));
    }
    Some(script(line, interpreter))
}

/// The program that `env WORDS...` runs.
///
/// The kernel passes all words as one argument, so only `-S` can have more than one; env without it would look for a
/// program with blanks in its name, which nobody means.
fn named_for_env<'a>(words: impl Iterator<Item = &'a [u8]>) -> Option<&'a [u8]> {
    for word in words {
        let word = word
            .strip_prefix(b"-S")
            .or_else(|| word.strip_prefix(b"--split-string="))
            .unwrap_or(word);
        let is_option = word.is_empty() || word.starts_with(b"-");
        if !is_option && !word.contains(&b'=') {
            return Some(word);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interpreter(start: &[u8]) -> Option<String> {
        let script = parse(Path::new("x"), start)?;
        Some(script.interpreter.to_string_lossy().into_owned())
    }

    #[test]
    fn lines() {
        for (start, expected) in [
            (&b"#!/bin/sh\necho"[..], Some("/bin/sh")),
            (b"#! /bin/sh -e -x\n", Some("/bin/sh")),
            (b"#!\t/opt/my\xffsh", Some("/opt/my\u{fffd}sh")),
            (b"#!/usr/bin/env python3\n", Some("python3")),
            (b"#!/usr/bin/env -S python3 -u\n", Some("python3")),
            (b"#!/usr/bin/env -Spython3 -u\n", Some("python3")),
            (
                b"#!/usr/bin/env --split-string=A=1 -i python3\n",
                Some("python3"),
            ),
            (b"#!/usr/bin/env\n", Some("/usr/bin/env")),
            (b"#!/usr/bin/env -S\n", Some("/usr/bin/env")),
            (b"#!/bin/sh\r\n", Some("/bin/sh")),
            (b"echo hello\n", Some("/bin/sh")),
            (b"#!\n", None),
            (b"#!", None),
            (b"", None),
            (b"MZ\x90\0\x03", None),
            (b"\x7fELF\x02\x01", None),
        ] {
            assert_eq!(
                interpreter(start).as_deref(),
                expected,
                "{}",
                start.escape_ascii()
            );
        }
    }
}
