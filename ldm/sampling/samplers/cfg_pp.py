"""CFG++ (arXiv 2406.08070): the image of the guided estimate, the noise of the unguided one.

`unguided` holds the estimate without the prompt of each call; without guidance they are plain
samplers. Source: ComfyUI `comfy/k_diffusion/sampling.py`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ldm.sampling.denoiser import DenoiseFn
from ldm.sampling.guidance import Unguided
from ldm.sampling.noise import Noise
from ldm.sampling.samplers.table import OnStep, add_noise, ancestral_step, levels, register


def _unguided(unguided: Unguided | None, denoised: Tensor) -> Tensor:
    return denoised if unguided is None or unguided.latest is None else unguided.latest


@register("euler_ancestral_cfg_pp", order=1, draws=True, options=("eta", "unguided"))
def euler_ancestral_cfg_pp(
    denoise: DenoiseFn,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise | None = None,
    on_step: OnStep | None = None,
    eta: float = 1.0,
    unguided: Unguided | None = None,
) -> Tensor:
    """Ancestral Euler steps of CFG++."""
    s = sigmas.tolist()
    for i in range(len(s) - 1):
        denoised = denoise(x, levels(x, s[i]))
        down, up = ancestral_step(s[i], s[i + 1], eta)
        x = torch.add(denoised, x - _unguided(unguided, denoised), alpha=down / s[i])
        if s[i + 1] > 0 and eta:
            x = add_noise(x, noise, up)
        if on_step:
            on_step(i, x, denoised)
    return x


@register("euler_cfg_pp", order=1, options=("unguided",))
def euler_cfg_pp(
    denoise: DenoiseFn,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise | None = None,
    on_step: OnStep | None = None,
    unguided: Unguided | None = None,
) -> Tensor:
    """Euler steps of CFG++."""
    return euler_ancestral_cfg_pp(
        denoise, x, sigmas, noise=noise, on_step=on_step, eta=0.0, unguided=unguided
    )


@register("dpmpp_2m_cfg_pp", order=2, options=("unguided",))
def dpmpp_2m_cfg_pp(
    denoise: DenoiseFn,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise | None = None,
    on_step: OnStep | None = None,
    unguided: Unguided | None = None,
) -> Tensor:
    """DPM-Solver++(2M) of CFG++; its correction is from the unguided estimate before."""
    s = sigmas.tolist()
    previous: Tensor | None = None
    for i in range(len(s) - 1):
        denoised = denoise(x, levels(x, s[i]))
        without = _unguided(unguided, denoised)
        shrink = s[i + 1] / s[i]
        x = torch.add(denoised, x - without, alpha=shrink)
        if previous is not None and s[i + 1] > 0:
            ratio = math.log(s[i] / s[i + 1]) / math.log(s[i - 1] / s[i])
            x = torch.add(x, denoised - previous, alpha=(1 - shrink) * ratio / 2)
        previous = without
        if on_step:
            on_step(i, x, denoised)
    return x
