"""Checks of placement: which bytes are in VRAM, against first come, first served, in the same round."""

import json
import statistics
import subprocess
import time

from check_stress import Watch
from runner import GIB, HERE, MIB, PYTHON, Fail, Skip, size, status
from talking import Talking

BAR_KV, BAR_FULL, BAR_SHARE = 1.05, 1.10, 0.80
BAR_LAUNCH, BAR_LAUNCH_SPILLED = 30, 150  # nanoseconds added to a launch: nothing spilled, something spilled


def placed(r, label, argv, limit, placement, seconds=120, env=None):
    run = r.boosted(f"{label}, {placement}", argv, ["--vram-limit", size(int(limit)), "--placement", placement], seconds, env)
    return run, r.must(run)


def needs(r, total, outside):
    """VRAM that a plain run takes, and host memory."""
    _, free = r.card()
    if free < total + 2 * GIB or r.host_room() < outside + 2 * GIB:
        raise Skip(f"{total / 1e9:.0f} GB of VRAM and {outside / 1e9:.0f} GB of RAM are needed")


def place_kv(r):
    """Weights first, a cache after them that is read and rewritten at every step: is it in VRAM all the same?"""
    r.has("torch")
    weights, cache, limit, layers = (6.5, 1, 3.75e9, 10) if r.quick else (26, 4, 15e9, 40)
    needs(r, 0, (weights + cache) * 1e9 - limit)
    argv = [PYTHON, HERE / "place_torch_kv.py", "--weights", weights, "--cache", cache, "--layers", layers, "--digest", 20]
    run, auto = placed(r, "weights first", [*argv, "--order", "weights", "--steps", 70], limit, "auto")
    reverse_run, reverse = placed(r, "cache first", [*argv, "--order", "cache", "--steps", 35], limit, "first-fit")
    _, fixed = placed(r, "weights first", [*argv, "--order", "weights", "--steps", 25], limit, "first-fit")
    r.must_spill(run)
    r.must_spill(reverse_run)
    ratio = auto["ms"] / reverse["ms"]
    figures = {
        "ratio": round(ratio, 3), "of means": round(auto["mean_ms"] / reverse["mean_ms"], 3), "auto ms": auto["ms"],
        "cache first ms": reverse["ms"], "first-fit ms": fixed["ms"], "auto from": auto["ms_min"], "to": auto["ms_max"],
        "first steps": auto["first_ms"], "moves": run.moves(), "outside GB": round(run.spilled() / 1e9, 1),
        "loaded s": f"{auto['loaded_s']}, {reverse['loaded_s']}, {fixed['loaded_s']}",
    }
    if not auto["digest"] == reverse["digest"] == fixed["digest"]:
        raise Fail(f"the results differ: {auto['digest']}, {reverse['digest']}, {fixed['digest']}: {figures}")
    if fixed["ms"] < reverse["ms"] * 1.1:
        raise Fail(f"the order makes no difference without placement, so nothing was tried: {figures}")
    if ratio > BAR_KV:
        raise Fail(f"a step takes {ratio:.3f} times as long as with the cache first (bar {BAR_KV}): {figures}")
    return figures


def place_two_models(r):
    """Two models in turn, each of which fits VRAM, but not both: how many steps are as fast as with all in VRAM?"""
    r.has("torch")
    gb, limit, layers = (2.5, 3e9, 8) if r.quick else (10, 12e9, 24)
    needs(r, 2 * gb * 1e9, 2 * gb * 1e9 - limit)
    argv = [PYTHON, HERE / "place_two_models.py", "--gb", gb, "--layers", layers]
    p = r.must(r.run("two models, plain", [*argv, "--blocks", 4], 90))
    run, auto = placed(r, "two models", [*argv, "--blocks", 10], limit, "auto")
    first_run, fixed = placed(r, "two models", [*argv, "--blocks", 4], limit, "first-fit")
    full = statistics.median(t for block in p["blocks"][1:] for t in block)

    def fast(blocks):
        steps = [t for block in blocks for t in block]
        return sum(t <= full * BAR_FULL for t in steps) / len(steps)

    share = fast(auto["blocks"][2:])
    slow = [[round(t, 1) for t in block if t > full * BAR_FULL] for block in auto["blocks"]]
    figures = {
        "share": round(share, 3), "with the first two blocks": round(fast(auto["blocks"]), 3), "first-fit": round(fast(fixed["blocks"]), 3),
        "plain": round(fast(p["blocks"][1:]), 3), "plain ms": round(full, 3), "auto median ms": auto["median_ms"],
        "fast of 20, by block": [sum(t <= full * BAR_FULL for t in block) for block in auto["blocks"]],
        "block s": f"{sum(map(sum, auto['blocks'][2:])) / len(auto['blocks'][2:]) / 1e3:.2f}, first-fit "
                   f"{sum(map(sum, fixed['blocks'])) / len(fixed['blocks']) / 1e3:.2f}",
        "slow ms, last block": slow[-1], "moves": run.moves(), "outside GB": round(run.spilled() / 1e9, 1),
    }
    r.write(f"two models: slow steps by block {slow}")
    for name, other in (("auto", auto), ("first-fit", fixed)):
        n = min(len(p["digests"]), len(other["digests"]))
        if p["digests"][:n] != other["digests"][:n]:
            raise Fail(f"{name}: the results differ from the plain run: {figures}")
    r.must_spill(run)
    r.must_spill(first_run)
    if share < BAR_SHARE:
        raise Fail(f"{share:.3f} of the steps are as fast as in VRAM (bar {BAR_SHARE}): {figures}")
    return figures


