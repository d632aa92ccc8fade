"""What a run asks of an engine beside its jobs: nothing that changes an image but by rounding."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ldm.errors import JobError

if TYPE_CHECKING:
    from torch import nn

# What names torch's compiler of kernels, and Triton's of what starts them, or else is looked for.
_COMPILERS = {
    "cpu": ("CXX", ("g++", "clang++", "cl")),
    "cuda": ("CC", ("gcc", "clang", "cl")),
}


@dataclass(frozen=True)
class Tuning:
    """`offload` is what lies outside of the device (see `ldm.engine.device.choose`).

    `compile`: the network is translated by torch's compiler when it is first used.
    """

    offload: str = "auto"
    compile: bool = False


PLAIN = Tuning()


def check_compiler(device: str) -> None:
    """Raise JobError where torch could not compile for a type of device."""
    if sys.version_info[:3] == (3, 13, 0):  # mended in 3.13.1; torch refuses
        raise JobError(
            "--compile does not work on Python 3.13.0: use 3.13.1 or newer, or omit --compile"
        )
    if device == "cuda" and importlib.util.find_spec("triton") is None:
        raise JobError(
            "--compile needs Triton on a GPU: pip install triton, or leave --compile out"
        )
    variable, usual = _COMPILERS["cuda" if device == "cuda" else "cpu"]
    named = os.environ.get(variable)
    if not any(shutil.which(name) for name in ((named,) if named else usual)):
        raise JobError(
            f"--compile needs a compiler and finds none: install {usual[0]}, name one in "
            f"{variable}, or leave --compile out"
        )
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        raise JobError(
            "--compile needs Python's headers, which are not there: install them (Debian: "
            "python3-dev), or leave --compile out"
        )


def compile_network(network: nn.Module) -> None:
    """Let torch compile a network at its next call, and again where shapes are others.

    What it comes to is kept on the disk for later processes, in a folder that stays.
    """
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(Path(cache) / "ldm" / "compiled"))
    os.environ.setdefault("TORCHINDUCTOR_FX_GRAPH_CACHE", "1")  # not by itself before torch 2.6
    network.compile()
