#!/usr/bin/env python3
"""Holds the disk figures of `greenboost probe` against fio: the same patterns, on the same file system, in turns.

    tests/fio.py [--greenboost PATH] [--dir DIR] [--rounds N] [--size BYTES] [--within PERCENT] [--out FILE]

Each has a file of its own. After each pattern the probe is stopped while fio does the same pattern, in every second
round the next one: so whatever else the disk does meets both alike. The ratio is the median of the rounds' ratios,
each of two neighbours in time; and there is the ratio of the best windows of all rounds: other programs' noise moves
medians, but hardly what a disk gives at best, so a pattern differs when both do. Both use O_DIRECT, io_uring, random
bytes that were there before the clock ran, places that were written before, and buffers in huge pages (in small ones
a request of 1 MiB is more pieces than some disks take at once: seen at half the rate). Exit status: 0, 1 when a
pattern differs by more than that, 77 without fio.
"""

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

# The probe's patterns in its order: direction for fio, bytes, requests at once.
SEQUENTIAL = [("1m", "1M", 1), ("1m", "1M", 8), ("1m", "1M", 32), ("128k", "128k", 1), ("128k", "128k", 8), ("128k", "128k", 32)]
PATTERNS = {
    **{f"read.{name}.{depth}": ("read", size, depth) for name, size, depth in SEQUENTIAL},
    "read.random": ("randread", "2M", 8),
    **{f"write.{name}.{depth}": ("write", size, depth) for name, size, depth in SEQUENTIAL},
    "write.random": ("randwrite", "2M", 8),
}
SECONDS, WINDOWS = 1.3, 5


class Fio:
    """fio with a file of its own."""

    def __init__(self, folder, size):
        self.folder, self.file, self.size = folder, folder / "fio.bin", size

    def job(self, *more):
        # Huge pages wherever glibc gets memory.
        env = {**os.environ, "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
        words = ["fio", "--name=x", f"--filename={self.file}", f"--size={self.size}", "--direct=1", "--ioengine=io_uring",
                 "--thread", "--fallocate=posix", "--norandommap", "--iomem_align=2M", "--scramble_buffers=0", "--disable_lat=1", "--disable_clat=1",
                 "--disable_slat=1", "--output-format=json", *more]
        run = subprocess.run(words, env=env, cwd=self.folder, capture_output=True, text=True)
        if run.returncode:
            sys.exit(f"fio: {run.stderr.strip() or run.stdout.strip()}")
        return json.loads(run.stdout[run.stdout.index("{"):])["jobs"][0]

    def first(self):
        """GB/s of the first write, as above."""
        rate = self.job("--rw=write", "--bs=1M", "--iodepth=8")["write"]["bw_bytes"] / 1e9
        return rate, rate

    def rate(self, name):
        """GB/s: of windows as long as the probe's, the median and the best."""
        way, length, depth = PATTERNS[name]
        window = int(SECONDS * 1000 / WINDOWS)
        self.job(f"--rw={way}", f"--bs={length}", f"--iodepth={depth}", f"--runtime={SECONDS + 0.2}", "--ramp_time=60ms",
                 "--time_based", f"--write_bw_log={self.folder / name}", f"--log_avg_msec={window}", "--per_job_logs=0")
        # An old one would be appended to.
        log = self.folder / f"{name}_bw.log"
        lines = log.read_text().splitlines()
        log.unlink()
        rates = [int(line.split(",")[1]) * 1024 / 1e9 for line in lines[:WINDOWS]]
        return statistics.median(rates), max(rates)


def one_round(greenboost, folder, size, is_ahead):
    """GB/s by pattern, of the probe and of fio."""
    fio = Fio(folder, size)
    ours, theirs = {}, {"write.first": fio.first()}
    names = list(PATTERNS)
    # What fio does when the probe has ended a pattern.
    turns = dict(zip(["write.first", *names], names)) if is_ahead else {name: name for name in names}
    ear, mouth = os.pipe()
    words = [greenboost, "probe", "--only", "nvme", "--io", "uring", "--dir", folder, "--size", str(size), "--json", f"fd:{mouth}"]
    child = subprocess.Popen(words, pass_fds=[mouth], stdout=subprocess.DEVNULL)
    os.close(mouth)
    with open(ear, encoding="utf-8") as records:
        for record in map(json.loads, records):
            if record["type"] != "figure":
                continue
            ours[record["id"]] = record["value"] / 1e9, record["high"] / 1e9
            if record["id"] in turns:
                # Its next pattern has begun by then, and does not count its first 60 ms.
                child.send_signal(signal.SIGSTOP)
                try:
                    theirs[turns[record["id"]]] = fio.rate(turns[record["id"]])
                finally:
                    child.send_signal(signal.SIGCONT)
    if child.wait() != 0:
        sys.exit(f"probe: exit status {child.returncode}")
    fio.file.unlink()
    return {"probe": ours, "fio": theirs}


def main():
    root = Path(__file__).resolve().parent.parent
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--greenboost", default=root / "target/release/greenboost", type=Path)
    parser.add_argument("--dir", default=root / "target", type=Path, help="where both write [default: target]")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", type=int, default=2 << 30, help="bytes of each file")
    parser.add_argument("--within", type=float, default=5, help="how many per cent the medians may differ [default: 5]")
    parser.add_argument("--out", type=Path, help="every figure of every round, as JSON")
    args = parser.parse_args()
    if not shutil.which("fio"):
        print("SKIP: there is no fio (Debian: apt-get install fio)")
        return 77
    rounds = []
    with tempfile.TemporaryDirectory(dir=args.dir, prefix="greenboost-fio-") as folder:
        folder = Path(folder)
        for n in range(args.rounds):
            rounds.append(one_round(args.greenboost.resolve(), folder, args.size, n % 2 == 1))
            print(f"round {n + 1} of {args.rounds}", file=sys.stderr, flush=True)
    if args.out:
        args.out.write_text(json.dumps(rounds, indent=1) + "\n")
    print(f"{'GB/s':14} {'probe':>6} {'fio':>6}  ratio    best: {'probe':>6} {'fio':>6}  ratio   ratios of the rounds")
    bad = []
    for name in ["write.first", *PATTERNS]:
        ours, theirs = ([r[who][name] for r in rounds] for who in ("probe", "fio"))
        medians = [statistics.median(m for m, _ in side) for side in (ours, theirs)]
        bests = [max(b for _, b in side) for side in (ours, theirs)]
        ratios = [statistics.median(a / b for (a, _), (b, _) in zip(ours, theirs)), bests[0] / bests[1]]
        each = " ".join(f"{a / b:.2f}" for (a, _), (b, _) in zip(ours, theirs))
        # A file that is written for the first time depends on where it happens to lie.
        is_bad = name != "write.first" and all(abs(ratio - 1) > args.within / 100 for ratio in ratios)
        bad += [name] * is_bad
        print(f"{name:14} {medians[0]:6.2f} {medians[1]:6.2f}  {ratios[0]:5.3f} {'!' if is_bad else ' '}        "
              f"{bests[0]:6.2f} {bests[1]:6.2f}  {ratios[1]:5.3f}   {each}")
    if bad:
        print(f"FAIL: more than {args.within:g} % apart: {', '.join(bad)}")
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
