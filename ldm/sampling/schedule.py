"""Noise schedules of diffusion models, and the grids of noise levels that samplers follow.

A noise level is `sigma`, the ratio of noise to signal: x = z + sigma * noise. The originals'
variance-preserving latent is x / sqrt(1 + sigma**2), so alphas_cumprod = 1 / (1 + sigma**2).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ldm.errors import UsageError
from ldm.sampling.betas import betas
from ldm.sampling.quantiles import beta_quantiles
from ldm.sampling.timesteps import Compat, Floats, ddim_timesteps, lcm_timesteps, quad_timesteps

Grid = Callable[[Any, int, Compat], Tensor]
"""(schedule, steps, compat) -> levels; a grid knows the schedules that it is for."""

SNAP = 1e-3
"""Distance within which a time step computed from a sigma is rounded to a whole number."""


@dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """The noise levels that a network was trained on, one per time step.

    `alphas_cumprod` is a float64 tensor [T] on the CPU, strictly decreasing within (0, 1), even
    when rounded to float32.
    """

    alphas_cumprod: Tensor

    def __post_init__(self) -> None:
        a = self.alphas_cumprod
        if a.ndim != 1 or len(a) < 2 or a.dtype != torch.float64 or a.device.type != "cpu":
            raise ValueError("alphas_cumprod must be a float64 vector on the CPU, of length >= 2")
        a = self.rounded
        if not (bool((a > 0).all()) and bool((a < 1).all()) and bool((a.diff() < 0).all())):
            raise ValueError("alphas_cumprod must decrease strictly, between 1 and 0")

    @classmethod
    def from_betas(
        cls,
        schedule: str = "linear",
        timesteps: int = 1000,
        linear_start: float = 1e-4,
        linear_end: float = 2e-2,
        cosine_s: float = 8e-3,
    ) -> NoiseSchedule:
        """The schedule of a YAML: parameters and defaults of the originals' DDPM class."""
        steps = betas(schedule, timesteps, linear_start, linear_end, cosine_s)
        return cls(torch.from_numpy(np.cumprod(1 - steps)))

    @classmethod
    def from_alphas_cumprod(cls, alphas_cumprod: Tensor) -> NoiseSchedule:
        """The schedule of a checkpoint's own buffer, [T], any float type and device."""
        return cls(alphas_cumprod.detach().to(device="cpu", dtype=torch.float64))

    def __len__(self) -> int:
        return len(self.alphas_cumprod)

    @property
    def grids(self) -> Mapping[str, Grid]:
        """The grids that are known here, by name."""
        return GRIDS

    @cached_property
    def rounded(self) -> Tensor:
        """alphas_cumprod as stored in a checkpoint: float32 values as float64 numbers [T].

        The originals' samplers used these values. At the first time step, 1 - alphas_cumprod is
        8.5e-4, so the rounding changes sigma by a relative 3e-5, more than all later round-off.
        """
        return self.alphas_cumprod.float().double()

    @cached_property
    def sigmas(self) -> Tensor:
        """Noise levels by time step, increasing, [T] float64, of the `rounded` alphas_cumprod."""
        return ((1 - self.rounded) / self.rounded).sqrt()

    @cached_property
    def zero_snr(self) -> NoiseSchedule:
        """The same with no signal left at the last time step (arXiv 2305.08891, algorithm 1).

        In the place of 0 it has 2**-24, as diffusers' Euler has: sigma 4096.
        """
        return self._without_signal(2.0**-24)

    @cached_property
    def zero_snr_limit(self) -> NoiseSchedule:
        """`zero_snr` for samplers of the variance-preserving latent: sigma 1e6, near its limit."""
        return self._without_signal(1e-12)

    def _without_signal(self, least: float) -> NoiseSchedule:
        root = self.rounded.sqrt()
        root = (root - root[-1]) * (root[0] / (root[0] - root[-1]))
        return NoiseSchedule(root.square().clamp(min=least))

    @cached_property
    def _log_sigmas(self) -> dict[torch.device, Tensor]:
        return {}

    def _table(self, device: torch.device) -> Tensor:
        tables = self._log_sigmas
        if device not in tables:
            # Metal has no float64; float32 gives a time step to about 1e-4, well within SNAP.
            dtype = torch.float32 if device.type == "mps" else torch.float64
            tables[device] = self.sigmas.log().to(device=device, dtype=dtype)
        return tables[device]

    def sigma(self, t: Tensor) -> Tensor:
        """The noise level at (fractional) time steps, linear in log sigma between whole ones.

        t [...] in 0..T-1 (clamped) -> sigma [...] float64 on t's device (float32 on Metal).
        """
        table = self._table(t.device)
        at = t.to(table.dtype).clamp(0, len(self) - 1)
        low = at.long().clamp(max=len(self) - 2)
        return torch.lerp(table[low], table[low + 1], at - low).exp()

    def t(self, sigma: Tensor) -> Tensor:
        """The time step of a noise level, the inverse of `sigma`.

        sigma [...] -> t [...] float32 in 0..T-1, rounded if within 1e-3 of a whole number (so that
        the level of a step gives exactly that step). Levels outside the range are clamped.
        """
        table = self._table(sigma.device)
        log = sigma.to(table.dtype).log().contiguous()
        high = torch.searchsorted(table, log).clamp(1, len(self) - 1)
        start, end = table[high - 1], table[high]
        t = high - 1 + ((log - start) / (end - start)).clamp(0, 1)
        whole = t.round()
        return torch.where((t - whole).abs() < SNAP, whole, t).float()

    def alpha(self, sigma: Tensor) -> Tensor:
        """The factor of the signal at a noise level: 1, because x = z + sigma * noise here."""
        return torch.ones_like(sigma)

    def noised(self, z: Tensor, sigma: float, noise: Tensor) -> Tensor:
        """z with noise of level sigma: alpha * z + sigma * noise, of z's shape."""
        return torch.add(z, noise, alpha=sigma)


