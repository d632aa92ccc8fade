"""Tiny models with random weights, as YAML and as checkpoint files."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from ldm.checkpoints.config import Config
from ldm.models.model import Model
from ldm.models.registry import build

GOLDEN = Path(__file__).parent / "golden"
TINY = GOLDEN / "e2e" / "sd-v1-tiny"

OPEN_CLIP = {
    "embed_dim": 16,
    "text_cfg": {
        "context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2,
    },
    "vision_cfg": {"image_size": 28, "patch_size": 14, "width": 16, "layers": 1, "head_width": 8},
}  # fmt: skip


def v1_tree() -> dict[str, Any]:
    """The YAML of the golden tiny v1 model, with its text tower."""
    tree: dict[str, Any] = yaml.safe_load((TINY / "config.yaml").read_text())
    text_config = json.loads((TINY / "text_config.json").read_text())
    tree["model"]["params"]["cond_stage_config"]["params"] = {"text_config": text_config}
    return tree


def v2_tree(**params: Any) -> dict[str, Any]:
    """The tiny v1 model made into a v2: OpenCLIP's tower, linear projections."""
    tree = copy.deepcopy(v1_tree())
    model = tree["model"]["params"]
    model["cond_stage_config"] = {
        "target": "ldm.modules.encoders.modules.FrozenOpenCLIPEmbedder",
        "params": {"layer": "penultimate", "model_config": OPEN_CLIP},
    }
    unet = model["unet_config"]["params"]
    unet |= {"context_dim": 16, "use_linear_in_transformer": True, "num_head_channels": 8}
    del unet["num_heads"]
    model |= params
    return tree


def make(tree: dict[str, Any], seed: int = 0) -> Model:
    """A model of a YAML with random weights, each layer contributing."""
    torch.manual_seed(seed)
    model = build(Config("tiny.yaml", tree))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.1)
    return model.requires_grad_(False).eval()


def write(tree: dict[str, Any], path: Path) -> Path:
    """Write a YAML."""
    path.write_text(yaml.safe_dump(tree))
    return path


def state(model: Model, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """A model's tensors, the floating-point ones in a precision."""
    return {
        key: tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor
        for key, tensor in model.state_dict().items()
    }
