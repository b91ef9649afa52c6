#!/usr/bin/env python3
"""Records the picture of the README: a run of `greenboost run` on a terminal, as the terminal shows it.

    python3 tests/gpu/picture.py [--out assets/run.svg] [--rows 22] [--columns 92] [--greenboost PATH] -- COMMAND...

COMMAND is typed after the prompt; a `greenboost` at its beginning is the one of --greenboost. The picture is the screen
at the moment at which most was in host RAM and the link was busiest; --at SECONDS picks another. Python alone.
"""

import argparse
import fcntl
import html
import os
import pty
import re
import select
import shlex
import struct
import sys
import termios
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
COLORS = {None: "#c9d1d9", "dim": "#8b949e", "cyan": "#39c5cf", "green": "#7ee787", "prompt": "#ffffff"}


class Screen:
    """As much of a terminal as greenboost and plain programs use."""

    def __init__(self, rows, columns):
        self.rows, self.columns = rows, columns
        self.cells = [self.blank() for _ in range(rows)]
        self.row = self.column = self.top = 0
        self.bottom = rows - 1
        self.color, self.saved, self.rest = None, (0, 0, None), ""

    def blank(self):
        return [(" ", None)] * self.columns

    def feed(self, data):
        text = self.rest + data.decode("utf-8", "replace")
        self.rest = ""
        at = 0
        while at < len(text):
            c = text[at]
            if c == "\x1b":
                found = re.compile(r"\x1b(?:\[([0-?]*)[ -/]*([@-~])|\][^\x07\x1b]*(?:\x07|\x1b\\)|[(#][A-Z0-9]|([0-Z\\^-~]))").match(text, at)
                if not found:
                    if len(text) - at > 200:
                        at += 1
                        continue
                    self.rest = text[at:]
                    return
                self.escape(found)
                at = found.end()
                continue
            at += 1
            if c == "\n":
                self.feed_line()
            elif c == "\r":
                self.column = 0
            elif c == "\b":
                self.column = max(0, self.column - 1)
            elif c == "\t":
                self.column = min(self.columns - 1, (self.column // 8 + 1) * 8)
            elif c >= " ":
                if self.column == self.columns:
                    self.column = 0
                    self.feed_line()
                self.cells[self.row][self.column] = (c, self.color)
                self.column += 1

    def feed_line(self):
        if self.row == self.bottom:
            del self.cells[self.top]
            self.cells.insert(self.bottom, self.blank())
        else:
            self.row = min(self.row + 1, self.rows - 1)

    def escape(self, found):
        body, final, short = found.groups()
        if short == "7":
            self.saved = (self.row, self.column, self.color)
        elif short == "8":
            self.row, self.column, self.color = self.saved
        if final is None or body.startswith("?"):
            return
        numbers = [int(n) if n.isdigit() else 0 for n in body.split(";")]
        n = numbers[0] or 1
        if final in "Hf":
            self.row = min(n, self.rows) - 1
            self.column = min((numbers + [1])[1] or 1, self.columns) - 1
        elif final == "A":
            self.row = max(self.top if self.row >= self.top else 0, self.row - n)
        elif final == "B":
            self.row = min(self.bottom if self.row <= self.bottom else self.rows - 1, self.row + n)
        elif final == "r":
            self.top, self.bottom = n - 1, ((numbers + [0])[1] or self.rows) - 1
            self.row = self.column = 0
        elif final == "K":
            first, last = {0: (self.column, self.columns), 1: (0, self.column + 1), 2: (0, self.columns)}[numbers[0]]
            self.cells[self.row][first:last] = [(" ", None)] * (min(last, self.columns) - first)
        elif final == "J":
            first = self.row + 1 if numbers[0] == 0 else 0
            for row in range(first, self.rows):
                self.cells[row] = self.blank()
            if numbers[0] == 0:
                self.cells[self.row][self.column:] = [(" ", None)] * (self.columns - self.column)
        elif final == "L":
            for _ in range(n):
                self.cells.insert(self.row, self.blank())
                del self.cells[self.bottom + 1]
        elif final == "m":
            for number in numbers:
                self.color = {2: "dim", 32: "green", 36: "cyan"}.get(number)

    def lines(self):
        return ["".join(c for c, _ in row).rstrip() for row in self.cells]

    def copy(self):
        return [list(row) for row in self.cells]


def rank(lines):
    """How much a screen has to show: bytes in host RAM, then traffic. None without a table."""
    row = next((l for l in lines if re.match(r"GPU \d+ RAM ", l)), None)
    if not row:
        return None
    numbers = [float(n) for n in re.findall(r"\d+\.\d+", row)]
    # Used, limit, then traffic if it is known.
    return (round(numbers[0]), max(numbers[2:], default=0.0))


def svg(cells, label):
    step, left, size = 8.43, 16, 14
    rows = [row for row in cells]
    while rows and not "".join(c for c, _ in rows[0]).strip():
        rows.pop(0)
    while rows and not "".join(c for c, _ in rows[-1]).strip():
        rows.pop()
    columns = max((len("".join(c for c, _ in row).rstrip()) for row in rows), default=1)
    width, height = round(2 * left + columns * step), 30 + 19 * len(rows)
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" role="img" aria-label="{html.escape(label, True)}">',
        f'<rect width="{width}" height="{height}" rx="8" fill="#0d1117"/>',
        f'<g font-family="ui-monospace,SFMono-Regular,Menlo,Consolas,monospace" font-size="{size}" xml:space="preserve">',
    ]
    for n, row in enumerate(rows):
        text = "".join(c for c, _ in row).rstrip()
        y, at = 30 + 19 * n, 0
        while at < len(text):
            color, start = row[at][1], at
            while at < len(text) and row[at][1] == color:
                at += 1
            piece = text[start:at]
            if not piece.strip():
                continue
            fill = COLORS["green"] if text.startswith("greenboost: ") else COLORS["prompt"] if text.startswith("$ ") else COLORS[color]
            length = f' textLength="{len(piece) * step:.1f}"'
            out.append(f'<text x="{left + start * step:.1f}" y="{y}"{length} fill="{fill}">{html.escape(piece, False)}</text>')
    return "\n".join([*out, "</g>", "</svg>", ""])


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", default=str(ROOT / "assets/run.svg"))
    parser.add_argument("--greenboost", default=str(ROOT / "target/release/greenboost"))
    parser.add_argument("--rows", type=int, default=22)
    parser.add_argument("--columns", type=int, default=92)
    parser.add_argument("--at", type=float, help="seconds after the start")
    parser.add_argument("--log", help="also write all frames as text to this file")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    args = parser.parse_args()
    command = args.command[1:] if args.command[:1] == ["--"] else args.command
    if not command:
        parser.error("no command")
    argv = [os.path.realpath(args.greenboost) if command[0] == "greenboost" else command[0], *command[1:]]
    screen = Screen(args.rows, args.columns)
    screen.feed(f"$ {shlex.join(command)}\r\n".encode())
    pid, master = pty.fork()
    if pid == 0:
        # Of the shell that it would be typed into.
        time.sleep(0.2)
        os.environ.update(TERM="xterm-256color", LC_ALL="C.UTF-8")
        os.environ.pop("NO_COLOR", None)
        os.execvp(argv[0], argv)
    fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", args.rows, args.columns, 0, 0))
    started, best, chosen, frames = time.monotonic(), None, None, []
    while True:
        ready, _, _ = select.select([master], [], [], 0.2)
        if ready:
            try:
                data = os.read(master, 65536)
            except OSError:
                break
            if not data:
                break
            screen.feed(data)
        now = time.monotonic() - started
        lines = screen.lines()
        if not frames or frames[-1][1] != lines:
            frames.append((now, lines))
        this = rank(lines)
        if args.at is not None:
            if chosen is None and now >= args.at:
                chosen = screen.copy()
        elif this and (best is None or this >= best):
            best, chosen = this, screen.copy()
    _, status = os.waitpid(pid, 0)
    if args.log:
        text = "".join(f"--- {t:.2f} s\n" + "\n".join(lines).rstrip() + "\n" for t, lines in frames)
        Path(args.log).write_text(text)
    print("\n".join(screen.lines()).strip())
    if status or chosen is None:
        print(f"picture: status {status}, {'no table was shown' if chosen is None else 'not written'}", file=sys.stderr)
        return 1
    picture = svg(chosen, "A recorded run: " + " ".join(command))
    Path(args.out).write_text(picture)
    print(f"{args.out}: {len(frames)} frames, the one with {best or args.at} taken")
    return 0


if __name__ == "__main__":
    sys.exit(main())
