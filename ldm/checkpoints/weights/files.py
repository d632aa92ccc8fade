"""The tensors of checkpoint files: memory-mapped for reading, written all or nothing.

The pages of a mapped tensor are read on first use.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from ldm.checkpoints.weights.header import SIZES, Header
from ldm.errors import CheckpointError


def open_weights(header: Header) -> Weights:
    """Memory-map the tensors of a file. Raises CheckpointError."""
    return Weights(header)


class Weights(Mapping[str, Tensor]):
    """Key -> memory-mapped tensor: data is read on first use, and only once.

    The mapping is private: writing to a tensor does not change the file.
    """

    def __init__(self, header: Header) -> None:
        self.header = header
        with header.path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)

    def __getitem__(self, key: str) -> Tensor:
        entry = self.header.tensors[key]
        dtype = torch_dtype(entry.dtype)
        if entry.count == 0:
            return torch.empty(entry.shape, dtype=dtype, device="cpu")
        if entry.start % SIZES[entry.dtype]:
            # Old writers did not align tensors; computing with unaligned numbers is unsafe.
            span = entry.span * SIZES[entry.dtype]
            raw = torch.frombuffer(self._map, dtype=torch.uint8, count=span, offset=entry.start)
            flat = raw.clone().view(dtype)
        else:
            flat = torch.frombuffer(self._map, dtype=dtype, count=entry.span, offset=entry.start)
        if entry.strides is None:
            return flat.view(entry.shape)
        return flat.as_strided(entry.shape, entry.strides)

    def release(self, key: str) -> None:
        """Release a tensor's pages after it was copied; they are read again on use."""
        entry = self.header.tensors[key]
        begin = -(-entry.start // mmap.PAGESIZE) * mmap.PAGESIZE
        end = (entry.start + entry.span * SIZES[entry.dtype]) // mmap.PAGESIZE * mmap.PAGESIZE
        if end > begin and sys.platform != "win32":
            self._map.madvise(mmap.MADV_DONTNEED, begin, end - begin)

    def __iter__(self) -> Iterator[str]:
        return iter(self.header.tensors)

    def __len__(self) -> int:
        return len(self.header.tensors)


@cache
def _torch_dtypes() -> dict[str, torch.dtype]:
    return {
        "BOOL": torch.bool,
        "U8": torch.uint8,
        "I8": torch.int8,
        "F8_E4M3": torch.float8_e4m3fn,
        "F8_E5M2": torch.float8_e5m2,
        "I16": torch.int16,
        "U16": torch.uint16,
        "F16": torch.float16,
        "BF16": torch.bfloat16,
        "I32": torch.int32,
        "U32": torch.uint32,
        "F32": torch.float32,
        "I64": torch.int64,
        "U64": torch.uint64,
        "F64": torch.float64,
    }


def torch_dtype(name: str) -> torch.dtype:
    """The torch dtype of a type name of the safetensors format."""
    return _torch_dtypes()[name]


def type_name(dtype: torch.dtype) -> str:
    """The safetensors format's name of a torch dtype."""
    return next(name for name, known in _torch_dtypes().items() if known == dtype)


def save_safetensors(
    tensors: Mapping[str, Tensor],
    path: Path,
    metadata: Mapping[str, str] | None = None,
    *,
    overwrite: bool = False,
) -> None:
    """Write tensors to a .safetensors file, all or nothing; raises CheckpointError if it exists."""
    layout = {key: (type_name(t.dtype), tuple(t.shape)) for key, t in tensors.items()}
    write_safetensors(layout, tensors.__getitem__, path, metadata, overwrite=overwrite)


def write_safetensors(
    layout: Mapping[str, tuple[str, tuple[int, ...]]],
    tensor_of: Callable[[str], Tensor],
    path: Path,
    metadata: Mapping[str, str] | None = None,
    *,
    overwrite: bool = False,
) -> None:
    """Write a .safetensors file whose tensors are computed one at a time, in the order of writing.

    `layout` gives each key its type name and shape. All or nothing; raises CheckpointError if the
    file exists and `overwrite` is not set.
    """
    # Wide types first, so that every tensor is aligned, like the format's own writer.
    keys = sorted(layout, key=lambda key: (-SIZES[layout[key][0]], key))
    plan: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for key in keys:
        dtype, shape = layout[key]
        begin, end = end, end + math.prod(shape) * SIZES[dtype]
        plan[key] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    head = json.dumps(plan, separators=(",", ":"), ensure_ascii=False).encode()
    head += b" " * (-len(head) % 8)
    with atomic_file(path, overwrite=overwrite) as file:
        file.write(len(head).to_bytes(8, "little") + head)
        for key in keys:
            file.write(_bytes_of(tensor_of(key)))


@contextmanager
def atomic_file(path: Path, *, overwrite: bool = False) -> Iterator[IO[bytes]]:
    """A file that appears under its name once it is complete, or not at all.

    Raises CheckpointError if it exists (before and after the work) and `overwrite` is not set.
    """
    taken = CheckpointError(f"{path}: exists already; name another file or overwrite it")
    if path.exists() and not overwrite:
        raise taken
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if overwrite:
            part.replace(path)
        else:
            os.link(part, path)  # unlike a rename, it never replaces a file created meanwhile
    except FileExistsError:
        raise taken from None
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise CheckpointError(f"{path}: cannot be written ({reason})") from None
    finally:
        part.unlink(missing_ok=True)


def _bytes_of(tensor: Tensor) -> memoryview:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    numbers: memoryview = flat.view(torch.uint8).numpy().data
    return numbers
