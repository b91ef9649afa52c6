"""The check of `greenboost probe`: its figures against those of programs that know nothing of it, in turns."""

import ctypes
import json
import mmap
import os
import statistics
import time

from runner import GIB, Fail, status

# Figures and how far they may be from the others; None: only shown.
LIMITS = {
    "dma.h2d": 0.03, "dma.d2h": 0.03, "dma.both": 0.03, "zero.read16": 0.03, "zero.read4": 0.03, "zero.quantised": 0.03,
    "zero.write16": 0.03, "vram.read": None,
}


def disk_rates(r, folder, size):
    """GB/s of reading a file with O_DIRECT, 1 MiB at a time: by dd, and from Python into huge pages, as the probe does it (a
    disk may want many requests for what lies in small ones). Three times each."""
    file = folder / "other.bin"
    mib = size >> 20
    by_dd, by_python = [], []
    try:
        source = ["if=/dev/urandom", "iflag=fullblock", "bs=1M", f"count={mib}"]
        made = r.run("dd", ["dd", *source, f"of={file}", "oflag=direct", "conv=fsync"], 120)
        if not made.ok:
            raise Fail("dd cannot write with O_DIRECT there")
        for _ in range(3):
            run = r.run("dd", ["dd", f"if={file}", "of=/dev/null", "iflag=direct", "bs=1M", f"count={mib}"], 120, {"LC_ALL": "C"})
            if not run.ok:
                raise Fail("dd cannot read with O_DIRECT there")
            by_dd.append(size / float(run.text.split(" copied, ")[1].split(" s,")[0]) / 1e9)
            by_python.append(direct_rate(file, size))
    finally:
        file.unlink(missing_ok=True)
    return by_dd, by_python


