//! The program's output on its way to the terminal, while the table has the bottom lines.
//!
//! Everything passes as it is but the few sequences that reach below the program's own lines: it believes in a terminal
//! of fewer rows, and what it says about "the last line" or "the whole screen" has to mean those. A sequence or a
//! character that has not come whole is kept back, so that what is passed on never ends inside one.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::time::{Duration, Instant};

use memchr::{memchr, memchr2};

/// Longest sequence that is looked at; a longer one is passed on unread.
const LONGEST: usize = 256;
/// How long a restored cursor may be restored once more before its place is taken for free.
const AGAIN: Duration = Duration::from_secs(5);

const ESC: u8 = 0x1b;
const BEL: u8 = 0x07;

/// What the terminal keeps for "save cursor". It has one place, and drawing the table needs it.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Slot {
    /// The program has never saved.
    Free,
    /// Saved, not restored.
    Taken { pairs: u32 },
    /// Restored; it may restore again.
    Restored { pairs: u32, at: Instant },
    /// The program restores the same place again and again: it is never ours.
    Lost,
}

/// See the module.
pub struct Filter {
    held: Vec<u8>,
    in_string: bool,
    /// The program's rows while the table is up.
    rows: Option<u16>,
    /// Private modes that the program has turned from what they were, as `h` or `l` says.
    modes: BTreeSet<u16>,
    /// The program shows its alternate screen.
    pub alternate: bool,
    /// The last character was a line feed: the cursor is where a line begins.
    pub at_line_start: bool,
    /// The same on the main screen, while the alternate one is shown.
    was_at_line_start: bool,
    /// The program may have wiped the table.
    pub wiped: bool,
    styled: bool,
    slot: Slot,
}

/// Private modes of which a terminal is freed when the program was killed, and whether they are on by default.
const LEFT_BEHIND: [(u16, bool); 13] = [
    (1, false),
    (7, true),
    (9, false),
    (25, true),
    (1000, false),
    (1002, false),
    (1003, false),
    (1004, false),
    (1005, false),
    (1006, false),
    (1015, false),
    (2004, false),
    (2026, false),
];

impl Filter {
    /// Nothing has passed.
    pub fn new() -> Filter {
        Filter {
            held: Vec::new(),
            in_string: false,
            rows: None,
            modes: BTreeSet::new(),
            alternate: false,
            at_line_start: true,
            was_at_line_start: true,
            wiped: false,
            styled: false,
            slot: Slot::Free,
        }
    }

    /// From here on the program has this many rows, because the table is below them; `None`: all.
    pub fn set_rows(&mut self, rows: Option<u16>) {
        self.rows = rows;
    }

    /// Whether something may be written between what has passed and what comes.
    pub fn is_between(&self) -> bool {
        !self.in_string
    }

    /// Whether the terminal's saved cursor may be overwritten now.
    pub fn may_save(&self) -> bool {
        match self.slot {
            Slot::Free => true,
            Slot::Taken { .. } | Slot::Lost => false,
            Slot::Restored { pairs, at } => pairs > 1 || at.elapsed() > AGAIN,
        }
    }

    /// Whether the saved cursor is the program's for good.
    pub fn never_saves(&self) -> bool {
        self.slot == Slot::Lost
    }

    /// Passes bytes on.
    pub fn pass(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        let joined;
        let mut rest = match self.held.is_empty() {
            true => bytes,
            false => {
                let mut all = std::mem::take(&mut self.held);
                all.extend(bytes);
                joined = all;
                &joined[..]
            }
        };
        while !rest.is_empty() {
            let used = if self.in_string {
                self.string(rest, out)
            } else if rest[0] == ESC {
                match self.sequence(rest, out) {
                    Some(used) => used,
                    None if rest.len() > LONGEST => {
                        out.extend(rest);
                        rest.len()
                    }
                    None => {
                        self.held = rest.to_vec();
                        return;
                    }
                }
            } else {
                let end = memchr(ESC, rest).unwrap_or(rest.len());
                let whole = match end == rest.len() {
                    true => end - unfinished(&rest[..end]),
                    false => end,
                };
                if whole == 0 {
                    self.held = rest.to_vec();
                    return;
                }
                out.extend(&rest[..whole]);
                self.at_line_start = rest[whole - 1] == b'\n';
                whole
            };
            rest = &rest[used..];
        }
    }

