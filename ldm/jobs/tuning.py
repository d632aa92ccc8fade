"""Settings of the engine besides its jobs; they change an image by rounding at most."""

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
from ldm.jobs.cache import cache_folder

if TYPE_CHECKING:
    from torch import nn

# Environment variables and default names of the C++ compiler that torch needs for its kernels, and
# of the C compiler that Triton needs for its launchers.
_COMPILERS = {
    "cpu": ("CXX", ("g++", "clang++", "cl")),
    "cuda": ("CC", ("gcc", "clang", "cl")),
}


@dataclass(frozen=True)
class Tuning:
    """`offload`: what stays off the device between uses (see `ldm.engine.device.choose`).

    `compile`: torch compiles the network at its first use.
    """

    offload: str = "auto"
    compile: bool = False


PLAIN = Tuning()


def check_compiler(device: str) -> None:
    """Raise JobError if torch cannot compile for a type of device."""
    if sys.version_info[:3] == (3, 13, 0):  # fixed in 3.13.1; torch refuses
        raise JobError(
            "--compile does not work on Python 3.13.0: use 3.13.1 or newer, or omit --compile"
        )
    if device == "cuda" and importlib.util.find_spec("triton") is None:
        raise JobError("--compile needs Triton on a GPU: pip install triton, or omit --compile")
    variable, usual = _COMPILERS["cuda" if device == "cuda" else "cpu"]
    named = os.environ.get(variable)
    if not any(shutil.which(name) for name in ((named,) if named else usual)):
        raise JobError(
            f"--compile needs a compiler, and none was found: install {usual[0]}, set "
            f"{variable}, or omit --compile"
        )
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        raise JobError(
            "--compile needs Python's headers, which are missing: install them (Debian: "
            "python3-dev), or omit --compile"
        )


def compile_network(network: nn.Module) -> None:
    """Have torch compile a network at its next call, and again for new shapes.

    The result is cached on disk for later processes, in a permanent folder.
    """
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder() / "compiled"))
    os.environ.setdefault("TORCHINDUCTOR_FX_GRAPH_CACHE", "1")  # off by default before torch 2.6
    network.compile()
