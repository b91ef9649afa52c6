"""What all checks share: processes and what they said, the machine, the CUDA programs."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import Future
from pathlib import Path

HERE = Path(__file__).resolve().parent
MIB, GIB = 1 << 20, 1 << 30
PYTHON = os.environ.get("GREENBOOST_CHECK_PYTHON", "python3")

# name: source, flags, libraries
PROGRAMS = {
    "bigfill-static": ("bigfill.cu", ["-cudart", "static"], ()),
    "bigfill-shared": ("bigfill.cu", ["-cudart", "shared"], ()),
    "link": ("link.cu", ["-cudart", "static"], ()),
    "alloctime": ("alloctime.cu", ["-cudart", "static"], ()),
    "held": ("held.cu", ["-cudart", "static"], ()),
    "facts": ("facts.cu", ["-cudart", "static"], ("-lcuda",)),
    "stress": ("stress.cu", ["-cudart", "static"], ("-lcuda",)),
    "launch_cost": ("launch_cost.cu", ["-cudart", "static"], ("-lcuda",)),
    "striping": ("striping.cu", ["-cudart", "static"], ("-lcuda",)),
    "pools": ("samples/pools.cu", ["-cudart", "static"], ()),
    "map": ("samples/map.cu", ["-cudart", "static"], ("-lcuda",)),
    "copies": ("samples/copies.cu", ["-cudart", "static"], ()),
    "graphs": ("samples/graphs.cu", ["-cudart", "static"], ()),
    "images": ("samples/images.cu", ["-cudart", "shared"], ()),
    "kernels": ("samples/kernels.cu", ["-cudart", "static", "-rdc=true"], ("-lcudadevrt",)),
    "host": ("samples/host.cu", ["-cudart", "shared", "--default-stream", "per-thread"], ("-lcuda",)),
    "share": ("samples/share.cu", ["-cudart", "static"], ("-lcuda",)),
}


class Skip(Exception):
    """The check cannot be made here, and why."""


class Fail(Exception):
    """The check failed, and why."""


# Processes


class Run:
    """What a process did."""

    def __init__(self, label, code, text, seconds, timed_out):
        self.label, self.code, self.text, self.seconds, self.timed_out = label, code, text, seconds, timed_out
        self.records, self.results = [], []
        for line in text.splitlines():
            if line.startswith("RESULT "):
                try:
                    self.results.append(json.loads(line[7:]))
                except ValueError:
                    self.results.append({})
        self.result = self.results[-1] if self.results else {}

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

    def moves(self):
        """What the summary says of moves, a few words."""
        up, down = (self.device(k) or 0 for k in ("promoted_bytes", "demoted_bytes"))
        counts = "/".join(str(self.device(k)) for k in ("promotions", "demotions", "moves_abandoned"))
        seconds = [self.device(k) or 0 for k in ("move_seconds", "wait_seconds")]
        return f"{up / GIB:.1f} GiB up, {down / GIB:.1f} down ({counts} up/down/abandoned), {seconds[0]:.2f} s, waits {seconds[1]:.2f} s"


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
        self.once_lock, self.once_values = threading.Lock(), {}
        self.learned, self.known = {}, self.read_known()

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

    def once(self, key, make):
        """What `make` gives, made by the first who asks; the others wait for it. Its exceptions are everybody's."""
        with self.once_lock:
            mine = key not in self.once_values
            future = self.once_values.setdefault(key, Future())
        if mine:
            try:
                future.set_result(make())
            except BaseException as e:
                future.set_exception(e)
        return future.result()

    # What programs gave without greenboost: kept, so that a later round on such a machine need not run them again

    def where(self):
        return f"{self.gpu['name']}, driver {self.gpu['driver']}" if self.gpu else "no GPU"

    def read_known(self):
        if not self.args.known:
            return {}
        try:
            document = json.loads(Path(self.args.known).read_text())
        except (OSError, ValueError) as e:
            print(f"--known {self.args.known}: {e}", file=sys.stderr)
            return {}
        if document.get("where") != self.where():
            print(f"--known {self.args.known} is of {document.get('where')}: not used", file=sys.stderr)
            return {}
        return document.get("digests", {})

    def learn(self, key, digests):
        """Two plain runs agreed on that."""
        with self.lock:
            self.learned[key] = digests
            document = {"where": self.where(), "digests": {**self.known, **self.learned}}
            (self.out / "plain.json").write_text(json.dumps(document, indent=1) + "\n")

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
        if self.once(modules, lambda: self.run("modules", [PYTHON, "-c", code, *modules], 60, show=False).code):
            raise Skip(f"{PYTHON} has no {' or '.join(modules)}")

    # CUDA programs

    def build(self, source, name=None, flags=(), libs=()):
        """Compiles a program of this directory; kept for as long as sources and flags stay the same."""
        return self.once(("build", source, name), lambda: self.compile(source, name, flags, libs))

    def compile(self, source, name, flags, libs):
        arch = f"sm_{self.gpu['capability'].replace('.', '')}" if self.gpu else "sm_90"
        flags = ["-O3", "-std=c++20", f"-arch={arch}", "-diag-suppress", "177", *flags]
        text = (HERE / source).read_bytes() + b"".join(h.read_bytes() for h in sorted(HERE.glob("**/*.cuh")))
        key = hashlib.sha256(text + repr((flags, libs)).encode()).hexdigest()[:16]
        folder = Path(self.args.bin or Path(tempfile.gettempdir()) / f"greenboost-check-bin-{os.getuid()}").resolve()
        folder.mkdir(mode=0o700, exist_ok=True, parents=True)
        binary = folder / f"{name or Path(source).stem}-{key}"
        if binary.exists():
            return binary
        nvcc = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
        if not nvcc:
            raise Skip("no nvcc here")
        lib = Path(os.path.realpath(nvcc)).parent.parent / "lib64"
        fresh = binary.with_name(f"{binary.name}.{os.getpid()}.{threading.get_ident()}")
        paths = [x for d in (lib, "/usr/local/cuda/lib64") for x in ("-Xlinker", f"-rpath={d}")] if "shared" in flags else []
        call = [nvcc, *flags, *paths, "-o", fresh, HERE / source]
        run = self.run(f"nvcc {binary.name}", [*call, *libs], 180, show="-lcuda" not in libs)
        if not run.ok and "-lcuda" in libs:
            # No stub library: the real one by its path.
            real = ["-Xlinker", "--no-as-needed", "-Xlinker", library("libcuda.so.1") or "libcuda.so.1"]
            run = self.run(f"nvcc {binary.name}", [*call, *(x for l in libs for x in (real if l == "-lcuda" else [l]))], 180)
        if not run.ok:
            raise Fail(f"{source} does not compile")
        fresh.rename(binary)
        return binary

    def program(self, name):
        """One of PROGRAMS."""
        source, flags, libs = PROGRAMS[name]
        return self.build(source, name, flags, libs)


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


def size(n):
    return f"{n >> 20}M"


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
