"""The training loop on images of coloured squares: it learns, resumes exactly, and says no."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ldm.checkpoints.config import Config
from ldm.errors import ConfigError
from ldm.images.tensors import to_tensor
from ldm.training.stages import (
    AutoencoderStage,
    step_generator,
    to_image_arrays,
)
from ldm.training.train import fit, learning_rate_factor, run
from ldm.training.trainer import DiffusionStage
from tests.tiny_training import AUTOENCODER, DIFFUSION, Squares, plan


def train_autoencoder(outdir: Path, *, resume: bool = False, **changes: Any) -> Path:
    config = Config("test", {"model": AUTOENCODER})
    wanted = plan(outdir, **changes)
    torch.manual_seed(0)
    return fit(AutoencoderStage(config, wanted, Squares()), wanted, resume=resume)


def test_an_autoencoder_learns_and_both_stages_write_what_loads(tmp_path: Path) -> None:
    weights = train_autoencoder(tmp_path / "ae", steps=60, crop=8, save_every=60)
    lines = [json.loads(line) for line in (tmp_path / "ae/log.jsonl").read_text().splitlines()]
    assert np.mean([line["l1"] for line in lines[-5:]]) < 0.5 * lines[0]["l1"]
    assert load_file(weights)["decoder.conv_out.weight"].dtype == torch.float16
    assert (tmp_path / "ae/samples-000060.png").is_file()

    config = Config("test", {"model": DIFFUSION})
    wanted = plan(tmp_path / "ldm", autoencoder=str(weights), steps=40, save_every=40)
    fit(DiffusionStage(config, wanted, Squares()), wanted, resume=False)
    lines = [json.loads(line) for line in (tmp_path / "ldm/log.jsonl").read_text().splitlines()]
    assert np.mean([line["loss"] for line in lines[-5:]]) < 0.9 * lines[0]["loss"]
    keys = set(load_file(tmp_path / "ldm/model.safetensors"))
    assert "model.diffusion_model.out.2.weight" in keys
    assert "cond_stage_model.transformer.text_model.final_layer_norm.weight" in keys
    yaml = (tmp_path / "ldm/model.yaml").read_text()
    assert "scale_factor" in yaml


@pytest.mark.parametrize("kind", ["autoencoder", "diffusion"])
def test_a_resumed_run_gives_the_same_weights(tmp_path: Path, kind: str) -> None:
    first = str(train_autoencoder(tmp_path / "ae"))

    def trained(outdir: Path, steps: int, *, resume: bool) -> dict[str, torch.Tensor]:
        if kind == "autoencoder":
            path = train_autoencoder(outdir, steps=steps, schedule="constant", resume=resume)
        else:
            wanted = plan(outdir, steps=steps, schedule="constant", autoencoder=first)
            torch.manual_seed(0)
            stage = DiffusionStage(Config("test", {"model": DIFFUSION}), wanted, Squares())
            path = fit(stage, wanted, resume=resume)
        return load_file(path)

    straight = trained(tmp_path / "straight", 4, resume=False)
    trained(tmp_path / "broken", 2, resume=False)
    resumed = trained(tmp_path / "broken", 4, resume=True)
    assert all(torch.equal(straight[key], resumed[key]) for key in straight)


def test_a_second_run_does_not_overwrite_the_first(tmp_path: Path) -> None:
    train_autoencoder(tmp_path, steps=2)
    with pytest.raises(ConfigError, match="--resume"):
        train_autoencoder(tmp_path, steps=2)


def test_resuming_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing to resume"):
        train_autoencoder(tmp_path, resume=True)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("", "train section"),
        ("train: {steps: 1, batch_size: 1, learning_rate: 1, outdir: x, stepz: 2}", "stepz.*steps"),
        ("train: {steps: 1, batch_size: 1, outdir: x}", "learning_rate is missing"),
        (
            "train: {steps: 1, batch_size: 1, learning_rate: 1, outdir: x, schedule: linear}",
            "schedule must be one of cosine, constant",
        ),
        ("train: {steps: 0, batch_size: 1, learning_rate: 1, outdir: x}", "must be positive"),
        ("train: {steps: many, batch_size: 1, learning_rate: 1, outdir: x}", "steps"),
    ],
)
def test_a_bad_train_section_is_named(tmp_path: Path, section: str, message: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("model: {}\n" + section)
    with pytest.raises(ConfigError, match=message):
        run(path)


def test_learning_rate_warms_up_and_falls() -> None:
    wanted = plan(Path("x"), steps=100, warmup_steps=10)
    assert learning_rate_factor(wanted, 0) == pytest.approx(0.1)
    assert learning_rate_factor(wanted, 10) == pytest.approx(1.0)
    assert learning_rate_factor(wanted, 55) == pytest.approx(0.5)
    assert learning_rate_factor(wanted, 100) == pytest.approx(0.0)
    constant = plan(Path("x"), steps=100, schedule="constant")
    assert learning_rate_factor(constant, 99) == 1.0


def test_the_numbers_of_a_step_do_not_depend_on_what_ran_before() -> None:
    one = torch.randn(3, generator=step_generator(1, 5, 0))
    step_generator(1, 4, 0)
    assert torch.equal(one, torch.randn(3, generator=step_generator(1, 5, 0)))
    assert not torch.equal(one, torch.randn(3, generator=step_generator(1, 5, 1)))


def test_images_survive_the_way_to_tensors_and_back() -> None:
    images = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 16, 16, 3)
    assert np.abs(to_image_arrays(to_tensor(images)).astype(int) - images).max() <= 1


def test_a_cut_vocabulary_can_be_trained_on_with_other_words(tmp_path: Path) -> None:
    def stage(words: list[str], outdir: Path, **changes: Any) -> DiffusionStage:
        class Worded(Squares):
            def vocabulary(self) -> list[str]:
                return words

        section = DIFFUSION["params"]["cond_stage_config"]
        text = {**section["params"]["text_config"], "vocab_size": len(words) + 2}
        params = {**section["params"], "kept_tokens": True, "text_config": text}
        conditioner = {**section, "params": params}
        tree = {**DIFFUSION, "params": {**DIFFUSION["params"], "cond_stage_config": conditioner}}
        wanted = plan(outdir, autoencoder=first, **changes)
        return DiffusionStage(Config("test", {"model": tree}), wanted, Worded())

    first = str(train_autoencoder(tmp_path / "ae", steps=2))
    one = stage(["red", "blue"], tmp_path / "one")
    weights = fit(one, one.plan, resume=False)
    other = stage(["blue", "green", "cat"], tmp_path / "other", init=str(weights))
    table = "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight"
    old, new = load_file(weights), other.model.state_dict()
    rows = {int(token): row for row, token in enumerate(old["cond_stage_model.kept_tokens"])}
    kept = [int(token) for token in new["cond_stage_model.kept_tokens"]]
    assert len(kept) == 5
    shared = [(row, rows[token]) for row, token in enumerate(kept) if token in rows]
    assert len(shared) == 3  # start, end and "blue"
    for row, before in shared:
        assert torch.equal(new[table][row], old[table][before].float())
