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
    let end = line.iter().position(|b| b" \t".contains(b));
    let (interpreter, rest) = line.split_at(end.unwrap_or(line.len()));
    if interpreter.is_empty() {
        return None;
    }
    if interpreter.rsplit(|b| *b == b'/').next() == Some(b"env")
        && let Some(name) = named_for_env(rest)
    {
        return Some(script(line, &name));
    }
    Some(script(line, interpreter))
}

/// The program that `env WORDS...` runs; `None` when only env itself can know.
///
/// The kernel passes all words as one argument, so only `-S` can have more than one; env without it would look for a
/// program with blanks in its name, which nobody means.
fn named_for_env(text: &[u8]) -> Option<Vec<u8>> {
    // env replaces ${NAME} by its own environment.
    if text.contains(&b'$') {
        return None;
    }
    let mut words = split_words(text).into_iter();
    while let Some(word) = words.next() {
        let mut word = word.as_slice();
        if word == b"--" {
            return words.next();
        }
        if let Some(rest) = word.strip_prefix(b"--split-string") {
            word = rest.strip_prefix(b"=").unwrap_or(rest);
        } else if word.starts_with(b"--") {
            if matches!(word, b"--unset" | b"--chdir") {
                words.next();
            }
            continue;
        } else if let Some(letters) = word.strip_prefix(b"-") {
            // Letters may be joined; the first that takes a value takes the rest, or the next word.
            match letters.iter().position(|letter| b"SuC".contains(letter)) {
                Some(at) if letters[at] == b'S' => word = &letters[at + 1..],
                Some(at) => {
                    if at + 1 == letters.len() {
                        words.next();
                    }
                    continue;
                }
                None => continue,
            }
        }
        if word.starts_with(b"PATH=") {
            return None;
        }
        if !word.is_empty() && !word.contains(&b'=') {
            return Some(word.to_vec());
        }
    }
    None
}

/// Words as `env -S` takes them apart: blanks separate, quotes hold together, a backslash takes the next as it is.
fn split_words(text: &[u8]) -> Vec<Vec<u8>> {
    let mut words = Vec::new();
    let mut word: Option<Vec<u8>> = None;
    let mut quote = None;
    let mut bytes = text.iter().copied();
    while let Some(byte) = bytes.next() {
        match (byte, quote) {
            (b' ' | b'\t', None) => words.extend(word.take()),
            (b'\'' | b'"', None) => {
                quote = Some(byte);
                word.get_or_insert_default();
            }
            (b, Some(q)) if b == q => quote = None,
            (b'\\', None | Some(b'"')) => match bytes.next() {
                Some(b'_') if quote.is_none() => words.extend(word.take()),
                Some(b'_') => word.get_or_insert_default().push(b' '),
                Some(next) => word.get_or_insert_default().push(next),
                None => {}
            },
            _ => word.get_or_insert_default().push(byte),
        }
    }
    words.extend(word);
    words
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
            (
                b"#!/usr/bin/env -vS -u HOME -C/tmp 'python3' -u\n",
                Some("python3"),
            ),
            (b"#!/usr/bin/env -iS\\_A=1\\_python3\n", Some("python3")),
            (
                b"#!/usr/bin/env -S -i --unset X -- python3\n",
                Some("python3"),
            ),
            (
                b"#!/usr/bin/env -S \"/opt/my py/bin/python\" -u\n",
                Some("/opt/my py/bin/python"),
            ),
            (
                b"#!/usr/bin/env -S ${HOME}/bin/python\n",
                Some("/usr/bin/env"),
            ),
            (
                b"#!/usr/bin/env -S PATH=/opt/bin python\n",
                Some("/usr/bin/env"),
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
