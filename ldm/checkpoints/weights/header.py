"""The header of a checkpoint file: keys, types, shapes and positions, read without torch.

The first bytes determine the format, never the name. Only the index is read.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

from ldm.checkpoints.weights.legacy import MAGIC, read_index
from ldm.checkpoints.weights.pickled import (
    MOST_AXES,
    Storage,
    Strided,
    read_pickle,
)
from ldm.errors import CheckpointError

# Names of the safetensors format and their bytes per number; torch's name for each.
SIZES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "I16": 2, "U16": 2, "F16": 2,
    "BF16": 2, "I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8,
}  # fmt: skip
TORCH_NAMES = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2", "I16": "int16", "U16": "uint16", "F16": "float16",
    "BF16": "bfloat16", "I32": "int32", "U32": "uint32", "F32": "float32", "I64": "int64",
    "U64": "uint64", "F64": "float64",
}  # fmt: skip
FLOATS = frozenset({"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"})
_STORAGES = {
    "DoubleStorage": "F64", "FloatStorage": "F32", "HalfStorage": "F16", "BFloat16Storage": "BF16",
    "LongStorage": "I64", "IntStorage": "I32", "ShortStorage": "I16", "CharStorage": "I8",
    "ByteStorage": "U8", "BoolStorage": "BOOL", "UntypedStorage": "U8",
}  # fmt: skip

_TOWER = "cond_stage_model.transformer."
_BARE_TOWER = tuple(f"{_TOWER}{part}" for part in ("embeddings.", "encoder.", "final_layer_norm."))

# Limits of an index, which is read whole; 100,000 tensors need 12 MiB in either format.
LONGEST_HEADER = 16 * 2**20  # bytes of JSON
LONGEST_PICKLE = 64 * 2**20  # bytes, decompressed
# The tensors of a .ckpt may share storage: their total size is at most MOST_SHARED times the size
# of the file, plus SPARE bytes.
MOST_SHARED = 8
SPARE = 256 * 2**20


@dataclass(frozen=True)
class Entry:
    """One tensor of a file: its type, shape and position.

    `start` is the offset in bytes of its first number. `strides` count elements; None means that
    the tensor is contiguous.
    """

    dtype: str
    shape: tuple[int, ...]
    start: int
    strides: tuple[int, ...] | None = None

    @property
    def count(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    @property
    def span(self) -> int:
        """The number of elements in the file from the tensor's first to its last."""
        if self.strides is None or self.count == 0:
            return self.count
        return 1 + sum((n - 1) * step for n, step in zip(self.shape, self.strides, strict=True))

    @property
    def size(self) -> int:
        """The size of the elements in bytes."""
        return self.count * SIZES[self.dtype]


