"""Samplers of later programs that remember earlier steps, and the one of consistency models.

Sources: crowsonkb/k-diffusion `sampling.py`; ComfyUI `comfy/k_diffusion/sampling.py`.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
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


@register("ipndm_v", order=2)
def ipndm_v(
    denoise: DenoiseFn,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """`ipndm` with weights for uneven steps, as ComfyUI and diff-sampler have them.

    Those of three and four slopes are not the exact ones (`lms` has these): they agree with them
    only as steps become even.
    """
    s = sigmas.tolist()
    slopes: list[Tensor] = []
    for i in range(len(s) - 1):
        denoised = denoise(x, levels(x, s[i]))
        slopes = [(x - denoised) / s[i], *slopes[:3]]
        if s[i + 1] == 0:
            x = denoised.clone()
        else:
            first = i + 1 - len(slopes)
            steps = [s[k + 1] - s[k] for k in range(i, first - 1, -1)]
            for weight, slope in zip(_uneven_weights(steps), slopes, strict=True):
                x = torch.add(x, slope, alpha=weight * steps[0])
        if on_step:
            on_step(i, x, denoised)
    return x


def _uneven_weights(steps: list[float]) -> list[float]:
    """Of as many slopes as steps, the newest first."""
    if len(steps) == 1:
        return [1.0]
    h, h_1, h_2, h_3 = (*steps, 0.0, 0.0)[:4]
    weights = [1 + h / h_1 / 2, -h / h_1 / 2]
    if len(steps) == 2:
        return weights
    second = (1 - h * h / (3 * h_1 * (h_1 + h_2))) / 2
    weights = [weights[0] + second, weights[1] - (1 + h_1 / h_2) * second, second * h_1 / h_2]
    if len(steps) == 3:
        return weights
    third = (1 - h / (3 * (h + h_1))) / 2 + (1 - h / (2 * (h + h_1))) * h / (6 * (h + h_1 + h_2))
    third *= h * (h + h_1) * (h + h_1 + h_2) / (h_1 * (h_1 + h_2) * (h_1 + h_2 + h_3))
    far = h_1 * (h_1 + h_2) / (h_2 * (h_2 + h_3))
    return [
        weights[0] + third,
        weights[1] - (1 + h_1 / h_2 + far) * third,
        weights[2] + (h_1 / h_2 + far * (1 + h_2 / h_3)) * third,
        -third * far * h_1 / h_2,
    ]


@register("deis", order=2)
def deis(
    denoise: DenoiseFn,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """DEIS (arXiv 2204.13902, tAB-DEIS): up to three slopes, interpolated over time.

    Time is that of a variance-preserving process from sigma 0.002 at 0.001 to 80 at 1, as in
    ComfyUI and diff-sampler. The first step is Euler's, which leaves the whole at order 2.
    """
    s = sigmas.tolist()
    slopes: list[Tensor] = []
    for i in range(len(s) - 1):
        denoised = denoise(x, levels(x, s[i]))
        slopes = [(x - denoised) / s[i], *slopes[:2]]
        known = slopes if s[i + 1] > 0 else slopes[:1]
        weights = _over_time([s[i - k] for k in range(len(known))], s[i + 1])
        for weight, slope in zip(weights, known, strict=True):
            x = torch.add(x, slope, alpha=weight)
        if on_step:
            on_step(i, x, denoised)
    return x


def _over_time(sigmas: list[float], end: float) -> list[float]:
    """Integrals over sigma, from the first to `end`, of the Lagrange polynomials over time."""
    if len(sigmas) == 1:
        return [end - sigmas[0]]
    logs = [math.log1p(sigma**2) for sigma in (0.002, 80.0)]
    rise = 2 * (logs[0] / 1e-3 - logs[1]) / (1e-3 - 1)
    lowest = logs[1] - rise / 2

    def time(sigma: npt.ArrayLike) -> npt.NDArray[np.float64]:
        root: npt.NDArray[np.float64] = np.sqrt(lowest**2 + 2 * rise * np.log1p(np.square(sigma)))
        return (root - lowest) / rise

    nodes, weights = np.polynomial.legendre.leggauss(16)
    half = math.log(end / sigmas[0]) / 2  # in log sigma, for long steps
    at = sigmas[0] * np.exp(half * (1 + nodes))
    own, now = time(sigmas), time(at)
    share = half * weights * at
    return [
        float((share * np.prod([(now - m) / (n - m) for m in own if m != n], axis=0)).sum())
        for n in own
    ]


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