def launch_cost(r):
    """What is added to a launch, by the time-stamp counter; nothing spilled, then something."""
    r.card()
    program = r.program("launch_cost")
    few = 4000 if r.quick else 20000
    ways = {
        "plain": None,
        "nothing spilled": [],
        "spilled": ["--vram-limit", "256M"],
        "spilled, first-fit": ["--vram-limit", "256M", "--placement", "first-fit"],
    }
    seen = {name: [] for name in ways}
    for i in range(2 if r.quick else 5):
        for name, options in ways.items() if i % 2 == 0 else reversed(ways.items()):
            argv = [program, "--launches", few, *(["--ballast", 1024] if name.startswith("spilled") else [])]
            if options is None:
                seen[name].append(r.must(r.run(f"launch_cost, plain {i}", argv, 60)))
                continue
            run = r.boosted(f"launch_cost, {name} {i}", argv, options, 60)
            f = r.must(run)
            if not f["replaced"]:
                raise Fail("the program's launches do not go through greenboost")
            if name.startswith("spilled"):
                r.must_spill(run)
            seen[name].append(f)
    cases = [k for k in seen["plain"][0] if "thread" in k]
    of = lambda name, case, key: statistics.median(f[case][key] for f in seen[name])
    figures, bad = {}, []
    for name in ways:
        for case in cases:
            added = of(name, case, "added")
            figures[f"{name}, {case}"] = f"{added:+.0f} ns ({of(name, case, 'linked'):.0f}; plain process {of('plain', case, 'linked'):.0f})"
            bar = {"nothing spilled": BAR_LAUNCH, "spilled": BAR_LAUNCH_SPILLED}.get(name)
            if bar and added > bar:
                bad.append(f"{name}, {case}: {added:+.0f} ns (bar {bar})")
    r.write("\n".join(f"launch_cost: {k}: {v}" for k, v in figures.items()))
    print("\n".join(f"    {k:36} {v}" for k, v in figures.items()), flush=True)
    # The text of a row is cut; the table above has all.
    short = {name: "/".join(f"{of(name, case, 'added'):+.0f}" for case in cases) for name in ways}
    figures = {"added ns, " + "/".join(cases): "", **short}
    if bad:
        raise Fail(f"{'; '.join(bad)}: {figures}")
    return figures


def striping(r):
    """What layouts cost, by plain driver calls: is the same share of each allocation better than some whole ones?"""
    r.card()
    run = r.run("striping", [r.program("striping"), "--gib", 1 if r.quick else 2], 90)
    f = r.must(run)
    figures = {}
    for share in ("1/2", "1/8", "1/64"):
        for kernel in ("stream", "rows"):
            bound = f[f"{share} {kernel}"]
            ms = "/".join(f"{f[f'{share} {layout}'][kernel]:.2f}" for layout in ("whole", "tails", "spread", "fine"))
            figures[f"{share} {kernel}"] = f"{ms} (bound {bound['bound']:.2f}, sum {bound['sum']:.2f})"
    return {"ms, whole/tails/spread/fine": "", **figures}


