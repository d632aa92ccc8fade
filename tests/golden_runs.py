"""Runs of the original scripts, `tests/golden/e2e`: their models, and whether ours do the same.

They were made on a CPU in float32, without autocast, watermark or safety checker.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from torch import Tensor

from ldm.engine.results import Result
from tests.golden_data import GOLDEN, case, module, tensors, text_tower, whole
from tests.tiny_images import read

E2E = GOLDEN / "e2e"
OPEN_CLIP_TOWER = GOLDEN / "modules/text-openclip-v2/open_clip_config.json"
# Round-off of other kernels and another order of sums, grown by a few steps of random networks.
LATENT_TOLERANCE = 1e-3


def v2_state(network: str, autoencoder: str) -> dict[str, Tensor]:
    """The weights of a model of v2's kind, put together from modules."""
    return whole(
        {
            "model.diffusion_model.": module(network),
            "first_stage_model.": module(autoencoder),
            "cond_stage_model.": text_tower("text-openclip-v2"),
        }
    )


def with_text_tower(source: Path, target: Path, key: str, tower: Path) -> Path:
    """A YAML with the sizes of a tiny text encoder written in, at `target`."""
    tree = yaml.safe_load(source.read_text(encoding="utf-8"))
    stage = tree["model"]["params"]["cond_stage_config"]
    stage.setdefault("params", {})[key] = json.loads(tower.read_text(encoding="utf-8"))
    target.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return target


def v1_flags(folder: Path) -> list[str]:
    """Flags for the tiny model of v1's kind; its YAML is written into a folder."""
    tiny = E2E / "sd-v1-tiny"
    tower = tiny / "text_config.json"
    config = with_text_tower(tiny / "config.yaml", folder / "v1.yaml", "text_config", tower)
    return ["--config", str(config), "--ckpt", str(tiny / "model.ckpt")]


def assert_latents(ours: Tensor, expected: Tensor, tolerance: float = LATENT_TOLERANCE) -> None:
    """Fail where latents differ by more than round-off."""
    assert ours.shape == expected.shape
    scale = max(1.0, float(expected.std()))
    assert float((ours - expected).abs().max()) <= tolerance * scale


def assert_results(name: str, results: list[Result]) -> None:
    """Fail where the latents of our results are not those of a run."""
    golden = tensors(f"e2e/{name}/outputs.safetensors")
    latents = [golden[key] for key in sorted(golden) if key.startswith("latents_")]
    assert_latents(torch.stack([result.latent for result in results]), torch.cat(latents))


def assert_image(made: NDArray[Any], golden: Path, size: tuple[int, int] | None = None) -> None:
    """Fail where an image differs by more than a level; `size` (w, h) is cut out of the golden."""
    expected = read(golden)
    if size is not None:
        expected = expected[: size[1], : size[0]]
    assert made.shape == expected.shape, golden
    assert np.abs(made.astype(np.int16) - expected).max() <= 1, golden


def images_of(name: str) -> list[str]:
    """The names of a run's images."""
    found: list[str] = case(f"e2e/{name}/case.json")["images"]
    return found
