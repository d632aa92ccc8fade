"""What a program costs the processor, on a machine that may have other things to do."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Callable

LIMIT = 0.5  # seconds of CPU time
# On a machine that is slow or busy: so many times what a program of one option takes that uses the
# same libraries for the same things. Typer, for one, imports pydantic when it parses.
SHARE = 2.4
LEAST_PROGRAM = """
import omegaconf, typer
app = typer.Typer()
@app.command()
def main(prompt: str | None = None) -> None:
    omegaconf.OmegaConf.create("model: {target: x}")
app(["--prompt", "x"])
"""


def at_once(run: Callable[[], subprocess.CompletedProcess[str]], code: int) -> None:
    """Assert that a program exits with `code` within `LIMIT`, once in three.

    On a slow machine `SHARE` times the least such program, measured beside it, counts.
    """
    spent: list[tuple[float, float]] = []
    while not spent or (not _is_quick(spent) and len(spent) < 3):
        done, seconds = _measured(run)
        assert done.returncode == code, done.stderr
        _, bare = _measured(_run_least_program)
        spent.append((seconds, bare))
    assert _is_quick(spent), f"{spent} s of CPU time, and of the least program beside it"


def _run_least_program() -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-c", LEAST_PROGRAM]
    return subprocess.run(program, check=True, capture_output=True, text=True)


def _is_quick(spent: list[tuple[float, float]]) -> bool:
    return any(own < max(LIMIT, SHARE * bare) for own, bare in spent)


def _measured(
    run: Callable[[], subprocess.CompletedProcess[str]],
) -> tuple[subprocess.CompletedProcess[str], float]:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = run()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return done, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