class Live:
    """The loop of limit_live.py under greenboost, its card memory, and commands given to its job."""

    def __init__(self, r, watch, limit, mib):
        self.r, self.watch = r, watch
        self.job = Talking(r, "limit live", [r.greenboost, "run", "--vram-limit", size(limit), "--json", r.scratch / "limit_live.ndjson",
                                             "--", PYTHON, HERE / "limit_live.py", "--mib", mib])
        self.pid = self.job.line("READY", 90)[0]
        self.ran, self.commands = [], []

    def held(self):
        """MiB, by the last look."""
        return next((h[self.pid] for _, _, h in reversed(self.watch.samples) if self.pid in h), 0)

    def until(self, right, seconds):
        """Waits until what is held is right; how long that took, or None."""
        begin = time.monotonic()
        while time.monotonic() - begin < seconds:
            if right(self.held()):
                return round(time.monotonic() - begin, 1)
            time.sleep(0.1)
        return None

    def command(self, *words):
        argv = [self.r.greenboost, words[0], self.pid, *words[1:]]
        begin = time.monotonic()
        done = subprocess.run(argv, env=self.r.env, capture_output=True, text=True, timeout=60)
        self.commands.append(f"{' '.join(words)}: {time.monotonic() - begin:.1f} s")
        self.r.write(f"=== {' '.join(argv)}: {status(done.returncode)}\n{done.stdout}{done.stderr}")
        if done.returncode:
            raise Fail(f"greenboost {' '.join(words)}: {status(done.returncode)}: {(done.stderr or done.stdout).strip()[-300:]}")

    def stop(self):
        """Ends what `start` began; the median of its last steps, ms."""
        steps = json.loads(self.job.ask("RAN", "stop", 90)[0])
        self.ran += steps
        if not steps:
            raise Fail("no step was run")
        return round(statistics.median(t for t, _ in steps[-5:]), 1)


def limit_live(r):
    """Limits that change while a program runs: its memory follows, its results do not change; park and wake."""
    r.has("torch")
    mib = 3 << 10 if r.quick else 12 << 10
    high, low = (mib + (2 << 10)) * MIB, mib * 2 // 3 * MIB
    needs(r, high, mib * MIB)
    argv = [PYTHON, HERE / "limit_live.py", "--mib", mib]
    figures = {}
    with Watch() as watch:
        live = Live(r, watch, high, mib)
        try:
            live.job.tell("start")
            time.sleep(2)
            figures["ms"] = live.stop()
            time.sleep(1)
            full = live.held()
            around = full - mib  # context and what lies beside the tensors
            figures["held MiB"] = full

            live.job.tell("start")
            time.sleep(0.5)
            live.command("limit", "--vram", f"{low // MIB}M")
            took = live.until(lambda m: m <= low // MIB + around + 64, 30)
            time.sleep(2)
            figures["after limit down"] = f"{live.held()} MiB in {took} s, {live.stop()} ms"
            if took is None:
                raise Fail(f"VRAM is not given back: {figures}")

            live.job.tell("start")
            time.sleep(0.5)
            live.command("limit", "--vram", f"{high // MIB}M")
            took = live.until(lambda m: m >= full - 128, 30)
            time.sleep(1)
            figures["after limit up"] = f"{live.held()} MiB in {took} s, {live.stop()} ms"
            if took is None:
                raise Fail(f"the memory does not come back to VRAM: {figures}")

            # The tensors go down; small allocations and the context stay.
            live.command("park")
            took = live.until(lambda m: m <= around + 256, 30)
            figures["parked"] = f"{live.held()} MiB in {took} s"
            if took is None:
                raise Fail(f"park leaves it in VRAM: {figures}")
            time.sleep(1)
            if live.held() > around + 256:
                raise Fail(f"a parked program that does nothing comes back to VRAM: {figures}")

            live.job.tell("start")
            took = live.until(lambda m: m >= full - 128, 30)
            time.sleep(1)
            figures["woken"] = f"{live.held()} MiB in {took} s, {live.stop()} ms"
            if took is None:
                raise Fail(f"a launch does not bring it back: {figures}")
            figures["commands"] = live.commands
            wanted = [digest for _, digest in live.ran]
        except Fail as e:
            raise Fail(f"{e}; {live.commands}") from None
        finally:
            code = live.job.close()
    if code:
        raise Fail(f"{status(code)} at its end: {figures}")
    plain = Talking(r, "limit live, plain", argv)
    try:
        plain.line("READY", 90)
        steps = json.loads(plain.ask("RAN", f"steps {len(wanted)}", 120)[0])
    finally:
        plain.close()
    different = [i for i, (a, (_, b)) in enumerate(zip(wanted, steps)) if a != b]
    figures["steps"] = len(wanted)
    if different or len(steps) != len(wanted):
        raise Fail(f"step {different[:1]} differs from the plain run: {figures}")
    return figures


PLACEMENT = {
    "place_kv": place_kv,
    "place_two_models": place_two_models,
    "launch_cost": launch_cost,
    "striping": striping,
    "limit_live": limit_live,
}
