"""Samplers without noise.

They solve d x / d sigma = (x - denoised) / sigma (arXiv 2206.00364, equation 3).
An Euler step from sigma to s is `lerp(denoised, x, s / sigma)`. Samplers that need no noise still
take `noise`, so that all have the same signature.
Source of the k-diffusion ones: crowsonkb/k-diffusion `sampling.py`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ldm.sampling.denoiser import DenoiseFn
from ldm.sampling.noise import Noise
from ldm.sampling.samplers.table import Churn, OnStep, add_noise, churned, levels, register


@register("euler", order=1, options=("churn",))
def euler(
    denoise: DenoiseFn,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise | None = None,
    on_step: OnStep | None = None,
    churn: Churn | None = None,
) -> Tensor:
    """Euler's method; on an increasing grid it turns an image into its noise (DDIM inversion)."""
    s = sigmas.tolist()
    for i in range(len(s) - 1):
        x, here = churned(x, s[i], len(s) - 1, churn, noise)
        denoised = denoise(x, levels(x, here))
        x = torch.lerp(denoised, x, s[i + 1] / here)
        if on_step:
            on_step(i, x, denoised)
    return x


@register("heun", order=2, calls=2, options=("churn",))
def heun(
    denoise: DenoiseFn,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise | None = None,
    on_step: OnStep | None = None,
    churn: Churn | None = None,
) -> Tensor:
    """Heun's method (arXiv 2206.00364, algorithm 1): two network calls per step."""
    s = sigmas.tolist()
    for i in range(len(s) - 1):
        x, here = churned(x, s[i], len(s) - 1, churn, noise)
        denoised = denoise(x, levels(x, here))
        x_next = torch.lerp(denoised, x, s[i + 1] / here)
        if s[i + 1] > 0:
            slope = (x - denoised).div_(here)
            slope += (x_next - denoise(x_next, levels(x, s[i + 1]))).div_(s[i + 1])
            x_next = torch.add(x, slope, alpha=(s[i + 1] - here) / 2)
        x = x_next
        if on_step:
            on_step(i, x, denoised)
    return x


@register("dpm_2", order=2, calls=2, options=("churn",))
def dpm_2(
    denoise: DenoiseFn,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise | None = None,
    on_step: OnStep | None = None,
    churn: Churn | None = None,
) -> Tensor:
    """Midpoint method, with the midpoint in log sigma; two network calls per step, like Heun's."""
    s = sigmas.tolist()
    for i in range(len(s) - 1):
        x, here = churned(x, s[i], len(s) - 1, churn, noise)
        denoised = denoise(x, levels(x, here))
        if s[i + 1] == 0:
            x = denoised.clone()
        else:
            mid = math.sqrt(here * s[i + 1])
            x_mid = torch.lerp(denoised, x, mid / here)
            slope = (x_mid - denoise(x_mid, levels(x, mid))).div_(mid)
            x = torch.add(x, slope, alpha=s[i + 1] - here)
        if on_step:
            on_step(i, x, denoised)
    return x


def adams_bashforth(nodes: list[float], start: float, end: float) -> list[float]:
    """Integrals from start to end of the Lagrange polynomials over at most four nodes.

    Gauss-Legendre with two points, which is exact for cubics.
    """
    half, centre = (end - start) / 2, (end + start) / 2
    points = (centre - half / math.sqrt(3), centre + half / math.sqrt(3))
    return [
        half * sum(math.prod((p - m) / (n - m) for m in nodes if m != n) for p in points)
        for n in nodes
    ]


@register("lms", order=2)
def lms(
    denoise: DenoiseFn,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise | None = None,
    on_step: OnStep | None = None,
    history: int = 4,
) -> Tensor:
    """Adams-Bashforth over sigma with up to four slopes, exact for uneven steps.

    The first step can only be Euler's, and its error limits the overall order to 2.
    """
    s = sigmas.tolist()
    slopes: list[Tensor] = []
    for i in range(len(s) - 1):
        denoised = denoise(x, levels(x, s[i]))
        slopes = [*slopes, (x - denoised).div_(s[i])][-history:]
        weights = adams_bashforth(s[i + 1 - len(slopes) : i + 1], s[i], s[i + 1])
        x = torch.add(x, slopes[-1], alpha=weights[-1])
        for slope, weight in zip(slopes[:-1], weights[:-1], strict=True):
            x.add_(slope, alpha=weight)
        if on_step:
            on_step(i, x, denoised)
    return x