class Schedule(Protocol):
    """The noise levels of a network: these of diffusion, or those of `ldm.sampling.flow`."""

    def __len__(self) -> int: ...

    @property
    def grids(self) -> Mapping[str, Grid]:
        """The grids that are known here, by name."""

    @property
    def sigmas(self) -> Tensor:
        """Noise levels by time step, increasing, float64."""

    def sigma(self, t: Tensor) -> Tensor:
        """The noise level at time steps."""

    def t(self, sigma: Tensor) -> Tensor:
        """What a network is shown for a noise level."""

    def alpha(self, sigma: Tensor) -> Tensor:
        """The factor of the signal at a noise level."""

    def noised(self, z: Tensor, sigma: float, noise: Tensor) -> Tensor:
        """z with noise of level sigma."""


def _falling(schedule: NoiseSchedule, rising_t: Floats) -> Tensor:
    """The grid of these time steps; it ends at alphas_cumprod[0], as alphas_prev did."""
    levels = schedule.sigma(torch.from_numpy(rising_t)).flip(0)
    return torch.cat([levels, schedule.sigmas[:1]])


def _to_zero(levels: Tensor) -> Tensor:
    return torch.cat([levels, levels.new_zeros(1)])


def _linspace(start: float, end: float, count: int) -> Tensor:
    return torch.linspace(start, end, count, dtype=torch.float64, device="cpu")


def ddim_grid(schedule: NoiseSchedule, steps: int, compat: Compat = "exact") -> Tensor:
    """Evenly spaced whole time steps, ending at alphas_cumprod[0]; see `ddim_timesteps`."""
    return _falling(schedule, ddim_timesteps(len(schedule), steps, compat))


def quad_grid(schedule: NoiseSchedule, steps: int, compat: Compat = "exact") -> Tensor:
    """Time steps denser near the image, ending at alphas_cumprod[0]; see `quad_timesteps`."""
    return _falling(schedule, quad_timesteps(len(schedule), steps, compat))


def dpm_solver_grid(schedule: NoiseSchedule, steps: int, compat: Compat = "exact") -> Tensor:
    """Even in continuous time ("time_uniform"), from the last time step to the first, inclusive.

    Between time steps log(alphas_cumprod) is linear. Source: the originals' DPM-Solver
    (arXiv 2206.00927, appendix D.4), NoiseScheduleVP("discrete").
    """
    at = _linspace(len(schedule) - 1, 0, steps + 1).numpy()
    log_ac = np.interp(at, np.arange(len(schedule)), schedule.rounded.log().numpy())
    return torch.from_numpy(np.sqrt(np.expm1(-log_ac)))


def default_grid(schedule: NoiseSchedule, steps: int, compat: Compat = "exact") -> Tensor:
    """Even in time from the last step to the first, then 0: k-diffusion's get_sigmas."""
    return _to_zero(schedule.sigma(_linspace(len(schedule) - 1, 0, steps)))


def karras_grid(
    schedule: NoiseSchedule, steps: int, compat: Compat = "exact", rho: float = 7.0
) -> Tensor:
    """Even in sigma**(1/rho) over the schedule's range, then 0: arXiv 2206.00364, equation 5."""
    low, high = float(schedule.sigmas[0]), float(schedule.sigmas[-1])
    return _to_zero(_linspace(high ** (1 / rho), low ** (1 / rho), steps) ** rho)


