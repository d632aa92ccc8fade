"""The tiny SDXL models of the golden data: their YAMLs and weights, put together from modules."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import save_file
from torch import Tensor

from tests.golden_data import GOLDEN, module, text_tower, whole

MODULES = GOLDEN / "modules"
CONDITIONER = "sdxl-conditioner"
_SIZES = {
    "FrozenCLIPEmbedder": ("text_config", "text_config.json"),
    "FrozenOpenCLIPEmbedder": ("model_config", "open_clip_config.json"),
    "FrozenOpenCLIPEmbedder2": ("model_config", "open_clip_config.json"),
}


def sized(tree: dict[str, Any], towers: Path = MODULES / CONDITIONER) -> dict[str, Any]:
    """A YAML with the sizes of the tiny text towers written in."""
    model = tree["model"]["params"] if "model" in tree else {"conditioner_config": tree}
    for embedder in model["conditioner_config"]["params"]["emb_models"]:
        found = _SIZES.get(embedder["target"].rpartition(".")[2])
        if found is not None:
            config = json.loads((towers / found[1]).read_text(encoding="utf-8"))
            embedder.setdefault("params", {})[found[0]] = config
    return tree


def sdxl_tree(name: str = "sdxl-base-txt2img/config.yaml") -> dict[str, Any]:
    """The YAML of a golden run, with the sizes of its text towers."""
    return sized(yaml.safe_load((GOLDEN / "e2e" / name).read_text(encoding="utf-8")))


def conditioner(places: Iterable[int] = (0, 1)) -> dict[str, Tensor]:
    """The weights of some of the conditioner's text towers, counted anew from 0."""
    found = text_tower(CONDITIONER)
    return {
        f"embedders.{new}.{key.removeprefix(old)}": values
        for new, place in enumerate(places)
        for old in [f"embedders.{place}."]
        for key, values in found.items()
        if key.startswith(old)
    }


def base_state() -> dict[str, Tensor]:
    """The weights of the base model."""
    return whole(
        {
            "model.diffusion_model.": module("unet-sdxl"),
            "first_stage_model.": module("vae-kl-f8"),
            "conditioner.": conditioner(),
        }
    )


def refiner_state() -> dict[str, Tensor]:
    """The weights of the refiner, whose text tower is the base's second one."""
    return whole(
        {
            "model.diffusion_model.": module("unet-sdxl-refiner"),
            "first_stage_model.": module("vae-kl-f8"),
            "conditioner.": conditioner([1]),
        }
    )


def place_models(folder: Path) -> None:
    """Write base and refiner as sdxl.safetensors and refiner.safetensors with their YAMLs."""
    refiner = "sdxl-base-refiner/refiner.yaml"
    for name, state, tree in (
        ("sdxl", base_state(), sdxl_tree()),
        ("refiner", refiner_state(), sdxl_tree(refiner)),
    ):
        save_file(state, folder / f"{name}.safetensors")
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
