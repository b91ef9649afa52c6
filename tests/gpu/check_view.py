"""Checks of what greenboost shows: do its figures agree with the driver's, and does showing them cost the program anything?"""

import json
import os
import re
import signal
import statistics
import subprocess
import time

from runner import GIB, MIB, Fail, Skip


class Held:
    """A job that holds memory as it is told (held.cu)."""

    def __init__(self, r, label, program, options):
        self.r, self.label = r, label
        self.records = r.scratch / f"{label.replace(' ', '-')}.ndjson"
        argv = [r.greenboost, "run", *options, "--json", self.records, "--", program]
        self.errors = open(r.scratch / f"{label.replace(' ', '-')}.err", "w+b")
        self.child = subprocess.Popen(
            [str(a) for a in argv], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, env=r.env,
            text=True, bufsize=1, start_new_session=True,
        )
        self.line("ready")

    def line(self, word):
        line = self.child.stdout.readline()
        if not line.startswith(word):
            self.errors.seek(0)
            said = self.errors.read().decode(errors="replace")
            raise Fail(f"{self.label}: '{line.strip()}' in place of '{word}'; {said[-400:]}")
        return line.split()

    def tell(self, *words):
        self.child.stdin.write(" ".join(map(str, words)) + "\n")
        self.child.stdin.flush()

    def do(self, *words):
        self.tell(*words)
        return self.line("done")

    def end(self):
        self.child.stdin.close()
        self.line("RESULT")
        code = self.child.wait(60)
        records = [json.loads(line) for line in self.records.read_text().splitlines()]
        self.r.write(f"=== {self.label}: status {code}, {json.dumps(records[-1])}")
        if code:
            raise Fail(f"{self.label}: exit status {code}")
        return records[-1]

    def stop(self):
        for number in (signal.SIGCONT, signal.SIGKILL):
            try:
                os.killpg(self.child.pid, number)
            except ProcessLookupError:
                pass
        self.child.wait()


def used_by_all():
    """What the driver says is used on the card, bytes, seen from outside."""
    out = subprocess.run(["nvidia-smi", "--id=0", "--query-gpu=memory.used", "--format=csv,noheader,nounits"],
                         capture_output=True, text=True, timeout=60)
    return int(out.stdout.strip()) * MIB


def live_accuracy(r):
    """What `ps` and `top` say of a running job against what the driver says, step by step; the bar is 1 %."""
    _, free = r.card()
    program = r.program("held")
    unit = GIB // 2 if r.quick else 2 * GIB
    limit = 4 * unit
    if free < limit + 2 * GIB or r.host_room() < 3 * unit:
        raise Skip(f"{limit // GIB} GiB of VRAM and {3 * unit // GIB} GiB of RAM are needed")
    held = Held(r, "live accuracy", program, ["--stats", "off", "--vram-limit", f"{limit // MIB}M"])
    worst, rows = 0.0, []
    try:
        held.do("alloc", 1, 4096)  # what the driver takes at first use is not the program's

        def figures():
            text = subprocess.run([r.greenboost, "ps", "--json"], capture_output=True, text=True, env=r.env, timeout=60).stdout
            job = next(j for j in json.loads(text)["jobs"] if j["launcher"] == held.child.pid)
            d = job["memory"]["devices"][0]
            if d["allocations"] != d["frees"] + d["live"] + d["ended"]:
                raise Fail(f"allocated, freed and live do not reconcile: {d}")
            return d

        base, driver = figures(), used_by_all()
        asked = 0
        for words in [("alloc", 1, unit), ("alloc", 3, unit // 4 + 12345), ("alloc", 1000, 256 * 1024),
                      ("alloc", 1, 2 * unit), ("alloc", 1, unit), ("free", 3), ("alloc", 7, unit // 16), ("free", 1000)]:
            held.do(*words)
            asked += words[1] * words[2] if words[0] == "alloc" else 0
            time.sleep(0.5)
            now = figures()
            says = now["vram_bytes"] + now["vram_spare"] - base["vram_bytes"] - base["vram_spare"]
            is_so = used_by_all() - driver
            off = abs(says - is_so) / max(is_so, unit)
            worst = max(worst, off)
            rows.append(f"{' '.join(map(str, words))}: says {says / GIB:.3f}, driver {is_so / GIB:.3f} GiB of VRAM, "
                        f"{now['host_bytes'] / GIB:.3f} in RAM, {now['live']} live")
            r.write(rows[-1])
            # The same in the table, to the digit that it shows.
            top = subprocess.run([r.greenboost, "top", str(held.child.pid)], capture_output=True, text=True, env=r.env,
                                 timeout=60).stdout
            for name, bytes_ in (("VRAM", now["vram_bytes"]), ("RAM", now["host_bytes"])):
                found = re.search(rf"^GPU 0 {name}\s.*?([0-9.]+) of [0-9.]+ (MiB|GiB)", top, re.M)
                size = {"MiB": MIB, "GiB": GIB}[found[2]] if found else 1
                if not found or abs(float(found[1]) * size - bytes_) > 0.051 * size:
                    raise Fail(f"the table says otherwise than ps, {bytes_} bytes of {name}: {top}")
        info = held.do("info")
        told_free, told_total = int(info[2]), int(info[3])
        now = figures()
        summary = held.end()
    finally:
        held.stop()
    if not summary["devices"][0]["spills"]:
        raise Fail("nothing was spilled, so nothing was tried")
    out = {"worst": f"{worst * 100:.2f} %", "steps": len(rows), "told free GiB": round(told_free / GIB, 2),
           "of": round(told_total / GIB, 2), "spilled now GiB": round(now["host_bytes"] / GIB, 2)}
    if worst > 0.01:
        raise Fail(f"the figures are {worst * 100:.2f} % off: " + "; ".join(rows))
    return out


def records_full(r):
    """100,000 allocations while nobody reads the control socket and it is full, against `--stats off`; the bar is 1 %."""
    r.card()
    program = r.program("held")
    cycles = 20_000 if r.quick else 100_000
    times, lost = {"off": [], "full": []}, 0
    for i in range(3 if r.quick else 7):
        for which in ("off", "full") if i % 2 == 0 else ("full", "off"):
            options = ["--stats", "off"] if which == "off" else ["--stats", "lines"]
            held = Held(r, f"records {which} {i}", program, options)
            try:
                if which == "full":
                    # Stopped, it reads nothing; 1,000 refusals are more than the socket holds.
                    os.kill(held.child.pid, signal.SIGSTOP)
                held.do("fail", 3000)
                held.do("cycle", 1000, 1 << 20)
                times[which].append(float(held.do("cycle", cycles, 1 << 20)[1]))
                os.kill(held.child.pid, signal.SIGCONT)
                summary = held.end()
                if which == "full":
                    lost = summary["records_lost"]
                    if not lost:
                        raise Fail("the socket was never full: no record was lost")
            finally:
                held.stop()
    off, full = (statistics.median(times[k]) for k in ("off", "full"))
    figures = {"ratio": round(full / off, 4), "off s": round(off, 3), "full s": round(full, 3),
               "off from": round(min(times["off"]), 3), "to": round(max(times["off"]), 3), "records lost": lost,
               "allocations": cycles}
    if full / off > 1.01:
        raise Fail(f"{full / off:.4f} times as long (bar 1.01): {figures}")
    return figures
