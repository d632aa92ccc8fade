"""What the process that asks has taken so far. Imports next to nothing, as it is measured too."""

from __future__ import annotations

import resource
import sys


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


def report() -> None:
    """Tell on standard error what was taken, for `benchmarks.measure.run_once`."""
    print("measured", cpu_seconds(), peak_bytes(), file=sys.stderr)
