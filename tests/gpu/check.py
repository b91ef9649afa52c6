#!/usr/bin/env python3
"""The checks on a real GPU: unmodified programs, run plain and under `greenboost run`, and compared.

    bash tests/gpu/check [--greenboost PATH] [--out DIR] [--quick] [--within SECONDS] [NAME...]

Every program is a process of its own with a time limit. All output goes to DIR/check.log, the figures to DIR/check.json;
the end of what a failing program said is shown as well. NAME selects checks (`--list` shows them); `facts` and
`facts:SECTION` ask the driver itself and are run only when named.

Exit status: 0 when nothing failed, 1 when something did, 2 for a wrong argument. SKIP is no failure.
"""

import argparse
import datetime
import hashlib
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
GIB = 1 << 30
PYTHON = os.environ.get("GREENBOOST_CHECK_PYTHON", "python3")
BAR_DECODE, BAR_ALLOC, BAR_ZERO_COPY = 1.01, 2.0, 0.85


class Skip(Exception):
    """The check cannot be made here, and why."""


class Fail(Exception):
    """The check failed, and why."""


# Processes


class Run:
    """What a process did."""

    def __init__(self, label, code, text, seconds, timed_out):
        self.label, self.code, self.text, self.seconds, self.timed_out = label, code, text, seconds, timed_out
        self.records = []
        lines = [line for line in text.splitlines() if line.startswith("RESULT ")]
        try:
            self.result = json.loads(lines[-1][7:]) if lines else {}
        except ValueError:
            self.result = {}

    @property
    def ok(self):
        return self.code == 0 and not self.timed_out

    def of_type(self, kind):
        return [r for r in self.records if r.get("type") == kind]

    def device(self, key):
        """A figure of the first device, from the summary; None without one."""
        summaries = self.of_type("summary") or self.of_type("snapshot")
        devices = (summaries[-1].get("devices") or [{}]) if summaries else [{}]
        return devices[0].get(key)

    def spilled(self):
        return self.device("spilled_bytes") or 0


