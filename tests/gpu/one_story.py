"""Do all queries about memory tell one story? NVML before CUDA, then torch, the properties, NVML v1 and v2."""

import ctypes
import json
import sys

GIB = 1 << 30
# Without a limit from the user the limit is what is free, and that is known only once there is a context.
EARLY_MAY_DIFFER = "--early-may-differ" in sys.argv
problems = []
lines = []


class V1(ctypes.Structure):
    _fields_ = [(n, ctypes.c_ulonglong) for n in ("total", "free", "used")]


class V2(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint)] + [(n, ctypes.c_ulonglong) for n in ("total", "reserved", "free", "used")]


nvml = ctypes.CDLL("libnvidia-ml.so.1")
handle = ctypes.c_void_p()


def must(code, what):
    if code:
        print(f"FAILED: {what} gave {code}")
        print("RESULT " + json.dumps({"ok": False, "problems": [f"{what} gave {code}"]}))
        sys.exit(1)


def ask_nvml():
    one, two = V1(), V2(version=ctypes.sizeof(V2) | 2 << 24)
    must(nvml.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(one)), "nvmlDeviceGetMemoryInfo")
    must(nvml.nvmlDeviceGetMemoryInfo_v2(handle, ctypes.byref(two)), "nvmlDeviceGetMemoryInfo_v2")
    return one, two


def show(value):
    return f"{value / GIB:.3f}"


must(nvml.nvmlInit_v2(), "nvmlInit_v2")
must(nvml.nvmlDeviceGetHandleByIndex_v2(0, ctypes.byref(handle)), "nvmlDeviceGetHandleByIndex_v2")
early, early2 = ask_nvml()
print(f"NVML before CUDA: total {show(early.total)}, free {show(early.free)}, v2 total {show(early2.total)} GiB")

import torch  # only now: nothing of CUDA is loaded before

story = []


def look(when):
    for _ in range(5):
        free, total = torch.cuda.mem_get_info()
        one, two = ask_nvml()
        again, _ = torch.cuda.mem_get_info()
        if free == again:
            break
    prop = torch.cuda.get_device_properties(0).total_memory
    totals = {"mem_get_info": total, "properties": prop, "NVML v1": one.total, "NVML v2": two.total}
    frees = {"mem_get_info": free, "NVML v1": one.free, "NVML v2": two.free}
    print(f"{when}: total " + ", ".join(f"{k} {show(v)}" for k, v in totals.items()))
    print(f"{when}: free " + ", ".join(f"{k} {show(v)}" for k, v in frees.items()))
    print(f"{when}: NVML v1 used {show(one.used)}; v2 used {show(two.used)}, reserved {show(two.reserved)}")
    if len(set(totals.values())) > 1:
        problems.append(f"{when}: totals differ: {totals}")
    if len(set(frees.values())) > 1:
        problems.append(f"{when}: free differs: {frees}")
    if one.used + one.free > one.total:
        problems.append(f"{when}: NVML v1 used + free is more than total")
    if two.used + two.free + two.reserved > two.total:
        problems.append(f"{when}: NVML v2 used + free + reserved is more than total")
    if free > total:
        problems.append(f"{when}: more free than there is")
    story.append(dict(total=total, free=free))
    return total, {**frees}


total, before = look("at the start")
if early.total != total or early2.total != total:
    text = f"NVML said {early.total} and {early2.total} before CUDA, and CUDA says {total}"
    print("note:" if EARLY_MAY_DIFFER else "problem:", text)
    if not EARLY_MAY_DIFFER:
        problems.append(text)
block = torch.empty(GIB, dtype=torch.uint8, device="cuda")
total2, after = look("after 1 GiB")
for name in before:
    if before[name] - after[name] < GIB:
        problems.append(f"{name}: free fell by {before[name] - after[name]} only")
if total2 != total:
    problems.append(f"total changed from {total} to {total2}")
del block
torch.cuda.empty_cache()
_, end = look("after giving it back")
for name in end:
    if end[name] < after[name] + GIB // 2:
        problems.append(f"{name}: free did not come back")
for p in problems:
    print("FAILED:", p)
print("RESULT " + json.dumps({"ok": not problems, "problems": problems, "story": story, "early_total": early.total}))
