"""Tiny models of Stable Diffusion 3 and 3.5, put together from tests/golden."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file, save_file

from ldm.checkpoints.config import resource
from tests.golden_data import GOLDEN

SD3, SD35 = GOLDEN / "e2e" / "sd3-tiny", GOLDEN / "e2e" / "sd35-tiny"
_ROWS = {"clip": 49408, "t5": 32128}
_SIZES: dict[str, Any] = {
    "in_channels": 16,
    "depth": 2,
    "hidden_size": 128,
    "num_heads": 2,
    "pos_embed_max_size": 12,
    "adm_in_channels": 20,
    "context_dim": 24,
}


def write_sd3(folder: Path) -> Path:
    """A single file of SD3's kind, fp8 as released, with its YAML beside it.

    The rows of the tables of tokens that no test uses are zeros.
    """
    state = load_file(SD3 / "weights.safetensors")
    rows = load_file(SD3 / "token_rows.safetensors")
    ids = {name: rows.pop(f"__{name}__") for name in _ROWS}
    for key, values in rows.items():
        name = "t5" if "t5xxl" in key else "clip"
        table = torch.zeros(_ROWS[name], values.shape[1])
        table[ids[name]] = values.float()
        if name == "t5":  # as in the released files
            key = key.replace("encoder.embed_tokens", "shared")
        state[key] = table.to(values.dtype)
    path = folder / "sd3.safetensors"
    save_file(state, path)
    _write_yaml(folder / "sd3.yaml", _SIZES)
    return path


def write_sd35(folder: Path) -> Path:
    """A network of 3.5 medium's kind alone, with its YAML beside it."""
    path = folder / "sd35.safetensors"
    path.write_bytes((SD35 / "model.safetensors").read_bytes())
    more = {"qk_norm": "rms", "x_block_self_attn_layers": [0]}
    _write_yaml(folder / "sd35.yaml", _SIZES | more)
    return path


def with_parts_of(sd3: Path) -> list[str]:
    """Flags that take the autoencoder and the text encoders from a whole file."""
    return [word for flag in ("--vae", "--clip-l", "--clip-g", "--t5") for word in (flag, str(sd3))]


def _write_yaml(path: Path, sizes: dict[str, Any]) -> None:
    packaged = resource("configs") / "sd3" / "sd3-medium.yaml"
    tree = yaml.safe_load(packaged.read_text(encoding="utf-8"))
    params = tree["model"]["params"]
    params["unet_config"]["params"] = sizes
    small = {"ch": 32, "ch_mult": [1, 1, 1, 1]}
    params["first_stage_config"]["params"]["ddconfig"] |= small
    params["cond_stage_config"]["params"] = {
        f"{name}_config": json.loads((SD3 / f"{name}_config.json").read_text(encoding="utf-8"))
        for name in ("clip_l", "clip_g", "t5")
    }
    tree["sampling"] = {"width": 64, "height": 64, "steps": 2, "sampler": "euler", "scale": 5.0}
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
