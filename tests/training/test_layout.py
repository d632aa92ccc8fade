"""A network in training can be asked what is to be where."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from ldm.checkpoints.config import Config
from ldm.errors import ConfigError
from ldm.models.registry import build
from ldm.nn.unet import UNetConfig, UNetModel
from ldm.training.layout import LayoutLoss
from ldm.training.stages import AutoencoderStage
from ldm.training.train import fit
from ldm.training.trainer import DiffusionStage
from tests.tiny_training import AUTOENCODER, DIFFUSION, Squares, plan


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> DiffusionStage:
    """A stage that asks, with a network that has not learnt anything yet."""
    folder = tmp_path_factory.mktemp("layout")
    first = plan(folder / "first", steps=1)
    autoencoder = AutoencoderStage(Config("test", {"model": AUTOENCODER}), first, Squares())
    weights = fit(autoencoder, first, resume=False)
    wanted = plan(folder / "asked", layout_weight=1.0, drop_vector=0.5, autoencoder=str(weights))
    tree = copy.deepcopy(DIFFUSION)
    tree["params"]["cond_stage_config"]["params"]["pooled"] = True
    tree["params"]["unet_config"]["params"] |= {"num_classes": "sequential", "adm_in_channels": 16}
    return DiffusionStage(Config("test", {"model": tree}), wanted, Squares())


def test_the_answer_is_part_of_the_loss(stage: DiffusionStage) -> None:
    batch = stage.batch(0)
    assert batch["layout"].shape == (4, 8, 8)
    loss, figures = stage.module(**batch)
    del batch["layout"]
    without, none = stage.module(**batch)
    assert not none
    assert loss.item() == pytest.approx(without.item() + figures["layout"].item(), rel=1e-5)
    assert figures["layout"].item() == pytest.approx(1.1, abs=0.5)  # log 3: it is guessed


def test_some_rows_are_not_shown_the_pooled_text(
    stage: DiffusionStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = torch.stack([stage.batch(step)["pooled"] for step in range(50)])
    assert 0.3 < shown.float().mean() < 0.7
    seen = []
    network = stage.module.network.forward

    def spy(x: Tensor, t: Tensor, context: Tensor, y: Tensor) -> Tensor:
        seen.append((context[:, -1], y))
        return network(x, t, context, y)

    monkeypatch.setattr(stage.module.network, "forward", spy)
    stage.module(**stage.batch(0) | {"pooled": torch.tensor([True, False, True, False])})
    ((last, vector),) = seen
    assert torch.equal(vector[::2], last[::2])
    assert not vector[1::2].any()


def test_the_answer_is_learnt_and_teaches_the_network(stage: DiffusionStage) -> None:
    module = stage.module
    optimizer = torch.optim.AdamW(module.parameters(), lr=3e-3)
    told = []
    for _ in range(25):
        optimizer.zero_grad()
        loss, figures = module(**stage.batch(0))
        loss.backward()
        told.append(figures["layout"].item())
        if len(told) == 1:
            assert module.network.input_blocks[0][0].weight.grad is not None
        optimizer.step()
    assert told[-1] < 0.5 * told[0]


def test_the_weights_that_are_kept_know_nothing_of_it(stage: DiffusionStage) -> None:
    own = set(build(stage.config).state_dict())
    assert set(stage.weights(stage.module)) == own


def test_a_network_that_sees_no_text_is_refused() -> None:
    with torch.device("meta"):
        network = UNetModel(
            UNetConfig(
                in_channels=4,
                out_channels=4,
                model_channels=32,
                attention_resolutions=(),
                num_res_blocks=1,
                channel_mult=(1,),
                num_heads=1,
            )
        )
    with pytest.raises(ConfigError, match=r"layout_weight: the network does not attend to text"):
        LayoutLoss(network, 3)
