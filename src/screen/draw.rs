//! The table and what is said, put between the program's own output.

use std::os::fd::AsFd;

use super::{ENOUGH, Screen, terminal};
use crate::voice;

impl Screen {
    /// The program has all rows but the table's, or all on its alternate screen.
    pub(super) fn resize_program(&mut self) {
        let (rows, columns) = self.size;
        let rows = match self.filter.alternate {
            true => rows,
            false => rows - self.height,
        };
        if let Some(pty) = &self.pty {
            let _ = terminal::set_size(pty.as_fd(), self.terminal.as_fd(), (rows, columns));
        }
    }

    /// Gives the table this many rows. What was on the lowest ones is scrolled up, not overwritten.
    pub(super) fn set_height(&mut self, height: u16) {
        if height == self.height {
            return;
        }
        let (rows, _) = self.size;
        let (first, left) = (rows - height.max(self.height) + 1, rows - height);
        if !self.filter.alternate {
            if height > self.height {
                let more = height - self.height;
                self.put(&"\n".repeat(more.into()));
                self.put(&format!("\x1b[{more}A"));
            }
            self.put(&format!("\x1b7\x1b[1;{left}r\x1b[?6l\x1b[m"));
            for row in first..=rows {
                self.put(&format!("\x1b[{row};1H\x1b[2K"));
            }
            self.put("\x1b8");
        }
        self.height = height;
        self.filter.set_rows((height > 0).then_some(left));
        self.drawn.clear();
        self.resize_program();
    }

    fn may_draw(&self) -> bool {
        self.in_foreground
            && self.pty.is_some()
            && !self.filter.alternate
            && self.filter.is_between()
            && self.to_terminal.len() < ENOUGH / 4
    }

    pub(super) fn draw(&mut self) {
        if self.filter.never_saves() && self.may_draw() {
            // The one place where a cursor can be saved is the program's.
            self.wanted.clear();
            return self.set_height(0);
        }
        if !self.may_draw() || !self.filter.may_save() {
            return;
        }
        let height = match self.wanted.len() as u16 {
            height if height > self.room() => 0,
            height => height,
        };
        // A table that becomes smaller keeps its rows: each change of size makes the program draw anew.
        let height = match height {
            0 => 0,
            height => height.max(self.height.min(self.room())),
        };
        self.set_height(height);
        if height == 0 {
            return;
        }
        let mut lines = self.wanted.clone();
        while lines.len() < height.into() {
            lines.insert(0, String::new());
        }
        if lines == self.drawn {
            return;
        }
        let first = self.size.0 - height + 1;
        let mut text = String::from("\x1b[?2026h\x1b7\x1b[?6l\x1b[m\x1b(B");
        for (i, line) in lines.iter().enumerate() {
            if self.drawn.get(i) != Some(line) {
                text += &format!("\x1b[{};1H{line}\x1b[m\x1b[K", usize::from(first) + i);
            }
        }
        text += "\x1b8\x1b[?2026l";
        self.put(&text);
        self.drawn = lines;
    }

    /// Shows what was said, above the line that the program is writing.
    pub(super) fn speak(&mut self) {
        self.said += &voice::diverted();
        if self.said.is_empty() || self.filter.alternate || !self.filter.is_between() {
            return;
        }
        if self.filter.at_line_start || !self.in_foreground {
            let text = std::mem::take(&mut self.said);
            return self.put(&text.replace('\n', "\r\n"));
        }
        if !self.filter.may_save() {
            return;
        }
        let text = std::mem::take(&mut self.said);
        let columns = usize::from(self.size.1).max(1);
        let mut lines: Vec<String> = Vec::new();
        for line in text.lines() {
            let characters: Vec<char> = line.chars().collect();
            lines.extend(
                characters
                    .chunks(columns)
                    .map(|c| c.iter().collect::<String>()),
            );
        }
        let n = lines.len();
        self.put(&"\n".repeat(n));
        self.put(&format!("\x1b[{n}A\x1b7\r\x1b[{n}L\x1b[m"));
        self.put(&lines.join("\r\n"));
        self.put(&format!("\x1b8\x1b[{n}B"));
    }

    /// The terminal has another size.
    pub(super) fn resize(&mut self) {
        let size = self.terminal.size();
        if size == self.size {
            return;
        }
        let height = self.height;
        self.size = size;
        self.drawn.clear();
        if height == 0 || !self.in_foreground {
            return self.resize_program();
        }
        // Where the old table is now is the terminal's secret, but it is below the cursor. Room is made for the new one
        // first, so that there is a line below.
        self.height = height.min(self.room());
        let (n, left) = (self.height.max(1), size.0 - self.height);
        if !self.filter.alternate {
            self.put("\x1b7\x1b[r\x1b8");
            self.put(&"\n".repeat(n.into()));
            self.put(&format!("\x1b[{n}A\x1b7\x1b[1B\r\x1b[m\x1b[J"));
            self.put(&format!("\x1b[1;{left}r\x1b8"));
        }
        self.filter.set_rows((self.height > 0).then_some(left));
        self.resize_program();
        self.draw();
    }
}
