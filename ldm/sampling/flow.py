"""Noise levels of flow matching, where x = (1 - sigma) * z + sigma * noise and sigma is 0 to 1.

Liu et al. 2022 (arXiv 2209.03003); the shift is equation 23 of Esser et al. 2024
(arXiv 2403.03206).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ldm.sampling.denoiser import DenoiseFn
from ldm.sampling.noise import Noise
from ldm.sampling.samplers.table import OnStep, SampleFn, Sampler
from ldm.sampling.schedule import GRIDS, Grid, NoiseSchedule
from ldm.sampling.timesteps import Compat

TIMESTEPS = 1000
MOST_NOISE = 1 - 1e-4
"""The level that stands for 1 where a ratio of noise to signal is needed (as in ComfyUI)."""


@dataclass(frozen=True)
class FlowSchedule:
    """The noise levels of a network trained by flow matching; `shift` moves them towards noise."""

    shift: float = 3.0

    def __post_init__(self) -> None:
        if not 0 < self.shift < float("inf"):
            raise ValueError(f"shift must be a number above 0, not {self.shift}")

    def __len__(self) -> int:
        return TIMESTEPS

    @property
    def grids(self) -> Mapping[str, Grid]:
        """The grids that are known here, by name."""
        return FLOW_GRIDS

    def shifted(self, u: Tensor) -> Tensor:
        """Levels of 0 to 1, shifted: s u / (1 + (s - 1) u)."""
        return self.shift * u / (1 + (self.shift - 1) * u)

    @cached_property
    def sigmas(self) -> Tensor:
        """The levels of the time steps 1 to 1000, increasing, [1000] float64."""
        return self.shifted(torch.arange(1, TIMESTEPS + 1, dtype=torch.float64) / TIMESTEPS)

    def sigma(self, t: Tensor) -> Tensor:
        """The noise level at (fractional) time steps 0 to 1000, float64."""
        return self.shifted(t.double() / TIMESTEPS)

    def t(self, sigma: Tensor) -> Tensor:
        """The number that a network is shown for a noise level: 1000 * sigma, float32."""
        return sigma.float() * TIMESTEPS

    def alpha(self, sigma: Tensor) -> Tensor:
        """The factor of the signal at a noise level."""
        return 1 - sigma

    def noised(self, z: Tensor, sigma: float, noise: Tensor) -> Tensor:
        """z with noise of level sigma, of z's shape."""
        return torch.lerp(z, noise, sigma)


def _levels(schedule: FlowSchedule, first: float, last: float, count: int) -> Tensor:
    """`count` even levels, shifted."""
    return schedule.shifted(torch.linspace(first, last, count, dtype=torch.float64, device="cpu"))


def _to_zero(levels: Tensor) -> Tensor:
    return torch.cat([levels, levels.new_zeros(1)])


def flow_grid(schedule: FlowSchedule, steps: int, compat: Compat = "exact") -> Tensor:
    """Even between the highest and the lowest level, and shifted again, then 0: the original's.

    The lowest level is thus shifted twice. Source: Stability-AI/sd3.5 `sd3_infer.py`, get_sigmas;
    diffusers' FlowMatchEulerDiscreteScheduler does the same where its constructor gets the shift.
    """
    low, high = float(schedule.sigmas[0]), float(schedule.sigmas[-1])
    return _to_zero(_levels(schedule, high, low, steps))


def set_shift_grid(schedule: FlowSchedule, steps: int, compat: Compat = "exact") -> Tensor:
    """Even between 1 and 1/1000, shifted once, then 0: diffusers' after `set_shift`."""
    return _to_zero(_levels(schedule, 1, 1 / TIMESTEPS, steps))


def linear_grid(schedule: FlowSchedule, steps: int, compat: Compat = "exact") -> Tensor:
    """Even from 1 to 0, shifted once: diffusers' where the caller gives its own sigmas."""
    return _to_zero(_levels(schedule, 1, 1 / steps, steps))


def sgm_uniform_grid(schedule: FlowSchedule, steps: int, compat: Compat = "exact") -> Tensor:
    """As `flow_grid` with one step more, of which the last is left out: ComfyUI's."""
    return _to_zero(flow_grid(schedule, steps + 1)[:steps])


# Grids that need no more than the levels of the time steps.
_SHARED = ("simple", "karras", "exponential", "polyexponential", "kl_optimal", "linear_quadratic")
FLOW_GRIDS: dict[str, Any] = {
    "flow": flow_grid,
    "flow_set_shift": set_shift_grid,
    "flow_linear": linear_grid,
    "default": flow_grid,
    "sgm_uniform": sgm_uniform_grid,
    **{name: GRIDS[name] for name in _SHARED},
}


def fitting(sampler: Sampler, schedule: NoiseSchedule | FlowSchedule) -> Sampler:
    """A sampler for a schedule's kind of noise levels.

    A step without noise is the same for flow matching. One that adds noise, or mixes two estimates
    (CFG++), assumes z + sigma * noise, and so it computes in that form (see `in_ratio`).
    """
    if isinstance(schedule, NoiseSchedule):
        return sampler
    always = sampler.draws or "unguided" in sampler.options
    may = always or "eta" in sampler.options or "churn" in sampler.options
    fn = in_ratio(sampler.fn, 1.0 if always else 0.0) if may else sampler.fn
    return replace(sampler, fn=fn, grid="flow", start="ve")


def in_ratio(fn: SampleFn, eta: float) -> SampleFn:
    """The sampler `fn` for flow matching: it sees x / (1 - sigma) = z + ratio * noise.

    The ratio of noise to signal is sigma / (1 - sigma). `eta` is its default; with 0 no noise is
    added, and `fn` is called as it is.
    """

    def sample(
        denoise: DenoiseFn,
        x: Tensor,
        sigmas: Tensor,
        *,
        noise: Noise | None = None,
        on_step: OnStep | None = None,
        **options: Any,
    ) -> Tensor:
        if options.get("eta", eta) == 0 and "churn" not in options:
            return fn(denoise, x, sigmas, noise=noise, on_step=on_step, **options)
        levels = sigmas.clamp(max=MOST_NOISE)
        ratios = levels / (1 - levels)

        def denoise_ratio(x: Tensor, ratio: Tensor) -> Tensor:
            scale = 1 + ratio
            return denoise(x / scale.view(-1, *[1] * (x.ndim - 1)), ratio / scale)

        def report(index: int, x: Tensor, denoised: Tensor) -> None:
            if on_step:
                on_step(index, x / (1 + float(ratios[index + 1])), denoised)

        x = x * (1 + float(ratios[0]))
        x = fn(denoise_ratio, x, ratios, noise=noise, on_step=report, **options)
        return x / (1 + float(ratios[-1]))

    return sample
