"""A CUDA tensor shared between processes by torch.multiprocessing: sent there, changed there, sent back."""

import sys

from model import DEVICE, sha256, synchronize

import torch
import torch.multiprocessing as mp

import sections

MIB = 1 << 20


def child(inbox, outbox):
    held = []
    while True:
        tensor = inbox.get()
        if tensor is None:
            break
        outbox.put(sha256([tensor]))
        tensor.mul_(3).add_(1)
        own = tensor.clone() ^ 5
        synchronize()
        outbox.put(own)
        held.append(own)  # until the receiver has let go
        del tensor
        inbox.get()
    held.clear()


def share(digest):
    context = mp.get_context("spawn")
    there, back = context.Queue(), context.Queue()
    process = context.Process(target=child, args=(there, back))
    process.start()
    try:
        for words in (6 * MIB, 3 * MIB + 77, 1000):
            mine = torch.arange(words, dtype=torch.int64, device=DEVICE) * 48271
            synchronize()
            there.put(mine)
            if back.get(timeout=60) != sha256([torch.arange(words, dtype=torch.int64) * 48271]):
                raise RuntimeError("the other process sees other numbers")
            theirs = back.get(timeout=60)
            expected = torch.arange(words, dtype=torch.int64) * 48271 * 3 + 1
            if not torch.equal(mine.cpu(), expected):
                raise RuntimeError("what the other process wrote did not arrive")
            if not torch.equal(theirs.cpu(), expected ^ 5):
                raise RuntimeError("the other process's tensor holds other numbers")
            # Work of both processes' memory in one kernel.
            digest.update(sha256([mine + theirs]).encode())
            del theirs, mine
            there.put("next")
        there.put(None)
        process.join(60)
        if process.exitcode != 0:
            raise RuntimeError(f"the other process ended with {process.exitcode}")
    finally:
        if process.is_alive():
            process.terminate()


if __name__ == "__main__":
    ballast = torch.ones((128 if DEVICE == "cuda" else 1) * MIB // 8, dtype=torch.int64, device=DEVICE)
    status = sections.run({"share": share}, [])
    if int(ballast.sum()) != ballast.numel():
        print("FAILED: the memory beside it has changed")
        status = 1
    sys.exit(status)