def exponential_grid(schedule: NoiseSchedule, steps: int, compat: Compat = "exact") -> Tensor:
    """Even in log sigma over the schedule's range, then 0."""
    low, high = float(schedule.sigmas[0]), float(schedule.sigmas[-1])
    return _to_zero(_linspace(math.log(high), math.log(low), steps).exp())


def sgm_uniform_grid(schedule: NoiseSchedule, steps: int, compat: Compat = "exact") -> Tensor:
    """Even in time from the last step, without the first one, then 0: generative-models'.

    With compat "sgm" the time steps are whole numbers, as there.
    """
    t = _linspace(len(schedule) - 1, 0, steps + 1)[:-1]
    return _to_zero(schedule.sigma(t.floor() if compat == "sgm" else t))


def turbo_grid(schedule: NoiseSchedule, steps: int, compat: Compat = "exact") -> Tensor:
    """The last time step and each a tenth before it, then 0: generative-models' demo of SDXL-Turbo.

    Its up to 4 steps end far from the image; more than 10 are spread evenly.
    """
    apart = len(schedule) / max(steps, _TURBO)
    chosen = len(schedule) - 1 - (np.arange(steps) * apart).astype(int)
    return _to_zero(schedule.sigmas[torch.from_numpy(chosen)])


def simple_grid(schedule: NoiseSchedule, steps: int, compat: Compat = "exact") -> Tensor:
    """Time steps at even distances from the last, then 0: ComfyUI's simple_scheduler."""
    chosen = len(schedule) - 1 - (np.arange(steps) * (len(schedule) / steps)).astype(int)
    return _to_zero(schedule.sigmas[torch.from_numpy(chosen)])


def ddim_uniform_grid(schedule: NoiseSchedule, steps: int, compat: Compat = "exact") -> Tensor:
    """The time steps of `ddim`, then 0 instead of the first: ComfyUI's ddim_scheduler.

    ComfyUI takes one more step where `steps` does not divide the schedule's; this takes `steps`.
    """
    return _to_zero(ddim_grid(schedule, steps)[:-1])


