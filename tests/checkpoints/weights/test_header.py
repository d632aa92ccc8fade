"""Reading headers: both formats, every layout, and one clear line for what is no checkpoint."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from ldm.checkpoints.weights.files import open_weights
from ldm.checkpoints.weights.header import read_header
from ldm.errors import CheckpointError

TINY = Path(__file__).parents[2] / "golden" / "e2e" / "sd-v1-tiny"
TENSORS = {
    "a.weight": torch.arange(6.0).reshape(2, 3),
    "b": torch.ones(5, dtype=torch.float16),
    "c": torch.ones(3, dtype=torch.bfloat16),
    "ids": torch.arange(4),
    "scalar": torch.tensor(2.0),
    "empty": torch.zeros(0, 3),
}


def expected_shapes() -> dict[str, tuple[int, ...]]:
    return {key: tuple(tensor.shape) for key, tensor in TENSORS.items()}


def test_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file(TENSORS, path, metadata={"made": "here"})
    header = read_header(path)
    assert header.format == "safetensors"
    assert header.shapes == expected_shapes()
    assert header.metadata == {"made": "here"}
    assert {key: entry.dtype for key, entry in header.tensors.items()} == {
        "a.weight": "F32", "b": "F16", "c": "BF16", "ids": "I64", "scalar": "F32", "empty": "F32",
    }  # fmt: skip


@pytest.mark.parametrize(
    "content",
    [
        TENSORS,
        OrderedDict(TENSORS),
        {"state_dict": TENSORS, "global_step": 7, "optimizer_states": [{"x": torch.ones(2)}]},
        {"state_dict": {k: torch.nn.Parameter(v, False) for k, v in TENSORS.items()}},
    ],
    ids=["bare", "ordered", "lightning", "parameters"],
)
def test_ckpt_layouts(content: dict[str, object], tmp_path: Path) -> None:
    path = tmp_path / "x.ckpt"
    torch.save(content, path)
    header = read_header(path)
    assert header.format == "ckpt"
    assert header.shapes == expected_shapes()
    assert header.metadata.get("global_step", "7") == "7"


def test_a_state_dict_of_a_module_with_its_bookkeeping(tmp_path: Path) -> None:
    path = tmp_path / "x.ckpt"
    module = torch.nn.Linear(2, 3)
    torch.save(module.state_dict(), path)  # an OrderedDict that carries `_metadata`
    assert read_header(path).shapes == {"weight": (3, 2), "bias": (3,)}


def test_the_name_does_not_decide(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    torch.save(TENSORS, path)
    assert read_header(path).format == "ckpt"


def test_a_pickled_callback_is_dropped_and_named() -> None:
    header = read_header(TINY / "pickled-callback.ckpt")
    (dropped,) = header.dropped
    assert dropped.endswith("ModelCheckpoint")
    assert header.metadata["global_step"] == "470000"
    assert header.shapes.items() <= read_header(TINY / "model.ckpt").shapes.items()


def test_short_hash_is_that_of_64_kib_at_one_mib(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"w": torch.arange(400_000, dtype=torch.float32)}, path)
    import hashlib

    piece = path.read_bytes()[0x100000:0x110000]
    assert read_header(path).short_hash == hashlib.sha256(piece).hexdigest()[:8]
    small = tmp_path / "small.safetensors"
    save_file({"w": torch.zeros(1)}, small)
    assert read_header(small).short_hash == hashlib.sha256(small.read_bytes()).hexdigest()[:8]


def complaint(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_header(path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"", "empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "LFS"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.", "not a readable checkpoint"),
        (b"\x80\x02K\x01.", "a pickle, but not one of torch's"),
        (b"\x89PNG\r\n\x1a\n", "neither"),
        (b"\xff" * 8 + b"{}", "impossible header"),
        ((10).to_bytes(8, "little") + b"{{{{{{{{{{", "broken header"),
        ((2).to_bytes(8, "little") + b"{}", "no tensors"),
        (b"PK\x03\x04" + b"\0" * 100, "damaged"),
    ],
)
def test_foreign_files(content: bytes, word: str, tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    path.write_bytes(content)
    assert word in complaint(path)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    assert "no such checkpoint" in complaint(tmp_path / "none.ckpt")
    assert "cannot be read" in complaint(tmp_path)


@pytest.mark.parametrize("kept", [4, 12, 60, 200, 0.5, 0.99])
@pytest.mark.parametrize("kind", ["safetensors", "ckpt"])
def test_truncated_files(kind: str, kept: float, tmp_path: Path) -> None:
    path = tmp_path / "x"
    tensors = {"w": torch.zeros(2000)}
    if kind == "ckpt":
        torch.save(tensors, path)
    else:
        save_file(tensors, path)
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data)) if kept < 1 else int(kept)])
    complaint(path)


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]},
        {"dtype": "F31", "shape": [1], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1], "data_offsets": [0.0, 4]},
        {"dtype": "F32", "shape": [1]},
        {"dtype": ["F32"], "shape": [1], "data_offsets": [0, 4]},
        [],
    ],
)
def test_a_lying_header(entry: object, tmp_path: Path) -> None:
    head = json.dumps({"w": entry}).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(head).to_bytes(8, "little") + head + b"\0" * 4)
    assert "broken header" in complaint(path)


def test_a_zip_of_something_else(tmp_path: Path) -> None:
    import zipfile

    path = tmp_path / "x.ckpt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    assert "not a torch checkpoint" in complaint(path)


def test_no_torch_is_needed() -> None:
    code = (
        "import sys; from ldm.checkpoints.weights.header import read_header;"
        "read_header(sys.argv[1]);"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(TINY / "model.ckpt")], check=True)


@pytest.mark.parametrize("strided", [False, True])
def test_the_format_before_torch_1_6(tmp_path: Path, strided: bool) -> None:
    whole = torch.arange(12.0).reshape(3, 4)
    first = whole.t() if strided else whole
    state = {"a": first, "b": whole[1:], "c": torch.ones(3, dtype=torch.float16)}
    path = tmp_path / "old.ckpt"
    content = {"state_dict": state, "global_step": 7, "callback": Path("x")}
    torch.save(content, path, _use_new_zipfile_serialization=False)
    header = read_header(path)
    assert header.metadata == {"global_step": "7"}
    assert "Path" in header.dropped[0]
    weights = open_weights(header)
    assert all(torch.equal(weights[key], tensor) for key, tensor in state.items())
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(CheckpointError, match="truncated"):
        read_header(path)


@pytest.mark.parametrize(
    ("wrap", "where"),
    [
        (lambda state: {"model": state, "epoch": 3}, "model"),
        (lambda state: {"state_dict": {"state_dict": state}}, "state_dict.state_dict"),
        (lambda state: {"weights": state}, "weights"),
    ],
)
def test_tensors_one_level_down(tmp_path: Path, wrap: Any, where: str) -> None:
    torch.save(wrap({"x": torch.zeros(2)}), tmp_path / "a.ckpt")
    header = read_header(tmp_path / "a.ckpt")
    assert header.shapes == {"x": (2,)}
    assert header.remarks == (f"the tensors are those of {where} in the file",)


def test_a_text_encoder_without_its_prefix(tmp_path: Path) -> None:
    old = "cond_stage_model.transformer.encoder.layers.0.mlp.fc1.bias"
    save_file({old: torch.zeros(2), "x": torch.zeros(1)}, tmp_path / "a.safetensors")
    header = read_header(tmp_path / "a.safetensors")
    new = "cond_stage_model.transformer.text_model.encoder.layers.0.mlp.fc1.bias"
    assert set(header.shapes) == {new, "x"}
    assert "lack text_model." in header.remarks[0]