    /// What is still kept back, when nothing more will come.
    pub fn flush(&mut self, out: &mut Vec<u8>) {
        out.append(&mut self.held);
    }

    /// A control string (OSC, DCS, ...) up to its end or the end of what is there.
    fn string(&mut self, rest: &[u8], out: &mut Vec<u8>) -> usize {
        let end = match memchr2(BEL, ESC, rest) {
            None => rest.len(),
            Some(at) if rest[at] == BEL => {
                self.in_string = false;
                at + 1
            }
            Some(at) => match rest.get(at + 1) {
                Some(b'\\') => {
                    self.in_string = false;
                    at + 2
                }
                // An escape begins another sequence, which ends this one.
                Some(_) => {
                    self.in_string = false;
                    at
                }
                None => {
                    self.held = rest[at..].to_vec();
                    out.extend(&rest[..at]);
                    return rest.len();
                }
            },
        };
        out.extend(&rest[..end]);
        end
    }

    /// One sequence; `None` when it is not there whole.
    fn sequence(&mut self, rest: &[u8], out: &mut Vec<u8>) -> Option<usize> {
        let kind = *rest.get(1)?;
        match kind {
            b'[' => {
                let end = rest
                    .iter()
                    .skip(2)
                    .position(|b| !matches!(b, 0x20..=0x3f))?
                    + 2;
                if matches!(rest[end], 0x40..=0x7e) {
                    self.control(&rest[..=end], out);
                    return Some(end + 1);
                }
                // Broken off by a control character, which is for the terminal to judge.
                out.extend(&rest[..end]);
                Some(end)
            }
            b']' | b'P' | b'X' | b'^' | b'_' => {
                self.in_string = true;
                out.extend(&rest[..2]);
                Some(2)
            }
            0x20..=0x2f => {
                let end = rest
                    .iter()
                    .skip(2)
                    .position(|b| !matches!(b, 0x20..=0x2f))?
                    + 2;
                out.extend(&rest[..=end]);
                if kind == b'#' && rest[end] == b'8' {
                    self.margins_are_gone(out);
                }
                Some(end + 1)
            }
            _ => {
                out.extend(&rest[..2]);
                match kind {
                    b'7' => self.saved(),
                    b'8' => self.restored(),
                    b'c' => {
                        self.alternate = false;
                        self.modes.clear();
                        self.slot = Slot::Free;
                        self.margins_are_gone(out);
                    }
                    _ => {}
                }
                Some(2)
            }
        }
    }

    /// A whole control sequence: `ESC [ parameters final`.
    fn control(&mut self, sequence: &[u8], out: &mut Vec<u8>) {
        let body = &sequence[2..sequence.len() - 1];
        let last = sequence[sequence.len() - 1];
        if body.first() == Some(&b'?') && (last == b'h' || last == b'l') {
            return self.modes(&body[1..], last == b'h', sequence, out);
        }
        if body == b"!" && last == b'p' {
            out.extend(sequence);
            return self.margins_are_gone(out);
        }
        let is_plain = body.iter().all(|b| b.is_ascii_digit() || *b == b';');
        let parameter = |n: usize| -> u16 {
            let text = body.split(|b| *b == b';').nth(n).unwrap_or_default();
            let digits = std::str::from_utf8(text).unwrap_or_default();
            // More digits than fit mean "as far as it goes".
            digits
                .parse()
                .unwrap_or(if digits.is_empty() { 0 } else { u16::MAX })
        };
        let limit = self.rows.filter(|_| !self.alternate && is_plain);
        match (last, limit) {
            (b's', _) if body.is_empty() => self.saved(),
            (b'u', _) if body.is_empty() => self.restored(),
            (b'm', _) if is_plain => self.styled = !matches!(body, b"" | b"0"),
            (b'J', Some(_)) => self.wiped = true,
            (b'r', Some(rows)) => {
                let (top, bottom) = (parameter(0).max(1), parameter(1));
                let bottom = if bottom == 0 { rows } else { bottom.min(rows) };
                return put(out, format_args!("\x1b[{top};{bottom}r"));
            }
            (b'H' | b'f', Some(rows)) if parameter(0) > rows => {
                let (column, last) = (parameter(1).max(1), char::from(last));
                return put(out, format_args!("\x1b[{rows};{column}{last}"));
            }
            (b'd', Some(rows)) if parameter(0) > rows => {
                return put(out, format_args!("\x1b[{rows}d"));
            }
            _ => {}
        }
        out.extend(sequence);
    }

