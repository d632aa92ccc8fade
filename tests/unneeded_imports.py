"""Modules that a process imports beyond those of a bare `import torch` in the same environment."""

from __future__ import annotations

import subprocess
import sys
from functools import cache

# Those of other torch versions, too: what torch itself imports is not our doing.
HEAVY = frozenset(
    {
        *("transformers", "open_clip", "torchvision", "diffusers", "accelerate"),
        *("scipy", "matplotlib", "torch._dynamo", "torch._inductor", "sympy"),
    }
)


@cache
def heavy_of_torch() -> frozenset[str]:
    """The heavy modules that `import torch` itself brings in here."""
    program = "import sys, torch; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    )
    return HEAVY & set(done.stdout.split())


def unneeded(modules: set[str]) -> list[str]:
    """The heavy ones among a process's modules that torch alone does not import."""
    return sorted((HEAVY - heavy_of_torch()) & modules)
