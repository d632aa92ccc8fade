"""A tiny Stable unCLIP, put together from the golden modules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save_file

from ldm.checkpoints.config import read_config
from tests.golden_data import GOLDEN, case, module, tensors, text_tower, whole

IMAGES = GOLDEN / "modules" / "clip-image-unclip"


def unclip_tree() -> dict[str, Any]:
    tree = read_config(GOLDEN / "e2e/v2-inpaint/config.yaml").tree
    params = tree["model"]["params"]
    parts = yaml.safe_load((IMAGES / "config.yaml").read_text(encoding="utf-8"))
    network = GOLDEN / "modules/unet-unclip/config.yaml"
    tree["model"]["target"] = "ldm.models.diffusion.ddpm.ImageEmbeddingConditionedLatentDiffusion"
    params |= {"conditioning_key": "crossattn-adm", "parameterization": "v", **parts}
    del params["finetune_keys"]
    params["unet_config"] = yaml.safe_load(network.read_text(encoding="utf-8"))
    tower = case("modules/clip-image-unclip/open_clip_config.json")
    params["embedder_config"]["params"] = {"model_config": tower}
    tower = case("modules/text-openclip-v2/open_clip_config.json")
    params["cond_stage_config"]["params"]["model_config"] = tower
    return tree


def place_unclip(checkpoint: Path) -> Path:
    """Write the model to a file, its YAML beside it."""
    tree = yaml.safe_dump(unclip_tree())
    checkpoint.with_suffix(".yaml").write_text(tree, encoding="utf-8")
    parts = {
        "model.diffusion_model.": module("unet-unclip"),
        "first_stage_model.": module("vae-kl-f8"),
        "cond_stage_model.": text_tower("text-openclip-v2"),
        "": module("clip-image-unclip"),
        "noise_augmentor.": tensors(
            "modules/clip-image-unclip/noise_augmentor_buffers.safetensors"
        ),
    }
    state = whole(parts)
    state["embedder.model.token_embedding.weight"] = torch.zeros(49408, 16)
    save_file(state, checkpoint)
    return checkpoint
