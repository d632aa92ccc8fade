"""Processes to be measured: what each peer does from its start to its end.

Of those that only load, what is measured ends where everything is loaded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks import sdcpp
from benchmarks.weights import PROMPT, checkpoint, diffusers_folder


@dataclass(frozen=True)
class Program:
    """A program for `python -c` with its arguments, or a command of its own."""

    text: str = ""
    arguments: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    cold: Path | None = None  # a file that is to be read from the disk


CLI = "from ldm.cli.app import main\nmain()"

LDM_LOAD = """
import sys
import ldm.engine.plan, ldm.workers.pool
fields = {"task": "txt2img", "model": sys.argv[1], "prompt": "an apple", "device": "cpu"}
plan = ldm.engine.plan.make_plan(fields)
from ldm.workers.pool import load_engine
load_engine(plan, plan.given, lambda event: None)
from benchmarks.own import end
end()
"""
DIFFUSERS_LOAD = """
import sys
import torch
from diffusers import StableDiffusionPipeline
pipeline = StableDiffusionPipeline.from_single_file(
    sys.argv[1], config=sys.argv[2], local_files_only=True, torch_dtype=torch.float32)
if sys.argv[3:]:
    pipeline.set_progress_bar_config(disable=True)
    side, steps = map(int, sys.argv[3:])
    pipeline("an apple", width=side, height=side, num_inference_steps=steps, guidance_scale=7.5)
else:
    from benchmarks.own import end
    end()
"""
# The bundled model's arithmetic alone, in a process that has everything.
COMPUTE = """
import sys
from benchmarks.own import begin, end
import ldm.engine.plan, ldm.workers.pool
fields = {"task": "txt2img", "prompt": sys.argv[1], "seed": 1}
plan = ldm.engine.plan.make_plan(fields)
from ldm.workers.pool import load_engine
engine, plan = load_engine(plan, plan.given, lambda event: None)
for result in engine.run(plan.job): pass
begin()
for result in engine.run(plan.job): pass
end()
"""

Programs = dict[str, Program]


def helped(folder: Path, program: str | None) -> Programs:
    """How soon help is there."""
    return {"ldm": Program(CLI, ("txt2img", "--help")), "python alone": Program("")}


def imported(folder: Path, program: str | None) -> Programs:
    """What a program that draws imports."""
    return {
        "ldm": Program(
            "import ldm.workers.pool, ldm.engine.engine, ldm.models.load, ldm.engine.device"
        ),
        "torch alone": Program("import torch"),
        "diffusers": Program("from diffusers import StableDiffusionPipeline"),
    }


def _loading(kind: str) -> Callable[[Path, str | None], Programs]:
    def programs(folder: Path, program: str | None) -> Programs:
        path = str(checkpoint(folder, kind))
        config = str(diffusers_folder(folder))
        return {
            "ldm": Program(LDM_LOAD, (path,)),
            "diffusers": Program(DIFFUSERS_LOAD, (path, config)),
        }

    return programs


def first_step(folder: Path, program: str | None) -> Programs:
    """From the start of a process to its end, with an image of 64x64 in one step between them.

    That is the smallest there is, so that what is left is all that stands around a step; the step
    at full size is a row of its own.
    """
    return {**_drawn(folder, program, 64, 1), "torch alone": Program("import torch")}


def _drawn(folder: Path, program: str | None, side: int, steps: int) -> Programs:
    """The processes that draw one image."""
    path = str(checkpoint(folder, "fp16.safetensors"))
    words = ("txt2img", "--model", path, "--prompt", PROMPT, "--steps", str(steps), "--n_samples",
             "1", "--n_iter", "1", "--skip_save", "--skip_grid", "--device", "cpu", "--quiet",
             "--W", str(side), "--H", str(side), "--scale", "7.5")  # fmt: skip
    theirs = (path, str(diffusers_folder(folder)), str(side), str(steps))
    return {
        "ldm": Program(CLI, words),
        "diffusers": Program(DIFFUSERS_LOAD, theirs),
        **_sdcpp(program, path, side, steps),
    }


def first_step_cold(folder: Path, program: str | None) -> Programs:
    """The same with the checkpoint on the disk alone."""
    path = checkpoint(folder, "fp16.safetensors")
    peers = first_step(folder, program)
    return {peer: replace(each, cold=path) for peer, each in peers.items() if peer != "torch alone"}


def end_to_end(folder: Path, program: str | None) -> Programs:
    """An image of 512x512 in two steps, from the shell."""
    return _drawn(folder, program, 512, 2)


def bundled(folder: Path, program: str | None) -> Programs:
    """What `make demo` runs, and what it is made of."""
    return {
        "ldm": Program(CLI, ("txt2img", "--prompt", PROMPT, "--skip_save", "--skip_grid")),
        "torch alone": Program("import torch"),
        "ldm, its arithmetic alone": Program(COMPUTE, (PROMPT,)),
    }


def _sdcpp(program: str | None, weights: str, side: int, steps: int) -> Programs:
    if program is None:
        return {}
    return {sdcpp.NAME: Program(command=sdcpp.command(program, weights, side, steps))}


PROCESSES: dict[str, Callable[[Path, str | None], Programs]] = {
    "help": helped,
    "import": imported,
    "load-fp16": _loading("fp16.safetensors"),
    "load-fp32": _loading("fp32.safetensors"),
    "load-ckpt": _loading("fp32.ckpt"),
    "first-step": first_step,
    "first-step-cold": first_step_cold,
    "end-to-end": end_to_end,
    "bundled": bundled,
}
