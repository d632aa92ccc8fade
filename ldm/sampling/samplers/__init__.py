"""Samplers: functions (denoise, x, sigmas) -> x, and the table that names them."""

from __future__ import annotations

from ldm.sampling.samplers import ancestral, multistep, ode
from ldm.sampling.samplers.masked import masked
from ldm.sampling.samplers.table import (
    SAMPLERS,
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
    "OnStep",
    "SampleFn",
    "Sampler",
    "ancestral",
    "final_latent",
    "find_sampler",
    "masked",
    "multistep",
    "ode",
    "register",
    "start_latent",
]
