"""What the process that asks has taken so far. Imports next to nothing, as it is measured too."""

from __future__ import annotations

import os
import resource
import sys
import time

STARTED = "LDM_BENCH_STARTED"  # in the environment: when the process was started, seconds of 1970
_times: dict[str, tuple[float, float]] = {}


def peak_bytes() -> int:
    """The most memory that was resident, pages of mapped files among it."""
    try:
        # Linux counts ru_maxrss of a child from its parent's memory at the fork; VmHWM is its own.
        with open("/proc/self/status", encoding="ascii") as status:
            return next(int(line.split()[1]) << 10 for line in status if line.startswith("VmHWM"))
    except OSError:
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def cpu_seconds() -> float:
    """Seconds of CPU, those of all threads together."""
    own = resource.getrusage(resource.RUSAGE_SELF)
    return own.ru_utime + own.ru_stime


def begin() -> None:
    """Let the seconds that are told begin here, not at the start of the process."""
    _times["begin"] = time.time(), cpu_seconds()


def end() -> None:
    """Let them end here, not with the process."""
    _times["end"] = time.time(), cpu_seconds()


def report() -> None:
    """Tell on standard error what was taken, for `benchmarks.measure.run_once`."""
    wall, cpu = _times.get("end", (time.time(), cpu_seconds()))
    start, used = _times.get("begin", (float(os.environ[STARTED]), 0.0))
    whole = "" if "end" in _times else "whole"
    print("measured", wall - start, cpu - used, peak_bytes(), whole, file=sys.stderr)
