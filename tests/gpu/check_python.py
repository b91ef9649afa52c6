"""Checks with PyTorch, JAX, CuPy and Numba, each with each of its allocators."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from runner import HERE, MIB, PYTHON, Fail, Skip, status


# What the programs import from here.
SHARED = ("sections.py", "model.py", "triton_kernels.py")


def ways(r, label, argv, options, env=None, limit=150, one_by_one=False, least=64 * MIB, plain_env=None):
    """A program of several sections: twice plain, once under greenboost; all digests must agree."""
    r.card()

    def plain(i):
        return r.run(f"{label}, plain, run {i}", argv, limit, plain_env or env, show=False)

    key = f"{label} {hashlib.sha256(b''.join((HERE / f).read_bytes() for f in (Path(argv[1]).name, *SHARED))).hexdigest()[:16]}"
    known = r.known.get(key)
    run, plains = None, []
    if known or one_by_one or r.args.plain:
        if not known:
            plains = [plain(1), plain(2)]
        if not r.args.plain:
            run = r.boosted(label, argv, options, limit, env)
    else:
        with ThreadPoolExecutor(2) as pool:
            futures = [pool.submit(plain, i) for i in (1, 2)]
            run = r.boosted(label, argv, options, limit, env)
            plains = [f.result() for f in futures]
    for other in plains:
        if not other.ok or not other.result.get("ok"):
            r.show(other, "the plain run")
            told = other.result.get("problems") or (other.text.strip().splitlines() or ["nothing said"])[-1:]
            raise Fail(f"wrong WITHOUT greenboost ({status(other.code)}): {str(told[0])[:300]}")
    loose = []
    if plains:
        known, second = (p.result["digests"] for p in plains)
        if not known:
            raise Skip("; ".join(f"{k}: {v}" for k, v in plains[0].result["skipped"].items()))
        loose = [k for k in known if known[k] != second.get(k)]
        if not loose:
            r.learn(key, known)
    if run:
        f = r.must(run)
        wrong = [k for k in known if k not in loose and known[k] != f["digests"].get(k)]
        if wrong:
            raise Fail(f"differs from the plain run in {', '.join(wrong)}")
    if loose:
        raise Fail(f"two runs WITHOUT greenboost already differ in {', '.join(loose)}; equal in the others")
    if not run:
        return {"plain": "as known"} if not plains else {
            "plain s": round(plains[0].seconds, 1), "sections": plains[0].result["section_s"]}
    if least:
        r.must_spill(run, least)
    skipped = f.get("skipped", {})
    return {"outside MiB": round(run.spilled() / MIB), "VRAM peak MiB": round((run.device("vram_peak") or 0) / MIB),
            "sections": len(known), "bit-equal": True, "s": round(run.seconds, 1),
            "plain s": round(plains[0].seconds, 1) if plains else "known",
            **({"skipped": ", ".join(f"{k} ({v})" for k, v in skipped.items())} if skipped else {})}


TORCH = {"default": "", "expandable": "expandable_segments:True", "async": "backend:cudaMallocAsync"}


def torch_environment(allocator):
    conf = TORCH[allocator]
    return {"PYTORCH_CUDA_ALLOC_CONF": conf} if conf else {}


def torch_ways(r, allocator):
    r.has("torch")
    return ways(r, f"torch, {allocator}", [PYTHON, HERE / "torch_ways.py"], ["--vram-limit", "256M"],
                torch_environment(allocator), 200)


def torch_share(r, allocator):
    r.has("torch")
    return ways(r, f"torch_share, {allocator}", [PYTHON, HERE / "torch_share.py"], ["--vram-limit", "144M"],
                torch_environment(allocator), 120, least=16 * MIB)


def torch_compiled(r, allocator):
    r.has("torch", "triton")
    caches = {k: str(r.scratch / f"{k}-{allocator}") for k in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")}
    return ways(r, f"torch_compiled, {allocator}", [PYTHON, HERE / "torch_compiled.py"], ["--vram-limit", "256M"],
                {**torch_environment(allocator), **caches, "TORCHINDUCTOR_COMPILE_THREADS": "4"}, 200, one_by_one=True)


def transformers_ways(r):
    r.has("torch", "transformers")
    return ways(r, "transformers", [PYTHON, HERE / "transformers_ways.py"], ["--vram-limit", "256M"],
                {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}, 200)


# name: environment, options of run
JAX = {
    "grow": ({"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}, ["--vram-limit", "192M"]),
    "ahead": ({"XLA_PYTHON_CLIENT_PREALLOCATE": "true"}, ["--vram-limit", "192M", "--ram-limit", "3G"]),
    "physical": ({"XLA_PYTHON_CLIENT_PREALLOCATE": "true"}, ["--vram-limit", "3G", "--report", "physical"]),
    "async": ({"XLA_PYTHON_CLIENT_ALLOCATOR": "cuda_async", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}, ["--vram-limit", "192M"]),
    "platform": ({"XLA_PYTHON_CLIENT_ALLOCATOR": "platform"}, ["--vram-limit", "192M"]),
}
XLA_FIXED = "--xla_gpu_deterministic_ops=true --xla_gpu_autotune_level=0"
XLA_MORE = " --xla_gpu_graph_min_graph_size=1 --xla_gpu_enable_triton_gemm=false"


def jax_ways(r, way):
    r.has("jax")
    r.card()

    def flags():
        # A flag that this version does not know ends the process.
        code = "import jax; jax.devices()"
        known = r.run("XLA's flags", [PYTHON, "-c", code], 60, {"XLA_FLAGS": XLA_FIXED + XLA_MORE, "JAX_PLATFORMS": "cpu"}, show=False)
        return XLA_FIXED + XLA_MORE if known.ok else XLA_FIXED

    env, options = JAX[way]
    env = {**env, "XLA_FLAGS": r.once("xla", flags)}
    # Plain it would take three quarters of the card.
    plain_env = {**env, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    return ways(r, f"jax, {way}", [PYTHON, HERE / "jax_ways.py"], options, env, 150,
                least=0 if way == "physical" else 64 * MIB, plain_env=plain_env)


def cupy_ways(r, pool):
    r.has("cupy")
    return ways(r, f"cupy, {pool}", [PYTHON, HERE / "cupy_ways.py", "--pool", pool], ["--vram-limit", "192M"], limit=120)


def numba_ways(r):
    r.has("numba")
    return ways(r, "numba", [PYTHON, HERE / "numba_ways.py"], ["--vram-limit", "80M"], limit=120)


# The longest first: they run beside each other.
PYTHONS = {
    **{f"torch:{a}": lambda r, a=a: torch_ways(r, a) for a in TORCH},
    **{f"torch_compiled:{a}": lambda r, a=a: torch_compiled(r, a) for a in TORCH},
    "transformers": transformers_ways,
    **{f"jax:{w}": lambda r, w=w: jax_ways(r, w) for w in JAX},
    # The third allocator cannot share: "cudaMallocAsync does not yet support shareIpcHandle".
    **{f"torch_share:{a}": lambda r, a=a: torch_share(r, a) for a in TORCH if a != "async"},
    **{f"cupy:{p}": lambda r, p=p: cupy_ways(r, p) for p in ("default", "async", "own", "none")},
    "numba": numba_ways,
}
