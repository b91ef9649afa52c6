#!/usr/bin/env python3
"""The checks on a real GPU: unmodified programs, run plain and under `greenboost run`, and compared.

    bash tests/gpu/check [--greenboost PATH] [--out DIR] [--quick] [--within SECONDS] [--jobs N] [NAME...]

Every program is a process of its own with a time limit. All output goes to DIR/check.log, the figures to DIR/check.json;
the end of what a failing program said is shown as well, and one table comes last. NAME selects checks (`--list` shows
them, with their groups); a group's name stands for all of it.

Groups:
    sample      samples/*.cu, one check a section: every way in which CUDA programs get memory. The program runs twice
                plain, all sections in one process; then each section alone under a VRAM limit that forces spilling. The
                digests must be equal, and the summary must show the bytes that spilled.
    python      PyTorch with each of its allocators, sharing and compiling; JAX, CuPy and Numba with each of their pools.
                Twice plain, once under a limit; the digests of all sections must be equal.
    memcheck    compute-sanitizer over the self-test's program; `memcheck:SECTION` for a sample.
    stress      the random program stress.cu, `stress:SEED`, for --stress SECONDS, and the same without greenboost beside it:
                no mismatch, no leak. `moved:SEED` moves memory at every synchronisation.
    placement   which bytes are in VRAM, `--placement auto` against `first-fit`: programs that read some of their memory more
                often than the rest, launches timed, limits changed while a program runs. One at a time.
    llama       llama.cpp with a synthetic 7B model, half of it outside VRAM; `--llama DIR` says where its programs are
                (llama_build.sh makes them). One at a time.
    whole       large programs, and what greenboost costs. These run alone; all others run --jobs at a time.
    facts       `facts` and `facts:SECTION` ask the driver itself and are run only when named, as `memcheck:SECTION`,
                `stress:SEED` and `moved:SEED` are.

`--plain` asks whether the programs themselves are right on this machine: greenboost is not used. What two plain runs of
`sample` and `python` agreed on is written to DIR/plain.json; with `--known plain.json` a later round on a machine of the
same GPU and driver runs those programs, if they are still the same, under greenboost only.

`--build-only` compiles all programs into --bin DIR and ends: what is found there later is not compiled again, also on
another machine. LIBRARY_PATH must then lead to a libcuda.so; where there is no stub the driver's own library is linked.

Exit status: 0 when nothing failed, 1 when something did, 2 for a wrong argument. SKIP is no failure.
"""

import argparse
import ctypes
import datetime
import json
import mmap
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from check_llama import LLAMA
from check_placement import PLACEMENT
from check_probe import probe
from check_python import PYTHONS
from check_samples import SAMPLES, memcheck, sample, two_processes
from check_stress import stress, stress_moved
from check_view import live_accuracy, records_full
from runner import (
    GIB, HERE, PROGRAMS, PYTHON, Fail, Runner, Skip, gib, library, meminfo, size, spread, status,
)
from talking import Talking

ROOT = HERE.parent.parent
BAR_DECODE, BAR_DECODE_SPILLED, BAR_ALLOC, BAR_ZERO_COPY = 1.01, 1.03, 2.0, 0.85

# The checks. Each returns its figures, or raises Skip or Fail.


def selftest(r):
    run = r.run("selftest", [r.greenboost, "selftest"], 150)
    last = run.text.strip().splitlines()[-1] if run.text.strip() else ""
    if not run.ok:
        raise Fail(f"{status(run.code)}: {last}")
    if not last.startswith("PASSED on") or "SIMULATED" in last:
        raise Fail(f"the last line is: {last}")
    return {"said": last, "seconds": round(run.seconds, 1)}


def bigfill_program(r, cudart):
    return r.program(f"bigfill-{cudart}")


def fill_figures(run, limit):
    f = run.result
    return {
        "GiB": f["gib"], "limit": limit, "outside GiB": round(run.spilled() / GIB, 1), "alloc s": f["alloc_s"],
        "fill GB/s": f["fill_gbs"], "verify GB/s": f["verify_gbs"], "zero-copy read GB/s": f["outside_read_gbs"],
        "write": f["outside_write_gbs"], "DMA": f["dma_h2d"],
    }


