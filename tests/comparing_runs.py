"""Runs of an engine compared: images together and one by one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ldm.engine.engine import Engine
from ldm.engine.events import ignore
from ldm.engine.plan import make_plan
from ldm.engine.results import Result
from ldm.jobs.job import Job
from ldm.workers.pool import load_engine
from tests.tiny_runs import place


def tiny_engine(folder: Path, **fields: Any) -> tuple[Engine, Job]:
    """An engine of a tiny model, which is written into a folder, and a job of 16x16 for it."""
    place(folder)
    asked = {"task": "txt2img", "width": 16, "height": 16, "device": "cpu", "scale": 3.0, "seed": 3}
    plan = make_plan({**asked, **fields, "model": f"{folder}/models/tiny.ckpt"})
    engine, plan = load_engine(plan, plan.given, ignore)
    return engine, plan.job


class Count:
    """How often a module is called, and with how many rows."""

    def __init__(self, module: nn.Module) -> None:
        self.rows: list[int] = []
        module.register_forward_hook(lambda module, given, out: self.rows.append(len(given[0])))


def one_by_one(engine: Engine, jobs: Sequence[Job]) -> list[Result]:
    return [result for job in jobs for result in engine.run(job)]


def assert_same(ours: Sequence[Result], theirs: Sequence[Result]) -> None:
    assert [result.record for result in ours] == [result.record for result in theirs]
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one.latent, other.latent)
        assert np.array_equal(one.image, other.image)
