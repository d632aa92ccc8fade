"""diffusers' schedulers with their options, as its code and its scheduler_config.json write them.

`DPMSolverMultistepScheduler(use_karras_sigmas=True)` or the JSON object with `_class_name`.
Source: diffusers' `schedulers/`, and its table of k-diffusion names.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping
from typing import Any

from ldm.errors import JobError

CLASSES: Mapping[str, str] = {
    "DDIM": "ddim",
    "PNDM": "plms",
    "EulerDiscrete": "euler",
    "EulerAncestralDiscrete": "euler_ancestral",
    "DDPM": "euler_ancestral",
    "HeunDiscrete": "heun",
    "KDPM2Discrete": "dpm_2",
    "KDPM2AncestralDiscrete": "dpm_2_ancestral",
    "LMSDiscrete": "lms",
    "DPMSolverMultistep": "dpmpp_2m",
    "DPMSolverSDE": "dpmpp_sde",
    "UniPCMultistep": "uni_pc_bh2",
    "DEISMultistep": "deis",
    "IPNDM": "ipndm",
    "LCM": "lcm",
    "TCD": "tcd",
}
_CALL = re.compile(r"\s*(\w+)\s*\((.*)\)\s*", re.DOTALL)
_GRID_FLAGS = {
    "use_karras_sigmas": "karras",
    "use_exponential_sigmas": "exponential",
    "use_beta_sigmas": "beta_sigmas",
}
# Of the model, which has them itself, or without effect on what is sampled.
_OF_THE_MODEL = (
    "_class_name", "_diffusers_version", "num_train_timesteps", "beta_start", "beta_end",
    "beta_schedule", "trained_betas", "clip_sample", "clip_sample_range", "set_alpha_to_one",
    "steps_offset", "skip_prk_steps", "sample_max_value", "dynamic_thresholding_ratio",
    "interpolation_type", "original_inference_steps", "timestep_scaling", "sigma_min", "sigma_max",
    "lambda_min_clipped", "timestep_type", "lower_order_final", "final_sigmas_type",
    "variance_type", "euler_at_final", "use_lu_lambdas", "use_flow_sigmas", "rho",
)  # fmt: skip
_MULTISTEP = {
    ("dpmsolver++", 2): "dpmpp_2m",
    ("sde-dpmsolver++", 2): "dpmpp_2m_sde",
    ("sde-dpmsolver++", 3): "dpmpp_3m_sde",
}
_PREDICTIONS = {"epsilon": "eps", "v_prediction": "v"}


def is_diffusers(name: str) -> bool:
    """Whether it is a scheduler with options, in either form."""
    call = _CALL.fullmatch(name)
    return name.lstrip().startswith("{") or (call is not None and _short(call[1]) in CLASSES)


def diffusers_fields(text: str) -> dict[str, Any]:
    """The fields of a job that a scheduler with its options sets.

    Raises JobError where it cannot be read, or for an option that would mean something else here.
    """
    name, options = _read(text)
    fields: dict[str, Any] = {"sampler": CLASSES[name]}
    algorithm = options.pop("algorithm_type", "dpmsolver++")
    order = options.pop("solver_order", 2)
    if name == "DPMSolverMultistep":
        if (algorithm, order) not in _MULTISTEP:
            raise _refused(name, "algorithm_type", f"{algorithm!r} with solver_order {order}")
        fields["sampler"] = _MULTISTEP[algorithm, order]
    if name == "UniPCMultistep" and options.pop("solver_type", "bh2") == "bh1":
        fields["sampler"] = "uni_pc"
    if options.pop("solver_type", "midpoint") not in ("midpoint", "logrho"):
        raise _refused(name, "solver_type", "heun")
    if name in ("LCM", "TCD"):
        fields["grid"] = name.lower()
    spacing = options.pop("timestep_spacing", None)
    if spacing is not None and name not in ("LCM", "TCD"):
        if spacing not in ("linspace", "leading", "trailing"):
            raise _refused(name, "timestep_spacing", repr(spacing))
        fields["grid"] = spacing
    for option, value in options.items():
        if option in _GRID_FLAGS:
            fields |= {"grid": _GRID_FLAGS[option]} if value else {}
        elif option == "rescale_betas_zero_snr":
            fields |= {"zero_snr": True} if value else {}
        elif option == "prediction_type" and value in _PREDICTIONS:
            fields["prediction"] = _PREDICTIONS[value]
        elif option not in _OF_THE_MODEL and value:
            raise _refused(name, option, repr(value))
    return fields


def _refused(name: str, option: str, value: str) -> JobError:
    return JobError(f"--sampler {name}Scheduler: {option} {value} has no counterpart here")


def _read(text: str) -> tuple[str, dict[str, Any]]:
    """The short name of the class, and its options."""
    try:
        if text.lstrip().startswith("{"):
            options = json.loads(text)
            name = str(options.get("_class_name"))
        else:
            call = ast.parse(text.strip(), mode="eval").body
            assert isinstance(call, ast.Call)
            assert isinstance(call.func, ast.Name)
            name = call.func.id
            options = {word.arg: ast.literal_eval(word.value) for word in call.keywords}
    except (ValueError, SyntaxError, AssertionError, RecursionError):
        raise JobError(f"--sampler {text!r}: not a scheduler and its options") from None
    if _short(name) not in CLASSES:
        raise JobError(f"--sampler: the scheduler {name!r} of diffusers has no counterpart here")
    return _short(name), options


def _short(name: str) -> str:
    return name.removesuffix("Scheduler")
