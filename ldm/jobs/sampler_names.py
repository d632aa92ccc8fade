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
from ldm.jobs.diffusers_names import diffusers_fields, is_diffusers
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
    "uni_pc": Names(("UniPC",), ("uni_pc",)),
    "uni_pc_bh2": Names((), ("uni_pc_bh2",), ("UniPCMultistepScheduler",)),
    "dpm_fast": Names(("DPM fast",), ("dpm_fast",)),
    "dpm_adaptive": Names(("DPM adaptive",), ("dpm_adaptive",)),
    "heunpp2": Names(("HeunPP2",), ("heunpp2",)),
    "ipndm_v": Names((), ("ipndm_v",)),
    "deis": Names(("DEIS",), ("deis",), ("DEISMultistepScheduler",)),
    "er_sde": Names((), ("er_sde",)),
    "restart": Names(("Restart",)),
    "tcd": Names(("TCD",), ("tcd",), ("TCDScheduler",)),
    "euler_cfg_pp": Names((), ("euler_cfg_pp",)),
    "euler_ancestral_cfg_pp": Names((), ("euler_ancestral_cfg_pp",)),
    "dpmpp_2m_cfg_pp": Names((), ("dpmpp_2m_cfg_pp",)),
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
    "beta": Names((), ("beta",)),
    "beta_sigmas": Names(("Beta",)),
    "linspace": Names((), (), ("linspace",)),
    "leading": Names((), (), ("leading",)),
    "trailing": Names((), (), ("trailing",)),
}
"""Names of grids, in the same way; the others are known by ours alone."""


# Of the samplers whose order is not 2, or whose grid is not "default"; a test compares them with
# the functions, which need torch.
_ORDERS = {
    "ddim": 1, "euler": 1, "euler_ancestral": 1, "heunpp2": 1, "euler_cfg_pp": 1,
    "euler_ancestral_cfg_pp": 1, "lcm": 0, "tcd": 0, "dpm_adaptive": 0,
}  # fmt: skip
_GRIDS = {
    "ddim": "ddim", "plms": "ddim", "dpm_solver": "dpm_solver", "lcm": "sgm_uniform",
    "restart": "karras", "tcd": "tcd",
}  # fmt: skip


def own_order(sampler: str) -> int:
    """The order of convergence of a sampler; 0 where it has none."""
    return _ORDERS.get(sampler, 2)


def own_grid(sampler: str) -> str:
    """The grid that a sampler takes where none is given."""
    return _GRIDS.get(sampler, "default")


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

    "DPM++ 2M Karras" is dpmpp_2m with the grid karras. An unknown name stays as it is. Raises
    JobError for an option of a diffusers scheduler that has no counterpart.
    """
    if name in SAMPLER_NAMES:
        return {"sampler": name}
    known, key = _samplers(), _key(name)
    if is_diffusers(name):
        return diffusers_fields(name)
    if key in known:
        return {"sampler": known[key]}
    for title, grid in _grids().items():
        first, last = key[: -len(title) - 1], key[-len(title) :]
        if last == title and first.strip() in known and key[: -len(title)].endswith(" "):
            own = grid_of(name.strip()[-len(title) :])  # "Beta" and "beta" are two grids
            return {"sampler": known[first.strip()], "grid": own if own in GRID_NAMES else grid}
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
        if fields["grid"] not in GRID_NAMES:
            raise JobError(unknown_grid(fields["grid"]))
    if isinstance(fields.get("sampler"), str):
        named = sampler_fields(fields["sampler"])
        if named["sampler"] not in SAMPLER_NAMES:
            raise JobError(unknown_sampler(fields["sampler"]))
        for field in (field for field in named if field != "sampler"):
            if fields.get(field) not in (None, named[field]):
                what = f"--{field.replace('_', '-')}"
                raise JobError(
                    f"--sampler {fields['sampler']!r} contains the {field} {named[field]}, and "
                    f"{what} is {fields[field]}; give one of them"
                )
        fields |= named
    return fields


def unknown_sampler(name: str) -> str:
    """The message about a sampler that nobody knows, with the most similar name."""
    if _key(name) in _grids():
        return f"--sampler {name!r} is a noise schedule; use --grid {grid_of(name)}"
    titles = [*SAMPLER_NAMES, *(title for names in SAMPLER_TITLES.values() for title in names.all)]
    grids = [title for names in GRID_TITLES.values() for title in (*names.webui, *names.comfy)]
    pairs = [f"{title} {grid}" for title in titles for grid in grids if " " in name]
    known = ", ".join(SAMPLER_TITLES)
    return f"--sampler {name!r} is not known{nearest(name, [*titles, *pairs])} (known: {known})"


def unknown_grid(name: str) -> str:
    """The same about a grid."""
    titles = [title for names in GRID_TITLES.values() for title in names.all]
    known = ", ".join(GRID_NAMES)
    return f"--grid {name!r} is not known{nearest(name, [*titles, *GRID_NAMES])} (known: {known})"


def _key(name: str) -> str:
    return " ".join(name.lower().replace("_", " ").split())


@cache
def _samplers() -> dict[str, str]:
    names = {_key(alias): main for alias, main in SAMPLER_NAMES.items()}
    for own, others in SAMPLER_TITLES.items():
        for title in others.all:
            names[_key(title)] = own
            if title.endswith("Scheduler"):
                names[_key(title.removesuffix("Scheduler"))] = own
        names[_key(f"sample_{own}")] = own  # k-diffusion's function
    return names


@cache
def _grids() -> dict[str, str]:
    names = {_key(grid): grid for grid in GRID_NAMES}
    return names | {_key(t): own for own, others in GRID_TITLES.items() for t in others.all}