    fn modes(&mut self, list: &[u8], on: bool, sequence: &[u8], out: &mut Vec<u8>) {
        let mut alternate = self.alternate;
        for mode in list.split(|b| *b == b';') {
            let Some(mode) = std::str::from_utf8(mode).ok().and_then(|m| m.parse().ok()) else {
                continue;
            };
            match mode {
                47 | 1047 | 1049 => alternate = on,
                1048 if on => self.saved(),
                1048 => self.restored(),
                _ => {
                    let default = LEFT_BEHIND.iter().find(|(m, _)| *m == mode);
                    match default {
                        Some((_, default)) if *default != on => drop(self.modes.insert(mode)),
                        _ => drop(self.modes.remove(&mode)),
                    }
                }
            }
        }
        if alternate && !self.alternate && self.rows.is_some() {
            // It gets the whole screen. (Setting margins moves the cursor, which the program is about to save.)
            out.extend(b"\x1b7\x1b[r\x1b8");
        }
        out.extend(sequence);
        if alternate && !self.alternate {
            self.was_at_line_start = self.at_line_start;
        }
        if !alternate && self.alternate {
            self.alternate = false;
            self.at_line_start = self.was_at_line_start;
            self.margins_are_gone(out);
        }
        self.alternate = alternate;
    }

    /// The terminal scrolls as a whole again: back to the program's part, and the table is to be drawn anew.
    fn margins_are_gone(&mut self, out: &mut Vec<u8>) {
        if let Some(rows) = self.rows {
            put(out, format_args!("\x1b7\x1b[1;{rows}r\x1b8"));
            self.wiped = true;
        }
    }

    fn saved(&mut self) {
        let pairs = match self.slot {
            Slot::Lost => return,
            Slot::Free => 1,
            Slot::Taken { pairs } => pairs,
            Slot::Restored { pairs, .. } => pairs + 1,
        };
        self.slot = Slot::Taken { pairs };
    }

    fn restored(&mut self) {
        self.slot = match self.slot {
            Slot::Free => Slot::Free,
            Slot::Taken { pairs } => Slot::Restored {
                pairs,
                at: Instant::now(),
            },
            Slot::Restored { .. } | Slot::Lost => Slot::Lost,
        };
    }

    /// What undoes the modes that the program has turned on by now.
    pub fn undoing(&self) -> String {
        let mut text = String::new();
        if self.in_string {
            text += "\x1b\\";
        }
        if self.alternate {
            text += "\x1b[?1049l";
        }
        for mode in &self.modes {
            let is_default_on = LEFT_BEHIND.iter().any(|(m, on)| m == mode && *on);
            let _ = write!(
                text,
                "\x1b[?{mode}{}",
                if is_default_on { 'h' } else { 'l' }
            );
        }
        if self.styled {
            text += "\x1b[m";
        }
        text
    }

    /// What undoes the modes that a program has left on; they are undone then.
    pub fn undo(&mut self) -> String {
        let text = self.undoing();
        if self.alternate {
            self.at_line_start = self.was_at_line_start;
        }
        self.modes.clear();
        (self.alternate, self.in_string, self.styled) = (false, false, false);
        text
    }
}

fn put(out: &mut Vec<u8>, text: std::fmt::Arguments) {
    use std::io::Write as _;
    let _ = out.write_fmt(text);
}

/// How many bytes at the end are the beginning of a character.
fn unfinished(text: &[u8]) -> usize {
    for back in 1..=text.len().min(3) {
        let byte = text[text.len() - back];
        let length = match byte {
            0xc2..=0xdf => 2,
            0xe0..=0xef => 3,
            0xf0..=0xf4 => 4,
            0x80..=0xbf => continue,
            _ => return 0,
        };
        return if length > back { back } else { 0 };
    }
    0
}

#[cfg(test)]
mod tests;
