"""Samplers of other programs, against numbers recorded from them and from their formulas.

The recording has k-diffusion 0.1.1 for the DPM-Solvers and for churn, the formulas of ComfyUI and
of AUTOMATIC1111 (restart) for the others; noise is of torch's CPU generator with seed 7.
"""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from ldm.sampling.guidance import Unguided
from ldm.sampling.samplers import SAMPLERS, Churn
from ldm.sampling.samplers.ancestral import euler_ancestral
from tests.golden_data import case

RECORDED = case("samplers/other_programs.json")


class Draws:
    """The noise of the recording."""

    def __init__(self) -> None:
        self.source = torch.Generator().manual_seed(7)

    def draw(self, shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, generator=self.source, dtype=torch.float64)

    def skip(self, draws: int, shape: tuple[int, ...]) -> None:
        for _ in range(draws):
            self.draw(shape)


def denoise(x: Tensor, sigma: Tensor) -> Tensor:
    sigma = sigma.view(-1, 1)
    return x * (0.49 / (0.49 + sigma**2)) + 0.1 * torch.tanh(x / (1 + sigma))


def guided(unguided: Unguided) -> Any:
    def estimate(x: Tensor, sigma: Tensor) -> Tensor:
        unguided.latest = x * (0.4 / (0.4 + sigma.view(-1, 1) ** 2))
        return torch.lerp(unguided.latest, denoise(x, sigma), 1.7)

    return estimate


def karras(steps: int) -> Tensor:
    ends = (14.6 ** (1 / 7), 0.03 ** (1 / 7))
    levels = torch.linspace(*ends, steps, dtype=torch.float64) ** 7
    return torch.cat([levels, levels.new_zeros(1)])


@pytest.mark.parametrize("name", [name for name in RECORDED if name != "x"])
def test_the_recorded_end(name: str) -> None:
    sampler, steps, options, estimate = name, 12, {}, denoise
    if name.endswith("_churn"):
        sampler, options = name.removesuffix("_churn"), {"churn": Churn(5.0)}
    if name.startswith("dpm_fast"):
        sampler, options = "dpm_fast", {"eta": float(name[-1])}
    if name.startswith("restart"):
        sampler, steps = "restart", int(name.removeprefix("restart_"))
    if "cfg_pp" in name:
        options = {"unguided": Unguided()}
        estimate = guided(options["unguided"])
    x = torch.tensor([RECORDED["x"]], dtype=torch.float64)
    end = SAMPLERS[sampler].fn(estimate, x, karras(steps), noise=Draws(), **options)
    # ComfyUI's er_sde integrates with 200 points; k-diffusion's levels are float32
    close = {"er_sde": 2e-3}.get(name, 2e-6 if name.startswith("dpm_") else 1e-10)
    wanted = torch.tensor([RECORDED[name]], dtype=torch.float64)
    torch.testing.assert_close(end, wanted, rtol=0, atol=close)


@pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")
def test_uni_pc_is_that_of_diffusers() -> None:
    from diffusers import UniPCMultistepScheduler

    theirs = UniPCMultistepScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        solver_order=3,
        solver_type="bh2",
        final_sigmas_type="zero",
        use_karras_sigmas=True,
    )
    theirs.set_timesteps(12)
    sigmas = theirs.sigmas.double()
    start = y = torch.tensor([RECORDED["x"]], dtype=torch.float64) / 15
    for t, sigma in zip(theirs.timesteps, sigmas, strict=False):
        x = y * (1 + sigma**2).sqrt()
        y = theirs.step((x - denoise(x, sigma[None])) / sigma, t, y).prev_sample
    x = start * (1 + sigmas[0] ** 2).sqrt()
    end = SAMPLERS["uni_pc_bh2"].fn(denoise, x, sigmas)
    torch.testing.assert_close(end, y, rtol=0, atol=1e-6)


def test_the_step_of_ddpm_is_that_of_ancestral_euler() -> None:
    """Its posterior (arXiv 2006.11239, equation 7), over the variance-preserving latent."""
    s, noise = karras(6), Draws()
    x = start = torch.tensor([RECORDED["x"]], dtype=torch.float64)
    for high, low in itertools.pairwise(s):
        kept, kept_next = 1 / (1 + high**2), 1 / (1 + low**2)
        alpha, latent = kept / kept_next, x * kept.sqrt()
        eps = (x - denoise(x, high[None])) / high
        latent = (latent - (1 - alpha) * eps / (1 - kept).sqrt()) / alpha.sqrt()
        if low > 0:
            spread = ((1 - alpha) * (1 - kept_next) / (1 - kept)).sqrt()
            latent = latent + spread * noise.draw(tuple(x.shape))
        x = latent / kept_next.sqrt()
    torch.testing.assert_close(euler_ancestral(denoise, start, s, noise=Draws()), x)


def test_an_adaptive_step_is_as_good_as_asked_for() -> None:
    x = torch.tensor([RECORDED["x"]], dtype=torch.float64)
    calls = []
    ends = []
    for tolerance in (0.05, 1e-3, 1e-6):
        seen: list[Tensor] = []

        def counted(x: Tensor, sigma: Tensor, seen: list[Tensor] = seen) -> Tensor:
            seen.append(sigma)
            return denoise(x, sigma)

        ends.append(SAMPLERS["dpm_adaptive"].fn(counted, x, karras(12), tolerance=tolerance))
        calls.append(len(seen))
    assert calls[0] < calls[1] < calls[2]
    errors = [float((end - ends[-1]).abs().max()) for end in ends[:2]]
    assert errors[1] < 1e-3 < errors[0] or errors[1] < errors[0] / 5
