"""Runs of an engine compared: images together and one by one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from ldm.engine.engine import Engine
from ldm.engine.results import Result
from ldm.jobs.job import Job


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