def leading_grid(schedule: NoiseSchedule, steps: int, compat: Compat = "exact") -> Tensor:
    """diffusers' timestep_spacing "leading" with steps_offset 1, then 0."""
    t = np.arange(steps - 1, -1, -1.0) * (len(schedule) // steps)
    offset = min(1, len(schedule) - 1 - t[0])  # none where all time steps are taken
    return _to_zero(schedule.sigma(torch.from_numpy(t + offset)))


def trailing_grid(schedule: NoiseSchedule, steps: int, compat: Compat = "exact") -> Tensor:
    """diffusers' timestep_spacing "trailing", then 0: begins at the very last time step."""
    t = np.round(np.arange(steps) * (-len(schedule) / steps) + len(schedule)) - 1
    return _to_zero(schedule.sigma(torch.from_numpy(t)))


def lcm_grid(schedule: NoiseSchedule, steps: int, compat: Compat = "exact") -> Tensor:
    """Time steps that consistency models were made with, then 0; see `lcm_timesteps`."""
    return _to_zero(schedule.sigma(torch.from_numpy(lcm_timesteps(len(schedule), steps))))


def tcd_grid(schedule: NoiseSchedule, steps: int, compat: Compat = "exact") -> Tensor:
    """The time steps of `lcm`, ending at alphas_cumprod[0]: diffusers' TCDScheduler.

    Where the last time step is that level, which needs hundreds of steps, the end is 0.
    """
    levels, end = lcm_grid(schedule, steps)[:-1], schedule.sigmas[:1]
    return torch.cat([levels, end if levels[-1] > end else torch.zeros_like(end)])


def beta_grid(schedule: NoiseSchedule, steps: int, compat: Compat = "exact") -> Tensor:
    """Time steps at quantiles of the beta distribution, then 0: ComfyUI's beta_scheduler.

    Whole time steps, but where they repeat, ComfyUI takes fewer steps and this takes fractions.
    Source: arXiv 2407.12173.
    """
    t = beta_quantiles(1 - np.arange(steps) / steps) * (len(schedule) - 1)
    whole = np.rint(t)
    t = whole if len(np.unique(whole)) == steps else t
    return _to_zero(schedule.sigma(torch.from_numpy(t)))


def beta_sigmas_grid(schedule: NoiseSchedule, steps: int, compat: Compat = "exact") -> Tensor:
    """Levels at quantiles of the beta distribution over their range, then 0.

    The web UI's "Beta" and diffusers' use_beta_sigmas.
    """
    low, high = float(schedule.sigmas[0]), float(schedule.sigmas[-1])
    shares = beta_quantiles(1 - np.linspace(0, 1, steps))
    return _to_zero(torch.from_numpy(low + shares * (high - low)))


def kl_optimal_grid(schedule: NoiseSchedule, steps: int, compat: Compat = "exact") -> Tensor:
    """Even in the arc tangent of sigma, then 0: arXiv 2404.14507, theorem 3.1."""
    low, high = float(schedule.sigmas[0]), float(schedule.sigmas[-1])
    return _to_zero(_linspace(math.atan(high), math.atan(low), steps).tan())


def ays_grid(schedule: NoiseSchedule, steps: int, compat: Compat = "exact") -> Tensor:
    """Align Your Steps for Stable Diffusion 1, between its levels linear in log sigma, then 0."""
    return _through(AYS_SD1, steps)


def ays_sdxl_grid(schedule: NoiseSchedule, steps: int, compat: Compat = "exact") -> Tensor:
    """Align Your Steps for SDXL, in the same way."""
    return _through(AYS_SDXL, steps)


def linear_quadratic_grid(schedule: NoiseSchedule, steps: int, compat: Compat = "exact") -> Tensor:
    """Half of the steps in the first 2.5 % of the noise, evenly, then in growing ones to 0.

    Source: ComfyUI's linear_quadratic_schedule, from Genmo's Mochi.
    """
    high = float(schedule.sigmas[-1])
    if steps == 1:
        return _to_zero(schedule.sigmas[-1:])
    linear = steps // 2
    rest = steps - linear
    ahead = linear - _LINEAR_SHARE * steps
    square = ahead / (linear * rest**2)
    slope = _LINEAR_SHARE / linear - 2 * ahead / rest**2
    offset = square * linear**2
    i = np.arange(linear, steps)
    taken = [*(np.arange(linear) * _LINEAR_SHARE / linear), *(square * i**2 + slope * i + offset)]
    return _to_zero(high * (1 - torch.from_numpy(np.array(taken))))


def _through(known: tuple[float, ...], steps: int) -> Tensor:
    """`steps` levels through known ones, linear in log sigma, then 0: the web UI's way."""
    at = np.linspace(0, 1, steps)
    logs = np.interp(at, np.linspace(0, 1, len(known)), np.log(known))
    return _to_zero(torch.from_numpy(np.exp(logs)))


_LINEAR_SHARE = 0.025
_TURBO = 10  # steps from the last time step to the first
# The levels that NVIDIA published (research.nvidia.com/labs/toronto-ai/AlignYourSteps).
AYS_SD1 = (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029)
AYS_SDXL = (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029)

GRIDS: dict[str, Grid] = {
    "ddim": ddim_grid,
    "quad": quad_grid,
    "dpm_solver": dpm_solver_grid,
    "default": default_grid,
    "karras": karras_grid,
    "exponential": exponential_grid,
    "polyexponential": exponential_grid,  # k-diffusion's with its default rho 1
    "simple": simple_grid,
    "sgm_uniform": sgm_uniform_grid,
    "turbo": turbo_grid,
    "ddim_uniform": ddim_uniform_grid,
    "linspace": default_grid,
    "leading": leading_grid,
    "trailing": trailing_grid,
    "beta": beta_grid,
    "beta_sigmas": beta_sigmas_grid,
    "lcm": lcm_grid,
    "tcd": tcd_grid,
    "kl_optimal": kl_optimal_grid,
    "ays": ays_grid,
    "ays_sdxl": ays_sdxl_grid,
    "linear_quadratic": linear_quadratic_grid,
}


def make_grid(name: str, schedule: Schedule, steps: int, compat: Compat = "exact") -> Tensor:
    """The noise levels sigma_0 > ... > sigma_N that a sampler follows, float64 [N+1] on the CPU.

    N is `steps` (1..T); with compat "ldm" it is the originals' number, which may differ for
    "ddim" and "quad". Raises UsageError for an unknown name or a number out of range.
    """
    grids = schedule.grids
    if name not in grids:
        raise UsageError(f"unknown grid {name!r} for this model; known are {', '.join(grids)}")
    if steps < 1 or (steps > len(schedule) and compat != "ldm"):
        raise UsageError(f"steps must be 1 to {len(schedule)}, not {steps}")
    return grids[name](schedule, steps, compat)
