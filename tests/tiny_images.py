"""Tiny models for each task that begins with an image, and images for them, as files."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file

from ldm.checkpoints.config import read_config, resource
from tests.golden_data import GOLDEN
from tests.tiny_models import OPEN_CLIP, make, state, v1_tree, v2_tree, write

QUICK = ["--steps", "4", "--seed", "7", "--device", "cpu", "--quiet"]


def _class(tree: dict[str, Any], name: str, **params: Any) -> dict[str, Any]:
    tree["model"]["target"] = f"ldm.models.diffusion.ddpm.{name}"
    tree["model"]["params"] |= params
    return tree


def inpaint_tree() -> dict[str, Any]:
    """Version 1 with a network that is shown the mask and the rest of the image."""
    tree = _class(v1_tree(), "LatentInpaintDiffusion", conditioning_key="hybrid")
    tree["model"]["params"]["unet_config"]["params"]["in_channels"] = 9
    return tree


def depth_tree() -> dict[str, Any]:
    """Version 2 with a network that is shown depth, and no network to estimate it with."""
    tree = _class(v2_tree(), "LatentDepth2ImageDiffusion", conditioning_key="hybrid")
    tree["model"]["params"]["unet_config"]["params"]["in_channels"] = 5
    return tree


def upscale_tree() -> dict[str, Any]:
    """The golden upscaler, with the sizes of the tiny text encoder."""
    tree = copy.deepcopy(read_config(GOLDEN / "e2e/x4-superresolution/config.yaml").tree)
    params = tree["model"]["params"]
    params["cond_stage_config"]["params"] = {"layer": "penultimate", "model_config": OPEN_CLIP}
    return tree


def textless_tree() -> dict[str, Any]:
    """latent-diffusion's inpainting_big, made small."""
    return _small("inpainting_big")


def superres_tree() -> dict[str, Any]:
    """latent-diffusion's bsr_sr, made small."""
    return _small("bsr_sr")


def _small(name: str) -> dict[str, Any]:
    """A model of latent-diffusion that has a codebook and no text, of small sizes."""
    path = resource("configs") / "latent-diffusion" / f"{name}.yaml"
    tree = copy.deepcopy(read_config(path).tree)
    params = tree["model"]["params"]
    network = params["unet_config"]["params"]
    network.pop("num_head_channels", None)
    network |= {"model_channels": 32, "channel_mult": [1], "num_res_blocks": 1}
    network |= {"attention_resolutions": [1], "num_heads": 4}
    stage = params["first_stage_config"]["params"]
    stage["n_embed"] = 64
    stage["ddconfig"] |= {"ch": 32, "ch_mult": [1, 1, 1], "num_res_blocks": 1}
    return tree


TREES = {
    "text": v1_tree,
    "text-v": lambda: v2_tree(parameterization="v"),
    "inpaint": inpaint_tree,
    "depth": depth_tree,
    "upscale": upscale_tree,
    "textless": textless_tree,
    "superres": superres_tree,
}


def place(name: str, folder: Path) -> Path:
    """Write one of `TREES` with random weights into a folder: NAME.safetensors, YAML beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    tree = TREES[name]()
    write(tree, folder / f"{name}.yaml")
    path = folder / f"{name}.safetensors"
    save_file({key: value.contiguous() for key, value in state(make(tree)).items()}, path)
    return path


def scene(width: int, height: int) -> NDArray[np.uint8]:
    """An image [height,width,3] of slopes and an edge, no two of whose quarters are alike."""
    y, x = np.mgrid[:height, :width]
    planes = (255 * x / width, 255 * y / height, np.where(x + 2 * y > width, 200, 40))
    return np.stack(planes, axis=2).astype(np.uint8)


def save(path: Path, array: NDArray[Any], **options: Any) -> Path:
    Image.fromarray(array).save(path, **options)
    return path


def read(path: Path) -> NDArray[np.int16]:
    with Image.open(path) as image:
        return np.asarray(image).astype(np.int16)


def square_mask(width: int, height: int) -> NDArray[np.uint8]:
    """White in the middle [height,width], black around it."""
    mask = np.zeros((height, width), np.uint8)
    mask[height // 4 : -height // 4, width // 4 : -width // 4] = 255
    return mask
