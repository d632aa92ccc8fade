"""UniPC: a predictor and a corrector that share one network call (arXiv 2302.04867)."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ldm.sampling.denoiser import DenoiseFn
from ldm.sampling.noise import Noise
from ldm.sampling.samplers.table import OnStep, levels, register

_ORDER = 3


@register("uni_pc", order=2)
def uni_pc(
    denoise: DenoiseFn,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise | None = None,
    on_step: OnStep | None = None,
    variant: Literal["bh1", "bh2"] = "bh1",
) -> Tensor:
    """UniPC of order 3 on denoised images, algorithms 5 to 8 of the paper; `variant` is its B(h).

    The last step is first-order and not corrected, which leaves the whole at order 2.
    """
    s = sigmas.tolist()
    count = len(s) - 1
    before = x  # at the level before, which the corrector starts from
    past: list[Tensor] = []  # estimates, the newest first
    for i in range(count):
        denoised = denoise(x, levels(x, s[i]))
        if i:
            order = min(_ORDER, i, count - i + 1)
            x = _step(before, past, s[i - order : i + 1], variant, denoised)
        past = [denoised, *past[: _ORDER - 1]]
        before = x
        order = min(_ORDER, i + 1, count - i)
        x = _step(x, past, s[i + 1 - order : i + 2], variant)
        if on_step:
            on_step(i, x, denoised)
    return x


@register("uni_pc_bh2", order=2)
def uni_pc_bh2(
    denoise: DenoiseFn,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """UniPC with B(h) = exp(h) - 1."""
    return uni_pc(denoise, x, sigmas, noise=noise, on_step=on_step, variant="bh2")


def _step(
    x: Tensor, past: list[Tensor], s: list[float], variant: str, here: Tensor | None = None
) -> Tensor:
    """x at s[-1] from x at s[-2]; `past` has the estimates at s[-2], s[-3] and so on.

    `here` is the estimate at s[-1] for the corrector.
    """
    *earlier, own, target = s
    if target == 0:
        return past[0].clone()
    h = math.log(own / target)
    places = [math.log(own / sigma) / h for sigma in reversed(earlier)]
    changes = [(old - past[0]) / at for old, at in zip(past[1:], places, strict=False)]
    if here is not None:
        places, changes = [*places, 1.0], [*changes, here - past[0]]
    x = torch.lerp(past[0], x, target / own)
    if not changes:
        return x
    scale = -h if variant == "bh1" else math.expm1(-h)
    for weight, change in zip(_weights(places, -h, scale), changes, strict=True):
        x = torch.sub(x, change, alpha=scale * weight)
    return x


def _weights(places: list[float], h: float, scale: float) -> list[float]:
    """Solve equation 5 of the paper; where one unknown is left, the authors take a half."""
    if len(places) == 1:
        return [0.5]
    phi = math.expm1(h) / h - 1
    right = []
    for k in range(1, len(places) + 1):
        right.append(phi * math.factorial(k) / scale)
        phi = phi / h - 1 / math.factorial(k + 1)
    powers = np.vander(places, increasing=True).T
    return [float(weight) for weight in np.linalg.solve(powers, np.array(right))]