class Runner:
    def __init__(self, args, out):
        self.args, self.out, self.quick = args, out, args.quick
        self.greenboost = str(Path(args.greenboost).resolve())
        self.scratch = Path(tempfile.mkdtemp(prefix="greenboost-check-"))
        self.log = open(out / "check.log", "a", encoding="utf-8", errors="replace")
        self.lock = threading.Lock()
        self.started = time.monotonic()
        self.serial = 0
        self.env = {k: v for k, v in os.environ.items() if not k.startswith("GREENBOOST") and k != "LD_PRELOAD"}
        self.env.update(PYTHONUNBUFFERED="1", PYTHONDONTWRITEBYTECODE="1", PYTHONPATH=self.python_path())
        self.gpu = gpu_facts()

    @staticmethod
    def python_path():
        return os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")]))

    def write(self, text):
        with self.lock:
            self.log.write(text if text.endswith("\n") else text + "\n")
            self.log.flush()

    def left(self):
        """Seconds until the time given to the whole round is up."""
        return self.args.within - (time.monotonic() - self.started)

    def run(self, label, argv, limit=120, env=None, show=True):
        """Runs a process to its end or its time limit."""
        limit = max(5, min(limit, self.left()))
        with self.lock:
            self.serial += 1
            path = self.scratch / f"{self.serial}.out"
        start = time.monotonic()
        timed_out = False
        with open(path, "wb") as sink:
            try:
                child = subprocess.Popen(
                    [str(a) for a in argv], stdin=subprocess.DEVNULL, stdout=sink, stderr=subprocess.STDOUT,
                    env={**self.env, **(env or {})}, cwd=self.scratch, start_new_session=True,
                )
            except OSError as e:
                self.write(f"=== {label}: {e}")
                raise Fail(f"{label}: cannot start {argv[0]}: {e}") from e
            try:
                code = child.wait(limit)
            except subprocess.TimeoutExpired:
                timed_out = True
                code = stop(child)
        seconds = time.monotonic() - start
        text = path.read_text(encoding="utf-8", errors="replace")
        how = f"no end within {limit:.0f} s" if timed_out else f"status {code}"
        variables = "".join(f"{k}={v} " for k, v in (env or {}).items())
        self.write(f"=== {label}: {variables}{' '.join(map(str, argv))}\n{text[-2_000_000:]}\n=== {label}: {how}, {seconds:.1f} s\n")
        run = Run(label, code, text, seconds, timed_out)
        if show and not run.ok:
            self.show(run, how)
        return run

    def show(self, run, how):
        lines = run.text.splitlines()
        with self.lock:
            print(f"--- {run.label}: {how}; its last lines:")
            for line in lines[-30:]:
                print("    " + line[:300])
            sys.stdout.flush()

    def boosted(self, label, argv, options=(), limit=120, env=None, show=True):
        """The same under `greenboost run`, with the records of the run."""
        with self.lock:
            self.serial += 1
            records = self.scratch / f"{self.serial}.ndjson"
        run = self.run(label, [self.greenboost, "run", *options, "--json", records, "--", *argv], limit, env, show)
        try:
            for line in records.read_text().splitlines():
                run.records.append(json.loads(line))
        except (OSError, ValueError) as e:
            self.write(f"=== {label}: records: {e}")
        told = [r for r in run.records if r.get("type") in ("wounded", "degraded", "oom", "host_refused", "summary")]
        self.write("\n".join(json.dumps(r) for r in told))
        for r in run.of_type("wounded"):
            raise Fail(f"{label}: the shim reports itself wounded: {r.get('reason')}")
        return run

    def must(self, run, what=None):
        """The process ended well and its own checks were fine."""
        what = what or run.label
        if run.timed_out:
            raise Fail(f"{what}: no end within its time ({run.seconds:.0f} s)")
        if run.code != 0:
            raise Fail(f"{what}: {status(run.code)}")
        if not run.result.get("ok"):
            problems = run.result.get("problems") or run.result.get("failures") or "no RESULT line"
            if run.code == 0:
                self.show(run, "not ok")
            raise Fail(f"{what}: {problems}")
        return run.result

    def must_spill(self, run, least=GIB // 4):
        if not run.of_type("summary"):
            raise Fail(f"{run.label}: no summary in the records of --json")
        if run.spilled() < least:
            raise Fail(f"{run.label}: only {gib(run.spilled())} spilled, so nothing was tried")

    # What the machine has to give

    def host_room(self):
        """Host bytes that a job may take without being refused."""
        return int(meminfo("MemAvailable") * 0.70)

    def card(self):
        if not self.gpu:
            raise Skip("no NVIDIA GPU here (nvidia-smi does not answer)")
        return self.gpu["total"], free_vram() or self.gpu["free"]

    def has(self, *modules):
        code = "import importlib.util as u, sys; sys.exit(any(u.find_spec(m) is None for m in sys.argv[1:]))"
        if self.run("modules", [PYTHON, "-c", code, *modules], 60, show=False).code:
            raise Skip(f"{PYTHON} has no {' or '.join(modules)}")

    # CUDA programs

    def build(self, source, name=None, flags=(), libs=()):
        """Compiles a program of this directory; kept for as long as source and flags stay the same."""
        nvcc = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
        if not nvcc:
            raise Skip("no nvcc here")
        arch = f"sm_{self.gpu['capability'].replace('.', '')}" if self.gpu else "sm_90"
        flags = ["-O3", "-std=c++20", f"-arch={arch}", *flags]
        key = hashlib.sha256((HERE / source).read_bytes() + repr((nvcc, flags, libs)).encode()).hexdigest()[:16]
        folder = Path(tempfile.gettempdir()) / f"greenboost-check-bin-{os.getuid()}"
        folder.mkdir(mode=0o700, exist_ok=True)
        binary = folder / f"{name or Path(source).stem}-{key}"
        if not binary.exists():
            lib = Path(os.path.realpath(nvcc)).parent.parent / "lib64"
            fresh = binary.with_name(f"{binary.name}.{os.getpid()}.{threading.get_ident()}")
            extra = ["-Xlinker", f"-rpath={lib}"] if "shared" in flags else []
            run = self.run(f"nvcc {binary.name}", [nvcc, *flags, *extra, "-o", fresh, HERE / source, *libs], 180)
            if not run.ok:
                raise Fail(f"{source} does not compile")
            fresh.rename(binary)
        return binary


def stop(child):
    """Ends a process that we started, with its children (they are in a session of their own)."""
    for sig, patience in ((signal.SIGTERM, 5), (signal.SIGKILL, 10)):
        try:
            os.killpg(child.pid, sig)
        except ProcessLookupError:
            pass
        try:
            return child.wait(patience)
        except subprocess.TimeoutExpired:
            continue
    return -9


def status(code):
    return f"ended by signal {-code}" if code < 0 else f"exit status {code}"


def gib(n):
    return f"{n / GIB:.1f} GiB"


def meminfo(field):
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    return 0


def smi(query):
    try:
        out = subprocess.run(
            ["nvidia-smi", "--id=0", f"--query-gpu={query}", "--format=csv,noheader,nounits"],
            capture_output=True, text=True, timeout=60,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return [p.strip() for p in out.stdout.strip().split(",")] if out.returncode == 0 and out.stdout.strip() else None


def gpu_facts():
    fields = smi("name,driver_version,memory.total,memory.free,compute_cap")
    if not fields or len(fields) != 5:
        return None
    try:
        return dict(name=fields[0], driver=fields[1], total=int(fields[2]) << 20, free=int(fields[3]) << 20,
                    capability=fields[4])
    except ValueError:
        return None


def free_vram():
    fields = smi("memory.free")
    return int(fields[0]) << 20 if fields and fields[0].isdigit() else None


def spread(values):
    return f"{min(values):.3f} to {max(values):.3f}"


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
    return r.build("bigfill.cu", f"bigfill-{cudart}", ["-cudart", cudart])


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


def size(n):
    return f"{n >> 20}M"


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


class Server:
    """A process that decodes when asked to."""

    def __init__(self, r, label, argv):
        self.r, self.label = r, label
        self.errors = open(r.scratch / f"{label}.err", "wb+")
        self.child = subprocess.Popen(
            [str(a) for a in argv], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, env=r.env,
            cwd=r.scratch, start_new_session=True, text=True,
        )

    def line(self, word, limit):
        """The next line that begins with `word`."""
        timer = threading.Timer(limit, stop, [self.child])
        timer.start()
        try:
            for line in self.child.stdout:
                if line.startswith(word + " "):
                    return line.split()[1:]
                self.r.write(f"{self.label}: {line}")
        finally:
            timer.cancel()
        self.errors.seek(0)
        text = self.errors.read().decode(errors="replace")
        self.r.write(f"=== {self.label}\n{text}")
        self.r.show(Run(self.label, 1, text, 0, False), "no answer")
        raise Fail(f"{self.label}: no answer")

    def ask(self):
        self.child.stdin.write("go\n")
        self.child.stdin.flush()
        seconds, tokens = self.line("TIME", 60)
        return float(seconds), tokens

    def close(self):
        try:
            self.child.stdin.close()
            self.child.wait(20)
        except (subprocess.TimeoutExpired, BrokenPipeError):
            stop(self.child)
        self.errors.seek(0)
        self.r.write(f"=== {self.label}\n{self.errors.read().decode(errors='replace')}")


def overhead_decode(r):
    """Everything fits: a launch-bound decode, asked in turn of a plain process and of one under greenboost.

    Several generations of process pairs, because a process's luck (addresses, clocks) lasts as long as the process.
    """
    r.has("torch")
    r.card()
    argv = [PYTHON, HERE / "torch_decode.py", "serve", "--tokens", "200"]
    generations, rounds = (1, 3) if r.quick else (3, 5)
    plain, boosted = [], []
    for g in range(generations):
        servers = []
        try:
            servers.append(Server(r, f"decode plain {g}", argv))
            servers.append(Server(r, f"decode boosted {g}", [r.greenboost, "run", "--", *argv]))
            first = [s.line("READY", 120)[0] for s in servers]
            for s in servers:
                s.ask()  # warms
            for i in range(rounds):
                order = [(servers[0], plain), (servers[1], boosted)]
                for server, times in order if i % 2 == 0 else order[::-1]:
                    seconds, tokens = server.ask()
                    times.append(seconds)
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
    if ratio > BAR_DECODE:
        raise Fail(f"decode takes {ratio:.4f} times as long (bar {BAR_DECODE}): {figures}")
    return figures


def overhead_alloc(r):
    r.card()
    program = r.build("alloctime.cu", flags=["-cudart", "static"])
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


def library(name):
    """Where the loader finds it."""
    code = (
        "import ctypes, sys; ctypes.CDLL(sys.argv[1]); "
        "print(next(l.split()[-1] for l in open('/proc/self/maps') if '.so' in l and sys.argv[1].split('.so')[0] in l))"
    )
    try:
        done = subprocess.run([PYTHON, "-c", code, name], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


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
    try:
        program = r.build("facts.cu", flags=["-cudart", "static"], libs=("-lcuda",))
    except Fail:
        # No stub library: the real one by its path.
        real = ("-Xlinker", "--no-as-needed", "-Xlinker", library("libcuda.so.1") or "libcuda.so.1")
        program = r.build("facts.cu", flags=["-cudart", "static"], libs=real)
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


CHECKS = {
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
    "overhead_start": overhead_start,
}


def machine(r):
    nvcc = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
    release = ""
    if nvcc:
        text = subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout
        release = next((l.split("release ")[1].split(",")[0] for l in text.splitlines() if "release " in l), "")
    version = subprocess.run([r.greenboost, "--version"], capture_output=True, text=True).stdout.strip()
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
    parser.add_argument("--list", action="store_true", help="show the names")
    parser.add_argument("names", nargs="*", metavar="NAME")
    args = parser.parse_args()
    if args.list:
        print("\n".join([*CHECKS, "facts", *(f"facts:{s}" for s in [*SECTIONS, "symbols"])]))
        return 0
    chosen = {}
    for name in args.names or CHECKS:
        if name in CHECKS:
            chosen[name] = CHECKS[name]
        elif name == "facts" or name.startswith("facts:"):
            section = name.partition(":")[2] or None
            chosen[name] = lambda r, section=section: facts(r, section)
        else:
            print(f"check: no check '{name}'; --list shows the names", file=sys.stderr)
            return 2
    out = Path(args.out or tempfile.mkdtemp(prefix="greenboost-check-out-"))
    out.mkdir(parents=True, exist_ok=True)
    only_facts = all(n.startswith("facts") for n in chosen)
    if not only_facts and not os.access(args.greenboost, os.X_OK):
        print(f"check: no greenboost at {args.greenboost}; build it, or say --greenboost PATH", file=sys.stderr)
        return 2
    if only_facts and not os.access(args.greenboost, os.X_OK):
        args.greenboost = "/bin/true"
    r = Runner(args, out)
    rows, about = [], machine(r)
    print(line(about), flush=True)
    r.write(line(about))

    def save():
        document = {"machine": about, "quick": args.quick, "seconds": round(time.monotonic() - r.started, 1),
                    "checks": [dict(name=n, result=w, seconds=round(s, 1), figures=f) for n, w, s, f in rows]}
        (out / "check.json").write_text(json.dumps(document, indent=1) + "\n")

    # Compilers use one core each: all at once, before anything is timed.
    wanted = {"bigfill.cu": [n for n in chosen if n.startswith("bigfill") or n == "stream"],
              "alloctime.cu": [n for n in chosen if n == "overhead_alloc"]}
    jobs = []
    if wanted["bigfill.cu"]:
        jobs += [lambda: bigfill_program(r, "static"), lambda: bigfill_program(r, "shared")]
    if wanted["alloctime.cu"]:
        jobs.append(lambda: r.build("alloctime.cu", flags=["-cudart", "static"]))
    with ThreadPoolExecutor(4) as pool:
        for future in [pool.submit(j) for j in jobs]:
            try:
                future.result()
            except (Skip, Fail):
                pass  # said again by the check that needs it

    for name, check in chosen.items():
        begin = time.monotonic()
        try:
            if r.left() < 20:
                raise Skip(f"the {args.within:.0f} s of this round are over")
            word, figures = "PASS", check(r)
        except Skip as e:
            word, figures = "SKIP", str(e)
        except Fail as e:
            word, figures = "FAIL", str(e)
        except Exception:  # a fault of a check must not hide the other checks
            word, figures = "FAIL", "the check itself broke: " + traceback.format_exc().strip().splitlines()[-1]
            r.write(traceback.format_exc())
            traceback.print_exc()
        rows.append((name, word, time.monotonic() - begin, figures))
        r.write(f"##### {name}: {word}: {figures_text(figures)}")
        print(f"{word} {name} ({rows[-1][2]:.0f} s)", flush=True)
        save()

    save()
    print("\n" + line(about))
    wide = max(len(n) for n, *_ in rows)
    for name, word, seconds, figures in rows:
        print(f"{name:{wide}}  {word}  {seconds:5.1f} s  {figures_text(figures)}")
    print(f"{time.monotonic() - r.started:.0f} s in all; {out}/check.log, check.json")
    r.log.close()
    shutil.rmtree(r.scratch, ignore_errors=True)
    return int(any(w == "FAIL" for _, w, *_ in rows))


if __name__ == "__main__":
    sys.exit(main())
