"""k-diffusion's two DPM-Solvers that choose their own steps between the ends of a grid.

They predict the noise (arXiv 2206.00927) and end on the last level above 0, like k-diffusion's.
Source: crowsonkb/k-diffusion `sampling.py`, DPMSolver.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ldm.sampling.denoiser import DenoiseFn
from ldm.sampling.noise import Noise
from ldm.sampling.samplers.table import OnStep, add_noise, ancestral_step, levels, register

_SAFETY = 0.81  # a step whose size would have to fall below this share is taken again
Slope = Callable[[Tensor, Tensor], Tensor]


@register("dpm_fast", order=2, options=("eta",))
def dpm_fast(
    denoise: DenoiseFn,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise | None = None,
    on_step: OnStep | None = None,
    eta: float = 0.0,
) -> Tensor:
    """DPM-Solver-3 in even steps of log sigma, with as many network calls as the grid has steps.

    Its last step is of first or second order, which leaves the whole at order 2.
    """
    s = [sigma for sigma in sigmas.tolist() if sigma > 0]
    calls, done = len(sigmas) - 1, 0

    def slope(x: Tensor, sigma: Tensor) -> Tensor:
        nonlocal done
        denoised = denoise(x, sigma)
        if on_step:
            on_step(done, x, denoised)
        done += 1
        return (x - denoised) / _wide(sigma, x)

    if len(s) == 1:  # nowhere to go but to 0
        return torch.sub(x, slope(x, levels(x, s[0])), alpha=s[0])
    threes, rest = divmod(calls, 3)
    orders = [*[3] * threes, rest] if rest else [*[3] * (threes - 1), 2, 1]
    grid: list[float] = np.geomspace(s[0], s[-1], len(orders) + 1).tolist()
    for order, start, end in zip(orders, grid[:-1], grid[1:], strict=True):
        down, up = ancestral_step(start, end, eta)
        if down < grid[-1]:  # not below the end
            down, up = grid[-1], math.sqrt(max(end**2 - grid[-1] ** 2, 0.0))
        x = _stepped(slope, x, levels(x, start), levels(x, down), order)[-1]
        if up:
            x = add_noise(x, noise, up)
    return x


@register("dpm_adaptive", order=0, calls=3)
def dpm_adaptive(
    denoise: DenoiseFn,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise | None = None,
    on_step: OnStep | None = None,
    tolerance: float = 0.05,
) -> Tensor:
    """DPM-Solver-23: steps whose estimated error is below `tolerance`, relative; in no set number.

    Each image has its own steps, so that it does not depend on its batch. Steps are reported in
    proportion to the way covered. The error decides, not the number of steps, hence order 0.
    """
    s = [sigma for sigma in sigmas.tolist() if sigma > 0]
    count, reported = len(sigmas) - 1, 0
    estimate = x

    def slope(x: Tensor, sigma: Tensor) -> Tensor:
        nonlocal estimate
        estimate = denoise(x, sigma)
        return (x - estimate) / _wide(sigma, x)

    end = -math.log(s[-1])
    at = torch.full((len(x),), -math.log(s[0]), dtype=torch.float64, device="cpu")
    size = torch.full_like(at, 0.05)
    before = x
    length = max(end - float(at[0]), 1e-12)
    while bool((at < end - 1e-5).any()):
        goal = torch.minimum(at + size, torch.full_like(at, end))
        first, last = ((-t).exp().to(x) for t in (at, goal))
        low, high = _stepped(slope, x, first, last, 3)
        factor = _factor(low, high, before, tolerance)
        taken = (factor >= _SAFETY) & (at < end - 1e-5)
        chosen = _wide(taken, x).to(x.device)
        x, before = torch.where(chosen, high, x), torch.where(chosen, low, before)
        at = torch.where(taken, goal, at)
        size = size * factor
        share = 1 - (end - float(at.min())) / length
        while on_step and reported < min(int(share * count), count - 1):
            on_step(reported, x, estimate)
            reported += 1
    if len(s) == 1:
        x = x - slope(x, levels(x, s[0])) * s[0]
    for i in range(reported, count) if on_step else ():
        assert on_step is not None
        on_step(i, x, estimate)
    return x


def _factor(low: Tensor, high: Tensor, before: Tensor, tolerance: float) -> Tensor:
    """By how much the step of each image is to grow, [B]; k-diffusion's controller by integral."""
    allowed = torch.maximum(low.abs(), before.abs()).mul(tolerance).clamp(min=tolerance * 0.156)
    error = ((low - high) / allowed).flatten(1).pow(2).mean(1).sqrt().double().cpu()
    return 1 + ((1 / (error + 1e-8)) ** (1 / 3) - 1).atan()


def _stepped(
    slope: Slope, x: Tensor, start: Tensor, end: Tensor, order: int
) -> tuple[Tensor, Tensor]:
    """x at the levels `end` [B] from x at `start` [B], by DPM-Solver of one order less and of this.

    For order 1 both are the same.
    """
    h, s_end = _wide((start / end).log(), x), _wide(end, x)
    own = slope(x, start)
    first = x - s_end * h.expm1() * own
    if order == 1:
        return first, first
    share = 1 / order  # of the way, where it looks next
    middle = start * (end / start) ** share
    x_middle = x - _wide(middle, x) * (share * h).expm1() * own
    change = slope(x_middle, middle) - own
    second = first - s_end / (2 * share) * h.expm1() * change
    if order == 2:
        return first, second
    late, way = start * (end / start) ** (2 / 3), 2 / 3 * h
    x_late = x - _wide(late, x) * (way.expm1() * own + 2 * (way.expm1() / way - 1) * change)
    change = slope(x_late, late) - own
    return second, first - s_end * 1.5 * (h.expm1() / h - 1) * change


def _wide(values: Tensor, like: Tensor) -> Tensor:
    """[B] as [B,1,1,...]."""
    return values.view(-1, *[1] * (like.ndim - 1))