def direct_rate(file, size):
    piece, huge = 1 << 20, 2 << 20
    # Shared memory, the default, would get small pages.
    with mmap.mmap(-1, 4 * huge, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as area:
        area.madvise(mmap.MADV_HUGEPAGE)
        for at in range(0, len(area), 4096):
            area[at] = 1
        start = ctypes.c_char.from_buffer(area)
        skip = -ctypes.addressof(start) % huge
        del start
        fd = os.open(file, os.O_RDONLY | os.O_DIRECT)
        try:
            with memoryview(area) as whole, whole[skip : skip + piece] as buffer:
                begin = time.perf_counter()
                for at in range(0, size, piece):
                    if os.preadv(fd, [buffer], at) != piece:
                        raise Fail("a short read")
                return size / (time.perf_counter() - begin) / 1e9
        finally:
            os.close(fd)


def figures_of(path):
    """The figures of a probe that are results, by name."""
    records = map(json.loads, path.read_text().splitlines())
    return {f["id"]: f for f in records if f["type"] == "figure" and not f["error"]}


class Side:
    """What one way of measuring gave: for each figure the median and the best of every process."""

    def __init__(self):
        self.seen = {name: [] for name in LIMITS}

    def add(self, name, median, best):
        self.seen[name].append((median, best))

    def median(self, name):
        return statistics.median(median for median, _ in self.seen[name])

    def best(self, name):
        return max(best for _, best in self.seen[name])

    def apart(self, name):
        """How far the processes' medians lie apart, in hundredths."""
        medians = [median for median, _ in self.seen[name]]
        return (max(medians) - min(medians)) / self.median(name) * 100


def link_rounds(r, program, rounds):
    """The link by the probe, in full and quick, and by link.cu in both kinds of memory; all of that so many times."""
    sides = {name: Side() for name in ("full", "quick", "link", "link --huge")}

    def link(*words):
        result = r.must(r.run(f"link {' '.join(words)}", [program, *words], 60))
        for name in LIMITS:
            sides["link --huge" if words else "link"].add(name, result[name]["median"], result[name]["best"])

    def probe(side, *words):
        records = r.scratch / f"link-{side}.ndjson"
        run = r.run(f"probe {side}", [r.greenboost, "probe", "--only", "link", *words, "--json", records], 90)
        if run.code != 0:
            raise Fail(f"probe --only link {' '.join(words)}: {status(run.code)}")
        figures = figures_of(records)
        for name in LIMITS:
            if name not in figures:
                raise Fail(f"probe: no {name}")
            sides[side].add(name, figures[name]["value"] / 1e9, figures[name]["high"] / 1e9)

    for _ in range(rounds):
        link()
        probe("full")
        link("--huge")
        probe("quick", "--quick")
    link()
    return sides


def link_table(sides):
    """Prints both with their ratios; gives the ratios, and what is too far apart."""
    probes, others = [sides["full"], sides["quick"]], [sides["link"], sides["link --huge"]]
    print(f"    {'GB/s':15}" + "".join(f"{name:>22}" for name in sides) + f"{'probe : link':>24}")
    print(f"    {'':15}" + "".join(f"{'median':>8}{'best':>7}{'apart':>7}" for _ in sides) + f"{'median':>10}{'best':>7}{'strict':>7}")
    figures, bad = {}, []
    for name, limit in LIMITS.items():
        median = lambda group: statistics.median(m for side in group for m, _ in side.seen[name])
        best = lambda group: max(side.best(name) for side in group)
        # Like with like; and, only shown, what the probe tells against the best that was ever seen.
        ratios = {"median": median(probes) / median(others), "best": best(probes) / best(others)}
        strict = median(probes) / best(others)
        each = "".join(f"{s.median(name):8.2f}{s.best(name):7.2f}{s.apart(name):5.1f} %" for s in sides.values())
        is_bad = limit is not None and any(abs(ratio - 1) > limit for ratio in ratios.values())
        print(f"    {name:15}{each}{ratios['median']:10.3f}{ratios['best']:7.3f}{strict:7.3f}{' !' if is_bad else ''}")
        figures[name] = f"{ratios['median']:.3f} (best {ratios['best']:.3f})"
        if is_bad:
            bad.append(name)
    return figures, bad


def probe(r):
    """What `greenboost probe` measures, against programs that know nothing of it."""
    r.card()
    program = r.program("link")
    figures, bad = link_table(link_rounds(r, program, 2 if r.quick else 5))
    folder, size = r.scratch / "probe", 2 * GIB
    folder.mkdir(exist_ok=True)
    records = r.scratch / "probe.ndjson"
    dd, direct = disk_rates(r, folder, size)
    run = r.run("probe", [r.greenboost, "probe", "--dir", folder, "--size", "2G", "--json", records], 150)
    quick = r.run("probe --quick", [r.greenboost, "probe", "--quick", "--dir", folder], 60)
    r.write(run.text)
    print("\n".join("    " + line for line in run.text.splitlines()))
    if run.code != 0 or quick.code != 0:
        raise Fail(f"probe: {status(run.code)}, --quick: {status(quick.code)}")
    disk = figures_of(records).get("read.1m.1", {"value": 0})["value"] / 1e9
    of = lambda rates: f"{min(rates):.2f} to {max(rates):.2f}"
    print(f"    disk, queue 1: {disk:.2f} GB/s; {of(direct)} (O_DIRECT from Python), {of(dd)} (dd)")
    figures["disk"] = f"{disk:.2f} of {of(direct)} GB/s (dd {of(dd)})"
    if not any(min(rates) * 0.95 <= disk <= max(rates) * 1.05 for rates in (direct, dd)):
        bad.append("disk")
    figures["seconds"] = f"{run.seconds:.0f} and {quick.seconds:.0f} quick"
    if run.seconds > 60:
        bad.append("time")
    if quick.seconds > 12:
        bad.append("time of --quick")
    left = list(folder.iterdir())
    if left:
        bad.append(f"files left behind: {left}")
    if bad:
        raise Fail(f"not as measured otherwise: {', '.join(bad)}: {figures}")
    return figures
