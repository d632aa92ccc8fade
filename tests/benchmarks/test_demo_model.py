"""The demo's images come from the engine: in order, seeded one by one, of any checkpoint."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file

from benchmarks.demo_model import DemoModel
from benchmarks.demo_quality import single_prompts
from ldm.checkpoints.config import override, read_config, resource
from ldm.models.registry import build
from ldm.training.data import Scenes
from ldm.training.trainer import start_text
from tests.emoji_font import EMOJI_FONT

SMALLER = (
    "model.params.unet_config.params.model_channels=32",
    "model.params.unet_config.params.num_head_channels=16",
    "model.params.unet_config.params.context_dim=32",
    "model.params.unet_config.params.adm_in_channels=32",
    "model.params.first_stage_config.params.ddconfig.ch=8",
    "model.params.cond_stage_config.params.text_config.hidden_size=32",
    "model.params.cond_stage_config.params.text_config.intermediate_size=32",
    "model.params.cond_stage_config.params.text_config.num_hidden_layers=1",
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = override(read_config(resource("configs") / "train" / "emoji-128.yaml"), SMALLER)
    torch.manual_seed(0)
    model = build(config)
    scenes = Scenes(**{**config.tree["data"]["params"], "font": EMOJI_FONT})
    start_text(model, config.source, scenes.vocabulary())
    path = tmp_path_factory.mktemp("demo") / "small.safetensors"
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, path)
    OmegaConf.save(OmegaConf.create({"model": config.tree["model"]}), path.with_suffix(".yaml"))
    return path


def test_images_do_not_depend_on_the_batch(checkpoint: Path) -> None:
    model = DemoModel(str(checkpoint), "cpu")
    prompts = single_prompts(3, 0)
    drawn = []
    for batch in (1, 3):
        wanted = argparse.Namespace(batch=batch, steps=2, sampler="euler", scale=2.0, seed=7)
        drawn.append(model.generate(wanted)(prompts).astype(int))
    assert drawn[0].shape == (3, 128, 128, 3)
    assert np.abs(drawn[0] - drawn[1]).max() <= 1
    assert np.abs(drawn[0][0] - drawn[0][1]).max() > 1


def test_images_go_through_the_autoencoder(checkpoint: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 128, 128, 3), dtype=np.uint8)
    back = DemoModel(str(checkpoint), "cpu").through_autoencoder(images)
    assert back.shape == images.shape
    assert back.dtype == np.uint8
