"""Samplers of later programs that remember earlier steps, and the one of consistency models.

Sources: crowsonkb/k-diffusion `sampling.py`; ComfyUI `comfy/k_diffusion/sampling.py`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ldm.sampling.denoiser import DenoiseFn
from ldm.sampling.noise import Noise
from ldm.sampling.samplers.table import OnStep, add_noise, levels, register

# Adams-Bashforth weights of the newest slope first, by the number of slopes.
_ADAMS = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)


@register("dpmpp_3m_sde", order=2, draws=True, options=("eta",))
def dpmpp_3m_sde(
    denoise: DenoiseFn,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise | None = None,
    on_step: OnStep | None = None,
    eta: float = 1.0,
) -> Tensor:
    """DPM-Solver++(3M) SDE: steps of third order from the last three estimates.

    The first two have fewer to go by, which leaves the whole at order 2.
    """
    s = sigmas.tolist()
    past: list[tuple[Tensor, float]] = []  # earlier estimates and their steps, the newest first
    for i in range(len(s) - 1):
        denoised = denoise(x, levels(x, s[i]))
        if s[i + 1] == 0:
            x = denoised.clone()
        else:
            step = math.log(s[i] / s[i + 1])
            drop = step * (1 + eta)
            x = torch.lerp(denoised, x, math.exp(-drop))
            x = x + _correction(denoised, past, step, drop)
            x = add_noise(x, noise, s[i + 1] * math.sqrt(-math.expm1(-2 * step * eta)))
            past = [(denoised, step), *past[:1]]
        if on_step:
            on_step(i, x, denoised)
    return x


def _correction(
    denoised: Tensor, past: list[tuple[Tensor, float]], step: float, drop: float
) -> Tensor:
    """What the slope of the estimates adds to a step, and their curvature where two are known."""
    if not past:
        return torch.zeros_like(denoised)
    phi_2 = math.expm1(-drop) / drop + 1
    slope = (denoised - past[0][0]) * (step / past[0][1])
    if len(past) == 1:
        return phi_2 * slope
    earlier = (past[0][0] - past[1][0]) * (step / past[1][1])
    near, far = past[0][1] / step, past[1][1] / step
    curve = (slope - earlier) / (near + far)
    phi_3 = phi_2 / drop - 0.5
    return phi_2 * (slope + curve * near) - phi_3 * curve


@register("ipndm", order=2)
def ipndm(
    denoise: DenoiseFn,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """Adams-Bashforth of up to four slopes (arXiv 2204.13902), whose weights are for even steps.

    On other grids they are not exact, which leaves the whole at order 2.
    """
    s = sigmas.tolist()
    slopes: list[Tensor] = []
    for i in range(len(s) - 1):
        denoised = denoise(x, levels(x, s[i]))
        slopes = [(x - denoised) / s[i], *slopes[:3]]
        if s[i + 1] == 0:
            x = denoised.clone()
        else:
            weights = _ADAMS[len(slopes) - 1]
            pairs = zip(weights, slopes, strict=True)
            slope = torch.stack([weight * own for weight, own in pairs]).sum(0)
            x = torch.add(x, slope, alpha=s[i + 1] - s[i])
        if on_step:
            on_step(i, x, denoised)
    return x


@register("res_multistep", order=2)
def res_multistep(
    denoise: DenoiseFn,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """Exponential integrator from the last two estimates (arXiv 2308.02157, algorithm 1)."""
    s = sigmas.tolist()
    previous: Tensor | None = None
    for i in range(len(s) - 1):
        denoised = denoise(x, levels(x, s[i]))
        if s[i + 1] == 0 or previous is None:
            x = torch.lerp(denoised, x, s[i + 1] / s[i])
        else:
            step = math.log(s[i] / s[i + 1])
            back = math.log(s[i] / s[i - 1]) / step  # where the estimate before was, below 0
            phi_1 = -math.expm1(-step) / step
            phi_2 = (1 - phi_1) / step
            own, earlier = phi_1 - phi_2 / back, phi_2 / back
            x = math.exp(-step) * x + step * (own * denoised + earlier * previous)
        previous = denoised
        if on_step:
            on_step(i, x, denoised)
    return x


@register("lcm", order=0, draws=True, grid="sgm_uniform")
def lcm(
    denoise: DenoiseFn,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """The sampler of consistency models (arXiv 2310.04378): the estimate with fresh noise.

    It converges to nothing in particular with another kind of model, which makes its order 0.
    """
    s = sigmas.tolist()
    for i in range(len(s) - 1):
        denoised = denoise(x, levels(x, s[i]))
        x = denoised.clone()
        if s[i + 1] > 0:
            x = add_noise(x, noise, s[i + 1])
        if on_step:
            on_step(i, x, denoised)
    return x
