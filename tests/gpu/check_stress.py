"""The check with the random program stress.cu: as it is, and with its memory moved at every opportunity."""

import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from check_samples import kept_at_exit
from runner import GIB, MIB, Fail, free_vram, meminfo

STRESS_LIMIT_MIB, STRESS_RAM_GIB = 512, 8
# What a process may hold on the card more than after its warm-up: the driver's own memory; and, under greenboost, freed
# backing that is kept for reuse, a sixteenth of the limit.
SLACK_MIB, KEPT_MIB = 32, STRESS_LIMIT_MIB // 16


class Watch:
    """Looks twice a second at what the driver says that processes hold on the card: greenboost has no part in that."""

    def __init__(self):
        self.samples, self.over = [], threading.Event()
        self.thread = threading.Thread(target=self.look, daemon=True)

    def look(self):
        while not self.over.wait(0.5):
            begin = time.time()
            try:
                out = subprocess.run(["nvidia-smi", "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits"],
                                     capture_output=True, text=True, timeout=20).stdout
            except (OSError, subprocess.TimeoutExpired):
                continue
            rows = (line.split(",") for line in out.splitlines() if line.count(",") == 1)
            self.samples.append((begin, time.time(), {p.strip(): int(m) for p, m in rows if m.strip().isdigit()}))

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        self.thread.join()

    def during(self, pid, begin, end):
        """MiB of a process when it was last seen in that time; None when it was not."""
        seen = [held[pid] for a, b, held in self.samples if begin <= a and b <= end and pid in held]
        return seen[-1] if seen else None

    def most(self, pid):
        return max((held[pid] for _, _, held in self.samples if pid in held), default=None)


def held_on_card(watch, run):
    """MiB by phase, as the driver says it."""
    pid = next((line[4:] for line in run.text.splitlines() if line.startswith("pid ")), "")
    phases = run.result.get("phases", {})
    held = {name: watch.during(pid, p["begin"], p["end"]) for name, p in phases.items()}
    return held, watch.most(pid)


def shown(held, most):
    return ", ".join(f"{name} {'?' if mib is None else mib}" for name, mib in held.items()) + f", at most {most}"


def returned(what, held, slack):
    """After the run a process must hold what it held when it was warm."""
    if None in (held.get("warm"), held.get("trimmed"), held.get("ended")):
        raise Fail(f"{what}: not seen on the card in every phase: {held}")
    more = max(held["trimmed"], held["ended"]) - held["warm"]
    if more > slack:
        raise Fail(f"{what}: {more} MiB more on the card than when it was warm (slack {slack}), as the driver says: {held}")


def stress(r, seed, env=None):
    r.card()
    seconds = r.args.stress
    argv = [r.program("stress"), "--total", 4 * STRESS_LIMIT_MIB, "--seconds", seconds, "--seed", seed, "--linger", 3]
    name = f"stress, seed {seed}" + "".join(f", {k}={v}" for k, v in (env or {}).items())
    before = meminfo("MemAvailable"), free_vram()
    with Watch() as watch, ThreadPoolExecutor(1) as pool:
        # Without a limit, all of it in VRAM, beside the other: what does the driver itself keep?
        future = pool.submit(r.run, f"{name}, plain", argv, seconds + 90, None, False)
        run = None if r.args.plain else r.boosted(
            name, argv, ["--vram-limit", f"{STRESS_LIMIT_MIB}M", "--ram-limit", f"{STRESS_RAM_GIB}G"], seconds + 90, env)
        plain = future.result()
    time.sleep(1)
    after = meminfo("MemAvailable"), free_vram()
    p = r.must(plain, "the plain run")
    plain_held, plain_most = held_on_card(watch, plain)
    plain_text = shown(plain_held, plain_most)
    if run is None:
        returned("plain", plain_held, SLACK_MIB)
        return {**{k: v for k, v in p.items() if k not in ("ok", "problems", "phases")}, "on the card MiB": plain_text}
    f = r.must(run)
    held, most = held_on_card(watch, run)
    warm, last = f["phases"]["warm"], f["phases"]["trimmed"]
    figures = {
        "mismatches": f["mismatches"], "on the card MiB": shown(held, most), "plain": plain_text,
        "slack MiB": f"{SLACK_MIB + KEPT_MIB}, plain {SLACK_MIB}",
        "operations": f["operations"], "allocations": f["allocations"], "launches": f["launches"], "graphs": f["graphs"],
        "moved GiB": f["moved_gib"], "out of memory": f["out_of_memory"], "rounds": f["rounds"], "s": round(run.seconds),
        "outside GiB": round(run.spilled() / GIB, 1),
        "free MiB": f"{warm['free']:.0f} to {last['free']:.0f}", "resident MiB": f"{warm['resident']:.0f} to {last['resident']:.0f}",
        "graphs' MiB": f"{warm['graphs']:.0f}, before the trim {f['phases']['freed']['graphs']:.0f}, after {last['graphs']:.0f}",
        "kept at exit MiB": round(kept_at_exit(run) / MIB, 1),
        "plain operations": p["operations"],
        "machine: RAM available GiB": f"{before[0] / GIB:.2f} to {after[0] / GIB:.2f}",
        "card: free MiB": f"{(before[1] or 0) >> 20} to {(after[1] or 0) >> 20}",
    }
    try:
        returned("plain", plain_held, SLACK_MIB)
        returned("under greenboost", held, SLACK_MIB + KEPT_MIB)
    except Fail as e:
        raise Fail(f"{e}: {figures}") from None
    if f["leaked_mib"] > 4:
        raise Fail(f"{f['leaked_mib']} MiB of device memory did not come back: {figures}")
    if f["grown_mib"] > 64:
        raise Fail(f"the process grew by {f['grown_mib']} MiB: {figures}")
    if kept_at_exit(run) > KEPT_MIB * MIB + STRESS_RAM_GIB * GIB // 8 + 16 * MIB:
        raise Fail(f"more is held at the end than is kept for reuse: {figures}")
    r.must_spill(run)
    if env:
        figures = {"moves": run.moves(), **figures}
        if not run.device("promotions") or not run.device("demotions"):
            raise Fail(f"nothing was moved, so nothing was tried: {figures}")
    return figures


def stress_moved(r, seed):
    """Chunks picked at random change their tier at every synchronisation (a switch for tests)."""
    return stress(r, seed, {"GREENBOOST_MOVES": "always"})
