"""Time and peak memory of one Python program in a process of its own."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

# Linux counts a child's ru_maxrss from its parent's memory at the fork; its own VmHWM does not.
_REPORT = """
import resource, sys
def _peak():
    try:
        with open("/proc/self/status", encoding="ascii") as status:
            return next(int(line.split()[1]) << 10 for line in status if line.startswith("VmHWM"))
    except OSError:
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
import atexit
@atexit.register
def _report():
    own = resource.getrusage(resource.RUSAGE_SELF)
    print("measured", own.ru_utime + own.ru_stime, _peak(), file=sys.stderr)
"""


@dataclass(frozen=True)
class Cost:
    """Seconds on the clock, seconds of CPU, peak resident bytes, and what was printed."""

    wall: float
    cpu: float
    peak: int
    out: str = ""


def run(program: str, arguments: Sequence[str] = (), times: int = 1) -> Cost:
    """Run `python -c program arguments` and give the medians; raises CalledProcessError."""
    costs = [_once(program, arguments) for _ in range(times)]
    return Cost(
        statistics.median(cost.wall for cost in costs),
        statistics.median(cost.cpu for cost in costs),
        max(cost.peak for cost in costs),
        costs[-1].out,
    )


def _once(program: str, arguments: Sequence[str]) -> Cost:
    command = [sys.executable, "-c", _REPORT + program, *arguments]
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wall = time.perf_counter() - start
    if done.returncode:
        sys.stderr.write(done.stderr)
        done.check_returncode()
    words = next(line for line in done.stderr.splitlines() if line.startswith("measured")).split()
    return Cost(wall, float(words[1]), int(words[2]), done.stdout)


def machine() -> str:
    """The machine in words, for the top of a table."""
    import platform

    import torch

    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    cores = os.cpu_count()
    return f"{platform.machine()}, {cores} cores{gpu}, torch {torch.__version__}"