@dataclass(frozen=True)
class Header:
    """The header of a checkpoint file.

    `metadata` is that of safetensors, or a training checkpoint's plain values (global_step ...);
    `dropped` names the objects in a .ckpt that were not constructed. `remarks` say where the
    tensors were found and what they are called there, if that is unusual.
    """

    path: Path
    format: str
    tensors: dict[str, Entry]
    metadata: dict[str, str] = field(default_factory=dict)
    dropped: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Key -> shape."""
        return {key: entry.shape for key, entry in self.tensors.items()}

    @cached_property
    def short_hash(self) -> str:
        """The first 8 hex digits of the SHA-256 of the 64 KiB at 1 MiB: the cheap model hash.

        Source: AUTOMATIC1111/stable-diffusion-webui, modules/sd_models.py, model_hash. A file that
        ends before 1 MiB is hashed whole.
        """
        with self.path.open("rb") as file:
            file.seek(0x100000)
            piece = file.read(0x10000)
            if not piece:
                file.seek(0)
                piece = file.read()
        return hashlib.sha256(piece).hexdigest()[:8]


def read_header(path: Path | str) -> Header:
    """Read the header of a .safetensors or .ckpt file; raises CheckpointError otherwise."""
    path = Path(path)
    try:
        with path.open("rb") as file:
            start = file.read(512)
            size = os.fstat(file.fileno()).st_size
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such checkpoint file; check --model") from None
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise CheckpointError(f"{path}: cannot be read ({reason})") from None
    if start[8:9] == b"{":
        header = _read_safetensors(path, size)
    elif start[:4] == b"PK\x03\x04":
        header = _read_ckpt(path, size)
    elif start.startswith(MAGIC):
        header = _read_legacy(path, size)
    else:
        raise CheckpointError(f"{path}: {_foreign(start)}")
    if not header.tensors:
        raise CheckpointError(f"{path}: contains no tensors; it is not a model checkpoint")
    return _with_usual_names(header)


def _read_safetensors(path: Path, size: int) -> Header:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > LONGEST_HEADER:
            raise CheckpointError(f"{path}: is not a .safetensors file (impossible header length)")
        text = file.read(length)
    begin = 8 + length
    if len(text) < length:
        raise CheckpointError(_truncated(path, size, begin))
    try:
        plan = json.loads(text)
        metadata = {str(k): str(v) for k, v in (plan.pop("__metadata__", None) or {}).items()}
        tensors = {key: _entry_of(item, begin) for key, item in plan.items()}
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path}: has a broken header ({_reason(error)})") from None
    needed = max((entry.start + entry.size for entry in tensors.values()), default=0)
    if needed > size:
        raise CheckpointError(_truncated(path, size, needed))
    places = sorted((e.start, e.start + e.size, key) for key, e in tensors.items() if e.size)
    for (_, end, first), (start, _, second) in pairwise(places):
        if start < end:
            raise CheckpointError(f"{path}: has a broken header ({first} and {second} overlap)")
    return Header(path, "safetensors", tensors, metadata)


def _entry_of(item: dict[str, Any], begin: int) -> Entry:
    first, last = item["data_offsets"]
    shape = tuple(item["shape"])
    if len(shape) > MOST_AXES:
        raise ValueError(f"a tensor of more than {MOST_AXES} axes")
    if not all(type(n) is int and 0 <= n < 2**62 for n in (first, last, *shape)):
        raise ValueError("a shape or offset is not a natural number, or is impossibly large")
    if item["dtype"] not in SIZES:
        raise ValueError(f"unknown number type {item['dtype']!r}")
    entry = Entry(item["dtype"], shape, begin + first)
    if entry.size != last - first:
        raise ValueError("a shape does not match its offsets")
    return entry


def _read_ckpt(path: Path, size: int) -> Header:
    try:
        with zipfile.ZipFile(path) as archive:
            infos = {info.filename: info for info in archive.infolist()}
            name = next((n for n in infos if n.count("/") == 1 and n.endswith("/data.pkl")), None)
            if name is None:
                raise CheckpointError(f"{path}: is a zip archive, but not a torch checkpoint")
            root = name.removesuffix("data.pkl")
            order = f"{root}byteorder"
            if order in infos and _unpacked(archive, infos[order], 16) != b"little":
                raise CheckpointError(f"{path}: was written on a big-endian machine; convert it")
            value, dropped = read_pickle(_unpacked(archive, infos[name], LONGEST_PICKLE))
    except (
        zipfile.BadZipFile, EOFError, zlib.error, struct.error, NotImplementedError, OSError
    ) as error:  # fmt: skip
        reason = _reason(error)
        raise CheckpointError(
            f"{path}: is truncated or damaged ({reason}); download it again"
        ) from None
    except ValueError as error:
        raise CheckpointError(f"{path}: is not a readable checkpoint: {_reason(error)}") from None
    return _ckpt_header(
        path, size, value, dropped, lambda file: _members(file, infos, f"{root}data/")
    )


def _members(
    file: IO[bytes], infos: Mapping[str, zipfile.ZipInfo], folder: str
) -> Callable[[Storage], tuple[int, int]]:
    """The offset and size in bytes of a storage in a zip archive."""

    def where(storage: Storage) -> tuple[int, int]:
        info = infos[folder + storage.key]
        return _start_of(file, info), info.file_size

    return where


def _ckpt_header(
    path: Path,
    size: int,
    value: Any,
    dropped: set[str],
    opened: Callable[[IO[bytes]], Callable[[Storage], tuple[int, int]]],
) -> Header:
    """The header for the value of a pickle; `opened` gives storages their offset and size."""
    state, metadata, remarks = _state_dict(value)
    records = {key: item for key, item in state.items() if isinstance(item, Strided)}
    try:
        with path.open("rb") as file:
            where = opened(file)
            storages = {record.storage.key: record.storage for record in records.values()}
            places = {key: where(storage) for key, storage in storages.items()}
        tensors = {
            key: _entry_of_record(record, *places[record.storage.key])
            for key, record in records.items()
        }
    except (ValueError, LookupError) as error:
        raise CheckpointError(f"{path}: has a damaged index ({_reason(error)})") from None
    needed = max((entry.start + entry.size for entry in tensors.values()), default=0)
    if needed > size:
        raise CheckpointError(_truncated(path, size, needed))
    if sum(entry.size for entry in tensors.values()) > MOST_SHARED * size + SPARE:
        raise CheckpointError(f"{path}: has a damaged index (its tensors share their numbers)")
    return Header(path, "ckpt", tensors, metadata, tuple(sorted(dropped)), remarks)


def _read_legacy(path: Path, size: int) -> Header:
    """Read a file of torch before 1.6."""
    with path.open("rb") as file:
        start = file.read(LONGEST_PICKLE)
    try:
        index = read_index(start)
    except ValueError as error:
        raise CheckpointError(f"{path}: is not a readable checkpoint: {_reason(error)}") from None

    def opened(file: IO[bytes]) -> Callable[[Storage], tuple[int, int]]:
        return index.places(file, lambda storage: SIZES[_STORAGES[storage.kind]]).__getitem__

    return _ckpt_header(path, size, index.value, index.dropped, opened)


def _unpacked(archive: zipfile.ZipFile, info: zipfile.ZipInfo, most: int) -> bytes:
    """Read a member of at most `most` bytes, whatever size it claims."""
    if info.flag_bits & 1:
        raise ValueError("it is encrypted; unpack it and zip it without a password")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError("its index is compressed in an unusual way; unpack it and zip it again")
    if info.file_size > most:
        raise ValueError(f"its index has {info.file_size} bytes; at most {most} are allowed")
    with archive.open(info) as member:
        return member.read(most)


def _state_dict(value: Any) -> tuple[dict[str, Any], dict[str, str], tuple[str, ...]]:
    """Tensors by key, plain values and remarks, from a training checkpoint or a bare state dict.

    Where neither has tensors, they are looked for one level down.
    """
    if not isinstance(value, dict):
        return {}, {}, ()
    metadata = {
        key: str(item)
        for key, item in value.items()
        if isinstance(key, str) and isinstance(item, str | int | float)
    }
    inner = value.get("state_dict")
    state, path = (inner, "state_dict.") if isinstance(inner, dict) else (value, "")
    remarks: tuple[str, ...] = ()
    if not _has_tensors(state):
        nested = {k: v for k, v in state.items() if isinstance(k, str) and _has_tensors(v)}
        names = sorted(nested) if len(nested) == 1 else []
        for name in [key for key in ("state_dict", "model") if key in nested][:1] or names:
            state, remarks = nested[name], (f"the tensors are those of {path}{name} in the file",)
    return {key: item for key, item in state.items() if isinstance(key, str)}, metadata, remarks


def _has_tensors(value: Any) -> bool:
    return isinstance(value, dict) and any(isinstance(item, Strided) for item in value.values())


def _start_of(file: IO[bytes], info: zipfile.ZipInfo) -> int:
    """The offset of a stored member's contents."""
    if info.compress_type != zipfile.ZIP_STORED:
        raise ValueError("its tensors are compressed; unpack it and zip it without compression")
    file.seek(info.header_offset)
    local = file.read(30)
    if len(local) < 30 or local[:4] != b"PK\x03\x04":
        raise ValueError("a member is not where it should be")
    name, extra = (int.from_bytes(local[at : at + 2], "little") for at in (26, 28))
    return info.header_offset + 30 + name + extra


