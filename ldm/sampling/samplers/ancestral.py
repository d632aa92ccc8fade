"""Samplers that add noise: each step denoises below its target level and adds noise up to it.

They all solve d x = (x - denoised) / sigma d sigma (arXiv 2206.00364, equation 3); a step without
noise from sigma to s is then `lerp(denoised, x, s / sigma)`.
Source of the k-diffusion ones: crowsonkb/k-diffusion `sampling.py`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ldm.sampling.denoiser import DenoiseFn
from ldm.sampling.noise import Noise
from ldm.sampling.samplers.table import OnStep, add_noise, ancestral_step, levels, register


@register("euler_ancestral", order=1, draws=True, options=("eta",))
def euler_ancestral(
    denoise: DenoiseFn,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise | None = None,
    on_step: OnStep | None = None,
    eta: float = 1.0,
) -> Tensor:
    """Ancestral sampling with Euler steps."""
    s = sigmas.tolist()
    for i in range(len(s) - 1):
        denoised = denoise(x, levels(x, s[i]))
        down, up = ancestral_step(s[i], s[i + 1], eta)
        x = torch.lerp(denoised, x, down / s[i])
        if s[i + 1] > 0:
            x = add_noise(x, noise, up)
        if on_step:
            on_step(i, x, denoised)
    return x


@register("ddim", order=1, grid="ddim", start="vp", options=("eta",))
def ddim(
    denoise: DenoiseFn,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise | None = None,
    on_step: OnStep | None = None,
    eta: float = 0.0,
) -> Tensor:
    """DDIM (arXiv 2010.02502, equation 12), which is ancestral Euler with eta 0 by default.

    Like the originals, DDPM included, it also consumes noise in a step to 0.
    """
    x = euler_ancestral(denoise, x, sigmas, noise=noise, on_step=on_step, eta=eta)
    return x if sigmas[-1] > 0 else add_noise(x, noise, 0.0)


@register("dpm_2_ancestral", order=2, calls=2, draws=True, options=("eta",))
def dpm_2_ancestral(
    denoise: DenoiseFn,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise | None = None,
    on_step: OnStep | None = None,
    eta: float = 1.0,
) -> Tensor:
    """Ancestral sampling with midpoint steps, the midpoint taken in log sigma."""
    s = sigmas.tolist()
    for i in range(len(s) - 1):
        denoised = denoise(x, levels(x, s[i]))
        down, up = ancestral_step(s[i], s[i + 1], eta)
        if down == 0:
            x = denoised.clone()
        else:
            mid = math.sqrt(s[i] * down)
            x_mid = torch.lerp(denoised, x, mid / s[i])
            slope = (x_mid - denoise(x_mid, levels(x, mid))).div_(mid)
            x = torch.add(x, slope, alpha=down - s[i])
        if s[i + 1] > 0:
            x = add_noise(x, noise, up)
        if on_step:
            on_step(i, x, denoised)
    return x


@register("dpmpp_2s_ancestral", order=2, calls=2, draws=True, options=("eta",))
def dpmpp_2s_ancestral(
    denoise: DenoiseFn,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise | None = None,
    on_step: OnStep | None = None,
    eta: float = 1.0,
) -> Tensor:
    """Ancestral sampling with DPM-Solver++(2S) steps (arXiv 2211.01095, algorithm 1)."""
    s = sigmas.tolist()
    for i in range(len(s) - 1):
        denoised = denoise(x, levels(x, s[i]))
        down, up = ancestral_step(s[i], s[i + 1], eta)
        if down > 0:
            mid = math.sqrt(s[i] * down)
            denoised = denoise(torch.lerp(denoised, x, mid / s[i]), levels(x, mid))
        x = torch.lerp(denoised, x, down / s[i])
        if s[i + 1] > 0:
            x = add_noise(x, noise, up)
        if on_step:
            on_step(i, x, denoised)
    return x


@register("dpmpp_sde", order=2, calls=2, draws=True, options=("eta",))
def dpmpp_sde(
    denoise: DenoiseFn,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise | None = None,
    on_step: OnStep | None = None,
    eta: float = 1.0,
) -> Tensor:
    """DPM-Solver++ (stochastic): noise at the midpoint and at the end of each step.

    The two noises are independent, whereas k-diffusion ties them to one Brownian path by default.
    """
    s = sigmas.tolist()
    for i in range(len(s) - 1):
        denoised = denoise(x, levels(x, s[i]))
        if s[i + 1] > 0:
            mid = math.sqrt(s[i] * s[i + 1])
            down, up = ancestral_step(s[i], mid, eta)
            x_mid = add_noise(torch.lerp(denoised, x, down / s[i]), noise, up)
            denoised = denoise(x_mid, levels(x, mid))
            down, up = ancestral_step(s[i], s[i + 1], eta)
            x = add_noise(torch.lerp(denoised, x, down / s[i]), noise, up)
        else:
            x = denoised.clone()
        if on_step:
            on_step(i, x, denoised)
    return x


@register("dpmpp_2m_sde", order=2, draws=True, options=("eta",))
def dpmpp_2m_sde(
    denoise: DenoiseFn,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise | None = None,
    on_step: OnStep | None = None,
    eta: float = 1.0,
) -> Tensor:
    """DPM-Solver++(2M) SDE, midpoint form (arXiv 2211.01095, equation 14)."""
    s = sigmas.tolist()
    previous: Tensor | None = None
    for i in range(len(s) - 1):
        denoised = denoise(x, levels(x, s[i]))
        if s[i + 1] == 0:
            x = denoised.clone()
        else:
            guess = denoised
            if previous is not None:
                ratio = math.log(s[i] / s[i + 1]) / math.log(s[i - 1] / s[i])
                guess = torch.lerp(previous, denoised, 1 + ratio / 2)
            shrink = s[i + 1] / s[i]
            x = torch.lerp(guess, x, shrink ** (1 + eta))
            x = add_noise(x, noise, s[i + 1] * math.sqrt(1 - shrink ** (2 * eta)))
        previous = denoised
        if on_step:
            on_step(i, x, denoised)
    return x
