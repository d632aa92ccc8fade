"""Runs of the tasks that begin with an image, and what to compare of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ldm.cli.app import run
from ldm.images.tensors import to_image_array
from ldm.models.model import Model
from tests.tiny_images import read

PROMPT = ["--prompt", "a cat"]
Models = Callable[[str], list[str]]


def draw(task: str, *argv: str, out: str = "out.png") -> np.ndarray[Any, Any]:
    """The one image that a command line makes."""
    assert run([task, *argv, "-o", out, "--overwrite"]) == 0
    return read(Path(out))


def away(one: torch.Tensor, other: torch.Tensor) -> float:
    """How far latents are apart at most."""
    return float((one - other).abs().max())


def size_of(path: str | Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


def encoded(model: Model, image: np.ndarray[Any, Any]) -> torch.Tensor:
    """The latent [C,h,w] of an image [H,W,3]."""
    x = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 127.5 - 1
    with torch.inference_mode():
        return model.encode(x)[0]


def through_autoencoder(model: Model, image: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """What the autoencoder alone makes of an image [H,W,3]."""
    with torch.inference_mode():
        return to_image_array(model.decode(encoded(model, image)[None])[0]).astype(np.int16)
