"""A tiny model that takes no text."""

from __future__ import annotations

import copy
from typing import Any

from ldm.checkpoints.config import read_config
from tests.golden_data import GOLDEN


def class_tree() -> dict[str, Any]:
    return copy.deepcopy(read_config(GOLDEN / "e2e/cin-class-conditional/config.yaml").tree)


def free_tree() -> dict[str, Any]:
    """A model that is told nothing."""
    tree = class_tree()
    params = tree["model"]["params"]
    params["cond_stage_config"] = "__is_unconditional__"
    del params["conditioning_key"]
    unet = params["unet_config"]["params"]
    for name in ("use_spatial_transformer", "transformer_depth", "context_dim"):
        del unet[name]
    return tree
