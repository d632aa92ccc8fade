"""Convert checkpoint files: format, precision, with or without the EMA copy."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from ldm.checkpoints.weights.files import atomic_file, open_weights, torch_dtype, write_safetensors
from ldm.checkpoints.weights.header import FLOATS, Header, read_header
from ldm.checkpoints.weights.keys import EMA, NETWORK, ema_copies, is_scheduled
from ldm.errors import CheckpointError

DTYPES = {"fp16": "F16", "fp32": "F32", "bf16": "BF16"}
Ema = Literal["keep", "drop", "only"]


def convert(
    source: Path | str,
    target: Path | str,
    dtype: str | None = None,
    ema: Ema = "keep",
    *,
    overwrite: bool = False,
) -> Header:
    """Write a checkpoint in the format of the target's extension; returns the new header.

    `dtype` is fp16, fp32, bf16, or None for the file's own; schedules and integers keep theirs.
    `ema`: "drop" omits the averaged copy, "only" replaces the network's weights with it. For
    .safetensors, only one tensor at a time is in memory. All or nothing; raises CheckpointError,
    also if the target exists and `overwrite` is not set.
    """
    source, target = Path(source), Path(target)
    if target.suffix not in (".safetensors", ".ckpt"):
        raise CheckpointError(f"{target}: the new file's name must end with .safetensors or .ckpt")
    if target.exists() and not overwrite:
        raise CheckpointError(f"{target}: exists already; name another file or overwrite it")
    if dtype is not None and dtype not in DTYPES:
        raise CheckpointError(f"unknown precision {dtype!r}; known are {', '.join(DTYPES)}")
    header = read_header(source)
    origins = _origins(header, ema)
    layout = {
        key: (_type(header, key, origin, dtype), header.tensors[origin].shape)
        for key, origin in origins.items()
    }
    weights = open_weights(header)

    def converted(key: str) -> Tensor:
        return _cast(weights[origins[key]], torch_dtype(layout[key][0]), f"{source}: {key}")

    if target.suffix == ".safetensors":
        write_safetensors(layout, converted, target, header.metadata, overwrite=overwrite)
    else:
        content = {"state_dict": {key: converted(key) for key in layout}, **_numbers(header)}
        with atomic_file(target, overwrite=overwrite) as file:
            torch.save(content, file)
    return read_header(target)


def _origins(header: Header, ema: Ema) -> dict[str, str]:
    """New key -> key in the old file."""
    origins = {key: key for key in header.tensors}
    if ema == "keep":
        return origins
    origins = {key: key for key in origins if not key.startswith(EMA)}
    if ema == "only":
        copies = ema_copies(header.tensors)
        network = [key for key in origins if key.startswith(NETWORK)]
        if not copies or len(copies) < len(network):
            raise CheckpointError(f"{header.path}: has no complete EMA copy")
        origins.update(copies)
    return origins


def _type(header: Header, key: str, origin: str, dtype: str | None) -> str:
    own = header.tensors[origin].dtype
    return own if dtype is None or own not in FLOATS or is_scheduled(key) else DTYPES[dtype]


def _cast(tensor: Tensor, dtype: torch.dtype, where: str) -> Tensor:
    cast = tensor.to(dtype)
    if cast.dtype != tensor.dtype and bool((cast.isinf() & tensor.isfinite()).any()):
        raise CheckpointError(f"{where} has numbers too large for {dtype}; keep fp32 or use bf16")
    return cast


def _numbers(header: Header) -> dict[str, int]:
    """The counts of a training checkpoint: global_step, epoch."""
    return {key: int(value) for key, value in header.metadata.items() if value.isdecimal()}
