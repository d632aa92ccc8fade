"""What a program costs the processor, on a machine that may have other things to do."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Callable

LIMIT = 0.5  # seconds of CPU time
# On a machine that is slow or busy: so many times what the libraries alone take to import.
SHARE = 3.2
LIBRARIES = [sys.executable, "-c", "import typer, omegaconf"]


def at_once(run: Callable[[], subprocess.CompletedProcess[str]], code: int) -> None:
    """Assert that a program exits with `code` within `LIMIT`, once in three.

    On a slow machine `SHARE` times the import of its libraries, measured beside it, counts.
    """
    spent: list[tuple[float, float]] = []
    while not spent or (not _is_quick(spent) and len(spent) < 3):
        done, seconds = _measured(run)
        assert done.returncode == code, done.stderr
        _, libraries = _measured(
            lambda: subprocess.run(LIBRARIES, check=True, capture_output=True, text=True)
        )
        spent.append((seconds, libraries))
    assert _is_quick(spent), f"{spent} s of CPU time, and of its libraries' imports"


def _is_quick(spent: list[tuple[float, float]]) -> bool:
    return any(own < max(LIMIT, SHARE * libraries) for own, libraries in spent)


def _measured(
    run: Callable[[], subprocess.CompletedProcess[str]],
) -> tuple[subprocess.CompletedProcess[str], float]:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = run()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return done, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