def _entry_of_record(record: Strided, start: int, stored: int) -> Entry:
    dtype = _STORAGES.get(record.storage.kind)
    if record.dtype is not None:
        dtype = next((name for name, known in TORCH_NAMES.items() if known == record.dtype), None)
    if dtype is None:
        raise ValueError(f"unknown number type {record.dtype or record.storage.kind}")
    entry = Entry(dtype, record.shape, start + record.offset * SIZES[dtype], record.strides)
    if (record.offset + entry.span) * SIZES[dtype] > stored:
        raise ValueError("a tensor extends beyond its storage")
    plain, step = True, 1
    for length, stride in zip(reversed(record.shape), reversed(record.strides), strict=True):
        plain = plain and (length == 1 or stride == step)
        step *= length
    return replace(entry, strides=None) if plain else entry


def _with_usual_names(header: Header) -> Header:
    """The header with the usual names of a CLIP text encoder.

    Checkpoints that anime models of 2022 derive from lack `text_model.`.
    """
    renamed = {
        key: key.replace(_TOWER, f"{_TOWER}text_model.", 1)
        for key in header.tensors
        if key.startswith(_BARE_TOWER)
    }
    if not renamed or any(key in header.tensors for key in renamed.values()):
        return header
    tensors = {renamed.get(key, key): entry for key, entry in header.tensors.items()}
    remark = f"the text encoder's keys lack text_model. after {_TOWER}; they were read with it"
    return replace(header, tensors=tensors, remarks=(*header.remarks, remark))


def _truncated(path: Path, size: int, needed: int) -> str:
    return f"{path}: is truncated: {size} bytes of {needed}; download it again"


def _foreign(start: bytes) -> str:
    if not start:
        return "is empty; download it again"
    if start.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, not the weights; run `git lfs pull`"
    if start.lstrip()[:1] == b"<":
        return "is a web page, not the weights; the download went wrong"
    if start[:1] == b"\x80":
        return "is a pickle, but not one of torch's; it is no checkpoint"
    return "is neither a .safetensors nor a .ckpt file; check the path or download it again"


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
