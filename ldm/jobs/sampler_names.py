"""Samplers and noise schedules by the names that other programs give them.

One table for flags, job files, JSON and metadata. Sources: AUTOMATIC1111's web UI
(modules/sd_samplers_kdiffusion.py, sd_schedulers.py), ComfyUI (comfy/samplers.py), diffusers
(its table of k-diffusion names) and k-diffusion (sampling.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from ldm.errors import JobError
from ldm.jobs.fields import GRID_NAMES, SAMPLER_NAMES
from ldm.jobs.options import nearest


@dataclass(frozen=True)
class Names:
    """What other programs call a sampler or a grid; () where they have none."""

    webui: tuple[str, ...] = ()
    comfy: tuple[str, ...] = ()
    diffusers: tuple[str, ...] = ()

    @property
    def all(self) -> tuple[str, ...]:
        """All of them."""
        return (*self.webui, *self.comfy, *self.diffusers)


SAMPLER_TITLES: Mapping[str, Names] = {
    "ddim": Names(("DDIM",), ("ddim",), ("DDIMScheduler",)),
    "plms": Names(("PLMS",), (), ("PNDMScheduler",)),
    "dpm_solver": Names(("DPM-Solver",)),
    "euler": Names(("Euler",), ("euler",), ("EulerDiscreteScheduler",)),
    "euler_ancestral": Names(
        ("Euler a",),
        ("euler_ancestral", "ddpm"),
        ("EulerAncestralDiscreteScheduler", "DDPMScheduler"),
    ),
    "heun": Names(("Heun",), ("heun",), ("HeunDiscreteScheduler",)),
    "dpm_2": Names(("DPM2",), ("dpm_2",), ("KDPM2DiscreteScheduler",)),
    "dpm_2_ancestral": Names(
        ("DPM2 a",), ("dpm_2_ancestral",), ("KDPM2AncestralDiscreteScheduler",)
    ),
    "lms": Names(("LMS",), ("lms",), ("LMSDiscreteScheduler",)),
    "dpmpp_2m": Names(("DPM++ 2M",), ("dpmpp_2m",), ("DPMSolverMultistepScheduler",)),
    "dpmpp_2s_ancestral": Names(("DPM++ 2S a",), ("dpmpp_2s_ancestral",)),
    "dpmpp_sde": Names(("DPM++ SDE",), ("dpmpp_sde", "dpmpp_sde_gpu"), ("DPMSolverSDEScheduler",)),
    "dpmpp_2m_sde": Names(("DPM++ 2M SDE",), ("dpmpp_2m_sde", "dpmpp_2m_sde_gpu")),
    "dpmpp_3m_sde": Names(("DPM++ 3M SDE",), ("dpmpp_3m_sde", "dpmpp_3m_sde_gpu")),
    "ipndm": Names((), ("ipndm",), ("IPNDMScheduler",)),
    "lcm": Names(("LCM",), ("lcm",), ("LCMScheduler",)),
    "res_multistep": Names((), ("res_multistep",)),
}
"""By our names; the first of `webui` is the one that metadata has."""

GRID_TITLES: Mapping[str, Names] = {
    "karras": Names(("Karras",), ("karras",)),
    "exponential": Names(("Exponential",), ("exponential",)),
    "polyexponential": Names(("Polyexponential",)),
    "default": Names(("Uniform", "Normal"), ("normal",)),
    "sgm_uniform": Names(("SGM Uniform",), ("sgm_uniform",)),
    "simple": Names(("Simple",), ("simple",)),
    "ddim_uniform": Names((), ("ddim_uniform",)),
    "kl_optimal": Names(("KL Optimal",), ("kl_optimal",)),
    "ays": Names(("Align Your Steps", "AYS")),
    "ays_sdxl": Names(("AYS SDXL",)),
    "linear_quadratic": Names((), ("linear_quadratic",)),
}
"""Names of grids, in the same way; the others are known by ours alone."""


def webui_title(sampler: str) -> str:
    """The name of a sampler in metadata: the web UI's, or else ours."""
    return next(iter(SAMPLER_TITLES[sampler].webui), sampler)


def webui_schedule(grid: str | None) -> str:
    """The web UI's name of a grid; "" where it has none or the grid is the sampler's own."""
    if grid is None or grid not in GRID_TITLES or grid == "default":
        return ""
    return next(iter(GRID_TITLES[grid].webui), "")


def sampler_fields(name: str) -> dict[str, Any]:
    """The sampler, and the grid where the name contains one, of any program's name.

    "DPM++ 2M Karras" is dpmpp_2m with the grid karras. An unknown name stays as it is.
    """
    if name in SAMPLER_NAMES:
        return {"sampler": name}
    known, key = _samplers(), _key(name)
    if key in known:
        return {"sampler": known[key]}
    for title, grid in _grids().items():
        if key.endswith(f" {title}") and key[: -len(title) - 1].strip() in known:
            return {"sampler": known[key[: -len(title) - 1].strip()], "grid": grid}
    return {"sampler": name}


def grid_of(name: str) -> str:
    """The grid of any program's name; an unknown name stays as it is."""
    return name if name in GRID_NAMES else _grids().get(_key(name), name)


def with_our_names(given: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a job with sampler and grid under our names.

    Raises JobError for a sampler that nobody knows, and where the name of the sampler contains
    another grid than the one that is given.
    """
    fields = dict(given)
    if isinstance(fields.get("grid"), str):
        fields["grid"] = grid_of(fields["grid"])
    if isinstance(fields.get("sampler"), str):
        named = sampler_fields(fields["sampler"])
        if named["sampler"] not in SAMPLER_NAMES:
            raise JobError(_unknown(fields["sampler"]))
        if fields.get("grid") is not None and named.get("grid", fields["grid"]) != fields["grid"]:
            raise JobError(
                f"--sampler {fields['sampler']!r} contains the grid {named['grid']}, and --grid is "
                f"{fields['grid']}; give one of them"
            )
        fields |= named
    return fields


def _unknown(name: str) -> str:
    names = [*SAMPLER_NAMES, *(title for names in SAMPLER_TITLES.values() for title in names.all)]
    known = ", ".join(SAMPLER_TITLES)
    return f"--sampler {name!r} is not known{nearest(name, names)} (known: {known})"


def _key(name: str) -> str:
    return " ".join(name.lower().split())


@cache
def _samplers() -> dict[str, str]:
    names = {_key(alias): main for alias, main in SAMPLER_NAMES.items()}
    for own, others in SAMPLER_TITLES.items():
        for title in others.all:
            names[_key(title)] = own
            if title.endswith("Scheduler"):
                names[_key(title.removesuffix("Scheduler"))] = own
        names[f"sample_{own}"] = own  # k-diffusion's function
    return names


@cache
def _grids() -> dict[str, str]:
    names = {_key(grid): grid for grid in GRID_NAMES}
    return names | {_key(t): own for own, others in GRID_TITLES.items() for t in others.all}