PLMS_WEIGHTS = (
    (1.0,),
    (1.5, -0.5),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)
"""Adams-Bashforth weights for even steps, newest slope first."""


@register("plms", order=2, grid="ddim", start="vp")
def plms(
    denoise: DenoiseFn,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """PLMS (arXiv 2202.09778, algorithm 2): Adams-Bashforth over the slope, which is the noise.

    The weights are those for even steps although steps in sigma are uneven, hence order 2. The
    first step is Heun's and calls the network twice. Like the originals, it draws noise that it
    does not use, twice in the first step; and if that is the only step, its second call repeats the
    time step. `on_step` gets the estimate of the mixed slope, as the originals recorded it. Unlike
    the originals, it is correct for networks that predict v, because it works on denoised images;
    they took the raw output of any network for noise.
    """
    s = sigmas.tolist()
    slopes: list[Tensor] = []
    for i in range(len(s) - 1):
        slopes = [(x - denoise(x, levels(x, s[i]))).div_(s[i]), *slopes[:3]]
        add_noise(x, noise, 0.0)
        if i == 0 and s[1] > 0:
            x_next = torch.add(x, slopes[0], alpha=s[1] - s[0])
            again = s[min(1, len(s) - 2)]
            # Keep the variance-preserving latent the same at the level of the second call.
            x_next *= math.sqrt((1 + again**2) / (1 + s[1] ** 2))
            mixed = (x_next - denoise(x_next, levels(x, again))).div_(again)
            mixed.add_(slopes[0]).div_(2)
            add_noise(x, noise, 0.0)
        else:
            weights = PLMS_WEIGHTS[len(slopes) - 1]
            mixed = slopes[0] * weights[0]
            for slope, weight in zip(slopes[1:], weights[1:], strict=True):
                mixed.add_(slope, alpha=weight)
        x_next = torch.add(x, mixed, alpha=s[i + 1] - s[i])
        if on_step:
            on_step(i, x_next, torch.sub(x, mixed, alpha=s[i]))
        x = x_next
    return x


@register("dpmpp_2m", order=2)
def dpmpp_2m(
    denoise: DenoiseFn,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise | None = None,
    on_step: OnStep | None = None,
    euler_at_end: bool = False,
) -> Tensor:
    """DPM-Solver++(2M) (arXiv 2211.01095, algorithm 2); the first step and a step to 0 are Euler's.

    `euler_at_end` makes the last step first-order too, for stability with few steps.
    """
    s = sigmas.tolist()
    previous: Tensor | None = None
    for i in range(len(s) - 1):
        denoised = guess = denoise(x, levels(x, s[i]))
        last = i == len(s) - 2
        if previous is not None and s[i + 1] > 0 and not (last and euler_at_end):
            ratio = math.log(s[i] / s[i + 1]) / math.log(s[i - 1] / s[i])
            guess = torch.lerp(previous, denoised, 1 + ratio / 2)
        x = torch.lerp(guess, x, s[i + 1] / s[i])
        previous = denoised
        if on_step:
            on_step(i, x, denoised)
    return x


@register("dpm_solver", order=2, grid="dpm_solver", start="vp")
def dpm_solver(
    denoise: DenoiseFn,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """The originals' DPM-Solver (multistep, order 2, predicting z), which is DPM-Solver++(2M).

    With fewer than 15 steps the last is first-order (their `lower_order_final`). It draws no noise.
    """
    few = len(sigmas) - 1 < 15
    return dpmpp_2m(denoise, x, sigmas, noise=noise, on_step=on_step, euler_at_end=few)
