"""YAMLs of generative-models (`sgm.*`), read for what the older ones say elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ldm.checkpoints.config import Config

MODEL = "sgm.models.diffusion.DiffusionEngine"
_TEXT = "txt"
# The predictions by the last part of `scaling_config`'s target.
SCALINGS = {"EpsScaling": "eps", "VScaling": "v"}


def is_sgm(config: Config) -> bool:
    """Whether a YAML is one of generative-models."""
    model = config.tree.get("model")
    return isinstance(model, dict) and model.get("target") == MODEL


def as_older(params: dict[str, Any]) -> dict[str, Any]:
    """The parameters of a model with the older names of the same sections added.

    `unet_config` is the network's section, `cond_stage_config` the first text encoder's;
    `parameterization` is eps or v.
    """
    if "network_config" not in params:
        return params
    scaling = str(_inside(params, "denoiser_config", "scaling_config").get("target"))
    return {
        **params,
        "unet_config": params["network_config"],
        "cond_stage_config": next(iter(text_encoders(params)), None),
        "parameterization": SCALINGS.get(scaling.rpartition(".")[2], "eps"),
    }


def text_encoders(params: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The sections of the embedders that take text."""
    return [one for one in _embedders(params) if one.get("input_key") == _TEXT]


def input_keys(config: Config) -> set[str]:
    """What the embedders of a YAML take."""
    model = config.tree.get("model")
    params = model.get("params") if isinstance(model, dict) else None
    embedders = _embedders(params) if isinstance(params, dict) else []
    return {str(one.get("input_key")) for one in embedders}


def zeros_for_no_text(config: Config) -> bool:
    """Whether the unconditional side without a negative prompt is zeros, not an encoded "".

    A network that learnt with `ucg_rate` and no `legacy_ucg_value` was shown zeros. The YAMLs for
    inference say neither; then it is as in generative-models' demo: zeros for SDXL's base, which
    has a target size, and the encoded "" for its refiner and for SD2.
    """
    model = config.tree.get("model")
    params = model.get("params") if isinstance(model, dict) else None
    encoders = text_encoders(params) if isinstance(params, dict) else []
    if any(one.get("legacy_ucg_value") is not None for one in encoders):
        return False
    if any(one.get("ucg_rate") for one in encoders):
        return True
    return "target_size_as_tuple" in input_keys(config)


def _embedders(params: Mapping[str, Any]) -> list[dict[str, Any]]:
    listed = _inside(params, "conditioner_config").get("params")
    listed = listed.get("emb_models") if isinstance(listed, dict) else None
    return [one for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []


def _inside(params: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    """A section below others and their `params`; a malformed one counts as empty."""
    tree: Any = {"params": params}
    for key in keys:
        tree = tree.get("params") if isinstance(tree, dict) else None
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree if isinstance(tree, dict) else {}
