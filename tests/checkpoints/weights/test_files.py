"""Mapped tensors equal the ones that were saved; writing is all or nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from ldm.checkpoints.weights.files import (
    atomic_file,
    open_weights,
    save_safetensors,
    torch_dtype,
    type_name,
)
from ldm.checkpoints.weights.header import SIZES, read_header
from ldm.errors import CheckpointError

TINY = Path(__file__).parents[2] / "golden" / "e2e" / "sd-v1-tiny"


def same(left: torch.Tensor, right: torch.Tensor) -> bool:
    return left.dtype == right.dtype and left.shape == right.shape and torch.equal(left, right)


def test_ckpt_tensors_equal_torchs_own_reading() -> None:
    expected = torch.load(TINY / "model.ckpt", weights_only=True)["state_dict"]
    weights = open_weights(read_header(TINY / "model.ckpt"))
    assert set(weights) == set(expected)
    assert all(same(weights[key], tensor) for key, tensor in expected.items())


def test_a_file_with_a_pickled_callback_gives_its_tensors() -> None:
    weights = open_weights(read_header(TINY / "pickled-callback.ckpt"))
    full = open_weights(read_header(TINY / "model.ckpt"))
    assert len(weights) > 0
    assert all(same(tensor, full[key]) for key, tensor in weights.items())


def test_views_into_shared_storage(tmp_path: Path) -> None:
    base = torch.arange(24.0).reshape(4, 6)
    tensors = {
        "base": base, "t": base.t(), "row": base[2], "column": base[:, 1], "cut": base[1:3, 2:4],
        "expanded": base[0, :1].expand(5), "scalar": base[3, 3], "none": base[:0],
    }  # fmt: skip
    torch.save(tensors, tmp_path / "x.ckpt")
    weights = open_weights(read_header(tmp_path / "x.ckpt"))
    assert all(same(weights[key], tensor) for key, tensor in tensors.items())


@pytest.mark.parametrize("name", sorted(SIZES))
def test_every_type_round_trips(name: str, tmp_path: Path) -> None:
    dtype = torch_dtype(name)
    assert type_name(dtype) == name
    tensor = torch.zeros(3, dtype=torch.float32).to(dtype)
    assert tensor.element_size() == SIZES[name]
    save_safetensors({"w": tensor}, tmp_path / "x.safetensors")
    torch.save({"w": tensor}, tmp_path / "x.ckpt")
    for file in ("x.safetensors", "x.ckpt"):
        read = open_weights(read_header(tmp_path / file))["w"]
        assert read.dtype == dtype
        assert torch.equal(read.view(torch.uint8), tensor.view(torch.uint8))


@given(
    layout=st.dictionaries(
        st.text(min_size=1, max_size=8).filter(lambda key: key != "__metadata__"),
        st.tuples(
            st.sampled_from(["F32", "F16", "BF16", "I64", "BOOL", "U8"]),
            st.lists(st.integers(0, 4), max_size=3),
        ),
        min_size=1,
        max_size=6,
    )
)
@settings(max_examples=40, deadline=None)
def test_what_is_written_is_read_by_us_and_by_the_library(
    layout: dict[str, tuple[str, list[int]]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("w") / "x.safetensors"
    tensors = {
        key: (torch.rand(shape) * 3).to(torch_dtype(name)) for key, (name, shape) in layout.items()
    }
    save_safetensors(tensors, path, {"k": "é"})
    header = read_header(path)
    ours, theirs = open_weights(header), load_file(path)
    assert header.metadata == {"k": "é"}
    assert set(ours) == set(theirs) == set(tensors)
    assert all(same(ours[key], tensor) for key, tensor in tensors.items())
    assert all(same(theirs[key], tensor) for key, tensor in tensors.items())


def test_numbers_at_odd_addresses(tmp_path: Path) -> None:
    head = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    head += b" " * ((1 - len(head)) % 8)
    values = torch.tensor([1.5, -2.0])
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(head).to_bytes(8, "little") + head + values.numpy().tobytes())
    assert read_header(path).tensors["w"].start % 4 == 1
    assert torch.equal(open_weights(read_header(path))["w"], values)


def test_writing_into_a_tensor_leaves_the_file(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_safetensors({"w": torch.zeros(4)}, path)
    before = path.read_bytes()
    open_weights(read_header(path))["w"].fill_(1.0)
    assert path.read_bytes() == before


def test_an_existing_file_is_kept_unless_asked(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_safetensors({"w": torch.zeros(1)}, path)
    before = path.read_bytes()
    with pytest.raises(CheckpointError, match="exists already"):
        save_safetensors({"w": torch.ones(1)}, path)
    assert path.read_bytes() == before
    save_safetensors({"w": torch.ones(1)}, path, overwrite=True)
    assert path.read_bytes() != before
    assert [item.name for item in tmp_path.iterdir()] == ["x.safetensors"]


def test_a_file_made_meanwhile_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "x"

    def write() -> None:
        with atomic_file(path) as file:
            file.write(b"ours")
            path.write_bytes(b"theirs")

    with pytest.raises(CheckpointError, match="exists already"):
        write()
    assert path.read_bytes() == b"theirs"
    assert [item.name for item in tmp_path.iterdir()] == ["x"]


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    def write() -> None:
        with atomic_file(tmp_path / "x") as file:
            file.write(b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_missing_is_a_clear_line(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be written"):
        save_safetensors({"w": torch.zeros(1)}, tmp_path / "none" / "x.safetensors")
