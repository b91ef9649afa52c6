"""Checks with the sample programs: every way in which CUDA programs get memory; compute-sanitizer."""

import shutil
from concurrent.futures import ThreadPoolExecutor

from runner import GIB, MIB, Fail, Skip, size, status

SAMPLE_LIMIT = "64M"
# section: program, and the MiB that lie outside VRAM at least (0: everything may fit)
SAMPLES = {
    "pool": ("pools", 128), "pool_figures": ("pools", 64), "pool_own": ("pools", 96), "pool_order": ("pools", 32),
    "pool_threads": ("pools", 8), "graph_captured": ("pools", 16), "graph_made": ("pools", 16), "graph_figures": ("pools", 0),
    "graph_copies": ("pools", 32), "graph_meanwhile": ("pools", 16),
    "graph_moves": ("graphs", 64), "graph_resident": ("graphs", 16),
    "vmm_grow": ("map", 48), "vmm_places": ("map", 64), "vmm_export": ("map", 0),
    "texture_linear": ("images", 48), "texture_arrays": ("images", 16), "surface": ("images", 8),
    "copy_pitched": ("copies", 8), "copy_forms": ("copies", 32), "copy_batch": ("copies", 32), "globals": ("copies", 8),
    "heap": ("kernels", 4), "dynamic": ("kernels", 32), "cooperative": ("kernels", 32), "cluster": ("kernels", 32),
    "bulk": ("kernels", 32), "atomics": ("kernels", 32), "pointers": ("kernels", 48),
    "pinned": ("host", 4), "managed": ("host", 8), "callbacks": ("host", 8), "memops": ("host", 8), "attributes": ("host", 32),
    "threads": ("host", 8),
    "contexts": ("host", 16),
    "ipc_legacy": ("share", 16), "ipc_outside": ("share", 16), "ipc_vmm": ("share", 0), "ipc_pool": ("share", 0),
}


def plain_sections(r, name):
    """All sections of a sample program, twice without greenboost."""

    def make():
        binary = r.program(name)
        with ThreadPoolExecutor(2) as pool:
            return list(pool.map(lambda i: r.run(f"{name}, plain, run {i}", [binary], 90, show=False), (1, 2)))

    return r.once(("plain", name), make)


def sample(r, section):
    r.card()
    name, least = SAMPLES[section]
    binary = r.program(name)
    digest = r.known.get(f"{binary.name} {section}") or plain_digest(r, section, name, binary)
    if r.args.plain:
        return {"plain": digest}
    run = r.boosted(section, [binary, section], ["--vram-limit", SAMPLE_LIMIT], 60)
    f = r.must(run)
    if f["digests"].get(section) != digest:
        raise Fail(f"differs from the plain run: {f['digests'].get(section)}, plain {digest}")
    if least:
        r.must_spill(run, least * MIB)
    figures = {"outside MiB": round(run.spilled() / MIB), "VRAM peak MiB": round((run.device("vram_peak") or 0) / MIB)}
    if section == "graph_figures" and (run.device("vram_peak") or 0) + (run.device("host_peak") or 0) < 90 * MIB:
        raise Fail(f"96 MiB of a graph's memory are not counted: {figures}")
    notes = [line[6:] for line in run.text.splitlines() if line.startswith("note: ")]
    return {**figures, **({"note": "; ".join(notes)} if notes else {})}


def plain_digest(r, section, name, binary):
    """What two plain runs agree on."""
    runs = plain_sections(r, name)
    if not all(section in {**run.result.get("digests", {}), **run.result.get("skipped", {})} for run in runs):
        # The process did not get that far: the section alone.
        runs = [r.run(f"{section}, plain, run {i}", [binary, section], 60) for i in (1, 2)]
    reasons = [run.result.get("skipped", {}).get(section) for run in runs]
    if all(reasons):
        raise Skip(reasons[0])
    digests = [run.result.get("digests", {}).get(section) for run in runs]
    told = [p for run in runs for p in run.result.get("problems", []) if p.startswith(section + ": ")]
    if told or None in digests:
        raise Fail(f"wrong WITHOUT greenboost: {told[0] if told else 'no result'}")
    if digests[0] != digests[1]:
        raise Fail("two runs WITHOUT greenboost already differ: nothing can be concluded")
    r.learn(f"{binary.name} {section}", digests[0])
    return digests[0]


