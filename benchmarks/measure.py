"""Time and peak memory of Python programs in processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.own import STARTED

# Put before a program, so that it tells at its end what it took.
_REPORT = """
import atexit
from benchmarks.own import report
atexit.register(report)
"""


@dataclass(frozen=True)
class Cost:
    """Seconds on the clock, seconds of CPU, and peak resident bytes."""

    wall: float
    cpu: float
    peak: int


def run_once(program: str, arguments: Sequence[str] = ()) -> Cost:
    """The cost of one process from its start to its end; raises CalledProcessError.

    Or between where it calls `begin` and `end` of `benchmarks.own`.
    """
    start = time.time()
    done = subprocess.run(
        [sys.executable, "-c", _REPORT + program, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "HF_HUB_OFFLINE": "1", STARTED: str(start)},
    )
    whole = time.time() - start
    if done.returncode:
        sys.stderr.write(done.stderr)
        done.check_returncode()
    words = next(line for line in done.stderr.splitlines() if line.startswith("measured")).split()
    wall = whole if words[4:] else float(words[1])
    return Cost(wall, float(words[2]), int(words[3]))


class Worker:
    """A process that holds a peer's part and runs it when it is told to (`benchmarks.work`)."""

    def __init__(self, peer: str, row: str, folder: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "benchmarks.work", peer, row, folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
        )
        self.ready = self._answer()

    def ask(self, words: str) -> dict[str, Any]:
        """What it says to "run" or "save PATH"; raises RuntimeError where it has ended."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{words}\n")
        self.process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """End it."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):
                told: dict[str, Any] = json.loads(line)
                return told
        raise RuntimeError(f"{' '.join(self.process.args[3:])} has ended")  # type: ignore[arg-type]


def machine() -> str:
    """The machine in words, for the top of a table."""
    import platform

    import torch

    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    cores = os.cpu_count()
    return f"{platform.machine()}, {cores} cores{gpu}, torch {torch.__version__}"
