"""What the readers of files are given, and the readers themselves."""

from __future__ import annotations

import io
import zipfile
from collections import OrderedDict
from pathlib import Path

import torch

from ldm.checkpoints.weights.files import open_weights
from ldm.checkpoints.weights.header import read_header
from ldm.cli.info import describe, format_description
from ldm.images.texts import read_record
from ldm.runs.manifest import fingerprint


def placed(home: Path, content: bytes) -> Path:
    path = home / "file"
    path.write_bytes(content)
    return path


TENSORS = {
    "model.diffusion_model.w": torch.arange(6.0).reshape(2, 3),
    "b": torch.ones(5, dtype=torch.float16),
    "ids": torch.arange(4),
    "empty": torch.zeros(0, 3),
    "turned": torch.arange(6.0).reshape(2, 3).t(),
}


def ckpt(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


CKPTS = [
    ckpt(TENSORS),
    ckpt({"state_dict": OrderedDict(TENSORS), "global_step": 7, "callbacks": {"x": [1, (2.5,)]}}),
]


def read_checkpoint(home: Path, content: bytes) -> None:
    """Read all there is to a checkpoint: the header, what it says of itself, every tensor."""
    path = placed(home, content)
    header = read_header(path)
    format_description(describe(path))
    weights = open_weights(header)
    for key, entry in header.tensors.items():
        tensor = weights[key]
        assert tuple(tensor.shape) == entry.shape
        assert tensor.numel() * tensor.element_size() <= len(content)
        tensor.clone()  # a number outside of the file would end the process


def zipped(members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def members(content: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


MEMBERS = [members(content) for content in CKPTS]


INDEX = next(name for name in MEMBERS[0] if name.endswith("data.pkl"))


def read_our_record(path: Path) -> None:
    """What a resumed run and `ldm rerun` look at."""
    record = read_record(path)
    fingerprint(record.job, record.row, record.hash, record.inputs)