def two_processes(r):
    """Two processes of one job, at once: the limit holds for both together."""
    r.card()
    chosen = {"copy_forms": r.program("copies"), "pointers": r.program("kernels")}
    plain = {section: r.known.get(f"{binary.name} {section}") or plain_digest(r, section, SAMPLES[section][0], binary)
             for section, binary in chosen.items()}
    if r.args.plain:
        return plain
    script = " & ".join(f"{binary} {section}" for section, binary in chosen.items()) + " & wait"
    limit = 128 * MIB
    run = r.boosted("two processes", ["/bin/sh", "-c", script], ["--vram-limit", size(limit)], 60)
    digests = {k: v for result in run.results for k, v in result.get("digests", {}).items()}
    if not run.ok or digests != plain:
        raise Fail(f"differs from the plain runs: {digests}, plain {plain} ({status(run.code)})")
    r.must_spill(run, 16 * MIB)
    peak = run.device("vram_peak") or 0
    if peak > limit:
        raise Fail(f"{peak} bytes of VRAM held, {limit} allowed")
    pids = {b.get("pid") for b in run.of_type("bye")}
    return {"processes": len(pids), "outside MiB": round(run.spilled() / MIB), "VRAM peak MiB": round(peak / MIB)}


def kept_at_exit(run):
    """Bytes that the processes of a run held when they ended in good order, with what they kept for reuse."""
    return sum((b.get("vram_bytes") or 0) + (b.get("host_bytes") or 0) for b in run.of_type("bye"))


# compute-sanitizer


def memcheck(r, section=None):
    """No error of the sanitizer's under greenboost; of a sample, none that the plain run does not have."""
    r.card()
    tool = shutil.which("compute-sanitizer") or shutil.which("/usr/local/cuda/bin/compute-sanitizer")
    if not tool:
        raise Skip("no compute-sanitizer here")
    if section is None:
        if r.args.plain:
            raise Skip("the self-test's program runs under greenboost only")
        argv, limit, least = [r.greenboost, "selftest-program"], "256M", GIB // 4
    elif section in SAMPLES:
        argv, limit, least = [r.program(SAMPLES[section][0]), section], SAMPLE_LIMIT, SAMPLES[section][1] * MIB
    else:
        raise Skip(f"no sample {section}")
    sanitizer = [tool, "--tool", "memcheck", "--target-processes", "all"]
    label = f"memcheck of {section or 'the self-test'}"

    def told(run):
        """How many errors there are of each kind; calls that the driver refused apart from wrong accesses."""
        summary = [line.split("ERROR SUMMARY:")[1].split()[0] for line in run.text.splitlines() if "ERROR SUMMARY:" in line]
        if not summary:
            raise Fail(f"{run.label}: no summary ({'no end' if run.timed_out else status(run.code)})")
        calls = {}
        for line in run.text.splitlines():
            if "Program hit " in line and " API call to " in line:
                kind = f"{line.split('Program hit ')[1].split()[0]} of {line.split(' API call to ')[1].split()[0].rstrip('.')}"
                calls[kind] = calls.get(kind, 0) + 1
        return max(0, max(map(int, summary)) - sum(calls.values())), calls

    plain = None
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(r.run, f"{label}, plain", [*sanitizer, *argv], 240, None, False) if section else None
        # The sanitizer is a program of the job; it hands its preload and ours down to the program.
        run = r.boosted(label, [*sanitizer, *argv], ["--vram-limit", limit], 240) if not r.args.plain else future.result()
        plain = told(future.result()) if future else (0, {})
    wrong, calls = told(run)
    figures = {"errors": wrong, "plain": plain[0], "outside MiB": round(run.spilled() / MIB), "s": round(run.seconds, 1)}
    if calls:
        figures["refused calls"] = calls
    if wrong > plain[0]:
        raise Fail(f"{wrong} errors, {plain[0]} without greenboost: {figures}")
    if [kind for kind in calls if kind not in plain[1] and not kind.startswith("CUDA_ERROR_OUT_OF_MEMORY")]:
        raise Fail(f"calls that the driver refused: {figures}")
    if not run.ok or (section is None and "every byte" not in run.text):
        raise Fail(f"the program did not end well: {status(run.code)}: {figures}")
    if least and not r.args.plain:
        r.must_spill(run, least)
    return figures
