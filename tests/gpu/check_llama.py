"""Checks with llama.cpp and a synthetic 7B model, about half of which lies outside VRAM.

Its programs come from llama_build.sh; `--llama DIR` says where they (or their package) are.
"""

import atexit
import json
import shutil
import statistics
import tempfile
from pathlib import Path

from runner import GIB, HERE, MIB, PYTHON, Fail, Skip, size, status

BAR_DECODE = 0.9
DEPTH = 2048


def programs(r):
    """The directory with llama.cpp's programs, unpacked once."""

    def unpack():
        if not r.args.llama:
            raise Skip("--llama DIR does not say where llama.cpp's programs are (llama_build.sh makes them)")
        given = Path(r.args.llama).resolve()
        if (given / "llama-bench").exists():
            return given
        parts = sorted(given.glob("llama-bin.tar.xz*"))
        if not parts:
            raise Skip(f"no llama-bin.tar.xz in {given}")
        run = r.run("unpack llama.cpp", ["sh", "-c", f"cat {' '.join(map(str, parts))} | xz -dcT 0 | tar x -C {r.scratch}"], 60)
        if not run.ok:
            raise Fail("the package with llama.cpp's programs cannot be unpacked")
        return r.scratch / "llama"

    return r.once("llama programs", unpack)


def environment(r):
    """Where cuBLAS and cudart are: beside nvcc, or in Python's packages."""

    def find():
        nvcc = shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
        root = Path(nvcc).resolve().parent.parent
        folders = [root / "lib64", root / "targets/x86_64-linux/lib", Path("/usr/local/cuda/lib64")]
        code = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
        site = Path(r.run("site-packages", [PYTHON, "-c", code], 60, show=False).text.strip().splitlines()[-1])
        folders += sorted({f.parent for f in site.glob("nvidia/**/libcublas.so.13")} | {f.parent for f in site.glob("nvidia/**/libcudart.so.13")})
        found = [str(f) for f in folders if list(f.glob("libcublas.so.13")) or list(f.glob("libcudart.so.13"))]
        if not found:
            raise Skip("no libcublas.so.13 here")
        return {"LD_LIBRARY_PATH": ":".join(found)}

    return r.once("llama environment", find)


def model(r, kind):
    """A model file in memory, made once."""

    def make():
        shape, need = ("1b", 3 * GIB) if r.quick else ("7b", 18 * GIB)
        shm = Path("/dev/shm")
        roomy = shm.is_dir() and shutil.disk_usage(shm).free > need and r.host_room() > need + 10 * GIB
        folder = Path(tempfile.mkdtemp(prefix="greenboost-check-", dir=shm if roomy else r.scratch))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        path = folder / f"{shape}-{kind}.gguf"
        run = r.run(f"make {path.name}", [PYTHON, HERE / "make_gguf.py", path, "--shape", shape, "--type", kind], 90)
        if not run.ok:
            raise Fail(f"no model: {run.text.strip()[-200:]}")
        return path

    return r.once(("gguf", kind), make)


def dma(r):
    """GB/s to the device, of this round."""
    return r.once("dma", lambda: r.must(r.run("link", [r.program("link")], 60)))["dma.h2d"]["best"]


def bench(r, kind, placement, limit):
    argv = [programs(r) / "llama-bench", "-m", model(r, kind), "-ngl", 99, "-fa", "on", "-p", 0, "-n", 24 if r.quick else 48,
            "-d", DEPTH, "-b", 2048, "-ub", 2048, "-r", 3, "-o", "jsonl"]
    options = ["--vram-limit", size(limit), "--placement", placement]
    run = r.boosted(f"llama-bench {kind}, {placement}", argv, options, 150, environment(r))
    if not run.ok:
        raise Fail(f"llama-bench {kind}, {placement}: {status(run.code)}: {run.text.strip()[-300:]}")
    rates = [json.loads(line)["samples_ts"] for line in run.text.splitlines() if line.startswith('{"build_commit"')]
    if not rates:
        raise Fail(f"llama-bench {kind}, {placement}: no result: {run.text.strip()[-300:]}")
    r.must_spill(run)
    return run, rates[-1]


