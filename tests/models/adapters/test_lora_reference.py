"""LoRA files of every layout and kind change the weights as their own tools did."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from ldm.checkpoints.lora import match_lora
from ldm.checkpoints.weights.files import Weights, open_weights
from ldm.checkpoints.weights.header import Header, read_header
from ldm.errors import CheckpointError
from ldm.models.adapters.lora import Reader
from tests.golden_data import GOLDEN, case, tensors

FOLDER = GOLDEN / "modules/lora-v1"
CHECKPOINT = GOLDEN / "e2e/sd-v1-tiny/model.ckpt"
CASES = case("modules/lora-v1/case.json")["cases"]


@cache
def checkpoint() -> tuple[Header, Weights]:
    """The tiny model that the files were made for."""
    header = read_header(CHECKPOINT)
    return header, open_weights(header)


def merged(path: Path, scale: float) -> dict[str, Tensor]:
    """The difference of every weight that a file changes in the tiny model."""
    header, weights = checkpoint()
    reader = Reader(match_lora(path, header.shapes))
    found: dict[str, Tensor] = {}
    for group in reader:
        target = group.target
        added = reader.weight_difference(group, weights[target.weight].float(), scale)
        if added is not None:
            found[target.weight] = added
        if target.bias in weights:
            added = reader.bias_difference(group, weights[target.bias].float(), scale)
            if added is not None:
                found[target.bias] = added
    return found


@pytest.mark.parametrize("name", CASES)
def test_weights_change_as_their_own_tool_changed_them(name: str) -> None:
    expected = {
        key.removeprefix(f"{name}/"): values
        for key, values in tensors("modules/lora-v1/deltas.safetensors").items()
        if key.startswith(f"{name}/")
    }
    found = merged(FOLDER / CASES[name]["file"], CASES[name]["scale"])
    assert found.keys() == expected.keys()
    for key, values in expected.items():
        flat = found[key].flatten().double()
        places = [j * (len(flat) - 1) // 15 for j in range(16)]
        digest = torch.cat([flat.sum()[None], flat.abs().sum()[None], flat[places]]).float()
        torch.testing.assert_close(digest, values, rtol=1e-4, atol=2e-5)


def test_nothing_is_left_over() -> None:
    shapes = checkpoint()[0].shapes
    for name in {entry["file"] for entry in CASES.values()}:
        assert match_lora(FOLDER / name, shapes).unmatched == (), name


def test_a_file_for_another_family_is_refused_by_name(tmp_path: Path) -> None:
    place = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
    path = tmp_path / "xl.safetensors"
    pair = {"lora_down": torch.ones(4, 2048), "lora_up": torch.ones(640, 4)}
    save_file({f"{place}_x.{n}.weight": x for n, x in pair.items()}, path)
    shapes = {"model.diffusion_model.a.attn2.to_k.weight": (320, 768)}
    with pytest.raises(CheckpointError, match="none of its 2 tensors"):
        match_lora(path, shapes)
    save_file({f"{place}.{n}.weight": x for n, x in pair.items()}, path)
    with pytest.raises(CheckpointError, match="is for SDXL, and the model is Stable Diffusion 1"):
        match_lora(path, shapes)


def test_numbers_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    place = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    path = tmp_path / "nan.safetensors"
    pair = {"lora_down": torch.full((4, 32), torch.nan), "lora_up": torch.ones(32, 4)}
    save_file({f"{place}.{n}.weight": x for n, x in pair.items()}, path)
    with pytest.raises(CheckpointError, match="NaN or infinity"):
        merged(path, 1.0)


def test_tensors_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    place = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    path = tmp_path / "odd.safetensors"
    for rank, width in ((0, 32), (4, 31)):
        pair = {"lora_down": torch.ones(rank, width), "lora_up": torch.ones(32, rank)}
        content = {f"{place}.{n}.weight": x for n, x in pair.items()}
        save_file({**content, f"{place}.alpha": torch.ones(())}, path)
        with pytest.raises(CheckpointError, match="do not fit the model's"):
            merged(path, 1.0)
