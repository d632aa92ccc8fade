"""The program of stable-diffusion.cpp as a peer: it tells itself how long each of its parts took.

It computes with the file's fp16 weights and takes the prompt and the empty one in turn, so a step
of it stands beside one pass of two latents.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from pathlib import Path

from benchmarks.measure import Cost
from benchmarks.weights import PROMPT, checkpoint

NAME = "sd.cpp"
# What it calls the parts that a row measures ("sampling completed, taking 8.12s"), and the side of
# the image where the row does not say it.
_PARTS = {"unet": "sampling", "decode": "decode_first_stage", "text": "get_learned_condition"}
_SIDES = {"unet": 512, "text": 64}


def command(program: str, weights: str, side: int, steps: int) -> tuple[str, ...]:
    """The words that draw one square image with guidance and keep it nowhere."""
    sizes = ("-H", str(side), "-W", str(side), "--steps", str(steps))
    guided = ("--cfg-scale", "7.5", "--sampling-method", "euler")
    return (program, "-m", weights, "-p", PROMPT, *sizes, *guided, "-o", os.devnull)


def run_command(words: tuple[str, ...]) -> tuple[Cost, str]:
    """What a process of a program cost, and what it said."""
    start = time.perf_counter()
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert process.stdout is not None
    with process.stdout as stream:
        said = stream.read().decode("utf-8", "replace")
    _, status, used = os.wait4(process.pid, 0)
    wall = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, words, said)
    return Cost(wall, used.ru_utime + used.ru_stime, used.ru_maxrss << 10), said


class Timed:
    """One part of it, run again at every question, as `benchmarks.measure.Worker` is."""

    def __init__(self, program: str, row: str, folder: Path) -> None:
        part, _, side = row.partition("-")
        weights = str(checkpoint(folder, "fp16.safetensors"))
        self.words = command(program, weights, int(side or _SIDES[part]), 1)
        self.pattern = re.compile(rf"{_PARTS[part]} completed, taking ([\d.]+)s")

    def ask(self, words: str) -> dict[str, float]:
        """What it says to "run": seconds of the part, and the peak of the whole process."""
        assert words == "run"
        cost, said = run_command(self.words)
        found = self.pattern.search(said)
        if found is None:
            raise RuntimeError(f"{self.words[0]} does not tell: {self.pattern.pattern}")
        return {"wall": float(found[1]), "cpu": 0.0, "peak": cost.peak}

    def close(self) -> None:
        """Nothing stays."""