def outside(run):
    """Bytes outside VRAM while the model was used: the median of the snapshots in the second half of the run."""
    snapshots = [s["devices"][0]["host_bytes"] for s in run.of_type("snapshot") if s.get("devices")]
    used = [b for b in snapshots[len(snapshots) // 2:] if b]
    return statistics.median(used) if used else run.device("host_peak") or 0


def not_weights(run):
    """Allocations other than the largest, which has the weights, that have bytes outside VRAM."""
    largest = [a for a in (run.of_type("summary") or [{}])[-1].get("largest", [])]
    most = max((a["bytes"] for a in largest), default=0)
    return [a for a in largest if a["bytes"] < most // 2 and a["host_bytes"]]


def place_llama(r, kind):
    """Decoding, half of the weights outside: tokens per second of both placements against the link's bound."""
    r.card()
    if kind == "q4_k" and r.quick:
        raise Skip("too small a model for it")
    path = model(r, kind)
    limit = path.stat().st_size // 2 + GIB // (4 if r.quick else 1)
    if r.host_room() < path.stat().st_size:
        raise Skip("not enough host RAM")
    rate = dma(r)
    figures, ratios, others, moves = {"DMA": round(rate, 1), "limit GiB": round(limit / GIB, 1)}, {}, {}, {}
    for placement in ("auto", "first-fit"):
        run, rates = bench(r, kind, placement, limit)
        moves[placement] = run.moves()
        bytes_ = outside(run)
        bound = rate * 1e9 / bytes_
        ratios[placement] = rates[-1] / bound
        others[placement] = not_weights(run)
        figures[placement] = (f"{rates[-1]:.2f} tok/s ({', '.join(f'{t:.2f}' for t in rates)}), {bytes_ / GIB:.2f} GiB outside, "
                              f"bound {bound:.2f}, ratio {ratios[placement]:.3f}")
        figures[f"{placement}: besides the weights outside MiB"] = [
            f"{a['host_bytes'] // MIB} of {a['bytes'] // MIB}" for a in others[placement]]
    figures["moves"] = moves["auto"]
    if others["auto"]:
        raise Fail(f"KV cache or compute buffers lie outside VRAM: {figures}")
    if kind == "f16" and ratios["auto"] < BAR_DECODE:
        raise Fail(f"decode at {ratios['auto']:.3f} of the link's bound (bar {BAR_DECODE}): {figures}")
    return figures


def llama_text(r):
    """What it writes must be what it writes without greenboost."""
    r.card()
    path = model(r, "f16" if r.quick else "q4_k")
    limit = path.stat().st_size // 2 + GIB // 2
    call = (f"echo TEXT; {programs(r)}/llama-completion -m {path} -ngl 99 -fa on -c 1024 -n 48 --temp 0 -s 1 -no-cnv --ignore-eos "
            f"--no-warmup -p 'w1 w2 w3 The quick brown fox jumps over the lazy dog' 2>/dev/null; code=$?; echo; echo END $code")

    def text(run):
        if not run.ok or "\nEND 0" not in run.text:
            raise Fail(f"{run.label}: {status(run.code)}: {run.text.strip()[-200:]}")
        said = run.text.split("TEXT\n", 1)[1].rsplit("\nEND", 1)[0]
        return "\n".join(line for line in said.splitlines() if not line.startswith("greenboost:"))

    argv = ["/bin/sh", "-c", call]
    plain = text(r.run("llama text, plain", argv, 60, environment(r)))
    if len(plain) < 80:
        raise Fail(f"hardly a text: {plain!r}")
    figures = {"characters": len(plain)}
    for placement in ("auto", "first-fit"):
        run = r.boosted(f"llama text, {placement}", argv, ["--stats", "off", "--vram-limit", size(limit), "--placement", placement],
                        90, environment(r))
        said = text(run)
        r.must_spill(run)
        if said != plain:
            again = text(r.run("llama text, plain again", argv, 60, environment(r)))
            if again != plain:
                raise Fail("two runs WITHOUT greenboost already differ: nothing can be concluded")
            raise Fail(f"{placement}: another text than the plain run's: {said[:80]!r} / {plain[:80]!r}")
        figures[placement] = f"equal, {run.spilled() / GIB:.1f} GiB outside"
    return figures


LLAMA = {
    "place_llama_f16": lambda r: place_llama(r, "f16"),
    "place_llama_q4_k": lambda r: place_llama(r, "q4_k"),
    "llama_text": llama_text,
}
