"""Memory that tensors have left is taken again, without the kernel's help."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

# Pages that the kernel had to find for a tensor of 64 MiB, after others that were let go.
_PROGRAM = """
import resource, sys, torch
from ldm.allocator import given_back, keep_freed
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


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_memory_is_kept() -> None:
    def pages(*words: str) -> int:
        command = [sys.executable, "-c", _PROGRAM, *words]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    assert pages("keep") < 100 < pages()
    assert pages("keep", "large") > 10_000, "of a large picture nothing is kept"
