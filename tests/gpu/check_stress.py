"""The check with the random program stress.cu."""

import subprocess
import threading
import time

from check_samples import kept_at_exit
from runner import GIB, MIB, Fail, free_vram, meminfo

STRESS_LIMIT_MIB, STRESS_RAM_GIB = 512, 8


class Watch:
    """Looks once a second at what the driver says that processes hold on the card: greenboost has no part in that."""

    def __init__(self):
        self.samples, self.over = [], threading.Event()
        self.thread = threading.Thread(target=self.look, daemon=True)

    def look(self):
        while not self.over.wait(1):
            try:
                out = subprocess.run(["nvidia-smi", "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits"],
                                     capture_output=True, text=True, timeout=20).stdout
            except (OSError, subprocess.TimeoutExpired):
                continue
            rows = (line.split(",") for line in out.splitlines() if line.count(",") == 1)
            self.samples.append({p.strip(): int(m) for p, m in rows if m.strip().isdigit()})

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        self.thread.join()

    def of(self, pid):
        """MiB of a process when it was first and last seen, and the most; None when it was not."""
        seen = [s[pid] for s in self.samples if pid in s]
        return (seen[0], seen[-1], max(seen)) if seen else None


def stress(r, seed):
    r.card()
    seconds = r.args.stress
    argv = [r.program("stress"), "--total", 4 * STRESS_LIMIT_MIB, "--seconds", seconds, "--seed", seed, "--linger", 2.5]
    before = meminfo("MemAvailable"), free_vram()
    if r.args.plain:
        f = r.must(r.run(f"stress, seed {seed}, plain", argv, seconds + 60))
        return {k: v for k, v in f.items() if k not in ("ok", "problems")}
    with Watch() as watch:
        run = r.boosted(f"stress, seed {seed}", argv,
                        ["--vram-limit", f"{STRESS_LIMIT_MIB}M", "--ram-limit", f"{STRESS_RAM_GIB}G"], seconds + 90)
    time.sleep(1)
    after = meminfo("MemAvailable"), free_vram()
    f = r.must(run)
    figures = {
        "s": round(run.seconds), "operations": f["operations"], "allocations": f["allocations"], "launches": f["launches"],
        "graphs": f["graphs"], "moved GiB": f["moved_gib"], "out of memory": f["out_of_memory"], "rounds": f["rounds"],
        "mismatches": f["mismatches"], "outside GiB": round(run.spilled() / GIB, 1),
        "free MiB": f"{f['free_start_mib']:.0f} to {f['free_end_mib']:.0f}",
        "resident MiB": f"{f['resident_start_mib']:.0f} to {f['resident_end_mib']:.0f}",
        "kept at exit MiB": round(kept_at_exit(run) / MIB, 1),
        "machine: RAM available GiB": f"{before[0] / GIB:.2f} to {after[0] / GIB:.2f}",
        "card: free MiB": f"{(before[1] or 0) >> 20} to {(after[1] or 0) >> 20}",
    }
    pid = next((line[4:] for line in run.text.splitlines() if line.startswith("pid ")), "")
    held = watch.of(pid)
    if held:
        figures["held on the card MiB"] = f"{held[0]} to {held[1]}, at most {held[2]}"
        # The context grows as modules load; freed backing is kept for reuse, a sixteenth of the limit.
        if held[1] - held[0] > 256:
            raise Fail(f"the driver says that the process holds {held[1] - held[0]} MiB more than at the start: {figures}")
    if f["leaked_mib"] > 4:
        raise Fail(f"{f['leaked_mib']} MiB of device memory did not come back: {figures}")
    if f["grown_mib"] > 64:
        raise Fail(f"the process grew by {f['grown_mib']} MiB: {figures}")
    if kept_at_exit(run) > STRESS_LIMIT_MIB * MIB // 16 + STRESS_RAM_GIB * GIB // 8 + 16 * MIB:
        raise Fail(f"more is held at the end than is kept for reuse: {figures}")
    r.must_spill(run)
    return figures