def bigfill_card(r):
    """More than the card: all of it on an 80 GB card, a limit on a larger one."""
    _, free = r.card()
    room = r.host_room()
    program = bigfill_program(r, "static")
    total = 20 * GIB if r.quick else 100 * GIB
    options, limit = [], "none"
    if r.quick or free > total - 8 * GIB:
        wish = max(4 * GIB if r.quick else 70 * GIB, -(-(total + GIB - room) // GIB) * GIB)
        vram = min(wish, (free - 4 * GIB) // GIB * GIB)
        options, limit = ["--vram-limit", f"{vram // GIB}G"], f"{vram // GIB}G"
    else:
        vram = int(free * 0.97)
    note = ""
    if total - vram + GIB > room:
        total = vram + room - GIB
        note = f"host RAM allows {gib(total)} only"
    if total - vram < GIB:
        raise Skip(f"host RAM ({gib(room)} usable) does not allow more than the VRAM limit")
    argv = [program, "--total", f"{total / GIB:.2f}"]
    run = r.boosted("bigfill of more than the card", argv, options, 200)
    r.must(run)
    r.must_spill(run)
    return {**fill_figures(run, limit), **({"note": note} if note else {})}


def bigfill_limit(r, cudart):
    r.card()
    limit, total = (2, 8) if r.quick else (10, 60)
    room = r.host_room() / GIB
    total = min(total, int(limit + room - 1))
    if total < limit + 2:
        raise Skip(f"host RAM allows {room:.1f} GiB only")
    run = r.boosted(f"bigfill {cudart} cudart", [bigfill_program(r, cudart), "--total", str(total), "--seed", "7"],
                    ["--vram-limit", f"{limit}G"], 150)
    r.must(run)
    r.must_spill(run)
    return fill_figures(run, f"{limit}G")


def bigfill_pinned(r):
    """The backend for drivers that map no host memory into ranges: registered memory, whole allocations."""
    r.card()
    limit, total = (2, 6) if r.quick else (4, 20)
    if total - limit + 1 > r.host_room() / GIB:
        raise Skip("not enough host RAM")
    run = r.boosted("bigfill pinned backend", [bigfill_program(r, "static"), "--total", str(total), "--seed", "9"],
                    ["--vram-limit", f"{limit}G"], 100, {"GREENBOOST_BACKEND": "pinned"})
    r.must(run)
    r.must_spill(run)
    return fill_figures(run, f"{limit}G")


def stream(r):
    """A plain streaming kernel over spilled memory, against the DMA rate of the same run."""
    r.card()
    run = r.boosted("stream", [bigfill_program(r, "static"), "--stream", "6"], ["--vram-limit", "3G"], 90)
    f = r.must(run)
    r.must_spill(run)
    ratio = f["read"] / f["dma_h2d"]
    figures = {"read GB/s": f["read"], "write GB/s": f["write"], "DMA to device": f["dma_h2d"], "to host": f["dma_d2h"],
               "read/DMA": round(ratio, 3), "VRAM GB/s": f["vram"]}
    if ratio < BAR_ZERO_COPY:
        raise Fail(f"spilled memory is read at {ratio:.3f} of the DMA rate: {figures}")
    return figures


def transformer(r):
    """Layers and VRAM limit (bytes) of the large transformer: 26 GB and half of that, or what fits here."""
    r.has("torch")
    _, free = r.card()
    per_layer, rest = 620 << 20, 1 * GIB
    layers = 12 if r.quick else 39
    layers = min(layers, int((free * 0.9 - 2 * GIB - rest) // per_layer))
    weights = layers * per_layer + (320 << 20)
    limit = 13 * GIB if layers == 39 else weights // 2 + GIB // 2
    if weights - limit > r.host_room():
        layers = int((2 * r.host_room() - rest) // per_layer)
        limit = (layers * per_layer + rest) // 2
    if layers < 2:
        raise Skip("too little VRAM or host RAM for a model")
    return layers, limit


def compare(plain, other, keys):
    return [k for k in keys if plain.get(k) != other.get(k)]


def twice_plain(r, name, argv, keys, limit, env=None):
    """Two runs without greenboost, which must agree."""
    first, second = (r.must(r.run(f"{name}, plain, run {i}", argv, limit, env)) for i in (1, 2))
    different = compare(first, second, keys)
    if different:
        raise Fail(f"two runs WITHOUT greenboost already differ in {', '.join(different)}: nothing can be concluded")
    return first


def same(name, plain, boosted, keys):
    different = compare(plain, boosted, keys)
    if different:
        detail = "; ".join(f"{k}: {str(plain.get(k))[:80]} / {str(boosted.get(k))[:80]}" for k in different)
        raise Fail(f"{name}: differs from the plain run in {detail}")


def torch_generate(r):
    layers, limit = transformer(r)
    argv = [PYTHON, HERE / "torch_generate.py", "--layers", layers]
    keys = ("tokens", "logits", "weights")
    plain = twice_plain(r, "torch_generate", argv, keys, 120)
    run = r.boosted("torch_generate", argv, ["--vram-limit", size(limit)], 150)
    f = r.must(run)
    same("torch_generate", plain, f, keys)
    r.must_spill(run)
    return {"weights GB": f["gb"], "limit GiB": round(limit / GIB, 1), "outside GiB": round(run.spilled() / GIB, 1),
            "tokens": len(f["tokens"]), "logits": f["logits"][:12], "bit-equal": True,
            "ms/token": f["ms_per_token"], "plain": plain["ms_per_token"]}


def torch_adamw(r):
    r.has("torch")
    _, free = r.card()
    layers, limit = (4, 3 * GIB) if r.quick else (10, 8 * GIB)
    if free < (10 if r.quick else 24) * GIB or r.host_room() < (6 if r.quick else 14) * GIB:
        layers, limit = 2, 2 * GIB
    argv = [PYTHON, HERE / "torch_adamw.py", "--layers", layers]
    keys = ("fused", "foreach")
    plain = twice_plain(r, "torch_adamw", argv, keys, 120)
    run = r.boosted("torch_adamw", argv, ["--vram-limit", size(limit)], 180)
    f = r.must(run)
    same("torch_adamw", plain, f, keys)
    r.must_spill(run)
    return {"G parameters": round(f["parameters"] / 1e9, 2), "peak GiB": f["peak_gib"], "limit GiB": round(limit / GIB, 1),
            "outside GiB": round(run.spilled() / GIB, 1), "parameters": f["fused"]["parameters"][:12], "bit-equal": True,
            "fused s": f["fused_s"], "foreach s": f["foreach_s"], "plain s": f"{plain['fused_s']} {plain['foreach_s']}"}


def cupy_small(r):
    r.has("cupy")
    r.card()
    argv = [PYTHON, HERE / "cupy_small.py", "--log2", 25 if r.quick else 27]
    plain = twice_plain(r, "cupy_small", argv, ("digest",), 90)
    run = r.boosted("cupy_small", argv, ["--vram-limit", "512M" if r.quick else "2G"], 120)
    f = r.must(run)
    same("cupy_small", plain, f, ("digest",))
    r.must_spill(run)
    return {"pool GiB": f["pool_gib"], "outside GiB": round(run.spilled() / GIB, 1), "digest": f["digest"][:12],
            "bit-equal": True, "s": f["seconds"], "plain s": plain["seconds"]}


def jax_small(r):
    r.has("jax")
    r.card()
    log2, limit = (26, "512M") if r.quick else (28, "2G")
    argv = [PYTHON, HERE / "jax_small.py", "--log2", log2]
    grow = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    plain = twice_plain(r, "jax_small", argv, ("digest",), 120, grow)
    run = r.boosted("jax_small, no preallocation", argv, ["--vram-limit", limit], 150, grow)
    f = r.must(run)
    same("jax_small, no preallocation", plain, f, ("digest",))
    r.must_spill(run)
    figures = {"outside GiB": round(run.spilled() / GIB, 1), "digest": f["digest"][:12], "bit-equal": True,
               "s": f["seconds"], "plain s": plain["seconds"]}
    # By default JAX takes 75 % of what it is told: in `physical` mode that fits into the limit.
    ahead = r.boosted("jax_small, preallocating", argv, ["--report", "physical", "--vram-limit", "6G" if r.quick else "12G"],
                      150, {"XLA_PYTHON_CLIENT_PREALLOCATE": "true"})
    g = r.must(ahead)
    same("jax_small, preallocating", plain, g, ("digest",))
    peak = ahead.device("vram_peak")
    return {**figures, "preallocated: VRAM peak GiB": round(peak / GIB, 1) if peak else None,
            "pool GiB": g["pool_gib"], "outside": gib(ahead.spilled())}


def one_story(r):
    r.has("torch")
    r.card()
    program = [PYTHON, HERE / "one_story.py"]
    figures = {}
    for name, options, more in [
        ("extended", ["--report", "extended", "--vram-limit", "8G", "--ram-limit", "16G"], []),
        ("physical", ["--report", "physical", "--vram-limit", "8G"], []),
        ("no limits", [], ["--early-may-differ"]),
    ][: 2 if r.quick else 3]:
        f = r.must(r.boosted(f"one_story, {name}", [*program, *more], options, 90))
        story = f["story"][0]
        figures[name] = f"total {story['total'] / GIB:.2f} free {story['free'] / GIB:.2f} GiB"
        if f["early_total"] != story["total"]:
            figures[name] += f" (before CUDA {f['early_total'] / GIB:.2f})"
        expected = {"extended": 24 * GIB, "physical": 8 * GIB}.get(name)
        if expected and story["total"] != expected:
            raise Fail(f"{name}: the total is {story['total']}, the limits add up to {expected}")
    return figures


def overhead_decode(r, bar=BAR_DECODE, options=(), more=()):
    """A launch-bound decode, asked in turn of a plain process and of one under greenboost; everything fits.

    Several generations of process pairs, because a process's luck (addresses, clocks) lasts as long as the process.
    """
    r.has("torch")
    r.card()
    argv = [PYTHON, HERE / "torch_decode.py", "serve", "--tokens", "200", *more]
    generations, rounds = (1, 3) if r.quick else (3, 5)
    plain, boosted = [], []
    for g in range(generations):
        servers = []
        try:
            servers.append(Talking(r, f"decode plain {g}", argv))
            servers.append(Talking(r, f"decode boosted {g}", [r.greenboost, "run", *options, "--", *argv]))
            first = [s.line("READY", 120)[0] for s in servers]
            for s in servers:
                s.ask("TIME", "go")  # warms
            for i in range(rounds):
                order = [(servers[0], plain), (servers[1], boosted)]
                for server, times in order if i % 2 == 0 else order[::-1]:
                    seconds, tokens = server.ask("TIME", "go")
                    times.append(float(seconds))
                    first.append(tokens)
            if len(set(first)) > 1:
                raise Fail("the tokens differ")
        finally:
            for s in servers:
                s.close()
    ratios = [b / p for p, b in zip(plain, boosted)]
    ratio = statistics.median(ratios)
    figures = {"ratio": round(ratio, 4), "of medians": round(statistics.median(boosted) / statistics.median(plain), 4),
               "pairs": len(ratios), "spread": spread(ratios), "plain s": round(statistics.median(plain), 4),
               "plain spread": f"{min(plain):.3f} to {max(plain):.3f}"}
    if ratio > bar:
        raise Fail(f"decode takes {ratio:.4f} times as long (bar {bar}): {figures}")
    return figures


def overhead_decode_spilled(r):
    """The same while a ballast lies outside VRAM, so that greenboost looks at what each launch names."""
    return overhead_decode(r, BAR_DECODE_SPILLED, ["--vram-limit", "1G"], ["--ballast", "2"])


def overhead_alloc(r):
    r.card()
    program = r.program("alloctime")
    plain, boosted = [], []
    for i in range(3 if r.quick else 7):
        for which in ((0, 1) if i % 2 == 0 else (1, 0)):
            if which:
                boosted.append(r.must(r.boosted(f"alloctime boosted {i}", [program], (), 60)))
            else:
                plain.append(r.must(r.run(f"alloctime plain {i}", [program], 60)))

    def us(runs, piece, key):
        return statistics.median(f[piece][key] for f in runs)

    figures, worst = {}, 0
    for piece in ("64M", "1M", "20M", "1G"):
        parts = []
        for key in ("fresh", "cycle", "release"):
            p, b = us(plain, piece, key), us(boosted, piece, key)
            ratio = b / p if p else 0
            if piece == "64M" and key in ("fresh", "cycle"):
                worst = max(worst, ratio)
            parts.append(f"{key} {b:.0f}/{p:.0f} us = {ratio:.2f}")
        figures[piece] = ", ".join(parts)
    starts = [statistics.median(f["start"] for f in runs) / 1e3 for runs in (boosted, plain)]
    figures["CUDA start ms"] = f"{starts[0]:.0f}/{starts[1]:.0f}"
    if worst > BAR_ALLOC:
        raise Fail(f"a 64 MiB allocation takes {worst:.2f} times as long (bar {BAR_ALLOC}): {figures}")
    return figures


def overhead_start(r):
    """Processes that never use CUDA. No bar: milliseconds with and without."""
    loop = "i=0; while [ $i -lt 100 ]; do /bin/true; i=$((i+1)); done"

    def ms(argv, boosted, reps):
        times = []
        for _ in range(reps):
            call = [r.greenboost, "run", "--stats", "off", "--", *argv] if boosted else argv
            t = time.perf_counter()
            done = subprocess.run([str(a) for a in call], env=r.env, stdin=subprocess.DEVNULL, capture_output=True, timeout=60)
            times.append((time.perf_counter() - t) * 1e3)
            if done.returncode:
                raise Fail(f"{' '.join(map(str, call))}: {status(done.returncode)}: {done.stderr.decode(errors='replace')[-300:]}")
        return statistics.median(times)

    figures = {}
    for name, argv, reps in (("/bin/true", ["/bin/true"], 20), ("python -c pass", [PYTHON, "-c", "pass"], 10)):
        plain, boosted = ms(argv, False, reps), ms(argv, True, reps)
        figures[name + " ms"] = f"{boosted:.2f}/{plain:.2f}"
    plain, boosted = ms(["/bin/sh", "-c", loop], False, 5), ms(["/bin/sh", "-c", loop], True, 5)
    launcher = ms(["/bin/sh", "-c", ":"], True, 10) - ms(["/bin/sh", "-c", ":"], False, 10)
    figures["a child in the job us"] = f"{(boosted - launcher) * 10:.0f}/{plain * 10:.0f}"
    return figures


def zero_copy_decode(r):
    layers, limit = transformer(r)
    argv = [PYTHON, HERE / "torch_decode.py", "zero-copy", "--layers", layers, "--tokens", 12 if r.quick else 20]
    run = r.boosted("zero_copy_decode", argv, ["--vram-limit", size(limit)], 150)
    f = r.must(run)
    r.must_spill(run)
    spilled = run.spilled()
    dma = max(f["dma_before"], f["dma_after"])
    rate = spilled / f["step_s"] / 1e9
    figures = {"ratio": round(rate / dma, 3), "spilled GB": round(spilled / 1e9, 2), "of GB": round(f["weight_bytes"] / 1e9, 2),
               "step ms": round(f["step_s"] * 1e3, 1), "from": round(f["step_min"] * 1e3, 1), "to": round(f["step_max"] * 1e3, 1),
               "GB/s": round(rate, 1), "DMA": dma, "read by reduction": f["slow_gbs"], "slow GB": round(f["slow_bytes"] / 1e9, 2)}
    if spilled > f["weight_bytes"]:
        raise Fail(f"more spilled than there are weights: {figures}")
    if rate / dma < BAR_ZERO_COPY:
        raise Fail(f"a step moves spilled bytes at {rate / dma:.3f} of the DMA rate (bar {BAR_ZERO_COPY}): {figures}")
    return figures


# Facts about the driver

SECTIONS = ["span", "attrs", "range", "pitch", "capture", "whilecapturing", "context", "contextown", "errors", "nulls",
            "cost", "sync", "synccapture", "atomics", "nvml", "seam"]


def facts(r, section=None):
    r.card()
    if section is not None and section not in [*SECTIONS, "symbols"]:
        raise Skip(f"no section {section}: {', '.join([*SECTIONS, 'symbols'])}")
    figures = {}
    if section in (None, "symbols"):
        for lib in ("libcuda", "libnvidia-ml"):
            path = library(lib + ".so.1")
            run = r.run(f"nm {lib}", ["nm", "-D", "--defined-only", path], 60) if path and shutil.which("nm") else None
            names = sorted({l.split()[-1] for l in run.text.splitlines() if len(l.split()) == 3}) if run and run.ok else []
            (r.out / f"{lib}.names").write_text("".join(n + "\n" for n in names))
            figures[lib] = f"{len(names)} names in {lib}.names" if names else f"no names ({path or 'not found'})"
    if section == "symbols":
        return figures
    program = r.program("facts")
    bad = []
    with open(r.out / "facts.txt", "a", encoding="utf-8") as sink:
        for name in [section] if section else SECTIONS:
            run = r.run(f"facts {name}", [program, name], 100)
            sink.write(f"##### {name} ({run.seconds:.1f} s, {'no end' if run.timed_out else status(run.code)})\n{run.text}\n")
            figures[name] = f"{len(run.text.splitlines())} lines, {run.seconds:.0f} s"
            if section:
                print(run.text[:9000])
            if not run.ok:
                bad.append(name)
    if bad:
        raise Fail(f"no good end of {', '.join(bad)}; the others are in facts.txt")
    return {**figures, "in": "facts.txt"}


WHOLE = {
    "selftest": selftest,
    "bigfill": bigfill_card,
    "bigfill_static": lambda r: bigfill_limit(r, "static"),
    "bigfill_shared": lambda r: bigfill_limit(r, "shared"),
    "bigfill_pinned": bigfill_pinned,
    "torch_generate": torch_generate,
    "torch_adamw": torch_adamw,
    "cupy_small": cupy_small,
    "jax_small": jax_small,
    "one_story": one_story,
    "stream": stream,
    "zero_copy_decode": zero_copy_decode,
    "overhead_alloc": overhead_alloc,
    "overhead_decode": overhead_decode,
    "overhead_decode_spilled": overhead_decode_spilled,
    "overhead_start": overhead_start,
    "live_accuracy": live_accuracy,
    "records_full": records_full,
    "probe": probe,
}
GROUPS = {
    "memcheck": {"memcheck": memcheck},
    "python": PYTHONS,
    "sample": {**{f"sample:{s}": lambda r, s=s: sample(r, s) for s in SAMPLES}, "two_processes": two_processes},
    "stress": {"stress": lambda r: stress(r, 1), "moved": lambda r: stress_moved(r, 1)},
    "whole": WHOLE,
    "placement": PLACEMENT,
    "llama": LLAMA,
}
# What is timed, or needs much memory: one at a time.
ALONE = {*WHOLE, *PLACEMENT, *LLAMA}
CHECKS = {name: check for group in GROUPS.values() for name, check in group.items()}


def choose(names):
    """The checks that are named, by name; raises KeyError for a name that is none."""
    chosen = {}
    for name in names or CHECKS:
        word, _, detail = name.partition(":")
        if name in CHECKS:
            chosen[name] = CHECKS[name]
        elif name in GROUPS:
            chosen.update(GROUPS[name])
        elif word == "facts":
            chosen[name] = lambda r, section=detail or None: facts(r, section)
        elif word == "memcheck" and detail:
            chosen[name] = lambda r, section=detail: memcheck(r, section)
        elif word in ("stress", "moved") and detail.isdigit():
            chosen[name] = lambda r, seed=detail, check=stress if word == "stress" else stress_moved: check(r, seed)
        elif word == "sample" and detail in PROGRAMS and any(p == detail for p, _ in SAMPLES.values()):
            chosen.update({f"sample:{s}": CHECKS[f"sample:{s}"] for s, (p, _) in SAMPLES.items() if p == detail})
        else:
            raise KeyError(name)
    return chosen


def programs_of(names):
    """The CUDA programs that these checks run."""
    wanted = set()
    for name in names:
        word, _, detail = name.partition(":")
        if word in ("sample", "memcheck") and detail in SAMPLES:
            wanted.add(SAMPLES[detail][0])
        elif name == "two_processes":
            wanted |= {"copies", "kernels"}
        elif word in ("stress", "moved"):
            wanted.add("stress")
        elif word == "facts" and detail != "symbols":
            wanted.add("facts")
        elif name == "overhead_alloc":
            wanted.add("alloctime")
        elif name in ("live_accuracy", "records_full"):
            wanted.add("held")
        elif name in ("launch_cost", "striping"):
            wanted.add(name)
        elif name in ("place_llama_f16", "place_llama_q4_k", "probe"):
            wanted.add("link")
        elif name.startswith("bigfill") or name == "stream":
            wanted |= {"bigfill-static", "bigfill-shared"}
    return [n for n in PROGRAMS if n in wanted]


def machine(r):
    nvcc = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
    release = ""
    if nvcc:
        text = subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout
        release = next((l.split("release ")[1].split(",")[0] for l in text.splitlines() if "release " in l), "")
    version = subprocess.run([r.greenboost, "--version"], capture_output=True, text=True).stdout.strip().partition("\n")[0]
    return dict(
        gpu=r.gpu and r.gpu["name"], driver=r.gpu and r.gpu["driver"], vram_gib=r.gpu and round(r.gpu["total"] / GIB, 1),
        vram_free_gib=r.gpu and round(r.gpu["free"] / GIB, 1), cuda=release or None, kernel=platform.release(),
        cores=os.cpu_count(), ram_gib=round(meminfo("MemTotal") / GIB, 1),
        ram_available_gib=round(meminfo("MemAvailable") / GIB, 1), greenboost=version,
        date=datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
    )


def line(m):
    return (
        f"{m['gpu'] or 'no GPU'} {m['vram_gib'] or 0} GiB ({m['vram_free_gib'] or 0} free), driver {m['driver']}, "
        f"CUDA {m['cuda']}, Linux {m['kernel']}, {m['cores']} cores, RAM {m['ram_gib']} GiB ({m['ram_available_gib']} "
        f"available), {m['greenboost']}, {m['date']}"
    )


def figures_text(figures):
    return ", ".join(f"{k} {v}" for k, v in figures.items()) if isinstance(figures, dict) else str(figures)


def main():
    parser = argparse.ArgumentParser(prog="tests/gpu/check", description=__doc__.split("\n\n")[0])
    parser.add_argument("--greenboost", default=str(ROOT / "target/release/greenboost"), metavar="PATH")
    parser.add_argument("--out", default=os.environ.get("OUT"), metavar="DIR", help="for the log and the figures [default: $OUT]")
    parser.add_argument("--quick", action="store_true", help="smaller sizes, fewer repetitions")
    parser.add_argument("--within", type=float, default=570, metavar="SECONDS", help="start no check after that [default: 570]")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="checks at a time, those that run alone excepted [default: 1]")
    parser.add_argument("--plain", action="store_true", help="only the runs without greenboost, of what does not run alone: are the programs right?")
    parser.add_argument("--known", metavar="FILE", help="plain.json of an earlier round: what is in it is not run plain again")
    parser.add_argument("--stress", type=float, default=20, metavar="SECONDS", help="how long stress runs [default: 20]")
    parser.add_argument("--llama", metavar="DIR", help="llama.cpp's programs, or their package")
    parser.add_argument("--bin", metavar="DIR", help="where compiled programs are kept [default: in the temporary directory]")
    parser.add_argument("--build-only", action="store_true", help="compile the programs and end")
    parser.add_argument("--list", action="store_true", help="show the names")
    parser.add_argument("names", nargs="*", metavar="NAME")
    args = parser.parse_args()
    if args.list:
        for group, checks in GROUPS.items():
            print(f"{group}:", *checks)
        print("when named:", "facts", *(f"facts:{s}" for s in [*SECTIONS, "symbols"]), "memcheck:SECTION", "stress:SEED", "moved:SEED",
              *(f"sample:{p}" for p in sorted({p for p, _ in SAMPLES.values()})))
        return 0
    try:
        chosen = choose(args.names)
    except KeyError as e:
        print(f"check: no check '{e.args[0]}'; --list shows the names", file=sys.stderr)
        return 2
    out = Path(args.out or tempfile.mkdtemp(prefix="greenboost-check-out-"))
    out.mkdir(parents=True, exist_ok=True)
    if args.plain:
        chosen = {n: c for n, c in chosen.items() if n not in ALONE}
    only_facts = all(n.startswith("facts") for n in chosen) or args.build_only or args.plain
    if not only_facts and not os.access(args.greenboost, os.X_OK):
        print(f"check: no greenboost at {args.greenboost}; build it, or say --greenboost PATH", file=sys.stderr)
        return 2
    if only_facts and not os.access(args.greenboost, os.X_OK):
        args.greenboost = "/bin/true"
    r = Runner(args, out)
    try:
        return build_all(r, PROGRAMS) if args.build_only else round_of(r, chosen)
    finally:
        r.log.close()
        shutil.rmtree(r.scratch, ignore_errors=True)


def build_all(r, names):
    """Compiles these programs, some at a time: compilers use one core each. 1 when one does not compile."""
    bad = []

    def build(name):
        try:
            r.program(name)
        except (Skip, Fail) as e:  # said again by the checks that need it
            bad.append(f"{name}: {e}")

    with ThreadPoolExecutor(os.cpu_count() or 4) as pool:
        list(pool.map(build, names))
    for text in bad:
        r.write(text)
        if r.args.build_only:
            print(text)
    return int(bool(bad))


def round_of(r, chosen):
    """Runs these checks and shows what came of them; 1 when one failed."""
    rows, about = {}, machine(r)
    print(line(about), flush=True)
    r.write(line(about))

    def save():
        document = {"machine": about, "quick": r.quick, "seconds": round(time.monotonic() - r.started, 1),
                    "checks": [dict(name=n, result=rows[n][0], seconds=round(rows[n][1], 1), figures=rows[n][2])
                               for n in chosen if n in rows]}
        (r.out / "check.json").write_text(json.dumps(document, indent=1) + "\n")

    def one(name):
        begin = time.monotonic()
        try:
            if r.left() < 20:
                raise Skip(f"the {r.args.within:.0f} s of this round are over")
            word, figures = "PASS", chosen[name](r)
        except Skip as e:
            word, figures = "SKIP", str(e)
        except Fail as e:
            word, figures = "FAIL", str(e)
        except Exception:  # a fault of a check must not hide the other checks
            word, figures = "FAIL", "the check itself broke: " + traceback.format_exc().strip().splitlines()[-1]
            r.write(traceback.format_exc())
            traceback.print_exc()
        seconds = time.monotonic() - begin
        r.write(f"##### {name}: {word}: {figures_text(figures)}")
        with r.lock:
            rows[name] = (word, seconds, figures)
            print(f"{word} {name} ({seconds:.0f} s)", flush=True)
            save()

    # Before anything is timed.
    build_all(r, programs_of(chosen))
    beside = [n for n in chosen if n not in ALONE and not n.startswith("facts")]
    with ThreadPoolExecutor(max(1, r.args.jobs)) as pool:
        list(pool.map(one, beside))
    for name in chosen:
        if name not in beside:
            one(name)

    print("\n" + line(about))
    wide = max(len(n) for n in chosen)
    for name in chosen:
        word, seconds, figures = rows[name]
        text = " ".join(figures_text(figures).split())
        if len(text) > 400:
            text = text[:400] + "..."
        print(f"{name:{wide}}  {word}  {seconds:5.1f} s  {text}")
    count = {w: sum(row[0] == w for row in rows.values()) for w in ("PASS", "FAIL", "SKIP")}
    print(f"{count['PASS']} passed, {count['FAIL']} failed, {count['SKIP']} skipped; "
          f"{time.monotonic() - r.started:.0f} s in all; {r.out}/check.log, check.json")
    return int(count["FAIL"] > 0)


if __name__ == "__main__":
    sys.exit(main())
