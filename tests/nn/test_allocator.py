"""Memory that tensors have left is taken again, without the kernel's help."""

from __future__ import annotations

import platform
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from ldm.engine.plan import make_plan
from ldm.jobs.tuning import PLAIN, Tuning
from ldm.nn.allocator import found_ahead
from ldm.workers import pool
from ldm.workers.pool import packed_bytes

# Pages that the kernel had to find for a tensor of 64 MiB, after others that were let go.
_PROGRAM = """
import resource, sys, torch
from ldm.nn.allocator import given_back, keep_freed
if sys.argv[1:]:
    keep_freed()
pixels = 1 << 20 if "large" in sys.argv else 0
for _ in range(12):  # pieces of the first ones go elsewhere, and leave gaps
    start = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    with given_back(pixels):
        torch.full((1 << 24,), 1.0)
    found = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - start
print(found)
"""


# The same for the first tensor of 512 MiB, after memory for it was found, or was not.
_AHEAD = """
import resource, sys, time, torch
from ldm.nn.allocator import found_ahead
def found():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
with found_ahead(int(sys.argv[1]) << 20):
    end = found() + 150_000
    for _ in range(100):
        if found() > end or sys.argv[1] == "0":
            break
        time.sleep(0.05)
start = found()
torch.full((1 << 27,), 1.0)
print(found() - start)
"""

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")


@glibc
def test_memory_is_found_ahead() -> None:
    def pages(size: int) -> int:
        command = [sys.executable, "-c", _AHEAD, str(size)]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    assert 10 * pages(640) < pages(0)


def test_what_interrupts_is_not_held_up() -> None:
    with pytest.raises(KeyboardInterrupt), found_ahead(1 << 30):
        raise KeyboardInterrupt


def test_memory_is_sought_where_it_will_be_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = make_plan({"task": "txt2img", "prompt": "an apple", "device": "cpu"})
    there, missing = Path(__file__), Path("/dev/none")

    def count(tuning: Tuning = PLAIN, **fields: str) -> int:
        return packed_bytes(replace(plan, job=replace(plan.job, **fields)), tuning)

    network = [
        entry.count
        for key, entry in plan.header.tensors.items()
        if key.startswith("model.diffusion_model.")
    ]
    monkeypatch.setattr(pool, "_GPUS", (missing, there))
    assert count() == 4 * sum(network) > 10**7
    assert count(precision="full") == count()
    assert not any(count(precision=name) for name in ("bf16", "fp16", "int8", "autocast"))
    assert not count(Tuning(compile=True))
    assert not any(count(device=name) for name in ("cuda", "mps", "auto"))
    monkeypatch.setattr(pool, "_GPUS", (missing,))
    assert count(device="auto") == (count() if sys.platform == "linux" else 0)


@glibc
def test_memory_is_kept() -> None:
    def pages(*words: str) -> int:
        command = [sys.executable, "-c", _PROGRAM, *words]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    assert pages("keep") < 100 < pages()
    assert pages("keep", "large") > 10_000, "of a large image nothing is kept"
