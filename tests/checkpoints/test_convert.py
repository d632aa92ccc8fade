"""Converting between formats, precisions and EMA choices."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from ldm.checkpoints.convert import Ema, convert
from ldm.checkpoints.weights.header import read_header
from ldm.errors import CheckpointError

KEY = "model.diffusion_model.out.0.bias"
COPY = "model_ema.diffusion_modelout0bias"


def tensors() -> dict[str, Tensor]:
    return {
        KEY: torch.arange(4.0),
        COPY: torch.arange(4.0) + 10,
        "model_ema.decay": torch.tensor(0.999),
        "betas": torch.linspace(0.001, 0.02, 5),
        "cond_stage_model.ids": torch.arange(3),
        "first_stage_model.w": torch.randn(3, 5).t(),
    }


@pytest.fixture
def source(tmp_path: Path) -> Path:
    torch.save({"state_dict": tensors(), "global_step": 7, "callbacks": {}}, tmp_path / "a.ckpt")
    return tmp_path / "a.ckpt"


def equal(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(
        left[key].dtype == tensor.dtype and torch.equal(left[key], tensor)
        for key, tensor in right.items()
    )


def test_there_and_back(source: Path, tmp_path: Path) -> None:
    expected = torch.load(source, weights_only=True)["state_dict"]
    header = convert(source, tmp_path / "b.safetensors")
    assert header.metadata == {"global_step": "7"}
    assert equal(load_file(tmp_path / "b.safetensors"), expected)
    convert(tmp_path / "b.safetensors", tmp_path / "c.ckpt")
    content = torch.load(tmp_path / "c.ckpt", weights_only=True)
    assert equal(content["state_dict"], expected)
    assert content["global_step"] == 7


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
@pytest.mark.parametrize(("dtype", "name"), [("fp16", "F16"), ("bf16", "BF16"), ("fp32", "F32")])
def test_precision(source: Path, dtype: str, name: str, suffix: str, tmp_path: Path) -> None:
    header = convert(source, tmp_path / f"b{suffix}", dtype)
    types = {key: entry.dtype for key, entry in header.tensors.items()}
    assert types[KEY] == types["first_stage_model.w"] == types[COPY] == name
    assert types["betas"] == "F32"
    assert types["cond_stage_model.ids"] == "I64"


@pytest.mark.parametrize(
    ("ema", "keys", "first"),
    [("keep", 6, 0.0), ("drop", 4, 0.0), ("only", 4, 10.0)],
)
def test_ema(source: Path, ema: Ema, keys: int, first: float, tmp_path: Path) -> None:
    convert(source, tmp_path / "b.safetensors", ema=ema)
    result = load_file(tmp_path / "b.safetensors")
    assert len(result) == keys
    assert result[KEY][0] == first


def test_no_ema_to_take(tmp_path: Path) -> None:
    torch.save({KEY: torch.zeros(4)}, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match="no complete EMA copy"):
        convert(tmp_path / "a.ckpt", tmp_path / "b.ckpt", ema="only")


def test_numbers_too_large_are_an_error_and_leave_no_file(tmp_path: Path) -> None:
    torch.save({KEY: torch.tensor([1e6, 0.0])}, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match="too large"):
        convert(tmp_path / "a.ckpt", tmp_path / "b.safetensors", "fp16")
    assert [path.name for path in tmp_path.iterdir()] == ["a.ckpt"]
    convert(tmp_path / "a.ckpt", tmp_path / "b.safetensors", "bf16")


def test_nothing_is_overwritten_unasked(source: Path, tmp_path: Path) -> None:
    before = source.read_bytes()
    with pytest.raises(CheckpointError, match="exists already"):
        convert(source, source)
    assert source.read_bytes() == before
    convert(source, source, "fp16", overwrite=True)
    assert read_header(source).tensors[KEY].dtype == "F16"


@pytest.mark.parametrize("target", ["b.bin", "b"])
def test_the_ending_says_the_format(source: Path, target: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="must end with"):
        convert(source, tmp_path / target)
