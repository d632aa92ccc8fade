"""What networks in training are shown is what the tasks show them later."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from ldm.checkpoints.config import Config
from ldm.errors import ConfigError
from ldm.models.conditioning import Conditioning
from ldm.models.registry import build
from ldm.training.hints import DepthHint, MaskHint, SmallHint, find_hint, hole
from ldm.training.stages import AutoencoderStage
from ldm.training.train import fit
from ldm.training.trainer import DiffusionStage
from tests.tiny_training import AUTOENCODER, DIFFUSION, Squares, plan

KINDS: dict[str, dict[str, Any]] = {
    "mask": {"target": "LatentInpaintDiffusion", "in_channels": 9, "hint": MaskHint},
    "depth": {"target": "LatentDepth2ImageDiffusion", "in_channels": 5, "hint": DepthHint},
    "small": {"target": "LatentUpscaleDiffusion", "in_channels": 7, "hint": SmallHint},
}


def config(kind: str) -> Config:
    """The little diffusion model of the training's tests, told more."""
    told = KINDS[kind]
    tree = copy.deepcopy(DIFFUSION)
    tree["target"] = f"ldm.models.diffusion.ddpm.{told['target']}"
    network = tree["params"]["unet_config"]["params"]
    network["in_channels"] = told["in_channels"]
    tree["params"]["conditioning_key"] = "hybrid"
    if kind == "small":
        network["num_classes"] = 20
        tree["params"]["conditioning_key"] = "hybrid-adm"
        tree["params"]["low_scale_config"] = {
            "target": "ldm.modules.diffusionmodules.upscaling.ImageConcatWithNoiseAugmentation",
            "params": {
                "noise_schedule_config": {"linear_start": 0.0001, "linear_end": 0.02},
                "max_noise_level": 20,
            },
        }
    return Config("test", {"model": tree})


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a model that is told by text alone, with its autoencoder."""
    folder = tmp_path_factory.mktemp("base")
    first = plan(folder / "first", steps=1)
    fit(
        AutoencoderStage(Config("test", {"model": AUTOENCODER}), first, Squares()),
        first,
        resume=False,
    )
    wanted = plan(
        folder / "base", steps=1, scenes=8, autoencoder=str(folder / "first/model.safetensors")
    )
    fit(
        DiffusionStage(Config("test", {"model": DIFFUSION}), wanted, Squares()),
        wanted,
        resume=False,
    )
    return folder / "base/model.safetensors"


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_that_is_shown_more_grows_from_one_that_is_not(
    kind: str, base: Path, tmp_path: Path
) -> None:
    wanted = plan(tmp_path / kind, steps=2, scenes=8, init=str(base))
    stage = DiffusionStage(config(kind), wanted, Squares())
    assert isinstance(stage.hint, KINDS[kind]["hint"])
    key = "input_blocks.0.0.weight"
    before = load_file(base)[f"model.diffusion_model.{key}"].float()
    grown = stage.model.network.state_dict()[key]
    torch.testing.assert_close(grown[:, :4], before)
    assert not grown[:, 4:].any()
    fit(stage, wanted, resume=False)
    assert stage.model.network.state_dict()[key][:, 4:].any(), "the hint was learnt from"
    assert (tmp_path / kind / "samples-000002.png").is_file()
    assert load_file(tmp_path / kind / "model.safetensors")


def test_a_number_of_channels_that_nothing_explains() -> None:
    tree = config("depth")
    tree.tree["model"]["params"]["unet_config"]["params"]["in_channels"] = 6
    with torch.device("meta"), pytest.raises(ConfigError, match="2 channels besides the latent's"):
        find_hint(build(tree))


def test_a_hole_covers_a_thing_and_not_all() -> None:
    plane = np.zeros((64, 64), np.uint8)
    plane[10:20, 10:20], plane[40:50, 30:60] = 1, 2
    covered = set()
    for index in range(20):
        mask = hole(plane, index)
        np.testing.assert_array_equal(mask, hole(plane, index))
        whole = [int(n) for n in (1, 2) if mask[plane == n].all()]
        assert whole
        covered |= set(whole)
        assert 0 < mask.mean() < 0.5
    assert covered == {1, 2}


class Recorded:
    """Encodes nothing, and remembers what it was given."""

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def __call__(self, images: Tensor) -> Tensor:
        self.seen.append(images)
        return torch.zeros(len(images), 8, 8, 8)


def shown(kind: str) -> tuple[Conditioning, Recorded, np.ndarray[Any, Any]]:
    encode, data = Recorded(), Squares()
    hint = find_hint(build(config(kind)))
    assert hint is not None
    images, _ = data.batch(0, 4)
    kept = hint.keep(images, data.layers(0, 4), 0, encode)
    return hint.show(kept, Conditioning(), torch.Generator().manual_seed(0)), encode, images


def test_the_mask_is_white_where_the_image_is_grey() -> None:
    cond, encode, images = shown("mask")
    assert cond.concat is not None
    mask = cond.concat[:, :1]
    assert set(mask.unique().tolist()) == {0.0, 1.0}
    grey = (encode.seen[0] == 0).all(dim=1, keepdim=True)
    torch.testing.assert_close(grey[..., ::2, ::2].float(), mask)
    untouched = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    assert ((encode.seen[0] == untouched) | grey).all()


def test_what_is_drawn_later_is_nearer() -> None:
    cond, _, _ = shown("depth")
    assert cond.concat is not None
    assert cond.concat.shape == (4, 1, 8, 8)
    assert float(cond.concat.amax()) == 1
    assert float(cond.concat.amin()) == -1


def test_the_small_image_has_noise_of_its_level() -> None:
    cond, _, images = shown("small")
    assert cond.concat is not None
    assert cond.vector is not None
    assert cond.concat.shape == (4, 3, 8, 8)
    assert cond.vector.dtype == torch.long
    assert int(cond.vector.max()) < 20
    colours = torch.from_numpy(images).permute(0, 3, 1, 2).float().mean((2, 3)) / 127.5 - 1
    torch.testing.assert_close(cond.concat.mean((2, 3)), colours, atol=0.2, rtol=0)
