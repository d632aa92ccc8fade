"""Seconds per sampling step, and to decode an image, as the engine runs them.

    python -m benchmarks.step [--checkpoint FILE] [--config YAML] [--batch 1 4]
                              [--steps 20] [--device auto] [--precision auto]
                              [--attention auto] [--sampler ddim] [--scale 7.5] [--compile]

The bundled model unless told otherwise. A step has guidance (the network sees every image twice);
the first two steps of a batch are left out of the median.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import time
from pathlib import Path

import torch

from benchmarks.measure import machine
from ldm.checkpoints.config import resource
from ldm.engine.device import choose
from ldm.engine.engine import Engine
from ldm.engine.events import BatchStarted, Event, StepDone
from ldm.jobs.fields import ATTENTIONS, PRECISIONS, SAMPLER_NAMES
from ldm.jobs.job import Job
from ldm.jobs.tuning import Tuning
from ldm.workers.pool import load_as


def measure(engine: Engine, job: Job) -> tuple[float, float, float]:
    """(seconds of the median step, seconds to decode one image, seconds an image in all)."""
    times: list[float] = []

    def on_event(event: Event) -> None:
        if isinstance(event, BatchStarted | StepDone):
            if engine.policy.device.type == "cuda":
                torch.cuda.synchronize(engine.policy.device)
            times.append(time.perf_counter())

    start = time.perf_counter()
    last = start
    decoding = []
    for _ in engine.run(job, on_event):
        now = time.perf_counter()
        decoding.append(now - max(last, times[-1]))
        last = now
    steps = [after - before for before, after in itertools.pairwise(times)]
    return statistics.median(steps[2:] or steps), min(decoding), (last - start) / job.n_samples


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    bundled = resource("models") / "emoji-128.safetensors"
    parser.add_argument("--checkpoint", type=Path, default=bundled)
    parser.add_argument("--config", type=Path)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--scale", type=float, default=7.5)
    parser.add_argument("--sampler", choices=list(SAMPLER_NAMES), default="ddim")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", choices=PRECISIONS, default="auto")
    parser.add_argument("--attention", choices=ATTENTIONS, default="auto")
    parser.add_argument("--compile", action="store_true")
    wanted = parser.parse_args()

    tuning = Tuning(compile=wanted.compile)
    policy = choose(wanted.device, wanted.precision, wanted.attention, tuning=tuning)
    loaded = load_as(policy, wanted.checkpoint, wanted.config)
    engine = Engine(loaded.model, policy)
    defaults = loaded.family.defaults
    print(machine())
    print(f"{wanted.checkpoint.name}, {policy.device}, {policy.precision}, {wanted.sampler}")
    print(f"{'size':>9} {'batch':>6} {'s/step':>8} {'decode s':>9} {'s/image':>10}")
    for batch in wanted.batch:
        job = Job(
            prompt="a red apple on a blue background",
            width=defaults.width,
            height=defaults.height,
            scale=wanted.scale,
            steps=wanted.steps,
            sampler=SAMPLER_NAMES[wanted.sampler],
            seed=1,
            n_samples=batch,
        )
        step, decode, whole = measure(engine, job)
        size = f"{job.width}x{job.height}"
        print(f"{size:>9} {batch:6} {step:8.4f} {decode:9.3f} {whole:10.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
