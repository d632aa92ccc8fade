"""Samplers of later papers: Heun++, ER-SDE, restarts, and consistency by trajectories."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import torch
from torch import Tensor

from ldm.sampling.denoiser import DenoiseFn
from ldm.sampling.noise import Noise
from ldm.sampling.samplers.ode import heun
from ldm.sampling.samplers.table import Churn, OnStep, add_noise, churned, levels, register
from ldm.sampling.schedule import NoiseSchedule


@register("heunpp2", order=1, calls=3, options=("churn",))
def heunpp2(
    denoise: DenoiseFn,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise | None = None,
    on_step: OnStep | None = None,
    churn: Churn | None = None,
) -> Tensor:
    """Heun++: the mean of three slopes, whose weights are the noise levels they are taken at.

    The weights are those of a step of second order at the start alone, so the whole is of order 1.
    Source: ComfyUI `comfy/k_diffusion/sampling.py`.
    """
    s = sigmas.tolist()
    for i in range(len(s) - 1):
        x, here = churned(x, s[i], len(s) - 1, churn, noise)
        denoised = denoise(x, levels(x, here))
        slopes, ahead, at = [(x - denoised) / here], x, here
        for level in s[i + 1 : min(i + 3, len(s) - 1)]:
            ahead = torch.add(ahead, slopes[-1], alpha=level - at)
            slopes.append((ahead - denoise(ahead, levels(x, level))) / level)
            at = level
        weights = [level / (len(slopes) * s[0]) for level in s[i + 1 : i + len(slopes)]]
        weights = [1 - sum(weights), *weights]
        for weight, slope in zip(weights, slopes, strict=True):
            x = torch.add(x, slope, alpha=weight * (s[i + 1] - here))
        if on_step:
            on_step(i, x, denoised)
    return x


@register("er_sde", order=2, draws=True, options=("eta",))
def er_sde(
    denoise: DenoiseFn,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise | None = None,
    on_step: OnStep | None = None,
    eta: float = 1.0,
) -> Tensor:
    """ER-SDE-Solver-3 (arXiv 2309.06169, algorithm 3) with the authors' fifth noise scale.

    The first two steps have fewer estimates to go by, which leaves the whole at order 2. `eta`
    takes the scale to its power, so that 0 is the equation without noise. The integrals are exact
    to rounding, where ComfyUI's sums over 200 points are off by 0.5 %.
    """
    s = sigmas.tolist()
    estimates: list[Tensor] = []  # the newest first
    slopes: list[Tensor] = []
    for i in range(len(s) - 1):
        denoised = denoise(x, levels(x, s[i]))
        if s[i + 1] == 0:
            x = denoised.clone()
        else:
            scale = _noise_scale(s[i + 1], eta)
            ratio = scale / _noise_scale(s[i], eta)
            x = torch.lerp(denoised, x, ratio)
            step = s[i + 1] - s[i]
            first, second = (scale * part for part in _integrals(s[i + 1], s[i], eta))
            if estimates:
                slopes = [(denoised - estimates[0]) / (s[i] - s[i - 1]), *slopes[:1]]
                x = torch.add(x, slopes[0], alpha=step + first)
            if len(slopes) > 1:
                curve = (slopes[0] - slopes[1]) / ((s[i] - s[i - 2]) / 2)
                x = torch.add(x, curve, alpha=step**2 / 2 + second)
            up = math.sqrt(max(s[i + 1] ** 2 - (s[i] * ratio) ** 2, 0.0)) if eta else 0.0
            x = add_noise(x, noise, up)
            estimates = [denoised]
        if on_step:
            on_step(i, x, denoised)
    return x


def _noise_scale(sigma: float, eta: float) -> float:
    return float(sigma * (math.exp(sigma**0.3) + 10) ** eta)


def _integrals(low: float, high: float, eta: float) -> tuple[float, float]:
    """Of 1 and of (sigma - high), each over the noise scale, from low to high."""
    nodes, weights = np.polynomial.legendre.leggauss(24)
    half = math.log(high / low) / 2  # in log sigma, where they are smooth
    sigma = low * np.exp(half * (1 + nodes))
    parts = half * weights / (np.exp(sigma**0.3) + 10) ** eta
    return float(parts.sum()), float((parts * (sigma - high)).sum())


@register("restart", order=2, calls=2, draws=True, grid="karras")
def restart(
    denoise: DenoiseFn,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise | None = None,
    on_step: OnStep | None = None,
    restarts: bool = True,
) -> Tensor:
    """Heun's steps that go back up from sigma 0.1 to 2 with noise (arXiv 2306.14878).

    From 20 steps on there is one restart of 9 steps, from 36 on two of a quarter of the steps each;
    all are of Karras' grid between the ends of the one given. Fewer steps have no restart.
    Source: AUTOMATIC1111's `modules/sd_samplers_extra.py`.
    """
    done = 0

    def report(_: int, x: Tensor, denoised: Tensor) -> None:
        nonlocal done
        if on_step:
            on_step(done, x, denoised)
        done += 1

    before: float | None = None
    for leg in _legs(sigmas.tolist()) if restarts else [sigmas.tolist()]:
        if before is not None:
            x = add_noise(x.clone(), noise, math.sqrt(max(leg[0] ** 2 - before**2, 0.0)))
        levels_of_leg = torch.tensor(leg, dtype=torch.float64)
        x = heun(denoise, x, levels_of_leg, noise=noise, on_step=report)
        before = leg[-1]
    return x


def _legs(s: list[float]) -> list[list[float]]:
    """The levels of each descent, the first one's up to where it goes back up."""
    steps = len(s) - 1
    if steps < 20:
        return [s]
    again, times = (steps // 4, 2) if steps >= 36 else (9, 1)
    last = [level for level in s[-1:] if level == 0]
    whole = [*_karras(steps + 1 - again * times - len(last), s[-1 - len(last)], s[0]), *last]
    low = min(range(len(whole)), key=lambda i: abs(whole[i] - 0.1))
    top = min(range(len(whole)), key=lambda i: abs(whole[i] - 2))
    if not 0 <= top < low:
        return [s]
    back = _karras(again + 1, whole[low], whole[top])
    return [whole[: low + 1], *[back] * (times - 1), [*back, *whole[low + 1 :]]]


def _karras(count: int, low: float, high: float) -> list[float]:
    levels: list[float] = (np.linspace(high ** (1 / 7), low ** (1 / 7), count) ** 7).tolist()
    return levels


@register("tcd", order=0, draws=True, grid="tcd", start="vp", options=("eta", "schedule"))
def tcd(
    denoise: DenoiseFn,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise | None = None,
    on_step: OnStep | None = None,
    eta: float = 0.3,
    schedule: NoiseSchedule | None = None,
) -> Tensor:
    """Trajectory consistency (arXiv 2402.19159, algorithm 4): `eta` is the paper's gamma.

    Each step goes down to the time step (1 - eta) * t of the next one, and up to it with noise.
    `schedule` has the time steps. Order 0, for it needs a model that was made for it.
    """
    s = sigmas.tolist()
    schedule = schedule or _usual()
    for i in range(len(s) - 1):
        denoised = denoise(x, levels(x, s[i]))
        down = s[i + 1]
        if down > 0:
            t = schedule.t(torch.tensor([down], dtype=torch.float64))
            down = min(down, float(schedule.sigma(((1 - eta) * t).floor().double())))
        x = torch.lerp(denoised, x, down / s[i])
        up = math.sqrt(s[i + 1] ** 2 - down**2)
        if up > 1e-6 * s[i + 1] and i < len(s) - 2:
            x = add_noise(x, noise, up)
        if on_step:
            on_step(i, x, denoised)
    return x


@cache
def _usual() -> NoiseSchedule:
    """Stable Diffusion's."""
    return NoiseSchedule.from_betas("linear", 1000, 0.00085, 0.012)
