"""The options of samplers and of guidance, from a job to the latent."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ldm.engine.engine import Engine
from ldm.errors import JobError
from ldm.jobs.job import Job
from ldm.models.model import Model
from tests.comparing_runs import tiny_engine


@pytest.fixture
def tiny(tmp_path: Path) -> tuple[Engine, Job]:
    """An engine of a tiny model, and a job for it."""
    return tiny_engine(tmp_path, prompt="a cat", negative="a dog", steps=3, sampler="euler")


def latent(tiny: tuple[Engine, Job], **fields: Any) -> Tensor:
    engine, job = tiny
    [result] = engine.run(replace(job, **fields))
    return result.latent


def test_churn_and_its_noise(tiny: tuple[Engine, Job]) -> None:
    plain, churned = latent(tiny), latent(tiny, s_churn=1.0)
    assert not torch.equal(plain, churned)
    assert not torch.equal(churned, latent(tiny, s_churn=1.0, s_noise=1.2))
    assert torch.equal(plain, latent(tiny, s_churn=1.0, s_tmin=100.0))
    assert torch.equal(plain, latent(tiny, s_churn=1.0, s_tmax=0.01))


def test_cfg_plus_plus_takes_the_noise_of_the_unguided(tiny: tuple[Engine, Job]) -> None:
    for name in ("euler", "euler_ancestral", "dpmpp_2m"):
        plain = latent(tiny, sampler=name, scale=1.5)
        assert not torch.equal(plain, latent(tiny, sampler=f"{name}_cfg_pp", scale=1.5))
    # at scale 1, too, where other samplers do not ask what the network says without a prompt
    other = latent(tiny, sampler="euler_cfg_pp", scale=1.0, negative="a green hat")
    assert not torch.equal(latent(tiny, sampler="euler_cfg_pp", scale=1.0), other)


def test_guidance_rescale(tiny: tuple[Engine, Job]) -> None:
    plain = latent(tiny, scale=7.5)
    assert not torch.equal(plain, latent(tiny, scale=7.5, guidance_rescale=0.7))
    assert torch.equal(latent(tiny, scale=1.0), latent(tiny, scale=1.0, guidance_rescale=0.7))


def test_zero_snr_is_for_networks_that_predict_v(
    tiny: tuple[Engine, Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(JobError, match="--zero-snr: this model predicts noise"):
        latent(tiny, zero_snr=True)
    levels: list[float] = []
    predict = Model.predict

    def look(self: Model, x: Tensor, t: Tensor, cond: Any, *more: Any) -> Tensor:
        levels.append(float(x.std()))
        return predict(self, x, t, cond, *more)

    monkeypatch.setattr(Model, "predict", look)
    engine, job = tiny
    engine.model.prediction = type(engine.model.prediction).V
    end = latent((engine, job), zero_snr=True, grid="trailing")
    assert bool(end.isfinite().all())
    assert levels[0] == pytest.approx(1, abs=0.3)  # nothing but noise, of unit size
