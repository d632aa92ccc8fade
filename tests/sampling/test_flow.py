"""Noise levels of flow matching: the original's, diffusers', and samplers that add noise."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ldm.errors import UsageError
from ldm.jobs.fields import CFG_PP_SAMPLERS
from ldm.sampling.flow import FLOW_GRIDS, FlowSchedule, fitting
from ldm.sampling.noise import ImageNoise
from ldm.sampling.samplers import SAMPLERS, find_sampler
from ldm.sampling.schedule import make_grid
from tests.golden_data import case, tensors

GOLDEN = "modules/schedules-flow"
STEPS = (1, 4, 5, 28, 50)  # the rows in the golden file
NAMES = {
    "sd35_shift": "flow",
    "diffusers_shift": "flow",
    "diffusers_set_shift": "flow_set_shift",
    "diffusers_linear_sigmas_shift": "flow_linear",
}


@pytest.mark.parametrize("shift", [3, 6])
@pytest.mark.parametrize("name", NAMES)
def test_levels_of_other_programs(name: str, shift: int) -> None:
    assert "shift" in case(f"{GOLDEN}/case.json")["call"]
    rows = tensors(f"{GOLDEN}/outputs.safetensors")[f"{name}_{shift}"]
    for steps, row in zip(STEPS, rows, strict=True):
        levels = make_grid(NAMES[name], FlowSchedule(shift), steps)
        assert torch.allclose(levels.float(), row[: steps + 1], atol=2e-7)


@pytest.mark.parametrize("name", FLOW_GRIDS)
def test_grids_fall_to_zero(name: str) -> None:
    for steps in (1, 2, 7, 30):
        levels = make_grid(name, FlowSchedule(3.0), steps)
        assert len(levels) == steps + 1
        assert levels[-1] == 0
        assert levels[0] <= 1
        assert bool((levels.diff() < 0).all())


def test_grids_of_diffusion_are_refused() -> None:
    with pytest.raises(UsageError, match="known are flow"):
        make_grid("ddim", FlowSchedule(), 5)


def test_what_a_network_is_shown() -> None:
    schedule = FlowSchedule(3.0)
    sigma = torch.tensor([0.25, 1.0], dtype=torch.float64)
    assert schedule.t(sigma).tolist() == [250, 1000]
    assert schedule.alpha(sigma).tolist() == [0.75, 0]
    assert math.isclose(float(schedule.sigma(torch.tensor([500.0]))), 0.75)


MEAN, STD = 0.5, 0.8


def exact(x: Tensor, sigma: Tensor) -> Tensor:
    """The expected z of x = (1 - sigma) z + sigma noise, where z is normal."""
    s = sigma.view(-1, 1, 1, 1)
    gain = (1 - s) * STD**2 / ((1 - s) ** 2 * STD**2 + s**2)
    return MEAN + gain * (x - (1 - s) * MEAN)


# tcd needs a schedule of diffusion, CFG++ an estimate without a prompt; the last two take their own
# steps.
OTHERS = {"tcd", *CFG_PP_SAMPLERS, "restart", "dpm_fast"}


@pytest.mark.parametrize("name", sorted(SAMPLERS.keys() - OTHERS))
def test_each_sampler_samples_the_right_distribution(name: str) -> None:
    """From a denoiser in closed form: mean and deviation of many numbers, with noise or without."""
    schedule = FlowSchedule(3.0)
    sampler = fitting(find_sampler(name), schedule)
    steps = 300 if sampler.draws else 100
    noise = ImageNoise([3], "cpu")
    x = noise.draw((1, 4, 40, 40))
    x = sampler.fn(exact, x, make_grid("flow", schedule, steps), noise=noise)
    if sampler.order:  # consistency models' sampler converges to nothing
        assert float(x.mean()) == pytest.approx(MEAN, abs=0.04)
        assert float(x.std()) == pytest.approx(STD, abs=0.04)
    assert bool(x.isfinite().all())


def test_no_noise_is_euler() -> None:
    schedule = FlowSchedule(3.0)
    sigmas, x = make_grid("flow", schedule, 5), ImageNoise([1], "cpu").draw((1, 4, 3, 3))
    expected = find_sampler("euler").fn(exact, x, sigmas)
    for name in ("ddim", "euler_ancestral"):
        made = fitting(find_sampler(name), schedule).fn(exact, x, sigmas, eta=0.0)
        assert torch.allclose(made, expected, atol=1e-5)
