"""Samplers: functions (denoise, x, sigmas) -> x, and the table that names them."""

from __future__ import annotations

from ldm.sampling.samplers import ancestral, cfg_pp, dpm, later, multistep, ode, unipc
from ldm.sampling.samplers.masked import masked
from ldm.sampling.samplers.table import (
    SAMPLERS,
    Churn,
    OnStep,
    SampleFn,
    Sampler,
    final_latent,
    find_sampler,
    register,
    start_latent,
)

__all__ = [
    "SAMPLERS",
    "Churn",
    "OnStep",
    "SampleFn",
    "Sampler",
    "ancestral",
    "cfg_pp",
    "dpm",
    "final_latent",
    "find_sampler",
    "later",
    "masked",
    "multistep",
    "ode",
    "register",
    "start_latent",
    "unipc",
]
