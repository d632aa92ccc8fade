"""What a run asks of an engine beside its jobs: nothing that changes a picture but by rounding."""

from __future__ import annotations

import importlib.util
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ldm.errors import JobError

if TYPE_CHECKING:
    from torch import nn

_COMPILERS = ("g++", "clang++", "c++", "cl")


@dataclass(frozen=True)
class Tuning:
    """`offload` is what lies outside of the device (see `ldm.device.choose`).

    `compile`: the network is translated by torch's compiler when it is first used.
    """

    offload: str = "auto"
    compile: bool = False


PLAIN = Tuning()


def check_compiler(device: str) -> None:
    """Raise JobError where torch could not compile for a type of device."""
    if device == "cuda":
        if importlib.util.find_spec("triton") is None:
            raise JobError("--compile: needs Triton on a GPU; pip install triton, or leave it out")
        return
    named = os.environ.get("CXX")
    if not any(shutil.which(name) for name in ((named,) if named else _COMPILERS)):
        raise JobError(
            "--compile: needs a C++ compiler on a CPU and finds none; install g++, "
            "name one in CXX, or leave --compile out"
        )


def compile_network(network: nn.Module) -> None:
    """Let torch compile a network at its next call, and anew where shapes are others.

    What it comes to is kept on the disk for later processes, in a folder that stays.
    """
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(Path(cache) / "ldm" / "compiled"))
    os.environ.setdefault("TORCHINDUCTOR_FX_GRAPH_CACHE", "1")  # not by itself before torch 2.6
    network.compile()
